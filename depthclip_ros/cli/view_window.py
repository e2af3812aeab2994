# SPDX-License-Identifier: Apache-2.0
"""`depthclip view` in a plain window of OpenCV's: a click asks a patch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..color import UNTRAINED, WARNING_HEIGHT
from ..core.errors import ConfigError, ImageError
from ..core.opencv import cv2
from ..overlay import draw, photo_size
from .model import has_display, to_stderr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from .view import Point, Seen

TITLE = 'depthclip view'
ELSEWHERE = ('Give -o FOLDER for pictures, or --save FILE.rrd to look at a recording elsewhere; '
             'over ssh, ssh -X brings windows along.')
HELP = 'left click: ask a patch; right click: all patches; any other key: next image; q: end'
_WAIT = 30  # milliseconds between looks at the mouse


class Window:
    """What the node's overlay shows, painted anew for every image and every click."""

    def __init__(self, points: Sequence[Point]) -> None:
        """Look whether there is a display; at most one pixel is looked at from the start.

        Raises:
            ConfigError: there are more, or there is no display.

        """
        if len(points) > 1:
            raise ConfigError(f'--point: {len(points)} points, but a window shows one at a time. '
                              'Give one, or -o, --save or --rerun.')
        if not has_display():
            raise ConfigError(f'There is no display for a window. {ELSEWHERE}')
        self._point = points[0] if points else None
        self._seen: Seen | None = None
        self._is_stale = True

    def __enter__(self) -> Self:
        """Open it.

        Raises:
            ConfigError: this OpenCV has no windows.

        """
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
        except cv2.error as error:
            raise ConfigError('This OpenCV opens no window; opencv-python-headless has none: pip '
                              f'install opencv-python instead. {ELSEWHERE}') from error
        cv2.setMouseCallback(TITLE, self._on_mouse)
        to_stderr(HELP)
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        cv2.destroyAllWindows()

    def show(self, seen: Seen) -> bool:
        """Show an image until there is a key, or a live one for a moment; False after q."""
        self._seen, self._is_stale = seen, True
        while True:
            if self._is_stale:
                self._paint(seen)
            key = cv2.waitKey(1 if seen.live else _WAIT)
            is_closed = cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
            if is_closed or (key != -1 and key & 0xFF in (ord('q'), 27)):
                return False
            if seen.live or key != -1:
                return True

    def _paint(self, seen: Seen) -> None:
        self._is_stale, spot = False, None
        if self._point is not None:
            try:
                spot = seen.prediction.patch_at(*self._point)
            except ImageError as error:  # the image before had another size
                to_stderr(f'{seen.image.name}: {error}')
                self._point = None
        if spot is not None and not seen.live:
            print(f'{seen.image.name}: {seen.answers(*spot)}', flush=True)
        cv2.imshow(TITLE, draw(
            seen.image.rgb, seen.prediction, seen.estimator.config, spot,
            [*filter(None, (seen.image.name, seen.estimator.label))],
            '' if seen.is_trained else UNTRAINED))

    def _on_mouse(self, event: int, x: int, y: int, _flags: int, _data: object) -> None:
        if event == cv2.EVENT_RBUTTONDOWN:
            self._point, self._is_stale = None, True
        elif event == cv2.EVENT_LBUTTONDOWN and self._seen is not None:
            height, width = self._seen.image.rgb.shape[:2]
            down, across = photo_size(height, width)
            row = y if self._seen.is_trained else y - WARNING_HEIGHT
            if 0 <= row < down and 0 <= x < across:
                self._point = (x + 0.5) * width / across - 0.5, (row + 0.5) * height / down - 0.5
                self._is_stale = True
