# SPDX-License-Identifier: Apache-2.0
"""Command line of the offline evaluation: `python -m offline_eval --data PATH`."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthclip_ros import __version__, resources
from depthclip_ros.arguments import (
    MODEL,
    PROTOCOLS,
    Group,
    add_options,
    check_command,
    option,
    path,
    path_or_name,
    positive,
    switch,
)
from depthclip_ros.core.config import DepthConfig
from depthclip_ros.core.errors import ConfigError
from depthclip_ros.core.parameter_file import read_parameters
from depthclip_ros.core.releases import DEMO
from depthclip_ros.executables import command

if TYPE_CHECKING:
    from .evaluate import Options
    from .results import Summary

PROGRAM = 'offline_eval'
ALIGNMENTS = ('none', 'median', 'lstsq', 'disparity')  # see prediction_files.ALIGNMENTS
#: Parameters of the node that the evaluation reads from a parameter file.
RUNTIME = ('weights', 'device', 'cache_dir', 'offline', 'num_threads')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, see `executables.command`; 2: usage error."""
    return command(PROGRAM, _run, arguments)


def _run(arguments: list[str]) -> int:
    commands = {'compare': _compare, 'extract': _extract, 'export': _export, 'witness': _export}
    name = arguments[0] if arguments else ''
    check_command(_parser(), arguments, list(commands))
    try:
        commands.get(name, _evaluate)(arguments)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            'the same command continues.' if name in commands else error) from None
    return 0


def _evaluate(arguments: list[str]) -> None:
    parsed = options(arguments)
    from . import report
    from .evaluate import evaluate
    folder, results = evaluate(parsed)
    report.write(folder, results)
    print(summary_text(results.summary))
    print(f'Results: {folder}')


def _export(arguments: list[str]) -> None:
    if arguments[0] == 'witness':
        print(f'WARNING: {PROGRAM} witness is called export now; the old name goes with the next '
              'release.', file=sys.stderr)
    parser = argparse.ArgumentParser(
        prog=f'{PROGRAM} export',
        description="Write the method's depth as 16-bit PNG, as the evaluation scripts of BTS and "
        'of what came after it read it: 1000 a metre for NYU (whole images), 256 for KITTI '
        '(benchmark crop), in FOLDER/raw.')
    add_options(parser, DATA_AND_MODEL)
    parser.add_argument('-o', '--output', type=path, required=True, metavar='FOLDER',
                        help='to write to; nothing is overwritten, and what the same command has '
                        'begun is continued')
    parsed = parser.parse_args(arguments[1:])
    from .evaluate import Options, write_export
    raw = write_export(Options(**_data_and_model(parsed, arguments)), parsed.output)
    print(f'{sum(1 for _ in raw.iterdir())} images in {raw}')


def _compare(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=f'{PROGRAM} compare',
        description='Two finished runs on the same images, with intervals of the difference.')
    parser.add_argument('run', type=path, nargs=2, help='results folder')
    from .compare_runs import compare
    print(compare(*parser.parse_args(arguments[1:]).run))


def _extract(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=f'{PROGRAM} extract',
        description='Write the official folders (JPEG images, depth in millimetres) from the .mat '
        'file, as the official script does.')
    parser.add_argument('mat', type=path, help='nyu_depth_v2_labeled.mat')
    parser.add_argument('folder', type=path, help='where official_splits/ is made')
    parsed = parser.parse_args(arguments[1:])
    from depthclip_ros.evaluation.datasets.nyu import extract
    root = extract(parsed.mat, parsed.folder).parent
    print(f'{sum(1 for _ in root.rglob("rgb_*.jpg"))} images in {root}')


# Options -----------------------------------------------------------------------------------------


def _with_name(parse_value: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Make a parser of '[NAME=]VALUE'; the name is '' if it is missing."""
    def parse(text: str) -> tuple[str, Any]:
        name, sign, value = text.partition('=')
        return (name.strip(), parse_value(value)) if sign else ('', parse_value(text))
    return parse


def _alignment(text: str) -> str:
    if text not in ALIGNMENTS:
        raise argparse.ArgumentTypeError(f'{text!r}: expected one of {", ".join(ALIGNMENTS)}')
    return text


DATA_AND_MODEL = (
    Group('data', (
        option('--data', type=path, required=True, metavar='PATH',
               help="nyu_depth_v2_labeled.mat, or a folder: official_splits, Kaggle's nyu2_test, "
               'KITTI raw data'),
        option('--list', type=path, metavar='FILE',
               help='list of the pairs (default: the one beside, else all)'),
        option('--ground-truth', type=path, metavar='FOLDER',
               help='KITTI: folder of the annotated depth'),
        switch('--inpainted', 'score on the in-painted depth of the .mat (default: raw)'),
        option('--protocol', choices=PROTOCOLS, default='',
               help='crops (default: depthclip, the official code; KITTI: kitti)'),
    )),
    Group("model (default: the paper's, nyu_paper.yaml)", (
        *MODEL,
        switch('--own-input', "resize the crop to the configuration's own input (default: the "
               'network sees what the protocol crops, pixel by pixel)'),
        option('--precision', choices=('float32', 'float16', 'bfloat16', 'int8'),
               help="network's number format (default: the file's; auto means float32)"),
    )),
)
SCORING = (
    Group('how it is measured', (
        option('--average', choices=('image', 'pixel'), default='image',
               help='mean over images of their metrics (default), or over all pixels'),
        option('--table', action='append', choices=('1', '2', '3'),
               help="the paper's table to make; may be repeated (default: 1)"),
    )),
    Group('beside it', (
        option('--predictions', action='append', default=[], metavar='NAME=PATH',
               type=_with_name(path),
               help="another program's depth of the same images: a folder of PNG of 16 bits, "
               '.npy, .npz, .pfm or TIFF, or one array of all; may be repeated'),
        option('--prediction-scale', action='append', default=[], metavar='[NAME=]N',
               type=_with_name(positive),
               help='stored depth per metre (default: 1000; KITTI: 256; floating point: 1)'),
        option('--align', action='append', default=[], metavar='[NAME=]HOW',
               type=_with_name(_alignment),
               help="fit a prediction to each image's true depth before it is scored: "
               f'{", ".join(ALIGNMENTS)} (default: none); its row says so'),
        option('--calibration', action='append', default=[], type=path, metavar='FILE',
               help="row of the method as 'depthclip calibrate' corrects it; may be repeated"),
    )),
    Group('run', (
        option('--output', type=path, default=Path('results'), metavar='FOLDER',
               help='a dated folder and the link latest are made in it (default: results)'),
        option('--resume', nargs='?', const='', metavar='FOLDER', type=path_or_name,
               help='continue an interrupted run (default: the latest)'),
    )),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Evaluate DepthCLIP on NYU Depth v2 or KITTI: the metrics of the paper, '
        'beside\nbaselines that show what they are worth.',
        epilog=f"'{PROGRAM} extract MAT FOLDER' writes the official folders from the .mat file.\n"
        f"'{PROGRAM} export --data PATH -o FOLDER' writes the method's depth for other programs.\n"
        f"'{PROGRAM} compare RUN RUN' puts two results folders beside each other.")
    parser.add_argument('--version', action='version', version=f'depthclip_ros {__version__}')
    add_options(parser, (*DATA_AND_MODEL, *SCORING))
    return parser


def options(arguments: list[str]) -> Options:
    """Parse the arguments of an evaluation."""
    from .evaluate import Options
    parser = _parser()
    parsed = parser.parse_args(arguments)
    names = [name for name, _ in parsed.predictions]
    if '' in names or len(names) > len(set(names)):
        parser.error('--predictions: expected NAME=PATH, and every NAME once')
    scales: dict[str, float] = dict(parsed.prediction_scale)
    alignments: dict[str, str] = dict(parsed.align)
    if unmatched := sorted({*scales, *alignments} - {'', *names}):
        parser.error(f'{", ".join(unmatched)}: is none of --predictions')
    return Options(
        **_data_and_model(parsed, arguments), average=parsed.average,
        tables=tuple(parsed.table or ('1',)), output=parsed.output, resume=parsed.resume,
        predictions=tuple((name, folder, scales.get(name, scales.get('', 0.0)),
                           alignments.get(name, alignments.get('', 'none')))
                          for name, folder in parsed.predictions),
        calibrations=tuple(parsed.calibration))


def _data_and_model(parsed: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Return the fields of `evaluate.Options` that `export` has as well."""
    config, runtime = settings(parsed)
    return {
        'data': parsed.data, 'list_file': parsed.list, 'truth': parsed.ground_truth,
        'inpainted': parsed.inpainted, 'protocol': parsed.protocol, 'config': config,
        'runtime': runtime, 'command': shlex.join([PROGRAM, *arguments]),
        'own_input': parsed.own_input or (
            parsed.config is None and runtime.get('weights') == DEMO)}


def settings(parsed: argparse.Namespace) -> tuple[DepthConfig, dict[str, Any]]:
    """Read the method's settings and the runtime's: the command line overrides the file.

    The demo model brings its own settings, which the user's file overrides. The precision is
    float32 by default.

    Raises:
        ConfigError: the file or a setting is invalid.

    """
    path = parsed.config or resources.config_path('nyu_paper')
    config, values = DepthConfig.from_yaml(path), read_parameters(path, 'depth_node')
    runtime = {name: values[name] for name in RUNTIME if name in values} | {
        name: value for name in ('weights', 'device') if (value := getattr(parsed, name))}
    if runtime.get('weights') == DEMO:
        user_settings = set(values) & set(DepthConfig.names()) if parsed.config else set()
        if user_settings & {'tokens', 'bins'}:
            user_settings |= {'tokens', 'bins'}
        config = DepthConfig.from_yaml(resources.config_path(DEMO)).replace(**{
            name: getattr(config, name) for name in user_settings})
        print(f'weights: {DEMO} bring their own settings (config/demo.yaml)'
              + (f'; kept as given: {", ".join(sorted(user_settings))}.'
                 if user_settings else '.'),
              file=sys.stderr)
    if config.has_scenes:
        raise ConfigError("scenes: only plain bins are evaluated here, and scenes would count for "
                          "nothing; set scenes: [''].")
    precision = parsed.precision or (
        'float32' if config.precision == 'auto' else config.precision)
    return config.replace(precision=precision), runtime


# Result on the terminal --------------------------------------------------------------------------


_NAME_WIDTH = 38  # least columns of a name


def summary_text(summary: Summary) -> str:
    """Format the summary for a terminal; the report has the details."""
    from depthclip_ros.evaluation.datasets.base import NYU
    from depthclip_ros.evaluation.metrics import PAPER_METRICS, SYMBOLS
    from depthclip_ros.report.document import pad_to, terminal_width

    from .results import ALL
    data, gate = summary.data, summary.gate
    blocks: dict[str, dict[str, Mapping[str, float]]] = {}  # rows by group
    for row in summary.rows:
        if row.scene == ALL:
            blocks.setdefault(row.group, {})[row.name] = row.metrics
    if data.official:  # published numbers are of these images only
        blocks['published'] = {
            f'{row.name} (published)': row.metrics for row in summary.paper
            if row.group not in ('2', '3') and row.name.startswith('DepthCLIP')}
    width = max(_NAME_WIDTH, *(terminal_width(name) for rows in blocks.values() for name in rows))
    header = ' ' * (width + 2) + ''.join(f'{SYMBOLS[m]:>9}' for m in PAPER_METRICS)
    lines = [
        (f'{summary.rows[0].name} with the weights {summary.weights.name} on '
        f'{data.origin or "images of unknown origin"}, {data.split}'),
        header]
    for group, rows in blocks.items():
        lines += ['-' * len(header), *(
            f'{">" if group == "method" else " "} {pad_to(name, width)}'
            + ''.join(f'{metrics[m]:9.3f}' for m in PAPER_METRICS)
            for name, metrics in rows.items())]
    lines += ['', *textwrap.wrap(summary.verdict.text, min(
        shutil.get_terminal_size().columns, len(header))), '']
    if data.origin in (NYU, ''):
        lines += [f"The paper's row: {gate.status}.", *(f'  - {text}' for text in gate.reasons)]
    if data.skipped:
        lines.append(f'{len(data.skipped)} images without valid true depth were left out.')
    return '\n'.join(lines)
