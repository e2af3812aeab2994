# SPDX-License-Identifier: Apache-2.0
"""Data sets, found by what lies at a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from . import kitti, nyu
from .base import Dataset, Entry, Pair

__all__ = ['Dataset', 'Entry', 'Pair', 'Where', 'open_dataset']


@dataclass(frozen=True)
class Where:
    """Where the data are, as the user said; None: find out."""

    data: Path
    list_file: Path | None = None
    splits: Path | None = None
    truth: Path | None = None
    inpainted: bool = False


def open_dataset(where: Where) -> Dataset:
    """Open whatever data set lies at a path.

    Raises:
        DatasetError: nothing is there, or nothing that is known.

    """
    path = where.data.expanduser()
    for name, extra in (('--data', path), ('--list', where.list_file),
                        ('--splits', where.splits), ('--ground-truth', where.truth)):
        if extra is not None and not extra.exists():
            raise DatasetError(f'{name} {extra}: does not exist.')
    mat = path if path.is_file() else path / nyu.MAT
    if mat.is_file():
        return nyu.open_mat(mat, splits=where.splits, inpainted=where.inpainted)
    dataset = _open_folder(path, where)
    if where.inpainted and dataset.depth != 'in-painted':
        raise DatasetError(f'--inpainted: {dataset.format} is evaluated on its {dataset.depth} '
                           'depth only; give the .mat file.')
    return dataset


def _open_folder(path: Path, where: Where) -> Dataset:
    for folder in (path, path / 'test', path / 'official_splits' / 'test'):
        if any(folder.glob('*/rgb_*.jpg')):
            beside = (f / nyu.LIST for f in (folder, folder.parent, folder.parent.parent))
            return nyu.open_official(
                folder, where.list_file or next(filter(Path.is_file, beside), None))
    for folder in (path, path / 'nyu2_test', path / 'data' / 'nyu2_test',
                   path / 'nyu_data' / 'data' / 'nyu2_test'):
        if any(folder.glob('*_colors.png')):
            return nyu.open_kaggle(folder)
    if any(path.glob('2011_*')):
        listed = where.list_file or path / kitti.LIST
        if not listed.is_file():
            raise DatasetError(f'{path}: looks like KITTI raw data; give the Eigen test list with '
                               f'--list {kitti.LIST}.')
        return kitti.open_kitti(path, listed, where.truth)
    if where.list_file:
        return nyu.open_official(path, where.list_file)
    raise DatasetError(
        f'{path}: no known data set. Expected {nyu.MAT}, or a folder with it, with '
        'official_splits/test/SCENE/rgb_NNNNN.jpg, with nyu2_test/NNNNN_colors.png, or with '
        "KITTI's 2011_*.")
