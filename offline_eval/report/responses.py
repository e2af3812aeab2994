# SPDX-License-Identifier: Apache-2.0
"""The paper's Figure 4 on this data: how patches of one image respond to the words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offline_eval.report import plot
from offline_eval.results import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    'Responses of the {bins} words in four patches of the {role} image ({label}). The patches '
    'are not picked by hand: of those with ground truth in at least half of their pixels, they '
    'are the ones at 5, 35, 65 and 95 % of the true depth. Bars: weight of each word, they sum '
    'to 1; dotted: the weight of a network that knows nothing. GT: median true depth of the '
    'patch. Pred: depth of the patch{flipped}.')
FLIPPED = ', mean of the plain and the mirrored pass; the bars are those of the plain pass'

QUANTILES = (0.05, 0.35, 0.65, 0.95)
LETTERS = 'ABCD'
_IMAGE, _WORDS, _CHART = 2.65, 1.27, 1.32  # inches


@dataclass(frozen=True)
class Patch:
    """One patch: where it is, and the median of its valid true depth in metres."""

    row: int
    column: int
    ground_truth: float


def choose_patches(sample: Sample) -> list[Patch]:
    """Choose up to four patches, near to far, at fixed quantiles of the true depth."""
    truths = patch_ground_truth(sample)
    known = np.argwhere(np.isfinite(truths))
    if not len(known):
        return []
    ranked = known[np.argsort(truths[known[:, 0], known[:, 1]], kind='stable')]
    places = dict.fromkeys(round(q * (len(ranked) - 1)) for q in QUANTILES)
    return [Patch(int(i), int(j), float(truths[i, j])) for i, j in ranked[list(places)]]


def patch_ground_truth(sample: Sample) -> NDArray[np.float64]:
    """Median true depth per patch [m], (h, w); NaN where less than half of it is known."""
    height, width = sample.ground_truth.shape
    rows, columns = sample.patch_depth.shape
    truths = np.full((rows, columns), np.nan)
    for i in range(rows):
        for j in range(columns):
            block = sample.ground_truth[i * height // rows:(i + 1) * height // rows,
                                        j * width // columns:(j + 1) * width // columns]
            valid = block[np.isfinite(block)]
            if valid.size and 2 * valid.size >= block.size:
                truths[i, j] = np.median(valid)
    return truths


def averaged_with_mirror(sample: Sample) -> bool:
    """Whether the patches' depth is more than the bars' mean (flip averaging)."""
    plain = np.tensordot(np.asarray(sample.bins), sample.weights, 1)
    return bool(np.abs(plain - sample.patch_depth).max() > 1e-3)


def caption(sample: Sample) -> str:
    """Sentences under the figure."""
    return CAPTION.format(bins=len(sample.bins), role=sample.role, label=plot.image_label(sample),
                          flipped=FLIPPED if averaged_with_mirror(sample) else '')


def draw(sample: Sample) -> Figure:
    """Image with marked patches on the left, a bar chart for each on the right."""
    patches = choose_patches(sample)
    height = max(0.85, 0.13 * len(sample.bins))
    image_height = _IMAGE * sample.rgb.shape[0] / sample.rgb.shape[1]
    with plot.new_figure(max(2 * height + 0.86, image_height + 0.3)) as figure:
        axes = plot.panel(figure, 0.03, 0.22, _IMAGE, image_height)
        plot.picture(axes, sample.rgb, _IMAGE)
        _mark(axes, sample, patches)
        axes.set_title(plot.image_label(sample), loc='left')
        for place, patch in enumerate(patches):
            row, column = divmod(place, 2)
            chart = plot.panel(figure, _IMAGE + _WORDS + column * (_CHART + 0.24),
                               0.22 + row * (height + 0.3), _CHART, height)
            _bars(chart, sample, patch, place)
            chart.tick_params(labelleft=column == 0, labelbottom=place + 2 >= len(patches))
            if place + 2 >= len(patches):
                chart.set_xlabel('weight (–)', labelpad=1)
            chart.set_xlim(0, _largest_weight(sample, patches) * 1.06)
    return figure


def _mark(axes: Axes, sample: Sample, patches: list[Patch]) -> None:
    """Frame the patches, each with its letter beside it."""
    from matplotlib.patches import Rectangle
    height = sample.rgb.shape[0] / sample.patch_depth.shape[0]
    width = sample.rgb.shape[1] / sample.patch_depth.shape[1]
    for patch, letter, color in zip(patches, LETTERS, plot.PATCHES, strict=False):
        x, y = patch.column * width - 0.5, patch.row * height - 0.5
        for edge, line in (('white', 3.0), (color, 1.6)):
            axes.add_patch(Rectangle((x, y), width, height, fill=False, ec=edge, lw=line))
        fits = patch.column + 1 < sample.patch_depth.shape[1]
        axes.text(x + 1.25 * width if fits else x - 0.25 * width, y + height / 2, letter,
                  color='white', weight='bold', ha='left' if fits else 'right', va='center',
                  size=6.5, bbox={'boxstyle': 'round,pad=0.2', 'fc': color, 'ec': 'white',
                                  'lw': 0.6})


def _bars(axes: Axes, sample: Sample, patch: Patch, place: int) -> None:
    """Draw the responses of one patch, near above far, under its GT and Pred."""
    count = len(sample.bins)
    color = plot.PATCHES[place]
    axes.barh(range(count), sample.weights[:, patch.row, patch.column], color=color, height=0.72)
    axes.axvline(1 / count, color='#444444', lw=0.8, ls=':')
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks(range(count), [f'{word}   {depth:.2f} m' for word, depth in zip(
        sample.tokens, sample.bins, strict=True)])
    axes.tick_params(axis='y', length=0)
    predicted = sample.patch_depth[patch.row, patch.column]
    axes.text(-0.03, 1.035, LETTERS[place], transform=axes.transAxes, ha='right', va='bottom',
              color='white', weight='bold', size=6.5,
              bbox={'boxstyle': 'round,pad=0.2', 'fc': color, 'lw': 0})
    axes.set_title(f'GT {patch.ground_truth:.2f} m   Pred {predicted:.2f} m', loc='right')


def _largest_weight(sample: Sample, patches: list[Patch]) -> float:
    return max(float(sample.weights[:, p.row, p.column].max()) for p in patches)
