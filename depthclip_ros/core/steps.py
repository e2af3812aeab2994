# SPDX-License-Identifier: Apache-2.0
"""From features of images to their depth: answer, correct, anchor, finish.

After the answer all is on a grid of patches, in float32 on the CPU: so it is the same whatever the
network runs on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .anchor import Adjustment
from .backbone import AttentionPool, Maps
from .calibration import Calibration
from .camera import focal_ratio
from .config import DepthConfig, Size
from .engine import download
from .image import CameraImage, Metres
from .prediction import NOT_ADJUSTED, DepthPrediction
from .projection import (
    float32,
    limit_range,
    mean_of_passes,
    read_out,
    similarity_logits,
    upsample,
)
from .words import Scene, mixed_bins, scene_probabilities, sort_into_scenes


class LoadedSettings(NamedTuple):
    """What can be exchanged on a loaded model: always as a whole, so that it fits together."""

    config: DepthConfig
    text: Tensor  # (K, C) unit vectors, where the network runs; all else is on the CPU
    bins: Tensor  # (K,) metres
    calibration: Calibration | None
    pool: AttentionPool | None  # this and the following only with `scenes`
    scene_text: Tensor  # (S, C) unit vectors
    scene_bins: Tensor  # (S, K) metres


class Answer(NamedTuple):
    """What the words say of N images; of mirrored ones, too, with `flip_average` (B = 2 N)."""

    logits: Tensor  # (B, K, h, w), eq. 3
    weights: Tensor  # (B, K, h, w), eq. 4
    depth: Tensor  # (B, h, w) metres, eq. 5
    spread: Tensor  # (B, h, w) metres, standard deviation of the bins under the weights
    scenes: Sequence[Scene | None]  # N
    view: Tensor | None  # (B, h, w, D), as `Calibration.view` gives it; None without one


class Depth(NamedTuple):
    """Depth of the patches of N images: (N, h, w) metres each."""

    metres: Tensor
    spread: Tensor
    stddev: Tensor | None  # of a calibration


def focal_ratios(
    config: DepthConfig, calibration: Calibration | None, images: Sequence[CameraImage],
) -> list[float]:
    """By what depth of each image is multiplied for its focal length.

    Raises:
        CameraInfoError: a camera is not for images of that size, or shows nothing.

    """
    return [calibration.about.focal_ratio if calibration is not None and image.camera is None else
            focal_ratio(config.reference_focal, image.camera, image.size, config.input_size)
            for image in images]


def answer(
    settings: LoadedSettings, maps: Maps, before: Sequence[Scene | None],
) -> Answer:
    """What the words say (section 3 of the paper) of images, given the scenes before.

    What is as large as the trunk's map stays where the network runs; a few numbers of each patch
    leave it.
    """
    config, calibration, pool = settings.config, settings.calibration, settings.pool
    logits, whole, view = download(
        similarity_logits(maps.features, settings.text, config.temperature),  # eq. 3
        None if pool is None else pool.whole(maps.trunk),
        None if calibration is None else calibration.view(maps.trunk))
    scenes: Sequence[Scene | None] = [None] * len(before)
    bins = settings.bins
    if whole is not None:  # section 5
        of_passes = whole.view(-1, len(before), whole.shape[1])
        scenes, probabilities, plain = sort_into_scenes(config, scene_probabilities(
            of_passes, settings.scene_text, config.scene_temperature), before)
        bins = mixed_bins(probabilities, plain, settings.scene_bins, bins).repeat(
            len(of_passes), 1)
    weights, depth, spread = read_out(logits, bins)  # eqs. 4 and 5
    return Answer(logits, weights, depth, spread, scenes, view)


def correct(
    answer: Answer, calibration: Calibration | None, images: Sequence[CameraImage],
    ratios: Sequence[float],
) -> Depth:
    """Multiply by the focal ratios, or let a calibration correct; the mean of both passes."""
    count = len(images)
    if calibration is None:
        ratio = _of_images(ratios)
        return Depth(mean_of_passes(answer.depth, count) * ratio, answer.spread[:count] * ratio,
                     None)
    passes = len(answer.depth) // count
    depth, spread, relative = calibration.correct(
        answer.weights, answer.depth, answer.spread, answer.view,
        calibration.rays([image.camera for image in images], flip=passes == 2),
        [*ratios] * passes)
    metres = mean_of_passes(depth, count)
    return Depth(metres, spread[:count], relative[:count] * metres)


def anchor(
    depth: Depth, images: Sequence[CameraImage], upsampling: str,
) -> tuple[Depth, list[Adjustment]]:
    """Let those who know the scale of an image adjust its depth."""
    adjustments = [
        NOT_ADJUSTED if image.anchor is None else image.anchor(
            depth.metres[i].numpy(), None if depth.stddev is None else depth.stddev[i].numpy(),
            image.size, upsampling) for i, image in enumerate(images)]
    if all(adjustment is NOT_ADJUSTED for adjustment in adjustments):
        return depth, adjustments
    shape = depth.metres.shape[1], depth.metres.shape[2]
    scale = _of_images([a.scale for a in adjustments]) * _of_patches(
        [a.around for a in adjustments], shape)
    inflation = _of_images([a.inflation for a in adjustments]) * _of_patches(
        [a.unsure for a in adjustments], shape)
    stddev = None if depth.stddev is None else depth.stddev * scale * inflation
    return Depth(depth.metres * scale, depth.spread * scale, stddev), adjustments


def finish(
    config: DepthConfig, answer: Answer, depth: Depth, adjustments: Sequence[Adjustment],
    ratios: Sequence[float], images: Sequence[CameraImage], size: Size | None,
) -> list[DepthPrediction]:
    """Leave out what is beyond the limits, and bring the patches' depth onto the pixels.

    `size` is that of the pixels; None for each image's own.
    """
    metres = limit_range(depth.metres, config.range_min, config.range_max, config.out_of_range)
    if depth.stddev is not None and config.max_stddev:
        metres = metres.masked_fill(depth.stddev > config.max_stddev, math.nan)
    pixels = [upsample(metres[i, None], size or image.size, config.upsampling)[0].numpy()
              for i, image in enumerate(images)]
    # Of each image its own: one that is kept keeps no other.
    depths, weights, logits, spreads = (
        [values[i].numpy().copy() for i in range(len(images))]
        for values in (metres, answer.weights, answer.logits, depth.spread))
    stddevs = [None if depth.stddev is None else depth.stddev[i].numpy().copy()
               for i in range(len(images))]
    return [DepthPrediction(
        pixels[i], depths[i], weights[i], logits[i], spreads[i], image.size, config.upsampling,
        ratios[i], adjustments[i], stddevs[i], answer.scenes[i])
        for i, image in enumerate(images)]


def _of_images(numbers: Sequence[float]) -> Tensor:
    """(N, 1, 1) of a number for each image."""
    return float32(numbers)[:, None, None]


def _of_patches(factors: Sequence[Metres | None], shape: Size) -> Tensor:
    """(N, h, w) of factors, 1 where there are none."""
    return torch.from_numpy(np.stack([
        np.ones(shape, np.float32) if factor is None else factor for factor in factors]))
