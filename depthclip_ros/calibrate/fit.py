# SPDX-License-Identifier: Apache-2.0
"""Fit a correction of the language depth, in closed form, to frames with measured depth.

Kernel ridge regression with Nyström landmarks predicts the residual log depth of a patch from its
features and its place in the view. A patch unlike all landmarks falls back to language depth times
one scale, as does every patch under strong regularisation. Few sequences teach a correction of the
right sign and too large a size, so that it is shrunk by a factor that held-out sequences select.

Errors are estimated by cross-validation over whole sequences, because frames of one sequence look
alike: principal components, scales, landmarks and weights of a fold are fitted without it. Only
the variant and the shrinkage, one of four numbers, are selected on the same folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh

from ..core.calibration import (
    FITTED_SETTINGS,
    Calibration,
    CalibrationOrigin,
    embed_patches,
    empty_kernel,
    gaussian_kernel,
    project,
)
from ..core.estimator import DepthEstimator
from .errorbars import ErrorBars, error_bars
from .problem import Problem, geometric_mean
from .recordings import Frame

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Largest ratio of rmse to a reference's that is a significant gain, that selects the full
# correction (shrunk, it can lose but little), and that is claimed as an improvement.
SIGNIFICANT_RATIO, FULL_RATIO, CLAIM_RATIO = 0.97, 0.995, 0.95
# Least mean gain in standard errors over folds; fraction of folds that 'full' has to improve.
MIN_STANDARD_ERRORS, MIN_BETTER_FRACTION = 1.0, 0.5
SHRINKAGES = (0.25, 0.5, 0.75, 1.0)  # from the simpler variant (0) to the full correction (1)
# Principal components of the trunk's map, and patches from which they are estimated.
COMPONENTS, MAX_PATCHES = 32, 8192
# Width of the kernel, where the components together have a mean square of one, and the standard
# deviation of every other term.
WIDTH, TERM_DEVIATION = 1.2, 0.6
LANDMARKS = 512  # patches of the Nyström approximation
JITTER = 1e-5
SCALE_PENALTY, PENALTY = 1e-3, 1.0  # ridge parameters of the scale and of the kernel
EFFECTIVE_PATCHES = 48.0  # independent patches of a frame, whatever its grid
_BATCH = 8192  # patches whose kernel is computed at once


@dataclass(frozen=True)
class FitResult:
    """Result of `fit`.

    Attributes:
        calibration: to be saved; of the variant 'none' it has the error bars alone.
        variant: 'none', 'scale' or 'full'.
        improved: whether held-out blocks have at least 5 % less rmse than both one fitted scale
            and the mean map.
        verdict: the result in a sentence or two.
        held_out: mean rmse [m], delta 1 and rel on held-out blocks, by variant and control:
            'none' (language depth with the focal ratio), 'mean map', 'scale', 'full'. The
            shrinkage of 'full' was selected on the same blocks.
        folds: rmse in metres of 'none', 'mean map', 'scale' and the variant in every fold.
        shrinkage: factor of the full correction.
        bars: error bars and their coverage.

    """

    calibration: Calibration
    variant: str
    improved: bool
    verdict: str
    held_out: dict[str, Float64]
    folds: list[dict[str, float]]
    shrinkage: float
    bars: ErrorBars


def fit(
    estimator: DepthEstimator, frames: Iterable[Frame], variant: str = 'auto',
    source: str = 'a recording', split: str = '', log: Callable[[str], None] = print,
) -> FitResult:
    """Fit a correction of the language depth, and select its variant by cross-validation.

    Args:
        estimator: as configured, without scenes or a calibration.
        frames: of several sequences; read once, in order.
        variant: 'auto' for the one that held-out frames select, or 'full' (the correction with
            its best shrinkage), 'scale' (one factor), 'none'.
        source: name of the recording, for the label of the calibration.
        split: name of the training split of a data set; '' for any other recording.
        log: receives messages of progress.

    Returns:
        The calibration with its errors on held-out frames.

    Raises:
        CalibrationError: too few frames have depth, or there are too few sequences.

    """
    problem = Problem(estimator, frames)
    log(f'{problem.count} frames in {problem.blocks} sequences, cross-validated in '
        f'{problem.folds} folds of sequences.')
    shrinkage, predictions = cross_validate(problem)
    errors = {name: problem.fold_rmse(values) for name, values in predictions.items()}
    selected, improved, verdict = select_variant(errors, shrinkage)
    if variant not in ('auto', selected):
        verdict = f'Variant {variant} was asked for. {verdict}'
        selected, improved = variant, False
    # Frames that were fitted without a focal ratio must not be multiplied by one afterwards.
    settings = estimator.config.to_dict()
    config = {name: settings[name] for name in FITTED_SETTINGS}
    if not problem.camera_known and config['reference_focal']:
        config['reference_focal'] = 0.0
        verdict += (' The recording tells no focal length, so that this belongs to its own lens '
                    'alone (reference_focal is 0).')
    log(verdict)
    bars = error_bars(problem, predictions[selected])
    origin = CalibrationOrigin(
        source=source, variant=selected, frames=problem.count, blocks=problem.blocks,
        weights=estimator.weights.digest, weights_name=estimator.weights.name,
        focal_ratio=geometric_mean(problem.focal_ratio), config=config, split=split,
        images=problem.digests, camera_known=problem.camera_known, precision=estimator.precision)
    return FitResult(
        Calibration(origin, {**problem.camera_arrays, **bars.arrays, **correction_arrays(
            problem, selected, shrinkage, simple_variant(errors))}),
        selected, improved, verdict,
        {name: problem.scores(values).mean(axis=0) for name, values in predictions.items()},
        [{name: float(errors[name][fold]) for name in dict.fromkeys(
            ('none', 'mean map', 'scale', selected))} for fold in range(problem.folds)],
        shrinkage, bars)


# Selection ---------------------------------------------------------------------------------


def cross_validate(problem: Problem) -> tuple[float, dict[str, Float64]]:
    """Select the shrinkage by cross-validation; return it with held-out log depth (F, passes, P).

    For every variant and control, models of the other folds predict each fold.
    """
    results = {'none': problem.base, **{
        name: np.empty(problem.base.shape) for name in ('mean map', 'scale', 'full')}}
    for fold in range(problem.folds):
        test, training = np.flatnonzero(problem.fold == fold), problem.training(fold)
        results['mean map'][test] = problem.mean_map(training)
        results['scale'][test] = problem.base[test] + problem.log_scale(training)
        results['full'][test] = problem.base[test] + NystroemRidge.fit(
            problem, training).correction(problem, test)
    simple = results[simple_variant({name: problem.fold_rmse(results[name])
                                     for name in ('scale', 'none')})]
    shrunk = {factor: simple + factor * (results['full'] - simple) for factor in SHRINKAGES}
    shrinkage = min(shrunk, key=lambda factor: problem.fold_rmse(shrunk[factor]).mean())
    results['full'] = shrunk[shrinkage]
    return shrinkage, results


def simple_variant(errors: Mapping[str, Float64]) -> str:
    """Select the variant toward which the full correction is shrunk, by the rmse of the folds."""
    return 'scale' if _improves(errors['scale'], errors['none']) else 'none'


def _improves(errors: Float64, reference: Float64) -> bool:
    """Whether the rmse of the folds is significantly below a reference's."""
    gain = reference - errors
    standard_error = gain.std(ddof=1) / math.sqrt(len(gain))
    return bool(errors.mean() <= SIGNIFICANT_RATIO * reference.mean()
                and gain.mean() >= MIN_STANDARD_ERRORS * standard_error)


def select_variant(errors: Mapping[str, Float64], shrinkage: float = 1) -> tuple[str, bool, str]:
    """Select the variant by held-out error: `simple_variant`, unless the full one is better.

    Better is 0.5 % less on average and in half of the folds, and less than the mean map's.

    Args:
        errors: rmse in metres of every fold, by variant and control.
        shrinkage: of 'full'.

    Returns:
        The variant, whether it is an improvement over the controls, and a sentence of the reason.

    """
    means = {name: float(values.mean()) for name, values in errors.items()}
    variant = simple = simple_variant(errors)
    better_fraction = float((errors['full'] < errors[simple]).mean())
    if better_fraction >= MIN_BETTER_FRACTION and means['full'] < min(
            FULL_RATIO * means[simple], means['mean map']):
        variant = 'full'
    best = min(('none', 'scale', 'mean map'), key=lambda name: means[name])
    improved = variant == 'full' and means['full'] <= CLAIM_RATIO * means[best] and _improves(
        errors['full'], errors[best])
    summary = {'none': 'Depth is left as the words say it', 'scale': 'One scale is taken',
               'full': f'The full correction, {shrinkage:.0%} of it, is taken'}[variant]
    why = f'no improvement by {1 - CLAIM_RATIO:.0%} over both one scale and the mean map is seen'
    if improved:
        why = f'it helps, by {1 - means["full"] / means[best]:.0%} over the best of the others'
    elif means['mean map'] < means[variant]:
        why = 'no improvement is claimed: a picture that is always the same is better here'
    return variant, improved, (
        f'{summary}; {why} (held-out rmse {means[variant]:.3f} m, of words '
        f'alone {means["none"]:.3f} m, with one scale {means["scale"]:.3f} m, of the mean map '
        f'{means["mean map"]:.3f} m).')


def correction_arrays(
    problem: Problem, variant: str, shrinkage: float, simple: str,
) -> dict[str, Float32]:
    """Fit a variant to all frames; 'full' is shrunk toward the variant `simple`."""
    frames = np.arange(problem.count)
    log_scale, arrays = problem.log_scale(frames), empty_kernel(problem.trunk[0].shape[1])
    bias = log_scale if variant == 'scale' or (variant == 'full' and simple == 'scale') else 0.0
    if variant == 'full':
        model = NystroemRidge.fit(problem, frames)
        bias += shrinkage * (model.bias - bias)
        arrays = {name: values.numpy() for name, values in model.arrays.items()}
        arrays['kernel'] = np.float32(shrinkage) * arrays['kernel']
    return {'bias': np.array(bias, np.float32), **arrays}


# The correction ----------------------------------------------------------------------------


class NystroemRidge(NamedTuple):
    """Full correction: kernel ridge regression with Nyström landmarks (Williams & Seeger 2001).

    Attributes:
        bias: log scale, which corrects a patch unlike all landmarks.
        arrays: of a `Calibration`: projection, offset, scales, landmarks and kernel, float32.

    """

    bias: float
    arrays: dict[str, torch.Tensor]

    @classmethod
    def fit(cls, problem: Problem, frames: NDArray[np.intp]) -> NystroemRidge:
        """Fit components, scales, landmarks and weights to the frames of these numbers alone."""
        rng = np.random.default_rng(0)
        arrays = {name: _tensor(values) for name, values in {
            **_components([problem.trunk[i] for i in frames], rng),
            'scales': _term_scales(problem, frames)}.items()}
        features = _features(problem, frames, arrays)
        per_frame = -(-LANDMARKS // len(frames))
        candidates = torch.cat([rows[rng.permutation(len(rows))[:per_frame]]
                                for rows in features.chunk(len(frames))])
        landmarks = candidates[rng.permutation(len(candidates))[:LANDMARKS]]
        values, vectors = torch.linalg.eigh(gaussian_kernel(landmarks, landmarks).double())
        whitening = vectors / (values.clamp_min(0.0) + JITTER).sqrt()
        # Neighbouring patches agree, so that a finer grid adds no independent observations.
        unit = EFFECTIVE_PATCHES / (problem.passes * problem.base.shape[-1])
        # Normal equations of ridge regression, the features whitened by the landmarks' kernel.
        normal = torch.diag(torch.tensor([SCALE_PENALTY, *[PENALTY] * len(landmarks)]).double())
        rhs = torch.zeros(len(normal), dtype=torch.float64)
        for rows, target, weight in zip(*(torch.split(values, _BATCH) for values in (
                features, torch.from_numpy((problem.target - problem.base)[frames].ravel()),
                torch.from_numpy(unit * problem.weight[frames].ravel()))), strict=True):
            design = torch.ones(len(rows), len(normal), dtype=torch.float64)
            design[:, 1:] = gaussian_kernel(rows, landmarks).double() @ whitening
            weighted = design * weight[:, None]
            normal += weighted.T @ design
            rhs += weighted.T @ target
        solution = torch.linalg.solve(normal, rhs)
        return cls(float(solution[0]), {
            **arrays, 'landmarks': landmarks, 'kernel': (whitening @ solution[1:]).float()})

    def correction(self, problem: Problem, frames: NDArray[np.intp]) -> Float64:
        """Predict the correction (F', passes, P) of log depth of some frames."""
        correction = torch.cat([
            gaussian_kernel(rows, self.arrays['landmarks']) @ self.arrays['kernel']
            for rows in torch.split(_features(problem, frames, self.arrays), _BATCH)])
        return self.bias + correction.double().numpy().reshape(
            len(frames), *problem.base.shape[1:])


def _tensor(values: NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def _features(
    problem: Problem, frames: NDArray[np.intp], arrays: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """Embed the patches of some frames: (F' passes P, E) inputs of the kernel."""
    return torch.cat([
        embed_patches(project(_tensor(problem.trunk[i]), arrays['projection'], arrays['offset']),
             _tensor(problem.language[i].reshape(-1, *problem.grid)), _tensor(problem.rays[i]),
             arrays['scales']) for i in frames]).nan_to_num()


def _term_scales(problem: Problem, frames: NDArray[np.intp]) -> Float64:
    """Return factors (4,) of log depth, its mean over the image, and the ray's x and y."""
    language = problem.language[frames]
    deviation = np.array([language.std(), language.mean(axis=2).std(),
                          *problem.rays[frames].swapaxes(0, 2).reshape(2, -1).std(axis=1)])
    scales: Float64 = TERM_DEVIATION / WIDTH / np.where(deviation > 1e-6, deviation, np.inf)
    return scales


def _components(
    trunks: Sequence[NDArray[np.float16]], rng: np.random.Generator,
) -> dict[str, Float64]:
    """Compute principal components of the trunk's standardised maps, the largest last.

    Returns:
        `projection` (D, C') and `offset` (D,). The mean squared norm of a projected patch is one
        over the squared width of the kernel.

    """
    rows = np.concatenate([
        terms[rng.permutation(len(terms))[:max(1, MAX_PATCHES // len(trunks))]]
        for terms in (np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1])
                      for maps in trunks)]).astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    deviation = np.where(deviation > 1e-9 * (1 + np.abs(mean)), deviation, np.inf)
    rows = (rows - mean) / deviation
    size = rows.shape[1]
    variances, components = eigh(
        rows.T @ rows, subset_by_index=(max(0, size - COMPONENTS), size - 1))
    norm = math.sqrt(max(1e-24, float(variances.sum()) / len(rows)))
    projection = (components / deviation[:, None]).T / norm / WIDTH
    return {'projection': projection, 'offset': -projection @ mean}
