# SPDX-License-Identifier: Apache-2.0
"""KITTI's Eigen test split: images of the raw data and the annotated sparse depth."""

from __future__ import annotations

from pathlib import Path

from .base import KITTI, OUTDOORS, Dataset, Entry, of_files, read_list

LIST = 'eigen_test_files_with_gt.txt'
_ROOTS = ('', 'data_depth_annotated', 'data_depth_annotated/train', 'data_depth_annotated/val',
          'train', 'val', 'gt_depth')


def open_kitti(path: Path, list_file: Path, truth: Path | None = None) -> Dataset:
    """Find the files of the list.

    Args:
        path: folder of the raw data, with 2011_09_26 and others below.
        list_file: names of the pairs, as the official one: image, depth (or `None`: skipped),
            focal length.
        truth: folder of the annotated depth; else looked for beside.

    Raises:
        DatasetError: files of the list are missing.

    """
    every = read_list(list_file)
    names = [row for row in every if row[1] != 'None']
    roots = [truth] if truth else [path / folder for folder in _ROOTS]
    entries = [Entry(
        i, rgb, sequence=next((part for part in Path(rgb).parts if '_drive_' in part), ''),
        focal=focal, files=(path / rgb, next(
            (root / depth for root in roots if (root / depth).is_file()), roots[0] / depth)))
        for i, (rgb, depth, focal) in enumerate(names)]
    dataset = of_files(path, 'KITTI Eigen', entries, split='Eigen test list',
                       depth='sparse lidar', scale=256.0)
    dataset.origin, dataset.unit, dataset.plausible = KITTI, '1/256 metres', OUTDOORS
    if len(names) < len(every):
        dataset.warnings = (
            (f'{len(every) - len(names)} of {len(every)} images of {list_file.name} have no '
            'annotated depth and are left out, as in the official evaluation.'),)
    return dataset
