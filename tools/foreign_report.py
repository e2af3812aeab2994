# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/notes/robots.md, and plots, from docs/robots.json; no figure is typed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parents[1] / 'docs'
FIGURES, PAGE, PLOTS = DOCS / 'robots.json', DOCS / 'notes/robots.md', DOCS / 'robots'
SHORT = '60 frames, 10 rooms'
ROBOT = 'robot '  # begins the names of the robots' parts
LEAST, MOST = 0.88, 0.92  # coverage that is meant to be 0.9
BACK = 0.87, 0.93  # after a change
METHODS = (
    'zero-shot', 'focal length', 'mean map', 'one scale', 'calibrated on shuffled depth',
    'calibrated', 'calibrated, anchor', 'calibrated, best scale')
COLORS = dict(zip(METHODS, (
    'tab:gray', 'tab:blue', 'tan', 'tab:olive', 'rosybrown', 'tab:red', 'tab:green',
    'lightgreen'), strict=True))
# What other tools measured, and where they keep it in docs/.
ELSEWHERE = {'sabotage': 'calibration_checks.json', 'scenes': 'scenes.json'}
COARSE, FINE = 'three words: outermost and middle', 'ten fine words'
Results = Mapping[str, Any]


class Goal(NamedTuple):
    """One line of the table of goals."""

    what: str
    measured: str
    must: str
    hard: str
    verdict: str


def _verdict(*, must: bool, hard: bool | None) -> str:
    if hard:
        return 'hard goal reached'
    if must:
        return 'reached' if hard is None else 'reached, hard goal missed'
    return '**missed**'


def _below(what: str, value: float, must: float, hard: float | None, unit: str = ' x base',
           ) -> Goal:
    return Goal(what, f'{value:.3f}{unit}', f'≤ {must:g}', '' if hard is None else f'≤ {hard:g}',
                _verdict(must=value <= must, hard=None if hard is None else value <= hard))


def goals(results: Results) -> list[Goal]:
    """Every goal whose figures are there."""
    lines: list[Goal] = []
    found = measured(results)
    for part, of_part in (('robots', _robot_goals), ('lenses', _lens_goals),
                          ('anchors', _anchor_goals), ('robots', _coverage_goals),
                          ('recovery', _recovery_goals), ('sabotage', _sabotage_goals),
                          ('scenes', _scene_goals), ('cost', _cost_goals)):
        if part in found:
            lines += of_part(found[part])
    return lines


def measured(results: Results) -> dict[str, Any]:
    """What was measured, by parts; those of the robots in one, as far as they are there."""
    found = {name: part['measured'] for name, part in results.items()
             if not name.startswith(ROBOT)}
    robots = {name.removeprefix(ROBOT): part['measured'] for name, part in results.items()
              if name.startswith(ROBOT)}
    return {**found, 'robots': robots} if robots else found


def _robot_goals(robots: Results) -> Iterable[Goal]:
    if 'B' in robots:
        focal = robots['B']['rows']['focal length']['of base']
        yield _below('focal length alone, B', focal, 0.5, 0.45)
    for name, must, hard in (('B', 0.42, 0.38), ('C', 0.82, 0.75), ('D', 0.49, 0.42)):
        for drive, rows in robots.get(name, {'drives': {}})['drives'].items():
            yield _below(f'calibrated, {name}, {drive}', rows['calibrated']['of base'], must, hard)
    for drive, rows in robots.get('A', {'drives': {}})['drives'].items():
        worst = rows['calibrated']['of base, least and most'][1]
        hard = 0.95 if drive.startswith('200') else None
        yield _below(f'calibrated, A, {drive}: the worst drive', worst, 1.01, hard)
    for drive, rows in robots.get('B', {'drives': {}})['drives'].items():
        d1 = rows['calibrated, anchor']['d1']
        yield Goal(f'calibrated and anchor of 20 points, B, {drive}', f'δ1 {d1:.3f}', '≥ 0.84',
                   '≥ 0.88', _verdict(must=d1 >= 0.84, hard=d1 >= 0.88))


def _lens_goals(lenses: Results) -> Iterable[Goal]:
    for drive, row in lenses.items():
        if drive == 'zero-shot':
            continue
        better, growth = [], []
        for degrees in (50, 75, 90):
            value = row[f'{degrees} degrees, with']
            better.append(value < min(row[f'{degrees} degrees, without'],
                                      row[f'{degrees} degrees, camera unknown']))
            growth.append(value / row['63 degrees, with'] - 1)
        yield Goal(
            f'calibrated at 63 degrees ({drive}), run at 50, 75 and 90 degrees',
            f'better than without focal length at {sum(better)} of 3; rmse grows by '
            + ', '.join(f'{100 * value:+.0f} %' for value in growth),
            'better at all 3', '≤ +10 %', _verdict(
                must=all(better), hard=all(better) and max(growth) <= 0.1))


def _anchor_goals(anchors: Results) -> Iterable[Goal]:
    for name, robot in anchors.items():
        for case, row in robot['cases'].items():
            step, share = row['largest step'], row['of the oracle scale']
            yield Goal(f'anchor on a drive, {name}, {case}',
                       f'largest step {100 * step:.1f} %, rmse {share:.3f} x that of the '
                       'oracle scale', 'steps ≤ 5 %, ≤ 1.05', '',
                       _verdict(must=step <= 0.05 + 1e-6 and share <= 1.05, hard=None))


def _coverage_goals(robots: Results) -> Iterable[Goal]:
    for name, robot in robots.items():
        for drive, parts in robot['coverage'].items():
            cells = [value for part in parts for value in (
                *part['by kind of room'].values(), *part['by decile of depth'])]
            if not cells:
                continue
            good = sum(LEAST <= value <= MOST for value in cells)
            yield Goal(f'coverage of stddev, {name}, {drive}',
                       f'{_mean(part["all"] for part in parts):.3f} in all; {good} of '
                       f'{len(cells)} kinds and deciles within, {min(cells):.3f} to '
                       f'{max(cells):.3f}', '0.9 ± 0.02 in each', '',
                       _verdict(must=good == len(cells), hard=None))


def _recovery_goals(recovery: Results) -> Iterable[Goal]:
    after = recovery.get('with an anchor', [])[
        recovery['frames before'] // recovery['frames averaged']:]
    if not after:
        return
    within = [BACK[0] <= value <= BACK[1] for value in after]
    back = next((i for i in range(len(within)) if all(within[i:])), None)
    frames = None if back is None else (back + 1) * recovery['frames averaged']
    yield Goal(
        'coverage after the camera was mounted lower',
        f'{", ".join(f"{value:.3f}" for value in after)} in parts of '
        f'{recovery["frames averaged"]} frames; '
        + ('not back' if frames is None else f'back and stays by frame {frames}'),
        '0.9 ± 0.03 within 200 frames', '',
        _verdict(must=frames is not None and frames <= 200, hard=None))


def _sabotage_goals(sabotage: Results) -> Iterable[Goal]:
    cause, wrong = sabotage['refused with their cause'], sabotage['good'] - sabotage['accepted']
    yield Goal('sabotaged recordings',
               f'{cause} of {sabotage["sabotaged"]} refused with their cause, {wrong} of '
               f'{sabotage["good"]} good ones refused', 'all, with the cause; none of the good',
               '', _verdict(must=cause == sabotage['sabotaged'] and not wrong, hard=None))


def _scene_goals(scenes: Results) -> Iterable[Goal]:
    for words, must, hard in ((COARSE, 0.92, 0.88), (FINE, 1.01, None)):
        row = scenes['words'][words]['rows']['bins by scene']
        yield _below(f'bins by zero-shot scene, {words}', row['of one partition'], must, hard,
                     ' x one fitted partition')


def _cost_goals(cost: Results) -> Iterable[Goal]:
    for name, most in (('focal length, calibration and stddev [ms]', 0.3),
                       ('anchor of 20 points [ms]', 1.0)):
        yield _below(name.removesuffix(' [ms]') + ', a frame', cost[name], most, None, ' ms')


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


# Tables ------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    return [f'| {" | ".join(cells)} |' for cells in (head, ['---'] * len(head), *rows)]


def tables(results: Results) -> dict[str, list[str]]:
    """The tables of the page, by the names of their marks."""
    found = measured(results)
    found |= {'coverage': found['robots']} if 'robots' in found else {}
    made = {'goals': table(['what', 'measured', 'goal', 'hard goal', ''], goals(results))}
    for name, of_part in (('robots', _robots), ('lenses', _lenses), ('coverage', _coverage),
                          ('anchors', _anchors), ('cost', _cost)):
        made[name] = list(of_part(found[name])) if name in found else []
    made['runs'] = table(['part', 'machine', 'when', 'seconds'], [
        [name, f'{part["machine"]}, {part["cores"]} cores, torch {part["versions"]["torch"]}',
         part['date'][:10], f'{part["seconds"]:.0f}']
        for name, part in results.items() if name not in ELSEWHERE])
    return made


def _robots(robots: Results) -> Iterable[str]:
    head = ['robot', 'calibrated on', 'method', 'δ1', 'rel', 'rmse (m)', 'of base', '95 %',
            'least to most']
    rows = []
    for name, robot in robots.items():
        groups = {'': robot['rows'], **robot['drives']}
        for drive, methods in groups.items():
            for method, row in methods.items():
                low, high = row['of base, 95 %']
                least, most = row.get('of base, least and most', ('', ''))
                rows.append([
                    name, drive, method, f'{row["d1"]:.3f}', f'{row["rel"]:.3f}',
                    f'{row["rmse [m]"]:.3f}', f'{row["of base"]:.3f}', f'{low:.3f} – {high:.3f}',
                    f'{least:.3f} – {most:.3f}' if least != most else ''])
    return table(head, rows)


def _lenses(lenses: Results) -> Iterable[str]:
    columns = [63, 50, 75, 90]
    ways = ('with', 'without', 'camera unknown')
    return table(['calibrated on', 'focal length', *(f'{d}°' for d in columns)], [
        [drive, way, *(f'{row[f"{d} degrees, {way}"]:.3f}' for d in columns)]
        for drive, row in lenses.items() for way in ways if f'63 degrees, {way}' in row])


def _coverage(robots: Results) -> Iterable[str]:
    rows = []
    for name, robot in robots.items():
        for drive, parts in robot['coverage'].items():
            if not parts:
                continue
            kinds = {kind: _mean(part['by kind of room'][kind] for part in parts)
                     for kind in parts[0]['by kind of room']}
            deciles = [[_mean(part[f'by decile of {by}'][i] for part in parts) for i in range(10)]
                       for by in ('depth', 'true depth')]
            rows.append([
                name, drive, f'{_mean(part["all"] for part in parts):.3f}',
                ', '.join(f'{kind} {value:.2f}' for kind, value in kinds.items()),
                *(' '.join(f'{value:.2f}' for value in values) for values in deciles)])
    return table(['robot', 'calibrated on', 'all', 'by kind of room', 'by decile of depth',
                  'by decile of true depth'], rows)


def _anchors(anchors: Results) -> Iterable[str]:
    return table(
        ['robot', 'points', 'largest step', 'rmse (m)', 'of the oracle scale',
         'from a second after a new room on', 'of the best scale'], [
            *([name, way, '', f'{robot[f"rmse {words} [m]"]:.3f}',
               _share(robot[f'rmse {words} [m]'] / robot['rmse with the oracle scale [m]']), '',
               _share(robot[f'rmse {words} [m]'] / robot['rmse with the best scale [m]'])]
              for name, robot in anchors.items() for way, words in (
                  ('no anchor', 'without an anchor'), ('oracle scale', 'with the oracle scale'))),
            *([name, case, f'{100 * row["largest step"]:.1f} %', f'{row["rmse [m]"]:.3f}',
               _share(row['of the oracle scale']),
               _share(row['of the oracle scale, from a second after a new room on']),
               _share(row['of the best scale'])]
              for name, robot in anchors.items() for case, row in robot['cases'].items())])


def _share(value: float) -> str:
    return f'{value:.3f}'


def _cost(cost: Results) -> Iterable[str]:
    return table(['what', 'ms'], [
        [name.removesuffix(' [ms]'), f'{value:.3f}'] for name, value in cost.items()
        if name.endswith('[ms]')])


def filled(page: str, results: Results) -> str:
    """The page with its tables made anew, between their marks."""
    for name, rows in tables(results).items():
        begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        before, rest = page.split(begin)
        page = '\n'.join((before + begin, *rows, end)) + rest.split(end)[1]
    return page


# Plots -------------------------------------------------------------------------------------------


def plot(results: Results, folder: Path = PLOTS) -> None:
    """Draw all plots whose figures are there."""
    import matplotlib as mpl
    mpl.use('Agg')
    from matplotlib import pyplot as plt
    folder.mkdir(parents=True, exist_ok=True)
    found = measured(results)
    for name, part, draw in (
            ('methods', 'robots', _plot_methods), ('coverage', 'robots', _plot_coverage),
            ('learning', 'robots', _plot_learning), ('anchor', 'anchors', _plot_anchor),
            ('recovery', 'recovery', _plot_recovery)):
        if part in found:
            figure = draw(plt, found[part])
            figure.tight_layout()
            figure.savefig(folder / f'{name}.png', dpi=110)
            plt.close(figure)


def _plot_methods(plt: Any, robots: Results) -> Any:
    figure, axes = plt.subplots(figsize=(10, 4))
    usual = _usual(robots)
    width = 0.8 / len(METHODS)
    for i, method in enumerate(METHODS):
        rows = [{**robot['rows'], **robot['drives'][usual]}.get(method)
                for robot in robots.values()]
        places = [place - 0.4 + (i + 0.5) * width for place in range(len(rows))]
        bars = axes.bar(places, [row['rmse [m]'] if row else 0 for row in rows], width,
                        color=COLORS[method], label=method)
        if method == 'calibrated':
            axes.bar_label(bars, [f'{row["of base"]:.2f}' if row else '' for row in rows],
                           fontsize=7, padding=2)
    axes.set_xticks(range(len(robots)), [
        f'{name}: {robot["title"]}'.replace(', ', ',\n').replace(' instead', '\ninstead')
        for name, robot in robots.items()], fontsize=8)
    axes.set(ylabel='rmse [m], mean over rooms',
             title=f'Calibrated on {usual}; above the bar: share of zero-shot')
    axes.title.set_fontsize(10)
    axes.margins(y=0.35)
    axes.legend(fontsize=7, ncols=4, loc='upper left')
    return figure


def _usual(robots: Results) -> str:
    """The drives that the plots show."""
    drives = next(iter(robots.values()))['drives']
    return SHORT if SHORT in drives else next(iter(drives))


def _plot_coverage(plt: Any, robots: Results) -> Any:
    usual = _usual(robots)
    figure, (kinds, deciles, true) = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    for name, robot in robots.items():
        parts = robot['coverage'][usual]
        if not parts:
            continue
        names = list(parts[0]['by kind of room'])
        kinds.plot(names, [_mean(part['by kind of room'][kind] for part in parts)
                           for kind in names], 'o', label=name)
        for axes, by in ((deciles, 'depth'), (true, 'true depth')):
            axes.plot(range(1, 11), [_mean(part[f'by decile of {by}'][i] for part in parts)
                                     for i in range(10)], 'o-', label=name, markersize=3)
    for axes, label in ((kinds, 'kind of room'), (deciles, 'decile of predicted depth'),
                        (true, 'decile of true depth (cannot be known)')):
        axes.axhspan(LEAST, MOST, color='0.9')
        axes.axhline(0.9, color='0.5', linewidth=0.8)
        axes.set_xlabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
    kinds.set(ylabel='share within 1.645 stddev')
    kinds.margins(y=0.2)
    kinds.legend(fontsize=7, ncols=5, loc='lower right')
    figure.suptitle(f'Coverage on unseen rooms, calibrated on {usual}; wanted: 0.9', fontsize=10)
    return figure


def _plot_learning(plt: Any, robots: Results) -> Any:
    figure, axes = plt.subplots(figsize=(6, 3.8))
    for name, robot in robots.items():
        drives = {'none:\nfocal length': robot['rows']['focal length'],
                  **{drive.replace(', ', ',\n'): methods['calibrated']
                     for drive, methods in robot['drives'].items()}}
        axes.plot(list(drives), [row['of base'] for row in drives.values()], 'o-', label=name)
    axes.axhline(1, color='0.5', linewidth=0.8)
    axes.set(ylabel='rmse as a share of zero-shot', ylim=(0, None))
    axes.tick_params(labelsize=8)
    axes.set_xlabel('calibrated on', fontsize=8)
    axes.legend(fontsize=8, title='robot', title_fontsize=8)
    return figure


def _plot_anchor(plt: Any, anchors: Results) -> Any:
    figure, rows = plt.subplots(len(anchors), 1, figsize=(10, 2.6 * len(anchors)), squeeze=False)
    for axes, (name, robot) in zip(rows[:, 0], anchors.items(), strict=True):
        axes.plot(robot['oracle scale'], color='0.5', label='oracle scale')
        axes.plot(robot['best scale'], color='0.8', label='scale with the least rmse')
        for case, color in (('0% outliers', 'tab:green'), ('40% outliers', 'tab:orange'),
                            ('40% outliers, dropouts', 'tab:red')):
            axes.plot(robot['cases'][case]['scale'], color=color, label=case, linewidth=1)
        for room in range(robot['frames in a room'], robot['frames'], robot['frames in a room']):
            axes.axvline(room, color='0.85', linewidth=0.8)
        axes.set(ylabel=f'scale, robot {name}')
    rows[0, 0].legend(fontsize=7, ncols=4)
    rows[-1, 0].set(xlabel='frame, 10 a second; a vertical line: the camera is in another room')
    return figure


def _plot_recovery(plt: Any, recovery: Results) -> Any:
    figure, axes = plt.subplots(figsize=(7, 3.4))
    part, before = recovery['frames averaged'], recovery['frames before']
    for way, color in (('with an anchor', 'tab:green'), ('without', 'tab:red')):
        if way in recovery:
            axes.plot([part * (i + 0.5) - before for i in range(len(recovery[way]))],
                      recovery[way], 'o-', color=color, label=way)
            axes.plot([i - before for i in range(len(recovery[f'{way}, every frame']))],
                      recovery[f'{way}, every frame'], color=color, alpha=0.25, linewidth=0.7)
    axes.axhspan(*BACK, color='0.9')
    axes.axvline(0, color='0.5', linewidth=0.8)
    axes.set(xlabel='frames since the camera was mounted lower',
             ylabel='share within 1.645 stddev')
    axes.set_title(f'Means of {part} frames of {recovery["drives"]} drives', fontsize=9)
    axes.legend(fontsize=8)
    return figure
