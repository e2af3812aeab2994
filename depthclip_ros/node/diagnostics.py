# SPDX-License-Identifier: Apache-2.0
"""The node's health on /diagnostics, and the same in one line for the log."""

from __future__ import annotations

import hashlib
import json
import math
import time
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from ..color import UNTRAINED
from ..executables import waiting
from .statistics import Counters, Rate, memory_mb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rclpy.node import Node

    from ..core.config import Settings
    from .camera import Camera
    from .model import Model
    from .statistics import StageTimes, Window
    from .watchdog import Finding

SUMMARY_PERIOD = 10.0  # seconds


class CameraReport:
    """Rates and changes of one camera between two reports."""

    def __init__(self, camera: Camera, times: StageTimes) -> None:
        self.camera = camera
        self._times = times
        self._rate_in, self._rate_out = Rate(), Rate()
        self._last = Counters()
        self._jumps = camera.focal.jumps
        self._summary = Counters()
        self._summary_time = time.monotonic()

    def status(self, name: str, findings: Sequence[Finding]) -> DiagnosticStatus:
        """One DiagnosticStatus; call it at a fixed rate.

        Args:
            name: of the node.
            findings: what is wrong with the camera or its depth.

        """
        times = self._times
        camera, now, counters = self.camera, time.monotonic(), self.camera.counters()
        rate_in = self._rate_in.update(now, counters.received)
        rate_out = self._rate_out.update(now, counters.published)
        new_conditions = sorted({
            *(counters.rejected - self._last.rejected),
            *(counters.unprojected - self._last.unprojected),
            *(counters.unpictured - self._last.unpictured)})
        idle = counters.idle > self._last.idle
        self._last = counters
        level, words = DiagnosticStatus.OK, [finding.words for finding in findings]
        if findings or new_conditions:
            level = max([DiagnosticStatus.WARN, *(finding.level for finding in findings)])
        words += new_conditions
        if camera.focal.jumps > self._jumps:
            level = max(level, DiagnosticStatus.WARN)
            words.append('the focal length has changed the scale')
        self._jumps = camera.focal.jumps
        if idle:
            words.append('idle: nobody subscribes to an output')
        message = ', '.join(words) or f'{rate_out:.1f} Hz'
        of = f' of {camera.name}' if camera.name else ''
        return _status(f'{name}: frames{of}', level, message, {
            'rate in [Hz]': rate_in,
            'rate out [Hz]': rate_out,
            'age at publish p50 [ms]': self._age(50),
            'age at publish p99 [ms]': self._age(99),
            'network p50 [ms]': times.percentile('network', 50),
            'network p99 [ms]': times.percentile('network', 99),
            'node overhead p50 [ms]': times.percentile('overhead', 50),
            'node overhead p99 [ms]': times.percentile('overhead', 99),
            **{f'{stage} p50 [ms]': times.percentile(stage, 50)
               for stage in sorted(times.windows) if stage not in ('network', 'overhead')},
            'received': counters.received,
            'published': counters.published,
            'dropped': counters.dropped,
            'rejected': counters.total_rejected(),
            'idle': counters.idle,
            'pending': counters.pending,
            **{f'rejected: {k}': n for k, n in sorted(counters.rejected.items())},
            **{f'no cloud: {k}': n for k, n in sorted(counters.unprojected.items())},
            **{f'no pictures: {k}': n for k, n in sorted(counters.unpictured.items())},
            'last error': camera.last_error,
            'focal ratio': str(camera.focal),
            'jumps of the focal ratio': camera.focal.jumps,
            **({} if camera.anchor is None else camera.anchor.values()),
            'NaN share [%]': 100 * camera.nan_shares.mean(),
            'stddev median [m]': camera.stddevs.mean(),
            'beyond max_stddev [%]': 100 * camera.gated_shares.mean(),
            **_scene(camera),
            **({} if camera.clicked is None else camera.clicked.values()),
            'pixels beyond 16UC1': camera.beyond_encoding,
            'stretched to another aspect ratio': camera.stretched,
            'stamps that went back': camera.stamps.back,
            'stamps that jumped ahead': camera.stamps.ahead,
            'lost by the middleware': counters.lost,
            'image topic': camera.image_topic,
            'camera_info topic': camera.info_topic,
        })

    def summary(self) -> str:
        """One line about the time since the last summary; '' before the period is over."""
        now = time.monotonic()
        seconds = now - self._summary_time
        if seconds < SUMMARY_PERIOD:
            return ''
        counters, before = self.camera.counters(), self._summary
        self._summary, self._summary_time = counters, now
        received = counters.received - before.received
        if not received:
            return ''
        published = counters.published - before.published
        text = (f'{self.camera.label}{received / seconds:.1f} Hz in, '
                f'{published / seconds:.1f} Hz out')
        if published:
            p50, p99 = (self.camera.ages.percentile(percent) for percent in (50, 99))
            text += '; age unknown (stamps of another clock)' if math.isnan(p50) \
                else f'; age p50 {p50:.1f}, p99 {p99:.1f} ms'
            text += (f'; network {self._times.percentile("network", 50):.1f} ms, '
                     f'node {self._times.percentile("overhead", 50):.1f} ms')
        return text + (
            f'; {counters.dropped - before.dropped} dropped, '
            f'{counters.total_rejected() - before.total_rejected()} rejected, '
            f'{counters.idle - before.idle} idle'
            + ' (nobody subscribes to an output)' * (counters.idle > before.idle))

    def _age(self, percent: float) -> float | str:
        """Age of an image when its depth is published, where the clocks allow to tell."""
        age = self.camera.ages.percentile(percent)
        if math.isnan(age) and self.camera.foreign_stamps:
            return "unknown: the stamps are not of this node's clock (replay? set use_sim_time)"
        return age


def _scene(camera: Camera) -> dict[str, Any]:
    """What kind of scene the camera shows, and how sure that is; nothing without scenes."""
    scene = camera.scene
    if scene is None:
        return {}
    return {'scene': scene.name or 'uncertain', 'scene: plain bins [%]': 100 * scene.plain,
            **{f'scene: {name} [%]': 100 * float(probability)
               for name, probability in zip(scene.names, scene.probabilities, strict=True)}}


def model_status(
    name: str, model: Model | None, state: str, batch_sizes: Window,
    configs: Sequence[Settings], findings: Sequence[Finding],
) -> DiagnosticStatus:
    """State, device, precision, weights, memory, batches, reloads.

    An ERROR while the weights are untrained, and what the findings are.

    Args:
        name: of the status.
        model: None if nothing is loaded.
        state: 'unconfigured', 'loading', 'inactive', 'active' or 'reloading'.
        batch_sizes: images per call of the estimator.
        configs: in force, for their hash.
        findings: what is wrong with the worker or the clock.

    """
    values: dict[str, Any] = {
        'lifecycle state': state, 'memory [MiB]': memory_mb(),
        'configuration sha256': configuration_digest(configs)}
    estimator = None if model is None else model.estimator
    wrong = [(finding.level, finding.words) for finding in findings]
    if model is not None:
        values.update({'reloads': model.reloads, 'last error': model.last_error})
    if estimator is not None:
        if not estimator.weights.trained:
            wrong.append((DiagnosticStatus.ERROR, UNTRAINED))
        calibration = estimator.calibration
        values.update({
            'device': str(estimator.device),
            **({} if model is None else model.device_memory),
            'precision': estimator.precision,
            'precision because': estimator.precision_because,
            'threads wait by': waiting(),
            'engine': estimator.engine,
            'quantised on': estimator.quantized_on,
            'weights': estimator.weights.name,
            'weights sha256': estimator.weights.digest,
            'trained': estimator.weights.trained,
            'calibration': estimator.label,
            'calibration sha256': '' if calibration is None else calibration.digest,
            'text cache hit': estimator.text_cache_hit,
            'backbone': estimator.config.backbone,
            'features': estimator.config.features,
            'batch size p50': batch_sizes.percentile(50),
            'batch size max': batch_sizes.percentile(100),
            'input': f'{estimator.config.input_width}x{estimator.config.input_height}',
        })
    message = ', '.join(words for _, words in wrong) or (
        f'no model loaded ({state})' if estimator is None else state)
    return _status(name, max([DiagnosticStatus.OK, *(level for level, _ in wrong)]), message,
                   values, hardware_id=values.get('device', ''))


def configuration_digest(configs: Sequence[Settings]) -> str:
    """SHA-256 of all settings: two nodes with the same one compute and publish the same."""
    values = [config.to_dict() for config in configs]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def diagnostic_array(node: Node, statuses: list[DiagnosticStatus]) -> DiagnosticArray:
    """Stamp the statuses with the node's clock."""
    message = DiagnosticArray(status=statuses)
    message.header.stamp = node.get_clock().now().to_msg()
    return message


def _status(
    name: str, level: bytes, message: str, values: Mapping[str, Any], hardware_id: str = '',
) -> DiagnosticStatus:
    return DiagnosticStatus(
        name=name, level=level, message=message, hardware_id=hardware_id,
        values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return '' if math.isnan(value) else f'{value:.2f}'
    return str(value)
