# SPDX-License-Identifier: Apache-2.0
"""Error bars as others see them: depth/stddev, the cloud's field, diagnostics; real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip('rclpy')

import faulty_node
import numpy as np
from clip_standin import synthetic_rgb
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from ros_harness import (
    INPUT_HEIGHT,
    INPUT_WIDTH,
    TEMPERATURE,
    NodeProcess,
    Peer,
    camera_info,
    cloud_fields,
    depth_array,
    image,
    tiny_arguments,
)

from depthclip_ros.core import DepthConfig, DepthEstimator

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 120, 200
PLAIN = synthetic_rgb(5, HEIGHT, WIDTH)
CALIBRATED = PLAIN.copy()
CALIBRATED[0] = faulty_node.KNOWN_STDDEV
LIMITS = {'range_max': 2.2, 'out_of_range': 'inf', 'reference_focal': 0.0}
TOPICS = ('depth/image', 'depth/stddev', 'points')


@pytest.fixture(scope='module')
def predict(tiny_weights):
    config = DepthConfig(backbone='auto', input_height=INPUT_HEIGHT, input_width=INPUT_WIDTH,
                         temperature=TEMPERATURE, **LIMITS)
    estimator = DepthEstimator(config, tiny_weights, 'cpu')
    return lambda rgb: faulty_node.with_stddev(estimator.predict(rgb))


@pytest.fixture(scope='module')
def peer(domain, cache, tiny_weights):
    node = NodeProcess(
        tiny_arguments(tiny_weights, **LIMITS), domain=domain,
        cache=cache, module=Path(__file__).with_name('faulty_node.py'))
    try:
        node.wait_for(r'\]: Active: ')
        with Peer(domain, listen=TOPICS, node=node) as peer:
            peer.ready(*TOPICS)
            yield peer
    finally:
        status = node.stop()
    assert status == 0, node.output


def ask(peer, rgb):
    """One image with its camera_info; its depth and its cloud."""
    info = camera_info(peer.header(), WIDTH, HEIGHT)
    cloud = peer.ask(image(peer.header(), rgb, 'rgb8'), 'points', info=info)
    return peer.wait_stamp('depth/image', cloud.header.stamp), cloud


def test_without_a_calibration_nothing_is_published_and_that_is_said_once(peer):
    for _ in range(3):
        _, cloud = ask(peer, PLAIN)
    assert list(cloud_fields(cloud)) == ['x', 'y', 'z', 'rgb']
    assert not peer.messages['depth/stddev']
    said = [line for line in peer.process.output.splitlines() if 'depth/stddev is subscr' in line]
    assert len(said) == 1
    assert '`depthclip calibrate`' in said[0]
    _, values = peer.diagnostics('depth_node: frames')
    assert values['stddev median [m]'] == values['beyond max_stddev [%]'] == ''


def test_standard_deviation_is_in_metres_and_known_where_depth_is(peer, predict):
    depth, cloud = ask(peer, CALIBRATED)
    stddev = peer.wait_stamp('depth/stddev', depth.header.stamp)
    assert (stddev.header, stddev.encoding) == (depth.header, '32FC1')
    found, metres = depth_array(stddev), depth_array(depth)
    expected = predict(CALIBRATED)
    np.testing.assert_array_equal(found, expected.stddev())
    known = np.isfinite(metres)
    assert 0.05 < known.mean() < 0.95
    np.testing.assert_array_equal(np.isfinite(found), known)
    assert np.isnan(found[~known]).all()
    assert found[known].min() >= 0.1
    assert found[known].max() <= 0.5

    points = cloud_fields(cloud)
    assert list(points) == ['x', 'y', 'z', 'rgb', 'stddev']
    holes = np.isnan(points['z'])
    assert 0 < holes.sum() < holes.size
    np.testing.assert_array_equal(
        points['stddev'], np.where(holes, np.nan, expected.patch_stddev))
    np.testing.assert_array_equal(points['z'][~holes], expected.patch_depth[~holes])


def test_diagnostics_tell_how_sure_depth_is_and_how_much_is_not(peer):
    put(peer, max_stddev=0.4)
    ask(peer, CALIBRATED)
    _, values = peer.diagnostics(
        'depth_node: frames', lambda values: values['beyond max_stddev [%]'])
    assert values['stddev median [m]'] == '0.30'
    assert values['beyond max_stddev [%]'] == '25.00'


def test_the_cloud_loses_the_field_with_the_calibration(peer):
    _, cloud = ask(peer, PLAIN)
    assert list(cloud_fields(cloud)) == ['x', 'y', 'z', 'rgb']


def put(peer, **values):
    """Set parameters of the running node."""
    request = SetParameters.Request(parameters=[
        Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
    answer = peer.call(SetParameters, 'depth_node/set_parameters', request)
    assert all(result.successful for result in answer.results), answer
