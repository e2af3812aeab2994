# SPDX-License-Identifier: Apache-2.0
"""The estimator on a machine that does other work too: milliseconds from RGB to depth.

OpenMP's threads wait for the next piece of work by spinning, at first; where other processes want
the cores, that time is theirs. Each way to wait is a process of its own, since it is chosen before
torch is imported; they run in turns, so that a machine which gets slower or faster in between does
so for all. The loads are processes that do nothing but count: niced ones all the time, and one
that is busy for 10 ms, 30 times a second, as a camera's driver is.

    python benchmarks/busy.py          # writes benchmarks/results/busy.json
    python benchmarks/busy.py --quick  # a tiny network, two rounds: does it run?
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

from benchmarks import machine, report  # noqa: E402
from depthclip_ros.executables import WAITING  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results'
DEFAULT = "OpenMP's default"
# Environment of the process, and threads of torch (0: its choice).
WAYS: dict[str, tuple[Mapping[str, str], int]] = {
    DEFAULT: ({}, 0),
    'OMP_WAIT_POLICY=passive': ({'OMP_WAIT_POLICY': 'passive'}, 0),
    'GOMP_SPINCOUNT=1000': ({'GOMP_SPINCOUNT': '1000'}, 0),
    'GOMP_SPINCOUNT=10000': ({'GOMP_SPINCOUNT': '10000'}, 0),
    'GOMP_SPINCOUNT=30000': ({'GOMP_SPINCOUNT': '30000'}, 0),
    'one thread': ({}, 1),
}
COUNTING = [sys.executable, '-c', 'while True: pass']
NICED = ['nice', '-n', '10', *COUNTING]
AT_30_HZ = [sys.executable, '-c', """
import time
due = time.monotonic()
while True:
    end = time.process_time() + 0.01
    while time.process_time() < end:
        pass
    due = max(due + 1 / 30, time.monotonic())
    time.sleep(max(0.0, due - time.monotonic()))
"""]
LOADS = {
    'idle': [],
    'one niced process': [NICED],
    'two niced processes': [NICED] * 2,
    'two niced processes and one at 30 Hz': [NICED] * 2 + [AT_30_HZ],
    'one process': [COUNTING],
    'two processes': [COUNTING] * 2,
}
# In each of its turns a way runs so often; the first finds what another has left in the caches.
IMAGES_A_TURN = 4


def main() -> int:
    """Measure everything and write JSON, table and plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--precision', default='float32')
    parser.add_argument('--quick', action='store_true', help='a tiny network: does it run?')
    parser.add_argument('--output', type=Path, default=RESULTS / 'busy.json')
    parser.add_argument('--serve', type=int, metavar='THREADS', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options)
        return 0
    about = machine.describe()
    with ExitStack() as stack:
        ways = {name: Server(options, *how) for name, how in WAYS.items()}
        for way in ways.values():
            stack.callback(way.end)
            way.wait_until_ready()
        rows = [row for load, programs in LOADS.items()
                for row in measure(ways, load, programs, 2 if options.quick else options.rounds)]
    sys.stdout.write(report.write(options.output, {
        'what': 'RGB to depth beside other work, by how the threads of OpenMP wait; '
                f'RN50, {options.precision}, random weights',
        **about, 'rounds': options.rounds, 'images a turn': IMAGES_A_TURN,
        "the executables' way": WAITING, 'ways to wait': rows}))
    return 0


class Server:
    """An estimator in a process of its own."""

    def __init__(self, options: argparse.Namespace, waiting: Mapping[str, str],
                 threads: int) -> None:
        plain = {name: value for name, value in os.environ.items()
                 if not name.startswith(('OMP_', 'GOMP_', 'KMP_'))}
        self._process = subprocess.Popen(
            [sys.executable, __file__, '--serve', str(threads), '--precision', options.precision,
             *(['--quick'] if options.quick else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**plain, **waiting})

    def wait_until_ready(self) -> None:
        """It says so."""
        self._answer()

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def turn(self, count: int) -> list[tuple[float, float]]:
        """Seconds by the clock, and of all processors together, of so many images."""
        self._process.stdin.write(f'{count}\n')  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        values = list(map(float, self._answer().split()))
        return list(zip(values[::2], values[1::2], strict=True))

    def _answer(self) -> str:
        line: str = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f'the estimator ended with {self._process.wait()}')
        return line


def serve(options: argparse.Namespace) -> None:
    """Be one: answer a number of images with the times that they took."""
    import tempfile

    from clip_standin import state_dict, synthetic_rgb, tiny_state_dict

    from depthclip_ros.core import DepthConfig, DepthEstimator
    from depthclip_ros.node.process import keep_freed_memory
    keep_freed_memory()  # as the node has it
    height, width = (96, 128) if options.quick else (480, 640)
    with tempfile.TemporaryDirectory() as folder:
        estimator = DepthEstimator(
            DepthConfig(backbone='auto', input_height=height, input_width=width,
                        precision=options.precision),
            tiny_state_dict() if options.quick else state_dict(0), 'cpu', cache_dir=folder,
            num_threads=options.serve)
    image = synthetic_rgb(0, height, width)
    print('ready', flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            begin, used = time.perf_counter(), time.process_time()
            estimator.predict(image)
            times += [time.perf_counter() - begin, time.process_time() - used]
        print(*times, flush=True)


@contextmanager
def other_work(programs: list[list[str]]) -> Iterator[None]:
    """Let them run meanwhile."""
    running = [subprocess.Popen(program) for program in programs]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(
    ways: Mapping[str, Server], load: str, programs: list[list[str]], rounds: int,
) -> list[dict[str, Any]]:
    """All ways in turns under a load."""
    times: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in ways}
    with other_work(programs):
        for i in range(1 + rounds):
            for name, way in ways.items():
                turn = way.turn(IMAGES_A_TURN)[1:]
                if i:
                    times[name].append(turn)
    # Of each round, in which all ran next to each other; the median of these ratios.
    typical = {name: [median(wall for wall, _ in turn) for turn in turns]
               for name, turns in times.items()}
    return [{
        'load': load, 'way': name,
        'p50 [ms]': 1e3 * median(wall for turn in turns for wall, _ in turn),
        'p90 [ms]': 1e3 * sorted(wall for turn in turns for wall, _ in turn)[
            int(0.9 * len(turns) * len(turns[0]))],
        'processor time p50 [ms]': 1e3 * median(used for turn in turns for _, used in turn),
        'times faster than the default': median(
            default / own for default, own in zip(typical[DEFAULT], typical[name], strict=True)),
    } for name, turns in times.items()]


if __name__ == '__main__':
    sys.exit(main())
