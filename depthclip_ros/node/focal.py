# SPDX-License-Identifier: Apache-2.0
"""What the camera's focal length does to the depth of one camera, and whether that has changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from .statistics import Throttle

JUMP = 0.01  # part by which the ratio may change without a word
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
    _throttle: Throttle = field(default_factory=Throttle)

    def note(self, ratio: float, reason: str, stamp: str) -> tuple[bool, str]:
        """Take note of an answered image.

        Args:
            ratio: what its depth was multiplied by.
            reason: why not, or ''.
            stamp: of the image, for the log.

        Returns:
            Whether the scale of depth has changed, and what to say; '' for nothing. A ratio that
            goes on changing, as with a zoom lens, is told every 10 s.

        """
        first, self._answered = not self._answered, True
        self.jumps += not first and _differ(ratio, self.ratio)
        self.ratio, self.reason = ratio, reason
        before, reason_before = self._said
        changed = _differ(ratio, before)
        if (reason == reason_before and not changed) \
                or not self._throttle.due('without' if reason else 'with'):
            return False, ''
        self._said = ratio, reason
        jumped = changed and not first
        text = f'From the image with stamp {stamp} on, depth is ' + (
            f"not multiplied for the camera's focal length ({reason})" if reason else
            f"multiplied by {ratio:.3f} for the camera's focal length")
        if jumped:
            text += f'; its scale is {ratio / before:.3g} times that of before'
        return jumped, f'{text}.'

    def __str__(self) -> str:
        return f'none: {self.reason}' if self.reason else f'{self.ratio:.3f}'


def _differ(ratio: float, before: float) -> bool:
    return not 1 - JUMP <= ratio / before <= 1 + JUMP
