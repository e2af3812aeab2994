# SPDX-License-Identifier: Apache-2.0
"""How wrong corrected depth is: a model of the error, and what conformal prediction adds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ..core.calibration import SPREADS, factor, spread_terms

if TYPE_CHECKING:
    from .problem import Problem

Float64 = NDArray[np.float64]

COVERAGE, REACH = 0.9, 1.645  # share of the pixels within so many standard deviations
DECILES = 10
LEAST_ERROR = 0.01  # of depth; what is smaller is chance
RIDGE = 1e-3  # for each observation
ROUNDS = 4  # of fitting factors that are interpolated
LEAST_STEP = 1e-3  # between knots, of log depth


class ErrorBars(NamedTuple):
    """A model of the relative standard deviation, calibrated on held-out depth.

    Attributes:
        arrays: `spread` and `knots` of `Calibration`, float32.
        coverage: share of the pixels of held-out sequences within 1.645 standard deviations.
        sensor_model: a, b, c, d, e of elevation_mapping: sigma = a + b (z - c)^2 + d z^e.

    """

    arrays: dict[str, NDArray[np.float32]]
    coverage: float
    sensor_model: tuple[float, ...]


def error_bars(problem: Problem, log_depth: Float64) -> ErrorBars:
    """Fit to (F, passes, P) log depth that was fitted to other sequences.

    The error bars of every fold are tried with what the others make of them; a last common factor
    is what that shows to be missing, so that unseen sequences are covered, too.
    """
    errors = _Errors(problem, log_depth)
    ratios = np.empty(errors.error.shape)
    folds = [problem.fold == fold for fold in range(problem.folds)]
    for inside in folds:
        ratios[inside] = errors.ratio(*errors.model(~inside), inside)
    covered = [ratios[inside] <= max(1e-6, np.quantile(ratios[~inside], COVERAGE))
               for inside in folds]
    weights, knots = errors.model(np.ones(problem.count, bool))
    knots[1] += np.log(max(1e-6, np.quantile(ratios, COVERAGE)))
    return ErrorBars({'spread': weights.astype(np.float32), 'knots': knots.astype(np.float32)},
                     float(np.concatenate(covered).mean()),
                     _sensor_model(errors.seen.ravel(), errors.error.ravel()))


class _Errors:
    """Terms and errors of all frames, at the patches and at the measured pixels."""

    def __init__(self, problem: Problem, log_depth: Float64) -> None:
        self.log_depth, self.upsampled = log_depth[:, 0], problem.upsampled
        in_view = (len(log_depth), *problem.grid)
        with torch.inference_mode():
            terms = spread_terms(*(torch.from_numpy(np.asarray(values, np.float32)) for values in (
                self.log_depth.reshape(in_view),
                (self.log_depth - problem.base[:, 0]).reshape(in_view),
                problem.weights, problem.spread, problem.rays[:, 0])))
        self.terms = np.nan_to_num(terms.flatten(2).numpy().astype(np.float64))  # (F, T, P)
        self.depth = problem.depth(log_depth)
        self.seen = self.upsampled(self.depth)
        self.error = np.abs(self.seen - problem.truth)
        self.pixel_terms = np.stack([
            self.upsampled(self.terms[:, i]) for i in range(self.terms.shape[1])], axis=-1)

    def ratio(self, weights: Float64, knots: Float64, frames: NDArray[np.bool_]) -> Float64:
        """(F', S) error over what the error bars of a model reach, of some frames."""
        logarithm = np.einsum('t,ftp->fp', weights, self.terms) + factor(
            torch.from_numpy(knots), torch.from_numpy(self.log_depth)).numpy()
        stddev = self.upsampled(self.depth * np.exp(logarithm).clip(*SPREADS))
        return np.asarray((self.error / (REACH * stddev))[frames])

    def model(self, frames: NDArray[np.bool_]) -> tuple[Float64, Float64]:
        """Fit to some frames: the logarithm of the error, then the factors of the deciles.

        Returns:
            Weights of the terms (SPREAD_TERMS,), and knots (2, Q) of log depth and log factor.

        """
        seen = self.seen[frames].ravel()
        terms = self.pixel_terms[frames].reshape(len(seen), -1)
        wish = np.log(self.error[frames].ravel() / seen + LEAST_ERROR)
        mean, deviation = terms.mean(axis=0), terms.std(axis=0)
        scale = np.where(deviation > 1e-6, deviation, np.inf)
        scaled = (terms - mean) / scale
        solved = np.linalg.solve(
            scaled.T @ scaled + RIDGE * len(seen) * np.eye(terms.shape[1]),
            scaled.T @ (wish - wish.mean()))
        weights = solved / scale
        weights[0] += wish.mean() - mean @ weights  # the first term is one
        places = np.log([np.median(seen[part]) for part in _parts(seen, DECILES)])
        places = np.maximum.accumulate(places) + LEAST_STEP * np.arange(len(places))
        if len(places) < 2:  # depth is the same everywhere
            places = np.array([places[0], places[0] + 1.0])
        nearest = np.abs(np.log(seen)[:, None] - places).argmin(axis=1)
        knots = np.stack([places, np.zeros(len(places))])
        for _ in range(ROUNDS):
            ratio = self.ratio(weights, knots, frames).ravel()
            for i in np.unique(nearest):
                knots[1, i] += np.log(max(1e-6, np.quantile(ratio[nearest == i], COVERAGE)))
        return weights, knots


def _parts(values: Float64, count: int) -> list[NDArray[np.bool_]]:
    """Which values are in each of so many quantiles; those of equal values are fewer."""
    part = np.searchsorted(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]), values)
    return [part == i for i in np.unique(part)]


def _sensor_model(seen: Float64, error: Float64) -> tuple[float, ...]:
    """Of errors by depth, as `elevation_mapping` wants it."""
    parts = _parts(seen, 2 * DECILES)
    z = np.array([np.median(seen[inside]) for inside in parts])
    sigma = np.array([max(1e-6, np.quantile(error[inside], COVERAGE) / REACH) for inside in parts])

    def off(p: Float64) -> Float64:
        a, b, c, d, e = p
        return np.asarray((a + b * (z - c) ** 2 + d * z ** e) / sigma - 1)

    fitted = least_squares(
        off, [0.5 * sigma.min(), 1e-3, z.min(), 0.05, 1.0],
        bounds=([0, 0, 0, 0, 0], [np.inf, np.inf, z.max() + 1e-6, np.inf, 3.0]))
    return tuple(float(value) for value in fitted.x)
