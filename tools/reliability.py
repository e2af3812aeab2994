# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/reliability.md: kept in docs/reliability.json, shown as one table.

    python tools/reliability.py         write the tables of docs/reliability.md anew
    python -m pytest --record ...       keep what the test suite measures, too

Each figure is written by what measured it (the test suite, tools/soak.py, tools/mutants.py); none
is typed in by hand, and a test compares the document with the JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / 'docs'
FIGURES = DOCS / 'reliability.json'
PAGE = DOCS / 'reliability.md'
EVERY_RUN = ', in every test run'  # behind the subjects that the test suite measures
LONGEST = 200  # characters of an answer


def record(subject: str, figures: Mapping[str, Any]) -> None:
    """Keep the figures of one subject, and write the document anew."""
    kept = read()
    kept[subject] = dict(figures)
    FIGURES.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + '\n',
                       encoding='utf-8')
    PAGE.write_text(filled(PAGE.read_text(encoding='utf-8'), read()), encoding='utf-8')


def read() -> dict[str, Any]:
    """All figures that were kept."""
    return dict(json.loads(FIGURES.read_text(encoding='utf-8'))) if FIGURES.exists() else {}


def summary(kept: Mapping[str, Any]) -> list[str]:
    """One line for each subject but the tables of kinds and mutants."""
    return ['| what | measured |', '|---|---|', *(
        f'| {subject} | {shown(figures)} |' for subject, figures in sorted(kept.items())
        if not isinstance(next(iter(figures.values()), None), list))]


def shown(figures: Mapping[str, Any]) -> str:
    """Figures in one line."""
    return ', '.join(f'{key} {value:,}' if isinstance(value, int) else f'{key} {value}'
                     for key, value in figures.items())


def kinds(kept: Mapping[str, Any]) -> list[str]:
    """What the node says to each kind of the campaign, long answers in part."""
    return ['| kind | becomes of it | what the node says |', '|---|---|---|', *(
        '| ' + ' | '.join(cell.replace('|', '\\|') for cell in (
            kind, cells[0], shorten(cells[1], LONGEST, placeholder=' …'))) + ' |'
        for kind, cells in kept.get('kinds', {}).items())]


def filled(page: str, kept: Mapping[str, Any]) -> str:
    """The page with its tables made anew, between their marks."""
    for name, rows in (('summary', summary(kept)), ('kinds', kinds(kept))):
        begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        before, rest = page.split(begin)
        page = '\n'.join((before + begin, *rows, end)) + rest.split(end)[1]
    return page


if __name__ == '__main__':
    PAGE.write_text(filled(PAGE.read_text(encoding='utf-8'), read()), encoding='utf-8')
    sys.exit()
