# SPDX-License-Identifier: Apache-2.0
"""Rows of calibrated depth, from the same pass over the images: no longer zero-shot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from depthclip_ros.core import DepthEstimator
from depthclip_ros.core.calibration import Calibration

from .contenders import Contender
from .errors import EvaluationError

if TYPE_CHECKING:
    from .scorer import Seen

# Focal lengths, in widths of what the network sees, that differ by less are one.
_SAME_VIEW = 0.01


@dataclass(frozen=True)
class Calibrated:
    """Depth as a calibration file corrects it.

    Attributes:
        path: of the file.
        calibration: its content, which belongs to the model and the settings.

    """

    path: str
    calibration: Calibration

    @classmethod
    def open(cls, path: Path, estimator: DepthEstimator, focal: float) -> Calibrated:
        """Read a file, and check that it belongs to what is evaluated.

        Args:
            path: of the calibration.
            estimator: as it is evaluated, which knows no focal length.
            focal: focal length of what the network sees, in its widths; 0 if not known.

        Raises:
            CalibrationError: it is damaged, or of another model or other settings.
            EvaluationError: it was fitted to another view.

        """
        calibration = Calibration.load(path)
        # Here its own focal ratio counts.
        checked = estimator.read_calibration(estimator.config.replace(
            calibration=str(path),
            reference_focal=calibration.about.config['reference_focal']))
        assert checked is not None  # noqa: S101 - a path was given
        own = _focal_of(checked) if checked.about.camera_known else focal
        if focal and abs(own / focal - 1) > _SAME_VIEW:
            raise EvaluationError(
                f'--calibration {path}: it was fitted to a view with a focal length of {own:.3f} '
                f'widths, and the network sees one of {focal:.3f} here. Calibrate with the '
                '--protocol that is evaluated.')
        return cls(str(path), checked)

    def contender(self) -> Contender:
        """Its row."""
        about = self.calibration.about
        what = 'training images' if about.split else f'images of {about.source}'
        seen = 'none of them is evaluated, compared bit by bit' if about.images else (
            'which ones the file does not say, so that evaluated images MAY BE AMONG THEM')
        variant = 'no' if about.variant == 'none' else about.variant
        return Contender(
            f'calibrated on {about.frames} {what}', 'calibrated',
            f'no longer zero-shot: {Path(self.path).name} ({variant} correction), '
            f'fitted to {about.split or about.source}; {seen}',
            self.calibration.digest, depth=self.depth)

    def depth(self, seen: Seen) -> Tensor:
        """Correct the depth of patches: (B, h, w) metres.

        Raises:
            EvaluationError: it was fitted to one of the images.

        """
        about = self.calibration.about
        known = set(about.images)
        for image in seen.images:
            if image.seen_before in known:
                raise EvaluationError(
                    f'--calibration {self.path}: it was fitted to image {image.position} of the '
                    'data set (of those that are evaluated, counted from 0). Calibrate on a '
                    'training split.')
        reference = float(about.config['reference_focal'])
        ratios = [f / reference if f and reference else about.focal_ratio
                  for f in seen.focal.tolist()]
        rays = self.calibration.rays([None] * len(ratios), flip=seen.passes > 1)
        said = seen.estimator.read_out(seen.logits[seen.estimator.config.tokens])
        return seen.smoothed(self.calibration.correct(
            *said, seen.maps.trunk, rays, ratios * seen.passes)[0])


def _focal_of(calibration: Calibration) -> float:
    """Focal length of its camera, in widths of what the network saw."""
    x = calibration.arrays['rays'][..., 0]
    count = x.shape[1]
    return float((count - 1) / count / np.median(x[:, -1] - x[:, 0]))
