# SPDX-License-Identifier: Apache-2.0
"""Cluster bootstrap: intervals by resampling scenes, not images.

Images of one scene are not independent; scenes are. `scipy.stats.bootstrap` resamples single
observations only.
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
MIN_TAIL_SAMPLES = 20  # beyond each end of an interval; fewer make the end random
# Fewer scenes tell next to nothing about the spread between scenes: no interval is reported.
MIN_GROUPS = 20
BEST_CONSTANT = 'best constant'
VERDICT_METRICS = ('d1', 'rmse')  # the sentences of a verdict report these


class Interval(Struct, frozen=True):
    """Bootstrap interval over scenes, e.g. of 95 %."""

    low: float
    high: float
    level: float = 0.95

    def name(self) -> str:
        """Return the heading, such as '95 % interval'."""
        return f'{100 * self.level:.4g} % interval'

    def outcome(self) -> str:
        """Interpret an interval of a gain: 'better', 'worse' or 'not distinguishable'."""
        if self.low > 0:
            return 'better'
        return 'worse' if self.high < 0 else 'not distinguishable'


def groups_of(names: Sequence[str]) -> NDArray[np.intp]:
    """Number the scenes: (N,) indices; an image without a scene name is a scene of its own."""
    labels = [name or f'\0{i}' for i, name in enumerate(names)]
    return np.unique(labels, return_inverse=True)[1]


def draw_groups(groups: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.uint16]:
    """Draw bootstrap samples of groups: (S, G) counts of each group in each sample."""
    return np.random.default_rng(seed).multinomial(
        groups, np.full(groups, 1 / groups), resamples).astype(np.uint16)


def resample_count(groups: int, comparisons: int) -> int:
    """Number of bootstrap samples that the intervals of a family of comparisons need."""
    return max(RESAMPLES, math.ceil(MIN_TAIL_SAMPLES / _tail_probability(groups, comparisons)))


def _tail_probability(groups: int, comparisons: int) -> float:
    """Fraction of the bootstrap samples beyond each end of an interval."""
    nominal = (1 - LEVEL) / comparisons / 2
    return float(ndtr(math.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, nominal)))


def percentile_interval(samples: Float64, groups: int, comparisons: int = 1) -> Interval:
    """Compute the expanded percentile interval, as much wider for few groups as Student's t.

    Plain percentiles are too narrow for small samples (Hesterberg, What Teachers Should Know About
    the Bootstrap, The American Statistician 2015, section 3.3).

    Args:
        samples: (S,) values of a statistic in the bootstrap samples.
        groups: number of resampled groups, at least 2.
        comparisons: size of the family (Bonferroni); the level is 1 - 0.05 / comparisons.

    """
    tail = _tail_probability(groups, comparisons)
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(low), float(high), 1 - (1 - LEVEL) / comparisons)
