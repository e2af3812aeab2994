# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
"""One camera of the node: what comes in, what goes out, and the account of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from ..core.errors import ConfigError, quoted
from . import messages
from .anchors import Sensors
from .config import NodeConfig
from .frame import Frame, Stream
from .outputs import OUTPUT_DEPTH, OUTPUTS
from .statistics import REJECTED, Counters, Say, Window

try:  # Iron and later
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

RELIABLE, BEST_EFFORT = QoSReliabilityPolicy.RELIABLE, QoSReliabilityPolicy.BEST_EFFORT
LATCHED, VOLATILE = QoSDurabilityPolicy.TRANSIENT_LOCAL, QoSDurabilityPolicy.VOLATILE
BEST_AVAILABLE = 'best_available'
OFFERED, ALWAYS = 'offered', 'always'
# Deep enough for the burst that a player or a stalled network begins with: the middleware says
# nothing of what it overwrites, the node counts what it drops.
INPUT_DEPTH = 10
# Beyond this an image's age says that its stamp is of another clock (a replay, for example).
MAX_AGE = 3600.0  # seconds
MAX_STRETCH = 0.02  # by which an image may be stretched without a word
FOCAL_JUMP = 0.01  # part by which the focal factor may change without a word
OFF = 'reference_focal is 0'


class Input:
    """A subscription that every publisher of its topic reaches; it takes messages serialised.

    It is reliable unless a publisher is best effort, when it begins or later. Best effort alone
    matches every publisher, but the middleware then loses most images that are larger than its
    buffers (Fast DDS by default: 0.5 MB, a 640x480 image has 0.9); reliable alone gets nothing
    from a best-effort camera. `qos_overrides.TOPIC.subscription.reliability` decides otherwise.
    """

    def __init__(
        self, node: Node, kind: str, topic: str, callback: Callable[[bytes], None],
        on_lost: Callable[[int], None] | None = None, *, latched: str = '',
        depth: int = INPUT_DEPTH,
    ) -> None:
        """Subscribe to a resolved topic.

        `on_lost` is told how many more messages the middleware has lost. `latched` says whether to
        take what transient-local publishers sent last, too: '' for no, OFFERED unless a publisher
        is volatile, ALWAYS.

        Raises:
            ConfigError: that parameter has another value.

        """
        self._node, self._kind, self.topic = node, kind, topic
        self._callback, self._on_lost, self._latched = callback, on_lost, latched
        self._depth = depth
        self._chosen = self._chosen_reliability()
        offers = [info.qos_profile for info in node.get_publishers_info_by_topic(topic)]
        best_effort = any(qos.reliability == BEST_EFFORT for qos in offers)
        volatile = latched != ALWAYS and any(qos.durability == VOLATILE for qos in offers)
        self._reliability = self._chosen or (BEST_EFFORT if best_effort else RELIABLE)
        self._durability = LATCHED if latched and not volatile else VOLATILE
        self._subscription: Subscription | None = self._subscribe()

    @property
    def is_latched(self) -> bool:
        """Whether it gets the last message of a publisher that sent it before."""
        return bool(self._durability == LATCHED)

    def destroy(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription = None

    def _chosen_reliability(self) -> QoSReliabilityPolicy | None:
        """What the parameter says; None for the best that every publisher offers."""
        name = f'qos_overrides.{self.topic}.subscription.reliability'
        if not self._node.has_parameter(name):
            self._node.declare_parameter(name, BEST_AVAILABLE, ParameterDescriptor(
                read_only=True, description=f'reliability for subscription `{self.topic}`; '
                'best_available: reliable if every publisher is, else best effort'))
        chosen = self._node.get_parameter(name).value
        choices = {BEST_AVAILABLE: None, 'reliable': RELIABLE, 'best_effort': BEST_EFFORT,
                   'system_default': QoSReliabilityPolicy.SYSTEM_DEFAULT}
        if chosen not in choices:
            raise ConfigError(f'{name}: {quoted(chosen)} is none of {", ".join(choices)}.')
        return choices[chosen]

    def _on_incompatible(self, event: Any) -> None:
        """Ask for less, as a publisher offers; not here, where the subscription is in use."""
        before = self._reliability, self._durability
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        if policy == 'RELIABILITY' and self._chosen is None:
            self._reliability = BEST_EFFORT
        elif policy == 'DURABILITY' and self._latched == OFFERED:
            self._durability = VOLATILE
        executor = self._node.executor
        if executor is None or before == (self._reliability, self._durability):
            self._node.get_logger().warning(
                f'{self.topic}: a publisher offers another {policy.lower()}; nothing will arrive '
                f'from it. `ros2 topic info -v {self.topic}` lists both sides, and the parameters '
                f'qos_overrides.{self.topic}.subscription.* change this one.')
        else:
            executor.create_task(self._subscribe_anew)

    def _subscribe_anew(self) -> None:
        if self._subscription is not None:  # else destroyed meanwhile
            self._node.get_logger().info(
                f'{self.topic}: listening {self._reliability.name.lower().replace("_", " ")}, '
                f'{self._durability.name.lower().replace("_", " ")}, as it is published.')
            self.destroy()
            self._subscription = self._subscribe()

    def _subscribe(self) -> Subscription:
        callbacks: dict[str, Any] = {'incompatible_qos': self._on_incompatible}
        if self._on_lost is not None:
            on_lost = self._on_lost
            callbacks['message_lost'] = lambda event: on_lost(event.total_count_change)
        return self._node.create_subscription(
            messages.message_class(self._kind), self.topic, self._callback,
            QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=self._depth,
                       reliability=self._reliability, durability=self._durability),
            raw=True, event_callbacks=SubscriptionEventCallbacks(**callbacks),
            qos_overriding_options=QoSOverridingOptions(
                (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH)))


def topic_prefix(name: str) -> str:
    """What a camera's name puts before the relative names of its topics."""
    return f'{name}/' if name else ''


class Camera:
    """Subscriptions, publishers and counters.

    The callbacks only store; decoding and everything after it is the worker's.

    Attributes:
        stream: what its images have in common, since the activation.
        outputs: resolved names of everything that is published.
        last_error: what an image failed of last.

    """

    def __init__(self, node: LifecycleNode, config: NodeConfig, name: str) -> None:
        """Create the publishers in the namespace `name`; `subscribe` begins to listen."""
        self._node, self.config, self.name = node, config, name
        self.label = f'{name}: ' if name else ''  # begins a line in the log
        self.say = Say(node, self.label)
        # Compressed images are beside the raw ones, as image_transport has it: remapping `image`
        # moves `image/compressed` along.
        self.image_topic = node.resolve_topic_name(topic_prefix(name) + 'image')
        if config.image_transport == 'compressed':
            self.image_topic += '/compressed'
        self.info_topic = node.resolve_topic_name(topic_prefix(name) + 'camera_info')
        self._lock, self._counters = threading.Lock(), Counters()
        self._inputs: list[Input] = []
        # A profile of its own for each, in which rclpy writes what overrides it.
        self._publishers = {topic: node.create_lifecycle_publisher(
            messages.message_class(kind), topic_prefix(name) + topic,
            QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=OUTPUT_DEPTH,
                       reliability=RELIABLE),
            qos_overriding_options=QoSOverridingOptions.with_default_policies())
            for topic, kind in OUTPUTS.items()}
        self.outputs = [publisher.topic_name for publisher in self._publishers.values()]
        self.ages, self.nan_shares = Window(), Window()  # seconds; of every depth image
        self.stddevs = Window()  # metres, the median of every image
        self.gated_shares = Window()  # of every image, by max_stddev
        self.foreign_stamps = 0  # images of another clock
        self.stretched = 0  # images of another aspect ratio than the network's input
        self.beyond = 0  # pixels that the encoding cannot hold
        # By what depth was multiplied last for the focal length, why not, how often that changed.
        self.focal_ratio, self.focal_reason, self.focal_jumps = 1.0, OFF, 0
        self.last_error = ''

    def subscribe(self, put: Callable[[Camera, bytes], bool], sensors: Sensors | None) -> None:
        """Begin to listen, as if nothing had come; the account goes on.

        `put` takes the images, serialised, and tells whether one replaces another that waited.
        """
        self._put = put
        self.stream = Stream(messages.read, self.config, sensors)
        self._answered = self._anchored = False
        self.first_image = math.inf  # steady time, as the next two: simulated time may stand still
        self.last_image = self.last_info = time.monotonic()
        self._inputs.append(Input(
            self._node, self.stream.kind, self.image_topic, self._on_image, self._on_lost))
        self._inputs.append(Input(
            self._node, messages.CAMERA_INFO, self.info_topic, self._on_info, latched=OFFERED))

    def unsubscribe(self) -> None:
        """Stop listening."""
        while self._inputs:
            self._inputs.pop().destroy()

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
        if self._put(self, raw):
            self.count('dropped')

    def _on_info(self, raw: bytes) -> None:
        self.last_info = time.monotonic()
        self.stream.info = raw

    def _on_lost(self, count: int) -> None:
        with self._lock:
            self._counters.lost += count

    def info_is_latched(self) -> bool:
        """Whether camera_info is published once for all."""
        return bool(self._inputs) and self._inputs[-1].is_latched

    # What the worker calls -----------------------------------------------------------------

    def wanted(self, topic: str) -> bool:
        """Whether anyone subscribes to one output."""
        return bool(self._publishers[topic].get_subscription_count())

    def is_active(self) -> bool:
        """Whether what is published leaves the node."""
        publisher = self._publishers.get('depth/image')
        return publisher is not None and bool(publisher.is_activated)

    def publish(self, topic: str, message: Any) -> None:
        """Publish a message on one output."""
        self._publishers[topic].publish(message)

    def count(self, end: str) -> None:
        """Account for an image that is 'published', 'dropped', 'rejected' or 'idle'."""
        with self._lock:
            self._counters.pending -= 1
            setattr(self._counters, end, getattr(self._counters, end) + 1)

    def count_cause(self, what: str, cause: str) -> None:
        """Account for an image that is REJECTED, or for what one lacks beside its depth."""
        with self._lock:
            self._counters.causes[f'{what}: {cause}'] += 1
        if what == REJECTED:
            self.count(REJECTED)

    def counters(self) -> Counters:
        """Consistent snapshot of the account."""
        with self._lock:
            return self._counters.copy()

    def note_published(self, frame: Frame) -> None:
        """Note how old depth is, if the stamp can be of this node's clock at all."""
        stamp = frame.header.stamp
        now = self._node.get_clock().now().nanoseconds
        age = (now - stamp.sec * 10 ** 9 - stamp.nanosec) / 10 ** 9
        if abs(age) < MAX_AGE and stamp.sec >= 0 and stamp.nanosec < 10 ** 9:
            self.ages.add(age)
        else:
            self.foreign_stamps += 1
        self.beyond += frame.beyond
        if frame.beyond:
            self.say.once('beyond encoding', (
                f'{frame.beyond} pixels have a depth beyond 65.535 m, which 16UC1 cannot hold; '
                'they are published as invalid. Use depth_encoding: 32FC1.'))

    def note(self, frame: Frame) -> None:
        """Note what an answered image says about its camera."""
        depth, stddev = frame.prediction.depth, frame.prediction.patch_stddev
        # Mostly there is none, and the maximum tells that quicker.
        self.nan_shares.add(
            np.count_nonzero(np.isnan(depth)) / depth.size if np.isnan(depth.max()) else 0.0)
        known = np.empty(0) if stddev is None else stddev[np.isfinite(stddev)]
        limit = frame.estimator.config.max_stddev
        if known.size:
            self.stddevs.add(float(np.median(known)))
            if limit:
                self.gated_shares.add(float((known > limit).mean()))
        self._note_shape(frame)
        self._note_focal_length(frame)
        self._note_anchor()

    def _note_shape(self, frame: Frame) -> None:
        """Count images whose shapes the network sees distorted."""
        (height, width), (rows, columns) = frame.size, frame.estimator.config.input_size
        ratio = width * rows / (height * columns)
        change = 1 - min(ratio, 1 / ratio)
        self.stretched += change > MAX_STRETCH
        if change > MAX_STRETCH and self.stretched == 1:
            self.say.once('aspect', (
                f"images of {width}x{height} are stretched to the network's {columns}x{rows}, "
                f'which makes everything {100 * change:.0f} % '
                f'{"narrower" if ratio > 1 else "lower"} than it is. Set input_height and '
                'input_width to the shape of the image.'))
        if not frame.header.frame_id:
            self.say.once('frame_id', (
                f'{self.image_topic}: header.frame_id is empty, and so it is in every output; '
                'RViz and tf cannot place them. Set it in the camera driver to an optical frame.'))

    def _note_focal_length(self, frame: Frame) -> None:
        """Say when the focal length begins or ceases to count, and when it changes."""
        ratio, before, old = frame.prediction.focal_ratio, self.focal_ratio, self.focal_reason
        reason = '' if frame.problem is None else f'camera_info: {frame.problem.condition}'
        if not frame.estimator.config.reference_focal:
            reason = OFF
        jumped = abs(math.log(ratio / before)) > FOCAL_JUMP
        self.focal_ratio, self.focal_reason = ratio, reason
        first, self._answered = not self._answered, True
        if not jumped and reason == old:
            return
        stamp = frame.header.stamp
        how = 'not multiplied' if reason and ratio == 1.0 else f'multiplied by {ratio:.3f}'
        text = (f'From the image with stamp {stamp.sec}.{stamp.nanosec:09} on, depth is {how} for '
                'the focal length' + f' ({reason})' * bool(reason))
        if not jumped or first:
            self.say.info(f'{text}.')
            return
        self.focal_jumps += 1
        self.say.once(f'focal length {reason}',  # of a zoom lens now and then
                      f'{text}; its scale is {ratio / before:.3g} times that of before.')

    def _note_anchor(self) -> None:
        """Say when an anchor is taken up, and what is wrong with it."""
        anchor = self.stream.anchor
        if anchor is None:
            return
        state = anchor.filter.state
        if state.anchored and not self._anchored:
            self.say.info(f'Anchored by {self.config.anchor}: scale {state.scale:.3g}, '
                          f'{100 * state.share:.0f} % of {state.points} points agree.')
        self._anchored = state.anchored
        if anchor.condition:
            self.say.once(f'anchor: {anchor.condition}', (
                f'anchor: {self.config.anchor} is not followed ({anchor.condition}): '
                f'{anchor.reason}'))
