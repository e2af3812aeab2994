# SPDX-License-Identifier: Apache-2.0
"""Types of the messages that are used; those of rclpy are made and read here.

What makes messages takes `make` as its first argument, what reads them `read`, so that a bag is
converted without ROS: `bags/messages.py` has those of `rosbags`.
"""

from __future__ import annotations

import functools
import importlib
import struct
from collections.abc import Callable
from typing import Any

from ..core.errors import DataError, quoted

Make = Callable[..., Any]  # of a type such as 'sensor_msgs/msg/Image', and its fields
Read = Callable[[bytes, str], Any]  # of a serialised message, and its type

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
POINT_CLOUD = 'sensor_msgs/msg/PointCloud2'
SCAN, RANGE = 'sensor_msgs/msg/LaserScan', 'sensor_msgs/msg/Range'
TF = 'tf2_msgs/msg/TFMessage'
DIAGNOSTICS = 'diagnostic_msgs/msg/DiagnosticArray'
VECTOR_STAMPED = 'geometry_msgs/msg/Vector3Stamped'


@functools.cache
def message_class(kind: str) -> Any:
    """Class of a type such as 'sensor_msgs/msg/Image'; nothing is imported before.

    Raises:
        ImportError: it is not installed.

    """
    package, _, name = kind.split('/')
    return getattr(importlib.import_module(f'{package}.msg'), name)


def make(kind: str, **fields: Any) -> Any:
    """Make a message of rclpy."""
    return message_class(kind)(**fields)


def read(raw: bytes, kind: str) -> Any:
    """Read a message that rclpy has serialised; whatever is wrong is raised as it comes."""
    from rclpy.serialization import deserialize_message
    return deserialize_message(raw, message_class(kind))


def parse(read: Read, raw: bytes, kind: str, error_type: type[DataError]) -> Any:
    """Read a message of whoever sent it.

    Raises:
        DataError: it is none of that type; of the type `error_type`.

    """
    try:
        return read(raw, kind)
    except Exception as reason:  # every middleware raises its own
        raise error_type(
            'unreadable message', f'{len(raw)} bytes are no {kind.rpartition("/")[2]} '
            f'({quoted(str(reason))}). Check what publishes on the topic.') from reason


def stamp_of(raw: bytes) -> int | None:
    """Nanoseconds of the header that a serialised message begins with; None if it is too short.

    CDR has the stamp behind four bytes, of which the second tells the order of bytes.
    """
    if len(raw) < 12:
        return None
    seconds, nanoseconds = struct.unpack_from('<iI' if raw[1] & 1 else '>iI', raw, 4)
    return int(seconds * 10 ** 9 + nanoseconds)
