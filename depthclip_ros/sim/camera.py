# SPDX-License-Identifier: Apache-2.0
"""The simulated camera: pinhole with plumb_bob distortion, as in sensor_msgs/CameraInfo."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

#: Iterations of the fixed-point inversion; 20 reach float32 rounding for |D| of usual lenses.
UNDISTORT_ITERATIONS = 20
#: Pixels in a band of rows that is rendered at once: its arrays stay small enough for the memory
#: allocator to keep, where those of whole images go back to the system and cost page faults.
BAND_PIXELS = 40_000


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
        """The same field of view on another pixel grid (the outer pixel borders coincide)."""
        sx, sy = width / self.width, height / self.height
        return SimCamera(width, height, self.fx * sx, self.fy * sy, (self.cx + 0.5) * sx - 0.5,
                         (self.cy + 0.5) * sy - 0.5, self.distortion)

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ideal image-plane coordinates (X/Z, Y/Z) to distorted ones."""
        k1, k2, p1, p2, k3 = self.distortion
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        return (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y)

    def undistort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of distort, by fixed-point iteration (float64)."""
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
        """Rows and columns that contain every pixel whose ray has x0 <= x <= x1, y0 <= y <= y1."""
        columns = np.flatnonzero((self.column_range[1] >= x0) & (self.column_range[0] <= x1))
        rows = np.flatnonzero((self.row_range[1] >= y0) & (self.row_range[0] <= y1))
        if len(columns) == 0 or len(rows) == 0:
            return slice(0, 0), slice(0, 0)
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


@lru_cache(maxsize=32)
def ray_bands(camera: SimCamera) -> tuple[RayGrid, ...]:
    """The camera's rays in bands of rows, computed once (they depend on the camera alone)."""
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
