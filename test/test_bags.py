# SPDX-License-Identifier: Apache-2.0
"""`depthclip bag`: bags in, bags with depth out."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import zstandard

pytest.importorskip('rosbags', reason='rosbags is not installed')
import bags
import clip_standin
from bags import DEPTH, FRAMES, IMAGE, INFO, STORE, STRANGE
from calibrations import origin, random_arrays
from mcap.reader import make_reader
from mcap.stream_reader import breakup_chunk
from mcap.writer import IndexType
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosHistory
from rosbags.rosbag2 import CompressionMode, Reader, StoragePlugin

from depthclip_ros.bags import Options, convert, is_done
from depthclip_ros.cli.main import main
from depthclip_ros.core import CameraImage, DepthConfig, DepthEstimator
from depthclip_ros.core.calibration import Calibration
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.core.config import PAPER_BINS
from depthclip_ros.core.errors import BagError, ConfigError
from depthclip_ros.messages import image_io
from depthclip_ros.messages.depth import to_depth
from depthclip_ros.messages.node_config import NodeConfig
from depthclip_ros.messages.outputs import OUTPUTS
from depthclip_ros.resources import config_path
from depthclip_ros.sources.bag import (
    Bag,
    BagTopic,
    CameraTopics,
    bag_topics,
    camera_topics,
    custom_data,
    language_depth_topics,
)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'bags'
NODE = NodeConfig(weights='demo')
ALL = Options(node=NODE)
TWO = dataclasses.replace(ALL, node=NODE.replace(cameras=('front', 'rear')))
NEW = ('/depth/image', '/depth/camera_info', '/points')


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def estimator():
    # What is tested is that depth goes its way, not how good it is.
    return DepthEstimator(
        DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0),
        clip_standin.tiny_state_dict(), 'cpu')


@pytest.fixture(scope='module')
def demo():
    return DepthEstimator(DepthConfig.from_yaml(config_path('demo')), weights='demo', device='cpu',
                          num_threads=1)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return bags.rendered(tmp_path_factory.mktemp('bags') / 'room')


@pytest.fixture(scope='module')
def converted(source, estimator, tmp_path_factory):
    output = tmp_path_factory.mktemp('converted') / 'deep'
    return convert(source, output, estimator, ALL), output


def read(path, topic):
    with Reader(path) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        return [(time, STORE.deserialize_cdr(data, c.msgtype))
                for c, time, data in reader.messages(connections)]


def described(path):
    with Reader(path) as reader:
        return {c.topic: (c.msgtype, c.msgdef, c.digest, c.ext) for c in reader.connections}


def metres(message):
    return message.data.view(np.float32).reshape(message.height, message.width)


def two_cameras(source, path, cameras=(('front', 0), ('rear', 20_000_000))):
    """The bag's camera twice, /front and /rear, the second 20 ms late."""
    return bags.changed(source, path, lambda topic, _, time: [
        (f'/{name}/{topic.rpartition("/")[2]}', time + late)
        for name, late in cameras if topic in (IMAGE, INFO)])


# What is written --------------------------------------------------------------------------------


def test_every_image_gets_depth_and_all_else_is_copied(source, converted):
    report, output = converted
    before, after = bags.messages(source), bags.messages(output)
    assert {topic: after[topic] for topic in after if topic not in NEW} == before
    assert report.topics == {topic: len(found) for topic, found in after.items()}
    images = read(output, IMAGE)
    for topic in NEW:
        assert [time for time, _ in after[topic]] == [time for time, _ in before[IMAGE]]
        for (_, image), (_, message) in zip(images, read(output, topic), strict=True):
            assert message.header == image.header
    assert (report.images, report.answered) == (FRAMES, FRAMES)
    with AnyReader([output]) as reader:  # which checks the types' hashes
        order = [connection.topic for connection, *_ in reader.messages()]
    assert all(order[place + 1:place + 4] == list(NEW)
               for place, topic in enumerate(order) if topic == IMAGE)
    for topic in NEW:
        kind, _, digest, ext = described(output)[topic]
        qos, = ext.offered_qos_profiles
        assert (qos.reliability.name, qos.durability.name, qos.depth) \
            == ('RELIABLE', 'VOLATILE', 5)
        assert digest == STORE.hash_rihs01(kind)


@pytest.mark.parametrize(('storage', 'compression'), [
    (StoragePlugin.SQLITE3, CompressionMode.MESSAGE), (StoragePlugin.SQLITE3, None),
    (StoragePlugin.MCAP, CompressionMode.FILE)])
def test_a_bag_stays_what_it_is(source, estimator, converted, tmp_path, storage, compression):
    """Storage, compression, and what is known of each topic, also of a type of nobody's."""
    own = bags.changed(
        source, tmp_path / 'own',
        lambda topic, _, time: [(topic, time), *[('/thing', time)] * (topic == DEPTH)],
        kinds={'/thing': STRANGE}, storage=storage, compression=compression,
        qos=[bags.qos(depth=7)], version=9)
    convert(own, tmp_path / 'out', estimator, ALL)
    after = bags.messages(tmp_path / 'out')
    assert {topic: after[topic] for topic in after if topic not in NEW} == bags.messages(own)
    assert [after[topic] for topic in NEW] == [bags.messages(converted[1])[t] for t in NEW]
    known = described(tmp_path / 'out')
    assert {topic: known[topic] for topic in known if topic not in NEW} == described(own)
    assert known[IMAGE][-1].offered_qos_profiles == [bags.qos(depth=7)]
    with Bag(own) as before, Bag(tmp_path / 'out') as bag:
        assert bag.is_mcap == before.is_mcap == (storage == StoragePlugin.MCAP)
        assert bag.metadata.compression == ('none' if bag.is_mcap else before.metadata.compression)


def test_depth_as_png_is_millimetres(source, estimator, converted, tmp_path):
    report = convert(source, tmp_path / 'png', estimator,
                     dataclasses.replace(ALL, compressed_depth=True))
    topic = '/depth/image/compressedDepth'
    assert report.topics[topic] == FRAMES
    assert '/depth/image' not in report.topics
    for (_, png), (_, exact) in zip(read(tmp_path / 'png', topic), read(converted[1], NEW[0]),
                                    strict=True):
        assert png.format == '16UC1; compressedDepth png'
        assert np.abs(to_depth(png) - metres(exact)).max() <= 0.501e-3


def test_what_cannot_be_used_is_counted_with_its_cause(source, estimator, tmp_path):
    kind, recorded = 'sensor_msgs/msg/CompressedImage', []
    for number, (time, image) in enumerate(read(source, IMAGE)):
        _, data = cv2.imencode('.jpg', image_io.to_rgb(image)[..., ::-1])
        message = STORE.types[kind](header=image.header, format='rgb8; jpeg compressed bgr8',
                                    data=data.reshape(-1)[:None if number else 100])
        raw = bytes(STORE.serialize_cdr(message, kind))
        recorded.append(('/cam/image/compressed', time, raw if number != 1 else raw[:20]))
    bags.write(tmp_path / 'jpeg', recorded, {'/cam/image/compressed': kind})
    outputs, said = ('image', 'image_color', 'words', 'spread'), []
    options = dataclasses.replace(ALL, namespace='robot', outputs=(
        *(f'depth/{name}' for name in outputs), 'points', 'depth/stddev'))
    report = convert(tmp_path / 'jpeg', tmp_path / 'out', estimator, options, log=said.append)
    assert report.rejected == {'truncated jpeg': 1, 'unreadable message': 1}
    assert report.unprojected == {'absent': FRAMES - 2}
    assert report.topics == {'/cam/image/compressed': FRAMES, **{
        f'/robot/depth/{name}': FRAMES - 2 for name in outputs}}
    assert sum('truncated jpeg' in line for line in said) == 1
    assert any('depth/stddev' in line and 'depthclip calibrate' in line for line in said)


def test_several_cameras_go_as_one_batch(source, estimator, tmp_path, monkeypatch):
    path, sizes = two_cameras(source, tmp_path / 'two'), []
    often = two_cameras(source, tmp_path / 'often', (
        ('front', 0), ('front', 10_000_000), ('rear', 20_000_000)))
    predict = estimator.predict
    monkeypatch.setattr(estimator, 'predict', lambda images, *rest, **more: (
        sizes.append(len(images)), predict(images, *rest, **more))[1])
    report = convert(path, tmp_path / 'out', estimator, TWO)
    assert sizes == [2] * FRAMES
    sizes.clear()
    convert(often, tmp_path / 'oftener', estimator, TWO)
    assert sizes == [1, 2] * FRAMES
    after = bags.messages(tmp_path / 'out')
    for name in ('front', 'rear'):
        assert report.topics[f'/{name}/points'] == FRAMES
        assert [t for t, _ in after[f'/{name}/depth/image']] \
            == [t for t, _ in after[f'/{name}/image_raw']]
    with pytest.raises(ConfigError, match='1 topics for 2 cameras'):
        convert(path, tmp_path / 'x', estimator,
                dataclasses.replace(TWO, images=('/front/image_raw',)))


def test_a_batch_that_fails_goes_one_by_one_and_a_dead_network_ends_it(
        source, estimator, tmp_path, monkeypatch):
    path, predict, most = two_cameras(source, tmp_path / 'two'), estimator.predict, 1

    def failing(images, *rest, **more):
        if len(images) > most:
            raise RuntimeError('the device is gone')
        return predict(images, *rest, **more)
    monkeypatch.setattr(estimator, 'predict', failing)
    assert convert(path, tmp_path / 'out', estimator, TWO).answered == 2 * FRAMES
    most = 0
    with pytest.raises(BagError, match='fails on every image: RuntimeError: the device is gone'):
        convert(path, tmp_path / 'dead', estimator, TWO)
    assert not (tmp_path / 'dead').exists()


@pytest.mark.parametrize(('chosen', 'numbers'), [
    ({'every': 5}, [0, 5, 10]), ({'rate': 2.0}, [0, 5, 10]),
    ({'start': 0.25, 'end': 0.85, 'every': 2}, [3, 5, 7])])
def test_some_images_get_depth(source, estimator, converted, tmp_path, chosen, numbers):
    report = convert(source, tmp_path / 'out', estimator, dataclasses.replace(ALL, **chosen))
    after, before = bags.messages(tmp_path / 'out'), bags.messages(source)
    whole = bags.messages(converted[1])
    assert after[NEW[0]] == [whole[NEW[0]][n] for n in numbers]
    kept = range(3, 9) if 'start' in chosen else range(FRAMES)
    assert after[IMAGE] == [before[IMAGE][n] for n in kept]
    assert report.left_out == len(kept) - len(numbers)


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_a_part_begins_with_what_was_latched_before(source, estimator, tmp_path, storage):
    """As a late subscriber gets it: of each publisher the last one, but transforms all."""
    with Reader(source) as reader:
        recorded = [(c.topic, time, bytes(data), c.msgtype) for c, time, data in reader.messages()]
    begin = recorded[0][1]
    numbers = {'/tf_static': range(3), '/one': [2], '/two': [1, 2], '/all': range(3),
               '/volatile': [], '/mixed': []}
    recorded += [(topic, begin + n, bytes([0, 1, 0, 0, n]), STRANGE)
                 for topic in numbers for n in range(3)]
    recorded.append(('/one', begin + 10**9, bytes([0, 1, 0, 0, 9]), STRANGE))
    latched, volatile = bags.LATCHED, bags.qos()
    every = latched._replace(history=QosHistory.KEEP_ALL)
    whole = bags.write(
        tmp_path / 'whole', [message[:3] for message in sorted(recorded, key=lambda m: m[1])],
        {topic: kind for topic, _, _, kind in recorded}, storage=storage, qos={
            '/tf_static': [latched], '/one': [latched], '/two': [latched] * 2, '/all': [every],
            '/volatile': [volatile], '/mixed': [latched, volatile], IMAGE: [latched]})
    report = convert(whole, tmp_path / 'out', estimator, dataclasses.replace(ALL, start=0.5))
    before, after = bags.messages(whole), bags.messages(tmp_path / 'out')
    start = begin + 5 * 10**8
    for topic in {topic for topic, *_ in recorded}:
        kept = [(start, before[topic][n][1]) for n in numbers.get(topic, ())]
        assert after.get(topic, []) == kept + [m for m in before[topic] if m[0] >= start], topic
    assert report.topics == {topic: len(found) for topic, found in after.items()}
    assert report.answered == len(after[IMAGE]) == len(after[NEW[0]])


@pytest.mark.parametrize(('chosen', 'count'), [({}, FRAMES), ({'start': 0.75}, 4)])
def test_the_camera_info_that_counts(source, estimator, converted, tmp_path, chosen, count):
    """The last one before what is converted; before the first one, that one."""
    later = bags.changed(source, tmp_path / 'later', lambda topic, number, time: [
        (topic, time)] if topic != INFO or number == 5 else [])
    convert(later, tmp_path / 'out', estimator, dataclasses.replace(ALL, **chosen))
    found = bags.messages(tmp_path / 'out')['/points']
    assert len(found) == count
    assert found == bags.messages(converted[1])['/points'][-count:]


def test_a_peculiar_camera_info_is_used_and_said_once(source, estimator, converted, tmp_path):
    """Without R and P, and with binning that K has already."""
    kinds = {IMAGE: 'sensor_msgs/msg/Image', INFO: 'sensor_msgs/msg/CameraInfo'}
    said, recorded = [], [(topic, *message) for topic in (IMAGE, INFO)
                          for message in bags.messages(source)[topic]]
    for number, (topic, time, data) in enumerate(recorded):
        if topic == INFO:
            info = STORE.deserialize_cdr(data, kinds[INFO])
            info.width, info.height, info.binning_x, info.binning_y = 256, 192, 4, 4
            info.r, info.p = np.zeros(9), np.zeros(12)
            recorded[number] = topic, time, bytes(STORE.serialize_cdr(info, kinds[INFO]))
    bags.write(tmp_path / 'binned', sorted(recorded, key=lambda one: one[1]), kinds)
    convert(tmp_path / 'binned', tmp_path / 'out', estimator, ALL, log=said.append)
    after, before = bags.messages(tmp_path / 'out'), bags.messages(converted[1])
    assert after['/points'] == before['/points']
    assert after['/depth/camera_info'] == before['/depth/camera_info']
    assert sum('binning' in line for line in said) == sum('zeros' in line for line in said) == 1


def test_an_anchor_of_the_bag_fixes_the_scale(source, estimator, converted, tmp_path):
    options = dataclasses.replace(ALL, node=NODE.replace(anchor='depth'), anchor_topic=DEPTH)
    convert(source, tmp_path / 'anchored', estimator, options)

    def error(path):
        pairs = zip(read(path, NEW[0]), read(source, DEPTH), strict=True)
        return np.median([np.abs(np.log(metres(found) / metres(true))).mean()
                          for (_, found), (_, true) in pairs])
    assert error(tmp_path / 'anchored') < 0.8 * error(converted[1])
    with pytest.raises(BagError, match='--anchor-topic'):
        convert(source, tmp_path / 'x', estimator, dataclasses.replace(
            ALL, node=NODE.replace(anchor='scan')))


def test_scenes_remember_the_images_of_their_own_camera(source, tmp_path):
    near, far = (tuple(factor * bins for bins in PAPER_BINS) for factor in (0.5, 4.0))
    scenic = DepthEstimator(
        DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=3.0,
                    scenes=('corridor', 'bathroom'), scene_bins=(*near, *far),
                    scene_temperature=2.0, scene_memory=0.9),
        clip_standin.tiny_state_dict(), 'cpu')
    convert(two_cameras(source, tmp_path / 'two'), tmp_path / 'out', scenic, TWO)
    camera, scene = CameraModel.from_info(read(source, INFO)[0][1], rectified=False), None
    pairs = zip(read(source, IMAGE), read(tmp_path / 'out', '/front/depth/image'),
                read(tmp_path / 'out', '/rear/depth/image'), strict=True)
    for (_, image), (_, front), (_, rear) in pairs:
        rgb = image_io.to_rgb(image)
        expected, _ = scenic.predict([CameraImage(rgb, camera, scene=scene)] * 2)
        np.testing.assert_array_equal(metres(front), expected.depth)
        np.testing.assert_array_equal(metres(rear), expected.depth)
        scene = expected.scene


# Done and not done ------------------------------------------------------------------------------


KILLED = """
import os, signal, sys
for name in ('rclpy', 'sensor_msgs', 'std_msgs', 'builtin_interfaces', 'tf2_msgs'):
    sys.modules[name] = None
from depthclip_ros.cli.main import main
from depthclip_ros.core import DepthEstimator
answered, predict = [], DepthEstimator.predict

def until_the_fifth(*arguments, **named):
    answered.append(1)
    if len(answered) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(*arguments, **named)

DepthEstimator.predict = until_the_fifth
main(sys.argv[1:])
"""


def test_a_killed_run_is_made_again_and_a_done_one_is_left(source, tmp_path, capsys):
    """The killed one has no ROS, either: its packages cannot be imported there."""
    output = tmp_path / 'deep'
    command = ['bag', str(source), '-o', str(output), '--weights', 'demo', '--device', 'cpu']
    killed = subprocess.run(
        [sys.executable, '-c', KILLED, *command], check=False, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['deep.partial']
    assert main(command) == 1
    assert '--resume' in capsys.readouterr().err
    assert main([*command, '--resume']) == 0
    assert f'{FRAMES} of {FRAMES} images have depth' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ['deep']
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    for more, status, words in (([], 1, 'not overwritten'), (['--resume'], 0, 'is done already'),
                                (['--resume', '--every', '2'], 1, 'other settings')):
        assert main([*command, *more]) == status
        assert words in ''.join(capsys.readouterr())
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir()}


def test_a_bag_is_done_for_this_source_and_these_settings(source, estimator, tmp_path):
    own = bags.rendered(tmp_path / 'own', frames=2)
    assert not is_done(own, tmp_path / 'out', estimator.config, ALL)
    convert(own, tmp_path / 'out', estimator, ALL)
    elsewhere = dataclasses.replace(ALL, node=NODE.replace(device='cpu', num_threads=1))
    assert is_done(own, tmp_path / 'out', estimator.config, elsewhere)
    with pytest.raises(BagError, match='other settings'):
        is_done(own, tmp_path / 'out', estimator.config.replace(range_max=3.0), ALL)
    os.utime(next(own.glob('*.mcap')), (1, 1))
    with pytest.raises(BagError, match='another bag'):
        is_done(own, tmp_path / 'out', estimator.config, ALL)
    assert custom_data(tmp_path / 'out')['depthclip_weights'].endswith(estimator.weights.digest)


def test_what_fails_leaves_nothing(source, converted, tmp_path):
    def unwanted():
        pytest.fail('the model was loaded in vain')

    (tmp_path / 'there').mkdir()
    for path, output, options, words in (
            (source, 'there', ALL, 'not overwritten'),
            (source, 'x', dataclasses.replace(ALL, images=('/nothing',)), 'no images on'),
            (converted[1], 'x', dataclasses.replace(ALL, images=(IMAGE,)), '--namespace'),
            (source, 'x', dataclasses.replace(ALL, start=2.0), r'1\.100 s long')):
        with pytest.raises(BagError, match=words):
            convert(path, tmp_path / output, unwanted, options)
    assert [path.name for path in tmp_path.iterdir()] == ['there']
    with pytest.raises(ConfigError, match='leave nothing'):
        Options(start=2.0, end=1.0)


def test_a_full_disk_is_said_and_leaves_nothing(source, estimator, tmp_path):
    """As the system says it: no file may grow beyond a limit."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(BagError, match=r'cannot be written.*Make room'):
            convert(source, tmp_path / 'out', estimator, ALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


# Reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(('storage', 'damage', 'words'), [
    (StoragePlugin.MCAP, 'end', 'without its end.*mcap recover .*bag.mcap'),
    (StoragePlugin.MCAP, 'middle', 'damaged mcap.*mcap recover .*bag.mcap'),
    (StoragePlugin.MCAP, 'empty', 'is empty'),
    (StoragePlugin.SQLITE3, 'end', 'damaged SQLite database.*sqlite3 .*bag.db3 .recover')])
def test_a_damaged_bag_ends_with_the_tool_that_saves_it(
        source, estimator, tmp_path, storage, damage, words):
    bag = bags.changed(source, tmp_path / 'bag', lambda topic, _, time: [(topic, time)],
                       storage=storage, compression=CompressionMode.STORAGE
                       if damage == 'middle' else None)
    file = next(bag.glob('bag.*'))
    if damage == 'middle':
        data = bytearray(file.read_bytes())
        data[len(data) // 2:len(data) // 2 + 200] = bytes(200)
        file.write_bytes(data)
    else:
        bags.cut(file, 0.7 if damage == 'end' else 0)
    with pytest.raises(BagError, match=words):
        convert(bag, tmp_path / 'out', estimator, ALL)
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_topics_of_a_folder_and_of_a_lone_file(source, tmp_path, storage):
    path = bags.changed(source, tmp_path / 'bag', lambda topic, _, time: [(topic, time)],
                        storage=storage)
    expected = sorted((topic, len(found)) for topic, found in bags.messages(source).items())
    file = next(path.glob('bag.*'))
    for found in (bag_topics(path), bag_topics(file), Bag(path).topics, Bag(file).topics):
        assert sorted((topic.name, topic.count) for topic in found) == expected


def topics_of(*names, count=1):
    """Topics, each of the type that its name tells."""
    return [BagTopic(name, f'sensor_msgs/msg/{kind}', count) for name in names for kind in (
        'CameraInfo' if name.endswith('camera_info') else
        'CompressedImage' if name.endswith('compressed') else 'Image',)]


@pytest.mark.parametrize(('topics', 'image', 'expected'), [
    (topics_of('/c/depth/image', '/c/depth/camera_info', '/c/color/image_raw',
               '/c/color/camera_info'), '', ('/c/color/image_raw', '/c/color/camera_info', False)),
    (topics_of('/c/image_raw/compressed', '/c/camera_info'), '',
     ('/c/image_raw/compressed', '/c/camera_info', True)),
    (topics_of('/c/image_raw', '/c/image_raw/compressed'), '', ('/c/image_raw', '', False)),
    (topics_of('/a/image', '/b/image', '/b/camera_info'), 'b/image',
     ('/b/image', '/b/camera_info', False)),
    (topics_of('/a/image', '/a/image/compressed'), '/a/image/compressed',
     ('/a/image/compressed', '', True)),
    (topics_of('/a/image') + topics_of('/b/image', count=0), '', ('/a/image', '', False)),
    (topics_of('/a/image', '/b/image'), '', 'several cameras: /a/image, /b.* with --one, or two'),
    (topics_of('/depth/image'), '', r'no camera image .* /depth/image\..* with --one'),
    (topics_of('/camera_info'), '', 'no camera image'),
    (topics_of('/a/image'), '/c/image', "no images on '/c/image'. .*: /a/image"),
])
def test_the_camera_of_a_bag(topics, image, expected):
    if isinstance(expected, tuple):
        assert camera_topics(topics, image, '--one') == CameraTopics(*expected)
        return
    with pytest.raises(BagError, match=expected):
        camera_topics(topics, image, '--one, or two')


@pytest.mark.parametrize(('kind', 'words'), [
    ('missing', 'There is no bag at'), ('pipe', 'is not a bag: expected'),
    ('film', 'is not a bag: expected'), ('folder', 'no metadata.yaml'),
    ('old.bag', "is a ROS 1 bag. Convert it once: 'rosbags-convert --src .* --dst .*'"),
    ('metadata', 'metadata.yaml does not describe a bag')])
def test_what_is_no_bag(tmp_path, kind, words):
    path = tmp_path / (kind if kind == 'old.bag' else 'bag')
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind in ('film', 'old.bag'):
        path.write_bytes(b'abc')
    elif kind != 'missing':
        path.mkdir()
    if kind == 'metadata':
        (path / 'metadata.yaml').write_text('rosbag2_bagfile_information: []')
    for ask in (Bag, bag_topics, custom_data):
        with pytest.raises(BagError, match=words):
            ask(path)


# As others write them ----------------------------------------------------------------------------

# Topics with encoding, type, encoding and text of the schema, and a message.
FOREIGN = [
    ('/unknown', 'cdr', 'demo_msgs/msg/Unknown', 'unknown', b'', b'\0\1\0\0\7'),
    ('/none', 'cdr', '', '', b'', b'\0\1\0\0'),
    ('/protobuf', 'protobuf', 'demo.A', 'protobuf', b'\x0a\xff', b'\x28\xb5\x2f\xfd as zstd')]


def whole_mcap(path):
    """All that lies in an mcap file, but what rosbag2 notes."""
    found = []
    with path.open('rb') as file:
        reader = make_reader(file)
        for schema, channel, message in reader.iter_messages():
            about = (schema.name, schema.encoding, schema.data) if schema else ()
            found.append((channel.topic, channel.message_encoding, channel.metadata, about,
                          message.log_time, message.publish_time, message.sequence, message.data))
        found += reader.iter_attachments()
        found += [note for note in reader.iter_metadata() if note.name != 'rosbag2']
    return found


def test_all_of_an_mcap_is_in_the_new_one(source, estimator, tmp_path):
    def beside(writer):
        writer.add_metadata('note', {'driver': 'me'})
        writer.add_attachment(1, 2, 'calibration.yaml', 'text/yaml', b'k: 1')
    path = bags.lone_mcap(source, tmp_path / 'in.mcap', extra=FOREIGN, beside=beside)
    convert(path, tmp_path / 'out', estimator, ALL)
    before, after = whole_mcap(path), whole_mcap(tmp_path / 'out' / 'out.mcap')
    assert [entry for entry in after if not (
        isinstance(entry, tuple) and entry[0] in NEW)] == before
    assert {topic.name for topic in bag_topics(tmp_path / 'out')} \
        == {IMAGE, INFO, *NEW, *(topic for topic, *_ in FOREIGN)}


def test_types_of_a_database_may_be_unknown(source, estimator, tmp_path):
    own = bags.changed(source, tmp_path / 'own', lambda topic, _, time: [
        (topic, time), *[('/thing', time)] * (topic == DEPTH)], kinds={'/thing': STRANGE},
        storage=StoragePlugin.SQLITE3)
    with sqlite3.connect(own / 'own.db3') as database:
        database.execute("UPDATE message_definitions SET encoding = 'unknown', "
                         "encoded_message_definition = '' WHERE topic_type = ?", (STRANGE,))
    convert(own, tmp_path / 'out', estimator, ALL)
    query = 'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions'
    before, after = (set(sqlite3.connect(path).execute(query)) for path in (
        own / 'own.db3', tmp_path / 'out' / 'out.db3'))
    assert (STRANGE, 'unknown', '') in before
    assert before < after


NO_INDEX = {'index_types': IndexType.NONE, 'use_statistics': False, 'repeat_channels': False,
            'repeat_schemas': False, 'use_summary_offsets': False}
OPTIONS = {
    'whole index': {}, 'no index': NO_INDEX, 'no chunks, no index': {
        'use_chunking': False, **NO_INDEX},
    'topics not repeated': {'repeat_channels': False, 'repeat_schemas': False},
    'no statistics': {'use_statistics': False}}


def as_others_write(kind, source, folder):
    """A bag of the kind; gives what to open."""
    folder.mkdir()
    if kind not in OPTIONS:
        own = bags.changed(source, folder / 'own', lambda topic, _, time: [(topic, time)],
                           storage=StoragePlugin.SQLITE3)
        bags.edit_metadata(own, storage_identifier='', version=12, files=None)
        if kind == 'database in zstd':
            file, packed = own / 'own.db3', folder / 'own.db3.zstd'
            packed.write_bytes(zstandard.compress(file.read_bytes()))
            return packed
        return own.rename(folder / '50%41?x#') if kind == 'strange path' else own
    return bags.lone_mcap(source, folder / 'in.mcap', **OPTIONS[kind])


@pytest.mark.parametrize('kind', [
    *OPTIONS, 'metadata of a later version', 'database in zstd', 'strange path'])
def test_a_whole_bag_is_read_however_it_is_stored(source, tmp_path, kind):
    path = as_others_write(kind, source, tmp_path / 'in')
    expected = bags.messages(source)
    with Bag(path) as bag:
        for topic in (IMAGE, INFO):
            found = [(time, data) for _, time, data in bag.messages({topic})]
            assert found == expected[topic]
        middle = expected[IMAGE][5][0]
        assert [time for _, time, _ in bag.messages({IMAGE}, middle, middle + 1)] == [middle]
        assert (bag.begin, bag.end) == (expected[IMAGE][0][0], expected[IMAGE][-1][0] + 1)
        counts = {topic.name: topic.count for topic in bag.topics}
        assert (counts[IMAGE], counts[INFO]) == (FRAMES, FRAMES)


@pytest.mark.parametrize(('kind', 'words'), [
    ('start only', 'without its end'), ('ros1', 'rosbags-convert'), ('cut zstd', 'zstd -d'),
    ('damaged at the end', 'damaged mcap'), ('fewer', 'messages, but holds'),
    ('no topic', 'no camera image')])
def test_what_is_wrong_with_a_file_is_found_before_a_model_is_asked_for(
        source, tmp_path, monkeypatch, kind, words):
    path = bags.lone_mcap(source, tmp_path / 'in.mcap', chunk_size=20_000)
    whole = bytearray(path.read_bytes())
    with path.open('rb') as file:
        last = make_reader(file).get_summary().chunk_indexes[-1]
    if kind == 'damaged at the end':
        whole[last.chunk_start_offset + 100:last.chunk_start_offset + 200] = bytes(100)
    elif kind == 'cut zstd':
        path = tmp_path / 'in.mcap.zstd'
    elif kind == 'fewer':
        monkeypatch.setattr('mcap.reader.breakup_chunk',
                            lambda chunk, validate_crc: breakup_chunk(chunk, validate_crc)[:-1])
    path.write_bytes({'start only': whole[:8], 'ros1': b'#ROSBAG V2.0\n',
                      'cut zstd': zstandard.compress(whole)[:2000]}.get(kind, whole))
    if kind == 'no topic':
        with path.open('wb') as file:
            writer = bags.McapWriter(file)
            writer.start('ros2')
            writer.finish()
    with pytest.raises(BagError, match=words):
        convert(path, tmp_path / 'out', lambda: pytest.fail('a model was loaded in vain'), ALL)
    assert not (tmp_path / 'out').exists()


def image_message(kind, encoding, data=bytes(64 * 48 * 3)):
    types = STORE.types
    header = types['std_msgs/msg/Header'](types['builtin_interfaces/msg/Time'](1, 0), 'camera')
    data = np.frombuffer(data, np.uint8)
    message = types[kind](header, 48, 64, encoding, 0, len(data) // 48, data) \
        if kind.endswith('/Image') else types[kind](header, encoding, data)
    return bytes(STORE.serialize_cdr(message, kind))


def png(pixels):
    return cv2.imencode('.png', pixels)[1].tobytes()


@pytest.mark.parametrize(('topics', 'camera'), [
    ({'/depth_camera/image_raw': 'rgb8'}, '/depth_camera/image_raw'),
    ({'/oak/stereo/image_raw': '16UC1', '/oak/rgb/image_raw': 'rgb8'}, '/oak/rgb/image_raw'),
    ({'/a/image': '32FC1', '/masked_robot/image_raw': 'bayer_rggb8'}, '/masked_robot/image_raw'),
    ({'/c/image_jpeg': 'jpeg', '/c/info': 'rgb8; compressedDepth png'}, '/c/image_jpeg'),
    ({'/c/rect': '16UC1; png compressed', '/c/image/compressed': 'jpeg'}, '/c/image/compressed'),
    ({'/c/image': 'mono16', '/depth/image_raw': 'mono16'}, '/c/image'),
    ({'/c/image': 'rgb8', '/depth/image_color': 'bgr8', '/c/labels_map': 'mono8'}, '/c/image'),
    ({'/c/image': 'rgb8', '/c/image/zstd': 'zstd', '/c/image/compressed': 'jpeg'}, '/c/image')])
def test_pictures_and_depth_are_told_apart_by_their_encoding_first(tmp_path, topics, camera):
    raw, packed = (f'sensor_msgs/msg/{name}' for name in ('Image', 'CompressedImage'))
    grey = png(np.ones((48, 64), np.uint16))
    kinds, recorded = {}, []
    for time, (topic, encoding) in enumerate(topics.items(), 1):
        kinds[topic] = packed if any(word in encoding for word in ('jp', 'png', 'zs')) else raw
        data = {'jpeg': b'\xff\xd8\xff', 'zstd': b'\x28\xb5\x2f\xfd',
                '16UC1; png compressed': grey, 'rgb8; compressedDepth png': bytes(12) + grey}
        recorded.append((topic, time, image_message(
            kinds[topic], encoding, data.get(encoding, bytes(64 * 48 * 3)))))
    bags.write(tmp_path / 'bag', recorded, kinds)
    assert camera_topics(bag_topics(tmp_path / 'bag'), '', '--one').topic == camera


def test_topics_of_this_package_are_known_by_its_mark(source, converted, tmp_path):
    again = tmp_path / 'node'
    names = {topic: f'/robot{topic}' for topic in NEW}
    bags.changed(converted[1], again, lambda topic, _, time: [
        (names.get(topic, topic), time),
        *[('/robot/depth/words', time)] * (topic == IMAGE)])
    sensor = bags.changed(source, tmp_path / 'sensor', lambda topic, _, time: [
        (topic.replace('/camera/depth/image_raw', '/depth/image').replace(
            '/camera/depth', '/depth'), time)])
    file, = converted[1].glob('*.mcap')
    for path, expected in (
            (converted[1], {*NEW}), (file, {*NEW}), (sensor, set()),
            (again, {*names.values(), '/robot/depth/words'})):
        with Bag(path) as bag:
            assert language_depth_topics(bag) == expected


def test_a_compressed_depth_image_anchors_as_the_raw_one(source, estimator, converted, tmp_path):
    kind, topic = 'sensor_msgs/msg/CompressedImage', f'{DEPTH}/compressedDepth'
    recorded = [(IMAGE, time, data) for time, data in bags.messages(source)[IMAGE]]
    recorded += [(INFO, time, data) for time, data in bags.messages(source)[INFO]]
    for time, depth in read(source, DEPTH):
        pixels = np.round(metres(depth) * 1000).astype(np.uint16)
        message = STORE.types[kind](depth.header, '16UC1; compressedDepth png', np.frombuffer(
            bytes(12) + png(pixels), np.uint8))
        recorded.append((topic, time - 1, bytes(STORE.serialize_cdr(message, kind))))
    path = bags.write(tmp_path / 'bag', sorted(recorded, key=lambda entry: entry[1]), {
        IMAGE: 'sensor_msgs/msg/Image', INFO: 'sensor_msgs/msg/CameraInfo', topic: kind})
    anchored = dataclasses.replace(ALL, node=NODE.replace(anchor='depth'))
    convert(path, tmp_path / 'packed', estimator, anchored)
    early = bags.changed(source, tmp_path / 'early', lambda topic, _, time: [
        (topic, time - (topic == DEPTH))])
    convert(early, tmp_path / 'raw', estimator, anchored)
    packed, raw, unanchored = (
        np.array([metres(message) for _, message in read(folder, NEW[0])])
        for folder in (tmp_path / 'packed', tmp_path / 'raw', converted[1]))
    np.testing.assert_allclose(packed, raw, rtol=0.01)
    assert np.median(np.abs(unanchored / raw - 1)) > 0.05


def test_an_anchor_that_is_not_followed_says_why(source, estimator, tmp_path):
    said = []
    late = bags.changed(source, tmp_path / 'late', lambda topic, number, time: [
        (topic, time)] * (topic != DEPTH or number == 0))
    convert(late, tmp_path / 'out', estimator, dataclasses.replace(
        ALL, node=NODE.replace(anchor='depth'), anchor_topic=DEPTH), log=said.append)
    line, = (line for line in said if 'stamps apart' in line)
    assert ' s ' in line.partition('stamps apart')[2]  # how far, and not its name alone


# Real bags, and the node -----------------------------------------------------------


@pytest.mark.parametrize('name', ['rgbd_raw', 'rgb_compressed'])
def test_real_bags_are_whole_in_the_output(name, demo, tmp_path):
    if not (SHARED / name).is_dir():
        pytest.skip('the reference material (../shared) is not on this machine')
    report = convert(SHARED / name, tmp_path / 'out', demo,
                     dataclasses.replace(ALL, every=10))
    before, after = bags.messages(SHARED / name), bags.messages(tmp_path / 'out')
    assert {topic: after[topic] for topic in before} == before
    assert report.answered == len(after['/points']) == -(-report.images // 10)
    assert not report.rejected


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_depth_in_the_bag_is_depth_on_the_topic(transport, source, demo, tmp_path):
    paths = [source, SHARED / 'rgbd_raw'] if transport == 'raw' else [SHARED / 'rgb_compressed']
    paths = [path for path in paths if path.is_dir()]
    if not paths:
        pytest.skip('the reference material (../shared) is not on this machine')
    compare_with_a_node(
        [(path, Options(node=NODE, every=7 if transport == 'compressed' else 1))
         for path in paths], demo, tmp_path, f'image_transport:={transport}')


def test_calibrated_and_anchored_depth_in_the_bag_is_that_on_the_topic(source, demo, tmp_path):
    calibration = Calibration(origin(demo), random_arrays(demo)).save(tmp_path, 'room')
    calibrated = DepthEstimator(
        demo.config.replace(calibration=str(calibration)), weights='demo', device='cpu',
        num_threads=1)
    node = NODE.replace(anchor='ground', camera_height=1.0)
    output = compare_with_a_node(
        [(source, Options(node=node))], calibrated, tmp_path, f'calibration:={calibration}',
        f'anchor:={node.anchor}', f'camera_height:={node.camera_height}')
    assert custom_data(output)['depthclip_calibration'] == calibrated.calibration.label
    for name, estimator, other in (('held', calibrated, NODE), ('plain', demo, node)):
        convert(source, tmp_path / name, estimator, Options(node=other))
        assert bags.messages(tmp_path / name)['/points'] != bags.messages(output)['/points'], name


def compare_with_a_node(conversions, estimator, folder, *parameters):
    """Convert bags as said, and have a node answer the same images; gives the last output."""
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    import ros_harness as ros
    from rclpy.serialization import serialize_message
    kinds = {'depth/image': ros.Image, 'depth/camera_info': ros.CameraInfo,
             'points': ros.PointCloud2}
    given = [word for parameter in ('weights:=demo', 'device:=cpu', 'num_threads:=1',
                                    f'precision:={estimator.precision}', *parameters)
             for word in ('-p', parameter)]
    for path, options in conversions:
        output = folder / f'{path.name}-out'
        report = convert(path, output, estimator, options)
        assert report.answered > 8
        live, after = None, bags.messages(output)
        while live is None:
            with ros.own_domain() as domain, ros.running(
                    ['--ros-args', *given], domain=domain, cache=folder) as node, \
                    ros.Peer(domain, kinds, node) as peer:
                peer.ready(*kinds)
                live = replayed(peer, path, report, kinds, once=bool(options.node.anchor))
        for relative, topic in report.cameras[0].outputs.items():
            assert len(after[topic]) == report.answered
            for (_, data), message in zip(after[topic], live[relative], strict=True):
                # The middleware leaves what fills gaps between fields to chance.
                other = STORE.deserialize_cdr(serialize_message(message), OUTPUTS[relative][0])
                assert data == bytes(STORE.serialize_cdr(other, OUTPUTS[relative][0]))
    return output


def replayed(peer, path, report, kinds, *, once):
    """What a node answers to the images of a bag that have depth, as messages of rclpy.

    None if each image must be answered `once`, as an anchor remembers, and the first was not.
    """
    import ros_harness as ros
    from rclpy.serialization import deserialize_message
    camera = report.cameras[0]
    recorded, done = bags.messages(path), bags.messages(Path(report.output))
    stamps = {data[4:12] for _, data in done[camera.outputs['depth/image']]}
    kind = ros.CompressedImage if camera.image.endswith('/compressed') else ros.Image
    images = [deserialize_message(data, kind) for _, data in recorded[camera.image]
              if data[4:12] in stamps]
    info = deserialize_message(recorded[camera.camera_info][0][1], ros.CameraInfo)
    first, *others = images
    answered = send_until_its_camera_is_known(peer, first, info)
    if once and answered > 1:
        return None
    peer.wait(lambda: len(peer.find('depth/image', first.header.stamp)) == answered, 'depth')
    for relative in kinds:
        peer.wait_stamp(relative, first.header.stamp)
    for image in others:
        peer.send(image)
        for relative in kinds:
            peer.wait_stamp(relative, image.header.stamp)
    return {relative: [peer.find(relative, image.header.stamp)[-1] for image in images]
            for relative in kinds}


def send_until_its_camera_is_known(peer, image, info):
    """Send an image until it is answered with its camera_info, which it can overtake.

    What came before without camera_info has another depth, since no focal length is known.

    Returns:
        How often it was answered, the last time with its camera_info.

    """
    sent = 0
    while True:
        peer.send(info)
        peer.send(image)
        sent += 1
        _, values = peer.diagnostics('depth_node: frames', lambda values, sent=sent: (
            int(values['received']) == sent and int(values['pending']) == 0))
        unknown = sum(int(count) for name, count in values.items()
                      if name.startswith('no cloud: '))
        answered = int(values['published'])
        if answered > unknown:
            return answered
