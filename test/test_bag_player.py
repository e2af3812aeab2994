# SPDX-License-Identifier: Apache-2.0
"""bag_player: a process that plays, and this one that listens, over DDS."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('rosbags', reason='rosbags is not installed')

import bags
import rclpy
from bags import LATCHED, STORE, STRANGE, qos
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_harness import NodeProcess, node_here, own_domain, segments, tiny_arguments
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from depthclip_ros.core.errors import DepthClipError
from depthclip_ros.messages.message_types import message_class
from depthclip_ros.resources import PROFILE_VARIABLES, config_path, large_images_profile
from depthclip_ros.sources import bag_player
from depthclip_ros.sources.bag import Bag
from depthclip_ros.sources.bag_player import main, parser, recorded_qos

ROOT = Path(__file__).resolve().parents[1]
START = 1_700_000_000_000_000_000
PERIOD = 50_000_000  # 20 Hz
COUNT = 12
IMAGES = {'/camera/image': 'sensor_msgs/msg/Image'}
BOTH = {**IMAGES, '/temperature': 'sensor_msgs/msg/Temperature'}

# Fast DDS hears only every 3 s what has arrived; the player waits for it, at most 2 s.
HEARTBEATS = """<publisher profile_name="heartbeats" is_default_profile="true"><times>
<heartbeatPeriod><sec>0</sec><nanosec>100000000</nanosec></heartbeatPeriod></times></publisher>"""


@pytest.fixture(scope='module', autouse=True)
def domain(tmp_path_factory):
    profile = tmp_path_factory.mktemp('dds') / 'heartbeats.xml'
    own = config_path().with_name('fastdds_large_images.xml').read_text()
    profile.write_text(own.replace('</profiles>', f'{HEARTBEATS}</profiles>'))
    with own_domain() as number, pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_DOMAIN_ID', str(number))
        for name in large_images_profile({}):
            patch.setenv(name, str(profile))
        yield number


def write_bag(path, more=(), **options):
    """Images and temperatures, alternating; returns the bytes by topic.

    `more` are topics of other types, with a message of few bytes at each time.
    """
    types, written, recorded = STORE.types, {topic: [] for topic in BOTH}, []
    for index in range(COUNT):
        time = START + index * PERIOD
        # Not the time of recording: the player must not touch it.
        stamp = types['builtin_interfaces/msg/Time'](*divmod(time - 7_654_321, 10**9))
        header = types['std_msgs/msg/Header'](stamp=stamp, frame_id='camera_optical')
        for topic, message in (
                ('/camera/image', types['sensor_msgs/msg/Image'](
                    header, 6, 8, 'rgb8', 0, 24, np.arange(144, dtype=np.uint8) + index)),
                ('/temperature', types['sensor_msgs/msg/Temperature'](header, float(index), 0.0))):
            written[topic].append(bytes(STORE.serialize_cdr(message, BOTH[topic])))
            recorded.append((topic, time, written[topic][-1]))
        recorded += [(topic, time, b'\x00\x01\x00\x00' + bytes(8)) for topic, _ in more]
    bags.write(path, recorded, {**BOTH, **dict(more)}, **options)
    return written


class Listener:
    """Collects the serialized messages of some topics."""

    def __init__(self, topics, **kwargs):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('listener', context=self.context, **kwargs)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.received = {}
        self.subscribe(topics)

    def subscribe(self, topics, durability=DurabilityPolicy.VOLATILE):
        for topic, kind in topics.items():
            got = self.received.setdefault(topic, [])
            self.node.create_subscription(
                message_class(kind), topic, lambda data, got=got: got.append(bytes(data)),
                QoSProfile(depth=100, durability=durability), raw=True)

    def spin_until(self, condition, seconds=60.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not condition():
            self.executor.spin_once(timeout_sec=0.02)
        return condition()

    def take_all(self):
        """Take what has arrived already, all of it."""
        before = -1
        while (now := sum(map(len, self.received.values()))) != before:
            before = now
            self.executor.spin_once(timeout_sec=0.3)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


def start_player(*arguments):
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    return subprocess.Popen(
        [sys.executable, '-m', 'depthclip_ros.sources.bag_player', *map(str, arguments)],
        env={**os.environ, 'PYTHONPATH': path}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)


def play(topics, *arguments):
    """Play a bag to its end; returns what came, and the output."""
    with Listener(topics) as listener:
        player = start_player(*arguments)
        try:
            assert listener.spin_until(lambda: player.poll() is not None), 'it never ended'
            listener.take_all()  # it ends when all is acknowledged, but not yet taken here
        finally:
            player.kill()
        output = player.communicate()[0]
    assert player.returncode == 0, output
    return listener.received, output


@pytest.mark.parametrize(('storage', 'compression'), [
    (StoragePlugin.MCAP, None), (StoragePlugin.SQLITE3, CompressionMode.MESSAGE)])
def test_plays_every_byte_in_order_and_skips_unknown_types(tmp_path, storage, compression):
    written = write_bag(tmp_path / 'bag', storage=storage, compression=compression,
                        more=[('/thing', STRANGE)])
    received, output = play(BOTH, tmp_path / 'bag', '--wait-for', *BOTH)
    # Byte for byte: stamps, frames and content are those of the recording.
    assert received == written
    assert f'played {2 * COUNT} messages' in output
    assert f'/camera/image: {COUNT}' in output
    assert output.count(f'/thing: its {COUNT} messages are skipped') == 1


def test_what_others_write_is_played_or_named(tmp_path):
    written = write_bag(tmp_path / 'bag')
    path = tmp_path / 'others.mcap'
    with path.open('wb') as file:
        writer = bags.McapWriter(file)
        writer.start('')
        for topic, encoding, kind in (('camera/image', 'cdr', 'sensor_msgs/Image'),
                                      ('/json', 'json', 'demo.Battery'), ('/none', 'cdr', '')):
            schema = writer.register_schema(kind, 'ros2msg', b'') if kind else 0
            channel = writer.register_channel(topic, encoding, schema)
            for number, data in enumerate(written['/camera/image']):
                writer.add_message(channel, START + number * PERIOD, data, 0)
        writer.finish()
    received, output = play(IMAGES, path, '--wait-for', 'camera/image')
    assert received['/camera/image'] == written['/camera/image']
    assert all(output.count(f'{topic}: its {COUNT} messages are skipped') == 1
               for topic in ('/json', '/none'))
    received, output = play(IMAGES, path, '--topics', 'camera/image', '--wait-for', *IMAGES)
    assert received['/camera/image'] == written['/camera/image']
    assert 'skipped' not in output


def test_topics_and_names(tmp_path):
    written = write_bag(tmp_path / 'bag')
    received, output = play(
        {'/other': IMAGES['/camera/image'], **BOTH}, tmp_path / 'bag', '--rate', 2,
        '--topics', '/camera/image', '--wait-for', '/camera/image', '/thing',
        '--ros-args', '-r', '__node:=replay', '-r', '/camera/image:=/other')
    assert received == {'/other': written['/camera/image'], **{topic: [] for topic in BOTH}}
    assert f'played {COUNT} messages' in output
    assert '[replay]' in output


def test_it_begins_when_its_listeners_have_found_it(tmp_path):
    write_bag(tmp_path / 'bag')
    before = []
    with Listener({}, start_parameter_services=False) as listener:
        def answer(_request, response):
            before.append(len(listener.received['/camera/image']))
            return response

        # First, as every node's own: others hear of a node's parts in their order.
        listener.node.create_service(GetParameters, 'listener/get_parameters', answer)
        listener.subscribe(IMAGES)
        started = time.monotonic()
        player = start_player(tmp_path / 'bag', '--settle', 4, '--wait-for', '/camera/image',
                              '/camera/image')
        try:
            told = []
            while 'waiting for a subscriber of /camera/image' not in ''.join(told):
                told.append(player.stdout.readline())
                assert told[-1], told
            listener.spin_until(lambda: before, 1)
            assert not before  # one is there, and two are asked for
            listener.subscribe(IMAGES)
            got = listener.received['/camera/image']
            assert listener.spin_until(lambda: got)
            assert time.monotonic() > started + 4
            assert listener.spin_until(lambda: len(got) == 2 * COUNT)
        finally:
            player.kill()
            player.communicate()
    assert before[0] == 0


def test_a_replay_is_for_the_node_and_not_for_whoever_else_listens(
        tmp_path, domain, cache, tiny_weights):
    """Whoever listened first; and a replay of which the node makes nothing has failed."""
    write_bag(tmp_path / 'good')
    with Bag(tmp_path / 'good') as bag:
        recorded = [(channel.topic, time, data.replace(b'rgb8', b'rgb0'))
                    for channel, time, data in bag.messages()]
    bags.write(tmp_path / 'bad', recorded, BOTH)

    def player(bag):
        return start_player(tmp_path / bag, '--rate', 0.5, '--wait-for', *IMAGES,
                            '--wait-for-node', '/robot/depth_node')

    with Listener(IMAGES) as listener:
        first = player('good')
        told = iter(first.stdout.readline, '')
        assert any('waiting for /robot/depth_node as a subscriber of /camera/image' in line
                   for line in told)
        node = NodeProcess([*tiny_arguments(tiny_weights), '-r', '__ns:=/robot', '-r',
                            'image:=/camera/image'], domain=domain, cache=cache)
        try:
            assert listener.spin_until(lambda: first.poll() is not None)
            assert len(listener.received['/camera/image']) == COUNT
            # Nobody wanted depth, which is no fault of the node.
            output = ''.join(told)
            assert first.returncode == 0, output
            assert f'answered 0 of {COUNT} images: received {COUNT}, ' in output
            assert f'idle {COUNT}' in output
            depth = '/robot/depth/image'
            listener.subscribe({depth: IMAGES['/camera/image']})
            for bag, status in (('bad', 1), ('good', 0)):
                process = player(bag)
                assert listener.spin_until(lambda p=process: p.poll() is not None)
                output = process.communicate()[0]
                assert process.returncode == status, output
            assert f'received {COUNT}, published {len(listener.received[depth])}, ' in output
        finally:
            first.kill()
            node.stop()


def test_a_node_that_reports_no_more_has_ended(domain, monkeypatch):
    monkeypatch.setattr(bag_player, 'ACCOUNT_SECONDS', 0.0)
    monkeypatch.setattr(bag_player.rclpy, 'spin_once', lambda *_, **__: None)
    report = DiagnosticArray(status=[DiagnosticStatus(name='robot/depth_node: frames', values=[
        KeyValue(key=key, value='0') for key in bag_player.ACCOUNT])])
    with node_here(domain, Node, 'player', start_parameter_services=False) as node:
        consumer = bag_player.Consumer(node, '/robot/depth_node')
        consumer.check(3, Event())  # it has never reported: its topic may be remapped
        consumer._on_report(report)
        with pytest.raises(DepthClipError, match='has ended'):
            consumer.check(3, Event())


def test_loops_until_interrupted(tmp_path):
    written = write_bag(tmp_path / 'bag')['/camera/image']
    with Listener(IMAGES) as listener:
        player = start_player(tmp_path / 'bag', '--loop', '--wait-for', *IMAGES)
        try:
            got = listener.received['/camera/image']
            assert listener.spin_until(lambda: len(got) >= COUNT + 3)
            player.send_signal(signal.SIGINT)
            assert listener.spin_until(lambda: player.poll() is not None)
        finally:
            player.kill()
        output = player.communicate()[0]
    assert player.returncode == 0, output
    assert 'Traceback' not in output
    assert 'played' in output
    assert got[:COUNT + 3] == [*written, *written[:3]]


def test_large_images_have_room_in_shared_memory_and_no_variable_is_complained_of(
        tmp_path, monkeypatch):
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if not large_images_profile(os.environ):
        pytest.skip('/dev/shm has less than 128 MiB, or the middleware is not Fast DDS')
    write_bag(tmp_path / 'bag')
    player = start_player(tmp_path / 'bag', '--loop')
    try:
        said = player.stdout.readline()
        while 'playing' not in said:
            said += player.stdout.readline()
        assert max(path.stat().st_size for path in segments(player)) > 2**25
    finally:
        player.kill()
        player.communicate()
    assert 'DEFAULT_PROFILES_FILE' not in said


class Watch:
    """A clock on which nothing takes time but waiting, and an event that stops at a time."""

    def __init__(self):
        self.now, self.stopped = 1000.0, False

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds

    def is_set(self):
        return self.stopped


@pytest.mark.parametrize(('rate', 'loop'), [(1.0, False), (2.0, True)])
def test_messages_go_out_at_their_time(tmp_path, monkeypatch, domain, rate, loop):
    write_bag(tmp_path / 'bag')
    watch, sent = Watch(), []
    monkeypatch.setattr(bag_player.time, 'monotonic', watch.monotonic)

    class Publisher:
        """Of a topic: what is published goes to the list, and nowhere else."""

        def __init__(self, _kind, topic, _qos):
            self.topic = topic

        def publish(self, _data):
            sent.append((self.topic, watch.now))
            watch.stopped = len(sent) == 2 * COUNT + 6

    with Bag(tmp_path / 'bag') as bag, node_here(
            domain, Node, 'player', start_parameter_services=False) as node, \
            monkeypatch.context() as patch:
        patch.setattr(node, 'create_publisher', Publisher)
        options = parser().parse_args(['bag', '--rate', str(rate), *['--loop'] * loop])
        bag_player.play(node, bag, options, watch)
    assert [topic for topic, _ in sent] == list(BOTH) * (len(sent) // 2)
    assert len(sent) == (2 * COUNT + 6 if loop else 2 * COUNT)
    images = [when for topic, when in sent if topic == '/camera/image']
    np.testing.assert_allclose(np.diff(images[:COUNT]), PERIOD / 1e9 / rate, rtol=1e-6)
    np.testing.assert_allclose(np.diff(images[COUNT:]), PERIOD / 1e9 / rate, rtol=1e-6)


def test_clock_follows_the_bag(tmp_path):
    clock = {'/clock': 'rosgraph_msgs/msg/Clock'}  # of the recording's own simulation, at 0 s
    write_bag(tmp_path / 'bag', more=list(clock.items()))
    received, output = play({**IMAGES, **clock}, tmp_path / 'bag', '--clock', 100, '--rate', 0.5,
                            '--wait-for', *IMAGES)
    ticks = [message.clock.sec * 10**9 + message.clock.nanosec for message in (
        STORE.deserialize_cdr(data, clock['/clock']) for data in received['/clock'])]
    # 100 Hz of wall time at half speed: every 5 ms of the bag. Of a clock only the newest counts,
    # so that one may be missing.
    assert (np.diff(ticks) > 0).all()
    assert (np.subtract(ticks, START) % 5_000_000 == 0).all()
    assert START <= ticks[0] <= ticks[-1] <= START + (COUNT - 1) * PERIOD
    assert len(ticks) > COUNT
    assert 'the recorded /clock is left out' in output


def test_a_late_subscriber_gets_all_that_was_latched(tmp_path):
    """The recorded depth is 0: who records is told of none."""
    static = {'/tf_static': BOTH['/temperature']}  # whichever type
    written = write_bag(tmp_path / 'images')['/temperature']
    recorded = [('/tf_static', START + index, data) for index, data in enumerate(written)]
    recorded += [('/temperature', START + seconds * 10**9, written[0]) for seconds in (1, 100)]
    bags.write(tmp_path / 'bag', recorded, {**static, '/temperature': BOTH['/temperature']},
               qos={'/tf_static': [LATCHED] * 2})
    with Listener({'/temperature': BOTH['/temperature']}) as listener:
        player = start_player(tmp_path / 'bag', '--wait-for', '/temperature')
        try:
            assert listener.spin_until(lambda: listener.received['/temperature'])
            listener.subscribe(static, DurabilityPolicy.TRANSIENT_LOCAL)
            got = listener.received['/tf_static']
            assert listener.spin_until(lambda: len(got) >= COUNT)
        finally:
            player.kill()
            player.communicate()
    assert got == written


def test_quality_of_service_is_the_recorded_one_where_there_is_one(tmp_path):
    best_effort = qos(QosReliability.BEST_EFFORT, depth=3)
    latched = qos(durability=QosDurability.TRANSIENT_LOCAL, depth=1)
    reliable, volatile = ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE
    kept = (reliable, DurabilityPolicy.TRANSIENT_LOCAL, 3)
    cases = {
        '/best': ([best_effort], (ReliabilityPolicy.BEST_EFFORT, volatile, 100)),
        '/latched': ([LATCHED, latched], kept), '/tf_static': ([], kept),
        # Nothing but loss is seen of the depth of what is not latched.
        '/short': ([qos(depth=1)], (reliable, volatile, 100)),
        '/unknown': ([], (reliable, volatile, 100)),
        '/both': ([best_effort, latched], (reliable, volatile, 100))}
    bags.write(tmp_path / 'bag', [(topic, START, b'\0' * 8) for topic in cases for _ in range(3)],
               dict.fromkeys(cases, STRANGE),
               qos={topic: offers for topic, (offers, _) in cases.items()})
    with Bag(tmp_path / 'bag') as bag:
        for topic, (_, expected) in cases.items():
            profile = recorded_qos(bag, topic)
            assert (profile.reliability, profile.durability, profile.depth) == expected, topic


def test_corruption_in_the_middle_is_said_when_it_is_reached(tmp_path):
    write_bag(tmp_path / 'bag', storage=StoragePlugin.SQLITE3,
              compression=CompressionMode.MESSAGE)
    with sqlite3.connect(tmp_path / 'bag' / 'bag.db3') as database:
        database.execute('UPDATE messages SET data = ? WHERE id = 9', (b'not zstd',))
    player = start_player(tmp_path / 'bag')
    output = player.communicate()[0]
    assert player.returncode == 1
    assert 'played 8 messages' in output
    assert 'is damaged' in output
    assert 'Traceback' not in output


@pytest.mark.parametrize(('arguments', 'status', 'words'), [
    (['missing'], 1, 'There is no bag at'),
    (['bag', '--topics', '/nothing'], 1, 'It has: /camera/image, /temperature'),
    (['bag', '--ros-args', '-r', '/temperature:=no name'], 1, "Couldn't parse remap rule"),
    (['bag', '--rate', '0'], 2, "'0' is not a number greater than 0"),
    (['bag', '--clock', '1e300'], 2, 'at most a million'),
    ([], 2, 'BAG'),
])
def test_errors(tmp_path, capsys, monkeypatch, arguments, status, words):
    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'DEFAULT')  # no profile for later tests
    write_bag(tmp_path / 'bag')
    monkeypatch.chdir(tmp_path)
    try:
        ended = main(arguments)
    except SystemExit as stop:
        ended = stop.code
    assert ended == status
    assert words in capsys.readouterr().err
