# SPDX-License-Identifier: Apache-2.0
"""A bag, and its images' depth beside them in another one: decode, predict, encode."""

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
from ..color import png
from ..core.errors import BagError, DataError, first_of
from ..core.files import user_path
from ..messages.anchors import TF, TF_STATIC, Sensors, needs_transforms, unusual_scale
from ..messages.depth import depth_values
from ..messages.frame import Stream, predict
from ..messages.outputs import OUTPUT_DEPTH, OUTPUTS
from ..messages.types import COMPRESSED_IMAGE, cause_of
from ..sources.bag import (
    NANOSECONDS,
    TOPICS_KEY,
    Bag,
    checked_path,
    custom_data,
    language_depth_topics,
)
from ..sources.metadata import latched_history
from .messages import make, output_channel, read, write
from .options import COMPRESSED_DEPTH, Options, Report, anchor_topic, cameras_of
from .writer import BagWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator
    from ..messages.frame import Answer, Frame
    from ..sources.metadata import Channel
    from ..sources.storage import Message
    from .options import BagCamera

    Progress = Callable[[float, int], None]

PARTIAL = '.partial'  # behind the name of a bag that is being made
_MADE_OF = 'depthclip_made_of'  # in the output's metadata
_TOGETHER = NANOSECONDS // 20  # images of several cameras so near to each other are one batch
_MOST_FAILURES = 5  # of the network, one after the other
_PROGRESS = 0.1  # seconds between two reports of it


def convert(
    source: Path, output: Path, estimator: DepthEstimator | Callable[[], DepthEstimator],
    options: Options | None = None, *, resume: bool = False,
    progress: Progress | None = None, log: Callable[[str], None] | None = None,
) -> Report:
    """Write a bag that holds all of another one and its images' depth.

    Args:
        source: bag folder, or a lone .mcap or .db3 file.
        output: folder of the new bag; it gets that name when it is complete.
        estimator: what predicts, or what gives that; it is asked before anything is written.
        options: what to convert.
        resume: whether what an earlier run has left unfinished may be made again.
        progress: told now and then which share is done, and of how many images.
        log: told what is worth a line, in sentences.

    Raises:
        BagError: the source cannot be read, the output is there already or cannot be written, the
            options do not fit the bag, or the network fails on every image.

    """
    started, options = time.perf_counter(), options or Options()
    output = _user_path(output)
    partial = output.with_name(output.name + PARTIAL)
    if output.exists() or output.is_symlink():
        raise BagError(f'{output} is there already, and not overwritten. Choose another place '
                       'with -o.')
    if others := sorted({path.name for path in partial.glob('*')} - {output.name}):
        raise BagError(f'{partial} holds {first_of(others)}, which is no unfinished bag. Move it, '
                       'or choose another place with -o.')
    if partial.exists() and not resume:
        raise BagError(f'{partial} is there: another run is at work there, or was stopped. If it '
                       'was stopped, make the bag again with --resume.')
    with Bag(source) as bag:
        conversion = _Conversion(bag, output, options, log or (lambda _: None))
        loaded = estimator() if callable(estimator) else estimator
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            conversion.run(partial / output.name, loaded, progress or (lambda *_: None))
            (partial / output.name).rename(output)
        except (OSError, sqlite3.Error) as error:
            raise BagError(f'{output} cannot be written: {error}. Make room, or whatever it '
                           'takes, or choose another place with -o, and run the same again.'
                           ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    conversion.report.seconds = time.perf_counter() - started
    return conversion.report


def is_done(source: Path, output: Path, config: DepthConfig, options: Options) -> bool:
    """Whether the output is there, of the very source that is there now and the same settings.

    Raises:
        BagError: something else is there.

    """
    output = _user_path(output)
    if not output.exists():
        return False
    if custom_data(output).get(_MADE_OF) != _made_of(checked_path(source), config, options):
        raise BagError(f'{output} is there, and was made of another bag or with other settings. '
                       'Remove it, or choose another place with -o.')
    return True


def _made_of(source: Path, config: DepthConfig, options: Options) -> str:
    """Hash of what a converted bag follows from; the machine may be another one."""
    files = sorted(source.rglob('*')) if source.is_dir() else [source]
    about = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    asked = dataclasses.asdict(options)
    for machine in ('device', 'cache_dir', 'offline', 'num_threads'):
        del asked['node'][machine]
    text = json.dumps([about, config.to_dict(), asked], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _user_path(path: Path) -> Path:
    try:
        return user_path(path)
    except OSError as error:
        raise BagError(f'{path}: {error.strerror}.') from error


@dataclasses.dataclass(eq=False)
class _Camera:
    """A camera of the bag, and what its next image is answered with."""

    plan: BagCamera
    stream: Stream
    seen: int = 0
    slot: int = -1  # of the rate, in which an image had depth


class _Conversion:
    """One bag, from the first message to the last."""

    def __init__(
        self, bag: Bag, output: Path, options: Options, log: Callable[[str], None],
    ) -> None:
        """Find out what to read and what to write."""
        self._bag, self._options, self._log = bag, options, log
        self._said: set[str] = set()
        plans = cameras_of(bag.topics, options)
        self._written = language_depth_topics(bag)  # by an earlier run, or the node
        anchored = anchor_topic(
            [topic for topic in bag.topics if topic.name not in self._written], plans, options)
        kinds = {topic.name: topic.type for topic in bag.topics}
        self.report = Report(str(bag.path), str(output), plans)
        sensors = Sensors(options.node, anchored, read, kinds.get(anchored, '')) \
            if options.node.anchor else None
        self._cameras = {plan.image: _Camera(plan, Stream(
            read, options.node, sensors, kinds[plan.image])) for plan in plans}
        self._feeds: dict[str, list[Callable[[bytes], None]]] = {}  # by topic
        for camera in self._cameras.values():
            self._feeds.setdefault(camera.plan.camera_info, []).append(camera.stream.on_info)
            log(f'{camera.plan.label}Images from {camera.plan.image}, camera_info from '
                f'{camera.plan.camera_info or "nowhere: there will be no points"}.')
        if sensors is not None:
            self._feeds.setdefault(anchored, []).append(sensors.on_message)
            if needs_transforms(options.node):
                self._feeds |= {TF: [sensors.on_transforms], TF_STATIC: [sensors.on_static]}
        self._begin = bag.begin + round(options.start * NANOSECONDS)
        seconds = (bag.end - bag.begin) / NANOSECONDS
        self._end = bag.begin + round(min(options.end, seconds) * NANOSECONDS)
        # Without limits the bag checks that it gives all that it counts.
        self._limits = (self._begin if options.start else None,
                        self._end if options.end < seconds else None)
        # All is read once, so that damage is found before a model is loaded, and hours of work.
        topics = {channel.topic for channel, _ in bag.records(None, *self._limits)}
        if topics.isdisjoint(self._cameras):
            raise BagError(f'{bag.path} holds no image of {", ".join(self._cameras)} in the time '
                           f'that is asked for: it is {seconds:.3f} s long.')
        self._batch: list[tuple[_Camera, Message, Frame]] = []  # images that wait for an answer
        self._failures = 0

    def run(self, output: Path, estimator: DepthEstimator, progress: Progress) -> None:
        """Copy every message; behind an image goes what is made of it."""
        self._estimator, told = estimator, 0.0
        if 'depth/stddev' in self._options.outputs and estimator.calibration is None:
            self._log('There will be no depth/stddev: without a calibration nobody knows how '
                      "wrong depth is. Make one with 'depthclip calibrate'.")
        self._prepare()
        with self._writer(output) as self._target:
            self._add_topics()
            self._write_latched()
            for channel, message in self._bag.records(None, *self._limits):
                topic, data = channel.topic, message.data
                if self._batch and message.time - self._batch[0][1].time > _TOGETHER:
                    self._answer()
                self._write(channel, message)
                for feed in self._feeds.get(topic, ()):
                    feed(data)
                if topic in self._cameras:
                    self._take(self._cameras[topic], message)
                if time.monotonic() > told + _PROGRESS:
                    told = time.monotonic()
                    progress((message.time - self._begin) / (self._end - self._begin),
                             self.report.answered)
            self._answer()
            for channel in self._target.finish():
                self._log(f'metadata.yaml does not name {channel.topic} '
                          f"({channel.msgtype or 'of no type'}): 'ros2 bag' would refuse all of "
                          'the bag for it. Its '
                          f'{self.report.topics.get(channel.topic, 0)} messages are copied.')
        progress(1.0, self.report.answered)

    def _prepare(self) -> None:
        """Feed what counts at the beginning: all of /tf_static, and camera_info, from before.

        Where a camera_info comes later only, the first one counts, as if it were latched.
        """
        infos = {camera.plan.camera_info for camera in self._cameras.values()} - {''}
        missing = set(infos)
        for connection, moment, data in self._bag.messages(
                infos | {TF_STATIC} & set(self._feeds)):
            if moment >= self._begin and not missing:
                break
            if moment < self._begin or connection.topic in missing:
                for feed in self._feeds[connection.topic]:
                    feed(data)
            missing.discard(connection.topic)

    def _writer(self, output: Path) -> BagWriter:
        """The new bag, to be opened by `with`, with what it was made of."""
        estimator = self._estimator
        topics = {topic for plan in self.report.cameras for topic in plan.outputs.values()}
        return BagWriter(output, self._bag, {
            'depthclip_ros': __version__,
            'depthclip_weights': f'{estimator.weights.name} {estimator.weights.digest}',
            'depthclip_calibration': estimator.label,
            TOPICS_KEY: ' '.join(sorted(topics | self._written)),
            _MADE_OF: _made_of(self._bag.path, estimator.config, self._options)})

    def _add_topics(self) -> None:
        """The old ones as they were described, the new ones as the node's publishers would be."""
        self._new = {
            topic: output_channel(
                topic, OUTPUTS[relative][0] if relative in OUTPUTS else COMPRESSED_IMAGE,
                OUTPUT_DEPTH)
            for plan in self.report.cameras for relative, topic in plan.outputs.items()}
        for channel in (*self._bag.connections, *self._new.values()):
            self._target.add(channel)

    def _write_latched(self) -> None:
        """Write at the beginning what was latched before it, but images, which had no depth."""
        histories = {topic: latched_history(topic, self._bag.offers(topic)) for topic in {
            channel.topic for channel in self._bag.counts} - self._cameras.keys()}
        kept: dict[str, deque[tuple[int, Channel, Message]]] = {
            topic: deque(maxlen=history) for topic, history in histories.items() if history != 0}
        before = self._bag.records(kept, None, self._begin) if self._limits[0] else ()
        for number, (channel, message) in enumerate(before):
            kept[channel.topic].append((number, channel, message))
        for _, channel, message in sorted(chain(*kept.values()), key=itemgetter(0)):
            self._write(channel, message._replace(time=self._begin))

    def _write(self, channel: Channel, message: Message) -> None:
        self._target.write(channel, message)
        _count(self.report.topics, channel.topic)

    # One image ----------------------------------------------------------------------------------

    def _take(self, camera: _Camera, message: Message) -> None:
        """Decode an image that is to have depth; answer it when nothing belongs to it."""
        self.report.images += 1
        before, number = camera.slot, camera.seen
        camera.seen += 1
        camera.slot = int((message.time - self._begin) * self._options.rate // NANOSECONDS)
        if camera.slot == before if self._options.rate else number % self._options.every:
            self.report.left_out += 1
            return
        if any(other is camera for other, *_ in self._batch):
            self._answer()
        try:
            frame = camera.stream.decode(message.data, self._estimator.config)
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            self._reject(camera, 'decoding', error)
            return
        self._batch.append((camera, message, frame))
        if len(self._batch) == len(self._cameras):
            self._answer()

    def _answer(self) -> None:
        """Put the images that wait through the network, and write; if that fails, each alone."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        start = time.perf_counter()
        try:
            answers = predict(self._estimator, [frame for *_, frame in batch])
        except Exception as error:
            for entry in batch if len(batch) > 1 else ():
                self._batch = [entry]
                self._answer()
            if len(batch) == 1:
                self._reject(batch[0][0], 'prediction', error)
                self._failures += not isinstance(error, DataError)
            if self._failures == _MOST_FAILURES:
                raise BagError(f'The network fails on every image: {type(error).__name__}: '
                               f'{error}') from error
            return
        finally:
            self.report.network_seconds += time.perf_counter() - start
        self._failures = 0
        for (camera, message, _), answer in zip(batch, answers, strict=True):
            try:
                made = {topic: _message(relative, answer)
                        for relative, topic in camera.plan.outputs.items()}
            except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
                self._reject(camera, 'publication', error)
                continue
            for topic, data in made.items():
                if data is not None:
                    self._write(self._new[topic], message._replace(data=data, sequence=0))
            self._account(camera, answer)

    def _account(self, camera: _Camera, answer: Answer) -> None:
        """Count an image that is answered, and say what is wrong with its camera or anchor."""
        self.report.answered += 1
        frame, outputs = answer.frame, camera.plan.outputs
        if COMPRESSED_DEPTH in outputs:
            self.report.beyond += depth_values(answer.prediction.depth, '16UC1')[1]
        elif 'depth/image' in outputs:
            self.report.beyond += answer.pixels[1]
        problem, anchor = frame.problem, camera.stream.anchor
        for notice in frame.notices:
            self._say_once(f'{camera.plan.label}{notice.sentence}')
        if problem is not None:
            self._say_once(f'{camera.plan.label}{problem}')
            if frame.model is None:
                _count(self.report.unprojected, camera.plan.label + problem.condition)
        if anchor is None:
            return
        if anchor.condition:
            self._say_once(f'{camera.plan.label}The anchor is not followed ({anchor.condition}): '
                           f'{anchor.reason}', camera.plan.label + anchor.condition)
        if anchor.filter.state.unusual:
            self._say_once(camera.plan.label + unusual_scale(
                self._options.node.anchor, anchor.filter.state), f'{camera.plan.label}unusual')

    def _reject(self, camera: _Camera, stage: str, error: Exception) -> None:
        cause = cause_of(error, stage)
        if not _count(self.report.rejected, camera.plan.label + cause):
            self._log(f'{camera.plan.label}Image rejected ({cause}): {error}')

    def _say_once(self, sentence: str, kind: str = '') -> None:
        """Say it, of several sentences of one kind the first."""
        if (kind or sentence) not in self._said:
            self._said.add(kind or sentence)
            self._log(sentence)


def _count(counts: dict[str, int], key: str) -> int:
    """Count, and give what was counted before."""
    counts[key] = counts.get(key, 0) + 1
    return counts[key] - 1


def _message(relative: str, answer: Answer) -> bytes | None:
    """What is written of an image on a new topic; None for nothing."""
    if relative == COMPRESSED_DEPTH:
        # As compressed_depth_image_transport makes it of 16UC1: nothing in its header counts.
        pixels, _ = depth_values(answer.prediction.depth, '16UC1')
        message = make(COMPRESSED_IMAGE, header=answer.frame.header,
                       format='16UC1; compressedDepth png',
                       data=array.array('B', bytes(12) + png(pixels)))
    else:
        message = OUTPUTS[relative][1](make, answer)
    return None if message is None else write(message)
