# SPDX-License-Identifier: Apache-2.0
"""What a rendered room is made of: materials, primitives, light. Metres, z up."""
from __future__ import annotations

import math
from dataclasses import dataclass

Color = tuple[float, float, float]  # RGB, 0..1
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """A procedural texture in world coordinates: cells with joints, checks or stripes, variation.

    cell: size of one tile, plank or check in metres, along the two axes of the surface.
    stagger: shift of every second row, in cells (0.5 for bricks and planks).
    joint: width of the line between cells in metres (0: none).
    checks: 0 none, 1 stripes (alternate along the first axis), 2 checks (along both).
    variation: how much the brightness of one cell differs from the next, 0..1.
    """

    color: Color
    cell: tuple[float, float] = (1.0, 1.0)
    stagger: float = 0.0
    joint: float = 0.0
    checks: int = 0
    variation: float = 0.0
    second_color: Color = (0.5, 0.5, 0.5)
    joint_color: Color = (0.3, 0.3, 0.3)


@dataclass(frozen=True)
class Box:
    """A box that stands level, rotated by `yaw` radians about the vertical through its centre."""

    center: Vector
    size: Vector
    material: Material
    yaw: float = 0.0

    def corners(self) -> list[Vector]:
        """The eight corners in the world."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        hx, hy, hz = (0.5 * v for v in self.size)
        x, y, z = self.center
        return [(x + c * i - s * j, y + s * i + c * j, z + k)
                for i in (-hx, hx) for j in (-hy, hy) for k in (-hz, hz)]


@dataclass(frozen=True)
class Cylinder:
    """A vertical cylinder with flat ends; `center` is the middle of its axis."""

    center: Vector
    radius: float
    height: float
    material: Material

    def corners(self) -> list[Vector]:
        """The eight corners of its bounding box."""
        r, h, (x, y, z) = self.radius, 0.5 * self.height, self.center
        return [(x + i, y + j, z + k) for i in (-r, r) for j in (-r, r) for k in (-h, h)]


@dataclass(frozen=True)
class Sphere:
    """A sphere."""

    center: Vector
    radius: float
    material: Material

    def corners(self) -> list[Vector]:
        """The eight corners of its bounding box."""
        r, (x, y, z) = self.radius, self.center
        return [(x + i, y + j, z + k) for i in (-r, r) for j in (-r, r) for k in (-r, r)]


Primitive = Box | Cylinder | Sphere


@dataclass(frozen=True)
class Light:
    """Shading by orientation: brightness = ambient + diffuse * max(0, normal . direction).

    There is no term in the distance from the camera, so brightness says nothing about depth.
    """

    direction: Vector = (0.3, 0.2, 0.93)
    ambient: float = 0.6
    diffuse: float = 0.4

    def shade(self, normal: Vector) -> float:
        """Brightness factor of a flat surface."""
        cosine = sum(a * b for a, b in zip(normal, self.direction, strict=True))
        return self.ambient + self.diffuse * max(0.0, cosine)
