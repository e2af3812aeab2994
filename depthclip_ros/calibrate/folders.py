# SPDX-License-Identifier: Apache-2.0
"""Folders of images and depth, and data sets of `offline_eval`, as recordings."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..core.calibration import image_digest
from ..core.camera import CameraModel
from ..core.errors import CameraInfoError, DepthClipError, ImageError, quoted
from ..core.files import open_regular, user_path
from ..sources.bag import is_bag
from ..sources.camera_info import CameraCalibration
from ..sources.pictures import SUFFIXES, read_picture
from .bags import of_bag
from .recordings import (
    AS_IT_IS,
    MILLIMETRES,
    Frame,
    LeftOut,
    Moment,
    Options,
    Recording,
    RecordingError,
    in_metres,
    moments_in_time,
    nearest_pairs,
    resample,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

COLOR_FOLDERS = ('rgb', 'color', 'image', 'images')
DEPTH_FOLDER = 'depth'
CAMERA_FILE = 'camera.yaml'
_DEPTH_SUFFIXES = ('.png', '.npy')
_CLOCK = 1e6  # names that are numbers above this are seconds since 1970, not counts


def open_recording(source: str | Path, options: Options = AS_IT_IS) -> Recording:
    """Open a bag, a folder of images and depth, or a data set's training split.

    Args:
        source: its path.
        options: how to read it.

    Raises:
        DepthClipError: there is none, or it holds no images with depth.

    """
    try:
        path = user_path(source)
        path.stat()
    except OSError as error:
        raise RecordingError(f'{quoted(str(source), 200)}: there is no recording: '
                             f'{error.strerror}.') from error
    if is_bag(path):
        return of_bag(path, options)
    if any((path / name).is_dir() for name in COLOR_FOLDERS):
        return of_folder(path, options)
    return _training_split(path, options)


def of_folder(path: Path, options: Options = AS_IT_IS) -> Recording:
    """`rgb/` and `depth/` with files of the same names, and `camera.yaml`.

    Depth is PNG of 16 bits in millimetres, or .npy in metres. Folders below `rgb/` are sequences.
    Names that are times in seconds, as in TUM's data, are paired by time. Files are read when
    their turn comes.

    Raises:
        DepthClipError: no pairs, or a wrong camera.yaml.

    """
    color = next((path / name for name in COLOR_FOLDERS if (path / name).is_dir()), None)
    if color is None or not (path / DEPTH_FOLDER).is_dir():
        raise RecordingError(
            f'{path}: expected a folder {"/, ".join(COLOR_FOLDERS)}/ with images and '
            f'{DEPTH_FOLDER}/ with their depth (PNG of 16 bits in millimetres, or .npy in '
            'metres, of the same names).')
    camera = options.camera
    if camera is None and (path / CAMERA_FILE).exists():
        camera = CameraCalibration.from_yaml(path / CAMERA_FILE).model(
            rectified=options.rectified)
    images, depths = (_files(folder, suffixes) for folder, suffixes in (
        (color, SUFFIXES), (path / DEPTH_FOLDER, _DEPTH_SUFFIXES)))
    keys = [key for key in images if key in depths]
    beside = {key: key for key in keys}
    timed = not any(math.isnan(_seconds(name)) for name in (*images, *depths))
    if timed:
        first, second = list(images), list(depths)
        pairs = nearest_pairs([_seconds(name) for name in first],
                              [_seconds(name) for name in second], options.tolerance)
        keys, beside = [first[i] for i, _ in pairs], {first[i]: second[j] for i, j in pairs}
    if not keys:
        raise RecordingError(
            f'{path}: none of {len(images)} images in {color.name}/ has depth of the same '
            f'name (or time) among {len(depths)} files in {DEPTH_FOLDER}/ (.png, .npy); '
            'rename one of them.')
    left_out = LeftOut(+Counter({'images without depth': len(images) - len(keys),
                         'depth without an image': len(depths) - len(keys)}))
    folders: dict[str, int] = {}
    moments = moments_in_time([_seconds(key) for key in keys], keys) if timed else [
        Moment(float(number), folders.setdefault(key.rpartition('/')[0], len(folders)),
               images[key].relative_to(color).with_suffix('').as_posix())
        for number, key in enumerate(keys)]

    def read(positions: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        for position in sorted(set(positions)):
            image, measured = images[keys[position]], depths[beside[keys[position]]]
            try:
                rgb = np.ascontiguousarray(read_picture(image)[..., ::-1])
                depth = in_metres(read_depth(measured), options.unit,
                                  integer=measured.suffix.lower() == '.png')
                if camera is not None:
                    camera.check_size(rgb.shape[1], rgb.shape[0])
            except (ImageError, CameraInfoError) as error:
                left_out.add(position, error)
                continue
            yield position, Frame(
                rgb, resample(depth, *rgb.shape[:2]), camera, moments[position])

    return Recording(str(path), f'{color.name}/ with {DEPTH_FOLDER}/', moments, read, left_out,
                     timed)


def _files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Files by their names below a folder without the ending; times and numbers ascend."""
    try:
        files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in suffixes)
    except OSError as error:
        raise RecordingError(f'{folder}: {error.strerror}.') from error
    found = {}
    for path in files:
        name = path.relative_to(folder).with_suffix('').as_posix()
        if math.isnan(_seconds(name)):
            name = re.sub(r'\d+', lambda digits: digits[0].zfill(20), name)
        found[name] = path
    return dict(sorted(found.items(), key=lambda item: (
        float(np.nan_to_num(_seconds(item[0]))), item[0])))


def _seconds(name: str) -> float:
    """The time that a name is; NaN if it is none."""
    try:
        seconds = float(name)
    except ValueError:
        return math.nan
    return seconds if _CLOCK < seconds < math.inf else math.nan


def read_depth(path: Path) -> NDArray[np.float32]:
    """Read one depth map.

    Returns:
        (H, W) float32 metres, NaN where there is none.

    Raises:
        ImageError: it is neither PNG of 16 bits (millimetres) nor a .npy of numbers (metres).

    """
    try:
        with open_regular(path) as file:
            data = file.read()
        values = np.load(io.BytesIO(data), allow_pickle=False) if path.suffix.lower() == '.npy' \
            else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, ValueError, EOFError, SyntaxError, cv2.error) as error:
        raise ImageError('not depth', f'{path}: cannot be read as depth: '
                         f'{quoted(str(error))}.') from error
    kind, wanted = ('f', 'floating point, metres') if path.suffix.lower() == '.npy' else \
        ('u', 'PNG of 16 bits, millimetres')
    if not isinstance(values, np.ndarray) or values.ndim != 2 or not values.size \
            or values.dtype.kind != kind or values.dtype == np.uint8:
        raise ImageError('not depth', f'{path}: holds {getattr(values, "dtype", "no")} '
                         f'{getattr(values, "shape", "image")}; expected one channel of '
                         f'{wanted}.')
    metres = values.astype(np.float32)
    if kind == 'u':
        metres /= np.float32(MILLIMETRES)
    metres[~(np.isfinite(metres) & (metres > 0))] = np.nan
    return metres


def _training_split(path: Path, options: Options) -> Recording:
    """Of a data set that `offline_eval` knows; that package may be missing."""
    none = (f'{path}: no recording. Expected a rosbag2 bag (a folder with metadata.yaml, .mcap, '
            f'.db3), a folder with {COLOR_FOLDERS[0]}/ and {DEPTH_FOLDER}/')
    try:
        from offline_eval.datasets import Where, open_dataset
        from offline_eval.errors import EvaluationError
        from offline_eval.protocol import PROTOCOLS
    except ImportError as error:
        raise RecordingError(f'{none}; data sets need the package offline_eval, which is not '
                             'installed.') from error
    try:
        training = open_dataset(Where(path)).training()
    except EvaluationError as error:
        raise RecordingError(f'{none}, or a data set: {error}') from error
    if training is None:
        raise RecordingError(f'{path}: this data set has no training split here, and the test '
                             'split must not be calibrated on.')
    return of_dataset(training, options, PROTOCOLS[options.protocol] if options.protocol else None)


def of_dataset(dataset: Any, options: Options = AS_IT_IS, crop: Any = None) -> Recording:
    """Give the training split of a data set, one sequence a scene.

    Args:
        dataset: an `offline_eval.datasets.Dataset`.
        options: a camera, instead of the data set's own.
        crop: an `offline_eval.protocol.Protocol`: what of the images is seen; None for all.

    """
    scenes = {entry.scene: number for number, entry in enumerate(dataset.entries)}
    moments = [Moment(float(number), scenes[entry.scene], entry.name)
               for number, entry in enumerate(dataset.entries)]
    described = f'{dataset.format}, {dataset.split}'
    if crop is not None:
        described += f', cropped as by protocol {crop.name}'
    left_out = LeftOut()

    def read(positions: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        for position in sorted(set(positions)):
            try:
                pair = dataset.read(position)
                rgb, depth = pair.rgb, np.where(pair.depth > 0, pair.depth, np.float32(np.nan))
                if crop is not None:
                    rgb, depth = crop.prepare(pair)
                camera, focal = options.camera, dataset.entries[position].focal
                if camera is not None:
                    camera.check_size(rgb.shape[1], rgb.shape[0])
                elif focal:
                    camera = CameraModel.pinhole(rgb.shape[1], rgb.shape[0], focal)
            except (DepthClipError, OSError, ValueError) as error:
                left_out.add(position, error)
                continue
            yield position, Frame(
                rgb, depth, camera, moments[position], image_digest(pair.rgb))

    return Recording(str(dataset.path), described, moments, read, left_out, timed=False,
                     split=described)
