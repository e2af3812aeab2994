# SPDX-License-Identifier: Apache-2.0
"""OpenCV, imported by the first who needs it: 25 MiB and 40 ms of a node's start.

Pictures in colour, lens distortion, and images that are compressed or in another encoding than
rgb8 need it; depth and points of rgb8 images do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ['cv2']

if TYPE_CHECKING:
    import cv2
else:
    class _OpenCV:
        """Everything of cv2 under its own name."""

        def __getattr__(self, name: str) -> Any:
            try:
                import cv2 as module
            except ImportError as error:  # such as for a library of desktops that is not here
                raise ImportError(f"{error}. 'depthclip doctor' says how to repair OpenCV.",
                                  name='cv2') from error
            if not vars(self):
                # It logs some findings, for every image again; our errors say them, too.
                getattr(module, 'setLogLevel', module.utils.logging.setLogLevel)(0)
                vars(self)['module'] = module
            return getattr(module, name)

    cv2 = _OpenCV()
