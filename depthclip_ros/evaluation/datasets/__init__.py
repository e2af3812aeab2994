# SPDX-License-Identifier: Apache-2.0
"""Data sets, recognized by their files: NYU Depth v2 in its forms, and KITTI's Eigen split."""

from __future__ import annotations

from pathlib import Path

from ..errors import DatasetError, describe_folder
from . import kitti, nyu
from .base import LISTS, Dataset, Entry, Pair

__all__ = ['Dataset', 'Entry', 'Pair', 'open_dataset']

def open_dataset(
    path: Path, list_file: Path | None = None, truth: Path | None = None, *,
    inpainted: bool = False,
) -> Dataset:
    """Recognize and open the data set at a path.

    Args:
        path: a file, or a folder.
        list_file: list of the pairs; None: the list beside the data, else all pairs.
        truth: folder of KITTI's annotated depth; None: the usual folders in `path`.
        inpainted: take the in-painted depth of the .mat instead of the sensor's.

    Raises:
        DatasetError: a path does not exist, or holds no known data set.

    """
    path = path.expanduser()
    for argument in (path, list_file, truth):
        if argument is not None and not argument.exists():
            raise DatasetError(f'{argument}: does not exist.')
    if truth is not None and not truth.is_dir():  # monodepth2's gt_depths.npz, for one
        raise DatasetError(f"--ground-truth {truth}: is a file, as monodepth2's of the raw lidar. "
                           f'The folder of the annotated depth is needed. {LISTS}')
    mat = path if path.is_file() else path / nyu.MAT
    if mat.is_file():
        return nyu.open_mat(mat, inpainted=inpainted)
    dataset = _open_folder(path, list_file, truth)
    if inpainted and dataset.depth != 'in-painted':
        raise DatasetError(f'--inpainted: {dataset.format} is evaluated on its {dataset.depth} '
                           'depth only; give the .mat file.')
    return dataset


def _open_folder(path: Path, list_file: Path | None, truth: Path | None) -> Dataset:
    for folder in (path, path / 'test', path / 'official_splits' / 'test'):
        if nyu.official_images(folder):
            lists = (f / nyu.LIST for f in (folder, folder.parent, folder.parent.parent))
            return nyu.open_official(folder, list_file or next(filter(Path.is_file, lists), None))
    for folder in (path, path / 'nyu2_test', path / 'data' / 'nyu2_test',
                   path / 'nyu_data' / 'data' / 'nyu2_test'):
        if any(folder.glob(nyu.KAGGLE)):
            return nyu.open_kaggle(folder)
    if any(path.glob('2011_*')):
        return kitti.open_raw(path, list_file or path / kitti.LIST, truth)
    if list_file:
        return nyu.open_official(path, list_file)
    raise DatasetError(
        f'{path}: no known data set. Expected {nyu.MAT}, or a folder with it, with '
        'official_splits/test/SCENE/rgb_NNNNN.jpg, with nyu2_test/NNNNN_colors.png, or with '
        f"KITTI's 2011_*. {describe_folder(path)}")
