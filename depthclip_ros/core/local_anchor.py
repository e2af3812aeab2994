# SPDX-License-Identifier: Apache-2.0
"""What points of known depth say of their surroundings, beyond one scale of the whole image.

What is wrong with depth is alike in neighbouring patches of like depth: a wall is too near as a
whole, the floor too far. What one scale leaves of log(true depth / depth) is taken as a Gaussian
process over place and log depth (Rasmussen and Williams, Gaussian Processes for Machine Learning,
2006, eqs. 2.25 and 2.26), which is nothing far from every point. What it would say of a point
without that one (their eq. 5.12) tells which points are wrong, and how large errors are between
the points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .config import Size

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

# Standard deviations of log depth: what neighbours have in common, and what is a patch's own. They
# and the reach come from rendered rooms that docs/robots.md does not show, through four cameras,
# with and without calibrations; half as much again of any changes rmse by at most 2 %.
DEVIATION, OWN_DEVIATION = 0.2, 0.12
DEPTH_REACH = 0.4  # of log depth, likewise: what stands before a wall is kept apart from it
GATE = 3.0  # standard deviations that a patch's points may be off what all others say
MOST_PATCHES = 100  # with points that are looked at, evenly taken: the time grows with their cube
_ROUNDS = 3


class Surroundings(NamedTuple):
    """What the points of one image make of it, beside one scale.

    Attributes:
        factor: (h, w) by which the depth of patches is multiplied.
        unsure: (h, w) by which its relative standard deviation is: at most 1.
        said: (N,) what the points in other patches say of log(true depth / depth) at each point.
        left: (N,) what is left of the relative standard deviation there, likewise.

    """

    factor: Float32
    unsure: Float32
    said: Float64
    left: Float64

    def part(self, share: float) -> Surroundings:
        """Some of it, from 0, nothing, to 1, all."""
        open_ = (1.0 - share) ** 2
        return Surroundings(
            self.factor ** np.float32(share),
            np.sqrt(open_ + (1.0 - open_) * self.unsure ** 2).astype(np.float32),
            share * self.said, np.sqrt(open_ + (1.0 - open_) * self.left ** 2))


def correct_around(
    patches: NDArray[np.intp], residuals: Float64, trusted: NDArray[np.bool_],
    patch_depth: Float32, image: Size, reach: float,
) -> Surroundings | None:
    """Find what points say of the patches around them.

    Args:
        patches: (N,) which patch each point lies in, row by row.
        residuals: (N,) log(true depth / depth).
        trusted: (N,) which of them count; how far off the others are is told, too.
        patch_depth: (h, w) metres; NaN where there is none.
        image: (height, width) of what they tile.
        reach: in parts of the image's width.

    Returns:
        None where no point is to be trusted.

    """
    shape, places = patch_depth.shape, _places(patch_depth, image, reach)
    seen, of = np.unique(patches, return_inverse=True)
    count = np.bincount(of[trusted], minlength=len(seen))
    mean = np.bincount(of[trusted], residuals[trusted], len(seen)) / np.maximum(count, 1)
    # One point of a patch does not stand for all of it; a thousand are not the whole of it either.
    noise = OWN_DEVIATION ** 2 * (0.5 + 0.5 / np.maximum(count, 1))
    used = np.flatnonzero(count)
    used = used[::max(1, -(-len(used) // MOST_PATCHES))]
    for left in reversed(range(_ROUNDS)):
        if not len(used):
            return None
        everywhere = _covariance(places, places[seen[used]])
        inverse = np.linalg.inv(everywhere[seen[used]] + np.diag(noise[used]))
        weights, variance = inverse @ mean[used], 1 / np.diag(inverse)
        error = weights * variance
        agree = error ** 2 <= GATE ** 2 * variance
        if agree.all() or not left:
            break
        used = used[agree]
    log_factor = everywhere @ weights
    # Variance of what neighbours have in common that the points leave.
    unknown = DEVIATION ** 2 - ((everywhere @ inverse) * everywhere).sum(axis=1)
    said, unknown_there = log_factor[seen], unknown[seen]
    said[used], unknown_there[used] = mean[used] - error, variance - noise[used]
    return Surroundings(
        np.exp(log_factor).reshape(shape).astype(np.float32),
        _share(unknown).reshape(shape).astype(np.float32), said[of], _share(unknown_there)[of])


def _places(patch_depth: Float32, image: Size, reach: float) -> Float64:
    """(P, 3) place and log depth of every patch, in units of what errors are alike within."""
    h, w = patch_depth.shape
    rows, columns = np.indices((h, w))
    with np.errstate(invalid='ignore', divide='ignore'):
        log_depth = np.log(patch_depth.astype(np.float64))
    places = np.stack([columns / (w * reach), rows * image[0] / (h * reach * image[1]),
                       log_depth / DEPTH_REACH], axis=-1).reshape(-1, 3)
    return np.where(np.isfinite(places), places, 0.0)  # where there is no depth to be corrected


def _covariance(places: Float64, others: Float64) -> Float64:
    """(P, 3) and (G, 3) -> (P, G)."""
    apart = ((places[:, None] - others) ** 2).sum(axis=-1)
    covariance: Float64 = DEVIATION ** 2 * np.exp(-0.5 * apart)
    return covariance


def _share(unknown: Float64) -> Float64:
    """Of the standard deviation that is left."""
    share: Float64 = np.sqrt((OWN_DEVIATION ** 2 + np.maximum(unknown, 0.0)) / (
        OWN_DEVIATION ** 2 + DEVIATION ** 2))
    return share
