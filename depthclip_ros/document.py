# SPDX-License-Identifier: Apache-2.0
"""Pages of texts, tables and pictures: as HTML, as Markdown, on a terminal, or as LaTeX tables.

A page is a list of blocks, which hold plain text. Each format escapes everything in its own way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path


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
    texts: frozenset[int] = field(default=frozenset({0}))


@dataclass(frozen=True)
class Picture:
    """A figure: a file beside the page, and its size in inches."""

    title: str
    caption: str
    file: str
    size: tuple[float, float] | None = None


Block = Heading | Text | Table | Picture


def to_html(blocks: Sequence[Block], footer: str = '') -> str:
    """One page without scripts, that loads nothing but the pictures beside it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name('templates')), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters['kind'] = lambda block: type(block).__name__.lower()
    environment.filters['anchor'] = lambda text: re.sub(
        r'[^a-z0-9]+', '-', text.lower()).strip('-')
    text: str = environment.get_template('document.html').render(
        blocks=_numbered(blocks), title=_title(blocks), footer=footer)
    return text


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown text (the dialect with tables)."""
    def escape(text: str) -> str:
        return ' '.join(re.sub(r'([\\`*_\[\]<>|#~])', r'\\\1', text).split())

    def cell(text: str) -> str:
        mark = '**' if isinstance(text, Strong) else '*' if isinstance(text, Quiet) else ''
        return f'{mark}{escape(text)}{mark}' if text else ''
    parts = []
    for block in _numbered(blocks):
        if isinstance(block, Heading):
            parts.append(f'{"#" * block.level} {escape(block.text)}')
        elif isinstance(block, Text):
            parts.append('> **Warning:** ' * block.warning + escape(block.text))
        elif isinstance(block, Picture):
            parts.append(f'![{escape(block.title)}]({block.file})\n\n'
                         f'**{escape(block.title)}.** {escape(block.caption)}')
        else:
            parts += [f'**{escape(block.title)}**'] if block.title else []
            rule = ['---' if i in block.texts else '---:' for i in range(len(block.header))]
            parts.append('\n'.join(
                f'| {" | ".join(cells)} |' for cells in (
                    map(escape, block.header), rule, *(map(cell, row) for row in block.rows))))
            parts += [escape(block.note)] if block.note else []
    return '\n\n'.join(parts) + '\n'


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


def to_latex(table: Table, warning: str = '') -> str:
    """One table, for a paper that uses booktabs; remarks on rows stay out.

    Args:
        table: with names in its first column.
        warning: what a reader of the file must know first.

    """
    shown = [i for i in range(len(table.header)) if i == 0 or i not in table.texts]
    head, *rows = (' & '.join(_latex(row[i]) for i in shown) + r' \\'
                   for row in (table.header, *table.rows))
    return '\n'.join((
        *([f'% {warning}'] if warning else ()),
        r'\begin{table}', f'\\caption{{{_latex(table.title)}}}',
        f'\\begin{{tabular}}{{l{"r" * (len(shown) - 1)}}}', r'\toprule', head, r'\midrule', *rows,
        r'\bottomrule', r'\end{tabular}', r'\end{table}', ''))


_LATEX = {
    '\\': r'\textbackslash{}', **{c: f'\\{c}' for c in '{}$&%#_'}, '[': '{[}',
    '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': '$<$', '>': '$>$', '|': '$|$',
    '−': '$-$', '±': r'$\pm$', '×': r'$\times$', '…': '--', '–': '--', '’': "'", '²': '$^2$',
    '³': '$^3$', '↑': r'$\uparrow$', '↓': r'$\downarrow$', 'δ': r'$\delta$'}


def _latex(text: str) -> str:
    """Text that LaTeX shows as it is; of letters that its fonts lack, their number."""
    shown = ''.join(_LATEX.get(c, c if c < '\x7f' or '\xa0' < c < 'ſ' else f'{{[}}U+{ord(c):04X}]')
                    for c in ' '.join(text.split()))
    command = {Strong: r'\textbf', Quiet: r'\textit', Small: r'{\tiny '}.get(type(text), '')
    return shown if not command or not shown else (
        f'{command}{shown}}}' if command[0] == '{' else f'{command}{{{shown}}}')


def _numbered(blocks: Sequence[Block]) -> list[Block]:
    """Titles of tables and figures with their numbers."""
    counts: Counter[str] = Counter()
    numbered: list[Block] = []
    for block in blocks:
        if isinstance(block, (Table, Picture)) and block.title:
            what = 'Table' if isinstance(block, Table) else 'Figure'
            counts[what] += 1
            numbered.append(replace(block, title=f'{what} {counts[what]}. {block.title}'))
        else:
            numbered.append(block)
    return numbered


def _aligned(table: Table) -> Iterator[str]:
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        yield '  '.join(
            text.ljust(width) if i in table.texts else text.rjust(width)
            for i, (text, width) in enumerate(zip(cells, widths, strict=True))).rstrip()


def _title(blocks: Sequence[Block]) -> str:
    return next((block.text for block in blocks if isinstance(block, Heading)), 'Report')
