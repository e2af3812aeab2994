# SPDX-License-Identifier: Apache-2.0
"""The metadata of rosbag2, in metadata.yaml and within the files of a bag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml

from ..messages.message_types import topic_name, type_name

METADATA = 'metadata.yaml'
QOS = 'offered_qos_profiles'
_KEY = 'rosbag2_bagfile_information'


@dataclass(frozen=True)
class Channel:
    """A recorded topic.

    Attributes:
        name: of the topic.
        type: of its messages; '' if unknown.
        encoding: of its messages, mostly 'cdr'.
        schema_encoding: format of the schema: 'ros2msg', 'ros2idl', …
        schema: definition of the type; empty if the file has none.
        metadata: further entries of the file, such as the quality of service (YAML).
        digest: hash of the type (RIHS01); '' if unknown.

    """

    name: str
    type: str
    encoding: str = 'cdr'
    schema_encoding: str = ''
    schema: bytes = b''
    metadata: tuple[tuple[str, str], ...] = ()
    digest: str = ''

    @property
    def topic(self) -> str:
        """Name with the leading slash."""
        return topic_name(self.name)

    @property
    def msgtype(self) -> str:
        """Type as ROS 2 spells it, with the encoding if that is not CDR."""
        return type_name(self.type) if self.encoding == 'cdr' else \
            f'{self.type} as {self.encoding}'

    @property
    def qos(self) -> list[Any]:
        """Quality of service of its publishers, as `rosbags` parses it; [] if unknown."""
        from rosbags.rosbag2.metadata import parse_qos
        try:
            return list(parse_qos(dict(self.metadata).get(QOS, '')))
        except Exception:  # noqa: BLE001 (other programs write any text)
            return []


def latched_history(topic: str, offers: Sequence[Any]) -> int | None:
    """Return how many messages a late subscriber gets: 0 if the topic is not latched; None: all.

    The recorded depth is mostly 0, because no middleware reports it: it counts as one message of
    each publisher. Transforms on /tf_static never expire, whatever was recorded.

    Args:
        topic: its name.
        offers: quality of service of its recorded publishers.

    """
    if topic == '/tf_static':
        return None
    if not all(offer.durability.name == 'TRANSIENT_LOCAL' for offer in offers):
        return 0
    if any(offer.history.name == 'KEEP_ALL' for offer in offers):
        return None
    return sum(max(1, int(offer.depth)) for offer in offers)


@dataclass
class BagMetadata:
    """Description of a bag by rosbag2.

    Attributes:
        files: their names.
        topics: with the number of their messages, without schemas.
        compression: 'message', 'file' or 'none', whatever the compression of an mcap's chunks.
        custom: entries of the bag's writer.
        distro: of ROS; '' if unknown.

    """

    files: list[str] = field(default_factory=list)
    topics: list[tuple[Channel, int]] = field(default_factory=list)
    compression: str = 'none'
    custom: dict[str, str] = field(default_factory=dict)
    distro: str = ''

    @classmethod
    def of(cls, text: str) -> BagMetadata:
        """Parse YAML of any version of rosbag2; errors pass unchanged."""
        fields = yaml.safe_load(text)
        fields = fields.get(_KEY, fields)
        return cls(
            [PurePath(name).name for name in fields.get('relative_file_paths') or ()],
            [(_channel(topic['topic_metadata']), int(topic['message_count']))
             for topic in fields['topics_with_message_count']],
            str(fields.get('compression_mode') or 'none').lower(),
            dict(fields.get('custom_data') or {}), str(fields.get('ros_distro') or ''))

    def dump(self, storage: str, begin: int, end: int) -> tuple[str, str]:
        """Return YAML of version 8, which Humble and later read, for metadata.yaml and a file.

        Args:
            storage: 'mcap' or 'sqlite3'.
            begin: time of the first message [ns].
            end: time of the last message [ns].

        """
        from rosbags.rosbag2.metadata import dump_qos_v8
        span: dict[str, Any] = {
            'duration': {'nanoseconds': end - begin},
            'starting_time': {'nanoseconds_since_epoch': begin},
            'message_count': sum(count for _, count in self.topics)}
        about = {
            'version': 8, 'storage_identifier': storage, **span,
            'topics_with_message_count': [{'topic_metadata': {
                'name': channel.name, 'type': channel.type,
                'serialization_format': channel.encoding, QOS: dump_qos_v8(channel.qos),
                'type_description_hash': channel.digest}, 'message_count': count}
                for channel, count in self.topics],
            'compression_format': '' if self.compression == 'none' else 'zstd',
            'compression_mode': '' if self.compression == 'none' else self.compression,
            'relative_file_paths': self.files,
            'files': [{'path': name, **span} for name in self.files],
            'custom_data': self.custom or None, 'ros_distro': self.distro or 'unknown'}
        of_bag, of_file = (yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
                           for fields in ({_KEY: about}, about))
        return of_bag, of_file


def _channel(fields: dict[str, Any]) -> Channel:
    qos = fields.get(QOS) or ''
    return Channel(
        fields['name'], fields['type'], fields.get('serialization_format') or 'cdr',
        metadata=((QOS, qos if isinstance(qos, str) else yaml.safe_dump(qos)),),
        digest=str(fields.get('type_description_hash') or ''))
