# SPDX-License-Identifier: Apache-2.0
"""Where frames are relative to each other, from the messages of tf. Needs no ROS and no tf2.

A rigid transform takes points of one frame into another: p_target = R p_source + t, in metres.
Times are whole nanoseconds, as the stamps of ROS.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import DepthClipError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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


class _Entry(NamedTuple):
    """A link's pose at a time; entries sort by that."""

    time: int
    translation: tuple[float, float, float]
    quaternion: tuple[float, float, float, float]


@dataclass
class _Link:
    """Pose of a frame in its parent: the only entry for ever, or a history."""

    parent: str
    static: bool
    entries: list[_Entry]


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
            TransformError: an empty name, numbers that are not finite, or a quaternion that is no
                rotation.

        """
        parent, child = _name(parent), _name(child)
        link = f'tf link {quoted(parent)} to {quoted(child)}'
        if not parent or not child or parent == child:
            raise TransformError(f'{link}: needs two different frames. Correct frame_id and '
                                 'child_frame_id in the publisher.')
        entry = _Entry(0 if time is None else int(time), *_checked(link, translation, quaternion))
        with self._lock:
            known = self._links.get(child)
            if time is None or known is None or known.static or known.parent != parent:
                self._links[child] = _Link(parent, time is None, [entry])
                return
            if self._most and entry.time < known.entries[-1].time - _JUMP_BACK:
                known.entries.clear()  # time has jumped back: what it was then is not what it is
            _insert(known.entries, entry)
            if self._most:
                del known.entries[:-self._most]

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

    def frames(self) -> list[str]:
        """Names of all frames, sorted."""
        with self._lock:
            return sorted({*self._links, *(link.parent for link in self._links.values())})

    def lookup(
        self, target: str, source: str, time: int | None = None, tolerance: float = 0.0,
    ) -> Transform:
        """Give the transform that takes points of `source` into `target`.

        Args:
            target: name of a frame.
            source: name of a frame.
            time: in nanoseconds; moving links are interpolated (translation linearly, rotation
                along the shortest arc). None: the latest for which all of them are known.
            tolerance: seconds by which `time` may lie beyond a link's entries, the nearest of
                which then counts.

        Raises:
            TransformError: a frame is unknown, the two are not connected, or a link has no entry
                at that time; names the frame or link, and what is known instead.

        """
        target, source = _name(target), _name(source)
        with self._lock:
            up_source, up_target = self._ancestors(source), self._ancestors(target)
            common = next((name for name in up_source if name in up_target), None)
            if common is None:
                raise TransformError(self._unconnected(target, source, up_target, up_source))
            beyond = round(tolerance * _NANOSECONDS)
            up_target = up_target[:up_target.index(common)]
            up_source = up_source[:up_source.index(common)]
            if time is None:
                moving = [self._links[name] for name in (*up_target, *up_source)]
                time = min((link.entries[-1].time for link in moving if not link.static),
                           default=0)
            down = self._chain(up_target, time, beyond)
            up = self._chain(up_source, time, beyond)
        return down.inverse() @ up

    def fixed_frame(self, name: str) -> str | None:
        """The frame that a frame moves in, the root of its tree; None if it never moves."""
        with self._lock:
            names = self._ancestors(_name(name))
            moves = any(not self._links[moving].static for moving in names[:-1])
        return names[-1] if moves else None

    def _ancestors(self, name: str) -> list[str]:
        """The frame itself, its parent, and so on to the root."""
        names, seen = [name], {name}
        while (link := self._links.get(names[-1])) is not None:
            if link.parent in seen:
                raise TransformError(
                    f'tf goes round in a circle: {" is in ".join([*names[-3:], link.parent])}. '
                    'Stop the publisher of one of these links.')
            names.append(link.parent)
            seen.add(link.parent)
        return names

    def _chain(self, names: Iterable[str], time: int, beyond: int) -> Transform:
        """From the first of these frames to the last one's parent."""
        result = IDENTITY
        for name in names:
            result = _pose(name, self._links[name], time, beyond) @ result
        return result

    def _unconnected(
        self, target: str, source: str, up_target: list[str], up_source: list[str],
    ) -> str:
        parents = {link.parent for link in self._links.values()}
        for name in (source, target):
            if name not in self._links and name not in parents:
                known = sorted({*self._links, *parents})
                return (f'tf knows no frame {quoted(name)}; it knows '
                        f'{quoted(known, 200) if known else "none"}. Record /tf_static and /tf '
                        'too, or correct the frame_id of the message.')
        return (f'tf does not connect {quoted(source)} with {quoted(target)}: the first ends at '
                f'{quoted(up_source[-1])}, the second at {quoted(up_target[-1])}. The link '
                'between these two is missing: record it, or publish it '
                '(static_transform_publisher).')


def _name(name: str) -> str:
    """Name without the leading slash of tf's first version."""
    return str(name).removeprefix('/')


def _checked(
    link: str, translation: Sequence[float], quaternion: Sequence[float],
) -> tuple[tuple[float, float, float], tuple[float, float, float, float]]:
    """Check the numbers of a link, and make the quaternion as long as 1."""
    x, y, z = (float(value) for value in translation)
    turn = np.array([float(value) for value in quaternion])
    if not (np.isfinite([x, y, z, *turn]).all() and max(abs(x), abs(y), abs(z)) < _FURTHEST):
        raise TransformError(f'{link}: translation {[x, y, z]} and rotation {turn.tolist()} are '
                             'not finite numbers of metres. Correct the publisher.')
    length = float(np.linalg.norm(turn))
    if not abs(length * length - 1) <= _NORM_TOLERANCE:
        raise TransformError(f'{link}: quaternion {turn.tolist()} has length {length:.4g} and is '
                             'no rotation. Correct the publisher (no rotation is 0, 0, 0, 1).')
    qx, qy, qz, qw = (float(value) for value in turn / length)
    return (x, y, z), (qx, qy, qz, qw)


def _insert(entries: list[_Entry], entry: _Entry) -> None:
    """Put an entry in its place; one of the same time is replaced."""
    if not entries or entries[-1].time < entry.time:
        entries.append(entry)
        return
    place = bisect_left(entries, entry.time, key=lambda known: known.time)
    if entries[place].time == entry.time:
        entries[place] = entry
    else:
        insort(entries, entry)


def _pose(name: str, link: _Link, time: int, beyond: int) -> Transform:
    """Pose of a frame in its parent at a time."""
    entries = link.entries
    if link.static:
        return _transform(entries[0])
    place = bisect_left(entries, time, key=lambda known: known.time)
    if 0 < place < len(entries):
        return _between(entries[place - 1], entries[place], time)
    nearest = entries[min(place, len(entries) - 1)]
    if abs(nearest.time - time) > beyond:
        span = ' to '.join(f'{entry.time / _NANOSECONDS:.3f}' for entry in (
            entries[0], entries[-1]))
        raise TransformError(
            f'The tf link {quoted(link.parent)} to {quoted(name)} is known from {span} s, but is '
            f'asked for at {time / _NANOSECONDS:.3f} s. Is its publisher running, with the same '
            'clock?')
    return _transform(nearest)


def _between(before: _Entry, after: _Entry, time: int) -> Transform:
    share = (time - before.time) / (after.time - before.time)
    first, second = np.array(before.quaternion), np.array(after.quaternion)
    cosine = float(first @ second)
    if cosine < 0:  # the same rotation, on the shorter way
        second, cosine = -second, -cosine
    angle = np.arccos(min(cosine, 1.0))
    weights = (1 - share, share) if np.sin(angle) < _SAME_ROTATION else (
        np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle))
    mixed = weights[0] * first + weights[1] * second
    place = (1 - share) * np.array(before.translation) + share * np.array(after.translation)
    return Transform(rotation_matrix(mixed / np.linalg.norm(mixed)), place)


def _transform(entry: _Entry) -> Transform:
    return Transform(rotation_matrix(entry.quaternion), np.array(entry.translation))


def rotation_matrix(quaternion: ArrayLike) -> Float64:
    """(3, 3) of a unit quaternion x, y, z, w."""
    x, y, z, w = np.asarray(quaternion, np.float64)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
