# SPDX-License-Identifier: Apache-2.0
"""`depthclip quantize`: quantise the network to 8 bits for `precision: int8`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import EngineError, ImageError
from ..sim import KINDS, RenderOptions, Scene, SimCamera, render, trajectory
from ..sources.pictures import Notes, picture_files, read_picture
from .model import load_estimator, settings, to_stderr

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from numpy.typing import NDArray

ROOMS = 24  # rendered without --images
MIN_PICTURES, MAX_PICTURES = 8, 64  # of --images
_FIRST_ROOM = 60000  # no other part of this package renders rooms of higher seeds
_COMPARED = 8  # pictures on which depth in 8 bits is compared with float32's


def quantize(options: argparse.Namespace) -> int:
    """Quantise the network, cache the result, and print the difference of depth from float32's.

    Args:
        options: of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code 0.

    Raises:
        DepthClipError: the settings or the pictures cannot be used, ONNX Runtime is missing, or
            the result is wrong or cannot be cached.

    """
    depth, node = settings(options.config, options.weights, options.device)
    pictures = _pictures(options.images) if options.images else rooms()
    source = f'{len(pictures)} {"pictures" if options.images else "rendered rooms"}'
    node = node.replace(device='cpu')  # int8 runs on CPUs alone
    exact = load_estimator(depth.replace(precision='float32'), node)
    to_stderr(f'The network is made in 8 bits, of {source} ...')
    try:
        path = exact.quantize(pictures)
    except OSError as error:
        raise EngineError(f'the network in 8 bits cannot be kept: {error}. Set cache_dir or '
                          '$DEPTHCLIP_CACHE to a folder that can be written.') from error
    sample = pictures[::max(1, len(pictures) // _COMPARED)][:_COMPARED]
    rounded = load_estimator(depth.replace(precision='int8'), node)
    difference = 1e3 * np.concatenate([
        abs(rounded.predict(picture).depth - exact.predict(picture).depth).ravel()
        for picture in sample])
    median, quantile = np.nanpercentile(difference, (50, 90))
    print(f'path:       {path}')
    print(f'calibrated: on {source}')
    print(f"depth:      differs from float32's by {median:.1f} mm (median), 90 % by less than "
          f'{quantile:.1f} mm, on {len(sample)} of the pictures')
    return 0


def rooms() -> list[NDArray[np.uint8]]:
    """Render `ROOMS` pictures of rooms, (480, 640, 3) RGB."""
    pictures = []
    for seed in range(_FIRST_ROOM, _FIRST_ROOM + ROOMS):
        scene = Scene.generate(KINDS[seed % len(KINDS)], seed)
        pictures.append(render(
            scene, SimCamera(), trajectory(scene, seed).pose(float(seed % 23)),
            RenderOptions(noise=0.01, seed=seed)).rgb)
    return pictures


def _pictures(paths: Sequence[str]) -> list[NDArray[np.uint8]]:
    """Read at most `MAX_PICTURES` pictures (H, W, 3) RGB, evenly spaced.

    Raises:
        ImageError: there are too few, or one cannot be read.

    """
    files = picture_files(paths)
    if len(files) < MIN_PICTURES:
        raise ImageError(
            'too few', f'--images: {len(files)} pictures; give at least {MIN_PICTURES} that show '
            'what the camera will see, or none for rendered rooms.')
    if len(files) > MAX_PICTURES:
        files = [files[i * len(files) // MAX_PICTURES] for i in range(MAX_PICTURES)]
    notes = Notes(to_stderr)
    pictures = [np.ascontiguousarray(read_picture(file, notes=notes)[..., ::-1]) for file in files]
    notes.close()
    return pictures
