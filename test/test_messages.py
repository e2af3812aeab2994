# SPDX-License-Identifier: Apache-2.0
"""Messages by rclpy and by `rosbags`: the same fields and bytes."""

from __future__ import annotations

import array
import struct

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('rosbags')

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from ros_harness import camera_info, image
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from depthclip_ros.bags import messages as of_bags
from depthclip_ros.core.errors import CameraInfoError
from depthclip_ros.messages import message_types as messages
from depthclip_ros.messages.message_types import CAMERA_INFO, IMAGE, parse_message, stamp_of

HEADER = Header(stamp=Time(sec=-7, nanosec=999_999_999), frame_id='größe/optical')


@pytest.mark.parametrize('read', [messages.deserialize, of_bags.deserialize])
def test_what_is_no_such_message_is_an_error_of_the_wanted_type(read):
    with pytest.raises(CameraInfoError, match='4 bytes are no CameraInfo') as error:
        parse_message(read, b'\0\1\0\0', CAMERA_INFO, CameraInfoError)
    assert error.value.condition == 'unreadable message'


def test_the_stamp_is_found_in_either_byte_order():
    raw = serialize_message(Image(header=HEADER))
    assert stamp_of(raw) == -7 * 10**9 + 999_999_999
    assert stamp_of(b'\0\0\0\0' + struct.pack('>iI', 3, 4)) == 3_000_000_004
    assert stamp_of(raw[:11]) is None


@pytest.mark.parametrize('message', [
    image(HEADER, np.arange(45, dtype=np.uint8).reshape(3, 5, 3), 'rgb8'),
    camera_info(HEADER, 64, 48)], ids=['image', 'camera_info'])
def test_both_make_and_read_the_same(message):
    kind = {'Image': IMAGE, 'CameraInfo': CAMERA_INFO}[type(message).__name__]
    raw = serialize_message(message)
    found = of_bags.deserialize(raw, kind)
    names = [name.lstrip('_') for name in message.get_fields_and_field_types()]
    fields = {name: getattr(found, name) for name in names}
    if kind == IMAGE:
        fields['data'] = array.array('B', bytes(message.data))
    else:
        fields |= {name: list(getattr(message, name)) for name in 'dkrp'}
    again = of_bags.serialize(of_bags.create_message(kind, **fields))
    assert deserialize_message(again, type(message)) == message
    assert messages.deserialize(raw, kind) == message
