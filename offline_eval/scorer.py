# SPDX-License-Identifier: Apache-2.0
"""From one batch of images to its records: features once, then every contender."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.estimator import Maps
from depthclip_ros.core.projection import shares, smooth, upsample
from depthclip_ros.core.prompts import TextFeatureCache, encode_tokens
from depthclip_ros.core.weights import Log, cache_folder, load

from .calibrated import Calibrated
from .contenders import CALIBRATED, FOREIGN, MEAN_MAP, PARTNER, RANDOM_PATCH, READ_OUT, Contender
from .errors import PredictionError
from .loader import Batch
from .metrics import MIN_DEPTH, Truth, joint_histogram
from .protocol import Protocol
from .records import JOINT

_Result = TypeVar('_Result')
TextFeatures = Mapping[tuple[str, ...], NDArray[np.float32]]
_Depths = dict[int, Tensor]  # (B, h, w) metres by the contenders' places


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
    for contender in chosen:
        if contender.kind == READ_OUT and contender.tokens not in found:
            same = sorted(contender.tokens) == sorted(config.tokens)
            if same:  # The same words in another order.
                order = [config.tokens.index(token) for token in contender.tokens]
                found[contender.tokens] = estimator.text_features[order]
                continue
            words = config.replace(tokens=contender.tokens, bins=contender.bins)
            found[contender.tokens] = cache.get(
                words, estimator.weights.digest, estimator.text_features.shape[1],
                partial(encode, words))[0]
    return found


class Scorer:
    """Scores batches.

    Attributes:
        network_seconds: time spent in the image encoder so far; of threads, their mean.

    """

    def __init__(
        self, estimator: DepthEstimator, protocol: Protocol, chosen: Sequence[Contender],
        text: TextFeatures, mean_map: NDArray[np.float32] | None,
        calibrated: Mapping[str, Calibrated],
    ) -> None:
        """Move what all batches need to the device; `calibrated` by its contender's hash."""
        self._estimator, self._protocol, self._contenders = estimator, protocol, chosen
        device = estimator.device
        # Each word set's rows in one matrix: the features are compared with all at once.
        ends = np.cumsum([len(features) for features in text.values()]).tolist()
        self._rows = {words: slice(end - len(features), end)
                      for end, (words, features) in zip(ends, text.items(), strict=True)}
        self._text = torch.from_numpy(np.concatenate(list(text.values()))).to(device)
        self._bins = {contender.bins: torch.tensor(contender.bins, device=device)
                      for contender in chosen if contender.kind == READ_OUT}
        # The tables' original bins and prompt are the method's in the paper's setting.
        first: dict[tuple[object, ...], int] = {}
        predictions = [first.setdefault((each.tokens, each.bins, each.focal), place)
                       if each.kind == READ_OUT else place for place, each in enumerate(chosen)]
        self._same = {place: other for place, other in enumerate(predictions) if place != other}
        self._mean_map = None if mean_map is None else torch.from_numpy(mean_map).to(device)
        self._calibrated = calibrated
        self._threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        if device.type == 'cpu':
            # An image to a thread, instead of all threads to an operation: less waiting, and
            # rounding does not depend on how many there are.
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(self._threads)
        self._at_once = self._threads if self._pool else 1
        self._lock = Lock()
        self.network_seconds = 0.0

    def score(self, batches: Iterable[Batch]) -> Iterator[NDArray[Any]]:
        """Complete the records of batches, in order: the same digits whatever ran before.

        Behind the metrics of a batch the next one's network is waiting already, so that no thread
        waits for the last image of a batch.

        Raises:
            PredictionError: a depth cannot be scored.
            EvaluationError: a calibration was fitted to an image of a batch.

        """
        seen: deque[tuple[Batch, Callable[[], list[_Depths]]]] = deque()
        scored: deque[Callable[[], NDArray[Any]]] = deque()
        for batch in batches:
            for calibrated in self._calibrated.values():
                calibrated.check_unseen(batch.positions, batch.images)
            seen.append((batch, self._begin(partial(self._see, batch), len(batch.rgb))))
            if scored:
                yield scored.popleft()()
            if len(seen) > 1:
                scored.append(self._score(*seen.popleft()))
        scored.extend(self._score(*last) for last in seen)
        for finish in scored:
            yield finish()

    def _score(
        self, batch: Batch, seen: Callable[[], list[_Depths]],
    ) -> Callable[[], NDArray[Any]]:
        """Begin the metrics of a batch that went into the network; gives what waits for them."""
        patches = self._all_patches(seen(), batch)
        for place, depth in patches.items():
            self._check(depth, self._contenders[place], batch)
        rows = _scored_rows(batch.truth)
        truth = torch.from_numpy(batch.truth)
        # Whole maps are those of other programs, and the mean map.
        whole = [p for p, depth in patches.items() if depth.shape[1:] == self._protocol.size]
        coarse = [p for p in patches if p not in whole and p not in self._same]

        @torch.inference_mode()
        def score_images(part: slice) -> None:
            for i in range(len(truth))[part]:
                true = truth[i, rows].to(self._estimator.device)
                inside = Truth(true)
                for places in filter(None, (coarse, whole)):
                    maps = self._pixels(torch.stack([patches[place][i] for place in places]), rows)
                    sums = inside.score(maps, self._protocol.max_depth)
                    batch.records['sums'][i, places] = sums.cpu().numpy()
                    if places[0] == 0:  # the method
                        batch.records['joint'][i] = joint_histogram(
                            true, maps[0], self._protocol.max_depth, JOINT)
                for place, other in self._same.items():
                    batch.records['sums'][i, place] = batch.records['sums'][i, other]

        done = self._begin(score_images, len(truth))

        def finish() -> NDArray[Any]:
            done()
            return batch.records

        return finish

    def close(self) -> None:
        """End the threads, and let torch use as many as before."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)

    def _begin(
        self, work: Callable[[slice], _Result], count: int,
    ) -> Callable[[], list[_Result]]:
        """Do something with every image: one by one in the threads, or at once on a GPU.

        Returns:
            What waits for the results, and gives them.

        """
        if self._pool is None:
            done = [work(slice(None))]
            return lambda: done
        return partial(list, self._pool.map(work, [slice(i, i + 1) for i in range(count)]))

    def _all_patches(self, parts: list[_Depths], batch: Batch) -> _Depths:
        """Depth of all but the constants, by their places: patches, or whole maps."""
        found = {place: torch.cat([part[place] for part in parts]) for place in parts[0]}
        count, *grid = found[0].shape
        focal, device = self._focal_lengths(batch), found[0].device
        for place, contender in enumerate(self._contenders):
            if contender.focal:
                ratio = torch.from_numpy(focal / np.float32(contender.focal))
                found[place] = found[place] * ratio.to(device)[:, None, None]
            elif contender.kind == PARTNER:
                found[place] = found[0][partners(count, contender.shift)]
            elif contender.kind == RANDOM_PATCH:
                found[place] = self._random_patches(grid, batch).to(device)
            elif contender.kind == MEAN_MAP and self._mean_map is not None:
                found[place] = self._mean_map.expand(count, -1, -1)
            elif contender.kind == FOREIGN:
                found[place] = torch.from_numpy(batch.foreign[place]).to(device)
        return found

    def _focal_lengths(self, batch: Batch) -> NDArray[np.float32]:
        """(B,) in widths of the network's input, as `CameraModel.focal_length` gives it."""
        config = self._estimator.config
        return batch.focal * np.float32(
            config.input_height / (batch.rgb.shape[1] * config.input_width))

    def _read_outs(self, maps: Maps, focal: NDArray[np.float32]) -> _Depths:
        """(B, h, w) metres of every read-out, the method's first, and of every calibration."""
        estimator, found = self._estimator, {}
        logits = estimator.logits(maps.features, self._text)
        for place, each in enumerate(self._contenders):
            if each.kind == READ_OUT:
                found[place] = estimator.read_out(
                    logits[:, :, self._rows[each.tokens]], self._bins[each.bins]).patch_depth
            elif each.kind == CALIBRATED:
                own = logits[:, :, self._rows[estimator.config.tokens]]
                found[place] = self._calibrated[each.calibration].depth(
                    estimator, own, maps, focal)
        return {place: smooth(depth, estimator.config.smoothing)
                for place, depth in found.items()}

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

    def _see(self, batch: Batch, part: slice) -> _Depths:
        """What the network makes of some images of a batch, read out for every contender."""
        start = time.perf_counter()
        maps = self._estimator.maps(list(batch.rgb[part]))
        if maps.features.is_cuda:
            torch.cuda.synchronize(maps.features.device)
        with self._lock:
            self.network_seconds += (time.perf_counter() - start) / self._at_once
        return self._read_outs(maps, self._focal_lengths(batch)[part])

    def _random_patches(self, grid: Sequence[int], batch: Batch) -> Tensor:
        """Depth drawn per patch and pass, by a generator of the image's own."""
        passes = 1 + self._estimator.config.flip_average
        drawn = np.stack([
            np.random.default_rng([7, index]).uniform(
                2 * MIN_DEPTH, self._protocol.max_depth, (passes, *grid)).mean(0)
            for index in batch.positions])
        return torch.from_numpy(drawn.astype(np.float32))

    def _check(self, patches: Tensor, contender: Contender, batch: Batch) -> None:
        """Upsampling takes means, so that what holds for the patches holds for the pixels."""
        good = (patches.isfinite() & (patches > MIN_DEPTH)).flatten(1).all(1)
        if not bool(good.all()):
            i = int((~good).nonzero()[0])
            values = patches[i][~(patches[i].isfinite() & (patches[i] > MIN_DEPTH))]
            raise PredictionError(
                f'{contender.name}: the predicted depth of image {batch.positions[i]} is '
                f'{float(values[0])} m in {len(values)} patches; depth must be finite and above '
                f'{MIN_DEPTH} m. The weights or their precision are at fault; nothing was left '
                'out of the score in silence.')


def partners(count: int, shift: int) -> list[int]:
    """Whose depth is scored on each image of a batch: of its own group of four, another one.

    What remains beyond whole groups belongs to the last one, so that nobody is his own partner
    and the groups do not depend on the size of the batches.
    """
    order: list[int] = []
    for start in range(0, max(1, count - 3), 4):
        size = 4 if start + 8 <= count else count - start
        order += [start + (i + shift) % size for i in range(size)]
        if len(order) == count:
            break
    return order


def _scored_rows(truth: NDArray[np.float32]) -> slice:
    """Rows outside of which nothing is scored in the whole batch; of a map, they are a view."""
    rows = np.flatnonzero(~np.isnan(truth).all(axis=(0, 2)))
    return slice(rows[0], rows[-1] + 1) if len(rows) else slice(0, 1)
