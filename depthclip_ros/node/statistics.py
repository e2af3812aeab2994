# SPDX-License-Identifier: Apache-2.0
"""Bounded windows of what a running node does, and what it says of it."""

from __future__ import annotations

import math
import time
from collections import deque

from rclpy.node import Node

WINDOW = 512  # samples that a percentile looks back on
RECENT = 5.0  # seconds that a mean looks back on


class Window:
    """The last values of a quantity."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=WINDOW)

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
