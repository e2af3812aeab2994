# SPDX-License-Identifier: Apache-2.0
"""How large the network's input has to be: error of depth against milliseconds an image.

Error: the demo model on rendered rooms that it never saw (it was trained at 192 x 256), as it is,
with one scale fitted, and with a calibration of its own; both are fitted to frames of other rooms.
Time: the demo model's, and that of RN50 with random weights, of one 640 x 480 image, all in turns
in one process, on one thread and by the processor's clock.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_standin import state_dict, synthetic_rgb, tiny_state_dict

from benchmarks import rooms
from benchmarks.machine import ROOT
from benchmarks.timing import Contender, processor, race, ratio
from depthclip_ros.calibrate.fit import Options, Sample, fit
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.geometry import CameraModel
from depthclip_ros.sim import SimCamera

Size = tuple[int, int]
# (height, width), multiples of the stride 32, as near to 4:3 as these come: 320 and 240 lines have
# no whole ones.
SIZES = ((480, 640), (384, 512), (320, 416), (288, 384), (256, 352), (224, 288), (192, 256),
         (128, 160), (96, 128))
CALIBRATION = 41000  # first of the rooms
ROOMS, FRAMES_EACH = 10, 6  # of the calibration


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Every size on every room; then all clocks in turns."""
    torch.set_num_threads(1)
    sizes = SIZES[-3::2] if quick else SIZES
    config = DepthConfig.from_yaml(ROOT / 'config/demo.yaml')
    frames = calibration_frames(ROOMS, 2 if quick else FRAMES_EACH)
    views = list(rooms.one_each(rooms.TEST, 3 if quick else 150))
    rows = [row for size in sizes for row in _errors(config, size, frames, views)]
    weights = tiny_state_dict() if quick else state_dict(0)
    for name, settings, of_model in (
            ('demo', config, 'demo'),
            ('RN50', DepthConfig(backbone='auto', precision=config.precision), weights)):
        rows += _times(name, settings, of_model, sizes, 3 if quick else 8)
    return rows


def calibration_frames(count: int, each: int) -> list[Sample]:
    """So many frames of each of a few rooms; a room is a sequence."""
    simulated = SimCamera()
    camera = CameraModel.pinhole(
        simulated.width, simulated.height, simulated.fx, simulated.fy, simulated.cx, simulated.cy)
    found = []
    for i in range(count * each):
        seen = rooms.view(CALIBRATION + i // each, 3.1 * (i % each))
        found.append(Sample(seen.rgb, seen.depth.numpy(), camera, i // each, float(i)))
    return found


def _errors(
    config: DepthConfig, size: Size, frames: Sequence[Sample], views: Sequence[rooms.View],
) -> list[dict[str, Any]]:
    """The demo model at one size in three ways."""
    config = config.replace(input_height=size[0], input_width=size[1])
    zero_shot = DepthEstimator(config, 'demo', 'cpu')
    scale = float(np.exp(np.median([
        np.median(np.log(frame.depth / zero_shot.predict(frame.rgb).depth)) for frame in frames])))
    fitted = fit(zero_shot, frames, Options(source='rendered rooms'), lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        path = fitted.calibration.save(Path(folder), 'calibration')
        calibrated = DepthEstimator(config.replace(calibration=str(path)), 'demo', 'cpu')
    truth = [view.depth for view in views]
    depths = [zero_shot.predict(view.rgb).depth for view in views]
    corrected = [calibrated.predict(view.rgb).depth for view in views]
    return [
        {'input': _named(size), 'way': way,
         **dict(zip(rooms.METRICS, rooms.mean_scores(found, truth), strict=True))}
        for way, found in (
            ('zero-shot', depths),
            (f'scale {scale:.2f} fitted', [scale * depth for depth in depths]),
            (f'calibrated: {fitted.variant}', corrected))]


def _times(
    name: str, config: DepthConfig, weights: Any, sizes: Sequence[Size], rounds: int,
) -> list[dict[str, Any]]:
    """Milliseconds of a network at every size."""
    image = synthetic_rgb(0)
    contenders = [Contender(f'{name}, {_named(size)}', processor(partial(DepthEstimator(
        config.replace(input_height=size[0], input_width=size[1]), weights, 'cpu').predict,
        image))) for size in sizes]
    rows = race(contenders, rounds)
    return [{**row, 'of the largest': ratio(contender, contenders[0])}
            for row, contender in zip(rows, contenders, strict=True)]


def _named(size: Size) -> str:
    return f'{size[0]} x {size[1]}'
