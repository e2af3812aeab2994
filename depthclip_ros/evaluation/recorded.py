# SPDX-License-Identifier: Apache-2.0
"""Depth of a recording against the depth that a sensor measured beside it.

Metrics are those of `metrics`, as means over the images. Beside them stand two
oracles, which see the measured depth: the constant, and the one scale for all of depth, that are
best in each metric. What is no better than the constant has not looked at the image; what the
scale repairs is a matter of calibration.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .bootstrap import BEST_CONSTANT, LEAST_GROUPS, SAID, Interval, draw, interval
from .metrics import (
    METRICS,
    MIN_DEPTH,
    SIGNS,
    SUMS,
    SYMBOLS,
    Float64,
    Multiples,
    Sums,
    best_of,
    metrics_of,
    named,
    sums_of,
    unit,
)

#: Metres; what is measured beyond is no measurement, unless it is asked for, up to the farthest.
MAX_DEPTH, FARTHEST = 200.0, 1000.0
#: Among which the oracles choose: steps of 2 and of 1 %.
CONSTANTS = np.geomspace(0.05, FARTHEST, 500)
SCALES = np.geomspace(1 / 8, 8, 419)
#: Of the error by distance, metres.
EDGES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0,
         MAX_DEPTH, 500.0, FARTHEST)
METHOD, SCALED = 'depth', 'depth times one scale'
FILLED = 'depth, with its median where it says nothing'


@dataclass
class Scores:
    """What is kept of one recording: sums, no pixels."""

    source: str  # the recording
    described: str  # what image and depths are, in words
    names: list[str] = field(default_factory=list)  # of every image that was scored
    measured: int = 0  # pixels with measured depth
    answered: int = 0  # pixels of these that depth is known for
    # (11,) sums of every image, where depth is known; and of all that is measured: where depth is
    # not known, its median.
    known: list[Sums] = field(default_factory=list)
    filled: list[Sums] = field(default_factory=list)
    # (D, 11) sums of all images where depth is known; (500, 10) metrics of every constant on all
    # that is measured, and (419, 10) of depth times every scale, added up over the images.
    by_distance: Sums = field(default_factory=lambda: np.zeros((len(EDGES) - 1, len(SUMS))))
    constants: Sums = field(default_factory=lambda: np.zeros((len(CONSTANTS), len(METRICS))))
    scales: Sums = field(default_factory=lambda: np.zeros((len(SCALES), len(METRICS))))
    left_out: Counter[str] = field(default_factory=Counter)  # images not scored, by cause

    def add(
        self, name: str, depth: NDArray[np.float32], measured: NDArray[np.float32],
        max_depth: float = MAX_DEPTH,
    ) -> None:
        """Score one image.

        Args:
            name: of the image.
            depth: (H, W) metres; where it is not finite, or not positive, it is not known.
            measured: (H, W) metres, NaN where there is none.
            max_depth: from here on nothing measured counts; larger depth is this. Up to FARTHEST.

        """
        with np.errstate(invalid='ignore'):
            valid = (measured > MIN_DEPTH) & (measured < max_depth)
            known = valid & np.isfinite(depth) & (depth > 0)
        self.measured += int(valid.sum())
        self.answered += int(known.sum())
        if not known.any():
            self.left_out['depth is known nowhere where it is measured' if valid.any() else
                          'no measured depth'] += 1
            return
        y, p = measured[known], depth[known].clip(MIN_DEPTH, max_depth)
        place = np.digitize(y, EDGES) - 1
        for i in np.unique(place):
            self.by_distance[i] += sums_of(p[place == i], y[place == i], max_depth)
        whole = np.where(known, depth, np.float32(np.median(p)))[valid]
        self.names.append(name)
        self.known.append(sums_of(p, y, max_depth))
        self.filled.append(sums_of(whole, measured[valid], max_depth))
        self.constants += metrics_of(Multiples(1.0, measured[valid]).score(CONSTANTS))
        self.scales += metrics_of(Multiples(p, y).score(SCALES))


class Line(Struct, frozen=True):
    """Metrics by name, and what an oracle chose for each."""

    name: str
    metrics: dict[str, float]
    chosen: dict[str, float] = {}


class Distance(Struct, frozen=True):
    """Error where the truth is from `low` to `high` metres, over all pixels together.

    `share` is that of the pixels scored, `ratio` the geometric mean of depth over measured depth:
    below 1 it is said to be nearer.
    """

    low: float
    high: float
    share: float
    ratio: float
    metrics: dict[str, float]


class Comparison(Struct, frozen=True):
    """How good depth is, over one recording or several."""

    images: int  # scored
    pixels: int  # with measured depth, in all
    answered: float  # share of these that depth is known for
    # Depth where it is known, and with its median elsewhere, and the two oracles; the constant is
    # scored on all that is measured.
    lines: list[Line]
    distances: list[Distance]  # those that occur
    verdict: str
    intervals: dict[str, Interval]  # of the gain over the constant, of recordings enough for it
    left_out: dict[str, int]  # images that were not scored, by cause


def compare(several: Sequence[Scores]) -> Comparison:
    """Pool recordings, of which at least one image is scored: means over all their images."""
    images = sum(len(scores.names) for scores in several)

    def mean(name: str, sums: list[list[Sums]]) -> Line:
        every = np.array([one for recording in sums for one in recording])
        return Line(name, named(metrics_of(every).mean(axis=0)))

    def oracle(name: str, curves: list[Sums], values: Float64) -> Line:
        curve = np.sum(curves, axis=0) / images
        best = best_of(curve)
        return Line(name, named(curve[best, range(len(METRICS))]), named(values[best]))
    lines = [mean(METHOD, [s.known for s in several]), mean(FILLED, [s.filled for s in several]),
             oracle(SCALED, [s.scales for s in several], SCALES),
             oracle(BEST_CONSTANT, [s.constants for s in several], CONSTANTS)]
    by_distance = np.sum([scores.by_distance for scores in several], axis=0)
    pixels = by_distance[:, 0].sum()
    distances = [
        Distance(low, high, float(sums[0] / pixels),
                 math.exp(sums[SUMS.index('signed_log')] / sums[0]), named(metrics_of(sums)))
        for low, high, sums in zip(EDGES, EDGES[1:], by_distance, strict=False) if sums[0]]
    measured = sum(scores.measured for scores in several)
    answered = sum(scores.answered for scores in several) / max(measured, 1)
    found = _intervals([scores for scores in several if scores.names])
    left_out: Counter[str] = sum((scores.left_out for scores in several), Counter())
    return Comparison(images, measured, answered, lines, distances,
                      _verdict(lines, found, answered), found, dict(sorted(left_out.items())))


def _intervals(several: Sequence[Scores]) -> dict[str, Interval]:
    """Intervals of the gain over the best constant, recordings drawn: their images are alike.

    The constant is chosen anew in every sample, as the oracle that it is.
    """
    if len(several) < LEAST_GROUPS:
        return {}
    weights = draw(len(several)) * np.array([len(s.names) for s in several], float)
    weights /= weights.sum(axis=1, keepdims=True)
    result = {}
    for metric in SAID:
        i = METRICS.index(metric)
        own = [metrics_of(np.array(s.filled))[:, i].mean() for s in several]
        curve = np.stack([s.constants[:, i] / len(s.names) for s in several])
        best = (SIGNS[i] * weights @ curve).max(axis=1)
        result[metric] = interval(SIGNS[i] * weights @ own - best, len(several))
    return result


def _verdict(lines: Sequence[Line], found: dict[str, Interval], answered: float) -> str:
    depth, filled, scaled, constant = lines
    parts = []
    for metric in SAID:
        gain = SIGNS[METRICS.index(metric)] * (filled.metrics[metric] - constant.metrics[metric])
        word, units = 'better' if gain >= 0 else 'worse', unit(metric)
        parts.append(f'by {abs(gain):.3f}{units} in {SYMBOLS[metric]} {word} than the best '
                     f'constant ({constant.chosen[metric]:.2f} m)')
        if metric in found:
            parts[-1] += (f', 95 % interval of the gain {found[metric].low:+.3f} to '
                          f'{found[metric].high:+.3f}{units} ({found[metric].reading()})')
    text = f'Depth is {", and ".join(parts)}. '
    if answered < 1:
        text += (f'It says nothing of {100 * (1 - answered):.1f} % of what is measured; there its '
                 'median counts, for the constant answers everywhere. ')
    text += 'One scale for all would bring ' + ' and '.join(
        f'{SYMBOLS[m]} from {depth.metrics[m]:.3f} to {scaled.metrics[m]:.3f}{unit(m)} (times '
        f'{scaled.chosen[m]:.2f})' for m in SAID) + '.'
    return text if found else text + (
        ' Images of one drive are much alike: there is no interval, and another drive may differ '
        f'(from {LEAST_GROUPS} recordings on, one is given).')
