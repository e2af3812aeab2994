# SPDX-License-Identifier: Apache-2.0
"""Values of command lines, as `type` of argparse: what is refused is named with what is expected.

The standard library only: `depthclip doctor` must work where nothing else does.
"""

from __future__ import annotations

import argparse


def number(text: str) -> float:
    """Read any number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number') from None


def positive(text: str) -> float:
    """Read a number from a millionth to a million."""
    value = number(text)
    if not 1e-6 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f'{text} must be greater than 0, and at most a million')
    return value


def to_a_kilometre(text: str) -> float:
    """Read metres from a tenth to a thousand."""
    value = number(text)
    if not 0.1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f'{text} must be from 0.1 to 1000 metres')
    return value


def not_negative(text: str) -> float:
    """Read a number from 0 to a billion."""
    value = number(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f'{text} must not be negative, nor above a billion')
    return value


def numbers(text: str) -> tuple[float, ...]:
    """Read positive numbers with commas between them."""
    return tuple(positive(part) for part in text.split(','))


def point(text: str) -> tuple[float, float]:
    """Read a pixel, as 'X,Y'."""
    try:
        x, y = (float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no point: two numbers with a comma between them, such as '320,240'",
        ) from None
    return x, y


def whole(text: str) -> int:
    """Read a whole number, not negative."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number') from None
    if value < 0:
        raise argparse.ArgumentTypeError(f'{text} is negative')
    return value


def count(text: str) -> int:
    """Read a whole number, 1 at least."""
    value = whole(text)
    if not value:
        raise argparse.ArgumentTypeError('0 is too few; 1 at least')
    return value
