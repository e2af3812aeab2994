# SPDX-License-Identifier: Apache-2.0
"""Command lines of both programs: tables of options, what they share, and the values they read.

A value that is refused is named with what is expected.

The standard library only: `depthclip doctor` must work where nothing else does.
"""

from __future__ import annotations

import argparse
import difflib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    #: Its names as one text, and what `add_argument` of argparse is told of it.
    Argument = tuple[str, dict[str, Any]]

# Tables -----------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Arguments that are listed under a title; without one, of which one may be given."""

    title: str
    options: tuple[Argument | Group, ...]


def option(names: str, **about: Any) -> Argument:
    """Write an argument as argparse does, but for the names, which are one text."""
    return names, about


def text(names: str, metavar: str, meaning: str | None = None) -> Argument:
    """An option that is a text, '' where it is not given."""
    return names, {'default': '', 'metavar': metavar, 'help': meaning}


def switch(names: str, meaning: str) -> Argument:
    """An option that is there or is not."""
    return names, {'action': 'store_true', 'help': meaning}


def add_options(parser: Any, options: Sequence[Argument | Group]) -> None:
    """Add arguments of a table to a parser of argparse, or to a group of it."""
    for part in options:
        if not isinstance(part, Group):
            parser.add_argument(*part[0].split(), **part[1])
        elif part.title:
            add_options(parser.add_argument_group(part.title), part.options)
        else:
            add_options(parser.add_mutually_exclusive_group(), part.options)


# Paths -------------------------------------------------------------------------------------------


def path(text: str) -> Path:
    """Read a path; the ~ of --option=~/NAME, which shells leave as it is, is the home folder."""
    from .core.files import user_path  # late: the package of the core needs more than Python
    try:
        return user_path(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f'{text!r}: {error.strerror}') from error


def path_or_name(text: str) -> str:
    """Read a path, or a name of something else, as text."""
    return str(path(text)) if text.startswith('~') else text


# What both programs have -------------------------------------------------------------------------

MODEL = (
    option('--config', metavar='YAML', type=path_or_name,
           help='ROS parameter file (default: built in)'),
    option('--weights', default='', metavar='NAME_OR_FILE', type=path_or_name,
           help="official name, file, 'demo' (for rendered rooms), or 'untrained' (meaningless "
           'depth)'),
    text('--device', 'DEVICE', 'auto, cpu, cuda or cuda:N'),
)
# Of depth, by names that OpenCV and matplotlib have. Equal steps look equal in the first.
COLORMAPS = ('viridis', 'cividis', 'turbo')
PROTOCOLS = ('depthclip', 'bts', 'kitti')  # of `depthclip_ros.evaluation.protocol`

# Values ------------------------------------------------------------------------------------------

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
