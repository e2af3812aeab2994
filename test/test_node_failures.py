# SPDX-License-Identifier: Apache-2.0
"""Whatever raises costs one image: the pipeline, with failures put in its way."""

from __future__ import annotations

import time
import types

import pytest

pytest.importorskip('rclpy')

import numpy as np
from clip_standin import synthetic_rgb
from rclpy.lifecycle import LifecycleNode
from rclpy.serialization import serialize_message
from ros_harness import camera_info, image, node_here
from std_msgs.msg import Header

from depthclip_ros.core.errors import ImageError
from depthclip_ros.node.camera import Camera
from depthclip_ros.node.config import NodeConfig
from depthclip_ros.node.model import DeviceLostError, Model, is_of_device, is_out_of_memory
from depthclip_ros.node.pipeline import Pipeline

RGB = synthetic_rgb(3, 60, 80)
MARK = 7  # of all pixels of an image that the model fails on
BAD = np.full_like(RGB, MARK)
OUT_OF_MEMORY = [
    MemoryError(), RuntimeError('CUDA out of memory. Tried to allocate'),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")]


class Setup:
    """A pipeline on a real node, whose publishers only take note, and a model that fails."""

    def __init__(self, node, estimator, monkeypatch, names):
        self.estimator, self.error, self.times = estimator, RuntimeError('on purpose'), 10 ** 6
        self.published, self.log = [], []
        monkeypatch.setattr(node, 'get_logger', lambda: types.SimpleNamespace(**{
            level: lambda text, level=level: self.log.append((level, text))
            for level in ('debug', 'info', 'warning', 'error')}))
        self.cameras = [Camera(node, NodeConfig(), name) for name in names]
        monkeypatch.setattr(Camera, 'wanted', lambda _camera, _topic: True)
        monkeypatch.setattr(Camera, 'is_active', lambda _camera: True)
        monkeypatch.setattr(Camera, 'publish', lambda camera, topic, _message:
                            self.published.append((camera.name, topic)))
        self.model = Model()
        self.model.estimator = estimator
        self.pipeline = Pipeline(node, self.model, estimator.config)
        original = estimator.predict

        def predict(images, *more, **options):
            if self.times and any((picture == MARK).all() for picture in images):
                self.times -= 1
                raise self.error
            return original(images, *more, **options)
        monkeypatch.setattr(estimator, 'predict', predict)

    def send(self, *pictures, stamp=(1, 0)):
        """One batch: an image of each camera, as if it had just come."""
        batch, worker = {}, types.SimpleNamespace(put=lambda c, raw: batch.update({c: raw}))
        for camera, picture in zip(self.cameras, pictures, strict=False):
            message = image(Header(), picture, 'rgb8')
            message.header.stamp.sec, message.header.stamp.nanosec = stamp
            camera._worker = worker
            camera._on_image(serialize_message(message))
        try:
            self.pipeline.answer(list(batch.items()))
        finally:
            for camera in self.cameras:
                account = camera.counters()
                assert account.pending == 0
                assert account.received == account.published + account.total_rejected() \
                    + account.dropped + account.idle


@pytest.fixture
def make(domain, estimator, monkeypatch):
    config = estimator.config
    with node_here(domain, LifecycleNode, 'failures') as node:
        yield lambda *names: Setup(node, estimator, monkeypatch, names)
    estimator.reconfigure(config)


def test_one_camera_s_image_costs_nobody_else_s(make):
    setup = make('front', 'rear', 'side')
    setup.send(RGB, BAD, RGB)
    assert [name for name, topic in setup.published if topic == 'depth/image'] == \
        ['front', 'side']
    assert [c.counters().rejected for c in setup.cameras] == \
        [{}, {'RuntimeError in prediction': 1}, {}]


def test_all_depth_goes_before_the_slower_outputs_of_any(make):
    setup = make('a', 'b')
    setup.send(RGB, RGB)
    assert setup.published[:2] == [('a', 'depth/image'), ('b', 'depth/image')]
    assert ('b', 'depth/image_color') in setup.published[2:]
    assert setup.pipeline.batch_sizes.percentile(100) == 2


def test_the_traceback_comes_once_a_cause(make):
    setup = make('')
    for _ in range(3):
        setup.send(BAD)
        setup.send(RGB)
    tracebacks = [(level, text) for level, text in setup.log if 'Traceback' in text]
    assert [level for level, _ in tracebacks] == ['error', 'debug', 'debug']
    assert 'on purpose' in tracebacks[0][1]
    assert 'RuntimeError: on purpose' in setup.cameras[0].last_error


def test_what_a_message_quotes_does_not_fill_the_log(make):
    setup = make('')
    setup.error = ValueError('x' * 10 ** 6)
    setup.send(BAD)
    assert max(len(text) for _, text in setup.log) < 10_000
    assert len(setup.cameras[0].last_error) < 1000


@pytest.mark.parametrize('stamp', [
    (-1, 0), (-2 ** 31, 0), (1, 2 ** 32 - 1), (2 ** 31 - 1, 0), ('now', 10 ** 9)])
def test_impossible_stamps_are_foreign_stamps(stamp, make):
    setup, (seconds, nanoseconds) = make(''), stamp
    setup.send(RGB, stamp=(int(time.time()) if seconds == 'now' else seconds, nanoseconds))
    camera = setup.cameras[0]
    assert camera.counters().published == 1
    assert camera.foreign_stamps == 1


class BrokenError(Exception):
    """Nothing that anybody expects."""


def fail(*_, **__):
    raise BrokenError('on purpose')


@pytest.mark.parametrize(('topic', 'kind'), [
    ('depth/image', 'rejected'), ('points', 'no cloud'), ('depth/words', 'no pictures')])
def test_failing_publication_is_counted(topic, kind, make, monkeypatch):
    setup = make('front', 'rear')
    front, rear = setup.cameras
    for camera in setup.cameras:
        camera.calibration.update(serialize_message(camera_info(Header(), 80, 60)))
    note = Camera.publish

    def publish(camera, to, message):
        if (camera, to) == (front, topic):
            fail()
        note(camera, to, message)
    monkeypatch.setattr(Camera, 'publish', publish)
    setup.send(RGB, RGB)
    assert list(front.counters().causes()) == [(f'{kind}: BrokenError in publication', 1)]
    assert front.counters().published == (kind != 'rejected')
    assert rear.counters().published == 1
    assert not rear.counters().conditions()
    assert not setup.model.last_error, 'the model is not to blame'


@pytest.mark.parametrize(('step', 'kind'), [
    ('_check_aspect', 'rejected'), ('_note_age', 'rejected'), ('_note_focal', 'no pictures'),
    ('_tell_anchor', 'no pictures')])
def test_what_only_notes_costs_no_more_than_its_image(step, kind, make, monkeypatch):
    setup = make('')
    monkeypatch.setattr(setup.pipeline, step, fail)
    setup.send(RGB)
    setup.send(RGB)
    counters = setup.cameras[0].counters()
    assert sum(count for cause, count in counters.causes()
               if cause.startswith(f'{kind}: BrokenError in')) == 2
    assert any('on purpose' in text for level, text in setup.log if level == 'error')


def test_depth_that_nobody_can_get_is_not_counted_as_published(make, monkeypatch):
    """A lifecycle publisher that was deactivated meanwhile publishes nothing, without a word."""
    setup = make('')
    monkeypatch.setattr(Camera, 'is_active', lambda _camera: False)
    setup.send(RGB)
    counters = setup.cameras[0].counters()
    assert (counters.published, counters.dropped) == (0, 1)
    assert not setup.published


def test_images_that_the_model_refuses_are_no_failures_of_it(make):
    setup = make('')
    setup.error = ImageError('not an RGB image', 'it is not.')
    setup.send(BAD)
    assert setup.cameras[0].counters().rejected == {'not an RGB image': 1}
    assert not setup.model.last_error


@pytest.mark.parametrize('error', OUT_OF_MEMORY)
def test_memory_that_is_short_once_costs_nothing(error, make):
    setup = make('')
    setup.error, setup.times = error, 1
    setup.send(BAD)
    assert setup.cameras[0].counters().published == 1
    assert type(error).__name__ in setup.model.last_error
    setup.times = 10
    setup.send(BAD)
    assert setup.cameras[0].counters().total_rejected() == 1


@pytest.mark.parametrize('text', [
    'CUDA error: an illegal memory access was encountered', 'cuDNN error: CUDNN_STATUS_X'])
def test_a_device_that_fails_ends_it_with_the_reason(text, make):
    setup = make('front', 'rear')
    setup.error = RuntimeError(text)
    with pytest.raises(DeviceLostError, match=f'{text}.*start the node anew'):
        setup.send(BAD)


def test_errors_of_the_device_are_told_from_others():
    import torch
    assert is_out_of_memory(torch.cuda.OutOfMemoryError('CUDA out of memory.'))
    assert all(map(is_out_of_memory, OUT_OF_MEMORY))
    assert not any(map(is_of_device, [*OUT_OF_MEMORY, RuntimeError('shape mismatch')]))


@pytest.mark.parametrize(('shape', 'words'), [
    ((60, 80, 3), ''), ((60, 81, 3), ''), ((45, 80, 3), '25 % narrower'),
    ((80, 60, 3), '44 % lower')])
def test_images_of_another_aspect_ratio_are_counted_and_said_once(shape, words, make):
    setup = make('')
    picture = synthetic_rgb(3, 100, 100)[:shape[0], :shape[1]]
    for _ in range(2):
        setup.send(picture)
    said = [text for _, text in setup.log if 'stretched' in text]
    assert setup.cameras[0].stretched == (2 if words else 0)
    assert len(said) == bool(words)
    assert all(words in text and 'input_height' in text for text in said)
