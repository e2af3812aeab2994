# SPDX-License-Identifier: Apache-2.0
"""Built-in pictures: a camera swaying through a furnished room, drawn by ray casting.

They need no file, no camera and no network, and are the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from depthclip_ros.color import Picture

Points = NDArray[np.float32]

HFOV_DEGREES = 70.0
FRAMES = 32

# Axes as in an optical frame (REP-103): x right, y down, z forward; metres; floor at y = 0.
ROOM = np.array([[-2.6, -2.6, -0.5], [2.6, 0.0, 6.0]], np.float32)
BOXES = np.array([  # [low corner, high corner]
    [[-1.1, -0.42, 3.3], [1.0, 0.0, 4.2]],      # bed
    [[-1.1, -0.95, 4.2], [1.0, 0.0, 4.35]],     # its head
    [[-2.5, -1.9, 3.0], [-1.9, 0.0, 4.4]],      # wardrobe
    [[1.5, -0.75, 1.9], [2.3, -0.68, 3.0]],     # table top
    [[1.55, -0.68, 1.95], [1.63, 0.0, 2.03]],   # legs
    [[1.55, -0.68, 2.87], [1.63, 0.0, 2.95]],
    [[2.17, -0.68, 1.95], [2.25, 0.0, 2.03]],
    [[2.17, -0.68, 2.87], [2.25, 0.0, 2.95]],
    [[1.75, -1.05, 2.3], [2.05, -0.75, 2.6]],   # something on it
    [[-0.75, -0.33, 1.5], [-0.4, 0.0, 1.85]],   # stool
], np.float32)
BOX_COLORS = np.array([  # BGR
    [150, 90, 70], [60, 80, 110], [70, 110, 150], [90, 140, 190], [80, 125, 170],
    [80, 125, 170], [80, 125, 170], [80, 125, 170], [90, 170, 90], [70, 70, 190],
], np.float32)
LIGHT = np.array([0.3, -2.4, 2.0], np.float32)


def room(frame: int, height: int = 480, width: int = 640) -> Picture:
    """Draw one picture of the room.

    Args:
        frame: place of the camera on its path; the path closes after `FRAMES` frames.
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Returns:
        uint8 (height, width, 3), BGR.

    """
    angle = 2 * np.pi * frame / FRAMES
    eye = np.array([0.5 * np.sin(angle), -1.35, 0.25 - 0.25 * np.cos(angle)], np.float32)
    rays = _rays(height, width, yaw=0.22 * np.sin(angle), pitch=0.18)
    distance, axis, which = _cast(eye, rays)
    points = eye[:, None] + distance * rays
    color = np.where(which < 0, _room_paint(points, axis), BOX_COLORS.T[:, which])
    color *= _light(points, axis)
    return np.clip(color, 0, 255).astype(np.uint8).T.reshape(height, width, 3).copy()


def room_frames(height: int = 480, width: int = 640) -> Iterator[Picture]:
    """Draw the pictures of one round along the path, endlessly; each is drawn only once."""
    drawn: list[Picture] = []
    for frame in range(FRAMES):
        drawn.append(room(frame, height, width))
        yield drawn[-1]
    while True:
        yield from drawn


def _rays(height: int, width: int, yaw: float, pitch: float) -> Points:
    """Unit directions through the pixel centres, (3, height * width)."""
    focal = width / 2 / np.tan(np.radians(HFOV_DEGREES) / 2)
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    x, y = (u - (width - 1) / 2) / focal, (v - (height - 1) / 2) / focal
    y, z = y * np.cos(pitch) + np.sin(pitch), np.cos(pitch) - y * np.sin(pitch)
    x, z = x * np.cos(yaw) + z * np.sin(yaw), z * np.cos(yaw) - x * np.sin(yaw)
    rays = np.stack([x, y, z]).reshape(3, -1)
    return np.asarray(rays / np.linalg.norm(rays, axis=0), np.float32)


def _cast(eye: Points, rays: Points) -> tuple[Points, NDArray[np.intp], NDArray[np.intp]]:
    """Nearest hit of every ray: distance, axis of the surface's normal, box (-1: the room)."""
    inverse = 1.0 / np.where(np.abs(rays) < 1e-6, np.float32(1e-6), rays)
    walls = np.maximum(*((corner - eye)[:, None] * inverse for corner in ROOM))
    axis = walls.argmin(axis=0)
    distance = walls.min(axis=0)
    which = np.full(distance.size, -1)
    for index, box in enumerate(BOXES):
        first, second = ((corner - eye)[:, None] * inverse for corner in box)
        entries = np.minimum(first, second)
        entry = entries.max(axis=0)
        hit = (entry <= np.maximum(first, second).min(axis=0)) & (entry > 0) & (entry < distance)
        distance[hit], axis[hit], which[hit] = entry[hit], entries[:, hit].argmax(axis=0), index
    return distance, axis, which


def _room_paint(points: Points, axis: NDArray[np.intp]) -> Points:
    """Colours of floor (boards), ceiling, side walls and far wall (a window in it), (3, N)."""
    x, y, z = points
    board = np.floor(x / 0.18)
    shade = 0.88 + 0.12 * np.sin(board * 12.9898 + np.floor(z / 1.1 + board * 0.37) * 4.1)
    level = np.where(y > ROOM[:, 1].mean(), _color(80, 130, 190) * shade, _color(225, 228, 230))
    side = np.where(x < 0, _color(185, 200, 190), _color(170, 190, 215))
    side = np.where(y > -0.12, _color(240, 240, 240), side)
    off_x, off_y = np.abs(x - 0.9), np.abs(y + 1.55)
    pane = (off_x < 0.7) & (off_y < 0.55) & (off_x > 0.03) & (off_y > 0.03)
    frame = (off_x < 0.78) & (off_y < 0.63)
    far = np.where(frame, _color(235, 235, 235), _color(200, 205, 215))
    far = np.where(pane, _color(293, 259, 218), far)
    return np.where(axis == 0, side, np.where(axis == 1, level, far))


def _color(blue: float, green: float, red: float) -> Points:
    return np.array([[blue], [green], [red]], np.float32)


def _light(points: Points, axis: NDArray[np.intp]) -> Points:
    """Brightness: one lamp under the ceiling, and light from everywhere, (N,)."""
    toward = LIGHT[:, None] - points
    distance = np.linalg.norm(toward, axis=0)
    facing = np.abs(np.take_along_axis(toward, axis[None], axis=0)[0]) / distance
    return np.asarray(0.6 + 0.8 * facing / (1 + 0.12 * distance * distance), np.float32)
