# SPDX-License-Identifier: Apache-2.0
"""Rendered rooms as the demo model never saw them, and how well a depth image fits them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from depthclip_ros.evaluation.metrics import Float32, Float64, metrics_of, sums_of
from depthclip_ros.evaluation.recording_scores import MAX_RANGE
from depthclip_ros.sim import (
    KINDS,
    Frame,
    Mount,
    RenderOptions,
    Scene,
    SimCamera,
    render,
    trajectory,
)

# First seeds; training has those from 1,000,000 on.
TEST, CHOICE = 30000, 20000
NOISE = 0.01
CAMERA, MOUNT = SimCamera(), Mount()


def view(
    room: int, moment: float, camera: SimCamera = CAMERA, mount: Mount = MOUNT,
    options: RenderOptions | None = None,
) -> Frame:
    """Picture of a room, its kind in turn, from a moment of its path, with mild noise.

    The usual camera has 640 x 480 pixels. The path is the mount's.

    Raises:
        RuntimeError: there is no path for the mount in the room.

    """
    scene = Scene.generate(KINDS[room % len(KINDS)], room)
    path = trajectory(scene, room, mount)
    return render(scene, camera, path.pose(moment),
                  options or RenderOptions(noise=NOISE, seed=room))


def one_each(first: int, count: int) -> Iterator[Frame]:
    """So many rooms, a picture of each."""
    return (view(first + i, float(i % 23)) for i in range(count))


def scores(depth: NDArray[np.floating], truth: Float32) -> Float64:
    """(10,) evaluation.metrics.METRICS of one image, (H, W) metres each; every pixel counts.

    Raises:
        ValueError: a depth is not finite; a score would hide it.

    """
    if not np.isfinite(depth).all():
        raise ValueError('a predicted depth is not finite, and cannot be scored')
    return metrics_of(sums_of(np.asarray(depth, np.float32), truth, MAX_RANGE))


def correlation(depth: NDArray[np.floating], truth: Float32) -> float:
    """Correlation of the logarithms of depth: 0 for a flat wall, whatever its distance."""
    logs = np.log(np.array([depth, truth], np.float64)).reshape(2, -1)
    flat = logs[0].std() < 1e-6 * logs[1].std()
    return 0.0 if flat else float(np.corrcoef(logs)[0, 1])
