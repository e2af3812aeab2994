# SPDX-License-Identifier: Apache-2.0
"""`depthclip view` in a plain window of OpenCV's: a click asks a patch."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..core.errors import ConfigError, ImageError
from .model import to_stderr

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ..color import Picture
    from .view import Point, Seen

TITLE = 'depthclip view'
HELP = ('left click: ask a patch (up to four), right click: all patches again, any other key: '
        'next image, q: end')
_DPI = 130
_PROBE = 'import cv2; cv2.namedWindow("depthclip"); cv2.waitKey(1)'
_WAIT = 30  # milliseconds between looks at the mouse


def require_display() -> None:
    """Refuse to go on where OpenCV cannot open a window.

    Qt ends the process that it cannot serve, so another one tries.

    Raises:
        ConfigError: with what to do instead.

    """
    tried = subprocess.run(  # noqa: PLW1510 - the code is looked at
        [sys.executable, '-c', _PROBE], capture_output=True, text=True, errors='replace')
    if tried.returncode:
        reason = next((line for line in tried.stderr.splitlines() if 'display' in line.lower()
                       or 'implemented' in line), f'code {tried.returncode}')
        raise ConfigError(
            f'OpenCV opens no window here ({reason.strip()}). Give -o FOLDER for pictures, or '
            '--save FILE.rrd for a recording to look at elsewhere; over ssh, ssh -X brings '
            'windows along. opencv-python-headless has none: pip install opencv-python instead.')


class Window:
    """One window, whose picture is drawn anew for every image and every click."""

    def __init__(self, points: list[Point]) -> None:
        """Look whether there can be a window.

        Args:
            points: pixels to look at from the start.

        Raises:
            ConfigError: there can be none.

        """
        require_display()
        self._points = list(points)
        self._stale = True
        self._figure: Any = None
        self._seen: Seen | None = None

    def __enter__(self) -> Self:
        """Open it."""
        cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
        cv2.setMouseCallback(TITLE, self._on_mouse)
        to_stderr(HELP)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        cv2.destroyAllWindows()

    def show(self, seen: Seen) -> bool:
        """Show an image until there is a key, or a live one for a moment.

        Returns:
            False: the user has had enough.

        """
        self._seen, self._stale = seen, True
        while True:
            if self._stale:
                cv2.imshow(TITLE, self._draw(seen))
            key = cv2.waitKey(1 if seen.live else _WAIT)
            closed = cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
            if closed or key & 0xFF in (ord('q'), 27):
                return False
            if seen.live or key != -1:
                return True

    def _draw(self, seen: Seen) -> Picture:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from offline_eval.report import figures
        self._points = [point for point in self._points if self._is_in(seen, point)]
        spots = [seen.spot(point) for point in self._points]
        with figures.look():
            self._figure = seen.figure(spots)
            self._figure.set_dpi(_DPI)
            canvas: Any = FigureCanvasAgg(self._figure)
            canvas.draw()
        self._stale = False
        for spot in spots:
            print(f'{seen.name}: {seen.answers(spot)}', flush=True)
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., 2::-1])

    @staticmethod
    def _is_in(seen: Seen, point: Point) -> bool:
        try:
            seen.spot(point)
        except ImageError as error:  # the images before had another size
            to_stderr(f'{seen.name}: {error}')
            return False
        return True

    def _on_mouse(self, event: int, x: int, y: int, _flags: int, _data: object) -> None:
        from offline_eval.report.figures import PATCHES
        if event == cv2.EVENT_RBUTTONDOWN:
            self._points, self._stale = [], True
        elif event == cv2.EVENT_LBUTTONDOWN:
            point = self._pixel(x, y)
            if point is not None:
                self._points, self._stale = [*self._points, point][-len(PATCHES):], True

    def _pixel(self, x: int, y: int) -> Point | None:
        """Pixel of the image under a pixel of the window, in any of its pictures; or None."""
        seen, figure = self._seen, self._figure
        if seen is None or figure is None:
            return None
        window, place = seen.prediction.window, (x + 0.5, figure.bbox.height - y - 0.5)
        for axes in figure.axes:
            if not axes.images or axes.get_label() == '<colorbar>' \
                    or not axes.bbox.contains(*place):
                continue
            left, right = axes.get_xlim()
            bottom, top = axes.get_ylim()
            u, v = axes.transData.inverted().transform(place)
            return (window.x + (u - left) / (right - left) * window.width - 0.5,
                    window.y + (v - top) / (bottom - top) * window.height - 0.5)
        return None
