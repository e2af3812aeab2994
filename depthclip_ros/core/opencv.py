# SPDX-License-Identifier: Apache-2.0
"""OpenCV, imported on first use, since it costs a node's start 25 MiB and 40 ms.

Other encodings than rgb8, pictures and lens distortion need it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

__all__ = ['cv2', 'undistort_points']

if TYPE_CHECKING:
    import cv2
    from numpy.typing import NDArray
else:
    class _OpenCV:
        """Forwards every name to the module cv2."""

        @cached_property
        def _module(self) -> Any:
            import cv2 as module
            # OpenCV logs per image what our errors report. OpenCV 4 has the function at the top,
            # OpenCV 5 in utils.logging.
            (module if hasattr(module, 'setLogLevel') else module.utils.logging).setLogLevel(0)
            return module

        def __getattr__(self, name: str) -> Any:
            return getattr(self._module, name)

    cv2 = _OpenCV()

# OpenCV's COUNT + EPS, iterations, and the error in normalised coordinates.
_TERMINATION = 3, 200, 1e-12


def undistort_points(
    distorted: NDArray[np.float64], D: NDArray[np.float64], module: Any = cv2,
) -> NDArray[np.float64]:
    """Undo lens distortion by OpenCV's iteration, which may diverge: reproject its result.

    Args:
        distorted: (N, 2) normalised coordinates of pixels, N > 0.
        D: 4, 5, 8, 12 or 14 coefficients.
        module: OpenCV. Only OpenCV 4 has a separate function for more than five iterations.

    Returns:
        (N, 2) x/z, y/z of rays.

    """
    points, K = np.ascontiguousarray(distorted[:, None]), np.eye(3)
    if hasattr(module, 'undistortPointsIter'):
        ideal = module.undistortPointsIter(points, K, D, None, None, _TERMINATION)
    else:
        ideal = module.undistortPoints(points, K, D, criteria=_TERMINATION)
    return np.asarray(ideal, np.float64).reshape(-1, 2)
