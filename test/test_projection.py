# SPDX-License-Identifier: Apache-2.0
"""Section 3.3 of the paper against first principles."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import grid_sample, interpolate

from depthclip_ros.core.projection import (
    limit_range,
    read_out,
    shares,
    similarity_logits,
    smooth,
    upsample,
)


def test_logits_are_scaled_dot_products():
    image = torch.zeros(1, 3, 1, 2)
    image[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    image[0, :, 0, 1] = torch.tensor([0.0, 0.6, 0.8])
    text = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    logits = similarity_logits(image, text, temperature=0.1)
    torch.testing.assert_close(logits[0, :, 0], torch.tensor([[1000.0, 0.0], [0.0, 800.0]]))


def test_weights_depth_and_spread_by_hand():
    logits = torch.tensor([0.0, math.log(3.0)])[None, :, None, None]
    weights, depth, spread = read_out(logits, torch.tensor([1.0, 3.0]), 'mean')
    torch.testing.assert_close(weights.flatten(), torch.tensor([0.25, 0.75]))
    assert depth.item() == pytest.approx(2.5)
    assert spread.item() == pytest.approx(math.sqrt(0.25 * 0.75) * 2)


def test_the_best_bin_by_hand():
    nan = math.nan
    logits = torch.tensor([[[0.0, 5.0, -1.0, 1.0]], [[2.0, -1.0, -2.0, nan]],
                           [[1.0, 4.0, -0.5, 0.0]]])[None]
    torch.testing.assert_close(
        read_out(logits, torch.tensor([1.0, 2.0, 4.0]), 'argmax')[1],
        torch.tensor([[[2.0, 1.0, 4.0, nan]]]), equal_nan=True)


def test_smoothing_by_hand():
    """Three patches in a row and sigma such that a neighbour counts half, and the next 1/16."""
    sigma = 1 / math.sqrt(2 * math.log(2))
    row = torch.tensor([[[1.0, 4.0, 10.0]]])
    expected = torch.tensor([[[(1 + 2 + 10 / 16) / (1 + 1 / 2 + 1 / 16),
                               (0.5 + 4 + 5) / 2,
                               (1 / 16 + 2 + 10) / (1 + 1 / 2 + 1 / 16)]]])
    torch.testing.assert_close(smooth(row, sigma), expected)
    torch.testing.assert_close(smooth(row.mT, sigma), expected.mT)
    # A patch without depth stays without, and is none of its neighbours' business.
    nan, inf = math.nan, math.inf
    holes = torch.tensor([[[1.0, nan, 10.0, inf, -inf, 2.0]]])
    (known,) = [[0, 2, 5]]
    weights = torch.tensor([[2.0 ** -(i - j) ** 2 for j in known] for i in known])
    means = (weights @ holes[0, 0, known]) / weights.sum(1)
    expected = holes.clone()
    expected[0, 0, known] = means
    torch.testing.assert_close(smooth(holes, sigma), expected, equal_nan=True)
    assert torch.isnan(smooth(torch.full((1, 2, 2), nan), 1.0)).all()


@pytest.mark.parametrize('sigma', [5e-324, 1e-6, 100.0])
def test_extreme_smoothing(sigma):
    depth = 1 + torch.rand(1, 6, 8, generator=torch.Generator().manual_seed(0))
    expected = depth.mean().expand(1, 6, 8) if sigma > 1 else depth
    torch.testing.assert_close(smooth(depth, sigma), expected, rtol=1e-3, atol=0)
    assert smooth(depth, 0.0) is depth


@pytest.mark.parametrize('size', [(6, 8), (7, 11), (13, 5)])
def test_patch_mode_gives_every_pixel_the_depth_of_its_patch(size):
    depth = torch.arange(12.0).reshape(1, 3, 4)
    full = upsample(depth, size, 'patch')
    for row in range(size[0]):
        for column in range(size[1]):
            patch = (int((row + 0.5) * 3 / size[0]), int((column + 0.5) * 4 / size[1]))
            assert full[0, row, column] == depth[0][patch]


def test_centered_is_linear_between_the_patches_centres():
    depth = torch.tensor([[[1.0, 3.0], [2.0, 4.0]]])
    full = upsample(depth, (6, 4), 'centered')
    # Centres are at rows 1 and 4 and columns 0.5 and 2.5; beyond them nothing is extrapolated.
    rows = torch.tensor([0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0])[:, None]
    columns = torch.tensor([0.0, 0.25, 0.75, 1.0])[None]
    torch.testing.assert_close(full[0], 1 + rows + 2 * columns)


@pytest.mark.parametrize('size', [(480, 640), (487, 653), (61, 47), (720, 1280), (31, 33)])
def test_centered_puts_depth_where_its_patch_is(size):
    """At the patches' centres, which need not be pixels', the picture has the patches' depth."""
    h, w = 15, 20
    v, u = ((torch.arange(n) + 0.5) * pixels / n - 0.5 for n, pixels in zip((h, w), size,
                                                                          strict=True))
    # A plane, so that reading between two pixels is exact.
    plane = 1 + 0.1 * torch.arange(h)[:, None] + 0.03 * torch.arange(w)
    read = grid_sample(
        upsample(plane[None], size, 'centered')[None],
        torch.stack(torch.meshgrid((2 * u + 1) / size[1] - 1, (2 * v + 1) / size[0] - 1,
                                   indexing='xy'), dim=-1)[None], align_corners=False)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(read[inner], plane[None, None][inner], rtol=0, atol=1e-4)
    # And any depth at all, where the centres are pixels'.
    depth = torch.rand(1, h, w, generator=torch.Generator().manual_seed(0)) + 1
    full = upsample(depth, (3 * h, 5 * w), 'centered')
    torch.testing.assert_close(full[:, 1::3, 2::5], depth, rtol=0, atol=1e-6)


def test_out_of_range():
    depth = torch.tensor([0.5, 1.0, 2.0, 3.0, 3.5, math.nan])
    nan, inf = math.nan, math.inf
    for low, high, out_of_range, expected in (
            (1.0, 3.0, 'clamp', [1.0, 1.0, 2.0, 3.0, 3.0, nan]),
            (1.0, 3.0, 'nan', [nan, 1.0, 2.0, 3.0, nan, nan]),
            (1.0, 3.0, 'inf', [-inf, 1.0, 2.0, 3.0, inf, nan]),
            (0.0, 2.5, 'inf', [0.5, 1.0, 2.0, inf, inf, nan]),
            (1.5, 0.0, 'nan', [nan, nan, 2.0, 3.0, 3.5, nan]),
            (1.5, 0.0, 'clamp', [1.5, 1.5, 2.0, 3.0, 3.5, nan])):
        limited = limit_range(depth, low, high, out_of_range)
        torch.testing.assert_close(limited, torch.tensor(expected), equal_nan=True)
    assert limit_range(depth, 0.0, 0.0, 'nan') is depth
    assert depth[0] == 0.5, 'the input is left alone'


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
modes = st.sampled_from(['centered', 'bilinear', 'patch'])


@settings(deadline=None, max_examples=150)
@given(*sides, modes, st.data())
def test_holes_stay_within_their_patches(h, w, height, width, mode, data):
    """Any patches: a pixel has its nearest patch's hole, or depth from around it."""
    values = data.draw(st.lists(
        st.one_of(depths, st.sampled_from([math.nan, math.inf, -math.inf])),
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
    rows, columns = shares(h, height, mode), shares(w, width, mode)
    torch.testing.assert_close(rows @ patches @ columns.T, expected, rtol=1e-4, atol=1e-4)
