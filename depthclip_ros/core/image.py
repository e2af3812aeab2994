# SPDX-License-Identifier: Apache-2.0
"""One image, and what is known of it. Needs no torch."""

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
    from .words import Scene

    # (h, w) depth of the patches in metres, (h, w) its standard deviation in metres or None,
    # (H, W) of the image, and `upsampling` -> what becomes of it. Asked once, before limits.
    Anchor = Callable[['Metres', 'Metres | None', Size, str], Adjustment]

Rgb = NDArray[np.uint8]
Metres = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CameraImage:
    """One image, and what is known of it.

    Attributes:
        rgb: (H, W, 3) uint8. One that is not of the network's size is resized to it, whatever its
            aspect ratio.
        camera: that took it; its focal length counts as `reference_focal` says.
        anchor: what knows the scale of its depth.
        scene: of the same camera's image before, of which `scene_memory` keeps a part.

    """

    rgb: Rgb
    camera: CameraModel | None = None
    anchor: Anchor | None = None
    scene: Scene | None = None

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.rgb.shape[0], self.rgb.shape[1]
