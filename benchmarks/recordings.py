# SPDX-License-Identifier: Apache-2.0
"""The demo model on recordings of real cameras, as words alone and calibrated.

$DEPTHCLIP_RECORDINGS names folders or bags (with `:` between them), each as `depthclip compare`
reads it. Of those with 60 images and more the first half is calibrated from, and the second half
measured: nothing was chosen by it. Metrics are means over images.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rooms
from benchmarks.machine import ROOT
from depthclip_ros.calibrate.bags import open_recording
from depthclip_ros.calibrate.errorbars import QUANTILE_STDDEVS
from depthclip_ros.calibrate.fit import fit
from depthclip_ros.calibrate.recordings import Frame, in_blocks
from depthclip_ros.core import CameraImage, DepthConfig, DepthEstimator
from depthclip_ros.core.prediction import DepthPrediction
from depthclip_ros.evaluation.metrics import Float32, by_name

VARIABLE = 'DEPTHCLIP_RECORDINGS'
LEAST = 60  # images, from which a half is enough to calibrate from
BLOCKS = 5  # pieces in time, in which coverage is told
DISTANCES = 0.0, 1.0, 1.5, 2.0, 3.0, np.inf  # metres
CONSTANTS = np.arange(0.5, 6.01, 0.1)
Row = dict[str, Any]


def measure(*, quick: bool) -> list[Row]:
    """Rows of every recording; with `quick` of 60 images of each."""
    sources = list(filter(None, os.environ.get(VARIABLE, '').split(os.pathsep)))
    if not sources:
        raise SystemExit(f'Name recordings with measured depth in ${VARIABLE}, such as '
                         'kitchen:nyu (docs/real.md says where some are).')
    estimator = DepthEstimator(
        DepthConfig.from_yaml(ROOT / 'config/demo.yaml'), 'demo', 'cpu', num_threads=1)
    return [row for source in sources
            for row in of_recording(estimator, source, LEAST if quick else None)]


def of_recording(estimator: DepthEstimator, source: str, limit: int | None = None) -> list[Row]:
    """Rows of one recording: words alone; and of a long one, what else its second half shows."""
    recording = open_recording(source)
    frames = [frame for _, frame in recording.read(range(min(len(recording), limit or 10 ** 9)))]
    name = Path(source).name
    if len(frames) < LEAST:
        return [_row(name, 'words', frames, [_predict(estimator, frame) for frame in frames])]
    half = len(frames) // 2
    before, after = frames[:half], frames[half:]
    moments = in_blocks([frame.moment for frame in before])
    fitted = fit(estimator, [replace(frame, moment=moment) for frame, moment in zip(
        before, moments, strict=True)], log=lambda _: None)
    words = [_predict(estimator, frame) for frame in after]
    config = estimator.config
    with tempfile.TemporaryDirectory() as folder:
        file = fitted.calibration.save(Path(folder), 'robot')
        estimator.reconfigure(config.replace(calibration=str(file)))
        predictions = [_predict(estimator, frame) for frame in after]
        estimator.reconfigure(config)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of pixels that no frame has depth of
        mean = np.nanmean([frame.depth for frame in before], axis=0)
    constant = min(CONSTANTS, key=lambda c: sum(
        float(np.nanmean((frame.depth - c) ** 2) ** 0.5) for frame in after))
    return [
        _row(name, 'words', after, words),
        _row(name, f'best constant, {constant:.1f} m', after, [
            np.full_like(frame.depth, constant) for frame in after]),
        _row(name, 'mean map of the first half', after, [mean] * len(after)),
        _row(name, f'calibrated on the first half: {fitted.variant}', after, predictions),
        *_coverage(name, after, predictions)]


def _predict(estimator: DepthEstimator, frame: Frame) -> DepthPrediction:
    return estimator.predict(CameraImage(frame.rgb, frame.camera), frame.depth.shape)


def _row(
    name: str, method: str, frames: Sequence[Frame],
    predictions: Sequence[DepthPrediction | Float32],
) -> Row:
    """Metrics of one way to have depth; scale is the median of depth over truth."""
    scores, relations = [], []
    for frame, prediction in zip(frames, predictions, strict=True):
        depth = prediction if isinstance(prediction, np.ndarray) else prediction.depth
        valid = np.isfinite(frame.depth) & np.isfinite(depth)
        pair = depth[valid][None], frame.depth[valid][None]
        scores.append(rooms.scores(*pair))
        relations.append((rooms.correlation(*pair), float(np.median(pair[0] / pair[1]))))
    metrics = by_name(np.mean(scores, axis=0))
    correlation, scale = np.mean(relations, axis=0)
    return {'recording': name, 'images': len(frames), 'what': method, 'delta1': metrics['d1'],
            'rel': metrics['rel'], 'rmse [m]': metrics['rmse'], 'correlation': correlation,
            'scale': scale}


def _coverage(
    name: str, frames: Sequence[Frame], predictions: Sequence[DepthPrediction],
) -> Iterator[Row]:
    """Share of the pixels within 1.645 standard deviations, by piece in time and by distance."""
    parts = []
    for number, (frame, prediction) in enumerate(zip(frames, predictions, strict=True)):
        deviation, valid = prediction.stddev(), np.isfinite(frame.depth)
        if deviation is None:
            return
        truth = frame.depth[valid]
        covered = np.abs(prediction.depth[valid] - truth) <= QUANTILE_STDDEVS * deviation[valid]
        parts.append((np.full(truth.size, number * BLOCKS // len(frames)), truth, covered))
    block, truth, covered = (np.concatenate(values) for values in zip(*parts, strict=True))
    groups = {'all': np.ones(truth.size, bool)}
    groups |= {f'piece {number + 1} of {BLOCKS}': block == number for number in range(BLOCKS)}
    groups |= {f'{low:g} to {high:g} m': (low <= truth) & (truth < high)
             for low, high in pairwise(DISTANCES)}
    for group, selected in groups.items():
        if selected.any():
            yield {'recording': name, 'coverage of': group, 'share of pixels': selected.mean(),
                   'coverage': covered[selected].mean()}
