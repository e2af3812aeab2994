# SPDX-License-Identifier: Apache-2.0
"""What other features and read-outs make of the depth of rendered rooms, and what they cost.

The demo model on rooms that it never saw. It was trained so that its `maskclip` features mean
distances: the others stand beside it here for what they are, not for what OpenAI's CLIP makes of
them. Each features' temperature is the best one on other rooms.

    python benchmarks/readouts.py                  # writes benchmarks/results/rooms/readouts.json
    python benchmarks/readouts.py --quick          # three rooms: does it run?
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import machine, report, rooms  # noqa: E402
from benchmarks.crops import CropFeatures  # noqa: E402
from benchmarks.estimator import Contender, race  # noqa: E402
from depthclip_ros.core import DepthConfig, DepthEstimator  # noqa: E402
from depthclip_ros.core.projection import (  # noqa: E402
    best_bins,
    bin_weights,
    combine_bins,
    smooth,
    upsample,
)
from depthclip_ros.core.weights import cache_folder, load  # noqa: E402

FEATURES = ('maskclip', 'reference', 'attnpool', 'crops')
READ_OUTS = ('mean', 'argmax')
SMOOTHING = (0.0, 0.5, 1.0, 2.0)
UPSAMPLING = ('bilinear', 'centered', 'patch')
TEMPERATURES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0,
                128.0, 1000.0)


class Model:
    """One estimator, whose similarities are read out in all ways."""

    def __init__(self, config: DepthConfig, features: str) -> None:
        """Load the demo model."""
        self.features = features
        weights = load('demo', config.backbone, cache_folder(), print)
        known = config.features if features == 'crops' else features
        self.estimator = DepthEstimator(
            config.replace(features=known, temperature=1.0), weights, 'cpu')
        if features == 'crops':
            self.estimator._encoder = CropFeatures(weights[1])  # noqa: SLF001
        self._bins = torch.tensor(config.bins)
        self.temperature = 1.0

    def see(self, view: rooms.View) -> Tensor:
        """(1, K, h, w) logits at temperature 1."""
        return self.estimator.logits(self.estimator.maps([view.rgb]).features)[0]

    def choose_temperature(self, views: Sequence[rooms.View]) -> None:
        """Take the temperature of the least rmse."""
        errors = np.zeros(len(TEMPERATURES))
        for view in views:
            logits = self.see(view)
            for i, self.temperature in enumerate(TEMPERATURES):
                depth = self.depth(logits, 'mean', 0.0, UPSAMPLING[0], view)
                errors[i] += rooms.scores(depth, view.depth)[0]
        self.temperature = TEMPERATURES[int(errors.argmin())]

    def depth(
        self, logits: Tensor, read_out: str, sigma: float, upsampling: str, view: rooms.View,
    ) -> Tensor:
        """(H, W) metres: the estimator's last steps."""
        patches = best_bins(logits, self._bins) if read_out == 'argmax' else \
            combine_bins(bin_weights(logits / self.temperature), self._bins)
        height, width = view.depth.shape
        return upsample(smooth(patches, sigma), (height, width), upsampling)[0]


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every combination on every room."""
    result = {'what': 'Features and read-outs of the demo model on rendered rooms',
              **machine.describe()}
    torch.set_num_threads(options.threads)
    config = DepthConfig.from_yaml(ROOT / 'config/demo.yaml')
    models = [Model(config, features) for features in FEATURES]
    chosen_on = list(rooms.one_each(rooms.CHOICE, options.choice))
    for model in models:
        model.choose_temperature(chosen_on)
    ways = list(itertools.product(FEATURES, READ_OUTS, SMOOTHING, UPSAMPLING))
    found: dict[Any, list[list[float]]] = {way: [] for way in ways}
    mean = rooms.mean_map(chosen_on)
    controls: dict[str, list[list[float]]] = {'mean map of other rooms': [], 'best constant': []}
    constants = torch.arange(0.5, 6.01, 0.1)
    of_constants = []
    for seen in rooms.one_each(rooms.TEST, options.rooms):
        for model in models:
            logits = model.see(seen)
            for way in ways:
                if way[0] == model.features:
                    found[way].append(rooms.scores(model.depth(logits, *way[1:], seen),
                                                   seen.depth))
        controls['mean map of other rooms'].append(rooms.scores(mean, seen.depth))
        of_constants.append([rooms.scores(c.expand(seen.depth.shape), seen.depth)
                             for c in constants])
    best = int(np.mean(of_constants, axis=0)[:, 0].argmin())
    controls['best constant'] = [values[best] for values in of_constants]
    first = found[ways[0]]
    contenders = [Contender(model.features, rooms.busy(partial(
        model.estimator.predict, chosen_on[0].rgb))) for model in models]
    times = race(contenders, options.rounds)
    return {
        **result, 'threads': options.threads, 'rooms': options.rooms,
        'rooms for the temperature': options.choice, 'input': [
            config.input_height, config.input_width],
        'features': [{
            'features': model.features, 'temperature': model.temperature,
            'p50 [ms]': time['p50 [ms]'],
            'times the first': time['p50 [ms]'] / times[0]['p50 [ms]'],
        } for model, time in zip(models, times, strict=True)],
        'read-outs': [{**dict(zip(('features', 'read_out', 'smoothing', 'upsampling'), way,
                                  strict=True)), **rooms.row(values, first)}
                      for way, values in found.items()],
        'controls': [{'control': name, **rooms.row(values, first)}
                     for name, values in controls.items()],
    }


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rooms', type=int, default=300)
    parser.add_argument('--choice', type=int, default=40, help='rooms for the temperature')
    parser.add_argument('--rounds', type=int, default=20, help='of the clock')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--output', type=Path,
                        default=ROOT / 'benchmarks/results/rooms/readouts.json')
    options = parser.parse_args()
    if options.quick:
        options.rooms = options.choice = options.rounds = 3
        options.output = None
    print(report.write(options.output, measure(options)))


if __name__ == '__main__':
    main()
