# SPDX-License-Identifier: Apache-2.0
"""The tables of a report: what was measured, beside what was published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from depthclip_ros.core.errors import quoted
from depthclip_ros.document import Quiet, Small, Strong, Table, Text
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
from offline_eval.gate import other_settings
from offline_eval.results import ALL, Comparison, Row, Summary

PUBLISHED = 'Italics: published numbers, not measured in this run.'
#: Controls that see the image, with other words.
LOOKING = {'shuffled words', 'random words'}
INTERVALS = 'Small: bootstrap 95 % intervals; whole scenes are drawn, where the data name them.'


class Line(NamedTuple):
    """A row of metrics: `Strong` for the method, `Quiet` for what was published."""

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
    """A column per metric, and intervals below their numbers.

    Numbers of images and notes (headed by `last`) have columns where any line has some; with
    `best` the best line of this run is marked, per metric.
    """
    counted = any(line.images is not None for line in lines)
    noted = any(line.note for line in lines)
    leaders = {m: _leader(lines, m) for m in metrics} if best else {}

    def row(name: str, images: str, numbers: list[str], note: str) -> list[str]:
        return [name, *([images] if counted else []), *numbers, *([note] if noted else [])]
    rows = []
    for line in lines:
        rows.append(row(
            line.style(line.name), '' if line.images is None else str(line.images),
            [(Strong if leaders.get(m) is line else line.style)(
                number(line.metrics.get(m), signed=line.signed)) for m in metrics],
            (Quiet if line.style is Quiet else str)(line.note)))
        if line.interval:
            rows.append(row(Small('95 % interval'), '', [
                Small(_between(line.interval.get(m))) for m in metrics], ''))
    header = row(first, 'images', [heading(m) for m in metrics], last)
    return Table(header, rows, title, note, frozenset({0, len(header) - 1} if noted else {0}))


def _leader(lines: Sequence[Line], metric: str) -> Line | None:
    """Best line of this run, if it has another to compare with."""
    known = [line for line in lines if line.style is not Quiet and not line.signed
             and math.isfinite(line.metrics.get(metric, math.nan))]
    choose = max if metric in HIGHER_IS_BETTER else min
    return choose(known, key=lambda line: line.metrics[metric]) if len(known) > 1 else None


def _rows(summary: Summary, group: str, scene: str = ALL) -> list[Row]:
    return [row for row in summary.rows if (row.group, row.scene) == (group, scene)]


def _published(summary: Summary, table: str) -> list[Row]:
    """Published rows that this run can stand beside: those of the same images only."""
    return [p for p in summary.paper if p.group == table] if summary.data.official else []


def _lines(rows: Sequence[Row], style: type[str] = str) -> list[Line]:
    return [Line(row.name, row.metrics, style, row.note) for row in rows]


def badge(summary: Summary) -> Text:
    """Whether the method beats, in δ1 and rmse, every answer that does not look at the image."""
    seeing = {row.name for row in summary.rows if row.group == 'foreign'} | LOOKING
    oracles = {row.name for row in summary.rows if row.note.startswith('oracle')}
    controls = [c for c in summary.verdict.comparisons if c.name not in seeing]
    answer, why, badge = 'yes', f'all {len(controls)}, in δ1 and in rmse', 'yes'
    if not all(m in c.intervals for c in controls for m in ('d1', 'rmse')):
        answer, why, badge = 'cannot tell', 'too few scenes for intervals', 'open'
    else:
        for reading, *outcome in (
                ('not distinguishable', 'cannot tell', 'open'), ('worse', 'no', 'no')):
            if names := [c.name + ' (an oracle)' * (c.name in oracles) for c in controls
                         if reading in {c.intervals[m].reading() for m in ('d1', 'rmse')}]:
                answer, badge = outcome
                why = f'in δ1 or rmse it is {reading} beside {", ".join(names)}'
    return Text(f'Better than every answer that does not look at the image: {answer} ({why}).',
                badge=badge)


def headline(summary: Summary) -> Table:
    """The method's row; beside the paper's, with the difference and what is allowed of it."""
    row, gate = summary.rows[0], summary.gate
    own = Line(f'{row.name}, this run', row.metrics, Strong, interval=row.interval)
    paper = [Line('the paper', p.metrics, Quiet) for p in _published(summary, '1')
             if p.name == row.name]
    if not paper:
        return metric_table('The method', '', [own])
    table = metric_table('The method beside the paper’s Table 1', '', [
        own, *paper, Line('difference', gate.differences, signed=True)], PUBLISHED)
    within = ['yes' if abs(gate.differences[m]) <= gate.limits[m] else 'no' for m in PAPER_METRICS]
    return Table(table.header, [
        *table.rows, ['allowed', *(f'± {number(gate.limits[m])}' for m in PAPER_METRICS)],
        ['within', *within]], table.title, table.note)


def published(summary: Summary) -> Table:
    """What others reported, for orientation."""
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
    """Whatever needs no network, and controls of the network, on the same pixels."""
    rows = sorted(_rows(summary, 'baseline'), key=lambda r: r.name != BEST_CONSTANT)
    return metric_table('Baselines on the same pixels', 'baseline', [
        *_lines(summary.rows[:1], Strong), *_lines(rows)],
        'Bold: the method. An oracle is chosen with the ground truth in hand.')


def beside(summary: Summary, group: str, title: str) -> list[Table]:
    """The rows of a group, if any, below the method's, which knows the image alone."""
    rows, reported = _rows(summary, group), _published(summary, group)
    note = 'Bold: the method, which knows the image alone.' + f' {PUBLISHED}' * bool(reported)
    return [metric_table(title, 'method', [
        *_lines(summary.rows[:1], Strong), *_lines(rows), *_lines(reported, Quiet)],
        note)] if rows else []


def verdict(summary: Summary) -> list[Table]:
    """How far the method is above the best constant in every metric, and above every control."""
    metrics, result = summary.rows[0].metrics, summary.verdict
    first = result.comparisons[0]
    level = next((i.name() for i in first.intervals.values()), 'interval')

    def gain(comparison: Comparison, metric: str) -> list[str]:
        interval = comparison.intervals.get(metric)
        known = interval is not None and math.isfinite(interval.low + interval.high)
        return [number(comparison.gains.get(metric), signed=True),
                _between(interval, signed=True),
                interval.reading() if interval is not None and known else '–']
    of_metrics = []
    for metric, more in first.gains.items():
        own = metrics.get(metric, math.nan)
        of_metrics.append([
            heading(metric), number(own),
            number(own - more if metric in HIGHER_IS_BETTER else own + more),
            number(result.constants.get(metric)), *gain(first, metric)])
    return [
        Table(['metric', 'method', 'best constant', 'its depth (m)', 'gain', level,
               'the method is'], of_metrics, 'The method against the best constant depth',
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
    """The paper's Table 2: one table per scene."""
    scenes = dict.fromkeys(row.scene for row in (*_published(summary, '2'), *(
        row for row in summary.rows if row.group == 'bins')))
    return [ablation(summary, 'bins', '2', scene) for scene in sorted(
        scenes, key=lambda scene: scene == ALL)]


def ablation(summary: Summary, group: str, table: str, scene: str = ALL) -> Table:
    """Rows of this run, each with the paper's row below it where the images are the paper's."""
    what, first = {'2': ('Depth bins', 'bin partition'), '3': ('Prompts', 'prompt')}[table]
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
        gain = _gain(measured, str, 'best partition’s gain')
        lines += gain + _gain(reported, Quiet,
                              'the same, paper' if gain else 'best partition’s gain')
    count = next((f'{row.images} images, ' for row in measured.values()), '')
    others = '; '.join(
        f'{name} {quoted(value)}, in the paper {quoted(wanted)}'
        for name, value, wanted in other_settings(summary.config, without=('tokens', 'bins')))
    notes = ['' if measured else f'No image of this run is of the class {class_name(scene)}.',
             'Bold: the best of this run per column.', PUBLISHED if reported else '',
             INTERVALS if any(row.interval for row in measured.values()) else '',
             'Words and bins are the paper’s, all other settings are this run’s: '
             f'{others}.' if others else '']
    return metric_table(
        f'{what}, {class_name(scene)} ({count}as in the paper’s Table {table})', first, lines,
        ' '.join(filter(None, notes)), best=True)


def _gain(rows: dict[str, Row], style: type[str], name: str) -> list[Line]:
    """Last line of the paper's Table 2: the best class-dependent bins minus the original ones."""
    original = next((r.metrics for key, r in rows.items() if key.startswith('Original')), None)
    others = [key for key in rows if key.startswith('Class-dependent')]
    if original is None or not others:
        return []
    best = min(others, key=lambda key: rows[key].metrics['rmse'])
    gain = {m: rows[best].metrics[m] - original[m] for m in PAPER_METRICS}
    return [Line(name, gain, style, f'{best} − original; best by rmse', signed=True)]


def classes(summary: Summary) -> list[Table]:
    """The method's row of every scene class, and the best constant's."""
    rows = sorted((r for r in summary.rows if r.group == 'method' and r.scene != ALL),
                  key=lambda r: (-r.images, r.scene))
    lines = []
    for row in [*rows, summary.rows[0]]:
        lines.append(Line(class_name(row.scene), row.metrics, images=row.images))
        lines += [Line('its best constant', other.metrics)
                  for other in [summary.row(BEST_CONSTANT, row.scene)] if other is not None]
    return [metric_table('The method per scene class', 'class', lines, (
        'Its best constant: an oracle, for every metric the constant that is best on this '
        'class’s ground truth.'))] if rows else []


def other_metrics(summary: Summary) -> Table:
    """Metrics that the paper does not report."""
    return metric_table('Other metrics', '', [
        Line(r.name, r.metrics) for r in summary.rows
        if r.scene == ALL and r.group in ('method', 'baseline')],
        metrics=METRICS[len(PAPER_METRICS):])


def definitions() -> Table:
    """What the metrics mean."""
    return Table(['metric', 'meaning, over the counted pixels of an image'],
                 [[SYMBOLS[m], MEANINGS[m]] for m in METRICS], 'Metrics',
                 'p: prediction, t: ground truth, metres.', frozenset({0, 1}))


def _between(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None or not math.isfinite(interval.low + interval.high):
        return '–'
    return f'{number(interval.low, signed=signed)} … {number(interval.high, signed=signed)}'


def class_name(scene: str) -> str:
    """A scene class in words."""
    return 'all classes' if scene == ALL else scene.replace('_', ' ') or 'no class'
