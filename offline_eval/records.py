# SPDX-License-Identifier: Apache-2.0
"""The folder `records`: raw sums of every image, and of what run they are.

An interrupted run continues from them, and two runs are compared by them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from depthclip_ros.evaluation.errors import EvaluationError
from depthclip_ros.evaluation.metrics import SUMS, Float64

from .results import to_json, write, write_arrays

RECORDS, HEADER = 'records', 'run.json'
CONSTANTS = 200  # constants from max_depth / 200 to max_depth, for the best one
HISTOGRAM = 100  # bins from 0 to max_depth
JOINT = 50  # the same, of true depth and again of the method's


class Run(Struct, frozen=True, kw_only=True):
    """What a run's digits depend on: `run.json`."""

    version: str
    format: str
    depth: str
    images: int
    data: str  # digest of the data set's names, classes and some of its images
    protocol: str
    config: dict[str, Any]
    weights: str  # digest
    precision: str
    device: str
    rows: list[dict[str, Any]]  # identity of every contender
    sequences: list[str]  # scene of every image; '': unknown

    def differences(self, other: Run) -> Iterator[str]:
        """What this run, of then, does not have in common with that of now."""
        for name in self.__struct_fields__:
            then, now = getattr(self, name), getattr(other, name)
            if then == now:
                continue
            if isinstance(then, dict):
                yield from (f'{key}: {then.get(key)} then, {now.get(key)} now'
                            for key in sorted({*then, *now}) if then.get(key) != now.get(key))
            elif isinstance(then, list) or name in ('data', 'weights'):  # too long to read
                yield f'other {name}'
            else:
                yield f'{name}: {then} then, {now} now'


def save_run(folder: Path, run: Run) -> None:
    """Write the run to which the records of a results folder belong."""
    write(folder / RECORDS / HEADER, to_json(run))


def load_run(folder: Path) -> Run:
    """Inverse of `save_run`.

    Raises:
        EvaluationError: it is missing, damaged, or of another version.

    """
    path = folder / RECORDS / HEADER
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise EvaluationError(f'{path}: missing, damaged, or of an older version ({error}); '
                              'evaluate anew.') from error


def constants(max_depth: float) -> Float64:
    """(200,) metres."""
    return np.linspace(max_depth / CONSTANTS, max_depth, CONSTANTS)


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


def save_record(folder: Path, record: NDArray[Any]) -> None:
    """Keep the (1,) record of an image, from which an interrupted run continues."""
    write_arrays(folder / _file_name(record), records=record)


def _file_name(record: NDArray[Any]) -> str:
    return f'{record["position"][0]:05d}.npz'


def load_records(folder: Path, of_type: np.dtype[Any] | None = None) -> NDArray[Any]:
    """All records of whole files, in order of position; a damaged file counts for nothing.

    Nor does a file of another name, as the copies that synchronised folders have: 00001 (1).npz.
    `of_type` is None for whatever the files hold.
    """
    parts = []
    for path in folder.glob('*.npz'):
        with suppress(OSError, EOFError, ValueError, LookupError, TypeError,
                      zipfile.BadZipFile), \
                np.load(path, allow_pickle=False) as stored:
            record = np.asarray(stored['records'], of_type)
            parts += [record] if path.name == _file_name(record) else []
    every = np.concatenate(parts) if parts else np.zeros(0, of_type or layout(0, (0, 0)))
    return every[np.argsort(every['position'])]
