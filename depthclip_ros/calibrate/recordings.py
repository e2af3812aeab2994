# SPDX-License-Identifier: Apache-2.0
"""Recordings: images, and depth that was measured, on the same pixels.

Of folders and of the data sets of `offline_eval`; of bags in `bags`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..core.calibration import image_digest
from ..core.camera import CameraModel
from ..core.errors import DataError, DepthClipError, ImageError, reason
from ..core.transforms import TransformError
from ..messages.depth import MILLIMETRES, measured
from ..sources.camera_info import CameraCalibration
from ..sources.pictures import SUFFIXES, read_picture

Float32 = NDArray[np.float32]

#: A pause longer than this, and than ten usual steps, begins another sequence [s].
LONGEST_STEP, USUAL_STEPS = 2.0, 10
#: So many sequences are blocks themselves; fewer are cut in time.
FEW_SEQUENCES, BLOCKS = 5, 10
_CLOCK = 1e6  # names that are numbers above this are seconds since 1970, not counts


class RecordingError(DepthClipError):
    """A recording cannot be read, or holds nothing to calibrate from; says what to do."""


class Moment(NamedTuple):
    """What is known of a frame before it is read."""

    time: float = 0.0  # seconds; counted from 0 where the source has no times
    sequence: int = 0
    name: str = ''


@dataclass(frozen=True, eq=False)
class Frame:
    """An image and the depth that was measured with it.

    Attributes:
        rgb: (H, W, 3) uint8.
        depth: (H', W') float32 metres along the optical axis, NaN where there is none. Of the same
            view as the image; it may be coarser, and sparse.
        camera: that of the image; None where nothing is known of it.
        moment: when and where. Frames of one sequence (a room, or a block of time of one drive)
            look alike: a fit has all of them on one side, never some here and some there.
        digest: `image_digest` of the image that `rgb` is a part of; '' where it is the whole.

    """

    rgb: NDArray[np.uint8]
    depth: Float32
    camera: CameraModel | None
    moment: Moment
    digest: str = ''


@dataclass(frozen=True)
class Options:
    """How a recording is to be read.

    Attributes:
        image: topic of the images, where a bag has several cameras.
        depth: topic of depth images, clouds or scans; '': what is there.
        tolerance: largest difference of the times of an image and its depth [s].
        camera: of the images, instead of the recording's own.
        rectified: the images are rectified.
        unit: what a stored unit of depth is, in metres; 0: as its encoding or file says.
        protocol: of a data set: what of its images is seen; '': all.
        said: topic of depth that was not measured, which is passed over.

    """

    image: str = ''
    depth: str = ''
    tolerance: float = 0.05
    camera: CameraModel | None = None
    rectified: bool = False
    unit: float = 0.0
    protocol: str = ''
    said: str = ''

    def metres(self, depth: Float32, *, integer: bool) -> Float32:
        """Depth that was read as millimetres (of integers) or metres, by the unit given."""
        factor = self.unit * (MILLIMETRES if integer else 1.0)
        return depth * np.float32(factor) if factor else depth


AS_IT_IS = Options()


@dataclass(eq=False)
class Recording:
    """Frames in the order of their times.

    Attributes:
        source: where it was found.
        described: what image and depth are, in words.
        moments: one a frame.
        find: gives, of ascending positions of `moments`, each with what decodes its frame.
        left_out: how many images or measurements could not be used, by cause; complete when all
            frames are read.
        timed: whether the moments' times are a clock's.
        split: the training split of a data set that this is, in words; '' for anything else.
        topics: of a bag, those of the images and of their depth.

    """

    source: str
    described: str
    moments: list[Moment]
    find: Callable[[list[int]], Iterable[tuple[int, Callable[[], Frame]]]]
    left_out: Counter[str] = field(default_factory=Counter)
    timed: bool = True
    split: str = ''
    topics: tuple[str, str] = ('', '')
    _unusable: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.moments)

    def read(self, positions: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """Give the frames at some positions of `moments`, ascending, each with its position.

        What cannot be decoded is counted, once however often it is read, and not given.

        Raises:
            DepthClipError: the source itself is damaged.

        """
        for position, decode in self.find(sorted(set(positions))):
            try:
                frame = decode()
            except (DataError, TransformError, OSError, ValueError) as error:
                self.left_out[str(error)] += position not in self._unusable
                self._unusable.add(position)
                continue
            yield position, frame


# Folders -----------------------------------------------------------------------------------------


def of_folder(path: Path, options: Options) -> Recording:
    """`rgb/` and `depth/` with files of the same names, and `camera.yaml`.

    Folders below `rgb/` are sequences. Names that are times in seconds, as in TUM's data, are
    paired by time.

    Raises:
        DepthClipError: no pairs, or a wrong camera.yaml.

    """
    camera = options.camera
    if camera is None and (path / 'camera.yaml').exists():
        camera = CameraCalibration.from_yaml(path / 'camera.yaml').model(
            rectified=options.rectified)
    images, depths = _files(path / 'rgb', SUFFIXES), _files(path / 'depth', ('.png', '.npy'))
    timed = all(map(_is_time, (*images, *depths)))
    pairs = [(name, name) for name in images if name in depths]
    if timed:
        first, second = (sorted(files, key=float) for files in (images, depths))
        pairs = [(first[i], second[j]) for i, j in nearest_pairs(
            [float(name) for name in first], [float(name) for name in second], options.tolerance)]
    if not pairs:
        raise RecordingError(
            f'{path}: none of {len(images)} images in rgb/ has depth of the same name (or time) '
            f'among {len(depths)} files in depth/ (PNG of 16 bits in millimetres, or .npy in '
            'metres); rename one of them.')
    names = [name for name, _ in pairs]
    folders = {folder: number for number, folder in enumerate(
        dict.fromkeys(name.rpartition('/')[0] for name in names))}
    moments = moments_in_time([float(name) for name in names], names) if timed else [
        Moment(float(number), folders[name.rpartition('/')[0]], name)
        for number, name in enumerate(names)]

    def frame(position: int) -> Frame:
        image, measured = images[pairs[position][0]], depths[pairs[position][1]]
        rgb = np.ascontiguousarray(read_picture(image)[..., ::-1])
        depth = options.metres(read_depth(measured), integer=measured.suffix.lower() == '.png')
        if camera is not None:
            camera.check_size(rgb.shape[1], rgb.shape[0])
        return Frame(rgb, resample(depth, *rgb.shape[:2]), camera, moments[position])

    return Recording(str(path), 'rgb/ with depth/', moments, partial(_each, frame), +Counter({
        'images without depth': len(images) - len(pairs),
        'depth without an image': len(depths) - len(pairs)}), timed)


def _each(
    frame: Callable[[int], Frame], positions: list[int],
) -> Iterator[tuple[int, Callable[[], Frame]]]:
    return ((position, partial(frame, position)) for position in positions)


def _files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Files below a folder by their names without the ending; numbers in their order."""
    found = {path.relative_to(folder).with_suffix('').as_posix(): path
             for path in folder.rglob('*') if path.suffix.lower() in suffixes}
    return {name: found[name] for name in sorted(found, key=lambda name: re.sub(
        r'\d+', lambda digits: digits[0].zfill(20), name))}


def _is_time(name: str) -> bool:
    return bool(re.fullmatch(r'\d+(\.\d*)?', name)) and float(name) > _CLOCK


def read_depth(path: Path) -> Float32:
    """Read one depth map.

    Returns:
        (H, W) float32 metres, NaN where there is none.

    Raises:
        ImageError: it is neither PNG of 16 bits (millimetres) nor a .npy of numbers (metres).

    """
    is_array = path.suffix.lower() == '.npy'
    try:
        values = np.load(path, allow_pickle=False) if is_array else cv2.imread(
            str(path), cv2.IMREAD_UNCHANGED)
    except Exception as error:  # whatever a damaged file makes their decoders raise
        raise ImageError(
            'not depth', f'{path}: cannot be read as depth: {reason(error)}.') from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or not values.size or (
            values.dtype.kind != 'f' if is_array else values.dtype != np.uint16):
        raise ImageError('not depth', f'{path}: holds {getattr(values, "dtype", "no")} '
                         f'{getattr(values, "shape", "image")}; expected one channel of floating '
                         'point in metres (.npy), or of 16 bits in millimetres (PNG).')
    return measured(values)


def training_split(path: Path, options: Options) -> Recording:
    """Of a data set that `offline_eval` knows, one sequence a scene.

    Raises:
        RecordingError: it is none, or has no such split.

    """
    from offline_eval.datasets import open_dataset
    from offline_eval.errors import EvaluationError
    from offline_eval.protocol import PROTOCOLS
    try:
        data = open_dataset(path).training()
    except EvaluationError as error:
        raise RecordingError(
            f'{path}: no recording. Expected a rosbag2 bag (a folder with metadata.yaml, .mcap, '
            f'.db3), a folder with rgb/ and depth/, or a data set: {error}') from error
    if data is None:
        raise RecordingError(f'{path}: this data set has no training split here, and the test '
                             'split must not be calibrated on.')
    crop = PROTOCOLS.get(options.protocol)
    described = f'{data.format}, {data.split}' + (
        f', cropped as by protocol {crop.name}' if crop else '')
    scenes = {entry.scene: number for number, entry in enumerate(data.entries)}
    moments = [Moment(float(number), scenes[entry.scene], entry.name)
               for number, entry in enumerate(data.entries)]

    def frame(position: int) -> Frame:
        try:
            pair = data.read(position)
            rgb, depth = crop.prepare(pair) if crop else (
                pair.rgb, np.where(pair.depth > 0, pair.depth, np.float32(np.nan)))
        except EvaluationError as error:
            raise ImageError('damaged', str(error)) from error
        camera, focal = options.camera, data.entries[position].focal
        if camera is not None:
            camera.check_size(rgb.shape[1], rgb.shape[0])
        elif focal:
            camera = CameraModel.pinhole(rgb.shape[1], rgb.shape[0], focal)
        return Frame(rgb, depth, camera, moments[position], image_digest(pair.rgb))

    return Recording(str(data.path), described, moments, partial(_each, frame), timed=False,
                     split=described)


# Times -------------------------------------------------------------------------------------------


def nearest_pairs(
    images: Sequence[float], depths: Sequence[float], within: float,
) -> list[tuple[int, int]]:
    """Pair images with depth by their times, the nearest first, and each of them once.

    Args:
        images: times, ascending; integers stay exact.
        depths: likewise, in the same unit.
        within: largest difference of a pair.

    Returns:
        Numbers of image and depth, ascending.

    """
    candidates = []
    for depth, time in enumerate(depths):
        place = bisect_left(images, time)
        candidates += [(abs(images[image] - time), image, depth) for image in (place - 1, place)
                       if 0 <= image < len(images)]
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for apart, image, depth in sorted(candidates):
        if apart <= within and image not in pairs and depth not in taken:
            pairs[image] = depth
            taken.add(depth)
    return sorted(pairs.items())


def moments_in_time(times: Sequence[float], names: Sequence[str]) -> list[Moment]:
    """Moments of ascending times [s], counted from the first; a pause begins a new sequence."""
    steps = np.diff(np.asarray(times, np.float64))
    usual = float(np.median(steps)) if steps.size else 0.0
    pauses = steps > max(LONGEST_STEP, USUAL_STEPS * usual)
    return [Moment(float(time - times[0]), int(sequence), name) for time, sequence, name in zip(
        times, np.cumsum([0, *pauses]), names, strict=True)]


def blocks(moments: Sequence[Moment]) -> list[int]:
    """Blocks that are held out together: sequences, or pieces of them in time.

    Neighbours in time show nearly the same, and are never on both sides, but where two pieces of
    one sequence meet.

    Returns:
        The block of every moment, counted from 0.

    """
    names, owner, counts = np.unique(
        [moment.sequence for moment in moments], return_inverse=True, return_counts=True)
    result = owner
    if len(names) < FEW_SEQUENCES:
        result, begun = np.empty_like(owner), 0
        for number, count in enumerate(counts):
            pieces = min(int(count), max(1, round(BLOCKS * count / len(owner))))
            result[owner == number] = begun + np.arange(count) * pieces // count
            begun += pieces
    return [int(block) for block in result]


def spread_evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` positions, at equal distances, first and last among them."""
    if count <= most:
        return list(range(count))
    return [int(p) for p in np.unique(np.round(np.linspace(0, count - 1, most)).astype(int))]


# Pixels ------------------------------------------------------------------------------------------


def resample(depth: Float32, height: int, width: int) -> Float32:
    """Depth of the same view in another number of pixels: that of the nearest.

    Never a mean of two, which would lie between a thing and what is behind it.
    """
    if depth.shape == (height, width):
        return depth
    rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * depth.shape[1] / width).astype(int)
    return np.asarray(depth[rows[:, None], columns[None, :]])


def gather(depth: Float32, height: int, width: int) -> Float32:
    """Depth in a coarser grid: the nearest pixel's; of sparse depth the nearest point in each."""
    known = np.isfinite(depth)
    if known.mean() > 0.3 or depth.shape[0] <= height or depth.shape[1] <= width:
        return resample(depth, height, width)
    rows, columns = np.nonzero(known)
    return _nearest(rows * height // depth.shape[0], columns * width // depth.shape[1],
                    depth[rows, columns], height, width)


def rasterize(points: NDArray[np.float64], camera: CameraModel) -> Float32:
    """Depth of points in the image, the nearest where several fall on a pixel.

    Args:
        points: (N, 3) metres in the camera's optical frame.
        camera: of the image.

    Returns:
        (H, W) float32 metres, NaN where no point falls.

    """
    columns, rows = np.rint(camera.project(points)).T
    seen = (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height)
    return _nearest(rows[seen].astype(np.intp), columns[seen].astype(np.intp),
                    points[seen, 2].astype(np.float32), camera.height, camera.width)


def _nearest(
    rows: NDArray[np.intp], columns: NDArray[np.intp], depth: Float32, height: int, width: int,
) -> Float32:
    """(height, width) of the least depth in every cell, NaN where there is none."""
    grid = np.full((height, width), np.inf, np.float32)
    np.minimum.at(grid, (rows, columns), depth)
    grid[np.isinf(grid)] = np.nan
    return grid


def unproject(depth: Float32, camera: CameraModel) -> NDArray[np.float64]:
    """Points (N, 3) of a depth image in its camera's optical frame."""
    v, u = np.nonzero(np.isfinite(depth))
    points = camera.rays(u, v) * depth[v, u, None].astype(np.float64)
    return points[np.isfinite(points).all(axis=1)]
