# SPDX-License-Identifier: Apache-2.0
"""The regression problem of a calibration: per frame the network's output and the target depth."""

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
from ..core.readout import read_out, similarity_logits, upsampling_weights
from .recordings import Frame

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

MAX_FOLDS = 10
MIN_FRAMES, MIN_BLOCKS = 8, 3
# Pixels from which the target depth of a patch is fitted; pixels of a frame that errors count.
PIXELS_PER_PATCH, PIXELS_PER_FRAME = 64, 400
# Ridge parameter that shrinks the depth of a patch to the mean of its pixels: negligible where
# pixels are dense, sufficient where they are sparse.
RIDGE = 0.03
MAX_RATIO = 2.0  # of the target depth of a patch to the mean of its pixels, and its inverse
MIN_DEPTH, MAX_DEPTH = 0.05, 200.0  # m; depth beyond is no measurement


class Target(NamedTuple):
    """Target depth of one frame.

    Attributes:
        patches: (P,) metres whose upsampled map fits the measured depth by least squares; NaN in
            patches without a measured pixel.
        pixels: (S, P) upsampling weights of the patches at S measured pixels.
        truth: (S,) measured depth of these pixels in metres.

    """

    patches: Float32
    pixels: csr_matrix
    truth: Float32


class Problem:
    """All frames of a recording as one regression problem, with folds of whole sequences.

    F counts frames, `passes` an image and its mirror image (1 or 2), P = h w patches.

    Attributes:
        count: number of frames.
        blocks: number of sequences.
        folds: number of folds.
        fold: (F,) fold of every frame.
        digests: fingerprints of the images.
        trunk: F maps (passes, C', h, w), float16.
        weights: (F, K, h, w) weights of the words in the unmirrored image.
        spread: (F, h, w) standard deviation of the bins over their mean, unmirrored.
        rays: (F, passes, 2, h, w), x and y of the patches' centres at z = 1. A frame without a
            camera has the mean over the other frames.
        camera_arrays: `rays` and `bounds` of a `Calibration`, from the frames with a camera.
        camera_known: whether any frame has a camera.
        focal_ratio: (F,); a frame without a camera has the geometric mean over the others.
        language: (F, passes, P) log language depth.
        base: `language` plus the logarithm of the focal ratio.
        target: (F, passes, P) target log depth.
        weight: (F, passes, P) weight of each target.
        pixels: (F S, F P) upsampling weights of the patches at the measured pixels.
        truth: (F, S) measured depth of these pixels in metres.

    """

    def __init__(self, estimator: DepthEstimator, frames: Iterable[Frame]) -> None:
        """Run the network on every frame; the images are not stored.

        Raises:
            CalibrationError: too few frames have depth, or there are too few sequences.
            CameraInfoError: a camera is for images of another size.

        """
        config, grid = estimator.config, estimator.grid
        text = torch.from_numpy(estimator.text_features).to(estimator.device)
        bins = torch.tensor(config.bins, device=estimator.device)
        records: dict[str, list[Any]] = defaultdict(list)
        targets: list[Target] = []
        empty = 0
        for frame in frames:
            target = target_of(frame.depth, grid, config.upsampling, len(targets))
            if target is None:
                empty += 1
                continue
            targets.append(target)
            maps, camera = estimator.encode([frame.rgb]), frame.camera
            weights, language, spread = read_out(
                similarity_logits(maps.features, text, config.temperature), bins)
            for name, value in {
                    'depth': language.cpu().numpy(), 'weights': weights[0].cpu().numpy(),
                    'spread': (spread[0] / language[0]).cpu().numpy(),
                    'trunk': maps.trunk.half().cpu().numpy(),
                    'camera': np.full((*grid, 2), np.nan, np.float32) if camera is None
                    else camera.patch_rays(*grid)[..., :2],
                    'ratio': math.nan if camera is None else focal_ratio(
                        config.reference_focal, camera, (frame.rgb.shape[0], frame.rgb.shape[1]),
                        config.input_size),
                    'sequence': frame.moment.sequence, 'adjacent': frame.moment.adjacent,
                    'digest': frame.digest or image_digest(frame.rgb)}.items():
                records[name].append(value)
        self.count, self.blocks = len(targets), len(set(records['sequence']))
        if self.count < MIN_FRAMES or self.blocks < MIN_BLOCKS:
            raise CalibrationError(
                f'{self.count} frames in {self.blocks} sequences have depth ({empty} more have '
                f'none); at least {MIN_FRAMES} in {MIN_BLOCKS} are needed, to test on '
                'others than were fitted to. Record longer, and in several rooms; 60 are good.')
        self.folds = min(MAX_FOLDS, self.blocks)
        self.fold = _folds(records['sequence'], self.folds)
        self._sequence, self._adjacent = records['sequence'], records['adjacent']
        self.digests, self.trunk = records['digest'], records['trunk']
        self.weights, self.spread = np.stack(records['weights']), np.stack(records['spread'])
        depth = np.stack(records['depth']).astype(np.float64)
        self.passes, self.grid = depth.shape[1], depth.shape[2:]
        self._set_cameras(np.stack(records['camera']), np.array(records['ratio']))
        self.language = np.log(depth).reshape(*depth.shape[:2], -1)
        self.base = self.language + np.log(self.focal_ratio)[:, None, None]
        self._set_targets(targets)

    def training(self, fold: int) -> NDArray[np.intp]:
        """Return the numbers of the frames that train the model of a held-out fold.

        Sequences that adjoin the fold in time train nothing, because they show nearly the same
        views and would flatter the error (hv-block cross-validation, Racine 2000).
        """
        inside = {s for s, f in zip(self._sequence, self.fold, strict=True) if f == fold}
        return np.flatnonzero([f != fold and inside.isdisjoint(adjacent) for f, adjacent in zip(
            self.fold, self._adjacent, strict=True)])

    def _set_cameras(self, cameras: Float32, ratio: Float64) -> None:
        """Set rays and focal ratios from (F, h, w, 2) and (F,); NaN in frames without a camera."""
        valid = np.isfinite(cameras)
        self.camera_known = bool(valid.any())
        mean = (np.where(valid, cameras, 0).sum(axis=0)
                / np.maximum(valid.sum(axis=0), 1)).astype(np.float32)
        samples = cameras[valid.all(axis=-1)]
        bounds = [samples.min(axis=0), samples.max(axis=0)] if len(samples) else np.zeros((2, 2))
        self.camera_arrays = {'rays': mean, 'bounds': np.array(bounds, np.float32)}
        rays = np.where(valid, cameras, mean)
        self.rays = np.moveaxis(
            np.stack([rays, mirrored_rays(rays)][:self.passes], axis=1), -1, 2)
        self.focal_ratio = np.where(
            np.isnan(ratio), geometric_mean(ratio[~np.isnan(ratio)]), ratio)

    def _set_targets(self, targets: Sequence[Target]) -> None:
        """Set target depth, and the weight of each patch."""
        self.pixels = block_diag([target.pixels for target in targets], format='csr')
        self.truth = np.stack([target.truth for target in targets])
        patches = np.stack([target.patches for target in targets]).astype(np.float64)
        valid = np.isfinite(patches)
        rms = np.sqrt(np.nanmean(patches ** 2, axis=1, keepdims=True))
        patches = np.where(valid, patches, rms)
        # Squared errors of log depth, weighted by squared depth, are squared errors of depth.
        # Weights of depth are a compromise between the metrics. All images weigh the same.
        weight = valid * patches / rms
        weight *= patches.shape[1] / weight.sum(axis=1, keepdims=True)
        self.target, self.weight = (
            np.stack([values, self.mirrored(values)][:self.passes], axis=1)
            for values in (np.log(patches), weight))
        usable = np.isfinite(self.base)
        self.weight[~usable] = 0.0
        self.base[~usable] = 0.0

    def mirrored(self, values: Float64) -> Float64:
        """Mirror (F, P) maps from left to right."""
        return values.reshape(len(values), *self.grid)[..., ::-1].reshape(values.shape)

    def log_scale(self, frames: NDArray[np.intp]) -> float:
        """Fit one factor of depth to some frames; return its logarithm."""
        weight = self.weight[frames]
        return float((weight * (self.target - self.base)[frames]).sum() / weight.sum())

    def mean_map(self, frames: NDArray[np.intp]) -> Float64:
        """Return the mean log depth (passes, P) of some frames, a predictor without an image."""
        weight, target = self.weight[frames], self.target[frames]
        total = float((weight * target).sum() / weight.sum())
        return np.asarray(
            ((weight * target).sum(axis=0) + 1e-3 * total) / (weight.sum(axis=0) + 1e-3))

    def depth(self, log_depth: Float64) -> Float64:
        """Average (F, passes, P) log depth over the passes, mirrored back, to (F, P) metres."""
        depth = np.exp(log_depth.clip(-10, 10))
        if self.passes == 1:
            return np.asarray(depth[:, 0])
        return np.asarray(0.5 * (depth[:, 0] + self.mirrored(depth[:, 1])))

    def upsampled(self, patches: Float64) -> Float64:
        """Upsample (F, P) patches to the (F, S) measured pixels."""
        return np.asarray((self.pixels @ patches.ravel()).reshape(self.truth.shape))

    def scores(self, log_depth: Float64) -> Float64:
        """Score (F, passes, P) log depth: (F, 3) rmse in metres, delta 1 and rel of a frame."""
        depth, truth = self.upsampled(self.depth(log_depth)), self.truth
        ratio = np.maximum(depth / truth, truth / depth)
        return np.stack([
            np.sqrt(((depth - truth) ** 2).mean(axis=1)), (ratio < 1.25).mean(axis=1),
            (np.abs(depth - truth) / truth).mean(axis=1)], axis=1)

    def fold_rmse(self, log_depth: Float64) -> Float64:
        """Return the rmse of every fold in metres, the mean over its frames."""
        errors = self.scores(log_depth)[:, 0]
        return np.array([errors[self.fold == fold].mean() for fold in range(self.folds)])


def _folds(sequence: Sequence[int], folds: int) -> NDArray[np.int64]:
    """Assign whole sequences to folds of similar numbers of frames."""
    names, owner, counts = np.unique(sequence, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    load, fold = np.zeros(folds), np.empty(len(names), np.int64)
    for position in order[np.argsort(-counts[order], kind='stable')]:
        fold[position] = load.argmin()
        load[fold[position]] += counts[position]
    return np.asarray(fold[owner])


def target_of(depth: Float32, grid: Size, mode: str, seed: int) -> Target | None:
    """Fit the depth of patches whose upsampled map is nearest to measured depth.

    Args:
        depth: (H, W) measured depth in metres, NaN where there is none.
        grid: (h, w) of the patches.
        mode: of upsampling.
        seed: of the random sample of pixels, where there are more than needed.

    Returns:
        The target; None if no pixel is measured.

    """
    h, w = grid
    rows, columns = (upsampling_weights(count, size, mode).numpy().astype(np.float64)
                     for count, size in zip(grid, depth.shape, strict=True))
    pixels = np.flatnonzero((depth >= MIN_DEPTH) & (depth <= MAX_DEPTH))
    if not len(pixels):
        return None
    rng = np.random.default_rng(seed)
    if len(pixels) > PIXELS_PER_PATCH * h * w:
        pixels = np.sort(rng.choice(pixels, PIXELS_PER_PATCH * h * w, replace=False))
    truth = depth.reshape(-1)[pixels].astype(np.float64)
    matrix = kron(csr_matrix(rows), csr_matrix(columns), 'csr')[pixels]
    r, c = np.divmod(pixels, depth.shape[1])
    nearest = rows.argmax(axis=1)[r] * w + columns.argmax(axis=1)[c]
    counts = np.bincount(nearest, minlength=h * w)
    valid = counts > 0
    means = np.bincount(nearest, np.log(truth), h * w) / np.maximum(counts, 1)
    means = np.exp(np.where(valid, means, np.median(means[valid])))
    ridge = RIDGE * len(pixels) / valid.sum()
    patches = np.linalg.solve((matrix.T @ matrix).toarray() + ridge * np.eye(h * w),
                              matrix.T @ truth + ridge * means)
    patches = patches.clip(means / MAX_RATIO, means * MAX_RATIO)
    sample = rng.choice(len(pixels), PIXELS_PER_FRAME, replace=len(pixels) < PIXELS_PER_FRAME)
    return Target(np.where(valid, patches, np.nan).astype(np.float32),
                  matrix[sample].astype(np.float32), truth[sample].astype(np.float32))


def geometric_mean(values: Float64) -> float:
    """Return the geometric mean of values; 1 for an empty array."""
    return math.exp(np.log(values).mean()) if len(values) else 1.0
