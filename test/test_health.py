# SPDX-License-Identifier: Apache-2.0
"""What is noticed of a camera's images and of the clock, and what is not."""

from __future__ import annotations

import re
import types

import pytest

pytest.importorskip('rclpy')

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.serialization import serialize_message
from ros_harness import ROOT, camera_info, image, node_here, values_of
from std_msgs.msg import Header

from depthclip_ros.core.anchor import State
from depthclip_ros.messages import message_types as messages
from depthclip_ros.messages.anchors import Anchor, AnchorSensor
from depthclip_ros.messages.node_config import NodeConfig
from depthclip_ros.node import camera as camera_module
from depthclip_ros.node import findings as findings_module
from depthclip_ros.node import health as health_module
from depthclip_ros.node.camera import Camera, RollingWindow
from depthclip_ros.node.findings import ERROR, WARN
from depthclip_ros.node.health import OK, CameraHealth, NodeHealth

RAW = serialize_message(image(Header(), np.zeros((4, 4, 3), np.uint8), 'rgb8'))
INFO = serialize_message(camera_info(Header(), 4, 4))


@pytest.fixture
def clock(monkeypatch):
    """Steady time that the test moves."""
    clock = types.SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    for module in (camera_module, findings_module, health_module):
        monkeypatch.setattr(module, 'time', clock)
    return clock


class Watched:
    """A camera whose images the test sends, and what is told of it once a second."""

    def __init__(self, node, clock, **settings):
        self.clock = clock
        self.camera = Camera(node, NodeConfig().replace(**settings), '')
        self.answered = True
        self.camera.subscribe(self._put, None)
        self.activate(node)

    def activate(self, node):
        self.health = CameraHealth(node, self.camera, types.SimpleNamespace(
            network_ms=RollingWindow(), overhead_ms=RollingWindow()))

    def _put(self, camera, _raw):
        if self.answered:
            camera.count('published')
        return not self.answered

    def pass_seconds(self, seconds, *, images=1, info=True):
        for _ in range(seconds):
            self.clock.now += 1.0
            for _ in range(images):
                self.camera._on_image(RAW)
            if info:
                self.camera.context.on_camera_info(INFO)
            status = self.health.update(self.camera.config)
        return status


@pytest.fixture
def watch(domain, clock):
    with node_here(domain, LifecycleNode, 'watched') as node:
        yield lambda **settings: Watched(node, clock, **settings)


def test_nothing_is_found_of_a_camera_that_is_well(watch):
    """Its picture may be the same for ever, as a simulator's of a parked robot."""
    status = watch().pass_seconds(30)
    assert (status.level, status.message) == (OK, '1.0 Hz')


def test_absent_camera_info_and_silence(watch):
    watched = watch()
    assert watched.pass_seconds(7, info=False).message == 'no camera_info'
    assert watched.pass_seconds(2).level == OK
    status = watched.pass_seconds(6, images=0)
    assert (status.level, status.message) == (WARN, 'no image')


def test_dropped_images_are_no_fault(watch):
    """The newest image wins, by design: at 30 Hz on a slow CPU most are dropped."""
    watched = watch()
    watched.answered = False
    assert watched.pass_seconds(10, images=10).level == OK


def test_images_that_the_middleware_loses_are_told(watch):
    watched = watch()
    assert watched.pass_seconds(2, images=10).level == OK
    watched.camera._on_lost(3)
    status = watched.pass_seconds(1, images=10)
    assert (status.level, status.message) == (WARN, 'images are lost before they arrive')
    assert watched.pass_seconds(6, images=10).level == OK


@pytest.mark.parametrize(('scale', 'level'), [(0.06, WARN), (1.3, OK), (11.0, WARN)])
def test_a_scale_that_nobody_expects_is_a_warning_with_its_numbers(scale, level, watch):
    watched = watch(anchor='points')
    anchor = Anchor(AnchorSensor(watched.camera.config, '/points', messages.deserialize),
                    watched.camera.config)
    anchor.filter.state = State(
        scale=scale, agreeing_fraction=0.6, points=960, patches=30, condition='', anchored=True)
    watched.camera.context.anchor = anchor
    status = watched.pass_seconds(1)
    assert status.level == level
    if level == WARN:
        for number in (f'{scale:.3g}', '60 %', '960', '30'):
            assert number in status.message


@pytest.mark.parametrize(('age', 'words', 'level'), [
    (0.5, 'Hz', OK), (3.0, 'depth is 3.0 s old', WARN), (4.1, 'depth is 4.1 s old', ERROR),
    (-3.0, 'depth is -3.0 s old', WARN)])
def test_age_beyond_the_limit(age, words, level, watch):
    watched = watch()
    watched.clock.now += 1.0
    watched.camera.ages.add(age)
    status = watched.pass_seconds(1)
    assert status.level == level
    assert words in status.message


@pytest.mark.parametrize(('share', 'level'), [(0.5, OK), (0.6, WARN), (1.0, ERROR)])
def test_nan_beyond_the_limit(share, level, watch):
    watched = watch()
    watched.camera.nan_fractions.add(share)
    status = watched.pass_seconds(1)
    assert status.level == level
    assert ('NaN' in status.message) == (level != OK)


def test_what_was_before_the_activation_is_not_news(watch, domain):
    """Neither its rejections nor its rate; the account goes on."""
    watched = watch()
    watched.camera.count('no cloud', 'all zeros')
    status = watched.pass_seconds(1, images=1000)
    assert (status.level, status.message) == (WARN, 'no cloud: all zeros')
    watched.clock.now += 100.0
    watched.activate(watched.camera._node)
    watched.camera.last_image_time = watched.clock.now
    status = watched.pass_seconds(10)
    assert (status.level, status.message) == (OK, '1.0 Hz')
    assert values_of(status)['no cloud: all zeros'] == '1'
    assert values_of(status)['received'] == '1010'


def test_every_key_is_in_the_reference_and_the_other_way_round(watch, estimator):
    """Of a node with a model, and of a camera with an anchor, scenes and one of each cause."""
    watched = watch(anchor='points')
    camera, worker = watched.camera, types.SimpleNamespace(
        estimator=estimator, busy_seconds=lambda: 0.0)
    camera.context.anchor = Anchor(
        AnchorSensor(camera.config, '/points', messages.deserialize), camera.config)
    camera.context.anchor.conditions['stamps apart'] += 1
    estimator.reconfigure(estimator.config.replace(scenes=['room', 'hall']))
    camera.context.scene = estimator.predict(np.zeros((60, 80, 3), np.uint8)).scene
    for cause in ('rejected', 'no cloud', 'no pictures'):
        camera.count(cause, 'all zeros')
    status, _ = NodeHealth(camera._node).update(
        worker, (estimator.config, camera.config), None, 'active')
    keys = [pair.key for part in (status, watched.pass_seconds(1)) for pair in part.values]
    page = (ROOT / 'docs/reference/diagnostics.md').read_text(encoding='utf-8')
    patterns = [re.escape(key).replace('…', '.+') for key in re.findall(r'(?m)^\| `(.+?)`', page)]
    assert patterns
    for pattern in patterns:
        assert any(re.fullmatch(pattern, key) for key in keys), pattern
    for key in keys:
        assert any(re.fullmatch(pattern, key) for pattern in patterns), key


def test_simulated_time_may_not_stand_still(clock):
    ros = types.SimpleNamespace(nanoseconds=1, ros_time_is_active=True)
    ros.now = lambda: ros
    health = NodeHealth(types.SimpleNamespace(
        get_clock=lambda: ros, get_fully_qualified_name=lambda: '/eye'))

    def look(state='active'):
        status, found = health.update(None, (NodeConfig(), NodeConfig()), None, state)
        assert status.name == 'eye: model'
        return found
    assert look() == []
    clock.now += 6.0
    finding, = look()
    assert finding.summary == 'simulated time stands still for 6 s'
    assert '--clock' in finding.sentence
    assert look('inactive') == []
    clock.now += 6.0
    ros.nanoseconds += 1
    assert look() == []
    ros.ros_time_is_active = False
    clock.now += 60.0
    assert look() == []
