# SPDX-License-Identifier: Apache-2.0
"""NYU Depth v2's official split: 795 training and 654 test images of 1449, counted from 0."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from ..errors import DatasetError

LABELED = 1449
_FILE = Path(__file__).with_name('nyu_test.json')


@cache
def scene_classes() -> dict[int, str]:
    """Scene class of each test image, by its number."""
    numbers = json.loads(_FILE.read_text(encoding='utf-8'))
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
        train, test = (sorted(np.asarray(content[k]).ravel().astype(int) - 1)
                       for k in ('trainNdxs', 'testNdxs'))
    except OSError as error:
        raise DatasetError(f'{path}: cannot be read: {error}.') from error
    except (MatReadError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DatasetError(f'{path}: not a splits.mat with trainNdxs and testNdxs ({error}); the '
                           'file is damaged or another one.') from error
    wrong = [n + 1 for n in train + test if not 0 <= n < count]
    if wrong:
        raise DatasetError(f'{path}: names images {wrong[:10]}, but there are {count}; it belongs '
                           'to another file.')
    return [int(n) for n in train], [int(n) for n in test]
