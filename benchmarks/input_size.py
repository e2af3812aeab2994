# SPDX-License-Identifier: Apache-2.0
"""How large the network's input has to be: error of depth against milliseconds an image.

Error: the demo model on rendered rooms that it never saw, at sizes from 96 x 128 to 480 x 640 (it
was trained at 192 x 256), as it is, with one scale fitted, and with a calibration of its own; both
are fitted to 60 frames of 10 other rooms. Time: the demo model's, and that of RN50 with random
weights, all in turns in one process, on one core and by the processor's clock.

    python benchmarks/input_size.py              # writes benchmarks/results/rooms/input_size.json
    python benchmarks/input_size.py --quick      # two sizes, three rooms: does it run?
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

from clip_standin import state_dict, synthetic_rgb, tiny_state_dict  # noqa: E402

from benchmarks import machine, report, rooms  # noqa: E402
from benchmarks.estimator import Contender, race  # noqa: E402
from depthclip_ros.calibrate.fit import Options, Sample, fit  # noqa: E402
from depthclip_ros.core import DepthConfig, DepthEstimator  # noqa: E402
from depthclip_ros.core.geometry import CameraModel  # noqa: E402
from depthclip_ros.sim import SimCamera  # noqa: E402

Size = tuple[int, int]
# (height, width), multiples of the stride 32, as near to 4:3 as these come: 320 and 240 lines have
# no whole ones.
SIZES = ((192, 256), (480, 640), (384, 512), (320, 416), (288, 384), (256, 352), (224, 288),
         (128, 160), (96, 128))
CALIBRATION = 41000  # first of the rooms
FRAMES, ROOMS = 60, 10


def samples(frames: int, of_rooms: int) -> list[Sample]:
    """Frames of a few rooms, each room a sequence."""
    each = frames // of_rooms
    simulated = SimCamera()
    camera = CameraModel.pinhole(
        simulated.width, simulated.height, simulated.fx, simulated.fy, simulated.cx, simulated.cy)
    found = []
    for i in range(frames):
        seen = rooms.view(CALIBRATION + i // each, 3.1 * (i % each))
        found.append(Sample(seen.rgb, seen.depth.numpy(), camera, i // each, float(i)))
    return found


class Model:
    """The demo model at one size, in the three ways."""

    def __init__(self, config: DepthConfig, size: Size) -> None:
        """Load it."""
        self.size = size
        self.zero_shot = DepthEstimator(
            config.replace(input_height=size[0], input_width=size[1]), 'demo', 'cpu')
        self.calibrated = self.zero_shot
        self.scale = 1.0
        self.fitted: dict[str, Any] = {}

    def fit_scale(self, frames: Sequence[Sample]) -> None:
        """Fit one scale."""
        ratios = [np.median(np.log(frame.depth / self.zero_shot.predict(frame.rgb).depth))
                  for frame in frames]
        self.scale = float(np.exp(np.median(ratios)))

    def calibrate(self, frames: Sequence[Sample], folder: Path) -> None:
        """Fit what held-out rooms show to be worth it; if nothing is, zero-shot depth stays."""
        options = Options(source='ten rendered rooms', learning_curve=())
        fitted = fit(self.zero_shot, frames, options, lambda _: None)
        self.fitted = {'variant': fitted.variant, 'improved': fitted.improved}
        path = fitted.calibration.save(folder, f'{self.size[0]}x{self.size[1]}')
        self.calibrated = DepthEstimator(
            self.zero_shot.config.replace(calibration=str(path)), 'demo', 'cpu')

    def score(self, view: rooms.View) -> dict[str, list[float]]:
        """Scores of every way on one image."""
        depth = torch.from_numpy(self.zero_shot.predict(view.rgb).depth)
        found = {'zero-shot': rooms.scores(depth, view.depth),
                 'one scale fitted': rooms.scores(self.scale * depth, view.depth)}
        if self.fitted:
            depth = torch.from_numpy(self.calibrated.predict(view.rgb).depth)
            found['calibrated'] = rooms.scores(depth, view.depth)
        return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every size on every room; then all clocks in turns."""
    result = {'what': "Size of the network's input: error and time", **machine.describe()}
    torch.set_num_threads(options.threads)
    config = DepthConfig.from_yaml(ROOT / 'config/demo.yaml')
    models = [Model(config, size) for size in options.sizes]
    with tempfile.TemporaryDirectory() as folder:
        frames = samples(options.frames, options.calibration_rooms)
        for model in models:
            model.fit_scale(frames)
            if not options.no_calibration:
                model.calibrate(frames, Path(folder))
        found: list[list[dict[str, list[float]]]] = [[] for _ in models]
        for view in rooms.one_each(rooms.TEST, options.rooms):
            for scores, model in zip(found, models, strict=True):
                scores.append(model.score(view))
        times = clocks(options, config, models)
    first = found[0]
    return {
        **result, 'threads': options.threads, 'rooms': options.rooms,
        'calibration frames': options.frames, 'calibration rooms': options.calibration_rooms,
        'input sizes': [{
            'input': list(model.size),
            **{way: rooms.row([scores[way] for scores in of_one],
                              [scores['zero-shot'] for scores in first])
               for way in of_one[0]},
            'scale': model.scale, 'fit': model.fitted, **time,
        } for model, of_one, time in zip(models, found, times, strict=True)]}


def clocks(
    options: argparse.Namespace, config: DepthConfig, models: Sequence[Model],
) -> list[dict[str, Any]]:
    """Milliseconds of both networks at every size, RGB to depth, of one 640 x 480 image."""
    image = synthetic_rgb(0)
    weights = tiny_state_dict() if options.quick else state_dict(0)
    large = [DepthEstimator(DepthConfig(
        backbone='auto', precision=config.precision, input_height=height, input_width=width),
        weights, 'cpu') for height, width in options.sizes]
    contenders = [
        Contender(name, rooms.busy(partial(estimator.predict, image)))
        for name, estimators in (('demo', [model.zero_shot for model in models]),
                                 ('RN50', large)) for estimator in estimators]
    rows = race(contenders, options.rounds)
    count = len(models)
    largest = max(range(count), key=lambda i: models[i].size)
    return [{f'{rows[j + i]["name"]} {key}': value for j in (0, count) for key, value in (
        ('p50 [ms]', rows[j + i]['p50 [ms]']),
        ('part of the largest', rows[j + i]['p50 [ms]'] / rows[j + largest]['p50 [ms]']))}
        for i in range(count)]


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rooms', type=int, default=150)
    parser.add_argument('--frames', type=int, default=FRAMES, help='of the calibration')
    parser.add_argument('--calibration-rooms', type=int, default=ROOMS)
    parser.add_argument('--no-calibration', action='store_true', help='only the scale is fitted')
    parser.add_argument('--rounds', type=int, default=8, help='of the clock')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--output', type=Path,
                        default=ROOT / 'benchmarks/results/rooms/input_size.json')
    options = parser.parse_args()
    options.sizes = SIZES
    if options.quick:
        options.sizes = SIZES[::8]
        options.rooms = options.rounds = 3
        options.output = None
    print(report.write(options.output, measure(options)))


if __name__ == '__main__':
    main()
