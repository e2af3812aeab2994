# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a camera's images or with their depth, in words that say where to look."""

from __future__ import annotations

import math
import time
import zlib
from typing import TYPE_CHECKING, NamedTuple

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSDurabilityPolicy, QoSReliabilityPolicy

from .camera import topic_prefix

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.qos import QoSProfile

    from .camera import Camera
    from .statistics import Throttle

OK: bytes = DiagnosticStatus.OK
WARN: bytes = DiagnosticStatus.WARN
ERROR: bytes = DiagnosticStatus.ERROR

MAX_LISTED = 6
UNLIKELY_RATIO = 10.0  # of focal lengths, or its inverse: a view of 7 degrees, or of almost 180
MAX_LOST_PART = 0.05  # of all images
LEAST_SAME = 3  # looks at the same picture, for it to be called frozen
LEAST_IMAGES = 10  # of which a share says something
DROP_LOOKS = 10  # at the counters, one a second, over which the part of dropped images is told


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        key: short and stable, for throttling.
        level: of a DiagnosticStatus.
        words: a few, for diagnostics.
        sentence: for the log, with the remedy.

    """

    key: str
    level: bytes
    words: str
    sentence: str


def limit_level(value: float, limit: float, most: float = math.inf) -> bytes:
    """WARN beyond a limit, ERROR from twice the limit or `most` on; OK where the limit is 0."""
    if not limit or math.isnan(value):
        return OK
    if value >= min(2 * limit, most):
        return ERROR
    return WARN if value > limit else OK


class Watchdog:
    """Looks after one camera; call it once a second while the node is active.

    Time is steady time: simulated time stands still when a replay ends.
    """

    def __init__(self, node: Node, camera: Camera) -> None:
        self._node = node
        self._camera = camera
        self._counts: list[tuple[int, int]] = []
        self._picture = 0  # checksum of the newest image
        self._stamp: float | None = None  # of that image
        self._same, self._same_since = 0, time.monotonic()

    def look(self) -> list[Finding]:
        """Everything that is wrong now, each said in the log at most every 10 s."""
        findings = [
            finding for finding in (
                self._images(), self._camera_info(), self._stamps(), self._frozen(),
                self._age(), self._dropped(), self._nan(), self._anchor(),
                self._focal())
            if finding is not None]
        for finding in findings:
            tell(self._node, self._camera.throttle, finding)
        self._losses()
        return findings

    def _images(self) -> Finding | None:
        seconds = time.monotonic() - self._camera.last_image
        if seconds <= self._camera.config.input_timeout:
            return None
        return Finding('no image', WARN, 'no image',
                       _no_image(self._node, self._camera, seconds))

    def _camera_info(self) -> Finding | None:
        """Absent or silent, while images come."""
        camera, now = self._camera, time.monotonic()
        timeout = camera.config.input_timeout
        if now - camera.last_image > timeout:
            return None
        if not camera.calibration.received:
            if now - camera.first_image <= timeout:
                return None
            return Finding('no camera_info', WARN, 'no camera_info',
                           _no_camera_info(self._node, camera))
        seconds = now - camera.last_info
        if seconds <= timeout or camera.info_is_latched:
            return None
        return Finding(
            'camera_info silent', WARN, f'camera_info silent for {seconds:.0f} s',
            f'No camera_info on {camera.info_topic} for {seconds:.0f} s '
            f'({_publishers(self._node, camera.info_topic)}), while images arrive: points and '
            'depth/camera_info go on with the last one. Check its publisher; one that speaks once '
            'for all should be transient local.')

    def _stamps(self) -> Finding | None:
        camera = self._camera
        event, seconds = camera.stamps.event(), camera.stamps.standstill()
        if seconds > camera.config.input_timeout:
            return Finding(
                'stamps stand still', WARN, f'stamps stand still for {seconds:.0f} s',
                f'{camera.image_topic}: {camera.stamps.repeated + 1} images in {seconds:.0f} s '
                f'have the stamp {camera.stamps.last:.3f}. Set header.stamp in the camera driver '
                'to the time of the exposure; what matches by stamps takes these for one image.')
        if not event:
            return None
        return Finding(
            event.partition(' by ')[0], WARN, event,
            f'{camera.image_topic}: {event}. A bag that begins anew or was moved in does that, '
            'and a camera whose clock was set; what looks up transforms by stamp may refuse '
            'depth until its buffer is cleared.')

    def _frozen(self) -> Finding | None:
        """The same picture again and again, under stamps that go on."""
        camera, now = self._camera, time.monotonic()
        limit, raw, stamp = camera.config.frozen_timeout, camera.newest, camera.stamps.last
        if not limit or not raw:
            return None
        if stamp != self._stamp:
            # Once a second: 1 ms a megabyte, during which others may run. Of the picture alone:
            # what fills the gaps between a message's fields is another every time.
            picture, self._stamp = zlib.crc32(camera.picture(raw)), stamp
            self._same += 1
            if picture != self._picture:
                self._picture, self._same, self._same_since = picture, 0, now
        seconds = now - self._same_since
        if seconds <= limit or self._same < LEAST_SAME \
                or now - camera.last_image > camera.config.input_timeout:
            return None
        return Finding(
            'frozen picture', WARN, f'the same picture for {seconds:.0f} s',
            f'{camera.image_topic}: the picture is the same to the bit for {seconds:.0f} s, under '
            'stamps that go on. The camera or its driver is frozen; if the source shows stills, '
            'set frozen_timeout: 0.')

    def _age(self) -> Finding | None:
        camera = self._camera
        limit, age = camera.config.max_age, camera.recent_ages.mean()
        level = limit_level(abs(age), limit)
        if level == OK:
            return None
        if age < 0:
            return Finding(
                'stamps ahead', level, f'stamps are {-age:.1f} s ahead',
                f"{camera.image_topic}: stamps are {-age:.1f} s ahead of this node's clock. "
                'Synchronise the clocks of both machines (chrony, PTP), or set use_sim_time.')
        return Finding(
            'old depth', level, f'depth is {age:.1f} s old',
            f'{camera.label}depth is {age:.1f} s old when it is published (max_age: {limit:g}). '
            'Compare age and network in /diagnostics: if the network takes that long, make its '
            'input smaller; if not, the stamps or the connection are late.')

    def _dropped(self) -> Finding | None:
        camera, counters = self._camera, self._camera.counters()
        self._counts = [*self._counts[-DROP_LOOKS:], (counters.received, counters.dropped)]
        received, dropped = (
            last - first for first, last in zip(self._counts[0], self._counts[-1], strict=True))
        if received < LEAST_IMAGES:
            return None
        share, limit = dropped / received, camera.config.max_drop_share
        level = limit_level(share, limit, most=1.0)
        if level == OK:
            return None
        return Finding(
            'dropped', level, f'{100 * share:.3g} % of the images dropped',
            f'{camera.label}{dropped} of {received} images were dropped for newer ones '
            f'(max_drop_share: {limit:g}): they come faster than they can be answered. Make the '
            "network's input smaller, or the camera slower.")

    def _nan(self) -> Finding | None:
        camera = self._camera
        share, limit = camera.nan_shares.mean(), camera.config.max_nan_share
        level = limit_level(share, limit, most=1.0)
        if level == OK:
            return None
        return Finding(
            'NaN', level, f'{100 * share:.3g} % of the depth is NaN',
            f'{camera.label}{100 * share:.3g} % of the depth is NaN (max_nan_share: {limit:g}). '
            'Either the network overflows (set precision: float32) or its weights are damaged, '
            'or input_fit, out_of_range and max_stddev leave out much of it.')

    def _anchor(self) -> Finding | None:
        camera, anchor = self._camera, self._camera.anchor
        if anchor is None or not anchor.is_lost:
            return None
        return Finding(
            'anchor', WARN, f'no anchor: {anchor.condition}',
            f'{camera.label}depth has no anchor (anchor: {camera.config.anchor}) since more than '
            f'{camera.config.anchor_timeout:g} s ({anchor.condition}): its scale goes back to 1, '
            f'that of the words. {anchor.reason}')

    def _focal(self) -> Finding | None:
        ratio = self._camera.focal.ratio
        if 1 / UNLIKELY_RATIO <= ratio <= UNLIKELY_RATIO:
            return None
        return Finding(
            'focal ratio', WARN, f'focal ratio {ratio:.3g}',
            f"{self._camera.label}Depth is multiplied by {ratio:.3g} for the camera's focal "
            f'length. Hardly any lens is like that: check k of {self._camera.info_topic}, in '
            'pixels, and reference_focal, in image widths.')

    def _losses(self) -> None:
        """Warn when the middleware loses a noticeable part of the images."""
        camera, counters = self._camera, self._camera.counters()
        lost, received = counters.lost - camera.reported_lost, counters.received
        if lost > MAX_LOST_PART * received and camera.throttle.due('lost'):
            camera.reported_lost = counters.lost
            self._node.get_logger().warning(
                f'{camera.image_topic}: the middleware lost {lost} images before they arrived. '
                "Make the publisher's reliability reliable, or enlarge its middleware's buffers: "
                'config/fastdds_large_images.xml of this package says how for Fast DDS.')


def tell(node: Node, throttle: Throttle, finding: Finding) -> None:
    """Say in the log what was found, as often as the throttle allows."""
    if not throttle.due(finding.key):
        return
    # On lines of their own: rclpy allows one severity a line.
    if finding.level == ERROR:
        node.get_logger().error(finding.sentence)
    else:
        node.get_logger().warning(finding.sentence)


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


def _no_camera_info(node: Node, camera: Camera) -> str:
    return (
        f'Images arrive, but no camera_info on {camera.info_topic} '
        f'({_publishers(node, camera.info_topic)}): depth is published, points and '
        "depth/camera_info are not, and the camera's focal length does not count. Publish the "
        'calibration there, or '
        f'remap with: --ros-args -r {topic_prefix(camera.name)}camera_info:=/your/camera_info.')


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
