# SPDX-License-Identifier: Apache-2.0
"""How the node's process keeps its memory, how it ends, and how it fails to start."""

from __future__ import annotations

import ctypes
import itertools
import signal
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from .config import read_config

if TYPE_CHECKING:
    from collections.abc import Sequence

# glibc's mallopt(3), with its numbers from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
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


class Stopped(BaseException):
    """A signal asks the process to end.

    Not KeyboardInterrupt: if that passes through an `exec` of a string (dataclasses use it, and
    importing torch makes many), CPython ends with the status of a killed process although it was
    caught.
    """


class StopSignals:
    """Handles SIGINT and SIGTERM, also where a shell started the process with SIGINT ignored.

    Attributes:
        interrupt: raise `Stopped` at a signal (while something long runs), or only take note of
            it (while the main loop looks).
        received: whether a signal came.

    """

    def __init__(self) -> None:
        self.interrupt = True
        self.received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: Any) -> None:
        self.received = True
        if self.interrupt:
            self.interrupt = False  # the clean-up is not to be interrupted again
            raise Stopped


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


def _wrong_with(path: str) -> str:
    """What our reader finds wrong with a parameter file, '' for nothing."""
    try:
        read_config(path)
    except ConfigError as error:
        # A file for other nodes is no error to ROS.
        return '' if 'no section' in str(error) else str(error)
    return ''


def _parameter_files(arguments: Sequence[str]) -> list[str]:
    return [value for flag, value in itertools.pairwise(arguments) if flag == '--params-file']
