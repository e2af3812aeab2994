# SPDX-License-Identifier: Apache-2.0
"""What `foreign_robots.py` measures in: cameras on robots, drives through rooms, frames on disk.

A frame is made of its shot alone: the same shot gives the same bytes, in any process. Rendering
can therefore be shared among processes, and kept between runs under a name that says all it is
made of, the renderer's own code included.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from depthclip_ros import sim
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.sim import (
    KINDS,
    Mount,
    RenderOptions,
    Scene,
    SimCamera,
    render,
    trajectory,
)

WIDTH, HEIGHT = 320, 240
NOISE = 0.01
USUAL = SimCamera().scaled(WIDTH, HEIGHT)
LOW = Mount(height=(0.35, 0.35), pitch=(0.07, 0.27))
LENS = (-0.25, 0.06, 0.001, -0.001, 0.0)
# All below 1,000,000: the demo model has seen none of them. Neither has anything been chosen on
# the test rooms: its temperature is from rooms 20000 to 20149.
FIRST_TEST_ROOM, FIRST_DRIVE_ROOM, ROOMS_OF_A_DRIVE = 60_000, 100_000, 1_000
INSTEAD = 100 * len(KINDS)  # from a room without a place for the camera to the one taken for it
LOOP = 22.8  # seconds that a drive spends in a room: about one loop


@dataclass(frozen=True)
class Robot:
    """A camera on a robot.

    Attributes:
        title: in words.
        camera: its lens.
        mount: where it is.
        exposure: gain on the light.

    """

    title: str
    camera: SimCamera = USUAL
    mount: Mount = field(default_factory=Mount)
    exposure: float = 1.0

    def model(self) -> CameraModel:
        """The camera as camera_info tells of it."""
        camera = self.camera
        pinhole = CameraModel.pinhole(
            camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
        if not any(camera.distortion):
            return pinhole
        return CameraModel(camera.width, camera.height, pinhole.K, np.array(camera.distortion),
                           'plumb_bob', pinhole.R, pinhole.P)


def wide(degrees: float) -> SimCamera:
    """A camera of square pixels without distortion, so many degrees wide."""
    focal = WIDTH / 2 / math.tan(math.radians(degrees / 2))
    return SimCamera(WIDTH, HEIGHT, focal, focal, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)


ROBOTS = {
    'A': Robot('the training camera'),
    'B': Robot('90 degrees wide instead of 63', wide(90)),
    'C': Robot('0.35 m high instead of 1.4, pitched up', mount=LOW),
    'D': Robot('both', wide(90), LOW),
    'E': Robot('half the exposure, a lens that distorts', SimCamera(
        WIDTH, HEIGHT, USUAL.fx, USUAL.fy, USUAL.cx, USUAL.cy, LENS), exposure=0.5),
}
LENSES = {50: Robot('50 degrees wide', wide(50)), 75: Robot('75 degrees wide', wide(75)),
          90: ROBOTS['B']}


@dataclass(frozen=True)
class Shot:
    """What one frame is made of."""

    robot: Robot
    room: int
    seconds: float


@dataclass(frozen=True)
class Frames:
    """Frames of one robot, in the order in which they were taken.

    Attributes:
        rgb: (N, H, W, 3) uint8.
        depth: (N, H, W) float32 metres.
        rooms: (N,) which room each is of.
        camera: that took them.
        name: of what they were made of.

    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    rooms: NDArray[np.int64]
    camera: CameraModel
    name: str

    def __len__(self) -> int:
        return len(self.rgb)

    def first(self, count: int) -> Frames:
        """The first of them."""
        return Frames(self.rgb[:count], self.depth[:count], self.rooms[:count], self.camera,
                      f'{self.name}, first {count}')

    @property
    def kinds(self) -> NDArray[np.str_]:
        """(N,) what kind of room each is of."""
        return np.array([kind_of(int(room)) for room in self.rooms])


def kind_of(room: int) -> str:
    """Kinds come in turn."""
    return KINDS[room % len(KINDS)]


def unseen(robot: Robot, count: int) -> list[Shot]:
    """One frame each of so many rooms that nothing was trained, chosen or calibrated in."""
    rooms = _passable(robot.mount, FIRST_TEST_ROOM, count)
    return [Shot(robot, room, float(i % 23)) for i, room in enumerate(rooms)]


def drive(robot: Robot, number: int, rooms: int, frames: int, step: float = 0.0) -> list[Shot]:
    """A drive through rooms of its own, one after the other, as many frames in each.

    Args:
        robot: that drives.
        number: of the drive; another one goes through other rooms.
        rooms: how many.
        frames: of all rooms together.
        step: seconds between two frames; 0: a loop of each room evenly.

    """
    each = math.ceil(frames / rooms)
    places = _passable(robot.mount, FIRST_DRIVE_ROOM + number * ROOMS_OF_A_DRIVE, rooms)
    return [Shot(robot, places[i // each], i % each * (step or LOOP / each))
            for i in range(frames)]


def _passable(mount: Mount, first: int, count: int) -> list[int]:
    """So many rooms, kinds in turn; one without a place for the camera has another instead."""
    found = []
    for room in range(first, first + count):
        place = room
        while not _has_place(place, mount):
            place += INSTEAD
        found.append(place)
    return found


def _has_place(room: int, mount: Mount) -> bool:
    try:
        _path(room, mount)
    except RuntimeError:
        return False
    return True


def _path(room: int, mount: Mount) -> tuple[Scene, sim.Trajectory]:
    scene = Scene.generate(kind_of(room), room)
    return scene, trajectory(scene, room, mount)


class Studio:
    """Renders shots, in processes, and keeps what it rendered in a folder."""

    def __init__(self, folder: Path, processes: int = 2) -> None:
        """Nothing is begun before the first shot.

        Args:
            folder: is made; whatever is in it may be deleted at any time.
            processes: that render; 1: this one does.

        """
        self._folder, self._processes = folder, processes
        self._code = hashlib.sha256(b''.join(
            path.read_bytes() for path in sorted(Path(sim.__file__).parent.glob('*.py'))))

    def frames(self, shots: Sequence[Shot]) -> Frames:
        """Render shots of one robot, or read them."""
        name = self._code.copy()
        name.update(repr(list(shots)).encode())
        digest = name.hexdigest()[:24]
        path = self._folder / f'{digest}.npz'
        if path.exists():
            with np.load(path) as kept:
                rgb, depth = kept['rgb'], kept['depth']
        else:
            pictures = self._take(shots)
            rgb, depth = (np.stack(of_all) for of_all in zip(*pictures, strict=True))
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f'.{os.getpid()}.npz')
            np.savez(unfinished, rgb=rgb, depth=depth)
            unfinished.replace(path)
        return Frames(rgb, depth, np.array([shot.room for shot in shots]),
                      shots[0].robot.model(), digest)


    def _take(
        self, shots: Sequence[Shot],
    ) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        if self._processes < 2:
            return [_take(shot) for shot in shots]
        with ProcessPoolExecutor(
                self._processes, get_context('spawn'), torch.set_num_threads, (1,)) as pool:
            return list(pool.map(_take, shots, chunksize=8))


def _take(shot: Shot) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    robot = shot.robot
    scene, path = _path(shot.room, robot.mount)
    frame = render(scene, robot.camera, path.pose(shot.seconds), RenderOptions(
        exposure=robot.exposure, noise=NOISE, seed=shot.room * 1000 + round(40 * shot.seconds)))
    return frame.rgb, frame.depth
