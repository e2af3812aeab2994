# SPDX-License-Identifier: Apache-2.0
"""What a fit needs to know of every frame: the network's answer, and the depth to be reached."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import block_diag, csr_matrix, kron

from ..core.calibration import image_digest, mirrored_rays
from ..core.camera import focal_ratio
from ..core.config import Size
from ..core.errors import CalibrationError
from ..core.estimator import DepthEstimator
from ..core.projection import read_out, shares, similarity_logits
from .recordings import Frame

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

MOST_FOLDS = 10
FEWEST_FRAMES, FEWEST_BLOCKS = 8, 3
# Pixels a patch that its depth is found from, and pixels a frame that errors are measured at.
PIXELS_A_PATCH, PIXELS_A_FRAME = 64, 400
# How strongly a patch's depth is drawn to the mean of its own pixels, against what the upsampled
# picture wants: next to nothing where pixels are dense, enough where they are sparse.
DRAWN = 0.03
FARTHEST = 2.0  # times its own mean that a patch's depth may be off for the picture's sake
LEAST_DEPTH, LARGEST_DEPTH = 0.05, 200.0  # m; what is beyond is no measurement


class Target(NamedTuple):
    """Depth of one frame that a fit is to reach.

    Attributes:
        patches: (P,) metres that, upsampled, come nearest to the measured depth by least squares;
            NaN where nothing is measured.
        pixels: (S, P), the share of each patch in the upsampled depth of S measured pixels.
        truth: (S,) metres there.

    """

    patches: Float32
    pixels: csr_matrix
    truth: Float32


class Problem:
    """All frames as one regression, whose folds are groups of sequences.

    Frames are F, passes beside each other (the second mirrored), patches P = h w.

    Attributes:
        count: number of frames.
        blocks: number of sequences.
        folds: number of folds.
        fold: (F,) of every frame.
        digests: of the images.
        trunk: F maps (passes, C', h, w), float16.
        weights: (F, K, h, w) of the words, without mirroring.
        spread: (F, h, w) of the bins over their mean, likewise.
        rays: (F, passes, 2, h, w), x and y of the patches' centres at z = 1. Of an unknown camera
            the mean of those that are known.
        view: `rays` and `bounds` of a `Calibration`, from the cameras that are known.
        camera_known: whether any is.
        ratio: (F,) focal ratio; of an unknown camera the geometric mean of the others'.
        language: (F, passes, P) log depth by words.
        base: the same with the focal ratio.
        target: (F, passes, P) log depth to be reached.
        weight: (F, passes, P) of it.
        pixels: (F S, F P), of a patch in each pixel that is measured.
        truth: (F, S) metres there.

    """

    def __init__(self, estimator: DepthEstimator, frames: Iterable[Frame]) -> None:
        """Look at every frame; nothing of its pixels is kept.

        Raises:
            CalibrationError: there are too few frames with depth, or too few sequences.
            CameraInfoError: a camera is not for images of that size.

        """
        config, grid = estimator.config, estimator.grid
        text = torch.from_numpy(estimator.text_features).to(estimator.device)
        bins = torch.tensor(config.bins, device=estimator.device)
        found: dict[str, list[Any]] = defaultdict(list)
        targets: list[Target] = []
        empty = 0
        for frame in frames:
            target = target_of(frame.depth, grid, config.upsampling, len(targets))
            if target is None:
                empty += 1
                continue
            targets.append(target)
            maps, camera = estimator.maps([frame.rgb]), frame.camera
            weights, depth, spread = read_out(
                similarity_logits(maps.features, text, config.temperature), bins)
            for name, value in {
                    'depth': depth.cpu().numpy(), 'weights': weights[0].cpu().numpy(),
                    'spread': (spread[0] / depth[0]).cpu().numpy(),
                    'trunk': maps.trunk.half().cpu().numpy(),
                    'camera': np.full((*grid, 2), np.nan, np.float32) if camera is None
                    else camera.patch_rays(*grid)[..., :2],
                    'ratio': math.nan if camera is None else focal_ratio(
                        config.reference_focal, camera, (frame.rgb.shape[0], frame.rgb.shape[1]),
                        config.input_size),
                    'sequence': frame.moment.sequence, 'adjacent': frame.moment.adjacent,
                    'digest': frame.digest or image_digest(frame.rgb)}.items():
                found[name].append(value)
        self.count, self.blocks = len(targets), len(set(found['sequence']))
        if self.count < FEWEST_FRAMES or self.blocks < FEWEST_BLOCKS:
            raise CalibrationError(
                f'{self.count} frames in {self.blocks} sequences have depth ({empty} more have '
                f'none); at least {FEWEST_FRAMES} in {FEWEST_BLOCKS} are needed, to test on '
                'others than were fitted to. Record longer, and in several rooms; 60 are good.')
        self.folds = min(MOST_FOLDS, self.blocks)
        self.fold = _folds(found['sequence'], self.folds)
        self._sequence, self._adjacent = found['sequence'], found['adjacent']
        self.digests, self.trunk = found['digest'], found['trunk']
        self.weights, self.spread = np.stack(found['weights']), np.stack(found['spread'])
        said = np.stack(found['depth']).astype(np.float64)
        self.passes, self.grid = said.shape[1], said.shape[2:]
        self._set_cameras(np.stack(found['camera']), np.array(found['ratio']))
        self.language = np.log(said).reshape(*said.shape[:2], -1)
        self.base = self.language + np.log(self.ratio)[:, None, None]
        self._set_targets(targets)

    def training(self, fold: int) -> NDArray[np.intp]:
        """Numbers of the frames that a held-out fold is predicted from.

        Those that adjoin it in time are on neither side: they show nearly the same, so that what
        comes later would look better known than it is (hv-block cross-validation, Racine 2000).
        """
        inside = {s for s, f in zip(self._sequence, self.fold, strict=True) if f == fold}
        return np.flatnonzero([f != fold and inside.isdisjoint(near) for f, near in zip(
            self.fold, self._adjacent, strict=True)])

    def _set_cameras(self, cameras: Float32, ratio: Float64) -> None:
        """Rays and focal ratios, from (F, h, w, 2) and (F,) with NaN where a camera is unknown."""
        known = np.isfinite(cameras)
        self.camera_known = bool(known.any())
        mean = (np.where(known, cameras, 0).sum(axis=0)
                / np.maximum(known.sum(axis=0), 1)).astype(np.float32)
        finite = cameras[known.all(axis=-1)]
        bounds = [finite.min(axis=0), finite.max(axis=0)] if len(finite) else np.zeros((2, 2))
        self.view = {'rays': mean, 'bounds': np.array(bounds, np.float32)}
        rays = np.where(known, cameras, mean)
        self.rays = np.moveaxis(
            np.stack([rays, mirrored_rays(rays)][:self.passes], axis=1), -1, 2)
        self.ratio = np.where(np.isnan(ratio), geometric_mean(ratio[~np.isnan(ratio)]), ratio)

    def _set_targets(self, targets: Sequence[Target]) -> None:
        """Depth to be reached, and how much each patch counts."""
        self.pixels = block_diag([target.pixels for target in targets], format='csr')
        self.truth = np.stack([target.truth for target in targets])
        patches = np.stack([target.patches for target in targets]).astype(np.float64)
        known = np.isfinite(patches)
        scale = np.sqrt(np.nanmean(patches ** 2, axis=1, keepdims=True))
        patches = np.where(known, patches, scale)
        # Squared errors of log depth times squared depth are those of depth. Half of that, in
        # the logarithm, is the compromise between the metrics; and no image counts for more.
        weight = known * patches / scale
        weight *= patches.shape[1] / weight.sum(axis=1, keepdims=True)
        self.target, self.weight = (
            np.stack([values, self.mirrored(values)][:self.passes], axis=1)
            for values in (np.log(patches), weight))
        usable = np.isfinite(self.base)
        self.weight[~usable] = 0.0
        self.base[~usable] = 0.0

    def mirrored(self, values: Float64) -> Float64:
        """(F, P) of an image -> of its mirror image."""
        return values.reshape(len(values), *self.grid)[..., ::-1].reshape(values.shape)

    def scale(self, frames: NDArray[np.intp]) -> float:
        """The one factor that fits some frames best, as a logarithm."""
        weight = self.weight[frames]
        return float((weight * (self.target - self.base)[frames]).sum() / weight.sum())

    def mean_map(self, frames: NDArray[np.intp]) -> Float64:
        """(passes, P): mean log depth of every patch in some frames, whatever the image."""
        weight, target = self.weight[frames], self.target[frames]
        total = float((weight * target).sum() / weight.sum())
        return np.asarray(
            ((weight * target).sum(axis=0) + 1e-3 * total) / (weight.sum(axis=0) + 1e-3))

    def depth(self, log_depth: Float64) -> Float64:
        """(F, passes, P) -> (F, P) metres, the mean of the passes, the second mirrored back."""
        depth = np.exp(log_depth.clip(-10, 10))
        if self.passes == 1:
            return np.asarray(depth[:, 0])
        return np.asarray(0.5 * (depth[:, 0] + self.mirrored(depth[:, 1])))

    def upsampled(self, patches: Float64) -> Float64:
        """(F, P) -> (F, S), at the pixels that are measured."""
        return np.asarray((self.pixels @ patches.ravel()).reshape(self.truth.shape))

    def scores(self, log_depth: Float64) -> Float64:
        """(F, 3) rmse in metres, delta 1 and rel of every frame, of (F, passes, P) log depth."""
        depth, truth = self.upsampled(self.depth(log_depth)), self.truth
        ratio = np.maximum(depth / truth, truth / depth)
        return np.stack([
            np.sqrt(((depth - truth) ** 2).mean(axis=1)), (ratio < 1.25).mean(axis=1),
            (np.abs(depth - truth) / truth).mean(axis=1)], axis=1)

    def fold_errors(self, log_depth: Float64) -> Float64:
        """Rmse in metres of every fold, mean over its frames."""
        errors = self.scores(log_depth)[:, 0]
        return np.array([errors[self.fold == fold].mean() for fold in range(self.folds)])


def _folds(sequence: Sequence[int], folds: int) -> NDArray[np.int64]:
    """Deal the sequences out to folds of about as many frames."""
    names, owner, counts = np.unique(sequence, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    load, fold = np.zeros(folds), np.empty(len(names), np.int64)
    for position in order[np.argsort(-counts[order], kind='stable')]:
        fold[position] = load.argmin()
        load[fold[position]] += counts[position]
    return np.asarray(fold[owner])


def target_of(depth: Float32, grid: Size, mode: str, seed: int) -> Target | None:
    """The depth of patches that is best after upsampling.

    Args:
        depth: (H, W) metres, NaN where unknown.
        grid: (h, w) of the patches.
        mode: of upsampling.
        seed: of the choice of pixels, where there are more than are needed.

    Returns:
        None where nothing is measured at all.

    """
    h, w = grid
    rows, columns = (shares(patches, pixels, mode).numpy().astype(np.float64)
                     for patches, pixels in zip(grid, depth.shape, strict=True))
    places = np.flatnonzero((depth >= LEAST_DEPTH) & (depth <= LARGEST_DEPTH))
    if not len(places):
        return None
    rng = np.random.default_rng(seed)
    if len(places) > PIXELS_A_PATCH * h * w:
        places = np.sort(rng.choice(places, PIXELS_A_PATCH * h * w, replace=False))
    truth = depth.reshape(-1)[places].astype(np.float64)
    matrix = kron(csr_matrix(rows), csr_matrix(columns), 'csr')[places]
    r, c = np.divmod(places, depth.shape[1])
    nearest = rows.argmax(axis=1)[r] * w + columns.argmax(axis=1)[c]
    counts = np.bincount(nearest, minlength=h * w)
    measured = counts > 0
    means = np.bincount(nearest, np.log(truth), h * w) / np.maximum(counts, 1)
    means = np.exp(np.where(measured, means, np.median(means[measured])))
    drawn = DRAWN * len(places) / measured.sum()
    patches = np.linalg.solve((matrix.T @ matrix).toarray() + drawn * np.eye(h * w),
                              matrix.T @ truth + drawn * means)
    patches = patches.clip(means / FARTHEST, means * FARTHEST)
    chosen = rng.choice(len(places), PIXELS_A_FRAME, replace=len(places) < PIXELS_A_FRAME)
    return Target(np.where(measured, patches, np.nan).astype(np.float32),
                  matrix[chosen].astype(np.float32), truth[chosen].astype(np.float32))


def geometric_mean(values: Float64) -> float:
    """Mean of what is a factor; 1 of none."""
    return math.exp(np.log(values).mean()) if len(values) else 1.0
