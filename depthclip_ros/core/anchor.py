# SPDX-License-Identifier: Apache-2.0
"""The scale of depth at run time, from a few points whose true depth is known.

What a network gets wrong about a place it gets wrong mostly by one factor: the middle of
log(true depth / depth by language) over the patches whose points agree. Every patch has one vote,
which its points share: a thousand points in one patch know no more of the image than one of them,
and may all be wrong, as on a part of the robot. A Kalman filter follows the scale's
logarithm, so that it neither follows every image's noise nor jumps. It is a factor alone: points
that span little depth, as those of one laser scan, could not tell a shift from it. What it leaves,
they correct around them.

The same points tell whether the standard deviation that goes along is right. Its inflation is
raised when more of them miss than should, and lowered when fewer do (adaptive conformal
inference, Gibbs and Candès 2021): in the long run the share is right at the points, whatever the
errors' distribution. Elsewhere in the image it is as right as they stand for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .config import ANCHOR_REACH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .config import Size

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

NO_POINTS = 'no points'
FEW_POINTS = 'too few points'
CONTRADICTORY = 'contradictory points'
JUMP = 'scale jumped'

LEAST_POINTS = 5
MOST_POINTS = 1000  # looked at in an image, evenly taken
LEAST_SHARE = 0.5  # of the votes that must agree
GATE = 3.0  # standard deviations, for points and for what an image says
# Likewise for the points that tell how large errors are: large errors must not be taken for
# outliers, or the error bars come out too short.
ERROR_GATE = 4.0
# Of the logarithm of depth: what is assumed of a single point, and weighs as much as
# `LEAST_POINTS` points beside what their scatter says; and the least error of what an image says.
POINT_DEVIATION, LEAST_DEVIATION = 0.25, 0.02
PRIOR_DEVIATION = 0.5  # of the logarithm of a scale of which nothing is known
MOST_SCALE = 100.0  # or one over it: beyond, points and depth have nothing to do with each other
UNUSUAL_SCALE = 3.0  # or one over it: beyond, the sensor's unit or place may be wrong
DRIFT = 0.05  # by which the logarithm of the scale wanders in one second
MOST_STEP = 1.05  # between the scales of two images
# Depth +- 1.645 standard deviations is to hold 90 % of the truth.
MISSES, QUANTILE = 0.1, 1.645
PATIENCE = 10  # images that say the same of another scale, after which it is believed
# Of the logarithm of the inflation, for each image's share of misses, with many points; with
# `LEAST_POINTS` it is half of that. Ten drives with a change of height, none of them in
# docs/robots.md, chose it: with a quarter of it coverage takes rooms to come back, and half as
# much again makes it no better, and error bars flicker more.
INFLATION_RATE = 0.4
MOST_INFLATION = 20.0
# By which the share of what points say of their surroundings follows each image's points. In
# drives through other rooms than those of docs/robots.md depth is 1 to 6 % better with a share
# than with all of it where 40 % of the points are wrong, and as good where none is.
SHARE_RATE = 0.05
# Standard deviations of log depth: what neighbours have in common, and what is a patch's own. They
# and the reach come from rendered rooms that docs/robots.md does not show, through four cameras,
# with and without calibrations; half as much again of any changes rmse by at most 2 %.
DEVIATION, OWN_DEVIATION = 0.2, 0.12
DEPTH_REACH = 0.4  # of log depth, likewise: what stands before a wall is kept apart from it
# Seconds in which what points have said around them falls to a third without new ones, and the
# part of it below which there is none: a sensor of 2 Hz leaves little to see of its rhythm.
HELD, LEAST_LEFT = 1.0, 0.01
MOST_PATCHES = 100  # with points that are looked at, evenly taken: the time grows with their cube
_ROUNDS = 3


_Around = tuple['Float32', 'Float32']  # as of an `Adjustment`: `around` and `unsure`


class Adjustment(NamedTuple):
    """What an anchor makes of the depth of one image."""

    scale: float = 1.0  # depth is multiplied by it, and its standard deviation
    inflation: float = 1.0  # the standard deviation once more
    around: Float32 | None = None  # (h, w) depth once more, patch by patch
    unsure: Float32 | None = None  # (h, w) its relative standard deviation once more: at most 1


class Points(NamedTuple):
    """Places in an image whose depth is known: float64 arrays of one length.

    Others than numbers are left out, and so is what lies outside of the image or not before the
    camera.
    """

    u: Float64  # columns in pixels, whose centres are at integers
    v: Float64  # rows
    z: Float64  # metres along the optical axis


@dataclass(frozen=True, eq=False)
class State:
    """What a `ScaleFilter` knows after an image; replaced as a whole, so that any thread may look.

    Attributes:
        scale: by which depth was multiplied.
        inflation: of the standard deviation.
        variance: of the scale's logarithm.
        share: of the votes that agree, in the last image that had enough points; NaN before. Each
            patch with points has one, and its points have equal parts of it.
        points: in the image.
        patches: in which they are.
        condition: why that image's points are not followed; '' if they are.
        anchored: whether the scale rests on points, that is they were followed not longer ago
            than the filter's timeout.
        time: of the image, in seconds; None before the first.
        silence: seconds since points were followed.
        log_scale: logarithm of the scale that points say, which `scale` follows in small steps.
        log_inflation: logarithm of the next image's inflation.
        correction: `around` and `unsure` of the image's `Adjustment`.
        helped: means over points, whose ratio is the share of the surroundings that is taken.

    """

    scale: float = 1.0
    inflation: float = 1.0
    variance: float = PRIOR_DEVIATION ** 2
    share: float = math.nan
    points: int = 0
    patches: int = 0
    condition: str = NO_POINTS
    anchored: bool = False
    time: float | None = None
    silence: float = math.inf
    log_scale: float = 0.0
    log_inflation: float = 0.0
    correction: _Around | None = None
    helped: tuple[float, float] = ((DEVIATION / 2) ** 2, (DEVIATION / 2) ** 2)

    @property
    def agreement(self) -> str:
        """What the points say, in numbers."""
        return (f'scale {self.scale:.3g}, {100 * self.share:.0f} % of {self.points} points in '
                f'{self.patches} patches agree')

    @property
    def around(self) -> float:
        """Root mean square of the logarithm of what was corrected beside the scale; 0: nothing."""
        return 0.0 if self.correction is None else math.sqrt(
            np.mean(np.log(self.correction[0]) ** 2))

    @property
    def unusual(self) -> bool:
        """Whether the scale rests on points, but is larger or smaller than one expects."""
        return self.anchored and abs(math.log(self.scale)) > math.log(UNUSUAL_SCALE)

    @property
    def share_around(self) -> float:
        """Of the surroundings, what would have been best for points that they did not know."""
        right, expected = self.helped
        return min(max(right / expected, 0.0), 1.0)


class ScaleFilter:
    """Follows the scale of one camera's depth from image to image, and the size of its errors.

    Where points fail, the scale is held for `timeout`, ever less sure; after that the anchor is
    let go: the scale returns to 1, with the timeout as its time constant, until points can be
    followed again, whatever scale up to `MOST_SCALE` they say. The inflation stays. So may the
    first image take any such scale; from then on none has more than `MOST_STEP` times that of the
    image before, or less than 1 / `MOST_STEP` of it. What points have said of the patches around
    them is held, too, and fades.

    Attributes:
        state: after the last image that was answered; whoever answers images replaces it.

    """

    def __init__(
        self, timeout: float = 5.0, least: int = LEAST_POINTS, lowest: float = 1.0,
        reach: float = ANCHOR_REACH,
    ) -> None:
        """Begin with a scale of 1, of which nothing is known.

        Args:
            timeout: seconds without points that can be followed, until the anchor is let go.
            least: so many points of an image must agree; 1 for a sensor of one beam.
            lowest: part of the points that counts, those by which depth is largest: less than 1
                for the floor, which things stand on, and nothing is below.
            reach: parts of the image's width, within which points correct what the scale leaves;
                0: the scale is all.

        """
        self._timeout, self._least = timeout, least
        self._lowest, self._reach = lowest, reach
        self.state = State()

    def adjust(
        self, time: float, points: Points | None, patch_depth: Float32,
        patch_stddev: Float32 | None, image: Size, upsampling: str = 'centered',
        *, are_new: bool = True, age: float = 0.0,
    ) -> tuple[Adjustment, State]:
        """Weigh one image's points; nothing changes, so that an image may be tried again.

        Args:
            time: of the image, in seconds; one before the last image's counts as that.
            points: None where there are none.
            patch_depth: (h, w) metres, without the anchor's scale.
            patch_stddev: (h, w) metres, likewise; None where it is not known.
            image: its (height, width).
            upsampling: how pixels get their depth from the patches.
            are_new: whether the points were not given with an image before. Those that were have
                had their part in the scale, and only correct what is around them.
            age: seconds between points and image in which the camera may have moved unnoticed.

        Returns:
            What to multiply with, and the state for when the image is answered. These points have
            their part in the scale; of the inflation, they have it in the next image's.

        """
        last = self.state
        most = math.inf if last.time is None else math.log(MOST_STEP)
        passed = 0.0 if last.time is None else max(0.0, time - last.time)
        silence = last.silence + passed
        state = replace(
            last, time=time, silence=silence, inflation=math.exp(last.log_inflation),
            variance=PRIOR_DEVIATION ** 2 if silence > self._timeout else
            min(last.variance + DRIFT ** 2 * passed, PRIOR_DEVIATION ** 2))
        errors, depth, deviations, patches = compare(
            points, patch_depth, patch_stddev, image, upsampling, self._lowest)
        says, variance, share, distances, unusable = weigh(errors, depth, patches, self._least)
        state = replace(state, condition=unusable) if unusable else self._follow(
            state, says, variance + DRIFT ** 2 * age, are_new=are_new)
        log_scale = state.log_scale
        if state.silence > self._timeout:
            log_scale *= math.exp(-passed / self._timeout)
        before = math.log(last.scale)
        published = before + min(max(log_scale - before, -most), most)
        errors, votes, agree = errors - published, votes_of(patches), distances <= GATE
        correction, helped = _faded(last.correction, passed, patch_depth.shape), last.helped
        if self._reach and not state.condition and (found := correct_around(
                patches, errors, agree, patch_depth, image, self._reach)) is not None:
            factor, unsure, expected, left = found
            part = last.share_around
            correction = _faded(
                (factor ** np.float32(part), _blend(part, unsure)), age, factor.shape)
            if are_new:  # learn from what the points in other patches said of each point
                right, square = (
                    mean + SHARE_RATE * (np.average(values[agree], weights=votes[agree]) - mean)
                    for values, mean in zip(
                        (errors * expected, expected ** 2), helped, strict=True))
                helped = float(right), float(square)
                errors = errors - part * expected
                deviations = None if deviations is None else deviations * _blend(part, left)
        state = replace(
            state, scale=math.exp(published), log_scale=log_scale, correction=correction,
            helped=helped, share=last.share if math.isnan(share) else share,
            points=len(distances), patches=round(votes.sum()),
            anchored=state.silence <= self._timeout)
        if are_new and not unusable and deviations is not None:
            state = replace(state, log_inflation=_scored(
                last.log_inflation, np.abs(errors), deviations,
                np.where(distances <= ERROR_GATE, votes, 0.0)))
        return Adjustment(state.scale, state.inflation, *(correction or (None, None))), state

    def _follow(self, state: State, says: float, variance: float, *, are_new: bool) -> State:
        """One step of the Kalman filter, if it is new; the condition is why it is not made."""
        surprise, variance = says - state.log_scale, state.variance + variance
        if abs(says) > math.log(MOST_SCALE):
            return replace(state, condition=JUMP)
        # To an anchor that was let go, or never was, no scale is a surprise.
        if state.silence <= self._timeout and surprise ** 2 > GATE ** 2 * variance:
            doubt = (surprise / GATE) ** 2 / PATIENCE if are_new else 0.0
            return replace(state, condition=JUMP,
                           variance=min(state.variance + doubt, PRIOR_DEVIATION ** 2))
        if not are_new:
            return replace(state, condition='')
        gain = state.variance / variance
        return replace(state, condition='', silence=0.0, variance=state.variance * (1.0 - gain),
                       log_scale=state.log_scale + gain * surprise)


def _scored(
    log_inflation: float, errors: Float64, deviations: Float64, votes: Float64,
) -> float:
    """Follow the share of errors beyond what the standard deviations say."""
    votes = np.where(deviations > 0.0, votes, 0.0)
    count = float(votes.sum())
    if not count:
        return log_inflation
    limit = QUANTILE * math.exp(log_inflation) * deviations
    missed = float(votes @ (errors > limit)) / count
    most, rate = math.log(MOST_INFLATION), INFLATION_RATE * count / (count + LEAST_POINTS)
    return min(max(log_inflation + rate * (missed - MISSES), -most), most)


def compare(
    points: Points | None, patch_depth: Float32, patch_stddev: Float32 | None, image: Size,
    upsampling: str = 'centered', lowest: float = 1.0,
) -> tuple[Float64, Float64, Float64 | None, NDArray[np.intp]]:
    """Find the depth of points; those without one are left out, and of many some, evenly.

    Arguments are as in `ScaleFilter`. Of every point: log(true depth / depth), depth in metres,
    the standard deviation of its logarithm if it is known, and which patch it lies in, row by row.
    """
    u, v, z = (np.empty(0),) * 3 if points is None else (
        np.asarray(values, np.float64)[::max(1, -(-len(points.z) // MOST_POINTS))]
        for values in points)
    depth = sample(patch_depth, image, u, v, upsampling)
    with np.errstate(invalid='ignore', divide='ignore'):
        log_ratios = np.log(z / depth)
    counts = np.isfinite(log_ratios)
    if lowest < 1.0 and counts.any():
        counts &= log_ratios <= np.quantile(log_ratios[counts], lowest)
    u, v, depth, log_ratios = u[counts], v[counts], depth[counts], log_ratios[counts]
    deviations = None if patch_stddev is None else \
        sample(patch_stddev, image, u, v, upsampling) / depth
    h, w = patch_depth.shape
    rows, columns = (v + 0.5) * (h / image[0]), (u + 0.5) * (w / image[1])
    return log_ratios, depth, deviations, rows.astype(np.intp) * w + columns.astype(np.intp)


def sample(
    patches: Float32, image: Size, u: Float64, v: Float64, upsampling: str = 'centered',
) -> Float64:
    """Values of (h, w) patches at (N,) places of the image, as `projection.upsample` gives pixels.

    NaN outside of the image, and where the nearest patch is; elsewhere such a patch has no part.
    """
    inside = (u >= -0.5) & (u < image[1] - 0.5) & (v >= -0.5) & (v < image[0] - 0.5)

    def places(pixels: Float64, length: int, count: int) -> tuple[Float64, NDArray[np.intp]]:
        """Where in a row of patches pixels are, and the patch before; patch 0 is at 0."""
        pixels = np.where(inside, pixels, 0.0)  # NaN is outside, too
        place = pixels * ((count - 1) / max(length - 1, 1)) if upsampling == 'bilinear' else \
            (pixels + 0.5) * (count / length) - 0.5
        place = np.clip(place, 0.0, count - 1.0)
        place = np.floor(place + 0.5) if upsampling == 'patch' else place
        return place, place.astype(np.intp)

    h, w = patches.shape
    (x, left), (y, top) = places(u, image[1], w), places(v, image[0], h)
    right, below = np.minimum(left + 1, w - 1), np.minimum(top + 1, h - 1)
    x, y = x - left, y - top
    nearest = patches[np.where(y < 0.5, top, below), np.where(x < 0.5, left, right)]
    corners = patches[[top, top, below, below], [left, right, left, right]]
    known = np.isfinite(corners)
    weights = known * [(1.0 - x) * (1.0 - y), x * (1.0 - y), (1.0 - x) * y, x * y]
    with np.errstate(invalid='ignore'):
        mean = (weights * np.where(known, corners, 0.0)).sum(axis=0) / weights.sum(axis=0)
    return np.where(inside & np.isfinite(nearest), mean, np.nan)


def weigh(
    log_ratios: Float64, depth: Float64, patches: NDArray[np.intp], least: int = LEAST_POINTS,
) -> tuple[float, float, float, Float64, str]:
    """The scale that most of an image's patches with points agree on.

    The search begins in the middle of the shortest interval that holds half of the votes, where
    outliers on one side, as those behind what the camera sees, do no harm; from there it goes to
    the median of those that agree, and at last to their weighted mean, where they count the less
    the nearer to the gate they are (Tukey's biweight), and the more the deeper they are.

    Returns the logarithm of the scale and its variance; the share of the votes that agree; how
    far each is from the scale, in standard deviations; and why it cannot be used, '' if it can.
    """
    count, votes = len(log_ratios), votes_of(patches)
    if count < max(1, least):
        return 0.0, math.inf, math.nan, np.zeros(count), FEW_POINTS if count else NO_POINTS
    agree = np.zeros(count, bool)
    agree[_shortest_half(log_ratios, votes)] = True
    for _ in range(_ROUNDS):
        center = _median(log_ratios[agree], votes[agree])
        scatter = (1.4826 * _median(np.abs(log_ratios[agree] - center), votes[agree])) ** 2
        independent = float(votes[agree].sum())
        deviation = math.sqrt((independent * scatter + LEAST_POINTS * POINT_DEVIATION ** 2)
                              / (independent + LEAST_POINTS))
        distances = np.abs(log_ratios - center) / deviation
        agree = distances <= GATE
    share = float(votes[agree].sum() / votes.sum())
    if agree.sum() < least or share < LEAST_SHARE:
        return (center, math.inf, share, distances,
                CONTRADICTORY if share < LEAST_SHARE else FEW_POINTS)
    shares = votes * depth * np.maximum(1.0 - (distances / GATE) ** 2, 0.0) ** 2
    shares /= shares.sum()
    # What errs in a patch errs for all of its points.
    variance = np.sum(np.bincount(patches, shares) ** 2) * deviation ** 2 + LEAST_DEVIATION ** 2
    return float(shares @ log_ratios), float(variance), share, distances, ''


def votes_of(patches: NDArray[np.intp]) -> Float64:
    """(N,) part that each point has in the one vote of its patch."""
    _, of, counts = np.unique(patches, return_inverse=True, return_counts=True)
    return 1.0 / counts[of]


def _shortest_half(values: Float64, votes: Float64) -> NDArray[np.intp]:
    """Which values are in the shortest interval that has more than half of the votes."""
    order = np.argsort(values)
    total = np.cumsum(votes[order])
    ends = np.searchsorted(total, total - votes[order] + total[-1] / 2, side='right')
    starts = np.flatnonzero(ends < len(order))
    lengths = values[order[ends[starts]]] - values[order[starts]]
    start = starts[np.argmin(lengths)]
    return order[start:ends[start] + 1]


def _median(values: Float64, votes: Float64) -> float:
    """The value with half of the votes on each side; between two the mean."""
    order = np.argsort(values)
    total = np.cumsum(votes[order])
    middle = [min(np.searchsorted(total, total[-1] / 2, side=side), len(order) - 1)
              for side in ('left', 'right')]
    return float(values[order[middle]].mean())


def correct_around(
    patches: NDArray[np.intp], residuals: Float64, trusted: NDArray[np.bool_],
    patch_depth: Float32, image: Size, reach: float,
) -> tuple[Float32, Float32, Float64, Float64] | None:
    """Find what points say of the patches around them, beyond one scale of the whole image.

    What one scale leaves of log(true depth / depth) is taken as a Gaussian process over place and
    log depth (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eqs. 2.25 and
    2.26): a wall is too near as a whole. It is nothing far from every point. What it would say of
    a point without that one (their eq. 5.12) tells which points are wrong, and how large errors
    are between the points.

    Args:
        patches: (N,) which patch each point lies in, row by row.
        residuals: (N,) log(true depth / depth).
        trusted: (N,) which of them count; how far off the others are is told, too.
        patch_depth: (h, w) metres; NaN where there is none.
        image: (height, width) of what they tile.
        reach: in parts of the image's width.

    Returns:
        (h, w) factors of depth and of its relative standard deviation; (N,) what the points in
        other patches say of each, and the factor of its standard deviation there. None where no
        point is to be trusted.

    """
    (h, w), rows_and_columns = patch_depth.shape, np.indices(patch_depth.shape)
    with np.errstate(invalid='ignore', divide='ignore'):
        log_depth = np.log(patch_depth.astype(np.float64))
    # (P, 3) of every patch, in units of what errors are alike within.
    places = np.stack([
        rows_and_columns[1] / (w * reach),
        rows_and_columns[0] * image[0] / (h * reach * image[1]),
        np.where(np.isfinite(log_depth), log_depth, 0.0) / DEPTH_REACH], axis=-1).reshape(-1, 3)
    seen, of = np.unique(patches, return_inverse=True)
    count = np.bincount(of[trusted], minlength=len(seen))
    mean = np.bincount(of[trusted], residuals[trusted], len(seen)) / np.maximum(count, 1)
    # One point of a patch does not stand for all of it; a thousand are not the whole of it either.
    noise = OWN_DEVIATION ** 2 * (0.5 + 0.5 / np.maximum(count, 1))
    used = np.flatnonzero(count)
    used = used[::max(1, -(-len(used) // MOST_PATCHES))]
    for rounds_left in reversed(range(_ROUNDS)):
        if not len(used):
            return None
        apart = ((places[:, None] - places[seen[used]]) ** 2).sum(axis=-1)
        covariance = DEVIATION ** 2 * np.exp(-0.5 * apart)  # (P, G)
        inverse = np.linalg.inv(covariance[seen[used]] + np.diag(noise[used]))
        weights, variance = inverse @ mean[used], 1 / np.diag(inverse)
        error = weights * variance
        agree = error ** 2 <= GATE ** 2 * variance
        if agree.all() or not rounds_left:
            break
        used = used[agree]
    log_factor = covariance @ weights
    # Variance of what neighbours have in common that the points leave.
    unknown = DEVIATION ** 2 - ((covariance @ inverse) * covariance).sum(axis=1)
    expected, unknown_there = log_factor[seen], unknown[seen]
    expected[used], unknown_there[used] = mean[used] - error, variance - noise[used]
    left, left_there = (
        np.sqrt((OWN_DEVIATION ** 2 + np.maximum(values, 0.0))
                / (OWN_DEVIATION ** 2 + DEVIATION ** 2)) for values in (unknown, unknown_there))
    return (np.exp(log_factor).reshape(h, w).astype(np.float32),
            left.reshape(h, w).astype(np.float32), expected[of], left_there[of])


def _faded(around: _Around | None, seconds: float, shape: Size) -> _Around | None:
    """What is left of what points have said of the patches around them; None if that is nothing.

    In time, too, it is a Gaussian process, whose correlation falls exponentially: what a robot
    that stands still sees stays, and what one sees that moves goes by.
    """
    if around is None or around[0].shape != shape:
        return None
    left = math.exp(-seconds / HELD)
    factor, unsure = around
    return None if left < LEAST_LEFT else (
        factor ** np.float32(left), np.sqrt(1.0 - (1.0 - unsure ** 2) * np.float32(left ** 2)))


def _blend(part: float, left: NDArray[np.floating]) -> NDArray[np.floating]:
    """What is left of a standard deviation where only a part of the correction is taken."""
    open_ = (1.0 - part) ** 2
    blended: NDArray[np.floating] = np.sqrt(open_ + (1.0 - open_) * left ** 2).astype(left.dtype)
    return blended
