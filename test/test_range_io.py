# SPDX-License-Identifier: Apache-2.0
"""Depth images, clouds and scans to arrays."""

import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from depthclip_ros.core.errors import DataError, ImageError, RangeError
from depthclip_ros.node.anchors import cloud_points, scan_points
from depthclip_ros.node.image_io import to_depth

DEPTH = np.array([[0.5, 1.25, np.nan], [3.0, 65.0, 2.0]], np.float32)


def image(pixels, encoding, *, padding=0, big=False):
    pixels = pixels.astype(pixels.dtype.newbyteorder('>' if big else '<'))
    rows = [row.tobytes() + bytes(padding) for row in pixels]
    return SimpleNamespace(
        width=pixels.shape[1], height=len(rows), encoding=encoding, is_bigendian=int(big),
        step=len(rows[0]), data=np.frombuffer(b''.join(rows), np.uint8))


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('padding', [0, 8])
def test_depth_images(big, padding):
    millimetres = np.nan_to_num(1000 * DEPTH).astype(np.uint16)
    for message in (image(DEPTH, '32FC1', padding=padding, big=big),
                    image(millimetres, '16UC1', padding=padding, big=big),
                    image(millimetres, 'mono16', padding=padding, big=big)):
        found = to_depth(message)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, DEPTH, rtol=1e-6)


def test_what_is_no_depth_is_nan():
    found = to_depth(image(np.array([[0, -1, np.inf, -np.inf, np.nan, 1]], np.float32), '32FC1'))
    np.testing.assert_array_equal(found, [[np.nan] * 5 + [1]])


def test_depth_images_that_are_none():
    with pytest.raises(ImageError, match='known are'):
        to_depth(image(np.zeros((2, 3), np.uint8), 'rgb8'))
    message = image(DEPTH, '32FC1')
    message.data = message.data[:-1]
    with pytest.raises(ImageError, match='23 bytes'):
        to_depth(message)
    with pytest.raises(ImageError, match='at most 5'):
        to_depth(image(DEPTH, '32FC1'), max_pixels=5)


def png(pixels):
    return cv2.imencode('.png', pixels)[1].tobytes()


def packed(described, data):
    return SimpleNamespace(format=described, data=np.frombuffer(data, np.uint8))


def test_compressed_millimetres():
    data = png(np.nan_to_num(1000 * DEPTH).astype(np.uint16))
    for message in (packed('16UC1; png compressed ', data),
                    packed('16UC1; compressedDepth png', bytes(12) + data),
                    packed('16UC1; compressedDepth', bytes(12) + data)):
        np.testing.assert_allclose(to_depth(message), DEPTH, rtol=1e-6)


def test_compressed_inverse_depth():
    # As compressed_depth_image_transport writes it: codec.cpp, depth_quantization 100, max 10.
    a = 100 * 101.0
    b = 1 - a / 70
    quantised = np.nan_to_num(a / DEPTH + b).astype(np.uint16)
    message = packed('32FC1; compressedDepth png',
                     struct.pack('<iff', 0, a, b) + png(quantised))
    found = to_depth(message)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(DEPTH))
    np.testing.assert_allclose(found[:, :2][np.isfinite(DEPTH[:, :2])],
                               DEPTH[:, :2][np.isfinite(DEPTH[:, :2])], rtol=0.02)


@pytest.mark.parametrize(('described', 'data'), [
    ('16UC1; compressedDepth png', b''),
    ('16UC1; compressedDepth png', bytes(12)),
    ('32FC1; compressedDepth png', bytes(3)),
    ('16UC1; compressedDepth rvl', bytes(100)),
    ('16UC1; compressedDepth png', bytes(100)),
    ('rgb8; jpeg compressed bgr8', png(np.zeros((4, 4, 3), np.uint8))),
])
def test_hostile_compressed_depth(described, data):
    with pytest.raises(ImageError):
        to_depth(packed(described, data))


def cloud(points, *, big=False, double=False, extra=4, height=1, padding=0):
    kind, size, code = ('f8', 8, 8) if double else ('f4', 4, 7)
    order = '>' if big else '<'
    rows = [
        b''.join(bytes(extra) + p.astype(f'{order}{kind}').tobytes() for p in row) + bytes(padding)
        for row in np.asarray(points, np.float64).reshape(height, -1, 3)]
    step = extra + 3 * size
    fields = [SimpleNamespace(name='ring', offset=0, datatype=4, count=1)] + [
        SimpleNamespace(name=name, offset=extra + size * i, datatype=code, count=1)
        for i, name in enumerate('xyz')]
    return SimpleNamespace(
        width=len(points) // height, height=height, fields=fields, is_bigendian=big,
        point_step=step, row_step=len(rows[0]), data=np.frombuffer(b''.join(rows), np.uint8))


@pytest.mark.parametrize('options', [
    {}, {'big': True}, {'double': True}, {'height': 2, 'padding': 5}, {'extra': 0}])
def test_clouds(options):
    points = np.array([[1, 2, 3], [4, 5, 6], [np.nan, 0, 0], [-1, 0.5, 9]])
    np.testing.assert_array_equal(cloud_points(cloud(points, **options)), points[[0, 1, 3]])


@pytest.mark.parametrize('change', [
    {'fields': []}, {'point_step': 8}, {'row_step': 2}, {'height': 1000}, {'width': 2**31}])
def test_hostile_clouds(change):
    message = cloud([[1, 2, 3], [4, 5, 6]])
    vars(message).update(change)
    with pytest.raises(RangeError):
        cloud_points(message)


def scan(ranges, **changes):
    return SimpleNamespace(**{
        'angle_min': -np.pi / 2, 'angle_increment': np.pi / 2, 'range_min': 0.1, 'range_max': 10.0,
        'ranges': np.array(ranges, np.float32), **changes})


def test_scans():
    np.testing.assert_allclose(
        scan_points(scan([1, 2, 3])), [[0, -1, 0], [2, 0, 0], [0, 3, 0]], atol=1e-12)
    assert len(scan_points(scan([0.05, np.nan, np.inf, 11, -1, 0]))) == 0
    assert len(scan_points(scan([5, 20], range_max=0.0))) == 2  # not filled in by its driver


@pytest.mark.parametrize('change', [
    {'angle_increment': 0.0}, {'angle_min': np.nan}, {'angle_increment': np.inf}])
def test_hostile_scans(change):
    with pytest.raises(DataError, match='angle'):
        scan_points(scan([1, 2], **change))
