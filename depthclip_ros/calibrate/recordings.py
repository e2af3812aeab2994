# SPDX-License-Identifier: Apache-2.0
"""Recordings: images, and depth that was measured, on the same pixels."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.camera import CameraModel
from ..core.errors import DepthClipError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from ..core.camera import CameraModel

#: A pause longer than this, and than ten usual steps, begins another sequence [s].
LONGEST_STEP = 2.0
USUAL_STEPS = 10
#: So many sequences are blocks themselves; fewer are cut in time.
FEW_SEQUENCES = 5
BLOCKS = 10
MILLIMETRES = 1000.0


class RecordingError(DepthClipError):
    """A recording cannot be read, or holds nothing to calibrate from; says what to do."""


class Moment(NamedTuple):
    """What is known of a frame before it is read."""

    time: float = 0.0  # seconds; counted from 0 where the source has no times
    sequence: int = 0
    name: str = ''


NO_MOMENT = Moment()


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
    depth: NDArray[np.float32]
    camera: CameraModel | None = None
    moment: Moment = NO_MOMENT
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


AS_IT_IS = Options()


class LeftOut(Counter[str]):
    """How many images or measurements could not be used, by cause."""

    def __init__(self, *counts: Any) -> None:
        super().__init__(*counts)
        self._frames: set[int] = set()

    def add(self, position: int, cause: object) -> None:
        """Count a frame that cannot be read; once, however often it is read."""
        if position not in self._frames:
            self._frames.add(position)
            self[str(cause)] += 1


@dataclass(frozen=True, eq=False)
class Recording:
    """Frames in the order of their times.

    Attributes:
        source: where it was found.
        described: what image and depth are, in words.
        moments: one a frame.
        read: gives the frames at some positions of `moments`, ascending, each with its position.
            What cannot be decoded is counted in `left_out` and not given; a source that is itself
            damaged raises a DepthClipError.
        left_out: how many images or measurements could not be used, by cause; complete when all
            frames are read.
        timed: whether the moments' times are a clock's.
        split: the training split of a data set that this is, in words; '' for anything else.
        topics: of a bag, those of the images and of their depth.

    """

    source: str
    described: str
    moments: list[Moment]
    read: Callable[[Iterable[int]], Iterator[tuple[int, Frame]]]
    left_out: LeftOut = field(default_factory=LeftOut)
    timed: bool = True
    split: str = ''
    topics: tuple[str, str] = ('', '')

    def __len__(self) -> int:
        return len(self.moments)


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


def resample(depth: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Depth of the same view in another number of pixels: that of the nearest.

    Never a mean of two, which would lie between a thing and what is behind it.
    """
    if depth.shape == (height, width):
        return depth
    rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * depth.shape[1] / width).astype(int)
    return np.asarray(depth[rows[:, None], columns[None, :]])


def gather(depth: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Depth in a coarser grid: the nearest pixel's; of sparse depth the nearest point in each."""
    known = np.isfinite(depth)
    if known.mean() > 0.3 or depth.shape[0] <= height or depth.shape[1] <= width:
        return resample(depth, height, width)
    rows, columns = np.nonzero(known)
    return _nearest(rows * height // depth.shape[0], columns * width // depth.shape[1],
                    depth[rows, columns], height, width)


def rasterize(points: NDArray[np.float64], camera: CameraModel) -> NDArray[np.float32]:
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
    rows: NDArray[np.intp], columns: NDArray[np.intp], depth: NDArray[np.float32], height: int,
    width: int,
) -> NDArray[np.float32]:
    """(height, width) of the least depth in every cell, NaN where there is none."""
    grid = np.full((height, width), np.inf, np.float32)
    np.minimum.at(grid, (rows, columns), depth)
    grid[np.isinf(grid)] = np.nan
    return grid


def unproject(depth: NDArray[np.float32], camera: CameraModel) -> NDArray[np.float64]:
    """Points (N, 3) of a depth image in its camera's optical frame."""
    v, u = np.nonzero(np.isfinite(depth))
    points = camera.rays(u, v) * depth[v, u, None].astype(np.float64)
    return points[np.isfinite(points).all(axis=1)]


def in_metres(depth: NDArray[np.float32], unit: float, *, integer: bool) -> NDArray[np.float32]:
    """Depth that was read as millimetres (of integers) or metres, where a unit [m] is given."""
    return depth * np.float32(unit * (MILLIMETRES if integer else 1.0)) if unit else depth
