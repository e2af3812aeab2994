# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
"""One camera of the node: what comes in, what goes out, and the account of it."""

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
from ..messages import types as messages
from ..messages.anchors import Sensors
from ..messages.config import NodeConfig
from ..messages.frame import Answer, Stream
from ..messages.outputs import OUTPUT_DEPTH, OUTPUTS
from .inputs import RELIABLE, Input, overriding

WINDOW = 512  # samples that a percentile looks back on
RECENT = 5.0  # seconds that a mean looks back on
# Beyond this an image's age says that its stamp is of another clock (a replay, for example).
MAX_AGE = 3600.0  # seconds
FOCAL_JUMP = 0.01  # part by which the focal factor may change without a word
OFF = 'reference_focal is 0'
# What becomes of an image: answered with depth; replaced by a newer one before its turn, or left
# at the end; unusable; left alone because nobody subscribed to any output.
PUBLISHED, DROPPED, REJECTED, IDLE = ENDS = ('published', 'dropped', 'rejected', 'idle')
NO_CLOUD, NO_PICTURES = 'no cloud', 'no pictures'  # what it may lack beside depth


class Window:
    """The last values of a quantity."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        """Append a value; the oldest one makes room."""
        self._values.append((time.monotonic(), value))

    def percentile(self, percent: float) -> float:
        """Nearest-rank percentile; NaN while empty."""
        values = sorted(value for _, value in self._values.copy())
        if not values:
            return math.nan
        return values[min(len(values) - 1, math.ceil(percent / 100 * len(values)) - 1)]

    def recent(self) -> float:
        """Mean of the values of the last seconds; NaN if there was none."""
        oldest = time.monotonic() - RECENT
        values = [value for when, value in self._values.copy() if when >= oldest]
        return sum(values) / len(values) if values else math.nan


class Say:
    """The node's log, in which each matter comes once in a while.

    rclpy throttles by the line of code that logs; here one line serves many matters.
    """

    def __init__(self, node: Node, label: str = '', period: float = 10.0) -> None:
        """Say nothing yet; a matter is not said again for `period` seconds."""
        self._node, self._label, self._period = node, label, period
        self._last: dict[str, float] = {}

    def once(self, key: str, text: str, level: str = 'warning') -> None:
        """Say a matter, unless it was said a while ago."""
        now = time.monotonic()
        if now - self._last.get(key, -math.inf) < self._period:
            return
        self._last[key] = now
        log, text = self._node.get_logger(), f'{self._label}{text}'
        if level == 'error':  # rclpy wants a line of code for each
            log.error(text)
        elif level == 'warning':
            log.warning(text)
        else:
            log.info(text)

    def info(self, text: str) -> None:
        """Say what is no trouble."""
        self._node.get_logger().info(self._label + text)


def topic_prefix(name: str) -> str:
    """What a camera's name puts before the relative names of its topics."""
    return f'{name}/' if name else ''


class Camera:
    """Subscriptions, publishers and the account of its images.

    The callbacks only store; decoding and everything after it is the worker's. Of the account, at
    any moment 'received' = the sum of ENDS and 'pending', which is 2 at most (waiting, in work).

    Attributes:
        stream: what its images have in common, since the activation.
        ages: seconds from stamp to publication, where the clocks allow to tell.
        nan_shares: of every depth image.
        focal: by what depth was multiplied last for the focal length, and why not ('' else).
        last_error: what an image failed of last.
        notices: what is peculiar about the camera_info of the last image.

    """

    def __init__(self, node: LifecycleNode, config: NodeConfig, name: str) -> None:
        """Create the publishers in the namespace `name`; `subscribe` begins to listen."""
        self._node, self.config, self.name = node, config, name
        self.label = f'{name}: ' if name else ''  # begins a line in the log
        self.say = Say(node, self.label)
        self._image = _image_name(node, config, topic_prefix(name) + 'image')
        self._info = topic_prefix(name) + 'camera_info'
        self.image_topic = node.resolve_topic_name(self._image)
        self.info_topic = node.resolve_topic_name(self._info)
        self._lock, self._counts = threading.Lock(), Counter[str]()
        self._inputs: list[Input] = []
        # A profile of its own for each, in which rclpy writes what overrides it.
        self._publishers = {topic: node.create_lifecycle_publisher(
            messages.message_class(kind), topic_prefix(name) + topic,
            QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=OUTPUT_DEPTH,
                       reliability=RELIABLE),
            qos_overriding_options=overriding(node, topic_prefix(name) + topic, 'publisher'))
            for topic, (kind, _) in OUTPUTS.items()}
        self.depth_topic = self._publishers['depth/image'].topic_name
        self.ages, self.nan_shares = Window(), Window()
        self.focal, self.last_error = (1.0, OFF), ''

    def subscribe(self, put: Callable[[Camera, bytes], bool], sensors: Sensors | None) -> None:
        """Begin to listen, as if nothing had come; the account goes on.

        `put` takes the images, serialised, and tells whether one replaces another that waited.
        """
        self._put = put
        self.stream = Stream(messages.read, self.config, sensors)
        self._answered = self._anchored = False
        self.notices: tuple[Notice, ...] = ()
        self._shape: tuple[Any, Any] | None = None  # of the last image, and of the network's input
        self.first_image = math.inf  # steady time, as the next: simulated time may stand still
        self.last_image = time.monotonic()
        self._inputs.append(Input(
            self._node, self.stream.kind, self._image, self._on_image, self._on_lost))
        self._inputs.append(Input(
            self._node, messages.CAMERA_INFO, self._info, self.stream.on_info, latched=True))

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
            self._counts.update(('received', 'pending'))
        if self._put(self, raw):
            self.count(DROPPED)

    def _on_lost(self, count: int) -> None:
        with self._lock:
            self._counts['lost'] += count

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

    def count(self, what: str, cause: str = '') -> None:
        """Account for an image that ended so, one of ENDS, or for what one lacks beside depth."""
        with self._lock:
            if cause:
                self._counts[f'{what}: {cause}'] += 1
            if what in ENDS:
                self._counts[what] += 1
                self._counts['pending'] -= 1

    def counts(self) -> Counter[str]:
        """Consistent snapshot of the account."""
        with self._lock:
            return self._counts.copy()

    def note_published(self, answer: Answer) -> None:
        """Note how old depth is, if the stamp can be of this node's clock at all."""
        stamp = answer.frame.header.stamp
        now = self._node.get_clock().now().nanoseconds
        age = (now - stamp.sec * 10 ** 9 - stamp.nanosec) / 10 ** 9
        if abs(age) < MAX_AGE and stamp.sec >= 0 and stamp.nanosec < 10 ** 9:
            self.ages.add(age)
        if beyond := answer.pixels[1]:
            with self._lock:
                self._counts['beyond'] += beyond
            self.say.once('beyond', (
                f'{beyond} pixels have a depth that 16UC1 cannot hold (above 65.534 m), and '
                'are published as unknown. Use depth_encoding: 32FC1.'))

    def note(self, answer: Answer) -> None:
        """Note what an answered image says about its camera."""
        depth = answer.prediction.depth
        # Mostly there is none, and the maximum tells that quicker.
        self.nan_shares.add(
            np.count_nonzero(np.isnan(depth)) / depth.size if np.isnan(depth.max()) else 0.0)
        shape = answer.frame.size, answer.estimator.config.input_size
        if shape != self._shape:  # else it was said: it may be meant to stay so
            self._shape = shape
            if notice := stretch_notice(*shape):
                self.say.once('aspect', notice)
        if not answer.frame.header.frame_id:
            self.say.once('frame_id', (
                f'{self.image_topic}: header.frame_id is empty, and so it is in every output: '
                'RViz and tf cannot place them. Set an optical frame in the camera driver.'))
        if answer.frame.notices != self.notices:
            self.notices = answer.frame.notices
            for condition, sentence in self.notices:
                self.say.once(condition, f'{self.info_topic}: {sentence}')
        self._note_focal_length(answer)
        anchor = self.stream.anchor
        if anchor is None:
            return
        state = anchor.filter.state
        if state.anchored and not (self._anchored or state.unusual):  # /diagnostics warns of that
            self.say.info(f'Anchored by {self.config.anchor}: {state.agreement}.')
        self._anchored = state.anchored
        if anchor.condition:
            self.say.once(f'anchor: {anchor.condition}', (
                f'anchor: {self.config.anchor} is not followed ({anchor.condition}): '
                f'{anchor.reason}'))

    def _note_focal_length(self, answer: Answer) -> None:
        """Say when the focal length begins or ceases to count, and when it changes."""
        ratio, (before, old) = answer.prediction.focal_ratio, self.focal
        reason = OFF if not answer.estimator.config.reference_focal else \
            '' if (problem := answer.frame.problem) is None else \
            f'camera_info: {problem.condition}'
        jumped = abs(math.log(ratio / before)) > FOCAL_JUMP
        self.focal = ratio, reason
        first, self._answered = not self._answered, True
        if not jumped and reason == old:
            return
        stamp = answer.frame.header.stamp
        how = 'not multiplied' if reason and ratio == 1.0 else f'multiplied by {ratio:.3f}'
        text = (f'From the image with stamp {stamp.sec}.{stamp.nanosec:09} on, depth is {how} for '
                'the focal length' + f' ({reason})' * bool(reason))
        if jumped and not first:
            self.say.once(f'focal length {reason}',  # of a zoom lens now and then
                          f'{text}; its scale is {ratio / before:.3g} times that of before.')
        else:
            self.say.info(f'{text}.')


def _image_name(node: Node, config: NodeConfig, image: str) -> str:
    """Name of the topic of images, to which remappings have yet to be applied.

    Compressed images are beside the raw ones, as image_transport has it: remapping `image` moves
    `image/compressed` along, unless that is remapped itself.
    """
    if config.image_transport != 'compressed':
        return image
    compressed = f'{image}/compressed'
    plain = node.resolve_topic_name(compressed, only_expand=True)
    return compressed if node.resolve_topic_name(compressed) != plain else \
        f'{node.resolve_topic_name(image)}/compressed'


def summary(counts: Counter[str]) -> str:
    """An account in a sentence."""
    parts = ' + '.join(f'{counts[end]} {end}' for end in (*ENDS, 'pending'))
    causes = sorted((cause, n) for cause, n in counts.items() if ': ' in cause)
    return f'{counts["received"]} received = {parts}' \
        + '; idle: nobody subscribed to an output' * bool(counts[IDLE]) \
        + ''.join(f'; {cause}: {n}' for cause, n in causes)
