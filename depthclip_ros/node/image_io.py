# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays and back: the only file that touches ``msg.data``.

No message type is imported: rclpy's messages and those of ``rosbags`` are read alike.

Nothing is ever assigned to ``msg.data``: its setter looks at every byte (Humble) or iterates over
an array (Jazzy), some 50 ms for a 640x480 float image. The array that is already in the message is
filled in place instead, 0.1 ms.
"""

from __future__ import annotations

import array
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from depthclip_ros.core.errors import ImageError, quoted
from depthclip_ros.core.opencv import cv2

from . import compressed
from .config import NodeConfig
from .messages import IMAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header

    from .messages import Messages

    UInt8 = NDArray[np.uint8]

_BIG_ENDIAN = int(sys.byteorder == 'big')
_MILLIMETRES = 1000.0
_UINT16_MAX = 65535
_COMPRESSED_DEPTH = 'compresseddepth'  # in a message's format, whatever its capitals
# Before the PNG of compressed_depth_image_transport: format (int32), two numbers (float32).
_DEPTH_HEADER = 12
_BAYER_LEAST = 3  # OpenCV gives black below
# The longest that a JPEG can have. Resizing goes by one side after the other: with 64 million
# pixels in one row or column, what is in between takes tens of gigabytes.
_LONGEST_SIDE = 65535


class _Layout(NamedTuple):
    channels: int
    to_rgb: str | None  # code of cv2.cvtColor, None: it is RGB
    bits: int = 8


# The generic types have OpenCV's order of colours. 16UC1 is read as a grey picture like mono16.
_DIRECT = {
    'rgb8': _Layout(3, None),
    'bgr8': _Layout(3, 'BGR2RGB'),
    'rgba8': _Layout(4, 'RGBA2RGB'),
    'bgra8': _Layout(4, 'BGRA2RGB'),
    'mono8': _Layout(1, 'GRAY2RGB'),
    '8UC1': _Layout(1, 'GRAY2RGB'),
    '8UC3': _Layout(3, 'BGR2RGB'),
    '8UC4': _Layout(4, 'BGRA2RGB'),
    'rgb16': _Layout(3, None, 16),
    'bgr16': _Layout(3, 'BGR2RGB', 16),
    'rgba16': _Layout(4, 'RGBA2RGB', 16),
    'bgra16': _Layout(4, 'BGRA2RGB', 16),
    'mono16': _Layout(1, 'GRAY2RGB', 16),
    '16UC1': _Layout(1, 'GRAY2RGB', 16),
    '16UC3': _Layout(3, 'BGR2RGB', 16),
    '16UC4': _Layout(4, 'BGRA2RGB', 16),
}
# OpenCV names a mosaic by the four pixels one further down and right. Of 16-bit mosaics the upper
# 8 bits are taken first: OpenCV interpolates those twenty times faster, within one step of 255.
BAYER = {
    f'bayer_{pattern}{bits}': _Layout(1, code, bits)
    for pattern, code in (
        ('rggb', 'BayerBG2RGB'),
        ('bggr', 'BayerRG2RGB'),
        ('gbrg', 'BayerGR2RGB'),
        ('grbg', 'BayerGB2RGB'),
    )
    for bits in (8, 16)
}
PACKED_YUV = {
    'yuv422': _Layout(2, 'YUV2RGB_UYVY'),
    'uyvy': _Layout(2, 'YUV2RGB_UYVY'),
    'yuv422_yuy2': _Layout(2, 'YUV2RGB_YUY2'),
    'yuyv': _Layout(2, 'YUV2RGB_YUY2'),
}
INTERLEAVED = {**_DIRECT, **BAYER, **PACKED_YUV}
_PLANAR_YUV = ('nv12', 'nv21', 'nv24')
ENCODINGS = (*INTERLEAVED, *_PLANAR_YUV)
_NV24_ROWS = 64  # that are converted at once


def to_rgb(msg: Image, max_pixels: int = NodeConfig.max_pixels) -> UInt8:
    """Give the picture in an image message, whatever its encoding.

    rgb8 is not copied: the result looks into the message, and rows keep their padding between
    them. Of 16-bit channels the upper 8 bits count, in every picture alike: a camera that uses
    only 10 or 12 of the 16 bits gives dark pictures, but never flickering ones.

    Args:
        msg: The message.
        max_pixels: Largest product of width and height that is converted.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        ImageError: 'empty image', 'zero size', 'unknown encoding', 'odd size', 'too small',
            'wrong step', 'truncated data', 'excess data', 'too many pixels', 'side too long'.

    """
    encoding, data = str(msg.encoding), data_of(msg)
    _check_present(msg, data)
    if encoding in _PLANAR_YUV:
        return _planar_to_rgb(msg, data, max_pixels)
    layout = INTERLEAVED.get(encoding)
    if layout is None:
        raise ImageError(
            'unknown encoding',
            f'The image has encoding {quoted(encoding)}; known are {", ".join(ENCODINGS)}. Set '
            'the camera driver to one of these.',
        )
    if encoding in PACKED_YUV:
        _check_even(msg, 'width', msg.width)
    pixels = _pixels(msg, data, layout, max_pixels)
    if encoding in BAYER:
        _check_bayer_size(pixels, encoding)
    return _converted(pixels, layout.to_rgb)


def compressed_to_rgb(
    msg: CompressedImage, max_pixels: int = NodeConfig.max_pixels,
) -> UInt8:
    """Give the picture in a compressed image message, which is a JPEG or a PNG.

    Which of them the data is, its own first bytes say. The message's format says what was
    compressed: a Bayer mosaic is converted, and colours that were compressed in the order RGB are
    not swapped. An orientation in the file's own notes is not followed: it would be another
    picture than the one that camera_info belongs to.

    Args:
        msg: The message.
        max_pixels: Largest product of width and height that is decoded.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        ImageError: 'empty image', 'compressed depth', 'truncated jpeg', 'truncated png',
            'undecodable', 'too many scans', 'too small', 'too many pixels', 'side too long'.

    """
    described = str(msg.format)
    data = data_of(msg).tobytes()
    if not data:
        raise ImageError(
            'empty image',
            f'The compressed image (format {quoted(described)}) has no data. Check the camera '
            'driver.',
        )
    if _COMPRESSED_DEPTH in described.lower():
        raise ImageError(
            'compressed depth',
            f'The compressed image has format {quoted(described)}: it is a depth image, not a '
            'colour picture. Remap image to a colour topic.',
        )
    file = compressed.read(data, described)
    _check_pixel_count(file.width, file.height, max_pixels)
    pixels = compressed.decode(file)
    original, _, compression = described.partition(';')
    if pixels.ndim == 2:
        pattern = f'{original.strip()[: len("bayer_rggb")]}{8 * pixels.itemsize}'
        if pattern not in BAYER:
            return _converted(pixels, 'GRAY2RGB')
        _check_bayer_size(pixels, pattern)
        return _converted(pixels, BAYER[pattern].to_rgb)
    is_rgb = 'compressed rgb' in compression
    if pixels.shape[2] == 4:
        return _converted(pixels, 'RGBA2RGB' if is_rgb else 'BGRA2RGB')
    return _converted(pixels, None if is_rgb else 'BGR2RGB')


def to_depth(
    msg: Image, max_pixels: int = NodeConfig.max_pixels,
) -> NDArray[np.float32]:
    """Give the depth in a depth image message (REP-118).

    Args:
        msg: 32FC1 in metres, or 16UC1 (also mono16) in millimetres.
        max_pixels: Largest product of width and height that is converted.

    Returns:
        float32 (H, W) metres; NaN where there is none: 0, negative, NaN or infinite.

    Raises:
        ImageError: As `to_rgb`.

    """
    encoding, data = str(msg.encoding), data_of(msg)
    _check_present(msg, data)
    if encoding in ('16UC1', 'mono16'):
        return _from_millimetres(_pixels(msg, data, _Layout(1, None, 16), max_pixels))
    if encoding != '32FC1':
        raise ImageError(
            'unknown encoding',
            f'The depth image has encoding {quoted(encoding)}; known are 32FC1 (metres) and '
            '16UC1 (millimetres). Use the topic of the depth image itself, not a picture of it.',
        )
    pixels = _pixels(msg, data, _Layout(1, None, 32), max_pixels)
    return _known(pixels.view(f'{pixels.dtype.byteorder}f4').astype(np.float32))


def compressed_to_depth(
    msg: CompressedImage, max_pixels: int = NodeConfig.max_pixels,
) -> NDArray[np.float32]:
    """Give the depth in a compressed message.

    Known are the PNG of compressed_depth_image_transport, of 16UC1 and of 32FC1 (whose 16 bits
    hold quantised inverse depth), and a bare PNG of 16 bits in millimetres, as
    compressed_image_transport makes it of 16UC1.

    Args:
        msg: The message.
        max_pixels: Largest product of width and height that is decoded.

    Returns:
        As `to_depth`.

    Raises:
        ImageError: As `compressed_to_rgb`, and 'no depth'.

    """
    described, data = str(msg.format), data_of(msg).tobytes()
    inverse = None
    if _COMPRESSED_DEPTH in described.lower():
        header, data = data[:_DEPTH_HEADER], data[_DEPTH_HEADER:]
        if described.startswith('32FC1') and len(header) == _DEPTH_HEADER:
            inverse = np.frombuffer(header, '<f4', offset=4)
    if not data:
        raise ImageError(
            'empty image', f'The compressed depth image (format {quoted(described)}) has no data. '
                           'Check the camera driver.')
    if 'rvl' in described.lower():
        raise ImageError(
            'undecodable', f'The compressed depth image has format {quoted(described)}; known is '
                           'PNG. Record with compressedDepth format png, or the raw depth image.')
    file = compressed.read(data, described)
    _check_pixel_count(file.width, file.height, max_pixels)
    pixels = compressed.decode(file)
    if pixels.ndim != 2 or pixels.dtype != np.uint16:
        raise ImageError(
            'no depth',
            f'The compressed depth image (format {quoted(described)}) holds {pixels.dtype} pixels '
            f'of shape {pixels.shape}, but depth is one channel of 16 bits. Use the topic of the '
            'depth image itself, not a picture of it.')
    if inverse is None:
        return _from_millimetres(pixels)
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        metres = inverse[0] / (pixels.astype(np.float32) - inverse[1])
    return _known(np.where(pixels > 0, metres, np.float32(np.nan)))


def _from_millimetres(pixels: NDArray[Any]) -> NDArray[np.float32]:
    return _known(pixels.astype(np.float32) / np.float32(_MILLIMETRES))


def _known(metres: NDArray[np.float32]) -> NDArray[np.float32]:
    """In place: NaN for what is no depth."""
    metres[~(np.isfinite(metres) & (metres > 0))] = np.nan
    return metres


def depth_image(
    msg: Image, depth: NDArray[np.floating[Any]], encoding: str, header: Header
) -> int:
    """Fill an image message with depth (REP-118); the same message may be filled again.

    Args:
        msg: The message to fill.
        depth: (H, W) metres, NaN where unknown, -Inf or +Inf where too near or too far (REP-117).
        encoding: '32FC1' (metres, as they are) or '16UC1' (millimetres, rounded, 0 for all else).
        header: Of the image that the depth belongs to.

    Returns:
        Number of pixels with a depth that 16UC1 cannot hold (below 0.5 mm, above 65.535 m) and
        that are therefore 0 in it. Infinite depth is 0 too, and not counted: it says that the
        depth is out of the range asked for, not how large it is. Always 0 for 32FC1.

    Raises:
        ValueError: The encoding is neither of the two.

    """
    values, beyond = depth_values(depth, encoding)
    fill_image(msg, values, encoding, header)
    return beyond


def depth_values(
    depth: NDArray[np.floating[Any]], encoding: str,
) -> tuple[NDArray[np.float32] | NDArray[np.uint16], int]:
    """Pixels of a depth image, and how many the encoding cannot hold; see `depth_image`."""
    metres = np.asarray(depth, np.float32)
    if encoding == '32FC1':
        return metres, 0
    if encoding != '16UC1':
        raise ValueError(f'depth encoding is {encoding!r}, but must be 32FC1 or 16UC1')
    millimetres = np.rint(metres * np.float32(_MILLIMETRES))
    valid = (millimetres >= 1) & (millimetres <= _UINT16_MAX)
    beyond = np.count_nonzero(~valid & np.isfinite(metres))
    return np.where(valid, millimetres, 0).astype(np.uint16), int(beyond)


def color_image(msg: Image, pixels: UInt8, header: Header, encoding: str = 'bgr8') -> None:
    """Fill an image message with a (H, W, 3) picture; bgr8 or rgb8 says which order it has."""
    fill_image(msg, np.asarray(pixels, np.uint8), encoding, header)


def fill_data(msg: Any, values: NDArray[Any]) -> None:
    """Put an array's bytes into ``msg.data``, in place; also used for point clouds."""
    view = bytes_of(values)
    data = msg.data
    if not isinstance(data, array.array):
        # A message type that holds its bytes in something else; assigning an array.array is
        # never slow.
        msg.data = array.array('B', view.tobytes())
    elif len(data) == len(view):
        memoryview(data)[:] = view
    else:
        del data[:]
        data.frombytes(view)


def bytes_of(values: NDArray[Any]) -> memoryview:
    """View an array's bytes, row by row; a copy of them if it has gaps."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def image_message(
    messages: Messages, pixels: NDArray[Any], encoding: str, header: Any,
) -> Any:
    """Make an image message of pixels that have its encoding's type already."""
    return messages.make(
        IMAGE, header=header, height=pixels.shape[0], width=pixels.shape[1], encoding=encoding,
        is_bigendian=_BIG_ENDIAN, step=pixels[0].size * pixels.itemsize,
        data=array.array('B', bytes_of(pixels).tobytes()))


def fill_image(msg: Image, pixels: NDArray[Any], encoding: str, header: Header) -> None:
    """Fill an image message with pixels that have its encoding's type already."""
    msg.header = header
    msg.height, msg.width = pixels.shape[:2]
    msg.encoding = encoding
    msg.is_bigendian = _BIG_ENDIAN
    msg.step = pixels[0].size * pixels.itemsize
    fill_data(msg, pixels)


def data_of(msg: Any) -> UInt8:
    """The message's data, without a copy where it is in memory."""
    data = msg.data
    if hasattr(data, 'to_bytes') and not isinstance(data, np.ndarray):
        data = data.to_bytes()  # rosidl_buffer.Buffer, from Lyrical on
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


def _pixels(msg: Image, data: UInt8, layout: _Layout, max_pixels: int) -> NDArray[Any]:
    """(H, W) or (H, W, channels) view of the data in the message's byte order."""
    width, height, step = int(msg.width), int(msg.height), int(msg.step)
    channels, size = layout.channels, layout.bits // 8
    _check_layout(msg, data, width * channels * size, height * step)
    _check_pixel_count(width, height, max_pixels)
    order = '>' if msg.is_bigendian else '<'
    shape = (height, width) if channels == 1 else (height, width, channels)
    strides = (step, channels * size) if channels == 1 else (step, channels * size, size)
    return np.ndarray(shape, f'{order}u{size}', data.data, strides=strides)


def _check_layout(msg: Image, data: UInt8, row: int, size: int) -> None:
    if msg.step < row:
        raise ImageError(
            'wrong step',
            f'The image has step {msg.step}, but a row of {msg.width} pixels in {msg.encoding} '
            f'takes {row} bytes. Check the camera driver.',
        )
    if data.size == size:
        return
    described = (
        f'The image has {data.size} bytes of data, but {msg.height} rows of {msg.step} bytes '
        f'(step) in {msg.encoding} take {size}.'
    )
    if data.size < size:
        raise ImageError(
            'truncated data',
            f'{described} Check the camera driver and the network (lost fragments, a size limit '
            'of the middleware).',
        )
    raise ImageError('excess data', f'{described} Check height and step in the camera driver.')


def _check_present(msg: Image, data: UInt8) -> None:
    if not data.size:
        raise ImageError(
            'empty image',
            f'The image ({msg.width}x{msg.height}, encoding {quoted(str(msg.encoding))}) has no '
            'data. Check the camera driver.',
        )
    if not msg.width or not msg.height:
        raise ImageError(
            'zero size',
            f'The image has size {msg.width}x{msg.height} but {data.size} bytes of data. Check '
            'the camera driver.',
        )


def _check_pixel_count(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise ImageError(
            'too many pixels',
            f'The image has {width}x{height} = {width * height} pixels, but max_pixels is {most}. '
            'Let the camera publish smaller images, or raise that parameter.',
        )
    if max(width, height) > _LONGEST_SIDE:
        raise ImageError(
            'side too long',
            f'The image has size {width}x{height}, but neither side may be longer than '
            f'{_LONGEST_SIDE}. Check the camera driver.',
        )


def _check_bayer_size(pixels: NDArray[Any], encoding: str) -> None:
    height, width = pixels.shape
    if min(width, height) < _BAYER_LEAST:
        raise ImageError(
            'too small',
            f'The image has size {width}x{height}, but the colours of {encoding} are '
            f'interpolated from at least {_BAYER_LEAST}x{_BAYER_LEAST}. Check the camera driver.',
        )


def _check_even(msg: Image, name: str, value: int) -> None:
    if value % 2:
        raise ImageError(
            'odd size',
            f'The image has {name} {value}, but {msg.encoding} needs an even {name}, because '
            'neighbours share their colour. Check the camera driver.',
        )


def _converted(pixels: NDArray[Any], code: str | None) -> UInt8:
    """RGB of pixels with 8 or 16 bits a channel; None: they are RGB already."""
    if pixels.itemsize > 1:
        pixels = (pixels >> 8).astype(np.uint8)
    if code is None:
        return pixels
    return np.asarray(cv2.cvtColor(pixels, getattr(cv2, f'COLOR_{code}')), np.uint8)


def _planar_to_rgb(msg: Image, data: UInt8, max_pixels: int) -> UInt8:
    """Convert a plane of Y and a plane of interleaved U and V, as in V4L2 (`step` is that of Y).

    Neither cv_bridge nor rosbags-image reads these in drivers' layout: height is the picture's,
    and the planes lie one after the other. In nv12 (U first) and nv21 (V first) four pixels share
    their colour; nv24 (U first) has one for each.
    """
    width, height, step = int(msg.width), int(msg.height), int(msg.step)
    full = msg.encoding == 'nv24'
    if not full:
        _check_even(msg, 'width', width)
        _check_even(msg, 'height', height)
    _check_layout(msg, data, width, step * height * 3 if full else step * height * 3 // 2)
    _check_pixel_count(width, height, max_pixels)
    luma = np.ndarray((height, width), np.uint8, data.data, strides=(step, 1))
    chroma_step, chroma_shape = (
        (2 * step, (height, width, 2)) if full else (step, (height // 2, width // 2, 2))
    )
    chroma = np.ndarray(
        chroma_shape, np.uint8, data.data, offset=step * height, strides=(chroma_step, 2, 1)
    )
    if full:
        return _nv24_to_rgb(luma, chroma)
    code = cv2.COLOR_YUV2RGB_NV21 if msg.encoding == 'nv21' else cv2.COLOR_YUV2RGB_NV12
    return np.asarray(cv2.cvtColorTwoPlane(luma, chroma, code), np.uint8)


def _nv24_to_rgb(luma: UInt8, chroma: UInt8) -> UInt8:
    """Convert a few rows at a time as nv12 of twice the size, with every pixel four times.

    OpenCV has no code for nv24; this holds the same picture, and is the same arithmetic as for
    its siblings.
    """
    height, width = luma.shape
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _NV24_ROWS):
        rows = slice(top, top + _NV24_ROWS)
        double = luma[rows].repeat(2, axis=0).repeat(2, axis=1)
        rgb[rows] = cv2.cvtColorTwoPlane(double, chroma[rows], cv2.COLOR_YUV2RGB_NV12)[::2, ::2]
    return rgb
