# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

PERIOD = 30.0  # seconds between two lines in a log file
_Item = TypeVar('_Item')


def progress(
    items: Iterable[_Item], label: str, total: int, unit: str = 'image',
) -> Iterator[_Item]:
    """Yield the items, of which there are `total`, and print how many are done."""
    if sys.stderr.isatty():
        yield from tqdm(items, label, total, unit=unit, dynamic_ncols=True)
        return
    print_line = throttled_printer()
    for number, item in enumerate(items, 1):
        yield item
        print_line(f'{label}: {number} of {total} {unit}s')


def throttled_printer() -> Callable[[str], None]:
    """Return a function that prints a line to stderr, at most one in each PERIOD."""
    last = time.monotonic()

    def print_line(line: str) -> None:
        nonlocal last
        if time.monotonic() - last > PERIOD:
            last = time.monotonic()
            sys.stderr.write(f'{line}\n')
    return print_line
