# SPDX-License-Identifier: Apache-2.0
"""Statistics of a run: averages, bootstrap intervals, rankings, and the verdict."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthclip_ros.evaluation.bootstrap import (
    BEST_CONSTANT,
    MIN_GROUPS,
    VERDICT_METRICS,
    Interval,
    draw_groups,
    groups_of,
    percentile_interval,
    resample_count,
)
from depthclip_ros.evaluation.datasets import Entry
from depthclip_ros.evaluation.metrics import (
    METRICS,
    PAPER_METRICS,
    SIGNS,
    SYMBOLS,
    Float64,
    Sums,
    average,
    best_rows,
    by_name,
    metrics_of,
    number,
    resampled,
    unit,
)

from .predictors import Predictor
from .published import METHOD, TABLE_2_SCENES
from .records import HISTOGRAM_BINS, constants
from .results import ALL, ROLES, Comparison, Histograms, Row, Verdict

_ALL_METRICS = range(len(METRICS))

# Rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunStatistics:
    """Averages and bootstrap samples of the images with valid pixels."""

    records: NDArray[Any]  # in order of position
    predictors: Sequence[Predictor]  # in the order of the records' sums; equal names are averaged
    entries: Sequence[Entry]  # of the data set
    averaging: str  # 'image' or 'pixel'
    max_depth: float  # metres

    @property
    def scored_entries(self) -> list[Entry]:
        """Entries of the records' images, in order."""
        return [self.entries[p] for p in self.records['position']]

    @cached_property
    def by_scene(self) -> dict[str, RunStatistics]:
        """Statistics of all images, and of each scene class."""
        classes = [entry.scene for entry in self.scored_entries]
        return {ALL: self} | {
            scene: replace(self, records=self.records[[name == scene for name in classes]])
            for scene in sorted({*classes} - {''})}

    @cached_property
    def groups(self) -> NDArray[np.intp]:
        """(N,) scene number of every image; images of one scene are not independent."""
        return groups_of([entry.sequence for entry in self.scored_entries])

    @cached_property
    def group_count(self) -> int:
        """Number of scenes; an image of unknown scene counts as one."""
        return int(self.groups.max()) + 1

    @cached_property
    def draws(self) -> NDArray[np.uint16]:
        """(S, G) counts of each scene in each bootstrap sample, the same for all rows."""
        return draw_groups(self.group_count)

    def sums(self, name: str) -> list[Sums]:
        """Sums (N, 11) of every predictor of a name."""
        return [self.records['sums'][:, i] for i, c in enumerate(self.predictors)
                if c.name == name]

    def value(self, name: str) -> Float64:
        """Average a row's images: (10,) metrics."""
        return np.mean([  # type: ignore[no-any-return]
            average(s, self.averaging) for s in self.sums(name)], axis=0)

    def samples(self, name: str, draws: NDArray[np.uint16] | None = None) -> Float64:
        """Average a row's images in every bootstrap sample: (S, 10) metrics."""
        draws = self.draws if draws is None else draws
        return np.mean([  # type: ignore[no-any-return]
            resampled(s, self.groups, draws, self.averaging) for s in self.sums(name)], axis=0)

    def intervals(self, samples: Float64, family: int = 1) -> dict[str, Interval]:
        """Compute the intervals of (S, 10) samples, by metric; empty with too few scenes."""
        if self.group_count < MIN_GROUPS:
            return {}
        return {m: percentile_interval(samples[:, i], self.group_count, family)
                for i, m in enumerate(METRICS)}

    def best_constants(self) -> tuple[Float64, Float64]:
        """Find the best constant for each metric: (10,) metrics, and (10,) metres."""
        curve = average(self.records['curve'], self.averaging)
        best = best_rows(curve)
        return curve[best, _ALL_METRICS], constants(self.max_depth)[best]


def rows(run: RunStatistics) -> list[Row]:
    """Make all rows: every predictor over all images, and the scene classes that tables need."""
    parts = run.by_scene
    scenes_of = {'method': list(parts), 'bins': [s for s in TABLE_2_SCENES if s in parts]}
    first = {c.name: c for c in reversed(run.predictors)}
    result = [
        Row(name, first[name].group, scene, by_name(parts[scene].value(name)),
            len(parts[scene].records), parts[scene].intervals(parts[scene].samples(name)) or None,
            first[name].note)
        for name in dict.fromkeys(c.name for c in run.predictors)
        for scene in scenes_of.get(first[name].group, [ALL])]
    for scene, part in parts.items():
        metrics, metres = part.best_constants()
        optima = ', '.join(f'{SYMBOLS[m]} {depth:.2f} m'
                           for m, depth in zip(PAPER_METRICS, metres, strict=False))
        result.append(Row(
            BEST_CONSTANT, 'baseline', scene, by_name(metrics), len(part.records),
            note='oracle: for every metric the constant that is best on this ground truth '
                 f'({optima})'))
    return result


def histograms(run: RunStatistics) -> Histograms:
    """Sum histograms of true depth, by class and in all, and the joint one with the method."""
    return Histograms(
        np.linspace(0, run.max_depth, HISTOGRAM_BINS + 1).tolist(),
        {scene: part.records['histogram'].sum(0).tolist()
         for scene, part in run.by_scene.items()},
        run.records['joint'].sum(0, dtype=np.int64).tolist())


def ranking(run: RunStatistics, count: int) -> dict[str, list[int]]:
    """Rank images by δ1: indices in `records` of the best, median and worst, each image once."""
    d1 = metrics_of(run.sums(METHOD)[0])[:, 0]
    order = np.lexsort((run.records['position'], -d1)).tolist()
    n = len(order)
    if n < len(ROLES):
        return {'best': order[:1], 'median': [], 'worst': order[1:]}
    count = max(1, min(count, n // 3))
    middle = (n - count) // 2
    return {'best': order[:count], 'median': order[middle:middle + count],
            'worst': order[::-1][:count]}


def per_image_csv(run: RunStatistics) -> str:
    """Format one line per image: metrics of the method and of the best constant."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    best = best_rows(average(run.records['curve'], run.averaging))
    writer.writerow(['index', 'name', 'scene', 'pixels', 'median_depth_m', *METRICS,
                     *(f'best_constant_{m}' for m in METRICS)])
    method = metrics_of(run.sums(METHOD)[0])
    for entry, record, metrics in zip(run.scored_entries, run.records, method, strict=True):
        writer.writerow([
            entry.index, entry.name, entry.scene, record['pixels'], f'{record["median"]:.4f}',
            *(f'{v:.6f}' for v in (*metrics, *metrics_of(record['curve'])[best, _ALL_METRICS]))])
    return text.getvalue()


# The verdict -------------------------------------------------------------------------------------


def verdict(run: RunStatistics) -> Verdict:
    """Compare the method with the best constant and every other control, in every metric.

    All comparisons are paired: they use the same bootstrap samples of the same images. Every
    sample has its own best constant, since that is an oracle.
    """
    controls = list(dict.fromkeys(c.name for c in run.predictors if c.is_test
                                  and c.group in ('baseline', 'foreign')))
    family = len(VERDICT_METRICS) * (1 + len(controls))  # intervals in the text
    draws = draw_groups(run.group_count, resample_count(run.group_count, family)
                        if run.group_count >= MIN_GROUPS else 1)
    value, samples = run.value(METHOD), run.samples(METHOD, draws)
    best_value, constants_m = run.best_constants()

    def comparison(name: str, control_value: Float64, control_samples: Float64) -> Comparison:
        return Comparison(name, by_name(SIGNS * (value - control_value)),
                          run.intervals(SIGNS * (samples - control_samples), family))
    comparisons = [
        comparison(BEST_CONSTANT, best_value, resampled(
            run.records['curve'], run.groups, draws, run.averaging,
            lambda curves: SIGNS * (SIGNS * curves).max(axis=1))),
        *(comparison(name, run.value(name), run.samples(name, draws))
          for name in controls)]
    metres = by_name(constants_m)
    del metres['silog']  # equal for all constants: none is the best
    group_count = run.group_count
    unit_name = 'scenes' if all(e.sequence for e in run.scored_entries) else 'images'
    text = _sentences(comparisons, metres, len(run.records), group_count, unit_name)
    return Verdict(text, metres, comparisons, group_count, unit_name)


def _sentences(
    comparisons: Sequence[Comparison], metres: dict[str, float], images: int, group_count: int,
    unit_name: str,
) -> str:
    subject, note = f'{METHOD} over {images} images', ''
    if unit_name == 'scenes':
        subject += f' of {group_count} scene{"s" * (group_count != 1)}'
    else:
        note = (' Nothing says which images are of one scene; they are taken for independent, and '
                'if they are not, the intervals are too narrow.')
    if group_count < MIN_GROUPS:
        return (f'{subject}: too few for a verdict; intervals need at least {MIN_GROUPS} '
                f'{unit_name}.{note}')
    parts = []
    for metric in VERDICT_METRICS:
        gain, interval = comparisons[0].gains[metric], comparisons[0].intervals[metric]
        parts.append(
            f'in {SYMBOLS[metric]} {number(abs(gain))}{unit(metric)} '
            f'{"better" if gain >= 0 else "worse"} than the best constant '
            f'({metres[metric]:.2f} m; {interval.name()} of the gain '
            f'{number(interval.low, signed=True)} to {number(interval.high, signed=True)}'
            f'{unit(metric)}): {_clear_outcome(interval)}')
    outcomes: dict[str, list[str]] = {}
    for comparison in comparisons[1:]:
        words = {_clear_outcome(comparison.intervals[m]) for m in VERDICT_METRICS}
        outcomes.setdefault(words.pop() if len(words) == 1 else 'of mixed result', []).append(
            comparison.name)
    controls = '; '.join(f'{outcome} against {", ".join(names)}'
                         for outcome, names in outcomes.items())
    return (f'{subject} is {"; ".join(parts)}. In δ1 and rmse it is '
            f'{controls}. These are {len(comparisons)} comparisons of one family: all of their '
            f'{len(VERDICT_METRICS) * len(comparisons)} intervals hold together with 95 %.{note}')


def _clear_outcome(interval: Interval) -> str:
    outcome = interval.outcome()
    return outcome if outcome == 'not distinguishable' else f'clearly {outcome}'
