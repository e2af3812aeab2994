# SPDX-License-Identifier: Apache-2.0
"""Colours, scales and sheets."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from depthclip_ros.arguments import COLORMAPS
from depthclip_ros.cli.main import main
from depthclip_ros.drawing import color

SCALE = color.Scale(1.0, 3.0)
NEAR, FAR = color.colorize(np.array([[1.0, 3.0]], np.float32), SCALE)[0]
IMAGE = np.full((120, 160, 3), (10, 200, 30), np.uint8)


def ramp(scale):
    """Colours from the nearest to the farthest, as numbers that can be subtracted."""
    return color.colorize(np.geomspace(*scale[:2], 256)[:, None], scale)[:, 0].astype(int)


def difference(*colors):
    """CIE76: about 2 is a difference that one just sees."""
    lab = cv2.cvtColor(np.float32([[*colors]]) / 255, cv2.COLOR_BGR2LAB)[0]
    return float(np.linalg.norm(lab[0] - lab[1]))


def test_beyond_the_scale_is_the_colour_of_its_end_whatever_else_is_in_the_picture():
    depth = np.array([[np.nan, -np.inf, 0.2, 1.0, 2.0, 3.0, 90.0, np.inf]])
    for kind in (np.float32, np.float64):
        given = depth.astype(kind)
        picture = color.colorize(given, SCALE)
        assert (picture.dtype, picture.shape) == (np.uint8, (1, 8, 3))
        assert (picture[0, 0] == color.UNKNOWN).all()
        assert (picture[0, 1:4] == NEAR).all()
        assert (picture[0, 5:] == FAR).all()
        np.testing.assert_array_equal(given, depth.astype(kind))
    for low, high in ((3.0, 1.0), (2.0, 2.0), (float('nan'), 2.0), (0.0, 1.0)):
        with pytest.raises(ValueError, match='low < high'):
            color.colorize(depth, color.Scale(low, high))


@pytest.mark.parametrize('colormap', COLORMAPS)
def test_no_depth_is_no_colour_of_the_scale(colormap):
    assert min(difference(one, color.UNKNOWN)
               for one in ramp(SCALE._replace(colormap=colormap))) > 25


def test_a_room_shows_its_parts_and_equal_ratios_of_depth_are_equal_steps():
    """Within bins of 0.5 to 9 m, too; by default darker is farther, everywhere."""
    for scale, least in ((color.depth_scale([np.linspace(0.7, 2.1, 99)]), 60),
                         (color.bins_scale((0.5, 9.0)), 25)):
        near, far = color.colorize(np.array([[1.0, 2.0]]), scale)[0]
        assert difference(near, far) > least
    grey = cv2.cvtColor(np.uint8(ramp(SCALE))[None], cv2.COLOR_BGR2GRAY)[0].astype(int)
    assert (np.diff(grey) <= 0).all()
    assert np.ptp(grey) > 150
    assert SCALE.share(3 ** 0.5) == pytest.approx(0.5)
    middle, = cv2.applyColorMap(np.uint8([[128]]), cv2.COLORMAP_VIRIDIS)[0]
    assert difference(color.colorize(np.array([[3 ** 0.5]]), SCALE)[0, 0], middle) < 3


def test_a_live_scale_depends_on_bins_and_camera_and_that_of_a_run_on_nearly_all_depth():
    assert color.bins_scale((1.0, 3.0), 2.0, 'turbo') == (2.0, 6.0, 'turbo')
    assert color.bins_scale((2.0, 2.0))[:2] == (1.0, 4.0)
    depth = np.concatenate([np.full(100, np.nan), np.geomspace(1, 2, 1000), [90.0, np.inf]])
    assert color.depth_scale([depth])[:2] == pytest.approx((1.0, 2.0), rel=0.03)
    for nothing in (np.full(3, np.nan), np.full(3, 2.0)):
        color.colorize(nothing[None], color.depth_scale([nothing]))


@pytest.mark.parametrize(('low', 'high', 'height', 'median', 'labels'), [
    (1.0, 3.0, 240, 1.7, '1 1.5 1.7 2 3'), (0.5, 9.0, 200, 2.44, '0.5 0.7 1 1.5 2.44 5 9'),
    (1.0, 80.0, 240, 90.0, '1 2 3 5 10 20 30 50 80'),
    (0.66, 2.13, 200, 2.05, '0.66 1 1.5 2.13'), (1.0, 3.0, 4, float('nan'), '1 3')])
def test_the_bar_has_metres_at_its_ends_and_at_the_median(
        low, high, height, median, labels, monkeypatch):
    written = {}
    monkeypatch.setattr(
        color, 'put_text', lambda _, text, origin, *__, **___: written.update({text: origin[1]}))
    bar = color.color_bar(color.Scale(low, high), height, median)
    assert (bar[:, :5] == color.FOREGROUND).all(axis=2).any() == (low < median < high)  # its mark
    assert len(bar) == height
    margin = min(12, height // 4)
    assert (bar[-1 - margin, 3] == NEAR).all()
    assert (bar[margin, 3] == FAR).all()
    assert [*written] == [f'{label} m' for label in labels.split()]
    assert [*written.values()] == sorted(written.values(), reverse=True)  # the near at the bottom


def test_image_and_depth_stand_side_by_side_and_nothing_hides_them():
    depth = np.full((12, 16), 1.0, np.float32)  # any size
    picture = color.side_by_side(depth, SCALE, IMAGE)
    assert picture.shape[0] == 120
    assert (picture[:, :160] == IMAGE).all()
    assert (picture[:, 168:328] == NEAR).all()
    full = color.side_by_side(depth, SCALE, IMAGE, 'frame 1\ncalibrated', color.UNTRAINED)
    top = color.WARNING_HEIGHT
    assert (full[top:top + 120] == picture).all()
    assert (full[0, 5] == color.WARNING).all()
    assert (full[:top].min(axis=-1) > 150).any()  # letters
    assert all(full[first:first + 28].max() > 150 for first in (top + 120, top + 148))


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


def test_predict_paints_a_run_in_the_same_colours(picture, tmp_path):
    """In a scale of the run, or in the one that is asked for; patches have the image's size."""
    other = tmp_path / 'other.png'
    cv2.imwrite(str(other), cv2.imread(str(picture))[:90, ::-1])

    def painted(name, *options):
        assert main(['predict', str(picture), str(other), '--weights', 'demo',
                     '-o', str(tmp_path / name), *options]) == 0
        for image in (picture, other):
            stored = cv2.imread(str(tmp_path / name / f'{image.stem}_depth.png'), -1) / 1000
            shown = cv2.imread(str(tmp_path / name / f'{image.stem}_color.png'))
            patches = cv2.imread(str(tmp_path / name / f'{image.stem}_patches.png'))
            assert patches.shape == (*stored.shape, 3)
            yield stored, shown[:stored.shape[0], :stored.shape[1]]
    for stored, shown in painted('a', '--range', '1,2.5', '--colormap', 'turbo'):
        assert (shown == color.colorize(stored, color.Scale(1.0, 2.5, 'turbo'))).all()
    depths, colors = zip(*painted('b'), strict=True)
    by_depth = {}
    for metres, shown in zip(np.concatenate(depths, axis=None),
                             np.concatenate([c.reshape(-1, 3) for c in colors]), strict=True):
        by_depth.setdefault(metres, set()).add(tuple(shown))
    assert all(len(shown) == 1 for shown in by_depth.values())
    assert len(set().union(*by_depth.values())) > 200  # of 256: the whole map is used
    with pytest.raises(SystemExit):
        main(['predict', str(picture), '-o', str(tmp_path), '--range', '2,1'])
