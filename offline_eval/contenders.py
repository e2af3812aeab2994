# SPDX-License-Identifier: Apache-2.0
"""Contenders: the method, its variants, and the baselines that say what its numbers are worth.

Constants do not look at the image, controls look past it, and calibrated rows are no longer
zero-shot. Other programs' rows are in `predictions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthclip_ros.core import DepthEstimator
from depthclip_ros.core.calibration import Calibration, image_digest
from depthclip_ros.core.config import PAPER_BINS, PAPER_TOKENS, DepthConfig
from depthclip_ros.core.engine import download, one_thread
from depthclip_ros.core.projection import mean_of_passes
from depthclip_ros.core.words import are_alike
from depthclip_ros.evaluation.errors import EvaluationError
from depthclip_ros.evaluation.metrics import MIN_DEPTH, Sums, random_pixels
from depthclip_ros.progress import progress

from .published import BIN_PARTITIONS, METHOD, PROMPTS

if TYPE_CHECKING:
    from depthclip_ros.evaluation.datasets import Dataset
    from depthclip_ros.evaluation.protocol import Protocol

    from .scoring import Seen

FOCAL = f'{METHOD} x focal length'
SHUFFLES, RANDOM_WORD_SETS = 5, 3
PARTNERS = 3  # other images whose depth is scored on each; `scoring.partners` has them
RANDOM_WORDS = 'random words'
NYU_CONSTANT = 2.4  # metres, the constant that explains the paper's numbers best
_SAME_VIEW = 0.01  # focal lengths, in widths of what the network sees, that differ by less are one

# Words that have nothing to do with distance or size.
NEUTRAL_WORDS = (
    'apple', 'guitar', 'purple', 'senate', 'whisper', 'velvet', 'october', 'seven', 'justice',
    'pepper', 'sailing', 'copper', 'tuesday', 'opera', 'honest', 'silver', 'grammar', 'lemon',
    'marriage', 'yellow', 'violin', 'january', 'wisdom', 'salty', 'election', 'bronze', 'poem',
    'sneeze', 'chess', 'banana', 'melody', 'angry')

Text = Mapping[tuple[str, ...], Tensor]  # (K, C) unit vectors of every set of words


@dataclass(frozen=True)
class Contender:
    """One answer to every image."""

    name: str  # of the row it belongs to; several contenders of one name are averaged
    group: str  # 'method', 'camera', 'bins', 'prompts', 'baseline', 'calibrated' or 'foreign'
    note: str = ''  # for the reader
    # An image as it is seen -> (h, w) metres of its patches or (H, W) of its pixels; or, where
    # they follow from the true depth alone, (11,) sums. None with `shift`.
    answer: Callable[[Seen], Tensor | Sums] | None = None
    tokens: tuple[str, ...] = ()  # words that it needs the text features of
    key: str = ''  # what else its digits depend on, so that a run is continued with the same only
    # Whether the method is compared with it; not where a control cannot work, or where another
    # program's depth has been fitted to the truth.
    is_test: bool = True
    shift: int = 0  # it is the method's depth of another image: which of an image's partners


def _read_out(
    name: str, group: str, tokens: Sequence[str], bins: Sequence[float], note: str,
    focal: float = 0.0,
) -> Contender:
    """Depth by words, in the order in which they get the bins.

    With `focal`, it is multiplied by the focal length of what the network sees, in its widths,
    and divided by this one.
    """
    def answer(seen: Seen) -> Tensor:
        depth = seen.read_out(tokens, bins)
        return depth * (seen.focal / focal) if focal else depth
    return Contender(name, group, note, answer, tuple(tokens), f'{tokens} {bins} {focal}')


def method_and_variants(
    config: DepthConfig, tables: Sequence[str], focal: float = 0.0,
) -> list[Contender]:
    """The method, which is the first, and the rows of the paper's tables.

    With `focal`, the focal length to which the words belong, in widths of the network's input,
    there is a row with that of each image's camera.
    """
    chosen = [_read_out(METHOD, 'method', config.tokens, config.bins, 'as configured')]
    if focal:
        chosen.append(_read_out(
            FOCAL, 'camera', config.tokens, config.bins,
            f'depth x focal length of what the network sees, in its widths / {focal:g}', focal))
    if '2' in tables:
        chosen += [_read_out(name, 'bins', PAPER_TOKENS, bins,
                             f'bins {", ".join(f"{b:.2f}" for b in bins)} m')
                   for name, bins in BIN_PARTITIONS.items()]
    if '3' in tables:
        chosen += [_read_out(name, 'prompts', tokens, PAPER_BINS, ', '.join(tokens))
                   for name, tokens in PROMPTS.items()]
    return chosen


def calibrated(path: Path, estimator: DepthEstimator, focals: Sequence[float]) -> Contender:
    """Depth as a calibration file corrects it; `focals` are those known, in the crop's widths.

    Raises:
        CalibrationError: it is damaged, or of another model or other settings.
        EvaluationError: it was fitted to another view; or, with an answer, to that image.

    """
    reference = float(Calibration.load(path).about.config['reference_focal'])
    calibration = estimator.prepare(estimator.config.replace(
        calibration=str(path), reference_focal=reference)).calibration  # its own ratio counts
    assert calibration is not None  # noqa: S101 - a path was given
    about = calibration.about
    x = calibration.arrays['rays'][..., 0]
    own = float((x.shape[1] - 1) / x.shape[1] / np.median(x[:, -1] - x[:, 0]))
    for focal in focals if about.camera_known else ():
        if abs(own / focal - 1) > _SAME_VIEW:
            raise EvaluationError(
                f'--calibration {path}: it was fitted to a view with a focal length of {own:.3f} '
                f'widths, and the network sees one of {focal:.3f} here. Calibrate with the '
                '--protocol that is evaluated.')
    known = frozenset(about.images)

    def answer(seen: Seen) -> Tensor:
        if image_digest(seen.pair.rgb) in known:
            raise EvaluationError(
                f'--calibration {path}: it was fitted to image {seen.position} of the data set '
                '(of those that are evaluated, counted from 0). Calibrate on a training split.')
        ratio = seen.focal / reference if seen.focal and reference else about.focal_ratio
        passes = len(seen.maps.features)
        said = seen.said(estimator.config.tokens, estimator.config.bins)
        weights, depth, spread, view = download(*said, calibration.view(seen.maps.trunk))
        return mean_of_passes(calibration.correct(
            weights, depth, spread, view, calibration.rays([None], flip=passes > 1),
            [ratio] * passes)[0], 1)[0]
    what = 'training images' if about.split else f'images of {about.source}'
    are_seen = 'none of them is evaluated, compared bit by bit' if known else (
        'which ones the file does not say, so that evaluated images MAY BE AMONG THEM')
    variant = 'no' if about.variant == 'none' else about.variant
    return Contender(
        f'calibrated on {about.frames} {what}', 'calibrated',
        f'no longer zero-shot: {path.name} ({variant} correction), '
        f'fitted to {about.split or about.source}; {are_seen}', answer, key=calibration.digest)


# Baselines ---------------------------------------------------------------------------------------


def baselines(
    config: DepthConfig, mean_map: NDArray[np.float32] | None, mean: float, max_depth: float,
    images: int,
) -> list[Contender]:
    """All baselines of a run but the best constant, which needs every image.

    `mean_map` and `mean` are those of `training_mean`, `images` is the size of the data set.
    """
    def constant(name: str, metres: float, note: str) -> Contender:
        return Contender(name, 'baseline', note, lambda seen: seen.constants.score([metres])[0],
                         key=f'{metres}')

    def random_patches(seen: Seen) -> Tensor:
        """Drawn per patch and pass, by a generator of the image's own."""
        drawn = np.random.default_rng([7, seen.position]).uniform(
            2 * MIN_DEPTH, max_depth, (len(seen.maps.features), *seen.estimator.grid)).mean(0)
        return torch.from_numpy(drawn.astype(np.float32)).to(seen.estimator.device)
    of_bins = float(np.mean(config.bins))
    chosen = [constant('mean of the bins', of_bins,
                       f'{of_bins:.3f} m everywhere: all words equally likely')]
    if max_depth <= 10:
        chosen.append(constant(f'constant {NYU_CONSTANT:g} m', NYU_CONSTANT,
                               'the constant that explains the numbers of the paper best'))
    if mean_map is not None:
        whole = torch.from_numpy(mean_map)
        chosen += [
            constant('mean of the training split', mean, f'{mean:.3f} m everywhere'),
            Contender('mean map', 'baseline',
                      "mean depth of every pixel's place in the training split",
                      lambda seen: whole.to(seen.estimator.device), key=f'{mean}')]
    chosen += [
        Contender('median of each image', 'baseline',
                  "oracle: the image's own true median everywhere",
                  lambda seen: seen.constants.score([seen.median])[0]),
        Contender('random per pixel', 'baseline',
                  f'uniform in 0 to {max_depth:g} m: expectation in closed form',
                  lambda seen: random_pixels(seen.valid, max_depth)),
        Contender('random per patch', 'baseline',
                  f"uniform in 0 to {max_depth:g} m on the patches, through the method's own "
                  "averaging and upsampling: the paper's 'Lower Bound'", random_patches)]
    rng, count = np.random.default_rng(0), len(config.tokens)
    orders: list[list[int]] = []
    while count > 1 and len(orders) < SHUFFLES:
        order = rng.permutation(count).tolist()
        orders += [order] if order != list(range(count)) else []
    chosen += [_read_out(
        'shuffled words', 'baseline', [config.tokens[i] for i in order], config.bins,
        f'the same words given to other bins; mean of {SHUFFLES} orders') for order in orders]
    if count <= len(NEUTRAL_WORDS):
        chosen += [_read_out(
            RANDOM_WORDS, 'baseline', rng.choice(NEUTRAL_WORDS, count, replace=False).tolist(),
            config.bins, 'words that have nothing to do with distance; mean of '
                         f'{RANDOM_WORD_SETS} sets') for _ in range(RANDOM_WORD_SETS)]
    ways = min(PARTNERS, images - 1)  # one image alone has nobody to change places with
    return [*chosen, *(Contender('shuffled images', 'baseline', (
        "the method's depth of one image scored on another: does the image matter at all? Mean of "
        f'{ways} ways'), key=f'{shift}', shift=shift) for shift in range(1, ways + 1))]


def training_mean(
    training: Dataset | None, protocol: Protocol,
) -> tuple[NDArray[np.float32] | None, float]:
    """Means of the valid depth of a training split, if there is one: (H, W) metres, and of all.

    Where no image has valid depth, the map has the mean of all.
    """
    if training is None:
        return None, 0.0
    total, count = np.zeros(protocol.size), np.zeros(protocol.size, np.int64)
    for position in progress(range(len(training)), 'training split', len(training)):
        truth = protocol.truth(training.read_truth(position))
        valid = ~np.isnan(truth)
        total += np.where(valid, truth, 0)
        count += valid
    mean = float(total.sum() / max(count.sum(), 1))
    return np.where(count > 0, total / np.maximum(count, 1), mean).astype(np.float32), mean


# Words -------------------------------------------------------------------------------------------


def encode(chosen: Sequence[Contender], estimator: DepthEstimator) -> Text:
    """Text features of every contender's words, on the estimator's device."""
    config = estimator.config
    own = estimator.prepare(config).text
    found = {config.tokens: own}
    with one_thread():  # sums of several threads may end in other digits
        for tokens in dict.fromkeys(c.tokens for c in chosen if c.tokens):
            if sorted(tokens) == sorted(config.tokens):  # the same words in another order
                found[tokens] = own[[config.tokens.index(t) for t in tokens]]
            else:
                found[tokens] = estimator.prepare(config.replace(
                    tokens=tokens, bins=[float(i + 1) for i in range(len(tokens))],
                    calibration='', max_stddev=0.0)).text
    return found


def without_failed_controls(chosen: Sequence[Contender], text: Text) -> list[Contender]:
    """The same contenders; random words are no test where a model does not tell them apart.

    One set of words that are all the same to the model spoils the row, which is their mean.
    """
    sets = [c.tokens for c in chosen if c.name == RANDOM_WORDS]
    alike = sum(are_alike(text[tokens].cpu().numpy()) for tokens in sets)
    if not alike:
        return list(chosen)
    note = (f'no test: this model takes all the words for the same in {alike} of {len(sets)} '
            'sets, and so gives the mean of the bins there')
    return [replace(c, is_test=False, note=note) if c.name == RANDOM_WORDS else c for c in chosen]
