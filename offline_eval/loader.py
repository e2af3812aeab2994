# SPDX-License-Identifier: Apache-2.0
"""Batches of cropped images and truths, read ahead by worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from .datasets import Dataset
from .errors import DatasetError, EvaluationError
from .protocol import Protocol


@dataclass(frozen=True)
class Batch:
    """Images of one size.

    Attributes:
        positions: in the data set's entries.
        rgb: (B, H, W, 3) uint8.
        truth: (B, H, W) float32 metres, NaN where it is not scored.
        digests: (B, 32) uint8, SHA-256 of image and depth as read.

    """

    positions: list[int]
    rgb: NDArray[np.uint8]
    truth: NDArray[np.float32]
    digests: NDArray[np.uint8]


def plan(count: int, size: int) -> list[list[int]]:
    """Batches of positions in a fixed random order.

    Images are scored in pairs on one another's truth, so that the order must not be that of the
    scenes, and no batch may hold one image only. It depends on nothing but the two numbers: any
    number of processes does the same batches.
    """
    order = [int(i) for i in np.random.default_rng(0).permutation(count)]
    batches = [order[start:start + size] for start in range(0, count, size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def load(
    dataset: Dataset, protocol: Protocol, batches: list[list[int]], workers: int,
) -> Iterator[Batch]:
    """Read batches in order.

    Raises:
        EvaluationError: an image is damaged.

    """
    dataset.close()
    loader: DataLoader[Any] = DataLoader(
        _Reader(dataset, protocol, batches), batch_size=None, num_workers=workers,
        worker_init_fn=_start_worker, prefetch_factor=2 if workers else None)
    for batch in loader:
        if isinstance(batch, EvaluationError):
            raise batch
        yield batch


class _Reader(TorchDataset[Any]):
    """One item per batch. An error is an item: raised over there, it loses its type and form."""

    def __init__(self, dataset: Dataset, protocol: Protocol, batches: list[list[int]]) -> None:
        self._dataset, self._protocol, self._batches = dataset, protocol, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch | EvaluationError:
        try:
            return read_batch(self._dataset, self._protocol, self._batches[index])
        except EvaluationError as error:
            return error


def read_batch(dataset: Dataset, protocol: Protocol, positions: list[int]) -> Batch:
    """Read and crop the images at some positions.

    Raises:
        DatasetError: one is damaged or of another size.

    """
    rgbs, truths, digests = [], [], []
    for position in positions:
        pair = dataset.read(position)
        try:
            rgb, truth = protocol.prepare(pair)
        except DatasetError as error:
            raise DatasetError(f'{dataset.path}: {dataset.entries[position].name}: {error}'
                               ) from error
        digest = hashlib.sha256(np.ascontiguousarray(pair.rgb).data)
        digest.update(np.ascontiguousarray(pair.depth).data)
        rgbs.append(rgb)
        truths.append(truth)
        digests.append(np.frombuffer(digest.digest(), np.uint8))
    return Batch(positions, np.stack(rgbs), np.stack(truths), np.stack(digests))


def _start_worker(_: int) -> None:
    import cv2
    cv2.setNumThreads(0)
