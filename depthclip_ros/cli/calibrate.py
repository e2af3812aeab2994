# SPDX-License-Identifier: Apache-2.0
"""`depthclip calibrate`: settings for one's own robot from a minute of its own recording."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..calibrate.bags import open_recording
from ..calibrate.checks import NOT_COMPARED, Comparison, Thumbnail, check, unit_doubt, views
from ..calibrate.fit import fit
from ..calibrate.recordings import Options, RecordingError, in_blocks, spread_evenly
from ..calibrate.registration import gather
from ..calibrate.report import contents, draw_examples
from ..color import depth_scale
from ..core.errors import ConfigError
from ..core.files import check_new, named_path, output_folder, printable
from ..core.image import CameraImage
from ..sources.camera_info import CameraCalibration
from .model import (
    check_for_ros,
    load_estimator,
    parameter_file,
    print_untrained,
    save,
    save_page,
    settings,
    to_stderr,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from ..calibrate.recordings import Frame, Recording
    from ..core.estimator import DepthEstimator
    from ..messages.config import NodeConfig

MOST_LOOKED_AT = 600  # frames, for the checks
MOST_COMPARED = 20  # frames, of which words and measured depth are compared for the unit
EXAMPLES = 3
_GRID, _SHOWN = (60, 80), (120, 160)  # in which these are compared, and shown
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
    target = named_path(options.output)
    if target.suffix not in ('.yaml', '.yml'):
        raise ConfigError(f'-o {target}: name a parameter file, such as robot.yaml.')
    check_for_ros('-o', target.absolute())  # which the parameter calibration is to name
    output_folder(str(target.parent))
    html, picture = target.with_suffix('.html'), target.with_suffix('.png')
    check_new((target, html, target.with_suffix('.md'), picture))
    depth, node = settings(options.config, options.weights, options.device)
    if depth.calibration or depth.has_scenes:
        raise ConfigError('A calibration starts from words alone, without scenes or another one: '
                          "set calibration: '' and scenes: [''], or leave them out.")
    recording = open_recording(options.source, reading(options, node))
    positions = range(0, len(recording), options.every)
    to_stderr(f'{recording.source}: {recording.described}, {len(recording)} frames')
    looked_at = [positions[i] for i in spread_evenly(len(positions), MOST_LOOKED_AT)]
    compared = {looked_at[i] for i in spread_evenly(len(looked_at), MOST_COMPARED)}
    thumbnails, kept = _look(recording, looked_at, compared)
    estimator = load_estimator(depth, node)
    trained, given = estimator.weights.trained, options.depth_unit > 0
    # What untrained weights say is no measure of depth.
    comparison = Comparison.of(
        np.array([gather(frame.depth, *_GRID) for frame in kept]),
        np.array(_depths(estimator, kept, _GRID))) if trained else NOT_COMPARED
    refused = check(thumbnails, comparison, timed=recording.timed, unit_given=given,
                    integers=recording.integers)
    if refused and not options.anyway:
        _print_left_out(recording)
        print(f'{recording.source} is not calibrated from (--anyway does it all the same):',
              *(f'  {cause}: {message}' for cause, message in refused), sep='\n', file=sys.stderr)
        return 1
    warnings = recording.notes + [
        f'The recording should have been refused ({cause}), and is used all the same (--anyway). '
        f'{message}' for cause, message in refused]
    if not given and (doubt := unit_doubt(thumbnails, comparison)):
        warnings.append(doubt)
    for warning in warnings:
        to_stderr(f'WARNING: {warning}')
    shown = [kept[i] for i in spread_evenly(len(kept), EXAMPLES)]
    before = _depths(estimator, shown, _SHOWN)
    fitted = fit(estimator, _in_blocks(recording, [
        positions[i] for i in spread_evenly(len(positions), options.max_frames)]),
        options.variant, printable(Path(recording.source).name), recording.split, to_stderr)
    _print_left_out(recording)
    try:
        file = fitted.calibration.save(target.parent, target.stem).absolute()
    except OSError as error:
        raise ConfigError(f'{target.parent}: cannot be written: {error.strerror}.') from error
    depth = depth.replace(
        calibration=str(file),
        reference_focal=fitted.calibration.about.config['reference_focal'])
    robot = {name: value for name, value in node.to_dict().items()
             if name not in _NOT_THE_ROBOTS}
    said = (f'Calibrated on {recording.source}: no longer zero-shot.', fitted.verdict,
            'The file that calibration names belongs to this one: move both, correct the path.')
    save(target, parameter_file(
        ''.join(f'# {" ".join(line.split())}\n' for line in said), {**depth.to_dict(), **robot}))
    print(f'{target} and {file.name}')
    estimator.reconfigure(depth)
    after = _depths(estimator, shown, _SHOWN)
    save(picture, draw_examples([(frame.rgb, (*depths, frame.depth)) for frame, depths in zip(
        shown, zip(before, after, strict=True), strict=True)], depth_scale(
            (frame.depth for frame in shown), options.colormap, options.range)))
    save_page(html, contents(
        fitted, recording, views(thumbnails),
        f'{estimator.weights.name} on {estimator.device}, {estimator.precision}', warnings,
        target, picture.name, trained=trained))
    print(f'report: {html}, {html.with_suffix(".md")}\n{fitted.verdict}')
    if not trained:
        print_untrained()
    return 0


def _look(
    recording: Recording, positions: Sequence[int], compared: Collection[int],
) -> tuple[list[Thumbnail], list[Frame]]:
    """Thumbnails of frames, and the frames that are compared with words and shown.

    Raises:
        RecordingError: none can be read; says why.

    """
    thumbnails, kept = [], []
    for position, frame in with_progress('looking at', recording.read(positions), len(positions)):
        thumbnails.append(Thumbnail.of(frame))
        if position in compared:
            kept.append(frame)
    if not thumbnails:
        raise RecordingError(f'{recording.source}: none of {len(positions)} frames can be read. '
                             f'Left out: {recording.left_out}.')
    return thumbnails, kept


def reading(options: argparse.Namespace, node: NodeConfig, said: str = '') -> Options:
    """How a recording is to be read, by the options of the command line.

    Args:
        options: those of `cli.main.recording`.
        node: for `rectified`, of the images.
        said: topic of depth that was not measured.

    Raises:
        CameraInfoError: the calibration file is none.

    """
    camera = CameraCalibration.from_yaml(options.camera_info).model(
        rectified=node.rectified) if options.camera_info else None
    depth_camera = CameraCalibration.from_yaml(options.depth_camera) \
        if options.depth_camera else None
    depth_rectified = {'yes': True, 'no': False}.get(options.depth_rectified)
    return Options(options.image, options.depth, options.tolerance, camera, node.rectified,
                   depth_camera, depth_rectified, options.depth_unit, options.protocol, said)


def with_progress(doing: str, frames: Iterator[_T], count: int) -> Iterator[_T]:
    """Hand on frames, and say now and then how many there were."""
    said = time.monotonic()
    for number, frame in enumerate(frames, 1):
        yield frame
        if time.monotonic() - said > _EVERY_SECONDS:
            said = time.monotonic()
            to_stderr(f'{doing} {number} of {count} frames')


def _in_blocks(recording: Recording, positions: Sequence[int]) -> Iterator[Frame]:
    """Frames whose sequences are the blocks that are held out together."""
    moments = dict(zip(positions, in_blocks([recording.moments[p] for p in positions]),
                       strict=True))
    for position, frame in with_progress(
            'calibrating from', recording.read(positions), len(positions)):
        yield replace(frame, moment=moments[position])


def _depths(
    estimator: DepthEstimator, frames: Sequence[Frame], size: tuple[int, int],
) -> list[NDArray[np.float32]]:
    return [estimator.predict(CameraImage(frame.rgb, frame.camera), size).depth
            for frame in frames]


def _print_left_out(recording: Recording) -> None:
    for cause, count in sorted(recording.left_out.items()):
        to_stderr(f'left out, {count} times: {cause}')
