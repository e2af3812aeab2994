# SPDX-License-Identifier: Apache-2.0
"""NYU Depth v2: the labelled .mat, the official folders, Kaggle's nyu2_test, the official split.

`nyu_depth_v2_labeled.mat` is MATLAB v7.3: HDF5 with reversed axes, which h5py reads.
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

from ...core.file_formats import kind_of
from ...core.files import atomic, check_new
from ...progress import progress
from ...sources.pictures import SUFFIXES
from ..errors import DatasetError, ResultsError, listing
from .base import IN_PAINTED, NYU, RENDERED, Dataset, Entry, Metres, dataset_of_files, read_list

LABELED = 1449
FOCAL = 518.8579  # pixels: fx of the colour camera, camera_params.m of the data set's toolbox
MAT, LIST = 'nyu_depth_v2_labeled.mat', 'nyudepthv2_test_files_with_gt_dense.txt'
HEADER_SIZE = 512  # bytes before the HDF5 part, in which MATLAB introduces itself
KAGGLE = '[!.]*_colors.png'
MIN_IMAGES = 10  # fewer images may match NYU's numbers and classes by chance
MARK_FILE = 'ORIGIN.txt'  # marks a folder of rendered rooms
# Rows and columns that the official extraction keeps; the rest becomes a black frame.
VALID_REGION = np.s_[7:474, 7:632]

# The official split: 795 training and 654 test images of 1449, counted from 0 -------------------


@cache
def scene_classes() -> dict[int, str]:
    """Load the scene class of each test image, by its number."""
    file = Path(__file__).with_name('nyu_test.json')
    numbers = json.loads(file.read_text(encoding='utf-8'))
    return {n: scene for scene, members in numbers.items() for n in members}


def official_split() -> tuple[list[int], list[int]]:
    """List the numbers of the training and of the test images."""
    test = scene_classes()
    return [n for n in range(LABELED) if n not in test], sorted(test)


def _read_splits(path: Path, count: int) -> tuple[list[int], list[int]]:
    """Read training and test numbers, counted from 0, of a `splits.mat` (MATLAB v5, from 1)."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError
    try:
        arrays = loadmat(path)
        train, test = (sorted((np.asarray(arrays[k]).ravel().astype(int) - 1).tolist())
                       for k in ('trainNdxs', 'testNdxs'))
    except (OSError, MatReadError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DatasetError(f'{path}: not a splits.mat with trainNdxs and testNdxs ({error}); the '
                           'file is damaged or another one.') from error
    invalid = [n + 1 for n in train + test if not 0 <= n < count]
    if invalid or not test:
        raise DatasetError(f'{path}: names {len(test)} test images, and of all {invalid[:10]} are '
                           f'not among the {count} there are; it belongs to another file.')
    return train, test


# The labelled .mat -------------------------------------------------------------------------------


@contextmanager
def _translate_hdf5_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:  # of the system, not the content
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

    The split is the official one; for a smaller file, it comes from the `splits.mat` beside it.

    Raises:
        DatasetError: the file or the split is damaged or of another format.

    """
    import h5py
    key = 'depths' if inpainted else 'rawDepths'
    with _translate_hdf5_errors(path):
        mat = h5py.File(path, 'r')
        if 'images' not in mat:
            raise ValueError(f'it holds {", ".join(mat)}, as other data sets do')
        count = len(mat['images'])
        for name, shape in (('images', (count, 3, 640, 480)), (key, (count, 640, 480))):
            if mat[name].shape != shape:
                raise ValueError(f'{name} has shape {mat[name].shape}, expected {shape}')
        if mat['images'].dtype != np.uint8:
            raise ValueError(f'images are {mat["images"].dtype}, expected uint8')
        scenes, sequences = (
            [''.join(map(chr, np.asarray(mat[r]).ravel().tolist()))  # arrays of characters
             for r in np.asarray(mat[name]).ravel()] if name in mat else [''] * count
            for name in ('sceneTypes', 'scenes'))
    splits_file = path.with_name('splits.mat')
    if count == LABELED:
        parts, split = official_split(), f'official {part} split'
    elif splits_file.is_file():
        parts, split = _read_splits(splits_file, count), f'{part} split of {splits_file.name}'
    else:
        raise DatasetError(f'{path}: holds {count} images, not the original {LABELED}, so the '
                           'built-in split does not fit; lay its splits.mat beside it.')
    with path.open('rb') as start:  # MATLAB's header marks a rendered file
        rendered = RENDERED.encode() in start.read(HEADER_SIZE)
    is_nyu = not rendered and count == LABELED and all(
        scenes[n] == scene for n, scene in scene_classes().items())

    def plane(name: str, number: int) -> Any:
        with _translate_hdf5_errors(path):
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
    """Open pairs in the layout of `official_splits/test`, or of a list; depth in millimetres."""
    names = read_list(list_file, path) if list_file else [
        (f'{image.parent.name}/{image.name}', f'{image.parent.name}/{depth.name}', 0.0)
        for image, depth in _pair_with_depth(path, official_images(path), lambda name: (
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
    dataset = dataset_of_files(
        path, "folder in the layout of NYU Depth v2's official_splits "
        f'({forms})' if in_layout else f'folder ({forms})',
        _group_by_number(entries) if rendered or is_nyu else _group_by_folder(entries),
        depth='raw' if rendered or is_nyu else 'unspecified',
        split=(f'{part} folder' if rendered or is_nyu else 'all images') + (
            f' by {list_file.name}' if list_file else ''))
    dataset.official = is_nyu and part == 'test' and len(entries) == len(scene_classes())
    dataset.origin = RENDERED if rendered else NYU if is_nyu else ''
    if any('dense' in Path(depth).parts for _, depth, _ in names):
        dataset.mark_in_painted()
    training_folder = path.parent / 'train'
    if part == 'test' and official_images(training_folder):
        dataset.training = lambda: open_official(training_folder, part='train')
    return dataset


def open_kaggle(path: Path) -> Dataset:
    """Open `nyu2_test`: images NNNNN_colors.png, depth NNNNN_depth.png in millimetres."""
    scenes = scene_classes()
    pairs = _pair_with_depth(path, sorted(path.glob(KAGGLE)),
                             lambda name: name.replace('_colors', '_depth'))
    numbers = [_number(image.name[:5], i) for i, (image, _) in enumerate(pairs)]
    entries = [Entry(number, pair[0].name, scenes.get(number, ''), files=pair)
               for number, pair in zip(numbers, pairs, strict=True)]
    is_nyu = _is_nyu(entries)
    dataset = dataset_of_files(
        path, "Kaggle's nyu2_test",
        _group_by_number(entries) if is_nyu else _group_by_folder(entries),
        split='test folder', depth='in-painted')
    dataset.origin = NYU if is_nyu else ''
    dataset.warnings = (f"Kaggle's nyu2_test: {IN_PAINTED}",)
    return dataset


def _is_nyu(entries: list[Entry], part: str = 'test') -> bool:
    """Check that numbers and classes are NYU's: the whole training split, or 10 test images.

    A few images of another data set may have the same numbers and classes by chance.
    """
    numbers = {entry.index: entry.scene for entry in entries}
    if part == 'train':
        return sorted(numbers) == official_split()[0]
    return (len(numbers) == len(entries) >= MIN_IMAGES
            and numbers.items() <= scene_classes().items())


def _group_by_number(entries: list[Entry]) -> list[Entry]:
    """Treat consecutive numbers of one class as one scene, since the names hold no scene.

    The data set's images are in the order of its scenes. Two consecutive scenes may merge, which
    makes intervals too wide rather than too narrow.
    """
    names: dict[tuple[str, int], str] = {}
    for scene, index in sorted({(entry.scene, entry.index) for entry in entries}):
        names[scene, index] = names.get((scene, index - 1), f'{scene} from {index}')
    return [replace(entry, sequence=names[entry.scene, entry.index], focal=entry.focal or FOCAL)
            for entry in entries]


def _group_by_folder(entries: list[Entry]) -> list[Entry]:
    """Treat each folder as one scene and class; images outside folders have neither."""
    folders = [Path(entry.name).parent.as_posix() for entry in entries]
    return [replace(entry, scene=scene, sequence=scene) for entry, scene in zip(
        entries, ('' if folder == '.' else folder for folder in folders), strict=True)]


def official_images(folder: Path) -> list[Path]:
    """List images SCENE/rgb_N of any format in a folder, sorted."""
    return sorted(image for image in folder.glob('*/rgb_*')
                  if image.suffix.lower() in SUFFIXES and re.fullmatch(r'rgb_\d+', image.stem))


def _pair_with_depth(
    folder: Path, images: list[Path], name_of: Callable[[str], str],
) -> list[tuple[Path, Path]]:
    """Pair each image with the depth map beside it.

    Raises:
        DatasetError: a depth map is missing, or belongs to several images.

    """
    pairs = [(image, image.with_name(name_of(image.name))) for image in images]
    unpaired = [str(image.relative_to(folder)) for image, depth in pairs if not depth.is_file()]
    if unpaired:
        raise DatasetError(f'{folder}: {len(unpaired)} images are without ground truth (as '
                           f'{name_of(Path(unpaired[0]).name)}); remove them or extract again:'
                           f'{listing(unpaired)}')
    counts = Counter(depth for _, depth in pairs)
    if shared := [str(image.relative_to(folder)) for image, depth in pairs if counts[depth] > 1]:
        raise DatasetError(f'{folder}: several pictures are of one depth map; remove all but one '
                           f'of them:{listing(shared)}')
    return pairs


def _number(name: str, fallback: int) -> int:
    match = re.search(r'(\d+)\D*$', Path(name).stem)
    return int(match[1]) if match else fallback


# Extraction --------------------------------------------------------------------------------------


def extract(mat: Path, folder: Path) -> Path:
    """Write `official_splits/{train,test}/SCENE/` from the .mat, as the official script does.

    JPEG images (OpenCV's default quality) with a black frame; depth as 16-bit PNG in millimetres,
    truncated, 0 where missing: raw beside the image, in-painted in `dense/`. The list of the test
    pairs goes beside the folder. Returns the folder of the test split.

    Raises:
        DatasetError: the .mat is damaged or another file.
        ConfigError: a file exists with other content.
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
    items = [(part, dataset, entry) for part, dataset in parts.items()
             for entry in dataset.entries]
    try:
        for part, dataset, entry in progress(items, 'extraction', len(items)):
            names = f'rgb_{entry.index:05d}.jpg', f'sync_depth_{entry.index:05d}.png'
            scene_folder, rgb = root / part / entry.scene, dataset.rgb(entry)
            framed = np.zeros_like(rgb)
            framed[VALID_REGION] = rgb[VALID_REGION]
            for name, image in (
                    (names[0], framed[:, :, ::-1]),
                    (names[1], _to_millimetres(dataset.truth(entry), mat, entry)),
                    (f'dense/sync_depth_dense_{entry.index:05d}.png',
                     _to_millimetres(dense(entry), mat, entry))):
                code = cv2.imencode(Path(name).suffix, np.ascontiguousarray(image))[1]
                _write_new(scene_folder / name, code.tobytes())
            if part == 'test':
                lines.append(' '.join(f'{entry.scene}/{name}' for name in names))
        _write_new(folder / LIST, '\n'.join([*sorted(lines), '']).encode())
        if raw.origin == RENDERED:
            _write_new(root / MARK_FILE, f'depthclip_ros, {RENDERED}\n'.encode())
    except OSError as error:
        raise ResultsError(f'{folder}: cannot be written ({error.strerror or error}). Free space '
                           'or choose another folder.') from error
    return root / 'test'


def _to_millimetres(metres: Metres, mat: Path, entry: Entry) -> NDArray[np.uint16]:
    """Convert metres to millimetres, truncated as in the official script; 0 where invalid.

    Raises:
        DatasetError: depth exceeds 16 bits.

    """
    values = np.where(metres > 0, metres, np.float32(0)) * 1000
    if values.max() >= 1 << 16:
        raise DatasetError(f'{mat}: the depth of image {entry.index} goes up to '
                           f'{metres[metres > 0].max():.4g} m, and 16 bits hold 65.5 m in '
                           'millimetres. Set what was not measured to 0.')
    return values.astype(np.uint16)


def _write_new(path: Path, content: bytes) -> None:
    """Write a new file; one of the same content stays, so that extraction can be resumed."""
    if path.is_file() and path.read_bytes() == content:
        return
    check_new((path,), 'another FOLDER')
    with atomic(path) as file:
        file.write(content)
