# SPDX-License-Identifier: Apache-2.0
"""Errors of the evaluation; each message is complete for a user."""

from __future__ import annotations

from depthclip_ros.core.errors import DepthClipError


class EvaluationError(DepthClipError):
    """The evaluation cannot be done as asked."""


class DatasetError(EvaluationError):
    """The data are missing, damaged, or not what they should be."""


class PredictionError(EvaluationError):
    """The network's depth cannot be scored: NaN, infinite, or not positive."""


def listing(names: list[str], limit: int = 1000) -> str:
    """All names, one a line, for the end of a message."""
    more = [] if len(names) <= limit else [f'... and {len(names) - limit} more']
    return ''.join(f'\n  {name}' for name in [*names[:limit], *more])
