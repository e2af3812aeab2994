# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
# (rclpy's Node, of which this is one, is typed in part only)
"""A camera, or several, in rendered rooms with exact depth.

Publishers, for each name in `cameras` (relative names; under that name, if it is not ''):
    image (sensor_msgs/Image): rgb8.
    camera_info (sensor_msgs/CameraInfo): plumb_bob.
    depth/ground_truth (sensor_msgs/Image): 32FC1, metres along the optical axis; only while
        subscribed.
    /tf (tf2_msgs/TFMessage): the optical frame in the room's (z up, origin in a corner).

All four have the same stamp, the time at which the picture was taken: picture n at n / rate
seconds after the first. While nobody subscribes to a camera, it renders nothing.

Parameters:
    Every field of `SimConfig` (`depthclip_ros/sim/world.py`), read at the start.
    qos_overrides.TOPIC.publisher.{history,depth,reliability} on the first three topics.
"""

from __future__ import annotations

import array
import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import rclpy
import torch
from geometry_msgs.msg import TransformStamped
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from ..core.errors import ConfigError
from ..node.config import ROS_OWN
from ..node.image_io import depth_values, image_fields
from ..node.parameters import descriptor
from ..node.process import StopSignals
from ..resources import large_images_profile
from ..sim.bag import OPTICAL_FRAME, WORLD_FRAME, quaternion
from ..sim.world import NANOSECONDS, Schedule, SimConfig, View, calibration
from .bag_player import message_type
from .image_source import QOS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..sim import Frame
    from ..sim.world import Room

TOPICS: dict[str, Any] = {'image': Image, 'camera_info': CameraInfo, 'depth/ground_truth': Image}
REPORT_SECONDS = 5.0  # how long rendering may be late before it is said
TOLERANCE = 0.1  # of the pictures that may be skipped in this time


class CameraTopics:
    """Publishers of one camera."""

    def __init__(self, node: Node, name: str, config: SimConfig) -> None:
        """Create the publishers; an empty name means the node's own namespace."""
        prefix = f'{name}/' if name else ''
        self._publishers = {
            topic: node.create_publisher(
                kind, prefix + topic, QOS,
                qos_overriding_options=QoSOverridingOptions.with_default_policies())
            for topic, kind in TOPICS.items()
        }
        self.frame_id = OPTICAL_FRAME.replace('camera', name) if name else OPTICAL_FRAME
        self.room_frame_id = WORLD_FRAME if config.rig or not name else f'{name}_{WORLD_FRAME}'
        self._info = CameraInfo()
        calibration(config.camera()).fill(self._info)

    def wanted(self, *topics: str) -> bool:
        """Whether anyone subscribes to one of the topics."""
        return any(self._publishers[topic].get_subscription_count() for topic in topics)

    def publish_info(self, header: Header) -> None:
        """Publish camera_info."""
        self._info.header = header
        self._publishers['camera_info'].publish(self._info)

    def publish_frame(self, header: Header, frame: Frame) -> None:
        """Publish the picture, and its depth while wanted."""
        self._publishers['image'].publish(
            Image(**image_fields(frame.rgb, 'rgb8', header)))
        if self.wanted('depth/ground_truth'):
            depth, _ = depth_values(frame.depth, '32FC1')
            self._publishers['depth/ground_truth'].publish(
                Image(**image_fields(depth, '32FC1', header)))


class SimCameraNode(Node):
    """Publishes what the simulated cameras see."""

    def __init__(self, **kwargs: Any) -> None:
        """Declare the parameters and create the publishers.

        Args:
            kwargs: for `rclpy.node.Node`.

        Raises:
            ConfigError: a parameter is unknown or wrong.

        """
        super().__init__(
            'sim_camera', automatically_declare_parameters_from_overrides=True, **kwargs)
        self.config = declare_parameters(self)
        if self.config.num_threads:
            torch.set_num_threads(self.config.num_threads)
        self._topics = [CameraTopics(self, name, self.config) for name in self.config.cameras]
        self._views = [self._view(index) for index in range(len(self._topics))]
        self._schedule = Schedule(self.config.rate)
        self._skipped = -1  # pictures by the last report; -1: before the first picture
        self._tf_type = message_type('tf2_msgs/msg/TFMessage')
        self._tf = None
        if self._tf_type is not None:
            self._tf = self.create_publisher(self._tf_type, '/tf', QoSProfile(depth=100))
        else:
            self.get_logger().info('tf2_msgs is not installed here: /tf is not published.')
        self.published = 0
        # Oftener than the rate: a timer that finds rendering late would miss the next beat.
        self.create_timer(0.25 / self.config.rate, self._tick)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(REPORT_SECONDS, self._report, clock=steady)

    def summary(self) -> str:
        """What was published, in a sentence."""
        return (f'published {self.published} pictures of each camera, skipped '
                f'{self._schedule.skipped} that rendering was too slow for')

    def _view(self, index: int) -> View:
        name = self.config.cameras[index] or 'camera'

        def announce(elapsed: float, room: Room) -> None:
            start = self._schedule.start + round(elapsed * NANOSECONDS)
            sec, nanosec = divmod(start, NANOSECONDS)
            self.get_logger().info(f'{name}: {room}, from stamp {sec}.{nanosec:09d} on.')

        return View(self.config, index, announce, self.get_logger().warning)

    def _tick(self) -> None:
        """Take the pictures that are due."""
        now = self.get_clock().now().nanoseconds
        number = self._schedule.due(now) if now else None  # 0: /clock has not come yet
        if number is None:
            return
        if number == 0:
            self._begin()
        stamp = self._schedule.stamp(number)
        header = Header()
        header.stamp.sec, header.stamp.nanosec = divmod(stamp, NANOSECONDS)
        elapsed = (stamp - self._schedule.start) / NANOSECONDS
        for topics, view in zip(self._topics, self._views, strict=True):
            header.frame_id = topics.frame_id
            topics.publish_info(header)
            if topics.wanted('image', 'depth/ground_truth'):
                frame = view.frame(elapsed, number)
                topics.publish_frame(header, frame)
                self._publish_tf(header, topics.room_frame_id, frame.pose)
        self.published += 1

    def _report(self) -> None:
        """Say, once, that rendering cannot keep up; not of the start, which is slow."""
        before, self._skipped = self._skipped, self._schedule.skipped if self.published else -1
        new = self._skipped - before
        if before >= 0 and new > TOLERANCE * REPORT_SECONDS * self.config.rate:
            self.get_logger().warning(
                f'Rendering cannot keep up with {self.config.rate:g} Hz: {new} pictures skipped '
                f'in {REPORT_SECONDS:g} s, none queued. Lower rate, width and height '
                'or the number of cameras, or raise num_threads. This is said once.', once=True)

    def _begin(self) -> None:
        """Start with the first room, at the start and whenever the clock was set back."""
        if self.published:
            self.get_logger().warning('The time went back: starting again with the first room.')
        for view in self._views:
            view.restart()

    def _publish_tf(self, header: Header, parent: str, pose: NDArray[np.float64]) -> None:
        if self._tf is not None and self._tf_type is not None:
            self._tf.publish(self._tf_type(transforms=[transform(header, parent, pose)]))


def declare_parameters(node: Node) -> SimConfig:
    """Declare all settings on a node that was made with its overrides declared.

    Raises:
        ConfigError: a parameter is unknown or wrong.

    """
    given: dict[str, Any] = node.get_parameters_by_prefix('')
    config = SimConfig.from_dict({
        name: list(value) if isinstance(value := parameter.value, array.array) else value
        for name, parameter in given.items() if not ROS_OWN.match(name)})
    for setting in dataclasses.fields(SimConfig):
        if node.has_parameter(setting.name):
            node.undeclare_parameter(setting.name)
        about = descriptor(setting)
        about.read_only = True
        node.declare_parameter(
            setting.name, config.to_dict()[setting.name], about, ignore_override=True)
    return config


def transform(header: Header, parent: str, pose: NDArray[np.float64]) -> TransformStamped:
    """Where a camera is: the header's frame in the parent's.

    Args:
        header: of the picture.
        parent: frame of the room.
        pose: (4, 4), optical frame to room.

    """
    result = TransformStamped()
    result.header.stamp, result.header.frame_id = header.stamp, parent
    result.child_frame_id = header.frame_id
    place, rotation = result.transform.translation, result.transform.rotation
    place.x, place.y, place.z = (float(value) for value in pose[:3, 3])
    rotation.x, rotation.y, rotation.z, rotation.w = quaternion(pose[:3, :3])
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Run the executable `sim_camera` until SIGINT or SIGTERM; returns its exit status."""
    signals = StopSignals()
    node: SimCameraNode | None = None
    try:
        os.environ.update(large_images_profile(os.environ))
        # As in depth_node: rclpy's own handlers would close the context under the last messages.
        rclpy.init(args=list(sys.argv if args is None else ['sim_camera', *args]),
                   signal_handler_options=SignalHandlerOptions.NO)
        node = SimCameraNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not signals.received.is_set():
            executor.spin_once(timeout_sec=0.2)
        node.get_logger().info(node.summary())
    except ExternalShutdownException:
        pass
    except (ConfigError, RuntimeError, ValueError) as error:
        if node is not None:
            raise
        sys.stderr.write(f'sim_camera: {error}\n')
        return 1
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        signals.close()
    return 0


if __name__ == '__main__':
    sys.exit(main())
