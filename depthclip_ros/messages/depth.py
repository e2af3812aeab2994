# SPDX-License-Identifier: Apache-2.0
"""Depth images to metres and back (REP-118), and which of their numbers are no measurement."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ImageError, quoted
from .image_io import (
    COMPRESSED_DEPTH,
    MAX_PIXELS,
    PNG_START,
    Layout,
    check_pixel_count,
    data_of,
    decoded,
    layout_of,
    pixels_of,
)

Float32 = NDArray[np.float32]

MILLIMETRES = 1000.0
UINT16_MAX = 65535
# 16UC1 and mono16 are millimetres, 32FC1 and 64FC1 metres.
_DEPTHS = {'16UC1': Layout(1, None, 16), 'mono16': Layout(1, None, 16),
           '32FC1': Layout(1, None, 32), '64FC1': Layout(1, None, 64)}
# Before what compressed_depth_image_transport has compressed: its kind (int32), and of quantised
# inverse depth two numbers (float32).
_HEADER = 12
_LONGEST_NUMBER = 11  # nibbles of 3 bits, more than any number of 32 bits has


def to_depth(msg: Any, max_pixels: int = MAX_PIXELS) -> Float32:
    """Give the depth in an image message (REP-118), or in a compressed one.

    Raw ones are 32FC1 or 64FC1 in metres, or 16UC1 (also mono16) in millimetres. Compressed ones
    are PNG or RVL behind the header of compressed_depth_image_transport, of 16UC1 and of 32FC1
    (whose 16 bits hold quantised inverse depth); a bare PNG of 16 bits in millimetres; and a TIFF
    of floating point, as compressed_image_transport makes it of 32FC1. Whether there is a header,
    the place of the PNG's signature says, not the format.

    Returns:
        float32 (H, W) metres; NaN where nothing was measured, see `measured`.

    Raises:
        ImageError: as `to_rgb`; 'no depth' where a compressed one is a picture.

    """
    if not hasattr(msg, 'encoding'):
        return _compressed_to_depth(msg, max_pixels)
    pixels = pixels_of(msg, layout_of(msg, _DEPTHS), max_pixels)
    return measured(pixels if pixels.itemsize == 2 else pixels.view(
        f'{pixels.dtype.byteorder}f{pixels.itemsize}'))


def measured(pixels: NDArray[Any]) -> Float32:
    """Metres of a sensor's numbers, a new array: the one place that says what is no measurement.

    Args:
        pixels: unsigned 16-bit integers in millimetres, of which 0 and 65535 say that there is no
            measurement; or floating point in metres, of which 0, negative, NaN and infinite do.

    """
    metres = pixels.astype(np.float32)
    if pixels.dtype.kind == 'u':
        metres[pixels == UINT16_MAX] = np.nan
        metres /= np.float32(MILLIMETRES)
    metres[~(np.isfinite(metres) & (metres > 0))] = np.nan
    return metres


def depth_values(
    depth: NDArray[np.floating[Any]], encoding: str,
) -> tuple[Float32 | NDArray[np.uint16], int]:
    """Pixels of a depth image (REP-118).

    Args:
        depth: (H, W) metres, NaN where unknown, -Inf or +Inf where too near or too far (REP-117).
        encoding: '32FC1' (metres, as they are) or '16UC1' (millimetres, rounded, 0 for all else).

    Returns:
        The pixels, and the number of those with a depth that 16UC1 cannot hold (below 0.5 mm, or
        65.5345 m and more: 65535 says that there is none) and that are therefore 0 in it. Infinite
        depth is 0 too, and not counted: it says that the depth is out of the range asked for, not
        how large it is.

    Raises:
        ValueError: the encoding is neither of the two.

    """
    metres = np.asarray(depth, np.float32)
    if encoding == '32FC1':
        return metres, 0
    if encoding != '16UC1':
        raise ValueError(f'depth encoding is {encoding!r}, but must be 32FC1 or 16UC1')
    millimetres = np.rint(metres * np.float32(MILLIMETRES))
    valid = (millimetres >= 1) & (millimetres < UINT16_MAX)
    beyond = np.count_nonzero(~valid & np.isfinite(metres))
    return np.where(valid, millimetres, 0).astype(np.uint16), int(beyond)


def _compressed_to_depth(msg: Any, max_pixels: int) -> Float32:
    described, data = str(msg.format), data_of(msg).tobytes()
    is_rvl = COMPRESSED_DEPTH in described.lower() and 'rvl' in described.lower()
    has_header = is_rvl or data.startswith(PNG_START, _HEADER)
    header, data = (data[:_HEADER], data[_HEADER:]) if has_header else (b'', data)
    pixels = _rvl(data, max_pixels) if is_rvl else decoded(
        data, described, max_pixels, tiff=True)
    if pixels.ndim != 2 or pixels.dtype not in (np.uint16, np.float32):
        raise ImageError(
            'no depth',
            f'The compressed depth image (format {quoted(described)}) holds {pixels.dtype} pixels '
            f'of shape {pixels.shape}, but depth is one channel of 16 bits or of floating point. '
            'Use the topic of the depth image itself, not a picture of it.')
    if len(header) < _HEADER or not described.lstrip().startswith('32FC1'):
        return measured(pixels)
    near, far = np.frombuffer(header, '<f4', offset=4)
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        metres = near / (pixels.astype(np.float32) - far)
    return measured(np.where(pixels > 0, metres, np.float32(np.nan)))


def _rvl(data: bytes, max_pixels: int) -> NDArray[np.uint16]:
    """Decode RVL: runs of zeros and of differences, in numbers of variable length.

    As in Wilson, Fast Lossless Depth Image Compression, 2017, section 3; before the codes are
    width and height, as compressed_depth_image_transport writes them.

    Raises:
        ImageError: 'empty image', 'too many pixels', 'truncated rvl'.

    """
    width, height = struct.unpack_from('<ii', data.ljust(8, b'\0'))
    if width <= 0 or height <= 0:
        raise ImageError('empty image', f'The RVL depth image, {len(data)} bytes, has '
                                        f'{width}x{height} pixels. Check what compresses it.')
    check_pixel_count(width, height, max_pixels)
    words = np.frombuffer(data[8:len(data) - len(data) % 4], '<u4').astype(np.int64)
    # Eight nibbles a word, the highest first; the upper bit of one says that its number goes on.
    nibbles = (words[:, None] >> np.arange(28, -1, -4, dtype=np.int64) & 15).ravel()
    ends = np.flatnonzero(nibbles < 8)
    lengths = np.diff(ends, prepend=-1)
    starts = ends - lengths + 1
    pixels = np.zeros(width * height, np.int64)
    if len(ends) and lengths.max() <= _LONGEST_NUMBER:
        places = np.arange(ends[-1] + 1) - np.repeat(starts, lengths)
        numbers = np.add.reduceat(
            (nibbles[:len(places)] & 7) << 3 * places, starts)
        if _fill(pixels, numbers):
            return pixels.astype(np.uint16).reshape(height, width)
    raise ImageError(
        'truncated rvl', f'The RVL depth image is of {width}x{height} pixels, but its {len(data)} '
        'bytes hold other than that. Check the sender and the network (lost fragments).')


def _fill(pixels: NDArray[np.int64], numbers: NDArray[np.int64]) -> bool:
    """Write runs: so many zeros, so many others, and their differences; whether all fits."""
    differences = (numbers >> 1) ^ -(numbers & 1)
    place = at = last = 0
    while place < len(pixels):
        zeros, others = (int(number) for number in numbers[at:at + 2]) \
            if at + 2 <= len(numbers) else (0, 0)
        run = last + np.cumsum(differences[at + 2:at + 2 + others])
        place, at = place + zeros + others, at + 2 + others
        if not zeros + others or len(run) < others or place > len(pixels):
            return False
        pixels[place - others:place] = run
        last = int(run[-1]) if others else last
    return True
