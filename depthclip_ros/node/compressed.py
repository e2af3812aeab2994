# SPDX-License-Identifier: Apache-2.0
"""JPEG and PNG data to pixels, with a check that the data is all there.

A decoder does not tell: OpenCV 4 fills the missing part of a JPEG with grey and prints a warning.
So the segments of a JPEG, or the chunks of a PNG, are followed to their end first, which costs
microseconds. Damage in the middle of compressed data that leaves this structure alone is not seen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from depthclip_ros.core.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_JPEG_START = b'\xff\xd8'
_PNG_START = b'\x89PNG\r\n\x1a\n'
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
# In a scan, 0xff is followed by 0 (a data byte 0xff) or a restart marker; anything else ends it.
_SCAN_END = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD9)])  # TEM, RST0..7, SOI


def decode(data: bytes, described: str) -> NDArray[Any]:
    """Decode a whole image file.

    Args:
        data: The file's bytes.
        described: What the sender says about it, for messages.

    Returns:
        (H, W), (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16.

    Raises:
        ImageError: 'truncated jpeg', 'truncated png', 'undecodable'.

    """
    if data.startswith(_JPEG_START):
        _check_jpeg(data)
    elif data.startswith(_PNG_START):
        _check_png(data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _undecodable(data, described, str(error)) from error
    if pixels is None:
        raise _undecodable(data, described, 'no decoder accepts it')
    if pixels.dtype not in (np.uint8, np.uint16):
        raise _undecodable(data, described, f'pixels of type {pixels.dtype} are no colours')
    return pixels


def _undecodable(data: bytes, described: str, reason: str) -> ImageError:
    return ImageError(
        'undecodable',
        f'The compressed image (format {described!r}, {len(data)} bytes that begin with '
        f'{data[:8].hex(" ")}) cannot be decoded: {reason}. JPEG and PNG images can; for another '
        'transport subscribe to the raw image (image_transport: raw).',
    )


def _truncated(kind: str, size: int) -> ImageError:
    return ImageError(
        f'truncated {kind}',
        f'The {kind.upper()} data ends after {size} bytes, before the end of the image. Check the '
        'sender and the network (lost fragments, a size limit of the middleware).',
    )


def _check_jpeg(data: bytes) -> None:
    """Follow the markers (ITU-T T.81, annex B) from start to end of image."""
    position = len(_JPEG_START)
    while position + 1 < len(data):
        if data[position] != 0xFF:
            raise ImageError(
                'undecodable',
                f'The JPEG data is corrupt: no marker at byte {position} of {len(data)}, but '
                f'{data[position]:#04x}. Check the sender and the network.',
            )
        marker = data[position + 1]
        if marker == _END_OF_IMAGE:
            return
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], 'big')
            if marker == _START_OF_SCAN:
                end = _SCAN_END.search(data, position)
                position = end.start() if end else len(data)
    raise _truncated('jpeg', len(data))


def _check_png(data: bytes) -> None:
    """Follow the chunks (length, type, data, CRC) to IEND."""
    position = len(_PNG_START)
    while position + 12 <= len(data):
        kind = data[position + 4 : position + 8]
        position += 12 + int.from_bytes(data[position : position + 4], 'big')
        if kind == b'IEND' and position <= len(data):
            return
    raise _truncated('png', len(data))
