# SPDX-License-Identifier: Apache-2.0
"""Check whether a recording can be calibrated from; refuse faults with cause and remedy.

Only the unit and inverse depth need the network. Edges of depth lie on edges of the image, at the
same time and size. They are computed in 80 x 60 cells, minus the mean of each cell, so that only
movement counts. The correlation of every image with every depth map shows whether another time or
size fits better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from .registration import REGISTER, downsample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .recordings import Frame

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

MIN_FRAMES, MIN_VIEWS = 30, 4  # three in each of ten blocks
_COLUMNS, _ROWS, _FINE = 80, 60, 2  # cells, and pixels of a cell each way
_STEP = 0.06  # difference of log depth that is an edge
_GREY = 8.0  # grey levels below which edges are noise
_VIEW, _SAME_VIEW = (20, 15), 0.95  # pixels of a view; correlation above which two are the same
_MIN_CELLS = 24  # with depth in a frame, of 4800; a scanner's line has up to 80
_FLAT, _ONE_VALUE = 0.01, 0.9  # stddev of log depth, fraction of pixels with the same depth
_PLAUSIBLE = 0.15, 100.0  # metres, of the median depth
# Log ratio of measured to language depth: beyond the first the unit may be wrong, beyond the
# second it is. Bins limit language depth, so that a hall or a table top may exceed the first.
_UNUSUAL, _IMPLAUSIBLE = math.log(3.0), math.log(8.0)
_INVERSE = -0.3  # correlation of log depth with log language depth
_MIN_DEVIATIONS = 10.0  # standard deviations of a peak above unrelated pairs
_MIN_GAIN = 1.3  # ratio by which another time or size must fit better than the recorded one
_MIN_OFFSET = 0.08  # seconds; a robot at 0.5 m/s moves 4 cm
# Factors by which depth is enlarged to see whether it fits better; 6 % make no difference.
_ZOOMS = tuple(float(z) for z in np.geomspace(0.5, 2.0, 25) if abs(z - 1) > 0.06)
# Focal lengths of common pairs of an image's and a depth camera, in pixels of equally wide images;
# depth has to be enlarged by their ratio. Data sheets and drivers differ by some percent.
_PAIRS = (('a Kinect v1', 525.0, 585.0), ('an Orbbec Astra', 521.0, 573.0),
          ('a RealSense D435 at 640x480', 616.0, 386.0),
          ('a RealSense D435 at 1280x720', 920.0, 640.0))
_PAIR_TOLERANCE = 0.04  # difference of the logarithms, two thirds of a step of `_ZOOMS`
# Units of 16-bit files other than millimetres, per metre: of TUM, other SLAM data, Replica and
# KITTI, tenths of millimetres, centimetres. Depth is taken to be in such a unit if its ratio
# to language depth differs from the unit's by less than 15 %.
_COMMON_UNITS, _UNIT_TOLERANCE = (5000.0, 4000.0, 6553.5, 256.0, 10000.0, 100.0), math.log(1.15)
_UNIT_REMEDY = ('Say what one stored unit is with --depth-unit (in metres: 0.001 for millimetres, '
                '1 for metres); bags do not keep it.')


class Refusal(NamedTuple):
    """Reason to refuse a recording: a short key, and a message with evidence and remedy."""

    cause: str
    message: str


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """Features of a frame that the checks compare.

    Attributes:
        time: seconds.
        edges: (2, 60, 80) strength of the image's edges, horizontal and vertical differences.
        steps: (2, 60, 80) 1 where depth has an edge, else 0; NaN without neighbours with depth.
        view: (15, 20) grey image of mean 0 and norm 1.
        depth: (120, 160) log depth, NaN where there is none.

    """

    time: float
    edges: Float32
    steps: Float32
    view: Float32
    depth: Float32

    @classmethod
    def of(cls, frame: Frame) -> Thumbnail:
        """Compute the thumbnail of a frame."""
        grey = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY)
        fine = cv2.resize(grey, (_FINE * _COLUMNS, _FINE * _ROWS), interpolation=cv2.INTER_AREA)
        depth = np.log(downsample(frame.depth, _FINE * _ROWS, _FINE * _COLUMNS))
        steps = _largest_steps(depth)
        view = cv2.resize(fine, _VIEW, interpolation=cv2.INTER_AREA).astype(np.float32)
        view -= view.mean()
        return cls(
            frame.moment.time, np.log1p(_largest_steps(fine.astype(np.float32)) / _GREY),
            np.where(np.isnan(steps), steps, steps > _STEP).astype(np.float32),
            view / max(float(np.linalg.norm(view)), 1e-6), depth)


def _largest_steps(values: Float32) -> Float32:
    """Return the largest difference of neighbours in each cell: (2, 60, 80), across and down."""
    across, down = (np.abs(np.diff(values, axis=axis)) for axis in (1, 0))
    steps = np.stack([
        np.pad(across, ((0, 0), (0, 1)), 'edge'), np.pad(down, ((0, 1), (0, 0)), 'edge')])
    cells = steps.reshape(2, _ROWS, _FINE, _COLUMNS, _FINE).transpose(0, 1, 3, 2, 4)
    largest: Float32 = np.fmax.reduce(cells.reshape(2, _ROWS, _COLUMNS, -1), axis=-1)
    return largest


class Comparison(NamedTuple):
    """Comparison of measured depth with language depth.

    Attributes:
        ratio: median ratio of measured to language depth; NaN without a comparison.
        correlation: of the logarithms; NaN if one of them is constant.

    """

    ratio: float = math.nan
    correlation: float = math.nan

    @classmethod
    def of(cls, measured: NDArray[np.floating], language: NDArray[np.floating]) -> Comparison:
        """Compare two depth maps in metres, of the same shape; NaN is left out."""
        with np.errstate(divide='ignore', invalid='ignore'):
            logs = np.log(np.array([measured, language], np.float64).reshape(2, -1))
        logs = logs[:, np.isfinite(logs).all(axis=0)]
        if not logs.size:
            return cls()
        return cls(math.exp(np.median(logs[0] - logs[1])), float(
            np.corrcoef(logs)[0, 1]) if logs.std(axis=1).min() > 1e-6 else math.nan)


NOT_COMPARED = Comparison()


def check(
    thumbnails: Sequence[Thumbnail], comparison: Comparison = NOT_COMPARED, *,
    timed: bool = True, unit_given: bool = False, integers: bool = False,
) -> list[Refusal]:
    """Check a recording.

    Args:
        thumbnails: of its frames in the order of time, at least those that are calibrated from.
        comparison: with language depth of trained weights; without it some checks are skipped.
        timed: whether times are a clock's.
        unit_given: whether the user gave the unit of depth: then an improbable one is accepted.
        integers: whether depth was stored in integers of a unit that no file states.

    Returns:
        Reasons to refuse the recording, the most likely first; empty if it can be used.

    """
    count, different = len(thumbnails), views(thumbnails)
    standing = [Refusal('one standing view', (
        f'{count} frames show {different} clearly different view{"" if different == 1 else "s"}: '
        'the camera stands still. Drive while you record, through several rooms if you can.'))
    ] if different < MIN_VIEWS <= count else []  # fewer frames cannot show enough views
    if count < MIN_FRAMES:
        return [Refusal('too few frames', (
            f'{count} frames have depth, and at least {MIN_FRAMES} are needed. Record '
            'a minute of driving, through several rooms if you can.')), *standing]
    if refusal := _no_measurement(thumbnails, moving=not standing):
        return [refusal]
    unit = _unit(thumbnails, math.nan if unit_given else comparison.ratio,
                 integers=integers) or _inverse(comparison)
    # Time and place of depth can be checked only while the view moves.
    fault = None if standing else _misfit(thumbnails, timed=timed)
    return [*([unit] if unit else []), *standing, *([fault] if fault else [])]


def views(thumbnails: Sequence[Thumbnail]) -> int:
    """Count clearly different views."""
    different: list[Float32] = []
    for thumbnail in thumbnails:
        if all(float((thumbnail.view * view).sum()) < _SAME_VIEW for view in different):
            different.append(thumbnail.view)
    return len(different)


def _no_measurement(thumbnails: Sequence[Thumbnail], *, moving: bool) -> Refusal | None:
    """Refuse depth that is empty, constant or frozen in more than half of the frames."""
    depths = [t.depth[np.isfinite(t.depth)] for t in thumbnails]
    for cause, frames, message in (
            ('empty depth', [np.isfinite(t.steps).any(axis=0).sum() < _MIN_CELLS
                             for t in thumbnails],
             ('there is (almost) no depth in the image. Is it the right topic, is the sensor '
              'within its range, and does it look where the camera looks (tf)?')),
            ('constant depth', [depth.size and (depth.std() < _FLAT or np.mean(
                np.abs(depth - np.median(depth)) < 1e-3) > _ONE_VALUE) for depth in depths],
             ('depth is the same everywhere: the sensor reports no measurement. Check its '
              'driver and its range.')),
            ('frozen depth', [moving and np.array_equal(a.depth, b.depth, equal_nan=True)
                              and float((a.view * b.view).sum()) < 1 - 1e-4
                              for a, b in pairwise(thumbnails)],
             ('depth is the same to the bit as in the one before, while the image changes: the '
              'sensor or its driver has stopped. Restart it and record again.'))):
        if np.mean(frames) > 0.5:
            return Refusal(cause, f'In {np.mean(frames):.0%} of the frames {message}')
    return None


# Units -------------------------------------------------------------------------------------------


def unit_doubt(thumbnails: Sequence[Thumbnail], comparison: Comparison) -> str:
    """Return a warning if depth is unusual and may be in another unit, else ''; see `check`."""
    ratio = comparison.ratio
    return '' if not _UNUSUAL < abs(math.log(ratio)) <= _IMPLAUSIBLE else (
        f'The median depth is {_median(thumbnails):.3g} m, {ratio:.3g} times what language says. '
        f'Right where everything is that far or near; if not, its unit is wrong. {_UNIT_REMEDY}')


def _unit(thumbnails: Sequence[Thumbnail], ratio: float, *, integers: bool) -> Refusal | None:
    """Refuse depth that fits another common unit, is implausible, or far from language depth."""
    median = _median(thumbnails)
    distance, unit = min((abs(math.log(ratio * 1000 / unit)), unit) for unit in _COMMON_UNITS)
    if integers and distance <= _UNIT_TOLERANCE:
        return Refusal('wrong unit', (
            f'Read as millimetres, depth is {ratio:.3g} times what language says, and '
            f'{unit / 1000:.4g} times would be {unit:g} to a metre, as some data sets have it: '
            f'then calibrate with --depth-unit {1 / unit:.6g}. If it is millimetres, say so with '
            '--depth-unit 0.001.'))
    if abs(math.log(ratio)) > _IMPLAUSIBLE:
        reason = f'{ratio:.3g} times what language says'
    elif not _PLAUSIBLE[0] <= median <= _PLAUSIBLE[1]:
        reason = f'outside {_PLAUSIBLE[0]:g} to {_PLAUSIBLE[1]:g} m'
    else:
        return None
    return Refusal('wrong unit', (
        f'The median depth is {median:.3g} m, {reason}. {_UNIT_REMEDY} Where it is right as it '
        'is, say so with the same option.'))


def _inverse(comparison: Comparison) -> Refusal | None:
    """Refuse depth that falls as language depth grows: MiDaS's output or a stereo disparity."""
    correlation = comparison.correlation
    return Refusal('inverse depth', (
        'The larger the recorded depth, the nearer it is by the words (correlation '
        f'{correlation:.2f}): it is a disparity or an inverse depth. Record depth in metres or '
        'millimetres (REP-118).')) if correlation < _INVERSE else None


def _median(thumbnails: Sequence[Thumbnail]) -> float:
    return math.exp(float(np.nanmedian(np.stack([t.depth for t in thumbnails]))))


# Images beside depth maps ------------------------------------------------------------------------


def _misfit(thumbnails: Sequence[Thumbnail], *, timed: bool) -> Refusal | None:
    """Refuse images that fit depth of another time or another size better than their own."""
    image, depth = (_movement(np.stack(values)) for values in zip(
        *((t.edges, t.steps) for t in thumbnails), strict=True))
    scores = _by_lag(image, depth)
    step = float(np.median(np.diff([t.time for t in thumbnails]))) if timed else 0.0
    if offset := _offset(scores, step):
        return Refusal('offset stamps', (
            f'Images fit the depth that comes {offset} by its stamp: the clocks of camera and '
            'depth sensor differ, or one driver stamps late. Synchronise them (chrony, hardware '
            'trigger) and record again.' if timed else
            f'Images fit the depth that comes {offset}: files of one name are not of one time, '
            'as where each sensor counts its own frames. Name them by their times.'))
    scored = [(_by_lag(image, _enlarged(depth, zoom)), zoom) for zoom in _ZOOMS]
    enlarged, zoom = max(scored, key=lambda pair: float(pair[0][0]))
    if _stands_out(enlarged, 0) and enlarged[0] > _MIN_GAIN * scores[0]:
        return Refusal('not registered', (
            f'Depth fits the image better when it is enlarged {zoom:.2g} times: it is of another '
            f'lens or focal length than the image{_sensor_of(zoom)}. {REGISTER} (a rectified '
            'depth image whose topic does not say so needs --depth-rectified yes).'))
    return None


def _sensor_of(zoom: float) -> str:
    """Name the sensor whose two focal lengths have this ratio; '' if none is common."""
    distance, name, image, depth = min(
        (abs(math.log(zoom * depth / image)), name, image, depth) for name, image, depth in _PAIRS)
    return '' if distance > _PAIR_TOLERANCE else (
        f', as of {name}, whose image has {image:g} pixels of focal length and whose depth has '
        f'{depth:g}')


def _movement(edges: Float32) -> Float32:
    """Subtract means over frames and over cells from (N, 2, 60, 80) edges; frames get norm 1."""
    valid = np.isfinite(edges)
    for axis in (0, (2, 3)):
        mean = np.where(valid, edges, 0).sum(axis, keepdims=True) / np.maximum(
            valid.sum(axis, keepdims=True), 1)
        edges = edges - mean
    return _unit_length(np.nan_to_num(edges).astype(np.float32))


def _unit_length(values: Float32) -> Float32:
    norm = np.sqrt((values * values).sum(axis=(1, 2, 3), keepdims=True))
    return np.asarray(values / np.maximum(norm, 1e-9))


def _by_lag(image: Float32, depth: Float32) -> Float64:
    """Return the mean correlation (N,) of image i with depth i + lag, wrapping at the end."""
    pairs = np.asarray(image.reshape(len(image), -1) @ depth.reshape(len(depth), -1).T, np.float64)
    index = np.arange(len(pairs))
    return np.array([pairs[index, (index + lag) % len(pairs)].mean() for lag in index])


def _stands_out(scores: Float64, lag: int) -> bool:
    """Whether a lag has the highest score, significantly above those of distant lags."""
    count = len(scores)
    distance = np.abs((np.arange(count) - lag + count // 2) % count - count // 2)
    far = scores[distance > max(2, count // 6)]
    return bool(scores.argmax() == lag
                and scores[lag] - far.mean() > _MIN_DEVIATIONS * max(float(far.std()), 1e-9))


def _offset(scores: Float64, step: float) -> str:
    """Describe the offset at which depth fits better, or ''; `step` is seconds a frame, or 0."""
    count, lag = len(scores), int(scores.argmax())
    frames = lag if lag <= count // 2 else lag - count
    seconds = abs(frames) * step
    if not frames or 0 < seconds <= _MIN_OFFSET or not _stands_out(scores, lag) \
            or scores[lag] <= _MIN_GAIN * scores[0]:
        return ''
    return (f'{seconds:.2g} s' if step else f'{abs(frames)} places') + (
        ' later' if frames > 0 else ' earlier')


def _enlarged(depth: Float32, factor: float) -> Float32:
    """Enlarge (N, 2, 60, 80) about the centre; 0 outside the source, each frame of norm 1."""
    rows, columns = (
        np.rint((np.arange(size) + 0.5 - size / 2) / factor + size / 2 - 0.5).astype(int)
        for size in (_ROWS, _COLUMNS))
    inside = ((rows >= 0) & (rows < _ROWS))[:, None] & ((columns >= 0) & (columns < _COLUMNS))
    return _unit_length(
        depth[..., rows.clip(0, _ROWS - 1)[:, None], columns.clip(0, _COLUMNS - 1)] * inside)
