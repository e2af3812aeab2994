# SPDX-License-Identifier: Apache-2.0
"""Rendered frames of 640 x 480 pixels a second: rooms of every kind, one and two processes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch

from benchmarks.timing import wall
from depthclip_ros.sim import KINDS, Scene, SimCamera, render, trajectory


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Medians over rooms; the processes' rates are added."""
    rooms = 5 if quick else 40
    rows = []
    for processes in (1, 2):
        with ProcessPoolExecutor(processes, mp_context=get_context('spawn')) as pool:
            seconds = list(pool.map(_frames, [rooms] * processes))
        rows.append({
            'processes of one thread': processes, 'rooms of each': rooms,
            'frame p50 [ms]': 1e3 * median(second for each in seconds for second in each),
            'frames/s': sum(1 / median(each) for each in seconds)})
    return rows


def _frames(rooms: int) -> list[float]:
    """Seconds of the second frame in each room; the first one fills caches."""
    torch.set_num_threads(1)
    return [_second_frame(seed) for seed in range(rooms)]


def _second_frame(seed: int) -> float:
    scene = Scene.generate(KINDS[seed % len(KINDS)], seed)
    path = trajectory(scene, 0)
    render(scene, SimCamera(), path.pose(0.0))
    return wall(partial(render, scene, SimCamera(), path.pose(1.0)))()
