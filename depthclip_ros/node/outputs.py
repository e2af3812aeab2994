# SPDX-License-Identifier: Apache-2.0
"""What one camera's depth is told as: a function of the answer to an image for every topic.

The node calls them for the topics that somebody listens to, a converted bag for those that it is
to have. Neither rclpy nor `rosbags` is imported here: `make` makes the messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .. import overlay
from ..color import UNTRAINED, color_range, colorize, write_note, write_warning
from .cloud import cloud_message, patch_colors
from .image_io import depth_values, image_fields
from .messages import (
    CAMERA_INFO,
    DIAGNOSTICS,
    IMAGE,
    KEY_VALUE,
    POINT_CLOUD,
    REGION,
    STATUS,
    VECTOR,
    VECTOR_STAMPED,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from ..core.anchor import State
    from ..core.config import DepthConfig
    from ..core.estimator import DepthPrediction
    from .calibration import Calibration
    from .messages import Make

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


class Answer(NamedTuple):
    """The answer to one image, and what its messages need beside it.

    Attributes:
        header: of the image; every message has it.
        rgb: (H, W, 3), the image.
        prediction: of it.
        config: with which it was answered.
        calibration: of the camera, after `select` for this image; None where its camera_info is
            absent or unusable.
        encoding: of depth/image, 32FC1 or 16UC1.
        trained: whether the weights are trained, `estimator.weights.trained`.
        label: what calibrated depth has to say, `estimator.label`; '' for that of words alone.
        scale: of the anchor, after this image; None without one.

    """

    header: Any
    rgb: NDArray[np.uint8]
    prediction: DepthPrediction
    config: DepthConfig
    calibration: Calibration | None = None
    encoding: str = '32FC1'
    trained: bool = True
    label: str = ''
    scale: State | None = None


def depth_message(make: Make, answer: Answer) -> tuple[Any, int]:
    """Depth in metres or millimetres, as the encoding says (REP-118).

    Returns:
        The message, and the number of pixels whose depth the encoding cannot hold; they are
        invalid in it.

    """
    pixels, beyond = depth_values(answer.prediction.depth, answer.encoding)
    return make(IMAGE, **image_fields(pixels, answer.encoding, answer.header)), beyond


def _depth(make: Make, answer: Answer) -> Any:
    return depth_message(make, answer)[0]


def _camera_info(make: Make, answer: Answer) -> Any | None:
    if answer.calibration is None:
        return None
    height, width = answer.prediction.depth.shape
    region = make(REGION, x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return make(CAMERA_INFO, header=answer.header, roi=region,
                **answer.calibration.scaled_fields(width, height))


def _points(make: Make, answer: Answer) -> Any | None:
    if answer.calibration is None:
        return None
    prediction = answer.prediction
    h, w = prediction.patch_depth.shape
    return cloud_message(
        make, answer.header, answer.calibration.rays(h, w),
        prediction.patch_depth, patch_colors(answer.rgb, h, w),
        prediction.patch_stddev)


def _color(make: Make, answer: Answer) -> Any:
    picture = colorize(answer.prediction.depth, *color_range(answer.config.depth_span))
    if not answer.trained:
        write_warning(picture, UNTRAINED)
    if answer.label:
        write_note(picture, answer.label)
    return make(IMAGE, **image_fields(picture, 'bgr8', answer.header))


def _words(make: Make, answer: Answer) -> Any:
    lines = [answer.label] if answer.label else []
    if answer.scale is not None:
        lines.append(f'anchor: scale {answer.prediction.adjustment.scale:.3g}')
    picture = overlay.draw(answer.rgb, answer.prediction, answer.config, lines=lines,
                           warning='' if answer.trained else UNTRAINED)
    return make(IMAGE, **image_fields(picture, 'bgr8', answer.header))


def _spread(make: Make, answer: Answer) -> Any:
    return make(IMAGE, **image_fields(answer.prediction.spread, '32FC1', answer.header))


def _stddev(make: Make, answer: Answer) -> Any | None:
    """In metres, whatever the encoding of depth/image; nobody knows it without a calibration."""
    stddev = answer.prediction.stddev()
    return None if stddev is None else make(
        IMAGE, **image_fields(stddev, '32FC1', answer.header))


def _scene(make: Make, answer: Answer) -> Any | None:
    scene = answer.prediction.scene
    if scene is None:
        return None
    values = [make(KEY_VALUE, key=name, value=f'{probability:.3f}')
              for name, probability in zip(scene.names, scene.probabilities, strict=True)]
    status = make(STATUS, name='scene', message=scene.name, values=values)
    return make(DIAGNOSTICS, header=answer.header, status=[status])


def _scale(make: Make, answer: Answer) -> Any | None:
    """Scale, variance of its logarithm, and share of the points that agree."""
    state = answer.scale
    if state is None:
        return None
    vector = make(VECTOR, x=state.scale, y=state.variance, z=state.share)
    return make(VECTOR_STAMPED, header=answer.header, vector=vector)


# What makes each topic's message; None: there is nothing to tell on it.
MESSAGES: dict[str, Callable[[Make, Answer], Any | None]] = {
    'depth/image': _depth,
    'depth/camera_info': _camera_info,
    'points': _points,
    'depth/image_color': _color,
    'depth/words': _words,
    'depth/spread': _spread,
    'depth/stddev': _stddev,
    'scene': _scene,
    'depth/scale': _scale,
}
