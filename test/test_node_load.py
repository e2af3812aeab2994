# SPDX-License-Identifier: Apache-2.0
"""The node under load, and on a replayed bag."""

from __future__ import annotations

import time

import pytest

pytest.importorskip('rclpy')

import faulty_node
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
    values_of,
)
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

STATUS = 'depth_node: frames'


def test_the_newest_image_wins_and_the_account_is_exact(domain, cache, tiny_weights):
    """Images come much faster than the network can go."""
    message = image(Header(), synthetic_rgb(2, 60, 80), 'rgb8')
    with running(tiny_arguments(tiny_weights), domain=domain, cache=cache,
                 module=faulty_node.__file__, environment={'FAULT_SLOW': '0.2'}) as node, \
            Peer(domain, node=node) as peer:
        message.header = peer.header()
        peer.ask(message)
        before = peer.quiet(STATUS)[STATUS]
        first, start = len(peer.messages['depth/image']), len(peer.messages['/diagnostics'])
        end = time.monotonic() + PATIENCE
        while len(peer.messages['depth/image']) < first + 12:
            assert time.monotonic() < end, node.output
            message.header = peer.header()
            peer.send(message)
            time.sleep(1 / 100)  # the source's rate, not a wait
        assert peer.wait_stamp('depth/image', message.header.stamp), 'the newest one'
        account = counters(peer.quiet(STATUS)[STATUS])
        gained = {key: account[key] - counters(before)[key] for key in account}
        assert gained['dropped'] > 0, 'the node was not overloaded'
        assert gained['received'] == gained['published'] + gained['dropped'], gained
        peer.wait(lambda: len(peer.messages['depth/image']) == account['published'],
                  'as many depth images as were counted')
        stamps = [m.header.stamp.sec for m in peer.messages['depth/image'][first:]]
        assert stamps == sorted(set(stamps)), 'old images were answered after newer ones'
        # One in work and one waiting: with more of them depth would get old.
        told = [values_of(status) for array in peer.messages['/diagnostics'][start:]
                for status in array.status if status.name == STATUS]
        assert {counters(values)['pending'] for values in told} <= {0, 1, 2}
        assert all(map(adds_up, told))
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
        # Until both sides have found each other, also for points.
        first = {topic: next(raw for c, _, raw in reader.messages(connections)
                             if c.topic == topic) for topic in reversed(topics)}
        stamps = []

        def points():
            for topic, raw in first.items():
                publishers[topic].publish(raw)
            time.sleep(0.2)
            return peer.messages['points']
        peer.wait(points, 'first points')
        peer.quiet(STATUS)
        for messages in peer.messages.values():
            messages.clear()
        for connection, _, raw in reader.messages(connections):
            publishers[connection.topic].publish(raw)
            if connection.topic.endswith('image_raw'):
                stamps.append(reader.deserialize(raw, connection.msgtype).header.stamp)
                peer.wait(lambda: len(peer.messages['depth/image']) >= len(stamps), 'its answer')
        stamps = [(s.sec, s.nanosec) for s in stamps]
        assert len(stamps) == 9

        def answered():
            return [(m.header.stamp.sec, m.header.stamp.nanosec)
                    for m in peer.messages['depth/image']]
        assert answered() == stamps
        depth = peer.messages['depth/image'][-1]
        assert depth.header.frame_id == 'camera_color_optical_frame'
        assert (depth.width, depth.height) == (640, 480)
        _, values = peer.diagnostics(STATUS)
        assert values['age at publish p50 [ms]'].startswith('unknown')
        assert 'replay' in values['age at publish p50 [ms]']
        assert adds_up(values)
        peer.wait(lambda: peer.messages['points'], 'points')
