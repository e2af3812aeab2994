# SPDX-License-Identifier: Apache-2.0
"""Measure, and write what came out: a record (JSON) and its table (Markdown) for each benchmark.

    python benchmarks/run.py estimator node
    python benchmarks/run.py readouts --quick      # smallest sizes: does it run?

Each benchmark is a module with a function `measure(*, quick)`, which gives rows, beside this file.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [str(ROOT), str(ROOT / 'test')]
sys.path[:0] = FOLDERS

from benchmarks import machine, report  # noqa: E402

BENCHMARKS = {
    'estimator': "RGB to depth: precisions and batches, beside the official code's way",
    'node': 'the node: overhead, age of depth, several cameras',
    'gpu': 'a GPU: batches, what crosses its bus, eight cameras at 30 Hz',
    'startup': "from the start of the node's process to its first depth; memory",
    'readouts': 'features and read-outs on rendered rooms: error and time',
    'recordings': 'the demo model on recordings of real cameras: error and coverage',
}


def main() -> None:
    """Run the benchmarks that are named, each in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0],
        epilog='\n'.join(f'{name:12} {what}' for name, what in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='+', metavar='NAME', choices=BENCHMARKS)
    parser.add_argument('--quick', action='store_true', help='smallest sizes: does it run?')
    parser.add_argument('--out', type=Path, default=Path('build/benchmarks'), metavar='FOLDER',
                        help='for NAME.json and NAME.md; default: %(default)s')
    options = parser.parse_args()
    if len(options.names) > 1:
        quick = ['--quick'] if options.quick else []
        for name in options.names:
            subprocess.run([sys.executable, __file__, name, *quick, '--out', options.out],
                           check=True)
        return
    name, = options.names
    _set_environment()
    about = machine.describe()
    rows = importlib.import_module(f'benchmarks.{name}').measure(quick=options.quick)
    measured = report.record(f'{name}: {BENCHMARKS[name]}', about, rows)
    report.write(options.out / f'{name}.json', measured)
    print(report.markdown(measured))


def _set_environment() -> None:
    """For this process and those that it starts."""
    from depthclip_ros.resources import large_images_profile
    os.environ['PYTHONPATH'] = os.pathsep.join([*FOLDERS, os.environ.get('PYTHONPATH', '')])
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.update(large_images_profile(os.environ))


if __name__ == '__main__':
    main()
