# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown: everything but the pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import singledispatch

from offline_eval.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Details,
    Heading,
    Headline,
    Picture,
    Table,
    Text,
)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown text (the dialect with tables)."""
    return '\n\n'.join(part for block in blocks if (part := _block(block))) + '\n'


def escape(text: str) -> str:
    """Text that Markdown shows as it is, also within a table."""
    marked = re.sub(r'([\\`*_\[\]<>|#~])', r'\\\1', text)
    return ' '.join(marked.split())


@singledispatch
def _block(block: object) -> str:
    raise TypeError(block)


@_block.register
def _heading(block: Heading) -> str:
    return f'{"#" * block.level} {escape(block.text)}'


@_block.register
def _text(block: Text) -> str:
    return f'> **Warning:** {escape(block.text)}' if block.warning else escape(block.text)


@_block.register
def _bullets(block: Bullets) -> str:
    return '\n'.join(f'- {escape(item)}' for item in block.items)


@_block.register
def _headline(block: Headline) -> str:
    return '\n'.join(f'- {escape(label)}: **{escape(value)}**'
                     + (f' ({escape(remark)})' if remark else '')
                     for label, value, remark in block.numbers)


@_block.register
def _details(block: Details) -> str:
    return f'### {escape(block.summary)}\n\n{to_markdown(block.blocks).rstrip()}'


@_block.register
def _code(block: Code) -> str:
    longest = max((len(run) for run in re.findall('`+', block.text)), default=0)
    fence = '`' * max(3, longest + 1)
    return f'{fence}\n{block.text.rstrip()}\n{fence}'


@_block.register
def _picture(block: Picture) -> str:
    return f'{escape(block.title)}: `{block.file}`' if block.file else ''


@_block.register
def _table(table: Table) -> str:
    rules = ['---:' if i in table.numbers else '---' for i in range(len(table.header))]
    lines = [[escape(text) for text in table.header], rules]
    lines += [[_cell(cell) for cell in row] for row in table.rows]
    text = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    note = f'\n\n{escape(table.note)}' if table.note else ''
    return f'**{escape(table.title)}**\n\n{text}{note}'


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if not text:
        return ''
    return f'**{text}**' if cell.strong else f'*{text}*' if cell.quiet else text
