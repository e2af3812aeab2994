# SPDX-License-Identifier: Apache-2.0
"""Error bars as others see them: depth/stddev, the cloud's field, the gate; two real processes."""

from __future__ import annotations

import math

import pytest

pytest.importorskip('rclpy')

import numpy as np
from clip_standin import synthetic_rgb
from lifecycle_msgs.msg import State
from ros_harness import (
    INPUT_HEIGHT,
    INPUT_WIDTH,
    TEMPERATURE,
    Peer,
    camera_info,
    cloud_fields,
    depth_array,
    image,
    running,
    tiny_arguments,
)
from std_msgs.msg import Header

from depthclip_ros.core import CameraImage, DepthConfig, DepthEstimator
from depthclip_ros.core.calibration import (
    FITTED_SETTINGS,
    STDDEV_PREDICTORS,
    Calibration,
    CalibrationOrigin,
    empty_kernel,
)
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.drawing.color import UNKNOWN

HEIGHT, WIDTH = 120, 200
RGB = synthetic_rgb(5, HEIGHT, WIDTH)
CAMERA = CameraModel.from_info(camera_info(Header(), WIDTH, HEIGHT))
TOPICS = ('depth/image', 'depth/stddev', 'depth/image_color', 'points')
LIMITS = {'range_max': 2.27, 'out_of_range': 'inf', 'reference_focal': 0.0}


@pytest.fixture(scope='module')
def estimator(tiny_weights, cache):
    config = DepthConfig(backbone='auto', input_height=INPUT_HEIGHT, input_width=INPUT_WIDTH,
                         temperature=TEMPERATURE, **LIMITS)
    return DepthEstimator(config, tiny_weights, 'cpu', cache_dir=cache, num_threads=1)


@pytest.fixture(scope='module')
def calibrated(estimator, tmp_path_factory):
    """Configuration with a calibration that makes depth 5 % larger, surer at the image's top."""
    config = estimator.config
    spread = np.zeros(STDDEV_PREDICTORS, np.float32)
    spread[[0, 7]] = math.log(0.15), 1.0  # of one, and of a ray's y
    arrays = {
        **empty_kernel(estimator.encode([RGB]).trunk.shape[1]),
        'bias': np.float32(math.log(1.05)), 'spread': spread,
        'knots': np.float32([[0, 1], [0, 0]]),
        'rays': CAMERA.patch_rays(*estimator.grid)[..., :2],
        'bounds': np.float32([[-1, -1], [1, 1]])}
    origin = CalibrationOrigin(
        'a test', 'scale', 60, 10, estimator.weights.digest, estimator.weights.name, 1.0,
        {name: config.to_dict()[name] for name in FITTED_SETTINGS})
    arrays = {name: np.asarray(values, np.float32) for name, values in arrays.items()}
    path = Calibration(origin, arrays).save(tmp_path_factory.mktemp('calibration'), 'test')
    return config.replace(calibration=str(path))


@pytest.fixture(scope='module')
def running_peer(domain, cache, tiny_weights):
    with running(tiny_arguments(tiny_weights, **LIMITS), domain=domain, cache=cache) as node, \
            Peer(domain, listen=TOPICS, node=node) as peer:
        peer.ready(*TOPICS)
        yield peer


@pytest.fixture
def peer(running_peer):
    """The node has no calibration."""
    assert running_peer.put(together=True, calibration='', max_stddev=0.0) == ''
    return running_peer


@pytest.fixture
def peer_of_calibrated(peer, estimator, calibrated):
    """The node has the calibration, and so has the estimator here."""
    assert peer.put(calibration=calibrated.calibration) == ''
    ask(peer)  # it counts, and is told, from the next image on
    estimator.reconfigure(calibrated)
    return peer


def ask(peer):
    """One image with its camera_info; its depth and its cloud."""
    info = camera_info(peer.header(), WIDTH, HEIGHT)
    cloud = peer.ask(image(peer.header(), RGB, 'rgb8'), 'points', info=info)
    return peer.wait_stamp('depth/image', cloud.header.stamp), cloud


def test_without_a_calibration_nothing_is_published(peer):
    peer.bring(State.PRIMARY_STATE_UNCONFIGURED)
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    depths = []
    for _ in range(3):
        depth, cloud = ask(peer)
        depths.append(depth)
    assert list(cloud_fields(cloud)) == ['x', 'y', 'z', 'rgb']
    assert not any(peer.find('depth/stddev', depth.header.stamp) for depth in depths)
    assert peer.put(max_stddev=0.3) == '', 'it waits for one'
    np.testing.assert_array_equal(depth_array(ask(peer)[0]), depth_array(depth))


def test_standard_deviation_is_in_metres_and_known_where_depth_is(peer_of_calibrated, estimator):
    peer = peer_of_calibrated
    depth, cloud = ask(peer)
    stddev = peer.wait_stamp('depth/stddev', depth.header.stamp)
    assert (stddev.header, stddev.encoding) == (depth.header, '32FC1')
    found, metres = depth_array(stddev), depth_array(depth)
    expected = estimator.predict(CameraImage(RGB, CAMERA))
    np.testing.assert_array_equal(found, expected.stddev())
    known = np.isfinite(metres)
    assert 0.2 < known.mean() < 0.8
    np.testing.assert_array_equal(np.isfinite(found), known)
    assert np.isnan(found[~known]).all()
    shares = found[known] / metres[known]
    assert 0.09 < shares.min() <= shares.max() < 0.25  # 0.15 x exp(y of the ray)

    points = cloud_fields(cloud)
    assert list(points) == ['x', 'y', 'z', 'rgb', 'stddev']
    holes = np.isnan(points['z'])
    assert 0 < holes.sum() < holes.size
    np.testing.assert_array_equal(
        points['stddev'], np.where(holes, np.nan, expected.patch_stddev))
    np.testing.assert_array_equal(points['z'][~holes], expected.patch_depth[~holes])


def test_a_calibration_is_said_and_a_bad_one_refused_with_nothing_changed(
        peer_of_calibrated, calibrated):
    peer = peer_of_calibrated
    label = 'calibrated on a test, no longer zero-shot'
    peer.process.wait_for(f'Depth is {label}')
    _, values = peer.diagnostics('depth_node: model', lambda values: values['calibration'])
    assert values['calibration'] == label
    assert values['calibration sha256'][:16] in calibrated.calibration
    before, _ = ask(peer)
    assert 'cannot be read' in peer.put(calibration='/nowhere/x.safetensors')
    assert 'temperature is' in peer.put(temperature=2 * TEMPERATURE)
    after, _ = ask(peer)
    np.testing.assert_array_equal(depth_array(after), depth_array(before))


def test_depth_that_is_not_sure_enough_is_unknown_everywhere(peer_of_calibrated, estimator):
    peer = peer_of_calibrated
    stddev = estimator.predict(CameraImage(RGB, CAMERA)).patch_stddev
    limit = round(float(np.quantile(stddev, 0.6)), 3)
    assert peer.put(max_stddev=limit) == ''
    depth, cloud = ask(peer)
    found = depth_array(peer.wait_stamp('depth/stddev', depth.header.stamp))
    metres = depth_array(depth)
    assert 0.2 < np.isnan(metres).mean() < 0.8
    assert np.nanmax(found) <= limit
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(metres))
    points = cloud_fields(cloud)
    assert (np.isnan(points['z']) >= (stddev > limit)).all()
    assert (np.isnan(points['stddev']) == np.isnan(points['z'])).all()
    color = peer.wait_stamp('depth/image_color', depth.header.stamp)
    painted = np.frombuffer(color.data, np.uint8).reshape(HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(
        (painted[:100] != UNKNOWN).any(axis=2), ~np.isnan(metres)[:100])


def test_the_cloud_loses_the_field_with_the_calibration(peer_of_calibrated):
    peer = peer_of_calibrated
    assert peer.put(max_stddev=0.3) == ''
    assert peer.put(calibration='') == ''  # without which nothing could be left out, so it stays
    assert 'stddev' in cloud_fields(ask(peer)[1])
    assert peer.put(max_stddev=0.0) == ''
    _, cloud = ask(peer)
    assert list(cloud_fields(cloud)) == ['x', 'y', 'z', 'rgb']
