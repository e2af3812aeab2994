# SPDX-License-Identifier: Apache-2.0
"""Records of finished images, in .npz files, from which an interrupted run continues.

A file gets its name when it is whole; one that is damaged all the same counts for nothing, and its
images are done again.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import EvaluationError
from .metrics import SUMS
from .results import atomic, read_text, to_json, write_text

FOLDER, HEADER = 'records', 'run.json'
CONSTANTS = 200  # constants from max_depth / 200 to max_depth, for the best one
HISTOGRAM = 100  # bins from 0 to max_depth
JOINT = 50  # the same, of true depth and again of the method's


def constants(max_depth: float) -> NDArray[np.float64]:
    """(200,) metres."""
    metres: NDArray[np.float64] = np.linspace(max_depth / CONSTANTS, max_depth, CONSTANTS)
    return metres


def layout(contenders: int, grid: tuple[int, int]) -> np.dtype[Any]:
    """Type of a record; `position` is the place in the data set's entries.

    `sums` are those of every contender, `curve` those of every constant, `digest` is the SHA-256
    of image and depth, `joint` numbers of pixels by true depth (rows) and the method's;
    `patches` is the method's depth in metres.
    """
    return np.dtype([
        ('position', '<i8'), ('pixels', '<i8'), ('median', '<f8'), ('digest', 'u1', 32),
        ('sums', '<f8', (contenders, len(SUMS))), ('curve', '<f8', (CONSTANTS, len(SUMS))),
        ('histogram', '<i8', HISTOGRAM), ('joint', '<u4', (JOINT, JOINT)),
        ('patches', '<f4', grid)])


class Records:
    """The records of one results folder."""

    def __init__(self, folder: Path, contenders: int, grid: tuple[int, int]) -> None:
        """Look into `folder`/records; nothing is written yet."""
        self._folder = folder / FOLDER
        self._type = layout(contenders, grid)

    def write(self, batch: NDArray[Any]) -> None:
        """Keep the records of some images.

        Raises:
            ResultsError: they cannot be written, e.g. the disk is full.

        """
        with atomic(self._folder / f'{batch["position"][0]:05d}.npz') as file:
            np.savez(file, records=batch)

    def read(self) -> NDArray[Any]:
        """All records of whole files, in order of position."""
        found = [np.zeros(0, self._type), *map(self._load, self._folder.glob('*.npz'))]
        every = np.concatenate(found)
        return every[np.argsort(every['position'])]

    def _load(self, path: Path) -> NDArray[Any]:
        try:
            with np.load(path, allow_pickle=False) as stored:
                return np.asarray(stored['records'], self._type)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return np.zeros(0, self._type)


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Keep what the digits depend on."""
    write_text(folder / FOLDER / HEADER, to_json(header))


def check_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Refuse to continue a run of another kind.

    Raises:
        EvaluationError: a setting differs; all are named.

    """
    stored = msgspec.json.decode(read_text(folder / FOLDER / HEADER))
    ours = msgspec.json.decode(to_json(header))
    different = [f'{key}: {stored.get(key)} then, {ours.get(key)} now'
                 for key in sorted({*stored, *ours}) if stored.get(key) != ours.get(key)]
    if different:
        raise EvaluationError(f'--resume {folder}: that run was another one ('
                              f'{"; ".join(different)}). Give the same settings, or start anew '
                              'without --resume.')
