# SPDX-License-Identifier: Apache-2.0
"""What is noticed of stamps, clocks, pictures and limits, and what is not."""

from __future__ import annotations

import math
import struct
import threading
import types

import pytest

pytest.importorskip('rclpy')

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.serialization import serialize_message
from ros_harness import camera_info, image, node_here
from std_msgs.msg import Header

from depthclip_ros.node import stamps as stamps_module
from depthclip_ros.node import statistics as statistics_module
from depthclip_ros.node import watchdog as watchdog_module
from depthclip_ros.node.camera import Camera
from depthclip_ros.node.config import NodeConfig
from depthclip_ros.node.stamps import ClockWatch, Stamps
from depthclip_ros.node.statistics import Recent
from depthclip_ros.node.watchdog import ERROR, OK, WARN, Watchdog, limit_level

ORDERS = {'<': b'\x00\x01\x00\x00', '>': b'\x00\x00\x00\x00'}


class Clock:
    """Stands for the module `time`: steady time that the test moves."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (stamps_module, statistics_module, watchdog_module):
        monkeypatch.setattr(module, 'time', clock)
    return clock


def feed(stamps, clock, *readings, order='<'):
    """Messages by (seconds since the one before, stamp)."""
    for passed, stamp in readings:
        clock.now += passed
        seconds = math.floor(stamp)
        raw = ORDERS[order] + struct.pack(f'{order}iI', seconds, int((stamp - seconds) * 1e9))
        stamps.observe(raw, clock.now)


@pytest.mark.parametrize('order', ORDERS)
def test_stamps_that_go_on_are_fine(order, clock):
    stamps = Stamps()
    feed(stamps, clock, (0, 5.0), (0.1, 5.1), (0.1, 5.2), (60, 65.2), (60, 65.4), order=order)
    assert (stamps.back, stamps.ahead, stamps.repeated, stamps.event()) == (0, 0, 0, '')
    assert stamps.standstill() == 0.0
    assert stamps.last == pytest.approx(65.4)


def test_stamps_that_jump_are_told_for_a_while(clock):
    stamps = Stamps()
    feed(stamps, clock, (0, 100.0), (0.1, 40.0))
    assert (stamps.back, stamps.event()) == (1, 'stamps went back by 60 s')
    feed(stamps, clock, (0.1, 90.0))
    assert (stamps.ahead, stamps.event()) == (1, 'stamps jumped ahead by 50 s')
    clock.now += 11
    assert stamps.event() == ''


def test_stamps_that_stand_still(clock):
    stamps = Stamps()
    feed(stamps, clock, (0, 3.0), (2, 3.0), (2, 3.0))
    assert (stamps.repeated, stamps.standstill()) == (2, 4.0)
    feed(stamps, clock, (0.1, 3.1))
    assert (stamps.repeated, stamps.standstill()) == (0, 0.0)


def test_negative_stamps_and_scraps_of_messages_are_no_trouble(clock):
    stamps = Stamps()
    stamps.observe(b'\x00\x01\x00\x00\x01', clock.now)
    feed(stamps, clock, (0, -5.0), (0.1, -4.9))
    assert stamps.last == pytest.approx(-4.9)
    assert not stamps.back


@pytest.fixture
def ros_clock(clock):
    """The node's clock, and a watch of it."""
    ros = types.SimpleNamespace(nanoseconds=0, ros_time_is_active=False)
    ros.now = lambda: ros
    watch = ClockWatch(types.SimpleNamespace(get_clock=lambda: ros))

    def look(passed, seconds):
        clock.now += passed
        ros.nanoseconds += int(seconds * 1e9)
        return watch.look(5.0)
    return ros, look


def test_a_clock_that_is_set_is_noticed(ros_clock):
    _, look = ros_clock
    assert [look(1, 1), look(1, 1.5), look(10, 10)] == ['', '', '']
    assert look(1, -60) == 'the clock went back by 61 s'
    assert look(1, 1) == 'the clock went back by 61 s', 'for a while'
    assert look(20, 20) == ''
    assert look(1, 3600) == 'the clock jumped ahead by 3.6e+03 s'


def test_simulated_time_may_run_faster_but_not_back_or_stand(ros_clock):
    ros, look = ros_clock
    ros.ros_time_is_active = True
    assert [look(1, 10), look(1, 0.1), look(1, 0)] == ['', '', '']
    assert look(1, -30) == 'simulated time went back by 30 s'
    assert look(20, 1) == ''
    assert look(6, 0) == 'simulated time stands still for 6 s'


@pytest.mark.parametrize(('value', 'limit', 'most', 'level'), [
    (1.0, 2.0, math.inf, OK), (2.0, 2.0, math.inf, OK), (2.1, 2.0, math.inf, WARN),
    (4.0, 2.0, math.inf, ERROR), (math.nan, 2.0, math.inf, OK), (1e9, 0.0, math.inf, OK),
    (0.95, 0.9, 1.0, WARN), (1.0, 0.9, 1.0, ERROR), (1.0, 1.0, 1.0, ERROR), (0.5, 0.5, 1.0, OK)])
def test_levels_of_limits(value, limit, most, level):
    assert limit_level(value, limit, most) == level


@pytest.fixture
def camera(domain, clock):
    with node_here(domain, LifecycleNode, 'watched') as node:
        camera = Camera(node, NodeConfig(), '', threading.Condition())
        camera.subscribe()
        camera.last_image = camera.last_info = clock.now
        yield camera
        camera.destroy()


@pytest.fixture
def look(camera, clock):
    """Let seconds pass, one image each, and give the keys of what is found at the end."""
    watchdog, sent = Watchdog(camera._node, camera), iter(range(10 ** 6))

    def look(seconds, picture=None, *, info=True, silent=False):
        for _ in range(seconds):
            clock.now += 1.0
            if not silent:
                number = next(sent)
                pixels = np.full((4, 4, 3), number % 251 if picture is None else picture, np.uint8)
                message = image(Header(), pixels, 'rgb8')
                message.header.stamp.sec = 1000 + number
                raw = bytearray(serialize_message(message))
                raw[17:20] = [number % 256] * 3  # behind the empty frame_id: a gap holds anything
                camera._on_image(bytes(raw))
                camera.last_image = clock.now
                camera.stamps._arrived = clock.now
                camera.stamps._event = ''
            if info:
                camera._on_info(serialize_message(camera_info(Header(), 4, 4)))
                camera.last_info = clock.now
            findings = watchdog.look()
        return {finding.key: finding for finding in findings}
    return look


def test_nothing_is_found_of_a_camera_that_is_well(look, camera):
    camera.config = camera.config.replace(max_drop_share=0.0)  # nobody takes these images
    assert look(30) == {}


def test_a_frozen_picture_is_found_until_it_moves(look, camera):
    camera.config = camera.config.replace(max_drop_share=0.0)
    assert 'frozen picture' not in look(10, picture=5)
    found = look(3, picture=5)['frozen picture']
    assert (found.level, found.words) == (WARN, 'the same picture for 12 s')
    assert look(1, picture=6) == {}
    camera.config = camera.config.replace(frozen_timeout=0.0)
    assert look(30, picture=5) == {}


def test_silent_and_absent_camera_info(look, camera, monkeypatch):
    camera.config = camera.config.replace(max_drop_share=0.0)
    camera.first_image = 1000.0
    assert list(look(6, info=False)) == ['no camera_info']
    assert look(2) == {}
    assert list(look(6, info=False)) == ['camera_info silent']
    monkeypatch.setattr(type(camera), 'info_is_latched', True)
    assert look(6, info=False) == {}
    assert list(look(6, info=False, silent=True)) == ['no image']


def test_dropped_images_beyond_the_limit(look, camera):
    found = look(30)['dropped']
    assert (found.level, found.words) == (ERROR, '100 % of the images dropped')


@pytest.mark.parametrize(('age', 'key', 'level'), [
    (0.5, None, OK), (3.0, 'old depth', WARN), (4.1, 'old depth', ERROR),
    (-3.0, 'stamps ahead', WARN)])
def test_age_beyond_the_limit(age, key, level, look, camera):
    camera.config = camera.config.replace(max_drop_share=0.0)
    camera.recent_ages.add(age)
    found = look(1)
    assert list(found) == ([key] if key else [])
    assert not key or found[key].level == level


@pytest.mark.parametrize(('share', 'level'), [(0.5, OK), (0.6, WARN), (1.0, ERROR)])
def test_nan_beyond_the_limit(share, level, look, camera):
    camera.config = camera.config.replace(max_drop_share=0.0)
    camera.nan_shares.add(share)
    found = look(1)
    assert [f.level for f in found.values()] == ([] if level == OK else [level])


def test_recent_values_fade(clock):
    recent = Recent(seconds=5.0)
    recent.add(1.0)
    clock.now += 3.0
    recent.add(3.0)
    assert recent.mean() == 2.0
    clock.now += 3.0
    assert recent.mean() == 3.0
    clock.now += 3.0
    assert math.isnan(recent.mean())
