# SPDX-License-Identifier: Apache-2.0
"""Bags for tests: small ones, and others made of them."""

from __future__ import annotations

from collections import defaultdict

import yaml
from mcap.writer import Writer as McapWriter
from rosbags import interfaces as of
from rosbags.rosbag2 import CompressionFormat, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from depthclip_ros.sim import Scene, SimCamera
from depthclip_ros.sim.datasets import write_bag

FRAMES = 12
IMAGE, INFO, DEPTH = '/camera/color/image_raw', '/camera/color/camera_info', \
    '/camera/depth/image_raw'
STRANGE = 'nowhere_msgs/msg/Thing'
STORE = get_typestore(Stores.ROS2_HUMBLE)
STORE.register(get_types_from_msg('uint8 value', STRANGE))


def rendered(path, frames=FRAMES, width=64, height=48):
    """A drive through a room at 10 Hz."""
    camera = SimCamera(
        width, height, 0.8 * width, 0.8 * width, width / 2 - 0.5, height / 2 - 0.5)
    write_bag(path, Scene.generate('office', 3), camera, frames=frames)
    return path


def messages(path):
    """(time, bytes) by topic, as rosbags reads them."""
    found = defaultdict(list)
    with Reader(path) as reader:
        for connection, time, data in reader.messages():
            found[connection.topic].append((time, bytes(data)))
    return dict(found)


def qos(reliability=of.QosReliability.RELIABLE, durability=of.QosDurability.VOLATILE, depth=5,
        history=of.QosHistory.KEEP_LAST):
    zero = of.QosTime(0, 0)
    return of.Qos(history, depth, reliability, durability, zero, zero,
                  of.QosLiveliness.AUTOMATIC, zero, False)


# A latched topic as rosbag2 records it: the middleware tells nobody its history and depth.
LATCHED = qos(durability=of.QosDurability.TRANSIENT_LOCAL, depth=0, history=of.QosHistory.UNKNOWN)


def write(path, recorded, kinds, storage=StoragePlugin.MCAP, compression=None, qos=(), version=8):
    """Make a bag of (topic, time, bytes), of these types; `qos` are all topics', or by topic."""
    writer = Writer(path, version=version, storage_plugin=storage)
    if compression is not None:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        made = {topic: writer.add_connection(
            topic, kind, typestore=STORE,
            offered_qos_profiles=qos.get(topic, ()) if isinstance(qos, dict) else qos)
            for topic, kind in kinds.items()}
        for topic, time, data in recorded:
            writer.write(made[topic], time, data)
    return path


def changed(source, path, change, kinds=None, **options):
    """Another bag of a bag's messages: `change(topic, number, time)` gives topics and times."""
    recorded, counts, known = [], defaultdict(int), dict(kinds or {})
    with Reader(source) as reader:
        for connection, time, data in reader.messages():
            for topic, when in change(connection.topic, counts[connection.topic], time):
                known.setdefault(topic, connection.msgtype)
                recorded.append((topic, when, bytes(data)))
            counts[connection.topic] += 1
    return write(path, recorded, known, **options)


def lone_mcap(source, path, extra=(), beside=lambda _: None, **options):
    """A bag's camera and its camera_info in an mcap file as other programs write it.

    `extra`: (topic, encoding, type, encoding and text of the schema, data) of more messages.
    """
    with path.open('wb') as file:
        writer = McapWriter(file, **options)
        writer.start('ros2')

        def channel(topic, encoding, *schema):
            number = writer.register_schema(*schema) if schema[0] else 0
            return writer.register_channel(topic, encoding, number, {'by': 'a test'})
        with Reader(source) as reader:
            made = {c.topic: channel(c.topic, 'cdr', c.msgtype, 'ros2msg', c.msgdef.data.encode())
                    for c in reader.connections if c.topic in (IMAGE, INFO)}
            for topic, *about, data in extra:
                writer.add_message(channel(topic, *about), reader.start_time, data, 12, 3)
            for c, time, data in reader.messages():
                if c.topic in made:
                    writer.add_message(made[c.topic], time, bytes(data), time + 5, 7)
        beside(writer)
        writer.finish()
    return path


def edit_metadata(path, **changes):
    file = path / 'metadata.yaml'
    told = yaml.safe_load(file.read_text())['rosbag2_bagfile_information']
    file.write_text(yaml.safe_dump({'rosbag2_bagfile_information': {**told, **changes}}))


def cut(file, share):
    """Leave a part of a file."""
    data = file.read_bytes()
    file.write_bytes(data[:int(share * len(data))])
