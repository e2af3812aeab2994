# SPDX-License-Identifier: Apache-2.0
"""Contenders: the method, its variants, and the baselines that say what its numbers are worth.

Constants do not look at the image, and controls look past it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthclip_ros.core.config import PAPER_BINS, PAPER_TOKENS, DepthConfig

from .metrics import MIN_DEPTH, SortedTruth, Sums
from .paper import BIN_PARTITIONS, METHOD, PROMPTS
from .progress import progress

if TYPE_CHECKING:
    from .datasets import Dataset
    from .protocol import Protocol
    from .scorer import Seen
    from .witness import Predictions

FOCAL = f'{METHOD} x focal length'
SHUFFLES, RANDOM_WORD_SETS = 5, 3
PARTNERS = 3  # other images whose depth is scored on each; `scorer.partners` has them
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
class Contender:
    """One prediction for every image, by one of `depth`, `sums` and `shift`.

    Attributes:
        name: of the row it belongs to; several contenders of one name are averaged (repetitions).
        group: 'method', 'camera', 'bins', 'prompts', 'baseline', 'calibrated' or 'foreign'.
        note: for the reader.
        key: what else its digits depend on, so that a run is continued with the same only.
        tokens: words that it needs the text features of.
        is_test: whether the method is compared with it; not where a control cannot work, or where
            another program's depth has been fitted to the truth.
        depth: images, as they were seen -> (B, h, w) metres of their patches, or of all pixels.
        sums: for what follows from the true depth alone: that of an image, and the greatest that
            counts -> (11,) sums.
        shift: it is the method's depth of another image: which of an image's partners.

    """

    name: str
    group: str
    note: str = ''
    key: str = ''
    tokens: tuple[str, ...] = ()
    is_test: bool = True
    depth: Callable[[Seen], Tensor] | None = None
    sums: Callable[[SortedTruth, float], Sums] | None = None
    shift: int = 0


def _read_out(
    name: str, group: str, tokens: Sequence[str], bins: Sequence[float], note: str,
    focal: float = 0.0,
) -> Contender:
    """Depth by words, in the order in which they get the bins.

    With `focal`, it is multiplied by the focal length of what the network sees, in its widths,
    and divided by this one.
    """
    def depth(seen: Seen) -> Tensor:
        found = seen.read_out(tokens, bins)
        return found * (seen.focal / focal)[:, None, None] if focal else found
    return Contender(name, group, note, f'{tokens} {bins} {focal}', tuple(tokens), depth=depth)


def _constant(name: str, metres: float, note: str) -> Contender:
    return Contender(name, 'baseline', note, f'{metres}',
                     sums=lambda ordered, _: ordered.score([metres])[0])


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
    chosen = [_read_out(METHOD, 'method', config.tokens, config.bins, 'as configured')]
    if focal:
        chosen.append(_read_out(
            FOCAL, 'camera', config.tokens, config.bins,
            f'depth x focal length of what the network sees, in its widths / {focal:g}', focal))
    if '2' in tables:
        chosen += [_read_out(name, 'bins', PAPER_TOKENS, bins,
                             f'bins {", ".join(f"{b:.2f}" for b in bins)} m')
                   for name, bins in BIN_PARTITIONS.items()]
    if '3' in tables:
        chosen += [_read_out(name, 'prompts', tokens, PAPER_BINS, ', '.join(tokens))
                   for name, tokens in PROMPTS.items()]
    return chosen


def foreign(predictions: Predictions) -> Contender:
    """Another program's depth, from its files."""
    def depth(seen: Seen) -> Tensor:
        return torch.from_numpy(np.stack([
            predictions.read(image.entry, image.size, image.truth, seen.protocol)
            for image in seen.images])).to(seen.device)
    return Contender(predictions.row, 'foreign', predictions.note, predictions.digest,
                     is_test=predictions.align == 'none', depth=depth)


# Baselines ---------------------------------------------------------------------------------------


def baselines(
    config: DepthConfig, training: TrainingMean | None, max_depth: float, images: int,
) -> list[Contender]:
    """All baselines of a run but the best constant, which needs every image.

    Args:
        config: the method's words and bins.
        training: None where there is no training split.
        max_depth: metres.
        images: how many the data set has.

    """
    return [*_constants(config, training, max_depth), *_controls(config, max_depth),
            *_partners(images)]


def _constants(
    config: DepthConfig, training: TrainingMean | None, max_depth: float,
) -> list[Contender]:
    bins = float(np.mean(config.bins))
    chosen = [_constant('mean of the bins', bins,
                        f'{bins:.3f} m everywhere: all words equally likely')]
    if max_depth <= 10:
        chosen.append(_constant(f'constant {NYU_CONSTANT:g} m', NYU_CONSTANT,
                                'the constant that explains the numbers of the paper best'))
    if training is not None:
        chosen.append(_constant('mean of the training split', training.mean,
                                f'{training.mean:.3f} m everywhere'))
        whole = torch.from_numpy(training.mean_map)
        chosen.append(Contender(
            'mean map', 'baseline', "mean depth of every pixel's place in the training split",
            f'{training.mean}',
            depth=lambda seen: whole.to(seen.device).expand(len(seen.images), -1, -1)))
    chosen.append(Contender(
        'median of each image', 'baseline', "oracle: the image's own true median everywhere",
        sums=lambda ordered, _: ordered.score([ordered.median()])[0]))
    return chosen


def _controls(config: DepthConfig, max_depth: float) -> list[Contender]:
    rng = np.random.default_rng(0)
    count = len(config.tokens)
    chosen = [
        Contender('random per pixel', 'baseline',
                  f'uniform in 0 to {max_depth:g} m: expectation in closed form',
                  sums=SortedTruth.score_random_pixels),
        Contender('random per patch', 'baseline',
                  f"uniform in 0 to {max_depth:g} m on the patches, through the method's own "
                  "averaging and upsampling: the paper's 'Lower Bound'",
                  depth=partial(_random_patches, max_depth))]
    if count > 1:
        chosen += [_read_out('shuffled words', 'baseline',
                             [config.tokens[i] for i in order], config.bins,
                             f'the same words given to other bins; mean of {SHUFFLES} orders')
                   for order in _other_orders(rng, count, SHUFFLES)]
    if count <= len(NEUTRAL_WORDS):
        chosen += [_read_out(RANDOM_WORDS, 'baseline',
                             [str(w) for w in rng.choice(NEUTRAL_WORDS, count, replace=False)],
                             config.bins, 'words that have nothing to do with distance; mean of '
                                          f'{RANDOM_WORD_SETS} sets')
                   for _ in range(RANDOM_WORD_SETS)]
    return chosen


def _random_patches(max_depth: float, seen: Seen) -> Tensor:
    """Depth drawn per patch and pass, by a generator of the image's own."""
    drawn = np.stack([
        np.random.default_rng([7, image.position]).uniform(
            2 * MIN_DEPTH, max_depth, (seen.passes, *seen.grid)).mean(0)
        for image in seen.images])
    return torch.from_numpy(drawn.astype(np.float32)).to(seen.device)


def _partners(images: int) -> list[Contender]:
    count = min(PARTNERS, images - 1)  # one image alone has nobody to change places with
    return [Contender('shuffled images', 'baseline', (
        "the method's depth of one image scored on another: does the image matter at all? Mean of "
        f'{count} ways'), f'{shift}', shift=shift) for shift in range(1, count + 1)]


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

    """

    mean: float
    mean_map: NDArray[np.float32]

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
        return cls(mean, np.where(
            count > 0, total / np.maximum(count, 1), mean).astype(np.float32))
