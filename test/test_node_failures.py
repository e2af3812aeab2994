# SPDX-License-Identifier: Apache-2.0
"""Whatever raises costs one image: the pipeline and the model, with failures put in their way."""

from __future__ import annotations

import threading
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
from depthclip_ros.node.model import FAILURES, RELOADS, HopelessError, Model, is_of_device
from depthclip_ros.node.pipeline import Pipeline

RGB = synthetic_rgb(3, 60, 80)
MARK = 7  # of all pixels of an image that the model fails on


class Setup:
    """A pipeline on a real node, whose publishers only take note, and a model that fails."""

    def __init__(self, node, estimator, monkeypatch, names):
        self.estimator, self.error = estimator, RuntimeError('on purpose')
        self.published, self.log, self.breaks, self.loads = [], [], [], []
        self.log_of_node, self.load_error, self.goes_on = [], None, True
        monkeypatch.setattr(node, 'get_logger', lambda: types.SimpleNamespace(**{
            level: lambda text, level=level: self.log_of_node.append((level, text))
            for level in ('debug', 'info', 'warning', 'error')}))
        self.cameras = [Camera(node, NodeConfig(), name, threading.Condition()) for name in names]
        for camera in self.cameras:
            monkeypatch.setattr(camera.outputs, 'any_wanted', lambda: True)
            for method in ('publish_depth', 'publish_projected', 'publish_pictures'):
                monkeypatch.setattr(
                    camera.outputs, method, lambda *_, method=method, camera=camera, **__:
                    self.published.append((camera.name, method)))
        self.model = Model(self._load, self.log.append)
        self.model.load(estimator.config)
        self.pipeline = Pipeline(node, self.model, estimator.config, self._sleep)
        original = estimator.predict

        def predict(images, *more, **options):
            if any((picture == MARK).all() for picture in images):
                raise self.error
            return original(images, *more, **options)
        monkeypatch.setattr(estimator, 'predict', predict)

    def _load(self, config):
        self.loads.append(config)
        if self.load_error:
            raise self.load_error
        return self.estimator

    def _sleep(self, seconds):
        self.breaks.append(seconds)
        return self.goes_on

    def send(self, *pictures, stamp=(1, 0)):
        """One batch: an image of each camera, as if it had just come."""
        batch = []
        for camera, picture in zip(self.cameras, pictures, strict=False):
            message = image(Header(), picture, 'rgb8')
            message.header.stamp.sec, message.header.stamp.nanosec = stamp
            camera._on_image(serialize_message(message))
            batch.append((camera, camera.take()))
        self.pipeline.answer(batch)
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


BAD = np.full_like(RGB, MARK)


def test_one_camera_s_image_costs_nobody_else_s(make):
    setup = make('front', 'rear', 'side')
    setup.send(RGB, BAD, RGB)
    assert [name for name, method in setup.published if method == 'publish_depth'] == \
        ['front', 'side']
    assert [c.counters().rejected for c in setup.cameras] == \
        [{}, {'RuntimeError in prediction': 1}, {}]
    assert setup.loads == [setup.estimator.config], 'it was loaded anew'


def test_the_traceback_comes_once_a_cause(make):
    setup = make('')
    for _ in range(3):
        setup.send(BAD)
        setup.send(RGB)
    tracebacks = [(level, text) for level, text in setup.log_of_node if 'Traceback' in text]
    assert [level for level, _ in tracebacks] == ['error', 'debug', 'debug']
    assert 'on purpose' in tracebacks[0][1]
    assert 'RuntimeError: on purpose' in setup.cameras[0].last_error


def test_what_a_message_quotes_does_not_fill_the_log(make):
    setup = make('')
    setup.error = ValueError('x' * 10 ** 6)
    setup.send(BAD)
    assert max(len(text) for _, text in setup.log_of_node) < 10_000
    assert len(setup.cameras[0].last_error) < 1000


@pytest.mark.parametrize('stamp', [
    (-1, 0), (-2 ** 31, 0), (1, 2 ** 32 - 1), (2 ** 31 - 1, 0), ('now', 10 ** 9)])
def test_impossible_stamps_are_foreign_stamps(stamp, make):
    setup, (seconds, nanoseconds) = make(''), stamp
    setup.send(RGB, stamp=(int(time.time()) if seconds == 'now' else seconds, nanoseconds))
    camera = setup.cameras[0]
    assert camera.counters().published == 1
    assert camera.foreign_stamps == 1


@pytest.mark.parametrize(('method', 'kind'), [
    ('publish_depth', 'rejected'), ('publish_projected', 'unprojected'),
    ('publish_pictures', 'unpictured')])
def test_failing_publication_is_counted(method, kind, make, monkeypatch):
    setup = make('front', 'rear')
    front = setup.cameras[0]
    front.calibration.update(serialize_message(camera_info(Header(), 80, 60)))

    def fail(*_, **__):
        raise np.linalg.LinAlgError('singular')
    monkeypatch.setattr(front.outputs, method, fail)
    setup.send(RGB, RGB)
    counted = getattr(front.counters(), kind)
    assert sum(counted.values()) == 1
    assert next(iter(counted)).startswith('LinAlgError in p')
    assert front.counters().published == (kind != 'rejected')
    assert setup.cameras[1].counters().published == 1
    assert not setup.model.last_error, 'the model is not to blame'


def test_failing_decoding_is_counted(make, monkeypatch):
    setup = make('')
    monkeypatch.setattr(setup.cameras[0], 'decode', lambda _raw: 1 / 0)
    for _ in range(2 * FAILURES):
        setup.send(RGB)
    assert setup.cameras[0].counters().rejected == \
        {'ZeroDivisionError in decoding': 2 * FAILURES}
    assert not setup.model.reloads


def test_images_that_the_model_refuses_are_no_failures_of_it(make):
    setup = make('')
    setup.error = ImageError('not an RGB image', 'it is not.')
    for _ in range(2 * FAILURES):
        setup.send(BAD)
    assert setup.cameras[0].counters().rejected == {'not an RGB image': 2 * FAILURES}
    assert not setup.model.reloads


def test_failures_in_a_row_load_the_model_anew(make):
    setup = make('')
    for _ in range(FAILURES - 1):
        setup.send(BAD)
    setup.send(RGB)
    for _ in range(FAILURES - 1):
        setup.send(BAD)
    assert setup.model.reloads == 0
    setup.send(BAD)
    assert setup.model.reloads == 1
    assert setup.breaks == [0.0], 'the first time at once'
    assert setup.loads[1:] == [setup.estimator.config]
    setup.send(RGB)
    assert setup.cameras[0].counters().published == 2


@pytest.mark.parametrize('error', [
    MemoryError(), RuntimeError('CUDA error: an illegal memory access was encountered'),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")])
def test_errors_of_the_device_load_the_model_anew_at_once(error, make):
    setup = make('')
    setup.error = error
    setup.send(BAD)
    assert setup.model.reloads == 1
    setup.send(RGB)
    assert setup.cameras[0].counters().published == 1


def test_out_of_memory_of_torch_is_of_the_device():
    import torch
    assert is_of_device(torch.cuda.OutOfMemoryError('CUDA out of memory.'))
    assert not is_of_device(RuntimeError('shape mismatch'))


def test_reloads_take_longer_and_longer_breaks_and_end(make):
    setup = make('')
    setup.error = setup.load_error = RuntimeError('CUDA error: device lost')
    with pytest.raises(HopelessError, match=rf'{RELOADS} times.*device lost'):
        setup.send(BAD)
    assert len(setup.loads) - 1 == RELOADS == setup.model.reloads
    assert setup.breaks == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert setup.model.estimator is None


def test_failures_that_go_on_after_reloads_end_it(make):
    setup = make('')
    for _ in range((RELOADS + 1) * FAILURES - 1):
        setup.send(BAD)
    with pytest.raises(HopelessError):
        setup.send(BAD)
    assert setup.cameras[0].counters().total_rejected() == (RELOADS + 1) * FAILURES


def test_a_reload_that_is_given_up_is_made_up_for(make):
    """Deactivated in a break: the next images wait for the model, and none is lost uncounted."""
    setup = make('')
    setup.error = MemoryError()
    setup.goes_on = False
    setup.send(BAD)
    assert setup.model.estimator is None
    setup.send(RGB)
    assert setup.cameras[0].counters().dropped == 1
    setup.goes_on = True
    setup.send(RGB)
    assert setup.cameras[0].counters().published == 1


@pytest.mark.parametrize(('shape', 'words'), [
    ((60, 80, 3), ''), ((60, 81, 3), ''), ((45, 80, 3), '25 % narrower'),
    ((80, 60, 3), '44 % lower')])
def test_images_of_another_aspect_ratio_are_counted_and_said_once(shape, words, make):
    setup = make('')
    picture = synthetic_rgb(3, 100, 100)[:shape[0], :shape[1]]
    for _ in range(2):
        setup.send(picture)
    said = [text for _, text in setup.log_of_node if 'stretched' in text]
    assert setup.cameras[0].stretched == (2 if words else 0)
    assert len(said) == bool(words)
    assert all(words in text and 'input_fit' in text for text in said)


def test_cropped_images_are_not_stretched(make):
    setup = make('')
    setup.pipeline.config = setup.pipeline.config.replace(input_fit='crop')
    setup.send(synthetic_rgb(3, 100, 100)[:45, :80])
    assert setup.cameras[0].stretched == 0
