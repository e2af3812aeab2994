# SPDX-License-Identifier: Apache-2.0
"""The report's figures: charts as SVG, photographs as PNG."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from depthclip_ros.evaluation.metrics import PAPER_METRICS, SYMBOLS, heading, unit
from depthclip_ros.report.document import Picture
from depthclip_ros.report.figures import (
    PREDICTED,
    PREDICTIONS,
    RESPONSES,
    TRUTH,
    density,
    distributions,
    figure_style,
    new_figure,
    predictions,
    quantile,
    responses,
    save,
    scale_of,
    short,
    spots_of,
)
from offline_eval.report.tables import class_name
from offline_eval.results import ALL, ROLES, Results, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OUTCOME_COLORS = {'better': TRUTH, 'worse': PREDICTED}
_MIN_SHARE = 1e-3  # fraction of the pixels that a bin needs for its error to be drawn


def draw(folder: Path, results: Results) -> dict[str, list[Picture]]:
    """Draw all figures that the results have data for.

    Args:
        folder: of the report; files go into its `figures/`.
        results: of the evaluation.

    Returns:
        Pictures by section.

    """
    summary, histograms = results.summary, results.summary.histograms
    bins = [float(b) for b in summary.config.get('bins', [])]
    scale = scale_of(results.samples)
    ranks = list(zip_longest(*map(results.of_role, ROLES)))
    with figure_style():
        return {
            'gains': [save(
                folder, 'gains.svg', gains(summary), 'Gains over every control',
                'In δ1 and rmse; to the right of the line the method is better. Bars: intervals, '
                'all of which hold together with 95 %; of one that crosses the line nothing can '
                'be told.')] if summary.verdict.comparisons else [],
            'depths': [save(
                folder, 'depths.svg', depths(summary), 'Predicted against true depth',
                'All counted pixels. Left: how many there are of every pair of true and predicted '
                'depth; no word can say anything beyond the first and the last bin. Right: '
                'prediction minus truth at every true depth, beside what the one constant of the '
                'best rmse errs by.')],
            'distributions': [save(
                folder, 'distributions.svg', distributions(
                    histograms.edges, {_class_title(scene, summary): counts for scene, counts
                                       in histograms.counts.items()},
                    [bins] * len(histograms.counts), 'true depth (m)', class_name(ALL)),
                'Depth distributions of the scene classes',
                'True depth of all counted pixels, per scene class, from the nearest class to the '
                'farthest, as in the paper’s Figure 3. In brackets: number of images. No '
                'prediction is nearer than the first bin or farther than the last.')],
            'predictions': [save(
                folder, f'predictions_{rank}.png', predictions(
                    [s for s in samples if s is not None], {
                        m: f'{SYMBOLS[m]} {{:.3f}}{unit(m)}' for m in PAPER_METRICS}, scale),
                f'Predictions beside the ground truth{f", continued ({rank})" * (rank > 1)}',
                f'The best, the median and the worst of {summary.data.evaluated} images by δ1. '
                f'{PREDICTIONS}') for rank, samples in enumerate(ranks, 1)],
            'responses': [save(
                folder, f'responses_{role}.png', responses(
                    sample, short(sample.name), spots_of(sample), scale),
                f'Responses of the {len(sample.bins)} words, {role} image ({sample.label})',
                RESPONSES)
                for role in ('median', 'best', 'worst')  # the median image is the typical one
                for sample in results.of_role(role)[:1]]}


def depths(summary: Summary) -> Figure:
    """Plot the joint density of true and predicted depth, and the error over true depth."""
    from matplotlib.colors import LogNorm
    histograms, constant = summary.histograms, summary.verdict.constants.get('rmse')
    joint = np.asarray(histograms.joint, float)
    edges = np.linspace(histograms.edges[0], histograms.edges[-1], len(joint) + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    bins = [float(b) for b in summary.config.get('bins', [])]
    max_truth = float(edges[1 + np.flatnonzero(joint.sum(1)).max()])
    figure = new_figure(2.7)
    density_axes, error_axes = figure.subplots(1, 2)
    picture = density_axes.imshow(
        np.where(joint > 0, joint / joint.sum(), np.nan).T, origin='lower', cmap='Blues',
        norm=LogNorm(vmin=1e-6), extent=(edges[0], edges[-1], edges[0], edges[-1]),
        interpolation='none')
    density_axes.plot(edges[[0, -1]], edges[[0, -1]], 'k--', lw=0.8, label='truth')
    density_axes.hlines(bins[:1] + bins[-1:], *edges[[0, -1]], color=PREDICTED, lw=1, ls=':',
                        label='first, last bin')
    density_axes.legend(loc='upper left', bbox_to_anchor=(0, 0.95))
    density_axes.set(xlim=(0, max_truth), ylim=(0, max([max_truth, *(1.03 * b for b in bins)])),
                     xlabel='true depth (m)', ylabel='predicted depth (m)')
    figure.colorbar(picture, ax=density_axes, label='share of the pixels',
                    format=lambda share, _: f'{100 * share:g} %')
    occupied = np.flatnonzero(joint.sum(1) >= _MIN_SHARE * joint.sum())
    low, middle, high = (np.array([quantile(edges, density(edges, joint[k]), q) - middles[k]
                                   for k in occupied]) for q in (0.1, 0.5, 0.9))
    error_axes.fill_between(middles[occupied], low, high, color=PREDICTED, alpha=0.25, lw=0,
                            label='middle 80 %')
    error_axes.plot(middles[occupied], middle, color=PREDICTED, label='method, median')
    if constant is not None:
        error_axes.plot(middles[occupied], constant - middles[occupied], color='#777777',
                        ls='--', lw=0.9, label=f'constant {constant:.2f} m')
    error_axes.axhline(0, color='black', lw=0.6)
    error_axes.set(xlim=(0, max_truth), xlabel='true depth (m)', ylabel='prediction − truth (m)')
    error_axes.legend()
    return figure


def gains(summary: Summary) -> Figure:
    """Plot the method's gain over every control with its interval (forest plot)."""
    comparisons = summary.verdict.comparisons
    figure = new_figure(0.17 * len(comparisons) + 0.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, ('d1', 'rmse'), strict=True):
        axes.axvline(0, color='black', lw=0.8)
        for row, comparison in enumerate(comparisons):
            gain, interval = comparison.gains[metric], comparison.intervals.get(metric)
            color = _OUTCOME_COLORS.get(interval.outcome() if interval else '', '#777777')
            axes.plot(gain, row, 'o', color=color, ms=3.5)
            if interval:
                axes.plot((interval.low, interval.high), (row, row), color=color, lw=1.6)
        axes.set(xlabel=f'gain in {heading(metric)[:-2]}',
                 ylim=(len(comparisons) - 0.5, -0.5))
        axes.grid(axis='y', color='#dddddd', lw=0.5)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(comparisons)), [short(c.name) for c in comparisons])
    return figure


def _class_title(scene: str, summary: Summary) -> str:
    """Format the title of a scene class, with its number of images."""
    row = next((r for r in summary.rows if (r.group, r.scene) == ('method', scene)), None)
    return class_name(scene) + ('' if row is None or scene == ALL else f' ({row.images})')
