# SPDX-License-Identifier: Apache-2.0
"""Views of simulated cameras: settings, the order of rooms, poses and frames. Needs no ROS."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.config import Settings, define
from ..core.errors import ConfigError
from .camera import SimCamera, trajectory
from .render import RenderOptions, render
from .rooms import KINDS, Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from .camera import Trajectory
    from .render import Frame

ALL_KINDS = 'all'
NANOSECONDS = 1_000_000_000
# plumb_bob coefficients of an inexpensive wide-angle lens: straight lines bend outwards visibly.
LENS = (-0.28, 0.08, 0.0005, -0.0003, 0.0)
LENS_TOLERANCE = 0.1  # greatest error of the inverse distortion in pixels
TOUR_FRAMES, TOUR_STEP = 10, 0.2  # pictures of each room, seconds between them


@dataclass(frozen=True)
class SimConfig(Settings):
    """Settings of `sim_camera`, which are its ROS parameters."""

    kind: str = define(
        ALL_KINDS, 'Kind of room; all: one after the other', choices=(ALL_KINDS, *KINDS),
        reload=False)
    seed: int = define(
        0, 'First room; the same number, the same rooms. The demo weights have not seen those '
           'below 1000000', minimum=0, maximum=2**31 - 1, reload=False)
    scene_seconds: float = define(
        10.0, 'Move on to the next room after this time; 0: stay', unit='s', minimum=0.0,
        maximum=86400.0, reload=False)
    cameras: tuple[str, ...] = define(
        ('',), "Names of the cameras, each the namespace of its topics; '': the node's own",
        reload=False)
    rig: bool = define(
        True, 'Several cameras are on one body and look around evenly; false: each has a room '
              'of its own', reload=False)
    rate: float = define(
        10.0, 'Pictures of each camera a second', unit='Hz', minimum=0.01, maximum=120.0,
        reload=False)
    width: int = define(
        640, 'Width of the pictures', unit='px', minimum=16, maximum=4096, reload=False)
    height: int = define(
        480, 'Height of the pictures', unit='px', minimum=16, maximum=4096, reload=False)
    fov: float = define(
        63.33, 'Horizontal field of view, of a lens without distortion', unit='degrees',
        minimum=5.0, maximum=150.0, reload=False)
    distortion: bool = define(
        False, f'A lens with plumb_bob distortion {list(LENS)}', reload=False)
    noise: float = define(
        0.0, 'Standard deviation of the pixel noise, of full scale', minimum=0.0, maximum=1.0,
        reload=False)
    num_threads: int = define(
        1, "CPU threads of the renderer; 0: torch's choice", minimum=0, maximum=1024,
        reload=False)

    def _check(self) -> None:
        camera = self.camera()  # the renderer must be able to invert its distortion
        corners = np.array([[-0.5, -0.5], [camera.width - 0.5, camera.height - 0.5]])
        x, y = (corners - (camera.cx, camera.cy)).T / camera.fx
        error = np.hypot(*(a - b for a, b in zip(
            camera.distort(*camera.undistort(x, y)), (x, y), strict=True))).max() * camera.fx
        if not error < LENS_TOLERANCE:
            raise ConfigError('distortion: this lens cannot cover the whole picture; give a '
                              'smaller fov, at most 90 degrees at 640 x 480, or distortion: '
                              'false.')

    def camera(self) -> SimCamera:
        """Create the camera; all cameras are alike."""
        focal = self.width / 2 / math.tan(math.radians(self.fov) / 2)
        return SimCamera(self.width, self.height, focal, focal, (self.width - 1) / 2,
                         (self.height - 1) / 2, LENS if self.distortion else (0.0,) * 5)


@dataclass(frozen=True)
class Room:
    """A room and the path of the camera in it."""

    scene: Scene
    path: Trajectory

    def __str__(self) -> str:
        return f'{self.scene.kind}, seed {self.scene.seed}'


def generate_room(kind: str, seed: int, warn: Callable[[str], None]) -> Room:
    """Generate a room, or the next one that has a place for a camera.

    Args:
        kind: kind of the room; 'all': the seed decides.
        seed: seed of the room.
        warn: called with a sentence about a room that is skipped.

    """
    while True:
        scene = Scene.generate(KINDS[seed % len(KINDS)] if kind == ALL_KINDS else kind, seed)
        try:
            return Room(scene, trajectory(scene, seed=0))
        except RuntimeError as error:
            warn(f'{error}: taking the next one')
            seed += len(KINDS) if kind == ALL_KINDS else 1


class SimulatedView:
    """The view of one camera of several.

    Frames depend only on the settings and the time since the start.
    """

    def __init__(
        self, config: SimConfig, index: int, announce: Callable[[float, Room], None],
        warn: Callable[[str], None],
    ) -> None:
        """Create the view.

        Args:
            config: settings of all cameras.
            index: index of this camera.
            announce: called with the time, in seconds since the start, and each new room.
            warn: called with a sentence about each room that is skipped.

        """
        self._config = config
        self._index = index
        self._announce = announce
        self._warn = warn
        self._camera = config.camera()
        self._number = -1
        self._room: Room

    def restart(self) -> None:
        """Announce the next picture's room even if it is the previous one's."""
        self._number = -1

    def frame(self, elapsed: float, number: int) -> Frame:
        """Render picture `number`, `elapsed` seconds after the start."""
        config, cameras = self._config, len(self._config.cameras)
        period = config.scene_seconds
        number_of_room = int(elapsed // period) if period else 0
        if number_of_room != self._number:
            # Without a rig, each camera gets the next room in turn.
            seed_offset = number_of_room if config.rig else number_of_room * cameras + self._index
            self._number = number_of_room
            self._room = generate_room(config.kind, config.seed + seed_offset, self._warn)
            self._announce(number_of_room * period, self._room)
        pose = self._room.path.pose(elapsed - number_of_room * period)
        if config.rig:
            # All cameras share one centre and turn about the vertical: no wall comes nearer.
            angle = 2 * math.pi * self._index / cameras
            cosine, sine = math.cos(angle), math.sin(angle)
            turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
            pose[:3, :3] = turn @ pose[:3, :3]
        return render(self._room.scene, self._camera, pose, RenderOptions(
            noise=config.noise, seed=number * cameras + self._index))


class Schedule:
    """Schedule of pictures: number n is due n / rate seconds after the start, or is skipped.

    Attributes:
        start: time of picture 0, in nanoseconds.
        skipped: number of pictures that were skipped because `due` was called too late.

    """

    def __init__(self, rate: float) -> None:
        self.start = 0
        self.skipped = 0
        self._rate = rate
        self._last = -1

    def due(self, now: int) -> int | None:
        """Return the number of the picture due at `now`, in nanoseconds; None if there is none.

        The first call, and one at an earlier time than the last picture's, restarts at 0.
        """
        if self._last < 0 or now < self.stamp(self._last):
            self.start, self._last = now, 0
            return 0
        number = int((now - self.start) * self._rate / NANOSECONDS)
        if number <= self._last:
            return None
        self.skipped += number - self._last - 1
        self._last = number
        return number

    def stamp(self, number: int) -> int:
        """Return the time of a picture in nanoseconds."""
        return self.start + round(number * NANOSECONDS / self._rate)


def tour(camera: SimCamera, announce: Callable[[str], None]) -> Iterator[NDArray[np.uint8]]:
    """Render a few pictures of one room after the other, of each kind in turn, forever.

    Args:
        camera: the camera.
        announce: called with kind and seed of every room.

    Yields:
        uint8 (H, W, 3), RGB.

    """
    for seed in itertools.count():
        tour_room = generate_room(ALL_KINDS, seed, announce)
        announce(str(tour_room))
        for number in range(TOUR_FRAMES):
            yield render(tour_room.scene, camera, tour_room.path.pose(number * TOUR_STEP)).rgb
