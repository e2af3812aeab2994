# SPDX-License-Identifier: Apache-2.0
"""Intervals by resampling scenes, of which a data set has several images.

Scenes are what is independent. `scipy.stats.bootstrap` draws observations, not groups of them, so
that the few lines for it stand here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from .metrics import Float64

RESAMPLES, LEVEL = 10_000, 0.95
LEAST_BEYOND = 20  # bootstrap samples beyond each end of an interval: of few, chance is the end
# Below, a sample says next to nothing about the spread between scenes, and none is given.
LEAST_GROUPS = 20
BEST_CONSTANT = 'best constant'
SAID = ('d1', 'rmse')  # what the sentences are about


class Interval(Struct, frozen=True):
    """Bootstrap interval over scenes, e.g. of 95 %."""

    low: float
    high: float
    level: float = 0.95

    def name(self) -> str:
        """Such as '95 % interval'."""
        return f'{100 * self.level:.4g} % interval'

    def reading(self) -> str:
        """What it allows to say, if it is of a gain, and no more."""
        if self.low > 0:
            return 'better'
        return 'worse' if self.high < 0 else 'not distinguishable'


def groups_of(names: Sequence[str]) -> NDArray[np.intp]:
    """(N,) number of each image's scene; an image without a name is a scene of its own."""
    own = [name or f'\0{i}' for i, name in enumerate(names)]
    return np.unique(own, return_inverse=True)[1]


def draw(groups: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.uint16]:
    """(S, G) how often each group is in each bootstrap sample."""
    return np.random.default_rng(seed).multinomial(
        groups, np.full(groups, 1 / groups), resamples).astype(np.uint16)


def resamples(groups: int, comparisons: int) -> int:
    """How many bootstrap samples an interval of so many comparisons takes."""
    return max(RESAMPLES, math.ceil(LEAST_BEYOND / _tail(groups, comparisons)))


def _tail(groups: int, comparisons: int) -> float:
    """Share of the bootstrap samples beyond each end of an interval."""
    beyond = (1 - LEVEL) / comparisons / 2
    return float(ndtr(math.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, beyond)))


def interval(samples: Float64, groups: int, comparisons: int = 1) -> Interval:
    """Expanded percentile interval: with few groups wider by as much as Student's t.

    Plain percentiles are too narrow for small samples (Hesterberg, What Teachers Should Know About
    the Bootstrap, The American Statistician 2015, section 3.3). `samples` are (S,) values of
    bootstrap samples, drawn from so many groups, at least two. So many comparisons hold together
    (Bonferroni): each interval is of a level of 1 - 0.05 / comparisons.
    """
    tail = _tail(groups, comparisons)
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(low), float(high), 1 - (1 - LEVEL) / comparisons)
