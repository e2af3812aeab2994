# SPDX-License-Identifier: Apache-2.0
"""What one camera's depth is told as: a function of an answered image for every topic.

The node calls them for the topics that somebody listens to, a converted bag for those that it is
to have. Neither rclpy nor `rosbags` is imported here: `make` makes the messages.
"""

from __future__ import annotations

import array
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import overlay
from ..color import UNTRAINED, bins_scale, colorize, write_note, write_warning
from ..core.camera import CameraModel
from ..core.opencv import cv2
from .frame import Answer
from .image_io import image_fields
from .types import CAMERA_INFO, IMAGE, POINT_CLOUD, Make

Float32 = NDArray[np.float32]

# Reliable, so that every subscriber can match (REP-2003), and shallow: old depth is worthless.
OUTPUT_DEPTH = 5

# As PCL's PointXYZRGB and RViz want it: the colour is 0x00RRGGBB in the bits of a float32. What is
# behind these four is left alone by who does not know it.
_POINT = [('xyz', np.float32, 3), ('rgb', np.uint32)]
_PLACES = np.array([1 << 16, 1 << 8, 1], np.uint32)  # of red, green and blue
_FLOAT32 = 7  # sensor_msgs/PointField


def _image(make: Make, answer: Answer, pixels: NDArray[Any], encoding: str = '32FC1') -> Any:
    return make(IMAGE, **image_fields(pixels, encoding, answer.frame.header))


def _depth(make: Make, answer: Answer) -> Any:
    """Depth along the optical axis.

    32FC1 in metres with NaN where there is none (and -Inf or +Inf out of range, if `out_of_range`
    says so: REP-117), or 16UC1 in millimetres with 0 for all of these (REP-118).
    """
    return _image(make, answer, answer.pixels[0], answer.frame.stream.config.depth_encoding)


def _camera_info(make: Make, answer: Answer) -> Any | None:
    """Of depth/image, whenever camera_info is usable."""
    if answer.frame.model is None:
        return None
    model, rectified = answer.frame.model, answer.frame.stream.config.rectified
    height, width = answer.prediction.depth.shape
    region = make('sensor_msgs/msg/RegionOfInterest', x_offset=0, y_offset=0, height=0, width=0,
                  do_rectify=False)
    return make(
        CAMERA_INFO, header=answer.frame.header, width=width, height=height,
        distortion_model=model.distortion_model or 'plumb_bob',
        d=model.D.tolist() if model.distortion_model else [0.0] * 5,
        k=model.K.ravel().tolist(), r=(np.eye(3) if rectified else model.R).ravel().tolist(),
        p=model.P.ravel().tolist(), binning_x=0, binning_y=0, roi=region)


def _points(make: Make, answer: Answer) -> Any | None:
    """Organised x y z rgb in metres, one point a patch; only while subscribed.

    Only where camera_info is usable; with a calibration also stddev, the standard deviation of z.
    """
    if answer.frame.model is None:
        return None
    prediction = answer.prediction
    h, w = prediction.patch_depth.shape
    return cloud_message(
        make, answer.frame.header, _rays(answer.frame.model, h, w), prediction.patch_depth,
        patch_colors(answer.frame.rgb, h, w), prediction.patch_stddev)


@functools.lru_cache(maxsize=16)
def _rays(model: CameraModel, h: int, w: int) -> Float32:
    return model.patch_rays(h, w)


def _color(make: Make, answer: Answer) -> Any:
    """Bright at the first bin to dark at the last, by the logarithm (bgr8), grey where unknown.

    A colour is the same depth for as long as bins and camera are; only while subscribed.
    """
    estimator = answer.estimator
    picture = colorize(answer.prediction.depth, bins_scale(
        estimator.config.depth_span, answer.prediction.focal_ratio))
    if not estimator.weights.trained:
        write_warning(picture, UNTRAINED)
    if estimator.label:
        write_note(picture, estimator.label)
    return _image(make, answer, picture, 'bgr8')


def _words(make: Make, answer: Answer) -> Any:
    """How much each word answers, painted on the image for a grid of patches (bgr8).

    With depth and its standard deviation in metres, and the scene; only while subscribed.
    """
    estimator = answer.estimator
    lines = [estimator.label] if estimator.label else []
    if answer.frame.stream.anchor is not None:
        lines.append(f'anchor: scale {answer.prediction.adjustment.scale:.3g}')
    picture = overlay.draw(answer.frame.rgb, answer.prediction, estimator.config, lines=lines,
                           warning='' if estimator.weights.trained else UNTRAINED)
    return _image(make, answer, picture, 'bgr8')


def _spread(make: Make, answer: Answer) -> Any:
    """Standard deviation of the bins in metres (32FC1), one pixel a patch.

    How undecided the words are, no error bar; only while subscribed.
    """
    return _image(make, answer, answer.prediction.spread)


def _stddev(make: Make, answer: Answer) -> Any | None:
    """Standard deviation of depth in metres (32FC1), of depth/image's size; large = unsure.

    NaN where depth is not finite; only with a calibration and while subscribed.
    """
    stddev = answer.prediction.stddev()
    return None if stddev is None else _image(make, answer, stddev)


# Relative topics, types of their messages, and what makes them (None: there is nothing to tell);
# the docstrings are the reference's.
OUTPUTS: dict[str, tuple[str, Callable[[Make, Answer], Any | None]]] = {
    'depth/image': (IMAGE, _depth), 'depth/camera_info': (CAMERA_INFO, _camera_info),
    'points': (POINT_CLOUD, _points), 'depth/image_color': (IMAGE, _color),
    'depth/words': (IMAGE, _words), 'depth/spread': (IMAGE, _spread),
    'depth/stddev': (IMAGE, _stddev)}


def cloud_message(
    make: Make, header: Any, rays: Float32, patch_depth: Float32, colors: NDArray[np.uint8],
    patch_stddev: Float32 | None = None,
) -> Any:
    """Put h x w points at `patch_depth` along `rays`, with the fields x, y, z, rgb.

    Args:
        make: makes the message.
        header: of the image, in whose frame the rays are.
        rays: (h, w, 3) with z = 1, NaN where a patch has none.
        patch_depth: (h, w) metres along the optical axis; where it is not a positive number, or
            there is no ray, the point is a hole of NaN.
        colors: (h, w, 3) RGB.
        patch_stddev: (h, w) metres, standard deviation of z, a field more. None if it is unknown:
            a field of NaN would be filtered as if every point were unsure.

    """
    h, w = patch_depth.shape
    names = ['x', 'y', 'z', 'rgb', *(['stddev'] if patch_stddev is not None else [])]
    points = np.empty((h, w), np.dtype(_POINT + [(name, np.float32) for name in names[4:]]))
    xyz = rays * patch_depth[..., None]
    known = np.isfinite(xyz).all(axis=-1) & (patch_depth > 0.0)
    points['xyz'] = np.where(known[..., None], xyz, np.float32(np.nan))
    points['rgb'] = colors @ _PLACES
    if patch_stddev is not None:
        points['stddev'] = np.where(known, patch_stddev, np.float32(np.nan))
    fields = [make('sensor_msgs/msg/PointField', name=name, offset=4 * place, datatype=_FLOAT32,
                   count=1) for place, name in enumerate(names)]
    return make(
        POINT_CLOUD, header=header, height=h, width=w, fields=fields,
        is_bigendian=sys.byteorder == 'big', point_step=points.itemsize,
        row_step=w * points.itemsize, data=array.array('B', points.tobytes()),
        is_dense=bool(known.all()))


def patch_colors(rgb: NDArray[np.uint8], h: int, w: int) -> NDArray[np.uint8]:
    """Mean colour of the image in each of the patches that tile it: (H, W, 3) -> (h, w, 3)."""
    return np.asarray(cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
