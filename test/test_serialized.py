# SPDX-License-Identifier: Apache-2.0
"""Serialised messages, read and made without rclpy's: the same fields and bytes."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest

pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from ros_harness import camera_info, image
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from depthclip_ros.core.errors import CameraInfoError, ImageError
from depthclip_ros.node import serialized
from depthclip_ros.node.cloud import PatchCloud
from depthclip_ros.node.image_io import to_rgb
from depthclip_ros.node.messages import CAMERA_INFO

FIELDS = ('header', 'height', 'width', 'encoding', 'is_bigendian', 'step')


def picture(height, width):
    return np.arange(height * width * 3).astype(np.uint8).reshape(height, width, 3)


def message(frame_id='eye', encoding='rgb8', height=3, width=5):
    header = Header(stamp=Time(sec=-7, nanosec=999_999_999), frame_id=frame_id)
    made = image(header, picture(height, width), 'rgb8')
    made.encoding = encoding
    return made


def assert_same(found, expected):
    for name in FIELDS:
        assert getattr(found, name) == getattr(expected, name), name
    assert bytes(found.data) == bytes(expected.data)


@pytest.mark.skipif(sys.byteorder != 'little', reason='left to the middleware there')
@pytest.mark.parametrize('frame_id', ['', 'a', 'ab', 'abc', 'abcd', 'größe/optical', 'x' * 300])
@pytest.mark.parametrize('encoding', ['', 'rgb8', 'bgr8; jpeg', 'mono16'])
def test_all_fields_are_what_rclpy_reads(frame_id, encoding):
    for height, width in ((3, 5), (1, 1), (2, 7), (48, 64)):
        raw = serialize_message(message(frame_id, encoding, height, width))
        found = serialized.read_image(raw)
        assert isinstance(found, serialized.SerializedImage)
        assert_same(found, deserialize_message(raw, Image))


def test_an_image_without_data_is_read_and_rejected_later():
    raw = serialize_message(Image())
    assert_same(serialized.read_image(raw), Image())
    with pytest.raises(ImageError) as error:
        to_rgb(serialized.read_image(raw))
    assert error.value.condition == 'empty image'


def test_pixels_are_neither_copied_nor_changed():
    raw = serialize_message(message())
    found = serialized.read_image(raw)
    assert found.data.obj is raw
    np.testing.assert_array_equal(to_rgb(found), picture(3, 5))


def test_other_byte_orders_are_left_to_the_middleware():
    data = bytes(range(6))
    raw = b''.join((
        b'\x00\x00\x00\x00', struct.pack('>iII', 3, 4, 4), b'eye\0',
        struct.pack('>III', 1, 2, 5), b'rgb8\0', b'\1', b'\0\0', struct.pack('>II', 6, 6), data))
    found = serialized.read_image(raw)
    assert isinstance(found, Image)
    assert (found.header.stamp.sec, found.header.frame_id) == (3, 'eye')
    assert (found.height, found.width, found.encoding, found.step) == (1, 2, 'rgb8', 6)
    assert bytes(found.data) == data


def test_whatever_is_cut_off_is_an_error():
    raw = serialize_message(message())
    for end in range(len(raw)):
        with pytest.raises(ImageError) as error:
            serialized.read_image(raw[:end])
        assert error.value.condition == 'unreadable message'
    assert f'{end} bytes are no Image' in str(error.value)


def test_lengths_that_do_not_fit_are_never_believed():
    """Every byte before the pixels is changed once: none makes it read beyond the message."""
    raw = serialize_message(message())
    start = raw.index(bytes(message().data))
    for place in range(start):
        changed = bytearray(raw)
        changed[place] ^= 0x05
        try:
            found = serialized.read_image(bytes(changed))
        except ImageError as error:
            assert error.condition == 'unreadable message'  # noqa: PT017 (some are readable)
        else:
            assert len(found.data) <= len(raw)


def test_content_is_all_but_the_stamp():
    raw = serialize_message(camera_info(Header(), 64, 48))
    same = serialized.content(raw)
    assert serialized.content(raw[:4] + b'12345678' + raw[12:]) == same
    for changed in (camera_info(Header(frame_id='a'), 64, 48), camera_info(Header(), 64, 49)):
        assert serialized.content(serialize_message(changed)) != same


def test_errors_are_of_the_wanted_type():
    with pytest.raises(CameraInfoError, match='4 bytes are no CameraInfo') as error:
        serialized.read(b'\0\1\0\0', CAMERA_INFO, CameraInfoError)
    assert error.value.condition == 'unreadable message'


def test_a_template_gives_what_the_middleware_gives():
    first, later = message(), message()
    template = serialized.Template(first)
    later.header.stamp = Time(sec=17, nanosec=4)
    later.data[:] = type(later.data)('B', bytes(reversed(later.data)))
    for expected in (later, first):
        raw = template.filled(expected.header.stamp, expected.data)
        assert deserialize_message(raw, Image) == expected


def test_a_template_keeps_what_is_behind_the_data():
    cloud = PatchCloud().fill(
        Header(frame_id='eye'), np.ones((2, 3, 3), np.float32), np.ones((2, 3), np.float32),
        np.zeros((2, 3, 3), np.uint8))
    template = serialized.Template(cloud, behind=1)
    raw = template.filled(Time(sec=1), bytes(len(cloud.data)))
    found = deserialize_message(raw, PointCloud2)
    assert (found.is_dense, found.header.stamp.sec, found.fields) == (True, 1, cloud.fields)
    assert bytes(found.data) == bytes(len(cloud.data))


def test_a_message_without_data_has_a_template_too():
    info = camera_info(Header(frame_id='eye'), 64, 48)
    raw = serialized.Template(info).filled(Time(sec=-2, nanosec=5))
    info.header.stamp = Time(sec=-2, nanosec=5)
    assert deserialize_message(raw, CameraInfo) == info


def test_a_message_that_does_not_fit_is_refused():
    cloud = PointCloud2(data=b'1234', is_dense=True)
    with pytest.raises(RuntimeError, match='PointCloud2 has another form than CDR'):
        serialized.Template(cloud)
