# SPDX-License-Identifier: Apache-2.0
"""Cameras as ``sensor_msgs/CameraInfo`` describes them: from pixels to rays and back.

Everything is in the camera's optical frame of REP-103 (x right, y down, z forward). Pixel centres
are at integer coordinates. A ray has z = 1, so that a point is its ray times its depth along the
optical axis (REP-118).

Lens distortion is OpenCV's: Brown-Conrady with its extensions (``plumb_bob``,
``rational_polynomial``), and Kannala-Brandt (``equidistant``). These polynomials are fitted inside
the image: further out they fold back, and one pixel has several rays, or none. A model is used up
to the first radius where it stops growing; beyond, the answer is NaN. OpenCV's ``undistortPoints``
does a fixed number of steps and loses a third of the pixels of a wide lens; here Newton's method
goes on until the ray ends in its pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.polynomial import Polynomial

from .errors import CameraInfoError, quoted
from .opencv import cv2

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .config import Size

    Float64 = NDArray[np.float64]

# Numbers of coefficients that each model may have. OpenCV's longer forms (12: thin prism, 14:
# tilted sensor) are published as rational_polynomial by some drivers.
COEFFICIENTS = {'plumb_bob': (4, 5), 'rational_polynomial': (8, 12, 14), 'equidistant': (4,)}
_CALIBRATE = 'Calibrate the camera again (ros2 run camera_calibration cameracalibrator).'
_LEAST_FOCAL_LENGTH, _LARGEST_NUMBER = 1e-3, 1e9  # pixels; what is beyond is no camera
# Rays further aside count as none: a millionth of a degree from 90, and a product with any depth
# still is a number in float32.
_FURTHEST_ASIDE = 1e8
_GRID = 12, 16  # rows and columns at which a lens is looked at
# What a lens does to distances from the middle, in the mean over the image: a fisheye of 180
# degrees makes them 0.6 of what they were, a telephoto lens at most 1.2.
_LENSES = 0.25, 2.0
_FOCAL_RATIOS = 0.05, 20.0  # of a camera's focal length to that of the words
_TOLERANCE = 1e-10  # in normalised coordinates: far below a millionth of a pixel
_ITERATIONS = 20
_TABLE_SIZE = 2048
_FURTHEST = 1e6  # radius of a ray, in normalised coordinates: a millionth off the image plane


@dataclass(frozen=True, eq=False)
class CameraModel:
    """A pinhole camera with lens distortion, for images of one size.

    Attributes:
        width: Image width in pixels.
        height: Image height in pixels.
        K: (3, 3) intrinsic matrix in pixels.
        D: Distortion coefficients, empty where there is no distortion.
        distortion_model: 'plumb_bob', 'rational_polynomial', 'equidistant', or '' for none.
        R: (3, 3) rectification rotation. Carried along and not applied: rays are in the frame of
            the camera that took the image, as ``CameraInfo`` defines K (raw) and P (rectified
            images).
        P: (3, 4) projection matrix of the rectified image. Its fourth column (the baseline of a
            right stereo camera) is not used: rays start at this camera's own centre.

    """

    width: int
    height: int
    K: Float64
    D: Float64
    distortion_model: str
    R: Float64
    P: Float64

    @classmethod
    def from_info(cls, msg: Any, rectified: bool = False) -> CameraModel:
        """Read a ``sensor_msgs/CameraInfo``, or anything with its fields.

        Binning and region of interest are applied as in ``image_geometry``: the result is the
        camera of the images that the driver publishes, not of the whole sensor.

        Args:
            msg: The message. It is not changed, and nothing of it is kept.
            rectified: The images are rectified: use P and no distortion. Otherwise use K and D.

        Raises:
            CameraInfoError: This is no calibrated camera. The condition is one of 'zero size',
                'all zeros', 'not finite', 'wrong matrix', 'unknown distortion model', 'wrong roi',
                'impossible lens'.

        """
        shapes = {'k': (3, 3), 'd': (-1,), 'r': (3, 3), 'p': (3, 4)}
        K, D, R, P = (np.array(getattr(msg, name), dtype=np.float64).reshape(shape)
                      for name, shape in shapes.items())
        for name, values in zip(shapes, (K, D, R, P), strict=True):
            if not (np.abs(values) <= _LARGEST_NUMBER).all():
                raise _wrong('not finite', f'{name} = {quoted(values.reshape(-1).tolist())}, with '
                             f'values that are no numbers, or beyond {_LARGEST_NUMBER:g}')
        used = P[:, :3] if rectified else K
        _check_matrix('p' if rectified else 'k', used)
        model = '' if rectified else _model_of(str(msg.distortion_model), D)
        x, y, width, height = _region_of_interest(msg, rectified=rectified)
        binning = max(1, int(msg.binning_x)), max(1, int(msg.binning_y))
        width, height = width // binning[0], height // binning[1]
        if width < 1 or height < 1:
            raise _wrong('zero size', (
                f'size {msg.width}x{msg.height} and binning {binning[0]}x{binning[1]}, which '
                'leave no pixel'), 'Fill them in in the camera driver (binning 0: none).')
        for matrix in (K, P):
            matrix[:2, 2] -= (x, y)
            matrix[:2] /= np.reshape(binning, (2, 1))
        camera = cls(width, height, _read_only(used), _read_only(D if model else D[:0]), model,
                     _read_only(R), _read_only(P))
        lens = camera.focal_length() * camera.width / camera.K[1, 1]
        if not _LENSES[0] <= lens <= _LENSES[1]:  # nor is NaN, where nothing is seen
            raise _wrong('impossible lens', (
                f'd = {quoted(D.tolist())} ({model}), which makes distances from the middle of '
                f'the image {lens:.3g} times as long; lenses make them {_LENSES[0]:g} to '
                f'{_LENSES[1]:g} times as long'))
        return camera

    @classmethod
    def pinhole(
        cls, width: int, height: int, fx: float, fy: float | None = None,
        cx: float | None = None, cy: float | None = None,
    ) -> CameraModel:
        """Give a camera without distortion.

        Args:
            width: of the image in pixels.
            height: of the image in pixels.
            fx: focal length in pixels, horizontally.
            fy: vertically; None: as `fx`.
            cx: column of the principal point; None: the middle.
            cy: row of the principal point; None: the middle.

        Raises:
            CameraInfoError: a focal length is not positive.

        """
        cx = (width - 1) / 2 if cx is None else cx
        cy = (height - 1) / 2 if cy is None else cy
        K = np.array([[fx, 0.0, cx], [0.0, fx if fy is None else fy, cy], [0.0, 0.0, 1.0]])
        _check_matrix('k', K)
        return cls(width, height, _read_only(K), _read_only(np.empty(0)), '',
                   _read_only(np.eye(3)), _read_only(np.column_stack([K, np.zeros(3)])))

    def check_size(self, width: int, height: int) -> None:
        """Check that images of this size are this camera's.

        Raises:
            CameraInfoError: They are not ('size mismatch').

        """
        if (width, height) != (self.width, self.height):
            raise CameraInfoError('size mismatch', (
                f'camera_info is for images of {self.width}x{self.height} pixels (binning and '
                f'roi applied), but the image has {width}x{height}. Remap camera_info to the '
                "image topic's own, or resize both together (image_proc does)."))

    def scaled(self, width: int, height: int) -> CameraModel:
        """Give the camera of the same view resized to `width` x `height` pixels.

        K and P are multiplied by the ratio of the sizes, without a half-pixel term, and D and R
        stay, as in image_proc's ResizeNode.
        """
        scale = np.array([[width / self.width], [height / self.height], [1.0]])
        return replace(self, width=width, height=height, K=_read_only(self.K * scale),
                       P=_read_only(self.P * scale))

    def rays(self, u: ArrayLike, v: ArrayLike) -> Float64:
        """Rays through pixels, distortion undone.

        Args:
            u: Columns in pixels, any shape.
            v: Rows in pixels, of a shape that broadcasts with that of `u`.

        Returns:
            (..., 3) with z = 1. NaN where no ray in front of the camera ends in that pixel.

        """
        u, v = np.broadcast_arrays(np.asarray(u, np.float64), np.asarray(v, np.float64))
        (fx, skew, cx), (_, fy, cy), _ = self.K
        y = (v - cy) / fy
        x = (u - cx - skew * y) / fx
        rays = np.ones((u.size, 3))
        rays[:, :2] = _undistort(
            self.distortion_model, self.D, np.stack([x, y], axis=-1).reshape(-1, 2))
        rays[~(np.abs(rays).max(axis=1) < _FURTHEST_ASIDE)] = np.nan
        return rays.reshape(*u.shape, 3)

    def project(self, points: ArrayLike) -> Float64:
        """Project points into the image, with distortion.

        Args:
            points: (..., 3) in the optical frame.

        Returns:
            (..., 2) columns and rows in pixels, which may lie outside the image. NaN for a point
            that is not in front of the camera, or further aside than the distortion model reaches.

        """
        points = np.asarray(points, np.float64)
        z = np.where(points[..., 2:] > 0.0, points[..., 2:], np.nan)
        ideal = (points[..., :2] / z).reshape(-1, 2)
        pixels = np.ones((len(ideal), 3))
        pixels[:, :2] = _distort(self.distortion_model, self.D, ideal)
        return (pixels @ self.K.T)[:, :2].reshape(*points.shape[:-1], 2)

    def focal_length(self) -> float:
        """Focal length of the image, in its widths.

        A lens with distortion has another one at every place. This is their mean in the sense in
        which a thing is shown at the right distance from the middle: fy times the mean, over the
        image, of that distance over the one without distortion.

        Returns:
            fy / width for a camera without distortion; NaN where the image shows nothing.

        """
        focal = self.K[1, 1] / self.width
        if not self.distortion_model:
            return float(focal)
        distances, seen = (
            np.linalg.norm(camera.rays(*self.centres(*_GRID))[..., :2], axis=-1)
            for camera in (self, replace(self, D=self.D[:0], distortion_model='')))
        known = distances > 0.0  # so no NaN either
        if not known.any():
            return math.nan
        return float(focal * np.mean(seen[known] / distances[known]))

    def patch_rays(self, h: int, w: int) -> NDArray[np.float32]:
        """Rays through the centres of `h` x `w` patches that tile the image.

        Patch j of w reaches from j*W/w to (j+1)*W/w, measured from the image's left border, which
        is half a pixel left of the first pixel's centre. So the patch's centre is at column
        (j+0.5)*W/w - 0.5. (The K of `scaled(w, h)` would miss it by up to half a patch.)

        Returns:
            (h, w, 3) float32 with z = 1. NaN as in `rays`.

        """
        return self.rays(*self.centres(h, w)).astype(np.float32)

    def centres(self, h: int, w: int) -> tuple[Float64, Float64]:
        """Columns (1, w) and rows (h, 1) of the centres of `h` x `w` patches, in pixels."""
        u, v = ((np.arange(count) + 0.5) * length / count - 0.5
                for count, length in ((w, self.width), (h, self.height)))
        return u[None, :], v[:, None]


@lru_cache(maxsize=64)  # with distortion it takes milliseconds, and is wanted for every image
def focal_ratio(
    reference: float, camera: CameraModel | None, image: Size, network: Size,
) -> float:
    """By what a camera's focal length makes depth larger than words alone say.

    An image tells angles: what a lens of twice the focal length shows as large is twice as far.
    Where the image is stretched, things have one focal length across and one down; it is the one
    down that counts.

    Args:
        reference: focal length that belongs to the words, in widths of the network's input; 0:
            it does not count.
        camera: None if it is unknown.
        image: its (height, width).
        network: (height, width) of the network's input, to which the image is stretched.

    Returns:
        The camera's focal length over the reference; 1 where one of them is missing.

    Raises:
        CameraInfoError: the camera is not for images of that size, or has a focal length that
            hardly any lens has.

    """
    if camera is None or not reference:
        return 1.0
    camera.check_size(image[1], image[0])
    stretch = (image[1] / image[0]) / (network[1] / network[0])
    ratio = camera.focal_length() * stretch / reference
    if not _FOCAL_RATIOS[0] <= ratio <= _FOCAL_RATIOS[1]:
        raise _wrong('unlikely focal length', (
            f'a focal length by which depth would be multiplied by {ratio:.3g}; lenses make that '
            f'{_FOCAL_RATIOS[0]:g} to {_FOCAL_RATIOS[1]:g}'),
            'Check k, in pixels, and reference_focal, in image widths.')
    return ratio


def _wrong(condition: str, found: str, remedy: str = _CALIBRATE) -> CameraInfoError:
    return CameraInfoError(condition, f'camera_info has {found}. {remedy}')


def _region_of_interest(msg: Any, *, rectified: bool) -> tuple[int, int, int, int]:
    """Window of the sensor that the images show, in unbinned pixels: x, y, width, height."""
    roi, width, height = msg.roi, int(msg.width), int(msg.height)
    window = int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)
    if window in ((0, 0, 0, 0), (0, 0, width, height)):
        return 0, 0, width, height
    x, y, roi_width, roi_height = window
    if not (0 < roi_width <= width - x and 0 < roi_height <= height - y):
        raise _wrong('wrong roi', (
            f'a region of interest of {roi_width}x{roi_height} pixels at ({x}, {y}), which is no '
            f'window of its {width}x{height} pixels'),
            'Correct roi in the camera driver (all zeros: the whole image).')
    if rectified and roi.do_rectify:
        raise _wrong('wrong roi', (
            'a region of interest with do_rectify, so the window that the rectified images show '
            'is not in the message'), 'Use the raw images with rectified: false, or set '
            'do_rectify to false in the camera driver.')
    return window


def _check_matrix(name: str, matrix: Float64) -> None:
    if matrix[0, 0] == 0.0:
        raise _wrong('all zeros', f'{name}[0] = 0: the camera is not calibrated', (
            'Calibrate it (ros2 run camera_calibration cameracalibrator) and give the driver the '
            'file.'))
    if min(matrix[0, 0], matrix[1, 1]) < _LEAST_FOCAL_LENGTH or [
            matrix[1, 0], *matrix[2]] != [0.0, 0.0, 0.0, 1.0]:
        raise _wrong('wrong matrix', (
            f'{name} = {quoted(matrix.tolist())}, which is no camera matrix '
            f'[fx 0 cx; 0 fy cy; 0 0 1] with fx and fy of at least {_LEAST_FOCAL_LENGTH:g} '
            'pixels'), 'Correct the calibration file.')


def _read_only(matrix: Float64) -> Float64:
    matrix = np.array(matrix, dtype=np.float64)
    matrix.flags.writeable = False
    return matrix


def _model_of(model: str, D: Float64) -> str:
    """The distortion model to use, '' for none.

    Empty or all zero `D` mean none (many simulators say it so), but not for 'equidistant', which
    is no pinhole even with all coefficients zero.
    """
    if model != 'equidistant' and not D.any() and (model in COEFFICIENTS or model in ('', 'none')):
        return ''
    if D.size not in COEFFICIENTS.get(model, ()):
        known = ', '.join(f'{name} with {" or ".join(map(str, counts))}'
                          for name, counts in COEFFICIENTS.items())
        raise _wrong('unknown distortion model', (
            f'distortion_model {quoted(model)} with {D.size} coefficients; known are {known}'),
            'Calibrate with one of these, or rectify the images and set rectified: true.')
    return model


@np.errstate(all='ignore')  # coefficients may be any number; what overflows is no ray
def _distort(model: str, D: Float64, ideal: Float64) -> Float64:
    """(N, 2) x/z, y/z of rays -> normalised coordinates of their pixels, NaN beyond the model."""
    if not model or not len(ideal):
        return ideal
    radius: Float64 = np.hypot(*ideal.T)
    if model == 'equidistant':
        angle = np.arctan(radius)
        bent, end = _kannala_brandt(D)
        return ideal * np.where(angle < end, _ratio(bent(angle), radius), np.nan)[:, None]
    return np.where((radius < _radial(D)[2])[:, None], _brown_conrady(ideal, D)[0], np.nan)


@np.errstate(all='ignore')
def _undistort(model: str, D: Float64, distorted: Float64) -> Float64:
    """(N, 2) normalised coordinates of pixels -> x/z, y/z of their rays, NaN where is none."""
    if not model or not len(distorted):
        return distorted
    radius: Float64 = np.hypot(*distorted.T)
    if model != 'equidistant':
        return _undistort_brown_conrady(distorted, radius, D)
    bent, end = _kannala_brandt(D)
    slope, table = bent.deriv(), np.linspace(0.0, end, _TABLE_SIZE)
    angle: Float64 = np.interp(radius, bent(table), table)
    for _ in range(_ITERATIONS):
        angle = np.clip(angle - _ratio(bent(angle) - radius, slope(angle), 0.0), 0.0, end)
    found = (np.abs(bent(angle) - radius) < _TOLERANCE) & (angle < end)
    return distorted * np.where(found, _ratio(np.tan(angle), radius), np.nan)[:, None]


def _kannala_brandt(D: Float64) -> tuple[Polynomial, float]:
    """Kannala and Brandt (2006), eq. 6: distance from the centre for an angle from the axis.

    And the angle up to which it grows; a ray with z = 1 ends at 90 degrees anyway.
    """
    k1, k2, k3, k4 = D
    bent = Polynomial([0.0, 1.0, 0.0, k1, 0.0, k2, 0.0, k3, 0.0, k4])
    return bent, min(np.pi / 2.0, math.sqrt(_first_positive_root(bent.deriv().coef[::2])))


def _brown_conrady(ideal: Float64, D: Float64) -> tuple[Float64, Float64]:
    """Distorted (N, 2) coordinates and their (N, 2, 2) derivative by `ideal`."""
    points = np.column_stack([ideal, np.ones(len(ideal))])
    pixels, jacobian = cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.eye(3), D)
    # Columns 3 and 4 are the derivatives by a shift of the point along x and y, which at z = 1 are
    # those by the normalised coordinates.
    return (np.asarray(pixels, np.float64).reshape(-1, 2),
            np.asarray(jacobian[:, 3:5], np.float64).reshape(-1, 2, 2))


def _radial(D: Float64) -> tuple[Polynomial, Polynomial, float]:
    """The radial factor's numerator and denominator, polynomials in the radius squared.

    And the radius up to which that part of the model grows.
    """
    k1, k2, _p1, _p2, k3, k4, k5, k6 = np.pad(D[:8], (0, 8 - len(D[:8])))
    top, bottom = Polynomial([1.0, k1, k2, k3]), Polynomial([1.0, k4, k5, k6])
    s = Polynomial([0.0, 1.0])  # the radius squared
    slope = (top + 2.0 * s * top.deriv()) * bottom - 2.0 * s * top * bottom.deriv()
    return top, bottom, math.sqrt(min(map(_first_positive_root, (slope.coef, bottom.coef))))


def _undistort_brown_conrady(distorted: Float64, radius: Float64, D: Float64) -> Float64:
    """Newton's method in two dimensions, started from the radial part alone."""
    numerator, denominator, end = _radial(D)

    def bent(table: Float64) -> Float64:
        return table * _ratio(numerator(table**2), denominator(table**2))

    if end > _FURTHEST:  # so coarse a table would lead nowhere
        end = 2.0  # twice what the radial part needs: the others may push it outwards
        furthest = np.max(radius[np.isfinite(radius)], initial=0.0)
        while bent(np.array([end / 2.0]))[0] < furthest and end < _FURTHEST:
            end *= 2.0
    table = np.linspace(0.0, end, _TABLE_SIZE)[:-1]  # without the end: the pole of some models
    ideal = distorted * _ratio(np.interp(radius, bent(table), table), radius)[:, None]
    for _ in range(_ITERATIONS):
        value, slope = _brown_conrady(ideal, D)
        error = value - distorted
        if not (np.abs(error) > _TOLERANCE * 1e-3).any():
            break
        (a, b), (c, d) = slope[:, 0].T, slope[:, 1].T
        x, y = error.T  # Newton stands still where the system of equations is singular
        step = np.column_stack([d * x - b * y, a * y - c * x])
        ideal = ideal - _ratio(step, (a * d - b * c)[:, None], 0.0)
        ideal = ideal * np.minimum(1.0, _ratio(end, np.hypot(*ideal.T)))[:, None]
    value, slope = _brown_conrady(ideal, D)
    found = np.abs(value - distorted).max(axis=1) < _TOLERANCE
    found &= np.hypot(*ideal.T) < end
    found &= np.linalg.det(slope) > 0.0  # not mirrored: on the branch that holds the centre
    return np.where(found[:, None], ideal, np.nan)


def _ratio(numerator: ArrayLike, denominator: Float64, at_zero: float = 1.0) -> Float64:
    """Divide, with the given value where the denominator is zero (1: the limit at the centre)."""
    return np.where(denominator == 0.0, at_zero, np.divide(numerator, denominator))


def _first_positive_root(coefficients: NDArray[Any]) -> float:
    """Smallest real root above zero of a polynomial, its first coefficient 1; infinity for none.

    It is one over the largest root of the reversed polynomial: there a tiny leading coefficient
    does not drown the small roots in rounding errors.
    """
    if not np.isfinite(coefficients).all():
        return 0.0
    inverse = np.roots(coefficients)
    real = inverse.real[np.abs(inverse.imag) <= 1e-9 * np.abs(inverse)]
    largest = float(np.max(real, initial=0.0))
    return 1.0 / largest if largest > 0.0 else math.inf
