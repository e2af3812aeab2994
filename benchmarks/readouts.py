# SPDX-License-Identifier: Apache-2.0
"""What other features and read-outs make of the depth of rendered rooms, and what they cost.

The demo model on rooms that it never saw. It was trained so that its `maskclip` features mean
distances: the others stand beside it here for what they are, not for what OpenAI's CLIP makes of
them. Each features' temperature is the best one on other rooms. Times are by the processor's
clock, on one thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks import rooms
from benchmarks.machine import ROOT
from benchmarks.timing import Contender, processor, race, ratio
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.backbone import ImageEncoder, build_attention_pool, build_image_encoder
from depthclip_ros.core.readout import read_out, similarity_logits, upsample
from depthclip_ros.core.state_dict import architecture
from depthclip_ros.core.weights import cache_folder, load_weights
from depthclip_ros.evaluation.metrics import METRICS, Float32, ScaledScores, by_name, metrics_of
from depthclip_ros.sim import Frame

FEATURES = ('maskclip', 'reference', 'attnpool', 'crops')
READ_OUTS = ('mean', 'argmax')
SMOOTHING = (0.0, 0.5, 1.0, 2.0)
UPSAMPLING = ('bilinear', 'centered', 'patch')
TEMPERATURES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0,
                128.0, 1000.0)
CONSTANTS = np.arange(0.5, 6.01, 0.1)  # metres
COLUMNS = ('features', 'read_out', 'smoothing', 'upsampling')
SCORES = ('rmse [m]', 'delta1', 'rel', 'correlation')
Errors = dict[tuple[Any, ...], list[list[float]]]  # SCORES of every image, by COLUMNS


@torch.inference_mode()
def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Every combination on every room, controls that see no image, and times."""
    torch.set_num_threads(1)
    config = DepthConfig.from_yaml(ROOT / 'config/demo.yaml')
    models = [Model(config, features) for features in FEATURES]
    chosen_on = list(rooms.one_each(rooms.CHOICE, 3 if quick else 40))
    for model in models:
        model.choose_temperature(chosen_on)
    views = list(rooms.one_each(rooms.TEST, 3 if quick else 300))
    errors = {**_errors(models, views), **_controls(chosen_on, views)}
    first = next(iter(errors.values()))
    rows = [{**dict(zip(COLUMNS, way, strict=True)), **_row(values, first)}
            for way, values in errors.items()]
    return [*rows, *_times(models, chosen_on[0], 3 if quick else 20)]


class Model:
    """One estimator, whose similarities are read out in all ways."""

    def __init__(self, config: DepthConfig, features: str) -> None:
        """Load the demo model."""
        self.features = features
        weights = load_weights('demo', config.backbone, cache_folder(), print)
        loadable = config.features if features == 'crops' else features
        self.estimator = DepthEstimator(
            config.replace(features=loadable, temperature=1.0), weights, 'cpu')
        if features == 'crops':
            self.estimator.model.encoder = CropFeatures(weights[1])
        self._bins = torch.tensor(config.bins)
        self._text = torch.from_numpy(self.estimator.text_features)
        self.temperature = 1.0

    def see(self, view: Frame) -> Tensor:
        """(1, K, h, w) logits at temperature 1."""
        return similarity_logits(
            self.estimator.encode([view.rgb]).features, self._text, temperature=1.0)

    def choose_temperature(self, views: Sequence[Frame]) -> None:
        """Take the temperature of the least rmse."""
        errors = np.zeros(len(TEMPERATURES))
        for view in views:
            logits = self.see(view)
            for i, self.temperature in enumerate(TEMPERATURES):
                depth = self.depth(logits, 'mean', 0.0, UPSAMPLING[0], view)
                errors[i] += _scores(depth, view)[0]
        self.temperature = TEMPERATURES[int(errors.argmin())]

    def depth(
        self, logits: Tensor, mode: str, sigma: float, upsampling: str, view: Frame,
    ) -> Float32:
        """(H, W) metres: the estimator's last steps, and what they might be."""
        patches = read_out(logits / self.temperature, self._bins)[1] if mode == 'mean' else \
            self._bins[logits.argmax(dim=1)]
        height, width = view.depth.shape
        return upsample(smooth(patches, sigma), (height, width), upsampling)[0].numpy()


def smooth(patch_depth: Tensor, sigma: float) -> Tensor:
    """Gaussian mean of (B, h, w) patches, a sigma of patches wide; 0: nothing changes."""
    for _ in range(2 * bool(sigma)):  # along one axis, then along the other
        places = torch.arange(patch_depth.shape[-1], dtype=torch.float64)
        gaussian = (-0.5 * ((places[:, None] - places) / sigma).square()).softmax(dim=0).float()
        patch_depth = (patch_depth @ gaussian).mT
    return patch_depth


def _errors(models: Sequence[Model], views: Sequence[Frame]) -> Errors:
    """Of every combination."""
    ways = list(itertools.product(READ_OUTS, SMOOTHING, UPSAMPLING))
    errors: Errors = {(model.features, *way): [] for model in models for way in ways}
    for view in views:
        for model in models:
            logits = model.see(view)
            for way in ways:
                depth = model.depth(logits, *way, view)
                errors[(model.features, *way)].append(_scores(depth, view))
    return errors


def _controls(other_rooms: Sequence[Frame], views: Sequence[Frame]) -> Errors:
    """Of depth that is made without looking at the image."""
    mean = np.mean([view.depth for view in other_rooms], axis=0)
    curve = np.mean([metrics_of(ScaledScores(1.0, view.depth.ravel()).score(CONSTANTS))
                     for view in views], axis=0)
    best = np.full_like(mean, CONSTANTS[curve[:, METRICS.index('rmse')].argmin()])
    return {(f'none: {name}', None, None, None): [_scores(depth, view) for view in views]
            for name, depth in (('mean map of other rooms', mean), ('best constant', best))}


def _scores(depth: Float32, view: Frame) -> list[float]:
    """SCORES of one image."""
    metrics = by_name(rooms.scores(depth, view.depth))
    return [metrics['rmse'], metrics['d1'], metrics['rel'], rooms.correlation(depth, view.depth)]


def _row(values: Sequence[Sequence[float]], beside: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Means over images, and the rmse beside another row's on the same images."""
    difference = np.array(values)[:, 0] - np.array(beside)[:, 0]
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.nan
    return {**dict(zip(SCORES, np.mean(values, axis=0), strict=True)),
            'rmse more than the first [m]': difference.mean(), '± [m]': 1.96 * error}


def _times(
    models: Sequence[Model], view: Frame, rounds: int,
) -> list[dict[str, Any]]:
    contenders = [Contender(model.features, processor(partial(
        model.estimator.predict, view.rgb))) for model in models]
    return [{**row, 'times the first': ratio(contender, contenders[0]),
             'temperature': model.temperature}
            for row, contender, model in zip(
                race(contenders, rounds), contenders, models, strict=True)]


class CropFeatures(ImageEncoder):
    """Every cell of the image cut out, resized and encoded alone by CLIP: a yardstick.

    As the usual pseudo-code of the paper has it; there are as many passes as cells.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Build it from CLIP weights in OpenAI's layout."""
        resnet = build_image_encoder(weights, 'maskclip')
        super().__init__(_Cells(
            resnet.trunk, build_attention_pool(weights), resnet.stride,
            architecture(weights).resolution), resnet.stride)


class _Cells(nn.Module):
    def __init__(self, trunk: nn.Module, pool: nn.Module, cell: int, resolution: int) -> None:
        super().__init__()
        self._trunk, self._pool, self._cell = trunk, pool, cell
        self._resolution = resolution, resolution

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / cell, W / cell): CLIP's own answers, of any length."""
        cell, (count, channels, height, width) = self._cell, images.shape
        h, w = height // cell, width // cell
        cells = images.reshape(count, channels, h, cell, w, cell).permute(0, 2, 4, 1, 3, 5)
        answers = torch.cat([
            self._pool.image_embedding(self._trunk(interpolate(  # type: ignore[operator]
                of_row, self._resolution, mode='bilinear')))
            for of_row in torch.split(cells.flatten(0, 2), w)])
        return answers.view(count, h, w, -1).permute(0, 3, 1, 2)
