# SPDX-License-Identifier: Apache-2.0
"""Intrinsics of a camera for pictures without a camera_info: from a file or a field of view."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ..core.camera import CameraModel
from ..core.errors import CameraInfoError, quoted
from ..core.files import open_regular, user_path

if TYPE_CHECKING:
    from sensor_msgs.msg import CameraInfo

    from ..sim import SimCamera

BUILTIN_HFOV = 63.33  # degrees, of the colour camera of NYU v2

_EXPECTED = (
    'Needed is a file as camera_calibration writes it: image_width, image_height, camera_matrix: '
    '{data: [fx, 0, cx, 0, fy, cy, 0, 0, 1]}, distortion_model and distortion_coefficients: '
    '{data: […]}')
# Files of other programs: a pattern of their text, and a sentence on how to convert them.
_PROGRAMS = (
    (r'\A[\d.eE+\-,;\[\]\s]+\Z', (
        'it holds numbers alone, as ScanNet, Stray Scanner and TUM have them: a camera matrix, or '
        'fx, fy, cx, cy. Write them with the size of the images they are for')),
    (r'^\d+ (SIMPLE_|FULL_)?(PINHOLE|RADIAL|OPENCV)', (
        "it is COLMAP's, with size, focal lengths, principal point and distortion in one line. "
        'PINHOLE has none; k1, k2, p1, p2 of OPENCV are plumb_bob')),
    (r'^Camera1?\.fx', (
        "it is ORB-SLAM's: Camera.fx, fy, cx, cy are of the camera matrix, Camera.k1, k2, p1, p2, "
        'k3 are plumb_bob (of KannalaBrandt8, k1 to k4 are equidistant)')),
    (r'opencv-matrix|\A%YAML:1\.0', (
        "it is of OpenCV's FileStorage. Print its matrices with cv2.FileStorage(path, "
        "cv2.FILE_STORAGE_READ).getNode('camera_matrix').mat(), and write them anew")),
    (r'"CalibrationInformation"', (
        'it is what an Azure Kinect stores, of its whole sensor and not in pixels. Take fx, fy, '
        'cx, cy and the distortion for your mode from k4a_calibration_get_from_raw; they are '
        'rational_polynomial, in the order k1, k2, p1, p2, k3, k4, k5, k6')),
    (r'\bintrinsic_matrix\b', (
        "it is Open3D's, whose intrinsic_matrix has its columns one after the other (fx, 0, 0, 0, "
        'fy, 0, cx, cy, 1). Write its rows, and width and height as the size')),
    (r'"w"\s*:[^\0]*"K"\s*:|"K"\s*:[^\0]*"w"\s*:', (
        "it is Record3D's, whose K has its columns one after the other (fx, 0, 0, 0, fy, 0, cx, "
        'cy, 1). Write its rows, and w and h as the size')),
    (r'"fl_x"', (
        "it is nerfstudio's: fl_x, fl_y, cx, cy are of the camera matrix, w and h the size, and "
        'k1, k2, p1, p2 plumb_bob')),
    (r'\bppx\b', (
        "it is librealsense's: fx, fy, ppx, ppy are of the camera matrix, coeffs the distortion")),
)
# Fields of a printed camera_info by the names of the entries in a file.
_PRINTED = {'image_width': 'width', 'image_height': 'height', 'camera_matrix': 'k',
            'distortion_coefficients': 'd', 'rectification_matrix': 'r', 'projection_matrix': 'p',
            'distortion_model': 'distortion_model'}
# Least focal length in image widths: a fisheye of 220 degrees has 0.26.
_MIN_FOCAL = 0.05


@dataclass(frozen=True)
class Intrinsics:
    """Intrinsics of a `sensor_msgs/CameraInfo`: matrices row by row, in pixels."""

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
    ) -> Intrinsics:
        """Make a camera of K (nine numbers, row by row) without rectification."""
        return cls(width, height, k, d, 'plumb_bob', (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
                   (*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0))

    @classmethod
    def from_fov(cls, width: int, height: int, hfov: float) -> Intrinsics:
        """Make an undistorted pinhole camera with its principal point at the image's centre.

        Args:
            width: of the picture, in pixels.
            height: of the picture, in pixels.
            hfov: horizontal field of view in degrees.

        Raises:
            CameraInfoError: the field of view is out of range.

        """
        if not 0 < hfov < 180:
            raise CameraInfoError('field of view', f'A horizontal field of view of {hfov} degrees '
                                  'is impossible for a pinhole camera; give 0 < FOV < 180.')
        focal = width / 2 / math.tan(math.radians(hfov) / 2)
        # Pixel centres are integers: the picture spans -0.5 to width - 0.5.
        return cls.pinhole(width, height, (
            focal, 0.0, (width - 1) / 2, 0.0, focal, (height - 1) / 2, 0.0, 0.0, 1.0))

    @classmethod
    def of_sim(cls, camera: SimCamera) -> Intrinsics:
        """Make the intrinsics of a simulated camera."""
        return cls.pinhole(camera.width, camera.height,
                           tuple(map(float, camera.matrix.ravel())), camera.distortion)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Intrinsics:
        """Read a file of the ROS tools `camera_calibration` and `camera_info_manager`.

        Files of similar programs may name the model `camera_model` (default: plumb_bob), omit
        distortion, rectification and projection (defaults: zero, the identity, and the camera
        matrix), and have numbers without `data`. The output of `ros2 topic echo` for a camera_info
        is read as well.

        Raises:
            CameraInfoError: the file is missing or malformed; names the entry or the program.

        """
        entries = _entries(path)
        plain = cls.pinhole(
            _pixels(path, entries, 'image_width'), _pixels(path, entries, 'image_height'),
            _numbers(path, entries, 'camera_matrix', 9))
        _check_matrix(path, plain)
        model = entries.get('distortion_model') or entries.get('camera_model')
        return replace(
            plain, distortion_model=str(model or plain.distortion_model),
            d=_numbers(path, entries, 'distortion_coefficients', default=plain.d),
            r=_numbers(path, entries, 'rectification_matrix', 9, plain.r),
            p=_numbers(path, entries, 'projection_matrix', 12, plain.p))

    def model(self, *, rectified: bool = False) -> CameraModel:
        """Make the camera that the node makes from a camera_info with these numbers.

        Raises:
            CameraInfoError: the numbers are not those of a calibrated camera.

        """
        roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False)
        return CameraModel.from_info(
            SimpleNamespace(**vars(self), binning_x=0, binning_y=0, roi=roi), rectified)

    def fill(self, message: CameraInfo) -> None:
        """Copy into a `sensor_msgs/CameraInfo`, except its header."""
        for name, value in vars(self).items():
            setattr(message, name, value)


def intrinsics_of(
    camera: Intrinsics | float, width: int, height: int,
) -> Intrinsics:
    """Return the intrinsics of pictures of one size.

    Args:
        camera: intrinsics of a file, or the horizontal field of view in degrees.
        width: of the pictures, in pixels.
        height: of the pictures, in pixels.

    Raises:
        CameraInfoError: the file is for pictures of another size ('another size'), or the field
            of view is out of range.

    """
    if not isinstance(camera, Intrinsics):
        return Intrinsics.from_fov(width, height, camera)
    if (camera.width, camera.height) != (width, height):
        raise CameraInfoError(
            'another size', f'The calibration is for {camera.width} x {camera.height} pixels, but '
            f'a picture has {width} x {height}; resize the pictures or leave --camera-info away.')
    return camera


def _malformed(path: str | Path, reason: str) -> CameraInfoError:
    return CameraInfoError('malformed file', f'{path} is no camera calibration: {reason}.')


def _entries(path: str | Path) -> dict[Any, Any]:
    """Parse a YAML file; files of other programs raise an error on how to convert them."""
    try:
        with open_regular(user_path(path)) as file:
            text = file.read().decode()
    except OSError as error:
        raise _malformed(path, str(error.strerror or error)) from error
    except UnicodeDecodeError as error:
        raise _malformed(path, f'it is no text. {_EXPECTED}') from error
    if '[image]' in text.split():
        raise _malformed(path, 'it is an .ini file, as Videre and older tools write it. Convert '
                         f'it: ros2 run camera_calibration_parsers convert {path} camera.yaml')
    for pattern, sentence in _PROGRAMS:
        if re.search(pattern, text, re.MULTILINE):
            raise _malformed(path, f'{sentence}. {_EXPECTED}')
    try:
        entries = next(yaml.safe_load_all(text), None)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, 'problem_mark', None)
        raise _malformed(path, 'it is no YAML' + (
            '' if mark is None else f' (line {mark.line + 1})')) from error
    if not isinstance(entries, dict):
        raise _malformed(path, f'it holds {quoted(entries)}. {_EXPECTED}')
    if any(isinstance(entry, dict) and 'intrinsics' in entry
           for entry in (entries, *entries.values())):
        raise _malformed(path, 'it is as Kalibr and EuRoC have it. Write of each camera a file: '
                         'intrinsics are fx, fy, cx, cy, resolution the size, distortion_coeffs '
                         'stay, and radtan is plumb_bob, equi equidistant. ' + _EXPECTED)
    return _of_message(path, entries)


def _of_message(path: str | Path, entries: dict[Any, Any]) -> dict[Any, Any]:
    """Convert a camera_info, printed by `ros2 topic echo` or `rostopic echo`, to file entries."""
    fields = {str(name).lower(): value for name, value in entries.items()}
    if not {'width', 'height', 'k', 'd'} <= fields.keys():
        return entries
    roi: Any = fields.get('roi')
    window = [(roi if isinstance(roi, dict) else {}).get(name, 0)
              for name in ('x_offset', 'y_offset', 'width', 'height')]
    binned = any(fields.get(name, 0) not in (0, 1) for name in ('binning_x', 'binning_y'))
    if binned or window not in ([0, 0, 0, 0], [0, 0, fields['width'], fields['height']]):
        raise _malformed(path, 'it is a camera_info with binning or roi, and a file has none. '
                         f'Write what is right for the images as they are. {_EXPECTED}')
    return {name: fields[field] for name, field in _PRINTED.items() if field in fields}


def _check_matrix(path: str | Path, camera: Intrinsics) -> None:
    """Refuse a camera matrix that is not in OpenCV's convention, in pixels and row by row."""
    (fx, _, cx), (_, fy, cy), last = np.reshape(camera.k, (3, 3)).tolist()
    if last[:2] != [0, 0] and cx == cy == 0:
        fault = 'has its columns one after the other: transpose it'
    elif min(fx, fy) < 0:
        fault = ('has a negative focal length, of axes that point up or to the left. Those of an '
                 'image point right and down: if yours are not mirrored, give it as positive')
    elif 0 < fx < _MIN_FOCAL * camera.width:
        fault = ('has a focal length that no lens has. It should be in pixels, not in parts of '
                 'the image or in millimetres')
    else:
        return
    raise _malformed(path, f'camera_matrix is {quoted(list(camera.k))}, which {fault}')


def _pixels(path: str | Path, entries: dict[Any, Any], name: str) -> int:
    value, = _numbers(path, entries, name, 1)
    if value < 1 or value != int(value):
        raise _malformed(path, f'{name} is {value:g}, and should be a number of pixels')
    return int(value)


def _numbers(
    path: str | Path, entries: dict[Any, Any], name: str, count: int = 0,
    default: tuple[float, ...] = (),
) -> tuple[float, ...]:
    """Parse the numbers of an entry, with or without `data`; `count` 0 accepts any number."""
    entry = entries.get(name)
    if entry is None:
        if default:
            return default
        raise _malformed(path, f'it has no {name}. {_EXPECTED}')
    try:
        values = np.array(entry['data'] if isinstance(entry, dict) else entry, float).ravel()
    except (KeyError, TypeError, ValueError, OverflowError):
        values = np.full(1, np.nan)
    if not np.isfinite(values).all() or values.size != (count or values.size):
        raise _malformed(path, f'{name} is {quoted(entry)}, and should be '
                         f'{count or "a list of"} numbers')
    return tuple(values.tolist())
