# SPDX-License-Identifier: Apache-2.0
"""OpenCV, imported by the first who needs it: 25 MiB and 40 ms of a node's start.

Depth and points of rgb8 images do not need it; other encodings, pictures and distortion do.
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
        """Everything of cv2 under its own name."""

        @cached_property
        def _module(self) -> Any:
            import cv2 as module
            # It logs some findings, for every image again; our errors say them, too. The function
            # is at the top in OpenCV 4, which has no utils.logging, and there in OpenCV 5.
            (module if hasattr(module, 'setLogLevel') else module.utils.logging).setLogLevel(0)
            return module

        def __getattr__(self, name: str) -> Any:
            return getattr(self._module, name)

    cv2 = _OpenCV()

_UNTIL = 3, 200, 1e-12  # a number of iterations, or of an error in normalised coordinates


def undistort_points(
    distorted: NDArray[np.float64], D: NDArray[np.float64], module: Any = cv2,
) -> NDArray[np.float64]:
    """Undo lens distortion by OpenCV's iteration, which may end nowhere: project its answer back.

    Args:
        distorted: (N, 2) normalised coordinates of pixels, N > 0.
        D: 4, 5, 8, 12 or 14 coefficients.
        module: OpenCV. Only OpenCV 4 has a function of its own for more than five iterations.

    Returns:
        (N, 2) x/z, y/z of rays.

    """
    points, K = np.ascontiguousarray(distorted[:, None]), np.eye(3)
    if hasattr(module, 'undistortPointsIter'):
        ideal = module.undistortPointsIter(points, K, D, None, None, _UNTIL)
    else:
        ideal = module.undistortPoints(points, K, D, criteria=_UNTIL)
    return np.asarray(ideal, np.float64).reshape(-1, 2)
