# SPDX-License-Identifier: Apache-2.0
"""Section 3.3 of the paper against first principles."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from depthclip_ros.core import CameraImage, DepthConfig, depth_steps
from depthclip_ros.core.anchor import Adjustment
from depthclip_ros.core.readout import (
    limit_range,
    read_out,
    similarity_logits,
    upsample,
    upsampling_weights,
)

NAN, INF = math.nan, math.inf


def test_logits_are_scaled_dot_products():
    image = torch.tensor([[1.0, 0.0], [0.0, 0.6], [0.0, 0.8]])[None, :, None]
    text = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    logits = similarity_logits(image, text, temperature=0.1)
    torch.testing.assert_close(logits[0, :, 0], torch.tensor([[1000.0, 0.0], [0.0, 800.0]]))


def test_weights_depth_and_spread_by_hand():
    logits = torch.tensor([0.0, math.log(3.0)])[None, :, None, None]
    weights, depth, spread = read_out(logits, torch.tensor([1.0, 5.0]))
    torch.testing.assert_close(weights.flatten(), torch.tensor([0.25, 0.75]))
    assert depth.item() == pytest.approx(4.0)
    assert spread.item() == pytest.approx(math.sqrt(0.25 * 0.75) * 4)


def test_centered_is_linear_between_the_patches_centres():
    full = upsample(torch.tensor([[[1.0, 3.0], [2.0, 4.0]]]), (6, 4), 'centered')
    # Centres are at rows 1 and 4 and columns 0.5 and 2.5; beyond them nothing is extrapolated.
    rows = torch.tensor([0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0])[:, None]
    columns = torch.tensor([0.0, 0.25, 0.75, 1.0])[None]
    torch.testing.assert_close(full[0], 1 + rows + 2 * columns)


@pytest.mark.parametrize(('low', 'high', 'out_of_range', 'expected'), [
    (1.0, 3.0, 'clamp', [1.0, 1.0, 2.0, 3.0, 3.0, NAN]),
    (1.0, 3.0, 'nan', [NAN, 1.0, 2.0, 3.0, NAN, NAN]),
    (1.0, 3.0, 'inf', [-INF, 1.0, 2.0, 3.0, INF, NAN]),
    (0.0, 2.5, 'inf', [0.5, 1.0, 2.0, INF, INF, NAN]),
    (1.5, 0.0, 'clamp', [1.5, 1.5, 2.0, 3.0, 3.5, NAN]),
    (0.0, 0.0, 'nan', [0.5, 1.0, 2.0, 3.0, 3.5, NAN])])
def test_out_of_range(low, high, out_of_range, expected):
    depth = torch.tensor([0.5, 1.0, 2.0, 3.0, 3.5, NAN])
    torch.testing.assert_close(
        limit_range(depth, low, high, out_of_range), torch.tensor(expected), equal_nan=True)
    assert depth[0] == 0.5, 'the input is left alone'


def test_limits_come_before_upsampling_and_judge_what_is_final():
    """Of three patches the first is too far, and the last too unsure, once they are anchored."""
    unsure = np.float32([[1.0, 0.5, 1.0]])
    image = CameraImage(np.zeros((4, 12, 3), np.uint8), anchor=lambda *_: Adjustment(
        2.0, 3.0, None, unsure))
    config = DepthConfig(calibration='its file', range_max=9.0, max_stddev=1.0)
    metres = torch.tensor([[[5.0, 2.0, 3.0]]])
    language = depth_steps.LanguageDepth(
        *[torch.zeros(1, 7, 1, 3)] * 2, *[metres] * 2, [None], None)
    depth, adjustments = depth_steps.anchor_depth(
        depth_steps.Depth(metres, metres, torch.full((1, 1, 3), 0.2)), [image], config.upsampling)
    found, = depth_steps.make_predictions(
        config, language, depth, adjustments, [1.0], [image], None)
    np.testing.assert_allclose(found.patch_stddev, [[1.2, 0.6, 1.2]], rtol=1e-6)
    np.testing.assert_array_equal(found.patch_depth, [[NAN, 4.0, NAN]])
    np.testing.assert_array_equal(found.depth, [[NAN] * 4 + [4.0] * 4 + [NAN] * 4] * 4)


def axis_reference(patches, pixels, mode):
    """(nearest patch, whether it is a tie) of every pixel, in exact numbers."""
    for pixel in range(pixels):
        place = Fraction(2 * pixel + 1, 2) * patches / pixels
        if mode == 'bilinear':
            place = Fraction(pixel) * (patches - 1) / max(pixels - 1, 1) + Fraction(1, 2)
        place = min(max(place, 0), patches - Fraction(1, 2))
        yield math.floor(place), place.denominator == 1 and 0 < place < patches


sides = st.integers(1, 6), st.integers(1, 6), st.integers(1, 25), st.integers(1, 25)
depths = st.floats(0.125, 100.0, width=32)


@settings(deadline=None, max_examples=150)
@given(*sides, st.sampled_from(['centered', 'bilinear', 'patch']), st.data())
def test_holes_stay_within_their_patches(h, w, height, width, mode, data):
    """Any patches: a pixel has its nearest patch's hole, or depth from around it."""
    values = data.draw(st.lists(st.one_of(depths, st.sampled_from([NAN, INF, -INF])),
                                min_size=h * w, max_size=h * w))
    patches = torch.tensor(values).reshape(1, h, w)
    full = upsample(patches, (height, width), mode)[0]
    assert full.shape == (height, width)
    finite = patches[patches.isfinite()]
    rows = list(axis_reference(h, height, mode))
    columns = list(axis_reference(w, width, mode))
    for (i, tie_row), line in zip(rows, full.tolist(), strict=True):
        for (j, tie_column), pixel in zip(columns, line, strict=True):
            if tie_row or tie_column:
                continue
            nearest = patches[0, i, j].item()
            if math.isfinite(nearest):
                assert finite.min() * (1 - 1e-5) <= pixel <= finite.max() * (1 + 1e-5)
                assert mode != 'patch' or pixel == nearest
            else:
                assert pixel == nearest or (math.isnan(pixel) and math.isnan(nearest))


@settings(deadline=None, max_examples=50)
@given(*sides, st.sampled_from(['centered', 'bilinear']), st.data())
def test_without_holes_it_is_torchs_interpolation(h, w, height, width, mode, data):
    values = data.draw(st.lists(depths, min_size=2 * h * w, max_size=2 * h * w))
    patches = torch.tensor(values).reshape(2, h, w)
    expected = interpolate(
        patches[:, None], (height, width), mode='bilinear', align_corners=mode == 'bilinear')[:, 0]
    assert torch.equal(upsample(patches, (height, width), mode), expected)
    # And shares of patches in rows and columns compute the same.
    rows, columns = upsampling_weights(h, height, mode), upsampling_weights(w, width, mode)
    torch.testing.assert_close(rows @ patches @ columns.T, expected, rtol=1e-4, atol=1e-4)
