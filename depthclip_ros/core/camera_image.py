# SPDX-License-Identifier: Apache-2.0
"""An image with its camera, anchor and previous scene. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from .anchor import Adjustment
    from .camera import CameraModel
    from .config import Size
    from .scenes import Scene

    # (h, w) depth of the patches [m], (h, w) its standard deviation [m] or None, (H, W) of the
    # image, `upsampling` -> the adjustment of depth. Called once per image, before range limits.
    Anchor = Callable[['Metres', 'Metres | None', Size, str], Adjustment]

Rgb = NDArray[np.uint8]
Metres = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CameraImage:
    """An image with its camera, anchor and previous scene.

    Attributes:
        rgb: (H, W, 3) uint8. It is stretched to the network's input size.
        camera: the camera that took it; its focal length scales depth, see `reference_focal`.
        anchor: function that gives the scale of its depth, from points of another sensor.
        scene: scene of the same camera's previous image, which `scene_memory` weighs.

    """

    rgb: Rgb
    camera: CameraModel | None = None
    anchor: Anchor | None = None
    scene: Scene | None = None

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.rgb.shape[0], self.rgb.shape[1]
