# SPDX-License-Identifier: Apache-2.0
"""From one batch of images to its records: features once, then every column."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.projection import upsample
from depthclip_ros.core.prompts import TextFeatureCache, encode_tokens
from depthclip_ros.core.weights import Log, default_cache_dir, load

from .columns import (
    CONSTANT,
    MEAN_MAP,
    MEDIAN,
    PARTNER,
    RANDOM_PATCH,
    RANDOM_PIXEL,
    READ_OUT,
    Column,
)
from .errors import PredictionError
from .loader import Batch
from .metrics import MIN_DEPTH, SortedTruth, Truth, random_pixel_sums
from .protocol import Protocol
from .records import HISTOGRAM, Records, constants

TextFeatures = Mapping[tuple[str, ...], NDArray[np.float32]]


def encode_all(
    chosen: Sequence[Column], estimator: DepthEstimator, weights: str, cache_dir: str, log: Log,
) -> TextFeatures:
    """Text features of every column's words, from the cache where they are in it."""
    config = estimator.config
    folder = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    cache = TextFeatureCache(folder / 'text', log)
    loaded: list[dict[str, Tensor]] = []

    def encode(words: DepthConfig) -> NDArray[np.float32]:
        # Only now and only once: with a filled cache the text encoder's weights are not needed.
        if not loaded:
            loaded.append(load(weights, config.backbone, folder, log)[1])
        return encode_tokens(words, loaded[0])

    found = {config.tokens: estimator.text_features}
    for column in chosen:
        if column.kind == READ_OUT and column.tokens not in found:
            same = sorted(column.tokens) == sorted(config.tokens)
            if same:  # The same words in another order.
                order = [config.tokens.index(token) for token in column.tokens]
                found[column.tokens] = estimator.text_features[order]
                continue
            words = config.replace(tokens=column.tokens, bins=column.bins)
            found[column.tokens] = cache.get(
                words, estimator.weights.digest, partial(encode, words))[0]
    return found


class Scorer:
    """Scores batches.

    Attributes:
        network_seconds: time spent in the image encoder so far.

    """

    def __init__(
        self, estimator: DepthEstimator, protocol: Protocol, chosen: Sequence[Column],
        text: TextFeatures, mean_map: NDArray[np.float32] | None,
    ) -> None:
        """Move what all batches need to the device."""
        self._estimator, self._protocol, self._columns = estimator, protocol, chosen
        device = estimator.device
        self._text = {words: torch.from_numpy(np.ascontiguousarray(features)).to(device)
                      for words, features in text.items()}
        self._mean_map = None if mean_map is None else torch.from_numpy(mean_map).to(device)
        self._constants = constants(protocol.max_depth)
        self.network_seconds = 0.0

    @torch.inference_mode()
    def score(self, batch: Batch, records: Records) -> NDArray[Any]:
        """Records of a batch, the same digits whatever ran before.

        Raises:
            PredictionError: a depth cannot be scored.

        """
        features = self._features(batch)
        truth = torch.from_numpy(batch.truth).to(self._estimator.device)
        box = _bounding_box(batch.truth)
        scored = Truth(truth[:, box[0], box[1]])
        result = records.empty(len(batch.positions))
        result['position'], result['digest'] = batch.positions, batch.digests
        method: Tensor | None = None
        for place, column in enumerate(self._columns):
            patches = self._patches(column, features, batch, method)
            method = patches if method is None else method
            if column.kind == MEAN_MAP and self._mean_map is not None:
                depth = self._mean_map.expand(len(truth), -1, -1)
            elif patches is not None:
                self._check(patches, column, batch)
                depth = upsample(patches, self._protocol.size, self._estimator.config.upsampling)
            else:
                continue
            sums = scored.score(depth[:, box[0], box[1]], self._protocol.max_depth)
            result['columns'][:, place] = sums.cpu().numpy()
        for i in range(len(batch.positions)):
            self._score_constants(truth[i], result[i])
        return result

    def _features(self, batch: Batch) -> Tensor:
        start = time.perf_counter()
        features = self._estimator.features(list(batch.rgb))
        if features.is_cuda:
            torch.cuda.synchronize()
        self.network_seconds += time.perf_counter() - start
        return features

    def _patches(
        self, column: Column, features: Tensor, batch: Batch, method: Tensor | None,
    ) -> Tensor | None:
        """(B, h, w) metres; None for what does not come in patches."""
        if column.kind == READ_OUT:
            bins = torch.tensor(column.bins, device=features.device)
            return self._estimator.read_out(features, self._text[column.tokens], bins).patch_depth
        if column.kind == PARTNER and method is not None:
            return method[partners(len(method))]
        if column.kind == RANDOM_PATCH:
            return self._random_patches(features, batch)
        return None

    def _random_patches(self, features: Tensor, batch: Batch) -> Tensor:
        """Depth drawn per patch and pass, by a generator of the image's own."""
        passes, _, _, *grid = features.shape
        drawn = np.stack([
            np.random.default_rng([7, index]).uniform(
                2 * MIN_DEPTH, self._protocol.max_depth, (passes, *grid)).mean(0)
            for index in batch.positions])
        return torch.from_numpy(drawn.astype(np.float32)).to(features.device)

    def _score_constants(self, truth: Tensor, record: Any) -> None:
        """What follows from the distribution of one image's true depth alone."""
        valid = truth[~truth.isnan()]
        record['pixels'] = len(valid)
        if not len(valid):
            return
        ordered = SortedTruth(valid)
        record['median'] = ordered.median()
        record['curve'] = ordered.score(self._constants).cpu().numpy()
        edges = torch.linspace(0, self._protocol.max_depth, HISTOGRAM + 1).to(ordered.depth)
        record['histogram'] = torch.searchsorted(ordered.depth, edges).diff().cpu().numpy()
        for place, column in enumerate(self._columns):
            if column.kind in (CONSTANT, MEDIAN):
                value = column.value if column.kind == CONSTANT else float(record['median'])
                record['columns'][place] = ordered.score([value])[0].cpu().numpy()
            elif column.kind == RANDOM_PIXEL:
                record['columns'][place] = random_pixel_sums(
                    valid, self._protocol.max_depth).cpu().numpy()

    def _check(self, patches: Tensor, column: Column, batch: Batch) -> None:
        """Upsampling takes means, so that what holds for the patches holds for the pixels."""
        good = (patches.isfinite() & (patches > MIN_DEPTH)).flatten(1).all(1)
        if not bool(good.all()):
            i = int((~good).nonzero()[0])
            values = patches[i][~(patches[i].isfinite() & (patches[i] > MIN_DEPTH))]
            raise PredictionError(
                f'{column.name}: the predicted depth of image {batch.positions[i]} is '
                f'{float(values[0])} m in {len(values)} patches; depth must be finite and above '
                f'{MIN_DEPTH} m. The weights or their precision are at fault; nothing was left '
                'out of the score in silence.')


def partners(count: int) -> list[int]:
    """Whose depth is scored on each image of a batch: pairs change places, a last three rotate."""
    order = [i ^ 1 for i in range(count)]
    if count % 2:
        order[-3:] = [count - 2, count - 1, count - 3] if count > 1 else [0]
    return order


def _bounding_box(truth: NDArray[np.float32]) -> tuple[slice, slice]:
    """Rows and columns outside of which nothing is scored in the whole batch."""
    rows, columns = (np.flatnonzero(~np.isnan(truth).all(axis=axes)) for axes in ((0, 2), (0, 1)))
    if not len(rows):
        return slice(0, 1), slice(0, 1)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
