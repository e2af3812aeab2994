# SPDX-License-Identifier: Apache-2.0
"""`depthclip bag`: bags in, bags with depth out."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('mcap', reason='mcap is not installed')
import bags
import clip_standin
from bags import DEPTH, FRAMES, IMAGE, INFO
from calibrations import about, random_arrays
from mcap.reader import make_reader
from rosbags.rosbag2 import CompressionMode, Reader, StoragePlugin
from rosbags.typesys import Stores, get_typestore

from depthclip_ros.bags import BagError, Options, conversion, convert, join, windows
from depthclip_ros.bags.source import Source
from depthclip_ros.cli.main import main
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.calibration import Calibration
from depthclip_ros.core.device import use_threads
from depthclip_ros.core.errors import ConfigError
from depthclip_ros.node import image_io
from depthclip_ros.node.config import NodeConfig
from depthclip_ros.resources import config_path
from depthclip_ros.sources.bag import custom_data

ROOT = Path(__file__).resolve().parents[1]
STORE = get_typestore(Stores.ROS2_HUMBLE)
NODE = NodeConfig(weights='demo')
SHORT = Options(node=NODE, part_seconds=0.5)  # 12 frames at 10 Hz are three files
NEW = ('/depth/image', '/depth/camera_info', '/points')


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """With other numbers of threads, last bits differ; whoever asks for none gets one, too."""
    before = torch.get_num_threads()
    use_threads(0)  # forgets what another module asked for, which num_threads: 0 would undo
    torch.set_num_threads(1)
    yield
    use_threads(0)
    torch.set_num_threads(before)


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
    return convert(source, output, estimator, SHORT), output


def content(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.iterdir()}


def read(path, topic):
    with Reader(path) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        return [(time, STORE.deserialize_cdr(data, c.msgtype))
                for c, time, data in reader.messages(connections)]


def test_every_image_gets_depth_and_all_else_is_copied(source, converted):
    report, output = converted
    before, after = bags.messages(source), bags.messages(output)
    assert set(after) == {*before, *NEW}
    for topic in before:
        assert after[topic] == before[topic]
        assert report.topics[topic].copied == len(before[topic])
    images = read(output, IMAGE)
    for topic in NEW:
        assert [time for time, _ in after[topic]] == [time for time, _ in before[IMAGE]]
        for (_, image), (_, message) in zip(images, read(output, topic), strict=True):
            assert message.header == image.header
    assert (report.images, report.answered, report.lost) == (FRAMES, FRAMES, [])
    assert report.files == {name: digest for name, digest in content(output).items()
                            if name != 'metadata.yaml'}
    assert len(report.files) == 3


def test_what_rosbag2_knows_of_a_topic_and_a_message_is_kept(source, converted):
    def described(path):
        found = {}
        for file in sorted(path.glob('*.mcap')):
            with file.open('rb') as stream:
                for schema, channel, message in make_reader(stream).iter_messages():
                    found.setdefault(channel.topic, []).append((
                        schema.name, schema.encoding, schema.data, channel.message_encoding,
                        channel.metadata['offered_qos_profiles'], message.log_time,
                        message.publish_time, message.sequence, message.data))
        return found
    before, after = described(source), described(converted[1])
    assert {topic: after[topic] for topic in before} == before
    with Reader(converted[1]) as reader:
        for connection in reader.connections:
            if connection.topic in NEW:
                qos = connection.ext.offered_qos_profiles[0]
                assert (qos.reliability.name, qos.durability.name, qos.depth) \
                    == ('RELIABLE', 'VOLATILE', 5)
                assert connection.digest == STORE.hash_rihs01(connection.msgtype)


def test_depth_is_what_the_estimator_says(source, estimator, converted):
    from depthclip_ros.core.geometry import CameraModel
    camera = CameraModel.from_info(read(source, INFO)[0][1], rectified=False)
    for (_, image), (_, depth) in zip(read(source, IMAGE), read(converted[1], NEW[0]),
                                      strict=True):
        expected = estimator.predict(image_io.to_rgb(image), intrinsics=camera).depth
        found = depth.data.view(np.float32).reshape(depth.height, depth.width)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(('storage', 'compression'), [
    ('sqlite3', 'none'), ('sqlite3', 'message'), ('mcap', 'file'), ('mcap', 'lz4')])
def test_other_storages_and_compressions_hold_the_same(
        source, estimator, converted, tmp_path, storage, compression):
    options = Options(node=NODE, part_seconds=0.5, storage=storage, compression=compression)
    convert(source, tmp_path / 'other', estimator, options)
    assert bags.messages(tmp_path / 'other') == bags.messages(converted[1])
    # And in again, as it came.
    again = Options(node=NODE, every=100, namespace='again')
    convert(tmp_path / 'other', tmp_path / 'again', estimator, again)
    result = bags.messages(tmp_path / 'again')
    assert {topic: result[topic] for topic in result if not topic.startswith('/again')} \
        == bags.messages(converted[1])
    suffix = {'sqlite3': '.db3', 'mcap': '.mcap'}[storage] + '.zstd' * (compression == 'file')
    assert (tmp_path / 'again' / f'again_0{suffix}').exists()


def test_compressed_messages_stay_the_bytes_they_were(source, estimator, tmp_path):
    import sqlite3

    def stored(path):
        rows = []
        for file in sorted(path.glob('*.db3')):
            rows += sqlite3.connect(file).execute(
                'SELECT data FROM messages JOIN topics ON topic_id = topics.id WHERE name = ? '
                'ORDER BY timestamp', (DEPTH,)).fetchall()
        return rows
    bag = bags.rewritten(source, tmp_path / 'small', StoragePlugin.SQLITE3,
                         CompressionMode.MESSAGE)
    convert(bag, tmp_path / 'out', estimator, SHORT)
    assert stored(tmp_path / 'out') == stored(bag)


def test_depth_as_png_is_millimetres(source, estimator, converted, tmp_path):
    report = convert(source, tmp_path / 'png', estimator,
                     Options(node=NODE, compressed_depth=True))
    topic = '/depth/image/compressedDepth'
    assert report.topics[topic].written == FRAMES
    assert '/depth/image' not in report.topics
    for (_, png), (_, exact) in zip(read(tmp_path / 'png', topic), read(converted[1], NEW[0]),
                                    strict=True):
        metres = exact.data.view(np.float32).reshape(exact.height, exact.width)
        assert np.abs(image_io.compressed_to_depth(png) - metres).max() <= 0.501e-3


def test_compressed_images_and_pictures_on_request(source, estimator, tmp_path):
    cv2 = pytest.importorskip('cv2')
    from rosbags.rosbag2 import Writer
    with Writer(tmp_path / 'jpeg', version=8) as writer:
        kind = 'sensor_msgs/msg/CompressedImage'
        connection = writer.add_connection('/cam/image/compressed', kind, typestore=STORE)
        for number, (time, image) in enumerate(read(source, IMAGE)):
            _, data = cv2.imencode('.jpg', image_io.to_rgb(image)[..., ::-1])
            message = STORE.types[kind](
                header=image.header, format='rgb8; jpeg compressed bgr8',
                data=data.reshape(-1) if number else data.reshape(-1)[:100])
            writer.write(connection, time, STORE.serialize_cdr(message, kind))
    options = Options(node=NODE, namespace='robot',
                      outputs=('depth/image', 'depth/image_color', 'depth/words', 'points',
                               'depth/stddev'))
    report = convert(tmp_path / 'jpeg', tmp_path / 'out', estimator, options)
    assert report.rejected == {'': {'truncated jpeg': 1}}
    assert report.unprojected == {'': {'absent': FRAMES - 1}}
    assert {name: count.written for name, count in report.topics.items()} == {
        '/cam/image/compressed': 0, '/robot/depth/image': FRAMES - 1,
        '/robot/depth/image_color': FRAMES - 1, '/robot/depth/words': FRAMES - 1,
        '/robot/points': 0, '/robot/depth/stddev': 0}


def test_several_cameras_go_as_one_batch(source, estimator, tmp_path, monkeypatch):
    from rosbags.rosbag2 import Writer
    with Reader(source) as reader, Writer(tmp_path / 'two', version=8) as writer:
        made = {}
        for connection, time, data in reader.messages():
            for name, late in (('front', 0), ('rear', 20_000_000)):
                if connection.topic not in (IMAGE, INFO):
                    continue
                topic = f'/{name}/{connection.topic.rpartition("/")[2]}'
                if topic not in made:
                    made[topic] = writer.add_connection(
                        topic, connection.msgtype, typestore=STORE)
                writer.write(made[topic], time + late, data)
    sizes = []
    predict = estimator.predict
    monkeypatch.setattr(estimator, 'predict', lambda images, *rest, **more: (
        sizes.append(len(images)), predict(images, *rest, **more))[1])
    report = convert(tmp_path / 'two', tmp_path / 'out', estimator, Options(
        node=NODE.replace(cameras=('front', 'rear'))))
    assert sizes == [2] * FRAMES
    assert report.topics['/front/depth/image'].written == FRAMES
    assert report.topics['/rear/points'].written == FRAMES
    after = bags.messages(tmp_path / 'out')
    assert [t for t, _ in after['/rear/depth/image']] == [t for t, _ in after['/rear/image_raw']]
    assert {topic: len(found) for topic, found in after.items()} == {
        topic: count.copied + count.written for topic, count in report.topics.items()}


@pytest.mark.parametrize(('chosen', 'numbers'), [
    ({'every': 5}, [0, 5, 10]), ({'rate': 2.0}, [0, 5, 10]),
    ({'start': 0.25, 'end': 0.85, 'every': 2}, [4, 6, 8])])
def test_some_images_get_depth(source, estimator, tmp_path, chosen, numbers):
    report = convert(source, tmp_path / 'out', estimator, dataclasses.replace(SHORT, **chosen))
    after, before = bags.messages(tmp_path / 'out'), bags.messages(source)
    assert [time for time, _ in after[NEW[0]]] == [before[IMAGE][n][0] for n in numbers]
    kept = range(3, 9) if 'start' in chosen else range(FRAMES)
    assert after[IMAGE] == [before[IMAGE][n] for n in kept]
    assert report.left_out == len(kept) - len(numbers)


def test_an_anchor_of_the_bag_fixes_the_scale(source, estimator, converted, tmp_path):
    options = Options(node=NODE.replace(anchor='depth'), anchor_topic=DEPTH)
    convert(source, tmp_path / 'anchored', estimator, options)

    def error(path, topic=NEW[0]):
        pairs = zip(read(path, topic), read(source, DEPTH), strict=True)
        return np.median([np.abs(np.log(found.data.view(np.float32) / true.data.view(
            np.float32))).mean() for (_, found), (_, true) in pairs])
    assert error(tmp_path / 'anchored') < error(converted[1])
    cut = windows(source, Options(node=NODE, part_seconds=0.5), 2)
    half = dataclasses.replace(options, part_seconds=0.5, window=cut[0])
    with pytest.raises(BagError, match='cannot be cut'):
        convert(source, tmp_path / 'half', estimator, half)


def test_windows_join_to_the_same_bytes(source, estimator, converted, tmp_path):
    for wanted in ({}, {'every': 3}):
        options = dataclasses.replace(SHORT, **wanted)
        cut = windows(source, options, 2)
        assert len(cut) == 2
        reports = [convert(source, tmp_path / f'window{number}{len(wanted)}', estimator,
                           dataclasses.replace(options, window=window))
                   for number, window in enumerate(cut)]
        whole = tmp_path / f'whole{len(wanted)}' / 'deep'
        convert(source, whole, estimator, options)
        joined = tmp_path / f'joined{len(wanted)}' / 'deep'
        joined.parent.mkdir()
        report = join(reports, joined)
        assert content(joined) == content(whole)
        assert report.answered == sum(r.answered for r in reports)
        assert report.files == {name: digest for name, digest in content(joined).items()
                                if name != 'metadata.yaml'}
    with pytest.raises(ConfigError, match='window'):
        convert(source, tmp_path / 'odd', estimator, dataclasses.replace(
            SHORT, window=(cut[0][0], cut[0][1] + 1)))


def test_nothing_is_overwritten_and_nothing_half_written_has_the_name(
        source, estimator, converted, tmp_path, monkeypatch):
    with pytest.raises(BagError, match='not overwritten'):
        convert(source, converted[1], estimator, SHORT)
    loaded = []
    with pytest.raises(BagError, match='not overwritten'):
        convert(source, converted[1], lambda: loaded.append(1), SHORT)
    assert not loaded

    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.images >= 7:
            raise StoppedError
    output = tmp_path / 'deep'
    monkeypatch.setattr(conversion, '_PROGRESS', 0.0)
    with pytest.raises(StoppedError):
        convert(source, output, estimator, SHORT, progress=stop)
    assert not output.exists()
    with pytest.raises(BagError, match='--resume'):
        convert(source, output, estimator, SHORT)
    with pytest.raises(BagError, match='options'):
        convert(source, output, estimator, Options(node=NODE, part_seconds=0.6), resume=True)
    report = convert(source, output, estimator, SHORT, resume=True)
    assert content(output) == content(converted[1])
    assert report.answered == FRAMES
    assert [path.name for path in tmp_path.iterdir()] == ['deep']


def test_a_run_with_an_anchor_resumes_to_the_same_bytes(
        source, estimator, tmp_path, monkeypatch):
    options = dataclasses.replace(
        SHORT, node=NODE.replace(anchor='depth'), anchor_topic=DEPTH)
    (tmp_path / 'whole').mkdir()
    convert(source, tmp_path / 'whole' / 'deep', estimator, options)

    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.images >= 8:
            raise StoppedError
    monkeypatch.setattr(conversion, '_PROGRESS', 0.0)
    with pytest.raises(StoppedError):
        convert(source, tmp_path / 'deep', estimator, options, progress=stop)
    assert list((tmp_path / 'deep.partial' / 'bag').glob('*.mcap'))
    report = convert(source, tmp_path / 'deep', estimator, options, resume=True)
    assert report.answered == FRAMES
    assert content(tmp_path / 'deep') == content(tmp_path / 'whole' / 'deep')


def test_new_topics_do_not_mix_with_old_ones(converted, estimator, tmp_path):
    with pytest.raises(BagError, match='--namespace'):
        convert(converted[1], tmp_path / 'twice', estimator, Options(node=NODE, images=(IMAGE,)))


# Bags that something happened to --------------------------------------------------------------


# Images with depth, and what is said; <n> is a number, ... anything.
DAMAGE = {
    'lone .mcap without metadata': (12, 'nothing is lost'),
    'truncated last chunk': (
        10, 'it was never finished; ... <n> bytes behind the last whole record are lost.'),
    'no index': (
        12, '...: it has no index; all of it was read once to make one, and no message is lost.'),
    'no metadata.yaml': (
        12, 'metadata.yaml is missing; topics and times are taken from the files themselves.'),
    'empty storage id': (
        12, "storage '', but the files are mcap, and read as such; no message is lost."),
    'zstd by message': (12, 'nothing is lost'),
    'zstd by file': (12, 'nothing is lost'),
    'split, one file missing': (
        12, 'split_0.mcap is missing, though metadata.yaml names it; all in it is lost.'),
    'ROS 1 bag': (0, "is a ROS 1 bag. Convert it once: 'rosbags-convert --src ... --dst ...'."),
    'unknown message type': (12, 'nothing is lost'),
    'damaged chunk': (
        10, 'the chunk at byte <n> (messages from <n> to <n> s) is damaged and lost, <n> bytes'),
    'truncated .db3': (
        8, 'the database is damaged (...); the first <n> messages ... behind them is lost.'),
    'empty file': (0, 'is empty; nothing can be read of it.'),
}


@pytest.fixture(scope='module')
def damaged(source, tmp_path_factory):
    return bags.damaged(source, tmp_path_factory.mktemp('damaged'))


@pytest.mark.parametrize('kind', sorted(DAMAGE))
def test_damaged_bags_yield_what_can_be_read_and_say_what_is_lost(
        damaged, source, estimator, tmp_path, kind):
    images, said = DAMAGE[kind]
    before = bags.messages(source)
    output = tmp_path / 'out'
    pattern = re.escape(said).replace(r'\.\.\.', '.*').replace('<n>', r'[\d.]+')
    if not images:
        with pytest.raises(BagError, match=pattern):
            convert(damaged[kind], output, estimator, SHORT)
        assert list(tmp_path.iterdir()) == []
        return
    report = convert(damaged[kind], output, estimator, SHORT)
    assert report.answered == images
    sentences = [*report.lost, *(
        f'{name}: {count.lost} messages are lost.' for name, count in report.topics.items()
        if count.lost)]
    if said == 'nothing is lost':
        assert not sentences
    else:
        assert any(re.search(pattern, sentence) for sentence in sentences), sentences
    after = bags.messages(output)
    for topic, found in before.items():  # what is there is what was there
        assert set(after.get(topic, ())) <= set(found)
        if images == FRAMES:
            assert after[topic] == found
    if kind == 'unknown message type':
        assert [data for _, data in after['/thing']] == [b'\x00\x01\x00\x00\x05'] * FRAMES


def test_any_damage_is_a_sentence_and_never_a_crash(source, damaged, tmp_path):
    random = np.random.default_rng(8)
    files = [next(source.glob('*.mcap')), next(damaged['no index'].glob('*.mcap')),
             next(damaged['zstd by message'].glob('*.db3')),
             next(damaged['zstd by file'].glob('*.zstd'))]
    read = 0
    for number in range(80):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        near = 3000 if number % 3 else len(data)  # most of what is not a message is at the ends
        for _ in range(random.integers(1, 5)):
            place = int(random.integers(min(near, len(data))))
            place = len(data) - 1 - place if random.random() < 0.5 else place
            data[place] = random.integers(256)
            if random.random() < 0.1:
                del data[place:place + 30]
        path = tmp_path / f'bag{"".join(file.suffixes)}'
        path.write_bytes(data)
        try:
            with closing(Source(path)) as bag:
                read += sum(1 for _ in bag.messages(0, 2**63 - 1))
        except BagError:
            continue
    assert read > 40 * 3 * FRAMES


# Long bags, and killed runs ---------------------------------------------------------------------


def test_memory_does_not_grow_with_the_bag(estimator, tmp_path):
    from rosbags.rosbag2 import Writer
    with Writer(tmp_path / 'long', version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        kind = 'sensor_msgs/msg/Image'
        pixels = np.zeros(100 * 100 * 3, np.uint8)
        connection = writer.add_connection('/cam/image', kind, typestore=STORE)
        for number in range(1500):
            time = STORE.types['builtin_interfaces/msg/Time'](number, 0)
            header = STORE.types['std_msgs/msg/Header'](stamp=time, frame_id='cam')
            writer.write(connection, 10**9 * number, STORE.serialize_cdr(STORE.types[kind](
                header, 100, 100, 'rgb8', 0, 300, pixels), kind))
    options = Options(node=NODE, every=500)
    convert(tmp_path / 'long', tmp_path / 'warm', estimator, Options(node=NODE, every=1500))
    tracemalloc.start()
    report = convert(tmp_path / 'long', tmp_path / 'out', estimator, options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.answered == 3
    size = sum(path.stat().st_size for path in (tmp_path / 'long').iterdir())
    assert size > 45e6
    assert peak < 30e6


KILLED = """
import os, signal, sys
for name in ('rclpy', 'sensor_msgs', 'std_msgs', 'builtin_interfaces', 'tf2_msgs'):
    sys.modules[name] = None
from pathlib import Path
from depthclip_ros.bags import Options, convert
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.node.config import NodeConfig
from depthclip_ros.resources import config_path
source, output, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
options = Options(node=NodeConfig(weights='demo'), part_seconds=0.25)
estimator = DepthEstimator(DepthConfig.from_yaml(config_path('demo')), weights='demo',
                           device='cpu', num_threads=1)
answered, predict = [], estimator.predict

def until_the_last(*arguments, **named):
    answered.append(1)
    if len(answered) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(*arguments, **named)

estimator.predict = until_the_last
convert(source, output, estimator, options, resume=True)
"""


def test_killed_runs_resume_to_the_same_bytes(source, demo, tmp_path):
    """Killed at the first answer, among the others and at one of the last two; then it is done."""
    # Without ROS, too: its packages cannot be imported there.
    script = tmp_path / 'killed.py'
    script.write_text(KILLED)
    output = tmp_path / 'killed' / 'deep'
    output.parent.mkdir()

    def run(last):
        return subprocess.run(
            [sys.executable, script, source, output, str(last)], check=False,
            capture_output=True, text=True, cwd=ROOT,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})

    for last in (1, 4, FRAMES - 3):  # at most three answers are in files that were complete
        killed = run(last)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not output.exists()
    done = run(0)
    assert done.returncode == 0, done.stderr
    whole = tmp_path / 'whole' / 'deep'
    whole.parent.mkdir()
    convert(source, whole, demo, Options(node=NODE, part_seconds=0.25))
    assert len(content(whole)) > 4
    assert content(output) == content(whole)
    assert [path.name for path in output.parent.iterdir()] == ['deep']


# The command, and the node ----------------------------------------------------------------------


def test_the_command_converts_and_says_what_came_of_it(source, tmp_path, capsys):
    arguments = ['bag', str(source), '-o', str(tmp_path / 'deep'), '--weights', 'demo',
                 '--split', '0.5', '--device', 'cpu']
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert f'{FRAMES} of {FRAMES} images have depth' in said.out
    assert 'left' in said.err
    assert len(bags.messages(tmp_path / 'deep')['/points']) == FRAMES
    assert main(arguments) == 1
    assert 'not overwritten' in capsys.readouterr().err
    assert main([*arguments[:3], str(tmp_path / 'x'), '--image', '/nothing']) == 1
    assert '/camera/color/image_raw' in capsys.readouterr().err


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_depth_in_the_bag_is_depth_on_the_topic(transport, source, demo, tmp_path):
    shared = ROOT.parent / 'shared' / 'bags'
    paths = [source, shared / 'rgbd_raw'] if transport == 'raw' else [shared / 'rgb_compressed']
    paths = [path for path in paths if path.is_dir()]
    if not paths:
        pytest.skip('the reference material (../shared) is not on this machine')
    compare_with_a_node(
        [(path, Options(node=NODE, every=7 if transport == 'compressed' else 1))
         for path in paths], demo, tmp_path, f'image_transport:={transport}')


def test_calibrated_and_anchored_depth_in_the_bag_is_that_on_the_topic(source, demo, tmp_path):
    calibration = Calibration.make(about(demo), random_arrays(demo)).save(tmp_path, 'room')
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
        with ros.own_domain() as domain, ros.running(
                ['--ros-args', *given], domain=domain, cache=folder) as node, \
                ros.Peer(domain, kinds, node) as peer:
            peer.ready(*kinds)
            live, after = replayed(peer, path, report, kinds), bags.messages(output)
        for relative, topic in report.cameras[0].outputs.items():
            assert len(after[topic]) == report.answered
            kind = report.topics[topic].type
            for (_, data), message in zip(after[topic], live[relative], strict=True):
                # The middleware leaves what fills gaps between fields to chance.
                other = STORE.deserialize_cdr(serialize_message(message), kind)
                assert data == bytes(STORE.serialize_cdr(other, kind))
    return output


def replayed(peer, path, report, kinds):
    """What a node answers to the images of a bag that have depth, as messages of rclpy."""
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
