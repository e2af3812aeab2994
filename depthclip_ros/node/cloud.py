# SPDX-License-Identifier: Apache-2.0
"""The coarse point cloud: one coloured point a patch, organised like the grid of patches."""

from __future__ import annotations

import array
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.opencv import cv2
from .messages import POINT_CLOUD, POINT_FIELD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .messages import Make

    Float32 = NDArray[np.float32]

# As PCL's PointXYZRGB and RViz want it: the colour is 0x00RRGGBB in the bits of a float32. What is
# behind these four is left alone by who does not know it.
_POINT = [('xyz', np.float32, 3), ('rgb', np.uint32)]
_STDDEV = ('stddev', np.float32)
_PLACES = np.array([1 << 16, 1 << 8, 1], np.uint32)  # of red, green and blue
_FLOAT32 = 7  # sensor_msgs/PointField


def cloud_message(
    make: Make, header: Any, rays: Float32, patch_depth: Float32, colors: NDArray[np.uint8],
    patch_stddev: Float32 | None = None,
) -> Any:
    """Put points at `patch_depth` along `rays`.

    Args:
        make: makes the message.
        header: Of the image; its frame is the optical frame that the rays are in.
        rays: (h, w, 3) with z = 1, NaN where a patch has none.
        patch_depth: (h, w) metres along the optical axis.
        colors: (h, w, 3) RGB.
        patch_stddev: (h, w) metres, standard deviation of `patch_depth`: that of z, not of the
            distance. None if it is unknown: there is no such field then, since a field of NaN
            would be filtered as if every point were unsure.

    Returns:
        h x w points with the fields x, y, z, rgb and maybe stddev. A patch without a ray, or whose
        depth is not a positive number, is a hole: its x, y, z and stddev are NaN, and the cloud is
        not dense.

    """
    h, w = patch_depth.shape
    points = np.empty((h, w), np.dtype(_POINT if patch_stddev is None else [*_POINT, _STDDEV]))
    xyz = rays * patch_depth[..., None]
    known = np.isfinite(xyz).all(axis=-1) & (patch_depth > 0.0)
    points['xyz'] = np.where(known[..., None], xyz, np.float32(np.nan))
    points['rgb'] = colors @ _PLACES
    names = ['x', 'y', 'z', 'rgb']
    if patch_stddev is not None:
        points['stddev'] = np.where(known, patch_stddev, np.float32(np.nan))
        names.append('stddev')
    fields = [make(POINT_FIELD, name=name, offset=4 * place, datatype=_FLOAT32, count=1)
              for place, name in enumerate(names)]
    return make(
        POINT_CLOUD, header=header, height=h, width=w, fields=fields,
        is_bigendian=sys.byteorder == 'big', point_step=points.itemsize,
        row_step=w * points.itemsize, data=array.array('B', points.tobytes()),
        is_dense=bool(known.all()))


def patch_colors(rgb: NDArray[np.uint8], h: int, w: int) -> NDArray[np.uint8]:
    """Mean colour of the image in each of the patches that tile it: (H, W, 3) -> (h, w, 3)."""
    return np.asarray(cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
