# SPDX-License-Identifier: Apache-2.0
"""`depthclip calibrate`: settings for one's own robot from a minute of its own recording."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import yaml

from ..calibrate.checks import Comparison, Thumbnail, check, unit_doubt, views
from ..calibrate.fit import fit
from ..calibrate.folders import open_recording
from ..calibrate.recordings import Options, blocks, gather, spread_evenly
from ..calibrate.report import Example, contents, draw_examples
from ..core.errors import ConfigError, quoted
from ..core.files import user_path
from ..sources.camera_info import CameraCalibration
from .model import (
    check_new,
    load_estimator,
    output_folder,
    print_untrained,
    save,
    save_page,
    settings,
    to_stderr,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..calibrate.checks import Refusal
    from ..calibrate.fit import Fitted
    from ..calibrate.recordings import Frame, Recording
    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator
    from ..node.config import NodeConfig

MOST_LOOKED_AT = 600  # frames, for the checks; they need no network
MOST_COMPARED = 20  # frames, of which words and measured depth are compared for the unit
EXAMPLES = 3
_GRID = 60, 80  # in which these are compared
_SHOWN = 120, 160
_EVERY_SECONDS = 2.0  # a line of progress
_T = TypeVar('_T')

# Settings of the node that are this machine's, not the robot's.
_NOT_THE_ROBOTS = ('device', 'cache_dir', 'offline', 'num_threads')


def calibrate(options: argparse.Namespace) -> int:
    """Calibrate from a recording, and write settings and a report.

    Args:
        options: of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 0 if settings are written; 1 if the recording is refused.

    Raises:
        DepthClipError: settings, weights, recording or output cannot be used.

    """
    target, html, picture = _targets(options.output)
    depth, node = settings(options.config, options.weights, options.device)
    if depth.calibration:
        raise ConfigError(f'calibration: {quoted(depth.calibration)} is set already, but a '
                          "calibration starts from words alone. Set calibration: '' in the "
                          'file, or leave it out.')
    recording = open_recording(options.source, reading(options, node))
    positions = range(0, len(recording), options.every)
    to_stderr(f'{recording.source}: {recording.described}, {len(recording)} frames')
    thumbnails, kept = _look(
        recording, [positions[i] for i in spread_evenly(len(positions), MOST_LOOKED_AT)])
    given = options.depth_unit > 0
    refused = check(thumbnails, timed=recording.timed, unit_given=given)
    if refused and not options.anyway:  # before the weights are loaded
        return _refuse(recording, refused)
    estimator = load_estimator(depth, node)
    comparison = Comparison.of(
        np.array([gather(frame.depth, *_GRID) for frame in kept]),
        np.array(_depths(estimator, kept, _GRID)), trained=estimator.weights.trained)
    refused = refused or check(
        thumbnails, comparison, timed=recording.timed, unit_given=given)
    if refused and not options.anyway:
        return _refuse(recording, refused)
    warnings = [f'The recording should have been refused ({cause}), and is used all the same '
                f'(--anyway). {message}' for cause, message in refused]
    if not given and (doubt := unit_doubt(thumbnails, comparison)):
        warnings.append(doubt)
    for warning in warnings:
        to_stderr(f'WARNING: {warning}')
    chosen = [positions[i] for i in spread_evenly(len(positions), options.max_frames)]
    shown = [kept[i] for i in spread_evenly(len(kept), EXAMPLES)]
    before = _depths(estimator, shown, _SHOWN)
    fitted = fit(estimator, _in_blocks(recording, chosen), options.variant,
                 Path(recording.source).name, recording.split, to_stderr)
    _print_left_out(recording)
    try:
        file = fitted.calibration.save(target.parent, target.stem).absolute()
    except OSError as error:
        raise ConfigError(f'{target.parent}: cannot be written: {error.strerror}; is '
                          'the disk full?') from error
    depth = depth.replace(
        calibration=str(file),
        reference_focal=fitted.calibration.about.config['reference_focal'])
    estimator.reconfigure(depth)
    save(target, _as_yaml(fitted, recording, depth, node))
    print(f'{target} and {file.name}')
    network = f'{estimator.weights.name} on {estimator.device}, {estimator.precision}'
    save_page(html, contents(
        fitted, recording,
        {'network': network, 'clearly different views': str(views(thumbnails))}, warnings,
        str(target), picture.name, trained=estimator.weights.trained))
    save(picture, draw_examples([
        Example(frame.rgb, frame.depth, *depths) for frame, *depths in zip(
            shown, before, _depths(estimator, shown, _SHOWN), strict=True)]))
    print(f'report: {html}, {html.with_suffix(".md")}')
    print(fitted.verdict)
    numbers = ' '.join(f'{value:.5g}' for value in fitted.sensor_model)
    print(f"elevation_mapping's sensor model, a b c d e: {numbers}")
    if not estimator.weights.trained:
        print_untrained()
    return 0


def _targets(output: str) -> tuple[Path, Path, Path]:
    """Files to write: settings, report and picture; nothing is overwritten."""
    try:
        path = user_path(output)
    except OSError as error:
        raise ConfigError(f'{quoted(output)}: {error.strerror}.') from error
    if path.suffix not in ('.yaml', '.yml'):
        raise ConfigError(f'-o {path}: name a parameter file, such as robot.yaml.')
    output_folder(str(path.parent))
    page, picture = path.with_suffix('.html'), path.with_suffix('.png')
    check_new((path, page, page.with_suffix('.md'), picture))
    return path, page, picture


def reading(options: argparse.Namespace, node: NodeConfig, said: str = '') -> Options:
    """How a recording is to be read, by the options of the command line.

    Args:
        options: `image`, `depth`, `camera_info`, `depth_unit`, `tolerance` and `protocol`.
        node: for `rectified`.
        said: topic of depth that was not measured.

    Raises:
        CameraInfoError: the calibration file is none.

    """
    camera = CameraCalibration.from_yaml(options.camera_info).model(
        rectified=node.rectified) if options.camera_info else None
    return Options(options.image, options.depth, options.tolerance, camera, node.rectified,
                   options.depth_unit, options.protocol, said)


def with_progress(doing: str, frames: Iterator[_T], count: int) -> Iterator[_T]:
    """Hand on frames, and say now and then how many there were."""
    said = time.monotonic()
    for number, frame in enumerate(frames, 1):
        yield frame
        if time.monotonic() - said > _EVERY_SECONDS:
            said = time.monotonic()
            to_stderr(f'{doing} {number} of {count} frames')


def _look(
    recording: Recording, positions: Sequence[int],
) -> tuple[list[Thumbnail], list[Frame]]:
    """Reduce frames to thumbnails, and keep a few of them for comparison and pictures."""
    keep = {positions[i] for i in spread_evenly(len(positions), MOST_COMPARED)}
    thumbnails, kept = [], []
    for position, frame in with_progress('looking at', recording.read(positions), len(positions)):
        thumbnails.append(Thumbnail.of(frame))
        if position in keep:
            kept.append(frame)
    return thumbnails, kept


def _in_blocks(recording: Recording, positions: Sequence[int]) -> Iterator[Frame]:
    """Frames whose sequences are the blocks that are held out together."""
    owner = blocks([recording.moments[p] for p in positions])
    block = dict(zip(positions, owner, strict=True))
    for position, frame in with_progress(
            'calibrating from', recording.read(positions), len(positions)):
        yield replace(frame, moment=frame.moment._replace(sequence=block[position]))


def _depths(
    estimator: DepthEstimator, frames: Sequence[Frame], size: tuple[int, int],
) -> list[NDArray[np.float32]]:
    return [estimator.predict(frame.rgb, size, frame.camera).depth for frame in frames]


def _refuse(recording: Recording, refused: Sequence[Refusal]) -> int:
    """Say why; nothing is written."""
    _print_left_out(recording)
    print(f'{recording.source} is not calibrated from:', file=sys.stderr)
    for cause, message in refused:
        print(f'  {cause}: {message}', file=sys.stderr)
    print('(--anyway calibrates from it all the same.)', file=sys.stderr)
    return 1


def _print_left_out(recording: Recording) -> None:
    for cause, count in sorted(recording.left_out.items()):
        to_stderr(f'left out, {count} times: {cause}')


def _as_yaml(
    fitted: Fitted, recording: Recording, depth: DepthConfig, node: NodeConfig,
) -> str:
    """A parameter file with all settings that are the robot's."""
    robot = {name: value for name, value in node.to_dict().items()
             if name not in _NOT_THE_ROBOTS}
    document = yaml.safe_dump({'/**': {'ros__parameters': {**depth.to_dict(), **robot}}},
                              sort_keys=False, allow_unicode=True)
    said = [f'Calibrated on {recording.source}: no longer zero-shot.', fitted.verdict,
            'The file that calibration names belongs to this one: move both, correct the path.']
    return ''.join(f'# {" ".join(line.split())}\n' for line in said) + document
