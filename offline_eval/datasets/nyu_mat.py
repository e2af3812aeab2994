# SPDX-License-Identifier: Apache-2.0
"""`nyu_depth_v2_labeled.mat`, read directly: MATLAB v7.3, that is HDF5 with reversed axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthclip_ros.sim.nyu import HEADER_SIZE, MARK

from ..errors import DatasetError
from .base import NYU, NYU_FOCAL, RENDERED, Dataset, Entry, Pair
from .splits import LABELED, official_split, read_splits, scene_classes

_SHAPES = {'images': (3, 640, 480), 'rawDepths': (640, 480), 'depths': (640, 480)}
_DAMAGED = ('the file is truncated or damaged. Compare its size with the original '
            '(2,972,037,809 bytes) and download it again.')


class NyuMat(Dataset):
    """One split of the labelled .mat; one image in memory at a time."""

    format = ".mat in NYU Depth v2's labelled layout"
    unit = 'metres'

    def __init__(
        self, path: Path, *, part: str = 'test', splits: Path | None = None,
        inpainted: bool = False,
    ) -> None:
        """Open the file, check it, and find the split.

        Args:
            path: the .mat.
            part: 'test', 'train', or 'all'.
            splits: a `splits.mat`; else the built-in official split if the file has as many
                images as the original, else the `splits.mat` beside.
            inpainted: take the in-painted depth instead of the sensor's.

        Raises:
            DatasetError: the file or the split is wrong.

        """
        self.path, self.part, self.splits, self.inpainted = path, part, splits, inpainted
        self.depth = 'in-painted' if inpainted else 'raw'
        self._key = 'depths' if inpainted else 'rawDepths'
        self._file: Any = None
        count = self._check()
        numbers = self._split(count)
        scenes = self._texts('sceneTypes', count)
        sequences = self._texts('scenes', count) if 'scenes' in self._open() else [''] * count
        self.entries = [Entry(n, f'{n:05d}', scenes[n], sequences[n], NYU_FOCAL) for n in numbers]
        if not self.entries:
            raise DatasetError(f'{path}: the {part} split is empty; give another splits.mat.')
        self.origin = self._origin(count, scenes)
        self.official = (part == 'test' and not inpainted and self.origin == NYU
                         and numbers == official_split()[1])
        self.close()

    def _check(self) -> int:
        """Number of images, once keys and shapes are found right."""
        file = self._open()
        missing = [key for key in ('images', self._key, 'sceneTypes') if key not in file]
        if missing:
            raise DatasetError(f'{self.path}: has no {", ".join(missing)}; it holds '
                               f'{", ".join(sorted(file)[:20]) or "nothing"}. Expected '
                               'nyu_depth_v2_labeled.mat.')
        count = int(file['images'].shape[0]) if file['images'].ndim else 0
        for key in ('images', self._key):
            shape, wanted = file[key].shape, (count, *_SHAPES[key])
            if shape != wanted:
                raise DatasetError(f'{self.path}: {key} has shape {shape}, expected {wanted} '
                                   '(reversed axes, as MATLAB v7.3 stores them).')
        if file['images'].dtype != np.uint8:
            raise DatasetError(f"{self.path}: images are {file['images'].dtype}, expected uint8.")
        return count

    def _origin(self, count: int, scenes: list[str]) -> str:
        """Whose images these are: a rendered file says so in MATLAB's header."""
        with self.path.open('rb') as file:
            if MARK.encode() in file.read(HEADER_SIZE):
                return RENDERED
        official = scene_classes().items()
        return NYU if count == LABELED and all(scenes[n] == c for n, c in official) else ''

    def _split(self, count: int) -> list[int]:
        beside = self.path.with_name('splits.mat')
        if self.part == 'all':
            self.split = 'all images'
            return list(range(count))
        if self.splits is None and count == LABELED:
            train, test = official_split()
            self.split = f'official {self.part} split'
        elif self.splits is not None or beside.is_file():
            file = self.splits or beside
            train, test = read_splits(file, count)
            self.split = f'{self.part} split of {file.name}'
        else:
            raise DatasetError(f'{self.path}: holds {count} images, not the original {LABELED}, '
                               'so the built-in split does not fit; give --splits splits.mat.')
        return test if self.part == 'test' else train

    def read(self, position: int) -> Pair:
        """Read one image and its depth."""
        return Pair(self._plane('images', position), self.read_truth(position))

    def read_truth(self, position: int) -> NDArray[np.float32]:
        """Read the depth only."""
        depth: NDArray[np.float32] = self._plane(self._key, position)
        return depth.astype(np.float32, copy=False)

    def both_depths(self, position: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Raw and in-painted depth (480, 640) in metres, for the extraction."""
        return self._plane('rawDepths', position), self._plane('depths', position)

    def _plane(self, key: str, position: int) -> Any:
        """One entry of a data set, axes in NumPy's order."""
        number = self.entries[position].index
        try:
            return np.ascontiguousarray(self._open()[key][number].T)
        except (OSError, RuntimeError, KeyError) as error:
            raise DatasetError(f'{self.path}: {key} of image {number} cannot be read ({error}); '
                               f'{_DAMAGED}') from error

    def training(self) -> Dataset | None:
        """The training split of the same file."""
        if self.part != 'test':
            return None
        try:
            return NyuMat(self.path, part='train', splits=self.splits, inpainted=self.inpainted)
        except DatasetError:
            return None  # An empty training split: there is no mean map then.

    def _texts(self, key: str, count: int) -> list[str]:
        """A MATLAB cell array of texts: references to arrays of characters."""
        file = self._open()
        try:
            references = np.asarray(file[key]).ravel()
            texts = [''.join(chr(c) for c in np.asarray(file[r]).ravel().tolist())
                     for r in references]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f'{self.path}: {key} cannot be read ({error}); {_DAMAGED}'
                               ) from error
        if len(texts) != count:
            raise DatasetError(f'{self.path}: {len(texts)} {key} for {count} images; the file is '
                               'not the original.')
        return texts

    def _open(self) -> Any:
        """The HDF5 file of this process."""
        if self._file is None:
            try:
                import h5py
            except ImportError as error:
                raise DatasetError(f'{self.path}: reading it needs h5py: pip install h5py.'
                                   ) from error
            if not h5py.is_hdf5(self.path):
                raise DatasetError(
                    f'{self.path}: not an HDF5 file ({self.path.stat().st_size:,} bytes), so not '
                    'the MATLAB v7.3 file nyu_depth_v2_labeled.mat. Was the download an error '
                    'page?')
            try:
                self._file = h5py.File(self.path, 'r')
            except OSError as error:
                raise DatasetError(f'{self.path}: cannot be opened as HDF5 ({error}); {_DAMAGED}'
                                   ) from error
        return self._file

    def close(self) -> None:
        """Close the HDF5 file; the next read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: every process opens its own."""
        return {**self.__dict__, '_file': None}
