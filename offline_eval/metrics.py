# SPDX-License-Identifier: Apache-2.0
"""Metrics of depth, kept as sums per image.

Everything is a function of a few sums over the valid pixels, so that one record of an image
serves both averages (per image, over all pixels), any selection of images, and the bootstrap.
Ratios and differences are float32 as in the official code, the sums float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .results import METRICS

# The sums of one image, in this order. Let y be the truth and p the prediction.
SUMS = ('pixels', 'd1', 'd2', 'd3',  # numbers of pixels
        'rel',  # of |p - y| / y
        'log', 'signed_log', 'square_log',  # of |l|, l and l^2, where l = ln p - ln y
        'absolute', 'square', 'sq_rel')  # of |p - y|, (p - y)^2, (p - y)^2 / y
MIN_DEPTH = 1e-3  # metres; what is below does not count as measured
_PIECE = 1 << 15  # pixels
_THRESHOLDS = (1.25, 1.25 ** 2, 1.25 ** 3)

Sums = NDArray[np.float64]


class Truth:
    """True depth of a batch of images.

    Attributes:
        depth: (B, P) float32 metres, 1 where invalid.
        valid: (B, P) bool.
        pixels: (B,) float64, number of valid ones.

    """

    def __init__(self, depth: Tensor) -> None:
        """Take (B, H, W) metres, NaN where invalid."""
        flat = depth.flatten(1)
        self.valid = ~flat.isnan()
        self.depth = torch.where(self.valid, flat, torch.ones_like(flat))
        self.pixels = self.valid.sum(1).double()
        self._log = self.depth.log()

    def score(self, depth: Tensor, max_depth: float) -> Tensor:
        """Sums over the valid pixels.

        Args:
            depth: (B, H, W) metres, predicted, finite and positive.
            max_depth: larger predictions count as this.

        Returns:
            (B, 11) float64 in the order of SUMS.

        """
        p = depth.flatten(1)
        if p.is_cuda:
            return _score(p, self.depth, self._log, self.valid, max_depth)
        # On a CPU in pieces that stay in the cache, which is several times faster.
        return torch.stack([
            sum((_score(p[i:i + 1, s], self.depth[i:i + 1, s], self._log[i:i + 1, s],
                        self.valid[i:i + 1, s], max_depth)[0]
                 for s in _pieces(p.shape[1])), torch.zeros(len(SUMS), dtype=torch.float64))
            for i in range(len(p))])


def _pieces(size: int) -> list[slice]:
    return [slice(start, start + _PIECE) for start in range(0, size, _PIECE)]


def _score(p: Tensor, y: Tensor, log_y: Tensor, valid: Tensor, max_depth: float) -> Tensor:
    """(B, 11) sums; an invalid pixel predicts its (made-up) truth, and adds to the counts only."""
    p = torch.where(valid, p.clamp(MIN_DEPTH, max_depth), y)
    pixels = valid.sum(1).double()
    invalid = p.shape[1] - pixels
    ratio = torch.maximum(p / y, y / p)
    deltas = [(ratio < t).sum(1).double() - invalid for t in _THRESHOLDS]
    difference = p - y
    absolute, square = difference.abs(), difference.square()
    log = p.log() - log_y
    return torch.stack([
        pixels, *deltas, _sum(absolute / y), _sum(log.abs()), _sum(log), _sum(log.square()),
        _sum(absolute), _sum(square), _sum(square / y)], dim=1)


def _sum(values: Tensor) -> Tensor:
    return values.sum(1, dtype=torch.float64)


class SortedTruth:
    """True depth of one image in order: the score of any constant in a few look-ups.

    Attributes:
        depth: (n,) float32 metres, ascending.

    """

    def __init__(self, depth: NDArray[np.float32] | Tensor) -> None:
        """Take valid depths in any order."""
        tensor = torch.as_tensor(depth)
        # NumPy's sort of float32 is several times faster than torch's on a CPU.
        self.depth = (tensor.sort().values if tensor.is_cuda
                      else torch.from_numpy(np.sort(tensor.numpy())))
        y = self.depth.double()
        zero = y.new_zeros(1)
        log = y.log()
        self._sums = {name: torch.cat([zero, values.cumsum(0)])
                      for name, values in (('y', y), ('inverse', 1 / y), ('log', log))}
        self._squares = y.square().sum()
        self._square_logs = log.square().sum()

    def median(self) -> float:
        """Median; the mean of the middle two where there are two."""
        n = len(self.depth)
        middle = self.depth[[(n - 1) // 2, n // 2]]
        return float(middle.double().mean())

    def score(self, constants: Sequence[float] | NDArray[np.float64]) -> Tensor:
        """Sums of constant predictions.

        Args:
            constants: (C,) metres.

        Returns:
            (C, 11) float64 in the order of SUMS.

        """
        y, n = self.depth, len(self.depth)
        c32 = torch.as_tensor(np.asarray(constants, np.float32), device=y.device)
        c = c32.double()
        log_c = c.log()
        # Sorted, "factor below the threshold" is a range; its ends are found with the very
        # divisions of the pixel-wise score.
        deltas = []
        for t in _THRESHOLDS:
            below = _first(n, c32, partial(_near_below, y, c32, t))
            above = _first(n, c32, partial(_far_above, y, c32, t))
            deltas.append((above - below).double())
        k = torch.searchsorted(y, c32, right=True)
        left = {name: sums[k] for name, sums in self._sums.items()}
        right = {name: sums[n] - left[name] for name, sums in self._sums.items()}
        total = {name: sums[n] for name, sums in self._sums.items()}
        kd, nd = k.double(), float(n)
        rel = c * left['inverse'] - kd + (nd - kd) - c * right['inverse']
        log = kd * log_c - left['log'] + right['log'] - (nd - kd) * log_c
        signed_log = nd * log_c - total['log']
        square_log = self._square_logs - 2 * log_c * total['log'] + nd * log_c.square()
        absolute = c * kd - left['y'] + right['y'] - c * (nd - kd)
        square = self._squares - 2 * c * total['y'] + nd * c.square()
        sq_rel = total['y'] - 2 * c * nd + c.square() * total['inverse']
        pixels = torch.full_like(c, nd)
        return torch.stack([pixels, *deltas, rel, log, signed_log, square_log, absolute, square,
                            sq_rel], dim=1)


def _near_below(y: Tensor, c: Tensor, threshold: float, i: Tensor) -> Tensor:
    return c / y[i] < threshold


def _far_above(y: Tensor, c: Tensor, threshold: float, i: Tensor) -> Tensor:
    return ~(y[i] / c < threshold)


def _first(size: int, like: Tensor, holds: Callable[[Tensor], Tensor]) -> Tensor:
    """Per constant, the first index for which a monotone condition holds; `size` for none."""
    low = torch.zeros_like(like, dtype=torch.long)
    high = torch.full_like(low, size)
    for _ in range(size.bit_length()):
        middle = (low + high) // 2
        inside = middle < size
        found = holds(middle.clamp(max=size - 1)) | ~inside
        high = torch.where(found, middle, high)
        low = torch.where(found, low, middle + 1)
        low = torch.minimum(low, high)
    return high


def random_pixel_sums(truth: Tensor, max_depth: float) -> Tensor:
    """Expected sums of a prediction drawn per pixel, uniformly from 0 to `max_depth`.

    Args:
        truth: (n,) float32, valid metres.
        max_depth: M.

    Returns:
        (11,) float64. With a = y / M: P(factor < T) = min(1, T a) - a / T;
        E|p - y| = M (a^2 + (1 - a)^2) / 2; E(p - y)^2 = M^2 / 12 + (M / 2 - y)^2;
        E|ln p - ln y| = 2 a - ln a - 1; ln p has mean ln M - 1 and E ln^2(p / M) = 2.

    """
    y = truth.double()
    a = y / max_depth
    inverse_log = -a.log()  # ln(M / y)
    absolute = max_depth * (a.square() + (1 - a).square()) / 2
    square = max_depth ** 2 / 12 + (max_depth / 2 - y).square()
    values = [
        torch.ones_like(y), *((t * a).clamp(max=1) - a / t for t in _THRESHOLDS),
        absolute / y, 2 * a + inverse_log - 1, inverse_log - 1,
        inverse_log.square() - 2 * inverse_log + 2, absolute, square, square / y]
    return torch.stack([v.sum() for v in values])


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
