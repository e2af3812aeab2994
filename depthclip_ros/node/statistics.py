# SPDX-License-Identifier: Apache-2.0
"""Counters and bounded windows of what a running node does, and what it says of it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.node import Node

WINDOW = 512  # samples that a percentile looks back on
RECENT = 5.0  # seconds that a mean looks back on
REJECTED, NO_CLOUD, NO_PICTURES = 'rejected', 'no cloud', 'no pictures'


@dataclasses.dataclass
class Counters:
    """What became of every image of one camera.

    At any moment `received` = `published` + `dropped` + `idle` + `rejected` + `pending`.
    """

    received: int = 0
    published: int = 0  # answered with a depth image
    dropped: int = 0  # replaced by a newer one before their turn came, or left at the end
    rejected: int = 0  # unusable
    idle: int = 0  # left alone because nobody subscribed to any output
    pending: int = 0  # waiting or in work now (at most 2)
    lost: int = 0  # before they arrived, as the middleware reports
    # Rejected, or lacking something beside depth, by what and why ('rejected: wrong step').
    causes: Counter[str] = dataclasses.field(default_factory=Counter)

    def copy(self) -> Counters:
        """Snapshot for reading outside the lock."""
        return dataclasses.replace(self, causes=self.causes.copy())

    def __str__(self) -> str:
        text = (f'{self.received} received = {self.published} published + {self.dropped} dropped '
                f'+ {self.rejected} rejected + {self.idle} idle + {self.pending} pending')
        if self.idle:
            text += '; idle: nobody subscribed to an output'
        return text + ''.join(f'; {cause}: {n}' for cause, n in sorted(self.causes.items()))


class Window:
    """The last values of a quantity."""

    def __init__(self, size: int = WINDOW) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=size)

    def add(self, value: float) -> None:
        """Append a value; the oldest one makes room."""
        self._values.append((time.monotonic(), value))

    def percentile(self, percent: float) -> float:
        """Nearest-rank percentile; NaN while empty."""
        values = sorted(value for _, value in self._values.copy())
        if not values:
            return math.nan
        return values[min(len(values) - 1, math.ceil(percent / 100 * len(values)) - 1)]

    def recent(self) -> float:
        """Mean of the values of the last seconds; NaN if there was none."""
        oldest = time.monotonic() - RECENT
        values = [value for when, value in self._values.copy() if when >= oldest]
        return sum(values) / len(values) if values else math.nan


class StageTimes(defaultdict[str, Window]):
    """Milliseconds that each stage of a frame took, over the last frames."""

    def __init__(self) -> None:
        super().__init__(Window)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time the block as one run of `stage`."""
        start = time.perf_counter()
        yield
        self[stage].add(1e3 * (time.perf_counter() - start))


class Say:
    """The node's log, in which each matter comes once in a while.

    rclpy throttles by the line of code that logs; here one line serves many matters.
    """

    def __init__(self, node: Node, label: str = '', period: float = 10.0) -> None:
        """Say nothing yet; a matter is not said again for `period` seconds."""
        self._node, self._label, self._period = node, label, period
        self._last: dict[str, float] = {}

    def once(self, key: str, text: str, level: str = 'warning') -> None:
        """Say a matter, unless it was said a while ago."""
        now = time.monotonic()
        if now - self._last.get(key, -math.inf) < self._period:
            return
        self._last[key] = now
        log, text = self._node.get_logger(), f'{self._label}{text}'
        if level == 'error':  # rclpy wants a line of code for each
            log.error(text)
        elif level == 'warning':
            log.warning(text)
        else:
            log.info(text)

    def info(self, text: str) -> None:
        """Say what is no trouble."""
        self._node.get_logger().info(self._label + text)
