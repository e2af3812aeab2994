# SPDX-License-Identifier: Apache-2.0
"""Bins by scene against one partition for all, in rendered rooms, with controls.

    python tools/scene_bins.py --json docs/scenes.json

For each set of words: bins fitted by least squares on calibration rooms, one partition for all
rooms and one for each kind of room, and their scores on rooms that nothing was fitted to. The
rows of the demo model's own scenes go through `DepthEstimator.predict`, as in the node.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from depthclip_ros.core import DepthConfig, DepthEstimator  # noqa: E402
from depthclip_ros.core.config import PAPER_TOKENS  # noqa: E402
from depthclip_ros.core.projection import upsample  # noqa: E402
from depthclip_ros.sim import (  # noqa: E402
    KINDS,
    RenderOptions,
    Scene,
    SimCamera,
    render,
    trajectory,
)

ROOT = Path(__file__).resolve().parents[1]
FIRST_CALIBRATION_ROOM, FIRST_TEST_ROOM = 62_000, 63_000  # the demo model has seen none of them
CAMERA = SimCamera().scaled(320, 240)
PENALTIES = (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
FOLDS = 10
SMALLEST_STEP = 1e-3  # metres between two bins
OWN = DepthConfig.from_yaml(ROOT / 'config/demo.yaml')
WORDS = {
    'three words: outermost and middle': tuple(OWN.tokens[i] for i in (0, 5, 9)),
    'three words: the next ones inwards': tuple(OWN.tokens[i] for i in (1, 5, 8)),
    'three words: further inwards': tuple(OWN.tokens[i] for i in (2, 5, 7)),
    "the paper's seven words": PAPER_TOKENS,
    'ten fine words': OWN.tokens,
}
COARSE, FINE = next(iter(WORDS)), 'ten fine words'


@dataclass(frozen=True)
class Rooms:
    """Pictures, each of a room of its own, kinds in turn.

    Attributes:
        rgb: N pictures.
        depth: (N, H, W) metres.
        kinds: (N,) number in `KINDS`.

    """

    rgb: list[np.ndarray]
    depth: np.ndarray
    kinds: np.ndarray

    @classmethod
    def rendered(cls, first: int, count: int) -> Rooms:
        """The rooms of so many seeds."""
        frames = [render(scene, CAMERA, trajectory(scene, seed).pose(float(seed % 23)),
                         RenderOptions(noise=0.01, seed=seed))
                  for seed in range(first, first + count)
                  for scene in [Scene.generate(KINDS[seed % len(KINDS)], seed)]]
        return cls([frame.rgb for frame in frames], np.stack([f.depth for f in frames]),
                   np.arange(first, first + count) % len(KINDS))

    def patches(self, grid: tuple[int, int]) -> np.ndarray:
        """(N, h, w) mean depth of every patch."""
        (h, w), (count, height, width) = grid, self.depth.shape
        return self.depth.reshape(count, h, height // h, w, width // w).mean(axis=(2, 4))


def scores(patches: np.ndarray, rooms: Rooms) -> np.ndarray:
    """(N, 2): share of pixels within a factor of 1.25, and rmse in metres, of every room."""
    size = rooms.depth.shape[1:]
    depth = upsample(torch.from_numpy(patches.astype(np.float32)), size, OWN.upsampling).numpy()
    return pixel_scores(depth, rooms.depth)


def pixel_scores(depth: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The same of (N, H, W) depth."""
    within = np.maximum(depth / truth, truth / depth) < 1.25
    return np.stack([within.mean(axis=(1, 2)),
                     np.sqrt(((depth - truth) ** 2).mean(axis=(1, 2)))], axis=1)


def fit_bins(
    weights: np.ndarray, scenes: np.ndarray, truth: np.ndarray, penalty: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Ascending bins by least squares: one partition for all, and one for each scene.

    Every room counts by one over its squared error with one partition, since the score is the mean
    of the rooms' rmse.

    Args:
        weights: (N, K, h, w) of the words.
        scenes: (N, S) probabilities.
        truth: (N, h, w) metres.
        penalty: how strongly the scenes' partitions are drawn to the one for all, in parts of the
            sum of squares that each scene has in the mean.

    Returns:
        (K,) and (S, K) metres.

    """
    count, words = weights.shape[:2]
    design = weights.reshape(count, words, -1).transpose(0, 2, 1)
    wish = truth.reshape(count, -1)
    everyone = np.ones((count, 1))
    one = _solve(design, everyone, wish, np.zeros((1, words)), 0.0)[0]
    room = 1 / np.sqrt(((design @ one - wish) ** 2).mean(axis=1) ** 0.5)
    design, wish = design * room[:, None, None], wish * room[:, None]
    one = _solve(design, everyone, wish, np.zeros((1, words)), 0.0)[0]
    drawn = np.repeat(one[None], scenes.shape[1], axis=0)
    return one, _solve(design, scenes, wish, drawn, penalty)


def _solve(
    design: np.ndarray, scenes: np.ndarray, wish: np.ndarray, drawn: np.ndarray, penalty: float,
) -> np.ndarray:
    """(S, K) bins of least squares, by their increments, which are not negative."""
    count, words = scenes.shape[1], design.shape[2]
    gram = np.zeros((count * words, count * words))
    right = np.zeros(count * words)
    for rows, of_room, target in zip(design, scenes, wish, strict=True):
        gram += np.kron(np.outer(of_room, of_room), rows.T @ rows)
        right += np.kron(of_room, rows.T @ target)
    share = np.diag(gram).reshape(count, words).sum(axis=0) / count
    pull = np.tile(penalty * share, count) + 1e-9 * np.trace(gram)
    root = np.linalg.cholesky(gram + np.diag(pull))
    rises = np.kron(np.eye(count), np.tril(np.ones((words, words))))
    target = np.linalg.solve(root, right + pull * drawn.reshape(-1))
    increments = nnls(root.T @ rises, target)[0].reshape(count, words)
    return np.maximum(increments, SMALLEST_STEP).cumsum(axis=1)


def choose_penalty(weights: np.ndarray, scenes: np.ndarray, truth: np.ndarray) -> float:
    """The penalty with the least rmse of rooms left out; never of those that are fitted to."""
    fold = np.arange(len(weights)) // len(KINDS) % FOLDS
    errors = np.zeros(len(PENALTIES))
    for number in range(FOLDS):
        out = fold == number
        for place, penalty in enumerate(PENALTIES):
            bins = fit_bins(weights[~out], scenes[~out], truth[~out], penalty)[1]
            depth = np.einsum('nkhw,nk->nhw', weights[out], scenes[out] @ bins)
            errors[place] += np.sqrt(((depth - truth[out]) ** 2).mean(axis=(1, 2))).sum()
    return PENALTIES[int(errors.argmin())]


def measure(name: str, calibration: Rooms, test: Rooms) -> dict[str, object]:
    """Every row of one set of words."""
    words = WORDS[name]
    config = OWN.replace(tokens=words, bins=np.linspace(1, 5, len(words)).tolist(), scenes=KINDS)
    estimator = DepthEstimator(config, 'demo', 'cpu')
    (weights, sorted_into), (unseen, told) = (
        _see(estimator, rooms) for rooms in (calibration, test))
    truth = calibration.patches(estimator.grid)
    penalty = choose_penalty(weights, sorted_into, truth)
    one, by_scene = fit_bins(weights, sorted_into, truth, penalty)
    known = np.eye(len(KINDS))[test.kinds]
    of_known = fit_bins(weights, np.eye(len(KINDS))[calibration.kinds], truth, penalty)[1]
    estimator.reconfigure(config.replace(bins=one.tolist(), scene_bins=by_scene.ravel().tolist()))
    depth = np.stack([p.depth for p in estimator.predict(test.rgb)])

    def mixed(scenes: np.ndarray, bins: np.ndarray) -> np.ndarray:
        return scores(np.einsum('nkhw,nk->nhw', unseen, scenes @ bins), test)

    rows = {
        'one fitted partition': scores(np.einsum('nkhw,k->nhw', unseen, one), test),
        'bins by scene': pixel_scores(depth, test.depth),
        'the scene is known': mixed(known, of_known),
        "another room's scene": mixed(np.roll(told, 1, axis=0), by_scene),
        'all scenes alike': mixed(np.full_like(told, 1 / len(KINDS)), by_scene),
        'mean map, never looks': scores(np.repeat(truth.mean(axis=0)[None], len(told), 0), test)}
    base = rows['one fitted partition']
    return {
        'words': list(words), 'penalty': penalty, 'one partition [m]': one.round(3).tolist(),
        'by scene [m]': {kind: bins.round(3).tolist()
                         for kind, bins in zip(KINDS, by_scene, strict=True)},
        'right scene': float((told.argmax(axis=1) == test.kinds).mean()),
        'rows': {row: {'d1': float(found[:, 0].mean()), 'rmse [m]': float(found[:, 1].mean()),
                       'of one partition': float(found[:, 1].mean() / base[:, 1].mean()),
                       '95 %': _interval(found[:, 1], base[:, 1])}
                 for row, found in rows.items()}}


def _see(estimator: DepthEstimator, rooms: Rooms) -> tuple[np.ndarray, np.ndarray]:
    """(N, K, h, w) weights of the words, and (N, S) probabilities of the scenes."""
    weights, scenes = [], []
    for start in range(0, len(rooms.rgb), 10):
        maps = estimator.maps(rooms.rgb[start:start + 10])
        weights.append(estimator.read_out(estimator.logits(maps.features)).weights.numpy())
        scenes.append(estimator.scenes(maps.trunk).numpy())
    return np.concatenate(weights).astype(float), np.concatenate(scenes).astype(float)


def _interval(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """95 % of the ratio of the means, by a bootstrap over rooms."""
    draws = np.random.default_rng(0).integers(len(ours), size=(2000, len(ours)))
    ratios = ours[draws].mean(axis=1) / theirs[draws].mean(axis=1)
    return np.quantile(ratios, [0.025, 0.975]).tolist()


def table(result: dict[str, dict[str, object]]) -> str:
    """The rows in Markdown."""
    lines = ['| words | | δ1 | rmse (m) | of one partition | 95 % |', '|---|---|---|---|---|---|']
    for name, measured in result.items():
        rows = measured['rows']
        assert isinstance(rows, dict)
        for number, (row, found) in enumerate(rows.items()):
            low, high = found['95 %']
            lines.append(f'| {name if number == 0 else ""} | {row} | {found["d1"]:.3f} | '
                         f'{found["rmse [m]"]:.3f} | {found["of one partition"]:.3f} | '
                         f'{low:.3f} to {high:.3f} |')
    return '\n'.join(lines)


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--calibration', type=int, default=150, help='rooms to fit to')
    parser.add_argument('--test', type=int, default=300, help='other rooms, to score')
    parser.add_argument('--json', type=Path, help='also write the numbers to this file')
    options = parser.parse_args()
    torch.set_num_threads(1)
    calibration = Rooms.rendered(FIRST_CALIBRATION_ROOM, options.calibration)
    test = Rooms.rendered(FIRST_TEST_ROOM, options.test)
    result = {name: measure(name, calibration, test) for name in WORDS}
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps({
            'calibration rooms': options.calibration, 'test rooms': options.test,
            'words': result}, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
