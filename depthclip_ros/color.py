# SPDX-License-Identifier: Apache-2.0
"""Depth as pictures for people: colours with a scale in metres, captions, contact sheets.

Every picture is uint8 (H, W, 3) in OpenCV's order, blue green red. A colour always means the same
depth: the limits are given, never taken from the picture at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .core.files import printable
from .core.opencv import cv2

if TYPE_CHECKING:
    from collections.abc import Sequence

Picture = NDArray[np.uint8]

UNTRAINED = 'UNTRAINED WEIGHTS: depth is meaningless'

BACKGROUND = (32, 32, 32)
FOREGROUND = (235, 235, 235)
WARNING = (40, 40, 200)
WARNING_HEIGHT = 31
GAP = 8
BAR_WIDTH = 72


def colorize(depth: NDArray[np.floating[Any]], low: float, high: float) -> Picture:
    """Paint depth with the turbo map: near is red, far is blue, no depth (NaN) is black.

    Args:
        depth: (H, W) in metres.
        low: depth of the warmest colour [m]; what is nearer has that colour too, so has -Inf.
        high: depth of the coldest colour [m]; what is farther has that colour too, so has +Inf.

    Returns:
        uint8 (H, W, 3), BGR.

    Raises:
        ValueError: `low` is not less than `high`, or `depth` is not a plane.

    """
    if not low < high:
        raise ValueError(f'The colour scale needs low < high; got {low} to {high} m.')
    if depth.ndim != 2:
        raise ValueError(f'Depth must be of shape (H, W); got {depth.shape}.')
    # One pass in float32, in place: a live topic is painted with this.
    level = np.multiply(depth, np.float32(-255.0 / (high - low)), dtype=np.float32)
    level += np.float32(255.0 * high / (high - low))
    np.clip(level, 0.0, 255.0, out=level)
    holes = np.isnan(level)
    level[holes] = 0.0
    picture = np.asarray(cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_TURBO), np.uint8)
    picture[holes] = 0
    return picture


def color_range(bins: Sequence[float]) -> tuple[float, float]:
    """Limits of `colorize` for depth that is a mean of these ascending bins."""
    return (bins[0] if bins[0] < bins[-1] else 0.0), bins[-1]


def known_range(depth: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Limits of colours for nearly all of what is known, in metres."""
    known = depth[np.isfinite(depth)]
    low, high = (float(v) for v in np.percentile(known, (2, 98))) if known.size else (0.0, 1.0)
    return low, max(high, low + 0.1)


def color_bar(low: float, high: float, height: int) -> Picture:
    """Draw the scale of `colorize`: near at the bottom, with about five round labels in metres."""
    margin = min(12, height // 4)
    bar = canvas(height, BAR_WIDTH)
    ramp = np.linspace(high, low, height - 2 * margin, dtype=np.float32)
    bar[margin:height - margin, :BAR_WIDTH // 4] = colorize(ramp[:, None], low, high)
    least = (high - low) / max(2, min(6, height // 40))
    power = 10.0 ** np.floor(np.log10(least))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= 0.999 * least)
    for metres in step * np.arange(np.ceil(low / step - 1e-6), np.floor(high / step + 1e-6) + 1):
        row = margin + (high - metres) / (high - low) * (height - 2 * margin - 1)
        put_text(bar, f'{metres:g} m', (BAR_WIDTH // 4 + 5, round(row) + 5), 0.4)
    return bar


def side_by_side(
    depth: NDArray[np.floating[Any]], low: float, high: float, image: Picture | None = None,
    caption: str = '', warning: str = '',
) -> Picture:
    """Put an image, if it is given, its depth and the depth's scale beside each other.

    Args:
        depth: metres, of any size; shown at the image's.
        low: see `colorize`.
        high: see `colorize`.
        image: uint8 (H, W, 3), BGR.
        caption: line under the picture.
        warning: line above everything, on red.

    """
    painted = colorize(depth, low, high)
    parts = [painted]
    if image is not None:
        # Nearest: no colours are invented between two depths.
        painted = np.asarray(cv2.resize(
            painted, image.shape[1::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
        parts = [image, canvas(len(image), GAP), painted]
    joined = np.hstack([*parts, canvas(len(painted), GAP), color_bar(low, high, len(painted))])
    if caption:
        line = canvas(28, joined.shape[1])
        put_text(line, caption, (GAP, 19), _fitting(caption, 0.5, 1, line.shape[1]))
        joined = np.vstack([joined, line])
    return warned(joined, warning) if warning else joined


def contact_sheet(pictures: Sequence[Picture], title: str, width: int = 1600) -> Picture:
    """Lay pictures of one size out in rows, under a title, on a sheet of a width in pixels."""
    height, across = pictures[0].shape[:2]
    columns = min(len(pictures), 2 if across > 1.6 * height else 4)
    cell = (width - GAP) // columns
    size = cell - GAP, max(1, round((cell - GAP) * height / across))
    top = 36 + GAP
    sheet = canvas(top + -(-len(pictures) // columns) * (size[1] + GAP), width)
    put_text(sheet, title, (GAP, 25), 0.6)
    for index, picture in enumerate(pictures):
        y = top + index // columns * (size[1] + GAP)
        x = GAP + index % columns * cell
        sheet[y:y + size[1], x:x + size[0]] = cv2.resize(
            picture, size, interpolation=cv2.INTER_AREA)
    return sheet


def warned(picture: Picture, text: str) -> Picture:
    """A picture with `text` in white on a red stripe above it."""
    stripe = canvas(WARNING_HEIGHT, picture.shape[1])
    write_warning(stripe, text)
    return np.vstack([stripe, picture])


def write_warning(picture: Picture, text: str) -> None:
    """Write `text` in white on a red stripe across the top of `picture`, in place."""
    scale = _fitting(text, 0.65, 2, picture.shape[1])
    stripe = picture[:round(WARNING_HEIGHT * scale / 0.65)]
    stripe[:] = WARNING
    x = max(0, (picture.shape[1] - text_width(text, scale, 2)) // 2)
    put_text(picture, text, (x, round(len(stripe) * 0.7)), scale, thickness=2)


def write_note(picture: Picture, text: str) -> None:
    """Write `text` small on a dark stripe along the bottom of `picture`, in place."""
    scale = _fitting(text, 0.45, 1, picture.shape[1])
    stripe = picture[-max(8, round(40 * scale)):]
    stripe[:] = BACKGROUND
    put_text(stripe, text, (GAP, round(len(stripe) * 0.7)), scale)


def png(picture: NDArray[Any]) -> bytes:
    """PNG of a picture, or of one channel of 8 or 16 bits."""
    return bytes(cv2.imencode('.png', picture)[1].tobytes())


def canvas(height: int, width: int) -> Picture:
    """Make an empty picture."""
    picture = np.empty((height, width, 3), np.uint8)
    cv2.rectangle(picture, (0, 0), (width, height), BACKGROUND, -1)  # ten times NumPy's speed
    return picture


def text_width(text: str, scale: float, thickness: int) -> int:
    """Width in pixels of what `put_text` writes."""
    return int(cv2.getTextSize(printable(text), cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0])


def put_text(
    picture: Picture, text: str, origin: tuple[int, int], scale: float, thickness: int = 1,
) -> None:
    """Write a line, from the left end of its base."""
    cv2.putText(picture, printable(text), origin, cv2.FONT_HERSHEY_SIMPLEX, scale, FOREGROUND,
                thickness, cv2.LINE_AA)


def _fitting(text: str, scale: float, thickness: int, width: int) -> float:
    """The largest scale up to this one at which a text fits a width, but no illegible one."""
    while scale > 0.25 and text_width(text, scale, thickness) > width - 2 * GAP:
        scale -= 0.05
    return scale
