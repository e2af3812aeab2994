# SPDX-License-Identifier: Apache-2.0
"""Files of MCAP (mcap.dev), also those whose recorder did not live to write their end.

The `mcap` package reads what it can rely on: records, and the summary of a whole file. Where there
is none, its own readers sort the whole file in memory, or stop at the first damage; here the
chunks are found by their headers, and the ones that are whole are read.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.reader import SeekingReader
from mcap.records import Channel, Schema

from ..core.files import open_regular
from .records import END_OF_TIME, Block, Contents, Record, Topic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = b'\x89MCAP0\r\n'
QOS, HASH = 'offered_qos_profiles', 'topic_type_hash'  # in a channel's metadata
_HEAD = struct.Struct('<BQ')  # opcode and length of a record
_CHUNK = struct.Struct('<QQQII')  # times, size, checksum, length of the compression's name
_MESSAGE = struct.Struct('<HIQQ')  # channel, sequence, time of recording, of publication
_MOST = 2 << 30  # bytes of a chunk; recorders make some megabytes
_RUN = 1 << 20  # bytes of messages without a chunk that are read together


class _Place(NamedTuple):
    """A chunk, or a run of messages without one."""

    begin: int
    end: int
    offset: int
    length: int
    chunked: bool


class McapFile:
    """One file, open for reading as long as its blocks are in use."""

    def __init__(self, path: Path) -> None:
        """Open, without looking at it.

        Raises:
            OSError: it cannot be opened.

        """
        self._path, self._file = path, open_regular(path)
        self._schemas: dict[int, Schema] = {}
        self._topics: dict[int, Topic] = {}
        self._counts: Counter[int] = Counter()
        self._lost: list[str] = []
        self._compression = 'none'

    def close(self) -> None:
        """Close."""
        self._file.close()

    def contents(self) -> Contents:
        """Find out what is there, by the summary or by what there is."""
        places = self._by_summary()
        if places is None:
            self._schemas.clear()
            self._topics.clear()
            self._counts.clear()
            places = self._by_scan()
        counts: Counter[Topic] = Counter()
        for number, topic in self._topics.items():
            counts[topic] += self._counts[number]
        blocks = [Block(place.begin, place.end, partial(self._read, place)) for place in places]
        return Contents(counts, blocks, self._lost, self._compression)

    def _by_summary(self) -> list[_Place] | None:
        """What the file's end says; None if it says nothing, or not enough."""
        try:
            self._file.seek(-len(MAGIC), 2)
            if self._file.read() != MAGIC:
                return None
            self._file.seek(0)
            summary = SeekingReader(self._file).get_summary()
        except Exception:  # noqa: BLE001 (a damaged summary is none)
            return None
        if summary is None or summary.statistics is None or (
                summary.statistics.message_count and not summary.chunk_indexes):
            return None
        self._schemas.update(summary.schemas)
        for channel in summary.channels.values():
            self._add_channel(channel)
        self._counts.update(summary.statistics.channel_message_counts)
        if set(self._counts) - set(self._topics):
            return None
        for index in summary.chunk_indexes[:1]:
            self._compression = index.compression or 'none'
        return [_Place(index.message_start_time, index.message_end_time,
                       index.chunk_start_offset, index.chunk_length, chunked=True)
                for index in summary.chunk_indexes]

    def _by_scan(self) -> list[_Place]:
        """Follow the records from the beginning, as far as they are whole."""
        file, places = self._file, list[_Place]()
        size = file.seek(0, 2)
        position, whole = len(MAGIC), False
        while position + _HEAD.size <= size:
            file.seek(position)
            opcode, length = _HEAD.unpack(file.read(_HEAD.size))
            end = position + _HEAD.size + length
            if opcode in (Opcode.DATA_END, Opcode.FOOTER):
                whole = True
                break
            if end > size or not opcode:
                break
            if opcode == Opcode.CHUNK:
                self._see_chunk(places, position, end - position)
            elif opcode == Opcode.MESSAGE and length >= _MESSAGE.size:
                channel, _, time, _ = _MESSAGE.unpack(file.read(_MESSAGE.size))
                self._counts[channel] += 1
                _append(places, time, position, end - position)
            elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
                self._see(opcode, file.read(length))
            position = end
        name = self._path.name
        if whole:
            self._lost.append(f'{name}: it has no index; all of it was read once to make one, and '
                              'no message is lost.')
        else:
            self._lost.append(
                f'{name}: it was never finished; all of it was read once, and '
                f'{_bytes(size - position)} behind the last whole record are lost.')
        unknown = sum(self._counts[number] for number in set(self._counts) - set(self._topics))
        if unknown:
            self._lost.append(f'{name}: {unknown} messages are of no known topic, and lost.')
        return places

    def _see_chunk(self, places: list[_Place], offset: int, length: int) -> None:
        """Note what is in a chunk; one that cannot be read is lost."""
        place = _Place(0, END_OF_TIME, offset, length, chunked=True)
        try:
            data = self._data(place)
        except Exception as error:  # noqa: BLE001 (whatever a decompressor raises)
            self._lose(place, error)
            return
        times = []
        for opcode, begin, end in _records(data):
            if opcode == Opcode.MESSAGE and end - begin >= _MESSAGE.size:
                channel, _, time, _ = _MESSAGE.unpack_from(data, begin)
                self._counts[channel] += 1
                times.append(time)
            elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
                self._see(opcode, data[begin:end])
        if times:
            places.append(place._replace(begin=min(times), end=max(times)))

    def _see(self, opcode: int, content: bytes) -> None:
        stream = ReadDataStream(BytesIO(content))
        try:
            if opcode == Opcode.SCHEMA:
                schema = Schema.read(stream)
                self._schemas[schema.id] = schema
            else:
                self._add_channel(Channel.read(stream))
        except Exception as error:  # noqa: BLE001 (as of a damaged summary)
            self._lost.append(f'{self._path.name}: the description of a topic is damaged '
                              f'({str(error) or type(error).__name__}).')

    def _add_channel(self, channel: Channel) -> None:
        schema = self._schemas.get(channel.schema_id)
        self._topics[channel.id] = Topic(
            channel.topic, schema.name if schema else '', channel.message_encoding,
            schema.encoding if schema else '', schema.data if schema else b'',
            channel.metadata.get(QOS, ''), channel.metadata.get(HASH, ''))

    def _data(self, place: _Place) -> bytes:
        """Records of a chunk.

        Raises:
            ValueError: it is damaged; or what its decompressor raises.

        """
        self._file.seek(place.offset + _HEAD.size)
        raw = self._file.read(place.length - _HEAD.size)
        _, _, size, checksum, length = _CHUNK.unpack_from(raw)
        compression = raw[_CHUNK.size:_CHUNK.size + length].decode()
        data = raw[_CHUNK.size + length + 8:]
        if size > _MOST:
            raise ValueError(f'it claims to hold {size} bytes')
        if compression == 'zstd':
            data = zstandard.decompress(data, max_output_size=size)
        elif compression == 'lz4':
            data = lz4.frame.decompress(data)
        elif compression:
            raise ValueError(f'its compression {compression!r} is unknown')
        if len(data) != size or (checksum and zlib.crc32(data) != checksum):
            raise ValueError('its checksum is wrong')
        self._compression = compression or 'none'
        return data

    def _read(
        self, place: _Place, begin: int, end: int, topics: frozenset[Topic] | None,
    ) -> Iterator[Record]:
        try:
            if place.chunked:
                data = self._data(place)
            else:
                self._file.seek(place.offset)
                data = self._file.read(place.length)
        except Exception as error:  # noqa: BLE001 (whatever a decompressor raises)
            self._lose(place, error)
            return
        found = []
        for opcode, start, stop in _records(data):
            if opcode != Opcode.MESSAGE or stop - start < _MESSAGE.size:
                continue
            channel, sequence, time, published = _MESSAGE.unpack_from(data, start)
            topic = self._topics.get(channel)
            if topic is not None and begin <= time < end and (topics is None or topic in topics):
                found.append((time, topic, start + _MESSAGE.size, stop, published, sequence))
        found.sort(key=lambda entry: entry[0])
        for time, topic, start, stop, published, sequence in found:
            yield Record(time, topic, data[start:stop], published, sequence)

    def _lose(self, place: _Place, error: Exception) -> None:
        when = '' if place.end == END_OF_TIME else (
            f' (messages from {place.begin / 1e9:.3f} to {place.end / 1e9:.3f} s)')
        sentence = (f'{self._path.name}: the chunk at byte {place.offset}{when} is damaged and '
                    f'lost, {_bytes(place.length)}: {str(error).rstrip(".")}.')
        if sentence not in self._lost:
            self._lost.append(sentence)


def _records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Opcode, begin and end of every record's content."""
    position = 0
    while position + _HEAD.size <= len(data):
        opcode, length = _HEAD.unpack_from(data, position)
        position += _HEAD.size
        if position + length > len(data):
            return
        yield opcode, position, position + length
        position += length


def _append(places: list[_Place], time: int, offset: int, length: int) -> None:
    """Add a message to the run before it, if it lies behind that and there is room."""
    last = places[-1] if places else None
    if last is None or last.chunked or last.offset + last.length != offset or last.length > _RUN:
        places.append(_Place(time, time, offset, length, chunked=False))
    else:
        places[-1] = _Place(min(last.begin, time), max(last.end, time), last.offset,
                            last.length + length, chunked=False)


def _bytes(count: int) -> str:
    return f'{count} byte{"" if count == 1 else "s"}'


def is_mcap(file: BinaryIO) -> bool:
    """Whether a file begins as one of MCAP."""
    file.seek(0)
    return file.read(len(MAGIC)) == MAGIC
