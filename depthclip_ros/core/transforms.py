# SPDX-License-Identifier: Apache-2.0
"""Where frames are relative to each other, from the messages of tf. Needs no ROS and no tf2.

A rigid transform takes points of one frame into another: p_target = R p_source + t, in metres.
Times are whole nanoseconds, as the stamps of ROS.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DepthClipError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Float64 = NDArray[np.float64]

_NANOSECONDS = 1_000_000_000
_NORM_TOLERANCE = 0.01  # of a quaternion's squared length, as tf2
_FURTHEST = 1e9  # metres
_SAME_ROTATION = 1e-9  # sine of an angle below which quaternions are mixed straight
_JUMP_BACK = 10 * _NANOSECONDS  # as much as tf2 keeps; what is older is of another time


class TransformError(DepthClipError):
    """A transform cannot be used, or two frames are not connected; says which link is missing."""


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
            raise TransformError(
                f'The tf link {quoted(self.parent)} to {quoted(self.child)} is known from '
                f'{first_s:.3f} to {last_s:.3f} s, but is asked for at '
                f'{time / _NANOSECONDS:.3f} s. Is its publisher running, with the same clock?')
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
            raise TransformError(
                f'tf link {quoted(parent)} to {quoted(child)} with translation {place.tolist()} '
                f'and quaternion {turn.tolist()}: it needs two different frames, finite metres, '
                'and a quaternion of length 1 (no rotation is 0, 0, 0, 1). Correct its publisher.')
        with self._lock:
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
        target, source = frame_name(target), frame_name(source)
        with self._lock:
            up_source, up_target = self._ancestors(source), self._ancestors(target)
            common = next((name for name in up_source if name in up_target), None)
            if common is None:
                raise TransformError(
                    f'tf does not connect {quoted(source)} with {quoted(target)}: the first ends '
                    f'at {quoted(up_source[-1])}, the second at {quoted(up_target[-1])}; known '
                    f'are {quoted(sorted(self._links), 200)}. Record /tf_static and /tf too, '
                    'publish the link between them (static_transform_publisher), or correct the '
                    'frame_id of the message.')
            to_common = []  # from the target, from the source
            for up in (up_target, up_source):
                result = IDENTITY
                for name in up[:up.index(common)]:
                    result = self._links[name].at(time, round(tolerance * _NANOSECONDS)) @ result
                to_common.append(result)
        return to_common[0].inverse() @ to_common[1]

    def fixed_frame(self, name: str) -> str | None:
        """The frame that a frame moves in, the root of its tree; None if it never moves."""
        with self._lock:
            names = self._ancestors(frame_name(name))
            moves = any(not self._links[moving].static for moving in names[:-1])
        return names[-1] if moves else None

    def _ancestors(self, name: str) -> list[str]:
        """The frame itself, its parent, and so on to the root."""
        names = [name]
        while (link := self._links.get(names[-1])) is not None:
            if link.parent in names:
                raise TransformError(
                    f'tf goes round in a circle: {" is in ".join([*names[-3:], link.parent])}. '
                    'Stop the publisher of one of these links.')
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
