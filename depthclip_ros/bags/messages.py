# SPDX-License-Identifier: Apache-2.0
"""Messages without ROS: `make` and `read` as messages/types.py has them, by `rosbags`."""

from __future__ import annotations

import array
from typing import Any

import numpy as np

from ..sources.bag import read, typestore
from ..sources.metadata import QOS, Channel

__all__ = ['make', 'output_channel', 'read', 'typestore', 'write']


def make(kind: str, **fields: Any) -> Any:
    """Make a message; sequences of numbers become arrays, without a copy of an array.array."""
    from rosbags.interfaces import Nodetype
    types = dict(typestore().fielddefs[kind][1])
    for name, value in fields.items():
        if isinstance(value, array.array):
            fields[name] = np.frombuffer(value, value.typecode)
        elif isinstance(value, list):
            element, about = types[name][1][0]  # of an array or a sequence
            if element == Nodetype.BASE and about[0] != 'string':
                fields[name] = np.array(value, about[0])
    return typestore().types[kind](**fields)


def write(message: Any) -> bytes:
    """Serialise a message."""
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def output_channel(topic: str, kind: str, depth: int) -> Channel:
    """A new topic as the node's publishers have it: reliable, volatile, the last few kept."""
    from rosbags import interfaces as of
    from rosbags.rosbag2.metadata import dump_qos_v8
    never = of.QosTime(9223372036, 854775807)  # as ROS writes an infinite time
    qos = dump_qos_v8([of.Qos(
        of.QosHistory.KEEP_LAST, depth, of.QosReliability.RELIABLE, of.QosDurability.VOLATILE,
        never, never, of.QosLiveliness.AUTOMATIC, never, avoid_ros_namespace_conventions=False)])
    text, _ = typestore().generate_msgdef(kind, ros_version=2)
    return Channel(topic, kind, 'cdr', 'ros2msg', text.encode(), ((QOS, qos),),
                   typestore().hash_rihs01(kind))
