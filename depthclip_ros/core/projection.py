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
    """Numbers as a tensor on the CPU, whatever dtype and device the process has by default."""
    return torch.from_numpy(np.array(values, np.float32))


def similarity_logits(
    image_features: Tensor, text_features: Tensor, temperature: float | Tensor,
) -> Tensor:
    """Similarity of every patch with every token, scaled (eq. 3).

    (B, C, h, w) image features, unit vectors or half of one in the reference's mode, and (K, C)
    unit vectors -> (B, K, h, w) logits, 100 / temperature x similarity.
    """
    similarity = torch.einsum('bchw,kc->bkhw', LOGIT_SCALE * image_features, text_features)
    return similarity / temperature


def read_out(logits: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the words say (eqs. 4 and 5).

    Args:
        logits: (B, K, h, w).
        bins: (K,) metres, or (B, K) for each image's own.

    Returns:
        Weights (B, K, h, w), which sum to 1 in each patch; depth; and the standard deviation of
        the bins under the weights, (B, h, w) metres. That is a relative score: it cannot exceed
        half the range of the bins, whatever the true error.

    """
    weights = logits.softmax(dim=1)
    depth = torch.einsum(
        'bkhw,k->bhw' if bins.dim() == 1 else 'bkhw,bk->bhw', weights, bins)
    offsets = bins.view(-1, weights.shape[1], 1, 1) - depth[:, None]
    spread = (weights * offsets.square()).sum(dim=1).sqrt()
    return weights, depth, spread


def mean_of_passes(depth: Tensor, images: int) -> Tensor:
    """(B, h, w) depth of so many images, of which mirrored ones may follow: their mean."""
    if len(depth) == images:
        return depth
    return 0.5 * (depth[:images] + depth[images:].flip(2))


def limit_range(patch_depth: Tensor, low: float, high: float, out_of_range: str) -> Tensor:
    """Depth beyond what may be relied on, replaced as REP-117 says; NaN stays.

    Args:
        patch_depth: metres, of any shape.
        low: least depth [m]; 0: no limit.
        high: greatest depth [m]; 0: no limit.
        out_of_range: 'clamp', 'nan', or 'inf': -Inf where it is too near, +Inf where too far.

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
    """From patches to pixels.

    A pixel whose nearest patch has no depth, or an infinite one, has that patch's NaN or
    infinity; in all others such patches take no part.

    Args:
        patch_depth: (B, h, w) metres.
        size: (height, width) wanted.
        mode: 'centered': the depth of a patch stands at its centre, where it was seen, and is
            linear in between: pixel u has that of place (u + 0.5) w / width - 0.5 among the
            patches, and beyond the outermost centres their depth; 'bilinear': linear with
            aligned corners, as the official code, so that the outermost patches' depth stands at
            the border, and all others' up to nearly half a patch off their centres; 'patch':
            every pixel has the depth of the patch it lies in, as the paper says below eq. 5.

    Returns:
        (B, height, width) metres.

    """
    def linear(patches: Tensor) -> Tensor:
        return interpolate(
            patches[:, None], size, mode='bilinear', align_corners=mode == 'bilinear')[:, 0]

    nearest = interpolate(patch_depth[:, None], size, mode='nearest-exact')[:, 0]
    if mode == 'patch':
        return nearest
    known = patch_depth.isfinite()
    if known.all():
        return linear(patch_depth)
    if mode == 'bilinear':
        rows, columns = (
            torch.linspace(0, patches - 1, pixels, device=patch_depth.device).round().long()
            for patches, pixels in zip(patch_depth.shape[1:], size, strict=True))
        nearest = patch_depth[:, rows][:, :, columns]
    mean = linear(patch_depth.where(known, 0.0)) / linear(known.float())
    return mean.where(nearest.isfinite(), nearest)


def shares(patches: int, pixels: int, mode: str) -> Tensor:
    """Along one axis: (pixels, patches), every patch's share in every pixel of `upsample`."""
    columns = torch.eye(patches, dtype=torch.float32)[:, None, :]
    return upsample(columns, (1, pixels), mode)[:, 0].T
