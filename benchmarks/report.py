# SPDX-License-Identifier: Apache-2.0
"""The record of a benchmark (JSON), and its table (Markdown) beside it.

A record says where and when it was measured, and has rows: dictionaries of plain values. Every
row also names its commit and machine, so that rows can be put together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

Row = dict[str, Any]
Record = dict[str, Any]
ORIGIN = ('commit', 'machine')  # of a row


def record(what: str, about: dict[str, Any], rows: Sequence[Row]) -> Record:
    """Put together what was measured, where, and what came out.

    Args:
        what: title, in a line.
        about: of `machine.describe()`, called before.
        rows: one for each thing measured; keys name the unit.

    """
    origin = {key: about[key] for key in ORIGIN}
    plain_record: Record = machine.plain({
        'what': what, **about, 'load after': os.getloadavg()[0],
        'rows': [{**origin, **row} for row in rows]})
    return plain_record


def write(path: Path, measured: Record) -> None:
    """Write a record as JSON, and its table beside it; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    path.with_suffix('.md').write_text(markdown(measured), encoding='utf-8')


def markdown(measured: Record) -> str:
    """Title, where it was measured, and a table of each kind of rows."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in measured['rows']:
        groups.setdefault(tuple(key for key in row if key not in ORIGIN), []).append(row)
    tables = [_table(columns, rows) for columns, rows in groups.items()]
    return '\n\n'.join([f'# {measured["what"]}', _origin(measured), *tables]) + '\n'


def _table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [columns, ['---'] * len(columns),
             *([_cell(row[column]) for column in columns] for row in rows)]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def _cell(value: Any) -> str:
    """A value of the JSON; a number that was not one is null there."""
    if value is None:
        return '-'
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def _origin(measured: Record) -> str:
    versions = ', '.join(f'{name} {version}' for name, version in measured['versions'].items())
    gpu = ', '.join(measured['gpu']) or 'no GPU'
    return (f'`{measured["command"]}`, {measured["date"]}, commit {measured["commit"]}: '
            f'{measured["machine"]}, {measured["cores"]} cores, {gpu}; {versions}; '
            f'load before: {measured["load before"]:.1f}.')
