# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines
_Item = TypeVar('_Item')


def progress(
    items: Iterable[_Item], what: str, total: int, unit: str = 'image',
) -> Iterator[_Item]:
    """Hand on items, of which there are `total`, and show how many there were."""
    if sys.stderr.isatty():
        yield from tqdm(items, what, total, unit=unit, dynamic_ncols=True)
        return
    say = now_and_then()
    for number, item in enumerate(items, 1):
        yield item
        say(f'{what}: {number} of {total} {unit}s')


def now_and_then() -> Callable[[str], None]:
    """Give what prints a line, unless one was printed shortly before."""
    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            sys.stderr.write(f'{line}\n')
    return say
