# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays and back: the only file that reads `msg.data`.

It imports no message type, so that messages of rclpy and of `rosbags` are read alike.
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

MAX_PIXELS = 7680 * 4320  # of an image (8K); no memory is allocated for a larger one

_BIG_ENDIAN = int(sys.byteorder == 'big')

COMPRESSED_DEPTH = 'compresseddepth'  # part of a message's format, in lower case
PNG_START = b'\x89PNG\r\n\x1a\n'
_JPEG_START, _JPEG_END = b'\xff\xd8', b'\xff\xd9'
TIFF_STARTS = b'II*\0', b'MM\0*'
# Each JPEG compression has a start-of-frame marker of its own, with the size in the same place.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_CODECS = 'h264', 'h265', 'hevc', 'av1', 'vp8', 'vp9', 'mpeg4'
_VIDEO = ('It is a video stream, and no picture of it can be read by itself: decode it first '
          '(ffmpeg_image_transport, or ros2 run image_transport republish).')
_DRIVER = 'Check the camera driver.'
_NETWORK = 'Check the sender and the network (lost fragments, a size limit of the middleware).'


class Layout(NamedTuple):
    """Memory layout of a message's pixels, and their conversion to RGB."""

    channels: int  # of a pixel
    to_rgb: str | None  # code of cv2.cvtColor; None: the pixels are RGB
    bits: int = 8  # of a channel
    shared: int = 1  # pixels across (in planes also down) that share a colour


# The generic types have OpenCV's channel order. 16UC1 is read as a grey picture like mono16.
_COLOURS = {
    'rgb': (3, None), 'bgr': (3, 'BGR2RGB'), 'rgba': (4, 'RGBA2RGB'), 'bgra': (4, 'BGRA2RGB'),
    'mono': (1, 'GRAY2RGB')}
_GENERIC = {'C1': 'mono', 'C3': 'bgr', 'C4': 'bgra'}
# OpenCV names a mosaic by the four pixels one further down and right. Only the upper 8 bits of
# 16-bit mosaics are used: OpenCV interpolates them twenty times faster, within one step of 255.
_MOSAICS = {'rggb': 'BG', 'bggr': 'RG', 'gbrg': 'GR', 'grbg': 'GB'}
ENCODINGS = {
    **{f'{name}{bits}': Layout(*colours, bits)
       for bits in (8, 16) for name, colours in _COLOURS.items()},
    **{f'{bits}U{name}': Layout(*_COLOURS[order], bits)
       for bits in (8, 16) for name, order in _GENERIC.items()},
    **{f'bayer_{pattern}{bits}': Layout(1, f'Bayer{name}2RGB', bits)
       for bits in (8, 16) for pattern, name in _MOSAICS.items()},
    'yuv422': Layout(2, 'YUV2RGB_UYVY', shared=2), 'uyvy': Layout(2, 'YUV2RGB_UYVY', shared=2),
    'yuv422_yuy2': Layout(2, 'YUV2RGB_YUY2', shared=2),
    'yuyv': Layout(2, 'YUV2RGB_YUY2', shared=2),
    # A plane of Y, and below it one of U and V (nv21: V and U) for two by two pixels each, as in
    # V4L2: `height` is the picture's, `step` that of Y.
    'nv12': Layout(1, 'YUV2RGB_NV12', shared=2), 'nv21': Layout(1, 'YUV2RGB_NV21', shared=2),
}


def to_rgb(msg: Any, max_pixels: int = MAX_PIXELS) -> UInt8:
    """Decode a `sensor_msgs/Image` or a `sensor_msgs/CompressedImage` to RGB.

    rgb8 is not copied: the result is a view of the message, with the padding between its rows. Of
    16-bit channels the upper 8 bits are used, in every picture alike: a camera that uses only 10
    or 12 of the 16 bits gives dark pictures, but never flickering ones.

    The first bytes of a compressed image decide between JPEG and PNG, and its markers give the
    order of colours; the message's format only says whether it is a Bayer mosaic. An orientation
    in the file's metadata is ignored, since camera_info belongs to the picture as it is stored.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        ImageError: 'empty image', 'unknown encoding', 'odd size', 'wrong step', 'truncated data',
            'excess data', 'too many pixels' (more than `max_pixels`); of a compressed one also
            'compressed depth', 'truncated jpeg', 'truncated png', 'undecodable'.

    """
    if not hasattr(msg, 'encoding'):
        return _compressed_to_rgb(msg, max_pixels)
    layout = layout_of(msg, ENCODINGS)
    return _convert_color(pixels_of(msg, layout, max_pixels), layout.to_rgb)


def image_fields(pixels: NDArray[Any], encoding: str, header: Any) -> dict[str, Any]:
    """Return the fields of an image message of (H, W[, C]) pixels of the encoding's type."""
    # rclpy takes an array.array as it is; of any other type it checks every byte.
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data)
    return {'header': header, 'height': pixels.shape[0], 'width': pixels.shape[1],
            'encoding': encoding, 'is_bigendian': _BIG_ENDIAN,
            'step': pixels[0].size * pixels.itemsize, 'data': data}


def data_of(msg: Any) -> UInt8:
    """Return the message's data as bytes, without a copy where they are in memory."""
    data = msg.data
    if hasattr(data, 'to_bytes') and not isinstance(data, np.ndarray):
        data = data.to_bytes()  # a rosidl_buffer.Buffer, from Lyrical on
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


# Raw images --------------------------------------------------------------------------------------


def layout_of(msg: Any, layouts: dict[str, Layout]) -> Layout:
    """Return the layout of a raw image's encoding.

    Raises:
        ImageError: 'unknown encoding'.

    """
    layout = layouts.get(str(msg.encoding))
    if layout is None:
        raise ImageError(
            'unknown encoding',
            f'The image has encoding {quoted(str(msg.encoding))}; known are {", ".join(layouts)}. '
            + (_VIDEO if is_video(str(msg.encoding)) else
               'Set the camera driver to one of these, or use another topic.'))
    return layout


def pixels_of(msg: Any, layout: Layout, max_pixels: int) -> NDArray[Any]:
    """View the data as (H, W[, channels]) in the message's byte order; nv12 as (H * 3 / 2, W)."""
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
    if data.size == rows * row:
        step = row  # the amount of data says that rows are dense, whatever the message's step
    if step < row:
        raise ImageError(
            'wrong step', f'The image has step {step}, but a row of {width} pixels in '
            f'{msg.encoding} takes {row} bytes. {_DRIVER}')
    if data.size != rows * step:
        raise ImageError(
            'truncated data' if data.size < rows * step else 'excess data',
            f'The image has {data.size} bytes of data, but {rows} rows of {step} bytes (step) in '
            f'{msg.encoding} take {rows * step}. {_DRIVER}'
            + (f' {_NETWORK}' if data.size < rows * step else ''))
    check_pixel_count(width, height, max_pixels)
    order = '>' if msg.is_bigendian else '<'
    shape = (rows, width) if layout.channels == 1 else (rows, width, layout.channels)
    strides = (step, layout.channels * size, size)[:len(shape)]
    return np.ndarray(shape, f'{order}u{size}', data.data, strides=strides)


def _convert_color(pixels: NDArray[Any], code: str | None) -> UInt8:
    """Convert pixels of 8 or 16 bits a channel to RGB; the code None: they are RGB already."""
    if pixels.itemsize > 1:
        pixels = (pixels >> 8).astype(np.uint8)
    if code is None:
        return pixels
    return np.asarray(cv2.cvtColor(pixels, getattr(cv2, f'COLOR_{code}')), np.uint8)


def is_video(format_name: str) -> bool:
    """Return whether a format or encoding is a video codec, whose images need earlier ones."""
    return any(codec in format_name.lower() for codec in _CODECS)


def check_pixel_count(width: int, height: int, limit: int) -> None:
    """Refuse an image of more pixels than the limit, before memory is allocated.

    Raises:
        ImageError: 'too many pixels'.

    """
    if width * height > limit:
        raise ImageError(
            'too many pixels',
            f'The image has {width}x{height} = {width * height} pixels, but at most {limit} are '
            'decoded. Let the camera publish smaller images.')


# Compressed images -------------------------------------------------------------------------------


def _compressed_to_rgb(msg: Any, max_pixels: int) -> UInt8:
    format_name = str(msg.format)
    if COMPRESSED_DEPTH in format_name.lower():
        raise ImageError(
            'compressed depth',
            f'The compressed image has format {quoted(format_name)}: it is a depth image, not a '
            'colour picture. Remap image to a colour topic.')
    pixels = decode_compressed(data_of(msg).tobytes(), format_name, max_pixels)
    if pixels.ndim == 2:
        pattern = f'{format_name.strip()[: len("bayer_rggb")]}{8 * pixels.itemsize}'
        is_mosaic = pattern.startswith('bayer_') and pattern in ENCODINGS
        return _convert_color(pixels, ENCODINGS[pattern if is_mosaic else 'mono8'].to_rgb)
    return _convert_color(pixels, 'BGRA2RGB' if pixels.shape[2] == 4 else 'BGR2RGB')


def decode_compressed(
    data: bytes, format_name: str, max_pixels: int, *, tiff: bool = False,
) -> NDArray[Any]:
    """Decode a JPEG or PNG, or with `tiff` a TIFF, after a check of its completeness and size.

    OpenCV itself fills the missing part of a JPEG with grey, and allocates memory for any size
    that a file claims. Other formats that OpenCV reads are refused.

    Returns:
        (H, W), (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16; of a TIFF also float32.

    """
    if not data:
        raise ImageError('empty image', f'The compressed image (format {quoted(format_name)}) has '
                                        f'no data. {_DRIVER}')
    size = image_size(data) if tiff or not data.startswith(TIFF_STARTS) else None
    pixels = None
    if size is not None and all(size):
        check_pixel_count(*size, max_pixels)
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[1::-1] != size \
            or pixels.dtype not in (np.uint8, np.uint16, np.float32) \
            or (1 if pixels.ndim == 2 else pixels.shape[2]) not in (1, 3, 4):
        raise ImageError(
            'undecodable',
            f'The compressed image (format {quoted(format_name)}, {len(data)} bytes that begin '
            f'with {data[:8].hex(" ")}) is no JPEG or PNG that can be decoded. '
            + (_VIDEO if is_video(format_name) else 'For another transport subscribe to the raw '
               'image (image_transport: raw); in a bag, republish it (image_transport).'))
    return pixels


def image_size(data: bytes) -> tuple[int, int] | None:
    """Read the (width, height) of a JPEG, PNG or TIFF; None for other data, or without a size.

    Raises:
        ImageError: 'truncated jpeg', 'truncated png'.

    """
    return _jpeg_size(data) if data.startswith(_JPEG_START) else \
        _png_size(data) if data.startswith(PNG_START) else \
        _tiff_size(data) if data.startswith(TIFF_STARTS) else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read the (width, height) of a complete JPEG (ITU-T T.81, annex B); None without a size."""
    position = len(_JPEG_START)
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _START_OF_FRAME:
            # After the start of the picture's data these two bytes occur only as its end.
            if data.rfind(_JPEG_END) < position:
                raise _truncated('JPEG', data)
            return struct.unpack_from('>HH', data, position + 5)[::-1]
        length = int.from_bytes(data[position + 2:position + 4], 'big')
        position += 1 if marker == 0xFF else 2 + max(2, length)
    if position + 9 > len(data):
        raise _truncated('JPEG', data)
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Read the (width, height) of a complete PNG; None without a size.

    All chunks are checked, since the decoder allocates memory for any length that one claims.
    """
    position = len(PNG_START)
    while position + 12 <= len(data):
        kind = data[position + 4:position + 8]
        position += 12 + int.from_bytes(data[position:position + 4], 'big')
        if kind == b'IEND' and position <= len(data):
            return struct.unpack_from('>II', data, 16) if data[12:16] == b'IHDR' else None
    raise _truncated('PNG', data)


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """Read the (width, height) in a TIFF's first directory."""
    tags, _ = tiff_directory(data)
    return (tags[256], tags[257]) if {256, 257} <= tags.keys() else None


def tiff_directory(data: bytes) -> tuple[dict[int, int], int]:
    """Read a TIFF's first directory (TIFF 6.0, section 2): values by tag, as far as data go.

    The second value is the offset of the next directory; 0: there is none.
    """
    order, tags = '<' if data.startswith(b'II') else '>', dict[int, int]()
    with contextlib.suppress(struct.error):
        start, = struct.unpack_from(f'{order}I', data, 4)
        count, = struct.unpack_from(f'{order}H', data, start)
        end = start + 2 + 12 * count
        for offset in range(start + 2, end, 12):
            tag, field_type, _ = struct.unpack_from(f'{order}HHI', data, offset)
            number = 'H' if field_type == 3 else 'I'  # of 16 bits or of 32
            tags[tag], = struct.unpack_from(f'{order}{number}', data, offset + 8)
        return tags, int(struct.unpack_from(f'{order}I', data, end)[0])
    return tags, 0


def _truncated(kind: str, data: bytes) -> ImageError:
    return ImageError(
        f'truncated {kind.lower()}',
        f'The {kind} data ends after {len(data)} bytes, before the end of the image. {_NETWORK}')
