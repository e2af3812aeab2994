# SPDX-License-Identifier: Apache-2.0
"""Where frames are relative to each other: messages of tf, read when somebody asks."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import TYPE_CHECKING

from ..core.errors import RangeError, quoted
from ..core.transforms import IDENTITY, Transform, TransformError, TransformTree
from . import serialized
from .messages import TF

if TYPE_CHECKING:
    from .messages import Messages

MOST_APART = 0.5  # seconds between stamps that are bridged
MOST_TRANSFORMS = 200  # messages that wait until somebody asks
STATIC_DEPTH = 100  # publishers of /tf_static that are heard, each with its last message


class Frames:
    """What tf tells, over ROS or out of a bag; the callbacks only store."""

    def __init__(self, messages: Messages, *, knows_tf: bool = True) -> None:
        """Begin without a transform.

        Args:
            messages: what reads messages.
            knows_tf: whether those of tf can be read.

        """
        self._source, self._knows_tf = messages, knows_tf
        self._lock = threading.Lock()
        self._transforms: deque[bytes] = deque(maxlen=MOST_TRANSFORMS)
        self._static: deque[bytes] = deque(maxlen=STATIC_DEPTH)
        self._tree = TransformTree()
        self._refused: Counter[str] = Counter()  # messages that cannot be kept or read

    def begin(self) -> None:
        """Forget everything, as when messages begin to come."""
        with self._lock:
            self._transforms.clear()
            self._static.clear()
        self._tree = TransformTree()

    def on_transforms(self, raw: bytes) -> None:
        """Keep a message of /tf."""
        with self._lock:
            self._transforms.append(raw)

    def on_static(self, raw: bytes) -> None:
        """Keep a message of /tf_static."""
        with self._lock:
            self._static.append(raw)

    def transform(self, target: str, source: str, stamp: int) -> Transform:
        """From frame to frame at a time.

        Raises:
            RangeError: 'no transform'.

        """
        if target == source:
            return IDENTITY
        if not self._knows_tf:
            raise RangeError('no transform', (
                f'where {quoted(source)} is in {quoted(target)} is asked of tf, but tf2_msgs is '
                'not installed here. Install it (ros-$ROS_DISTRO-tf2-msgs); of an anchor, set '
                'anchor_pose instead.'))
        self._take(self._static, static=True)
        try:
            try:  # of a lidar and a camera on one body, tf_static knows all
                return self._tree.lookup(target, source, stamp)
            except TransformError:
                self._take(self._transforms, static=False)
                return self._tree.lookup(target, source, stamp, tolerance=MOST_APART)
        except TransformError as error:
            raise RangeError('no transform', str(error)) from error

    def _take(self, waiting: deque[bytes], *, static: bool) -> None:
        """Read the messages of tf that came since."""
        with self._lock:
            messages = list(waiting)
            waiting.clear()
        for raw in messages:
            try:
                problems = self._tree.add_message(
                    serialized.read(raw, TF, RangeError, self._source), static=static)
            except RangeError as error:
                problems = [str(error)]
            if problems:
                with self._lock:
                    self._refused['transform'] += len(problems)
