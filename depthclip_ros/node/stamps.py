# SPDX-License-Identifier: Apache-2.0
"""What time stamps and clocks do: whether they jump, go back, or stand still."""

from __future__ import annotations

import math
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rclpy.node import Node

JUMP = 5.0  # seconds that stamps may gain on the time that passes
CLOCK_JUMP = 1.0  # likewise a clock, from one look at it to the next, a second later
MEMORY = 10.0  # seconds that a jump is told of
_SECOND = 10 ** 9  # nanoseconds
_BEHIND = {0: struct.Struct('>iI'), 1: struct.Struct('<iI')}  # CDR's second byte: byte order


class Stamps:
    """The stamps of one camera's images, in the order in which they arrive.

    Attributes:
        back: how often a stamp was before the one before it.
        ahead: how often stamps gained more than `JUMP` on the time that passed.
        repeated: images since the stamp last changed.

    """

    def __init__(self) -> None:
        self.back = self.ahead = self.repeated = 0
        self.last: float | None = None
        self._arrived = self._changed = 0.0
        self._event, self._event_time = '', -math.inf

    def observe(self, raw: bytes, now: float) -> None:
        """Look at one serialised message that begins with a header; `now` is steady time."""
        if len(raw) < 12:
            return
        seconds, nanoseconds = _BEHIND[raw[1] & 1].unpack_from(raw, 4)
        stamp = seconds + nanoseconds / _SECOND
        last, passed = self.last, now - self._arrived
        self.last, self._arrived = stamp, now
        if stamp == last:
            self.repeated += 1
            return
        self.repeated, self._changed = 0, now
        if last is None:
            return
        if stamp < last:
            self.back += 1
            self._event, self._event_time = f'stamps went back by {last - stamp:.3g} s', now
        elif stamp - last - passed > JUMP:
            self.ahead += 1
            self._event, self._event_time = f'stamps jumped ahead by {stamp - last:.3g} s', now

    def event(self) -> str:
        """The last jump, as long as it is news; else ''."""
        return self._event if time.monotonic() - self._event_time < MEMORY else ''

    def standstill(self) -> float:
        """Seconds for which images came with one and the same stamp."""
        return self._arrived - self._changed if self.repeated else 0.0


class ClockWatch:
    """Compares the node's clock with steady time; look at it once a second."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._last: tuple[float, float] | None = None
        self._changed = time.monotonic()
        self._event, self._event_time = '', -math.inf

    def look(self, timeout: float) -> str:
        """What is wrong with the clock, in a few words; '' for nothing.

        Args:
            timeout: seconds that simulated time may stand still.

        """
        clock = self._node.get_clock()
        now, steady = clock.now().nanoseconds / _SECOND, time.monotonic()
        simulated = bool(getattr(clock, 'ros_time_is_active', False))
        if self._last is not None:
            gained, passed = now - self._last[0], steady - self._last[1]
            # Simulated time has a pace of its own, but goes on.
            jump = min(0.0, gained) if simulated else gained - passed
            if jump < -CLOCK_JUMP:
                self._note(f'went back by {-jump:.3g} s', steady)
            elif jump > CLOCK_JUMP:
                self._note(f'jumped ahead by {jump:.3g} s', steady)
            if gained:
                self._changed = steady
        self._last = now, steady
        if simulated and steady - self._changed > timeout:
            return f'simulated time stands still for {steady - self._changed:.0f} s'
        recent = steady - self._event_time < MEMORY
        return f'{"simulated time" if simulated else "the clock"} {self._event}' * recent

    def _note(self, event: str, steady: float) -> None:
        self._event, self._event_time = event, steady
