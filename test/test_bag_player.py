# SPDX-License-Identifier: Apache-2.0
"""bag_player: a process that plays, and this one that listens, over DDS."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from depthclip_ros.resources import PROFILE_VARIABLES, config_path
from depthclip_ros.sources import bag_player
from depthclip_ros.sources.bag import (
    BagError,
    BagTopic,
    CameraTopics,
    bag_topics,
    camera_topics,
    custom_data,
    open_bag,
)
from depthclip_ros.sources.bag_player import (
    main,
    message_type,
    parser,
    qos_profile,
    split_ros_arguments,
)

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')
rosbag2 = pytest.importorskip('rosbags.rosbag2', reason='rosbags is not installed')
from ros_harness import node_here, own_domain  # noqa: E402
from rosbags.interfaces import (  # noqa: E402
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin  # noqa: E402
from rosbags.typesys import Stores, get_types_from_msg, get_typestore  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
START = 1_700_000_000_000_000_000
PERIOD = 50_000_000  # 20 Hz
COUNT = 12
STORE = get_typestore(Stores.ROS2_JAZZY)


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
        for name in PROFILE_VARIABLES:
            patch.setenv(name, str(profile))
        yield


# A small bag ---------------------------------------------------------------------------------


def recorded_qos(reliability=QosReliability.RELIABLE, durability=QosDurability.VOLATILE, depth=5):
    zero = QosTime(0, 0)
    return Qos(QosHistory.KEEP_LAST, depth, reliability, durability, zero, zero,
               QosLiveliness.AUTOMATIC, zero, False)


def header(index):
    # Not the time of recording: the player must not touch it.
    stamp = START + index * PERIOD - 7_654_321
    time_type = STORE.types['builtin_interfaces/msg/Time']
    return STORE.types['std_msgs/msg/Header'](
        stamp=time_type(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id='camera_optical'
    )


def image(index):
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8) + index
    return STORE.types['sensor_msgs/msg/Image'](
        header=header(index), height=6, width=8, encoding='rgb8', is_bigendian=0, step=24,
        data=pixels)


def temperature(index):
    return STORE.types['sensor_msgs/msg/Temperature'](
        header=header(index), temperature=float(index), variance=0.0)


def write_bag(
    path, storage=StoragePlugin.MCAP, compression=None, qos=(), unknown=False, clock=False
):
    """Images and temperatures, alternating; returns the bytes by topic."""
    writer = rosbag2.Writer(path, version=8, storage_plugin=storage)
    if compression is not None:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    written = {'/camera/image': [], '/temperature': []}
    with writer:
        images = writer.add_connection(
            '/camera/image', 'sensor_msgs/msg/Image', typestore=STORE, offered_qos_profiles=qos
        )
        temperatures = writer.add_connection(
            '/temperature', 'sensor_msgs/msg/Temperature', typestore=STORE
        )
        if unknown:
            store = get_typestore(Stores.ROS2_JAZZY)
            store.register(get_types_from_msg('uint8 value', 'nowhere_msgs/msg/Thing'))
            things = writer.add_connection('/thing', 'nowhere_msgs/msg/Thing', typestore=store)
        if clock:  # of the recording's own simulation, which was at 0 s
            clocks = writer.add_connection('/clock', 'rosgraph_msgs/msg/Clock', typestore=STORE)
            writer.write(clocks, START + 1, b'\x00\x01\x00\x00' + bytes(8))
        for index in range(COUNT):
            stamp = START + index * PERIOD
            for connection, message in (
                (images, image(index)),
                (temperatures, temperature(index)),
            ):
                data = bytes(STORE.serialize_cdr(message, connection.msgtype))
                writer.write(connection, stamp, data)
                written[connection.topic].append(data)
            if unknown:
                writer.write(things, stamp, b'\x00\x01\x00\x00\x05')
    return written


# Two processes -------------------------------------------------------------------------------


class Listener:
    """Collects the serialized messages of some topics."""

    def __init__(self, topics, **kwargs):
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor

        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('listener', context=self.context, **kwargs)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.received = {}
        self.subscribe(topics)

    def subscribe(self, topics):
        self.received.update({topic: [] for topic in topics})
        for topic, kind in topics.items():
            self.node.create_subscription(
                message_type(kind),
                topic,
                lambda data, topic=topic: self.take(topic, data),
                100,
                raw=True,
            )

    def take(self, topic, data):
        self.received[topic].append(bytes(data))

    def spin_until(self, condition, seconds=60.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            self.executor.spin_once(timeout_sec=0.02)
        return False

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
    environment = {**os.environ, 'PYTHONPATH': path}
    return subprocess.Popen(
        [sys.executable, '-m', 'depthclip_ros.sources.bag_player', *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def play(topics, *arguments):
    """Play a bag to its end; returns what came, and the output."""
    with Listener(topics) as listener:
        player = start_player(*arguments, '--wait-for-subscribers', 60, '--settle', 1)
        try:
            assert listener.spin_until(lambda: player.poll() is not None), 'it never ended'
            listener.take_all()  # it ends when all is acknowledged, but not yet taken here
        finally:
            player.kill()
        output = player.communicate()[0]
    assert player.returncode == 0, output
    return listener, output


IMAGES = {'/camera/image': 'sensor_msgs/msg/Image'}
BOTH = {**IMAGES, '/temperature': 'sensor_msgs/msg/Temperature'}


@pytest.mark.parametrize(('storage', 'compression'), [
    (StoragePlugin.MCAP, None), (StoragePlugin.SQLITE3, CompressionMode.MESSAGE)])
def test_plays_every_byte_in_order(tmp_path, storage, compression):
    written = write_bag(tmp_path / 'bag', storage, compression)
    listener, output = play(BOTH, tmp_path / 'bag')
    # Byte for byte: stamps, frames and content are those of the recording.
    assert listener.received == written
    assert f'played {2 * COUNT} messages' in output
    assert f'/camera/image: {COUNT}' in output


def test_it_begins_when_its_listeners_have_found_it(tmp_path):
    from rcl_interfaces.srv import GetParameters
    write_bag(tmp_path / 'bag')
    before = []
    with Listener({}, start_parameter_services=False) as listener:
        def answer(_request, response):
            before.append(len(got))
            return response

        # First, as every node's own: others hear of a node's parts in their order.
        listener.node.create_service(GetParameters, 'listener/get_parameters', answer)
        listener.subscribe(IMAGES)
        got = listener.received['/camera/image']
        player = start_player(tmp_path / 'bag', '--wait-for-subscribers', 60)
        try:
            assert listener.spin_until(lambda: len(got) == COUNT)
        finally:
            player.kill()
            player.communicate()
    assert before[0] == 0


def test_topics_offset_and_remap(tmp_path):
    written = write_bag(tmp_path / 'bag')
    topics = {'/other': 'sensor_msgs/msg/Image', '/temperature': 'sensor_msgs/msg/Temperature'}
    listener, output = play(
        topics, tmp_path / 'bag', '--rate', 2, '--start-offset', 0.1,
        '--topics', '/camera/image', '--remap', '/camera/image:=/other')
    assert listener.received == {'/other': written['/camera/image'][2:], '/temperature': []}
    assert f'played {COUNT - 2} messages' in output


def test_remaps_and_namespaces_of_ros(tmp_path):
    written = write_bag(tmp_path / 'bag')
    listener, output = play(
        {'/new': 'sensor_msgs/msg/Image'}, tmp_path / 'bag',
        '--ros-args', '-r', '/camera/image:=/new', '-r', '__node:=replay', '--')
    assert listener.received['/new'] == written['/camera/image']
    assert '[replay]' in output


def test_loops_until_interrupted(tmp_path):
    written = write_bag(tmp_path / 'bag')['/camera/image']
    with Listener(IMAGES) as listener:
        player = start_player(tmp_path / 'bag', '--loop', '--wait-for-subscribers', 60,
                              '--settle', 1)
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


class Watch:
    """A clock on which nothing takes time but waiting, and `stop` after so many waits."""

    def __init__(self):
        self.now, self.stopped = 1000.0, False

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds

    def is_set(self):
        return self.stopped


@pytest.mark.parametrize(('rate', 'loop'), [(1.0, False), (2.0, True), (0.5, True)])
def test_messages_go_out_at_their_time_also_over_the_seam(tmp_path, monkeypatch, rate, loop):
    from rclpy.node import Node
    write_bag(tmp_path / 'bag')
    watch, sent = Watch(), []
    monkeypatch.setattr(bag_player.time, 'monotonic', watch.monotonic)

    class Publisher:
        """Of a topic: what is published goes to the list, and nowhere else."""

        def __init__(self, topic):
            self.topic = topic

        def publish(self, _data):
            sent.append((self.topic, watch.now))
            watch.stopped = len(sent) == 2 * COUNT + 6

    reader = open_bag(tmp_path / 'bag')
    try:
        with node_here(int(os.environ['ROS_DOMAIN_ID']), Node, 'player',
                       start_parameter_services=False) as node, monkeypatch.context() as patch:
            patch.setattr(node, 'create_publisher', lambda _kind, topic, _qos: Publisher(topic))
            options = parser().parse_args(['bag', '--rate', str(rate), *['--loop'] * loop])
            bag_player.BagPlayer(node, reader, options, watch).play()
    finally:
        reader.close()
    assert [topic for topic, _ in sent] == ['/camera/image', '/temperature'] * (len(sent) // 2)
    assert len(sent) == (2 * COUNT + 6 if loop else 2 * COUNT)
    images = [when for topic, when in sent if topic == '/camera/image']
    np.testing.assert_allclose(np.diff(images), PERIOD / 1e9 / rate, rtol=1e-6)


@pytest.mark.parametrize(('subscribed', 'came', 'begins'), [
    (0.0, 0.0, 3.5),  # a new node may not have found all that listen
    (2.0, 3.0, 6.5),  # nor one that came after it
    (20.0, 1.0, 20.0)])  # one that has loaded its network for long has
def test_the_wait_is_for_new_nodes_and_not_for_subscriptions(
        monkeypatch, subscribed, came, begins):
    watch, began = Watch(), []
    start = watch.now
    monkeypatch.setattr(bag_player.time, 'monotonic', watch.monotonic)
    monkeypatch.setattr(bag_player, 'wait_until_known',
                        lambda *_: began.append(watch.now - start))
    node = SimpleNamespace(
        get_logger=lambda: SimpleNamespace(info=lambda _: None),
        get_node_names_and_namespaces=lambda: [
            ('player', '/'), *[('other', '/')] * (watch.now - start >= came)])
    image = SimpleNamespace(
        topic_name='/image',
        get_subscription_count=lambda: int(watch.now - start >= subscribed))
    options = parser().parse_args(
        ['bag', '--wait-for-subscribers', '60', '--settle', '3.5', '--wait-for', '/image'])
    bag_player.wait_for_subscribers(node, {'/image': image}, options, watch)
    assert began == [pytest.approx(begins, abs=0.05)]


def test_clock_follows_the_bag(tmp_path):
    write_bag(tmp_path / 'bag', clock=True)
    topics = {**IMAGES, '/clock': 'rosgraph_msgs/msg/Clock'}
    listener, output = play(topics, tmp_path / 'bag', '--clock', 100, '--rate', 0.5)
    ticks = [
        message.clock.sec * 10**9 + message.clock.nanosec
        for message in (
            STORE.deserialize_cdr(data, 'rosgraph_msgs/msg/Clock')
            for data in listener.received['/clock']
        )
    ]
    # 100 Hz of wall time at half speed: every 5 ms of the bag. Of a clock only the newest counts,
    # so that one may be missing.
    assert (np.diff(ticks) > 0).all()
    assert (np.subtract(ticks, START) % 5_000_000 == 0).all()
    assert START <= ticks[0] <= ticks[-1] <= START + (COUNT - 1) * PERIOD
    assert len(ticks) > COUNT
    assert 'the recorded /clock is left out' in output


def test_unknown_types_are_skipped_counted_and_said_once(tmp_path):
    written = write_bag(tmp_path / 'bag', unknown=True)
    listener, output = play(IMAGES, tmp_path / 'bag')
    assert listener.received['/camera/image'] == written['/camera/image']
    assert output.count('nowhere_msgs/msg/Thing is not installed') == 1
    assert f'/thing: {COUNT} skipped' in output


def test_a_late_subscriber_gets_what_was_recorded_as_transient_local(tmp_path):
    qos = recorded_qos(QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, depth=COUNT)
    written = write_bag(tmp_path / 'bag', qos=[qos])
    player = start_player(tmp_path / 'bag', '--loop', '--rate', 0.0001)
    try:
        # From here on the first message is out, and the next is minutes away.
        assert any('playing' in line for line in player.stdout)
        from rclpy.qos import DurabilityPolicy, QoSProfile

        with Listener({}) as listener:
            got = []
            listener.node.create_subscription(
                message_type('sensor_msgs/msg/Image'),
                '/camera/image',
                got.append,
                QoSProfile(depth=5, durability=DurabilityPolicy.TRANSIENT_LOCAL),
                raw=True,
            )
            assert listener.spin_until(lambda: got)
        assert bytes(got[0]) == written['/camera/image'][0]
    finally:
        player.send_signal(signal.SIGTERM)
        assert player.wait(60) == 0
        player.communicate()


def test_real_raw_bag(shared_dir):
    topic = '/camera/color/image_raw'
    bag = shared_dir / 'bags' / 'rgbd_raw'
    listener, _ = play({topic: 'sensor_msgs/msg/Image'}, bag, '--rate', 5)
    reader = open_bag(bag)
    try:
        connections = [c for c in reader.connections if c.topic == topic]
        expected = [bytes(data) for _, _, data in reader.messages(connections)]
    finally:
        reader.close()
    assert listener.received[topic] == expected


# Errors --------------------------------------------------------------------------------------


def damage(tmp_path, kind):
    """A bag that cannot be played."""
    bag = tmp_path / 'bag'
    if kind == 'folder':
        bag.mkdir()
    elif kind == 'ros 1':
        bag = bag.with_suffix('.bag')
        bag.write_bytes(b'#ROSBAG V2.0\n' + bytes(64))
    elif kind == 'pipe':
        os.mkfifo(bag)
    elif kind == 'film':
        bag.write_bytes(b'abc')
    elif kind != 'missing':
        write_bag(bag, StoragePlugin.SQLITE3 if 'sqlite3' in kind else StoragePlugin.MCAP)
        data = next(file for file in bag.iterdir() if file.suffix in ('.mcap', '.db3'))
        if kind == 'no data':
            data.unlink()
        elif kind == 'metadata':
            (bag / 'metadata.yaml').write_text('nothing: here')
        elif kind == 'truncated mcap':
            data.write_bytes(data.read_bytes()[:-100])
        else:
            data.write_bytes(b'garbage' * 100)
    return bag


CORRUPT = "cannot be read as a rosbag2 bag: .* 'ros2 bag reindex .* 'mcap recover FILE"


@pytest.mark.parametrize(('kind', 'words'), [
    ('missing', 'There is no bag at'), ('folder', 'without metadata.yaml'),
    ('ros 1', 'rosbags-convert --src'), ('pipe', 'is not a bag but a pipe'),
    ('film', 'is not a bag: expected'), ('no data', CORRUPT), ('metadata', CORRUPT),
    ('garbage mcap', CORRUPT), ('garbage sqlite3', CORRUPT), ('truncated mcap', CORRUPT)])
def test_unreadable_bag(tmp_path, kind, words):
    with pytest.raises(BagError, match=words):
        open_bag(damage(tmp_path, kind))


def test_corruption_in_the_middle_is_said_when_it_is_reached(tmp_path):
    write_bag(tmp_path / 'bag', StoragePlugin.SQLITE3, CompressionMode.MESSAGE)
    import sqlite3

    with sqlite3.connect(tmp_path / 'bag' / 'bag.db3') as database:
        database.execute('UPDATE messages SET data = ? WHERE id = 9', (b'not zstd',))
    player = start_player(tmp_path / 'bag')
    output = player.communicate()[0]
    assert player.returncode == 1
    assert 'played 8 messages' in output
    assert 'cannot be read as a rosbag2 bag' in output
    assert 'Traceback' not in output


@pytest.mark.parametrize(('arguments', 'words'), [
    (['missing'], 'There is no bag at'),
    (['bag', '--topics', '/nothing'], 'It has: /camera/image, /temperature'),
    (['bag', '--remap', '/temperature:=no name'], "Couldn't parse remap rule"),
    (['bag', '--start-offset', '1000', '--loop', '--wait-for-subscribers', '0'],
     'Nothing is recorded 1000 s after'),
])
def test_errors_of_playing(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'DEFAULT')  # no profile for later tests
    write_bag(tmp_path / 'bag')
    assert main([str(tmp_path / arguments[0]), *arguments[1:]]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(('arguments', 'words'), [
    (['bag', '--rate', '0'], '0 must be greater than 0'),
    (['bag', '--remap', 'x'], "'x' is not OLD:=NEW"),
    (['bag', '--start-offset', '-1'], '-1 must not be negative'),
    (['bag', '--clock', '1e300'], 'at most a million'),
    ([], 'BAG'),
])
def test_errors_of_the_command_line(capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_nobody_subscribes(tmp_path):
    write_bag(tmp_path / 'bag')
    player = start_player(tmp_path / 'bag', '--wait-for-subscribers', 0.2, '--rate', 10)
    output = player.communicate()[0]
    assert player.returncode == 0
    assert 'no subscriber of any topic within 0.2 s' in output


def test_topics_as_json(tmp_path, capsys):
    write_bag(tmp_path / 'bag')
    assert main([str(next((tmp_path / 'bag').glob('*.mcap'))), '--list']) == 0
    assert json.loads(capsys.readouterr().out) == [
        ['/camera/image', 'sensor_msgs/msg/Image', COUNT],
        ['/temperature', 'sensor_msgs/msg/Temperature', COUNT]]


# Without a second process --------------------------------------------------------------------


def test_ros_arguments_are_set_apart():
    own, ros = split_ros_arguments(
        ['bag', '--remap', 'a:=b', '--ros-args', '-r', 'c:=d', '--', '--loop']
    )
    assert own == ['bag', '--remap', 'a:=b', '--loop']
    assert ros == ['--ros-args', '-r', 'c:=d', '--']


def test_quality_of_service_is_the_recorded_one_where_there_is_one():
    from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

    best_effort = recorded_qos(QosReliability.BEST_EFFORT, depth=3)
    latched = recorded_qos(QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, depth=1)
    profile = qos_profile([best_effort])
    assert (profile.reliability, profile.depth) == (ReliabilityPolicy.BEST_EFFORT, 3)
    profile = qos_profile([latched])
    assert (profile.durability, profile.depth) == (DurabilityPolicy.TRANSIENT_LOCAL, 1)
    # Nothing but loss is seen of the depth of what is reliable and not latched.
    assert qos_profile([recorded_qos(QosReliability.RELIABLE, depth=1)]).depth == 100
    for recorded in ([], [best_effort, latched]):
        profile = qos_profile(recorded)
        assert profile.reliability == ReliabilityPolicy.RELIABLE
        assert profile.durability == DurabilityPolicy.VOLATILE


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_topics_of_a_folder_and_of_a_lone_file(tmp_path, storage):
    write_bag(tmp_path / 'bag', storage)
    expected = [
        BagTopic('/camera/image', 'sensor_msgs/msg/Image', COUNT),
        BagTopic('/temperature', 'sensor_msgs/msg/Temperature', COUNT),
    ]
    assert bag_topics(tmp_path / 'bag') == expected
    file = next(p for p in (tmp_path / 'bag').iterdir() if p.suffix in ('.mcap', '.db3'))
    lone = Path(shutil.copy(file, tmp_path))
    assert bag_topics(lone) == expected


@pytest.mark.parametrize('ask', [bag_topics, custom_data])
def test_metadata_that_says_nothing_is_refused_by_all_who_ask(tmp_path, ask):
    (tmp_path / 'metadata.yaml').write_text('rosbag2_bagfile_information: []\n')
    with pytest.raises(BagError, match='as a rosbag2 bag: rosbag2_bagfile_information is'):
        ask(tmp_path)


RAW, JPEG, INFO = (f'sensor_msgs/msg/{kind}'
                   for kind in ('Image', 'CompressedImage', 'CameraInfo'))


def topics_of(*names, count=1):
    """Topics, each of the type that its name tells."""
    return [BagTopic(name, INFO if name.endswith('camera_info') else
                     JPEG if name.endswith('compressed') else RAW, count) for name in names]


@pytest.mark.parametrize(('topics', 'image', 'expected'), [
    (topics_of('/c/depth/image', '/c/depth/camera_info', '/c/color/image_raw',
               '/c/color/camera_info'), '', ('/c/color/image_raw', '/c/color/camera_info', False)),
    (topics_of('/c/image_raw/compressed', '/c/camera_info'), '',
     ('/c/image_raw', '/c/camera_info', True)),
    (topics_of('/c/image_raw', '/c/image_raw/compressed'), '', ('/c/image_raw', None, False)),
    (topics_of('/a/image', '/b/image', '/b/camera_info'), 'b/image',
     ('/b/image', '/b/camera_info', False)),
    (topics_of('/a/image', '/a/image/compressed'), '/a/image/compressed',
     ('/a/image', None, True)),
    (topics_of('/a/image') + topics_of('/b/image', count=0), '', ('/a/image', None, False)),
])
def test_camera_of_a_bag(topics, image, expected):
    assert camera_topics(topics, image) == CameraTopics(*expected)


@pytest.mark.parametrize(('names', 'image', 'words'), [
    (['/a/image', '/b/image'], '', 'several cameras: /a/image, /b'),
    (['/depth/image'], '', 'no camera image .* /depth/image'),
    (['/camera_info'], '', 'no camera image'),
    (['/a/image'], '/c/image', "no images on '/c/image'. .*: /a/image"),
])
def test_no_camera_or_too_many(names, image, words):
    with pytest.raises(BagError, match=words):
        camera_topics(topics_of(*names), image)


@pytest.mark.parametrize('names', [['/a/image', '/b/image'], ['/depth/image']])
def test_which_camera_is_said_as_the_caller_is_told(names):
    topics = topics_of(*names)
    with pytest.raises(BagError, match='with image:=TOPIC') as launched:
        camera_topics(topics)
    assert ('cameras:=' in str(launched.value)) == (len(names) > 1)
    with pytest.raises(BagError, match=r'with --topic TOPIC\.$') as called:
        camera_topics(topics, choice='--topic TOPIC')
    assert ':=' not in str(called.value)
