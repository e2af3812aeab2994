# SPDX-License-Identifier: Apache-2.0
"""Colours, scales and sheets."""

from __future__ import annotations

import numpy as np
import pytest

from depthclip_ros import color

NEAR, FAR = color.colorize(np.array([[1.0, 3.0]], np.float32), 1.0, 3.0)[0]
IMAGE = np.full((120, 160, 3), (10, 200, 30), np.uint8)


def test_near_is_red_far_is_blue_and_no_depth_is_black():
    """Beyond the scale is the colour of its end, whatever else is in the picture."""
    depth = np.array([[np.nan, -np.inf, 0.2, 1.0, 2.0, 3.0, 90.0, np.inf]])
    for kind in (np.float32, np.float64):
        given = depth.astype(kind)
        picture = color.colorize(given, 1.0, 3.0)
        assert (picture.dtype, picture.shape) == (np.uint8, (1, 8, 3))
        assert (picture[0, 0] == 0).all()
        assert (picture[0, 1:4] == NEAR).all()
        assert (picture[0, 5:] == FAR).all()
        np.testing.assert_array_equal(given, depth.astype(kind))
        assert picture[0, 4, 1] > 200  # turbo's middle is green
    assert int(NEAR[2]) > int(NEAR[0]) + 50
    assert FAR[0] > FAR[2]
    for low, high in ((3.0, 1.0), (2.0, 2.0), (float('nan'), 2.0)):
        with pytest.raises(ValueError, match='low < high'):
            color.colorize(depth, low, high)


@pytest.mark.parametrize(('low', 'high', 'height', 'ticks'), [
    (1.0, 3.0, 240, '1 1.5 2 2.5 3'), (0.5, 10.0, 200, '2 4 6 8 10'),
    (1.0, 80.0, 240, '20 40 60 80'), (0.02, 0.05, 120, '0.02 0.03 0.04 0.05'),
    (1.0, 3.0, 4, '1 2 3')])
def test_the_bar_has_the_near_end_at_the_bottom_and_round_ticks(
        low, high, height, ticks, monkeypatch):
    written = []
    monkeypatch.setattr(color, 'put_text', lambda _, text, *__: written.append(text))
    bar = color.color_bar(low, high, height)
    assert len(bar) == height
    margin = min(12, height // 4)
    assert (bar[-1 - margin, 3] == NEAR).all()
    assert (bar[margin, 3] == FAR).all()
    assert written == [f'{tick} m' for tick in ticks.split()]


def test_image_and_depth_stand_side_by_side_and_nothing_hides_them():
    depth = np.full((12, 16), 1.0, np.float32)  # any size
    picture = color.side_by_side(depth, 1.0, 3.0, IMAGE)
    assert picture.shape[0] == 120
    assert (picture[:, :160] == IMAGE).all()
    assert (picture[:, 168:328] == NEAR).all()
    full = color.side_by_side(depth, 1.0, 3.0, IMAGE, 'frame 1', color.UNTRAINED)
    top = color.WARNING_HEIGHT
    assert (full[top:top + 120] == picture).all()
    assert (full[0, 5] == color.WARNING).all()
    assert (full[:top].min(axis=-1) > 150).any()  # letters
    assert full[top + 120:].max() > 150


def test_any_text_can_be_written():
    for text in ('latin\udce9', '\ud800', 'new\nline'):
        sheet = color.contact_sheet([np.zeros((48, 64, 3), np.uint8)], text)
        assert (sheet[:36] == color.FOREGROUND).all(axis=2).any()


def test_what_is_written_in_place_covers_only_an_edge():
    picture = np.zeros((100, 300, 3), np.uint8)
    color.write_warning(picture, color.UNTRAINED)
    color.write_note(picture, 'note')
    assert (picture[0, 5] == color.WARNING).all()
    assert (picture[-1, 250] == color.BACKGROUND).all()
    assert (picture[color.WARNING_HEIGHT:80] == 0).all()


@pytest.mark.parametrize('count', [1, 5])
def test_a_contact_sheet_holds_every_picture(count):
    pictures = [np.full((60, 140, 3), 40 * (i + 1), np.uint8) for i in range(count)]
    sheet = color.contact_sheet(pictures, 'title', width=400)
    assert sheet.shape[1] == 400
    for i in range(count):
        assert (sheet == 40 * (i + 1)).all(axis=-1).sum() > 1000
