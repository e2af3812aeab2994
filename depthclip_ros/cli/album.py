# SPDX-License-Identifier: Apache-2.0
"""Pictures and clouds of a demo: at most so many, evenly spread over a run of unknown length."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..color import (
    UNTRAINED,
    Picture,
    color_range,
    contact_sheet,
    side_by_side,
    write_picture,
)
from ..core.opencv import cv2
from ..node.image_io import depth_values

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# The first image that was answered, as it came.
INPUT = 'input.png'
PATTERNS = ('depth_*.png', 'color_*.png', 'cloud_*.ply', 'overview.png', INPUT,
            'summary.json')
OVERVIEW_PICTURES = 12


@dataclass(frozen=True)
class Cloud:
    """Points that have a depth: (N, 3) metres in the optical frame, and their uint8 RGB."""

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """One answered image.

    Attributes:
        number: of the depth image, from 1.
        picture: the image, BGR; None when the recorder missed it.
        depth: (H, W) metres, NaN where there is none.
        cloud: None when none came.
        caption: line under the picture.

    """

    number: int
    picture: Picture | None
    depth: NDArray[np.floating[Any]]
    cloud: Cloud | None
    caption: str


class Album:
    """Writes frames into a folder, in a thread of its own, and thins them out as they come."""

    def __init__(self, folder: Path, limit: int, bins: Sequence[float], *, trained: bool) -> None:
        """Begin; files of an earlier run in the folder are removed.

        Args:
            folder: exists already.
            limit: how many frames to leave at most.
            bins: depths of the tokens, which give the colours their scale.
            trained: whether the depth means anything.

        """
        self.trained = trained
        self._folder = folder
        self._limit = limit
        self._low, self._high = color_range(bins)
        self._stride = 1
        self._numbers: list[int] = []
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writes: list[Future[None]] = []
        self.lost_pixels = 0
        for pattern in PATTERNS:
            for path in folder.glob(pattern):
                path.unlink()

    def wants(self, number: int) -> bool:
        """Whether a frame would be kept, as far as one can tell by now."""
        return (number - 1) % self._stride == 0

    def add(self, frame: Frame) -> None:
        """Write a frame in the background, unless it has become one too many meanwhile."""
        if not self.wants(frame.number):
            return
        self._writes.append(self._writer.submit(self._write, frame))
        self._numbers.append(frame.number)
        if len(self._numbers) == 2 * self._limit:
            self._stride *= 2
            self._keep([n for n in self._numbers if self.wants(n)])

    def close(self, title: str) -> list[Path]:
        """Finish: the last thinning and the overview.

        Returns:
            The files that are there.

        Raises:
            ConfigError: something could not be written.

        """
        self._numbers.sort()  # a frame whose cloud was late came after its successors
        if len(self._numbers) > self._limit:
            places = np.linspace(0, len(self._numbers) - 1, self._limit).round().astype(int)
            self._keep([self._numbers[place] for place in places])
        self._writer.shutdown()
        for write in self._writes:
            write.result()
        shown = self._numbers[::-(-len(self._numbers) // OVERVIEW_PICTURES) or 1]
        pictures = [cv2.imread(str(self._path('color', number, 'png'))) for number in shown]
        if pictures:
            write_picture(self._folder / 'overview.png', contact_sheet(
                [np.asarray(picture, np.uint8) for picture in pictures], title))
        return sorted(path for pattern in PATTERNS for path in self._folder.glob(pattern))

    def _keep(self, numbers: list[int]) -> None:
        for number in set(self._numbers) - set(numbers):
            self._writes.append(self._writer.submit(self._remove, number))
        self._numbers = numbers

    def _remove(self, number: int) -> None:
        for name, ending in (('depth', 'png'), ('color', 'png'), ('cloud', 'ply')):
            self._path(name, number, ending).unlink(missing_ok=True)

    def _write(self, frame: Frame) -> None:
        millimetres, lost = depth_values(frame.depth, '16UC1')
        self.lost_pixels += lost
        write_picture(self._path('depth', frame.number, 'png'), millimetres)
        picture = frame.picture
        if picture is not None and not (self._folder / INPUT).exists():
            write_picture(self._folder / INPUT, picture)
        if picture is None:
            picture = np.zeros((*frame.depth.shape, 3), np.uint8)
        write_picture(self._path('color', frame.number, 'png'), side_by_side(
            picture, frame.depth, self._low, self._high, frame.caption,
            '' if self.trained else UNTRAINED))
        if frame.cloud is not None:
            write_ply(self._path('cloud', frame.number, 'ply'), frame.cloud, trained=self.trained)

    def _path(self, name: str, number: int, ending: str) -> Path:
        return self._folder / f'{name}_{number:03d}.{ending}'


def write_ply(path: Path, cloud: Cloud, *, trained: bool = True) -> None:
    """Write a cloud as binary PLY: x, y, z in metres, red, green, blue."""
    vertices = np.empty(len(cloud.points), [
        *((name, '<f4') for name in 'xyz'), *((name, 'u1') for name in ('red', 'green', 'blue'))])
    for column, name in enumerate(('x', 'y', 'z')):
        vertices[name] = cloud.points[:, column]
    for column, name in enumerate(('red', 'green', 'blue')):
        vertices[name] = cloud.colors[:, column]
    header = '\n'.join((
        'ply', 'format binary_little_endian 1.0',
        'comment metres; optical frame: x right, y down, z forward',
        *([] if trained else [f'comment {UNTRAINED}']),
        f'element vertex {len(vertices)}',
        'property float x', 'property float y', 'property float z',
        'property uchar red', 'property uchar green', 'property uchar blue', 'end_header\n'))
    path.write_bytes(header.encode() + vertices.tobytes())
