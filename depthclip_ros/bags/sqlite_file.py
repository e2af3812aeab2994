# SPDX-License-Identifier: Apache-2.0
"""Files of rosbag2's SQLite storage, in every version of its tables."""

from __future__ import annotations

import sqlite3
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from .records import END_OF_TIME, Block, Contents, Record, Topic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = b'SQLite format 3\x00'
# A damaged cell can hold anything, and so be of any type.
_ORDERED = ('SELECT topic_id, timestamp, data FROM messages '
            "WHERE timestamp >= ? AND timestamp < ? AND typeof(timestamp) = 'integer' "
            'ORDER BY timestamp, id')


class SqliteFile:
    """One file, open for reading as long as its blocks are in use."""

    def __init__(self, path: Path) -> None:
        """Open, without looking at it; the file is not changed.

        Raises:
            sqlite3.Error: it cannot be opened.

        """
        self._path = path
        self._topics: dict[int, Topic] = {}
        self._lost: list[str] = []
        # What a recorder that was killed had not moved into the file yet is in a log beside it.
        log = path.with_name(f'{path.name}-wal')
        immutable = '' if log.exists() and log.stat().st_size else '&immutable=1'
        self._connection = sqlite3.connect(
            f'file:{quote(str(path.absolute()))}?mode=ro{immutable}', uri=True,
            check_same_thread=False)
        # A text that is damaged is no reason to stop.
        self._connection.text_factory = lambda raw: raw.decode(errors='replace')

    def close(self) -> None:
        """Close."""
        self._connection.close()

    def contents(self) -> Contents:
        """Find out what is there.

        Raises:
            sqlite3.Error: the table of topics cannot be read.

        """
        try:
            self._read_topics()
        except sqlite3.DatabaseError:
            # A file that is shorter than its header says is refused as a whole, unless this is on;
            # nothing is written all the same.
            self._connection.execute('PRAGMA writable_schema=ON')
            self._topics.clear()
            self._read_topics()
        counts: Counter[Topic] = Counter(dict.fromkeys(self._topics.values(), 0))
        try:
            rows = self._ask('SELECT topic_id, COUNT(*), MIN(timestamp), MAX(timestamp) '
                             "FROM messages WHERE typeof(timestamp) = 'integer' GROUP BY topic_id")
            # The index may be damaged where the table is not.
            self._ask('SELECT timestamp FROM messages ORDER BY timestamp DESC LIMIT 1')
        except sqlite3.Error as error:
            return self._damaged(counts, error)
        blocks = []
        if rows:
            blocks = [Block(min(row[2] for row in rows), max(row[3] for row in rows), self._read)]
        for number, count, *_ in rows:
            if number in self._topics:
                counts[self._topics[number]] += count
            else:
                self._lost.append(f'{self._path.name}: {count} messages are of no known topic, '
                                  'and lost.')
        return Contents(counts, blocks, self._lost)

    def _ask(self, query: str) -> list[Any]:
        return self._connection.execute(query).fetchall()

    def _columns(self, table: str) -> set[str]:
        return {row[1] for row in self._ask(f'PRAGMA table_info({table})')}

    def _read_topics(self) -> None:
        definitions: dict[str, tuple[str, bytes, str]] = {}
        if self._columns('message_definitions'):
            for kind, encoding, definition, digest in self._ask(
                    'SELECT topic_type, encoding, encoded_message_definition, '
                    'type_description_hash FROM message_definitions'):
                definitions[kind] = str(encoding), str(definition).encode(), str(digest)
        there = self._columns('topics')
        wanted = [name if name in there else "''" for name in (
            'id', 'name', 'type', 'serialization_format', 'offered_qos_profiles',
            'type_description_hash')]
        for number, name, kind, form, qos, digest in self._ask(
                f'SELECT {", ".join(wanted)} FROM topics ORDER BY id'):  # noqa: S608 (constants)
            encoding, definition, of_definition = definitions.get(kind, ('', b'', ''))
            self._topics[number] = Topic(
                str(name), str(kind), str(form), encoding, definition, str(qos),
                str(digest) or of_definition)

    def _read(
        self, begin: int, end: int, topics: frozenset[Topic] | None,
    ) -> Iterator[Record]:
        try:
            for number, time, data in self._connection.execute(
                    _ORDERED, (begin, min(end, END_OF_TIME))):
                topic = self._topics.get(number)
                if topic is not None and (topics is None or topic in topics):
                    yield Record(time, topic, _bytes(data), time, 0)
        except sqlite3.Error as error:
            self._lost.append(f'{self._path.name}: its messages could not be read to the end: '
                              f'{error}.')

    def _damaged(self, counts: Counter[Topic], error: Exception) -> Contents:
        """What can be read in the order of the table, one message after the other."""
        rows: list[tuple[int, int]] = []
        try:
            for row, number, time in self._connection.execute(
                    'SELECT id, topic_id, timestamp FROM messages NOT INDEXED '
                    "WHERE typeof(timestamp) = 'integer' ORDER BY id"):
                if number in self._topics:
                    counts[self._topics[number]] += 1
                    rows.append((time, row))
        except sqlite3.Error:
            pass
        self._lost.append(
            f'{self._path.name}: the database is damaged ({error}); the first {len(rows)} '
            'messages of it can be found, what is behind them is lost.')
        rows.sort()
        blocks = []
        if rows:
            blocks = [Block(rows[0][0], rows[-1][0], partial(self._read_rows, rows))]
        return Contents(counts, blocks, self._lost)

    def _read_rows(
        self, rows: list[tuple[int, int]], begin: int, end: int,
        topics: frozenset[Topic] | None,
    ) -> Iterator[Record]:
        missing = 0
        for time, row in rows:
            if not begin <= time < end:
                continue
            try:
                number, data = self._connection.execute(
                    'SELECT topic_id, data FROM messages WHERE id = ?', (row,)).fetchone()
            except (sqlite3.Error, TypeError):
                missing += 1
                continue
            if topics is None or self._topics[number] in topics:
                yield Record(time, self._topics[number], _bytes(data), time, 0)
        if missing:
            self._lost.append(f'{self._path.name}: {missing} more messages are damaged, and lost.')


def _bytes(data: object) -> bytes:
    return data if isinstance(data, bytes) else str(data).encode()


def is_sqlite(file: BinaryIO) -> bool:
    """Whether a file begins as one of SQLite."""
    file.seek(0)
    return file.read(len(MAGIC)) == MAGIC
