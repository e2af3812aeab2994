# SPDX-License-Identifier: Apache-2.0
"""How far depth in 8 bits, and in bfloat16, is from float32's.

RN50 with fixed random weights on synthetic images, where every patch says something else; the
demo model on rendered rooms that it never saw, beside the truth, too. The 8 bits are made of
rendered rooms, as `depthclip quantize` does it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from clip_standin import state_dict, synthetic_rgb
from numpy.typing import NDArray

from benchmarks import rooms
from benchmarks.estimator import precisions
from benchmarks.machine import ROOT
from depthclip_ros.cli import quantize
from depthclip_ros.core import DepthConfig, DepthEstimator

CROP = np.s_[56:472, 60:604]  # the official code's, of 480 x 640


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Both models on their images; the quick form has the small one alone."""
    with tempfile.TemporaryDirectory() as folder:
        views = list(rooms.one_each(rooms.TEST, 3 if quick else 150))
        demo = estimators(DepthConfig.from_yaml(ROOT / 'config/demo.yaml'), 'demo', folder)
        found = compare('rendered rooms, demo model', demo, [view.rgb for view in views],
                        [view.depth for view in views])
        if not quick:
            config = DepthConfig.from_yaml(ROOT / 'config/nyu_paper.yaml')
            large = estimators(config.replace(flip_average=False), state_dict(0), folder)
            found += compare('synthetic images, RN50 with fixed weights', large,
                             [synthetic_rgb(seed)[CROP] for seed in range(3)])
    return found


def estimators(config: DepthConfig, weights: Any, folder: str) -> dict[str, DepthEstimator]:
    """Each precision that this processor has, the exact one first."""
    def build(precision: str) -> DepthEstimator:
        return DepthEstimator(config.replace(precision=precision), weights, 'cpu',
                              cache_dir=folder, log=lambda _: None)

    found = {precision: build(precision) for precision in precisions(torch.device('cpu'))}
    found['float32'].quantize(quantize.rooms(), 'rendered rooms')
    return {**found, 'int8': build('int8')}


def compare(
    what: str, models: dict[str, DepthEstimator], images: Sequence[NDArray[np.uint8]],
    truth: Sequence[torch.Tensor] = (),
) -> list[dict[str, Any]]:
    """Differences from the first model.

    Args:
        what: the images and the weights, in words.
        models: by precision.
        images: (H, W, 3) each.
        truth: (H, W) metres each, or nothing.

    Returns:
        A row for each other model, over all pixels of all images.

    """
    depths = {name: [model.predict(image).depth for image in images]
              for name, model in models.items()}
    exact = depths.pop('float32')
    rows = []
    for name, rounded in depths.items():
        difference = 1e3 * np.concatenate([
            abs(a - b).ravel() for a, b in zip(rounded, exact, strict=True)])
        median, p90 = np.percentile(difference, (50, 90))
        row = {'images': f'{len(images)} {what}', 'precision': name, 'median [mm]': median,
               'p90 [mm]': p90, 'max [mm]': difference.max()}
        if truth:
            (rmse, delta1), (of_exact, delta1_of_exact) = (
                rooms.mean_scores(of_one, truth)[:2] for of_one in (rounded, exact))
            row |= {'rmse more [%]': 100 * (rmse / of_exact - 1),
                    'delta1 more': delta1 - delta1_of_exact}
        rows.append(row)
    return rows
