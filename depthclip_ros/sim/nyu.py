# SPDX-License-Identifier: Apache-2.0
"""Rendered rooms in the file formats of NYU Depth v2, to try what reads those without having it.

`nyu_depth_v2_labeled.mat` is MATLAB v7.3, that is HDF5 with reversed axes and object references;
`splits.mat` is MATLAB v5. Needs h5py and scipy. (`offline_eval extract` makes the folder
`official_splits` of both.)
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from depthclip_ros.sim.camera import SimCamera, trajectory
from depthclip_ros.sim.render import Frame, RenderOptions, render
from depthclip_ros.sim.rooms import KINDS, Scene

#: The colour camera of the data set.
NYU_CAMERA = SimCamera(640, 480, 518.8579, 519.4696, 325.5824, 253.7362)
SENSOR_RANGE = 9.99  # metres
HEADER_SIZE = 512  # bytes before the HDF5 part, in which MATLAB introduces itself
#: By this the header says that it is not the data set.
MARK = 'depthclip_ros, rendered rooms'


@dataclass(frozen=True)
class Sample:
    """One entry of the data set."""

    frame: Frame
    scene: str  # e.g. bathroom_0003
    raw_depth: np.ndarray  # (480, 640) float32 metres, 0 where the sensor saw nothing


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    """Entries of all kinds in turn; two pictures of every room, as the data set has several."""
    samples = []
    for number in range(count):
        room = number // (2 * len(KINDS))
        kind = KINDS[number % len(KINDS)]
        scene = Scene.generate(kind, seed + room)
        frame = render(scene, NYU_CAMERA, trajectory(scene, seed).pose(1.5 * number),
                       RenderOptions(noise=0.01, seed=seed + number))
        samples.append(Sample(frame, f'{kind}_{room + 1:04d}',
                              punch_holes(frame.depth, seed + number)))
    return samples


def punch_holes(depth: np.ndarray, seed: int) -> np.ndarray:
    """Depth as a structured-light sensor gives it: 0 where it sees nothing.

    Missing are the shadows beside edges, what is out of range, specks, and an uneven border.
    """
    rng = np.random.default_rng([seed, 13])
    raw = depth.copy()
    # The projector stands to the right of the camera: the background left of an edge is in shadow.
    step = np.zeros(depth.shape, dtype=np.uint8)
    step[:, :-1] = depth[:, :-1] > depth[:, 1:] + 0.05 * depth[:, 1:]
    width = 8
    kernel = np.zeros((1, 2 * width + 1), np.uint8)
    kernel[0, width:] = 1
    raw[cv2.dilate(step, kernel) > 0] = 0
    raw[depth > SENSOR_RANGE] = 0
    raw[rng.random(depth.shape) < 0.002] = 0
    border = 6 + int(rng.integers(0, 6))
    raw[:, :border] = 0
    raw[:, -border:] = 0
    raw[:border] = 0
    raw[-border:] = 0
    return raw


def split(count: int) -> tuple[list[int], list[int]]:
    """Numbers (from 0) of the training and of the test entries: rooms are never in both."""
    test = [n for n in range(count) if (n // (2 * len(KINDS))) % 2 == 0]
    return sorted(set(range(count)) - set(test)), test


def write_labeled_mat(path: str | Path, samples: Sequence[Sample]) -> None:
    """Write `nyu_depth_v2_labeled.mat`.

    h5py sees images (N, 3, 640, 480) uint8, depths and rawDepths (N, 640, 480) float32, scenes and
    sceneTypes (1, N) references to uint16 characters, as in the original.
    """
    import h5py
    path = Path(path)
    with h5py.File(path, 'w', userblock_size=HEADER_SIZE) as file:
        references = file.create_group('#refs#')

        def dataset(name: str, value: np.ndarray, matlab: str) -> None:
            file.create_dataset(name, data=value).attrs['MATLAB_class'] = np.bytes_(matlab)

        def cell(name: str, texts: Sequence[str], *, row: bool = True) -> None:
            cells = np.empty(len(texts), dtype=h5py.ref_dtype)
            for i, text in enumerate(texts):
                cells[i] = _characters(references, f'{name}{i}', text)
            shaped = cells[None] if row else cells[:, None]
            data = file.create_dataset(name, data=shaped, dtype=h5py.ref_dtype)
            data.attrs['MATLAB_class'] = np.bytes_('cell')

        dataset('images', np.stack([s.frame.rgb.transpose(2, 1, 0) for s in samples]), 'uint8')
        dataset('depths', np.stack([s.frame.depth.T for s in samples]), 'single')
        dataset('rawDepths', np.stack([s.raw_depth.T for s in samples]), 'single')
        empty = np.zeros((len(samples), 640, 480))
        dataset('instances', empty.astype(np.uint8), 'uint8')
        dataset('labels', empty.astype(np.uint16), 'uint16')
        dataset('accelData', np.zeros((4, len(samples)), np.float32), 'single')
        cell('scenes', [s.scene for s in samples])
        cell('sceneTypes', [s.frame.kind for s in samples])
        cell('rawRgbFilenames', [f'{s.scene}/r-{i}.ppm' for i, s in enumerate(samples)])
        cell('rawDepthFilenames', [f'{s.scene}/d-{i}.pgm' for i, s in enumerate(samples)])
        cell('names', ['surface'])
    _write_header(path)


def _characters(group: Any, name: str, text: str) -> Any:
    data = group.create_dataset(name, data=np.array([[ord(c)] for c in text], np.uint16))
    data.attrs['MATLAB_class'] = np.bytes_('char')
    data.attrs['MATLAB_int_decode'] = np.int32(2)
    return data.ref


def _write_header(path: Path) -> None:
    text = f'MATLAB 7.3 MAT-file, Platform: {MARK} in the layout of NYUv2'
    header = text.encode().ljust(116) + bytes(8) + b'\x00\x02IM'
    with path.open('r+b') as file:
        file.write(header.ljust(HEADER_SIZE, b'\x00'))


def write_splits(path: str | Path, count: int) -> None:
    """Write `splits.mat`: trainNdxs and testNdxs, (n, 1) uint16, counted from 1."""
    from scipy.io import savemat
    train, test = split(count)
    savemat(path, {name: np.array(numbers, np.uint16)[:, None] + np.uint16(1)
                   for name, numbers in (('trainNdxs', train), ('testNdxs', test))})
