# SPDX-License-Identifier: Apache-2.0
"""Bags an hour against workers: `depthclip bags` plain and on Ray on this machine, as JSON.

Bags of rendered rooms, 640x480 images and depth, are converted by CLIP's RN50 with random
weights, whose speed is that of trained ones. Beside the whole command the start is measured, and
what handing out a task costs whoever hands it out.

    python benchmarks/fleet.py --output benchmarks/results/fleet.json --document docs/fleet.md

`--document` writes what was found, and what follows from it for more workers, into that file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import machine  # noqa: E402

from depthclip_ros.fleet import Cluster, share_out  # noqa: E402
from depthclip_ros.sim import SimCamera  # noqa: E402
from depthclip_ros.sim.bag import write_bag  # noqa: E402
from depthclip_ros.sim.scene import Scene  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

EMPTY_TASKS = 2000
STORAGE = 1000.0  # MB/s of a shared file system, an assumption
FLEET = 8, 64, 512  # workers, extrapolated
BEGIN, END = '<!-- by benchmarks/fleet.py -->', '<!-- end -->'


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--bags', type=int, default=8)
    parser.add_argument('--images', type=int, default=20, help='of each bag')
    parser.add_argument('--weights', default='untrained')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--output', type=Path, help='JSON file; default: standard output')
    parser.add_argument('--document', type=Path, help='whose section between the marks to write')
    given = parser.parse_args()
    result: dict[str, Any] = {'about': machine.describe()}
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix='fleet-') as name:
        folder = Path(name)
        for number in range(given.bags):
            write_bag(folder / 'bags' / f'b{number}', Scene.generate('office', number),
                      SimCamera(), frames=given.images, seed=number)
        read = sum(p.stat().st_size for p in (folder / 'bags').rglob('*.mcap'))
        rows: list[dict[str, Any]] = []
        for repeat in range(given.repeats):  # in turn, so that a slow minute hits all alike
            for workers, cpus in ((0, cores), (1, cores), (1, 1), (cores, 1)):
                output = folder / f'{repeat}-{workers}-{cpus}'
                rows.append(converted(folder / 'bags', output, given.weights, workers, cpus))
                written = sum(p.stat().st_size for p in output.rglob('*.mcap'))
        result |= {
            'bags': given.bags, 'images of each': given.images, 'weights': given.weights,
            'read [MB a bag]': read / given.bags / 1e6,
            'written [MB a bag]': written / given.bags / 1e6,
            'rows': [best(rows, workers, cpus, given.bags) for workers, cpus in dict.fromkeys(
                (row['workers'], row['threads']) for row in rows)],
            'handing out a task [ms]': handing_out()}
    machine.write(given.output, result)
    if given.document:
        text = given.document.read_text()
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        given.document.write_text(f'{before}{BEGIN}\n{document(result)}\n{END}{after}')


def converted(bags: Path, output: Path, weights: str, workers: int, cpus: int) -> dict[str, Any]:
    """Run the command; seconds until the first worker is ready, and from there to the end."""
    command = [sys.executable, '-m', 'depthclip_ros.cli.main', 'bags', str(bags), '-o',
               str(output), '--weights', weights, '--device', 'cpu']
    if workers:
        command += ['--ray', 'local', '--workers', str(workers), '--cpus', str(cpus)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               text=True, env=os.environ | {'PYTHONPATH': str(ROOT)})
    assert process.stderr is not None  # noqa: S101 - for mypy
    ready, end, pids, memory = [], begin, [], 0.0
    for line in process.stderr:
        end = time.perf_counter()
        if line.startswith('worker '):
            ready.append(end)
            pids.append(line.strip().rpartition(':')[2])
        memory = max([memory, *map(resident, pids)])
    if process.wait():
        raise SystemExit(f'{" ".join(command)} failed')
    return {'workers': workers, 'threads': cpus, 'start [s]': ready[0] - begin,
            'working [s]': end - ready[0], 'all [s]': time.perf_counter() - begin,
            'memory of a worker [MB]': memory}


def resident(pid: str) -> float:
    """Most memory that a process has had, MB; 0 if it is gone."""
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith('VmHWM'))


def best(rows: list[dict[str, Any]], workers: int, cpus: int, bags: int) -> dict[str, Any]:
    """The fastest of the repeats, and bags an hour once the workers are there."""
    row = min((r for r in rows if (r['workers'], r['threads']) == (workers, cpus)),
              key=lambda r: r['working [s]'])
    return {**row, 'bags an hour': 3600 * bags / row['working [s]']}


def nothing() -> Callable[[], None]:
    """Work of which there is nothing to do."""
    return lambda: None


def handing_out() -> float:
    """Milliseconds of whoever hands tasks out, for each."""
    outcomes = share_out(nothing, [(n, ()) for n in range(EMPTY_TASKS)], Cluster(workers=1), print)
    next(outcomes)
    begin = time.process_time()
    for _ in outcomes:
        pass
    return 1e3 * (time.process_time() - begin) / (EMPTY_TASKS - 1)


def document(result: dict[str, Any]) -> str:
    """The section of the document: what was measured, and what would follow from it."""
    rows, images = result['rows'], result['images of each']
    network = 'RN50 at 480 × 640' if result['weights'] == 'untrained' else result['weights']
    one = next(r for r in rows if r['workers'] == 1 and r['threads'] == 1)['bags an hour']
    read, written = result['read [MB a bag]'], result['written [MB a bag]']
    handed = result['handing out a task [ms]']
    busy = handed / 1e3
    storage, handing = STORAGE / (one / 3600 * (read + written)), 3600 / (one * busy)
    first = 'storage' if storage < handing else 'handing out'
    parts = [
        (f'{result["bags"]} bags of {images} images of 640 × 480, {network} in float32 on '
        f'{result["about"]["cores"]} cores of {result["about"]["machine"]}; the fastest of the '
        'repeats. *Start* is from the command to the first worker that has its model.'),
        table(('workers', 'threads of each', 'start [s]', 'bags an hour', 'images a second',
               'memory of a worker [MB]'), [
            (r['workers'] or 'without Ray', r['threads'], f'{r["start [s]"]:.1f}',
             f'{r["bags an hour"]:.0f}', f'{r["bags an hour"] / 3600 * images:.2f}',
             f'{r["memory of a worker [MB]"]:.0f}') for r in rows]),
        (f'Handing out a bag costs the process that does it {handed:.2f} ms; a bag reads '
         f'{read:.0f} and writes {written:.0f} MB.'),
        ('**Extrapolated, not measured**: as many times the rate of one worker of one thread, '
        'each on a core of its own. Workers share nothing but the storage and the process that '
        'hands tasks out.'),
        table(('workers', 'bags an hour', 'storage [MB/s]', 'of the handing-out process'), [
            (count, f'{count * one:.0f}', f'{count * one / 3600 * (read + written):.0f}',
             f'{count * one / 3600 * busy:.2%}') for count in FLEET]),
        (f'It stops scaling where the storage is full, with {STORAGE:.0f} MB/s at about '
        f'{storage:.0f} such workers, or where handing out fills a core, at about '
        f'{handing:.0f}: {first} comes first. A GPU answers faster, and so reaches it with '
        'fewer. Long bags at the end keep one worker busy while the others wait.')]
    return '\n\n'.join(
        part if part.startswith('|') else textwrap.fill(part, 120) for part in parts)


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """As Markdown."""
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in (
        header, ['---'] * len(header), *rows))


if __name__ == '__main__':
    main()
