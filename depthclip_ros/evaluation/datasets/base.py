# SPDX-License-Identifier: Apache-2.0
"""What every data set offers: pairs of image and true depth, one at a time."""

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
from ...core.formats import kind_of
from ...sources.depth_maps import read_depth_map
from ...sources.pictures import SUFFIXES, read_picture
from ..errors import DatasetError, listing

_PROBES = 8
# Worlds that images are of.
NYU, KITTI, RENDERED = 'NYU Depth v2', 'KITTI', 'rendered rooms'
IN_PAINTED = ("the depth is in-painted, not the sensor's: its numbers are not comparable with the "
              "paper's.")
LISTS = ("A list names an image and its annotated depth on each line, as BTS's "
         'eigen_test_files_with_gt.txt (652 images) and nyudepthv2_test_files_with_gt.txt do; a '
         'name with spaces stands in quotation marks.')
NO_DEPTH = 'None'  # in a list: nobody has annotated the image
# Stored depth per metre, as others have it: depth / 80, / 10, metres, feet, deci- and centimetres,
# KITTI's, millimetres and others, TUM's, 16 bits for 10 m, SUN RGB-D's millimetres without the
# turn of their bits.
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
    def world(self) -> tuple[tuple[float, float], ...]:
        """Metres on the road or indoors: possible and usual medians, and where a sensor ends."""
        return ((1.5, 80.0), (5.0, 40.0), (70.0, 95.0)) if self.origin == KITTI else (
            (0.3, 9.9), (1.0, 6.0), (9.5, 10.05))

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

        A median that is impossible is an error. One that is only unusual is an error where in
        another usual unit it were usual and the largest depth were the sensor's limit; else a
        warning, for there may be such places.

        Raises:
            DatasetError: the depth is of another unit.

        """
        depths = [self.read_truth(p) for p in self.probes()]
        if self.official and all((d > 0).all() for d in depths):  # no sensor sees everything
            self.is_in_painted()
        depths = [d[d > 0] for d in depths if (d > 0).any()]
        if not depths:
            return
        median = float(np.median([np.median(d) for d in depths]))
        most = max(float(d.max()) for d in depths)
        (low, high), (least, greatest), (near, far) = self.world
        if least <= median <= greatest:
            return
        what = (f'{self.path}: the median depth of {len(depths)} images is {median:.4g} m, the '
                f'largest {most:.4g} m; {low:g} to {high:g} m is possible for the median, '
                f'{least:g} to {greatest:g} m is usual')
        scales = [scale for scale in SCALES if least <= self.scale / scale * median <= greatest
                  and self.scale / scale * most <= far]
        factor = self.scale / scales[0] if scales else 0.0
        if scales:
            what += ', and it would be so times ' + ' or '.join(
                f'{self.scale / scale:.4g}' for scale in scales) + (
                f': it looks like {" or ".join(f"{scale:.6g}" for scale in scales)} a metre, not '
                f'{self.scale:g}' if self.path.is_dir() else '')
        if not low <= median <= high or near <= factor * most:
            raise DatasetError(f'{what}. It is stored in another unit than this format has; '
                               'convert the depth.')
        self.warnings += (f'{what}. Is it stored in another unit than this format has?',)


def nearest_scale(per_metre: float) -> float:
    """Of the usual scales that which is nearest."""
    return min(SCALES, key=lambda scale: abs(math.log(scale / per_metre)))


def of_files(
    path: Path, form: str, entries: list[Entry], *, split: str, depth: str, scale: float = 1000.0,
) -> Dataset:
    """Make a data set of image files and depth files.

    An image that is there with another suffix only is taken, with a warning. Where numbers of
    images are not unique, as of several recordings, their places count instead.

    Raises:
        DatasetError: there are none, or some are missing: all are listed.

    """
    names = [entry.files[0] for entry in entries]
    if len({entry.index for entry in entries}) < len(entries):
        entries = [replace(entry, index=place) for place, entry in enumerate(entries)]
    entries = [replace(entry, files=(_stored(entry.files[0], SUFFIXES), _stored(entry.files[1])))
               for entry in entries]
    missing = [str(f) for entry in entries for f in entry.files if not f.is_file()]
    if missing or not entries:
        raise DatasetError(
            f'{path}: {len(missing)} files of {2 * len(entries)} are missing; complete the '
            f'data or correct the list:{listing(missing)}')
    renames = [(name.name, entry.files[0].name)
               for name, entry in zip(names, entries, strict=True)
               if name.suffix != entry.files[0].suffix]
    return Dataset(
        path, form, split, depth, entries, lambda entry: read_rgb(entry.files[0]),
        lambda entry: read_depth(entry.files[1], scale), scale=scale,
        warnings=tuple(
            f'{len(renames)} images are of another format than the list says ({file} for {name}): '
            'JPEG changes pixels, and so digits.' for name, file in renames[:1]))


def _stored(file: Path, suffixes: Iterable[str] = ()) -> Path:
    """That file, or where it is missing the same name otherwise written or with another suffix.

    A letter with an accent is one character or two, by where the name was made.
    """
    names = [file, *(file.with_suffix(end) for suffix in sorted(suffixes)
                     for end in (suffix, suffix.upper()))]
    forms = (Path(unicodedata.normalize(form, str(name))) for form in ('NFC', 'NFD')
             for name in names)
    return next((name for name in (*names, *forms) if name.is_file()), file)


def read_rgb(path: Path) -> Rgb:
    """(H, W, 3) RGB of an image file."""
    try:
        image = read_picture(path, upright=False)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    return np.ascontiguousarray(image[:, :, ::-1])


def read_depth(path: Path, scale: float) -> Metres:
    """(H, W) metres of a depth map, 0 where there is none; whole numbers have a scale."""
    try:
        stored = read_depth_map(path)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    metres = stored.astype(np.float32)
    if stored.dtype.kind != 'f':
        return metres / np.float32(scale)
    return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))


def read_list(path: Path, *folders: Path) -> list[tuple[str, str, float]]:
    """Two names of files per line, and the focal length in pixels; 0 where no number is third.

    A name with spaces stands in quotation marks. One below one of the folders is relative to it,
    and so is any that begins with a slash, as others' lists have it.

    Further columns (dense depth) and lines that begin with # are ignored; the order is the file's.

    Raises:
        DatasetError: it is no text, another list, or names an image or a depth twice.

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
    short = []
    for number, line in enumerate(text.splitlines(), 1):
        plain = line.replace('\\', '/')
        row = plain.split() if '"' not in plain else [*filter(None, next(csv.reader(
            [plain.replace('\t', ' ')], delimiter=' ', skipinitialspace=True)))]
        if not row or row[0].startswith('#'):
            continue
        if len(row) == 1:
            short.append(row[0])
            continue
        if row[1].isdigit():
            raise DatasetError(f"{path}: line {number} is of monodepth2's list (FOLDER FRAME l: "
                               f'697 images, scored on the raw lidar). {LISTS}')
        rgb, depth = (_relative(name, folders) for name in row[:2])
        if rgb in rows:
            raise DatasetError(f'{path}: line {number} names {rgb} again, which would be scored '
                               'twice; remove one of the lines.')
        if depth in depths:
            raise DatasetError(f'{path}: line {number} names {depth} again, which is the depth of '
                               'another image; correct it.')
        depths.update({depth} - {NO_DEPTH})
        rows[rgb] = rgb, depth, _focal(*row[2:3])
    if short or not rows:
        raise DatasetError(f'{path}: every line must name an image and its depth, separated by a '
                           f'space; found{listing(short) or " no line"}')
    return list(rows.values())


def _relative(name: str, folders: Iterable[Path]) -> str:
    """A name within a folder, written in one way: of all that is written in several."""
    plain = posixpath.normpath(name)
    for folder in folders if plain.startswith('/') else ():
        for whole in folder.absolute(), folder.resolve():
            if Path(plain).is_relative_to(whole):
                return Path(plain).relative_to(whole).as_posix()
    return plain.lstrip('/')


def _focal(text: str = '') -> float:
    """Pixels, or 0 where it is no number but a name."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 < value < math.inf else 0.0
