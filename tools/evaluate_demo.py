# SPDX-License-Identifier: Apache-2.0
"""Measure the demo model on held-out rooms, beside everything that must be worse.

    python tools/evaluate_demo.py --weights build/demo/demo.pt --json build/demo/evaluation.json

Each image is a 640 x 480 picture of a room that training never saw. Metrics are those of
depthclip_ros.evaluation, as means over images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import demo_sentences as language  # noqa: E402

from benchmarks import rooms  # noqa: E402
from depthclip_ros.core import DepthConfig, DepthEstimator  # noqa: E402
from depthclip_ros.core.openai_clip import import_clip  # noqa: E402
from depthclip_ros.core.preprocess import NORMALIZATIONS  # noqa: E402
from depthclip_ros.core.readout import read_out, upsample  # noqa: E402
from depthclip_ros.core.weights import read_file  # noqa: E402
from depthclip_ros.evaluation.metrics import (  # noqa: E402
    Float32,
    ScaledScores,
    Sums,
    best_rows,
    by_name,
    metrics_of,
)
from depthclip_ros.sim import KINDS, Frame  # noqa: E402

METRICS = ('d1', 'rel', 'rmse')  # of the table
CONSTANTS = np.arange(0.5, 6.01, 0.1)
# Words that have nothing to do with distance.
NEUTRAL = ('apple', 'guitar', 'purple', 'senate', 'whisper', 'velvet', 'october', 'seven',
           'justice', 'pepper')


def evaluate(
    config: DepthConfig, weights: Path, views: Sequence[Frame],
) -> dict[str, object]:
    """Every row of the table, the model's by kind of room, and its zero-shot rooms."""
    estimator = DepthEstimator(config, weights, 'cpu')
    random = DepthEstimator(config.replace(tokens=NEUTRAL), weights, 'cpu')
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(config.tokens)) for _ in range(10)]
    predictions = [estimator.predict(view.rgb) for view in views]
    rows = defaultdict(list)
    for i, (view, prediction) in enumerate(zip(views, predictions, strict=True)):
        truth, other_prediction = view.depth, predictions[i - len(views) // 2 - 1]
        rows['model'].append(rooms.scores(prediction.depth, truth))
        rows['mean of the bins'].append(
            rooms.scores(np.full_like(truth, np.mean(config.bins)), truth))
        rows['shuffled words'].append(np.mean([
            rooms.scores(_depth(prediction.logits[order], config, view), truth)
            for order in orders], axis=0))
        rows['random words'].append(rooms.scores(random.predict(view.rgb).depth, truth))
        rows['shuffled images'].append(rooms.scores(other_prediction.depth, truth))
    curve = np.mean([metrics_of(ScaledScores(1.0, view.depth.ravel()).score(CONSTANTS))
                     for view in views], axis=0)
    best = best_rows(curve)
    metres = by_name(CONSTANTS[best])
    by_kind = {kind: [s for s, view in zip(rows['model'], views, strict=True) if view.kind == kind]
               for kind in KINDS}
    return {'images': len(views), 'tokens': list(config.tokens), 'bins': list(config.bins),
            'temperature': config.temperature,
            'table': {**{name: _means(values) for name, values in rows.items()},
                      'best constant, by metric': _means([curve[best, range(len(best))]])},
            'best_constants_m': [round(metres[metric], 1) for metric in METRICS],
            'by_kind': {kind: _means(values) for kind, values in by_kind.items()},
            'room_accuracy': room_accuracy(weights, views)}


def _depth(logits: Float32, config: DepthConfig, view: Frame) -> Float32:
    """The estimator's last steps: weights, bins, upsampling."""
    patches = read_out(torch.from_numpy(logits)[None], torch.tensor(config.bins))[1]
    height, width = view.depth.shape
    return upsample(patches, (height, width), config.upsampling)[0].numpy()


def _means(values: Sequence[Sums]) -> dict[str, float]:
    mean = by_name(np.mean(values, axis=0))
    return {metric: round(mean[metric], 4) for metric in METRICS}


@torch.inference_mode()
def room_accuracy(weights: Path, views: Sequence[Frame]) -> float:
    """Zero-shot kind of room, as with any CLIP: square crop, encode_image, 'a photo of a …'."""
    from PIL import Image
    from torchvision import transforms as t
    clip = import_clip()
    model = clip.model.build_model(dict(read_file(weights)[1])).float()
    size = model.visual.input_resolution
    preprocess = t.Compose([
        t.Resize(size, t.InterpolationMode.BICUBIC), t.CenterCrop(size), t.ToTensor(),
        t.Normalize(*NORMALIZATIONS['clip'])])
    text = normalize(model.encode_text(clip.tokenize(
        [f'a photo of a {language.ROOMS[kind][0]}' for kind in KINDS])), dim=1)
    correct = 0
    for view in views:
        image = model.encode_image(preprocess(Image.fromarray(view.rgb))[None])
        correct += KINDS[int((image @ text.T).argmax())] == view.kind
    return round(correct / len(views), 4)


def main() -> None:
    """Print the numbers; write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', type=Path, default=ROOT / 'depthclip_ros/models/demo.pt')
    parser.add_argument('--images', type=int, default=500)
    parser.add_argument('--json', type=Path, help='also write the numbers to this file')
    arguments = parser.parse_args()
    config = DepthConfig.from_yaml(ROOT / 'config/demo.yaml')
    text = json.dumps(evaluate(config, arguments.weights, list(rooms.one_each(
        0, arguments.images))), indent=2) + '\n'
    print(text)
    if arguments.json:
        arguments.json.write_text(text)


if __name__ == '__main__':
    main()
