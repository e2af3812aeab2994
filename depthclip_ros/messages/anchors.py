# SPDX-License-Identifier: Apache-2.0
"""Anchors of the scale of depth: points of another sensor, or of the floor, in an image.

The callbacks only store messages, and parse /tf_static. The worker reads the message whose stamp
is nearest to the image in work. All cameras share the sensor; each camera has a scale of its own.
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
    MAX_POINTS,
    UNUSUAL_SCALE,
    Adjustment,
    Points,
    ScaleFilter,
    State,
)
from ..core.camera import CameraModel
from ..core.config import Size
from ..core.errors import CameraInfoError, SensorError, quoted
from ..core.tf_tree import APART, Transform, TransformTree, frame_name, rotation_matrix
from .depth import to_depth
from .message_types import (
    IMAGE,
    POINT_CLOUD,
    SCAN,
    Deserialize,
    cause_of,
    nanoseconds,
    parse_message,
    stamp_of,
)
from .message_types import TF as TF_TYPE
from .node_config import GROUND, NodeConfig, parse_pose
from .range_sensors import cloud_points, scan_points

Float64 = NDArray[np.float64]

# Message type and topic, relative to the node, of each kind of anchor. Clouds have x y z in
# metres; depth images may be sparse, and are registered to the image's pixels.
SENSORS = {
    'scan': (SCAN, 'scan'), 'points': (POINT_CLOUD, 'anchor/points'),
    'depth': (IMAGE, 'anchor/depth')}
TF, TF_STATIC = '/tf', '/tf_static'
# Bodies have x forward, y left, z up; cameras z forward, x right, y down (REP-103).
BODY_TO_CAMERA = Transform(
    np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]), np.zeros(3))

MAX_MESSAGES = 16  # of the sensor, that wait for an image
MAX_TRANSFORMS = 5000  # messages of /tf, likewise: 12 s at 400 Hz, longer than any lookup needs
MAX_TF_DELAY = 0.1  # seconds that tf may be behind an image
# Seconds of unknown motion of the robot: one sweep of a 10 Hz lidar, stamped at its beginning and
# published at its end, and the time until the next one.
MAX_UNKNOWN_MOTION = 0.25
MAX_STAMP_GAP = 0.5  # seconds between the stamps of an image and of its anchor's message
MAX_CLOUD_POINTS = 10 * MAX_POINTS  # that are read of a cloud; most are behind the camera
MIN_DEPTH = 0.05  # metres
MAX_FLOOR_DEPTH = 4.0  # of the floor's points, in heights of the camera
FLOOR_QUANTILE = 0.25  # of log(floor's depth / depth), below which points count: things are nearer
FLOOR_GRID = 24, 32  # rows and columns of the floor's points in an image
_NANOSECONDS = 10 ** 9


def needs_transforms(config: NodeConfig) -> bool:
    """Return whether the anchor needs poses from tf."""
    return not (config.camera_height if config.anchor == GROUND else config.anchor_pose) \
        and config.anchor not in ('', 'depth')


# The sensor, shared by all cameras ---------------------------------------------------------------


class AnchorSensor:
    """Messages of the anchor's sensor and of tf."""

    def __init__(self, config: NodeConfig, topic: str, deserialize: Deserialize,
                 message_type: str = '') -> None:
        """Create it without a message.

        `topic` is '' if there is no sensor, `message_type` '' for the usual one of the anchor.
        """
        self._config, self.topic, self._deserialize = config, topic, deserialize
        self._message_type = message_type or SENSORS.get(config.anchor, ('', ''))[0]
        self._messages: deque[tuple[int, bytes]] = deque(maxlen=MAX_MESSAGES)
        self._transforms: deque[bytes] = deque(maxlen=MAX_TRANSFORMS)
        self._tree, self._lock = TransformTree(), threading.Lock()
        self._content_cache: tuple[tuple[int, bytes] | None, Any, Any] = None, None, None

    def on_message(self, raw: bytes) -> None:
        """Store a message of the sensor."""
        stamp = stamp_of(raw)
        if stamp is not None:
            self._messages.append((stamp, raw))

    def on_transforms(self, raw: bytes) -> None:
        """Store a message of /tf."""
        self._transforms.append(raw)

    def on_static(self, raw: bytes) -> None:
        """Read a message of /tf_static at once: there are few, and each comes once."""
        self._add(raw, static=True)

    def clear(self) -> None:
        """Drop all messages and transforms that have a stamp, as after a jump back in time."""
        self._transforms.clear()
        self._messages.clear()
        with self._lock:
            self._tree.clear()

    # Called by the worker ------------------------------------------------------------------

    def nearest_message(self, stamp: int) -> tuple[int, bytes]:
        """Return the message nearest to an image's stamp, RangeError if beyond MAX_STAMP_GAP."""
        messages = self._messages.copy()
        if not messages:
            raise SensorError('no message', (
                f'nothing has come on {self.topic}. Check its publisher, or remap it.'))
        message = min(messages, key=lambda message: abs(message[0] - stamp))
        gap = (message[0] - stamp) / _NANOSECONDS
        if abs(gap) > MAX_STAMP_GAP:
            raise SensorError('stamps apart', (
                f'the stamp of the nearest message on {self.topic} is {gap:+.3g} s from that of '
                f'the image; at most {MAX_STAMP_GAP:g} s are bridged. Does its publisher still '
                'run, and on the same clock?'))
        return message

    def read_content(self, message: tuple[int, bytes]) -> tuple[Any, Any]:
        """Read header and (N, 3) points in metres in its frame; of 'depth' (h, w) metres."""
        if self._content_cache[0] is not message:
            parsed = parse_message(self._deserialize, message[1], self._message_type, SensorError)
            content = scan_points(parsed) if self._message_type == SCAN else \
                cloud_points(parsed, MAX_CLOUD_POINTS) if self._message_type == POINT_CLOUD else \
                to_depth(parsed)
            self._content_cache = message, parsed.header, content
        return self._content_cache[1], self._content_cache[2]

    def lookup(
        self, target: str, stamp: int, source: str, source_stamp: int,
    ) -> tuple[Transform, float]:
        """Look up the transform from the sensor at its stamp to the camera at its own (ns).

        Stored messages of /tf are read first; `anchor_pose` stands for tf. The transform includes
        the robot's motion between the stamps if tf has an odometry frame; if not, they may be
        MAX_UNKNOWN_MOTION apart. The second value is the seconds of unknown motion.
        """
        if self._config.anchor_pose and self._config.anchor != GROUND:
            return _pose_transform(self._config.anchor_pose), stamp_gap(stamp, source_stamp)
        with contextlib.suppress(IndexError):  # none is left; another thread may clear them
            while True:
                self._add(self._transforms.popleft(), static=False)
        with self._lock:
            return self._tree.lookup_between(target, stamp, source, source_stamp, MAX_TF_DELAY,
                                             MAX_UNKNOWN_MOTION, self._config.odom_frame)

    def _add(self, raw: bytes, *, static: bool) -> None:
        with contextlib.suppress(SensorError), self._lock:  # tf has other publishers, too
            message = parse_message(self._deserialize, raw, TF_TYPE, SensorError)
            self._tree.add_message(message, static=static)


# The anchor of one camera ------------------------------------------------------------------------


class Anchor:
    """The scale of one camera's depth, estimated from points of known depth.

    Attributes:
        filter: filter that estimates the scale.
        conditions: number of images whose points were not used, by condition.
        condition: condition of the last image that had or needed points; '' if they were used.
        reason: sentence about the condition.

    """

    def __init__(self, sensor: AnchorSensor, config: NodeConfig) -> None:
        """Start with a scale of 1."""
        self.sensor, self._config = sensor, config
        ground = config.anchor == GROUND
        self.filter = ScaleFilter(
            config.anchor_timeout, lowest=FLOOR_QUANTILE if ground else 1.0,
            reach=0.0 if ground else config.anchor_reach)
        self.conditions: Counter[str] = Counter()
        self.reason = self.condition = ''
        self._last_message: tuple[int, bytes] | None = None

    def observe(
        self, header: Any, model: CameraModel | None, size: Size,
        problem: CameraInfoError | None = None,
    ) -> Observation:
        """Collect the points of an image, without a change of state.

        An error costs no depth: without points the filter keeps its scale. `problem` is why there
        is no camera model.
        """
        observation = Observation(self.filter, nanoseconds(header.stamp), self.filter.state)
        try:
            if model is None:
                raise problem or CameraInfoError('absent', 'there is no camera_info.')
            if self._config.anchor == GROUND:
                observation.points = self._floor_points(header, observation.stamp, model, size)
            else:
                observation.message = self.sensor.nearest_message(observation.stamp)
                observation.is_new = observation.message is not self._last_message
                observation.points, observation.age = self._sensor_points(
                    observation.message, header, observation.stamp, model, size)
        except Exception as error:  # noqa: BLE001 (depth does not depend on its anchor)
            observation.error = error if observation.is_new else None
        return observation

    def commit(self, observation: Observation) -> None:
        """Store the filter's new state, and the condition, once the image is predicted."""
        state = self.filter.state = observation.state
        error = observation.error
        if error is None and observation.points is not None and observation.is_new:
            self._last_message, self.condition, self.reason = observation.message, '', ''
            if state.condition:
                error = SensorError(state.condition, (
                    f'it has {state.points} points in the image. Check where the sensor is (tf, '
                    'anchor_pose), and that it sees what the camera sees.'))
        if error is not None:
            camera_info = 'camera_info: ' * isinstance(error, CameraInfoError)
            self.condition = camera_info + cause_of(error, 'anchor')
            self.reason = str(error)[:1000]
            self.conditions[self.condition] += 1

    def _sensor_points(
        self, message: tuple[int, bytes], header: Any, stamp: int, model: CameraModel, size: Size,
    ) -> tuple[Points, float]:
        """Project a sensor message's points into an image; return also their age in seconds."""
        sensor_header, content = self.sensor.read_content(message)
        if self._config.anchor == 'depth':
            age = stamp_gap(stamp, message[0])
            return _registered_points(sensor_header, header, content, size), age
        source = sensor_header.frame_id
        transform, age = self.sensor.lookup(header.frame_id, stamp, source, message[0])
        return _project_points(transform.apply(content), model, size), age

    def _floor_points(self, header: Any, stamp: int, model: CameraModel, size: Size) -> Points:
        """Compute a grid of points of the floor as the camera sees it where nothing stands."""
        height, base = self._config.camera_height, self._config.base_frame
        tilt = self._config.camera_pitch
        up = np.array([0.0, -math.cos(tilt), math.sin(tilt)])
        if not height:
            transform, _ = self.sensor.lookup(header.frame_id, stamp, base, stamp)
            up = transform.rotation[:, 2]
            height = -float(up @ transform.translation)
            if height < MIN_DEPTH:
                raise SensorError('below the floor', (
                    f'by tf the camera {quoted(header.frame_id)} is {height:.3g} m above '
                    f'{quoted(base)}: base_frame must lie on the floor, with z up; or set '
                    'camera_height and camera_pitch.'))
        rows, columns = ((np.arange(count) + 0.5) * length / count - 0.5
                         for count, length in zip(FLOOR_GRID, size, strict=True))
        u, v = (coordinates.ravel() for coordinates in np.meshgrid(columns, rows))
        down = -(model.rays(u, v).reshape(-1, 3) @ up)
        with np.errstate(divide='ignore'):
            z = np.where(down > 0.0, height / down, np.inf)
        valid = z < MAX_FLOOR_DEPTH * height  # farther away, a small error of the pitch matters
        return Points(u[valid], v[valid], z[valid])


@dataclass(eq=False)
class Observation:
    """The anchor's points for one image; the estimator calls `adjust`."""

    filter: ScaleFilter
    stamp: int  # of the image, in nanoseconds
    state: State  # of the filter, after this image
    message: tuple[int, bytes] | None = None  # source of the points; None for the floor
    points: Points | None = None
    age: float = 0.0  # seconds of unknown motion between points and image
    # A message's points change the scale once, and correct the depth around them in every image
    # until the next message.
    is_new: bool = True
    error: Exception | None = None  # why there are no points, or none could be weighed

    def adjust(
        self, patch_depth: NDArray[np.float32], patch_stddev: NDArray[np.float32] | None,
        image: Size, upsampling: str,
    ) -> Adjustment:
        """Compute adjustment and next state (`commit` stores it); an error keeps the scale."""
        try:
            adjustment, self.state = self.filter.adjust(
                self.stamp / _NANOSECONDS, self.points, patch_depth, patch_stddev, image,
                upsampling, are_new=self.is_new, age=self.age)
        except Exception as error:  # noqa: BLE001 (depth does not depend on its anchor)
            self.error = error
            return Adjustment(self.state.scale, self.state.inflation)
        return adjustment


def unusual_scale(anchor: str, state: State) -> str:
    """Return the warning about a scale beyond UNUSUAL_SCALE."""
    return (f'anchor: {anchor} makes depth {state.scale:.3g} times what the words say '
            f'({state.agreement}): beyond {UNUSUAL_SCALE:g} times, or one over it, the '
            "sensor's unit or its place (tf, anchor_pose) is wrong, or the words are for another "
            'kind of place. Compare anchor scale in /diagnostics with what you can measure.')


@functools.cache
def _pose_transform(text: str) -> Transform:
    """Parse `anchor_pose` as the transform from the sensor's frame to the camera's."""
    x, y, z, roll, pitch, yaw = parse_pose(text)
    about_z, about_y, about_x = (
        rotation_matrix((*(math.sin(angle / 2) * np.eye(3)[axis]), math.cos(angle / 2)))
        for axis, angle in ((2, yaw), (1, pitch), (0, roll)))
    return BODY_TO_CAMERA @ Transform(about_z @ about_y @ about_x, np.array([x, y, z]))


def stamp_gap(stamp: int, sensor_stamp: int) -> float:
    """Return the seconds of unknown motion between two stamps.

    Raises:
        RangeError: 'stamps apart': more than MAX_UNKNOWN_MOTION.

    """
    gap = abs(stamp - sensor_stamp) / _NANOSECONDS
    if gap > MAX_UNKNOWN_MOTION:
        raise SensorError(APART, (
            f'the stamps of message and image are {gap:.3g} s apart; where nothing says how the '
            f'robot moves meanwhile, at most {MAX_UNKNOWN_MOTION:g} s are bridged.'))
    return gap


def _project_points(points: Float64, model: CameraModel, size: Size) -> Points:
    """Project points, in the camera's frame, into its image."""
    height, width = size
    # First a quick test of what may be in view, then the exact projection with the lens.
    x, y, z = points.T
    ahead = points[(z > MIN_DEPTH) & (np.abs(x) < 10 * z) & (np.abs(y) < 10 * z)]
    ahead = ahead[::max(1, -(-len(ahead) // (2 * MAX_POINTS)))]
    u, v = model.project(ahead).T
    with np.errstate(invalid='ignore'):
        inside = (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
    return Points(u[inside], v[inside], ahead[inside, 2])


def _registered_points(header: Any, image: Any, depth: NDArray[np.float32], size: Size) -> Points:
    """Scale the pixels of a registered depth image to the image."""
    if frame_name(header.frame_id) != frame_name(image.frame_id):
        raise SensorError('wrong frame', (
            f'the depth image is in frame {quoted(header.frame_id)}, the image in '
            f'{quoted(image.frame_id)}: it must be registered to the camera '
            '(depth_image_proc/register), and carry its frame_id.'))
    rows, columns = np.divmod(np.flatnonzero(depth > MIN_DEPTH), depth.shape[1])
    step = max(1, -(-len(rows) // MAX_POINTS))
    rows, columns = rows[::step], columns[::step]
    v, u = ((index + 0.5) * (length / count) - 0.5 for index, length, count in zip(
        (rows, columns), size, depth.shape, strict=True))
    return Points(u, v, depth[rows, columns].astype(np.float64))
