# SPDX-License-Identifier: Apache-2.0
"""Where the method stands among the baselines, at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from offline_eval.report import plot
from offline_eval.report.names import heading
from offline_eval.results import ALL, Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    'The method (filled) among the baselines (hollow), all measured in this run on the same '
    'pixels. The line through the method: bootstrap 95 % interval over images. An oracle is '
    'chosen with the ground truth in hand, and cannot be had in practice.')
METRICS = ('d1', 'rel', 'rmse')


def draw(summary: Summary) -> Figure:
    """Three panels with the same rows, sorted by δ1."""
    rows = sorted((r for r in summary.rows if r.group in ('method', 'baseline')
                   and r.scene == ALL), key=lambda r: np.nan_to_num(r.metrics.get('d1', 0.0)))
    left = 0.25 + 0.055 * max((len(row.name) for row in rows), default=0)
    height = 0.165 * len(rows)
    width = (plot.WIDTH - left - 0.1) / len(METRICS) - 0.12
    with plot.new_figure(height + 0.5) as figure:
        for place, metric in enumerate(METRICS):
            axes = plot.panel(figure, left + place * (width + 0.12), 0.1, width, height)
            _panel(axes, rows, metric)
            axes.set_xlabel(heading(metric))
            axes.tick_params(labelleft=place == 0)
    return figure


def _panel(axes: Axes, rows: list[Row], metric: str) -> None:
    for place, row in enumerate(rows):
        value = row.metrics.get(metric, float('nan'))
        method = row.group == 'method'
        color = plot.PREDICTION if method else plot.GROUND_TRUTH
        axes.plot(value, place, 'o', ms=4.5, mec=color, mfc=color if method else 'white', mew=1)
        interval = (row.interval or {}).get(metric)
        if interval is not None and method:
            axes.hlines(place, interval.low, interval.high, color=color, lw=1.2)
            axes.axvline(value, color=color, lw=0.5, ls=':')
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight('bold' if row.group == 'method' else 'normal')
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(axis='y', lw=0.4, color='#dddddd')
    axes.set_axisbelow(True)
    axes.tick_params(axis='y', length=0)
    axes.margins(x=0.08)
