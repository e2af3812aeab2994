# SPDX-License-Identifier: Apache-2.0
"""Bags for tests: small ones, and ones that something happened to."""

from __future__ import annotations

import shutil
from collections import defaultdict

import yaml
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from depthclip_ros.sim import Scene, SimCamera
from depthclip_ros.sim.formats import write_bag

FRAMES = 12
IMAGE, INFO, DEPTH = '/camera/color/image_raw', '/camera/color/camera_info', \
    '/camera/depth/image_raw'
CHUNK = 40_000  # bytes, of a message of each topic about


def rendered(path, frames=FRAMES, width=64, height=48):
    """A drive through a room at 10 Hz, in chunks so small that one can be lost."""
    whole = path.with_name(f'{path.name}-whole')
    camera = SimCamera(
        width, height, 0.8 * width, 0.8 * width, width / 2 - 0.5, height / 2 - 0.5)
    write_bag(whole, Scene.generate('office', 3), camera, frames=frames)
    chunked(whole, path)
    shutil.rmtree(whole)
    return path


def messages(path):
    """(time, bytes) by topic, as rosbags reads them."""
    found = defaultdict(list)
    with Reader(path) as reader:
        for connection, time, data in reader.messages():
            found[connection.topic].append((time, bytes(data)))
    return dict(found)


def chunked(source, path):
    """The bag as one mcap of small chunks, with metadata."""
    path.mkdir()
    with Reader(source) as reader, (path / f'{path.name}.mcap').open('wb') as file:
        writer = McapWriter(file, chunk_size=CHUNK, compression=CompressionType.NONE)
        writer.start('ros2', 'a test')
        channels = {}
        for connection in reader.connections:
            schema = writer.register_schema(
                connection.msgtype, 'ros2msg', connection.msgdef.data.encode())
            channels[connection.id] = writer.register_channel(
                connection.topic, 'cdr', schema, {'offered_qos_profiles': QOS})
        for number, (connection, time, data) in enumerate(reader.messages()):
            writer.add_message(
                channels[connection.id], time, bytes(data), time - 1000, number)
        writer.finish()
    told = information(source)
    told['relative_file_paths'] = [f'{path.name}.mcap']
    told['files'][0]['path'] = f'{path.name}.mcap'
    for topic in told['topics_with_message_count']:
        topic['topic_metadata']['offered_qos_profiles'] = QOS
    write_metadata(path, told)


QOS = """\
- history: 1
  depth: 7
  reliability: 2
  durability: 2
  deadline: {sec: 0, nsec: 0}
  lifespan: {sec: 0, nsec: 0}
  liveliness: 1
  liveliness_lease_duration: {sec: 0, nsec: 0}
  avoid_ros_namespace_conventions: false
"""


def write_metadata(path, told):
    (path / 'metadata.yaml').write_text(yaml.safe_dump({'rosbag2_bagfile_information': told}))


def information(path):
    return yaml.safe_load((path / 'metadata.yaml').read_text())['rosbag2_bagfile_information']


def edit_metadata(path, **changes):
    write_metadata(path, {**information(path), **changes})


def rewritten(source, path, storage, unknown=False, version=8):
    """The bag as rosbags writes it."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    with Reader(source) as reader, Writer(
            path, version=version, storage_plugin=storage) as writer:
        connections = {
            c.id: writer.add_connection(c.topic, c.msgtype, typestore=store)
            for c in reader.connections}
        if unknown:
            strange = get_typestore(Stores.ROS2_HUMBLE)
            strange.register(get_types_from_msg('uint8 value', 'nowhere_msgs/msg/Thing'))
            thing = writer.add_connection('/thing', 'nowhere_msgs/msg/Thing', typestore=strange)
        for connection, time, data in reader.messages():
            writer.write(connections[connection.id], time, data)
            if unknown and connection.topic == IMAGE:
                writer.write(thing, time, b'\x00\x01\x00\x00\x05')
    return path


def cut(file, share):
    """Leave a part of a file."""
    data = file.read_bytes()
    file.write_bytes(data[:int(share * len(data))])


def damaged(source, folder):
    """Bags that something happened to: what it was, and their paths."""
    made = {}

    def copy(name):
        made[name] = folder / name.replace(' ', '_').replace('.', '_')
        shutil.copytree(source, made[name])
        return made[name], next(made[name].glob('*.mcap'))

    bag, file = copy('truncated last chunk')
    cut(file, 0.9)
    bag, _ = copy('no metadata.yaml')
    (bag / 'metadata.yaml').unlink()
    bag, _ = copy('empty storage id')
    edit_metadata(bag, storage_identifier='')
    bag, file = copy('split, one file missing')
    file.rename(bag / 'split_1.mcap')
    edit_metadata(bag, relative_file_paths=['split_0.mcap', 'split_1.mcap'])
    made['ROS 1 bag'] = folder / 'old.bag'
    made['ROS 1 bag'].write_bytes(b'#ROSBAG V2.0\n' + bytes(100))
    bag, file = copy('damaged chunk')
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    made['truncated .db3'] = rewritten(source, folder / 'cut_db3', StoragePlugin.SQLITE3)
    cut(next(made['truncated .db3'].glob('*.db3')), 0.7)
    bag, file = copy('empty file')
    file.write_bytes(b'')
    return made


