# SPDX-License-Identifier: Apache-2.0
"""The node's parts that need no graph: counters, windows, calibration, the worker."""

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

import numpy as np
from rclpy.serialization import serialize_message
from ros_harness import PATIENCE, ROOT, camera_info
from std_msgs.msg import Header

from depthclip_ros.core.errors import CameraInfoError
from depthclip_ros.core.geometry import CameraModel
from depthclip_ros.core.window import fit_window
from depthclip_ros.node import worker as worker_module
from depthclip_ros.node.calibration import Calibration
from depthclip_ros.node.focal import OFF, FocalRatio
from depthclip_ros.node.process import explain_arguments, ignored_files
from depthclip_ros.node.statistics import Counters, Rate, StageTimes, Throttle, Window
from depthclip_ros.node.worker import Interrupted, Ticker, Worker

WHOLE = fit_window('stretch', (48, 64), (96, 96))
MIDDLE = fit_window('crop', (48, 64), (96, 96))


def test_percentiles_are_nearest_rank_over_a_bounded_window():
    window = Window(size=100)
    assert math.isnan(window.percentile(50))
    for value in range(1, 1001):
        window.add(value)
    assert [window.percentile(p) for p in (1, 50, 99, 100)] == [901, 950, 999, 1000]


def test_rate_looks_back_on_a_few_readings_only():
    rate = Rate(readings=3)
    assert rate.update(0.0, 0) == 0.0
    assert rate.update(1.0, 10) == 10.0
    assert rate.update(2.0, 20) == 10.0
    assert rate.update(3.0, 20) == 5.0
    assert rate.update(4.0, 20) == 0.0


def test_throttle_is_per_condition():
    throttle = Throttle(period=1000.0)
    assert [throttle.due(c) for c in ('a', 'b', 'a', 'b')] == [True, True, False, False]
    assert all(Throttle(period=0.0).due('a') for _ in range(2))


def test_counters_tell_the_whole_account():
    counters = Counters(received=10, published=4, dropped=2, idle=1, pending=1)
    counters.rejected['wrong step'] += 2
    copy = counters.copy()
    counters.rejected['wrong step'] += 1
    assert copy.total_rejected() == 2
    assert str(copy) == ('10 received = 4 published + 2 dropped + 2 rejected + 1 idle + '
                         '1 pending; idle: nobody subscribed to an output; '
                         'rejected: wrong step: 2')


def test_stages_are_timed():
    times = StageTimes()
    assert math.isnan(times.percentile('decode', 50))
    with times.measure('decode'):
        pass
    assert times.percentile('decode', 50) >= 0


def test_calibration_is_computed_once_per_content(monkeypatch):
    made = []
    original = CameraModel.from_info
    monkeypatch.setattr(CameraModel, 'from_info', classmethod(
        lambda _cls, *a, **k: made.append(1) or original(*a, **k)))
    calibration = Calibration(rectified=False)
    for second in range(5):
        info = camera_info(Header(), 64, 48)
        info.header.stamp.sec = second
        calibration.update(serialize_message(info))
        calibration.select(64, 48)
        rays = calibration.rays(3, 4, WHOLE)
        assert calibration.rays(3, 4, WHOLE) is rays
    assert len(made) == 1
    # Nobody sets the three bytes that fill up an empty frame_id.
    raw = serialize_message(info)
    calibration.update(raw[:17] + b'any' + raw[20:])
    calibration.select(64, 48)
    assert calibration.rays(3, 4, WHOLE) is rays
    assert not np.array_equal(calibration.rays(3, 4, MIDDLE), rays)
    changed = camera_info(Header(), 64, 48, k=(60.0, 60.0, 31.5, 23.5))
    calibration.update(serialize_message(changed))
    calibration.select(64, 48)
    assert len(made) == 2
    assert not np.array_equal(calibration.rays(3, 4, WHOLE), rays)


def test_calibration_without_and_with_bad_camera_info():
    calibration = Calibration(rectified=False)
    assert not calibration.received
    with pytest.raises(CameraInfoError) as error:
        calibration.select(64, 48)
    assert error.value.condition == 'absent'
    calibration.update(serialize_message(camera_info(Header(), 64, 48)))
    calibration.select(64, 48)
    no_focal_length = camera_info(Header(), 64, 48, k=(0.0, 0.0, 0.0, 0.0))
    calibration.update(serialize_message(no_focal_length))
    for _ in range(2):  # an error is not cached away
        with pytest.raises(CameraInfoError) as error:
            calibration.select(64, 48)
        assert error.value.condition == 'all zeros'


def test_scaled_camera_info_projects_to_the_scaled_image():
    info = camera_info(Header(), 64, 48, d=(-0.2, 0.05, 0.001, 0.002, 0.0))
    info.binning_x = info.binning_y = 2
    calibration = Calibration(rectified=False)
    calibration.update(serialize_message(info))
    calibration.select(32, 24)
    header = Header(frame_id='eye')
    scaled = calibration.scaled(96, 48, header)
    assert (scaled.width, scaled.height, scaled.header) == (96, 48, header)
    assert (scaled.binning_x, scaled.binning_y, scaled.roi.width) == (0, 0, 0)
    point = np.array([[0.3, -0.2, 2.0]])
    expected = CameraModel.from_info(info).project(point) * [96 / 32, 48 / 24]
    np.testing.assert_allclose(CameraModel.from_info(scaled).project(point), expected)


def test_changes_of_the_focal_ratio_are_counted_and_told_but_not_for_every_image(monkeypatch):
    now = [0.0]
    monkeypatch.setattr('depthclip_ros.node.focal.time.monotonic', lambda: now[0])
    focal = FocalRatio()
    assert focal.note(1.0, OFF, '1.0') == (False, '')  # as is expected
    warn, told = focal.note(0.5, '', '2.0')
    assert warn
    assert all(words in told for words in ('stamp 2.0', 'multiplied by 0.500', '0.5 times'))
    assert focal.note(0.504, '', '3.0') == (False, '')  # less than can matter
    warn, told = focal.note(1.0, 'camera_info: all zeros', '4.0')
    assert warn
    assert 'not multiplied' in told
    assert '2 times' in told
    assert str(focal) == 'none: camera_info: all zeros'
    assert 'by 0.700 for that of the calibration' in focal.note(0.7, 'camera_info: x', '5.0')[1]
    told = []
    for i in range(1000):  # a zoom lens
        now[0] += 0.1
        told.append(focal.note(1.0 + 0.1 * (i % 50), '', f'{6 + i}.0')[1])
    assert 30 <= sum(map(bool, told)) <= 40  # in 100 s
    now[0] += 60.0
    assert 'multiplied by 5.900' in focal.note(5.9, '', '2000.0')[1]  # told late, but told
    assert focal.jumps == 1003
    first = FocalRatio()
    assert first.note(0.5, '', '1.0')[0] is False  # nothing came before, so nothing has jumped
    assert (first.jumps, str(first)) == (0, '0.500')


class Slot:
    """Stands for a camera: numbers instead of images."""

    def __init__(self):
        self.frame = None

    def waiting(self):
        return self.frame is not None

    def take(self):
        frame, self.frame = self.frame, None
        return frame


def test_worker_takes_every_waiting_image_at_once_and_stops_clean():
    """None waits for a camera that has nothing, and none is overtaken by one that always has."""
    ready, slots, seen = threading.Condition(), [Slot(), Slot(), Slot()], []
    enough = threading.Event()

    def answer(batch):
        seen.append([(slots.index(slot), frame) for slot, frame in batch])
        if len(seen) == 10:
            enough.set()
        else:
            with ready:
                slots[0].frame = len(seen)
                slots[2].frame = len(seen) if len(seen) % 2 else None
    with ready:
        for slot in slots:
            slot.frame = 0
    worker = Worker(ready, on_crash=lambda error: pytest.fail(str(error)))
    worker.begin(slots, answer)
    assert enough.wait(PATIENCE)
    assert worker.stop(PATIENCE)
    assert seen[0] == [(0, 0), (1, 0), (2, 0)]
    assert seen[1:5] == [[(0, 1), (2, 1)], [(0, 2)], [(0, 3), (2, 3)], [(0, 4)]]


def test_worker_hands_over_what_it_dies_of():
    ready, slot, crashes, crashed = threading.Condition(), Slot(), [], threading.Event()
    slot.frame = 1

    def answer(_batch):
        raise ZeroDivisionError('on purpose')

    def on_crash(error):
        crashes.append(error)
        crashed.set()
    worker = Worker(ready, on_crash)
    worker.begin([slot], answer)
    assert crashed.wait(PATIENCE)
    assert worker.stop(PATIENCE)
    assert isinstance(crashes[0], ZeroDivisionError)


@pytest.fixture
def worker():
    """A worker whose thread must not crash, and that must end."""
    worker = Worker(threading.Condition(), on_crash=lambda error: pytest.fail(str(error)))
    yield worker
    assert worker.stop(PATIENCE)


def test_worker_does_jobs_and_answers_on_one_thread(worker):
    threads, slot, answered = [], Slot(), threading.Event()
    slot.frame = 1

    def answer(_batch):
        threads.append(threading.get_ident())
        answered.set()
    assert worker.submit(threading.get_ident).result(PATIENCE) not in threads
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 / 0).result(PATIENCE)
    worker.begin([slot], answer)
    assert answered.wait(PATIENCE)
    assert threads == [worker.submit(threading.get_ident).result(PATIENCE)]
    assert worker.pause(PATIENCE)
    assert worker.busy_seconds() == 0.0


def test_worker_that_does_not_come_back_is_waited_for_within_bounds(worker):
    slot, begun, end = Slot(), threading.Event(), threading.Event()
    slot.frame = 1

    def answer(_batch):
        begun.set()
        end.wait(PATIENCE)
    worker.begin([slot], answer)
    assert begun.wait(PATIENCE)
    assert not worker.pause(0.05)
    assert worker.busy_seconds() > 0
    assert not worker.stop(0.05)
    end.set()


def test_a_job_of_the_worker_can_be_interrupted(worker):
    begun = threading.Event()

    def endless():
        begun.set()
        while True:
            pass
    job = worker.submit(endless)
    assert begun.wait(PATIENCE)
    worker.interrupt()
    with pytest.raises(Interrupted):
        job.result(PATIENCE)


def test_a_break_of_the_worker_ends_when_it_is_to_pause(worker):
    slot, slept = Slot(), []
    slot.frame = 1
    first = threading.Event()

    def sleep(_batch):
        slept.append(worker.sleep(0.0))
        first.set()
        slept.append(worker.sleep(60.0))
    worker.begin([slot], sleep)
    assert first.wait(PATIENCE)
    assert worker.pause(PATIENCE)
    assert slept == [True, False]


def test_jobs_that_still_wait_when_the_worker_ends_are_left(worker):
    begun, release, done = threading.Event(), threading.Event(), []

    def first():
        begun.set()
        release.wait()
    worker.submit(first)
    worker.submit(lambda: done.append(1))
    assert begun.wait(PATIENCE)
    assert not worker.stop(0.0)
    release.set()
    assert worker.stop(PATIENCE)
    assert not done


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
