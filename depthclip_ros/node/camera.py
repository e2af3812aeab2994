# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
"""One camera of the node: its subscriptions, its publishers and its image counters."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile

from ..core.camera import Notice, stretch_notice
from ..messages import message_types as messages
from ..messages.anchors import AnchorSensor
from ..messages.camera_context import CameraContext, DepthResult
from ..messages.node_config import NodeConfig
from ..messages.outputs import OUTPUT_QUEUE, OUTPUTS
from .subscriptions import RELIABLE, AdaptiveSubscription, override_options

WINDOW_SAMPLES = 512  # that a percentile covers
WINDOW_SECONDS = 5.0  # that a mean covers
# An image that seems older than this has a stamp of another clock, as in a replay.
MAX_AGE = 3600.0  # seconds
FOCAL_JUMP = 0.01  # relative change of the focal ratio from which on it is logged
NO_REFERENCE_FOCAL = 'reference_focal is 0'
# Outcomes of an image: its depth is published; a newer image replaced it before its turn, or the
# node stopped; it cannot be used; no output had a subscriber.
PUBLISHED, DROPPED, REJECTED, IDLE = OUTCOMES = ('published', 'dropped', 'rejected', 'idle')
NO_CLOUD, NO_PICTURES = 'no cloud', 'no pictures'  # outputs that may fail beside depth


class RollingWindow:
    """The last values of a quantity, with the times at which they were added."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=WINDOW_SAMPLES)

    def add(self, value: float) -> None:
        """Append a value and drop the oldest one of a full window."""
        self._values.append((time.monotonic(), value))

    def percentile(self, percent: float) -> float:
        """Compute the nearest-rank percentile; NaN while the window is empty."""
        values = sorted(value for _, value in self._values.copy())
        if not values:
            return math.nan
        return values[min(len(values) - 1, math.ceil(percent / 100 * len(values)) - 1)]

    def mean(self) -> float:
        """Average the values of the last WINDOW_SECONDS; NaN if there are none."""
        oldest = time.monotonic() - WINDOW_SECONDS
        values = [value for added, value in self._values.copy() if added >= oldest]
        return sum(values) / len(values) if values else math.nan


class ThrottledLog:
    """The node's log, throttled by a key of each message.

    rclpy throttles by the line of code that logs; here one line logs many kinds of messages.
    """

    def __init__(self, node: Node, label: str = '', period: float = 10.0) -> None:
        """Log a key at most once in `period` seconds; `label` begins every message."""
        self._node, self._label, self._period = node, label, period
        self._last: dict[str, float] = {}

    def write(self, key: str, text: str, level: str = 'warning') -> None:
        """Log a message, unless one of the same key was logged within the period."""
        now = time.monotonic()
        if now - self._last.get(key, -math.inf) < self._period:
            return
        self._last[key] = now
        log, text = self._node.get_logger(), f'{self._label}{text}'
        if level == 'error':  # rclpy needs one line of code for each level
            log.error(text)
        elif level == 'warning':
            log.warning(text)
        else:
            log.info(text)

    def announce(self, text: str) -> None:
        """Log information, every time."""
        self._node.get_logger().info(self._label + text)


def topic_prefix(name: str) -> str:
    """Return the prefix of a camera's relative topic names."""
    return f'{name}/' if name else ''


class Camera:
    """Subscriptions, publishers and image counters of one camera.

    The callbacks only store images; the worker decodes, predicts and publishes. At any moment
    'received' is the sum of OUTCOMES and 'pending': one image waits, one is in work, and one is
    being replaced, at most.

    Attributes:
        context: camera_info, anchor and scene of its images, since the activation.
        ages: seconds from stamp to publication, of images with a stamp of the node's clock.
        nan_fractions: fraction of NaN pixels in each depth image.
        focal: last factor of depth for the focal length, and why it is not applied ('' if it is).
        last_error: sentence about the last image that failed.
        notices: peculiarities of the last image's camera_info.

    """

    def __init__(self, node: LifecycleNode, config: NodeConfig, name: str) -> None:
        """Create the publishers in the namespace `name`; `subscribe` subscribes."""
        self._node, self.config, self.name = node, config, name
        self.label = f'{name}: ' if name else ''  # begins a line in the log
        self.log = ThrottledLog(node, self.label)
        self._image_name = _image_topic_name(node, config, topic_prefix(name) + 'image')
        self._camera_info_name = topic_prefix(name) + 'camera_info'
        self.image_topic = node.resolve_topic_name(self._image_name)
        self.info_topic = node.resolve_topic_name(self._camera_info_name)
        self._lock, self._counts = threading.Lock(), Counter[str]()
        self._subscriptions: list[AdaptiveSubscription] = []
        # One profile for each publisher, since rclpy writes the overrides into it.
        self._publishers = {topic: node.create_lifecycle_publisher(
            messages.message_class(message_type), topic_prefix(name) + topic,
            QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=OUTPUT_QUEUE,
                       reliability=RELIABLE),
            qos_overriding_options=override_options(node, topic_prefix(name) + topic, 'publisher'))
            for topic, (message_type, _) in OUTPUTS.items()}
        self.depth_topic = self._publishers['depth/image'].topic_name
        self.ages, self.nan_fractions = RollingWindow(), RollingWindow()
        self.focal, self.last_error = (1.0, NO_REFERENCE_FOCAL), ''

    def subscribe(self, put: Callable[[Camera, bytes], bool], sensor: AnchorSensor | None) -> None:
        """Subscribe to images and camera_info with a new context; the counters go on.

        `put` queues a serialised image and returns whether it replaces a waiting one.
        """
        self._put = put
        self.context = CameraContext(messages.deserialize, self.config, sensor)
        self._has_published = self._was_anchored = False
        self.notices: tuple[Notice, ...] = ()
        self._shape: tuple[Any, Any] | None = None  # of the last image, and of the network's input
        self.first_image_time = math.inf  # steady time: simulated time may stand still
        self.last_image_time = time.monotonic()
        self._subscriptions.append(AdaptiveSubscription(
            self._node, self.context.image_type, self._image_name, self._on_image, self._on_lost))
        self._subscriptions.append(AdaptiveSubscription(
            self._node, messages.CAMERA_INFO, self._camera_info_name,
            self.context.on_camera_info, transient_local=True))

    def unsubscribe(self) -> None:
        """Destroy the subscriptions."""
        while self._subscriptions:
            self._subscriptions.pop().destroy()

    def destroy(self) -> None:
        """Destroy subscriptions and publishers."""
        self.unsubscribe()
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    def _on_image(self, raw: bytes) -> None:
        self.last_image_time = time.monotonic()
        self.first_image_time = min(self.first_image_time, self.last_image_time)
        with self._lock:
            self._counts.update(('received', 'pending'))
        if self._put(self, raw):
            self.count(DROPPED)

    def _on_lost(self, count: int) -> None:
        with self._lock:
            self._counts['lost'] += count

    # Called by the worker ------------------------------------------------------------------

    def has_subscribers(self, topic: str) -> bool:
        """Return whether anyone subscribes to one output."""
        return bool(self._publishers[topic].get_subscription_count())

    def is_active(self) -> bool:
        """Return whether the publishers are activated."""
        publisher = self._publishers.get('depth/image')
        return publisher is not None and bool(publisher.is_activated)

    def publish(self, topic: str, message: Any) -> None:
        """Publish a message on one output."""
        self._publishers[topic].publish(message)

    def count(self, outcome: str, cause: str = '') -> None:
        """Count an outcome of an image, one of OUTCOMES, or an output that failed beside depth."""
        with self._lock:
            if cause:
                self._counts[f'{outcome}: {cause}'] += 1
            if outcome in OUTCOMES:
                self._counts[outcome] += 1
                self._counts['pending'] -= 1

    def counts(self) -> Counter[str]:
        """Return a consistent snapshot of the counters."""
        with self._lock:
            return self._counts.copy()

    def record_publication(self, result: DepthResult) -> None:
        """Record the age of depth by this node's clock; count pixels that 16UC1 cannot hold."""
        stamp = result.image.header.stamp
        now = self._node.get_clock().now().nanoseconds
        age = (now - stamp.sec * 10 ** 9 - stamp.nanosec) / 10 ** 9
        if abs(age) < MAX_AGE and stamp.sec >= 0 and stamp.nanosec < 10 ** 9:
            self.ages.add(age)
        if beyond := result.depth_pixels[1]:
            with self._lock:
                self._counts['beyond'] += beyond
            self.log.write('beyond', (
                f'{beyond} pixels have a depth that 16UC1 cannot hold (above 65.534 m), and '
                'are published as unknown. Use depth_encoding: 32FC1.'))

    def update_statistics(self, result: DepthResult) -> None:
        """Record the NaN fraction of published depth; log what changes: shape, focal, anchor."""
        depth = result.prediction.depth
        # The maximum is the quicker test, and mostly there is no NaN.
        self.nan_fractions.add(
            np.count_nonzero(np.isnan(depth)) / depth.size if np.isnan(depth.max()) else 0.0)
        shape = result.image.size, result.estimator.config.input_size
        if shape != self._shape:  # logged once for each shape: it may be intended
            self._shape = shape
            if notice := stretch_notice(*shape):
                self.log.write('aspect', notice)
        if not result.image.header.frame_id:
            self.log.write('frame_id', (
                f'{self.image_topic}: header.frame_id is empty, and so it is in every output: '
                'RViz and tf cannot place them. Set an optical frame in the camera driver.'))
        if result.image.notices != self.notices:
            self.notices = result.image.notices
            for condition, sentence in self.notices:
                self.log.write(condition, f'{self.info_topic}: {sentence}')
        self._report_focal_ratio(result)
        anchor = self.context.anchor
        if anchor is None:
            return
        state = anchor.filter.state
        # Of an unusual scale /diagnostics warns.
        if state.anchored and not (self._was_anchored or state.is_unusual):
            self.log.announce(f'Anchored by {self.config.anchor}: {state.agreement}.')
        self._was_anchored = state.anchored
        if anchor.condition:
            self.log.write(f'anchor: {anchor.condition}', (
                f'anchor: {self.config.anchor} is not followed ({anchor.condition}): '
                f'{anchor.reason}'))

    def _report_focal_ratio(self, result: DepthResult) -> None:
        """Log when the focal length begins or ceases to count, and when it jumps."""
        ratio, (previous_ratio, previous_reason) = result.prediction.focal_ratio, self.focal
        reason = NO_REFERENCE_FOCAL if not result.estimator.config.reference_focal else \
            '' if (problem := result.image.camera_problem) is None else \
            f'camera_info: {problem.condition}'
        jumped = abs(math.log(ratio / previous_ratio)) > FOCAL_JUMP
        self.focal = ratio, reason
        is_first, self._has_published = not self._has_published, True
        if not jumped and reason == previous_reason:
            return
        stamp = result.image.header.stamp
        effect = 'not multiplied' if reason and ratio == 1.0 else f'multiplied by {ratio:.3f}'
        text = (f'From the image with stamp {stamp.sec}.{stamp.nanosec:09} on, depth is {effect} '
                'for the focal length' + f' ({reason})' * bool(reason))
        if jumped and not is_first:
            self.log.write(f'focal length {reason}', (  # a zoom lens changes it now and then
                f'{text}; its scale is {ratio / previous_ratio:.3g} times that of before.'))
        else:
            self.log.announce(f'{text}.')


def _image_topic_name(node: Node, config: NodeConfig, image: str) -> str:
    """Return the image topic's name before remapping.

    As in image_transport, compressed images are beside the raw ones: remapping `image` also moves
    `image/compressed`, unless that is remapped itself.
    """
    if config.image_transport != 'compressed':
        return image
    compressed = f'{image}/compressed'
    plain = node.resolve_topic_name(compressed, only_expand=True)
    return compressed if node.resolve_topic_name(compressed) != plain else \
        f'{node.resolve_topic_name(image)}/compressed'


def account_summary(counts: Counter[str]) -> str:
    """Write the counters as one sentence."""
    parts = ' + '.join(f'{counts[end]} {end}' for end in (*OUTCOMES, 'pending'))
    causes = sorted((cause, n) for cause, n in counts.items() if ': ' in cause)
    return f'{counts["received"]} received = {parts}' \
        + '; idle: nobody subscribed to an output' * bool(counts[IDLE]) \
        + ''.join(f'; {cause}: {n}' for cause, n in causes)
