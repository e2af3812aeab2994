# SPDX-License-Identifier: Apache-2.0
"""A bag open for reading: by `rosbags`, and an .mcap file without its end by `mcap`, too."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import quoted
from ..sources.bag import BagError, BagTopic, checked_path, existing_path, metadata_of
from .options import COMPRESSIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

METADATA = 'metadata.yaml'
STORAGES = {'.mcap': 'mcap', '.db3': 'sqlite3'}


class Source:
    """An open bag.

    Attributes:
        path: of the bag.
        connections: its topics, as `rosbags` has them.
        storage: 'mcap' or 'sqlite3'.
        compression: 'none', 'zstd' of an mcap's chunks, 'message' or 'file'.
        version: 8 or 9, of the metadata to write: what QoS is written as changed with 9.
        lost: sentences about what cannot be read.
        begin: time of the first message [ns].
        end: time behind the last one.

    """

    def __init__(self, path: Path, scratch: Path) -> None:
        """Open a bag folder, or a lone file.

        Args:
            path: of the bag.
            scratch: folder that is there, for what can be saved of a file without its end.

        Raises:
            BagError: it cannot be read; says what to do.

        """
        self.path, self.lost = existing_path(path), list[str]()
        self._stack, self._readers, self.storage = ExitStack(), list[Any](), ''
        try:
            self._open(scratch)
        except BaseException:
            self.close()
            raise
        filled = [reader for reader in self._readers if reader.message_count]
        self.connections = [c for reader in self._readers for c in reader.connections]
        self.begin = min((reader.start_time for reader in filled), default=0)
        self.end = max((reader.end_time for reader in filled), default=0)

    def close(self) -> None:
        """Close all files."""
        self._stack.close()

    def topics(self) -> list[BagTopic]:
        """Topics as `depthclip_ros.sources.bag` has them."""
        counts: Counter[tuple[str, str]] = Counter()
        for connection in self.connections:
            counts[connection.topic, connection.msgtype] += connection.msgcount
        return [BagTopic(*key, count) for key, count in counts.items()]

    def messages(
        self, begin: int, end: int, topics: Collection[str] | None = None,
    ) -> Iterator[tuple[Any, int, bytes]]:
        """Connection, time and content of the messages in a span of time, the end excluded.

        Raises:
            BagError: the bag is damaged from here on.

        """
        for reader in self._readers:
            wanted = [c for c in reader.connections if topics is None or c.topic in topics]
            if not wanted:
                continue
            try:
                yield from reader.messages(wanted, begin, end)
            except Exception as error:  # a damaged file raises whatever its decoders raise
                raise self._damaged(reader.path, error) from error

    def _open(self, scratch: Path) -> None:
        """Open the bag as a whole; where that cannot be, every file of it."""
        if not self.path.is_dir():
            self._take(checked_path(self.path), scratch)
            self._describe({}, self.path)
            return
        metadata: dict[str, Any] = {}
        try:
            metadata = metadata_of(self.path / METADATA)
            self._enter(self.path)
        except Exception as error:  # noqa: BLE001 (whatever a damaged file raises)
            self._open_files(metadata, scratch, error)
        else:
            self._describe(metadata, self.path / metadata['relative_file_paths'][0])

    def _open_files(self, metadata: dict[str, Any], scratch: Path, reason: Exception) -> None:
        """Open every file by itself."""
        files = sorted((file for file in self.path.iterdir() if file.suffix in STORAGES),
                       key=_natural)
        if not files or str(metadata.get('compression_mode')).lower() in ('message', 'file'):
            raise self._damaged(self.path, reason) from reason
        self.lost.append(f'{self.path.name} cannot be read as one ({_said(reason)}); its files '
                         'are read one by one.')
        for file in files:
            self._take(file, scratch)
        self._describe({}, files[0])

    def _enter(self, path: Path) -> None:
        from rosbags.rosbag2 import Reader
        self._readers.append(self._stack.enter_context(Reader(path)))

    def _take(self, file: Path, scratch: Path) -> None:
        """Open one file; of an .mcap without its end, what there is."""
        try:
            self._enter(file)
        except Exception as error:
            saved = scratch / f'saved_{file.name}'
            if file.suffix != '.mcap' or not _recover(file, saved):
                raise self._damaged(file, error) from error
            self._enter(saved)
            self.lost.append(
                f'{file.name} was never finished ({_said(error)}): what is behind the last whole '
                f'record is lost; {self._readers[-1].message_count} messages are there.')

    def _describe(self, metadata: dict[str, Any], file: Path) -> None:
        self.storage = metadata.get('storage_identifier') or STORAGES[file.suffix]
        self.version: Literal[8, 9] = 9 if int(metadata.get('version', 0)) >= 9 else 8
        self.compression = self._readers[0].compression_mode or 'none'
        if self.storage == 'mcap' and self.compression == 'none':
            self.compression = _compression_of_chunks(file)

    def _damaged(self, path: Path, error: Exception) -> BagError:
        storage = STORAGES.get(path.suffix, self.storage)
        remedy = {
            'mcap': "Save what is whole with 'mcap recover FILE -o saved.mcap'",
            'sqlite3': "Save what is whole with 'sqlite3 FILE .recover | sqlite3 saved.db3', and "
                       "make its metadata with 'ros2 bag reindex'",
        }.get(storage, f"If its recorder crashed, try 'ros2 bag reindex {path}'")
        return BagError(f'{path} cannot be read as a rosbag2 bag: {_said(error)}. {remedy}; else '
                        'copy or record it again.')


def _recover(path: Path, saved: Path) -> bool:
    """Write all whole records of an .mcap file into one that has an end, too.

    Returns:
        Whether there was any message.

    """
    try:
        from mcap import records
        from mcap.stream_reader import StreamReader
        from mcap.writer import Writer
    except ImportError:
        return False
    schemas, channels, count = {0: 0}, dict[int, int](), 0
    with path.open('rb') as source, saved.open('wb') as target:
        writer = Writer(target)
        writer.start('ros2', 'depthclip_ros')
        try:
            for record in StreamReader(source, validate_crcs=True).records:
                if isinstance(record, records.Schema):
                    schemas[record.id] = writer.register_schema(
                        record.name, record.encoding, record.data)
                elif isinstance(record, records.Channel) and record.id not in channels:
                    channels[record.id] = writer.register_channel(
                        record.topic, record.message_encoding, schemas[record.schema_id],
                        record.metadata)
                elif isinstance(record, records.Message):
                    writer.add_message(channels[record.channel_id], record.log_time, record.data,
                                       record.publish_time, record.sequence)
                    count += 1
        except OSError:
            raise
        except Exception:  # noqa: BLE001, S110 (here it ends, in whatever way)
            pass
        writer.finish()  # type: ignore[no-untyped-call]
    return count > 0


def _compression_of_chunks(path: Path) -> str:
    """Compression of an mcap's chunks, as an output can have it."""
    from mcap.reader import make_reader
    try:
        with path.open('rb') as file:
            summary = make_reader(file).get_summary()
    except Exception:  # noqa: BLE001 (what it was is not worth an error)
        return 'none'
    own = summary.chunk_indexes[0].compression if summary and summary.chunk_indexes else ''
    if not own:
        return 'none'
    return own if own in COMPRESSIONS['mcap'] else 'zstd'


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order of names in which 10 comes behind 9."""
    return [(int(part), '') if part.isdigit() else (-1, part)
            for part in re.split(r'(\d+)', path.name)]


def _said(error: Exception) -> str:
    return quoted(str(error) or type(error).__name__, 300).strip('\'"').rstrip('.')
