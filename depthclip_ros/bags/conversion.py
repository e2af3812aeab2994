# SPDX-License-Identifier: Apache-2.0
"""A bag, and its images' depth beside them in another one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import yaml
import zstandard

from .. import __version__
from ..core.errors import ConfigError
from ..core.files import user_path
from ..node.anchors import Sensors, needs_transforms
from ..node.messages import COMPRESSED_IMAGE
from ..node.outputs import OUTPUTS
from ..sources.bag import NANOSECONDS, BagError, metadata_of
from .ahead import Behind, ahead
from .cameras import COMPRESSED_DEPTH, anchor_topic, cameras_of
from .journal import Workplace, check_free
from .messages import RosbagsMessages
from .options import Options, Progress, Report, TopicCount
from .source import BY_MESSAGE, METADATA, SUFFIXES_OF_FILES, Source
from .streams import Answering, BagStream
from .target import COMPRESSIONS, Part, PartWriter, metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator
    from ..node.config import NodeConfig
    from .records import Record, Topic
    from .streams import Account

TF, TF_STATIC = '/tf', '/tf_static'
SUFFIXES = {'mcap': '.mcap', 'sqlite3': '.db3'}
_TOGETHER = NANOSECONDS // 20  # images of several cameras so near to each other are one batch
_LOOK_BACK = 10 * NANOSECONDS  # at a time, for the camera_info that counts at a window's begin
_PROGRESS = 0.1  # seconds between two reports of it


def convert(
    source: Path, output: Path, estimator: DepthEstimator | Callable[[], DepthEstimator],
    options: Options | None = None, *, resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> Report:
    """Write a bag that holds all of another one and its images' depth.

    Every image goes through the node's own pipeline (`depthclip_ros.node.pipeline`), as in a node
    that has the time to answer each one.

    Args:
        source: bag folder, or a lone .mcap or .db3 file; see docs/bags.md for damaged ones.
        output: folder of the new bag; it gets that name when it is complete.
        estimator: what predicts, or what gives that; it is asked before anything is written.
        options: what to convert.
        resume: go on where an earlier run with the same arguments was stopped; the result is the
            same to the byte.
        progress: told now and then how far it is.
        log: told what is worth a line, in sentences.

    Raises:
        BagError: the source cannot be read, the output is there already, or the options do not
            fit the bag.

    """
    started = time.perf_counter()
    options, log = options or Options(), log or (lambda _: None)
    source, output = _path(source), _path(output)
    check_free(output)
    with closing(Source(source)) as bag:
        plan = _Plan(bag, options)
        for sentence in (*bag.losses(), *plan.notes):
            log(sentence)
        if callable(estimator):
            estimator = estimator()
        plan.check(estimator.config)
        place = Workplace(output, plan.identity(estimator), resume=resume)
        with closing(place):
            run = _Run(plan, place, estimator, progress, log)
            try:
                run.convert()
                report = run.report()
                place.complete(metadata(
                    plan.topics, [Part(**entry['part']) for entry in place.done],
                    storage=plan.storage, compression=plan.compression, version=bag.version,
                    custom=_custom(estimator, options)))
            except (OSError, sqlite3.Error) as error:
                raise BagError(f'{output} cannot be written: {error}. Make room, or whatever it '
                               'takes, and go on with --resume.') from error
    report.seconds = time.perf_counter() - started
    return report


def windows(source: Path, options: Options, count: int) -> list[tuple[int, int]]:
    """Cut a bag into windows of time, each of which can be converted by itself.

    The converted windows, joined, are the same to the byte as the bag converted as a whole.

    Args:
        source: as of `convert`.
        options: of the conversion; `window` is not used.
        count: most windows to cut it into.

    Returns:
        Windows for `Options.window`, in order. Where depth depends on the images before (an
        anchor, scenes with a memory), `convert` refuses more than a single one.

    Raises:
        BagError: the source cannot be read.

    """
    with closing(Source(_path(source))) as bag:
        plan = _Plan(bag, dataclasses.replace(options, window=None))
        if bag.end <= bag.begin:
            return []
        begins = [begin for begin in bag.begins() if plan.begin <= begin < plan.end]
        if len(begins) < 2 * count:  # of few blocks nothing is known but their times
            begins = [plan.begin + (plan.end - plan.begin) * i // count for i in range(count)]
        cuts = {plan.boundary(plan.part_of(begins[len(begins) * i // count]))
                for i in range(1, count)}
        edges = [bag.begin, *sorted(cut for cut in cuts if plan.begin < cut < plan.end), bag.end]
        return list(pairwise(edges))


def join(reports: Sequence[Report], output: Path) -> Report:
    """Put the files of converted windows, in their order, into one bag.

    The windows' bags stay as they are; their files are linked where the disk allows it.

    Args:
        reports: of all windows of one bag, in order.
        output: folder of the new bag.

    Raises:
        BagError: they are not of one source and the same options, or the output is there already.

    """
    output = _path(output)
    check_free(output)
    folders = [Path(report.output) for report in reports]
    described = [metadata_of(folder / METADATA) for folder in folders]
    first = described[0]
    for folder, other in zip(folders, described, strict=True):
        if _kind(other) != _kind(first):
            raise BagError(f'{folder} is not of the same conversion as {folders[0]}.')
    place = Workplace(output, {'joined': [str(folder) for folder in folders]}, resume=False)
    with closing(place):
        names: list[str] = []
        for folder, information in zip(folders, described, strict=True):
            for entry in information['files']:
                names.append(_part_name(output, len(names), _suffix(entry['path'])))
                _link(folder / entry['path'], place.folder / names[-1])
                place.note({'part': {'name': names[-1]}})
        place.complete(yaml.safe_dump(
            {'rosbag2_bagfile_information': _joined(described, names)},
            sort_keys=False, allow_unicode=True).encode())
    return _merged(reports, output)


def is_continuous(config: DepthConfig, node: NodeConfig) -> bool:
    """Whether the depth of an image depends on the images before it."""
    return bool(node.anchor) or (any(config.scenes) and config.scene_memory > 0)


class _Chosen(NamedTuple):
    """Which images of a camera get depth."""

    every: int
    rate: float
    begin: int

    def slot(self, moment: int) -> int:
        return int((moment - self.begin) * self.rate // NANOSECONDS)


class _Plan:
    """What to read, and what to write, before anything is written."""

    def __init__(self, bag: Source, options: Options) -> None:
        self.bag, self.options = bag, options
        self.messages = RosbagsMessages()
        listed = bag.listed()
        self.cameras, self.notes = cameras_of(listed, options)
        self.anchor = anchor_topic(listed, self.cameras, options)
        self.storage = options.storage or bag.storage
        self._choose_compression()
        self._check_numbers()
        self.old = list(bag.topics)
        new = {camera.outputs[relative]: _type_of(relative)
               for camera in self.cameras for relative in camera.outputs}
        self.topics = [bag.described[topic] for topic in self.old] + [
            self.messages.topic(name, kind, bag.version) for name, kind in new.items()]
        self.begin, self.end = self._range()

    def _choose_compression(self) -> None:
        if self.storage not in COMPRESSIONS:
            raise ConfigError(f'storage: {self.storage} is neither mcap nor sqlite3.')
        possible, asked = COMPRESSIONS[self.storage], self.options.compression
        if asked and asked not in possible:
            raise ConfigError(f'compression: {asked} is none of {", ".join(possible)}, which '
                              f'{self.storage} has.')
        own = self.bag.compression if self.bag.compression in possible else 'none'
        self.compression = asked or own

    def _check_numbers(self) -> None:
        given = self.options
        if given.rate and given.every > 1:
            raise ConfigError('rate and every: choose one of them.')
        if given.every < 1 or given.rate < 0 or not 0.1 <= given.part_seconds <= 86400:
            raise ConfigError('every is at least 1, rate not negative, part_seconds 0.1 to 86400.')
        if not 0 <= given.start < given.end:
            raise ConfigError(f'start {given.start:g} s and end {given.end:g} s leave nothing.')

    def _range(self) -> tuple[int, int]:
        """Times of the bag that are converted."""
        bag, options = self.bag, self.options
        begin = bag.begin + round(options.start * NANOSECONDS)
        end = bag.end
        if options.end < (bag.end - bag.begin) / NANOSECONDS:
            end = bag.begin + round(options.end * NANOSECONDS)
        if options.window is not None:
            first, last = options.window
            for edge in options.window:
                if edge < bag.end and self.boundary(self.part_of(edge)) != edge:
                    raise ConfigError(f'window: {edge} is not between two files of the output; '
                                      'windows() gives times that are.')
            begin, end = max(begin, first), min(end, last)
        elif end <= begin:
            raise BagError(f'{bag.path} holds no message in the time that is asked for: it is '
                           f'{max(0, bag.end - bag.begin) / NANOSECONDS:.3f} s long.')
        return begin, max(begin, end)

    def part_of(self, moment: int) -> int:
        """Number of the file in which a message of that time is."""
        return (moment - self.bag.begin) // self._part

    def boundary(self, part: int) -> int:
        """Time with which a file begins."""
        return self.bag.begin + part * self._part

    @property
    def _part(self) -> int:
        return round(self.options.part_seconds * NANOSECONDS)

    def check(self, config: DepthConfig) -> None:
        """Refuse a window of what cannot be cut.

        Raises:
            BagError: it is.

        """
        whole = (self.bag.begin, self.bag.end)
        if self.options.window not in (None, whole) and is_continuous(config, self.options.node):
            raise BagError('With an anchor, or with scenes that have a memory, depth depends on '
                           'the images before: such a bag cannot be cut into windows.')

    def identity(self, estimator: DepthEstimator) -> dict[str, Any]:
        """All that the output's bytes follow from."""
        return {
            'source': str(self.bag.path.absolute()), 'files': self.bag.sizes(),
            'options': dataclasses.asdict(self.options), 'settings': estimator.config.to_dict(),
            'weights': estimator.weights.digest, 'device': str(estimator.device),
            'precision': estimator.precision, 'threads': torch.get_num_threads(),
            'versions': [__version__, torch.__version__, *sys.version_info[:2]]}


class _Run:
    """One conversion, from the first message to the last."""

    def __init__(
        self, plan: _Plan, place: Workplace, estimator: DepthEstimator,
        progress: Callable[[Progress], None] | None, log: Callable[[str], None],
    ) -> None:
        self._plan, self._place, self._log = plan, place, log
        self._progress, self._told = progress, 0.0
        self._answering = Answering(estimator, log)
        self._beside = (estimator.device.type != 'cpu'
                        or torch.get_num_threads() < (os.cpu_count() or 1))
        self._continuous = is_continuous(estimator.config, plan.options.node)
        sensors = None
        if plan.options.node.anchor:
            sensors = Sensors(plan.options.node, plan.messages, plan.anchor)
        self._sensors = sensors
        self._streams = [BagStream(camera, plan.options, plan.messages, sensors)
                         for camera in plan.cameras]
        self._numbers = {topic: number for number, topic in enumerate(plan.old)}
        self._new = {topic.name: number for number, topic in enumerate(plan.topics)
                     if number >= len(plan.old)}
        self._images = self._role({camera.image: stream for camera, stream in zip(
            plan.cameras, self._streams, strict=True)})
        self._infos = self._role({camera.camera_info: stream for camera, stream in zip(
            plan.cameras, self._streams, strict=True) if camera.camera_info})
        self._feeds = self._anchor_feeds()
        self._chosen = _Chosen(plan.options.every, plan.options.rate, plan.bag.begin)
        self._seen: Counter[BagStream] = Counter()
        self._slots: dict[BagStream, int] = {}
        self._writer: PartWriter | None = None
        self._held: list[tuple[Record, BagStream | None]] = []
        self._batch: list[tuple[BagStream, bytes]] = []
        self._batch_begin = 0
        self._part = -1
        self._account: dict[str, Any] = {}
        self._before: list[Account] = []
        self._earlier = 0 if self._continuous else sum(
            entry['answered'] for entry in place.done)
        self._files = len(place.done)

    def _role(self, streams: dict[str, BagStream]) -> dict[Topic, BagStream]:
        return {topic: streams[topic.name] for topic in self._plan.old if topic.name in streams}

    def _anchor_feeds(self) -> dict[Topic, Callable[[bytes], None]]:
        if self._sensors is None:
            return {}
        feeds = {self._plan.anchor: self._sensors.on_message}
        if needs_transforms(self._plan.options.node):
            feeds |= {TF: self._sensors.on_transforms, TF_STATIC: self._sensors.on_static}
        return {topic: feeds[topic.name] for topic in self._plan.old if topic.name in feeds}

    # From the first message to the last ---------------------------------------------------------

    def convert(self) -> None:
        """Read, answer and write."""
        plan, done = self._plan, self._place.done
        skipped = done[-1]['index'] if done else -1  # the last file that is complete already
        begin = plan.begin
        if skipped >= 0 and not self._continuous:
            begin = max(begin, plan.boundary(skipped + 1))
        self._prepare(begin)
        records = plan.bag.messages(begin, plan.end)
        with ExitStack() as stack:
            if self._beside:
                records = stack.enter_context(closing(ahead(
                    records, lambda record: len(record.data))))
            self._out = stack.enter_context(Behind(beside=self._beside))
            for record in records:
                part = plan.part_of(record.time)
                if part != self._part:
                    self._end_part()
                    self._begin_part(part, is_done=part <= skipped)
                self._take(record)
                self._tell(record.time)
            self._end_part()
        self._tell(plan.end, last=True)

    def _prepare(self, begin: int) -> None:
        """What the messages before the first one have told."""
        bag = self._plan.bag
        missing = set(self._infos.values())
        wanted = frozenset(self._infos)
        end = begin
        while missing and end > bag.begin:
            start = max(bag.begin, end - _LOOK_BACK)
            for stream, raw in self._last_infos(start, end, wanted).items():
                if stream in missing:
                    stream.calibration.update(raw)
                    missing.discard(stream)
            end = start
        if missing:  # as a latched one is there from the beginning
            for record in bag.messages(begin, bag.end, wanted):
                stream = self._infos[record.topic]
                if stream in missing:
                    stream.calibration.update(self._content(record))
                    missing.discard(stream)
                if not missing:
                    break
        fixed = {topic: feed for topic, feed in self._feeds.items() if topic.name == TF_STATIC}
        if fixed and begin > bag.begin:
            for record in bag.messages(bag.begin, begin, frozenset(fixed)):
                fixed[record.topic](self._content(record))
        self._count_before(begin)

    def _last_infos(
        self, begin: int, end: int, wanted: frozenset[Topic],
    ) -> dict[BagStream, bytes]:
        return {self._infos[record.topic]: self._content(record)
                for record in self._plan.bag.messages(begin, end, wanted)}

    def _count_before(self, begin: int) -> None:
        """Images before the first one count for which ones are chosen."""
        bag, rate = self._plan.bag, self._chosen.rate
        start = bag.begin
        if self._chosen.every == 1:
            if not rate:
                return
            start = max(start, begin - round(2 * NANOSECONDS / rate))
        for record in bag.messages(start, begin, frozenset(self._images)):
            self._is_chosen(self._images[record.topic], record.time)

    def _is_chosen(self, stream: BagStream, moment: int) -> bool:
        chosen = self._seen[stream] % self._chosen.every == 0
        self._seen[stream] += 1
        if self._chosen.rate:
            slot = self._chosen.slot(moment)
            chosen = slot != self._slots.get(stream)
            self._slots[stream] = slot
        return chosen

    def _content(self, record: Record) -> bytes:
        try:
            return self._plan.bag.content(record)
        except ValueError:
            return b''  # which no message is

    # One message ---------------------------------------------------------------------------------

    def _take(self, record: Record) -> None:
        topic = record.topic
        stream = self._images.get(topic)
        if self._batch and record.time - self._batch_begin > _TOGETHER:
            self._answer()
        if stream is None:
            if topic in self._infos:
                self._infos[topic].calibration.update(self._content(record))
            elif topic in self._feeds:
                self._feeds[topic](self._content(record))
            self._hold(record, None)
            return
        self._account['images'] += 1
        if not self._is_chosen(stream, record.time):
            self._account['left_out'] += 1
            self._hold(record, None)
            return
        if any(other is stream for other, _ in self._batch):
            self._answer()
        if not self._batch:
            self._batch_begin = record.time
        self._batch.append((stream, self._content(record)))
        self._hold(record, stream)
        if len(self._batch) == len(self._streams):
            self._answer()

    def _hold(self, record: Record, stream: BagStream | None) -> None:
        """Keep a message until the images before it are answered."""
        self._held.append((record, stream))
        if not self._batch:
            self._write_held()

    def _answer(self) -> None:
        if self._batch:
            self._answering.answer(self._batch)
            self._batch.clear()
        self._write_held()

    def _write_held(self) -> None:
        """Write what was held back, and behind every image what was made of it."""
        if self._writer is not None:
            for record, stream in self._held:
                self._out.do(self._copy, self._writer, record)
                for topic, make in stream.sink.take() if stream is not None else ():
                    self._out.do(self._add, self._writer, self._new[topic], record, make)
        else:
            for _, stream in self._held:
                if stream is not None:
                    stream.sink.take()
        self._held.clear()

    def _copy(self, writer: PartWriter, record: Record) -> None:
        data = record.data
        was, becomes = self._plan.bag.compression, self._plan.compression
        if was != becomes:
            if was == BY_MESSAGE:
                data = self._content(record)
            elif becomes == BY_MESSAGE:
                data = zstandard.compress(data)
        writer.write(self._numbers[record.topic], record.time, data, record.published,
                     record.sequence)

    def _add(
        self, writer: PartWriter, number: int, image: Record, make: Callable[[], bytes],
    ) -> None:
        data = make()
        if self._plan.compression == BY_MESSAGE:
            data = zstandard.compress(data)
        writer.write(number, image.time, data, image.published, image.sequence)

    # One file ------------------------------------------------------------------------------------

    def _begin_part(self, part: int, *, is_done: bool) -> None:
        self._part = part
        self._account = {'images': 0, 'left_out': 0}
        self._before = [stream.account() for stream in self._streams]
        if is_done:
            return
        plan, output = self._plan, self._place.output
        name = _part_name(output, self._files, SUFFIXES[plan.storage])
        self._files += 1
        self._writer = PartWriter(
            self._place.folder / name, plan.topics, plan.storage, plan.compression)

    def _end_part(self) -> None:
        self._answer()
        if self._writer is None:
            return
        cameras = {
            stream.name: stream.account().since(before)
            for stream, before in zip(self._streams, self._before, strict=True)}
        entry = {'index': self._part, **self._account, 'cameras': cameras,
                 'answered': sum(camera['answered'] for camera in cameras.values())}
        writer, self._writer = self._writer, None
        self._out.do(self._close_part, writer, entry)

    def _close_part(self, writer: PartWriter, entry: dict[str, Any]) -> None:
        part = writer.close()
        self._place.note({**entry, 'lost': self._plan.bag.losses(), 'part': part._asdict()})

    def _tell(self, moment: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._progress is None or (now < self._told + _PROGRESS and not last):
            return
        self._told = now
        begin, end = self._plan.begin, self._plan.end
        answered = sum(stream.account().answered for stream in self._streams)
        self._progress(Progress((moment - begin) / NANOSECONDS, (end - begin) / NANOSECONDS,
                                self._earlier + answered))

    # The account ---------------------------------------------------------------------------------

    def report(self) -> Report:
        """What came of it, of earlier runs that were resumed, too."""
        plan, done = self._plan, self._place.done
        report = Report(str(plan.bag.path), str(self._place.output), plan.cameras,
                        notes=list(plan.notes))
        counts: Counter[int] = Counter()
        for entry in done:
            part = entry['part']
            counts.update(dict(enumerate(part['counts'])))
            report.files[part['name']] = part['sha256']
            report.lost += [loss for loss in entry['lost'] if loss not in report.lost]
            for name in ('images', 'left_out', 'answered'):
                setattr(report, name, getattr(report, name) + entry[name])
            for camera, account in entry['cameras'].items():
                report.beyond += account['beyond']
                for name in ('rejected', 'unprojected'):
                    _add_up(getattr(report, name), camera, account[name])
        if done:
            report.begin = min(entry['part']['begin'] for entry in done)
            report.finish = max(entry['part']['end'] for entry in done)
        whole = (plan.begin, plan.end) == (plan.bag.begin, plan.bag.end)
        for number, topic in enumerate(plan.topics):
            count = report.topics.setdefault(topic.name, TopicCount(topic.type))
            if number < len(plan.old):
                count.copied += counts[number]
                expected = plan.bag.topics[plan.old[number]]
                count.lost += max(0, expected - counts[number]) if whole else 0
            else:
                count.written += counts[number]
        report.network_seconds = self._answering.network_seconds
        return report


def _add_up(totals: dict[str, dict[str, int]], camera: str, causes: dict[str, int]) -> None:
    for cause, count in causes.items():
        of_camera = totals.setdefault(camera, {})
        of_camera[cause] = of_camera.get(cause, 0) + count


def _custom(estimator: DepthEstimator, options: Options) -> dict[str, str]:
    """What the output's metadata says about where its depth is from."""
    settings = {**estimator.config.to_dict(), **options.node.to_dict()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return {'depthclip_ros': __version__,
            'depthclip_weights': f'{estimator.weights.name} {estimator.weights.digest}',
            'depthclip_settings': digest,
            'depthclip_calibration': estimator.label}


def _type_of(relative: str) -> str:
    return COMPRESSED_IMAGE if relative == COMPRESSED_DEPTH else OUTPUTS[relative]


def _part_name(output: Path, number: int, suffix: str) -> str:
    return f'{output.name}_{number}{suffix}'


def _suffix(name: str) -> str:
    return next(ending for ending in SUFFIXES_OF_FILES if name.endswith(ending))


def _path(path: str | Path) -> Path:
    try:
        return user_path(path)
    except OSError as error:
        raise BagError(f'{path}: {error.strerror}.') from error


# Joining -----------------------------------------------------------------------------------------


def _kind(information: dict[str, Any]) -> Any:
    """What all windows of a bag have in common."""
    topics = [entry['topic_metadata'] for entry in information['topics_with_message_count']]
    return topics, [information[key] for key in (
        'version', 'storage_identifier', 'compression_format', 'compression_mode', 'custom_data')]


def _joined(described: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Metadata of all windows together."""
    files = [entry for information in described for entry in information['files']]
    begins = [entry['starting_time']['nanoseconds_since_epoch'] for entry in files]
    ends = [begin + entry['duration']['nanoseconds']
            for begin, entry in zip(begins, files, strict=True)]
    result = dict(described[0])
    result['starting_time'] = {'nanoseconds_since_epoch': min(begins, default=0)}
    result['duration'] = {'nanoseconds': max(ends, default=0) - min(begins, default=0)}
    result['message_count'] = sum(information['message_count'] for information in described)
    result['topics_with_message_count'] = [
        {'topic_metadata': entries[0]['topic_metadata'],
         'message_count': sum(entry['message_count'] for entry in entries)}
        for entries in zip(*(information['topics_with_message_count']
                             for information in described), strict=True)]
    result['relative_file_paths'] = list(names)
    result['files'] = [{**entry, 'path': name} for entry, name in zip(files, names, strict=True)]
    return result


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _merged(reports: Sequence[Report], output: Path) -> Report:
    total = Report(reports[0].source, str(output), reports[0].cameras)
    number = 0
    for report in reports:
        for name in ('lost', 'notes'):
            known = getattr(total, name)
            known += [line for line in getattr(report, name) if line not in known]
        for name in ('images', 'answered', 'left_out', 'beyond', 'seconds', 'network_seconds'):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        for name in ('rejected', 'unprojected'):
            for camera, causes in getattr(report, name).items():
                _add_up(getattr(total, name), camera, causes)
        for topic, count in report.topics.items():
            of_topic = total.topics.setdefault(topic, TopicCount(count.type))
            of_topic.copied += count.copied
            of_topic.written += count.written
        for name, digest in report.files.items():
            total.files[_part_name(output, number, _suffix(name))] = digest
            number += 1
    begins = [report.begin for report in reports if report.files]
    total.begin = min(begins, default=0)
    total.finish = max((report.finish for report in reports), default=0)
    return total
