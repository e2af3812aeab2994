# SPDX-License-Identifier: Apache-2.0
"""What `depthclip demo` sees of its node: counts of what goes in and comes out, and pictures."""

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

from ..color import UNTRAINED, VIRIDIS, contact_sheet, depth_scale, png, side_by_side
from ..core.opencv import cv2
from ..messages.depth import depth_values, measured, to_depth
from ..messages.image_io import to_rgb
from ..messages.types import nanoseconds
from ..sources.pictures import read_picture, read_pixels
from .model import save

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

INPUT = 'input.png'  # the first image that was answered, as it came
SUMMARY = 'summary.json'
PATTERNS = ('depth_*.png', 'color_*.png', 'cloud_*.ply', 'overview.png', INPUT, SUMMARY)
OVERVIEW_PICTURES = 12
CLOUD_SECONDS = 1.0  # that a frame waits for its cloud and its image
DIAGNOSTICS_SECONDS = 2.0  # they come every second
KEPT = 64  # images that wait for their depth or its cloud; earlier ones are only counted
FLOAT32 = 7  # sensor_msgs/PointField


@dataclass
class Frame:
    """One image and its answer; what has not come is None.

    Attributes:
        image: its message, which came at the steady time `came`.
        depth: the message that answers it, at the steady time `answered`.
        latency: see `Recorder`.
        number: of the depth image, from 1.
        cloud: the message with its points.

    """

    image: Image | CompressedImage | None = None
    came: float = 0.0
    depth: Image | None = None
    answered: float = 0.0
    latency: float | None = None
    number: int = 0
    cloud: PointCloud2 | None = None


class Cloud(NamedTuple):
    """Points that have a depth: (N, 3) metres in the optical frame, and their uint8 RGB."""

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]


class Album:
    """Writes frames into a folder, in a thread of its own, and thins them out as they come."""

    def __init__(
        self, folder: Path, limit: int | None, frames: int | None,
        limits: tuple[float, float] | None, *, trained: bool, colormap: str = VIRIDIS,
    ) -> None:
        """Begin in a folder that holds nothing of PATTERNS.

        `limit` frames are left at most, of `frames` that come (None: all, and who knows). Colours
        change between the depths `limits` (None: nearly all depth of the run).
        """
        self.numbers: list[int] = []
        self.lost_pixels = 0
        self._folder, self._limit, self._frames = folder, limit, frames
        self._colors, self._trained = (colormap, limits), trained
        self._depths: dict[int, tuple[NDArray[np.float32], str]] = {}  # some, and the caption
        self._images = tempfile.TemporaryDirectory()  # until they are shown beside their depth
        self._stride = max(1, -(-frames // limit)) if frames and limit else 1
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writes: list[Future[None]] = []

    def wants(self, number: int) -> bool:
        """Whether a frame would be kept, as far as one can tell by now."""
        return (number - 1) % self._stride == 0 and number <= (self._frames or number)

    def add(self, frame: Frame) -> None:
        """Write a frame in the background; every second one goes when they are too many."""
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
        """Finish with the overview; gives the names of the files that are there.

        Raises:
            ConfigError: something could not be written.

        """
        self._writer.shutdown()
        for write in self._writes:
            write.result()
        self._paint()
        self.numbers.sort()  # a frame whose cloud was late came after its successors
        shown = self.numbers[::-(-len(self.numbers) // OVERVIEW_PICTURES) or 1]
        pictures = [read_picture(self._path('color', n)) for n in shown]
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
        """Put all images beside their depth, in the same colours."""
        scale = depth_scale((depth for depth, _ in self._depths.values()), *self._colors)
        for number, (_, caption) in self._depths.items():
            depth = measured(read_pixels(self._path('depth', number), cv2.IMREAD_UNCHANGED))
            image = read_picture(Path(self._images.name, f'{number}.png'))
            save(self._path('color', number), png(side_by_side(
                depth, scale, image, caption, '' if self._trained else UNTRAINED)))
        self._images.cleanup()

    def _path(self, name: str, number: int) -> Path:
        return self._folder / f'{name}_{number:03d}.{"ply" if name == "cloud" else "png"}'


class Recorder(Node):
    """Subscribes to images, depth, clouds and diagnostics, and counts them.

    Latency is from the image's stamp to the arrival of its depth here [s]; where stamps are those
    of a recording (`replay`), from the arrival of the image here, which may itself be late.
    """

    def __init__(
        self, album: Album, images: str, *, compressed: bool, reliable: bool, replay: bool,
    ) -> None:
        """Subscribe to the topic of images that the node listens to, and to all that it sends.

        `reliable`: the images' publisher is; large ones are lost easily otherwise.
        """
        super().__init__('depthclip_demo')
        self.images = self.depths = self.clouds = 0
        self.first = self.last = 0.0  # steady time of depth images
        self.latencies: list[float] = []
        self.model: dict[str, str] = {}  # of the node's diagnostics, like the next
        self.counts: dict[str, str] = {}
        self._album = album
        self._topic, self._replay = images, replay
        self._open: dict[int, Frame] = {}  # by stamp
        self._told = 0.0  # steady time of the diagnostics
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
        """Receive for a while, and hand over frames that have all or have waited long enough."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)
        self._hand_over(time.monotonic() - CLOUD_SECONDS)

    def finish(self, step: Callable[[], None]) -> None:
        """Begin no new frames; receive what those that have begun lack, and the last counts."""
        self._closing, begin = True, time.monotonic()
        while any(frame.depth for frame in self._open.values()) or (
                begin > self._told > 0 and time.monotonic() < begin + DIAGNOSTICS_SECONDS):
            step()

    def close(self, title: str) -> list[str]:
        """Write all that has begun; see `Album.close`."""
        self._hand_over(time.monotonic())
        return self._album.close(title)

    def hears_the_node(self) -> bool:
        """Whether someone else subscribes to the images, and someone publishes depth."""
        return self.count_subscribers(self._topic) > 1 and self.count_publishers('depth/image') > 0

    @property
    def waiting(self) -> bool:
        """Whether an image may still be answered."""
        return any(frame.depth is None for frame in self._open.values())

    @property
    def rate(self) -> float:
        """Depth images a second, from the first to the last."""
        return (self.depths - 1) / (self.last - self.first) if self.depths > 1 else 0.0

    def latency(self, percent: float) -> float | None:
        """Percentile of the latencies [ms]."""
        return 1e3 * float(np.percentile(self.latencies, percent)) if self.latencies else None

    def _hand_over(self, before: float) -> None:
        for stamp, frame in list(self._open.items()):
            complete = frame.image is not None and frame.cloud is not None
            if frame.depth is not None and (complete or frame.answered <= before):
                del self._open[stamp]
                self._album.add(frame)

    def _on_image(self, message: Image | CompressedImage) -> None:
        self.images += 1
        frame = self._open.setdefault(nanoseconds(message.header.stamp), Frame())
        frame.image, frame.came = message, time.monotonic()
        if len(self._open) > KEPT:
            del self._open[min(self._open)]

    def _on_depth(self, message: Image) -> None:
        self.last, stamp = time.monotonic(), nanoseconds(message.header.stamp)
        self.first = self.first or self.last
        self.depths += 1
        frame = self._open.pop(stamp, Frame())
        frame.depth, frame.answered, frame.number = message, self.last, self.depths
        if not self._replay:
            frame.latency = 1e-9 * (self.get_clock().now().nanoseconds - stamp)
        elif frame.image is not None:
            frame.latency = self.last - frame.came
        if frame.latency is not None:
            self.latencies.append(frame.latency)
        # Earlier images will not be answered any more.
        self._open = {key: other for key, other in self._open.items()
                      if key > stamp or other.depth is not None}
        if not self._closing and self._album.wants(self.depths):
            self._open[stamp] = frame

    def _on_cloud(self, message: PointCloud2) -> None:
        self.clouds += 1
        if frame := self._open.get(nanoseconds(message.header.stamp)):
            frame.cloud = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {entry.key: entry.value for entry in status.values}
            if 'trained' in values:
                self.model = values
            elif 'received' in values:
                self.counts, self._told = values, time.monotonic()


def cloud_points(message: PointCloud2) -> Cloud:
    """Points of a cloud that have a depth."""
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
    """A cloud as binary PLY: x, y, z in metres, red, green, blue."""
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
