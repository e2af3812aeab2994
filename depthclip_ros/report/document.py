# SPDX-License-Identifier: Apache-2.0
"""Documents of text, tables and pictures, as HTML, Markdown or plain text; tables as LaTeX.

A document is a list of blocks of plain text; each output format escapes it.
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
    """Title of a section; `level` 1 is the title of the document."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `warning` or `badge` ('yes', 'no', 'open') highlights it."""

    text: str
    warning: bool = False
    badge: str = ''


class Strong(str):
    """Cell in bold, such as the best number."""

    __slots__ = ()


class Quiet(str):
    """Cell in italics, such as a published number."""

    __slots__ = ()


class Small(str):
    """Cell in small type, such as an interval below its number."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: one text per column.
        rows: one cell per column, a str, `Strong`, `Quiet` or `Small`.
        title: above the table.
        note: below the table.
        texts: indices of left-aligned columns; all others are numbers.

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
    """Render one HTML page without scripts; it loads only the pictures beside it."""
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
    """Render Markdown (the dialect with tables)."""
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
    """Render plain text with aligned columns, without pictures."""
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
            widths = [max(map(terminal_width, column)) for column in zip(*lines, strict=True)]
            parts.append('\n'.join('  '.join(
                pad_to(text, width, left=i in block.texts)
                for i, (text, width) in enumerate(zip(cells, widths, strict=True))).rstrip()
                for cells in lines))
    return '\n\n'.join(parts) + '\n'


def terminal_width(text: str) -> int:
    """Count the terminal columns of a text: wide letters take two, combining accents none."""
    return sum(0 if unicodedata.combining(c) else
               2 if unicodedata.east_asian_width(c) in 'WF' else 1 for c in text)


def pad_to(text: str, width: int, *, left: bool = True) -> str:
    """Pad a text with spaces to a number of terminal columns, on the right or the left."""
    spaces = ' ' * (width - terminal_width(text))
    return text + spaces if left else spaces + text


_LATEX = {
    '\\': r'\textbackslash{}', **{c: f'\\{c}' for c in '{}$&%#_'}, '[': '{[}',
    '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': '$<$', '>': '$>$', '|': '$|$',
    '−': '$-$', '±': r'$\pm$', '×': r'$\times$', '…': '--', '–': '--', '’': "'", '²': '$^2$',
    '³': '$^3$', '↑': r'$\uparrow$', '↓': r'$\downarrow$', 'δ': r'$\delta$'}
_LATEX_STYLES = {Strong: r'\textbf{%s}', Quiet: r'\textit{%s}', Small: r'{\tiny %s}'}


def to_latex(table: Table, warning: str = '') -> str:
    """Render one table for a paper with booktabs, without columns of remarks.

    Args:
        table: with names in its first column.
        warning: comment on the first line.

    """
    def escape(text: str) -> str:
        """Escape LaTeX; letters that its fonts lack become their code point."""
        plain = ''.join(_LATEX.get(
            c, c if c < '\x7f' or '\xa0' < c < 'ſ' else f'{{[}}U+{ord(c):04X}]') for c in text)
        return _LATEX_STYLES.get(type(text), '%s') % plain
    columns = [i for i in range(len(table.header)) if i == 0 or i not in table.texts]
    head, *rows = (' & '.join(escape(row[i]) for i in columns) + r' \\'
                   for row in (table.header, *table.rows))
    return '\n'.join((
        *([f'% {warning}'] if warning else ()),
        r'\begin{table}', f'\\caption{{{escape(table.title)}}}',
        f'\\begin{{tabular}}{{l{"r" * (len(columns) - 1)}}}', r'\toprule', head, r'\midrule',
        *rows, r'\bottomrule', r'\end{tabular}', r'\end{table}', ''))
