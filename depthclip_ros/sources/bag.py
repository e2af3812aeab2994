# SPDX-License-Identifier: Apache-2.0
"""Reading rosbag2 bags, and which of their topics are the camera. Needs `rosbags`, no ROS.

rosbags reads by its `Reader`: its `AnyReader` would compile every type in the bag, and refuse
bags for types that nobody here reads.
"""

from __future__ import annotations

import functools
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..core.errors import ConfigError, DepthClipError, quoted
from ..core.files import user_path
from ..messages.types import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

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

    Attributes:
        path: of the bag.
        connections: its topics, as `rosbags` has them.
        topics: the same by name and type, with the number of messages.
        begin: time of the first message [ns].
        end: time behind the last one [ns].
        is_mcap: whether its files are; else they are SQLite databases.
        compression: 'message', 'file' or 'none'; says nothing of an mcap's chunks.

    """

    def __init__(self, path: str | Path) -> None:
        """Open a bag folder, or a lone .mcap or .db3 file.

        Raises:
            BagError: it cannot be read; says what to do.

        """
        super().__init__()
        self.path = checked_path(path)
        try:
            from rosbags.rosbag2 import Reader
            self._reader = self.enter_context(Reader(self.path))
        except Exception as error:  # a damaged file raises whatever its decoders raise
            raise _damaged(self.path, error) from error
        self.connections: list[Any] = self._reader.connections
        is_empty = not self._reader.message_count
        self.begin: int = 0 if is_empty else self._reader.start_time
        self.end: int = 0 if is_empty else self._reader.end_time
        self.is_mcap = self.path.suffix == '.mcap' or any(self.path.glob('*.mcap*'))
        self.compression: str = self._reader.compression_mode or 'none'
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
        wanted = [c for c in self.connections if topics is None or c.topic in topics]
        try:
            yield from self._reader.messages(wanted, begin, end) if wanted else ()
        except Exception as error:
            raise _damaged(self.path, error) from error


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
    except OSError as error:
        raise BagError(f'There is no bag at {quoted(str(Path(path).absolute()))}: '
                       f'{error.strerror}.') from error
    if path.suffix == '.bag' and path.is_file():
        raise BagError(f'{path} is a ROS 1 bag. Convert it once: '
                       f"'rosbags-convert --src {path} --dst {path.with_suffix('')}'.")
    if not path.is_dir() and not (path.suffix in STORAGES and path.is_file()):
        raise BagError(f'{path} is not a bag: expected a rosbag2 folder, a .mcap or a .db3 file.')
    return path


def bag_topics(path: str | Path) -> list[BagTopic]:
    """Topics of a bag; those of a folder are read without rosbags, for launch files.

    Raises:
        BagError: the bag cannot be read.

    """
    path = checked_path(path)
    if path.is_dir():
        found: list[BagTopic] = _of_metadata(path, lambda about: [
            BagTopic(topic['topic_metadata']['name'], topic['topic_metadata']['type'],
                     int(topic['message_count']))
            for topic in about['topics_with_message_count']])
        return found
    with Bag(path) as bag:
        return bag.topics


def custom_data(path: str | Path) -> dict[str, Any]:
    """What the writer of a bag folder has said about it; nothing of a lone file.

    Raises:
        BagError: there is no such bag, or its metadata.yaml cannot be read.

    """
    path = checked_path(path)
    if not path.is_dir():
        return {}
    found: dict[str, Any] = _of_metadata(path, lambda about: dict(about.get('custom_data') or {}))
    return found


def _of_metadata(folder: Path, pick: Callable[[dict[str, Any]], Any]) -> Any:
    try:
        text = (folder / 'metadata.yaml').read_text(encoding='utf-8')
        return pick(yaml.safe_load(text)['rosbag2_bagfile_information'])
    except Exception as error:  # whatever is there instead of metadata
        raise _damaged(folder, error) from error


def _damaged(path: Path, error: Exception) -> BagError:
    """What is wrong with a bag, and what may save it."""
    if isinstance(error, ImportError):
        return BagError(f'Reading {path} needs the Python package rosbags ({error}): run '
                        "'pip install rosbags'.")
    said = f'it has no {error}' if isinstance(error, KeyError) else str(error)
    said = ' '.join(said.split())[:300].rstrip('.') or type(error).__name__
    return BagError(
        f'{path} cannot be read as a rosbag2 bag: {said}. Save what is whole: '
        "'mcap recover FILE -o NEW.mcap', or 'sqlite3 FILE .recover | sqlite3 NEW.db3'; such a "
        "file can be given by itself; 'ros2 bag reindex FOLDER' makes a metadata.yaml. Else copy "
        'or record it again.')


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
        there = [topic for topic in topics
                 if image or not name or topic.name.startswith(f'/{name}/')]
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
    asked = image and f'/{image.removesuffix("/compressed").removeprefix("/")}'
    cameras = [name for name in everything if name == asked] if asked else \
        [name for name in everything if not any(word in name for word in NOT_PHOTOGRAPHS)]
    if len(cameras) != 1:
        listed = ', '.join(cameras or everything) or 'none'
        raise BagError(
            f'The bag has several cameras: {listed}. Choose one with {choice}.' if cameras else
            f'The bag has no images on {asked!r}. Its image topics: {listed}.' if asked else
            'The bag has no camera image (sensor_msgs Image, or CompressedImage on a topic that '
            f'ends in /compressed). Its other image topics: {listed}; if it is one of them, say '
            f'so with {choice.partition(",")[0]}.')
    base, = cameras
    info = camera_info_beside(base)
    has_info = any(topic.name == info and topic.type == CAMERA_INFO for topic in filled)
    return CameraTopics(base, info if has_info else '',
                        base not in raw or image.endswith('/compressed'))


def camera_info_beside(image: str) -> str:
    """Topic of an image's camera_info by image_transport's rule: the image's sibling."""
    namespace, slash, _ = image.removesuffix('/compressed').rpartition('/')
    return f'{namespace}{slash}camera_info'
