# SPDX-License-Identifier: Apache-2.0
"""Scenes: zero-shot classification of an image, and bins by scene (paper section 5, Table 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from .config import DepthConfig
from .readout import LOGIT_SCALE


@dataclass(frozen=True)
class Scene:
    """Classification of an image into kinds of scene.

    Attributes:
        names: the S kinds of scene.
        probabilities: (S,) float32, an exponential moving average over the camera's images.
        bins_weight: weight of `bins` in the image's bins, 0 to 1: large if the scene is uncertain.
        name: the most probable scene; '' while `bins_weight` is more than a half.

    """

    names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    bins_weight: float
    name: str


def scene_probabilities(image: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Classify images zero-shot, as CLIP does, and average over the passes.

    (passes, B, C) image embeddings, not normalised, and (S, C) unit vectors -> (B, S), sums to 1
    over S; uniform if an embedding is not finite.
    """
    cosine = normalize(image, dim=2) @ text.T
    probabilities = (LOGIT_SCALE / temperature * cosine).softmax(dim=2).mean(dim=0)
    finite = probabilities.isfinite().all(dim=1, keepdim=True)
    return probabilities.where(finite, 1 / len(text))


def mixed_bins(
    probabilities: Tensor, bins_weight: Tensor, scene_bins: Tensor, bins: Tensor,
) -> Tensor:
    """Average the scenes' bins (S, K) under (B, S) probabilities, then with `bins` (K,): (B, K).

    `bins_weight` (B,) is the weight of `bins`.
    """
    mixture = probabilities @ scene_bins
    return mixture + bins_weight[:, None] * (bins - mixture)


def classify_scenes(
    config: DepthConfig, probabilities: Tensor, previous_scenes: Sequence[Scene | None],
) -> tuple[list[Scene], Tensor, Tensor]:
    """Average the probabilities over each camera's images, and weigh `bins` by their entropy.

    The average is an exponential moving one.

    Args:
        config: gives scenes, `scene_memory` and `scene_entropy`.
        probabilities: (B, S), of each image alone; updated in place.
        previous_scenes: scene of the same camera's previous image, or None.

    Returns:
        The scenes, their probabilities (B, S), and the weight (B,) of `bins`: 0 up to an entropy
        of `scene_entropy`, 1 for a uniform distribution, linear in between.

    """
    names, limit = config.scenes, config.scene_entropy
    for i, scene in enumerate(previous_scenes):
        if scene is not None and scene.names == names:
            previous = torch.from_numpy(scene.probabilities).to(probabilities.device)
            probabilities[i] += config.scene_memory * (previous - probabilities[i])
    bins_weight = torch.zeros_like(probabilities[:, 0])
    if len(names) > 1 and limit < 1:
        entropy = torch.special.entr(probabilities).sum(dim=1) / math.log(len(names))
        bins_weight = ((entropy - limit) / (1 - limit)).clamp(0, 1)
    scenes = [Scene(names, p, weight, names[int(p.argmax())] if weight <= 0.5 else '') for
              p, weight in zip(probabilities.cpu().numpy(), bins_weight.tolist(), strict=True)]
    return scenes, probabilities, bins_weight
