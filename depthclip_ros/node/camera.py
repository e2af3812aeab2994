# SPDX-License-Identifier: Apache-2.0
"""One camera of the node: what comes in, what goes out, and the account of it."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any

from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from . import messages
from .anchors import Anchor
from .calibration import Calibration
from .inputs import OFFERED, Input
from .outputs import OUTPUT_DEPTH, OUTPUTS
from .statistics import Counters, Say, Window

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode
    from rclpy.lifecycle.publisher import LifecyclePublisher
    from rclpy.node import Node

    from ..core.words import Scene
    from .anchors import Sensors
    from .config import NodeConfig
    from .worker import Worker

OFF = 'reference_focal is 0'


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
    """Subscriptions, publishers and counters.

    The callbacks only store; decoding and everything after it is the worker's.

    Attributes:
        calibration: the latest camera_info.
        anchor: of the scale of depth; None for none.
        scene: of the image that was answered last.
        focal_ratio: by what depth was multiplied last for the focal length.
        focal_reason: why not; '' where it was.
        first_image, last_image, last_info: steady time; simulated time may stand still.

    """

    def __init__(
        self, node: LifecycleNode, config: NodeConfig, name: str,
        sensors: Sensors | None = None,
    ) -> None:
        """Create the publishers; `subscribe` begins to listen.

        Args:
            node: owner of the topics.
            config: how to listen and what to publish.
            name: namespace of the topics, '' for the node's own.
            sensors: what anchors the scale of all cameras; None for nothing.

        """
        self._node = node
        self._lock = threading.Lock()
        self._counters = Counters()
        self._inputs: list[Input] = []
        self.config, self.name = config, name
        self.label = f'{name}: ' if name else ''  # begins a line in the log
        self.image_topic, self.info_topic = input_topics(node, config, name)
        self.image_type = messages.COMPRESSED_IMAGE \
            if config.image_transport == 'compressed' else messages.IMAGE
        self._publishers = {topic: self._publisher(topic, kind) for topic, kind in OUTPUTS.items()}
        self.anchor = None if sensors is None else Anchor(sensors, config)
        self.ages = Window()  # seconds from stamp to publication
        self.nan_shares = Window()  # of every depth image
        self.stddevs = Window()  # metres, the median of every image
        self.gated_shares = Window()  # of every image, by max_stddev
        self.foreign_stamps = 0  # images
        self.beyond_encoding = 0  # pixels
        self.stretched = 0  # images of another aspect ratio than the network's input
        self.focal_ratio, self.focal_reason, self.focal_jumps = 1.0, OFF, 0
        self.last_error = ''  # what an image failed of last
        self._forget()

    def _publisher(self, topic: str, kind: str) -> LifecyclePublisher:
        # Reliable, so that every subscriber can match (REP-2003), and shallow: old depth is
        # worthless. A profile of its own, in which rclpy writes what overrides it.
        qos = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=OUTPUT_DEPTH,
                         reliability=QoSReliabilityPolicy.RELIABLE)
        publisher: LifecyclePublisher = self._node.create_lifecycle_publisher(
            messages.message_class(kind), topic_prefix(self.name) + topic, qos,
            qos_overriding_options=QoSOverridingOptions.with_default_policies())
        return publisher

    def _forget(self) -> None:
        """Begin as if nothing had come; the account goes on."""
        self.calibration = Calibration(messages.read, rectified=self.config.rectified)
        self.scene: Scene | None = None
        self.say = Say(self._node, self.label)
        self.answered = False
        self.first_image = math.inf
        self.last_image = self.last_info = time.monotonic()
        if self.anchor is not None:
            self.anchor.begin()

    def subscribe(self, worker: Worker) -> None:
        """Begin to listen; `worker` answers the images."""
        self._forget()
        self._worker = worker
        self._inputs = [
            Input(self._node, self.image_type, self.image_topic, self._on_image, self._on_lost),
            Input(self._node, messages.CAMERA_INFO, self.info_topic, self._on_info,
                  latched=OFFERED)]

    def unsubscribe(self) -> None:
        """Stop listening."""
        for source in self._inputs:
            source.destroy()
        self._inputs.clear()

    def destroy(self) -> None:
        """Remove everything from the node."""
        self.unsubscribe()
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    def _on_image(self, raw: bytes) -> None:
        self.last_image = time.monotonic()
        self.first_image = min(self.first_image, self.last_image)
        with self._lock:
            self._counters.received += 1
            self._counters.pending += 1
        if self._worker.put(self, raw):
            self.count('dropped')

    def _on_info(self, raw: bytes) -> None:
        self.last_info = time.monotonic()
        self.calibration.update(raw)

    def _on_lost(self, count: int) -> None:
        with self._lock:
            self._counters.lost += count

    @property
    def info_is_latched(self) -> bool:
        """Whether camera_info is published once for all."""
        return bool(self._inputs) and self._inputs[-1].is_latched

    # What the worker calls -----------------------------------------------------------------

    def wanted(self, topic: str) -> bool:
        """Whether anyone subscribes to one output."""
        return bool(self._publishers[topic].get_subscription_count())

    def any_wanted(self) -> bool:
        """Whether anyone subscribes to any output."""
        return any(map(self.wanted, OUTPUTS))

    def is_active(self) -> bool:
        """Whether what is published leaves the node."""
        publisher = self._publishers.get('depth/image')
        return publisher is not None and bool(publisher.is_activated)

    def publish(self, topic: str, message: Any) -> None:
        """Publish a message on one output."""
        self._publishers[topic].publish(message)

    def count(self, end: str, cause: str = '') -> None:
        """Account for an image that waited or was in work.

        Args:
            end: 'published', 'dropped', 'idle' or 'rejected'.
            cause: of a rejection.

        """
        with self._lock:
            self._counters.pending -= 1
            if end == 'rejected':
                self._counters.rejected[cause] += 1
            else:
                setattr(self._counters, end, getattr(self._counters, end) + 1)

    def count_incomplete(self, kind: str, cause: str) -> None:
        """Account for what an answered image lacks: 'no cloud', 'no pictures' and the like."""
        with self._lock:
            self._counters.incomplete[kind][cause] += 1

    def counters(self) -> Counters:
        """Consistent snapshot of the account."""
        with self._lock:
            return self._counters.copy()
