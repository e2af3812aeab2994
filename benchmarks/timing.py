# SPDX-License-Identifier: Apache-2.0
"""The one way to measure: contenders in turns, medians, and medians of ratios.

A machine that gets slower or faster meanwhile does so for all of them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

COUNTING = [sys.executable, '-c', 'while True: pass']


@dataclass
class Contender:
    """One thing that is timed.

    Attributes:
        name: what the table calls it.
        clock: runs it once, and gives the seconds that count.
        images: how many each run answers.
        seconds: of each round, once it has run.

    """

    name: str
    clock: Callable[[], float]
    images: int = 1
    seconds: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Median, 90th percentile and rate."""
        p50, p90 = np.percentile(self.seconds, (50, 90))
        return {'contender': self.name, 'p50 [ms]': 1e3 * p50, 'p90 [ms]': 1e3 * p90,
                'images/s': self.images / p50}


def race(contenders: Sequence[Contender], rounds: int, *, warm: bool = True) -> list[
        dict[str, Any]]:
    """Time every contender once a round; the first round does not count.

    Args:
        contenders: in the order of their turns.
        rounds: that count.
        warm: run each twice a turn, of which the second counts: the first finds in the caches
            what its predecessor has left, and that one's threads maybe not yet at rest.

    Returns:
        The row of each.

    """
    for number in range(1 + rounds):
        for contender in contenders:
            if warm:
                contender.clock()
            seconds = contender.clock()
            if number:
                contender.seconds.append(seconds)
    return [contender.row() for contender in contenders]


def ratio(over: Contender, under: Contender) -> float:
    """Median, over the rounds, of the one's time by the other's in the same round."""
    return median(a / b for a, b in zip(over.seconds, under.seconds, strict=True))


def wall(run: Callable[[], Any], now: Callable[[], float] = time.perf_counter) -> Callable[
        [], float]:
    """Run something by the clock on the wall, or by another one."""
    def clock() -> float:
        start = now()
        run()
        return now() - start
    return clock


def processor(run: Callable[[], Any]) -> Callable[[], float]:
    """Run something by the processor's clock: seconds of all cores, whatever else they do."""
    return wall(run, time.process_time)


@contextmanager
def other_work(count: int) -> Iterator[None]:
    """Let so many processes do nothing but count meanwhile."""
    running = [subprocess.Popen(COUNTING) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
