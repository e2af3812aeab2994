# SPDX-License-Identifier: Apache-2.0
"""Depth as files: this method's for other programs, and other methods' for this one.

Written is what BTS's `bts_test.py` writes and its `utils/eval_with_pngs.py` reads, with all that
was made after it: 16-bit PNG, 1000 a metre, `raw/SCENE_rgb_NUMBER.png` of the whole image on NYU;
256 a metre, `raw/DRIVE_FRAME.png` of the KITTI benchmark crop on KITTI.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depthclip_ros.color import png
from depthclip_ros.core import DepthEstimator

from .datasets import Dataset, Entry
from .datasets.base import read_depth
from .errors import DatasetError, EvaluationError, PredictionError, listing
from .metrics import MIN_DEPTH
from .progress import progress
from .protocol import Protocol
from .results import atomic, write_text

RAW, ABOUT = 'raw', 'witness.json'
LARGEST = 65535  # in 16 bits
NYU_SCALE, KITTI_SCALE = 1000.0, 256.0  # stored depth per metre
ALIGNMENTS: Mapping[str, str] = {
    'none': 'as predicted, in metres',
    'median': "multiplied so that each image's median is the true one: no metric depth, its scale "
              "is an oracle's",
    'lstsq': "scaled (not below 0) and shifted by least squares to each image's true depth: no "
             'metric depth, an oracle',
    'disparity': "1 / depth is scaled (not below 0) and shifted by least squares to each image's "
                 'true one: no metric depth, an oracle',
}
# Of these, a stored 0 is a value; of the others it says that there is no depth.
_AFFINE = frozenset({'lstsq', 'disparity'})
_SUFFIXES = ('.png', '.npy')
_SAME_SHAPE = 0.01  # aspect ratios that differ by less are one
_PROBES = 8
_FAR_OFF = 2.5  # times the true median, from which on the scale is in doubt

Metres = NDArray[np.float32]


def _numbered(form: str) -> Callable[[Entry], str]:
    """Names by a number in the data set, which KITTI's images do not have."""
    return lambda entry: '' if _is_drive(entry) or ('{scene}' in form and not entry.scene) else \
        form.format(scene=entry.scene, number=entry.index)


# How files are called, without their suffix; '' where an image has no such name.
LAYOUTS: Mapping[str, Callable[[Entry], str]] = {
    'SCENE_rgb_NUMBER': _numbered('{scene}_rgb_{number:05d}'),
    'DRIVE_FRAME': lambda e: f'{e.sequence}_{Path(e.name).stem}' if _is_drive(e) else '',
    'SCENE/rgb_NUMBER': _numbered('{scene}/rgb_{number:05d}'),
    'rgb_NUMBER': _numbered('rgb_{number:05d}'),
    'NUMBER': _numbered('{number:05d}'),
    "the image's own name": lambda entry: str(Path(entry.name).with_suffix('')),
}


def _is_drive(entry: Entry) -> bool:
    return '_drive_' in entry.sequence


# Others' predictions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """Depth that a method has predicted for a data set, in files.

    Attributes:
        name: of the method.
        folder: where the files are.
        layout: how they are called, see LAYOUTS.
        suffix: '.png' (16 bits), or '.npy' (floating point).
        scale: stored depth per metre.
        align: what is done to a prediction before it is scored, see ALIGNMENTS.
        digest: SHA-256 (hex) of the files, in the data set's order.
        size: (height, width) of the first one.

    """

    name: str
    folder: str
    layout: str
    suffix: str
    scale: float
    align: str
    digest: str
    size: tuple[int, int]

    @property
    def row(self) -> str:
        """Name of its row."""
        return self.name if self.align == 'none' else f'{self.name}, {self.align}-aligned'

    @property
    def note(self) -> str:
        """What the reader of its row must know."""
        return (f'depth of another program, in {self.folder} ({self.size[0]} x {self.size[1]}, '
                f'{self.scale:g} a metre); {ALIGNMENTS[self.align]}')

    def path(self, entry: Entry) -> Path:
        """File of an image."""
        return Path(self.folder) / f'{LAYOUTS[self.layout](entry)}{self.suffix}'

    def read(self, entry: Entry, size: tuple[int, int], truth: Metres, protocol: Protocol,
             ) -> Metres:
        """Read what was predicted for an image, as the protocol crops it.

        Args:
            entry: the image.
            size: (height, width) of the image.
            truth: (H, W) of the crop, metres, NaN where it is not scored.
            protocol: how to crop.

        Returns:
            (H, W) metres of the crop, 1 where it is not scored.

        Raises:
            PredictionError: it is damaged, of a size that cannot be placed, or has no depth where
                it is scored.

        """
        path, scored = self.path(entry), ~np.isnan(truth)
        depth = _placed(_read(path, self.scale, zero=self.align in _AFFINE), size, protocol, path)
        values = depth[scored].astype(np.float64)
        least = -np.inf if self.align in _AFFINE else MIN_DEPTH
        wrong = ~(np.isfinite(values) & (values > least))
        if wrong.any():
            raise PredictionError(
                f'{path}: {wrong.sum()} of {len(wrong)} pixels that are scored have no depth '
                f'(0, not finite, or at most {MIN_DEPTH} m). A method is scored on every pixel of '
                'the protocol; predict all, or choose the --protocol that it was made for.')
        aligned = np.ones_like(truth)
        if len(values):
            aligned[scored] = _aligned(values, truth[scored].astype(np.float64), self.align,
                                       protocol.max_depth)
        return aligned


def open_predictions(
    name: str, folder: Path, dataset: Dataset, scale: float = 0.0, align: str = 'none',
) -> Predictions:
    """Find a method's files, every one of them.

    Args:
        name: of the method.
        folder: with the files, or with a folder `raw` that has them.
        dataset: which was predicted.
        scale: stored depth per metre; 0: as BTS has it for the data set, and 1 for .npy.
        align: see ALIGNMENTS.

    Raises:
        PredictionError: there are none, some are missing, or their unit is impossible.

    """
    found = next(((place, layout, suffix) for place in (folder, folder / RAW)
                  for suffix in _SUFFIXES for layout, call in LAYOUTS.items()
                  if any(call(e) and (place / f'{call(e)}{suffix}').is_file()
                         for e in dataset.entries)), None)
    if found is None:
        wanted = ', '.join(f'{call(dataset.entries[0])}.png' for call in LAYOUTS.values()
                           if call(dataset.entries[0]))
        raise PredictionError(f'--predictions {name}={folder}: no file there is of this data set. '
                              f'Its first image would be one of: {wanted}, or the same as .npy.')
    place, layout, suffix = found
    paths = [place / f'{LAYOUTS[layout](entry)}{suffix}' for entry in dataset.entries]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise PredictionError(
            f'--predictions {name}={folder}: {len(missing)} of {len(paths)} files are missing; a '
            f'method is scored on all images or on none:{listing(missing)}')
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    scale = scale or (1.0 if suffix == '.npy' else scale_of(dataset))
    first = _read(paths[0], scale, zero=True)
    return Predictions(name, str(place), layout, suffix, scale, align, digest.hexdigest(),
                       (first.shape[0], first.shape[1]))


def check_unit(predictions: Predictions, dataset: Dataset) -> str:
    """Look at a few predictions: are they metres once read?

    Returns:
        What to warn of; '' where nothing is odd, or the scale is taken from the truth anyway.

    Raises:
        PredictionError: the median depth is impossible.

    """
    said, true, is_inverse = [], [], []
    for position in np.unique(np.linspace(0, len(dataset) - 1, _PROBES).astype(int)):
        truth = dataset.read_truth(int(position))
        depth = _read(predictions.path(dataset.entries[position]), predictions.scale,
                      zero=predictions.align in _AFFINE)
        if predictions.align in _AFFINE:
            is_inverse.append(_falls(depth, truth))
        if (truth > 0).any() and np.isfinite(depth).any():
            true.append(float(np.median(truth[truth > 0])))
            said.append(float(np.nanmedian(depth)))
    dataset.close()
    where = f'--predictions {predictions.name}={predictions.folder}'
    if predictions.align in _AFFINE:
        if is_inverse.count(predictions.align == 'lstsq') > len(is_inverse) / 2:
            what, other = ('falls', 'disparity') if predictions.align == 'lstsq' else (
                'rises', 'lstsq')
            raise PredictionError(f'{where}: what is stored {what} with the true depth, which is '
                                  f'not what --align {predictions.align} takes it for. Give '
                                  f'--align {other}.')
        return ''
    if not said or predictions.align != 'none':
        return ''
    low, high = dataset.plausible
    median, wanted = float(np.median(said)), float(np.median(true))
    what = (f'{where}: with {predictions.scale:g} a '
            f'metre the median depth of {len(said)} images is {median:.4g} m')
    if not low <= median <= high:
        raise PredictionError(f'{what}, outside {low:g} to {high:g} m. Give --prediction-scale, '
                              'or --align where the method does not predict metres.')
    if not 1 / _FAR_OFF < median / wanted < _FAR_OFF:
        return (f'{what}, the true one {wanted:.4g} m. If that is not what the method says, give '
                '--prediction-scale, or --align where it does not predict metres.')
    return ''


def _falls(stored: Metres, truth: Metres) -> bool:
    """Whether what is stored is smaller where it is farther."""
    if stored.shape != truth.shape:
        truth = np.asarray(cv2.resize(
            truth, stored.shape[::-1], interpolation=cv2.INTER_NEAREST), np.float32)
    known = (truth > 0) & np.isfinite(stored)
    return bool(known.any() and np.cov(stored[known], truth[known])[0, 1] < 0)


def scale_of(dataset: Dataset) -> float:
    """How much stored depth is a metre in such a data set's files."""
    return KITTI_SCALE if dataset.format.startswith('KITTI') else NYU_SCALE


def _read(path: Path, scale: float, *, zero: bool) -> Metres:
    """(H, W) metres, NaN where there is no depth; `zero`: 0 is a value."""
    if path.suffix == '.npy':
        try:
            stored = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise PredictionError(f'{path}: no array of NumPy: {error}.') from error
        if stored.ndim != 2 or stored.dtype.kind != 'f':
            raise PredictionError(f'{path}: holds {stored.dtype} {stored.shape}; expected '
                                  'floating point (height, width).')
        depth = stored.astype(np.float32) / np.float32(scale)
    else:
        try:
            depth = read_depth(path, scale)
        except DatasetError as error:
            raise PredictionError(str(error)) from error
    metres: Metres = depth if zero else np.where(depth == 0, np.float32(np.nan), depth)
    return metres


def _placed(depth: Metres, size: tuple[int, int], protocol: Protocol, path: Path) -> Metres:
    """What of a prediction is the protocol's crop.

    One of the image's size is cropped as the image is; one of the crop's size is the crop; one of
    the image's aspect ratio is enlarged or reduced to the image first.
    """
    height, width = depth.shape
    if (height, width) == protocol.size and size != protocol.size:
        return depth
    if (height, width) != size:
        if abs(width * size[0] / (height * size[1]) - 1) > _SAME_SHAPE:
            raise PredictionError(
                f'{path}: is {height} x {width}; the image is {size[0]} x {size[1]}, and '
                f'protocol {protocol.name} crops {protocol.size[0]} x {protocol.size[1]} of it. '
                'Predictions must be of one of these sizes, or of the aspect ratio of the image.')
        depth = cv2.resize(depth, (size[1], size[0]),
                           interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
    return depth[protocol.crop_of(*size)]


def _aligned(p: NDArray[np.float64], y: NDArray[np.float64], how: str, max_depth: float,
             ) -> NDArray[np.float64]:
    """Predicted values where the truth is known -> metres, as ALIGNMENTS says."""
    if how == 'none':
        return p
    if how == 'median':
        return p * (np.median(y) / np.median(p))
    target = 1 / y if how == 'disparity' else y
    scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], axis=1), target, rcond=None)[0]
    if scale < 0:  # near is not far: what is best without a sign of its own is a constant
        scale, shift = 0.0, target.mean()
    fitted: NDArray[np.float64] = scale * p + shift
    if how == 'disparity':
        return 1 / np.maximum(fitted, 1 / max_depth)
    return np.maximum(fitted, 2 * MIN_DEPTH)


# One's own ---------------------------------------------------------------------------------------


def write(
    dataset: Dataset, protocol: Protocol, estimator: DepthEstimator, folder: Path,
    about: Mapping[str, Any],
) -> Path:
    """Predict every image, and write what other programs evaluate.

    Args:
        dataset: what to predict.
        protocol: what of an image the network sees.
        estimator: that predicts.
        folder: to write to: `raw/` with the predictions, and `witness.json`. Predictions that
            are there already stay, if that file says that they came about in the same way.
        about: how they come about, for that file.

    Returns:
        The folder `raw`.

    Raises:
        PredictionError: a depth does not fit into the files.
        ResultsError: they cannot be written.
        EvaluationError: the folder has other predictions already.

    """
    raw = folder / RAW
    names = [next(filter(None, (call(entry) for call in LAYOUTS.values())))
             for entry in dataset.entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvaluationError(f'{dataset.path}: several images would have one name:'
                              f'{listing(twice)}')
    scale = scale_of(dataset)
    said = json.dumps({**about, 'scale': scale, 'images': len(names)}, indent=1,
                      ensure_ascii=False) + '\n'
    noted = folder / ABOUT
    if raw.exists() and any(raw.iterdir()) and not (
            noted.is_file() and noted.read_text(encoding='utf-8') == said):
        raise EvaluationError(f'{raw}: has files already, of another command, and nothing is '
                              'overwritten; choose another folder.')
    write_text(noted, said)
    with progress(len(dataset), 'predictions') as bar:
        for position, name in enumerate(names):
            if (raw / f'{name}.png').exists():
                bar.update()
                continue
            pair = dataset.read(position)
            rgb, _ = protocol.prepare(pair)
            depth = estimator.predict(rgb).depth
            if scale == NYU_SCALE:  # KITTI's evaluation puts the crop into the image itself
                height, width = pair.depth.shape
                whole = np.zeros((height, width), np.float32)
                whole[protocol.crop_of(height, width)] = depth
                stored = _stored(whole, depth, scale, name)
            else:
                stored = _stored(depth, depth, scale, name)
            with atomic(raw / f'{name}.png') as file:
                file.write(png(stored))
            bar.update()
    dataset.close()
    return raw


def _stored(depth: Metres, predicted: Metres, scale: float, name: str) -> NDArray[np.uint16]:
    """Metres -> 16 bits, rounded; of what was predicted, nothing may be lost."""
    values = predicted * np.float32(scale)
    if not (np.isfinite(values).all() and values.min() >= 1 and values.max() <= LARGEST):
        raise PredictionError(
            f'{name}: depth of {np.min(predicted):.4g} to {np.max(predicted):.4g} m does not fit '
            f'into 16 bits with {scale:g} a metre, which hold {1 / scale:g} to '
            f'{LARGEST / scale:g} m.')
    rounded: NDArray[np.uint16] = np.rint(depth * np.float32(scale)).astype(np.uint16)
    return rounded
