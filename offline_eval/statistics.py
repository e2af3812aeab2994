# SPDX-License-Identifier: Apache-2.0
"""From records to rows and the verdict: averages, and intervals by resampling scenes."""

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
    LEAST_GROUPS,
    SAID,
    Interval,
    draw,
    groups_of,
    interval,
    resamples,
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
    best_of,
    metrics_of,
    named,
    number,
    resampled,
    unit,
)

from .contenders import Contender
from .published import METHOD, TABLE_2_SCENES
from .records import HISTOGRAM, constants
from .results import ALL, ROLES, Comparison, Histograms, Row, Verdict

_EACH = range(len(METRICS))

# Rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The records of the images with valid pixels, and what they mean."""

    records: NDArray[Any]  # in order of position
    contenders: Sequence[Contender]  # whose sums they hold; several of one name are averaged
    entries: Sequence[Entry]  # of the data set
    how: str  # averaging, 'image' or 'pixel'
    max_depth: float  # metres

    @property
    def of_records(self) -> list[Entry]:
        """What is known of every record's image."""
        return [self.entries[p] for p in self.records['position']]

    @cached_property
    def by_scene(self) -> dict[str, Measured]:
        """All images, and those of each class."""
        of_images = [entry.scene for entry in self.of_records]
        return {ALL: self} | {
            scene: replace(self, records=self.records[[one == scene for one in of_images]])
            for scene in sorted({*of_images} - {''})}

    @cached_property
    def groups(self) -> NDArray[np.intp]:
        """(N,) which images are of one scene, and so not independent."""
        return groups_of([entry.sequence for entry in self.of_records])

    @cached_property
    def units(self) -> int:
        """Number of scenes; an image of which none is known is one of its own."""
        return int(self.groups.max()) + 1

    @cached_property
    def counts(self) -> NDArray[np.uint16]:
        """(S, G) how often each scene is in each bootstrap sample, the same for all rows."""
        return draw(self.units)

    def sums(self, name: str) -> list[Sums]:
        """(N, 11) of every contender of that name."""
        return [self.records['sums'][:, i] for i, c in enumerate(self.contenders)
                if c.name == name]

    def value(self, name: str) -> Float64:
        """(10,) metrics of a row."""
        return np.mean([average(s, self.how) for s in self.sums(name)], axis=0)  # type: ignore[no-any-return]

    def samples(self, name: str, counts: NDArray[np.uint16] | None = None) -> Float64:
        """(S, 10) metrics of a row in every bootstrap sample."""
        drawn = self.counts if counts is None else counts
        return np.mean([  # type: ignore[no-any-return]
            resampled(s, self.groups, drawn, self.how) for s in self.sums(name)], axis=0)

    def intervals(self, samples: Float64, family: int = 1) -> dict[str, Interval]:
        """Of (S, 10) samples, by metric; none of too few scenes."""
        return {m: interval(samples[:, i], self.units, family) for i, m in enumerate(METRICS)
                } if self.units >= LEAST_GROUPS else {}

    def best_constants(self) -> tuple[Float64, Float64]:
        """(10,) metrics of the constant that is best in each, and (10,) its metres."""
        curve = average(self.records['curve'], self.how)
        best = best_of(curve)
        return curve[best, _EACH], constants(self.max_depth)[best]


def rows(measured: Measured) -> list[Row]:
    """Every row: all contenders over all images, and what the tables want per class."""
    parts = measured.by_scene
    wanted = {'method': list(parts), 'bins': [s for s in TABLE_2_SCENES if s in parts]}
    first = {c.name: c for c in reversed(measured.contenders)}
    result = [
        Row(name, first[name].group, scene, named(parts[scene].value(name)),
            len(parts[scene].records), parts[scene].intervals(parts[scene].samples(name)) or None,
            first[name].note)
        for name in dict.fromkeys(c.name for c in measured.contenders)
        for scene in wanted.get(first[name].group, [ALL])]
    for scene, some in parts.items():
        metrics, metres = some.best_constants()
        chosen = ', '.join(f'{SYMBOLS[m]} {chosen:.2f} m'
                           for m, chosen in zip(PAPER_METRICS, metres, strict=False))
        result.append(Row(
            BEST_CONSTANT, 'baseline', scene, named(metrics), len(some.records),
            note='oracle: for every metric the constant that is best on this ground truth '
                 f'({chosen})'))
    return result


def histograms(measured: Measured) -> Histograms:
    """Distribution of the true depth, per class and in all, and with that of the method's."""
    return Histograms(
        np.linspace(0, measured.max_depth, HISTOGRAM + 1).tolist(),
        {scene: some.records['histogram'].sum(0).tolist()
         for scene, some in measured.by_scene.items()},
        measured.records['joint'].sum(0, dtype=np.int64).tolist())


def ranking(measured: Measured, count: int) -> dict[str, list[int]]:
    """Places in `records` of the best, median and worst images by δ1, without repetition."""
    d1 = metrics_of(measured.sums(METHOD)[0])[:, 0]
    order = np.lexsort((measured.records['position'], -d1)).tolist()
    n = len(order)
    if n < len(ROLES):
        return {'best': order[:1], 'median': [], 'worst': order[1:]}
    count = max(1, min(count, n // 3))
    middle = (n - count) // 2
    return {'best': order[:count], 'median': order[middle:middle + count],
            'worst': order[::-1][:count]}


def per_image_csv(measured: Measured) -> str:
    """One line per image: the method's metrics, and those of the best constant."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    best = best_of(average(measured.records['curve'], measured.how))
    writer.writerow(['index', 'name', 'scene', 'pixels', 'median_depth_m', *METRICS,
                     *(f'best_constant_{m}' for m in METRICS)])
    method = metrics_of(measured.sums(METHOD)[0])
    for entry, record, metrics in zip(measured.of_records, measured.records, method, strict=True):
        writer.writerow([
            entry.index, entry.name, entry.scene, record['pixels'], f'{record["median"]:.4f}',
            *(f'{v:.6f}' for v in (*metrics, *metrics_of(record['curve'])[best, _EACH]))])
    return text.getvalue()


# The verdict -------------------------------------------------------------------------------------


def verdict(measured: Measured) -> Verdict:
    """How far the method is above the best constant and every other control, in every metric.

    All are compared on the same images of the same bootstrap samples. The best constant is chosen
    anew in every sample, as the oracle that it is.
    """
    others = list(dict.fromkeys(c.name for c in measured.contenders if c.is_test
                                and c.group in ('baseline', 'foreign')))
    family = len(SAID) * (1 + len(others))  # what the sentences say
    counts = draw(measured.units, resamples(measured.units, family)
                  if measured.units >= LEAST_GROUPS else 1)
    value, samples = measured.value(METHOD), measured.samples(METHOD, counts)
    best, chosen = measured.best_constants()

    def comparison(name: str, other: Float64, of_other: Float64) -> Comparison:
        return Comparison(name, named(SIGNS * (value - other)),
                          measured.intervals(SIGNS * (samples - of_other), family))
    comparisons = [
        comparison(BEST_CONSTANT, best, resampled(
            measured.records['curve'], measured.groups, counts, measured.how,
            lambda curves: SIGNS * (SIGNS * curves).max(axis=1))),
        *(comparison(name, measured.value(name), measured.samples(name, counts))
          for name in others)]
    metres = named(chosen)
    del metres['silog']  # a constant's is the same whatever the constant is: none is the best
    units = measured.units
    what = 'scenes' if all(entry.sequence for entry in measured.of_records) else 'images'
    return Verdict(_text(comparisons, metres, len(measured.records), units, what), metres,
                   comparisons, units, what)


def _text(
    comparisons: Sequence[Comparison], metres: dict[str, float], images: int, units: int,
    what: str,
) -> str:
    of, note = (f' of {units} scene{"s" * (units != 1)}', '') if what == 'scenes' else ('', (
        ' Nothing says which images are of one scene; they are taken for independent, and if '
        'they are not, the intervals are too narrow.'))
    if units < LEAST_GROUPS:
        return (f'{METHOD} over {images} images{of}: too few for a verdict; intervals need at '
                f'least {LEAST_GROUPS} {what}.{note}')
    parts = []
    for metric in SAID:
        gain, found = comparisons[0].gains[metric], comparisons[0].intervals[metric]
        parts.append(
            f'in {SYMBOLS[metric]} {number(abs(gain))}{unit(metric)} '
            f'{"better" if gain >= 0 else "worse"} than the best constant '
            f'({metres[metric]:.2f} m; {found.name()} of the gain '
            f'{number(found.low, signed=True)} to {number(found.high, signed=True)}'
            f'{unit(metric)}): {_clearly(found)}')
    outcomes: dict[str, list[str]] = {}
    for comparison in comparisons[1:]:
        words = {_clearly(comparison.intervals[m]) for m in SAID}
        outcomes.setdefault(words.pop() if len(words) == 1 else 'of mixed result', []).append(
            comparison.name)
    others = '; '.join(f'{outcome} against {", ".join(names)}'
                       for outcome, names in outcomes.items())
    return (f'{METHOD} over {images} images{of} is {"; ".join(parts)}. In δ1 and rmse it is '
            f'{others}. These are {len(comparisons)} comparisons of one family: all of their '
            f'{len(SAID) * len(comparisons)} intervals hold together with 95 %.{note}')


def _clearly(found: Interval) -> str:
    word = found.reading()
    return word if word == 'not distinguishable' else f'clearly {word}'
