# SPDX-License-Identifier: Apache-2.0
"""The node that this package is measured against: DepthCLIP wrapped the way most models are.

It computes the same depth, and takes none of the trouble: one callback does everything, behind
queues of 10; every image is converted by way of OpenCV's order, every array and message made
anew; the network is `NaiveDepthClip`; all outputs are made whether or not anybody wants them.

    python -m benchmarks.plain_node --ros-args -p weights:=untrained -p cameras:="['front']"
"""

from __future__ import annotations

import functools
import json
import time
from collections import defaultdict, deque
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import rclpy
import torch
from numpy.typing import NDArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from benchmarks.naive import NaiveDepthClip
from depthclip_ros.core.config import DepthConfig
from depthclip_ros.core.weights import load
from depthclip_ros.core.words import encode, phrases_of

QUEUE = 10


class PlainNode(Node):
    """Everything in one callback."""

    def __init__(self) -> None:
        super().__init__('plain_node')
        get = self._parameter
        self.size = get('input_height', 480), get('input_width', 640)
        self.step = get('cloud_step', 1)  # pixels from one point of the cloud to the next
        device = get('device', 'auto')
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        config = DepthConfig(temperature=get('temperature', DepthConfig().temperature))
        _, weights = load(get('weights', 'untrained'), get('backbone', 'RN50'), Path.home(),
                          self.get_logger().info)
        self.network = NaiveDepthClip(
            weights, encode(phrases_of(config)[0], weights), config, torch.device(device))
        self.predict(np.zeros((480, 640, 3), np.uint8))
        self.times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=200))
        self.frames = 0

        self.infos: dict[str, CameraInfo] = {}
        self.outputs = {}
        for name in get('cameras', ['']):
            prefix = f'{name}/' if name else ''
            self.outputs[name] = (
                self.create_publisher(Image, prefix + 'depth/image', QUEUE),
                self.create_publisher(CameraInfo, prefix + 'depth/camera_info', QUEUE),
                self.create_publisher(PointCloud2, prefix + 'points', QUEUE))
            self.create_subscription(
                CameraInfo, prefix + 'camera_info',
                functools.partial(self.infos.__setitem__, name), QUEUE)
            self.create_subscription(
                Image, prefix + 'image', functools.partial(self.on_image, name), QUEUE)
        self.create_timer(1.0, self.report)
        self.get_logger().info(f'Active: on {device}')

    def _parameter(self, name: str, default: Any) -> Any:
        return self.declare_parameter(name, default).value

    def on_image(self, name: str, message: Image) -> None:
        """Answer an image."""
        start = time.perf_counter()
        bgr = imgmsg_to_cv2(message, 'bgr8')
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        predicting = time.perf_counter()
        depth = self.predict(rgb)
        network = time.perf_counter() - predicting
        depth_publisher, info_publisher, cloud_publisher = self.outputs[name]
        depth_publisher.publish(cv2_to_imgmsg(depth, '32FC1', message.header))
        info = self.infos.get(name)
        if info is not None:
            scaled = CameraInfo(
                header=message.header, height=info.height, width=info.width, k=info.k, p=info.p,
                d=info.d, r=info.r, distortion_model=info.distortion_model)
            info_publisher.publish(scaled)
            cloud_publisher.publish(make_cloud(message.header, depth, rgb, info, self.step))
        self.frames += 1
        self.times['network'].append(network)
        self.times['overhead'].append(time.perf_counter() - start - network)

    def predict(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Depth of the image's size, one pass as `flip_average: false` has it."""
        height, width = rgb.shape[:2]
        if (height, width) != self.size:
            rgb = cv2.resize(rgb, self.size[::-1], interpolation=cv2.INTER_AREA)
        depth = self.network([rgb], flip=False)[0]
        return cv2.resize(depth, (width, height)) if depth.shape != (height, width) else depth

    def report(self) -> None:
        """Print the medians of the last frames, for the benchmark."""
        frames = self.frames // len(self.outputs)  # of each camera
        times = {name: 1e3 * median(values) for name, values in self.times.items()}
        self.get_logger().info(f'TIMES {json.dumps({"frames": frames, **times})}')


def imgmsg_to_cv2(message: Image, encoding: str) -> NDArray[np.uint8]:
    """What cv_bridge does for the two usual encodings."""
    pixels = np.frombuffer(bytes(message.data), np.uint8).reshape(
        message.height, message.width, 3)
    if message.encoding != encoding:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return pixels.copy()


def cv2_to_imgmsg(pixels: NDArray[np.float32], encoding: str, header: Header) -> Image:
    """Make an image message."""
    message = Image()
    message.header = header
    message.height, message.width = pixels.shape
    message.encoding = encoding
    message.step = pixels.strides[0]
    message.data = pixels.tobytes()
    return message


def make_cloud(
    header: Header, depth: NDArray[np.float32], rgb: NDArray[np.uint8], info: CameraInfo,
    step: int,
) -> PointCloud2:
    """Make an organised x y z rgb cloud with a point every few pixels.

    Args:
        header: of the image.
        depth: (H, W) metres.
        rgb: (H, W, 3).
        info: of the camera.
        step: 1 for one point a pixel, as most depth nodes publish it.

    """
    part = slice(step // 2, None, step)
    z, colors = depth[part, part], rgb[part, part]
    u, v = np.meshgrid(np.arange(depth.shape[1])[part], np.arange(depth.shape[0])[part])
    x = (u - info.k[2]) * z / info.k[0]
    y = (v - info.k[5]) * z / info.k[4]
    red, green, blue = (colors[..., i].astype(np.uint32) for i in range(3))
    packed = ((red << 16) | (green << 8) | blue).view(np.float32)
    points = np.stack([x, y, z, packed], axis=-1).astype(np.float32)
    fields = [PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
              for i, name in enumerate(('x', 'y', 'z', 'rgb'))]
    return PointCloud2(
        header=header, height=points.shape[0], width=points.shape[1], fields=fields,
        is_bigendian=False, point_step=16, row_step=16 * points.shape[1],
        data=points.tobytes(), is_dense=True)


def main() -> None:
    """Run until the process is interrupted."""
    rclpy.init()
    node = PlainNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
