# SPDX-License-Identifier: Apache-2.0
"""What is told on /diagnostics: every key with its value and meaning, and what is wrong."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node

from ..core.config import Settings
from ..executables import waiting
from ..messages.anchors import Anchor
from ..messages.config import NodeConfig
from .camera import Camera
from .findings import CAMERA_FINDINGS, NODE_FINDINGS, WARN, Finding
from .pipeline import Pipeline
from .process import memory_mb

if TYPE_CHECKING:  # torch takes seconds to import
    from ..core.estimator import DepthEstimator
    from ..core.words import Scene

OK: bytes = DiagnosticStatus.OK
READINGS = 6  # of the account, one a second, that a rate looks back on

Values = dict[str, tuple[Any, str]]

# Of each key its value and what that means, which the reference is made of; `…` stands for each
# name of a value that is a mapping. Counts are since the node was configured.


def frame_values(health: CameraHealth) -> Values:
    """Of a camera's images."""
    camera, counts, pipeline = health.camera, health.counts, health.pipeline
    return {
        'rate in [Hz]': (health.rate('received'), 'images that arrive, over the last 5 s'),
        'rate out [Hz]': (health.rate('published'), 'images answered with depth, likewise'),
        'age at publish p50 [ms]': (health.age(50), (
            'from the stamp of an image to the publication of its depth, median of the last '
            "512; a sentence where the stamps are not of the node's clock")),
        'age at publish p99 [ms]': (health.age(99), 'likewise, the 99th percentile'),
        'network p50 [ms]': (pipeline.network.percentile(50), (
            'from the RGB of a batch to its depth, all of it: resizing, network, words, '
            'anchor; median of the last 512')),
        'network p99 [ms]': (pipeline.network.percentile(99), 'likewise, the 99th percentile'),
        'node overhead p50 [ms]': (pipeline.overhead.percentile(50), (
            'all the rest of a batch, divided by its images: decoding and publication; median '
            'of the last 512')),
        'received': (counts['received'], (
            'images that arrived: published + dropped + rejected + idle + pending')),
        'published': (counts['published'], 'images answered with depth/image'),
        'dropped': (counts['dropped'], 'images replaced by a newer one before their turn came'),
        'rejected': (counts['rejected'], 'images that could not be used, of all causes'),
        'idle': (counts['idle'], 'images left alone, since nobody subscribed to any output'),
        'pending': (counts['pending'], 'images waiting or in work now: two at most'),
        'rejected: …': (_by_cause(counts, 'rejected'), 'images, by cause'),
        'no cloud: …': (_by_cause(counts, 'no cloud'), (
            'images with depth, but without points and depth/camera_info, by cause; `absent`: '
            'no camera_info has come')),
        'no pictures: …': (_by_cause(counts, 'no pictures'), (
            'images with depth, but without any other of the outputs, by cause')),
        'beyond': (counts['beyond'], (
            'pixels whose depth 16UC1 cannot hold: they are unknown in depth/image')),
        'last error': (camera.last_error, 'what an image failed of last; empty: none did'),
        'focal ratio': (_focal(*camera.focal), (
            'by what depth is multiplied for the focal length of the camera, or why it does '
            'not count')),
        'camera_info': (', '.join(condition for condition, _ in camera.notices), (
            'what is peculiar about that of the last image, in keywords; the log says it in '
            'sentences')),
        'NaN share [%]': (100 * camera.nan_shares.recent(), (
            'of the pixels of depth/image, mean of the last 5 s')),
        'lost by the middleware': (counts['lost'], (
            'images that it says were sent and never arrived'))}


def anchor_values(name: str, anchor: Anchor) -> Values:
    """Of what fixes the scale."""
    state = anchor.filter.state
    return {
        'anchor': (name, 'the parameter anchor'),
        'anchored': (state.anchored, 'True while the scale rests on the sensor'),
        'anchor scale': (f'{state.scale:.4f}', 'by what depth is multiplied'),
        'anchor share [%]': (100 * state.share, 'of the points that agree; empty before any came'),
        'anchor points': (state.points, 'in the image, of the last message'),
        'not anchored: …': (dict(sorted(anchor.conditions.copy().items())), (
            'images whose points could not be followed since the activation, by cause'))}


def scene_values(scene: Scene) -> Values:
    """Of the last image's scene."""
    percent = {name: 100 * float(probability) for name, probability in zip(
        scene.names, scene.probabilities, strict=True)}
    return {
        'scene': (scene.name or 'uncertain', 'the most probable one, or "uncertain"'),
        'scene: … [%]': (percent, 'probability of each scene')}


def state_values(state: str, configs: Sequence[Settings]) -> Values:
    """Of the node in every state."""
    settings = json.dumps([config.to_dict() for config in configs], sort_keys=True)
    return {
        'lifecycle state': (state, 'unconfigured, loading, inactive, active or finalized'),
        'memory [MiB]': (memory_mb(), 'resident, of the whole process'),
        'configuration sha256': (hashlib.sha256(settings.encode()).hexdigest(), (
            'of all settings: two nodes with the same one compute and publish the same'))}


def model_values(estimator: DepthEstimator) -> Values:
    """Of a loaded model."""
    weights, calibration = estimator.weights, estimator.calibration
    return {
        'device': (estimator.device, 'on which the network runs'),
        'GPU memory [MiB]': (_gpu_memory(estimator.device), 'that tensors hold; empty on a CPU'),
        'precision': (estimator.precision, 'number format of the network, as it was chosen'),
        'threads wait by': (waiting(), (
            "settings of how OpenMP's threads wait, which matters on a busy machine; empty: "
            'its own')),
        'engine': (estimator.engine, 'how the network runs, as it was chosen'),
        'weights': (weights.name, 'their name or file'),
        'weights sha256': (weights.digest, 'of their file'),
        'trained': (weights.trained, 'False: the numbers are random, and depth is meaningless'),
        'calibration': (estimator.label, 'on what depth is calibrated; empty: on nothing'),
        'calibration sha256': (calibration.digest if calibration else '', 'of its file')}


def _gpu_memory(device: Any) -> float:
    cuda = sys.modules['torch'].cuda
    return cuda.memory_allocated(device) / 2**20 if device.type == 'cuda' else math.nan


def _by_cause(counts: Counter[str], what: str) -> dict[str, int]:
    return {cause.removeprefix(f'{what}: '): n for cause, n in sorted(counts.items())
            if cause.startswith(f'{what}: ')}


def _focal(ratio: float, reason: str) -> str:
    if not reason:
        return f'{ratio:.3f}'
    return f'{"none" if ratio == 1.0 else format(ratio, ".3f")}: {reason}'


# Statuses ----------------------------------------------------------------------------------------


class NodeHealth:
    """Looks after the whole node; call `look` once a second.

    Time is steady time: simulated time stands still when a replay ends.
    """

    def __init__(self, node: Node) -> None:
        """Begin now."""
        self._node = node
        self._time, self.changed = 0, time.monotonic()

    def look(
        self, pipeline: Pipeline | None, configs: tuple[Settings, NodeConfig],
        crash: BaseException | None, state: str, conflict: str = '',
    ) -> tuple[DiagnosticStatus, list[Finding]]:
        """What the node is told as, and what is wrong with it, and so with every camera.

        `state` is the name of its lifecycle state, or 'loading'; `conflict` why what is set does
        not count yet.
        """
        self.pipeline, self.config, self.crash = pipeline, configs[1], crash
        self.conflict = conflict
        self.estimator = None if pipeline is None else pipeline.estimator
        clock = self._node.get_clock()
        now = clock.now().nanoseconds
        if now != self._time or state != 'active' or not getattr(
                clock, 'ros_time_is_active', False):
            self._time, self.changed = now, time.monotonic()
        wrong = [finding for find in NODE_FINDINGS if (finding := find(self))]
        idle = state if self.estimator else f'no model loaded ({state})'
        values = state_values(state, configs) | (
            model_values(self.estimator) if self.estimator else {})
        return _status(self._node, 'model', wrong, [idle] * (not wrong), values), wrong


class CameraHealth:
    """Looks after one camera; call `look` once a second while the node is active.

    What happened before the node was activated is not its concern.
    """

    def __init__(self, node: Node, camera: Camera, pipeline: Pipeline) -> None:
        """Begin now."""
        self.node, self.camera, self.pipeline = node, camera, pipeline
        self.counts = camera.counts()
        self._readings = deque([(time.monotonic(), self.counts)], READINGS)

    def look(
        self, config: NodeConfig, others: Sequence[Finding] = (), *, active: bool = True,
    ) -> DiagnosticStatus:
        """What the camera is told as.

        `others` is what is wrong with the node, and so with every camera; images are expected
        while it is `active`.
        """
        self.config, camera, now, before = config, self.camera, time.monotonic(), self.counts
        self.silent, self.counts = now - camera.last_image, camera.counts()
        self._readings.append((now, self.counts))
        wrong = [finding for find in CAMERA_FINDINGS if active and (finding := find(self))]
        for finding in wrong:
            finding.tell(camera.say)
        new = [cause.partition(': ')[2] for cause in sorted(self.counts - before)
               if ': ' in cause]
        more = [*new, *['idle: nobody subscribes to an output'] * (
            self.counts['idle'] > before['idle'])]
        if not (others or wrong or more):
            more = [f'{self.rate("published"):.1f} Hz']
        values, anchor, scene = frame_values(self), camera.stream.anchor, camera.stream.scene
        if anchor is not None:
            values |= anchor_values(config.anchor, anchor)
        if scene is not None:
            values |= scene_values(scene)
        of = f' of {camera.name}' if camera.name else ''
        return _status(self.node, f'frames{of}', [*others, *wrong], more, values,
                       least=WARN if new else OK)

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


def _status(
    node: Node, part: str, wrong: Sequence[Finding], more: Sequence[str], values: Values,
    least: bytes = OK,
) -> DiagnosticStatus:
    """Make a status; numbers get two digits, and none where they are NaN."""
    texts: dict[str, Any] = {}
    for key, (value, _) in values.items():
        texts |= {key.replace('…', name): value[name] for name in value} \
            if isinstance(value, Mapping) else {key: value}
    return DiagnosticStatus(
        name=f'{node.get_fully_qualified_name()}: {part}'.lstrip('/'),
        level=max([least, *(finding.level for finding in wrong)]),
        message=', '.join([*(finding.words for finding in wrong), *more]),
        values=[KeyValue(key=key, value=str(value) if not isinstance(value, float) else
                         '' if math.isnan(value) else f'{value:.2f}')
                for key, value in texts.items()])
