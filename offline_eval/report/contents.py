# SPDX-License-Identifier: Apache-2.0
"""What a report says, in which order."""

from __future__ import annotations

import json
from dataclasses import dataclass

from offline_eval.report import tables
from offline_eval.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Details,
    Heading,
    Headline,
    Table,
    Text,
)
from offline_eval.report.figures import Figures
from offline_eval.report.names import SYMBOLS, number, unit
from offline_eval.results import Histograms, Sample, Summary

UNTRAINED = (
    'The weights are random: every depth in this report is meaningless. It shows only that the '
    'evaluation runs.')


@dataclass(frozen=True)
class Source:
    """What a results folder holds; lists may be empty."""

    summary: Summary
    per_image: list[dict[str, str]]
    samples: list[Sample]
    histograms: Histograms | None


def contents(source: Source, figures: Figures | None, missing: str) -> list[Block]:
    """All blocks of the report; `missing` says why there are no figures."""
    summary = source.summary
    blocks: list[Block] = [
        Heading(f'DepthCLIP on {summary.data.format}', 1),
        Text(f'{summary.data.evaluated} images, {summary.data.split}; weights '
             f'{summary.weights.name}; {summary.created}.'),
        *_warnings(summary),
        _headline(summary),
        Text(summary.verdict.text),
    ]
    if missing:
        blocks.append(Text(f'This report has no figures. {missing}', warning=True))
    blocks += _reproduction(summary)
    blocks += _baselines(summary, figures)
    blocks += _camera(summary)
    blocks += _ablations(summary)
    blocks += _classes(source, figures)
    blocks += _images(source, figures)
    blocks += _method(summary)
    return blocks


def _warnings(summary: Summary) -> list[Block]:
    texts = []
    if not summary.weights.trained:
        texts.append(UNTRAINED)
    texts += summary.data.warnings
    if summary.data.skipped:
        texts.append(f'{len(summary.data.skipped)} of {summary.data.images} images were left out '
                     '(listed under Data and settings).')
    return [Text(text, warning=True) for text in texts]


def _headline(summary: Summary) -> Headline:
    row = tables.headline_row(summary)
    paper = {p.name: p.metrics for p in summary.paper if p.table == '1'}.get('DepthCLIP', {})
    numbers = [(SYMBOLS[m], f'{number(row.metrics.get(m))}{unit(m)}',
                f'paper {number(paper.get(m))}{unit(m)}' if m in paper else '')
               for m in ('d1', 'rel', 'rmse')]
    return Headline([*numbers, ('The paper’s row', summary.gate.status, '')])


def _reproduction(summary: Summary) -> list[Block]:
    gate = summary.gate
    blocks: list[Block] = [
        Heading('Reproduction'),
        Text(f'The paper’s row is {gate.status} in this run.'),
    ]
    if gate.reasons:
        blocks.append(Bullets(gate.reasons))
    blocks.append(tables.reproduction(summary))
    published = tables.published(summary)
    return blocks if published is None else [*blocks, published]


def _baselines(summary: Summary, figures: Figures | None) -> list[Block]:
    blocks: list[Block] = [
        Heading('Honest baselines'),
        Text('A depth estimate is worth something when it beats what can be said without looking '
             'at the image. Of such answers the paper has only random depth; a constant is the '
             'harder test.'),
        tables.verdict(summary),
        tables.controls(summary),
    ]
    if figures is not None:
        blocks.append(figures.standing())
    return [*blocks, tables.baselines(summary),
            Details('Other metrics', [tables.other_metrics(summary)])]


def _camera(summary: Summary) -> list[Block]:
    table = tables.with_camera(summary)
    return [] if table is None else [Heading('The camera'), table]


def _ablations(summary: Summary) -> list[Block]:
    blocks: list[Block] = []
    if '2' in summary.tables:
        blocks += [Heading('Depth bins'), *tables.bin_partitions(summary)]
    if '3' in summary.tables:
        blocks += [Heading('Prompts'), tables.prompt_sets(summary)]
    return blocks


def _classes(source: Source, figures: Figures | None) -> list[Block]:
    blocks: list[Block] = []
    picture = figures.distributions() if figures is not None else None
    if picture is not None:
        blocks.append(picture)
    table = tables.classes(source.summary)
    if table is not None:
        blocks.append(table)
    return [Heading('Scene classes'), *blocks] if blocks else []


def _images(source: Source, figures: Figures | None) -> list[Block]:
    blocks: list[Block] = []
    if figures is not None:
        predictions, responses = figures.predictions(), figures.responses()
        blocks += [*predictions[:1], *responses[:1]]
        more: list[Block] = [*predictions[1:], *responses[1:]]
        if more:
            blocks.append(Details('More images', more))
    table = tables.images(source.summary, source.per_image)
    if table is not None:
        blocks.append(table)
    return [Heading('Images'), *blocks] if blocks else []


def _method(summary: Summary) -> list[Block]:
    data, protocol, timing = summary.data, summary.protocol, summary.timing
    rate = f'{timing.images / timing.seconds:.1f} images/s' if timing.seconds > 0 else ''
    facts = {
        'data': f'{data.path}: {data.format}, {data.split}',
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
