# SPDX-License-Identifier: Apache-2.0
"""A node under load for long: nothing grows and nothing is lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip('rclpy')

from clip_standin import synthetic_rgb
from lifecycle_msgs.msg import Transition
from ros_harness import OUTPUTS, PATIENCE, Peer, camera_info, image, running, tiny_arguments

HEIGHT, WIDTH = 96, 128
ROUND_TRIP = (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP,
              Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
SETTINGS = ({'tokens': ['near', 'middle', 'far'], 'bins': [1.0, 2.0, 4.0]},
            {'tokens': ['here', 'there'], 'bins': [0.5, 3.0]})
LIMIT = 5.0  # MiB


class Soak:
    """Keeps a node busy, and says what it holds."""

    def __init__(self, node, peer):
        self._node, self._peer, self._counts = node, peer, Counter()
        self._came = threading.Condition()
        self._message = image(peer.header(), synthetic_rgb(4, HEIGHT, WIDTH), 'rgb8')
        self._info = camera_info(peer.header(), WIDTH, HEIGHT)
        for topic, kind in OUTPUTS.items():
            peer.node.create_subscription(kind, topic, self._counter(topic), 10, raw=True)
        peer.ready(*OUTPUTS)
        peer.publisher('camera_info', type(self._info))

    def _counter(self, topic):
        def count(_raw):
            with self._came:
                self._counts[topic] += 1
                self._came.notify_all()
        return count

    def holdings(self, like=None):
        """Memory in MiB, and what else the node holds, when that is as before or after long."""
        process, end = Path(f'/proc/{self._node.process.pid}'), time.monotonic() + PATIENCE
        while True:
            count = sum(map(self._peer.node.count_subscribers, ('image', 'camera_info')))
            held = [len(list((process / part).iterdir())) for part in ('task', 'fd')] + [count]
            if like is None or held == like[1] or time.monotonic() > end:
                return self._node.memory_mb(), held
            time.sleep(0.2)

    def frames(self, count):
        """Answered images, each sent as soon as the last one's depth is there."""
        end = self._counts['depth/image'] + count
        while self._counts['depth/image'] < end:
            before = self._counts['depth/image']
            self._message.header = self._info.header = self._peer.header()
            self._peer.send(self._info)
            self._peer.send(self._message)
            with self._came:
                self._came.wait_for(lambda: self._counts['depth/image'] > before, 2.0)  # noqa: B023
            assert self._node.process.poll() is None, self._node.output[-3000:]

    def round_trips(self, count):
        """Active to unconfigured and back; an image is answered after each."""
        for _ in range(count):
            self._peer.transition(*ROUND_TRIP)
            self.frames(1)

    def reconfigurations(self, count):
        """Words and distances change together between images."""
        for number in range(count):
            assert self._peer.put(together=True, **SETTINGS[number % 2]) == ''
            self.frames(2)

    def grows_by(self, part, count):
        """MiB by which memory grows while a part runs; nothing else may.

        A part that grows runs once more: what loading gave back to the system returns when it
        likes, and a leak comes every time.
        """
        for _ in range(2):
            before = self.holdings()
            part(count)
            after = self.holdings(before)
            assert all(a <= b for a, b in zip(after[1], before[1], strict=True)), (before, after)
            if after[0] - before[0] < LIMIT:
                break
        return after[0] - before[0]


@pytest.mark.nightly
def test_nothing_grows_and_nothing_is_lost(domain, cache, tiny_weights):
    # Coverage, if it is measured, takes memory and time of its own.
    with running(tiny_arguments(tiny_weights), domain=domain, cache=cache,
                 environment={'COVERAGE_PROCESS_CONFIG': ''}) as node, \
            Peer(domain, listen=(), node=node) as peer:
        body = Soak(node, peer)
        for part, first, count in ((body.frames, 500, 1000), (body.round_trips, 2, 6),
                                   (body.reconfigurations, 4, 12)):
            part(first)
            assert body.grows_by(part, count) < LIMIT, part.__name__
        # Without a calibration.
        assert {topic for topic in OUTPUTS if not body._counts[topic]} == {'depth/stddev'}
