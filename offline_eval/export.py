# SPDX-License-Identifier: Apache-2.0
"""The method's depth as files for other programs.

Written is what BTS's `bts_test.py` writes and its `utils/eval_with_pngs.py` reads, with all that
was made after it: 16-bit PNG, 1000 a metre, `raw/SCENE_rgb_NUMBER.png` of the whole image on NYU;
256 a metre, `raw/DRIVE_FRAME.png` of the KITTI benchmark crop on KITTI.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthclip_ros.color import png
from depthclip_ros.core import DepthEstimator
from depthclip_ros.core.files import check_new
from depthclip_ros.evaluation.datasets import Dataset
from depthclip_ros.evaluation.datasets.base import KITTI, Metres
from depthclip_ros.evaluation.errors import EvaluationError, PredictionError, listing
from depthclip_ros.evaluation.protocol import Protocol
from depthclip_ros.progress import progress

from .predictions import RAW, file_names
from .results import to_json, write

ABOUT = 'export.json'
LARGEST = 65535  # in 16 bits


def write_all(
    dataset: Dataset, protocol: Protocol, estimator: DepthEstimator, folder: Path,
    about: Mapping[str, Any],
) -> Path:
    """Predict every image, and write what other programs evaluate.

    Returns the folder `raw` in the given one, beside which `export.json` says `about` them how
    they came about. Predictions that are there already stay, if they did so in the same way.

    Raises:
        PredictionError: a depth does not fit into the files.
        ResultsError: they cannot be written.
        ConfigError: the folder has other predictions already.
        EvaluationError: two images would have one name.

    """
    raw, noted = folder / RAW, folder / ABOUT
    names = [first for first, *_ in file_names(dataset.entries)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError(f'{dataset.path}: several images would have one name:'
                              f'{listing(twice)}')
    text = to_json({**about, 'scale': dataset.scale, 'images': len(names)})
    if not (noted.is_file() and noted.read_bytes() == text.encode()):
        check_new((noted, *islice(raw.glob('*'), 1)))
    write(noted, text)
    for position, name in enumerate(progress(names, 'predictions', len(names))):
        path = raw / f'{name}.png'
        if path.exists():
            continue
        pair = dataset.read(position)
        depth = in_16_bits(estimator.predict(protocol.prepare(pair)[0]).depth, dataset.scale, name)
        if dataset.origin != KITTI:  # whose evaluation puts the crop into the image itself
            whole = np.zeros(pair.depth.shape, np.uint16)
            whole[protocol.boxes(*pair.depth.shape)[0]] = depth
            depth = whole
        write(path, png(depth))
    return raw


def in_16_bits(depth: Metres, scale: float, name: str) -> NDArray[np.uint16]:
    """Metres, rounded, of which nothing may be lost.

    Raises:
        PredictionError: something would be; `name` is the image's.

    """
    values = depth * np.float32(scale)
    if not (np.isfinite(values).all() and values.min() >= 1 and values.max() <= LARGEST):
        raise PredictionError(
            f'{name}: depth of {np.min(depth):.4g} to {np.max(depth):.4g} m does not fit '
            f'into 16 bits with {scale:g} a metre, which hold {1 / scale:g} to '
            f'{LARGEST / scale:g} m.')
    rounded: NDArray[np.uint16] = np.rint(values).astype(np.uint16)
    return rounded
