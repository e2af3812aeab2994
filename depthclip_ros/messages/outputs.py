# SPDX-License-Identifier: Apache-2.0
"""Messages of every output topic, each made by a function of an image's depth.

The node calls the functions of topics that have subscribers, a converted bag those of the topics
that the user chose. This file imports neither rclpy nor `rosbags`: `create_message` is passed.
"""

from __future__ import annotations

import array
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.camera import CameraModel
from ..core.opencv import cv2
from ..drawing import overlay
from ..drawing.color import UNTRAINED, bins_scale, colorize, write_note, write_warning
from .camera_context import DepthResult
from .image_io import image_fields
from .message_types import CAMERA_INFO, IMAGE, POINT_CLOUD, CreateMessage

Float32 = NDArray[np.float32]

# Reliable, so that every subscriber can match (REP-2003), and shallow: old depth is worthless.
OUTPUT_QUEUE = 5

# PCL's PointXYZRGB, as RViz reads it: the colour is 0x00RRGGBB in the bits of a float32. Programs
# ignore further fields that they do not know.
_POINT_FIELDS = [('xyz', np.float32, 3), ('rgb', np.uint32)]
_RGB_FACTORS = np.array([1 << 16, 1 << 8, 1], np.uint32)  # of red, green and blue
_FLOAT32 = 7  # sensor_msgs/PointField


def _image(create_message: CreateMessage, result: DepthResult, pixels: NDArray[Any],
           encoding: str = '32FC1') -> Any:
    return create_message(IMAGE, **image_fields(pixels, encoding, result.image.header))


def _depth(create_message: CreateMessage, result: DepthResult) -> Any:
    """Depth along the optical axis.

    32FC1 in metres with NaN where there is none (and -Inf or +Inf out of range, if `out_of_range`
    says so: REP-117), or 16UC1 in millimetres with 0 for all of these (REP-118).
    """
    return _image(create_message, result, result.depth_pixels[0],
                  result.image.context.config.depth_encoding)


def _camera_info(create_message: CreateMessage, result: DepthResult) -> Any | None:
    """Camera_info of depth/image, whenever the image's own is usable."""
    if result.image.camera_model is None:
        return None
    model, rectified = result.image.camera_model, result.image.context.config.rectified
    height, width = result.prediction.depth.shape
    region = create_message('sensor_msgs/msg/RegionOfInterest', x_offset=0, y_offset=0, height=0,
                            width=0, do_rectify=False)
    return create_message(
        CAMERA_INFO, header=result.image.header, width=width, height=height,
        distortion_model=model.distortion_model or 'plumb_bob',
        d=model.D.tolist() if model.distortion_model else [0.0] * 5,
        k=model.K.ravel().tolist(), r=(np.eye(3) if rectified else model.R).ravel().tolist(),
        p=model.P.ravel().tolist(), binning_x=0, binning_y=0, roi=region)


def _points(create_message: CreateMessage, result: DepthResult) -> Any | None:
    """Organised cloud x y z rgb in metres, one point for each patch; only while subscribed.

    Only where camera_info is usable; with a calibration also stddev, the standard deviation of z.
    """
    frame, prediction = result.image, result.prediction
    if frame.camera_model is None:
        return None
    h, w = prediction.patch_depth.shape
    return cloud_message(
        create_message, frame.header, _rays(frame.camera_model, h, w), prediction.patch_depth,
        patch_colors(frame.rgb, h, w), prediction.patch_stddev)


@functools.lru_cache(maxsize=16)
def _rays(model: CameraModel, h: int, w: int) -> Float32:
    return model.patch_rays(h, w)


def _color(create_message: CreateMessage, result: DepthResult) -> Any:
    """Depth as colours, bright (first bin) to dark (last), logarithmic, grey where unknown (bgr8).

    A colour means the same depth as long as bins and camera are the same; only while subscribed.
    """
    estimator = result.estimator
    picture = colorize(result.prediction.depth, bins_scale(
        estimator.config.depth_span, result.prediction.focal_ratio))
    if not estimator.weights.trained:
        write_warning(picture, UNTRAINED)
    if estimator.label:
        write_note(picture, estimator.label)
    return _image(create_message, result, picture, 'bgr8')


def _words(create_message: CreateMessage, result: DepthResult) -> Any:
    """The words' weights, drawn on the image for a grid of patches (bgr8).

    With depth and its standard deviation in metres, and the scene; only while subscribed.
    """
    estimator = result.estimator
    lines = [estimator.label] if estimator.label else []
    if result.image.context.anchor is not None:
        lines.append(f'anchor: scale {result.prediction.adjustment.scale:.3g}')
    picture = overlay.draw(result.image.rgb, result.prediction, estimator.config, lines=lines,
                           warning='' if estimator.weights.trained else UNTRAINED)
    return _image(create_message, result, picture, 'bgr8')


def _spread(create_message: CreateMessage, result: DepthResult) -> Any:
    """Standard deviation of the bins by the words' weights, in metres (32FC1), a pixel a patch.

    It shows how undecided the words are, and is no error bar; only while subscribed.
    """
    return _image(create_message, result, result.prediction.spread)


def _stddev(create_message: CreateMessage, result: DepthResult) -> Any | None:
    """Standard deviation of depth's error, in metres (32FC1), of depth/image's size.

    NaN where depth is not finite; only with a calibration and while subscribed.
    """
    stddev = result.prediction.stddev()
    return None if stddev is None else _image(create_message, result, stddev)


# Message type and function of each relative topic (None: there is no message); the reference is
# made of the functions' docstrings.
OUTPUTS: dict[str, tuple[str, Callable[[CreateMessage, DepthResult], Any | None]]] = {
    'depth/image': (IMAGE, _depth), 'depth/camera_info': (CAMERA_INFO, _camera_info),
    'points': (POINT_CLOUD, _points), 'depth/image_color': (IMAGE, _color),
    'depth/words': (IMAGE, _words), 'depth/spread': (IMAGE, _spread),
    'depth/stddev': (IMAGE, _stddev)}


def cloud_message(
    create_message: CreateMessage, header: Any, rays: Float32, patch_depth: Float32,
    colors: NDArray[np.uint8], patch_stddev: Float32 | None = None,
) -> Any:
    """Create an organised cloud of h x w points `patch_depth * rays`, fields x, y, z, rgb.

    Args:
        create_message: creates a message from its type and fields.
        header: header of the image, in whose frame the rays are.
        rays: (h, w, 3) with z = 1, NaN where a patch has none.
        patch_depth: (h, w) metres along the optical axis; where it is not a positive number, or
            there is no ray, the point is NaN.
        colors: (h, w, 3) RGB.
        patch_stddev: (h, w) metres, standard deviation of z, as a further field stddev. None if
            it is unknown: a field of NaN would be filtered as if every point were uncertain.

    """
    h, w = patch_depth.shape
    names = ['x', 'y', 'z', 'rgb', *(['stddev'] if patch_stddev is not None else [])]
    points = np.empty((h, w), np.dtype(_POINT_FIELDS + [(name, np.float32) for name in names[4:]]))
    xyz = rays * patch_depth[..., None]
    valid = np.isfinite(xyz).all(axis=-1) & (patch_depth > 0.0)
    points['xyz'] = np.where(valid[..., None], xyz, np.float32(np.nan))
    points['rgb'] = colors @ _RGB_FACTORS
    if patch_stddev is not None:
        points['stddev'] = np.where(valid, patch_stddev, np.float32(np.nan))
    fields = [create_message('sensor_msgs/msg/PointField', name=name, offset=4 * index,
                             datatype=_FLOAT32, count=1) for index, name in enumerate(names)]
    return create_message(
        POINT_CLOUD, header=header, height=h, width=w, fields=fields,
        is_bigendian=sys.byteorder == 'big', point_step=points.itemsize,
        row_step=w * points.itemsize, data=array.array('B', points.tobytes()),
        is_dense=bool(valid.all()))


def patch_colors(rgb: NDArray[np.uint8], h: int, w: int) -> NDArray[np.uint8]:
    """Average the image's colour over each of its patches: (H, W, 3) -> (h, w, 3)."""
    return np.asarray(cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
