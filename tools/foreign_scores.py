# SPDX-License-Identifier: Apache-2.0
"""Scores of `foreign_robots.py`: the evaluation's own metrics, and what they say beside others.

Every figure is a mean over images, and every image is of a room of its own. Intervals are of the
bootstrap over rooms; a ratio is that of two means over the same rooms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offline_eval.metrics import SUMS, Truth, average, metrics_of, resampled
from offline_eval.results import METRICS

FARTHEST = 100.0  # metres: nothing is cut off
RESAMPLES, LEVEL = 2000, 0.95
QUANTILE = 1.645  # standard deviations that hold 90 %
STEP = 4  # every so many rows and columns are looked at for coverage
EDGES = np.geomspace(0.1, 20, 1000).astype(np.float32)  # metres
D1, RMSE = METRICS.index('d1'), METRICS.index('rmse')


@dataclass
class Sheet:
    """Scores of several methods on the same images.

    Attributes:
        truth: (N, H, W) metres.
        sums: of every method, (N, 11), in the order in which they came.

    """

    truth: NDArray[np.float32]
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, name: str, depth: Iterable[NDArray[np.float32]]) -> None:
        """Score a method's depth, (H, W) metres for each image."""
        self.sums[name] = sums_of(self.truth, depth)

    def metric(self, name: str, which: int = RMSE) -> float:
        """The mean over images of a method's metric."""
        return float(average(self.sums[name], 'image')[which])

    def ratio(self, name: str, to: str, which: int = RMSE) -> float:
        """A method's metric as a share of another one's."""
        return self.metric(name, which) / self.metric(to, which)

    def interval(self, name: str, to: str) -> tuple[float, float]:
        """What the bootstrap over rooms says of `ratio`."""
        counts = draws(len(self.truth))
        ours, theirs = (resampled(self.sums[n], counts, 'image')[:, RMSE] for n in (name, to))
        low, high = np.quantile(ours / theirs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def row(self, name: str, base: str) -> dict[str, Any]:
        """All that the tables say of a method."""
        low, high = self.interval(name, base)
        return {'d1': self.metric(name, D1), 'rmse [m]': self.metric(name),
                'rel': self.metric(name, METRICS.index('rel')),
                'of base': self.ratio(name, base), 'of base, 95 %': [low, high]}


class Coverage:
    """How much of the truth is within 1.645 standard deviations of depth.

    Attributes:
        shares: of the pixels, of every image.

    """

    def __init__(self, kinds: NDArray[np.str_]) -> None:
        """Begin with no image; `kinds` are the rooms' of those to come."""
        self.shares = list[float]()
        self._kinds = kinds
        self._counts = {by: np.zeros((2, len(EDGES) + 1)) for by in ('depth', 'true depth')}

    def add(
        self, depth: NDArray[np.float32], deviation: NDArray[np.float32] | None,
        truth: NDArray[np.float32], divisor: float = 1.0,
    ) -> None:
        """Look at one image; does nothing if its depth has no standard deviation.

        Args:
            depth: (H, W) metres.
            deviation: (H, W) metres; None for none.
            truth: (H, W) metres.
            divisor: of `deviation`.

        """
        if deviation is None:
            return
        predicted, true, deviation = (
            values[::STEP, ::STEP] for values in (depth, truth, deviation / divisor))
        covered = np.abs(predicted - true) <= QUANTILE * deviation
        self.shares.append(float(covered.mean()))
        for by, values in (('depth', predicted), ('true depth', true)):
            bins = np.searchsorted(EDGES, values.ravel())
            for row, weights in enumerate((None, covered.ravel())):
                self._counts[by][row] += np.bincount(bins, weights, len(EDGES) + 1)

    def summary(self) -> dict[str, Any]:
        """Coverage in all, by kind of room, and by decile of depth."""
        if not self.shares:
            return {}
        shares = np.array(self.shares)
        return {
            'all': float(shares.mean()),
            'by kind of room': {str(kind): float(shares[self._kinds == kind].mean())
                                for kind in sorted(set(self._kinds))},
            **{f'by decile of {by}': _deciles(*counts) for by, counts in self._counts.items()}}


def _deciles(pixels: NDArray[np.float64], covered: NDArray[np.float64]) -> list[float]:
    """Coverage in tenths of the pixels, to the nearest edge."""
    ends = np.searchsorted(pixels.cumsum(), np.linspace(0, pixels.sum(), 11)[1:-1])
    parts = np.split(np.arange(len(pixels)), ends)
    return [float(covered[part].sum() / max(pixels[part].sum(), 1)) for part in parts]


def sums_of(
    truth: NDArray[np.float32], depth: Iterable[NDArray[np.float32]],
) -> NDArray[np.float64]:
    """(N, 11) of depths, as `offline_eval` sums them up.

    Raises:
        ValueError: a depth is not finite; a score would hide it.

    """
    found = []
    for true, predicted in zip(truth, depth, strict=True):
        if not np.isfinite(predicted).all():
            raise ValueError('a predicted depth is not finite, and cannot be scored')
        found.append(Truth(torch.from_numpy(true)).score(
            torch.from_numpy(np.ascontiguousarray(predicted))[None], FARTHEST)[0].numpy())
    return np.array(found).reshape(-1, len(SUMS))


def rmse_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) metres, of every image."""
    values: NDArray[np.float64] = metrics_of(sums)[:, RMSE]
    return values


@lru_cache(maxsize=4)
def draws(count: int) -> NDArray[np.float64]:
    """(S, N) how often each room is in each bootstrap sample: always the same."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return drawn.astype(np.float64)


def mean_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of several rows, and the least and greatest of what is a share of base."""
    rows = list(rows)
    result = {key: np.mean([row[key] for row in rows], axis=0) for key in rows[0]}
    shares = [row['of base'] for row in rows]
    return {**result, 'of base, least and most': [min(shares), max(shares)]}
