# SPDX-License-Identifier: Apache-2.0
"""The training split's mean depth: per pixel (mean map), and of all pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .datasets import Dataset
from .progress import progress
from .protocol import Protocol
from .results import atomic

FILE = 'training_mean.npz'


@dataclass(frozen=True)
class TrainingMean:
    """Mean of the valid depth of a training split.

    Attributes:
        mean: metres.
        mean_map: (H, W) metres; the mean where no image has valid depth.
        images: how many it is of.

    """

    mean: float
    mean_map: NDArray[np.float32]
    images: int

    @classmethod
    def compute(cls, training: Dataset, protocol: Protocol, *, show: bool) -> TrainingMean:
        """Read all depths of a training split, one at a time."""
        total = np.zeros(protocol.size)
        count = np.zeros(protocol.size, np.int64)
        with progress(len(training), 'training split', show=show) as bar:
            for position in range(len(training)):
                truth = protocol.truth(training.read_truth(position))
                valid = ~np.isnan(truth)
                total += np.where(valid, truth, 0)
                count += valid
                bar.update()
        training.close()
        mean = float(total.sum() / max(count.sum(), 1))
        mean_map = np.where(count > 0, total / np.maximum(count, 1), mean).astype(np.float32)
        return cls(mean, mean_map, len(training))

    def write(self, folder: Path) -> None:
        """Write to a results folder."""
        with atomic(folder / FILE) as file:
            np.savez_compressed(file, mean=self.mean, mean_map=self.mean_map, images=self.images)

    @classmethod
    def read(cls, folder: Path) -> TrainingMean | None:
        """Read from a results folder; None where there is none."""
        if not (folder / FILE).is_file():
            return None
        with np.load(folder / FILE, allow_pickle=False) as stored:
            return cls(float(stored['mean']), stored['mean_map'], int(stored['images']))
