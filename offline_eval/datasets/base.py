# SPDX-License-Identifier: Apache-2.0
"""What every data set offers: pairs of image and true depth, one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, listing

# Medians of true depth that are possible, in metres: indoors, and on the road.
INDOORS, OUTDOORS = (0.3, 9.9), (1.5, 80.0)
_PROBES = 8
# Pixels: fx of the colour camera, camera_params.m of the data set's toolbox.
NYU_FOCAL = 518.8579
# Worlds that images are of.
NYU, KITTI, RENDERED = 'NYU Depth v2', 'KITTI', 'rendered rooms'
IN_PAINTED = ("the depth is in-painted, not the sensor's: its numbers are not comparable with the "
              "paper's.")


@dataclass(frozen=True)
class Pair:
    """An image (H, W, 3) uint8 RGB and its true depth (H, W) float32 in metres, 0 if missing."""

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """What is known of a pair without reading it; '' where the data do not say.

    Attributes:
        index: its number in the data set.
        name: of the image.
        scene: its class, as 'kitchen'.
        sequence: the very scene or drive, of which there are several images.
        focal: the camera's focal length in pixels; 0 where the data do not say.

    """

    index: int
    name: str
    scene: str = ''
    sequence: str = ''
    focal: float = 0.0


class Dataset(ABC):
    """Pairs of image and depth. Can be sent to other processes.

    Attributes:
        path: where it was found.
        format, split, depth: in words, for the report; depth is 'raw', 'in-painted' or
            'sparse lidar'.
        origin: what world the images are of, e.g. 'NYU Depth v2' or 'rendered rooms'; '' where
            nothing says so.
        entries: one per pair, in the data set's order.
        official: whether these are the 654 images of NYU's test split with raw depth.
        plausible: medians of the true depth that are possible, in metres.
        warnings: what makes numbers incomparable.

    """

    path: Path
    format: str
    split: str
    depth: str
    origin = ''
    entries: list[Entry]
    official = False
    plausible = INDOORS
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    @abstractmethod
    def read(self, position: int) -> Pair:
        """Read the pair at a position of `entries`.

        Raises:
            DatasetError: it is damaged.

        """

    def read_truth(self, position: int) -> NDArray[np.float32]:
        """Read the true depth only."""
        return self.read(position).depth

    def close(self) -> None:  # noqa: B027 - most have nothing open
        """Let go of open files, before other processes are started."""

    def training(self) -> Dataset | None:
        """The training split, where it lies beside; for the mean map."""
        return None

    def keep(self, positions: list[int]) -> None:
        """Leave out all but these."""
        self.split += f', {len(positions)} of {len(self)} images'
        self.entries = [self.entries[p] for p in positions]
        self.official = False

    def is_in_painted(self) -> None:
        """Note that the depth is not the sensor's."""
        self.official, self.depth = False, 'in-painted'
        self.warnings += (f'{self.path}: {IN_PAINTED}',)

    def check_unit(self) -> None:
        """Look at a few ground truths: are they metres once read, and the sensor's?

        Raises:
            DatasetError: the median depth is impossible.

        """
        positions = np.unique(np.linspace(0, len(self) - 1, _PROBES).astype(int))
        depths = [self.read_truth(int(p)) for p in positions]
        if self.official and all((d > 0).all() for d in depths):  # no sensor sees everything
            self.is_in_painted()
        medians = [float(np.median(d[d > 0])) for d in depths if (d > 0).any()]
        self.close()
        if not medians:
            return  # Each such image is counted when it is met.
        low, high = self.plausible
        median = float(np.median(medians))
        if not low <= median <= high:
            guess = ('metres or another scale was stored' if median < low
                     else 'millimetres or another scale was stored')
            raise DatasetError(
                f'{self.path}: the median depth of {len(medians)} images is {median:.4g} m, '
                f'outside {low:g} to {high:g} m: {guess} where this format has '
                f'{self.unit}. Convert the depth.')

    #: Unit of the stored depth.
    unit = 'millimetres'


class FileDataset(Dataset):
    """Pairs of image files and 16-bit depth files.

    Attributes:
        scale: stored depth per metre.

    """

    scale = 1000.0

    def __init__(self, path: Path, entries: list[Entry], files: list[tuple[Path, Path]]) -> None:
        """Keep the names; every file must be there.

        Raises:
            DatasetError: there are none, or some are missing: all are listed.

        """
        self.path, self.entries, self.files = path, entries, files
        if not entries:
            raise DatasetError(f'{path}: no images found; expected {self.format}.')
        missing = [str(f) for pair in files for f in pair if not f.is_file()]
        if missing:
            raise DatasetError(
                f'{path}: {len(missing)} files of {2 * len(files)} are missing; complete the '
                f'data or correct the list:{listing(missing)}')

    def keep(self, positions: list[int]) -> None:
        """Leave out all but these."""
        super().keep(positions)
        self.files = [self.files[p] for p in positions]

    def read(self, position: int) -> Pair:
        """Decode both files."""
        rgb_file, depth_file = self.files[position]
        return Pair(read_rgb(rgb_file), read_depth(depth_file, self.scale))

    def read_truth(self, position: int) -> NDArray[np.float32]:
        """Decode the depth file."""
        return read_depth(self.files[position][1], self.scale)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of an image file."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise DatasetError(f'{path}: cannot be decoded; the file is damaged. Copy it again.')
    return np.ascontiguousarray(image[:, :, ::-1]).astype(np.uint8, copy=False)


def read_depth(path: Path, scale: float) -> NDArray[np.float32]:
    """(H, W) metres of a 16-bit image file."""
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise DatasetError(f'{path}: cannot be decoded; the file is damaged. Copy it again.')
    if stored.dtype != np.uint16 or stored.ndim != 2:
        raise DatasetError(f'{path}: holds {stored.dtype} {stored.shape}; expected 16 bits, one '
                           f'channel, {scale:g} per metre.')
    return stored.astype(np.float32) / np.float32(scale)
