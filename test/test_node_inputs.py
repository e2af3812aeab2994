# SPDX-License-Identifier: Apache-2.0
"""Subscriptions follow their publishers and lose nothing uncounted: real ones in this process."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip('rclpy')

from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from ros_harness import PATIENCE, camera_info, node_here
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from depthclip_ros.node.camera import Camera
from depthclip_ros.node.config import NodeConfig
from depthclip_ros.node.inputs import Input

BURST = 10  # messages that a player begins with
LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def node(domain):
    with node_here(domain, Node, 'inputs') as node:
        yield node


def spin_until(node, condition, follow=None):
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    end = time.monotonic() + PATIENCE
    try:
        while not condition():
            assert time.monotonic() < end
            if follow is not None:
                follow.follow_publishers()
            executor.spin_once(timeout_sec=0.05)
    finally:
        executor.shutdown()  # it would keep what is destroyed


def widths(messages):
    return [deserialize_message(raw, CameraInfo).width for raw in messages]


def test_what_a_latched_publisher_sent_before_arrives(node):
    publisher = node.create_publisher(CameraInfo, 'latched', LATCHED)
    publisher.publish(camera_info(Header(), 11, 48))
    received = []
    source = Input(node, CameraInfo, '/latched', received.append, latched=True)
    spin_until(node, lambda: received, source)
    assert widths(received) == [11]
    assert source.is_latched
    # One that keeps nothing joins: both must be heard.
    other = node.create_publisher(CameraInfo, 'latched', 1)
    spin_until(node, lambda: not source.is_latched, source)
    spin_until(node, lambda: other.publish(camera_info(Header(), 22, 48))
               or 22 in widths(received))
    spin_until(node, lambda: publisher.publish(camera_info(Header(), 33, 48))
               or 33 in widths(received))
    node.destroy_publisher(other)
    spin_until(node, lambda: source.is_latched, source)


def test_old_images_are_not_asked_for(node):
    publisher = node.create_publisher(CameraInfo, 'unlatched', LATCHED)
    publisher.publish(camera_info(Header(), 11, 48))
    received = []
    source = Input(node, CameraInfo, '/unlatched', received.append)
    spin_until(node, publisher.get_subscription_count, source)
    spin_until(node, lambda: publisher.publish(camera_info(Header(), 22, 48)) or received)
    assert widths(received)[0] == 22


def test_a_burst_arrives_whole(node):
    """What is overwritten before it is taken would be counted by nobody."""
    publisher = node.create_publisher(CameraInfo, 'burst', BURST)
    received = []
    Input(node, CameraInfo, '/burst', received.append)
    spin_until(node, publisher.get_subscription_count)
    for width in range(BURST):
        publisher.publish(camera_info(Header(), width, 48))
    spin_until(node, lambda: widths(received)[-1:] == [BURST - 1])
    assert widths(received) == list(range(BURST))


def test_a_camera_takes_the_latched_camera_info(domain):
    with node_here(domain, LifecycleNode, 'camera') as node:
        publisher = node.create_publisher(CameraInfo, 'late/camera_info', LATCHED)
        publisher.publish(camera_info(Header(), 11, 48))
        camera = Camera(node, NodeConfig(), 'late', threading.Condition())
        camera.subscribe()
        spin_until(node, lambda: camera.calibration.received, camera)
        assert camera.info_is_latched
        camera.destroy()
