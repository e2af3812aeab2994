# SPDX-License-Identifier: Apache-2.0
"""`depthclip bag` beside its network alone, and beside the obvious way.

The obvious way: replay the bag into the node, and record what comes. A node drops the images that
come while it is busy, so that it is replayed as recorded, and so slowly that it keeps up. Network
and conversion take turns, since machines get slower and faster while one waits.

    python benchmarks/bag.py           # RN50, random weights; writes benchmarks/results/bag.json
    python benchmarks/bag.py --quick   # the demo model, a few small images: does it run?
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from rosbags.rosbag2 import Reader, StoragePlugin, Writer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

from benchmarks import machine  # noqa: E402
from depthclip_ros.bags import Options, convert  # noqa: E402
from depthclip_ros.bags.messages import read, typestore  # noqa: E402
from depthclip_ros.cli.model import load_estimator, settings  # noqa: E402
from depthclip_ros.core.geometry import CameraModel  # noqa: E402
from depthclip_ros.node import image_io  # noqa: E402
from depthclip_ros.node.messages import CAMERA_INFO, IMAGE, message_class  # noqa: E402
from depthclip_ros.node.outputs import OUTPUTS  # noqa: E402
from depthclip_ros.node.process import keep_freed_memory  # noqa: E402
from depthclip_ros.resources import large_images_profile  # noqa: E402
from depthclip_ros.sim import Scene, SimCamera  # noqa: E402
from depthclip_ros.sim.bag import write_bag  # noqa: E402

TOPIC, INFO = '/camera/color/image_raw', '/camera/color/camera_info'
RATE = 10.0  # Hz, of the bag
GOAL = 1.1  # of the network's time
KEEPS_UP = 0.75  # of the rate that the network alone could answer
PROJECTED = ('depth/image', 'depth/camera_info', 'points')
PATIENCE = 3.0  # seconds without a message, after which a replay is over


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--frames', type=int, default=60)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--config', help='parameter file of the network; default: built in')
    parser.add_argument('--weights', default='untrained')
    parser.add_argument('--output', type=Path, default=ROOT / 'benchmarks/results/bag.json')
    options = parser.parse_args()
    if options.quick:
        options.frames, options.rounds, options.weights = 8, 1, 'demo'
    camera = SimCamera(160, 120, 130, 130, 79.5, 59.5) if options.quick else SimCamera()
    result = {**machine.describe(), 'weights': options.weights, 'images': options.frames,
              'size': [camera.width, camera.height]}
    os.environ.update(large_images_profile(os.environ))
    keep_freed_memory()  # as `depthclip bag` does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bag(folder / 'bag', Scene.generate('office', 1), camera, frames=options.frames,
                  rate=RATE)
        result |= _offline(folder, options)
        result['replay'] = _replays(folder, options, result['network alone [s]'])
    machine.write(None if options.quick else options.output, result)


def _offline(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Network alone and conversion, in turns."""
    depth, node = settings(options.config, options.weights, 'cpu')
    estimator = load_estimator(depth, node)
    images, camera = _images(folder / 'bag')
    wanted = Options(node=node)
    rounds = []
    for number in range(options.rounds + 1):
        start = time.perf_counter()
        for image in images:
            estimator.predict([image], None, [camera])
        alone = time.perf_counter() - start
        report = convert(folder / 'bag', folder / f'out{number}', estimator, wanted)
        rounds.append((alone, report.seconds, report.network_seconds))
    rounds = rounds[1:]  # the first finds nothing prepared
    ratio = median(total / alone for alone, total, _ in rounds)
    return {
        'network alone [s]': median(alone for alone, _, _ in rounds),
        'conversion [s]': median(total for _, total, _ in rounds),
        'of it in the network [s]': median(network for *_, network in rounds),
        'conversion / network alone': ratio, 'goal': GOAL, 'goal met': ratio <= GOAL,
        'times real time': len(images) / RATE / median(total for _, total, _ in rounds)}


def _images(bag: Path) -> tuple[list[Any], CameraModel]:
    images, camera = [], None
    with Reader(bag) as reader:
        for connection, _, data in reader.messages():
            if connection.topic == TOPIC:
                images.append(image_io.to_rgb(read(data, IMAGE)).copy())
            elif connection.topic == INFO:
                camera = CameraModel.from_info(read(data, CAMERA_INFO), rectified=False)
    if camera is None:
        raise RuntimeError('the bag has no camera_info')
    return images, camera


def _replays(folder: Path, options: argparse.Namespace, alone: float) -> list[dict[str, Any]]:
    """Replay into a node, and record: as recorded, and as slowly as it takes."""
    import ros_harness
    slow = min(1.0, KEEPS_UP * options.frames / alone / RATE)
    arguments = ['--ros-args', '-p', f'weights:={options.weights}', '-p', 'device:=cpu',
                 '-r', f'image:={TOPIC}', '-r', f'camera_info:={INFO}']
    if options.config:
        arguments += ['--params-file', options.config]
    rows = []
    with ros_harness.own_domain() as domain, ros_harness.running(
            arguments, domain=domain, cache=folder / 'cache'):
        for rate in dict.fromkeys((1.0, slow)):
            start = time.perf_counter()
            counts = _record(folder, domain, rate, len(rows))
            rows.append({
                'rate': rate, 'seconds': time.perf_counter() - start - PATIENCE,
                'images with depth': counts['depth/image'], 'points': counts['points'],
                'all': counts['depth/image'] == options.frames})
    return rows


def _record(folder: Path, domain: int, rate: float, number: int) -> Counter[str]:
    """Play the bag, and write what the node answers; gives the messages by topic."""
    import rclpy
    from rclpy.qos import QoSProfile
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node('recorder', context=context)
    writer = Writer(folder / f'recorded{number}', version=8, storage_plugin=StoragePlugin.MCAP)
    writer.open()
    counts: Counter[str] = Counter()

    def subscribe(name: str) -> None:
        topic = writer.add_connection(f'/{name}', OUTPUTS[name], typestore=typestore())

        def store(raw: bytes) -> None:
            writer.write(topic, time.time_ns(), raw)
            counts[name] += 1
        node.create_subscription(
            message_class(OUTPUTS[name]), name, store, QoSProfile(depth=50), raw=True)
    for name in PROJECTED:
        subscribe(name)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    player = subprocess.Popen(
        [sys.executable, '-m', 'depthclip_ros.sources.bag_player', folder / 'bag',
         '--rate', str(rate), '--wait-for-subscribers', '60', '--wait-for', TOPIC,
         '--topics', TOPIC, INFO],
        cwd=ROOT, env={**os.environ, 'ROS_DOMAIN_ID': str(domain),
                       'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'})
    heard, total = time.monotonic(), 0
    while player.poll() is None or time.monotonic() < heard + PATIENCE:
        executor.spin_once(timeout_sec=0.05)
        if counts.total() != total:
            heard, total = time.monotonic(), counts.total()
        elif player.poll() is None:
            heard = time.monotonic()
    writer.close()
    executor.shutdown()
    rclpy.shutdown(context=context)
    return counts


if __name__ == '__main__':
    main()
