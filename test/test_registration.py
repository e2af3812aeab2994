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
    """An estimator that says near where a patch is dark, far where it is bright."""
    text = torch.from_numpy(estimator.text_features)

    def encode(batch):
        far = avg_pool2d((batch.mean(dim=1, keepdim=True) > 0.5).float(), STRIDE)
        features = text[0, :, None, None] * (1 - far) + text[-1, :, None, None] * far
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


@pytest.mark.parametrize(('height', 'width'), [(96, 128), (360, 640), (601, 333)])
@pytest.mark.parametrize('upsampling', ['centered', 'patch'])
def test_a_landmark_is_where_it_is_in_the_picture(bright_is_far, height, width, upsampling):
    """A bright lower right quarter: far there, near elsewhere."""
    image = np.full((height, width, 3), 30, np.uint8)
    image[height // 2:, width // 2:] = 250
    estimator = reconfigure(bright_is_far, upsampling=upsampling, temperature=0.01)
    prediction = estimator.predict(image)
    assert prediction.depth.shape == (height, width)
    h, w = prediction.patch_depth.shape
    v, u = np.mgrid[:height, :width] + 0.5
    # Beyond a patch from the quarter's edges there can be no doubt.
    far = (v > height / 2 + height / h) & (u > width / 2 + width / w)
    near = (v < height / 2 - height / h) | (u < width / 2 - width / w)
    np.testing.assert_allclose(prediction.depth[near], NEAR, atol=1e-3)
    np.testing.assert_allclose(prediction.depth[far], FAR, atol=1e-3)
    small = estimator.predict(image, (height // 2, width // 2)).depth  # the same of half the size
    np.testing.assert_allclose(small[far[::2, ::2][:height // 2, :width // 2]], FAR, atol=1e-3)


@pytest.mark.parametrize('upsampling', ['centered', 'bilinear', 'patch'])
@pytest.mark.parametrize('size', [(1, 1), (1, 500), (500, 1), (3, 4000)])
@pytest.mark.filterwarnings('error::RuntimeWarning', 'error::UserWarning')
def test_the_thinnest_images(estimator, upsampling, size):
    reconfigure(estimator, upsampling=upsampling)
    for wanted in (None, (1, 1)):
        depth = estimator.predict(np.full((*size, 3), 99, np.uint8), wanted).depth
        assert depth.shape == (wanted or size)
        assert ((depth >= NEAR) & (depth <= FAR)).all()


def test_images_of_all_shapes_in_one_batch(estimator):
    """Sums in float32 may be made in another order for more images at once."""
    images = [clip_standin.synthetic_rgb(i, *size)
              for i, size in enumerate([(96, 128), (90, 160), (160, 90)])]
    reconfigure(estimator, flip_average=True)
    for image, together in zip(images, estimator.predict(images), strict=True):
        np.testing.assert_allclose(together.depth, estimator.predict(image).depth, atol=1e-4)


@pytest.mark.parametrize('flip', [False, True])
def test_the_range_is_kept_by_patches_and_pixels(estimator, flip):
    """Of both passes, it holds for their mean."""
    image = clip_standin.synthetic_rgb(4, 90, 120)
    plain = reconfigure(estimator, flip_average=flip).predict(image)
    low, high = np.quantile(plain.patch_depth, (0.25, 0.75)).tolist()
    for out_of_range, near, far in (
            ('clamp', low, high), ('nan', np.nan, np.nan), ('inf', -np.inf, np.inf)):
        limited = reconfigure(estimator, range_min=low, range_max=high, flip_average=flip,
                              out_of_range=out_of_range).predict(image)
        expected = np.where(plain.patch_depth < low, near,
                            np.where(plain.patch_depth > high, far, plain.patch_depth))
        np.testing.assert_allclose(limited.patch_depth, expected, rtol=1e-6)
        finite = limited.depth[np.isfinite(limited.depth)]
        assert low * (1 - 1e-6) <= finite.min() <= finite.max() <= high * (1 + 1e-6)
        # Every pixel of such a patch is a hole, and no other.
        rows, columns = (np.arange(n) * count // n for n, count in ((90, 3), (120, 4)))
        nearest = expected[rows[:, None], columns].astype(np.float32)
        np.testing.assert_array_equal(
            np.where(np.isfinite(limited.depth), 0, limited.depth),
            np.where(np.isfinite(nearest), 0, nearest))
        np.testing.assert_array_equal(limited.weights, plain.weights)
        np.testing.assert_array_equal(limited.spread, plain.spread)
