# SPDX-License-Identifier: Apache-2.0
"""A bag, and its images' depth beside them in another one: decode, predict, encode."""

from __future__ import annotations

import array
import dataclasses
import shutil
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from ..color import png
from ..core.errors import ConfigError, DataError
from ..node.anchors import TF, TF_STATIC, Sensors, needs_transforms
from ..node.frame import Stream, predict
from ..node.image_io import depth_values
from ..node.messages import COMPRESSED_IMAGE, IMAGE
from ..node.outputs import MESSAGES, OUTPUT_DEPTH, OUTPUTS
from ..sources.bag import NANOSECONDS, BagError, existing_path
from .messages import definition, make, output_qos, read, typestore, write
from .options import (
    COMPRESSED_DEPTH,
    COMPRESSIONS,
    Options,
    Progress,
    Report,
    TopicCount,
    anchor_topic,
    cameras_of,
)
from .source import Source
from .target import MADE_OF, begin, made_of, output_path, writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..core.estimator import DepthEstimator
    from ..node.frame import Frame
    from .options import BagCamera

_TOGETHER = NANOSECONDS // 20  # images of several cameras so near to each other are one batch
_MOST_FAILURES = 5  # of the network, one after the other
_PROGRESS = 0.1  # seconds between two reports of it
_DEPTH_FORMAT = '16UC1; compressedDepth png'
_DEPTH_HEADER = bytes(12)  # compressed_depth_image_transport's: of 16UC1 nothing in it counts


def convert(
    source: Path, output: Path, estimator: DepthEstimator | Callable[[], DepthEstimator],
    options: Options | None = None, *, resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> Report:
    """Write a bag that holds all of another one and its images' depth.

    Args:
        source: bag folder, or a lone .mcap or .db3 file.
        output: folder of the new bag; it gets that name when it is complete.
        estimator: what predicts, or what gives that; it is asked before anything is written.
        options: what to convert.
        resume: whether what an earlier run has left unfinished may be made again.
        progress: told now and then how far it is.
        log: told what is worth a line, in sentences.

    Raises:
        BagError: the source cannot be read, the output is there already or cannot be written, the
            options do not fit the bag, or the network fails on every image.

    """
    started = time.perf_counter()
    options, log = options or Options(), log or (lambda _: None)
    options.check()
    source, output = existing_path(source), output_path(output)
    partial = begin(output, resume=resume)
    try:
        with closing(Source(source, partial)) as bag:
            conversion = _Conversion(bag, output, options, log)
            loaded = estimator() if callable(estimator) else estimator
            conversion.run(partial / output.name, loaded, progress or (lambda _: None))
        (partial / output.name).rename(output)
    except (OSError, sqlite3.Error) as error:
        raise BagError(f'{output} cannot be written: {error}. Make room, or whatever it takes, '
                       'and run the same again.') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    conversion.report.seconds = time.perf_counter() - started
    return conversion.report


@dataclasses.dataclass(eq=False)
class _Camera:
    """A camera of the bag, and what its next image is answered with."""

    plan: BagCamera
    stream: Stream
    seen: int = 0
    slot: int = -1  # of the rate, in which an image had depth

    @property
    def label(self) -> str:
        """Begins a sentence about it."""
        return f'{self.plan.name}: ' if self.plan.name else ''


class _Taken(NamedTuple):
    """An image that waits to be answered."""

    camera: _Camera
    time: int
    frame: Frame


class _Conversion:
    """One bag, from the first message to the last."""

    def __init__(
        self, bag: Source, output: Path, options: Options, log: Callable[[str], None],
    ) -> None:
        """Find out what to read and what to write."""
        self._bag, self._options, self._log = bag, options, log
        self._said: set[str] = set()
        topics = bag.topics()
        cameras = cameras_of(topics, options)
        anchored = anchor_topic(topics, cameras, options)
        self.report = Report(str(bag.path), str(output), cameras, lost=bag.lost)
        for sentence in bag.lost:
            log(sentence)
        sensors = Sensors(options.node, anchored, read) if options.node.anchor else None
        self._cameras = [_Camera(camera, Stream(
            read, options.node, sensors,
            COMPRESSED_IMAGE if camera.image.endswith('/compressed') else IMAGE))
            for camera in cameras]
        self._images = {camera.plan.image: camera for camera in self._cameras}
        self._feeds: dict[str, list[Callable[[bytes], None]]] = {}
        for camera in self._cameras:
            self._feeds.setdefault(camera.plan.camera_info, []).append(camera.stream.on_info)
            log(f'{camera.label}Images from {camera.plan.image}, camera_info from '
                f'{camera.plan.camera_info or "nowhere: there will be no points"}.')
        if sensors is not None:
            self._feeds.setdefault(anchored, []).append(sensors.on_message)
            if needs_transforms(options.node):
                self._feeds |= {TF: [sensors.on_transforms], TF_STATIC: [sensors.on_static]}
        self._begin = bag.begin + round(options.start * NANOSECONDS)
        self._end = bag.end
        if options.end < (bag.end - bag.begin) / NANOSECONDS:
            self._end = bag.begin + round(options.end * NANOSECONDS)
        if self._end <= self._begin:
            raise BagError(f'{bag.path} holds no message in the time that is asked for: it is '
                           f'{(bag.end - bag.begin) / NANOSECONDS:.3f} s long.')
        self._storage = options.storage or bag.storage
        self._compression = self._choose_compression()
        self._batch: list[_Taken] = []
        self._failures = 0

    def _choose_compression(self) -> str:
        asked, possible = self._options.compression, COMPRESSIONS[self._storage]
        if asked and asked not in possible:
            raise ConfigError(f'compression: {asked} is none of {", ".join(possible)}, which '
                              f'{self._storage} has.')
        own = self._bag.compression if self._bag.compression in possible else 'none'
        return asked or own

    # From the first message to the last ---------------------------------------------------------

    def run(
        self, output: Path, estimator: DepthEstimator, progress: Callable[[Progress], None],
    ) -> None:
        """Copy every message; behind an image goes what is made of it."""
        self._estimator, told = estimator, 0.0
        if 'depth/stddev' in self._options.outputs and estimator.calibration is None:
            self._log('There will be no depth/stddev: without a calibration nobody knows how '
                      "wrong depth is. Make one with 'depthclip calibrate'.")
        self._prepare()
        about = {'depthclip_weights': f'{estimator.weights.name} {estimator.weights.digest}',
                 'depthclip_calibration': estimator.label,
                 MADE_OF: made_of(self._bag.path, estimator.config, self._options)}
        with writer(output, self._bag.version, self._storage, self._compression,
                    about) as self._target:
            self._add_topics()
            for connection, moment, data in self._bag.messages(self._begin, self._end):
                if self._batch and moment - self._batch[0].time > _TOGETHER:
                    self._answer()
                self._target.write(self._copies[id(connection)], moment, data)
                self.report.topics[connection.topic].copied += 1
                self._feed(connection.topic, data)
                if connection.topic in self._images:
                    self._take(self._images[connection.topic], moment, data)
                if time.monotonic() > told + _PROGRESS:
                    told = time.monotonic()
                    progress(self._progress(moment))
            self._answer()
        progress(self._progress(self._end))
        self._count_lost()

    def _add_topics(self) -> None:
        """The old ones as they were described, the new ones as the node's publishers would be."""
        counts, added = self.report.topics, dict[str, Any]()
        self._copies: dict[int, Any] = {}  # by the identity of the source's connections
        for connection in self._bag.connections:
            counts.setdefault(connection.topic, TopicCount(connection.msgtype))
            key = repr((connection.topic, connection.msgtype, connection.ext))
            if key not in added:  # the files of a bag repeat them
                text, digest = definition(connection)
                added[key] = self._target.add_connection(
                    connection.topic, connection.msgtype, msgdef=text, rihs01=digest,
                    serialization_format=connection.ext.serialization_format,
                    offered_qos_profiles=connection.ext.offered_qos_profiles)
            self._copies[id(connection)] = added[key]
        self._new: dict[str, Any] = {}
        for camera in self._cameras:
            for relative, topic in camera.plan.outputs.items():
                kind = OUTPUTS.get(relative, COMPRESSED_IMAGE)
                counts[topic] = TopicCount(kind)
                self._new[topic] = self._target.add_connection(
                    topic, kind, typestore=typestore(),
                    offered_qos_profiles=[output_qos(OUTPUT_DEPTH)])

    def _prepare(self) -> None:
        """Feed what counts at the beginning: all of /tf_static, and camera_info, from before.

        Where a camera_info comes later only, the first one counts, as if it were latched.
        """
        bag, begin = self._bag, self._begin
        infos = {camera.plan.camera_info for camera in self._cameras} - {''}
        for connection, _, data in bag.messages(
                bag.begin, begin, infos | {TF_STATIC} & set(self._feeds)):
            self._feed(connection.topic, data)
        missing = {camera.plan.camera_info for camera in self._cameras
                   if camera.stream.info is None} & infos
        for connection, _, data in bag.messages(begin, bag.end, missing):
            if connection.topic in missing:
                self._feed(connection.topic, data)
                missing.discard(connection.topic)
            if not missing:
                break

    def _feed(self, topic: str, data: bytes) -> None:
        for feed in self._feeds.get(topic, ()):
            feed(data)

    def _progress(self, moment: int) -> Progress:
        return Progress((moment - self._begin) / NANOSECONDS,
                        (self._end - self._begin) / NANOSECONDS, self.report.answered)

    def _count_lost(self) -> None:
        """Say what the bag announces and does not hold, where all of it was read."""
        if (self._begin, self._end) != (self._bag.begin, self._bag.end):
            return
        for topic in self._bag.topics():
            count = self.report.topics[topic.name]
            count.lost = max(0, topic.count - count.copied)

    # One image ----------------------------------------------------------------------------------

    def _take(self, camera: _Camera, moment: int, data: bytes) -> None:
        """Decode an image that is to have depth; answer it when nothing belongs to it."""
        self.report.images += 1
        if not self._is_chosen(camera, moment):
            self.report.left_out += 1
            return
        if any(taken.camera is camera for taken in self._batch):
            self._answer()
        try:
            frame = camera.stream.decode(data, self._estimator.config)
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            self._reject(camera, 'decoding', error)
            return
        self._batch.append(_Taken(camera, moment, frame))
        if len(self._batch) == len(self._cameras):
            self._answer()

    def _is_chosen(self, camera: _Camera, moment: int) -> bool:
        camera.seen += 1
        if not self._options.rate:
            return (camera.seen - 1) % self._options.every == 0
        before = camera.slot
        camera.slot = int((moment - self._begin) * self._options.rate // NANOSECONDS)
        return camera.slot != before

    def _answer(self) -> None:
        """Put the images that wait through the network; if that fails, each alone."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        start = time.perf_counter()
        try:
            predict(self._estimator, [taken.frame for taken in batch])
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            self._fail(batch, error)
            return
        finally:
            self.report.network_seconds += time.perf_counter() - start
        self._failures = 0
        for taken in batch:
            self._write(taken)

    def _fail(self, batch: list[_Taken], error: Exception) -> None:
        if len(batch) > 1:
            for taken in batch:
                self._batch = [taken]
                self._answer()
            return
        self._reject(batch[0].camera, 'prediction', error)
        if not isinstance(error, DataError):
            self._failures += 1
        if self._failures == _MOST_FAILURES:
            raise BagError(f'The network fails on every image: {type(error).__name__}: {error}'
                           ) from error

    def _write(self, taken: _Taken) -> None:
        """Write what an image is answered with, with the image's time."""
        camera, frame = taken.camera, taken.frame
        try:
            made = [(topic, write(message)) for topic, message in self._made(camera, frame)]
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            self._reject(camera, 'publication', error)
            return
        for topic, data in made:
            self._target.write(self._new[topic], taken.time, data)
            self.report.topics[topic].written += 1
        self.report.answered += 1
        if frame.problem is not None and frame.model is None:
            _count(self.report.unprojected, camera, frame.problem.condition)
            self._say_once(f'{camera.label}{frame.problem}')
        if frame.problem is not None and self._estimator.config.reference_focal:
            self._say_once(f'{camera.label}The focal length does not count (camera_info: '
                           f'{frame.problem.condition}).')
        anchor = camera.stream.anchor
        if anchor is not None and anchor.condition:
            self._say_once(f'{camera.label}The anchor is not followed ({anchor.condition}).')

    def _made(self, camera: _Camera, frame: Frame) -> Iterator[tuple[str, Any]]:
        """New messages of an image, by topic."""
        for relative, topic in camera.plan.outputs.items():
            message = _compressed_depth(frame) if relative == COMPRESSED_DEPTH \
                else MESSAGES[relative](make, frame)
            if message is not None:
                yield topic, message
        self.report.beyond += frame.beyond

    def _reject(self, camera: _Camera, stage: str, error: Exception) -> None:
        cause = error.condition if isinstance(error, DataError) \
            else f'{type(error).__name__} in {stage}'
        _count(self.report.rejected, camera, cause)
        self._say_once(f'{camera.label}{cause}',
                       f'{camera.label}Image rejected ({cause}): {error}')

    def _say_once(self, key: str, sentence: str = '') -> None:
        """Log a sentence, which may be its own key, unless that was told."""
        if key not in self._said:
            self._said.add(key)
            self._log(sentence or key)


def _compressed_depth(frame: Frame) -> Any:
    """Depth as a PNG of millimetres, as compressed_depth_image_transport makes it of 16UC1."""
    pixels, frame.beyond = depth_values(frame.prediction.depth, '16UC1')
    data = array.array('B', _DEPTH_HEADER + png(pixels))
    return make(COMPRESSED_IMAGE, header=frame.header, format=_DEPTH_FORMAT, data=data)


def _count(totals: dict[str, dict[str, int]], camera: _Camera, cause: str) -> None:
    causes = totals.setdefault(camera.plan.name, {})
    causes[cause] = causes.get(cause, 0) + 1
