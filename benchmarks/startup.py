# SPDX-License-Identifier: Apache-2.0
"""From the start of the node's process to the first depth, and the memory that it takes.

A camera already publishes 640 x 480 images at 30 Hz when the node is started, and somebody
already waits for depth. The weights are random numbers in a file of the size of OpenAI's RN50.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ros_harness as ros
import torch
from clip_standin import state_dict, synthetic_rgb

from benchmarks.graph import Cameras, Receiver, cpu_seconds, wait_until

RATE, FOREVER = 30.0, 1e6  # Hz, seconds
CAMERA = 'camera0'
# Seconds between two of Fast DDS's announcements, at one of which a process that came since is
# often found: without a wait every start would be just after the one by which we found the camera.
ANNOUNCED = 3.0


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Starts with text features in the cache and without, in turns; medians."""
    repeats = 1 if quick else 7
    without, cached = [], []
    with tempfile.TemporaryDirectory() as name, ros.own_domain() as domain:
        folder = Path(name)
        weights = write_weights(folder / 'RN50.pt')
        camera = Cameras(domain, [CAMERA], synthetic_rgb(1))
        camera.begin(RATE, FOREVER)
        try:
            for number in range(repeats):
                wait, cache = ANNOUNCED * number / repeats, folder / f'cache{number}'
                without.append(start(weights, domain, cache, wait))
                cached.append(start(weights, domain, cache, wait))
        finally:
            camera.close()
    return [{'text features': 'not cached', **_medians(without)},
            {'text features': 'cached', **_medians(cached)}]


def start(weights: Path, domain: int, cache: Path, wait: float) -> dict[str, float]:
    """Start the node after so many seconds; give those to its steps, and its memory then.

    `files` are libraries and the mapped weights, which other processes share or the system can
    take back.
    """
    arguments = ['--ros-args', '-p', f'weights:={weights}', '-p', f'cameras:=[{CAMERA}]']
    receiver = Receiver(domain, [CAMERA])
    try:
        wait_until(lambda: receiver.count_publishers(f'{CAMERA}/image'))
        time.sleep(wait)
        begin = time.time()
        node = ros.NodeProcess(arguments, domain=domain, cache=cache)
        try:
            if not wait_until(lambda: receiver.arrivals):
                raise RuntimeError(f'no depth came:\n{node.output}')
            pid = node.process.pid
            resources = {'processor time [s]': cpu_seconds(pid), **_memory(pid)}
            configured = _logged(node.wait_for(r'\]: Configured: '))
            active = _logged(node.wait_for(r'\]: Active: '))
        finally:
            node.stop()
    finally:
        receiver.close()
    return {'configured [s]': configured - begin, 'active [s]': active - begin,
            'first depth [s]': min(receiver.arrivals.values()) / 1e9 - begin, **resources}


def _logged(line: str) -> float:
    """Time of a line of the node's log."""
    match = re.search(r'\[(\d+\.\d+)\]', line)
    return float(match.group(1)) if match else float('nan')


def _memory(pid: int) -> dict[str, float]:
    lines = Path(f'/proc/{pid}/status').read_text(encoding='utf-8').splitlines()
    status = dict(line.split(':', 1) for line in lines)
    return {f'{name} [MiB]': int(status[key].split()[0]) / 1024 for name, key in
            (('resident', 'VmRSS'), ('of it files', 'RssFile'), ('peak', 'VmHWM'))}


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {'starts': len(runs), **{key: median(run[key] for run in runs) for key in runs[0]}}


def write_weights(path: Path) -> Path:
    """Write random numbers of RN50's shape, in half precision as OpenAI's are; gives the path."""
    numbers = {name: tensor.half() if tensor.is_floating_point() else tensor
               for name, tensor in state_dict().items()}
    torch.save(numbers, path)
    return path
