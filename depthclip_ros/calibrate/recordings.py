# SPDX-License-Identifier: Apache-2.0
"""Recordings to calibrate from: images, and depth that was measured, on the same pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.camera import CameraModel
from ..core.errors import DepthClipError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from ..sources.camera_info import CameraCalibration

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

    time: float  # seconds; counted from 0 where the source has no times
    sequence: int
    name: str


@dataclass(frozen=True, eq=False)
class RecordedFrame:
    """An image and the depth that was measured with it.

    Attributes:
        rgb: (H, W, 3) uint8.
        depth: (H, W) float32 metres along the optical axis, NaN where there is none.
        camera: that of the image; None where nothing is known of it.
        moment: when and where.
        digest: `image_digest` of the image that `rgb` is a part of; '' where it is the whole.

    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    camera: CameraModel | None
    moment: Moment
    digest: str = ''


class Recording(ABC):
    """Frames in the order of their times.

    Attributes:
        source: where it was found.
        described: what image and depth are, in words.
        moments: one a frame.
        timed: whether the moments' times are a clock's.
        split: the training split of a data set that this is, in words; '' for anything else.
        left_out: how many images or measurements could not be used, by cause; complete when all
            frames are read.

    """

    source: str
    described: str
    moments: list[Moment]
    timed: bool = True
    split: str = ''

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.moments)

    @abstractmethod
    def read(self, positions: Iterable[int]) -> Iterator[tuple[int, RecordedFrame]]:
        """Read the frames at these positions, in ascending order.

        What cannot be decoded is counted in `left_out` and not given.

        Args:
            positions: numbers of `moments`.

        Yields:
            Position and frame.

        Raises:
            RecordingError: the source itself is damaged.

        """

    def close(self) -> None:  # noqa: B027 - most have nothing open
        """Let go of open files."""


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


def sequences(times: Sequence[float]) -> list[int]:
    """Number the sequences of ascending times: a pause begins a new one.

    Args:
        times: seconds, ascending.

    """
    if not times:
        return []
    steps = np.diff(np.asarray(times, np.float64))
    usual = float(np.median(steps)) if steps.size else 0.0
    pauses = steps > max(LONGEST_STEP, USUAL_STEPS * usual)
    return [0, *(int(number) for number in np.cumsum(pauses))]


def blocks(moments: Sequence[Moment]) -> NDArray[np.intp]:
    """Blocks that are held out together: sequences, or pieces of them in time.

    Neighbours in time show nearly the same, and are never on both sides, but where two pieces of
    one sequence meet.

    Returns:
        (N,) block of every moment, counted from 0.

    """
    owner = np.array([moment.sequence for moment in moments], np.intp)
    names, owner, counts = np.unique(owner, return_inverse=True, return_counts=True)
    if len(names) >= FEW_SEQUENCES:
        return owner.astype(np.intp)
    result = np.empty(len(owner), np.intp)
    begun = 0
    for number, count in enumerate(counts):
        pieces = min(int(count), max(1, round(BLOCKS * count / len(owner))))
        result[owner == number] = begun + np.arange(count) * pieces // count
        begun += pieces
    return result


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
    coarser: NDArray[np.float32] = depth[rows[:, None], columns[None, :]]
    return coarser


def in_metres(
    depth: NDArray[np.float32], unit: float, *, integer: bool,
) -> NDArray[np.float32]:
    """Correct depth that was read as millimetres (integers) or metres.

    Args:
        depth: as it was read.
        unit: what one stored unit is, in metres; 0: it was read as it should be.
        integer: whether whole numbers were stored.

    """
    if not unit:
        return depth
    return depth * np.float32(unit * (MILLIMETRES if integer else 1.0))


def rasterize(points: NDArray[np.float64], camera: CameraModel) -> NDArray[np.float32]:
    """Depth of points in the image, the nearest where several fall on a pixel.

    Args:
        points: (N, 3) metres in the camera's optical frame.
        camera: of the image.

    Returns:
        (H, W) float32 metres, NaN where no point falls.

    """
    depth = np.full(camera.height * camera.width, np.inf, np.float32)
    pixels = np.rint(camera.project(points))
    u, v = pixels[:, 0], pixels[:, 1]
    seen = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)  # NaN is not
    places = v[seen].astype(np.intp) * camera.width + u[seen].astype(np.intp)
    np.minimum.at(depth, places, points[seen, 2].astype(np.float32))
    image: NDArray[np.float32] = depth.reshape(camera.height, camera.width)
    image[np.isinf(image)] = np.nan
    return image


def unproject(depth: NDArray[np.float32], camera: CameraModel) -> NDArray[np.float64]:
    """Points (N, 3) of a depth image in its camera's optical frame."""
    v, u = np.nonzero(np.isfinite(depth))
    points = camera.rays(u, v) * depth[v, u, None].astype(np.float64)
    return points[np.isfinite(points).all(axis=1)]


def camera_of(calibration: CameraCalibration, *, rectified: bool = False) -> CameraModel:
    """Give the camera of a calibration file.

    Raises:
        CameraInfoError: its numbers are no camera.

    """
    region: dict[str, Any] = {
        'x_offset': 0, 'y_offset': 0, 'width': 0, 'height': 0, 'do_rectify': False}
    info = SimpleNamespace(roi=SimpleNamespace(**region), binning_x=0, binning_y=0)
    calibration.fill(info)
    return CameraModel.from_info(info, rectified)
