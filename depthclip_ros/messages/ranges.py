# SPDX-License-Identifier: Apache-2.0
"""Points that clouds and laser scans have measured, of rclpy's messages and those of `rosbags`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RangeError, quoted
from .image_io import data_of

Float64 = NDArray[np.float64]

# Drivers of lidars tell a beam without a return by a point in the sensor's own origin, where it
# can see nothing.
NEAREST, FURTHEST = 0.01, 1e6  # metres from there
# A scanner says range_max where nothing returned (REP-117 wants +Inf), some say a little less.
_SHORT_OF_MAX = 0.005  # metres
_FAR_BEYOND = 1.5  # times range_max, of ranges that are in another unit
_FLOATS = {7: 'f4', 8: 'f8'}  # of sensor_msgs/PointField, those that a coordinate can have


def cloud_points(msg: Any, most: int = 0) -> Float64:
    """Give the measured points of a `sensor_msgs/PointCloud2`: (N, 3) metres in its frame.

    Points that are not finite, or within `NEAREST` of the frame's origin, are no measurements.
    `row_step` counts only where there are several rows, and the amount of data agrees with it;
    many drivers leave it at 0, or have the size of all data there.

    Args:
        msg: of rclpy or of `rosbags`.
        most: of more points than that every second, third, … counts; 0: all.

    Raises:
        RangeError: 'wrong layout'.

    """
    width, height = int(msg.width), int(msg.height)
    step, row, data = int(msg.point_step), int(msg.row_step), data_of(msg)
    if not width * height:
        return np.empty((0, 3))
    dense = width * step
    if height == 1 or data.size == height * dense:
        row = dense
    fields = {str(field.name): field for field in msg.fields}
    order = '>' if msg.is_bigendian else '<'
    try:
        kind = np.dtype({
            'names': list('xyz'), 'itemsize': step,
            'formats': [order + _FLOATS[int(fields[name].datatype)] for name in 'xyz'],
            'offsets': [int(fields[name].offset) for name in 'xyz']})
    except (KeyError, TypeError, ValueError) as error:
        there = {name: int(field.datatype) for name, field in fields.items()}
        raise _wrong_layout(msg, data.size, (
            f'does not have x, y and z as floating point within {step} bytes; its fields and '
            f'their datatypes are {quoted(there)}')) from error
    if row < dense or data.size < (height - 1) * row + dense:
        raise _wrong_layout(msg, data.size, (
            f'needs {height} rows of {dense} bytes; row_step is {row}'))
    cloud = np.ndarray((height, width), kind, data.data, strides=(row, step))
    if most and width * height > most:
        every = -(-width * height // most)
        cloud = cloud[np.divmod(np.arange(0, width * height, every), width)]
    return _measured(*(cloud[name].ravel().astype(np.float64) for name in 'xyz'))


def scan_points(msg: Any) -> Float64:
    """Give the points of a `sensor_msgs/LaserScan`: (N, 3) metres in its frame, z = 0.

    Ranges that are not finite, below range_min, or at range_max and beyond are no measurements
    (REP-117). A limit that its driver has not filled in (0, or NaN) is none.

    Raises:
        RangeError: 'wrong angles', 'beyond range_max'.

    """
    ranges = np.asarray(msg.ranges, np.float64)
    angles = _angles(msg, ranges.size)
    measured = np.isfinite(ranges) & (ranges > 0) & ~(ranges < msg.range_min)
    if msg.range_max > 0:
        least = np.min(ranges, where=measured, initial=np.inf)
        if measured.any() and least > _FAR_BEYOND * msg.range_max:
            raise RangeError('beyond range_max', (
                f'All ranges of the scan are beyond range_max: {least:.4g} m and more, of '
                f"{msg.range_max:.4g} m. Are they millimetres? Check the scanner's driver."))
        measured &= ranges < msg.range_max - _SHORT_OF_MAX
    angles, ranges = angles[measured], ranges[measured]
    return _measured(ranges * np.cos(angles), ranges * np.sin(angles), 0 * ranges)


def _angles(msg: Any, count: int) -> Float64:
    """Radians of a scan's beams. Where angle_max contradicts the others, who knows which is right.

    A full circle may go either way round; and some drivers leave angle_max at 0.
    """
    start, end, step = (float(v) for v in (msg.angle_min, msg.angle_max, msg.angle_increment))
    sweep = step * (count - 1)
    if not (np.isfinite(start) and np.isfinite(step) and step) or not (
            end == 0 or abs(start + sweep - end) <= max(2 * abs(step), 0.1 * abs(sweep))
            or abs(sweep) >= 2 * np.pi - 2 * abs(step) or count < 2):
        raise RangeError('wrong angles', (
            f'The scan has angle_min {start:.4g}, angle_max {end:.4g} and {count} beams with an '
            f'angle_increment of {step:.4g}; expected finite radians, the increment not 0, that '
            "agree with each other. Check the scanner's driver."))
    return start + step * np.arange(count, dtype=np.float64)


def _measured(*coordinates: Float64) -> Float64:
    """(N, 3) without what is no measurement."""
    points = np.stack(coordinates, axis=-1)
    with np.errstate(invalid='ignore', over='ignore'):
        far = np.abs(points).max(axis=1)
        near = np.linalg.norm(points, axis=1)
    measured: Float64 = points[(far < FURTHEST) & (near >= NEAREST)]
    return measured


def _wrong_layout(msg: Any, size: int, problem: str) -> RangeError:
    return RangeError('wrong layout', (
        f'The cloud, {msg.width}x{msg.height} points of {msg.point_step} bytes in {size} bytes of '
        f"data, {problem}. Check the lidar's driver."))
