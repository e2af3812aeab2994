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
SCAN = 'sensor_msgs/msg/LaserScan'
TF = 'tf2_msgs/msg/TFMessage'

# What a camera listens to, beside the sensor of its anchor; for the reference.
INPUTS = {
    'image': (IMAGE, 'any common encoding; image/compressed with `image_transport: compressed`'),
    'camera_info': (CAMERA_INFO, (
        "the latest one counts, also one that was sent before; it must be of the image's size")),
    '/tf': (TF, 'where the sensor of the anchor is; with `anchor: ground` where the floor is'),
    '/tf_static': (TF, 'likewise, what never moves'),
}


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


def topic_name(name: str) -> str:
    """A topic's full name; some programs write it without the leading slash."""
    return f'/{name.removeprefix("/")}'


def type_name(name: str) -> str:
    """A type's name in ROS 2's spelling; some programs write it as ROS 1 does, without /msg/."""
    package, slash, kind = name.partition('/')
    return f'{package}/msg/{kind}' if slash and '/' not in kind else name


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


def cause_of(error: Exception, stage: str) -> str:
    """What an image is counted under that failed of an error in a stage."""
    return error.condition if isinstance(error, DataError) \
        else f'{type(error).__name__} in {stage}'


def nanoseconds(stamp: Any) -> int:
    """Nanoseconds of a `builtin_interfaces/Time`."""
    return int(stamp.sec) * 10 ** 9 + int(stamp.nanosec)


def stamp_of(raw: bytes) -> int | None:
    """Nanoseconds of the header that a serialised message begins with; None if it is too short.

    CDR has the stamp behind four bytes, of which the second tells the order of bytes.
    """
    if len(raw) < 12:
        return None
    seconds, nanoseconds = struct.unpack_from('<iI' if raw[1] & 1 else '>iI', raw, 4)
    return int(seconds * 10 ** 9 + nanoseconds)
