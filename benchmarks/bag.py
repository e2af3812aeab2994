# SPDX-License-Identifier: Apache-2.0
"""`depthclip bag` beside its network alone, and beside the obvious way.

The obvious way: replay the bag into the node, and take what comes. A node drops the images that
come while it is busy, so that it is replayed as recorded, and so slowly that it keeps up. RN50
with random weights.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import ros_harness as ros
from rosbags.rosbag2 import Reader

from benchmarks.graph import Receiver
from benchmarks.timing import Contender, race, ratio, wall
from depthclip_ros.bags import Options, convert
from depthclip_ros.bags.messages import read
from depthclip_ros.cli.model import load_estimator, settings
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.node import image_io
from depthclip_ros.node.messages import CAMERA_INFO, IMAGE
from depthclip_ros.node.process import keep_freed_memory
from depthclip_ros.sim import Scene, SimCamera
from depthclip_ros.sim.bag import write_bag

TOPIC, INFO = '/camera/color/image_raw', '/camera/color/camera_info'
RATE = 10.0  # Hz, of the bag
KEEPS_UP = 0.75  # of the rate that the network alone could answer
PATIENCE = 3.0  # seconds without a message, after which a replay is over


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Network alone and conversion in turns; then the replays."""
    frames = 8 if quick else 60
    weights = 'demo' if quick else 'untrained'
    keep_freed_memory()  # as `depthclip bag` does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bag(folder / 'bag', Scene.generate('office', 1), SimCamera(), frames=frames,
                  rate=RATE)
        alone, conversion = _contenders(folder, weights, frames)
        rows = race([alone, conversion], 1 if quick else 3, warm=False)
        for row, contender in zip(rows, (alone, conversion), strict=True):
            row['of the network alone'] = ratio(contender, alone)
        return rows + _replays(folder, weights, frames, median(alone.seconds))


def _contenders(folder: Path, weights: str, frames: int) -> tuple[Contender, Contender]:
    depth, node = settings(None, weights, '')
    estimator = load_estimator(depth, node)
    images, camera = _images(folder / 'bag')
    number = itertools.count()

    def network_alone() -> None:
        for image in images:
            estimator.predict([image], None, [camera])

    def conversion() -> float:
        output = folder / f'converted{next(number)}'
        return float(convert(folder / 'bag', output, estimator, Options(node=node)).seconds)
    return (Contender('network alone', wall(network_alone), frames),
            Contender('conversion', conversion, frames))


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


def _replays(folder: Path, weights: str, frames: int, alone: float) -> list[dict[str, Any]]:
    """Replay into a node: as recorded, and as slowly as it takes."""
    slow = min(1.0, KEEPS_UP * frames / alone / RATE)
    arguments = ['--ros-args', '-p', f'weights:={weights}', '-p', 'cameras:=[front]',
                 '-r', f'front/image:={TOPIC}', '-r', f'front/camera_info:={INFO}']
    rows = []
    with ros.own_domain() as domain, ros.running(
            arguments, domain=domain, cache=folder / 'cache'):
        for rate in dict.fromkeys((1.0, slow)):
            receiver = Receiver(domain, ['front'])
            begin = time.perf_counter()
            try:
                ros.NodeProcess(
                    [str(folder / 'bag'), '--rate', str(rate), '--wait-for-subscribers', '60',
                     '--wait-for', TOPIC, '--topics', TOPIC, INFO], domain=domain,
                    cache=folder / 'cache', module='depthclip_ros.sources.bag_player').wait(600)
                receiver.wait_until_quiet(PATIENCE)
            finally:
                receiver.close()
            rows.append({'replay': f'{rate:.2f} of its rate', 'images': frames,
                         'seconds': time.perf_counter() - begin - PATIENCE,
                         'images with depth': len(receiver.arrivals)})
    return rows
