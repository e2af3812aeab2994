# SPDX-License-Identifier: Apache-2.0
"""Files of a bag that is written, each of which depends on nothing but its messages.

MCAP is written by the `mcap` package, which keeps what that of `rosbags` drops: the time of
publication, the number in the sequence, and the text of a channel's metadata.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter
from io import BufferedWriter, FileIO
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

import yaml
import zstandard
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter

from .. import __version__
from .mcap_file import HASH, QOS
from .messages import NAMES_FROM
from .source import BY_FILE, BY_MESSAGE, METADATA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from .records import Topic

MCAP, SQLITE = 'mcap', 'sqlite3'
COMPRESSIONS = {MCAP: ('none', 'zstd', 'lz4', BY_MESSAGE, BY_FILE),
                SQLITE: ('none', BY_MESSAGE, BY_FILE)}
_CHUNKS = {'zstd': CompressionType.ZSTD, 'lz4': CompressionType.LZ4}
_CHUNK_BYTES = 4 << 20
_TABLES = """
CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);
CREATE TABLE metadata(
  id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE topics(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,
  serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL,
  type_description_hash TEXT NOT NULL);
CREATE TABLE message_definitions(
  id INTEGER PRIMARY KEY, topic_type TEXT NOT NULL, encoding TEXT NOT NULL,
  encoded_message_definition TEXT NOT NULL, type_description_hash TEXT NOT NULL);
CREATE TABLE messages(
  id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL,
  data BLOB NOT NULL);
CREATE INDEX timestamp_idx ON messages (timestamp ASC);
INSERT INTO schema(schema_version, ros_distro) VALUES (4, '');
"""


class Part(NamedTuple):
    """A file of the output; of `counts`, the messages of each topic in the topics' order."""

    name: str
    sha256: str
    begin: int
    end: int
    counts: list[int]


class _Storage(Protocol):
    def write(self, number: int, time: int, data: bytes, published: int, sequence: int) -> None:
        """Add a message of the topic with that number."""

    def close(self) -> str:
        """Write what is left, to the disk; gives the SHA-256 of all of it."""


class _HashedFile(BufferedWriter):
    """A file that is written from its beginning to its end: what was hashed is not read again."""

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path, 'wb'))
        self._digest = hashlib.sha256()

    def write(self, data: Buffer) -> int:
        self._digest.update(data)
        return super().write(data)

    def complete(self) -> str:
        self.flush()
        os.fsync(self.fileno())
        self.close()
        return self._digest.hexdigest()


class _Mcap:
    """Chunks of a fixed size, so that the same messages always give the same bytes."""

    def __init__(self, path: Path, topics: Sequence[Topic], compression: str) -> None:
        self._file = _HashedFile(path)
        self._writer = McapWriter(
            self._file, chunk_size=_CHUNK_BYTES, index_types=IndexType.ALL,
            compression=_CHUNKS.get(compression, CompressionType.NONE))
        self._writer.start('ros2', f'depthclip_ros {__version__}')
        schemas: dict[tuple[str, str, bytes], int] = {}
        self._channels = []
        for topic in topics:
            schema = topic.type, topic.encoding, topic.definition
            if schema not in schemas:
                schemas[schema] = self._writer.register_schema(*schema)
            metadata = {QOS: topic.qos} | ({HASH: topic.hash} if topic.hash else {})
            self._channels.append(self._writer.register_channel(
                topic.name, topic.format, schemas[schema], metadata))

    def write(self, number: int, time: int, data: bytes, published: int, sequence: int) -> None:
        self._writer.add_message(self._channels[number], time, data, published, sequence)

    def close(self) -> str:
        self._writer.finish()  # type: ignore[no-untyped-call]
        return self._file.complete()


class _Sqlite:
    """Tables as rosbag2 makes them from Iron on."""

    def __init__(self, path: Path, topics: Sequence[Topic]) -> None:
        # The thread that writes is not the one that began.
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # Nothing reads it before it is whole, and what is not is never kept.
        self._connection.execute('PRAGMA journal_mode=OFF')
        self._connection.execute('PRAGMA synchronous=OFF')
        self._connection.executescript(_TABLES)
        self._connection.execute('BEGIN')
        self._path = path
        defined = set()
        for topic in topics:
            self._connection.execute(
                'INSERT INTO topics(name, type, serialization_format, offered_qos_profiles, '
                'type_description_hash) VALUES (?, ?, ?, ?, ?)',
                (topic.name, topic.type, topic.format, topic.qos, topic.hash))
            if topic.definition and topic.type not in defined:
                defined.add(topic.type)
                self._connection.execute(
                    'INSERT INTO message_definitions(topic_type, encoding, '
                    'encoded_message_definition, type_description_hash) VALUES (?, ?, ?, ?)',
                    (topic.type, topic.encoding, topic.definition.decode(errors='replace'),
                     topic.hash))

    def write(
        self, number: int, time: int, data: bytes, published: int, sequence: int,  # noqa: ARG002
    ) -> None:
        self._connection.execute(
            'INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)',
            (number + 1, time, data))

    def close(self) -> str:
        self._connection.execute('COMMIT')
        self._connection.close()
        with self._path.open('rb') as file:
            os.fsync(file.fileno())
            return sha256_of(file)


class PartWriter:
    """One file, which gets its name when it is complete and on the disk."""

    def __init__(
        self, path: Path, topics: Sequence[Topic], storage: str, compression: str,
    ) -> None:
        """Begin; a file that an earlier run began is begun anew.

        Args:
            path: of the complete file, without what compression adds to its name.
            topics: of the bag, in its order.
            storage: 'mcap' or 'sqlite3'.
            compression: one of `COMPRESSIONS`.

        Raises:
            OSError: it cannot be written.

        """
        self._path, self._compression = path, compression
        self._unfinished = path.with_name(f'{path.name}.unfinished')
        self._unfinished.unlink(missing_ok=True)
        self._storage: _Storage = _Mcap(self._unfinished, topics, compression) \
            if storage == MCAP else _Sqlite(self._unfinished, topics)
        self._counts = [0] * len(topics)
        self._begin, self._end = 2**63 - 1, 0

    def write(self, number: int, time: int, data: bytes, published: int, sequence: int) -> None:
        """Add a message of the topic with that number, its bytes as they are to be stored."""
        self._storage.write(number, time, data, published, sequence)
        self._counts[number] += 1
        self._begin, self._end = min(self._begin, time), max(self._end, time)

    def close(self) -> Part:
        """Complete the file."""
        digest, path = self._storage.close(), self._path
        if self._compression == BY_FILE:
            path = path.with_name(f'{path.name}.zstd')
            compressed = path.with_name(f'{path.name}.unfinished')
            target = _HashedFile(compressed)
            with self._unfinished.open('rb') as source:
                zstandard.ZstdCompressor().copy_stream(source, target)
            digest = target.complete()
            self._unfinished.unlink()
            self._unfinished = compressed
        self._unfinished.replace(path)
        return Part(path.name, digest, self._begin, self._end, self._counts)


def sha256_of(file: BinaryIO) -> str:
    """Hash of all of a file."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def metadata(
    topics: Sequence[Topic], parts: Iterable[Part], *, storage: str, compression: str,
    version: int, custom: Mapping[str, str],
) -> bytes:
    """Content of metadata.yaml, as rosbag2 reads it."""
    parts = list(parts)
    counts = Counter[int]()
    for part in parts:
        counts.update(dict(enumerate(part.counts)))
    begin = min((part.begin for part in parts), default=0)
    end = max((part.end for part in parts), default=0)
    outer = compression in (BY_FILE, BY_MESSAGE)

    def times(first: int, last: int) -> dict[str, Any]:
        return {'starting_time': {'nanoseconds_since_epoch': first},
                'duration': {'nanoseconds': last - first}}
    information = {
        'version': version, 'storage_identifier': storage, **times(begin, end),
        'message_count': sum(counts.values()),
        'topics_with_message_count': [
            {'topic_metadata': {
                'name': topic.name, 'type': topic.type, 'serialization_format': topic.format,
                'offered_qos_profiles': (yaml.safe_load(topic.qos) or [])
                if version >= NAMES_FROM else topic.qos,
                'type_description_hash': topic.hash},
             'message_count': counts[number]} for number, topic in enumerate(topics)],
        'compression_format': 'zstd' if outer else '',
        'compression_mode': compression.upper() if outer else '',
        'relative_file_paths': [part.name for part in parts],
        'files': [{'path': part.name, **times(part.begin, part.end),
                   'message_count': sum(part.counts)} for part in parts],
        'custom_data': dict(custom), 'ros_distro': ''}
    return yaml.safe_dump({'rosbag2_bagfile_information': information}, sort_keys=False,
                          allow_unicode=True).encode()


__all__ = ['COMPRESSIONS', 'MCAP', 'METADATA', 'SQLITE', 'Part', 'PartWriter', 'metadata',
           'sha256_of']
