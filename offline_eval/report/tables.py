# SPDX-License-Identifier: Apache-2.0
"""Tables of a report: measured rows beside published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from depthclip_ros.core.errors import quoted
from depthclip_ros.evaluation.bootstrap import BEST_CONSTANT, Interval
from depthclip_ros.evaluation.metrics import (
    HIGHER_IS_BETTER,
    MEANINGS,
    METRICS,
    PAPER_METRICS,
    SYMBOLS,
    heading,
    number,
)
from depthclip_ros.report.document import Quiet, Small, Strong, Table, Text
from offline_eval.reproduction import other_settings
from offline_eval.results import ALL, Comparison, Row, Summary

PUBLISHED = 'Italics: published numbers, not measured in this run.'
#: Controls that use the image, with other words.
IMAGE_CONTROLS = {'shuffled words', 'random words'}
INTERVALS = 'Small: bootstrap 95 % intervals; whole scenes are drawn, where the data name them.'


class Line(NamedTuple):
    """A row of metrics; `style` is `Strong` for the method, `Quiet` for published numbers."""

    name: str
    metrics: Mapping[str, float]
    style: type[str] = str
    note: str = ''
    images: int | None = None
    signed: bool = False
    interval: Mapping[str, Interval] | None = None


def metric_table(
    title: str, first: str, lines: Sequence[Line], note: str = '', *,
    metrics: Sequence[str] = PAPER_METRICS, last: str = 'note', best: bool = False,
) -> Table:
    """Make a table with a column per metric, and intervals below the numbers.

    Columns for the number of images and for notes (headed by `last`) appear if any line has one;
    `best` marks the best line of this run per metric.
    """
    has_images = any(line.images is not None for line in lines)
    has_notes = any(line.note for line in lines)
    best_lines = {m: _best_line(lines, m) for m in metrics} if best else {}

    def row(name: str, images: str, numbers: list[str], note: str) -> list[str]:
        return [name, *([images] if has_images else []), *numbers, *([note] if has_notes else [])]
    rows = []
    for line in lines:
        rows.append(row(
            line.style(line.name), '' if line.images is None else str(line.images),
            [(Strong if best_lines.get(m) is line else line.style)(
                number(line.metrics.get(m), signed=line.signed)) for m in metrics],
            (Quiet if line.style is Quiet else str)(line.note)))
        if line.interval:
            rows.append(row(Small('95 % interval'), '', [
                Small(_format_interval(line.interval.get(m))) for m in metrics], ''))
    header = row(first, 'images', [heading(m) for m in metrics], last)
    return Table(header, rows, title, note, frozenset({0, len(header) - 1} if has_notes else {0}))


def _best_line(lines: Sequence[Line], metric: str) -> Line | None:
    """Find the best of at least two lines of this run."""
    candidates = [line for line in lines if line.style is not Quiet and not line.signed
                  and math.isfinite(line.metrics.get(metric, math.nan))]
    best = max if metric in HIGHER_IS_BETTER else min
    return (best(candidates, key=lambda line: line.metrics[metric])
            if len(candidates) > 1 else None)


def _rows(summary: Summary, group: str, scene: str = ALL) -> list[Row]:
    return [row for row in summary.rows if (row.group, row.scene) == (group, scene)]


def _published(summary: Summary, table: str) -> list[Row]:
    """Select the published rows of a table; none unless this run has the same images."""
    return [row for row in summary.paper if row.group == table] if summary.data.official else []


def _lines(rows: Sequence[Row], style: type[str] = str) -> list[Line]:
    return [Line(row.name, row.metrics, style, row.note) for row in rows]


def badge(summary: Summary) -> Text:
    """Summarize whether the method beats every control that ignores the image, in δ1 and rmse."""
    image_rows = {row.name for row in summary.rows if row.group == 'foreign'} | IMAGE_CONTROLS
    oracles = {row.name for row in summary.rows if row.note.startswith('oracle')}
    controls = [c for c in summary.verdict.comparisons if c.name not in image_rows]
    answer, reason, color = 'yes', f'all {len(controls)}, in δ1 and in rmse', 'yes'
    if not all(m in c.intervals for c in controls for m in ('d1', 'rmse')):
        answer, reason, color = 'cannot tell', 'too few scenes for intervals', 'open'
    else:
        for outcome, *result in (
                ('not distinguishable', 'cannot tell', 'open'), ('worse', 'no', 'no')):
            if names := [c.name + ' (an oracle)' * (c.name in oracles) for c in controls
                         if outcome in {c.intervals[m].outcome() for m in ('d1', 'rmse')}]:
                answer, color = result
                reason = f'in δ1 or rmse it is {outcome} beside {", ".join(names)}'
    return Text(f'Better than every answer that does not look at the image: {answer} ({reason}).',
                badge=color)


def headline(summary: Summary) -> Table:
    """Show the method's row; beside it the paper's, the differences and their limits."""
    row, gate = summary.rows[0], summary.gate
    method_line = Line(f'{row.name}, this run', row.metrics, Strong, interval=row.interval)
    paper = [Line('the paper', p.metrics, Quiet) for p in _published(summary, '1')
             if p.name == row.name]
    if not paper:
        return metric_table('The method', '', [method_line])
    table = metric_table('The method beside the paper’s Table 1', '', [
        method_line, *paper, Line('difference', gate.differences, signed=True)], PUBLISHED)
    within = ['yes' if abs(gate.differences[m]) <= gate.limits[m] else 'no' for m in PAPER_METRICS]
    return Table(table.header, [
        *table.rows, ['allowed', *(f'± {number(gate.limits[m])}' for m in PAPER_METRICS)],
        ['within', *within]], table.title, table.note)


def published(summary: Summary) -> Table:
    """Show published rows and the method's."""
    lines = []
    for paper in summary.paper:
        if paper.group not in ('2', '3', 'calibrated'):
            source = 'the paper, Table 1' if paper.group == '1' else paper.group
            lines.append(Line(paper.name, paper.metrics, Quiet,
                              f'{source}; {paper.note}' if paper.note else source))
    row = summary.rows[0]
    lines.append(Line(f'{row.name}, weights {summary.weights.name}', row.metrics, Strong,
                      'this run'))
    return metric_table('Published rows, and this run', 'method', lines, PUBLISHED, last='source')


def baselines(summary: Summary) -> Table:
    """Show the method beside all baselines and controls, on the same pixels."""
    rows = sorted(_rows(summary, 'baseline'), key=lambda r: r.name != BEST_CONSTANT)
    return metric_table('Baselines on the same pixels', 'baseline', [
        *_lines(summary.rows[:1], Strong), *_lines(rows)],
        'Bold: the method. An oracle is chosen with the ground truth in hand.')


def group_table(summary: Summary, group: str, title: str) -> list[Table]:
    """Show the rows of a group, if any, below the method's, which uses the image alone."""
    rows, reported = _rows(summary, group), _published(summary, group)
    note = 'Bold: the method, which knows the image alone.' + f' {PUBLISHED}' * bool(reported)
    return [metric_table(title, 'method', [
        *_lines(summary.rows[:1], Strong), *_lines(rows), *_lines(reported, Quiet)],
        note)] if rows else []


def verdict(summary: Summary) -> list[Table]:
    """Show gains over the best constant in every metric, and over every control in δ1 and rmse."""
    metrics, result = summary.rows[0].metrics, summary.verdict
    first = result.comparisons[0]
    level = next((i.name() for i in first.intervals.values()), 'interval')

    def gain(comparison: Comparison, metric: str) -> list[str]:
        interval = comparison.intervals.get(metric)
        is_finite = interval is not None and math.isfinite(interval.low + interval.high)
        return [number(comparison.gains.get(metric), signed=True),
                _format_interval(interval, signed=True),
                interval.outcome() if interval is not None and is_finite else '–']
    metric_rows = []
    for metric, improvement in first.gains.items():
        value = metrics.get(metric, math.nan)
        metric_rows.append([
            heading(metric), number(value),
            number(value - improvement if metric in HIGHER_IS_BETTER else value + improvement),
            number(result.constants.get(metric)), *gain(first, metric)])
    return [
        Table(['metric', 'method', 'best constant', 'its depth (m)', 'gain', level,
               'the method is'], metric_rows, 'The method against the best constant depth',
              'Gain: positive is better for the method. The constant is an oracle: the best for '
              'each metric on this very ground truth; in SILog all constants are alike. Interval: '
              f'bootstrap over {result.units} {result.unit}.', frozenset({0, 6})),
        Table(['control', 'gain in δ1', level, 'the method is', 'gain in rmse (m)', level,
               'the method is'],
              [[c.name, *gain(c, 'd1'), *gain(c, 'rmse')] for c in result.comparisons],
              'The method against every control',
              f'{len(result.comparisons)} paired comparisons of one family; all intervals of '
              'this table hold together with 95 %.', frozenset({0, 3, 6}))]


def bin_partitions(summary: Summary) -> list[Table]:
    """Show the paper's Table 2: one table per scene class."""
    scenes = dict.fromkeys(row.scene for row in (*_published(summary, '2'), *(
        row for row in summary.rows if row.group == 'bins')))
    return [paper_table(summary, 'bins', '2', scene) for scene in sorted(
        scenes, key=lambda scene: scene == ALL)]


def paper_table(summary: Summary, group: str, table: str, scene: str = ALL) -> Table:
    """Show rows of this run, each above the paper's row if the images are the paper's."""
    subject, first = {'2': ('Depth bins', 'bin partition'), '3': ('Prompts', 'prompt')}[table]
    measured_rows = {r.name: r for r in _rows(summary, group, scene)}
    published_rows = {p.name: p for p in _published(summary, table) if p.scene == scene}
    lines = []
    for name in dict.fromkeys([*measured_rows, *published_rows]):
        if (row := measured_rows.get(name)) is not None:
            lines.append(Line(name, row.metrics, note=row.note, interval=row.interval))
        if (paper := published_rows.get(name)) is not None:
            title = 'paper' if name in measured_rows else f'{name}, paper'
            lines.append(Line(title, paper.metrics, Quiet, paper.note))
    if table == '2' and scene != ALL:
        gain = _best_gain(measured_rows, str, 'best partition’s gain')
        lines += gain + _best_gain(published_rows, Quiet,
                                   'the same, paper' if gain else 'best partition’s gain')
    count = next((f'{row.images} images, ' for row in measured_rows.values()), '')
    differences = '; '.join(
        f'{name} {quoted(value)}, in the paper {quoted(paper_value)}'
        for name, value, paper_value in other_settings(
            summary.config, excluded=('tokens', 'bins')))
    notes = ['' if measured_rows else f'No image of this run is of the class {class_name(scene)}.',
             'Bold: the best of this run per column.', PUBLISHED if published_rows else '',
             INTERVALS if any(row.interval for row in measured_rows.values()) else '',
             'Words and bins are the paper’s, all other settings are this run’s: '
             f'{differences}.' if differences else '']
    return metric_table(
        f'{subject}, {class_name(scene)} ({count}as in the paper’s Table {table})', first, lines,
        ' '.join(filter(None, notes)), best=True)


def _best_gain(rows: dict[str, Row], style: type[str], name: str) -> list[Line]:
    """Subtract the original bins from the best class-dependent ones: last line of Table 2."""
    original = next((r.metrics for key, r in rows.items() if key.startswith('Original')), None)
    candidates = [key for key in rows if key.startswith('Class-dependent')]
    if original is None or not candidates:
        return []
    best = min(candidates, key=lambda key: rows[key].metrics['rmse'])
    gain = {m: rows[best].metrics[m] - original[m] for m in PAPER_METRICS}
    return [Line(name, gain, style, f'{best} − original; best by rmse', signed=True)]


def classes(summary: Summary) -> list[Table]:
    """Show the method and the best constant for every scene class."""
    rows = sorted((r for r in summary.rows if r.group == 'method' and r.scene != ALL),
                  key=lambda r: (-r.images, r.scene))
    lines = []
    for row in [*rows, summary.rows[0]]:
        lines.append(Line(class_name(row.scene), row.metrics, images=row.images))
        lines += [Line('its best constant', constant.metrics)
                  for constant in [summary.row(BEST_CONSTANT, row.scene)] if constant is not None]
    return [metric_table('The method per scene class', 'class', lines, (
        'Its best constant: an oracle, for every metric the constant that is best on this '
        'class’s ground truth.'))] if rows else []


def other_metrics(summary: Summary) -> Table:
    """Show the metrics that the paper does not report."""
    return metric_table('Other metrics', '', [
        Line(r.name, r.metrics) for r in summary.rows
        if r.scene == ALL and r.group in ('method', 'baseline')],
        metrics=METRICS[len(PAPER_METRICS):])


def definitions() -> Table:
    """Define the metrics."""
    return Table(['metric', 'meaning, over the counted pixels of an image'],
                 [[SYMBOLS[m], MEANINGS[m]] for m in METRICS], 'Metrics',
                 'p: prediction, t: ground truth, metres.', frozenset({0, 1}))


def _format_interval(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None or not math.isfinite(interval.low + interval.high):
        return '–'
    return f'{number(interval.low, signed=signed)} … {number(interval.high, signed=signed)}'


def class_name(scene: str) -> str:
    """Format a scene class."""
    return 'all classes' if scene == ALL else scene.replace('_', ' ') or 'no class'
