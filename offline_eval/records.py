# SPDX-License-Identifier: Apache-2.0
"""Records of finished images in append-only files, from which an interrupted run continues.

Every process appends to a file of its own. A record has a fixed size and a checksum: what a
killed process wrote halfway is not one, and its image is done again.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EvaluationError
from .metrics import SUMS
from .results import ResultsError, read_text, write_text

FOLDER, HEADER = 'records', 'run.json'
CONSTANTS = 200  # constants from max_depth / 200 to max_depth, for the best one
HISTOGRAM = 100  # bins from 0 to max_depth


def constants(max_depth: float) -> NDArray[np.float64]:
    """(200,) metres."""
    metres: NDArray[np.float64] = np.linspace(max_depth / CONSTANTS, max_depth, CONSTANTS)
    return metres


def layout(columns: int) -> np.dtype[Any]:
    """Type of a record; `position` is the place in the data set's entries.

    `columns` holds the sums of every column, `curve` those of every constant, `digest` is the
    SHA-256 of image and depth.
    """
    return np.dtype([
        ('position', '<i8'), ('pixels', '<i8'), ('median', '<f8'), ('digest', 'u1', 32),
        ('columns', '<f8', (columns, len(SUMS))), ('curve', '<f8', (CONSTANTS, len(SUMS))),
        ('histogram', '<i8', HISTOGRAM), ('checksum', '<u4')])


class Records:
    """The records of one results folder."""

    def __init__(self, folder: Path, columns: int) -> None:
        """Look into `folder`/records; nothing is written yet."""
        self._folder = folder / FOLDER
        self._type = layout(columns)
        self._file: Any = None

    def append(self, records: NDArray[Any], rank: int) -> None:
        """Append to this process's file.

        Raises:
            ResultsError: they cannot be written, e.g. the disk is full.

        """
        for i, record in enumerate(records):
            records['checksum'][i] = _checksum(record)
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                name = self._folder / f'{rank:03d}-{os.getpid()}-{os.urandom(4).hex()}.bin'
                # Unbuffered: what could not be written is not tried again on closing.
                self._file = name.open('xb', buffering=0)
            rest = memoryview(records.tobytes())
            while rest:
                rest = rest[self._file.write(rest):]
        except OSError as error:
            raise ResultsError(f'{self._folder}: cannot be written ({error.strerror}). Free space '
                               'and continue with --resume; finished images are kept.') from error

    def close(self) -> None:
        """Close this process's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self) -> NDArray[Any]:
        """All complete records, each position once, in order of position."""
        found: dict[int, tuple[NDArray[Any], int]] = {}
        for path in sorted(self._folder.glob('*.bin')):
            count = path.stat().st_size // self._type.itemsize
            if count:
                stored: NDArray[Any] = np.memmap(path, self._type, 'r', shape=(count,))
                for i in range(count):
                    if _checksum(stored[i]) == stored['checksum'][i]:
                        found[int(stored['position'][i])] = stored, i
        records = np.zeros(len(found), self._type)
        for place, position in enumerate(sorted(found)):
            source, i = found[position]
            records[place] = source[i]
        return records


def _checksum(record: Any) -> int:
    return zlib.crc32(record.tobytes()[:-4])


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Keep what the digits depend on."""
    write_text(folder / FOLDER / HEADER, json.dumps(header, indent=1) + '\n')


def check_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Refuse to continue a run of another kind.

    Raises:
        EvaluationError: a setting differs; all are named.

    """
    stored = json.loads(read_text(folder / FOLDER / HEADER))
    ours = json.loads(json.dumps(header))
    different = [f'{key}: {stored.get(key)} then, {ours.get(key)} now'
                 for key in sorted({*stored, *ours}) if stored.get(key) != ours.get(key)]
    if different:
        raise EvaluationError(f'--resume {folder}: that run was another one ('
                              f'{"; ".join(different)}). Give the same settings, or start anew '
                              'without --resume.')


def missing(batches: Iterable[list[int]], done: set[int]) -> list[list[int]]:
    """Batches of which any image is not recorded; they are done as a whole, as in one run."""
    return [batch for batch in batches if not done.issuperset(batch)]
