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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depthclip_ros.color import png
from depthclip_ros.core import DepthEstimator

from .datasets import Dataset, Entry
from .datasets.base import KITTI, Metres, evenly, read_depth
from .errors import DatasetError, EvaluationError, PredictionError, listing, progress
from .metrics import MIN_DEPTH
from .protocol import Protocol
from .results import write

RAW, ABOUT = 'raw', 'witness.json'
LARGEST = 65535  # in 16 bits
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
_SAME_SHAPE = 0.01  # aspect ratios that differ by less are one
_PROBES = 8
_FAR_OFF = 2.5  # times the true median, from which on the scale is in doubt


def _numbered(form: str) -> Callable[[Entry], str]:
    """Names by a number in the data set, which KITTI's images do not have."""
    return lambda entry: '' if _is_drive(entry) or ('{scene}' in form and not entry.scene) else \
        form.format(scene=entry.scene, number=entry.index)


def _is_drive(entry: Entry) -> bool:
    return '_drive_' in entry.sequence


# How files are called, without their suffix; '' where an image has no such name.
LAYOUTS: Mapping[str, Callable[[Entry], str]] = {
    'SCENE_rgb_NUMBER': _numbered('{scene}_rgb_{number:05d}'),
    'DRIVE_FRAME': lambda e: f'{e.sequence}_{Path(e.name).stem}' if _is_drive(e) else '',
    'SCENE/rgb_NUMBER': _numbered('{scene}/rgb_{number:05d}'),
    'rgb_NUMBER': _numbered('rgb_{number:05d}'),
    'NUMBER': _numbered('{number:05d}'),
    "the image's own name": lambda entry: str(Path(entry.name).with_suffix('')),
}

# Others' predictions -----------------------------------------------------------------------------


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
    folder: Path
    layout: str
    suffix: str
    scale: float
    align: str = 'none'
    digest: str = ''
    size: tuple[int, int] = (0, 0)

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
        return self.folder / f'{LAYOUTS[self.layout](entry)}{self.suffix}'

    def read(
        self, entry: Entry, size: tuple[int, int], truth: Metres, protocol: Protocol,
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
        values = _placed(self.stored(entry), size, protocol, path)[scored].astype(np.float64)
        least = -np.inf if self.align in _AFFINE else MIN_DEPTH
        wrong = ~(np.isfinite(values) & (values > least))
        if wrong.any():
            raise PredictionError(
                f'{path}: {wrong.sum()} of {len(wrong)} pixels that are scored have no depth '
                f'(0, not finite, or at most {MIN_DEPTH} m). A method is scored on every pixel of '
                'the protocol; predict all, or choose the --protocol that it was made for.')
        metres = np.ones_like(truth)
        if len(values):
            metres[scored] = aligned(values, truth[scored].astype(np.float64), self.align,
                                     protocol.max_depth)
        return metres

    def stored(self, entry: Entry) -> Metres:
        """(h, w) metres of a file, NaN where there is no depth."""
        path = self.path(entry)
        if self.suffix == '.npy':
            try:
                stored = np.load(path, allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise PredictionError(f'{path}: no array of NumPy: {error}.') from error
            if stored.ndim != 2 or stored.dtype.kind != 'f':
                raise PredictionError(f'{path}: holds {stored.dtype} {stored.shape}; expected '
                                      'floating point (height, width).')
            depth = stored.astype(np.float32) / np.float32(self.scale)
        else:
            try:
                depth = read_depth(path, self.scale)
            except DatasetError as error:
                raise PredictionError(str(error)) from error
        metres: Metres = depth if self.align in _AFFINE else np.where(
            depth == 0, np.float32(np.nan), depth)
        return metres


def open_predictions(
    name: str, folder: Path, dataset: Dataset, scale: float = 0.0, align: str = 'none',
) -> tuple[Predictions, str]:
    """Find a method's files, every one of them, and look at a few: are they metres once read?

    Args:
        name: of the method.
        folder: with the files, or with a folder `raw` that has them.
        dataset: which was predicted.
        scale: stored depth per metre; 0: as BTS has it for the data set, and 1 for .npy.
        align: see ALIGNMENTS.

    Returns:
        Them, and what to warn of; '' where nothing is odd, or the scale is taken from the truth
        anyway.

    Raises:
        PredictionError: there are none, some are missing, or their unit is impossible.

    """
    where = f'--predictions {name}={folder}'
    every = (Predictions(name, place, layout, suffix, scale, align)
             for place in (folder, folder / RAW) for suffix in ('.png', '.npy')
             for layout in LAYOUTS)
    found = next((one for one in every if any(
        LAYOUTS[one.layout](e) and one.path(e).is_file() for e in dataset.entries)), None)
    if found is None:
        wanted = ', '.join(f'{call(dataset.entries[0])}.png' for call in LAYOUTS.values()
                           if call(dataset.entries[0]))
        raise PredictionError(f'{where}: no file there is of this data set. Its first image would '
                              f'be one of: {wanted}, or the same as .npy.')
    paths = [found.path(entry) for entry in dataset.entries]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise PredictionError(
            f'{where}: {len(missing)} of {len(paths)} files are missing; a method is scored on '
            f'all images or on none:{listing(missing)}')
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    found = replace(found, digest=digest.hexdigest(), scale=scale or (
        1.0 if found.suffix == '.npy' else dataset.scale))
    height, width = found.stored(dataset.entries[0]).shape
    found = replace(found, size=(height, width))
    return found, _doubt(found, dataset, where)


def _doubt(predictions: Predictions, dataset: Dataset, where: str) -> str:
    """What to warn of; see `open_predictions`."""
    said, true, falls = [], [], []
    for position in evenly(len(dataset), _PROBES):
        truth = dataset.read_truth(position)
        depth = predictions.stored(dataset.entries[position])
        at = np.asarray(cv2.resize(
            truth, depth.shape[::-1], interpolation=cv2.INTER_NEAREST), np.float32)
        known = (at > 0) & np.isfinite(depth)
        if known.any():
            said.append(float(np.nanmedian(depth)))
            true.append(float(np.median(truth[truth > 0])))
            falls.append(bool(np.cov(depth[known], at[known])[0, 1] < 0))
    if predictions.align in _AFFINE:
        if falls.count(predictions.align == 'lstsq') > len(falls) / 2:
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
    what = (f'{where}: with {predictions.scale:g} a metre the median depth of {len(said)} images '
            f'is {median:.4g} m')
    if not low <= median <= high:
        raise PredictionError(f'{what}, outside {low:g} to {high:g} m. Give --prediction-scale, '
                              'or --align where the method does not predict metres.')
    if not 1 / _FAR_OFF < median / wanted < _FAR_OFF:
        return (f'{what}, the true one {wanted:.4g} m. If that is not what the method says, give '
                '--prediction-scale, or --align where it does not predict metres.')
    return ''


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


def aligned(
    p: NDArray[np.float64], y: NDArray[np.float64], how: str, max_depth: float,
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


def write_all(
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
    raw, noted = folder / RAW, folder / ABOUT
    names = [next(filter(None, (call(entry) for call in LAYOUTS.values())))
             for entry in dataset.entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvaluationError(f'{dataset.path}: several images would have one name:'
                              f'{listing(twice)}')
    said = json.dumps({**about, 'scale': dataset.scale, 'images': len(names)}, indent=1,
                      ensure_ascii=False) + '\n'
    if raw.exists() and any(raw.iterdir()) and not (
            noted.is_file() and noted.read_text(encoding='utf-8') == said):
        raise EvaluationError(f'{raw}: has files already, of another command, and nothing is '
                              'overwritten; choose another folder.')
    write(noted, said)
    with progress(len(dataset), 'predictions') as bar:
        for position, name in enumerate(names):
            path = raw / f'{name}.png'
            if not path.exists():
                pair = dataset.read(position)
                depth = in_16_bits(
                    estimator.predict(protocol.prepare(pair)[0]).depth, dataset.scale, name)
                if dataset.origin != KITTI:  # whose evaluation puts the crop into the image itself
                    whole = np.zeros(pair.depth.shape, np.uint16)
                    whole[protocol.crop_of(*pair.depth.shape)] = depth
                    depth = whole
                write(path, png(depth))
            bar.update()
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
