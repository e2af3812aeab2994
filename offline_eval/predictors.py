# SPDX-License-Identifier: Apache-2.0
"""Predictors of depth: the method, its variants, baselines, controls and calibrations.

Baselines ignore the image; controls are the method with shuffled or random words, or another
image; calibrated rows are no longer zero-shot. Depth of other programs is in `prediction_files`.
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
from depthclip_ros.core.engine import single_thread, to_host
from depthclip_ros.core.readout import mean_of_passes
from depthclip_ros.core.text_features import all_alike
from depthclip_ros.evaluation.errors import EvaluationError
from depthclip_ros.evaluation.metrics import MIN_DEPTH, Sums, random_pixels
from depthclip_ros.progress import progress

from .evaluated_image import EvaluatedImage, TextFeatures
from .published import BIN_PARTITIONS, METHOD, PROMPTS

if TYPE_CHECKING:
    from depthclip_ros.evaluation.datasets import Dataset
    from depthclip_ros.evaluation.protocol import Protocol

FOCAL = f'{METHOD} x focal length'
SHUFFLES, RANDOM_WORD_SETS = 5, 3
PARTNERS = 3  # other images whose depth is scored on each; see `scoring.partners`
RANDOM_WORDS = 'random words'
NYU_CONSTANT = 2.4  # metres, the constant that fits the paper's numbers best
_FOCAL_TOLERANCE = 0.01  # relative difference of focal lengths of one view

# Words that have nothing to do with distance or size.
NEUTRAL_WORDS = (
    'apple', 'guitar', 'purple', 'senate', 'whisper', 'velvet', 'october', 'seven', 'justice',
    'pepper', 'sailing', 'copper', 'tuesday', 'opera', 'honest', 'silver', 'grammar', 'lemon',
    'marriage', 'yellow', 'violin', 'january', 'wisdom', 'salty', 'election', 'bronze', 'poem',
    'sneeze', 'chess', 'banana', 'melody', 'angry')

# Kinds of predictors -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor(ABC):
    """A way to get depth for every image, of one of the kinds below.

    Compared fields are plain data, by which a run that is resumed is recognised; see `identity`.
    """

    name: str  # of the row; predictors of one name are averaged
    group: str  # 'method', 'camera', 'bins', 'prompts', 'baseline', 'calibrated' or 'foreign'
    note: str = field(default='', compare=False)  # of an oracle it begins with 'oracle'
    _: KW_ONLY
    # Whether the verdict compares the method with it: not with a control that cannot work, nor
    # with another program's depth that was fitted to the truth.
    is_test: bool = True

    def identity(self) -> dict[str, Any]:
        """Return the data that must be equal for a run to be resumed."""
        return {'kind': type(self).__name__} | {
            f.name: getattr(self, f.name) for f in fields(self) if f.compare}


class PatchDepth(Predictor):
    """Depth per patch; the scorer upsamples it as the method does."""

    @abstractmethod
    def patches(self, image: EvaluatedImage) -> Tensor:
        """Predict (h, w) metres."""


class PixelDepth(Predictor):
    """Depth of every pixel of the protocol's crop."""

    @abstractmethod
    def pixels(self, image: EvaluatedImage) -> Tensor:
        """Predict (H, W) metres."""


class ClosedForm(Predictor):
    """Sums that follow from the true depth in closed form."""

    @abstractmethod
    def sums(self, image: EvaluatedImage) -> Sums:
        """Compute (11,) sums, see `evaluation.metrics`."""


@dataclass(frozen=True)
class WordDepth(PatchDepth):
    """The method with any words; each word has the bin at its index."""

    tokens: tuple[str, ...] = ()
    bins: tuple[float, ...] = ()  # metres
    # Focal length of the words, in image widths. If given, depth is multiplied by the focal length
    # of the network's input and divided by this.
    focal: float = 0.0

    def patches(self, image: EvaluatedImage) -> Tensor:
        """Predict (h, w) metres."""
        depth = image.word_depth(self.tokens, self.bins)
        return depth * (image.focal / self.focal) if self.focal else depth


@dataclass(frozen=True)
class CalibratedDepth(PatchDepth):
    """The method's depth, corrected by a calibration."""

    _: KW_ONLY
    digest: str  # of the calibration
    file: Path = field(compare=False)
    calibration: Calibration = field(repr=False, compare=False)
    reference: float = field(compare=False)  # focal length of the words, in image widths

    def patches(self, image: EvaluatedImage) -> Tensor:
        """Predict (h, w) metres.

        Raises:
            EvaluationError: the calibration was fitted to this image.

        """
        calibration, origin = self.calibration, self.calibration.origin
        if origin.images and image_digest(image.pair.rgb) in origin.images:
            raise EvaluationError(
                f'--calibration {self.file}: it was fitted to image {image.position} of the data '
                'set (of those that are evaluated, counted from 0). Calibrate on a training '
                'split.')
        config = image.estimator.config
        ratio = (image.focal / self.reference if image.focal and self.reference
                 else origin.focal_ratio)
        passes = len(image.maps.features)
        weights, depth, spread, components = to_host(
            *image.read_out(config.tokens, config.bins),
            calibration.principal_components(image.maps.trunk))
        return mean_of_passes(calibration.correct(
            weights, depth, spread, components, calibration.rays([None], flip=passes > 1),
            [ratio] * passes)[0], 1)[0]


@dataclass(frozen=True)
class RandomPatches(PatchDepth):
    """Uniform random depth per patch and pass; the seed is the image's position."""

    _: KW_ONLY
    max_depth: float  # metres

    def patches(self, image: EvaluatedImage) -> Tensor:
        """Predict (h, w) metres."""
        passes = np.random.default_rng([7, image.position]).uniform(
            2 * MIN_DEPTH, self.max_depth, (len(image.maps.features), *image.estimator.grid))
        return torch.from_numpy(passes.mean(0).astype(np.float32)).to(image.estimator.device)


@dataclass(frozen=True)
class MeanMap(PixelDepth):
    """The same depth map for every image."""

    _: KW_ONLY
    mean: float  # metres
    map: NDArray[np.float32] = field(repr=False, compare=False)  # (H, W) metres

    def pixels(self, image: EvaluatedImage) -> Tensor:
        """Predict (H, W) metres."""
        return torch.from_numpy(self.map).to(image.estimator.device)


@dataclass(frozen=True)
class Constant(ClosedForm):
    """One depth everywhere."""

    _: KW_ONLY
    metres: float

    def sums(self, image: EvaluatedImage) -> Sums:
        """Compute (11,) sums."""
        return image.constant(self.metres)


@dataclass(frozen=True)
class MedianOracle(ClosedForm):
    """The image's true median everywhere."""

    def sums(self, image: EvaluatedImage) -> Sums:
        """Compute (11,) sums."""
        return image.constant(image.median)


@dataclass(frozen=True)
class RandomPixels(ClosedForm):
    """Expected sums of uniform random depth per pixel."""

    _: KW_ONLY
    max_depth: float  # metres

    def sums(self, image: EvaluatedImage) -> Sums:
        """Compute (11,) sums."""
        return random_pixels(image.valid, self.max_depth)


@dataclass(frozen=True)
class OtherImage(Predictor):
    """The method's depth of another image, chosen by `scoring.partners`."""

    _: KW_ONLY
    shift: int


# The method --------------------------------------------------------------------------------------


def method_and_variants(
    config: DepthConfig, tables: Sequence[str], focal: float = 0.0,
) -> list[WordDepth]:
    """Make the predictors of the method, which is first, and of the paper's tables.

    `focal` is the focal length of the words in image widths. If given, another row scales depth by
    the focal length of each image's camera.
    """
    tokens, bins = config.tokens, config.bins
    predictors = [WordDepth(METHOD, 'method', 'as configured', tokens, bins)]
    if focal:
        predictors.append(WordDepth(
            FOCAL, 'camera',
            f'depth x focal length of what the network sees, in its widths / {focal:g}',
            tokens, bins, focal))
    if '2' in tables:
        predictors += [WordDepth(name, 'bins', f'bins {", ".join(f"{b:.2f}" for b in bins)} m',
                                 PAPER_TOKENS, bins)
                       for name, bins in BIN_PARTITIONS.items()]
    if '3' in tables:
        predictors += [WordDepth(name, 'prompts', ', '.join(words), words, PAPER_BINS)
                       for name, words in PROMPTS.items()]
    return predictors


def calibrated(
    path: Path, estimator: DepthEstimator, focals: Sequence[float],
) -> CalibratedDepth:
    """Make the predictor of a calibration file.

    Args:
        path: of the file.
        estimator: with the method's model and settings.
        focals: focal lengths of the data set's cameras, in widths of the crop.

    Raises:
        CalibrationError: the file is damaged, or of another model or other settings.
        EvaluationError: the calibration was fitted to another field of view.

    """
    reference = float(Calibration.load(path).origin.config['reference_focal'])
    calibration = estimator.prepare(estimator.config.replace(
        calibration=str(path), reference_focal=reference)).calibration  # of its focal length
    assert calibration is not None  # noqa: S101 - a path was given
    origin = calibration.origin
    x = calibration.arrays['rays'][..., 0]
    fitted = float((x.shape[1] - 1) / x.shape[1] / np.median(x[:, -1] - x[:, 0]))
    for focal in focals if origin.camera_known else ():
        if abs(fitted / focal - 1) > _FOCAL_TOLERANCE:
            raise EvaluationError(
                f'--calibration {path}: it was fitted to a view with a focal length of '
                f'{fitted:.3f} widths, and the network sees one of {focal:.3f} here. Calibrate '
                'with the --protocol that is evaluated.')
    images = 'training images' if origin.split else f'images of {origin.source}'
    disjoint = 'none of them is evaluated, compared bit by bit' if origin.images else (
        'which ones the file does not say, so that evaluated images MAY BE AMONG THEM')
    correction = 'no' if origin.variant == 'none' else origin.variant
    return CalibratedDepth(
        f'calibrated on {origin.frames} {images}', 'calibrated',
        f'no longer zero-shot: {path.name} ({correction} correction), '
        f'fitted to {origin.split or origin.source}; {disjoint}', digest=calibration.digest,
        file=path, calibration=calibration, reference=reference)


# Baselines ---------------------------------------------------------------------------------------


def baselines(
    config: DepthConfig, mean_map: NDArray[np.float32] | None, mean: float, max_depth: float,
    images: int,
) -> list[Predictor]:
    """Make all baselines of a run except the best constant, which needs the scores of all images.

    Args:
        config: of the method.
        mean_map: (H, W) metres, see `training_mean`; None without a training split.
        mean: metres, see `training_mean`.
        max_depth: of the protocol, metres.
        images: size of the data set.

    """
    def constant(name: str, metres: float, note: str) -> Predictor:
        return Constant(name, 'baseline', note, metres=metres)
    bins_mean = float(np.mean(config.bins))
    predictors = [constant('mean of the bins', bins_mean,
                           f'{bins_mean:.3f} m everywhere: all words equally likely')]
    if max_depth <= 10:
        predictors.append(constant(f'constant {NYU_CONSTANT:g} m', NYU_CONSTANT,
                                   'the constant that explains the numbers of the paper best'))
    if mean_map is not None:
        predictors += [
            constant('mean of the training split', mean, f'{mean:.3f} m everywhere'),
            MeanMap('mean map', 'baseline',
                    "mean depth of every pixel's place in the training split",
                    mean=mean, map=mean_map)]
    predictors += [
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
    predictors += [WordDepth(
        'shuffled words', 'baseline',
        f'the same words given to other bins; mean of {SHUFFLES} orders',
        tuple(config.tokens[i] for i in order), config.bins) for order in orders]
    if count <= len(NEUTRAL_WORDS):
        predictors += [WordDepth(
            RANDOM_WORDS, 'baseline', 'words that have nothing to do with distance; mean of '
                                      f'{RANDOM_WORD_SETS} sets',
            tuple(rng.choice(NEUTRAL_WORDS, count, replace=False).tolist()), config.bins)
            for _ in range(RANDOM_WORD_SETS)]
    partner_count = min(PARTNERS, images - 1)  # a single image has no partner
    return [*predictors, *(OtherImage('shuffled images', 'baseline', (
        "the method's depth of one image scored on another: does the image matter at all? Mean of "
        f'{partner_count} ways'), shift=shift) for shift in range(1, partner_count + 1))]


def training_mean(
    training: Dataset | None, protocol: Protocol,
) -> tuple[NDArray[np.float32] | None, float]:
    """Average the valid depth of a training split: (H, W) metres per pixel, and the mean of all.

    Pixels that are valid in no image get the mean of all. The map is None without a training
    split, or without any valid depth in it.
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


def encode(predictors: Sequence[Predictor], estimator: DepthEstimator) -> TextFeatures:
    """Encode the words of all predictors: (K, C) text features, on the estimator's device."""
    config = estimator.config
    configured = estimator.prepare(config).text
    features = {config.tokens: configured}
    with single_thread():  # several threads may round sums differently
        for tokens in dict.fromkeys(p.tokens for p in predictors if isinstance(p, WordDepth)):
            if sorted(tokens) == sorted(config.tokens):  # the same words in another order
                features[tokens] = configured[[config.tokens.index(t) for t in tokens]]
            else:
                features[tokens] = estimator.prepare(config.replace(
                    tokens=tokens, bins=[float(i + 1) for i in range(len(tokens))],
                    calibration='', max_stddev=0.0)).text
    return features


def mark_failed_controls(
    predictors: Sequence[Predictor], text: TextFeatures,
) -> list[Predictor]:
    """Exclude random words from the verdict if the model cannot distinguish them.

    One such set of words spoils the whole row, which is the mean of all sets.
    """
    sets = [p.tokens for p in predictors
            if isinstance(p, WordDepth) and p.name == RANDOM_WORDS]
    failures = sum(all_alike(text[tokens].cpu().numpy()) for tokens in sets)
    if not failures:
        return list(predictors)
    note = (f'no test: this model takes all the words for the same in {failures} of {len(sets)} '
            'sets, and so gives the mean of the bins there')
    return [replace(p, is_test=False, note=note) if p.name == RANDOM_WORDS else p
            for p in predictors]
