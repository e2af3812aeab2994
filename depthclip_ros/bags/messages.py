# SPDX-License-Identifier: Apache-2.0
"""Messages without ROS, by `rosbags`: those of messages/message_types.py, and `serialize`."""

from __future__ import annotations

import array
from typing import Any

import numpy as np

from ..sources.bag import deserialize, typestore
from ..sources.metadata import QOS, Channel

__all__ = ['create_message', 'deserialize', 'output_channel', 'serialize', 'typestore']


def create_message(message_type: str, **fields: Any) -> Any:
    """Create a message; sequences of numbers become arrays, an array.array without a copy."""
    from rosbags.interfaces import Nodetype
    types = dict(typestore().fielddefs[message_type][1])
    for name, value in fields.items():
        if isinstance(value, array.array):
            fields[name] = np.frombuffer(value, value.typecode)
        elif isinstance(value, list):
            element, details = types[name][1][0]  # of an array or a sequence
            if element == Nodetype.BASE and details[0] != 'string':
                fields[name] = np.array(value, details[0])
    return typestore().types[message_type](**fields)


def serialize(message: Any) -> bytes:
    """Serialise a message."""
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def output_channel(topic: str, message_type: str, depth: int) -> Channel:
    """Describe a new topic with the node's QoS: reliable, volatile, keep last."""
    from rosbags import interfaces as of
    from rosbags.rosbag2.metadata import dump_qos_v8
    never = of.QosTime(9223372036, 854775807)  # as ROS writes an infinite time
    qos = dump_qos_v8([of.Qos(
        of.QosHistory.KEEP_LAST, depth, of.QosReliability.RELIABLE, of.QosDurability.VOLATILE,
        never, never, of.QosLiveliness.AUTOMATIC, never, avoid_ros_namespace_conventions=False)])
    text, _ = typestore().generate_msgdef(message_type, ros_version=2)
    return Channel(topic, message_type, 'cdr', 'ros2msg', text.encode(), ((QOS, qos),),
                   typestore().hash_rihs01(message_type))
