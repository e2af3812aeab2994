# SPDX-License-Identifier: Apache-2.0
"""The official folders from the labelled .mat, as the official extraction script makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from depthclip_ros.sim.nyu import OfficialPair, write_official_pairs

from .datasets.base import RENDERED
from .datasets.nyu_mat import NyuMat
from .errors import DatasetError
from .progress import progress
from .results import ResultsError


def extract(mat: Path, folder: Path, splits: Path | None = None) -> Path:
    """Write `official_splits/{train,test}/SCENE/` and the list of the test pairs.

    Args:
        mat: nyu_depth_v2_labeled.mat.
        folder: where `official_splits` and the list go.
        splits: splits.mat; else the built-in split.

    Returns:
        The folder of the test split.

    Raises:
        DatasetError: the .mat is wrong.
        ResultsError: a file cannot be written.

    """
    if not mat.is_file():
        raise DatasetError(f'{mat}: does not exist.')
    parts = [NyuMat(mat, part='test', splits=splits)]
    training = parts[0].training()
    parts += [training] if isinstance(training, NyuMat) else []
    for part in parts:
        part.check_unit()
    count = sum(map(len, parts))

    def pairs() -> Iterator[OfficialPair]:
        with progress(count, 'extraction') as bar:
            for part in parts:
                for position, entry in enumerate(part.entries):
                    yield OfficialPair(part.part, entry.scene, entry.index,
                                       part.read(position).rgb, *part.both_depths(position))
                    bar.update()
    try:
        write_official_pairs(folder, pairs(), rendered=parts[0].origin == RENDERED)
    except OSError as error:
        raise ResultsError(f'{folder}: cannot be written ({error.strerror or error}). Free space '
                           'or choose another folder.') from error
    root = folder / 'official_splits'
    print(f'{count} images in {root}')
    return root / 'test'
