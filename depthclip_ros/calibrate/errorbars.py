# SPDX-License-Identifier: Apache-2.0
"""How wrong corrected depth is: a model of the error, and what conformal prediction adds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.calibration import SPREADS, factor, spread_terms

if TYPE_CHECKING:
    from collections.abc import Iterable

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

    """

    arrays: dict[str, NDArray[np.float32]]
    coverage: float


def error_bars(problem: Problem, log_depth: Float64) -> ErrorBars:
    """Fit to (F, passes, P) log depth that was fitted to other sequences.

    The model is multiplied by the 90 % quantile of the errors in folds that it was not fitted to,
    so that unseen sequences are covered, too. Coverage is nested cross-validation: of a fold that
    neither the models nor that quantile are taken from.
    """
    errors = _Errors(problem, log_depth)
    folds = [problem.fold == fold for fold in range(problem.folds)]
    held_out = {}  # ratios of the first fold, by the model of all but the two
    for i, first in enumerate(folds):
        for j, second in enumerate(folds[:i + 1]):
            ratios = errors.ratios(*errors.model(~(first | second)))
            held_out[i, j], held_out[j, i] = ratios[first], ratios[second]
    covered = [held_out[i, i] <= _quantile(
        held_out[j, i] for j in range(len(folds)) if j != i) for i in range(len(folds))]
    weights, knots = errors.model(np.ones(problem.count, bool))
    knots[1] += np.log(_quantile(held_out[i, i] for i in range(len(folds))))
    return ErrorBars({'spread': weights.astype(np.float32), 'knots': knots.astype(np.float32)},
                     float(np.concatenate(covered).mean()))


class _Errors:
    """Errors of log depth (F, passes, P), and the terms that their size is modelled by."""

    def __init__(self, problem: Problem, log_depth: Float64) -> None:
        self._problem, self._log_depth = problem, log_depth[:, 0]
        in_view = (problem.count, *problem.grid)
        with torch.inference_mode():
            terms = spread_terms(*(
                torch.from_numpy(np.asarray(values, np.float32)) for values in (
                    self._log_depth.reshape(in_view),
                    (self._log_depth - problem.base[:, 0]).reshape(in_view),
                    problem.weights, problem.spread, problem.rays[:, 0])))
        self._terms = np.nan_to_num(terms.flatten(2).numpy().astype(np.float64))  # (F, T, P)
        self._pixel_terms = np.stack([
            problem.upsampled(values) for values in self._terms.swapaxes(0, 1)], axis=-1)
        self._patch_depth = problem.depth(log_depth)
        self._depth = problem.upsampled(self._patch_depth)
        self._error = np.abs(self._depth - problem.truth)

    def ratios(self, weights: Float64, knots: Float64) -> Float64:
        """(F, S) error over what the error bars of a model reach."""
        logarithm = np.einsum('t,ftp->fp', weights, self._terms) + factor(
            torch.from_numpy(knots), torch.from_numpy(self._log_depth)).numpy()
        return np.asarray(self._error / (REACH * self._problem.upsampled(
            self._patch_depth * np.exp(logarithm).clip(*SPREADS))))

    def model(self, frames: NDArray[np.bool_]) -> tuple[Float64, Float64]:
        """Fit to some frames: weights of the logarithm of the error, and factors of deciles."""
        depth = self._depth[frames].ravel()
        weights = _linear(self._pixel_terms[frames].reshape(len(depth), -1),
                          np.log(self._error[frames].ravel() / depth + LEAST_ERROR))
        decile = np.searchsorted(
            np.quantile(depth, np.linspace(0, 1, DECILES + 1)[1:-1]), depth)
        places = np.log([np.median(depth[decile == i]) for i in np.unique(decile)])
        places = np.maximum.accumulate(places) + LEAST_STEP * np.arange(len(places))
        if len(places) < 2:  # depth is the same everywhere
            places = np.array([places[0], places[0] + 1.0])
        nearest = np.abs(np.log(depth)[:, None] - places).argmin(axis=1)
        knots = np.stack([places, np.zeros(len(places))])
        for _ in range(ROUNDS):
            ratios = self.ratios(weights, knots)[frames].ravel()
            for i in np.unique(nearest):
                knots[1, i] += np.log(_quantile([ratios[nearest == i]]))
        return weights, knots


def _quantile(ratios: Iterable[Float64]) -> float:
    """The 90 % quantile, of which the logarithm is finite."""
    return float(max(1e-6, np.quantile(np.concatenate([*ratios]), COVERAGE)))


def _linear(terms: Float64, target: Float64) -> Float64:
    """Weights of the terms, of which the first is one, by ridge regression."""
    mean, deviation = terms.mean(axis=0), terms.std(axis=0)
    scale = np.where(deviation > 1e-6, deviation, np.inf)
    scaled = (terms - mean) / scale
    weights: Float64 = np.linalg.solve(
        scaled.T @ scaled + RIDGE * len(target) * np.eye(terms.shape[1]),
        scaled.T @ (target - target.mean())) / scale
    weights[0] += target.mean() - mean @ weights
    return weights
