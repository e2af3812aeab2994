# SPDX-License-Identifier: Apache-2.0
"""The tables of a report: what was measured, beside what was published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from depthclip_ros.core.errors import quoted
from depthclip_ros.document import Cell, Table
from offline_eval.gate import other_settings
from offline_eval.names import MEANINGS, SYMBOLS, heading, number
from offline_eval.results import (
    ALL,
    HIGHER_IS_BETTER,
    METRICS,
    PAPER_METRICS,
    Comparison,
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
    """A row of metrics on its way into a table."""

    name: str
    metrics: dict[str, float]
    quiet: bool = False
    note: str = ''
    images: int | None = None
    signed: bool = False
    interval: dict[str, Interval] | None = None


def headline_row(summary: Summary) -> Row:
    """Row of the method over all images."""
    rows = [r for r in summary.rows if r.group == 'method' and r.scene == ALL]
    return rows[0] if rows else Row('DepthCLIP', 'method', ALL, {}, 0)


def reproduction(summary: Summary) -> Table:
    """The method's row: this run, the paper, the difference, and what is allowed."""
    row, gate = headline_row(summary), summary.gate
    paper = next(p for p in summary.paper if (p.table, p.name) == ('1', row.name))
    rows = [_numbers(Line(f'{row.name}, this run', row.metrics), set(PAPER_METRICS)),
            *_below(row.interval), _numbers(Line('the paper', paper.metrics, quiet=True))]
    rows += [[Cell(name), *map(Cell, texts)] for name, texts in (
        ('difference', [number(gate.differences.get(m), signed=True) for m in PAPER_METRICS]),
        ('allowed', [f'± {number(gate.limits[m])}' if m in gate.limits else 'any'
                     for m in PAPER_METRICS]),
        ('within', [_within(gate.differences, gate.limits, m) for m in PAPER_METRICS]))]
    return _table('The method beside the paper’s Table 1', [''], rows, PUBLISHED)


def published(summary: Summary) -> Table:
    """What others reported, for orientation."""
    method = headline_row(summary)
    cells = [[*_numbers(Line(p.name, p.metrics, quiet=True)), Cell(_source(p), quiet=True)]
             for p in summary.paper if p.table not in ('2', '3', 'calibrated')]
    cells.append([*_numbers(Line(f'{method.name}, weights {summary.weights.name}',
                                 method.metrics), set(PAPER_METRICS)), Cell('this run')])
    return _table('Published rows, and this run', ['method'], cells, PUBLISHED, ['source'])


def baselines(summary: Summary) -> Table:
    """Whatever needs no network, and controls of the network, on the same pixels."""
    lines = [_line(r) for r in sorted(summary.rows, key=lambda r: r.name != BEST_CONSTANT)
             if r.scene == ALL and r.group == 'baseline']
    method = headline_row(summary)
    return _lines('Baselines on the same pixels', 'baseline', [_line(method), *lines],
                  bold_first=True,
                  note='Bold: the method. An oracle is chosen with the ground truth in hand.')


def beside(summary: Summary, group: str, title: str) -> Table | None:
    """Build the rows of a group, below the method's, which knows the image alone."""
    lines = [_line(r) for r in summary.rows if r.scene == ALL and r.group == group]
    reported = [Line(p.name, p.metrics, quiet=True, note=p.note) for p in _paper(summary, group)]
    note = 'Bold: the method, which knows the image alone.'
    return _lines(title, 'method', [_line(headline_row(summary)), *lines, *reported],
                  bold_first=True, note=f'{note} {PUBLISHED}' if reported else note,
                  ) if lines else None


def verdict(summary: Summary) -> Table:
    """How far the method is above the best constant, metric by metric."""
    row, result = headline_row(summary), summary.verdict
    first = result.comparisons[0]
    cells = []
    for metric in (m for m in METRICS if m in first.gains):
        gain, interval = first.gains[metric], first.intervals.get(metric)
        constant = (row.metrics.get(metric, math.nan)
                    - (gain if metric in HIGHER_IS_BETTER else -gain))
        cells.append([
            Cell(heading(metric)), Cell(number(row.metrics.get(metric))), Cell(number(constant)),
            Cell(number(result.constants.get(metric))), Cell(number(gain, signed=True)),
            Cell(_interval(interval, signed=True)), Cell(_reading(interval))])
    return Table(
        'The method against the best constant depth',
        ['metric', 'method', 'best constant', 'its depth (m)', 'gain', _level(first),
         'the method is'],
        cells, frozenset(range(1, 6)),
        'Gain: positive is better for the method. The constant is an oracle: the best for each '
        'metric on this very ground truth; in SILog all constants are alike. Interval: bootstrap '
        f'over {result.units} {result.unit}.')


def controls(summary: Summary) -> Table:
    """How far the method is above every control, on the same images."""
    result = summary.verdict
    level = _level(result.comparisons[0])
    cells = [[Cell(comparison.name), *(
        Cell(text) for metric in ('d1', 'rmse') for text in (
            number(comparison.gains.get(metric), signed=True),
            _interval(comparison.intervals.get(metric), signed=True),
            _reading(comparison.intervals.get(metric))))] for comparison in result.comparisons]
    return Table(
        'The method against every control',
        ['control', 'gain in δ1', level, 'the method is', 'gain in rmse (m)', level,
         'the method is'],
        cells, frozenset({1, 2, 4, 5}),
        f'{len(cells)} paired comparisons of one family; the intervals of a metric hold together '
        'with 95 %.')


def bin_partitions(summary: Summary) -> list[Table]:
    """Build the paper's Table 2: one table per scene."""
    found = dict.fromkeys([p.scene for p in _paper(summary, '2')]
                          + [r.scene for r in summary.rows if r.group == 'bins'])
    scenes = sorted(found, key=lambda scene: scene == ALL)
    return [_ablation(summary, 'bins', '2', scene, f'Depth bins, {_class(scene)}',
                      'bin partition') for scene in scenes]


def prompt_sets(summary: Summary) -> Table:
    """Build the paper's Table 3."""
    return _ablation(summary, 'prompts', '3', ALL, 'Prompts, all classes', 'prompt')


def _paper(summary: Summary, table: str) -> list[PaperRow]:
    """Published rows that this run can stand beside: those of the same images only."""
    return [p for p in summary.paper if p.table == table] if summary.data.official else []


def classes(summary: Summary) -> Table | None:
    """Build the method's row of every scene class, and the best constant's where it is there."""
    rows = sorted((r for r in summary.rows if r.group == 'method' and r.scene != ALL),
                  key=lambda r: (-r.images, r.scene))
    if not rows:
        return None
    lines = []
    for row in [*rows, headline_row(summary)]:
        lines.append(Line(_class(row.scene), row.metrics, images=row.images))
        lines += [Line('its best constant', other.metrics) for other in summary.rows
                  if (other.group, other.name, other.scene) == (
                      'baseline', BEST_CONSTANT, row.scene)]
    return _lines('The method per scene class', 'class', lines, note=(
        'Its best constant: an oracle, for every metric the constant that is best on this '
        'class’s ground truth.'))


def other_metrics(summary: Summary) -> Table:
    """Metrics that the paper does not report."""
    others = METRICS[len(PAPER_METRICS):]
    rows = [r for r in summary.rows if r.scene == ALL and r.group in ('method', 'baseline')]
    return Table('Other metrics', ['', *(heading(m) for m in others)],
                 [[Cell(r.name), *(Cell(number(r.metrics.get(m))) for m in others)] for r in rows],
                 frozenset(range(1, len(others) + 1)))


def definitions() -> Table:
    """What the metrics mean."""
    return Table('Metrics', ['metric', 'meaning, over the counted pixels of an image'],
                 [[Cell(SYMBOLS[m]), Cell(MEANINGS[m])] for m in METRICS],
                 note='p: prediction, t: ground truth, metres.')


def images(summary: Summary, per_image: Sequence[dict[str, str]]) -> Table | None:
    """Best and worst images, as listed in the summary, with the numbers of per_image.csv."""
    by_index = {line['index']: line for line in per_image}
    cells = []
    for role, numbers in (('best', summary.best), ('median', summary.median),
                          ('worst', summary.worst)):
        for index in numbers:
            line = by_index.get(str(index), {})
            cells.append([Cell(role), Cell(str(index)), Cell(line.get('name', '')),
                          Cell(line.get('scene', '')),
                          *(Cell(_text_number(line.get(m))) for m in PAPER_METRICS)])
    if not cells:
        return None
    return Table('Best, median and worst images by δ1',
                 ['', 'index', 'name', 'class', *(heading(m) for m in PAPER_METRICS)], cells,
                 frozenset({1, *range(4, 10)}))


def _ablation(
    summary: Summary, group: str, table: str, scene: str, title: str, first: str,
) -> Table:
    """Rows of this run, each with the paper's row below it where the images are the paper's."""
    measured = {r.name: r for r in summary.rows if (r.group, r.scene) == (group, scene)}
    reported = {p.name: p for p in _paper(summary, table) if p.scene == scene}
    lines = []
    for name in dict.fromkeys([*measured, *reported]):
        if (row := measured.get(name)) is not None:
            lines.append(_line(row, interval=True))
        if (paper := reported.get(name)) is not None:
            own = name if name not in measured else ''
            lines.append(Line(f'{own}, paper' if own else 'paper', paper.metrics, quiet=True,
                              note=paper.note))
    if table == '2' and scene != ALL:
        lines += _gains(measured, reported)
    count = next((r.images for r in measured.values()), 0)
    notes = ['' if measured else f'No image of this run is of the class {_class(scene)}.',
             'Bold: the best of this run per column.', PUBLISHED if reported else '',
             INTERVALS if any(r.interval for r in measured.values()) else '', _mixture(summary)]
    images = f'{count} images, ' if count else ''
    return _lines(f'{title} ({images}as in the paper’s Table {table})', first, lines, best=True,
                  note=' '.join(filter(None, notes)))


def _mixture(summary: Summary) -> str:
    """Say that words and bins are the paper's, and everything else this run's."""
    others = other_settings(summary.config, without=('tokens', 'bins'))
    return '' if not others else (
        'Words and bins are the paper’s, all other settings are this run’s: '
        + '; '.join(f'{name} {quoted(value)}, in the paper {quoted(wanted)}'
                    for name, value, wanted in others) + '.')


def _gains(measured: dict[str, Row], reported: dict[str, PaperRow]) -> list[Line]:
    """Line "Best partition's gain" of the paper's Table 2: best by rmse, minus the original."""
    lines: list[Line] = []
    for rows, quiet in ((measured, False), (reported, True)):
        metrics = {name: row.metrics for name, row in rows.items() if 'rmse' in row.metrics}
        original = next((n for n in metrics if n.lower().startswith('original')), None)
        others = [n for n in metrics if n.lower().startswith('class-dependent')]
        if original is None or not others:
            continue
        best = min(others, key=lambda n: metrics[n]['rmse'])
        gain = {m: metrics[best][m] - metrics[original][m] for m in PAPER_METRICS
                if m in metrics[best] and m in metrics[original]}
        lines.append(Line('the same, paper' if quiet and lines else 'best partition’s gain', gain,
                          quiet=quiet, note=f'{best} − original; best by rmse', signed=True))
    return lines


def _lines(
    title: str, first: str, lines: Sequence[Line], *, best: bool = False,
    bold_first: bool = False, note: str = '',
) -> Table:
    """Build a table of metric lines, with image counts and notes where there are some."""
    counted = any(line.images is not None for line in lines)
    noted = any(line.note for line in lines)
    leaders = _leaders(lines) if best else {}
    cells = []
    for place, line in enumerate(lines):
        strong = {m for m in PAPER_METRICS if leaders.get(m) == place}
        if bold_first and place == 0:
            strong = set(PAPER_METRICS)
        for row in (_numbers(line, strong), *_below(line.interval)):
            above = not row[0].small
            if counted:
                row.insert(1, Cell(str(line.images) if above and line.images is not None else ''))
            if noted:
                row.append(Cell(line.note if above else '', quiet=line.quiet))
            cells.append(row)
    return _table(title, [first, 'images'] if counted else [first], cells, note,
                  ['note'] if noted else [])


def _leaders(lines: Sequence[Line]) -> dict[str, int]:
    """Place of the best line of this run, per metric."""
    found = {}
    for metric in PAPER_METRICS:
        values = [(line.metrics[metric], place) for place, line in enumerate(lines)
                  if not line.quiet and not line.signed and line.name != ALL
                  and math.isfinite(line.metrics.get(metric, math.nan))]
        if len(values) > 1:
            choose = max if metric in HIGHER_IS_BETTER else min
            found[metric] = choose(values, key=lambda pair: pair[0])[1]
    return found


def _line(row: Row, *, interval: bool = False) -> Line:
    return Line(row.name, row.metrics, note=row.note, interval=row.interval if interval else None)


def _numbers(line: Line, strong: Iterable[str] = ()) -> list[Cell]:
    marked = set(strong)
    return [Cell(line.name, strong=marked == set(PAPER_METRICS), quiet=line.quiet),
            *(Cell(number(line.metrics.get(m), signed=line.signed), strong=m in marked,
                   quiet=line.quiet) for m in PAPER_METRICS)]


def _below(interval: dict[str, Interval] | None) -> list[list[Cell]]:
    """Put the intervals of a line below it, where there are any."""
    return [[Cell('95 % interval', small=True), *(
        Cell(_interval(interval.get(m)), small=True) for m in PAPER_METRICS)]] if interval else []


def _table(
    title: str, first: list[str], rows: list[list[Cell]], note: str = '',
    last: Sequence[str] = (),
) -> Table:
    header = [*first, *(heading(m) for m in PAPER_METRICS), *last]
    return Table(title, header, rows,
                 frozenset(range(1, len(first) + len(PAPER_METRICS))), note)


def _source(row: PaperRow) -> str:
    source = {'1': 'the paper, Table 1', 'calibrated': 'trained on NYU'}.get(row.table, row.table)
    return f'{source}; {row.note}' if row.note else source


def _interval(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None or not math.isfinite(interval.low + interval.high):
        return '–'
    return f'{number(interval.low, signed=signed)} … {number(interval.high, signed=signed)}'


def _level(comparison: Comparison) -> str:
    return next((found.name() for found in comparison.intervals.values()), 'interval')


def _reading(interval: Interval | None) -> str:
    """What the interval allows to say, and no more."""
    if interval is None or not math.isfinite(interval.low + interval.high):
        return '–'
    return interval.reading()


def _within(differences: dict[str, float], limits: dict[str, float], metric: str) -> str:
    difference = differences.get(metric, math.nan)
    if metric not in limits or not math.isfinite(difference):
        return '–'
    return 'yes' if abs(difference) <= limits[metric] else 'no'


def _class(scene: str) -> str:
    return 'all classes' if scene == ALL else scene.replace('_', ' ') or 'no class'


def _text_number(text: str | None) -> str:
    try:
        return number(float(text)) if text else '–'
    except ValueError:
        return text or '–'
