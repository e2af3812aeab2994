# SPDX-License-Identifier: Apache-2.0
"""Check whether a run reproduces the paper's headline row: same experiment, same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from depthclip_ros.core.errors import quoted
from depthclip_ros.core.releases import RELEASES, WeightsInfo
from depthclip_ros.evaluation.metrics import PAPER_METRICS, SYMBOLS, number

from .published import PAPER_CONFIG, PAPER_IMAGES, PAPER_METHOD
from .results import Gate, ProtocolInfo, Row

# Largest differences that count as reproduced. The independent re-run is within these limits.
GATE_LIMITS = {'d1': .005, 'd2': .005, 'd3': .005, 'rel': .006, 'log10': .002, 'rmse': .01}
# Settings that do not change the result beyond rounding.
_IRRELEVANT = frozenset({'out_of_range', 'scene_temperature'})
_ALTERNATIVES = {'precision': 'float16'}  # the official code's on a GPU


def other_settings(
    values: Mapping[str, Any], excluded: Sequence[str] = (),
) -> list[tuple[str, Any, Any]]:
    """List settings that differ from the paper's: name, value, and the paper's value."""
    return [(name, values[name], paper_value)
            for name, paper_value in PAPER_CONFIG.to_dict().items()
            if name not in _IRRELEVANT and name not in excluded and name in values
            and values[name] not in (paper_value, _ALTERNATIVES.get(name, paper_value))]


def judge(
    row: Row, settings: Mapping[str, Any], weights: WeightsInfo, protocol: ProtocolInfo, *,
    official: bool,
) -> Gate:
    """Compare experiment and metrics with the paper's headline row.

    Args:
        row: of the method, over all images.
        settings: of the method; backbone and precision as run.
        weights: of the run.
        protocol: of the run.
        official: whether the data are NYU's official test split with raw depth.

    """
    reasons = []
    if not official:
        reasons.append("the data are not NYU Depth v2's official test split with raw depth")
    if row.images != PAPER_IMAGES:
        reasons.append(f'{row.images} images were scored, not {PAPER_IMAGES}')
    if weights.digest != RELEASES['RN50'].sha256:
        reasons.append(f"the weights are {weights.name}, not OpenAI's RN50")
    if (protocol.name, protocol.average) != ('depthclip', 'image'):
        reasons.append(f'the protocol is {protocol.name}, averaged per {protocol.average}, not '
                       "the official code's")
    reasons += [f'{name} is {quoted(value, 200)}, in the paper {quoted(paper_value, 200)}'
                for name, value, paper_value in other_settings(settings)]
    offsets = {m: row.metrics[m] - PAPER_METHOD.metrics[m] for m in PAPER_METRICS}
    for metric, offset in offsets.items():
        # `not <=`, so that NaN exceeds the limit.
        if not abs(offset) <= GATE_LIMITS[metric]:
            reasons.append(f'{SYMBOLS[metric]} is {number(row.metrics[metric])}, in the paper '
                           f'{number(PAPER_METHOD.metrics[metric])}: '
                           f'{number(offset, signed=True)}, limit {GATE_LIMITS[metric]:g}')
    return Gate('not reproduced' if reasons else 'reproduced', offsets, dict(GATE_LIMITS), reasons)
