# SPDX-License-Identifier: Apache-2.0
"""Depth images to metres and back (REP-118), with NaN for pixels that are no measurement."""

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
    decode_compressed,
    layout_of,
    pixels_of,
)

Float32 = NDArray[np.float32]

MILLIMETRES = 1000.0
UINT16_MAX = 65535
# 16UC1 and mono16 are millimetres, 32FC1 and 64FC1 metres.
_DEPTH_LAYOUTS = {'16UC1': Layout(1, None, 16), 'mono16': Layout(1, None, 16),
                  '32FC1': Layout(1, None, 32), '64FC1': Layout(1, None, 64)}
# compressed_depth_image_transport's header before the compressed data: a kind (int32), and two
# parameters (float32) of quantised inverse depth.
_HEADER_BYTES = 12
_MAX_NIBBLES = 11  # of 3 bits, in a number of 32 bits


def to_depth(msg: Any, max_pixels: int = MAX_PIXELS) -> Float32:
    """Decode a depth image message (REP-118), raw or compressed.

    Raw images are 32FC1 or 64FC1 in metres, or 16UC1 (also mono16) in millimetres. Compressed
    images are PNG or RVL after the header of compressed_depth_image_transport, of 16UC1 or of
    32FC1 (whose 16 bits are quantised inverse depth); a bare 16-bit PNG in millimetres; or a
    floating-point TIFF, as compressed_image_transport makes it of 32FC1. The position of the PNG's
    signature, not the format, decides whether there is a header.

    Returns:
        float32 (H, W) metres; NaN where nothing was measured, see `metres_from_pixels`.

    Raises:
        ImageError: as `to_rgb`; 'no depth' if a compressed image is a picture.

    """
    if not hasattr(msg, 'encoding'):
        return _compressed_to_depth(msg, max_pixels)
    pixels = pixels_of(msg, layout_of(msg, _DEPTH_LAYOUTS), max_pixels)
    return metres_from_pixels(pixels if pixels.itemsize == 2 else pixels.view(
        f'{pixels.dtype.byteorder}f{pixels.itemsize}'))


def metres_from_pixels(pixels: NDArray[Any]) -> Float32:
    """Convert a sensor's pixels to a new array of metres, NaN where they are no measurement.

    Args:
        pixels: unsigned 16-bit integers in millimetres, where 0 and 65535 are no measurement; or
            floating point in metres, where only positive finite values are measurements.

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
    """Convert depth to the pixels of a depth image (REP-118).

    Args:
        depth: (H, W) metres, NaN where unknown, -Inf or +Inf where too near or too far (REP-117).
        encoding: '32FC1' (metres, as they are) or '16UC1' (millimetres, rounded, 0 for all else).

    Returns:
        The pixels, and the number of finite depths that 16UC1 cannot hold (below 0.5 mm, or
        65.5345 m and more, since 65535 means no measurement), which are 0. Infinite depth, which
        is out of the user's range, is 0 too, and not counted.

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
    format_name, data = str(msg.format), data_of(msg).tobytes()
    is_rvl = COMPRESSED_DEPTH in format_name.lower() and 'rvl' in format_name.lower()
    has_header = is_rvl or data.startswith(PNG_START, _HEADER_BYTES)
    header, data = (data[:_HEADER_BYTES], data[_HEADER_BYTES:]) if has_header else (b'', data)
    pixels = _decode_rvl(data, max_pixels) if is_rvl else decode_compressed(
        data, format_name, max_pixels, tiff=True)
    if pixels.ndim != 2 or pixels.dtype not in (np.uint16, np.float32):
        raise ImageError(
            'no depth',
            f'The compressed depth image (format {quoted(format_name)}) holds {pixels.dtype} '
            f'pixels of shape {pixels.shape}, but depth is one channel of 16 bits or of floating '
            'point. '
            'Use the topic of the depth image itself, not a picture of it.')
    if len(header) < _HEADER_BYTES or not format_name.lstrip().startswith('32FC1'):
        return metres_from_pixels(pixels)
    near, far = np.frombuffer(header, '<f4', offset=4)
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        metres = near / (pixels.astype(np.float32) - far)
    return metres_from_pixels(np.where(pixels > 0, metres, np.float32(np.nan)))


def _decode_rvl(data: bytes, max_pixels: int) -> NDArray[np.uint16]:
    """Decode RVL: runs of zeros and of differences, as numbers of variable length.

    Source: Wilson, Fast Lossless Depth Image Compression, 2017, section 3. Width and height
    precede the codes, as compressed_depth_image_transport writes them.

    Raises:
        ImageError: 'empty image', 'too many pixels', 'truncated rvl'.

    """
    width, height = struct.unpack_from('<ii', data.ljust(8, b'\0'))
    if width <= 0 or height <= 0:
        raise ImageError('empty image', f'The RVL depth image, {len(data)} bytes, has '
                                        f'{width}x{height} pixels. Check what compresses it.')
    check_pixel_count(width, height, max_pixels)
    words = np.frombuffer(data[8:len(data) - len(data) % 4], '<u4').astype(np.int64)
    # Eight nibbles a word, the highest first; a nibble's upper bit says that the number goes on.
    nibbles = (words[:, None] >> np.arange(28, -1, -4, dtype=np.int64) & 15).ravel()
    ends = np.flatnonzero(nibbles < 8)
    lengths = np.diff(ends, prepend=-1)
    starts = ends - lengths + 1
    pixels = np.zeros(width * height, np.int64)
    if len(ends) and lengths.max() <= _MAX_NIBBLES:
        positions = np.arange(ends[-1] + 1) - np.repeat(starts, lengths)
        numbers = np.add.reduceat(
            (nibbles[:len(positions)] & 7) << 3 * positions, starts)
        if _fill_runs(pixels, numbers):
            return pixels.astype(np.uint16).reshape(height, width)
    raise ImageError(
        'truncated rvl', f'The RVL depth image is of {width}x{height} pixels, but its {len(data)} '
        'bytes hold other than that. Check the sender and the network (lost fragments).')


def _fill_runs(pixels: NDArray[np.int64], numbers: NDArray[np.int64]) -> bool:
    """Write runs (count of zeros, count of differences, differences); return whether all fit."""
    differences = (numbers >> 1) ^ -(numbers & 1)
    pixel = position = previous = 0
    while pixel < len(pixels):
        zeros, length = (int(number) for number in numbers[position:position + 2]) \
            if position + 2 <= len(numbers) else (0, 0)
        run = previous + np.cumsum(differences[position + 2:position + 2 + length])
        pixel, position = pixel + zeros + length, position + 2 + length
        if not zeros + length or len(run) < length or pixel > len(pixels):
            return False
        pixels[pixel - length:pixel] = run
        previous = int(run[-1]) if length else previous
    return True
