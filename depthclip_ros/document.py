# SPDX-License-Identifier: Apache-2.0
"""Headings, texts, tables and pictures as HTML, Markdown and LaTeX, by Jinja2 templates.

All text here is plain text: each format escapes everything that is put into its template.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2 import Environment

_TEMPLATES = Path(__file__).with_name('templates')


@dataclass(frozen=True)
class Heading:
    """Title of a section; `level` 1 is the document's own."""

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

    items: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """One cell of a table: `strong` for what counts, `quiet` for others' numbers, or `small`."""

    text: str
    strong: bool = False
    quiet: bool = False
    small: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it shows; '' for none, and no number.
        header: one text per column.
        rows: as many cells as columns.
        numbers: columns that hold numbers, and are aligned as such.
        note: sentences below it.
        number: see `numbered`.

    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int] = field(default_factory=frozenset)
    note: str = ''
    number: int = 0

    @property
    def columns(self) -> str:
        """LaTeX's letters for the columns: long texts are wrapped."""
        longest = [max(map(len, texts)) for texts in zip(
            self.header, *([cell.text for cell in row] for row in self.rows), strict=True)]
        return ''.join('r' if i in self.numbers else 'X' if size > 28 else 'l'
                       for i, size in enumerate(longest))


@dataclass(frozen=True)
class Picture:
    """A figure: a file beside the document, one for LaTeX, and its size in inches if known."""

    title: str
    caption: str
    file: str
    paper: str
    size: tuple[float, float] | None = None
    number: int = 0


@dataclass(frozen=True)
class Headline:
    """The result in a few large numbers: (label, number, remark) each."""

    numbers: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away at first."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Code:
    """Text as it is, e.g. a configuration."""

    text: str


Block = Heading | Text | Bullets | Table | Picture | Headline | Details | Code


def plain_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], chosen: str = '',
) -> Table:
    """Make a table of texts without a title: a name and its numbers in each row.

    Args:
        header: one text per column.
        rows: as many texts as columns.
        chosen: name of the row that stands out.

    """
    return Table('', header, [[Cell(text, strong=bool(chosen) and row[0] == chosen)
                               for text in row] for row in rows],
                 frozenset(range(1, len(header))))


def numbered(blocks: Sequence[Block]) -> list[Block]:
    """Give tables and pictures their numbers, in order."""
    numbers: dict[type, Any] = {Table: count(1), Picture: count(1)}

    def visit(block: Block) -> Block:
        if isinstance(block, Details):
            return dataclasses.replace(block, blocks=[visit(inner) for inner in block.blocks])
        if isinstance(block, (Table, Picture)) and block.title:
            return dataclasses.replace(block, number=next(numbers[type(block)]))
        return block
    return [visit(block) for block in blocks]


def to_html(blocks: Sequence[Block], footer: str = '') -> str:
    """One document without scripts, that loads nothing but the pictures beside it."""
    return _render('html', blocks, footer)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown text (the dialect with tables)."""
    return _render('md', blocks, '')


def to_latex(blocks: Sequence[Block], footer: str = '') -> str:
    """A document for pdflatex, xelatex or tectonic, with booktabs' tables."""
    return _render('tex', blocks, footer)


def _render(suffix: str, blocks: Sequence[Block], footer: str) -> str:
    title = next((b.text for b in blocks if isinstance(b, Heading)), 'Report')
    text: str = _environment(suffix).get_template(f'document.{suffix}').render(
        blocks=blocks, title=title, footer=footer)
    return text


@cache
def _environment(suffix: str) -> Environment:
    """Jinja2 with a format's own escaping of whatever is put in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    escape: Callable[[str], str] | None = {
        'html': None, 'md': _escape_markdown, 'tex': _escape_latex}[suffix]

    def finalize(value: Any) -> Any:
        if escape is None or isinstance(value, Markup):  # what a template has made
            return value
        return Markup(escape(str(value)))  # noqa: S704 - escaped the format's own way
    delimiters: dict[str, Any] = {} if suffix != 'tex' else {
        'variable_start_string': '<<', 'variable_end_string': '>>', 'block_start_string': '<%',
        'block_end_string': '%>', 'comment_start_string': '<#', 'comment_end_string': '#>'}
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, finalize=finalize,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, **delimiters)
    environment.filters['anchor'] = lambda text: re.sub(
        r'[^a-z0-9]+', '-', text.lower()).strip('-')
    environment.filters['kind'] = lambda block: type(block).__name__.lower()
    return environment


def _escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, also within a table."""
    return ' '.join(re.sub(r'([\\`*_\[\]<>|#~])', r'\\\1', text).split())


_LATEX = {
    '\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '$': r'\$', '&': r'\&', '%': r'\%',
    '#': r'\#', '_': r'\_', '[': '{[}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
    '<': '$<$', '>': '$>$', '|': '$|$', '"': r'\textquotedbl{}', '−': '$-$', '±': r'$\pm$',
    '×': r'$\times$', '·': r'$\cdot$', '…': r'\ldots{}', '–': '--', '—': '---', '’': "'",
    '‘': '`', '“': '``', '”': "''", '²': r'$^2$', '³': r'$^3$', '°': r'$^\circ$',
    '↑': r'$\uparrow$', '↓': r'$\downarrow$', '≤': r'$\le$', '≥': r'$\ge$', 'δ': r'$\delta$',
    'σ': r'$\sigma$'}


def _escape_latex(text: str) -> str:
    """Text that LaTeX shows as it is; of letters that its fonts lack, their number."""
    plain = ' '.join(text.split())
    plain = re.sub(r'δ(\d)', '\0\\1', plain)  # a subscript, as in the papers
    shown = ''.join(_LATEX.get(c, c if c < '\x7f' or '\xa0' < c < 'ſ' else f'{{[}}U+{ord(c):04X}]')
                    for c in plain)
    return re.sub('\0(.)', r'$\\delta_\1$', shown)
