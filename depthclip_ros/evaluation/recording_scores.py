# SPDX-License-Identifier: Apache-2.0
"""Metrics of predicted depth on recordings that hold measured depth.

Two oracles see the measured depth and serve as yardsticks: the constant depth, and the one scale
for all predicted depth, that are best in each metric. Depth that does not beat the constant
ignores the image; an error that the scale removes is a matter of calibration.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .bootstrap import (
    BEST_CONSTANT,
    MIN_GROUPS,
    VERDICT_METRICS,
    Interval,
    draw_groups,
    percentile_interval,
)
from .metrics import (
    METRICS,
    MIN_DEPTH,
    SIGNS,
    SUMS,
    SYMBOLS,
    Float64,
    ScaledScores,
    Sums,
    best_rows,
    by_name,
    metrics_of,
    sums_of,
    unit,
)

#: Metres: default limit of measured depth, and the largest limit a user can ask for.
MAX_DEPTH, MAX_RANGE = 200.0, 1000.0
#: Candidates of the oracles, in steps of 2 and 1 %.
CONSTANTS = np.geomspace(0.05, MAX_RANGE, 500)
SCALES = np.geomspace(1 / 8, 8, 419)
#: Bins of the error by distance, metres.
EDGES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0,
         MAX_DEPTH, 500.0, MAX_RANGE)
METHOD, SCALED = 'depth', 'depth times one scale'
FILLED = 'depth, with its median where it says nothing'


@dataclass
class Scores:
    """Sums of one recording's images; no pixels."""

    source: str  # name of the recording
    description: str  # of images and measured depth, in words
    names: list[str] = field(default_factory=list)  # of the scored images
    measured_pixels: int = 0
    predicted_pixels: int = 0  # measured pixels with predicted depth
    # (11,) sums of every image over its predicted pixels; and over all measured pixels, where the
    # image's median fills in for missing predictions.
    sums: list[Sums] = field(default_factory=list)
    filled_sums: list[Sums] = field(default_factory=list)
    # Totals over the images: (D, 11) sums by distance, over predicted pixels; (500, 10) metrics of
    # every constant over all measured pixels; (419, 10) metrics of depth times every scale.
    by_distance: Sums = field(default_factory=lambda: np.zeros((len(EDGES) - 1, len(SUMS))))
    constant_metrics: Sums = field(
        default_factory=lambda: np.zeros((len(CONSTANTS), len(METRICS))))
    scale_metrics: Sums = field(default_factory=lambda: np.zeros((len(SCALES), len(METRICS))))
    left_out: Counter[str] = field(default_factory=Counter)  # images not scored, by cause

    def add(
        self, name: str, depth: NDArray[np.float32], measured: NDArray[np.float32],
        max_depth: float = MAX_DEPTH,
    ) -> None:
        """Score one image.

        Args:
            name: of the image.
            depth: (H, W) predicted metres; a missing prediction is not finite or not positive.
            measured: (H, W) metres, NaN where nothing was measured.
            max_depth: measured depth from here on is ignored, larger predictions are clipped to
                it; at most FARTHEST.

        """
        with np.errstate(invalid='ignore'):
            measured_mask = (measured > MIN_DEPTH) & (measured < max_depth)
            valid = measured_mask & np.isfinite(depth) & (depth > 0)
        self.measured_pixels += int(measured_mask.sum())
        self.predicted_pixels += int(valid.sum())
        if not valid.any():
            self.left_out['depth is known nowhere where it is measured' if measured_mask.any() else
                          'no measured depth'] += 1
            return
        y, p = measured[valid], depth[valid].clip(MIN_DEPTH, max_depth)
        bin_indices = np.digitize(y, EDGES) - 1
        for i in np.unique(bin_indices):
            self.by_distance[i] += sums_of(p[bin_indices == i], y[bin_indices == i], max_depth)
        truth = measured[measured_mask]
        filled = np.where(valid, depth, np.float32(np.median(p)))[measured_mask]
        self.names.append(name)
        self.sums.append(sums_of(p, y, max_depth))
        self.filled_sums.append(sums_of(filled, truth, max_depth))
        self.constant_metrics += metrics_of(ScaledScores(1.0, truth).score(CONSTANTS))
        self.scale_metrics += metrics_of(ScaledScores(p, y).score(SCALES))


class MetricLine(Struct, frozen=True):
    """Metrics by name; of an oracle also the constant or scale chosen for each."""

    name: str
    metrics: dict[str, float]
    chosen: dict[str, float] = {}


class DistanceBin(Struct, frozen=True):
    """Error where the truth is from `low` to `high` metres, over all pixels together.

    `share` is the fraction of the scored pixels, `ratio` the geometric mean of predicted over
    measured depth: below 1, predictions are too near.
    """

    low: float
    high: float
    share: float
    ratio: float
    metrics: dict[str, float]


class PooledScores(Struct, frozen=True):
    """Metrics over all images of one recording or several."""

    images: int  # scored
    pixels: int  # with measured depth, in all
    answered: float  # fraction of these with predicted depth
    # METHOD, FILLED, SCALED and the best constant. METHOD and SCALED are scored on pixels with
    # predicted depth, the others on all measured pixels.
    lines: list[MetricLine]
    distances: list[DistanceBin]  # bins with pixels
    verdict: str
    intervals: dict[str, Interval]  # of the gain over the constant; empty for few recordings
    left_out: dict[str, int]  # images that were not scored, by cause


def pool(recordings: Sequence[Scores]) -> PooledScores:
    """Average the metrics over all images of recordings; at least one image must be scored."""
    images = sum(len(scores.names) for scores in recordings)

    def mean(name: str, sums: list[list[Sums]]) -> MetricLine:
        per_image = np.array(list(chain.from_iterable(sums)))
        return MetricLine(name, by_name(metrics_of(per_image).mean(axis=0)))

    def oracle(name: str, curves: list[Sums], values: Float64) -> MetricLine:
        curve = np.sum(curves, axis=0) / images
        best = best_rows(curve)
        return MetricLine(name, by_name(curve[best, range(len(METRICS))]), by_name(values[best]))
    lines = [mean(METHOD, [s.sums for s in recordings]),
             mean(FILLED, [s.filled_sums for s in recordings]),
             oracle(SCALED, [s.scale_metrics for s in recordings], SCALES),
             oracle(BEST_CONSTANT, [s.constant_metrics for s in recordings], CONSTANTS)]
    by_distance = np.sum([scores.by_distance for scores in recordings], axis=0)
    pixels = by_distance[:, 0].sum()
    distances = [
        DistanceBin(low, high, float(sums[0] / pixels),
                    math.exp(sums[SUMS.index('signed_log')] / sums[0]), by_name(metrics_of(sums)))
        for low, high, sums in zip(EDGES, EDGES[1:], by_distance, strict=False) if sums[0]]
    measured_pixels = sum(scores.measured_pixels for scores in recordings)
    predicted_pixels = sum(scores.predicted_pixels for scores in recordings)
    predicted_fraction = predicted_pixels / max(measured_pixels, 1)
    intervals = _intervals([scores for scores in recordings if scores.names])
    left_out: Counter[str] = sum((scores.left_out for scores in recordings), Counter())
    return PooledScores(images, measured_pixels, predicted_fraction, lines, distances,
                        _verdict(lines, intervals, predicted_fraction), intervals,
                        dict(sorted(left_out.items())))


def _intervals(recordings: Sequence[Scores]) -> dict[str, Interval]:
    """Bootstrap the gain over the best constant, by whole recordings: their images are alike.

    Every bootstrap sample has its own best constant, since that is an oracle.
    """
    if len(recordings) < MIN_GROUPS:
        return {}
    weights = draw_groups(len(recordings)) * np.array([len(s.names) for s in recordings], float)
    weights /= weights.sum(axis=1, keepdims=True)
    result = {}
    for metric in VERDICT_METRICS:
        i = METRICS.index(metric)
        means = [metrics_of(np.array(s.filled_sums))[:, i].mean() for s in recordings]
        curve = np.stack([s.constant_metrics[:, i] / len(s.names) for s in recordings])
        best = (SIGNS[i] * weights @ curve).max(axis=1)
        result[metric] = percentile_interval(SIGNS[i] * weights @ means - best, len(recordings))
    return result


def _verdict(
    lines: Sequence[MetricLine], intervals: dict[str, Interval], predicted_fraction: float,
) -> str:
    depth, filled, scaled, constant = lines
    parts = []
    for metric in VERDICT_METRICS:
        gain = SIGNS[METRICS.index(metric)] * (filled.metrics[metric] - constant.metrics[metric])
        word, units = 'better' if gain >= 0 else 'worse', unit(metric)
        parts.append(f'by {abs(gain):.3f}{units} in {SYMBOLS[metric]} {word} than the best '
                     f'constant ({constant.chosen[metric]:.2f} m)')
        if metric in intervals:
            parts[-1] += (f', 95 % interval of the gain {intervals[metric].low:+.3f} to '
                          f'{intervals[metric].high:+.3f}{units} ({intervals[metric].outcome()})')
    text = f'Depth is {", and ".join(parts)}. '
    if predicted_fraction < 1:
        text += (f'It says nothing of {100 * (1 - predicted_fraction):.1f} % of what is measured; '
                 'there its median counts, for the constant answers everywhere. ')
    text += 'One scale for all would bring ' + ' and '.join(
        f'{SYMBOLS[m]} from {depth.metrics[m]:.3f} to {scaled.metrics[m]:.3f}{unit(m)} (times '
        f'{scaled.chosen[m]:.2f})' for m in VERDICT_METRICS) + '.'
    return text if intervals else text + (
        ' Images of one drive are much alike: there is no interval, and another drive may differ '
        f'(from {MIN_GROUPS} recordings on, one is given).')
