# SPDX-License-Identifier: Apache-2.0
"""What is in a rosbag2 bag, and which of its topics are the camera. Needs no ROS.

rosbags reads the bags, by its `Reader`: its `AnyReader` would compile every type in the bag, and
refuse bags for types that nobody here reads. A folder's topics need its metadata.yaml alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..core.errors import DepthClipError, quoted
from ..core.files import user_path
from ..node.messages import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from rosbags.interfaces import Connection
    from rosbags.rosbag2 import Reader

NANOSECONDS = 10 ** 9

# Parts of topic names by which drivers mark images that are not photographs.
NOT_PHOTOGRAPHS = ('depth', 'disparity', 'confidence', 'label', 'mask', 'segmentation')

# How the launch files are told which camera of a bag is meant.
CHOICE = 'image:=TOPIC, or several with cameras:=NAME,NAME'


class BagError(DepthClipError):
    """A bag is missing, corrupt, of another format, or does not hold what is asked of it."""


@dataclass(frozen=True)
class BagTopic:
    """One topic of a bag."""

    name: str
    type: str
    count: int


@dataclass(frozen=True)
class CameraTopics:
    """Topics of one camera in a bag.

    Attributes:
        image: Image topic without `/compressed`.
        camera_info: Its camera_info topic; None when the bag has none.
        compressed: Whether only compressed images are there.

    """

    image: str
    camera_info: str | None
    compressed: bool


def is_bag(path: Path) -> bool:
    """Whether a path is to be read as a bag."""
    return path.suffix in ('.mcap', '.db3', '.bag') or (path / 'metadata.yaml').exists()


def open_bag(path: str | Path) -> Reader:
    """Open a bag folder, or a lone `.mcap` or `.db3` file, for reading.

    Raises:
        BagError: what is wrong with it, and what to do.

    """
    path = checked_path(path)
    try:
        from rosbags.rosbag2 import Reader
    except ImportError as error:
        raise BagError(
            f"Reading {path} needs the Python package rosbags: run 'pip install rosbags'."
        ) from error
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:  # A corrupt file raises whatever its decoders raise.
        raise _corrupt(path, error) from error
    return reader


def bag_messages(
    reader: Reader, connections: Collection[Connection], start: int
) -> Iterator[tuple[Connection, int, bytes]]:
    """Messages of a bag in the order of their recording: connection, time (ns), CDR bytes.

    Args:
        reader: Open bag.
        connections: Topics to read; must not be empty.
        start: Time (ns) of the first message wanted.

    Raises:
        BagError: the bag is corrupt from here on.

    """
    messages = reader.messages(connections, start=start)
    while True:
        try:
            connection, stamp, data = next(messages)
        except StopIteration:
            return
        except Exception as error:  # As in open_bag.
            raise _corrupt(reader.path, error) from error
        yield connection, stamp, bytes(data)


def bag_topics(path: str | Path) -> list[BagTopic]:
    """Topics of a bag in the order of its metadata.

    A bag folder is judged by its metadata.yaml alone, so that this works where ROS can play a
    bag but rosbags is not installed.

    Raises:
        BagError: the bag or its metadata cannot be read.

    """
    path = checked_path(path)
    if not path.is_dir():
        reader = open_bag(path)
        try:
            return [BagTopic(c.topic, c.msgtype, c.msgcount) for c in reader.connections]
        finally:
            reader.close()
    try:
        return [BagTopic(entry['topic_metadata']['name'], entry['topic_metadata']['type'],
                         int(entry['message_count']))
                for entry in metadata_of(path / 'metadata.yaml')['topics_with_message_count']]
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(path, error) from error


def custom_data(path: str | Path) -> dict[str, Any]:
    """What the writer of a bag folder has said about it; nothing of a lone file.

    Raises:
        BagError: the bag or its metadata cannot be read.

    """
    path = checked_path(path)
    said = metadata_of(path / 'metadata.yaml').get('custom_data') if path.is_dir() else None
    return said if isinstance(said, dict) else {}


def metadata_of(path: Path) -> dict[str, Any]:
    """What a bag's metadata.yaml says.

    Raises:
        BagError: it is missing, or not such a file.

    """
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8'))
        information = document['rosbag2_bagfile_information']
        if not isinstance(information, dict):
            raise TypeError(f'rosbag2_bagfile_information is {quoted(str(information))}')
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        raise _corrupt(path, error) from error
    return information


def existing_path(path: str | Path) -> Path:
    """Path of something that is there, whatever it is.

    Raises:
        BagError: it is not.

    """
    try:
        path = user_path(path)
        path.stat()
    except FileNotFoundError as error:
        raise BagError(f'There is no bag at {quoted(str(Path(path).absolute()))}.') from error
    except OSError as error:
        raise BagError(f'{quoted(str(path))} cannot be a bag: {error.strerror}.') from error
    return path


def checked_path(path: str | Path) -> Path:
    """Path of something that looks like a rosbag2 bag.

    Raises:
        BagError: it does not.

    """
    path = existing_path(path)
    if path.is_dir():
        if not (path / 'metadata.yaml').is_file():
            raise BagError(
                f'{path} is a folder without metadata.yaml, so not a rosbag2 bag. Give the folder '
                'that holds metadata.yaml; after a crash of the recorder, '
                f"'ros2 bag reindex {path}' writes it."
            )
        return path
    if path.suffix == '.bag':
        raise BagError(
            f'{path} is a ROS 1 bag. Convert it once: '
            f"'rosbags-convert --src {path} --dst {path.with_suffix('')}'."
        )
    if path.suffix not in ('.mcap', '.db3') or not path.is_file():
        what = '' if path.is_file() else ' but a pipe or a device'
        raise BagError(
            f'{path} is not a bag{what}: expected a rosbag2 folder, a .mcap or a .db3 file.')
    return path


def camera_topics(
    topics: list[BagTopic], image: str = '', choice: str = CHOICE,
) -> CameraTopics:
    """Find the camera among a bag's topics.

    Args:
        topics: Topics of the bag.
        image: Image topic to use, with or without `/compressed`; empty: the only camera there is.
        choice: how the user says which one it is; by default that of launch files.

    Raises:
        BagError: no camera, several, or not the one asked for; lists the candidates.

    """
    with_messages = [topic for topic in topics if topic.count]
    raw = [t.name for t in with_messages if t.type == IMAGE]
    compressed = [
        t.name.removesuffix('/compressed')
        for t in with_messages
        if t.type == COMPRESSED_IMAGE and t.name.endswith('/compressed')
    ]
    everything = list(dict.fromkeys([*raw, *compressed]))
    if image:
        base = f'/{image.removesuffix("/compressed").removeprefix("/")}'
        if base not in everything:
            raise BagError(
                f"The bag has no images on '{base}'. Its image topics: {_listed(everything)}."
            )
    else:
        base = _only_camera(everything, choice)
    info = camera_info_beside(base)
    has_info = any(t.name == info and t.type == CAMERA_INFO for t in with_messages)
    return CameraTopics(
        image=base,
        camera_info=info if has_info else None,
        compressed=base not in raw or image.endswith('/compressed'),
    )


def camera_info_beside(image: str) -> str:
    """Topic of an image's camera_info by image_transport's rule: the image's sibling."""
    namespace, slash, _ = image.removesuffix('/compressed').rpartition('/')
    return f'{namespace}{slash}camera_info'


def _only_camera(names: list[str], choice: str) -> str:
    cameras = [name for name in names if not any(word in name for word in NOT_PHOTOGRAPHS)]
    if len(cameras) == 1:
        return cameras[0]
    if cameras:
        raise BagError(
            f'The bag has several cameras: {_listed(cameras)}. Choose one with {choice}.')
    raise BagError(
        'The bag has no camera image (sensor_msgs Image, or CompressedImage on a topic that '
        f'ends in /compressed). Its other image topics: {_listed(names)}; '
        f'if it is one of them, say so with {choice.partition(",")[0]}.')


def _corrupt(path: object, error: Exception) -> BagError:
    reason = f'it has no {error}' if isinstance(error, KeyError) else \
        ' '.join(str(error).split())[:200] or type(error).__name__
    return BagError(
        f'{path} cannot be read as a rosbag2 bag: {reason.rstrip(".")}. If its recorder crashed, '
        f"try 'ros2 bag reindex {path}', for mcap 'mcap recover FILE -o NEW'; else copy or record "
        'it again.')


def _listed(names: list[str]) -> str:
    return ', '.join(names) or 'none'
