# SPDX-License-Identifier: Apache-2.0
"""Names of the messages that are used, and the functions that make and read rclpy's.

What makes messages takes `make` as its first argument, what reads them `read`: here are those of
rclpy, and `bags/messages.py` has those of `rosbags`.
"""

from __future__ import annotations

import functools
import importlib
import struct
from typing import TYPE_CHECKING, Any

from ..core.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.errors import DataError

    # Of a type such as 'sensor_msgs/msg/Image', and its fields: the message.
    Make = Callable[..., Any]
    # Of a serialised message, and its type: the message; whatever is wrong is raised as it comes.
    Read = Callable[[bytes, str], Any]

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
POINT_CLOUD, POINT_FIELD = 'sensor_msgs/msg/PointCloud2', 'sensor_msgs/msg/PointField'
REGION = 'sensor_msgs/msg/RegionOfInterest'
SCAN, RANGE = 'sensor_msgs/msg/LaserScan', 'sensor_msgs/msg/Range'
TF = 'tf2_msgs/msg/TFMessage'
DIAGNOSTICS, STATUS = 'diagnostic_msgs/msg/DiagnosticArray', 'diagnostic_msgs/msg/DiagnosticStatus'
KEY_VALUE = 'diagnostic_msgs/msg/KeyValue'
VECTOR, VECTOR_STAMPED = 'geometry_msgs/msg/Vector3', 'geometry_msgs/msg/Vector3Stamped'

# Where CDR has the stamp of a message that begins with a header. Its second byte is the order of
# bytes.
_STAMP = slice(4, 12)
_STAMPS = {0: struct.Struct('>iI'), 1: struct.Struct('<iI')}


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
    """Stamp in nanoseconds of a serialised message that begins with a header; None if too short.

    It is looked up where it is, so that a message which nobody uses is never read.
    """
    if len(raw) < _STAMP.stop:
        return None
    seconds, nanoseconds = _STAMPS[raw[1] & 1].unpack_from(raw, _STAMP.start)
    return int(seconds * 10 ** 9 + nanoseconds)
