# SPDX-License-Identifier: Apache-2.0
"""Image messages against independent readers, and everything that can be wrong with them."""

from __future__ import annotations

import importlib.util
import re
import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from depthclip_ros.cli import doctor
from depthclip_ros.core.errors import ImageError
from depthclip_ros.messages import image_io
from depthclip_ros.messages.depth import depth_values, to_depth

msgs = pytest.importorskip('sensor_msgs.msg', reason='sensor_msgs is not installed')
Header = pytest.importorskip('std_msgs.msg').Header
rosbags_image = pytest.importorskip('rosbags.image', reason='rosbags-image is not installed')

RNG = np.random.default_rng(0)
BEGINNING = RNG.bit_generator.state
BAYER = [name for name in image_io.ENCODINGS if name.startswith('bayer')]
PACKED_YUV = ['yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv']
DIRECT = [name for name in image_io.ENCODINGS
          if name not in (*BAYER, *PACKED_YUV, 'nv12', 'nv21')]


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order_of_tests():
    RNG.bit_generator.state = BEGINNING


def picture(height=48, width=64):
    """A smooth random RGB picture, as cameras see them."""
    small = RNG.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def image(pixels, encoding, padding=0, *, big_endian=False, height=None):
    """Message of pixels (H, W[, C]), with junk after every row."""
    pixels = np.asarray(pixels)
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder('>' if big_endian else '<'))
    rows = pixels.view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.hstack([rows, RNG.integers(0, 256, (len(rows), padding), dtype=np.uint8)])
    msg = msgs.Image(height=height or len(rows), width=pixels.shape[1], encoding=encoding)
    msg.step, msg.is_bigendian = rows.shape[1], int(big_endian)
    msg.data.frombytes(rows.tobytes())
    return msg


def compressed(pixels, extension, form, quality=95):
    data = cv2.imencode(extension, pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    msg = msgs.CompressedImage(format=form)
    msg.data.frombytes(data)
    return msg


def condition_of(function, msg):
    with pytest.raises(ImageError) as caught:
        function(msg)
    assert len(str(caught.value)) > 40  # says what to do
    return caught.value.condition


# Raw images; test_decoder_properties.py has every encoding by NumPy alone ------------------------


def yuv(rgb):
    """Y, U, V planes of BT.601 video range, in floating point, by the standard's formula."""
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    u = 128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255
    v = 128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255
    return [np.rint(plane).astype(np.uint8) for plane in (y, u, v)]


def packed(rgb, encoding):
    y, u, v = yuv(rgb)
    chroma = u.copy()
    chroma[:, 1::2] = v[:, 1::2]
    first = encoding in ('yuv422', 'uyvy')
    return np.dstack([chroma, y] if first else [y, chroma])


def planar(rgb, encoding, padding=0):
    """Message in V4L2's layout, every row padded."""
    y, u, v = yuv(rgb)
    chroma = np.dstack([v, u] if encoding == 'nv21' else [u, v])[::2, ::2]
    rows = [np.pad(plane, ((0, 0), (0, padding)), constant_values=7).tobytes()
            for plane in (y, chroma.reshape(len(chroma), -1))]
    msg = msgs.Image(height=len(y), width=y.shape[1], encoding=encoding,
                     step=y.shape[1] + padding)
    msg.data.frombytes(b''.join(rows))
    return msg


def bayer(rgb, pattern):
    """The colours in the upper left 2x2 pixels are straight from the encoding's name."""
    pixels = np.empty(rgb.shape[:2], rgb.dtype)
    for place, colour in enumerate(pattern):
        y, x = divmod(place, 2)
        pixels[y::2, x::2] = rgb[y::2, x::2, 'rgb'.index(colour)]
    return pixels


def message_of(encoding):
    """A picture in an encoding of 8 bits."""
    rgb = picture()
    if encoding.startswith('nv'):
        return planar(rgb, encoding)
    if encoding in PACKED_YUV:
        return image(packed(rgb, encoding), encoding)
    if encoding in BAYER:
        return image(bayer(rgb, encoding[6:10]), encoding)
    alpha = np.dstack([rgb, rgb[..., 0]])
    return image({'rgb8': rgb, 'bgr8': rgb[..., ::-1], 'mono8': rgb[..., 0], 'rgba8': alpha,
                  'bgra8': alpha}[encoding], encoding)


@pytest.mark.parametrize('encoding', [
    'rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'yuv422', 'yuv422_yuy2', 'nv12', 'nv21',
    *(name for name in BAYER if name.endswith('8'))])
def test_colours_are_those_of_rosbags_and_of_cv_bridge(encoding):
    """Of cv_bridge where it is installed and works."""
    msg = message_of(encoding)
    found, whole = image_io.to_rgb(msg), msg
    if encoding.startswith('nv'):  # whose height rosbags takes for that of the data
        whole = SimpleNamespace(height=72, width=64, encoding=encoding, is_bigendian=False,
                                data=msg.data)
    np.testing.assert_array_equal(found, rosbags_image.message_to_cvimage(whole, 'rgb8'))
    if importlib.util.find_spec('cv_bridge') is None or encoding.startswith('nv'):
        return
    if all(check.name != 'cv_bridge' for check in doctor.check_arrays()):
        from cv_bridge import CvBridge
        np.testing.assert_array_equal(found, CvBridge().imgmsg_to_cv2(msg, 'rgb8'))


def test_rgb8_is_not_copied():
    for padding in (0, 5):
        msg = image(picture(), 'rgb8', padding)
        rgb = image_io.to_rgb(msg)
        msg.data[3] = 255 - msg.data[3]
        assert rgb[0, 1, 0] == msg.data[3]


class Buffer:
    """As rosidl_buffer.Buffer of newer distributions."""

    def __init__(self, data):
        self.to_bytes = lambda: data
        self.size = len(data)

    def __len__(self):
        return self.size


@pytest.mark.parametrize('kind', [
    bytes, bytearray, memoryview, Buffer, lambda data: np.frombuffer(data, np.uint8)])
def test_data_of_other_message_classes(kind):
    """Such as rosbags, which gives NumPy arrays."""
    pixels = picture()
    msg = SimpleNamespace(height=48, width=64, encoding='rgb8', is_bigendian=False, step=192,
                          data=kind(pixels.tobytes()))
    np.testing.assert_array_equal(image_io.to_rgb(msg), pixels)


# Compressed -------------------------------------------------------------------------------------


@pytest.mark.parametrize('form', [
    'rgb8; jpeg compressed bgr8', 'jpeg', '', 'rgb8; jpeg compressed rgb8'])
def test_jpeg(form):
    rgb = picture()
    msg = compressed(rgb[..., ::-1], '.jpg', form)
    result = image_io.to_rgb(msg)
    np.testing.assert_array_equal(result, rosbags_image.message_to_cvimage(msg)[..., ::-1])
    assert np.abs(result.astype(int) - rgb).mean() < 8.0


def test_png():
    rgb = picture()
    grey, deep = rgb[..., 0], RNG.integers(0, 2**16, (20, 30), dtype=np.uint16)
    bgra = np.dstack([rgb, grey])
    for pixels, form, expected in (
        (rgb[..., ::-1], 'rgb8; png compressed bgr8', rgb),
        (rgb[..., ::-1], '', rgb),
        (rgb[..., ::-1], 'rgb8; png compressed rgb8', rgb),
        (grey, 'mono8; png compressed ', np.dstack([grey] * 3)),
        (deep, 'mono16; png compressed ', np.dstack([deep >> 8] * 3)),
        (bgra, 'bgra8; png compressed bgr8', bgra[..., 2::-1]),
        (np.dstack([deep] * 3), 'bgr16; png compressed bgr16', np.dstack([deep >> 8] * 3)),
    ):
        result = image_io.to_rgb(compressed(pixels, '.png', form))
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(('extension', 'bits'), [('.jpg', 8), ('.png', 8), ('.png', 16)])
def test_compressed_bayer(extension, bits):
    """compressed_image_transport compresses a mosaic as if it was grey."""
    pixels = bayer(picture(), 'grbg')
    if bits == 16:
        pixels = pixels.astype(np.uint16) * 257
    # At quality 100 every step is 1: each of a block's 64 coefficients is off by at most 0.5, and
    # moves a pixel by at most a quarter of that. The pixel is rounded, too.
    tolerance = 64 * 0.5 / 4 + 1 if extension == '.jpg' else 0
    form = f'bayer_grbg{bits}; {"png" if extension == ".png" else "jpeg"} compressed '
    result = image_io.to_rgb(compressed(pixels, extension, form, quality=100))
    expected = image_io.to_rgb(image(pixels, f'bayer_grbg{bits}'))
    assert np.abs(result.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize('fraction', [0.02, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize(('extension', 'options'), [
    ('.jpg', []), ('.jpg', [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    ('.jpg', [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]), ('.png', [])])
def test_truncated_files(fraction, extension, options):
    data = cv2.imencode(extension, picture(), options)[1].tobytes()
    cut = data[: min(int(len(data) * fraction), len(data) - 1)]
    assert condition_of_file(cut) == {'.jpg': 'truncated jpeg', '.png': 'truncated png'}[extension]


@pytest.mark.parametrize(
    ('condition', 'form', 'data'),
    [
        ('empty image', 'jpeg', b''),
        ('compressed depth', '16UC1; compressedDepth png', b'1234'),
        ('compressed depth', '32FC1; compressedDepth', b'1234'),
        ('undecodable', 'h264', b'\0\0\0\1\x67'),
        ('undecodable', 'jpeg', b'\xff\xd8' + bytes(100)),
        ('undecodable', 'png', b'\x89PNG\r\n\x1a\n' + bytes(4) + b'IEND' + bytes(4)),
        ('undecodable', '', b'x'),
        ('undecodable', 'png', b'P5 60000 60000 255\n'),
        ('undecodable', '', b'GIF89a' + bytes(100)),
        ('undecodable', 'jpeg', b'II*\0' + bytes(100)),
        ('undecodable', 'webp', b'RIFF\x20\0\0\0WEBPVP8 ' + bytes(100)),
        ('truncated jpeg', 'jpeg', b'\xff\xd8'),
        ('truncated jpeg', 'jpeg', b'\xff\xd8\xff'),
        ('truncated jpeg', 'jpeg', b'\xff\xd8\xff\xe0'),
    ],
)
def test_bad_compressed_images(condition, form, data):
    msg = msgs.CompressedImage(format=form)
    msg.data.frombytes(data)
    assert condition_of(image_io.to_rgb, msg) == condition


# Compressed pictures that are meant to harm ---------------------------------------------------


def jpeg(pixels=None, size=None, options=()):
    """Bytes of a JPEG; its header can be made to claim another (width, height)."""
    data = cv2.imencode('.jpg', picture() if pixels is None else pixels, list(options))[1]
    data = data.tobytes()
    if size is None:
        return data
    frame = re.search(rb'\xff[\xc0-\xc2]..\x08', data, re.DOTALL).end()
    return data[:frame] + struct.pack('>HH', *reversed(size)) + data[frame + 4 :]


def chunk(kind, data, *, crc=0):
    return struct.pack('>I', len(data)) + kind + data + struct.pack(
        '>I', zlib.crc32(kind + data) ^ crc)


def png(width, height, rows=b'', *, depth=8, colour=2, interlace=0, before=b'', crc=0):
    """A PNG from the bytes of its rows, each with its filter's number before it."""
    head = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, interlace)
    return b''.join((
        b'\x89PNG\r\n\x1a\n', chunk(b'IHDR', head), before,
        chunk(b'IDAT', zlib.compress(rows, 9), crc=crc), chunk(b'IEND', b'')))


def decoded(data, form='', **options):
    return image_io.to_rgb(
        SimpleNamespace(format=form, data=np.frombuffer(data, np.uint8)), **options)


def condition_of_file(data, form='', **options):
    return condition_of(lambda _: decoded(data, form, **options), None)


def test_the_bound_on_pixels_is_the_callers():
    for data in (jpeg(), png(64, 48, b'\0' * 193 * 48)):
        assert decoded(data, max_pixels=64 * 48).shape == (48, 64, 3)
        assert condition_of_file(data, max_pixels=64 * 48 - 1) == 'too many pixels'
    msg = image(picture(), 'bgr8')
    assert image_io.to_rgb(msg, 64 * 48).shape == (48, 64, 3)
    for encoding in ('bgr8', 'mono8', 'bayer_rggb8', 'yuyv', 'nv12'):
        msg = planar(picture(), encoding) if encoding in ('nv12', 'nv21') else image(
            picture()[..., : {'bgr8': 3, 'yuyv': 2}.get(encoding, 1)], encoding)
        condition = condition_of(lambda msg: image_io.to_rgb(msg, 64 * 48 - 1), msg)
        assert condition == 'too many pixels'


@pytest.mark.parametrize('step', [0, 191, 8 * 192, 2 ** 32 - 1])
def test_rows_of_exactly_so_much_data_are_dense_whatever_the_step_says(step):
    rgb = picture()
    np.testing.assert_array_equal(image_io.to_rgb(changed(image(rgb, 'rgb8'), step=step)), rgb)
    planes = planar(rgb, 'nv12')
    expected = image_io.to_rgb(planes)
    np.testing.assert_array_equal(image_io.to_rgb(changed(planes, step=step)), expected)


@pytest.mark.parametrize('name', ['h264', 'H265', 'hevc'])
def test_a_video_stream_is_called_one(name):
    for message in (changed(image(picture(), 'rgb8'), encoding=name),
                    msgs.CompressedImage(format=name, data=b'\0\0\0\1\x67')):
        with pytest.raises(ImageError, match='video'):
            image_io.to_rgb(message)


# Bad images -------------------------------------------------------------------------------------


def changed(msg, **changes):
    for name, value in changes.items():
        setattr(msg, name, value)
    return msg


@pytest.mark.parametrize(
    ('condition', 'make'),
    [
        ('empty image', lambda: msgs.Image(height=4, width=4, encoding='rgb8', step=12)),
        ('empty image', lambda: changed(image(picture(), 'rgb8'), width=0)),
        ('empty image', lambda: changed(image(picture(), 'rgb8'), height=0)),
        ('unknown encoding', lambda: image(picture(), 'RGB8')),
        ('unknown encoding', lambda: image(picture(), '')),
        ('unknown encoding', lambda: image(np.zeros((4, 4), np.float32), '32FC1')),
        ('unknown encoding', lambda: image(picture(), 'bayer_rgb8')),
        ('wrong step', lambda: changed(image(picture(), 'rgb8', 5), step=191)),
        ('wrong step', lambda: changed(image(picture(), 'rgb8'), width=65)),
        ('wrong step', lambda: changed(image(picture(), 'rgb8'), encoding='rgba8')),
        ('wrong step', lambda: image(picture()[..., 0], 'mono16')),
        ('wrong step', lambda: image(picture()[..., 0], 'bayer_rggb16')),
        ('wrong step', lambda: image(picture()[..., 0], 'yuv422')),
        ('wrong step', lambda: changed(image(picture(), 'rgb8'), width=2**32 - 1)),
        ('truncated data', lambda: changed(image(picture(), 'rgb8'), height=49)),
        ('truncated data', lambda: changed(image(picture(), 'rgb8'), height=2**32 - 1)),
        ('truncated data', lambda: changed(image(picture(), 'bgr8', 5), step=200)),
        ('truncated data', lambda: image(picture()[..., 0], 'nv12')),
        ('excess data', lambda: changed(image(picture(), 'rgb8'), height=47)),
        ('odd size', lambda: image(packed(picture(8, 9), 'yuyv'), 'yuyv')),
        ('odd size', lambda: planar(picture(8, 9), 'nv12')),
        ('odd size', lambda: planar(picture(9, 8), 'nv21')),
    ],
)
def test_bad_images(condition, make):
    assert condition_of(image_io.to_rgb, make()) == condition


def test_a_truncated_message_names_its_numbers():
    msg = image(picture(), 'rgb8')
    del msg.data[-1]
    with pytest.raises(ImageError, match=r'9215 bytes.*48 rows of 192.*9216'):
        image_io.to_rgb(msg)


# Output -----------------------------------------------------------------------------------------


def header():
    message = Header(frame_id='camera_optical_frame')
    message.stamp.sec, message.stamp.nanosec = 12, 34
    return message


def test_depth_in_metres():
    depth = RNG.uniform(0.5, 9.0, (96, 64)).astype(np.float32)[::2]
    depth[3, 4] = np.nan
    values, beyond = depth_values(depth, '32FC1')
    msg = msgs.Image(**image_io.image_fields(values, '32FC1', header()))
    assert beyond == 0
    assert (msg.height, msg.width, msg.step, msg.encoding) == (48, 64, 256, '32FC1')
    assert msg.header == header()
    np.testing.assert_array_equal(rosbags_image.message_to_cvimage(msg), depth)
    np.testing.assert_array_equal(to_depth(msg), depth)
    serialization = pytest.importorskip('rclpy.serialization')
    again = serialization.deserialize_message(serialization.serialize_message(msg), msgs.Image)
    assert again == msg


def test_depth_in_millimetres():
    depth = [[0.0005001, 0.0004999, 1.2344, 1.2346], [65.534, 65.536, 100.0, 3.0]]
    bad = [[np.nan, np.inf, -np.inf, -1.0], [0.0, 1e30, np.nan, 65.535]]
    values, beyond = depth_values(np.float32([*depth, *bad]), '16UC1')
    assert values[:2].tolist() == [[1, 0, 1234, 1235], [65534, 0, 0, 3000]]
    assert not values[2:].any()
    assert beyond == 3 + 4  # all but NaN and infinity, which are no depth to lose
    fields = image_io.image_fields(values, '16UC1', header())
    assert (fields['step'], fields['encoding']) == (8, '16UC1')


def test_frames_of_a_real_camera(shared_dir):
    highlevel = pytest.importorskip('rosbags.highlevel')
    shapes = []
    for name, read in (
        ('rgbd_raw', image_io.to_rgb),
        ('rgb_compressed', image_io.to_rgb),
    ):
        with highlevel.AnyReader([shared_dir / 'bags' / name]) as reader:
            connections = [c for c in reader.connections if 'color/image_raw' in c.topic]
            for connection, _, raw in reader.messages(connections):
                msg = reader.deserialize(raw, connection.msgtype)
                rgb = read(msg)
                expected = rosbags_image.message_to_cvimage(msg)
                if hasattr(msg, 'format'):
                    expected = expected[..., ::-1]
                np.testing.assert_array_equal(rgb, expected)
                shapes.append(rgb.shape)
    assert shapes == [(480, 640, 3)] * 69
