# SPDX-License-Identifier: Apache-2.0
"""The scale anchor: what points say, how it is followed, and how large errors are said to be."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthclip_ros.core import anchor
from depthclip_ros.core.anchor import (
    COMMON_STDDEV,
    DEPTH_REACH,
    PATCH_STDDEV,
    Points,
    ScaleFilter,
    compare_points,
    interpolate_residuals,
    sample_patches,
)
from depthclip_ros.core.readout import upsample

WHOLE = 240, 320
GRID = 6, 8
EVEN = np.full(GRID, 3.0, np.float32)
FLAT = np.full(GRID, 2.4, np.float32)


class Follower(ScaleFilter):
    """A filter whose images all are answered."""

    def adjust(self, *image, **points):
        adjustment, self.state = super().adjust(*image, **points)
        return adjustment


class World:
    """Patches whose depth is wrong by a factor and by noise, and points of the truth."""

    def __init__(self, seed=0, factor=1.5, noise=0.15):
        self.rng = np.random.default_rng(seed)
        self.factor, self.noise = factor, noise

    def look(self, count=20, outliers=0.0, factor=None):
        """One image: points, and the patches' depth and its standard deviation."""
        rng = self.rng
        truth = np.exp(rng.normal(0.8, 0.3, (6, 8)))
        wrong = np.exp(self.noise * rng.standard_normal(truth.shape))
        patches = (truth / (factor or self.factor) * wrong).astype(np.float32)
        rows, columns = rng.integers(0, 6, count), rng.integers(0, 8, count)
        u, v = columns * 40 + 19.5, rows * 40 + 19.5
        z = truth[rows, columns] * np.exp(0.03 * rng.standard_normal(count))
        bad = rng.permutation(count)[:round(outliers * count)]
        z[bad] = rng.uniform(0.3, 10.0, len(bad))
        return Points(u, v, z), patches, self.noise * patches

    def drive(self, scale_filter, images, start=0.0, **how):
        """Adjustments of so many images at 10 Hz."""
        return [scale_filter.adjust(start + i / 10, *self.look(**how), WHOLE)
                for i in range(images)]


def weigh(points, patches, least=anchor.MIN_POINTS):
    """Log scale, variance, share, distances and condition of one image's points."""
    log_ratios, depth, _, places = compare_points(points, patches, None, WHOLE)
    return anchor.estimate_scale(log_ratios, depth, places, least)


def steps(adjustments):
    scales = np.array([adjustment.scale for adjustment in adjustments])
    return np.exp(np.abs(np.diff(np.log(scales))))


# Points beside patches --------------------------------------------------------------------------


@pytest.mark.parametrize('upsampling', ['centered', 'bilinear', 'patch'])
def test_points_see_the_depth_that_the_image_shows(upsampling):
    import torch
    rng = np.random.default_rng(3)
    patches = rng.uniform(1, 3, (6, 8)).astype(np.float32)
    patches[2, 3] = patches[5, 7] = np.nan
    u, v = np.meshgrid(np.arange(320.0), np.arange(240.0))
    shown = upsample(torch.from_numpy(patches)[None], WHOLE, upsampling)[0].numpy()
    found = sample_patches(patches, WHOLE, u.ravel(), v.ravel(), upsampling)
    np.testing.assert_allclose(found.reshape(240, 320), shown, rtol=1e-4)


def test_what_is_no_depth_or_outside_is_left_out():
    patches = np.full((6, 8), 2.0, np.float32)
    patches[:, 4:] = np.nan
    u = np.array([10.0, 300.0, -1.0, 320.0, math.nan, 10.0, 10.0, 10.0, math.inf, 10.0, 10.0])
    v = np.array([10.0, 10.0, 10.0, 10.0, 10.0, 240.0, 10.0, 10.0, 10.0, math.nan, 239.5])
    z = np.array([4.0, 4.0, 4.0, 4.0, 4.0, 4.0, math.nan, -1.0, 4.0, 4.0, 4.0])
    log_ratios = compare_points(Points(u, v, z), patches, None, WHOLE)[0]
    np.testing.assert_allclose(log_ratios, [math.log(2.0)])
    assert len(compare_points(None, patches, patches, WHOLE)[0]) == 0


def test_many_points_are_taken_evenly():
    count = 100_000
    points = Points(np.linspace(0, 319, count), np.full(count, 100.0), np.full(count, 2.0))
    log_ratios, _, _, places = compare_points(points, np.ones((6, 8), np.float32), None, WHOLE)
    # So what they cost has an end, too.
    assert anchor.MAX_POINTS / 2 < len(log_ratios) <= anchor.MAX_POINTS
    assert {*places} == {*range(16, 24)}


def test_outliers_on_one_side_do_not_either():
    """A scanner sees behind what the camera sees: always too far."""
    world, errors = World(), []
    for _ in range(200):
        points, patches, _ = world.look()
        points.z[:9] *= world.rng.uniform(1.8, 4.0, 9)
        errors.append(weigh(points, patches)[0] - math.log(1.5))
    assert abs(np.median(errors)) < 0.03
    assert abs(np.mean(errors)) < 0.05


def test_why_points_cannot_be_used():
    points, patches, _ = World(noise=0.02).look()
    points.z[:7] *= 3.0
    points.z[7:14] /= 3.0
    _, _, share, _, condition = weigh(points, patches)
    assert (condition, share < 0.5) == (anchor.CONTRADICTORY, True)
    few = Points(*(values[14:18] for values in points))
    assert weigh(few, patches)[4] == anchor.FEW_POINTS
    assert weigh(few, patches, least=1)[4] == ''
    assert weigh(None, patches, least=1)[4] == anchor.NO_POINTS


def test_of_the_floor_what_lies_lowest_counts():
    """Where things stand on it, it would be farther than what is seen."""
    world = World(noise=0.02)
    points, *patches = world.look()
    points.z[:12] *= world.rng.uniform(1.5, 3.0, 12)
    found = Follower(lowest=0.25).adjust(0.0, points, *patches, WHOLE)
    assert found.scale == pytest.approx(1.5, rel=0.1)


def test_points_in_one_patch_count_as_one():
    """A thousand beams on one patch know no more than that patch."""
    world = World()
    _, patches, _ = world.look()
    u = world.rng.uniform(50, 69, 1000)
    points = Points(u, np.full(1000, 60.0), np.full(1000, 2.0))
    assert weigh(points, patches)[1] > 0.1 ** 2


# The filter -------------------------------------------------------------------------------------


@pytest.mark.parametrize('outliers', [0.0, 0.2, 0.4])
def test_the_scale_is_found_and_neither_drifts_nor_jumps(outliers):
    adjustments = World().drive(Follower(), 300, outliers=outliers)
    scales = np.array([adjustment.scale for adjustment in adjustments])
    assert abs(np.log(scales[:20] / 1.5)).max() < 0.3
    assert abs(np.log(scales[20:] / 1.5)).max() < 0.12
    assert steps(adjustments).max() <= anchor.MAX_STEP + 1e-9


def test_what_is_anchored_late_goes_step_by_step():
    world, late = World(), Follower()
    late.adjust(0.0, None, *world.look()[1:], WHOLE)
    adjustments = world.drive(late, 30, start=0.1)
    assert adjustments[0].scale == pytest.approx(anchor.MAX_STEP)
    assert steps(adjustments).max() <= anchor.MAX_STEP + 1e-9
    assert adjustments[-1].scale == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize('factor', [0.05, 4.8, 20.0])
def test_words_that_are_far_off_are_anchored_at_once_and_after_silence(factor):
    world, scales = World(noise=0.05), Follower(timeout=5.0)
    first = world.drive(scales, 1, factor=factor)[0]
    assert scales.state.condition == ''
    assert first.scale == pytest.approx(factor, rel=0.05)
    for image in range(100):  # ten seconds without points: the anchor is let go
        scales.adjust(0.1 + image / 10, None, *world.look()[1:], WHOLE)
    assert not scales.state.anchored
    world.drive(scales, 1, start=10.2, factor=1 / factor)
    assert scales.state.condition == ''
    assert world.drive(scales, 200, start=10.3, factor=1 / factor)[-1].scale \
        == pytest.approx(1 / factor, rel=0.05)


def test_dropouts_are_held_and_a_silent_anchor_is_let_go():
    world, scales = World(), Follower(timeout=5.0)
    before = world.drive(scales, 50)[-1].scale
    variance = scales.state.variance
    gap = [scales.adjust(5 + i / 10, None, *world.look()[1:], WHOLE) for i in range(49)]
    assert {adjustment.scale for adjustment in gap} == {before}
    assert scales.state.variance > variance
    assert scales.state.anchored
    after = [scales.adjust(10 + i / 10, None, *world.look()[1:], WHOLE) for i in range(300)]
    assert not scales.state.anchored
    assert steps(after).max() <= anchor.MAX_STEP + 1e-9
    assert after[-1].scale == pytest.approx(1.0, abs=0.01)
    assert scales.state.variance == anchor.PRIOR_STDDEV ** 2  # nothing is known any more
    assert scales.state.condition == anchor.NO_POINTS
    again = world.drive(scales, 30, start=40.0)
    assert scales.state.anchored
    assert steps(again).max() <= anchor.MAX_STEP + 1e-9
    assert again[-1].scale == pytest.approx(1.5, rel=0.1)


def test_one_wild_image_is_not_followed_but_many_that_agree_are():
    world, scales = World(noise=0.05), Follower()
    before = world.drive(scales, 100)[-1].scale
    wild = scales.adjust(10.0, *world.look(factor=4.0), WHOLE)
    assert scales.state.condition == anchor.JUMP
    assert wild.scale == before
    assert scales.state.anchored
    after = world.drive(scales, anchor.PATIENCE + 1, start=10.1, factor=4.0)
    assert scales.state.condition == ''
    after += world.drive(scales, 100, start=11.2, factor=4.0)
    assert steps(after).max() <= anchor.MAX_STEP + 1e-9
    assert after[-1].scale == pytest.approx(4.0, rel=0.05)
    assert scales.state.condition == ''


def test_time_that_goes_back_counts_as_none():
    world, scales = World(), Follower()
    world.drive(scales, 50, start=1000.0)
    for image in range(20):  # a bag that begins anew
        scales.adjust(image / 10, None, *world.look()[1:], WHOLE)
    assert scales.state.anchored


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(
    st.floats(-1e9, 1e9), st.lists(st.tuples(numbers, numbers, numbers), max_size=12),
    st.sampled_from([None, 0.0, 0.2, math.nan]), st.sampled_from([1.0, 1e-30, 1e30, math.nan])),
    max_size=8), st.sampled_from([1, 5]))
def test_whatever_comes_scale_and_inflation_stay_numbers_and_steps_small(images, least):
    scales = Follower(min_points=least)
    adjustments = []
    for when, points, deviation, depth in images:
        patches = np.full((3, 4), depth, np.float32)
        with np.errstate(over='ignore'):
            stddev = None if deviation is None else patches * np.float32(deviation)
        given_points = Points(*np.array(points, np.float64).reshape(-1, 3).T)
        adjustments.append(scales.adjust(when, given_points, patches, stddev, WHOLE))
        state = scales.state
        assert 0.0 < state.variance <= anchor.PRIOR_STDDEV ** 2 + 1e-12
        assert 0.009 < adjustments[-1].scale < 101.0
        assert 1 / 21 < adjustments[-1].inflation < 21
    assert (steps(adjustments) <= anchor.MAX_STEP + 1e-9).all()


# Error bars -------------------------------------------------------------------------------------


def coverage(world, scales, images, start, believed):
    """Share of the patches whose truth is within 1.645 standard deviations."""
    held = []
    for i in range(images):
        points, patches, _ = world.look(outliers=0.1)
        adjustment = scales.adjust(
            start + i / 10, points, patches, (believed * patches).astype(np.float32), WHOLE)
        # The truth of a fresh draw: what `look` multiplies with, seen from the other side.
        error = world.noise * world.rng.standard_normal(2000) + math.log(
            world.factor / adjustment.scale)
        held.append(np.mean(np.abs(error) <= 1.645 * believed * adjustment.inflation))
    return np.array(held)


def test_coverage_comes_back_after_errors_have_grown():
    world, scales = World(noise=0.15), Follower()
    before = coverage(world, scales, 200, 0.0, believed=0.15)
    # Outliers that pass for errors count as misses: coverage is 0.92 to 0.93, not 0.9.
    assert abs(before[100:].mean() - 0.9) < 0.04
    world.noise, world.factor = 0.25, 1.8  # another height of the camera
    after = coverage(world, scales, 400, 20.0, believed=0.15)
    assert after[:5].mean() < 0.8
    assert abs(after[10:50].mean() - 0.9) < 0.04
    assert abs(after[200:].mean() - 0.9) < 0.04


def test_error_bars_that_are_too_wide_shrink():
    held = coverage(World(noise=0.15), Follower(), 400, 0.0, believed=0.4)
    assert held[:10].mean() > 0.99
    assert abs(held[200:].mean() - 0.9) < 0.03


# What points say of the patches around them, beyond the scale ------------------------------------


def correct(patches, residuals, trusted=None, **how):
    patches = np.asarray(patches)
    return interpolate_residuals(
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
        return COMMON_STDDEV ** 2 * math.exp(-0.5 * np.sum((place(one) - place(other)) ** 2))

    known = np.array([[kernel(a, b) for b in patches] for a in patches])
    known += PATCH_STDDEV ** 2 * np.eye(len(patches))
    to_known = np.array([[kernel(a, b) for b in patches] for a in at])
    told = to_known @ np.linalg.solve(known, residuals)
    left = COMMON_STDDEV ** 2 - np.diag(to_known @ np.linalg.solve(known, to_known.T))
    return told, np.sqrt((PATCH_STDDEV ** 2 + left) / (PATCH_STDDEV ** 2 + COMMON_STDDEV ** 2))


@pytest.mark.parametrize('reach', [0.1, 0.3])
def test_it_is_gaussian_process_regression(reach):
    patches, residuals = [3, 12, 13, 40, 22], [0.2, -0.1, 0.05, 0.3, 0.0]
    depth = np.random.default_rng(0).uniform(1.0, 5.0, GRID).astype(np.float32)
    found = correct(patches, residuals, reach=reach, patch_depth=depth)
    told, share = by_hand(patches, residuals, reach, range(48), depth)
    np.testing.assert_allclose(np.log(found[0]).ravel(), told, atol=1e-5)
    np.testing.assert_allclose(found[1].ravel(), share, rtol=1e-5)
    # Of each point it tells what the regression without it says.
    for i, patch in enumerate(patches):
        others = [n for n in range(5) if n != i]
        told, share = by_hand(
            [patches[n] for n in others], [residuals[n] for n in others], reach, [patch], depth)
        assert found[2][i] == pytest.approx(told[0], abs=1e-9)
        assert found[3][i] == pytest.approx(share[0], abs=1e-9)


def test_what_stands_before_a_wall_is_not_taken_for_the_wall():
    depth = EVEN.copy()
    depth[2:4, 3:5] = 1.0  # and all points are on the wall around it
    found = correct([10, 13, 26, 29, 11, 36], np.full(6, 0.3), patch_depth=depth)
    assert (found[0][2:4, 2] > 1.15).all()
    assert (found[0][2:4, 3:5] < 1.05).all()
    assert (found[1][2:4, 3:5] > 0.98).all()
    depth[0, 0] = math.nan
    assert np.isfinite(correct([10], [0.3], patch_depth=depth)[0]).all()


def test_what_others_contradict_and_what_is_not_trusted_is_only_scored():
    patches = [9, 10, 11, 17, 18, 19, 25, 26, 27]
    residuals = np.full(9, 0.1)
    residuals[4] = 0.9
    trusted = np.ones(9, bool)
    without = correct(np.delete(patches, 4), np.delete(residuals, 4))
    for kept in (trusted, np.arange(9) != 4):
        found = correct(patches, residuals, kept)
        np.testing.assert_allclose(found[0], without[0])
        assert found[2][4] == pytest.approx(math.log(without[0][2, 2]), abs=1e-6)
    assert correct([9, 10], [0.1, 0.2], [False, False]) is None


def two_walls(factor=1.0, count=20):
    """Of a picture 2.2 m deep on the left and 2.7 m on the right, if the factor is 1."""
    rng = np.random.default_rng(3)
    u, v = rng.uniform(0, 319, count), rng.uniform(0, 239, count)
    return Points(u, v, factor * np.where(u < 160, 2.2, 2.7))


def test_what_a_scale_leaves_is_corrected_or_left_to_it():
    adjustment = Follower().adjust(0.0, two_walls(), FLAT, None, WHOLE)
    depth = FLAT * adjustment.scale * adjustment.patch_scale
    assert depth[:, :3].mean() == pytest.approx(2.2, rel=0.05)
    assert depth[:, 5:].mean() == pytest.approx(2.7, rel=0.05)
    assert 0 < adjustment.patch_inflation.min() < adjustment.patch_inflation.max() <= 1
    alone = Follower(reach=0.0)
    adjustment = alone.adjust(0.0, two_walls(), FLAT, FLAT / 10, WHOLE)
    assert (adjustment.patch_scale, alone.state.local) == (None, None)
    assert adjustment.scale == pytest.approx(1.0, rel=0.05)


def test_points_that_had_their_say_correct_but_are_not_counted_again():
    scales, once = Follower(), Follower()
    for scale in (scales, once):
        scale.adjust(0.0, two_walls(), FLAT, FLAT / 10, WHOLE)
    again = [scales.adjust(0.01 * i, two_walls(), FLAT, FLAT / 10, WHOLE, are_new=False)
             for i in range(1, 5)]
    silent = once.adjust(0.04, None, FLAT, FLAT / 10, WHOLE)
    assert again[-1][:2] == silent[:2]
    assert again[-1].patch_scale is not None
    np.testing.assert_allclose(
        np.log(silent.patch_scale), math.exp(-0.04) * np.log(again[-1].patch_scale),
        rtol=0.05, atol=1e-3)  # it is held, and fades
    assert scales.state.variance == pytest.approx(once.state.variance)


@pytest.mark.parametrize(('alike', 'most', 'least'), [(True, 1.0, 0.8), (False, 0.45, 0.0)])
def test_as_much_is_taken_as_helped_points_that_it_did_not_know(alike, most, least):
    rng = np.random.default_rng(2)
    scales, found = Follower(), []
    for i in range(100):
        seen = two_walls()
        if not alike:  # what a point says is that of its own place alone
            seen.z[:] = 2.4 * np.exp(0.2 * rng.standard_normal(len(seen.z)))
        found.append(scales.adjust(i / 10, seen, FLAT, None, WHOLE))
    assert least <= scales.state.local_gain <= most
    said = [np.log(adjustment.patch_scale).std() for adjustment in found]
    assert (np.mean(said[-20:]) < 0.7 * np.mean(said[:3])) != alike
    assert (found[-1].patch_inflation.min() > found[0].patch_inflation.min() + 0.05) != alike


def test_points_that_are_not_followed_correct_nothing():
    scales = Follower()
    for i in range(20):
        assert scales.adjust(i / 10, two_walls(), FLAT, None, WHOLE).patch_scale is not None
    held = scales.adjust(2.0, None, FLAT, None, WHOLE)
    for are_new in (True, False):
        wild = scales.adjust(2.0, two_walls(4.0), FLAT, None, WHOLE, are_new=are_new)
        assert scales.state.condition == 'scale jumped'
        np.testing.assert_array_equal(wild.patch_scale, held.patch_scale)
    assert scales.adjust(20.0, None, FLAT, None, WHOLE).patch_scale is None


def test_a_slow_sensor_makes_depth_of_a_standing_view_no_flicker():
    """Images at 10 Hz, points at 2 Hz, and walls that are 0.9 and 1.1 times as far as it seems."""
    depths = []
    for i in range(41):
        if i == 0:
            scales = Follower()
        adjustment = scales.adjust(
            i / 10, two_walls() if i % 5 == 0 else None, FLAT, FLAT / 10, WHOLE)
        depths.append(FLAT * adjustment.scale * adjustment.patch_scale)
    changes = [np.mean(np.abs(later / before - 1))
               for before, later in pairwise(depths[10:])]
    assert max(changes) < 0.03
    assert np.median(changes) < 0.01
    errors = [np.abs(depth[:, :3] / 2.2 - 1).mean() for depth in depths[10:]]
    assert max(errors) < 0.06  # of 9 % that the scale alone leaves


def test_a_patch_has_one_vote_however_many_points_are_in_it():
    """A tenth of the picture's patches has nine tenths of the points, all of them wrong."""
    rng = np.random.default_rng(0)
    u, v = (np.arange(48) % 8 * 40 + 19.5, np.arange(48) // 8 * 40 + 19.5)
    for places in ([0], [0, 9, 10, 30, 40]):
        crowd = np.repeat(places, 150)
        points = Points(np.concatenate([u, u[crowd]]), np.concatenate([v, v[crowd]]),
                        np.concatenate([3.6 * np.exp(0.05 * rng.standard_normal(48)),
                                        np.full(len(crowd), 0.2)]))
        order = rng.permutation(len(points.z))
        scales = Follower()
        mixed = Points(*(values[order] for values in points))
        found = scales.adjust(0.0, mixed, EVEN, None, WHOLE)
        assert found.scale == pytest.approx(1.2, rel=0.05)
        assert not scales.state.condition
        assert scales.state.patches == 48
        assert scales.state.agreeing_fraction > 0.8


@pytest.mark.parametrize(('factor', 'unusual'), [
    (0.06, True), (0.3, True), (0.4, False), (1.0, False), (2.5, False), (3.5, True), (11, True)])
def test_a_scale_that_nobody_expects_is_marked(factor, unusual):
    scales = Follower()
    assert not scales.state.is_unusual
    scales.adjust(0.0, two_walls(factor), FLAT, None, WHOLE)
    assert scales.state.anchored
    assert scales.state.is_unusual is unusual
    assert f'scale {scales.state.scale:.3g}' in scales.state.agreement
