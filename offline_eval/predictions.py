# SPDX-License-Identifier: Apache-2.0
"""Other programs' depth of the same images, read from files and compared with the truth."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthclip_ros.core.errors import ImageError
from depthclip_ros.evaluation.datasets import Dataset, Entry
from depthclip_ros.evaluation.datasets.base import Metres, nearest_scale
from depthclip_ros.evaluation.errors import PredictionError, contents, listing
from depthclip_ros.evaluation.metrics import MIN_DEPTH
from depthclip_ros.evaluation.protocol import Protocol
from depthclip_ros.sources.depth_maps import ARRAYS, SUFFIXES, read_depth_map

from .contenders import PixelDepth
from .images import EvaluatedImage

RAW = 'raw'  # folder of predictions, as BTS has it
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
# In order, depth is more like its own image's truth than like nearly all others'; by chance, than
# like half of them, and of eight images seldom than like more than so many.
_BY_CHANCE = 0.7
_LEAST_MAPS = 4  # of fewer, chance says anything
_ONE_VIEW = 0.9  # truths that are so alike are of one view, whose order is no matter
_SAME_SHAPE = 0.01  # aspect ratios that differ by less are one
# Of the image's aspect ratio, and yet a part of it: FCRN's and CSPN's crop, and at full size.
_PARTS = ((228, 304), (456, 608))


def file_names(entries: Sequence[Entry]) -> list[list[str]]:
    """How each image's file may be called, without suffix; the first is what is written.

    Numbers are names only where they are the images' own, and not their places.
    """
    numbers = [re.search(r'(\d+)\D*$', Path(entry.name).stem) for entry in entries]
    are_own = all(number and int(number[1]) == entry.index
                  for number, entry in zip(numbers, entries, strict=True))

    def names(entry: Entry) -> list[str]:
        own = Path(entry.name).with_suffix('')
        if '_drive_' in entry.sequence:
            return [f'{entry.sequence}_{own.stem}', str(own), own.stem]
        if not are_own:
            return ['_'.join(own.parts)]
        number, scene = f'{entry.index:05d}', entry.scene.replace('/', '_')
        return [f'{scene}_rgb_{number}'.lstrip('_'), f'rgb_{number}', number, str(own)]
    return list(map(names, entries))


@dataclass(frozen=True)
class OtherProgram(PixelDepth):
    """Depth that another program predicted."""

    _: KW_ONLY
    digest: str  # of its files
    per_metre: float
    align: str
    files: Sequence[Path] = field(repr=False, compare=False)
    depth: Callable[[int], Metres] = field(repr=False, compare=False)  # by position

    def pixels(self, image: EvaluatedImage) -> Tensor:
        """(H, W) metres."""
        return torch.from_numpy(read(
            self.depth(image.position), self.files[image.position], self.align,
            image.pair.depth.shape, image.truth, image.protocol)).to(image.estimator.device)


def foreign(
    name: str, path: Path, dataset: Dataset, protocol: Protocol, scale: float = 0.0,
    align: str = 'none',
) -> OtherProgram:
    """Another program's depth, from its files in a folder, or from one array of all images.

    Args:
        name: of the method.
        path: a folder with a file of every image, see `_files`; or a file of (N, H, W).
        dataset: which was predicted; it gets a warning of what is only doubtful.
        protocol: by which it is scored.
        scale: stored depth per metre; 0: as BTS has it for the data set, and 1 for floating point.
        align: what is done to a prediction before it is scored, see ALIGNMENTS.

    Raises:
        PredictionError: some are missing, their unit is wrong, or they fall where they should
            rise; or, with an answer, see `read`.

    """
    where = f'--predictions {name}={path}'
    stack = numbers_of(path, scale, 3) if path.is_file() else None
    if stack is not None and len(stack) != len(dataset):
        raise PredictionError(f'{where}: holds depth of {len(stack)} images, and the data set has '
                              f'{len(dataset)}; a method is scored on all or on none.')
    files = _files(path, dataset, where) if stack is None else [path] * len(dataset)
    first = numbers_of(files[0], scale) if stack is None else stack[0]
    per_metre = scale or (1.0 if first.dtype.kind == 'f' else dataset.scale)

    def depth(position: int) -> Metres:
        return metres_of(numbers_of(files[position], scale) if stack is None else stack[position],
                         per_metre, align)
    maps, pairs = [], []
    for position in dataset.probes():
        whole = dataset.read_truth(position)
        truth = protocol.truth(whole)
        predicted = _placed(depth(position), whole.shape, protocol, files[position])
        has_depth = np.isfinite(predicted) & ((predicted > 0) | (align in _AFFINE))
        maps.append((np.where(has_depth, predicted, np.float32(np.nan)), truth))
        if (pair := _known(*maps[-1]))[0].size:
            pairs.append(pair)
    dataset.warnings += _doubts(pairs, where, per_metre, align, dataset, is_given=scale > 0)
    dataset.warnings += _out_of_order(maps, where, align)
    digest = hashlib.sha256()  # a run is continued with the same files only
    for file in dict.fromkeys(files):
        digest.update(file.read_bytes())
    return OtherProgram(
        name if align == 'none' else f'{name}, {align}-aligned', 'foreign',
        f'depth of another program, in {files[0].parent} as {files[0].name} '
        f'({first.shape[0]} x {first.shape[1]}, {per_metre:g} a metre); {ALIGNMENTS[align]}',
        is_test=align == 'none', digest=digest.hexdigest(), per_metre=per_metre, align=align,
        files=files, depth=depth)


def _files(folder: Path, dataset: Dataset, where: str) -> list[Path]:
    """A file of every image in a folder, in `raw` in it, or in the folders below.

    They are called in one of the ways of `file_names`, or all have the same around that; capitals
    do not matter, and folders count as parts of a name. Or they are numbers from 0 on, as many as
    there are images.

    Raises:
        PredictionError: there is no such set of files, or there are several.

    """
    forms = [form for form in zip(*file_names(dataset.entries), strict=False)
             if len(set(form)) == len(form)]
    best: tuple[dict[int, Path], Sequence[str]] = {}, forms[0]
    complete: dict[tuple[Path, ...], bool] = {}  # whether they have just the images' names
    for place, pattern in ((folder, '*'), (folder / RAW, '*'), (folder, '**/*')):
        files = [file for file in sorted(place.glob(pattern)) if file.is_file()
                 and file.suffix.lower() in SUFFIXES and not file.name.startswith('.')]
        if len(files) == len(dataset) and {file.stem.lstrip('0') for file in files} == {
                str(position or '') for position in range(len(files))}:
            complete.setdefault(tuple(sorted(files, key=lambda file: int(file.stem))), False)
        for form in forms:
            for affixes, matches in _by_affixes(place, files, form).items():
                if len(matches) == len(form):
                    complete.setdefault(tuple(matches[position] for position in range(len(form))),
                                        not any(affixes[:2]))
                elif len(matches) > len(best[0]):
                    best = matches, form
    sets = sorted(complete, key=complete.__getitem__, reverse=True)
    if len(sets) > 1:  # beside depth many programs write pictures of it
        sets = [files for files in sets if _is_depth(files[0])] or sets
    if sets and (len(sets) == 1 or complete[sets[0]]):
        return list(sets[0])
    if sets:
        raise PredictionError(f'{where}: several files may be of the first image; give a folder '
                              f'with one of each:{listing([str(files[0]) for files in sets])}')
    missing = [name for position, name in enumerate(best[1]) if position not in best[0]]
    raise PredictionError(
        f'{where}: {len(missing)} of {len(dataset)} files are missing; a method is scored on all '
        f'images or on none. The first image is {", ".join(file_names(dataset.entries)[0])}, as '
        f'{", ".join(SUFFIXES)}. {contents(folder)} Missing are:{listing(missing)}')


def _by_affixes(
    place: Path, files: Sequence[Path], names: Sequence[str],
) -> dict[tuple[str, str, str], dict[int, Path]]:
    """Files by position of the one image whose name is in theirs, of all that is around it."""
    positions = {re.sub(r'[\\/]', '_', name).lower(): i for i, name in enumerate(names)}
    pattern = re.compile(rf'(?<!\d)(?:{"|".join(map(re.escape, positions))})(?!\d)')
    groups: dict[tuple[str, str, str], dict[int, Path]] = {}
    for file in sorted(files, key=lambda file: SUFFIXES.index(file.suffix.lower())):
        key = '_'.join(file.relative_to(place).with_suffix('').parts).lower()
        if len(matches := pattern.findall(key)) == 1:
            before, _, after = key.partition(matches[0])
            affixes = before, after, file.suffix.lower()
            groups.setdefault(affixes, {})[positions[matches[0]]] = file
    return groups


def _is_depth(path: Path) -> bool:
    try:
        return numbers_of(path, 1.0).size > 0
    except PredictionError:
        return False


def numbers_of(path: Path, scale: float, dimensions: int = 2) -> NDArray[Any]:
    """(h, w) or (N, h, w) of what a file of predictions stores; whole numbers want a scale.

    Raises:
        PredictionError: it is no depth map, or its scale is not known.

    """
    try:
        numbers = read_depth_map(path, dimensions=dimensions, integers=True)
    except ImageError as error:
        raise PredictionError(str(error)) from error
    if numbers.dtype.kind != 'f' and not scale and path.suffix.lower() in ARRAYS:
        raise PredictionError(f'{path}: holds whole numbers ({numbers.dtype}); give '
                              '--prediction-scale, how many of them are a metre.')
    return numbers


def metres_of(numbers: NDArray[Any], scale: float, align: str) -> Metres:
    """(h, w) metres of what is stored, NaN where there is no depth."""
    depth = numbers.astype(np.float32) / np.float32(scale)
    metres: Metres = depth if align in _AFFINE else np.where(
        depth == 0, np.float32(np.nan), depth)
    return metres


def _doubts(
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], where: str, scale: float,
    align: str, dataset: Dataset, *, is_given: bool,
) -> tuple[str, ...]:
    """What is doubtful of predicted and true depth (n,) of a few images, in sentences.

    A wrong unit multiplies every depth by the ratio of two scales in use, but a poor method may
    do so, too. So it is an error only where the depth hardly errs otherwise (correlation 0.8 or
    more, proportional to a power of 0.7 to 1.25 of the truth, images' ratios within a factor of
    1.6) and the ratio is within 1.25 that of another scale, and beyond 1.5. Where the user says
    what a metre is, it must be so wrong as no method is, beyond 3.5. Any other ratio beyond 1.5
    is a doubt.

    Raises:
        PredictionError: they fall where they should rise, or are of another unit.

    """
    if not pairs:
        return ()
    sign = -1 if align == 'disparity' else 1
    correlations = sign * np.array([_correlation(p, y) for p, y in pairs])
    correlation = float(np.median(correlations))
    if np.mean(correlations < (0.0 if align in _AFFINE else -0.5)) > 0.5:
        what, other = ('rises', 'lstsq') if sign < 0 else ('falls', 'disparity')
        raise PredictionError(f'{where}: what is stored {what} with the true depth, which is not '
                              f'what --align {align} takes it for. Give --align {other}.')
    if align == 'none':
        ratios = [float(np.median(p / y)) for p, y in pairs]
        ratio = float(np.median(ratios))
        other_scale, factor = nearest_scale(scale * ratio), max(ratio, 1 / ratio)
        is_near = other_scale != scale and 1 / 1.25 < scale * ratio / other_scale < 1.25
        what = (f'{where}: with {scale:g} a metre the predicted depth is {ratio:.3g} times the '
                f'true one (median of {len(pairs)} images, correlation {correlation:.2f})') + (
            f'; it looks like {other_scale:.6g} a metre: --prediction-scale {other_scale:.6g}'
            if is_near else '')
        if (is_near and correlation >= 0.8 and factor > (3.5 if is_given else 1.5)
                and max(ratios) < 1.6 * min(ratios) and 0.7 < np.median([
                    np.polyfit(np.log(y), np.log(p), 1)[0] for p, y in pairs]) < 1.25):
            raise PredictionError(f'{what}, or --prediction-scale {scale:g} if it is that wrong.'
                                  if factor <= 3.5 else f'{what}.')
        low, high = dataset.world[0]
        if not low <= (median := float(np.median([np.median(p) for p, _ in pairs]))) <= high:
            raise PredictionError(
                f'{what}; its median of {median:.4g} m is outside {low:g} to {high:g} m. Give '
                '--prediction-scale, or --align where the method does not predict metres.')
        if factor > 1.5:
            return (f'{what}. Is that its unit, and is it metric depth (else: --align)?',)
    unlike = (f'{where}: correlates with the true depth by {correlation:.2f} only. Are the images '
              'upright, and in this order?')
    return (unlike,) if correlation < 0.2 else ()


def _out_of_order(
    maps: Sequence[tuple[Metres, Metres]], where: str, align: str,
) -> tuple[str, ...]:
    """What is doubtful where predictions are as like other images' truth as their own.

    Rooms are alike: depth of another one correlates, too, and only by the order it is noticed.

    Args:
        maps: predicted and true depth (H, W) of a few images, NaN where it is not known.
        where: they are from.
        align: what is done to them.

    """
    sign, count = -1 if align == 'disparity' else 1, len(maps)
    of_truth = np.array([[_correlation(*_known(a, b)) for _, b in maps] for _, a in maps])
    other = ~np.eye(count, dtype=bool)
    if count < _LEAST_MAPS or np.median(of_truth[other]) > _ONE_VIEW:
        return ()
    fits = sign * np.array([[_correlation(*_known(p, y)) for _, y in maps] for p, _ in maps])
    # Of a tie, as with a constant, half counts.
    better = np.mean((np.sign(np.diag(fits)[:, None] - fits)[other] + 1) / 2)
    doubt = (f'{where}: is more like the true depth of its own image than like that of another in '
             f'{100 * better:.0f} % of the cases only (correlations of {count} images; 50 % is '
             'chance). Is it in the order of the images?')
    return () if better > _BY_CHANCE else (doubt,)


def _known(
    p: Metres, y: Metres,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) of two maps where both are known."""
    known = ~(np.isnan(p) | np.isnan(y))
    return p[known].astype(np.float64), y[known].astype(np.float64)


def _correlation(p: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(np.corrcoef(p, y)[0, 1]) if p.size and p.std() * y.std() else 0.0


def read(
    depth: Metres, path: Path, align: str, size: tuple[int, ...], truth: Metres,
    protocol: Protocol,
) -> Metres:
    """What of (h, w) predicted metres of an image of a size the protocol crops.

    Returns (H, W) metres, 1 where the truth, of the same size, is NaN and nothing is scored.

    Raises:
        PredictionError: it is of a size that cannot be placed, or has no depth where it is scored;
            `path` is of its file.

    """
    scored = ~np.isnan(truth)
    values = _placed(depth, size, protocol, path)[scored].astype(np.float64)
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


def _placed(depth: Metres, size: tuple[int, ...], protocol: Protocol, path: Path) -> Metres:
    """What of a prediction is the protocol's crop.

    One of the image's size is cropped as the image is; one of the crop's size is the crop; one of
    the image's aspect ratio is enlarged or reduced to the image first.
    """
    height, width = depth.shape
    if depth.shape in _PARTS and size == (480, 640):
        raise PredictionError(
            f'{path}: is {height} x {width}, as those who halve the image and keep its middle '
            f'have it: rows 12 to 467 and columns 16 to 623, fewer than protocol {protocol.name} '
            'scores. Predict the whole image.')
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
