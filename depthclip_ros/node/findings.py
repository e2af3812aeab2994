# SPDX-License-Identifier: Apache-2.0
"""Faults that /diagnostics reports of the node and its cameras, each with its remedy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from diagnostic_msgs.msg import DiagnosticStatus

from ..drawing.color import UNTRAINED
from ..messages.anchors import unusual_scale
from .camera import ThrottledLog, topic_prefix
from .worker import describe

if TYPE_CHECKING:
    from .health import CameraHealth, NodeHealth

WARN: bytes = DiagnosticStatus.WARN
ERROR: bytes = DiagnosticStatus.ERROR

MAX_LOST_FRACTION = 0.05  # of all images


class Finding(NamedTuple):
    """One fault of the node or of a camera."""

    key: str  # short and stable, by which the log is throttled
    level: bytes
    summary: str  # a few words, for /diagnostics
    sentence: str  # with the remedy, for the log; '' where it is logged elsewhere

    def log(self, log: ThrottledLog) -> None:
        """Log the sentence, throttled by the key."""
        if self.sentence:
            log.write(self.key, self.sentence, 'error' if self.level == ERROR else 'warning')


def _no_image(health: CameraHealth) -> Finding | None:
    topic, prefix = health.camera.image_topic, topic_prefix(health.camera.name)
    seconds = health.seconds_without_image
    return None if seconds <= health.config.input_timeout else Finding(
        'no image', WARN, 'no image',
        f'No image on {topic} for {seconds:.0f} s (publishers: '
        f'{health.node.count_publishers(topic)}). `ros2 topic list -t` shows what there is, `ros2 '
        f'topic info -v {topic}` the QoS of both sides. Remap with: --ros-args -r {prefix}image:='
        '/your/image_topic (without /compressed).')


def _no_camera_info(health: CameraHealth) -> Finding | None:
    camera, timeout = health.camera, health.config.input_timeout
    if camera.context.camera_info is not None or health.seconds_without_image > timeout:
        return None
    return None if time.monotonic() - camera.first_image_time <= timeout else Finding(
        'no camera_info', WARN, 'no camera_info',
        f'Images arrive, but no camera_info on {camera.info_topic} (publishers: '
        f'{health.node.count_publishers(camera.info_topic)}): depth is published, points and '
        "depth/camera_info are not, and the camera's focal length does not count. Publish the "
        f'calibration there, or remap with: --ros-args -r {topic_prefix(camera.name)}camera_info:='
        '/your/camera_info.')


def _too_old(health: CameraHealth) -> Finding | None:
    age, limit = health.camera.ages.mean(), health.config.max_age
    return None if not limit or not abs(age) > limit else Finding(
        'age', ERROR if abs(age) >= 2 * limit else WARN, f'depth is {age:.1f} s old',
        f'depth is {age:.1f} s old when it is published (max_age: {limit:g}). Compare '
        '"age at publish" and "network" in /diagnostics: if the neural network takes that long, '
        'make its input smaller; if not, the stamps or the connection are late. Below 0 the '
        'clocks differ: synchronise them (chrony, PTP), or set use_sim_time.')


def _too_many_nan(health: CameraHealth) -> Finding | None:
    fraction, limit = health.camera.nan_fractions.mean(), health.config.max_nan_share
    is_error = fraction >= min(2 * limit, 1.0)
    return None if not limit or not (is_error or fraction > limit) else Finding(
        'NaN', ERROR if is_error else WARN, f'{100 * fraction:.3g} % of the depth is NaN',
        f'{100 * fraction:.3g} % of the depth is NaN (max_nan_share: {limit:g}). Either the '
        'network overflows (set precision: float32) or its weights are damaged, or out_of_range '
        'and max_stddev leave out much of it.')


def _principal_point(health: CameraHealth) -> Finding | None:
    notice = dict(health.camera.notices).get('principal point')
    return None if not notice else Finding(
        'principal point', WARN, 'principal point far from the middle',
        f'{health.camera.info_topic}: {notice}')


def _no_anchor(health: CameraHealth) -> Finding | None:
    anchor = health.camera.context.anchor
    if anchor is None or anchor.filter.state.anchored or not anchor.condition:
        return None
    return Finding(
        'anchor', WARN, f'no anchor: {anchor.condition}',
        f'depth has no anchor (anchor: {health.config.anchor}; {anchor.condition}): its scale is '
        f'1, that of the words, or goes back to it. {anchor.reason}')


def _unusual_scale(health: CameraHealth) -> Finding | None:
    anchor = health.camera.context.anchor
    return None if anchor is None or not anchor.filter.state.is_unusual else Finding(
        'anchor scale', WARN, f'unusual scale: {anchor.filter.state.agreement}',
        unusual_scale(health.config.anchor, anchor.filter.state))


def _images_lost(health: CameraHealth) -> Finding | None:
    fraction = health.increase('lost') / max(1, health.increase('received'))
    return None if fraction <= MAX_LOST_FRACTION else Finding(
        'lost', WARN, 'images are lost before they arrive',
        f'{health.camera.image_topic}: the middleware loses images before they arrive '
        f"({fraction:.0%} of them). Make the publisher's reliability reliable, or enlarge its "
        "middleware's buffers: config/fastdds_large_images.xml of this package does so for Fast "
        'DDS, `sysctl net.core.rmem_max` for CycloneDDS.')


def _crashed(health: NodeHealth) -> Finding | None:
    return None if health.crash is None else Finding(
        'worker crash', ERROR, f'stopped by {describe(health.crash)}',
        f'The worker is stopped by {describe(health.crash)}.')


def _stuck(health: NodeHealth) -> Finding | None:
    limit = health.config.worker_timeout
    seconds = 0.0 if health.worker is None else health.worker.busy_seconds()
    return None if seconds < limit else Finding(
        'worker stuck', ERROR, f'worker stuck for {seconds:.0f} s',
        f'worker stuck for {seconds:.0f} s: one batch takes longer than worker_timeout '
        f'({limit:g} s). If it does not come back, end the process and start it anew; if the '
        'network is that slow here, make its input smaller.')


def _clock_stopped(health: NodeHealth) -> Finding | None:
    seconds = time.monotonic() - health.last_clock_change
    return None if seconds <= health.config.input_timeout else Finding(
        'clock', WARN, f'simulated time stands still for {seconds:.0f} s',
        f'Simulated time stands still for {seconds:.0f} s. Ages of images, and transforms looked '
        'up by their stamps, are wrong meanwhile. Play a bag with --clock, or set use_sim_time: '
        'false.')


def _untrained(health: NodeHealth) -> Finding | None:
    return None if health.estimator is None or health.estimator.weights.trained else Finding(
        'untrained', ERROR, UNTRAINED,
        f'{UNTRAINED}. The network holds random numbers; set the parameter weights.')


def _settings_pending(health: NodeHealth) -> Finding | None:
    return None if not health.conflict else Finding(
        'settings', WARN, f'the settings before stay in force: {health.conflict[:200]}', '')


CAMERA_FINDINGS = (_no_image, _no_camera_info, _too_old, _too_many_nan, _principal_point,
                   _no_anchor, _unusual_scale, _images_lost)
NODE_FINDINGS = (_crashed, _stuck, _clock_stopped, _untrained, _settings_pending)
