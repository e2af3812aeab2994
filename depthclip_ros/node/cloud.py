# SPDX-License-Identifier: Apache-2.0
"""The coarse point cloud: one coloured point a patch, organised like the grid of patches."""

from __future__ import annotations

import array
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.opencv import cv2
from .messages import POINT_CLOUD, POINT_FIELD, Messages, of_rclpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..core.window import Window

# As PCL's PointXYZRGB and RViz want it: the colour is 0x00RRGGBB in the bits of a float32. What is
# behind these four is left alone by who does not know it.
_FIELDS = ('x', 'y', 'z', 'rgb')
_STDDEV = 'stddev'
_PLACES = np.array([1 << 16, 1 << 8, 1], np.uint32)  # of red, green and blue
_MOST_ROWS = 257  # of bytes whose sum 16 bits hold
_FLOAT32 = 7  # sensor_msgs/PointField


def patch_colors(rgb: NDArray[np.uint8], h: int, w: int, window: Window) -> NDArray[np.uint8]:
    """Mean colour of the image in every patch: (H, W, 3) -> (h, w, 3).

    Args:
        rgb: the image.
        h: number of patches from top to bottom of the window.
        w: number of patches from its left to its right.
        window: what they tile. It is cut out of the image in whole pixels, or reaches beyond it;
            patches without any image are black.

    """
    rows, columns = window.pixels(rgb.shape[:2])
    rgb = rgb[rows, columns]
    height, width = rgb.shape[:2]
    if (height, width) != (window.height, window.width):
        down, across = (_shares(*axis) for axis in (
            (h, window.y, window.height, height), (w, window.x, window.width, width)))
        lines = (down @ rgb.reshape(height, -1)).reshape(h, width, 3)
        return np.asarray(np.rint(across @ lines), np.uint8)
    tall, wide = height // h, width // w
    if (tall * h, wide * w) != (height, width) or tall > _MOST_ROWS:
        return np.asarray(cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
    # Whole pixels: twice as fast as cv2.resize, and as exact. Across, `sum` would go by threes.
    rows = rgb.reshape(h, tall, 3 * width).sum(axis=1, dtype=np.uint16)
    sums = np.add.reduceat(
        rows.reshape(-1, 3), np.arange(0, h * width, wide), dtype=np.uint32).reshape(h, w, 3)
    count = tall * wide
    means: NDArray[np.uint8] = ((sums + count // 2) // count).astype(np.uint8)
    return means


def _shares(
    patches: int, start: float, length: float, pixels: int,
) -> NDArray[np.float32]:
    """Share of every pixel in the mean of every patch, along one axis: (patches, pixels)."""
    edges = start + np.arange(patches + 1)[:, None] * (length / patches)
    pixel = np.arange(pixels)
    overlap = np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)
    overlap = np.maximum(overlap, 0.0)
    total = overlap.sum(axis=1, keepdims=True)
    return np.asarray(overlap / np.where(total > 0.0, total, 1.0), np.float32)


class PatchCloud:
    """An organised cloud of one point a patch, in a message that is filled again and again."""

    def __init__(self, messages: Messages | None = None) -> None:
        """Begin with none.

        Args:
            messages: what makes the message; None for rclpy.

        """
        self._messages = messages or of_rclpy()
        self._message: Any = None
        self._points = np.empty((0, 0, 0), np.float32)

    def fill(
        self,
        header: Any,
        rays: NDArray[np.float32],
        patch_depth: NDArray[np.float32],
        colors: NDArray[np.uint8],
        patch_stddev: NDArray[np.float32] | None = None,
    ) -> Any:
        """Put points at `patch_depth` along `rays`.

        Args:
            header: Of the image; its frame is the optical frame that the rays are in.
            rays: (h, w, 3) with z = 1, NaN where a patch has none.
            patch_depth: (h, w) metres along the optical axis.
            colors: (h, w, 3) RGB.
            patch_stddev: (h, w) metres, standard deviation of `patch_depth`: that of z, not of
                the distance. None if it is unknown: there is no such field then, since a field of
                NaN would be filtered as if every point were unsure.

        Returns:
            h x w points with the fields x, y, z, rgb and maybe stddev; the same message every
            time. A patch without a ray, or whose depth is not a positive number, is a hole: its
            x, y, z and stddev are NaN, and the cloud is not dense.

        """
        h, w = patch_depth.shape
        fields = _FIELDS if patch_stddev is None else (*_FIELDS, _STDDEV)
        points = self._points_of(header, h, w, fields)
        cloud = self._message
        xyz = points[..., :3]
        np.multiply(rays, patch_depth[..., None], out=xyz)
        known = np.isfinite(xyz).all(axis=-1) & (patch_depth > 0.0)
        dense = bool(known.all())
        if not dense:
            xyz[~known] = np.nan
        points.view(np.uint32)[..., 3] = colors @ _PLACES
        if patch_stddev is not None:
            points[..., 4] = np.where(known, patch_stddev, np.float32(np.nan))
        cloud.header = header
        cloud.is_dense = dense
        return cloud

    def _points_of(
        self, header: Any, h: int, w: int, fields: tuple[str, ...],
    ) -> NDArray[np.float32]:
        """(h, w, fields) view of the message's data."""
        if self._points.shape != (h, w, len(fields)):
            step = 4 * len(fields)
            self._message = self._messages.make(
                POINT_CLOUD, header=header, height=h, width=w,
                fields=[self._messages.make(
                    POINT_FIELD, name=name, offset=4 * i, datatype=_FLOAT32, count=1)
                    for i, name in enumerate(fields)],
                is_bigendian=sys.byteorder == 'big', point_step=step, row_step=w * step,
                data=array.array('B', bytes(h * w * step)), is_dense=True)
            self._points = np.frombuffer(self._message.data, np.float32).reshape(h, w, len(fields))
        return self._points
