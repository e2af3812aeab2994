# SPDX-License-Identifier: Apache-2.0
"""From similarity to depth: the paper's section 3.3 as pure functions of tensors."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import interpolate

# CLIP's own logit scale, exp(logit_scale) of every released model; the official code has it as a
# literal before the temperature.
LOGIT_SCALE = 100.0


def float32(values: ArrayLike) -> Tensor:
    """Convert numbers to a float32 tensor on the CPU, whatever the process's defaults."""
    return torch.from_numpy(np.array(values, np.float32))


def similarity_logits(
    image_features: Tensor, text_features: Tensor, temperature: float | Tensor,
) -> Tensor:
    """Compute the logits: the similarity of every patch with every token (eq. 3), scaled.

    (B, C, h, w) unit vectors, or for `reference` every n-th channel of such, and (K, C) unit
    vectors -> (B, K, h, w), 100 / temperature x similarity.
    """
    similarity = torch.einsum('bchw,kc->bkhw', LOGIT_SCALE * image_features, text_features)
    return similarity / temperature


def read_out(logits: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute softmax weights and the expected depth over the bins (eqs. 4 and 5).

    Args:
        logits: (B, K, h, w).
        bins: (K,) metres, or (B, K) for each image's own.

    Returns:
        Weights (B, K, h, w), which sum to 1 over K; depth (B, h, w) in metres; and spread
        (B, h, w) in metres, the standard deviation of the bins under the weights: a relative
        score, which cannot exceed half the range of the bins, whatever the true error.

    """
    weights = logits.softmax(dim=1)
    depth = torch.einsum(
        'bkhw,k->bhw' if bins.dim() == 1 else 'bkhw,bk->bhw', weights, bins)
    offsets = bins.view(-1, weights.shape[1], 1, 1) - depth[:, None]
    spread = (weights * offsets.square()).sum(dim=1).sqrt()
    return weights, depth, spread


def mean_of_passes(depth: Tensor, count: int) -> Tensor:
    """Average (B, h, w) depth over both passes, if mirrored images follow: (count, h, w)."""
    if len(depth) == count:
        return depth
    return 0.5 * (depth[:count] + depth[count:].flip(2))


def limit_range(patch_depth: Tensor, low: float, high: float, out_of_range: str) -> Tensor:
    """Replace depth beyond the limits, as REP-117 says; NaN stays.

    Args:
        patch_depth: metres, of any shape.
        low: smallest depth [m]; 0: no limit.
        high: largest depth [m]; 0: no limit.
        out_of_range: 'clamp', 'nan', or 'inf': -Inf if too near, +Inf if too far.

    """
    if not (low or high):
        return patch_depth
    high = high or math.inf
    if out_of_range == 'clamp':
        return patch_depth.clamp(low, high)
    near, far = (-math.inf, math.inf) if out_of_range == 'inf' else (math.nan, math.nan)
    limited = patch_depth.masked_fill(patch_depth < low, near)
    return limited.masked_fill_(patch_depth > high, far)


def upsample(patch_depth: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Interpolate from patches to pixels.

    A pixel whose nearest patch is NaN or infinite gets that value; elsewhere such patches have no
    weight.

    Args:
        patch_depth: (B, h, w) metres.
        size: (height, width) of the result.
        mode: 'centered': bilinear between the centres of the patches: pixel u is at
            (u + 0.5) w / width - 0.5 among the patches; constant beyond the outermost centres;
            'bilinear': bilinear with aligned corners, as the official code, which puts the
            outermost patches' depth at the border, and that of others up to nearly half a patch
            off their centres; 'patch': nearest patch, as the paper says below eq. 5.

    Returns:
        (B, height, width) metres.

    """
    def linear(patches: Tensor) -> Tensor:
        return interpolate(
            patches[:, None], size, mode='bilinear', align_corners=mode == 'bilinear')[:, 0]

    nearest = interpolate(patch_depth[:, None], size, mode='nearest-exact')[:, 0]
    if mode == 'patch':
        return nearest
    finite = patch_depth.isfinite()
    if finite.all():
        return linear(patch_depth)
    if mode == 'bilinear':
        rows, columns = (
            torch.linspace(0, patches - 1, pixels, device=patch_depth.device).round().long()
            for patches, pixels in zip(patch_depth.shape[1:], size, strict=True))
        nearest = patch_depth[:, rows][:, :, columns]
    mean = linear(patch_depth.where(finite, 0.0)) / linear(finite.float())
    return mean.where(nearest.isfinite(), nearest)


def upsampling_weights(patches: int, pixels: int, mode: str) -> Tensor:
    """Compute the weights of `upsample` along one axis: (pixels, patches)."""
    columns = torch.eye(patches, dtype=torch.float32)[:, None, :]
    return upsample(columns, (1, pixels), mode)[:, 0].T
