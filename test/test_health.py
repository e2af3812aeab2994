# SPDX-License-Identifier: Apache-2.0
"""What is noticed of a camera's images and of the clock, and what is not."""

from __future__ import annotations

import math
import types

import pytest

pytest.importorskip('rclpy')

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.serialization import serialize_message
from ros_harness import camera_info, image, node_here, values_of
from std_msgs.msg import Header

from depthclip_ros.node import camera as camera_module
from depthclip_ros.node import health as health_module
from depthclip_ros.node import statistics as statistics_module
from depthclip_ros.node.camera import Camera
from depthclip_ros.node.config import NodeConfig
from depthclip_ros.node.health import ERROR, OK, WARN, CameraHealth, ClockWatch, limit_level
from depthclip_ros.node.statistics import StageTimes

RAW = serialize_message(image(Header(), np.zeros((4, 4, 3), np.uint8), 'rgb8'))
INFO = serialize_message(camera_info(Header(), 4, 4))


@pytest.fixture
def clock(monkeypatch):
    """Steady time that the test moves."""
    clock = types.SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    for module in (camera_module, statistics_module, health_module):
        monkeypatch.setattr(module, 'time', clock)
    return clock


@pytest.mark.parametrize(('value', 'limit', 'most', 'level'), [
    (1.0, 2.0, math.inf, OK), (2.0, 2.0, math.inf, OK), (2.1, 2.0, math.inf, WARN),
    (4.0, 2.0, math.inf, ERROR), (math.nan, 2.0, math.inf, OK), (1e9, 0.0, math.inf, OK),
    (0.95, 0.9, 1.0, WARN), (1.0, 0.9, 1.0, ERROR), (1.0, 1.0, 1.0, ERROR), (0.5, 0.5, 1.0, OK)])
def test_levels_of_limits(value, limit, most, level):
    assert limit_level(value, limit, most) == level


class Watched:
    """A camera whose images the test sends, and what is told of it once a second."""

    def __init__(self, node, clock, **settings):
        self.clock = clock
        self.camera = Camera(node, NodeConfig().replace(**settings), '')
        self.answered = True
        self.camera.subscribe(self._put, None)
        self.activate(node)

    def activate(self, node):
        self.health = CameraHealth(node, self.camera, StageTimes())

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
                self.camera._on_info(INFO)
            status = self.health.look()
        return status


@pytest.fixture
def watch(domain, clock):
    with node_here(domain, LifecycleNode, 'watched') as node:
        yield lambda **settings: Watched(node, clock, **settings)


def test_nothing_is_found_of_a_camera_that_is_well(watch):
    """Its picture may be the same for ever, as a simulator's of a parked robot."""
    status = watch().pass_seconds(30)
    assert (status.level, status.message) == (OK, '1.0 Hz')


def test_silent_and_absent_camera_info(watch, monkeypatch):
    monkeypatch.setattr(Camera, 'info_is_latched', lambda _camera: False)
    watched = watch()
    assert watched.pass_seconds(7, info=False).message == 'no camera_info'
    assert watched.pass_seconds(2).level == OK
    assert watched.pass_seconds(6, info=False).message == 'camera_info silent for 6 s'
    status = watched.pass_seconds(6, images=0, info=False)
    assert (status.level, status.message) == (WARN, 'no image')


def test_latched_camera_info_may_be_silent(watch, monkeypatch):
    watched = watch()
    watched.pass_seconds(2)
    monkeypatch.setattr(Camera, 'info_is_latched', lambda _camera: True)
    assert watched.pass_seconds(20, info=False).level == OK


def test_dropped_images_are_a_fault_only_beyond_a_limit_that_was_set(watch):
    watched = watch()
    watched.answered = False
    assert watched.pass_seconds(10, images=10).level == OK
    watched = watch(max_drop_share=0.9)
    watched.answered = False
    status = watched.pass_seconds(10, images=10)
    assert (status.level, status.message) == (ERROR, '100 % of the images dropped')


@pytest.mark.parametrize(('age', 'words', 'level'), [
    (0.5, 'Hz', OK), (3.0, 'depth is 3.0 s old', WARN), (4.1, 'depth is 4.1 s old', ERROR),
    (-3.0, 'stamps are 3.0 s ahead', WARN)])
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
    watched.camera.nan_shares.add(share)
    status = watched.pass_seconds(1)
    assert status.level == level
    assert ('NaN' in status.message) == (level != OK)


def test_what_was_before_the_activation_is_not_news(watch, domain):
    """Neither its rejections nor its rate; the account goes on."""
    watched = watch()
    watched.camera.count_cause('no cloud', 'all zeros')
    status = watched.pass_seconds(1, images=1000)
    assert (status.level, status.message) == (WARN, 'all zeros')
    watched.clock.now += 100.0
    watched.activate(watched.camera._node)
    watched.camera.last_image = watched.camera.last_info = watched.clock.now
    status = watched.pass_seconds(10)
    assert (status.level, status.message) == (OK, '1.0 Hz')
    assert values_of(status)['no cloud: all zeros'] == '1'
    assert values_of(status)['received'] == '1010'


def test_simulated_time_may_not_stand_still(clock, monkeypatch):
    ros = types.SimpleNamespace(nanoseconds=1, ros_time_is_active=True)
    ros.now = lambda: ros
    watch = ClockWatch(types.SimpleNamespace(
        get_clock=lambda: ros, count_publishers=lambda _topic: 0))
    assert watch.look(5.0) == []
    clock.now += 6.0
    finding, = watch.look(5.0)
    assert finding.words == 'simulated time stands still for 6 s'
    assert '/clock has no publisher' in finding.sentence
    ros.nanoseconds += 1
    assert watch.look(5.0) == []
    ros.ros_time_is_active = False
    clock.now += 60.0
    assert watch.look(5.0) == []
