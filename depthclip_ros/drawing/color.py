# SPDX-License-Identifier: Apache-2.0
"""Pictures of depth: colours with a scale in metres, captions, contact sheets.

Pictures are uint8 (H, W, 3) in OpenCV's order, blue green red. A `Scale` belongs to a run, not to
a single picture, so that a colour always means the same depth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arguments import COLORMAPS
from ..core.files import printable
from ..core.opencv import cv2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Picture = NDArray[np.uint8]

UNTRAINED = 'UNTRAINED WEIGHTS: depth is meaningless'

BACKGROUND = (32, 32, 32)
FOREGROUND = (235, 235, 235)
WARNING = (40, 40, 200)
WARNING_HEIGHT = 31
GAP = 8
BAR_WIDTH = 88
UNKNOWN = (208, 208, 208)  # no depth; no colour of the maps is near it
VIRIDIS = COLORMAPS[0]


class Scale(NamedTuple):
    """Colours of depth, evenly in its logarithm.

    Depth below `low` has the nearest colour, depth above `high` the farthest.
    """

    low: float  # [m], greater than 0
    high: float  # [m]
    colormap: str = VIRIDIS

    def ticks(self, median: float = math.nan, min_distance: float = 0.1) -> list[float]:
        """Choose labels in metres: the ends, the median, round numbers at a minimum distance."""
        labels = [self.low, self.high]
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)))
        for metres in (median, *(m * 10.0 ** e for m in (1, 2, 5, 3, 7, 1.5) for e in exponents)):
            if self.low < metres < self.high and all(
                    abs(self.share(metres) - self.share(label)) >= min_distance
                    for label in labels):
                labels.append(metres)
        return sorted(labels)

    def share(self, metres: float) -> float:
        """Compute the position on the scale, 0 at `low` and 1 at `high`."""
        return math.log(metres / self.low) / math.log(self.high / self.low)


def colorize(depth: NDArray[np.floating[Any]], scale: Scale) -> Picture:
    """Paint depth: near is bright (red with turbo), far is dark, no depth (NaN) is light grey.

    Args:
        depth: (H, W) in metres; -Inf is nearer than all, +Inf farther.
        scale: of the colours.

    Returns:
        uint8 (H, W, 3), BGR.

    Raises:
        ValueError: the scale is empty or begins at 0, or `depth` is not a plane.

    """
    low, high, colormap = scale
    if not 0.0 < low < high:
        raise ValueError(f'The colour scale needs 0 < low < high; got {low} to {high} m.')
    if depth.ndim != 2:
        raise ValueError(f'Depth must be of shape (H, W); got {depth.shape}.')
    # One pass in float32, in place: a live topic is painted with this.
    level = np.clip(depth, low, high, dtype=np.float32, casting='same_kind')
    holes = np.isnan(level)
    level[holes] = high
    np.log(level, out=level)
    level -= np.float32(math.log(high))
    level *= np.float32(255.0 / math.log(low / high))
    level += np.float32(0.5)
    picture = np.asarray(cv2.applyColorMap(
        level.astype(np.uint8), getattr(cv2, f'COLORMAP_{colormap.upper()}')), np.uint8)
    picture[holes] = UNKNOWN
    return picture


def bins_scale(span: tuple[float, float], ratio: float = 1.0, colormap: str = VIRIDIS) -> Scale:
    """Make a constant scale from the ends of bins in metres, times the camera's `focal_ratio`."""
    low, high = span if span[0] < span[1] else (span[0] / 2, span[1] * 2)
    return Scale(low * ratio, high * ratio, colormap)


def depth_scale(
    depths: Iterable[NDArray[np.floating[Any]]], colormap: str = VIRIDIS,
    limits: tuple[float, float] | None = None,
) -> Scale:
    """Make a scale from limits in metres; None: quantiles 2 and 98 % of a run's depth."""
    if limits:
        return Scale(*limits, colormap)
    valid = np.concatenate([np.empty(0), *(d[np.isfinite(d) & (d > 0)] for d in depths)])
    low, high = (float(v) for v in np.percentile(valid, (2, 98))) if valid.size else (1.0, 2.0)
    return Scale(low, max(high, 1.05 * low), colormap)


def color_bar(scale: Scale, height: int, median: float = math.nan) -> Picture:
    """Draw the scale: near at the bottom, labels at both ends, and a mark at the median."""
    margin = min(12, height // 4)
    bar, bar_width, length = canvas(height, BAR_WIDTH), BAR_WIDTH // 6, max(1, height - 2 * margin)
    ramp = np.geomspace(scale.high, scale.low, length)
    bar[margin:margin + length, :bar_width] = colorize(ramp[:, None], scale)

    def row(metres: float) -> int:
        return margin + round((1 - scale.share(metres)) * (length - 1))
    if scale.low <= median <= scale.high:
        bar[max(0, row(median) - 1):row(median) + 2, :bar_width + 4] = FOREGROUND
    for metres in scale.ticks(median, min_distance=min(1.0, 18 / length)):
        put_text(bar, f'{round(metres, 2):g} m', (bar_width + 6, row(metres) + 5), 0.48,
                 thickness=2 if metres == median else 1)
    return bar


def side_by_side(
    depth: NDArray[np.floating[Any]], scale: Scale, image: Picture | None = None,
    caption: str = '', warning: str = '',
) -> Picture:
    """Put an image (optional), its depth and the colour scale side by side.

    Args:
        depth: (h, w) metres, resized to the image.
        scale: of the colours.
        image: uint8 (H, W, 3), BGR.
        caption: lines under the picture.
        warning: line above everything, on red.

    """
    painted = colorize(depth, scale)
    parts = [painted]
    if image is not None:
        # Nearest: no colours are invented between two depths.
        painted = np.asarray(cv2.resize(
            painted, image.shape[1::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
        parts = [image, canvas(len(image), GAP), painted]
    joined = np.hstack([*parts, canvas(len(painted), GAP), color_bar(
        scale, len(painted), median_of(depth))])
    for text in caption.splitlines():
        line = canvas(28, joined.shape[1])
        put_text(line, text, (GAP, 19), _fitting_scale(text, 0.5, 1, line.shape[1]))
        joined = np.vstack([joined, line])
    return with_warning(joined, warning) if warning else joined


def median_of(depth: NDArray[np.floating[Any]]) -> float:
    """Compute the median of finite depth [m]; NaN without any."""
    valid = depth[np.isfinite(depth)]
    return float(np.median(valid)) if valid.size else math.nan


def contact_sheet(pictures: Sequence[Picture], title: str, width: int = 1600) -> Picture:
    """Arrange pictures of one size in rows under a title; `width` is the sheet's, in pixels."""
    height, picture_width = pictures[0].shape[:2]
    columns = min(len(pictures), 2 if picture_width > 1.6 * height else 4)
    cell = (width - GAP) // columns
    size = cell - GAP, max(1, round((cell - GAP) * height / picture_width))
    top = 36 + GAP
    sheet = canvas(top + -(-len(pictures) // columns) * (size[1] + GAP), width)
    put_text(sheet, title, (GAP, 25), 0.6)
    for index, picture in enumerate(pictures):
        y = top + index // columns * (size[1] + GAP)
        x = GAP + index % columns * cell
        sheet[y:y + size[1], x:x + size[0]] = cv2.resize(
            picture, size, interpolation=cv2.INTER_AREA)
    return sheet


def with_warning(picture: Picture, text: str) -> Picture:
    """Add a red stripe with `text` in white above a picture."""
    stripe = canvas(WARNING_HEIGHT, picture.shape[1])
    write_warning(stripe, text)
    return np.vstack([stripe, picture])


def write_warning(picture: Picture, text: str) -> None:
    """Write `text` in white on a red stripe across the top of `picture`, in place."""
    scale = _fitting_scale(text, 0.65, 2, picture.shape[1])
    stripe = picture[:round(WARNING_HEIGHT * scale / 0.65)]
    stripe[:] = WARNING
    x = max(0, (picture.shape[1] - text_width(text, scale, 2)) // 2)
    put_text(picture, text, (x, round(len(stripe) * 0.7)), scale, thickness=2)


def write_note(picture: Picture, text: str) -> None:
    """Write `text` small on a dark stripe along the bottom of `picture`, in place."""
    scale = _fitting_scale(text, 0.45, 1, picture.shape[1])
    stripe = picture[-max(8, round(40 * scale)):]
    stripe[:] = BACKGROUND
    put_text(stripe, text, (GAP, round(len(stripe) * 0.7)), scale)


def png(picture: NDArray[Any]) -> bytes:
    """Encode a picture, or one channel of 8 or 16 bits, as PNG."""
    return bytes(cv2.imencode('.png', picture)[1].tobytes())


def canvas(height: int, width: int) -> Picture:
    """Make an empty picture."""
    picture = np.empty((height, width, 3), np.uint8)
    cv2.rectangle(picture, (0, 0), (width, height), BACKGROUND, -1)  # ten times NumPy's speed
    return picture


def text_width(text: str, scale: float, thickness: int) -> int:
    """Measure the width in pixels of a text of `put_text`."""
    return int(cv2.getTextSize(printable(text), cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0])


def put_text(
    picture: Picture, text: str, origin: tuple[int, int], scale: float, thickness: int = 1,
) -> None:
    """Write a line; `origin` is the left end of its baseline."""
    cv2.putText(picture, printable(text), origin, cv2.FONT_HERSHEY_SIMPLEX, scale, FOREGROUND,
                thickness, cv2.LINE_AA)


def _fitting_scale(text: str, scale: float, thickness: int, width: int) -> float:
    """Reduce a font scale until a text fits a width, but not below legibility."""
    while scale > 0.25 and text_width(text, scale, thickness) > width - 2 * GAP:
        scale -= 0.05
    return scale
