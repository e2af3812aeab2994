# SPDX-License-Identifier: Apache-2.0
"""A GPU: RGB to depth of one image and of 32, what crosses its bus, and eight cameras at 30 Hz.

RN50 with random weights: the time is the same as with trained ones. On a CPU where there is no
GPU, which shows that it runs, and no more.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from clip_standin import write_tiny_weights
from torch.profiler import profile

from benchmarks import estimator, node
from benchmarks.timing import Contender, race, wall

BATCHES = (1, 32)
RUNS = 20  # under the profiler, which synchronises once itself
COUNTED = {
    'copies to the GPU': ('Memcpy HtoD',), 'copies to the host': ('Memcpy DtoH',),
    'synchronisations': ('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize'),
    'graphs': ('cudaGraphLaunch',)}


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Batches, then copies and synchronisations of an image, then the node."""
    with tempfile.TemporaryDirectory() as folder:
        models = estimator.Models(folder, quick=quick)
        name = torch.cuda.get_device_name(models.device) if models.device.type == 'cuda' else 'CPU'
        rows = [*_batches(models, 2 if quick else 15), *_crossings(models), *_cameras(
            folder, quick=quick)]
        return [{'device': name, **row} for row in rows]


def _batches(models: estimator.Models, rounds: int) -> list[dict[str, Any]]:
    return race([
        Contender(f'batch of {count}, {precision}',
                  wall(partial(built.predict, models.images(count))), count)
        for precision in estimator.precisions(models.device)
        for built in (models.build(precision=precision, flip_average=False),)
        for count in BATCHES if not built.warm_up(count)], rounds)


def _crossings(models: estimator.Models) -> Iterator[dict[str, Any]]:
    """Copies and synchronisations of an image, counted by torch's profiler."""
    for precision in estimator.precisions(models.device):
        built, image = models.build(precision=precision, flip_average=False), models.images(1)[0]
        built.predict(image)
        with profile() as profiler:
            for _ in range(RUNS):
                built.predict(image)
        counts = Counter({event.key: event.count for event in profiler.key_averages()})
        yield {'precision': precision, 'engine': built.engine, **{
            f'{name}, each image': sum(
                count for key, count in counts.items() if key.startswith(keys)) / RUNS
            for name, keys in COUNTED.items()}}


def _cameras(folder: str, *, quick: bool) -> Iterator[dict[str, Any]]:
    write_tiny_weights(Path(folder) / 'tiny.pt')
    setting = node.Setting(node.TINY, 2) if quick else node.Setting('RN50', 8)
    for precision in node.formats(setting):
        yield from node.Bench(setting, precision, folder, quick=quick).trials()
