# SPDX-License-Identifier: Apache-2.0
"""Depth of a recording against the depth that a sensor measured beside it.

Metrics are those of `offline_eval.metrics`, as means over the images. Beside them stand two
oracles, which see the measured depth: the constant, and the one scale for all of depth, that are
best in each metric. What is no better than the constant has not looked at the image; what the
scale repairs is a matter of calibration.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .bootstrap import LEAST_GROUPS, draw, interval
from .metrics import (
    MIN_DEPTH,
    SUMS,
    SortedRatio,
    SortedTruth,
    Sums,
    Truth,
    best_of,
    metrics_of,
    named,
)
from .results import HIGHER_IS_BETTER, METRICS, Interval

#: Metres; what is measured beyond is no measurement, unless it is asked for, up to the farthest.
MAX_DEPTH, FARTHEST = 200.0, 1000.0
#: Among which the oracles choose: steps of 2 and of 1 %.
CONSTANTS = np.geomspace(0.05, FARTHEST, 500)
SCALES = np.geomspace(1 / 8, 8, 419)
#: Of the error by distance, metres.
EDGES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0,
         MAX_DEPTH, 500.0, FARTHEST)
METHOD, SCALED, CONSTANT = 'depth', 'depth times one scale', 'best constant'
FILLED = 'depth, with its median where it says nothing'
_SAID = ('d1', 'rmse')  # what the sentence is about


@dataclass
class Scores:
    """What is kept of one recording: sums, no pixels.

    Attributes:
        source: the recording.
        described: what image and depths are, in words.
        names: of every image that was scored.
        measured: pixels with measured depth.
        answered: pixels of these that depth is known for.
        sums: (N, D, 11) of every image, by distance, where depth is known.
        filled: (N, 11) of every image, all that is measured: where depth is not known, its median.
        constants: (500, 10) metrics of every constant on all that is measured, added up over the
            images.
        scales: (419, 10) metrics of depth times every scale, added up over the images.
        left_out: images that were not scored, by cause.

    """

    source: str
    described: str
    names: list[str] = field(default_factory=list)
    measured: int = 0
    answered: int = 0
    sums: list[Sums] = field(default_factory=list)
    filled: list[Sums] = field(default_factory=list)
    constants: Sums = field(default_factory=lambda: np.zeros((len(CONSTANTS), len(METRICS))))
    scales: Sums = field(default_factory=lambda: np.zeros((len(SCALES), len(METRICS))))
    left_out: Counter[str] = field(default_factory=Counter)

    def add(
        self, name: str, depth: NDArray[np.float32], measured: NDArray[np.float32],
        max_depth: float = MAX_DEPTH,
    ) -> None:
        """Score one image.

        Args:
            name: of the image.
            depth: (H, W) metres; where it is not finite, or not positive, it is not known.
            measured: (H, W) metres, NaN where there is none.
            max_depth: what is measured from here on does not count; larger depth counts as this.
                At most FARTHEST.

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
        y = measured[known]
        p = depth[known].clip(MIN_DEPTH, max_depth)
        place = np.digitize(y, EDGES) - 1
        sums = np.zeros((len(EDGES) - 1, len(SUMS)))
        for i in np.unique(place):
            here = place == i
            truth = Truth(torch.from_numpy(y[here]))
            sums[i] = truth.score(torch.from_numpy(p[here])[None], max_depth)[0].numpy()
        self.names.append(name)
        self.sums.append(sums)
        whole = np.where(known, depth, np.median(p))[valid].clip(MIN_DEPTH, max_depth)
        self.filled.append(Truth(torch.from_numpy(measured[valid])).score(
            torch.from_numpy(whole.astype(np.float32))[None], max_depth)[0].numpy())
        self.constants += metrics_of(SortedTruth(measured[valid]).score(CONSTANTS))
        self.scales += metrics_of(SortedRatio(p, y).score(SCALES))


@dataclass(frozen=True)
class Line:
    """Metrics by name, and what an oracle chose for each."""

    name: str
    metrics: dict[str, float]
    chosen: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Distance:
    """Error where the truth is from `low` to `high` metres.

    Attributes:
        low: metres.
        high: metres.
        share: of the pixels scored.
        ratio: geometric mean of depth over measured depth: below 1 it is said to be nearer.
        metrics: over these pixels together.

    """

    low: float
    high: float
    share: float
    ratio: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """How good depth is, over one recording or several.

    Attributes:
        images: scored.
        pixels: with measured depth, in all.
        answered: share of these that depth is known for.
        lines: depth where it is known, and with its median elsewhere, and the two oracles; the
            constant is scored on all that is measured.
        distances: those that occur.
        verdict: one sentence.
        intervals: of the gain over the best constant, where recordings are enough for it.
        left_out: images that were not scored, by cause.

    """

    images: int
    pixels: int
    answered: float
    lines: list[Line]
    distances: list[Distance]
    verdict: str
    intervals: dict[str, Interval]
    left_out: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def compare(several: Sequence[Scores]) -> Comparison:
    """Pool recordings: means over all their images.

    Args:
        several: of one recording each; at least one image is scored.

    """
    images = sum(len(scores.names) for scores in several)
    by_distance = np.concatenate([np.stack(scores.sums) for scores in several if scores.sums])
    total = metrics_of(by_distance.sum(axis=1)).mean(axis=0)
    curves = {name: np.sum([getattr(s, name) for s in several], axis=0) / images
              for name in ('constants', 'scales')}
    best = {name: best_of(curve) for name, curve in curves.items()}
    answered = sum(s.answered for s in several) / max(sum(s.measured for s in several), 1)
    filled = metrics_of(np.concatenate([np.stack(s.filled) for s in several if s.filled]))
    lines = [Line(METHOD, named(total)), Line(FILLED, named(filled.mean(axis=0))),
             _oracle(SCALED, curves['scales'], best['scales'], SCALES),
             _oracle(CONSTANT, curves['constants'], best['constants'], CONSTANTS)]
    found = _intervals([s for s in several if s.sums])
    left_out: Counter[str] = sum((scores.left_out for scores in several), Counter())
    return Comparison(
        images, sum(scores.measured for scores in several), answered, lines,
        _distances(by_distance.sum(axis=0)), _verdict(lines, found, answered), found,
        dict(sorted(left_out.items())))


def _oracle(name: str, curve: Sums, best: list[int], values: NDArray[np.float64]) -> Line:
    return Line(name, named(curve[best, range(len(METRICS))]), named(values[best]))


def _distances(sums: Sums) -> list[Distance]:
    """From (D, 11) sums over all images."""
    pixels = sums[:, 0].sum()
    return [
        Distance(low, high, float(of_one[0] / pixels),
                 math.exp(of_one[SUMS.index('signed_log')] / of_one[0]),
                 named(metrics_of(of_one)))
        for low, high, of_one in zip(EDGES, EDGES[1:], sums, strict=False) if of_one[0]]


def _intervals(several: Sequence[Scores]) -> dict[str, Interval]:
    """Intervals of the gain over the best constant, recordings drawn: their images are alike.

    The constant is chosen anew in every sample, as the oracle that it is.
    """
    if len(several) < LEAST_GROUPS:
        return {}
    counts = draw(np.arange(len(several)))
    weights = counts * [len(s.names) for s in several]
    weights /= weights.sum(axis=1, keepdims=True)
    own = np.stack([metrics_of(np.stack(s.filled)).mean(axis=0) for s in several])
    result = {}
    for metric in _SAID:
        i, sign = METRICS.index(metric), 1.0 if metric in HIGHER_IS_BETTER else -1.0
        curve = np.stack([s.constants[:, i] / len(s.names) for s in several])
        oracle = (sign * weights @ curve).max(axis=1)
        result[metric] = interval(sign * weights @ own[:, i] - oracle, len(several))
    return result


def _verdict(lines: Sequence[Line], found: dict[str, Interval], answered: float) -> str:
    depth, filled, scaled, constant = lines
    parts = []
    for metric, name, unit in (('d1', 'δ1', ''), ('rmse', 'rmse', ' m')):
        sign = 1 if metric in HIGHER_IS_BETTER else -1
        gain = sign * (filled.metrics[metric] - constant.metrics[metric])
        word = 'better' if gain >= 0 else 'worse'
        part = (f'by {abs(gain):.3f}{unit} in {name} {word} than the best constant '
                f'({constant.chosen[metric]:.2f} m)')
        if metric in found:
            part += (f', 95 % interval of the gain {found[metric].low:+.3f} to '
                     f'{found[metric].high:+.3f}{unit} ({found[metric].reading()})')
        parts.append(part)
    text = f'Depth is {", and ".join(parts)}. '
    if answered < 1:
        text += (f'It says nothing of {100 * (1 - answered):.1f} % of what is measured; there its '
                 'median counts, for the constant answers everywhere. ')
    text += (f'One scale for all would bring δ1 from {depth.metrics["d1"]:.3f} to '
             f'{scaled.metrics["d1"]:.3f} (times {scaled.chosen["d1"]:.2f}) and rmse from '
             f'{depth.metrics["rmse"]:.3f} to {scaled.metrics["rmse"]:.3f} m (times '
             f'{scaled.chosen["rmse"]:.2f}).')
    if not found:
        text += (' Images of one drive are much alike: there is no interval, and another drive '
                 f'may differ (from {LEAST_GROUPS} recordings on, one is given).')
    return text
