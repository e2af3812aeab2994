# SPDX-License-Identifier: Apache-2.0
"""A subscriber that keeps account of what goes into depth_node and what comes out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from ..node import image_io
from .album import Album, Cloud, Frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# Images that wait for their depth are kept up to this size; older ones are only counted.
KEPT_BYTES = 256 << 20
CLOUD_SECONDS = 1.0
FLOAT32 = 7  # sensor_msgs/PointField


@dataclass
class Account:
    """What was seen; `images` = `answered` + `dropped` + `waiting`.

    Attributes:
        images: images that came by.
        depths: depth images.
        answered: images that a depth image followed.
        dropped: images that none followed, while one followed a later image.
        unseen: depth images whose own image did not come by.
        clouds: point clouds.
        latencies: seconds per depth image, see `Recorder`.
        first: steady time of the first depth image.
        last: steady time of the last one.

    """

    images: int = 0
    depths: int = 0
    answered: int = 0
    dropped: int = 0
    unseen: int = 0
    clouds: int = 0
    latencies: list[float] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0

    @property
    def waiting(self) -> int:
        """Images that may still be answered."""
        return self.images - self.answered - self.dropped

    @property
    def rate(self) -> float:
        """Depth images a second, from the first to the last."""
        return (self.depths - 1) / (self.last - self.first) if self.depths > 1 else 0.0

    def latency_ms(self, percent: float) -> float | None:
        """Percentile of the latencies in milliseconds."""
        return 1e3 * float(np.percentile(self.latencies, percent)) if self.latencies else None


@dataclass
class _Answer:
    number: int
    depth: Image
    image: Image | CompressedImage | None
    latency: float
    arrived: float


class Recorder(Node):
    """Subscribes to images, depth, clouds and diagnostics.

    Latency is from the image's stamp to the arrival of its depth here; where stamps are those of
    a recording, from the arrival of the image here.
    """

    def __init__(
        self, album: Album, image_topic: str, *, compressed: bool, reliable: bool, replay: bool,
    ) -> None:
        """Subscribe.

        Args:
            album: gets the frames that it wants.
            image_topic: that the node listens to.
            compressed: type of its messages.
            reliable: whether its publisher is; large images are lost easily otherwise.
            replay: stamps are those of a recording.

        """
        super().__init__('depthclip_demo')
        self.account = Account()
        self.model: dict[str, str] = {}
        self.node_frames: dict[str, str] = {}
        self.image_topic = image_topic
        self._album = album
        self._replay = replay
        # By stamp, in order of arrival; the message is None where it was let go.
        self._images: dict[int, tuple[float, Image | CompressedImage | None]] = {}
        self._kept = 0
        self._unseen: set[int] = set()
        self._clouds: dict[int, PointCloud2] = {}
        self._answers: dict[int, _Answer] = {}
        self._closing = False
        self._subscribe(CompressedImage if compressed else Image, image_topic, self._on_image,
                        reliable=reliable)
        self._subscribe(Image, 'depth/image', self._on_depth)
        self._subscribe(PointCloud2, 'points', self._on_cloud)
        self._subscribe(DiagnosticArray, '/diagnostics', self._on_diagnostics)

    def spin_for(self, seconds: float) -> None:
        """Receive for a while, and hand over complete frames."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)
        self.hand_over(time.monotonic() - CLOUD_SECONDS)

    def finish(self, step: Callable[[], None]) -> None:
        """Begin no new frames, and receive by `step` what those that have begun still lack."""
        self._closing = True
        while self._answers:  # each leaves when it is complete or CLOUD_SECONDS old
            step()

    def is_node_listening(self) -> bool:
        """Whether someone else subscribes to the images, and someone publishes depth."""
        return self.count_subscribers(self.image_topic) > 1 \
            and self.count_publishers('depth/image') > 0

    def hand_over(self, before: float) -> None:
        """Give frames to the album: complete ones, and those that arrived before a time."""
        for stamp, answer in list(self._answers.items()):
            cloud = self._clouds.get(stamp)
            complete = cloud is not None and answer.image is not None
            if complete or answer.arrived <= before:
                del self._answers[stamp]
                self._album.add(_frame(answer, stamp, cloud))

    def _subscribe(
        self, kind: type, topic: str, callback: Callable[[Any], None], *, reliable: bool = True,
    ) -> None:
        reliability = QoSReliabilityPolicy.RELIABLE if reliable \
            else QoSReliabilityPolicy.BEST_EFFORT
        self.create_subscription(kind, topic, callback, QoSProfile(
            history=QoSHistoryPolicy.KEEP_LAST, depth=10, reliability=reliability))

    def _on_image(self, message: Image | CompressedImage) -> None:
        self.account.images += 1
        stamp = _nanoseconds(message)
        if stamp in self._unseen:  # its depth was here first
            self._unseen.discard(stamp)
            self.account.unseen -= 1
            self.account.answered += 1
            if stamp in self._answers:
                self._answers[stamp].image = message
            return
        self._images[stamp] = (time.monotonic(), message)
        self._kept += len(message.data)
        for stamp, (arrived, kept) in self._images.items():
            if self._kept <= KEPT_BYTES:
                break
            if kept is not None:
                self._images[stamp] = (arrived, None)
                self._kept -= len(kept.data)

    def _on_depth(self, message: Image) -> None:
        now, stamp = time.monotonic(), _nanoseconds(message)
        account = self.account
        account.depths += 1
        account.last = now
        account.first = account.first or now
        arrived, image = self._take_image(stamp)
        if not self._replay:
            latency = self.get_clock().now().nanoseconds * 1e-9 - stamp * 1e-9
        else:
            latency = now - arrived
        if not np.isnan(latency):
            account.latencies.append(latency)
        if not self._closing and self._album.wants(account.depths):
            self._answers[stamp] = _Answer(account.depths, message, image, latency, now)

    def _take_image(self, stamp: int) -> tuple[float, Image | CompressedImage | None]:
        """Arrival and message of an answered image; earlier ones will not be answered any more."""
        arrived, image = self._images.get(stamp, (float('nan'), None))
        if stamp in self._images:
            self.account.answered += 1
        else:
            self.account.unseen += 1
            self._unseen.add(stamp)
        for earlier in [known for known in self._images if known <= stamp]:
            _, kept = self._images.pop(earlier)
            self._kept -= len(kept.data) if kept is not None else 0
            self.account.dropped += earlier != stamp
        return arrived, image

    def _on_cloud(self, message: PointCloud2) -> None:
        self.account.clouds += 1
        self._clouds[_nanoseconds(message)] = message
        while len(self._clouds) > 8:
            del self._clouds[next(iter(self._clouds))]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {entry.key: entry.value for entry in status.values}
            if 'trained' in values:
                self.model = values
                self._album.trained = values['trained'] == 'True'
            elif 'received' in values:
                self.node_frames = values


def depth_metres(message: Image) -> NDArray[np.floating[Any]]:
    """(H, W) metres with NaN, of a depth image in either encoding of REP-118."""
    kind = {'32FC1': np.float32, '16UC1': np.uint16}[message.encoding]
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    values = rows[:, :message.width * np.dtype(kind).itemsize].copy().view(kind)
    if message.encoding == '32FC1':
        return values.view(np.float32)
    return np.where(values == 0, np.nan, values * np.float32(1e-3)).astype(np.float32)


def cloud_points(message: PointCloud2) -> Cloud:
    """Points of a cloud that have a depth."""
    offsets = {f.name: f.offset for f in message.fields if f.datatype == FLOAT32}
    layout = np.dtype({
        'names': ['x', 'y', 'z', 'rgb'], 'formats': ['<f4', '<f4', '<f4', '<u4'],
        'offsets': [offsets[name] for name in ('x', 'y', 'z', 'rgb')],
        'itemsize': message.point_step})
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.row_step)
    table = rows[:, :message.width * message.point_step].copy().view(layout).reshape(-1)
    points = np.stack([table['x'], table['y'], table['z']], -1)
    there = ~np.isnan(points).any(axis=1)
    rgb = table['rgb'][there]
    colors = np.stack([rgb >> 16 & 255, rgb >> 8 & 255, rgb & 255], -1).astype(np.uint8)
    return Cloud(points[there], colors)


def _frame(answer: _Answer, stamp: int, cloud: PointCloud2 | None) -> Frame:
    image = answer.image
    picture = None
    if image is not None:
        rgb = image_io.to_rgb(image)
        picture = np.ascontiguousarray(rgb[..., ::-1])
    caption = f'frame {answer.number}   stamp {stamp * 1e-9:.3f} s'
    if not np.isnan(answer.latency):
        caption += f'   latency {1e3 * answer.latency:.0f} ms'
    return Frame(answer.number, picture, depth_metres(answer.depth),
                 None if cloud is None else cloud_points(cloud), caption)


def _nanoseconds(message: Any) -> int:
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
