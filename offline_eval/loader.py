# SPDX-License-Identifier: Apache-2.0
"""Batches of cropped images and truths, read ahead by worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from depthclip_ros.core.calibration import image_digest
from depthclip_ros.node.process import keep_freed_memory

from .contenders import CALIBRATED, CONSTANT, MEDIAN, RANDOM_PIXEL, Contender
from .datasets import Dataset, Pair
from .errors import DatasetError, EvaluationError
from .metrics import SortedTruth
from .protocol import Protocol
from .records import CONSTANTS, HISTOGRAM, constants, layout


@dataclass(frozen=True)
class Batch:
    """Images of one size.

    Attributes:
        positions: in the data set's entries.
        rgb: (B, H, W, 3) uint8.
        truth: (B, H, W) float32 metres, NaN where it is not scored.
        focal: (B,) float32, focal length in pixels of `rgb`; 0 if not known.
        records: of these images, filled with what follows from the true depth alone.
        foreign: (B, H, W) float32 metres that other programs predicted, by the contender's place.
        images: `image_digest` of each, where there is a calibration; else empty.

    """

    positions: list[int]
    rgb: NDArray[np.uint8]
    truth: NDArray[np.float32]
    focal: NDArray[np.float32]
    records: NDArray[Any]
    foreign: Mapping[int, NDArray[np.float32]]
    images: Sequence[str]


def plan(count: int, size: int) -> list[list[int]]:
    """Batches of positions in a fixed random order.

    Images are scored in groups of four on one another's truth, so that the order must not be that
    of the scenes, and no batch may hold fewer if it can be helped. It depends on nothing but the
    two numbers: any number of processes does the same batches.
    """
    order = [int(i) for i in np.random.default_rng(0).permutation(count)]
    batches = [order[start:start + size] for start in range(0, count, size)]
    if len(batches) > 1 and len(batches[-1]) < 4:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def load(
    dataset: Dataset, protocol: Protocol, chosen: Sequence[Contender], batches: list[list[int]],
    workers: int,
) -> Iterator[Batch]:
    """Read batches in order.

    Args:
        dataset: what to read.
        protocol: how to crop.
        chosen: the contenders; the constants among them are scored by the workers.
        batches: positions.
        workers: number of processes; 0 reads in this one.

    Raises:
        EvaluationError: an image is damaged.

    """
    dataset.close()
    loader: DataLoader[Any] = DataLoader(
        _Reader(dataset, protocol, chosen, batches), batch_size=None, num_workers=workers,
        worker_init_fn=_start_worker, prefetch_factor=2 if workers else None)
    for batch in loader:
        if isinstance(batch, EvaluationError):
            raise batch
        yield batch


class _Reader(TorchDataset[Any]):
    """One item per batch. An error is an item: raised over there, it loses its type and form."""

    def __init__(self, dataset: Dataset, protocol: Protocol, chosen: Sequence[Contender],
                 batches: list[list[int]]) -> None:
        self._what = dataset, protocol, chosen
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch | EvaluationError:
        try:
            return read_batch(*self._what, self._batches[index])
        except EvaluationError as error:
            return error


def read_batch(
    dataset: Dataset, protocol: Protocol, chosen: Sequence[Contender], positions: list[int],
) -> Batch:
    """Read and crop the images at some positions, and score the constants on them.

    Raises:
        DatasetError: one is damaged or of another size.
        PredictionError: another program's depth cannot be scored.

    """
    rgbs, truths, images = [], [], []
    foreign: dict[int, list[NDArray[np.float32]]] = {}
    calibrated = any(contender.kind == CALIBRATED for contender in chosen)
    records = np.zeros(len(positions), layout(len(chosen)))
    for record, position in zip(records, positions, strict=True):
        pair = dataset.read(position)
        try:
            rgb, truth = protocol.prepare(pair)
        except DatasetError as error:
            raise DatasetError(f'{dataset.path}: {dataset.entries[position].name}: {error}'
                               ) from error
        record['position'] = position
        record['digest'] = np.frombuffer(digest_of(pair), np.uint8)
        _score_constants(truth[~np.isnan(truth)], chosen, protocol.max_depth, record)
        for place, contender in enumerate(chosen):
            if contender.predictions is not None:
                foreign.setdefault(place, []).append(contender.predictions.read(
                    dataset.entries[position], pair.depth.shape, truth, protocol))
        rgbs.append(rgb)
        truths.append(truth)
        if calibrated:
            images.append(image_digest(pair.rgb))
    focal = np.array([dataset.entries[p].focal for p in positions], np.float32)
    return Batch(positions, np.stack(rgbs), np.stack(truths), focal, records,
                 {place: np.stack(depths) for place, depths in foreign.items()}, images)


def digest_of(pair: Pair) -> bytes:
    """SHA-256 of an image and its depth."""
    digest = hashlib.sha256(np.ascontiguousarray(pair.rgb).data)
    digest.update(np.ascontiguousarray(pair.depth).data)
    return digest.digest()


def _score_constants(
    valid: NDArray[np.float32], chosen: Sequence[Contender], max_depth: float, record: Any,
) -> None:
    """Fill in what follows from the distribution of one image's true depth alone."""
    record['pixels'] = len(valid)
    if not len(valid):
        return
    ordered = SortedTruth(valid)
    record['median'] = median = ordered.median()
    record['histogram'] = np.diff(ordered.below(np.linspace(0, max_depth, HISTOGRAM + 1)))
    # NaN where it is no constant.
    values = np.array([{CONSTANT: c.value, MEDIAN: median}.get(c.kind, np.nan) for c in chosen])
    places = np.flatnonzero(~np.isnan(values))
    sums = ordered.score(np.concatenate([constants(max_depth), values[places]]))
    record['curve'], record['sums'][places] = np.split(sums, [CONSTANTS])
    for place, contender in enumerate(chosen):
        if contender.kind == RANDOM_PIXEL:
            record['sums'][place] = ordered.score_random_pixels(max_depth)


def _start_worker(_: int) -> None:
    import cv2
    cv2.setNumThreads(0)
    keep_freed_memory()
