# SPDX-License-Identifier: Apache-2.0
"""NYU Depth v2: the labelled .mat, the official folders, Kaggle's nyu2_test, the official split.

`nyu_depth_v2_labeled.mat` is MATLAB v7.3, that is HDF5 with reversed axes, and read directly.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...core.files import atomic, check_new
from ...core.formats import kind_of
from ...progress import progress
from ...sources.pictures import SUFFIXES
from ..errors import DatasetError, ResultsError, listing
from .base import IN_PAINTED, NYU, RENDERED, Dataset, Entry, Metres, of_files, read_list

LABELED = 1449
FOCAL = 518.8579  # pixels: fx of the colour camera, camera_params.m of the data set's toolbox
MAT, LIST = 'nyu_depth_v2_labeled.mat', 'nyudepthv2_test_files_with_gt_dense.txt'
HEADER_SIZE = 512  # bytes before the HDF5 part, in which MATLAB introduces itself
KAGGLE = '[!.]*_colors.png'
LEAST = 10  # images that have the data set's numbers and classes not by chance
MARK_FILE = 'ORIGIN.txt'  # in a folder: that it holds rendered rooms
# What of an image the official extraction keeps; the rest is a black frame. Rows, columns.
KEPT = np.s_[7:474, 7:632]

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


def _read_splits(path: Path, count: int) -> tuple[list[int], list[int]]:
    """`trainNdxs` and `testNdxs` of a `splits.mat` (MATLAB v5), which counts from 1."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError
    try:
        content = loadmat(path)
        train, test = (sorted((np.asarray(content[k]).ravel().astype(int) - 1).tolist())
                       for k in ('trainNdxs', 'testNdxs'))
    except (OSError, MatReadError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DatasetError(f'{path}: not a splits.mat with trainNdxs and testNdxs ({error}); the '
                           'file is damaged or another one.') from error
    wrong = [n + 1 for n in train + test if not 0 <= n < count]
    if wrong or not test:
        raise DatasetError(f'{path}: names {len(test)} test images, and of all {wrong[:10]} are '
                           f'not among the {count} there are; it belongs to another file.')
    return train, test


# The labelled .mat -------------------------------------------------------------------------------


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:  # not of its content
            raise DatasetError(
                f'{path}: cannot be read: {os.strerror(error.errno)} ({error}). If another '
                'program writes it, wait; if its file system has no locks, set the environment '
                'variable HDF5_USE_FILE_LOCKING to FALSE.') from error
        kind = kind_of(path)
        if kind.name not in ('matlab', 'hdf5', ''):
            raise DatasetError(f'{path}: is {kind.sentence}. Expected is {MAT} as MATLAB v7.3 '
                               'stores it, of 2,972,037,809 bytes.') from error
        raise DatasetError(
            f'{path}: not {MAT} as MATLAB v7.3 stores it ({path.stat().st_size:,} bytes; {error})'
            '. It is truncated, damaged or another file: compare its size with the original '
            '(2,972,037,809 bytes) and download it again.') from error


def open_mat(path: Path, *, part: str = 'test', inpainted: bool = False) -> Dataset:
    """Open the labelled .mat; `part` is 'test' or 'train'. Threads may share it.

    The split is the official one, or that of the `splits.mat` beside a smaller file.

    Raises:
        DatasetError: the file or the split is wrong.

    """
    import h5py
    key = 'depths' if inpainted else 'rawDepths'
    with _reading(path):
        mat = h5py.File(path, 'r')
        if 'images' not in mat:
            raise ValueError(f'it holds {", ".join(mat)}, as other data sets do')
        count = len(mat['images'])
        for name, wanted in (('images', (count, 3, 640, 480)), (key, (count, 640, 480))):
            if mat[name].shape != wanted:
                raise ValueError(f'{name} has shape {mat[name].shape}, expected {wanted}')
        if mat['images'].dtype != np.uint8:
            raise ValueError(f'images are {mat["images"].dtype}, expected uint8')
        scenes, sequences = (
            [''.join(map(chr, np.asarray(mat[r]).ravel().tolist()))  # arrays of characters
             for r in np.asarray(mat[name]).ravel()] if name in mat else [''] * count
            for name in ('sceneTypes', 'scenes'))
    beside = path.with_name('splits.mat')
    if count == LABELED:
        parts, split = official_split(), f'official {part} split'
    elif beside.is_file():
        parts, split = _read_splits(beside, count), f'{part} split of {beside.name}'
    else:
        raise DatasetError(f'{path}: holds {count} images, not the original {LABELED}, so the '
                           'built-in split does not fit; lay its splits.mat beside it.')
    with path.open('rb') as start:  # a rendered file says so in MATLAB's header
        rendered = RENDERED.encode() in start.read(HEADER_SIZE)
    is_nyu = not rendered and count == LABELED and all(
        scenes[n] == scene for n, scene in scene_classes().items())

    def plane(name: str, number: int) -> Any:
        with _reading(path):
            return np.ascontiguousarray(mat[name][number].T)

    def training() -> Dataset | None:
        return open_mat(path, part='train', inpainted=inpainted
                        ) if part == 'test' and parts[0] else None
    return Dataset(
        path, ".mat in NYU Depth v2's labelled layout", split,
        'in-painted' if inpainted else 'raw',
        [Entry(n, f'{n:05d}', scenes[n], sequences[n], FOCAL if rendered or is_nyu else 0.0)
         for n in parts[part == 'test']],
        lambda entry: plane('images', entry.index),
        lambda entry: plane(key, entry.index).astype(np.float32, copy=False),
        RENDERED if rendered else NYU if is_nyu else '',
        part == 'test' and not inpainted and is_nyu, training=training)


# Folders -----------------------------------------------------------------------------------------


def open_official(path: Path, list_file: Path | None = None, part: str = 'test') -> Dataset:
    """Open `official_splits/test`: JPEG images, raw depth in millimetres; by list or by name."""
    names = read_list(list_file, path) if list_file else [
        (f'{image.parent.name}/{image.name}', f'{image.parent.name}/{depth.name}', 0.0)
        for image, depth in _paired(path, official_images(path), lambda name: (
            f'sync_depth_{Path(name).stem[4:]}.png'))]
    rendered = any(RENDERED in f.read_text(encoding='utf-8', errors='replace') for f in (
        path / MARK_FILE, path.parent / MARK_FILE) if f.is_file())
    entries = [Entry(_number(rgb, i), rgb, Path(rgb).parent.name, focal=focal,
                     files=(path / rgb, path / depth)) for i, (rgb, depth, focal)
               in enumerate(names)]
    is_nyu = not rendered and _is_nyu(entries, part)
    forms = ', '.join(sorted({
        Path(rgb).suffix[1:].upper().replace('JPG', 'JPEG') for rgb, _, _ in names}))
    in_layout = all(re.fullmatch(r'rgb_\d+', Path(rgb).stem) for rgb, _, _ in names)
    dataset = of_files(
        path, "folder in the layout of NYU Depth v2's official_splits "
        f'({forms})' if in_layout else f'folder ({forms})',
        _in_their_order(entries) if rendered or is_nyu else _by_folder(entries),
        depth='raw' if rendered or is_nyu else 'unspecified',
        split=(f'{part} folder' if rendered or is_nyu else 'all images') + (
            f' by {list_file.name}' if list_file else ''))
    dataset.official = is_nyu and part == 'test' and len(entries) == len(scene_classes())
    dataset.origin = RENDERED if rendered else NYU if is_nyu else ''
    if any('dense' in Path(depth).parts for _, depth, _ in names):
        dataset.is_in_painted()
    beside = path.parent / 'train'
    if part == 'test' and official_images(beside):
        dataset.training = lambda: open_official(beside, part='train')
    return dataset


def open_kaggle(path: Path) -> Dataset:
    """Open `nyu2_test`: PNG images NNNNN_colors.png and depth in millimetres."""
    scenes = scene_classes()
    pairs = _paired(path, sorted(path.glob(KAGGLE)),
                    lambda name: name.replace('_colors', '_depth'))
    numbers = [_number(image.name[:5], i) for i, (image, _) in enumerate(pairs)]
    entries = [Entry(number, pair[0].name, scenes.get(number, ''), files=pair)
               for number, pair in zip(numbers, pairs, strict=True)]
    is_nyu = _is_nyu(entries)
    dataset = of_files(
        path, "Kaggle's nyu2_test", _in_their_order(entries) if is_nyu else _by_folder(entries),
        split='test folder', depth='in-painted')
    dataset.origin = NYU if is_nyu else ''
    dataset.warnings = (f"Kaggle's nyu2_test: {IN_PAINTED}",)
    return dataset


def _is_nyu(entries: list[Entry], part: str = 'test') -> bool:
    """Whether numbers and classes are the data set's: of all its images, or of some from the test.

    A few of somebody else's pictures may have its numbers and classes by chance.
    """
    numbers = {entry.index: entry.scene for entry in entries}
    if part == 'train':
        return sorted(numbers) == official_split()[0]
    return len(numbers) == len(entries) >= LEAST and numbers.items() <= scene_classes().items()


def _in_their_order(entries: list[Entry]) -> list[Entry]:
    """Take neighbouring numbers of one class for one scene: no name says which it is.

    The data set's images are in the order of its scenes. Two scenes that follow each other may
    count as one: intervals are rather too wide than too narrow.
    """
    found: dict[tuple[str, int], str] = {}
    for scene, index in sorted({(entry.scene, entry.index) for entry in entries}):
        found[scene, index] = found.get((scene, index - 1), f'{scene} from {index}')
    return [replace(entry, sequence=found[entry.scene, entry.index], focal=entry.focal or FOCAL)
            for entry in entries]


def _by_folder(entries: list[Entry]) -> list[Entry]:
    """Take the images of a folder for one scene, and its class; those in none are of unknown."""
    folders = [Path(entry.name).parent.as_posix() for entry in entries]
    return [replace(entry, scene=scene, sequence=scene) for entry, scene in zip(
        entries, ('' if folder == '.' else folder for folder in folders), strict=True)]


def official_images(folder: Path) -> list[Path]:
    """Pictures rgb_N of any format in a folder's folders of scenes, sorted."""
    return sorted(image for image in folder.glob('*/rgb_*')
                  if image.suffix.lower() in SUFFIXES and re.fullmatch(r'rgb_\d+', image.stem))


def _paired(
    folder: Path, images: list[Path], name_of: Callable[[str], str],
) -> list[tuple[Path, Path]]:
    """Images and the depth beside each, which must be there, and of no other image."""
    pairs = [(image, image.with_name(name_of(image.name))) for image in images]
    bare = [str(image.relative_to(folder)) for image, depth in pairs if not depth.is_file()]
    if bare:
        raise DatasetError(f'{folder}: {len(bare)} images are without ground truth (as '
                           f'{name_of(Path(bare[0]).name)}); remove them or extract again:'
                           f'{listing(bare)}')
    counts = Counter(depth for _, depth in pairs)
    if twice := [str(image.relative_to(folder)) for image, depth in pairs if counts[depth] > 1]:
        raise DatasetError(f'{folder}: several pictures are of one depth map; remove all but one '
                           f'of them:{listing(twice)}')
    return pairs


def _number(name: str, fallback: int) -> int:
    found = re.search(r'(\d+)\D*$', Path(name).stem)
    return int(found[1]) if found else fallback


# Extraction --------------------------------------------------------------------------------------


def extract(mat: Path, folder: Path) -> Path:
    """Write `official_splits/{train,test}/SCENE/` from the .mat, as the official script does.

    JPEG images (OpenCV's default quality) with a black frame; depth as 16-bit PNG in millimetres,
    truncated, 0 where missing: raw beside the image, in-painted in `dense/`. Beside the folder is
    the list of the test pairs. Returns the folder of the test split.

    Raises:
        DatasetError: the .mat is wrong.
        ConfigError: a file is there already, of other content.
        ResultsError: a file cannot be written.

    """
    if not mat.is_file():
        raise DatasetError(f'{mat}: does not exist.')
    raw = open_mat(mat)
    training = raw.training()
    parts = {'test': raw, **({} if training is None else {'train': training})}
    dense = open_mat(mat, inpainted=True).truth
    raw.check_unit()
    root, lines = folder / 'official_splits', []
    every = [(part, dataset, entry) for part, dataset in parts.items()
             for entry in dataset.entries]
    try:
        for part, dataset, entry in progress(every, 'extraction', len(every)):
            names = f'rgb_{entry.index:05d}.jpg', f'sync_depth_{entry.index:05d}.png'
            place, rgb = root / part / entry.scene, dataset.rgb(entry)
            framed = np.zeros_like(rgb)
            framed[KEPT] = rgb[KEPT]
            for name, image in (
                    (names[0], framed[:, :, ::-1]),
                    (names[1], _millimetres(dataset.truth(entry), mat, entry)),
                    (f'dense/sync_depth_dense_{entry.index:05d}.png',
                     _millimetres(dense(entry), mat, entry))):
                code = cv2.imencode(Path(name).suffix, np.ascontiguousarray(image))[1]
                _write(place / name, code.tobytes())
            if part == 'test':
                lines.append(' '.join(f'{entry.scene}/{name}' for name in names))
        _write(folder / LIST, '\n'.join([*sorted(lines), '']).encode())
        if raw.origin == RENDERED:
            _write(root / MARK_FILE, f'depthclip_ros, {RENDERED}\n'.encode())
    except OSError as error:
        raise ResultsError(f'{folder}: cannot be written ({error.strerror or error}). Free space '
                           'or choose another folder.') from error
    return root / 'test'


def _millimetres(metres: Metres, mat: Path, entry: Entry) -> NDArray[np.uint16]:
    """Truncated as the official script does; 0 where nothing was measured.

    Raises:
        DatasetError: there is depth beyond what 16 bits hold.

    """
    values = np.where(metres > 0, metres, np.float32(0)) * 1000
    if values.max() >= 1 << 16:
        raise DatasetError(f'{mat}: the depth of image {entry.index} goes up to '
                           f'{metres[metres > 0].max():.4g} m, and 16 bits hold 65.5 m in '
                           'millimetres. Set what was not measured to 0.')
    return values.astype(np.uint16)


def _write(path: Path, content: bytes) -> None:
    """Write a new file, or leave one that is so already: an interrupted extraction goes on."""
    if path.is_file() and path.read_bytes() == content:
        return
    check_new((path,), 'another FOLDER')
    with atomic(path) as file:
        file.write(content)
