# SPDX-License-Identifier: Apache-2.0
"""The cloud against bytes packed by hand, against sensor_msgs_py, and through the camera."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from depthclip_ros.messages.message_types import create_message
from depthclip_ros.messages.outputs import cloud_message, patch_colors

msgs = pytest.importorskip('sensor_msgs.msg', reason='sensor_msgs is not installed')
Header = pytest.importorskip('std_msgs.msg').Header
serialization = pytest.importorskip('rclpy.serialization', reason='rclpy is not installed')

RNG = np.random.default_rng(0)
BEGINNING = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order_of_tests():
    RNG.bit_generator.state = BEGINNING


def header():
    message = Header(frame_id='camera_optical_frame')
    message.stamp.sec, message.stamp.nanosec = 12, 34
    return message


def inputs(h, w, holes=0):
    rays = RNG.normal(size=(h, w, 3)).astype(np.float32)
    rays[..., 2] = 1.0
    depth = RNG.uniform(0.5, 9.0, (h, w)).astype(np.float32)
    depth.reshape(-1)[:holes] = np.nan
    return rays, depth, RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)


def xyz_of(message):
    values = np.frombuffer(message.data, np.float32)
    return values.reshape(message.height, message.width, 4)[..., :3]


def test_bytes_by_hand():
    rays = np.float32([[[0.5, -0.25, 1.0], [0.1, 0.2, 1.0]]])
    depth = np.float32([[2.0, np.nan]])
    colors = np.uint8([[[255, 128, 1], [9, 8, 7]]])
    message = cloud_message(create_message, header(), rays, depth, colors)
    nan = float('nan')
    assert message.data.tobytes() == (
        struct.pack('<fffI', 1.0, -0.5, 2.0, 0xFF8001)
        + struct.pack('<fffI', nan, nan, nan, 0x090807)
    )
    assert message.header == header()
    assert (message.height, message.width) == (1, 2)
    assert (message.point_step, message.row_step) == (16, 32)
    assert not message.is_bigendian
    assert not message.is_dense
    assert [(f.name, f.offset, f.datatype, f.count) for f in message.fields] == [
        (name, 4 * i, msgs.PointField.FLOAT32, 1) for i, name in enumerate(['x', 'y', 'z', 'rgb'])
    ]


def test_standard_deviation_is_one_field_more_and_moves_no_other():
    rays, depth, colors = inputs(2, 3)
    depth[0, 1] = np.nan
    stddev = RNG.uniform(0.1, 0.5, depth.shape).astype(np.float32)
    plain = cloud_message(create_message, header(), rays, depth, colors)
    message = cloud_message(create_message, header(), rays, depth, colors, stddev)
    assert [(f.name, f.offset, f.datatype, f.count) for f in message.fields] == [
        (name, 4 * i, msgs.PointField.FLOAT32, 1)
        for i, name in enumerate(['x', 'y', 'z', 'rgb', 'stddev'])]
    assert (message.point_step, message.row_step, len(message.data)) == (20, 60, 120)
    points = np.frombuffer(message.data, np.uint8).reshape(6, 20)
    np.testing.assert_array_equal(
        points[:, :16], np.frombuffer(plain.data, np.uint8).reshape(6, 16))
    found = points[:, 16:].copy().view(np.float32).reshape(2, 3)
    np.testing.assert_array_equal(found, np.where(np.isnan(depth), np.nan, stddev))


def test_holes():
    rays, depth, colors = inputs(3, 4)
    depth[0, :] = [np.nan, np.inf, 0.0, -1.0]
    rays[1, 0] = np.nan
    message = cloud_message(create_message, header(), rays, depth, colors)
    holes = np.isnan(xyz_of(message))
    assert holes.any(axis=-1).tolist() == holes.all(axis=-1).tolist()
    assert holes.all(axis=-1).tolist() == [[True] * 4, [True, False, False, False], [False] * 4]
    assert not message.is_dense
    assert np.isfinite(depth[1:]).all()  # the inputs are not changed


def test_other_readers_find_the_same_points():
    """sensor_msgs_py, where it is installed, and what rclpy makes of the bytes."""
    message = cloud_message(create_message, header(), *inputs(13, 17, holes=3))
    raw = serialization.serialize_message(message)
    assert serialization.deserialize_message(raw, msgs.PointCloud2) == message
    point_cloud2 = pytest.importorskip(
        'sensor_msgs_py.point_cloud2', reason='sensor_msgs_py is not installed')
    read = point_cloud2.read_points(message)
    np.testing.assert_array_equal(
        np.stack([read[name] for name in 'xyz'], axis=-1), xyz_of(message).reshape(-1, 3))


def shares(pixels, patches):
    """(patches, pixels): the part that every pixel has in every patch."""
    # Every pixel as many times as there are patches: whole pixels to every patch.
    fine = np.arange(pixels).repeat(patches).reshape(patches, pixels)
    return np.stack([np.bincount(patch, minlength=pixels) for patch in fine]) / pixels


@pytest.mark.parametrize(('height', 'width', 'h', 'w'), [
    (480, 640, 15, 20), (480, 640, 13, 17), (720, 1280, 13, 17), (27, 35, 13, 17),
    (10, 10, 7, 7), (5, 6, 3, 2), (26, 9, 13, 1), (257, 4, 1, 2), (300, 4, 1, 2)])
def test_patch_colors_are_means(height, width, h, w):
    """A mean is rounded by 0.5; 0.01 of 255 are 600 times what float32 rounds in a sum."""
    for rgb in (RNG.integers(0, 256, (height, width, 3), dtype=np.uint8),
                np.full((height, width, 3), 255, np.uint8)):
        means = np.einsum('iy,yxc,jx->ijc', shares(height, h), rgb, shares(width, w),
                          optimize=True)
        colors = patch_colors(rgb, h, w)
        assert colors.shape == (h, w, 3)
        assert np.abs(colors - means).max() <= 0.51
