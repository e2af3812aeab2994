# SPDX-License-Identifier: Apache-2.0
"""What every data set offers: pairs of image and true depth, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, listing

# Medians of true depth that are possible, in metres: indoors, and on the road.
INDOORS, OUTDOORS = (0.3, 9.9), (1.5, 80.0)
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
    """What is known of a pair without reading it; '' where the data do not say.

    Attributes:
        index: its number in the data set.
        name: of the image.
        scene: its class, as 'kitchen'.
        sequence: the very scene or drive, of which there are several images.
        focal: the camera's focal length in pixels; 0 where the data do not say.
        files: of image and depth, where they are files.

    """

    index: int
    name: str
    scene: str = ''
    sequence: str = ''
    focal: float = 0.0
    files: tuple[Path, Path] = (Path(), Path())


@dataclass
class Dataset:
    """Pairs of image and depth.

    Attributes:
        path: where it was found.
        format, split, depth: in words, for the report; depth is 'raw', 'in-painted' or
            'sparse lidar'.
        entries: one per pair, in the data set's order.
        rgb, truth: read an entry's image, and its depth; they raise DatasetError if it is damaged.
        origin: what world the images are of, e.g. 'NYU Depth v2' or 'rendered rooms'; '' where
            nothing says so.
        official: whether these are the 654 images of NYU's test split with raw depth.
        unit: of the stored depth, in words.
        scale: how much stored depth is a metre in files of such data.
        plausible: medians of the true depth that are possible, in metres.
        warnings: what makes numbers incomparable.
        training: opens the training split, where it lies beside.
        close: lets go of an open file.

    """

    path: Path
    format: str
    split: str
    depth: str
    entries: list[Entry]
    rgb: Callable[[Entry], Rgb]
    truth: Callable[[Entry], Metres]
    origin: str = ''
    official: bool = False
    unit: str = 'millimetres'
    scale: float = 1000.0
    plausible: tuple[float, float] = INDOORS
    warnings: tuple[str, ...] = ()
    training: Callable[[], Dataset | None] = lambda: None
    close: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, position: int) -> Pair:
        """Read the pair at a position of `entries`.

        Raises:
            DatasetError: it is damaged.

        """
        return Pair(self.rgb(self.entries[position]), self.read_truth(position))

    def read_truth(self, position: int) -> Metres:
        """Read the true depth only."""
        return self.truth(self.entries[position])

    def keep(self, positions: Sequence[int]) -> None:
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
        depths = [self.read_truth(p) for p in evenly(len(self), _PROBES)]
        if self.official and all((d > 0).all() for d in depths):  # no sensor sees everything
            self.is_in_painted()
        medians = [float(np.median(d[d > 0])) for d in depths if (d > 0).any()]
        if not medians:
            return  # Each such image is counted when it is met.
        low, high = self.plausible
        median = float(np.median(medians))
        if not low <= median <= high:
            stored = 'metres' if median < low else 'millimetres'
            raise DatasetError(
                f'{self.path}: the median depth of {len(medians)} images is {median:.4g} m, '
                f'outside {low:g} to {high:g} m: {stored} or another scale was stored where this '
                f'format has {self.unit}. Convert the depth.')


def evenly(count: int, wanted: int) -> list[int]:
    """At most so many numbers below `count`, the first and the last among them."""
    return [int(n) for n in np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int))]


def of_files(
    path: Path, form: str, entries: list[Entry], *, split: str, depth: str, scale: float = 1000.0,
) -> Dataset:
    """Make a data set of image files and 16-bit depth files; every file must be there.

    Args:
        path: where it was found.
        form: its format, in words.
        entries: with their files.
        split: in words.
        depth: in words.
        scale: stored depth per metre.

    Raises:
        DatasetError: there are none, or some are missing: all are listed.

    """
    if not entries:
        raise DatasetError(f'{path}: no images found; expected {form}.')
    missing = [str(f) for entry in entries for f in entry.files if not f.is_file()]
    if missing:
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

    Raises:
        DatasetError: it cannot be read, is empty, or lines have fewer columns.

    """
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f'{path}: the list cannot be read: {error}.') from error
    rows = [line.split() for line in lines if line.strip()]
    short = [f'line {i + 1}: {line!r}' for i, line in enumerate(lines)
             if len(line.split()) == 1]
    if short or not rows:
        raise DatasetError(f'{path}: every line must name an image and its depth, separated by a '
                           f'space; found{listing(short) or " no line"}')
    return [(row[0].lstrip('/'), row[1].lstrip('/'), _focal(row[2:])) for row in sorted(rows)]


def _focal(columns: list[str]) -> float:
    try:
        focal = float(columns[0])
    except (IndexError, ValueError):
        return 0.0
    return focal if 0.0 < focal < math.inf else 0.0
