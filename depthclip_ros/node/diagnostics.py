# SPDX-License-Identifier: Apache-2.0
"""What is told on /diagnostics: every key with its meaning, and the statuses made of them."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from ..color import UNTRAINED
from ..executables import waiting
from .statistics import memory_mb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rclpy.node import Node

    from ..core.config import Settings
    from .camera import Camera
    from .health import CameraHealth, Finding
    from .model import Model
    from .statistics import Window

OK: bytes = DiagnosticStatus.OK
WARN: bytes = DiagnosticStatus.WARN
ERROR: bytes = DiagnosticStatus.ERROR


class Key(NamedTuple):
    """One value on /diagnostics; the reference among the documents is made of these.

    Attributes:
        name: its key; `…` stands for what is filled in.
        unit: '' for text; numbers of images and the like are counts since the node was configured,
            unless the meaning says something else.
        meaning: in a few words.
        value: of a `CameraHealth`, a `NodeHealth` or an estimator; None for what is filled in
            otherwise.

    """

    name: str
    unit: str
    meaning: str
    value: Callable[[Any], Any] | None = None


FRAMES = (
    Key('rate in [Hz]', 'Hz', 'images that arrive, over the last five seconds',
        lambda h: h.rate('received')),
    Key('rate out [Hz]', 'Hz', 'images that are answered with depth, likewise',
        lambda h: h.rate('published')),
    Key('age at publish p50 [ms]', 'ms',
        'from the stamp of an image to the publication of its depth, median of the last 512; a '
        "sentence instead where the stamps are not of the node's clock", lambda h: h.age(50)),
    Key('age at publish p99 [ms]', 'ms', 'likewise, the 99th percentile', lambda h: h.age(99)),
    Key('network p50 [ms]', 'ms',
        'from the RGB of a batch to its depth, all of it: resizing, network, words, anchor; '
        'median of the last 512 batches', lambda h: h.times.percentile('network', 50)),
    Key('network p99 [ms]', 'ms', 'likewise, the 99th percentile',
        lambda h: h.times.percentile('network', 99)),
    Key('node overhead p50 [ms]', 'ms',
        'all the rest of a batch, divided by its images: decoding and publication; median',
        lambda h: h.times.percentile('overhead', 50)),
    Key('node overhead p99 [ms]', 'ms', 'likewise, the 99th percentile',
        lambda h: h.times.percentile('overhead', 99)),
    Key('… p50 [ms]', 'ms', 'median of one stage, for one image: decode, and publish with the '
        'name of a topic'),
    Key('received', 'images', 'that arrived; at any time received = published + dropped + '
        'rejected + idle + pending', lambda h: h.counters.received),
    Key('published', 'images', 'answered with depth/image', lambda h: h.counters.published),
    Key('dropped', 'images', 'replaced by a newer one before their turn came',
        lambda h: h.counters.dropped),
    Key('rejected', 'images', 'that could not be used, of all causes',
        lambda h: h.counters.total_rejected()),
    Key('idle', 'images', 'left alone, since nobody subscribed to any output',
        lambda h: h.counters.idle),
    Key('pending', 'images', 'waiting or in work now: two at most', lambda h: h.counters.pending),
    Key('rejected: …', 'images', 'likewise, by cause'),
    Key('no cloud: …', 'images', 'with depth, but without points and depth/camera_info, by cause; '
        '`absent`: no camera_info has come'),
    Key('no pictures: …', 'images', 'with depth, but without any other of the outputs, by cause'),
    Key('last error', '', 'what an image failed of last; empty: none did',
        lambda h: h.camera.last_error),
    Key('focal ratio', '', 'by what depth is multiplied for the focal length of the camera, or '
        'why it does not count', lambda h: _focal(h.camera)),
    Key('jumps of the focal ratio', 'times',
        'that this factor changed from one depth image to the next',
        lambda h: h.camera.focal_jumps),
    Key('NaN share [%]', '%', 'of the pixels of depth/image, mean of the last 5 s',
        lambda h: 100 * h.camera.nan_shares.recent()),
    Key('stddev median [m]', 'm', 'standard deviation of depth, the median of an image, mean of '
        'the last 5 s; empty without a calibration', lambda h: h.camera.stddevs.recent()),
    Key('beyond max_stddev [%]', '%', 'of the patches that are not sure enough, and so NaN, mean '
        'of the last 5 s', lambda h: 100 * h.camera.gated_shares.recent()),
    Key('pixels beyond 16UC1', 'pixels', 'farther than 65.535 m, which depth_encoding: 16UC1 '
        'cannot hold: invalid in depth/image', lambda h: h.camera.beyond_encoding),
    Key('stretched to another aspect ratio', 'images', 'that the network saw distorted, since '
        "their shape is not the network's", lambda h: h.camera.stretched),
    Key('lost by the middleware', 'images', 'that it says were sent and never arrived',
        lambda h: h.counters.lost),
    Key('image topic', '', 'that is subscribed to, resolved', lambda h: h.camera.image_topic),
    Key('camera_info topic', '', 'likewise', lambda h: h.camera.info_topic),
)

ANCHOR = (
    Key('anchor', '', 'the parameter anchor'),
    Key('anchored', '', 'True while the scale rests on the sensor'),
    Key('anchor scale', '1', 'by what depth is multiplied'),
    Key('anchor log variance', '1', 'variance of the logarithm of the scale'),
    Key('anchor inlier share [%]', '%', "of the last message's points in the image that agree"),
    Key('anchor points', 'points', 'in the image, of the last message'),
    Key('anchor surroundings [%]', '%', 'by how much depth is corrected around the points, beside '
        'the scale: root mean square over the image'),
    Key('anchor inflation of stddev', '1', 'by what the standard deviation of depth is multiplied '
        'besides, where the scale is unsure'),
    Key('not anchored: …', 'images', 'whose points could not be followed, by cause'),
    Key('anchor refused: …', 'messages',
        'of the sensor or of tf that could not be read, by cause'),
)

SCENE = (
    Key('scene', '', 'the most probable one, or "uncertain"'),
    Key('scene: plain bins [%]', '%', 'part that bins have, since the scene is uncertain'),
    Key('scene: … [%]', '%', 'probability of each scene'),
)


class NodeHealth(NamedTuple):
    """What there is to tell of the whole node."""

    node: Node
    model: Model | None  # None if nothing is loaded
    state: str  # 'unconfigured', 'loading', 'inactive' or 'active'
    batch_sizes: Window
    configs: Sequence[Settings]  # in force
    findings: Sequence[Finding]  # what is wrong with the worker or the clock

    def status(self) -> DiagnosticStatus:
        """Likewise as a status; an ERROR while the weights are untrained."""
        estimator = None if self.model is None else self.model.estimator
        wrong = [(finding.level, finding.words) for finding in self.findings]
        if estimator is not None and not estimator.weights.trained:
            wrong.append((ERROR, UNTRAINED))
        values = _values(STATE, self)
        if self.model is not None:
            values['last error'] = self.model.last_error
        if self.model is not None and estimator is not None:
            values |= {**self.model.device_memory, **_values(MODEL, estimator),
                       **_values(BATCHES, self)}
        message = ', '.join(words for _, words in wrong) or (
            f'no model loaded ({self.state})' if estimator is None else self.state)
        return status(f'{node_name(self.node)}: model', max([OK, *(level for level, _ in wrong)]),
                       message, values, hardware_id=values.get('device', ''))


STATE = (
    Key('lifecycle state', '', 'unconfigured, loading, inactive or active', lambda n: n.state),
    Key('memory [MiB]', 'MiB', 'resident, of the whole process', lambda _: memory_mb()),
    Key('configuration sha256', '',
        'of all settings: two nodes with the same one compute and publish the same',
        lambda n: configuration_digest(n.configs)),
    Key('last error', '', 'what the model failed of last; empty: it never did'),
)

MODEL = (
    Key('device', '', 'on which the network runs', lambda e: e.device),
    Key('GPU memory [MiB]', 'MiB', 'that tensors hold; only on a GPU, as the next three'),
    Key('GPU memory reserved [MiB]', 'MiB', 'that torch holds'),
    Key('GPU memory free [MiB]', 'MiB', 'of the device, whoever else uses it'),
    Key('GPU memory total [MiB]', 'MiB', 'of the device'),
    Key('precision', '', 'number format of the network, as it was chosen', lambda e: e.precision),
    Key('precision because', '', 'why it was chosen; empty: it is what was asked for',
        lambda e: e.precision_because),
    Key('threads wait by', '', "settings of how OpenMP's threads wait, which matters on a busy "
        'machine; empty: its own', lambda _: waiting()),
    Key('engine', '', 'how the network runs, as it was chosen', lambda e: e.engine),
    Key('quantised on', '',
        'pictures of which the network in 8 bits was made; empty: not int8',
        lambda e: e.quantized_on),
    Key('weights', '', 'their name or file', lambda e: e.weights.name),
    Key('weights sha256', '', 'of their file', lambda e: e.weights.digest),
    Key('trained', '', 'False: the numbers are random, and depth is meaningless',
        lambda e: e.weights.trained),
    Key('calibration', '', 'on what depth is calibrated; empty: on nothing', lambda e: e.label),
    Key('calibration sha256', '', 'of its file',
        lambda e: '' if e.calibration is None else e.calibration.digest),
    Key('text cache hit', '', 'True: the features of the words came from the cache',
        lambda e: e.text_cache_hit),
    Key('backbone', '', "the parameter's", lambda e: e.config.backbone),
    Key('features', '', "the parameter's", lambda e: e.config.features),
    Key('input', 'px', "width x height of the network's input",
        lambda e: f'{e.config.input_width}x{e.config.input_height}'),
)

BATCHES = (
    Key('batch size p50', 'images',
        'that went through the network at once, median of the last 512',
        lambda n: n.batch_sizes.percentile(50)),
    Key('batch size max', 'images', 'likewise, the most', lambda n: n.batch_sizes.percentile(100)),
)

# What each table of the reference is headed, and its keys.
TABLES = {
    'Status "…: frames", one for each camera': FRAMES, 'With an anchor': ANCHOR,
    'With scenes': SCENE, 'Status "…: model"': (*STATE, *MODEL, *BATCHES)}


def camera_values(health: CameraHealth) -> dict[str, Any]:
    """Everything that is told of one camera, by key."""
    camera, times = health.camera, health.times
    values = _values(FRAMES, health)
    values |= {f'{stage} p50 [ms]': times.percentile(stage, 50)
               for stage in sorted(times.windows) if stage not in ('network', 'overhead')}
    values |= dict(health.counters.causes())
    if camera.anchor is not None:
        values |= camera.anchor.values()
    scene = camera.scene
    if scene is not None:
        values |= {'scene': scene.name or 'uncertain', 'scene: plain bins [%]': 100 * scene.plain}
        values |= {f'scene: {name} [%]': 100 * float(probability) for name, probability
                   in zip(scene.names, scene.probabilities, strict=True)}
    return values


def configuration_digest(configs: Sequence[Settings]) -> str:
    """SHA-256 of all settings: two nodes with the same one compute and publish the same."""
    values = [config.to_dict() for config in configs]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _values(keys: Iterable[Key], source: Any) -> dict[str, Any]:
    return {key.name: key.value(source) for key in keys if key.value is not None}


def _focal(camera: Camera) -> str:
    ratio, reason = camera.focal_ratio, camera.focal_reason
    if not reason:
        return f'{ratio:.3f}'
    return f'{"none" if ratio == 1.0 else format(ratio, ".3f")}: {reason}'


def node_name(node: Node) -> str:
    """Of the node, as its statuses begin."""
    return str(node.get_fully_qualified_name()).lstrip('/')


def status(
    name: str, level: bytes, message: str, values: dict[str, Any], hardware_id: str = '',
) -> DiagnosticStatus:
    """Make a status; numbers get two digits, and none where they are NaN."""
    return DiagnosticStatus(
        name=name, level=level, message=message, hardware_id=str(hardware_id),
        values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return '' if math.isnan(value) else f'{value:.2f}'
    return str(value)
