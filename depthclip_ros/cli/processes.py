# SPDX-License-Identifier: Apache-2.0
"""Child processes on a ROS graph of this machine only."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import FrameType

# Beyond 101 the ports of a domain overlap those that Linux gives to any program.
DOMAINS = range(1, 102)
DISCOVERY = ('ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_LOCALHOST_ONLY')
LOG_LINE = re.compile(r'\[(WARN|ERROR|FATAL)\] \[[\d.]+\] (.*)')
STOP_SECONDS = 10.0


def isolate() -> str:
    """Keep this process and its children on this machine, on a domain of their own.

    Whatever the user has set stays.

    Returns:
        One sentence that says where the graph is.

    """
    if not any(name in os.environ for name in DISCOVERY):
        # Humble knows only the older of the two, and later ones warn about it.
        older = os.environ.get('ROS_DISTRO') == 'humble'
        os.environ[DISCOVERY[older]] = '1' if older else 'LOCALHOST'
    chosen = 'as set' if 'ROS_DOMAIN_ID' in os.environ else 'free'
    os.environ.setdefault('ROS_DOMAIN_ID', str(free_domain()))
    discovery = [f'{name}={os.environ[name]}' for name in DISCOVERY if name in os.environ]
    return ', '.join([f'ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} ({chosen})', *discovery])


def free_domain() -> int:
    """Choose a domain on which no process of this machine is, at random among them."""
    for domain in random.sample(DOMAINS, len(DOMAINS)):
        if _is_free(domain):
            return domain
    return 0


def _is_free(domain: int) -> bool:
    """Whether the unicast ports of a domain's first participant are unused (DDSI-RTPS 9.6.1)."""
    base = 7400 + 250 * domain
    for port in (base + 10, base + 11):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(('', port))
            except OSError:
                return False
    return True


class Child:
    """One process, its log file, and what it complains of."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        """Start it.

        Args:
            name: for messages.
            arguments: of this Python, such as `-m`, module, options.
            log: file for all of its output.

        """
        self.name = name
        self.log = log
        self._reported: set[str] = set()
        self._position = 0
        # A session of its own: an interrupt from the terminal reaches us, and we stop it in order.
        with log.open('wb') as file:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, 'PYTHONUNBUFFERED': '1', 'RCUTILS_COLORIZED_OUTPUT': '0'})

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: ended by that signal."""
        return self._process.poll()

    def new_complaints(self) -> list[str]:
        """Warnings and errors logged since the last call, each text once."""
        with self.log.open('rb') as file:
            file.seek(self._position)
            text = file.read()
        complete = text.rfind(b'\n') + 1
        self._position += complete
        found = []
        for line in text[:complete].decode(errors='replace').splitlines():
            match = LOG_LINE.match(line)
            if match and match[2] not in self._reported:
                self._reported.add(match[2])
                found.append(f'[{match[1]}] {match[2]}')
        return found

    def tail(self, lines: int = 20) -> str:
        """Last lines of the log."""
        with self.log.open(errors='replace') as file:
            return ''.join(f'    {line}' for line in deque(file, lines)).rstrip() or '    (empty)'

    def stop(self) -> None:
        """Interrupt, then terminate, then kill; returns when it has ended."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.exit_code is not None:
                return
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def stopping(children: list[Child]) -> Iterator[None]:
    """Stop the children at the end of the block, however it ends, last started first.

    SIGTERM and SIGHUP count as an interrupt like SIGINT, so that no child is left behind; one that
    is ignored, as under nohup, stays ignored.
    """
    interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
               if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    except RuntimeError as error:
        if interrupted:  # in the midst of taking a message, of which rclpy makes another error
            raise KeyboardInterrupt from error
        raise
    finally:
        for child in reversed(children):
            child.stop()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def wait_until(condition: Callable[[], bool], seconds: float, step: Callable[[], None]) -> bool:
    """Call `step` until the condition holds; False when it does not within the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        step()
    return True
