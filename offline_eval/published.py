# SPDX-License-Identifier: Apache-2.0
"""Published results: the paper's settings and Tables 1 to 3, and numbers of later papers."""

from __future__ import annotations

from collections.abc import Mapping

from depthclip_ros.core.config import PAPER_BINS, PAPER_TOKENS, DepthConfig
from depthclip_ros.evaluation.metrics import PAPER_METRICS

from .results import ALL, Row

METHOD = 'DepthCLIP'
ORIGINAL_BINS, ORIGINAL_PROMPT = 'Original bin', 'Original prompt'

# All settings of the paper's row (section 4.2 and the official code).
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
    # Trained on NYU's training split, for comparison with calibrated rows. As published; Hu et al.
    # as quoted in later papers.
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
