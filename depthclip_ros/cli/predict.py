# SPDX-License-Identifier: Apache-2.0
"""`depthclip predict`: depth of image files, without ROS."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from ..color import (
    UNTRAINED,
    color_range,
    enlarge,
    with_bar,
    write_note,
    write_picture,
    write_warning,
)
from ..core.errors import DataError, DepthClipError, ImageError
from ..node.image_io import depth_values
from ..sources.pictures import picture_files, read_picture
from .model import (
    given_camera,
    intrinsics_of,
    load_estimator,
    output_folder,
    print_untrained,
    settings,
    to_stderr,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ..core.estimator import DepthEstimator, DepthPrediction
    from ..sources.camera_info import CameraCalibration


def predict_files(
    paths: Sequence[str], output: str, *, config: str | None = None, weights: str = '',
    device: str = '', fov: float | None = None, camera_info: str | None = None,
) -> int:
    """Write depth, colours and patch map of every image.

    Args:
        paths: image files and folders.
        output: folder for the results, made if it is not there.
        config: ROS parameter file; None for the defaults.
        weights: wins over the file's, where given.
        device: wins over the file's, where given.
        fov: horizontal field of view of the camera in degrees; None if it is not known.
        camera_info: calibration of the camera, a file; None if there is none.

    Returns:
        Exit code: 1 if any image could not be read; the others are written all the same.

    Raises:
        DepthClipError: the settings, the weights or the output folder cannot be used.

    """
    depth_config, node_config = settings(config, weights, device)
    camera = given_camera(fov, camera_info, rectified=node_config.rectified)
    files, failures = _expand(paths)
    unread = 0
    folder = output_folder(output)
    estimator = load_estimator(depth_config, node_config)
    start = time.perf_counter()
    for path, name in zip(files, _distinct_names(files), strict=True):
        failure = _failure_of(
            estimator, path, folder / name, camera, rectified=node_config.rectified)
        if failure is not None:
            failures.append(failure)
            unread += 1
    seconds = time.perf_counter() - start
    print(f'{len(files) - unread} of {len(files)} images in {1e3 * seconds:.0f} ms with reading '
          f'and writing, in {folder}')
    if not estimator.weights.trained:
        print_untrained()
    return _report(failures)


def _expand(paths: Sequence[str]) -> tuple[list[Path], list[DepthClipError]]:
    """Files of all paths; what is missing does not stop the others."""
    files: list[Path] = []
    failures: list[DepthClipError] = []
    for path in paths:
        found = _files_or_error(path)
        if isinstance(found, ImageError):
            failures.append(found)
        else:
            files.extend(found)
    return files, failures


def _files_or_error(path: str) -> list[Path] | ImageError:
    try:
        return picture_files([path], to_stderr)
    except ImageError as error:
        return error


def _distinct_names(files: Sequence[Path]) -> list[str]:
    """One name for every file: its stem, with a number where several have the same."""
    taken: set[str] = set()
    names = []
    for path in files:
        name, number = path.stem, 2
        while name in taken:
            name, number = f'{path.stem}_{number}', number + 1
        taken.add(name)
        names.append(name)
    return names


def _failure_of(
    estimator: DepthEstimator, path: Path, target: Path,
    camera: CameraCalibration | float | None, *, rectified: bool,
) -> DataError | None:
    try:
        _predict_file(estimator, path, target, camera, rectified=rectified)
    except ImageError as error:
        return error
    except DataError as error:
        return type(error)(error.condition, f'{path}: {error}')
    return None


def _predict_file(
    estimator: DepthEstimator, path: Path, target: Path,
    camera: CameraCalibration | float | None, *, rectified: bool,
) -> None:
    picture = read_picture(path)
    rgb = np.ascontiguousarray(picture[..., ::-1])
    start = time.perf_counter()
    height, width = rgb.shape[:2]
    intrinsics = intrinsics_of(camera, width, height, rectified=rectified)
    prediction = estimator.predict(rgb, intrinsics=intrinsics)
    milliseconds = 1e3 * (time.perf_counter() - start)
    lost = _write(estimator, prediction, target)
    note = f', x {prediction.focal_ratio:.3f} for the focal length' if intrinsics else ''
    note += f'; {lost} pixels do not fit 16 bits' if lost else ''
    print(f'{path} -> {target.name}_*: {milliseconds:.0f} ms, {_in_words(prediction.depth)}{note}',
          flush=True)


def _in_words(depth: NDArray[np.float32]) -> str:
    known = depth[np.isfinite(depth)]
    if not known.size:
        return 'no depth'
    low, middle, high = np.percentile(known, (0, 50, 100))
    text = f'depth {low:.2f} to {high:.2f} m, median {middle:.2f} m'
    missing = 100 * (1 - known.size / depth.size)
    return f'{text}, none in {missing:.0f} % of the picture' if missing else text


def _write(estimator: DepthEstimator, prediction: DepthPrediction, target: Path) -> int:
    """Write the four files of one image; returns the number of pixels 16 bits cannot hold."""
    low, high = color_range(estimator.config.depth_span)
    warning = '' if estimator.weights.trained else UNTRAINED
    millimetres, lost = depth_values(prediction.depth, '16UC1')
    patches = prediction.patch_depth
    patch_picture = enlarge(patches, low, high, max(1, 640 // patches.shape[1]))
    if warning:
        write_warning(patch_picture, warning)
    if estimator.label:
        write_note(patch_picture, estimator.label)
    write_picture(f'{target}_depth.png', millimetres)
    write_picture(f'{target}_color.png', with_bar(
        prediction.depth, low, high, estimator.label, warning))
    write_picture(f'{target}_patches.png', patch_picture)
    np.save(f'{target}_patches.npy', patches)
    return lost


def _report(failures: Sequence[DepthClipError]) -> int:
    if not failures:
        return 0
    print(f'{len(failures)} of the inputs could not be used:', file=sys.stderr)
    for error in failures:
        print(f'  {error}', file=sys.stderr)
    return 1
