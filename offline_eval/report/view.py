# SPDX-License-Identifier: Apache-2.0
"""What the words say of one picture, live: the paper's Figure 4 for any patch, with its depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depthclip_ros.color import color_range, colorize
from depthclip_ros.overlay import chart_patches
from offline_eval.report.figures import (
    LETTERS,
    NO_TRUTH,
    PATCHES,
    WIDTH,
    Float32,
    add_scale,
    chart,
    label_words,
    mark,
    new_figure,
    paint_depth,
    show,
    word_labels,
)
from offline_eval.results import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEGEND = 4  # columns


@dataclass(frozen=True)
class Spot:
    """A patch that is looked at, and what stands above its bars."""

    row: int
    column: int
    said: str


def view(
    sample: Sample, span: tuple[float, float], title: str, spots: Sequence[Spot],
    stddev: Float32 | None = None,
) -> Figure:
    """Picture, depth, and beside or on them how much each word answers.

    The first axes are the picture's, the second the depth's, in pixels of `sample.rgb`.

    Args:
        sample: what the words say.
        span: of the colours, metres.
        title: on top.
        spots: up to four patches, whose bars stand below; none: small charts of a grid of
            patches are on the picture.
        stddev: (h, w) standard deviation of the patches' depth in metres, shown beside it.

    """
    height, width = sample.rgb.shape[:2]
    low, high = color_range(span)
    panels = 2 if stddev is None else 3
    photo = (WIDTH - 0.8 * (panels - 1)) / panels * height / width
    count = len(sample.tokens)
    below = 0.16 * count + 0.85 if spots else 0.15 * (-(-count // _LEGEND) + 2)
    figure = new_figure(photo + 0.3 + below)
    parts: Any = figure.subfigures(2, 1, height_ratios=[photo + 0.3, below])
    upper, lower = parts
    left, right, *rest = upper.subplots(1, panels)
    show(left, sample.rgb)
    show(right, paint_depth(sample.depth, low, high))
    left.set_title(title, loc='left')
    right.set_title('depth', loc='left')
    add_scale(upper, [right], 'turbo_r', (low, high), 'depth (m)', sample.patch_depth)
    if stddev is not None:
        _show_stddev(upper, rest[0], stddev, (height, width))
    if spots:
        _bars(left, lower, sample, spots)
    else:
        colors = colorize(np.array([sample.bins], np.float32), low, high)[0, :, ::-1] / 255
        _grid(left, sample, colors)
        _legend(lower, word_labels(sample), colors)
    return figure


def _show_stddev(
    figure: Any, axes: Any, stddev: Float32, size: tuple[int, int],
) -> None:
    """One square a patch: what an error bar is made of is not told more finely."""
    known = stddev[np.isfinite(stddev)]
    most = max(float(known.max()), 1e-3) if known.size else 1.0
    axes.imshow(stddev, cmap='magma', vmin=0, vmax=most, interpolation='nearest',
                extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5))
    axes.set_facecolor(tuple(level / 255 for level in NO_TRUTH))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title('standard deviation', loc='left')
    add_scale(figure, [axes], 'magma', (0, most), 'σ (m)', np.array([0], np.float32))


def _bars(photo: Any, lower: Any, sample: Sample, spots: Sequence[Spot]) -> None:
    """Framed patches in the photograph, and a chart of each."""
    charts = lower.subplots(1, len(spots), sharey=True, squeeze=False)[0]
    for axes, spot, color, letter in zip(charts, spots, PATCHES, LETTERS, strict=False):
        mark(photo, sample, (spot.row, spot.column), letter)
        chart(axes, sample.weights[:, spot.row, spot.column], color)
        axes.set_xlim(0, 1)
        axes.set_title(f'{letter}: {spot.said}', loc='left')
    label_words(charts[:1], sample)


def _grid(photo: Any, sample: Sample, colors: NDArray[np.float64]) -> None:
    """A chart in each of some patches: one column a word, from near to far, full is weight 1."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle
    height, width = sample.rgb.shape[:2]
    count, rows, columns = sample.weights.shape
    frame = 0.84 * width / columns, 0.84 * height / rows
    boxes, bars, painted = [], [], []
    for row, column in chart_patches(rows, columns):
        weights = sample.weights[:, row, column]
        if not np.isfinite(weights).all():
            continue
        x = (column + 0.08) * width / columns - 0.5
        y = (row + 0.92) * height / rows - 0.5
        boxes.append(Rectangle((x, y - frame[1]), *frame))
        bars += [Rectangle((x + k * frame[0] / count, y), frame[0] / count, -w * frame[1])
                 for k, w in enumerate(weights)]
        painted.append(colors)
    photo.add_collection(PatchCollection(boxes, fc='white', ec='none', alpha=0.7))
    if bars:
        photo.add_collection(PatchCollection(bars, fc=np.concatenate(painted), ec='none'))


def _legend(lower: Any, labels: Sequence[str], colors: NDArray[np.float64]) -> None:
    from matplotlib.patches import Patch
    lower.legend(handles=[Patch(color=tuple(color), label=label)
                          for label, color in zip(labels, colors, strict=True)],
                 ncol=_LEGEND, loc='center', title='columns from left to right')
