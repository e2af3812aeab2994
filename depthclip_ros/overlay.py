# SPDX-License-Identifier: Apache-2.0
"""How much each word answers, painted on the image itself: the paper's Figure 4, live.

Quick enough for every image of a stream. `depthclip view` draws the same for print.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

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
    warned,
)
from .core.opencv import cv2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .core.config import DepthConfig
    from .core.prediction import DepthPrediction

    Float32 = NDArray[np.float32]

MOST_CHARTS = 6, 8  # rows and columns of small charts on a picture
MOST_WORDS = 24  # that are listed beside it

_ANSWERS = 3  # words of a patch that are told in a line
_LARGEST = 576, 768  # height and width of the image in the picture
_LEAST, _MOST = 144, 1152  # pixels of its sides; narrower than that only for the sake of the other
_PANEL = 400  # pixels beside it
_CELL = 60, 80  # pixels that a chart with its number needs
_CHART = 0.4, 0.6  # of a patch's height and width: what lies between stays visible
_LINE = 19  # pixels
_SMALL = 0.42  # size of letters
_TROUGH = (190, 190, 190)  # behind bars: neither dark nor bright ones vanish
_FRAME = (220, 40, 220)  # of the patch that is looked at


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


def draw(
    rgb: NDArray[np.uint8], prediction: DepthPrediction, config: DepthConfig,
    spot: tuple[int, int] | None = None, lines: Sequence[str] = (), warning: str = '',
    scale: Scale | None = None,
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
        scale: of the colours; None: `bins_scale`, so that an anchor changes no colour.

    Returns:
        uint8 (h, w, 3), BGR.

    """
    metres = prediction.word_depths(config)
    scale = scale or bins_scale(config.depth_span, prediction.focal_ratio)
    colors = colorize(np.array([metres], np.float32), scale)[0]
    photo = _photo(rgb, prediction, colors)
    across = _PANEL - 3 * GAP - BAR_WIDTH
    zoom = across / max(prediction.image_size)
    height, width = (max(96, round(zoom * length)) for length in prediction.image_size)
    depth = colorize(np.asarray(cv2.resize(
        prediction.depth, (width, height), interpolation=cv2.INTER_NEAREST), np.float32), scale)
    if spot:
        _mark(photo, prediction.patch_depth.shape, *spot)
        _mark(depth, prediction.patch_depth.shape, *spot)
    words = [(token, f'{value:.2f} m', color) for token, value, color in zip(
        config.tokens, metres, colors, strict=True)]
    panel = _panel(prediction, words, spot, [*filter(None, [scene_words(prediction)]), *lines],
                   np.hstack([depth, canvas(height, GAP), color_bar(
                       scale, height, median_of(prediction.patch_depth))]))
    result = canvas(max(len(photo), len(panel)), photo.shape[1] + _PANEL)
    result[:len(photo), :photo.shape[1]] = photo
    result[:len(panel), photo.shape[1]:] = panel
    return warned(result, warning) if warning else result


def photo_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which `draw` shows an image, on the left, below the warning."""
    scale = min(_LARGEST[0] / height, _LARGEST[1] / width)
    scale = max(scale, min(_LEAST / min(height, width), _MOST / max(height, width)))
    return max(1, round(scale * height)), max(1, round(scale * width))


def _photo(
    rgb: NDArray[np.uint8], prediction: DepthPrediction, colors: NDArray[np.uint8],
) -> Picture:
    """The image with charts on it."""
    size = photo_size(*rgb.shape[:2])
    photo = np.asarray(cv2.cvtColor(cv2.resize(
        rgb, size[::-1],
        interpolation=cv2.INTER_AREA if size[0] < len(rgb) else cv2.INTER_LINEAR,
    ), cv2.COLOR_RGB2BGR), np.uint8)
    grid = prediction.patch_depth.shape
    # Of every so many patches: no more charts than have room.
    steps = [-(-count // max(1, min(count, most, length // least)))
             for count, most, length, least in zip(grid, MOST_CHARTS, size, _CELL, strict=True)]
    high, wide = (round(share * length * min(step / count, 1)) for share, length, step, count
                  in zip(_CHART, size, steps, grid, strict=True))
    rows, columns = (range((count - 1) % step // 2, count, step)
                     for count, step in zip(grid, steps, strict=True))
    for patch in product(rows, columns):
        y, x = (round((place + 0.5) * length / count)
                for place, length, count in zip(patch, size, grid, strict=True))
        top, left = max(0, y - high // 2 - 6), max(0, x - wide // 2)
        under = photo[top:top + high, left:left + wide]
        if not np.isfinite(prediction.spread[patch]) or not high * wide \
                or under.shape[:2] != (high, wide):
            continue
        under[:] = (0.5 * under + 0.5 * 255).astype(np.uint8)
        weights = prediction.weights[(slice(None), *patch)]
        edges = np.arange(len(weights) + 1) * wide // len(weights)
        for k, tall in enumerate(np.rint(weights * high).astype(int)):
            under[high - tall:, edges[k]:max(edges[k + 1], edges[k] + 1)] = colors[k]
        depth = prediction.patch_depth[patch]
        text = '-' if np.isnan(depth) else f'{depth:.1f} m'
        if prediction.patch_stddev is not None:
            text = f'{depth:.1f}+-{prediction.patch_stddev[patch]:.1f} m'
        across = text_width(text, _SMALL, 1)
        x, y = max(2, x - across // 2), top + high + 13
        photo[top + high:y + 4, max(0, x - 3):x + across + 3] = BACKGROUND
        put_text(photo, text, (x, y), _SMALL)
    return photo


def _mark(picture: Picture, grid: tuple[int, ...], row: int, column: int) -> None:
    """Frame a patch in a picture of the whole image."""
    height, width = picture.shape[0] / grid[0], picture.shape[1] / grid[1]
    for color, thickness in ((FOREGROUND, 4), (_FRAME, 2)):
        cv2.rectangle(picture, (round(column * width), round(row * height)), (
            round((column + 1) * width) - 1, round((row + 1) * height) - 1), color, thickness)


def _panel(
    prediction: DepthPrediction, words: Sequence[tuple[str, str, NDArray[np.uint8]]],
    spot: tuple[int, int] | None, lines: Sequence[str], depth: Picture,
) -> Picture:
    """What stands beside the image: one line a word, what is known, and depth in colours."""
    if spot is None:
        seen = np.isfinite(prediction.spread)
        weights = prediction.weights[:, seen].mean(axis=1) if seen.any() \
            else np.zeros(len(words), np.float32)
        said = ['mean of all patches']
    else:
        weights = prediction.weights[(slice(None), *spot)]
        said = [f'clicked: row {spot[0]}, column {spot[1]}', *depth_words(
            prediction, *spot).replace('±', '+-').split('\n')]
    listed = np.sort(np.argsort(-weights, kind='stable')[:MOST_WORDS])
    left_out = len(words) - len(listed)
    rows: list[str | int] = [
        *said, *map(int, listed),
        *([f'and {left_out} words that answer less'] if left_out else []), *lines]
    high = (len(rows) + 1) * _LINE + GAP
    panel = canvas(high + len(depth) + GAP, _PANEL)
    panel[high:high + len(depth), GAP:GAP + depth.shape[1]] = depth
    for number, row in enumerate(rows, 1):
        y = number * _LINE
        if isinstance(row, str):
            _write(panel, row, y, _PANEL - 2 * GAP)
            continue
        word, metres, color = words[row]
        _write(panel, word, y, 190)
        put_text(panel, metres, (258 - text_width(metres, _SMALL, 1), y), _SMALL)
        if np.isfinite(weights[row]):
            panel[y - 10:y + 3, 266:266 + 87] = _TROUGH
            panel[y - 9:y + 2, 267:267 + round(85 * min(1.0, float(weights[row])))] = color
            put_text(panel, f'{weights[row]:.0%}', (358, y), _SMALL)
    return panel


def _write(panel: Picture, text: str, y: int, room: int) -> None:
    """A line that is cut off where there is no more room; these letters are ASCII's alone."""
    text = text.encode('ascii', 'replace').decode()
    whole = text
    while text and text_width(text, _SMALL, 1) > room:
        whole = whole[:-1]
        text = f'{whole}...' if whole else ''
    put_text(panel, text, (GAP, y), _SMALL)
