# SPDX-License-Identifier: Apache-2.0
"""`depthclip quantize`: the network in 8 bits, ahead of the first start with precision: int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core import int8
from ..core.errors import EngineError, ImageError
from ..sources.pictures import picture_files, read_picture
from .model import load_estimator, settings, to_stderr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

_COMPARED = 8  # pictures on which depth in 8 bits is compared with float32's


def quantize(
    paths: Sequence[str] | None, config: str | None = None, weights: str = '', device: str = '',
) -> int:
    """Quantise, keep the result, and print how far depth is from float32's.

    Args:
        paths: pictures and folders to calibrate on; None for rendered rooms.
        config: ROS parameter file; None for the defaults. Its precision does not matter.
        weights: wins over the file's, where given.
        device: wins over the file's, where given.

    Returns:
        Exit code 0.

    Raises:
        DepthClipError: the settings or the pictures cannot be used, ONNX Runtime is missing, or
            the result is wrong or cannot be kept.

    """
    int8.require()
    depth, node = settings(config, weights, device)
    depth.replace(precision='int8', engine='auto')  # refuses what cannot be
    pictures = None if paths is None else _pictures(paths)
    exact = load_estimator(depth.replace(precision='float32', engine='auto'), node)
    cache = exact.quantized_cache()
    kept = cache.read()
    if kept is not None and int8.OnnxTrunk(kept).calibrated_on == int8.label(pictures):
        to_stderr(f'Already there, calibrated on {int8.label(pictures)}.')
        trunk: nn.Module = int8.OnnxTrunk(kept)
    else:
        trunk = exact.quantize(pictures)
    if not cache.path.is_file():
        raise EngineError(f'{cache.path} could not be written, see above: every start would have '
                          'to quantise anew.')
    seen = pictures or list(int8.rooms())
    seen = seen[::max(1, len(seen) // _COMPARED)][:_COMPARED]
    before = [exact.predict(picture).depth for picture in seen]
    exact.use(trunk)
    difference = 1e3 * np.concatenate([
        abs(exact.predict(picture).depth - expected).ravel()
        for picture, expected in zip(seen, before, strict=True)])
    median, most = np.nanpercentile(difference, (50, 90))
    print(f'path:       {cache.path}')
    print(f'calibrated: on {int8.calibrated_on(trunk)}')
    print(f"depth:      differs from float32's by {median:.1f} mm (median), 90 % by less than "
          f'{most:.1f} mm, on {len(seen)} of the pictures')
    return 0


def _pictures(paths: Sequence[str]) -> list[NDArray[np.uint8]]:
    """(H, W, 3) RGB each, at most `int8.MOST`, evenly chosen.

    Raises:
        ImageError: there are too few, or one cannot be read.

    """
    files = picture_files(paths, to_stderr)
    if len(files) < int8.FEWEST:
        raise ImageError('too few', f'--images: {len(files)} pictures; give at least '
                         f'{int8.FEWEST} that show what the camera will see, or none for rendered '
                         'rooms.')
    if len(files) > int8.MOST:
        files = [files[i * len(files) // int8.MOST] for i in range(int8.MOST)]
    return [np.ascontiguousarray(read_picture(file)[..., ::-1]) for file in files]
