# SPDX-License-Identifier: Apache-2.0
"""Error bars of corrected depth: a regression of the error, calibrated by conformal prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.calibration import STDDEV_RATIO_LIMITS, log_conformal_factor, stddev_predictors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .problem import Problem

Float64 = NDArray[np.float64]

COVERAGE, QUANTILE_STDDEVS = 0.9, 1.645  # fraction of pixels within so many standard deviations
DECILES = 10
ERROR_OFFSET = 0.01  # of depth; smaller errors are chance
RIDGE = 1e-3  # ridge parameter per observation
ITERATIONS = 4  # of fitting interpolated factors
MIN_STEP = 1e-3  # between knots, of log depth


class ErrorBars(NamedTuple):
    """A model of the relative standard deviation, calibrated on held-out depth.

    Attributes:
        arrays: `spread` and `knots` of `Calibration`, float32.
        coverage: fraction of pixels of held-out sequences within 1.645 standard deviations.

    """

    arrays: dict[str, NDArray[np.float32]]
    coverage: float


def error_bars(problem: Problem, log_depth: Float64) -> ErrorBars:
    """Fit the error of (F, passes, P) held-out log depth; estimate the coverage.

    As in conformal prediction, the model is multiplied by the 90 % quantile of the error ratios in
    folds that it was not fitted to, so that it covers unseen sequences. Coverage is measured by
    nested cross-validation, on a fold that gave neither the model nor the quantile; but the
    corrections of the other folds were fitted with it.
    """
    errors = _Errors(problem, log_depth)
    folds = [problem.fold == fold for fold in range(problem.folds)]
    held_out = {}  # ratios in the first fold, by the model without both folds
    for i, first in enumerate(folds):
        for j, second in enumerate(folds[:i + 1]):
            ratios = errors.ratios(*errors.fit(~(first | second)))
            held_out[i, j], held_out[j, i] = ratios[first], ratios[second]
    covered = [held_out[i, i] <= _quantile(
        held_out[j, i] for j in range(len(folds)) if j != i) for i in range(len(folds))]
    weights, knots = errors.fit(np.ones(problem.count, bool))
    knots[1] += np.log(_quantile(held_out[i, i] for i in range(len(folds))))
    return ErrorBars({'spread': weights.astype(np.float32), 'knots': knots.astype(np.float32)},
                     float(np.concatenate(covered).mean()))


class _Errors:
    """Errors of log depth (F, passes, P), and the terms that predict their size."""

    def __init__(self, problem: Problem, log_depth: Float64) -> None:
        self._problem, self._log_depth = problem, log_depth[:, 0]
        shape = (problem.count, *problem.grid)
        with torch.inference_mode():
            terms = stddev_predictors(*(
                torch.from_numpy(np.asarray(values, np.float32)) for values in (
                    self._log_depth.reshape(shape),
                    (self._log_depth - problem.base[:, 0]).reshape(shape),
                    problem.weights, problem.spread, problem.rays[:, 0])))
        self._terms = np.nan_to_num(terms.flatten(2).numpy().astype(np.float64))  # (F, T, P)
        self._pixel_terms = np.stack([
            problem.upsampled(values) for values in self._terms.swapaxes(0, 1)], axis=-1)
        self._patch_depth = problem.depth(log_depth)
        self._depth = problem.upsampled(self._patch_depth)
        self._error = np.abs(self._depth - problem.truth)

    def ratios(self, weights: Float64, knots: Float64) -> Float64:
        """Return the ratio (F, S) of the error to 1.645 predicted standard deviations."""
        logarithm = np.einsum('t,ftp->fp', weights, self._terms) + log_conformal_factor(
            torch.from_numpy(knots), torch.from_numpy(self._log_depth)).numpy()
        return np.asarray(self._error / (QUANTILE_STDDEVS * self._problem.upsampled(
            self._patch_depth * np.exp(logarithm).clip(*STDDEV_RATIO_LIMITS))))

    def fit(self, frames: NDArray[np.bool_]) -> tuple[Float64, Float64]:
        """Fit log error to some frames: weights (T,), knots (2, N) of a log factor by depth."""
        depth = self._depth[frames].ravel()
        weights = _ridge(self._pixel_terms[frames].reshape(len(depth), -1),
                         np.log(self._error[frames].ravel() / depth + ERROR_OFFSET))
        decile = np.searchsorted(
            np.quantile(depth, np.linspace(0, 1, DECILES + 1)[1:-1]), depth)
        centres = np.log([np.median(depth[decile == i]) for i in np.unique(decile)])
        centres = np.maximum.accumulate(centres) + MIN_STEP * np.arange(len(centres))
        if len(centres) < 2:  # depth is the same everywhere
            centres = np.array([centres[0], centres[0] + 1.0])
        nearest = np.abs(np.log(depth)[:, None] - centres).argmin(axis=1)
        knots = np.stack([centres, np.zeros(len(centres))])
        for _ in range(ITERATIONS):
            ratios = self.ratios(weights, knots)[frames].ravel()
            for i in np.unique(nearest):
                knots[1, i] += np.log(_quantile([ratios[nearest == i]]))
        return weights, knots


def _quantile(ratios: Iterable[Float64]) -> float:
    """Return the 90 % quantile, above 0 so that its logarithm is finite."""
    return float(max(1e-6, np.quantile(np.concatenate([*ratios]), COVERAGE)))


def _ridge(terms: Float64, target: Float64) -> Float64:
    """Fit weights of terms (N, T), the first constant, to a target (N,) by ridge regression."""
    mean, stddev = terms.mean(axis=0), terms.std(axis=0)
    divisor = np.where(stddev > 1e-6, stddev, np.inf)
    standardized = (terms - mean) / divisor
    weights: Float64 = np.linalg.solve(
        standardized.T @ standardized + RIDGE * len(target) * np.eye(terms.shape[1]),
        standardized.T @ (target - target.mean())) / divisor
    weights[0] += target.mean() - mean @ weights
    return weights
