# SPDX-License-Identifier: Apache-2.0
"""The paper's Figure 5 on this data: RGB, prediction, ground truth, error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from offline_eval.report import plot
from offline_eval.report.names import SYMBOLS, number, unit
from offline_eval.results import PAPER_METRICS, Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    'RGB, prediction, ground truth, and error (prediction minus ground truth) of the best, the '
    'median and the worst of {images} images by δ1, cropped to what the network sees. Prediction '
    'and ground truth of a row share one colour scale, near is red; it spans the whole '
    'prediction and 98 % of the ground truth. The error’s scale is symmetric and spans 98 % of '
    'its sizes, red is too far. An arrow on a scale: there are values beyond it. Grey: no ground '
    'truth, not counted.')

_LABEL, _BAR, _BAR_TEXT, _GAP = 0.31, 0.09, 0.44, 0.06
_TITLES = ('RGB', 'Prediction', 'Ground truth', 'Error')


def draw(samples: list[Sample]) -> Figure:
    """One row per image."""
    width = (plot.WIDTH - 2 * (_BAR + _BAR_TEXT + _GAP) - 4 * _GAP) / 4
    heights = [width * s.rgb.shape[0] / s.rgb.shape[1] for s in samples]
    with plot.new_figure(sum(heights) + _LABEL * len(samples) + 0.2) as figure:
        top = 0.2
        for place, (sample, height) in enumerate(zip(samples, heights, strict=True)):
            _row(figure, sample, top, width, height, titled=place == 0)
            top += height + _LABEL
    return figure


def _row(
    figure: Figure, sample: Sample, top: float, width: float, height: float, *, titled: bool,
) -> None:
    """Four pictures, two scales, and a line with the image's numbers below."""
    error = sample.depth - sample.ground_truth
    low, high = plot.depth_limits(sample)
    limit = _error_limit(error)
    pictures = (sample.rgb, plot.paint_depth(sample.depth, low, high),
                plot.paint_depth(sample.ground_truth, low, high), plot.paint_error(error, limit))
    left = _GAP / 2
    for column, (title, rgb) in enumerate(zip(_TITLES, pictures, strict=True)):
        axes = plot.panel(figure, left, top, width, height)
        plot.picture(axes, rgb, width)
        if titled:
            axes.set_title(title)
        left += width + _GAP
        if column < 2:  # a scale stands to the right of the last two pictures
            continue
        bar = plot.panel(figure, left, top, _BAR, height)
        if column == 2:
            both = np.concatenate([sample.depth.ravel(), sample.ground_truth.ravel()])
            plot.color_bar(bar, 'turbo_r', low, high, 'depth (m)', plot.beyond(both, low, high))
        else:
            plot.color_bar(bar, plot.ERROR_MAP, -limit, limit, 'error (m)',
                           plot.beyond(error, -limit, limit))
        left += _BAR + _BAR_TEXT + _GAP
    plot.write_text(figure, _GAP / 2, top + height + 0.075,
                    f'{sample.role.capitalize()}: {plot.image_label(sample)}', weight='bold')
    plot.write_text(figure, plot.WIDTH - 0.05, top + height + 0.075, _numbers(sample), ha='right')


def _error_limit(error: np.ndarray) -> float:
    """Error that 98 % of the pixels stay below [m], rounded up."""
    sizes = np.abs(error[np.isfinite(error)])
    return max(float(np.ceil(np.percentile(sizes, 98) * 10) / 10), 0.1) if sizes.size else 1.0


def _numbers(sample: Sample) -> str:
    return '   '.join(f'{SYMBOLS[name]} {number(sample.metrics[name])}{unit(name)}'
                       for name in PAPER_METRICS if name in sample.metrics)
