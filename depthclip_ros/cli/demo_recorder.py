# SPDX-License-Identifier: Apache-2.0
"""Node of `depthclip demo` that counts images, depth and clouds, and writes pictures."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from ..core.opencv import cv2
from ..drawing.color import UNTRAINED, VIRIDIS, contact_sheet, depth_scale, png, side_by_side
from ..messages.depth import depth_values, metres_from_pixels, to_depth
from ..messages.image_io import to_rgb
from ..messages.message_types import nanoseconds
from ..sources.pictures import read_picture, read_pixels
from .model import save

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

INPUT = 'input.png'  # the first image with depth
SUMMARY = 'summary.json'
PATTERNS = ('depth_*.png', 'color_*.png', 'cloud_*.ply', 'overview.png', INPUT, SUMMARY)
OVERVIEW_PICTURES = 12
CLOUD_SECONDS = 1.0  # how long a frame waits for its cloud and image
DIAGNOSTICS_SECONDS = 2.0  # they come every second
MAX_WAITING = 64  # images without depth or cloud; older ones are only counted
FLOAT32 = 7  # sensor_msgs/PointField


@dataclass
class Frame:
    """One image with its depth and cloud; missing messages are None.

    Attributes:
        image: its message.
        image_time: steady time of its arrival [s].
        depth: message of its depth.
        depth_time: steady time of its arrival [s].
        latency: see `Recorder`.
        number: of the depth image, from 1.
        cloud: message of its points.

    """

    image: Image | CompressedImage | None = None
    image_time: float = 0.0
    depth: Image | None = None
    depth_time: float = 0.0
    latency: float | None = None
    number: int = 0
    cloud: PointCloud2 | None = None


class Cloud(NamedTuple):
    """Points with depth: (N, 3) metres in the optical frame, and their uint8 RGB."""

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]


class Album:
    """Writes frames into a folder in a background thread, and thins them out to a limit."""

    def __init__(
        self, folder: Path, limit: int | None, expected_frames: int | None,
        depth_range: tuple[float, float] | None, *, trained: bool, colormap: str = VIRIDIS,
    ) -> None:
        """Begin in a folder without files of PATTERNS.

        Args:
            folder: to write to.
            limit: largest number of frames that stay; None: all.
            expected_frames: of the run; None if unknown.
            depth_range: ends of the scale [m]; None: nearly all depth of the run.
            trained: False adds a warning to pictures and clouds.
            colormap: of depth.

        """
        self.numbers: list[int] = []
        self.lost_pixels = 0
        self._folder, self._limit, self._expected_frames = folder, limit, expected_frames
        self._color_options, self._trained = (colormap, depth_range), trained
        self._depths: dict[int, tuple[NDArray[np.float32], str]] = {}  # thinned, and caption
        self._images = tempfile.TemporaryDirectory()  # until the pictures are painted
        self._stride = max(1, -(-expected_frames // limit)) if expected_frames and limit else 1
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writes: list[Future[None]] = []

    def wants(self, number: int) -> bool:
        """Check whether a frame is kept with the current stride."""
        return (number - 1) % self._stride == 0 and number <= (self._expected_frames or number)

    def add(self, frame: Frame) -> None:
        """Write a frame in the background; beyond the limit, every second frame is removed."""
        if not self.wants(frame.number):
            return
        self.numbers.append(frame.number)
        self._writes.append(self._writer.submit(self._write, frame))
        while self._limit and len(self.numbers) > self._limit:
            self._stride *= 2
            for number in [n for n in self.numbers if not self.wants(n)]:
                self.numbers.remove(number)
                self._writes.append(self._writer.submit(self._remove, number))

    def close(self, title: str) -> list[str]:
        """Write the pictures and the overview; returns the names of all files.

        Raises:
            ConfigError: a file could not be written.

        """
        self._writer.shutdown()
        for write in self._writes:
            write.result()
        self._paint()
        self.numbers.sort()  # frames with a late cloud are out of order
        overview_numbers = self.numbers[::-(-len(self.numbers) // OVERVIEW_PICTURES) or 1]
        pictures = [read_picture(self._path('color', n)) for n in overview_numbers]
        if pictures:
            save(self._folder / 'overview.png', png(contact_sheet(pictures, title)))
        return sorted(path.name for pattern in PATTERNS for path in self._folder.glob(pattern))

    def _remove(self, number: int) -> None:
        del self._depths[number]
        for name in ('depth', 'cloud'):
            self._path(name, number).unlink(missing_ok=True)

    def _write(self, frame: Frame) -> None:
        message: Any = frame.depth
        depth, stamp = to_depth(message), nanoseconds(message.header.stamp)
        millimetres, lost = depth_values(depth, '16UC1')
        self.lost_pixels += lost
        save(self._path('depth', frame.number), png(millimetres))
        picture = np.zeros((*depth.shape, 3), np.uint8)
        if frame.image is not None:
            picture = np.ascontiguousarray(to_rgb(frame.image)[..., ::-1])
            if not (self._folder / INPUT).exists():
                save(self._folder / INPUT, png(picture))
        save(Path(self._images.name, f'{frame.number}.png'), png(picture))
        caption = f'frame {frame.number}   stamp {1e-9 * stamp:.3f} s'
        if frame.latency is not None:
            caption += f'   latency {1e3 * frame.latency:.0f} ms'
        self._depths[frame.number] = depth[::8, ::8], caption
        if frame.cloud is not None:
            save(self._path('cloud', frame.number),
                 ply(cloud_points(frame.cloud), trained=self._trained))

    def _paint(self) -> None:
        """Write all images beside their depth, on one colour scale."""
        scale = depth_scale((depth for depth, _ in self._depths.values()), *self._color_options)
        for number, (_, caption) in self._depths.items():
            depth = metres_from_pixels(
                read_pixels(self._path('depth', number), cv2.IMREAD_UNCHANGED))
            image = read_picture(Path(self._images.name, f'{number}.png'))
            save(self._path('color', number), png(side_by_side(
                depth, scale, image, caption, '' if self._trained else UNTRAINED)))
        self._images.cleanup()

    def _path(self, name: str, number: int) -> Path:
        return self._folder / f'{name}_{number:03d}.{"ply" if name == "cloud" else "png"}'


class Recorder(Node):
    """Subscribes to images, depth, clouds and diagnostics, and counts them.

    Latency is the time from the image's stamp to the arrival of its depth [s]. A replayed
    recording has old stamps: there it starts at the arrival of the image, which may be late.
    """

    def __init__(
        self, album: Album, images: str, *, compressed: bool, reliable: bool, replay: bool,
    ) -> None:
        """Subscribe to the node's topic of images, and to all topics that it publishes.

        `reliable` requests reliable images, if their publisher offers it: best effort loses large
        ones.
        """
        super().__init__('depthclip_demo')
        self.images = self.depths = self.clouds = 0
        self.first = self.last = 0.0  # steady time of depth images
        self.latencies: list[float] = []
        self.model: dict[str, str] = {}  # from the node's diagnostics, like `counts`
        self.counts: dict[str, str] = {}
        self._album = album
        self._topic, self._replay = images, replay
        self._frames: dict[int, Frame] = {}  # by stamp
        self._diagnostics_time = 0.0  # steady time of the newest
        self._closing = False
        for kind, topic, callback in (
                (CompressedImage if compressed else Image, images, self._on_image),
                (Image, 'depth/image', self._on_depth),
                (PointCloud2, 'points', self._on_cloud),
                (DiagnosticArray, '/diagnostics', self._on_diagnostics)):
            self.create_subscription(kind, topic, callback, QoSProfile(
                depth=10, reliability=ReliabilityPolicy.RELIABLE
                if reliable or topic != images else ReliabilityPolicy.BEST_EFFORT))

    def spin_for(self, seconds: float) -> None:
        """Receive messages for some seconds; then store frames that are complete or too old."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)
        self._hand_over(time.monotonic() - CLOUD_SECONDS)

    def finish(self, step: Callable[[], None]) -> None:
        """Accept no new frames; receive missing messages of open ones, and the last counts."""
        self._closing, begin = True, time.monotonic()
        while any(frame.depth for frame in self._frames.values()) or (
                begin > self._diagnostics_time > 0
                and time.monotonic() < begin + DIAGNOSTICS_SECONDS):
            step()

    def close(self, title: str) -> list[str]:
        """Store all open frames; see `Album.close`."""
        self._hand_over(time.monotonic())
        return self._album.close(title)

    def node_is_active(self) -> bool:
        """Check that another node subscribes to the images, and that one publishes depth."""
        return self.count_subscribers(self._topic) > 1 and self.count_publishers('depth/image') > 0

    @property
    def waiting(self) -> bool:
        """Whether depth of an image may still arrive."""
        return any(frame.depth is None for frame in self._frames.values())

    @property
    def rate(self) -> float:
        """Depth images per second, from the first to the last."""
        return (self.depths - 1) / (self.last - self.first) if self.depths > 1 else 0.0

    def latency(self, percent: float) -> float | None:
        """Compute a percentile of the latencies [ms]."""
        return 1e3 * float(np.percentile(self.latencies, percent)) if self.latencies else None

    def _hand_over(self, before: float) -> None:
        for stamp, frame in list(self._frames.items()):
            complete = frame.image is not None and frame.cloud is not None
            if frame.depth is not None and (complete or frame.depth_time <= before):
                del self._frames[stamp]
                self._album.add(frame)

    def _on_image(self, message: Image | CompressedImage) -> None:
        self.images += 1
        frame = self._frames.setdefault(nanoseconds(message.header.stamp), Frame())
        frame.image, frame.image_time = message, time.monotonic()
        if len(self._frames) > MAX_WAITING:
            del self._frames[min(self._frames)]

    def _on_depth(self, message: Image) -> None:
        self.last, stamp = time.monotonic(), nanoseconds(message.header.stamp)
        self.first = self.first or self.last
        self.depths += 1
        frame = self._frames.pop(stamp, Frame())
        frame.depth, frame.depth_time, frame.number = message, self.last, self.depths
        if not self._replay:
            frame.latency = 1e-9 * (self.get_clock().now().nanoseconds - stamp)
        elif frame.image is not None:
            frame.latency = self.last - frame.image_time
        if frame.latency is not None:
            self.latencies.append(frame.latency)
        # Earlier images will get no depth any more.
        self._frames = {key: other_frame for key, other_frame in self._frames.items()
                        if key > stamp or other_frame.depth is not None}
        if not self._closing and self._album.wants(self.depths):
            self._frames[stamp] = frame

    def _on_cloud(self, message: PointCloud2) -> None:
        self.clouds += 1
        if frame := self._frames.get(nanoseconds(message.header.stamp)):
            frame.cloud = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {entry.key: entry.value for entry in status.values}
            if 'trained' in values:
                self.model = values
            elif 'received' in values:
                self.counts, self._diagnostics_time = values, time.monotonic()


def cloud_points(message: PointCloud2) -> Cloud:
    """Extract the points with depth from a cloud message."""
    offsets = {f.name: f.offset for f in message.fields if f.datatype == FLOAT32}
    layout = np.dtype({
        'names': ['x', 'y', 'z', 'rgb'], 'formats': ['<f4', '<f4', '<f4', '<u4'],
        'offsets': [offsets[name] for name in ('x', 'y', 'z', 'rgb')],
        'itemsize': message.point_step})
    table = np.frombuffer(message.data, layout)
    table = table[~np.isnan(table['z'])]
    rgb = table['rgb']
    return Cloud(np.stack([table[name] for name in 'xyz'], -1),
                 np.stack([rgb >> 16 & 255, rgb >> 8 & 255, rgb & 255], -1).astype(np.uint8))


def ply(cloud: Cloud, *, trained: bool = True) -> bytes:
    """Encode a cloud as binary PLY: x, y, z in metres, red, green, blue."""
    vertices = np.empty(len(cloud.points), [
        ('points', '<f4', 3), ('colors', 'u1', 3)])
    vertices['points'], vertices['colors'] = cloud.points, cloud.colors
    header = '\n'.join((
        'ply', 'format binary_little_endian 1.0',
        'comment metres; optical frame: x right, y down, z forward',
        *([] if trained else [f'comment {UNTRAINED}']),
        f'element vertex {len(vertices)}',
        *(f'property float {name}' for name in 'xyz'),
        *(f'property uchar {name}' for name in ('red', 'green', 'blue')), 'end_header\n'))
    return header.encode() + vertices.tobytes()
