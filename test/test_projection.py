# SPDX-License-Identifier: Apache-2.0
"""Section 3.3 of the paper against first principles."""

from __future__ import annotations

import math

import pytest
import torch

from depthclip_ros.core.projection import (
    bin_spread,
    bin_weights,
    combine_bins,
    similarity_logits,
    upsample,
)


def test_logits_are_scaled_dot_products():
    image = torch.zeros(1, 3, 1, 2)
    image[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    image[0, :, 0, 1] = torch.tensor([0.0, 0.6, 0.8])
    text = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    logits = similarity_logits(image, text, temperature=0.1)
    torch.testing.assert_close(logits[0, :, 0], torch.tensor([[1000.0, 0.0], [0.0, 800.0]]))


def test_weights_and_depth_by_hand():
    logits = torch.tensor([0.0, math.log(3.0)])[None, :, None, None]
    weights = bin_weights(logits)
    torch.testing.assert_close(weights.flatten(), torch.tensor([0.25, 0.75]))
    bins = torch.tensor([1.0, 3.0])
    assert combine_bins(weights, bins).item() == pytest.approx(2.5)
    assert bin_spread(weights, bins).item() == pytest.approx(math.sqrt(0.25 * 0.75) * 2)


def test_temperature_limits():
    image = torch.randn(1, 8, 2, 3)
    text = torch.randn(4, 8)
    bins = torch.tensor([1.0, 2.0, 3.0, 5.0])
    cold = combine_bins(bin_weights(similarity_logits(image, text, 1e-6)), bins)
    nearest = bins[torch.einsum('bchw,kc->bkhw', image, text).argmax(1)]
    torch.testing.assert_close(cold, nearest)
    hot = combine_bins(bin_weights(similarity_logits(image, text, 1e9)), bins)
    torch.testing.assert_close(hot, torch.full_like(hot, bins.mean().item()))


def test_bilinear_is_linear_between_corner_patches():
    depth = torch.tensor([[[1.0, 3.0], [2.0, 4.0]]])
    full = upsample(depth, (5, 9), 'bilinear')
    rows, columns = torch.linspace(0, 1, 5)[:, None], torch.linspace(0, 1, 9)[None]
    torch.testing.assert_close(full[0], 1 + rows + 2 * columns)


@pytest.mark.parametrize('size', [(6, 8), (7, 11), (13, 5)])
def test_patch_mode_gives_every_pixel_the_depth_of_its_patch(size):
    depth = torch.arange(12.0).reshape(1, 3, 4)
    full = upsample(depth, size, 'patch')
    for row in range(size[0]):
        for column in range(size[1]):
            patch = (int((row + 0.5) * 3 / size[0]), int((column + 0.5) * 4 / size[1]))
            assert full[0, row, column] == depth[0][patch]
