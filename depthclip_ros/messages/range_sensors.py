# SPDX-License-Identifier: Apache-2.0
"""Measured points of clouds and laser scans, in messages of rclpy and of `rosbags`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import SensorError, quoted
from .image_io import data_of

Float64 = NDArray[np.float64]

# Lidar drivers encode a beam without a return as a point in the sensor's origin.
MIN_DISTANCE, MAX_COORDINATE = 0.01, 1e6  # metres from the origin
# Some scanners give range_max, or a little less, where nothing returned (REP-117 wants +Inf).
_MAX_MARGIN = 0.005  # metres
_UNIT_FACTOR = 1.5  # shortest range, in range_max, from which on the unit must be wrong
_FLOATS = {7: 'f4', 8: 'f8'}  # floating-point datatypes of sensor_msgs/PointField


def cloud_points(msg: Any, limit: int = 0) -> Float64:
    """Extract the measured points of a `sensor_msgs/PointCloud2`: (N, 3) metres in its frame.

    Points that are not finite, or within `MIN_DISTANCE` of the frame's origin, are no
    measurements. `row_step` is used only if there are several rows and the amount of data agrees
    with it: many drivers set it to 0, or to the size of all data.

    Args:
        msg: message of rclpy or of `rosbags`.
        limit: greatest number of points, of which every second, third, … is taken; 0: all.

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
        dtype = np.dtype({
            'names': list('xyz'), 'itemsize': step,
            'formats': [order + _FLOATS[int(fields[name].datatype)] for name in 'xyz'],
            'offsets': [int(fields[name].offset) for name in 'xyz']})
    except (KeyError, TypeError, ValueError) as error:
        datatypes = {name: int(field.datatype) for name, field in fields.items()}
        raise _wrong_layout(msg, data.size, (
            f'does not have x, y and z as floating point within {step} bytes; its fields and '
            f'their datatypes are {quoted(datatypes)}')) from error
    if row < dense or data.size < (height - 1) * row + dense:
        raise _wrong_layout(msg, data.size, (
            f'needs {height} rows of {dense} bytes; row_step is {row}'))
    cloud = np.ndarray((height, width), dtype, data.data, strides=(row, step))
    if limit and width * height > limit:
        stride = -(-width * height // limit)
        cloud = cloud[np.divmod(np.arange(0, width * height, stride), width)]
    return _valid_points(*(cloud[name].ravel().astype(np.float64) for name in 'xyz'))


def scan_points(msg: Any) -> Float64:
    """Extract the points of a `sensor_msgs/LaserScan`: (N, 3) metres in its frame, z = 0.

    Ranges that are not finite, below range_min, or at range_max and beyond are no measurements
    (REP-117). A limit of 0 or NaN, which the driver did not set, is ignored.

    Raises:
        RangeError: 'wrong angles', 'beyond range_max'.

    """
    ranges = np.asarray(msg.ranges, np.float64)
    angles = _angles(msg, ranges.size)
    valid = np.isfinite(ranges) & (ranges > 0) & ~(ranges < msg.range_min)
    if msg.range_max > 0:
        shortest = np.min(ranges, where=valid, initial=np.inf)
        if valid.any() and shortest > _UNIT_FACTOR * msg.range_max:
            raise SensorError('beyond range_max', (
                f'All ranges of the scan are beyond range_max: {shortest:.4g} m and more, of '
                f"{msg.range_max:.4g} m. Are they millimetres? Check the scanner's driver."))
        valid &= ranges < msg.range_max - _MAX_MARGIN
    angles, ranges = angles[valid], ranges[valid]
    return _valid_points(ranges * np.cos(angles), ranges * np.sin(angles), 0 * ranges)


def _angles(msg: Any, count: int) -> Float64:
    """Compute the angles of a scan's beams in radians; angle_max must agree with the others.

    It may differ for a full circle, which may go either way round, and if a driver leaves it at 0.
    """
    start, end, step = (float(v) for v in (msg.angle_min, msg.angle_max, msg.angle_increment))
    sweep = step * (count - 1)
    if not (np.isfinite(start) and np.isfinite(step) and step) or not (
            end == 0 or abs(start + sweep - end) <= max(2 * abs(step), 0.1 * abs(sweep))
            or abs(sweep) >= 2 * np.pi - 2 * abs(step) or count < 2):
        raise SensorError('wrong angles', (
            f'The scan has angle_min {start:.4g}, angle_max {end:.4g} and {count} beams with an '
            f'angle_increment of {step:.4g}; expected finite radians, the increment not 0, that '
            "agree with each other. Check the scanner's driver."))
    return start + step * np.arange(count, dtype=np.float64)


def _valid_points(*coordinates: Float64) -> Float64:
    """Stack coordinates to (N, 3), without points that are no measurements."""
    points = np.stack(coordinates, axis=-1)
    with np.errstate(invalid='ignore', over='ignore'):
        far = np.abs(points).max(axis=1)
        near = np.linalg.norm(points, axis=1)
    valid_points: Float64 = points[(far < MAX_COORDINATE) & (near >= MIN_DISTANCE)]
    return valid_points


def _wrong_layout(msg: Any, size: int, problem: str) -> SensorError:
    return SensorError('wrong layout', (
        f'The cloud, {msg.width}x{msg.height} points of {msg.point_step} bytes in {size} bytes of '
        f"data, {problem}. Check the lidar's driver."))
