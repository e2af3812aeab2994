# SPDX-License-Identifier: Apache-2.0
"""Bins that depend on the scene: what the paper's section 5 leaves to the future.

The same forward pass that gives depth says by words what kind of scene the image shows; each
kind has bins of its own, and the bins of an image are their mean under the probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from .projection import LOGIT_SCALE

# By how much another scene must be more probable than the one that was named last.
LEAD = 0.1


@dataclass(frozen=True)
class Scene:
    """What kind of scene an image shows.

    Attributes:
        names: the S kinds that there are.
        probabilities: (S,) float32, with what the camera's images before have left in them.
        plain: part that `bins` have in the image's bins, since the scene is uncertain: 0 to 1.
        name: the most probable scene; of two of nearly equal probability the one that the image
            before had. '' while `plain` is more than a half.

    """

    names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    plain: float
    name: str

    @classmethod
    def of(
        cls, names: tuple[str, ...], probabilities: NDArray[np.float32], plain: float,
        before: Scene | None,
    ) -> Scene:
        """Name the scene, given that of the camera's image before."""
        best = int(probabilities.argmax())
        if before is not None and before.name in names:
            last = names.index(before.name)
            if probabilities[best] < probabilities[last] + LEAD:
                best = last
        return cls(names, probabilities, plain, names[best] if plain <= 0.5 else '')


def scene_probabilities(image: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Zero-shot classification as CLIP's own.

    Args:
        image: (passes, B, C) of the attention pool, of any length.
        text: (S, C) unit vectors.
        temperature: 1 is CLIP's own.

    Returns:
        (B, S), sums to 1 over S; the mean over the passes. All the same where an image has no
        finite features.

    """
    cosine = normalize(image, dim=2) @ text.T
    probabilities = (LOGIT_SCALE / temperature * cosine).softmax(dim=2).mean(dim=0)
    usable = probabilities.isfinite().all(dim=1, keepdim=True)
    return probabilities.where(usable, 1 / len(text))


def remember(probabilities: Tensor, before: Tensor, memory: Tensor) -> Tensor:
    """Probabilities with a part (B,) of those before, both (B, S)."""
    return probabilities + memory[:, None] * (before - probabilities)


def plain_share(probabilities: Tensor, limit: float) -> Tensor:
    """Part that the plain bins have, by how undecided the probabilities are.

    Args:
        probabilities: (B, S).
        limit: entropy, as a part of the largest possible, up to which they have none; 1: never.

    Returns:
        (B,): 0 up to the limit, 1 where all are the same, linear in between; 0 for one scene.

    """
    count = probabilities.shape[1]
    if count == 1 or limit == 1:
        return torch.zeros_like(probabilities[:, 0])
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=1) / math.log(count)
    return ((entropy - limit) / (1 - limit)).clamp(0, 1)


def mixed_bins(probabilities: Tensor, plain: Tensor, of_scenes: Tensor, bins: Tensor) -> Tensor:
    """Bins of every image, which ascend as they all do.

    Args:
        probabilities: (B, S).
        plain: (B,) part of the plain bins.
        of_scenes: (S, K) metres.
        bins: (K,) metres, the plain ones.

    Returns:
        (B, K) metres.

    """
    mixture = probabilities @ of_scenes
    return mixture + plain[:, None] * (bins - mixture)
