# SPDX-License-Identifier: Apache-2.0
"""How much each word answers, painted on the image itself: the paper's Figure 4, live.

Quick enough for every image of a stream. `depthclip view` draws the same for print.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .color import (
    BACKGROUND,
    BAR_WIDTH,
    FOREGROUND,
    GAP,
    Picture,
    canvas,
    color_bar,
    color_range,
    colorize,
    put_text,
    text_width,
    warned,
)
from .core.opencv import cv2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .core.config import DepthConfig
    from .core.estimator import DepthPrediction

    Float32 = NDArray[np.float32]

MOST_CHARTS = 6, 8  # rows and columns of small charts on a picture
MOST_WORDS = 24  # that are listed beside it

_ANSWERS = 3  # words of a patch that are told in a line
_LARGEST = 576, 768  # height and width of the image in the picture
_PANEL = 330  # pixels beside it
_LEAST_CHART = 26  # pixels a side
_LINE = 19  # pixels
_SMALL, _TINY = 0.42, 0.32  # sizes of letters
_FRAME = (220, 40, 220)  # of the patch that is looked at


def chart_patches(rows: int, columns: int) -> list[tuple[int, int]]:
    """Some patches, evenly spread over a grid of them, as (row, column)."""
    down, across = min(rows, MOST_CHARTS[0]), min(columns, MOST_CHARTS[1])
    return [((2 * i + 1) * rows // (2 * down), (2 * j + 1) * columns // (2 * across))
            for i in range(down) for j in range(across)]


def depth_words(prediction: DepthPrediction, row: int, column: int) -> str:
    """Depth of a patch in two lines: with its standard deviation if that is known, and spread."""
    depth = prediction.patch_depth[row, column]
    said = 'no depth' if np.isnan(depth) else f'{depth:.2f} m'
    if prediction.patch_stddev is not None:
        said += f' ± {prediction.patch_stddev[row, column]:.2f} m'
    return f'{said}\n(spread {prediction.spread[row, column]:.2f} m)'


def answer_words(
    prediction: DepthPrediction, row: int, column: int, tokens: Sequence[str],
) -> str:
    """The words that answer most in a patch, and how much."""
    weights = prediction.weights[:, row, column]
    return ', '.join(f'{tokens[k]} {weights[k]:.0%}'
                     for k in np.argsort(-weights, kind='stable')[:_ANSWERS])


def scene_words(prediction: DepthPrediction) -> str:
    """What kind of scene it is, and how sure that is; '' without scenes."""
    scene = prediction.scene
    if scene is None:
        return ''
    return f'scene: {scene.name or "uncertain"} ({float(np.max(scene.probabilities)):.0%})'


class _Look(NamedTuple):
    """What all parts of the picture have in common."""

    prediction: DepthPrediction
    tokens: Sequence[str]
    metres: Sequence[float]  # of each word in this image
    colors: NDArray[np.uint8]  # (K, 3)
    span: tuple[float, float]  # metres of the colours
    spot: tuple[int, int] | None


def draw(
    rgb: NDArray[np.uint8], prediction: DepthPrediction, config: DepthConfig,
    spot: tuple[int, int] | None = None, lines: Sequence[str] = (), warning: str = '',
) -> Picture:
    """Paint how much each word answers: in a grid of patches, and in one of them at large.

    In each chart there is a column a word, from near to far, in the colour of its depth; full is
    weight 1. Below it stands the depth of the patch, with its standard deviation if that is known.

    Args:
        rgb: (H, W, 3), the image.
        prediction: of it.
        config: with which it was made.
        spot: row and column of the patch that is looked at; None: the mean of all.
        lines: more to say, beside the image.
        warning: on red, above everything.

    Returns:
        uint8 (h, w, 3), BGR.

    """
    metres = prediction.word_depths(config)
    scale = prediction.focal_ratio * prediction.adjustment.scale
    span = color_range([scale * end for end in config.depth_span])
    colors = colorize(np.array([metres], np.float32), *span)[0]
    look = _Look(prediction, config.tokens, metres, colors, span, spot)
    photo = _photo(rgb, look)
    panel = _panel(look, [*filter(None, [scene_words(prediction)]), *lines])
    result = canvas(max(len(photo), len(panel)), photo.shape[1] + _PANEL)
    result[:len(photo), :photo.shape[1]] = photo
    result[:len(panel), photo.shape[1]:] = panel
    return warned(result, warning) if warning else result


def photo_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which `draw` shows an image, on the left, below the warning."""
    scale = min(_LARGEST[0] / height, _LARGEST[1] / width)
    return max(1, round(scale * height)), max(1, round(scale * width))


def _photo(rgb: NDArray[np.uint8], look: _Look) -> Picture:
    """The image with charts on it."""
    size = photo_size(*rgb.shape[:2])
    smaller = size[0] < len(rgb)
    photo = np.asarray(cv2.cvtColor(cv2.resize(
        rgb, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR,
    ), cv2.COLOR_RGB2BGR), np.uint8)
    grid = look.prediction.patch_depth.shape
    height, width = size[0] / grid[0], size[1] / grid[1]
    box = [round(min(max(0.84 * patch, _LEAST_CHART), 0.6 * length / min(count, most)))
           for patch, length, count, most in zip(
               (height, width), size, grid, MOST_CHARTS, strict=True)]
    for row, column in chart_patches(*grid):
        if np.isfinite(look.prediction.spread[row, column]):
            _chart(photo, look, (row, column), box, (
                round((row + 0.5) * height), round((column + 0.5) * width)))
    _mark(photo, look)
    return photo


def _chart(
    photo: Picture, look: _Look, patch: tuple[int, int], box: Sequence[int],
    middle: tuple[int, int],
) -> None:
    """One patch's answer, and its depth below."""
    height, width = box
    top, left = (max(0, place - length // 2) for place, length in zip(middle, box, strict=True))
    under = photo[top:top + height, left:left + width]
    if not height or not width or under.shape[:2] != (height, width):
        return
    under[:] = (0.25 * under + 0.75 * 255).astype(np.uint8)
    weights = look.prediction.weights[:, patch[0], patch[1]]
    edges = np.arange(len(weights) + 1) * width // len(weights)
    for k, tall in enumerate(np.rint(weights * height).astype(int)):
        under[height - tall:, edges[k]:max(edges[k + 1], edges[k] + 1)] = look.colors[k]
    cv2.rectangle(photo, (left - 1, top - 1), (left + width, top + height), BACKGROUND, 1)
    depth, stddev = look.prediction.patch_depth[patch], look.prediction.patch_stddev
    text = '-' if np.isnan(depth) else f'{depth:.1f}'
    if stddev is not None:
        text += f'+-{stddev[patch]:.1f}'
    wide = text_width(text, _TINY, 1)
    x, y = middle[1] - wide // 2, top + height + 11
    photo[max(0, y - 9):y + 3, max(0, x - 2):x + wide + 2] = BACKGROUND
    put_text(photo, text, (x, y), _TINY)


def _mark(picture: Picture, look: _Look) -> None:
    """Frame the patch that is looked at in a picture of the whole image."""
    if look.spot is None:
        return
    rows, columns = look.prediction.patch_depth.shape
    height, width = picture.shape[0] / rows, picture.shape[1] / columns
    (y, x) = look.spot
    for color, thickness in ((FOREGROUND, 4), (_FRAME, 2)):
        cv2.rectangle(picture, (round(x * width), round(y * height)), (
            round((x + 1) * width) - 1, round((y + 1) * height) - 1), color, thickness)


def _panel(look: _Look, lines: Sequence[str]) -> Picture:
    """What stands beside the image: one line a word, what is known, and depth in colours."""
    prediction, spot = look.prediction, look.spot
    if spot is None:
        seen = np.isfinite(prediction.spread)
        weights = prediction.weights[:, seen].mean(axis=1) if seen.any() \
            else np.zeros(len(look.tokens), np.float32)
        said = ['mean of all patches']
    else:
        weights = prediction.weights[:, spot[0], spot[1]]
        said = [f'clicked: row {spot[0]}, column {spot[1]}', *depth_words(
            prediction, *spot).replace('±', '+-').split('\n')]
    listed = np.sort(np.argsort(-weights, kind='stable')[:MOST_WORDS])
    left_out = len(look.tokens) - len(listed)
    behind = [*([f'and {left_out} words that answer less'] if left_out else []), *lines]
    depth = _depth(look)
    rows: list[str | int] = [*said, *map(int, listed), *behind]
    high = (len(rows) + 1) * _LINE + GAP
    panel = canvas(high + len(depth) + GAP, _PANEL)
    panel[high:high + len(depth), GAP:GAP + depth.shape[1]] = depth
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            _write(panel, row, number * _LINE, _PANEL - 2 * GAP)
        else:
            _bar(panel, number * _LINE, look, row, float(weights[row]))
    return panel


def _bar(panel: Picture, y: int, look: _Look, k: int, weight: float) -> None:
    """One word: itself, its metres, its weight."""
    _write(panel, look.tokens[k], y, 118)
    metres = f'{look.metres[k]:.2f} m'
    put_text(panel, metres, (188 - text_width(metres, _SMALL, 1), y), _SMALL)
    if np.isfinite(weight):
        panel[y - 10:y + 3, 195:195 + 93] = (70, 70, 70)
        panel[y - 9:y + 2, 196:196 + round(91 * min(1.0, weight))] = look.colors[k]
        put_text(panel, f'{weight:.0%}', (293, y), _SMALL)


def _depth(look: _Look) -> Picture:
    """Depth of the whole image in colours, small, with their scale."""
    height, width = look.prediction.image_size
    across = _PANEL - 2 * GAP - BAR_WIDTH
    size = across, max(24, min(across, round(across * height / width)))
    small = cv2.resize(look.prediction.depth, size, interpolation=cv2.INTER_NEAREST)
    picture = colorize(np.asarray(small, np.float32), *look.span)
    _mark(picture, look)
    return np.hstack([picture, color_bar(*look.span, size[1])])


def _write(panel: Picture, text: str, y: int, room: int) -> None:
    """A line that is cut off where there is no more room; these letters are ASCII's alone."""
    text = text.encode('ascii', 'replace').decode()
    whole = text
    while text and text_width(text, _SMALL, 1) > room:
        whole = whole[:-1]
        text = f'{whole}...' if whole else ''
    put_text(panel, text, (GAP, y), _SMALL)
