# SPDX-License-Identifier: Apache-2.0
"""What fixes the scale of depth: other sensors' messages, or the floor, as points in an image.

The callbacks only store. Messages are read by the worker, and only those whose stamps are nearest
to an image that is to be answered. Sensors are shared; each camera has a scale of its own.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.anchor import (
    MOST_POINTS,
    UNUSUAL_SCALE,
    Adjustment,
    Points,
    ScaleFilter,
    State,
)
from ..core.camera import CameraModel
from ..core.config import Size
from ..core.errors import CameraInfoError, RangeError, quoted
from ..core.transforms import APART, Transform, TransformTree, frame_name, rotation_matrix
from .config import GROUND, NodeConfig, parse_pose
from .depth import to_depth
from .ranges import cloud_points, scan_points
from .types import (
    IMAGE,
    POINT_CLOUD,
    SCAN,
    Read,
    cause_of,
    nanoseconds,
    parse,
    stamp_of,
)
from .types import TF as TF_TYPE

Float64 = NDArray[np.float64]

# Of each kind of anchor: type and topic, relative to the node. Clouds have x y z in metres, depth
# images are sparse and on the image's pixels.
SENSORS = {
    'scan': (SCAN, 'scan'), 'points': (POINT_CLOUD, 'anchor/points'),
    'depth': (IMAGE, 'anchor/depth')}
TF, TF_STATIC = '/tf', '/tf_static'
# Bodies have x forward, y left, z up; cameras z forward, x right, y down (REP-103).
BODY_TO_CAMERA = Transform(
    np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]), np.zeros(3))

MOST_MESSAGES = 16  # of the sensor, that wait for an image
MOST_TRANSFORMS = 5000  # messages, likewise: 400 Hz for longer than anything is looked up
LATE = 0.1  # seconds by which tf may be behind
# Seconds that a robot may move unnoticed: a sweep of a lidar of 10 Hz, stamped at its beginning
# and published at its end, and the time until the next one is there.
STILL = 0.25
MOST_APART = 0.5  # seconds between the stamps of an image and of what anchors it
MOST_SEEN = 10 * MOST_POINTS  # points of a cloud that are looked at; most are behind the camera
NEAREST = 0.05  # metres
FLOOR_HEIGHTS = 4.0  # times the camera's height, and so far away the floor is looked at
FLOOR_SHARE = 0.25  # of the places that may show floor; on the others something stands
FLOOR_GRID = 24, 32  # places in an image that may show floor
_NANOSECONDS = 10 ** 9


def needs_transforms(config: NodeConfig) -> bool:
    """Whether the anchor asks tf where things are."""
    return not (config.camera_height if config.anchor == GROUND else config.anchor_pose) \
        and config.anchor not in ('', 'depth')


# What the anchors of all cameras have in common --------------------------------------------------


class Sensors:
    """The sensor's messages, and tf."""

    def __init__(self, config: NodeConfig, topic: str, read: Read, kind: str = '') -> None:
        """Begin without a message.

        `topic` is '' where there is no sensor; `kind` is the type of its messages, '' for the
        anchor's own.
        """
        self._config, self.topic, self._read = config, topic, read
        self._kind = kind or SENSORS.get(config.anchor, ('', ''))[0]
        self._messages: deque[tuple[int, bytes]] = deque(maxlen=MOST_MESSAGES)
        self._transforms: deque[bytes] = deque(maxlen=MOST_TRANSFORMS)
        self._tree, self._lock = TransformTree(), threading.Lock()
        self._newest: tuple[tuple[int, bytes] | None, Any, Any] = None, None, None

    def on_message(self, raw: bytes) -> None:
        """Keep a message of the sensor."""
        stamp = stamp_of(raw)
        if stamp is not None:
            self._messages.append((stamp, raw))

    def on_transforms(self, raw: bytes) -> None:
        """Keep a message of /tf."""
        self._transforms.append(raw)

    def on_static(self, raw: bytes) -> None:
        """Read a message of /tf_static: there are few, and none comes again."""
        self._add(raw, static=True)

    def clear(self) -> None:
        """Forget what has a stamp, as when time jumps back."""
        self._transforms.clear()
        self._messages.clear()
        with self._lock:
            self._tree.clear()

    # What the worker calls -----------------------------------------------------------------

    def nearest(self, stamp: int) -> tuple[int, bytes]:
        """The message whose stamp is nearest to an image's; RangeError if none is near enough."""
        messages = self._messages.copy()
        if not messages:
            raise RangeError('no message', (
                f'nothing has come on {self.topic}. Check its publisher, or remap it.'))
        found = min(messages, key=lambda message: abs(message[0] - stamp))
        apart = (found[0] - stamp) / _NANOSECONDS
        if abs(apart) > MOST_APART:
            raise RangeError('stamps apart', (
                f'the stamp of the nearest message on {self.topic} is {apart:+.3g} s from that of '
                f'the image; at most {MOST_APART:g} s are bridged. Does its publisher still run, '
                'and on the same clock?'))
        return found

    def content_of(self, message: tuple[int, bytes]) -> tuple[Any, Any]:
        """Header and content: (N, 3) metres in the message's frame; of 'depth' (h, w) metres."""
        if self._newest[0] is not message:
            parsed = parse(self._read, message[1], self._kind, RangeError)
            content = scan_points(parsed) if self._kind == SCAN else \
                cloud_points(parsed, MOST_SEEN) if self._kind == POINT_CLOUD else \
                to_depth(parsed)
            self._newest = message, parsed.header, content
        return self._newest[1], self._newest[2]

    def transform(
        self, target: str, stamp: int, source: str, source_stamp: int,
    ) -> tuple[Transform, float]:
        """From where a sensor was at its time to a camera at its own, in nanoseconds.

        What the robot moved meanwhile counts, if tf knows a frame that it moves in (odom); if
        not, they may be STILL apart. The second value is the seconds that nobody knows it for.
        """
        if self._config.anchor_pose and self._config.anchor != GROUND:
            return _fixed_pose(self._config.anchor_pose), seconds_apart(stamp, source_stamp)
        with contextlib.suppress(IndexError):  # none is left; another thread may clear them, too
            while True:
                self._add(self._transforms.popleft(), static=False)
        with self._lock:
            return self._tree.lookup_between(
                target, stamp, source, source_stamp, LATE, STILL, self._config.odom_frame)

    def _add(self, raw: bytes, *, static: bool) -> None:
        with contextlib.suppress(RangeError), self._lock:  # others say where things are, too
            self._tree.add_message(parse(self._read, raw, TF_TYPE, RangeError), static=static)


# The anchor of one camera ------------------------------------------------------------------------


class Anchor:
    """The scale of one camera's depth, which rests on points of known depth.

    Attributes:
        filter: what follows it.
        conditions: images whose points could not be followed, by what was wrong.
        condition: of the last image that had points or should have; '' if they were followed.
        reason: the same in a sentence.

    """

    def __init__(self, sensors: Sensors, config: NodeConfig) -> None:
        """Begin with a scale of 1."""
        self.sensors, self._config = sensors, config
        # Where the floor is not seen something stands on it.
        ground = config.anchor == GROUND
        self.filter = ScaleFilter(
            config.anchor_timeout, lowest=FLOOR_SHARE if ground else 1.0,
            reach=0.0 if ground else config.anchor_reach)
        self.conditions: Counter[str] = Counter()
        self.reason = self.condition = ''
        self._used: tuple[int, bytes] | None = None

    def look(
        self, header: Any, model: CameraModel | None, size: Size,
        problem: CameraInfoError | None = None,
    ) -> Look:
        """Gather the points of an image; nothing changes by it.

        Whatever fails, there is depth: without points the scale is held. `problem` is why there is
        no model of the camera.
        """
        look = Look(self.filter, nanoseconds(header.stamp), self.filter.state)
        try:
            if model is None:
                raise problem or CameraInfoError('absent', 'there is no camera_info.')
            if self._config.anchor == GROUND:
                look.points = self._floor(header, look.stamp, model, size)
            else:
                look.message = self.sensors.nearest(look.stamp)
                look.is_new = look.message is not self._used
                look.points, look.age = self._points_of(
                    look.message, header, look.stamp, model, size)
        except Exception as error:  # noqa: BLE001 (depth does not depend on its anchor)
            look.error = error if look.is_new else None
        return look

    def take(self, look: Look) -> None:
        """Let what an image's points say come into force, once the image is answered."""
        state = self.filter.state = look.state
        error = look.error
        if error is None and look.points is not None and look.is_new:
            self._used, self.condition, self.reason = look.message, '', ''
            if state.condition:
                error = RangeError(state.condition, (
                    f'it has {state.points} points in the image. Check where the sensor is (tf, '
                    'anchor_pose), and that it sees what the camera sees.'))
        if error is not None:
            camera_info = 'camera_info: ' * isinstance(error, CameraInfoError)
            self.condition = camera_info + cause_of(error, 'anchor')
            self.reason = str(error)[:1000]
            self.conditions[self.condition] += 1

    def _points_of(
        self, message: tuple[int, bytes], header: Any, stamp: int, model: CameraModel, size: Size,
    ) -> tuple[Points, float]:
        """Where the points of a sensor's message are in an image, and their age in seconds."""
        other, content = self.sensors.content_of(message)
        if self._config.anchor == 'depth':
            age = seconds_apart(stamp, message[0])
            return _registered(other, header, content, size), age
        there, age = self.sensors.transform(header.frame_id, stamp, other.frame_id, message[0])
        return _project(there.apply(content), model, size), age

    def _floor(self, header: Any, stamp: int, model: CameraModel, size: Size) -> Points:
        """Points of the floor as the camera would see it if nothing stood on it."""
        height, base = self._config.camera_height, self._config.base_frame
        tilt = self._config.camera_pitch
        up = np.array([0.0, -math.cos(tilt), math.sin(tilt)])
        if not height:
            there, _ = self.sensors.transform(header.frame_id, stamp, base, stamp)
            up = there.rotation[:, 2]
            height = -float(up @ there.translation)
            if height < NEAREST:
                raise RangeError('below the floor', (
                    f'by tf the camera {quoted(header.frame_id)} is {height:.3g} m above '
                    f'{quoted(base)}: base_frame must lie on the floor, with z up; or set '
                    'camera_height and camera_pitch.'))
        rows, columns = ((np.arange(count) + 0.5) * length / count - 0.5
                         for count, length in zip(FLOOR_GRID, size, strict=True))
        u, v = (places.ravel() for places in np.meshgrid(columns, rows))
        down = -(model.rays(u, v).reshape(-1, 3) @ up)
        with np.errstate(divide='ignore'):
            z = np.where(down > 0.0, height / down, np.inf)
        seen = z < FLOOR_HEIGHTS * height  # farther away, the pitch would have to be exact
        return Points(u[seen], v[seen], z[seen])


@dataclass(eq=False)
class Look:
    """The points of one image, for what the estimator asks of its anchor."""

    filter: ScaleFilter
    stamp: int  # of the image, in nanoseconds
    state: State  # of the filter, after this image
    message: tuple[int, bytes] | None = None  # that the points are of; None of the floor
    points: Points | None = None
    age: float = 0.0  # seconds between points and image that nothing bridges
    # Of one message the points have their part in the scale once, and correct what is around them
    # in every image until the next.
    is_new: bool = True
    error: Exception | None = None  # why there are no points, or none could be weighed

    def adjust(
        self, patch_depth: NDArray[np.float32], patch_stddev: NDArray[np.float32] | None,
        image: Size, upsampling: str,
    ) -> Adjustment:
        """Weigh the points; what fails costs no depth."""
        try:
            adjustment, self.state = self.filter.adjust(
                self.stamp / _NANOSECONDS, self.points, patch_depth, patch_stddev, image,
                upsampling, are_new=self.is_new, age=self.age)
        except Exception as error:  # noqa: BLE001 (depth does not depend on its anchor)
            self.error = error
            return Adjustment(self.state.scale, self.state.inflation)
        return adjustment


def unusual_scale(anchor: str, state: State) -> str:
    """What is said of a scale that one does not expect."""
    return (f'anchor: {anchor} makes depth {state.scale:.3g} times what the words say '
            f'({state.agreement}): beyond {UNUSUAL_SCALE:g} times, or one over it, the '
            "sensor's unit or its place (tf, anchor_pose) is wrong, or the words are for another "
            'kind of place. Compare anchor scale in /diagnostics with what you can measure.')


@functools.cache
def _fixed_pose(text: str) -> Transform:
    """From the sensor's frame to the camera's, as `anchor_pose` says."""
    x, y, z, roll, pitch, yaw = parse_pose(text)
    turns = [rotation_matrix((*(math.sin(angle / 2) * np.eye(3)[axis]), math.cos(angle / 2)))
             for axis, angle in ((2, yaw), (1, pitch), (0, roll))]
    return BODY_TO_CAMERA @ Transform(turns[0] @ turns[1] @ turns[2], np.array([x, y, z]))


def seconds_apart(stamp: int, other: int) -> float:
    """Seconds in which nobody knows how the robot has moved.

    Raises:
        RangeError: 'stamps apart', too many.

    """
    apart = abs(stamp - other) / _NANOSECONDS
    if apart > STILL:
        raise RangeError(APART, (
            f'the stamps of message and image are {apart:.3g} s apart; where nothing says how the '
            f'robot moves meanwhile, at most {STILL:g} s are bridged.'))
    return apart


def _project(points: Float64, model: CameraModel, size: Size) -> Points:
    """Points in the camera's frame as places in its image."""
    height, width = size
    # Quickly: what may be seen at all. Then exactly, with the lens.
    x, y, z = points.T
    ahead = points[(z > NEAREST) & (np.abs(x) < 10 * z) & (np.abs(y) < 10 * z)]
    ahead = ahead[::max(1, -(-len(ahead) // (2 * MOST_POINTS)))]
    u, v = model.project(ahead).T
    with np.errstate(invalid='ignore'):
        inside = (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
    return Points(u[inside], v[inside], ahead[inside, 2])


def _registered(header: Any, image: Any, depth: NDArray[np.float32], size: Size) -> Points:
    """A depth image's pixels as places in the image that it is registered to."""
    if frame_name(header.frame_id) != frame_name(image.frame_id):
        raise RangeError('wrong frame', (
            f'the depth image is in frame {quoted(header.frame_id)}, the image in '
            f'{quoted(image.frame_id)}: it must be registered to the camera '
            '(depth_image_proc/register), and carry its frame_id.'))
    rows, columns = np.divmod(np.flatnonzero(depth > NEAREST), depth.shape[1])
    step = max(1, -(-len(rows) // MOST_POINTS))
    rows, columns = rows[::step], columns[::step]
    v, u = ((place + 0.5) * (length / count) - 0.5 for place, length, count in zip(
        (rows, columns), size, depth.shape, strict=True))
    return Points(u, v, depth[rows, columns].astype(np.float64))
