# SPDX-License-Identifier: Apache-2.0
"""Messages of lidars and scanners to points. rclpy's messages and those of `rosbags` alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RangeError, quoted
from .image_io import data_of

Float64 = NDArray[np.float64]

FURTHEST = 1e6  # metres
WIDEST_BEAM = 0.5  # radians
_FLOATS = {7: 'f4', 8: 'f8'}  # of sensor_msgs/PointField, those that a coordinate can have


def cloud_points(msg: Any, most: int = 0) -> Float64:
    """Give the points of a `sensor_msgs/PointCloud2`.

    Args:
        msg: The message.
        most: Of more points every second, third, … is looked at; 0 for all.

    Returns:
        (N, 3) metres in the cloud's frame; those that are not finite are left out.

    Raises:
        RangeError: 'wrong fields', 'truncated data'.

    """
    width, height = int(msg.width), int(msg.height)
    step, row = int(msg.point_step), int(msg.row_step)
    order = '>' if msg.is_bigendian else '<'
    offsets: dict[str, tuple[str, int]] = {
        str(field.name): (f'{order}{_FLOATS[int(field.datatype)]}', int(field.offset))
        for field in msg.fields if int(field.datatype) in _FLOATS}
    missing = [name for name in 'xyz' if name not in offsets]
    if missing or any(offset + int(kind[2]) > step for kind, offset in offsets.values()):
        raise RangeError('wrong fields', (
            f'The cloud has fields {quoted([str(field.name) for field in msg.fields], 200)} in '
            f'points of {step} bytes; expected x, y and z as floating point within these. Check '
            "the lidar's driver."))
    data = data_of(msg)
    if row < width * step or data.size < height * row:
        raise RangeError('truncated data', (
            f'The cloud has {data.size} bytes, but {height} rows of {row} bytes with {width} '
            f"points of {step} bytes each are announced. Check the lidar's driver."))
    if not width * height:
        return np.empty((0, 3))
    kind = np.dtype({
        'names': list('xyz'), 'formats': [offsets[name][0] for name in 'xyz'],
        'offsets': [offsets[name][1] for name in 'xyz'], 'itemsize': step})
    cloud = np.ndarray((height, width), kind, data.data, strides=(row, step))
    if most and width * height > most:
        every = -(-width * height // most)
        cloud = cloud[np.divmod(np.arange(0, width * height, every), width)]
    return _finite(np.stack([cloud[name].ravel().astype(np.float64) for name in 'xyz'], axis=-1))


def scan_points(msg: Any) -> Float64:
    """Give the points of a `sensor_msgs/LaserScan`.

    Returns:
        (N, 3) metres in the scanner's frame, z = 0; ranges beyond range_min and range_max, NaN
        and infinite ones are left out.

    Raises:
        RangeError: 'wrong angles'.

    """
    start, step = float(msg.angle_min), float(msg.angle_increment)
    ranges = np.asarray(msg.ranges, np.float64)
    if not (np.isfinite(start) and np.isfinite(step) and step):
        raise RangeError('wrong angles', (
            f'The scan has angle_min {start} and angle_increment {step}; expected finite radians, '
            "the increment not 0. Check the scanner's driver."))
    angles = start + step * np.arange(ranges.size)
    seen = np.isfinite(ranges) & (ranges > 0) & (ranges >= msg.range_min)
    if msg.range_max > 0:
        seen &= ranges <= msg.range_max
    angles, ranges = angles[seen], ranges[seen]
    return _finite(np.stack(
        [ranges * np.cos(angles), ranges * np.sin(angles), np.zeros(ranges.size)], axis=-1))


def range_points(msg: Any) -> Float64:
    """Give the point that a `sensor_msgs/Range` measures, in the middle of its beam.

    Returns:
        (1, 3) metres in the sensor's frame, which looks along x; (0, 3) where it sees nothing
        within min_range and max_range.

    Raises:
        RangeError: 'wide beam'.

    """
    if not 0.0 <= msg.field_of_view <= WIDEST_BEAM:
        raise RangeError('wide beam', (
            f'The range has field_of_view {msg.field_of_view:.3g} radians; of a beam wider than '
            f'{WIDEST_BEAM:g} nobody knows where the echo comes from. Use a narrower sensor, or '
            'correct its driver.'))
    distance = float(msg.range)
    if not (0.0 < distance < FURTHEST and distance >= msg.min_range
            and (msg.max_range <= 0 or distance <= msg.max_range)):
        return np.empty((0, 3))
    return np.array([[distance, 0.0, 0.0]])


def _finite(points: Float64) -> Float64:
    return points[(np.abs(points) < FURTHEST).all(axis=1)]
