# SPDX-License-Identifier: Apache-2.0
"""`depthclip calibrate`: fit settings for a robot to a minute of its recording."""

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
from ..calibrate.recordings import Options, RecordingError, evenly_spaced, in_blocks
from ..calibrate.registration import downsample
from ..calibrate.report import contents, draw_examples
from ..core.camera_image import CameraImage
from ..core.errors import ConfigError
from ..core.files import check_new, named_path, output_folder, printable
from ..drawing.color import depth_scale
from ..sources.camera_info import Intrinsics
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
    from ..messages.node_config import NodeConfig

CHECKED_FRAMES = 600  # at most, for the checks
COMPARED_FRAMES = 20  # at most, whose measured depth is compared with language depth
EXAMPLES = 3
_COMPARISON_SIZE, _EXAMPLE_SIZE = (60, 80), (120, 160)  # height and width of depth
_PROGRESS_SECONDS = 2.0  # between lines of progress
_T = TypeVar('_T')

# Settings of the node that depend on the machine, not on the robot.
_MACHINE_SETTINGS = ('device', 'cache_dir', 'offline', 'num_threads')


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
    check_for_ros('-o', target.absolute())  # the parameter calibration will name it
    output_folder(str(target.parent))
    html, picture = target.with_suffix('.html'), target.with_suffix('.png')
    check_new((target, html, target.with_suffix('.md'), picture))
    depth, node = settings(options.config, options.weights, options.device)
    if depth.calibration or depth.has_scenes:
        raise ConfigError('A calibration starts from words alone, without scenes or another one: '
                          "set calibration: '' and scenes: [''], or leave them out.")
    recording = open_recording(options.source, recording_options(options, node))
    positions = range(0, len(recording), options.every)
    to_stderr(f'{recording.source}: {recording.description}, {len(recording)} frames')
    checked = [positions[i] for i in evenly_spaced(len(positions), CHECKED_FRAMES)]
    compared = {checked[i] for i in evenly_spaced(len(checked), COMPARED_FRAMES)}
    thumbnails, frames = _read_thumbnails(recording, checked, compared)
    estimator = load_estimator(depth, node)
    trained, has_unit = estimator.weights.trained, options.depth_unit > 0
    # Depth of untrained weights measures nothing.
    comparison = Comparison.of(
        np.array([downsample(frame.depth, *_COMPARISON_SIZE) for frame in frames]),
        np.array(_depths(estimator, frames, _COMPARISON_SIZE))) if trained else NOT_COMPARED
    refusals = check(thumbnails, comparison, timed=recording.timed, unit_given=has_unit,
                     integers=recording.integers)
    if refusals and not options.anyway:
        _print_left_out(recording)
        print(f'{recording.source} is not calibrated from (--anyway does it all the same):',
              *(f'  {cause}: {message}' for cause, message in refusals), sep='\n', file=sys.stderr)
        return 1
    warnings = recording.notes + [
        f'The recording should have been refused ({cause}), and is used all the same (--anyway). '
        f'{message}' for cause, message in refusals]
    if not has_unit and (doubt := unit_doubt(thumbnails, comparison)):
        warnings.append(doubt)
    for warning in warnings:
        to_stderr(f'WARNING: {warning}')
    examples = [frames[i] for i in evenly_spaced(len(frames), EXAMPLES)]
    before = _depths(estimator, examples, _EXAMPLE_SIZE)
    result = fit(estimator, _in_blocks(recording, [
        positions[i] for i in evenly_spaced(len(positions), options.max_frames)]),
        options.variant, printable(Path(recording.source).name), recording.split, to_stderr)
    _print_left_out(recording)
    try:
        file = result.calibration.save(target.parent, target.stem).absolute()
    except OSError as error:
        raise ConfigError(f'{target.parent}: cannot be written: {error.strerror}.') from error
    depth = depth.replace(
        calibration=str(file),
        reference_focal=result.calibration.origin.config['reference_focal'])
    parameters = {**depth.to_dict(), **{name: value for name, value in node.to_dict().items()
                                        if name not in _MACHINE_SETTINGS}}
    comment = (f'Calibrated on {recording.source}: no longer zero-shot.', result.verdict,
               'The file that calibration names belongs to this one: move both, correct the path.')
    save(target, parameter_file(
        ''.join(f'# {" ".join(line.split())}\n' for line in comment), parameters))
    print(f'{target} and {file.name}')
    estimator.reconfigure(depth)
    after = _depths(estimator, examples, _EXAMPLE_SIZE)
    save(picture, draw_examples([(frame.rgb, (*depths, frame.depth)) for frame, depths in zip(
        examples, zip(before, after, strict=True), strict=True)], depth_scale(
            (frame.depth for frame in examples), options.colormap, options.range)))
    save_page(html, contents(
        result, recording, views(thumbnails),
        f'{estimator.weights.name} on {estimator.device}, {estimator.precision}', warnings,
        target, picture.name, trained=trained))
    print(f'report: {html}, {html.with_suffix(".md")}\n{result.verdict}')
    if not trained:
        print_untrained()
    return 0


def _read_thumbnails(
    recording: Recording, positions: Sequence[int], compared: Collection[int],
) -> tuple[list[Thumbnail], list[Frame]]:
    """Read the thumbnails of frames, and those frames whose positions are in `compared`.

    Raises:
        RecordingError: no frame can be read.

    """
    thumbnails, frames = [], []
    for position, frame in with_progress('looking at', recording.read(positions), len(positions)):
        thumbnails.append(Thumbnail.of(frame))
        if position in compared:
            frames.append(frame)
    if not thumbnails:
        raise RecordingError(f'{recording.source}: none of {len(positions)} frames can be read. '
                             f'Left out: {recording.failures}.')
    return thumbnails, frames


def recording_options(
    options: argparse.Namespace, node: NodeConfig, excluded_topic: str = '',
) -> Options:
    """Convert the options of the command line for reading a recording.

    Args:
        options: of `cli.main.recording`.
        node: for `rectified` of the images.
        excluded_topic: topic of depth that no sensor measured.

    Raises:
        CameraInfoError: a camera file cannot be used.

    """
    camera = Intrinsics.from_yaml(options.camera_info).model(
        rectified=node.rectified) if options.camera_info else None
    depth_camera = Intrinsics.from_yaml(options.depth_camera) \
        if options.depth_camera else None
    depth_rectified = {'yes': True, 'no': False}.get(options.depth_rectified)
    return Options(options.image, options.depth, options.tolerance, camera, node.rectified,
                   depth_camera, depth_rectified, options.depth_unit, options.protocol,
                   excluded_topic)


def with_progress(activity: str, frames: Iterator[_T], count: int) -> Iterator[_T]:
    """Yield frames, and print their number every `_PROGRESS_SECONDS`."""
    last = time.monotonic()
    for number, frame in enumerate(frames, 1):
        yield frame
        if time.monotonic() - last > _PROGRESS_SECONDS:
            last = time.monotonic()
            to_stderr(f'{activity} {number} of {count} frames')


def _in_blocks(recording: Recording, positions: Sequence[int]) -> Iterator[Frame]:
    """Read frames, whose sequences become the blocks of cross-validation."""
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
    for cause, count in sorted(recording.failures.items()):
        to_stderr(f'left out, {count} times: {cause}')
