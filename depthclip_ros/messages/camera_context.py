# SPDX-License-Identifier: Apache-2.0
"""From an image's message to its depth, for the node and for converted bags."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.camera import CameraModel, Notice, focal_ratio
from ..core.camera_image import CameraImage
from ..core.config import DepthConfig
from ..core.errors import CameraInfoError, ImageError
from .anchors import Anchor, AnchorSensor
from .depth import depth_values
from .image_io import to_rgb
from .message_types import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, Deserialize, parse_message
from .node_config import NodeConfig

if TYPE_CHECKING:  # torch takes seconds to import
    from ..core.estimator import DepthEstimator
    from ..core.prediction import DepthPrediction
    from ..core.scenes import Scene

_STAMP_END = 12  # bytes of a serialised message to the end of its stamp


class CameraContext:
    """State of one camera that its images share.

    Attributes:
        camera_info: the newest one, serialised until an image needs it; None before the first.
        anchor: anchor of the scale of depth, or None.
        scene: scene of the image that was predicted last.

    """

    def __init__(self, deserialize: Deserialize, config: NodeConfig,
                 sensor: AnchorSensor | None = None, image_type: str = '') -> None:
        """Create the state without a camera_info.

        `sensor` is that of the anchor, shared by all cameras; `image_type` is the message type
        of the images, '' for the one of `image_transport`.
        """
        self.config, self._deserialize = config, deserialize
        self.image_type = image_type or (
            COMPRESSED_IMAGE if config.image_transport == 'compressed' else IMAGE)
        self.camera_info: bytes | None = None
        self.anchor = None if sensor is None else Anchor(sensor, config)
        self.scene: Scene | None = None
        self._model_cache: tuple[bytes, CameraModel] | None = None

    def on_camera_info(self, raw: bytes) -> None:
        """Store a serialised camera_info."""
        self.camera_info = raw

    def camera_model(self, width: int, height: int) -> CameraModel:
        """Return the model of the camera that took an image of this size, cached by content.

        Raises:
            CameraInfoError: there is no camera_info, it is unusable, or it is for another size.

        """
        raw = self.camera_info  # one read: another thread replaces it
        if raw is None:
            raise CameraInfoError(
                'absent', 'no camera_info has arrived: points and depth/camera_info are not '
                'published, and the focal length does not count.')
        content = raw[_STAMP_END:]
        if self._model_cache is None or self._model_cache[0] != content:
            self._model_cache = None
            message = parse_message(self._deserialize, raw, CAMERA_INFO, CameraInfoError)
            self._model_cache = content, CameraModel.from_info(message, self.config.rectified)
        model = self._model_cache[1]
        model.check_size(width, height)
        return model

    def decode(self, raw: bytes, config: DepthConfig) -> DecodedImage:
        """Decode an image that is to be predicted with `config`, and add its camera's model.

        Raises:
            ImageError: it cannot be used.

        """
        message = parse_message(self._deserialize, raw, self.image_type, ImageError)
        rgb, model, problem = to_rgb(message), None, None
        height, width = rgb.shape[:2]
        try:
            model = self.camera_model(width, height)
            # Raises here, where the error belongs to one image, what would fail a batch.
            focal_ratio(config.reference_focal, model, (height, width), config.input_size)
        except CameraInfoError as error:
            problem = error
        return DecodedImage(self, message.header, rgb, model, problem)


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One decoded image, and the model of the camera that took it."""

    context: CameraContext
    header: Any  # of its message, and of every output
    rgb: NDArray[np.uint8]  # (H, W, 3)
    # None where camera_info is absent or unusable: then there is depth, but neither points nor
    # depth/camera_info.
    camera_model: CameraModel | None = None
    # Why there is no model, or why its focal length is not applied.
    camera_problem: CameraInfoError | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Peculiarities of a camera_info that is used all the same."""
        return () if self.camera_model is None else self.camera_model.notices


@dataclass(frozen=True, eq=False)
class DepthResult:
    """The depth of one image, from which every output is made."""

    image: DecodedImage
    prediction: DepthPrediction
    estimator: DepthEstimator  # that predicted it

    @functools.cached_property
    def depth_pixels(self) -> tuple[NDArray[Any], int]:
        """Pixels of depth/image, and the number of those that its encoding cannot hold."""
        return depth_values(self.prediction.depth, self.image.context.config.depth_encoding)


def predict(estimator: DepthEstimator, frames: Sequence[DecodedImage]) -> list[DepthResult]:
    """Predict depth of one image of each camera, as one batch.

    If it fails, no camera's state has changed, so that it may be called again.
    """
    observations = [None if frame.context.anchor is None else frame.context.anchor.observe(
        frame.header, frame.camera_model, frame.size, frame.camera_problem) for frame in frames]
    predictions = estimator.predict([
        CameraImage(frame.rgb, frame.camera_model if frame.camera_problem is None else None,
                    None if observation is None else observation.adjust, frame.context.scene)
        for frame, observation in zip(frames, observations, strict=True)])
    # All are predicted: from here on the states change.
    for frame, observation, prediction in zip(frames, observations, predictions, strict=True):
        frame.context.scene = prediction.scene
        if frame.context.anchor is not None and observation is not None:
            frame.context.anchor.commit(observation)
    return [DepthResult(frame, prediction, estimator)
            for frame, prediction in zip(frames, predictions, strict=True)]
