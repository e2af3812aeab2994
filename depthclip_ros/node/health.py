# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the node's images and their depth, for the log and for /diagnostics."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from rclpy.qos import QoSDurabilityPolicy, QoSReliabilityPolicy

from .camera import topic_prefix
from .diagnostics import ERROR, OK, WARN, camera_values, node_name, status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diagnostic_msgs.msg import DiagnosticStatus
    from rclpy.node import Node
    from rclpy.qos import QoSProfile

    from .camera import Camera
    from .statistics import Counters, Say, StageTimes

SUMMARY_PERIOD = 10.0  # seconds
READINGS = 6  # of the counters, one a second, that a rate looks back on
MAX_LISTED = 6
MAX_LOST_PART = 0.05  # of all images
LEAST_IMAGES = 10  # of which a share says something


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        key: short and stable, so that it is said once in a while.
        level: of a DiagnosticStatus.
        words: a few, for diagnostics.
        sentence: for the log, with the remedy.

    """

    key: str
    level: bytes
    words: str
    sentence: str

    def tell(self, say: Say) -> None:
        """Say it in the log, as often as that may be."""
        if self.level == ERROR:
            say.error(self.key, self.sentence)
        else:
            say.once(self.key, self.sentence)


def limit_level(value: float, limit: float, most: float = math.inf) -> bytes:
    """WARN beyond a limit, ERROR from twice the limit or `most` on; OK where the limit is 0."""
    if not limit or math.isnan(value):
        return OK
    if value >= min(2 * limit, most):
        return ERROR
    return WARN if value > limit else OK


# One camera --------------------------------------------------------------------------------------


class CameraHealth:
    """Looks after one camera; call `look` once a second while the node is active.

    Time is steady time: simulated time stands still when a replay ends. What happened before the
    node was activated is not its concern.
    """

    def __init__(self, node: Node, camera: Camera, times: StageTimes) -> None:
        """Begin now; `times` are those of the node's pipeline."""
        self._node, self.camera, self.times = node, camera, times
        now, counters = time.monotonic(), camera.counters()
        self._readings: deque[tuple[float, Counters]] = deque([(now, counters)], READINGS)
        self._summary = now, counters
        self._told_lost = counters.lost
        self._jumps = camera.focal_jumps

    def look(
        self, others: Sequence[Finding] = (), *, active: bool = True,
    ) -> DiagnosticStatus:
        """What one camera is told as, once a second.

        Args:
            others: what is wrong with the node, and so with every camera.
            active: whether images are expected.

        """
        camera, before = self.camera, self._readings[-1][1]
        self._readings.append((time.monotonic(), camera.counters()))
        counters = self.counters
        findings = self._findings() if active else []
        for finding in findings:
            finding.tell(camera.say)
        findings = [*others, *findings]
        new = sorted(counters.conditions() - before.conditions())
        level = max([WARN if new else OK, *(finding.level for finding in findings)])
        words = [finding.words for finding in findings] + new
        if camera.focal_jumps > self._jumps:
            level, self._jumps = max(level, WARN), camera.focal_jumps
            words.append('the focal length has changed the scale')
        if counters.idle > before.idle:
            words.append('idle: nobody subscribes to an output')
        of = f' of {camera.name}' if camera.name else ''
        return status(f'{node_name(self._node)}: frames{of}', level,
                      ', '.join(words) or f'{self.rate("published"):.1f} Hz', camera_values(self))

    def _findings(self) -> list[Finding]:
        """What is wrong; of a value within its limit there is a finding that is OK."""
        self._tell_losses()
        looks = (self._images, self._camera_info, self._age, self._dropped, self._nan,
                 self._anchor)
        return [finding for look in looks if (finding := look()) and finding.level != OK]

    @property
    def counters(self) -> Counters:
        """The account of the last look."""
        return self._readings[-1][1]

    def rate(self, counter: str) -> float:
        """Hz at which a counter has grown, over the last looks."""
        (first, before), (last, after) = self._readings[0], self._readings[-1]
        gained = getattr(after, counter) - getattr(before, counter)
        return float(gained / (last - first)) if last > first else 0.0

    def age(self, percent: float) -> float | str:
        """Milliseconds from stamp to publication, where the clocks allow to tell."""
        age = self.camera.ages.percentile(percent)
        if math.isnan(age) and self.camera.foreign_stamps:
            return "unknown: the stamps are not of this node's clock (replay? set use_sim_time)"
        return 1e3 * age

    def summary(self) -> str:
        """One line about the time since the last summary; '' before the period is over."""
        camera, (begin, before), (now, after) = self.camera, self._summary, self._readings[-1]
        seconds = now - begin
        if seconds < SUMMARY_PERIOD:
            return ''
        self._summary = now, after
        received, published = after.received - before.received, after.published - before.published
        if not received:
            return ''
        text = f'{received / seconds:.1f} Hz in, {published / seconds:.1f} Hz out'
        if published:
            p50, p99 = (1e3 * camera.ages.percentile(percent) for percent in (50, 99))
            text += '; age unknown (stamps of another clock)' if math.isnan(p50) \
                else f'; age p50 {p50:.1f}, p99 {p99:.1f} ms'
            text += (f'; network {self.times.percentile("network", 50):.1f} ms, '
                     f'node {self.times.percentile("overhead", 50):.1f} ms')
        return text + (
            f'; {after.dropped - before.dropped} dropped, '
            f'{after.total_rejected() - before.total_rejected()} rejected, '
            f'{after.idle - before.idle} idle'
            + ' (nobody subscribes to an output)' * (after.idle > before.idle))

    def _images(self) -> Finding | None:
        seconds = time.monotonic() - self.camera.last_image
        if seconds <= self.camera.config.input_timeout:
            return None
        return Finding('no image', WARN, 'no image', _no_image(self._node, self.camera, seconds))

    def _camera_info(self) -> Finding | None:
        """Absent or silent, while images come."""
        camera, now = self.camera, time.monotonic()
        timeout = camera.config.input_timeout
        if now - camera.last_image > timeout:
            return None
        if not camera.calibration.received:
            if now - camera.first_image <= timeout:
                return None
            return Finding('no camera_info', WARN, 'no camera_info', (
                f'Images arrive, but no camera_info on {camera.info_topic} '
                f'({_publishers(self._node, camera.info_topic)}): depth is published, points and '
                "depth/camera_info are not, and the camera's focal length does not count. Publish "
                'the calibration there, or remap with: --ros-args -r '
                f'{topic_prefix(camera.name)}camera_info:=/your/camera_info.'))
        seconds = now - camera.last_info
        if seconds <= timeout or camera.info_is_latched:
            return None
        return Finding(
            'camera_info silent', WARN, f'camera_info silent for {seconds:.0f} s',
            f'No camera_info on {camera.info_topic} for {seconds:.0f} s '
            f'({_publishers(self._node, camera.info_topic)}), while images arrive: points and '
            'depth/camera_info go on with the last one. Check its publisher; one that speaks once '
            'for all should be transient local.')

    def _age(self) -> Finding:
        camera = self.camera
        limit, age = camera.config.max_age, camera.ages.recent()
        level = limit_level(abs(age), limit)
        if age < 0:
            return Finding(
                'stamps ahead', level, f'stamps are {-age:.1f} s ahead',
                f"{camera.image_topic}: stamps are {-age:.1f} s ahead of this node's clock. "
                'Synchronise the clocks of both machines (chrony, PTP), or set use_sim_time.')
        return Finding(
            'old depth', level, f'depth is {age:.1f} s old',
            f'depth is {age:.1f} s old when it is published (max_age: {limit:g}). '
            'Compare age and network in /diagnostics: if the network takes that long, make its '
            'input smaller; if not, the stamps or the connection are late.')

    def _dropped(self) -> Finding | None:
        (_, before), (_, after) = self._readings[0], self._readings[-1]
        received, dropped = after.received - before.received, after.dropped - before.dropped
        if received < LEAST_IMAGES:
            return None
        share, limit = dropped / received, self.camera.config.max_drop_share
        level = limit_level(share, limit, most=1.0)
        return Finding(
            'dropped', level, f'{100 * share:.3g} % of the images dropped',
            f'{dropped} of {received} images were dropped for newer ones '
            f'(max_drop_share: {limit:g}): they come faster than they can be answered. Make the '
            "network's input smaller, or the camera slower.")

    def _nan(self) -> Finding:
        share, limit = self.camera.nan_shares.recent(), self.camera.config.max_nan_share
        level = limit_level(share, limit, most=1.0)
        return Finding(
            'NaN', level, f'{100 * share:.3g} % of the depth is NaN',
            f'{100 * share:.3g} % of the depth is NaN (max_nan_share: {limit:g}). '
            'Either the network overflows (set precision: float32) or its weights are damaged, '
            'or out_of_range and max_stddev leave out much of it.')

    def _anchor(self) -> Finding | None:
        camera, anchor = self.camera, self.camera.anchor
        if anchor is None or not anchor.is_lost:
            return None
        return Finding(
            'anchor', WARN, f'no anchor: {anchor.condition}',
            f'depth has no anchor (anchor: {camera.config.anchor}) since more than '
            f'{camera.config.anchor_timeout:g} s ({anchor.condition}): its scale goes back to 1, '
            f'that of the words. {anchor.reason}')

    def _tell_losses(self) -> None:
        """Warn when the middleware loses a noticeable part of the images."""
        camera, counters = self.camera, self.counters
        lost = counters.lost - self._told_lost
        if lost > MAX_LOST_PART * counters.received:
            self._told_lost = counters.lost
            camera.say.once('lost', (
                f'{camera.image_topic}: the middleware lost {lost} images before they arrived. '
                "Make the publisher's reliability reliable, or enlarge its middleware's buffers: "
                'config/fastdds_large_images.xml of this package says how for Fast DDS.'))


def _no_image(node: Node, camera: Camera, seconds: float) -> str:
    topic, wanted = camera.image_topic, camera.image_type
    found = node.get_publishers_info_by_topic(topic)
    text = f'No image on {topic} for {seconds:.0f} s ({_publishers(node, topic)}). '
    others = sorted({info.topic_type for info in found} - {wanted})
    if others:
        return text + f'It is published as {", ".join(others)}, this node wants {wanted}.'
    if found:
        return text + ('Check that the camera or the bag still runs, and the QoS of both sides: '
                       f'ros2 topic info -v {topic}.')
    candidates = _topics_of(node, wanted)
    hint = f'Topics of type {wanted}: {", ".join(candidates)}. ' if candidates else \
        f'There is no topic of type {wanted} at all: start the camera. '
    name = topic_prefix(camera.name) + 'image'
    return text + hint + f'Remap with: --ros-args -r {name}:=/your/image_topic' \
        + (' (without /compressed).' if camera.config.image_transport == 'compressed' else '.')


def _publishers(node: Node, topic: str) -> str:
    """Number, names and quality of service of a topic's publishers."""
    found = node.get_publishers_info_by_topic(topic)
    if not found:
        return 'no publishers'
    names = [f'{info.node_name}: {_qos_words(info.qos_profile)}' for info in found[:MAX_LISTED]]
    return (f'{len(found)} publisher{"" if len(found) == 1 else "s"}: {"; ".join(names)}'
            + '; ...' * (len(found) > MAX_LISTED))


def _qos_words(qos: QoSProfile) -> str:
    reliable = qos.reliability == QoSReliabilityPolicy.RELIABLE
    latched = qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL
    return f'{"reliable" if reliable else "best effort"}{", transient local" * latched}'


def _topics_of(node: Node, wanted: str) -> list[str]:
    """Topics of a type that some other node publishes."""
    own = {publisher.topic_name for publisher in node.publishers}
    names = [name for name, types in node.get_topic_names_and_types()
             if wanted in types and name not in own and node.count_publishers(name)]
    return [*names[:MAX_LISTED], '...'] if len(names) > MAX_LISTED else names


# The clock ---------------------------------------------------------------------------------------


class ClockWatch:
    """Notices simulated time that stands still; look once a second."""

    def __init__(self, node: Node) -> None:
        """Begin now."""
        self._node = node
        self._last, self._changed = 0, time.monotonic()

    def look(self, timeout: float) -> list[Finding]:
        """What is wrong with the clock.

        Args:
            timeout: seconds that simulated time may stand still.

        """
        clock, steady = self._node.get_clock(), time.monotonic()
        now = clock.now().nanoseconds
        if now != self._last:
            self._last, self._changed = now, steady
        seconds = steady - self._changed
        if seconds <= timeout or not getattr(clock, 'ros_time_is_active', False):
            return []
        advice = 'Ages of images, and transforms looked up by their stamps, are wrong meanwhile.' \
            if self._node.count_publishers('/clock') else \
            '/clock has no publisher: play a bag with --clock, or set use_sim_time: false.'
        words = f'simulated time stands still for {seconds:.0f} s'
        return [Finding('clock', WARN, words, f'{words.capitalize()}. {advice}')]
