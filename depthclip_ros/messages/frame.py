# SPDX-License-Identifier: Apache-2.0
"""From an image's message to its depth: what the node and a converted bag do alike."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.camera import CameraModel, Notice, focal_ratio
from ..core.config import DepthConfig
from ..core.errors import CameraInfoError, ImageError
from ..core.image import CameraImage
from .anchors import Anchor, Sensors
from .config import NodeConfig
from .depth import depth_values
from .image_io import to_rgb
from .types import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, Read, parse

if TYPE_CHECKING:  # torch takes seconds to import
    from ..core.estimator import DepthEstimator
    from ..core.prediction import DepthPrediction
    from ..core.words import Scene

_STAMPED = 12  # bytes of a serialised message to the end of its stamp


class Stream:
    """What the images of one camera have in common.

    Attributes:
        info: the newest camera_info, serialised; None before any came. Nothing is read before an
            image needs it.
        anchor: of the scale of depth; None for none.
        scene: of the image that was answered last.

    """

    def __init__(self, read: Read, config: NodeConfig, sensors: Sensors | None = None,
                 kind: str = '') -> None:
        """Begin without a camera_info.

        `sensors` anchors the scale of all cameras; `kind` is the type of the images, '' for what
        `image_transport` says.
        """
        self.config, self._read = config, read
        self.kind = kind or (
            COMPRESSED_IMAGE if config.image_transport == 'compressed' else IMAGE)
        self.info: bytes | None = None
        self.anchor = None if sensors is None else Anchor(sensors, config)
        self.scene: Scene | None = None
        self._known: tuple[bytes, CameraModel] | None = None

    def on_info(self, raw: bytes) -> None:
        """Take a camera_info."""
        self.info = raw

    def model(self, width: int, height: int) -> CameraModel:
        """The camera that took an image of this size; computed once per content.

        Raises:
            CameraInfoError: there is no camera_info, it is unusable, or it is for another size.

        """
        raw = self.info  # one read: another thread replaces it
        if raw is None:
            raise CameraInfoError(
                'absent', 'no camera_info has arrived: points and depth/camera_info are not '
                'published, and the focal length does not count.')
        content = raw[_STAMPED:]
        if self._known is None or self._known[0] != content:
            self._known = None
            message = parse(self._read, raw, CAMERA_INFO, CameraInfoError)
            self._known = content, CameraModel.from_info(message, self.config.rectified)
        model = self._known[1]
        model.check_size(width, height)
        return model

    def decode(self, raw: bytes, config: DepthConfig) -> Frame:
        """Decode an image that will be answered with `config`, and find the camera that took it.

        Raises:
            ImageError: it cannot be used.

        """
        message = parse(self._read, raw, self.kind, ImageError)
        rgb, model, problem = to_rgb(message), None, None
        height, width = rgb.shape[:2]
        try:
            model = self.model(width, height)
            focal_ratio(config.reference_focal, model, (height, width), config.input_size)
        except CameraInfoError as error:
            problem = error
        return Frame(self, message.header, rgb, model, problem)


@dataclass(frozen=True, eq=False)
class Frame:
    """One image, decoded, and the camera that took it."""

    stream: Stream
    header: Any  # of its message; every message of the answer has it
    rgb: NDArray[np.uint8]  # (H, W, 3)
    # The camera that took it; where its camera_info is absent or unusable, there is depth, but
    # neither points nor depth/camera_info.
    model: CameraModel | None = None
    problem: CameraInfoError | None = None  # why there is none, or its focal length does not count

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What is peculiar about its camera_info, which is used all the same."""
        return () if self.model is None else self.model.notices


@dataclass(frozen=True, eq=False)
class Answer:
    """The depth of one image; every topic is a function of it."""

    frame: Frame
    prediction: DepthPrediction
    estimator: DepthEstimator  # that predicted it

    @functools.cached_property
    def pixels(self) -> tuple[NDArray[Any], int]:
        """Pixels of depth/image, and how many have a depth that its encoding cannot hold."""
        return depth_values(self.prediction.depth, self.frame.stream.config.depth_encoding)


def predict(estimator: DepthEstimator, frames: Sequence[Frame]) -> list[Answer]:
    """Predict depth of the images of several cameras, one of each, as one batch.

    If it fails, nothing of the cameras has changed: they may be tried again.
    """
    looks = [None if frame.stream.anchor is None else frame.stream.anchor.look(
        frame.header, frame.model, frame.size, frame.problem) for frame in frames]
    predictions = estimator.predict([
        CameraImage(frame.rgb, frame.model if frame.problem is None else None,
                    None if look is None else look.adjust, frame.stream.scene)
        for frame, look in zip(frames, looks, strict=True)])
    # All are answered: from here on nothing is tried again.
    for frame, look, prediction in zip(frames, looks, predictions, strict=True):
        frame.stream.scene = prediction.scene
        if frame.stream.anchor is not None and look is not None:
            frame.stream.anchor.take(look)
    return [Answer(frame, prediction, estimator)
            for frame, prediction in zip(frames, predictions, strict=True)]
