# SPDX-License-Identifier: Apache-2.0
"""Bags as recordings: images with depth of a sensor. Needs `rosbags`, no ROS.

`open_recording` opens recordings of every kind.
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
from ..core.tf_tree import TransformTree, frame_name
from ..messages.depth import to_depth
from ..messages.image_io import to_rgb
from ..messages.message_types import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    POINT_CLOUD,
    SCAN,
    TF,
    nanoseconds,
    parse_message,
    stamp_of,
    topic_name,
)
from ..messages.range_sensors import cloud_points, scan_points
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
    deserialize,
    is_bag,
    language_depth_topics,
    unread_sensors,
)
from .folders import files_beside, knows_depth_camera, of_folder, training_split
from .recordings import (
    CLIPPING_FRAMES,
    DEFAULT_OPTIONS,
    Clipping,
    FailureCounts,
    Frame,
    Moment,
    Options,
    Recording,
    RecordingError,
    moments_in_time,
    nearest_pairs,
)
from .registration import (
    REGISTER,
    check_size,
    is_registered,
    measured_points,
    of_same_view,
    rasterize,
    same_view,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from .recordings import Float32

_TRANSFORM_TOLERANCE = 0.1  # seconds from the last transform to a later message


def open_recording(source: str | Path, options: Options = DEFAULT_OPTIONS) -> Recording:
    """Open a bag, a folder of images and depth, or a data set's training split.

    Args:
        source: path of the recording.
        options: for reading it.

    Raises:
        DepthClipError: there is no recording, or it holds no images with depth.

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


def of_bag(path: str | Path, options: Options = DEFAULT_OPTIONS) -> Recording:
    """Open a bag, and pair its images with the depth nearest in time.

    A first pass reads header stamps, cameras and transforms, and samples of depth for the value
    at which it clips; images and depth are decoded when `Recording.read` needs them.

    Raises:
        DepthClipError: the bag cannot be read, or has no images with depth.

    """
    images, depth = _topics_of(path, options)
    bag = _Bag(path, images.topic, depth, options)
    bag.survey()
    bag.notes += bag.clipping.notes + notices_of(bag.camera, bag.depth_camera)
    # Indices of the messages of each topic, in the order of their stamps.
    order = [sorted(range(len(stamps)), key=stamps.__getitem__) for stamps in bag.stamps.values()]
    times = [[stamps[index] for index in indices]
             for stamps, indices in zip(bag.stamps.values(), order, strict=True)]
    pairs = nearest_pairs(times[0], times[1], round(options.tolerance * NANOSECONDS))
    if not pairs:
        images_at, depth_at = (
            f'{stamps[0] / NANOSECONDS:.3f} to {stamps[-1] / NANOSECONDS:.3f} s'
            if stamps else 'at no time' for stamps in times)
        raise RecordingError(
            f'{path}: no image of {bag.image} ({images_at}) has depth of {depth.name} '
            f'({depth_at}) within {options.tolerance:g} s of its stamp. Give both drivers the '
            'same clock and record again; where stamps differ by little, --tolerance allows more.')
    bag.failures.update(FailureCounts({
        'images without depth at their time': len(times[0]) - len(pairs),
        'depth without an image at its time': len(times[1]) - len(pairs)}))
    bag.pairs = [(order[0][i], order[1][j]) for i, j in pairs]
    start = times[0][pairs[0][0]]
    bag.moments = moments_in_time(
        [(times[0][i] - start) / NANOSECONDS for i, _ in pairs],
        [f'{times[0][i] / NANOSECONDS:.3f}' for i, _ in pairs])
    return Recording(
        str(path), f'{bag.image} with depth of {depth.name} ({depth.type.rpartition("/")[2]})',
        bag.moments, bag.decoders, bag.failures, topics=(bag.image, depth.name),
        notes=bag.notes)


class _Bag:
    """Topics, cameras, transforms and pairs of a bag, for decoding its messages."""

    def __init__(self, path: str | Path, image: str, depth: BagTopic, options: Options) -> None:
        self.path, self.image, self.depth, self.options = path, image, depth, options
        self.image_info = camera_info_beside(image)
        self.depth_info = camera_info_beside(depth.name.removesuffix('/compressedDepth'))
        self.is_image = depth.type in (IMAGE, COMPRESSED_IMAGE)
        self.cameras: dict[str, CameraModel] = {}  # by topic of camera_info
        self.stamps: dict[str, list[int]] = {image: [], depth.name: []}  # ns
        self.pairs: list[tuple[int, int]] = []  # indices of messages, by topic
        self.moments: list[Moment] = []
        self.tree = TransformTree(most_entries=0)
        self.failures, self.clipping = FailureCounts(), Clipping()
        self.notes: list[str] = []
        if options.depth_camera and not self.is_image:
            raise RecordingError(
                f'{path}: --depth-camera is for depth images, and {depth.name} is a '
                f'{depth.type.rpartition("/")[2]}, which has none. Leave it away, or choose a '
                'depth image with --depth TOPIC.')
        self.given_depth_camera = options.depth_camera.model(
            rectified=self.depth_rectified) if options.depth_camera else None

    @property
    def camera(self) -> CameraModel | None:
        """Camera of the images."""
        return self.options.camera or self.cameras.get(self.image_info)

    @property
    def depth_camera(self) -> CameraModel | None:
        """Camera of the depth images."""
        return self.given_depth_camera or self.cameras.get(self.depth_info)

    @property
    def depth_rectified(self) -> bool:
        """Whether depth images are rectified: by the options, else by the topic's name."""
        by_name = bool({'rect', 'rectified'} & {*re.split(r'[/_]', self.depth.name)})
        return by_name if self.options.depth_rectified is None else self.options.depth_rectified

    def survey(self) -> None:
        """Read both cameras, transforms, stamps, and the clipping of depth: the first pass."""
        with Bag(self.path) as bag:
            types = {topic.topic: topic.msgtype for topic in bag.connections
                     if topic.msgtype == TF or (topic.msgtype == CAMERA_INFO and topic.topic in (
                         self.image_info, self.depth_info))}
            for connection, received, data in bag.messages({*self.stamps, *types}):
                topic = connection.topic
                if topic in self.stamps:  # without a stamp, the time of recording replaces it
                    if topic == self.depth.name:
                        self._update_clipping(data)
                    self.stamps[topic].append(stamp_of(data) or received)
                elif types[topic] == TF or topic not in self.cameras:
                    try:
                        self._add(topic, parse_message(
                            deserialize, data, types[topic], DataError))
                    except (DataError, ValueError) as error:
                        self.failures[self.failures.cause(error, topic)] += 1

    def _update_clipping(self, data: bytes) -> None:
        """Count clipped pixels in about `CLIPPING_FRAMES` of the depth images."""
        every = max(1, self.depth.count // CLIPPING_FRAMES)
        if self.is_image and len(self.stamps[self.depth.name]) % every == 0:
            with suppress(DataError):  # counted when the frame is read
                self.clipping.update(self._metres(
                    parse_message(deserialize, data, self.depth.type, DataError)))

    def _add(self, topic: str, message: Any) -> None:
        """Store a camera_info, or transforms."""
        if hasattr(message, 'transforms'):
            for problem in self.tree.add_message(message, static=topic.endswith('tf_static')):
                self.failures[f'transform: {problem}'] += 1
            return
        self.cameras[topic] = CameraModel.from_info(
            message, self.depth_rectified if topic == self.depth_info else self.options.rectified)

    def decoders(self, positions: Sequence[int]) -> Iterator[tuple[int, Callable[[], Frame]]]:
        """Pair the messages of some positions in a second pass, undecoded; see `Recording`."""
        position_of = {key: position for position in positions for key in zip(
            self.stamps, self.pairs[position], strict=True)}
        index: Counter[str] = Counter()
        waiting: dict[int, dict[str, tuple[str, bytes]]] = defaultdict(dict)
        with Bag(self.path) as bag:
            for connection, _, data in bag.messages(set(self.stamps)):
                topic = connection.topic
                position = position_of.get((topic, index[topic]))
                index[topic] += 1
                if position is None:
                    continue
                waiting[position][topic] = connection.msgtype, data
                if len(waiting[position]) == 2:
                    yield position, partial(self._frame, waiting.pop(position), position)

    def _frame(self, parts: dict[str, tuple[str, bytes]], position: int) -> Frame:
        image, depth = (parse_message(deserialize, parts[topic][1], parts[topic][0], DataError)
                        for topic in self.stamps)
        rgb = np.ascontiguousarray(to_rgb(image))
        check_size(self.camera, *rgb.shape[:2],
                   file='--camera-info' if self.options.camera else '')
        return Frame(rgb, self._register(depth, image, *rgb.shape[:2]), self.camera,
                     self.moments[position])

    def _metres(self, message: Any) -> Float32:
        """Convert a depth image to metres, without registration."""
        encoding = str(getattr(message, 'encoding', getattr(message, 'format', '')))
        return self.options.metres(to_depth(message), integer='32FC1' not in encoding)

    def _register(self, message: Any, image: Any, height: int, width: int) -> Float32:
        """Register depth, a cloud or a scan to the image's pixels."""
        frame, target = (frame_name(m.header.frame_id) for m in (message, image))
        camera, depth_camera = self.camera, self.depth_camera
        if self.is_image:
            depth = self.clipping.remove(self._metres(message))
            same_frame = frame == target or not (frame and target)
            if same_frame and same_view(depth_camera, camera):
                return of_same_view(depth, height, width)
        if camera is None or (self.is_image and depth_camera is None):
            raise RecordingError(
                f'{self.path}: depth of {self.depth.name} is in the frame {frame!r}, the image in '
                f'{target!r}, and a camera_info is missing or unusable, so that it cannot be '
                f'brought onto the image. {REGISTER}; of the image with --camera-info FILE.')
        if self.is_image and depth_camera is not None:
            points = measured_points(depth, depth_camera, self.depth_info, self.notes)
        else:
            points = (cloud_points if self.depth.type == POINT_CLOUD else scan_points)(message)
            points *= self.options.unit or 1.0
        transform, _ = self.tree.lookup_between(
            target, nanoseconds(image.header.stamp), frame, nanoseconds(message.header.stamp),
            tolerance=_TRANSFORM_TOLERANCE)
        return rasterize(transform.apply(points), camera)


def _topics_of(path: str | Path, options: Options) -> tuple[CameraTopics, BagTopic]:
    """Find the topics of the camera and of measured depth, which language depth is not."""
    with Bag(path) as bag:
        topics, language = bag.topics, language_depth_topics(bag)
    depth = topic_name(options.depth) if options.depth else ''
    excluded = {*language, options.excluded_topic} - {depth}
    topics = [topic for topic in topics if topic.name not in excluded]
    images = camera_topics([t for t in topics if t.name != depth], options.image, '--image TOPIC')
    return images, depth_topic(
        topics, images.image, options.depth, registered=options.depth_camera is None)


def depth_topic(
    topics: Sequence[BagTopic], image: str, name: str = '', *, registered: bool = True,
) -> BagTopic:
    """Find the topic of measured depth in a bag.

    Args:
        topics: of the bag.
        image: topic of the camera's images.
        name: topic to use, with or without `/compressedDepth`; '': the only depth image, else
            the only cloud, else the only scan.
        registered: of several depth images, prefer one whose name says registered; False prefers
            another, because the depth camera is given.

    Raises:
        RecordingError: there is no such topic, or there are several.

    """
    sensors = [t for t in topics if t.count and t.name.removesuffix('/compressed') != image
             and t.type in (IMAGE, COMPRESSED_IMAGE, POINT_CLOUD, SCAN)]
    images = [t for t in sensors if t.type in (IMAGE, COMPRESSED_IMAGE)]
    matches = [t for t in sensors if t.name.removesuffix('/compressedDepth') == topic_name(name)] \
        if name else next(filter(None, (
            [t for t in images if 'depth' in t.name and t.content != PICTURE],
            # By encoding alone, except names of other numeric maps.
            [t for t in images if t.content == DEPTH
             and not any(word in t.name for word in NOT_PHOTOGRAPHS)],
            *([t for t in sensors if t.type == kind] for kind in (POINT_CLOUD, SCAN)),
            # A picture of depth: the error of its frames gives the reason.
            [t for t in sensors if 'depth' in t.name])), [])
    by_name = [t for t in matches if is_registered(t.name) is registered]
    for candidates in (by_name, [t for t in matches if t.type == IMAGE], matches):
        if len(candidates) == 1:
            return candidates[0]
    if matches:
        raise RecordingError(
            f'The bag has several sources of depth: {", ".join(t.name for t in matches)}. Choose '
            'one with --depth TOPIC.')
    raise RecordingError(
        f"The bag has no depth{f' on {name!r}' if name else ''}: record a depth image (its "
        'topic named depth), PointCloud2 or LaserScan beside the camera, or name it with --depth '
        f'TOPIC. It has: {", ".join(topic.name for topic in sensors) or "none"}'
        f'{unread_sensors(topics)}.')


def language_depth_topic(path: str | Path) -> str:
    """Return the topic of language depth that this package wrote into a bag; '' without one.

    Raises:
        DepthClipError: the bag cannot be read, or has language depth of several cameras.

    """
    with Bag(path) as bag:
        counts = {topic.name: topic.count for topic in bag.topics}
        names = sorted(name for name in language_depth_topics(bag) if counts[name]
                       and name.removesuffix('/compressedDepth').endswith('depth/image'))
    if len(names) > 1:
        raise RecordingError(f'{path} holds depth of several cameras: {", ".join(names)}. Choose '
                             'one with --said TOPIC, and its camera with --image TOPIC.')
    return names[0] if names else ''
