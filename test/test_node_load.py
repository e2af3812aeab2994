# SPDX-License-Identifier: Apache-2.0
"""The node under load, and on a replayed bag."""

from __future__ import annotations

import time

import pytest

pytest.importorskip('rclpy')

from clip_standin import synthetic_rgb
from rclpy.qos import QoSProfile
from ros_harness import (
    PATIENCE,
    Peer,
    adds_up,
    counters,
    image,
    running,
    tiny_arguments,
)
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

STATUS = 'depth_node: frames'
ALLOWANCE_MS = 50.0  # beside the network, from an image's stamp to its depth


def test_the_newest_image_wins_and_the_account_is_exact(domain, cache, tiny_weights, undisturbed):
    """Images come at 30 Hz, which is much faster than the network can go."""
    arguments = tiny_arguments(tiny_weights, input_height=960, input_width=1280, flip_average=True)
    message = image(Header(), synthetic_rgb(2, 60, 80), 'rgb8')
    with running(arguments, domain=domain, cache=cache) as node, \
            Peer(domain, node=node) as peer:
        # An old stamp, which says nothing about an age: this image may be sent again.
        message.header = peer.header()
        peer.ask(message)
        before = peer.quiet(STATUS)[STATUS]
        with undisturbed():
            first, end = len(peer.messages['depth/image']), time.monotonic() + 2 * PATIENCE
            while len(peer.messages['depth/image']) < first + 12:
                assert time.monotonic() < end, node.output
                message.header.stamp = peer.node.get_clock().now().to_msg()
                peer.send(message)
                time.sleep(1 / 30)  # the source's rate, not a wait
            assert peer.wait_stamp('depth/image', message.header.stamp), 'the newest one'
        values = peer.quiet(STATUS)[STATUS]
        account = counters(values)
        gained = {key: account[key] - counters(before)[key] for key in account}
        assert gained['dropped'] > gained['published'], 'the node was not overloaded'
        assert gained['received'] == gained['published'] + gained['dropped'], gained
        peer.wait(lambda: len(peer.messages['depth/image']) == account['published'],
                  'as many depth images as were counted')
        stamps = [(m.header.stamp.sec, m.header.stamp.nanosec)
                  for m in peer.messages['depth/image'][first:]]
        assert stamps == sorted(set(stamps)), 'old images were answered after newer ones'
        network, age = (float(values[f'{key} p99 [ms]']) for key in ('network', 'age at publish'))
        # One in work and one waiting. All that is not the network (transport, conversion, other
        # processes on these cores) may add as much as a third image would cost, but no more.
        assert age <= 2.2 * network + ALLOWANCE_MS, f'age {age} ms, network {network} ms'
        assert float(values['network p50 [ms]']) > ALLOWANCE_MS, 'too quick to tell a queue'
    # The last line, after the end, tells the same.
    assert f'{account["published"]} published + {account["dropped"]} dropped' in node.output


def test_every_frame_of_a_bag_is_answered_with_its_own_stamp(
        shared_dir, domain, cache, tiny_weights):
    rosbags = pytest.importorskip('rosbags.highlevel')
    topics = {'/camera/color/image_raw': Image, '/camera/color/camera_info': CameraInfo}
    arguments = [*tiny_arguments(tiny_weights), '-r', 'image:=/camera/color/image_raw',
                 '-r', 'camera_info:=/camera/color/camera_info']
    with running(arguments, domain=domain, cache=cache) as node, \
            Peer(domain, listen=('depth/image', 'depth/camera_info', 'points'),
                 node=node) as peer, \
            rosbags.AnyReader([shared_dir / 'bags' / 'rgbd_raw']) as reader:
        publishers = {topic: peer.node.create_publisher(kind, topic, QoSProfile(depth=10))
                      for topic, kind in topics.items()}
        for publisher in publishers.values():
            peer.wait(publisher.get_subscription_count, 'a subscriber')
        peer.ready('depth/image', 'depth/camera_info', 'points')
        connections = [c for c in reader.connections if c.topic in topics]
        # Once to let both sides find each other, then at the bag's pace.
        first = next(raw for c, _, raw in reader.messages(connections)
                     if c.topic.endswith('image_raw'))
        stamps, previous = [], None
        peer.wait(lambda: publishers['/camera/color/image_raw'].publish(first)
                  or time.sleep(0.2) or peer.messages['depth/image'], 'a first depth')
        peer.quiet(STATUS)
        peer.messages['depth/image'].clear()
        for connection, recorded, raw in reader.messages(connections):
            if previous is not None:
                time.sleep(max(0, recorded - previous) / 1e9)
            previous = recorded
            if connection.topic.endswith('image_raw'):
                stamps.append(reader.deserialize(raw, connection.msgtype).header.stamp)
            publishers[connection.topic].publish(raw)
        stamps = [(s.sec, s.nanosec) for s in stamps]
        assert len(stamps) == 9

        def answered():
            return [(m.header.stamp.sec, m.header.stamp.nanosec)
                    for m in peer.messages['depth/image']]
        peer.wait(lambda: len(answered()) >= len(stamps), 'every answer')
        assert answered() == stamps
        depth = peer.messages['depth/image'][-1]
        assert depth.header.frame_id == 'camera_color_optical_frame'
        assert (depth.width, depth.height) == (640, 480)
        _, values = peer.diagnostics(STATUS)
        assert values['age at publish p50 [ms]'].startswith('unknown')
        assert 'replay' in values['age at publish p50 [ms]']
        assert adds_up(values)
        assert peer.messages['points']
