# SPDX-License-Identifier: Apache-2.0
"""Messages as the middleware carries them: serialised.

Those that come are read only when they are needed: an image that is dropped is never converted,
and the pixels of one that is answered are used where they lie. Of those that go, little changes
from one to the next: the rest is serialised once.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from ..core.errors import DataError, ImageError, quoted
from .messages import HEADER, IMAGE, TIME, Messages, of_rclpy

# Plain CDR (OMG DDSI-RTPS 10.2) in little endian, as every ROS middleware writes it on usual
# processors: these four bytes, then the fields in order, each number at a multiple of its size.
_PLAIN_CDR = b'\x00\x01\x00\x00'
_STAMP = slice(4, 12)  # of a message that begins with a header
_STAMPS = {0: struct.Struct('>iI'), 1: struct.Struct('<iI')}  # CDR's second byte: byte order
_STAMP_AND_LENGTH, _SIZE_AND_LENGTH, _STEP_AND_LENGTH = map(
    struct.Struct, ('<iII', '<III', '<II'))


class SerializedImage(NamedTuple):
    """The fields of sensor_msgs/Image; `data` is a view of the serialised bytes."""

    header: Any
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: memoryview


def read_image(raw: bytes, messages: Messages | None = None) -> Any:
    """Read a sensor_msgs/Image; one in another form than plain CDR is left to the middleware.

    Args:
        raw: the message, serialised.
        messages: whose the header is to be; None for rclpy.

    Returns:
        A `SerializedImage`, or a message.

    Raises:
        ImageError: neither can read it.

    """
    try:
        return _read_plain(raw, messages or of_rclpy())
    except (IndexError, ValueError, struct.error):
        return read(raw, IMAGE, ImageError, messages)


def read(
    raw: bytes, kind: str, error: type[DataError], messages: Messages | None = None,
) -> Any:
    """Read a message of any type, by way of the middleware, or of what is given instead of it.

    Raises:
        DataError: it is none of that type; of the type `error`.

    """
    try:
        return (messages or of_rclpy()).read(raw, kind)
    except Exception as reason:  # every middleware raises its own
        raise error(
            'unreadable message', f'{len(raw)} bytes are no {kind.rpartition("/")[2]} '
            f'({quoted(str(reason))}). Check what publishes on the topic.') from reason


def content(raw: bytes) -> bytes:
    """All of a message that begins with a header but its stamp, for a first comparison.

    What is equal here is equal; equal messages can differ in the bytes that fill gaps.
    """
    return raw[:_STAMP.start] + raw[_STAMP.stop:]


def stamp_of(raw: bytes) -> int | None:
    """Stamp in nanoseconds of a message that begins with a header; None if it is too short."""
    if len(raw) < _STAMP.stop:
        return None
    seconds, nanoseconds = _STAMPS[raw[1] & 1].unpack_from(raw, _STAMP.start)
    return int(seconds * 10 ** 9 + nanoseconds)


class Template:
    """A message that is serialised once, and gets another stamp and other data every time."""

    def __init__(
        self, message: Any, behind: int = 0, messages: Messages | None = None,
    ) -> None:
        """Serialise.

        Args:
            message: it begins with a header; its `data`, if it has any, is an array of bytes.
            behind: bytes that the fields behind the data take.
            messages: what serialises it; None for rclpy.

        Raises:
            RuntimeError: the middleware serialises otherwise than in CDR.

        """
        raw = (messages or of_rclpy()).write(message)
        data = getattr(message, 'data', b'')
        end = len(raw) - behind
        self._encapsulation = raw[:_STAMP.start]
        self._stamp = struct.Struct('<iI' if raw[1] & 1 else '>iI')
        self._between, self._behind = raw[_STAMP.stop:end - len(data)], raw[end:]
        if self.filled(message.header.stamp, data) != raw:
            raise RuntimeError(
                f'{type(message).__name__} has another form than CDR in this middleware '
                f'({raw[:16].hex(" ")}...); use another one: RMW_IMPLEMENTATION.')

    def filled(self, stamp: Any, data: Any = b'') -> bytes:
        """Give the message with that stamp and data, a buffer as long as the first."""
        return b''.join((self._encapsulation, self._stamp.pack(stamp.sec, stamp.nanosec),
                         self._between, data, self._behind))


def _read_plain(raw: bytes, messages: Messages) -> SerializedImage:
    if raw[:4] != _PLAIN_CDR:
        raise ValueError('not plain CDR in little endian')
    seconds, nanoseconds, length = _STAMP_AND_LENGTH.unpack_from(raw, 4)
    frame_id, place = _text(raw, 16, length)
    height, width, length = _SIZE_AND_LENGTH.unpack_from(raw, _aligned(place))
    encoding, place = _text(raw, _aligned(place) + _SIZE_AND_LENGTH.size, length)
    is_bigendian = raw[place]
    place = _aligned(place + 1)
    step, length = _STEP_AND_LENGTH.unpack_from(raw, place)
    place += _STEP_AND_LENGTH.size
    if not place + length <= len(raw) < place + length + 4:  # it may be filled up to 4 bytes
        raise ValueError('its length is not that of its fields')
    header = messages.make(
        HEADER, stamp=messages.make(TIME, sec=seconds, nanosec=nanoseconds), frame_id=frame_id)
    return SerializedImage(header, height, width, encoding, is_bigendian, step,
                           memoryview(raw)[place:place + length])


def _text(raw: bytes, place: int, length: int) -> tuple[str, int]:
    """Text of that length with its closing 0, and the place behind it."""
    end = place + length
    if length < 1 or raw.find(0, place, end) != end - 1:  # the middleware's ends at the first 0
        raise ValueError('a text without its end, or with several')
    return raw[place:end - 1].decode(), end


def _aligned(place: int) -> int:
    return -(-place // 4) * 4
