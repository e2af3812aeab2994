# SPDX-License-Identifier: Apache-2.0
"""Errors of the evaluation, each message complete for a user."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from ..core.errors import DepthClipError, first_of
from ..core.formats import kind_of

_MOST_ENTRIES = 10_000


class EvaluationError(DepthClipError):
    """The evaluation cannot be done as asked."""


class DatasetError(EvaluationError):
    """The data are missing, damaged, or not what they should be."""


class PredictionError(EvaluationError):
    """A depth cannot be scored: NaN, infinite, not positive, or not there."""


class ResultsError(DepthClipError):
    """A results folder cannot be read or written."""


def listing(names: list[str]) -> str:
    """All names, one a line, for the end of a message."""
    return ''.join(f'\n  {name}' for name in names)


def contents(folder: Path) -> str:
    """What a folder holds, and what its first file is, for the end of a message."""
    entries = islice(folder.rglob('*'), _MOST_ENTRIES)  # it may be somebody's home
    files = sorted(file for file in entries
                   if file.is_file() and not file.name.startswith('.'))
    if not files:
        return f'{folder} holds no file.'
    names = first_of(file.relative_to(folder) for file in files)
    return f'The folder holds {names}; the first is {kind_of(files[0]).sentence}.'
