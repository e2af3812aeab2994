# SPDX-License-Identifier: Apache-2.0
"""A closed-form correction of the language depth, from frames whose depth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.calibration import Calibration
from ..core.estimator import DepthEstimator
from ..core.geometry import CameraModel

VARIANTS = ('auto', 'full', 'monotone', 'scale', 'none')


@dataclass(frozen=True)
class Sample:
    """One frame whose depth is known.

    Attributes:
        rgb: (H, W, 3) uint8.
        depth: (H', W') float32 metres along the optical axis of that camera, of the same view,
            NaN where it is unknown; it may be coarser than the image, and sparse.
        camera: that took the image; None where it is unknown.
        sequence: frames of one sequence (a room, or a block of time of one drive) look alike: all
            of them are in the part that is fitted to or in the part that is tested on, never
            some here and some there.
        time: seconds, for the report only.

    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    camera: CameraModel | None = None
    sequence: int = 0
    time: float = 0.0


@dataclass(frozen=True)
class Options:
    """How a calibration is fitted.

    Attributes:
        variant: 'auto' for the one that the held-out frames show to be worth it, or 'full' (blocks
            of features), 'monotone' (the bins only), 'scale' (one factor), 'none'.
        source: what it was calibrated on, in words, for its label.
        mirror: every frame counts a second time mirrored.
        learning_curve: numbers of frames at which held-out errors are reported.

    """

    variant: str = 'auto'
    source: str = 'a recording'
    mirror: bool = True
    learning_curve: tuple[int, ...] = (10, 30, 60, 200)


@dataclass(frozen=True)
class Metrics:
    """Means over images, on frames that the fit did not see."""

    rmse: float  # m
    delta1: float
    abs_rel: float


@dataclass(frozen=True)
class Fitted:
    """What came out of `fit`.

    Attributes:
        calibration: to be saved; None where the verdict is that nothing helps.
        variant: the one that was chosen.
        improved: whether held-out blocks show at least 5 % less rmse than both the one fitted
            scale and the mean map.
        verdict: all of that in a sentence or two.
        held_out: by variant ('language': what is there without calibration, focal length counted;
            'mean map', 'scale', 'monotone', 'full', and 'shuffled': the full one fitted to the
            depth of other frames), each on frames of blocks that it was not fitted to.
        folds: rmse in metres of 'language', 'mean map', 'scale' and the chosen one in every fold.
        learning_curve: (frames, held-out rmse of 'full').
        r2: share of the variance of the residual of log depth that the full correction explains
            in held-out blocks; negative where it does harm.
        condition: of the normal equations.
        temperature: with the greatest held-out likelihood, at the configured words and bins.
        monotone_bins: metres, the fitted bins of the 'monotone' variant.
        coverage: share of held-out pixels within 1.645 standard deviations.
        sensor_model: a, b, c, d, e of elevation_mapping: sigma = a + b (z - c)^2 + d z^e.
        choices: ridge parameters by block, and whatever else was chosen.
        frames: number of frames.
        blocks: number of sequences or blocks of time.

    """

    calibration: Calibration | None
    variant: str
    improved: bool
    verdict: str
    held_out: dict[str, Metrics]
    folds: list[dict[str, float]]
    learning_curve: list[tuple[int, float]]
    r2: float
    condition: float
    temperature: float
    monotone_bins: tuple[float, ...]
    coverage: float
    sensor_model: tuple[float, float, float, float, float]
    choices: dict[str, Any] = field(default_factory=dict)
    frames: int = 0
    blocks: int = 0


def fit(
    estimator: DepthEstimator, samples: Iterable[Sample], options: Options = Options(),
    log: Callable[[str], None] = print,
) -> Fitted:
    """Fit a correction of the language depth, and say whether it is worth having.

    Args:
        estimator: as configured without a calibration.
        samples: at least two blocks of frames; read once, in order.
        options: what to fit.
        log: told what happens.

    Raises:
        CalibrationError: no depth can be compared, or there are too few frames or blocks.

    """
    raise NotImplementedError
