# SPDX-License-Identifier: Apache-2.0
"""DepthCLIP without ROS: images in, depth out.

The estimator needs torch and is imported on first use, so that settings, errors and geometry
can be used without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import DepthConfig, describe
from .errors import (
    CalibrationError,
    CameraInfoError,
    ConfigError,
    DataError,
    DepthClipError,
    DeviceError,
    EngineError,
    ImageError,
    WeightsError,
)

if TYPE_CHECKING:
    from .camera_image import CameraImage
    from .estimator import DepthEstimator
    from .prediction import DepthPrediction

__all__ = [
    'CalibrationError', 'CameraImage', 'CameraInfoError', 'ConfigError', 'DataError',
    'DepthClipError', 'DepthConfig', 'DepthEstimator', 'DepthPrediction', 'DeviceError',
    'EngineError', 'ImageError', 'WeightsError', 'describe',
]


def __getattr__(name: str) -> Any:
    """Import the estimator, and with it torch, on first use."""
    if name in ('CameraImage', 'DepthEstimator', 'DepthPrediction'):
        from . import estimator
        return getattr(estimator, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
