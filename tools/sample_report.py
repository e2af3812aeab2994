# SPDX-License-Identifier: Apache-2.0
"""Make docs/sample_report: the evaluation of the demo model on rendered rooms that it never saw.

    python tools/sample_report.py [OUTPUT]

A few minutes on two cores. The numbers are of rendered rooms and of a small model that knows
nothing else: the report shows what yours will look like, and not how good the method is.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path

from depthclip_ros.sim.nyu import make_samples, write_labeled_mat, write_splits
from offline_eval import cli, report
from offline_eval.results import SUMMARY, Summary, write_text

ROOT = Path(__file__).resolve().parents[1]
COUNT, SEED = 80, 30000  # 40 of them are tested on, two in each of 20 rooms
COMMAND = 'python tools/sample_report.py'


def main() -> int:
    """Render, evaluate, and copy the report."""
    output = Path(sys.argv[1] if sys.argv[1:] else ROOT / 'docs/sample_report').resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the report names its data by the path that was given
        samples = make_samples(COUNT, SEED)
        write_labeled_mat('rendered_rooms.mat', samples)
        write_splits('splits.mat', COUNT)
        if code := cli.main(['--data', 'rendered_rooms.mat', '--weights', 'demo', '--table', '1',
                             '--table', '2', '--table', '3', '--no-report']):
            return code
        results = Path('results/latest').resolve()
        summary = Summary.read(results)
        # One image of each kind, so that the sample stays small, and nothing of this machine.
        versions = {k: v for k, v in summary.versions.items() if k != 'platform'}
        weights = dataclasses.replace(summary.weights, source='comes with the package')
        write_text(results / SUMMARY, dataclasses.replace(
            summary, best=summary.best[:1], median=summary.median[:1], worst=summary.worst[:1],
            versions=versions, weights=weights,
            command=f'{COMMAND} (renders the rooms and runs: {summary.command})').to_json())
        report.write(results, report.Source.read(results))
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(results / report.FOLDER, output)
    size = sum(path.stat().st_size for path in output.rglob('*') if path.is_file())
    print(f'{output}: {size / 1e6:.2f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
