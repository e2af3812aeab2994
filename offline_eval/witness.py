# SPDX-License-Identifier: Apache-2.0
"""Depth as files: this method's for other programs, and other methods' for this one.

Written is what BTS's `bts_test.py` writes and its `utils/eval_with_pngs.py` reads, with all that
was made after it: 16-bit PNG, 1000 a metre, `raw/SCENE_rgb_NUMBER.png` of the whole image on NYU;
256 a metre, `raw/DRIVE_FRAME.png` of the KITTI benchmark crop on KITTI.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from depthclip_ros.color import png
from depthclip_ros.core import DepthEstimator

from .contenders import Contender
from .datasets import Dataset, Entry
from .datasets.base import KITTI, Metres, read_depth
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


def file_names(entry: Entry) -> list[str]:
    """How an image's file may be called, without suffix; the first is what is written."""
    own = str(Path(entry.name).with_suffix(''))
    if '_drive_' in entry.sequence:
        return [f'{entry.sequence}_{Path(entry.name).stem}', own]
    rgb = f'rgb_{entry.index:05d}'
    return [f'{entry.scene}_{rgb}'.lstrip('_'), rgb, f'{entry.index:05d}', own]


# Others' predictions -----------------------------------------------------------------------------


def foreign(
    name: str, folder: Path, dataset: Dataset, scale: float = 0.0, align: str = 'none',
) -> Contender:
    """Another program's depth, from its files in a folder or the folder `raw` in it.

    Args:
        name: of the method.
        folder: with a file of every image, all called in one way of `file_names`.
        dataset: which was predicted.
        scale: stored depth per metre; 0: as BTS has it for the data set, and 1 for .npy.
        align: what is done to a prediction before it is scored, see ALIGNMENTS.

    Raises:
        PredictionError: some are missing, their unit is impossible, or they fall where they
            should rise; or, with an answer, see `read`.

    """
    where = f'--predictions {name}={folder}'
    names = [file_names(entry) for entry in dataset.entries]
    forms = [(place, [place / f'{each}{suffix}' for each in form])
             for place in (folder, folder / RAW) for suffix in ('.png', '.npy')
             for form in zip(*names, strict=False)]
    place, paths = max(forms, key=lambda form: sum(path.is_file() for path in form[1]))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise PredictionError(
            f'{where}: {len(missing)} of {len(paths)} files are missing; a method is scored on '
            f'all images or on none. The first image is {", ".join(names[0])}, as .png or .npy:'
            f'{listing(missing)}')
    scale = scale or (1.0 if paths[0].suffix == '.npy' else dataset.scale)
    _check_unit(paths, dataset, scale, align, where)
    digest = hashlib.sha256()  # a run is continued with the same files only
    for path in paths:
        digest.update(path.read_bytes())
    height, width = _stored(paths[0], scale, align).shape
    files = dict(zip(dataset.entries, paths, strict=True))
    return Contender(
        name if align == 'none' else f'{name}, {align}-aligned', 'foreign',
        f'depth of another program, in {place} ({height} x {width}, {scale:g} a metre); '
        f'{ALIGNMENTS[align]}',
        lambda seen: torch.from_numpy(read(
            files[seen.entry], scale, align, seen.pair.depth.shape, seen.truth, seen.protocol,
        )).to(seen.estimator.device),
        key=digest.hexdigest(), is_test=align == 'none')


def read(
    path: Path, scale: float, align: str, size: tuple[int, ...], truth: Metres,
    protocol: Protocol,
) -> Metres:
    """Read what was predicted for an image of a size, as the protocol crops it.

    Returns (H, W) metres, 1 where the truth, of the same size, is NaN and nothing is scored.

    Raises:
        PredictionError: it is damaged, of a size that cannot be placed, or has no depth where
            it is scored.

    """
    scored = ~np.isnan(truth)
    depth = _placed(_stored(path, scale, align), size, protocol, path)
    values = depth[scored].astype(np.float64)
    least = -np.inf if align in _AFFINE else MIN_DEPTH
    wrong = ~(np.isfinite(values) & (values > least))
    if wrong.any():
        raise PredictionError(
            f'{path}: {wrong.sum()} of {len(wrong)} pixels that are scored have no depth '
            f'(0, not finite, or at most {MIN_DEPTH} m). A method is scored on every pixel of '
            'the protocol; predict all, or choose the --protocol that it was made for.')
    metres = np.ones_like(truth)
    if len(values):
        metres[scored] = aligned(values, truth[scored].astype(np.float64), align,
                                 protocol.max_depth)
    return metres


def _stored(path: Path, scale: float, align: str) -> Metres:
    """(h, w) metres of a file, NaN where there is no depth."""
    try:
        if path.suffix == '.npy':
            stored = np.load(path, allow_pickle=False)
            if stored.ndim != 2 or stored.dtype.kind != 'f':
                raise ValueError(f'it holds {stored.dtype} {stored.shape}')
            depth = stored.astype(np.float32) / np.float32(scale)
        else:
            depth = read_depth(path, scale)
    except DatasetError as error:
        raise PredictionError(str(error)) from error
    except (ValueError, OSError, EOFError) as error:
        raise PredictionError(f'{path}: no array of floating point (height, width): {error}'
                              ) from error
    metres: Metres = depth if align in _AFFINE else np.where(
        depth == 0, np.float32(np.nan), depth)
    return metres


def _check_unit(
    paths: list[Path], dataset: Dataset, scale: float, align: str, where: str,
) -> None:
    """Look at a few: are their medians possible, and do they rise with the truth?"""
    medians, falls = [], []
    for position in dataset.probes():
        truth, depth = dataset.read_truth(position), _stored(paths[position], scale, align)
        at = np.asarray(cv2.resize(
            truth, depth.shape[::-1], interpolation=cv2.INTER_NEAREST), np.float32)
        known = (at > 0) & np.isfinite(depth)
        if known.any():
            medians.append(float(np.nanmedian(depth)))
            falls.append(bool(np.cov(depth[known], at[known])[0, 1] < 0))
    if align in _AFFINE and falls.count(align == 'lstsq') > len(falls) / 2:
        what, other = ('falls', 'disparity') if align == 'lstsq' else ('rises', 'lstsq')
        raise PredictionError(f'{where}: what is stored {what} with the true depth, which is not '
                              f'what --align {align} takes it for. Give --align {other}.')
    low, high = dataset.plausible
    if align == 'none' and medians and not low <= np.median(medians) <= high:
        raise PredictionError(
            f'{where}: with {scale:g} a metre the median depth of {len(medians)} images is '
            f'{np.median(medians):.4g} m, outside {low:g} to {high:g} m. Give --prediction-scale, '
            'or --align where the method does not predict metres.')


def _placed(depth: Metres, size: tuple[int, ...], protocol: Protocol, path: Path) -> Metres:
    """What of a prediction is the protocol's crop.

    One of the image's size is cropped as the image is; one of the crop's size is the crop; one of
    the image's aspect ratio is enlarged or reduced to the image first.
    """
    height, width = depth.shape
    if depth.shape == protocol.size != size:
        return depth
    if depth.shape != size:
        if abs(width * size[0] / (height * size[1]) - 1) > _SAME_SHAPE:
            raise PredictionError(
                f'{path}: is {height} x {width}; the image is {size[0]} x {size[1]}, and '
                f'protocol {protocol.name} crops {protocol.size[0]} x {protocol.size[1]} of it. '
                'Predictions must be of one of these sizes, or of the aspect ratio of the image.')
        depth = cv2.resize(depth, (size[1], size[0]),
                           interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
    return depth[protocol.boxes(size[0], size[1])[0]]


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

    Returns the folder `raw` in the given one, beside which `witness.json` says `about` them how
    they came about. Predictions that are there already stay, if they did so in the same way.

    Raises:
        PredictionError: a depth does not fit into the files.
        ResultsError: they cannot be written.
        EvaluationError: the folder has other predictions already.

    """
    raw, noted = folder / RAW, folder / ABOUT
    names = [file_names(entry)[0] for entry in dataset.entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError(f'{dataset.path}: several images would have one name:'
                              f'{listing(twice)}')
    said = json.dumps({**about, 'scale': dataset.scale, 'images': len(names)}, indent=1,
                      ensure_ascii=False) + '\n'
    if raw.exists() and any(raw.iterdir()) and not (
            noted.is_file() and noted.read_text(encoding='utf-8') == said):
        raise EvaluationError(f'{raw}: has files already, of another command, and nothing is '
                              'overwritten; choose another folder.')
    write(noted, said)
    for position, name in enumerate(progress(names, 'predictions')):
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
