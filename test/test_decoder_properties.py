# SPDX-License-Identifier: Apache-2.0
"""Whatever a message holds: a picture or rays as an independent reading has them, or a reason."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('hypothesis', reason='hypothesis is not installed (extra test)')

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
from test_camera import camera_info
from test_image_io import BAYER, DIRECT, PACKED_YUV, image, planar

from depthclip_ros.core import lens
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.core.errors import CameraInfoError, ImageError
from depthclip_ros.messages import image_io

ROOT = Path(__file__).resolve().parents[1]
PNG_START = b'\x89PNG\r\n\x1a\n'
# Of what has many numbers, more examples than the profile's.
MANY = settings(max_examples=5 * settings().max_examples)
MAX_PIXELS = 1 << 16

small = st.integers(0, 9)
hostile = st.sampled_from([0, 1, 2, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1])
texts = st.text(max_size=12) | st.sampled_from(['x' * 10**5, 'rgb8\0', 'RGB8', '\n', '32FC1'])


def picture_or_reason(read, msg):
    """The picture; None where there is a reason for none, which is short."""
    try:
        return read(msg, MAX_PIXELS)
    except ImageError as error:
        refusal = error
    assert 0 < len(refusal.condition) < 40
    assert 0 < len(str(refusal)) < 500
    return None


# Raw images -----------------------------------------------------------------------------------


@given(width=small | hostile, height=small | hostile, step=small | st.integers(0, 80) | hostile,
       encoding=st.sampled_from(sorted(image_io.ENCODINGS)) | texts, big=st.integers(0, 255),
       size=st.integers(0, 700) | st.none())
def test_any_fields_give_a_picture_or_a_reason(width, height, step, encoding, big, size):
    if size is None:  # what the other fields say
        size = min(step * height, 1000)
    msg = SimpleNamespace(width=width, height=height, step=step, encoding=encoding,
                          is_bigendian=big, data=bytes(range(250)) * 4)
    msg.data = msg.data[:size]
    rgb = picture_or_reason(image_io.to_rgb, msg)
    if rgb is not None:
        assert rgb.shape == (height, width, 3)
        assert rgb.dtype == np.uint8
        rgb.sum()


def demosaiced(pixels, pattern):
    """Bilinear, in whole numbers; the border repeats what is beside it."""
    result = np.empty((*pixels.shape, 3), np.uint8)
    inner = slice(1, -1), slice(1, -1)
    p = pixels.astype(int)
    up, down, left, right = p[:-2, 1:-1], p[2:, 1:-1], p[1:-1, :-2], p[1:-1, 2:]
    diagonal = (p[:-2, :-2] + p[:-2, 2:] + p[2:, :-2] + p[2:, 2:] + 2) // 4
    cross = (up + down + left + right + 2) // 4
    y, x = np.mgrid[1 : len(p) - 1, 1 : p.shape[1] - 1] % 2
    for channel, colour in enumerate('rgb'):
        places = [divmod(i, 2) for i, c in enumerate(pattern) if c == colour]
        here = np.any([(y == a) & (x == b) for a, b in places], axis=0)
        if colour == 'g':
            values = np.where(here, p[inner], cross)
        else:
            (a, b), = places
            aside = np.where(y == a, (left + right + 1) // 2, (up + down + 1) // 2)
            values = np.where(here, p[inner], np.where((y != a) & (x != b), diagonal, aside))
        result[..., channel] = np.pad(values, 1, mode='edge')
    return result


def from_yuv(y, u, v):
    """BT.601 in video range, by the standard's formula."""
    y, u, v = (plane.astype(float) for plane in (y, u, v))
    y = 1.164383 * np.maximum(y - 16, 0)
    u, v = u - 128, v - 128
    rgb = np.dstack([y + 1.596027 * v, y - 0.391762 * u - 0.812968 * v, y + 2.017232 * u])
    return np.clip(np.rint(rgb), 0, 255)


def reference(encoding, pixels):
    """RGB of pixels in an encoding, by NumPy alone."""
    if pixels.dtype == np.uint16:
        pixels = pixels // 256
    generic = {'8UC1': 'mono8', '8UC3': 'bgr8', '8UC4': 'bgra8', '16UC1': 'mono16',
               '16UC3': 'bgr16', '16UC4': 'bgra16'}
    order = generic.get(encoding, encoding).rstrip('0123456789')
    if order == 'mono':
        return np.dstack([pixels] * 3)
    if order.startswith('bayer'):
        return demosaiced(pixels, order[6:])
    return np.dstack([pixels[..., order.index(c)] for c in 'rgb'])


@given(encoding=st.sampled_from([*DIRECT, *BAYER]), seed=st.integers(0, 99),
       height=st.integers(3, 40), width=st.integers(3, 40), padding=st.integers(0, 9),
       big_endian=st.booleans())
def test_interleaved_encodings_are_what_numpy_makes_of_them(
        encoding, seed, height, width, padding, big_endian):
    layout = image_io.ENCODINGS[encoding]
    shape = (height, width, layout.channels)[: 2 if layout.channels == 1 else 3]
    pixels = np.random.default_rng(seed).integers(0, 2**layout.bits, shape, f'u{layout.bits // 8}')
    rgb = image_io.to_rgb(image(pixels, encoding, padding, big_endian=big_endian))
    np.testing.assert_array_equal(rgb, reference(encoding, pixels))


@given(encoding=st.sampled_from([*PACKED_YUV, 'nv12', 'nv21']),
       seed=st.integers(0, 99), height=st.integers(1, 80), width=st.integers(1, 20),
       padding=st.integers(0, 3))
def test_yuv_encodings_are_what_numpy_makes_of_them(encoding, seed, height, width, padding):
    height, width, padding = 2 * height, 2 * width, 2 * padding
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 256, (height, width), np.uint8)
    if encoding in PACKED_YUV:
        u, v = (rng.integers(0, 256, (height, width // 2), np.uint8) for _ in range(2))
        chroma = np.stack([u, v], axis=-1).reshape(height, width)
        first = encoding in ('yuv422', 'uyvy')
        msg = image(np.dstack([chroma, y] if first else [y, chroma]), encoding, padding)
        u, v = u.repeat(2, axis=1), v.repeat(2, axis=1)
    else:
        u, v = (rng.integers(0, 256, (height // 2, width // 2), np.uint8) for _ in range(2))
        pair = np.stack([v, u] if encoding == 'nv21' else [u, v], axis=-1)
        msg = planar(np.zeros((height, width, 3)), encoding, padding)
        rows = [np.pad(y, ((0, 0), (0, padding))).tobytes(),
                np.pad(pair.reshape(len(pair), -1),
                       ((0, 0), (0, padding))).tobytes()]
        msg.data[:] = type(msg.data)('B', b''.join(rows))
        u, v = (plane.repeat(2, axis=0).repeat(2, axis=1) for plane in (u, v))
    difference = image_io.to_rgb(msg).astype(float) - from_yuv(y, u, v)
    assert np.abs(difference).max() <= 2.0


# Compressed images ----------------------------------------------------------------------------

def files():
    """JPEGs and PNGs of several kinds."""
    rgb = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8), (24, 16))
    grey, deep = rgb[..., 0], rgb.astype(np.uint16) * 257
    alpha = np.dstack([rgb, grey])
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1]
    for extension, pixels, options in (
        ('.jpg', rgb, []),
        ('.jpg', rgb, progressive),
        ('.jpg', grey, [cv2.IMWRITE_JPEG_QUALITY, 20]),
        ('.png', rgb, []), ('.png', alpha, []),
        ('.png', deep[..., 0], []),
        ('.png', deep, []),
        ('.png', grey, [cv2.IMWRITE_PNG_BILEVEL, 1]),
        ('.png', deep[..., 0], []),
        ('.bmp', grey[:2, :2], []),
    ):
        yield cv2.imencode(extension, pixels, options)[1].tobytes()


def with_checksums(raw):
    """Correct the checksums of a PNG that is somewhere in the bytes."""
    start = raw.find(PNG_START)
    fixed, place = bytearray(raw), start + len(PNG_START)
    while start >= 0 and place + 12 <= len(raw):
        end = place + 12 + int.from_bytes(raw[place : place + 4], 'big')
        if end > len(raw):
            break
        fixed[end - 4 : end] = zlib.crc32(raw[place + 4 : end - 4]).to_bytes(4, 'big')
        place = end
    return bytes(fixed)


FILES = list(files())
changes = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6)


@given(data=st.binary(max_size=80) | st.sampled_from(FILES), form=texts, changes=changes,
       cut=st.none() | st.integers(0, 2000), repaired=st.booleans())
def test_any_file_gives_a_picture_or_a_reason(data, form, changes, cut, repaired):
    damaged = bytearray(data[:cut])
    for place, value in changes:
        if damaged:
            damaged[place % len(damaged)] = value
    data = with_checksums(bytes(damaged)) if repaired else bytes(damaged)
    rgb = picture_or_reason(
        image_io.to_rgb, SimpleNamespace(format=form, data=data))
    if rgb is not None:
        assert rgb.dtype == np.uint8
        assert rgb.shape[2:] == (3,)
        assert rgb.shape[0] * rgb.shape[1] <= MAX_PIXELS


BOUNDED = """
import resource, sys
import cv2
cv2.setNumThreads(1)  # their stacks would count, too: 8 MiB for every core
sys.path[:0] = ['test', '.']
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from test_image_io import image, jpeg, picture, png
from depthclip_ros.core.errors import ImageError
from depthclip_ros.messages import image_io
read = image_io.to_rgb
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), -1))
for data in (jpeg(size=(60000, 17000)), png(20000, 20000, bytes(1000)),
             png(6000, 6000, bytes(1000), depth=1, colour=0)):
    try:
        read(SimpleNamespace(format='', data=data))
    except ImageError as error:
        print(error.condition)
print(read(SimpleNamespace(format='', data=jpeg())).shape)
# At most 24 bytes a pixel, at any encoding.
for encoding, layout in image_io.ENCODINGS.items():
    row = 2000 * (layout.channels * layout.bits // 8)
    rows = 1500 if encoding in ('nv12', 'nv21') else 1000
    image_io.to_rgb(SimpleNamespace(width=2000, height=1000, step=row, encoding=encoding,
                                    is_bigendian=0, data=bytes(row * rows)))
"""


def test_memory_is_bounded():
    """By the system: what OpenCV takes, Python does not see."""
    done = subprocess.run([sys.executable, '-c', BOUNDED], cwd=ROOT, check=False,
                          capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ['too many pixels'] * 3 + ['(48, 64, 3)'], done.stderr
    assert done.returncode == 0, done.stderr


# Cameras --------------------------------------------------------------------------------------

numbers = (st.floats(-1e4, 1e4) | st.sampled_from([0.0, 1.0, 1e-320, 1e155, 1e300, -1e300])
           | st.floats(allow_nan=True, allow_infinity=True))
models = st.sampled_from([*lens.LENSES, '', 'none']) | texts


@pytest.mark.filterwarnings('error::RuntimeWarning')
@MANY
@given(model=models, d=st.lists(numbers, max_size=14), k=st.lists(numbers, min_size=5, max_size=5),
       row=st.sampled_from([(0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0)]),
       p=st.lists(numbers, min_size=12, max_size=12), width=small | hostile | st.just(640),
       height=small | hostile | st.just(480), binning=small | hostile,
       window=st.lists(small | hostile, min_size=4, max_size=4), rectified=st.booleans())
def test_any_camera_info_gives_rays_or_a_reason(
        model, d, k, row, p, width, height, binning, window, rectified):
    fx, skew, cx, fy, cy = k
    x, y, roi_width, roi_height = window
    info = camera_info(
        model, d, k=[fx, skew, cx, row[0], fy, cy, *row[1:]], p=p, width=width, height=height,
        binning_x=binning, binning_y=binning,
        roi=SimpleNamespace(x_offset=x, y_offset=y, width=roi_width, height=roi_height,
                            do_rectify=False))
    try:
        camera = CameraModel.from_info(info, rectified)
    except CameraInfoError as error:
        refusal = error
        assert 0 < len(refusal.condition) < 50
        assert 0 < len(str(refusal)) < 500
        return
    check_rays(camera)


def check_rays(camera):
    rays = camera.patch_rays(4, 5)
    valid = np.isfinite(rays).all(axis=-1)
    assert np.isnan(rays[~valid]).all()
    assert (rays[valid][:, 2] == 1.0).all()
    assert np.isfinite(1e6 * rays[valid]).all()
    scaled = camera.scaled(640, 480)
    assert np.isfinite(scaled.K).all()
    assert np.isfinite(scaled.P).all()
