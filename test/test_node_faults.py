# SPDX-License-Identifier: Apache-2.0
"""Bad input: every fault is counted and named once, and the next good image is answered."""

from __future__ import annotations

import math

import pytest

pytest.importorskip('rclpy')

import numpy as np
from clip_standin import synthetic_rgb
from lifecycle_msgs.msg import State
from rclpy.serialization import serialize_message
from ros_harness import (
    Peer,
    adds_up,
    camera_info,
    counters,
    image,
    running,
    tiny_arguments,
    values_of,
)
from sensor_msgs.msg import CameraInfo, Image

HEIGHT, WIDTH = 60, 80
RGB = synthetic_rgb(3, HEIGHT, WIDTH)
STATUS = 'depth_node: frames'
SILENCE = 'No image on /image'


@pytest.fixture(scope='module')
def node(domain, cache, tiny_weights):
    # Deeper than usual, so that no image is replaced before it reaches the node.
    arguments = tiny_arguments(tiny_weights, input_timeout=0.5, max_pixels=100_000,
                               **{'qos_overrides./image.subscription.depth': 10})
    with running(arguments, domain=domain, cache=cache) as node:
        node.wait_for(SILENCE)  # and nobody has published any
        yield node


@pytest.fixture(scope='module')
def peer(node, domain):
    with Peer(domain, listen=('depth/image', 'depth/camera_info', 'points'), node=node) as peer:
        yield peer


def good_image(peer):
    return image(peer.header(), RGB, 'rgb8')


def shortened(message, size):
    del message.data[size:]
    return message


ATTEMPTS = 5  # with each of them: on a busy machine some are dropped before anyone looks at them

# What an image is, by the condition that it is counted under; test_campaign.py has many more.
BAD_IMAGES = {
    'too many pixels': lambda good: image(good.header, np.zeros((300, 400), np.uint8), 'mono8'),
    'truncated data': lambda good: shortened(good, len(good.data) // 2),
}


def test_silence_is_reported_with_topic_and_remedy(node):
    line = node.wait_for(SILENCE)
    assert 'no publishers' in line
    assert '-r image:=' in line


def test_missing_camera_info_is_reported_and_depth_comes_all_the_same(node, peer):
    peer.bring(State.PRIMARY_STATE_UNCONFIGURED)  # so that it knows none
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    asked = []

    def ask():
        asked.append(peer.header())
        return peer.ask(image(asked[-1], RGB, 'rgb8'))
    peer.wait(lambda: ask() and 'no camera_info on' in node.output, 'the warning')
    line = node.wait_for('no camera_info on /camera_info')
    assert 'depth is published, points and depth/camera_info are not' in line
    assert 'focal length does not count' in line
    status = peer.status(STATUS, lambda status: ask() and status.level == status.WARN
                         and int(values_of(status).get('no cloud: absent', 0)) >= 3)
    assert adds_up(values_of(status))
    for header in asked:
        assert not peer.find('depth/camera_info', header.stamp)
        assert not peer.find('points', header.stamp)


def test_bad_images_are_counted_named_once_and_survived(node, peer):
    peer.ask(good_image(peer))
    before = peer.quiet(STATUS)[STATUS]
    for attempt in range(ATTEMPTS):
        for condition, spoil in BAD_IMAGES.items():
            bad = spoil(good_image(peer))
            peer.send(bad)
            if attempt == 0:
                node.wait_for(rf'Image rejected \({condition}\): ')
            good = good_image(peer)
            peer.send(good)
            assert peer.wait_stamp('depth/image', good.header.stamp)
            assert not peer.find('depth/image', bad.header.stamp)
    total = counters(before)['received'] + 2 * ATTEMPTS * len(BAD_IMAGES)
    _, values = peer.diagnostics(STATUS, lambda v: counters(v)['received'] == total)
    assert adds_up(values)
    # A good image may overtake the bad one before it, on a busy machine; then that is dropped.
    gone = {key: counters(values)[key] - counters(before)[key] for key in ('rejected', 'dropped')}
    assert gone['rejected'] + gone['dropped'] == ATTEMPTS * len(BAD_IMAGES)
    for condition in BAD_IMAGES:
        said = node.output.count(f'Image rejected ({condition})')
        assert 1 <= said < max(2, int(values[f'rejected: {condition}']))


def test_messages_that_are_cut_off_are_counted_and_survived(node, peer):
    def cut(message):
        return serialize_message(message)[:-100]

    peer.wait(lambda: peer.publisher('image', Image).publish(cut(good_image(peer)))
              or 'Image rejected (unreadable message): ' in node.output, 'the rejection')
    assert 'bytes are no Image' in node.output
    info = cut(camera_info(peer.header(), WIDTH, HEIGHT))
    peer.wait(lambda: peer.publisher('camera_info', CameraInfo).publish(info)
              or (peer.ask(good_image(peer)) and 'bytes are no CameraInfo' in node.output),
              'the rejection of the camera_info')
    _, values = peer.diagnostics(STATUS, lambda v: 'no cloud: unreadable message' in v)
    assert int(values['rejected: unreadable message']) >= 1
    assert adds_up(values)


def test_bad_camera_info_costs_the_cloud_alone(node, peer):
    good = camera_info(peer.header(), WIDTH, HEIGHT)
    bad = {
        'all zeros': camera_info(peer.header(), WIDTH, HEIGHT, k=(0.0, 0.0, 0.0, 0.0)),
        'not finite': camera_info(peer.header(), WIDTH, HEIGHT, k=(math.nan, 70.0, 40.0, 30.0)),
        'size mismatch': camera_info(peer.header(), 2 * WIDTH, HEIGHT),
    }
    asked = []
    for condition, info in bad.items():
        def named(condition=condition, info=info):
            """Sent until it has overtaken an image; then that has no cloud."""
            peer.send(info)
            peer.ask(good_image(peer))
            return f'No points and no depth/camera_info ({condition}): ' in node.output
        peer.wait(named, condition)
        asked.append(peer.header())
        peer.ask(image(asked[-1], RGB, 'rgb8'))
    # Points come after depth: the next camera_info may have overtaken the second image's.
    _, values = peer.diagnostics(STATUS, lambda v: sum(
        int(v.get(f'no cloud: {condition}', 0)) for condition in bad) >= 2 * len(bad))
    assert all(f'no cloud: {condition}' in values for condition in bad), values
    assert adds_up(values)
    for header in asked:
        assert not peer.find('points', header.stamp)
        assert not peer.find('depth/camera_info', header.stamp)

    def recovered():
        asked.append(peer.header())
        peer.send(good)
        peer.ask(image(asked[-1], RGB, 'rgb8'))
        return any(peer.find('points', header.stamp) for header in asked)
    peer.wait(recovered, 'points after a good camera_info')


def test_stamps_may_go_back_and_frames_may_be_nameless(node, peer):
    late, early = peer.header(), peer.header(frame='')
    late.stamp.sec, early.stamp.sec = 5000, 10
    for header in (late, early):
        depth = peer.ask(image(header, RGB, 'rgb8'))
        assert depth.header == header
    assert 'frame_id is empty' in node.wait_for('frame_id')


def test_incompatible_qos_is_explained(node, peer):
    """A subscriber that wants old messages kept (transient local) will get nothing."""
    from rclpy.qos import QoSDurabilityPolicy, QoSProfile
    subscription = peer.node.create_subscription(
        Image, 'depth/image', print,
        QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL))
    node.wait_for("depth/image'?, requesting incompatible QoS.*DURABILITY")
    peer.on_executor(peer.node.destroy_subscription, subscription)


def test_best_effort_cameras_are_followed(node, peer):
    """The node listens reliably, which gets nothing from such a publisher, until it sees it."""
    from rclpy.qos import QoSProfile, QoSReliabilityPolicy
    camera = peer.node.create_publisher(
        Image, 'image', QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT))
    node.wait_for('/image: listening best effort')
    message = good_image(peer)

    def answered():
        camera.publish(message)
        return peer.find('depth/image', message.header.stamp)
    peer.wait(answered, 'depth of a best-effort image')
    peer.on_executor(peer.node.destroy_publisher, camera)
    peer.ask(good_image(peer))  # of the reliable one, which is heard as before
    assert 'offers another reliability' not in node.output
