# SPDX-License-Identifier: Apache-2.0
"""What is told on /diagnostics: every key with its meaning, and what is wrong with its remedy."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node

from ..color import UNTRAINED
from ..core.config import Settings
from ..executables import waiting
from ..messages.anchors import unusual_scale
from ..messages.config import NodeConfig
from .camera import ENDS, Camera, Say, topic_prefix
from .pipeline import Pipeline, describe
from .process import memory_mb

OK: bytes = DiagnosticStatus.OK
WARN: bytes = DiagnosticStatus.WARN
ERROR: bytes = DiagnosticStatus.ERROR

READINGS = 6  # of the account, one a second, that a rate looks back on
MAX_LOST_PART = 0.05  # of all images


# Keys --------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """One value on /diagnostics; the reference among the documents is made of these."""

    name: str  # `…` stands for each key of a value that is a mapping
    meaning: str  # counts are since the node was configured
    # Of a `CameraHealth` or of a `NodeHealth`: a function, or the path of an attribute.
    value: Callable[[Any], Any] | str


def _by_cause(what: str) -> Callable[[CameraHealth], Mapping[str, int]]:
    return lambda h: {cause.removeprefix(f'{what}: '): n for cause, n in sorted(h.counts.items())
                      if cause.startswith(f'{what}: ')}


def _counter(name: str, meaning: str) -> Key:
    return Key(name, meaning, lambda h: h.counts[name])


FRAMES = (
    Key('rate in [Hz]', 'images that arrive, over the last five seconds',
        lambda h: h.rate('received')),
    Key('rate out [Hz]', 'images answered with depth, likewise', lambda h: h.rate('published')),
    Key('age at publish p50 [ms]', 'from the stamp of an image to the publication of its depth, '
        "median of the last 512; a sentence where the stamps are not of the node's clock",
        lambda h: h.age(50)),
    Key('age at publish p99 [ms]', 'likewise, the 99th percentile', lambda h: h.age(99)),
    Key('network p50 [ms]', 'from the RGB of a batch to its depth, all of it: resizing, network, '
        'words, anchor; median of the last 512', lambda h: h.pipeline.network.percentile(50)),
    Key('network p99 [ms]', 'likewise, the 99th percentile',
        lambda h: h.pipeline.network.percentile(99)),
    Key('node overhead p50 [ms]', 'all the rest of a batch, divided by its images: decoding and '
        'publication; median of the last 512', lambda h: h.pipeline.overhead.percentile(50)),
    _counter('received', f'images that arrived: {" + ".join(ENDS)} + pending'),
    _counter('published', 'images answered with depth/image'),
    _counter('dropped', 'images replaced by a newer one before their turn came'),
    _counter('rejected', 'images that could not be used, of all causes'),
    _counter('idle', 'images left alone, since nobody subscribed to any output'),
    _counter('pending', 'images waiting or in work now: two at most'),
    Key('rejected: …', 'images, by cause', _by_cause('rejected')),
    Key('no cloud: …', 'images with depth, but without points and depth/camera_info, by cause; '
        '`absent`: no camera_info has come', _by_cause('no cloud')),
    Key('no pictures: …', 'images with depth, but without any other of the outputs, by cause',
        _by_cause('no pictures')),
    _counter('beyond', 'pixels whose depth 16UC1 cannot hold: they are unknown in depth/image'),
    Key('last error', 'what an image failed of last; empty: none did', 'camera.last_error'),
    Key('focal ratio', 'by what depth is multiplied for the focal length of the camera, or why '
        'it does not count', lambda h: _focal(*h.camera.focal)),
    Key('camera_info', 'what is peculiar about that of the last image, in keywords; the log says '
        'it in sentences', lambda h: ', '.join(
            condition for condition, _ in h.camera.notices)),
    Key('NaN share [%]', 'of the pixels of depth/image, mean of the last 5 s',
        lambda h: 100 * h.camera.nan_shares.recent()),
    Key('lost by the middleware', 'images that it says were sent and never arrived',
        lambda h: h.counts['lost']),
)

ANCHOR = (
    Key('anchor', 'the parameter anchor', 'camera.config.anchor'),
    Key('anchored', 'True while the scale rests on the sensor', 'anchor.filter.state.anchored'),
    Key('anchor scale', 'by what depth is multiplied',
        lambda h: f'{h.anchor.filter.state.scale:.4f}'),
    Key('anchor points', 'in the image, of the last message', 'anchor.filter.state.points'),
    Key('not anchored: …', 'images whose points could not be followed since the activation, by '
        'cause', lambda h: dict(sorted(h.anchor.conditions.copy().items()))),
)

SCENE = (
    Key('scene', 'the most probable one, or "uncertain"', lambda h: h.scene.name or 'uncertain'),
    Key('scene: … [%]', 'probability of each scene', lambda h: {
        name: 100 * float(p) for name, p in
        zip(h.scene.names, h.scene.probabilities, strict=True)}),
)

STATE = (
    Key('lifecycle state', 'unconfigured, loading, inactive or active', 'state'),
    Key('memory [MiB]', 'resident, of the whole process', lambda _: memory_mb()),
    Key('configuration sha256', 'of all settings: two nodes with the same one compute and publish '
        'the same', lambda h: hashlib.sha256(json.dumps(
            [config.to_dict() for config in h.configs], sort_keys=True).encode()).hexdigest()),
)

MODEL = (
    Key('device', 'on which the network runs', 'estimator.device'),
    Key('GPU memory [MiB]', 'that tensors hold; empty on a CPU',
        lambda h: _gpu_memory(h.estimator.device)),
    Key('precision', 'number format of the network, as it was chosen', 'estimator.precision'),
    Key('threads wait by', "settings of how OpenMP's threads wait, which matters on a busy "
        'machine; empty: its own', lambda _: waiting()),
    Key('engine', 'how the network runs, as it was chosen', 'estimator.engine'),
    Key('weights', 'their name or file', 'estimator.weights.name'),
    Key('weights sha256', 'of their file', 'estimator.weights.digest'),
    Key('trained', 'False: the numbers are random, and depth is meaningless',
        'estimator.weights.trained'),
    Key('calibration', 'on what depth is calibrated; empty: on nothing', 'estimator.label'),
    Key('calibration sha256', 'of its file',
        lambda h: h.estimator.calibration.digest if h.estimator.calibration else ''),
)

# What each table of the reference is headed, and its keys.
TABLES = {
    'Status "…: frames", one for each camera': FRAMES, 'With an anchor': ANCHOR,
    'With scenes': SCENE, 'Status "…: model"': (*STATE, *MODEL)}


# What is wrong -----------------------------------------------------------------------------------


class Rule(NamedTuple):
    """A value that should not exceed a limit, and what to say where it does.

    The texts are formats of `h`, the health that it is of, and `x`, the value.
    """

    key: str  # short and stable, so that it is said once in a while
    value: Callable[[Any], float]
    limit: Callable[[Any], float]  # 0: none
    words: str  # a few, for diagnostics
    remedy: str  # a sentence, for the log
    error_from: Callable[[float], float] = lambda _: math.inf  # of the limit


class Finding(NamedTuple):
    """One thing that is wrong."""

    key: str
    level: bytes
    words: str
    sentence: str

    def tell(self, say: Say) -> None:
        """Say it in the log, as often as that may be."""
        say.once(self.key, self.sentence, 'error' if self.level == ERROR else 'warning')


def _twice(limit: float) -> float:
    return 2 * limit


CAMERA_RULES = (
    Rule('no image', lambda h: h.silent, lambda h: h.config.input_timeout, 'no image',
         'No image on {h.camera.image_topic} for {x:.0f} s (publishers: {h.publishers[0]}). `ros2 '
         'topic list -t` shows what there is, `ros2 topic info -v {h.camera.image_topic}` the QoS '
         'of both sides. Remap with: --ros-args -r {h.prefix}image:=/your/image_topic (without '
         '/compressed).'),
    Rule('no camera_info', lambda h: h.seconds_without_info, lambda h: h.config.input_timeout,
         'no camera_info', 'Images arrive, but no camera_info on {h.camera.info_topic} '
         '(publishers: {h.publishers[1]}): depth is published, points and depth/camera_info are '
         "not, and the camera's focal length does not count. Publish the calibration there, or "
         'remap with: --ros-args -r {h.prefix}camera_info:=/your/camera_info.'),
    Rule('age', lambda h: abs(h.recent_age), lambda h: h.config.max_age,
         'depth is {h.recent_age:.1f} s old', 'depth is {h.recent_age:.1f} s old when it is '
         'published (max_age: {h.config.max_age:g}). Compare age and network in /diagnostics: if '
         'the network takes that long, make its input smaller; if not, the stamps or the '
         'connection are late. Below 0 the clocks differ: synchronise them (chrony, PTP), or set '
         'use_sim_time.', _twice),
    Rule('NaN', lambda h: 100 * h.camera.nan_shares.recent(),
         lambda h: 100 * h.config.max_nan_share, '{x:.3g} % of the depth is NaN',
         '{x:.3g} % of the depth is NaN (max_nan_share: {h.config.max_nan_share:g}). Either the '
         'network overflows (set precision: float32) or its weights are damaged, or out_of_range '
         'and max_stddev leave out much of it.', lambda limit: min(2 * limit, 100.0)),
    Rule('principal point', lambda h: bool(h.off_middle), lambda _: 0.5,
         'principal point far from the middle', '{h.camera.info_topic}: {h.off_middle}'),
    Rule('anchor', lambda h: h.anchor is not None and not h.anchor.filter.state.anchored
         and bool(h.anchor.condition), lambda _: 0.5, 'no anchor: {h.anchor.condition}',
         'depth has no anchor (anchor: {h.config.anchor}; {h.anchor.condition}): its scale is 1, '
         'that of the words, or goes back to it. {h.anchor.reason}'),
    Rule('anchor scale', lambda h: h.anchor is not None and h.anchor.filter.state.unusual,
         lambda _: 0.5, 'unusual scale: {h.anchor.filter.state.agreement}', '{h.unusual_scale}'),
    Rule('lost', lambda h: h.gained('lost') / max(1, h.gained('received')),
         lambda _: MAX_LOST_PART, 'images are lost before they arrive',
         '{h.camera.image_topic}: the middleware loses images before they arrive ({x:.0%} of '
         "them). Make the publisher's reliability reliable, or enlarge its middleware's buffers: "
         'config/fastdds_large_images.xml of this package says how for Fast DDS.'),
)
NODE_RULES = (
    Rule('worker crash', lambda h: bool(h.crash), lambda _: 0.5, 'stopped by {h.crash}',
         'The worker is stopped by {h.crash}.', lambda _: 1.0),
    Rule('worker stuck', lambda h: h.busy, lambda h: h.config.worker_timeout,
         'worker stuck for {x:.0f} s', 'worker stuck for {x:.0f} s: one batch takes longer than '
         'worker_timeout ({h.config.worker_timeout:g} s). If it does not come back, end the '
         'process and start it anew; if the network is that slow here, make its input smaller.',
         lambda limit: limit),
    Rule('clock', lambda h: h.seconds_of_old_time, lambda h: h.config.input_timeout,
         'simulated time stands still for {x:.0f} s', 'Simulated time stands still for {x:.0f} s. '
         'Ages of images, and transforms looked up by their stamps, are wrong meanwhile. Play a '
         'bag with --clock, or set use_sim_time: false.'),
    Rule('untrained', lambda h: h.estimator is not None and not h.estimator.weights.trained,
         lambda _: 0.5, UNTRAINED,
         f'{UNTRAINED}. The network holds random numbers; set the parameter weights.',
         lambda _: 1.0),
)


def findings(rules: Iterable[Rule], health: Any) -> list[Finding]:
    """What is wrong with a camera or with the node."""
    found = []
    for rule in rules:
        value, limit = float(rule.value(health)), float(rule.limit(health))
        is_error = value >= rule.error_from(limit)
        if limit and (is_error or value > limit):
            found.append(Finding(
                rule.key, ERROR if is_error else WARN, rule.words.format(h=health, x=value),
                rule.remedy.format(h=health, x=value)))
    return found


# Statuses ----------------------------------------------------------------------------------------


class NodeHealth:
    """Looks after the whole node; call `look` once a second.

    Time is steady time: simulated time stands still when a replay ends.
    """

    def __init__(self, node: Node) -> None:
        """Begin now."""
        self._node = node
        self._time, self._changed = 0, time.monotonic()

    def look(
        self, pipeline: Pipeline | None, configs: tuple[Settings, NodeConfig],
        crash: BaseException | None, *, active: bool,
    ) -> tuple[DiagnosticStatus, list[Finding]]:
        """What the node is told as, and what is wrong with it, and so with every camera."""
        self.pipeline, self.configs, self.config = pipeline, configs, configs[1]
        self.estimator = None if pipeline is None else pipeline.estimator
        self.busy = 0.0 if pipeline is None else pipeline.busy_seconds()
        self.crash = '' if crash is None else describe(crash)
        clock = self._node.get_clock()
        now = clock.now().nanoseconds
        if now != self._time or not active or not getattr(clock, 'ros_time_is_active', False):
            self._time, self._changed = now, time.monotonic()
        self.seconds_of_old_time = time.monotonic() - self._changed
        self.state = 'unconfigured' if pipeline is None else 'active' if active else \
            'loading' if self.estimator is None else 'inactive'
        wrong = findings(NODE_RULES, self)
        idle = self.state if self.estimator else f'no model loaded ({self.state})'
        keys = STATE + (MODEL if self.estimator else ())
        return _status(f'{_name(self._node)}: model', wrong, [idle] * (not wrong),
                       _values(keys, self)), wrong


class CameraHealth:
    """Looks after one camera; call `look` once a second while the node is active.

    What happened before the node was activated is not its concern.
    """

    def __init__(self, node: Node, camera: Camera, pipeline: Pipeline) -> None:
        """Begin now."""
        self._node, self.camera, self.pipeline = node, camera, pipeline
        self.config, self.prefix = camera.config, topic_prefix(camera.name)
        self._readings = deque([(time.monotonic(), camera.counts())], READINGS)

    def look(self, others: Sequence[Finding] = (), *, active: bool = True) -> DiagnosticStatus:
        """What the camera is told as.

        `others` is what is wrong with the node, and so with every camera; images are expected
        while it is `active`.
        """
        before, camera = self.counts, self.camera
        self._readings.append((time.monotonic(), camera.counts()))
        self.anchor, self.scene = camera.stream.anchor, camera.stream.scene
        self.off_middle = dict(camera.notices).get('principal point', '')
        self._look_at_inputs()
        wrong = findings(CAMERA_RULES, self) if active else []
        for finding in wrong:
            finding.tell(camera.say)
        new = [cause.partition(': ')[2] for cause in sorted(self.counts - before)
               if ': ' in cause]
        more = [*new, *['idle: nobody subscribes to an output'] * (
            self.counts['idle'] > before['idle'])]
        if not (others or wrong or more):
            more = [f'{self.rate("published"):.1f} Hz']
        keys = FRAMES + (ANCHOR if self.anchor else ()) + (SCENE if self.scene else ())
        of = f' of {camera.name}' if camera.name else ''
        return _status(f'{_name(self._node)}: frames{of}', [*others, *wrong], more,
                       _values(keys, self), least=WARN if new else OK)

    def _look_at_inputs(self) -> None:
        """For what the rules ask."""
        camera, now = self.camera, time.monotonic()
        self.silent, self.recent_age = now - camera.last_image, camera.ages.recent()
        has_info = camera.stream.info is not None or self.silent > self.config.input_timeout
        self.seconds_without_info = 0.0 if has_info else now - camera.first_image
        self.publishers = [self._node.count_publishers(topic)
                           for topic in (camera.image_topic, camera.info_topic)]

    @property
    def unusual_scale(self) -> str:
        """What is said of a scale that nobody expects."""
        return '' if self.anchor is None else unusual_scale(
            self.config.anchor, self.anchor.filter.state)

    @property
    def counts(self) -> Counter[str]:
        """The account of the last look."""
        return self._readings[-1][1]

    def gained(self, counter: str) -> int:
        """How a counter has grown, over the last looks."""
        return self.counts[counter] - self._readings[0][1][counter]

    def rate(self, counter: str) -> float:
        """The same in Hz."""
        seconds = self._readings[-1][0] - self._readings[0][0]
        return self.gained(counter) / seconds if seconds > 0 else 0.0

    def age(self, percent: float) -> float | str:
        """Milliseconds from stamp to publication, where the clocks allow to tell."""
        age = self.camera.ages.percentile(percent)
        if math.isnan(age) and self.counts['published']:
            return "unknown: the stamps are not of this node's clock (replay? set use_sim_time)"
        return 1e3 * age


def _focal(ratio: float, reason: str) -> str:
    if not reason:
        return f'{ratio:.3f}'
    return f'{"none" if ratio == 1.0 else format(ratio, ".3f")}: {reason}'


def _gpu_memory(device: Any) -> float:
    cuda = sys.modules['torch'].cuda
    return cuda.memory_allocated(device) / 2**20 if device.type == 'cuda' else math.nan


def _name(node: Node) -> str:
    """Of the node, as its statuses begin."""
    return str(node.get_fully_qualified_name()).lstrip('/')


def _values(keys: Iterable[Key], source: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, _, get in keys:
        value = operator.attrgetter(get)(source) if isinstance(get, str) else get(source)
        values |= {name.replace('…', key): value[key] for key in value} \
            if isinstance(value, Mapping) else {name: value}
    return values


def _status(
    name: str, wrong: Sequence[Finding], more: Sequence[str], values: dict[str, Any],
    least: bytes = OK,
) -> DiagnosticStatus:
    """Make a status; numbers get two digits, and none where they are NaN."""
    def text(value: Any) -> str:
        if isinstance(value, float):
            return '' if math.isnan(value) else f'{value:.2f}'
        return str(value)
    return DiagnosticStatus(
        name=name, level=max([least, *(finding.level for finding in wrong)]),
        message=', '.join([*(finding.words for finding in wrong), *more]),
        values=[KeyValue(key=key, value=text(value)) for key, value in values.items()])
