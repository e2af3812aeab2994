# SPDX-License-Identifier: Apache-2.0
"""The estimator on a machine that does other work too: milliseconds from RGB to depth.

OpenMP's threads wait for the next piece of work by spinning, at first; where other processes want
the cores, that time is theirs. Each way to wait has a process of its own, since it is chosen
before torch is imported. The other work are processes that do nothing but count.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.timing import Contender, other_work, race, ratio
from depthclip_ros.executables import WAITING

DEFAULT = "OpenMP's default"
# Environment of the process, and threads of torch (0: its choice).
WAYS: dict[str, tuple[dict[str, str], int]] = {
    DEFAULT: ({}, 0),
    'as the executables': (WAITING, 0),
    'OMP_WAIT_POLICY=passive': ({'OMP_WAIT_POLICY': 'passive'}, 0),
    'one thread': ({}, 1),
}
LOADS = {  # processes, and niced ones
    'idle': (0, 0), 'one process': (1, 0), 'two processes': (2, 0), 'two niced processes': (0, 2)}


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """All ways in turns, under each load."""
    rows = []
    with ExitStack() as stack:
        ways = {name: stack.enter_context(server(*way, quick=quick))
                for name, way in WAYS.items()}
        for load, (processes, niced) in LOADS.items():
            contenders = [Contender(name, run) for name, run in ways.items()]
            with other_work(processes, niced):
                found = race(contenders, 2 if quick else 30)
            rows += [{'load': load, **row, 'times faster than the default': ratio(
                contenders[0], contender)}
                for contender, row in zip(contenders, found, strict=True)]
    return rows


@contextmanager
def server(waiting: dict[str, str], threads: int, *, quick: bool) -> Iterator[
        Callable[[], float]]:
    """An estimator in a process of its own; gives what runs an image there, and its seconds.

    Args:
        waiting: environment of the process, in place of what this one says to OpenMP.
        threads: of torch; 0 for its choice.
        quick: a tiny network.

    """
    pipe, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context('spawn').Process(
        target=_serve, args=(theirs, threads, quick), daemon=True)
    before = dict(os.environ)
    for name in before:
        if name.startswith(('OMP_', 'GOMP_', 'KMP_')):
            del os.environ[name]
    os.environ.update(waiting)
    process.start()
    os.environ.clear()
    os.environ.update(before)
    theirs.close()

    def run() -> float:
        pipe.send(None)
        return float(pipe.recv())

    try:
        pipe.recv()  # it is ready
        yield run
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection, threads: int, quick: bool) -> None:
    """Be one: answer whatever comes with the seconds of an image."""
    from clip_standin import state_dict, synthetic_rgb, tiny_state_dict

    from benchmarks.timing import wall
    from depthclip_ros.core import DepthConfig, DepthEstimator
    from depthclip_ros.node.process import keep_freed_memory
    keep_freed_memory()  # as the node has it
    height, width = (96, 128) if quick else (480, 640)
    with tempfile.TemporaryDirectory() as folder:
        estimator = DepthEstimator(
            DepthConfig(backbone='auto', input_height=height, input_width=width),
            tiny_state_dict() if quick else state_dict(0), 'cpu', cache_dir=folder,
            num_threads=threads)
    clock = wall(partial(estimator.predict, synthetic_rgb(0, height, width)))
    pipe.send('ready')
    while True:
        pipe.recv()
        pipe.send(clock())
