# SPDX-License-Identifier: Apache-2.0
"""A closed-form correction of the language depth, from frames whose depth is known.

The residual of the logarithm of depth to the language depth is fitted by kernel ridge regression:
patches that look alike, and lie alike in the view, are corrected alike. A patch that looks like
none that was seen falls back to "language x one scale", and so does strong regularisation.
Everything that is chosen is chosen by cross-validation over sequences, never over single frames,
which look alike. Few sequences teach a correction that is right in its direction and too large:
of it, the share is taken that held-out sequences want. An improvement is claimed only by sequences
that neither the fit nor its choices have seen: the share is chosen anew without each fold (nested
cross-validation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import nnls

from ..core.calibration import (
    BOUND,
    About,
    Calibration,
    likeness,
    look,
    no_kernel,
)
from ..core.errors import CalibrationError
from ..core.estimator import DepthEstimator
from ..core.geometry import CameraModel
from .errorbars import ErrorBars
from .frames import Frames, geometric_mean

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

VARIANTS = ('auto', 'full', 'monotone', 'scale', 'none')
# Rows of held-out errors by variant, where they have another name.
CHOSEN = 'full, choices seen'
_ROWS = {'none': 'language', 'full': CHOSEN}

MOST_FOLDS = 10
# Less held-out rmse than everything simpler has: for a scale or bins to be taken; for a share of
# the correction, which can lose but little; and for anything to be called an improvement.
WORTH, SHARE_WORTH, IMPROVED = 0.97, 0.995, 0.95
# Standard errors over folds that the difference must have besides; for a share of the correction,
# the part of the folds in which it must help.
SURE, MOST = 1.0, 0.5
# Of the way from what is simpler to the full correction.
SHARES = (0.25, 0.5, 0.75, 1.0)
UNKNOWN_FOCAL = (
    'The recording tells no focal length, so that this belongs to its own lens alone '
    '(reference_focal is 0).')
# Main directions that are kept of the trunk's map, and patches from which they are found.
DIMENSIONS, MOST_PATCHES = 32, 8192
# Width of the kernel, where the trunk's directions together have a mean square of one, and the
# standard deviation that each of the other terms is given beside them.
WIDTH, TOLD_DEVIATION = 1.2, 0.6
# Patches that others are compared with (Nystroem's approximation): in cross-validation, in the
# final fit, and those of them that are kept because the others add next to nothing.
LANDMARKS, FINAL_LANDMARKS, KEPT_LANDMARKS = 512, 1536, 256
JITTER = 1e-5
SCALE_PENALTY, PENALTY = 1e-3, 1.0  # ridge parameters of the scale and of the kernel
INDEPENDENT = 48.0  # patches of a frame that count as independent
# How strongly bins are drawn to the configured ones, in squared shares of them.
BINS_DRAWN = 0.01


@dataclass(frozen=True)
class Sample:
    """One frame whose depth is known.

    Attributes:
        rgb: (H, W, 3) uint8.
        depth: (H', W') float32 metres along the optical axis of that camera, of the same view,
            NaN where it is unknown; it may be coarser than the image, and sparse.
        camera: that took the image; None where it is unknown.
        sequence: frames of one sequence (a room, or a block of time of one drive) look alike: all
            of them are in the part that is fitted to or in the part that is tested on, never
            some here and some there.
        time: seconds, for the report only.
        digest: `image_digest` of the image that `rgb` is a part of; '' where it is the whole.

    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    camera: CameraModel | None = None
    sequence: int = 0
    time: float = 0.0
    digest: str = ''


@dataclass(frozen=True)
class Options:
    """How a calibration is fitted.

    Attributes:
        variant: 'auto' for the one that the held-out frames show to be worth it, or 'full' (the
            share of the correction that is best for them), 'monotone' (the bins only), 'scale'
            (one factor), 'none'.
        source: what it was calibrated on, in words, for its label.
        split: the training split of a data set that it is, in words; '' for anything else.
        learning_curve: numbers of frames at which held-out errors are reported.

    """

    variant: str = 'auto'
    source: str = 'a recording'
    split: str = ''
    learning_curve: tuple[int, ...] = (10, 30, 60, 200)


@dataclass(frozen=True)
class Metrics:
    """Means over images, on frames that the fit did not see."""

    rmse: float  # m
    delta1: float
    abs_rel: float


@dataclass(frozen=True)
class Fitted:
    """What came out of `fit`.

    Attributes:
        calibration: to be saved; of the variant 'none' it is the error bars of words alone.
        variant: the one that was chosen.
        improved: whether held-out blocks show at least 5 % less rmse than both the one fitted
            scale and the mean map.
        verdict: all of that in a sentence or two.
        held_out: by variant ('language': what is there without calibration, focal length counted;
            'mean map', 'scale', 'monotone', 'full', and 'shuffled': the full one fitted to the
            depth of other frames), each on frames of blocks that it was not fitted to. The share
            of 'full' is chosen without these, too; that of 'full, choices seen' is the final one,
            so that it is a little too good (and 'full', of few blocks, too bad).
        folds: rmse in metres of 'language', 'mean map', 'scale' and the chosen one in every fold.
        learning_curve: (frames, held-out rmse of 'full').
        r2: share of the variance of the residual of log depth that the full correction explains
            in held-out blocks; negative where it does harm.
        condition: of the normal equations.
        temperature: with the greatest held-out likelihood, at the configured words and bins.
        monotone_bins: metres, the fitted bins of the 'monotone' variant.
        coverage: share of held-out pixels within 1.645 standard deviations.
        sensor_model: a, b, c, d, e of elevation_mapping: sigma = a + b (z - c)^2 + d z^e.
        choices: the share of the correction, and whatever else was chosen.
        frames: number of frames.
        blocks: number of sequences or blocks of time.

    """

    calibration: Calibration
    variant: str
    improved: bool
    verdict: str
    held_out: dict[str, Metrics]
    folds: list[dict[str, float]]
    learning_curve: list[tuple[int, float]]
    r2: float
    condition: float
    temperature: float
    monotone_bins: tuple[float, ...]
    coverage: float
    sensor_model: tuple[float, float, float, float, float]
    choices: dict[str, Any] = field(default_factory=dict)
    frames: int = 0
    blocks: int = 0


class Choice(NamedTuple):
    """What is chosen for the full correction.

    Attributes:
        scaled: whether what is simpler has one scale.
        share: of the way from there to the full correction.

    """

    scaled: bool
    share: float


class Problem:
    """Everything that was seen, as one linear regression whose folds are groups of sequences.

    Frames are F, passes beside each other (the second mirrored), patches P, terms D.

    Attributes:
        count: number of frames.
        blocks: number of sequences.
        folds: number of folds.
        fold: (F,) of every frame.
        base: (F, passes, P) log depth by words, with the focal ratio.
        wish: (F, passes, P) log depth that is wanted.
        weight: (F, passes, P) of it.
        shares: (F, passes, P, K) of the bins.
        logits: (F, passes, P, K).
        bins: (K,) metres.
        kernel: what the other terms are.
        design: (F, passes, P, D) terms; the first is one.

    """

    def __init__(self, frames: Frames) -> None:
        """Standardise the terms, and sum up what the normal equations need, by fold."""
        self.frames = frames
        self.count, self.blocks = len(frames.targets), len(set(frames.sequence))
        self.folds = min(MOST_FOLDS, self.blocks)
        self.fold = _folds(frames.sequence, self.folds)
        depth = np.stack(frames.depth).astype(np.float64)
        self.passes, self.grid = depth.shape[1], depth.shape[2:]
        ratio = np.log(frames.ratio)[:, None, None]
        self.language = np.log(depth).reshape(*depth.shape[:2], -1)
        self.base = self.language + ratio
        patches = np.stack([target.patches for target in frames.targets]).astype(np.float64)
        support = np.stack([target.support for target in frames.targets]).astype(np.float64)
        support[~np.isfinite(patches)] = 0.0
        scale = np.sqrt(np.nanmean(patches ** 2, axis=1, keepdims=True))
        patches = np.where(support > 0, patches, scale)
        # Squared errors of log depth times squared depth are those of depth. Half of that, in
        # the logarithm, is the compromise between the metrics; and no image counts for more.
        weight = support * patches / scale
        weight *= patches.shape[1] / np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)
        self.wish, self.weight = (
            self._both(values) for values in (np.log(patches), weight))
        usable = np.isfinite(self.base)
        self.weight[~usable] = 0.0
        self.base[~usable] = self.language[~usable] = 0.0
        index, share, truth = (np.stack([getattr(target, name) for target in frames.targets])
                               for name in ('index', 'share', 'truth'))
        self.index, self.share, self.truth = index, share, truth
        self.logits, self.shares = (
            np.stack(values).reshape(*depth.shape[:2], values[0].shape[1], -1).swapaxes(2, 3)
            for values in (frames.logits, frames.weights))
        self.bins = np.array(frames.estimator.config.bins)
        self.kernel = Kernel.of(frames, self.language, LANDMARKS)
        self.design = np.concatenate(
            [np.ones((*self.base.shape, 1), np.float32), self.kernel.terms(frames, self.language)],
            axis=-1)
        self.penalty = _penalty(self.design.shape[-1])
        self.normal, self.right = self.sums(self.wish - self.base, self.weight)

    def _both(self, values: Float64) -> Float64:
        """(F, P) of the image -> (F, passes, P), the second of the mirrored one."""
        h, w = self.grid
        mirrored = values.reshape(-1, h, w)[:, :, ::-1].reshape(values.shape)
        return np.stack([values, mirrored][:self.passes], axis=1)

    @property
    def _unit(self) -> float:
        """Of a patch, as if there were as many as in the smallest grid: neighbours agree."""
        return float(INDEPENDENT / (self.passes * self.base.shape[-1]))

    def sums(self, residual: Float64, weight: Float64, kept: Any = slice(None),
              ) -> tuple[Float64, Float64]:
        """Normal equations by fold: (folds, D, D) and (folds, D)."""
        size = self.design.shape[-1]
        normal, right = np.zeros((self.folds, size, size)), np.zeros((self.folds, size))
        unit = self._unit
        for fold in range(self.folds):
            inside = np.flatnonzero(self.fold[kept] == fold)
            inside = np.arange(self.count)[kept][inside]
            terms = self.design[inside].reshape(-1, size).astype(np.float64)
            weighted = terms * (unit * weight[inside].reshape(-1, 1))
            normal[fold] = weighted.T @ terms
            right[fold] = weighted.T @ residual[inside].ravel()
        return normal, right

    # Solving ------------------------------------------------------------------------------

    def corrections(
        self, normal: Float64, right: Float64, without: int | None = None,
    ) -> tuple[Float64, Float64]:
        """Fit to the other folds (and not to `without`).

        Returns:
            The one factor's logarithm, (F, 1, 1), and the full correction, (F, passes, P).

        """
        rest = np.ones(self.folds, bool)
        if without is not None:
            rest[without] = False
        own = rest[:, None, None]
        others = normal[rest].sum(axis=0) - normal * own
        wanted = right[rest].sum(axis=0) - right * own[..., 0]
        solved = np.linalg.solve(others + self.penalty, wanted[..., None])[..., 0]
        full = np.empty(self.base.shape)
        for fold in range(self.folds):
            inside = self.fold == fold
            full[inside] = self.design[inside] @ solved[fold].astype(np.float32)
        # The first term is one: alone, it is the scale.
        return (wanted[:, 0] / others[:, 0, 0])[self.fold][:, None, None], full

    def choose(
        self, normal: Float64, right: Float64, without: int | None = None,
    ) -> tuple[Choice, Float64]:
        """Find the share of the correction with the least rmse on held-out folds.

        Returns:
            The choice, and what it makes of the log depth of all frames, (F, passes, P).

        """
        scale, full = self.corrections(normal, right, without)

        def errors(correction: Float64) -> Float64:
            return self.fold_errors(self.base + correction, without)

        scaled = _worth(errors(scale), errors(np.zeros_like(scale)))
        found = [(Choice(scaled, share), part(scale, full, Choice(scaled, share)))
                 for share in SHARES]
        choice, correction = min(found, key=lambda one: float(errors(one[1]).mean()))
        return choice, self.base + correction

    def nested(self) -> Float64:
        """Log depth of the full correction, for every fold chosen and fitted on the others."""
        result = np.empty(self.base.shape)
        scale, full = self.corrections(self.normal, self.right)
        for fold in range(self.folds):
            choice, _ = self.choose(self.normal, self.right, fold)
            inside = self.fold == fold
            result[inside] = self.base[inside] + part(scale[inside], full[inside], choice)
        return result

    def final(self, choice: Choice) -> tuple[float, dict[str, Float64]]:
        """Bias and arrays of the kernel, fitted to all frames with more landmarks.

        Cross-validation takes fewer, for it fits a hundred times; what it says of errors is
        therefore a little too bad, which is the safe side.
        """
        kernel = Kernel.of(self.frames, self.language, FINAL_LANDMARKS)
        size = 1 + len(kernel.arrays['landmarks'])
        normal, right = _penalty(size), np.zeros(size)
        for i, (residual, weight) in enumerate(zip(
                self.wish - self.base, self._unit * self.weight, strict=True)):
            terms = np.ones((*residual.shape, size))
            terms[..., 1:] = kernel.terms_of(self.frames, self.language, i)
            terms = terms.reshape(-1, size)
            weighted = terms * weight.reshape(-1, 1)
            normal += weighted.T @ terms
            right += weighted.T @ residual.ravel()
        solution = np.asarray(np.linalg.solve(normal, right), np.float64)
        scale = np.array([_scale(self, np.ones(self.count, bool))])
        bias = part(scale, solution[:1], choice)
        return float(bias[0]), kernel.kept(choice.share * solution[1:])

    # Errors -------------------------------------------------------------------------------

    def pixels(self, log_depth: Float64) -> Float64:
        """(F, passes, P) log depth -> (F, S) metres at the pixels that are measured."""
        depth = np.exp(log_depth.clip(-10, 10))
        patches = self.merged(depth)
        upsampled: Float64 = (np.take_along_axis(
            patches, self.index.reshape(self.count, -1), axis=1,
        ).reshape(self.share.shape) * self.share).sum(axis=-1)
        return upsampled

    def merged(self, values: Float64) -> Float64:
        """(F, passes, P) -> (F, P): the mean of the passes, the second mirrored back."""
        if self.passes == 1:
            return values[:, 0]
        h, w = self.grid
        second = values[:, 1].reshape(-1, h, w)[:, :, ::-1].reshape(values[:, 1].shape)
        return 0.5 * (values[:, 0] + second)

    def frame_errors(self, log_depth: Float64) -> Float64:
        """(F,) rmse in metres."""
        errors: Float64 = np.sqrt(((self.pixels(log_depth) - self.truth) ** 2).mean(axis=1))
        return errors

    def fold_errors(self, log_depth: Float64, without: int | None = None) -> Float64:
        """Rmse in metres of every fold, mean over its frames."""
        errors = self.frame_errors(log_depth)
        return np.array([errors[self.fold == fold].mean() for fold in range(self.folds)
                         if fold != without])

    def metrics(self, log_depth: Float64) -> Metrics:
        """Means over frames."""
        depth = self.pixels(log_depth)
        ratio = np.maximum(depth / self.truth, self.truth / depth)
        return Metrics(
            float(self.frame_errors(log_depth).mean()), float((ratio < 1.25).mean()),
            float((np.abs(depth - self.truth) / self.truth).mean()))


class Kernel(NamedTuple):
    """A Gaussian kernel of what patches look like, as terms of a linear regression.

    Attributes:
        arrays: of a `Calibration`, all that belong to it but 'kernel'.
        whitening: (M, M) from likeness to the landmarks to terms whose ridge is the kernel's.

    """

    arrays: dict[str, Float64]
    whitening: Float64

    @classmethod
    def of(cls, frames: Frames, language: Float64, count: int) -> Kernel:
        """Find main directions, scales and landmarks.

        Args:
            frames: all of them.
            language: (F, passes, P) log depth by words.
            count: of landmarks.

        """
        rng = np.random.default_rng(0)
        mean, directions = _directions(frames, rng)
        told = np.stack([
            language, np.broadcast_to(language.mean(axis=2, keepdims=True), language.shape),
            *(np.stack(frames.rays)[:, :, i].reshape(language.shape) for i in (0, 1))])
        deviation = told.reshape(len(told), -1).std(axis=1)
        arrays = {
            'projection': directions.T / WIDTH, 'offset': -(mean @ directions) / WIDTH,
            'scales': TOLD_DEVIATION / WIDTH / np.where(deviation > 1e-6, deviation, np.inf)}
        kernel = cls(arrays, np.empty((0, 0)))
        a_frame = -(-count // len(frames.trunk))
        candidates = np.concatenate([
            rng.permutation(kernel._seen(frames, language, i))[:a_frame]
            for i in range(len(frames.trunk))])
        landmarks = candidates[rng.permutation(len(candidates))[:count]]
        arrays['landmarks'] = landmarks
        values, vectors = eigh(_likeness(landmarks, landmarks))
        return kernel._replace(whitening=vectors / np.sqrt(values.clip(0.0) + JITTER))

    def terms(self, frames: Frames, language: Float64) -> Float32:
        """(F, passes, P, M) of all frames."""
        return np.stack([self.terms_of(frames, language, i) for i in range(len(frames.trunk))])

    def terms_of(self, frames: Frames, language: Float64, i: int) -> Float32:
        """(passes, P, M) of one frame."""
        likeness = _likeness(self._seen(frames, language, i), self.arrays['landmarks'])
        return (likeness @ self.whitening).astype(np.float32).reshape(*language.shape[1:], -1)

    def kept(self, solution: Float64) -> dict[str, Float64]:
        """Arrays of a `Calibration`, from the weights of the terms; few landmarks are kept.

        One after the other is taken where what is left of the correction is largest beside what
        a landmark there can still explain, which is the greatest step in the kernel's own norm
        (Müller and Schaback's Newton basis, 2009). The correction is then that of all landmarks,
        projected on those that were taken.
        """
        landmarks = self.arrays['landmarks']
        likeness = _likeness(landmarks, landmarks)
        whole: Float64 = likeness @ (self.whitening @ solution)
        left, power = whole.copy(), np.ones(len(whole))
        basis = np.empty((len(whole), min(KEPT_LANDMARKS, len(whole))))
        taken: list[int] = []
        for n in range(basis.shape[1]):
            gain = left ** 2 / np.maximum(power, JITTER)
            best = int(np.where(power > JITTER, gain, -1.0).argmax())
            if power[best] <= JITTER:
                break  # all others are alike
            basis[:, n] = (likeness[:, best] - basis[:, :n] @ basis[best, :n]) / math.sqrt(
                power[best])
            left -= left[best] / math.sqrt(power[best]) * basis[:, n]
            power = power - basis[:, n] ** 2
            taken.append(best)
        weights = np.linalg.solve(
            likeness[np.ix_(taken, taken)] + JITTER * np.eye(len(taken)), whole[taken])
        return {**self.arrays, 'landmarks': landmarks[taken],
                'kernel': np.asarray(weights, np.float64)}

    def _seen(self, frames: Frames, language: Float64, i: int) -> Float64:
        """(passes P, E) what the patches of a frame look like."""
        h, w = frames.trunk[i].shape[-2:]
        with torch.inference_mode():
            seen = look(*(torch.from_numpy(np.asarray(values, np.float32)) for values in (
                frames.trunk[i], language[i].reshape(-1, h, w), frames.rays[i],
                *(self.arrays[name] for name in ('projection', 'offset', 'scales')))))
        return np.nan_to_num(seen.numpy().astype(np.float64))


def _likeness(seen: Float64, landmarks: Float64) -> Float64:
    """(N, E) and (M, E) -> (N, M) of the Gaussian kernel."""
    found: Float64 = likeness(torch.from_numpy(seen), torch.from_numpy(landmarks)).numpy()
    return found


def _directions(frames: Frames, rng: np.random.Generator) -> tuple[Float64, Float64]:
    """Standardise the trunk's map, and find its main directions, the first of them last.

    Returns:
        Mean (C',) and directions (C', D); (map - mean) @ directions has a mean square of one.

    """
    rows = np.concatenate([
        terms[rng.permutation(len(terms))[:max(1, MOST_PATCHES // len(frames.trunk))]]
        for terms in (maps.reshape(*maps.shape[:2], -1).swapaxes(1, 2).reshape(-1, maps.shape[1])
                      for maps in frames.trunk)]).astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    deviation = np.where(deviation > 1e-9 * (1 + np.abs(mean)), deviation, np.inf)
    rows = (rows - mean) / deviation
    size = rows.shape[1]
    _, directions = eigh(rows.T @ rows, subset_by_index=(max(0, size - DIMENSIONS), size - 1))
    length = math.sqrt(float(((rows @ directions) ** 2).sum(axis=1).mean()))
    return mean, directions / deviation[:, None] / max(1e-12, length)


def _folds(sequence: Sequence[int], folds: int) -> NDArray[np.int64]:
    """Deal the sequences out to folds of about as many frames."""
    names, counts = np.unique(sequence, return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    order = order[np.argsort(-counts[order], kind='stable')]
    load = np.zeros(folds)
    of_name = {}
    for position in order:
        fold = int(load.argmin())
        of_name[int(names[position])] = fold
        load[fold] += counts[position]
    return np.array([of_name[int(name)] for name in sequence])


# Simpler corrections, and controls ---------------------------------------------------------


def _scale(problem: Problem, frames: NDArray[np.bool_]) -> float:
    """The one factor, as a logarithm."""
    weight = problem.weight[frames]
    return float((weight * (problem.wish - problem.base)[frames]).sum() / weight.sum())


def _mean_map(problem: Problem, frames: NDArray[np.bool_]) -> Float64:
    """(passes, P): mean log depth of every patch, whatever the image."""
    weight, wish = problem.weight[frames], problem.wish[frames]
    total = float((weight * wish).sum() / weight.sum())
    weighted: Float64 = ((weight * wish).sum(axis=0) + 1e-3 * total) / (weight.sum(axis=0) + 1e-3)
    return weighted


def _bins(problem: Problem, frames: NDArray[np.bool_], bins: Float64) -> Float64:
    """Ascending bins with the least squared error of depth, drawn to the scaled configured ones.

    Their increments are not negative, so that words keep their order.
    """
    weights = problem.shares[frames].reshape(-1, len(bins))
    ratio = np.exp((problem.base - problem.language)[frames]).reshape(-1, 1)
    wish = np.exp(problem.wish[frames]).reshape(-1, 1)
    # Squared errors of depth over squared depth, times the weight: those of log depth.
    root = np.sqrt(problem.weight[frames].reshape(-1, 1)) / wish
    rises = np.tril(np.ones((len(bins), len(bins))))
    terms = (weights * ratio * root) @ rises
    drawn = math.sqrt(BINS_DRAWN * len(terms) / len(bins))
    usual = np.diff(bins * math.exp(_scale(problem, frames)), prepend=0.0)
    terms = np.concatenate([terms, drawn * np.diag(1 / usual)])
    target = np.concatenate([(wish * root)[:, 0], np.full(len(bins), drawn)])
    orthogonal, triangle = np.linalg.qr(terms)
    increments, _ = nnls(triangle, orthogonal.T @ target)
    ascending: Float64 = np.maximum.accumulate(np.maximum(np.cumsum(increments), 1e-2))
    return ascending


def _log_mean(problem: Problem, bins: Float64) -> Float64:
    """(F, passes, P) log depth with other bins."""
    log_depth: Float64 = np.log(problem.shares @ bins) + problem.base - problem.language
    return log_depth


def _held_out(problem: Problem) -> tuple[Choice, dict[str, Float64]]:
    """(F, passes, P) log depth of every variant and control, each fold fitted on the others."""
    results = {'language': problem.base}
    for name in ('mean map', 'scale', 'monotone'):
        results[name] = np.empty(problem.base.shape)
    for fold in range(problem.folds):
        inside, rest = problem.fold == fold, problem.fold != fold
        results['mean map'][inside] = _mean_map(problem, rest)
        results['scale'][inside] = problem.base[inside] + _scale(problem, rest)
        results['monotone'][inside] = _log_mean(
            problem, _bins(problem, rest, problem.bins))[inside]
    results['full'] = problem.nested()
    choice, results[CHOSEN] = problem.choose(problem.normal, problem.right)
    results['shuffled'] = _shuffled(problem, choice)
    return choice, results


def _shuffled(problem: Problem, choice: Choice) -> Float64:
    """What is learned from the depth of other frames: no more than their mean, if all is well."""
    order = np.argsort(problem.fold, kind='stable')
    other = np.empty(problem.count, np.int64)
    other[order] = np.roll(order, problem.count // 2)
    scale, full = problem.corrections(*problem.sums(
        problem.wish[other] - problem.base, problem.weight[other]))
    return problem.base + part(scale, full, choice)


def part(scale: Float64, full: Float64, choice: Choice) -> Float64:
    """(F, 1, 1) and (F, passes, P) -> (F, passes, P), part of the way to the full correction."""
    simple = scale * choice.scaled
    return simple + choice.share * (full - simple)


def _penalty(size: int) -> Float64:
    """(D, D) of so many terms."""
    return np.diag([SCALE_PENALTY, *[PENALTY] * (size - 1)])


def _worth(errors: Float64, simpler: Float64) -> bool:
    """Whether something is surely worth having, by the rmse of every fold."""
    gain = simpler - errors
    error = gain.std(ddof=1) / math.sqrt(len(gain))
    return bool(errors.mean() <= WORTH * simpler.mean() and gain.mean() >= SURE * error)


def judge(errors: Mapping[str, Float64], share: float = 1.0) -> tuple[str, bool, str]:
    """Which variant is worth having.

    Args:
        errors: rmse in metres of every fold, by variant.
        share: of the full correction, that 'full, choices seen' is.

    Returns:
        The variant, whether it may be called an improvement, and why, in words.

    """
    means = {name: float(values.mean()) for name, values in errors.items()}

    variant = 'none'
    if _worth(errors['scale'], errors['language']):
        variant = 'scale'
    simple = min(('language', 'scale', 'mean map'), key=lambda name: means[name])
    if _worth(errors['monotone'], errors[simple]):
        variant = 'monotone'
    # A share of the correction competes with what is taken without it, not with what is no surer.
    otherwise = 'language' if variant == 'none' else variant
    if means[CHOSEN] < min(SHARE_WORTH * means[otherwise], means['mean map']) and (
            errors[CHOSEN] < errors[otherwise]).mean() >= MOST:
        variant = 'full'
    rmse = means['language' if variant == 'none' else variant]
    controls = means['scale'], means['mean map'], means['language']
    improved = variant in ('full', 'monotone') and rmse <= IMPROVED * min(controls) and _worth(
        errors[_ROWS.get(variant, variant)], errors[simple])
    numbers = (f'held-out rmse {rmse:.3f} m, of words alone {means["language"]:.3f} m, with one '
               f'scale {means["scale"]:.3f} m, of the mean map {means["mean map"]:.3f} m')
    if improved:
        taken = f'{variant}, {share:.0%} of it' if variant == 'full' and share < 1 else variant
        return variant, True, (
            f'The correction ({taken}) helps: {numbers}: '
            f'{1 - rmse / min(controls):.0%} less than the best of these.')
    if means['mean map'] < min(rmse, means['language']):
        return variant, False, (
            f'No improvement is claimed: a picture that is always the same is better than this '
            f'model here ({numbers}).')
    chosen = {'none': 'depth is left as the words say it', 'scale': 'one scale is taken',
              'monotone': 'other bins are taken',
              'full': f'{share:.0%} of the full correction are taken for their '
                      f'{means[CHOSEN]:.3f} m, which count only if that share was not chosen '
                      'by the same blocks'}[variant]
    return variant, False, (
        f'No improvement by {1 - IMPROVED:.0%} over both one scale and the mean map is seen; '
        f'{chosen} ({numbers}).')


# Numbers for the report --------------------------------------------------------------------


def _r2(problem: Problem, log_depth: Float64) -> float:
    """Share of the residual's variance that is explained in held-out folds."""
    residual = problem.wish - problem.base
    left = problem.wish - log_depth
    mean = (problem.weight * residual).sum() / problem.weight.sum()
    return 1.0 - float((problem.weight * left ** 2).sum()
                       / max(1e-12, (problem.weight * (residual - mean) ** 2).sum()))


def _learning_curve(problem: Problem, counts: Sequence[int]) -> list[tuple[int, float]]:
    """Held-out rmse of the full correction, fitted to some frames and tested on all others."""
    curve = []
    for count in [*(count for count in counts if count < problem.count), problem.count]:
        kept = np.unique(np.linspace(0, problem.count - 1, count).round().astype(int))
        if len(np.unique(problem.fold[kept])) < problem.folds:
            continue
        normal, right = problem.sums(problem.wish - problem.base, problem.weight, kept)
        _, log_depth = problem.choose(normal, right)
        curve.append((count, float(problem.fold_errors(log_depth).mean())))
    return curve


def _temperature(problem: Problem, bins: Float64, now: float) -> float:
    """Temperature under which the measured depth is likeliest, over all frames.

    Depth between two bins counts as both of them, as near as it is; one scale is taken out. It is
    one number from all patches, so that held-out and fitted likelihood have the same greatest.
    """
    logits = problem.logits.reshape(-1, len(bins))
    scale = _scale(problem, np.ones(problem.count, bool))
    wish = (problem.wish - (problem.base - problem.language) - scale).reshape(-1)
    weight = problem.weight.reshape(-1)
    places = np.log(bins)
    above = np.searchsorted(places, wish).clip(1, max(1, len(bins) - 1))
    if len(bins) == 1:
        return now
    share = ((wish - places[above - 1]) / (places[above] - places[above - 1])).clip(0, 1)

    def likelihood(temperature: float) -> float:
        scaled = logits * (now / temperature)
        peak = scaled.max(axis=1, keepdims=True)
        log_weights = scaled - peak - np.log(np.exp(scaled - peak).sum(axis=1, keepdims=True))
        rows = np.arange(len(logits))
        return float((weight * (share * log_weights[rows, above]
                                + (1 - share) * log_weights[rows, above - 1])).sum())

    candidates = now * np.logspace(-1, 1, 41)
    return float(max(candidates, key=likelihood))


# Putting it together -----------------------------------------------------------------------


def _arrays(problem: Problem, variant: str, choice: Choice, bins: Float64,
            ) -> dict[str, Float32]:
    """The numbers of a calibration, but for the error bars, fitted to all frames."""
    everything = np.ones(problem.count, bool)
    bias = 0.0
    kernel = dict[str, NDArray[Any]](no_kernel(problem.frames.trunk[0].shape[1]))
    if variant == 'scale':
        bias = _scale(problem, everything)
    if variant == 'full':
        bias, kernel = problem.final(choice)
    return {name: np.asarray(values, np.float32) for name, values in {
        'bias': bias, 'bins': bins if variant == 'monotone' else problem.bins,
        **kernel}.items()}


def fit(
    estimator: DepthEstimator, samples: Iterable[Sample], options: Options = Options(),
    log: Callable[[str], None] = print,
) -> Fitted:
    """Fit a correction of the language depth, and say whether it is worth having.

    Args:
        estimator: as configured without a calibration.
        samples: of several sequences; read once, in order.
        options: what to fit.
        log: told what happens.

    Returns:
        The calibration, and what is known of it from frames that it was not fitted to.

    Raises:
        CalibrationError: no depth can be compared, or there are too few frames or sequences.

    """
    if options.variant not in VARIANTS:
        raise CalibrationError(f'variant: {options.variant!r} is none of {", ".join(VARIANTS)}.')
    if estimator.calibration is not None:
        raise CalibrationError("calibration: is set already; fit without one (calibration: '').")
    if estimator.config.has_scenes:
        raise CalibrationError('scenes: bins that depend on the scene and a calibration, which '
                               "has bins of its own, exclude each other; set scenes: [''].")
    frames = Frames(estimator)
    for sample in samples:
        frames.add(sample)
    frames.check()
    problem = Problem(frames)
    log(f'{problem.count} frames in {problem.blocks} sequences; what is chosen is chosen by '
        f'{problem.folds} folds of sequences.')
    choice, predictions = _held_out(problem)
    errors = {name: problem.fold_errors(values) for name, values in predictions.items()}
    variant, improved, verdict = judge(errors, choice.share)
    if options.variant not in ('auto', variant):
        verdict = f'Variant {options.variant} was asked for. {verdict}'
        variant, improved = options.variant, False
    # What is multiplied by no focal ratio here may not be multiplied by one afterwards.
    focal = estimator.config.reference_focal if frames.camera_known else 0.0
    if focal != estimator.config.reference_focal:
        verdict = f'{verdict} {UNKNOWN_FOCAL}'
    log(verdict)
    everything = np.ones(problem.count, bool)
    bins = _bins(problem, everything, problem.bins)
    own = predictions[_ROWS.get(variant, variant)]
    bars = ErrorBars.fit(problem, own)
    if frames.own_rays is None:
        raise CalibrationError('no frame has any depth.')
    about = About(
        source=options.source, variant=variant, frames=problem.count, blocks=problem.blocks,
        weights=estimator.weights.digest, weights_name=estimator.weights.name,
        focal_ratio=geometric_mean(frames.ratio), config={
            **{name: value for name, value in estimator.config.to_dict().items()
               if name in BOUND}, 'reference_focal': focal},
        split=options.split, images=frames.digests, camera_known=frames.camera_known,
        precision=estimator.precision)
    calibration = Calibration.make(about, {
        **_arrays(problem, variant, choice, bins), 'rays': frames.own_rays,
        'spread': bars.weights, 'knots': bars.knots})
    return Fitted(
        calibration=calibration, variant=variant, improved=improved, verdict=verdict,
        held_out={name: problem.metrics(values) for name, values in predictions.items()},
        folds=[{name: float(errors[name][fold]) for name in dict.fromkeys(
            ('language', 'mean map', 'scale', _ROWS.get(variant, variant)))}
            for fold in range(problem.folds)],
        learning_curve=_learning_curve(problem, options.learning_curve),
        r2=_r2(problem, predictions['full']), condition=float(np.linalg.cond(
            problem.normal.sum(axis=0) + problem.penalty)),
        temperature=_temperature(problem, problem.bins, estimator.config.temperature),
        monotone_bins=tuple(bins.tolist()), coverage=bars.coverage,
        sensor_model=bars.sensor_model,
        choices={'share of the full correction': choice.share},
        frames=problem.count, blocks=problem.blocks)
