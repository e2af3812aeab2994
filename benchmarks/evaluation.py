# SPDX-License-Identifier: Apache-2.0
"""Throughput of the offline evaluation beside that of its network alone.

`offline_eval` with the paper's three tables on rendered rooms in the format of NYU's .mat file,
and, in turns with it in the same process, the network alone on images of the same shape.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.startup import write_weights
from benchmarks.timing import Contender, race, ratio, wall
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.sim.nyu import make_samples, split, write_labeled_mat, write_splits
from offline_eval import cli
from offline_eval.results import Summary
from offline_eval.runner import LATEST

BATCH = 4  # of the network alone
ROOMS = 80  # rendered images; more are repetitions of these


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Both models on the same images."""
    images, rounds = (10, 1) if quick else (120, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ['DEPTHCLIP_CACHE'] = str(folder / 'cache')
        write_data(folder, images)
        models = {'demo': 'demo'}
        if not quick:
            models['RN50, random numbers'] = str(write_weights(folder / 'RN50.pt'))
        return [row for model, weights in models.items()
                for row in _measure(model, weights, folder, images, rounds)]


def write_data(folder: Path, images: int) -> None:
    """Write .mat and split with so many test images, and as many for training or a few less."""
    count = next(n for n in itertools.count(2 * images - 20) if len(split(n)[1]) == images)
    samples = list(itertools.islice(
        itertools.cycle(make_samples(min(count, ROOMS))), count))
    write_labeled_mat(folder / 'nyu_depth_v2_labeled.mat', samples)
    write_splits(folder / 'splits.mat', count)


def _measure(
    model: str, weights: str, folder: Path, images: int, rounds: int,
) -> list[dict[str, Any]]:
    """The evaluation until all images are scored, beside the network alone."""
    first = _evaluate(weights, folder)  # fills the cache of text features
    alone = list(_alone(DepthConfig().replace(**first.config), weights))
    contenders = [*alone, Contender(
        'evaluation, all images', lambda: _evaluate(weights, folder).timing.seconds, images)]
    rows = race(contenders, rounds, warm=False)
    best = min(alone, key=lambda contender: median(contender.seconds))
    return [{'model': model, **row,
             'time of the network alone': ratio(contender, best) * BATCH / contender.images}
            for row, contender in zip(rows, contenders, strict=True)]


def _evaluate(weights: str, folder: Path) -> Summary:
    """Evaluate all three tables, but for the mean map, which reads the training split first."""
    output = folder / 'results'
    arguments = ['--data', str(folder), '--weights', weights, '--output', str(output),
                 '--no-mean-map']
    for table in '123':
        arguments += ['--table', table]
    if cli.main(arguments):
        raise RuntimeError('the evaluation failed')
    return Summary.read(output / LATEST)


def _alone(config: DepthConfig, weights: str) -> Iterator[Contender]:
    """The image encoder with nothing beside it, in the ways that it can be run."""
    images = list(np.random.default_rng(0).integers(
        0, 256, (BATCH, config.input_height, config.input_width, 3), np.uint8))
    threads = torch.get_num_threads()
    together = DepthEstimator(config, weights, 'auto')
    is_cuda = together.device.type == 'cuda'

    def batch() -> None:
        torch.set_num_threads(threads)
        together.maps(images)
        if is_cuda:
            torch.cuda.synchronize(together.device)

    yield Contender(f'network alone, batch of {BATCH}', wall(batch), BATCH)
    if not is_cuda:
        # Of its own: the engine prepares itself for the number of threads.
        single = DepthEstimator(config, weights, 'cpu', num_threads=1)
        torch.set_num_threads(threads)

        def each_on_a_thread() -> None:
            torch.set_num_threads(1)
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda image: single.maps([image]), images))
            torch.set_num_threads(threads)

        yield Contender('network alone, an image to a thread', wall(each_on_a_thread), BATCH)
