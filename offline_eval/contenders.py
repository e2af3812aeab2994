# SPDX-License-Identifier: Apache-2.0
"""Contenders: every configuration and baseline that is scored on every image.

All predictions of the network are read-outs of the same features; most baselines need no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from depthclip_ros.core.config import PAPER_BINS, PAPER_TOKENS, DepthConfig

from .paper import BIN_PARTITIONS, METHOD, PROMPTS
from .witness import Predictions

# How a contender's prediction is made.
READ_OUT = 'read-out'  # from the image's features
PARTNER = 'partner'  # the method's, of another image
RANDOM_PATCH, RANDOM_PIXEL = 'random patch', 'random pixel'
CONSTANT, MEDIAN, MEAN_MAP = 'constant', 'median', 'mean map'
FOREIGN = 'foreign'  # read from another program's files
CALIBRATED = 'calibrated'  # from the image's features, corrected by a calibration

FOCAL = f'{METHOD} x focal length'


@dataclass(frozen=True)
class Contender:
    """One prediction for every image.

    Attributes:
        name: of the row it belongs to; several contenders of one name are averaged (repetitions).
        group: 'method', 'camera', 'bins', 'prompts', 'baseline', 'calibrated' or 'foreign'.
        kind: how the prediction is made.
        tokens, bins: of a read-out; the tokens in the order in which they get the bins.
        value: of a constant, metres.
        shift: which of its partners an image gets the depth of.
        focal: of a read-out: depth is multiplied by the focal length of what the network sees,
            in its widths, and divided by this one; 0: it is not.
        note: for the reader.
        is_test: whether the method is compared with it; not where a control cannot work, or where
            another program's depth has been fitted to the truth.
        predictions: another program's.
        calibration: SHA-256 of the calibration's file.

    """

    name: str
    group: str
    kind: str
    tokens: tuple[str, ...] = ()
    bins: tuple[float, ...] = ()
    value: float = 0.0
    shift: int = 0
    focal: float = 0.0
    note: str = ''
    is_test: bool = True
    predictions: Predictions | None = None
    calibration: str = ''


def method_and_variants(
    config: DepthConfig, tables: Sequence[str], focal: float = 0.0,
) -> list[Contender]:
    """The method, which is the first, and the rows of the paper's tables.

    Args:
        config: the method's words and bins.
        tables: of the paper.
        focal: the focal length, in widths of the network's input, to which the words belong; 0:
            no row with that of each image's camera.

    """
    chosen = [Contender(METHOD, 'method', READ_OUT, config.tokens, config.bins,
                        note='as configured')]
    if focal:
        chosen.append(Contender(
            FOCAL, 'camera', READ_OUT, config.tokens, config.bins, focal=focal,
            note=f'depth x focal length of what the network sees, in its widths / {focal:g}'))
    if '2' in tables:
        chosen += [Contender(name, 'bins', READ_OUT, PAPER_TOKENS, bins, note=(
            f'bins {", ".join(f"{b:.2f}" for b in bins)} m'))
            for name, bins in BIN_PARTITIONS.items()]
    if '3' in tables:
        chosen += [Contender(name, 'prompts', READ_OUT, tokens, PAPER_BINS,
                             note=', '.join(tokens)) for name, tokens in PROMPTS.items()]
    return chosen
