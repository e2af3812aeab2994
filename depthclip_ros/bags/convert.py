# SPDX-License-Identifier: Apache-2.0
"""Conversion of a bag to a new one with the depth of its images."""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
import shutil
import sqlite3
import time
from collections import deque
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from .. import __version__
from ..core.errors import BagError, DataError, first_of
from ..core.files import user_path
from ..drawing.color import png
from ..messages.anchors import TF, TF_STATIC, AnchorSensor, needs_transforms, unusual_scale
from ..messages.camera_context import CameraContext, predict
from ..messages.depth import depth_values
from ..messages.message_types import COMPRESSED_IMAGE, cause_of
from ..messages.outputs import OUTPUT_QUEUE, OUTPUTS
from ..sources.bag import (
    NANOSECONDS,
    TOPICS_KEY,
    Bag,
    checked_path,
    custom_data,
    language_depth_topics,
)
from ..sources.metadata import latched_history
from .conversion_options import COMPRESSED_DEPTH, Options, Report, anchor_topic, cameras_of
from .messages import create_message, deserialize, output_channel, serialize
from .writer import BagWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator
    from ..messages.camera_context import DecodedImage, DepthResult
    from ..sources.metadata import Channel
    from ..sources.storage import Message
    from .conversion_options import BagCamera

    Progress = Callable[[float, int], None]

PARTIAL = '.partial'  # suffix of the folder of an unfinished bag
_FINGERPRINT_KEY = 'depthclip_made_of'  # in the output's metadata
_BATCH_WINDOW = NANOSECONDS // 20  # between the images of several cameras in one batch
_MAX_FAILURES = 5  # of the network, in a row
_PROGRESS_PERIOD = 0.1  # seconds between two reports of progress


def convert(
    source: Path, output: Path, estimator: DepthEstimator | Callable[[], DepthEstimator],
    options: Options | None = None, *, resume: bool = False,
    progress: Progress | None = None, log: Callable[[str], None] | None = None,
) -> Report:
    """Write a bag that holds all messages of another one and the depth of its images.

    Args:
        source: bag folder, or a single .mcap or .db3 file.
        output: folder of the new bag; it gets that name when it is complete.
        estimator: the estimator, or a function that loads it before anything is written.
        options: topics, cameras, times and settings of the conversion.
        resume: replace the unfinished output of an earlier run.
        progress: called now and then with the fraction done and the number of depth images.
        log: called with sentences for the log.

    Raises:
        BagError: the source cannot be read, the output exists or cannot be written, the options
            do not fit the bag, or the network fails on every image.

    """
    start_time, options = time.perf_counter(), options or Options()
    output = _user_path(output)
    partial = output.with_name(output.name + PARTIAL)
    if output.exists() or output.is_symlink():
        raise BagError(f'{output} is there already, and not overwritten. Choose another place '
                       'with -o.')
    if foreign_files := sorted({path.name for path in partial.glob('*')} - {output.name}):
        raise BagError(f'{partial} holds {first_of(foreign_files)}, which is no unfinished bag. '
                       'Move it, or choose another place with -o.')
    if partial.exists() and not resume:
        raise BagError(f'{partial} is there: another run is at work there, or was stopped. If it '
                       'was stopped, make the bag again with --resume.')
    with Bag(source) as bag:
        conversion = _Conversion(bag, output, options, log or (lambda _: None))
        model = estimator() if callable(estimator) else estimator
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            conversion.run(partial / output.name, model, progress or (lambda *_: None))
            (partial / output.name).rename(output)
        except (OSError, sqlite3.Error) as error:
            raise BagError(f'{output} cannot be written: {error}. Make room, or whatever it '
                           'takes, or choose another place with -o, and run the same again.'
                           ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    conversion.report.seconds = time.perf_counter() - start_time
    return conversion.report


def is_done(source: Path, output: Path, config: DepthConfig, options: Options) -> bool:
    """Return whether the output exists, made of the same source with the same settings.

    Raises:
        BagError: it was made of another source or with other settings.

    """
    output = _user_path(output)
    if not output.exists():
        return False
    fingerprint = _fingerprint(checked_path(source), config, options)
    if custom_data(output).get(_FINGERPRINT_KEY) != fingerprint:
        raise BagError(f'{output} is there, and was made of another bag or with other settings. '
                       'Remove it, or choose another place with -o.')
    return True


def _fingerprint(source: Path, config: DepthConfig, options: Options) -> str:
    """Hash the source's files and all settings, but those of the machine."""
    files = sorted(source.rglob('*')) if source.is_dir() else [source]
    files_state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    settings = dataclasses.asdict(options)
    for machine in ('device', 'cache_dir', 'offline', 'num_threads'):
        del settings['node'][machine]
    text = json.dumps([files_state, config.to_dict(), settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _user_path(path: Path) -> Path:
    try:
        return user_path(path)
    except OSError as error:
        raise BagError(f'{path}: {error.strerror}.') from error


@dataclasses.dataclass(eq=False)
class _Camera:
    """A camera of the bag, and the state that its next image is predicted with."""

    plan: BagCamera
    context: CameraContext
    image_count: int = 0
    slot: int = -1  # period of `rate` of the last image


class _Conversion:
    """The conversion of one bag."""

    def __init__(
        self, bag: Bag, output: Path, options: Options, log: Callable[[str], None],
    ) -> None:
        """Choose the topics to read and to write, and read the bag once as a check."""
        self._bag, self._options, self._log = bag, options, log
        self._logged: set[str] = set()
        plans = cameras_of(bag.topics, options)
        self._depth_topics = language_depth_topics(bag)  # of an earlier run, or of the node
        sensor_topic = anchor_topic([
            topic for topic in bag.topics if topic.name not in self._depth_topics], plans, options)
        kinds = {topic.name: topic.type for topic in bag.topics}
        self.report = Report(str(bag.path), str(output), plans)
        sensor = AnchorSensor(
            options.node, sensor_topic, deserialize, kinds.get(sensor_topic, '')) \
            if options.node.anchor else None
        self._cameras = {plan.image: _Camera(plan, CameraContext(
            deserialize, options.node, sensor, kinds[plan.image])) for plan in plans}
        self._callbacks: dict[str, list[Callable[[bytes], None]]] = {}  # by topic
        for camera in self._cameras.values():
            self._callbacks.setdefault(camera.plan.camera_info, []).append(
                camera.context.on_camera_info)
            log(f'{camera.plan.label}Images from {camera.plan.image}, camera_info from '
                f'{camera.plan.camera_info or "nowhere: there will be no points"}.')
        if sensor is not None:
            self._callbacks.setdefault(sensor_topic, []).append(sensor.on_message)
            if needs_transforms(options.node):
                self._callbacks |= {TF: [sensor.on_transforms], TF_STATIC: [sensor.on_static]}
        self._begin = bag.begin + round(options.start * NANOSECONDS)
        seconds = (bag.end - bag.begin) / NANOSECONDS
        self._end = bag.begin + round(min(options.end, seconds) * NANOSECONDS)
        # Without limits the bag checks the number of messages that it reads.
        self._limits = (self._begin if options.start else None,
                        self._end if options.end < seconds else None)
        # The whole bag is read once, so that damage is noticed before hours of work.
        topics = {channel.topic for channel, _ in bag.records(None, *self._limits)}
        if topics.isdisjoint(self._cameras):
            raise BagError(f'{bag.path} holds no image of {", ".join(self._cameras)} in the time '
                           f'that is asked for: it is {seconds:.3f} s long.')
        self._batch: list[tuple[_Camera, Message, DecodedImage]] = []
        self._failures = 0

    def run(self, output: Path, estimator: DepthEstimator, progress: Progress) -> None:
        """Copy every message, and write the outputs of an image after it."""
        self._estimator, last_report = estimator, 0.0
        if 'depth/stddev' in self._options.outputs and estimator.calibration is None:
            self._log('There will be no depth/stddev: without a calibration nobody knows how '
                      "wrong depth is. Make one with 'depthclip calibrate'.")
        self._prepare()
        with self._writer(output) as self._target:
            self._add_topics()
            self._write_latched()
            for channel, message in self._bag.records(None, *self._limits):
                topic, data = channel.topic, message.data
                if self._batch and message.time - self._batch[0][1].time > _BATCH_WINDOW:
                    self._process_batch()
                self._write(channel, message)
                for callback in self._callbacks.get(topic, ()):
                    callback(data)
                if topic in self._cameras:
                    self._decode_image(self._cameras[topic], message)
                if time.monotonic() > last_report + _PROGRESS_PERIOD:
                    last_report = time.monotonic()
                    progress((message.time - self._begin) / (self._end - self._begin),
                             self.report.answered)
            self._process_batch()
            for channel in self._target.finish():
                self._log(f'metadata.yaml does not name {channel.topic} '
                          f"({channel.msgtype or 'of no type'}): 'ros2 bag' would refuse all of "
                          'the bag for it. Its '
                          f'{self.report.topics.get(channel.topic, 0)} messages are copied.')
        progress(1.0, self.report.answered)

    def _prepare(self) -> None:
        """Read the /tf_static and camera_info that are valid at the beginning.

        Of a camera_info that comes only later the first one is used, as if it were latched.
        """
        infos = {camera.plan.camera_info for camera in self._cameras.values()} - {''}
        missing = set(infos)
        for connection, moment, data in self._bag.messages(
                infos | {TF_STATIC} & set(self._callbacks)):
            if moment >= self._begin and not missing:
                break
            if moment < self._begin or connection.topic in missing:
                for callback in self._callbacks[connection.topic]:
                    callback(data)
            missing.discard(connection.topic)

    def _writer(self, output: Path) -> BagWriter:
        """Create the new bag, whose metadata name model, calibration and fingerprint."""
        estimator = self._estimator
        topics = {topic for plan in self.report.cameras for topic in plan.outputs.values()}
        return BagWriter(output, self._bag, {
            'depthclip_ros': __version__,
            'depthclip_weights': f'{estimator.weights.name} {estimator.weights.digest}',
            'depthclip_calibration': estimator.label,
            TOPICS_KEY: ' '.join(sorted(topics | self._depth_topics)),
            _FINGERPRINT_KEY: _fingerprint(self._bag.path, estimator.config, self._options)})

    def _add_topics(self) -> None:
        """Add the old topics with their descriptions, the new ones with those of the node."""
        self._new = {
            topic: output_channel(
                topic, OUTPUTS[relative][0] if relative in OUTPUTS else COMPRESSED_IMAGE,
                OUTPUT_QUEUE)
            for plan in self.report.cameras for relative, topic in plan.outputs.items()}
        for channel in (*self._bag.connections, *self._new.values()):
            self._target.add(channel)

    def _write_latched(self) -> None:
        """Write at the beginning the messages latched before it, but images, without depth."""
        histories = {topic: latched_history(topic, self._bag.offers(topic)) for topic in {
            channel.topic for channel in self._bag.counts} - self._cameras.keys()}
        latched: dict[str, deque[tuple[int, Channel, Message]]] = {
            topic: deque(maxlen=history) for topic, history in histories.items() if history != 0}
        earlier = self._bag.records(latched, None, self._begin) if self._limits[0] else ()
        for number, (channel, message) in enumerate(earlier):
            latched[channel.topic].append((number, channel, message))
        for _, channel, message in sorted(chain(*latched.values()), key=itemgetter(0)):
            self._write(channel, message._replace(time=self._begin))

    def _write(self, channel: Channel, message: Message) -> None:
        self._target.write(channel, message)
        _count(self.report.topics, channel.topic)

    # One image ----------------------------------------------------------------------------------

    def _decode_image(self, camera: _Camera, message: Message) -> None:
        """Decode an image if `rate` and `every` select it, and process a complete batch."""
        self.report.images += 1
        previous_slot, number = camera.slot, camera.image_count
        camera.image_count += 1
        camera.slot = int((message.time - self._begin) * self._options.rate // NANOSECONDS)
        if camera.slot == previous_slot if self._options.rate else number % self._options.every:
            self.report.left_out += 1
            return
        if any(waiting is camera for waiting, *_ in self._batch):
            self._process_batch()
        try:
            frame = camera.context.decode(message.data, self._estimator.config)
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            self._reject(camera, 'decoding', error)
            return
        self._batch.append((camera, message, frame))
        if len(self._batch) == len(self._cameras):
            self._process_batch()

    def _process_batch(self) -> None:
        """Predict and write the decoded images; if that fails, each alone."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        start = time.perf_counter()
        try:
            results = predict(self._estimator, [frame for *_, frame in batch])
        except Exception as error:
            for entry in batch if len(batch) > 1 else ():
                self._batch = [entry]
                self._process_batch()
            if len(batch) == 1:
                self._reject(batch[0][0], 'prediction', error)
                self._failures += not isinstance(error, DataError)
            if self._failures == _MAX_FAILURES:
                raise BagError(f'The network fails on every image: {type(error).__name__}: '
                               f'{error}') from error
            return
        finally:
            self.report.network_seconds += time.perf_counter() - start
        self._failures = 0
        for (camera, message, _), result in zip(batch, results, strict=True):
            try:
                messages = {topic: _serialize_output(relative, result)
                            for relative, topic in camera.plan.outputs.items()}
            except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
                self._reject(camera, 'publication', error)
                continue
            for topic, data in messages.items():
                if data is not None:
                    self._write(self._new[topic], message._replace(data=data, sequence=0))
            self._update_report(camera, result)

    def _update_report(self, camera: _Camera, result: DepthResult) -> None:
        """Count a predicted image, and log problems of its camera or anchor once."""
        self.report.answered += 1
        frame, outputs = result.image, camera.plan.outputs
        if COMPRESSED_DEPTH in outputs:
            self.report.beyond += depth_values(result.prediction.depth, '16UC1')[1]
        elif 'depth/image' in outputs:
            self.report.beyond += result.depth_pixels[1]
        problem, anchor = frame.camera_problem, camera.context.anchor
        for notice in frame.notices:
            self._log_once(f'{camera.plan.label}{notice.sentence}')
        if problem is not None:
            self._log_once(f'{camera.plan.label}{problem}')
            if frame.camera_model is None:
                _count(self.report.unprojected, camera.plan.label + problem.condition)
        if anchor is None:
            return
        if anchor.condition:
            self._log_once(f'{camera.plan.label}The anchor is not followed ({anchor.condition}): '
                           f'{anchor.reason}', camera.plan.label + anchor.condition)
        if anchor.filter.state.is_unusual:
            self._log_once(camera.plan.label + unusual_scale(
                self._options.node.anchor, anchor.filter.state), f'{camera.plan.label}unusual')

    def _reject(self, camera: _Camera, stage: str, error: Exception) -> None:
        cause = cause_of(error, stage)
        if not _count(self.report.rejected, camera.plan.label + cause):
            self._log(f'{camera.plan.label}Image rejected ({cause}): {error}')

    def _log_once(self, sentence: str, key: str = '') -> None:
        """Log a sentence, unless one of the same key was logged."""
        if (key or sentence) not in self._logged:
            self._logged.add(key or sentence)
            self._log(sentence)


def _count(counts: dict[str, int], key: str) -> int:
    """Increment a count, and return its previous value."""
    counts[key] = counts.get(key, 0) + 1
    return counts[key] - 1


def _serialize_output(relative: str, result: DepthResult) -> bytes | None:
    """Serialise an image's message for a new topic; None if there is none."""
    if relative == COMPRESSED_DEPTH:
        # As compressed_depth_image_transport makes it of 16UC1, whose header is not used.
        pixels, _ = depth_values(result.prediction.depth, '16UC1')
        message = create_message(COMPRESSED_IMAGE, header=result.image.header,
                                 format='16UC1; compressedDepth png',
                                 data=array.array('B', bytes(12) + png(pixels)))
    else:
        message = OUTPUTS[relative][1](create_message, result)
    return None if message is None else serialize(message)
