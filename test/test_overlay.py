# SPDX-License-Identifier: Apache-2.0
"""Words painted on an image: the right bars at the right places, whatever the image's shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from depthclip_ros.core import DepthConfig
from depthclip_ros.core.anchor import Adjustment
from depthclip_ros.core.errors import ImageError
from depthclip_ros.core.prediction import DepthPrediction
from depthclip_ros.core.scenes import Scene
from depthclip_ros.drawing.color import bins_scale, colorize
from depthclip_ros.drawing.overlay import depth_text, draw, photo_size, scene_text, weights_text

CONFIG = DepthConfig(tokens=('near', 'middle', 'far'), bins=(1.0, 2.0, 4.0))
COLORS = colorize(np.array([CONFIG.bins]), bins_scale(CONFIG.depth_span))[0]


def answer(height=480, width=640, grid=(6, 8), *, words=3):
    """A prediction in which every patch is sure of the first word, but for that at 2, 3."""
    weights = np.zeros((words, *grid), np.float32)
    weights[0] = 1.0
    weights[:, 2, 3] = 0.0
    weights[-1, 2, 3] = 1.0
    spread = np.full(grid, 0.25, np.float32)
    patches = np.full(grid, 1.0, np.float32)
    patches[2, 3] = 4.0
    return DepthPrediction(
        np.full((height, width), 1.5, np.float32), patches, weights, weights, spread,
        (height, width), 'centered')


def drawn(prediction, *given, config=CONFIG):
    return draw(np.zeros((*prediction.image_size, 3), np.uint8), prediction, config, *given)


def painted(picture, color):
    """Where a colour is, as rows and columns."""
    return np.argwhere((picture == color).all(axis=2))


def test_each_chart_has_the_bars_of_its_own_patch():
    photo = drawn(answer())[:576, :768]
    far = painted(photo, COLORS[2])
    patch = 96  # pixels
    assert {tuple(p) for p in far // patch} == {(2, 3)}
    near = {tuple(p) for p in painted(photo, COLORS[0]) // patch}
    assert near == set(np.ndindex(6, 8)) - {(2, 3)}
    # The last of three columns, from the chart's lower edge to its upper.
    assert np.ptp(far[:, 0]) > 0.35 * patch
    assert (far[:, 1] % patch).min() > 0.5 * patch
    assert not len(painted(photo, COLORS[1]))


def test_a_patch_that_is_looked_at_is_marked_and_its_words_are_listed():
    plain, looked = (drawn(answer(), spot) for spot in (None, (2, 3)))
    changed = np.argwhere((plain[:576, :768] != looked[:576, :768]).any(axis=2))
    assert changed.min(axis=0) == pytest.approx([2 * 96, 3 * 96], abs=4)
    assert changed.max(axis=0) == pytest.approx([3 * 96, 4 * 96], abs=4)
    # Beside the image: one full bar, of the word that answers there alone.
    bars = [len(painted(looked[:, 768:], color)) for color in COLORS]
    assert max(bars[:2]) < 50  # that much is in the scale
    assert bars[2] > 500
    warned = drawn(answer(), (2, 3), (), 'untrained')  # which covers nothing
    np.testing.assert_array_equal(warned[-len(looked):], looked)
    assert len(painted(warned[:-len(looked)], (40, 40, 200)))


def test_most_of_the_picture_stays_visible():
    for size in ((480, 640), (640, 480), (4000, 200), (200, 4000)):
        height, width = photo_size(*size)
        photo = drawn(answer(*size, (24, 24)))[:height, :width]
        assert (photo == 0).all(axis=2).mean() > 0.5
        assert min(height, width) >= 50


def test_an_anchor_changes_no_colour():
    """Else a live topic would flicker with its scale."""
    plain, anchored = (drawn(replace(answer(), adjustment=Adjustment(scale)))[280:380, 780:1080]
                       for scale in (1.0, 1.3))
    np.testing.assert_array_equal(plain, anchored)  # the depth beside the image


def test_metres_are_those_of_the_image():
    """The focal length is in the colours and in the words."""
    prediction = replace(answer(), focal_ratio=2.0, patch_stddev=np.full((6, 8), 0.5, np.float32))
    assert prediction.word_depths(CONFIG) == [2.0, 4.0, 8.0]
    assert len(painted(drawn(prediction, (2, 3))[:, 768:], COLORS[2])) > 500  # the bar
    assert depth_text(prediction, 2, 3) == '4.00 m ± 0.50 m\n(spread 0.25 m)'
    assert weights_text(prediction, 2, 3, CONFIG.tokens) == 'far 100%, near 0%, middle 0%'
    assert scene_text(prediction) == ''
    seen = Scene(('hall', 'office'), np.array([0.2, 0.8], np.float32), 0.0, 'office')
    assert scene_text(replace(prediction, scene=seen)) == 'scene: office (80%)'
    prediction.patch_depth[2, 3] = np.nan
    assert depth_text(prediction, 2, 3).startswith('no depth ± ')


@pytest.mark.parametrize(('size', 'grid', 'words'), [
    ((1, 1), (1, 1), 2), ((1, 5000), (3, 4), 3), ((3000, 2), (7, 7), 100),
    ((61, 47), (24, 24), 400)])
def test_any_shape_and_number_of_words(size, grid, words):
    config = CONFIG.replace(tokens=[f'wörd {k} ' + 9 * 'x' for k in range(words)],
                            bins=[0.1 * (k + 1) for k in range(words)])
    whole = answer(*size, (24, 24), words=words)
    prediction = replace(
        whole, **{name: getattr(whole, name)[..., :grid[0], :grid[1]]
                  for name in ('patch_depth', 'weights', 'logits', 'spread')})
    prediction.patch_depth[:] = np.resize([np.nan, np.inf, 1.0], grid)
    prediction.depth[:] = np.nan
    for spot in (None, (0, 0)):
        picture = drawn(prediction, spot, ['line'] * 3, 'warning', config=config)
        assert picture.dtype == np.uint8
        assert 200 < picture.shape[0] < 1500


def test_patch_of_a_place():
    whole = answer()
    for place, patch in (((-0.5, -0.5), (0, 0)), ((79.49, 0), (0, 0)), ((79.5, 0), (0, 1)),
                         ((639.49, 479.49), (5, 7))):
        assert whole.patch_at(*place) == patch
    for place in ((639.5, 0), (-0.6, 0), (0, 480), (float('nan'), 0)):
        with pytest.raises(ImageError, match='outside') as error:
            whole.patch_at(*place)
        assert error.value.condition == 'outside the image'
