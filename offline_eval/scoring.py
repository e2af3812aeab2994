# SPDX-License-Identifier: Apache-2.0
"""Scoring of images: one pass through the network, then every predictor; gives records."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthclip_ros.core import DepthEstimator
from depthclip_ros.core.engine import single_thread
from depthclip_ros.core.readout import upsample
from depthclip_ros.evaluation.datasets import Dataset
from depthclip_ros.evaluation.datasets.base import Metres
from depthclip_ros.evaluation.errors import DatasetError, PredictionError
from depthclip_ros.evaluation.metrics import MIN_DEPTH, joint_histogram, score
from depthclip_ros.evaluation.protocol import Protocol
from depthclip_ros.progress import progress

from .evaluated_image import EvaluatedImage, TextFeatures
from .predictors import ClosedForm, OtherImage, PatchDepth, PixelDepth, Predictor
from .records import HISTOGRAM_BINS, JOINT_BINS, constants, layout

THREADS_BESIDE_GPU = 8  # they read and score
_Result = TypeVar('_Result')


# Scores ------------------------------------------------------------------------------------------


class Scorer:
    """Scores several images in parallel.

    On a CPU, each thread processes whole images: threads wait less than with parallel operations,
    and rounding does not depend on their number. A GPU encodes one image at a time, while other
    threads read and score. `network_seconds` is the time in the image encoder, averaged over the
    threads of a CPU.
    """

    def __init__(
        self, dataset: Dataset, protocol: Protocol, estimator: DepthEstimator,
        predictors: Sequence[Predictor], text: TextFeatures,
    ) -> None:
        """Prepare to score predictors on a data set."""
        self.dataset, self.protocol, self.estimator = dataset, protocol, estimator
        self.predictors, self.text = predictors, text
        on_cpu = estimator.device.type == 'cpu'
        self._threads = torch.get_num_threads() if on_cpu else THREADS_BESIDE_GPU
        self._network = nullcontext() if on_cpu else Lock()
        self._network_calls = self._threads if on_cpu else 1
        self._clock = Lock()
        self.type = layout(len(predictors), estimator.grid)
        self.network_seconds = 0.0

    def score(self, positions: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield (1,) records of images, in order, without the sums of `OtherImage`."""
        return self._map(self._score_image, positions, 'evaluation')

    def score_partners(self, records: NDArray[Any]) -> None:
        """Fill in the sums of `OtherImage`, from the method's depth in the records."""
        order = np.random.default_rng(0).permutation(len(records))
        partners_of = {
            index: dict(zip(order.tolist(), order[partners(len(order), p.shift)].tolist(),
                            strict=True))
            for index, p in enumerate(self.predictors) if isinstance(p, OtherImage)}

        def fill(record: Any) -> None:
            position = int(record['position'])
            self._fill_sums(record, self.protocol.truth(self.dataset.read_truth(position)), {
                index: torch.tensor(records[partner_of[position]]['patches'],
                                    device=self.estimator.device)
                for index, partner_of in partners_of.items()})
        list(self._map(fill, records if partners_of else (), 'shuffled images'))

    @torch.inference_mode()
    def encode(self, position: int) -> EvaluatedImage:
        """Read an image and encode it."""
        pair, entry = self.dataset.read(position), self.dataset.entries[position]
        try:
            rgb, truth = self.protocol.prepare(pair)
        except DatasetError as error:
            raise DatasetError(f'{self.dataset.path}: {entry.name}: {error}') from error
        with self._network:
            start = time.perf_counter()
            maps = self.estimator.encode([rgb])
            if maps.features.is_cuda:
                torch.cuda.synchronize(maps.features.device)
            seconds = time.perf_counter() - start
        with self._clock:
            self.network_seconds += seconds / self._network_calls
        return EvaluatedImage(position, entry, pair, rgb, truth, maps, self.estimator,
                              self.protocol, self.text)

    def _map(
        self, function: Callable[[Any], _Result], items: Sequence[Any] | NDArray[Any], label: str,
    ) -> Iterator[_Result]:
        with single_thread(), ThreadPoolExecutor(self._threads) as pool:
            try:
                yield from progress(pool.map(function, items), label, len(items))
            finally:
                pool.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def _score_image(self, position: int) -> NDArray[Any]:
        image, records = self.encode(position), np.zeros(1, self.type)
        depths: dict[int, Tensor] = {}
        record = records[0]
        record['position'], record['pixels'] = position, len(image.valid)
        digest = hashlib.sha256(np.ascontiguousarray(image.pair.rgb).data)
        digest.update(np.ascontiguousarray(image.pair.depth).data)
        record['digest'] = np.frombuffer(digest.digest(), np.uint8)
        for index, predictor in enumerate(self.predictors):
            if index and not len(image.valid):
                break  # partners need the method's depth even of an image without truth
            match predictor:
                case ClosedForm():
                    record['sums'][index] = predictor.sums(image)
                case PatchDepth():
                    depths[index] = predictor.patches(image)
                case PixelDepth():
                    depths[index] = predictor.pixels(image)
                case OtherImage():
                    pass  # see `score_partners`
                case _:
                    raise TypeError(f'{type(predictor).__name__} is no kind that can be scored')
        for index, metres in depths.items():
            _check_depth(metres, self.predictors[index], position)
        record['patches'] = depths[0].cpu().numpy()
        if len(image.valid):
            max_depth = self.protocol.max_depth
            record['median'] = image.median
            record['histogram'] = np.histogram(image.valid, HISTOGRAM_BINS, (0, max_depth))[0]
            record['curve'] = image.constants.score(constants(max_depth))
            self._fill_sums(record, image.truth, depths)
        return records

    @torch.inference_mode()
    def _fill_sums(self, record: Any, truth: Metres, depths: Mapping[int, Tensor]) -> None:
        """Fill in the sums of one image's depth, keyed by the index of the predictor."""
        target = torch.from_numpy(truth).to(self.estimator.device)
        max_depth = self.protocol.max_depth
        pixelwise = [i for i in depths if isinstance(self.predictors[i], PixelDepth)]
        patchwise = [i for i in depths if i not in pixelwise]
        for indices in filter(None, (patchwise, pixelwise)):
            maps = torch.stack([depths[index] for index in indices])
            if indices is patchwise:
                maps = upsample(maps, self.protocol.size, self.estimator.config.upsampling)
            record['sums'][indices] = score(target, maps, max_depth).cpu().numpy()
            if indices[0] == 0:  # the method
                record['joint'] = joint_histogram(target, maps[0], max_depth, JOINT_BINS)


def partners(count: int, shift: int) -> list[int]:
    """Choose another image of the same group of four for each image, by a cyclic shift.

    The last group takes the remainder, so that no image is its own partner.
    """
    order: list[int] = []
    while len(order) < count:
        start = len(order)
        size = 4 if start + 8 <= count else count - start
        order += [start + (i + shift) % size for i in range(size)]
    return order


def _check_depth(depth: Tensor, predictor: Predictor, position: int) -> None:
    """Check patches, or pixels: upsampling averages, so that valid patches give valid pixels.

    Raises:
        PredictionError: depth is not finite, or not above the minimum.

    """
    valid = depth.isfinite() & (depth > MIN_DEPTH)
    if not bool(valid.all()):
        values = depth[~valid]
        raise PredictionError(
            f'{predictor.name}: the predicted depth of image {position} is {float(values[0])} m '
            f'in {len(values)} patches; depth must be finite and above {MIN_DEPTH} m. The weights '
            'or their precision are at fault; nothing was left out of the score in silence.')
