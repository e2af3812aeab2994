# SPDX-License-Identifier: Apache-2.0
"""Metrics of depth from sums per image, with their names, symbols and number format.

Every metric is a function of 11 sums over the valid pixels of an image. One record per image thus
serves both averages (per image, over all pixels), any selection of images, and the bootstrap.
Ratios and differences are float32 as in the official code; float64 adds up partial sums of at
most 8192 of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The sums of one image, in this order. Let y be the truth and p the prediction.
SUMS = ('pixels', 'd1', 'd2', 'd3',  # numbers of pixels
        'rel',  # of |p - y| / y
        'log', 'signed_log', 'square_log',  # of |l|, l and l^2, where l = ln p - ln y
        'absolute', 'square', 'sq_rel')  # of |p - y|, (p - y)^2, (p - y)^2 / y
# In the paper's order; the last four are not in the paper.
METRICS = ('d1', 'd2', 'd3', 'rel', 'log10', 'rmse', 'abs_diff', 'sq_rel', 'rmse_log', 'silog')
PAPER_METRICS = METRICS[:6]
HIGHER_IS_BETTER = frozenset({'d1', 'd2', 'd3'})  # lower is better for all others
UNITS = {'rmse': 'm', 'abs_diff': 'm', 'sq_rel': 'm', 'silog': '%'}
SYMBOLS = {**{m: m for m in METRICS}, 'd1': 'δ1', 'd2': 'δ2', 'd3': 'δ3', 'silog': 'SILog'}
MEANINGS = {
    'd1': 'share of pixels with max(p/t, t/p) < 1.25',
    'd2': 'the same with 1.25²',
    'd3': 'the same with 1.25³',
    'rel': 'mean of |p − t| / t',
    'log10': 'mean of |log10 p − log10 t|',
    'rmse': 'root of the mean of (p − t)²',
    'abs_diff': 'mean of |p − t|',
    'sq_rel': 'mean of (p − t)² / t',
    'rmse_log': 'root of the mean of (ln p − ln t)²',
    'silog': '100 × standard deviation of ln p − ln t',
}
SIGNS = np.array([1.0 if m in HIGHER_IS_BETTER else -1.0 for m in METRICS])
MIN_DEPTH = 1e-3  # metres; smaller true depth is invalid
_THRESHOLDS = (1.25, 1.25 ** 2, 1.25 ** 3)
_MAX_SUMMANDS = 1 << 13  # of a float32 sum: more err by 1e-6
_CHUNK_METRICS = 1 << 22  # numbers of all bootstrap samples in memory at once
_CHUNK_PIXELS = 1 << 17  # of all maps at once; they stay in the cache: several times faster

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Sums = NDArray[np.float64]


def score(truth: Tensor, depth: Tensor, max_depth: float) -> Tensor:
    """Score K predictions of one image: (K, 11) float64 sums over the valid pixels, as SUMS.

    Args:
        truth: true depth in metres, of any shape, NaN where invalid.
        depth: (K, ...) predicted depth in metres, finite and positive.
        max_depth: predictions are clipped to this.

    """
    valid = torch.nonzero(~truth.flatten().isnan())[:, 0]
    truth, depth = truth.flatten()[valid], depth.flatten(1)
    count, pixels = len(depth), len(valid)
    total = torch.zeros(count, len(SUMS), dtype=torch.float64, device=depth.device)
    total[:, 0] = pixels
    size = max(1, min(_MAX_SUMMANDS, _CHUNK_PIXELS // max(count, 1)))
    for start in range(0, pixels, size):
        y = truth[start:start + size]
        p = depth.index_select(1, valid[start:start + size]).clamp_(MIN_DEPTH, max_depth)
        ratio = p / y
        factor = torch.maximum(ratio, torch.div(y, p, out=p))
        within = [(factor < threshold).sum(1) for threshold in _THRESHOLDS]
        log = torch.log(ratio, out=factor)
        error = ratio.sub_(1).abs_()  # |p - y| / y; times y and y²: the other errors
        square = error.square()
        total[:, 1:] += torch.stack([values.double() for values in (
            *within, error.sum(1), log.abs().sum(1), log.sum(1), log.square().sum(1),
            error @ y, square @ y.square(), square @ y)], 1)
    return total


def sums_of(depth: Float32, truth: Float32, max_depth: float) -> Sums:
    """Score one prediction, as `score` does: (11,) sums of two arrays of one shape in metres."""
    maps = torch.from_numpy(np.ascontiguousarray(depth))[None]
    sums: Sums = score(torch.from_numpy(truth), maps, max_depth)[0].numpy()
    return sums


def joint_histogram(
    truth: Tensor, depth: Tensor, max_depth: float, bins: int,
) -> NDArray[np.int64]:
    """Count valid pixels: (bins, bins), rows by true depth, columns by predicted depth.

    Both maps are (H, W) metres, the true one NaN where invalid. The last bin includes depth beyond
    the maximum.
    """
    valid = ~truth.isnan()
    rows, columns = (
        torch.floor(values[valid] * (bins / max_depth)).clamp_(0, bins - 1).long()
        for values in (truth, depth))
    counts: NDArray[np.int64] = torch.bincount(
        rows * bins + columns, minlength=bins ** 2).reshape(bins, bins).cpu().numpy()
    return counts


class ScaledScores:
    """Scores of one prediction times any scale, by a few look-ups in the sorted ratios p / y.

    The scores equal those of `score`. A prediction of 1 everywhere gives the scores of constants.
    """

    def __init__(self, prediction: Float32 | float, truth: Float32) -> None:
        """Sort (n,) metres of both, positive and finite; a number is predicted everywhere."""
        y = truth.astype(np.float64)
        if isinstance(prediction, (int, float)):
            y = np.sort(y)[::-1]  # descending truth gives ascending ratios
        p = np.broadcast_to(np.asarray(prediction, np.float64), y.shape)
        order = np.argsort(p / y, kind='stable')
        p, y = p[order], y[order]
        self.ratio = p / y
        log = np.log(self.ratio)
        self._sums = {name: np.concatenate([[0.0], np.cumsum(values)]) for name, values in (
            ('ratio', self.ratio), ('log', log), ('p', p), ('y', y))}
        self._moments = {'pp': np.square(p).sum(), 'py': (p * y).sum(), 'yy': np.square(y).sum(),
                         'pp/y': (np.square(p) / y).sum(), 'll': np.square(log).sum()}

    def score(self, scales: Sequence[float] | Float64) -> Sums:
        """Score the prediction times each of (C,) positive scales: (C, 11) sums."""
        s = np.asarray(scales, np.float32).astype(np.float64)
        n, log_s, moments = len(self.ratio), np.log(s), self._moments
        k = np.searchsorted(self.ratio, 1 / s, side='right')  # number of ratios below 1, scaled
        # Sum of absolute values: the total less twice the sum of the negative part.
        low = {name: sums[k] for name, sums in self._sums.items()}
        total = {name: sums[n] for name, sums in self._sums.items()}
        signed_log = n * log_s + total['log']
        # A float32 ratio is below a threshold if it is so in float64 by half a last place.
        edges = [threshold - 2.0 ** -24 for threshold in _THRESHOLDS]
        return np.stack([
            np.full_like(s, n),
            *(np.searchsorted(self.ratio, edge / s) - np.searchsorted(
                self.ratio, 1 / (edge * s), side='right') for edge in edges),
            s * total['ratio'] - n - 2 * (s * low['ratio'] - k),
            signed_log - 2 * (k * log_s + low['log']), signed_log,
            moments['ll'] + 2 * log_s * total['log'] + n * np.square(log_s),
            s * total['p'] - total['y'] - 2 * (s * low['p'] - low['y']),
            np.square(s) * moments['pp'] - 2 * s * moments['py'] + moments['yy'],
            np.square(s) * moments['pp/y'] - 2 * s * total['p'] + total['y']], axis=1)


def random_pixels(truth: Float32, max_depth: float) -> Sums:
    """Compute expected (11,) sums of uniform random depth from 0 to `max_depth` per pixel.

    Args:
        truth: (n,) true metres y.
        max_depth: M in metres. With a = y / M: P(factor < T) = min(1, T a) - a / T; E|p - y| =
            M (a^2 + (1 - a)^2) / 2; E(p - y)^2 = M^2 / 12 + (M / 2 - y)^2; E|ln p - ln y| =
            2 a - ln a - 1; ln p has mean ln M - 1 and E ln^2(p / M) = 2.

    """
    a = truth.astype(np.float64) / max_depth
    log, half = -np.log(a), (np.square(a) + np.square(1 - a)) / 2
    square = 1 / 12 + np.square(0.5 - a)
    return np.array([len(a), *((np.minimum(1, t * a) - a / t).sum() for t in _THRESHOLDS),
                     (half / a).sum(), (2 * a + log - 1).sum(), (log - 1).sum(),
                     (np.square(log) - 2 * log + 2).sum(), max_depth * half.sum(),
                     max_depth ** 2 * square.sum(), max_depth * (square / a).sum()])


# From sums to metrics ----------------------------------------------------------------------------


def metrics_of(sums: Sums) -> Sums:
    """Convert (..., 11) sums to (..., 10) metrics in the order of METRICS.

    rmse = sqrt(mean (p - y)^2); log10 = mean |log10 p - log10 y|; silog = 100 sqrt(var(ln p -
    ln y)), as KITTI's benchmark has it.
    """
    s = dict(zip(SUMS, np.moveaxis(sums / sums[..., :1], -1, 0), strict=True))
    variance = np.maximum(s['square_log'] - s['signed_log'] ** 2, 0)
    return np.stack([
        s['d1'], s['d2'], s['d3'], s['rel'], s['log'] / math.log(10), np.sqrt(s['square']),
        s['absolute'], s['sq_rel'], np.sqrt(s['square_log']), 100 * np.sqrt(variance)], axis=-1)


def average(sums: Sums, averaging: str) -> Sums:
    """Average (N, ..., 11) sums of N images to (..., 10) metrics.

    `averaging` is 'image', the mean of the images' metrics (the paper's), or 'pixel', the metrics
    of all pixels together.
    """
    if averaging == 'image':
        mean: Sums = metrics_of(sums).mean(axis=0)
        return mean
    return metrics_of(sums.sum(axis=0))


def resampled(
    sums: Sums, groups: NDArray[np.intp], counts: NDArray[Any], averaging: str,
    transform: Callable[[Sums], Sums] = lambda metrics: metrics,
) -> Sums:
    """Average bootstrap samples of (N, ..., 11) sums: (S, ..., 10) metrics.

    Args:
        sums: of every image.
        groups: (N,) group of every image.
        counts: (S, G) count of each group in each sample.
        averaging: as in `average`.
        transform: applied to the metrics of each chunk of samples, to save memory.

    """
    values = sums if averaging == 'pixel' else metrics_of(sums)
    group_sums = np.zeros((counts.shape[1], *values.shape[1:]))
    np.add.at(group_sums, groups, values)
    sizes = np.bincount(groups).reshape(-1, *[1] * (values.ndim - 1)).astype(np.float64)

    def metrics(chunk: NDArray[Any]) -> Sums:
        total: Sums = np.tensordot(chunk, group_sums, 1)
        return metrics_of(total) if averaging == 'pixel' else total / np.tensordot(chunk, sizes, 1)
    chunks = 1 + len(counts) * group_sums[0].size // _CHUNK_METRICS
    return np.concatenate([transform(metrics(chunk.astype(np.float64)))
                           for chunk in np.array_split(counts, chunks)])


def best_rows(curve: Sums) -> list[int]:
    """Find the row of (C, 10) metrics in which each metric is best."""
    return [int(row) for row in np.argmax(curve * SIGNS, axis=0)]


def by_name(values: Sums) -> dict[str, float]:
    """Key (10,) values by the metrics' names."""
    return dict(zip(METRICS, (float(v) for v in values), strict=True))


# Number format -----------------------------------------------------------------------------------


def heading(metric: str) -> str:
    """Format symbol, unit, and an arrow to the better side."""
    arrow = '↑' if metric in HIGHER_IS_BETTER else '↓'
    suffix = f' ({UNITS[metric]})' if metric in UNITS else ''
    return f'{SYMBOLS[metric]}{suffix} {arrow}'


def unit(metric: str) -> str:
    """Return the unit with a space before it; '' for a ratio."""
    return f' {UNITS[metric]}' if metric in UNITS else ''


def number(value: float | None, *, signed: bool = False) -> str:
    """Format three digits, as in the paper; – for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return '–'
    text = f'{value:+.3f}' if signed else f'{value:.3f}'
    # A rounded zero has no direction.
    return ('±' if signed else '') + '0.000' if float(text) == 0 else text.replace('-', '−')
