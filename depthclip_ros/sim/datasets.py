# SPDX-License-Identifier: Apache-2.0
"""Rendered rooms in the formats of real data sets, to test their readers without the data.

A bag: the drive of an RGB-D camera through a room as rosbag2 (mcap), written in pure Python
(`rosbags`) without ROS. NYU Depth v2: `nyu_depth_v2_labeled.mat` is MATLAB v7.3, which is HDF5
with reversed axes and object references (h5py); `splits.mat` is MATLAB v5 (scipy). (`offline_eval
extract` makes the folder `official_splits` of both.)
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .camera import SimCamera, trajectory
from .render import Frame, RenderOptions, render
from .rooms import KINDS, Scene

OPTICAL_FRAME = 'camera_color_optical_frame'
WORLD_FRAME = 'world'
START = 1_700_000_000  # seconds
NANOSECONDS = 1_000_000_000
#: The colour camera of the data set.
NYU_CAMERA = SimCamera(640, 480, 518.8579, 519.4696, 325.5824, 253.7362)
SENSOR_RANGE = 9.99  # metres
HEADER_SIZE = 512  # bytes of MATLAB's header before the HDF5 part
#: Text in the header that tells the file from the data set.
MARK = 'depthclip_ros, rendered rooms'


# A bag -----------------------------------------------------------------------------------------


def write_bag(path: str | Path, scene: Scene, camera: SimCamera | None = None, *,
              frames: int = 30, rate: float = 10.0, noise: float = 0.01, seed: int = 0) -> None:
    """Write a bag of `frames` frames at `rate` Hz to the new folder `path`.

    Topics: /camera/color/image_raw (rgb8), /camera/color/camera_info, /camera/depth/image_raw
    (32FC1 metres, exact), /camera/depth/camera_info, /tf (world to the optical frame).

    Raises:
        rosbags.rosbag2.WriterError: the folder exists already.

    """
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore
    store = get_typestore(Stores.ROS2_HUMBLE)
    camera = camera or SimCamera()
    path_of_camera = trajectory(scene, seed)
    messages = _Messages(store.types)
    # Humble, Jazzy and later all read version 8.
    with Writer(Path(path), version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connections: dict[str, Any] = {}
        for number in range(frames):
            elapsed = number / rate
            stamp = START * NANOSECONDS + round(elapsed * NANOSECONDS)
            frame = render(scene, camera, path_of_camera.pose(elapsed),
                           RenderOptions(noise=noise, seed=seed + number))
            header = messages.header(stamp, OPTICAL_FRAME)
            info = messages.camera_info(header, camera)
            for topic, message in (
                ('/tf', messages.transform(messages.header(stamp, WORLD_FRAME), frame.pose)),
                ('/camera/color/camera_info', info),
                ('/camera/color/image_raw', messages.image(header, 'rgb8', frame.rgb)),
                ('/camera/depth/camera_info', info),
                ('/camera/depth/image_raw', messages.image(header, '32FC1', frame.depth)),
            ):
                kind = message.__msgtype__
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=store)
                writer.write(connections[topic], stamp, store.serialize_cdr(message, kind))


class _Messages:
    """Creates ROS messages of `rosbags`' types."""

    def __init__(self, types: Any) -> None:
        self.types = types

    def header(self, stamp: int, frame_id: str) -> Any:
        time = self.types['builtin_interfaces/msg/Time'](*divmod(stamp, NANOSECONDS))
        return self.types['std_msgs/msg/Header'](stamp=time, frame_id=frame_id)

    def image(self, header: Any, encoding: str, pixels: np.ndarray) -> Any:
        height, width = pixels.shape[:2]
        data = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1)
        return self.types['sensor_msgs/msg/Image'](
            header=header, height=height, width=width, encoding=encoding, is_bigendian=0,
            step=data.size // height, data=data)

    def camera_info(self, header: Any, camera: SimCamera) -> Any:
        matrix = camera.matrix
        region = self.types['sensor_msgs/msg/RegionOfInterest'](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        return self.types['sensor_msgs/msg/CameraInfo'](
            header=header, height=camera.height, width=camera.width,
            distortion_model='plumb_bob', d=np.array(camera.distortion), k=matrix.reshape(-1),
            r=np.eye(3).reshape(-1), p=np.hstack([matrix, np.zeros((3, 1))]).reshape(-1),
            binning_x=0, binning_y=0, roi=region)

    def transform(self, header: Any, pose: np.ndarray) -> Any:
        x, y, z, w = quaternion(pose[:3, :3])
        types = self.types
        transform = types['geometry_msgs/msg/Transform'](
            translation=types['geometry_msgs/msg/Vector3'](*(float(v) for v in pose[:3, 3])),
            rotation=types['geometry_msgs/msg/Quaternion'](x=x, y=y, z=z, w=w))
        stamped = types['geometry_msgs/msg/TransformStamped'](
            header=header, child_frame_id=OPTICAL_FRAME, transform=transform)
        return types['tf2_msgs/msg/TFMessage'](transforms=[stamped])


def quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Convert a rotation matrix to a unit quaternion (x, y, z, w) with w >= 0."""
    # The eigenvector of a symmetric matrix's largest eigenvalue (Bar-Itzhack 2000).
    r = rotation
    symmetric = np.array([
        [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
        [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
        [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], 0],
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]]])
    vector = np.linalg.eigh(symmetric)[1][:, -1]
    if vector[3] < 0:
        vector = -vector
    x, y, z, w = (float(v) for v in vector)
    return x, y, z, w


# NYU Depth v2 ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One entry of the data set."""

    frame: Frame
    scene: str  # e.g. bathroom_0003
    raw_depth: np.ndarray  # (480, 640) float32 metres, 0 without a measurement


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    """Render entries of all kinds in turn, two pictures of every room, as in the data set."""
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
    """Simulate the holes (0) of a structured-light sensor's depth.

    It has none in shadows beside edges, out of range, in random specks, and in a random border.
    """
    rng = np.random.default_rng([seed, 13])
    raw = depth.copy()
    # The projector is right of the camera, so that the background left of an edge is in shadow.
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
    """Split entries into training and test indices (from 0) without a room in both."""
    test = [n for n in range(count) if (n // (2 * len(KINDS))) % 2 == 0]
    return sorted(set(range(count)) - set(test)), test


def write_labeled_mat(path: str | Path, samples: Sequence[Sample]) -> None:
    """Write `nyu_depth_v2_labeled.mat`.

    In h5py, as in the original: images (N, 3, 640, 480) uint8, depths and rawDepths (N, 640, 480)
    float32, scenes and sceneTypes (1, N) references to uint16 characters.
    """
    import h5py
    path = Path(path)
    with h5py.File(path, 'w', userblock_size=HEADER_SIZE) as file:
        references = file.create_group('#refs#')

        def dataset(name: str, value: np.ndarray, matlab: str) -> None:
            file.create_dataset(name, data=value).attrs['MATLAB_class'] = np.bytes_(matlab)

        def cell(name: str, texts: Sequence[str]) -> None:
            cells = np.empty(len(texts), dtype=h5py.ref_dtype)
            for i, text in enumerate(texts):
                cells[i] = _characters(references, f'{name}{i}', text)
            data = file.create_dataset(name, data=cells[None], dtype=h5py.ref_dtype)
            data.attrs['MATLAB_class'] = np.bytes_('cell')

        dataset('images', np.stack([s.frame.rgb.transpose(2, 1, 0) for s in samples]), 'uint8')
        dataset('depths', np.stack([s.frame.depth.T for s in samples]), 'single')
        dataset('rawDepths', np.stack([s.raw_depth.T for s in samples]), 'single')
        cell('scenes', [s.scene for s in samples])
        cell('sceneTypes', [s.frame.kind for s in samples])
    header = f'MATLAB 7.3 MAT-file, Platform: {MARK} in the layout of NYUv2'.encode().ljust(116)
    with path.open('r+b') as file:
        file.write((header + bytes(8) + b'\x00\x02IM').ljust(HEADER_SIZE, b'\x00'))


def _characters(group: Any, name: str, text: str) -> Any:
    data = group.create_dataset(name, data=np.array([[ord(c)] for c in text], np.uint16))
    data.attrs['MATLAB_class'] = np.bytes_('char')
    data.attrs['MATLAB_int_decode'] = np.int32(2)
    return data.ref


def write_splits(path: str | Path, count: int) -> None:
    """Write `splits.mat`: trainNdxs and testNdxs, (n, 1) uint16, counted from 1."""
    from scipy.io import savemat
    train, test = split(count)
    savemat(path, {name: np.array(numbers, np.uint16)[:, None] + np.uint16(1)
                   for name, numbers in (('trainNdxs', train), ('testNdxs', test))})
