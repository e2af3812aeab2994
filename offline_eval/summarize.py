# SPDX-License-Identifier: Apache-2.0
"""From records to rows: averages, intervals, verdict, gate."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import LEAST_GROUPS, draw, groups_of, interval
from .contenders import Contender
from .datasets import Entry
from .metrics import Sums, average, best_of, metrics_of, named, resampled
from .names import SYMBOLS, number
from .names import unit as unit_of
from .paper import METHOD, TABLE_2_SCENES
from .records import HISTOGRAM, constants
from .results import (
    ALL,
    HIGHER_IS_BETTER,
    METRICS,
    PAPER_METRICS,
    Comparison,
    Histograms,
    Interval,
    Row,
    Verdict,
)

BEST_CONSTANT = 'best constant'
# What the sentences are about.
_SIGNS = np.array([1.0 if m in HIGHER_IS_BETTER else -1.0 for m in METRICS])
_SAID = ('d1', 'rmse')
# A constant's is the same whatever the constant is: none is the best.
_OF_NO_SCALE = frozenset({'silog'})
_EACH = range(len(METRICS))


@dataclass(frozen=True)
class Measured:
    """The records of the images with valid pixels, and what they mean.

    Attributes:
        records: in order of position.
        contenders: whose sums they hold.
        entries: of the data set.
        how: averaging, 'image' or 'pixel'.
        max_depth: metres.

    """

    records: NDArray[Any]
    contenders: Sequence[Contender]
    entries: Sequence[Entry]
    how: str
    max_depth: float

    @property
    def scenes(self) -> NDArray[Any]:
        """(N,) scene class of every record."""
        return np.array([self.entries[p].scene for p in self.records['position']])

    def of_scene(self, scene: str) -> Measured:
        """Only the images of a class."""
        if scene == ALL:
            return self
        chosen = self.records[self.scenes == scene]
        return Measured(chosen, self.contenders, self.entries, self.how, self.max_depth)

    def sums(self, name: str) -> list[Sums]:
        """(N, 11) of every contender of that name."""
        return [self.records['sums'][:, i] for i, c in enumerate(self.contenders)
                if c.name == name]

    @cached_property
    def groups(self) -> NDArray[np.intp]:
        """(N,) which images are of one scene, and so not independent."""
        return groups_of([self.entries[p].sequence for p in self.records['position']])

    @cached_property
    def counts(self) -> NDArray[np.float64]:
        """(S, N) how often each image is in each bootstrap sample, the same for all rows."""
        return draw(self.groups)


def rows(measured: Measured) -> list[Row]:
    """Every row: all contenders over all images, and what the tables want per class."""
    classes = sorted({str(s) for s in measured.scenes} - {''})
    result = []
    for name in dict.fromkeys(c.name for c in measured.contenders):
        contender = next(c for c in measured.contenders if c.name == name)
        scenes = {'method': [ALL, *classes],
                  'bins': [s for s in TABLE_2_SCENES if s in (ALL, *classes)]}
        result += [_row(measured.of_scene(scene), contender, scene)
                   for scene in scenes.get(contender.group, [ALL])]
    return result + [_best_constant_row(measured.of_scene(scene), scene)
                     for scene in (ALL, *classes)]


def _row(measured: Measured, contender: Contender, scene: str) -> Row:
    sums = measured.sums(contender.name)
    values = np.mean([average(s, measured.how) for s in sums], axis=0)
    samples = np.mean([resampled(s, measured.counts, measured.how) for s in sums], axis=0)
    found = _intervals(samples, measured.groups) or None
    return Row(contender.name, contender.group, scene, named(values), len(measured.records),
               found, contender.note)


def _best_constant_row(measured: Measured, scene: str) -> Row:
    curve = average(measured.records['curve'], measured.how)
    best = best_of(curve)
    metres = constants(measured.max_depth)[best]
    chosen = ', '.join(f'{SYMBOLS[m]} {chosen:.2f} m'
                       for m, chosen in zip(PAPER_METRICS, metres, strict=False))
    note = f'oracle: for every metric the constant that is best on this ground truth ({chosen})'
    return Row(BEST_CONSTANT, 'baseline', scene, named(curve[best, _EACH]), len(measured.records),
               None, note)


def verdict(measured: Measured) -> Verdict:
    """How far the method is above the best constant and every other control, in every metric.

    All are compared on the same images of the same bootstrap samples. The best constant is chosen
    anew in every sample, as the oracle that it is.
    """
    groups, counts = measured.groups, measured.counts
    sums = measured.sums(METHOD)[0]
    value = average(sums, measured.how)
    samples = resampled(sums, counts, measured.how)
    curve = average(measured.records['curve'], measured.how)
    best = best_of(curve)
    oracle = np.concatenate([  # in parts, which fit into memory
        _SIGNS * (_SIGNS * resampled(measured.records['curve'], part, measured.how)).max(axis=1)
        for part in np.array_split(counts, 10)])
    controls = list(dict.fromkeys(
        c.name for c in measured.contenders
        if c.group in ('baseline', 'foreign') and c.is_test))
    family = 1 + len(controls)
    comparisons = [_comparison(
        BEST_CONSTANT, value - curve[best, _EACH], samples - oracle, groups, family)]
    for name in controls:
        others = measured.sums(name)
        comparisons.append(_comparison(
            name, value - np.mean([average(s, measured.how) for s in others], axis=0),
            samples - np.mean([resampled(s, counts, measured.how) for s in others], axis=0),
            groups, family))
    metres = {m: chosen for m, chosen in named(constants(measured.max_depth)[best]).items()
              if m not in _OF_NO_SCALE}
    are_named = any(measured.entries[p].sequence for p in measured.records['position'])
    units, unit = int(groups.max()) + 1, 'scenes' if are_named else 'images'
    text = _text(comparisons, metres, len(measured.records), units, unit)
    return Verdict(text, metres, comparisons, units, unit)


def _comparison(
    name: str, gain: Sums, samples: Sums, groups: NDArray[np.intp], family: int,
) -> Comparison:
    return Comparison(name, named(_SIGNS * gain), _intervals(_SIGNS * samples, groups, family))


def _text(
    comparisons: Sequence[Comparison], metres: Mapping[str, float], images: int, units: int,
    unit: str,
) -> str:
    of = f' of {units} scenes' if unit == 'scenes' else ''
    note = '' if unit == 'scenes' else (
        ' The data do not say which images are of one scene; they are taken for independent, and '
        'if they are not, the intervals are too narrow.')
    if units < LEAST_GROUPS:
        return (f'{METHOD} over {images} images{of}: too few for a verdict; intervals need at '
                f'least {LEAST_GROUPS} {unit}.{note}')

    def part(metric: str) -> str:
        gain, found = comparisons[0].gains[metric], comparisons[0].intervals[metric]
        word = 'better' if gain >= 0 else 'worse'
        return (f'in {SYMBOLS[metric]} {number(abs(gain))}{unit_of(metric)} {word} than the best '
                f'constant ({metres[metric]:.2f} m; {found.name()} of the gain '
                f'{number(found.low, signed=True)} to {number(found.high, signed=True)}'
                f'{unit_of(metric)}): {reading(found)}')
    outcomes: dict[str, list[str]] = {}
    for comparison in comparisons[1:]:
        words = {reading(comparison.intervals[m]) for m in _SAID}
        outcomes.setdefault(words.pop() if len(words) == 1 else 'of mixed result', []).append(
            comparison.name)
    others = '; '.join(f'{outcome} against {", ".join(names)}'
                       for outcome, names in outcomes.items())
    return (f'{METHOD} over {images} images{of} is {"; ".join(map(part, _SAID))}.'
            + (f' In δ1 and rmse it is {others}.' if others else '')
            + f' These are {len(comparisons)} comparisons of one family: all of their intervals '
              f'hold together with 95 %.{note}')


def reading(found: Interval) -> str:
    """What an interval of the gain allows to say."""
    word = found.reading()
    return word if word == 'not distinguishable' else f'clearly {word}'


def histograms(measured: Measured) -> Histograms:
    """Distribution of the true depth, per class and in all, and with that of the method's."""
    edges = np.linspace(0, measured.max_depth, HISTOGRAM + 1)
    classes = [ALL, *sorted({str(s) for s in measured.scenes} - {''})]
    return Histograms(edges.tolist(), {
        scene: measured.of_scene(scene).records['histogram'].sum(0).tolist()
        for scene in classes}, measured.records['joint'].sum(0, dtype=np.int64).tolist())


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
    best = best_of(curve)
    writer.writerow(['index', 'name', 'scene', 'pixels', 'median_depth_m', *METRICS,
                     *(f'best_constant_{m}' for m in METRICS)])
    method = metrics_of(measured.sums(METHOD)[0])
    for record, metrics in zip(measured.records, method, strict=True):
        entry = measured.entries[record['position']]
        constant = metrics_of(record['curve'])
        writer.writerow([
            entry.index, entry.name, entry.scene, record['pixels'], f'{record["median"]:.4f}',
            *(f'{v:.6f}' for v in metrics),
            *(f'{v:.6f}' for v in constant[best, _EACH])])
    return text.getvalue()


def _intervals(
    samples: Sums, groups: NDArray[np.intp], family: int = 1,
) -> dict[str, Interval]:
    count = int(groups.max()) + 1
    if count < LEAST_GROUPS:
        return {}
    return {m: interval(samples[:, i], count, family) for i, m in enumerate(METRICS)}
