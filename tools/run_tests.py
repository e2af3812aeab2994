#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Style, types, generated documents, tests: what `python3 run.py test` runs in .venv.

    python tools/run_tests.py [--all | --gpu | --kilted] [PYTEST ARGS]

Everything runs, and any failure counts. A test that fails is run once more by itself at the end;
if it passes then, it is named in the last lines, `flaky: NAME`, and the run is green. --all adds
the tests for a night, and coverage; --kilted runs what hangs on the ROS distribution, and no more.
--gpu runs the tests that need a GPU, then its benchmark, and no more; without one it ends with 77.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = {
    'style': ['-m', 'ruff', 'check', '.'],
    'types': ['-m', 'mypy'],
    'generated documents': ['tools/generate.py', '--check'],
    'prose': ['tools/prose.py'],
}
# Test files run beside each other. A test that takes ten minutes hangs, maybe in C, where no
# exception reaches it: its process shows the stacks of all threads and ends, and it has failed.
PYTEST = ['-m', 'pytest', '-n', '2', '--dist', 'loadfile', '--no-loadscope-reorder',
          '--max-worker-restart', '1', '-o', 'faulthandler_timeout=600',
          '-o', 'faulthandler_exit_on_timeout=true']
ALL = ['-m', '', '--cov=depthclip_ros', '--cov=offline_eval']
# Where another ROS is likely to show, without what takes long and tells little more.
KILTED = [*(f'test/test_{name}.py' for name in (
    'bag_player', 'node_anchors', 'node_cameras', 'node_exit', 'node_health', 'node_images',
    'node_subscriptions', 'node_lifecycle', 'node_parameters', 'node_start')),
    '-k', ('not (begins_when or clock_follows or corruption or demo_weights or diagnostics_go_on '
           'or left_behind or lost_device or second_signal or stuck or topics_and_names '
           'or unwritable or untrained or what_others_write)')]
GPU = ['benchmarks/run.py', 'gpu', '--out', 'benchmarks/results']
NOT_RUN = 77  # exit code, as other test programs' for what was skipped
SOME_FAILED = 1  # pytest's exit code; others are for what no second run mends
# More failures than this are no accident, and are not tried again.
MOST_AGAIN = 10


def main(arguments: list[str]) -> int:
    """Run all; returns the exit code."""
    if '--all' in arguments:
        os.environ.setdefault('HYPOTHESIS_PROFILE', 'nightly')  # more examples, and new ones
    for_gpu = '--gpu' in arguments
    if for_gpu and not has_gpu():
        print('Nothing was run: PyTorch sees no GPU on this machine.')
        return NOT_RUN
    is_short = for_gpu or '--kilted' in arguments
    failed = [name for name, command in STEPS.items() if not is_short and run(command) != 0]
    pytest_arguments = [word for word in arguments if word not in ('--all', '--gpu', '--kilted')]
    if for_gpu:
        pytest_arguments = ['-m', 'gpu', *pytest_arguments]
    broken, flaky = run_twice(
        (ALL if '--all' in arguments else [])
        + (pytest_arguments or KILTED if is_short else pytest_arguments))
    if for_gpu and run(GPU) != 0:
        failed.append('benchmark')
    print()  # pytest may have ended amid a line
    for name in [*failed, *broken]:
        print(f'failed: {name}')
    for name in flaky:
        print(f'flaky: {name}')
    return 1 if failed or broken else 0


def has_gpu() -> bool:
    """Whether torch can use a GPU."""
    import torch
    return torch.cuda.is_available()


def run_twice(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Run the tests, and the few that failed once more by themselves.

    Returns:
        Names of the tests that failed, and of those that then passed.

    """
    cache = ROOT / '.pytest_cache' / 'run_tests'  # of this run alone: no names of an earlier one
    shutil.rmtree(cache, ignore_errors=True)
    command = [*PYTEST, '-o', f'cache_dir={cache}', *arguments]
    code = run(command)
    if code == 0:
        return [], []
    first = last_failed(cache)
    if code != SOME_FAILED or not 0 < len(first) <= MOST_AGAIN:
        return first or [f'pytest (exit code {code})'], []
    print('\nOnce more, by themselves:', *first, sep='\n  ')
    if run([*command, '-n', '0', '--dist', 'no', '--last-failed']) not in (0, SOME_FAILED):
        return first, []
    second = last_failed(cache)
    return second, [name for name in first if name not in second]


def last_failed(cache: Path) -> list[str]:
    """Names of the tests that failed, as pytest keeps them."""
    path = cache / 'v/cache/lastfailed'
    return sorted(json.loads(path.read_text(encoding='utf-8'))) if path.exists() else []


def run(command: list[str]) -> int:
    """Run a Python command that prints; returns its exit code."""
    print('\n$ python', *command, flush=True)
    # Where CI is set, pytest prints the whole of what differs, however long it is.
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('CI', 'BUILD_NUMBER')}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment,
                          check=False).returncode


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
