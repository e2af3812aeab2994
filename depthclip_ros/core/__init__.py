# SPDX-License-Identifier: Apache-2.0
"""DepthCLIP without ROS: images in, depth out."""

from .config import DepthConfig, NodeConfig, describe, read_config
from .errors import (
    CameraInfoError, ConfigError, DataError, DepthClipError, DeviceError, ImageError,
    WeightsError,
)

__all__ = [
    'CameraInfoError', 'ConfigError', 'DataError', 'DepthClipError', 'DepthConfig', 'DeviceError',
    'ImageError', 'NodeConfig', 'WeightsError', 'describe', 'read_config',
]
