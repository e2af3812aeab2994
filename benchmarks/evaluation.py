# SPDX-License-Identifier: Apache-2.0
"""Throughput of the offline evaluation beside that of its network alone, as JSON.

`python -m offline_eval` with the paper's three tables on rendered rooms in the format of NYU's
.mat file; then, in the same process, the network alone on images of the same shape.

    python benchmarks/evaluation.py --output benchmarks/results/evaluation.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

GOAL_RATIO, GOAL_GPU = 1.1, 200.0  # wall time per image, of the network's alone; images a second
BATCH, REPEATS = 4, 5  # of the network alone
ROOMS = 80  # rendered images; more are repetitions of these
# What a run consists of, by the methods of `Evaluation`.
STAGES = {'open data and load the model': '__init__', 'training split': '_training_mean',
          'text features': '_contenders', 'all images': '_score',
          'averages, intervals': '_summarize', 'report': '_report'}


def main() -> int:
    """Measure, write, and exit with 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--images', type=int, default=120, help='test images, at least 10')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--precision', help='as of offline_eval')
    parser.add_argument('--output', type=Path, help='JSON file; default: standard output')
    parser.add_argument('--inside', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(evaluate(json.loads(options.inside))))
        return 0
    from benchmarks import machine, report
    from benchmarks.startup import write_release
    description = machine.describe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, options.images)
        weights = write_release(folder / 'RN50.pt')
        models = {
            'RN50, random numbers': run(folder, ['--weights', str(weights)], options),
            'demo': run(folder, ['--weights', 'demo'], options)}
    gpu = bool(description['gpu']) and options.device != 'cpu'
    report.write(options.output, {
        **description, 'what': 'offline_eval of rendered rooms in a .mat file, tables 1 to 3',
        'test images': options.images, 'goal': {
            'all images, of the network alone': GOAL_RATIO, 'images a second, GPU': GOAL_GPU},
        **models})
    measured = models['RN50, random numbers']
    missed = measured['images a second'] < GOAL_GPU if gpu else \
        measured['all images, of the network alone'] > GOAL_RATIO
    return int(missed)


def write_data(folder: Path, images: int) -> None:
    """Write .mat and split with so many test images, and as many for training or a few less."""
    from depthclip_ros.sim.nyu import make_samples, split, write_labeled_mat, write_splits
    count = next(n for n in itertools.count(2 * images - 20) if len(split(n)[1]) == images)
    samples = list(itertools.islice(
        itertools.cycle(make_samples(min(count, ROOMS))), count))
    write_labeled_mat(folder / 'nyu_depth_v2_labeled.mat', samples)
    write_splits(folder / 'splits.mat', count)


def run(folder: Path, model: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate in a process of its own while its memory is watched."""
    arguments = ['--data', str(folder), '--device', options.device, *model]
    for table in '123':
        arguments += ['--table', table]
    for name in ('precision',):
        if getattr(options, name) is not None:
            arguments += [f'--{name}', str(getattr(options, name))]
    with tempfile.TemporaryDirectory(dir=folder) as output:
        process = subprocess.Popen(
            [sys.executable, __file__, '--inside',
             json.dumps([*arguments, '--output', output])], cwd=ROOT, stdout=subprocess.PIPE,
            text=True, env={**os.environ, 'PYTHONPATH': str(ROOT),
                            'DEPTHCLIP_CACHE': str(folder / 'cache')})
        with peak_of(lambda: resident(process.pid)) as peak:
            text = process.communicate()[0]
        disk = sum(file.stat().st_size for file in Path(output).rglob('*') if file.is_file())
    if process.returncode:
        raise RuntimeError(f'the evaluation ended with {process.returncode}')
    return {**json.loads(text.splitlines()[-1]), 'peak memory of all processes [MiB]': peak[0],
            'results on disk [MiB]': disk / 2**20}


@contextlib.contextmanager
def peak_of(look: Callable[[], float]) -> Any:
    """Look every other second; gives a list whose only element is the largest value seen."""
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(2.0):  # a look halts the process for a moment
            peak[0] = max(peak[0], look())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def resident(pid: int) -> float:
    """MiB of a process and its children, what they share counted once."""
    total = 0.0
    pids = [pid]
    for each in pids:
        with contextlib.suppress(OSError):  # ended meanwhile
            pids += map(int, Path(f'/proc/{each}/task/{each}/children').read_text().split())
            rollup = Path(f'/proc/{each}/smaps_rollup').read_text(encoding='utf-8')
            total += next(int(line.split()[1]) for line in rollup.splitlines()
                          if line.startswith('Pss:'))
    return total / 1024


# In a process of its own -----------------------------------------------------------------------


def evaluate(arguments: list[str]) -> dict[str, Any]:
    """Run the evaluation and time its stages; then the network alone."""
    from offline_eval import cli
    from offline_eval.results import Summary
    from offline_eval.runner import LATEST, Evaluation
    with contextlib.redirect_stdout(sys.stderr):
        # Fills the cache of text features.
        cli.main([*arguments, '--limit', '2', '--no-report', '--no-mean-map'])
        seconds = time_methods(Evaluation)
        begin = time.perf_counter()
        if cli.main(arguments):
            raise RuntimeError('the evaluation failed')
        total = time.perf_counter() - begin
    output = Path(arguments[arguments.index('--output') + 1])
    summary = Summary.read(output / LATEST)
    images = summary.data.images
    alone, way = network_alone(arguments, summary)
    per_image = seconds['all images'] / images
    network = summary.timing.network_seconds / images
    return {
        'input': [summary.config['input_height'], summary.config['input_width']],
        'flip average': summary.config['flip_average'], 'device': arguments[3],
        'images a second': images / seconds['all images'],
        'seconds an image': per_image,
        'network alone, seconds an image': alone, 'network alone, best way': way,
        'all images, of the network alone': per_image / alone,
        'whole run [s]': total, 'whole run, of the network alone': total / images / alone,
        'stages [s]': seconds,
        'network during the run, seconds an image': network,
        'all images, of the network during the run': per_image / network}


def time_methods(kind: type) -> dict[str, float]:
    """Make methods note how long they took."""
    seconds: dict[str, float] = {}

    def timed(stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                seconds[stage] = time.perf_counter() - begin
        return wrapper

    for stage, name in STAGES.items():
        setattr(kind, name, timed(stage, getattr(kind, name)))
    return seconds


def network_alone(arguments: list[str], summary: Any) -> tuple[float, str]:
    """Seconds an image of the image encoder, in the better of two ways, with nothing beside it."""
    import numpy as np
    import torch

    from depthclip_ros.core import DepthConfig, DepthEstimator
    config = DepthConfig().replace(**summary.config)
    weights = arguments[arguments.index('--weights') + 1]
    device = arguments[3]
    estimator = DepthEstimator(config, weights, device)
    images = list(np.random.default_rng(0).integers(
        0, 256, (BATCH, config.input_height, config.input_width, 3), np.uint8))
    threads = torch.get_num_threads()

    def as_batch() -> None:
        estimator.maps(images)
        if estimator.device.type == 'cuda':
            torch.cuda.synchronize(estimator.device)

    ways = {f'batch of {BATCH}, all threads': median(timings(as_batch))}
    if estimator.device.type == 'cpu':
        # Made anew: the engine prepares itself for the number of threads.
        single = DepthEstimator(config, weights, device, num_threads=1)
        with ThreadPoolExecutor(threads) as pool:
            ways['an image to a thread'] = median(timings(
                lambda: list(pool.map(lambda image: single.maps([image]), images))))
        torch.set_num_threads(threads)
    best = min(ways, key=ways.__getitem__)
    return ways[best] / len(images), best


def timings(work: Callable[[], None]) -> list[float]:
    """Seconds of a few runs after a first one."""
    work()
    result = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        result.append(time.perf_counter() - begin)
    return result


if __name__ == '__main__':
    sys.exit(main())
