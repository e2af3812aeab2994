# SPDX-License-Identifier: Apache-2.0
"""How rosbag2 describes a bag: in metadata.yaml, and likewise within its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml

from ..messages.types import topic_name, type_name

METADATA = 'metadata.yaml'
QOS = 'offered_qos_profiles'
_KEY = 'rosbag2_bagfile_information'


@dataclass(frozen=True)
class Channel:
    """A topic as it was recorded.

    Attributes:
        name: of the topic.
        type: of its messages; '' where nothing says so.
        encoding: of its messages, mostly 'cdr'.
        schema_encoding: how the type is described: 'ros2msg', 'ros2idl', …
        schema: the description; empty where there is none.
        metadata: what else a file says of it, such as the quality of service (YAML).
        digest: hash of the type (RIHS01); '' unless known.

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
        """Its name, with the leading slash."""
        return topic_name(self.name)

    @property
    def msgtype(self) -> str:
        """Its type as ROS 2 spells it; of what is not CDR it names the encoding, too."""
        return type_name(self.type) if self.encoding == 'cdr' else \
            f'{self.type} as {self.encoding}'

    @property
    def qos(self) -> list[Any]:
        """Quality of service of its publishers, as `rosbags` has it; [] where it is unknown."""
        from rosbags.rosbag2.metadata import parse_qos
        try:
            return list(parse_qos(dict(self.metadata).get(QOS, '')))
        except Exception:  # noqa: BLE001 (others write what they like)
            return []


def latched_history(topic: str, offers: Sequence[Any]) -> int | None:
    """How many messages late subscribers get: 0 of what is not latched; None: all.

    The recorded depth is mostly 0, because no middleware tells it: then it is one message of each
    publisher. Transforms on /tf_static hold for ever, whatever is recorded of it.

    Args:
        topic: by its name.
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
class About:
    """What rosbag2 says about a bag.

    Attributes:
        files: their names.
        topics: with the number of their messages; without the descriptions of their types.
        compression: 'message', 'file' or 'none'; says nothing of an mcap's chunks.
        custom: what the bag's writer has noted.
        distro: of ROS; '' unless known.

    """

    files: list[str] = field(default_factory=list)
    topics: list[tuple[Channel, int]] = field(default_factory=list)
    compression: str = 'none'
    custom: dict[str, str] = field(default_factory=dict)
    distro: str = ''

    @classmethod
    def of(cls, text: str) -> About:
        """Read YAML of any version of rosbag2; whatever is wrong is raised as it comes."""
        said = yaml.safe_load(text)
        said = said.get(_KEY, said)
        return cls(
            [PurePath(name).name for name in said.get('relative_file_paths') or ()],
            [(_channel(topic['topic_metadata']), int(topic['message_count']))
             for topic in said['topics_with_message_count']],
            str(said.get('compression_mode') or 'none').lower(),
            dict(said.get('custom_data') or {}), str(said.get('ros_distro') or ''))

    def dump(self, storage: str, begin: int, end: int) -> tuple[str, str]:
        """YAML of version 8, which Humble and later ones read: of metadata.yaml, of a file.

        Args:
            storage: 'mcap' or 'sqlite3'.
            begin: time of the first message [ns].
            end: that of the last one.

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
        whole, within = (yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
                         for said in ({_KEY: about}, about))
        return whole, within


def _channel(said: dict[str, Any]) -> Channel:
    qos = said.get(QOS) or ''
    return Channel(
        said['name'], said['type'], said.get('serialization_format') or 'cdr',
        metadata=((QOS, qos if isinstance(qos, str) else yaml.safe_dump(qos)),),
        digest=str(said.get('type_description_hash') or ''))
