# SPDX-License-Identifier: Apache-2.0
"""Whether a run reproduced the paper's row: the same experiment first, then the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from depthclip_ros.core import DepthConfig
from depthclip_ros.core.errors import quoted
from depthclip_ros.core.weights import RELEASES

from .names import SYMBOLS, number
from .paper import GATE_LIMITS, PAPER_CONFIG, PAPER_IMAGES, PAPER_METHOD
from .results import PAPER_METRICS, Gate

# Whatever these are, the same is computed, within rounding.
_ALIKE = frozenset({'out_of_range', 'scene_temperature'})
_RN50 = RELEASES['RN50'].sha256


@dataclass(frozen=True)
class Experiment:
    """All that the paper's row depends on.

    Attributes:
        config: as it was computed with.
        backbone, precision: what ran.
        weights, weights_digest: name and SHA-256.
        official: whether the data are NYU's official test split with raw depth.
        images: how many were scored.
        protocol, average: how.

    """

    config: DepthConfig
    backbone: str
    precision: str
    weights: str
    weights_digest: str
    official: bool
    images: int
    protocol: str
    average: str


def differences(run: Experiment) -> list[str]:
    """Why a run is another experiment than the paper's: a sentence for each difference."""
    found = []
    if not run.official:
        found.append("the data are not NYU Depth v2's official test split with raw depth")
    if run.images != PAPER_IMAGES:
        found.append(f'{run.images} images were scored, not {PAPER_IMAGES}')
    if run.weights_digest != _RN50:
        found.append(f"the weights are {run.weights}, not OpenAI's RN50")
    if (run.protocol, run.average) != ('depthclip', 'image'):
        found.append(f'the protocol is {run.protocol}, averaged per {run.average}, not the '
                     "official code's")
    values = {**run.config.to_dict(), 'backbone': run.backbone, 'precision': run.precision}
    return found + [f'{name} is {quoted(value, 200)}, in the paper {quoted(wanted, 200)}'
                    for name, value, wanted in other_settings(values)]


def other_settings(
    values: Mapping[str, Any], without: Sequence[str] = (),
) -> list[tuple[str, Any, Any]]:
    """Settings that are not the paper's: name, value, and the paper's value."""
    return [(name, values[name], wanted) for name, wanted in PAPER_CONFIG.to_dict().items()
            if name not in _ALIKE and name not in without and name in values
            and values[name] != wanted]


def judge(metrics: dict[str, float], run: Experiment) -> Gate:
    """Whether the paper's headline row was reproduced.

    Args:
        metrics: the method's, over all images.
        run: how they came about.

    """
    offsets = {m: metrics[m] - PAPER_METHOD.metrics[m] for m in PAPER_METRICS}
    reasons = differences(run)
    for metric, offset in offsets.items():
        # Written so that NaN is beyond the limit.
        if not abs(offset) <= GATE_LIMITS[metric]:
            reasons.append(f'{SYMBOLS[metric]} is {number(metrics[metric])}, in the paper '
                           f'{number(PAPER_METHOD.metrics[metric])}: '
                           f'{number(offset, signed=True)}, limit {GATE_LIMITS[metric]:g}')
    return Gate('not reproduced' if reasons else 'reproduced', offsets, dict(GATE_LIMITS), reasons)
