# SPDX-License-Identifier: Apache-2.0
"""What fixes the scale of depth: other sensors' messages, or the floor, as points in an image.

The callbacks only store. Messages are read by the worker, and only those whose stamps are nearest
to an image that is to be answered. Sensors are shared; each camera has a scale of its own.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.anchor import (
    CONTRADICTORY,
    FEW_POINTS,
    JUMP,
    LEAST_POINTS,
    MOST_POINTS,
    NO_POINTS,
    Adjustment,
    Points,
    ScaleFilter,
)
from ..core.errors import DataError, RangeError, quoted
from ..core.transforms import Transform, rotation_matrix
from .config import GROUND, parse_pose
from .image_io import to_depth
from .messages import IMAGE, POINT_CLOUD, RANGE, SCAN, parse, stamp_of
from .ranges import cloud_points, range_points, scan_points
from .tf import Frames, check_apart

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ..core.camera import CameraModel
    from ..core.config import Size
    from .config import NodeConfig
    from .messages import Read

    Float64 = NDArray[np.float64]

# Of each kind of anchor: type and topic, relative to the node.
SENSORS = {
    'scan': (SCAN, 'scan'), 'points': (POINT_CLOUD, 'anchor/points'),
    'range': (RANGE, 'range'), 'depth': (IMAGE, 'anchor/depth')}
# Bodies have x forward, y left, z up; cameras z forward, x right, y down (REP-103).
BODY_TO_CAMERA = Transform(
    np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]), np.zeros(3))

# What waits until an image is to be answered: bounded, whatever comes.
MOST_MESSAGES, MOST_BYTES = 16, 32 * 2**20
MOST_APART = 0.5  # seconds between the stamps of an image and of what anchors it
MOST_SEEN = 10 * MOST_POINTS  # points of a cloud that are looked at; most are behind the camera
NEAREST, FLOOR_HEIGHTS = 0.05, 4.0  # metres; so many heights of the camera away is the floor seen
FLOOR_SHARE = 0.25  # of the places that may show floor; on the others something stands
FLOOR_GRID = 24, 32  # places in an image that may show floor
_NANOSECONDS = 10 ** 9


def needs_transforms(config: NodeConfig) -> bool:
    """Whether the anchor asks tf where things are."""
    return (config.anchor in ('scan', 'points', 'range') and not config.anchor_pose) or (
        config.anchor == GROUND and not config.camera_height)


def fixed_pose(config: NodeConfig) -> Transform | None:
    """From the sensor's frame to the camera's, if the configuration tells."""
    if not config.anchor_pose:
        return None
    x, y, z, roll, pitch, yaw = parse_pose(config.anchor_pose)
    turns = [rotation_matrix((*(math.sin(angle / 2) * np.eye(3)[axis]), math.cos(angle / 2)))
             for axis, angle in ((2, yaw), (1, pitch), (0, roll))]
    return BODY_TO_CAMERA @ Transform(turns[0] @ turns[1] @ turns[2], np.array([x, y, z]))


class Message(NamedTuple):
    """A sensor's message as it came."""

    stamp: int  # nanoseconds
    raw: bytes


class Sensors(Frames):
    """What all cameras have in common: the sensor's messages, and tf."""

    def __init__(self, config: NodeConfig, topic: str, read: Read) -> None:
        """Begin without a message.

        Args:
            config: which anchor.
            topic: where the sensor's come from; '' where there is no sensor.
            read: reads messages.

        """
        self._config, self.topic = config, topic
        self._pose = fixed_pose(config)
        self.received = 0
        super().__init__(read)

    def begin(self) -> None:
        """Forget everything, as when messages begin to come."""
        super().begin()
        with self._lock:
            self._messages: deque[Message] = deque(maxlen=MOST_MESSAGES)
        self._content: tuple[Message | None, Any] = None, None

    def on_message(self, raw: bytes) -> None:
        """Keep a message of the sensor."""
        stamp = stamp_of(raw)
        with self._lock:
            self.received += 1
            if stamp is None or len(raw) > MOST_BYTES:
                self.refused['unreadable message' if stamp is None else 'too large'] += 1
                return
            self._messages.append(Message(stamp, raw))
            while sum(len(message.raw) for message in self._messages) > MOST_BYTES:
                self._messages.popleft()

    # What the worker calls -----------------------------------------------------------------

    def nearest(self, stamp: int) -> Message:
        """The message whose stamp is nearest to an image's.

        Raises:
            RangeError: 'no message', 'stamps apart', or why messages were refused.

        """
        with self._lock:
            messages, refused = list(self._messages), dict(self.refused)
        if not messages:
            if self.received and refused:
                raise RangeError(next(iter(refused)), (
                    f'of {self.received} messages on {self.topic} none can be kept: '
                    f'{quoted(refused)} (larger than {MOST_BYTES >> 20} MiB, or cut off). Make '
                    'them smaller, or check what publishes there.'))
            raise RangeError('no message', (
                f'nothing has come on {self.topic}. Check its publisher, or remap it.'))
        found = min(messages, key=lambda message: abs(message.stamp - stamp))
        apart = (found.stamp - stamp) / _NANOSECONDS
        if abs(apart) > MOST_APART:
            raise RangeError('stamps apart', (
                f'the nearest message on {self.topic} is {abs(apart):.3g} s '
                f'{"newer" if apart > 0 else "older"} than the image, by their stamps; at most '
                f'{MOST_APART:g} s are bridged. Does its publisher still run, and on the same '
                'clock?'))
        return found

    def content_of(self, message: Message) -> tuple[Any, Any]:
        """Header and content of a message: (N, 3) metres in its frame; of 'depth' (h, w) metres.

        Raises:
            DataError: it cannot be read or used.

        """
        if self._content[0] is not message:
            kind, _ = SENSORS[self._config.anchor]
            parsed = parse(self._read, message.raw, kind, RangeError)
            contents: dict[str, Callable[[Any], Any]] = {
                SCAN: scan_points, RANGE: range_points,
                POINT_CLOUD: lambda cloud: cloud_points(cloud, MOST_SEEN),
                IMAGE: lambda image: to_depth(image, self._config.max_pixels)}
            self._content = message, (parsed.header, contents[kind](parsed))
        header, content = self._content[1]
        return header, content

    def transform(self, target: str, stamp: int, source: str, source_stamp: int) -> Transform:
        """From a sensor's frame at its time to a camera's at another; see `Frames.between`.

        Raises:
            RangeError: 'no transform', 'stamps apart'.

        """
        if self._pose is None:
            return self.between(target, stamp, source, source_stamp)
        check_apart(stamp, source_stamp)
        return self._pose


class Anchor:
    """The scale of one camera's depth, which rests on points of known depth.

    Attributes:
        filter: what follows it.
        conditions: images whose points could not be followed, by what was wrong.
        condition: of the last image that had points or should have; '' if they were followed.
        reason: the same in a sentence.
        told: whether the log says that depth is anchored.

    """

    def __init__(self, sensors: Sensors, config: NodeConfig) -> None:
        """Begin with a scale of 1.

        Args:
            sensors: messages and tf.
            config: which anchor, and how long it may be silent.

        """
        self._sensors, self._config = sensors, config
        self._used: Message | None = None
        self._rays: tuple[CameraModel | None, Size, Float64] = None, (0, 0), np.empty((0, 3))
        self.conditions: Counter[str] = Counter()
        self.begin()

    def begin(self) -> None:
        """Forget everything, as when images begin to come."""
        kind = self._config.anchor
        self.filter = ScaleFilter(
            self._config.anchor_timeout, least=1 if kind == 'range' else LEAST_POINTS,
            lowest=FLOOR_SHARE if kind == GROUND else 1.0,
            # A beam is no place, and where the floor is not seen something stands on it.
            reach=0.0 if kind in ('range', GROUND) else self._config.anchor_reach)
        self._used = None
        self._first, self._last = math.inf, -math.inf  # steady time of images
        self.reason = self.condition = ''
        self.told = False

    def adjuster(
        self, header: Any, model: CameraModel, size: Size,
    ) -> Callable[..., Adjustment]:
        """What the estimator asks about one image; its points are gathered now.

        Args:
            header: of the image.
            model: the camera that took it.
            size: (height, width) of the image.

        Raises:
            DataError: there are no points; `without` gives what to ask then.

        """
        stamp = header.stamp.sec * _NANOSECONDS + header.stamp.nanosec
        if self._config.anchor == GROUND:
            return self._asked(stamp, self._floor(header, stamp, model, size))
        message = self._sensors.nearest(stamp)
        try:
            points = self._points_of(message, header, stamp, model, size)
        except DataError:
            if message is not self._used:
                raise
            return self._asked(stamp)  # it has had its say: the scale is held
        return self._asked(stamp, points, message)

    def _points_of(
        self, message: Message, header: Any, stamp: int, model: CameraModel, size: Size,
    ) -> Points:
        """Where the points of a sensor's message are in an image."""
        other, content = self._sensors.content_of(message)
        if self._config.anchor == 'depth':
            check_apart(stamp, message.stamp)
            return _pixels(other, header, content, size)
        there = self._sensors.transform(header.frame_id, stamp, other.frame_id, message.stamp)
        return _project(there.apply(content), model, size)

    def without(self, header: Any, condition: str, reason: str) -> Callable[..., Adjustment]:
        """What the estimator asks about an image that has no points, for a reason."""
        self._note(condition, reason)
        stamp = header.stamp.sec * _NANOSECONDS + header.stamp.nanosec
        return self._asked(stamp)

    def _asked(
        self, stamp: int, points: Points | None = None, message: Message | None = None,
    ) -> Callable[..., Adjustment]:
        """What follows the scale when the network has answered; only then a message is used."""
        def adjust(
            patch_depth: NDArray[np.float32], patch_stddev: NDArray[np.float32] | None,
            image: Size, upsampling: str,
        ) -> Adjustment:
            self._last = time.monotonic()
            self._first = min(self._first, self._last)
            try:
                # Of one message the points have their say once, and correct what is around them
                # in every image until the next.
                are_new = message is None or message is not self._used
                adjustment = self.filter.adjust(
                    stamp / _NANOSECONDS, points, patch_depth, patch_stddev, image, upsampling,
                    are_new=are_new)
            except Exception as error:  # noqa: BLE001 (depth does not depend on its anchor)
                state = self.filter.state
                self._note(f'{type(error).__name__} in anchor', quoted(str(error)))
                return Adjustment(state.scale, state.inflation)
            if points is not None and are_new:
                self._used = message
                self._judge()
            return adjustment
        return adjust

    def _judge(self) -> None:
        """Note whether the last image's points were followed."""
        state = self.filter.state
        sentences = {
            NO_POINTS: 'none of its points lies in the image.',
            FEW_POINTS: f'of its {state.points} points in the image too few agree.',
            CONTRADICTORY: f'its {state.points} points in the image contradict each other: only '
                           f'{100 * state.share:.0f} % agree.',
            JUMP: f'its {state.points} points in the image say another scale than before.'}
        if state.condition:
            self._note(state.condition, (
                f'{sentences[state.condition]} Check where the sensor is (tf, anchor_pose), '
                'and that it sees what the camera sees.'))
        else:
            self.reason = self.condition = ''

    @property
    def is_lost(self) -> bool:
        """Whether images are answered without an anchor, and for too long."""
        now = time.monotonic()
        return not self.filter.state.anchored and now - self._last < self._config.input_timeout \
            and now - self._first > self._config.anchor_timeout

    def values(self) -> dict[str, Any]:
        """For diagnostics."""
        state = self.filter.state
        return {
            'anchor': self._config.anchor, 'anchored': state.anchored,
            'anchor scale': f'{state.scale:.4f}',
            'anchor log variance': f'{state.variance:.5f}',
            'anchor inlier share [%]': 100 * state.share,
            'anchor points': state.points,
            'anchor surroundings [%]': 100 * state.around,
            'anchor inflation of stddev': state.inflation,
            **{f'not anchored: {k}': n for k, n in sorted(self.conditions.copy().items())},
            **{f'anchor refused: {k}': n for k, n in sorted(self._sensors.refused.copy().items())},
        }

    def _note(self, condition: str, reason: str) -> None:
        self.conditions[condition] += 1
        self.condition, self.reason = condition, reason

    def _floor(self, header: Any, stamp: int, model: CameraModel, size: Size) -> Points:
        """Points of the floor as the camera would see it if nothing stood on it."""
        if self._config.camera_height:
            tilt = self._config.camera_pitch
            up, height = np.array([0.0, -math.cos(tilt), math.sin(tilt)]), \
                self._config.camera_height
        else:
            there = self._sensors.between(
                header.frame_id, stamp, self._config.base_frame, stamp)
            up = there.rotation[:, 2]
            height = -float(up @ there.translation)
            if height < NEAREST:
                raise RangeError('below the floor', (
                    f'by tf the camera {quoted(header.frame_id)} is {height:.3g} m above '
                    f'{quoted(self._config.base_frame)}: base_frame must lie on the floor, with '
                    'z up; or set camera_height and camera_pitch.'))
        if self._rays[:2] != (model, size):
            rows, columns = FLOOR_GRID
            v, u = ((np.arange(count) + 0.5) * length / count - 0.5
                    for count, length in zip(FLOOR_GRID, size, strict=True))
            places = np.stack(np.broadcast_arrays(u[None, :], v[:, None]), axis=-1)
            rays = np.concatenate([places, model.rays(u[None, :], v[:, None])], axis=-1)
            self._rays = model, size, rays.reshape(rows * columns, 5)
        _, _, rays = self._rays
        down = -(rays[:, 2:] @ up)
        with np.errstate(divide='ignore'):
            z = np.where(down > 0.0, height / down, np.inf)
        seen = z < FLOOR_HEIGHTS * height  # farther away, the pitch would have to be exact
        return Points(rays[seen, 0], rays[seen, 1], z[seen])


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


def _pixels(
    header: Any, image: Any, depth: NDArray[np.float32], size: Size,
) -> Points:
    """A depth image's pixels as places in the image that it is registered to."""
    if header.frame_id != image.frame_id:
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
