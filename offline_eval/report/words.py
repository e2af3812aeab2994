# SPDX-License-Identifier: Apache-2.0
"""Figures of sets of words on pictures without measured depth, after the paper's 3 to 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from depthclip_ros.color import color_range
from offline_eval.report.figures import (
    PREDICTED,
    TRUTH,
    WIDTH,
    Float32,
    add_scale,
    new_figure,
    paint_depth,
    short,
    show,
)
from offline_eval.results import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SET_COLORS = TRUTH, PREDICTED
_COLUMNS = 5  # maps in a row
_NUMBERS = 16  # words, beyond which cosines are colours only


def similarity(words: Sequence[str], cosines: Float32, first: int) -> Figure:
    """Cosines of all words with all.

    Args:
        words: of all sets.
        cosines: (K, K).
        first: words of the first set, behind which there is a line.

    """
    count = len(words)
    side = min(WIDTH - 1, 1 + 0.3 * count)
    figure = new_figure(side)
    labels = [short(word) for word in words]
    figure.set_size_inches(min(WIDTH, side + 0.4 + 0.07 * max(map(len, labels))), side)
    axes = figure.subplots()
    low = float(cosines.min())
    picture = axes.imshow(cosines, cmap='viridis', vmin=min(low, 0.999), vmax=1)
    axes.set_xticks(range(count), labels, rotation=40, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(count), labels)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if first < count:
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            for number, label in enumerate(ticks):
                label.set_color(SET_COLORS[number >= first])
        for line in (axes.axhline, axes.axvline):
            line(first - 0.5, color='white', lw=2)
    for i, j in np.ndindex(count, count) if count <= _NUMBERS else ():
        light = cosines[i, j] > (low + 1) / 2
        axes.text(j, i, f'{cosines[i, j]:.3f}', ha='center', va='center', size=5.5,
                  color='black' if light else 'white')
    figure.colorbar(picture, ax=axes, label='cosine')
    return figure


def maps(sample: Sample, label: str) -> Figure:
    """One map a word: how much each patch answers to it, over the picture in grey."""
    count = len(sample.tokens)
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    height, width = sample.rgb.shape[:2]
    panel = (WIDTH - 0.6) / columns
    figure = new_figure(rows * (panel * height / width + 0.22) + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False)
    largest = float(np.nanmax(sample.weights)) if np.isfinite(sample.weights).any() else 1.0
    grey = np.asarray(cv2.cvtColor(sample.rgb, cv2.COLOR_RGB2GRAY))
    for axes, word, metres, weights in zip(
            panels.flat, sample.tokens, sample.bins, sample.weights, strict=False):
        axes.imshow(grey, cmap='gray', vmin=0, vmax=255)
        axes.imshow(weights, cmap='inferno', vmin=0, vmax=largest, alpha=0.7,
                    extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation='nearest')
        axes.set_axis_off()
        axes.set_title(f'{short(word)}  {metres:.2f} m', size=6.5)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    figure.suptitle(label, x=0.01, ha='left', size=7.5, weight='bold')
    add_scale(figure, panels.ravel().tolist(), 'inferno', (0, largest), 'weight', sample.weights)
    return figure


def depths(
    pictures: Sequence[Sequence[Sample]], labels: Sequence[str],
    spans: Sequence[tuple[float, float]],
) -> Figure:
    """One row a picture: the picture, and its depth by every set of words on one scale."""
    low = min(color_range(span)[0] for span in spans)
    high = max(span[1] for span in spans)
    columns = 1 + len(labels)
    panel = (WIDTH - 0.7) / columns
    heights = [panel * answers[0].rgb.shape[0] / answers[0].rgb.shape[1] + 0.08
               for answers in pictures]
    figure = new_figure(sum(heights) + 0.35)
    panels = figure.subplots(len(pictures), columns, squeeze=False,
                             gridspec_kw={'height_ratios': heights})
    for place, (row, answers) in enumerate(zip(panels, pictures, strict=True)):
        show(row[0], answers[0].rgb)
        row[0].set_title(short(answers[0].name), loc='left')
        for axes, answer, label in zip(row[1:], answers, labels, strict=True):
            show(axes, paint_depth(answer.depth, low, high))
            if not place:
                axes.set_title(label, loc='left')
    values = np.concatenate([a.patch_depth.ravel() for answers in pictures for a in answers])
    add_scale(figure, panels.ravel().tolist(), 'turbo_r', (low, high), 'depth (m)', values)
    return figure


def distributions(
    said: Sequence[Float32], bins: Sequence[Sequence[float]], labels: Sequence[str],
) -> Figure:
    """How often each depth is said, over the patches of all pictures."""
    figure = new_figure(1.9)
    axes: Any = figure.subplots()
    known = [values[np.isfinite(values)] for values in said]
    every = np.concatenate([*known, *(np.asarray(b, np.float32) for b in bins)])
    edges = np.linspace(float(every.min()), float(every.max()) + 1e-3, 61)
    top = 1e-6
    for values, color, label in zip(known, SET_COLORS, labels, strict=False):
        counts = np.histogram(values, edges)[0] / max(values.size, 1)
        axes.stairs(counts, edges, fill=True, color=color, alpha=0.45, lw=0, label=label)
        top = max(top, float(counts.max()))
    for number, (metres, color) in enumerate(zip(bins, SET_COLORS, strict=False)):
        axes.vlines(metres, -0.05 * (number + 1) * top, -0.05 * number * top, color=color, lw=1.2)
    axes.axhline(0, color='black', lw=0.5)
    axes.set(xlabel='depth that is said (m)', ylabel='share of the patches',
             ylim=(-0.11 * top, 1.05 * top))
    axes.legend()
    return figure
