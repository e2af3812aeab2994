# SPDX-License-Identifier: Apache-2.0
"""The columns of a record: every configuration and baseline that is scored on every image.

All predictions of the network are read-outs of the same features; most baselines need no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depthclip_ros.core.config import PAPER_BINS, PAPER_TOKENS, DepthConfig

from .paper import BIN_PARTITIONS, METHOD, PROMPTS

# How a column's prediction is made.
READ_OUT = 'read-out'  # from the image's features
PARTNER = 'partner'  # the method's, of another image
RANDOM_PATCH, RANDOM_PIXEL = 'random patch', 'random pixel'
CONSTANT, MEDIAN, MEAN_MAP = 'constant', 'median', 'mean map'

FOCAL = f'{METHOD} x focal length'
SHUFFLES, RANDOM_WORD_SETS = 5, 3
PARTNERS = 3  # other images whose depth is scored on each; readout.partners has them
RANDOM_WORDS = 'random words'
ALIKE = 0.999  # cosine
NYU_CONSTANT = 2.4  # metres, the constant that explains the paper's numbers best

# Words that have nothing to do with distance or size.
NEUTRAL_WORDS = (
    'apple', 'guitar', 'purple', 'senate', 'whisper', 'velvet', 'october', 'seven', 'justice',
    'pepper', 'sailing', 'copper', 'tuesday', 'opera', 'honest', 'silver', 'grammar', 'lemon',
    'marriage', 'yellow', 'violin', 'january', 'wisdom', 'salty', 'election', 'bronze', 'poem',
    'sneeze', 'chess', 'banana', 'melody', 'angry')


@dataclass(frozen=True)
class Column:
    """One prediction for every image.

    Attributes:
        name: of the row it belongs to; several columns of one name are averaged (repetitions).
        group: 'method', 'camera', 'bins', 'prompts' or 'baseline'.
        kind: how the prediction is made.
        tokens, bins: of a read-out; the tokens in the order in which they get the bins.
        value: of a constant, metres.
        shift: which of its partners an image gets the depth of.
        focal: of a read-out: depth is multiplied by the focal length of what the network sees,
            in its widths, and divided by this one; 0: it is not.
        note: for the reader.
        is_test: whether the method must beat it; not where a control cannot work.

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


def columns(
    config: DepthConfig, tables: Sequence[str], training_mean: float | None, max_depth: float,
    images: int,
    focal: float = 0.0,
) -> list[Column]:
    """All columns of a run; the method's is the first.

    Args:
        config: the method's words and bins.
        tables: of the paper.
        training_mean: metres; None where there is no training split.
        max_depth: metres.
        images: how many the data set has.
        focal: the focal length, in widths of the network's input, to which the words belong; 0:
            no row with that of each image's camera.

    """
    chosen = [Column(METHOD, 'method', READ_OUT, config.tokens, config.bins,
                     note='as configured')]
    if focal:
        chosen.append(Column(
            FOCAL, 'camera', READ_OUT, config.tokens, config.bins, focal=focal,
            note=f'depth x focal length of what the network sees, in its widths / {focal:g}'))
    if '2' in tables:
        chosen += [Column(name, 'bins', READ_OUT, PAPER_TOKENS, bins,
                          note=f'bins {_metres(bins)}') for name, bins in BIN_PARTITIONS.items()]
    if '3' in tables:
        chosen += [Column(name, 'prompts', READ_OUT, tokens, PAPER_BINS,
                          note=', '.join(tokens)) for name, tokens in PROMPTS.items()]
    return [*chosen, *_constants(config, training_mean, max_depth),
            *_controls(config, max_depth), *_partners(images)]


def _constants(config: DepthConfig, training_mean: float | None, max_depth: float) -> list[Column]:
    bins = float(np.mean(config.bins))
    chosen = [Column('mean of the bins', 'baseline', CONSTANT, value=bins,
                     note=f'{bins:.3f} m everywhere: all words equally likely')]
    if max_depth <= 10:
        chosen.append(Column(f'constant {NYU_CONSTANT:g} m', 'baseline', CONSTANT,
                             value=NYU_CONSTANT,
                             note='the constant that explains the numbers of the paper best'))
    if training_mean is not None:
        chosen.append(Column('mean of the training split', 'baseline', CONSTANT,
                             value=training_mean, note=f'{training_mean:.3f} m everywhere'))
        chosen.append(Column('mean map', 'baseline', MEAN_MAP,
                             note="mean depth of every pixel's place in the training split"))
    chosen.append(Column('median of each image', 'baseline', MEDIAN,
                         note="oracle: the image's own true median everywhere"))
    return chosen


def _controls(config: DepthConfig, max_depth: float) -> list[Column]:
    rng = np.random.default_rng(0)
    count = len(config.tokens)
    chosen = [
        Column('random per pixel', 'baseline', RANDOM_PIXEL,
               note=f'uniform in 0 to {max_depth:g} m: expectation in closed form'),
        Column('random per patch', 'baseline', RANDOM_PATCH,
               note=f"uniform in 0 to {max_depth:g} m on the patches, through the method's own "
                    "averaging and upsampling: the paper's 'Lower Bound'")]
    if count > 1:
        chosen += [Column('shuffled words', 'baseline', READ_OUT,
                          tuple(config.tokens[i] for i in order), config.bins,
                          note=f'the same words given to other bins; mean of {SHUFFLES} orders')
                   for order in _other_orders(rng, count, SHUFFLES)]
    if count <= len(NEUTRAL_WORDS):
        chosen += [Column(RANDOM_WORDS, 'baseline', READ_OUT,
                          tuple(str(w) for w in rng.choice(NEUTRAL_WORDS, count, replace=False)),
                          config.bins, note='words that have nothing to do with distance; mean of '
                                            f'{RANDOM_WORD_SETS} sets')
                   for _ in range(RANDOM_WORD_SETS)]
    return chosen


def _partners(images: int) -> list[Column]:
    count = min(PARTNERS, images - 1)  # one image alone has nobody to change places with
    return [Column('shuffled images', 'baseline', PARTNER, shift=shift, note=(
        "the method's depth of one image scored on another: does the image matter at all? Mean of "
        f'{count} ways')) for shift in range(1, count + 1)]


def are_alike(features: NDArray[np.float32]) -> bool:
    """Whether a model takes all these words for the same, as words that it does not know.

    Args:
        features: (K, C) unit vectors of the words.

    """
    return bool((features @ features.T).min() > ALIKE)


def _other_orders(rng: np.random.Generator, count: int, wanted: int) -> list[list[int]]:
    """Orders that are not the original one."""
    orders: list[list[int]] = []
    while len(orders) < wanted:
        order = [int(i) for i in rng.permutation(count)]
        if order != list(range(count)):
            orders.append(order)
    return orders


def _metres(bins: Sequence[float]) -> str:
    return ', '.join(f'{b:.2f}' for b in bins) + ' m'
