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
    own, depth = log_depth[:, 0], problem.depth(log_depth)
    in_view = (problem.count, *problem.grid)
    with torch.inference_mode():
        found = spread_terms(*(torch.from_numpy(np.asarray(values, np.float32)) for values in (
            own.reshape(in_view), (own - problem.base[:, 0]).reshape(in_view), problem.weights,
            problem.spread, problem.rays[:, 0])))
    terms = np.nan_to_num(found.flatten(2).numpy().astype(np.float64))  # (F, T, P)
    seen = problem.upsampled(depth)
    error = np.abs(seen - problem.truth)
    pixel_terms = np.stack([
        problem.upsampled(terms[:, i]) for i in range(terms.shape[1])], axis=-1)

    def ratios(weights: Float64, knots: Float64) -> Float64:
        """(F, S) error over what the error bars of a model reach."""
        logarithm = np.einsum('t,ftp->fp', weights, terms) + factor(
            torch.from_numpy(knots), torch.from_numpy(own)).numpy()
        return np.asarray(error / (
            REACH * problem.upsampled(depth * np.exp(logarithm).clip(*SPREADS))))

    def model(frames: NDArray[np.bool_]) -> tuple[Float64, Float64]:
        """Fit to some frames: the logarithm of the error, then the factors of the deciles."""
        said = seen[frames].ravel()
        weights = _linear(pixel_terms[frames].reshape(len(said), -1),
                          np.log(error[frames].ravel() / said + LEAST_ERROR))
        places = np.log([np.median(said[part]) for part in _parts(said, DECILES)])
        places = np.maximum.accumulate(places) + LEAST_STEP * np.arange(len(places))
        if len(places) < 2:  # depth is the same everywhere
            places = np.array([places[0], places[0] + 1.0])
        nearest = np.abs(np.log(said)[:, None] - places).argmin(axis=1)
        knots = np.stack([places, np.zeros(len(places))])
        for _ in range(ROUNDS):
            ratio = ratios(weights, knots)[frames].ravel()
            for i in np.unique(nearest):
                knots[1, i] += np.log(_reach(ratio[nearest == i]))
        return weights, knots

    missing = np.empty(error.shape)
    folds = [problem.fold == fold for fold in range(problem.folds)]
    for inside in folds:
        missing[inside] = ratios(*model(~inside))[inside]
    covered = [missing[inside] <= _reach(missing[~inside]) for inside in folds]
    weights, knots = model(np.ones(problem.count, bool))
    knots[1] += np.log(_reach(missing))
    return ErrorBars({'spread': weights.astype(np.float32), 'knots': knots.astype(np.float32)},
                     float(np.concatenate(covered).mean()),
                     _sensor_model(seen.ravel(), error.ravel()))


def _reach(values: Float64) -> float:
    """Below what nine of ten are."""
    return float(max(1e-6, np.quantile(values, COVERAGE)))


def _linear(terms: Float64, wish: Float64) -> Float64:
    """Weights of the terms, of which the first is one."""
    mean, deviation = terms.mean(axis=0), terms.std(axis=0)
    scale = np.where(deviation > 1e-6, deviation, np.inf)
    scaled = (terms - mean) / scale
    weights: Float64 = np.linalg.solve(
        scaled.T @ scaled + RIDGE * len(wish) * np.eye(terms.shape[1]),
        scaled.T @ (wish - wish.mean())) / scale
    weights[0] += wish.mean() - mean @ weights
    return weights


def _parts(values: Float64, count: int) -> list[NDArray[np.bool_]]:
    """Which values are in each of so many quantiles; those of equal values are fewer."""
    part = np.searchsorted(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]), values)
    return [part == i for i in np.unique(part)]


def _sensor_model(seen: Float64, error: Float64) -> tuple[float, ...]:
    """Of errors by depth, as `elevation_mapping` wants it."""
    parts = _parts(seen, 2 * DECILES)
    z = np.array([np.median(seen[inside]) for inside in parts])
    sigma = np.array([_reach(error[inside]) / REACH for inside in parts])

    def off(p: Float64) -> Float64:
        a, b, c, d, e = p
        return np.asarray((a + b * (z - c) ** 2 + d * z ** e) / sigma - 1)

    fitted = least_squares(
        off, [0.5 * sigma.min(), 1e-3, z.min(), 0.05, 1.0],
        bounds=([0, 0, 0, 0, 0], [np.inf, np.inf, z.max() + 1e-6, np.inf, 3.0]))
    return tuple(float(value) for value in fitted.x)
