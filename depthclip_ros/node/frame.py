# SPDX-License-Identifier: Apache-2.0
"""From an image's message to its depth: what the node and a converted bag do alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.camera import focal_ratio
from ..core.errors import CameraInfoError, DataError, ImageError, quoted
from .image_io import to_rgb
from .messages import parse
from .outputs import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ..core.camera import CameraModel
    from ..core.config import DepthConfig
    from ..core.estimator import Anchor as Ask
    from ..core.estimator import DepthEstimator, DepthPrediction
    from ..core.words import Scene
    from .anchors import Anchor
    from .calibration import Calibration
    from .messages import Read


class Frame(NamedTuple):
    """A usable image.

    Attributes:
        header: of its message.
        rgb: (H, W, 3).
        camera: that took it; None where its camera_info is absent or unusable. Then it gets depth,
            but neither points nor depth/camera_info.
        intrinsics: the same where its focal length counts; None for the reason in `unknown`.
        unprojected: why there is no `camera`.
        unknown: why the focal length does not count, in a few words; '' where it does.

    """

    header: Any
    rgb: NDArray[np.uint8]
    camera: CameraModel | None = None
    intrinsics: CameraModel | None = None
    unprojected: CameraInfoError | None = None
    unknown: str = ''


def read_frame(
    read: Read, raw: bytes, kind: str, calibration: Calibration, config: DepthConfig,
    max_pixels: int,
) -> Frame:
    """Decode an image and find the camera that took it.

    Args:
        read: reads messages.
        raw: the message, serialised.
        kind: its type.
        calibration: of its camera, with the camera_info that counts.
        config: with which it will be answered.
        max_pixels: largest product of width and height that is decoded.

    Raises:
        ImageError: it cannot be used.

    """
    message = parse(read, raw, kind, ImageError)
    rgb = to_rgb(message, max_pixels)
    size = rgb.shape[0], rgb.shape[1]
    try:
        camera = calibration.select(size[1], size[0])
    except CameraInfoError as error:
        return Frame(message.header, rgb, unprojected=error,
                     unknown=f'camera_info: {error.condition}')
    try:
        focal_ratio(config.reference_focal, camera, size, config.input_size)
    except CameraInfoError as error:
        return Frame(message.header, rgb, camera, unknown=f'camera_info: {error.condition}')
    return Frame(message.header, rgb, camera, camera)


def ask_anchor(anchor: Anchor | None, frame: Frame) -> Ask | None:
    """What the estimator asks for the scale of an image's depth; whatever fails, there is depth.

    Why there is none is in the anchor's `condition` and `reason` afterwards.
    """
    if anchor is None:
        return None
    size = frame.rgb.shape[0], frame.rgb.shape[1]
    try:
        if frame.camera is not None:
            return anchor.adjuster(frame.header, frame.camera, size)
        error: DataError = frame.unprojected or CameraInfoError('absent', 'no camera_info.')
        condition, reason = f'camera_info: {error.condition}', str(error)
    except DataError as failure:
        condition, reason = failure.condition, str(failure)
    except Exception as failure:  # noqa: BLE001 (depth does not depend on its anchor)
        condition, reason = f'{type(failure).__name__} in anchor', quoted(str(failure))
    return anchor.without(frame.header, condition, reason)


def predict(
    estimator: DepthEstimator, frames: Sequence[Frame], resolution: str,
    anchors: Sequence[Anchor | None], scenes: Sequence[Scene | None],
) -> list[DepthPrediction]:
    """Depth of the images of several cameras, one of each, as one batch.

    Args:
        estimator: with the settings that count.
        frames: one of each camera.
        resolution: of depth, `depth_resolution` of the node: 'image' or 'network'.
        anchors: of the cameras' scales; None for none.
        scenes: of each camera's image before; `prediction.scene` is the next one.

    """
    config, size = estimator.config, None
    if resolution == 'network':
        size = config.input_height, config.input_width
    return estimator.predict(
        [frame.rgb for frame in frames], size, [frame.intrinsics for frame in frames],
        anchors=[ask_anchor(anchor, frame)
                 for anchor, frame in zip(anchors, frames, strict=True)],
        scenes=list(scenes))


def answer_to(
    frame: Frame, prediction: DepthPrediction, estimator: DepthEstimator, anchor: Anchor | None,
    encoding: str, calibration: Calibration | None = None,
) -> Answer:
    """What the messages of an image need, when it has been answered.

    Args:
        frame: the image.
        prediction: of it.
        estimator: that made it.
        anchor: of its camera; None for none.
        encoding: `depth_encoding` of the node.
        calibration: of the camera, after `select` for this image; None where there is none.

    """
    return Answer(
        frame.header, frame.rgb, prediction, estimator.config, calibration, encoding,
        estimator.weights.trained, estimator.label,
        None if anchor is None else anchor.filter.state)
