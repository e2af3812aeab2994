# SPDX-License-Identifier: Apache-2.0
"""The point that somebody clicked, and which patch of a camera's images shows it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.errors import CameraInfoError, DataError, ImageError, quoted
from . import serialized
from .frames import Frames
from .messages import POINT

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ..core.estimator import DepthPrediction
    from ..core.geometry import CameraModel
    from .messages import Messages

MOST_BEHIND = 10.0  # seconds by which a click may be older than the image it is about
BEHIND = 'behind the camera'
# Of a point that this camera does not see; another one may.
UNSEEN = BEHIND, 'outside the image', 'cut off'
SUPERSEDED = 'a newer one came'
_NANOSECONDS = 10 ** 9


class Click(NamedTuple):
    """A message as it came."""

    number: int  # from 1 on
    raw: bytes


class Point(NamedTuple):
    """A place in a frame."""

    frame: str
    xyz: NDArray[np.float64]  # metres

    def __str__(self) -> str:
        return f'({", ".join(f"{v:.2f}" for v in self.xyz)}) in {quoted(self.frame)}'


class Clicks(Frames):
    """The newest click, for all cameras, and where its frame is."""

    def __init__(self, messages: Messages, *, knows_tf: bool = True) -> None:
        """Begin without a click.

        Args:
            messages: what reads them.
            knows_tf: whether messages of tf can be read.

        """
        super().__init__(messages, knows_tf=knows_tf)
        self.newest: Click | None = None

    def on_click(self, raw: bytes) -> None:
        """Keep a message."""
        self.newest = Click(1 if self.newest is None else self.newest.number + 1, raw)

    def read(self, click: Click, stamp: int) -> Point:
        """What a click says.

        Args:
            click: the message.
            stamp: of the image that it is about, in nanoseconds.

        Raises:
            DataError: it cannot be read, has no finite place, or is too old.

        """
        message = serialized.read(click.raw, POINT, DataError, self._source)
        xyz = np.array([message.point.x, message.point.y, message.point.z], np.float64)
        if not np.isfinite(xyz).all():
            raise DataError('not finite', f'the clicked point is {quoted(xyz.tolist())}; click '
                            'where there is something.')
        clicked = message.header.stamp.sec * _NANOSECONDS + message.header.stamp.nanosec
        behind = (stamp - clicked) / _NANOSECONDS
        if clicked and behind > MOST_BEHIND:  # without a stamp it is of now
            raise DataError('stale', (
                f'by its stamp the clicked point is {behind:.3g} s older than the image; at most '
                f'{MOST_BEHIND:g} s count. Do viewer and camera have the same clock (use_sim_time)'
                '?'))
        return Point(message.header.frame_id, xyz)


class ClickedPatch:
    """Where one camera sees what was clicked.

    A point stays where it is in its own frame: while the camera moves, its patch is another one.

    Attributes:
        point: the last one that could be used.
        usable: clicks that this camera saw.
        conditions: clicks that it could not use, by what was wrong.
        condition: of the last click; '' if it was used.
        reason: the same in a sentence.

    """

    def __init__(self, clicks: Clicks) -> None:
        """Begin without a point.

        Args:
            clicks: of all cameras.

        """
        self._clicks = clicks
        self._number = 0
        self.point: Point | None = None
        self.usable = 0
        self.conditions: Counter[str] = Counter()
        self.condition = self.reason = ''

    def look(
        self, header: Any, camera: Callable[[], CameraModel], prediction: DepthPrediction,
    ) -> tuple[tuple[int, int] | None, bool]:
        """Find the patch of an image that shows the point.

        Args:
            header: of the image.
            camera: gives the camera that took it.
            prediction: of it.

        Returns:
            Row and column, None while no point is in the image; and whether somebody has clicked
            since the image before.

        """
        stamp = header.stamp.sec * _NANOSECONDS + header.stamp.nanosec

        def patch(point: Point) -> tuple[int, int]:
            there = self._clicks.transform(header.frame_id, point.frame, stamp).apply(point.xyz)
            if there[2] <= 0.0:
                raise DataError(BEHIND, f'the clicked point {point} is behind the camera.')
            try:
                return prediction.patch_at(*camera().project(there))
            except CameraInfoError as error:
                raise DataError(f'camera_info: {error.condition}', str(error)) from error
            except ImageError as error:
                raise DataError(error.condition, f'clicked {point}: {error}') from error

        click, before = self._clicks.newest, self._number
        is_new = click is not None and click.number != before
        if click is not None and is_new:
            self._number = click.number
            if click.number > before + 1:
                self.conditions[SUPERSEDED] += click.number - before - 1
            try:
                point = self._clicks.read(click, stamp)
                spot = patch(point)
            except DataError as error:  # the one before stays
                self.condition, self.reason = error.condition, str(error)
                self.conditions[error.condition] += 1
            else:
                self.condition = self.reason = ''
                self.usable += 1
                self.point = point
                return spot, True
        try:
            return (None if self.point is None else patch(self.point)), is_new
        except DataError:  # the camera has moved away
            return None, is_new

    def values(self) -> dict[str, Any]:
        """For diagnostics."""
        return {'clicks': self.usable,
                **{f'unusable clicks: {k}': n for k, n in sorted(self.conditions.copy().items())}}
