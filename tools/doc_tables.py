# SPDX-License-Identifier: Apache-2.0
"""Tables of documents that are made of measured figures."""

from __future__ import annotations

from collections.abc import Iterable


def between_marks(page: str, name: str, rows: Iterable[str]) -> str:
    """The page with these rows between a table's marks, which it must have."""
    begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
    before, rest = page.split(begin)
    return '\n'.join((before + begin, *rows, end)) + rest.split(end)[1]
