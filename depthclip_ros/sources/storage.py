# SPDX-License-Identifier: Apache-2.0
"""The files of rosbag2 bags: mcap or SQLite, each maybe compressed by zstd.

The first bytes tell the format. Schemas are not parsed: the readers of rosbags refuse whole files
for schemas that no message needs. Needs `mcap` and `zstandard`.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import zstandard
from mcap import records
from mcap.reader import McapReader, NonSeekingReader, SeekingReader
from mcap.stream_reader import StreamReader
from mcap.summary import Summary

from ..core.errors import BagError
from .metadata import QOS, Channel

MCAP, SQLITE, ZSTD = b'\x89MCAP0\r\n', b'SQLite format 3\0', b'\x28\xb5\x2f\xfd'  # begin files
# Other content in files with names of bags, by its first bytes.
_NO_BAGS = {
    b'#ROSBAG': "a ROS 1 bag. Convert it once: 'rosbags-convert --src {0} --dst FOLDER'.",
    b'version https://git-lfs': "a pointer of Git LFS, not the file itself. Run 'git lfs pull'."}
_EMPTY = 'empty (0 bytes): nothing in it can be saved, copy or record it again.'
_UNFINISHED = ('-wal', '-journal')  # beside a database: journals of a killed recorder
_DIGEST = 'topic_type_hash'  # in the metadata of an mcap's channel
ROSBAG2, ABOUT = 'rosbag2', 'serialized_metadata'  # its record in an mcap, and the key in it
_EARLIEST, _LATEST = -2 ** 63, 2 ** 63 - 1  # ns
_NOTHING = records.Statistics(0, 0, {}, 0, 0, 0, 0, 0, 0)


class Message(NamedTuple):
    """A recorded message; times in ns. SQLite stores one time, and no sequence."""

    time: int
    data: bytes
    published: int
    sequence: int = 0


def open_file(path: Path, stack: ExitStack) -> McapFile | SqliteFile:
    """Open a file of a bag until the stack is closed.

    Raises:
        BagError: it is no file of a bag, or truncated, or damaged.

    """
    with translated(path), path.open('rb') as file:
        start = file.read(64)
    if start.startswith(ZSTD):
        return _unpacked_file(path, stack)
    for begin, kind in ((MCAP, McapFile), (SQLITE, SqliteFile)):
        if start.startswith(begin):
            with translated(path, is_mcap=begin == MCAP):
                return kind(path, stack)
    content = next(
        (sentence for begin, sentence in _NO_BAGS.items() if start.startswith(begin)),
        f'no file of a bag: it begins with {start[:8].hex(" ")}, neither as an mcap nor as a '
        'SQLite database: copy or record it again.') if start else _EMPTY
    raise BagError(f'{path} is {content.format(path)}')


def _unpacked_file(path: Path, stack: ExitStack) -> McapFile | SqliteFile:
    plain = Path(stack.enter_context(TemporaryDirectory())) / path.stem
    try:
        with path.open('rb') as packed, plain.open('wb') as file, \
                zstandard.ZstdDecompressor().stream_reader(
                    packed, read_across_frames=True) as content:
            shutil.copyfileobj(content, file)
        return open_file(plain, stack)
    except (zstandard.ZstdError, BagError) as error:
        raise BagError(
            f'{path} is compressed by zstd, and cut or damaged. Copy it again, or save what is '
            f"whole: 'zstd -d {path}' makes {path.with_suffix('')}, which can be given by itself."
            ) from error
    except OSError as error:
        raise BagError(f'{path} cannot be unpacked to {plain}: {error.strerror}.') from error


def unpacked(message: Message, path: Path, *, is_packed: bool, encoding: str) -> Message:
    """Decompress a message, if the bag or its first bytes say that it is compressed.

    No message in CDR begins as zstd does.
    """
    is_zstd = message.data.startswith(ZSTD)
    if is_packed and not is_zstd:
        raise BagError(f'{path} is damaged, or compressed otherwise than by zstd: a message does '
                       'not begin as zstd does. Copy it again, or record it with '
                       "'--compression-format zstd'.")
    if not is_packed and not (is_zstd and encoding == 'cdr'):
        return message
    plain = zstandard.ZstdDecompressor().decompressobj()
    data = plain.decompress(message.data)
    if not plain.eof:
        raise zstandard.ZstdError('it is cut')
    return message._replace(data=data)


@contextmanager
def translated(path: Path, *, is_mcap: bool = True) -> Iterator[None]:
    """Turn errors of decoders into a BagError that names the file and a remedy."""
    try:
        yield
    except BagError:
        raise
    except OSError as error:
        raise BagError(f'{error.filename or path} cannot be read: {error.strerror}.') from error
    except Exception as error:
        kind = 'mcap' if is_mcap else 'SQLite database'
        raise BagError(f'{path} is a damaged {kind}. {remedy(path, is_mcap=is_mcap)}') from error


def remedy(path: Path, *, is_mcap: bool) -> str:
    """Return a sentence on how to save the undamaged part of a file."""
    tool = f'mcap recover {path} -o NEW.mcap' if is_mcap else \
        f'sqlite3 {path} .recover | sqlite3 NEW.db3'
    return (f"'{tool}' saves what is whole, and its file can be given by itself. Else copy or "
            'record it again.')


# mcap --------------------------------------------------------------------------------------------


class McapFile:
    """An mcap file, read by its index; sequentially if the index is missing or incomplete.

    Attributes:
        channels: recorded topics by their numbers.
        counts: number of messages by channel, as the file states.
        begin: time of the first message [ns].
        end: time of the last message [ns].
        metadata: rosbag2's description of the bag (YAML); '' without one.

    """

    is_mcap: Literal[True] = True

    def __init__(self, path: Path, stack: ExitStack) -> None:
        """Open a file until the stack is closed."""
        self._file, size = stack.enter_context(path.open('rb')), path.stat().st_size
        self._file.seek(max(len(MCAP), size - len(MCAP)))
        if self._file.read() != MCAP:
            raise BagError(f'{path} is an mcap without its end: its recorder was killed, or the '
                           f'copy is not complete. {remedy(path, is_mcap=True)}')
        self._has_index = True
        index = self._reader().get_summary()
        self._has_index = index is not None and _is_whole(index, size)
        summary = index if index and self._has_index else self._survey()
        statistics = summary.statistics or _NOTHING
        self.counts = Counter(statistics.channel_message_counts)
        self.begin, self.end = statistics.message_start_time, statistics.message_end_time
        self.channels = {number: _channel(channel, summary.schemas.get(channel.schema_id))
                         for number, channel in summary.channels.items()}
        self.metadata = next((note.metadata.get(ABOUT, '')
                              for note in self._reader().iter_metadata()
                              if note.name == ROSBAG2), '')

    def messages(
        self, channels: Collection[int], begin: int | None, end: int | None,
    ) -> Iterator[tuple[int, Message]]:
        """Yield messages with the number of their channel, in the order of time.

        Without an index they come in the order of the file.
        """
        names = {self.channels[number].name for number in channels}
        for _, channel, message in self._reader().iter_messages(
                names, log_time_order=self._has_index, starting_at=begin, ending_before=end):
            if channel.id in channels:
                yield channel.id, Message(
                    message.log_time, message.data, message.publish_time, message.sequence)

    def beside(self) -> Iterator[records.Metadata | records.Attachment]:
        """Yield metadata records (except rosbag2's) and attachments."""
        yield from (note for note in self._reader().iter_metadata() if note.name != ROSBAG2)
        yield from self._reader().iter_attachments()

    def _reader(self) -> McapReader:
        self._file.seek(0)
        return (SeekingReader if self._has_index else NonSeekingReader)(
            self._file, validate_crcs=True)

    def _survey(self) -> Summary:
        """Count the topics of a file without a summary, by reading all of it."""
        summary, counts, times = Summary(), Counter[int](), (_LATEST, 0)
        self._file.seek(0)
        for record in StreamReader(self._file, validate_crcs=True).records:
            if isinstance(record, records.Schema):
                summary.schemas[record.id] = record
            elif isinstance(record, records.Channel):
                summary.channels[record.id] = record
            elif isinstance(record, records.Message):
                counts[record.channel_id] += 1
                times = min(times[0], record.log_time), max(times[1], record.log_time)
        summary.statistics = replace(
            _NOTHING, channel_message_counts=counts, message_start_time=times[0],
            message_end_time=times[1])
        return summary


def _is_whole(index: Summary, size: int) -> bool:
    """Whether the index of an mcap, whose parts are all optional, is complete."""
    counts = index.statistics
    return counts is not None \
        and counts.message_count == sum(counts.channel_message_counts.values()) \
        and 0 < counts.chunk_count == len(index.chunk_indexes) \
        and counts.channel_count == len(index.channels) \
        and counts.metadata_count == len(index.metadata_indexes) \
        and counts.attachment_count == len(index.attachment_indexes) \
        and {channel.schema_id for channel in index.channels.values()} <= {0, *index.schemas} \
        and all(at.chunk_start_offset + at.chunk_length <= size for at in index.chunk_indexes)


def _channel(channel: records.Channel, schema: records.Schema | None) -> Channel:
    metadata = channel.metadata
    return Channel(
        channel.topic, schema.name if schema else '', channel.message_encoding,
        schema.encoding if schema else '', schema.data if schema else b'',
        tuple(metadata.items()), metadata.get(_DIGEST, ''))


# SQLite ------------------------------------------------------------------------------------------


class SqliteFile:
    """A SQLite database of rosbag2, of any schema version; attributes as `McapFile`."""

    is_mcap: Literal[False] = False

    def __init__(self, path: Path, stack: ExitStack) -> None:
        """Open a file until the stack is closed, without writing to it or its folder."""
        journals = [path.with_name(path.name + end) for end in _UNFINISHED]
        if journals := [file for file in journals if file.exists() and file.stat().st_size]:
            copies = Path(stack.enter_context(TemporaryDirectory()))
            for file in (path, *journals):  # SQLite merges the journal in the copy
                shutil.copy(file, copies)
            self._database = sqlite3.connect(copies / path.name)
        else:
            self._database = sqlite3.connect(
                f'file:{quote(str(path.absolute()))}?immutable=1', uri=True)
        stack.enter_context(closing(self._database))
        self._database.row_factory = sqlite3.Row
        self._tables = {row['name'] for row in self._rows(
            "SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {'topics', 'messages'} <= self._tables:
            raise BagError(f'{path} is a SQLite database, but not of rosbag2: it has no tables '
                           'topics and messages. Copy or record it again.')
        texts = {row['topic_type']: row for row in self._rows(
            'SELECT * FROM message_definitions', 'message_definitions')}
        self.channels = {row['id']: _channel_of(row, texts.get(row['type'], {}))
                         for row in self._rows('SELECT * FROM topics')}
        rows = self._rows('SELECT topic_id, COUNT(*) AS count, MIN(timestamp) AS first, '
                          'MAX(timestamp) AS last FROM messages GROUP BY topic_id')
        rows = [row for row in rows if row['topic_id'] in self.channels]
        self.counts = Counter({row['topic_id']: row['count'] for row in rows})
        self.begin = min((row['first'] for row in rows), default=0)
        self.end = max((row['last'] for row in rows), default=0)
        self.metadata = next((str(row['metadata']) for row in self._rows(
            'SELECT metadata FROM metadata ORDER BY id DESC', 'metadata')), '')

    def messages(
        self, channels: Collection[int], begin: int | None, end: int | None,
    ) -> Iterator[tuple[int, Message]]:
        """Yield messages with the number of their channel, in the order of time."""
        rows = self._database.execute(
            'SELECT topic_id, timestamp, data FROM messages WHERE timestamp >= ? AND timestamp < '
            '? AND topic_id IN (SELECT value FROM json_each(?)) ORDER BY timestamp, id', (
                _EARLIEST if begin is None else begin, _LATEST if end is None else end,
                json.dumps(list(channels))))
        for number, time, data in rows:
            yield number, Message(time, data, time)

    def _rows(self, query: str, table: str = '') -> list[dict[str, Any]]:
        """Return rows by the names of their columns; [] if the table is missing."""
        if table and table not in self._tables:
            return []
        return [dict(row) for row in self._database.execute(query)]


def _channel_of(topic: dict[str, Any], text: dict[str, Any]) -> Channel:
    return Channel(
        topic['name'], topic['type'], topic['serialization_format'], text.get('encoding', ''),
        text.get('encoded_message_definition', '').encode(),
        ((QOS, topic.get('offered_qos_profiles', '')),),
        topic.get('type_description_hash', '') or text.get('type_description_hash', ''))
