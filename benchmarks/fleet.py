# SPDX-License-Identifier: Apache-2.0
"""Bags an hour against workers: `depthclip bags` plain and on Ray on this machine.

Bags of rendered rooms, 640 x 480 images and depth, are converted by CLIP's RN50 with random
weights, whose speed is that of trained ones. Beside the whole command the start is measured, and
what handing out a task costs whoever hands it out.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.timing import Contender, race
from depthclip_ros.fleet import Cluster, share_out
from depthclip_ros.sim import SimCamera
from depthclip_ros.sim.bag import write_bag
from depthclip_ros.sim.scene import Scene

EMPTY_TASKS = 2000


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """The whole command, with all numbers of workers in turns; then tasks with nothing to do."""
    bags, images = (2, 3) if quick else (8, 20)
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix='fleet-') as name:
        folder = Path(name)
        for number in range(bags):
            write_bag(folder / 'bags' / f'b{number}', Scene.generate('office', number),
                      SimCamera(), frames=images, seed=number)
        commands = [Command(folder, 'demo' if quick else 'untrained', workers, cpus)
                    for workers, cpus in dict.fromkeys(((0, cores), (1, cores), (1, 1),
                                                        (cores, 1)))]
        contenders = [Contender('', command.run, bags * images) for command in commands]
        rows = [{
            'workers': command.workers or 'without Ray', 'threads of each': command.cpus,
            'start [s]': median(command.starts), 'bags an hour': 3600 / images * row['images/s'],
            'images/s': row['images/s'], 'memory of a worker [MB]': command.memory,
        } for command, row in zip(
            commands, race(contenders, 1 if quick else 3, warm=False), strict=True)]
        read, written = (sum(path.stat().st_size for path in (folder / part).rglob('*.mcap'))
                         for part in ('bags', commands[0].output))
    return [*rows, {
        'handing out a task [ms]': handing_out(), 'read [MB a bag]': read / bags / 1e6,
        'written [MB a bag]': written / bags / 1e6}]


class Command:
    """The command with a number of workers.

    Attributes:
        starts: seconds of each run until the first worker was ready.
        memory: most MB that a worker ever had.
        output: name of the last output folder.

    """

    def __init__(self, folder: Path, weights: str, workers: int, cpus: int) -> None:
        """Take the folder of bags; no workers are without Ray."""
        self._folder, self._weights = folder, weights
        self.workers, self.cpus = workers, cpus
        self.starts: list[float] = []
        self.memory = 0.0
        self.output = ''
        self._number = itertools.count()

    def run(self) -> float:
        """Seconds from the first worker that is ready to the end."""
        self.output = f'{self.workers}-{self.cpus}-{next(self._number)}'
        command = [sys.executable, '-m', 'depthclip_ros.cli.main', 'bags',
                   str(self._folder / 'bags'), '-o', str(self._folder / self.output),
                   '--weights', self._weights, '--device', 'cpu']
        if self.workers:
            command += ['--ray', 'local', '--workers', str(self.workers), '--cpus',
                        str(self.cpus)]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   text=True)
        ready, end, pids = 0.0, begin, []
        for line in process.stderr or ():
            end = time.perf_counter()
            if line.startswith('worker '):
                ready = ready or end
                pids.append(line.strip().rpartition(':')[2])
            self.memory = max([self.memory, *map(_resident, pids)])
        if process.wait() or not ready:
            raise RuntimeError(f'{" ".join(command)} failed')
        self.starts.append(ready - begin)
        return end - ready


def _resident(pid: str) -> float:
    """Most memory that a process has had, MB; 0 if it is gone."""
    try:
        lines = Path(f'/proc/{pid}/status').read_text(encoding='utf-8').splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith('VmHWM'))


def nothing() -> Callable[[], None]:
    """Work of which there is nothing to do."""
    return lambda: None


def handing_out() -> float:
    """Milliseconds of whoever hands tasks out, for each."""
    outcomes = share_out(nothing, [(n, ()) for n in range(EMPTY_TASKS)], Cluster(workers=1),
                         lambda _: None)
    next(outcomes)
    begin = time.process_time()
    for _ in outcomes:
        pass
    return 1e3 * (time.process_time() - begin) / (EMPTY_TASKS - 1)
