# SPDX-License-Identifier: Apache-2.0
"""A bag that is read as far as it can be, whatever happened to its recorder or its disk."""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
import zstandard

from ..core.errors import quoted
from ..core.files import open_regular
from ..sources.bag import BagError, BagTopic, existing_path, metadata_of
from .mcap_file import McapFile, is_mcap
from .records import Block, Record, Topic, in_order
from .sqlite_file import SqliteFile, is_sqlite

if TYPE_CHECKING:
    from collections.abc import Iterator

_ZSTD = b'\x28\xb5\x2f\xfd'
_ROS1 = b'#ROSBAG'
SUFFIXES_OF_FILES = ('.mcap', '.db3', '.mcap.zstd', '.db3.zstd')
METADATA = 'metadata.yaml'
BY_FILE, BY_MESSAGE = 'file', 'message'


class Source:
    """An open bag.

    Attributes:
        path: of the bag.
        storage: 'mcap' or 'sqlite3'.
        compression: 'none', 'zstd' or 'lz4' of an mcap's chunks; 'message', 'file'.
        version: of the metadata.
        topics: all, with the number of their messages as far as it is known.
        begin: time of the first message [ns].
        end: time behind the last one.
        described: of every topic, what is known of it from the metadata, too.

    """

    def __init__(self, path: str | Path) -> None:
        """Open a bag folder, or a lone file.

        Raises:
            BagError: nothing can be read there.

        """
        self._stack = ExitStack()
        self.path, self._lost = existing_path(path), list[str]()
        self.storage = self.compression = ''
        self.topics: Counter[Topic] = Counter()
        self._blocks: list[Block] = []
        self._losses: list[list[str]] = []
        try:
            metadata = self._metadata()
            self.version = _version(metadata)
            files = self._files(metadata)
            self._sizes = [(file.name, file.stat().st_size) for file in files]
            for file in files:
                self._open(file)
            if not self.storage:
                raise BagError(f'{self.path} holds nothing that can be read as a rosbag2 bag. '
                               + ' '.join(self.losses()))
            mode = str(metadata.get('compression_mode') or '').lower()
            if mode == BY_MESSAGE or (not mode and self._looks_compressed()):
                self.compression = BY_MESSAGE
            self._complete(metadata)
            self._note_odd(metadata)
        except OSError as error:
            self.close()
            raise BagError(f'{self.path} cannot be read: {error.strerror}.') from error
        except BaseException:
            self.close()
            raise
        times = [block for block in self._blocks if block.begin <= block.end]
        self.begin = min((block.begin for block in times), default=0)
        self.end = max((block.end for block in times), default=-1) + 1

    def close(self) -> None:
        """Close all files."""
        self._stack.close()

    def losses(self) -> list[str]:
        """Sentences about what cannot be read, as far as is known now."""
        return [*self._lost, *(sentence for losses in self._losses for sentence in losses)]

    def listed(self) -> list[BagTopic]:
        """Topics as `depthclip_ros.sources.bag` has them."""
        counts: Counter[tuple[str, str]] = Counter()
        for topic, count in self.topics.items():
            counts[topic.name, topic.type] += count
        return [BagTopic(*key, count) for key, count in counts.items()]

    def messages(
        self, begin: int, end: int, topics: frozenset[Topic] | None = None,
    ) -> Iterator[Record]:
        """Messages in the order of their times, the end excluded; see `content`."""
        return in_order(self._blocks, begin, end, topics)

    def sizes(self) -> list[tuple[str, int]]:
        """Names and sizes of the files, by which a bag is known again."""
        return self._sizes

    def begins(self) -> list[int]:
        """Times at which the blocks of the bag begin, in order."""
        return sorted(block.begin for block in self._blocks)

    def content(self, record: Record) -> bytes:
        """A message's bytes as its publisher sent them.

        Raises:
            ValueError: they were compressed, and are damaged.

        """
        if self.compression != BY_MESSAGE:
            return record.data
        try:
            return _decompressed(record.data)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error

    def _metadata(self) -> dict[str, Any]:
        if not self.path.is_dir():
            return {}
        path = self.path / METADATA
        try:
            return metadata_of(path)
        except BagError as error:
            said = f'{error} Topics' if path.exists() else f'{METADATA} is missing; topics'
            self._lost.append(f'{said} and times are taken from the files themselves.')
        return {}

    def _files(self, metadata: dict[str, Any]) -> list[Path]:
        """Files of the bag in their order."""
        if not self.path.is_dir():
            return [self.path]
        there = sorted(
            (path for path in self.path.iterdir() if path.name.endswith(SUFFIXES_OF_FILES)),
            key=_natural)
        listed = metadata.get('relative_file_paths')
        named = [self.path / Path(str(name)).name for name in listed] \
            if isinstance(listed, list) else []
        self._lost += [f'{path.name} is missing, though {METADATA} names it; all in it is lost.'
                      for path in named if not path.exists()]
        named = [path for path in named if path.exists()]
        unnamed = [path for path in there if path not in named]
        if named and unnamed:
            self._lost.append(f'{", ".join(path.name for path in unnamed)}: not named in '
                             f'{METADATA}, and read all the same.')
        files = sorted([*named, *unnamed], key=_natural) if unnamed else named
        if not files:
            raise BagError(f'{self.path} is a folder without any .mcap or .db3 file, so not a '
                           'rosbag2 bag.' + ''.join(f' {sentence}' for sentence in self._lost))
        return files

    def _open(self, path: Path) -> None:
        """Take up one file; what is wrong with it is noted."""
        try:
            path, compressed = self._decompress(path)
            with open_regular(path) as file:
                kinds = is_mcap(file), is_sqlite(file)
                file.seek(0)
                begin = file.read(8)
            if begin.startswith(_ROS1):
                raise BagError(
                    f'{path} is a ROS 1 bag. Convert it once: '
                    f"'rosbags-convert --src {path} --dst {path.with_suffix('')}'.")
            if not any(kinds):
                what = 'empty' if not begin else f'neither mcap nor sqlite3 ({begin.hex(" ")} ...)'
                self._lost.append(f'{path.name} is {what}; nothing can be read of it.')
                return
            opened = McapFile(path) if kinds[0] else SqliteFile(path)
            self._stack.callback(opened.close)
            contents = opened.contents()
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, 'strerror', None) or str(error)
            self._lost.append(f'{path.name} cannot be read: {reason}; all in it is lost.')
            return
        self.storage = self.storage or ('mcap' if kinds[0] else 'sqlite3')
        self.compression = self.compression or (
            BY_FILE if compressed else contents.compression or 'none')
        self.topics.update(contents.counts)
        self._blocks += contents.blocks
        self._losses.append(contents.lost)

    def _decompress(self, path: Path) -> tuple[Path, bool]:
        """A file that can be read from any place on; and whether it was compressed."""
        with open_regular(path) as file:
            if file.read(len(_ZSTD)) != _ZSTD:
                return path, False
            file.seek(0)
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            whole = folder / path.name.removesuffix('.zstd')
            with whole.open('wb') as target:
                try:
                    shutil.copyfileobj(
                        zstandard.ZstdDecompressor().stream_reader(file), target, 1 << 20)
                except zstandard.ZstdError as error:
                    self._lost.append(f'{path.name}: its compressed data is damaged ({error}); '
                                     'only what lies before can be read.')
        return whole, True

    def _looks_compressed(self) -> bool:
        """Whether messages were compressed one by one, which only the metadata tells."""
        first = next(self.messages(0, 2**63 - 1), None)
        return first is not None and first.data.startswith(_ZSTD)

    def _complete(self, metadata: dict[str, Any]) -> None:
        """Take from the metadata what older files do not tell of their topics."""
        known: dict[str, tuple[str, str]] = {}
        entries = metadata.get('topics_with_message_count')
        for entry in entries if isinstance(entries, list) else ():
            told = entry.get('topic_metadata') if isinstance(entry, dict) else None
            if isinstance(told, dict):
                qos = told.get('offered_qos_profiles') or ''
                known[str(told.get('name'))] = (
                    qos if isinstance(qos, str) else yaml.safe_dump(qos, sort_keys=False),
                    str(told.get('type_description_hash') or ''))
        self.described: dict[Topic, Topic] = {}
        for topic in self.topics:
            qos, digest = known.get(topic.name, ('', ''))
            self.described[topic] = topic._replace(qos=topic.qos or qos, hash=topic.hash or digest)

    def _note_odd(self, metadata: dict[str, Any]) -> None:
        told = metadata.get('storage_identifier')
        if metadata and told != self.storage:
            self._lost.append(f'{METADATA} says storage {quoted(str(told or ""))}, but the files '
                             f'are {self.storage}, and read as such; no message is lost.')


def _version(metadata: dict[str, Any]) -> int:
    """Of the metadata to write: what QoS is written as changed with 9."""
    told = metadata.get('version')
    return 9 if isinstance(told, int) and told >= 9 else 8


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order of names in which 10 comes behind 9."""
    return [(int(part), '') if part.isdigit() else (-1, part)
            for part in re.split(r'(\d+)', path.name)]


def _decompressed(data: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor().stream_reader(data)
    return bytes(reader.read())
