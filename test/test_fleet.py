# SPDX-License-Identifier: Apache-2.0
"""Many bags: what one that fails, a worker that dies and a second run leave behind."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip('rosbags')

import bags as recorded
from drives import camera_of_width, drive, write_drive

from depthclip_ros.bags.fleet import MANIFEST, BagFile, find_bags
from depthclip_ros.cli.main import main
from depthclip_ros.core.engine import use_threads
from depthclip_ros.fleet import share_out
from depthclip_ros.sources.bag import BagError

ROOT = Path(__file__).parents[1]
COUNT = 6
LONG, CORRUPT = 'b3', 'b5'  # what takes longest, and what cannot be read


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """As a worker of Ray has: with other numbers of threads, last bits differ."""
    before = torch.get_num_threads()
    use_threads(0)  # forgets what another module asked for, which num_threads: 0 would undo
    torch.set_num_threads(1)
    yield
    use_threads(0)
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def frames():
    return drive(rooms=1, frames=10, camera=camera_of_width(64), seed=5)


@pytest.fixture(scope='module')
def bags(frames, tmp_path_factory):
    """Five bags of 0.4 to 1.8 s, one a level deeper, and one that is none."""
    folder = tmp_path_factory.mktemp('bags')
    for number in range(COUNT):
        name = 'deeper/b0' if not number else f'b{number}'
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


def statuses(output):
    """What became of the bags last, by their names."""
    return {line['bag']: line['status'] for line in lines(output)}


def lines(output):
    return [json.loads(line) for line in (output / MANIFEST).read_text().splitlines()]


def contents(output):
    """All messages of the converted bags."""
    return {str(path.parent.relative_to(output)): recorded.messages(path.parent)
            for path in output.rglob('metadata.yaml')}


def test_one_that_fails_stops_no_other(plain):
    assert statuses(plain) == {
        name: 'failed' if name == CORRUPT else 'done'
        for name in ('deeper/b0', *(f'b{number}' for number in range(1, COUNT)))}
    found = {line['bag']: line for line in lines(plain)}
    assert 'mcap recover' in found[CORRUPT]['error']
    report = found[LONG]['report']
    assert report['answered'] == report['images'] == 10
    assert report['topics']['/depth/image']['written'] == 10
    assert contents(plain).keys() == statuses(plain).keys() - {CORRUPT}


def test_what_is_done_is_skipped_and_the_rest_made(plain, bags, tmp_path, monkeypatch, capsys):
    """Stopped in the second bag, gone on, and then nothing is left to do: no model is loaded."""
    from depthclip_ros.bags import fleet
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
    assert f'{COUNT - 2} bags converted, 1 were before, 1 failed' in capsys.readouterr().out
    assert calls.count(calls[0]) == 1
    assert contents(output) == contents(plain)
    monkeypatch.setattr(fleet, 'DepthEstimator', None)
    assert run(bags / LONG, output, '--resume') == 0
    assert '0 bags converted, 1 were before, 0 failed' in capsys.readouterr().out
    assert statuses(output)[LONG] == 'skipped'


@pytest.mark.parametrize(('more', 'message'), [
    (['--workers', '2'], '--workers counts with --ray only'),
    (['--every', '2', '--rate', '1'], 'choose one of them'),
    (['--weights', 'nothing.pt'], 'nothing.pt')])
def test_what_cannot_be_begun_leaves_nothing(bags, tmp_path, capsys, more, message):
    assert run(bags / 'b1', tmp_path / 'out', *more) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bags_of_a_folder_and_of_a_list(bags, tmp_path):
    found = find_bags(str(bags))
    assert [bag.name for bag in found] == [f'b{i}' for i in range(1, COUNT)] + ['deeper/b0']
    (tmp_path / 'list.txt').write_text(
        f'# two of the same name\n{bags / "b1"}\n\n{tmp_path}/other/b1.mcap\n')
    assert find_bags(str(tmp_path / 'list.txt')) == [
        BagFile('b1', bags / 'b1'), BagFile('b1_2', tmp_path / 'other' / 'b1.mcap')]
    (tmp_path / 'lost').mkdir()
    for number in range(2):
        (tmp_path / 'lost' / f'lost_{number}.mcap').touch()
    assert [bag.name for bag in find_bags(str(tmp_path))][-1] == 'lost'
    (tmp_path / 'none').mkdir()
    (tmp_path / 'empty.txt').write_text('# nothing\n')
    for given in ('none', 'empty.txt', 'missing'):
        with pytest.raises(BagError):
            find_bags(str(tmp_path / given))


def failing():
    """Work that fails in every way."""
    def do(number):
        if number == 1:
            raise BagError('A sentence.')
        if number == 2:
            raise ZeroDivisionError('a fault')
        return number
    return do


EXPECTED = {0: (0, ''), 1: (None, 'A sentence.'), 2: (None, "ZeroDivisionError: 'a fault'"),
            3: (3, '')}


def test_whatever_a_task_raises_stops_no_other():
    outcomes = share_out(failing, [(n, (n,)) for n in range(4)], None, print)
    assert {o.key: (o.value, o.error) for o in outcomes} == EXPECTED


# On Ray ---------------------------------------------------------------------------------------


@pytest.fixture
def ray_folder():
    """Where Ray keeps its sockets, whose paths must be short; whoever uses it must be gone."""
    with tempfile.TemporaryDirectory(prefix='ray-', dir='/tmp', ignore_cleanup_errors=True) as own:
        yield own
        deadline = time.monotonic() + 60
        while (left := _using(own)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, 'processes of Ray were left over, and are killed now'


def _using(folder):
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


def _who_converts(pids):
    """The worker that writes a bag."""
    for pid in pids:
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
def test_on_two_workers_of_ray_one_is_killed(plain, bags, tmp_path, ray_folder, capsys):
    output = tmp_path / 'out'
    environment = os.environ | {
        'RAY_TMPDIR': ray_folder, 'OMP_NUM_THREADS': '1', 'RAY_USAGE_STATS_ENABLED': '0',
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    with (tmp_path / 'printed').open('w') as printed:
        process = subprocess.Popen(
            [sys.executable, '-m', 'depthclip_ros.cli.main', 'bags',
             *arguments(bags, output, '--ray', 'local', '--workers', '2')],
            env=environment, stderr=subprocess.PIPE, stdout=printed, text=True)
    said, workers, killed = [], [], []

    def listen():
        for line in process.stderr:
            said.append(line)
            if line.startswith('worker '):
                workers.append(int(line.rpartition(':')[2]))
    listener = threading.Thread(target=listen)
    listener.start()
    try:
        while process.poll() is None and not killed:
            pid = _who_converts(workers)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.002)
        process.wait(timeout=300)
    finally:
        process.kill()
        process.wait()
        listener.join()
    text = ''.join(said)
    assert killed, text
    assert process.returncode == 1, text
    assert f'{COUNT - 1} bags converted, 0 were before, 1 failed' in (
        tmp_path / 'printed').read_text(), text
    assert len(workers) == 2, text
    everyone = {int(line['worker'].rpartition(':')[2]) for line in lines(output)}
    assert everyone - set(workers), 'nobody has taken the place of the worker that was killed'
    assert contents(output) == contents(plain)
    assert run(bags, output, '--resume') == 1
    assert f'0 bags converted, {COUNT - 1} were before, 1 failed' in capsys.readouterr().out
