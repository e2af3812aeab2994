# SPDX-License-Identifier: Apache-2.0
"""One camera of the node: what comes in, what goes out, and the account of it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from .anchors import Anchor
from .calibration import Calibration
from .clicks import ClickedPatch
from .image_stream import ImageStream
from .inputs import Input
from .messages import CAMERA_INFO, of_rclpy
from .outputs import OUTPUTS, Outputs
from .publishers import Publishers
from .stamps import Stamps

if TYPE_CHECKING:
    import threading

    from rclpy.lifecycle import LifecycleNode
    from rclpy.node import Node

    from .anchors import Sensors
    from .clicks import Clicks
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


class Camera(ImageStream):
    """Subscriptions, a slot that holds the newest image, publishers and counters.

    The callbacks only store; decoding and everything after it is the worker's. `ready` guards
    the slot and the counters, and wakes the worker.
    """

    def __init__(
        self, node: LifecycleNode, config: NodeConfig, name: str, ready: threading.Condition,
        shared: Sensors | None = None, clicks: Clicks | None = None,
    ) -> None:
        """Create the publishers; `subscribe` begins to listen.

        Args:
            node: owner of the topics.
            config: how to listen and what to publish.
            name: namespace of the topics, '' for the node's own.
            ready: guards the slot and the counters, notified when an image arrives.
            shared: what anchors the scale of all cameras; None for nothing.
            clicks: of all cameras; None where nobody can click.

        """
        image_topic, self.info_topic = input_topics(node, config, name)
        outputs = Outputs(
            Publishers(node, topic_prefix(name)), of_rclpy(), config.depth_encoding)
        super().__init__(config, name, image_topic, outputs, of_rclpy(), ready,
                         None if shared is None else Anchor(shared, config),
                         None if clicks is None else ClickedPatch(clicks))
        self._node = node
        self._frame: bytes | None = None
        self._inputs: list[Input] = []
        self.reported_lost = 0
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
            Input(self._node, of_rclpy().type(self.image_type), self.image_topic, self._on_image,
                  self._on_lost),
            Input(self._node, of_rclpy().type(CAMERA_INFO), self.info_topic, self._on_info,
                  latched=True),
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
