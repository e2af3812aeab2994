# SPDX-License-Identifier: Apache-2.0
"""Reading and writing beside the network, each on a thread of its own, in the given order.

Where the network has all processors to itself, nothing is beside it: its threads wait for one
another, so that what takes a millisecond from one of them takes it from all.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

Item = TypeVar('Item')
_LOT_ITEMS, _LOT_BYTES, _LOTS = 256, 4 << 20, 4
_JOBS = 32


def ahead(
    items: Iterable[Item], size: Callable[[Item], int],
) -> Generator[Item, None, None]:
    """Give the items while a thread gets the next ones; `size` in bytes bounds how many."""
    lots = _lots(items, size)
    with ThreadPoolExecutor(1, 'bag reader') as thread:
        waiting = deque(thread.submit(next, lots, None) for _ in range(_LOTS))
        while (lot := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, lots, None))
            yield from lot


def _lots(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    lot: list[Item] = []
    total = 0
    for item in items:
        lot.append(item)
        total += size(item)
        if len(lot) == _LOT_ITEMS or total > _LOT_BYTES:
            yield lot
            lot, total = [], 0
    if lot:
        yield lot


class Behind:
    """Does jobs one after the other, on a thread; when one fails, none is done any more.

    As a context manager it waits for all of them, unless an error leaves it.
    """

    def __init__(self, *, beside: bool) -> None:
        """Begin without a job; if not `beside`, each is done when it comes, without a thread."""
        self._beside = beside
        self._thread = ThreadPoolExecutor(1, 'bag writer')
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def do(self, job: Callable[..., None], *arguments: Any) -> None:
        """Let a job be done behind all others; raises what an earlier one raised."""
        if not self._beside:
            job(*arguments)
            return
        if len(self._waiting) >= _JOBS:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._do, job, *arguments))

    def _do(self, job: Callable[..., None], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            job(*arguments)
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> Behind:  # noqa: PYI034 (Self is not in Python 3.10)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._failed |= kind is not None
        self._thread.shutdown()
        while self._waiting and kind is None:
            self._waiting.popleft().result()
