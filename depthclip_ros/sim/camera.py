# SPDX-License-Identifier: Apache-2.0
"""The simulated pinhole camera with plumb_bob distortion, its rays, and its paths in a room."""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from .rooms import Scene

#: Iterations of the fixed-point inversion; 20 reach float32 rounding for |D| of usual lenses.
UNDISTORT_ITERATIONS = 20
#: Pixels in a band of rows that is rendered at once. The memory allocator keeps its small arrays;
#: those of whole images would go back to the system and cost page faults.
BAND_PIXELS = 40_000


#: Least distance of the camera from walls and furniture in metres.
CLEARANCE = 0.3
_MAX_ATTEMPTS = 200
#: Metres below the camera in which furniture is an obstacle.
_BODY_HEIGHT = 0.4


@dataclass(frozen=True)
class SimCamera:
    """A camera with intrinsics in pixels; pixel centres lie at integer coordinates.

    distortion: plumb_bob (k1, k2, p1, p2, k3), as in sensor_msgs/CameraInfo and OpenCV.
    The default is a 640x480 camera with the field of view of the NYU v2 colour camera.
    """

    width: int = 640
    height: int = 480
    fx: float = 518.86
    fy: float = 519.47
    cx: float = 319.5
    cy: float = 239.5
    distortion: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(
                f'width and height must be at least 1, not {self.width} x {self.height}')
        if self.fx <= 0 or self.fy <= 0:
            raise ValueError(f'fx and fy must be positive, not {self.fx} and {self.fy}')
        if len(self.distortion) != 5:
            raise ValueError('distortion must be the five plumb_bob numbers (k1, k2, p1, p2, k3), '
                             f'not {self.distortion!r}')

    @property
    def matrix(self) -> np.ndarray:
        """K, (3, 3) float64."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    def scaled(self, width: int, height: int) -> SimCamera:
        """Resize the camera to another pixel grid with the same outer borders of the image."""
        sx, sy = width / self.width, height / self.height
        return SimCamera(width, height, self.fx * sx, self.fy * sy, (self.cx + 0.5) * sx - 0.5,
                         (self.cy + 0.5) * sy - 0.5, self.distortion)

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distort ideal image-plane coordinates (X/Z, Y/Z)."""
        k1, k2, p1, p2, k3 = self.distortion
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        return (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y)

    def undistort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Invert `distort` by fixed-point iteration (float64)."""
        k1, k2, p1, p2, k3 = self.distortion
        u, v = x, y
        for _ in range(UNDISTORT_ITERATIONS):
            r2 = u * u + v * v
            radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
            u, v = ((x - 2 * p1 * u * v - p2 * (r2 + 2 * u * u)) / radial,
                    (y - p1 * (r2 + 2 * v * v) - 2 * p2 * u * v) / radial)
        return u, v


@dataclass(frozen=True)
class RayGrid:
    """Rays (x, y, 1) of some rows of pixels, and the range of x and y in each column and row."""

    pixel: float  # angle of a pixel at the image's centre, radians
    x: torch.Tensor  # (H, W) float32
    y: torch.Tensor
    length: torch.Tensor  # (H, W), |(x, y, 1)|
    column_range: np.ndarray  # (2, W): least and greatest x in each column
    row_range: np.ndarray  # (2, H): least and greatest y in each row

    def rectangle(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
        """Find rows and columns of all pixels whose rays have x0 <= x <= x1 and y0 <= y <= y1."""
        columns = np.flatnonzero((self.column_range[1] >= x0) & (self.column_range[0] <= x1))
        rows = np.flatnonzero((self.row_range[1] >= y0) & (self.row_range[0] <= y1))
        if len(columns) == 0 or len(rows) == 0:
            return slice(0, 0), slice(0, 0)
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


@lru_cache(maxsize=32)
def ray_bands(camera: SimCamera) -> tuple[RayGrid, ...]:
    """Compute the camera's rays in bands of rows, cached for each camera."""
    u, v = np.meshgrid(np.arange(camera.width, dtype=np.float64),
                       np.arange(camera.height, dtype=np.float64))
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    if any(camera.distortion):
        x, y = camera.undistort(x, y)
    rows = max(1, BAND_PIXELS // camera.width)
    return tuple(_band(camera, x[top:top + rows], y[top:top + rows])
                 for top in range(0, camera.height, rows))


def _band(camera: SimCamera, x: np.ndarray, y: np.ndarray) -> RayGrid:
    return RayGrid(
        1.0 / camera.fx,
        torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32)),
        torch.from_numpy(np.sqrt(x * x + y * y + 1).astype(np.float32)),
        np.stack([x.min(axis=0), x.max(axis=0)]), np.stack([y.min(axis=1), y.max(axis=1)]))


@dataclass(frozen=True)
class Mount:
    """Height and pitch of the camera on a robot; each trajectory draws from these ranges.

    height: lowest and highest, metres above the floor.
    pitch: lowest and highest mean pitch, radians, positive looks up.
    The default is a camera on a mast that looks slightly down, the one of the demo model.
    """

    height: tuple[float, float] = (1.3, 1.5)
    pitch: tuple[float, float] = (-0.28, -0.08)

    def __post_init__(self) -> None:
        if not 0.1 <= self.height[0] <= self.height[1] <= 2.0:
            raise ValueError(
                f'height must be a lowest and a highest from 0.1 to 2.0 m, not {self.height}')
        if not -0.5 * math.pi < self.pitch[0] <= self.pitch[1] < 0.5 * math.pi:
            raise ValueError('pitch must be a lowest and a highest in radians between straight '
                             f'down and straight up, not {self.pitch}')


@dataclass(frozen=True)
class Trajectory:
    """A closed path of the camera, by time since its start."""

    center: tuple[float, float, float]
    radius: float
    yaw: float  # mean viewing direction, radians from the world's x axis
    yaw_swing: float
    pitch: float  # mean, radians, positive looks up
    pitch_swing: float
    roll_swing: float
    period: float  # seconds for one loop
    phase: float

    def pose(self, time: float) -> np.ndarray:
        """Compute the (4, 4) pose at `time` seconds: optical frame (x right, y down) to world."""
        angle = 2 * math.pi * time / self.period + self.phase
        position = (self.center[0] + self.radius * math.cos(angle),
                    self.center[1] + self.radius * math.sin(angle),
                    self.center[2] + 0.02 * math.sin(2 * angle))
        return camera_pose(position, self.yaw + self.yaw_swing * math.sin(angle + 1.0),
                           self.pitch + self.pitch_swing * math.sin(2 * angle + 0.5),
                           self.roll_swing * math.sin(3 * angle))


def camera_pose(position: tuple[float, float, float], yaw: float, pitch: float = 0.0,
                roll: float = 0.0) -> np.ndarray:
    """Compute the (4, 4) pose of a camera at `position`; yaw, pitch (up), roll in radians."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    forward = np.array([cy * cp, sy * cp, sp])
    right = np.array([sy, -cy, 0.0])
    down = np.cross(forward, right)
    c, s = math.cos(roll), math.sin(roll)
    pose = np.eye(4)
    pose[:3, 0] = c * right + s * down
    pose[:3, 1] = c * down - s * right
    pose[:3, 2] = forward
    pose[:3, 3] = position
    return pose


def trajectory(scene: Scene, seed: int, mount: Mount = Mount()) -> Trajectory:
    """Draw a path in the scene's free space; the same arguments give the same path.

    By default the camera is 1.3 to 1.5 m above the floor, as on a mobile robot with a mast, and
    looks slightly down. A lower camera also keeps clear of low furniture.
    Raises RuntimeError if the room has no free place for it.
    """
    rng = np.random.default_rng([scene.seed, seed, 7])
    x, y, free_radius = _free_place(scene, rng, mount.height[0] - _BODY_HEIGHT)
    return Trajectory(
        center=(x, y, float(rng.uniform(*mount.height))),
        radius=float(min(0.6, free_radius)),
        yaw=open_direction(scene, x, y, rng),
        yaw_swing=float(rng.uniform(0.2, 0.7)),
        pitch=float(rng.uniform(*mount.pitch)),
        pitch_swing=float(rng.uniform(0.0, 0.05)),
        roll_swing=float(rng.uniform(0.0, 0.03)),
        period=float(rng.uniform(12.0, 25.0)),
        phase=float(rng.uniform(0.0, 2 * math.pi)))


def open_direction(scene: Scene, x: float, y: float, rng: np.random.Generator) -> float:
    """Choose the one of a few random directions with the farthest wall, as people look."""
    candidates = [float(v) for v in rng.uniform(-math.pi, math.pi, 5)]
    return max(candidates, key=lambda yaw: _wall_distance(scene, x, y, yaw))


def _wall_distance(scene: Scene, x: float, y: float, yaw: float) -> float:
    dx, dy = math.cos(yaw), math.sin(yaw)
    along_x = ((scene.size[0] if dx > 0 else 0.0) - x) / (dx if abs(dx) > 1e-6 else 1e-6)
    along_y = ((scene.size[1] if dy > 0 else 0.0) - y) / (dy if abs(dy) > 1e-6 else 1e-6)
    return min(along_x, along_y)


def _free_place(
    scene: Scene, rng: np.random.Generator, low: float,
) -> tuple[float, float, float]:
    """Find x, y and the radius of a loop that is clear of all furniture above `low` metres."""
    best = (0.0, 0.0, -1.0)
    for attempt in range(_MAX_ATTEMPTS):
        x = float(rng.uniform(CLEARANCE, scene.size[0] - CLEARANCE))
        y = float(rng.uniform(CLEARANCE, scene.size[1] - CLEARANCE))
        free_radius = scene.clearance(x, y, low) - CLEARANCE
        if free_radius > best[2]:
            best = (x, y, free_radius)
        if best[2] > 0.1 and attempt >= 2:
            return best
    if best[2] < 0:
        raise RuntimeError(f'no free place for a camera in {scene.kind} {scene.seed}')
    return best
