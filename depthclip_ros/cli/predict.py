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
    colorize,
    side_by_side,
    write_note,
    write_picture,
    write_warning,
)
from ..core.errors import DataError, ImageError
from ..node.image_io import depth_values
from ..sources.pictures import picture_files, read_picture
from .model import (
    given_camera,
    load_estimator,
    output_folder,
    print_untrained,
    settings,
)

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from numpy.typing import NDArray

    from ..core.estimator import DepthEstimator, DepthPrediction


def predict_files(options: argparse.Namespace) -> int:
    """Write depth, colours and patch map of every image.

    Returns:
        Exit code: 1 if any image could not be read; the others are written all the same.

    Raises:
        DepthClipError: the settings, the weights or the output folder cannot be used.

    """
    depth_config, node_config = settings(options.config, options.weights, options.device)
    camera = given_camera(options, rectified=node_config.rectified)
    failures: list[str] = []
    files = [file for path in options.paths for file in _files(path, failures)]
    folder = output_folder(options.output)
    estimator = load_estimator(depth_config, node_config)
    begin, names = time.perf_counter(), set[str]()
    for path in files:
        try:
            rgb = np.ascontiguousarray(read_picture(path)[..., ::-1])
            start = time.perf_counter()
            intrinsics = camera(rgb.shape[1], rgb.shape[0])
            prediction = estimator.predict(rgb, intrinsics=intrinsics)
            milliseconds = 1e3 * (time.perf_counter() - start)
        except DataError as error:
            failures.append(str(error) if str(path) in str(error) else f'{path}: {error}')
            continue
        name, number = path.stem, 2
        while name in names:  # of another folder
            name, number = f'{path.stem}_{number}', number + 1
        names.add(name)
        lost = _write(estimator, prediction, folder / name)
        note = f', x {prediction.focal_ratio:.3f} for the focal length' if intrinsics else ''
        note += f'; {lost} pixels do not fit 16 bits' if lost else ''
        print(f'{path} -> {name}_*: {milliseconds:.0f} ms, {_in_words(prediction.depth)}{note}',
              flush=True)
    print(f'{len(names)} of {len(files)} images in {1e3 * (time.perf_counter() - begin):.0f} ms '
          f'with reading and writing, in {folder}')
    if not estimator.weights.trained:
        print_untrained()
    if failures:
        print(f'{len(failures)} of the inputs could not be used:', *failures, sep='\n  ',
              file=sys.stderr)
    return 1 if failures else 0


def _files(path: str, failures: list[str]) -> list[Path]:
    try:
        return picture_files([path])
    except ImageError as error:
        failures.append(str(error))
        return []


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
    side = max(1, 640 // patches.shape[1])
    patch_picture = np.kron(
        colorize(patches, low, high), np.ones((side, side, 1), np.uint8))
    if warning:
        write_warning(patch_picture, warning)
    if estimator.label:
        write_note(patch_picture, estimator.label)
    write_picture(f'{target}_depth.png', millimetres)
    write_picture(f'{target}_color.png', side_by_side(
        prediction.depth, low, high, caption=estimator.label, warning=warning))
    write_picture(f'{target}_patches.png', patch_picture)
    np.save(f'{target}_patches.npy', patches)
    return lost
