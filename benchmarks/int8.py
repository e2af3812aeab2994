# SPDX-License-Identifier: Apache-2.0
"""How far depth in 8 bits, and in bfloat16, is from float32's.

RN50 with fixed random weights on synthetic images (and pictures of your own), where every patch
says something else; the demo model on rendered rooms that it never saw, beside the truth, too.
Made of rendered rooms, as `depthclip quantize` does it; with weights in 8 bits, and in 7 as on a
processor without VNNI.

    python benchmarks/int8.py                      # writes benchmarks/results/rooms/int8.json
    python benchmarks/int8.py --pictures FOLDER    # these, cropped as the official code does
    python benchmarks/int8.py --quick              # three rooms, the demo model: does it run?
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

from clip_standin import state_dict, synthetic_rgb  # noqa: E402

from benchmarks import machine, report, rooms  # noqa: E402
from depthclip_ros.cli import quantize  # noqa: E402
from depthclip_ros.core import DepthConfig, DepthEstimator, device, int8  # noqa: E402
from depthclip_ros.sources.pictures import picture_files, read_picture  # noqa: E402

CROP = np.s_[56:472, 60:604]  # the official code's, of 480 x 640
SEVEN_BITS = 63


def estimators(config: DepthConfig, weights: Any, folder: str) -> Iterator[
        tuple[str, DepthEstimator]]:
    """Each precision that this processor has, the exact one first."""
    def build(precision: str) -> DepthEstimator:
        return DepthEstimator(config.replace(precision=precision), weights, 'cpu',
                              cache_dir=folder, log=_say)

    exact = build('float32')
    yield 'float32', exact
    if not device.resolve_precision('bfloat16', exact.device, _say).why:
        yield 'bfloat16', build('bfloat16')
    pictures = quantize.rooms()
    exact.quantize(pictures, 'rendered rooms')
    yield 'int8', build('int8')
    found, int8.greatest_weight = int8.greatest_weight, lambda: SEVEN_BITS
    exact.quantize(pictures, 'rendered rooms')
    yield 'int8, weights in 7 bits', build('int8')
    int8.greatest_weight = found


def rows(
    what: str, models: Sequence[tuple[str, DepthEstimator]],
    images: Sequence[NDArray[np.uint8]], truth: Sequence[torch.Tensor] = (),
) -> list[dict[str, Any]]:
    """Differences from the first model, over all pixels of all images."""
    depths = [[model.predict(image).depth for image in images] for _, model in models]
    scores = [np.mean([rooms.scores(torch.from_numpy(depth), true) for depth, true in zip(
        of_one, truth, strict=True)], axis=0) if truth else None for of_one in depths]
    found = []
    for (name, model), of_one, score in zip(models[1:], depths[1:], scores[1:], strict=True):
        difference = 1e3 * np.concatenate([
            abs(a - b).ravel() for a, b in zip(of_one, depths[0], strict=True)])
        median, p90 = np.percentile(difference, (50, 90))
        row = {'images': what, 'count': len(images), 'precision': name, 'runs': model.precision,
               'median [mm]': median, 'p90 [mm]': p90, 'max [mm]': difference.max()}
        if score is not None:
            row |= {'rmse more [%]': 100 * (score[0] / scores[0][0] - 1),
                    'delta1 more': score[1] - scores[0][1]}
        found.append(row)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both models on their images."""
    result = {'what': 'Depth in 8 bits and in bfloat16 beside float32', **machine.describe()}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        demo = list(estimators(DepthConfig.from_yaml(ROOT / 'config/demo.yaml'), 'demo', folder))
        views = list(rooms.one_each(rooms.TEST, options.rooms))
        found += rows('rendered rooms, demo model', demo, [view.rgb for view in views],
                      [view.depth for view in views])
        if not options.quick:
            config = DepthConfig.from_yaml(ROOT / 'config/nyu_paper.yaml').replace(
                flip_average=False)
            large = list(estimators(config, state_dict(0), folder))
            found += rows('synthetic images, RN50 with fixed weights', large,
                          [synthetic_rgb(seed)[CROP] for seed in range(3)])
            if options.pictures:
                found += rows('real pictures, RN50 with fixed weights', large, [
                    np.ascontiguousarray(read_picture(path)[..., ::-1][CROP])
                    for path in picture_files(options.pictures)])
    return {**result, 'differences': found}


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rooms', type=int, default=150)
    parser.add_argument('--pictures', nargs='+', default=[], help='of 640 x 480 pixels')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--output', type=Path, default=ROOT / 'benchmarks/results/rooms/int8.json')
    options = parser.parse_args()
    if options.quick:
        options.rooms, options.output = 3, None
    print(report.write(options.output, measure(options)))


if __name__ == '__main__':
    main()
