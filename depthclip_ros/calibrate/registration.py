# SPDX-License-Identifier: Apache-2.0
"""Register depth to the pixels of an image: from the same view, another camera, or points."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..core.camera import CameraModel
from ..core.errors import CameraInfoError, ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]

#: Remedy for depth that is not on the image's pixels.
REGISTER = (
    'Record depth that is registered to the image (aligned_depth_to_color), or say which camera '
    'measured it: in a bag by its camera_info and /tf_static, in a folder by depth_camera.yaml, '
    'in either with --depth-camera FILE')
_ASPECT = 0.03  # difference of aspect ratios within one view: sizes are whole pixels
_GRID = 12, 16  # rows and columns at which two cameras are compared
_SAME_VIEW = 0.01  # largest distance of their pixels, in image widths


def is_registered(name: str) -> bool:
    """Whether the name of a topic or folder marks depth on the image's pixels."""
    return re.search('(?i)(?<!un)(aligned|regist)', name) is not None


@lru_cache(maxsize=1)
def same_view(depth: CameraModel | None, image: CameraModel | None) -> bool:
    """Whether two cameras in one place have the same view, at any resolution.

    The rays of the image's pixels must meet the same pixels of the depth image, distortion
    included. If a camera is None, the views are assumed to be the same.
    """
    if depth is None or image is None:
        return True
    u, v = image.centres(*_GRID)
    pixels = depth.scaled(image.width, image.height).project(image.rays(u, v))
    apart = np.abs(pixels - np.stack(np.broadcast_arrays(u, v), axis=-1)) / image.width
    return bool(np.isfinite(apart).any() and np.nanmax(apart) <= _SAME_VIEW)


def of_same_view(depth: Float32, height: int, width: int) -> Float32:
    """Resample depth of the same view to the size of an image.

    Raises:
        ImageError: 'aspect ratio': depth would have to be stretched.

    """
    image_ratio, depth_ratio = width / height, depth.shape[1] / depth.shape[0]
    if abs(math.log(depth_ratio / image_ratio)) <= _ASPECT:
        return resample(depth, height, width)
    turned = (depth_ratio - 1) * (image_ratio - 1) < 0
    raise ImageError('aspect ratio', (
        f'the image has {width}x{height} pixels (width over height {image_ratio:.3f}), its '
        f'depth {depth.shape[1]}x{depth.shape[0]} ({depth_ratio:.3f}): '
        + ('one of them lies on its side; turn it.' if turned else (
            f'they do not show the same view. {REGISTER}; or cut them to the same view.'))))


def resample(depth: Float32, height: int, width: int) -> Float32:
    """Resample depth of the same view to (height, width) by the nearest neighbour.

    A mean of two pixels would lie between an object and its background.
    """
    if depth.shape == (height, width):
        return depth
    rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * depth.shape[1] / width).astype(int)
    return np.asarray(depth[rows[:, None], columns[None, :]])


def downsample(depth: Float32, height: int, width: int) -> Float32:
    """Downsample depth: the nearest pixel; of sparse depth, the least depth in each cell."""
    valid = np.isfinite(depth)
    if valid.mean() > 0.3 or depth.shape[0] <= height or depth.shape[1] <= width:
        return resample(depth, height, width)
    rows, columns = np.nonzero(valid)
    return _nearest(rows * height // depth.shape[0], columns * width // depth.shape[1],
                    depth[rows, columns], height, width)


def rasterize(points: NDArray[np.float64], camera: CameraModel) -> Float32:
    """Project points to a depth image; a pixel keeps its nearest point.

    Args:
        points: (N, 3) metres in the camera's optical frame.
        camera: of the image.

    Returns:
        (H, W) float32 metres, NaN in pixels without a point.

    """
    columns, rows = np.rint(camera.project(points)).T
    inside = (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height)
    return _nearest(rows[inside].astype(np.intp), columns[inside].astype(np.intp),
                    points[inside, 2].astype(np.float32), camera.height, camera.width)


def _nearest(
    rows: NDArray[np.intp], columns: NDArray[np.intp], depth: Float32, height: int, width: int,
) -> Float32:
    """Return the least depth in every cell, (height, width), NaN in empty cells."""
    grid = np.full((height, width), np.inf, np.float32)
    np.minimum.at(grid, (rows, columns), depth)
    grid[np.isinf(grid)] = np.nan
    return grid


def unproject(depth: Float32, camera: CameraModel) -> NDArray[np.float64]:
    """Unproject a depth image to points (N, 3) in its camera's optical frame."""
    v, u = np.nonzero(np.isfinite(depth))
    points = camera.rays(u, v) * depth[v, u, None].astype(np.float64)
    return points[np.isfinite(points).all(axis=1)]


def check_size(camera: CameraModel | None, height: int, width: int, *, file: str) -> None:
    """Check that an image has the size of its camera; None passes.

    Args:
        camera: of the image.
        height: of the image, in pixels.
        width: of the image, in pixels.
        file: of the calibration; '' for a camera_info.

    Raises:
        CameraInfoError: the sizes differ ('size mismatch').

    """
    if camera is None or (width, height) == (camera.width, camera.height):
        return
    if not file:
        camera.check_size(width, height)
    raise CameraInfoError('size mismatch', (
        f'{file} is for images of {camera.width}x{camera.height} pixels, and they have '
        f'{width}x{height}. Give the calibration that belongs to them; where they were only '
        'resized, multiply the first two rows of its matrices by the ratio, and correct the size.'
    ))


def measured_points(
    depth: Float32, camera: CameraModel, source: str, notes: list[str],
) -> NDArray[np.float64]:
    """Unproject depth by its camera, scaled to the size at which the driver publishes depth.

    Args:
        depth: (H, W) metres, NaN where there is none.
        camera: of depth images.
        source: topic or file of the calibration, for messages.
        notes: receives one sentence if the camera is scaled.

    Returns:
        (N, 3) metres in the camera's optical frame.

    Raises:
        CameraInfoError: the aspect ratios differ ('size mismatch').

    """
    height, width = depth.shape
    if (width, height) == (camera.width, camera.height):
        return unproject(depth, camera)
    sizes = (f'{source} is for {camera.width}x{camera.height} pixels, the depth images have '
             f'{width}x{height}')
    if camera.width * height != camera.height * width:
        raise CameraInfoError('size mismatch', (
            f'{sizes}. Give the calibration that belongs to them.'))
    note = f'{sizes}: it is scaled to that. Let the driver do it.'
    if note not in notes:
        notes.append(note)
    return unproject(depth, camera.scaled(width, height))
