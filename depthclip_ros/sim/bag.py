# SPDX-License-Identifier: Apache-2.0
"""A drive through a rendered room as a rosbag2 bag (mcap), as a RGB-D camera would record it.

Pure Python (`rosbags`); no ROS is needed to write or to read it.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from depthclip_ros.sim.camera import SimCamera, trajectory
from depthclip_ros.sim.render import RenderOptions, render
from depthclip_ros.sim.rooms import Scene

OPTICAL_FRAME = 'camera_color_optical_frame'
WORLD_FRAME = 'world'
START = 1_700_000_000  # seconds
NANOSECONDS = 1_000_000_000


def write_bag(path: str | Path, scene: Scene, camera: SimCamera | None = None, *,
              frames: int = 30, rate: float = 10.0, noise: float = 0.01, seed: int = 0) -> None:
    """Write a bag of `frames` frames at `rate` Hz; `path` is the folder to make.

    Topics: /camera/color/image_raw (rgb8), /camera/color/camera_info, /camera/depth/image_raw
    (32FC1 metres, exact), /camera/depth/camera_info, /tf (world to the optical frame).

    Raises:
        rosbags.rosbag2.WriterError: the folder exists already.

    """
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore
    store = get_typestore(Stores.ROS2_HUMBLE)
    camera = camera or SimCamera()
    path_of_camera = trajectory(scene, seed)
    messages = _Messages(store.types)
    # Version 8 is what Humble, Jazzy and later all read.
    with Writer(Path(path), version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connections: dict[str, Any] = {}
        for number in range(frames):
            elapsed = number / rate
            stamp = START * NANOSECONDS + round(elapsed * NANOSECONDS)
            frame = render(scene, camera, path_of_camera.pose(elapsed),
                           RenderOptions(noise=noise, seed=seed + number))
            header = messages.header(stamp, OPTICAL_FRAME)
            info = messages.camera_info(header, camera)
            for topic, message in (
                ('/tf', messages.transform(messages.header(stamp, WORLD_FRAME), frame.pose)),
                ('/camera/color/camera_info', info),
                ('/camera/color/image_raw', messages.image(header, 'rgb8', frame.rgb)),
                ('/camera/depth/camera_info', info),
                ('/camera/depth/image_raw', messages.image(header, '32FC1', frame.depth)),
            ):
                kind = message.__msgtype__
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=store)
                writer.write(connections[topic], stamp, store.serialize_cdr(message, kind))


class _Messages:
    """ROS messages as `rosbags` has them, by their type names."""

    def __init__(self, types: Any) -> None:
        self.types = types

    def header(self, stamp: int, frame_id: str) -> Any:
        time = self.types['builtin_interfaces/msg/Time'](*divmod(stamp, NANOSECONDS))
        return self.types['std_msgs/msg/Header'](stamp=time, frame_id=frame_id)

    def image(self, header: Any, encoding: str, pixels: np.ndarray) -> Any:
        height, width = pixels.shape[:2]
        data = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1)
        return self.types['sensor_msgs/msg/Image'](
            header=header, height=height, width=width, encoding=encoding, is_bigendian=0,
            step=data.size // height, data=data)

    def camera_info(self, header: Any, camera: SimCamera) -> Any:
        matrix = camera.matrix
        region = self.types['sensor_msgs/msg/RegionOfInterest'](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        return self.types['sensor_msgs/msg/CameraInfo'](
            header=header, height=camera.height, width=camera.width,
            distortion_model='plumb_bob', d=np.array(camera.distortion), k=matrix.reshape(-1),
            r=np.eye(3).reshape(-1), p=np.hstack([matrix, np.zeros((3, 1))]).reshape(-1),
            binning_x=0, binning_y=0, roi=region)

    def transform(self, header: Any, pose: np.ndarray) -> Any:
        x, y, z, w = quaternion(pose[:3, :3])
        types = self.types
        transform = types['geometry_msgs/msg/Transform'](
            translation=types['geometry_msgs/msg/Vector3'](*(float(v) for v in pose[:3, 3])),
            rotation=types['geometry_msgs/msg/Quaternion'](x=x, y=y, z=z, w=w))
        stamped = types['geometry_msgs/msg/TransformStamped'](
            header=header, child_frame_id=OPTICAL_FRAME, transform=transform)
        return types['tf2_msgs/msg/TFMessage'](transforms=[stamped])


def quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Unit quaternion (x, y, z, w) of a rotation matrix, w not negative."""
    # The eigenvector of the largest eigenvalue of a symmetric matrix (Bar-Itzhack 2000): no cases.
    r = rotation
    symmetric = np.array([
        [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
        [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
        [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], 0],
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]]])
    vector = np.linalg.eigh(symmetric)[1][:, -1]
    if vector[3] < 0:
        vector = -vector
    x, y, z, w = (float(v) for v in vector)
    return x, y, z, w
