# SPDX-License-Identifier: Apache-2.0
"""What was published: the paper's Tables 1 to 3; and whether a run reproduced it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from depthclip_ros.core.config import PAPER_BINS, PAPER_TOKENS, DepthConfig
from depthclip_ros.core.errors import quoted
from depthclip_ros.core.weights import RELEASES, WeightsInfo

from .metrics import PAPER_METRICS, SYMBOLS, number
from .results import ALL, Gate, How, Row

METHOD = 'DepthCLIP'
ORIGINAL_BINS, ORIGINAL_PROMPT = 'Original bin', 'Original prompt'

# What the paper's row is computed with (section 4.2 and the official code), every setting of it.
PAPER_CONFIG = DepthConfig(
    tokens=PAPER_TOKENS, bins=PAPER_BINS, templates=('This object is {}',), temperature=0.1,
    backbone='RN50', features='reference', input_height=416, input_width=544, flip_average=True,
    upsampling='bilinear', out_of_range='clamp', reference_focal=0.0, normalization='imagenet',
    precision='float32')
PAPER_IMAGES = 654

# Table 2: depth of the seven tokens in metres.
BIN_PARTITIONS: Mapping[str, tuple[float, ...]] = {
    ORIGINAL_BINS: PAPER_BINS,
    'Class-dependent 1': (1.00, 2.00, 2.25, 2.50, 2.75, 3.00, 4.00),
    'Class-dependent 2': (1.00, 1.50, 2.00, 2.50, 3.00, 3.50, 4.00),
    'Class-dependent 3': (1.00, 1.25, 1.50, 1.75, 2.00, 2.25, 2.50),
    'Class-dependent 4': (2.00, 2.50, 3.00, 3.25, 3.50, 3.75, 4.00),
}
TABLE_2_SCENES = ('bathroom', 'classroom', ALL)

# Table 3: tokens, with the original bins.
PROMPTS: Mapping[str, tuple[str, ...]] = {
    ORIGINAL_PROMPT: PAPER_TOKENS,
    'Prompt 1': ('extremely close', 'close', 'middle', 'a little far', 'far', 'quite far',
                 'unseen'),
    'Prompt 2': ('extremely close', 'very close', 'close', 'a little close', 'a little far', 'far',
                 'unseen'),
    'Prompt 3': ('giant', 'close', 'a little close', 'not in distance', 'a bit remote', 'far',
                 'unseen'),
}


def _row(table: str, name: str, scene: str, *values: float | None, note: str = '') -> Row:
    return Row(name, table, scene, {
        metric: value for metric, value in zip(PAPER_METRICS, values, strict=True)
        if value is not None}, note=note)


PAPER_METHOD = _row('1', METHOD, ALL, .394, .683, .851, .388, .156, 1.167,
                    note='zero-shot from CLIP')
PAPER_ROWS = (
    _row('1', 'Make3D', ALL, .447, .745, .897, .349, None, 1.214, note='supervised'),
    _row('1', 'DORN', ALL, .828, .965, .992, .115, .051, .509, note='supervised'),
    _row('1', 'ASTransformer', ALL, .902, .985, .997, .103, .044, .374, note='supervised'),
    _row('1', 'DepthFormer', ALL, .921, .989, .998, .096, .041, .339, note='supervised'),
    _row('1', 'RPSF', ALL, .952, .989, .997, .072, .029, .267, note='supervised'),
    _row('1', 'Lower Bound', ALL, .140, .297, .471, 1.327, .323, 2.934, note='random'),
    _row('1', 'vid2depth', ALL, .268, .507, .695, .572, None, 1.637,
         note='zero-shot from KITTI video'),
    _row('1', 'Zhang et al.', ALL, .350, .617, .799, .513, .529, 1.457,
         note='zero-shot from KITTI video'),
    PAPER_METHOD,
    _row('AdaDepthCLIP', 'DepthCLIP, independent re-run', ALL, .390, .680, .848, .393, .158, 1.176,
         note='by the authors of AdaDepthCLIP'),
    # Trained on NYU's training split: what a calibrated row is to be compared with. As published;
    # Hu et al. as others quote them.
    _row('calibrated', 'Hu et al. 2024: learned prompts, bins by scene', ALL, .428, .732, .898,
         .347, None, 1.049, note='one training image a scene class'),
    _row('calibrated', 'Auty and Mikolajczyk 2023: seven learned tokens', ALL, .465, .776, .922,
         .319, .128, .970, note='24,000 training images'),
    _row('calibrated', 'MoA-DepthCLIP: adapters, ViT-B/32', ALL, .745, None, None, None, None,
         .520, note='trained'),
    _row('2', ORIGINAL_BINS, 'bathroom', .333, .631, .814, .549, .175, .922),
    _row('2', 'Class-dependent 1', 'bathroom', .248, .490, .699, .754, .219, 1.237),
    _row('2', 'Class-dependent 2', 'bathroom', .236, .460, .675, .801, .229, 1.308),
    _row('2', 'Class-dependent 3', 'bathroom', .425, .723, .893, .373, .141, .745),
    _row('2', 'Class-dependent 4', 'bathroom', .129, .302, .535, 1.072, .287, 1.682),
    _row('2', ORIGINAL_BINS, 'classroom', .308, .533, .742, .372, .193, 1.826),
    _row('2', 'Class-dependent 1', 'classroom', .312, .565, .820, .383, .179, 1.694),
    _row('2', 'Class-dependent 2', 'classroom', .310, .583, .830, .397, .175, 1.636),
    _row('2', 'Class-dependent 3', 'classroom', .231, .452, .600, .407, .246, 2.138),
    _row('2', 'Class-dependent 4', 'classroom', .276, .637, .844, .461, .173, 1.544),
    _row('2', ORIGINAL_BINS, ALL, .394, .683, .851, .388, .156, 1.167),
    _row('2', 'Class-dependent 1', ALL, .373, .653, .828, .467, .166, 1.228),
    _row('2', 'Class-dependent 2', ALL, .366, .641, .819, .496, .170, 1.248),
    _row('2', 'Class-dependent 3', ALL, .333, .621, .818, .353, .176, 1.290),
    _row('2', 'Class-dependent 4', ALL, .288, .548, .752, .663, .201, 1.439),
    _row('3', ORIGINAL_PROMPT, ALL, .394, .683, .851, .388, .156, 1.167),
    _row('3', 'Prompt 1', ALL, .341, .623, .816, .379, .175, 1.274),
    _row('3', 'Prompt 2', ALL, .377, .667, .845, .385, .161, 1.196),
    _row('3', 'Prompt 3', ALL, .380, .670, .846, .375, .160, 1.196),
)

# Differences from the paper's row that count as reproduced. The independent re-run is within them.
GATE_LIMITS = {'d1': .005, 'd2': .005, 'd3': .005, 'rel': .006, 'log10': .002, 'rmse': .01}


# The gate ----------------------------------------------------------------------------------------

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
