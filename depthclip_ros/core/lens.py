# SPDX-License-Identifier: Apache-2.0
"""Lens distortion as OpenCV models it, in normalised coordinates: x/z, y/z of rays and of pixels.

Brown-Conrady with its extensions (``plumb_bob``, ``rational_polynomial``), and Kannala-Brandt
(``equidistant``). These polynomials are fitted inside the image: further out they fold back, and
one pixel has several rays, or none. A model counts up to the first radius where it stops growing.
The result is NaN beyond, and where OpenCV's ray does not project back to its pixel.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.polynomial import Polynomial

from .errors import CameraInfoError, quoted
from .opencv import cv2, undistort_points

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Float64 = NDArray[np.float64]

# Names of OpenCV's two families of lens models in drivers and calibration tools, and the numbers
# of coefficients of each family. Brown-Conrady is one series, whose shorter forms omit the end: up
# to 5 are `plumb_bob`, more `rational_polynomial` (12: thin prism, 14: tilted sensor).
_BROWN_CONRADY, _EQUIDISTANT = 'plumb_bob', 'equidistant'
LENSES = {
    **dict.fromkeys(('plumb_bob', 'rational_polynomial', 'pinhole', 'opencv', 'brown', 'radtan',
                     'brown_conrady', 'radial_tangential', 'rational'), _BROWN_CONRADY),
    **dict.fromkeys(('equidistant', 'fisheye', 'equi', 'kannala_brandt', 'kannala_brandt4',
                     'opencv_fisheye'), _EQUIDISTANT)}
COEFFICIENTS = {_BROWN_CONRADY: (5, 8, 12, 14, 4), _EQUIDISTANT: (4,)}  # the usual first
# Names that mean no distortion if all coefficients are zero; otherwise librealsense's two have
# other formulas.
_UNDISTORTED = '', 'none', 'perspective', 'modified_brown_conrady', 'inverse_brown_conrady'
_TOLERANCE = 1e-7  # in normalised coordinates: far below a thousandth of a pixel
_ITERATIONS = 20
_TABLE_SIZE = 2048
# Relative distance within which a zero and a pole of the radial factor cancel. Calibrated rational
# models have such pairs inside the image, since their coefficients are poorly determined.
_CANCELLATION = 0.01


def resolve_lens(name: str, D: Float64) -> tuple[str, Float64]:
    """Resolve a name and coefficients to ROS's distortion model and its coefficients.

    Empty or all zero `D` mean no distortion ('' and no coefficients), as in many simulators, but
    not for 'equidistant', which is no pinhole even then. Zeros at the end are dropped.
    """
    spelling = re.sub(r'[\s-]+', '_', name.strip().lower())
    family = LENSES.get(spelling, '')
    if family != _EQUIDISTANT and not D.any() and (family or spelling in _UNDISTORTED):
        return '', D[:0]
    counts = COEFFICIENTS.get(family, ())
    D = next((D[:count] for count in counts if D.size >= count and not D[count:].any()), D)
    if D.size not in counts:
        models = ', '.join(f'{name} with {" or ".join(map(str, sorted(counts)))}'
                          for name, counts in COEFFICIENTS.items())
        raise CameraInfoError('unknown distortion model', (
            f'camera_info has distortion_model {quoted(name)} with {D.size} coefficients; known '
            f'are {models} (also under other names, such as rational_polynomial and fisheye). '
            'Calibrate with one of these, or rectify the images and set rectified: true.'))
    return 'rational_polynomial' if D.size > 5 else family, D



@np.errstate(all='ignore')  # coefficients may be any number; what overflows is no ray
def distort(model: str, D: Float64, ideal: Float64) -> Float64:
    """Distort rays (N, 2) to normalised coordinates of pixels (N, 2), NaN beyond the model."""
    if not model or not len(ideal):
        return ideal
    radius: Float64 = np.hypot(*ideal.T)
    if model == _EQUIDISTANT:
        angle = np.arctan(radius)
        radius_of, end = _kannala_brandt(D)
        return ideal * np.where(angle < end, _ratio(radius_of(angle), radius), np.nan)[:, None]
    return np.where((radius < _radial_end(D))[:, None], _brown_conrady(ideal, D), np.nan)


@np.errstate(all='ignore')
def undistort(model: str, D: Float64, distorted: Float64) -> Float64:
    """Undistort normalised coordinates of pixels (N, 2) to rays (N, 2), NaN without a ray."""
    if not model or not len(distorted):
        return distorted
    if model != _EQUIDISTANT:
        return _undistort_brown_conrady(distorted, D)
    radius: Float64 = np.hypot(*distorted.T)
    radius_of, end = _kannala_brandt(D)
    slope, table = radius_of.deriv(), np.linspace(0.0, end, _TABLE_SIZE)
    angle: Float64 = np.interp(radius, radius_of(table), table)
    for _ in range(_ITERATIONS):
        angle = np.clip(angle - _ratio(radius_of(angle) - radius, slope(angle), 0.0), 0.0, end)
    converged = (np.abs(radius_of(angle) - radius) < _TOLERANCE) & (angle < end)
    return distorted * np.where(converged, _ratio(np.tan(angle), radius), np.nan)[:, None]


def _undistort_brown_conrady(distorted: Float64, D: Float64) -> Float64:
    # OpenCV's iteration may converge beyond the fold of the model.
    ideal = undistort_points(distorted, D)
    valid = np.abs(_brown_conrady(ideal, D) - distorted).max(axis=1) < _TOLERANCE
    valid &= np.hypot(*ideal.T) < _radial_end(D)
    return np.where(valid[:, None], ideal, np.nan)


def _kannala_brandt(D: Float64) -> tuple[Polynomial, float]:
    """Make Kannala and Brandt's (2006) eq. 6, the radius by the angle from the axis.

    Also returns the angle up to which it grows, at most 90 degrees, where rays with z = 1 end.
    """
    k1, k2, k3, k4 = D
    radius_of = Polynomial([0.0, 1.0, 0.0, k1, 0.0, k2, 0.0, k3, 0.0, k4])
    slope = radius_of.deriv().coef[::2]
    return radius_of, min(np.pi / 2.0, math.sqrt(_first_positive_root(slope)))


def _brown_conrady(ideal: Float64, D: Float64) -> Float64:
    """Distort (N, 2) normalised coordinates by OpenCV's series."""
    points = np.column_stack([ideal, np.ones(len(ideal))])
    pixels, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.eye(3), D)
    return np.asarray(pixels, np.float64).reshape(-1, 2)


def _radial_end(D: Float64) -> float:
    """Compute the undistorted radius up to which the radial part grows.

    A zero and a pole of its factor that nearly cancel are dropped: they disturb the model within a
    pixel or two only.
    """
    if not np.isfinite(D).all():
        return 0.0
    k1, k2, _p1, _p2, k3, k4, k5, k6 = np.pad(D[:8], (0, 8 - len(D[:8])))
    # Of the reversed polynomials in the radius squared: one over the roots.
    zeros, poles = np.roots([1.0, k1, k2, k3]), []
    for pole in np.roots([1.0, k4, k5, k6]):
        distances = np.abs(zeros - pole)
        if zeros.size and distances.min() < _CANCELLATION * abs(pole):
            zeros = np.delete(zeros, distances.argmin())
        else:
            poles.append(pole)
    top, bottom = Polynomial(np.poly(zeros).real), Polynomial(np.poly(poles).real)
    s = Polynomial([0.0, 1.0])  # the radius squared
    slope = (top + 2.0 * s * top.deriv()) * bottom - 2.0 * s * top * bottom.deriv()
    return math.sqrt(min(map(_first_positive_root, (slope.coef, bottom.coef))))


def _ratio(numerator: ArrayLike, denominator: Float64, at_zero: float = 1.0) -> Float64:
    """Divide; the result is `at_zero` for a zero denominator (1: the limit at the centre)."""
    return np.where(denominator == 0.0, at_zero, np.divide(numerator, denominator))


def _first_positive_root(coefficients: NDArray[Any]) -> float:
    """Find the smallest positive root of a polynomial with first coefficient 1; inf for none.

    It is one over the largest root of the reversed polynomial, where a tiny leading coefficient
    does not ruin the small roots by rounding.
    """
    if not np.isfinite(coefficients).all():
        return 0.0
    inverse = np.roots(coefficients)
    real = inverse.real[np.abs(inverse.imag) <= 1e-9 * np.abs(inverse)]
    largest = float(np.max(real, initial=0.0))
    return 1.0 / largest if largest > 0.0 else math.inf
