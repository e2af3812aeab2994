# SPDX-License-Identifier: Apache-2.0
"""Messages of ROS, whoever makes them: rclpy in the node, `rosbags` where a bag is converted.

What images go through knows messages by these three functions alone, so that both ways are one.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, Protocol

HEADER, TIME = 'std_msgs/msg/Header', 'builtin_interfaces/msg/Time'
IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
POINT_CLOUD, POINT_FIELD = 'sensor_msgs/msg/PointCloud2', 'sensor_msgs/msg/PointField'
REGION = 'sensor_msgs/msg/RegionOfInterest'
SCAN, RANGE = 'sensor_msgs/msg/LaserScan', 'sensor_msgs/msg/Range'
TF = 'tf2_msgs/msg/TFMessage'
DIAGNOSTICS, STATUS = 'diagnostic_msgs/msg/DiagnosticArray', 'diagnostic_msgs/msg/DiagnosticStatus'
KEY_VALUE = 'diagnostic_msgs/msg/KeyValue'
POINT = 'geometry_msgs/msg/PointStamped'
VECTOR, VECTOR_STAMPED = 'geometry_msgs/msg/Vector3', 'geometry_msgs/msg/Vector3Stamped'


class Messages(Protocol):
    """Makes, reads and serialises messages."""

    def make(self, kind: str, **fields: Any) -> Any:
        """Make a message of a type such as 'sensor_msgs/msg/Image'."""

    def read(self, raw: bytes, kind: str) -> Any:
        """Make one of its serialised form; whatever is wrong is raised as it comes."""

    def write(self, message: Any) -> bytes:
        """Serialise."""


class RclpyMessages:
    """Those that rclpy sends."""

    def __init__(self) -> None:
        """Import what serialises.

        Raises:
            ImportError: rclpy is not there.

        """
        from rclpy.serialization import deserialize_message, serialize_message
        self._deserialize, self._serialize = deserialize_message, serialize_message
        self._types: dict[str, Any] = {}

    def type(self, kind: str) -> Any:
        """Class of a type.

        Raises:
            ImportError: it is not installed.

        """
        if kind not in self._types:
            package, _, name = kind.split('/')
            self._types[kind] = getattr(importlib.import_module(f'{package}.msg'), name)
        return self._types[kind]

    def make(self, kind: str, **fields: Any) -> Any:
        """See `Messages`."""
        return self.type(kind)(**fields)

    def read(self, raw: bytes, kind: str) -> Any:
        """See `Messages`."""
        return self._deserialize(raw, self.type(kind))

    def write(self, message: Any) -> bytes:
        """See `Messages`."""
        return bytes(self._serialize(message))


@functools.cache
def of_rclpy() -> RclpyMessages:
    """The node's messages; nothing is imported before somebody asks."""
    return RclpyMessages()
