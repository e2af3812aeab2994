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
from ..color import UNTRAINED, color_range, colorize, write_note, write_warning
from ..core.camera import CameraModel
from ..core.opencv import cv2
from .frame import Frame
from .image_io import depth_values, image_fields
from .messages import CAMERA_INFO, DIAGNOSTICS, IMAGE, POINT_CLOUD, VECTOR_STAMPED, Make

Float32 = NDArray[np.float32]

# Relative topics, and the types of their messages.
OUTPUTS = {
    'depth/image': IMAGE,
    'depth/camera_info': CAMERA_INFO,
    'points': POINT_CLOUD,
    'depth/image_color': IMAGE,
    'depth/words': IMAGE,
    'depth/spread': IMAGE,
    'depth/stddev': IMAGE,
    # With a header and a number for every name, and, unlike vision_msgs, everywhere.
    'scene': DIAGNOSTICS,
    'depth/scale': VECTOR_STAMPED,
}
# Reliable, so that every subscriber can match (REP-2003), and shallow: old depth is worthless.
OUTPUT_DEPTH = 5

# As PCL's PointXYZRGB and RViz want it: the colour is 0x00RRGGBB in the bits of a float32. What is
# behind these four is left alone by who does not know it.
_POINT = [('xyz', np.float32, 3), ('rgb', np.uint32)]
_PLACES = np.array([1 << 16, 1 << 8, 1], np.uint32)  # of red, green and blue
_FLOAT32 = 7  # sensor_msgs/PointField


def _image(make: Make, frame: Frame, pixels: NDArray[Any], encoding: str = '32FC1') -> Any:
    return make(IMAGE, **image_fields(pixels, encoding, frame.header))


def _depth(make: Make, frame: Frame) -> Any:
    """In metres or millimetres, as the encoding says (REP-118); notes what it cannot hold."""
    encoding = frame.stream.config.depth_encoding
    pixels, frame.beyond = depth_values(frame.prediction.depth, encoding)
    return _image(make, frame, pixels, encoding)


def _camera_info(make: Make, frame: Frame) -> Any | None:
    """Of the depth image: scaled, without binning; of rectified images the rectified camera's."""
    if frame.model is None:
        return None
    height, width = frame.prediction.depth.shape
    model, rectified = frame.model.scaled(width, height), frame.stream.config.rectified
    region = make('sensor_msgs/msg/RegionOfInterest', x_offset=0, y_offset=0, height=0, width=0,
                  do_rectify=False)
    return make(
        CAMERA_INFO, header=frame.header, width=width, height=height,
        distortion_model=model.distortion_model or 'plumb_bob',
        d=model.D.tolist() if model.distortion_model else [0.0] * 5,
        k=model.K.ravel().tolist(), r=(np.eye(3) if rectified else model.R).ravel().tolist(),
        p=model.P.ravel().tolist(), binning_x=0, binning_y=0, roi=region)


def _points(make: Make, frame: Frame) -> Any | None:
    if frame.model is None:
        return None
    prediction = frame.prediction
    h, w = prediction.patch_depth.shape
    return cloud_message(
        make, frame.header, _rays(frame.model, h, w), prediction.patch_depth,
        patch_colors(frame.rgb, h, w), prediction.patch_stddev)


@functools.lru_cache(maxsize=16)
def _rays(model: CameraModel, h: int, w: int) -> Float32:
    return model.patch_rays(h, w)


def _color(make: Make, frame: Frame) -> Any:
    estimator = frame.estimator
    picture = colorize(frame.prediction.depth, *color_range(estimator.config.depth_span))
    if not estimator.weights.trained:
        write_warning(picture, UNTRAINED)
    if estimator.label:
        write_note(picture, estimator.label)
    return _image(make, frame, picture, 'bgr8')


def _words(make: Make, frame: Frame) -> Any:
    estimator = frame.estimator
    lines = [estimator.label] if estimator.label else []
    if frame.scale is not None:
        lines.append(f'anchor: scale {frame.prediction.adjustment.scale:.3g}')
    picture = overlay.draw(frame.rgb, frame.prediction, estimator.config, lines=lines,
                           warning='' if estimator.weights.trained else UNTRAINED)
    return _image(make, frame, picture, 'bgr8')


def _spread(make: Make, frame: Frame) -> Any:
    return _image(make, frame, frame.prediction.spread)


def _stddev(make: Make, frame: Frame) -> Any | None:
    """In metres, whatever the encoding of depth/image; nobody knows it without a calibration."""
    stddev = frame.prediction.stddev()
    return None if stddev is None else _image(make, frame, stddev)


def _scene(make: Make, frame: Frame) -> Any | None:
    scene = frame.prediction.scene
    if scene is None:
        return None
    values = [make('diagnostic_msgs/msg/KeyValue', key=name, value=f'{probability:.3f}')
              for name, probability in zip(scene.names, scene.probabilities, strict=True)]
    status = make('diagnostic_msgs/msg/DiagnosticStatus', name='scene', message=scene.name,
                  values=values)
    return make(DIAGNOSTICS, header=frame.header, status=[status])


def _scale(make: Make, frame: Frame) -> Any | None:
    """Scale, variance of its logarithm, and share of the points that agree."""
    state = frame.scale
    if state is None:
        return None
    vector = make('geometry_msgs/msg/Vector3', x=state.scale, y=state.variance, z=state.share)
    return make(VECTOR_STAMPED, header=frame.header, vector=vector)


# What makes each topic's message; None: there is nothing to tell on it.
MESSAGES: dict[str, Callable[[Make, Frame], Any | None]] = {
    'depth/image': _depth, 'depth/camera_info': _camera_info, 'points': _points,
    'depth/image_color': _color, 'depth/words': _words, 'depth/spread': _spread,
    'depth/stddev': _stddev, 'scene': _scene, 'depth/scale': _scale,
}


def cloud_message(
    make: Make, header: Any, rays: Float32, patch_depth: Float32, colors: NDArray[np.uint8],
    patch_stddev: Float32 | None = None,
) -> Any:
    """Put points at `patch_depth` along `rays`.

    Args:
        make: makes the message.
        header: Of the image, in whose frame the rays are.
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
