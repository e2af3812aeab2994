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
    camera_info,
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
    node = faulty(tiny_weights, domain, cache, input_timeout=1.0, frozen_timeout=1.0)
    try:
        yield node
        assert node.stop() == 0, node.output
    finally:
        node.process.kill()


@pytest.fixture(scope='module')
def peer(node, domain):
    with Peer(domain, node=node) as peer:
        node.wait_for(r'\]: Active: ')
        yield peer


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


def test_a_lost_device_is_found_again(node, peer):
    peer.wait(lambda: peer.send(marked(peer, faulty_node.DEVICE_FAILS))
              or 'loading the model anew' in node.output, 'the reload')
    node.wait_for('The model is loaded anew')
    peer.ask(good(peer))
    status = peer.status(MODEL, lambda s: (
        s.level == s.OK and values_of(s)['lifecycle state'] == 'active'))
    values = values_of(status)
    assert int(values['reloads']) >= 1
    assert 'CUDA error: an illegal memory access' in values['last error']


def test_depth_that_is_nan_is_an_error(node, peer):
    peer.status(FRAMES, lambda s: peer.send(marked(peer, faulty_node.GIVES_NAN)) or (
        s.level == s.ERROR and '100 % of the depth is NaN' in s.message))
    assert 'precision: float32' in node.wait_for('of the depth is NaN')


def test_a_silent_camera_info_is_noticed(node, peer):
    info = camera_info(peer.header(), 80, 60)
    peer.ask(good(peer), info=info)
    peer.status(FRAMES, lambda s: peer.send(good(peer)) or 'camera_info silent' in s.message)
    assert 'go on with the last one' in node.wait_for('No camera_info on /camera_info for')


def test_a_frozen_picture_and_silence_are_noticed(node, peer):
    peer.status(FRAMES, lambda s: peer.send(good(peer)) or 'the same picture' in s.message)
    assert 'frozen_timeout' in node.wait_for('the picture is the same to the bit')
    peer.status(FRAMES, lambda s: 'no image' in s.message)
    assert 'test_peer: reliable' in node.wait_for(r'No image on /image .*1 publisher: ')


def test_stamps_that_go_wrong_are_noticed(node, peer):
    start = len(peer.messages['/diagnostics'])
    message = good(peer)
    message.header.stamp.sec += 100_000
    peer.ask(message)
    peer.ask(good(peer))
    peer.status(FRAMES, lambda s: 'stamps went back by 1e+05 s' in s.message, start)
    assert 'begins anew' in node.wait_for('stamps went back')
    message = good(peer)
    peer.status(FRAMES,
              lambda s: peer.send(message) or 'stamps stand still' in s.message)


def test_old_images_make_old_depth(node, peer):
    """A warning beyond max_age (2 s), an error from twice that on."""
    def send(seconds):
        message = good(peer)
        stamp = peer.node.get_clock().now().nanoseconds - int(seconds * 1e9)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10 ** 9)
        peer.send(message)

    def is_old(status, level):
        """Old, and nothing else is that bad."""
        return status.level == level and 's old' in status.message \
            and 'NaN' not in status.message
    peer.status(FRAMES, lambda s: send(2.2) or is_old(s, s.WARN))
    peer.status(FRAMES, lambda s: send(60.0) or is_old(s, s.ERROR))
    assert 'max_age: 2' in node.wait_for('depth is .* s old')
