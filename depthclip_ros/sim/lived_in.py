# SPDX-License-Identifier: Apache-2.0
"""Rooms that somebody lives in: tables with things on them, chairs with legs, shelves, curtains.

The plain rooms of `rooms` are clean boxes under even light. These have clutter of the sizes that
real things have, materials of several scales, a lamp with shadows, and quiet colours beside loud
ones: the demo model is trained on them, so that what it learns carries over to real pictures.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .camera import camera_pose, open_direction
from .rooms import Box, Color, Cylinder, Generator, Light, Material, Primitive, Scene, Sphere

_TRIES = 12
_CLEAR = 0.22  # metres that a camera keeps from things


def lived_in(scene: Scene) -> Scene:
    """The same room, furnished as people do; the same scene, the same result."""
    return _Home(scene).scene()


def handheld_pose(scene: Scene, rng: Generator) -> np.ndarray:
    """(4, 4), optical frame to world: a camera from 0.3 to 1.8 m high that looks up to 45° down.

    A third looks at a thing from 0.5 to 2.5 m, and nearly half stand at 1.1 to 1.7 m and look
    about level, as people hold cameras. It rolls by up to 8°.

    Raises:
        RuntimeError: the room has no free place.

    """
    for _ in range(60):
        height = rng.uniform(0.3, 1.8)
        x, y = (rng.uniform(0.25, side - 0.25) for side in scene.size[:2])
        yaw = open_direction(scene, x, y, rng)
        pitch, view = rng.uniform(-0.6, 0.1), rng.random()
        if view < 0.45:
            height, pitch = rng.uniform(1.1, 1.7), rng.uniform(-0.35, 0.05)
        elif view < 0.75:
            thing = scene.contents[int(rng.integers(len(scene.contents)))].center
            distance, yaw = rng.uniform(0.5, 2.5), rng.uniform(-math.pi, math.pi)
            x, y = thing[0] - distance * math.cos(yaw), thing[1] - distance * math.sin(yaw)
            pitch = math.atan2(thing[2] - height, distance) + rng.uniform(-0.15, 0.2)
        if scene.clearance(x, y, height - 0.15, height + 0.15) > _CLEAR:
            return camera_pose((x, y, height), yaw, float(np.clip(pitch, -0.8, 0.15)),
                               rng.normal(0.0, 0.05))
    raise RuntimeError(f'no free place for a camera in {scene.kind} {scene.seed}')


class _Home:
    """Furnishes one room."""

    def __init__(self, scene: Scene) -> None:
        self.rng = np.random.default_rng([scene.seed, 23])
        self.plain = scene
        self.calm = self.rng.uniform(0.15, 1.0)  # saturation of the whole room
        self.contents: list[Primitive] = []

    def scene(self) -> Scene:
        """Walls, what stood there already, what is new, clutter and light."""
        rng = self.rng
        *sides, floor, ceiling = self.plain.walls
        a, b, c, d, above = (self._paint(m, wall=True) for m in (*sides, ceiling))
        walls = a, b, c, d, self._paint(floor, wall=False), above
        for thing in self.plain.contents:
            if rng.random() < 0.75:
                self._replace(thing)
        furniture = (self._table, self._table, self._chair, self._chair, self._sofa, self._plant,
                     self._shelf, self._counter, self._rug, self._lamp, self._carton)
        area = self.plain.size[0] * self.plain.size[1]
        for _ in range(int(rng.integers(2, 5 + int(min(area / 4, 9))))):
            _pick(rng, furniture)()
        for _ in range(int(rng.integers(1, 7))):
            self._picture()
        for _ in range(int(rng.integers(0, 3))):
            self._window()
        for thing in list(self.contents):
            top = thing.center[2] + 0.5 * thing.size[2] if isinstance(thing, Box) else 0.0
            if isinstance(thing, Box) and 0.3 < top < 1.3 and min(thing.size[:2]) > 0.25:
                self._clutter(thing, top)
        return replace(self.plain, walls=walls, contents=tuple(self.contents), light=self._light())

    # Materials -----------------------------------------------------------------------------------

    def _color(self) -> Color:
        """Real rooms have quiet colours: near grey, light more often than not."""
        rng = self.rng
        value = rng.choice([rng.uniform(0.05, 0.35), rng.uniform(0.3, 0.75),
                            rng.uniform(0.6, 0.95)])
        tint = rng.uniform(-0.5, 0.5, 3) * self.calm * rng.uniform(0.1, 1.0)
        r, g, b = np.clip(value * (1 + tint), 0.02, 1.0)
        return float(r), float(g), float(b)

    def _material(self, color: Color | None = None) -> Material:
        """Paint, cloth, wood, stripes or checks, with grain of two scales."""
        rng = self.rng
        color = color or self._color()
        grain = float(rng.choice([rng.uniform(0, 0.08), rng.uniform(0.05, 0.5)]))
        size = float(10 ** rng.uniform(-2.2, -0.5))
        stretch = float(rng.choice([1.0, 1.0, rng.uniform(3, 12)]))
        look = rng.random()
        cell = float(10 ** rng.uniform(-1.8, -0.3))
        if look < 0.7:
            return Material(color, grain=grain, grain_size=(size * stretch, size))
        return Material(color, (cell, cell * rng.uniform(0.3, 3)), stagger=0.5 * (look > 0.9),
                        joint=cell * rng.uniform(0.0, 0.15), checks=int(rng.integers(0, 3)),
                        variation=rng.uniform(0, 0.3), second_color=self._color(),
                        joint_color=self._color(), grain=grain, grain_size=(size * stretch, size))

    def _paint(self, material: Material, wall: bool) -> Material:
        """A plain room's material in quieter colours and with grain; walls are mostly even."""
        rng = self.rng
        if wall and rng.random() < 0.65:
            value = rng.uniform(0.45, 1.0)
            r, g, b = np.clip(value * (1 + rng.uniform(-0.2, 0.2, 3) * self.calm), 0, 1)
            return Material((float(r), float(g), float(b)), grain=rng.uniform(0.0, 0.12),
                            grain_size=(s := float(10 ** rng.uniform(-2, 0.3)), s))

        def quiet(color: Color) -> Color:
            mean = sum(color) / 3
            r, g, b = (mean + self.calm * (c - mean) for c in color)
            return r, g, b

        size = float(10 ** rng.uniform(-2.2, -0.5))
        return replace(
            material, color=quiet(material.color), second_color=quiet(material.second_color),
            joint_color=quiet(material.joint_color), grain=rng.uniform(0.0, 0.35),
            grain_size=(size * float(rng.choice([1, 1, 6])), size))

    def _light(self) -> Light:
        """One lamp: under the ceiling, or at a wall as a window is; dark rooms and bright ones."""
        rng = self.rng
        x, y, z = self.plain.size
        lamp = (rng.uniform(0.2, 0.8) * x, rng.uniform(0.2, 0.8) * y, z - rng.uniform(0.05, 0.4))
        if rng.random() < 0.5:
            lamp = (float(rng.choice([0.1, x - 0.1])), lamp[1], rng.uniform(1.2, 2.0))
        ambient = rng.uniform(0.25, 0.7)
        return replace(self.plain.light, ambient=ambient, diffuse=1.15 - ambient, lamp=lamp,
                       reach=rng.uniform(2.0, 8.0), occlusion=rng.uniform(0.1, 0.6))

    # Furniture -----------------------------------------------------------------------------------

    def _replace(self, thing: Primitive) -> None:
        """What stands there, in another material; solid desks get legs, solid shelves books."""
        thing = replace(thing, material=self._paint(thing.material, wall=False)
                        if self.rng.random() < 0.5 else self._material())
        if isinstance(thing, Box) and thing.center[2] < 0.5 and 0.65 < thing.size[2] < 0.85:
            self._table_at(thing.center[0], thing.center[1], thing.size[0], thing.size[1],
                           thing.size[2], thing.yaw)
        else:
            self.contents.append(thing)

    def _part(self, at: tuple[float, float], yaw: float, offset: tuple[float, float, float],
              size: tuple[float, float, float], material: Material) -> None:
        """A box of a piece of furniture; `offset` from the middle of its footprint."""
        c, s = math.cos(yaw), math.sin(yaw)
        center = (at[0] + c * offset[0] - s * offset[1], at[1] + s * offset[0] + c * offset[1],
                  offset[2])
        self.contents.append(Box(center, size, material, yaw))

    def _place(self, radius: float, build: Callable[[float, float, float], None]) -> None:
        """Build somewhere on the free floor; nowhere where there is no room."""
        rng = self.rng
        room = replace(self.plain, contents=tuple(self.contents))
        for _ in range(_TRIES):
            x, y = (float(rng.uniform(0, side)) for side in self.plain.size[:2])
            if room.clearance(x, y, 0.05, 1.5) > radius:
                build(x, y, float(rng.uniform(-math.pi, math.pi)))
                return

    def _table(self) -> None:
        rng = self.rng
        width, depth = rng.uniform(0.5, 1.8), rng.uniform(0.45, 0.9)
        height = rng.uniform(0.4, 0.95)
        if rng.random() < 0.6:
            height = rng.uniform(0.7, 0.77)
        self._place(0.5 * depth + 0.1, lambda x, y, yaw: self._table_at(
            x, y, width, depth, height, yaw))

    def _table_at(self, x: float, y: float, width: float, depth: float, height: float,
                  yaw: float) -> None:
        leg, top = self.rng.uniform(0.03, 0.07), self._material()
        other = top if self.rng.random() < 0.5 else self._material()
        self._part((x, y), yaw, (0, 0, height - 0.02), (width, depth, 0.04), top)
        for i in (-1, 1):
            for j in (-1, 1):
                self._part((x, y), yaw, (i * (0.46 * width), j * (0.44 * depth),
                                         0.5 * height - 0.02), (leg, leg, height - 0.04), other)

    def _chair(self) -> None:
        def build(x: float, y: float, yaw: float) -> None:
            width, seat = self.rng.uniform(0.36, 0.5), self.rng.uniform(0.42, 0.5)
            back, material = self.rng.uniform(0.3, 0.55), self._material()
            legs = material if self.rng.random() < 0.5 else self._material()
            self._part((x, y), yaw, (0, 0, seat), (width, width, 0.05), material)
            self._part((x, y), yaw, (0, 0.48 * width, seat + 0.5 * back), (width, 0.04, back),
                       material)
            for i in (-1, 1):
                for j in (-1, 1):
                    self._part((x, y), yaw, (i * 0.44 * width, j * 0.44 * width, 0.5 * seat),
                               (0.035, 0.035, seat), legs)
        self._place(0.25, build)

    def _sofa(self) -> None:
        def build(x: float, y: float, yaw: float) -> None:
            width, material = self.rng.uniform(0.8, 2.2), self._material()
            self._part((x, y), yaw, (0, 0, 0.21), (width, 0.8, 0.42), material)
            self._part((x, y), yaw, (0, 0.35, 0.6), (width, 0.2, 0.4), material)
            for i in (-1, 1):
                self._part((x, y), yaw, (0.5 * i * width, 0, 0.3), (0.18, 0.8, 0.6), material)
            for _ in range(int(self.rng.integers(0, 4))):
                self._part((x, y), yaw, (self.rng.uniform(-0.4, 0.4) * width, 0.18, 0.56),
                           (0.4, 0.15, 0.3), self._material())
        self._place(0.55, build)

    def _plant(self) -> None:
        def build(x: float, y: float, _: float) -> None:
            height, rng = self.rng.uniform(0.2, 0.5), self.rng
            self.contents.append(Cylinder((x, y, 0.5 * height), rng.uniform(0.1, 0.2), height,
                                          self._material()))
            green = Material((0.1, rng.uniform(0.2, 0.5), 0.1), grain=0.6,
                             grain_size=(0.05, 0.05))
            for _ in range(int(rng.integers(2, 7))):
                dx, dy, dz = rng.uniform(-0.2, 0.2, 3).tolist()
                self.contents.append(Sphere((x + dx, y + dy, height + 0.3 + dz),
                                            rng.uniform(0.06, 0.2), green))
        self._place(0.25, build)

    def _at_wall(self, width: float, depth: float) -> tuple[float, float, float] | None:
        """Place and yaw of a footprint whose back is at a free piece of wall."""
        rng, (x, y, _) = self.rng, self.plain.size
        room = replace(self.plain, contents=tuple(
            p for p in self.contents if p.center[2] < 1.5))
        for _ in range(_TRIES):
            side = int(rng.integers(4))
            extent = (y, y, x, x)[side]
            if extent < width + 0.1:
                continue
            along = float(rng.uniform(0.5 * width, extent - 0.5 * width))
            at = ((0.5 * depth, along), (x - 0.5 * depth, along),
                  (along, 0.5 * depth), (along, y - 0.5 * depth))[side]
            front = ((0.4 + depth, along), (x - 0.4 - depth, along),
                     (along, 0.4 + depth), (along, y - 0.4 - depth))[side]
            if room.clearance(*front, 0.05, 1.5) > 0.1:
                return (*at, (math.pi / 2, -math.pi / 2, math.pi, 0.0)[side])
        return None

    def _shelf(self) -> None:
        """Boards with books and boxes on them."""
        rng = self.rng
        width, depth, height = rng.uniform(0.6, 1.6), rng.uniform(0.22, 0.4), rng.uniform(0.9, 2.1)
        place = self._at_wall(width, depth)
        if place is None:
            return
        at, yaw, wood = place[:2], place[2], self._material()
        self._part(at, yaw, (0, 0.47 * depth, 0.5 * height), (width, 0.02, height), wood)
        for i in (-1, 1):
            self._part(at, yaw, (0.5 * i * width, 0, 0.5 * height), (0.03, depth, height), wood)
        step = rng.uniform(0.28, 0.42)
        for k in range(int(height / step) + 1):
            self._part(at, yaw, (0, 0, k * step + 0.02), (width, depth, 0.025), wood)
            along = -0.48 * width
            while along < 0.4 * width and (k + 1) * step < height:
                size = (rng.uniform(0.05, 0.35), depth * rng.uniform(0.5, 0.9),
                        step * rng.uniform(0.4, 0.9))
                if rng.random() < 0.7:
                    books = replace(self._material(), cell=(rng.uniform(0.02, 0.05), 1.0),
                                    variation=0.5, joint=0.0, checks=0)
                    self._part(at, yaw, (along + 0.5 * size[0], 0,
                                         k * step + 0.03 + 0.5 * size[2]), size, books)
                along += size[0] + rng.uniform(0.0, 0.2)

    def _counter(self) -> None:
        """A kitchen's: a worktop over cupboards, and cupboards above."""
        rng = self.rng
        width = rng.uniform(1.0, 3.0)
        place = self._at_wall(width, 0.6)
        if place is None:
            return
        at, yaw = place[:2], place[2]
        front = replace(self._material(), cell=(rng.uniform(0.35, 0.6), 0.8), joint=0.012,
                        stagger=0.0)
        self._part(at, yaw, (0, 0, 0.44), (width, 0.6, 0.86), front)
        self._part(at, yaw, (0, 0, 0.89), (width, 0.62, 0.04), self._material())
        if rng.random() < 0.6:
            self._part(at, yaw, (0, 0.13, 1.75), (width, 0.34, 0.7), front)

    def _rug(self) -> None:
        rng, (x, y, _) = self.rng, self.plain.size
        self._part((rng.uniform(0.3, 0.7) * x, rng.uniform(0.3, 0.7) * y),
                   rng.uniform(-3, 3), (0, 0, 0.006),
                   (rng.uniform(0.6, 2.4), rng.uniform(0.6, 1.6), 0.012), self._material())

    def _lamp(self) -> None:
        def build(x: float, y: float, _: float) -> None:
            height, metal = self.rng.uniform(1.2, 1.8), self._material()
            self.contents.append(Cylinder((x, y, 0.5 * height), 0.015, height, metal))
            self.contents.append(Cylinder((x, y, 0.02), 0.14, 0.04, metal))
            shade = self.rng.uniform(0.1, 0.25), self.rng.uniform(0.15, 0.35)
            self.contents.append(Cylinder((x, y, height), *shade, Material((1.3, 1.25, 1.0))))
        self._place(0.2, build)

    def _carton(self) -> None:
        def build(x: float, y: float, yaw: float) -> None:
            a, b, c = self.rng.uniform(0.12, 0.6, 3).tolist()
            self._part((x, y), yaw, (0, 0, 0.5 * c), (a, b, c), self._material())
        self._place(0.25, build)

    def _clutter(self, thing: Box, top: float) -> None:
        """Small things on a level top: books, boxes, cups, bottles, bowls, screens."""
        rng = self.rng
        for _ in range(int(rng.integers(0, 3 + int(min(12, 14 * thing.size[0] * thing.size[1]))))):
            u, v = (float(rng.uniform(-0.42, 0.42)) * side for side in thing.size[:2])
            c, s = math.cos(thing.yaw), math.sin(thing.yaw)
            x, y = thing.center[0] + c * u - s * v, thing.center[1] + s * u + c * v
            look = rng.random()
            if look < 0.45:
                w, d = rng.uniform(0.05, 0.3), rng.uniform(0.05, 0.25)
                h = float(rng.choice([rng.uniform(0.003, 0.05), rng.uniform(0.05, 0.3)]))
                self.contents.append(Box((x, y, top + 0.5 * h), (w, d, h), self._material(),
                                         float(rng.uniform(-3, 3))))
            elif look < 0.85:
                r, h = rng.uniform(0.03, 0.1), rng.uniform(0.04, 0.3)
                self.contents.append(Cylinder((x, y, top + 0.5 * h), r, h, self._material()))
            elif look < 0.93:
                r = rng.uniform(0.03, 0.1)
                self.contents.append(Sphere((x, y, top + r), r, self._material()))
            else:
                dark = Material((0.04, 0.04, 0.05))
                yaw = float(rng.uniform(-3, 3))
                self._part((x, y), yaw, (0, 0, top + 0.26), (0.5, 0.03, 0.3), dark)
                self._part((x, y), yaw, (0, 0, top + 0.05), (0.06, 0.05, 0.1), dark)

    # Walls ---------------------------------------------------------------------------------------

    def _on_wall(self, width: float, bottom: float, height: float, thick: float,
                 material: Material) -> None:
        rng, (x, y, _) = self.rng, self.plain.size
        side = int(rng.integers(4))
        extent = (y, y, x, x)[side]
        width = min(width, extent - 0.1)
        along = float(rng.uniform(0.5 * width, extent - 0.5 * width))
        at = ((0.5 * thick, along), (x - 0.5 * thick, along),
              (along, 0.5 * thick), (along, y - 0.5 * thick))[side]
        size = (thick, width, height) if side < 2 else (width, thick, height)
        self.contents.append(Box((*at, bottom + 0.5 * height), size, material))

    def _picture(self) -> None:
        rng = self.rng
        width, height = rng.uniform(0.15, 1.1, 2)
        self._on_wall(width, rng.uniform(0.9, 1.5), height, 0.02, replace(
            self._material(), grain=rng.uniform(0.2, 1.0),
            grain_size=(s := rng.uniform(0.03, 0.3), s)))

    def _window(self) -> None:
        rng = self.rng
        width, height, bottom = rng.uniform(0.6, 2.0), rng.uniform(0.8, 1.5), rng.uniform(0.7, 1.0)
        bright = rng.uniform(0.7, 2.5)
        self._on_wall(width, bottom, height, 0.03, Material(
            (bright, bright, bright), (rng.uniform(0.3, 0.7), height), joint=0.05,
            joint_color=self._color(), grain=0.4, grain_size=(0.2, 0.2)))
        if rng.random() < 0.6:
            self._on_wall(rng.uniform(0.3, 1.0), rng.uniform(0.0, 0.7), 2.2, 0.08, Material(
                self._color(), (rng.uniform(0.06, 0.15), 3.0), checks=1,
                second_color=self._color(), grain=0.2, grain_size=(0.05, 0.6)))


def _pick(rng: Generator, options: tuple[Callable[[], None], ...]) -> Callable[[], None]:
    return options[int(rng.integers(len(options)))]
