# SPDX-License-Identifier: Apache-2.0
"""From the start of the node's process to the first depth, and the memory that it takes, as JSON.

A camera already publishes 640x480 images at 30 Hz when the node is started, and somebody already
waits for depth. The weights are random numbers in a file of the size and format of OpenAI's RN50.

    python benchmarks/startup.py --repeats 7 --output benchmarks/results/startup.json
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

BEGIN = time.time()  # for `stages`: before anything heavy is imported

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

GOAL, GOAL_GPU = 5.0, 3.0  # seconds until the first depth, text features in the cache
HEIGHT, WIDTH, RATE = 480, 640, 30.0
# Seconds between two of Fast DDS's announcements, at one of which a process that came since is
# often found: without a wait every start would be just after the one by which we found the camera.
ANNOUNCED = 3.0


def main() -> int:
    """Measure, write, and exit with 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--weights', type=Path, help='file; default: random numbers, written once')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--parameter', action='append', default=[], metavar='NAME:=VALUE',
                        help="more of the node's parameters; may be repeated")
    parser.add_argument('--output', type=Path, help='JSON file; default: standard output')
    parser.add_argument('--stages', nargs=2, metavar=('WEIGHTS', 'CACHE'), help=argparse.SUPPRESS)
    parser.add_argument('--publish', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish_images()
        return 0
    if options.stages:
        print_stages(*options.stages, options.device)
        return 0
    from benchmarks import machine, report
    description = machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        weights = options.weights or write_release(Path(folder) / 'RN50.pt')
        result = measure(weights, Path(folder), options)
    goal = GOAL_GPU if description['gpu'] and options.device != 'cpu' else GOAL
    report.write(options.output, {**description, **result, 'goal [s]': goal})
    return int(result['node, text features cached']['first depth [s]'] > goal)


def measure(weights: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; seconds are medians over the repeats."""
    arguments = ['--ros-args', '-p', f'weights:={weights}', '-p', f'device:={options.device}']
    for parameter in options.parameter:
        arguments += ['-p', parameter]
    cache = folder / 'cache'
    with other_processes() as domain:
        cold = start_node(arguments, domain, cache)
        warm = [start_node(arguments, domain, cache, wait=ANNOUNCED * i / options.repeats)
                for i in range(options.repeats)]
    stages = [read_stages(weights, cache, options.device) for _ in range(options.repeats)]
    predict = [time_predict(weights, folder, options.device) for _ in range(options.repeats)]
    return {
        'what': f'{WIDTH}x{HEIGHT} rgb8 at {RATE:g} Hz, sent before the node starts; seconds '
                'since the start of its process; medians; starts are spread over the '
                f'{ANNOUNCED:g} s between two announcements of the camera',
        'repeats': options.repeats,
        'parameters': options.parameter,
        'weights [MiB]': weights.stat().st_size / 2**20,
        'node, text features not cached': cold,
        'node, text features cached': medians(warm),
        'first depth, every repeat [s]': [run['first depth [s]'] for run in warm],
        'stages, one after another': medians(stages),
        'depthclip predict, one image': medians(predict),
    }


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of every number of equal dictionaries."""
    return {key: medians([run[key] for run in runs]) if isinstance(value, dict)
            else median(run[key] for run in runs) for key, value in runs[0].items()}


# The node --------------------------------------------------------------------------------------


@contextmanager
def other_processes() -> Any:
    """A camera in a process of its own, on a ROS domain of this benchmark."""
    import ros_harness as ros
    with ros.own_domain() as domain:
        camera = subprocess.Popen(
            [sys.executable, __file__, '--publish'], stdout=subprocess.PIPE, text=True,
            env={**os.environ, 'ROS_DOMAIN_ID': str(domain)})
        try:
            camera.stdout.readline()  # it says when it begins
            yield domain
        finally:
            camera.terminate()
            camera.wait()


def publish_images() -> None:
    """Be the camera, until terminated."""
    import rclpy
    import ros_harness as ros
    from clip_standin import synthetic_rgb
    from rclpy.qos import QoSProfile
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import CameraInfo, Image
    from std_msgs.msg import Header
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('camera')
    image = ros.image(Header(frame_id=ros.FRAME), synthetic_rgb(1, HEIGHT, WIDTH), 'rgb8')
    info = ros.camera_info(image.header, WIDTH, HEIGHT)
    publishers = [node.create_publisher(kind, topic, QoSProfile(depth=1))
                  for kind, topic in ((Image, 'image'), (CameraInfo, 'camera_info'))]
    print('begins', flush=True)
    due = time.monotonic()
    while True:
        image.header.stamp = node.get_clock().now().to_msg()
        for publisher, message in zip(publishers, (image, info), strict=True):
            publisher.publish(message)
        due += 1 / RATE
        time.sleep(max(0.0, due - time.monotonic()))


def start_node(
    arguments: list[str], domain: int, cache: Path, wait: float = 0.0,
) -> dict[str, float]:
    """Start the node after so many seconds; give those to its steps, its memory at first depth."""
    import ros_harness as ros
    with ros.Peer(domain, listen=()) as peer:
        arrived: list[float] = []
        stamps: list[float] = []

        def on_depth(message: Any) -> None:
            arrived.append(time.time())
            stamps.append(message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec)

        peer.node.create_subscription(ros.OUTPUTS['depth/image'], 'depth/image', on_depth, 5)
        peer.wait(lambda: peer.node.count_publishers('image'), 'the camera')
        time.sleep(wait)
        begin = time.time()
        node = ros.NodeProcess(arguments, domain=domain, cache=cache)
        try:
            peer.wait(lambda: arrived, 'depth')
            used = {'processor time [s]': processor_time(node.process.pid),
                    **memory_of(node.process.pid)}
            configured = logged(node.wait_for(r'\]: Configured: '))
            active = logged(node.wait_for(r'\]: Active: '))
        finally:
            node.stop()
    return {'configured [s]': configured - begin, 'active [s]': active - begin,
            'first answered image was sent [s]': stamps[0] - begin,
            'first depth [s]': arrived[0] - begin, **used}


def logged(line: str) -> float:
    """Time of a line of the node's log."""
    return float(re.search(r'\[(\d+\.\d+)\]', line).group(1))


def processor_time(pid: int) -> float:
    """Seconds that a process has used so far, on all cores together."""
    values = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf('SC_CLK_TCK')


def memory_of(pid: int | str) -> dict[str, float]:
    """Resident memory of a process; `files` are libraries, shared with other processes."""
    status = dict(line.split(':', 1) for line in
                  Path(f'/proc/{pid}/status').read_text(encoding='utf-8').splitlines())
    return {f'{name} [MiB]': int(status[key].split()[0]) / 1024 for name, key in
            (('resident', 'VmRSS'), ('of it files', 'RssFile'), ('peak', 'VmHWM'))}


# The stages ------------------------------------------------------------------------------------


def read_stages(weights: Path, cache: Path, device: str) -> dict[str, dict[str, float]]:
    """Run the stages in a process of their own."""
    import json
    begin = time.time()
    done = subprocess.run(
        [sys.executable, __file__, '--stages', str(weights), str(cache), '--device', device],
        capture_output=True, text=True, check=True)
    stages: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    stages['interpreter']['seconds'] -= begin
    return stages


def print_stages(weights: str, cache: str, device: str) -> None:
    """Do what the node does when it starts, one thing after another, and time each."""
    import json

    import numpy as np
    stages = {'interpreter': {'seconds': BEGIN, **memory_of('self')}}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        stages[name] = {'seconds': time.perf_counter() - start, **memory_of('self')}
        return result

    stage('import rclpy', _import_rclpy)
    stage("import the node's modules", _import_node)
    node = stage('create the node', _create_node)
    stage('import torch', _import_torch)
    estimator_class = stage("import the estimator's modules", _import_estimator)
    from depthclip_ros.core import DepthConfig
    from depthclip_ros.core.weights import load
    config = DepthConfig()
    stage('read and hash the weights',
          lambda: load(weights, config.backbone, Path(cache), lambda _: None))
    estimator = stage('make the estimator, which reads them again',
                      lambda: estimator_class(config, weights, device, cache_dir=cache))
    if not estimator.text_cache_hit:
        raise RuntimeError('the text features are not in the cache')
    stage('warm-up', estimator.warm_up)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for name in ('first image', 'second image', 'third image'):
        stage(name, lambda: estimator.predict(image))
    node.destroy_node()
    print(json.dumps(stages))


def _import_rclpy() -> None:
    import rclpy  # noqa: F401


def _import_node() -> None:
    import depthclip_ros.node.depth_node  # noqa: F401


def _create_node() -> Any:
    import rclpy

    from depthclip_ros.node.depth_node import DepthNode
    rclpy.init(args=[])
    return DepthNode()


def _import_torch() -> None:
    import torch  # noqa: F401


def _import_estimator() -> Any:
    from depthclip_ros.core.estimator import DepthEstimator
    return DepthEstimator


# The command line ------------------------------------------------------------------------------


def time_predict(weights: Path, folder: Path, device: str) -> dict[str, float]:
    """Run `depthclip predict` on one image; its text features are in the cache already."""
    import cv2
    from clip_standin import synthetic_rgb
    picture = folder / 'image.png'
    cv2.imwrite(str(picture), synthetic_rgb(1, HEIGHT, WIDTH))
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, '-m', 'depthclip_ros.cli.main', 'predict', str(picture), '--weights',
         str(weights), '--device', device, '-o', str(folder / 'output')],
        cwd=ROOT, env={**os.environ, 'DEPTHCLIP_CACHE': str(folder / 'cache')},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f'depthclip predict failed with {process.returncode}')
    return {'seconds': seconds, 'processor time [s]': usage.ru_utime + usage.ru_stime,
            'peak [MiB]': usage.ru_maxrss / 1024}


# The weights -----------------------------------------------------------------------------------


def write_release(path: Path) -> Path:
    """Write random numbers of RN50's shape as OpenAI releases them: TorchScript, half precision.

    In a process of its own, so that this one does not hold them.
    """
    code = ('import clip_standin, sys\n'
            'clip_standin.write_release(sys.argv[1], clip_standin.state_dict())')
    folders = os.pathsep.join(map(str, (ROOT, ROOT / 'test')))
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(path)], check=True,
                   env={**os.environ, 'PYTHONPATH': folders})
    return path


if __name__ == '__main__':
    sys.exit(main())
