# SPDX-License-Identifier: Apache-2.0
"""`depthclip view`: how much each word answers in pictures, as in the paper's Figure 4."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..color import UNTRAINED
from ..core.errors import ConfigError, DataError
from ..overlay import answer_words, depth_words, scene_words
from .frames import named_frames
from .model import (
    given_camera,
    intrinsics_of,
    load_estimator,
    output_folder,
    print_untrained,
    save,
    settings,
    to_stderr,
)

if TYPE_CHECKING:
    import argparse

    from offline_eval.report.view import Spot

    from ..core.estimator import DepthPrediction

DPI = 130


def view(options: argparse.Namespace) -> int:
    """Write an annotated picture of every image.

    Args:
        options: of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 1 if any image could not be used; the others are written all the same.

    Raises:
        DepthClipError: settings, weights, or the folder cannot be used, or no image can.

    """
    from offline_eval.report import figures
    from offline_eval.report.view import view as draw
    from offline_eval.report.words import Answer
    figures.require()
    points = options.point or []
    if len(points) > len(figures.PATCHES):
        raise ConfigError(f'--point: {len(points)} points, but there are charts for '
                          f'{len(figures.PATCHES)} at most.')
    depth, node = settings(options.config, options.weights, options.device)
    camera = given_camera(options.fov, options.camera_info, rectified=node.rectified)
    folder = output_folder(options.output)
    estimator = load_estimator(depth, node)
    failures: list[str] = []
    written = 0
    for name, rgb in named_frames(
            options.images, options.max_images, lambda error: failures.append(str(error)),
            options.topic, to_stderr):
        try:
            height, width = rgb.shape[:2]
            prediction = estimator.predict(rgb, intrinsics=intrinsics_of(
                camera, width, height, rectified=node.rectified))
            spots = [_spot(prediction, point) for point in points]
        except DataError as error:
            failures.append(f'{name}: {error}')
            continue
        low, high = depth.depth_span
        ratio = prediction.focal_ratio
        label = ', '.join(filter(None, (
            '' if estimator.weights.trained else UNTRAINED, name, scene_words(prediction))))
        path = folder / f'{written + 1:03d}_{re.sub(r"[^A-Za-z0-9.-]", "_", Path(name).stem)}.png'
        with figures.look():
            stream = io.BytesIO()
            draw(Answer.of(rgb, prediction), depth.tokens,
                 prediction.word_depths(depth), (low * ratio, high * ratio), label,
                 spots).savefig(stream, format='png', dpi=DPI)
        save(path, stream.getvalue())
        written += 1
        print(f'{path}: {label}', *(
            f'  {spot.said}: '.replace('\n', ' ')
            + answer_words(prediction, spot.row, spot.column, depth.tokens)
            for spot in spots), sep='\n', flush=True)
    if not written:
        raise ConfigError(f'no image could be used: {"; ".join(failures[:3])}')
    if not estimator.weights.trained:
        print_untrained()
    for failure in failures:
        to_stderr(f'not used: {failure}')
    return 1 if failures else 0


def _spot(prediction: DepthPrediction, point: tuple[float, float]) -> Spot:
    """The patch that a pixel lies in, and what is said of it."""
    from offline_eval.report.view import Spot
    row, column = prediction.patch_at(*point)
    return Spot(row, column, depth_words(prediction, row, column))
