# SPDX-License-Identifier: Apache-2.0
"""Depth is where it was seen, and only there: upsampling, aspect ratio and range in `predict`."""

from __future__ import annotations

import clip_standin
import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from depthclip_ros.core import DepthConfig, DepthEstimator

CONFIG = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
FITS = ('stretch', 'crop', 'letterbox')
NEAR, FAR = CONFIG.bins[0], CONFIG.bins[-1]
STRIDE = 8  # of the network that is looked through below


@pytest.fixture(scope='module')
def real(tiny_weights, cache):
    return DepthEstimator(CONFIG, tiny_weights, 'cpu', cache_dir=cache, num_threads=1)


@pytest.fixture
def estimator(real):
    yield real
    real.reconfigure(CONFIG)


@pytest.fixture
def bright_is_far(estimator, monkeypatch):
    """An estimator that says near where a patch is dark, far where it is bright.

    Of what is the mean colour, as padding is, it says nothing, and that is NaN where it is most.
    """
    text = torch.from_numpy(estimator.text_features)

    def encode(batch):
        brightness = batch.mean(dim=1, keepdim=True)
        padding = avg_pool2d((brightness.abs() < 0.02).float(), STRIDE)
        far = avg_pool2d((brightness > 0.5).float(), STRIDE) / (1 - padding)
        features = text[0, :, None, None] * (1 - far) + text[-1, :, None, None] * far
        features = features.masked_fill(padding > 0.5, np.nan)
        return features, features

    monkeypatch.setattr(estimator._encoder, 'maps', encode)
    return estimator


def reconfigure(estimator, **changes):
    estimator.reconfigure(CONFIG.replace(**changes))
    return estimator


def test_depth_at_a_patch_s_centre_is_the_patch_s(estimator):
    """The picture and the cloud (which is made of patch_depth) agree."""
    assert estimator.config.upsampling == 'centered'
    image = clip_standin.synthetic_rgb(0, 60, 70)
    h, w = estimator.grid
    prediction = estimator.predict(image, (5 * h, 9 * w))  # centres are pixels'
    np.testing.assert_allclose(
        prediction.depth[2::5, 4::9], prediction.patch_depth, rtol=0, atol=1e-6)
    assert prediction.patch_depth.std() > 0.01
    aligned = reconfigure(estimator, upsampling='bilinear').predict(image, (5 * h, 9 * w))
    assert abs(aligned.depth[2::5, 4::9] - aligned.patch_depth).max() > 0.01


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize(('height', 'width'), [
    (96, 128), (360, 640), (225, 600), (601, 333)])
@pytest.mark.parametrize('upsampling', ['centered', 'patch'])
def test_a_landmark_is_where_it_is_in_the_picture(
        bright_is_far, fit, height, width, upsampling):
    """A bright lower right quarter: far there, near elsewhere, none where nothing was seen."""
    image = np.full((height, width, 3), 30, np.uint8)
    image[height // 2:, width // 2:] = 250
    estimator = reconfigure(
        bright_is_far, input_fit=fit, upsampling=upsampling, temperature=0.01)
    prediction = estimator.predict(image)
    x, y, across, down = prediction.window
    h, w = prediction.patch_depth.shape
    v, u = np.mgrid[:height, :width] + 0.5
    # Beyond a patch from the quarter's edges, and from the window's, there can be no doubt.
    tall, wide = down / h, across / w
    far = (v > height / 2 + tall) & (u > width / 2 + wide)
    near = (v < height / 2 - tall) | (u < width / 2 - wide)
    seen = (u > x) & (u < x + across) & (v > y) & (v < y + down)
    border = ((v < tall / 2) | (v > height - tall / 2) | (u < wide / 2) | (u > width - wide / 2)
              if fit == 'letterbox' else np.zeros_like(seen))
    depth = prediction.depth
    assert depth.shape == (height, width)
    assert np.isnan(depth[~seen]).all()
    assert np.isfinite(depth[seen & ~border]).all()
    for where, metres in ((near, NEAR), (far, FAR)):
        values = depth[where & seen & ~border]
        assert values.size
        np.testing.assert_allclose(values, metres, atol=1e-3)
        # The last rows and columns may be of patches that show more padding: none, never another.
        values = depth[where & border]
        np.testing.assert_allclose(values[np.isfinite(values)], metres, atol=1e-3)
    # The same of half the size.
    small = estimator.predict(image, (height // 2, width // 2)).depth
    values = small[far[::2, ::2][:height // 2, :width // 2] & np.isfinite(small)]
    assert values.size
    np.testing.assert_allclose(values, FAR, atol=1e-3)


def test_patches_of_padding_have_no_depth(bright_is_far):
    image = np.full((180, 640, 3), 30, np.uint8)
    prediction = reconfigure(bright_is_far, input_fit='letterbox').predict(image)
    # The image is in the network's rows 30 to 66: of row 3 of its patches, 24 to 32, a quarter.
    assert prediction.window == pytest.approx((0, -150, 640, 480))
    for patches in (prediction.patch_depth, prediction.spread):
        assert np.isnan(patches[[0, 1, 2, 3, 8, 9, 10, 11]]).all()
        assert np.isfinite(patches[4:8]).all()
    # The features of padding were NaN: it was neutral, and it leaked nowhere.
    assert np.isnan(prediction.weights[:, [0, 1, 2, 9, 10, 11]]).all()
    # Nor have the image's pixels in rows 3 and 8.
    finite = np.isfinite(prediction.depth)
    rows = np.arange(180)
    np.testing.assert_array_equal(
        finite, ((rows >= 10) & (rows < 170))[:, None].repeat(640, axis=1))


@pytest.mark.parametrize('size', [(96, 128), (192, 256), (97, 129)])
def test_the_networks_own_aspect_gives_the_same_bits_in_every_mode(estimator, size):
    image = clip_standin.synthetic_rgb(1, *size)
    expected = estimator.predict(image)
    for fit in FITS:
        found = reconfigure(estimator, input_fit=fit).predict(image)
        for name in ('depth', 'patch_depth', 'weights', 'logits', 'spread'):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.window == expected.window == (0, 0, size[1], size[0])


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('upsampling', ['centered', 'bilinear', 'patch'])
@pytest.mark.parametrize('size', [(1, 1), (1, 500), (500, 1), (3, 4000)])
@pytest.mark.filterwarnings('error::RuntimeWarning', 'error::UserWarning')
def test_the_thinnest_images(estimator, fit, upsampling, size):
    reconfigure(estimator, input_fit=fit, upsampling=upsampling)
    image = np.full((*size, 3), 99, np.uint8)
    for wanted in (None, (1, 1)):
        prediction = estimator.predict(image, wanted)
        assert prediction.depth.shape == (wanted or size)
        known = prediction.depth[np.isfinite(prediction.depth)]
        assert ((known >= NEAR) & (known <= FAR)).all()
        assert fit != 'stretch' or known.size == prediction.depth.size


def test_images_of_all_shapes_in_one_batch(estimator):
    """Sums in float32 may be made in another order for more images at once.

    That changes logits of up to 8 by some 1e-6 of that, and depth by less than 10 m of it.
    """
    images = [clip_standin.synthetic_rgb(i, *size)
              for i, size in enumerate([(96, 128), (90, 160), (160, 90)])]
    for fit in FITS:
        reconfigure(estimator, input_fit=fit, flip_average=True)
        for image, together in zip(images, estimator.predict(images), strict=True):
            alone = estimator.predict(image)
            assert together.window == alone.window
            np.testing.assert_allclose(together.depth, alone.depth, atol=1e-4)


def test_a_crop_is_what_its_pixels_alone_give(estimator):
    """Pixels lie up to 16 patches from the edge: float32 gives 1e-6 of the way between two."""
    image = clip_standin.synthetic_rgb(3, 96, 300)
    alone = estimator.predict(np.ascontiguousarray(image[:, 86:214]))
    cropped = reconfigure(estimator, input_fit='crop').predict(image)
    np.testing.assert_array_equal(cropped.patch_depth, alone.patch_depth)
    np.testing.assert_allclose(cropped.depth[:, 86:214], alone.depth, atol=1e-5)
    assert np.isnan(cropped.depth[:, :86]).all()
    assert np.isnan(cropped.depth[:, 214:]).all()


def test_the_range_is_kept_by_patches_and_pixels(estimator):
    image = clip_standin.synthetic_rgb(4, 90, 120)
    plain = estimator.predict(image)
    low, high = np.quantile(plain.patch_depth, (0.25, 0.75)).tolist()
    too_near, too_far = plain.patch_depth < low, plain.patch_depth > high
    assert too_near.any()
    assert too_far.any()
    for out_of_range, near, far in (
            ('clamp', low, high), ('nan', np.nan, np.nan), ('inf', -np.inf, np.inf)):
        limited = reconfigure(estimator, range_min=low, range_max=high,
                              out_of_range=out_of_range).predict(image)
        expected = np.where(too_near, near, np.where(too_far, far, plain.patch_depth))
        np.testing.assert_allclose(limited.patch_depth, expected, rtol=1e-6)
        finite = limited.depth[np.isfinite(limited.depth)]
        assert low * (1 - 1e-6) <= finite.min()
        assert finite.max() <= high * (1 + 1e-6)
        # Every pixel of such a patch, and no other.
        rows, columns = (np.arange(n) * count // n for n, count in zip((90, 120), (3, 4),
                                                                      strict=True))
        nearest = expected[rows[:, None], columns]
        holes = ~np.isfinite(nearest)
        np.testing.assert_array_equal(limited.depth[holes], nearest[holes].astype(np.float32))
        assert np.isfinite(limited.depth[~holes]).all()
        np.testing.assert_array_equal(limited.weights, plain.weights)
        np.testing.assert_array_equal(limited.spread, plain.spread)


def test_the_range_holds_for_the_mean_of_both_passes(estimator):
    """Not for each of them."""
    image = clip_standin.synthetic_rgb(4, 90, 120)
    plain = reconfigure(estimator, flip_average=True).predict(image).patch_depth
    middle = float(np.median(plain))
    limited = reconfigure(estimator, flip_average=True, range_max=middle).predict(image)
    np.testing.assert_array_equal(
        limited.patch_depth, np.where(plain > np.float32(middle), np.nan, plain))
