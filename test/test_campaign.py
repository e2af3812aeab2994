# SPDX-License-Identifier: Apache-2.0
"""Hostile messages between good ones, over real DDS, against real node processes.

Two nodes, one for raw and one for compressed images, are attacked with every kind of
`hostile.KINDS` in an order that a seed decides. What counts is not only that they live: every good
image is answered with the bits of `predict`, every message is accounted for, nothing comes out for
a bad one, every output keeps REP-117 and REP-118, and memory and log stay bounded.

CAMPAIGN_MESSAGES (otherwise every kind comes twice), CAMPAIGN_SEED and CAMPAIGN_KINDS (a pattern)
change the size, the order and the choice.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter, defaultdict, deque
from pathlib import Path
from random import Random

import pytest

pytest.importorskip('rclpy')

import hostile
import numpy as np
from hostile import ANSWERED, INFO, JPEG, KINDS, RAW, REJECTED
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.serialization import serialize_message
from ros_harness import (
    INPUT_HEIGHT,
    INPUT_WIDTH,
    OUTPUTS,
    PATIENCE,
    TEMPERATURE,
    NodeProcess,
    Peer,
    adds_up,
    cloud_array,
    counters,
    depth_array,
    tiny_arguments,
    values_of,
)

from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.errors import CameraInfoError, ImageError
from depthclip_ros.messages.camera_context import CameraContext
from depthclip_ros.messages.image_io import to_rgb
from depthclip_ros.messages.message_types import (
    COMPRESSED_IMAGE,
    IMAGE,
    deserialize,
    parse_message,
)
from depthclip_ros.messages.node_config import NodeConfig

MESSAGES = int(os.environ.get('CAMPAIGN_MESSAGES', '0'))
SEED = int(os.environ.get('CAMPAIGN_SEED', '0'))
CHOSEN = [name for name in KINDS if re.search(os.environ.get('CAMPAIGN_KINDS', ''), name)]
BURST = 4  # hostile messages until a good one is waited for
GAP = 0.002  # seconds for the worker to take a message before the next one replaces it
LONGEST_LINE = 1500  # characters of the log
NODES = {RAW: 'raw', JPEG: 'jpeg'}
LISTENED = [topic for topic in OUTPUTS if topic != 'depth/words']  # 2 MB each, and all are kept
GOOD = {RAW: hostile.good_image, JPEG: hostile.good_jpeg}


@pytest.fixture(scope='module')
def nodes(domain, cache, tiny_weights):
    """Both nodes, active; afterwards they still end well."""
    started = {}
    for topic, name in NODES.items():
        transport = 'raw' if topic == RAW else 'compressed'
        started[topic] = NodeProcess(
            [*tiny_arguments(tiny_weights, image_transport=transport, input_timeout=60.0,
                             reference_focal=0.0,  # depth is judged without camera_info
                             **{f'qos_overrides./{name}/{topic}.subscription.depth': 20}),
             '-r', f'__ns:=/{name}'], domain=domain, cache=cache)
    try:
        for node in started.values():
            node.wait_for(r'\]: Active: ')
        yield started
    finally:
        ends = [node.stop() for node in started.values()]
    assert ends == [0, 0], [node.output[-3000:] for node in started.values()]


@pytest.fixture(scope='module')
def campaign(nodes, domain, cache, tiny_weights):
    config = DepthConfig(backbone='auto', input_height=INPUT_HEIGHT, input_width=INPUT_WIDTH,
                         temperature=TEMPERATURE)
    estimator = DepthEstimator(config, tiny_weights, 'cpu', cache_dir=cache, num_threads=1)
    listen = [f'{name}/{topic}' for name in NODES.values() for topic in LISTENED]
    with Peer(domain, listen=listen) as peer:
        peer.ready(*listen)
        for topic, name in NODES.items():
            peer.ask(GOOD[topic](None, peer.header()), prefix=f'{name}/')
        yield Campaign(nodes, peer, estimator)


def stamp_of(message):
    return message.header.stamp.sec, message.header.stamp.nanosec


def decoded(topic, message):
    """(stamp, RGB) of a message as the node reads it, or (None, rays) of a camera_info.

    Raises what is wrong with it.
    """
    raw = message if isinstance(message, bytes) else serialize_message(message)
    if topic == INFO:
        context = CameraContext(deserialize, NodeConfig())
        context.on_camera_info(raw)
        model = context.camera_model(hostile.WIDTH, hostile.HEIGHT)
        return None, model.patch_rays(INPUT_HEIGHT // 32, INPUT_WIDTH // 32)
    image = parse_message(
        deserialize, raw, COMPRESSED_IMAGE if topic == JPEG else IMAGE, ImageError)
    return stamp_of(image), to_rgb(image)


class Campaign:
    """Sends, and judges what comes back."""

    def __init__(self, nodes, peer, estimator):
        self.nodes, self.peer, self.estimator = nodes, peer, estimator
        self.received = Counter()  # images by topic, as the nodes must count them
        self.answered = Counter()  # by kind
        self.conditions = defaultdict(set)  # by kind, as the decoder names them
        self.good = 0
        self._pictures = {topic: defaultdict(list) for topic in NODES}  # (kind, RGB) by stamp
        self._predictions = {}
        # Seconds of the stamps that were sent until both sides had found each other.
        self._before = range(1000, peer.header().stamp.sec + 1)
        self._after_bad_info = {}  # rays of usable camera_infos, by the stamps that may have them
        self._rays = deque([decoded(INFO, hostile.good_info(None, peer.header()))[1]], 3)
        self.drain()
        for topic in NODES:
            self.received[topic] = self.account(topic)['received']

    # Sending -------------------------------------------------------------------------------

    def attack(self, name, random):
        kind = KINDS[name]
        message = kind.make(random, self.peer.header())
        found, reason = None, None
        try:
            found = decoded(kind.topic, message)
        except (ImageError, CameraInfoError) as error:
            reason = error
        if reason is not None:
            assert kind.outcome != ANSWERED, f'{name}: {reason}'
            assert len(str(reason)) < LONGEST_LINE, f'{name}: {str(reason)[:2000]}'
            self.conditions[name].add(reason.condition)
        else:
            assert kind.outcome != REJECTED, f'{name}: was read'
            if kind.topic == INFO:
                self._rays.append(found[1])
            else:
                self._pictures[kind.topic][found[0]].append((name, found[1]))
        node = RAW if kind.topic == INFO else kind.topic
        self.publish(node, kind.topic, message)
        time.sleep(GAP)
        if kind.topic == INFO:
            self.send_good(RAW, trusted=reason is None)

    def publish(self, node, topic, message):
        kind = hostile.TYPES[topic]
        self.peer.publisher(f'{NODES[node]}/{topic}', kind).publish(message)
        if topic != INFO:
            self.received[topic] += 1

    def send_good(self, *topics, trusted=True):
        """Send good images and wait for their depth, which must be that of `predict`."""
        sent = {topic: GOOD[topic](None, self.peer.header()) for topic in topics}
        for topic, message in sent.items():
            stamp, rgb = decoded(topic, message)
            self._pictures[topic][stamp].append(('', rgb))
            if not trusted:
                self._after_bad_info[stamp] = list(self._rays)
            self.publish(topic, topic, message)
        try:
            for topic, message in sent.items():
                self.peer.wait_stamp(f'{NODES[topic]}/depth/image', message.header.stamp)
        except AssertionError as error:
            said = ''.join(self.nodes[topic].output.splitlines(keepends=True)[-15:])
            raise AssertionError(f'{error}; the node said:\n{said[-6000:]}') from None
        self.good += len(sent)
        self.drain()

    def send_good_info(self):
        """Send a good camera_info until an image has a cloud again."""
        def cloud():
            info = hostile.good_info(None, self.peer.header())
            self._rays.append(decoded(INFO, info)[1])
            self.publish(RAW, INFO, info)
            self.send_good(RAW)
            return self.clouds
        self.peer.wait(cloud, 'a cloud after a good camera_info')

    # Judging -------------------------------------------------------------------------------

    def drain(self):
        """Judge everything that has come."""
        self.clouds = 0
        for topic, prefix in NODES.items():
            for output in LISTENED:
                name = f'{prefix}/{output}'
                with self.peer._changed:
                    messages, self.peer.messages[name] = self.peer.messages[name], []
                for message in messages:
                    self.judge(topic, output, message)
        with self.peer._changed:
            del self.peer.messages['/diagnostics'][:-10]

    def judge(self, topic, output, message):
        stamp = stamp_of(message)
        pictures = self._pictures[topic].get(stamp)
        if stamp[0] in self._before:
            return
        assert pictures, f'{output} for no usable image: {message.header}'
        predictions = [self.predict(rgb) for _, rgb in pictures]
        if output == 'depth/image':
            depth = depth_array(message)
            assert message.encoding == '32FC1'
            valid = depth[~np.isnan(depth)]
            assert np.isfinite(valid).all()
            assert (valid > 0).all()
            fits = [np.array_equal(depth, p.depth, equal_nan=True) for p in predictions]
            assert any(fits), f'other bits than predict: {pictures[0][0] or "good image"}'
            self.answered[pictures[fits.index(True)][0]] += 1
        elif output == 'depth/camera_info':
            assert (message.height, message.width) in [p.depth.shape for p in predictions]
            assert np.isfinite([*message.k, *message.d, *message.r, *message.p]).all()
        elif output == 'points':
            self.judge_cloud(stamp, message, predictions)
        elif output == 'depth/spread':
            assert (np.frombuffer(message.data, np.float32) >= 0).all()
        else:
            assert (message.height, message.width) in [p.depth.shape for p in predictions]

    def judge_cloud(self, stamp, message, predictions):
        self.clouds += 1
        xyz = cloud_array(message)
        holes = np.isnan(xyz)
        assert (holes.any(axis=2) == holes.all(axis=2)).all(), 'half a point'
        assert not (message.is_dense and holes.any())
        depth = np.where(holes[..., 2], np.nan, predictions[0].patch_depth)
        np.testing.assert_array_equal(xyz[..., 2], depth)
        if stamp in self._after_bad_info:  # then the image has overtaken that
            assert any(np.array_equal(xyz[~holes], (rays * depth[..., None])[~holes])
                       for rays in self._after_bad_info[stamp]), 'a cloud by a bad camera_info'

    def predict(self, rgb):
        key = rgb.shape, hash(rgb.tobytes())
        if key not in self._predictions:
            if len(self._predictions) > 500:
                self._predictions.clear()
            self._predictions[key] = self.estimator.predict(np.ascontiguousarray(rgb))
        return self._predictions[key]

    def account(self, topic):
        """The account of a node once no image is on its way to it (two nodes tell theirs)."""
        name, start = f'{NODES[topic]}/depth_node: frames', len(self.peer.messages['/diagnostics'])

        def look():
            told = [values_of(status) for array in self.peer.messages['/diagnostics'][start:]
                    for status in array.status if status.name == name][-2:]
            accounts = [counters(values) for values in told]
            if len(told) == 2 and accounts[0] == accounts[1] and not accounts[1]['pending']:
                return told[1]
            return None
        values = self.peer.wait(look, 'a quiet node')
        assert adds_up(values), values
        return {**values, **counters(values)}

    def missing(self, values):
        """Kinds that were never answered, and such of which no condition is in an account.

        `values` holds the account of each node. An image may have been dropped for a newer one
        each time.
        """
        found = []
        for name in CHOSEN:
            kind, conditions = KINDS[name], self.conditions[name]
            told = values[RAW if kind.topic == INFO else kind.topic]
            counted = any(f'{what}: {condition}' in told for condition in conditions
                          for what in ('rejected', 'no cloud'))
            if (conditions and not counted) or (
                    kind.outcome == ANSWERED and not self.answered[name]):
                found.append(name)
        return found

    def log_of(self, topic):
        return self.nodes[topic].output


@pytest.mark.parametrize('times', [2, pytest.param(36, marks=pytest.mark.nightly)])
def test_a_campaign_of_hostile_messages(campaign, times):
    random = Random(SEED)
    order = []
    while len(order) < (MESSAGES or times * len(CHOSEN)):
        order += random.sample(CHOSEN, len(CHOSEN))
    before = {topic: campaign.account(topic)['received'] - campaign.received[topic]
              for topic in NODES}
    begin = {topic: len(campaign.log_of(topic)) for topic in NODES}
    for number, name in enumerate(order):
        campaign.attack(name, random)
        if number % BURST == 0:
            campaign.send_good(*NODES)
        if number % (10 * BURST) == 0:
            campaign.send_good_info()
        if number == len(order) // 2 - 1:  # every kind has come, in many sizes
            sizes = {topic: node.memory_mb() for topic, node in campaign.nodes.items()}
            lines = {topic: len(campaign.log_of(topic)) for topic in NODES}
            warm = time.monotonic()
    campaign.send_good_info()
    end = time.monotonic() + PATIENCE
    while missing := campaign.missing({topic: campaign.account(topic) for topic in NODES}):
        assert time.monotonic() < end, f'never answered, or not counted: {missing}'
        for name in missing:
            campaign.attack(name, random)
            campaign.send_good(*NODES)
    for topic, node in campaign.nodes.items():
        values = campaign.account(topic)
        assert values['received'] - before[topic] == campaign.received[topic], values
        growth = node.memory_mb() - sizes[topic]
        assert growth < 20 + len(order) / 10_000, f'{growth:.1f} MiB more'
        peak = peak_mb(node) - sizes[topic]
        assert peak < 300, f'{peak:.0f} MiB for a moment'
        check_log(node.output[begin[topic]:], node.output[lines[topic]:],
                  time.monotonic() - warm)


def peak_mb(node):
    status = Path(f'/proc/{node.process.pid}/status').read_text(encoding='ascii')
    return int(re.search(r'VmHWM:\s+(\d+)', status)[1]) / 1024


def check_log(whole, later, seconds):
    """No line is long, none forges another, and the same is said at most every ten seconds.

    Not counted is what decoders print past every logger, a line for a message.
    """
    lines = whole.splitlines()
    assert max(map(len, lines)) < LONGEST_LINE, max(lines, key=len)[:2000]
    assert 'Traceback' not in whole, whole[whole.index('Traceback'):][:3000]
    assert '\x1b' not in whole
    assert not [line for line in lines if line.startswith('[FATAL]')]
    said = Counter(re.sub(r'\d+', '#', line.partition(']: ')[2])[:60]
                   for line in later.splitlines() if line.startswith('['))
    assert max(said.values(), default=0) <= 2 + seconds / 10, said.most_common(5)


# Lifecycle -------------------------------------------------------------------------------------

NOT_ALLOWED = (Transition.TRANSITION_CREATE, Transition.TRANSITION_CONFIGURE,
               Transition.TRANSITION_CLEANUP, Transition.TRANSITION_ACTIVATE,
               Transition.TRANSITION_DESTROY, 77, 255)


def change(campaign, number, label=''):
    request = ChangeState.Request(transition=Transition(id=number, label=label))
    return campaign.peer.call(ChangeState, 'raw/depth_node/change_state', request).success


def test_transitions_that_are_not_allowed_change_nothing(campaign):
    for number in NOT_ALLOWED:
        assert not change(campaign, number)
        campaign.send_good(RAW)
    assert not change(campaign, 0, 'x' * 10**6)
    campaign.send_good(RAW)


def test_hostile_messages_come_in_every_state(campaign):
    """Between transitions, too: nothing of them is answered, and the next good image is."""
    random, peer = Random(SEED), campaign.peer
    kinds = [name for name in CHOSEN if KINDS[name].topic == RAW
             and KINDS[name].outcome == REJECTED]

    def shower():
        for name in random.sample(kinds, min(len(kinds), 10)):
            publisher = peer._publishers[f'raw/{RAW}']
            publisher.publish(KINDS[name].make(random, peer.header()))
    leave = (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE)
    anew = (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP,
            Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    for transitions in (leave, anew, leave):
        for number in transitions:
            shower()
            assert change(campaign, number), campaign.log_of(RAW)[-3000:]
        shower()
        message = hostile.good_image(None, peer.header())
        campaign._pictures[RAW][stamp_of(message)].append(('', hostile.RGB))
        peer.ask(message, prefix='raw/')
        campaign.drain()
        campaign.account(RAW)
