# SPDX-License-Identifier: Apache-2.0
"""The method's depth as files for other programs, in the format of BTS.

BTS's `bts_test.py` writes these files, and its `utils/eval_with_pngs.py` and many later programs
read them: 16-bit PNG, 1000 a metre, `raw/SCENE_rgb_NUMBER.png` of the whole image on NYU; 256 a
metre, `raw/DRIVE_FRAME.png` of the KITTI benchmark crop on KITTI.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthclip_ros.core import DepthEstimator
from depthclip_ros.core.files import check_new
from depthclip_ros.drawing.color import png
from depthclip_ros.evaluation.datasets import Dataset
from depthclip_ros.evaluation.datasets.base import KITTI, Metres
from depthclip_ros.evaluation.errors import EvaluationError, PredictionError, listing
from depthclip_ros.evaluation.protocol import Protocol
from depthclip_ros.progress import progress

from .prediction_files import RAW, file_names
from .results import to_json, write

RUN_FILE = 'export.json'
MAX_STORED = 65535  # in 16 bits


def write_all(
    dataset: Dataset, protocol: Protocol, estimator: DepthEstimator, folder: Path,
    about: Mapping[str, Any],
) -> Path:
    """Predict every image, and write depth for other programs.

    Returns the folder `raw` in the given one. `export.json` beside it holds `about`, the origin of
    the predictions. Predictions of the same origin stay, so that an export can be resumed.

    Raises:
        PredictionError: a depth does not fit into 16 bits.
        ResultsError: a file cannot be written.
        ConfigError: the folder holds other predictions.
        EvaluationError: two images would have one name.

    """
    raw, run_file = folder / RAW, folder / RUN_FILE
    names = [first for first, *_ in file_names(dataset.entries)]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError(f'{dataset.path}: several images would have one name:'
                              f'{listing(duplicates)}')
    text = to_json({**about, 'scale': dataset.scale, 'images': len(names)})
    if not (run_file.is_file() and run_file.read_bytes() == text.encode()):
        check_new((run_file, *islice(raw.glob('*'), 1)))
    write(run_file, text)
    for position, name in enumerate(progress(names, 'predictions', len(names))):
        path = raw / f'{name}.png'
        if path.exists():
            continue
        pair = dataset.read(position)
        depth = to_16_bits(estimator.predict(protocol.prepare(pair)[0]).depth, dataset.scale, name)
        if dataset.origin != KITTI:  # whose evaluation pastes the crop
            framed = np.zeros(pair.depth.shape, np.uint16)
            framed[protocol.boxes(*pair.depth.shape)[0]] = depth
            depth = framed
        write(path, png(depth))
    return raw


def to_16_bits(depth: Metres, scale: float, name: str) -> NDArray[np.uint16]:
    """Convert metres to 16-bit integers, rounded; `name` is the image's.

    Raises:
        PredictionError: a value does not fit.

    """
    values = depth * np.float32(scale)
    if not (np.isfinite(values).all() and values.min() >= 1 and values.max() <= MAX_STORED):
        raise PredictionError(
            f'{name}: depth of {np.min(depth):.4g} to {np.max(depth):.4g} m does not fit '
            f'into 16 bits with {scale:g} a metre, which hold {1 / scale:g} to '
            f'{MAX_STORED / scale:g} m.')
    rounded: NDArray[np.uint16] = np.rint(values).astype(np.uint16)
    return rounded
