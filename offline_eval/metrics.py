# SPDX-License-Identifier: Apache-2.0
"""Metrics of depth, kept as sums per image.

Everything is a function of a few sums over the valid pixels, so that one record of an image
serves both averages (per image, over all pixels), any selection of images, and the bootstrap.
Ratios and differences are float32 as in the official code. Sums are float64, on a CPU those of
float32 sums over pieces: 5e-8 of the sum apart, in half the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .results import HIGHER_IS_BETTER, METRICS

# The sums of one image, in this order. Let y be the truth and p the prediction.
SUMS = ('pixels', 'd1', 'd2', 'd3',  # numbers of pixels
        'rel',  # of |p - y| / y
        'log', 'signed_log', 'square_log',  # of |l|, l and l^2, where l = ln p - ln y
        'absolute', 'square', 'sq_rel')  # of |p - y|, (p - y)^2, (p - y)^2 / y
MIN_DEPTH = 1e-3  # metres; what is below does not count as measured
_PIECE = 1 << 17  # pixels of all maps; fewer: faster on one thread, but Python holds up the others
_ROW = 1 << 13  # pixels of one map: float32 sums of more are off by 1e-6 on AVX2
_FAR = 1e30  # metres, the truth of an invalid pixel: within no factor of any prediction
_THRESHOLDS = (1.25, 1.25 ** 2, 1.25 ** 3)

Sums = NDArray[np.float64]


class Truth:
    """True depth of one image."""

    def __init__(self, depth: Tensor) -> None:
        """Take metres of any shape, NaN where invalid."""
        flat = depth.flatten()
        self._depth = flat.nan_to_num(_FAR)
        # What a pixel counts for: 1, y and y^2, and 0 where it is invalid.
        self._one, self._y = (~flat.isnan()).float(), flat.nan_to_num(0.0)
        self._square = self._y.square()

    def score(self, depth: Tensor, max_depth: float) -> Tensor:
        """Sums over the valid pixels.

        Args:
            depth: (K, H, W) metres, predictions of any number, finite and positive.
            max_depth: larger predictions count as this.

        Returns:
            (K, 11) float64 in the order of SUMS.

        """
        p = depth.flatten(1)
        # On a CPU in pieces that stay in the cache, which is several times faster.
        size = p.shape[1] if p.is_cuda else max(1, min(p.shape[1], _ROW, _PIECE // len(p)))
        scratch = p.new_empty(3, len(p), size)
        total = torch.zeros(len(p), len(SUMS), dtype=torch.float64, device=p.device)
        for start in range(0, p.shape[1], size):
            part = slice(start, start + size)
            total += self._score(p[:, part], part, scratch, max_depth)
        return total

    def _score(self, depth: Tensor, part: slice, scratch: Tensor, max_depth: float) -> Tensor:
        """(K, 11) sums of a piece.

        Half of the time of the obvious form. All follow from the ratio r = p / y, in place: of
        |p - y| / y = |r - 1|, for one, the sums with weights y and y^2 are those of |p - y| and
        of (p - y)^2. The comparisons give floats, whose sums are exact.
        """
        y, one, metres, square = (
            values[part] for values in (self._depth, self._one, self._y, self._square))
        ratio, other, own = scratch[:, :, :depth.shape[1]]
        torch.clamp(depth, MIN_DEPTH, max_depth, out=ratio)
        torch.div(y, ratio, out=other)
        ratio.div_(y)
        torch.maximum(ratio, other, out=other)
        sums = {name: _sum(torch.lt(other, t, out=own))
                for name, t in zip(('d1', 'd2', 'd3'), _THRESHOLDS, strict=True)}
        log = torch.log(ratio, out=other)
        sums |= {'signed_log': _sum(log, one), 'square_log': _sum(torch.square(log, out=own), one),
                 'log': _sum(log.abs_(), one)}
        error = ratio.sub_(1)
        torch.square(error, out=own)
        sums |= {'sq_rel': _sum(own, metres), 'square': _sum(own, square)}
        error.abs_()
        sums |= {'rel': _sum(error, one), 'absolute': _sum(error, metres),
                 'pixels': one.sum(dtype=torch.float64).expand(len(depth))}
        return torch.stack([sums[name].double() for name in SUMS], dim=1)


def joint_histogram(
    truth: Tensor, depth: Tensor, max_depth: float, bins: int,
) -> NDArray[np.int64]:
    """Count the valid pixels by true depth and by predicted depth, in even bins up to a maximum.

    Args:
        truth: (H, W) metres, NaN where invalid.
        depth: (H, W) metres; larger than the maximum counts as that.
        max_depth: metres.
        bins: of either depth.

    Returns:
        (bins, bins), rows by true depth.

    """
    rows, columns = (torch.floor(d * (bins / max_depth)).clamp_(0, bins - 1)
                     for d in (truth, depth))
    # What is invalid falls into a row of its own: choosing the rest takes seven times as long.
    places = rows.nan_to_num_(nan=bins).mul_(bins).add_(columns).int().flatten()
    counts: NDArray[np.int64] = torch.bincount(places, minlength=(bins + 1) * bins)[
        :bins ** 2].reshape(bins, bins).cpu().numpy()
    return counts


def _sum(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """(K,) of (K, P) values, each times its (P,) weight."""
    if values.is_cuda:
        return (values if weights is None else values * weights).sum(1, dtype=torch.float64)
    # A piece of the image: float32 is enough.
    return values.sum(1) if weights is None else values @ weights


class SortedTruth:
    """True depth of one image in order: the score of any constant in a few look-ups.

    Attributes:
        depth: (n,) float32 metres, ascending.

    """

    def __init__(self, depth: NDArray[np.float32]) -> None:
        """Take valid depths in any order."""
        self.depth = np.sort(depth)
        y = self.depth.astype(np.float64)
        log = np.log(y)
        # Not np.dot: its threads would go on turning for 25 ms beside the network.
        self._squares, self._square_logs = np.square(y).sum(), np.square(log).sum()
        self._sums = {name: _sums_up_to(values)
                      for name, values in (('inverse', 1 / y), ('y', y), ('log', log))}

    def median(self) -> float:
        """Median; the mean of the middle two where there are two."""
        n = len(self.depth)
        return float(self.depth[[(n - 1) // 2, n // 2]].astype(np.float64).mean())

    def below(self, edges: NDArray[np.float64]) -> NDArray[np.int64]:
        """How many depths are below each edge."""
        return np.searchsorted(self.depth, edges.astype(np.float32))

    def score(self, constants: Sequence[float] | NDArray[np.float64]) -> Sums:
        """Sums of constant predictions.

        Args:
            constants: (C,) metres.

        Returns:
            (C, 11) in the order of SUMS.

        """
        n = len(self.depth)
        c32 = np.asarray(constants, np.float32)
        c = c32.astype(np.float64)
        log_c = np.log(c)
        k = np.searchsorted(self.depth, c32, side='right')
        left = {name: sums[k] for name, sums in self._sums.items()}
        total = {name: sums[n] for name, sums in self._sums.items()}
        right = {name: total[name] - left[name] for name in total}
        # Of the truths, k are not above the constant and n - k are.
        return np.stack([
            np.full_like(c, n), *self._deltas(c32),
            c * left['inverse'] - k + (n - k) - c * right['inverse'],
            k * log_c - left['log'] + right['log'] - (n - k) * log_c,
            n * log_c - total['log'],
            self._square_logs - 2 * log_c * total['log'] + n * np.square(log_c),
            c * k - left['y'] + right['y'] - c * (n - k),
            self._squares - 2 * c * total['y'] + n * np.square(c),
            total['y'] - 2 * c * n + np.square(c) * total['inverse']], axis=1)

    def score_random_pixels(self, max_depth: float) -> Sums:
        """Expected sums of a prediction drawn per pixel, uniformly from 0 to `max_depth`.

        Args:
            max_depth: M.

        Returns:
            (11,). With a = y / M: P(factor < T) = min(1, T a) - a / T;
            E|p - y| = M (a^2 + (1 - a)^2) / 2; E(p - y)^2 = M^2 / 12 + (M / 2 - y)^2;
            E|ln p - ln y| = 2 a - ln a - 1; ln p has mean ln M - 1 and E ln^2(p / M) = 2.

        """
        n, log_m = len(self.depth), math.log(max_depth)
        # All of it follows from a few moments of a.
        total, inverse, logs = (float(self._sums[name][n]) for name in ('y', 'inverse', 'log'))
        total, inverse = total / max_depth, inverse * max_depth
        squares = self._squares / max_depth ** 2
        square_logs = n * log_m ** 2 - 2 * log_m * logs + self._square_logs
        logs = n * log_m - logs  # of ln(M / y)
        within = []
        for t in _THRESHOLDS:
            k = int(np.searchsorted(self.depth, max_depth / t))  # so many have t a below 1
            within.append(t * self._sums['y'][k] / max_depth + (n - k) - total / t)
        return np.array([
            n, *within, total - n + inverse / 2, 2 * total + logs - n, logs - n,
            square_logs - 2 * logs + 2 * n, max_depth * (squares - total + n / 2),
            max_depth ** 2 * (n / 3 - total + squares), max_depth * (inverse / 3 - n + total)])

    def _deltas(self, c: NDArray[np.float32]) -> list[NDArray[np.int64]]:
        """Numbers of pixels within each factor: in order, they are a range.

        Its ends are found with the very divisions of the pixel-wise score.
        """
        return [self._within(c, threshold) for threshold in _THRESHOLDS]

    def _within(self, c: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
        y = self.depth
        first = _first(len(y), c, lambda i: c / y[i] < threshold)
        end = _first(len(y), c, lambda i: ~(y[i] / c < threshold))
        return np.subtract(end, first, dtype=np.int64)


class SortedRatio:
    """Prediction over truth of one image in order: the score of any multiple in a few look-ups."""

    def __init__(self, prediction: NDArray[np.float32], truth: NDArray[np.float32]) -> None:
        """Take (n,) metres of each, positive and finite, in any order."""
        p, y = prediction.astype(np.float64), truth.astype(np.float64)
        self._products = np.square(p).sum(), (p * y).sum(), np.square(y).sum()
        self._relative = (np.square(p) / y).sum(), p.sum(), y.sum()
        ratio = p / y
        order = np.argsort(ratio)
        self._ratio = ratio[order]
        log = np.log(self._ratio)
        self._sums = {name: _sums_up_to(values) for name, values in (
            ('ratio', self._ratio), ('log', log), ('p', p[order]), ('y', y[order]))}
        self._square_logs = np.square(log).sum()

    def score(self, scales: Sequence[float] | NDArray[np.float64]) -> Sums:
        """Sums of the prediction times each scale.

        Args:
            scales: (C,) positive.

        Returns:
            (C, 11) in the order of SUMS. Ratios are float64 here: what is within a few units of
            the last place of a threshold may be counted on its other side.

        """
        s = np.asarray(scales, np.float64)
        n, log_s = len(self._ratio), np.log(s)
        k = np.searchsorted(self._ratio, 1 / s, side='right')  # so many come out too small
        # Of the whole less twice what is too small: the sum of the absolute values.
        left = {name: sums[k] for name, sums in self._sums.items()}
        total = {name: sums[n] for name, sums in self._sums.items()}
        signed_log = n * log_s + total['log']
        square, product, rest = self._products
        square_y, p, y = self._relative
        return np.stack([
            np.full_like(s, n),
            *(np.searchsorted(self._ratio, t / s) - np.searchsorted(
                self._ratio, 1 / (t * s), side='right') for t in _THRESHOLDS),
            s * total['ratio'] - n - 2 * (s * left['ratio'] - k),
            signed_log - 2 * (k * log_s + left['log']), signed_log,
            self._square_logs + 2 * log_s * total['log'] + n * np.square(log_s),
            s * total['p'] - total['y'] - 2 * (s * left['p'] - left['y']),
            np.square(s) * square - 2 * s * product + rest,
            np.square(s) * square_y - 2 * s * p + y], axis=1)


def _first(
    size: int, like: NDArray[np.float32], holds: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
) -> NDArray[np.int64]:
    """Per constant, the first index for which a monotone condition holds; `size` for none."""
    low = np.zeros(len(like), np.int64)
    high = np.full_like(low, size)
    for _ in range(size.bit_length()):
        middle = (low + high) // 2
        found = (middle >= high) | holds(np.minimum(middle, size - 1))
        high = np.where(found, middle, high)
        low = np.where(found, low, middle + 1)
    return high


def _sums_up_to(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n + 1,) sums of the first 0 to n values."""
    sums = np.zeros(len(values) + 1)
    np.cumsum(values, out=sums[1:])
    return sums


def metrics_of(sums: Sums) -> Sums:
    """(..., 11) sums to (..., 10) metrics in the order of METRICS.

    rmse = sqrt(mean (p - y)^2); log10 = mean |log10 p - log10 y|; silog = 100 sqrt(var(ln p -
    ln y)), as KITTI's benchmark has it.
    """
    s = dict(zip(SUMS, np.moveaxis(sums / sums[..., :1], -1, 0), strict=True))
    variance = np.maximum(s['square_log'] - s['signed_log'] ** 2, 0)
    values = {
        'd1': s['d1'], 'd2': s['d2'], 'd3': s['d3'], 'rel': s['rel'],
        'log10': s['log'] / math.log(10), 'rmse': np.sqrt(s['square']),
        'abs_diff': s['absolute'], 'sq_rel': s['sq_rel'], 'rmse_log': np.sqrt(s['square_log']),
        'silog': 100 * np.sqrt(variance)}
    return np.stack([values[name] for name in METRICS], axis=-1)


def average(sums: Sums, how: str) -> Sums:
    """(N, ..., 11) sums of N images to (..., 10) metrics.

    Args:
        sums: of every image.
        how: 'image': mean over images of each one's metrics (the paper's); 'pixel': metrics over
            all pixels together.

    """
    if how == 'image':
        mean: Sums = metrics_of(sums).mean(axis=0)
        return mean
    return metrics_of(sums.sum(axis=0))


def resampled(sums: Sums, counts: NDArray[np.float64], how: str) -> Sums:
    """`average` of bootstrap samples.

    Args:
        sums: (N, ..., 11).
        counts: (S, N), how often each image is drawn.
        how: as in `average`.

    Returns:
        (S, ..., 10).

    """
    values = metrics_of(sums) if how == 'image' else sums
    totals = np.tensordot(counts, values, 1)
    return totals / counts.sum(1).reshape(-1, *[1] * (totals.ndim - 1)) if how == 'image' \
        else metrics_of(totals)


def best_of(curve: Sums) -> list[int]:
    """For every metric, the row of (C, 10) in which it is best."""
    return [int(curve[:, i].argmax() if m in HIGHER_IS_BETTER else curve[:, i].argmin())
            for i, m in enumerate(METRICS)]


def named(values: Sums) -> dict[str, float]:
    """(10,) by the metrics' names."""
    return dict(zip(METRICS, (float(v) for v in values), strict=True))
