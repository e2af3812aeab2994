# SPDX-License-Identifier: Apache-2.0
"""Errors of the evaluation, each message complete for a user."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from ..core.errors import DepthClipError, first_of
from ..core.file_formats import kind_of

_MAX_ENTRIES = 10_000


class EvaluationError(DepthClipError):
    """The options, the data and the model do not fit together."""


class DatasetError(EvaluationError):
    """The data set is missing, damaged, or of another format, size or unit."""


class PredictionError(EvaluationError):
    """A prediction cannot be scored: NaN, infinite, not positive, or missing."""


class ResultsError(DepthClipError):
    """A results folder cannot be read or written."""


def listing(names: list[str]) -> str:
    """List all names, one a line, for the end of a message."""
    return ''.join(f'\n  {name}' for name in names)


def describe_folder(folder: Path) -> str:
    """Describe the files of a folder and the type of the first, for the end of a message."""
    entries = islice(folder.rglob('*'), _MAX_ENTRIES)  # the user may have given a home folder
    files = sorted(file for file in entries
                   if file.is_file() and not file.name.startswith('.'))
    if not files:
        return f'{folder} holds no file.'
    names = first_of(file.relative_to(folder) for file in files)
    return f'The folder holds {names}; the first is {kind_of(files[0]).sentence}.'
