# SPDX-License-Identifier: Apache-2.0
"""Messages without ROS: `make` and `read` as messages/types.py has them, by `rosbags`."""

from __future__ import annotations

import array
from typing import Any

import numpy as np

from ..sources.bag import read, typestore

__all__ = ['definition', 'make', 'output_qos', 'read', 'typestore', 'write']


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


def output_qos(depth: int) -> Any:
    """QoS of the node's publishers: reliable, volatile, the last few kept."""
    from rosbags import interfaces as of
    never = of.QosTime(9223372036, 854775807)  # as ROS writes an infinite time
    return of.Qos(
        of.QosHistory.KEEP_LAST, depth, of.QosReliability.RELIABLE, of.QosDurability.VOLATILE,
        never, never, of.QosLiveliness.AUTOMATIC, never, avoid_ros_namespace_conventions=False)


def definition(connection: Any) -> tuple[str, str]:
    """Text and hash of a recorded topic's type: what the bag says, else what follows from it.

    A type that neither the bag nor ROS describes has an empty text.
    """
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    kind, text, digest = connection.msgtype, connection.msgdef.data, connection.digest
    if not text and kind in typestore().fielddefs:
        text, _ = typestore().generate_msgdef(kind, ros_version=2)
    if not digest:
        own = get_typestore(Stores.EMPTY)
        own.register(get_types_from_msg(text, kind))
        digest = own.hash_rihs01(kind)
    return text, digest
