# SPDX-License-Identifier: Apache-2.0
"""A node in trouble, as a process: what it tells, that it recovers, and that it always ends."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy')

import faulty_node
from clip_standin import synthetic_rgb
from ros_harness import (
    NodeProcess,
    Peer,
    adds_up,
    image,
    tiny_arguments,
    values_of,
)

RGB = synthetic_rgb(3, 60, 80)
FRAMES, MODEL = 'depth_node: frames', 'depth_node: model'


def faulty(weights, domain, cache, environment=None, **parameters):
    arguments = tiny_arguments(weights, **parameters)
    return NodeProcess(arguments, domain=domain, cache=cache, module=faulty_node.__file__,
                       environment=environment)


def marked(peer, mark):
    return image(peer.header(), np.full((60, 80, 3), mark, np.uint8), 'rgb8')


def good(peer):
    return image(peer.header(), RGB, 'rgb8')


@pytest.fixture(scope='module')
def node(domain, cache, tiny_weights):
    node = faulty(tiny_weights, domain, cache, input_timeout=1.0)
    try:
        node.wait_for('No image on /image')  # and nobody has published any
        yield node
        assert node.stop() == 0, node.output
    finally:
        node.process.kill()


@pytest.fixture(scope='module')
def peer(node, domain):
    with Peer(domain, listen=('depth/image', 'depth/camera_info', 'points'), node=node) as peer:
        yield peer


def test_missing_camera_info_is_reported_and_depth_comes_all_the_same(node, peer):
    asked = []

    def ask():
        asked.append(peer.header())
        return peer.ask(image(asked[-1], RGB, 'rgb8'))
    peer.wait(lambda: ask() and 'no camera_info on' in node.output, 'the warning')
    line = node.wait_for('no camera_info on /camera_info')
    assert 'depth is published, points and depth/camera_info are not' in line
    assert 'focal length does not count' in line
    status = peer.status(FRAMES, lambda status: ask() and status.level == status.WARN
                         and int(values_of(status).get('no cloud: absent', 0)) >= 3)
    assert adds_up(values_of(status))
    for header in asked:
        assert not peer.find('depth/camera_info', header.stamp)
        assert not peer.find('points', header.stamp)


def test_an_image_that_breaks_the_model_is_rejected_with_its_cause(node, peer):
    peer.ask(good(peer))
    peer.wait(lambda: peer.send(marked(peer, faulty_node.RAISES))
              or 'Image rejected (ZeroDivisionError in prediction)' in node.output,
              'the rejection')
    assert 'on purpose' in node.output
    peer.ask(good(peer))
    _, values = peer.diagnostics(
        FRAMES, lambda v: int(v.get('rejected: ZeroDivisionError in prediction', 0)))
    assert adds_up(values)
    assert 'ZeroDivisionError: on purpose' in values['last error']


def test_depth_that_is_nan_is_an_error(node, peer):
    peer.status(FRAMES, lambda s: peer.send(marked(peer, faulty_node.GIVES_NAN)) or (
        s.level == s.ERROR and '100 % of the depth is NaN' in s.message))
    assert 'precision: float32' in node.wait_for('of the depth is NaN')


def test_silence_is_noticed(node, peer):
    peer.ask(good(peer))
    peer.status(FRAMES, lambda s: 'no image' in s.message)
    assert 'topic info -v /image' in node.wait_for(r'No image on /image .*publishers: 1')
