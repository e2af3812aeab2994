# SPDX-License-Identifier: Apache-2.0
"""The official folders from the labelled .mat, as the official extraction script makes them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .datasets.folders import NYU_LIST
from .datasets.nyu_mat import NyuMat
from .errors import DatasetError
from .progress import progress
from .results import atomic, write_text

# What of an image is kept; the rest is a black frame. Rows, columns.
_KEPT = np.s_[7:474, 7:632]


def extract(mat: Path, folder: Path, splits: Path | None = None) -> Path:
    """Write `official_splits/{train,test}/SCENE/` and the list of the test pairs.

    JPEG images (OpenCV's default quality) with a black frame; depth as 16-bit PNG in millimetres,
    truncated, 0 where missing: raw beside the image, in-painted in `dense/`. Numbers count from 0.

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
    root = folder / 'official_splits'
    with progress(sum(map(len, parts)), 'extraction') as bar:
        for part in parts:
            part.check_unit()
            for position in range(len(part)):
                _write_pair(root / part.part, part, position)
                bar.update()
    lines = sorted(f'{e.scene}/rgb_{e.name}.jpg {e.scene}/sync_depth_{e.name}.png'
                   for e in parts[0].entries)
    write_text(folder / NYU_LIST, '\n'.join(lines) + '\n')
    print(f'{sum(map(len, parts))} images in {root}')
    return root / 'test'


def _write_pair(folder: Path, part: NyuMat, position: int) -> None:
    entry = part.entries[position]
    scene = folder / entry.scene
    rgb = part.read(position).rgb
    raw, inpainted = part.both_depths(position)
    framed = np.zeros_like(rgb)
    framed[_KEPT] = rgb[_KEPT]
    _write(scene / f'rgb_{entry.name}.jpg', framed[:, :, ::-1])
    _write(scene / f'sync_depth_{entry.name}.png', _millimetres(raw))
    _write(scene / 'dense' / f'sync_depth_dense_{entry.name}.png', _millimetres(inpainted))


def _millimetres(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    truncated: NDArray[np.uint16] = (depth * 1000).astype(np.uint16)
    return truncated


def _write(path: Path, image: NDArray[np.generic]) -> None:
    done, encoded = cv2.imencode(path.suffix, np.ascontiguousarray(image))
    if not done:
        raise DatasetError(f'{path}: the image cannot be encoded.')
    with atomic(path) as file:
        file.write(encoded.tobytes())
