# SPDX-License-Identifier: Apache-2.0
"""Report of an evaluation: for a browser, as Markdown, and its tables for a paper."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from depthclip_ros import document, figures
from depthclip_ros.document import Block, Heading, Picture, Strong, Table, Text
from offline_eval import results as results_folder
from offline_eval.datasets.base import NYU
from offline_eval.metrics import SYMBOLS, number, unit
from offline_eval.report import charts, tables
from offline_eval.results import Results, Summary

FOLDER = 'report'
HTML, MARKDOWN, LATEX = (f'{FOLDER}/report.{suffix}' for suffix in ('html', 'md', 'tex'))
UNTRAINED = (
    'The weights are random: every depth in this report is meaningless. It shows only that the '
    'evaluation runs.')

_LOGGER = logging.getLogger(__name__)


def write(folder: Path, results: Results) -> None:
    """Write the report into the results folder.

    Without matplotlib the report has no figures, and says so, as does the log.

    Args:
        folder: of the results.
        results: what was measured.

    Raises:
        DepthClipError: the folder cannot be written to.

    """
    pictures: dict[str, list[Picture]] = {}
    missing = ''
    try:
        pictures = charts.draw(folder / FOLDER, results)
    except figures.FiguresMissingError as error:
        missing = str(error)
        _LOGGER.warning('%s', missing)
    blocks = contents(results, pictures, missing)
    version = results.summary.versions.get('depthclip_ros', '')
    footer = (f'Written by depthclip_ros {version} from {results_folder.SUMMARY} and what lies '
              'beside it.')
    results_folder.write(folder / HTML, document.to_html(blocks, footer))
    results_folder.write(folder / MARKDOWN, document.to_markdown(blocks))
    results_folder.write(folder / LATEX, document.to_latex(blocks))


def contents(
    results: Results, pictures: Mapping[str, Sequence[Picture]], missing: str = '',
) -> list[Block]:
    """What a report says, in which order.

    Args:
        results: what was measured.
        pictures: by section; those that are not there are left out.
        missing: why there are none.

    """
    summary, data = results.summary, results.summary.data
    warnings = [] if summary.weights.trained else [UNTRAINED]
    warnings += data.warnings
    if data.skipped:
        warnings.append(f'{len(data.skipped)} of {data.images} images were left out '
                        '(listed under Data and settings).')
    if missing:
        warnings.append(f'This report has no figures. {missing}')
    sections: dict[str, Sequence[Block]] = {
        'Reproduction': _reproduction(summary),
        'Honest baselines': [
            Text('A depth estimate is worth something when it beats what can be said without '
                 'looking at the image. Of such answers the paper has only random depth; a '
                 'constant is the harder test.'),
            *tables.verdict(summary), *pictures.get('standing', ()), tables.baselines(summary),
            tables.other_metrics(summary)],
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
        'Images': [*pictures.get('predictions', ()), *pictures.get('responses', ()),
                   *tables.images(results)],
        'Data and settings': _settings(summary)}
    return [
        Heading(f'{summary.rows[0].name} with the weights {summary.weights.name} on '
                f'{data.origin or "images of unknown origin"}', 1),
        Text(f'{data.evaluated} images, {data.split} ({data.format}); {summary.created}.'),
        *(Text(warning, warning=True) for warning in warnings),
        _headline(summary), Text(summary.verdict.text),
        *(block for heading, inner in sections.items() if inner
          for block in (Heading(heading), *inner))]


def _maybe_nyu(summary: Summary) -> bool:
    """Whether the reader wants to know if these are the paper's images."""
    return summary.data.origin in (NYU, '')


def _headline(summary: Summary) -> Table:
    row = summary.rows[0]
    paper = next((p.metrics for p in summary.paper if p.group == '1' and summary.data.official
                  and p.name == row.name), {})
    cells = [['', *(SYMBOLS[m] for m in ('d1', 'rel', 'rmse'))]]
    for name, metrics, style in (('this run', row.metrics, Strong), ('the paper', paper, str)):
        if metrics:
            cells.append([style(name), *(style(f'{number(metrics.get(m))}{unit(m)}')
                                         for m in ('d1', 'rel', 'rmse'))])
    return Table(cells[0], cells[1:])


def _reproduction(summary: Summary) -> list[Block]:
    """The gate; published rows only beside a run on the very images that they are of."""
    gate, data = summary.gate, summary.data
    blocks: list[Block] = []
    if _maybe_nyu(summary):
        blocks.append(Text(f'The paper’s row is {gate.status} in this run.'))
        blocks += [Table(['why'], [[reason] for reason in gate.reasons])] if gate.reasons else []
    if data.official:
        return [*blocks, tables.reproduction(summary), tables.published(summary)]
    return [*blocks, Text(
        'The paper’s numbers are of NYU Depth v2’s official test split with raw depth. These '
        f'are {data.origin or "other images"}{f", {data.split}" if data.origin == NYU else ""}: '
        'no published number is comparable, and none is shown.')]


def _settings(summary: Summary) -> list[Block]:
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
    texts = frozenset({0, 1})
    blocks: list[Block] = [
        Table(['', ''], list(facts.items()), 'This run', texts=texts), tables.definitions()]
    if data.skipped:
        blocks.append(Table(
            ['image'], [[name] for name in data.skipped],
            'Images left out: no valid true depth where it is scored'))
    return [*blocks, Table(['setting', 'value'], [
        [name, json.dumps(value, ensure_ascii=False)] for name, value in summary.config.items()],
        'Effective settings', texts=texts)]
