# SPDX-License-Identifier: Apache-2.0
"""Images of files, folders and rosbag2 bags with their names, evenly chosen. Needs no ROS."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..calibrate.recordings import spread_evenly
from ..core.errors import ConfigError, DataError, ImageError
from ..core.files import user_path
from ..node.image_io import to_rgb
from ..node.messages import parse
from ..sources.bag import NANOSECONDS, Bag, camera_topics, is_bag, read
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
) -> Iterator[NamedFrame]:
    """Images in the order of their paths; those of a bag have the bag's first camera_info.

    Args:
        paths: files, folders and bags.
        most: images of each path, evenly chosen from the first to the last.
        skip: called with the error of an image that cannot be read.
        topic: of the images, where a bag has several cameras.

    Raises:
        DepthClipError: a path is missing, a folder has no picture, or a bag no camera.

    """
    for path in paths:
        if is_bag(user_path(path)):
            yield from _of_bag(path, most, skip, topic)
            continue
        files = picture_files([path])
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
    with Bag(path) as bag:
        camera = camera_topics(bag.topics, topic, '--topic TOPIC')
        info = None
        for connection, _, data in bag.messages({camera.camera_info}):
            with suppress(DataError):  # the next one is as good
                info = parse(read, data, connection.msgtype, DataError)
                break
        count = sum(topic.count for topic in bag.topics if topic.name == camera.topic)
        wanted = set(spread_evenly(count, most))
        if not wanted:
            raise ConfigError(f'{path}: no image on {camera.topic}.')
        for number, (connection, time, data) in enumerate(bag.messages({camera.topic})):
            if number not in wanted:
                continue
            try:
                rgb = to_rgb(parse(read, data, connection.msgtype, ImageError))
            except DataError as error:
                skip(error)
                continue
            yield NamedFrame(f'{(time - bag.begin) / NANOSECONDS:.2f} s',
                             np.ascontiguousarray(rgb), info)
