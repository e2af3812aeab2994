# SPDX-License-Identifier: Apache-2.0
"""Subscriptions follow their publishers and lose nothing uncounted: real ones in this process."""

from __future__ import annotations

import time

import pytest

pytest.importorskip('rclpy')

from rclpy import event_handler
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.serialization import deserialize_message
from ros_harness import PATIENCE, camera_info, node_here
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from depthclip_ros.messages.message_types import CAMERA_INFO
from depthclip_ros.node.subscriptions import AdaptiveSubscription

BURST = 10  # messages that a player begins with
LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def node(domain):
    with node_here(domain, Node, 'inputs') as node:
        yield node


def spin_until(node, condition):
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    end = time.monotonic() + PATIENCE
    try:
        while not condition():
            assert time.monotonic() < end
            executor.spin_once(timeout_sec=0.05)
    finally:
        executor.shutdown()  # it would keep what is destroyed


def widths(messages):
    return [deserialize_message(raw, CameraInfo).width for raw in messages]


def test_what_a_latched_publisher_sent_before_arrives(node):
    publisher = node.create_publisher(CameraInfo, 'latched', LATCHED)
    publisher.publish(camera_info(Header(), 11, 48))
    received = []
    AdaptiveSubscription(node, CAMERA_INFO, '/latched', received.append, transient_local=True)
    spin_until(node, lambda: received)
    assert widths(received) == [11]
    # One that keeps nothing joins: both must be heard.
    other = node.create_publisher(CameraInfo, 'latched', 1)
    spin_until(node, lambda: other.publish(camera_info(Header(), 22, 48))
               or 22 in widths(received))
    spin_until(node, lambda: publisher.publish(camera_info(Header(), 33, 48))
               or 33 in widths(received))


def test_what_must_be_latched_stays_so_beside_a_volatile_publisher(node):
    """As of /tf_static: else one careless bridge makes the node deaf to all others."""
    node.create_publisher(CameraInfo, 'static', 1)
    spin_until(node, lambda: node.count_publishers('/static'))
    publisher = node.create_publisher(CameraInfo, 'static', LATCHED)
    publisher.publish(camera_info(Header(), 11, 48))
    received = []
    AdaptiveSubscription(node, CAMERA_INFO, '/static', received.append, transient_local=True,
                         adapts_durability=False)
    spin_until(node, lambda: received)
    assert widths(received) == [11]


def test_a_latched_publisher_that_comes_later_is_asked_for_what_it_sent(node):
    """The subscription begins volatile, as drivers publish: they would warn of any other."""
    received = []
    AdaptiveSubscription(node, CAMERA_INFO, '/later', received.append, transient_local=True)
    assert [info.qos_profile.durability for info in node.get_subscriptions_info_by_topic(
        '/later')] == [QoSDurabilityPolicy.VOLATILE]
    with node_here(node.context.get_domain_id(), Node, 'camera') as camera:
        publisher = camera.create_publisher(CameraInfo, 'later', LATCHED)
        publisher.publish(camera_info(Header(), 11, 48))
        spin_until(node, lambda: received)
    assert widths(received) == [11]


@pytest.mark.parametrize('missing', ['MESSAGE_LOST', 'MATCHED', 'MESSAGE_LOST MATCHED'])
def test_a_middleware_without_an_event_is_good_enough(node, missing, monkeypatch):
    original = event_handler.EventHandler.__init__

    def create(self, *args, event_type, **kwargs):
        if any(event_type.name.endswith(name) for name in missing.split()):
            raise event_handler.UnsupportedEventTypeError('on purpose')
        original(self, *args, event_type=event_type, **kwargs)
    monkeypatch.setattr(event_handler.EventHandler, '__init__', create)
    publisher, received = node.create_publisher(CameraInfo, 'events', 1), []
    AdaptiveSubscription(node, CAMERA_INFO, 'events', received.append, lambda _count: None,
                         transient_local=True)
    spin_until(node, lambda: publisher.publish(camera_info(Header(), 11, 48)) or received)


@pytest.mark.parametrize('first', [True, False])
def test_a_best_effort_publisher_is_heard_whoever_comes_first(first, node):
    profile = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
    publishers, received = [], []
    if first:
        publishers.append(node.create_publisher(CameraInfo, 'effort', profile))
        spin_until(node, lambda: node.count_publishers('/effort'))
    AdaptiveSubscription(node, CAMERA_INFO, '/effort', received.append)
    if not first:
        publishers.append(node.create_publisher(CameraInfo, 'effort', profile))
    spin_until(node, lambda: publishers[0].publish(camera_info(Header(), 11, 48)) or received)


def test_a_burst_arrives_whole(node):
    """What is overwritten before it is taken would be counted by nobody."""
    publisher = node.create_publisher(CameraInfo, 'burst', BURST)
    received = []
    AdaptiveSubscription(node, CAMERA_INFO, '/burst', received.append)
    spin_until(node, publisher.get_subscription_count)
    for width in range(BURST):
        publisher.publish(camera_info(Header(), width, 48))
    spin_until(node, lambda: widths(received)[-1:] == [BURST - 1])
    assert widths(received) == list(range(BURST))
