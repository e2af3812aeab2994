# SPDX-License-Identifier: Apache-2.0
"""A camera's calibration for pictures that come without one: from a file, or a stated guess."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated

import msgspec
import yaml

from ..core.camera import CameraModel
from ..core.errors import CameraInfoError
from ..core.files import open_regular, user_path

if TYPE_CHECKING:
    from sensor_msgs.msg import CameraInfo

    from ..sim import SimCamera

BUILTIN_HFOV = 63.33  # degrees; that of the NYU v2 colour camera


class _Nine(msgspec.Struct):
    data: Annotated[tuple[float, ...], msgspec.Meta(min_length=9, max_length=9)]


class _Twelve(msgspec.Struct):
    data: Annotated[tuple[float, ...], msgspec.Meta(min_length=12, max_length=12)]


class _Any(msgspec.Struct):
    data: tuple[float, ...]


class _File(msgspec.Struct):
    image_width: Annotated[int, msgspec.Meta(gt=0)]
    image_height: Annotated[int, msgspec.Meta(gt=0)]
    camera_matrix: _Nine
    distortion_coefficients: _Any
    rectification_matrix: _Nine
    projection_matrix: _Twelve
    distortion_model: str = ''


@dataclass(frozen=True)
class CameraCalibration:
    """The numbers of a `sensor_msgs/CameraInfo`, row by row, in pixels."""

    width: int
    height: int
    k: tuple[float, ...]
    d: tuple[float, ...]
    distortion_model: str
    r: tuple[float, ...]
    p: tuple[float, ...]

    @classmethod
    def pinhole(
        cls, width: int, height: int, k: tuple[float, ...], d: tuple[float, ...] = (0.0,) * 5,
    ) -> CameraCalibration:
        """Camera of nine numbers of K, row by row, that turns nothing."""
        return cls(width, height, k, d, 'plumb_bob', (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
                   (*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0))

    @classmethod
    def from_fov(cls, width: int, height: int, hfov: float) -> CameraCalibration:
        """Undistorted pinhole camera with the centre in the middle of the picture.

        Args:
            width: of the picture, in pixels.
            height: of the picture, in pixels.
            hfov: angle between the left and the right edge, in degrees, 0 to 180 exclusive.

        """
        if not 0 < hfov < 180:
            raise CameraInfoError('field of view', f'A horizontal field of view of {hfov} degrees '
                                  'is impossible for a pinhole camera; give 0 < FOV < 180.')
        focal = width / 2 / math.tan(math.radians(hfov) / 2)
        # Pixel centres are whole numbers: the picture spans -0.5 to width - 0.5.
        return cls.pinhole(width, height, (
            focal, 0.0, (width - 1) / 2, 0.0, focal, (height - 1) / 2, 0.0, 0.0, 1.0))

    @classmethod
    def of_sim(cls, camera: SimCamera) -> CameraCalibration:
        """What `sensor_msgs/CameraInfo` says about a simulated camera."""
        return cls.pinhole(camera.width, camera.height,
                           tuple(map(float, camera.matrix.ravel())), camera.distortion)

    @classmethod
    def from_yaml(cls, path: str | Path) -> CameraCalibration:
        """Read a file as the ROS tools `camera_calibration` and `camera_info_manager` write it.

        Raises:
            CameraInfoError: missing or malformed file; says which entry.

        """
        try:
            with open_regular(user_path(path)) as file:
                told = msgspec.convert(yaml.safe_load(file.read().decode()), _File)
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            said = ' '.join(str(error).split())
            raise CameraInfoError(
                'malformed file', f'{path} is no camera calibration: {said}.') from error
        return cls(
            told.image_width, told.image_height, told.camera_matrix.data,
            told.distortion_coefficients.data, told.distortion_model,
            told.rectification_matrix.data, told.projection_matrix.data)

    def model(self, *, rectified: bool = False) -> CameraModel:
        """Give the camera, as the node reads it from a camera_info with these numbers.

        Raises:
            CameraInfoError: the numbers are no calibrated camera's.

        """
        roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False)
        return CameraModel.from_info(
            SimpleNamespace(**vars(self), binning_x=0, binning_y=0, roi=roi), rectified)

    def fill(self, message: CameraInfo) -> None:
        """Copy into a `sensor_msgs/CameraInfo`; its header is left alone."""
        for name, value in vars(self).items():
            setattr(message, name, value)


def calibration_of(
    given: CameraCalibration | float, width: int, height: int,
) -> CameraCalibration:
    """Give the calibration of pictures of one size.

    Args:
        given: of a file; or the horizontal field of view in degrees.
        width: of the pictures, in pixels.
        height: of the pictures, in pixels.

    Raises:
        CameraInfoError: the file is for pictures of another size ('another size'), or there is no
            such field of view.

    """
    if not isinstance(given, CameraCalibration):
        return CameraCalibration.from_fov(width, height, given)
    if (given.width, given.height) != (width, height):
        raise CameraInfoError(
            'another size', f'The calibration is for {given.width} x {given.height} pixels, but a '
            f'picture has {width} x {height}; resize the pictures or leave --camera-info away.')
    return given
