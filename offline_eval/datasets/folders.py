# SPDX-License-Identifier: Apache-2.0
"""Data sets that are folders of files: NYU's official splits, Kaggle's nyu2_test, KITTI Eigen."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from depthclip_ros.sim.nyu import MARK, MARK_FILE

from ..errors import DatasetError, listing
from .base import (
    IN_PAINTED,
    KITTI,
    NYU,
    NYU_FOCAL,
    OUTDOORS,
    RENDERED,
    Dataset,
    Entry,
    FileDataset,
)
from .splits import scene_classes

NYU_LIST = 'nyudepthv2_test_files_with_gt_dense.txt'
KITTI_LIST = 'eigen_test_files_with_gt.txt'
_KAGGLE_DEPTH = f"Kaggle's nyu2_test: {IN_PAINTED}"


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
             if line.strip() and len(line.split()) < 2]
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


class NyuFolder(FileDataset):
    """`official_splits/test`: JPEG images and raw depth in millimetres."""

    format = "folder in the layout of NYU Depth v2's official_splits (JPEG)"
    depth = 'raw'

    def __init__(self, path: Path, list_file: Path | None = None, part: str = 'test') -> None:
        """Find the images by the list, else by name.

        Raises:
            DatasetError: files are missing, or images are without depth.

        """
        self.part = part
        self.split = f'{part} folder' + (f' by {list_file.name}' if list_file else '')
        names = read_list(list_file) if list_file else _pairs(path)
        entries = [Entry(_number(rgb, i), rgb, Path(rgb).parent.name, focal=focal or NYU_FOCAL)
                   for i, (rgb, _, focal) in enumerate(names)]
        super().__init__(path, with_sequences(entries),
                         [(path / rgb, path / depth) for rgb, depth, _ in names])
        self.official = {e.index: e.scene for e in entries} == scene_classes()
        self.origin = NYU if self.official else ''
        if any('dense' in Path(depth).parts for _, depth, _ in names):
            self.is_in_painted()
        if any(MARK in f.read_text(encoding='utf-8', errors='replace') for f in (
                path / MARK_FILE, path.parent / MARK_FILE) if f.is_file()):
            self.origin, self.official = RENDERED, False

    def training(self) -> Dataset | None:
        """The folder `train` beside."""
        beside = self.path.parent / 'train'
        if self.part != 'test' or not any(beside.glob('*/rgb_*.jpg')):
            return None
        return NyuFolder(beside, part='train')


def with_sequences(entries: list[Entry]) -> list[Entry]:
    """Take neighbouring numbers of one class for one scene, where no name says which it is.

    The data set's images are in the order of its scenes. Two scenes that follow each other may
    count as one: intervals are rather too wide than too narrow.
    """
    found: dict[int, str] = {}
    before = None
    for entry in sorted(entries, key=lambda e: e.index):
        follows = before is not None and entry.scene and (entry.index, entry.scene) == (
            before.index + 1, before.scene)
        found[entry.index] = found[before.index] if before is not None and follows else \
            f'{entry.scene} from {entry.index}'
        before = entry
    return [replace(entry, sequence=found[entry.index]) for entry in entries]


def _pairs(folder: Path) -> list[tuple[str, str, float]]:
    images = sorted(folder.glob('*/rgb_*.jpg'))
    pairs = [(str(image.relative_to(folder)),
              str(image.relative_to(folder).with_name(
                  f'sync_depth_{image.stem.removeprefix("rgb_")}.png')), 0.0)
             for image in images]
    bare = [rgb for rgb, depth, _ in pairs if not (folder / depth).is_file()]
    if bare:
        raise DatasetError(f'{folder}: {len(bare)} images are without ground truth '
                           f'(sync_depth_NNNNN.png); remove them or extract again:{listing(bare)}')
    return pairs


def _number(name: str, fallback: int) -> int:
    found = re.search(r'(\d+)\D*$', Path(name).stem)
    return int(found[1]) if found else fallback


def _drive(name: str) -> str:
    """KITTI's drive of DATE/DRIVE/image_02/data/NUMBER.png."""
    return next((part for part in Path(name).parts if '_drive_' in part), '')


class KaggleNyu(FileDataset):
    """`nyu2_test`: PNG images and depth in millimetres."""

    format = "Kaggle's nyu2_test"
    split = 'test folder'
    depth = 'in-painted'
    warnings = (_KAGGLE_DEPTH,)

    def __init__(self, path: Path) -> None:
        """Find NNNNN_colors.png and NNNNN_depth.png.

        Raises:
            DatasetError: images are without depth.

        """
        images = sorted(path.glob('*_colors.png'))
        files = [(image, image.with_name(image.name.replace('_colors', '_depth')))
                 for image in images]
        bare = [image.name for image, depth in files if not depth.is_file()]
        if bare:
            raise DatasetError(f'{path}: {len(bare)} images are without ground truth '
                               f'(NNNNN_depth.png):{listing(bare)}')
        scenes = scene_classes()
        entries = [Entry(n, image.name, scenes.get(n, ''), focal=NYU_FOCAL)
                   for i, image in enumerate(images) for n in [_number(image.name[:5], i)]]
        super().__init__(path, with_sequences(entries), files)
        self.origin = NYU if {e.index for e in entries} == set(scenes) else ''


class KittiEigen(FileDataset):
    """KITTI's Eigen test split: images of the raw data and the annotated sparse depth.

    The list has the official form: image, depth (or `None`: skipped), focal length.
    """

    format = 'KITTI Eigen'
    origin = KITTI
    split = 'Eigen test list'
    depth = 'sparse lidar'
    scale = 256.0
    unit = '1/256 metres'
    plausible = OUTDOORS

    def __init__(self, path: Path, list_file: Path, truth: Path | None = None) -> None:
        """Find the files of the list.

        Args:
            path: folder of the raw data, with 2011_09_26 and others below.
            list_file: names of the pairs.
            truth: folder of the annotated depth; else looked for beside.

        Raises:
            DatasetError: files of the list are missing.

        """
        every = read_list(list_file)
        names = [row for row in every if row[1] != 'None']
        if len(names) < len(every):
            left_out = (f'{len(every) - len(names)} of {len(every)} images of {list_file.name} '
                        'have no annotated depth and are left out, as in the official evaluation.')
            self.warnings = (left_out,)
        roots = [truth] if truth else [
            path / folder for folder in ('', 'data_depth_annotated', 'data_depth_annotated/train',
                                         'data_depth_annotated/val', 'train', 'val', 'gt_depth')]
        files = [(path / rgb, next((r / depth for r in roots if (r / depth).is_file()),
                                   roots[0] / depth)) for rgb, depth, _ in names]
        entries = [Entry(i, rgb, sequence=_drive(rgb), focal=focal)
                   for i, (rgb, _, focal) in enumerate(names)]
        super().__init__(path, entries, files)
