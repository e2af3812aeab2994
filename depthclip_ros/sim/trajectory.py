# SPDX-License-Identifier: Apache-2.0
"""Smooth camera paths inside a room: a slow loop in free space, looking around."""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from depthclip_ros.sim.scene import Scene

#: Metres that the camera keeps from walls and furniture.
CLEARANCE = 0.3
_TRIES = 200
#: Metres below the camera down to which things count as in its way.
_REACH = 0.4


@dataclass(frozen=True)
class Mount:
    """Where a robot carries its camera; each trajectory draws from the ranges.

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
    """A closed path: `pose(time)` is the camera's pose `time` seconds after the start."""

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
        """(4, 4) float64: optical frame (x right, y down, z forward) to world (z up)."""
        angle = 2 * math.pi * time / self.period + self.phase
        position = (self.center[0] + self.radius * math.cos(angle),
                    self.center[1] + self.radius * math.sin(angle),
                    self.center[2] + 0.02 * math.sin(2 * angle))
        return camera_pose(position, self.yaw + self.yaw_swing * math.sin(angle + 1.0),
                           self.pitch + self.pitch_swing * math.sin(2 * angle + 0.5),
                           self.roll_swing * math.sin(3 * angle))


def camera_pose(position: tuple[float, float, float], yaw: float, pitch: float = 0.0,
                roll: float = 0.0) -> np.ndarray:
    """(4, 4): a camera at `position` that looks along `yaw`, up by `pitch`; radians."""
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
    """A path in the scene's free space; the same scene, seed and mount, the same path.

    By default the camera stands 1.3 to 1.5 m above the floor, as on a mobile robot with a mast,
    and looks slightly down. A lower one keeps clear of what stands on the floor, too.
    Raises RuntimeError when the room has no free place for it.
    """
    rng = np.random.default_rng([scene.seed, seed, 7])
    x, y, room = _free_place(scene, rng, mount.height[0] - _REACH)
    return Trajectory(
        center=(x, y, float(rng.uniform(*mount.height))),
        radius=float(min(0.6, room)),
        yaw=_open_direction(scene, x, y, rng),
        yaw_swing=float(rng.uniform(0.2, 0.7)),
        pitch=float(rng.uniform(*mount.pitch)),
        pitch_swing=float(rng.uniform(0.0, 0.05)),
        roll_swing=float(rng.uniform(0.0, 0.03)),
        period=float(rng.uniform(12.0, 25.0)),
        phase=float(rng.uniform(0.0, 2 * math.pi)))


def _open_direction(scene: Scene, x: float, y: float, rng: np.random.Generator) -> float:
    """Of a few random directions the one with the farthest wall: one looks into a room."""
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
    """A place and the radius of the loop that fits there, among what reaches above `low`."""
    best = (0.0, 0.0, -1.0)
    for attempt in range(_TRIES):
        x = float(rng.uniform(CLEARANCE, scene.size[0] - CLEARANCE))
        y = float(rng.uniform(CLEARANCE, scene.size[1] - CLEARANCE))
        room = scene.clearance(x, y, low) - CLEARANCE
        if room > best[2]:
            best = (x, y, room)
        if best[2] > 0.1 and attempt >= 2:
            return best
    if best[2] < 0:
        raise RuntimeError(f'no free place for a camera in {scene.kind} {scene.seed}')
    return best
