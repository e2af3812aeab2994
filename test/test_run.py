# SPDX-License-Identifier: Apache-2.0
"""The bootstrap of both README commands."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run.py as a module that believes to be in an empty folder, with nothing really installed."""
    spec = importlib.util.spec_from_file_location('bootstrap', ROOT / 'run.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / '.venv'
    for name, value in (('ROOT', tmp_path), ('VENV', venv), ('LOG', venv / 'pip.log'),
                        ('STAMP', venv / module.STAMP.name)):
        monkeypatch.setattr(module, name, value)
    (tmp_path / 'setup.py').write_text('first')
    monkeypatch.delenv('ROS_DISTRO', raising=False)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(module.platform, 'machine', lambda: 'x86_64')
    module.calls = []

    def make_venv(python, ros, version):
        module.calls.append('venv')
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()

    module.real_make_venv = module.make_venv
    monkeypatch.setattr(module, 'make_venv', make_venv)
    monkeypatch.setattr(module, 'install', lambda python, ros: module.calls.append('install'))
    return module


def test_old_interpreters_get_as_far_as_the_message(run, monkeypatch, capsys):
    ast.parse((ROOT / 'run.py').read_text(), feature_version=(3, 6))
    monkeypatch.setattr(run, 'MINIMUM', (99, 0))
    assert run.main(['demo']) == 1
    assert 'too old; 3.10 or newer' in capsys.readouterr().err


def test_it_needs_the_standard_library_only():
    code = 'import sys; sys.argv = ["run.py", "--help"]; import runpy; runpy.run_path("run.py")'
    done = subprocess.run([sys.executable, '-I', '-S', '-c', code], cwd=ROOT, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_a_command_it_says_what_there_is(run, capsys):
    assert run.main([]) == 2
    assert 'run.py demo' in capsys.readouterr().out


def test_the_second_run_begins_at_once(run):
    assert run.set_up() == run.set_up() == run.VENV / 'bin' / 'python'
    assert run.calls == ['venv', 'install']


@pytest.mark.parametrize('change', ['setup', 'folder', 'interpreter', 'python gone'])
def test_what_makes_another_set_up_necessary(run, change):
    python = run.set_up()
    if change == 'setup':
        (run.ROOT / 'setup.py').write_text('second')
    elif change == 'python gone':
        python.unlink()
    else:
        stamp = json.loads(run.STAMP.read_text())
        stamp['folder' if change == 'folder' else 'python'] = 'another'
        run.STAMP.write_text(json.dumps(stamp))
    run.set_up()
    assert run.calls.count('install') == 2


def test_an_interrupted_set_up_is_not_taken_for_complete(run, monkeypatch):
    def interrupted(python, ros):
        raise KeyboardInterrupt
    run.set_up()
    (run.ROOT / 'setup.py').write_text('second')
    with monkeypatch.context() as patch:
        patch.setattr(run, 'install', interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.set_up()
    assert not run.STAMP.exists()
    run.set_up()
    assert run.calls.count('install') == 2


def test_a_damaged_stamp_is_no_stamp(run):
    run.set_up()
    run.STAMP.write_text('{"files": ')
    run.set_up()
    assert run.calls.count('install') == 2


def test_a_folder_that_is_no_environment_is_left_alone(run):
    run.VENV.mkdir()
    (run.VENV / 'thesis.txt').write_text('precious')
    with pytest.raises(run.SetupError, match='no virtual environment'):
        run.real_make_venv(run.VENV / 'bin' / 'python', '', '3')
    assert (run.VENV / 'thesis.txt').exists()


@pytest.mark.slow
def test_half_an_environment_is_made_anew(run):
    run.VENV.mkdir()
    (run.VENV / 'pyvenv.cfg').write_text('home = /nowhere\n')
    python = run.VENV / 'bin' / 'python'
    run.real_make_venv(python, '', '3')
    assert run.is_usable(python, '')
    assert not run.is_usable(python, 'jazzy')  # that one must see the system's packages


def test_a_python_without_venv_says_which_package_it_lacks(run, monkeypatch):
    monkeypatch.setattr(
        run.subprocess, 'run', lambda command, **_: subprocess.CompletedProcess(
            command, 1, 'ensurepip is not available', ''))
    with pytest.raises(run.SetupError, match=r'apt install python3\.\d+-venv'):
        run.real_make_venv(run.VENV / 'bin' / 'python', '', '3')
    assert not run.VENV.exists()


@pytest.mark.parametrize(('output', 'message'), [
    ("NewConnectionError('...: Failed to establish a new connection')", 'Check the network'),
    ('[Errno 28] No space left on device', 'the disk is full'),
    ('ERROR: Could not find a version that satisfies torch (from versions: none)', 'no wheel'),
    ('ERROR: subprocess-exited-with-error', 'could not install'),
])
def test_why_pip_failed(run, output, message):
    assert message in run.explain(output)


def test_a_failing_pip_is_an_error_with_its_reason(run, monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location('again', ROOT / 'run.py')
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    fake = tmp_path / 'python'
    fake.write_text('#!/bin/sh\necho "Max retries exceeded with url"; exit 1\n')
    fake.chmod(0o755)
    fresh.LOG = tmp_path / 'pip.log'
    with pytest.raises(fresh.SetupError, match='Check the network'):
        fresh.install(fake, '')
    assert 'Max retries' in fresh.LOG.read_text()


def test_a_full_disk_is_noticed_before_anything_is_written(run, monkeypatch):
    usage = types.SimpleNamespace(total=9e9, used=8e9, free=1e9)
    monkeypatch.setattr(run.shutil, 'disk_usage', lambda _: usage)
    with pytest.raises(run.SetupError, match=r'1\.0 GB'):
        run.set_up()
    assert run.calls == []


def test_the_documents_tell_the_disk_that_is_asked_for(run):
    install = (ROOT / 'docs/install.md').read_text(encoding='utf-8')
    parts = re.findall(r'^\| .* \| ([\d.]+) GB.* \| .* \|$', install, re.MULTILINE)
    assert len(parts) == 3
    assert round(sum(map(float, parts))) == run.FULL_GIGABYTES
    for text in (install, (ROOT / 'README.md').read_text(encoding='utf-8')):
        assert f'{run.FULL_GIGABYTES} GB' in text


def test_a_sourced_ros_is_used(run, monkeypatch, tmp_path):
    for name in ('rclpy', 'sensor_msgs'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').touch()
    (tmp_path / 'sensor_msgs' / 'msg.py').touch()
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    assert run.sourced_ros() == 'jazzy'
    (tmp_path / 'rclpy' / '__init__.py').write_text('raise ImportError("built for another")')
    with pytest.raises(run.SetupError, match='built for another'):
        run.sourced_ros()


def test_all_checks_run_and_any_failure_counts(run, monkeypatch, capsys):
    (run.ROOT / 'depthclip_ros').mkdir()
    commands = []

    def record(command, **_):
        commands.append(command[2:])
        return subprocess.CompletedProcess(command, 1 if command[2] == 'mypy' else 0)
    monkeypatch.setattr(run.subprocess, 'run', record)
    assert run.run_tests(Path('python'), ['-k', 'x']) == 1
    assert commands == [['ruff', 'check', '.'], ['mypy', '--strict', 'depthclip_ros'],
                        ['pytest', *run.WORKERS, *run.HANGS, '-k', 'x']]
    assert 'mypy (exit code 1)' in capsys.readouterr().err


@pytest.mark.slow
def test_a_test_that_hangs_fails_and_the_others_run(run, tmp_path):
    """As code in C hangs that keeps Python's lock: no signal and no other thread is heard."""
    (tmp_path / 'test_that.py').write_text(
        'import ctypes\ndef test_hangs():\n    ctypes.PyDLL(None).sleep(600)\n')
    (tmp_path / 'test_others.py').write_text('def test_one(): pass\ndef test_two(): pass\n')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', *run.WORKERS, *run.HANGS, '-o', 'faulthandler_timeout=1'],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        env={name: value for name, value in os.environ.items() if 'PYTEST' not in name})
    assert done.returncode == 1, done.stdout
    assert "crashed while running 'test_that.py::test_hangs'" in done.stdout
    assert '2 passed' in done.stdout
    assert 'test_that.py", line 3 in test_hangs' in done.stderr


@pytest.mark.parametrize(('arguments', 'command'), [
    (['predict', 'a.png', '-o', 'out'],
     ['-m', 'depthclip_ros.cli.main', 'predict', 'a.png', '-o', 'out']),
    *(([name, '--help'], [f'/x/{name}', '--help'])
      for name in ('depth_node', 'depthclip', 'image_source', 'bag_player', 'offline_eval',
                   'sim_camera')),
])
def test_every_executable_is_forwarded_and_other_commands_are_those_of_depthclip(
        run, monkeypatch, arguments, command):
    executed = []
    monkeypatch.setattr(run.os, 'execv', lambda path, command: executed.append(command))
    monkeypatch.setattr(run, 'set_up', lambda: Path('/x/python'))
    monkeypatch.setattr(run, 'ROOT', ROOT)
    monkeypatch.setattr(run.sys, 'argv', ['a folder/run.py'])
    run.main(arguments)
    assert executed == [['/x/python', *command]]
    assert shlex.split(os.environ.pop('DEPTHCLIP_COMMAND'))[1:] == ['a folder/run.py']


def test_all_executables_can_be_forwarded():
    """What setup.py installs is what run.py finds in scripts/."""
    listed = ast.parse((ROOT / 'setup.py').read_text(encoding='utf-8')).body
    executables = next(ast.literal_eval(node.value) for node in listed
                       if isinstance(node, ast.Assign) and node.targets[0].id == 'EXECUTABLES')
    assert {path.name for path in (ROOT / 'scripts').glob('*') if path.is_file()} == {*executables}


def test_after_the_set_up_it_says_how_to_go_on(run, capsys):
    (run.ROOT / 'scripts').mkdir()
    (run.ROOT / 'scripts' / 'depth_node').touch()
    run.set_up()
    said = capsys.readouterr().out
    activate = re.search(r'source (\S+)', said)[1]
    assert Path(activate).resolve() == (run.VENV / 'bin' / 'activate').resolve()
    assert 'by name: depth_node' in said
    run.set_up()
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(('arguments', 'code'), [
    (['dmeo'], 2), (['demo', '--imges', 'a.png'], 2), (['../scripts/depthclip'], 2),
    (['predict', '--help'], 0)])
def test_what_is_misspelt_is_said_before_anything_is_set_up(run, capsys, arguments, code):
    with pytest.raises(SystemExit) as end:
        run.main(arguments)
    said = capsys.readouterr()
    assert end.value.code == code
    assert run.calls == []
    assert ('predict' in said.out) if code == 0 else ('run.py' in said.err)


@pytest.mark.parametrize(('machine', 'newest', 'words'), [
    ('aarch64', (3, 99), 'for x86-64 only, and this machine is aarch64'),
    ('x86_64', (3, 9), r'for Python 3\.10 to 3\.9 only')])
def test_a_machine_without_wheels_is_told_before_anything_is_made(
        run, monkeypatch, machine, newest, words):
    monkeypatch.setattr(run.platform, 'machine', lambda: machine)
    monkeypatch.setattr(run, 'WHEELS_NEWEST', newest)
    with pytest.raises(run.SetupError, match=words) as refused:
        run.set_up()
    assert 'docs/install.md' in str(refused.value)
    assert run.calls == []
    monkeypatch.setattr(run, 'sourced_ros', lambda: 'humble')
    run.set_up()  # a ROS that is sourced needs no wheels
    assert run.calls == ['venv', 'install']


def test_the_ci_command_is_the_readmes():
    script = ROOT / '.ci' / 'run'
    assert os.access(script, os.X_OK)
    assert 'python3 run.py test' in script.read_text()
