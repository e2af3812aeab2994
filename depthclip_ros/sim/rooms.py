# SPDX-License-Identifier: Apache-2.0
"""Furnished rooms of five kinds: materials, primitives, light, and random furniture.

World frame: z up, the floor is z = 0, the room spans (0, 0, 0) to `size`. Metres.
Rooms, doors, furniture, tiles and planks have realistic sizes with a random spread, since these
sizes give the scale in a picture. Colours are random and independent of everything else.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

Color = tuple[float, float, float]  # RGB, 0..1
Vector = tuple[float, float, float]
Generator = np.random.Generator
T = TypeVar('T')


@dataclass(frozen=True)
class Material:
    """A procedural texture in world coordinates: cells with joints, stripes or checks.

    cell: size of one tile, plank or check in metres, along the two axes of the surface.
    stagger: shift of every second row, in cells (0.5 for bricks and planks).
    joint: width of the line between cells in metres (0: none).
    checks: 0 none, 1 stripes (alternate along the first axis), 2 checks (along both).
    variation: difference of brightness between cells, 0..1.
    grain: variation of brightness within cells, 0..1, in spots of `grain_size` and finer ones.
    """

    color: Color
    cell: tuple[float, float] = (1.0, 1.0)
    stagger: float = 0.0
    joint: float = 0.0
    checks: int = 0
    variation: float = 0.0
    second_color: Color = (0.5, 0.5, 0.5)
    joint_color: Color = (0.3, 0.3, 0.3)
    grain: float = 0.0
    grain_size: tuple[float, float] = (0.1, 0.1)


@dataclass(frozen=True)
class Box:
    """A level box, rotated by `yaw` radians about the vertical through its centre."""

    center: Vector
    size: Vector
    material: Material
    yaw: float = 0.0

    def corners(self) -> list[Vector]:
        """Compute the eight corners in the world."""
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
        """Compute the eight corners of its bounding box."""
        r, h, (x, y, z) = self.radius, 0.5 * self.height, self.center
        return [(x + i, y + j, z + k) for i in (-r, r) for j in (-r, r) for k in (-h, h)]


@dataclass(frozen=True)
class Sphere:
    """A sphere."""

    center: Vector
    radius: float
    material: Material

    def corners(self) -> list[Vector]:
        """Compute the eight corners of its bounding box."""
        r, (x, y, z) = self.radius, self.center
        return [(x + i, y + j, z + k) for i in (-r, r) for j in (-r, r) for k in (-r, r)]


Primitive = Box | Cylinder | Sphere


@dataclass(frozen=True)
class Light:
    """Shading by orientation: brightness = ambient + diffuse * max(0, normal . direction).

    Brightness does not depend on the distance from the camera, and so says nothing about depth.

    lamp: position of the diffuse light, which casts shadows and fades with distance, to a half at
        `reach` metres. None: light without a position.
    occlusion: darkening behind and beside things, 0..1.
    """

    direction: Vector = (0.3, 0.2, 0.93)
    ambient: float = 0.6
    diffuse: float = 0.4
    lamp: Vector | None = None
    reach: float = 4.0
    occlusion: float = 0.0

    def shade(self, normal: Vector) -> float:
        """Compute the brightness factor of a flat surface."""
        cosine = sum(a * b for a, b in zip(normal, self.direction, strict=True))
        return self.ambient + self.diffuse * max(0.0, cosine)


Walls = tuple[Material, Material, Material, Material, Material, Material]
#: Size of a room, its walls, its contents, and its light.
Room = tuple[Vector, Walls, tuple[Primitive, ...], Light]


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
        """Generate a room of one of `depthclip_ros.sim.KINDS`; a seed always gives the same room.

        Raises ValueError for an unknown kind.
        """
        if kind not in _ROOMS:
            raise ValueError(f'unknown kind of room {kind!r}: use one of {", ".join(KINDS)}')
        rng = np.random.default_rng([KINDS.index(kind), seed])
        return Scene(kind, seed, *_ROOMS[kind](rng))

    def clearance(self, x: float, y: float, low: float = 0.0, high: float = 2.0) -> float:
        """Compute the horizontal distance in metres from (x, y) to the nearest wall or object.

        Objects outside of the heights low..high are ignored; inside an object it is negative.
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


def _bathroom(rng: Generator) -> Room:
    size = (_between(rng, 1.7, 2.6), _between(rng, 2.0, 3.2), _between(rng, 2.3, 2.6))
    tile = _tiles(rng, _choice(rng, (0.15, 0.2)), _light_color(rng))
    walls = _walls(rng, tile, floor=_tiles(rng, 0.3), ceiling=_plain(rng, _light_color(rng)))
    room = _Furnisher(rng, size)
    room.against_wall((0.75, 1.6, 0.55), _plain(rng, _light_color(rng)))  # tub
    room.against_wall((0.45, 0.6, 0.85), _wood(rng))  # washstand
    room.against_wall((0.4, 0.35, 1.8), _wood(rng))  # cupboard
    room.round((0.19, 0.25), (0.4, 0.45), _plain(rng, _light_color(rng)))  # toilet
    room.round((0.12, 0.18), (0.5, 0.6), _plain(rng))  # bin
    room.hang((0.5, 0.7), 1.2, _plain(rng))  # mirror
    room.door()
    return room.build_room(walls)


def _bedroom(rng: Generator) -> Room:
    size = (_between(rng, 3.0, 4.2), _between(rng, 3.2, 4.8), _between(rng, 2.4, 2.7))
    walls = _walls(rng, _wall(rng), floor=_planks(rng), ceiling=_plain(rng, _light_color(rng)))
    room = _Furnisher(rng, size)
    room.against_wall((2.05, 1.5, 0.5), _checked(rng, 0.25))  # bed
    room.against_wall((0.6, 1.5, 2.0), _wood(rng))  # wardrobe
    room.against_wall((0.45, 0.45, 0.5), _wood(rng), sphere=0.14)  # bedside table and lamp
    room.against_wall((0.5, 1.0, 0.8), _wood(rng))  # chest of drawers
    room.round((0.18, 0.22), (0.45, 0.5), _striped(rng, 0.1))  # stool
    room.hang((0.5, 0.7), 1.4, _checked(rng, 0.1))
    room.window()
    room.door()
    return room.build_room(walls)


def _office(rng: Generator) -> Room:
    size = (_between(rng, 4.2, 6.0), _between(rng, 4.5, 6.8), _between(rng, 2.6, 2.9))
    walls = _walls(rng, _wall(rng), floor=_carpet(rng), ceiling=_panels(rng))
    room = _Furnisher(rng, size)
    for _ in range(int(rng.integers(2, 4))):
        room.standing((1.6, 0.8, 0.74), _wood(rng), on_top=(0.5, 0.15, 0.4), margin=0.1)
    for _ in range(int(rng.integers(2, 4))):
        room.round((0.22, 0.27), (0.45, 0.5), _plain(rng))  # chairs
    room.against_wall((0.4, 0.9, 1.9), _shelf(rng))
    room.against_wall((0.4, 0.9, 1.9), _shelf(rng))
    room.against_wall((0.5, 0.45, 0.65), _plain(rng), sphere=0.12)
    room.hang((1.2, 0.9), 1.0, _plain(rng, _light_color(rng)))
    room.window()
    room.door()
    return room.build_room(walls)


def _classroom(rng: Generator) -> Room:
    size = (_between(rng, 6.5, 9.0), _between(rng, 7.0, 10.0), _between(rng, 2.9, 3.2))
    walls = _walls(rng, _wall(rng), floor=_tiles(rng, 0.5), ceiling=_panels(rng))
    room = _Furnisher(rng, size)
    desk, chair = _wood(rng), _plain(rng)
    columns, rows = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    for i in range(columns):
        for j in range(rows):
            x = size[0] * (i + 0.75) / (columns + 0.5) + _between(rng, -0.15, 0.15)
            y = size[1] * (j + 0.75) / (rows + 0.5) + _between(rng, -0.15, 0.15)
            room.put_box((x, y), (1.3, 0.55, 0.74), desk, margin=0.05)
            room.put_round((x, y - 0.6), 0.22, 0.45, chair)
    room.hang((3.0, 1.2), 0.9, _plain(rng, (0.1, 0.25, 0.15)))  # board
    room.against_wall((0.5, 1.2, 1.9), _shelf(rng))
    room.window()
    room.window()
    room.door()
    return room.build_room(walls)


def _corridor(rng: Generator) -> Room:
    size = (_between(rng, 1.7, 2.6), _between(rng, 7.5, 11.0), _between(rng, 2.4, 2.8))
    side = _choice(rng, (_bricks, _wall))(rng)
    floor = _choice(rng, (_tiles(rng, 0.3), _tiles(rng, 0.5)))
    walls = _walls(rng, side, floor, ceiling=_panels(rng))
    room = _Furnisher(rng, size)
    for _ in range(int(rng.integers(3, 6))):
        room.door(side=int(rng.integers(0, 2)))
    room.against_wall((0.35, 0.9, 1.8), _wood(rng), side=int(rng.integers(0, 2)))  # lockers
    room.against_wall((0.4, 1.2, 0.45), _wood(rng), side=int(rng.integers(0, 2)))  # bench
    room.round((0.12, 0.18), (0.5, 0.8), _plain(rng))
    room.round((0.15, 0.2), (0.6, 0.9), _striped(rng, 0.1))
    room.door(side=int(rng.integers(2, 4)))
    return room.build_room(walls)


_ROOMS: dict[str, Callable[[Generator], Room]] = {
    'bathroom': _bathroom, 'bedroom': _bedroom, 'office': _office, 'classroom': _classroom,
    'corridor': _corridor}
#: The kinds of rooms, in the order of their numbers.
KINDS: tuple[str, ...] = tuple(_ROOMS)


class _Furnisher:
    """Places furniture at random free places; what finds none is left out."""

    def __init__(self, rng: Generator, size: tuple[float, float, float]) -> None:
        self.rng = rng
        self.size = size
        self.contents: list[Primitive] = []
        self.occupied: list[tuple[float, float, float]] = []  # x, y, radius on the floor

    def build_room(self, walls: Walls) -> Room:
        """Add a lamp and a light, and return the room."""
        lamp = Material((1.0, 1.0, 0.95))
        self.contents.append(Box((0.5 * self.size[0], 0.5 * self.size[1], self.size[2] - 0.03),
                                 (0.3, 1.2, 0.06), lamp))
        angle = _between(self.rng, 0.0, 2 * math.pi)
        tilt = _between(self.rng, 0.3, 0.9)
        direction = (math.cos(angle) * math.sin(tilt), math.sin(angle) * math.sin(tilt),
                     math.cos(tilt))
        ambient = _between(self.rng, 0.5, 0.7)
        return (self.size, walls, tuple(self.contents),
                Light(direction, ambient, 1.05 - ambient))

    def against_wall(self, size: tuple[float, float, float], material: Material,
                     sphere: float = 0.0, side: int = -1) -> None:
        """Add a box against a wall; the first size is its depth from the wall."""
        depth, width, height = (v * _between(self.rng, 0.92, 1.08) for v in size)
        for _ in range(8):
            wall = side if side >= 0 else int(self.rng.integers(0, 4))
            extent = self.size[1] if wall < 2 else self.size[0]
            if extent < width + 0.1:
                continue
            along = _between(self.rng, 0.5 * width, extent - 0.5 * width)
            center = self._at_wall(wall, along, 0.5 * depth)
            footprint = (depth, width) if wall < 2 else (width, depth)
            if self._free(center, footprint):
                self._add_box(center, footprint, height, material, 0.0)
                if sphere:
                    self.contents.append(Sphere((*center, height + sphere), sphere,
                                                _plain(self.rng, _light_color(self.rng))))
                return

    def standing(self, size: tuple[float, float, float], material: Material,
                 on_top: tuple[float, float, float], margin: float) -> None:
        """Add a box anywhere, turned by a random angle, with a smaller one on top."""
        for _ in range(8):
            center = (_between(self.rng, 1.0, self.size[0] - 1.0),
                      _between(self.rng, 1.0, self.size[1] - 1.0))
            if self._free(center, (size[0] + margin, size[0] + margin)):
                yaw = _between(self.rng, -0.4, 0.4) + 0.5 * math.pi * int(self.rng.integers(0, 2))
                self._add_box(center, size[:2], size[2], material, yaw)
                self.contents.append(Box((*center, size[2] + 0.5 * on_top[2]), on_top,
                                         _plain(self.rng), yaw))
                return

    def put_box(self, center: tuple[float, float], size: tuple[float, float, float],
                material: Material, margin: float) -> None:
        """Add a box at a place if that is free."""
        if self._free(center, (size[0] + margin, size[1] + margin)):
            self._add_box(center, size[:2], size[2], material, _between(self.rng, -0.1, 0.1))

    def put_round(self, center: tuple[float, float], radius: float, height: float,
                  material: Material) -> None:
        """Add a cylinder at a place if that is free."""
        if self._free(center, (2 * radius, 2 * radius)):
            self.occupied.append((*center, radius))
            self.contents.append(Cylinder((*center, 0.5 * height), radius, height, material))

    def round(self, radii: tuple[float, float], heights: tuple[float, float],
              material: Material) -> None:
        """Add a cylinder anywhere on the floor."""
        for _ in range(8):
            radius = _between(self.rng, *radii)
            center = (_between(self.rng, radius, self.size[0] - radius),
                      _between(self.rng, radius, self.size[1] - radius))
            count = len(self.contents)
            self.put_round(center, radius, _between(self.rng, *heights), material)
            if len(self.contents) > count:
                return

    def hang(self, size: tuple[float, float], bottom: float, material: Material,
             side: int = -1, thickness: float = 0.04) -> None:
        """Add a flat thing on a wall: `size` is (width, height), `bottom` its lower edge."""
        wall = side if side >= 0 else int(self.rng.integers(0, 4))
        extent = self.size[1] if wall < 2 else self.size[0]
        width = min(size[0], extent - 0.2)
        along = _between(self.rng, 0.5 * width, extent - 0.5 * width)
        center = self._at_wall(wall, along, 0.5 * thickness)
        footprint = (thickness, width) if wall < 2 else (width, thickness)
        self.contents.append(Box((*center, bottom + 0.5 * size[1]), (*footprint, size[1]),
                                 material))

    def door(self, side: int = -1) -> None:
        """Add a door of about 0.9 m by 2.0 m."""
        self.hang((_between(self.rng, 0.82, 0.92), 2.0), 0.0, _plain(self.rng), side)

    def window(self) -> None:
        """Add a bright window with panes of half a metre."""
        glass = Material((0.85, 0.9, 1.0), (0.5, 0.6), joint=0.06,
                         joint_color=_light_color(self.rng))
        self.hang((1.5, 1.2), 0.9, glass)

    def _at_wall(self, wall: int, along: float, off: float) -> tuple[float, float]:
        if wall < 2:
            return (off if wall == 0 else self.size[0] - off, along)
        return (along, off if wall == 2 else self.size[1] - off)

    def _free(self, center: tuple[float, float], footprint: tuple[float, float]) -> bool:
        """Return whether a footprint overlaps no other one, approximately, by circles."""
        radius = 0.5 * min(footprint)
        reach = 0.5 * max(footprint)
        return all(math.hypot(center[0] - x, center[1] - y) > 0.5 * (radius + reach) + r
                   for x, y, r in self.occupied)

    def _add_box(self, center: tuple[float, float], footprint: tuple[float, float], height: float,
                 material: Material, yaw: float) -> None:
        self.occupied.append((*center, 0.25 * (footprint[0] + footprint[1])))
        self.contents.append(Box((*center, 0.5 * height), (*footprint, height), material, yaw))


def _between(rng: Generator, low: float, high: float) -> float:
    return float(low + (high - low) * rng.random())


def _choice(rng: Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(0, len(options)))]


def _color(rng: Generator) -> Color:
    """Draw a colour that is not too dark."""
    r, g, b = 0.15 + 0.75 * rng.random(3)
    return float(r), float(g), float(b)


def _light_color(rng: Generator) -> Color:
    """Draw a colour near white."""
    r, g, b = 0.7 + 0.28 * rng.random(3)
    return float(r), float(g), float(b)


def _near(rng: Generator, color: Color, spread: float) -> Color:
    r, g, b = (min(1.0, max(0.02, v + _between(rng, -spread, spread))) for v in color)
    return r, g, b


def _plain(rng: Generator, color: Color | None = None) -> Material:
    """Draw a paint with faint cells of 5 cm."""
    return Material(color or _color(rng), (0.05, 0.05), variation=_between(rng, 0.04, 0.1))


def _wall(rng: Generator) -> Material:
    """Draw striped wallpaper, blocks or rough plaster."""
    return _choice(rng, (_striped, _blocks, _plaster))(rng)


def _blocks(rng: Generator) -> Material:
    return Material(_color(rng), (0.4, 0.2), stagger=0.5, joint=0.015,
                    variation=_between(rng, 0.03, 0.1), joint_color=_color(rng))


def _plaster(rng: Generator) -> Material:
    return Material(_color(rng), (0.1, 0.1), variation=_between(rng, 0.12, 0.25))


def _tiles(rng: Generator, cell: float, color: Color | None = None) -> Material:
    color = color or _color(rng)
    cell *= _between(rng, 0.95, 1.05)
    return Material(color, (cell, cell), joint=0.008 + 0.02 * cell,
                    checks=2 if rng.random() < 0.3 else 0, variation=_between(rng, 0.02, 0.1),
                    second_color=_near(rng, color, 0.35), joint_color=_color(rng))


def _planks(rng: Generator) -> Material:
    width = 0.14 * _between(rng, 0.9, 1.1)
    return Material(_brown(rng), (8 * width, width), stagger=0.5, joint=0.008,
                    variation=_between(rng, 0.08, 0.25), joint_color=(0.15, 0.1, 0.08))


def _bricks(rng: Generator) -> Material:
    return Material(_color(rng), (0.25, 0.08), stagger=0.5, joint=0.015,
                    variation=_between(rng, 0.08, 0.2), joint_color=_light_color(rng))


def _carpet(rng: Generator) -> Material:
    cell = 0.5 * _between(rng, 0.95, 1.05)
    color = _color(rng)
    return Material(color, (cell, cell), checks=2, variation=_between(rng, 0.03, 0.1),
                    second_color=_near(rng, color, 0.15))


def _panels(rng: Generator) -> Material:
    """Draw a suspended ceiling with panels of 0.6 m."""
    return Material(_light_color(rng), (0.6, 0.6), joint=0.03, variation=0.02,
                    joint_color=_near(rng, (0.5, 0.5, 0.5), 0.15))


def _striped(rng: Generator, width: float = 0.2) -> Material:
    color = _color(rng)
    return Material(color, (width, 1.0), checks=1, second_color=_near(rng, color, 0.3))


def _checked(rng: Generator, cell: float) -> Material:
    color = _color(rng)
    return Material(color, (cell, cell), checks=2, second_color=_near(rng, color, 0.4))


def _shelf(rng: Generator) -> Material:
    """Draw shelves 0.38 m apart with books 0.06 m wide."""
    return Material(_color(rng), (0.06, 0.38), stagger=0.5, joint=0.012, variation=0.4,
                    joint_color=_brown(rng))


def _wood(rng: Generator) -> Material:
    return Material(_brown(rng), (0.4, 0.05), stagger=0.5, variation=_between(rng, 0.05, 0.15))


def _brown(rng: Generator) -> Color:
    return _near(rng, (0.5, 0.36, 0.24), 0.15)


def _walls(rng: Generator, wall: Material, floor: Material, ceiling: Material) -> Walls:
    """Assign materials to walls, floor and ceiling; sometimes one wall has another one."""
    accent = _wall(rng) if rng.random() < 0.3 else wall
    sides = [wall, wall, wall, wall]
    sides[int(rng.integers(0, 4))] = accent
    return sides[0], sides[1], sides[2], sides[3], floor, ceiling
