# SPDX-License-Identifier: Apache-2.0
"""The node on a real ROS graph.

What the node costs an image beside the network, with 1 to 8 cameras; how many images it answers,
and how old its depth gets, at 30 Hz and when images come faster than it can go. With RN50, alone
and beside two busy processes, and with a tiny network, where the node and not the network is the
limit. Camera, node and receiver are three processes. RN50 has random weights; its time is the
same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from clip_standin import synthetic_rgb, write_tiny_weights

from benchmarks.estimator import precisions
from benchmarks.graph import Session, cpu_seconds, session
from benchmarks.timing import other_work
from depthclip_ros.core import engine

RATE = 30.0  # Hz
HEIGHT, WIDTH = 480, 640
TINY = 'tiny'


class Setting(NamedTuple):
    """What the node meets."""

    network: str
    cameras: int
    load: int = 0  # busy processes beside them


SETTINGS = (*(Setting('RN50', cameras) for cameras in (1, 2, 4, 8)), Setting('RN50', 1, load=2),
            *(Setting(TINY, cameras) for cameras in (1, 2, 4, 8)))


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Setting by setting."""
    overheads, trials = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_weights(Path(folder) / 'tiny.pt')
        for setting in (Setting(TINY, 1), Setting(TINY, 2)) if quick else SETTINGS:
            for precision in formats(setting):
                bench = Bench(setting, precision, folder, quick=quick)
                overheads.append(bench.overhead())
                if setting.network == TINY or setting.cameras == 1:
                    trials += bench.trials()
    return overheads + trials


def formats(setting: Setting) -> list[str]:
    """Precisions of this machine; with the tiny network the exact one alone."""
    every = precisions(engine.resolve_device('auto'))
    return every[:1] if setting.network == TINY else every


class Bench:
    """One node in one setting."""

    def __init__(self, setting: Setting, precision: str, folder: str, *, quick: bool) -> None:
        """Take the folder, which has the tiny weights and gets the text features."""
        self._setting, self._precision, self._folder = setting, precision, folder
        self._quick = quick
        self._columns = {'network': setting.network, 'cameras': setting.cameras,
                         'busy processes': setting.load, 'node': f'node, {precision}'}

    def overhead(self) -> dict[str, Any]:
        """Milliseconds of an image in the node, all but the network; one round after another."""
        rounds = 5 if self._quick else max(4, 32 // self._setting.cameras)
        with self._session() as running:
            pid = running.process.process.pid
            before, cpu = running.own_times()['frames'], cpu_seconds(pid)
            for _ in range(rounds):
                running.ask()
            cpu = cpu_seconds(pid) - cpu
            times = running.own_times(int(before) + rounds)
        return {**self._columns, 'overhead p50 [ms]': times['overhead'],
                'network p50 [ms]': times['network'],
                'CPU per image [ms]': 1e3 * cpu / (rounds * self._setting.cameras)}

    def trials(self) -> list[dict[str, Any]]:
        """Answers and their age at 30 Hz, and, of one camera, at twice what the node can."""
        # Started anew: the node's own times are then those of this run alone.
        with self._session() as running:
            rates = [RATE]
            if self._setting.cameras == 1:
                seconds = median(running.ask() for _ in range(3))
                if seconds < 2.0 / RATE:
                    rates.append(2.0 / seconds)
            return [self._trial(running, rate) for rate in rates]

    def _trial(self, running: Session, rate: float) -> dict[str, Any]:
        seconds = 2.0 if self._quick else 30.0 if self._setting.cameras == 1 else 8.0
        trial = running.send(rate, seconds)
        network = running.own_times()['network']
        quarter = max(1, len(trial.ages) // 4)
        return {
            **self._columns, 'sent, each [Hz]': trial.rate, 'images': trial.images,
            'answered': trial.answered, 'answered [images/s]': trial.answers,
            'network p50 [ms]': network,
            'age p50 [ms]': trial.age(50), 'age p99 [ms]': trial.age(99),
            'age p99 / network': trial.age(99) / network,
            'age, first quarter [ms]': median(trial.ages[:quarter]) if trial.ages else None,
            'age, last quarter [ms]': median(trial.ages[-quarter:]) if trial.ages else None,
            'CPU per image [ms]': trial.cpu}

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """The node with its cameras, and then the load beside it."""
        parameters: dict[str, Any] = {'device': 'auto', 'precision': self._precision}
        if self._setting.network == TINY:
            parameters |= {'backbone': 'auto', 'weights': f'{self._folder}/tiny.pt',
                           'input_height': 96, 'input_width': 128, 'temperature': 3.0}
        else:
            parameters |= {'backbone': self._setting.network, 'weights': 'untrained'}
        rgb = synthetic_rgb(1, HEIGHT, WIDTH)
        with session(parameters, self._setting.cameras, rgb, self._folder) as running, \
                other_work(self._setting.load):
            yield running
