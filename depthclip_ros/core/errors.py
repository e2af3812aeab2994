# SPDX-License-Identifier: Apache-2.0
"""Errors whose message names the fault, the value and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


def is_short_of_memory(error: Exception) -> bool:
    """Tell whether a GPU ran out of memory, in the words of its driver, cuBLAS or cuDNN."""
    return bool(re.search(
        'out of memory|ALLOC_FAILED|ALLOCATION_FAILED', str(error), re.IGNORECASE))


def quoted(value: object, limit: int = 80) -> str:
    """Format a value for a message: its `repr`, shortened to `limit` characters."""
    text = repr(value)
    count = len(value if isinstance(value, str) else text)
    return text if len(text) <= limit else f'{text[:limit - 1]}… ({count} characters)'


def first_of(texts: Iterable[object], limit: int = 3) -> str:
    """List the first `limit` texts and count the rest: 'a, b, c and 4 more'."""
    items = list(map(str, texts))
    return ', '.join(items[:limit]) + (f' and {len(items) - limit} more' if items[limit:] else '')


def nearest(name: object, valid_names: Iterable[str]) -> str:
    """Find the valid name that a misspelt one resembles, ignoring case and signs; '' for none."""
    by_letters = {_letters(valid): valid for valid in valid_names}
    matches = difflib.get_close_matches(_letters(str(name)[:80]), by_letters, n=1, cutoff=0.84)
    return by_letters[matches[0]] if matches else ''


def did_you_mean(names: Iterable[object], valid_names: Sequence[str]) -> str:
    """Suggest the valid names that misspelt ones resemble: 'did you mean X, Y? '; '' for none."""
    matches = dict.fromkeys(filter(None, (nearest(name, valid_names) for name in names)))
    return f'did you mean {", ".join(matches)}? ' if matches else ''


def _letters(name: str) -> str:
    return re.sub(r'[\W_]', '', name).lower()


def reason(error: Exception) -> str:
    """Describe an exception of another library in one line, without a full stop."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'.rstrip('.')


class DepthClipError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(DepthClipError):
    """A setting is unknown, of the wrong type, or out of its range."""


class MismatchError(ConfigError):
    """Settings are valid one by one, but do not fit together."""


class WeightsError(DepthClipError):
    """CLIP weights are missing, corrupt, of another architecture, or fail their checksum."""


class DeviceError(DepthClipError):
    """The requested device does not exist on this machine."""


class EngineError(DepthClipError):
    """An engine does not run here, or its features differ from the reference."""


class BagError(DepthClipError):
    """A bag is missing, corrupt, of another format, or lacks the requested topics."""


class DataError(DepthClipError):
    """One input message cannot be used.

    Attributes:
        condition: short stable key of the fault ('wrong step'), for counting and throttling.

    """

    def __init__(self, condition: str, message: str) -> None:
        """Keep the condition beside the message."""
        super().__init__(message)
        self.condition = condition


class ImageError(DataError):
    """An image cannot be decoded or used."""


class CameraInfoError(DataError):
    """A camera_info cannot be used."""


class SensorError(DataError):
    """A message of a depth camera, lidar or scanner cannot be used."""


class CalibrationError(DepthClipError):
    """A calibration is missing, damaged, or belongs to another model or configuration."""
