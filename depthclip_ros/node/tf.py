# SPDX-License-Identifier: Apache-2.0
"""Where frames are relative to each other: messages of tf, read when somebody asks."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import TYPE_CHECKING

from ..core.errors import RangeError
from ..core.transforms import IDENTITY, Transform, TransformError, TransformTree
from .messages import TF as TF_TYPE
from .messages import parse

if TYPE_CHECKING:
    from .messages import Read

TF, TF_STATIC = '/tf', '/tf_static'
LATE = 0.1  # seconds by which tf may be behind, and which a robot may move unnoticed
MOST_WAITING = 5000  # messages until somebody asks: 400 Hz for more than ten seconds
_NANOSECONDS = 10 ** 9


class Frames:
    """What tf tells, over ROS or out of a bag; the callbacks only store."""

    def __init__(self, read: Read) -> None:
        """Begin without a transform; `read` reads messages."""
        self._read = read
        self._lock = threading.Lock()
        self.refused: Counter[str] = Counter()  # messages that could not be kept or read
        self.begin()

    def begin(self) -> None:
        """Forget everything, as when messages begin to come."""
        with self._lock:
            self._waiting: deque[bytes] = deque()
            self._tree = TransformTree()

    def clear_transforms(self) -> None:
        """Forget what moves, as when time jumps back."""
        self._take()
        self._tree.clear()

    def on_transforms(self, raw: bytes) -> None:
        """Keep a message of /tf."""
        with self._lock:
            if len(self._waiting) == MOST_WAITING:
                self._waiting.popleft()
                self.refused['too many transforms'] += 1
            self._waiting.append(raw)

    def on_static(self, raw: bytes) -> None:
        """Read a message of /tf_static: there are few, and none comes again."""
        self._add(raw, static=True)

    def between(self, target: str, time: int, source: str, source_time: int) -> Transform:
        """From where a frame was at its time to another one at its own.

        What the robot moved meanwhile counts, if tf knows a frame that it moves in (odom).

        Args:
            target: frame of the result, at `time` in nanoseconds.
            time: see there.
            source: frame of the points, at `source_time`.
            source_time: see there.

        Raises:
            RangeError: 'no transform'; 'stamps apart' where nothing is known of the movement, and
                they are more than LATE apart.

        """
        self._take()
        try:
            fixed = self._tree.fixed_frame(target) or self._tree.fixed_frame(source)
            if fixed is not None:
                try:
                    return self._tree.lookup(target, fixed, time, LATE) \
                        @ self._tree.lookup(fixed, source, source_time, LATE)
                except TransformError:  # odometry is late, and may not be needed
                    if abs(time - source_time) > LATE * _NANOSECONDS:
                        raise
            check_apart(time, source_time)
            return IDENTITY if target == source \
                else self._tree.lookup(target, source, time, LATE)
        except TransformError as error:
            raise RangeError('no transform', str(error)) from error

    def _take(self) -> None:
        """Read the messages of /tf that came since."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for raw in waiting:
            self._add(raw, static=False)

    def _add(self, raw: bytes, *, static: bool) -> None:
        try:
            problems = self._tree.add_message(
                parse(self._read, raw, TF_TYPE, RangeError), static=static)
        except RangeError as error:
            problems = [str(error)]
        if problems:
            with self._lock:
                self.refused['transform'] += len(problems)


def check_apart(time: int, other: int) -> None:
    """Refuse what is too old where nothing is known of how the robot has moved meanwhile.

    Raises:
        RangeError: 'stamps apart'.

    """
    apart = abs(time - other) / _NANOSECONDS
    if apart > LATE:
        raise RangeError('stamps apart', (
            f'the message is {apart:.3g} s apart from the image, by their stamps; nothing is '
            'known of how the robot moved meanwhile (tf has no frame that it moves in, such as '
            f'odom, or is not asked), so that at most {LATE:g} s are bridged.'))
