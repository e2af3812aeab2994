# SPDX-License-Identifier: Apache-2.0
"""Is a recording fit to calibrate from? What is wrong is refused with its cause and its remedy.

All but the unit is judged without the network: edges of depth lie on edges of the image, at the
same time and in the same place, whatever the weights. Both are taken in 80 x 60 cells without what
the same cell shows on average, so that only what moves counts. The correlation of every image with
every depth map then says whether they belong together. A scanner's line has too few edges for
that: there the words' depth must fit that of its own time better than that of others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from .recordings import gather

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from .recordings import Frame

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

LEAST_FRAMES, LEAST_VIEWS = 30, 4  # three in each of ten blocks
_COLUMNS, _ROWS, _FINE = 80, 60, 2  # cells, and pixels of a cell each way
_STEP = 0.06  # logarithm of depth, from which it is an edge
_GREY = 8.0  # levels below which edges are noise
_VIEW, _SAME_VIEW = (20, 15), 0.95  # pixels in which views are compared, and their correlation
_BLANK = 3.0  # levels of standard deviation
_LEAST_CELLS = 24  # with depth in a frame, of 4800; a scanner's line has up to 80
_SPARSE = 0.05  # share of the cells below which edges of depth say nothing
_FLAT, _ONE_VALUE = 0.01, 0.9  # deviation of log depth, share of pixels with the same depth
_PLAUSIBLE = 0.15, 100.0  # metres, of the median depth
# Times what words say: beyond the first the unit may be wrong, beyond the second it is. Words know
# no more than their bins, so that a hall or a table top may well be beyond the first.
_UNUSUAL, _WRONG = math.log(3.0), math.log(8.0)
_INVERSE = -0.3  # correlation of log depth with what language says
# Standard deviations above what pairs that do not belong together have: of pairs that do, of the
# same by the words and a sparse sensor, and before a certain fault is named.
_CERTAIN, _BY_WORDS, _CLAIM = 5.0, 3.0, 10.0
_OFFSET = 0.08  # seconds; a robot at 0.5 m/s goes 4 cm
_SHIFT = 3  # cells; 4 % of the image
_BETTER = 1.3  # times, that another place must fit better than the right one
# What depth is enlarged by to see whether it fits better; 6 % are as good as none.
_ZOOMS = tuple(float(z) for z in np.geomspace(0.5, 2.0, 25) if abs(z - 1) > 0.06)
# Units of 16-bit files that are usual beside millimetres, in parts of a metre: TUM's, others of
# SLAM, Replica's, KITTI's, tenths of millimetres, centimetres. Depth that is larger or smaller
# than what words say by one of these factors, within 15 %, is taken for that.
_USUAL_UNITS, _LIKE_A_UNIT = (5000.0, 4000.0, 6553.5, 256.0, 10000.0, 100.0), math.log(1.15)
_UNIT_REMEDY = ('Say what one stored unit is with --depth-unit (in metres: 0.001 for millimetres, '
                '1 for metres); bags do not keep it.')


class Refusal(NamedTuple):
    """Why a recording is not used: a short key, and what was seen, its cause, and what to do."""

    cause: str
    message: str


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """What the checks keep of a frame.

    Attributes:
        time: seconds.
        edges: (2, 60, 80) strength of the image's edges from left to right, and downwards.
        steps: (2, 60, 80) whether depth has one, 0 or 1; NaN where no neighbours have depth.
        view: (15, 20) grey, mean 0 and length 1.
        contrast: standard deviation of grey levels.
        depth: (120, 160) logarithm of depth, NaN where there is none.

    """

    time: float
    edges: Float32
    steps: Float32
    view: Float32
    contrast: float
    depth: Float32

    @classmethod
    def of(cls, frame: Frame) -> Thumbnail:
        """Reduce a frame."""
        grey = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY)
        fine = cv2.resize(grey, (_FINE * _COLUMNS, _FINE * _ROWS), interpolation=cv2.INTER_AREA)
        depth = np.log(gather(frame.depth, _FINE * _ROWS, _FINE * _COLUMNS))
        steps = _largest_steps(depth)
        view = cv2.resize(fine, _VIEW, interpolation=cv2.INTER_AREA).astype(np.float32)
        contrast = float(view.std())
        view -= view.mean()
        return cls(
            frame.moment.time, np.log1p(_largest_steps(fine.astype(np.float32)) / _GREY),
            np.where(np.isnan(steps), steps, steps > _STEP).astype(np.float32),
            view / max(float(np.linalg.norm(view)), 1e-6), contrast, depth)


def _largest_steps(values: Float32) -> Float32:
    """Of each cell, the largest difference of neighbours: (2, 60, 80), across and down."""
    across, down = (np.abs(np.diff(values, axis=axis)) for axis in (1, 0))
    steps = np.stack([
        np.pad(across, ((0, 0), (0, 1)), 'edge'), np.pad(down, ((0, 1), (0, 0)), 'edge')])
    cells = steps.reshape(2, _ROWS, _FINE, _COLUMNS, _FINE).transpose(0, 1, 3, 2, 4)
    largest: Float32 = np.fmax.reduce(cells.reshape(2, _ROWS, _COLUMNS, -1), axis=-1)
    return largest


class Comparison(NamedTuple):
    """Measured depth beside what language says, in all patches of the frames looked at.

    Attributes:
        ratio: median of measured depth over language depth.
        correlation: of the logarithms; NaN where one of them does not vary.
        certainty: standard deviations by which words fit the depth of their own frame better
            than that of others; NaN where that cannot be told.

    """

    ratio: float
    correlation: float
    certainty: float

    @classmethod
    def of(cls, measured: NDArray[np.floating], language: NDArray[np.floating]) -> Comparison:
        """Compare depths in metres, (N, h, w) of N frames; NaN counts for nothing."""
        with np.errstate(divide='ignore', invalid='ignore'):
            true, said = (np.log(np.asarray(v, np.float64)).reshape(len(v), -1)
                          for v in (measured, language))
        known = np.isfinite(true) & np.isfinite(said)
        if not known.any():
            return cls(math.nan, math.nan, math.nan)
        first, second = true[known], said[known]
        ratio = float(np.exp(np.median(first - second)))
        if min(first.std(), second.std()) <= 1e-6:
            return cls(ratio, math.nan, math.nan)
        squares = np.square(true[:, None] - said[None])  # of every frame with every other's words
        apart = np.nansum(squares, axis=2) / np.maximum(np.isfinite(squares).sum(axis=2), 1)
        return cls(ratio, float(np.corrcoef(first, second)[0, 1]),
                   _certainty(_by_lag(-apart), 0))


def check(
    thumbnails: Sequence[Thumbnail], comparison: Comparison | None = None, *,
    trained: bool = True, timed: bool = True, unit_given: bool = False, integers: bool = False,
) -> list[Refusal]:
    """Judge a recording.

    Args:
        thumbnails: of its frames in the order of time, at least those that are calibrated from.
        comparison: with language's depth; None: what needs it is not judged.
        trained: whether the weights are, so that the size of what words say means something.
        timed: whether times are a clock's.
        unit_given: the user says what unit depth has, so that only the impossible is refused.
        integers: depth was stored in whole numbers, and no file says of which unit.

    Returns:
        What is wrong, the most likely cause first; nothing if the recording may be used.

    """
    count, different = len(thumbnails), views(thumbnails)
    standing = [Refusal('one standing view', (
        f'{count} frames show {different} clearly different view{"" if different == 1 else "s"}: '
        'the camera stands still. Drive while you record, through several rooms if you can.'))
    ] if different < LEAST_VIEWS <= count else []  # of fewer, so many could not be seen either
    if count < LEAST_FRAMES:
        return [Refusal('too few frames', (
            f'{count} frames have depth, and at least {LEAST_FRAMES} are needed. Record '
            'a minute of driving, through several rooms if you can.')), *standing]
    known = [t.depth[np.isfinite(t.depth)] for t in thumbnails]
    cells = np.array([np.isfinite(t.steps).any(axis=0).sum() for t in thumbnails])
    frozen = [False] if standing else [
        np.array_equal(a.depth, b.depth, equal_nan=True)
        and float((a.view * b.view).sum()) < 1 - 1e-4 for a, b in pairwise(thumbnails)]
    for cause, found, message in (
            ('empty depth', cells < _LEAST_CELLS,
             ('there is (almost) no depth in the image. Is it the right topic, is the sensor '
              'within its range, and does it look where the camera looks (tf)?')),
            ('constant depth', [depth.size and (depth.std() < _FLAT or np.mean(
                np.abs(depth - np.median(depth)) < 1e-3) > _ONE_VALUE) for depth in known],
             ('depth is the same everywhere: the sensor reports no measurement. Check its '
              'driver and its range.')),
            ('frozen depth', frozen,
             ('depth is the same to the bit as in the one before, while the image changes: the '
              'sensor or its driver has stopped. Restart it and record again.')),
            ('blank images', [t.contrast < _BLANK for t in thumbnails],
             'the image is of one grey. Is the lens covered, or the exposure wrong?')):
        if np.mean(found) > 0.5:
            return [Refusal(cause, f'In {np.mean(found):.0%} of the frames {message}')]
    believed = comparison if trained else None
    unit = _usual_unit(believed, given=unit_given or not integers) or _unit(
        thumbnails, believed, given=unit_given)
    refused = [*unit, *standing]
    if standing:  # where nothing moves, nothing can be said of times and places
        return refused
    if np.median(cells) >= _SPARSE * _ROWS * _COLUMNS:
        return refused + _together(thumbnails, timed=timed)
    # A sensor that shows no edges: does it fit the words, and better at its own time?
    if comparison is None or comparison.certainty > _BY_WORDS:
        return refused
    return [*refused, Refusal('nothing in common', (
        'Depth is sparse, and does not fit the words at its own time better than at others '
        f'(certainty {comparison.certainty:.1f} of {_BY_WORDS:g} standard deviations): the stamps '
        'or the mounting in tf are wrong, the weights are not trained, or it is too little. '
        'Record a denser sensor, or several rooms.'))]


def views(thumbnails: Sequence[Thumbnail]) -> int:
    """Number of clearly different views."""
    kept: list[Float32] = []
    for thumbnail in thumbnails:
        if all(float((thumbnail.view * other).sum()) < _SAME_VIEW for other in kept):
            kept.append(thumbnail.view)
    return len(kept)


def unit_doubt(thumbnails: Sequence[Thumbnail], comparison: Comparison) -> str:
    """A sentence on depth that is right in some places, and in a wrong unit in others; '' if not.

    The arguments are those of `check`; the weights are trained.
    """
    ratio = comparison.ratio
    return '' if not _UNUSUAL < abs(math.log(ratio)) <= _WRONG else (
        f'The median depth is {_median(thumbnails):.3g} m, {ratio:.3g} times what language says. '
        f'Right where everything is that far or near; if not, its unit is wrong. {_UNIT_REMEDY}')


def _unit(
    thumbnails: Sequence[Thumbnail], comparison: Comparison | None, *, given: bool,
) -> list[Refusal]:
    """Depth that is impossible in metres, or of quite another size than language says."""
    median = _median(thumbnails)
    if comparison is not None and not given and abs(math.log(comparison.ratio)) > _WRONG:
        said = f'{comparison.ratio:.3g} times what language says'
    elif not _PLAUSIBLE[0] <= median <= _PLAUSIBLE[1]:
        said = f'outside {_PLAUSIBLE[0]:g} to {_PLAUSIBLE[1]:g} m'
    elif comparison is not None and comparison.correlation < _INVERSE:
        return [Refusal('inverse depth', (
            'The larger the recorded depth, the nearer it is by the words (correlation '
            f'{comparison.correlation:.2f}): it is a disparity or an inverse depth. Record '
            'depth in metres or millimetres (REP-118).'))]
    else:
        return []
    return [Refusal('wrong unit', (
        f'The median depth is {median:.3g} m, {said}. {_UNIT_REMEDY} Where it is right as it is, '
        'say so with the same option.'))]


def _usual_unit(comparison: Comparison | None, *, given: bool) -> list[Refusal]:
    """Depth that is as much too large or too small as another usual unit would make it."""
    if given or comparison is None or not comparison.ratio > 0:
        return []
    apart, unit = min((abs(math.log(comparison.ratio * 1000 / unit)), unit)
                      for unit in _USUAL_UNITS)
    return [Refusal('wrong unit', (
        f'Read as millimetres, depth is {comparison.ratio:.3g} times what language says, and '
        f'{unit / 1000:.4g} times would be {unit:g} to a metre, as some data sets have it: then '
        f'calibrate with --depth-unit {1 / unit:.6g}. If it is millimetres, say so with '
        '--depth-unit 0.001.'))] if apart <= _LIKE_A_UNIT else []


def _median(thumbnails: Sequence[Thumbnail]) -> float:
    return math.exp(float(np.nanmedian(np.stack([t.depth for t in thumbnails]))))


# Images beside depth maps ------------------------------------------------------------------------


def _together(thumbnails: Sequence[Thumbnail], *, timed: bool) -> list[Refusal]:
    """Do images and depth belong together in time, and lie on each other?"""
    image, depth = (_moving(np.stack(values)) for values in zip(
        *((t.edges, t.steps) for t in thumbnails), strict=True))
    by_lag, shifts = _fit(image, depth), _shifts(image, depth)
    step = float(np.median(np.diff([t.time for t in thumbnails]))) if timed else 0.0
    if said := _offset(by_lag, step):
        return [Refusal('offset stamps', (
            f'Images fit the depth that comes {said} by its stamp: the clocks of camera and depth '
            'sensor differ, or one driver stamps late. Synchronise them (chrony, hardware '
            'trigger) and record again.' if timed else
            f'Images fit the depth that comes {said}: files of one name are not of one time, as '
            'where each sensor counts its own frames. Name them by their times.'))]
    if said := next((said for said, changed in _changed(depth) if _fits_better(
            _fit(image, changed), float(by_lag[0]))), '') or _moved(shifts):
        return [Refusal('wrong extrinsics', (
            f'Depth fits the image better when it is {said}: the mounting in tf, the camera_info '
            'or the lens, or the registration of the depth camera is wrong (a rectified depth '
            'image whose topic does not say so needs --depth-rectified yes). Calibrate the '
            'mounting, or record depth that is registered to the image '
            '(aligned_depth_to_color).'))]
    near = max((0, 1, -1), key=lambda lag: float(by_lag[lag]))
    if _certainty(by_lag, near) > _CERTAIN or _stands_out(shifts):
        return []
    return [Refusal('nothing in common', (
        'Depth and image do not show the same: edges of depth lie nowhere near edges of the '
        'image, at any offset in time and at any shift. Are the stamps or names of one of '
        'them shuffled, does the sensor look elsewhere (tf, camera_info, registration), is it '
        'the depth of another drive, or noise? Look at both in RViz, and record again.'))]


def _moving(edges: Float32) -> Float32:
    """(N, 2, 60, 80) edges without what stays, each frame of length 1; 0 where none is known."""
    known = np.isfinite(edges)
    for axis in (0, (2, 3)):
        mean = np.where(known, edges, 0).sum(axis, keepdims=True) / np.maximum(
            known.sum(axis, keepdims=True), 1)
        edges = edges - mean
    return _unit_length(np.nan_to_num(edges).astype(np.float32))


def _unit_length(values: Float32) -> Float32:
    length = np.sqrt((values * values).sum(axis=(1, 2, 3), keepdims=True))
    return np.asarray(values / np.maximum(length, 1e-9))


def _fit(image: Float32, depth: Float32) -> Float64:
    """How well images fit depth, by lag; see `_by_lag`."""
    return _by_lag(np.asarray(
        image.reshape(len(image), -1) @ depth.reshape(len(depth), -1).T, np.float64))


def _by_lag(pairs: Float64) -> Float64:
    """Mean over frames by lag: entry k is image i with depth i + k, round the end."""
    places = np.arange(len(pairs))
    return np.array([pairs[places, (places + lag) % len(pairs)].mean() for lag in places])


def _certainty(by_lag: Float64, lag: int) -> float:
    """Standard deviations by which a lag stands out from those that are far from it."""
    count = len(by_lag)
    away = np.abs((np.arange(count) - lag + count // 2) % count - count // 2)
    far = by_lag[away > max(2, count // 6)]
    if not len(far):
        return math.nan
    return float((by_lag[lag] - far.mean()) / max(far.std(), 1e-9))


def _offset(by_lag: Float64, step: float) -> str:
    """How far away images fit better; `step` is the time between frames [s], 0: not known."""
    count, lag = len(by_lag), int(by_lag.argmax())
    places = lag if lag <= count // 2 else lag - count
    apart = abs(places) * step
    if not places or 0 < apart <= _OFFSET or _certainty(by_lag, lag) <= _CLAIM \
            or by_lag[lag] <= _BETTER * by_lag[0]:
        return ''
    return (f'{apart:.2g} s' if step else f'{abs(places)} places') + (
        ' later' if places > 0 else ' earlier')


def _fits_better(by_lag: Float64, usual: float) -> bool:
    return bool(by_lag.argmax() == 0 and _certainty(by_lag, 0) > _CLAIM
                and by_lag[0] > _BETTER * usual)


def _changed(depth: Float32) -> Iterator[tuple[str, Float32]]:
    """How depth may have been turned or enlarged about the middle, and that undone."""
    yield 'mirrored', depth[..., ::-1]
    yield 'upside down', depth[..., ::-1, ::-1]
    yield 'mirrored top to bottom', depth[..., ::-1, :]
    for factor in _ZOOMS:
        rows, columns = (
            np.rint((np.arange(size) + 0.5 - size / 2) / factor + size / 2 - 0.5).astype(int)
            for size in (_ROWS, _COLUMNS))
        inside = ((rows >= 0) & (rows < _ROWS))[:, None] & ((columns >= 0) & (columns < _COLUMNS))
        yield f'enlarged {factor:.2g} times', _unit_length(
            depth[..., rows.clip(0, _ROWS - 1)[:, None], columns.clip(0, _COLUMNS - 1)] * inside)


def _shifts(image: Float32, depth: Float32) -> Float64:
    """(120, 160) how well images fit their own depth maps, by shift; none is in the middle."""
    size = 2 * _ROWS, 2 * _COLUMNS
    spectrum = (np.fft.rfft2(image, size) * np.conj(np.fft.rfft2(depth, size))).mean((0, 1))
    return np.fft.fftshift(np.fft.irfft2(spectrum, size))


def _stands_out(shifts: Float64) -> bool:
    return bool(shifts.max() - shifts.mean() > _CLAIM * max(shifts.std(), 1e-12))


def _moved(shifts: Float64) -> str:
    """By how much depth must be moved to fit; '' if not by much."""
    row, column = np.unravel_index(int(shifts.argmax()), shifts.shape)
    down, right = int(row) - _ROWS, int(column) - _COLUMNS
    near = shifts[_ROWS - _SHIFT + 1:_ROWS + _SHIFT, _COLUMNS - _SHIFT + 1:_COLUMNS + _SHIFT].max()
    if max(abs(down), abs(right)) < _SHIFT or shifts.max() <= _BETTER * near \
            or not _stands_out(shifts):
        return ''
    return (f'moved by {100 * right / _COLUMNS:+.0f} % of the width to the right and '
            f'{100 * down / _ROWS:+.0f} % of the height down')
