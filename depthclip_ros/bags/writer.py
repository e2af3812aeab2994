# SPDX-License-Identifier: Apache-2.0
"""Writer of a new bag in another one's storage, which keeps the descriptions of its topics.

rosbags' own writer has one way to describe types, and must understand each of them.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import zstandard
from mcap import records
from mcap.writer import Writer

from ..sources.bag import Bag
from ..sources.metadata import METADATA, QOS, BagMetadata, Channel
from ..sources.storage import ABOUT, ROSBAG2, Message

# As rosbag2 creates them since Iron.
_TABLES = """
CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);
CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL,
    metadata TEXT NOT NULL);
CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,
    serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL,
    type_description_hash TEXT NOT NULL);
CREATE TABLE message_definitions(id INTEGER PRIMARY KEY, topic_type TEXT NOT NULL,
    encoding TEXT NOT NULL, encoded_message_definition TEXT NOT NULL,
    type_description_hash TEXT NOT NULL);
CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL,
    timestamp INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX timestamp_idx ON messages (timestamp ASC);
INSERT INTO schema VALUES(4, 'rosbag2');
"""


class BagWriter(ExitStack):
    """A bag folder, opened by `with`, that is complete after `finish`."""

    def __init__(self, folder: Path, source: Bag, custom: dict[str, str]) -> None:
        """Create the file; `custom` is added to the custom data of the source's metadata.

        Raises:
            OSError: the folder or file cannot be written.
            sqlite3.Error: the database cannot be written.

        """
        super().__init__()
        folder.mkdir()
        self._folder, self._channel_ids = folder, dict[Channel, int]()
        self._counts, self._times = Counter[Channel](), list[int]()
        compression = 'none' if source.is_mcap else source.metadata.compression
        self._metadata = BagMetadata(
            compression=compression, custom={**source.metadata.custom, **custom},
            distro=source.metadata.distro)
        self._path = folder / (folder.name + ('.mcap' if source.is_mcap else '.db3'))
        self._file = _McapWriter(self._path, self, source.beside()) if source.is_mcap else \
            _SqliteWriter(self._path, self)

    def add(self, channel: Channel) -> None:
        """Describe a topic, unless it was added before."""
        if channel not in self._channel_ids:
            self._channel_ids[channel] = self._file.add(channel)

    def write(self, channel: Channel, message: Message) -> None:
        """Write a message of a topic that was added."""
        if self._metadata.compression == 'message':
            message = message._replace(data=zstandard.compress(message.data))
        self._file.write(self._channel_ids[channel], message)
        self._counts[channel] += 1
        self._times = [min(message.time, *self._times), max(message.time, *self._times)] \
            if self._times else [message.time] * 2

    def finish(self) -> list[Channel]:
        """Complete the bag.

        Returns:
            Topics that are in the file but not in metadata.yaml, since `ros2 bag` would refuse
            the whole bag for them: those without a type or not in CDR.

        """
        metadata, is_compressed = self._metadata, self._metadata.compression == 'file'
        metadata.topics = [(channel, self._counts[channel]) for channel in self._channel_ids
                           if channel.type and channel.encoding == 'cdr']
        metadata.files = [self._path.name + '.zstd' * is_compressed]
        text, inner_metadata = metadata.dump(
            'mcap' if self._path.suffix == '.mcap' else 'sqlite3', *self._times or (0, 0))
        self._file.finish(inner_metadata)
        self.close()
        if is_compressed:
            compressed_path = self._folder / metadata.files[0]
            with self._path.open('rb') as source, compressed_path.open('wb') as file:
                zstandard.ZstdCompressor().copy_stream(source, file)
            self._path.unlink()
        (self._folder / METADATA).write_text(text, encoding='utf-8')
        listed = {channel for channel, _ in metadata.topics}
        return [channel for channel in self._channel_ids if channel not in listed]


class _McapWriter:
    """An mcap file with compressed chunks, and a copy of the source's metadata and attachments."""

    def __init__(self, path: Path, stack: ExitStack, beside: Iterator[Any]) -> None:
        self._writer: Any = Writer(stack.enter_context(path.open('wb')))
        self._writer.start(profile='ros2', library='depthclip_ros')
        self._schemas = dict[tuple[str, str, bytes], int]()
        for record in beside:
            if isinstance(record, records.Metadata):
                self._writer.add_metadata(record.name, record.metadata)
            else:
                self._writer.add_attachment(record.create_time, record.log_time, record.name,
                                            record.media_type, record.data)

    def add(self, channel: Channel) -> int:
        schema = channel.type, channel.schema_encoding, channel.schema
        if channel.type and schema not in self._schemas:
            self._schemas[schema] = self._writer.register_schema(*schema)
        return int(self._writer.register_channel(
            channel.name, channel.encoding, self._schemas.get(schema, 0), dict(channel.metadata)))

    def write(self, number: int, message: Message) -> None:
        self._writer.add_message(
            number, message.time, message.data, message.published, message.sequence)

    def finish(self, metadata: str) -> None:
        self._writer.add_metadata(ROSBAG2, {ABOUT: metadata})
        self._writer.finish()


class _SqliteWriter:
    """An SQLite database of rosbag2."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._database = stack.enter_context(closing(sqlite3.connect(path)))
        self._database.executescript(_TABLES)
        self._types = set[str]()

    def add(self, channel: Channel) -> int:
        if channel.schema_encoding and channel.type not in self._types:
            self._types.add(channel.type)
            self._insert('INSERT INTO message_definitions VALUES(NULL, ?, ?, ?, ?)', channel.type,
                         channel.schema_encoding, channel.schema.decode(), channel.digest)
        return self._insert(
            'INSERT INTO topics VALUES(NULL, ?, ?, ?, ?, ?)', channel.name, channel.type,
            channel.encoding, dict(channel.metadata).get(QOS, ''), channel.digest)

    def write(self, number: int, message: Message) -> None:
        self._insert('INSERT INTO messages VALUES(NULL, ?, ?, ?)', number, message.time,
                     message.data)

    def finish(self, metadata: str) -> None:
        self._insert('INSERT INTO metadata VALUES(NULL, 8, ?)', metadata)
        self._database.commit()

    def _insert(self, statement: str, *values: str | int | bytes) -> int:
        return int(self._database.execute(statement, values).lastrowid or 0)
