# SPDX-License-Identifier: Apache-2.0
"""The scale of depth at run time, from points of another sensor with known depth.

Most of the network's error in a place is one factor, the scale: the robust mean of
log(true depth / depth before the anchor) over the patches whose points agree. Each patch
has one vote, which its points divide: a thousand points in one patch tell no more of the image
than one of them, and may all be outliers, as on a part of the robot. A Kalman filter smooths the
scale's logarithm.
The correction is a factor without an offset, since points that span little depth, as those of one
laser scan, do not determine both. A Gaussian process interpolates the residuals around the points.

The same points calibrate the standard deviation. Its inflation rises when more points than
`MISS_RATE` are outside the error bars, and falls when fewer do (adaptive conformal inference,
Gibbs and Candès 2021): over many images coverage at the points is right for any distribution of
errors, and elsewhere as far as the points represent the image.
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

MIN_POINTS = 5
MAX_POINTS = 1000  # in an image; of more, every n-th counts
MIN_AGREEING_FRACTION = 0.5  # of the votes that must agree
GATE = 3.0  # standard deviations beyond which a point or an image's scale is an outlier
# Likewise for the points that measure errors: a large error must not count as an outlier, or the
# error bars become too short.
ERROR_GATE = 4.0
# Prior standard deviation of log depth at a point, which has the weight of `MIN_POINTS` points
# beside their scatter; and the smallest standard deviation of an image's log scale.
POINT_STDDEV, MIN_STDDEV = 0.25, 0.02
PRIOR_STDDEV = 0.5  # of the log scale, before any points
MAX_SCALE = 100.0  # or one over it: beyond, points and depth are unrelated
UNUSUAL_SCALE = 3.0  # or one over it: beyond, the sensor's unit or place may be wrong
DRIFT = 0.05  # standard deviation by which the log scale wanders in one second
MAX_STEP = 1.05  # between the scales of two images
# Depth +- 1.645 standard deviations is to contain 90 % of the truth.
MISS_RATE, QUANTILE = 0.1, 1.645
PATIENCE = 10  # images that agree on another scale, after which the filter accepts it
# Step of the log inflation per excess miss rate of an image with many points; half of that with
# `MIN_POINTS`. Chosen on ten drives with a change of height, none of them in docs/robots.md: with
# a quarter of it coverage takes rooms to recover; half as much again brings nothing, and error
# bars flicker more.
INFLATION_RATE = 0.4
MAX_INFLATION = 20.0
# Rate at which the gain of the local correction adapts. In drives through other rooms than those
# of docs/robots.md the gain makes depth 1 to 6 % better where 40 % of the points are wrong, and no
# worse where none is.
GAIN_RATE = 0.05
# Standard deviations of the residuals of log depth: of the Gaussian process, which neighbours have
# in common, and of each patch alone. They and the reach come from rendered rooms outside of
# docs/robots.md, through four cameras, with and without calibrations; half as much again of any
# changes rmse by at most 2 %.
COMMON_STDDEV, PATCH_STDDEV = 0.2, 0.12
DEPTH_REACH = 0.4  # correlation length in log depth: separates an object from the wall behind it
# Time constant of the local correction without new points, long enough for a sensor of 2 Hz; and
# the fraction below which it is dropped.
DECAY_SECONDS, MIN_DECAY = 1.0, 0.01
MAX_PATCHES = 100  # with points; of more, every n-th counts, since the time is cubic in them
_ITERATIONS = 3

_Local = tuple['Float32', 'Float32']  # `patch_scale` and `patch_inflation` of an `Adjustment`


class Adjustment(NamedTuple):
    """Factors by which an anchor adjusts the depth of one image; None stands for 1."""

    scale: float = 1.0  # of depth and its standard deviation
    inflation: float = 1.0  # of the standard deviation, besides
    patch_scale: Float32 | None = None  # (h, w), of depth and its standard deviation, besides
    patch_inflation: Float32 | None = None  # (h, w), of the standard deviation, at most 1


class Points(NamedTuple):
    """Points of an image with known depth: float64 arrays of one length.

    The filter ignores values that are not finite, and points outside of the image or behind the
    camera.
    """

    u: Float64  # columns in pixels, whose centres are at integers
    v: Float64  # rows
    z: Float64  # metres along the optical axis


@dataclass(frozen=True, eq=False)
class State:
    """State of a `ScaleFilter` after an image; immutable, so that any thread may read it.

    Attributes:
        scale: factor of depth.
        inflation: factor of the standard deviation.
        variance: of the log scale.
        agreeing_fraction: fraction of the votes that agree, in the last image with enough points;
            NaN before. Each patch with points has one vote.
        points: number of points in the image.
        patches: number of patches that contain them.
        condition: why the filter ignores the image's points; '' if it does not.
        anchored: whether the scale rests on points, that is they were followed not longer ago
            than the filter's timeout.
        time: of the image, in seconds; None before the first.
        silence: seconds since the last update by points.
        log_scale: state of the Kalman filter, which `scale` approaches in small steps.
        log_inflation: logarithm of the next image's inflation.
        local: `patch_scale` and `patch_inflation` of the image's `Adjustment`.
        gain_moments: covariance of the points' errors and predictions, and the predictions' mean
            square; their ratio is `local_gain`.

    """

    scale: float = 1.0
    inflation: float = 1.0
    variance: float = PRIOR_STDDEV ** 2
    agreeing_fraction: float = math.nan
    points: int = 0
    patches: int = 0
    condition: str = NO_POINTS
    anchored: bool = False
    time: float | None = None
    silence: float = math.inf
    log_scale: float = 0.0
    log_inflation: float = 0.0
    local: _Local | None = None
    gain_moments: tuple[float, float] = ((COMMON_STDDEV / 2) ** 2, (COMMON_STDDEV / 2) ** 2)

    @property
    def agreement(self) -> str:
        """Scale and agreement of the points, for messages."""
        return (f'scale {self.scale:.3g}, {100 * self.agreeing_fraction:.0f} % of {self.points} '
                f'points in {self.patches} patches agree')

    @property
    def is_unusual(self) -> bool:
        """Whether the scale rests on points, but is beyond `UNUSUAL_SCALE`."""
        return self.anchored and abs(math.log(self.scale)) > math.log(UNUSUAL_SCALE)

    @property
    def local_gain(self) -> float:
        """Part of the local correction that was best, in hindsight, at points in other patches."""
        covariance, variance = self.gain_moments
        return min(max(covariance / variance, 0.0), 1.0)


class ScaleFilter:
    """Kalman filter of one camera's depth scale, with an adaptive inflation of its error bars.

    Without usable points the scale holds for `timeout`, with growing variance. Then the filter is
    no longer anchored: the scale returns to 1, with the timeout as its time constant, until points
    of any scale up to `MAX_SCALE` come. The inflation holds. The first image may have any such
    scale; from then on the ratio of the scales of two images is at most `MAX_STEP`. The local
    correction decays, see `DECAY_SECONDS`.

    Attributes:
        state: after the last predicted image; the caller replaces it by what `adjust` returns.

    """

    def __init__(
        self, timeout: float = 5.0, min_points: int = MIN_POINTS, lowest: float = 1.0,
        reach: float = ANCHOR_REACH,
    ) -> None:
        """Begin with a scale of 1 and its prior variance.

        Args:
            timeout: seconds without usable points after which the filter is no longer anchored.
            min_points: number of points of an image that must agree; 1 for a single beam.
            lowest: fraction of the points that count, those with the smallest true depth over
                depth: below 1 for the floor, on which objects stand, and below which nothing is.
            reach: correlation length of the local correction, in image widths; 0: none.

        """
        self._timeout, self._min_points = timeout, min_points
        self._lowest, self._reach = lowest, reach
        self.state = State()

    def adjust(
        self, time: float, points: Points | None, patch_depth: Float32,
        patch_stddev: Float32 | None, image: Size, upsampling: str = 'centered',
        *, are_new: bool = True, age: float = 0.0,
    ) -> tuple[Adjustment, State]:
        """Compute the adjustment of an image from its points, without changing the filter.

        Args:
            time: of the image, in seconds; an earlier one than the last image's counts as that.
            points: points of the image, or None.
            patch_depth: (h, w) metres, without the anchor's scale.
            patch_stddev: (h, w) metres, likewise, or None.
            image: (height, width) of the image.
            upsampling: interpolation from patches to pixels.
            are_new: no earlier image had these points. Others have updated the scale already, and
                only give a local correction.
            age: seconds between points and image in which the camera may have moved unnoticed.

        Returns:
            The adjustment, and the state after the image. These points update the scale of this
            image, and the inflation of the next.

        """
        last = self.state
        max_step = math.inf if last.time is None else math.log(MAX_STEP)
        elapsed = 0.0 if last.time is None else max(0.0, time - last.time)
        silence = last.silence + elapsed
        state = replace(
            last, time=time, silence=silence, inflation=math.exp(last.log_inflation),
            variance=PRIOR_STDDEV ** 2 if silence > self._timeout else
            min(last.variance + DRIFT ** 2 * elapsed, PRIOR_STDDEV ** 2))
        errors, depth, stddevs, patches = compare_points(
            points, patch_depth, patch_stddev, image, upsampling, self._lowest)
        measurement, variance, share, z_scores, condition = estimate_scale(
            errors, depth, patches, self._min_points)
        state = replace(state, condition=condition) if condition else self._update_scale(
            state, measurement, variance + DRIFT ** 2 * age, are_new=are_new)
        log_scale = state.log_scale
        if state.silence > self._timeout:
            log_scale *= math.exp(-elapsed / self._timeout)
        last_log_scale = math.log(last.scale)
        published = last_log_scale + min(max(log_scale - last_log_scale, -max_step), max_step)
        errors, votes, agree = errors - published, point_votes(patches), z_scores <= GATE
        local, moments = _decay(last.local, elapsed, patch_depth.shape), last.gain_moments
        if self._reach and not state.condition and (fit := interpolate_residuals(
                patches, errors, agree, patch_depth, image, self._reach)) is not None:
            factor, inflation, predictions, inflation_at_points = fit
            gain = last.local_gain
            local = _decay((factor ** np.float32(gain), _partial_inflation(gain, inflation)),
                           age, factor.shape)
            if are_new:  # learn the gain from the predictions of points in other patches
                covariance, power = (
                    mean + GAIN_RATE * (np.average(values[agree], weights=votes[agree]) - mean)
                    for values, mean in zip(
                        (errors * predictions, predictions ** 2), moments, strict=True))
                moments = float(covariance), float(power)
                errors = errors - gain * predictions
                stddevs = None if stddevs is None else \
                    stddevs * _partial_inflation(gain, inflation_at_points)
        state = replace(
            state, scale=math.exp(published), log_scale=log_scale, local=local,
            gain_moments=moments,
            agreeing_fraction=last.agreeing_fraction if math.isnan(share) else share,
            points=len(z_scores), patches=round(votes.sum()),
            anchored=state.silence <= self._timeout)
        if are_new and not condition and stddevs is not None:
            state = replace(state, log_inflation=_update_inflation(
                last.log_inflation, np.abs(errors), stddevs,
                np.where(z_scores <= ERROR_GATE, votes, 0.0)))
        return Adjustment(state.scale, state.inflation, *(local or (None, None))), state

    def _update_scale(
        self, state: State, measurement: float, variance: float, *, are_new: bool,
    ) -> State:
        """Update the Kalman filter if the points are new, or set `condition`: why it cannot."""
        innovation, variance = measurement - state.log_scale, state.variance + variance
        if abs(measurement) > math.log(MAX_SCALE):
            return replace(state, condition=JUMP)
        # Without an anchor any scale may come.
        if state.silence <= self._timeout and innovation ** 2 > GATE ** 2 * variance:
            growth = (innovation / GATE) ** 2 / PATIENCE if are_new else 0.0
            return replace(state, condition=JUMP,
                           variance=min(state.variance + growth, PRIOR_STDDEV ** 2))
        if not are_new:
            return replace(state, condition='')
        gain = state.variance / variance
        return replace(state, condition='', silence=0.0, variance=state.variance * (1.0 - gain),
                       log_scale=state.log_scale + gain * innovation)


def _update_inflation(
    log_inflation: float, errors: Float64, stddevs: Float64, votes: Float64,
) -> float:
    """Adapt the log inflation to the miss rate (adaptive conformal inference)."""
    votes = np.where(stddevs > 0.0, votes, 0.0)
    count = float(votes.sum())
    if not count:
        return log_inflation
    limit = QUANTILE * math.exp(log_inflation) * stddevs
    miss_rate = float(votes @ (errors > limit)) / count
    bound, rate = math.log(MAX_INFLATION), INFLATION_RATE * count / (count + MIN_POINTS)
    return min(max(log_inflation + rate * (miss_rate - MISS_RATE), -bound), bound)


def compare_points(
    points: Points | None, patch_depth: Float32, patch_stddev: Float32 | None, image: Size,
    upsampling: str = 'centered', lowest: float = 1.0,
) -> tuple[Float64, Float64, Float64 | None, NDArray[np.intp]]:
    """Compare the points with depth, those that have any, and at most `MAX_POINTS` of them.

    Arguments are as in `ScaleFilter`. Returns for every point: log(true depth / depth), depth in
    metres, the standard deviation of log depth or None, and the index of its patch, row by row.
    """
    u, v, z = (np.empty(0),) * 3 if points is None else (
        np.asarray(values, np.float64)[::max(1, -(-len(points.z) // MAX_POINTS))]
        for values in points)
    depth = sample_patches(patch_depth, image, u, v, upsampling)
    with np.errstate(invalid='ignore', divide='ignore'):
        log_ratios = np.log(z / depth)
    valid = np.isfinite(log_ratios)
    if lowest < 1.0 and valid.any():
        valid &= log_ratios <= np.quantile(log_ratios[valid], lowest)
    u, v, depth, log_ratios = u[valid], v[valid], depth[valid], log_ratios[valid]
    stddevs = None if patch_stddev is None else \
        sample_patches(patch_stddev, image, u, v, upsampling) / depth
    h, w = patch_depth.shape
    rows, columns = (v + 0.5) * (h / image[0]), (u + 0.5) * (w / image[1])
    return log_ratios, depth, stddevs, rows.astype(np.intp) * w + columns.astype(np.intp)


def sample_patches(
    patches: Float32, image: Size, u: Float64, v: Float64, upsampling: str = 'centered',
) -> Float64:
    """Interpolate (h, w) patches at (N,) points of the image, as `readout.upsample` does.

    NaN outside of the image and where the nearest patch is NaN; elsewhere that has no weight.
    """
    inside = (u >= -0.5) & (u < image[1] - 0.5) & (v >= -0.5) & (v < image[0] - 0.5)

    def places(pixels: Float64, length: int, count: int) -> tuple[Float64, NDArray[np.intp]]:
        """Convert pixels to coordinates among `count` patches, and their integer part."""
        pixels = np.where(inside, pixels, 0.0)  # NaN is outside, too
        place = pixels * ((count - 1) / max(length - 1, 1)) if upsampling == 'bilinear' else \
            (pixels + 0.5) * (count / length) - 0.5
        place = np.clip(place, 0.0, count - 1.0)
        place = np.floor(place + 0.5) if upsampling == 'patch' else place
        return place, place.astype(np.intp)

    h, w = patches.shape
    (x, x0), (y, y0) = places(u, image[1], w), places(v, image[0], h)
    x1, y1 = np.minimum(x0 + 1, w - 1), np.minimum(y0 + 1, h - 1)
    x, y = x - x0, y - y0
    nearest = patches[np.where(y < 0.5, y0, y1), np.where(x < 0.5, x0, x1)]
    corners = patches[[y0, y0, y1, y1], [x0, x1, x0, x1]]
    finite = np.isfinite(corners)
    weights = finite * [(1.0 - x) * (1.0 - y), x * (1.0 - y), (1.0 - x) * y, x * y]
    with np.errstate(invalid='ignore'):
        mean = (weights * np.where(finite, corners, 0.0)).sum(axis=0) / weights.sum(axis=0)
    return np.where(inside & np.isfinite(nearest), mean, np.nan)


def estimate_scale(
    log_ratios: Float64, depth: Float64, patches: NDArray[np.intp], min_points: int = MIN_POINTS,
) -> tuple[float, float, float, Float64, str]:
    """Estimate the scale on which most of an image's patches with points agree.

    It starts from the shortest interval with half of the votes (shorth), which outliers on one
    side, such as points behind a visible surface, do not shift; goes on to the median of the
    points within the gate; and ends with their mean, weighted by Tukey's biweight and by depth.

    Returns the log scale and its variance; the fraction of the votes that agree; each point's
    z-score, its distance from the scale in standard deviations; and why the scale is unusable,
    or ''.
    """
    count, votes = len(log_ratios), point_votes(patches)
    if count < max(1, min_points):
        return 0.0, math.inf, math.nan, np.zeros(count), FEW_POINTS if count else NO_POINTS
    agree = np.zeros(count, bool)
    agree[_shortest_half(log_ratios, votes)] = True
    for _ in range(_ITERATIONS):
        center = _median(log_ratios[agree], votes[agree])
        scatter = (1.4826 * _median(np.abs(log_ratios[agree] - center), votes[agree])) ** 2
        independent = float(votes[agree].sum())
        deviation = math.sqrt((independent * scatter + MIN_POINTS * POINT_STDDEV ** 2)
                              / (independent + MIN_POINTS))
        z_scores = np.abs(log_ratios - center) / deviation
        agree = z_scores <= GATE
    share = float(votes[agree].sum() / votes.sum())
    if agree.sum() < min_points or share < MIN_AGREEING_FRACTION:
        return (center, math.inf, share, z_scores,
                CONTRADICTORY if share < MIN_AGREEING_FRACTION else FEW_POINTS)
    weights = votes * depth * np.maximum(1.0 - (z_scores / GATE) ** 2, 0.0) ** 2
    weights /= weights.sum()
    # The points of a patch share its error.
    variance = np.sum(np.bincount(patches, weights) ** 2) * deviation ** 2 + MIN_STDDEV ** 2
    return float(weights @ log_ratios), float(variance), share, z_scores, ''


def point_votes(patches: NDArray[np.intp]) -> Float64:
    """Divide the one vote of each patch among its points: (N,)."""
    _, index, counts = np.unique(patches, return_inverse=True, return_counts=True)
    return 1.0 / counts[index]


def _shortest_half(values: Float64, votes: Float64) -> NDArray[np.intp]:
    """Find the values in the shortest interval with more than half of the votes (shorth)."""
    order = np.argsort(values)
    total = np.cumsum(votes[order])
    ends = np.searchsorted(total, total - votes[order] + total[-1] / 2, side='right')
    starts = np.flatnonzero(ends < len(order))
    lengths = values[order[ends[starts]]] - values[order[starts]]
    start = starts[np.argmin(lengths)]
    return order[start:ends[start] + 1]


def _median(values: Float64, votes: Float64) -> float:
    """Compute the weighted median; between two values their mean."""
    order = np.argsort(values)
    total = np.cumsum(votes[order])
    middle = [min(np.searchsorted(total, total[-1] / 2, side=side), len(order) - 1)
              for side in ('left', 'right')]
    return float(values[order[middle]].mean())


def interpolate_residuals(
    patches: NDArray[np.intp], residuals: Float64, trusted: NDArray[np.bool_],
    patch_depth: Float32, image: Size, reach: float,
) -> tuple[Float32, Float32, Float64, Float64] | None:
    """Interpolate the residuals of the scale at points by Gaussian process regression.

    The Gaussian process over place and log depth (Rasmussen and Williams, Gaussian Processes for
    Machine Learning, 2006, eqs. 2.25 and 2.26) models what the scale leaves of log(true depth /
    depth), since the error is common to a whole surface. Its mean vanishes far from every point.
    Leave-one-out predictions (their eq. 5.12) reveal outliers, and the size of errors between the
    points.

    Args:
        patches: (N,) index of each point's patch, row by row.
        residuals: (N,) log(true depth / depth).
        trusted: (N,) mask of the points to learn from; the others get predictions, too.
        patch_depth: (h, w) metres, or NaN.
        image: (height, width) of the image that the patches tile.
        reach: correlation length in image widths.

    Returns:
        (h, w) factors of depth and of its relative standard deviation; (N,) log factor that the
        points in other patches predict for each point, and the factor of its standard deviation
        there. None without a trusted point.

    """
    (h, w), rows_and_columns = patch_depth.shape, np.indices(patch_depth.shape)
    with np.errstate(invalid='ignore', divide='ignore'):
        log_depth = np.log(patch_depth.astype(np.float64))
    # (P, 3) of every patch, in correlation lengths.
    places = np.stack([
        rows_and_columns[1] / (w * reach),
        rows_and_columns[0] * image[0] / (h * reach * image[1]),
        np.where(np.isfinite(log_depth), log_depth, 0.0) / DEPTH_REACH], axis=-1).reshape(-1, 3)
    unique, index = np.unique(patches, return_inverse=True)
    count = np.bincount(index[trusted], minlength=len(unique))
    mean = np.bincount(index[trusted], residuals[trusted], len(unique)) / np.maximum(count, 1)
    # Neither one point of a patch nor a thousand tell the mean error of the patch exactly.
    noise = PATCH_STDDEV ** 2 * (0.5 + 0.5 / np.maximum(count, 1))
    training = np.flatnonzero(count)
    training = training[::max(1, -(-len(training) // MAX_PATCHES))]
    for iterations_left in reversed(range(_ITERATIONS)):
        if not len(training):
            return None
        squares = ((places[:, None] - places[unique[training]]) ** 2).sum(axis=-1)
        covariance = COMMON_STDDEV ** 2 * np.exp(-0.5 * squares)  # (P, G)
        inverse = np.linalg.inv(covariance[unique[training]] + np.diag(noise[training]))
        weights, loo_variance = inverse @ mean[training], 1 / np.diag(inverse)
        loo_error = weights * loo_variance
        agree = loo_error ** 2 <= GATE ** 2 * loo_variance
        if agree.all() or not iterations_left:
            break
        training = training[agree]
    log_factor = covariance @ weights
    posterior = COMMON_STDDEV ** 2 - ((covariance @ inverse) * covariance).sum(axis=1)
    predictions, variance = log_factor[unique], posterior[unique]
    predictions[training] = mean[training] - loo_error
    variance[training] = loo_variance - noise[training]
    inflation, inflation_at_points = (
        np.sqrt((PATCH_STDDEV ** 2 + np.maximum(values, 0.0))
                / (PATCH_STDDEV ** 2 + COMMON_STDDEV ** 2)) for values in (posterior, variance))
    return (np.exp(log_factor).reshape(h, w).astype(np.float32),
            inflation.reshape(h, w).astype(np.float32), predictions[index],
            inflation_at_points[index])


def _decay(local: _Local | None, seconds: float, shape: Size) -> _Local | None:
    """Let a local correction decay with time; None if nothing is left.

    The Gaussian process has an exponential correlation in time, too: the view of a standing robot
    persists, that of a moving one goes by.
    """
    if local is None or local[0].shape != shape:
        return None
    decay = math.exp(-seconds / DECAY_SECONDS)
    factor, inflation = local
    return None if decay < MIN_DECAY else (
        factor ** np.float32(decay),
        np.sqrt(1.0 - (1.0 - inflation ** 2) * np.float32(decay ** 2)))


def _partial_inflation(gain: float, inflation: NDArray[np.floating]) -> NDArray[np.floating]:
    """Compute the inflation if only the part `gain` of the correction is applied."""
    rest = (1.0 - gain) ** 2
    variance = rest + (1.0 - rest) * inflation ** 2
    partial: NDArray[np.floating] = np.sqrt(variance).astype(inflation.dtype)
    return partial
