# SPDX-License-Identifier: Apache-2.0
"""Lens distortion of ``sensor_msgs/CameraInfo``, both ways, in normalised coordinates.

Forwards (ray to pixel) these are OpenCV's models: Brown-Conrady with its rational, thin-prism and
tilted-sensor extensions (``plumb_bob``, ``rational_polynomial``), and Kannala-Brandt
(``equidistant``). All are polynomials fitted inside the image: further out they fold back, and
then one pixel has several rays, or none. Every model is therefore used only up to the first radius
where it stops growing; beyond that the answer is NaN. OpenCV's ``undistortPoints`` does a fixed
number of steps and returns whatever it has then; here the answer is checked by distorting it
again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .errors import CameraInfoError, quoted
from .opencv import cv2

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Float64 = NDArray[np.float64]

NO_DISTORTION = ''

# Numbers of coefficients that each model may have. OpenCV's longer forms (12: thin prism, 14:
# tilted sensor) are published as rational_polynomial by some drivers.
COEFFICIENTS = {
    'plumb_bob': (4, 5),
    'rational_polynomial': (8, 12, 14),
    'equidistant': (4,),
}

_TOLERANCE = 1e-10  # in normalised coordinates: far below a millionth of a pixel
_ITERATIONS = 20
_TABLE_SIZE = 2048
_FURTHEST = 1e6  # radius of a ray, in normalised coordinates: a millionth off the image plane
_NEGLIGIBLE = 1e-36  # coefficient: even of the twelfth power of a radius of 100


def check_model(model: str, D: Float64) -> str:
    """Give the model to use, '' for no distortion.

    An empty `D`, or only zeros, mean no distortion for the polynomial models (many simulators say
    it so), but not for 'equidistant', which is no pinhole even with all coefficients zero.

    Raises:
        CameraInfoError: 'unknown distortion model', 'wrong number of distortion coefficients'.

    """
    if model in ('', 'none') and not D.any():
        return NO_DISTORTION
    if model not in COEFFICIENTS:
        raise CameraInfoError(
            'unknown distortion model',
            f'camera_info has distortion_model {quoted(model)}; known are '
            f'{", ".join(COEFFICIENTS)}. Calibrate with one of these, or rectify the images and '
            'set rectified: true.',
        )
    if model != 'equidistant' and D.size == 0:
        return NO_DISTORTION
    if D.size not in COEFFICIENTS[model]:
        expected = ' or '.join(str(count) for count in COEFFICIENTS[model])
        raise CameraInfoError(
            'wrong number of distortion coefficients',
            f'camera_info has {D.size} coefficients in d, but {model} has {expected}. '
            'Correct d or distortion_model in the calibration file.',
        )
    return NO_DISTORTION if model != 'equidistant' and not D.any() else model


@np.errstate(all='ignore')  # coefficients may be any number; what overflows is no ray
def distort(model: str, D: Float64, ideal: Float64) -> Float64:
    """(N, 2) x/z, y/z of rays -> normalised coordinates of their pixels, NaN beyond the model."""
    if not model or not len(ideal):
        return ideal
    radius = np.hypot(*ideal.T)
    if model == 'equidistant':
        angle = np.arctan(radius)
        scale = _ratio(_kannala_brandt(angle, D), radius)
        return ideal * np.where(angle < _kannala_brandt_limit(D), scale, np.nan)[:, None]
    inside = radius < _brown_conrady_limit(D)
    return np.where(inside[:, None], _brown_conrady(ideal, D)[0], np.nan)


@np.errstate(all='ignore')
def undistort(model: str, D: Float64, distorted: Float64) -> Float64:
    """(N, 2) normalised coordinates of pixels -> x/z, y/z of their rays, NaN where is none."""
    if not model or not len(distorted):
        return distorted
    radius = np.hypot(*distorted.T)
    if model == 'equidistant':
        angle = _undistort_angle(radius, D)
        scale = np.where(np.isnan(angle), np.nan, _ratio(np.tan(angle), radius))
        return distorted * scale[:, None]
    return _undistort_brown_conrady(distorted, radius, D)


def _kannala_brandt(angle: Float64, D: Float64) -> Float64:
    """Kannala and Brandt (2006), eq. 6: distance from the centre for an angle from the axis."""
    return angle * np.polynomial.Polynomial([1.0, *D])(angle**2)


def _kannala_brandt_slope(D: Float64) -> np.polynomial.Polynomial:
    """Derivative of `_kannala_brandt` by the angle, as a polynomial in the angle squared."""
    return np.polynomial.Polynomial([1.0, *(D * [3.0, 5.0, 7.0, 9.0])])


def _kannala_brandt_limit(D: Float64) -> float:
    """Angle up to which the model grows; a ray with z = 1 ends at 90 degrees anyway."""
    return min(np.pi / 2.0, math.sqrt(_first_positive_root(_kannala_brandt_slope(D))))


def _undistort_angle(radius: Float64, D: Float64) -> Float64:
    """Angle from the axis for a distance from the centre, NaN where there is none."""
    limit = _kannala_brandt_limit(D)
    slope = _kannala_brandt_slope(D)
    angle = _look_up(lambda table: _kannala_brandt(table, D), radius, limit)
    for _ in range(_ITERATIONS):
        error = _kannala_brandt(angle, D) - radius
        if not (np.abs(error) > _TOLERANCE * 1e-3).any():
            break
        angle = np.clip(angle - _ratio(error, slope(angle**2), 0.0), 0.0, limit)
    converged = np.abs(_kannala_brandt(angle, D) - radius) < _TOLERANCE
    return np.where(converged & (angle < limit), angle, np.nan)


def _brown_conrady(ideal: Float64, D: Float64) -> tuple[Float64, Float64]:
    """Distorted (N, 2) coordinates and their (N, 2, 2) derivative by `ideal`."""
    points = np.column_stack([ideal, np.ones(len(ideal))])
    pixels, jacobian = cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.eye(3), D)
    # Columns 3 and 4 are the derivatives by a shift of the point along x and y, which at z = 1 are
    # those by the normalised coordinates.
    shape = (len(ideal), 2)
    return np.asarray(pixels, np.float64).reshape(shape), np.asarray(
        jacobian[:, 3:5], np.float64
    ).reshape(*shape, 2)


def _radial_polynomials(D: Float64) -> tuple[np.polynomial.Polynomial, np.polynomial.Polynomial]:
    """Numerator and denominator of the radial factor, as polynomials in the radius squared."""
    k1, k2, _p1, _p2, k3, k4, k5, k6 = np.pad(D[:8], (0, 8 - len(D[:8])))
    polynomial = np.polynomial.Polynomial
    return polynomial([1.0, k1, k2, k3]), polynomial([1.0, k4, k5, k6])


def _brown_conrady_limit(D: Float64) -> float:
    """Radius up to which the radial part of the model grows."""
    numerator, denominator = _radial_polynomials(D)
    s = np.polynomial.Polynomial([0.0, 1.0])  # the radius squared
    slope = (
        numerator + 2.0 * s * numerator.deriv()
    ) * denominator - 2.0 * s * numerator * denominator.deriv()
    return math.sqrt(min(_first_positive_root(slope), _first_positive_root(denominator)))


def _undistort_brown_conrady(distorted: Float64, radius: Float64, D: Float64) -> Float64:
    """Newton's method in two dimensions, started from the radial part alone."""
    numerator, denominator = _radial_polynomials(D)

    def radial(table: Float64) -> Float64:
        return table * _ratio(numerator(table**2), denominator(table**2))

    end = _brown_conrady_limit(D)
    if end > _FURTHEST:  # so coarse a table would lead nowhere
        end = 2.0  # twice what the radial part needs: the others may push it outwards
        furthest = np.max(radius[np.isfinite(radius)], initial=0.0)
        while radial(np.array([end / 2.0]))[0] < furthest and end < _FURTHEST:
            end *= 2.0
    ideal = distorted * _ratio(_look_up(radial, radius, end), radius)[:, None]
    for _ in range(_ITERATIONS):
        value, jacobian = _brown_conrady(ideal, D)
        error = value - distorted
        if not (np.abs(error) > _TOLERANCE * 1e-3).any():
            break
        ideal = ideal - _solve_2x2(jacobian, error)
        ideal = ideal * np.minimum(1.0, _ratio(end, np.hypot(*ideal.T)))[:, None]
    value, jacobian = _brown_conrady(ideal, D)
    valid = np.abs(value - distorted).max(axis=1) < _TOLERANCE
    valid &= np.hypot(*ideal.T) < end
    valid &= _determinant(jacobian) > 0.0  # not mirrored: on the branch that holds the centre
    return np.where(valid[:, None], ideal, np.nan)


def _determinant(matrix: Float64) -> Float64:
    """Determinants of (N, 2, 2)."""
    return matrix[:, 0, 0] * matrix[:, 1, 1] - matrix[:, 0, 1] * matrix[:, 1, 0]


def _solve_2x2(matrix: Float64, vector: Float64) -> Float64:
    """Solve N systems of two equations; a singular one gives zero, so that Newton stands still."""
    (a, b), (c, d) = matrix[:, 0].T, matrix[:, 1].T
    x, y = vector.T
    determinant = _determinant(matrix)
    return np.column_stack(
        [_ratio(d * x - b * y, determinant, 0.0), _ratio(a * y - c * x, determinant, 0.0)]
    )


def _look_up(function: Callable[[Float64], Float64], value: Float64, end: float) -> Float64:
    """Coarse inverse of a function that grows from 0 to `end`."""
    table = np.linspace(0.0, end, _TABLE_SIZE)[:-1]  # without the end: the pole of some models
    return np.interp(value, function(table), table)


def _ratio(
    numerator: Float64 | float, denominator: Float64 | float, at_zero: float = 1.0
) -> Float64:
    """Divide, with the given value where the denominator is zero (1: the limit at the centre)."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    result = np.full(denominator.shape, at_zero)
    np.divide(numerator, denominator, out=result, where=denominator != 0.0)
    return result


def _first_positive_root(polynomial: np.polynomial.Polynomial) -> float:
    """Smallest real root above zero, infinity where there is none; 0 where numbers overflow.

    It is found as the largest root of the reversed polynomial, whose leading coefficient is 1: a
    tiny one would drown the small roots in rounding errors.
    """
    if not np.isfinite(polynomial.coef).all():
        return 0.0
    coefficients = polynomial.trim(_NEGLIGIBLE).coef
    try:
        inverse = np.polynomial.Polynomial(coefficients[::-1]).roots()
    except np.linalg.LinAlgError:
        return 0.0
    real = inverse.real[np.abs(inverse.imag) <= 1e-9 * np.abs(inverse)]
    largest = float(np.max(real, initial=0.0))
    return 1.0 / largest if largest > 0.0 else math.inf
