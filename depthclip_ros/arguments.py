# SPDX-License-Identifier: Apache-2.0
"""Values of command lines, as `type` of argparse: what is refused is named with what is expected.

The standard library only: `depthclip doctor` must work where nothing else does.
"""

from __future__ import annotations

import argparse
import difflib
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _reader(kind: type, low: float, high: float, what: str) -> Callable[[str], Any]:
    """What reads a number in a range, in which both ends count."""
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'{text!r} is not {what}')
        return value
    return read


positive = _reader(float, 1e-6, 1e6, 'a number greater than 0, and at most a million')
not_negative = _reader(float, 0, 1e9, 'a number from 0 to a billion')
to_a_kilometre = _reader(float, 0.1, 1000, 'a number of metres from 0.1 to 1000')
whole = _reader(int, 0, math.inf, 'a whole number, 0 or more')
count = _reader(int, 1, math.inf, 'a whole number, 1 or more')


def check_command(parser: argparse.ArgumentParser, given: list[str], known: Sequence[str]) -> None:
    """End the process, as for any wrong usage, where the first word is no command."""
    if given and not given[0].startswith('-') and given[0] not in known:
        near = difflib.get_close_matches(given[0], known, 1) or [', '.join(known)]
        parser.error(f'{given[0]!r} is no command; did you mean {near[0]}?')


def numbers(text: str) -> tuple[float, ...]:
    """Read positive numbers with commas between them."""
    return tuple(positive(part) for part in text.split(','))


def interval(text: str) -> tuple[float, float]:
    """Read two ascending positive numbers, as 'LOW,HIGH'."""
    try:
        low, high = map(float, text.split(','))
    except ValueError:
        low = high = math.nan
    if not 0 < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no range: two numbers greater than 0, the "
                                         "smaller one first, such as '0.5,4'")
    return low, high


def point(text: str) -> tuple[float, float]:
    """Read a pixel, as 'X,Y'."""
    try:
        x, y = (float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no point: two numbers with a comma between them, such as '320,240'",
        ) from None
    return x, y
