# SPDX-License-Identifier: Apache-2.0
"""Calibrations made up for tests."""

from __future__ import annotations

import math

import numpy as np

from depthclip_ros.core.calibration import (
    FITTED_SETTINGS,
    SCALARS,
    STDDEV_PREDICTORS,
    Calibration,
    CalibrationOrigin,
    embedding_size,
    empty_kernel,
)
from depthclip_ros.core.camera import CameraModel


def arrays_for(estimator, **changes):
    """A correction that corrects nothing, with a relative standard deviation of 0.1."""
    config = estimator.config
    spread = np.zeros(STDDEV_PREDICTORS)
    spread[0] = math.log(0.1)
    camera = CameraModel.pinhole(config.input_width, config.input_height, config.input_width)
    arrays = {
        'bias': 0.0, 'spread': spread, 'knots': [[0, 1], [0, 0]],
        'rays': camera.patch_rays(*estimator.grid)[..., :2],
        **empty_kernel(estimator.model.channels), **changes}
    rays = np.reshape(arrays['rays'], (-1, np.shape(arrays['rays'])[-1]))[:, :2]
    arrays.setdefault('bounds', [rays.min(axis=0), rays.max(axis=0)])
    return {name: np.asarray(values, np.float32) for name, values in arrays.items()}


def origin(estimator, **changes):
    """What belongs to an estimator."""
    config = estimator.config.to_dict()
    return CalibrationOrigin(**{
        'source': 'a test', 'variant': 'full', 'frames': 60, 'blocks': 10,
        'weights': estimator.weights.digest, 'weights_name': estimator.weights.name,
        'focal_ratio': 1.0, 'config': {name: config[name] for name in FITTED_SETTINGS}, **changes})


def calibration_for(estimator, origin_changes=None, **changes):
    """A calibration that belongs to an estimator."""
    return Calibration(origin(estimator, **(origin_changes or {})),
                            arrays_for(estimator, **changes))


def random_arrays(estimator, seed=0):
    """A correction that uses all of its terms."""
    rng = np.random.default_rng(seed)
    arrays = arrays_for(estimator)
    spread = rng.normal(0, 0.05, STDDEV_PREDICTORS)
    spread[0] = math.log(0.15)
    directions, landmarks = 5, 7
    width = arrays['projection'].shape[1]
    kernel = {
        'bias': rng.normal(0, 0.1),
        'projection': rng.normal(0, width ** -0.5, (directions, width)),
        'offset': rng.normal(0, 0.1, directions), 'scales': rng.normal(0, 0.3, SCALARS),
        'landmarks': rng.normal(0, 0.3, (landmarks, embedding_size(directions))),
        'kernel': rng.normal(0, 0.3, landmarks)}
    return {**arrays, **{name: np.float32(values) for name, values in kernel.items()},
            'spread': spread.astype(np.float32),
            'knots': np.float32([[0.2, 0.6, 0.9], [0.1, -0.1, 0.3]])}
