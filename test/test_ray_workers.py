# SPDX-License-Identifier: Apache-2.0
"""Many bags: what one that fails, a worker that dies and a second run leave behind."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip('rosbags')

import bags as recorded
from drives import camera_of_width, drive, write_drive

from depthclip_ros.bags import fleet
from depthclip_ros.bags.fleet import MANIFEST, BagFile, find_bags
from depthclip_ros.bags.ray_workers import run_tasks
from depthclip_ros.cli.main import main
from depthclip_ros.core.errors import BagError, DepthClipError

ROOT = Path(__file__).parents[1]
NAMES = ['b1', 'b2', 'b3', 'b4', 'b5', 'deeper/b0']
LONG, CORRUPT = 'b3', 'b5'  # what takes longest, and what cannot be read


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def bags(tmp_path_factory):
    """Five bags of 0.4 to 1.8 s, one a level deeper, and one that is none."""
    frames = drive(rooms=1, frames=10, camera=camera_of_width(64), seed=5)
    folder = tmp_path_factory.mktemp('bags')
    for number, name in enumerate(NAMES):
        if name == CORRUPT:
            (folder / f'{name}.mcap').write_bytes(b'\x89MCAP0\r\n' + bytes(range(100)))
        else:
            write_drive(folder / name, frames[:10 if name == LONG else 3 + number % 2])
    return folder


@pytest.fixture(scope='module')
def plain(bags, tmp_path_factory):
    """All of them, without Ray."""
    output = tmp_path_factory.mktemp('plain') / 'out'
    assert run(bags, output) == 1
    return output


def run(bags, output, *more):
    return main(['bags', *arguments(bags, output, *more)])


def arguments(bags, output, *more):
    return [str(bags), '-o', str(output), '--weights', 'demo', '--device', 'cpu', *more]


def manifest(output):
    """What was said of every bag last, by its name."""
    lines = map(json.loads, (output / MANIFEST).read_text().splitlines())
    return {line['bag']: line for line in lines}


def contents(output):
    """All messages of the converted bags."""
    return {str(path.parent.relative_to(output)): recorded.messages(path.parent)
            for path in output.rglob('metadata.yaml')}


def test_one_that_fails_stops_no_other(plain):
    found = manifest(plain)
    assert {name: line['status'] for name, line in found.items()} == {
        name: 'failed' if name == CORRUPT else 'done' for name in NAMES}
    assert 'mcap recover' in found[CORRUPT]['error']
    report = found[LONG]['report']
    assert report['answered'] == report['images'] == report['topics']['/depth/image'] == 10
    assert contents(plain).keys() == set(NAMES) - {CORRUPT}


def test_what_is_done_is_skipped_and_the_rest_made(plain, bags, tmp_path, monkeypatch, capsys):
    """Stopped in the second bag, gone on, and then nothing is left to do: no model is loaded."""
    real, calls = fleet.convert, []

    def stopped(source, *rest, **more):
        calls.append(source.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(source, *rest, **more)
    monkeypatch.setattr(fleet, 'convert', stopped)
    output = tmp_path / 'out'
    assert run(bags, output) == 130
    assert run(bags, output) == 1
    assert '--resume' in capsys.readouterr().err
    assert run(bags, output, '--resume') == 1
    assert '4 bags converted, 1 were before, 1 failed' in capsys.readouterr().out
    assert calls.count(calls[0]) == 1
    assert contents(output) == contents(plain)
    monkeypatch.setattr(fleet, 'DepthEstimator', None)
    assert run(bags / LONG, output, '--resume') == 0
    assert '0 bags converted, 1 were before, 0 failed' in capsys.readouterr().out
    assert manifest(output)[LONG]['status'] == 'skipped'


@pytest.mark.parametrize(('more', 'message'), [
    (['--every', '2', '--rate', '1'], 'choose one of them'),
    (['--weights', 'nothing.pt'], 'nothing.pt')])
def test_what_cannot_be_begun_leaves_nothing(bags, tmp_path, capsys, more, message):
    assert run(bags / 'b1', tmp_path / 'out', *more) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bags_of_a_folder_and_of_a_list(bags, tmp_path):
    assert [bag.name for bag in find_bags(str(bags))] == NAMES
    assert find_bags(str(bags / 'b1')) == [BagFile('b1', bags / 'b1')]
    (tmp_path / 'list.txt').write_text(
        f'# two of the same name\n{bags / "b1"}\n\n{tmp_path}/other/b1.mcap\n')
    assert find_bags(str(tmp_path / 'list.txt')) == [
        BagFile('b1', bags / 'b1'), BagFile('b1_2', tmp_path / 'other' / 'b1.mcap')]
    (tmp_path / 'packed').mkdir()
    for name in ('a.db3.zstd', 'b.mcap.zstd'):
        (tmp_path / 'packed' / name).touch()
    assert [bag.name for bag in find_bags(str(tmp_path / 'packed'))] == ['a', 'b']
    (tmp_path / 'none').mkdir()
    (tmp_path / 'empty.txt').write_text('# nothing\n')
    for given in ('none', 'empty.txt', 'missing'):
        with pytest.raises(BagError):
            find_bags(str(tmp_path / given))


def test_whatever_a_task_raises_stops_no_other():
    def make():
        def do(number):
            if number == 1:
                raise DepthClipError('A sentence.')
            return 1 // (number - 2)
        return do
    assert list(run_tasks(make, [(n, (n,)) for n in range(4)], None)) == [
        (0, -1, ''), (1, None, 'A sentence.'),
        (2, None, 'ZeroDivisionError: integer division or modulo by zero'), (3, 1, '')]


# On Ray ---------------------------------------------------------------------------------------


def _processes_with(folder):
    """Processes whose command line or environment names the folder, without this one."""
    found = []
    for process in Path('/proc').iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            told = (process / 'cmdline').read_bytes() + (process / 'environ').read_bytes()
        except OSError:
            continue
        if folder.encode() in told:
            found.append(int(process.name))
    return found


@pytest.fixture
def ray_folder():
    """Where Ray keeps its sockets, whose paths must be short; whoever uses it must be gone."""
    with tempfile.TemporaryDirectory(prefix='ray-', dir='/tmp', ignore_cleanup_errors=True) as own:
        yield own
        deadline = time.monotonic() + 60
        while (left := _processes_with(own)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, 'processes of Ray were left over, and are killed now'


def _who_converts(folder):
    """The worker that writes a bag."""
    for pid in _processes_with(folder):
        try:
            files = [str(f.readlink()) for f in Path(f'/proc/{pid}/fd').iterdir()]
        except OSError:
            continue
        if any('.partial/' in file for file in files):
            return pid
    return None


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec('ray') is None,
                    reason='ray is not installed (extra ray)')
def test_on_workers_of_ray_one_is_killed(plain, bags, tmp_path, ray_folder, capsys):
    output = tmp_path / 'out'
    environment = os.environ | {
        'RAY_TMPDIR': ray_folder, 'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    with (tmp_path / 'printed').open('w') as printed:
        process = subprocess.Popen(
            [sys.executable, '-m', 'depthclip_ros.cli.main', 'bags',
             *arguments(bags, output, '--ray', 'local')],
            env=environment, stderr=subprocess.STDOUT, stdout=printed, text=True)
    killed = None
    try:
        while process.poll() is None and not killed:
            killed = _who_converts(ray_folder)
            if killed:
                os.kill(killed, signal.SIGKILL)
            time.sleep(0.002)
        process.wait(timeout=300)
    finally:
        process.kill()
        process.wait()
    text = (tmp_path / 'printed').read_text()
    assert killed, text
    assert process.returncode == 1, text
    assert '5 bags converted, 0 were before, 1 failed' in text
    assert contents(output) == contents(plain)
    assert run(bags, output, '--resume') == 1
    assert '0 bags converted, 5 were before, 1 failed' in capsys.readouterr().out
