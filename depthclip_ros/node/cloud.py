# SPDX-License-Identifier: Apache-2.0
"""The coarse point cloud: one coloured point a patch, organised like the grid of patches."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from sensor_msgs.msg import PointCloud2, PointField

from .image_io import fill_data

try:
    from sensor_msgs_py.point_cloud2 import create_cloud
except ImportError:
    # Not in the PyPI wheels. Both take 0.1 ms for 13x17 patches and give the same bytes.
    create_cloud = None

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from std_msgs.msg import Header

# As PCL's PointXYZRGB and RViz want it: the colour is 0x00RRGGBB in the bits of a float32.
_POINT = np.dtype([('x', np.float32), ('y', np.float32), ('z', np.float32), ('rgb', np.float32)])


def patch_colors(rgb: NDArray[np.uint8], h: int, w: int) -> NDArray[np.uint8]:
    """Mean colour of every patch of an `h` x `w` grid: (H, W, 3) -> (h, w, 3)."""
    return np.asarray(cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA), np.uint8)


def patch_cloud(
    header: Header,
    rays: NDArray[np.float32],
    patch_depth: NDArray[np.float32],
    colors: NDArray[np.uint8],
) -> PointCloud2:
    """Make an organised cloud of points at `patch_depth` along `rays`.

    Args:
        header: Of the image; its frame is the optical frame that the rays are in.
        rays: (h, w, 3) with z = 1, NaN where a patch has none.
        patch_depth: (h, w) metres along the optical axis.
        colors: (h, w, 3) RGB.

    Returns:
        h x w points with the fields x, y, z, rgb. A patch without a ray, or whose depth is not a
        positive number, is a hole: its x, y, z are NaN, and the cloud is not dense.

    """
    h, w = patch_depth.shape
    xyz = np.asarray(rays * patch_depth[..., None], np.float32)
    known = np.isfinite(xyz).all(axis=-1) & (patch_depth > 0.0)
    xyz[~known] = np.nan
    red, green, blue = np.moveaxis(colors.astype(np.uint32), -1, 0)

    points = np.empty(h * w, _POINT)
    points['x'], points['y'], points['z'] = xyz.reshape(-1, 3).T
    points['rgb'] = (red << 16 | green << 8 | blue).reshape(-1).view(np.float32)

    cloud = (create_cloud or _fill_cloud)(header, _fields(), points)
    # sensor_msgs_py makes width and height of an organised cloud the wrong way round, and always
    # says that it is not dense.
    cloud.height, cloud.width = h, w
    cloud.row_step = w * _POINT.itemsize
    cloud.is_dense = bool(known.all())
    return cloud


def _fields() -> list[PointField]:
    return [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate(_POINT.names or ())
    ]


def _fill_cloud(header: Header, fields: list[PointField], points: NDArray[Any]) -> PointCloud2:
    """Do what sensor_msgs_py's create_cloud does, where that is not installed."""
    cloud = PointCloud2(
        header=header,
        height=1,
        width=len(points),
        fields=fields,
        is_bigendian=sys.byteorder == 'big',
        point_step=points.itemsize,
        row_step=points.nbytes,
    )
    fill_data(cloud, points)
    return cloud
