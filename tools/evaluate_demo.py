# SPDX-License-Identifier: Apache-2.0
"""Measure the demo model on held-out rooms, beside everything that must be worse.

    python tools/evaluate_demo.py --weights build/demo/demo.pt --json build/demo/evaluation.json

Each image is a 640 x 480 picture of a room that training never saw. Metrics are means over images
of the usual ones: share of pixels within a factor of 1.25 (δ1), mean relative error (rel), root
mean square error in metres (rmse).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import demo_sentences as language  # noqa: E402

from depthclip_ros.core import DepthConfig, DepthEstimator  # noqa: E402
from depthclip_ros.core.clip_package import import_clip  # noqa: E402
from depthclip_ros.core.preprocess import NORMALIZATIONS  # noqa: E402
from depthclip_ros.core.projection import read_out, upsample  # noqa: E402
from depthclip_ros.core.weights import read_file  # noqa: E402
from depthclip_ros.sim import (  # noqa: E402
    KINDS,
    RenderOptions,
    Scene,
    SimCamera,
    render,
    trajectory,
)

METRICS = ('d1', 'rel', 'rmse')
CONSTANTS = np.arange(0.5, 6.01, 0.1)
# Words that have nothing to do with distance.
NEUTRAL = ('apple', 'guitar', 'purple', 'senate', 'whisper', 'velvet', 'october', 'seven',
           'justice', 'pepper')


@dataclass(frozen=True)
class View:
    """One held-out picture."""

    kind: str
    rgb: np.ndarray
    depth: np.ndarray


def held_out_views(count: int, first_seed: int = 0) -> list[View]:
    """Pictures with mild noise, kinds in turn, each of a room of its own."""
    views = []
    for number in range(count):
        seed = first_seed + number
        scene = Scene.generate(KINDS[number % len(KINDS)], seed)
        frame = render(scene, SimCamera(), trajectory(scene, seed).pose(float(number % 23)),
                       RenderOptions(noise=0.01, seed=seed))
        views.append(View(frame.kind, frame.rgb, frame.depth))
    return views


def scores(depth: np.ndarray | float, truth: np.ndarray) -> np.ndarray:
    """METRICS of one image; every pixel of a rendered image counts."""
    error = np.abs(depth - truth)
    near = np.maximum(depth / truth, truth / depth) < 1.25
    return np.array([near.mean(), (error / truth).mean(), np.sqrt(np.square(error).mean())])


def depth_of(logits: np.ndarray, config: DepthConfig, size: tuple[int, int]) -> np.ndarray:
    """The estimator's last steps: weights, bins, upsampling."""
    _, patches, _ = read_out(torch.from_numpy(logits)[None], torch.tensor(config.bins))
    depth: np.ndarray = upsample(patches, size, config.upsampling)[0].numpy()
    return depth


def evaluate(config: DepthConfig, weights: Path, views: list[View]) -> dict[str, object]:
    """Every row of the table, the model's by kind of room, and its zero-shot rooms."""
    estimator = DepthEstimator(config, weights, 'cpu')
    random = DepthEstimator(config.replace(tokens=NEUTRAL), weights, 'cpu')
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(config.tokens)) for _ in range(10)]
    rows: dict[str, list[np.ndarray]] = {}
    constants, predictions = [], []
    for view in views:
        prediction = estimator.predict(view.rgb)
        predictions.append(prediction.depth)
        size = view.depth.shape
        rows.setdefault('model', []).append(scores(prediction.depth, view.depth))
        rows.setdefault('mean of the bins', []).append(
            scores(float(np.mean(config.bins)), view.depth))
        shuffled = [scores(depth_of(prediction.logits[order], config, size), view.depth)
                    for order in orders]
        rows.setdefault('shuffled words', []).append(np.mean(shuffled, axis=0))
        rows.setdefault('random words', []).append(
            scores(random.predict(view.rgb).depth, view.depth))
        constants.append([scores(constant, view.depth) for constant in CONSTANTS])
    other = np.roll(np.arange(len(views)), len(views) // 2 + 1)
    rows['shuffled images'] = [scores(predictions[j], views[i].depth)
                               for i, j in enumerate(other)]
    table = {name: dict(zip(METRICS, np.mean(values, axis=0).round(4).tolist(), strict=True))
             for name, values in rows.items()}
    curve = np.mean(constants, axis=0)
    best = [curve[:, 0].argmax(), curve[:, 1].argmin(), curve[:, 2].argmin()]
    table['best constant, by metric'] = {
        metric: round(float(curve[best[i], i]), 4) for i, metric in enumerate(METRICS)}
    by_kind = {kind: dict(zip(METRICS, np.mean(
        [s for s, v in zip(rows['model'], views, strict=True) if v.kind == kind], axis=0
    ).round(4).tolist(), strict=True)) for kind in KINDS}
    return {'images': len(views), 'tokens': list(config.tokens), 'bins': list(config.bins),
            'temperature': config.temperature, 'table': table,
            'best_constants_m': [round(float(CONSTANTS[b]), 1) for b in best],
            'by_kind': by_kind, 'room_accuracy': room_accuracy(weights, views)}


@torch.inference_mode()
def room_accuracy(weights: Path, views: list[View]) -> float:
    """Zero-shot kind of room, as with any CLIP: square crop, encode_image, 'a photo of a …'."""
    from PIL import Image
    from torchvision.transforms import (
        CenterCrop,
        Compose,
        InterpolationMode,
        Normalize,
        Resize,
        ToTensor,
    )
    clip = import_clip()
    model = clip.model.build_model(dict(read_file(weights)[1])).float()
    preprocess = Compose([
        Resize(model.visual.input_resolution, InterpolationMode.BICUBIC),
        CenterCrop(model.visual.input_resolution), ToTensor(), Normalize(
            *NORMALIZATIONS['clip'])])
    text = normalize(model.encode_text(clip.tokenize(
        [f'a photo of a {language.ROOMS[kind][0]}' for kind in KINDS])), dim=1)
    right = 0
    for view in views:
        image = model.encode_image(preprocess(Image.fromarray(view.rgb))[None])
        right += KINDS[int((image @ text.T).argmax())] == view.kind
    return round(right / len(views), 4)


def main() -> None:
    """Print the numbers; write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument('--weights', type=Path, default=root / 'depthclip_ros/models/demo.pt')
    parser.add_argument('--images', type=int, default=500)
    parser.add_argument('--json', type=Path, help='also write the numbers to this file')
    arguments = parser.parse_args()
    config = DepthConfig.from_yaml(root / 'config/demo.yaml')
    text = json.dumps(evaluate(config, arguments.weights, held_out_views(arguments.images)),
                      indent=2) + '\n'
    print(text)
    if arguments.json:
        arguments.json.write_text(text)


if __name__ == '__main__':
    main()
