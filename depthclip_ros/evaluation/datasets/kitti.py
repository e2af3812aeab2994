# SPDX-License-Identifier: Apache-2.0
"""KITTI: Eigen's test list of raw images with annotated sparse depth."""

from __future__ import annotations

from pathlib import Path

from ..errors import DatasetError
from .base import KITTI, NO_DEPTH, Dataset, Entry, dataset_of_files, read_list

LIST = 'eigen_test_files_with_gt.txt'
_TRUTHS = ('', 'data_depth_annotated', 'data_depth_annotated/train', 'data_depth_annotated/val',
           'train', 'val', 'gt_depth')


def open_raw(path: Path, list_file: Path, truth: Path | None) -> Dataset:
    """Open the pairs of a list; a warning counts images without annotated depth (`None`).

    Raises:
        DatasetError: the list or files are missing.

    """
    if not list_file.is_file():
        raise DatasetError(f'{path}: looks like KITTI raw data; give the Eigen test list with '
                           f'--list {LIST}.')
    roots = [truth] if truth else [path / folder for folder in _TRUTHS]
    rows = read_list(list_file, *reversed(roots), path)
    annotated = [row for row in rows if row[1] != NO_DEPTH]
    entries = [Entry(
        i, rgb, sequence=next((part for part in Path(rgb).parts if '_drive_' in part), ''),
        focal=focal, files=(path / rgb, next(
            (root / depth for root in roots if (root / depth).is_file()), roots[0] / depth)))
        for i, (rgb, depth, focal) in enumerate(annotated)]
    dataset = dataset_of_files(path, 'KITTI Eigen', entries, split='Eigen test list',
                               depth='sparse lidar', scale=256.0)
    dataset.origin = KITTI
    if len(annotated) < len(rows):
        dataset.warnings = (
            (f'{len(rows) - len(annotated)} of {len(rows)} images of {list_file.name} have no '
             'annotated depth and are left out, as in the official evaluation.'),)
    return dataset
