# SPDX-License-Identifier: Apache-2.0
"""The tables of a report: what was measured, beside what was published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from depthclip_ros.core.errors import quoted
from depthclip_ros.document import Quiet, Small, Strong, Table
from offline_eval.gate import other_settings
from offline_eval.names import MEANINGS, SYMBOLS, heading, number
from offline_eval.report.source import ROLES, Source
from offline_eval.results import (
    ALL,
    HIGHER_IS_BETTER,
    METRICS,
    PAPER_METRICS,
    Interval,
    PaperRow,
    Row,
    Summary,
)

BEST_CONSTANT = 'best constant'
PUBLISHED = 'Italics: published numbers, not measured in this run.'
INTERVALS = 'Small: bootstrap 95 % intervals; whole scenes are drawn, where the data name them.'


@dataclass(frozen=True)
class Line:
    """A row of metrics: `Strong` for the method, `Quiet` for what was published."""

    name: str
    metrics: dict[str, float]
    style: type[str] = str
    note: str = ''
    images: int | None = None
    signed: bool = False
    interval: dict[str, Interval] | None = None


def metric_table(
    title: str, first: str, lines: Sequence[Line], note: str = '', *,
    metrics: Sequence[str] = PAPER_METRICS, last: str = 'note', best: bool = False,
) -> Table:
    """Build a table with a column per metric, and intervals below their numbers.

    Args:
        title: of the table.
        first: heading of the names.
        lines: the rows; numbers of images and notes have columns where any line has some.
        note: below the table.
        metrics: the columns.
        last: heading of the notes.
        best: whether to mark the best line of this run, per metric.

    """
    counted = any(line.images is not None for line in lines)
    noted = any(line.note for line in lines)
    leaders = {m: _leader(lines, m) for m in metrics} if best else {}

    def row(name: str, images: str, numbers: list[str], note: str) -> list[str]:
        return [name, *([images] if counted else []), *numbers, *([note] if noted else [])]
    rows = []
    for line in lines:
        numbers = []
        for metric in metrics:
            style = Strong if leaders.get(metric) is line else line.style
            numbers.append(style(number(line.metrics.get(metric), signed=line.signed)))
        note_style = Quiet if line.style is Quiet else str
        rows.append(row(line.style(line.name), '' if line.images is None else str(line.images),
                        numbers, note_style(line.note)))
        if line.interval:
            rows.append(row(Small('95 % interval'), '', [
                Small(_interval(line.interval.get(m))) for m in metrics], ''))
    header = row(first, 'images', [heading(m) for m in metrics], last)
    texts = {0, len(header) - 1} if noted else {0}
    return Table(header, rows, title, note, frozenset(texts))


def _leader(lines: Sequence[Line], metric: str) -> Line | None:
    """Best line of this run, if it has another to compare with."""
    known = [line for line in lines if line.style is not Quiet and not line.signed
             and math.isfinite(line.metrics.get(metric, math.nan))]
    choose = max if metric in HIGHER_IS_BETTER else min
    return choose(known, key=lambda line: line.metrics[metric]) if len(known) > 1 else None


def headline_row(summary: Summary) -> Row:
    """Row of the method over all images."""
    rows = _rows(summary, 'method')
    return rows[0] if rows else Row('DepthCLIP', 'method', ALL, {}, 0)


def _rows(summary: Summary, group: str, scene: str = ALL) -> list[Row]:
    return [row for row in summary.rows if (row.group, row.scene) == (group, scene)]


def _lines(rows: Sequence[Row]) -> list[Line]:
    return [Line(row.name, row.metrics, note=row.note) for row in rows]


def _published(summary: Summary, *tables: str) -> list[PaperRow]:
    """Published rows that this run can stand beside: those of the same images only."""
    return [p for p in summary.paper if p.table in tables] if summary.data.official else []


def reproduction(summary: Summary) -> Table:
    """The method's row: this run, the paper, the difference, and what is allowed."""
    row, gate = headline_row(summary), summary.gate
    paper = next(p for p in summary.paper if (p.table, p.name) == ('1', row.name))
    table = metric_table('The method beside the paper’s Table 1', '', [
        Line(f'{row.name}, this run', row.metrics, Strong, interval=row.interval),
        Line('the paper', paper.metrics, Quiet),
        Line('difference', gate.differences, signed=True)], PUBLISHED)
    allowed, within = ['allowed'], ['within']
    for metric in PAPER_METRICS:
        limit, found = gate.limits.get(metric), gate.differences.get(metric, math.nan)
        allowed.append('any' if limit is None else f'± {number(limit)}')
        within.append('–' if limit is None or not math.isfinite(found)
                      else 'yes' if abs(found) <= limit else 'no')
    return Table(table.header, [*table.rows, allowed, within], table.title, table.note)


def published(summary: Summary) -> Table:
    """What others reported, for orientation."""
    method = headline_row(summary)
    lines = []
    for paper in summary.paper:
        if paper.table in ('2', '3', 'calibrated'):
            continue
        source = 'the paper, Table 1' if paper.table == '1' else paper.table
        lines.append(Line(paper.name, paper.metrics, Quiet,
                          f'{source}; {paper.note}' if paper.note else source))
    lines.append(Line(f'{method.name}, weights {summary.weights.name}', method.metrics, Strong,
                      'this run'))
    return metric_table('Published rows, and this run', 'method', lines, PUBLISHED, last='source')


def baselines(summary: Summary) -> Table:
    """Whatever needs no network, and controls of the network, on the same pixels."""
    method = headline_row(summary)
    rows = sorted(_rows(summary, 'baseline'), key=lambda r: r.name != BEST_CONSTANT)
    return metric_table(
        'Baselines on the same pixels', 'baseline',
        [Line(method.name, method.metrics, Strong, method.note), *_lines(rows)],
        'Bold: the method. An oracle is chosen with the ground truth in hand.')


def beside(summary: Summary, group: str, title: str) -> list[Table]:
    """Build the rows of a group, if any, below the method's, which knows the image alone."""
    rows = _rows(summary, group)
    if not rows:
        return []
    method = headline_row(summary)
    reported = [Line(p.name, p.metrics, Quiet, p.note) for p in _published(summary, group)]
    note = 'Bold: the method, which knows the image alone.'
    return [metric_table(
        title, 'method',
        [Line(method.name, method.metrics, Strong, method.note), *_lines(rows), *reported],
        f'{note} {PUBLISHED}' if reported else note)]


def verdict(summary: Summary) -> Table:
    """How far the method is above the best constant, metric by metric."""
    metrics, result = headline_row(summary).metrics, summary.verdict
    first = result.comparisons[0]
    rows = []
    for metric, gain in first.gains.items():
        own, interval = metrics.get(metric, math.nan), first.intervals.get(metric)
        constant = own - gain if metric in HIGHER_IS_BETTER else own + gain
        rows.append([
            heading(metric), number(own), number(constant), number(result.constants.get(metric)),
            number(gain, signed=True), _interval(interval, signed=True), _reading(interval)])
    return Table(
        ['metric', 'method', 'best constant', 'its depth (m)', 'gain', _level(first.intervals),
         'the method is'], rows, 'The method against the best constant depth',
        'Gain: positive is better for the method. The constant is an oracle: the best for each '
        'metric on this very ground truth; in SILog all constants are alike. Interval: bootstrap '
        f'over {result.units} {result.unit}.', frozenset({0, 6}))


def controls(summary: Summary) -> Table:
    """How far the method is above every control, on the same images."""
    comparisons = summary.verdict.comparisons
    rows = []
    for comparison in comparisons:
        row = [comparison.name]
        for metric in ('d1', 'rmse'):
            interval = comparison.intervals.get(metric)
            row += [number(comparison.gains.get(metric), signed=True),
                    _interval(interval, signed=True), _reading(interval)]
        rows.append(row)
    level = _level(comparisons[0].intervals)
    return Table(
        ['control', 'gain in δ1', level, 'the method is', 'gain in rmse (m)', level,
         'the method is'], rows, 'The method against every control',
        f'{len(rows)} paired comparisons of one family; the intervals of a metric hold together '
        'with 95 %.', frozenset({0, 3, 6}))


def bin_partitions(summary: Summary) -> list[Table]:
    """Build the paper's Table 2: one table per scene."""
    scenes = dict.fromkeys(chain((p.scene for p in _published(summary, '2')),
                                 (r.scene for r in summary.rows if r.group == 'bins')))
    return [_ablation(summary, 'bins', '2', scene, f'Depth bins, {_class(scene)}', 'bin partition')
            for scene in sorted(scenes, key=lambda scene: scene == ALL)]


def prompt_sets(summary: Summary) -> Table:
    """Build the paper's Table 3."""
    return _ablation(summary, 'prompts', '3', ALL, 'Prompts, all classes', 'prompt')


def _ablation(
    summary: Summary, group: str, table: str, scene: str, title: str, first: str,
) -> Table:
    """Rows of this run, each with the paper's row below it where the images are the paper's."""
    measured = {r.name: r for r in _rows(summary, group, scene)}
    reported = {p.name: p for p in _published(summary, table) if p.scene == scene}
    lines = []
    for name in dict.fromkeys([*measured, *reported]):
        if (row := measured.get(name)) is not None:
            lines.append(Line(name, row.metrics, note=row.note, interval=row.interval))
        if (paper := reported.get(name)) is not None:
            lines.append(Line('paper' if name in measured else f'{name}, paper', paper.metrics,
                              Quiet, paper.note))
    if table == '2' and scene != ALL:
        gain = _gain({name: row.metrics for name, row in measured.items()}, str)
        lines += gain
        lines += _gain({name: row.metrics for name, row in reported.items()}, Quiet,
                       'the same, paper' if gain else 'best partition’s gain')
    count = next((row.images for row in measured.values()), 0)
    others = '; '.join(
        f'{name} {quoted(value)}, in the paper {quoted(wanted)}'
        for name, value, wanted in other_settings(summary.config, without=('tokens', 'bins')))
    notes = ['' if measured else f'No image of this run is of the class {_class(scene)}.',
             'Bold: the best of this run per column.', PUBLISHED if reported else '',
             INTERVALS if any(row.interval for row in measured.values()) else '',
             'Words and bins are the paper’s, all other settings are this run’s: '
             f'{others}.' if others else '']
    images = f'{count} images, ' if count else ''
    return metric_table(f'{title} ({images}as in the paper’s Table {table})', first, lines,
                        ' '.join(filter(None, notes)), best=True)


def _gain(
    partitions: dict[str, dict[str, float]], style: type[str],
    name: str = 'best partition’s gain',
) -> list[Line]:
    """Last line of the paper's Table 2: the best class-dependent bins minus the original ones."""
    known = {key: metrics for key, metrics in partitions.items() if 'rmse' in metrics}
    original = next((key for key in known if key.lower().startswith('original')), None)
    others = [key for key in known if key.lower().startswith('class-dependent')]
    if original is None or not others:
        return []
    best = min(others, key=lambda key: known[key]['rmse'])
    gain = {m: known[best][m] - known[original][m] for m in PAPER_METRICS
            if m in known[best] and m in known[original]}
    return [Line(name, gain, style, f'{best} − original; best by rmse', signed=True)]


def classes(summary: Summary) -> list[Table]:
    """Build the method's row of every scene class, and the best constant's where it is there."""
    rows = sorted((r for r in summary.rows if r.group == 'method' and r.scene != ALL),
                  key=lambda r: (-r.images, r.scene))
    lines = []
    for row in [*rows, headline_row(summary)]:
        lines.append(Line(_class(row.scene), row.metrics, images=row.images))
        lines += [Line('its best constant', other.metrics)
                  for other in _rows(summary, 'baseline', row.scene)
                  if other.name == BEST_CONSTANT]
    return [metric_table('The method per scene class', 'class', lines, (
        'Its best constant: an oracle, for every metric the constant that is best on this '
        'class’s ground truth.'))] if rows else []


def other_metrics(summary: Summary) -> Table:
    """Metrics that the paper does not report."""
    rows = [r for r in summary.rows if r.scene == ALL and r.group in ('method', 'baseline')]
    return metric_table('Other metrics', '', [Line(r.name, r.metrics) for r in rows],
                        metrics=METRICS[len(PAPER_METRICS):])


def definitions() -> Table:
    """What the metrics mean."""
    return Table(['metric', 'meaning, over the counted pixels of an image'],
                 [[SYMBOLS[m], MEANINGS[m]] for m in METRICS], 'Metrics',
                 'p: prediction, t: ground truth, metres.', frozenset({0, 1}))


def images(source: Source) -> list[Table]:
    """Best, median and worst images, as listed in the summary."""
    known = {sample.index: sample for sample in source.samples}
    chosen = [(role, known[index]) for role in ROLES for index in getattr(source.summary, role)
              if index in known]
    rows = [[role, str(sample.index), sample.name, sample.scene,
             *(number(sample.metrics.get(m)) for m in PAPER_METRICS)] for role, sample in chosen]
    return [Table(['', 'index', 'name', 'class', *(heading(m) for m in PAPER_METRICS)], rows,
                  'Best, median and worst images by δ1', texts=frozenset({0, 2, 3}))
            ] if rows else []


def _interval(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None or not math.isfinite(interval.low + interval.high):
        return '–'
    return f'{number(interval.low, signed=signed)} … {number(interval.high, signed=signed)}'


def _level(intervals: dict[str, Interval]) -> str:
    return next((interval.name() for interval in intervals.values()), 'interval')


def _reading(interval: Interval | None) -> str:
    """What the interval allows to say, and no more."""
    known = interval is not None and math.isfinite(interval.low + interval.high)
    return interval.reading() if interval is not None and known else '–'


def _class(scene: str) -> str:
    return 'all classes' if scene == ALL else scene.replace('_', ' ') or 'no class'
