# SPDX-License-Identifier: Apache-2.0
"""NYU Depth v2: the labelled .mat, the official folders, Kaggle's nyu2_test, the official split.

`nyu_depth_v2_labeled.mat` is MATLAB v7.3, that is HDF5 with reversed axes, and read directly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from depthclip_ros.core.files import atomic

from ..errors import DatasetError, ResultsError, listing, progress
from .base import IN_PAINTED, NYU, RENDERED, Dataset, Entry, Metres, of_files, read_list

LABELED = 1449
FOCAL = 518.8579  # pixels: fx of the colour camera, camera_params.m of the data set's toolbox
MAT, LIST = 'nyu_depth_v2_labeled.mat', 'nyudepthv2_test_files_with_gt_dense.txt'
HEADER_SIZE = 512  # bytes before the HDF5 part, in which MATLAB introduces itself
MARK_FILE = 'ORIGIN.txt'  # in a folder: that it holds rendered rooms
# What of an image the official extraction keeps; the rest is a black frame. Rows, columns.
KEPT = np.s_[7:474, 7:632]
_SHAPES = {'images': (3, 640, 480), 'rawDepths': (640, 480), 'depths': (640, 480)}
_DAMAGED = ('the file is truncated or damaged. Compare its size with the original '
            '(2,972,037,809 bytes) and download it again.')

# The official split: 795 training and 654 test images of 1449, counted from 0 -------------------


@cache
def scene_classes() -> dict[int, str]:
    """Scene class of each test image, by its number."""
    file = Path(__file__).with_name('nyu_test.json')
    numbers = json.loads(file.read_text(encoding='utf-8'))
    return {n: scene for scene, members in numbers.items() for n in members}


def official_split() -> tuple[list[int], list[int]]:
    """Numbers of the training and of the test images."""
    test = scene_classes()
    return [n for n in range(LABELED) if n not in test], sorted(test)


def read_splits(path: Path, count: int) -> tuple[list[int], list[int]]:
    """Read `splits.mat`: `trainNdxs` and `testNdxs`, counted from 1.

    Args:
        path: the file (MATLAB v5).
        count: number of images that there are.

    Raises:
        DatasetError: not such a file, or numbers of images that are not there.

    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise DatasetError(f'{path}: reading a splits.mat needs SciPy: pip install scipy. The '
                           'official split is built in and needs none.') from error
    try:
        content = loadmat(path)
        train, test = (sorted((np.asarray(content[k]).ravel().astype(int) - 1).tolist())
                       for k in ('trainNdxs', 'testNdxs'))
    except (OSError, MatReadError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DatasetError(f'{path}: not a splits.mat with trainNdxs and testNdxs ({error}); the '
                           'file is damaged or another one.') from error
    wrong = [n + 1 for n in train + test if not 0 <= n < count]
    if wrong:
        raise DatasetError(f'{path}: names images {wrong[:10]}, but there are {count}; it belongs '
                           'to another file.')
    return train, test


# The labelled .mat -------------------------------------------------------------------------------


class _Mat:
    """The HDF5 file of `nyu_depth_v2_labeled.mat`, checked; threads may share it."""

    def __init__(self, path: Path, depth: str) -> None:
        try:
            import h5py
        except ImportError as error:
            raise DatasetError(f'{path}: reading it needs h5py: pip install h5py.') from error
        self.path = path
        if not h5py.is_hdf5(path):
            raise DatasetError(
                f'{path}: not an HDF5 file ({path.stat().st_size:,} bytes), so not the MATLAB '
                f'v7.3 file {MAT}. Was the download an error page?')
        with self._reading('it'):
            self._file = h5py.File(path, 'r')
        missing = [key for key in ('images', depth, 'sceneTypes') if key not in self._file]
        if missing:
            raise DatasetError(
                f'{path}: has no {", ".join(missing)}; it holds '
                f'{", ".join(sorted(self._file)[:20]) or "nothing"}. Expected {MAT}.')
        images = self._file['images']
        self.count = int(images.shape[0]) if images.ndim else 0
        for key in ('images', depth):
            shape, wanted = self._file[key].shape, (self.count, *_SHAPES[key])
            if shape != wanted:
                raise DatasetError(f'{path}: {key} has shape {shape}, expected {wanted} '
                                   '(reversed axes, as MATLAB v7.3 stores them).')
        if images.dtype != np.uint8:
            raise DatasetError(f'{path}: images are {images.dtype}, expected uint8.')

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f'{self.path}: {what} cannot be read ({error}); {_DAMAGED}'
                               ) from error

    def plane(self, key: str, number: int) -> Any:
        """One image or depth, axes in NumPy's order."""
        with self._reading(f'{key} of image {number}'):
            return np.ascontiguousarray(self._file[key][number].T)

    def texts(self, key: str) -> list[str]:
        """A cell array of texts: references to arrays of characters; '' where there is none."""
        if key not in self._file:
            return [''] * self.count
        with self._reading(key):
            texts = [''.join(map(chr, np.asarray(self._file[r]).ravel().tolist()))
                     for r in np.asarray(self._file[key]).ravel()]
        if len(texts) != self.count:
            raise DatasetError(f'{self.path}: {len(texts)} {key} for {self.count} images; the '
                               'file is not the original.')
        return texts

    def close(self) -> None:
        """Close it; nothing can be read any more."""
        self._file.close()


def open_mat(
    path: Path, *, part: str = 'test', splits: Path | None = None, inpainted: bool = False,
) -> Dataset:
    """Open the labelled .mat.

    Args:
        path: the .mat.
        part: 'test' or 'train'.
        splits: a `splits.mat`; else the built-in official split if the file has as many images as
            the original, else the `splits.mat` beside.
        inpainted: take the in-painted depth instead of the sensor's.

    Raises:
        DatasetError: the file or the split is wrong.

    """
    key = 'depths' if inpainted else 'rawDepths'
    mat = _Mat(path, key)
    beside = path.with_name('splits.mat')
    if splits is None and mat.count == LABELED:
        parts, split = official_split(), f'official {part} split'
    elif splits is not None or beside.is_file():
        file = splits or beside
        parts, split = read_splits(file, mat.count), f'{part} split of {file.name}'
    else:
        raise DatasetError(f'{path}: holds {mat.count} images, not the original {LABELED}, so '
                           'the built-in split does not fit; give --splits splits.mat.')
    numbers = parts[part == 'test']
    if not numbers:
        raise DatasetError(f'{path}: the {part} split is empty; give another splits.mat.')
    scenes, sequences = mat.texts('sceneTypes'), mat.texts('scenes')
    with path.open('rb') as start:  # a rendered file says so in MATLAB's header
        rendered = RENDERED.encode() in start.read(HEADER_SIZE)
    is_nyu = not rendered and mat.count == LABELED and all(
        scenes[n] == scene for n, scene in scene_classes().items())

    def training() -> Dataset | None:
        return open_mat(path, part='train', splits=splits, inpainted=inpainted
                        ) if part == 'test' and parts[0] else None
    return Dataset(
        path, ".mat in NYU Depth v2's labelled layout", split,
        'in-painted' if inpainted else 'raw',
        [Entry(n, f'{n:05d}', scenes[n], sequences[n], FOCAL) for n in numbers],
        lambda entry: mat.plane('images', entry.index),
        lambda entry: mat.plane(key, entry.index).astype(np.float32, copy=False),
        RENDERED if rendered else NYU if is_nyu else '',
        part == 'test' and not inpainted and is_nyu and numbers == official_split()[1],
        'metres', training=training, close=mat.close)


# Folders -----------------------------------------------------------------------------------------


def open_official(path: Path, list_file: Path | None = None, part: str = 'test') -> Dataset:
    """Open `official_splits/test`: JPEG images and raw depth in millimetres, by list or by name.

    Raises:
        DatasetError: files are missing, or images are without depth.

    """
    names = read_list(list_file) if list_file else [
        (f'{image.parent.name}/{image.name}', f'{image.parent.name}/{depth.name}', 0.0)
        for image, depth in _paired(path, '*/rgb_*.jpg', 'sync_depth_NNNNN.png', lambda name: (
            f'sync_depth_{name[4:-4]}.png'))]
    entries = [Entry(_number(rgb, i), rgb, Path(rgb).parent.name, focal=focal or FOCAL,
                     files=(path / rgb, path / depth)) for i, (rgb, depth, focal)
               in enumerate(names)]
    dataset = of_files(
        path, "folder in the layout of NYU Depth v2's official_splits (JPEG)",
        with_sequences(entries), depth='raw',
        split=f'{part} folder' + (f' by {list_file.name}' if list_file else ''))
    dataset.official = {e.index: e.scene for e in entries} == scene_classes()
    dataset.origin = NYU if dataset.official else ''
    if any('dense' in Path(depth).parts for _, depth, _ in names):
        dataset.is_in_painted()
    if any(RENDERED in f.read_text(encoding='utf-8', errors='replace') for f in (
            path / MARK_FILE, path.parent / MARK_FILE) if f.is_file()):
        dataset.origin, dataset.official = RENDERED, False
    beside = path.parent / 'train'
    if part == 'test' and any(beside.glob('*/rgb_*.jpg')):
        dataset.training = lambda: open_official(beside, part='train')
    return dataset


def open_kaggle(path: Path) -> Dataset:
    """Open `nyu2_test`: PNG images NNNNN_colors.png and depth in millimetres.

    Raises:
        DatasetError: images are without depth.

    """
    scenes = scene_classes()
    entries = [
        Entry(number, image.name, scenes.get(number, ''), focal=FOCAL, files=(image, depth))
        for i, (image, depth) in enumerate(_paired(
            path, '*_colors.png', 'NNNNN_depth.png', lambda name: name.replace('_colors',
                                                                               '_depth')))
        for number in [_number(image.name[:5], i)]]
    dataset = of_files(path, "Kaggle's nyu2_test", with_sequences(entries), split='test folder',
                       depth='in-painted')
    dataset.origin = NYU if {e.index for e in entries} == set(scenes) else ''
    dataset.warnings = (f"Kaggle's nyu2_test: {IN_PAINTED}",)
    return dataset


def with_sequences(entries: list[Entry]) -> list[Entry]:
    """Take neighbouring numbers of one class for one scene, where no name says which it is.

    The data set's images are in the order of its scenes. Two scenes that follow each other may
    count as one: intervals are rather too wide than too narrow.
    """
    found: dict[int, str] = {}
    before = None
    for entry in sorted(entries, key=lambda e: e.index):
        follows = before is not None and entry.scene and (entry.index, entry.scene) == (
            before.index + 1, before.scene)
        found[entry.index] = found[before.index] if before is not None and follows else \
            f'{entry.scene} from {entry.index}'
        before = entry
    return [replace(entry, sequence=found[entry.index]) for entry in entries]


def _paired(
    folder: Path, images: str, depths: str, name_of: Callable[[str], str],
) -> list[tuple[Path, Path]]:
    """Images and the depth beside each, which must be there."""
    pairs = [(image, image.with_name(name_of(image.name)))
             for image in sorted(folder.glob(images))]
    bare = [str(image.relative_to(folder)) for image, depth in pairs if not depth.is_file()]
    if bare:
        raise DatasetError(f'{folder}: {len(bare)} images are without ground truth ({depths}); '
                           f'remove them or extract again:{listing(bare)}')
    return pairs


def _number(name: str, fallback: int) -> int:
    found = re.search(r'(\d+)\D*$', Path(name).stem)
    return int(found[1]) if found else fallback


# Extraction --------------------------------------------------------------------------------------


def extract(mat: Path, folder: Path, splits: Path | None = None) -> Path:
    """Write `official_splits/{train,test}/SCENE/` from the .mat, as the official script does.

    JPEG images (OpenCV's default quality) with a black frame; depth as 16-bit PNG in millimetres,
    truncated, 0 where missing: raw beside the image, in-painted in `dense/`. Beside the folder is
    the list of the test pairs.

    Args:
        mat: nyu_depth_v2_labeled.mat.
        folder: where `official_splits` and the list go.
        splits: splits.mat; else the built-in split.

    Returns:
        The folder of the test split.

    Raises:
        DatasetError: the .mat is wrong.
        ResultsError: a file cannot be written.

    """
    if not mat.is_file():
        raise DatasetError(f'{mat}: does not exist.')
    raw = open_mat(mat, splits=splits)
    training = raw.training()
    parts = {'test': raw, **({} if training is None else {'train': training})}
    dense = open_mat(mat, splits=splits, inpainted=True).truth
    raw.check_unit()
    root, lines = folder / 'official_splits', []
    try:
        with progress(sum(map(len, parts.values())), 'extraction') as bar:
            for part, dataset in parts.items():
                for entry in dataset.entries:
                    names = f'rgb_{entry.index:05d}.jpg', f'sync_depth_{entry.index:05d}.png'
                    place, rgb = root / part / entry.scene, dataset.rgb(entry)
                    framed = np.zeros_like(rgb)
                    framed[KEPT] = rgb[KEPT]
                    _write_image(place / names[0], framed[:, :, ::-1])
                    _write_image(place / names[1], _millimetres(dataset.truth(entry)))
                    _write_image(place / 'dense' / f'sync_depth_dense_{entry.index:05d}.png',
                                 _millimetres(dense(entry)))
                    if part == 'test':
                        lines.append(' '.join(f'{entry.scene}/{name}' for name in names))
                    bar.update()
        texts = {folder / LIST: '\n'.join(sorted(lines))}
        if raw.origin == RENDERED:
            texts[root / MARK_FILE] = f'depthclip_ros, {RENDERED}'
        for path, text in texts.items():
            with atomic(path) as file:
                file.write(f'{text}\n'.encode())
    except OSError as error:
        raise ResultsError(f'{folder}: cannot be written ({error.strerror or error}). Free space '
                           'or choose another folder.') from error
    print(f'{sum(map(len, parts.values()))} images in {root}')
    return root / 'test'


def _millimetres(metres: Metres) -> Any:
    return (metres * 1000).astype(np.uint16)


def _write_image(path: Path, image: Any) -> None:
    with atomic(path) as file:
        file.write(cv2.imencode(path.suffix, np.ascontiguousarray(image))[1].tobytes())
