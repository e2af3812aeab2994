# SPDX-License-Identifier: Apache-2.0
"""Report of an evaluation: HTML, Markdown, and one LaTeX table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from depthclip_ros.core.files import numbered_folder
from depthclip_ros.evaluation.datasets.base import NYU
from depthclip_ros.report import document
from depthclip_ros.report.document import Block, Heading, Picture, Table, Text
from offline_eval import results as results_folder
from offline_eval.report import charts, tables
from offline_eval.results import Results, Summary

FOLDER, FILES = 'report', ('report.html', 'report.md', 'report.tex')
UNTRAINED = (
    'The weights are random: every depth in this report is meaningless. It shows only that the '
    'evaluation runs.')


def write(folder: Path, results: Results) -> list[Path]:
    """Write the report into a new subfolder of the results folder; returns its files.

    Args:
        folder: of the results.
        results: of the evaluation.

    Raises:
        DepthClipError: the folder cannot be written.

    """
    summary, report_folder = results.summary, numbered_folder(folder / FOLDER)
    blocks = contents(summary, charts.draw(report_folder, results))
    footer = (f'Written by depthclip_ros {summary.versions.get("depthclip_ros", "")} from '
              f'{results_folder.SUMMARY} and what lies beside it.')
    table = (tables.published if summary.data.official else tables.baselines)(summary)
    for name, text in zip(FILES, (
            document.to_html(blocks, footer), document.to_markdown(blocks),
            document.to_latex(table, _untrained_warning(summary))), strict=True):
        results_folder.write(report_folder / name, text)
    return [report_folder / name for name in FILES]


def contents(summary: Summary, pictures: Mapping[str, Sequence[Picture]]) -> list[Block]:
    """Compose the report; `pictures` are by section."""
    data = summary.data
    warnings = [*filter(None, [_untrained_warning(summary)]), *data.warnings]
    if data.skipped:
        warnings.append(f'{len(data.skipped)} of {data.images} images were left out '
                        '(listed under Data and settings).')
    sections: dict[str, Sequence[Block]] = {
        'Reproduction': _reproduction(summary),
        'Baselines': [
            Text('A depth estimate is worth something when it beats what can be said without '
                 'looking at the image. Of such answers the paper has only random depth; a '
                 'constant is the harder test.'),
            *tables.verdict(summary), tables.baselines(summary), tables.other_metrics(summary)],
        'Predicted against true depth': pictures.get('depths', ()),
        'The camera': tables.group_table(
            summary, 'camera', 'The method with what is known of the camera'),
        'Calibrations': tables.group_table(
            summary, 'calibrated', 'The method with calibrations: no longer zero-shot'),
        'Other methods': tables.group_table(
            summary, 'foreign', 'Other programs’ depth of the same images'),
        'Depth bins': tables.bin_partitions(summary) if '2' in summary.tables else (),
        'Prompts': [tables.paper_table(summary, 'prompts', '3')] if '3' in summary.tables else (),
        'Scene classes': [*pictures.get('distributions', ()), *tables.classes(summary)],
        'Images': [*pictures.get('predictions', ()), *pictures.get('responses', ())],
        'Data and settings': _run_and_settings(summary)}
    return [
        Heading(f'{summary.rows[0].name} with the weights {summary.weights.name} on '
                f'{data.origin or "images of unknown origin"}', 1),
        Text(f'{data.evaluated} images, {data.split} ({data.format}); {summary.created}.'),
        *(Text(warning, warning=True) for warning in warnings),
        tables.badge(summary), *pictures.get('gains', ()),
        tables.headline(summary), Text(summary.verdict.text),
        *(block for heading, inner in sections.items() if inner
          for block in (Heading(heading), *inner))]


def _untrained_warning(summary: Summary) -> str:
    return '' if summary.weights.trained else UNTRAINED


def _reproduction(summary: Summary) -> list[Block]:
    """Compose the gate's result, and published rows for a run on the same images."""
    gate, data = summary.gate, summary.data
    blocks: list[Block] = []
    if data.origin in (NYU, ''):  # these may be the paper's images
        blocks.append(Text(f'The paper’s row is {gate.status} in this run.'))
        blocks += [Table(['why'], [[reason] for reason in gate.reasons])] if gate.reasons else []
    if data.official:
        return [*blocks, tables.published(summary)]
    return [*blocks, Text(
        'The paper’s numbers are of NYU Depth v2’s official test split with raw depth. These '
        f'are {data.origin or "other images"}{f", {data.split}" if data.origin == NYU else ""}: '
        'no published number is comparable, and none is shown.')]


def _run_and_settings(summary: Summary) -> list[Block]:
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
    skipped = Table(['image'], [[name] for name in data.skipped],
                    'Images left out: no valid true depth where it is scored')
    return [
        Table(['', ''], list(facts.items()), 'This run', texts=texts), tables.definitions(),
        *([skipped] if data.skipped else ()),
        Table(['setting', 'value'], [[name, json.dumps(value, ensure_ascii=False)]
                                     for name, value in summary.config.items()],
              'Effective settings', texts=texts)]
