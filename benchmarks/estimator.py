# SPDX-License-Identifier: Apache-2.0
"""The estimator beside the naive way to run DepthCLIP: milliseconds from RGB to depth.

All that is compared runs on the same weights, in turns, in one process. RN50 with random weights:
the time is the same as with trained ones. On CUDA if it is there.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from clip_standin import state_dict, synthetic_rgb, tiny_state_dict
from numpy.typing import NDArray

from benchmarks.naive import NaiveDepthClip
from benchmarks.timing import Contender, race, ratio, wall
from depthclip_ros.cli.quantize import rooms
from depthclip_ros.core import DepthConfig, DepthEstimator, EngineError, device
from depthclip_ros.node.process import keep_freed_memory

Size = tuple[int, int]  # height and width
# The usual one, and those about 320 and 240 lines of which `input_size` knows the error.
SIZES: tuple[Size, ...] = ((480, 640), (320, 416), (256, 352), (224, 288))
LARGE: Size = (720, 1280)  # of an image that must be resized
BATCHES = (1, 2, 4, 8)


def precisions(kind: torch.device) -> list[str]:
    """Number formats that the package runs on a device as asked, the exact one first.

    What it would refuse or replace there is not measured. 8 bits are not among them: they need a
    file of their own.
    """
    wanted = ('float32', 'float16' if kind.type == 'cuda' else 'bfloat16')
    return [name for name in wanted
            if not device.resolve_precision(name, kind, lambda _: None).why]


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Precisions with flip averaging and without; then batches, and sizes of the input."""
    keep_freed_memory()  # as the node has it; for every contender
    rounds = 2 if quick else 15
    with tempfile.TemporaryDirectory() as cache:
        models = Models(cache, quick=quick)
        return [*_against_naive(models, rounds), *_batches(models, rounds),
                *_sizes(models, rounds)]


class Models:
    """Builds what is compared, all on the same weights."""

    def __init__(self, cache: str, *, quick: bool) -> None:
        """Choose the network: RN50, or a tiny one."""
        self.device = device.resolve_device('auto')
        self.weights = tiny_state_dict() if quick else state_dict(0)
        self.sizes = ((96, 128),) if quick else SIZES
        self.precisions = [*precisions(self.device), *self._int8()]
        self.config = DepthConfig(
            backbone='auto', input_height=self.sizes[0][0], input_width=self.sizes[0][1],
            upsampling='bilinear')  # the official code's, or depth would differ by it
        self._cache = cache

    def _int8(self) -> list[str]:
        """8 bits where they can be run."""
        if self.device.type != 'cpu':
            return []
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        except ImportError as error:
            print(f'int8 is not measured: {error}', file=sys.stderr)
            return []
        return ['int8']

    def build(self, **changes: Any) -> DepthEstimator:
        """Build an estimator with some settings changed, and first what 8 bits need."""
        config = self.config.replace(**changes)
        if config.precision == 'int8':
            exact = config.replace(precision='float32')
            try:
                self._load(config)
            except EngineError:
                self._load(exact).quantize(rooms(), 'rendered rooms')
        return self._load(config)

    def _load(self, config: DepthConfig) -> DepthEstimator:
        return DepthEstimator(config, self.weights, str(self.device), cache_dir=self._cache,
                              log=lambda _: None)

    def naive(self) -> NaiveDepthClip:
        """The official code's way."""
        return NaiveDepthClip(self.weights, self.build().text_features, self.config, self.device)

    def images(self, count: int, size: Size | None = None) -> list[NDArray[np.uint8]]:
        """(H, W, 3) each, all different; of the network's size unless another is given."""
        return [synthetic_rgb(seed, *(size or self.sizes[0])) for seed in range(count)]


def _against_naive(models: Models, rounds: int) -> list[dict[str, Any]]:
    """One image at a time, and how far its depth is from the naive way's."""
    naive, image = models.naive(), models.images(1)
    exact = {flip: naive(image, flip=flip)[0] for flip in (True, False)}
    contenders = [
        Contender('naive, two passes', wall(partial(naive, image, flip=True))),
        Contender('naive, one pass', wall(partial(naive, image, flip=False)))]
    differences = [np.zeros(1), np.zeros(1)]
    for precision in models.precisions:
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


def _sizes(models: Models, rounds: int) -> list[dict[str, Any]]:
    """Smaller inputs of the network, and an image that must be resized."""
    return race(list(_of_sizes(models)), rounds)


def _of_sizes(models: Models) -> Iterator[Contender]:
    for height, width in models.sizes:
        image = models.images(1, (height, width))
        for precision in models.precisions:
            estimator = models.build(precision=precision, flip_average=False,
                                     input_height=height, input_width=width)
            yield Contender(f'input {width}x{height}, {precision}',
                            wall(partial(estimator.predict, image)))
    usual = models.build(precision='float32', flip_average=False)
    yield Contender(f'image {LARGE[1]}x{LARGE[0]}, usual input, float32',
                    wall(partial(usual.predict, models.images(1, LARGE))))
