# SPDX-License-Identifier: Apache-2.0
"""A closed-form correction of the language depth, from frames whose depth is known.

The residual of the logarithm of depth to the language depth is fitted by kernel ridge regression:
patches that look alike, and lie alike in the view, are corrected alike. A patch that looks like
none that was seen falls back to "language x one scale", and so does strong regularisation.
Few sequences teach a correction that is right in its direction and too large: of it, the share is
taken that held-out sequences want.

What is said of errors is said by cross-validation over sequences, never over single frames, which
look alike: directions, scales, landmarks and weights of each fold are found without it, just as
those that ship are found in all frames. Only the share, one of four numbers, is chosen by the same
folds.
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

from ..core.calibration import BOUND, About, Calibration, likeness, look, no_kernel, project
from ..core.estimator import DepthEstimator
from .errorbars import ErrorBars, error_bars
from .problem import Problem, geometric_mean
from .recordings import Frame

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Of the rmse of what is simpler: for a scale to be taken; for a share of the correction, which can
# lose but little; and for anything to be called an improvement.
WORTH, SHARE_WORTH, IMPROVED = 0.97, 0.995, 0.95
# Standard errors over folds that the difference must have besides; for a share of the correction,
# the part of the folds in which it must help.
SURE, MOST = 1.0, 0.5
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way from what is simpler to the full correction
# Main directions that are kept of the trunk's map, and patches from which they are found.
DIMENSIONS, MOST_PATCHES = 32, 8192
# Width of the kernel, where the trunk's directions together have a mean square of one, and the
# standard deviation that each of the other terms is given beside them.
WIDTH, TOLD_DEVIATION = 1.2, 0.6
# Patches that others are compared with (Nystroem's approximation).
LANDMARKS = 512
JITTER = 1e-5
SCALE_PENALTY, PENALTY = 1e-3, 1.0  # ridge parameters of the scale and of the kernel
INDEPENDENT = 48.0  # patches of a frame that count as independent
_ROWS = 8192  # patches that are compared with the landmarks at once


@dataclass(frozen=True)
class Fitted:
    """What came out of `fit`.

    Attributes:
        calibration: to be saved; of the variant 'none' it is the error bars of words alone.
        variant: the one that was chosen.
        improved: whether held-out blocks show at least 5 % less rmse than both the one fitted
            scale and the mean map.
        verdict: all of that in a sentence or two.
        held_out: mean rmse [m], delta 1 and rel by variant ('none': what is there without
            calibration, focal length counted; 'mean map', 'scale', 'full'), on frames of blocks
            that it was not fitted to; of 'full' the share was chosen by these blocks.
        folds: rmse in metres of 'none', 'mean map', 'scale' and the chosen one in every fold.
        share: of the correction that is taken.
        bars: and how well they cover.

    """

    calibration: Calibration
    variant: str
    improved: bool
    verdict: str
    held_out: dict[str, Float64]
    folds: list[dict[str, float]]
    share: float
    bars: ErrorBars


def fit(
    estimator: DepthEstimator, frames: Iterable[Frame], variant: str = 'auto',
    source: str = 'a recording', split: str = '', log: Callable[[str], None] = print,
) -> Fitted:
    """Fit a correction of the language depth, and say whether it is worth having.

    Args:
        estimator: as configured, without scenes or a calibration.
        frames: of several sequences; read once, in order.
        variant: 'auto' for the one that the held-out frames show to be worth it, or 'full' (the
            share of the correction that is best for them), 'scale' (one factor), 'none'.
        source: what it was calibrated on, in words, for its label.
        split: the training split of a data set that it is, in words; '' for anything else.
        log: told what happens.

    Returns:
        The calibration, and what is known of it from frames that it was not fitted to.

    Raises:
        CalibrationError: there are too few frames with depth or too few sequences.

    """
    problem = Problem(estimator, frames)
    log(f'{problem.count} frames in {problem.blocks} sequences; what is chosen is chosen by '
        f'{problem.folds} folds of sequences.')
    share, predictions = held_out(problem)
    errors = {name: problem.fold_errors(values) for name, values in predictions.items()}
    chosen, improved, verdict = judge(errors, share)
    if variant not in ('auto', chosen):
        verdict = f'Variant {variant} was asked for. {verdict}'
        chosen, improved = variant, False
    # What is multiplied by no focal ratio here may not be multiplied by one afterwards.
    config = {name: value for name, value in estimator.config.to_dict().items() if name in BOUND}
    if not problem.camera_known and config['reference_focal']:
        config['reference_focal'] = 0.0
        verdict += (' The recording tells no focal length, so that this belongs to its own lens '
                    'alone (reference_focal is 0).')
    log(verdict)
    bars = error_bars(problem, predictions[chosen])
    about = About(
        source=source, variant=chosen, frames=problem.count, blocks=problem.blocks,
        weights=estimator.weights.digest, weights_name=estimator.weights.name,
        focal_ratio=geometric_mean(problem.ratio), config=config, split=split,
        images=problem.digests, camera_known=problem.camera_known, precision=estimator.precision)
    return Fitted(
        Calibration(about, {**problem.view, **bars.arrays, **correction_arrays(
            problem, chosen, share, simpler(errors))}),
        chosen, improved, verdict,
        {name: problem.scores(values).mean(axis=0) for name, values in predictions.items()},
        [{name: float(errors[name][fold]) for name in dict.fromkeys(
            ('none', 'mean map', 'scale', chosen))} for fold in range(problem.folds)],
        share, bars)


# Choosing ----------------------------------------------------------------------------------


def held_out(problem: Problem) -> tuple[float, dict[str, Float64]]:
    """The share to take, and (F, passes, P) log depth of every variant and control.

    Each fold is fitted on the others, but those that adjoin it in time; of 'full', it is the
    share of the way from what is simpler.
    """
    results = {'none': problem.base, **{
        name: np.empty(problem.base.shape) for name in ('mean map', 'scale', 'full')}}
    for fold in range(problem.folds):
        inside, rest = np.flatnonzero(problem.fold == fold), problem.training(fold)
        results['mean map'][inside] = problem.mean_map(rest)
        results['scale'][inside] = problem.base[inside] + problem.scale(rest)
        results['full'][inside] = problem.base[inside] + Kernel.fit(problem, rest).correction(
            problem, inside)
    simple = results[simpler({name: problem.fold_errors(results[name])
                              for name in ('scale', 'none')})]
    parts = {share: simple + share * (results['full'] - simple) for share in SHARES}
    share = min(parts, key=lambda one: problem.fold_errors(parts[one]).mean())
    results['full'] = parts[share]
    return share, results


def simpler(errors: Mapping[str, Float64]) -> str:
    """What a share of the correction begins from, by the rmse of every fold."""
    return 'scale' if _worth(errors['scale'], errors['none']) else 'none'


def _worth(errors: Float64, others: Float64) -> bool:
    """Whether something is surely worth having, by the rmse of every fold."""
    gain = others - errors
    standard_error = gain.std(ddof=1) / math.sqrt(len(gain))
    return bool(errors.mean() <= WORTH * others.mean() and gain.mean() >= SURE * standard_error)


def judge(errors: Mapping[str, Float64], share: float = 1.0) -> tuple[str, bool, str]:
    """Which variant is worth having.

    Args:
        errors: rmse in metres of every fold, by variant.
        share: of the full correction, that 'full' is.

    Returns:
        The variant, whether it may be called an improvement, and why, in words.

    """
    means = {name: float(values.mean()) for name, values in errors.items()}
    variant = simple = simpler(errors)
    if float((errors['full'] < errors[simple]).mean()) >= MOST and means['full'] < min(
            SHARE_WORTH * means[simple], means['mean map']):
        variant = 'full'
    best = min(('none', 'scale', 'mean map'), key=lambda name: means[name])
    improved = variant == 'full' and means['full'] <= IMPROVED * means[best] and _worth(
        errors['full'], errors[best])
    taken = {'none': 'Depth is left as the words say it', 'scale': 'One scale is taken',
             'full': f'The full correction, {share:.0%} of it, is taken'}[variant]
    why = f'no improvement by {1 - IMPROVED:.0%} over both one scale and the mean map is seen'
    if improved:
        why = f'it helps, by {1 - means["full"] / means[best]:.0%} over the best of the others'
    elif means['mean map'] < means[variant]:
        why = 'no improvement is claimed: a picture that is always the same is better here'
    return variant, improved, (
        f'{taken}; {why} (held-out rmse {means[variant]:.3f} m, of words '
        f'alone {means["none"]:.3f} m, with one scale {means["scale"]:.3f} m, of the mean map '
        f'{means["mean map"]:.3f} m).')


def correction_arrays(
    problem: Problem, variant: str, share: float, simple: str,
) -> dict[str, Float32]:
    """The numbers of a correction that is fitted to all frames: of 'full', a share from there."""
    everything = np.arange(problem.count)
    scale, arrays = problem.scale(everything), no_kernel(problem.trunk[0].shape[1])
    bias = scale if variant == 'scale' or (variant == 'full' and simple == 'scale') else 0.0
    if variant == 'full':
        kernel = Kernel.fit(problem, everything)
        bias += share * (kernel.bias - bias)
        arrays = {name: values.numpy() for name, values in kernel.arrays.items()}
        arrays['kernel'] = np.float32(share) * arrays['kernel']
    return {'bias': np.array(bias, np.float32), **arrays}


# The correction ----------------------------------------------------------------------------


class Kernel(NamedTuple):
    """The full correction: a scale, and kernel ridge regression by Nystroem's approximation.

    Attributes:
        bias: the scale's logarithm, where nothing looks like a landmark.
        arrays: of a `Calibration`, all that belong to the kernel, float32.

    """

    bias: float
    arrays: dict[str, torch.Tensor]

    @classmethod
    def fit(cls, problem: Problem, frames: NDArray[np.intp]) -> Kernel:
        """Fit directions, scales, landmarks and weights to frames of these numbers alone."""
        rng = np.random.default_rng(0)
        arrays = {name: _tensor(values) for name, values in {
            **_directions([problem.trunk[i] for i in frames], rng),
            'scales': _scales(problem, frames)}.items()}
        features = _features(problem, frames, arrays)
        a_frame = -(-LANDMARKS // len(frames))
        candidates = torch.cat([rows[rng.permutation(len(rows))[:a_frame]]
                                for rows in features.chunk(len(frames))])
        landmarks = candidates[rng.permutation(len(candidates))[:LANDMARKS]]
        values, vectors = torch.linalg.eigh(likeness(landmarks, landmarks).double())
        whitening = vectors / (values.clamp_min(0.0) + JITTER).sqrt()
        # Of a patch, as if there were as many as in the smallest grid: neighbours agree.
        unit = INDEPENDENT / (problem.passes * problem.base.shape[-1])
        normal = torch.diag(torch.tensor([SCALE_PENALTY, *[PENALTY] * len(landmarks)]).double())
        right = torch.zeros(len(normal), dtype=torch.float64)
        for rows, target, weight in zip(*(torch.split(values, _ROWS) for values in (
                features, torch.from_numpy((problem.target - problem.base)[frames].ravel()),
                torch.from_numpy(unit * problem.weight[frames].ravel()))), strict=True):
            terms = torch.ones(len(rows), len(normal), dtype=torch.float64)
            terms[:, 1:] = likeness(rows, landmarks).double() @ whitening
            weighted = terms * weight[:, None]
            normal += weighted.T @ terms
            right += weighted.T @ target
        solution = torch.linalg.solve(normal, right)
        return cls(float(solution[0]), {
            **arrays, 'landmarks': landmarks, 'kernel': (whitening @ solution[1:]).float()})

    def correction(self, problem: Problem, frames: NDArray[np.intp]) -> Float64:
        """(F', passes, P) of some frames."""
        correction = torch.cat([
            likeness(rows, self.arrays['landmarks']) @ self.arrays['kernel']
            for rows in torch.split(_features(problem, frames, self.arrays), _ROWS)])
        return self.bias + correction.double().numpy().reshape(
            len(frames), *problem.base.shape[1:])


def _tensor(values: NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def _features(
    problem: Problem, frames: NDArray[np.intp], arrays: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """(F' passes P, E) what the patches of some frames look like."""
    return torch.cat([
        look(project(_tensor(problem.trunk[i]), arrays['projection'], arrays['offset']),
             _tensor(problem.language[i].reshape(-1, *problem.grid)), _tensor(problem.rays[i]),
             arrays['scales']) for i in frames]).nan_to_num()


def _scales(problem: Problem, frames: NDArray[np.intp]) -> Float64:
    """(4,) of log depth, its mean over the image, and the ray's x and y."""
    language = problem.language[frames]
    deviation = np.array([language.std(), language.mean(axis=2).std(),
                          *problem.rays[frames].swapaxes(0, 2).reshape(2, -1).std(axis=1)])
    scales: Float64 = TOLD_DEVIATION / WIDTH / np.where(deviation > 1e-6, deviation, np.inf)
    return scales


def _directions(
    trunks: Sequence[NDArray[np.float16]], rng: np.random.Generator,
) -> dict[str, Float64]:
    """Principal components of the trunk's standardised map, the first of them last.

    Returns:
        `projection` (D, C') and `offset` (D,); projected, a map has a mean square of one over all
        directions, divided by the kernel's width.

    """
    rows = np.concatenate([
        terms[rng.permutation(len(terms))[:max(1, MOST_PATCHES // len(trunks))]]
        for terms in (np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1])
                      for maps in trunks)]).astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    deviation = np.where(deviation > 1e-9 * (1 + np.abs(mean)), deviation, np.inf)
    rows = (rows - mean) / deviation
    size = rows.shape[1]
    variances, directions = eigh(
        rows.T @ rows, subset_by_index=(max(0, size - DIMENSIONS), size - 1))
    length = math.sqrt(max(1e-24, float(variances.sum()) / len(rows)))
    projection = (directions / deviation[:, None]).T / length / WIDTH
    return {'projection': projection, 'offset': -projection @ mean}
