# SPDX-License-Identifier: Apache-2.0
"""What points say of the patches around them, and how far off they are where no point is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from depthclip_ros.core.anchor import (
    DEPTH_REACH,
    DEVIATION,
    OWN_DEVIATION,
    Adjustment,
    Points,
    ScaleFilter,
    correct_around,
)

WHOLE, GRID = (240, 320), (6, 8)
EVEN = np.full(GRID, 3.0, np.float32)


def correct(patches, residuals, trusted=None, **how):
    patches = np.asarray(patches)
    return correct_around(
        patches, np.asarray(residuals, float),
        np.ones(len(patches), bool) if trusted is None else np.asarray(trusted),
        **{'patch_depth': EVEN, 'image': WHOLE, 'reach': 0.15, **how})


def by_hand(patches, residuals, reach, at, depth):
    """Gaussian process regression at patches, with all of the points; each in its own patch."""
    def place(patch):
        row, column = divmod(patch, 8)
        return np.array([(column + 0.5) * 40 / (reach * 320), (row + 0.5) * 40 / (reach * 320),
                         math.log(depth[row, column]) / DEPTH_REACH])

    def kernel(one, other):
        return DEVIATION ** 2 * math.exp(-0.5 * np.sum((place(one) - place(other)) ** 2))

    known = np.array([[kernel(a, b) for b in patches] for a in patches])
    known += OWN_DEVIATION ** 2 * np.eye(len(patches))
    to_known = np.array([[kernel(a, b) for b in patches] for a in at])
    told = to_known @ np.linalg.solve(known, residuals)
    left = DEVIATION ** 2 - np.diag(to_known @ np.linalg.solve(known, to_known.T))
    return told, np.sqrt((OWN_DEVIATION ** 2 + left) / (OWN_DEVIATION ** 2 + DEVIATION ** 2))


@pytest.mark.parametrize('reach', [0.1, 0.3])
def test_it_is_gaussian_process_regression(reach):
    patches, residuals = [3, 12, 13, 40, 22], [0.2, -0.1, 0.05, 0.3, 0.0]
    depth = np.random.default_rng(0).uniform(1.0, 5.0, GRID).astype(np.float32)
    found = correct(patches, residuals, reach=reach, patch_depth=depth)
    told, share = by_hand(patches, residuals, reach, range(48), depth)
    np.testing.assert_allclose(np.log(found.factor).ravel(), told, atol=1e-5)
    np.testing.assert_allclose(found.unsure.ravel(), share, rtol=1e-5)
    # Of each point it tells what the regression without it says.
    for i, patch in enumerate(patches):
        others = [n for n in range(5) if n != i]
        told, share = by_hand(
            [patches[n] for n in others], [residuals[n] for n in others], reach, [patch], depth)
        assert found.said[i] == pytest.approx(told[0], abs=1e-9)
        assert found.left[i] == pytest.approx(share[0], abs=1e-9)


def test_far_from_every_point_nothing_changes():
    found = correct([0], [0.3], reach=0.1)
    assert found.factor[0, 0] > 1.1
    assert found.unsure[0, 0] < 0.8
    np.testing.assert_allclose(found.factor[:, 5:], 1.0, atol=1e-3)
    np.testing.assert_allclose(found.unsure[:, 5:], 1.0, atol=1e-3)
    assert (found.unsure <= 1.0).all()


def test_reach_is_a_part_of_the_width_whatever_the_image():
    """The same patch size in pixels, the same reach in pixels: the same correction."""
    half = correct(
        [0, 9], [0.3, 0.1], patch_depth=EVEN[:, :4], image=(240, 160), reach=0.3)
    whole = correct([0, 17], [0.3, 0.1])
    np.testing.assert_allclose(half.factor, whole.factor[:, :4], rtol=1e-6)


def test_what_stands_before_a_wall_is_not_taken_for_the_wall():
    depth = EVEN.copy()
    depth[2:4, 3:5] = 1.0  # and all points are on the wall around it
    found = correct([10, 13, 26, 29, 11, 36], np.full(6, 0.3), patch_depth=depth)
    assert (found.factor[2:4, 2] > 1.15).all()
    assert (found.factor[2:4, 3:5] < 1.05).all()
    assert (found.unsure[2:4, 3:5] > 0.98).all()
    depth[0, 0] = math.nan
    assert np.isfinite(correct([10], [0.3], patch_depth=depth).factor).all()


def test_what_others_contradict_and_what_is_not_trusted_is_only_scored():
    patches = [9, 10, 11, 17, 18, 19, 25, 26, 27]
    residuals = np.full(9, 0.1)
    residuals[4] = 0.9
    trusted = np.ones(9, bool)
    without = correct(np.delete(patches, 4), np.delete(residuals, 4))
    for kept in (trusted, np.arange(9) != 4):
        found = correct(patches, residuals, kept)
        np.testing.assert_allclose(found.factor, without.factor)
        assert found.said[4] == pytest.approx(math.log(without.factor[2, 2]), abs=1e-6)
    assert correct([9, 10], [0.1, 0.2], [False, False]) is None


def test_points_of_one_patch_count_hardly_more_than_one():
    one, many = correct([20], [0.2]), correct([20] * 1000, [0.2] * 1000)
    assert one.factor[2, 4] < many.factor[2, 4] < math.exp(0.2)
    assert many.unsure[2, 4] > 0.5


def test_what_all_points_say_together_beats_one_scale():
    """Errors as they are assumed: rmse and coverage of what is left, between the points."""
    rng = np.random.default_rng(1)
    rows, columns = np.divmod(np.arange(48), 8)
    apart = ((rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2) / 8 ** 2
    root = np.linalg.cholesky(
        DEVIATION ** 2 * np.exp(-0.5 * apart / 0.15 ** 2) + 1e-9 * np.eye(48))
    before, after, within = [], [], []
    for _ in range(300):
        truth = root @ rng.standard_normal(48) + OWN_DEVIATION * rng.standard_normal(48)
        patches = rng.permutation(48)[:16]
        found = correct(patches, truth[patches])
        rest = np.delete(np.arange(48), patches)
        left = (truth - np.log(found.factor).ravel())[rest]
        before.append(truth[rest])
        after.append(left)
        sigma = math.hypot(DEVIATION, OWN_DEVIATION) * found.unsure.ravel()[rest]
        within.append(np.abs(left) <= 1.645 * sigma)
    assert np.std(after) < 0.85 * np.std(before)
    assert np.mean(within) == pytest.approx(0.9, abs=0.015)


def test_a_part_of_it_leaves_the_rest_of_errors_and_of_their_size():
    whole = correct([9, 10, 40], [0.2, 0.2, -0.1])
    half, none, all_ = (whole.part(share) for share in (0.5, 0.0, 1.0))
    np.testing.assert_allclose(half.factor ** 2, whole.factor, rtol=1e-6)
    np.testing.assert_allclose(half.said, whole.said / 2)
    assert (none.factor == 1).all()
    assert (none.unsure == 1).all()
    for one, other in zip(all_, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    # What neighbours have in common is halved where it is known, and stays where it is not.
    known = 1 - whole.unsure ** 2
    np.testing.assert_allclose(1 - half.unsure ** 2, 0.75 * known, atol=1e-6)


# In the filter ----------------------------------------------------------------------------------


def points(factor=1.0, count=20):
    """Of a picture 2.2 m deep on the left and 2.7 m on the right, if the factor is 1."""
    rng = np.random.default_rng(3)
    u, v = rng.uniform(0, 319, count), rng.uniform(0, 239, count)
    return Points(u, v, factor * np.where(u < 160, 2.2, 2.7))


FLAT = np.full(GRID, 2.4, np.float32)


def test_what_a_scale_leaves_is_corrected():
    adjustment = ScaleFilter().adjust(0.0, points(), FLAT, None, WHOLE)
    depth = FLAT * adjustment.factor
    assert depth[:, :3].mean() == pytest.approx(2.2, rel=0.05)
    assert depth[:, 5:].mean() == pytest.approx(2.7, rel=0.05)
    assert (adjustment.unsure < 1).any()
    assert (Adjustment(2.0, 3.0).factor, Adjustment(2.0, 3.0).unsure) == (2.0, 3.0)


def test_it_can_be_left_to_the_scale():
    scales = ScaleFilter(reach=0.0)
    adjustment = scales.adjust(0.0, points(), FLAT, FLAT / 10, WHOLE)
    assert adjustment.around is None
    assert scales.state.around == 0.0
    assert adjustment.scale == pytest.approx(1.0, rel=0.05)


def test_points_that_had_their_say_correct_but_are_not_counted_again():
    scales, once = ScaleFilter(), ScaleFilter()
    for scale in (scales, once):
        scale.adjust(0.0, points(), FLAT, FLAT / 10, WHOLE)
    again = [scales.adjust(0.01 * i, points(), FLAT, FLAT / 10, WHOLE, are_new=False)
             for i in range(1, 5)]
    silent = once.adjust(0.04, None, FLAT, FLAT / 10, WHOLE)
    assert again[-1][:2] == silent[:2]
    assert again[-1].around is not None
    assert silent.around is None
    assert scales.state.variance == pytest.approx(once.state.variance)
    assert scales.state.silent == pytest.approx(0.04)


@pytest.mark.parametrize(('alike', 'most', 'least'), [(True, 1.0, 0.8), (False, 0.45, 0.0)])
def test_as_much_is_taken_as_helped_points_that_it_did_not_know(alike, most, least):
    rng = np.random.default_rng(2)
    scales = ScaleFilter()
    for i in range(100):
        seen = points()
        if not alike:  # what a point says is that of its own place alone
            seen.z[:] = 2.4 * np.exp(0.2 * rng.standard_normal(len(seen.z)))
        scales.adjust(i / 10, seen, FLAT, None, WHOLE)
    assert least <= scales.share_around <= most


def test_points_that_are_not_followed_correct_nothing():
    scales = ScaleFilter()
    for i in range(20):
        assert scales.adjust(i / 10, points(), FLAT, None, WHOLE).around is not None
    for are_new in (True, False):
        wild = scales.adjust(2.0, points(4.0), FLAT, None, WHOLE, are_new=are_new)
        assert scales.state.condition == 'scale jumped'
        assert wild.around is None
