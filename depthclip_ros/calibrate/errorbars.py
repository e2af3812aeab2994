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


class Model(NamedTuple):
    """Weights of the terms (SPREAD_TERMS,), and knots (2, Q) of log depth and log factor."""

    weights: Float64
    knots: Float64


class ErrorBars(NamedTuple):
    """A model of the relative standard deviation, calibrated on held-out depth.

    Attributes:
        weights: (SPREAD_TERMS,) float32, of `Calibration`.
        knots: (2, Q) float32, of `Calibration`.
        coverage: share of the pixels of held-out sequences within 1.645 standard deviations.
        sensor_model: a, b, c, d, e of elevation_mapping: sigma = a + b (z - c)^2 + d z^e.

    """

    weights: NDArray[np.float32]
    knots: NDArray[np.float32]
    coverage: float
    sensor_model: tuple[float, float, float, float, float]

    @classmethod
    def fit(cls, problem: Problem, log_depth: Float64) -> ErrorBars:
        """Fit to (F, passes, P) log depth that was fitted to other sequences.

        The error bars of every fold are tried with what the others make of them; a last common
        factor is what that shows to be missing, so that unseen sequences are covered, too.
        """
        errors = _Errors(problem, log_depth)
        ratios = np.empty(errors.error.shape)
        for fold in range(problem.folds):
            inside = problem.fold == fold
            ratios[inside] = errors.ratio(errors.model(~inside), inside)
        covered = [
            ratios[problem.fold == fold]
            <= max(1e-6, np.quantile(ratios[problem.fold != fold], COVERAGE))
            for fold in range(problem.folds)]
        whole = errors.model(np.ones(problem.count, bool))
        missing = np.log(max(1e-6, np.quantile(ratios, COVERAGE)))
        knots = np.stack([whole.knots[0], whole.knots[1] + missing])
        return cls(
            whole.weights.astype(np.float32), knots.astype(np.float32),
            float(np.concatenate(covered).mean()), errors.sensor_model())


class _Errors:
    """Terms and errors of all frames, at the patches and at the measured pixels."""

    def __init__(self, problem: Problem, log_depth: Float64) -> None:
        h, w = problem.grid
        plain = log_depth[:, 0].reshape(-1, h, w)
        correction = plain - problem.base[:, 0].reshape(-1, h, w)
        with torch.inference_mode():
            terms = spread_terms(*(torch.from_numpy(np.asarray(values, np.float32)) for values in (
                plain, correction, problem.weights, problem.spread, problem.rays[:, 0])))
        self.terms = np.nan_to_num(terms.flatten(2).numpy().astype(np.float64))  # (F, T, P)
        self.log_depth = log_depth[:, 0]
        self.depth = problem.depth(log_depth)
        self.upsampled = problem.upsampled
        self.seen = self.upsampled(self.depth)
        self.error = np.abs(self.seen - problem.truth)
        self.pixel_terms = np.stack([
            self.upsampled(self.terms[:, i]) for i in range(self.terms.shape[1])], axis=-1)

    def stddev(self, model: Model) -> Float64:
        """(F, S) metres."""
        logarithm = np.einsum('t,ftp->fp', model.weights, self.terms)
        logarithm += factor(*(torch.from_numpy(values) for values in (
            model.knots, self.log_depth))).numpy()
        return self.upsampled(self.depth * np.exp(logarithm).clip(*SPREADS))

    def ratio(self, model: Model, frames: NDArray[np.bool_]) -> Float64:
        """(F, S) error over what the error bars reach."""
        ratio: Float64 = (self.error / (REACH * self.stddev(model)))[frames]
        return ratio

    def model(self, frames: NDArray[np.bool_]) -> Model:
        """Fit to some frames: the logarithm of the error, then the factors of the deciles."""
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
        edges = np.quantile(seen, np.linspace(0, 1, DECILES + 1)[1:-1])
        decile = np.searchsorted(edges, seen)
        places = np.log([np.median(seen[decile == i]) if (decile == i).any() else np.nan
                         for i in range(DECILES)])
        places = places[np.isfinite(places)]
        places = np.maximum.accumulate(places) + LEAST_STEP * np.arange(len(places))
        if len(places) < 2:  # depth is the same everywhere
            places = np.array([places[0], places[0] + 1.0])
        nearest = np.abs(np.log(seen)[:, None] - places).argmin(axis=1)
        knots = np.stack([places, np.zeros(len(places))])
        for _ in range(ROUNDS):
            ratio = self.ratio(Model(weights, knots), frames).ravel()
            knots = knots.copy()
            for i in range(len(places)):
                if (nearest == i).any():
                    knots[1, i] += np.log(max(1e-6, np.quantile(ratio[nearest == i], COVERAGE)))
        return Model(weights, knots)

    def sensor_model(self) -> tuple[float, float, float, float, float]:
        """Of errors by depth, as `elevation_mapping` wants it."""
        seen, error = self.seen.ravel(), self.error.ravel()
        edges = np.quantile(seen, np.linspace(0, 1, 2 * DECILES + 1)[1:-1])
        part = np.searchsorted(edges, seen)
        parts = [part == i for i in range(2 * DECILES) if (part == i).any()]
        z = np.array([np.median(seen[inside]) for inside in parts])
        sigma = np.array([max(1e-6, np.quantile(error[inside], COVERAGE) / REACH)
                          for inside in parts])

        def model(p: Float64) -> Float64:
            a, b, c, d, e = p
            values: Float64 = a + b * (z - c) ** 2 + d * z ** e
            return values

        fitted = least_squares(
            lambda p: model(p) / sigma - 1, [0.5 * sigma.min(), 1e-3, z.min(), 0.05, 1.0],
            bounds=([0, 0, 0, 0, 0], [np.inf, np.inf, z.max() + 1e-6, np.inf, 3.0]))
        a, b, c, d, e = (float(value) for value in fitted.x)
        return a, b, c, d, e
