# SPDX-License-Identifier: Apache-2.0
"""Data sets of image and true depth: one pair at a time, and lists of their files."""

from __future__ import annotations

import codecs
import csv
import math
import posixpath
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ImageError
from ...core.file_formats import kind_of
from ...sources.depth_maps import read_depth_map
from ...sources.pictures import SUFFIXES, read_picture
from ..errors import DatasetError, listing

_PROBES = 8
# Origins of images.
NYU, KITTI, RENDERED = 'NYU Depth v2', 'KITTI', 'rendered rooms'
IN_PAINTED = ("the depth is in-painted, not the sensor's: its numbers are not comparable with the "
              "paper's.")
LISTS = ("A list names an image and its annotated depth on each line, as BTS's "
         'eigen_test_files_with_gt.txt (652 images) and nyudepthv2_test_files_with_gt.txt do; a '
         'name with spaces stands in quotation marks.')
NO_DEPTH = 'None'  # in a list: the image has no annotated depth
# Stored depth per metre in common files: depth / 80, / 10, metres, feet, deci- and centimetres,
# KITTI's, 2 mm, millimetres, half millimetres, TUM's, 16 bits for 10 m, SUN RGB-D's millimetres
# times 8.
SCALES = (1 / 80, 0.1, 1.0, 3.28084, 10.0, 100.0, 256.0, 500.0, 1000.0, 2000.0, 5000.0, 6553.5,
          8000.0)

Rgb = NDArray[np.uint8]
Metres = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """An image (H, W, 3) uint8 RGB and its true depth (H, W) float32 in metres, 0 if missing."""

    rgb: Rgb
    depth: Metres


@dataclass(frozen=True)
class Entry:
    """Description of a pair, known without reading its files; '' where the data do not tell."""

    index: int  # number in the data set
    name: str  # of the image
    scene: str = ''  # scene class, such as 'kitchen'
    sequence: str = ''  # the place or drive, which several images share
    focal: float = 0.0  # focal length in pixels; 0 where the data do not tell
    files: tuple[Path, Path] = (Path(), Path())  # image and depth, of data sets of files


@dataclass
class Dataset:
    """Pairs of image and depth."""

    path: Path
    format: str  # in words, for the report
    split: str
    depth: str  # 'raw', 'in-painted' or 'sparse lidar'
    entries: list[Entry]
    rgb: Callable[[Entry], Rgb]  # reads an image; raises DatasetError if it is damaged
    truth: Callable[[Entry], Metres]  # reads its depth; raises DatasetError as well
    origin: str = ''  # NYU, KITTI or RENDERED; '' where the data do not tell
    official: bool = False  # whether these are the 654 images of NYU's test split with raw depth
    scale: float = 1000.0  # stored depth per metre in files of this kind of data
    warnings: tuple[str, ...] = ()  # reasons why numbers are not comparable
    training: Callable[[], Dataset | None] = lambda: None  # opens the training split

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def depth_ranges(self) -> tuple[tuple[float, float], ...]:
        """Metres on the road or indoors: possible medians, usual medians, limits of sensors."""
        return ((1.5, 80.0), (5.0, 40.0), (70.0, 95.0)) if self.origin == KITTI else (
            (0.3, 9.9), (1.0, 6.0), (9.5, 10.05))

    def read(self, position: int) -> Pair:
        """Read the pair at a position of `entries`."""
        return Pair(self.rgb(self.entries[position]), self.read_truth(position))

    def read_truth(self, position: int) -> Metres:
        """Read the true depth only."""
        return self.truth(self.entries[position])

    def mark_in_painted(self) -> None:
        """Record that the depth is in-painted, not the sensor's, with a warning."""
        self.official, self.depth = False, 'in-painted'
        self.warnings += (f'{self.path}: {IN_PAINTED}',)

    def probes(self) -> list[int]:
        """Choose up to 8 positions, evenly spaced."""
        positions = np.linspace(0, len(self) - 1, min(len(self), _PROBES)).astype(int)
        return sorted(set(positions.tolist()))

    def check_unit(self) -> None:
        """Check on a few true depth maps that they are metres once read, and the sensor's.

        An impossible median is an error. An unusual median is an error where another unit would
        make it usual and the largest depth the sensor's limit; else it is a warning, since such
        places may exist.

        Raises:
            DatasetError: the depth has another unit.

        """
        depths = [self.read_truth(p) for p in self.probes()]
        if self.official and all((d > 0).all() for d in depths):  # no sensor sees everything
            self.mark_in_painted()
        depths = [d[d > 0] for d in depths if (d > 0).any()]
        if not depths:
            return
        median = float(np.median([np.median(d) for d in depths]))
        largest = max(float(d.max()) for d in depths)
        (low, high), (usual_low, usual_high), (sensor_low, sensor_high) = self.depth_ranges
        if usual_low <= median <= usual_high:
            return
        message = (f'{self.path}: the median depth of {len(depths)} images is {median:.4g} m, the '
                   f'largest {largest:.4g} m; {low:g} to {high:g} m is possible for the median, '
                   f'{usual_low:g} to {usual_high:g} m is usual')
        scales = [scale for scale in SCALES
                  if usual_low <= self.scale / scale * median <= usual_high
                  and self.scale / scale * largest <= sensor_high]
        unit_ratio = self.scale / scales[0] if scales else 0.0
        if scales:
            message += ', and it would be so times ' + ' or '.join(
                f'{self.scale / scale:.4g}' for scale in scales) + (
                f': it looks like {" or ".join(f"{scale:.6g}" for scale in scales)} a metre, not '
                f'{self.scale:g}' if self.path.is_dir() else '')
        if not low <= median <= high or sensor_low <= unit_ratio * largest:
            raise DatasetError(f'{message}. It is stored in another unit than this format has; '
                               'convert the depth.')
        self.warnings += (f'{message}. Is it stored in another unit than this format has?',)


def nearest_scale(per_metre: float) -> float:
    """Find the common scale (stored depth per metre) nearest to a ratio."""
    return min(SCALES, key=lambda scale: abs(math.log(scale / per_metre)))


def dataset_of_files(
    path: Path, form: str, entries: list[Entry], *, split: str, depth: str, scale: float = 1000.0,
) -> Dataset:
    """Make a data set of image files and depth files.

    An image that exists with another suffix only is used, with a warning. Positions replace the
    numbers of images that are not unique, as in several recordings.

    Raises:
        DatasetError: there are no entries, or files are missing; the message lists them.

    """
    paths = [entry.files[0] for entry in entries]
    if len({entry.index for entry in entries}) < len(entries):
        entries = [replace(entry, index=place) for place, entry in enumerate(entries)]
    entries = [replace(entry, files=(_existing_file(entry.files[0], SUFFIXES),
                                     _existing_file(entry.files[1]))) for entry in entries]
    missing = [str(f) for entry in entries for f in entry.files if not f.is_file()]
    if missing or not entries:
        raise DatasetError(
            f'{path}: {len(missing)} files of {2 * len(entries)} are missing; complete the '
            f'data or correct the list:{listing(missing)}')
    changed = [(name.name, entry.files[0].name)
               for name, entry in zip(paths, entries, strict=True)
               if name.suffix != entry.files[0].suffix]
    return Dataset(
        path, form, split, depth, entries, lambda entry: read_rgb(entry.files[0]),
        lambda entry: read_depth(entry.files[1], scale), scale=scale,
        warnings=tuple(
            f'{len(changed)} images are of another format than the list says ({file} for {name}): '
            'JPEG changes pixels, and so digits.' for name, file in changed[:1]))


def _existing_file(file: Path, suffixes: Iterable[str] = ()) -> Path:
    """Find a file by its name, its name with another suffix, or another Unicode normal form.

    Systems write a letter with an accent as one character (NFC) or two (NFD).
    """
    candidates = [file, *(file.with_suffix(end) for suffix in sorted(suffixes)
                          for end in (suffix, suffix.upper()))]
    forms = (Path(unicodedata.normalize(form, str(name))) for form in ('NFC', 'NFD')
             for name in candidates)
    return next((name for name in (*candidates, *forms) if name.is_file()), file)


def read_rgb(path: Path) -> Rgb:
    """Read an image file: (H, W, 3) RGB."""
    try:
        image = read_picture(path, upright=False)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    return np.ascontiguousarray(image[:, :, ::-1])


def read_depth(path: Path, scale: float) -> Metres:
    """Read a depth map: (H, W) metres, 0 where invalid; `scale` is for integers only."""
    try:
        stored = read_depth_map(path)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    metres = stored.astype(np.float32)
    if stored.dtype.kind != 'f':
        return metres / np.float32(scale)
    return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))


def read_list(path: Path, *folders: Path) -> list[tuple[str, str, float]]:
    """Read a list of pairs: names of image and depth, and the focal length in pixels or 0.

    Quotation marks enclose a name with spaces. Absolute names inside one of the folders become
    relative to it; any other leading slash is removed, as in the list of BTS. Further columns
    (dense depth) and lines that begin with # are ignored. The order is the file's.

    Raises:
        DatasetError: the file is no text or no such list, or names an image or a depth twice.

    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f'{path}: the list cannot be read: {error.strerror}.') from error
    kind = kind_of(content)
    if kind.name not in ('', 'text', 'json', 'empty') or b'\0' in content:
        raise DatasetError(f'{path}: is no list but {kind.sentence}. {LISTS}')
    text = content.removeprefix(codecs.BOM_UTF8).decode('utf-8', 'surrogateescape')
    rows: dict[str, tuple[str, str, float]] = {}
    depths: set[str] = set()
    incomplete = []
    for number, line in enumerate(text.splitlines(), 1):
        normalized = line.replace('\\', '/')
        row = normalized.split() if '"' not in normalized else [*filter(None, next(csv.reader(
            [normalized.replace('\t', ' ')], delimiter=' ', skipinitialspace=True)))]
        if not row or row[0].startswith('#'):
            continue
        if len(row) == 1:
            incomplete.append(row[0])
            continue
        if row[1].isdigit():
            raise DatasetError(f"{path}: line {number} is of monodepth2's list (FOLDER FRAME l: "
                               f'697 images, scored on the raw lidar). {LISTS}')
        rgb, depth = (_relative_name(name, folders) for name in row[:2])
        if rgb in rows:
            raise DatasetError(f'{path}: line {number} names {rgb} again, which would be scored '
                               'twice; remove one of the lines.')
        if depth in depths:
            raise DatasetError(f'{path}: line {number} names {depth} again, which is the depth of '
                               'another image; correct it.')
        depths.update({depth} - {NO_DEPTH})
        rows[rgb] = rgb, depth, _parse_focal(*row[2:3])
    if incomplete or not rows:
        raise DatasetError(f'{path}: every line must name an image and its depth, separated by a '
                           f'space; found{listing(incomplete) or " no line"}')
    return list(rows.values())


def _relative_name(name: str, folders: Iterable[Path]) -> str:
    """Normalize a name, relative to the first folder that contains it."""
    normalized = posixpath.normpath(name)
    for folder in folders if normalized.startswith('/') else ():
        for root in folder.absolute(), folder.resolve():
            if Path(normalized).is_relative_to(root):
                return Path(normalized).relative_to(root).as_posix()
    return normalized.lstrip('/')


def _parse_focal(text: str = '') -> float:
    """Parse a focal length in pixels; 0 where the text is another column."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 < value < math.inf else 0.0
