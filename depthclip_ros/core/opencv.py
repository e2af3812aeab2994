# SPDX-License-Identifier: Apache-2.0
"""OpenCV, imported by the first who needs it: 25 MiB and 40 ms of a node's start.

Depth and points of rgb8 images do not need it; other encodings, pictures and distortion do.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

__all__ = ['cv2']

if TYPE_CHECKING:
    import cv2
else:
    class _OpenCV:
        """Everything of cv2 under its own name."""

        @cached_property
        def _module(self) -> Any:
            import cv2 as module
            # It logs some findings, for every image again; our errors say them, too.
            getattr(module, 'setLogLevel', module.utils.logging.setLogLevel)(0)
            return module

        def __getattr__(self, name: str) -> Any:
            return getattr(self._module, name)

    cv2 = _OpenCV()
