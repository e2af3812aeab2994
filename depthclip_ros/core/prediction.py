# SPDX-License-Identifier: Apache-2.0
"""The depth of one image, and what it was made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .anchor import Adjustment
from .config import DepthConfig, Size
from .errors import ImageError
from .image import Metres
from .projection import float32, upsample
from .words import Scene, mixed_bins

NOT_ADJUSTED = Adjustment()


@dataclass(frozen=True)
class DepthPrediction:
    """Depth of one image, as NumPy arrays in float32.

    Attributes:
        depth: (H, W) metres along the optical axis, for the whole image. NaN where the network's
            features vanish (with `features: reference`), and where its answer is beyond
            `range_min` or `range_max`; there also -Inf and +Inf, as `out_of_range` says.
            `upsampling` says where a patch's depth stands.
        patch_depth: (h, w) metres, one per patch (eq. 5), before upsampling; NaN and infinite as
            `depth`. The patches tile the image; their depth is that at their centres.
        weights: (K, h, w) weight of every bin (eq. 4), sums to 1 over K.
        logits: (K, h, w) scaled similarity with every token (eq. 3).
        spread: (h, w) metres, standard deviation of the bins under the weights: a relative score
            of how undecided a patch is, not an error bar.
        image_size: (H, W) of the image.
        upsampling: from patches to pixels.
        focal_ratio: the camera's focal length over `reference_focal`, by which depth and spread
            are multiplied. Where the camera is unknown, that of the calibration; 1 without one.
        adjustment: what the anchor made of depth; nothing without one.
        patch_stddev: (h, w) metres, standard deviation of `patch_depth`, whatever the range and
            `max_stddev`: in the calibration's own scenes the truth is within 1.645 of `stddev` for
            90 % of the pixels. None without a calibration.
        scene: what kind of scene it is, on which the bins depend; None without `scenes`.

    With `flip_average`, `depth` and `patch_depth` are the mean of both passes; the others are
    those of the plain pass. `weights` and `logits` are the network's own answer, whatever the
    range.
    """

    depth: Metres
    patch_depth: Metres
    weights: NDArray[np.float32]
    logits: NDArray[np.float32]
    spread: Metres
    image_size: Size
    upsampling: str
    focal_ratio: float = 1.0
    adjustment: Adjustment = NOT_ADJUSTED
    patch_stddev: Metres | None = None
    scene: Scene | None = None

    def stddev(self) -> Metres | None:
        """Standard deviation of `depth`: (H, W) metres, NaN where that has none; or None."""
        if self.patch_stddev is None:
            return None
        # The patches that take part in a pixel's depth take part in this, with the same shares.
        known = np.where(np.isfinite(self.patch_depth), self.patch_stddev, np.float32(np.nan))
        height, width = self.depth.shape
        return upsample(torch.from_numpy(known)[None], (height, width), self.upsampling)[0].numpy()

    def patch_at(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of the patch that shows a place in the image.

        Args:
            x: column of the image in pixels, whose centres are at integers.
            y: row, likewise.

        Raises:
            ImageError: none does.

        """
        height, width = self.image_size
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise ImageError('outside the image', f'the point {x:g},{y:g} is outside of its '
                             f'{width} x {height} pixels.')
        rows, columns = self.patch_depth.shape
        return math.floor((y + 0.5) / height * rows), math.floor((x + 0.5) / width * columns)

    def word_depths(self, config: DepthConfig) -> list[float]:
        """Metres that each of the K words stands for in this image, by its scene and camera.

        A calibration corrects what follows from them, not them.

        Args:
            config: with which the image was answered.

        """
        bins, scene = float32(config.bins), self.scene
        if scene is not None:
            bins = mixed_bins(
                torch.from_numpy(scene.probabilities)[None], float32([scene.plain]),
                float32(config.bins_of_scenes()), bins)[0]
        factor = self.focal_ratio * self.adjustment.scale
        return [factor * float(metres) for metres in bins]
