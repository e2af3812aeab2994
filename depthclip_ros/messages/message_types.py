# SPDX-License-Identifier: Apache-2.0
"""Names of message types, and functions that create and deserialise rclpy's messages.

Functions elsewhere take `create_message` or `deserialize` as their first argument, so that a bag
is converted without ROS: `bags/messages.py` has both for `rosbags`.
"""

from __future__ import annotations

import functools
import importlib
import struct
from collections.abc import Callable
from typing import Any

from ..core.errors import DataError, quoted

CreateMessage = Callable[..., Any]  # from a type such as 'sensor_msgs/msg/Image', and its fields
Deserialize = Callable[[bytes, str], Any]  # from a serialised message, and its type

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
POINT_CLOUD = 'sensor_msgs/msg/PointCloud2'
SCAN = 'sensor_msgs/msg/LaserScan'
TF = 'tf2_msgs/msg/TFMessage'

# Topics that a camera subscribes to, beside the sensor of its anchor; for the reference.
INPUTS = {
    'image': (IMAGE, 'any common encoding; image/compressed with `image_transport: compressed`'),
    'camera_info': (CAMERA_INFO, (
        'the latest one counts, also a latched one from before the start; its size must be the '
        "image's")),
    '/tf': (TF, "pose of the anchor's sensor; with `anchor: ground` of the floor"),
    '/tf_static': (TF, 'likewise, of frames that never move'),
}


@functools.cache
def message_class(message_type: str) -> Any:
    """Import and return the class of a type such as 'sensor_msgs/msg/Image'.

    Raises:
        ImportError: it is not installed.

    """
    package, _, name = message_type.split('/')
    return getattr(importlib.import_module(f'{package}.msg'), name)


def create_message(message_type: str, **fields: Any) -> Any:
    """Create a message of rclpy."""
    return message_class(message_type)(**fields)


def deserialize(raw: bytes, message_type: str) -> Any:
    """Deserialise a message by rclpy, which raises errors of its own."""
    from rclpy.serialization import deserialize_message
    return deserialize_message(raw, message_class(message_type))


def topic_name(name: str) -> str:
    """Return a topic's full name; some programs write it without the leading slash."""
    return f'/{name.removeprefix("/")}'


def type_name(name: str) -> str:
    """Return a type's name in ROS 2's spelling; some programs omit /msg/, as ROS 1 does."""
    package, slash, base_name = name.partition('/')
    return f'{package}/msg/{base_name}' if slash and '/' not in base_name else name


def parse_message(deserialize: Deserialize, raw: bytes, message_type: str,
          error_type: type[DataError]) -> Any:
    """Deserialise a message of an untrusted sender.

    Raises:
        DataError: the bytes are no message of that type; the error is an `error_type`.

    """
    try:
        return deserialize(raw, message_type)
    except Exception as reason:  # every middleware has errors of its own
        raise error_type(
            'unreadable message', f'{len(raw)} bytes are no {message_type.rpartition("/")[2]} '
            f'({quoted(str(reason))}). Check what publishes on the topic.') from reason


def cause_of(error: Exception, stage: str) -> str:
    """Return the cause under which an image is counted that failed in a stage."""
    return error.condition if isinstance(error, DataError) \
        else f'{type(error).__name__} in {stage}'


def nanoseconds(stamp: Any) -> int:
    """Convert a `builtin_interfaces/Time` to nanoseconds."""
    return int(stamp.sec) * 10 ** 9 + int(stamp.nanosec)


def stamp_of(raw: bytes) -> int | None:
    """Read the header's stamp, in nanoseconds, of a serialised message; None if it is too short.

    In CDR the stamp follows four bytes, the second of which is the byte order.
    """
    if len(raw) < 12:
        return None
    seconds, nanoseconds = struct.unpack_from('<iI' if raw[1] & 1 else '>iI', raw, 4)
    return int(seconds * 10 ** 9 + nanoseconds)
