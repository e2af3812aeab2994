# SPDX-License-Identifier: Apache-2.0
"""JPEG and PNG data to pixels, with a check beforehand that the data is whole and of which size.

A decoder does not tell: OpenCV 4 fills the missing part of a JPEG with grey and prints a warning,
and no version of it looks at the checksums of a PNG. So the segments of a JPEG, or the chunks of a
PNG, are followed to their end first, which costs microseconds. That also gives the picture's size
before a byte is allocated for it: a file of a few thousand bytes can claim gigabytes of pixels.
Damage in the middle of a JPEG's compressed data that leaves this structure alone is not seen; its
decoder prints one line about it to the standard error output, past every logger, and cannot be
told not to.

Other files that OpenCV reads are refused. compressed_image_transport's pictures are JPEG or PNG,
and what a TIFF, WebP, GIF or PNM holds is only known when its decoder has allocated it.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from depthclip_ros.core.errors import ImageError, quoted
from depthclip_ros.core.opencv import cv2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_JPEG_START = b'\xff\xd8'
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
# Every kind of compression has its own start of frame, with the size in the same place.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD9)])  # TEM, RST0..7, SOI
# In a scan, 0xff is followed by 0 (a data byte 0xff) or a restart marker; anything else ends it.
_SCAN_END = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
# A progressive JPEG has about ten scans. One of a hundred bytes can take as long to decode as the
# whole picture, so that their number is bounded, like that of the parts which Python looks at.
_MOST_SCANS = 64
_MOST_SEGMENTS = 2000

_PNG_START = b'\x89PNG\r\n\x1a\n'
_PNG_HEADER, _PNG_DATA, _PNG_END = b'IHDR', b'IDAT', b'IEND'
# The other chunks (texts, colour profiles, transparency, further pictures of an animation) change
# no colour, and the decoder does not get them.
_PNG_PICTURE = (_PNG_HEADER, b'PLTE', _PNG_DATA, _PNG_END)
_ANCILLARY = 0x20  # bit of a chunk's first letter
_MOST_CHUNKS = 100_000


class ImageFile(NamedTuple):
    """A JPEG or PNG that is whole, not decoded yet."""

    width: int
    height: int
    data: bytes
    described: str  # what the sender says about it, for messages


def read(data: bytes, described: str) -> ImageFile:
    """Check an image file's structure and find its size; nothing is decoded.

    Args:
        data: The file's bytes.
        described: What the sender says about it, for messages.

    Raises:
        ImageError: 'truncated jpeg', 'truncated png', 'undecodable'.

    """
    if data.startswith(_JPEG_START):
        width, height = _read_jpeg(data)
    elif data.startswith(_PNG_START):
        width, height, data = _read_png(data)
    else:
        raise _undecodable(data, described, 'it is neither JPEG nor PNG')
    if not width or not height:
        raise _undecodable(data, described, f'its size is {width}x{height}')
    return ImageFile(width, height, data, described)


def decode(file: ImageFile) -> NDArray[Any]:
    """Decode a whole image file.

    Returns:
        (H, W), (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16.

    Raises:
        ImageError: 'undecodable'.

    """
    data, described = file.data, file.described
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _undecodable(data, described, quoted(str(error))) from error
    if pixels is None:
        raise _undecodable(data, described, 'the decoder does not accept it')
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if (pixels.shape[:2] != (file.height, file.width) or channels not in (1, 3, 4)
            or pixels.dtype not in (np.uint8, np.uint16)):
        raise _undecodable(
            data, described, f'{pixels.dtype} pixels of shape {pixels.shape} are no picture of '
            f'{file.width}x{file.height}')
    return pixels


def _undecodable(data: bytes, described: str, reason: str) -> ImageError:
    return ImageError(
        'undecodable',
        f'The compressed image (format {quoted(described)}, {len(data)} bytes that begin with '
        f'{data[:8].hex(" ")}) cannot be decoded: {reason}. JPEG and PNG images can; for another '
        'transport subscribe to the raw image (image_transport: raw).',
    )


def _corrupt(kind: str, reason: str) -> ImageError:
    return ImageError(
        'undecodable',
        f'The {kind} data is corrupt: {reason}. Check the sender and the network.')


def _truncated(kind: str, size: int) -> ImageError:
    return ImageError(
        f'truncated {kind.lower()}',
        f'The {kind} data ends after {size} bytes, before the end of the image. Check the '
        'sender and the network (lost fragments, a size limit of the middleware).',
    )


def _read_jpeg(data: bytes) -> tuple[int, int]:
    """Give the size that a JPEG's only frame has."""
    segments = list(_segments(data))
    frames = [content for marker, content in segments if marker in _START_OF_FRAME]
    scans = sum(marker == _START_OF_SCAN for marker, _ in segments)
    if len(frames) != 1 or not scans:
        raise _corrupt('JPEG', f'it has {len(frames)} frames and {scans} scans')
    if scans > _MOST_SCANS:
        raise ImageError(
            'too many scans',
            f'The JPEG picture comes in {scans} scans, each of which takes as long to decode as '
            f'a picture; usual are 1 to 10, and at most {_MOST_SCANS} are decoded. Check the '
            'sender.')
    return int.from_bytes(frames[0][3:5], 'big'), int.from_bytes(frames[0][1:3], 'big')


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Follow the markers (ITU-T T.81, annex B) from start to end of image; give what they hold.

    A decoder searches on where there is no marker. Here that is an error, so that no frame is
    found there which is not found here.
    """
    position = len(_JPEG_START)
    for _ in range(_MOST_SEGMENTS):
        if position + 1 >= len(data):
            raise _truncated('JPEG', len(data))
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0:
            raise _corrupt('JPEG', f'no marker at byte {position} of {len(data)}, but '
                                   f'{data[position : position + 2].hex(" ")}')
        if marker == _END_OF_IMAGE:
            return
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            length = int.from_bytes(data[position + 2 : position + 4], 'big')
            if position + 2 + max(length, 2) > len(data):
                raise _truncated('JPEG', len(data))
            if length < 2:
                raise _corrupt('JPEG', f'the segment at byte {position} has length {length}')
            yield marker, data[position + 4 : position + 2 + length]
            position += 2 + length
            if marker == _START_OF_SCAN:
                end = _SCAN_END.search(data, position)
                position = end.start() if end else len(data)
    raise _corrupt('JPEG', f'it has more than {_MOST_SEGMENTS} segments')


def _read_png(data: bytes) -> tuple[int, int, bytes]:
    """Follow the chunks (length, type, data, CRC) to IEND; give size, and the picture alone."""
    view, parts, position = memoryview(data), [], len(_PNG_START)
    for _ in range(_MOST_CHUNKS):
        end = position + 12 + int.from_bytes(data[position : position + 4], 'big')
        if end > len(data):
            raise _truncated('PNG', len(data))
        kind = data[position + 4 : position + 8]
        if zlib.crc32(view[position + 4 : end - 4]).to_bytes(4, 'big') != data[end - 4 : end]:
            raise _corrupt('PNG', f'the checksum of the chunk at byte {position} is wrong')
        if kind in _PNG_PICTURE:
            parts.append((kind, view[position:end]))
        elif not kind[0] & _ANCILLARY:
            raise _corrupt('PNG', f'the chunk {quoted(kind)} at byte {position} is unknown')
        position = end
        if kind == _PNG_END:
            break
    else:
        raise _corrupt('PNG', f'it has more than {_MOST_CHUNKS} chunks')
    kinds, chunks = zip(*parts, strict=True)
    if kinds[0] != _PNG_HEADER or kinds.count(_PNG_HEADER) > 1 or _PNG_DATA not in kinds:
        raise _corrupt('PNG', 'it holds no picture')
    width, height = (int.from_bytes(chunks[0][i : i + 4], 'big') for i in (8, 12))
    return width, height, b''.join((_PNG_START, *chunks))
