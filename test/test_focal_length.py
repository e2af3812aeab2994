# SPDX-License-Identifier: Apache-2.0
"""The camera's focal length: what it makes of depth."""

from __future__ import annotations

import math

import clip_standin
import numpy as np
import pytest

from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.errors import CameraInfoError
from depthclip_ros.core.estimator import Adjustment
from depthclip_ros.core.geometry import CameraModel
from depthclip_ros.core.window import Window
from depthclip_ros.sim import SimCamera

SIZE = 96, 128


@pytest.fixture(scope='module')
def estimator():
    config = DepthConfig(input_height=96, input_width=128, reference_focal=0.8)
    return DepthEstimator(config, clip_standin.state_dict(), 'cpu')


def camera(ratio, size=SIZE):
    return CameraModel.pinhole(size[1], size[0], 0.8 * ratio * size[1])


def test_the_focal_length_is_in_widths_of_the_window():
    own = CameraModel.pinhole(640, 480, 518.86, 519.47, 325.6, 253.7)
    assert own.focal_length() == pytest.approx(518.86 / 640, rel=1e-9)
    assert own.focal_length(Window(80, 0, 480, 480)) == pytest.approx(518.86 / 480, rel=1e-9)
    assert own.focal_length(Window(-80, 0, 800, 480)) == pytest.approx(518.86 / 800, rel=1e-9)
    assert own.scaled(320, 240).focal_length() == pytest.approx(518.86 / 640, rel=1e-9)
    assert math.isnan(own.focal_length(Window(700, 0, 100, 100)))


def test_distortion_counts_as_it_enlarges_on_average():
    sim = SimCamera(distortion=(-0.25, 0.06, 0.001, -0.001, 0.0))
    plain = CameraModel.pinhole(640, 480, sim.fx, sim.fy, sim.cx, sim.cy)
    model = CameraModel(640, 480, plain.K, np.array(sim.distortion), 'plumb_bob', plain.R, plain.P)
    u, v = np.meshgrid(np.arange(-0.5, 640.0), np.linspace(-0.5, 479.5, 9))
    x, _ = sim.undistort((u - sim.cx) / sim.fx, (v - sim.cy) / sim.fy)
    assert model.focal_length() == pytest.approx((1 / np.diff(x, axis=1)).mean() / 640, rel=2e-3)
    assert 0.7 < model.focal_length() / plain.focal_length() < 0.99


def test_depth_is_in_proportion_to_the_focal_length(estimator):
    images = [clip_standin.synthetic_rgb(i, *SIZE) for i in range(3)]
    plain = estimator.predict(images)
    found = estimator.predict(images, intrinsics=[camera(0.5), None, camera(2.0)])
    for before, after, ratio in zip(plain, found, (0.5, 1.0, 2.0), strict=True):
        assert (before.focal_ratio, after.focal_ratio) == (1.0, pytest.approx(ratio))
        for name in ('depth', 'patch_depth', 'spread'):
            np.testing.assert_allclose(
                getattr(after, name), ratio * getattr(before, name), rtol=1e-5)
        np.testing.assert_array_equal(after.weights, before.weights)
    np.testing.assert_array_equal(found[1].depth, plain[1].depth)


def test_one_camera_serves_a_whole_batch_and_zero_turns_it_off(estimator):
    images = [clip_standin.synthetic_rgb(i, *SIZE) for i in range(2)]
    for found in estimator.predict(images, intrinsics=camera(0.5)):
        assert found.focal_ratio == pytest.approx(0.5)
    config = estimator.config
    try:
        estimator.reconfigure(config.replace(reference_focal=0.0))
        assert estimator.predict(images[0], intrinsics=camera(0.5)).focal_ratio == 1.0
    finally:
        estimator.reconfigure(config)


def test_a_camera_of_another_size_is_refused(estimator):
    with pytest.raises(CameraInfoError, match='64x48'):
        estimator.predict(clip_standin.synthetic_rgb(0, *SIZE), intrinsics=camera(1, (48, 64)))


def test_an_anchor_sees_the_patches_and_scales_them(estimator):
    seen = []

    def anchor(*values):
        seen.append(values)
        return Adjustment(3.0, 2.0)
    images = [clip_standin.synthetic_rgb(i, *SIZE) for i in range(2)]
    plain = estimator.predict(images, intrinsics=camera(0.5))
    found = estimator.predict(images, intrinsics=camera(0.5), anchors=[None, anchor])
    (patches, stddev, window, size), = seen
    np.testing.assert_array_equal(patches, plain[1].patch_depth)
    assert (stddev, window, size) == (None, (0, 0, 128, 96), SIZE)
    np.testing.assert_array_equal(found[0].depth, plain[0].depth)
    np.testing.assert_allclose(found[1].depth, 3 * plain[1].depth, rtol=1e-6)
    assert found[1].adjustment == (3.0, 2.0)
    assert found[1].stddev() is None
