# SPDX-License-Identifier: Apache-2.0
"""Other programs' depth of the same images: find, read, check, crop and align their files."""

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
from depthclip_ros.evaluation.errors import PredictionError, describe_folder, listing
from depthclip_ros.evaluation.metrics import MIN_DEPTH
from depthclip_ros.evaluation.protocol import Protocol
from depthclip_ros.sources.depth_maps import ARRAYS, SUFFIXES, read_depth_map

from .evaluated_image import EvaluatedImage
from .predictors import PixelDepth

RAW = 'raw'  # folder of predictions, as BTS has it
ALIGNMENTS: Mapping[str, str] = {
    'none': 'as predicted, in metres',
    'median': "multiplied so that each image's median is the true one: no metric depth, its scale "
              "is an oracle's",
    'lstsq': "scaled (not below 0) and shifted by least squares to each image's true depth: no "
             'metric depth, an oracle',
    'disparity': 'taken for disparity, scaled (not below 0) and shifted by least squares to the '
                 "image's true 1 / depth: no metric depth, an oracle",
}
# With these alignments a stored 0 is a value; otherwise it marks missing depth.
_AFFINE = frozenset({'lstsq', 'disparity'})
# In the right order, a prediction correlates more with its own image's truth than with nearly all
# other images'; by chance, than with half of them. Of eight images, chance seldom exceeds this.
_MIN_OWN_FRACTION = 0.7
_MIN_MAPS = 4  # fewer maps give a random fraction
_SAME_VIEW_CORRELATION = 0.9  # between truths of one view, whose order does not matter
_ASPECT_TOLERANCE = 0.01  # relative difference of equal aspect ratios
# Crops with the aspect ratio of the image: FCRN's and CSPN's, also at full size.
_FOREIGN_CROPS = ((228, 304), (456, 608))


def file_names(entries: Sequence[Entry]) -> list[list[str]]:
    """List the possible file names of each image, without suffix; an export uses the first.

    Numbers are names only if they come from the images' names, not from their positions.
    """
    numbers = [re.search(r'(\d+)\D*$', Path(entry.name).stem) for entry in entries]
    has_own_numbers = all(number and int(number[1]) == entry.index
                          for number, entry in zip(numbers, entries, strict=True))

    def names(entry: Entry) -> list[str]:
        stem_path = Path(entry.name).with_suffix('')
        if '_drive_' in entry.sequence:
            return [f'{entry.sequence}_{stem_path.stem}', str(stem_path), stem_path.stem]
        if not has_own_numbers:
            return ['_'.join(stem_path.parts)]
        number, scene = f'{entry.index:05d}', entry.scene.replace('/', '_')
        return [f'{scene}_rgb_{number}'.lstrip('_'), f'rgb_{number}', number, str(stem_path)]
    return list(map(names, entries))


@dataclass(frozen=True)
class OtherProgram(PixelDepth):
    """Depth predicted by another program."""

    _: KW_ONLY
    digest: str  # of its files
    per_metre: float
    align: str
    files: Sequence[Path] = field(repr=False, compare=False)
    depth: Callable[[int], Metres] = field(repr=False, compare=False)  # by position

    def pixels(self, image: EvaluatedImage) -> Tensor:
        """Read, crop and align a prediction: (H, W) metres."""
        return torch.from_numpy(prepare(
            self.depth(image.position), self.files[image.position], self.align,
            image.pair.depth.shape, image.truth, image.protocol)).to(image.estimator.device)


def open_predictions(
    name: str, path: Path, dataset: Dataset, protocol: Protocol, scale: float = 0.0,
    align: str = 'none',
) -> OtherProgram:
    """Open another program's depth: a folder of files, or one array of all images.

    Args:
        name: of the method.
        path: a folder with a file of every image, see `_find_files`; or a file of (N, H, W).
        dataset: of the images; doubts are added to its warnings.
        protocol: of the evaluation.
        scale: stored depth per metre; 0: BTS's scale for the data set, 1 for floating point.
        align: one of ALIGNMENTS.

    Raises:
        PredictionError: files are missing, or their unit or sign is wrong; see also `prepare`,
            which raises it when an image is scored.

    """
    source = f'--predictions {name}={path}'
    stack = read_numbers(path, scale, 3) if path.is_file() else None
    if stack is not None and len(stack) != len(dataset):
        raise PredictionError(f'{source}: holds depth of {len(stack)} images, and the data set '
                              f'has {len(dataset)}; a method is scored on all or on none.')
    files = _find_files(path, dataset, source) if stack is None else [path] * len(dataset)
    first_map = read_numbers(files[0], scale) if stack is None else stack[0]
    per_metre = scale or (1.0 if first_map.dtype.kind == 'f' else dataset.scale)

    def depth(position: int) -> Metres:
        numbers = read_numbers(files[position], scale) if stack is None else stack[position]
        return to_metres(numbers, per_metre, align)
    maps, pairs = [], []
    for position in dataset.probes():
        full_truth = dataset.read_truth(position)
        truth = protocol.truth(full_truth)
        prediction = _crop_prediction(depth(position), full_truth.shape, protocol, files[position])
        has_depth = np.isfinite(prediction) & ((prediction > 0) | (align in _AFFINE))
        maps.append((np.where(has_depth, prediction, np.float32(np.nan)), truth))
        if (pair := _valid_pairs(*maps[-1]))[0].size:
            pairs.append(pair)
    dataset.warnings += _check_unit(
        pairs, source, per_metre, align, dataset, is_user_scale=scale > 0)
    dataset.warnings += _check_order(maps, source, align)
    digest = hashlib.sha256()  # a resumed run needs the same files
    for file in dict.fromkeys(files):
        digest.update(file.read_bytes())
    return OtherProgram(
        name if align == 'none' else f'{name}, {align}-aligned', 'foreign',
        f'depth of another program, in {files[0].parent} as {files[0].name} '
        f'({first_map.shape[0]} x {first_map.shape[1]}, {per_metre:g} a metre); '
        f'{ALIGNMENTS[align]}',
        is_test=align == 'none', digest=digest.hexdigest(), per_metre=per_metre, align=align,
        files=files, depth=depth)


def _find_files(folder: Path, dataset: Dataset, source: str) -> list[Path]:
    """Find one file of every image in a folder, its `raw`, or its subfolders.

    Files have a name of `file_names`, or all have the same prefix and suffix around it. Case does
    not matter, and folders are parts of a name. Alternatively, files are numbered from 0, as many
    as there are images.

    Raises:
        PredictionError: no set of files fits, or several do.

    """
    name_forms = [names for names in zip(*file_names(dataset.entries), strict=False)
                  if len(set(names)) == len(names)]
    most_matches: tuple[dict[int, Path], Sequence[str]] = {}, name_forms[0]
    candidates: dict[tuple[Path, ...], bool] = {}  # whether names have no affixes
    for base, pattern in ((folder, '*'), (folder / RAW, '*'), (folder, '**/*')):
        files = [file for file in sorted(base.glob(pattern)) if file.is_file()
                 and file.suffix.lower() in SUFFIXES and not file.name.startswith('.')]
        if len(files) == len(dataset) and {file.stem.lstrip('0') for file in files} == {
                str(position or '') for position in range(len(files))}:
            candidates.setdefault(tuple(sorted(files, key=lambda file: int(file.stem))), False)
        for names in name_forms:
            for affixes, matches in _group_by_affixes(base, files, names).items():
                if len(matches) == len(names):
                    candidates.setdefault(tuple(matches[i] for i in range(len(names))),
                                          not any(affixes[:2]))
                elif len(matches) > len(most_matches[0]):
                    most_matches = matches, names
    choices = sorted(candidates, key=candidates.__getitem__, reverse=True)
    if len(choices) > 1:  # many programs write pictures beside depth
        choices = [files for files in choices if _is_depth(files[0])] or choices
    if choices and (len(choices) == 1 or candidates[choices[0]]):
        return list(choices[0])
    if choices:
        raise PredictionError(f'{source}: several files may be of the first image; give a folder '
                              f'with one of each:{listing([str(files[0]) for files in choices])}')
    missing = [name for position, name in enumerate(most_matches[1])
               if position not in most_matches[0]]
    raise PredictionError(
        f'{source}: {len(missing)} of {len(dataset)} files are missing; a method is scored on all '
        f'images or on none. The first image is {", ".join(file_names(dataset.entries)[0])}, as '
        f'{", ".join(SUFFIXES)}. {describe_folder(folder)} Missing are:{listing(missing)}')


def _group_by_affixes(
    base: Path, files: Sequence[Path], names: Sequence[str],
) -> dict[tuple[str, str, str], dict[int, Path]]:
    """Group files by the affixes around an image's name, and key them by position."""
    positions = {re.sub(r'[\\/]', '_', name).lower(): i for i, name in enumerate(names)}
    pattern = re.compile(rf'(?<!\d)(?:{"|".join(map(re.escape, positions))})(?!\d)')
    groups: dict[tuple[str, str, str], dict[int, Path]] = {}
    for file in sorted(files, key=lambda file: SUFFIXES.index(file.suffix.lower())):
        stem = '_'.join(file.relative_to(base).with_suffix('').parts).lower()
        if len(matches := pattern.findall(stem)) == 1:
            prefix, _, suffix = stem.partition(matches[0])
            affixes = prefix, suffix, file.suffix.lower()
            groups.setdefault(affixes, {})[positions[matches[0]]] = file
    return groups


def _is_depth(path: Path) -> bool:
    try:
        return read_numbers(path, 1.0).size > 0
    except PredictionError:
        return False


def read_numbers(path: Path, scale: float, dimensions: int = 2) -> NDArray[Any]:
    """Read the (h, w) or (N, h, w) stored numbers of a file; arrays of integers need a scale.

    Raises:
        PredictionError: the file is no depth map, or its scale is unknown.

    """
    try:
        numbers = read_depth_map(path, dimensions=dimensions, integers=True)
    except ImageError as error:
        raise PredictionError(str(error)) from error
    if numbers.dtype.kind != 'f' and not scale and path.suffix.lower() in ARRAYS:
        raise PredictionError(f'{path}: holds whole numbers ({numbers.dtype}); give '
                              '--prediction-scale, how many of them are a metre.')
    return numbers


def to_metres(numbers: NDArray[Any], scale: float, align: str) -> Metres:
    """Convert stored numbers to (h, w) metres, NaN where depth is missing."""
    depth = numbers.astype(np.float32) / np.float32(scale)
    metres: Metres = depth if align in _AFFINE else np.where(
        depth == 0, np.float32(np.nan), depth)
    return metres


def _check_unit(
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], source: str, scale: float,
    align: str, dataset: Dataset, *, is_user_scale: bool,
) -> tuple[str, ...]:
    """Check sign, unit and correlation on predicted and true depth (n,) of a few images.

    A wrong unit multiplies every depth by the ratio of two common scales, but a poor method may
    err by such a factor as well. The ratio is an error only if depth is accurate otherwise
    (correlation 0.8 or more, proportional to a power of 0.7 to 1.25 of the truth, images' ratios
    within a factor of 1.6), if it matches another scale within a factor of 1.25, and if it exceeds
    1.5, or 3.5 where the user gave the scale. Any other ratio beyond 1.5 is a warning, unless
    the median is no depth of the data set at all.

    Returns:
        Warnings.

    Raises:
        PredictionError: depth falls where the truth rises, or has another unit.

    """
    if not pairs:
        return ()
    sign = -1 if align == 'disparity' else 1
    correlations = sign * np.array([_correlation(p, y) for p, y in pairs])
    correlation = float(np.median(correlations))
    if np.mean(correlations < (0.0 if align in _AFFINE else -0.5)) > 0.5:
        trend, alignment = ('rises', 'lstsq') if sign < 0 else ('falls', 'disparity')
        raise PredictionError(f'{source}: what is stored {trend} with the true depth, which is '
                              f'not what --align {align} takes it for. Give --align {alignment}.')
    if align == 'none':
        ratios = [float(np.median(p / y)) for p, y in pairs]
        ratio = float(np.median(ratios))
        other_scale, deviation = nearest_scale(scale * ratio), max(ratio, 1 / ratio)
        is_near = other_scale != scale and 1 / 1.25 < scale * ratio / other_scale < 1.25
        message = (f'{source}: with {scale:g} a metre the predicted depth is {ratio:.3g} times '
                   f'the true one (median of {len(pairs)} images, correlation '
                   f'{correlation:.2f})') + (
            f'; it looks like {other_scale:.6g} a metre: --prediction-scale {other_scale:.6g}'
            if is_near else '')
        if (is_near and correlation >= 0.8 and deviation > (3.5 if is_user_scale else 1.5)
                and max(ratios) < 1.6 * min(ratios) and 0.7 < np.median([
                    np.polyfit(np.log(y), np.log(p), 1)[0] for p, y in pairs]) < 1.25):
            raise PredictionError(
                f'{message}, or --prediction-scale {scale:g} if it is that wrong.'
                if deviation <= 3.5 else f'{message}.')
        low, high = dataset.depth_ranges[0]
        if not low <= (median := float(np.median([np.median(p) for p, _ in pairs]))) <= high:
            raise PredictionError(
                f'{message}; its median of {median:.4g} m is outside {low:g} to {high:g} m. Give '
                '--prediction-scale, or --align where the method does not predict metres.')
        if deviation > 1.5:
            return (f'{message}. Is that its unit, and is it metric depth (else: --align)?',)
    warning = (f'{source}: correlates with the true depth by {correlation:.2f} only. Are the '
               'images upright, and in this order?')
    return (warning,) if correlation < 0.2 else ()


def _check_order(
    maps: Sequence[tuple[Metres, Metres]], source: str, align: str,
) -> tuple[str, ...]:
    """Warn if predictions correlate with other images' truth as much as with their own.

    Rooms are alike, so that depth in the wrong order correlates as well: only the comparison
    between images reveals it.

    Args:
        maps: predicted and true depth (H, W) of a few images, NaN where invalid.
        source: of the predictions, for messages.
        align: one of ALIGNMENTS.

    Returns:
        Warnings.

    """
    sign, count = -1 if align == 'disparity' else 1, len(maps)
    truth_correlations = np.array([
        [_correlation(*_valid_pairs(a, b)) for _, b in maps] for _, a in maps])
    off_diagonal = ~np.eye(count, dtype=bool)
    if count < _MIN_MAPS or np.median(truth_correlations[off_diagonal]) > _SAME_VIEW_CORRELATION:
        return ()
    correlations = sign * np.array([
        [_correlation(*_valid_pairs(p, y)) for _, y in maps] for p, _ in maps])
    # A tie, as with a constant, counts half.
    signs = np.sign(np.diag(correlations)[:, None] - correlations)[off_diagonal]
    own_fraction = np.mean((signs + 1) / 2)
    warning = (f'{source}: is more like the true depth of its own image than like that of another '
               f'in {100 * own_fraction:.0f} % of the cases only (correlations of {count} images; '
               '50 % is chance). Is it in the order of the images?')
    return () if own_fraction > _MIN_OWN_FRACTION else (warning,)


def _valid_pairs(
    p: Metres, y: Metres,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Select the (n,) pixels of two maps where both are valid."""
    valid = ~(np.isnan(p) | np.isnan(y))
    return p[valid].astype(np.float64), y[valid].astype(np.float64)


def _correlation(p: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(np.corrcoef(p, y)[0, 1]) if p.size and p.std() * y.std() else 0.0


def prepare(
    depth: Metres, path: Path, align: str, size: tuple[int, ...], truth: Metres,
    protocol: Protocol,
) -> Metres:
    """Crop and align a prediction to the truth: (H, W) metres, 1 where no pixel is scored.

    Args:
        depth: (h, w) predicted metres.
        path: of its file, for messages.
        align: one of ALIGNMENTS.
        size: height and width of the image.
        truth: (H, W) metres, NaN where no pixel is scored.
        protocol: of the evaluation.

    Raises:
        PredictionError: the size does not fit, or a scored pixel has no depth.

    """
    scored_mask = ~np.isnan(truth)
    values = _crop_prediction(depth, size, protocol, path)[scored_mask].astype(np.float64)
    minimum = -np.inf if align in _AFFINE else MIN_DEPTH
    invalid = ~(np.isfinite(values) & (values > minimum))
    if invalid.any():
        raise PredictionError(
            f'{path}: {invalid.sum()} of {len(invalid)} pixels that are scored have no depth '
            f'(0, not finite, or at most {MIN_DEPTH} m). A method is scored on every pixel of '
            'the protocol; predict all, or choose the --protocol that it was made for.')
    metres = np.ones_like(truth)
    if len(values):
        metres[scored_mask] = align_to_truth(values, truth[scored_mask].astype(np.float64), align,
                                             protocol.max_depth)
    return metres


def _crop_prediction(
    depth: Metres, size: tuple[int, ...], protocol: Protocol, path: Path,
) -> Metres:
    """Crop a prediction as the protocol crops the image.

    A prediction of the crop's size stays as it is; one with the image's aspect ratio is resized to
    the image first.

    Raises:
        PredictionError: the size does not fit.

    """
    height, width = depth.shape
    if depth.shape in _FOREIGN_CROPS and size == (480, 640):
        raise PredictionError(
            f'{path}: is {height} x {width}, as those who halve the image and keep its middle '
            f'have it: rows 12 to 467 and columns 16 to 623, fewer than protocol {protocol.name} '
            'scores. Predict the whole image.')
    if depth.shape == protocol.size != size:
        return depth
    if depth.shape != size:
        if abs(width * size[0] / (height * size[1]) - 1) > _ASPECT_TOLERANCE:
            raise PredictionError(
                f'{path}: is {height} x {width}; the image is {size[0]} x {size[1]}, and '
                f'protocol {protocol.name} crops {protocol.size[0]} x {protocol.size[1]} of it. '
                'Predictions must be of one of these sizes, or of the aspect ratio of the image.')
        depth = cv2.resize(depth, (size[1], size[0]),
                           interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
    return depth[protocol.boxes(size[0], size[1])[0]]


def align_to_truth(
    p: NDArray[np.float64], y: NDArray[np.float64], alignment: str, max_depth: float,
) -> NDArray[np.float64]:
    """Align predicted values (n,) to the true depth (n,): metres, see ALIGNMENTS."""
    if alignment == 'none':
        return p
    if alignment == 'median':
        return p * (np.median(y) / np.median(p))
    target = 1 / y if alignment == 'disparity' else y
    scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], axis=1), target, rcond=None)[0]
    if scale < 0:  # the best fit without a negative scale is a constant
        scale, shift = 0.0, target.mean()
    fitted: NDArray[np.float64] = scale * p + shift
    if alignment == 'disparity':
        return 1 / np.maximum(fitted, 1 / max_depth)
    return np.maximum(fitted, 2 * MIN_DEPTH)
