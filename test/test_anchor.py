# SPDX-License-Identifier: Apache-2.0
"""The scale anchor: what points say, how it is followed, and how large errors are said to be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthclip_ros.core import anchor
from depthclip_ros.core.anchor import Points, ScaleFilter, compare, sample, weigh
from depthclip_ros.core.projection import upsample

WHOLE = 240, 320
NOTHING = Points(np.empty(0), np.empty(0), np.empty(0))


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


def steps(adjustments):
    scales = np.array([adjustment.scale for adjustment in adjustments])
    return np.exp(np.abs(np.diff(np.log(scales))))


# Points beside patches --------------------------------------------------------------------------


@pytest.mark.parametrize('upsampling', ['centered', 'bilinear', 'patch'])
def test_points_see_the_depth_that_the_image_shows(upsampling):
    import torch
    rng = np.random.default_rng(3)
    patches = rng.uniform(1, 3, (6, 8)).astype(np.float32)
    u, v = np.meshgrid(np.arange(320.0), np.arange(240.0))
    shown = upsample(torch.from_numpy(patches)[None], WHOLE, upsampling)[0].numpy()
    found = sample(patches, WHOLE, u.ravel(), v.ravel(), upsampling)
    np.testing.assert_allclose(found.reshape(240, 320), shown, rtol=1e-4)


def test_what_is_no_depth_or_outside_is_left_out():
    patches = np.full((6, 8), 2.0, np.float32)
    patches[:, 4:] = np.nan
    u = np.array([10.0, 300.0, -1.0, 320.0, math.nan, 10.0, 10.0, 10.0, math.inf, 10.0])
    v = np.array([10.0, 10.0, 10.0, 10.0, 10.0, 240.0, 10.0, 10.0, 10.0, math.nan])
    z = np.array([4.0, 4.0, 4.0, 4.0, 4.0, 4.0, math.nan, -1.0, 4.0, 4.0])
    compared = compare(Points(u, v, z), patches, None, WHOLE)
    np.testing.assert_allclose(compared.log_ratios, [math.log(2.0)])
    assert len(compare(None, patches, patches, WHOLE).log_ratios) == 0


def test_many_points_are_taken_evenly():
    count = 100_000
    points = Points(np.linspace(0, 319, count), np.full(count, 100.0), np.full(count, 2.0))
    compared = compare(points, np.ones((6, 8), np.float32), None, WHOLE)
    # So what they cost has an end, too.
    assert anchor.MOST_POINTS / 2 < len(compared.log_ratios) <= anchor.MOST_POINTS
    assert {*compared.patches} == {*range(16, 24)}


@pytest.mark.parametrize('outliers', [0.0, 0.2, 0.4])
def test_outliers_hardly_move_the_scale(outliers):
    world = World()
    found = [weigh(compare(points, patches, None, WHOLE))
             for points, patches, _ in (world.look(outliers=outliers) for _ in range(200))]
    errors = np.array([e.log_scale - math.log(1.5) for e in found if not e.condition])
    assert len(errors) > 180
    assert abs(errors.mean()) < 0.02
    assert errors.std() < 0.09
    # The variance is honest.
    assert 0.6 < np.mean(errors ** 2 / [e.variance for e in found if not e.condition]) < 1.6


def test_outliers_on_one_side_do_not_either():
    """A scanner sees behind what the camera sees: always too far."""
    world, errors = World(), []
    for _ in range(200):
        points, patches, _ = world.look()
        points.z[:9] *= world.rng.uniform(1.8, 4.0, 9)
        errors.append(weigh(compare(points, patches, None, WHOLE)).log_scale - math.log(1.5))
    assert abs(np.median(errors)) < 0.03
    assert abs(np.mean(errors)) < 0.05


def test_points_that_say_two_things_are_contradictory():
    points, patches, _ = World(noise=0.02).look()
    points.z[:7] *= 3.0
    points.z[7:14] /= 3.0
    evidence = weigh(compare(points, patches, None, WHOLE))
    assert evidence.condition == anchor.CONTRADICTORY
    assert evidence.share < 0.5


def test_too_few_points_say_nothing():
    points, patches, _ = World().look(count=4)
    assert weigh(compare(points, patches, None, WHOLE)).condition == anchor.FEW_POINTS
    assert weigh(compare(points, patches, None, WHOLE), least=1).condition == ''
    assert weigh(compare(NOTHING, patches, None, WHOLE), least=1).condition == anchor.NO_POINTS


def test_points_in_one_patch_count_as_one():
    """A thousand beams on one patch know no more than that patch."""
    world = World()
    _, patches, _ = world.look()
    u = world.rng.uniform(50, 69, 1000)
    points = Points(u, np.full(1000, 60.0), np.full(1000, 2.0))
    assert weigh(compare(points, patches, None, WHOLE)).variance > 0.1 ** 2


# The filter -------------------------------------------------------------------------------------


@pytest.mark.parametrize('outliers', [0.0, 0.2, 0.4])
def test_the_scale_is_found_and_neither_drifts_nor_jumps(outliers):
    adjustments = World().drive(ScaleFilter(), 300, outliers=outliers)
    scales = np.array([adjustment.scale for adjustment in adjustments])
    assert abs(np.log(scales[:20] / 1.5)).max() < 0.3
    assert abs(np.log(scales[20:] / 1.5)).max() < 0.12
    assert steps(adjustments).max() <= anchor.MOST_STEP + 1e-9


def test_the_first_image_takes_the_scale_at_once_and_later_ones_step_by_step():
    world = World()
    assert world.drive(ScaleFilter(), 1)[0].scale == pytest.approx(1.5, rel=0.15)
    late = ScaleFilter()
    late.adjust(0.0, None, *world.look()[1:], WHOLE)
    adjustments = world.drive(late, 30, start=0.1)
    assert adjustments[0].scale == pytest.approx(anchor.MOST_STEP)
    assert steps(adjustments).max() <= anchor.MOST_STEP + 1e-9
    assert adjustments[-1].scale == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize('factor', [0.05, 4.8, 20.0])
def test_words_that_are_far_off_are_anchored_at_once_and_after_silence(factor):
    world, scales = World(noise=0.05), ScaleFilter(timeout=5.0)
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
    world, scales = World(), ScaleFilter(timeout=5.0)
    before = world.drive(scales, 50)[-1].scale
    variance = scales.state.variance
    gap = [scales.adjust(5 + i / 10, None, *world.look()[1:], WHOLE) for i in range(49)]
    assert {adjustment.scale for adjustment in gap} == {before}
    assert scales.state.variance > variance
    assert scales.state.anchored
    after = [scales.adjust(10 + i / 10, None, *world.look()[1:], WHOLE) for i in range(300)]
    assert not scales.state.anchored
    assert steps(after).max() <= anchor.MOST_STEP + 1e-9
    assert after[-1].scale == pytest.approx(1.0, abs=0.01)
    assert scales.state.variance == anchor.PRIOR_DEVIATION ** 2  # nothing is known any more
    assert scales.state.condition == anchor.NO_POINTS
    again = world.drive(scales, 30, start=40.0)
    assert scales.state.anchored
    assert steps(again).max() <= anchor.MOST_STEP + 1e-9
    assert again[-1].scale == pytest.approx(1.5, rel=0.1)


def test_contradictory_points_are_not_followed_and_let_go_in_the_end():
    world, scales = World(noise=0.02), ScaleFilter(timeout=2.0)
    before = world.drive(scales, 50)[-1].scale

    def contradict(image):
        points, patches, stddev = world.look()
        points.z[:7] *= 3.0
        points.z[7:14] /= 3.0
        adjustment = scales.adjust(5 + image / 10, points, patches, stddev, WHOLE)
        assert scales.state.condition == anchor.CONTRADICTORY
        return adjustment.scale
    assert {contradict(image) for image in range(18)} == {before}
    for image in range(18, 150):
        last = contradict(image)
    assert not scales.state.anchored
    assert last == pytest.approx(1.0, abs=0.02)


def test_one_wild_image_is_not_followed_but_many_that_agree_are():
    world, scales = World(noise=0.05), ScaleFilter()
    before = world.drive(scales, 100)[-1].scale
    wild = scales.adjust(10.0, *world.look(factor=4.0), WHOLE)
    assert scales.state.condition == anchor.JUMP
    assert wild.scale == before
    assert scales.state.anchored
    after = world.drive(scales, anchor.PATIENCE + 1, start=10.1, factor=4.0)
    assert scales.state.condition == ''
    after += world.drive(scales, 100, start=11.2, factor=4.0)
    assert steps(after).max() <= anchor.MOST_STEP + 1e-9
    assert after[-1].scale == pytest.approx(4.0, rel=0.05)
    assert scales.state.condition == ''


def test_a_sensor_of_one_beam_needs_time():
    world, scales = World(), ScaleFilter(least=1)
    adjustments = world.drive(scales, 200, count=1)
    assert steps(adjustments).max() <= anchor.MOST_STEP + 1e-9
    found = np.array([adjustment.scale for adjustment in adjustments[50:]])
    assert abs(np.log(found / 1.5)).mean() < 0.1


def test_time_that_goes_back_counts_as_none():
    world, scales = World(), ScaleFilter()
    world.drive(scales, 50, start=1000.0)
    for image in range(20):  # a bag that begins anew
        scales.adjust(image / 10, None, *world.look()[1:], WHOLE)
    assert scales.state.silent == pytest.approx(1.9)
    assert scales.state.anchored


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(
    st.floats(-1e9, 1e9), st.lists(st.tuples(numbers, numbers, numbers), max_size=12),
    st.sampled_from([None, 0.0, 0.2, math.nan]), st.sampled_from([1.0, 1e-30, 1e30, math.nan])),
    max_size=8), st.sampled_from([1, 5]))
def test_whatever_comes_scale_and_inflation_stay_numbers_and_steps_small(images, least):
    scales = ScaleFilter(least=least)
    adjustments = []
    for when, points, deviation, depth in images:
        patches = np.full((3, 4), depth, np.float32)
        with np.errstate(over='ignore'):
            stddev = None if deviation is None else patches * np.float32(deviation)
        given_points = Points(*np.array(points, np.float64).reshape(-1, 3).T)
        adjustments.append(scales.adjust(when, given_points, patches, stddev, WHOLE))
        state = scales.state
        assert 0.0 < state.variance <= anchor.PRIOR_DEVIATION ** 2 + 1e-12
        assert 0.009 < adjustments[-1].scale < 101.0
        assert 1 / 21 < adjustments[-1].inflation < 21
    assert (steps(adjustments) <= anchor.MOST_STEP + 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(0.3, 3.0), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.3]))
def test_the_scale_of_any_world_is_found(factor, seed, outliers):
    """Of 4500 worlds the scale's logarithm was off by 0.02 (one standard deviation)."""
    world = World(seed, factor)
    world.drive(scales := ScaleFilter(), 60, outliers=outliers)
    assert abs(math.log(scales.state.scale / factor)) < 0.15


def test_scale_of_depth_makes_no_other_difference():
    """Depth twice as large gives half the scale, and the same inflation, after the same prior."""
    found = []
    for unit in (1.0, 2.0):
        world, scales = World(factor=1.0 / unit), ScaleFilter()
        adjustments = world.drive(scales, 100)
        found.append((adjustments[-1].scale * unit, adjustments[-1].inflation))
    np.testing.assert_allclose(found[0], found[1], rtol=0.02)


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
    world, scales = World(noise=0.15), ScaleFilter()
    before = coverage(world, scales, 200, 0.0, believed=0.15)
    # Outliers that pass for errors count as misses: coverage is 0.92 to 0.93, not 0.9.
    assert abs(before[100:].mean() - 0.9) < 0.04
    world.noise, world.factor = 0.25, 1.8  # another height of the camera
    after = coverage(world, scales, 400, 20.0, believed=0.15)
    assert after[:5].mean() < 0.8
    assert abs(after[10:50].mean() - 0.9) < 0.04
    assert abs(after[200:].mean() - 0.9) < 0.04


def test_error_bars_follow_few_points_with_more_patience():
    def inflation(count):
        """After one image all of whose points miss by the same."""
        scales, half = ScaleFilter(least=1), count // 2
        signs = np.repeat([1.0, -1.0], half)
        points = Points(np.full(count, 19.5), np.full(count, 19.5), 2.0 * np.exp(0.3 * signs))
        patches = np.full((6, 8), 2.0, np.float32)
        scales.adjust(0.0, points, patches, 0.01 * patches, WHOLE)
        return scales.adjust(0.1, points, patches, 0.01 * patches, WHOLE).inflation

    assert 1.0 < inflation(2) < inflation(10) < inflation(100)


def test_error_bars_that_are_too_wide_shrink():
    world, scales = World(noise=0.15), ScaleFilter()
    held = coverage(world, scales, 400, 0.0, believed=0.4)
    assert held[:10].mean() > 0.99
    assert abs(held[200:].mean() - 0.9) < 0.03


def test_inflation_stays_where_nothing_tells_of_errors():
    world, scales = World(), ScaleFilter()
    for image in range(20):
        points, patches, _ = world.look()
        assert scales.adjust(image / 10, points, patches, None, WHOLE).inflation == 1.0
