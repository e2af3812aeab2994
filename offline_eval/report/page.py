# SPDX-License-Identifier: Apache-2.0
"""A report as one HTML file that needs nothing else: no network, no scripts, no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from functools import singledispatch
from html import escape

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

# The browser itself refuses to load anything from elsewhere, or to run anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --quiet: #646b75; --line: #d5d9df; --wash: #f5f6f8;
  --accent: #b34700; --blue: #005a8c; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 70rem; background: #fff;
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans",
  "Liberation Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .8rem; padding-top: .9rem;
  border-top: 2px solid var(--ink); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 48rem; }
.warning { border-left: 5px solid #c22f2f; background: #fdf1f0; padding: .7rem 1rem; }
.headline { display: flex; flex-wrap: wrap; gap: 0 2.6rem; margin: 1.6rem 0; padding: 0;
  max-width: none; list-style: none; }
.headline li { margin: .4rem 0; }
.headline span { display: block; font-size: .85rem; color: var(--quiet); }
.headline strong { display: block; font-size: 1.7rem; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; }
nav { margin: 1rem 0; font-size: .92rem; }
nav a { margin-right: 1.1rem; white-space: nowrap; }
a { color: var(--blue); }
.scroll { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 650; padding-bottom: .45rem; }
th, td { padding: .3rem .75rem; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
thead th { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink);
  background: var(--wash); white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 1.5px solid var(--ink); }
tbody th { font-weight: inherit; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.strong { font-weight: 700; }
.quiet { color: var(--quiet); font-weight: 400; font-style: italic; }
.note { font-size: .88rem; color: var(--quiet); margin-top: -.4rem; }
figure { margin: 1.6rem 0 2.2rem; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .88rem; max-width: 52rem; margin-top: .5rem; }
details { margin: 1.2rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: var(--wash); padding: .8rem 1rem; font-size: .82rem;
  line-height: 1.4; }
footer { margin-top: 3.5rem; font-size: .85rem; color: var(--quiet); }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; }
  h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def to_html(blocks: Sequence[Block], footer: str = '') -> str:
    """One HTML document; the first heading is its title, the others its table of contents."""
    headings = [block for block in blocks if isinstance(block, Heading)]
    contents = ''.join(f'<a href="#{_anchor(h.text)}">{escape(h.text)}</a>\n'
                       for h in headings if h.level == 2)
    parts = []
    for block in blocks:
        if contents and isinstance(block, Heading) and block.level > 1:
            parts.append(f'<nav>\n{contents}</nav>')
            contents = ''
        parts.append(_block(block))
    if footer:
        parts.append(f'<footer>{escape(footer)}</footer>')
    return _PAGE.format(policy=_POLICY, style=_STYLE, body='\n'.join(parts),
                        title=escape(headings[0].text if headings else 'Report'))


def _anchor(text: str) -> str:
    return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')


@singledispatch
def _block(block: object) -> str:
    raise TypeError(block)


@_block.register
def _heading(block: Heading) -> str:
    tag = f'h{block.level}'
    return f'<{tag} id="{_anchor(block.text)}">{escape(block.text)}</{tag}>'


@_block.register
def _text(block: Text) -> str:
    kind = ' class="warning" role="note"' if block.warning else ''
    return f'<p{kind}>{escape(block.text)}</p>'


@_block.register
def _bullets(block: Bullets) -> str:
    return '<ul>' + ''.join(f'<li>{escape(item)}</li>' for item in block.items) + '</ul>'


@_block.register
def _headline(block: Headline) -> str:
    items = ''.join(
        f'<li><span>{escape(label)}</span><strong>{escape(value)}</strong>'
        f'<span>{escape(remark)}</span></li>' for label, value, remark in block.numbers)
    return f'<ul class="headline">{items}</ul>'


@_block.register
def _details(block: Details) -> str:
    inner = '\n'.join(_block(part) for part in block.blocks)
    return f'<details><summary>{escape(block.summary)}</summary>\n{inner}\n</details>'


@_block.register
def _code(block: Code) -> str:
    return f'<pre>{escape(block.text)}</pre>'


@_block.register
def _picture(picture: Picture) -> str:
    """As an image of its own: names inside one SVG never meet those of another."""
    paper = f'For a paper: {escape(picture.file)}.' if picture.file else ''
    data = base64.b64encode(picture.svg.encode()).decode()
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture.svg)
    shape = f' width="{float(size[1]):.0f}" height="{float(size[2]):.0f}"' if size else ''
    return (f'<figure><img src="data:image/svg+xml;base64,{data}"{shape} '
            f'alt="{escape(picture.title)}">\n'
            f'<figcaption><strong>{escape(picture.title)}.</strong> {escape(picture.caption)} '
            f'{paper}</figcaption></figure>')


@_block.register
def _table(table: Table) -> str:
    head = ''.join(f'<th scope="col"{_kind(i in table.numbers, Cell(""))}>{escape(text)}</th>'
                   for i, text in enumerate(table.header) if any(table.header))
    body = '\n'.join(
        f'<tr>{"".join(_cell(cell, i, table) for i, cell in enumerate(row))}</tr>'
        for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ''
    return (f'<div class="scroll"><table><caption>{escape(table.title)}</caption>\n'
            f'<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>{note}')


def _cell(cell: Cell, column: int, table: Table) -> str:
    """The first cell names its row."""
    kind = _kind(column in table.numbers, cell)
    if column == 0:
        return f'<th scope="row"{kind}>{escape(cell.text)}</th>'
    return f'<td{kind}>{escape(cell.text)}</td>'


def _kind(is_number: bool, cell: Cell) -> str:
    kinds = [name for name, on in (
        ('number', is_number), ('strong', cell.strong), ('quiet', cell.quiet)) if on]
    return f' class="{" ".join(kinds)}"' if kinds else ''
