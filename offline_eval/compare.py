# SPDX-License-Identifier: Apache-2.0
"""Two finished runs beside each other, paired on the same images."""

from __future__ import annotations

from pathlib import Path

from depthclip_ros.evaluation import bootstrap, metrics
from depthclip_ros.evaluation.errors import EvaluationError, listing
from depthclip_ros.evaluation.metrics import PAPER_METRICS, SIGNS, Sums, number

from .records import RECORDS, load_records, load_run
from .results import load

SAME = {'data': ('format', 'split', 'depth', 'images', 'digest'),
        'protocol': ('name', 'average', 'max_depth')}  # of both summaries


def compare(first: Path, second: Path) -> str:
    """Table of the method's metrics in both runs, with intervals of their difference.

    The bootstrap draws scenes, the same for both runs; all intervals hold together with 95 %.

    Raises:
        EvaluationError: data, protocol or images differ, or records are missing or damaged.
        ResultsError: a folder holds no finished evaluation.

    """
    both = [load(folder).summary for folder in (first, second)]
    if different := [f'{part} {name}: {a} and {b}' for part, names in SAME.items()
                     for name in names
                     for a, b in [[getattr(getattr(run, part), name) for run in both]] if a != b]:
        raise EvaluationError(f'{first} and {second} cannot be compared, because these differ; '
                              f'evaluate both in the same way:{listing(different)}')
    how, images = both[0].protocol.average, both[0].data.evaluated
    (left, scenes), (right, _) = _sums(first, images), _sums(second, images)
    groups, family = bootstrap.groups_of(scenes), len(PAPER_METRICS)
    units = int(groups.max()) + 1
    enough = units >= bootstrap.LEAST_GROUPS
    counts = bootstrap.draw(units, bootstrap.resamples(units, family) if enough else 1)
    a, b = (metrics.average(sums, how) for sums in (left, right))
    of_a, of_b = (metrics.resampled(sums, groups, counts, how) for sums in (left, right))
    lines = [f'A: {first}', f'B: {second}', f'{"":12}{"A":>8}{"B":>8}{"B − A":>9}']
    for i, metric in enumerate(PAPER_METRICS):  # the first of METRICS
        lines.append(f'{metrics.heading(metric):12}{number(a[i]):>8}{number(b[i]):>8}'
                     f'{number(b[i] - a[i], signed=True):>9}')
        if enough:
            gain = bootstrap.interval(SIGNS[i] * (of_b - of_a)[:, i], units, family)
            low, high = (number(end, signed=True)
                         for end in sorted((SIGNS[i] * gain.low, SIGNS[i] * gain.high)))
            lines[-1] += f'  {low} to {high}  B is {gain.reading()}'
    return '\n'.join([*lines, f'{images} images of {units} scene{"s" * (units != 1)}. ' + (
        'All intervals hold together with 95 %.' if enough else
        f'Too few for intervals, which need at least {bootstrap.LEAST_GROUPS}.')])


def _sums(folder: Path, images: int) -> tuple[Sums, list[str]]:
    """(N, 11) sums of the method, and the images' scenes."""
    records = load_records(folder / RECORDS)
    records = records[records['pixels'] > 0]
    run = load_run(folder)
    if len(records) != images:
        raise EvaluationError(f'{folder / RECORDS} holds {len(records)} of {images} images; the '
                              'others are missing or damaged: evaluate again.')
    return records['sums'][:, 0], [run.sequences[p] for p in records['position']]
