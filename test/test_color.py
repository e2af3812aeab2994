# SPDX-License-Identifier: Apache-2.0
"""Colours, scales and sheets."""

from __future__ import annotations

import numpy as np
import pytest

from depthclip_ros import color

NEAR_AND_FAR = np.array([[1.0, 3.0]], np.float32)


def test_near_is_warm_and_far_is_cold():
    near, far = color.colorize(NEAR_AND_FAR, 1.0, 3.0)[0].astype(int)
    assert near[2] > near[0] + 50  # red over blue
    assert far[0] > far[2]
    middle = color.colorize(np.array([[2.0]], np.float32), 1.0, 3.0)[0, 0]
    assert middle[1] > 200  # turbo's middle is green


def test_no_depth_is_black_and_nothing_else_is():
    depth = np.array([[np.nan, 0.2, 1.0, 2.0, 3.0, 90.0, np.inf]], np.float32)
    picture = color.colorize(depth, 1.0, 3.0)
    assert picture.dtype == np.uint8
    assert picture.shape == (1, 7, 3)
    assert (picture[0, 0] == 0).all()
    assert (picture[0, 1:].max(axis=-1) > 0).all()


def test_beyond_the_scale_has_the_colour_of_its_end():
    picture = color.colorize(
        np.array([[-np.inf, 0.2, 1.0, 3.0, 90.0, np.inf]], np.float32), 1.0, 3.0)
    assert (picture[0, :3] == picture[0, 0]).all()
    assert (picture[0, 3:] == picture[0, 3]).all()
    assert (picture[0, 0] != picture[0, 3]).any()


def test_the_same_depth_has_the_same_colour_in_every_picture():
    lone = color.colorize(np.full((2, 2), 1.7, np.float32), 1.0, 3.0)
    among = color.colorize(np.array([[1.7, 2.9]], np.float64), 1.0, 3.0)
    assert (lone[0, 0] == among[0, 0]).all()


def test_the_input_is_left_alone():
    depth = np.array([[np.nan, 2.0]], np.float32)
    color.colorize(depth, 1.0, 3.0)
    assert np.isnan(depth[0, 0])
    assert depth[0, 1] == 2.0


@pytest.mark.parametrize(('low', 'high'), [(3.0, 1.0), (2.0, 2.0), (float('nan'), 2.0)])
def test_a_scale_without_extent_is_refused(low, high):
    with pytest.raises(ValueError, match='low < high'):
        color.colorize(NEAR_AND_FAR, low, high)


def test_depth_must_be_a_plane():
    with pytest.raises(ValueError, match=r'\(1, 2, 1\)'):
        color.colorize(NEAR_AND_FAR[..., None], 1.0, 3.0)


def test_the_bar_has_the_near_end_at_the_bottom():
    bar = color.color_bar(1.0, 3.0, 240)
    assert bar.shape[0] == 240
    near, far = color.colorize(NEAR_AND_FAR, 1.0, 3.0)[0]
    assert (bar[-13, 3] == near).all()
    assert (bar[12, 3] == far).all()


@pytest.mark.parametrize(('low', 'high', 'count', 'ticks'), [
    (1.0, 3.0, 5, [1.0, 1.5, 2.0, 2.5, 3.0]),
    (0.5, 10.0, 5, [2.0, 4.0, 6.0, 8.0, 10.0]),
    (1.0, 80.0, 6, [20.0, 40.0, 60.0, 80.0]),
    (0.02, 0.05, 3, [0.02, 0.03, 0.04, 0.05]),
])
def test_ticks_are_round_and_inside(low, high, count, ticks):
    assert color._ticks(low, high, count) == pytest.approx(ticks)


def test_side_by_side_shows_image_then_depth():
    rgb = np.full((120, 160, 3), (10, 200, 30), np.uint8)
    depth = np.full((12, 16), 1.0, np.float32)  # any size
    picture = color.side_by_side(rgb, depth, 1.0, 3.0)
    assert picture.shape[0] == 120
    assert (picture[:, :160] == rgb).all()
    near = color.colorize(NEAR_AND_FAR, 1.0, 3.0)[0, 0]
    assert (picture[:, 168:328] == near).all()
    assert color.side_by_side(rgb, depth, 1.0, 3.0, 'frame 1').shape[0] > 120


def test_the_warning_is_above_and_hides_nothing():
    rgb = np.full((120, 160, 3), (10, 200, 30), np.uint8)
    depth = np.full((120, 160), 2.0, np.float32)
    plain = color.side_by_side(rgb, depth, 1.0, 3.0)
    picture = color.side_by_side(rgb, depth, 1.0, 3.0, warning=color.UNTRAINED)
    assert (picture[-120:] == plain).all()
    stripe = picture[:-120]
    assert (stripe[0, 5] == color.WARNING).all()
    assert (stripe.min(axis=-1) > 150).any()  # letters


def test_a_warning_in_place_covers_only_the_top():
    picture = np.zeros((100, 300, 3), np.uint8)
    color.write_warning(picture, color.UNTRAINED)
    assert (picture[0, 5] == color.WARNING).all()
    assert (picture[color.WARNING_HEIGHT:] == 0).all()


def test_enlarge_makes_squares():
    picture = color.enlarge(NEAR_AND_FAR, 1.0, 3.0, 4)
    assert picture.shape == (4, 8, 3)
    assert (picture[:, :4] == picture[0, 0]).all()


@pytest.mark.parametrize('count', [1, 2, 5])
def test_contact_sheet_holds_every_picture(count):
    pictures = [np.full((60, 140, 3), 40 * (i + 1), np.uint8) for i in range(count)]
    sheet = color.contact_sheet(pictures, 'title', width=400)
    assert sheet.shape[1] == 400
    for i in range(count):
        assert (sheet == 40 * (i + 1)).all(axis=-1).sum() > 1000


def test_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match='at least one'):
        color.contact_sheet([])
