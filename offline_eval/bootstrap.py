# SPDX-License-Identifier: Apache-2.0
"""Intervals by resampling what is independent: scenes, of which a data set has several images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from .results import Interval

RESAMPLES, LEVEL = 10_000, 0.95
# Below, a sample says next to nothing about the spread between scenes, and none is given.
LEAST_GROUPS = 20


def groups_of(names: Sequence[str]) -> NDArray[np.intp]:
    """(N,) number of each image's scene; an image without a name is a scene of its own."""
    own = [name or f'\0{i}' for i, name in enumerate(names)]
    return np.unique(own, return_inverse=True)[1]


def draw(
    groups: NDArray[np.intp], resamples: int = RESAMPLES, seed: int = 0,
) -> NDArray[np.float64]:
    """(S, N) how often each image is in each bootstrap sample: whole groups are drawn."""
    count = int(groups.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(
        count, np.full(count, 1 / count), resamples)
    return drawn[:, groups].astype(np.float64)


def interval(
    samples: NDArray[np.float64], groups: int, comparisons: int = 1,
) -> Interval:
    """Expanded percentile interval: with few groups wider by as much as Student's t.

    Plain percentiles are too narrow for small samples (Hesterberg, What Teachers Should Know About
    the Bootstrap, The American Statistician 2015, section 3.3).

    Args:
        samples: (S,) values of the bootstrap samples.
        groups: how many groups were drawn from, at least two.
        comparisons: of a family that is to hold together (Bonferroni): each interval is of a
            level of 1 - 0.05 / comparisons.

    """
    level = 1 - (1 - LEVEL) / comparisons
    wide = math.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, (1 - level) / 2)
    tail = float(ndtr(wide))
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(low), float(high), level)
