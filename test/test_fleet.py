# SPDX-License-Identifier: Apache-2.0
"""Many bags: what one that fails, a worker that dies and a run that is resumed leave behind."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

import pytest
import torch

pytest.importorskip('rosbags')

from drives import camera_of_width, drive, write_drive

from depthclip_ros.bags.fleet import MANIFEST, WORK, Bag, find_bags
from depthclip_ros.cli.main import main
from depthclip_ros.core.device import use_threads
from depthclip_ros.core.errors import ConfigError
from depthclip_ros.fleet import Here, Task, cluster_of
from depthclip_ros.sources.bag import BagError

ROOT = Path(__file__).parents[1]
COUNT = 10
LONG, CORRUPT = 'b3', 'b7'  # what is cut into windows, and what cannot be read


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
    """Nine bags of 0.4 to 1.8 s, one a level deeper, and one that is none."""
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
    """All of them, each as a whole, without Ray."""
    output = tmp_path_factory.mktemp('plain') / 'out'
    assert run(bags, output) == 1
    return output


def run(bags, output, *more):
    return main(['bags', *arguments(bags, output, *more)])


def arguments(bags, output, *more):
    return [str(bags), '-o', str(output), '--weights', 'demo', '--device', 'cpu',
            '--split', '0.4', *more]


def lines(output):
    header, *others = [json.loads(line) for line in (
        output / MANIFEST).read_text().splitlines()]
    assert header['format'] == 1
    return others


def contents(output):
    """Hash of every file of the converted bags."""
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in output.rglob('*')
            if path.is_file() and WORK not in path.parts and path.name != MANIFEST}


def test_one_that_fails_stops_no_other(plain, bags, capsys):
    found = {line['bag']: line for line in lines(plain)}
    assert len(found) == COUNT
    assert [name for name, line in found.items() if line['status'] == 'failed'] == [CORRUPT]
    assert found[CORRUPT]['error']
    report = found[LONG]['report']
    assert report['answered'] == report['images'] == 10
    assert report['topics']['/depth/image']['written'] == 10
    assert (plain / 'deeper' / 'b0' / 'metadata.yaml').is_file()
    assert not (plain / CORRUPT).exists()


def test_windows_join_to_the_same_bytes(plain, bags, tmp_path):
    assert run(bags, tmp_path / 'out', '--window', '0.8') == 1
    assert {line['windows'] for line in lines(tmp_path / 'out')} >= {1, 3}
    assert contents(tmp_path / 'out') == contents(plain)
    assert not list((tmp_path / 'out' / WORK).glob(f'{LONG}-*'))


def test_resumed_is_only_what_is_missing(plain, bags, tmp_path, capsys):
    output = tmp_path / 'out'
    assert run(bags, output, '--window', '0.8') == 1
    before = {path: path.stat().st_mtime_ns for path in output.rglob('*') if path.is_file()}
    assert run(bags, output, '--window', '0.8') == 1
    assert '--resume' in capsys.readouterr().err
    text = (output / MANIFEST).read_text().splitlines(keepends=True)
    kept = [line for line in text[1:] if json.loads(line)['bag'] not in ('b1', LONG)]
    # One bag is gone with its line; of the other the line was never written, or half of it.
    (output / MANIFEST).write_text(''.join([text[0], *kept]) + text[1][:40])
    for file in (output / 'b1').iterdir():
        file.unlink()
    (output / 'b1').rmdir()
    assert run(bags, output, '--window', '0.8', '--resume') == 1
    said = capsys.readouterr()
    assert '1 bags converted, 7 were before, 2 failed' in said.out
    assert f'{LONG} is there already, and not in the manifest' in said.err
    assert contents(output) == contents(plain)
    after = {path: path.stat().st_mtime_ns for path in before if path.exists()}
    changed = {path.relative_to(output).parts[0] for path in before
               if after.get(path) != before[path]}
    assert changed == {'b1', MANIFEST}


def test_a_window_that_is_there_is_not_done_again(plain, bags, tmp_path, monkeypatch, capsys):
    """Stopped after every single task, and resumed, until all is done."""
    from depthclip_ros.bags import fleet
    real, calls = fleet.Worker.convert, []

    def convert(self, part, options):
        if len(calls) % 2:
            calls.append(None)
            raise KeyboardInterrupt
        calls.append((part.bag.name, part.window))
        return real(self, part, options)
    monkeypatch.setattr(fleet.Worker, 'convert', convert)
    output = tmp_path / 'out'
    more, tries = [], 0
    while (code := run(bags / LONG, output, '--window', '0.8', *more)) == 130 and tries < 9:
        more, tries = ['--resume'], tries + 1
    assert code == 0
    done = [call for call in calls if call]
    assert len(done) == len(set(done)) == 3
    assert tries == 2
    assert contents(output / LONG) == contents(plain / LONG)
    assert not (output / WORK).exists()


def test_what_was_stopped_between_its_name_and_its_line(plain, bags, tmp_path, monkeypatch):
    from depthclip_ros.bags import fleet
    real = fleet.Manifest.append

    def append(self, line):
        raise KeyboardInterrupt
    monkeypatch.setattr(fleet.Manifest, 'append', append)
    assert run(bags / 'b1', tmp_path / 'out') == 130
    monkeypatch.setattr(fleet.Manifest, 'append', real)
    assert (tmp_path / 'out' / 'b1').exists()
    assert run(bags / 'b1', tmp_path / 'out', '--resume') == 0
    line, = lines(tmp_path / 'out')
    assert line['status'] == 'done'
    assert contents(tmp_path / 'out' / 'b1') == contents(plain / 'b1')


KILLED = """
import os, signal, sys
import torch
from depthclip_ros.bags import fleet
from depthclip_ros.cli.main import main
from depthclip_ros.core import DepthEstimator

torch.set_num_threads(1)
where, number, *arguments = sys.argv[1:]
append, predict, calls = fleet._append, DepthEstimator.predict, []

def count(name):
    calls.append(name)
    return calls.count(where) == int(number)

def half(file, line):
    if count('line'):
        file.write(b'{"bag": "half of a li')
        os.kill(os.getpid(), signal.SIGKILL)
    append(file, line)

def answer(*given, **named):
    if count('answer'):
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(*given, **named)

fleet._append, DepthEstimator.predict = half, answer
sys.exit(main(arguments))
"""


def test_a_process_that_is_killed_is_resumed_to_the_same_bytes(plain, bags, tmp_path, capsys):
    """Killed in the second window of the long bag, and then while its line is written."""
    names = ('b1', LONG, CORRUPT)
    chosen, output = tmp_path / 'list.txt', tmp_path / 'out'
    chosen.write_text(''.join(
        f'{bags / name}{".mcap" * (name == CORRUPT)}\n' for name in names))
    more = ['--window', '0.8']

    def killed(where, number):
        done = subprocess.run(
            [sys.executable, '-c', KILLED, where, str(number), 'bags',
             *arguments(chosen, output, *more)], check=False, capture_output=True, text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(
                [str(ROOT), os.environ.get('PYTHONPATH', '')])})
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr

    killed('answer', 4 + 4 + 2)  # b1 has 4 images, and a window about as many
    assert [line['bag'] for line in lines(output)] == ['b1']
    windows = list((output / WORK).glob(f'{LONG}-*/*/report.json'))
    assert len(windows) == 1
    before = {path: path.stat().st_mtime_ns for path in (*windows, *(output / 'b1').iterdir())}
    more.append('--resume')
    killed('line', 1)
    assert before == {path: path.stat().st_mtime_ns for path in before}  # nothing twice
    assert (output / LONG).is_dir()
    assert run(chosen, output, *more) == 1
    assert '1 bags converted, 1 were before, 1 failed' in capsys.readouterr().out
    assert [(line['bag'], line['status']) for line in lines(output)] == [
        ('b1', 'done'), (LONG, 'done'), (CORRUPT, 'failed')]
    for name in ('b1', LONG):
        assert contents(output / name) == contents(plain / name)


@pytest.mark.parametrize(('before', 'more', 'message'), [
    ([], ['--resume'], 'holds no manifest.jsonl'),
    ([], ['--workers', '2'], '--workers counts with --ray only'),
    (['--window', '0.8'], ['--resume'], 'of another conversion: window_seconds differ'),
    ([], ['--weights', 'nothing.pt'], 'nothing.pt')])
def test_what_cannot_be_begun(bags, tmp_path, capsys, before, more, message):
    output = tmp_path / 'out'
    if before:
        assert run(bags / 'b1', output, *before) == 0
    there = contents(tmp_path)
    assert run(bags / 'b1', output, *more) == 1
    assert message in capsys.readouterr().err
    assert contents(tmp_path) == there


def test_a_source_that_has_changed_is_not_done(frames, tmp_path, capsys):
    write_drive(tmp_path / 'bags' / 'a', frames[:3])
    assert run(tmp_path / 'bags', tmp_path / 'out') == 0
    os.utime(tmp_path / 'bags' / 'a' / 'a.mcap', (1, 1))
    assert run(tmp_path / 'bags', tmp_path / 'out', '--resume') == 1
    assert 'has changed since it was converted' in capsys.readouterr().err


def test_bags_of_a_folder_and_of_a_list(bags, tmp_path):
    found = find_bags(str(bags))
    assert [bag.name for bag in found] == [f'b{i}' for i in range(1, COUNT)] + ['deeper/b0']
    (tmp_path / 'list.txt').write_text(
        f'# two of the same name\n{bags / "b1"}\n\n{tmp_path}/other/b1.mcap\n')
    assert find_bags(str(tmp_path / 'list.txt')) == [
        Bag('b1', bags / 'b1'), Bag('b1_2', tmp_path / 'other' / 'b1.mcap')]
    (tmp_path / 'lost').mkdir()
    for number in range(2):
        (tmp_path / 'lost' / f'lost_{number}.mcap').touch()
    assert [bag.name for bag in find_bags(str(tmp_path))][-1] == 'lost'
    (tmp_path / 'none').mkdir()
    (tmp_path / 'empty.txt').write_text('# nothing\n')
    for given in ('none', 'empty.txt', 'missing'):
        with pytest.raises(BagError):
            find_bags(str(tmp_path / given))


class Failing:
    """A worker whose tasks fail in every way."""

    def do(self, number):
        if number == 1:
            raise BagError('A sentence.')
        if number == 2:
            raise ZeroDivisionError('a fault')
        return number


def test_whatever_a_task_raises_stops_no_other():
    outcomes = list(Here(Failing).run(deque(Task(n, 'do', (n,)) for n in range(4))))
    assert [(o.value, o.error) for o in outcomes] == [
        (0, ''), (None, 'A sentence.'), (None, "ZeroDivisionError: 'a fault'"), (3, '')]


def test_options_of_ray_without_it():
    assert cluster_of(None, workers=None) is None
    assert cluster_of('local', workers=3, gpus=None).workers == 3
    with pytest.raises(ConfigError, match='--gpus counts with --ray only'):
        cluster_of(None, workers=None, gpus=0.5)


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
    """The worker that holds the journal of a bag open."""
    for pid in pids:
        try:
            files = [str(f.readlink()) for f in Path(f'/proc/{pid}/fd').iterdir()]
        except OSError:
            continue
        if any(file.endswith('.partial/journal') for file in files):
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
             *arguments(bags, output, '--window', '0.8', '--ray', 'local', '--workers', '2')],
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
            if pid is not None and any(' done: ' in line for line in said):
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
    assert '9 bags converted, 0 were before, 1 failed' in (tmp_path / 'printed').read_text()
    assert len(workers) == 2, text
    found = {line['bag']: line for line in lines(output)}
    assert [name for name, line in found.items() if line['status'] == 'failed'] == [CORRUPT]
    assert found[LONG]['windows'] == 3
    everyone = {worker for line in found.values() for worker in line['workers']}
    assert {int(worker.rpartition(':')[2]) for worker in everyone} - set(workers), \
        'nobody has taken the place of the worker that was killed'
    assert contents(output) == contents(plain)
    assert run(bags, output, '--window', '0.8', '--resume') == 1
    assert '0 bags converted, 9 were before, 1 failed' in capsys.readouterr().out
    assert contents(output) == contents(plain)
