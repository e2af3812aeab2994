# SPDX-License-Identifier: Apache-2.0
"""run.py and tools/run_tests.py from outside, in folders of their own and without a network."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A package that needs nothing to be built, not even setuptools.
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = 'tiny-1.0-py3-none-any.whl'
    with zipfile.ZipFile(folder + '/' + name, 'w') as wheel:
        info = 'tiny-1.0.dist-info/'
        wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n'
                       'Provides-Extra: ros\\nProvides-Extra: test\\n' + REQUIRES)
        wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: here\\n'
                       'Root-Is-Purelib: true\\nTag: py3-none-any\\n')
        wheel.writestr(info + 'RECORD', '')
    return name
REQUIRES = ''
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = 'backend'
backend-path = ['.']
"""


def environment(**more):
    """What a process of a test sees: no index of packages, and nothing of this pytest."""
    ours = {name: value for name, value in os.environ.items()
            if 'PYTEST' not in name and name not in ('ROS_DISTRO', 'CI')}
    return {**ours, 'PIP_NO_INDEX': '1', 'PIP_FIND_LINKS': '', 'UV_OFFLINE': '1', **more}


def python(folder, *words, **variables):
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=environment(**variables),
        capture_output=True, text=True, check=False)


# Set-up ------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A folder with run.py, one executable, and a package that installs offline."""
    shutil.copy(ROOT / 'run.py', tmp_path)
    (tmp_path / 'scripts').mkdir()
    (tmp_path / 'scripts/say').write_text('')
    (tmp_path / 'pyproject.toml').write_text(PYPROJECT)
    (tmp_path / 'setup.py').write_text('')
    (tmp_path / 'setup.cfg').write_text('')
    (tmp_path / 'backend.py').write_text(BACKEND)
    return tmp_path


def as_if(change):
    """run.py's `say`, with something of its interpreter changed before."""
    return ['-c', ('import platform, runpy, sys; sys.argv = ["run.py", "say", "hello"]; '
                   f'{change}; runpy.run_path("run.py", run_name="__main__")')]


def test_an_old_python_gets_as_far_as_the_message(project):
    ast.parse((ROOT / 'run.py').read_text(encoding='utf-8'), feature_version=(3, 6))
    done = python(project, *as_if('sys.version_info = (3, 8, 10, "final", 0)'))
    assert done.returncode == 1
    assert 'too old' in done.stderr
    assert 'python3.12 run.py' in done.stderr


@pytest.mark.parametrize(('change', 'reason'), [
    ('platform.machine = lambda: "aarch64"', 'this machine is aarch64'),
    ('sys.version_info = (3, 14, 0, "final", 0)', '3.10 to 3.13 only'),
    ('import shutil, types; shutil.disk_usage = lambda _: types.SimpleNamespace(free=1e8)',
     'the disk is full: 0.1 GB')])
def test_what_would_fail_late_is_refused_early(project, change, reason):
    done = python(project, *as_if(change))
    assert done.returncode == 1
    assert reason in done.stderr
    assert not (project / '.venv').exists()


def test_a_sourced_ros_of_another_python_is_named(project):
    (project / 'rclpy.py').write_text('raise ImportError("made for Python 3.9")')
    done = python(project, 'run.py', 'say', ROS_DISTRO='jazzy', PYTHONPATH=str(project))
    assert done.returncode == 1
    assert 'made for Python 3.9' in done.stderr
    assert '/usr/bin/python3 run.py' in done.stderr


def test_wrong_arguments_end_before_the_set_up(project):
    (project / 'depthclip_ros').symlink_to(ROOT / 'depthclip_ros')
    done = python(project, 'run.py', 'predict', '--no-such-option')
    assert done.returncode == 2
    assert 'usage' in done.stderr
    assert not (project / '.venv').exists()
    assert 'python3 run.py demo' in python(project, 'run.py', '--help').stdout


def test_set_up_once_and_again_only_for_more(project):
    """Without uv, which cannot be had here, pip does it."""
    def call(name='say'):
        done = python(project, 'run.py', name, 'hello')
        return done, done.stdout + done.stderr

    stamp = project / '.venv/depthclip_ros-setup.json'
    (project / '.venv/bin').mkdir(parents=True)
    (project / '.venv/pyvenv.cfg').write_text('')  # a set-up that was broken off
    first, said = call()
    assert 'set-up complete' in said, said
    assert first.returncode == 2  # of the executable, which this package does not install
    assert json.loads(stamp.read_text())['extras'] == ['ros']
    assert 'setting up' not in call()[1]
    assert 'setting up' in call('test')[1]
    assert json.loads(stamp.read_text())['extras'] == ['ros', 'test']
    assert 'setting up' not in call()[1]
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), 'python': 'another'}))
    assert 'setting up' in call()[1]
    assert json.loads(stamp.read_text())['extras'] == ['ros']  # in a new environment
    (project / 'setup.py').write_text('# changed')
    (project / 'backend.py').write_text(BACKEND.replace(
        "REQUIRES = ''", "REQUIRES = 'Requires-Dist: not-to-be-had\\n'"))
    broken, said = call()
    assert broken.returncode == 1
    assert 'not-to-be-had' in said
    assert 'check the network' in said
    assert not stamp.exists()


def test_kilted_has_its_own_ros_and_all_else_from_beside(project):
    wheels = project / 'wheels'
    wheels.mkdir()
    for version in '1.0', '2.0':
        for name in 'numpy', 'rclpy':
            info = f'{name}-{version}.dist-info/'
            with zipfile.ZipFile(wheels / f'{name}-{version}-py3-none-any.whl', 'w') as wheel:
                wheel.writestr(f'{name}.py', f'version = "{version}"')
                wheel.writestr(info + 'METADATA', (
                    f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'))
                wheel.writestr(info + 'WHEEL', (
                    'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'))
                wheel.writestr(info + 'RECORD', '')
    requires = ('Provides-Extra: kilted\nRequires-Dist: numpy==1.0\nRequires-Dist: rclpy==1.0; '
                'extra == "ros"\nRequires-Dist: rclpy==2.0; extra == "kilted"\n')
    (project / 'backend.py').write_text(BACKEND.replace('tiny', 'depthclip_ros').replace(
        "REQUIRES = ''", f'REQUIRES = {requires!r}'))

    def call(*words):
        done = python(project, 'run.py', 'say', *words, PIP_FIND_LINKS=str(wheels))
        return done.stdout + done.stderr

    assert 'set-up complete' in call()
    (project / '.venv/bin/say').write_text(
        'import numpy, rclpy, sys; print(numpy.version, rclpy.version, *sys.argv[1:])')
    assert 'kilted' in call('hello', '--kilted')
    assert call('hello', '--kilted') == '1.0 2.0 hello\n'
    assert call('hello') == '1.0 1.0 hello\n'


def test_a_folder_that_is_no_environment_is_left_alone(project):
    (project / '.venv').mkdir()
    (project / '.venv/mine').write_text('')
    done = python(project, 'run.py', 'say')
    assert done.returncode == 1
    assert 'Move it away' in done.stderr
    assert (project / '.venv/mine').exists()


# Tests -------------------------------------------------------------------------------------


def run_tests(folder, files, *arguments, **variables):
    """Lines and exit code of tools/run_tests.py over a suite, a style and types of its own."""
    pytest.importorskip('xdist', reason='pytest-xdist is not installed (extra test)')
    (folder / 'tools').mkdir()
    shutil.copy(ROOT / 'tools/run_tests.py', folder / 'tools')
    steps = dict.fromkeys(('tools/generate.py', 'tools/prose.py', 'ruff.py', 'mypy.py'), '')
    for name, text in {**steps, **files}.items():
        (folder / name).write_text(text)
    done = python(folder, 'tools/run_tests.py', *arguments, **variables)
    return done.returncode, [line for line in done.stdout.splitlines() if line], done.stderr


FLAKY = """
import pathlib
def test_now_and_then():
    first = pathlib.Path('was-here')
    there = first.exists()
    first.touch()
    assert there, 'not the first time'
"""


@pytest.mark.parametrize(('files', 'code', 'last'), [
    ({}, 0, ['flaky: test_flaky.py::test_now_and_then']),
    ({'test_bad.py': 'def test_bad(): assert bytes(10_000) == bytes([1]) * 10_000\n'}, 1,
     ['failed: test_bad.py::test_bad', 'flaky: test_flaky.py::test_now_and_then']),
    (dict.fromkeys(('ruff.py', 'mypy.py', 'tools/generate.py', 'tools/prose.py'),
                   'raise SystemExit(1)'), 1,
     ['failed: style', 'failed: types', 'failed: generated documents', 'failed: prose',
      'flaky: test_flaky.py::test_now_and_then'])], ids=['flaky', 'bad', 'steps'])
def test_what_passes_once_more_is_named_and_what_fails_is_red(tmp_path, files, code, last):
    """Also where CI is set, in which pytest would print the whole of what differs."""
    found, lines, _ = run_tests(tmp_path, {
        'test_flaky.py': FLAKY, 'test_good.py': 'def test_good(): pass\n', **files}, CI='true')
    assert found == code, lines
    assert lines[-len(last):] == last
    assert any('not the first time' in line for line in lines)
    assert '::test_good' not in ' '.join(lines)  # is not run again
    assert len(lines) < 150


def test_what_is_simply_broken_is_not_run_again(tmp_path):
    many = 'import pytest\n@pytest.mark.parametrize("i", range(11))\ndef test(i): assert i < 0\n'
    code, lines, _ = run_tests(tmp_path, {'test_many.py': many})
    assert code == 1
    assert sum(line.startswith('failed: test_many.py') for line in lines) == 11
    assert not any('Once more' in line for line in lines)


@pytest.mark.parametrize('has', [False, True])
def test_what_needs_a_gpu_runs_alone_or_says_that_nothing_ran(tmp_path, has):
    (tmp_path / 'benchmarks').mkdir()
    code, lines, _ = run_tests(tmp_path, {
        'tools/torch.py': f'class cuda: is_available = staticmethod(lambda: {has})',
        'benchmarks/run.py': 'import sys; print("measured", *sys.argv[1:]); raise SystemExit(1)',
        'test_some.py': 'import pytest\n@pytest.mark.gpu\ndef test_gpu(): assert False\n'
                        'def test_other(): assert False\n'}, '--gpu')
    if not has:
        assert (code, lines) == (77, ['Nothing was run: PyTorch sees no GPU on this machine.'])
        return
    assert code == 1
    assert lines[-2:] == ['failed: benchmark', 'failed: test_some.py::test_gpu']
    assert 'measured gpu --out benchmarks/results' in lines
    assert not any('test_other' in line for line in lines)


@pytest.mark.nightly
def test_a_test_that_hangs_fails_and_the_others_run(tmp_path):
    """As code in C hangs that keeps Python's lock: no signal and no other thread is heard."""
    code, lines, errors = run_tests(tmp_path, {
        'test_that.py': 'import ctypes\ndef test_hangs():\n    ctypes.PyDLL(None).sleep(600)\n',
        'test_others.py': 'def test_one(): pass\ndef test_two(): pass\n'},
        '-o', 'faulthandler_timeout=10')
    assert code == 1, lines
    assert lines[-1] == 'failed: test_that.py::test_hangs'
    assert any('2 passed' in line for line in lines)
    assert 'test_that.py", line 3 in test_hangs' in errors
