# SPDX-License-Identifier: Apache-2.0
"""Recordings: images with measured depth on the same pixels.

`folders` reads folders and the data sets of `evaluation`; `bags` reads bags.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.camera import CameraModel
from ..core.errors import DataError, DepthClipError
from ..messages.depth import MILLIMETRES
from ..sources.camera_info import Intrinsics

Float32 = NDArray[np.float32]

#: A pause of more seconds and more median steps than these begins another sequence.
PAUSE_SECONDS, PAUSE_STEPS = 2.0, 10
#: At least five sequences are blocks themselves; fewer are cut in time, into ten blocks.
MIN_SEQUENCES, BLOCKS = 5, 10
#: Depth maps of a recording from which the clipping of its sensor is detected.
CLIPPING_FRAMES = 64
# Fraction of the measured pixels that have exactly the largest value: 10 % and more where a sensor
# clips, a millionth where it does not; where nearly all have it, nothing else was measured.
_CLIPPED = 0.01, 0.9


class RecordingError(DepthClipError):
    """A recording cannot be read, or holds nothing to calibrate from."""


class Moment(NamedTuple):
    """Time, sequence and name of a frame, before it is read."""

    time: float = 0.0  # seconds; the frame's number where the source has no times
    sequence: int = 0
    name: str = ''
    adjacent: tuple[int, ...] = ()  # sequences just before and after this one in time


@dataclass(frozen=True, eq=False)
class Frame:
    """An image with measured depth.

    Attributes:
        rgb: (H, W, 3) uint8.
        depth: (H', W') float32 metres along the optical axis, NaN where there is none. It shows
            the view of the image, and may be coarser and sparse.
        camera: of the image; None if unknown.
        moment: time and sequence. Frames of one sequence (a room, or a piece of a drive in time)
            look alike, so that cross-validation divides it only where there are few.
        digest: fingerprint of the image that `rgb` is cropped from; '' without a crop.

    """

    rgb: NDArray[np.uint8]
    depth: Float32
    camera: CameraModel | None
    moment: Moment
    digest: str = ''


@dataclass(frozen=True)
class Options:
    """Options for reading a recording.

    Attributes:
        image: topic of the images, where a bag has several cameras.
        depth: topic of depth images, clouds or scans; '': the only one.
        tolerance: largest difference of the times of an image and its depth [s].
        camera: of the images, in place of the recording's.
        rectified: whether the images are rectified.
        depth_camera: of the depth images, in place of the recording's.
        depth_rectified: whether the depth images are rectified; None: by `rect` in their
            topic, of folders no.
        unit: metres of one stored unit of depth; 0: by its encoding or file.
        protocol: of a data set, the name of the crop; '': the whole image.
        excluded_topic: topic of depth that no sensor measured.

    """

    image: str = ''
    depth: str = ''
    tolerance: float = 0.05
    camera: CameraModel | None = None
    rectified: bool = False
    depth_camera: Intrinsics | None = None
    depth_rectified: bool | None = None
    unit: float = 0.0
    protocol: str = ''
    excluded_topic: str = ''

    def metres(self, depth: Float32, *, integer: bool) -> Float32:
        """Convert depth that was read as millimetres (integers) or metres by `unit`."""
        factor = self.unit * (MILLIMETRES if integer else 1.0)
        return depth * np.float32(factor) if factor else depth


DEFAULT_OPTIONS = Options()


class FailureCounts(Counter[str]):
    """Counts of failures by cause, the message of the first failure of each kind."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        """Start with the positive counts of other causes."""
        super().__init__({cause: count for cause, count in (counts or {}).items() if count})
        self._first: dict[str, str] = {}

    def cause(self, error: Exception, topic: str = '') -> str:
        """Return the message under which a failure is counted.

        Failures of one condition, or of one text apart from its numbers, are of one kind: a
        message with a time or a file differs in every frame.
        """
        kind = error.condition if isinstance(error, DataError) else re.sub(
            r'\d+', '#', f'{type(error).__name__}: {error}')
        text = f'{topic}: {error}' if topic else str(error)
        return self._first.setdefault(f'{topic}: {kind}', text)

    def __str__(self) -> str:
        """List all causes in one line."""
        return '; '.join(f'{count} times: {cause.rstrip(".")}'
                         for cause, count in self.most_common())


@dataclass(eq=False)
class Recording:
    """Frames in the order of their times.

    Attributes:
        source: path.
        description: kind of images and depth, in words.
        moments: of the frames.
        decoders: yields position and decoding function of the frames at ascending positions.
        failures: counts of unusable images and measurements by cause, complete after all reads.
        timed: whether the moments' times are a clock's.
        split: format, split and crop of a data set; '' for any other recording.
        topics: of images and depth, in a bag.
        notes: assumptions about all frames, a sentence each.
        integers: whether depth was stored in integers, or in a picture, of a unit that no file
            states.

    """

    source: str
    description: str
    moments: list[Moment]
    decoders: Callable[[list[int]], Iterable[tuple[int, Callable[[], Frame]]]]
    failures: FailureCounts = field(default_factory=FailureCounts)
    timed: bool = True
    split: str = ''
    topics: tuple[str, str] = ('', '')
    notes: list[str] = field(default_factory=list)
    integers: bool = False
    _unusable: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.moments)

    def read(self, positions: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """Yield the frames at some positions of `moments`, ascending, each with its position.

        A frame that cannot be decoded is counted once in `failures` and skipped.

        Raises:
            DepthClipError: the source itself is damaged.

        """
        for position, decode in self.decoders(sorted(set(positions))):
            try:
                frame = decode()
            except (DataError, OSError, ValueError) as error:
                self.failures[self.failures.cause(error)] += position not in self._unusable
                self._unusable.add(position)
                continue
            yield position, frame


# Times -------------------------------------------------------------------------------------------


def nearest_pairs(
    images: Sequence[float], depths: Sequence[float], tolerance: float,
) -> list[tuple[int, int]]:
    """Pair images with depth by their times, the nearest first, each at most once.

    Args:
        images: times, ascending; integers stay exact.
        depths: times in the same unit, ascending.
        tolerance: largest difference of a pair.

    Returns:
        Indices of image and depth, ascending.

    """
    candidates = []
    for depth, time in enumerate(depths):
        after = bisect_left(images, time)
        candidates += [(abs(images[image] - time), image, depth) for image in (after - 1, after)
                       if 0 <= image < len(images)]
    pairs: dict[int, int] = {}
    paired_depths: set[int] = set()
    for difference, image, depth in sorted(candidates):
        if difference <= tolerance and image not in pairs and depth not in paired_depths:
            pairs[image] = depth
            paired_depths.add(depth)
    return sorted(pairs.items())


def moments_in_time(times: Sequence[float], names: Sequence[str]) -> list[Moment]:
    """Make moments of ascending times [s], relative to the first; a pause begins a sequence."""
    steps = np.diff(np.asarray(times, np.float64))
    median = float(np.median(steps)) if steps.size else 0.0
    pauses = steps > max(PAUSE_SECONDS, PAUSE_STEPS * median)
    return [Moment(float(time - times[0]), int(sequence), name) for time, sequence, name in zip(
        times, np.cumsum([0, *pauses]), names, strict=True)]


def blocks(moments: Sequence[Moment]) -> list[int]:
    """Assign moments to blocks for cross-validation: sequences, or pieces of them in time.

    Neighbours in time show nearly the same view, so that only the ends of a piece may have
    neighbours in another block.

    Returns:
        The block of every moment, counted from 0.

    """
    _, index, counts = np.unique(
        [moment.sequence for moment in moments], return_inverse=True, return_counts=True)
    if len(counts) >= MIN_SEQUENCES:
        return [int(sequence) for sequence in index]
    block, first = np.empty_like(index), 0
    for sequence, count in enumerate(counts):
        pieces = min(int(count), max(1, round(BLOCKS * count / len(index))))
        block[index == sequence] = first + np.arange(count) * pieces // count
        first += pieces
    return [int(number) for number in block]


def in_blocks(moments: Sequence[Moment]) -> list[Moment]:
    """Replace the sequence of every moment by its block, see `blocks`."""
    index = blocks(moments)
    sequences = {block: moment.sequence for block, moment in zip(index, moments, strict=True)}
    is_cut = len(sequences) > len(set(sequences.values()))  # in time
    return [moment._replace(sequence=block, adjacent=tuple(
        neighbour for neighbour in (block - 1, block + 1)
        if is_cut and sequences.get(neighbour) == moment.sequence))
        for block, moment in zip(index, moments, strict=True)]


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Select at most `limit` of `count` positions, evenly spaced from first to last."""
    if count <= limit:
        return list(range(count))
    return [int(p) for p in np.unique(np.round(np.linspace(0, count - 1, limit)).astype(int))]


# Sensors -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Clipping:
    """Detector of clipping: a sensor reports its largest depth in place of no measurement.

    Attributes:
        largest: largest depth so far, in metres.
        count: number of pixels with exactly that depth.
        total: number of all pixels with depth.

    """

    largest: float = -math.inf
    count: int = 0
    total: int = 0

    def update(self, depth: Float32) -> None:
        """Count the pixels of one depth map (H, W) in metres, NaN where there is none."""
        valid = depth[np.isfinite(depth)]
        maximum = float(valid.max(initial=-math.inf))
        if maximum > self.largest:
            self.largest, self.count = maximum, 0
        self.count += int((valid == self.largest).sum())
        self.total += valid.size

    @property
    def fraction(self) -> float:
        """Fraction of clipped pixels; 0 if the sensor does not clip."""
        fraction = self.count / max(self.total, 1)
        return fraction if _CLIPPED[0] < fraction < _CLIPPED[1] else 0.0

    def remove(self, depth: Float32) -> Float32:
        """Replace clipped depth by NaN."""
        return np.where(depth < self.largest, depth, np.float32(np.nan)) \
            if self.fraction else depth

    @property
    def notes(self) -> list[str]:
        """A sentence on clipped depth; none if the sensor does not clip."""
        note = (f'{self.fraction:.1%} of the measured pixels have exactly the largest depth of '
                f'all, {self.largest:.6g} m: the sensor clips there, and they count as not '
                'measured. Let its driver say NaN or 0 instead (REP-118).')
        return [note] if self.fraction else []
