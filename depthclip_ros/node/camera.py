# SPDX-License-Identifier: Apache-2.0
"""One camera of the node: what comes in, what goes out, and the account of it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ..core.errors import ImageError
from . import image_io, serialized
from .anchors import Anchor, Shared
from .calibration import Calibration
from .focal import FocalRatio
from .inputs import Input
from .outputs import OUTPUTS, Outputs
from .stamps import Stamps
from .statistics import Counters, Recent, Throttle, Window

if TYPE_CHECKING:
    import threading

    import numpy as np
    from numpy.typing import NDArray
    from rclpy.lifecycle import LifecycleNode
    from rclpy.node import Node
    from std_msgs.msg import Header

    from ..core.scenes import Scene
    from .config import NodeConfig


def topic_prefix(name: str) -> str:
    """What a camera's name puts before the relative names of its topics."""
    return f'{name}/' if name else ''


def input_topics(node: Node, config: NodeConfig, name: str) -> tuple[str, str]:
    """Resolved names of a camera's image and camera_info.

    Compressed images are beside the raw ones, as image_transport has it: remapping `image` moves
    `image/compressed` along.
    """
    image = node.resolve_topic_name(topic_prefix(name) + 'image')
    if config.image_transport == 'compressed':
        image += '/compressed'
    return image, node.resolve_topic_name(topic_prefix(name) + 'camera_info')


def output_topics(node: Node, name: str) -> list[str]:
    """Resolved names of everything that is published of a camera."""
    return [node.resolve_topic_name(topic_prefix(name) + topic) for topic in OUTPUTS]


class Camera:
    """Subscriptions, a slot that holds the newest image, publishers and counters.

    The callbacks only store; decoding and everything after it is the worker's. `ready` guards
    the slot and the counters, and wakes the worker.
    """

    def __init__(
        self, node: LifecycleNode, config: NodeConfig, name: str, ready: threading.Condition,
        shared: Shared | None = None,
    ) -> None:
        """Create the publishers; `subscribe` begins to listen.

        Args:
            node: owner of the topics.
            config: how to listen and what to publish.
            name: namespace of the topics, '' for the node's own.
            ready: guards the slot and the counters, notified when an image arrives.
            shared: what anchors the scale of all cameras; None for nothing.

        """
        self._node = node
        self._ready = ready
        self._frame: bytes | None = None
        self._counters = Counters()
        self._inputs: list[Input] = []
        self.config = config
        self.name = name
        self.label = f'{name}: ' if name else ''  # begins a line in the log
        self.image_topic, self.info_topic = input_topics(node, config, name)
        self.image_type = CompressedImage if config.image_transport == 'compressed' else Image
        self.calibration = Calibration(rectified=config.rectified)
        self.outputs = Outputs(node, config.depth_encoding, topic_prefix(name))
        self.anchor = None if shared is None else Anchor(shared, config)
        self.focal = FocalRatio()
        self.ages = Window()  # milliseconds from stamp to publication
        self.recent_ages = Recent()  # seconds
        self.nan_shares = Recent()  # of every depth image
        self.stddevs = Recent()  # metres, the median of every image
        self.gated_shares = Recent()  # of every image, by max_stddev
        self.foreign_stamps = 0
        self.beyond_encoding = 0  # pixels
        self.throttle = Throttle()
        self.stretched = 0  # images of another aspect ratio than the network's input
        self.warned_frame_id = self.warned_aspect = self.warned_stddev = False
        self.reported_lost = 0
        self.last_error = ''  # what an image failed of last
        self.scene: Scene | None = None  # of the image that was answered last
        self.stamps = Stamps()
        self.newest = b''  # image, whatever becomes of it
        # Steady time, for the watchdogs: simulated time may stand still.
        self.first_image = math.inf
        self.last_image = self.last_info = 0.0

    def subscribe(self) -> None:
        """Begin to listen."""
        self.first_image = math.inf
        self.scene = None
        self.last_image = self.last_info = time.monotonic()
        self.stamps, self.newest = Stamps(), b''
        self.calibration = Calibration(rectified=self.config.rectified)
        if self.anchor is not None:
            self.anchor.begin()
        self.warned_frame_id = self.warned_aspect = self.warned_stddev = False
        self._inputs = [
            Input(self._node, self.image_type, self.image_topic, self._on_image, self._on_lost),
            Input(self._node, CameraInfo, self.info_topic, self._on_info, latched=True),
        ]

    def follow_publishers(self) -> None:
        """Listen as the publishers offer it now."""
        for source in self._inputs:
            source.follow_publishers()

    def unsubscribe(self) -> None:
        """Stop listening; an image that still waits counts as dropped."""
        for source in self._inputs:
            source.destroy()
        self._inputs.clear()
        self.newest = b''
        with self._ready:
            if self._frame is not None:
                self._frame = None
                self._counters.dropped += 1
                self._counters.pending -= 1

    def destroy(self) -> None:
        """Remove everything from the node."""
        self.unsubscribe()
        self.outputs.destroy()

    def _on_image(self, raw: bytes) -> None:
        with self._ready:
            self.last_image = time.monotonic()
            self.first_image = min(self.first_image, self.last_image)
            self.stamps.observe(raw, self.last_image)
            self.newest = raw
            self._counters.received += 1
            if self._frame is None:
                self._counters.pending += 1
            else:
                self._counters.dropped += 1
            self._frame = raw
            self._ready.notify_all()

    def _on_info(self, raw: bytes) -> None:
        self.last_info = time.monotonic()
        self.calibration.update(raw)

    @property
    def info_is_latched(self) -> bool:
        """Whether camera_info is published once for all."""
        return bool(self._inputs) and self._inputs[-1].is_latched

    def _on_lost(self, count: int) -> None:
        with self._ready:
            self._counters.lost += count

    # What the worker calls -----------------------------------------------------------------

    def waiting(self) -> bool:
        """Whether an image waits; call with `ready` held."""
        return self._frame is not None

    def take(self) -> bytes:
        """Take the waiting image; call with `ready` held, and one `count_...` afterwards."""
        if self._frame is None:
            raise RuntimeError('no image waits')
        raw, self._frame = self._frame, None
        return raw

    def decode(self, raw: bytes) -> tuple[Header, NDArray[np.uint8]]:
        """Header and (H, W, 3) RGB of a serialised image message.

        Raises:
            ImageError: the message cannot be used.

        """
        message = self._read(raw)
        to_rgb = image_io.compressed_to_rgb if self.image_type is CompressedImage \
            else image_io.to_rgb
        return message.header, to_rgb(message, self.config.max_pixels)

    def picture(self, raw: bytes) -> memoryview | bytes:
        """Bytes of the picture in a serialised image message; all of an unreadable one."""
        try:
            return image_io.data_of(self._read(raw)).data
        except ImageError:
            return raw

    def _read(self, raw: bytes) -> Any:
        if self.image_type is CompressedImage:
            return serialized.read(raw, CompressedImage, ImageError)
        return serialized.read_image(raw)

    def count_published(self) -> None:
        """Account for an answered image."""
        with self._ready:
            self._counters.published += 1
            self._counters.pending -= 1

    def count_idle(self) -> None:
        """Account for an image that nobody wanted."""
        with self._ready:
            self._counters.idle += 1
            self._counters.pending -= 1

    def count_rejected(self, condition: str) -> None:
        """Account for an unusable image."""
        with self._ready:
            self._counters.rejected[condition] += 1
            self._counters.pending -= 1

    def count_dropped(self) -> None:
        """Account for an image that was taken and left."""
        with self._ready:
            self._counters.dropped += 1
            self._counters.pending -= 1

    def count_unprojected(self, condition: str) -> None:
        """Account for an image that is answered, but without cloud and camera_info."""
        with self._ready:
            self._counters.unprojected[condition] += 1

    def count_unpictured(self, condition: str) -> None:
        """Account for an image that is answered, but without colours, spread and stddev."""
        with self._ready:
            self._counters.unpictured[condition] += 1

    def counters(self) -> Counters:
        """Consistent snapshot of the account."""
        with self._ready:
            return self._counters.copy()
