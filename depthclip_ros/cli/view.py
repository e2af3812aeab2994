# SPDX-License-Identifier: Apache-2.0
"""`depthclip view`: how much each word answers in pictures, as in the paper's Figure 4."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..color import UNTRAINED
from ..core.errors import ConfigError, DataError, ImageError
from ..core.scenes import mixed_bins
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
    from collections.abc import Sequence

    from offline_eval.report.view import Spot

    from ..core.config import DepthConfig
    from ..core.estimator import DepthPrediction
    from ..core.scenes import Scene

DPI = 130
_ANSWERS = 3  # words of a point that are printed


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
            spots = [_spot(prediction, point, depth) for point in points]
        except DataError as error:
            failures.append(f'{name}: {error}')
            continue
        low, high = depth.depth_span
        ratio = prediction.focal_ratio
        label = ', '.join(filter(None, (
            '' if estimator.weights.trained else UNTRAINED, name, _scene(prediction.scene))))
        path = folder / f'{written + 1:03d}_{re.sub(r"[^A-Za-z0-9.-]", "_", Path(name).stem)}.png'
        with figures.look():
            stream = io.BytesIO()
            draw(Answer.of(rgb, prediction), depth.tokens,
                 [b * ratio for b in _bins(prediction.scene, depth)],
                 (low * ratio, high * ratio), label, spots).savefig(stream, format='png', dpi=DPI)
        save(path, stream.getvalue())
        written += 1
        print(f'{path}: {label}', *(
            f'  {spot.said}: {_answers(prediction, spot, depth)}'.replace('\n', ' ')
            for spot in spots), sep='\n', flush=True)
    if not written:
        raise ConfigError(f'no image could be used: {"; ".join(failures[:3])}')
    if not estimator.weights.trained:
        print_untrained()
    for failure in failures:
        to_stderr(f'not used: {failure}')
    return 1 if failures else 0


def _spot(prediction: DepthPrediction, point: tuple[float, float], config: DepthConfig) -> Spot:
    """The patch that a pixel lies in, and what is said of it."""
    from offline_eval.report.view import Spot
    (x, y), (height, width), window = point, prediction.image_size, prediction.window
    rows, columns = prediction.patch_depth.shape
    row = int(np.floor((y + 0.5 - window.y) / window.height * rows))
    column = int(np.floor((x + 0.5 - window.x) / window.width * columns))
    if not (0 <= x < width and 0 <= y < height):
        raise ImageError('no such point', f'the point {x:g},{y:g} is outside of its {width} x '
                         f'{height} pixels.')
    if not (0 <= row < rows and 0 <= column < columns):
        raise ImageError('no such point', f'the point {x:g},{y:g} is in what input_fit: '
                         f'{config.input_fit} cuts off.')
    said = f'{prediction.patch_depth[row, column]:.2f} m'
    if prediction.patch_stddev is not None:
        said += f' ± {prediction.patch_stddev[row, column]:.2f} m'
    return Spot(row, column, f'{said}\n(spread {prediction.spread[row, column]:.2f} m)')


def _answers(prediction: DepthPrediction, spot: Spot, config: DepthConfig) -> str:
    weights = prediction.weights[:, spot.row, spot.column]
    return ', '.join(f'{config.tokens[k]} {weights[k]:.0%}'
                     for k in np.argsort(-weights, kind='stable')[:_ANSWERS])


def _bins(scene: Scene | None, config: DepthConfig) -> Sequence[float]:
    """Metres of each word in this image."""
    if scene is None:
        return config.bins
    mixed = mixed_bins(torch.from_numpy(scene.probabilities)[None], torch.tensor([scene.plain]),
                       torch.tensor(config.bins_of_scenes()), torch.tensor(config.bins))
    return [float(metres) for metres in mixed[0]]


def _scene(scene: Scene | None) -> str:
    if scene is None:
        return ''
    best = float(np.max(scene.probabilities))
    return f'scene: {scene.name or "uncertain"} ({best:.0%})'
