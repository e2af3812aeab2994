# SPDX-License-Identifier: Apache-2.0
"""Errors whose message is all that a user needs: what is wrong, the value seen, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


def is_short_of_memory(error: Exception) -> bool:
    """Whether a GPU has no memory left, as the driver, cuBLAS or cuDNN call it."""
    return bool(re.search(
        'out of memory|ALLOC_FAILED|ALLOCATION_FAILED', str(error), re.IGNORECASE))


def quoted(value: object, limit: int = 80) -> str:
    """A value as messages repeat it: its `repr`, of a long one the beginning and the length."""
    text = repr(value)
    count = len(value if isinstance(value, str) else text)
    return text if len(text) <= limit else f'{text[:limit - 1]}… ({count} characters)'


def first_of(texts: Iterable[object], most: int = 3) -> str:
    """The first of some texts, and how many more there are: 'a, b, c and 4 more'."""
    every = list(map(str, texts))
    return ', '.join(every[:most]) + (f' and {len(every) - most} more' if every[most:] else '')


def nearest(name: object, known: Iterable[str]) -> str:
    """The known name that is near to one, whatever its capitals and signs; '' where none is."""
    plain = {_letters(one): one for one in known}
    near = difflib.get_close_matches(_letters(str(name)[:80]), plain, n=1, cutoff=0.84)
    return plain[near[0]] if near else ''


def did_you_mean(names: Iterable[object], known: Sequence[str]) -> str:
    """'did you mean X, Y? ', or '' where no known name is near to any of these."""
    near = dict.fromkeys(filter(None, (nearest(name, known) for name in names)))
    return f'did you mean {", ".join(near)}? ' if near else ''


def _letters(name: str) -> str:
    return re.sub(r'[\W_]', '', name).lower()


def reason(error: Exception) -> str:
    """What went wrong in other people's code, in one line without a point at its end."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'.rstrip('.')


class DepthClipError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(DepthClipError):
    """A setting is unknown, of the wrong type, or out of its range."""


class MismatchError(ConfigError):
    """Settings that are right each by itself do not fit together."""


class WeightsError(DepthClipError):
    """CLIP weights are missing, corrupt, of another architecture, or fail their checksum."""


class DeviceError(DepthClipError):
    """The requested device does not exist on this machine."""


class EngineError(DepthClipError):
    """An engine does not run here, or its features differ from the reference."""


class BagError(DepthClipError):
    """A bag is missing, corrupt, of another format, or does not hold what is asked of it."""


class DataError(DepthClipError):
    """One input message cannot be used.

    Attributes:
        condition: short stable key of what is wrong ('wrong step'), for counting and throttling.

    """

    def __init__(self, condition: str, message: str) -> None:
        """Keep the condition beside the message."""
        super().__init__(message)
        self.condition = condition


class ImageError(DataError):
    """An image cannot be decoded or used."""


class CameraInfoError(DataError):
    """A camera_info cannot be used."""


class RangeError(DataError):
    """A message of a depth camera, lidar or scanner cannot be used."""


class CalibrationError(DepthClipError):
    """A calibration is missing, damaged, or belongs to another model or configuration."""
