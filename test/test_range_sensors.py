# SPDX-License-Identifier: Apache-2.0
"""Depth images, clouds and scans to arrays."""

import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from depthclip_ros.core.errors import DataError, ImageError, SensorError
from depthclip_ros.messages.depth import to_depth
from depthclip_ros.messages.range_sensors import cloud_points, scan_points

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


def test_depth_of_double_precision():
    np.testing.assert_array_equal(to_depth(image(DEPTH.astype(float), '64FC1')), DEPTH)


def test_depth_that_image_transport_has_compressed_as_tiff():
    """compressed_image_transport makes a TIFF of 32FC1."""
    data = cv2.imencode('.tiff', DEPTH)[1].tobytes()
    np.testing.assert_array_equal(to_depth(packed('32FC1; tiff compressed ', data)), DEPTH)
    for cut in range(len(data) // 2):
        with pytest.raises(ImageError):
            to_depth(packed('32FC1; tiff compressed ', data[:cut]))
    width = data.rindex(struct.pack('<HHI', 256, 3, 1)) + 8
    huge = data[:width] + struct.pack('<H', 65000) + data[width + 2:]
    with pytest.raises(ImageError):
        to_depth(packed('32FC1; tiff compressed ', huge))
    with pytest.raises(ImageError, match='at most 5'):
        to_depth(packed('32FC1; tiff compressed ', data), max_pixels=5)


def test_what_is_no_depth_is_nan():
    found = to_depth(image(np.array([[0, -1, np.inf, -np.inf, np.nan, 1]], np.float32), '32FC1'))
    np.testing.assert_array_equal(found, [[np.nan] * 5 + [1]])


def test_65535_says_that_nothing_was_measured():
    """By drivers that have 16 bits for millimetres; none means 65.535 m exactly by it."""
    pixels = np.array([[65535, 65534, 1]], np.uint16)
    expected = np.float32([[np.nan, 65.534, 0.001]])
    for message in (image(pixels, '16UC1'), image(pixels, 'mono16'),
                    packed('16UC1; png compressed', png(pixels)),
                    packed('16UC1; compressedDepth png', bytes(12) + png(pixels)),
                    packed('16UC1; compressedDepth rvl', bytes(12) + rvl(pixels))):
        np.testing.assert_allclose(to_depth(message), expected)


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


@pytest.mark.parametrize('described', [
    '16UC1; compressedDepth png', '16UC1; png compressed ', '16UC1', 'png', ''])
@pytest.mark.parametrize('header', [0, 12])
def test_the_signature_of_the_png_says_whether_there_is_a_header(described, header):
    data = bytes(header) + png(np.nan_to_num(1000 * DEPTH).astype(np.uint16))
    np.testing.assert_allclose(to_depth(packed(described, data)), DEPTH, rtol=1e-6)


def rvl(pixels):
    """As compressed_depth_image_transport writes it: a size, runs of zeros and of others."""
    nibbles, last = [], 0

    def number(value):
        while True:
            nibbles.append(value & 7 | 8 * (value > 7))
            value >>= 3
            if not value:
                return

    values = [int(value) for value in pixels.ravel()]
    while values:
        for zero in True, False:
            run = next((i for i, value in enumerate(values) if (value == 0) != zero), len(values))
            number(run)
            for value in () if zero else values[:run]:
                difference, last = value - last, value
                number(2 * difference if difference >= 0 else -2 * difference - 1)
            del values[:run]
    nibbles += [0] * (-len(nibbles) % 8)
    words = np.reshape(nibbles, (-1, 8)) @ 16 ** np.arange(7, -1, -1)
    return struct.pack('<ii', *pixels.shape[::-1]) + words.astype('<u4').tobytes()


def test_run_length_coded_depth():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65535, (48, 64), dtype=np.uint16) * (rng.random((48, 64)) < 0.7)
    for case in (pixels, np.zeros_like(pixels), np.full_like(pixels, 1234), pixels[:1, :1]):
        data = rvl(case.astype(np.uint16))
        found = to_depth(packed('16UC1; compressedDepth rvl', bytes(12) + data))
        np.testing.assert_allclose(np.nan_to_num(found), case / 1000, rtol=1e-6)
        for cut in range(len(data)):
            with pytest.raises(ImageError):
                to_depth(packed('16UC1; compressedDepth rvl', bytes(12) + data[:cut]))
            if cut > 100:
                break


def test_run_length_coded_inverse_depth():
    quantised = np.uint16([[0, 1010, 10100]])
    header = struct.pack('<iff', 0, 10100.0, 0.0)
    found = to_depth(packed('32FC1; compressedDepth rvl', header + rvl(quantised)))
    np.testing.assert_allclose(found, [[np.nan, 10, 1]])


@pytest.mark.parametrize('numbers', [
    b'', b'\xff' * 64, b'\x00' * 64, b'\x88' * 400, b'\x11' * 4, b'\x7f' * 4000])
@pytest.mark.parametrize('size', [(3, 2), (-1, 5), (0, 0), (2 ** 31 - 1, 2 ** 31 - 1), (640, 480)])
def test_hostile_run_lengths(size, numbers):
    with pytest.raises(ImageError):
        to_depth(packed('16UC1; compressedDepth rvl',
                        bytes(12) + struct.pack('<ii', *size) + numbers))


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
    ('16UC1; compressedDepth rvl', bytes(3)),
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


@pytest.mark.parametrize(('height', 'row_step'), [
    (1, 0), (1, 2), (1, 10 ** 6), (2, 0), (2, 64), (2, 10 ** 6)])
def test_row_step_counts_only_where_the_data_agree(height, row_step):
    points = np.arange(1, 13.0).reshape(4, 3)
    message = cloud(points, height=height)
    message.row_step = row_step
    np.testing.assert_array_equal(cloud_points(message), points)


@pytest.mark.parametrize('lidar', [np.zeros(3), np.array([0.003, -0.004, 0.005])])
def test_a_point_in_the_sensors_own_origin_is_no_measurement(lidar):
    points = np.array([lidar, [0.02, 0, 0], lidar, [1, 2, 3]])
    np.testing.assert_allclose(cloud_points(cloud(points)), points[[1, 3]], rtol=1e-6)


@pytest.mark.parametrize('change', [
    {'fields': []}, {'point_step': 8}, {'height': 3}, {'height': 1000}, {'width': 2**31},
    {'height': 2, 'width': 2, 'row_step': 2}])
def test_hostile_clouds(change):
    message = cloud([[1, 2, 3], [4, 5, 6]])
    vars(message).update(change)
    with pytest.raises(SensorError):
        cloud_points(message)


def scan(ranges, **changes):
    return SimpleNamespace(**{
        'angle_min': -np.pi / 2, 'angle_max': 0.0, 'angle_increment': np.pi / 2, 'range_min': 0.1,
        'range_max': 10.0,
        'ranges': np.array(ranges, np.float32), **changes})


def test_scans():
    np.testing.assert_allclose(
        scan_points(scan([1, 2, 3])), [[0, -1, 0], [2, 0, 0], [0, 3, 0]], atol=1e-12)
    assert len(scan_points(scan([0.05, np.nan, np.inf, 11, -1, 0]))) == 0
    assert len(scan_points(scan([5, 20], range_max=0.0))) == 2  # not filled in by its driver
    assert len(scan_points(scan([5, 2], range_min=np.nan, range_max=np.nan))) == 2


def test_range_max_says_that_nothing_returned():
    """REP-117 wants +Inf for it; Gazebo says slightly less than range_max."""
    ranges = np.float32([10.0, 9.9999, 9.99, 3.0])
    np.testing.assert_allclose(
        np.linalg.norm(scan_points(scan(ranges, range_max=np.float32(10.0))), axis=1), ranges[2:])


@pytest.mark.parametrize('change', [
    {'angle_increment': 0.0}, {'angle_min': np.nan}, {'angle_increment': np.inf}])
def test_hostile_scans(change):
    with pytest.raises(DataError, match='angle'):
        scan_points(scan([1, 2], **change))


@pytest.mark.parametrize(('start', 'end', 'step', 'count', 'agree'), [
    (-1.5, 1.5, 0.03, 101, True), (-1.5, 1.5, 0.03, 100, True), (-1.5, 1.5, 3 / 101, 101, True),
    (1.5, -1.5, -0.03, 101, True), (-3.14, 3.14, -0.0628, 101, True),  # the other way round
    (-1.5, 0.0, 0.03, 101, True),  # angle_max was not filled in
    (-1.5, 1.5, -0.03, 101, False), (-1.5, 1.5, 0.06, 101, False), (-1.5, 1.5, 0.03, 50, False)])
def test_angles_of_a_scan_agree(start, end, step, count, agree):
    message = scan(np.full(count, 2), angle_min=start, angle_max=end, angle_increment=step)
    if agree:
        assert len(scan_points(message)) == count
    else:
        with pytest.raises(SensorError, match=f'angle_max {end:.4g}'):
            scan_points(message)


def test_a_scan_in_millimetres_is_named():
    with pytest.raises(SensorError, match='millimetres'):
        scan_points(scan([2000, np.inf, 5000]))
    assert len(scan_points(scan([10, 10, np.inf]))) == 0  # nothing returned
