# SPDX-License-Identifier: Apache-2.0
"""Counters and bounded windows of what a running node does."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW = 512  # samples that a percentile looks back on


@dataclass
class Counters:
    """What became of every image of one camera.

    At any moment `received` = `published` + `dropped` + `idle` + rejected + `pending`.

    Attributes:
        received: images that arrived.
        published: images answered with a depth image.
        dropped: images replaced by a newer one before their turn came.
        idle: images left alone because nobody subscribed to any output.
        pending: images waiting or in work now (at most 2).
        rejected: unusable images, by condition ('wrong step').
        unprojected: answered images without cloud and camera_info, by condition ('all zeros');
            these are counted in `published` too.
        unpictured: likewise those without depth/image_color, depth/spread, depth/stddev or
            depth/words.
        lost: images that the middleware reports as lost before they arrived.

    """

    received: int = 0
    published: int = 0
    dropped: int = 0
    idle: int = 0
    pending: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unprojected: Counter[str] = field(default_factory=Counter)
    unpictured: Counter[str] = field(default_factory=Counter)
    lost: int = 0

    def copy(self) -> Counters:
        """Snapshot for reading outside the lock."""
        return Counters(self.received, self.published, self.dropped, self.idle, self.pending,
                        self.rejected.copy(), self.unprojected.copy(), self.unpictured.copy(),
                        self.lost)

    def total_rejected(self) -> int:
        """Rejected images of all conditions."""
        return sum(self.rejected.values())

    def __str__(self) -> str:
        text = (f'{self.received} received = {self.published} published + {self.dropped} dropped '
                f'+ {self.total_rejected()} rejected + {self.idle} idle + {self.pending} pending')
        if self.idle:
            text += '; idle: nobody subscribed to an output'
        for name, conditions in (('rejected', self.rejected), ('no cloud', self.unprojected),
                                 ('no pictures', self.unpictured)):
            if conditions:
                counts = ', '.join(f'{key}: {n}' for key, n in sorted(conditions.items()))
                text += f'; {name}: {counts}'
        return text


class Window:
    """The last values of a quantity, and their percentiles."""

    def __init__(self, size: int = WINDOW) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        """Append a value; the oldest one makes room."""
        self._values.append(value)

    def percentile(self, percent: float) -> float:
        """Nearest-rank percentile; NaN while empty."""
        values = sorted(self._values.copy())
        if not values:
            return math.nan
        return values[min(len(values) - 1, math.ceil(percent / 100 * len(values)) - 1)]


class StageTimes:
    """Milliseconds that each stage of a frame took, over the last frames."""

    def __init__(self) -> None:
        self.windows: dict[str, Window] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time the block as one run of `stage`."""
        start = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add one measured duration."""
        if stage not in self.windows:
            self.windows[stage] = Window()
        self.windows[stage].add(1e3 * seconds)

    def percentile(self, stage: str, percent: float) -> float:
        """Percentile of a stage in milliseconds; NaN if it never ran."""
        return self.windows[stage].percentile(percent) if stage in self.windows else math.nan


class Rate:
    """Events per second over the last few readings of a counter."""

    def __init__(self, readings: int = 6) -> None:
        self._readings: deque[tuple[float, int]] = deque(maxlen=readings)

    def update(self, now: float, count: int) -> float:
        """Add a reading (steady seconds, counter) and give the rate in Hz."""
        self._readings.append((now, count))
        (first, before), (last, after) = self._readings[0], self._readings[-1]
        return (after - before) / (last - first) if last > first else 0.0


class Recent:
    """The mean of what was measured in the last seconds."""

    def __init__(self, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        """Add a measurement."""
        self._values.append((time.monotonic(), value))

    def mean(self) -> float:
        """NaN if there was none."""
        oldest = time.monotonic() - self._seconds
        values = [value for when, value in self._values.copy() if when >= oldest]
        return sum(values) / len(values) if values else math.nan


class Throttle:
    """Lets every condition through once per period.

    rclpy throttles by the line of code that logs; here one line serves many conditions.
    """

    def __init__(self, period: float = 10.0) -> None:
        self._period = period
        self._last: dict[str, float] = {}

    def due(self, condition: str) -> bool:
        """Whether `condition` may be reported now; if so, it counts as reported."""
        now = time.monotonic()
        if now - self._last.get(condition, -math.inf) < self._period:
            return False
        self._last[condition] = now
        return True


def memory_mb() -> float:
    """Resident memory of this process in MiB (its peak, where the system tells no more)."""
    status = Path('/proc/self/statm')
    if status.exists():
        pages = int(status.read_text(encoding='ascii').split()[1])
        return pages * resource.getpagesize() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)
