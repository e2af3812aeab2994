# SPDX-License-Identifier: Apache-2.0
"""From features to depth in four steps, with N images and B = N or, with `flip_average`, 2 N.

| step | in | out | defined in |
|---|---|---|---|
| `language_depth` | features (B, C, h, w) | weights (B, K, h, w), d (B, h, w) m | `readout` |
| `correct_depth` | d, focal ratio r, trunk | r d exp(correction), its stddev | `calibration` |
| `anchor_depth` | that depth and stddev (N, h, w) m | both times the scale | `anchor` |
| `make_predictions` | (N, h, w) m | (H, W) m, limited and upsampled | `readout` |

The first computes the logits on the network's device; all after them is float32 on the CPU, so
that it does not depend on the device. State from image to image (the previous scene, the anchor's
filter) comes with each `CameraImage`; these functions keep none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .anchor import Adjustment
from .backbone import AttentionPool, EncoderOutput
from .calibration import Calibration
from .camera import focal_ratio
from .camera_image import CameraImage, Metres
from .config import DepthConfig, Size
from .engine import to_host
from .prediction import NOT_ADJUSTED, DepthPrediction
from .readout import float32, limit_range, mean_of_passes, read_out, similarity_logits, upsample
from .scenes import Scene, classify_scenes, mixed_bins, scene_probabilities


class LoadedSettings(NamedTuple):
    """The settings of a loaded model with their tensors; replaced as a whole, so they agree."""

    config: DepthConfig
    text: Tensor  # (K, C) unit vectors, on the network's device; all else is on the CPU
    bins: Tensor  # (K,) metres
    calibration: Calibration | None
    pool: AttentionPool | None  # None without `scenes`; the following mean nothing then
    scene_text: Tensor  # (S, C) unit vectors
    scene_bins: Tensor  # (S, K) metres


class LanguageDepth(NamedTuple):
    """Depth by words of N images, followed by the mirrored ones with `flip_average` (B = 2 N)."""

    logits: Tensor  # (B, K, h, w), eq. 3
    weights: Tensor  # (B, K, h, w), eq. 4
    depth: Tensor  # (B, h, w) metres, eq. 5
    spread: Tensor  # (B, h, w) metres, standard deviation of the bins under the weights
    scenes: Sequence[Scene | None]  # N
    components: Tensor | None  # (B, h, w, D), principal components; None without a calibration


class Depth(NamedTuple):
    """Depth of the patches of N images: (N, h, w) metres each."""

    metres: Tensor
    spread: Tensor
    stddev: Tensor | None  # None without a calibration


def focal_ratios(
    config: DepthConfig, calibration: Calibration | None, images: Sequence[CameraImage],
) -> list[float]:
    """Compute the focal ratio of each image, by which its depth is multiplied.

    CameraInfoError: a camera is for another image size, or its image has no rays.
    """
    return [calibration.origin.focal_ratio if calibration is not None and image.camera is None else
            focal_ratio(config.reference_focal, image.camera, image.size, config.input_size)
            for image in images]


def language_depth(
    settings: LoadedSettings, maps: EncoderOutput, previous_scenes: Sequence[Scene | None],
) -> LanguageDepth:
    """Compute depth by words (section 3 of the paper), given the cameras' previous scenes.

    Maps of the trunk's size stay on the network's device; a few numbers per patch leave it.
    """
    config, calibration, pool = settings.config, settings.calibration, settings.pool
    logits, pooled, components = to_host(
        similarity_logits(maps.features, settings.text, config.temperature),  # eq. 3
        None if pool is None else pool.image_embedding(maps.trunk),
        None if calibration is None else calibration.principal_components(maps.trunk))
    scenes: Sequence[Scene | None] = [None] * len(previous_scenes)
    bins = settings.bins
    if pooled is not None:  # section 5
        embeddings = pooled.view(-1, len(previous_scenes), pooled.shape[1])
        scenes, probabilities, bins_weight = classify_scenes(config, scene_probabilities(
            embeddings, settings.scene_text, config.scene_temperature), previous_scenes)
        bins = mixed_bins(probabilities, bins_weight, settings.scene_bins, bins).repeat(
            len(embeddings), 1)
    weights, depth, spread = read_out(logits, bins)  # eqs. 4 and 5
    return LanguageDepth(logits, weights, depth, spread, scenes, components)


def correct_depth(
    language: LanguageDepth, calibration: Calibration | None, images: Sequence[CameraImage],
    ratios: Sequence[float],
) -> Depth:
    """Multiply by the focal ratios, apply the calibration, and average both passes.

    The calibration gives the standard deviation of the plain pass, relative to its depth; it is
    multiplied by the average depth.
    """
    count = len(images)
    if calibration is None:
        ratio = _per_image(ratios)
        return Depth(
            mean_of_passes(language.depth, count) * ratio, language.spread[:count] * ratio, None)
    passes = len(language.depth) // count
    depth, spread, stddev_ratio = calibration.correct(
        language.weights, language.depth, language.spread, language.components,
        calibration.rays([image.camera for image in images], flip=passes == 2),
        [*ratios] * passes)
    metres = mean_of_passes(depth, count)
    return Depth(metres, spread[:count], stddev_ratio[:count] * metres)


def anchor_depth(
    depth: Depth, images: Sequence[CameraImage], upsampling: str,
) -> tuple[Depth, list[Adjustment]]:
    """Multiply depth, spread and standard deviation by the adjustments of the images' anchors."""
    adjustments = [
        NOT_ADJUSTED if image.anchor is None else image.anchor(
            depth.metres[i].numpy(), None if depth.stddev is None else depth.stddev[i].numpy(),
            image.size, upsampling) for i, image in enumerate(images)]
    if all(adjustment is NOT_ADJUSTED for adjustment in adjustments):
        return depth, adjustments
    shape = depth.metres.shape[1], depth.metres.shape[2]
    scale = _per_image([adjustment.scale for adjustment in adjustments]) * _per_patch(
        [adjustment.patch_scale for adjustment in adjustments], shape)
    inflation = _per_image([adjustment.inflation for adjustment in adjustments]) * _per_patch(
        [adjustment.patch_inflation for adjustment in adjustments], shape)
    stddev = None if depth.stddev is None else depth.stddev * scale * inflation
    return Depth(depth.metres * scale, depth.spread * scale, stddev), adjustments


def make_predictions(
    config: DepthConfig, language: LanguageDepth, depth: Depth, adjustments: Sequence[Adjustment],
    ratios: Sequence[float], images: Sequence[CameraImage], size: Size | None,
) -> list[DepthPrediction]:
    """Apply the limits of range and stddev, and upsample the patches to pixels.

    `size` is (height, width) of `depth`; None for each image's own.
    """
    metres = limit_range(depth.metres, config.range_min, config.range_max, config.out_of_range)
    if depth.stddev is not None and config.max_stddev:
        metres = metres.masked_fill(depth.stddev > config.max_stddev, math.nan)
    pixels = [upsample(metres[i, None], size or image.size, config.upsampling)[0].numpy()
              for i, image in enumerate(images)]
    # Copies, so that a prediction which is kept does not hold the memory of the batch.
    depths, weights, logits, spreads = (
        [values[i].numpy().copy() for i in range(len(images))]
        for values in (metres, language.weights, language.logits, depth.spread))
    stddevs = [None if depth.stddev is None else depth.stddev[i].numpy().copy()
               for i in range(len(images))]
    return [DepthPrediction(
        pixels[i], depths[i], weights[i], logits[i], spreads[i], image.size, config.upsampling,
        ratios[i], adjustments[i], stddevs[i], language.scenes[i])
        for i, image in enumerate(images)]


def _per_image(numbers: Sequence[float]) -> Tensor:
    """Make (N, 1, 1) of a number for each image."""
    return float32(numbers)[:, None, None]


def _per_patch(factors: Sequence[Metres | None], shape: Size) -> Tensor:
    """Stack (h, w) factors of each image to (N, h, w); None stands for 1."""
    return torch.from_numpy(np.stack([
        np.ones(shape, np.float32) if factor is None else factor for factor in factors]))
