# SPDX-License-Identifier: Apache-2.0
"""How a process of this package keeps its memory, how it ends, and how it fails to start."""

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
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from ..core.errors import ConfigError
from ..core.parameter_file import sections

LAST_PATIENCE = 1.0  # seconds that a thread has to end with the process
REPEATED = 1.0  # seconds after a signal, from which on the next one is another
# glibc's mallopt(3), with its numbers from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_BLOCK = 32 * 2**20  # bytes; the most that glibc before 2.35 accepts
_KEPT = 256 * 2**20  # bytes of free memory


def keep_freed_memory() -> None:
    """Let glibc use freed memory again instead of giving it back to the system.

    By its defaults every image, and every copy on its way, is fresh memory whose pages the system
    maps one fault at a time: 1.2 ms for taking one 640x480 image from the middleware, beside 0.5
    ms of work. Elsewhere than on glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        # One heap for all threads: what one has freed serves the others.
        mallopt(_M_ARENA_MAX, 1)


def memory_mb() -> float:
    """Resident memory of this process in MiB; NaN where there is no /proc."""
    statm = Path('/proc/self/statm')
    pages = int(statm.read_text(encoding='ascii').split()[1]) if statm.exists() else math.nan
    return pages * resource.getpagesize() / 2**20


class StopSignals:
    """Handles SIGINT and SIGTERM, also where a shell started the process with SIGINT ignored.

    The first one sets `received`, at which the main loop looks. One that comes `REPEATED` later
    ends the process; sooner it is the same one: launch passes on what the whole group has got.
    """

    def __init__(self) -> None:
        """Install the handlers; this must be done in the main thread."""
        self.received = threading.Event()
        self._repeated = threading.Timer(REPEATED, self._let_end)
        self._repeated.daemon = True
        self._before = {number: signal.signal(number, self._handle)
                        for number in (signal.SIGINT, signal.SIGTERM)}

    def close(self) -> None:
        """Give the signals back to who had them before."""
        self._repeated.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: Any) -> None:
        if not self.received.is_set():
            self.received.set()
            self._repeated.start()

    def _let_end(self) -> None:
        """By libc: Python's function is for the main thread, which may hang in a library."""
        for number in self._before:
            ctypes.CDLL(None).signal(number, None)  # SIG_DFL


def end_process(status: int) -> NoReturn:
    """End the process, with or without the threads that never come back from a library."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a repeated one would interrupt the end
    end = time.monotonic() + LAST_PATIENCE
    others = [thread for thread in threading.enumerate()
              if thread is not threading.current_thread() and not thread.daemon]
    for thread in others:
        thread.join(max(0.0, end - time.monotonic()))
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.is_alive() for thread in others):
        os._exit(status)
    gc.freeze()  # collecting torch and what refers to it costs more than half of the end
    sys.exit(status)  # Fast DDS takes its shared memory along


def check_files(arguments: Sequence[str]) -> None:
    """Refuse parameter files that the tools refuse (ConfigError), but pipes, to be read once."""
    of_ros = False
    for argument, following in pairwise(arguments):
        of_ros = argument == '--ros-args' or (of_ros and argument != '--')
        if of_ros and argument == '--params-file' and not Path(following).is_fifo():
            sections(following)


def explain(error: Exception) -> str:
    """Why rclpy refused the command line, in its own words without where in its source."""
    text = str(error).removeprefix('failed to initialize rcl: ').partition(', at /')[0]
    return text if isinstance(error, ConfigError) else (
        f'{text.rstrip(".")}. Check what follows --ros-args, and the parameter files: a list has '
        'at least one element, and numbers all with or all without a point, such as [1.0, 2.5].')
