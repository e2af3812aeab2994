# SPDX-License-Identifier: Apache-2.0
"""The latest camera_info of one camera, and what follows from it, computed once per content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.camera import CameraModel
from ..core.errors import CameraInfoError
from .messages import CAMERA_INFO, parse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .messages import Read

_STAMPED = 12  # bytes of a serialised message to the end of its stamp


class Calibration:
    """Turns camera_info messages into a camera model, rays and a scaled camera_info."""

    def __init__(self, read: Read, *, rectified: bool) -> None:
        """Start without a camera_info.

        Args:
            read: reads messages.
            rectified: the images are rectified: P holds for them, without distortion.

        """
        self._read, self._rectified = read, rectified
        self._newest: bytes | None = None
        self._used: bytes | None = None
        self._content: tuple[Any, ...] = ()
        self._model: CameraModel | None = None
        self._rays: dict[tuple[int, int], NDArray[np.float32]] = {}

    def update(self, raw: bytes) -> None:
        """Keep the latest message, serialised; nothing is read before an image needs it."""
        self._newest = raw

    @property
    def received(self) -> bool:
        """Whether any camera_info ever arrived."""
        return self._newest is not None

    def select(self, width: int, height: int) -> CameraModel:
        """Prepare for an image of this size, and give the camera that took it.

        Raises:
            CameraInfoError: there is no camera_info, it is unusable, or it is for another size.

        """
        raw = self._newest
        if raw is None:
            raise CameraInfoError(
                'absent', 'no camera_info has arrived: points and depth/camera_info are not '
                'published, and the focal length does not count.')
        if self._model is None or self._used is None or raw[_STAMPED:] != self._used[_STAMPED:]:
            model, self._model = self._model, None
            message = parse(self._read, raw, CAMERA_INFO, CameraInfoError)
            content = _content(message)
            if model is None or content != self._content:
                self._rays.clear()
                model = CameraModel.from_info(message, self._rectified)
            self._model, self._content, self._used = model, content, raw
        self._model.check_size(width, height)
        return self._model

    def rays(self, h: int, w: int) -> NDArray[np.float32]:
        """(h, w, 3) rays through the patches' centres, z = 1; needs `select`."""
        key = h, w
        if key not in self._rays:
            self._rays[key] = self._selected().patch_rays(*key)
        return self._rays[key]

    def scaled_fields(self, width: int, height: int) -> dict[str, Any]:
        """Fields of the depth image's camera_info: scaled, no binning; needs `select`.

        For rectified input it describes the rectified camera: K is that of P, no distortion.
        Header and region of interest (all zeros) are left to who makes the message.
        """
        model = self._selected().scaled(width, height)
        name, coefficients = model.distortion_model, model.D.tolist()
        rotation = np.eye(3) if self._rectified else model.R
        return {
            'width': model.width, 'height': model.height,
            'distortion_model': name or 'plumb_bob', 'd': coefficients if name else [0.0] * 5,
            'k': model.K.ravel().tolist(), 'r': rotation.ravel().tolist(),
            'p': model.P.ravel().tolist(), 'binning_x': 0, 'binning_y': 0}

    def _selected(self) -> CameraModel:
        if self._model is None:
            raise RuntimeError('Calibration.select() comes first')
        return self._model


def _content(message: Any) -> tuple[Any, ...]:
    """Everything but the header, comparable."""
    roi = message.roi
    return (
        message.width, message.height, message.distortion_model,
        *(np.asarray(values, np.float64).tobytes()
          for values in (message.d, message.k, message.r, message.p)),
        message.binning_x, message.binning_y,
        roi.x_offset, roi.y_offset, roi.width, roi.height, roi.do_rectify)
