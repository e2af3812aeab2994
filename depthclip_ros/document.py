# SPDX-License-Identifier: Apache-2.0
"""Pages of texts, tables and pictures: as HTML, as Markdown, on a terminal; a table as LaTeX.

A page is a list of blocks, which hold plain text. Each format escapes everything in its own way.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """Title of a section; `level` 1 is the page's own."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; a `warning` stands out, and what a `badge` ('yes', 'no', 'open') judges."""

    text: str
    warning: bool = False
    badge: str = ''


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
        title: what it shows.
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
    """A figure: a file beside the page."""

    title: str
    caption: str
    file: str


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
    text: str = environment.get_template('document.html').render(blocks=blocks, footer=footer)
    return text


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown text (the dialect with tables)."""
    def escape(text: str) -> str:
        plain = ' '.join(re.sub(r'([\\`*_\[\]<>|#~])', r'\\\1', text).split())
        mark = {Strong: '**', Quiet: '*'}.get(type(text), '') if text else ''
        return f'{mark}{plain}{mark}'
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f'{"#" * block.level} {escape(block.text)}')
        elif isinstance(block, Text):
            parts.append('> **Warning:** ' * block.warning + escape(block.text))
        elif isinstance(block, Picture):
            parts.append(f'![{escape(block.title)}]({block.file})\n\n'
                         f'**{escape(block.title)}.** {escape(block.caption)}')
        else:
            rule = ['---' if i in block.texts else '---:' for i in range(len(block.header))]
            rows = (map(escape, block.header), rule, *(map(escape, row) for row in block.rows))
            parts += filter(None, [
                block.title and escape(Strong(block.title)),
                '\n'.join(f'| {" | ".join(cells)} |' for cells in rows), escape(block.note)])
    return '\n\n'.join(parts) + '\n'


def to_terminal(blocks: Sequence[Block]) -> str:
    """Plain text: no markup, columns aligned; pictures are left out."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f'{block.text}\n{("=" if block.level == 1 else "-") * len(block.text)}')
        elif isinstance(block, Text):
            text = f'Warning: {block.text}' if block.warning else block.text
            parts.append(textwrap.fill(text, width) if width else text)
        elif isinstance(block, Table):
            lines = [block.header, *block.rows]
            widths = [max(map(cells_of, column)) for column in zip(*lines, strict=True)]
            parts.append('\n'.join('  '.join(
                padded(text, width, left=i in block.texts)
                for i, (text, width) in enumerate(zip(cells, widths, strict=True))).rstrip()
                for cells in lines))
    return '\n\n'.join(parts) + '\n'


def cells_of(text: str) -> int:
    """Columns of a terminal that a text takes: two a letter of East Asia, none an accent."""
    return sum(0 if unicodedata.combining(c) else
               2 if unicodedata.east_asian_width(c) in 'WF' else 1 for c in text)


def padded(text: str, width: int, *, left: bool = True) -> str:
    """A text with spaces behind it, or before it, that takes so many columns of a terminal."""
    spaces = ' ' * (width - cells_of(text))
    return text + spaces if left else spaces + text


_LATEX = {
    '\\': r'\textbackslash{}', **{c: f'\\{c}' for c in '{}$&%#_'}, '[': '{[}',
    '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': '$<$', '>': '$>$', '|': '$|$',
    '−': '$-$', '±': r'$\pm$', '×': r'$\times$', '…': '--', '–': '--', '’': "'", '²': '$^2$',
    '³': '$^3$', '↑': r'$\uparrow$', '↓': r'$\downarrow$', 'δ': r'$\delta$'}
_LATEX_STYLES = {Strong: r'\textbf{%s}', Quiet: r'\textit{%s}', Small: r'{\tiny %s}'}


def to_latex(table: Table, warning: str = '') -> str:
    """One table, for a paper that uses booktabs; remarks on rows stay out.

    Args:
        table: with names in its first column.
        warning: what a reader of the file must know first.

    """
    def escape(text: str) -> str:
        """Text that LaTeX shows as it is; of letters that its fonts lack, their number."""
        plain = ''.join(_LATEX.get(
            c, c if c < '\x7f' or '\xa0' < c < 'ſ' else f'{{[}}U+{ord(c):04X}]') for c in text)
        return _LATEX_STYLES.get(type(text), '%s') % plain
    shown = [i for i in range(len(table.header)) if i == 0 or i not in table.texts]
    head, *rows = (' & '.join(escape(row[i]) for i in shown) + r' \\'
                   for row in (table.header, *table.rows))
    return '\n'.join((
        *([f'% {warning}'] if warning else ()),
        r'\begin{table}', f'\\caption{{{escape(table.title)}}}',
        f'\\begin{{tabular}}{{l{"r" * (len(shown) - 1)}}}', r'\toprule', head, r'\midrule', *rows,
        r'\bottomrule', r'\end{tabular}', r'\end{table}', ''))
