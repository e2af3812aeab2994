# SPDX-License-Identifier: Apache-2.0
"""Transforms between frames, from the messages of tf. Needs no ROS and no tf2.

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
_MAX_METRES = 1e9  # metres
_SAME_ROTATION = 1e-9  # sine of an angle below which quaternions are interpolated linearly
_JUMP_BACK = 10 * _NANOSECONDS  # a step back in time that resets a link: the history of tf2
# Part of the name of the frame in which a robot moves without jumps, and frames that jump when
# localisation corrects itself (REP-105).
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
        """Transform points (..., 3) of the source frame to the target frame."""
        return np.asarray(points, np.float64) @ self.rotation.T + self.translation

    def __matmul__(self, first: Transform) -> Transform:
        """Compose: `first`, then this transform."""
        return Transform(self.rotation @ first.rotation, self.apply(first.translation))

    def inverse(self) -> Transform:
        """Invert the transform."""
        return Transform(self.rotation.T, -self.rotation.T @ self.translation)


IDENTITY = Transform(np.eye(3), np.zeros(3))


@dataclass
class _Link:
    """Pose of a frame in its parent: one static pose, or a history in the order of time."""

    parent: str
    child: str
    static: bool
    times: list[int] = field(default_factory=list)
    poses: list[tuple[Float64, Float64]] = field(default_factory=list)  # position, unit quaternion

    def at(self, time: int, beyond: int) -> Transform:
        """Interpolate the transform to the parent; outside by at most `beyond`, the nearest."""
        index = bisect_left(self.times, time)
        if not self.static and 0 < index < len(self.times):
            before, after = self.times[index - 1:index + 1]
            fraction = (time - before) / (after - before)
            (start, first), (end, second) = self.poses[index - 1:index + 1]
            return Transform(rotation_matrix(_slerp(first, second, fraction)),
                             (1 - fraction) * start + fraction * end)
        index = min(index, len(self.times) - 1)
        if not self.static and abs(self.times[index] - time) > beyond:
            first_s, last_s = (self.times[i] / _NANOSECONDS for i in (0, -1))
            available, remedy = (f'from {first_s:.3f} to {last_s:.3f} s', '') \
                if len(self.times) > 1 else (f'only once, at {first_s:.3f} s', (
                    'If it never moves, publish it on /tf_static, and record that. '))
            raise TransformError(NO_TRANSFORM, (
                f'The tf link {quoted(self.parent)} to {quoted(self.child)} is known {available}, '
                f'but is asked for at {time / _NANOSECONDS:.3f} s. {remedy}Is its publisher '
                'running, with the same clock?'))
        translation, quaternion = self.poses[index]
        return Transform(rotation_matrix(quaternion), translation)


class TransformTree:
    """The tree of tf's frames; one thread may add transforms while others look them up."""

    def __init__(self, most_entries: int = 1000) -> None:
        """Begin without frames.

        Args:
            most_entries: largest number of poses of a moving link, the newest; 0: no limit.

        """
        self._max_entries = most_entries
        self._links: dict[str, _Link] = {}
        self._refused: dict[str, str] = {}  # why, by the child of the refused link
        self._lock = threading.Lock()

    def add(
        self, parent: str, child: str, translation: Sequence[float],
        quaternion: Sequence[float], time: int | None,
    ) -> None:
        """Add the pose of a frame in its parent; a new parent replaces the old one.

        Args:
            parent: name of the parent frame.
            child: name of the frame with this pose.
            translation: x, y, z in metres.
            quaternion: x, y, z, w; its length may differ from 1 by 0.5 %, as in tf2.
            time: time of the pose in nanoseconds; None: static.

        Raises:
            TransformError: the names or numbers are invalid.

        """
        parent, child = frame_name(parent), frame_name(child)
        position, rotation = (
            np.array(list(values), np.float64) for values in (translation, quaternion))
        length = float(np.linalg.norm(rotation))
        if not parent or not child or parent == child or not (
                np.isfinite([*position, *rotation]).all() and np.abs(position).max() < _MAX_METRES
                and abs(length * length - 1) <= _NORM_TOLERANCE):
            problem = (
                f'The tf link {quoted(parent)} to {quoted(child)} with translation '
                f'{position.tolist()} and quaternion {rotation.tolist()} of length {length:.4g} '
                'does not count: it needs two different frames, finite metres, and a quaternion '
                'of length 1 (no rotation is 0, 0, 0, 1). Correct its publisher.')
            with self._lock:
                self._refused[child] = problem
            raise TransformError(WRONG_LINK, problem)
        with self._lock:
            self._refused.pop(child, None)
            link = self._links.get(child)
            if time is None or link is None or link.static or link.parent != parent or (
                    # After a jump back in time, the history belongs to another run.
                    self._max_entries and time < link.times[-1] - _JUMP_BACK):
                link = self._links[child] = _Link(parent, child, time is None)
            index = bisect_left(link.times, time or 0)
            is_replaced = index < len(link.times) and link.times[index] == time
            link.times[index:index + is_replaced] = [time or 0]
            link.poses[index:index + is_replaced] = [(position, rotation / length)]
            if self._max_entries:
                del link.times[:-self._max_entries], link.poses[:-self._max_entries]

    def add_message(self, message: Any, *, static: bool) -> list[str]:
        """Add the transforms of a `tf2_msgs/TFMessage`, or anything with its fields.

        Args:
            message: message of /tf or /tf_static.
            static: whether its transforms are static.

        Returns:
            A sentence about each transform that is invalid; the others are added.

        """
        problems = []
        for stamped in message.transforms:
            header, pose = stamped.header, stamped.transform
            at, turn = pose.translation, pose.rotation
            stamp = header.stamp.sec * _NANOSECONDS + header.stamp.nanosec
            try:
                self.add(header.frame_id, stamped.child_frame_id, (at.x, at.y, at.z),
                         (turn.x, turn.y, turn.z, turn.w), None if static else stamp)
            except TransformError as error:
                problems.append(str(error))
        return problems

    def clear(self) -> None:
        """Remove the moving links, as when time jumps back; static ones stay."""
        with self._lock:
            self._links = {name: link for name, link in self._links.items() if link.static}

    def lookup(
        self, target: str, source: str, time: int, tolerance: float = 0.0,
    ) -> Transform:
        """Look up the transform from `source` to `target`.

        Args:
            target: name of a frame.
            source: name of a frame.
            time: in nanoseconds; moving links are interpolated (translation linearly, rotation
                along the shortest arc).
            tolerance: seconds by which `time` may be outside of a link's history; then its nearest
                pose counts.

        Raises:
            TransformError: the frames are not connected, or a link has no pose at that time; names
                the frame or link, and the frames or times that exist.

        """
        return self.lookup_between(target, time, source, time, tolerance)[0]

    def lookup_between(
        self, target: str, time: int, source: str, source_time: int, tolerance: float = 0.0,
        max_unmeasured: float = math.inf, odom: str = '',
    ) -> tuple[Transform, float]:
        """Look up the transform from `source` at its time to `target` at another.

        The motion between the two times is measured in odom, the frame in which both move without
        jumps (REP-105), never in map. Without such a frame, or its transforms at these times, the
        nearest common ancestor stands for it.

        Args:
            target: name of a frame.
            time: time of the target, in nanoseconds.
            source: name of a frame.
            source_time: time of the source, likewise.
            tolerance: seconds, as in `lookup`.
            max_unmeasured: largest difference of the times without odom, in seconds.
            odom: name of odom; '': the frame with odom in its name, else the nearest in which both
                move, except map and earth.

        Returns:
            The transform, and the seconds of unmeasured motion: 0 with odom.

        Raises:
            TransformError: as of `lookup`; or the times differ by more than `max_unmeasured`.

        """
        interval, beyond = abs(time - source_time) / _NANOSECONDS, round(tolerance * _NANOSECONDS)
        target, source = frame_name(target), frame_name(source)

        def through(frame: str) -> Transform:
            return self._compose(frame, target, time, beyond).inverse() \
                @ self._compose(frame, source, source_time, beyond)

        with self._lock:
            common, fixed = self._common_frames(target, source, frame_name(odom))
            if fixed and interval:
                try:
                    return through(fixed), 0.0
                except TransformError:  # it is late, and may not be needed
                    if interval > max_unmeasured:
                        raise
            if interval > max_unmeasured:
                raise TransformError(APART, (
                    f'the stamps of message and image are {interval:.3g} s apart; without a frame '
                    f'of tf that the robot moves in without jumps, {odom or "such as odom"} and '
                    f'not map, at most {max_unmeasured:g} s are bridged (odom_frame).'))
            return through(common), interval

    def _common_frames(self, target: str, source: str, odom: str) -> tuple[str, str]:
        """Find the nearest common ancestor, and odom above it, or ''."""
        up_source, up_target = self._ancestors(source), self._ancestors(target)
        common = [name for name in up_source if name in up_target]
        if not common:
            ends = up_source[-1], up_target[-1]
            refused = ' '.join(self._refused[name] for name in ends if name in self._refused)
            raise TransformError(NO_TRANSFORM, (
                f'tf does not connect {quoted(source)} with {quoted(target)}: the first ends '
                f'at {quoted(ends[0])}, the second at {quoted(ends[1])}; known are '
                f'{quoted(sorted(self._links), 200)}. ') + (refused or (
                    'Record /tf_static and /tf too, publish the link between them '
                    '(static_transform_publisher), or correct the frame_id of the message.')))
        moving = [self._links[name].parent for name in common[:-1]
                    if not self._links[name].static]
        if odom:
            return common[0], odom if odom in moving else ''
        by_name = [name for name in moving if _ODOM in name.lower()]
        steady = [name for name in moving if name.rpartition('/')[2] not in _JUMPING]
        return common[0], [*by_name, *steady, ''][0]

    def _compose(self, ancestor: str, name: str, time: int, beyond: int) -> Transform:
        """Compose the links from a frame to its ancestor."""
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
        """List the frame, its parent, and so on to the root."""
        names = [name]
        while (link := self._links.get(names[-1])) is not None:
            if link.parent in names:
                raise TransformError(NO_TRANSFORM, (
                    f'tf goes round in a circle: {" is in ".join([*names[-3:], link.parent])}. '
                    'Stop the publisher of one of these links.'))
            names.append(link.parent)
        return names


def frame_name(name: str) -> str:
    """Remove the leading slash of tf's first version from a frame's name."""
    return str(name).removeprefix('/')


def _slerp(first: Float64, second: Float64, fraction: float) -> Float64:
    """Interpolate unit quaternions spherically, on the shorter arc."""
    cosine = float(first @ second)
    if cosine < 0:  # the same rotation, on the shorter way
        second, cosine = -second, -cosine
    angle = np.arccos(min(cosine, 1.0))
    weights = (1 - fraction, fraction) if np.sin(angle) < _SAME_ROTATION else (
        np.sin((1 - fraction) * angle) / np.sin(angle), np.sin(fraction * angle) / np.sin(angle))
    mixed: Float64 = weights[0] * first + weights[1] * second
    return mixed / np.linalg.norm(mixed)


def rotation_matrix(quaternion: ArrayLike) -> Float64:
    """Convert a unit quaternion x, y, z, w to a rotation matrix (3, 3)."""
    x, y, z, w = np.asarray(quaternion, np.float64)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
