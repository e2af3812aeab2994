# SPDX-License-Identifier: Apache-2.0
"""Command line of the offline evaluation: `python -m offline_eval --data PATH`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from depthclip_ros import resources
from depthclip_ros.core.config import DepthConfig
from depthclip_ros.core.errors import ConfigError, DepthClipError
from depthclip_ros.core.weights import DEMO
from depthclip_ros.executables import missing_package
from depthclip_ros.node.config import NodeConfig, read_config, with_demo_settings

PROGRAM = 'offline_eval'
TABLES = ('1', '2', '3')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ['extract']:
            return _extract(given[1:])
        return _evaluate(given)
    except KeyboardInterrupt:
        print(f'{PROGRAM}: interrupted; --resume continues.', file=sys.stderr)
        return 130
    except ImportError as error:
        reason = missing_package(error)
        if not reason:
            raise
        print(f'{PROGRAM}: {reason}', file=sys.stderr)
        return 1
    except DepthClipError as error:
        print(f'{PROGRAM}: {error}', file=sys.stderr)
        return 1


def _evaluate(given: list[str]) -> int:
    options = _parser().parse_args(given)
    config, node = _settings(options)
    from .datasets import Where
    from .runner import Evaluation, Options
    _print(Evaluation(Options(
        where=Where(options.data, options.list, options.splits, options.ground_truth,
                    options.inpainted),
        config=config, node=node,
        own_input=options.own_input or (options.config is None and node.weights == DEMO),
        protocol=options.protocol or '', average=options.average,
        tables=tuple(options.table or ('1',)), output=options.output, resume=options.resume,
        batch_size=options.batch_size, workers=options.workers, limit=options.limit,
        mean_map=not options.no_mean_map, report=not options.no_report,
        command=shlex.join([PROGRAM, *given]))).run())
    return 0


def _extract(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f'{PROGRAM} extract',
        description='Write the official folders (JPEG images, depth in millimetres) from the .mat '
        'file, as the official script does.')
    parser.add_argument('mat', type=Path, help='nyu_depth_v2_labeled.mat')
    parser.add_argument('folder', type=Path, help='where official_splits/ is made')
    parser.add_argument('--splits', type=Path, metavar='FILE',
                        help='splits.mat (default: the built-in official split)')
    options = parser.parse_args(given)
    from .extract import extract
    extract(options.mat, options.folder, options.splits)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Evaluate DepthCLIP on NYU Depth v2 or KITTI: the metrics of the paper, '
        'beside\nhonest baselines.',
        epilog=f"'{PROGRAM} extract MAT FOLDER' writes the official folders from the .mat file.")
    data = parser.add_argument_group('data')
    data.add_argument('--data', type=Path, required=True, metavar='PATH',
                      help="nyu_depth_v2_labeled.mat, or a folder: official_splits, Kaggle's "
                      'nyu2_test, KITTI raw data')
    data.add_argument('--list', type=Path, metavar='FILE',
                      help='list of the pairs (default: the one beside, else all)')
    data.add_argument('--splits', type=Path, metavar='FILE',
                      help='splits.mat (default: the built-in official split)')
    data.add_argument('--ground-truth', type=Path, metavar='FOLDER',
                      help='KITTI: folder of the annotated depth')
    data.add_argument('--inpainted', action='store_true',
                      help='score on the in-painted depth of the .mat (default: raw)')
    data.add_argument('--limit', type=_natural, default=0, metavar='N',
                      help='only N images, evenly from all')
    how = parser.add_argument_group('how it is measured')
    how.add_argument('--protocol', choices=('depthclip', 'bts', 'kitti'),
                     help='crops (default: depthclip, the official code; KITTI: kitti)')
    how.add_argument('--average', choices=('image', 'pixel'), default='image',
                     help='mean over images of their metrics (default), or over all pixels')
    how.add_argument('--table', action='append', choices=TABLES,
                     help="the paper's table to make; may be repeated (default: 1)")
    how.add_argument('--no-mean-map', action='store_true',
                     help='leave out the baseline that reads the training split')
    model = parser.add_argument_group('model')
    model.add_argument('--config', metavar='YAML',
                       help="ROS parameter file (default: the paper's, nyu_paper.yaml)")
    model.add_argument('--own-input', action='store_true',
                       help="resize the crop to the configuration's own input (default: the "
                       'network sees what the protocol crops, pixel by pixel)')
    model.add_argument('--weights', default='', metavar='W',
                       help="official name, file, 'demo', or 'untrained'")
    model.add_argument('--device', default='', help='auto, cpu, cuda, or cuda:N')
    model.add_argument('--precision', choices=('float32', 'float16', 'bfloat16'),
                       help="network's number format (default: the file's; auto means float32)")
    run = parser.add_argument_group('run')
    run.add_argument('--output', type=Path, default=Path('results'), metavar='FOLDER',
                     help='a dated folder and the link latest are made in it (default: results)')
    run.add_argument('--resume', nargs='?', const='', metavar='FOLDER',
                     help='continue an interrupted run (default: the latest)')
    run.add_argument('--batch-size', type=_fours, default=8, metavar='N',
                     help='images in the network at once, a multiple of 4 (default: 8)')
    run.add_argument('--workers', type=_natural, default=_workers(), metavar='N',
                     help='processes that read images (default here: %(default)s)')
    run.add_argument('--no-report', action='store_true', help='numbers only, no HTML')
    return parser


def _settings(options: argparse.Namespace) -> tuple[DepthConfig, NodeConfig]:
    """Settings of the file and the command line; the precision is float32 unless chosen."""
    config, node = read_config(options.config or resources.config_path('nyu_paper'))
    changes = {k: v for k, v in (('weights', options.weights), ('device', options.device)) if v}
    node = node.replace(**changes)
    config, note = with_demo_settings(
        config, node.weights, default=None if options.config else config)
    if note:
        print(note)
    if config.has_scenes:
        raise ConfigError("scenes: only plain bins are evaluated here, and scenes would count for "
                          "nothing; set scenes: [''].")
    precision = options.precision or (
        'float32' if config.precision == 'auto' else config.precision)
    return config.replace(precision=precision), node


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{value} is negative')
    return value


def _fours(text: str) -> int:
    value = int(text)
    if value < 4 or value % 4:
        raise argparse.ArgumentTypeError(
            f"{value}: must be a multiple of 4, since images are scored on one another's truth in "
            'groups of four')
    return value


def _workers() -> int:
    return max(1, min(8, (os.cpu_count() or 2) // 2))


def _print(folder: Path) -> None:
    """The short answer; the long one is in the folder."""
    from .results import ALL, PAPER_METRICS, Summary
    summary = Summary.read(folder)
    print(f'{"":40}' + ''.join(f'{m:>9}' for m in PAPER_METRICS))
    lines = [(row.name, row.metrics) for row in summary.rows if row.scene == ALL]
    lines += [(f'{row.name} (published)', row.metrics) for row in summary.paper
              if row.name.startswith('DepthCLIP')]
    for name, metrics in lines:
        print(f'{name:40}' + ''.join(f'{metrics[m]:9.3f}' for m in PAPER_METRICS))
    print(f'\n{summary.verdict.text}\n')
    print(f"The paper's row: {summary.gate.status}."
          + ''.join(f'\n  - {reason}' for reason in summary.gate.reasons))
    if summary.data.skipped:
        print(f'{len(summary.data.skipped)} images without valid true depth were left out.')
    print(f'Results: {folder}')
