# SPDX-License-Identifier: Apache-2.0
"""Where the output of the programs goes: closed pipes, other encodings, log files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from eval_results import write_world

from depthclip_ros import progress as progress_lines
from depthclip_ros.progress import progress
from depthclip_ros.sim.datasets import make_samples

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {'depthclip': 'depthclip_ros.cli.main', 'offline_eval': 'offline_eval'}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, make_samples(10, seed=3))
    return folder


def start(program, *arguments, **options):
    environment = {**os.environ, **options.pop('env', {}), 'PYTHONPATH': os.pathsep.join(
        [str(ROOT), os.environ.get('PYTHONPATH', '')])}
    return subprocess.Popen(
        [sys.executable, '-m', PROGRAMS.get(program, program), *map(str, arguments)],
        stderr=subprocess.PIPE, env=environment, **options)


def into_a_closed_pipe(program, *arguments):
    """Exit code and stderr of a process whose output nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    process = start(program, *arguments, stdout=write)
    os.close(write)
    error = process.communicate(timeout=300)[1].decode()
    return process.returncode, error


@pytest.mark.parametrize('arguments', [
    ('depthclip', '--help'), ('depthclip', 'fetch'), ('offline_eval', '--help')])
def test_a_closed_pipe_is_no_error(arguments):
    code, error = into_a_closed_pipe(*arguments)
    assert error == ''
    assert code == 141 or '--help' in arguments  # argparse itself passes over it


def test_an_evaluation_keeps_its_results_where_nobody_reads_the_answer(world, tmp_path):
    code, error = into_a_closed_pipe(
        'offline_eval', '--data', world, '--weights', 'demo', '--device', 'cpu', '--output',
        tmp_path)
    assert code == 141
    assert 'Traceback' not in error
    assert f'results: {(tmp_path / "latest").resolve()}' in error
    assert (tmp_path / 'latest/report/report.html').is_file()
    code, error = into_a_closed_pipe('offline_eval.report', tmp_path / 'latest')
    assert (code, 'Traceback' in error) == (141, False)


def test_an_evaluation_is_printed_in_ascii_and_its_log_has_no_bar(world, tmp_path):
    """Its results have Greek letters; of ten images in seconds a log file has no line at all."""
    process = start('offline_eval', '--data', world, '--weights', 'demo', '--device', 'cpu',
                    '--output', tmp_path, stdout=subprocess.PIPE,
                    env={'PYTHONIOENCODING': 'ascii'})
    output, error = (text.decode('ascii') for text in process.communicate(timeout=300))
    assert process.returncode == 0, error
    assert 'shuffled words' in output
    assert f'Results: {tmp_path}' in output
    assert '\r' not in error
    assert '%|' not in error


def test_lines_come_after_a_time_and_a_terminal_has_a_bar(monkeypatch, capsys):
    clock = iter(range(0, 1000, 10))  # ten seconds each look
    monkeypatch.setattr(progress_lines.time, 'monotonic', lambda: next(clock))
    assert list(progress(iter('abcdefghi'), 'rooms', 9)) == list('abcdefghi')
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith('rooms: ')
    assert lines[0].endswith(' of 9 images')
    assert 1 < len(lines) < 5
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    assert list(progress(iter('ab'), 'rooms', 2)) == list('ab')
    assert '100%|' in capsys.readouterr().err
