# SPDX-License-Identifier: Apache-2.0
"""Baselines: constants, which do not look at the image, and controls, which look past it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from depthclip_ros.core.config import DepthConfig

from .contenders import (
    CONSTANT,
    MEAN_MAP,
    MEDIAN,
    PARTNER,
    RANDOM_PATCH,
    RANDOM_PIXEL,
    READ_OUT,
    Contender,
)
from .datasets import Dataset
from .progress import progress
from .protocol import Protocol

SHUFFLES, RANDOM_WORD_SETS = 5, 3
PARTNERS = 3  # other images whose depth is scored on each; scorer.partners has them
RANDOM_WORDS = 'random words'
ALIKE = 0.999  # cosine
NYU_CONSTANT = 2.4  # metres, the constant that explains the paper's numbers best

# Words that have nothing to do with distance or size.
NEUTRAL_WORDS = (
    'apple', 'guitar', 'purple', 'senate', 'whisper', 'velvet', 'october', 'seven', 'justice',
    'pepper', 'sailing', 'copper', 'tuesday', 'opera', 'honest', 'silver', 'grammar', 'lemon',
    'marriage', 'yellow', 'violin', 'january', 'wisdom', 'salty', 'election', 'bronze', 'poem',
    'sneeze', 'chess', 'banana', 'melody', 'angry')


def baselines(
    config: DepthConfig, training_mean: float | None, max_depth: float, images: int,
) -> list[Contender]:
    """All baselines of a run but the best constant, which needs every image.

    Args:
        config: the method's words and bins.
        training_mean: metres; None where there is no training split.
        max_depth: metres.
        images: how many the data set has.

    """
    return [*_constants(config, training_mean, max_depth), *_controls(config, max_depth),
            *_partners(images)]


def _constants(
    config: DepthConfig, training_mean: float | None, max_depth: float,
) -> list[Contender]:
    bins = float(np.mean(config.bins))
    chosen = [Contender('mean of the bins', 'baseline', CONSTANT, value=bins,
                        note=f'{bins:.3f} m everywhere: all words equally likely')]
    if max_depth <= 10:
        chosen.append(Contender(
            f'constant {NYU_CONSTANT:g} m', 'baseline', CONSTANT, value=NYU_CONSTANT,
            note='the constant that explains the numbers of the paper best'))
    if training_mean is not None:
        chosen.append(Contender('mean of the training split', 'baseline', CONSTANT,
                                value=training_mean, note=f'{training_mean:.3f} m everywhere'))
        chosen.append(Contender('mean map', 'baseline', MEAN_MAP,
                                note="mean depth of every pixel's place in the training split"))
    chosen.append(Contender('median of each image', 'baseline', MEDIAN,
                            note="oracle: the image's own true median everywhere"))
    return chosen


def _controls(config: DepthConfig, max_depth: float) -> list[Contender]:
    rng = np.random.default_rng(0)
    count = len(config.tokens)
    chosen = [
        Contender('random per pixel', 'baseline', RANDOM_PIXEL,
                  note=f'uniform in 0 to {max_depth:g} m: expectation in closed form'),
        Contender('random per patch', 'baseline', RANDOM_PATCH,
                  note=f"uniform in 0 to {max_depth:g} m on the patches, through the method's own "
                       "averaging and upsampling: the paper's 'Lower Bound'")]
    if count > 1:
        chosen += [Contender('shuffled words', 'baseline', READ_OUT,
                             tuple(config.tokens[i] for i in order), config.bins,
                             note='the same words given to other bins; mean of '
                                  f'{SHUFFLES} orders')
                   for order in _other_orders(rng, count, SHUFFLES)]
    if count <= len(NEUTRAL_WORDS):
        chosen += [Contender(RANDOM_WORDS, 'baseline', READ_OUT,
                             tuple(str(w) for w in rng.choice(NEUTRAL_WORDS, count,
                                                              replace=False)),
                             config.bins, note='words that have nothing to do with distance; mean '
                                               f'of {RANDOM_WORD_SETS} sets')
                   for _ in range(RANDOM_WORD_SETS)]
    return chosen


def _partners(images: int) -> list[Contender]:
    count = min(PARTNERS, images - 1)  # one image alone has nobody to change places with
    return [Contender('shuffled images', 'baseline', PARTNER, shift=shift, note=(
        "the method's depth of one image scored on another: does the image matter at all? Mean of "
        f'{count} ways')) for shift in range(1, count + 1)]


def without_failed_controls(
    chosen: Sequence[Contender], text: Mapping[tuple[str, ...], NDArray[np.float32]],
) -> list[Contender]:
    """The same contenders; random words are no test where a model does not tell them apart.

    One set of words that are all the same to the model spoils the row, which is their mean.

    Args:
        chosen: all contenders.
        text: (K, C) unit vectors of every contender's tokens.

    """
    sets = [c.tokens for c in chosen if c.name == RANDOM_WORDS]
    alike = sum(are_alike(text[tokens]) for tokens in sets)
    if not alike:
        return list(chosen)
    note = (f'no test: this model takes all the words for the same in {alike} of {len(sets)} '
            'sets, and so gives the mean of the bins there')
    return [replace(c, is_test=False, note=note) if c.name == RANDOM_WORDS else c for c in chosen]


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


@dataclass(frozen=True)
class TrainingMean:
    """Mean of the valid depth of a training split.

    Attributes:
        mean: metres.
        mean_map: (H, W) metres; the mean where no image has valid depth.
        images: how many it is of.

    """

    mean: float
    mean_map: NDArray[np.float32]
    images: int

    @classmethod
    def compute(cls, training: Dataset, protocol: Protocol) -> TrainingMean:
        """Read all depths of a training split, one at a time."""
        total = np.zeros(protocol.size)
        count = np.zeros(protocol.size, np.int64)
        with progress(len(training), 'training split') as bar:
            for position in range(len(training)):
                truth = protocol.truth(training.read_truth(position))
                valid = ~np.isnan(truth)
                total += np.where(valid, truth, 0)
                count += valid
                bar.update()
        training.close()
        mean = float(total.sum() / max(count.sum(), 1))
        mean_map = np.where(count > 0, total / np.maximum(count, 1), mean).astype(np.float32)
        return cls(mean, mean_map, len(training))
