# SPDX-License-Identifier: Apache-2.0
"""From records to rows: averages, intervals, verdict, gate."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Column
from .datasets import Entry
from .metrics import Sums, average, metrics_of, resampled
from .paper import METHOD, TABLE_2_SCENES
from .records import HISTOGRAM, constants
from .results import (
    ALL,
    HIGHER_IS_BETTER,
    METRICS,
    PAPER_METRICS,
    Histograms,
    Interval,
    Row,
    Verdict,
)

BEST_CONSTANT = 'best constant'
RESAMPLES, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Measured:
    """The records of the images with valid pixels, and what they mean.

    Attributes:
        records: in order of position.
        columns: what their columns are.
        entries: of the data set.
        how: averaging, 'image' or 'pixel'.
        max_depth: metres.

    """

    records: NDArray[Any]
    columns: Sequence[Column]
    entries: Sequence[Entry]
    how: str
    max_depth: float

    @property
    def scenes(self) -> NDArray[Any]:
        """(N,) scene class of every record."""
        return np.array([self.entries[p].scene for p in self.records['position']])

    def of_scene(self, scene: str) -> Measured:
        """Only the images of a class."""
        chosen = self.records if scene == ALL else self.records[self.scenes == scene]
        return Measured(chosen, self.columns, self.entries, self.how, self.max_depth)

    def sums(self, name: str) -> list[Sums]:
        """(N, 11) of every column of that name."""
        return [self.records['columns'][:, i] for i, c in enumerate(self.columns)
                if c.name == name]

    def counts(self) -> NDArray[np.float64]:
        """(S, N) how often each image is in each bootstrap sample."""
        n = len(self.records)
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
        return drawn.astype(np.float64)


def rows(measured: Measured) -> list[Row]:
    """Every row: all columns over all images, and what the tables want per class."""
    classes = sorted({str(s) for s in measured.scenes} - {''})
    result = []
    for name in dict.fromkeys(c.name for c in measured.columns):
        column = next(c for c in measured.columns if c.name == name)
        scenes = {'method': [ALL, *classes],
                  'bins': [s for s in TABLE_2_SCENES if s in (ALL, *classes)]}
        result += [_row(measured.of_scene(scene), column, scene)
                   for scene in scenes.get(column.group, [ALL])]
    return result + [_best_constant_row(measured.of_scene(scene), scene)
                     for scene in (ALL, *classes)]


def _row(measured: Measured, column: Column, scene: str) -> Row:
    sums = measured.sums(column.name)
    values = np.mean([average(s, measured.how) for s in sums], axis=0)
    interval = None
    if scene == ALL:
        counts = measured.counts()
        samples = np.mean([resampled(s, counts, measured.how) for s in sums], axis=0)
        interval = _intervals(samples)
    return Row(column.name, column.group, scene, _named(values), len(measured.records), interval,
               column.note)


def _best_constant_row(measured: Measured, scene: str) -> Row:
    curve = average(measured.records['curve'], measured.how)
    best = _best(curve)
    metres = constants(measured.max_depth)
    chosen = ', '.join(f'{m} {metres[best[m]]:.2f} m' for m in PAPER_METRICS)
    note = f'oracle: for every metric the constant that is best on this ground truth ({chosen})'
    return Row(BEST_CONSTANT, 'baseline', scene, _at_best(curve, best), len(measured.records),
               None, note)


def verdict(measured: Measured) -> Verdict:
    """How far the method is above the best constant, in every metric.

    The constant is chosen anew in every bootstrap sample, as the oracle that it is.
    """
    counts = measured.counts()
    method = resampled(measured.sums(METHOD)[0], counts, measured.how)
    curve = average(measured.records['curve'], measured.how)
    value = average(measured.sums(METHOD)[0], measured.how)
    best = _best(curve)
    metres = constants(measured.max_depth)
    gains, intervals = {}, {}
    for i, metric in enumerate(METRICS):
        sign = 1 if metric in HIGHER_IS_BETTER else -1
        gains[metric] = float(sign * (value[i] - curve[best[metric], i]))
        oracle = (sign * _curve_samples(measured, counts, i)).max(axis=1)
        intervals[metric] = _interval(sign * method[:, i] - oracle)
    return Verdict(_sentence(gains, intervals, metres[best['d1']], metres[best['rmse']],
                             len(measured.records)),
                   {m: float(metres[b]) for m, b in best.items()}, gains, intervals)


def _curve_samples(measured: Measured, counts: NDArray[np.float64], metric: int) -> Sums:
    """(S, constants) one metric of every constant in every bootstrap sample."""
    curve = measured.records['curve']
    if measured.how == 'image':
        per_image = metrics_of(curve)[:, :, metric]
        means: Sums = counts @ per_image / counts.sum(1, keepdims=True)
        return means
    pooled = [metrics_of(np.tensordot(sample, curve, 1))[:, metric] for sample in counts]
    return np.stack(pooled)


def _sentence(gains: dict[str, float], intervals: dict[str, Interval], d1_constant: float,
              rmse_constant: float, images: int) -> str:
    def part(metric: str, what: str, unit: str, constant: float) -> str:
        gain, interval = gains[metric], intervals[metric]
        word = 'better' if gain >= 0 else 'worse'
        verdict = ('clearly better' if interval.low > 0 else 'clearly worse'
                   if interval.high < 0 else 'not distinguishable')
        return (f'in {what} {abs(gain):.3f}{unit} {word} than the best constant ({constant:.2f} m;'
                f' 95 % interval of the gain {interval.low:+.3f} to {interval.high:+.3f}{unit}): '
                f'{verdict}')
    return (f'{METHOD} over {images} images is {part("d1", "δ1", "", d1_constant)}; '
            f'{part("rmse", "rmse", " m", rmse_constant)}.')


def histograms(measured: Measured) -> Histograms:
    """Distribution of the true depth, per class and in all."""
    edges = np.linspace(0, measured.max_depth, HISTOGRAM + 1)
    classes = [ALL, *sorted({str(s) for s in measured.scenes} - {''})]
    return Histograms(edges.tolist(), {
        scene: measured.of_scene(scene).records['histogram'].sum(0).tolist()
        for scene in classes})


def ranking(measured: Measured, count: int) -> dict[str, list[int]]:
    """Positions in `records` of the best, median and worst images by δ1, without repetition."""
    d1 = metrics_of(measured.sums(METHOD)[0])[:, 0]
    order = [int(i) for i in np.lexsort((measured.records['position'], -d1))]
    n = len(order)
    count = max(1, min(count, n // 3))
    middle = (n - count) // 2
    chosen = {'best': order[:count], 'median': order[middle:middle + count],
              'worst': order[::-1][:count]}
    return chosen if n >= 3 else {'best': order[:1], 'median': [], 'worst': order[1:]}


def per_image_csv(measured: Measured) -> str:
    """One line per image: the method's metrics, and those of the best constant."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    curve = average(measured.records['curve'], measured.how)
    best = _best(curve)
    writer.writerow(['index', 'name', 'scene', 'pixels', 'median_depth_m', *METRICS,
                     *(f'best_constant_{m}' for m in METRICS)])
    method = metrics_of(measured.sums(METHOD)[0])
    for record, metrics in zip(measured.records, method, strict=True):
        entry = measured.entries[record['position']]
        constant = metrics_of(record['curve'])
        writer.writerow([
            entry.index, entry.name, entry.scene, record['pixels'], f'{record["median"]:.4f}',
            *(f'{v:.6f}' for v in metrics),
            *(f'{constant[best[m], i]:.6f}' for i, m in enumerate(METRICS))])
    return text.getvalue()


def _best(curve: Sums) -> dict[str, int]:
    """For every metric, which constant is best; `curve` is (constants, 10)."""
    return {m: int(curve[:, i].argmax() if m in HIGHER_IS_BETTER else curve[:, i].argmin())
            for i, m in enumerate(METRICS)}


def _at_best(curve: Sums, best: dict[str, int]) -> dict[str, float]:
    return {m: float(curve[best[m], i]) for i, m in enumerate(METRICS)}


def _named(values: Sums) -> dict[str, float]:
    return dict(zip(METRICS, (float(v) for v in values), strict=True))


def _intervals(samples: Sums) -> dict[str, Interval]:
    return {m: _interval(samples[:, i]) for i, m in enumerate(METRICS)}


def _interval(samples: Sums) -> Interval:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), LEVEL)
