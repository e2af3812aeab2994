# SPDX-License-Identifier: Apache-2.0
"""Depth as pictures for people: colours with a scale in metres, captions, contact sheets.

Every picture is uint8 (H, W, 3) in OpenCV's order, blue green red. A colour always means the same
depth: the limits are given, never taken from the picture at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .core.errors import ConfigError
from .core.opencv import cv2

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Picture = NDArray[np.uint8]

UNTRAINED = 'UNTRAINED WEIGHTS: depth is meaningless'

BACKGROUND = (32, 32, 32)
FOREGROUND = (235, 235, 235)
WARNING = (40, 40, 200)
WARNING_HEIGHT = 31
GAP = 8


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


def color_bar(low: float, high: float, height: int, width: int = 72) -> Picture:
    """Draw the scale of `colorize`: near at the bottom, with about five labels in metres."""
    margin = min(12, height // 4)
    bar = canvas(height, width)
    ramp = np.linspace(high, low, height - 2 * margin, dtype=np.float32)
    strip = colorize(np.repeat(ramp[:, None], width // 4, axis=1), low, high)
    bar[margin:height - margin, :width // 4] = strip
    for metres in _ticks(low, high, max(2, min(6, height // 40))):
        row = margin + (high - metres) / (high - low) * (height - 2 * margin - 1)
        put_text(bar, f'{metres:g} m', (width // 4 + 5, round(row) + 5), 0.4)
    return bar


def side_by_side(
    rgb: Picture, depth: NDArray[np.floating[Any]], low: float, high: float, caption: str = '',
    warning: str = '',
) -> Picture:
    """Put an image, its depth and the depth's scale beside each other.

    Args:
        rgb: uint8 (H, W, 3), BGR like every picture here.
        depth: metres, of any size; shown at the image's.
        low: see `colorize`.
        high: see `colorize`.
        caption: line under the picture.
        warning: line above everything, on red.

    """
    # Nearest: no colours are invented between two depths.
    small = cv2.resize(colorize(depth, low, high), rgb.shape[1::-1],
                       interpolation=cv2.INTER_NEAREST)
    return _framed([rgb, np.asarray(small, np.uint8)], low, high, caption, warning)


def with_bar(
    depth: NDArray[np.floating[Any]], low: float, high: float, caption: str = '',
    warning: str = '',
) -> Picture:
    """Depth in colours beside its scale; the arguments are those of `side_by_side`."""
    return _framed([colorize(depth, low, high)], low, high, caption, warning)


def enlarge(depth: NDArray[np.floating[Any]], low: float, high: float, scale: int) -> Picture:
    """Paint a coarse map with every patch a square of `scale` pixels."""
    small = colorize(depth, low, high)
    return np.repeat(np.repeat(small, scale, axis=0), scale, axis=1)


def contact_sheet(pictures: Sequence[Picture], title: str = '', width: int = 1600) -> Picture:
    """Lay pictures out in rows, all of one size.

    Args:
        pictures: at least one; wide ones go in two columns, the others in more.
        title: line on top.
        width: of the sheet, in pixels.

    """
    if not pictures:
        raise ValueError('A contact sheet needs at least one picture.')
    first = pictures[0]
    columns = min(len(pictures), 2 if first.shape[1] > 1.6 * first.shape[0] else 4)
    cell_width = (width - (columns + 1) * GAP) // columns
    cell_height = max(1, round(max(
        picture.shape[0] * cell_width / picture.shape[1] for picture in pictures)))
    rows = -(-len(pictures) // columns)
    top = 36 if title else 0
    sheet = canvas(top + rows * (cell_height + GAP) + GAP, width)
    if title:
        put_text(sheet, title, (GAP, 25), 0.6)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        scale = min(cell_width / picture.shape[1], cell_height / picture.shape[0])
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        y, x = top + GAP + row * (cell_height + GAP), GAP + column * (cell_width + GAP)
        sheet[y:y + size[1], x:x + size[0]] = small
    return sheet


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


def write_picture(path: Path | str, picture: NDArray[Any]) -> None:
    """Write a picture, or one channel of 8 or 16 bits.

    Raises:
        ConfigError: it cannot be written.

    """
    if not cv2.imwrite(str(path), picture):
        raise ConfigError(f'{path}: cannot be written; is the disk full?')


def _framed(
    pictures: Sequence[Picture], low: float, high: float, caption: str, warning: str,
) -> Picture:
    """Join the pictures and the scale, with the warning above and the caption below."""
    height = pictures[0].shape[0]
    gap = canvas(height, GAP)
    parts = [part for picture in pictures for part in (picture, gap)]
    joined = np.hstack([*parts, color_bar(low, high, height)])
    if warning:
        stripe = canvas(WARNING_HEIGHT, joined.shape[1])
        write_warning(stripe, warning)
        joined = np.vstack([stripe, joined])
    if not caption:
        return joined
    line = canvas(28, joined.shape[1])
    put_text(line, caption, (GAP, 19), _fitting(caption, 0.5, 1, line.shape[1]))
    return np.vstack([joined, line])


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round depths inside the scale, at most about `count` steps apart."""
    raw = (high - low) / count
    magnitude = 10.0 ** np.floor(np.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = np.ceil(low / step - 1e-6)
    last = np.floor(high / step + 1e-6)
    return [round(float(k * step), 6) for k in np.arange(first, last + 1)]


def canvas(height: int, width: int) -> Picture:
    """Make an empty picture."""
    picture = np.empty((height, width, 3), np.uint8)
    cv2.rectangle(picture, (0, 0), (width, height), BACKGROUND, -1)  # ten times NumPy's speed
    return picture


def text_width(text: str, scale: float, thickness: int) -> int:
    """Width in pixels of what `put_text` writes."""
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0])


def _fitting(text: str, scale: float, thickness: int, width: int) -> float:
    """The largest scale up to this one at which a text fits a width, but no illegible one."""
    while scale > 0.25 and text_width(text, scale, thickness) > width - 2 * GAP:
        scale -= 0.05
    return scale


def put_text(
    picture: Picture, text: str, origin: tuple[int, int], scale: float, thickness: int = 1,
) -> None:
    """Write a line, from the left end of its base."""
    cv2.putText(picture, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, FOREGROUND, thickness,
                cv2.LINE_AA)
