# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays and back: the only file that touches `msg.data`.

No message type is imported: rclpy's messages and those of `rosbags` are read alike.
"""

from __future__ import annotations

import array
import contextlib
import struct
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ImageError, quoted
from ..core.opencv import cv2

UInt8 = NDArray[np.uint8]

MAX_PIXELS = 7680 * 4320  # of an image (8K); for a larger one no memory is taken

_BIG_ENDIAN = int(sys.byteorder == 'big')
_MILLIMETRES = 1000.0
_UINT16_MAX = 65535
_COMPRESSED_DEPTH = 'compresseddepth'  # in a message's format, whatever its capitals
# Before the PNG of compressed_depth_image_transport: format (int32), two numbers (float32).
_DEPTH_HEADER = 12

_JPEG_START, _JPEG_END, _PNG_START = b'\xff\xd8', b'\xff\xd9', b'\x89PNG\r\n\x1a\n'
# Every kind of compression has its own start of frame, with the size in the same place.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DRIVER = 'Check the camera driver.'
_NETWORK = 'Check the sender and the network (lost fragments, a size limit of the middleware).'


class _Layout(NamedTuple):
    """How pixels lie in a message, and what makes RGB of them."""

    channels: int  # of a pixel
    to_rgb: str | None  # code of cv2.cvtColor; None: it is RGB
    bits: int = 8  # of a channel
    shared: int = 1  # pixels across (and down, of planes) that share a colour


# The generic types have OpenCV's order of colours. 16UC1 is read as a grey picture like mono16.
_COLOURS = {
    'rgb': (3, None), 'bgr': (3, 'BGR2RGB'), 'rgba': (4, 'RGBA2RGB'), 'bgra': (4, 'BGRA2RGB'),
    'mono': (1, 'GRAY2RGB')}
_GENERIC = {'C1': 'mono', 'C3': 'bgr', 'C4': 'bgra'}
# OpenCV names a mosaic by the four pixels one further down and right. Of 16-bit mosaics the upper
# 8 bits are taken first: OpenCV interpolates those twenty times faster, within one step of 255.
_MOSAICS = {'rggb': 'BG', 'bggr': 'RG', 'gbrg': 'GR', 'grbg': 'GB'}
ENCODINGS = {
    **{f'{name}{bits}': _Layout(*colours, bits)
       for bits in (8, 16) for name, colours in _COLOURS.items()},
    **{f'{bits}U{name}': _Layout(*_COLOURS[order], bits)
       for bits in (8, 16) for name, order in _GENERIC.items()},
    **{f'bayer_{pattern}{bits}': _Layout(1, f'Bayer{name}2RGB', bits)
       for bits in (8, 16) for pattern, name in _MOSAICS.items()},
    'yuv422': _Layout(2, 'YUV2RGB_UYVY', shared=2), 'uyvy': _Layout(2, 'YUV2RGB_UYVY', shared=2),
    'yuv422_yuy2': _Layout(2, 'YUV2RGB_YUY2', shared=2),
    'yuyv': _Layout(2, 'YUV2RGB_YUY2', shared=2),
    # A plane of Y, and below it one of U and V (nv21: V and U) for every two by two pixels, as
    # V4L2 has it: `height` is the picture's, `step` that of Y.
    'nv12': _Layout(1, 'YUV2RGB_NV12', shared=2), 'nv21': _Layout(1, 'YUV2RGB_NV21', shared=2),
}
# 16UC1 and mono16 are millimetres, 32FC1 metres.
_DEPTHS = {'16UC1': _Layout(1, None, 16), 'mono16': _Layout(1, None, 16),
           '32FC1': _Layout(1, None, 32)}


def to_rgb(msg: Any, max_pixels: int = MAX_PIXELS) -> UInt8:
    """Give the picture in a `sensor_msgs/Image` or a `sensor_msgs/CompressedImage`.

    rgb8 is not copied: the result looks into the message, and rows keep their padding between
    them. Of 16-bit channels the upper 8 bits count, in every picture alike: a camera that uses
    only 10 or 12 of the 16 bits gives dark pictures, but never flickering ones.

    A compressed image is a JPEG or a PNG; which, its own first bytes say. The message's format
    says what was compressed: a Bayer mosaic is converted, and colours that were compressed in the
    order RGB are not swapped. An orientation in the file's own notes is not followed: it would be
    another picture than the one that camera_info belongs to.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        ImageError: 'empty image', 'unknown encoding', 'odd size', 'wrong step', 'truncated data',
            'excess data', 'too many pixels' (more than `max_pixels`); of a compressed one also
            'compressed depth', 'truncated jpeg', 'truncated png', 'undecodable'.

    """
    if not hasattr(msg, 'encoding'):
        return _compressed_to_rgb(msg, max_pixels)
    layout = _layout(msg, ENCODINGS)
    return _converted(_pixels(msg, layout, max_pixels), layout.to_rgb)


def to_depth(msg: Any, max_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
    """Give the depth in an image message (REP-118), or in a compressed one.

    Of compressed ones are known the PNG of compressed_depth_image_transport, of 16UC1 and of
    32FC1 (whose 16 bits hold quantised inverse depth), and a bare PNG of 16 bits in millimetres,
    as compressed_image_transport makes it of 16UC1. Raw ones are 32FC1 in metres, or 16UC1 (also
    mono16) in millimetres.

    Returns:
        float32 (H, W) metres; NaN where there is none: 0, negative, NaN or infinite.

    Raises:
        ImageError: as `to_rgb`; 'no depth' where a compressed one is a picture.

    """
    if not hasattr(msg, 'encoding'):
        return _compressed_to_depth(msg, max_pixels)
    pixels = _pixels(msg, _layout(msg, _DEPTHS), max_pixels)
    if pixels.itemsize == 2:
        return _known(pixels.astype(np.float32) / np.float32(_MILLIMETRES))
    return _known(pixels.view(f'{pixels.dtype.byteorder}f4').astype(np.float32))


def depth_values(
    depth: NDArray[np.floating[Any]], encoding: str,
) -> tuple[NDArray[np.float32] | NDArray[np.uint16], int]:
    """Pixels of a depth image (REP-118).

    Args:
        depth: (H, W) metres, NaN where unknown, -Inf or +Inf where too near or too far (REP-117).
        encoding: '32FC1' (metres, as they are) or '16UC1' (millimetres, rounded, 0 for all else).

    Returns:
        The pixels, and the number of those with a depth that 16UC1 cannot hold (below 0.5 mm,
        above 65.535 m) and that are therefore 0 in it. Infinite depth is 0 too, and not counted:
        it says that the depth is out of the range asked for, not how large it is.

    Raises:
        ValueError: the encoding is neither of the two.

    """
    metres = np.asarray(depth, np.float32)
    if encoding == '32FC1':
        return metres, 0
    if encoding != '16UC1':
        raise ValueError(f'depth encoding is {encoding!r}, but must be 32FC1 or 16UC1')
    millimetres = np.rint(metres * np.float32(_MILLIMETRES))
    valid = (millimetres >= 1) & (millimetres <= _UINT16_MAX)
    beyond = np.count_nonzero(~valid & np.isfinite(metres))
    return np.where(valid, millimetres, 0).astype(np.uint16), int(beyond)


def image_fields(pixels: NDArray[Any], encoding: str, header: Any) -> dict[str, Any]:
    """Fields of an image message of (H, W[, C]) pixels that have its encoding's type already."""
    # rclpy takes an array.array as it is; of anything else it looks at every byte.
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data)
    return {'header': header, 'height': pixels.shape[0], 'width': pixels.shape[1],
            'encoding': encoding, 'is_bigendian': _BIG_ENDIAN,
            'step': pixels[0].size * pixels.itemsize, 'data': data}


def data_of(msg: Any) -> UInt8:
    """The message's data, without a copy where it is in memory."""
    data = msg.data
    if hasattr(data, 'to_bytes') and not isinstance(data, np.ndarray):
        data = data.to_bytes()  # rosidl_buffer.Buffer, from Lyrical on
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


# Raw images --------------------------------------------------------------------------------------


def _layout(msg: Any, known: dict[str, _Layout]) -> _Layout:
    layout = known.get(str(msg.encoding))
    if layout is None:
        raise ImageError(
            'unknown encoding',
            f'The image has encoding {quoted(str(msg.encoding))}; known are {", ".join(known)}. '
            'Set the camera driver to one of these, or use another topic.')
    return layout


def _pixels(msg: Any, layout: _Layout, max_pixels: int) -> NDArray[Any]:
    """(H, W[, channels]) view of the data in the message's byte order; of nv12 (H * 3 / 2, W)."""
    data = data_of(msg)
    width, height, step = int(msg.width), int(msg.height), int(msg.step)
    if not (data.size and width and height):
        raise ImageError('empty image', f'The image ({width}x{height}, encoding {msg.encoding}) '
                                        f'has {data.size} bytes of data. {_DRIVER}')
    planes = (layout.to_rgb or '')[-4:-2] == 'NV'
    for name, size in (('width', width), ('height', height if planes else 0)):
        if size % layout.shared:
            raise ImageError(
                'odd size', f'The image has {name} {size}, but {msg.encoding} needs an even '
                f'{name}, because neighbours share their colour. {_DRIVER}')
    size = layout.bits // 8
    row, rows = width * layout.channels * size, height * 3 // 2 if planes else height
    if step < row:
        raise ImageError(
            'wrong step', f'The image has step {step}, but a row of {width} pixels in '
            f'{msg.encoding} takes {row} bytes. {_DRIVER}')
    if data.size != rows * step:
        raise ImageError(
            'truncated data' if data.size < rows * step else 'excess data',
            f'The image has {data.size} bytes of data, but {rows} rows of {step} bytes (step) in '
            f'{msg.encoding} take {rows * step}. {_DRIVER} {_NETWORK}')
    _check_pixel_count(width, height, max_pixels)
    order = '>' if msg.is_bigendian else '<'
    shape = (rows, width) if layout.channels == 1 else (rows, width, layout.channels)
    strides = (step, layout.channels * size, size)[:len(shape)]
    return np.ndarray(shape, f'{order}u{size}', data.data, strides=strides)


def _converted(pixels: NDArray[Any], code: str | None) -> UInt8:
    """RGB of pixels with 8 or 16 bits a channel; None: they are RGB already."""
    if pixels.itemsize > 1:
        pixels = (pixels >> 8).astype(np.uint8)
    if code is None:
        return pixels
    return np.asarray(cv2.cvtColor(pixels, getattr(cv2, f'COLOR_{code}')), np.uint8)


def _check_pixel_count(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise ImageError(
            'too many pixels',
            f'The image has {width}x{height} = {width * height} pixels, but at most {most} are '
            'decoded. Let the camera publish smaller images.')


# Compressed images -------------------------------------------------------------------------------


def _compressed_to_rgb(msg: Any, max_pixels: int) -> UInt8:
    described = str(msg.format)
    if _COMPRESSED_DEPTH in described.lower():
        raise ImageError(
            'compressed depth',
            f'The compressed image has format {quoted(described)}: it is a depth image, not a '
            'colour picture. Remap image to a colour topic.')
    pixels = _decoded(data_of(msg).tobytes(), described, max_pixels)
    original, _, compression = described.partition(';')
    if pixels.ndim == 2:
        pattern = f'{original.strip()[: len("bayer_rggb")]}{8 * pixels.itemsize}'
        known = pattern.startswith('bayer_') and pattern in ENCODINGS
        return _converted(pixels, ENCODINGS[pattern if known else 'mono8'].to_rgb)
    order = 'RGB' if 'compressed rgb' in compression else 'BGR'
    if pixels.shape[2] == 4:
        return _converted(pixels, f'{order}A2RGB')
    return _converted(pixels, None if order == 'RGB' else 'BGR2RGB')


def _compressed_to_depth(msg: Any, max_pixels: int) -> NDArray[np.float32]:
    described, data = str(msg.format), data_of(msg).tobytes()
    inverse = None
    if _COMPRESSED_DEPTH in described.lower():
        header, data = data[:_DEPTH_HEADER], data[_DEPTH_HEADER:]
        if described.startswith('32FC1') and len(header) == _DEPTH_HEADER:
            inverse = np.frombuffer(header, '<f4', offset=4)
    pixels = _decoded(data, described, max_pixels)
    if pixels.ndim != 2 or pixels.dtype != np.uint16:
        raise ImageError(
            'no depth',
            f'The compressed depth image (format {quoted(described)}) holds {pixels.dtype} pixels '
            f'of shape {pixels.shape}, but depth is one channel of 16 bits. Use the topic of the '
            'depth image itself, not a picture of it.')
    if inverse is None:
        return _known(pixels.astype(np.float32) / np.float32(_MILLIMETRES))
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        metres = inverse[0] / (pixels.astype(np.float32) - inverse[1])
    return _known(np.where(pixels > 0, metres, np.float32(np.nan)))


def _known(metres: NDArray[np.float32]) -> NDArray[np.float32]:
    """In place: NaN for what is no depth."""
    metres[~(np.isfinite(metres) & (metres > 0))] = np.nan
    return metres


def _decoded(data: bytes, described: str, max_pixels: int) -> NDArray[Any]:
    """Decode a JPEG or PNG that is whole and not too large.

    A decoder does not tell: OpenCV fills the missing part of a JPEG with grey, and takes memory
    for whatever size a file claims. Other files that it reads are refused.

    Returns:
        (H, W), (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16.

    """
    if not data:
        raise ImageError('empty image', f'The compressed image (format {quoted(described)}) has '
                                        f'no data. {_DRIVER}')
    size = _jpeg_size(data) if data.startswith(_JPEG_START) else \
        _png_size(data) if data.startswith(_PNG_START) else None
    pixels = None
    if size is not None and all(size):
        _check_pixel_count(*size, max_pixels)
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[1::-1] != size or pixels.dtype not in (np.uint8, np.uint16) \
            or (1 if pixels.ndim == 2 else pixels.shape[2]) not in (1, 3, 4):
        raise ImageError(
            'undecodable',
            f'The compressed image (format {quoted(described)}, {len(data)} bytes that begin with '
            f'{data[:8].hex(" ")}) is no JPEG or PNG that can be decoded. For another transport '
            'subscribe to the raw image (image_transport: raw).')
    return pixels


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG that is whole (ITU-T T.81, annex B); None if it has none."""
    position = len(_JPEG_START)
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _START_OF_FRAME:
            # From the picture's data on these two bytes are its end and nothing else.
            if data.rfind(_JPEG_END) < position:
                raise _truncated('JPEG', data)
            return struct.unpack_from('>HH', data, position + 5)[::-1]
        length = int.from_bytes(data[position + 2:position + 4], 'big')
        position += 1 if marker == 0xFF else 2 + max(2, length)
    if position + 9 > len(data):
        raise _truncated('JPEG', data)
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a PNG that is whole; None if it has none.

    Its chunks are followed to the end: the decoder takes memory for any length that one claims.
    """
    position = len(_PNG_START)
    while position + 12 <= len(data):
        kind = data[position + 4:position + 8]
        position += 12 + int.from_bytes(data[position:position + 4], 'big')
        if kind == b'IEND' and position <= len(data):
            return struct.unpack_from('>II', data, 16) if data[12:16] == b'IHDR' else None
    raise _truncated('PNG', data)


def _truncated(kind: str, data: bytes) -> ImageError:
    return ImageError(
        f'truncated {kind.lower()}',
        f'The {kind} data ends after {len(data)} bytes, before the end of the image. {_NETWORK}')
