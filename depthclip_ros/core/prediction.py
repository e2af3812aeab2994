# SPDX-License-Identifier: Apache-2.0
"""The depth of one image, with the weights, logits and adjustments behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .anchor import Adjustment
from .camera_image import Metres
from .config import DepthConfig, Size
from .errors import ImageError
from .readout import float32, upsample
from .scenes import Scene, mixed_bins

NOT_ADJUSTED = Adjustment()


@dataclass(frozen=True)
class DepthPrediction:
    """Depth of one image, as NumPy arrays in float32.

    Attributes:
        depth: (H, W) metres along the optical axis. NaN where the network's features vanish (with
            `features: reference`); NaN, -Inf, +Inf or the limit beyond `range_min` and
            `range_max`, as `out_of_range` says.
        patch_depth: (h, w) metres at the centres of the patches that tile the image: eq. 5
            and all corrections, before upsampling; NaN and infinite as `depth`.
        weights: (K, h, w) weight of every bin (eq. 4), sums to 1 over K.
        logits: (K, h, w) scaled similarity with every token (eq. 3).
        spread: (h, w) metres, standard deviation of the bins under the weights: how undecided a
            patch is, not an error bar.
        image_size: (H, W) of the image.
        upsampling: interpolation from patches to pixels, see `upsample`.
        focal_ratio: the camera's focal length over `reference_focal`, by which depth and spread
            are multiplied. Without a camera it is the calibration's; 1 without a calibration.
        adjustment: factors of the anchor; all 1 without an anchor.
        patch_stddev: (h, w) metres, standard deviation of `patch_depth`, without limits of range
            and `max_stddev`: in the calibration's scenes the truth is within 1.645 `stddev` for
            90 % of the pixels. None without a calibration.
        scene: kind of scene, on which the bins depend; None without `scenes`.

    With `flip_average`, `depth` and `patch_depth` are the mean of both passes, and `patch_stddev`
    is in proportion to it; the others are those of the plain pass. The limits of range do not
    change `weights` and `logits`.
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
        """Upsample the standard deviation to (H, W) metres, NaN where depth is; or None."""
        if self.patch_stddev is None:
            return None
        # The same patches as in a pixel's depth, with the same weights.
        stddev = np.where(np.isfinite(self.patch_depth), self.patch_stddev, np.float32(np.nan))
        height, width = self.depth.shape
        patches = torch.from_numpy(stddev)[None]
        return upsample(patches, (height, width), self.upsampling)[0].numpy()

    def patch_at(self, x: float, y: float) -> tuple[int, int]:
        """Find row and column of the patch that contains a point of the image.

        Args:
            x: column in pixels, whose centres are at integers.
            y: row, likewise.

        Raises:
            ImageError: the point is outside the image.

        """
        height, width = self.image_size
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise ImageError('outside the image', f'the point {x:g},{y:g} is outside of its '
                             f'{width} x {height} pixels.')
        rows, columns = self.patch_depth.shape
        return math.floor((y + 0.5) / height * rows), math.floor((x + 0.5) / width * columns)

    def word_depths(self, config: DepthConfig) -> list[float]:
        """Compute the depth in metres of each of the K words in this image.

        It depends on scene and camera, but on no calibration, which corrects the depth that
        follows. `config` is that of the prediction.
        """
        bins, scene = float32(config.bins), self.scene
        if scene is not None:
            bins = mixed_bins(
                torch.from_numpy(scene.probabilities)[None], float32([scene.bins_weight]),
                float32(config.bins_of_scenes()), bins)[0]
        scale = self.focal_ratio * self.adjustment.scale
        return [scale * float(metres) for metres in bins]
