# SPDX-License-Identifier: Apache-2.0
"""`depthclip calibrate`: settings for one's own robot from a minute of its own recording."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import yaml

from ..calibrate.checks import Comparison, Thumbnail, check, gather, unit_doubt, views
from ..calibrate.fit import Options, Sample, fit
from ..calibrate.folders import COLOR_FOLDERS, DatasetRecording, FolderRecording
from ..calibrate.recordings import RecordingError, blocks, camera_of, spread_evenly
from ..calibrate.report import Context, Example, contents, draw_examples
from ..core.errors import ConfigError, quoted
from ..core.files import user_path
from ..sources.bag import is_bag
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

    from ..calibrate.checks import Refusal
    from ..calibrate.fit import Fitted
    from ..calibrate.recordings import RecordedFrame, Recording
    from ..core.camera import CameraModel
    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator
    from ..node.config import NodeConfig

MOST_LOOKED_AT = 600  # frames, for the checks; they need no network
MOST_COMPARED = 20  # frames, of which words and measured depth are compared for the unit
EXAMPLES = 3
_GRID = 60, 80  # in which these are compared
_EVERY_SECONDS = 2.0  # a line of progress
_T = TypeVar('_T')

# Settings of the node that are this machine's, not the robot's.
_NOT_THE_ROBOTS = ('device', 'cache_dir', 'offline', 'num_threads')


class Target(NamedTuple):
    """Files to write."""

    settings: Path
    html: Path
    markdown: Path
    picture: Path

    @classmethod
    def of(cls, output: str) -> Target:
        """Find the names, and refuse to overwrite.

        Raises:
            ConfigError: a file is there already, or cannot be written.

        """
        try:
            path = user_path(output)
        except OSError as error:
            raise ConfigError(f'{quoted(output)}: {error.strerror}.') from error
        if path.suffix not in ('.yaml', '.yml'):
            raise ConfigError(f'-o {path}: name a parameter file, such as robot.yaml.')
        output_folder(str(path.parent))
        target = cls(path, *(path.with_suffix(ending) for ending in ('.html', '.md', '.png')))
        check_new(target)
        return target


class Survey(NamedTuple):
    """What a first look at a recording leaves."""

    thumbnails: list[Thumbnail]
    kept: list[RecordedFrame]  # a few, for comparison and pictures


def calibrate(options: argparse.Namespace) -> int:
    """Calibrate from a recording, and write settings and a report.

    Args:
        options: of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 0 if settings are written; 1 if the recording is refused.

    Raises:
        DepthClipError: settings, weights, recording or output cannot be used.

    """
    target = Target.of(options.output)
    depth, node = settings(options.config, options.weights, options.device)
    if depth.calibration:
        raise ConfigError(f'calibration: {quoted(depth.calibration)} is set already, but a '
                          "calibration starts from words alone. Set calibration: '' in the "
                          'file, or leave it out.')
    with closing(open_recording(options.source, options, node)) as recording:
        positions = range(0, len(recording), options.every)
        to_stderr(f'{recording.source}: {recording.described}, {len(recording)} frames')
        survey = _look(recording, [positions[i] for i in spread_evenly(
            len(positions), MOST_LOOKED_AT)])
        judge = partial(check, survey.thumbnails, timed=recording.timed,
                        unit_given=options.depth_unit > 0)
        if (refused := judge()) and not options.anyway:  # before the weights are loaded
            return _refuse(recording, refused)
        estimator = load_estimator(depth, node)
        comparison = compare(estimator, survey.kept)
        refused = refused or judge(comparison)
        if refused and not options.anyway:
            return _refuse(recording, refused)
        warnings = [f'The recording should have been refused ({cause}), and is used all the same '
                    f'(--anyway). {message}' for cause, message in refused]
        if not options.depth_unit and (doubt := unit_doubt(survey.thumbnails, comparison)):
            warnings.append(doubt)
        for warning in warnings:
            to_stderr(f'WARNING: {warning}')
        chosen = [positions[i] for i in spread_evenly(len(positions), options.max_frames)]
        fitted = fit(estimator, _samples(recording, chosen),
                     Options(variant=options.variant, source=Path(recording.source).name,
                             split=recording.split),
                     log=to_stderr)
        return _write(target, fitted, recording, survey, estimator, depth, node, warnings)


def open_recording(
    source: str, options: argparse.Namespace, node: NodeConfig, said: str = '',
) -> Recording:
    """Open a bag, a folder of images and depth, or a data set's training split.

    Args:
        source: its path.
        options: `image`, `depth`, `camera_info`, `depth_unit` and `tolerance`.
        node: for `rectified`.
        said: topic of depth that was not measured.

    Raises:
        DepthClipError: there is none, or it holds no images with depth.

    """
    try:
        path = user_path(source)
        path.stat()
    except OSError as error:
        raise RecordingError(f'{quoted(source, 200)}: there is no recording: '
                             f'{error.strerror}.') from error
    camera = _given_camera(options, node)
    if is_bag(path):
        from ..calibrate.bags import BagOptions, BagRecording
        return BagRecording(path, BagOptions(
            image=options.image, depth=options.depth, tolerance=options.tolerance,
            rectified=node.rectified, camera=camera, unit=options.depth_unit, said=said))
    if any((path / name).is_dir() for name in COLOR_FOLDERS):
        return FolderRecording(path, camera, options.tolerance, rectified=node.rectified,
                               unit=options.depth_unit)
    return _training_split(path, camera, options.protocol)


def _given_camera(options: argparse.Namespace, node: NodeConfig) -> CameraModel | None:
    if not options.camera_info:
        return None
    return camera_of(CameraCalibration.from_yaml(options.camera_info), rectified=node.rectified)


def _training_split(path: Path, camera: CameraModel | None, protocol: str) -> Recording:
    """Of a data set that `offline_eval` knows; that package may be missing."""
    none = (f'{path}: no recording. Expected a rosbag2 bag (a folder with metadata.yaml, .mcap, '
            f'.db3), a folder with {COLOR_FOLDERS[0]}/ and depth/')
    try:
        from offline_eval.datasets import Where, open_dataset
        from offline_eval.errors import EvaluationError
        from offline_eval.protocol import PROTOCOLS
    except ImportError as error:
        raise RecordingError(f'{none}; data sets need the package offline_eval, which is not '
                             'installed.') from error
    try:
        training = open_dataset(Where(path)).training()
    except EvaluationError as error:
        raise RecordingError(f'{none}, or a data set: {error}') from error
    if training is None:
        raise RecordingError(f'{path}: this data set has no training split here, and the test '
                             'split must not be calibrated on.')
    return DatasetRecording(training, camera, PROTOCOLS[protocol] if protocol else None)


def _look(recording: Recording, positions: Sequence[int]) -> Survey:
    """Reduce frames to thumbnails, and keep a few of them."""
    keep = {positions[i] for i in spread_evenly(len(positions), MOST_COMPARED)}
    survey = Survey([], [])
    for position, frame in with_progress('looking at', recording.read(positions), len(positions)):
        survey.thumbnails.append(Thumbnail.of(frame))
        if position in keep:
            survey.kept.append(frame)
    return survey


def with_progress(doing: str, frames: Iterator[_T], count: int) -> Iterator[_T]:
    """Hand on frames, and say now and then how many there were."""
    said = time.monotonic()
    for number, frame in enumerate(frames, 1):
        yield frame
        if time.monotonic() - said > _EVERY_SECONDS:
            said = time.monotonic()
            to_stderr(f'{doing} {number} of {count} frames')


def compare(estimator: DepthEstimator, frames: Sequence[RecordedFrame]) -> Comparison:
    """Measured depth beside what words say (with the focal length), on a coarse grid."""
    measured, said = [], []
    for frame in frames:
        measured.append(gather(frame.depth, *_GRID))
        said.append(estimator.predict(frame.rgb, _GRID, frame.camera).depth)
    return Comparison.of(np.array(measured), np.array(said), trained=estimator.weights.trained)


def _samples(recording: Recording, positions: Sequence[int]) -> Iterator[Sample]:
    owner = blocks([recording.moments[p] for p in positions])
    block = dict(zip(positions, owner.tolist(), strict=True))
    for position, frame in with_progress(
            'calibrating from', recording.read(positions), len(positions)):
        yield Sample(frame.rgb, frame.depth, frame.camera, block[position], frame.moment.time,
                     frame.digest)


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


def _write(
    target: Target, fitted: Fitted, recording: Recording, survey: Survey,
    estimator: DepthEstimator, depth: DepthConfig, node: NodeConfig, warnings: Sequence[str],
) -> int:
    """Write settings, calibration and report; say what came out."""
    _print_left_out(recording)
    frames = [survey.kept[i] for i in spread_evenly(len(survey.kept), EXAMPLES)]
    before = _depths(estimator, frames)
    try:
        stem = target.settings.stem
        file = fitted.calibration.save(target.settings.parent, stem).absolute()
        depth = depth.replace(
            calibration=str(file),
            reference_focal=fitted.calibration.about.config['reference_focal'])
        estimator.reconfigure(depth)
        after = _depths(estimator, frames)
        save(target.settings, _as_yaml(fitted, recording, depth, node))
        print(f'{target.settings} and {file.name}')
        context = Context(
            recording.source, recording.described,
            f'{estimator.weights.name} on {estimator.device}, {estimator.precision}',
            estimator.weights.trained, len(recording), views(survey.thumbnails),
            recording.left_out, warnings, str(target.settings))
        examples = [Example(frame.moment.name, frame.rgb, frame.depth, *depths)
                    for frame, *depths in zip(frames, before, after, strict=True)]
        save_page(target.html, contents(fitted, context, examples, target.picture.name))
        if examples:
            save(target.picture, draw_examples(examples))
    except OSError as error:
        raise ConfigError(f'{target.settings.parent}: cannot be written: {error.strerror}; is '
                          'the disk full?') from error
    print(f'report: {target.html}, {target.markdown}')
    print(fitted.verdict)
    numbers = ' '.join(f'{value:.5g}' for value in fitted.sensor_model)
    print(f"elevation_mapping's sensor model, a b c d e: {numbers}")
    if not estimator.weights.trained:
        print_untrained()
    return 0


def _depths(estimator: DepthEstimator, frames: Sequence[RecordedFrame]) -> list[Any]:
    return [estimator.predict(frame.rgb, (120, 160), frame.camera).depth for frame in frames]


def _as_yaml(
    fitted: Fitted, recording: Recording, depth: DepthConfig, node: NodeConfig,
) -> str:
    """A parameter file with all settings that are the robot's."""
    robot = {name: value for name, value in node.to_dict().items()
             if name not in _NOT_THE_ROBOTS}
    values = {**depth.to_dict(), **robot}
    document = yaml.safe_dump({'/**': {'ros__parameters': values}}, sort_keys=False,
                              allow_unicode=True)
    said = [f'Calibrated on {recording.source}: no longer zero-shot.', fitted.verdict,
            'The file that calibration names belongs to this one: move both, correct the path.']
    return ''.join(f'# {" ".join(line.split())}\n' for line in said) + document
