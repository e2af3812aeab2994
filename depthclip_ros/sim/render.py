# SPDX-License-Identifier: Apache-2.0
"""A picture with its exact depth: one ray a pixel against the planes and things of a room.

Only IEEE-exact operations touch pixels (+ - * / sqrt, floor, comparisons, integers), so the same
input gives the same bytes whatever the number of threads.
Rays have Z = 1 in the optical frame; hence the ray parameter of a hit is its Z-depth in metres.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .camera import RayGrid, SimCamera, ray_bands
from .rooms import Box, Cylinder, Material, Primitive, Scene, Sphere, Vector

NEAR = 0.02  # metres: hits closer than this are behind or inside the lens
TINY = 1e-7
SHADOW_STEP = 4  # pixels between the rays that look for shadows


@dataclass(frozen=True)
class RenderOptions:
    """Camera effects; the defaults add none.

    exposure: gain on the light.
    noise: standard deviation of the pixel noise in units of full scale, drawn from `seed`.
    """

    exposure: float = 1.0
    noise: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Frame:
    """One picture of the simulated camera."""

    rgb: np.ndarray  # (H, W, 3) uint8
    depth: np.ndarray  # (H, W) float32, metres along the optical axis
    camera: SimCamera
    pose: np.ndarray = field(repr=False)  # (4, 4) float64, optical frame to world
    kind: str = ''


@torch.inference_mode()
def render(scene: Scene, camera: SimCamera, pose: np.ndarray,
           options: RenderOptions = RenderOptions()) -> Frame:
    """The picture at `pose`, (4, 4) from optical frame to world; same arguments, same bytes."""
    rgb, depth = [], []
    for grid in ray_bands(camera):
        hits = _Tracer(scene, grid, np.asarray(pose, np.float64))
        depth.append(hits.depth)
        rgb.append(torch.stack(_shade(scene, grid, hits), dim=2))
    bright = torch.cat(rgb) * (255.0 * options.exposure)
    if scene.light.occlusion:
        bright *= (1.0 - scene.light.occlusion * _enclosed(torch.cat(depth)))[..., None]
    if options.noise > 0:
        rng = np.random.default_rng([options.seed, 11])
        noise = rng.standard_normal((camera.height, camera.width, 3), dtype=np.float32)
        bright += torch.from_numpy(noise) * (255.0 * options.noise)
    pixels = (bright + 0.5).clamp_(0.0, 255.0).to(torch.uint8)
    return Frame(pixels.numpy(), torch.cat(depth).numpy(), camera,
                 np.array(pose, np.float64), scene.kind)


def _shade(scene: Scene, grid: RayGrid, hits: _Tracer) -> list[Tensor]:
    """Colour of every pixel before any camera effect: three (H, W) planes, R G B, 0..1."""
    materials = list(scene.walls) + [primitive.material for primitive in scene.contents]
    table = torch.tensor([_row(material) for material in materials], dtype=torch.float32)
    index = hits.surface.reshape(-1)
    shape = hits.surface.shape

    def look(column: int) -> Tensor:
        return table[:, column].contiguous().index_select(0, index).view(shape)

    # The footprint of a pixel on the surface, for an area average instead of aliasing. The mean
    # colour of a texture is kept, so a distant surface does not fade into anything.
    slant = (hits.slant / grid.length).clamp_min_(0.05).sqrt_()
    footprint = hits.depth * grid.pixel / slant
    per_first, per_second = look(0), look(1)
    a, b = hits.first * per_first, hits.second * per_second
    width_a, width_b = footprint * per_first, footprint * per_second
    row = b.floor()
    a = a + look(2) * (row - 2.0 * (row * 0.5).floor())
    joints = 1.0 - (1.0 - _pulse(a, width_a, look(3))) * (1.0 - _pulse(b, width_b, look(4)))
    second = _second_color_share(a, b, width_a, width_b, look(5), look(6))
    fade = 1.0 / (1.0 + 4.0 * (width_a * width_a + width_b * width_b))
    cell = 1.0 + look(7) * fade * _cell_noise(a, row, hits.surface)
    if any(material.grain for material in materials):
        cell = cell * _grain(hits, footprint, look(17), look(18), look(19))
    lamp = scene.light.lamp
    light = (hits.shade if lamp is None else _lamplight(scene, lamp, hits)) * cell
    planes = []
    for channel in range(3):
        color = look(8 + channel) + second * look(11 + channel)
        planes.append((color + joints * (look(14 + channel) - color)) * light)
    return planes


def _row(material: Material) -> list[float]:
    """One row of the material table (see `_shade` for the columns)."""
    per_first, per_second = 1.0 / material.cell[0], 1.0 / material.cell[1]
    return [
        per_first, per_second, material.stagger,
        material.joint * per_first, material.joint * per_second,
        float(material.checks > 0), float(material.checks == 2), material.variation,
        *material.color,
        *(b - a for a, b in zip(material.color, material.second_color, strict=True)),
        *material.joint_color, material.grain, *(1.0 / v for v in material.grain_size)]


def _second_color_share(a: Tensor, b: Tensor, width_a: Tensor, width_b: Tensor, checks: Tensor,
                        both: Tensor) -> Tensor:
    """0 where a material has no checks, else the share of the second colour in the pixel."""
    share = torch.zeros_like(a)
    where = checks.view(-1).nonzero().squeeze(1)  # most surfaces have none
    if len(where) == 0:
        return share
    a, b, width_a, width_b, both = (
        plane.reshape(-1).index_select(0, where) for plane in (a, b, width_a, width_b, both))
    pattern = _alternate(a, width_a) * torch.where(both > 0.5, _alternate(b, width_b), 1.0)
    share.view(-1).index_copy_(0, where, 0.5 - 0.5 * pattern)
    return share


def _pulse(x: Tensor, width: Tensor, duty: Tensor) -> Tensor:
    """Mean over [x - width/2, x + width/2] of a wave: 1 on the first `duty` of each unit."""
    width = width.clamp_min(1e-4)
    low, high = x - 0.5 * width, x + 0.5 * width
    whole_low, whole_high = low.floor(), high.floor()
    low = torch.minimum(low - whole_low, duty)
    high = torch.minimum(high - whole_high, duty)
    return ((whole_high - whole_low) * duty + (high - low)) / width


def _alternate(x: Tensor, width: Tensor) -> Tensor:
    """Mean over [x - width/2, x + width/2] of a wave that is +1 and -1 on alternate units."""
    width = width.clamp_min(1e-4)

    def integral(t: Tensor) -> Tensor:
        t = 0.5 * t
        return 1.0 - (2.0 * (t - t.floor()) - 1.0).abs()

    return (integral(x + 0.5 * width) - integral(x - 0.5 * width)) / width


def _cell_noise(a: Tensor, row: Tensor, surface: Tensor) -> Tensor:
    """A number in -1..1 for each cell, by integer hashing."""
    h = a.floor().to(torch.int32) * 374761393 + row.to(torch.int32) * 668265263
    h = h + surface * 97531
    h = (h ^ (h >> 13)) * 1274126177
    return ((h >> 8) & 0xFFFF).to(torch.float32) * (2.0 / 65535.0) - 1.0


def _grain(hits: _Tracer, footprint: Tensor, amount: Tensor, per_first: Tensor,
           per_second: Tensor) -> Tensor:
    """Brightness factor of smooth noise in three octaves, each faded where pixels are larger."""
    total = torch.zeros_like(amount)
    for octave, share in ((1.0, 0.5), (3.0, 0.3), (9.0, 0.2)):
        a, b = hits.first * per_first * octave, hits.second * per_second * octave
        width = footprint * torch.maximum(per_first, per_second) * octave
        total += share / (1.0 + 4.0 * width * width) * _smooth_noise(a, b, hits.surface)
    return (1.0 + amount * 2.0 * total).clamp_min_(0.0)


def _smooth_noise(a: Tensor, b: Tensor, surface: Tensor) -> Tensor:
    """-1..1: the cells' numbers, interpolated smoothly between the cells' corners."""
    column, row = a.floor(), b.floor()
    u, v = a - column, b - row
    u, v = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v)
    low, high = (torch.lerp(_cell_noise(column, row + k, surface),
                            _cell_noise(column + 1.0, row + k, surface), u) for k in (0.0, 1.0))
    return torch.lerp(low, high, v)


def _lamplight(scene: Scene, lamp: Vector, hits: _Tracer) -> Tensor:
    """Brightness where one lamp makes the diffuse light: shadows, and its fading.

    Shadows are found for every fourth pixel and interpolated, which makes their edges soft.
    """
    light, some = scene.light, np.s_[::SHADOW_STEP, ::SHADOW_STEP]
    points = torch.stack([d[some] * hits.depth[some] + o
                          for d, o in zip(hits.direction, hits.origin, strict=True)])
    to_lamp = torch.tensor(lamp, dtype=torch.float32)[:, None, None] - points
    fading = 1.0 / (1.0 + (to_lamp * to_lamp).sum(dim=0) / light.reach ** 2)
    lit = fading * (1.0 - 0.8 * _shadow(scene.contents, points.flatten(1), to_lamp.flatten(1))
                    .view(fading.shape))
    lit = torch.nn.functional.interpolate(lit[None, None], hits.depth.shape, mode='bilinear')[0, 0]
    return light.ambient + (hits.shade - light.ambient) * (2.0 * lit) + 0.3 * lit


def _shadow(things: Sequence[Primitive], points: Tensor, to_lamp: Tensor) -> Tensor:
    """(N,) 1 where a thing, taken for its box, is between (3, N) points and the lamp."""
    solid = [(p, p.size if isinstance(p, Box) else
              (2 * p.radius, 2 * p.radius, p.height if isinstance(p, Cylinder) else 2 * p.radius))
             for p in things]
    center, half = (torch.tensor(v, dtype=torch.float32)[..., None] for v in (
        [p.center for p, _ in solid], [[0.5 * s for s in size] for _, size in solid]))
    yaw = [p.yaw if isinstance(p, Box) else 0.0 for p, _ in solid]
    c, s = (torch.tensor([f(v) for v in yaw], dtype=torch.float32)[:, None]
            for f in (math.cos, math.sin))
    near = torch.full((len(solid), points.shape[1]), 0.03)  # no thing shades the point it is at
    far = torch.full_like(near, 0.97)
    x, y, z = (points[k] - center[:, k] for k in range(3))
    dx, dy, dz = (to_lamp[k] for k in range(3))
    for k, (start, step) in enumerate(((c * x + s * y, c * dx + s * dy),
                                       (c * y - s * x, c * dy - s * dx), (z, dz[None]))):
        inverse = 1.0 / _nonzero(step)
        one, two = (-half[:, k] - start) * inverse, (half[:, k] - start) * inverse
        near = torch.maximum(near, torch.minimum(one, two))
        far = torch.minimum(far, torch.maximum(one, two))
    return (near < far).any(dim=0).to(torch.float32)


def _enclosed(depth: Tensor) -> Tensor:
    """(H, W) 0..1: how far a pixel lies behind its neighbourhood, as corners and gaps do."""
    side = 2 * (depth.shape[1] // 32) + 1
    mean = torch.nn.functional.avg_pool2d(depth[None], side, 1, side // 2,
                                          count_include_pad=False)[0]
    return ((depth - mean) / (0.15 * mean)).clamp_(0.0, 1.0)


class _Tracer:
    """What each pixel's ray hits; things are tested only in the rectangle that can contain them.

    Attributes, each (H, W):
        depth: float32, metres along the optical axis.
        surface: int32, 0..5 the room's planes, 6 + i its i-th thing.
        first, second: texture coordinates in metres.
        shade: brightness by orientation.
        slant: |normal . ray|, ray with Z = 1.

    """

    def __init__(self, scene: Scene, grid: RayGrid, pose: np.ndarray) -> None:
        self.scene = scene
        self.grid = grid
        self.rotation = pose[:3, :3]
        self.origin = [float(v) for v in pose[:3, 3]]
        r = [[float(v) for v in row] for row in self.rotation]
        self.direction = [_nonzero(grid.x * r[k][0] + grid.y * r[k][1] + r[k][2])
                          for k in range(3)]
        self.inverse = [1.0 / d for d in self.direction]
        self._hit_room()
        for index, primitive in enumerate(scene.contents):
            self._hit(primitive, 6 + index)

    def _hit_room(self) -> None:
        o, size, light = self.origin, self.scene.size, self.scene.light
        distances, shades, numbers = [], [], []
        for k in range(3):
            ahead = self.direction[k] > 0
            bound = torch.where(ahead, size[k] - o[k], -o[k])
            distances.append(bound * self.inverse[k])
            normal = [0.0, 0.0, 0.0]
            normal[k] = 1.0
            low = light.shade((normal[0], normal[1], normal[2]))
            high = light.shade((-normal[0], -normal[1], -normal[2]))
            shades.append(torch.where(ahead, high, low))
            numbers.append(ahead.to(torch.int32) + 2 * k)
        x_first = distances[0] < distances[1]
        depth = torch.minimum(distances[0], distances[1])
        z_first = distances[2] < depth
        self.depth = torch.minimum(depth, distances[2])
        self.shade = _pick(z_first, x_first, *shades)
        self.surface = _pick(z_first, x_first, *numbers)
        self.slant = _pick(z_first, x_first, *[d.abs() for d in self.direction])
        point = [self.direction[k] * self.depth + o[k] for k in range(3)]
        self.first = torch.where(z_first | ~x_first, point[0], point[1])
        self.second = torch.where(z_first, point[1], point[2])

    def _hit(self, primitive: Primitive, number: int) -> None:
        rows, columns = self._rectangle(primitive)
        if rows.stop <= rows.start or columns.stop <= columns.start:
            return
        window = (rows, columns)
        direction = [d[window] for d in self.direction]
        if isinstance(primitive, Box):
            hit = self._box(primitive, direction, window)
        elif isinstance(primitive, Cylinder):
            hit = self._cylinder(primitive, direction, window)
        else:
            hit = self._sphere(primitive, direction, window)
        distance, valid, first, second, brightness, slant = hit
        nearer = valid & (distance < self.depth[window]) & (distance > NEAR)
        for plane, value in ((self.depth, distance), (self.first, first), (self.second, second),
                             (self.shade, brightness), (self.slant, slant)):
            plane[window] = torch.where(nearer, value, plane[window])
        self.surface[window].masked_fill_(nearer, number)

    def _rectangle(self, primitive: Primitive) -> tuple[slice, slice]:
        local = (np.array(primitive.corners()) - self.origin) @ self.rotation
        depth = local[:, 2]
        if depth.max() < NEAR:
            return slice(0, 0), slice(0, 0)
        if depth.min() < NEAR:  # reaches beside or behind the camera: no bound
            height, width = self.grid.x.shape
            return slice(0, height), slice(0, width)
        x, y = local[:, 0] / depth, local[:, 1] / depth
        return self.grid.rectangle(x.min(), x.max(), y.min(), y.max())

    def _box(self, box: Box, direction: list[Tensor], window: tuple[slice, slice]) -> tuple[
            Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        c, s = math.cos(box.yaw), math.sin(box.yaw)
        ox, oy, oz = (self.origin[k] - box.center[k] for k in range(3))
        origin = [c * ox + s * oy, c * oy - s * ox, oz]
        if box.yaw:
            direction = [_nonzero(direction[0] * c + direction[1] * s),
                         _nonzero(direction[1] * c - direction[0] * s), direction[2]]
            inverse = [1.0 / direction[0], 1.0 / direction[1], self.inverse[2][window]]
        else:
            inverse = [i[window] for i in self.inverse]
        near, far, shades = [], [], []
        for k in range(3):
            half = 0.5 * box.size[k]
            a, b = inverse[k] * (-half - origin[k]), inverse[k] * (half - origin[k])
            near.append(torch.minimum(a, b))
            far.append(torch.maximum(a, b))
            sign = 1.0 if origin[k] > 0 else -1.0
            normal = ((c * sign, s * sign, 0.0), (-s * sign, c * sign, 0.0), (0.0, 0.0, sign))[k]
            shades.append(self.scene.light.shade(normal))
        x_face = near[0] > near[1]
        distance = torch.maximum(near[0], near[1])
        z_face = near[2] > distance
        distance = torch.maximum(distance, near[2])
        valid = distance < torch.minimum(torch.minimum(far[0], far[1]), far[2])
        brightness = torch.where(z_face, shades[2], torch.where(x_face, shades[0], shades[1]))
        slant = _pick(z_face, x_face, *[d.abs() for d in direction])
        point = [direction[k] * distance + origin[k] for k in range(3)]
        first = torch.where(z_face | ~x_face, point[0], point[1])
        return distance, valid, first, torch.where(z_face, point[1], point[2]), brightness, slant

    def _cylinder(self, cylinder: Cylinder, direction: list[Tensor], window: tuple[slice, slice]
                  ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        ox, oy, oz = (self.origin[k] - cylinder.center[k] for k in range(3))
        dx, dy, dz = direction
        radius, half, light = cylinder.radius, 0.5 * cylinder.height, self.scene.light
        a = dx * dx + dy * dy
        b = dx * ox + dy * oy
        square = b * b - a * (ox * ox + oy * oy - radius * radius)
        inverse = 1.0 / a
        root = square.clamp_min(0.0).sqrt()
        side = (-b - root) * inverse
        out = (root - b) * inverse
        bound = half if oz > 0 else -half  # the end that the camera can see
        end = self.inverse[2][window] * (bound - oz)
        # Seen from above or below, an end is hit where its plane is crossed inside the infinite
        # cylinder; from between the ends, never.
        on_end = (end > side) & (end < out) & (abs(oz) > half)
        distance = torch.where(on_end, end, side)
        z = dz * distance + oz
        valid = (square > 0) & (on_end | (z.abs() <= half))
        x, y = dx * distance + ox, dy * distance + oy
        cosine = (x * light.direction[0] + y * light.direction[1]) * (1.0 / radius)
        curved = light.ambient + light.diffuse * cosine.clamp_min(0.0)
        flat = light.shade((0.0, 0.0, 1.0 if oz > 0 else -1.0))
        slant = (x * dx + y * dy).abs() * (1.0 / radius)
        return (distance, valid, x, torch.where(on_end, y, z), torch.where(on_end, flat, curved),
                torch.where(on_end, dz.abs(), slant))

    def _sphere(self, sphere: Sphere, direction: list[Tensor], window: tuple[slice, slice]
                ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        origin = [self.origin[k] - sphere.center[k] for k in range(3)]
        light = self.scene.light
        a = self.grid.length[window] * self.grid.length[window]
        b = direction[0] * origin[0] + direction[1] * origin[1] + direction[2] * origin[2]
        square = b * b - a * (sum(v * v for v in origin) - sphere.radius * sphere.radius)
        distance = (-b - square.clamp_min(0.0).sqrt()) / a
        point = [direction[k] * distance + origin[k] for k in range(3)]
        cosine = (point[0] * light.direction[0] + point[1] * light.direction[1]
                  + point[2] * light.direction[2]) * (1.0 / sphere.radius)
        brightness = light.ambient + light.diffuse * cosine.clamp_min(0.0)
        slant = (point[0] * direction[0] + point[1] * direction[1]
                 + point[2] * direction[2]).abs() * (1.0 / sphere.radius)
        return distance, square > 0, point[0], point[2], brightness, slant


def _nonzero(direction: Tensor) -> Tensor:
    """Directions with zeros replaced, so that one division serves all rays."""
    return torch.where(direction.abs() < TINY, TINY, direction)


def _pick(z_first: Tensor, x_first: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.where(z_first, z, torch.where(x_first, x, y))
