# SPDX-License-Identifier: Apache-2.0
"""The folder `records`: sums of every image, and the run that they belong to.

An interrupted run resumes from them, and `compare` reads them.
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
CONSTANTS = 200  # candidates of the best constant, up to max_depth
HISTOGRAM_BINS = 100  # bins from 0 to max_depth
JOINT_BINS = 50  # the same of the joint histogram of true and predicted depth


class Run(Struct, frozen=True, kw_only=True):
    """Everything that determines the scores of a run: `run.json`."""

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
    rows: list[dict[str, Any]]  # identity of every predictor
    sequences: list[str]  # scene of every image; '': unknown

    def differences(self, current: Run) -> Iterator[str]:
        """Describe the fields that differ between this run and the current one."""
        for name in self.__struct_fields__:
            old, new = getattr(self, name), getattr(current, name)
            if old == new:
                continue
            if isinstance(old, dict):
                yield from (f'{key}: {old.get(key)} then, {new.get(key)} now'
                            for key in sorted({*old, *new}) if old.get(key) != new.get(key))
            elif isinstance(old, list) or name in ('data', 'weights'):  # too long to read
                yield f'other {name}'
            else:
                yield f'{name}: {old} then, {new} now'


def save_run(folder: Path, run: Run) -> None:
    """Write the description of a run into its results folder."""
    write(folder / RECORDS / HEADER, to_json(run))


def load_run(folder: Path) -> Run:
    """Read the description of a run from its results folder.

    Raises:
        EvaluationError: the file is missing, damaged, or of another version.

    """
    path = folder / RECORDS / HEADER
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise EvaluationError(f'{path}: missing, damaged, or of an older version ({error}); '
                              'evaluate anew.') from error


def constants(max_depth: float) -> Float64:
    """List the candidates of the best constant: (200,) metres."""
    return np.linspace(max_depth / CONSTANTS, max_depth, CONSTANTS)


def layout(predictors: int, grid: tuple[int, int]) -> np.dtype[Any]:
    """Define the dtype of a record.

    `position` is the index in the data set's entries, `sums` holds the sums of every predictor,
    `curve` those of every constant, `digest` is the SHA-256 of image and depth, `joint` counts
    pixels by true depth (rows) and the method's depth, `patches` is the method's depth in metres.
    """
    return np.dtype([
        ('position', '<i8'), ('pixels', '<i8'), ('median', '<f8'), ('digest', 'u1', 32),
        ('sums', '<f8', (predictors, len(SUMS))), ('curve', '<f8', (CONSTANTS, len(SUMS))),
        ('histogram', '<i8', HISTOGRAM_BINS), ('joint', '<u4', (JOINT_BINS, JOINT_BINS)),
        ('patches', '<f4', grid)])


def save_record(folder: Path, record: NDArray[Any]) -> None:
    """Write the (1,) record of an image."""
    write_arrays(folder / _file_name(record), records=record)


def _file_name(record: NDArray[Any]) -> str:
    return f'{record["position"][0]:05d}.npz'


def load_records(folder: Path, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """Read all records of intact files, in order of position.

    Damaged files are skipped, and so are files with another name than their record's: synchronized
    folders contain copies such as 00001 (1).npz. `dtype` None keeps the dtype of the files.
    """
    parts = []
    for path in folder.glob('*.npz'):
        with suppress(OSError, EOFError, ValueError, LookupError, TypeError,
                      zipfile.BadZipFile), \
                np.load(path, allow_pickle=False) as stored:
            record = np.asarray(stored['records'], dtype)
            parts += [record] if path.name == _file_name(record) else []
    records = np.concatenate(parts) if parts else np.zeros(0, dtype or layout(0, (0, 0)))
    return records[np.argsort(records['position'])]
