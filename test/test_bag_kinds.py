# SPDX-License-Identifier: Apache-2.0
"""Bags as other people's programs write them: depth, and all else copied as it was recorded."""

from __future__ import annotations

import sqlite3
import struct

import clip_standin
import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('mcap', reason='mcap is not installed')
import zstandard
from mcap.reader import NonSeekingReader, make_reader
from mcap.writer import CompressionType, Writer
from rosbags.typesys import Stores, get_typestore

from depthclip_ros.bags import Options, convert
from depthclip_ros.bags.fleet import FAILED, convert_all, find_bags
from depthclip_ros.cli.main import main
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.messages.node_config import NodeConfig
from depthclip_ros.sim import SimCamera
from depthclip_ros.sim.datasets import _Messages
from depthclip_ros.sources.bag import Bag, language_depth_topics

STORE = get_typestore(Stores.ROS2_HUMBLE)
MESSAGES = _Messages(STORE.types)
CAMERA = SimCamera().scaled(64, 48)
START, STEP, COUNT = 1_700_000_000 * 10 ** 9, 10 ** 8, 3
IMAGE, INFO, PACKED = (f'sensor_msgs/msg/{kind}' for kind in (
    'Image', 'CameraInfo', 'CompressedImage'))
PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
IDL = 'module demo { module msg { struct Speed { double value; }; }; };'
CDR = b'\0\1\0\0'


@pytest.fixture(scope='module')
def estimator():
    return DepthEstimator(
        DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0),
        clip_standin.tiny_state_dict(), 'cpu')


def cdr(message):
    return bytes(STORE.serialize_cdr(message, message.__msgtype__))


def text_of(kind):
    return STORE.generate_msgdef(kind, ros_version=2)[0].encode()


def picture(header):
    return MESSAGES.image(header, 'rgb8', PICTURE)


def jpeg(header):
    data = cv2.imencode('.jpg', PICTURE[..., ::-1])[1].reshape(-1)
    return STORE.types[PACKED](header=header, format='jpeg', data=data)


def write_mcap(path, *, topic='/camera/image_raw', make=picture, other=None, profile='ros2',
               spell=str, pack=bytes, times=None, **settings):
    """Images and camera_info; `other`: type, schema encoding, schema, message encoding, data."""
    with path.open('wb') as file:
        writer = Writer(file, **settings)
        writer.start(profile=profile, library='test')
        kind = make(MESSAGES.header(0, 'camera')).__msgtype__
        schemas = [writer.register_schema(spell(k), 'ros2msg', text_of(k)) for k in (kind, INFO)]
        info_topic = topic.rpartition('/')[0] + '/camera_info'
        images, infos = (writer.register_channel(name, 'cdr', schema) for name, schema in zip(
            (topic, info_topic), schemas, strict=True))
        if other:
            name, encoding, text, message_encoding, data = other
            schema = writer.register_schema(name, encoding, text) if name else 0
            writer.add_message(
                writer.register_channel('/other', message_encoding, schema), START, data, START)
        for time in times or range(START, START + COUNT * STEP, STEP):
            header = MESSAGES.header(time, 'camera')
            for channel, message in ((infos, MESSAGES.camera_info(header, CAMERA)),
                                     (images, make(header))):
                writer.add_message(channel, time, pack(cdr(message)), time)
        writer.finish()
    return path


def write_metadata(folder, files, *, storage='mcap', count=2 * COUNT, **times):
    """metadata.yaml of a folder, as rosbag2 writes it but for what a test changes."""
    start, duration = times.get('start', START), times.get('duration', COUNT * STEP)
    each = '\n'.join(
        f'    - topic_metadata: {{name: {name}, type: {kind}, serialization_format: cdr, '
        f"offered_qos_profiles: ''}}\n      message_count: {count // 2}"
        for name, kind in (('/camera/image_raw', IMAGE), ('/camera/camera_info', INFO)))
    (folder / 'metadata.yaml').write_text(f"""rosbag2_bagfile_information:
  version: 5
  storage_identifier: '{storage}'
  duration: {{nanoseconds: {duration}}}
  starting_time: {{nanoseconds_since_epoch: {start}}}
  message_count: {count}
  topics_with_message_count:
{each}
  compression_format: ''
  compression_mode: ''
  relative_file_paths: [{', '.join(files)}]
""")
    return folder


def in_folder(tmp_path, **metadata):
    folder = tmp_path / 'folder'
    folder.mkdir()
    write_mcap(folder / 'folder_0.mcap')
    return write_metadata(folder, ['folder_0.mcap'], **metadata)


def killed_recorder(tmp_path):
    """SQLite in WAL mode: the messages are beside the database."""
    live = tmp_path / 'live.db3'
    database = sqlite3.connect(live, isolation_level=None)
    database.executescript("""
        PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
        CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,
            serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);
        CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL,
            timestamp INTEGER NOT NULL, data BLOB NOT NULL);""")
    for number, (topic, kind) in enumerate(
            (('/camera/image_raw', IMAGE), ('/camera/camera_info', INFO)), 1):
        database.execute("INSERT INTO topics VALUES(?, ?, ?, 'cdr', '')", (number, topic, kind))
    for time in range(START, START + COUNT * STEP, STEP):
        header = MESSAGES.header(time, 'camera')
        for number, message in ((2, MESSAGES.camera_info(header, CAMERA)), (1, picture(header))):
            database.execute('INSERT INTO messages(topic_id, timestamp, data) VALUES(?, ?, ?)',
                             (number, time, cdr(message)))
    for end in ('', '-wal', '-shm'):
        (tmp_path / f'killed.db3{end}').write_bytes((tmp_path / f'live.db3{end}').read_bytes())
    database.close()
    return tmp_path / 'killed.db3'


# How they are made, and what camera is asked for ('': none).
KINDS = {
    'plain': lambda at: write_mcap(at / 'bag.mcap'),
    'types without /msg/': lambda at: write_mcap(
        at / 'bag.mcap', spell=lambda kind: kind.replace('/msg/', '/')),
    'topics without a slash': lambda at: write_mcap(at / 'bag.mcap', topic='camera/image_raw'),
    'no profile': lambda at: write_mcap(at / 'bag.mcap', profile=''),
    'messages compressed, and nobody says so': lambda at: write_mcap(
        at / 'bag.mcap', pack=zstandard.compress),
    'depth in the name of a colour topic': lambda at: write_mcap(
        at / 'bag.mcap', topic='/depth_camera/image_raw'),
    'JPEG under another name': lambda at: write_mcap(
        at / 'bag.mcap', topic='/camera/image_jpeg', make=jpeg),
    'no chunks': lambda at: write_mcap(at / 'bag.mcap', use_chunking=False),
    'chunks of lz4': lambda at: write_mcap(at / 'bag.mcap', compression=CompressionType.LZ4),
    'no summary': lambda at: write_mcap(
        at / 'bag.mcap', use_statistics=False, use_summary_offsets=False,
        repeat_channels=False, repeat_schemas=False),
    'time 0 before the clock came': lambda at: write_mcap(
        at / 'bag.mcap', times=[0, START, START + STEP]),
    'a file within zstd': lambda at: _packed(write_mcap(at / 'bag.mcap')),
    'no storage_identifier': lambda at: in_folder(at, storage=''),
    'the duration of one split': lambda at: in_folder(at, duration=STEP // 2),
    'the start of another split': lambda at: in_folder(at, start=START + 2 * STEP),
    'a killed recorder': killed_recorder,
}


def _packed(path):
    packed = path.with_name('bag.mcap.zstd')
    packed.write_bytes(zstandard.compress(path.read_bytes()))
    path.unlink()
    return packed


@pytest.mark.parametrize('kind', KINDS)
def test_every_image_has_depth_and_points_and_nothing_of_the_source_changes(
        kind, estimator, tmp_path):
    source = KINDS[kind](tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    report = convert(source, tmp_path / 'out', estimator)
    assert (report.images, report.answered) == (COUNT, COUNT)
    assert not report.unprojected
    with Bag(tmp_path / 'out') as bag:
        counts = {topic.name: topic.count for topic in bag.topics}
        assert counts['/depth/image'] == counts['/points'] == COUNT
        assert {'/depth/image', '/points'} <= language_depth_topics(bag)
    assert {path: path.read_bytes() for path in before} == before


OTHERS = {
    'IDL': ('demo/msg/Speed', 'ros2idl', IDL.encode(), 'cdr', CDR + struct.pack('<d', 1.5)),
    'a service event': ('demo/srv/Add_Event', 'ros2msg', b'int64 a\n---\nint64 b', 'cdr',
                        CDR + bytes(16)),
    'a definition without its parts': ('demo/msg/Whole', 'ros2msg', b'demo/Part part', 'cdr', CDR),
    'an empty definition': ('demo/msg/Empty', 'ros2msg', b'', 'cdr', CDR + bytes(4)),
    'JSON': ('demo.Battery', 'jsonschema', b'{"type": "object"}', 'json', b'{"percentage": 98}'),
    'protobuf': ('demo.Pose', 'protobuf', b'\x0a\x04demo', 'protobuf', b'\x08\x01'),
    'no schema': ('', '', b'', 'cdr', CDR + bytes(4)),
}


@pytest.mark.parametrize('name', OTHERS)
def test_what_nobody_here_understands_is_copied_as_it_was_recorded(name, estimator, tmp_path):
    kind, encoding, text, message_encoding, data = OTHERS[name]
    lines = []
    report = convert(write_mcap(tmp_path / 'bag.mcap', other=OTHERS[name]), tmp_path / 'out',
                     estimator, log=lines.append)
    assert report.answered == COUNT
    file, = (tmp_path / 'out').glob('*.mcap')
    with file.open('rb') as stream:
        (schema, channel, message), = make_reader(stream).iter_messages(['/other'])
    assert (channel.message_encoding, message.data) == (message_encoding, data)
    assert ('', '', b'') if schema is None else (schema.name, schema.encoding, schema.data) == (
        kind, encoding, text)
    # 'ros2 bag' refuses a metadata.yaml with what is not CDR or has no type: so it is said.
    assert any('/other' in line for line in lines) == (message_encoding != 'cdr' or not kind)


def cut(path, share):
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
    return path


def damaged(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2:len(data) // 2 + 50] = bytes(50)
    path.write_bytes(data)
    return path


def of_nothing(path):
    with path.open('wb') as file:
        writer = Writer(file)
        writer.start(profile='ros2')
        writer.finish()
    return path


def without_images(path):
    write_mcap(path)
    with path.open('rb') as stream:
        found = list(NonSeekingReader(stream).iter_messages(['/camera/camera_info']))
    with path.open('wb') as file:
        writer = Writer(file)
        writer.start(profile='ros2')
        schema = writer.register_schema(INFO, 'ros2msg', text_of(INFO))
        channel = writer.register_channel('/camera/camera_info', 'cdr', schema)
        for _, _, message in found:
            writer.add_message(channel, message.log_time, message.data, message.log_time)
        writer.finish()
    return path


def two_files(tmp_path):
    folder = tmp_path / 'pair'
    folder.mkdir()
    for name in ('a.mcap', 'b.mcap'):
        write_mcap(folder / name)
    return folder


def of_bytes(path, data):
    path.write_bytes(data)
    return path


UNREADABLE = {
    'cut at a third': (lambda at: cut(write_mcap(at / 'bag.mcap'), 0.3), 'mcap recover'),
    'damage within': (lambda at: damaged(write_mcap(at / 'bag.mcap')), 'damaged'),
    'no topic': (lambda at: of_nothing(at / 'bag.mcap'), 'no camera image'),
    'cut near its end': (lambda at: cut(write_mcap(at / 'bag.mcap'), 0.95), 'mcap recover'),
    'an empty file': (lambda at: of_bytes(at / 'bag.db3', b''), '0 bytes'),
    'a pointer of Git LFS': (lambda at: of_bytes(
        at / 'bag.mcap', b'version https://git-lfs.github.com/spec/v1\n'), 'git lfs pull'),
    'no database': (lambda at: of_bytes(at / 'bag.db3', b'something else'), 'no file of a bag'),
    'a database of others': (lambda at: _foreign(at / 'bag.db3'), 'not of rosbag2'),
    'a missing split': (lambda at: write_metadata(
        in_folder(at), ['folder_0.mcap', 'folder_1.mcap']), 'lacks folder_1.mcap'),
    'fewer messages than counted': (lambda at: in_folder(at, count=100), 'hold 6'),
    'two files and no metadata.yaml': (two_files, 'reindex'),
    'an empty folder': (lambda at: _folder(at / 'folder'), 'no metadata.yaml'),
    'no image': (lambda at: without_images(at / 'bag.mcap'), 'no camera image'),
    'a video': (lambda at: write_mcap(
        at / 'bag.mcap', topic='/camera/depth', other=(
            'foxglove_msgs/msg/CompressedVideo', 'ros2msg', b'', 'cdr', CDR)), 'CompressedVideo'),
}


def _foreign(path):
    database = sqlite3.connect(path)
    database.execute('CREATE TABLE cookies(id INTEGER)')
    database.commit()
    database.close()
    return path


def _folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize('kind', UNREADABLE)
def test_what_cannot_be_read_is_said_before_a_model_is_loaded(kind, tmp_path, capsys):
    make, words = UNREADABLE[kind]
    source = make(tmp_path)
    assert main(['bag', str(source), '-o', str(tmp_path / 'out'), '--weights',
                 str(tmp_path / 'no_weights')]) == 1
    text = capsys.readouterr().err
    assert words in text
    assert 'no_weights' not in text
    assert not (tmp_path / 'out').exists()


def test_one_bad_bag_stops_no_other(estimator, tmp_path):
    bags = tmp_path / 'bags'
    bags.mkdir()
    write_mcap(bags / 'good.mcap')
    cut(write_mcap(bags / 'bad.mcap'), 0.5)
    (bags / 'folder').mkdir()
    (bags / 'folder' / 'metadata.yaml').write_text('nothing')
    node = NodeConfig(weights='untrained', device='cpu', num_threads=1)
    result = convert_all(find_bags(str(bags)), tmp_path / 'out', estimator.config.replace(
        backbone='RN50'), Options(node=node), None, resume=False, log=lambda _: None)
    assert result[FAILED] == 2
    assert result.total() == 3


@pytest.mark.parametrize('image', ['camera/image_raw', '/camera/image_raw'])
def test_a_topic_is_asked_for_with_or_without_its_slash(image, estimator, tmp_path):
    for topic in ('camera/image_raw', '/camera/image_raw'):
        source = write_mcap(tmp_path / f'{topic.count("/")}.mcap', topic=topic)
        report = convert(source, tmp_path / f'out{topic.count("/")}', estimator,
                         Options(images=(image,)))
        assert report.answered == COUNT


def test_a_sensor_on_the_name_of_our_depth_is_a_sensor(tmp_path):
    with Bag(write_mcap(tmp_path / 'bag.mcap', topic='/depth/image')) as bag:
        assert language_depth_topics(bag) == set()

