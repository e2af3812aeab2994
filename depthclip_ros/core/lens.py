# SPDX-License-Identifier: Apache-2.0
"""Lens distortion as OpenCV models it, in normalised coordinates: x/z, y/z of rays and of pixels.

Brown-Conrady with its extensions (``plumb_bob``, ``rational_polynomial``), and Kannala-Brandt
(``equidistant``). These polynomials are fitted inside the image: further out they fold back, and
one pixel has several rays, or none. A model is used up to the first radius where it stops growing;
beyond, the answer is NaN, as it is where OpenCV's ray, projected back, does not end in its pixel.
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

# Names by which drivers and calibration tools call OpenCV's two families of lens models, and the
# numbers of coefficients that a family may have. Brown-Conrady is one series, of which a shorter
# form leaves out the end: 5 and less are `plumb_bob`, more `rational_polynomial` (12: with thin
# prism, 14: with tilted sensor).
_BROWN_CONRADY, _EQUIDISTANT = 'plumb_bob', 'equidistant'
LENSES = {
    **dict.fromkeys(('plumb_bob', 'rational_polynomial', 'pinhole', 'opencv', 'brown', 'radtan',
                     'brown_conrady', 'radial_tangential', 'rational'), _BROWN_CONRADY),
    **dict.fromkeys(('equidistant', 'fisheye', 'equi', 'kannala_brandt', 'kannala_brandt4',
                     'opencv_fisheye'), _EQUIDISTANT)}
COEFFICIENTS = {_BROWN_CONRADY: (5, 8, 12, 14, 4), _EQUIDISTANT: (4,)}  # the usual first
# Names that mean no distortion where all coefficients are zero; librealsense's two have formulas
# of their own where they are not.
_UNDISTORTED = '', 'none', 'perspective', 'modified_brown_conrady', 'inverse_brown_conrady'
_TOLERANCE = 1e-7  # in normalised coordinates: far below a thousandth of a pixel
_ITERATIONS = 20
_TABLE_SIZE = 2048
# Part by which a zero and a pole of the radial factor may differ to cancel. Calibrated rational
# models have such pairs inside the image: their coefficients are hardly determined.
_CANCELLED = 0.01


def lens_of(name: str, D: Float64) -> tuple[str, Float64]:
    """The distortion model to use and its coefficients; '' and none for no distortion.

    Empty or all zero `D` mean none (many simulators say it so), but not for 'equidistant', which
    is no pinhole even with all coefficients zero. Zeros at the end are left out.
    """
    family = LENSES.get(_spelled(name), '')
    if family != _EQUIDISTANT and not D.any() and (family or _spelled(name) in _UNDISTORTED):
        return '', D[:0]
    counts = COEFFICIENTS.get(family, ())
    D = next((D[:count] for count in counts if D.size >= count and not D[count:].any()), D)
    if D.size not in counts:
        known = ', '.join(f'{name} with {" or ".join(map(str, sorted(counts)))}'
                          for name, counts in COEFFICIENTS.items())
        raise CameraInfoError('unknown distortion model', (
            f'camera_info has distortion_model {quoted(name)} with {D.size} coefficients; known '
            f'are {known} (also under other names, such as rational_polynomial and fisheye). '
            'Calibrate with one of these, or rectify the images and set rectified: true.'))
    return 'rational_polynomial' if D.size > 5 else family, D


def _spelled(name: str) -> str:
    """A name without what spellings differ in."""
    return re.sub(r'[\s-]+', '_', name.strip().lower())


@np.errstate(all='ignore')  # coefficients may be any number; what overflows is no ray
def distort(model: str, D: Float64, ideal: Float64) -> Float64:
    """(N, 2) x/z, y/z of rays -> normalised coordinates of their pixels, NaN beyond the model."""
    if not model or not len(ideal):
        return ideal
    radius: Float64 = np.hypot(*ideal.T)
    if model == _EQUIDISTANT:
        angle = np.arctan(radius)
        bent, end = _kannala_brandt(D)
        return ideal * np.where(angle < end, _ratio(bent(angle), radius), np.nan)[:, None]
    return np.where((radius < _radial_end(D))[:, None], _brown_conrady(ideal, D), np.nan)


@np.errstate(all='ignore')
def undistort(model: str, D: Float64, distorted: Float64) -> Float64:
    """(N, 2) normalised coordinates of pixels -> x/z, y/z of their rays, NaN where is none."""
    if not model or not len(distorted):
        return distorted
    if model != _EQUIDISTANT:
        return _undistort_brown_conrady(distorted, D)
    radius: Float64 = np.hypot(*distorted.T)
    bent, end = _kannala_brandt(D)
    slope, table = bent.deriv(), np.linspace(0.0, end, _TABLE_SIZE)
    angle: Float64 = np.interp(radius, bent(table), table)
    for _ in range(_ITERATIONS):
        angle = np.clip(angle - _ratio(bent(angle) - radius, slope(angle), 0.0), 0.0, end)
    found = (np.abs(bent(angle) - radius) < _TOLERANCE) & (angle < end)
    return distorted * np.where(found, _ratio(np.tan(angle), radius), np.nan)[:, None]


def _undistort_brown_conrady(distorted: Float64, D: Float64) -> Float64:
    # OpenCV's iteration does not converge where the model is mirrored, but may beyond its fold.
    ideal = undistort_points(distorted, D)
    known = np.abs(_brown_conrady(ideal, D) - distorted).max(axis=1) < _TOLERANCE
    known &= np.hypot(*ideal.T) < _radial_end(D)
    return np.where(known[:, None], ideal, np.nan)


def _kannala_brandt(D: Float64) -> tuple[Polynomial, float]:
    """Kannala and Brandt (2006), eq. 6: distance from the centre for an angle from the axis.

    And the angle up to which it grows; a ray with z = 1 ends at 90 degrees anyway.
    """
    k1, k2, k3, k4 = D
    bent = Polynomial([0.0, 1.0, 0.0, k1, 0.0, k2, 0.0, k3, 0.0, k4])
    return bent, min(np.pi / 2.0, math.sqrt(_first_positive_root(bent.deriv().coef[::2])))


def _brown_conrady(ideal: Float64, D: Float64) -> Float64:
    """Distorted (N, 2) coordinates."""
    points = np.column_stack([ideal, np.ones(len(ideal))])
    pixels, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.eye(3), D)
    return np.asarray(pixels, np.float64).reshape(-1, 2)


def _radial_end(D: Float64) -> float:
    """Radius of the ideal point up to which the radial part grows.

    A zero and a pole of its factor that nearly cancel are left out: within a pixel or two of
    them the model is wild, and beyond it goes on as if they were not there.
    """
    if not np.isfinite(D).all():
        return 0.0
    k1, k2, _p1, _p2, k3, k4, k5, k6 = np.pad(D[:8], (0, 8 - len(D[:8])))
    # Of the reversed polynomials in the radius squared: one over the roots.
    zeros, poles = np.roots([1.0, k1, k2, k3]), []
    for pole in np.roots([1.0, k4, k5, k6]):
        apart = np.abs(zeros - pole)
        if zeros.size and apart.min() < _CANCELLED * abs(pole):
            zeros = np.delete(zeros, apart.argmin())
        else:
            poles.append(pole)
    top, bottom = Polynomial(np.poly(zeros).real), Polynomial(np.poly(poles).real)
    s = Polynomial([0.0, 1.0])  # the radius squared
    slope = (top + 2.0 * s * top.deriv()) * bottom - 2.0 * s * top * bottom.deriv()
    return math.sqrt(min(map(_first_positive_root, (slope.coef, bottom.coef))))


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
