# SPDX-License-Identifier: Apache-2.0
"""How the node's process keeps its memory, how it ends, and how it fails to start."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from ..core.errors import ConfigError
from .config import read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

GRACE = 1.4  # seconds from a signal to the end of the process, at most
# glibc's mallopt(3), with its numbers from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_BLOCK = 32 * 2**20  # bytes; the most that glibc before 2.35 accepts
_KEPT = 256 * 2**20  # bytes of free memory


def keep_freed_memory() -> None:
    """Let glibc use freed memory again instead of giving it back to the system.

    By its defaults every 1 MB image, and every copy on its way, is fresh memory whose pages the
    system maps one fault at a time: 640 faults, 1.2 ms, for taking one 640x480 image from the
    middleware, beside 0.5 ms of work. Elsewhere than on glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        # One heap for all threads: what one has freed serves the others.
        mallopt(_M_ARENA_MAX, 1)


@contextmanager
def here_to_stay(module: str) -> Iterator[None]:
    """Never look for garbage among what there is when a module's import ends, nor meanwhile.

    Half a million objects come with torch, and are looked through again and again while they
    grow in number: an eighth of its import, and 0.1 s once more at some time afterwards.
    Where it is imported already nothing is kept: what has come since may become garbage.
    """
    if module in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class StopSignals:
    """Handles SIGINT and SIGTERM, also where a shell started the process with SIGINT ignored.

    The main loop looks at `received`. Where it does not come to that, because something in the
    main thread or in the clean-up never returns, a thread of its own ends the process when
    `GRACE` is over.

    Attributes:
        received: set as soon as a signal comes.
        status: tells the exit status of a process that must be ended so.

    """

    def __init__(self) -> None:
        """Install the handlers; this must be done in the main thread."""
        self.received = threading.Event()
        self.status: Callable[[], int] = lambda: 1
        self._closed = threading.Event()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._handlers = {number: signal.signal(number, self._handle)
                          for number in (signal.SIGINT, signal.SIGTERM)}
        # Python runs handlers in the main thread only, and not while that is in a library; the
        # byte in this pipe comes all the same.
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name='signals', daemon=True).start()

    def close(self) -> None:
        """Give the signals back to who had them before."""
        self._closed.set()
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._write)

    def _handle(self, _number: int, _frame: Any) -> None:
        self.received.set()

    def _watch(self) -> None:
        number = os.read(self._read, 1)
        while number and number[0] not in self._handlers:
            number = os.read(self._read, 1)
        if number:
            self.received.set()
            if not self._closed.wait(GRACE):
                os._exit(self.status())  # nothing is flushed: that, too, may never return
        os.close(self._read)


def end_process(status: int) -> NoReturn:
    """End at once: the teardown of what torch has loaded takes longer than all the rest."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def explain_arguments(arguments: Sequence[str], error: Exception) -> str:
    """Say why rclpy refused the command line, in our words where our own reader knows better."""
    if isinstance(error, ConfigError):
        return str(error)
    for reason in filter(None, map(_wrong_with, _parameter_files(arguments))):
        return reason
    text = str(error).removeprefix('failed to initialize rcl: ').partition(', at /')[0]
    empty = [a.partition(':=')[0] for a in arguments if a.endswith(':=[]')]
    if 'PARAMETER_NOT_SET' in text and empty:
        return f'{", ".join(empty)}: the list is empty; give it at least one element.'
    if 'same type' in text:
        text += '. ROS wants the numbers of a list all with or all without a point: [1.0, 2.5]'
    return f'{text.rstrip(".")}.'


def ignored_files(arguments: Sequence[str], node_name: str) -> list[str]:
    """Parameter files of the command line that hold nothing for the node, each with the reason.

    ROS takes them without a word, and the node runs with other settings than its user believes.

    Args:
        arguments: the command line.
        node_name: fully qualified name of the node.

    """
    return [reason for path in _parameter_files(arguments)
            if 'no section' in (reason := _refusal(path, node_name))]


def _wrong_with(path: str) -> str:
    """What our reader finds wrong with a parameter file, '' for nothing."""
    reason = _refusal(path, 'depth_node')
    return '' if 'no section' in reason else reason  # a file for other nodes is no error to ROS


def _refusal(path: str, node_name: str) -> str:
    try:
        read_config(path, node_name)
    except ConfigError as error:
        return str(error)
    return ''


def _parameter_files(arguments: Sequence[str]) -> list[str]:
    return [value for flag, value in itertools.pairwise(arguments) if flag == '--params-file']
