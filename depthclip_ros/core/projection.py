# SPDX-License-Identifier: Apache-2.0
"""From similarity to depth: the paper's section 3.3 as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# CLIP's own logit scale, exp(logit_scale) of every released model; the official code has it as a
# literal before the temperature.
LOGIT_SCALE = 100.0


def similarity_logits(
    image_features: Tensor, text_features: Tensor, temperature: float | Tensor,
) -> Tensor:
    """Similarity of every patch with every token, scaled (eq. 3).

    Args:
        image_features: (B, C, h, w). Unit vectors, or half of one in the reference's mode.
        text_features: (K, C) unit vectors.
        temperature: of the softmax that follows.

    Returns:
        (B, K, h, w) logits, 100 / temperature x similarity.

    """
    similarity = torch.einsum('bchw,kc->bkhw', LOGIT_SCALE * image_features, text_features)
    return similarity / temperature


def bin_weights(logits: Tensor) -> Tensor:
    """Softmax over the tokens (eq. 4): (B, K, h, w), each patch sums to 1."""
    return logits.softmax(dim=1)


def combine_bins(weights: Tensor, bins: Tensor) -> Tensor:
    """Depth of every patch as the weighted mean of the bins (eq. 5): (B, h, w) metres."""
    return torch.einsum('bkhw,k->bhw', weights, bins)


def bin_spread(weights: Tensor, bins: Tensor) -> Tensor:
    """Standard deviation of the bins under the weights: (B, h, w) metres.

    Relative only: it cannot exceed half the range of the bins, whatever the true error.
    """
    mean = combine_bins(weights, bins)
    offsets = bins[None, :, None, None] - mean[:, None]
    return (weights * offsets.square()).sum(dim=1).sqrt()


def upsample(patch_depth: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """From patches to pixels.

    Args:
        patch_depth: (B, h, w) metres.
        size: (height, width) wanted.
        mode: 'bilinear' with aligned corners, as the official code; 'patch': every pixel has the
            depth of the patch it lies in, as the paper says below eq. 5.

    Returns:
        (B, height, width) metres.

    """
    if mode == 'bilinear':
        return interpolate(patch_depth[:, None], size, mode='bilinear', align_corners=True)[:, 0]
    return interpolate(patch_depth[:, None], size, mode='nearest-exact')[:, 0]
