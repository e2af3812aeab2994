# SPDX-License-Identifier: Apache-2.0
"""The node beside a deliberately plain one (`plain_node.py`), on a real ROS graph.

For 1, 2, 4, 8 cameras: what the node costs an image beside the network; for one camera also how
old its depth gets when images come faster than it can go. Where the network is no limit (or with
--rates) for every number of cameras also the highest rate with less than 5 % drops, and the
latency at 30 Hz from the image's stamp to the arrival of its depth in another process. Both nodes
get the same images from the same process, in the same run.

    python benchmarks/node.py                       # RN50; random weights unless --weights
    python benchmarks/node.py --load 2              # the same beside two busy processes
    python benchmarks/node.py --network tiny        # the node and not the network is the limit
    python benchmarks/node.py --quick               # does it run?

Writes JSON, a table (Markdown) and a plot (PNG) side by side. The middleware is configured for
large images, as config/fastdds_large_images.xml has it, unless the environment says otherwise.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]


from benchmarks import machine, report  # noqa: E402
from benchmarks.node_graph import Session, Trial, session  # noqa: E402
from benchmarks.report import COARSE, OURS, PLAIN  # noqa: E402

COUNTING = [sys.executable, '-c', 'while True: pass']
NICED = ['nice', '-n', '10', *COUNTING]
RATE = 30.0  # Hz
MOST_DROPS = 0.05
PRECISION = 1.12  # between a rate that passes and one that does not
STEP = 1.8  # up or down, until both are known
TRIALS = 8
FEWEST_IMAGES = 40  # of one run
FEWEST_ROUNDS = 4  # of images of all cameras, to time the overhead of
HEIGHT, WIDTH = 480, 640
NODES = {OURS: 'depthclip_ros.node.depth_node', PLAIN: 'benchmarks.plain_node'}
GOALS = {'overhead [ms]': 2.0, 'overhead, part of the plain one': 0.25,
         'age p99 / network, beyond capacity': 2.2}


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


def main() -> None:
    """Measure everything and write it."""
    options = _options()
    _set_environment()
    result = {**machine.describe(), 'what': f'{WIDTH}x{HEIGHT} rgb8 images, network '
              f'{options.network} on {options.device}, precision {options.precision}'
              f'{_beside(options)}', 'results': []}
    with tempfile.TemporaryDirectory() as folder:
        parameters = _parameters(options, Path(folder))
        for count in options.cameras:
            for node in NODES:
                result['results'].append(_measure(
                    node, count, parameters, options, folder, result['results']))
                machine.write(options.output, result)  # what there is, should the rest fail
        if not options.quick:
            # The cloud that the other node has, so that nobody takes the dense one for the cause.
            coarse = {**parameters, 'dense_cloud': False}
            plain = next(row for row in result['results'] if row['node'] == PLAIN)
            with _session(PLAIN, 1, coarse, folder, options) as running:
                result[COARSE] = _overhead(
                    running, options, plain['overhead']['parts p50 [ms]']['receive'])
    result['summary'] = _summary(result)
    print(report.write(options.output, result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--cameras', type=int, nargs='+', default=[1, 2, 4, 8],
                        help='numbers of cameras; one is always measured')
    parser.add_argument('--rates', action=argparse.BooleanOptionalAction,
                        help='find the highest rates; default: with the tiny network')
    parser.add_argument('--seconds', type=float, default=4.0, help='of one run at one rate')
    parser.add_argument('--overload-seconds', type=float, default=30.0,
                        help='of the run beyond capacity')
    parser.add_argument('--frames', type=int, default=32,
                        help='to time the overhead of, for each number of cameras')
    parser.add_argument('--load', type=int, default=0, metavar='N',
                        help='processes that do nothing but count, beside all')
    parser.add_argument('--niced', action='store_true', help='these are niced by 10')
    parser.add_argument('--network', choices=('tiny', 'RN50'), default='RN50')
    parser.add_argument('--weights', default='untrained',
                        help='of RN50: as the parameter of that name')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--precision', default='auto',
                        help='of the node; the plain one has float32 on a CPU, float16 on a GPU')
    parser.add_argument('--quick', action='store_true', help='shortest run, to see that it works')
    parser.add_argument('--output', type=Path,
                        help='JSON file; default: in benchmarks/results, by what is measured')
    options = parser.parse_args()
    if options.quick:
        options.cameras, options.seconds, options.overload_seconds = [1], 1.0, 2.0
        options.frames, options.network = 5, 'tiny'
    options.cameras = sorted({1, *options.cameras})
    if options.rates is None:
        options.rates = options.network == 'tiny'
    if options.device == 'auto':
        import torch
        options.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    names = ['node', options.network, options.device]
    if options.precision != 'auto':
        names.append(options.precision)
    if options.load:
        names.append(f'load{options.load}{"-niced" if options.niced else ""}')
    options.output = options.output or (
        ROOT / 'benchmarks' / 'results' / f'{"-".join(names)}.json')
    return options


def _beside(options: argparse.Namespace) -> str:
    """What else runs."""
    if not options.load:
        return ''
    kind = 'niced' if options.niced else 'busy'
    return f', beside {options.load} {kind} process{"es" if options.load > 1 else ""}'


def _set_environment() -> None:
    """For this process and those that it starts."""
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['PYTHONPATH'] = os.pathsep.join(
        [str(ROOT), str(ROOT / 'test'), os.environ.get('PYTHONPATH', '')])
    for variable in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        os.environ.setdefault(variable, str(ROOT / 'config' / 'fastdds_large_images.xml'))


def _parameters(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Parameters that both nodes have."""
    if options.network == 'RN50':
        return {'backbone': 'RN50', 'weights': options.weights, 'device': options.device}
    from clip_standin import write_tiny_weights
    write_tiny_weights(folder / 'tiny.pt')
    return {'backbone': 'auto', 'weights': folder / 'tiny.pt', 'device': options.device,
            'input_height': 96, 'input_width': 128, 'temperature': 3.0}


@contextmanager
def _session(
    node: str, count: int, parameters: dict[str, Any], folder: str, options: argparse.Namespace,
) -> Iterator[Session]:
    """A node with so many cameras, and then the load beside it."""
    from clip_standin import synthetic_rgb
    names = [f'camera{i}' for i in range(count)]
    rgb, programs = synthetic_rgb(1, HEIGHT, WIDTH), [NICED if options.niced else COUNTING]
    with session(NODES[node], parameters, names, rgb, folder) as running, \
            other_work(options.load * programs):
        yield running


# One number of cameras ---------------------------------------------------------------------------


def _measure(
    node: str, count: int, parameters: dict[str, Any], options: argparse.Namespace, folder: str,
    before: list[dict[str, Any]],
) -> dict[str, Any]:
    """One node with a number of cameras; one camera comes first."""
    if node == OURS:
        parameters = {**parameters, 'precision': options.precision}
    found: dict[str, Any] = {'node': node, 'cameras': count}
    with _session(node, count, parameters, folder, options) as running:
        _say(f'{node}, {count} cameras: overhead')
        if count == 1:
            receive = running.receiver.take_milliseconds(
                running.cameras, f'{running.names[0]}/image', raw=node == OURS)
            running.ask()  # all that waited before is answered then
        else:  # of an image it is the same, and many cameras fill the plain node's queues
            receive = next(row for row in before if row['node'] == node)[
                'overhead']['parts p50 [ms]']['receive']
        found['overhead'] = _overhead(running, options, receive)
        if options.rates:
            _say(f'{node}, {count} cameras: {RATE:g} Hz')
            fixed = _trial(running, RATE, options)
            found['at 30 Hz'] = {
                'drops': fixed.drops, 'latency p50 [ms]': fixed.percentile(50),
                'latency p99 [ms]': fixed.percentile(99), 'images': fixed.sent,
                'sent [Hz]': fixed.rate, 'CPU per image [ms]': fixed.cpu}
            _say(f'{node}, {count} cameras: highest rate')
            found['highest rate [Hz]'], found['limited by'] = _highest_rate(running, options)
    if count == 1:
        _say(f'{node}: beyond capacity')
        # Started anew: the node's own times are then those of this run alone.
        with _session(node, count, parameters, folder, options) as running:
            found['beyond capacity'] = _overload(running, options)
    return found


def _trial(running: Session, rate: float, options: argparse.Namespace) -> Trial:
    """Run at a rate, for longer than usual where that gives too few images."""
    seconds = options.seconds
    if not options.quick:
        seconds = max(seconds, min(FEWEST_IMAGES / (rate * len(running.names)), 4.0 * seconds))
    # Queues fill in the lead: what they swallow is not taken for answered in time.
    lead = min(1.0, options.seconds) if rate >= RATE else 2.0 / rate
    return running.send(rate, seconds, lead)


def _highest_rate(running: Session, options: argparse.Namespace) -> tuple[float, str]:
    """Highest rate for each camera with few drops, and what set the limit.

    Geometric bisection. Where even the process of cameras cannot go faster, its rate is a lower
    bound.
    """
    passed, failed = 0.0, math.inf
    rate = 0.8 / (running.seconds_per_frame * len(running.names))
    for _ in range(2 if options.quick else TRIALS):
        trial = _trial(running, rate, options)
        if trial.drops < MOST_DROPS:
            passed = max(passed, trial.rate)
            if trial.rate < rate / PRECISION:
                return passed, 'cameras'
        else:
            failed = min(failed, trial.rate)
        if failed / max(passed, 1e-9) < PRECISION:
            break
        if not passed:
            rate = failed / STEP
        elif math.isinf(failed):
            rate = STEP * passed
        else:
            rate = math.sqrt(passed * failed)
    return passed, 'node' if math.isfinite(failed) else 'number of trials'


# Overhead, and beyond capacity -------------------------------------------------------------------


def _overhead(
    running: Session, options: argparse.Namespace, receive: float,
) -> dict[str, Any]:
    """Milliseconds of an image, all but the network; one round of images after another."""
    rounds = options.frames if options.quick else max(
        FEWEST_ROUNDS, math.ceil(options.frames / len(running.names)))
    before, cpu = running.own_times()['frames'], running.cpu_seconds()
    for _ in range(rounds):
        running.ask()
    cpu = running.cpu_seconds() - cpu
    times = running.own_times(int(before) + rounds)
    return {
        'overhead p50 [ms]': times['overhead'] + receive,
        'network p50 [ms]': times['network'],
        'CPU per image [ms]': 1e3 * cpu / (rounds * len(running.names)),
        'parts p50 [ms]': {'receive': receive, **{
            key: value for key, value in times.items()
            if key not in ('frames', 'network', 'overhead')}}}


def _overload(running: Session, options: argparse.Namespace) -> dict[str, Any]:
    """Age of the depth while images come at 30 Hz, or at twice what the node can."""
    rate = max(RATE, 2.0 / running.seconds_per_frame)
    trial = running.send(rate, options.overload_seconds, lead=0.0)
    ages, quarter = trial.latencies, max(1, len(trial.latencies) // 4)
    network = running.own_times()['network']
    thinned = slice(None, None, max(1, len(ages) // 300))
    return {
        'sent [Hz]': trial.rate, 'images': trial.sent, 'answered': trial.received,
        'network p50 [ms]': network,
        'age p50 [ms]': trial.percentile(50), 'age p99 [ms]': trial.percentile(99),
        'age p99 / network': trial.percentile(99) / network,
        'age, median of first quarter [ms]': median(ages[:quarter]) if ages else math.nan,
        'age, median of last quarter [ms]': median(ages[-quarter:]) if ages else math.nan,
        'series': {'seconds': trial.seconds[thinned], 'age [ms]': ages[thinned]}}


# Goals -------------------------------------------------------------------------------------------


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """Ratios of the two nodes, and the goals."""
    pairs, values = _pairs(result), {}
    for count, pair in pairs.items():
        mine, other = (row['overhead']['overhead p50 [ms]'] for row in pair)
        here = f', {count} cameras' if count > 1 else ''
        values[f'overhead [ms]{here}'] = mine, GOALS['overhead [ms]']
        values[f'overhead, part of the plain one{here}'] = (
            mine / other, GOALS['overhead, part of the plain one'])
    beyond = pairs[1][0]['beyond capacity']
    if beyond['network p50 [ms]'] > 1e3 / RATE:  # else the graph, not the network, is overrun
        name = 'age p99 / network, beyond capacity'
        values[name] = beyond['age p99 / network'], GOALS[name]
    return {
        'goals': {name: {'value': value, 'goal': goal, 'reached': value <= goal}
                  for name, (value, goal) in values.items()},
        'ours to plain': {f'{count} cameras': _ratios(*pair) for count, pair in pairs.items()
                          if 'at 30 Hz' in pair[0]}}


def _ratios(ours: dict[str, Any], plain: dict[str, Any]) -> dict[str, float]:
    highest = plain['highest rate [Hz]']
    return {
        'highest rate, times': ours['highest rate [Hz]'] / highest if highest else math.nan,
        'latency p99 at 30 Hz, part':
            ours['at 30 Hz']['latency p99 [ms]'] / plain['at 30 Hz']['latency p99 [ms]']}


def _pairs(result: dict[str, Any]) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """Results of both nodes by the number of cameras."""
    by_node = {node: {row['cameras']: row for row in result['results'] if row['node'] == node}
               for node in NODES}
    return {count: (by_node[OURS][count], by_node[PLAIN][count]) for count in by_node[OURS]}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
