# SPDX-License-Identifier: Apache-2.0
"""The README's examples run, its links lead somewhere, its speeds were measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_agreement import README, rows, section

ROOT = Path(__file__).resolve().parents[1]


def test_every_linked_file_exists():
    for target in re.findall(r'\]\(([^)#:]+)\)', README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r'\]\(#([^)]+)\)', README):
        headings = [re.sub(r'[^a-z0-9 -]', '', line.lstrip('# ').lower()).replace(' ', '-')
                    for line in README.splitlines() if line.startswith('#')]
        assert target in headings


def test_python_example_runs(tiny_weights, tmp_path):
    """The README's own lines, on weights that are here."""
    from clip_standin import synthetic_rgb
    example = re.search(r'```python\n(.*?)```', README, re.DOTALL)[1]
    example = example.replace('config/nyu_paper.yaml', str(ROOT / 'config/nyu_paper.yaml'))
    example = example.replace("weights='RN50'", f'weights={str(tiny_weights)!r}')
    example = example.replace("nyu_paper.yaml')", "nyu_paper.yaml').replace(backbone='auto')")
    names = {'rgb': synthetic_rgb(0)}
    exec(example, names)
    assert names['prediction'].depth.shape == (480, 640)


def test_commands_that_the_readme_names_exist():
    help_text = subprocess.run(
        [sys.executable, '-m', 'depthclip_ros.cli.main', '--help'], cwd=ROOT, check=True,
        capture_output=True, text=True).stdout
    commands = set(re.findall(r'`depthclip ([a-z-]+)', README))
    assert {'predict', 'doctor', 'fetch', 'encode-text'} <= commands
    for command in commands:
        assert re.search(rf'^ +{command}\b', help_text, re.MULTILINE), command


@pytest.mark.parametrize('result', ['readouts', 'input_size'])
def test_read_outs_are_the_committed_measurement(result):
    """Every table of the benchmark, row by row, and its plot."""
    page = (ROOT / 'docs/readouts.md').read_text(encoding='utf-8')
    tables = (ROOT / f'benchmarks/results/rooms/{result}.md').read_text(encoding='utf-8')
    measured = [line for line in tables.splitlines() if line.startswith('| ')]
    assert len(measured) > 10
    for line in measured:
        assert line in page.splitlines()
    assert f'](../benchmarks/results/rooms/{result}.png)' in page


def test_the_tutorial_names_files_that_an_evaluation_leaves():
    tutorial = (ROOT / 'docs/tutorials.md').read_text(encoding='utf-8')
    page = (ROOT / 'docs/evaluation.md').read_text(encoding='utf-8')
    reported = {cell for row in rows(section(page, 'What is reported'))
                for cell in re.findall(r'`([^`]+)`', row[0])}
    named = re.findall(r'`results/latest/([^`]+)`', section(tutorial, 'From download to citation'))
    assert len(named) == 4
    assert set(named) <= reported


def first_depth(machine):
    start = json.loads((ROOT / f'benchmarks/results/{machine}/startup.json').read_text())
    return f'{start["node, text features cached"]["first depth [s]"]:.1f}'


def test_speeds_are_the_committed_measurement():
    lines = [line for line in section(README, 'Speed').splitlines() if line.startswith('| t')]
    naive, float32, bfloat16 = ([cell.strip() for cell in line.split('|')[2:6]] for line in lines)
    for i, name in enumerate(('epyc-zen4', 'xeon-amx')):
        folder = ROOT / 'benchmarks/results' / name
        result = json.loads((folder / 'estimator-cpu.json').read_text())
        measured = {row['name']: row for row in result['against naive']['rows']}
        assert naive[2 * i] == f'{measured["naive, two passes"]["p50 [ms]"]:.0f} ms'
        for cells, precision in ((float32, 'float32'), (bfloat16, 'bfloat16')):
            for cell, way in zip(cells[2 * i:], ('flip', 'plain'), strict=False):
                engine = result.get('engine auto', {}).get(precision, 'torch')
                row = measured[f'{engine}, {precision}, {way}']
                ratio = row['times faster than two naive passes']
                assert cell == f'{row["p50 [ms]"]:.0f} ms, {ratio:.2f} x'
    epyc, amx, xeon = map(first_depth, ('epyc-zen4', 'xeon-amx', 'xeon-avx512'))
    assert (
        f"First depth comes {epyc} s or {amx} s after the start of the node's process, "
        f'or {xeon} s on a Xeon without AMX.'
    ) in ' '.join(section(README, 'Speed').split())


@pytest.mark.parametrize(('line', 'machine', 'way'), [
    ('CPU with AMX', 'xeon-amx', 'onednn, bfloat16, plain'),
    ('CPU with AVX-512 BF16', 'epyc-zen4', 'torch, bfloat16, plain'),
    ('CPU with AVX-512 VNNI', 'xeon-avx512', 'onnxruntime, int8, plain')])
def test_what_a_setting_gains_is_the_committed_measurement(line, machine, way):
    (cells,) = [row for row in rows(section(README, 'Speed')) if row[0].startswith(line)]
    result = json.loads((ROOT / f'benchmarks/results/{machine}/estimator-cpu.json').read_text())
    measured = {row['name']: row['p50 [ms]'] for row in result['against naive']['rows']}
    assert cells[2] == f'{measured[way]:.0f} ms, {measured["torch, float32, plain"]:.0f} ms'


def test_rates_are_the_committed_measurement():
    """Images a second of the whole node, of which a laptop's user has an idea."""
    rates = []
    for name in ('epyc-zen4/node-RN50-cpu', 'xeon-amx/node-RN50-cpu-bfloat16',
                 'epyc-zen4/node-tiny-cpu', 'xeon-amx/node-tiny-cpu'):
        result = json.loads((ROOT / f'benchmarks/results/{name}.json').read_text())
        own = next(row for row in result['results']
                   if row['node'] == 'depth_node' and row['cameras'] == 1)
        rates.append(own['highest rate [Hz]'])
    text = ' '.join(section(README, 'Speed').split())
    assert (f'answers {rates[0]:.1f} images a second in float32 on the EPYC and {rates[1]:.1f} '
            'in bfloat16 on the Xeon') in text
    assert f'{rates[2]:.0f} and {rates[3]:.0f}' in text
