# SPDX-License-Identifier: Apache-2.0
"""From images to records: the network once, then every contender."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthclip_ros.core import DepthEstimator
from depthclip_ros.core.backbone import Maps
from depthclip_ros.core.engine import one_thread
from depthclip_ros.core.projection import (
    mean_of_passes,
    read_out,
    similarity_logits,
    upsample,
)
from depthclip_ros.evaluation.datasets import Dataset, Entry, Pair
from depthclip_ros.evaluation.datasets.base import Metres, Rgb
from depthclip_ros.evaluation.errors import DatasetError, PredictionError
from depthclip_ros.evaluation.metrics import (
    MIN_DEPTH,
    SUMS,
    Float64,
    Multiples,
    joint_histogram,
    score,
)
from depthclip_ros.evaluation.protocol import Protocol
from depthclip_ros.progress import progress

from .contenders import Contender, Text
from .results import write_arrays

CONSTANTS = 200  # constants from max_depth / 200 to max_depth, for the best one
HISTOGRAM = 100  # bins from 0 to max_depth
JOINT = 50  # the same, of true depth and again of the method's
BESIDE_GPU = 8  # threads that read and score
_Done = TypeVar('_Done')


def constants(max_depth: float) -> Float64:
    """(200,) metres."""
    return np.linspace(max_depth / CONSTANTS, max_depth, CONSTANTS)


# Records -----------------------------------------------------------------------------------------


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
    write_arrays(folder / f'{record["position"][0]:05d}.npz', records=record)


def load_records(folder: Path, of_type: np.dtype[Any] | None = None) -> NDArray[Any]:
    """All records of whole files, in order of position; a damaged file counts for nothing.

    `of_type` is None for whatever the files hold.
    """
    found = []
    for path in folder.glob('*.npz'):
        with suppress(OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile), \
                np.load(path, allow_pickle=False) as stored:
            found.append(np.asarray(stored['records'], of_type))
    every = np.concatenate(found) if found else np.zeros(0, of_type or layout(0, (0, 0)))
    return every[np.argsort(every['position'])]


# Images ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """One image of a data set, as the protocol crops it, and what the network sees in it."""

    position: int  # in the data set's entries
    entry: Entry
    pair: Pair  # the whole image and its depth
    rgb: Rgb  # (H, W, 3)
    truth: Metres  # (H, W), NaN where it is not scored
    maps: Maps
    estimator: DepthEstimator
    protocol: Protocol
    text: Text

    @cached_property
    def valid(self) -> Metres:
        """(n,) metres, true depth that is scored."""
        return self.truth[~np.isnan(self.truth)]

    @cached_property
    def median(self) -> float:
        """Of the true depth, in metres."""
        return float(np.median(self.valid.astype(np.float64)))

    @cached_property
    def constants(self) -> Multiples:
        """Score of any constant."""
        return Multiples(1.0, self.valid)

    @property
    def focal(self) -> float:
        """Focal length in widths of the network's input; 0 if not known."""
        config = self.estimator.config
        share = config.input_height / (self.protocol.size[0] * config.input_width)
        return float(np.float32(self.entry.focal) * np.float32(share))

    def read_out(self, tokens: Sequence[str], bins: Sequence[float]) -> Tensor:
        """(h, w) metres that words say, in the order in which they get the bins."""
        return mean_of_passes(self.said(tokens, bins)[1], 1)[0]

    def said(
        self, tokens: Sequence[str], bins: Sequence[float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, depth and spread of every pass, as `projection.read_out` gives them."""
        return read_out(self.logits[tuple(tokens)],
                        torch.tensor(bins, device=self.estimator.device))

    @cached_property
    def logits(self) -> dict[tuple[str, ...], Tensor]:
        """(passes, K, h, w) of every set of words: features are compared with all at once."""
        every = similarity_logits(self.maps.features, torch.cat(list(self.text.values())),
                                  self.estimator.config.temperature)
        sizes = [len(words) for words in self.text.values()]
        return dict(zip(self.text, torch.split(every, sizes, dim=1), strict=True))


# Scores ------------------------------------------------------------------------------------------


class Scorer:
    """Scores images, several at once, each by itself.

    On a CPU a thread does everything of an image, instead of all threads one operation: less
    waiting, and rounding does not depend on how many there are. A GPU sees one image at a time,
    while other threads read and score. `network_seconds` counts the time spent in the image
    encoder; of threads, their mean.
    """

    def __init__(
        self, dataset: Dataset, protocol: Protocol, estimator: DepthEstimator,
        chosen: Sequence[Contender], text: Text,
    ) -> None:
        """Take what is to be scored."""
        self.dataset, self.protocol, self.estimator = dataset, protocol, estimator
        self.contenders, self.text = chosen, text
        on_cpu = estimator.device.type == 'cpu'
        self._threads = torch.get_num_threads() if on_cpu else BESIDE_GPU
        self._network = nullcontext() if on_cpu else Lock()
        self._shared = self._threads if on_cpu else 1
        self._clock = Lock()
        self.type = layout(len(chosen), estimator.grid)
        self.network_seconds = 0.0

    def score(self, positions: Sequence[int]) -> Iterator[NDArray[Any]]:
        """(1,) records of images, in order; but for contenders that are other images' depth."""
        return self._each(self._score, positions, 'evaluation')

    def score_partners(self, records: NDArray[Any]) -> None:
        """Fill in the sums of contenders that are the method's depth of another image."""
        order = np.random.default_rng(0).permutation(len(records))
        others = {place: dict(zip(order.tolist(), order[partners(len(order), c.shift)].tolist(),
                                  strict=True))
                  for place, c in enumerate(self.contenders) if c.shift}

        def of_image(record: Any) -> None:
            position = int(record['position'])
            self._fill(record, self.protocol.truth(self.dataset.read_truth(position)), {
                place: torch.tensor(records[partner[position]]['patches'],
                                    device=self.estimator.device)
                for place, partner in others.items()})
        list(self._each(of_image, records if others else (), 'shuffled images'))

    @torch.inference_mode()
    def see(self, position: int) -> Seen:
        """Read an image, and let the network see it."""
        pair, entry = self.dataset.read(position), self.dataset.entries[position]
        try:
            rgb, truth = self.protocol.prepare(pair)
        except DatasetError as error:
            raise DatasetError(f'{self.dataset.path}: {entry.name}: {error}') from error
        with self._network:
            start = time.perf_counter()
            maps = self.estimator.maps([rgb])
            if maps.features.is_cuda:
                torch.cuda.synchronize(maps.features.device)
            seconds = time.perf_counter() - start
        with self._clock:
            self.network_seconds += seconds / self._shared
        return Seen(position, entry, pair, rgb, truth, maps, self.estimator, self.protocol,
                    self.text)

    def _each(
        self, function: Callable[[Any], _Done], items: Sequence[Any] | NDArray[Any], what: str,
    ) -> Iterator[_Done]:
        with one_thread(), ThreadPoolExecutor(self._threads) as pool:
            try:
                yield from progress(pool.map(function, items), what, len(items))
            finally:
                pool.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def _score(self, position: int) -> NDArray[Any]:
        seen, record = self.see(position), np.zeros(1, self.type)
        depth: dict[int, Tensor] = {}
        of_image = record[0]
        of_image['position'], of_image['pixels'] = position, len(seen.valid)
        digest = hashlib.sha256(np.ascontiguousarray(seen.pair.rgb).data)
        digest.update(np.ascontiguousarray(seen.pair.depth).data)
        of_image['digest'] = np.frombuffer(digest.digest(), np.uint8)
        for place, contender in enumerate(self.contenders):
            if contender.answer is None or (place and not len(seen.valid)):
                continue  # the method's depth of a blind image is scored on its partners
            answer = contender.answer(seen)
            if isinstance(answer, Tensor):
                _check(answer, contender, position)
                depth[place] = answer
            else:
                of_image['sums'][place] = answer
        of_image['patches'] = depth[0].cpu().numpy()
        if len(seen.valid):
            most = self.protocol.max_depth
            of_image['median'] = seen.median
            of_image['histogram'] = np.histogram(seen.valid, HISTOGRAM, (0, most))[0]
            of_image['curve'] = seen.constants.score(constants(most))
            self._fill(of_image, seen.truth, depth)
        return record

    @torch.inference_mode()
    def _fill(self, record: Any, truth: Metres, depth: Mapping[int, Tensor]) -> None:
        """Fill in the sums of one image's depth, by the contenders' places."""
        true, most = torch.from_numpy(truth).to(self.estimator.device), self.protocol.max_depth
        whole = [p for p, maps in depth.items() if maps.shape == true.shape]  # other programs'
        for places in filter(None, ([p for p in depth if p not in whole], whole)):
            maps = torch.stack([depth[place] for place in places])
            if places is not whole:
                maps = upsample(maps, self.protocol.size, self.estimator.config.upsampling)
            record['sums'][places] = score(true, maps, most).cpu().numpy()
            if places[0] == 0:  # the method
                record['joint'] = joint_histogram(true, maps[0], most, JOINT)


def partners(count: int, shift: int) -> list[int]:
    """Whose depth is scored on each image: of its own group of four, another one.

    What remains beyond whole groups belongs to the last one, so that nobody is his own partner.
    """
    order: list[int] = []
    while len(order) < count:
        start = len(order)
        size = 4 if start + 8 <= count else count - start
        order += [start + (i + shift) % size for i in range(size)]
    return order


def _check(depth: Tensor, contender: Contender, position: int) -> None:
    """Upsampling takes means, so that what holds for the patches holds for the pixels."""
    good = depth.isfinite() & (depth > MIN_DEPTH)
    if not bool(good.all()):
        values = depth[~good]
        raise PredictionError(
            f'{contender.name}: the predicted depth of image {position} is {float(values[0])} m '
            f'in {len(values)} patches; depth must be finite and above {MIN_DEPTH} m. The weights '
            'or their precision are at fault; nothing was left out of the score in silence.')
