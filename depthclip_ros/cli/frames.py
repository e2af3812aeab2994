# SPDX-License-Identifier: Apache-2.0
"""Images of files, folders and rosbag2 bags with their names, evenly chosen. Needs no ROS."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..bags.messages import read
from ..calibrate.recordings import spread_evenly
from ..core.errors import ConfigError, DataError, ImageError
from ..core.files import user_path
from ..node.image_io import to_rgb
from ..sources.bag import (
    NANOSECONDS,
    bag_messages,
    bag_topics,
    camera_topics,
    is_bag,
    open_bag,
)
from ..sources.pictures import picture_files, read_picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray


class NamedFrame(NamedTuple):
    """One image: a name to show, uint8 (H, W, 3) RGB, and its sensor_msgs/CameraInfo or None."""

    name: str
    rgb: NDArray[np.uint8]
    info: Any = None


def named_frames(
    paths: Sequence[str], most: int, skip: Callable[[DataError], None], topic: str = '',
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[NamedFrame]:
    """Images in the order of their paths; those of a bag have the bag's first camera_info.

    Args:
        paths: files, folders and bags.
        most: images of each path, evenly chosen from the first to the last.
        skip: called with the error of an image that cannot be read.
        topic: of the images, where a bag has several cameras.
        say: told what is left out of folders.

    Raises:
        DepthClipError: a path is missing, a folder has no picture, or a bag no camera.

    """
    for path in paths:
        if is_bag(user_path(path)):
            yield from _of_bag(path, most, skip, topic)
            continue
        files = picture_files([path], say)
        for place in spread_evenly(len(files), most):
            try:
                rgb = np.ascontiguousarray(read_picture(files[place])[..., ::-1])
            except ImageError as error:
                skip(error)
                continue
            yield NamedFrame(files[place].name, rgb)


def _of_bag(
    path: str, most: int, skip: Callable[[DataError], None], topic: str,
) -> Iterator[NamedFrame]:
    camera = camera_topics(bag_topics(path), topic, '--topic TOPIC')
    name = camera.image + '/compressed' * camera.compressed
    with closing(open_bag(path)) as reader:
        def messages(topic: str | None) -> Iterator[tuple[Any, int, Any]]:
            connections = [c for c in reader.connections if c.topic == topic]
            return iter(()) if not connections else bag_messages(
                reader, connections, reader.start_time)

        info = None
        for connection, _, data in messages(camera.camera_info):
            with suppress(DataError):  # the next one is as good
                info = _message(path, connection, data)
                break
        count = sum(c.msgcount for c in reader.connections if c.topic == name)
        if not count:
            raise ConfigError(f'{path}: no image on {name}.')
        wanted = set(spread_evenly(count, most))
        for number, (connection, time, data) in enumerate(messages(name)):
            if number not in wanted:
                continue
            try:
                rgb = np.ascontiguousarray(to_rgb(_message(path, connection, data)))
            except DataError as error:
                skip(error)
                continue
            yield NamedFrame(f'{(time - reader.start_time) / NANOSECONDS:.2f} s', rgb, info)


def _message(path: str, connection: Any, data: Any) -> Any:
    try:
        return read(data, connection.msgtype)
    except Exception as error:  # whatever its decoder raises
        raise DataError('corrupt message', f'{path}: {connection.topic}: '
                        f'{type(error).__name__}') from error
