# SPDX-License-Identifier: Apache-2.0
"""What a report says, in which order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from depthclip_ros.document import (
    Block,
    Code,
    Details,
    Heading,
    Headline,
    Picture,
    Table,
    Text,
)
from offline_eval.datasets.base import NYU
from offline_eval.names import SYMBOLS, number, unit
from offline_eval.report import tables
from offline_eval.report.source import Source
from offline_eval.results import Summary

UNTRAINED = (
    'The weights are random: every depth in this report is meaningless. It shows only that the '
    'evaluation runs.')


def contents(
    source: Source, pictures: Mapping[str, Sequence[Picture]], missing: str = '',
) -> list[Block]:
    """All blocks of the report.

    Args:
        source: what was measured.
        pictures: by name; those that are not there are left out.
        missing: why there are none.

    """
    summary, data = source.summary, source.summary.data
    warnings = [] if summary.weights.trained else [UNTRAINED]
    warnings += data.warnings
    if data.skipped:
        warnings.append(f'{len(data.skipped)} of {data.images} images were left out '
                        '(listed under Data and settings).')
    photographs = [pictures.get(name, ()) for name in ('predictions', 'responses')]
    more = [picture for several in photographs for picture in several[1:]]
    blocks: list[Block] = [
        Heading(f'{tables.headline_row(summary).name} with the weights {summary.weights.name} on '
                f'{data.origin or "images of unknown origin"}', 1),
        Text(f'{data.evaluated} images, {data.split} ({data.format}); {summary.created}.'),
        *(Text(warning, warning=True) for warning in warnings),
        _headline(summary), Text(summary.verdict.text)]
    if missing:
        blocks.append(Text(f'This report has no figures. {missing}', warning=True))
    blocks += [
        *_reproduction(summary),
        Heading('Honest baselines'),
        Text('A depth estimate is worth something when it beats what can be said without looking '
             'at the image. Of such answers the paper has only random depth; a constant is the '
             'harder test.'),
        tables.verdict(summary), tables.controls(summary), *pictures.get('standing', ()),
        tables.baselines(summary), Details('Other metrics', [tables.other_metrics(summary)])]
    sections: dict[str, Sequence[Block]] = {
        'Predicted against true depth': pictures.get('depths', ()),
        'The camera': tables.beside(
            summary, 'camera', 'The method with what is known of the camera'),
        'Calibrations': tables.beside(
            summary, 'calibrated', 'The method with calibrations: no longer zero-shot'),
        'Other methods': tables.beside(
            summary, 'foreign', 'Other programs’ depth of the same images'),
        'Depth bins': tables.bin_partitions(summary) if '2' in summary.tables else (),
        'Prompts': [tables.prompt_sets(summary)] if '3' in summary.tables else (),
        'Scene classes': [*pictures.get('distributions', ()), *tables.classes(summary)],
        'Images': [*(several[0] for several in photographs if several),
                   *([Details('More images', more)] if more else ()), *tables.images(source)]}
    for heading, inner in sections.items():
        blocks += [Heading(heading), *inner] if inner else []
    return blocks + _method(summary)


def _headline(summary: Summary) -> Headline:
    row = tables.headline_row(summary)
    paper = next((p.metrics for p in summary.paper if p.table == '1' and summary.data.official
                  and p.name == row.name), {})
    numbers = [(SYMBOLS[m], f'{number(row.metrics.get(m))}{unit(m)}',
                f'paper {number(paper.get(m))}{unit(m)}' if m in paper else '')
               for m in ('d1', 'rel', 'rmse')]
    if _maybe_nyu(summary):
        numbers.append(('The paper’s row', summary.gate.status, ''))
    return Headline(numbers)


def _maybe_nyu(summary: Summary) -> bool:
    """Whether the reader wants to know if these are the paper's images."""
    return summary.data.origin in (NYU, '')


def _reproduction(summary: Summary) -> list[Block]:
    """The gate; published rows only beside a run on the very images that they are of."""
    gate, data = summary.gate, summary.data
    blocks: list[Block] = []
    if _maybe_nyu(summary):
        blocks += [Heading('Reproduction'),
                   Text(f'The paper’s row is {gate.status} in this run.')]
        blocks += [Table(['why'], [[reason] for reason in gate.reasons])] if gate.reasons else []
    if data.official:
        return [*blocks, tables.reproduction(summary), tables.published(summary)]
    return [*blocks, Text(
        'The paper’s numbers are of NYU Depth v2’s official test split with raw depth. These '
        f'are {data.origin or "other images"}{f", {data.split}" if data.origin == NYU else ""}: '
        'no published number is comparable, and none is shown.')]


def _method(summary: Summary) -> list[Block]:
    data, protocol, timing = summary.data, summary.protocol, summary.timing
    rate = f'{timing.images / timing.seconds:.1f} images/s' if timing.seconds > 0 else ''
    facts = {
        'data': f'{data.path}: {data.format}, {data.split}',
        'images of': data.origin or 'unknown origin',
        'images': f'{data.evaluated} evaluated of {data.images}',
        'ground truth': f'{data.depth}, {protocol.min_depth:g} to {protocol.max_depth:g} m',
        'data digest': data.digest,
        'weights': f'{summary.weights.name} ({summary.weights.source})',
        'weights digest': summary.weights.digest,
        'protocol': f'{protocol.name}: {protocol.description}',
        'average': f'per {protocol.average}',
        'command': summary.command,
        'time': f'{timing.seconds:.1f} s for {timing.images} images ({rate}); '
                f'network {timing.network_seconds:.1f} s',
        'versions': ', '.join(f'{k} {v}' for k, v in summary.versions.items()),
    }
    blocks: list[Block] = [
        Heading('Data and settings'),
        Table(['', ''], list(facts.items()), 'This run', texts=frozenset({0, 1})),
        tables.definitions()]
    if data.skipped:
        blocks.append(Table(
            ['index', 'name', 'reason'], [[str(s.index), s.name, s.reason] for s in data.skipped],
            'Images left out', texts=frozenset({1, 2})))
    settings = '\n'.join(f'{k}: {json.dumps(v, ensure_ascii=False)}'
                         for k, v in summary.config.items())
    return [*blocks, Details('Effective settings', [Code(settings)])]
