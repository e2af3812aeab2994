# SPDX-License-Identifier: Apache-2.0
"""The statuses on /diagnostics: every key with its value and meaning, and the findings."""

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
from ..executables import openmp_settings
from ..messages.anchors import Anchor
from ..messages.node_config import NodeConfig
from .camera import Camera
from .findings import CAMERA_FINDINGS, NODE_FINDINGS, WARN, Finding
from .process import memory_mb
from .worker import Worker

if TYPE_CHECKING:  # torch takes seconds to import
    from ..core.estimator import DepthEstimator
    from ..core.scenes import Scene

OK: bytes = DiagnosticStatus.OK
RATE_SAMPLES = 6  # of the counters, one a second, that a rate covers

Values = dict[str, tuple[Any, str]]

# Each key has its value and its meaning, from which tools/generate.py makes the reference; `…`
# stands for each name of a value that is a mapping. Counts begin when the node is configured.


def frame_values(health: CameraHealth) -> Values:
    """Return the values about a camera's images."""
    camera, counts, worker = health.camera, health.counts, health.worker
    return {
        'rate in [Hz]': (health.rate('received'), 'received images a second, over the last 5 s'),
        'rate out [Hz]': (health.rate('published'), 'published depth images a second, likewise'),
        'age at publish p50 [ms]': (health.age(50), (
            'from the stamp of an image to the publication of its depth, median of the last '
            "512; a sentence where the stamps are not of the node's clock")),
        'age at publish p99 [ms]': (health.age(99), 'likewise, the 99th percentile'),
        'network p50 [ms]': (worker.network_ms.percentile(50), (
            'from the RGB of a batch to its depth, all of it: resizing, network, words, '
            'anchor; median of the last 512')),
        'network p99 [ms]': (worker.network_ms.percentile(99), 'likewise, the 99th percentile'),
        'node overhead p50 [ms]': (worker.overhead_ms.percentile(50), (
            'time of a batch outside the network, divided by its images: decoding and '
            'publication; median of the last 512')),
        'received': (counts['received'], (
            'images that arrived: published + dropped + rejected + idle + pending')),
        'published': (counts['published'], 'images whose depth/image was published'),
        'dropped': (counts['dropped'], 'images replaced by a newer one before their turn came'),
        'rejected': (counts['rejected'], 'images that could not be used, of all causes'),
        'idle': (counts['idle'], 'images skipped because no output had a subscriber'),
        'pending': (counts['pending'], 'images waiting or in work now: two at most'),
        'rejected: …': (_by_cause(counts, 'rejected'), 'images, by cause'),
        'no cloud: …': (_by_cause(counts, 'no cloud'), (
            'images with depth, but without points and depth/camera_info, by cause; `absent`: '
            'no camera_info was received')),
        'no pictures: …': (_by_cause(counts, 'no pictures'), (
            'images with depth, but without any other of the outputs, by cause')),
        'beyond': (counts['beyond'], (
            'pixels whose depth 16UC1 cannot hold: they are unknown in depth/image')),
        'last error': (camera.last_error, 'error of the last image that failed; empty: none'),
        'focal ratio': (_focal_text(*camera.focal), (
            "factor of depth for the camera's focal length, or why it is not applied")),
        'camera_info': (', '.join(condition for condition, _ in camera.notices), (
            "peculiarities of the last image's camera_info, in keywords; the log has the "
            'sentences')),
        'NaN share [%]': (100 * camera.nan_fractions.mean(), (
            'fraction of NaN pixels in depth/image, mean of the last 5 s')),
        'lost by the middleware': (counts['lost'], (
            'images that the middleware reports as sent and not received'))}


def anchor_values(name: str, anchor: Anchor) -> Values:
    """Return the values about the anchor of the scale."""
    state = anchor.filter.state
    return {
        'anchor': (name, 'the parameter anchor'),
        'anchored': (state.anchored, 'True while the scale rests on the sensor'),
        'anchor scale': (f'{state.scale:.4f}', 'factor by which the points multiply depth'),
        'anchor share [%]': (100 * state.agreeing_fraction, (
            'fraction of the points that agree with the scale; empty before the first')),
        'anchor points': (state.points, 'points of the last message that lie in the image'),
        'not anchored: …': (dict(sorted(anchor.conditions.copy().items())), (
            'images since the activation whose points were not used, by cause'))}


def scene_values(scene: Scene) -> Values:
    """Return the values about the last image's scene."""
    percent = {name: 100 * float(probability) for name, probability in zip(
        scene.names, scene.probabilities, strict=True)}
    return {
        'scene': (scene.name or 'uncertain', 'the most probable one, or "uncertain"'),
        'scene: … [%]': (percent, 'probability of each scene')}


def state_values(state: str, configs: Sequence[Settings]) -> Values:
    """Return the values about the node, in every state."""
    settings = json.dumps([config.to_dict() for config in configs], sort_keys=True)
    return {
        'lifecycle state': (state, 'unconfigured, loading, inactive, active or finalized'),
        'memory [MiB]': (memory_mb(), 'resident, of the whole process'),
        'configuration sha256': (hashlib.sha256(settings.encode()).hexdigest(), (
            'digest of all settings: nodes with the same one compute and publish the same'))}


def model_values(estimator: DepthEstimator) -> Values:
    """Return the values about the loaded model."""
    weights, calibration = estimator.weights, estimator.calibration
    return {
        'device': (estimator.device, 'device on which the network runs'),
        'GPU memory [MiB]': (_gpu_memory(estimator.device), (
            'memory of all tensors on the GPU; empty on a CPU')),
        'precision': (estimator.precision, 'number format of the network that is in use'),
        'threads wait by': (openmp_settings(), (
            "settings of how OpenMP's threads wait, which matters on a busy machine; empty: "
            "OpenMP's defaults")),
        'engine': (estimator.engine, 'engine of the network that is in use'),
        'weights': (weights.name, 'name or file of the weights'),
        'weights sha256': (weights.digest, "digest of the weights' file"),
        'trained': (weights.trained, 'False: the weights are random, and depth is meaningless'),
        'calibration': (estimator.label, 'data of the calibration; empty: none'),
        'calibration sha256': (calibration.digest if calibration else '', (
            "digest of the calibration's file"))}


def _gpu_memory(device: Any) -> float:
    cuda = sys.modules['torch'].cuda
    return cuda.memory_allocated(device) / 2**20 if device.type == 'cuda' else math.nan


def _by_cause(counts: Counter[str], outcome: str) -> dict[str, int]:
    return {cause.removeprefix(f'{outcome}: '): n for cause, n in sorted(counts.items())
            if cause.startswith(f'{outcome}: ')}


def _focal_text(ratio: float, reason: str) -> str:
    if not reason:
        return f'{ratio:.3f}'
    return f'{"none" if ratio == 1.0 else format(ratio, ".3f")}: {reason}'


# Statuses ----------------------------------------------------------------------------------------


class NodeHealth:
    """The status of the whole node; call `update` once a second.

    Times are steady time, since simulated time stands still when a replay ends.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._time, self.last_clock_change = 0, time.monotonic()

    def update(
        self, worker: Worker | None, configs: tuple[Settings, NodeConfig],
        crash: BaseException | None, state: str, conflict: str = '',
    ) -> tuple[DiagnosticStatus, list[Finding]]:
        """Make the node's status, and its findings, which also concern every camera.

        `state` is the name of the lifecycle state, or 'loading'; `conflict` says why the newest
        parameters are not in force yet.
        """
        self.worker, self.config, self.crash = worker, configs[1], crash
        self.conflict = conflict
        self.estimator = None if worker is None else worker.estimator
        clock = self._node.get_clock()
        now = clock.now().nanoseconds
        if now != self._time or state != 'active' or not getattr(
                clock, 'ros_time_is_active', False):
            self._time, self.last_clock_change = now, time.monotonic()
        findings = [finding for find in NODE_FINDINGS if (finding := find(self))]
        idle = state if self.estimator else f'no model loaded ({state})'
        values = state_values(state, configs) | (
            model_values(self.estimator) if self.estimator else {})
        return _status(self._node, 'model', findings, [idle] * (not findings), values), findings


class CameraHealth:
    """The status of one camera since the activation; call `update` once a second."""

    def __init__(self, node: Node, camera: Camera, worker: Worker) -> None:
        self.node, self.camera, self.worker = node, camera, worker
        self.counts = camera.counts()
        self._samples = deque([(time.monotonic(), self.counts)], RATE_SAMPLES)

    def update(
        self, config: NodeConfig, node_findings: Sequence[Finding] = (), *, active: bool = True,
    ) -> DiagnosticStatus:
        """Make the camera's status, from `node_findings` and its own.

        Only while the node is `active` can the camera have findings: before, no image is expected.
        """
        self.config, camera, now, previous = config, self.camera, time.monotonic(), self.counts
        self.seconds_without_image, self.counts = now - camera.last_image_time, camera.counts()
        self._samples.append((now, self.counts))
        findings = [finding for find in CAMERA_FINDINGS if active and (finding := find(self))]
        for finding in findings:
            finding.log(camera.log)
        new = [cause for cause in sorted(self.counts - previous) if ': ' in cause]
        notes = [*new, *['idle: nobody subscribes to an output'] * (
            self.counts['idle'] > previous['idle'])]
        if not (node_findings or findings or notes):
            notes = [f'{self.rate("published"):.1f} Hz']
        values, anchor, scene = frame_values(self), camera.context.anchor, camera.context.scene
        if anchor is not None:
            values |= anchor_values(config.anchor, anchor)
        if scene is not None:
            values |= scene_values(scene)
        suffix = f' of {camera.name}' if camera.name else ''
        return _status(self.node, f'frames{suffix}', [*node_findings, *findings], notes, values,
                       min_level=WARN if new else OK)

    def increase(self, counter: str) -> int:
        """Return the increase of a counter over the last RATE_SAMPLES."""
        return self.counts[counter] - self._samples[0][1][counter]

    def rate(self, counter: str) -> float:
        """Return the increase of a counter in Hz."""
        seconds = self._samples[-1][0] - self._samples[0][0]
        return self.increase(counter) / seconds if seconds > 0 else 0.0

    def age(self, percent: float) -> float | str:
        """Return milliseconds from stamp to publication, or why they cannot be known."""
        age = self.camera.ages.percentile(percent)
        if math.isnan(age) and self.counts['published']:
            return "unknown: the stamps are not of this node's clock (replay? set use_sim_time)"
        return 1e3 * age


def _status(
    node: Node, component: str, findings: Sequence[Finding], notes: Sequence[str], values: Values,
    min_level: bytes = OK,
) -> DiagnosticStatus:
    """Make a status message; floats get two decimals, and NaN becomes an empty text."""
    texts: dict[str, Any] = {}
    for key, (value, _) in values.items():
        texts |= {key.replace('…', name): value[name] for name in value} \
            if isinstance(value, Mapping) else {key: value}
    return DiagnosticStatus(
        name=f'{node.get_fully_qualified_name()}: {component}'.lstrip('/'),
        level=max([min_level, *(finding.level for finding in findings)]),
        message=', '.join([*(finding.summary for finding in findings), *notes]),
        values=[KeyValue(key=key, value=str(value) if not isinstance(value, float) else
                         '' if math.isnan(value) else f'{value:.2f}')
                for key, value in texts.items()])
