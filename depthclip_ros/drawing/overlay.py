# SPDX-License-Identifier: Apache-2.0
"""Weights of the words, painted on the image: the paper's Figure 4, live.

Fast enough for every image of a stream; `depthclip view` draws the same for print.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from ..core.opencv import cv2
from .color import (
    BACKGROUND,
    BAR_WIDTH,
    FOREGROUND,
    GAP,
    Picture,
    Scale,
    bins_scale,
    canvas,
    color_bar,
    colorize,
    median_of,
    put_text,
    text_width,
    with_warning,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..core.config import DepthConfig
    from ..core.prediction import DepthPrediction

    Float32 = NDArray[np.float32]

MAX_CHARTS = 6, 8  # rows and columns of small charts on a picture
MAX_WORDS = 24  # listed beside it

_LISTED_WORDS = 3  # strongest words of a patch in one line
_MAX_SIZE = 576, 768  # height and width of the image in the picture
_MIN_SIDE, _MAX_SIDE = 144, 1152  # pixels of its sides; the maximum takes precedence
_PANEL_WIDTH = 400  # pixels beside it
_CELL = 60, 80  # pixels that a chart with its number needs
_CHART_SHARE = 0.4, 0.6  # of a patch's height and width: the rest stays visible
_LINE_HEIGHT = 19  # pixels
_FONT_SCALE = 0.42  # size of letters
_BAR_BACKGROUND = (190, 190, 190)  # neither dark nor bright bars vanish on it
_FRAME_COLOR = (220, 40, 220)  # of the selected patch


def depth_text(prediction: DepthPrediction, row: int, column: int) -> str:
    """Format depth, standard deviation if known, and spread of a patch, in two lines."""
    depth = prediction.patch_depth[row, column]
    text = 'no depth' if np.isnan(depth) else f'{depth:.2f} m'
    if prediction.patch_stddev is not None:
        text += f' ± {prediction.patch_stddev[row, column]:.2f} m'
    return f'{text}\n(spread {prediction.spread[row, column]:.2f} m)'


def weights_text(
    prediction: DepthPrediction, row: int, column: int, tokens: Sequence[str],
) -> str:
    """Format the strongest words of a patch with their weights."""
    weights = prediction.weights[:, row, column]
    return ', '.join(f'{tokens[k]} {weights[k]:.0%}'
                     for k in np.argsort(-weights, kind='stable')[:_LISTED_WORDS])


def scene_text(prediction: DepthPrediction) -> str:
    """Format the scene and its probability; '' without scenes."""
    scene = prediction.scene
    if scene is None:
        return ''
    return f'scene: {scene.name or "uncertain"} ({float(np.max(scene.probabilities)):.0%})'


def draw(
    rgb: NDArray[np.uint8], prediction: DepthPrediction, config: DepthConfig,
    spot: tuple[int, int] | None = None, lines: Sequence[str] = (), warning: str = '',
    scale: Scale | None = None,
) -> Picture:
    """Paint the weights of all words in a grid of patches, and in one patch enlarged.

    Each chart has a column per word, from near to far, in the colour of its depth; full height is
    weight 1. Below it is the depth of the patch, with its standard deviation if known.

    Args:
        rgb: (H, W, 3), the image.
        prediction: of the image.
        config: of the prediction.
        spot: row and column of the enlarged patch; None: the mean of all.
        lines: additional text beside the image.
        warning: on red, above everything.
        scale: of the colours; None: `bins_scale`, so that an anchor changes no colour.

    Returns:
        uint8 (h, w, 3), BGR.

    """
    metres = prediction.word_depths(config)
    scale = scale or bins_scale(config.depth_span, prediction.focal_ratio)
    colors = colorize(np.array([metres], np.float32), scale)[0]
    photo = _draw_charts(rgb, prediction, colors)
    across = _PANEL_WIDTH - 3 * GAP - BAR_WIDTH
    zoom = across / max(prediction.image_size)
    height, width = (max(96, round(zoom * length)) for length in prediction.image_size)
    depth = colorize(np.asarray(cv2.resize(
        prediction.depth, (width, height), interpolation=cv2.INTER_NEAREST), np.float32), scale)
    if spot:
        _draw_frame(photo, prediction.patch_depth.shape, *spot)
        _draw_frame(depth, prediction.patch_depth.shape, *spot)
    words = [(token, f'{value:.2f} m', color) for token, value, color in zip(
        config.tokens, metres, colors, strict=True)]
    bar = color_bar(scale, height, median_of(prediction.patch_depth))
    panel = _draw_panel(
        prediction, words, spot, [*filter(None, [scene_text(prediction)]), *lines],
        np.hstack([depth, canvas(height, GAP), bar]))
    result = canvas(max(len(photo), len(panel)), photo.shape[1] + _PANEL_WIDTH)
    result[:len(photo), :photo.shape[1]] = photo
    result[:len(panel), photo.shape[1]:] = panel
    return with_warning(result, warning) if warning else result


def photo_size(height: int, width: int) -> tuple[int, int]:
    """Compute the height and width of the image in the picture of `draw`, on the left."""
    scale = min(_MAX_SIZE[0] / height, _MAX_SIZE[1] / width)
    scale = max(scale, min(_MIN_SIDE / min(height, width), _MAX_SIDE / max(height, width)))
    return max(1, round(scale * height)), max(1, round(scale * width))


def _draw_charts(
    rgb: NDArray[np.uint8], prediction: DepthPrediction, colors: NDArray[np.uint8],
) -> Picture:
    """Draw charts on the resized image."""
    size = photo_size(*rgb.shape[:2])
    photo = np.asarray(cv2.cvtColor(cv2.resize(
        rgb, size[::-1],
        interpolation=cv2.INTER_AREA if size[0] < len(rgb) else cv2.INTER_LINEAR,
    ), cv2.COLOR_RGB2BGR), np.uint8)
    grid = prediction.patch_depth.shape
    # A chart on every n-th patch, as many as fit.
    steps = [-(-count // max(1, min(count, limit, length // cell)))
             for count, limit, length, cell in zip(grid, MAX_CHARTS, size, _CELL, strict=True)]
    chart_height, chart_width = (
        round(share * length * min(step / count, 1))
        for share, length, step, count in zip(_CHART_SHARE, size, steps, grid, strict=True))
    rows, columns = (range((count - 1) % step // 2, count, step)
                     for count, step in zip(grid, steps, strict=True))
    for patch in product(rows, columns):
        y, x = (round((place + 0.5) * length / count)
                for place, length, count in zip(patch, size, grid, strict=True))
        top, left = max(0, y - chart_height // 2 - 6), max(0, x - chart_width // 2)
        background = photo[top:top + chart_height, left:left + chart_width]
        if not np.isfinite(prediction.spread[patch]) or not chart_height * chart_width \
                or background.shape[:2] != (chart_height, chart_width):
            continue
        background[:] = (0.5 * background + 0.5 * 255).astype(np.uint8)
        weights = prediction.weights[(slice(None), *patch)]
        edges = np.arange(len(weights) + 1) * chart_width // len(weights)
        for k, bar_height in enumerate(np.rint(weights * chart_height).astype(int)):
            right = max(edges[k + 1], edges[k] + 1)
            background[chart_height - bar_height:, edges[k]:right] = colors[k]
        depth = prediction.patch_depth[patch]
        text = '-' if np.isnan(depth) else f'{depth:.1f} m'
        if prediction.patch_stddev is not None:
            text = f'{depth:.1f}+-{prediction.patch_stddev[patch]:.1f} m'
        text_width_ = text_width(text, _FONT_SCALE, 1)
        x, y = max(2, x - text_width_ // 2), top + chart_height + 13
        photo[top + chart_height:y + 4, max(0, x - 3):x + text_width_ + 3] = BACKGROUND
        put_text(photo, text, (x, y), _FONT_SCALE)
    return photo


def _draw_frame(picture: Picture, grid: tuple[int, ...], row: int, column: int) -> None:
    """Draw a frame around a patch, in a picture of the whole image."""
    height, width = picture.shape[0] / grid[0], picture.shape[1] / grid[1]
    for color, thickness in ((FOREGROUND, 4), (_FRAME_COLOR, 2)):
        cv2.rectangle(picture, (round(column * width), round(row * height)), (
            round((column + 1) * width) - 1, round((row + 1) * height) - 1), color, thickness)


def _draw_panel(
    prediction: DepthPrediction, words: Sequence[tuple[str, str, NDArray[np.uint8]]],
    spot: tuple[int, int] | None, lines: Sequence[str], depth: Picture,
) -> Picture:
    """Draw the panel beside the image: a line per word, further text, and the depth map."""
    if spot is None:
        valid = np.isfinite(prediction.spread)
        weights = prediction.weights[:, valid].mean(axis=1) if valid.any() \
            else np.zeros(len(words), np.float32)
        heading = ['mean of all patches']
    else:
        weights = prediction.weights[(slice(None), *spot)]
        heading = [f'clicked: row {spot[0]}, column {spot[1]}', *depth_text(
            prediction, *spot).replace('±', '+-').split('\n')]
    listed = np.sort(np.argsort(-weights, kind='stable')[:MAX_WORDS])
    omitted = len(words) - len(listed)
    rows: list[str | int] = [
        *heading, *map(int, listed),
        *([f'and {omitted} words that answer less'] if omitted else []), *lines]
    text_height = (len(rows) + 1) * _LINE_HEIGHT + GAP
    panel = canvas(text_height + len(depth) + GAP, _PANEL_WIDTH)
    panel[text_height:text_height + len(depth), GAP:GAP + depth.shape[1]] = depth
    for number, row in enumerate(rows, 1):
        y = number * _LINE_HEIGHT
        if isinstance(row, str):
            _put_clipped_text(panel, row, y, _PANEL_WIDTH - 2 * GAP)
            continue
        word, metres, color = words[row]
        _put_clipped_text(panel, word, y, 190)
        put_text(panel, metres, (258 - text_width(metres, _FONT_SCALE, 1), y), _FONT_SCALE)
        if np.isfinite(weights[row]):
            panel[y - 10:y + 3, 266:266 + 87] = _BAR_BACKGROUND
            panel[y - 9:y + 2, 267:267 + round(85 * min(1.0, float(weights[row])))] = color
            put_text(panel, f'{weights[row]:.0%}', (358, y), _FONT_SCALE)
    return panel


def _put_clipped_text(panel: Picture, text: str, y: int, width: int) -> None:
    """Write a line, shortened to a width in pixels; the font has ASCII letters only."""
    text = text.encode('ascii', 'replace').decode()
    clipped = text
    while text and text_width(text, _FONT_SCALE, 1) > width:
        clipped = clipped[:-1]
        text = f'{clipped}...' if clipped else ''
    put_text(panel, text, (GAP, y), _FONT_SCALE)
