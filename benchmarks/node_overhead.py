# SPDX-License-Identifier: Apache-2.0
"""What the node costs beside the network: milliseconds per stage, as JSON.

The node runs as it always does, in a process of its own, on a real ROS graph; its own
measurements are read from /diagnostics. Only `receive`, which happens before the node's code, is
measured here, with the same message: the middleware's bytes to a Python message.

    python benchmarks/node_overhead.py --frames 200 --weights untrained --output overhead.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

import ros_harness as ros  # noqa: E402
from clip_standin import synthetic_rgb  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from rclpy.utilities import get_rmw_implementation_identifier  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

BUDGET_MS = 5.0
HEIGHT, WIDTH = 480, 640
USUAL = ('depth/image', 'depth/camera_info', 'points')


def main() -> int:
    """Measure, print, and exit with 1 if the budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--frames', type=int, default=200)
    parser.add_argument('--weights', default='untrained', help='as the parameter of that name')
    parser.add_argument('--all-outputs', action='store_true',
                        help='also subscribe to depth/image_color and depth/spread')
    parser.add_argument('--output', type=Path, help='JSON file; default: standard output')
    options = parser.parse_args()
    outputs = tuple(ros.OUTPUTS) if options.all_outputs else USUAL
    values = measure(options.weights, options.frames, outputs)
    overhead = float(values['node overhead p50 [ms]']) + values['receive p50 [ms]']
    result = {
        'what': f'{WIDTH}x{HEIGHT} rgb8, one camera, subscribed: {", ".join(outputs)}',
        'machine': f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores',
        'load': os.getloadavg()[0],
        'python': platform.python_version(),
        'middleware': get_rmw_implementation_identifier(),
        'frames': int(values['published']),
        'milliseconds': {key.removesuffix(' [ms]'): round(float(value), 3)
                         for key, value in values.items() if key.endswith('[ms]') and value
                         and not key.startswith('age')},
        'everything but the network p50': round(overhead, 3),
        'budget': BUDGET_MS,
    }
    text = json.dumps(result, indent=2) + '\n'
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding='utf-8')
    else:
        sys.stdout.write(text)
    return int(overhead > BUDGET_MS)


def measure(weights: str, frames: int, outputs: tuple[str, ...]) -> dict[str, object]:
    """Send images one after another; give the node's last diagnostics."""
    arguments = ['--ros-args', '-p', f'weights:={weights}']
    with tempfile.TemporaryDirectory() as cache, ros.own_domain() as domain, \
            ros.running(arguments, domain=domain, cache=cache) as node, \
            ros.Peer(domain, listen=outputs, node=node) as peer:
        message = ros.image(peer.header(), synthetic_rgb(1, HEIGHT, WIDTH), 'rgb8')
        info = ros.camera_info(peer.header(), WIDTH, HEIGHT)
        for _ in range(frames):
            message.header = info.header = peer.header()
            peer.send(info)
            peer.ask(message)
            for topic in outputs:
                peer.messages[topic].clear()
        _, values = peer.diagnostics(
            'depth_node: frames', lambda v: int(v['published']) >= frames)
    return {**values, 'receive p50 [ms]': time_receive(message)}


def time_receive(message: Image) -> float:
    """Median milliseconds from the middleware's bytes to a message."""
    raw = serialize_message(message)
    times = []
    for _ in range(100):
        start = time.perf_counter()
        deserialize_message(raw, Image)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


if __name__ == '__main__':
    sys.exit(main())
