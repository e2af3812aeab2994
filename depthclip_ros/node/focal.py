# SPDX-License-Identifier: Apache-2.0
"""What the camera's focal length does to the depth of one camera, and whether that has changed."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

JUMP = 0.01  # part by which the ratio may change without a word
MOST_TOLD, PERIOD = 20, 60.0  # sentences in so many seconds: enough for all but a zoom lens
OFF = 'reference_focal is 0'


@dataclass
class FocalRatio:
    """By what depth is multiplied for the focal length, from the last image that was answered.

    Attributes:
        ratio: 1 where it does not count.
        reason: why it does not; '' where it does.
        jumps: how often the ratio changed from one depth image to the next, by more than JUMP:
            depth before and after is not of one scale.

    """

    ratio: float = 1.0
    reason: str = OFF
    jumps: int = 0
    _answered: bool = False
    _said: tuple[float, str] = (1.0, OFF)
    _told: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_TOLD))

    def note(self, ratio: float, reason: str, stamp: str) -> tuple[bool, str]:
        """Take note of an answered image.

        Args:
            ratio: what its depth was multiplied by.
            reason: why not, or ''.
            stamp: of the image, for the log.

        Returns:
            Whether the scale of depth has changed, and what to say; '' for nothing. A ratio that
            goes on changing, as with a zoom lens, is told now and then.

        """
        first, self._answered = not self._answered, True
        self.jumps += not first and _differ(ratio, self.ratio)
        self.ratio, self.reason = ratio, reason
        before, reason_before = self._said
        changed = _differ(ratio, before)
        if (reason == reason_before and not changed) \
                or not self._may_tell():
            return False, ''
        self._said = ratio, reason
        jumped = changed and not first
        text = f'From the image with stamp {stamp} on, depth is '
        if not reason:
            text += f"multiplied by {ratio:.3f} for the camera's focal length"
        elif ratio == 1.0:
            text += f"not multiplied for the camera's focal length ({reason})"
        else:
            text += f"multiplied by {ratio:.3f} for that of the calibration's camera ({reason})"
        if jumped:
            text += f'; its scale is {ratio / before:.3g} times that of before'
        return jumped, f'{text}.'

    def _may_tell(self) -> bool:
        now = time.monotonic()
        if len(self._told) == MOST_TOLD and now - self._told[0] < PERIOD:
            return False
        self._told.append(now)
        return True

    def __str__(self) -> str:
        if not self.reason:
            return f'{self.ratio:.3f}'
        return f'{"none" if self.ratio == 1.0 else format(self.ratio, ".3f")}: {self.reason}'


def _differ(ratio: float, before: float) -> bool:
    return not 1 - JUMP <= ratio / before <= 1 + JUMP
