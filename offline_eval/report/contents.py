# SPDX-License-Identifier: Apache-2.0
"""What a report says, in which order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from depthclip_ros.document import (
    Block,
    Bullets,
    Cell,
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
# Where the data may be NYU Depth v2, the reader wants to know whether they are.
_MAYBE_NYU = (NYU, '')


def contents(
    source: Source, pictures: Mapping[str, Sequence[Picture]], missing: str,
) -> list[Block]:
    """All blocks of the report.

    Args:
        source: what was measured.
        pictures: by name; those that are not there are left out.
        missing: why there are none.

    """
    summary = source.summary
    data = summary.data
    blocks: list[Block] = [
        Heading(title(summary), 1),
        Text(f'{data.evaluated} images, {data.split} ({data.format}); {summary.created}.'),
        *_warnings(summary),
        _headline(summary),
        Text(summary.verdict.text),
    ]
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
    first: list[Block] = []
    more: list[Block] = []
    for name in ('predictions', 'responses'):
        found = pictures.get(name, ())
        first += found[:1]
        more += found[1:]
    for heading, inner in (
            ('Predicted against true depth', pictures.get('depths', ())),
            ('The camera', [tables.beside(
                summary, 'camera', 'The method with what is known of the camera')]),
            ('Calibrations', [tables.beside(
                summary, 'calibrated', 'The method with calibrations: no longer zero-shot')]),
            ('Other methods', [tables.beside(
                summary, 'foreign', 'Other programs’ depth of the same images')]),
            ('Depth bins', tables.bin_partitions(summary) if '2' in summary.tables else ()),
            ('Prompts', [tables.prompt_sets(summary)] if '3' in summary.tables else ()),
            ('Scene classes', [*pictures.get('distributions', ()), tables.classes(summary)]),
            ('Images', [*first, Details('More images', more) if more else None,
                        tables.images(summary, source.per_image)])):
        there = [block for block in inner if block is not None]
        blocks += [Heading(heading), *there] if there else []
    return blocks + _method(summary)


def title(summary: Summary) -> str:
    """Method, weights and world, for what they are."""
    name = tables.headline_row(summary).name
    return (f'{name} with the weights {summary.weights.name} on '
            f'{summary.data.origin or "images of unknown origin"}')


def _warnings(summary: Summary) -> list[Block]:
    data = summary.data
    texts = [] if summary.weights.trained else [UNTRAINED]
    texts += data.warnings
    if data.skipped:
        texts.append(f'{len(data.skipped)} of {data.images} images were left out '
                     '(listed under Data and settings).')
    return [Text(text, warning=True) for text in texts]


def _headline(summary: Summary) -> Headline:
    metrics = tables.headline_row(summary).metrics
    paper = next((p.metrics for p in summary.paper if p.table == '1' and summary.data.official
                  and p.name == tables.headline_row(summary).name), {})
    numbers = [(SYMBOLS[m], f'{number(metrics.get(m))}{unit(m)}',
                f'paper {number(paper.get(m))}{unit(m)}' if m in paper else '')
               for m in ('d1', 'rel', 'rmse')]
    if summary.data.origin in _MAYBE_NYU:
        numbers.append(('The paper’s row', summary.gate.status, ''))
    return Headline(numbers)


def _reproduction(summary: Summary) -> list[Block]:
    """The gate; published rows only beside a run on the very images that they are of."""
    gate, data = summary.gate, summary.data
    blocks: list[Block] = []
    if data.origin in _MAYBE_NYU:
        blocks += [Heading('Reproduction'),
                   Text(f'The paper’s row is {gate.status} in this run.')]
        blocks += [Bullets(gate.reasons)] if gate.reasons else []
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
        Table('This run', ['', ''], [[Cell(k), Cell(v)] for k, v in facts.items()]),
        tables.definitions(),
    ]
    if data.skipped:
        blocks.append(Table(
            'Images left out', ['index', 'name', 'reason'],
            [[Cell(str(s.index)), Cell(s.name), Cell(s.reason)] for s in data.skipped],
            frozenset({0})))
    settings = '\n'.join(f'{k}: {json.dumps(v, ensure_ascii=False)}'
                         for k, v in summary.config.items())
    return [*blocks, Details('Effective settings', [Code(settings)])]
