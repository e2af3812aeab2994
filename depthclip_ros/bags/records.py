# SPDX-License-Identifier: Apache-2.0
"""What files of a bag are made of, whatever their storage: topics, and blocks of messages."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

END_OF_TIME = 2**63 - 1


class Topic(NamedTuple):
    """A topic of a bag, as it is recorded: nothing is read into it.

    Attributes:
        name: such as '/camera/image_raw'.
        type: such as 'sensor_msgs/msg/Image'; '' if it is not told.
        format: of its messages, usually 'cdr'.
        encoding: of the definition, 'ros2msg' or 'ros2idl'; '' if there is none.
        definition: of the type; b'' if there is none.
        qos: offered profiles, the text of YAML.
        hash: of the type; '' if it is not told.

    """

    name: str
    type: str
    format: str = 'cdr'
    encoding: str = ''
    definition: bytes = b''
    qos: str = ''
    hash: str = ''


class Record(NamedTuple):
    """A message: when it was recorded [ns], of which topic, and its bytes as they are stored."""

    time: int
    topic: Topic
    data: bytes
    published: int
    sequence: int


class Block(NamedTuple):
    """Messages that are read together, in order of their times.

    Attributes:
        begin: time of the first.
        end: time of the last.
        read: gives those of some topics, from a time on and before another.

    """

    begin: int
    end: int
    read: Callable[[int, int, frozenset[Topic] | None], Iterator[Record]]


class Contents(NamedTuple):
    """What a file holds, and sentences about what is lost of it."""

    counts: Mapping[Topic, int]
    blocks: list[Block]
    lost: list[str]
    compression: str = ''  # of an mcap's chunks


def in_order(
    blocks: Iterable[Block], begin: int, end: int, topics: frozenset[Topic] | None = None,
) -> Iterator[Record]:
    """Messages of all blocks in the order of their times; of equal ones, in that of the blocks.

    Only blocks that overlap in time are in memory together.

    Args:
        blocks: to read.
        begin: first time [ns].
        end: time before which to stop.
        topics: to read; None for all.

    """
    numbered = sorted(
        (block.begin, number, block) for number, block in enumerate(blocks)
        if block.begin < end and block.end >= begin)
    waiting = iter(numbered)
    upcoming = next(waiting, None)
    # A block's number is in one entry at most, so that nothing behind it is ever compared.
    open_blocks: list[tuple[int, int, Record, Iterator[Record]]] = []
    while open_blocks or upcoming is not None:
        while upcoming is not None and (
                not open_blocks or max(upcoming[0], begin) <= open_blocks[0][0]):
            _, number, block = upcoming
            records = block.read(begin, end, topics)
            first = next(records, None)
            if first is not None:
                heapq.heappush(open_blocks, (first.time, number, first, records))
            upcoming = next(waiting, None)
        if not open_blocks:
            continue
        _, number, record, records = open_blocks[0]
        yield record
        following = next(records, None)
        if following is None:
            heapq.heappop(open_blocks)
        else:
            heapq.heapreplace(open_blocks, (following.time, number, following, records))
