# SPDX-License-Identifier: Apache-2.0
"""Bags as recordings: images and what measured depth beside them. Needs `rosbags`, no ROS.

`open_recording` opens any other recording, too.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.camera import CameraModel, notices_of
from ..core.errors import DataError, quoted
from ..core.files import user_path
from ..core.transforms import TransformTree, frame_name
from ..messages.depth import to_depth
from ..messages.image_io import to_rgb
from ..messages.ranges import cloud_points, scan_points
from ..messages.types import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    POINT_CLOUD,
    SCAN,
    TF,
    nanoseconds,
    parse,
    stamp_of,
    topic_name,
)
from ..sources.bag import (
    DEPTH,
    NANOSECONDS,
    NOT_PHOTOGRAPHS,
    PICTURE,
    Bag,
    BagTopic,
    CameraTopics,
    camera_info_beside,
    camera_topics,
    is_bag,
    language_depth_topics,
    unread_sensors,
)
from ..sources.bag import read as read_message
from .folders import files_beside, knows_depth_camera, of_folder, training_split
from .recordings import (
    AS_IT_IS,
    LIMIT_FRAMES,
    Clipping,
    Frame,
    LeftOut,
    Moment,
    Options,
    Recording,
    RecordingError,
    moments_in_time,
    nearest_pairs,
)
from .registration import (
    REGISTER,
    camera_of_size,
    check_size,
    is_registered,
    of_same_view,
    rasterize,
    same_view,
    unproject,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from .recordings import Float32

_LATE_TRANSFORM = 0.1  # seconds that the last transform may be older than a message


def open_recording(source: str | Path, options: Options = AS_IT_IS) -> Recording:
    """Open a bag, a folder of images and depth, or a data set's training split.

    Args:
        source: its path.
        options: how to read it.

    Raises:
        DepthClipError: there is none, or it holds no images with depth.

    """
    try:
        path = user_path(source)
        path.stat()
    except OSError as error:
        raise RecordingError(f'{quoted(str(source), 200)}: there is no recording: '
                             f'{error.strerror}.') from error
    if is_bag(path):
        return of_bag(path, options)
    files = files_beside(
        path, registered=not knows_depth_camera(path, options)) if path.is_dir() else None
    return of_folder(path, files, options) if files else training_split(path, options)


def of_bag(path: str | Path, options: Options = AS_IT_IS) -> Recording:
    """Images of a bag and the depth nearest to them in time.

    A first pass takes the stamps of the headers, cameras and transforms; images and depth are
    decoded when they are read.

    Raises:
        DepthClipError: the bag cannot be read, or has no images with depth.

    """
    images, depth = _topics_of(path, options)
    bag = _Bag(path, images.topic, depth, options)
    bag.survey()
    bag.notes += bag.clipping.notes + notices_of(bag.camera, bag.depth_camera)
    # In the order of their stamps; a message is known by its place among those of its topic.
    order = [sorted(range(len(found)), key=found.__getitem__) for found in bag.stamps.values()]
    times = [[found[place] for place in places]
             for found, places in zip(bag.stamps.values(), order, strict=True)]
    pairs = nearest_pairs(times[0], times[1], round(options.tolerance * NANOSECONDS))
    if not pairs:
        first, second = (f'{found[0] / NANOSECONDS:.3f} to {found[-1] / NANOSECONDS:.3f} s'
                         if found else 'at no time' for found in times)
        raise RecordingError(
            f'{path}: no image of {bag.image} ({first}) has depth of {depth.name} ({second}) '
            f'within {options.tolerance:g} s of its stamp. Give both drivers the same clock and '
            'record again; where stamps differ by little, --tolerance allows more.')
    bag.left_out.update(LeftOut({
        'images without depth at their time': len(times[0]) - len(pairs),
        'depth without an image at its time': len(times[1]) - len(pairs)}))
    bag.pairs = [(order[0][i], order[1][j]) for i, j in pairs]
    start = times[0][pairs[0][0]]
    bag.moments = moments_in_time(
        [(times[0][i] - start) / NANOSECONDS for i, _ in pairs],
        [f'{times[0][i] / NANOSECONDS:.3f}' for i, _ in pairs])
    return Recording(
        str(path), f'{bag.image} with depth of {depth.name} ({depth.type.rpartition("/")[2]})',
        bag.moments, bag.find, bag.left_out, topics=(bag.image, depth.name),
        notes=bag.notes)


class _Bag:
    """What its messages are read with."""

    def __init__(self, path: str | Path, image: str, depth: BagTopic, options: Options) -> None:
        self.path, self.image, self.depth, self.options = path, image, depth, options
        self.image_info = camera_info_beside(image)
        self.depth_info = camera_info_beside(depth.name.removesuffix('/compressedDepth'))
        self.is_image = depth.type in (IMAGE, COMPRESSED_IMAGE)
        self.cameras: dict[str, CameraModel] = {}  # by topic of camera_info
        self.stamps: dict[str, list[int]] = {image: [], depth.name: []}  # ns
        self.pairs: list[tuple[int, int]] = []  # places of messages, by topic
        self.moments: list[Moment] = []
        self.tree = TransformTree(most_entries=0)
        self.left_out, self.clipping = LeftOut(), Clipping()
        self.notes: list[str] = []
        if options.depth_camera and not self.is_image:
            raise RecordingError(
                f'{path}: --depth-camera is for depth images, and {depth.name} is a '
                f'{depth.type.rpartition("/")[2]}, which has none. Leave it away, or choose a '
                'depth image with --depth TOPIC.')
        self.other_depth_camera = options.depth_camera.model(
            rectified=self.depth_rectified) if options.depth_camera else None

    @property
    def camera(self) -> CameraModel | None:
        """That of the images."""
        return self.options.camera or self.cameras.get(self.image_info)

    @property
    def depth_camera(self) -> CameraModel | None:
        """That of depth images."""
        return self.other_depth_camera or self.cameras.get(self.depth_info)

    @property
    def depth_rectified(self) -> bool:
        """Whether depth images are rectified, as is said, or else by the topic's name."""
        named = bool({'rect', 'rectified'} & {*re.split(r'[/_]', self.depth.name)})
        return named if self.options.depth_rectified is None else self.options.depth_rectified

    def survey(self) -> None:
        """First pass: calibrations of both cameras, transforms, stamps, and where depth clips."""
        with Bag(self.path) as bag:
            types = {topic.topic: topic.msgtype for topic in bag.connections
                     if topic.msgtype == TF or (topic.msgtype == CAMERA_INFO and topic.topic in (
                         self.image_info, self.depth_info))}
            for connection, received, data in bag.messages({*self.stamps, *types}):
                topic = connection.topic
                if topic in self.stamps:  # without a stamp the time of recording is as good
                    if topic == self.depth.name:
                        self._look_for_clipping(data)
                    self.stamps[topic].append(stamp_of(data) or received)
                elif types[topic] == TF or topic not in self.cameras:
                    try:
                        self._take(topic, parse(read_message, data, types[topic], DataError))
                    except (DataError, ValueError) as error:
                        self.left_out[self.left_out.cause(error, topic)] += 1

    def _look_for_clipping(self, data: bytes) -> None:
        """At every so many depth images."""
        every = max(1, self.depth.count // LIMIT_FRAMES)
        if self.is_image and len(self.stamps[self.depth.name]) % every == 0:
            with suppress(DataError):  # it is counted when its frame is read
                self.clipping.look(self._metres(
                    parse(read_message, data, self.depth.type, DataError)))

    def _take(self, topic: str, message: Any) -> None:
        """Keep a camera_info, or transforms."""
        if hasattr(message, 'transforms'):
            for problem in self.tree.add_message(message, static=topic.endswith('tf_static')):
                self.left_out[f'transform: {problem}'] += 1
            return
        self.cameras[topic] = CameraModel.from_info(
            message, self.depth_rectified if topic == self.depth_info else self.options.rectified)

    def find(self, positions: Sequence[int]) -> Iterator[tuple[int, Callable[[], Frame]]]:
        """Second pass; only what still waits for its partner is held, and not decoded."""
        wanted = {key: position for position in positions for key in zip(
            self.stamps, self.pairs[position], strict=True)}
        seen: Counter[str] = Counter()
        waiting: dict[int, dict[str, tuple[str, bytes]]] = defaultdict(dict)
        with Bag(self.path) as bag:
            for connection, _, data in bag.messages(set(self.stamps)):
                topic = connection.topic
                position = wanted.get((topic, seen[topic]))
                seen[topic] += 1
                if position is None:
                    continue
                waiting[position][topic] = connection.msgtype, data
                if len(waiting[position]) == 2:
                    yield position, partial(self._frame, waiting.pop(position), position)

    def _frame(self, parts: dict[str, tuple[str, bytes]], position: int) -> Frame:
        image, depth = (parse(read_message, parts[topic][1], parts[topic][0], DataError)
                        for topic in self.stamps)
        rgb = np.ascontiguousarray(to_rgb(image))
        check_size(self.camera, *rgb.shape[:2],
                   file='--camera-info' if self.options.camera else '')
        return Frame(rgb, self._measured(depth, image, *rgb.shape[:2]), self.camera,
                     self.moments[position])

    def _metres(self, message: Any) -> Float32:
        """Depth of a depth image, on its own pixels."""
        stored = str(getattr(message, 'encoding', getattr(message, 'format', '')))
        return self.options.metres(to_depth(message), integer='32FC1' not in stored)

    def _measured(self, message: Any, image: Any, height: int, width: int) -> Float32:
        """Depth on the image's pixels."""
        frame, target = (frame_name(m.header.frame_id) for m in (message, image))
        camera, depth_camera = self.camera, self.depth_camera
        if self.is_image:
            depth = self.clipping.removed(self._metres(message))
            same_frame = frame == target or not (frame and target)
            if same_frame and same_view(depth_camera, camera):
                return of_same_view(depth, height, width)
        if camera is None or (self.is_image and depth_camera is None):
            raise RecordingError(
                f'{self.path}: depth of {self.depth.name} is in the frame {frame!r}, the image in '
                f'{target!r}, and a camera_info is missing or unusable, so that it cannot be '
                f'brought onto the image. {REGISTER}; of the image with --camera-info FILE.')
        if self.is_image and depth_camera is not None:
            points = unproject(depth, camera_of_size(
                depth_camera, depth, self.depth_info, self.notes))
        else:
            points = (cloud_points if self.depth.type == POINT_CLOUD else scan_points)(message)
            points *= self.options.unit or 1.0
        transform, _ = self.tree.lookup_between(
            target, nanoseconds(image.header.stamp), frame, nanoseconds(message.header.stamp),
            tolerance=_LATE_TRANSFORM)
        return rasterize(transform.apply(points), camera)


def _topics_of(path: str | Path, options: Options) -> tuple[CameraTopics, BagTopic]:
    """The camera and what measures depth; what this package has written measures nothing."""
    with Bag(path) as bag:
        topics, written = bag.topics, language_depth_topics(bag)
    asked = topic_name(options.depth) if options.depth else ''
    passed_over = {*written, options.said} - {asked}
    topics = [topic for topic in topics if topic.name not in passed_over]
    images = camera_topics([t for t in topics if t.name != asked], options.image, '--image TOPIC')
    return images, depth_topic(
        topics, images.image, options.depth, registered=options.depth_camera is None)


def depth_topic(
    topics: Sequence[BagTopic], image: str, wanted: str = '', *, registered: bool = True,
) -> BagTopic:
    """Find what measures depth in a bag.

    Args:
        topics: of the bag.
        image: the camera's topic, which is none.
        wanted: topic to use, `/compressedDepth` may lack; empty: the only depth image, else the
            only cloud, else the only scan.
        registered: of several depth images, take the one that is registered by its name; else,
            because the camera of the depth is given, the one that is not.

    Raises:
        RecordingError: none, several, or not the one asked for.

    """
    known = [t for t in topics if t.count and t.name.removesuffix('/compressed') != image
             and t.type in (IMAGE, COMPRESSED_IMAGE, POINT_CLOUD, SCAN)]
    images = [t for t in known if t.type in (IMAGE, COMPRESSED_IMAGE)]
    found = [t for t in known if t.name.removesuffix('/compressedDepth') == topic_name(wanted)] \
        if wanted else next(filter(None, (
            [t for t in images if 'depth' in t.name and t.content != PICTURE],
            # By its encoding: other maps of numbers are called so.
            [t for t in images if t.content == DEPTH
             and not any(word in t.name for word in NOT_PHOTOGRAPHS)],
            *([t for t in known if t.type == kind] for kind in (POINT_CLOUD, SCAN)),
            # Nothing but a picture: its frames say why they cannot be read.
            [t for t in known if 'depth' in t.name])), [])
    by_name = [t for t in found if is_registered(t.name) is registered]
    for candidates in (by_name, [t for t in found if t.type == IMAGE], found):
        if len(candidates) == 1:
            return candidates[0]
    if found:
        raise RecordingError(
            f'The bag has several sources of depth: {", ".join(t.name for t in found)}. Choose '
            'one with --depth TOPIC.')
    raise RecordingError(
        f"The bag has no depth{f' on {wanted!r}' if wanted else ''}: record a depth image (its "
        'topic named depth), PointCloud2 or LaserScan beside the camera, or name it with --depth '
        f'TOPIC. It has: {", ".join(topic.name for topic in known) or "none"}'
        f'{unread_sensors(topics)}.')


def written_depth(path: str | Path) -> str:
    """Topic of depth that this package has written into a bag; '' where there is none.

    Raises:
        DepthClipError: the bag cannot be read, or there is depth of several cameras.

    """
    with Bag(path) as bag:
        counts = {topic.name: topic.count for topic in bag.topics}
        found = sorted(name for name in language_depth_topics(bag) if counts[name]
                       and name.removesuffix('/compressedDepth').endswith('depth/image'))
    if len(found) > 1:
        raise RecordingError(f'{path} holds depth of several cameras: {", ".join(found)}. Choose '
                             'one with --said TOPIC, and its camera with --image TOPIC.')
    return found[0] if found else ''
