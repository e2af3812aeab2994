# SPDX-License-Identifier: Apache-2.0
"""Rendered frames a second at 640x480, as JSON: rooms of every kind, several processes.

Use it on an idle machine:

    python benchmarks/render_rate.py --processes 2 --output benchmarks/results/render_rate.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from depthclip_ros.sim import KINDS, Scene, SimCamera, render, trajectory


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--threads', type=int, default=1, help='of each process')
    parser.add_argument('--rooms', type=int, default=40, help='for each process')
    parser.add_argument('--output', type=Path, help='JSON file; default: standard output')
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with ProcessPoolExecutor(options.processes) as pool:
        measured = list(pool.map(
            measure, [options.rooms] * options.processes, [options.threads] * options.processes))
    milliseconds = sorted(itertools.chain(*measured))
    result = {
        'what': '640x480 frames of depthclip_ros.sim, one room each',
        'machine': f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores',
        'load before': load,
        'python': platform.python_version(),
        'torch': torch.__version__,
        'processes': options.processes,
        'threads of each': options.threads,
        'milliseconds': {'p10': milliseconds[len(milliseconds) // 10],
                         'p50': median(milliseconds), 'max': milliseconds[-1]},
        'frames per second': sum(1000 / median(times) for times in measured),
    }
    text = json.dumps(result, indent=2)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + '\n', encoding='utf-8')
    print(text)


def measure(rooms: int, threads: int) -> list[float]:
    """Milliseconds of a frame in each of some rooms."""
    torch.set_num_threads(threads)
    return [milliseconds_of(seed) for seed in range(rooms)]


def milliseconds_of(seed: int) -> float:
    """Time of a room's second frame; the first one fills caches."""
    scene = Scene.generate(KINDS[seed % len(KINDS)], seed)
    path = trajectory(scene, 0)
    render(scene, SimCamera(), path.pose(0.0))
    start = time.perf_counter()
    render(scene, SimCamera(), path.pose(1.0))
    return 1000 * (time.perf_counter() - start)


if __name__ == '__main__':
    main()
