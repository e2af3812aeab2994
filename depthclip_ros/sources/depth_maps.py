# SPDX-License-Identifier: Apache-2.0
"""Read depth maps from files, for data sets, calibration and evaluation. Needs no ROS."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ImageError, reason
from ..core.file_formats import kind_of
from ..core.opencv import cv2
from .pictures import read_pixels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ARRAYS = ('.npy', '.npz')
SUFFIXES = (*ARRAYS, '.pfm', '.tif', '.tiff', '.png', '.pgm')


def read_depth_map(
    path: Path, *, dimensions: int = 2, integers: bool = False,
) -> NDArray[Any]:
    """Read the stored numbers of a depth map, in the format of its content, not of its name.

    Args:
        path: of a picture of 16 bits or floating point, a .npy, or a .npz of one array.
        dimensions: 2, or 3 for several images in one array; axes of length one are dropped.
        integers: whether an array may hold integers, because their unit is known.

    Returns:
        (H, W) or (N, H, W), floating point or integers.

    Raises:
        ImageError: 'not depth', with the content of the file.

    """
    try:
        kind = kind_of(path).name
        is_array = kind in ('npy', 'npz')
        if kind == 'pfm':
            _check_pfm(path)
        values = _array(path) if is_array else read_pixels(path, cv2.IMREAD_UNCHANGED)
    except ImageError as error:
        raise ImageError('not depth', str(error)) from error
    except Exception as error:  # NumPy raises many kinds on damaged files
        raise ImageError(
            'not depth', f'{path}: cannot be read as depth: {reason(error)}.') from error
    numbers = values
    if values.ndim > dimensions:
        numbers = values.reshape([length for length in values.shape if length > 1])
    if numbers.ndim == 2 < dimensions:
        numbers = numbers[np.newaxis]
    is_integer = values.dtype == np.uint16 or (
        is_array and values.dtype.kind in 'iu' and values.dtype.itemsize > 1)
    if numbers.ndim != dimensions or not numbers.size or not (
            numbers.dtype.kind == 'f' or (is_integer and (integers or not is_array))):
        raise ImageError(
            'not depth', f'{path}: holds {values.dtype} {values.shape}; expected one channel of '
            'floating point in metres (.npy, .npz, .tif, .pfm), or of 16 bits (PNG, TIFF); or an '
            'array of whole numbers with its unit.'
            + ' Of 8 bits it is a picture of depth, or packed: export it as one of these.'
            * (values.dtype == np.uint8))
    return numbers


def _check_pfm(path: Path) -> None:
    """Check that a PFM is complete, and that its scale is 1.

    OpenCV divides by the scale in the third line, other programs multiply, and most ignore it.

    Raises:
        ImageError: 'not depth'.

    """
    content = path.read_bytes()
    header = re.match(rb'P([Ff])\s+(\d+)\s+(\d+)\s+(\S+)\s', content)
    try:
        scale = abs(float(header[4])) if header else 0.0
    except ValueError:
        scale = 0.0
    if not (header and scale):
        raise ImageError('not depth', f'{path}: has no header of a PFM: Pf, width and height, and '
                         'a scale of 1 or -1.')
    length = 4 * int(header[2]) * int(header[3]) * (3 if header[1] == b'F' else 1)
    if (size := len(content) - header.end()) < length:
        raise ImageError('not depth', f'{path}: is truncated: {size:,} bytes of {length:,}. Copy '
                         'it again.')
    if scale != 1:
        raise ImageError('not depth', f'{path}: has a scale of {scale:g} in its header, by which '
                         'some programs divide, some multiply, and most do neither. Write it with '
                         'a scale of 1 (-1: little endian).')


def _array(path: Path) -> NDArray[Any]:
    stored = np.load(path, mmap_mode='r', allow_pickle=False)
    if isinstance(stored, np.ndarray):
        return np.asarray(stored)
    with stored:
        if len(stored.files) != 1:
            raise ValueError(f'it holds {len(stored.files)} arrays ({", ".join(stored.files)}), '
                             'and one is read')
        return np.asarray(stored[stored.files[0]])
