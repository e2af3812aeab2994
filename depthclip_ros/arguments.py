# SPDX-License-Identifier: Apache-2.0
"""Command lines of both programs: tables of options, shared options, and parsers of values.

The error about a refused value says what is expected. This file imports the standard library
only, since `depthclip doctor` must work where nothing else does.
"""

from __future__ import annotations

import argparse
import difflib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    #: The option's names as one text, and the keywords for `add_argument` of argparse.
    Argument = tuple[str, dict[str, Any]]

# Tables -----------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Options listed under a title; without a title, options that exclude each other."""

    title: str
    options: tuple[Argument | Group, ...]


def option(names: str, **about: Any) -> Argument:
    """Describe an argument as for argparse, with its names as one text."""
    return names, about


def text(names: str, metavar: str, meaning: str | None = None) -> Argument:
    """Describe an option with a text, '' by default."""
    return names, {'default': '', 'metavar': metavar, 'help': meaning}


def switch(names: str, meaning: str) -> Argument:
    """Describe an option without a value."""
    return names, {'action': 'store_true', 'help': meaning}


def add_options(parser: Any, options: Sequence[Argument | Group]) -> None:
    """Add the arguments of a table to a parser of argparse, or to one of its groups."""
    for part in options:
        if not isinstance(part, Group):
            parser.add_argument(*part[0].split(), **part[1])
        elif part.title:
            add_options(parser.add_argument_group(part.title), part.options)
        else:
            add_options(parser.add_mutually_exclusive_group(), part.options)


# Paths -------------------------------------------------------------------------------------------


def path(text: str) -> Path:
    """Parse a path; the ~ of --option=~/NAME, which shells do not expand, is the home folder."""
    from .core.files import user_path  # here: the core needs more than Python
    try:
        return user_path(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f'{text!r}: {error.strerror}') from error


def path_or_name(text: str) -> str:
    """Parse a path, or a name of something else, as text."""
    return str(path(text)) if text.startswith('~') else text


# Options of both programs ------------------------------------------------------------------------

MODEL = (
    option('--config', metavar='YAML', type=path_or_name,
           help='ROS parameter file (default: built in)'),
    option('--weights', default='', metavar='NAME_OR_FILE', type=path_or_name,
           help="official name, file, 'demo' (for rendered rooms), or 'untrained' (meaningless "
           'depth)'),
    text('--device', 'DEVICE', 'auto, cpu, cuda or cuda:N'),
)
# Colour maps of depth, in OpenCV and matplotlib. Equal steps look equal in the first.
COLORMAPS = ('viridis', 'cividis', 'turbo')
PROTOCOLS = ('depthclip', 'bts', 'kitti')  # of `depthclip_ros.evaluation.protocol`

# Values ------------------------------------------------------------------------------------------

def _number_parser(kind: type, low: float, high: float, expected: str) -> Callable[[str], Any]:
    """Return a parser of numbers in a range that includes both ends."""
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'{text!r} is not {expected}')
        return value
    return parse


positive = _number_parser(float, 1e-6, 1e6, 'a number greater than 0, and at most a million')
not_negative = _number_parser(float, 0, 1e9, 'a number from 0 to a billion')
to_a_kilometre = _number_parser(float, 0.1, 1000, 'a number of metres from 0.1 to 1000')
whole = _number_parser(int, 0, math.inf, 'a whole number, 0 or more')
count = _number_parser(int, 1, math.inf, 'a whole number, 1 or more')


def check_command(
    parser: argparse.ArgumentParser, words: list[str], commands: Sequence[str],
) -> None:
    """End the process with a usage error if the first word is no command."""
    if words and not words[0].startswith('-') and words[0] not in commands:
        suggestions = difflib.get_close_matches(words[0], commands, 1) or [', '.join(commands)]
        parser.error(f'{words[0]!r} is no command; did you mean {suggestions[0]}?')


def numbers(text: str) -> tuple[float, ...]:
    """Parse positive numbers, separated by commas."""
    return tuple(positive(part) for part in text.split(','))


def interval(text: str) -> tuple[float, float]:
    """Parse two ascending positive numbers, as 'LOW,HIGH'."""
    try:
        low, high = map(float, text.split(','))
    except ValueError:
        low = high = math.nan
    if not 0 < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no range: two numbers greater than 0, the "
                                         "smaller one first, such as '0.5,4'")
    return low, high


def point(text: str) -> tuple[float, float]:
    """Parse a pixel, as 'X,Y'."""
    try:
        x, y = (float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no point: two numbers with a comma between them, such as '320,240'",
        ) from None
    return x, y
