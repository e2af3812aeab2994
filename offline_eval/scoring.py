# SPDX-License-Identifier: Apache-2.0
"""From images to records: the network once, then every contender."""

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
from depthclip_ros.core.engine import one_thread
from depthclip_ros.core.projection import (
    upsample,
)
from depthclip_ros.evaluation.datasets import Dataset
from depthclip_ros.evaluation.datasets.base import Metres
from depthclip_ros.evaluation.errors import DatasetError, PredictionError
from depthclip_ros.evaluation.metrics import (
    MIN_DEPTH,
    joint_histogram,
    score,
)
from depthclip_ros.evaluation.protocol import Protocol
from depthclip_ros.progress import progress

from .contenders import ClosedForm, Contender, OtherImage, PatchDepth, PixelDepth
from .images import EvaluatedImage, TextFeatures
from .records import HISTOGRAM, JOINT, constants, layout

BESIDE_GPU = 8  # threads that read and score
_Done = TypeVar('_Done')


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
        chosen: Sequence[Contender], text: TextFeatures,
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
                  for place, c in enumerate(self.contenders) if isinstance(c, OtherImage)}

        def of_image(record: Any) -> None:
            position = int(record['position'])
            self._fill(record, self.protocol.truth(self.dataset.read_truth(position)), {
                place: torch.tensor(records[partner[position]]['patches'],
                                    device=self.estimator.device)
                for place, partner in others.items()})
        list(self._each(of_image, records if others else (), 'shuffled images'))

    @torch.inference_mode()
    def encode(self, position: int) -> EvaluatedImage:
        """Read an image, and encode it."""
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
        return EvaluatedImage(position, entry, pair, rgb, truth, maps, self.estimator,
                              self.protocol, self.text)

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
        image, record = self.encode(position), np.zeros(1, self.type)
        depth: dict[int, Tensor] = {}
        of_image = record[0]
        of_image['position'], of_image['pixels'] = position, len(image.valid)
        digest = hashlib.sha256(np.ascontiguousarray(image.pair.rgb).data)
        digest.update(np.ascontiguousarray(image.pair.depth).data)
        of_image['digest'] = np.frombuffer(digest.digest(), np.uint8)
        for place, contender in enumerate(self.contenders):
            if place and not len(image.valid):
                break  # the method's depth of a blind image is scored on its partners
            match contender:
                case ClosedForm():
                    of_image['sums'][place] = contender.sums(image)
                case PatchDepth():
                    depth[place] = contender.patches(image)
                case PixelDepth():
                    depth[place] = contender.pixels(image)
        for place, metres in depth.items():
            _check(metres, self.contenders[place], position)
        of_image['patches'] = depth[0].cpu().numpy()
        if len(image.valid):
            most = self.protocol.max_depth
            of_image['median'] = image.median
            of_image['histogram'] = np.histogram(image.valid, HISTOGRAM, (0, most))[0]
            of_image['curve'] = image.constants.score(constants(most))
            self._fill(of_image, image.truth, depth)
        return record

    @torch.inference_mode()
    def _fill(self, record: Any, truth: Metres, depth: Mapping[int, Tensor]) -> None:
        """Fill in the sums of one image's depth, by the contenders' places."""
        true, most = torch.from_numpy(truth).to(self.estimator.device), self.protocol.max_depth
        whole = [p for p in depth if isinstance(self.contenders[p], PixelDepth)]
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
