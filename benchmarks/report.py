# SPDX-License-Identifier: Apache-2.0
"""Table (Markdown) and plot (PNG) of a result, beside its JSON.

Every benchmark writes them; to write those of a committed result anew:

    python benchmarks/report.py benchmarks/results/*/*.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import machine  # noqa: E402

Result = dict[str, Any]
OURS, PLAIN = 'depth_node', 'plain_node'
COARSE = 'plain_node with a coarse cloud'
COLORS = {'float32': 'tab:blue', 'float16': 'tab:green', 'bfloat16': 'tab:orange',
          'int8': 'tab:red'}
OTHER_COLOR = 'tab:gray'


def write(path: Path | None, result: Result) -> str:
    """Write JSON, table and plot, and give the table; without a path only JSON, to the output."""
    machine.write(path, result)
    return '' if path is None else beside(path)


def beside(path: Path) -> str:
    """Write table and plot beside a JSON file, from what it holds; gives the table."""
    result = json.loads(path.read_text(encoding='utf-8'))
    text = markdown(result)
    path.with_suffix('.md').write_text(text, encoding='utf-8')
    import matplotlib as mpl
    mpl.use('Agg')
    from matplotlib import pyplot as plt
    figure = _kind(result)[1](plt, result)
    figure.suptitle(f'{result["what"]}\n{_place(result)}', fontsize=9)
    figure.tight_layout()
    figure.savefig(path.with_suffix('.png'), dpi=110)
    plt.close(figure)
    return text


def markdown(result: Result) -> str:
    """Where and what was measured, and the tables."""
    versions = ', '.join(f'{name} {version}' for name, version in result['versions'].items())
    head = (f'`{result["command"]}`, {result["date"]}: {_place(result)}; {versions}; '
            f'load before: {result["load before"]:.1f}.')
    return '\n\n'.join([f'# {result["what"]}', head, *_kind(result)[0](result)]) + '\n'


def _place(result: Result) -> str:
    gpu = ', '.join(result['gpu']) or 'no GPU'
    return f'{result["machine"]}, {result["cores"]} cores, {gpu}'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def _cell(value: Any, unit: str = '') -> str:
    """A value of the JSON; a number that was not one is null there."""
    if value is None:
        return '-'
    if isinstance(value, list):
        return ' x '.join(map(str, value))
    return f'{value:.4g} {unit}'.rstrip() if isinstance(value, float) else str(value)


def _by_key(*results: Result) -> list[list[str]]:
    """A row for every key of the first result, with what each of them has there."""
    return [[key, *(_cell(result.get(key)) for result in results)]
            for key, value in results[0].items() if not isinstance(value, dict)]


def _stack(plt: Any, axes: Any, row: Any, stages: dict[str, float], *, label: bool) -> None:
    """Draw a row of stages that follow each other, in seconds; their names beside the plot."""
    colors = plt.get_cmap('tab10' if len(stages) <= 10 else 'tab20').colors
    begin = 0.0
    for (name, seconds), color in zip(stages.items(), colors[:len(stages)], strict=True):
        axes.barh(row, seconds, left=begin, color=color, label=name if label else None)
        begin += seconds
    axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1.0, 0.5))


# Estimator ---------------------------------------------------------------------------------------


def _estimator_tables(result: Result) -> list[str]:
    against = result['against naive']

    def naive_row(row: Result) -> list[str]:
        error = row['difference from naive']
        return [row['name'], f'{row["p50 [ms]"]:.1f}', f'{row["p99 [ms]"]:.1f}',
                f'{row["times faster than two naive passes"]:.2f}',
                f'{error["median [m]"]:.1g}, {error["max [m]"]:.1g}' if error else '']

    return [
        _table([f'{against["input"]}, one image', 'p50 ms', 'p99 ms',
                'x faster than two naive passes', 'depth differs by median, max m'],
               map(naive_row, against['rows'])),
        *(_table([key, 'p50 ms', 'p99 ms', 'images/s'],
                 [[row['name'], f'{row["p50 [ms]"]:.1f}', f'{row["p99 [ms]"]:.1f}',
                   f'{row["images/s"]:.1f}'] for row in result[key]])
          for key in ('trunk alone', 'batches', 'sizes')),
        _table(['roofline', ''],
               [[key, f'{value:.3g}'] for key, value in result['roofline'].items()])]


def _estimator_plot(plt: Any, result: Result) -> Any:
    figure, (ways, batches, roofline) = plt.subplots(
        1, 3, figsize=(13, 6), width_ratios=(3, 1.3, 1.3))
    rows = result['against naive']['rows'][::-1]
    precisions = [next((p for p in COLORS if f', {p},' in row['name']), '') for row in rows]
    bars = ways.barh([row['name'] for row in rows], [row['p50 [ms]'] for row in rows],
                     color=[COLORS.get(p, OTHER_COLOR) for p in precisions])
    ways.bar_label(bars, [f'{row["times faster than two naive passes"]:.2f} x' for row in rows],
                   padding=3, fontsize=8)
    ways.set(xlabel='one image, RGB to depth [ms]; times faster than two naive passes')
    ways.margins(x=0.12)
    batches.plot([row['images'] for row in result['batches']],
                 [row['images/s'] for row in result['batches']], 'o-')
    batches.set(xlabel='images in a batch', ylabel='images/s',
                ylim=(0, 1.1 * max(row['images/s'] for row in result['batches'])))
    found = [p for p in COLORS if f'{p} forward [GFLOP/s]' in result['roofline']]
    for shift, what, alpha in ((-0.2, 'matmul', 0.4), (0.2, 'forward', 1.0)):
        roofline.bar([place + shift for place in range(len(found))],
                     [result['roofline'][f'{p} {what} [GFLOP/s]'] for p in found], 0.4,
                     color=[COLORS[p] for p in found], alpha=alpha)
    roofline.set_xticks(range(len(found)), found)
    roofline.set(ylabel='GFLOP/s; pale: matrix product, full: forward pass')
    return figure


# Node --------------------------------------------------------------------------------------------


def _node_tables(result: Result) -> list[str]:
    rates = [row for row in result['results'] if 'at 30 Hz' in row]
    ones = [_one_camera_row(row['node'], row['overhead'], row['beyond capacity'])
            for row in result['results'] if row['cameras'] == 1]
    if COARSE in result:
        ones.append(_one_camera_row(COARSE, result[COARSE], None))
    several = [[str(row['cameras']), row['node'], *(_cell(row['overhead'][key], 'ms') for key in (
                    'overhead p50 [ms]', 'network p50 [ms]', 'CPU per image [ms]'))]
               for row in result['results'] if 'CPU per image [ms]' in row.get('overhead', {})]
    goals = [[f'{name} ≤ {goal["goal"]:g}', _cell(goal['value']),
              'yes' if goal['reached'] else 'no']
             for name, goal in result['summary']['goals'].items()]
    ratios = [[count, *map(_cell, ratio.values())]
              for count, ratio in result['summary']['ours to plain'].items()]
    return [
        *([_table(['cameras', 'node', 'highest rate with < 5 % drops', 'at 30 Hz: drops',
                   'latency p50', 'p99', 'CPU per image'], map(_rate_row, rates)),
           _table(['depth_node to plain_node', 'highest rate, times', 'p99 at 30 Hz, part'],
                  ratios)] if rates else []),
        *([_table(['cameras', 'node', 'all but the network, median of an image',
                   'network, of all images at once', 'CPU per image'], several)]
          if several else []),
        _table(['one camera', 'all but the network, median', 'network', 'sent, beyond capacity',
                'age p99', 'age p99 / network', 'age, first and last quarter'], ones),
        _table(['goal', 'value', 'reached'], goals)]


def _rate_row(row: Result) -> list[str]:
    fixed = row['at 30 Hz']
    at_least = '' if row['limited by'] == 'node' else '≥ '
    return [str(row['cameras']), row['node'], f'{at_least}{row["highest rate [Hz]"]:.3g} Hz',
            f'{100 * fixed["drops"]:.1f} %', _cell(fixed['latency p50 [ms]'], 'ms'),
            _cell(fixed['latency p99 [ms]'], 'ms'), _cell(fixed['CPU per image [ms]'], 'ms')]


def _one_camera_row(name: str, overhead: Result, beyond: Result | None) -> list[str]:
    cells = [name, _cell(overhead['overhead p50 [ms]'], 'ms'),
             _cell(overhead['network p50 [ms]'], 'ms')]
    if beyond is None:
        return [*cells, '', '', '', '']
    first, last = (_cell(beyond[f'age, median of {part} quarter [ms]'], 'ms')
                   for part in ('first', 'last'))
    return [*cells, _cell(beyond['sent [Hz]'], 'Hz'), _cell(beyond['age p99 [ms]'], 'ms'),
            _cell(beyond['age p99 / network']), f'{first}, {last}']


def _node_plot(plt: Any, result: Result) -> Any:
    has_rates = 'at 30 Hz' in result['results'][0]
    figure, panels = plt.subplots(
        1, 2 + has_rates, figsize=(13 if has_rates else 9, 4), squeeze=False)
    *panels, ages = panels[0]
    for node, color in ((OURS, 'tab:blue'), (PLAIN, OTHER_COLOR)):
        rows = [row for row in result['results'] if row['node'] == node]
        counts = [row['cameras'] for row in rows]
        beyond = rows[0]['beyond capacity']
        ages.plot(beyond['series']['seconds'], beyond['series']['age [ms]'], '.', markersize=3,
                  color=color, label=f'{node}, sent {beyond["sent [Hz]"]:.0f} Hz')
        if not has_rates:
            panels[0].plot(counts, [row['overhead']['overhead p50 [ms]'] for row in rows], 'o-',
                           color=color, label=node)
            continue
        rates, latencies = panels
        rates.plot(counts, [row['highest rate [Hz]'] for row in rows], 'o-', color=color,
                   label=node)
        for part, style in (('p50', 'o-'), ('p99', 'o--')):
            latencies.plot(counts, [row['at 30 Hz'][f'latency {part} [ms]'] for row in rows],
                           style, color=color, label=f'{node}, {part}')
    labels = ('highest rate of each [Hz]', 'latency at 30 Hz [ms]') if has_rates \
        else ('all but the network, an image [ms]',)
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel='cameras', ylabel=label, yscale='log')
        axes.set_xticks(counts, [str(count) for count in counts])
    ages.set(xlabel='time [s]', ylabel='age of depth beyond capacity [ms]', yscale='log')
    for axes in (*panels, ages):
        axes.grid(visible=True, which='both', alpha=0.3)
        axes.legend(fontsize=8)
    return figure


# Start-up ----------------------------------------------------------------------------------------

STARTS = ('node, text features cached', 'node, text features not cached')
STAGES = 'stages, one after another'
PREDICT = 'depthclip predict, one image'


def _startup_tables(result: Result) -> list[str]:
    return [
        _table([f'goal: first depth within {result["goal [s]"]:g} s', *STARTS],
               _by_key(*(result[start] for start in STARTS))),
        _table([STAGES, 's', 'resident MiB after it'],
               [[name, f'{stage["seconds"]:.3f}', f'{stage["resident [MiB]"]:.0f}']
                for name, stage in result[STAGES].items()]),
        _table([PREDICT, ''], _by_key(result[PREDICT]))]


def _startup_plot(plt: Any, result: Result) -> Any:
    figure, axes = plt.subplots(figsize=(10, 4))
    moments = ('configured [s]', 'active [s]', 'first depth [s]')
    for row, start in enumerate(STARTS, 1):
        times = [result[start][moment] for moment in moments]
        axes.barh(row, times[-1], color='tab:blue', alpha=0.25)
        for moment, seconds, mark in zip(moments, times, '|xo', strict=True):
            axes.plot(seconds, row, mark, color='tab:blue',
                      label=moment.removesuffix(' [s]') if row == 1 else None)
    axes.axvline(result['goal [s]'], color='tab:red', linestyle='--', label='goal')
    _stack(plt, axes, 0, {name: stage['seconds'] for name, stage in result[STAGES].items()},
           label=True)
    axes.set_yticks([0, 1, 2], [STAGES, *STARTS])
    axes.set(xlabel="seconds since the start of the node's process")
    return figure


# Offline evaluation ------------------------------------------------------------------------------


def _evaluations(result: Result) -> dict[str, Result]:
    """What was measured by the name of the model."""
    return {name: value for name, value in result.items()
            if isinstance(value, dict) and 'stages [s]' in value}


def _evaluation_tables(result: Result) -> list[str]:
    models = _evaluations(result)
    goal = result['goal']['all images, of the network alone']
    return [
        _table([f'goal: all images at most {goal:g} of the network alone', *models],
               _by_key(*models.values())),
        _table(['stages [s]', *models],
               _by_key(*(model['stages [s]'] for model in models.values())))]


def _evaluation_plot(plt: Any, result: Result) -> Any:
    figure, axes = plt.subplots(figsize=(10, 3))
    models = _evaluations(result)
    for row, (name, model) in enumerate(models.items()):
        alone = model['network alone, seconds an image'] * result['test images']
        axes.barh([f'{name}, network alone'], alone, color=OTHER_COLOR)
        _stack(plt, axes, [name], model['stages [s]'], label=row == 0)
    axes.set(xlabel=f'seconds for {result["test images"]} images')
    return figure


# Rendered rooms ----------------------------------------------------------------------------------


def _error(row: Result, *, beside: bool = True) -> str:
    """Rmse, and how much more than that of the first row it is, with a 95 % interval."""
    text = f'{row["rmse [m]"]:.3f}'
    if not beside or row['± [m]'] in (None, 0.0):
        return text
    return f'{text} ({row["rmse more than the first [m]"]:+.3f} ± {row["± [m]"]:.3f})'


def _readout_tables(result: Result) -> list[str]:
    ways = result['read-outs']
    sigmas = list(dict.fromkeys(way['smoothing'] for way in ways))
    upsampling = list(dict.fromkeys(way['upsampling'] for way in ways))

    def pick(**values: Any) -> Result:
        return next(way for way in ways if all(way[key] == value
                                               for key, value in values.items()))

    plain = {'smoothing': 0.0, 'upsampling': upsampling[0]}
    features = []
    for model in result['features']:
        for read_out in ('mean', 'argmax'):
            way = pick(features=model['features'], read_out=read_out, **plain)
            features.append([
                f'`{model["features"]}`', read_out, _error(way), f'{way["delta1"]:.3f}',
                f'{way["correlation"]:.2f}', f'{model["temperature"]:g}',
                f'{model["p50 [ms]"]:.1f}', f'{model["times the first"]:.1f}'])
    best = [min((way for way in ways if way['features'] == model['features']),
                key=lambda way: float(way['rmse [m]'])) for model in result['features']]
    controls = [[row['control'], '', _error(row), f'{row["delta1"]:.3f}',
                 f'{row["correlation"]:.2f}', '', '', ''] for row in result['controls']]
    first = result['features'][0]['features']
    return [
        _table(['features', 'read_out', 'rmse m (beside the first)', 'δ1', 'correlation',
                'temperature', 'ms', 'times the first'], [*features, *controls]),
        _table([f'`{first}`: rmse m', 'smoothing', *(f'`{mode}`' for mode in upsampling)],
               [[read_out, f'{sigma:g}', *(_error(pick(
                   features=first, read_out=read_out, smoothing=sigma, upsampling=mode))
                   for mode in upsampling)] for read_out in ('mean', 'argmax')
                for sigma in sigmas]),
        _table(['best of all for', 'read_out', 'smoothing', 'upsampling', 'rmse m', 'δ1'],
               [[f'`{way["features"]}`', way['read_out'], f'{way["smoothing"]:g}',
                 f'`{way["upsampling"]}`', _error(way), f'{way["delta1"]:.3f}']
                for way in best])]


def _readout_plot(plt: Any, result: Result) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    ways = result['read-outs']
    first, upsampling = ways[0]['features'], ways[0]['upsampling']
    names = [model['features'] for model in result['features']]
    for shift, read_out in ((-0.2, 'mean'), (0.2, 'argmax')):
        left.bar([place + shift for place in range(len(names))], [
            way['rmse [m]'] for way in ways if way['read_out'] == read_out
            and way['smoothing'] == 0 and way['upsampling'] == upsampling], 0.4, label=read_out)
    for row, style in zip(result['controls'], (':', '--'), strict=True):
        left.axhline(row['rmse [m]'], color=OTHER_COLOR, linestyle=style, label=row['control'])
    left.set_xticks(range(len(names)), names)
    for read_out, style in (('mean', 'o-'), ('argmax', 'o--')):
        for mode in dict.fromkeys(way['upsampling'] for way in ways):
            line = [way for way in ways if way['features'] == first
                    and way['read_out'] == read_out and way['upsampling'] == mode]
            right.plot([way['smoothing'] for way in line], [way['rmse [m]'] for way in line],
                       style, label=f'{read_out}, {mode}')
    left.set(ylabel='rmse [m]')
    right.set(xlabel=f'{first}: smoothing [patches]', ylabel='rmse [m]')
    for axes in (left, right):
        axes.legend(fontsize=7)
    return figure


SIZE_WAYS = ('zero-shot', 'one scale fitted', 'calibrated')


def _size_tables(result: Result) -> list[str]:
    rows = sorted(result['input sizes'], key=lambda row: -row['demo p50 [ms]'])
    return [_table(
        ['input', *(f'{way}: rmse m' for way in SIZE_WAYS), 'δ1', 'scale', 'demo model ms',
         'of 480 x 640', 'RN50 ms', 'of 480 x 640'],
        [[_cell(row['input']), *(_error(row[way], beside=False) if way in row else '-'
                                 for way in SIZE_WAYS),
          ', '.join(f'{row[way]["delta1"]:.3f}' for way in SIZE_WAYS if way in row),
          f'{row["scale"]:.2f}', f'{row["demo p50 [ms]"]:.1f}',
          f'{row["demo part of the largest"]:.2f}', f'{row["RN50 p50 [ms]"]:.0f}',
          f'{row["RN50 part of the largest"]:.2f}'] for row in rows])]


def _size_plot(plt: Any, result: Result) -> Any:
    figure, axes = plt.subplots(figsize=(8, 4.5))
    rows = sorted(result['input sizes'], key=lambda row: row['demo p50 [ms]'])
    for way in SIZE_WAYS:
        if way in rows[0]:
            axes.plot([row['demo p50 [ms]'] for row in rows],
                      [row[way]['rmse [m]'] for row in rows], 'o-', label=way)
    for row in rows:
        axes.annotate(_cell(row['input']), (row['demo p50 [ms]'], row[SIZE_WAYS[0]]['rmse [m]']),
                      fontsize=7, textcoords='offset points', xytext=(3, 4))
    axes.set(xscale='log', xlabel='demo model, one image [ms]', ylabel='rmse [m]')
    axes.grid(visible=True, which='both', alpha=0.3)
    axes.legend()
    return figure


def _busy_tables(result: Result) -> list[str]:
    return [_table(
        ['load', 'way to wait', 'p50 ms', 'p90 ms', 'processor time ms', 'x faster than default'],
        [[row['load'], row['way'], f'{row["p50 [ms]"]:.0f}', f'{row["p90 [ms]"]:.0f}',
          f'{row["processor time p50 [ms]"]:.0f}', f'{row["times faster than the default"]:.2f}']
         for row in result['ways to wait']])]


def _busy_plot(plt: Any, result: Result) -> Any:
    figure, axes = plt.subplots(figsize=(10, 4.5))
    rows = result['ways to wait']
    loads, ways = (list(dict.fromkeys(row[key] for row in rows)) for key in ('load', 'way'))
    width = 0.8 / len(ways)
    for i, way in enumerate(ways):
        axes.bar([place + (i - len(ways) / 2 + 0.5) * width for place in range(len(loads))],
                 [row['p50 [ms]'] for row in rows if row['way'] == way], width, label=way)
    axes.set_xticks(range(len(loads)), loads)
    axes.set(ylabel='one image, RGB to depth [ms]')
    axes.legend(fontsize=8)
    return figure


# 8 bits ------------------------------------------------------------------------------------------


def _difference_tables(result: Result) -> list[str]:
    return [_table(
        ['images', 'precision', 'median mm', '90 % mm', 'max mm', 'rmse', 'δ1'],
        [[f'{row["count"]} {row["images"]}', row['precision'],
          *(f'{row[key]:.1f}' for key in ('median [mm]', 'p90 [mm]', 'max [mm]')),
          *((f'{row["rmse more [%]"]:+.2f} %', f'{row["delta1 more"]:+.4f}')
            if 'delta1 more' in row else ('', ''))] for row in result['differences']])]


def _difference_plot(plt: Any, result: Result) -> Any:
    figure, axes = plt.subplots(figsize=(10, 4))
    rows = result['differences'][::-1]
    names = [f'{row["images"]}: {row["precision"]}' for row in rows]
    axes.barh(names, [row['p90 [mm]'] for row in rows], color=OTHER_COLOR, label='90 %')
    axes.barh(names, [row['median [mm]'] for row in rows], color='tab:blue', label='median')
    axes.set(xlabel="difference from float32's depth [mm]")
    axes.legend()
    return figure


Kind = tuple[Callable[[Result], list[str]], Callable[[Any, Result], Any]]
# Tables and plot by what only results of a kind have.
KINDS: dict[str, Kind] = {
    'against naive': (_estimator_tables, _estimator_plot),
    'summary': (_node_tables, _node_plot),
    STAGES: (_startup_tables, _startup_plot),
    'test images': (_evaluation_tables, _evaluation_plot),
    'read-outs': (_readout_tables, _readout_plot),
    'input sizes': (_size_tables, _size_plot),
    'ways to wait': (_busy_tables, _busy_plot),
    'differences': (_difference_tables, _difference_plot),
}


def _kind(result: Result) -> Kind:
    return next(kind for key, kind in KINDS.items() if key in result)


if __name__ == '__main__':
    for name in sys.argv[1:]:
        beside(Path(name))
