# SPDX-License-Identifier: Apache-2.0
"""The node's parts that need no graph: counters, windows, the worker, the process."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import threading
import types

import pytest

pytest.importorskip('rclpy')

from ros_harness import PATIENCE, ROOT

from depthclip_ros.node import statistics
from depthclip_ros.node import worker as worker_module
from depthclip_ros.node.process import explain_arguments, ignored_files
from depthclip_ros.node.statistics import NO_CLOUD, Counters, Say, StageTimes, Window
from depthclip_ros.node.worker import Ticker, Worker


def test_percentiles_are_nearest_rank_over_a_bounded_window():
    window = Window(size=100)
    assert math.isnan(window.percentile(50))
    for value in range(1, 1001):
        window.add(value)
    assert [window.percentile(p) for p in (1, 50, 99, 100)] == [901, 950, 999, 1000]


def test_recent_values_fade(monkeypatch):
    clock = types.SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(statistics, 'time', clock)
    window = Window()
    assert math.isnan(window.recent())
    window.add(1.0)
    clock.now += 3.0
    window.add(3.0)
    assert window.recent() == 2.0
    clock.now += 3.0
    assert window.recent() == 3.0
    clock.now += 3.0
    assert math.isnan(window.recent())


def test_each_matter_is_said_once_in_a_while():
    said = []
    log = types.SimpleNamespace(warning=lambda text: said.append(('warning', text)),
                                error=lambda text: said.append(('error', text)))
    node = types.SimpleNamespace(get_logger=lambda: log)
    say = Say(node, 'front: ')
    for key in ('a', 'b', 'a', 'b'):
        say.once(key, key.upper())
    say.error('c', 'C')
    assert said == [('warning', 'front: A'), ('warning', 'front: B'), ('error', 'front: C')]
    assert all(Say(node, period=0.0).due('a') for _ in range(2))


def test_counters_tell_the_whole_account():
    counters = Counters(received=10, published=4, dropped=2, idle=1, pending=1)
    counters.rejected['wrong step'] += 2
    counters.incomplete[NO_CLOUD]['absent'] += 3
    copy = counters.copy()
    counters.rejected['wrong step'] += 1
    counters.incomplete[NO_CLOUD]['all zeros'] += 1
    assert copy.total_rejected() == 2
    assert str(copy) == ('10 received = 4 published + 2 dropped + 2 rejected + 1 idle + '
                         '1 pending; idle: nobody subscribed to an output; '
                         'rejected: wrong step: 2; no cloud: absent: 3')
    assert counters.conditions() - copy.conditions() == {'wrong step': 1, 'all zeros': 1}


def test_stages_are_timed():
    times = StageTimes()
    assert math.isnan(times.percentile('decode', 50))
    with times.measure('decode'):
        pass
    assert times.percentile('decode', 50) >= 0


def crashed(_worker, error):
    pytest.fail(str(error))


@pytest.fixture
def make_worker():
    """Workers by what answers, whose threads end."""
    workers = []

    def make(answer, on_crash=crashed):
        workers.append(Worker(answer, on_crash))
        return workers[-1]
    yield make
    for worker in workers:
        worker.submit(bool).result(PATIENCE)
        worker.end(wait=True)


def test_the_worker_takes_every_waiting_image_at_once_and_the_newest_of_each(make_worker):
    begun, go_on, batches = threading.Event(), threading.Event(), []

    def answer(batch):
        batches.append(batch)
        begun.set()
        assert go_on.wait(PATIENCE)
    worker = make_worker(answer)
    assert not worker.put('front', b'1')
    assert begun.wait(PATIENCE)
    assert [worker.put('rear', b'2'), worker.put('front', b'3'), worker.put('rear', b'4')] == \
        [False, False, True]
    go_on.set()
    worker.submit(bool).result(PATIENCE)
    assert batches == [[('front', b'1')], [('rear', b'4'), ('front', b'3')]]


def test_images_that_wait_can_be_left(make_worker):
    begun, go_on, batches = threading.Event(), threading.Event(), []

    def answer(batch):
        batches.append(batch)
        begun.set()
        assert go_on.wait(PATIENCE)
    worker = make_worker(answer)
    worker.put('front', b'1')
    assert begun.wait(PATIENCE)
    assert worker.busy_seconds() > 0
    worker.put('rear', b'2')
    assert worker.clear() == ['rear']
    go_on.set()
    worker.submit(bool).result(PATIENCE)
    assert len(batches) == 1
    assert worker.busy_seconds() == 0


def test_the_worker_hands_over_what_an_answer_raises_and_goes_on(make_worker):
    errors = []
    worker = make_worker(lambda _batch: 1 / 0, lambda *which: errors.append(which))
    for _ in range(2):
        worker.put('front', b'1')
        worker.submit(bool).result(PATIENCE)
    assert [(who, type(error)) for who, error in errors] == [(worker, ZeroDivisionError)] * 2


def test_jobs_and_answers_are_done_on_one_thread(make_worker):
    threads = []
    worker = make_worker(lambda _batch: threads.append(threading.get_ident()))
    worker.put('front', b'1')
    assert [worker.submit(threading.get_ident).result(PATIENCE)] == threads
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 / 0).result(PATIENCE)


class Clock:
    """Stands for `time` and for the event that a ticker waits for: waiting takes no time."""

    def __init__(self, end):
        self.now, self.end = 0.0, end

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        return self.now > self.end

    def set(self):
        pass


def test_the_ticker_keeps_its_period_whatever_a_call_takes(monkeypatch):
    """A late tick is followed by an early one; those that were missed are not made up for."""
    clock, ticks, takes = Clock(5.0), [], iter([0.25, 0.0, 0.75, 1.5, 0.0, 0.0, 0.0])

    def tick():
        ticks.append(clock.now)
        clock.now += next(takes)
    monkeypatch.setattr(worker_module, 'time', clock)
    monkeypatch.setattr(worker_module, 'threading', types.SimpleNamespace(
        Event=lambda: clock, Thread=threading.Thread))
    ticker = Ticker(0.5, tick)
    ticker.stop(PATIENCE)
    assert ticks == [0.5, 1.0, 1.5, 2.25, 3.75, 4.25, 4.75]


def test_a_ticker_that_is_stopped_calls_no_more():
    before, twice = set(threading.enumerate()), threading.Event()
    ticks = []

    def tick():
        ticks.append(1)
        if len(ticks) == 2:
            twice.set()
    ticker = Ticker(0.001, tick)
    thread, = set(threading.enumerate()) - before
    assert twice.wait(PATIENCE)
    ticker.stop(PATIENCE)
    assert not thread.is_alive()


def test_reasons_of_rcl_are_shortened():
    error = RuntimeError("failed to initialize rcl: Couldn't parse params file: 'x'. Error: Bad "
                         'at line 3, at /project/src/parse.c:258')
    assert explain_arguments(['node'], error) == \
        "Couldn't parse params file: 'x'. Error: Bad at line 3."


STUCK = """
import sys, threading, time
from depthclip_ros.node import process
process.LAST_PATIENCE = 0.1
if 'stuck' in sys.argv:
    threading.Thread(target=time.sleep, args=(3600,)).start()
print('said', end='')
process.end_process(3)
"""


@pytest.mark.parametrize('arguments', [(), ('stuck',)])
def test_a_process_ends_with_or_without_its_threads(arguments):
    done = subprocess.run([sys.executable, '-c', STUCK, *arguments], cwd=ROOT, check=False,
                          capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (3, 'said', '')


FAULTS_OF_TEN_IMAGES = """
import platform, resource, sys
from depthclip_ros.node.process import keep_freed_memory

def pass_images():
    [bytearray(900_000) for _ in range(8)]

if 'keep' in sys.argv:
    keep_freed_memory()
pass_images()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    pass_images()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')
def test_memory_of_images_is_used_again():
    def faults(*arguments):
        run = subprocess.run(
            [sys.executable, '-c', FAULTS_OF_TEN_IMAGES, *arguments], cwd=ROOT, check=True,
            env={k: v for k, v in os.environ.items() if 'MALLOC' not in k and 'GLIBC' not in k},
            capture_output=True, text=True)
        return int(run.stdout)
    assert faults('keep') < 0.1 * faults()


def test_parameter_files_for_other_nodes_are_named(tmp_path):
    for name, section in (('ours', '/front/depth_node'), ('other', '/other'), ('all', '/**')):
        (tmp_path / name).write_text(f'{section}:\n  ros__parameters:\n    offline: true\n')
    arguments = ['depth_node', '--ros-args']
    for name in ('ours', 'other', 'all'):
        arguments += ['--params-file', str(tmp_path / name)]
    reason, = ignored_files(arguments, '/front/depth_node')
    assert f'{tmp_path}/other: no section for /front/depth_node' in reason
    assert len(ignored_files(arguments, '/depth_node')) == 2
