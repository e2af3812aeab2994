# SPDX-License-Identifier: Apache-2.0
"""From a scene, a camera and a pose to a picture with its exact depth."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from depthclip_ros.sim.camera import SimCamera, ray_bands
from depthclip_ros.sim.render import shade, trace
from depthclip_ros.sim.scene import Scene


@dataclass(frozen=True)
class RenderOptions:
    """Camera effects; the defaults add none.

    exposure: gain on the light. white_balance: gain of R, G, B.
    noise: standard deviation of the pixel noise in units of full scale, drawn from `seed`.
    """

    exposure: float = 1.0
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
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


def render(scene: Scene, camera: SimCamera, pose: np.ndarray,
           options: RenderOptions = RenderOptions(),
           blur_poses: Sequence[np.ndarray] = ()) -> Frame:
    """The picture at `pose`; with `blur_poses` (poses during the exposure), motion-blurred.

    Depth is always that of `pose`. The same arguments give the same bytes.
    """
    with torch.inference_mode():
        noise = _noise(camera, options)
        rgb, depth, top = [], [], 0
        for grid in ray_bands(camera):
            hits = trace(scene, grid, pose)
            planes = shade(scene, grid, hits)
            if blur_poses:
                planes = _average([planes] + [shade(scene, grid, trace(scene, grid, p))
                                              for p in blur_poses])
            bottom = top + len(hits.depth)
            rgb.append(_expose(planes, options, None if noise is None else noise[top:bottom]))
            depth.append(hits.depth)
            top = bottom
        return Frame(torch.cat(rgb).numpy(), torch.cat(depth).numpy(), camera,
                     np.array(pose, np.float64), scene.kind)


def _average(exposures: list[list[Tensor]]) -> list[Tensor]:
    total = [plane.clone() for plane in exposures[0]]
    for planes in exposures[1:]:
        total = [a + b for a, b in zip(total, planes, strict=True)]
    return [plane / float(len(exposures)) for plane in total]


def _expose(planes: list[Tensor], options: RenderOptions, noise: Tensor | None) -> Tensor:
    """(H, W, 3) uint8."""
    channels = []
    for channel, plane in enumerate(planes):
        bright = plane * (255.0 * options.exposure * options.white_balance[channel])
        if noise is not None:
            bright += noise[:, :, channel]
        channels.append((bright + 0.5).clamp_(0.0, 255.0).to(torch.uint8))
    return torch.stack(channels, dim=2)


def _noise(camera: SimCamera, options: RenderOptions) -> Tensor | None:
    """(H, W, 3) in units of 1/255, or None."""
    if options.noise <= 0:
        return None
    rng = np.random.default_rng([options.seed, 11])
    noise = rng.standard_normal((camera.height, camera.width, 3), dtype=np.float32)
    return torch.from_numpy(noise) * (255.0 * options.noise)
