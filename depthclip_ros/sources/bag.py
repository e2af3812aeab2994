# SPDX-License-Identifier: Apache-2.0
"""Reading rosbag2 bags, and which of their topics are the camera. Needs `rosbags`, no ROS.

rosbags reads by its `Reader`: its `AnyReader` would compile every type in the bag, and refuse
bags for types that nobody here reads.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..core.errors import ConfigError, DepthClipError, quoted
from ..core.files import user_path
from ..node.messages import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

NANOSECONDS = 10 ** 9
STORAGES = {'.mcap': 'mcap', '.db3': 'sqlite3'}
# Parts of topic names by which drivers mark images that are not photographs.
NOT_PHOTOGRAPHS = ('depth', 'disparity', 'confidence', 'label', 'mask', 'segmentation')


class BagError(DepthClipError):
    """A bag is missing, corrupt, of another format, or does not hold what is asked of it."""


@dataclass(frozen=True)
class BagTopic:
    """One topic of a bag."""

    name: str
    type: str
    count: int


class Bag(ExitStack):
    """An open bag, to be closed by `with` or `close`.

    Where a folder cannot be read as one bag (no metadata.yaml, a file is missing), its files are
    read one by one; of an .mcap file without its end, what is whole.

    Attributes:
        path: of the bag.
        connections: its topics, as `rosbags` has them; the files of a bag repeat them.
        topics: the same by name and type, with the number of messages.
        begin: time of the first message [ns].
        end: time behind the last one [ns].
        storage: 'mcap' or 'sqlite3'.
        compression: 'message', 'file' or 'none'; says nothing of an mcap's chunks.
        version: of its metadata; 0 if there is none.
        lost: sentences about what cannot be read.

    """

    def __init__(self, path: str | Path, scratch: Path | None = None) -> None:
        """Open a bag folder, or a lone .mcap or .db3 file.

        Args:
            path: of the bag.
            scratch: folder for what is saved of an .mcap file without its end; None: a temporary
                one.

        Raises:
            BagError: it cannot be read; says what to do.

        """
        super().__init__()
        self.path, self.lost = checked_path(path), list[str]()
        self.version, self.storage = 0, ''
        self._scratch, self._readers = scratch, list[Any]()
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        filled = [reader for reader in self._readers if reader.message_count]
        self.connections = [c for reader in self._readers for c in reader.connections]
        self.begin: int = min((reader.start_time for reader in filled), default=0)
        self.end: int = max((reader.end_time for reader in filled), default=0)
        self.compression: str = self._readers[0].compression_mode or 'none'
        counts: Counter[tuple[str, str]] = Counter()
        for connection in self.connections:
            counts[connection.topic, connection.msgtype] += connection.msgcount
        self.topics = [BagTopic(*key, count) for key, count in counts.items()]

    def messages(
        self, topics: Collection[str] | None = None, begin: int | None = None,
        end: int | None = None,
    ) -> Iterator[tuple[Any, int, bytes]]:
        """Connection, time [ns] and content (CDR) of messages, in the order of their recording.

        Args:
            topics: to read; None: all.
            begin: time of the first message wanted; None: from the beginning.
            end: time behind the last one; None: to the end.

        Raises:
            BagError: the bag is damaged from here on.

        """
        for reader in self._readers:
            wanted = [c for c in reader.connections if topics is None or c.topic in topics]
            try:
                yield from reader.messages(wanted, begin, end) if wanted else ()
            except Exception as error:  # a damaged file raises whatever its decoders raise
                raise _damaged(reader.path, error) from error

    def _open(self) -> None:
        if not self.path.is_dir():
            files = [self.path]
        else:
            metadata: dict[str, Any] = {}
            try:
                metadata = _metadata(self.path)
                self._enter(self.path)
            except Exception as error:
                files = sorted((file for file in self.path.iterdir() if file.suffix in STORAGES),
                               key=_natural)
                compressed = str(metadata.get('compression_mode')).lower() in ('message', 'file')
                if not files or compressed:
                    raise _damaged(self.path, error) from error
                self.lost.append(f'{self.path.name} cannot be read as one ({_said(error)}); its '
                                 'files are read one by one.')
            else:
                self.version, self.storage = metadata['version'], metadata['storage_identifier']
                return
        for file in files:
            self._take(file)
        self.version, self.storage = 0, STORAGES[files[0].suffix]

    def _enter(self, path: Path) -> None:
        from rosbags.rosbag2 import Reader
        self._readers.append(self.enter_context(Reader(path)))

    def _take(self, file: Path) -> None:
        """Open one file; of an .mcap without its end, what there is."""
        try:
            self._enter(file)
        except Exception as error:  # noqa: BLE001 (a damaged file raises whatever its decoders raise)
            scratch = self._scratch or Path(self.enter_context(
                tempfile.TemporaryDirectory()))
            saved = scratch / f'saved_{file.name}'
            try:
                if file.suffix != '.mcap' or not _recover(file, saved):
                    raise _damaged(file, error)
                self._enter(saved)
            except OSError:
                raise
            except Exception as worse:
                raise _damaged(file, error) from worse
            self.lost.append(
                f'{file.name} was never finished ({_said(error)}): what is behind the last whole '
                f'record is lost; {self._readers[-1].message_count} messages are there.')


@functools.cache
def typestore() -> Any:
    """The message types of ROS 2 Humble, which later ones have alike."""
    from rosbags.typesys import Stores, get_typestore
    return get_typestore(Stores.ROS2_HUMBLE)


def read(raw: bytes, kind: str) -> Any:
    """Read a serialised message; whatever is wrong is raised as it comes."""
    return typestore().deserialize_cdr(raw, kind)


def is_bag(path: Path) -> bool:
    """Whether a path is to be read as a bag."""
    return path.suffix in (*STORAGES, '.bag') or (path / 'metadata.yaml').exists()


def checked_path(path: str | Path) -> Path:
    """Path of something that looks like a rosbag2 bag.

    Raises:
        BagError: it does not.

    """
    try:
        path = user_path(path)
        path.stat()
    except FileNotFoundError as error:
        raise BagError(f'There is no bag at {quoted(str(Path(path).absolute()))}.') from error
    except OSError as error:
        raise BagError(f'{quoted(str(path))} cannot be a bag: {error.strerror}.') from error
    if path.suffix == '.bag' and path.is_file():
        raise BagError(f'{path} is a ROS 1 bag. Convert it once: '
                       f"'rosbags-convert --src {path} --dst {path.with_suffix('')}'.")
    if not path.is_dir() and not (path.suffix in STORAGES and path.is_file()):
        what = '' if path.is_file() else ' but a pipe or a device'
        raise BagError(
            f'{path} is not a bag{what}: expected a rosbag2 folder, a .mcap or a .db3 file.')
    return path


def bag_topics(path: str | Path) -> list[BagTopic]:
    """Topics of a bag.

    A folder is judged by its metadata.yaml where that can be read, so that this works where ROS
    can play a bag but rosbags is not installed.

    Raises:
        BagError: the bag cannot be read.

    """
    path = checked_path(path)
    try:
        return [BagTopic(topic['topic_metadata']['name'], topic['topic_metadata']['type'],
                         int(topic['message_count']))
                for topic in _metadata(path)['topics_with_message_count']]
    except (BagError, KeyError, TypeError, ValueError):
        with Bag(path) as bag:
            return bag.topics


def custom_data(path: str | Path) -> dict[str, Any]:
    """What the writer of a bag folder has said about it; nothing of a lone file.

    Raises:
        BagError: there is no such bag, or its metadata.yaml cannot be read.

    """
    path = checked_path(path)
    said = _metadata(path).get('custom_data') if path.is_dir() else None
    return said if isinstance(said, dict) else {}


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / 'metadata.yaml'
    try:
        information = yaml.safe_load(path.read_text(encoding='utf-8'))[
            'rosbag2_bagfile_information']
        if not isinstance(information, dict):
            raise TypeError(f'rosbag2_bagfile_information is {quoted(information)}')
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, RecursionError) as error:
        raise _damaged(folder, error) from error
    return information


def _recover(path: Path, saved: Path) -> bool:
    """Write all whole records of an .mcap file into one that has an end, too.

    Returns:
        Whether there was any message.

    """
    from mcap import records
    from mcap.stream_reader import StreamReader
    from mcap.writer import Writer
    schemas, channels, count = {0: 0}, dict[int, int](), 0
    with path.open('rb') as source, saved.open('wb') as target:
        writer = Writer(target)
        writer.start('ros2', 'depthclip_ros')
        try:
            for record in StreamReader(source, validate_crcs=True).records:
                if isinstance(record, records.Schema):
                    schemas[record.id] = writer.register_schema(
                        record.name, record.encoding, record.data)
                elif isinstance(record, records.Channel) and record.id not in channels:
                    channels[record.id] = writer.register_channel(
                        record.topic, record.message_encoding, schemas[record.schema_id],
                        record.metadata)
                elif isinstance(record, records.Message):
                    writer.add_message(channels[record.channel_id], record.log_time, record.data,
                                       record.publish_time, record.sequence)
                    count += 1
        except OSError:
            raise
        except Exception:  # noqa: BLE001, S110 (here it ends, in whatever way)
            pass
        writer.finish()  # type: ignore[no-untyped-call]
    return count > 0


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order of names in which 10 comes behind 9."""
    return [(int(part), '') if part.isdigit() else (-1, part)
            for part in re.split(r'(\d+)', path.name)]


def _damaged(path: Path, error: Exception) -> BagError:
    """Tell what is wrong with a bag, and what may save it; what says that already stays."""
    if isinstance(error, BagError):
        return error
    if isinstance(error, ImportError):
        return BagError(f'Reading {path} needs the Python package rosbags ({error}): run '
                        "'pip install rosbags'.")
    return BagError(
        f'{path} cannot be read as a rosbag2 bag: {_said(error)}. Save what is whole: '
        "'mcap recover FILE -o NEW.mcap', or 'sqlite3 FILE .recover | sqlite3 NEW.db3'; "
        "'ros2 bag reindex FOLDER' makes its metadata.yaml. Else copy or record it again.")


def _said(error: Exception) -> str:
    text = f'it has no {error}' if isinstance(error, KeyError) else str(error)
    return ' '.join(text.split())[:300].rstrip('.') or type(error).__name__


# Cameras ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CameraTopics:
    """Topics of a camera.

    Attributes:
        image: without `/compressed`.
        camera_info: '' where there is none.
        compressed: whether compressed images are meant.
        name: of the camera, where there are several.

    """

    image: str = ''
    camera_info: str = ''
    compressed: bool = False
    name: str = ''

    @property
    def topic(self) -> str:
        """Topic of its images, with `/compressed`."""
        return self.image + '/compressed' * self.compressed


def cameras_of(
    topics: Sequence[BagTopic], names: Sequence[str], images: Sequence[str] = (),
    camera_infos: Sequence[str] = (), *, choice: str,
) -> list[CameraTopics]:
    """Find several cameras in a bag: by their topics, else each below its name.

    Args:
        topics: of the bag.
        names: of the cameras; one may be ''.
        images: topic of each camera's images; none: they are found.
        camera_infos: likewise.
        choice: how the user says which they are.

    Raises:
        BagError: one is not there, or cannot be chosen.
        ConfigError: not as many topics as cameras.

    """
    found = []
    for name, image, info in zip(names, one_for_each(names, images),
                                 one_for_each(names, camera_infos), strict=True):
        there = list(topics)
        if name and not image:
            there = [topic for topic in topics if topic.name.startswith(f'/{name}/')]
            if not there:
                raise BagError(f'camera {name}: the bag has no topic under /{name}/. Choose '
                               f'with {choice}.')
        camera = camera_topics(there, image, choice)
        found.append(CameraTopics(
            camera.image, f'/{info.lstrip("/")}' if info else camera.camera_info,
            camera.compressed, name))
    return found


def one_for_each(names: Sequence[str], topics: Sequence[str]) -> Sequence[str]:
    """One topic for every camera; all empty if there are none.

    Raises:
        ConfigError: too few, or too many.

    """
    if topics and len(topics) != len(names):
        raise ConfigError(f'{",".join(topics)}: {len(topics)} topics for {len(names)} cameras '
                          f'({",".join(names)}); give one for each, in the same order, separated '
                          'by commas.')
    return topics or [''] * len(names)


def camera_topics(topics: Sequence[BagTopic], image: str, choice: str) -> CameraTopics:
    """Find the camera among a bag's topics.

    Args:
        topics: Topics of the bag.
        image: Image topic to use, with or without `/compressed`; empty: the only camera there is.
        choice: how the user says which one it is, such as '--image TOPIC'.

    Raises:
        BagError: no camera, several, or not the one asked for; lists the candidates.

    """
    filled = [topic for topic in topics if topic.count]
    raw = [topic.name for topic in filled if topic.type == IMAGE]
    everything = list(dict.fromkeys([*raw, *(
        topic.name.removesuffix('/compressed') for topic in filled
        if topic.type == COMPRESSED_IMAGE and topic.name.endswith('/compressed'))]))
    listed = ', '.join(everything) or 'none'
    if image:
        cameras = [f'/{image.removesuffix("/compressed").removeprefix("/")}']
        if cameras[0] not in everything:
            raise BagError(
                f"The bag has no images on '{cameras[0]}'. Its image topics: {listed}.")
    else:
        cameras = [name for name in everything if not any(w in name for w in NOT_PHOTOGRAPHS)]
    if len(cameras) > 1:
        raise BagError(
            f'The bag has several cameras: {", ".join(cameras)}. Choose one with {choice}.')
    if not cameras:
        raise BagError(
            'The bag has no camera image (sensor_msgs Image, or CompressedImage on a topic that '
            f'ends in /compressed). Its other image topics: {listed}; '
            f'if it is one of them, say so with {choice.partition(",")[0]}.')
    base, = cameras
    info = camera_info_beside(base)
    has_info = any(topic.name == info and topic.type == CAMERA_INFO for topic in filled)
    return CameraTopics(base, info if has_info else '',
                        base not in raw or image.endswith('/compressed'))


def camera_info_beside(image: str) -> str:
    """Topic of an image's camera_info by image_transport's rule: the image's sibling."""
    namespace, slash, _ = image.removesuffix('/compressed').rpartition('/')
    return f'{namespace}{slash}camera_info'
