# SPDX-License-Identifier: Apache-2.0
"""The latest camera_info of one camera, and what follows from it, computed once per content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import CameraInfoError
from ..core.geometry import CameraModel
from . import serialized
from .messages import CAMERA_INFO, REGION, Messages, of_rclpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..core.window import Window

_NO_DISTORTION = ('plumb_bob', (0.0, 0.0, 0.0, 0.0, 0.0))


class Calibration:
    """Turns camera_info messages into a camera model, rays and a scaled camera_info."""

    def __init__(self, *, rectified: bool, messages: Messages | None = None) -> None:
        """Start without a camera_info.

        Args:
            rectified: the images are rectified: P holds for them, without distortion.
            messages: what reads and makes camera_info; None for rclpy.

        """
        self._rectified = rectified
        self._messages = messages or of_rclpy()
        self._raw: bytes | None = None
        self._content = b''
        self._key: tuple[Any, ...] = ()
        self._model: CameraModel | None = None
        self._rays: dict[tuple[int, int, Window], NDArray[np.float32]] = {}

    def update(self, raw: bytes) -> None:
        """Keep the latest message, serialised; nothing is read before an image needs it."""
        self._raw = raw

    @property
    def received(self) -> bool:
        """Whether any camera_info ever arrived."""
        return self._raw is not None

    @property
    def key(self) -> tuple[Any, ...]:
        """What the camera model follows from, for comparing; needs `select`."""
        return self._key

    def select(self, width: int, height: int) -> CameraModel:
        """Prepare for an image of this size, and give the camera that took it.

        Raises:
            CameraInfoError: there is no camera_info, it is unusable, or it is for another size.

        """
        raw = self._raw
        if raw is None:
            raise CameraInfoError(
                'absent', 'no camera_info has arrived: points and depth/camera_info are not '
                'published, and the focal length does not count.')
        content = serialized.content(raw)
        if content != self._content or self._model is None:
            model, self._model = self._model, None
            message = serialized.read(raw, CAMERA_INFO, CameraInfoError, self._messages)
            key = _key(message)
            if model is None or key != self._key:
                self._rays.clear()
                model = CameraModel.from_info(message, self._rectified)
            self._model, self._content, self._key = model, content, key
        self._model.check_size(width, height)
        return self._model

    def rays(self, h: int, w: int, window: Window) -> NDArray[np.float32]:
        """(h, w, 3) rays through the centres of a window's patches, z = 1; needs `select`."""
        key = h, w, window
        if key not in self._rays:
            self._rays[key] = self._selected().patch_rays(*key)
        return self._rays[key]

    def scaled(self, width: int, height: int, header: Any) -> Any:
        """The camera_info of the depth image: scaled, no binning, no region of interest.

        For rectified input it describes the rectified camera: K is that of P, no distortion.
        Needs `select`.
        """
        model = self._selected().scaled(width, height)
        name, coefficients = _NO_DISTORTION
        if model.distortion_model:
            name, coefficients = model.distortion_model, tuple(model.D.tolist())
        rotation = np.eye(3) if self._rectified else model.R
        region = self._messages.make(
            REGION, x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        return self._messages.make(
            CAMERA_INFO, header=header, width=model.width, height=model.height,
            distortion_model=name, d=list(coefficients), k=model.K.ravel().tolist(),
            r=rotation.ravel().tolist(), p=model.P.ravel().tolist(), binning_x=0, binning_y=0,
            roi=region)

    def _selected(self) -> CameraModel:
        if self._model is None:
            raise RuntimeError('Calibration.select() comes first')
        return self._model


def _key(message: Any) -> tuple[Any, ...]:
    """Everything but the header, comparable."""
    roi = message.roi
    return (
        message.width, message.height, message.distortion_model,
        *(np.asarray(values, np.float64).tobytes()
          for values in (message.d, message.k, message.r, message.p)),
        message.binning_x, message.binning_y,
        roi.x_offset, roi.y_offset, roi.width, roi.height, roi.do_rectify,
    )
