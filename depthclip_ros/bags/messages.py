# SPDX-License-Identifier: Apache-2.0
"""Messages without ROS: those of `rosbags`, for all that the node's code does with messages."""

from __future__ import annotations

import array
from typing import Any

import numpy as np

from ..node.messages import TIME
from .records import Topic

# Of a publisher of the node: reliable, volatile, the last five kept (node/publishers.py).
_QOS = {'history': ('keep_last', 1), 'depth': (5, 5), 'reliability': ('reliable', 1),
        'durability': ('volatile', 2), 'liveliness': ('automatic', 1)}
_NO_TIME = {'sec': 9223372036, 'nsec': 854775807}
NAMES_FROM = 9  # version of the metadata from which policies have names instead of numbers


class RosbagsMessages:
    """See `depthclip_ros.node.messages.Messages`."""

    def __init__(self) -> None:
        """Make the types of ROS 2 Humble, which later ones have alike."""
        from rosbags.interfaces import Nodetype
        from rosbags.typesys import Stores, get_typestore
        self._store = get_typestore(Stores.ROS2_HUMBLE)
        self._several = Nodetype.ARRAY, Nodetype.SEQUENCE
        self._base = Nodetype.BASE

    def make(self, kind: str, **fields: Any) -> Any:
        """Make a message; sequences of numbers become arrays, without a copy of an array.array."""
        if kind != TIME:
            for name, value in fields.items():
                if isinstance(value, (array.array, list)):
                    fields[name] = self._sequence(kind, name, value)
        return self._store.types[kind](**fields)

    def read(self, raw: bytes, kind: str) -> Any:
        """Make a message of its serialised form."""
        return self._store.deserialize_cdr(raw, kind)

    def write(self, message: Any) -> bytes:
        """Serialise a message."""
        return bytes(self._store.serialize_cdr(message, message.__msgtype__))

    def topic(self, name: str, kind: str, version: int) -> Topic:
        """A new topic of a bag, as a recorder of the node's publisher would describe it.

        Args:
            name: of the topic.
            kind: of its messages.
            version: of the bag's metadata.

        """
        import yaml
        definition, _ = self._store.generate_msgdef(kind, ros_version=2)
        named = version >= NAMES_FROM
        qos: dict[str, Any] = {name: values[0 if named else 1] for name, values in _QOS.items()}
        for unlimited in ('deadline', 'lifespan', 'liveliness_lease_duration'):
            qos[unlimited] = dict(_NO_TIME)
        qos['avoid_ros_namespace_conventions'] = False
        return Topic(name, kind, 'cdr', 'ros2msg', definition.encode(),
                     yaml.safe_dump([qos], sort_keys=False), self._store.hash_rihs01(kind))

    def _sequence(self, kind: str, name: str, value: Any) -> Any:
        if isinstance(value, array.array):
            return np.frombuffer(value, value.typecode)
        described = dict(self._store.fielddefs[kind][1])[name]
        if described[0] not in self._several:
            return value
        inner: Any = described[1]
        element = inner[0]
        if element[0] != self._base or element[1][0] == 'string':
            return value
        return np.array(value, element[1][0])
