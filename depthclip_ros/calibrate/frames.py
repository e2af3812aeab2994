# SPDX-License-Identifier: Apache-2.0
"""What a fit needs to know of every frame: the network's answer, and the depth to be reached."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..core.calibration import image_digest, mirrored_rays
from ..core.camera import focal_ratio
from ..core.errors import CalibrationError, ImageError
from ..core.estimator import DepthEstimator, words
from ..core.projection import shares

if TYPE_CHECKING:
    from ..core.config import Size
    from .fit import Sample

Float32 = NDArray[np.float32]

FEWEST_FRAMES, FEWEST_BLOCKS = 8, 3
MOST_BYTES = 2 << 30  # of the maps of all frames
# Pixels a patch that its depth is found from, and pixels a frame that errors are measured at.
PIXELS_A_PATCH, PIXELS_A_FRAME = 64, 400
# How strongly a patch's depth is drawn to the mean of its own pixels, against what the upsampled
# picture wants: next to nothing where pixels are dense, enough where they are sparse.
DRAWN = 0.03
FARTHEST = 2.0  # times its own mean that a patch's depth may be off for the picture's sake
LEAST_DEPTH, LARGEST_DEPTH = 0.05, 200.0  # m; what is beyond is no measurement


@dataclass(frozen=True)
class Target:
    """Depth of one frame, as it is wanted.

    Attributes:
        patches: (P,) metres that, upsampled as configured, come nearest to the measured depth in
            the sense of least squares; NaN where nothing was measured.
        support: (P,) from 0 to 1, how much was measured there.
        index: (S, 4) patches from which a pixel's depth is upsampled.
        share: (S, 4) their shares.
        truth: (S,) measured there, metres.

    """

    patches: Float32
    support: Float32
    index: NDArray[np.int32]
    share: Float32
    truth: Float32


@dataclass
class Frames:
    """All frames of a fit.

    Every list has one entry a frame; the passes of `flip_average` are beside each other in it.

    Attributes:
        estimator: without a calibration.
        weights: (passes, K, h, w).
        depth: (passes, h, w) metres by words, without the focal ratio.
        spread: (passes, h, w) metres.
        trunk: (passes, C', h, w) float16.
        rays: (passes, 2, h, w), x and y of the patches' centres at z = 1; from `check` on.
        ratio: focal ratio; NaN until `check` where the camera is unknown.
        targets: what is wanted.
        sequence: as the samples'.
        digests: of the images.

    """

    estimator: DepthEstimator
    weights: list[Float32] = field(default_factory=list)
    depth: list[Float32] = field(default_factory=list)
    spread: list[Float32] = field(default_factory=list)
    trunk: list[NDArray[np.float16]] = field(default_factory=list)
    rays: list[Float32] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    sequence: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    empty: int = 0  # frames without any depth, which are left out
    cameras: list[Float32] = field(default_factory=list)  # (h, w, 2), NaN where unknown

    @property
    def camera_known(self) -> bool:
        """Whether any frame's camera is."""
        return bool(np.isfinite(self.cameras).any())

    def add(self, sample: Sample) -> None:
        """See a frame; nothing of its pixels is kept.

        Raises:
            CalibrationError: its depth has no usable shape, or there are too many frames.
            ImageError: its image has another shape or type.
            CameraInfoError: its camera is not for images of that size.

        """
        estimator, config = self.estimator, self.estimator.config
        if sample.rgb.ndim != 3:
            raise ImageError('not an RGB image', f'the image is {sample.rgb.shape}.')
        if sample.depth.ndim != 2 or 0 in sample.depth.shape:
            raise CalibrationError(f'depth: of shape {sample.depth.shape}, not (height, width).')
        size = sample.rgb.shape[0], sample.rgb.shape[1]
        camera, (h, w) = sample.camera, estimator.grid
        ratio = focal_ratio(config.reference_focal, camera, size, config.input_size)
        target = wanted(sample.depth, estimator.grid, config.upsampling, len(self.targets))
        if target is None:
            self.empty += 1
            return
        maps = estimator.maps([sample.rgb])
        with torch.inference_mode():
            logits = estimator.logits(maps.features)[:, 0]
            weights, depth, spread = words(logits, estimator.bins, config.read_out)
        self.cameras.append(
            np.full((h, w, 2), np.nan, np.float32) if camera is None else
            camera.patch_rays(h, w)[..., :2].astype(np.float32))
        self.weights.append(weights.cpu().numpy())
        self.depth.append(depth.cpu().numpy())
        self.spread.append(spread.cpu().numpy())
        self.trunk.append(maps.trunk[:, 0].half().cpu().numpy())
        self.ratio.append(math.nan if camera is None else ratio)
        self.targets.append(target)
        self.sequence.append(sample.sequence)
        self.digests.append(sample.digest or image_digest(sample.rgb))
        if len(self.trunk) * self.trunk[0].nbytes > MOST_BYTES:
            raise CalibrationError(
                f'{len(self.trunk)} frames need more than {MOST_BYTES >> 30} GiB for the maps of '
                'the network; take fewer, spread over the recording: 200 are plenty.')

    def check(self) -> None:
        """Check that there is enough; unknown cameras then count as those that are known.

        Raises:
            CalibrationError: there is not.

        """
        count, blocks = len(self.targets), len(set(self.sequence))
        left_out = f' ({self.empty} without any depth are left out)' if self.empty else ''
        if count < FEWEST_FRAMES:
            raise CalibrationError(
                f'{count} frames with depth{left_out} are too few: at least {FEWEST_FRAMES} are '
                'needed, 60 from different places are good. Record longer.')
        if blocks < FEWEST_BLOCKS:
            raise CalibrationError(
                f'{blocks} sequences are too few to test on others than were fitted to: at least '
                f'{FEWEST_BLOCKS} are needed. Record in several rooms, or cut it into blocks.')
        known = [ratio for ratio in self.ratio if not math.isnan(ratio)]
        usual = geometric_mean(known) if known else 1.0
        self.ratio = [usual if math.isnan(ratio) else ratio for ratio in self.ratio]
        usual_rays, passes = self.view()['rays'], len(self.depth[0])
        for camera in self.cameras:
            rays = np.where(np.isfinite(camera), camera, usual_rays)
            self.rays.append(np.stack(
                [rays, mirrored_rays(rays)][:passes]).transpose(0, 3, 1, 2))

    def view(self) -> dict[str, Float32]:
        """Where the cameras look: 'rays' and 'bounds' of a `Calibration`."""
        cameras = np.stack(self.cameras)
        known = np.isfinite(cameras)
        rays = np.where(known, cameras, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        seen = cameras[known.all(axis=-1)]
        bounds = [seen.min(axis=0), seen.max(axis=0)] if len(seen) else np.zeros((2, 2))
        return {'rays': rays.astype(np.float32), 'bounds': np.array(bounds, np.float32)}


def wanted(
    depth: Float32, grid: Size, mode: str, seed: int,
) -> Target | None:
    """Find the depth of patches that is best after upsampling.

    Args:
        depth: (H, W) metres, NaN where unknown.
        grid: (h, w) of the patches.
        mode: of upsampling.
        seed: of the choice of pixels, where there are more than are needed.

    Returns:
        None where nothing was measured.

    """
    (h, w), (height, width) = grid, depth.shape
    row_shares, column_shares = (
        shares(patches, pixels, mode).numpy().astype(np.float64)
        for patches, pixels in ((h, height), (w, width)))
    row, column = (part.argmax(axis=1) for part in (row_shares, column_shares))
    places = np.flatnonzero((depth >= LEAST_DEPTH) & (depth <= LARGEST_DEPTH))
    if not len(places):
        return None
    rng = np.random.default_rng(seed)
    most = PIXELS_A_PATCH * h * w
    if len(places) > most:
        places = np.sort(rng.choice(places, most, replace=False))
    r, c = np.divmod(places, width)
    truth = depth.reshape(-1)[places].astype(np.float64)
    index, share = _corners(row_shares[r], column_shares[c], w)
    count = len(places)
    matrix = csr_matrix((share.ravel(), index.ravel(), np.arange(0, 4 * count + 1, 4)),
                        shape=(count, h * w))
    own = row[r] * w + column[c]
    counts = np.bincount(own, minlength=h * w)
    means = np.bincount(own, np.log(truth), h * w) / np.maximum(counts, 1)
    measured = counts > 0
    means = np.exp(np.where(measured, means, np.median(means[measured])))
    normal = (matrix.T @ matrix).toarray()
    drawn = DRAWN * count / measured.sum()
    patches = np.linalg.solve(normal + drawn * np.eye(h * w), matrix.T @ truth + drawn * means)
    patches = patches.clip(means / FARTHEST, means * FARTHEST)
    support = np.minimum(1.0, counts / (0.25 * np.median(counts[measured])))
    chosen = rng.choice(count, PIXELS_A_FRAME, replace=count < PIXELS_A_FRAME)
    return Target(
        np.where(measured, patches, np.nan).astype(np.float32), support.astype(np.float32),
        index[chosen].astype(np.int32), share[chosen].astype(np.float32),
        truth[chosen].astype(np.float32))


def _corners(
    rows: NDArray[np.float64], columns: NDArray[np.float64], w: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The four patches around every pixel, and their shares, from those of rows and columns."""
    i, j = (_first(part) for part in (rows, columns))
    n = np.arange(len(rows))
    index, share = [], []
    for a in (0, 1):
        for b in (0, 1):
            p, q = np.minimum(i + a, rows.shape[1] - 1), np.minimum(j + b, columns.shape[1] - 1)
            index.append(p * w + q)
            twice = (p == i) & (a == 1) | (q == j) & (b == 1)
            share.append(np.where(twice, 0.0, rows[n, p] * columns[n, q]))
    return np.stack(index, axis=1), np.stack(share, axis=1)


def _first(part: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first patch that has a share, of at most two neighbours."""
    return np.asarray((part > 0).argmax(axis=1))


def geometric_mean(values: list[float]) -> float:
    """Mean of what is a factor."""
    return math.exp(sum(map(math.log, values)) / len(values))
