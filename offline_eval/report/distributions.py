# SPDX-License-Identifier: Apache-2.0
"""The paper's Figure 3 on this data: true depth differs from class to class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offline_eval.report import plot
from offline_eval.results import ALL, Histograms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    'True depth of all counted pixels, per scene class, from the nearest class to the farthest. '
    'In brackets: number of images. Grey outline: all classes. Dashed: the class’s median. Orange '
    'marks below: the {bins} depth bins; no prediction is nearer than the first or farther than '
    'the last.')
_COLUMNS = 4


def draw(histograms: Histograms, bins: list[float], images: dict[str, int]) -> Figure:
    """Draw one panel per class on common axes; `images` per class go into the titles."""
    from matplotlib.ticker import MaxNLocator
    edges = np.asarray(histograms.edges, float)
    densities = {scene: density(edges, counts) for scene, counts in histograms.counts.items()
                 if sum(counts)}
    scenes = sorted((s for s in densities if s != ALL),
                    key=lambda s: quantile(edges, densities[s], 0.5)) or [ALL]
    last = max((quantile(edges, d, 0.995) for d in densities.values()), default=10.0)
    high = max((d.max() for d in densities.values()), default=1.0)
    rows = -(-len(scenes) // _COLUMNS)
    columns = min(len(scenes), _COLUMNS)
    width = (plot.WIDTH - 0.5 - 0.1) / columns - 0.12
    with plot.new_figure(rows * 1.12 + 0.24) as figure:
        for place, scene in enumerate(scenes):
            row, column = divmod(place, _COLUMNS)
            left, top = 0.45 + column * (width + 0.12), 0.2 + row * 1.12
            axes = plot.panel(figure, left, top, width, 0.88)
            _panel(axes, edges, densities[scene], densities.get(ALL))
            axes.vlines(bins, -0.075 * high, 0, color=plot.PREDICTION, lw=0.9)
            count = images.get(scene)
            label = scene.replace('_', ' ') or 'no class'
            axes.set_title(f'{label} ({count})' if count else label, loc='left')
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.set_xlim(0, last)
            axes.set_ylim(-0.09 * high, 1.05 * high)
            axes.tick_params(labelleft=column == 0, labelbottom=place + _COLUMNS >= len(scenes))
            if column == 0:
                axes.set_ylabel('density (1/m)')
            if place + _COLUMNS >= len(scenes):
                axes.set_xlabel('true depth (m)', labelpad=1)
    return figure


def density(edges: NDArray[np.float64], counts: list[int]) -> NDArray[np.float64]:
    """Share of the pixels per metre."""
    numbers = np.asarray(counts, float)
    result: NDArray[np.float64] = numbers / (numbers.sum() * np.diff(edges))
    return result


def quantile(edges: NDArray[np.float64], values: NDArray[np.float64], share: float) -> float:
    """Depth below which a share of the pixels lies [m]."""
    below = np.concatenate([[0.0], np.cumsum(values * np.diff(edges))])
    return float(np.interp(share, below, edges))


def _panel(
    axes: Axes, edges: NDArray[np.float64], values: NDArray[np.float64],
    everything: NDArray[np.float64] | None,
) -> None:
    axes.stairs(values, edges, fill=True, color=plot.GROUND_TRUTH, alpha=0.55, lw=0)
    if everything is not None:
        axes.stairs(everything, edges, color='#555555', lw=0.7)
    axes.axhline(0, color='black', lw=0.5)
    axes.axvline(quantile(edges, values, 0.5), color=plot.GROUND_TRUTH, lw=0.9, ls='--')
