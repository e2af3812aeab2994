# SPDX-License-Identifier: Apache-2.0
"""Rendered frames a second at 640x480, as JSON: median over rooms of every kind.

Use it on an idle machine:

    python benchmarks/render_rate.py --threads 2 --output benchmarks/results/render_rate.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from depthclip_ros.sim import KINDS, Scene, SimCamera, render, trajectory


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rooms', type=int, default=40)
    parser.add_argument('--output', type=Path, help='JSON file; default: standard output')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    milliseconds = sorted(milliseconds_of(seed) for seed in range(options.rooms))
    result = {
        'what': '640x480 frames of depthclip_ros.sim, one room each',
        'machine': f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores',
        'load': os.getloadavg()[0],
        'python': platform.python_version(),
        'torch': torch.__version__,
        'threads': options.threads,
        'milliseconds': {'p10': milliseconds[options.rooms // 10],
                         'p50': median(milliseconds), 'max': milliseconds[-1]},
        'frames per second': 1000 / median(milliseconds),
    }
    text = json.dumps(result, indent=2)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + '\n', encoding='utf-8')
    print(text)


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
