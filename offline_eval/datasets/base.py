# SPDX-License-Identifier: Apache-2.0
"""What every data set offers: pairs of image and true depth, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, listing

_PROBES = 8
# Worlds that images are of.
NYU, KITTI, RENDERED = 'NYU Depth v2', 'KITTI', 'rendered rooms'
IN_PAINTED = ("the depth is in-painted, not the sensor's: its numbers are not comparable with the "
              "paper's.")

Rgb = NDArray[np.uint8]
Metres = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """An image (H, W, 3) uint8 RGB and its true depth (H, W) float32 in metres, 0 if missing."""

    rgb: Rgb
    depth: Metres


@dataclass(frozen=True)
class Entry:
    """What is known of a pair without reading it; '' where the data do not say."""

    index: int  # its number in the data set
    name: str  # of the image
    scene: str = ''  # its class, as 'kitchen'
    sequence: str = ''  # the very scene or drive, of which there are several images
    focal: float = 0.0  # the camera's focal length in pixels; 0 where the data do not say
    files: tuple[Path, Path] = (Path(), Path())  # of image and depth, where they are files


@dataclass
class Dataset:
    """Pairs of image and depth."""

    path: Path  # where it was found
    format: str  # in words, for the report, as the following
    split: str
    depth: str  # 'raw', 'in-painted' or 'sparse lidar'
    entries: list[Entry]
    rgb: Callable[[Entry], Rgb]  # reads an image; raises DatasetError if it is damaged
    truth: Callable[[Entry], Metres]  # the same of its depth
    origin: str = ''  # what world the images are of, as NYU; '' where nothing says so
    official: bool = False  # whether these are the 654 images of NYU's test split with raw depth
    scale: float = 1000.0  # how much stored depth is a metre in files of such data
    warnings: tuple[str, ...] = ()  # what makes numbers incomparable
    training: Callable[[], Dataset | None] = lambda: None  # opens the training split

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def plausible(self) -> tuple[float, float]:
        """Medians of true depth that are possible, in metres: on the road, and indoors."""
        return (1.5, 80.0) if self.origin == KITTI else (0.3, 9.9)

    def read(self, position: int) -> Pair:
        """Read the pair at a position of `entries`."""
        return Pair(self.rgb(self.entries[position]), self.read_truth(position))

    def read_truth(self, position: int) -> Metres:
        """Read the true depth only."""
        return self.truth(self.entries[position])

    def is_in_painted(self) -> None:
        """Note that the depth is not the sensor's."""
        self.official, self.depth = False, 'in-painted'
        self.warnings += (f'{self.path}: {IN_PAINTED}',)

    def probes(self) -> list[int]:
        """A few positions, evenly from all."""
        few = np.linspace(0, len(self) - 1, min(len(self), _PROBES)).astype(int)
        return sorted(set(few.tolist()))

    def check_unit(self) -> None:
        """Look at a few ground truths: are they metres once read, and the sensor's?

        Raises:
            DatasetError: the median depth is impossible.

        """
        depths = [self.read_truth(p) for p in self.probes()]
        if self.official and all((d > 0).all() for d in depths):  # no sensor sees everything
            self.is_in_painted()
        medians = [float(np.median(d[d > 0])) for d in depths if (d > 0).any()]
        low, high = self.plausible
        if medians and not low <= np.median(medians) <= high:
            raise DatasetError(
                f'{self.path}: the median depth of {len(medians)} images is '
                f'{np.median(medians):.4g} m, outside {low:g} to {high:g} m: it is stored in '
                'another unit than this format has. Convert the depth.')


def of_files(
    path: Path, form: str, entries: list[Entry], *, split: str, depth: str, scale: float = 1000.0,
) -> Dataset:
    """Make a data set of image files and 16-bit depth files.

    Raises:
        DatasetError: there are none, or some are missing: all are listed.

    """
    missing = [str(f) for entry in entries for f in entry.files if not f.is_file()]
    if missing or not entries:
        raise DatasetError(
            f'{path}: {len(missing)} files of {2 * len(entries)} are missing; complete the '
            f'data or correct the list:{listing(missing)}')
    return Dataset(path, form, split, depth, entries, lambda entry: read_rgb(entry.files[0]),
                   lambda entry: read_depth(entry.files[1], scale), scale=scale)


def read_rgb(path: Path) -> Rgb:
    """(H, W, 3) RGB of an image file."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise DatasetError(f'{path}: cannot be decoded; the file is damaged. Copy it again.')
    return np.ascontiguousarray(image[:, :, ::-1]).astype(np.uint8, copy=False)


def read_depth(path: Path, scale: float) -> Metres:
    """(H, W) metres of a 16-bit image file."""
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise DatasetError(f'{path}: cannot be decoded; the file is damaged. Copy it again.')
    if stored.dtype != np.uint16 or stored.ndim != 2:
        raise DatasetError(f'{path}: holds {stored.dtype} {stored.shape}; expected 16 bits, one '
                           f'channel, {scale:g} per metre.')
    return stored.astype(np.float32) / np.float32(scale)


def read_list(path: Path) -> list[tuple[str, str, float]]:
    """Two names of files per line, and the focal length in pixels; 0 where no number is third.

    Further columns (dense depth) are ignored.
    """
    try:
        rows = sorted(line.split() for line in path.read_text(encoding='utf-8').splitlines()
                      if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f'{path}: the list cannot be read: {error}.') from error
    short = [row[0] for row in rows if len(row) == 1]
    if short or not rows:
        raise DatasetError(f'{path}: every line must name an image and its depth, separated by a '
                           f'space; found{listing(short) or " no line"}')
    return [(row[0].lstrip('/'), row[1].lstrip('/'),
             float(row[2]) if re.fullmatch(r'\d+\.?\d*', ''.join(row[2:3])) else 0.0)
            for row in rows]
