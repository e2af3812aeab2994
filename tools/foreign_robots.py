# SPDX-License-Identifier: Apache-2.0
"""Depth on robots that the model was not made for: measured, with controls, in rendered rooms.

    python tools/foreign_robots.py --cache build/robots               everything
    python tools/foreign_robots.py --cache build/robots --only cost   one part anew
    python tools/foreign_robots.py --tables                           tables and plots alone

Results go to docs/robots.json, docs/notes/robots.md and docs/robots/*.png, each part with its
machine. All of them take about 13 minutes of processor time, and rendering 7.
The goals that they are held against are in tools/foreign_report.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import foreign_report as report  # noqa: E402
import foreign_rows as rows  # noqa: E402
from foreign_bench import TINY, Bench, Size  # noqa: E402
from foreign_worlds import Studio  # noqa: E402

from benchmarks import machine  # noqa: E402

PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    **{f'robot {name}': partial(rows.robot, which=name) for name in rows.ROBOTS},
    **{part.__name__: part for part in (
        rows.lenses, rows.anchors, rows.recovery, rows.cost)}}


def read(path: Path) -> dict[str, Any]:
    """Results that were kept; none where there is no file."""
    return dict(json.loads(path.read_text(encoding='utf-8'))) if path.exists() else {}


def main() -> None:
    """Measure, keep, show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cache', type=Path, default=Path('build/robots'),
                        help='folder of rendered frames, 4 GB; default %(default)s')
    parser.add_argument('--processes', type=int, default=2, help='that render')
    parser.add_argument('--only', nargs='+', choices=PARTS, default=list(PARTS),
                        metavar='PART', help=f'of {", ".join(PARTS)}')
    parser.add_argument('--tiny', action='store_true', help='a few rooms, to try the script')
    parser.add_argument('--tables', action='store_true',
                        help='measure nothing: write tables and plots from docs/robots.json')
    parser.add_argument('--out', type=Path, default=report.DOCS, help='instead of docs/')
    options = parser.parse_args()
    figures = options.out / report.FIGURES.name
    results = read(figures)
    if not options.tables:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Studio(options.cache, options.processes), Path(folder),
                          TINY if options.tiny else Size())
            for name in options.only:
                about, begin = machine.describe(), time.perf_counter()
                measured = PARTS[name](bench)
                options.out.mkdir(parents=True, exist_ok=True)
                results = read(figures)  # another run may have added to it
                results[name] = machine.plain({
                    **about, 'seconds': time.perf_counter() - begin, 'size': vars(bench.size),
                    'measured': measured})
                results = {part: results[part] for part in (*PARTS, *report.ELSEWHERE)
                           if part in results}
                figures.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n',
                                   encoding='utf-8')
                sys.stderr.write(f'{name}: {results[name]["seconds"]:.0f} s\n')
    for name, file in report.ELSEWHERE.items():
        if (options.out / file).exists():
            measured = read(options.out / file)
            measured.pop('recordings', None)  # each one's
            results[name] = {'from': f'docs/{file}', 'measured': measured}
    if results:
        figures.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n',
                           encoding='utf-8')
    page = options.out / report.PAGE.relative_to(report.DOCS)
    page.parent.mkdir(parents=True, exist_ok=True)
    text = (page if page.exists() else report.PAGE).read_text(encoding='utf-8')
    page.write_text(report.filled(text, results), encoding='utf-8')
    report.plot(results, options.out / report.PLOTS.name)
    for goal in report.goals(results):
        print(f'{goal.verdict:28}{goal.what}: {goal.measured} (goal {goal.must}'
              f'{", hard " + goal.hard if goal.hard else ""})')


if __name__ == '__main__':
    main()
