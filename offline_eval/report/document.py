# SPDX-License-Identifier: Apache-2.0
"""What a report is made of, before it becomes Markdown or HTML. All text here is plain text."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    """Title of a section; `level` 1 is the report's own."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; a `warning` stands out."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: list[str]


@dataclass(frozen=True)
class Cell:
    """One cell of a table: `strong` for the best of its column, `quiet` for others' numbers."""

    text: str
    strong: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it shows.
        header: one text per column.
        rows: as many cells as columns.
        numbers: columns that hold numbers, and are aligned as such.
        note: sentences below it.

    """

    title: str
    header: list[str]
    rows: list[list[Cell]]
    numbers: frozenset[int] = field(default_factory=frozenset)
    note: str = ''


@dataclass(frozen=True)
class Picture:
    """A figure: an SVG text, and a file with the same for a paper, or ''; only HTML shows it."""

    title: str
    caption: str
    svg: str
    file: str


@dataclass(frozen=True)
class Headline:
    """The result in a few large numbers: (label, number, remark) each."""

    numbers: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away at first."""

    summary: str
    blocks: list[Block]


@dataclass(frozen=True)
class Code:
    """Text as it is, e.g. a configuration."""

    text: str


Block = Heading | Text | Bullets | Table | Picture | Headline | Details | Code
