# SPDX-License-Identifier: Apache-2.0
"""The camera's focal length: what it makes of depth."""

from __future__ import annotations

import dataclasses

import clip_standin
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.camera import CameraModel, focal_ratio
from depthclip_ros.core.errors import CameraInfoError
from depthclip_ros.core.estimator import Adjustment
from depthclip_ros.sim import SimCamera
from depthclip_ros.sim.world import calibration
from depthclip_ros.sources.camera_info import CameraCalibration

SIZE = 96, 128


@pytest.fixture(scope='module')
def estimator():
    config = DepthConfig(backbone='auto', input_height=96, input_width=128, reference_focal=0.8)
    return DepthEstimator(config, clip_standin.tiny_state_dict(), 'cpu')


def camera(ratio, size=SIZE):
    return CameraModel.pinhole(size[1], size[0], 0.8 * ratio * size[1])


def test_the_focal_length_is_in_widths_of_the_image():
    own = CameraModel.pinhole(640, 480, 510.0, 519.0, 325.6, 253.7)
    assert own.focal_length() == pytest.approx(519 / 640, rel=1e-9)
    assert own.scaled(320, 240).focal_length() == pytest.approx(519 / 640, rel=1e-9)


def lens(*distortion):
    sim = SimCamera(distortion=distortion)
    plain = CameraModel.pinhole(640, 480, sim.fx, sim.fy, sim.cx, sim.cy)
    return sim, dataclasses.replace(
        plain, D=np.array(distortion), distortion_model='plumb_bob')


@pytest.mark.parametrize('distortion', [
    (-0.25, 0.06, 0.001, -0.001, 0.0), (0.2, -0.03, 0.0, 0.0, 0.0)])
def test_distortion_counts_as_it_moves_things_on_average(distortion):
    sim, model = lens(*distortion)
    u, v = np.meshgrid(np.arange(640.0), np.arange(480.0))
    seen = (u - sim.cx) / sim.fx, (v - sim.cy) / sim.fy
    moved = np.mean(np.hypot(*seen) / np.hypot(*sim.undistort(*seen)))
    assert model.focal_length() == pytest.approx(moved * sim.fy / 640, rel=2e-3)
    assert abs(moved - 1) > 0.03


# What the network sees of a camera of (width, height) with a focal length of 100 pixels, and what
# that is in widths of its input of 128 x 96.
@pytest.mark.parametrize(('size', 'expected'), [
    ((160, 120), 100 / 160),
    ((320, 120), 100 / 160),  # squeezed across, as it is down
    ((160, 240), 50 / 160),
])
def test_the_ratio_is_that_of_what_the_network_sees(size, expected):
    width, height = size
    seen = CameraModel.pinhole(width, height, 100.0)
    assert focal_ratio(0.5, seen, (height, width), SIZE) \
        == pytest.approx(expected / 0.5, rel=1e-9)


@pytest.mark.parametrize('focal', [0.5, 40_000.0])
def test_a_focal_length_that_hardly_any_lens_has_does_not_count(focal):
    camera = CameraModel.pinhole(160, 120, focal)
    with pytest.raises(CameraInfoError, match='reference_focal') as error:
        focal_ratio(0.5, camera, (120, 160), SIZE)
    assert error.value.condition == 'unlikely focal length'


@settings(max_examples=40, deadline=None)
@given(
    focal=st.floats(100, 2000), scale=st.sampled_from([0.25, 0.5, 2.0]),
    reference=st.floats(0.1, 10),
    size=st.tuples(st.integers(24, 200), st.integers(24, 200)),
    k1=st.sampled_from([0.0, -0.2, 0.1]))
def test_resizing_changes_nothing_and_the_ratio_is_in_proportion(
        focal, scale, reference, size, k1):
    """Twice the focal length shows things twice as large; of the image's size nothing depends."""
    width, height = 8 * size[0], 8 * size[1]
    assume(not k1 or focal > 0.7 * max(width, height))  # wider, its polynomial folds back
    plain = CameraModel.pinhole(width, height, focal)
    model = dataclasses.replace(
        plain, D=np.array([k1, 0, 0, 0, 0]) if k1 else plain.D,
        distortion_model='plumb_bob' if k1 else '')

    def ratio(camera, reference):
        return focal_ratio(reference, camera, (camera.height, camera.width), SIZE)

    try:
        found = ratio(model, reference)
    except CameraInfoError:  # a lens of no ray, or too long a one
        assume(False)
    assume(0.1 < found < 10.0)
    small = model.scaled(round(width * scale), round(height * scale))
    assert ratio(small, reference) == pytest.approx(found, rel=0.03)
    assert ratio(model, 2 * reference) == pytest.approx(found / 2, rel=1e-9)
    if not k1:
        twice = CameraModel.pinhole(width, height, 2 * focal)
        assert ratio(twice, reference) == pytest.approx(2 * found, rel=1e-9)


def test_binning_and_region_of_interest_are_of_the_camera_that_drivers_publish():
    """Half the pixels are half the focal length, and a third of the width is three times of it."""
    def info(**changes):
        return camera_info(Header(), 640, 480, k=(500.0, 500.0, 320.0, 240.0), **changes)

    def ratio(message, rectified=False):
        seen = CameraModel.from_info(message, rectified)
        return focal_ratio(1.0, seen, (seen.height, seen.width), (480, 640))

    Header = pytest.importorskip('std_msgs.msg').Header
    from ros_harness import camera_info
    message = info()
    assert ratio(message) == pytest.approx(500 / 640)
    message.binning_x = message.binning_y = 2
    assert ratio(message) == pytest.approx(500 / 640)
    message.roi.x_offset, message.roi.y_offset = 160, 120
    message.roi.width, message.roi.height = 320, 240
    assert ratio(message) == pytest.approx(2 * 500 / 640)
    rectified = info()
    rectified.p[0] = rectified.p[5] = 400.0
    assert ratio(rectified, rectified=True) == pytest.approx(400 / 640)
    assert ratio(rectified) == pytest.approx(500 / 640)


def test_a_lens_is_looked_at_once(monkeypatch):
    """It takes milliseconds, and is wanted for every image."""
    _, model = lens(-0.25, 0.06, 0.001, -0.001, 0.0)
    looked = []
    original = CameraModel.focal_length
    monkeypatch.setattr(CameraModel, 'focal_length',
                        lambda *a: looked.append(1) or original(*a))
    for _ in range(3):
        focal_ratio(0.8, model, (480, 640), SIZE)
    assert len(looked) == 1


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
    (patches, stddev, image, upsampling), = seen
    np.testing.assert_array_equal(patches, plain[1].patch_depth)
    assert (stddev, image, upsampling) == (None, (96, 128), 'centered')
    np.testing.assert_array_equal(found[0].depth, plain[0].depth)
    np.testing.assert_allclose(found[1].depth, 3 * plain[1].depth, rtol=1e-6)
    assert found[1].adjustment == Adjustment(3.0, 2.0)
    assert found[1].stddev() is None


# Views of rooms, and by how much less their depth errs with the focal length: bounds between what
# is found (0.50, 0.65, 0.94, 0.75) and 1, far from either beside what processors differ by.
VIEWS = {
    '90 degrees': ((320, 240), 90.0, (0.0,) * 5, 0.6),
    '50 degrees': ((320, 240), 50.0, (0.0,) * 5, 0.75),
    'barrel': ((320, 240), 63.33, (-0.35, 0.12, 0.0, 0.0, -0.018), 0.97),
    'stretched': ((320, 180), 90.0, (0.0,) * 5, 0.9),
}


@pytest.mark.parametrize('view', VIEWS)
def test_depth_of_rendered_views_is_nearer_to_the_truth(demo_estimator, view):
    from depthclip_ros.sim import KINDS, Scene, render, trajectory
    (width, height), fov, distortion, at_most = VIEWS[view]
    pinhole = CameraCalibration.from_fov(width, height, fov)
    lens = SimCamera(width, height, *(pinhole.k[i] for i in (0, 4, 2, 5)), distortion)
    model = calibration(lens).model()
    errors = []
    for seed in range(30000, 30010):
        scene = Scene.generate(KINDS[seed % 5], seed)
        frame = render(scene, lens, trajectory(scene, seed).pose(float(seed % 23)))
        found = demo_estimator.predict(frame.rgb, intrinsics=model)
        errors.append([np.sqrt(((found.depth / ratio - frame.depth) ** 2).mean())
                       for ratio in (found.focal_ratio, 1.0)])
    without, counted = np.mean(errors, axis=0)
    assert counted < at_most * without, (without, counted)
