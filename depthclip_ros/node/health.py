# SPDX-License-Identifier: Apache-2.0
"""What is told on /diagnostics: every key with its meaning, and what is wrong with its remedy."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node

from ..color import UNTRAINED
from ..core.config import Settings
from ..executables import waiting
from .camera import LATCHED, RELIABLE, Camera, topic_prefix
from .pipeline import Pipeline
from .process import memory_mb
from .statistics import Counters, Say, StageTimes

OK: bytes = DiagnosticStatus.OK
WARN: bytes = DiagnosticStatus.WARN
ERROR: bytes = DiagnosticStatus.ERROR

READINGS = 6  # of the counters, one a second, that a rate looks back on
MAX_LISTED = 6
MAX_LOST_PART = 0.05  # of all images
LEAST_IMAGES = 10  # of which a share says something


class Key(NamedTuple):
    """One value on /diagnostics; the reference among the documents is made of these."""

    name: str  # `…` stands for what is filled in
    meaning: str  # counts are since the node was configured
    # Of a `CameraHealth`, or of a pipeline: a function or the path of an attribute; None for what
    # is filled in otherwise.
    value: Callable[[Any], Any] | str | None = None


def _percentiles(name: str, stage: str, meaning: str) -> list[Key]:
    def key(percent: int) -> Key:
        return Key(f'{name} p{percent} [ms]', f'{meaning}: percentile {percent} of the last 512',
                   lambda h: h.times[stage].percentile(percent))
    return [key(50), key(99)]


FRAMES = (
    Key('rate in [Hz]', 'images that arrive, over the last five seconds',
        lambda h: h.rate('received')),
    Key('rate out [Hz]', 'images answered with depth, likewise', lambda h: h.rate('published')),
    Key('age at publish p50 [ms]', 'from the stamp of an image to the publication of its depth, '
        "median of the last 512; a sentence where the stamps are not of the node's clock",
        lambda h: h.age(50)),
    Key('age at publish p99 [ms]', 'likewise, the 99th percentile', lambda h: h.age(99)),
    *_percentiles('network', 'network', 'from the RGB of a batch to its depth, all of it: '
                  'resizing, network, words, anchor'),
    *_percentiles('node overhead', 'overhead', 'all the rest of a batch, divided by its images: '
                  'decoding and publication'),
    Key('… p50 [ms]', 'median of one stage, for one image: decode, and publish with its topic'),
    Key('received', 'images that arrived: published + dropped + rejected + idle + pending',
        'counters.received'),
    Key('published', 'images answered with depth/image', 'counters.published'),
    Key('dropped', 'images replaced by a newer one before their turn came', 'counters.dropped'),
    Key('rejected', 'images that could not be used, of all causes', 'counters.rejected'),
    Key('idle', 'images left alone, since nobody subscribed to any output', 'counters.idle'),
    Key('pending', 'images waiting or in work now: two at most', 'counters.pending'),
    Key('rejected: …', 'images, by cause'),
    Key('no cloud: …', 'images with depth, but without points and depth/camera_info, by cause; '
        '`absent`: no camera_info has come'),
    Key('no pictures: …', 'images with depth, but without any other of the outputs, by cause'),
    Key('last error', 'what an image failed of last; empty: none did', 'camera.last_error'),
    Key('focal ratio', 'by what depth is multiplied for the focal length of the camera, or why '
        'it does not count', lambda h: _focal(h.camera)),
    Key('jumps of the focal ratio', 'how often it changed from one depth image to the next',
        'camera.focal_jumps'),
    Key('NaN share [%]', 'of the pixels of depth/image, mean of the last 5 s',
        lambda h: 100 * h.camera.nan_shares.recent()),
    Key('stddev median [m]', 'standard deviation of depth, the median of an image, mean of the '
        'last 5 s; empty without a calibration', lambda h: h.camera.stddevs.recent()),
    Key('beyond max_stddev [%]', 'of the patches that are not sure enough, and so NaN, mean of '
        'the last 5 s', lambda h: 100 * h.camera.gated_shares.recent()),
    Key('pixels beyond 16UC1', 'farther than 65.535 m, which depth_encoding: 16UC1 cannot hold: '
        'invalid in depth/image', 'camera.beyond'),
    Key('stretched to another aspect ratio', 'images that the network saw distorted, since their '
        "shape is not the network's", 'camera.stretched'),
    Key('lost by the middleware', 'images that it says were sent and never arrived',
        'counters.lost'),
    Key('image topic', 'that is subscribed to, resolved', 'camera.image_topic'),
    Key('camera_info topic', 'likewise', 'camera.info_topic'),
)

ANCHOR = (
    Key('anchor', 'the parameter anchor'),
    Key('anchored', 'True while the scale rests on the sensor'),
    Key('anchor scale', 'by what depth is multiplied'),
    Key('anchor log variance', 'variance of the logarithm of the scale'),
    Key('anchor inlier share [%]', "of the last message's points in the image that agree"),
    Key('anchor points', 'in the image, of the last message'),
    Key('anchor surroundings [%]', 'by how much depth is corrected around the points, beside the '
        'scale: root mean square over the image'),
    Key('anchor inflation of stddev', 'by what the standard deviation of depth is multiplied '
        'besides, where the scale is unsure'),
    Key('not anchored: …', 'images whose points could not be followed since the activation, by '
        'cause'),
    Key('anchor refused: …', 'messages of the sensor or of tf that could not be read since the '
        'activation, by cause'),
)

SCENE = (
    Key('scene', 'the most probable one, or "uncertain"'),
    Key('scene: plain bins [%]', 'part that bins have, since the scene is uncertain'),
    Key('scene: … [%]', 'probability of each scene'),
)

STATE = (
    Key('lifecycle state', 'unconfigured, loading, inactive or active'),
    Key('memory [MiB]', 'resident, of the whole process'),
    Key('configuration sha256',
        'of all settings: two nodes with the same one compute and publish the same'),
    Key('last error', 'what the model failed of last; empty: it never did'),
)

MODEL = (
    Key('device', 'on which the network runs', 'estimator.device'),
    Key('GPU memory [MiB]', 'that tensors hold; only on a GPU, as the next three'),
    Key('GPU memory reserved [MiB]', 'that torch holds'),
    Key('GPU memory free [MiB]', 'of the device, whoever else uses it'),
    Key('GPU memory total [MiB]', 'of the device'),
    Key('precision', 'number format of the network, as it was chosen', 'estimator.precision'),
    Key('precision because', 'why it was chosen; empty: it is what was asked for',
           'estimator.precision_because'),
    Key('threads wait by', "settings of how OpenMP's threads wait, which matters on a busy "
        'machine; empty: its own', lambda _: waiting()),
    Key('engine', 'how the network runs, as it was chosen', 'estimator.engine'),
    Key('quantised on', 'pictures of which the network in 8 bits was made; empty: not int8',
           'estimator.quantized_on'),
    Key('weights', 'their name or file', 'estimator.weights.name'),
    Key('weights sha256', 'of their file', 'estimator.weights.digest'),
    Key('trained', 'False: the numbers are random, and depth is meaningless',
           'estimator.weights.trained'),
    Key('calibration', 'on what depth is calibrated; empty: on nothing', 'estimator.label'),
    Key('calibration sha256', 'of its file',
        lambda p: p.estimator.calibration.digest if p.estimator.calibration else ''),
    Key('text cache hit', 'True: the features of the words came from the cache',
           'estimator.text_cache_hit'),
    Key('backbone', "the parameter's", 'config.backbone'),
    Key('features', "the parameter's", 'config.features'),
    Key('input', "width x height of the network's input, in pixels",
        lambda p: f'{p.config.input_width}x{p.config.input_height}'),
    Key('batch size p50', 'images that went through the network at once, median of the last 512',
        lambda p: p.batch_sizes.percentile(50)),
    Key('batch size max', 'likewise, the most', lambda p: p.batch_sizes.percentile(100)),
)

# What each table of the reference is headed, and its keys.
TABLES = {
    'Status "…: frames", one for each camera': FRAMES, 'With an anchor': ANCHOR,
    'With scenes': SCENE, 'Status "…: model"': (*STATE, *MODEL)}


class Finding(NamedTuple):
    """One thing that is wrong."""

    key: str  # short and stable, so that it is said once in a while
    level: bytes  # of a DiagnosticStatus
    words: str  # a few, for diagnostics
    sentence: str  # for the log, with the remedy

    def tell(self, say: Say) -> None:
        """Say it in the log, as often as that may be."""
        say.once(self.key, self.sentence, 'error' if self.level == ERROR else 'warning')


def limit_level(value: float, limit: float, most: float = math.inf) -> bytes:
    """WARN beyond a limit, ERROR from twice the limit or `most` on; OK where the limit is 0."""
    if not limit or math.isnan(value):
        return OK
    if value >= min(2 * limit, most):
        return ERROR
    return WARN if value > limit else OK


def node_status(
    node: Node, pipeline: Pipeline | None, state: str, configs: Sequence[Settings],
    findings: Sequence[Finding],
) -> DiagnosticStatus:
    """What is told of the whole node; an ERROR while the weights are untrained."""
    estimator = None if pipeline is None else pipeline.estimator
    wrong = [(finding.level, finding.words) for finding in findings]
    settings = json.dumps([config.to_dict() for config in configs], sort_keys=True)
    values: dict[str, Any] = {
        'lifecycle state': state, 'memory [MiB]': memory_mb(),
        'configuration sha256': hashlib.sha256(settings.encode()).hexdigest(),
        'last error': '' if pipeline is None else pipeline.last_error}
    if estimator is not None:
        if not estimator.weights.trained:
            wrong.append((ERROR, UNTRAINED))
        values |= {**_gpu_memory(estimator.device), **_values(MODEL, pipeline)}
    message = ', '.join(words for _, words in wrong) or (
        f'no model loaded ({state})' if estimator is None else state)
    return _status(f'{_name(node)}: model', max([OK, *(level for level, _ in wrong)]), message,
                   values, hardware_id=str(values.get('device', '')))


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
        self._lost, self._jumps = counters.lost, camera.focal_jumps

    @property
    def counters(self) -> Counters:
        """The account of the last look."""
        return self._readings[-1][1]

    def look(self, others: Sequence[Finding] = (), *, active: bool = True) -> DiagnosticStatus:
        """What one camera is told as, once a second.

        `others` is what is wrong with the node, and so with every camera; images are expected
        while it is `active`.
        """
        camera, before = self.camera, self.counters
        self._readings.append((time.monotonic(), camera.counters()))
        findings = [finding for finding in self._findings() if finding.level != OK] \
            if active else []
        for finding in findings:
            finding.tell(camera.say)
        findings = [*others, *findings]
        new = sorted(cause.partition(': ')[2] for cause in self.counters.causes - before.causes)
        words = [finding.words for finding in findings] + new
        if camera.focal_jumps > self._jumps:
            self._jumps = camera.focal_jumps
            words.append('the focal length has changed the scale')
        level = max([WARN if len(words) > len(findings) else OK,
                     *(finding.level for finding in findings)])
        if self.counters.idle > before.idle:
            words.append('idle: nobody subscribes to an output')
        of = f' of {camera.name}' if camera.name else ''
        return _status(f'{_name(self._node)}: frames{of}', level,
                       ', '.join(words) or f'{self.rate("published"):.1f} Hz', self._told())

    def _told(self) -> dict[str, Any]:
        """Everything that is told of the camera, by key."""
        anchor, scene = self.camera.stream.anchor, self.camera.stream.scene
        values = _values(FRAMES, self)
        values |= {f'{stage} p50 [ms]': self.times[stage].percentile(50)
                   for stage in sorted(self.times) if stage not in ('network', 'overhead')}
        values |= dict(sorted(self.counters.causes.items()))
        if anchor is not None:
            values |= anchor.values()
        if scene is not None:
            values |= {'scene': scene.name or 'uncertain',
                       'scene: plain bins [%]': 100 * scene.plain}
            values |= {f'scene: {name} [%]': 100 * float(probability) for name, probability
                       in zip(scene.names, scene.probabilities, strict=True)}
        return values

    def rate(self, counter: str) -> float:
        """Hz at which a counter has grown, over the last looks."""
        seconds = self._readings[-1][0] - self._readings[0][0]
        return self._gained(counter) / seconds if seconds > 0 else 0.0

    def _gained(self, counter: str) -> int:
        return int(getattr(self.counters, counter) - getattr(self._readings[0][1], counter))

    def age(self, percent: float) -> float | str:
        """Milliseconds from stamp to publication, where the clocks allow to tell."""
        age = self.camera.ages.percentile(percent)
        if math.isnan(age) and self.camera.foreign_stamps:
            return "unknown: the stamps are not of this node's clock (replay? set use_sim_time)"
        return 1e3 * age

    # What is wrong; of a value within its limit there is a finding that is OK ------------------

    def _findings(self) -> Iterator[Finding]:
        camera, config = self.camera, self.camera.config
        silent = time.monotonic() - camera.last_image
        if silent > config.input_timeout:
            yield Finding('no image', WARN, 'no image', _no_image(self._node, camera, silent))
        else:
            yield from self._camera_info()
        age = camera.ages.recent()
        level = limit_level(abs(age), config.max_age)
        if age < 0:
            yield Finding('stamps ahead', level, f'stamps are {-age:.1f} s ahead', (
                f"{camera.image_topic}: stamps are {-age:.1f} s ahead of this node's clock. "
                'Synchronise the clocks of both machines (chrony, PTP), or set use_sim_time.'))
        else:
            yield Finding('old depth', level, f'depth is {age:.1f} s old', (
                f'depth is {age:.1f} s old when it is published (max_age: {config.max_age:g}). '
                'Compare age and network in /diagnostics: if the network takes that long, make '
                'its input smaller; if not, the stamps or the connection are late.'))
        received, dropped = self._gained('received'), self._gained('dropped')
        if received >= LEAST_IMAGES:
            level = limit_level(dropped / received, config.max_drop_share, most=1.0)
            yield Finding('dropped', level,
                          f'{100 * dropped / received:.3g} % of the images dropped', (
                f'{dropped} of {received} images were dropped for newer ones (max_drop_share: '
                f'{config.max_drop_share:g}): they come faster than they can be answered. Make '
                "the network's input smaller, or the camera slower."))
        share = camera.nan_shares.recent()
        words = f'{100 * share:.3g} % of the depth is NaN'
        yield Finding('NaN', limit_level(share, config.max_nan_share, most=1.0), words, (
            f'{words} (max_nan_share: {config.max_nan_share:g}). Either the network overflows '
            '(set precision: float32) or its weights are damaged, or out_of_range and max_stddev '
            'leave out much of it.'))
        anchor = camera.stream.anchor
        if anchor is not None and anchor.is_lost:
            yield Finding('anchor', WARN, f'no anchor: {anchor.condition}', (
                f'depth has no anchor (anchor: {config.anchor}) since more than '
                f'{config.anchor_timeout:g} s ({anchor.condition}): its scale goes back to 1, '
                f'that of the words. {anchor.reason}'))
        lost = self.counters.lost - self._lost
        if lost > MAX_LOST_PART * self.counters.received:
            self._lost = self.counters.lost
            camera.say.once('lost', (
                f'{camera.image_topic}: the middleware lost {lost} images before they arrived. '
                "Make the publisher's reliability reliable, or enlarge its middleware's buffers: "
                'config/fastdds_large_images.xml of this package says how for Fast DDS.'))

    def _camera_info(self) -> Iterator[Finding]:
        """Absent or silent, while images come."""
        camera, now = self.camera, time.monotonic()
        timeout, silent = camera.config.input_timeout, now - camera.last_info
        if camera.stream.info is None and now - camera.first_image > timeout:
            yield Finding('no camera_info', WARN, 'no camera_info', (
                f'Images arrive, but no camera_info on {camera.info_topic} '
                f'({_publishers(self._node, camera.info_topic)}): depth is published, points and '
                "depth/camera_info are not, and the camera's focal length does not count. Publish "
                'the calibration there, or remap with: --ros-args -r '
                f'{topic_prefix(camera.name)}camera_info:=/your/camera_info.'))
        elif camera.stream.info is not None and silent > timeout and not camera.info_is_latched():
            yield Finding('camera_info silent', WARN, f'camera_info silent for {silent:.0f} s', (
                f'No camera_info on {camera.info_topic} for {silent:.0f} s '
                f'({_publishers(self._node, camera.info_topic)}), while images arrive: points '
                'and depth/camera_info go on with the last one. Check its publisher; one that '
                'speaks once for all should be transient local.'))


class ClockWatch:
    """Notices simulated time that stands still; look once a second."""

    def __init__(self, node: Node) -> None:
        """Begin now."""
        self._node = node
        self._last, self._changed = 0, time.monotonic()

    def look(self, timeout: float) -> list[Finding]:
        """What is wrong with the clock, which may stand still for `timeout` seconds."""
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


def _no_image(node: Node, camera: Camera, seconds: float) -> str:
    topic, wanted = camera.image_topic, camera.stream.kind
    found = node.get_publishers_info_by_topic(topic)
    text = f'No image on {topic} for {seconds:.0f} s ({_publishers(node, topic)}). '
    others = sorted({info.topic_type for info in found} - {wanted})
    if others:
        return text + f'It is published as {", ".join(others)}, this node wants {wanted}.'
    if found:
        return text + ('Check that the camera or the bag still runs, and the QoS of both sides: '
                       f'ros2 topic info -v {topic}.')
    own = {publisher.topic_name for publisher in node.publishers}
    names = [name for name, types in node.get_topic_names_and_types()
             if wanted in types and name not in own and node.count_publishers(name)]
    text += f'Topics of type {wanted}: {", ".join(names[:MAX_LISTED])}. ' if names else \
        f'There is no topic of type {wanted} at all: start the camera. '
    return text + (
        f'Remap with: --ros-args -r {topic_prefix(camera.name)}image:=/your/image_topic'
        + ' (without /compressed)' * (camera.config.image_transport == 'compressed') + '.')


def _publishers(node: Node, topic: str) -> str:
    """Number, names and quality of service of a topic's publishers."""
    found = node.get_publishers_info_by_topic(topic)
    names = []
    for info in found[:MAX_LISTED]:
        reliable = 'reliable' if info.qos_profile.reliability == RELIABLE else 'best effort'
        latched = ', transient local' * (info.qos_profile.durability == LATCHED)
        names.append(f'{info.node_name}: {reliable}{latched}')
    return f'{len(found)} publisher{"" if len(found) == 1 else "s"}: {"; ".join(names)}' \
        if found else 'no publishers'


def _focal(camera: Camera) -> str:
    ratio, reason = camera.focal_ratio, camera.focal_reason
    if not reason:
        return f'{ratio:.3f}'
    return f'{"none" if ratio == 1.0 else format(ratio, ".3f")}: {reason}'


def _gpu_memory(device: Any) -> dict[str, float]:
    if device.type != 'cuda':
        return {}
    cuda = sys.modules['torch'].cuda
    free, total = cuda.mem_get_info(device)
    return {'GPU memory [MiB]': cuda.memory_allocated(device) / 2**20,
            'GPU memory reserved [MiB]': cuda.memory_reserved(device) / 2**20,
            'GPU memory free [MiB]': free / 2**20, 'GPU memory total [MiB]': total / 2**20}


def _values(keys: Iterable[Key], source: Any) -> dict[str, Any]:
    return {key.name: operator.attrgetter(key.value)(source) if isinstance(key.value, str)
            else key.value(source) for key in keys if key.value is not None}


def _name(node: Node) -> str:
    """Of the node, as its statuses begin."""
    return str(node.get_fully_qualified_name()).lstrip('/')


def _status(
    name: str, level: bytes, message: str, values: dict[str, Any], hardware_id: str = '',
) -> DiagnosticStatus:
    """Make a status; numbers get two digits, and none where they are NaN."""
    def text(value: Any) -> str:
        if isinstance(value, float):
            return '' if math.isnan(value) else f'{value:.2f}'
        return str(value)
    return DiagnosticStatus(
        name=name, level=level, message=message, hardware_id=hardware_id,
        values=[KeyValue(key=key, value=text(value)) for key, value in values.items()])
