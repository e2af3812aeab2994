# SPDX-License-Identifier: Apache-2.0
"""Memory, signals, start errors and the end of a process of this package."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..core.errors import ConfigError
from ..core.parameter_file import read_parameters, sections

if TYPE_CHECKING:
    from rclpy.node import Node

JOIN_TIMEOUT = 1.0  # seconds that all threads have to end with the process
REPEAT_DELAY = 1.0  # seconds after which a second signal counts as a new one
# glibc's mallopt(3), with its numbers from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_BLOCK = 32 * 2**20  # bytes; the most that glibc before 2.35 accepts
_MAX_FREE = 256 * 2**20  # bytes of free memory


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system.

    By default every image, and every copy of it, is new memory whose pages the system maps one
    page fault at a time: 1.2 ms for taking one 640x480 image from the middleware, beside 0.5 ms of
    work. Without glibc this function does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _MAX_FREE)
        # One heap for all threads, so that each reuses memory that another freed.
        mallopt(_M_ARENA_MAX, 1)


def memory_mb() -> float:
    """Return the resident memory of this process in MiB; NaN where there is no /proc."""
    statm = Path('/proc/self/statm')
    pages = int(statm.read_text(encoding='ascii').split()[1]) if statm.exists() else math.nan
    return pages * resource.getpagesize() / 2**20


class StopSignals:
    """Handles SIGINT and SIGTERM, also where a shell started the process with SIGINT ignored.

    The first one sets `received`, which the main loop checks. One at least `REPEAT_DELAY` later
    ends the process; an earlier one is a repetition by launch of what the whole group received.
    """

    def __init__(self) -> None:
        """Install the handlers, in the main thread."""
        self.received = threading.Event()
        self._repeated = threading.Timer(REPEAT_DELAY, self._restore_default)
        self._repeated.daemon = True
        self._previous_handlers = {number: signal.signal(number, self._handle)
                                   for number in (signal.SIGINT, signal.SIGTERM)}

    def close(self) -> None:
        """Restore the previous handlers."""
        self._repeated.cancel()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: Any) -> None:
        if not self.received.is_set():
            self.received.set()
            self._repeated.start()

    def _restore_default(self) -> None:
        """Restore default handlers by libc, since Python's main thread may hang in a library."""
        for number in self._previous_handlers:
            ctypes.CDLL(None).signal(number, None)  # SIG_DFL


def end_process(status: int) -> NoReturn:
    """End the process, even if a thread never returns from a library."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a repeated one would interrupt the end
    end = time.monotonic() + JOIN_TIMEOUT
    threads = [thread for thread in threading.enumerate()
               if thread is not threading.current_thread() and not thread.daemon]
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.is_alive() for thread in threads):
        os._exit(status)
    gc.freeze()  # collecting torch's objects takes more than half of the time to exit
    sys.exit(status)  # not os._exit: Fast DDS removes its shared memory


def check_files(arguments: Sequence[str]) -> None:
    """Refuse (ConfigError) parameter files as the commands do."""
    for path in _parameter_files(arguments):
        sections(path)


def warn_of_files(node: Node, arguments: Sequence[str]) -> None:
    """Log which parameter files hold nothing for a node: rcl ignores them without a word."""
    for path in _parameter_files(arguments):
        _warn_of_file(node, path)


def _warn_of_file(node: Node, path: str) -> None:
    try:
        read_parameters(path, node.get_fully_qualified_name())
    except ConfigError as error:
        node.get_logger().warning(f'{error} Until then none of its settings is in force.')


def _parameter_files(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the parameter files of a command line, but pipes, which can be read once."""
    in_ros_arguments = False
    for argument, following in pairwise(arguments):
        in_ros_arguments = argument == '--ros-args' or (in_ros_arguments and argument != '--')
        if in_ros_arguments and argument == '--params-file' and not Path(following).is_fifo():
            yield following


def rclpy_error_text(error: Exception) -> str:
    """Return rclpy's reason for refusing the command line, without the place in its source."""
    text = str(error).removeprefix('failed to initialize rcl: ').partition(', at /')[0]
    return text if isinstance(error, ConfigError) else (
        f'{text.rstrip(".")}. Check what follows --ros-args, and the parameter files: a list has '
        'at least one element, and numbers all with or all without a point, such as [1.0, 2.5].')
