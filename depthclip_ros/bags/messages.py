# SPDX-License-Identifier: Apache-2.0
"""Messages without ROS: `make` and `read` as node/messages.py has them, by `rosbags`."""

from __future__ import annotations

import array
import functools
from typing import Any

import numpy as np

_NEVER = 9223372036, 854775807  # seconds and nanoseconds, as ROS writes an infinite time


@functools.cache
def typestore() -> Any:
    """The types of ROS 2 Humble, which later ones have alike."""
    from rosbags.typesys import Stores, get_typestore
    return get_typestore(Stores.ROS2_HUMBLE)


def make(kind: str, **fields: Any) -> Any:
    """Make a message; sequences of numbers become arrays, without a copy of an array.array."""
    for name, value in fields.items():
        if isinstance(value, array.array):
            fields[name] = np.frombuffer(value, value.typecode)
        elif isinstance(value, list):
            fields[name] = _sequence(kind, name, value)
    return typestore().types[kind](**fields)


def read(raw: bytes, kind: str) -> Any:
    """Read a serialised message; whatever is wrong is raised as it comes."""
    return typestore().deserialize_cdr(raw, kind)


def write(message: Any) -> bytes:
    """Serialise a message."""
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def output_qos(depth: int) -> Any:
    """QoS of the node's publishers: reliable, volatile, the last few kept."""
    from rosbags import interfaces as of
    never = of.QosTime(*_NEVER)
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


def _sequence(kind: str, name: str, values: list[Any]) -> Any:
    """A list as the type of its field wants it."""
    from rosbags.interfaces import Nodetype
    field = dict(typestore().fielddefs[kind][1])[name]
    if field[0] not in (Nodetype.ARRAY, Nodetype.SEQUENCE):
        return values
    element, about = field[1][0]
    if element != Nodetype.BASE or about[0] == 'string':
        return values
    return np.array(values, about[0])
