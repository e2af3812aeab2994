# SPDX-License-Identifier: Apache-2.0
"""The estimator beside the naive way to run DepthCLIP: milliseconds from RGB to depth.

All that is compared runs on the same weights, in turns, in one process. RN50 with random weights:
the time is the same as with trained ones. On CUDA if it is there.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
from clip_standin import state_dict, synthetic_rgb, tiny_state_dict
from numpy.typing import NDArray

from benchmarks.naive import NaiveDepthClip
from benchmarks.timing import Contender, race, ratio, wall
from depthclip_ros.cli.quantize import rooms
from depthclip_ros.core import DepthConfig, DepthEstimator, EngineError, engine
from depthclip_ros.node.process import keep_freed_memory

BATCHES = (1, 2, 4, 8)


def precisions(kind: torch.device) -> list[str]:
    """Number formats that the package runs on a device as asked, the exact one first.

    What it would refuse or replace there is not measured. 8 bits are not among them: they need a
    file of their own.
    """
    candidates = ('float32', 'float16' if kind.type == 'cuda' else 'bfloat16')
    return [name for name in candidates
            if engine.resolve_precision(name, kind, lambda _: None) == getattr(torch, name)]


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Precisions with flip averaging and without; then batches."""
    keep_freed_memory()  # as the node has it; for every contender
    rounds = 2 if quick else 15
    with tempfile.TemporaryDirectory() as cache:
        models = Models(cache, quick=quick)
        return [*_against_naive(models, rounds), *_batches(models, rounds)]


class Models:
    """Builds what is compared, all on the same weights."""

    def __init__(self, cache: str, *, quick: bool) -> None:
        """Choose the network: RN50, or a tiny one."""
        self.device = engine.resolve_device('auto')
        self._weights = tiny_state_dict() if quick else state_dict(0)
        self.size = (96, 128) if quick else (480, 640)  # height and width
        self._config = DepthConfig(
            backbone='auto', input_height=self.size[0], input_width=self.size[1],
            upsampling='bilinear')  # the official code's, or depth would differ by it
        self._cache = cache

    def precisions(self) -> list[str]:
        """Those of the device, and 8 bits, made here, where they can be run."""
        names = precisions(self.device)
        if self.device.type == 'cpu':
            try:
                self.build().quantize(rooms())
                names.append('int8')
            except EngineError as error:
                print(f'int8 is not measured: {error}', file=sys.stderr)
        return names

    def build(self, **changes: Any) -> DepthEstimator:
        """Build an estimator with some settings changed."""
        return DepthEstimator(
            self._config.replace(**changes), self._weights, str(self.device),
            cache_dir=self._cache, log=lambda _: None)

    def naive(self) -> NaiveDepthClip:
        """The official code's way."""
        return NaiveDepthClip(self._weights, self.build().text_features, self._config, self.device)

    def images(self, count: int) -> list[NDArray[np.uint8]]:
        """(H, W, 3) each, of the network's size, all different."""
        return [synthetic_rgb(seed, *self.size) for seed in range(count)]


def _against_naive(models: Models, rounds: int) -> list[dict[str, Any]]:
    """One image at a time, and how far its depth is from the naive way's."""
    naive, image = models.naive(), models.images(1)
    exact = {flip: naive(image, flip=flip)[0] for flip in (True, False)}
    contenders = [
        Contender('naive, two passes', wall(partial(naive, image, flip=True))),
        Contender('naive, one pass', wall(partial(naive, image, flip=False)))]
    differences = [np.full(1, np.nan), np.full(1, np.nan)]
    for precision in models.precisions():
        for flip in (True, False):
            estimator = models.build(precision=precision, flip_average=flip)
            contenders.append(Contender(
                f'{precision}, {"flip" if flip else "plain"}',
                wall(partial(estimator.predict, image))))
            differences.append(abs(estimator.predict(image)[0].depth - exact[flip]))
    rows = race(contenders, rounds)
    for contender, row, difference in zip(contenders, rows, differences, strict=True):
        row['times faster than two naive passes'] = ratio(contenders[0], contender)
        row['depth differs, median [m]'] = float(np.median(difference))
        row['depth differs, max [m]'] = float(difference.max())
    return rows


def _batches(models: Models, rounds: int) -> list[dict[str, Any]]:
    """Throughput of the node's way (no flip)."""
    precision = precisions(models.device)[-1]
    predict = models.build(precision=precision, flip_average=False).predict
    return race([
        Contender(f'batch of {count}, {precision}', wall(partial(predict, models.images(count))),
                  count) for count in BATCHES], rounds)
