# SPDX-License-Identifier: Apache-2.0
"""Read rosbag2 bags, and find the topics of cameras in them.

Needs `mcap`, `zstandard` and `rosbags`, but no ROS; the topics of a folder need none of them.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BagError, ConfigError, quoted
from ..core.files import user_path
from ..messages.message_types import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, topic_name
from .metadata import METADATA, BagMetadata, Channel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from .storage import McapFile, Message, SqliteFile

NANOSECONDS = 10 ** 9
# Of a bag's files; '.zstd' marks a file that is compressed as a whole.
SUFFIXES = ('.mcap', '.db3', '.mcap.zstd', '.db3.zstd')
TOPICS_KEY = 'depthclip_topics'  # in a bag's metadata: the topics that `depthclip bag` wrote
# Topics of the node, relative to its namespace; no other package publishes the last one.
LANGUAGE_TOPICS = (
    'depth/image', 'depth/image/compressedDepth', 'depth/camera_info', 'points',
    'depth/image_color', 'depth/spread', 'depth/stddev', 'depth/scale', 'scene', 'depth/words')
PICTURE, DEPTH = 'picture', 'depth'
# Parts of topic names by which drivers mark images that are not photographs.
NOT_PHOTOGRAPHS = ('depth', 'disparity', 'confidence', 'label', 'mask', 'segmentation')


@dataclass(frozen=True)
class BagTopic:
    """One topic of a bag.

    Attributes:
        name: with its leading slash.
        type: as ROS 2 spells it, with the encoding if that is not CDR.
        count: of its messages.
        content: 'picture' or 'depth', by the encoding of an image topic's first message; '' if
            either is possible or no message was read.

    """

    name: str
    type: str
    count: int
    content: str = ''


class Bag(ExitStack):
    """An open bag, to be closed by `with` or `close`.

    Attributes:
        path: of the bag.
        counts: number of messages by recorded topic.
        begin: time of the first message [ns].
        end: time just after the last message [ns].
        is_mcap: whether its files are mcap; else they are SQLite databases.
        metadata: description in its metadata.yaml, or else in its file.

    """

    def __init__(self, path: str | Path) -> None:
        """Open a bag folder, or a lone file.

        Raises:
            BagError: the bag cannot be read, or has fewer messages than its metadata.yaml counts.

        """
        super().__init__()
        self.path = checked_path(path)
        try:
            import rosbags.typesys  # noqa: F401 (reads messages)

            from .storage import open_file
        except ImportError as error:
            raise BagError(f'Reading {self.path} needs the Python packages mcap and rosbags '
                           f"({error}): run 'pip install mcap rosbags'.") from error
        is_described = (self.path / METADATA).exists()
        about = _about(self.path) if is_described else BagMetadata()
        paths = _files(self.path, about.files if is_described else None)
        with ExitStack() as stack:
            files = [open_file(file, stack) for file in paths]
            self.push(stack.pop_all())
        self.is_mcap, self.metadata = files[0].is_mcap, about
        if not is_described:
            self.metadata = _about_of(files[0].metadata)
            self.metadata.compression = 'file' if paths[0].suffix == '.zstd' else 'none'
        filled = [file for file in files if file.counts.total()]
        self.begin = min((file.begin for file in filled), default=0)
        self.end = max((file.end + 1 for file in filled), default=0)
        self.counts = Counter[Channel]()
        self._files = [(*pair, self._channels(pair[1]))
                       for pair in zip(paths, files, strict=True)]
        if is_described:
            self._compare_counts()

    def _channels(self, file: McapFile | SqliteFile) -> dict[int, Channel]:
        """Count the topics of a file, and add hashes of types that only metadata.yaml has."""
        digests = {(topic.name, topic.type): topic.digest for topic, _ in self.metadata.topics}
        channels = {
            number: replace(channel, digest=channel.digest or digests.get(
                (channel.name, channel.type), '')) for number, channel in file.channels.items()}
        for number, channel in channels.items():
            self.counts[channel] += file.counts[number]
        return channels

    def _compare_counts(self) -> None:
        """Refuse a bag with fewer messages than metadata.yaml counts; add topics without any."""
        expected, count = sum(count for _, count in self.metadata.topics), self.counts.total()
        if count < expected:
            raise BagError(
                f'{self.path}: its metadata.yaml counts {expected} messages, its files hold '
                f"{count}. Copy it again; if the others are lost, 'ros2 bag reindex {self.path}' "
                'counts what is there.')
        counted = {(channel.name, channel.type) for channel in self.counts}
        self.counts.update({channel: 0 for channel, _ in self.metadata.topics
                            if (channel.name, channel.type) not in counted})

    @property
    def connections(self) -> list[Channel]:
        """Recorded topics; one topic may have several entries."""
        return list(self.counts)

    def offers(self, topic: str) -> list[Any]:
        """Return the quality of service of a topic's recorded publishers; [] if unknown."""
        return [offer for channel in self.counts if channel.topic == topic
                for offer in channel.qos]

    @functools.cached_property
    def topics(self) -> list[BagTopic]:
        """Topics by name and type; reads the first message of each image topic."""
        counts = Counter[tuple[str, str]]()
        for channel, count in self.counts.items():
            counts[channel.topic, channel.msgtype] += count
        return [BagTopic(name, kind, count, self._content(name, kind) if count else '')
                for (name, kind), count in counts.items()]

    def _content(self, topic: str, kind: str) -> str:
        return next((content_of(data, kind) for channel, _, data in self.messages({topic})
                     if channel.msgtype == kind), '') if kind in (IMAGE, COMPRESSED_IMAGE) else ''

    def messages(
        self, topics: Collection[str] | None = None, begin: int | None = None,
        end: int | None = None,
    ) -> Iterator[tuple[Channel, int, bytes]]:
        """Yield topic, time [ns] and content (CDR) of messages, in the order of recording.

        Args:
            topics: to read; None: all.
            begin: least time of a message [ns]; None: from the beginning.
            end: time [ns] before which to stop; None: at the end.

        Raises:
            BagError: the bag is damaged from here on, or has fewer messages than it counts.

        """
        return ((channel, message.time, message.data)
                for channel, message in self.records(topics, begin, end))

    def records(
        self, topics: Collection[str] | None = None, begin: int | None = None,
        end: int | None = None,
    ) -> Iterator[tuple[Channel, Message]]:
        """Yield what `messages` does, with the publication time and sequence of each message."""
        from .storage import remedy, translated, unpacked
        for path, file, channels in self._files:
            selected = {number: channel for number, channel in channels.items()
                        if topics is None or channel.topic in topics}
            count, expected = 0, sum(file.counts[number] for number in selected)
            with translated(path, is_mcap=file.is_mcap):
                for number, message in file.messages(selected, begin, end) if expected else ():
                    count += 1
                    yield selected[number], unpacked(
                        message, path, is_packed=self.metadata.compression == 'message',
                        encoding=selected[number].encoding)
            if begin is None and end is None and count < expected:
                raise BagError(f'{path} counts {expected} messages, but holds {count}: it is '
                               f'damaged. {remedy(path, is_mcap=file.is_mcap)}')

    def beside(self) -> Iterator[Any]:
        """Yield metadata records (except rosbag2's) and attachments of an mcap."""
        return (record for _, file, _ in self._files if file.is_mcap for record in file.beside())


@functools.cache
def typestore() -> Any:
    """Return the message types of ROS 2 Humble, which later distributions share."""
    from rosbags.typesys import Stores, get_typestore
    return get_typestore(Stores.ROS2_HUMBLE)


def deserialize(raw: bytes, kind: str) -> Any:
    """Deserialize a message; errors of the parser pass unchanged."""
    return typestore().deserialize_cdr(raw, kind)


def is_bag(path: Path) -> bool:
    """Whether a path is a bag, by its name or its metadata.yaml."""
    return path.name.endswith((*SUFFIXES, '.bag')) or (path / METADATA).exists()


def checked_path(path: str | Path) -> Path:
    """Check that a path looks like a rosbag2 bag, and return it.

    Raises:
        BagError: there is no such path, or it is no bag by its name.

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
    if not path.is_dir() and not (path.name.endswith(SUFFIXES) and path.is_file()):
        raise BagError(f'{path} is not a bag: expected a rosbag2 folder, or a file that is named '
                       f'{", ".join(SUFFIXES)}.')
    return path


def _files(path: Path, named: list[str] | None) -> list[Path]:
    """Return the files of a bag in order: those that metadata.yaml names, else the only one."""
    if named is not None:
        missing = [name for name in named if not (path / name).is_file()]
        if missing or not named:
            raise BagError(
                f'{path} lacks {", ".join(missing) or "files"}, which its metadata.yaml names. '
                f"Copy the rest, or let 'ros2 bag reindex {path}' describe what is there, or give "
                'a file by itself.')
        return [path / name for name in named]
    files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES)) \
        if path.is_dir() else [path]
    if len(files) != 1:
        raise BagError(
            f'{path} has no metadata.yaml, and {len(files)} files of bags'
            f'{": " * bool(files)}{", ".join(file.name for file in files)}. '
            f"'ros2 bag reindex {path}' makes one if they belong together; each file can be "
            'given by itself.')
    return files


def bag_topics(path: str | Path) -> list[BagTopic]:
    """Return the topics of a bag.

    If its files cannot be read, the topics come from metadata.yaml: launch files run in the
    system's Python, without the packages that read bags.

    Raises:
        BagError: the bag cannot be read.

    """
    path = checked_path(path)
    try:
        with Bag(path) as bag:
            return bag.topics
    except BagError:
        if not (path / METADATA).exists():
            raise
        return [BagTopic(channel.topic, channel.msgtype, count)
                for channel, count in _about(path).topics]


def custom_data(path: str | Path) -> dict[str, str]:
    """Return the custom data in a bag's metadata.

    Raises:
        BagError: there is no such bag, or it cannot be read.

    """
    path = checked_path(path)
    if (path / METADATA).exists():
        return _about(path).custom
    with Bag(path) as bag:
        return bag.metadata.custom


def _about(folder: Path) -> BagMetadata:
    try:
        return BagMetadata.of((folder / METADATA).read_text(encoding='utf-8'))
    except Exception as error:  # any content in place of metadata
        raise BagError(
            f'{folder / METADATA} does not describe a bag of rosbag2. '
            f"'ros2 bag reindex {folder}' makes it anew; each file can be given by itself."
            ) from error


def _about_of(text: str) -> BagMetadata:
    """Parse a file's description of its bag, which is optional: empty if that fails."""
    try:
        return BagMetadata.of(text)
    except Exception:  # noqa: BLE001 (other programs write any text)
        return BagMetadata()


# Topics of cameras and depth ---------------------------------------------------------------------


def content_of(raw: bytes, kind: str) -> str:
    """Classify an image message by its encoding: 'picture', 'depth', or '' if unclear.

    mono16 is an infrared picture of one driver and the depth of another.
    """
    from ..messages.image_io import COMPRESSED_DEPTH, ENCODINGS, PNG_START
    try:
        message = deserialize(raw, kind)
    except Exception:  # noqa: BLE001 (a later reader of the message reports it)
        return ''
    if kind == IMAGE:
        return DEPTH if message.encoding in ('16UC1', '32FC1') else \
            PICTURE if message.encoding in ENCODINGS and message.encoding != 'mono16' else ''
    start, encoding = bytes(message.data[:40]), message.format.lower()
    is_depth = COMPRESSED_DEPTH in encoding or start.startswith(PNG_START, 12)
    if start.startswith(PNG_START) and start[24:26] == b'\x10\0':  # 16 bits of grey
        return '' if 'mono16' in encoding and not is_depth else DEPTH
    return DEPTH if is_depth else \
        PICTURE if start.startswith((PNG_START, b'\xff\xd8')) else ''


def language_depth_topics(bag: Bag) -> set[str]:
    """Return the topics of a bag that this package published.

    `depthclip bag` lists them in the bag's metadata; in a recording of the node they share a
    namespace with depth/words, which only this package publishes. A recording of the node's
    depth/image alone looks like a sensor's.
    """
    kinds = {topic.name: topic.type for topic in bag.topics}
    noted = bag.metadata.custom.get(TOPICS_KEY, '').split()
    spaces = [name.removesuffix(LANGUAGE_TOPICS[-1]) for name, kind in kinds.items()
              if kind == IMAGE and name.endswith(f'/{LANGUAGE_TOPICS[-1]}')]
    return kinds.keys() & {*noted, *(space + topic for space in spaces
                                     for topic in LANGUAGE_TOPICS)}


def unread_sensors(topics: Sequence[BagTopic]) -> str:
    """List topics of sensors whose types cannot be read, as the end of a sentence."""
    names = [f'{topic.name} ({topic.type})' for topic in topics if topic.count and re.search(
        r'Video|FFMPEG|Disparity|CustomMsg|PointCloud$|Packet|Theora',
        topic.type.rpartition('/')[2])]
    return f'; not read here: {", ".join(names)}; decode or convert them first' if names else ''


@dataclass(frozen=True)
class CameraTopics:
    """Topics of a camera.

    Attributes:
        topic: of its images.
        camera_info: its topic; '' where there is none.
        compressed: whether the images are compressed.
        name: of the camera, where there are several.

    """

    topic: str = ''
    camera_info: str = ''
    compressed: bool = False
    name: str = ''

    @property
    def image(self) -> str:
        """Topic of its images, without `/compressed`."""
        return self.topic.removesuffix('/compressed')


def cameras_of(
    topics: Sequence[BagTopic], names: Sequence[str], images: Sequence[str] = (),
    camera_infos: Sequence[str] = (), *, choice: str,
) -> list[CameraTopics]:
    """Find several cameras in a bag: by their topics, else by the namespace of their name.

    Args:
        topics: of the bag.
        names: of the cameras; one may be ''.
        images: topic of each camera's images; empty: by the names.
        camera_infos: topic of each camera_info; empty: beside the images.
        choice: option by which the user chooses cameras, for messages.

    Raises:
        BagError: a camera is missing or ambiguous.
        ConfigError: the numbers of topics and cameras differ.

    """
    cameras = []
    for name, image, info in zip(names, one_for_each(names, images),
                                 one_for_each(names, camera_infos), strict=True):
        candidates = [topic for topic in topics
                      if image or not name or topic.name.startswith(f'/{name}/')]
        if name and not candidates:
            raise BagError(f'camera {name}: the bag has no topic under /{name}/. Choose '
                           f'with {choice}.')
        camera = camera_topics(candidates, image, choice)
        cameras.append(replace(
            camera, camera_info=topic_name(info) if info else camera.camera_info, name=name))
    return cameras


def one_for_each(names: Sequence[str], topics: Sequence[str]) -> Sequence[str]:
    """Check that there is one topic per camera; without topics, return an empty one for each.

    Raises:
        ConfigError: there are too few or too many topics.

    """
    if topics and len(topics) != len(names):
        raise ConfigError(f'{",".join(topics)}: {len(topics)} topics for {len(names)} cameras '
                          f'({",".join(names)}); give one for each, in the same order, separated '
                          'by commas.')
    return topics or [''] * len(names)


def camera_topics(topics: Sequence[BagTopic], image: str, choice: str) -> CameraTopics:
    """Find the camera among a bag's topics.

    Args:
        topics: of the bag.
        image: topic of its images, with or without `/compressed`; '': the only camera.
        choice: option by which the user chooses a camera, such as '--image TOPIC'.

    Raises:
        BagError: there is no such camera, or there are several; lists the candidates.

    """
    filled = [topic for topic in topics if topic.count]
    images = [topic for topic in filled if topic.type in (IMAGE, COMPRESSED_IMAGE)]
    if image:
        name = topic_name(image)
        matches = next(filter(None, ([t for t in images if t.name == candidate]
                                     for candidate in (name, f'{name}/compressed'))), [])
    else:
        matches = [topic for topic in images if _is_photograph(topic)]
    bases = {f'{topic.name}/' for topic in matches}  # topics below an image are its transports
    cameras = [topic for topic in matches
               if not any(topic.name.startswith(base) for base in bases)]
    if len(cameras) != 1:
        listed = ', '.join(dict.fromkeys(
            topic.name.removesuffix('/compressed') for topic in cameras or images)) or 'none'
        raise BagError(
            f'The bag has several cameras: {listed}. Choose one with {choice}.' if cameras else
            f'The bag has no images on {name!r}. Its image topics: {listed}'
            f'{unread_sensors(topics)}.' if image else
            'The bag has no camera image (sensor_msgs Image or CompressedImage that is neither '
            f'depth nor called so). Its other image topics: {listed}{unread_sensors(topics)}.'
            + (f' If it is one of them, say so with {choice.partition(",")[0]}.' if images else
               ''))
    camera, = cameras
    info = camera_info_beside(camera.name)
    has_info = any(topic.name == info and topic.type == CAMERA_INFO for topic in filled)
    return CameraTopics(
        camera.name, info if has_info else '', camera.type == COMPRESSED_IMAGE)


def _is_photograph(topic: BagTopic) -> bool:
    """Whether an image topic is a camera's, by its content and the last two parts of its name.

    Depth in colours is a picture, too: the last part must not contain a word of `NOT_PHOTOGRAPHS`,
    and the part before must not be one. If the content is unclear, it must not contain one either.
    """
    *_, space, last = topic.name.removesuffix('/compressed').lower().split('/')
    if topic.content == PICTURE and space not in NOT_PHOTOGRAPHS:
        space = ''
    return topic.content != DEPTH and not any(
        word in f'{space}/{last}' for word in NOT_PHOTOGRAPHS)


def camera_info_beside(image: str) -> str:
    """Return the topic of an image's camera_info by image_transport's rule: its sibling."""
    namespace, slash, _ = image.removesuffix('/compressed').rpartition('/')
    return f'{namespace}{slash}camera_info'
