# SPDX-License-Identifier: Apache-2.0
"""Contenders: the method, its variants, and the baselines that say what its numbers are worth.

Constants do not look at the image, controls look past it, and calibrated rows are no longer
zero-shot. Other programs' rows are in `predictions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from .images import EvaluatedImage, TextFeatures
from .published import BIN_PARTITIONS, METHOD, PROMPTS

if TYPE_CHECKING:
    from depthclip_ros.evaluation.datasets import Dataset
    from depthclip_ros.evaluation.protocol import Protocol

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

# Kinds of answers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender(ABC):
    """One answer to every image, of one of the kinds below.

    Fields that take part in comparisons are all that its digits depend on, as plain data.
    """

    name: str  # of the row it belongs to; several contenders of one name are averaged
    group: str  # 'method', 'camera', 'bins', 'prompts', 'baseline', 'calibrated' or 'foreign'
    note: str = field(default='', compare=False)  # for the reader
    _: KW_ONLY
    # Whether the method is compared with it; not where a control cannot work, or where another
    # program's depth has been fitted to the truth.
    is_test: bool = True

    def identity(self) -> dict[str, Any]:
        """Plain data that a run must have in common with the one that it continues."""
        return {'kind': type(self).__name__} | {
            f.name: getattr(self, f.name) for f in fields(self) if f.compare}


class PatchDepth(Contender):
    """Depth of patches, which is upsampled as the method's."""

    @abstractmethod
    def patches(self, image: EvaluatedImage) -> Tensor:
        """(h, w) metres."""


class PixelDepth(Contender):
    """Depth of every pixel of the protocol's crop."""

    @abstractmethod
    def pixels(self, image: EvaluatedImage) -> Tensor:
        """(H, W) metres."""


class ClosedForm(Contender):
    """A score that follows from the true depth alone."""

    @abstractmethod
    def sums(self, image: EvaluatedImage) -> Sums:
        """(11,) sums, see `evaluation.metrics`."""


@dataclass(frozen=True)
class WordDepth(PatchDepth):
    """Depth that words say, in the order in which they get the bins."""

    tokens: tuple[str, ...] = ()
    bins: tuple[float, ...] = ()  # metres
    # Where given, depth is multiplied by the focal length of what the network sees, in its
    # widths, and divided by this one.
    focal: float = 0.0

    def patches(self, image: EvaluatedImage) -> Tensor:
        """(h, w) metres."""
        depth = image.word_depth(self.tokens, self.bins)
        return depth * (image.focal / self.focal) if self.focal else depth


@dataclass(frozen=True)
class CalibratedDepth(PatchDepth):
    """The method's depth as a calibration corrects it."""

    _: KW_ONLY
    digest: str  # of the calibration
    file: Path = field(compare=False)
    calibration: Calibration = field(repr=False, compare=False)
    reference: float = field(compare=False)  # focal length of the words, in widths

    def patches(self, image: EvaluatedImage) -> Tensor:
        """(h, w) metres.

        Raises:
            EvaluationError: the calibration was fitted to this very image.

        """
        calibration, about = self.calibration, self.calibration.about
        if about.images and image_digest(image.pair.rgb) in about.images:
            raise EvaluationError(
                f'--calibration {self.file}: it was fitted to image {image.position} of the data '
                'set (of those that are evaluated, counted from 0). Calibrate on a training '
                'split.')
        config = image.estimator.config
        ratio = (image.focal / self.reference if image.focal and self.reference
                 else about.focal_ratio)
        passes = len(image.maps.features)
        weights, depth, spread, view = download(
            *image.read_out(config.tokens, config.bins), calibration.view(image.maps.trunk))
        return mean_of_passes(calibration.correct(
            weights, depth, spread, view, calibration.rays([None], flip=passes > 1),
            [ratio] * passes)[0], 1)[0]


@dataclass(frozen=True)
class RandomPatches(PatchDepth):
    """Uniform depth, drawn per patch and pass by a generator of the image's own."""

    _: KW_ONLY
    max_depth: float  # metres

    def patches(self, image: EvaluatedImage) -> Tensor:
        """(h, w) metres."""
        drawn = np.random.default_rng([7, image.position]).uniform(
            2 * MIN_DEPTH, self.max_depth, (len(image.maps.features), *image.estimator.grid))
        return torch.from_numpy(drawn.mean(0).astype(np.float32)).to(image.estimator.device)


@dataclass(frozen=True)
class MeanMap(PixelDepth):
    """The same depth for every image, another one in each pixel."""

    _: KW_ONLY
    mean: float  # metres
    map: NDArray[np.float32] = field(repr=False, compare=False)  # (H, W) metres

    def pixels(self, image: EvaluatedImage) -> Tensor:
        """(H, W) metres."""
        return torch.from_numpy(self.map).to(image.estimator.device)


@dataclass(frozen=True)
class Constant(ClosedForm):
    """One depth everywhere."""

    _: KW_ONLY
    metres: float

    def sums(self, image: EvaluatedImage) -> Sums:
        """(11,) sums."""
        return image.constant(self.metres)


@dataclass(frozen=True)
class MedianOracle(ClosedForm):
    """Each image's own true median everywhere."""

    def sums(self, image: EvaluatedImage) -> Sums:
        """(11,) sums."""
        return image.constant(image.median)


@dataclass(frozen=True)
class RandomPixels(ClosedForm):
    """Uniform depth, drawn per pixel: its expectation."""

    _: KW_ONLY
    max_depth: float  # metres

    def sums(self, image: EvaluatedImage) -> Sums:
        """(11,) sums."""
        return random_pixels(image.valid, self.max_depth)


@dataclass(frozen=True)
class OtherImage(Contender):
    """The method's depth of another image; `scoring.partners` says of which."""

    _: KW_ONLY
    shift: int


# The method --------------------------------------------------------------------------------------


def method_and_variants(
    config: DepthConfig, tables: Sequence[str], focal: float = 0.0,
) -> list[WordDepth]:
    """The method, which is the first, and the rows of the paper's tables.

    With `focal`, the focal length to which the words belong, in widths of the network's input,
    there is a row with that of each image's camera.
    """
    tokens, own_bins = config.tokens, config.bins
    chosen = [WordDepth(METHOD, 'method', 'as configured', tokens, own_bins)]
    if focal:
        chosen.append(WordDepth(
            FOCAL, 'camera',
            f'depth x focal length of what the network sees, in its widths / {focal:g}',
            tokens, own_bins, focal))
    if '2' in tables:
        chosen += [WordDepth(name, 'bins', f'bins {", ".join(f"{b:.2f}" for b in bins)} m',
                             PAPER_TOKENS, bins)
                   for name, bins in BIN_PARTITIONS.items()]
    if '3' in tables:
        chosen += [WordDepth(name, 'prompts', ', '.join(words), words, PAPER_BINS)
                   for name, words in PROMPTS.items()]
    return chosen


def calibrated(
    path: Path, estimator: DepthEstimator, focals: Sequence[float],
) -> CalibratedDepth:
    """Depth as a calibration file corrects it; `focals` are those known, in the crop's widths.

    Raises:
        CalibrationError: it is damaged, or of another model or other settings.
        EvaluationError: it was fitted to another view.

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
    what = 'training images' if about.split else f'images of {about.source}'
    disjoint = 'none of them is evaluated, compared bit by bit' if about.images else (
        'which ones the file does not say, so that evaluated images MAY BE AMONG THEM')
    variant = 'no' if about.variant == 'none' else about.variant
    return CalibratedDepth(
        f'calibrated on {about.frames} {what}', 'calibrated',
        f'no longer zero-shot: {path.name} ({variant} correction), '
        f'fitted to {about.split or about.source}; {disjoint}', digest=calibration.digest,
        file=path, calibration=calibration, reference=reference)


# Baselines ---------------------------------------------------------------------------------------


def baselines(
    config: DepthConfig, mean_map: NDArray[np.float32] | None, mean: float, max_depth: float,
    images: int,
) -> list[Contender]:
    """All baselines of a run but the best constant, which needs every image.

    `mean_map` and `mean` are those of `training_mean`, `images` is the size of the data set.
    """
    def constant(name: str, metres: float, note: str) -> Contender:
        return Constant(name, 'baseline', note, metres=metres)
    of_bins = float(np.mean(config.bins))
    chosen = [constant('mean of the bins', of_bins,
                       f'{of_bins:.3f} m everywhere: all words equally likely')]
    if max_depth <= 10:
        chosen.append(constant(f'constant {NYU_CONSTANT:g} m', NYU_CONSTANT,
                               'the constant that explains the numbers of the paper best'))
    if mean_map is not None:
        chosen += [
            constant('mean of the training split', mean, f'{mean:.3f} m everywhere'),
            MeanMap('mean map', 'baseline',
                    "mean depth of every pixel's place in the training split",
                    mean=mean, map=mean_map)]
    chosen += [
        MedianOracle('median of each image', 'baseline',
                     "oracle: the image's own true median everywhere"),
        RandomPixels('random per pixel', 'baseline',
                     f'uniform in 0 to {max_depth:g} m: expectation in closed form',
                     max_depth=max_depth),
        RandomPatches('random per patch', 'baseline',
                      f"uniform in 0 to {max_depth:g} m on the patches, through the method's own "
                      "averaging and upsampling: the paper's 'Lower Bound'",
                      max_depth=max_depth)]
    rng, count = np.random.default_rng(0), len(config.tokens)
    orders: list[list[int]] = []
    while count > 1 and len(orders) < SHUFFLES:
        order = rng.permutation(count).tolist()
        orders += [order] if order != list(range(count)) else []
    chosen += [WordDepth(
        'shuffled words', 'baseline',
        f'the same words given to other bins; mean of {SHUFFLES} orders',
        tuple(config.tokens[i] for i in order), config.bins) for order in orders]
    if count <= len(NEUTRAL_WORDS):
        chosen += [WordDepth(
            RANDOM_WORDS, 'baseline', 'words that have nothing to do with distance; mean of '
                                      f'{RANDOM_WORD_SETS} sets',
            tuple(rng.choice(NEUTRAL_WORDS, count, replace=False).tolist()), config.bins)
            for _ in range(RANDOM_WORD_SETS)]
    ways = min(PARTNERS, images - 1)  # one image alone has nobody to change places with
    return [*chosen, *(OtherImage('shuffled images', 'baseline', (
        "the method's depth of one image scored on another: does the image matter at all? Mean of "
        f'{ways} ways'), shift=shift) for shift in range(1, ways + 1))]


def training_mean(
    training: Dataset | None, protocol: Protocol,
) -> tuple[NDArray[np.float32] | None, float]:
    """Means of the valid depth of a training split, if there is one: (H, W) metres, and of all.

    Where no image has valid depth, the map has the mean of all; there is none if there is none.
    """
    if training is None:
        return None, 0.0
    total, count = np.zeros(protocol.size), np.zeros(protocol.size, np.int64)
    for position in progress(range(len(training)), 'training split', len(training)):
        truth = protocol.truth(training.read_truth(position))
        valid = ~np.isnan(truth)
        total += np.where(valid, truth, 0)
        count += valid
    if not count.any():
        return None, 0.0
    mean = float(total.sum() / count.sum())
    return np.where(count > 0, total / np.maximum(count, 1), mean).astype(np.float32), mean


# Words -------------------------------------------------------------------------------------------


def encode(chosen: Sequence[Contender], estimator: DepthEstimator) -> TextFeatures:
    """Text features of every contender's words, on the estimator's device."""
    config = estimator.config
    configured = estimator.prepare(config).text
    features = {config.tokens: configured}
    with one_thread():  # sums of several threads may end in other digits
        for tokens in dict.fromkeys(c.tokens for c in chosen if isinstance(c, WordDepth)):
            if sorted(tokens) == sorted(config.tokens):  # the same words in another order
                features[tokens] = configured[[config.tokens.index(t) for t in tokens]]
            else:
                features[tokens] = estimator.prepare(config.replace(
                    tokens=tokens, bins=[float(i + 1) for i in range(len(tokens))],
                    calibration='', max_stddev=0.0)).text
    return features


def without_failed_controls(chosen: Sequence[Contender], text: TextFeatures) -> list[Contender]:
    """The same contenders; random words are no test where a model does not tell them apart.

    One set of words that are all the same to the model spoils the row, which is their mean.
    """
    sets = [c.tokens for c in chosen if isinstance(c, WordDepth) and c.name == RANDOM_WORDS]
    alike = sum(are_alike(text[tokens].cpu().numpy()) for tokens in sets)
    if not alike:
        return list(chosen)
    note = (f'no test: this model takes all the words for the same in {alike} of {len(sets)} '
            'sets, and so gives the mean of the bins there')
    return [replace(c, is_test=False, note=note) if c.name == RANDOM_WORDS else c for c in chosen]
