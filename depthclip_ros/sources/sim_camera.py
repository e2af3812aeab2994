# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
# (rclpy's Node is typed in part only)
"""Simulate one or several cameras in rendered rooms with exact depth.

Publishers, for each name in `cameras` (relative names; under that name, if it is not ''):
    image (sensor_msgs/Image): rgb8.
    camera_info (sensor_msgs/CameraInfo): plumb_bob.
    depth/ground_truth (sensor_msgs/Image): 32FC1, metres along the optical axis; only while
        subscribed.
    /tf (tf2_msgs/TFMessage): the optical frame in the room's (z up, origin in a corner).

All four have the stamp of the picture: n / rate seconds after the first for picture n. A camera
without subscribers renders nothing.

Parameters:
    Every field of `SimConfig` (`depthclip_ros/sim/views.py`), read at the start.
"""

from __future__ import annotations

import array
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from ..messages.depth import depth_values
from ..messages.image_io import image_fields
from ..messages.message_types import TF, message_class
from ..messages.node_config import ROS_PARAMETERS, check_camera_names
from ..node.parameters import parameter_descriptor
from ..node.process import end_process, warn_of_files
from ..sim.datasets import OPTICAL_FRAME, WORLD_FRAME, quaternion
from ..sim.views import NANOSECONDS, Schedule, SimConfig, SimulatedView
from .camera_info import Intrinsics
from .image_source import QOS
from .process import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Event

    from numpy.typing import NDArray
    from rclpy.publisher import Publisher

    from ..sim.views import Room

TOPICS: dict[str, Any] = {'image': Image, 'camera_info': CameraInfo, 'depth/ground_truth': Image}
REPORT_SECONDS = 5.0  # between checks whether rendering keeps up
TOLERANCE = 0.1  # fraction of the pictures that may be skipped in this time


class SimCameraNode(Node):
    """Publish the images of the simulated cameras."""

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
        self._cameras = [self._camera(index) for index in range(len(self.config.cameras))]
        self._info = CameraInfo()
        Intrinsics.of_sim(self.config.camera()).fill(self._info)
        self._schedule = Schedule(self.config.rate)
        self._skipped = -1  # pictures by the last report; -1: before the first picture
        self._tf: Any = None
        try:
            self._tf = self.create_publisher(message_class(TF), '/tf', 100)
        except ImportError:
            self.get_logger().info('tf2_msgs is not installed here: /tf is not published.')
        self.published = 0
        # More often than the rate: a timer delayed by rendering would miss the next picture.
        self.create_timer(0.25 / self.config.rate, self._tick)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(REPORT_SECONDS, self._report, clock=steady)

    def summary(self) -> str:
        """Return a sentence with the numbers of published and skipped pictures."""
        return (f'published {self.published} pictures of each camera, skipped '
                f'{self._schedule.skipped} that rendering was too slow for')

    def _camera(self, index: int) -> tuple[str, SimulatedView, dict[str, Publisher]]:
        """Create a camera's view and publishers; return them with its name."""
        name = self.config.cameras[index]

        def announce(elapsed: float, room: Room) -> None:
            start = self._schedule.start + round(elapsed * NANOSECONDS)
            sec, nanosec = divmod(start, NANOSECONDS)
            self.get_logger().info(
                f'{name or "camera"}: {room}, from stamp {sec}.{nanosec:09d} on.')

        return name, SimulatedView(self.config, index, announce, self.get_logger().warning), {
            topic: self.create_publisher(kind, f'{name}/{topic}'.lstrip('/'), QOS)
            for topic, kind in TOPICS.items()}

    def _tick(self) -> None:
        """Publish the pictures that are due."""
        now = self.get_clock().now().nanoseconds
        number = self._schedule.due(now) if now else None  # 0: /clock has not come yet
        if number is None:
            return
        if number == 0:  # at the start, and whenever the clock was set back
            if self.published:
                self.get_logger().warning(
                    'The time went back: starting again with the first room.')
            for _, view, _ in self._cameras:
                view.restart()
        stamp = self._schedule.stamp(number)
        elapsed = (stamp - self._schedule.start) / NANOSECONDS
        for name, view, publishers in self._cameras:
            header = Header(frame_id=OPTICAL_FRAME.replace('camera', name or 'camera'))
            header.stamp.sec, header.stamp.nanosec = divmod(stamp, NANOSECONDS)
            self._info.header = header
            publishers['camera_info'].publish(self._info)
            subscribed = {topic for topic, publisher in publishers.items()
                          if publisher.get_subscription_count()}
            if not subscribed - {'camera_info'}:
                continue
            frame = view.frame(elapsed, number)
            publishers['image'].publish(Image(**image_fields(frame.rgb, 'rgb8', header)))
            if 'depth/ground_truth' in subscribed:
                depth, _ = depth_values(frame.depth, '32FC1')
                publishers['depth/ground_truth'].publish(
                    Image(**image_fields(depth, '32FC1', header)))
            if self._tf is not None:
                room = WORLD_FRAME if self.config.rig or not name else f'{name}_{WORLD_FRAME}'
                self._tf.publish(self._tf.msg_type(
                    transforms=[transform(header, room, frame.pose)]))
        self.published += 1

    def _report(self) -> None:
        """Warn once if rendering cannot keep up; the slow start does not count."""
        previous, self._skipped = self._skipped, self._schedule.skipped if self.published else -1
        new = self._skipped - previous
        if previous >= 0 and new > TOLERANCE * REPORT_SECONDS * self.config.rate:
            self.get_logger().warning(
                f'Rendering cannot keep up with {self.config.rate:g} Hz: {new} pictures skipped '
                f'in {REPORT_SECONDS:g} s, none queued. Lower rate, width and height '
                'or the number of cameras, or raise num_threads. This is said once.', once=True)


def declare_parameters(node: Node) -> SimConfig:
    """Declare all settings on a node whose overrides are declared already.

    Raises:
        ConfigError: a parameter is unknown or wrong.

    """
    parameters: dict[str, Any] = node.get_parameters_by_prefix('')
    config = SimConfig.from_dict({
        name: list(value) if isinstance(value := parameter.value, array.array) else value
        for name, parameter in parameters.items() if not ROS_PARAMETERS.match(name)})
    check_camera_names(config.cameras)
    for setting in dataclasses.fields(SimConfig):
        if node.has_parameter(setting.name):
            node.undeclare_parameter(setting.name)
        description = parameter_descriptor(setting)
        description.read_only = True
        node.declare_parameter(
            setting.name, config.to_dict()[setting.name], description, ignore_override=True)
    return config


def transform(header: Header, parent: str, pose: NDArray[np.float64]) -> TransformStamped:
    """Convert the pose of a camera to a transform from the parent frame to the header's.

    Args:
        header: of the picture.
        parent: frame of the room.
        pose: (4, 4) from optical frame to room.

    """
    translation = dict(zip('xyz', map(float, pose[:3, 3]), strict=True))
    rotation = dict(zip('xyzw', quaternion(pose[:3, :3]), strict=True))
    return TransformStamped(
        header=Header(stamp=header.stamp, frame_id=parent), child_frame_id=header.frame_id,
        transform=Transform(translation=Vector3(**translation), rotation=Quaternion(**rotation)))


def main(args: Sequence[str] | None = None) -> int:
    """Run the executable `sim_camera` until SIGINT or SIGTERM; returns its exit status."""
    arguments = sys.argv[1:] if args is None else args

    def spin(stop: Event) -> int:
        node = SimCameraNode()
        warn_of_files(node, arguments)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.2)
        node.get_logger().info(node.summary())
        node.destroy_node()
        return 0

    return run('sim_camera', spin, arguments)


if __name__ == '__main__':
    end_process(main())
