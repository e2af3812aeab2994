# SPDX-License-Identifier: Apache-2.0
"""Pages of texts, tables and pictures: as HTML, as Markdown, on a terminal, or as LaTeX tables.

A page is a list of blocks, which hold plain text. Each format's template lays them out, and
escapes everything that is put into it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).with_name('templates')


@dataclass(frozen=True)
class Heading:
    """Title of a section; `level` 1 is the page's own."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; a `warning` stands out."""

    text: str
    warning: bool = False


class Strong(str):
    """Cell with what counts, in bold."""

    __slots__ = ()


class Quiet(str):
    """Cell with others' numbers, in italics."""

    __slots__ = ()


class Small(str):
    """Cell with an interval, below its number."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: one text per column.
        rows: as many cells as columns: plain, or `Strong`, `Quiet` or `Small`.
        title: what it shows; a table without a title has no number.
        note: sentences below it.
        texts: columns that are aligned as texts; all others hold numbers.

    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ''
    note: str = ''
    texts: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Picture:
    """A figure: a file beside the page (of a chart, a PDF too), and its size in inches."""

    title: str
    caption: str
    file: str
    size: tuple[float, float] | None = None


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


Block = Heading | Text | Table | Picture | Headline | Details | Code


def to_html(blocks: Sequence[Block], footer: str = '') -> str:
    """One page without scripts, that loads nothing but the pictures beside it."""
    return _render('html', blocks, footer)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown text (the dialect with tables)."""
    return _render('md', blocks)


def to_latex(blocks: Sequence[Block], footer: str = '') -> str:
    """All tables that have a title, below the warnings, for pdflatex, xelatex or tectonic."""
    warnings = [block for block in blocks if isinstance(block, Text) and block.warning]
    return _render('tex', [*warnings, *_titled(blocks)], footer, _title(blocks))


def to_terminal(blocks: Sequence[Block]) -> str:
    """Plain text: no markup, columns aligned; pictures are left out."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f'{block.text}\n{("=" if block.level == 1 else "-") * len(block.text)}')
        elif isinstance(block, Text):
            parts.append(f'Warning: {block.text}' if block.warning else block.text)
        elif isinstance(block, Table):
            parts.append('\n'.join(_aligned(block)))
    return '\n\n'.join(parts) + '\n'


def _aligned(table: Table) -> Iterator[str]:
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        yield '  '.join(
            text.ljust(width) if i in table.texts else text.rjust(width)
            for i, (text, width) in enumerate(zip(cells, widths, strict=True))).rstrip()


def _titled(blocks: Sequence[Block]) -> Iterator[Table]:
    for block in blocks:
        if isinstance(block, Table) and block.title:
            yield block
        elif isinstance(block, Details):
            yield from _titled(block.blocks)


def _title(blocks: Sequence[Block]) -> str:
    return next((block.text for block in blocks if isinstance(block, Heading)), 'Report')


def _render(
    suffix: str, blocks: Sequence[Block], footer: str = '', title: str = '',
) -> str:
    text: str = _environment(suffix).get_template(f'document.{suffix}').render(
        blocks=blocks, title=title or _title(blocks), footer=footer)
    return text


@cache
def _environment(suffix: str) -> Environment:
    """Jinja2 with a format's own escaping of whatever is put in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    escapes = {'md': _escape_markdown, 'tex': _escape_latex}
    escape: Callable[[str], str] | None = escapes.get(suffix)

    def finalize(value: Any) -> Any:
        if escape is None or isinstance(value, Markup):  # what a template has made
            return value
        return Markup(escape(str(value)))  # noqa: S704 - escaped the format's own way
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, finalize=finalize,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True)
    environment.filters['anchor'] = lambda text: re.sub(
        r'[^a-z0-9]+', '-', text.lower()).strip('-')
    environment.filters['kind'] = lambda block: type(block).__name__.lower()
    environment.filters['columns'] = _latex_columns
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


def _latex_columns(table: Table) -> str:
    """LaTeX's letters for the columns: long texts are wrapped."""
    longest = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    return ''.join('r' if i not in table.texts else 'X' if size > 28 else 'l'
                   for i, size in enumerate(longest))
