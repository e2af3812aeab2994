# SPDX-License-Identifier: Apache-2.0
"""Recordings: images, and depth that was measured, on the same pixels.

Of folders and of the data sets of `evaluation` in `folders`; of bags in `bags`.
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
from ..sources.camera_info import CameraCalibration

Float32 = NDArray[np.float32]

#: A pause longer than this, and than ten usual steps, begins another sequence [s].
LONGEST_STEP, USUAL_STEPS = 2.0, 10
#: So many sequences are blocks themselves; fewer are cut in time.
FEW_SEQUENCES, BLOCKS = 5, 10
#: Depth maps of a recording that are looked at for the value at which its sensor clips.
LIMIT_FRAMES = 64
# Shares of the measured pixels that have exactly the largest value of all: of a sensor that clips
# there 10 % and more, of others a millionth; where nearly all have it, nothing else was measured.
_CLIPPED = 0.01, 0.9


class RecordingError(DepthClipError):
    """A recording cannot be read, or holds nothing to calibrate from; says what to do."""


class Moment(NamedTuple):
    """What is known of a frame before it is read."""

    time: float = 0.0  # seconds; counted from 0 where the source has no times
    sequence: int = 0
    name: str = ''
    adjacent: tuple[int, ...] = ()  # sequences that end or begin where this one does, in time


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
        depth_camera: of depth images, instead of the recording's own.
        depth_rectified: depth images are; None: those are whose topic says so (`rect`).
        unit: what a stored unit of depth is, in metres; 0: as its encoding or file says.
        protocol: of a data set: what of its images is seen; '': all.
        said: topic of depth that was not measured, which is passed over.

    """

    image: str = ''
    depth: str = ''
    tolerance: float = 0.05
    camera: CameraModel | None = None
    rectified: bool = False
    depth_camera: CameraCalibration | None = None
    depth_rectified: bool | None = None
    unit: float = 0.0
    protocol: str = ''
    said: str = ''

    def metres(self, depth: Float32, *, integer: bool) -> Float32:
        """Depth that was read as millimetres (of integers) or metres, by the unit given."""
        factor = self.unit * (MILLIMETRES if integer else 1.0)
        return depth * np.float32(factor) if factor else depth


AS_IT_IS = Options()


class LeftOut(Counter[str]):
    """How often something could not be used, by cause: a sentence, of each kind the first one."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        """Begin with causes that are counted already; those with 0 are none."""
        super().__init__({cause: count for cause, count in (counts or {}).items() if count})
        self._first: dict[str, str] = {}

    def cause(self, error: Exception, what: str = '') -> str:
        """The sentence that a failure is counted under.

        Failures are of one kind where they have one condition, or one text but for its numbers:
        a sentence that names a time or a file would be another one for every frame.
        """
        kind = error.condition if isinstance(error, DataError) else re.sub(
            r'\d+', '#', f'{type(error).__name__}: {error}')
        text = f'{what}: {error}' if what else str(error)
        return self._first.setdefault(f'{what}: {kind}', text)

    def __str__(self) -> str:
        """All of it in one line."""
        return '; '.join(f'{count} times: {cause.rstrip(".")}'
                         for cause, count in self.most_common())


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
        notes: what was assumed of all of it, a sentence each.
        integers: whether depth was stored in whole numbers, of a unit that no file tells.

    """

    source: str
    described: str
    moments: list[Moment]
    find: Callable[[list[int]], Iterable[tuple[int, Callable[[], Frame]]]]
    left_out: LeftOut = field(default_factory=LeftOut)
    timed: bool = True
    split: str = ''
    topics: tuple[str, str] = ('', '')
    notes: list[str] = field(default_factory=list)
    integers: bool = False
    _unusable: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.moments)

    def read(self, positions: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """Give the frames at some positions of `moments`, ascending, each with its position.

        What cannot be decoded is counted, once however often it is read, and not given. Causes
        are counted by their kind, see `LeftOut`.

        Raises:
            DepthClipError: the source itself is damaged.

        """
        for position, decode in self.find(sorted(set(positions))):
            try:
                frame = decode()
            except (DataError, OSError, ValueError) as error:
                self.left_out[self.left_out.cause(error)] += position not in self._unusable
                self._unusable.add(position)
                continue
            yield position, frame


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
    _, owner, counts = np.unique(
        [moment.sequence for moment in moments], return_inverse=True, return_counts=True)
    if len(counts) >= FEW_SEQUENCES:
        return [int(sequence) for sequence in owner]
    block, begun = np.empty_like(owner), 0
    for number, count in enumerate(counts):
        pieces = min(int(count), max(1, round(BLOCKS * count / len(owner))))
        block[owner == number] = begun + np.arange(count) * pieces // count
        begun += pieces
    return [int(number) for number in block]


def in_blocks(moments: Sequence[Moment]) -> list[Moment]:
    """The same moments, whose sequences are now their `blocks`."""
    owner = blocks(moments)
    kin = {block: moment.sequence for block, moment in zip(owner, moments, strict=True)}
    pieces = len(kin) > len(set(kin.values()))  # of sequences that were cut in time
    return [moment._replace(sequence=block, adjacent=tuple(
        other for other in (block - 1, block + 1)
        if pieces and kin.get(other) == moment.sequence))
        for block, moment in zip(owner, moments, strict=True)]


def spread_evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` positions, at equal distances, first and last among them."""
    if count <= most:
        return list(range(count))
    return [int(p) for p in np.unique(np.round(np.linspace(0, count - 1, most)).astype(int))]


# Sensors -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Clipping:
    """The value at which a sensor clips its depth, where it should say that there is none.

    Attributes:
        largest: metres, of all depth that was looked at.
        count: of the pixels that have it.
        total: of all pixels that were looked at and have depth.

    """

    largest: float = -math.inf
    count: int = 0
    total: int = 0

    def look(self, depth: Float32) -> None:
        """Take in one depth map (H, W) in metres, NaN where there is none."""
        known = depth[np.isfinite(depth)]
        top = float(known.max(initial=-math.inf))
        if top > self.largest:
            self.largest, self.count = top, 0
        self.count += int((known == self.largest).sum())
        self.total += known.size

    @property
    def share(self) -> float:
        """Of the pixels, those that are clipped; 0 where the sensor does not clip."""
        share = self.count / max(self.total, 1)
        return share if _CLIPPED[0] < share < _CLIPPED[1] else 0.0

    def removed(self, depth: Float32) -> Float32:
        """Depth without what is clipped, NaN there."""
        return np.where(depth < self.largest, depth, np.float32(np.nan)) if self.share else depth

    @property
    def notes(self) -> list[str]:
        """That there is some, in a sentence."""
        note = (f'{self.share:.1%} of the measured pixels have exactly the largest depth of all, '
                f'{self.largest:.6g} m: the sensor clips there, and they count as not measured. '
                'Let its driver say NaN or 0 instead (REP-118).')
        return [note] if self.share else []
