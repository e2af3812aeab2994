# SPDX-License-Identifier: Apache-2.0
"""One image of `depthclip view` and its prediction, for windows, files and Rerun."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..drawing.color import UNTRAINED
from ..drawing.overlay import depth_text, draw, scene_text, weights_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.camera import CameraModel
    from ..core.estimator import DepthEstimator
    from ..core.prediction import DepthPrediction
    from ..drawing.color import Picture, Scale
    from ..report.figures import Place
    from .predict import NamedFrame

    Point = tuple[float, float]  # x and y in pixels
    #: Shows an image; returns False if the user wants no more.
    Show = Callable[['PredictedImage'], bool]


class PredictedImage(NamedTuple):
    """One image and its prediction."""

    number: int  # from 1 on
    image: NamedFrame
    prediction: DepthPrediction
    estimator: DepthEstimator
    camera: CameraModel | None  # None if unknown
    live: bool  # of a webcam: the next image replaces it
    scale: Scale  # of the colours of depth

    @property
    def warning(self) -> str:
        """Warning of untrained weights, or ''."""
        return '' if self.estimator.weights.trained else UNTRAINED

    @property
    def title(self) -> str:
        """Line above the picture: warning, name, scene, calibration."""
        return ', '.join(filter(None, (self.warning, self.image.name,
                                       scene_text(self.prediction), self.estimator.label)))

    def patch_text(self, place: Place) -> str:
        """Format depth and the strongest words of a patch on one line."""
        depth = depth_text(self.prediction, *place).replace('\n', ' ')
        return f'{depth}: {weights_text(self.prediction, *place, self.estimator.config.tokens)}'

    def paint(self, place: Place | None = None) -> Picture:
        """Paint the picture that the node publishes as depth/words, BGR."""
        return draw(self.image.rgb, self.prediction, self.estimator.config, place,
                    [*filter(None, (self.image.name, self.estimator.label))], self.warning,
                    self.scale)
