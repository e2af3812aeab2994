# SPDX-License-Identifier: Apache-2.0
"""Rendered rooms as the demo model never saw them, and how well a depth image fits them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthclip_ros.sim import KINDS, RenderOptions, Scene, SimCamera, render, trajectory

# First seeds; training has those from 1,000,000 on.
TEST, CHOICE = 30000, 20000
METRICS = ('rmse [m]', 'delta1', 'rel', 'correlation')


class View(NamedTuple):
    """One picture of the simulator's camera, 640 x 480."""

    rgb: NDArray[np.uint8]  # (H, W, 3)
    depth: Tensor  # (H, W) metres


def view(seed: int, moment: float) -> View:
    """Room of a number, its kind in turn, seen at a moment of its path, with mild noise."""
    scene = Scene.generate(KINDS[seed % len(KINDS)], seed)
    frame = render(scene, SimCamera(), trajectory(scene, seed).pose(moment),
                   RenderOptions(noise=0.01, seed=seed))
    return View(frame.rgb, torch.from_numpy(frame.depth))


def one_each(first: int, count: int) -> Iterator[View]:
    """So many rooms, a picture of each."""
    return (view(first + i, float(i % 23)) for i in range(count))


def scores(depth: Tensor, truth: Tensor) -> list[float]:
    """METRICS of one image; every pixel of a rendered image counts.

    The correlation is that of the logarithms of depth: 0 for a flat wall, whatever its distance.

    Args:
        depth: (H, W) metres.
        truth: likewise.

    """
    logs = torch.stack([depth, truth]).flatten(1).log().double()
    logs = logs - logs.mean(dim=1, keepdim=True)
    lengths = logs.norm(dim=1)
    flat = bool(lengths[0] < 1e-6 * lengths[1])
    correlation = 0.0 if flat else logs[0] @ logs[1] / lengths.prod()
    error = (depth - truth).abs()
    near = torch.maximum(depth / truth, truth / depth) < 1.25
    return [float(value) for value in (
        error.square().mean().sqrt(), near.float().mean(), (error / truth).mean(), correlation)]


def row(values: Sequence[Sequence[float]], beside: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Means over images, and the rmse beside another row's on the same images.

    Args:
        values: METRICS of every image.
        beside: those of the row that the others are compared with.

    """
    of_images = np.array(values)
    difference = of_images[:, 0] - np.array(beside)[:, 0]
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.nan
    return {**dict(zip(METRICS, of_images.mean(axis=0), strict=True)),
            'rmse more than the first [m]': difference.mean(), '± [m]': 1.96 * error}


def mean_map(views: Iterable[View]) -> Tensor:
    """(H, W) mean depth of every pixel: what is known without looking at the image."""
    return torch.stack([seen.depth for seen in views]).mean(dim=0)
