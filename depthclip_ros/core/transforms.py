# SPDX-License-Identifier: Apache-2.0
"""Where frames are relative to each other, from the messages of tf. Needs no ROS and no tf2.

A rigid transform takes points of one frame into another: p_target = R p_source + t, in metres.
Times are whole nanoseconds, as the stamps of ROS.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Float64 = NDArray[np.float64]

_NANOSECONDS = 1_000_000_000
_NORM_TOLERANCE = 0.01  # of a quaternion's squared length, as tf2
_FURTHEST = 1e9  # metres
_SAME_ROTATION = 1e-9  # sine of an angle below which quaternions are mixed straight
_JUMP_BACK = 10 * _NANOSECONDS  # as much as tf2 keeps; what is older is of another time
# Part of the name of the frame that a robot moves in without jumps, and frames that jump whenever
# a robot is located anew (REP-105).
_ODOM, _JUMPING = 'odom', ('map', 'earth')
WRONG_LINK, NO_TRANSFORM, APART = 'wrong link', 'no transform', 'stamps apart'


class TransformError(DataError):
    """A transform cannot be used, or two frames are not connected; says which link is missing.

    Its condition is WRONG_LINK, NO_TRANSFORM or APART.
    """


@dataclass(frozen=True, eq=False)
class Transform:
    """A rigid transform from a source frame to a target frame.

    Attributes:
        rotation: (3, 3) rotation matrix.
        translation: (3,) metres, the source's origin in the target frame.

    """

    rotation: Float64
    translation: Float64

    def apply(self, points: ArrayLike) -> Float64:
        """Take points (..., 3) of the source frame into the target frame."""
        return np.asarray(points, np.float64) @ self.rotation.T + self.translation

    def __matmul__(self, first: Transform) -> Transform:
        """Give the transform that does `first`, then this one."""
        return Transform(self.rotation @ first.rotation, self.apply(first.translation))

    def inverse(self) -> Transform:
        """Give the way back."""
        return Transform(self.rotation.T, -self.rotation.T @ self.translation)


IDENTITY = Transform(np.eye(3), np.zeros(3))


@dataclass
class _Link:
    """Pose of a frame in its parent: one for ever, or a history in the order of time."""

    parent: str
    child: str
    static: bool
    times: list[int] = field(default_factory=list)
    poses: list[tuple[Float64, Float64]] = field(default_factory=list)  # place, unit quaternion

    def at(self, time: int, beyond: int) -> Transform:
        """From the frame to its parent at a time, or the nearest pose, `beyond` away at most."""
        place = bisect_left(self.times, time)
        if not self.static and 0 < place < len(self.times):
            before, after = self.times[place - 1:place + 1]
            share = (time - before) / (after - before)
            (start, first), (end, second) = self.poses[place - 1:place + 1]
            return Transform(rotation_matrix(_slerp(first, second, share)),
                             (1 - share) * start + share * end)
        place = min(place, len(self.times) - 1)
        if not self.static and abs(self.times[place] - time) > beyond:
            first_s, last_s = (self.times[i] / _NANOSECONDS for i in (0, -1))
            known, remedy = (f'from {first_s:.3f} to {last_s:.3f} s', '') \
                if len(self.times) > 1 else (f'only once, at {first_s:.3f} s', (
                    'If it never moves, publish it on /tf_static, and record that. '))
            raise TransformError(NO_TRANSFORM, (
                f'The tf link {quoted(self.parent)} to {quoted(self.child)} is known {known}, but '
                f'is asked for at {time / _NANOSECONDS:.3f} s. {remedy}Is its publisher running, '
                'with the same clock?'))
        translation, quaternion = self.poses[place]
        return Transform(rotation_matrix(quaternion), translation)


class TransformTree:
    """The frames that tf tells of. May be filled by one thread and asked by others."""

    def __init__(self, most_entries: int = 1000) -> None:
        """Begin without frames.

        Args:
            most_entries: of a moving link, the newest of which are kept; 0 for no limit.

        """
        self._most = most_entries
        self._links: dict[str, _Link] = {}
        self._refused: dict[str, str] = {}  # why, by the child of a link that was not taken last
        self._lock = threading.Lock()

    def add(
        self, parent: str, child: str, translation: Sequence[float],
        quaternion: Sequence[float], time: int | None,
    ) -> None:
        """Say where a frame is in its parent; of several parents the last one told of counts.

        Args:
            parent: name of the frame that the numbers are in.
            child: name of the frame whose place they give.
            translation: x, y, z in metres.
            quaternion: x, y, z, w; its length may differ from 1 by 0.5 %, as in tf2.
            time: when that was, in nanoseconds; None: it holds for ever.

        Raises:
            TransformError: names or numbers are no link.

        """
        parent, child = frame_name(parent), frame_name(child)
        place, turn = (np.array(list(values), np.float64) for values in (translation, quaternion))
        length = float(np.linalg.norm(turn))
        if not parent or not child or parent == child or not (
                np.isfinite([*place, *turn]).all() and np.abs(place).max() < _FURTHEST
                and abs(length * length - 1) <= _NORM_TOLERANCE):
            problem = (
                f'The tf link {quoted(parent)} to {quoted(child)} with translation '
                f'{place.tolist()} and quaternion {turn.tolist()} of length {length:.4g} does not '
                'count: it needs two different frames, finite metres, and a quaternion of length '
                '1 (no rotation is 0, 0, 0, 1). Correct its publisher.')
            with self._lock:
                self._refused[child] = problem
            raise TransformError(WRONG_LINK, problem)
        with self._lock:
            self._refused.pop(child, None)
            link = self._links.get(child)
            if time is None or link is None or link.static or link.parent != parent or (
                    # Time has jumped back: what it was then is not what it is.
                    self._most and time < link.times[-1] - _JUMP_BACK):
                link = self._links[child] = _Link(parent, child, time is None)
            at = bisect_left(link.times, time or 0)
            known = at < len(link.times) and link.times[at] == time  # which is replaced
            link.times[at:at + known] = [time or 0]
            link.poses[at:at + known] = [(place, turn / length)]
            if self._most:
                del link.times[:-self._most], link.poses[:-self._most]

    def add_message(self, message: Any, *, static: bool) -> list[str]:
        """Take over a `tf2_msgs/TFMessage`, or anything with its fields.

        Args:
            message: of /tf or /tf_static.
            static: whether its transforms hold for ever.

        Returns:
            What could not be used, a sentence each; the rest of the message counts.

        """
        problems = []
        for stamped in message.transforms:
            header, pose = stamped.header, stamped.transform
            place, turn = pose.translation, pose.rotation
            stamp = header.stamp.sec * _NANOSECONDS + header.stamp.nanosec
            try:
                self.add(header.frame_id, stamped.child_frame_id, (place.x, place.y, place.z),
                         (turn.x, turn.y, turn.z, turn.w), None if static else stamp)
            except TransformError as error:
                problems.append(str(error))
        return problems

    def clear(self) -> None:
        """Forget all frames that move, as when time jumps back; those that do not stay."""
        with self._lock:
            self._links = {name: link for name, link in self._links.items() if link.static}

    def lookup(
        self, target: str, source: str, time: int, tolerance: float = 0.0,
    ) -> Transform:
        """Give the transform that takes points of `source` into `target`.

        Args:
            target: name of a frame.
            source: name of a frame.
            time: in nanoseconds; moving links are interpolated (translation linearly, rotation
                along the shortest arc).
            tolerance: seconds by which `time` may lie beyond a link's entries, the nearest of
                which then counts.

        Raises:
            TransformError: the two are not connected, or a link has no entry at that time; names
                the frame or link, and what is known instead.

        """
        return self.lookup_between(target, time, source, time, tolerance)[0]

    def lookup_between(
        self, target: str, time: int, source: str, source_time: int, tolerance: float = 0.0,
        still: float = math.inf, odom: str = '',
    ) -> tuple[Transform, float]:
        """Give the transform that takes points of `source` at its time into `target` at another.

        What moved between the two times counts by way of odom, the frame that both move in
        without jumps (REP-105), and never of map. Where there is none, or tf does not know it at
        these times, the nearest frame above both is taken for one.

        Args:
            target: name of a frame.
            time: of the target, in nanoseconds.
            source: name of a frame.
            source_time: of the source, likewise.
            tolerance: seconds, as in `lookup`.
            still: seconds that the two times may be apart without a frame that both move in.
            odom: name of that frame; '': the one with odom in its name, else the nearest that
                both move in but map and earth.

        Returns:
            The transform, and the seconds in which nobody knows what moved: 0 with such a frame.

        Raises:
            TransformError: as of `lookup`; or the times are farther apart than `still`.

        """
        apart, beyond = abs(time - source_time) / _NANOSECONDS, round(tolerance * _NANOSECONDS)
        target, source = frame_name(target), frame_name(source)

        def by(frame: str) -> Transform:
            return self._to(frame, target, time, beyond).inverse() \
                @ self._to(frame, source, source_time, beyond)

        with self._lock:
            common, fixed = self._above(target, source, frame_name(odom))
            if fixed and apart:
                try:
                    return by(fixed), 0.0
                except TransformError:  # it is late, and may not be needed
                    if apart > still:
                        raise
            if apart > still:
                raise TransformError(APART, (
                    f'the stamps of message and image are {apart:.3g} s apart; without a frame of '
                    f'tf that the robot moves in without jumps, {odom or "such as odom"} and not '
                    f'map, at most {still:g} s are bridged (odom_frame).'))
            return by(common), apart

    def _above(self, target: str, source: str, odom: str) -> tuple[str, str]:
        """The nearest frame above both, and odom, which both move in with it, '' for none."""
        up_source, up_target = self._ancestors(source), self._ancestors(target)
        shared = [name for name in up_source if name in up_target]
        if not shared:
            ends = up_source[-1], up_target[-1]
            refused = ' '.join(self._refused[name] for name in ends if name in self._refused)
            raise TransformError(NO_TRANSFORM, (
                f'tf does not connect {quoted(source)} with {quoted(target)}: the first ends '
                f'at {quoted(ends[0])}, the second at {quoted(ends[1])}; known are '
                f'{quoted(sorted(self._links), 200)}. ') + (refused or (
                    'Record /tf_static and /tf too, publish the link between them '
                    '(static_transform_publisher), or correct the frame_id of the message.')))
        moved_in = [self._links[name].parent for name in shared[:-1]
                    if not self._links[name].static]
        if odom:
            return shared[0], odom if odom in moved_in else ''
        by_name = [name for name in moved_in if _ODOM in name.lower()]
        others = [name for name in moved_in if name.rpartition('/')[2] not in _JUMPING]
        return shared[0], [*by_name, *others, ''][0]

    def _to(self, ancestor: str, name: str, time: int, beyond: int) -> Transform:
        """From a frame to one above it."""
        result = IDENTITY
        while name != ancestor:
            link = self._links[name]
            try:
                result = link.at(time, beyond) @ result
            except TransformError as error:
                if name not in self._refused:
                    raise
                raise TransformError(error.condition, f'{error} {self._refused[name]}') from None
            name = link.parent
        return result

    def _ancestors(self, name: str) -> list[str]:
        """The frame itself, its parent, and so on to the root."""
        names = [name]
        while (link := self._links.get(names[-1])) is not None:
            if link.parent in names:
                raise TransformError(NO_TRANSFORM, (
                    f'tf goes round in a circle: {" is in ".join([*names[-3:], link.parent])}. '
                    'Stop the publisher of one of these links.'))
            names.append(link.parent)
        return names


def frame_name(name: str) -> str:
    """A frame's name without the leading slash of tf's first version: the same frame."""
    return str(name).removeprefix('/')


def _slerp(first: Float64, second: Float64, share: float) -> Float64:
    """Unit quaternion at a share of the shorter way from one to another."""
    cosine = float(first @ second)
    if cosine < 0:  # the same rotation, on the shorter way
        second, cosine = -second, -cosine
    angle = np.arccos(min(cosine, 1.0))
    weights = (1 - share, share) if np.sin(angle) < _SAME_ROTATION else (
        np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle))
    mixed: Float64 = weights[0] * first + weights[1] * second
    return mixed / np.linalg.norm(mixed)


def rotation_matrix(quaternion: ArrayLike) -> Float64:
    """(3, 3) of a unit quaternion x, y, z, w."""
    x, y, z, w = np.asarray(quaternion, np.float64)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
