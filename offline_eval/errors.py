# SPDX-License-Identifier: Apache-2.0
"""Errors of the evaluation, each message complete for a user, and its progress bar."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from depthclip_ros.core.errors import DepthClipError


class EvaluationError(DepthClipError):
    """The evaluation cannot be done as asked."""


class DatasetError(EvaluationError):
    """The data are missing, damaged, or not what they should be."""


class PredictionError(EvaluationError):
    """A depth cannot be scored: NaN, infinite, not positive, or not there."""


class ResultsError(DepthClipError):
    """A results folder cannot be read or written."""


def listing(names: list[str], limit: int = 1000) -> str:
    """All names, one a line, for the end of a message."""
    more = [] if len(names) <= limit else [f'... and {len(names) - limit} more']
    return ''.join(f'\n  {name}' for name in [*names[:limit], *more])


def progress(total: int, what: str) -> Any:
    """Make a bar on stderr, in images; without a terminal a line now and then."""
    return tqdm(total=total, desc=what, unit='image', mininterval=0.5, dynamic_ncols=True)
