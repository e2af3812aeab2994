# SPDX-License-Identifier: Apache-2.0
"""From images to records: features once, then every contender."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.calibration import image_digest
from depthclip_ros.core.estimator import Maps
from depthclip_ros.core.projection import mean_of_passes, shares, smooth, upsample
from depthclip_ros.core.weights import Log, cache_folder, load
from depthclip_ros.core.words import TextFeatureCache, encode_tokens

from .contenders import Contender
from .datasets import Dataset, Entry, Pair
from .errors import DatasetError, PredictionError
from .metrics import MIN_DEPTH, SortedTruth, Truth, joint_histogram
from .protocol import Protocol
from .records import HISTOGRAM, JOINT, constants, layout

TextFeatures = dict[tuple[str, ...], NDArray[np.float32]]
# Threads that read and score beside the one that has the GPU.
_BESIDE_GPU = 4


def encode_all(
    chosen: Sequence[Contender], estimator: DepthEstimator, weights: str, cache_dir: str, log: Log,
) -> TextFeatures:
    """Text features of every contender's words, from the cache where they are in it."""
    config = estimator.config
    folder = cache_folder(cache_dir)
    cache = TextFeatureCache(folder / 'text', log, config.backbone)
    loaded: list[dict[str, Tensor]] = []

    def encode(words: DepthConfig) -> NDArray[np.float32]:
        # Only now and only once: with a filled cache the text encoder's weights are not needed.
        if not loaded:
            loaded.append(load(weights, config.backbone, folder, log)[1])
        return encode_tokens(words, loaded[0])

    found = {config.tokens: estimator.text_features}
    for tokens in dict.fromkeys(c.tokens for c in chosen if c.tokens):
        if sorted(tokens) == sorted(config.tokens):  # The same words in another order.
            found[tokens] = estimator.text_features[[config.tokens.index(t) for t in tokens]]
        else:
            words = config.replace(tokens=tokens, bins=[float(i + 1) for i in range(len(tokens))])
            found[tokens] = cache.get(
                words, estimator.weights.digest, estimator.text_features.shape[1],
                partial(encode, words))[0]
    return found


@dataclass(frozen=True)
class Image:
    """One image of a data set, as the protocol crops it.

    Attributes:
        position: in the data set's entries.
        entry: what is known of it.
        size: (height, width) of the whole image.
        rgb: (H, W, 3) uint8.
        truth: (H, W) float32 metres, NaN where it is not scored.
        digest: SHA-256 of image and depth.
        seen_before: by what a calibration's image is known again (`image_digest`).

    """

    position: int
    entry: Entry
    size: tuple[int, int]
    rgb: NDArray[np.uint8]
    truth: NDArray[np.float32]
    digest: bytes
    seen_before: str

    @classmethod
    def read(cls, dataset: Dataset, protocol: Protocol, position: int) -> Image:
        """Read and crop it.

        Raises:
            DatasetError: it is damaged or of another size.

        """
        pair, entry = dataset.read(position), dataset.entries[position]
        try:
            rgb, truth = protocol.prepare(pair)
        except DatasetError as error:
            raise DatasetError(f'{dataset.path}: {entry.name}: {error}') from error
        height, width = pair.depth.shape
        return cls(position, entry, (height, width), rgb, truth, digest_of(pair),
                   image_digest(pair.rgb))


def digest_of(pair: Pair) -> bytes:
    """SHA-256 of an image and its depth."""
    digest = hashlib.sha256(np.ascontiguousarray(pair.rgb).data)
    digest.update(np.ascontiguousarray(pair.depth).data)
    return digest.digest()


@dataclass(frozen=True)
class Seen:
    """Images, and what the network sees in them: what contenders make depth of."""

    images: Sequence[Image]
    maps: Maps
    estimator: DepthEstimator
    protocol: Protocol
    text: TextFeatures

    @property
    def device(self) -> torch.device:
        """Where depth is wanted."""
        return self.estimator.device

    @property
    def passes(self) -> int:
        """Of the network, for each image."""
        return len(self.maps.features) // len(self.images)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), number of patches."""
        return self.estimator.grid

    @cached_property
    def focal(self) -> Tensor:
        """(B,) focal length in widths of the network's input; 0 if not known."""
        config = self.estimator.config
        share = config.input_height / (self.protocol.size[0] * config.input_width)
        return torch.tensor([np.float32(image.entry.focal) * np.float32(share)
                             for image in self.images], device=self.device)

    @cached_property
    def logits(self) -> dict[tuple[str, ...], Tensor]:
        """(passes B, K, h, w) of every set of words: features are compared with all at once."""
        text = torch.from_numpy(np.concatenate(list(self.text.values()))).to(self.device)
        sizes = [len(words) for words in self.text.values()]
        return dict(zip(self.text, torch.split(
            self.estimator.logits(self.maps.features, text), sizes, dim=1), strict=True))

    def read_out(self, tokens: Sequence[str], bins: Sequence[float]) -> Tensor:
        """(B, h, w) metres that words say, in the order in which they get the bins."""
        return self.smoothed(self.estimator.read_out(
            self.logits[tuple(tokens)], torch.tensor(bins, device=self.device))[1])

    def smoothed(self, depth: Tensor) -> Tensor:
        """(passes B, h, w) metres -> (B, h, w): their mean, smoothed as configured."""
        return smooth(mean_of_passes(depth, len(self.images)), self.estimator.config.smoothing)


class Scorer:
    """Scores images.

    Attributes:
        network_seconds: time spent in the image encoder so far; of threads, their mean.

    """

    def __init__(
        self, dataset: Dataset, protocol: Protocol, estimator: DepthEstimator,
        chosen: Sequence[Contender], text: TextFeatures, batch_size: int,
    ) -> None:
        """Start the threads: `close` ends them.

        On a CPU a thread does everything of an image, instead of all threads one operation: less
        waiting, and rounding does not depend on how many there are. A GPU sees `batch_size` images
        at once, while other threads read and score.
        """
        dataset.read_truth(0)  # opened once, before threads share it
        self._dataset, self._protocol, self._estimator = dataset, protocol, estimator
        self._contenders, self._text = chosen, text
        self._threads, self._on_cpu = torch.get_num_threads(), estimator.device.type == 'cpu'
        self._at_once = 1 if self._on_cpu else batch_size
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self._threads if self._on_cpu else _BESIDE_GPU)
        self._gpu = nullcontext() if self._on_cpu else Lock()
        self._clock = Lock()
        self.network_seconds = 0.0

    def close(self) -> None:
        """End the threads, and let torch use as many as before."""
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)

    def score(self, positions: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Records of images, in order; but for contenders that are other images' depth.

        Raises:
            EvaluationError: an image is damaged, a depth cannot be scored, or a calibration was
                fitted to it.

        """
        chunks = [positions[i:i + self._at_once]
                  for i in range(0, len(positions), self._at_once)]
        return self._pool.map(self._score, chunks)

    @torch.inference_mode()
    def _score(self, positions: Sequence[int]) -> NDArray[Any]:
        images = [Image.read(self._dataset, self._protocol, p) for p in positions]
        records = np.zeros(len(images), layout(len(self._contenders), self._estimator.grid))
        for image, record in zip(images, records, strict=True):
            self._score_constants(image, record)
        with self._gpu:
            seen = self._see(images)
            depth = {place: contender.depth(seen) for place, contender in
                     enumerate(self._contenders) if contender.depth is not None}
            for place, maps in depth.items():
                _check(maps, self._contenders[place], images)
            for i, (image, record) in enumerate(zip(images, records, strict=True)):
                record['patches'] = depth[0][i].cpu().numpy()
                self._score_maps(image.truth, {p: maps[i] for p, maps in depth.items()}, record)
        return records

    def _see(self, images: Sequence[Image]) -> Seen:
        start = time.perf_counter()
        maps = self._estimator.maps([image.rgb for image in images])
        if maps.features.is_cuda:
            torch.cuda.synchronize(maps.features.device)
        with self._clock:
            self.network_seconds += (time.perf_counter() - start) / (
                self._threads if self._on_cpu else 1)
        return Seen(images, maps, self._estimator, self._protocol, self._text)

    def _score_constants(self, image: Image, record: Any) -> None:
        """Fill in what follows from the true depth alone."""
        record['position'], record['digest'] = image.position, np.frombuffer(
            image.digest, np.uint8)
        valid, most = image.truth[~np.isnan(image.truth)], self._protocol.max_depth
        record['pixels'] = len(valid)
        if not len(valid):
            return
        ordered = SortedTruth(valid)
        record['median'] = ordered.median()
        record['histogram'] = np.diff(ordered.below(np.linspace(0, most, HISTOGRAM + 1)))
        record['curve'] = ordered.score(constants(most))
        for place, contender in enumerate(self._contenders):
            if contender.sums is not None:
                record['sums'][place] = contender.sums(ordered, most)

    def _score_maps(
        self, truth: NDArray[np.float32], depth: dict[int, Tensor], record: Any,
    ) -> None:
        """Fill in the sums of one image's depth, by the contenders' places."""
        most, rows = self._protocol.max_depth, _scored_rows(truth)
        true = torch.from_numpy(truth[rows]).to(self._estimator.device)
        inside = Truth(true)
        # Whole maps are those of other programs, and the mean map.
        whole = [p for p, maps in depth.items() if maps.shape == self._protocol.size]
        for places in filter(None, ([p for p in depth if p not in whole], whole)):
            maps = self._pixels(torch.stack([depth[place] for place in places]), rows)
            record['sums'][places] = inside.score(maps, most).cpu().numpy()
            if places[0] == 0:  # the method
                record['joint'] = joint_histogram(true, maps[0], most, JOINT)

    def _pixels(self, depth: Tensor, rows: slice) -> Tensor:
        """Some rows of (B, H, W) of patches; what is that large already stays."""
        size, mode = self._protocol.size, self._estimator.config.upsampling
        if depth.shape[1:] == size:
            return depth[:, rows]
        if mode == 'patch':
            return upsample(depth, size, mode)[:, rows]
        # `upsample`, as two products of matrices: a seventh of its time.
        down, across = (
            shares(patches, pixels, mode).to(depth.device)
            for patches, pixels in zip(depth.shape[1:], size, strict=True))
        return down[rows] @ (depth @ across.T)

    def score_partners(self, records: NDArray[Any], done: Callable[[], Any]) -> None:
        """Fill in the sums of contenders that are the method's depth of another image.

        Args:
            records: of all images, in order of position.
            done: called after each image.

        """
        order = np.random.default_rng(0).permutation(len(records))
        other = {place: dict(zip(order.tolist(), order[partners(len(order), c.shift)].tolist(),
                                 strict=True))
                 for place, c in enumerate(self._contenders) if c.shift}

        @torch.inference_mode()
        def score(record: Any) -> None:
            position = int(record['position'])
            truth = self._protocol.truth(self._dataset.read_truth(position))
            with self._gpu:
                self._score_maps(truth, {place: torch.tensor(
                    records[of[position]]['patches'], device=self._estimator.device)
                    for place, of in other.items()}, record)
        for _ in self._pool.map(score, records if other else ()):
            done()


def partners(count: int, shift: int) -> list[int]:
    """Whose depth is scored on each image: of its own group of four, another one.

    What remains beyond whole groups belongs to the last one, so that nobody is his own partner.
    """
    order: list[int] = []
    for start in range(0, max(1, count - 3), 4):
        size = 4 if start + 8 <= count else count - start
        order += [start + (i + shift) % size for i in range(size)]
        if len(order) == count:
            break
    return order


def _check(depth: Tensor, contender: Contender, images: Sequence[Image]) -> None:
    """Upsampling takes means, so that what holds for the patches holds for the pixels."""
    good = depth.isfinite() & (depth > MIN_DEPTH)
    if not bool(good.all()):
        i = int((~good).flatten(1).any(1).nonzero()[0])
        values = depth[i][~good[i]]
        raise PredictionError(
            f'{contender.name}: the predicted depth of image {images[i].position} is '
            f'{float(values[0])} m in {len(values)} patches; depth must be finite and above '
            f'{MIN_DEPTH} m. The weights or their precision are at fault; nothing was left '
            'out of the score in silence.')


def _scored_rows(truth: NDArray[np.float32]) -> slice:
    """Rows outside of which nothing is scored; of a map, they are a view."""
    rows = np.flatnonzero(~np.isnan(truth).all(axis=1))
    return slice(rows[0], rows[-1] + 1) if len(rows) else slice(0, 1)
