# SPDX-License-Identifier: Apache-2.0
"""Counters and bounded windows of what a running node does, and what it says of it."""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections import Counter, defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rclpy.node import Node

WINDOW = 512  # samples that a percentile looks back on
RECENT = 5.0  # seconds that a mean looks back on
NO_CLOUD, NO_PICTURES = 'no cloud', 'no pictures'


@dataclass
class Counters:
    """What became of every image of one camera.

    At any moment `received` = `published` + `dropped` + `idle` + rejected + `pending`.

    Attributes:
        received: images that arrived.
        published: images answered with a depth image.
        dropped: images replaced by a newer one before their turn came, or left at the end.
        idle: images left alone because nobody subscribed to any output.
        pending: images waiting or in work now (at most 2).
        rejected: unusable images, by condition ('wrong step').
        incomplete: answered images that lack something, by what ('no cloud') and condition; these
            are counted in `published` too.
        lost: images that the middleware reports as lost before they arrived.

    """

    received: int = 0
    published: int = 0
    dropped: int = 0
    idle: int = 0
    pending: int = 0
    lost: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    incomplete: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def copy(self) -> Counters:
        """Snapshot for reading outside the lock."""
        return copy.deepcopy(self)

    def total_rejected(self) -> int:
        """Rejected images of all conditions."""
        return sum(self.rejected.values())

    def conditions(self) -> Counter[str]:
        """Every cause there is, with the images that it was counted for."""
        return sum(self.incomplete.values(), self.rejected.copy())

    def causes(self) -> Iterator[tuple[str, int]]:
        """Every cause with what it means, 'rejected: wrong step', and how often."""
        for kind, conditions in [('rejected', self.rejected), *sorted(self.incomplete.items())]:
            for condition, count in sorted(conditions.items()):
                yield f'{kind}: {condition}', count

    def __str__(self) -> str:
        text = (f'{self.received} received = {self.published} published + {self.dropped} dropped '
                f'+ {self.total_rejected()} rejected + {self.idle} idle + {self.pending} pending')
        if self.idle:
            text += '; idle: nobody subscribed to an output'
        return text + ''.join(f'; {cause}: {count}' for cause, count in self.causes())


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


class StageTimes:
    """Milliseconds that each stage of a frame took, over the last frames."""

    def __init__(self) -> None:
        self.windows: defaultdict[str, Window] = defaultdict(Window)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time the block as one run of `stage`."""
        start = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add one measured duration."""
        self.windows[stage].add(1e3 * seconds)

    def percentile(self, stage: str, percent: float) -> float:
        """Percentile of a stage in milliseconds; NaN if it never ran."""
        return self.windows[stage].percentile(percent) if stage in self.windows else math.nan


class Say:
    """The node's log, in which each matter comes once in a while.

    rclpy throttles by the line of code that logs; here one line serves many matters.
    """

    def __init__(self, node: Node, label: str = '', period: float = 10.0) -> None:
        """Say nothing yet.

        Args:
            node: whose log it is.
            label: begins every sentence.
            period: seconds for which a matter is not said again.

        """
        self._node, self._label, self._period = node, label, period
        self._last: dict[str, float] = {}

    def due(self, key: str) -> bool:
        """Whether a matter may be said now; if so, it counts as said."""
        now = time.monotonic()
        if now - self._last.get(key, -math.inf) < self._period:
            return False
        self._last[key] = now
        return True

    def once(self, key: str, text: str) -> None:
        """Warn, unless that was said a while ago."""
        if self.due(key):
            self._node.get_logger().warning(self._label + text)

    def error(self, key: str, text: str) -> None:
        """Likewise of what is an error."""
        if self.due(key):
            self._node.get_logger().error(self._label + text)

    def info(self, text: str) -> None:
        """Say what is no trouble."""
        self._node.get_logger().info(self._label + text)


def memory_mb() -> float:
    """Resident memory of this process in MiB (its peak, where the system tells no more)."""
    status = Path('/proc/self/statm')
    if status.exists():
        pages = int(status.read_text(encoding='ascii').split()[1])
        return pages * resource.getpagesize() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)
