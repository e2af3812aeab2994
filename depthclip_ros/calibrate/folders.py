# SPDX-License-Identifier: Apache-2.0
"""Folders of images and depth, and data sets of `offline_eval`, as recordings."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from ..core.calibration import image_digest
from ..core.camera import CameraModel
from ..core.errors import CameraInfoError, ImageError, quoted
from ..core.files import open_regular
from ..node.config import NodeConfig
from ..sources.camera_info import CameraCalibration
from ..sources.pictures import SUFFIXES, read_picture
from .recordings import (
    MILLIMETRES,
    Moment,
    RecordedFrame,
    Recording,
    RecordingError,
    camera_of,
    in_metres,
    nearest_pairs,
    resample,
    sequences,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

COLOR_FOLDERS = ('rgb', 'color', 'image', 'images')
DEPTH_FOLDER = 'depth'
CAMERA_FILE = 'camera.yaml'
_DEPTH_SUFFIXES = ('.png', '.npy')
_LARGEST_FILE = 1 << 28  # bytes of one depth map
_CLOCK = 1e6  # names that are numbers above this are seconds since 1970, not counts


class Pairs(Protocol):
    """What is used of a data set of `offline_eval`."""

    path: Path
    format: str
    split: str

    @property
    def entries(self) -> Sequence[Entry]:
        """One a pair."""

    def read(self, position: int) -> Pair:
        """Read a pair."""

    def close(self) -> None:
        """Let go of files."""


class Entry(Protocol):
    """Of a data set."""

    @property
    def name(self) -> str:
        """Of the pair."""

    @property
    def scene(self) -> str:
        """Where it was taken; '' if unknown."""


class Pair(Protocol):
    """Of a data set: depth in metres, 0 if missing."""

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """(H, W, 3)."""

    @property
    def depth(self) -> NDArray[np.float32]:
        """(H, W) metres."""


class Crop(Protocol):
    """A protocol of `offline_eval`: what of an image the network sees, and what is scored."""

    @property
    def name(self) -> str:
        """For the command line."""

    def prepare(self, pair: Any) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """(H, W, 3) of an image, and (H, W) metres, NaN where it is not scored."""


class FolderRecording(Recording):
    """`rgb/` and `depth/` with files of the same names, and `camera.yaml`.

    Depth is PNG of 16 bits in millimetres, or .npy in metres. Folders below `rgb/` are sequences.
    Names that are times in seconds, as in TUM's data, are paired by time.
    """

    def __init__(
        self, path: Path, camera: CameraModel | None = None, tolerance: float = 0.05,
        *, rectified: bool = False, unit: float = 0.0,
    ) -> None:
        """Find the pairs; files are read when their turn comes.

        Args:
            path: the folder.
            camera: instead of `camera.yaml`.
            tolerance: largest difference of names that are times [s].
            rectified: the images are rectified.
            unit: what a stored unit of depth is, in metres; 0: millimetres in PNG, metres in .npy.

        Raises:
            DepthClipError: no pairs, or a wrong camera.yaml.

        """
        super().__init__()
        self.source, self._unit = str(path), unit
        color = next((path / name for name in COLOR_FOLDERS if (path / name).is_dir()), None)
        if color is None or not (path / DEPTH_FOLDER).is_dir():
            raise RecordingError(
                f'{path}: expected a folder {"/, ".join(COLOR_FOLDERS)}/ with images and '
                f'{DEPTH_FOLDER}/ with their depth (PNG of 16 bits in millimetres, or .npy in '
                'metres, of the same names).')
        self._camera = camera or _camera_file(path / CAMERA_FILE, rectified=rectified)
        depth = path / DEPTH_FOLDER
        images = {_key(p, color): p for p in _files(color, SUFFIXES)}
        depths = {_key(p, depth): p for p in _files(depth, _DEPTH_SUFFIXES)}
        pairs = [(key, images[key], depths[key]) for key in images if key in depths]
        self.timed = _is_time(images) and _is_time(depths)
        if self.timed:
            pairs = _by_time(images, depths, tolerance)
        if not pairs:
            raise RecordingError(
                f'{path}: none of {len(images)} images in {color.name}/ has depth of the same '
                f'name (or time) among {len(depths)} files in {DEPTH_FOLDER}/ (.png, .npy); '
                'rename one of them.')
        for count, what in ((len(images), 'images without depth'),
                            (len(depths), 'depth without an image')):
            if count > len(pairs):
                self.left_out[what] += count - len(pairs)
        pairs.sort(key=lambda pair: (_time(pair[0]), pair[0]) if self.timed else (0.0, pair[0]))
        self._files = [(image, measured) for _, image, measured in pairs]
        self.moments = _moments([key for key, _, _ in pairs], timed=self.timed)
        self.described = f'{color.name}/ with {DEPTH_FOLDER}/'

    def read(self, positions: Iterable[int]) -> Iterator[tuple[int, RecordedFrame]]:
        """Decode both files; see `Recording.read`."""
        for position in sorted(set(positions)):
            image, measured = self._files[position]
            try:
                rgb = np.ascontiguousarray(read_picture(image)[..., ::-1])
                depth = in_metres(read_depth(measured), self._unit,
                                  integer=measured.suffix.lower() == '.png')
                if self._camera is not None:
                    self._camera.check_size(rgb.shape[1], rgb.shape[0])
            except (ImageError, CameraInfoError) as error:
                self.left_out[str(error)] += 1
                continue
            yield position, RecordedFrame(
                rgb, resample(depth, *rgb.shape[:2]), self._camera, self.moments[position])


class DatasetRecording(Recording):
    """The training split of a data set, one sequence a scene."""

    timed = False

    def __init__(
        self, dataset: Pairs, camera: CameraModel | None = None, crop: Crop | None = None,
    ) -> None:
        """Take over the pairs; nothing is read yet.

        Args:
            dataset: the training split.
            camera: of what is seen; None for the data set's own.
            crop: what of the images is seen; None for all.

        """
        super().__init__()
        self._dataset, self._camera, self._crop = dataset, camera, crop
        self.source = str(dataset.path)
        self.described = f'{dataset.format}, {dataset.split}'
        if crop is not None:
            self.described += f', cropped as by protocol {crop.name}'
        self.split = self.described
        scenes = {entry.scene: number for number, entry in enumerate(dataset.entries)}
        self.moments = [
            Moment(float(number), scenes[entry.scene], entry.name)
            for number, entry in enumerate(dataset.entries)]

    def read(self, positions: Iterable[int]) -> Iterator[tuple[int, RecordedFrame]]:
        """Read pairs; see `Recording.read`."""
        for position in sorted(set(positions)):
            try:
                pair = self._dataset.read(position)
                rgb = pair.rgb
                depth = np.where(pair.depth > 0, pair.depth, np.float32(np.nan))
                if self._crop is not None:
                    rgb, depth = self._crop.prepare(pair)
                camera = self._camera_of(position, rgb)
            except Exception as error:  # noqa: BLE001 - whatever a damaged file raises
                self.left_out[str(error)] += 1
                continue
            yield position, RecordedFrame(rgb, depth, camera, self.moments[position],
                                          image_digest(pair.rgb))

    def _camera_of(self, position: int, rgb: NDArray[np.uint8]) -> CameraModel | None:
        height, width = rgb.shape[:2]
        if self._camera is not None:
            self._camera.check_size(width, height)
            return self._camera
        focal = float(getattr(self._dataset.entries[position], 'focal', 0.0))  # pixels
        return CameraModel.pinhole(width, height, focal) if focal else None

    def close(self) -> None:
        """Close the data set."""
        self._dataset.close()


def read_depth(path: Path) -> NDArray[np.float32]:
    """Read one depth map.

    Returns:
        (H, W) float32 metres, NaN where there is none.

    Raises:
        ImageError: it is neither PNG of 16 bits (millimetres) nor a .npy of numbers (metres).

    """
    try:
        with open_regular(path) as file:
            data = file.read(_LARGEST_FILE)
    except OSError as error:
        raise ImageError('unreadable file', f'{path}: {error.strerror}.') from error
    if path.suffix.lower() == '.npy':
        try:
            values = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError, MemoryError) as error:
            raise ImageError('not depth', f'{path}: no array of NumPy: '
                             f'{quoted(str(error))}.') from error
        if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != 'f':
            raise ImageError('not depth', f'{path}: holds {getattr(values, "dtype", "no")} '
                             f'{getattr(values, "shape", "array")}; expected (height, width) '
                             'floating point, metres.')
        metres = values.astype(np.float32)
    else:
        try:
            stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) \
                if data else None
        except cv2.error:
            stored = None
        if stored is None or stored.dtype != np.uint16 or stored.ndim != 2:
            seen = 'cannot be decoded' if stored is None else \
                f'holds {stored.dtype} {stored.shape}'
            raise ImageError('not depth', f'{path}: {seen}; expected PNG of 16 bits and one '
                             'channel, in millimetres.')
        metres = stored.astype(np.float32) / np.float32(MILLIMETRES)
    if not metres.size or metres.size > NodeConfig.max_pixels:
        raise ImageError('not depth', f'{path}: {metres.shape} is no size of a depth map.')
    metres[~(np.isfinite(metres) & (metres > 0))] = np.nan
    return metres


def _camera_file(path: Path, *, rectified: bool) -> CameraModel | None:
    return camera_of(CameraCalibration.from_yaml(path), rectified=rectified) \
        if path.exists() else None


def _files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    try:
        return sorted(p for p in folder.rglob('*') if p.suffix.lower() in suffixes)
    except OSError as error:
        raise RecordingError(f'{folder}: {error.strerror}.') from error


def _key(path: Path, folder: Path) -> str:
    """Name below its folder without the ending, numbers padded so that they sort."""
    name = path.relative_to(folder).with_suffix('').as_posix()
    return name if _is_time([name]) else re.sub(r'\d+', lambda digits: digits[0].zfill(20), name)


def _time(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return float('nan')


def _is_time(names: Iterable[str]) -> bool:
    return all(_CLOCK < _time(name) < np.inf for name in names)


def _by_time(
    images: dict[str, Path], depths: dict[str, Path], tolerance: float,
) -> list[tuple[str, Path, Path]]:
    """Pairs of the nearest in time, every file once."""
    colors, measured = (sorted(files, key=_time) for files in (images, depths))
    pairs = nearest_pairs(list(map(_time, colors)), list(map(_time, measured)), tolerance)
    return [(colors[i], images[colors[i]], depths[measured[j]]) for i, j in pairs]


def _moments(keys: Sequence[str], *, timed: bool) -> list[Moment]:
    if timed:
        seconds = [_time(key) - _time(keys[0]) for key in keys]
        return [Moment(*of_one) for of_one in zip(seconds, sequences(seconds), keys, strict=True)]
    folders: dict[str, int] = {}
    return [
        Moment(float(number), folders.setdefault(key.rpartition('/')[0], len(folders)),
               re.sub(r'0+(\d+)', r'\1', key))
        for number, key in enumerate(keys)]
