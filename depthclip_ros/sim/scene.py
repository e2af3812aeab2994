# SPDX-License-Identifier: Apache-2.0
"""The rendered room.

World frame: z up, the floor is z = 0, the room spans (0, 0, 0) to `size`. Metres.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field

from depthclip_ros.sim.rooms import Walls, furnish
from depthclip_ros.sim.solids import Box, Light, Primitive, Vector


@dataclass(frozen=True)
class Scene:
    """A room: six planes with a material each (x-, x+, y-, y+, floor, ceiling), its contents."""

    kind: str
    seed: int
    size: Vector
    walls: Walls
    contents: tuple[Primitive, ...] = ()
    light: Light = field(default_factory=Light)

    @staticmethod
    def generate(kind: str, seed: int) -> Scene:
        """A furnished room of one of `depthclip_ros.sim.KINDS`; the same seed, the same room.

        Raises ValueError for an unknown kind.
        """
        return Scene(kind, seed, *furnish(kind, seed))

    def clearance(self, x: float, y: float, low: float = 0.0, high: float = 2.0) -> float:
        """Horizontal distance in metres from (x, y) to the nearest wall or object.

        Only objects that reach into the heights low..high count; negative inside one.
        """
        room = min(x, y, self.size[0] - x, self.size[1] - y)
        return min([room] + [_distance(p, x, y) for p in self.contents if _overlaps(p, low, high)])


def _overlaps(primitive: Primitive, low: float, high: float) -> bool:
    heights = [corner[2] for corner in primitive.corners()]
    return max(heights) > low and min(heights) < high


def _distance(primitive: Primitive, x: float, y: float) -> float:
    dx, dy = x - primitive.center[0], y - primitive.center[1]
    if not isinstance(primitive, Box):
        return math.hypot(dx, dy) - primitive.radius
    c, s = math.cos(primitive.yaw), math.sin(primitive.yaw)
    ox = abs(c * dx + s * dy) - 0.5 * primitive.size[0]
    oy = abs(-s * dx + c * dy) - 0.5 * primitive.size[1]
    return math.hypot(max(ox, 0.0), max(oy, 0.0)) + min(max(ox, oy), 0.0)
