# SPDX-License-Identifier: Apache-2.0
"""Bayer and packed YUV pixels to RGB, by the package that is installed for it.

These are the encodings that NumPy does not read directly. ``cv_bridge`` converts them where it is
installed and works, else ``rosbags-image``. Both call OpenCV's ``cvtColor`` with the same codes,
so the colours are the same.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from depthclip_ros.core.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# What the message says -> the name that both packages know. (Of 16-bit mosaics the caller takes
# the upper 8 bits first: OpenCV interpolates those twenty times faster, within one step of 255.)
BAYER = {
    f'bayer_{pattern}{bits}': f'bayer_{pattern}8'
    for pattern in ('rggb', 'bggr', 'gbrg', 'grbg')
    for bits in (8, 16)
}
PACKED_YUV = {
    'yuv422': 'yuv422',  # U Y V Y
    'uyvy': 'yuv422',
    'yuv422_yuy2': 'yuv422_yuy2',  # Y U Y V
    'yuyv': 'yuv422_yuy2',
}

# A cv_bridge that was built for another major version of NumPy does not only raise when it is
# imported or used: it can take the process with it. So another process tries it first.
_PROBE = """
import sys
from types import SimpleNamespace
import cv2, numpy
from cv_bridge import CvBridge
image = SimpleNamespace(height=4, width=4, encoding='bayer_rggb8', step=4,
                        is_bigendian=int(sys.byteorder == 'big'),
                        data=numpy.full(16, 100, numpy.uint8))
rgb = CvBridge().imgmsg_to_cv2(image, 'rgb8')
assert rgb.shape == (4, 4, 3) and (rgb == 100).all(), rgb
"""
_PROBE_TIMEOUT = 60.0  # s, on a machine that is busy starting up


class Converter(NamedTuple):
    """The package in use, why it is not cv_bridge, and its function of (message, encoding)."""

    name: str
    reason: str
    convert: Callable[[Any, str], Any]


@functools.lru_cache(maxsize=1)
def converter() -> Converter:
    """Find the package that converts; the first call may take a second.

    Raises:
        ImageError: Neither is installed; condition 'no converter'.

    """
    reason = _why_not_cv_bridge()
    if not reason:
        from cv_bridge import CvBridge

        return Converter('cv_bridge', '', CvBridge().imgmsg_to_cv2)
    try:
        from rosbags.image import image_to_cvimage
    except ImportError as error:
        raise ImageError(
            'no converter',
            f'Bayer and yuv422 images need cv_bridge ({reason}) or rosbags-image ({error}). '
            'Install one: apt install ros-$ROS_DISTRO-cv-bridge, or pip install rosbags-image; '
            'or let the camera driver publish rgb8.',
        ) from error
    return Converter('rosbags-image', reason, image_to_cvimage)


def to_rgb(pixels: NDArray[np.uint8], encoding: str) -> NDArray[np.uint8]:
    """Convert contiguous pixels.

    Args:
        pixels: (H, W) of a Bayer mosaic or (H, W, 2) of packed YUV.
        encoding: a key of `BAYER` or `PACKED_YUV`.

    Returns:
        (H, W, 3) RGB.

    Raises:
        ImageError: See `converter`.

    """
    image = SimpleNamespace(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding={**BAYER, **PACKED_YUV}[encoding],
        is_bigendian=int(sys.byteorder == 'big'),
        step=pixels.strides[0],
        data=pixels.reshape(-1),
    )
    return np.asarray(converter().convert(image, 'rgb8'), np.uint8)


def _why_not_cv_bridge() -> str:
    """Try cv_bridge in a process of its own; '' if it works."""
    if importlib.util.find_spec('cv_bridge') is None:
        return 'not installed'
    try:
        probe = subprocess.run(
            [sys.executable, '-c', _PROBE],
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            errors='replace',
            timeout=_PROBE_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f'cannot be tried: {error}'
    if probe.returncode == 0:
        return ''
    lines = probe.stderr.strip().splitlines()
    last = lines[-1] if lines else 'no message'
    return f'installed, but fails with numpy {np.__version__} (exit {probe.returncode}: {last})'
