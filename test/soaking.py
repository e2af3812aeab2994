# SPDX-License-Identifier: Apache-2.0
"""A node for a long time: does it grow, and does it lose threads, descriptors or subscriptions?

Used by test_soak.py for seconds, and by tools/soak.py for as long as one likes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from clip_standin import synthetic_rgb
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParametersAtomically
from ros_harness import (
    OUTPUTS,
    PATIENCE,
    Peer,
    camera_info,
    image,
    running,
    tiny_arguments,
)

HEIGHT, WIDTH = 96, 128
ROUND_TRIP = (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP,
              Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
WORDS = (('near', 'middle', 'far'), ('here', 'there'))
DISTANCES = ((1.0, 2.0, 4.0), (0.5, 3.0))
LIMIT = 5.0  # MiB


class Holdings(NamedTuple):
    """What a process holds at one moment."""

    memory: float  # resident, MiB
    threads: int
    descriptors: int
    subscriptions: int  # that its peer sees on image and camera_info


class Soak:
    """Keeps a node busy, and says what it holds."""

    def __init__(self, node, peer):
        self._node, self._peer = node, peer
        self._counts = Counter()
        self._came = threading.Condition()
        self._message = image(peer.header(), synthetic_rgb(4, HEIGHT, WIDTH), 'rgb8')
        self._info = camera_info(peer.header(), WIDTH, HEIGHT)
        for topic, kind in OUTPUTS.items():
            peer.node.create_subscription(kind, topic, self._counter(topic), 10, raw=True)
        peer.ready(*OUTPUTS)
        peer.publisher('camera_info', type(self._info))
        self.frames(20)

    def _counter(self, topic):
        def count(_raw):
            with self._came:
                self._counts[topic] += 1
                self._came.notify_all()
        return count

    def holdings(self):
        """What the node holds now; its peer has found all of it by then, and lost the rest."""
        process = Path(f'/proc/{self._node.process.pid}')
        topics = ('image', 'camera_info')
        count = sum(self._peer.node.count_subscribers(topic) for topic in topics)
        return Holdings(
            self._node.memory_mb(), len(list((process / 'task').iterdir())),
            len(list((process / 'fd').iterdir())), count)

    def settled(self, like):
        """Holdings once they are as few as before, or as they are after a long time."""
        end = time.monotonic() + PATIENCE
        while True:
            now = self.holdings()
            if now[1:] == like[1:] or time.monotonic() > end:
                return now
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
        # Without a calibration, and without scenes.
        expected = [topic for topic in OUTPUTS if topic not in ('depth/stddev', 'scene')]
        assert all(self._counts[topic] for topic in expected), self._counts

    def round_trips(self, count):
        """Active to unconfigured and back; an image is answered after each."""
        for _ in range(count):
            for number in ROUND_TRIP:
                request = ChangeState.Request(transition=Transition(id=number))
                done = self._peer.call(ChangeState, 'depth_node/change_state', request)
                assert done.success, self._node.output[-3000:]
            self.frames(1)

    def reconfigurations(self, count):
        """Words and distances change together while images stream; returns images meanwhile."""
        before, stop = self._counts['depth/image'], threading.Event()

        def stream():
            while not stop.is_set():
                self.frames(1)
        thread = threading.Thread(target=stream)
        thread.start()
        try:
            for number in range(count):
                words, distances = WORDS[number % 2], DISTANCES[number % 2]
                request = SetParametersAtomically.Request(parameters=[
                    _parameter('tokens', string_array_value=words),
                    _parameter('bins', double_array_value=distances)])
                result = self._peer.call(SetParametersAtomically,
                                         'depth_node/set_parameters_atomically', request).result
                assert result.successful, result.reason
                wait_for_frames(self, 2)
        finally:
            stop.set()
            thread.join(PATIENCE)
        return self._counts['depth/image'] - before


def wait_for_frames(soak, count):
    """Until so many more images are answered by whoever streams them."""
    with soak._came:
        end = soak._counts['depth/image'] + count
        assert soak._came.wait_for(lambda: soak._counts['depth/image'] >= end, PATIENCE)


def _parameter(name, **value):
    kind = ParameterType.PARAMETER_STRING_ARRAY if 'string_array_value' in value \
        else ParameterType.PARAMETER_DOUBLE_ARRAY
    return Parameter(name=name, value=ParameterValue(
        type=kind, **{key: list(items) for key, items in value.items()}))


def leaks(before, after, what):
    """Figures of one part of the soak, and a complaint for what is lost; growth is given."""
    for name in ('threads', 'descriptors', 'subscriptions'):
        lost = getattr(after, name) - getattr(before, name)
        assert lost <= 0, f'{lost} more {name} after {what}: {before}, {after}'
    return round(after.memory - before.memory, 1)


def growth(body, part, what):
    """MiB by which memory grows while a part runs, and what the part gives.

    A part that grows runs once more: what loading gave back to the system returns when it likes,
    and a leak comes every time.
    """
    for _ in range(2):
        before = body.holdings()
        result = part()
        grown = leaks(before, body.settled(before), what)
        if grown < LIMIT:
            break
    return grown, result


def soak(frames, round_trips, reconfigurations, domain, folder, weights):
    """Run all parts with one node; returns the figures.

    Args:
        frames: to measure over; a tenth of them comes before, and 500 at least, until memory is
            as it stays.
        round_trips: through the lifecycle.
        reconfigurations: under load.
        domain: of ROS.
        folder: for caches.
        weights: of the tiny network.

    """
    figures = {}
    # Coverage, if it is measured, takes memory and time of its own.
    with running(tiny_arguments(weights), domain=domain, cache=folder,
                 environment={'COVERAGE_PROCESS_CONFIG': ''}) as node, \
            Peer(domain, listen=(), node=node) as peer:
        body = Soak(node, peer)
        body.frames(max(500, frames // 10))
        before, start = body.holdings(), time.monotonic()
        body.frames(frames)
        figures['frames'] = frames
        figures['frames a second'] = round(frames / (time.monotonic() - start))
        figures['growth by frames [MiB]'] = leaks(before, body.settled(before), f'{frames} frames')
        body.round_trips(max(2, round_trips // 10))
        figures['round trips'] = round_trips
        figures['growth by round trips [MiB]'], _ = growth(
            body, lambda: body.round_trips(round_trips), f'{round_trips} round trips')
        body.reconfigurations(max(4, reconfigurations // 10))
        figures['reconfigurations'] = reconfigurations
        figures['growth by reconfigurations [MiB]'], figures['frames meanwhile'] = growth(
            body, lambda: body.reconfigurations(reconfigurations),
            f'{reconfigurations} reconfigurations')
        figures.update(zip(Holdings._fields[1:], body.holdings()[1:], strict=True))
    return figures
