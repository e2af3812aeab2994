# SPDX-License-Identifier: Apache-2.0
"""The node's parts in this process: the worker with failures in its way, counters, the process."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import threading
import time
import types
from collections import Counter

import pytest

pytest.importorskip('rclpy')

import numpy as np
from clip_standin import synthetic_rgb
from rclpy.lifecycle import LifecycleNode
from rclpy.serialization import serialize_message
from ros_harness import PATIENCE, ROOT, camera_info, image, node_here
from std_msgs.msg import Header

from depthclip_ros.messages import message_types as messages
from depthclip_ros.messages.camera_context import CameraContext
from depthclip_ros.messages.node_config import NodeConfig
from depthclip_ros.messages.outputs import OUTPUTS
from depthclip_ros.node import camera as camera_module
from depthclip_ros.node.camera import (
    OUTCOMES,
    Camera,
    RollingWindow,
    ThrottledLog,
    account_summary,
)
from depthclip_ros.node.worker import DeviceLostError, Worker

RGB = synthetic_rgb(3, 60, 80)
MARK = 7  # of all pixels of an image that the model fails on
BAD = np.full_like(RGB, MARK)


class Setup:
    """A worker on a real node, whose publishers only take note, and a model that fails."""

    def __init__(self, node, estimator, monkeypatch, names):
        self.estimator, self.error, self.times = estimator, RuntimeError('on purpose'), 10 ** 6
        self.published, self.log, self.batch, self.crashes = [], [], {}, []
        monkeypatch.setattr(node, 'get_logger', lambda: types.SimpleNamespace(**{
            level: lambda text, level=level: self.log.append((level, text))
            for level in ('debug', 'info', 'warning', 'error')}))
        self.worker = Worker(node, estimator.config, lambda *which: self.crashes.append(which))
        self.worker.estimator = estimator
        self.cameras = [Camera(node, NodeConfig(), name) for name in names]
        for camera in self.cameras:
            camera.subscribe(lambda camera, raw: self.batch.update({camera: raw}), None)
        monkeypatch.setattr(Camera, 'has_subscribers', lambda _camera, _topic: True)
        monkeypatch.setattr(Camera, 'is_active', lambda _camera: True)
        monkeypatch.setattr(Camera, 'publish', lambda camera, topic, _message:
                            self.published.append((camera.name, topic)))
        original, self.batches = estimator.predict, []

        def predict(images, *more, **options):
            self.batches.append(len(images))
            if self.times and any((picture.rgb == MARK).all() for picture in images):
                self.times -= 1
                raise self.error
            return original(images, *more, **options)
        monkeypatch.setattr(estimator, 'predict', predict)

    def send(self, *pictures, stamp=(1, 0)):
        """One batch: an image of each camera, as if it had just come."""
        self.batch.clear()
        for camera, picture in zip(self.cameras, pictures, strict=False):
            message = image(Header(), picture, 'rgb8')
            message.header.stamp.sec, message.header.stamp.nanosec = stamp
            camera._on_image(serialize_message(message))
        try:
            self.worker.process_batch(self.batch)
        finally:
            for account in map(Camera.counts, self.cameras):
                assert account['pending'] == 0
                assert account['received'] == sum(account[end] for end in OUTCOMES)

    def causes(self):
        return [{cause: n for cause, n in camera.counts().items() if ': ' in cause}
                for camera in self.cameras]

    def said(self, words):
        return [(level, text) for level, text in self.log if words in text]


@pytest.fixture
def make(domain, estimator, monkeypatch):
    config = estimator.config
    with node_here(domain, LifecycleNode, 'failures') as node:
        setups = []

        def make(*names):
            setups.append(Setup(node, estimator, monkeypatch, names))
            return setups[-1]
        yield make
        for setup in setups:
            setup.worker._pool.shutdown()
    estimator.reconfigure(config)


ABSENT = {'no cloud: absent': 1}


def test_one_camera_s_image_costs_nobody_else_s(make):
    setup = make('front', 'rear', 'side')
    setup.send(RGB, BAD, RGB)
    assert [name for name, topic in setup.published if topic == 'depth/image'] == \
        ['front', 'side']
    assert setup.causes() == [ABSENT, {'rejected: RuntimeError in prediction': 1}, ABSENT]


def test_all_depth_goes_before_the_slower_outputs_of_any(make):
    setup = make('a', 'b')
    setup.send(RGB, RGB)
    assert setup.published[:2] == [('a', 'depth/image'), ('b', 'depth/image')]
    assert ('b', 'depth/image_color') in setup.published[2:]
    assert setup.batches == [2]


def test_nothing_is_made_that_nobody_wants(make, monkeypatch):
    setup, made = make(''), []
    monkeypatch.setattr(Camera, 'has_subscribers', lambda _camera, topic: topic == 'depth/image')
    for topic, (kind, function) in OUTPUTS.items():
        monkeypatch.setitem(OUTPUTS, topic, (
            kind, lambda *inputs, topic=topic, function=function:
            made.append(topic) or function(*inputs)))
    setup.cameras[0].context.on_camera_info(serialize_message(camera_info(Header(), 80, 60)))
    setup.send(RGB)
    assert made == ['depth/image']
    assert setup.published == [('', 'depth/image')]


def test_the_traceback_comes_once_a_cause_and_is_bounded(make):
    setup = make('')
    setup.error = ValueError('x' * 10 ** 6)
    for _ in range(3):
        setup.send(BAD)
        setup.send(RGB)
    assert [level for level, _ in setup.said('Traceback')] == ['error']
    assert max(len(text) for _, text in setup.log) < 10_000
    assert len(setup.cameras[0].last_error) < 1000


@pytest.mark.parametrize('stamp', [
    (-1, 0), (-2 ** 31, 0), (1, 2 ** 32 - 1), (2 ** 31 - 1, 0), ('now', 10 ** 9)])
def test_impossible_stamps_are_foreign_stamps(stamp, make):
    setup, (seconds, nanoseconds) = make(''), stamp
    setup.send(RGB, stamp=(int(time.time()) if seconds == 'now' else seconds, nanoseconds))
    camera = setup.cameras[0]
    assert camera.counts()['published'] == 1
    assert math.isnan(camera.ages.percentile(50))


def test_what_is_odd_about_images_is_said_once_and_lost_pixels_are_counted(make):
    setup = make('')
    camera = setup.cameras[0]
    camera.context.config = NodeConfig(depth_encoding='16UC1')
    setup.worker.config = setup.estimator.config.replace(
        bins=[70.0 + metres for metres in setup.estimator.config.bins])
    for picture in (RGB, RGB, RGB[:40]):
        setup.send(picture)
    assert camera.counts()['beyond'] == 2 * RGB[..., 0].size + RGB[:40, :, 0].size
    for words in ('that 16UC1 cannot hold', 'frame_id is empty', 'images of 80x40 are stretched'):
        assert len(setup.said(words)) == 1, words
    assert len(setup.said('are stretched')) == 1


class BrokenError(Exception):
    """Nothing that anybody expects."""


def fail(*_, **__):
    raise BrokenError('on purpose')


@pytest.mark.parametrize(('broken', 'what'), [
    ('depth/image', 'rejected'), ('points', 'no cloud'), ('depth/words', 'no pictures'),
    ('record_publication', 'rejected'), ('update_statistics', 'no pictures')])
def test_what_fails_behind_the_network_is_counted_and_costs_one_camera(
        broken, what, make, monkeypatch):
    """Publication, and what only takes note."""
    setup = make('front', 'rear')
    front, rear = setup.cameras
    for camera in setup.cameras:
        camera.context.on_camera_info(serialize_message(camera_info(Header(), 80, 60)))
    publish = Camera.publish
    if '/' in broken or broken == 'points':
        monkeypatch.setattr(front, 'publish', lambda topic, message: fail() if topic == broken
                            else publish(front, topic, message))
    else:
        monkeypatch.setattr(front, broken, fail)
    setup.send(RGB, RGB)
    assert setup.causes() == [{f'{what}: BrokenError in publication': 1}, {}]
    assert front.counts()['published'] == (what != 'rejected')
    assert rear.counts()['published'] == 1
    assert setup.said('on purpose')


def test_depth_that_nobody_can_get_is_not_counted_as_published(make, monkeypatch):
    """A lifecycle publisher that was deactivated meanwhile publishes nothing, without a word."""
    setup = make('')
    monkeypatch.setattr(Camera, 'is_active', lambda _camera: False)
    setup.send(RGB)
    counts = setup.cameras[0].counts()
    assert (counts['published'], counts['dropped']) == (0, 1)
    assert not setup.published


@pytest.mark.parametrize('error', [
    MemoryError(), RuntimeError('CUDA out of memory. Tried to allocate'),
    RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
    RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'),
    RuntimeError('cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED'),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_is_short_once_costs_nothing(error, make):
    setup = make('', 'rear')
    setup.error, setup.times = error, 1
    setup.send(BAD, RGB)
    assert [camera.counts()['published'] for camera in setup.cameras] == [1, 1]
    assert setup.said(type(error).__name__)
    setup.times = 10
    setup.send(BAD)
    assert setup.cameras[0].counts()['rejected'] == 1


@pytest.mark.parametrize('text', [
    'CUDA error: an illegal memory access was encountered', 'cuDNN error: CUDNN_STATUS_X'])
def test_a_device_that_fails_ends_it_with_the_reason(text, make):
    setup = make('front', 'rear')
    setup.error = RuntimeError(text)
    with pytest.raises(DeviceLostError, match=f'{text}.*start the node anew'):
        setup.send(BAD)


def test_a_camera_info_that_is_replaced_meanwhile_is_read_once(monkeypatch):
    """Else the content of one message would stand for the camera of another."""
    wide, narrow = (serialize_message(camera_info(Header(), 80, 60, k=(focal, focal, 40.0, 30.0)))
                    for focal in (60.0, 90.0))
    context = CameraContext(messages.deserialize, NodeConfig())
    with monkeypatch.context() as patch:
        reads = itertools.cycle([wide, narrow])
        patch.setattr(CameraContext, 'camera_info', property(lambda _context: next(reads)),
                      raising=False)
        context.camera_model(80, 60)
    for info, focal in ((narrow, 90.0), (wide, 60.0)):
        context.on_camera_info(info)
        assert context.camera_model(80, 60).K[0, 0] == focal


# The worker's thread -----------------------------------------------------------------------------


class Slot:
    """Stands for a camera; only its identity and its account count."""

    def __init__(self):
        self.ends = []
        self.count = self.ends.append


@pytest.fixture
def worker(make, monkeypatch):
    """The worker of a setup, whose answers wait until the test lets them go on."""
    worker = make().worker
    worker.begun, worker.go_on, worker.batches = threading.Event(), threading.Event(), []

    def process_batch(batch):
        worker.batches.append((list(batch.items()), threading.get_ident()))
        worker.begun.set()
        assert worker.go_on.wait(PATIENCE)
    monkeypatch.setattr(worker, 'process_batch', process_batch)
    return worker


def test_the_worker_takes_every_waiting_image_at_once_and_the_newest_of_each(worker):
    front, rear = Slot(), Slot()
    assert not worker.put(front, b'1')
    assert worker.begun.wait(PATIENCE)
    assert worker.busy_seconds() > 0
    assert [worker.put(rear, b'2'), worker.put(front, b'3'), worker.put(rear, b'4')] == \
        [False, False, True]
    worker.go_on.set()
    thread = worker.submit(threading.get_ident).result(PATIENCE)
    assert worker.batches == [
        ([(front, b'1')], thread), ([(rear, b'4'), (front, b'3')], thread)]
    assert worker.busy_seconds() == 0


def test_images_that_wait_can_be_left_and_are_counted(worker):
    front, rear = Slot(), Slot()
    worker.put(front, b'1')
    assert worker.begun.wait(PATIENCE)
    worker.put(rear, b'2')
    worker.clear()
    worker.go_on.set()
    worker.submit(bool).result(PATIENCE)
    assert [cameras for cameras, _ in worker.batches if cameras] == [[(front, b'1')]]
    assert (front.ends, rear.ends) == ([], ['dropped'])


def test_the_worker_hands_over_what_an_answer_raises_and_goes_on(make, monkeypatch):
    setup = make()
    monkeypatch.setattr(setup.worker, 'process_batch', fail)
    for _ in range(2):
        setup.worker.put(Slot(), b'1')
        setup.worker.submit(bool).result(PATIENCE)
    assert [(who, type(error)) for who, error in setup.crashes] == \
        [(setup.worker, BrokenError)] * 2


# Counters and words ------------------------------------------------------------------------------


def test_values_fade_and_percentiles_are_nearest_rank_over_a_bounded_window(monkeypatch):
    clock = types.SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(camera_module, 'time', clock)
    monkeypatch.setattr(camera_module, 'WINDOW_SAMPLES', 100)
    window = RollingWindow()
    assert math.isnan(window.percentile(50))
    assert math.isnan(window.mean())
    for value in range(1, 1001):
        window.add(value)
    assert [window.percentile(p) for p in (1, 50, 99, 100)] == [901, 950, 999, 1000]
    means = []
    for passed, value in ((6.0, 1.0), (3.0, 3.0), (3.0, None), (3.0, None)):
        clock.now += passed
        if value:
            window.add(value)
        means.append(window.mean())
    assert means[:3] == [1.0, 2.0, 3.0]
    assert math.isnan(means[3])


def test_each_matter_is_said_once_in_a_while():
    said = []
    log = types.SimpleNamespace(warning=lambda text: said.append(('warning', text)),
                                error=lambda text: said.append(('error', text)))
    node = types.SimpleNamespace(get_logger=lambda: log)
    throttled = ThrottledLog(node, 'front: ')
    for key in ('a', 'b', 'a', 'b'):
        throttled.write(key, key.upper())
    throttled.write('c', 'C', 'error')
    assert said == [('warning', 'front: A'), ('warning', 'front: B'), ('error', 'front: C')]
    always = ThrottledLog(node, period=0.0)
    for _ in range(2):
        always.write('a', 'again')
    assert said[3:] == [('warning', 'again')] * 2


def test_the_summary_tells_the_whole_account():
    counts = Counter(received=10, published=4, dropped=2, idle=1, pending=1, rejected=2)
    counts.update({'rejected: wrong step': 2, 'no cloud: absent': 3})
    assert account_summary(counts) == (
        '10 received = 4 published + 2 dropped + 2 rejected + 1 idle + 1 pending; idle: nobody '
        'subscribed to an output; no cloud: absent: 3; rejected: wrong step: 2')


# The process -------------------------------------------------------------------------------------

STUCK = """
import sys, threading, time
from depthclip_ros.node import process
process.JOIN_TIMEOUT = 0.1
if 'stuck' in sys.argv:
    threading.Thread(target=time.sleep, args=(3600,)).start()
print('said', end='')
process.end_process(3)
"""
def python(code, *arguments, **options):
    return subprocess.run([sys.executable, '-c', code, *arguments], cwd=ROOT, check=False,
                          capture_output=True, text=True, timeout=PATIENCE, **options)


@pytest.mark.parametrize('arguments', [(), ('stuck',)])
def test_a_process_ends_with_or_without_its_threads(arguments):
    done = python(STUCK, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (3, 'said', '')
