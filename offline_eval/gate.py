# SPDX-License-Identifier: Apache-2.0
"""Whether a run reproduced the paper's headline row: the same experiment, the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from depthclip_ros.core.errors import quoted
from depthclip_ros.core.weights import RELEASES, WeightsInfo
from depthclip_ros.evaluation.metrics import PAPER_METRICS, SYMBOLS, number

from .published import PAPER_CONFIG, PAPER_IMAGES, PAPER_METHOD
from .results import Gate, How, Row

# Differences from the paper's row that count as reproduced. The independent re-run is within them.
GATE_LIMITS = {'d1': .005, 'd2': .005, 'd3': .005, 'rel': .006, 'log10': .002, 'rmse': .01}
# Whatever these are, the same is computed, within rounding.
_ALIKE = frozenset({'out_of_range', 'scene_temperature'})
_ALSO = {'precision': 'float16'}  # of the official code on a GPU, which the paper's numbers are of


def other_settings(
    values: Mapping[str, Any], without: Sequence[str] = (),
) -> list[tuple[str, Any, Any]]:
    """Settings that are not the paper's: name, value, and the paper's value."""
    return [(name, values[name], wanted) for name, wanted in PAPER_CONFIG.to_dict().items()
            if name not in _ALIKE and name not in without and name in values
            and values[name] not in (wanted, _ALSO.get(name, wanted))]


def judge(
    row: Row, settings: Mapping[str, Any], weights: WeightsInfo, protocol: How, *, official: bool,
) -> Gate:
    """Whether the paper's headline row was reproduced: the same experiment, the same numbers.

    `row` is the method's, over all images; of the settings backbone and precision are what ran;
    `official` says whether the data are NYU's official test split with raw depth.
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
    reasons += [f'{name} is {quoted(value, 200)}, in the paper {quoted(wanted, 200)}'
                for name, value, wanted in other_settings(settings)]
    offsets = {m: row.metrics[m] - PAPER_METHOD.metrics[m] for m in PAPER_METRICS}
    for metric, offset in offsets.items():
        # Written so that NaN is beyond the limit.
        if not abs(offset) <= GATE_LIMITS[metric]:
            reasons.append(f'{SYMBOLS[metric]} is {number(row.metrics[metric])}, in the paper '
                           f'{number(PAPER_METHOD.metrics[metric])}: '
                           f'{number(offset, signed=True)}, limit {GATE_LIMITS[metric]:g}')
    return Gate('not reproduced' if reasons else 'reproduced', offsets, dict(GATE_LIMITS), reasons)
