# SPDX-License-Identifier: Apache-2.0
"""Paired comparison of two finished runs on the same images."""

from __future__ import annotations

from pathlib import Path

from depthclip_ros.evaluation import bootstrap, metrics
from depthclip_ros.evaluation.errors import EvaluationError, listing
from depthclip_ros.evaluation.metrics import PAPER_METRICS, SIGNS, Sums, number

from .records import RECORDS, load_records, load_run
from .results import load

COMMON_FIELDS = {'data': ('format', 'split', 'depth', 'images', 'digest'),
                 'protocol': ('name', 'average', 'max_depth')}  # equal in both summaries


def compare(first: Path, second: Path) -> str:
    """Format a table of the method's metrics in both runs, with intervals of the differences.

    The bootstrap draws the same scenes for both runs; all intervals hold together with 95 %.

    Raises:
        EvaluationError: data, protocol or images differ, or records are missing or damaged.
        ResultsError: a folder holds no finished evaluation.

    """
    summaries = [load(folder).summary for folder in (first, second)]
    if differences := [f'{part} {name}: {a} and {b}' for part, names in COMMON_FIELDS.items()
                       for name in names
                       for a, b in [[getattr(getattr(run, part), name) for run in summaries]]
                       if a != b]:
        raise EvaluationError(f'{first} and {second} cannot be compared, because these differ; '
                              f'evaluate both in the same way:{listing(differences)}')
    averaging, images = summaries[0].protocol.average, summaries[0].data.evaluated
    (sums_a, scenes), (sums_b, _) = _sums(first, images), _sums(second, images)
    groups, family = bootstrap.groups_of(scenes), len(PAPER_METRICS)
    group_count = int(groups.max()) + 1
    has_intervals = group_count >= bootstrap.MIN_GROUPS
    counts = bootstrap.draw_groups(
        group_count, bootstrap.resample_count(group_count, family) if has_intervals else 1)
    a, b = (metrics.average(sums, averaging) for sums in (sums_a, sums_b))
    samples_a, samples_b = (
        metrics.resampled(sums, groups, counts, averaging) for sums in (sums_a, sums_b))
    lines = [f'A: {first}', f'B: {second}', f'{"":12}{"A":>8}{"B":>8}{"B − A":>9}']
    for i, metric in enumerate(PAPER_METRICS):  # which METRICS begins with
        lines.append(f'{metrics.heading(metric):12}{number(a[i]):>8}{number(b[i]):>8}'
                     f'{number(b[i] - a[i], signed=True):>9}')
        if has_intervals:
            gain = bootstrap.percentile_interval(
                SIGNS[i] * (samples_b - samples_a)[:, i], group_count, family)
            low, high = (number(end, signed=True)
                         for end in sorted((SIGNS[i] * gain.low, SIGNS[i] * gain.high)))
            lines[-1] += f'  {low} to {high}  B is {gain.outcome()}'
    plural = 's' * (group_count != 1)
    return '\n'.join([*lines, f'{images} images of {group_count} scene{plural}. ' + (
        'All intervals hold together with 95 %.' if has_intervals else
        f'Too few for intervals, which need at least {bootstrap.MIN_GROUPS}.')])


def _sums(folder: Path, images: int) -> tuple[Sums, list[str]]:
    """Load the (N, 11) sums of the method, and the images' scenes."""
    records = load_records(folder / RECORDS)
    records = records[records['pixels'] > 0]
    run = load_run(folder)
    if len(records) != images:
        raise EvaluationError(f'{folder / RECORDS} holds {len(records)} of {images} images; the '
                              'others are missing or damaged: evaluate again.')
    return records['sums'][:, 0], [run.sequences[p] for p in records['position']]
