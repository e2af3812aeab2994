# SPDX-License-Identifier: Apache-2.0
"""Bags as recordings: images and what measured depth beside them. Needs `rosbags`, no ROS.

`open_recording` opens any other recording, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.camera import CameraModel
from ..core.errors import DataError, quoted
from ..core.files import user_path
from ..core.transforms import TransformTree
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
    parse,
    stamp_of,
)
from ..sources.bag import (
    NANOSECONDS,
    Bag,
    BagTopic,
    bag_topics,
    camera_info_beside,
    camera_topics,
    custom_data,
    is_bag,
)
from ..sources.bag import read as read_message
from .recordings import (
    AS_IT_IS,
    Frame,
    Moment,
    Options,
    Recording,
    RecordingError,
    moments_in_time,
    nearest_pairs,
    of_folder,
    rasterize,
    resample,
    training_split,
    unproject,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_SAME_FOCAL_LENGTH = 0.02  # of images that show the same view
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
    return (of_bag if is_bag(path) else of_folder if (path / 'rgb').is_dir() else training_split)(
        path, options)


def of_bag(path: str | Path, options: Options = AS_IT_IS) -> Recording:
    """Images of a bag and the depth nearest to them in time.

    A first pass takes the stamps of the headers, cameras and transforms; images and depth are
    decoded when they are read.

    Raises:
        DepthClipError: the bag cannot be read, or has no images with depth.

    """
    topics = [topic for topic in bag_topics(path) if topic.name != options.said]
    images = camera_topics(topics, options.image, '--image TOPIC')
    depth = depth_topic(topics, images.image, options.depth)
    bag = _Bag(path, images.topic, depth, options)
    bag.survey(images.camera_info, camera_info_beside(depth.name.removesuffix('/compressedDepth')))
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
    bag.left_out += Counter({'images without depth at their time': len(times[0]) - len(pairs),
                             'depth without an image at its time': len(times[1]) - len(pairs)})
    bag.pairs = [(order[0][i], order[1][j]) for i, j in pairs]
    start = times[0][pairs[0][0]]
    bag.moments = moments_in_time(
        [(times[0][i] - start) / NANOSECONDS for i, _ in pairs],
        [f'{times[0][i] / NANOSECONDS:.3f}' for i, _ in pairs])
    return Recording(
        str(path), f'{bag.image} with depth of {depth.name} ({depth.type.rpartition("/")[2]})',
        bag.moments, bag.find, bag.left_out, topics=(bag.image, depth.name))


@dataclass(eq=False)
class _Bag:
    """What its messages are read with."""

    path: str | Path
    image: str  # its topic
    depth: BagTopic
    options: Options
    camera: CameraModel | None = None
    depth_camera: CameraModel | None = None
    stamps: dict[str, list[int]] = field(default_factory=dict)  # ns, of both topics
    pairs: list[tuple[int, int]] = field(default_factory=list)  # places of messages, by topic
    moments: list[Moment] = field(default_factory=list)
    tree: TransformTree = field(default_factory=lambda: TransformTree(most_entries=0))
    left_out: Counter[str] = field(default_factory=Counter)

    def survey(self, info: str, depth_info: str) -> None:
        """First pass: the first calibration of both cameras, transforms, and stamps."""
        self.stamps = {self.image: [], self.depth.name: []}
        cameras: dict[str, CameraModel] = {}
        with Bag(self.path) as bag:
            wanted = {topic.name for topic in bag.topics if topic.type == TF or (
                topic.type == CAMERA_INFO and topic.name in (info, depth_info))}
            for connection, received, data in bag.messages({*self.stamps, *wanted}):
                topic = connection.topic
                if topic in self.stamps:  # without a stamp the time of recording is as good
                    self.stamps[topic].append(stamp_of(data) or received)
                    continue
                try:
                    message = parse(read_message, data, connection.msgtype, DataError)
                    if connection.msgtype == TF:
                        self.left_out.update(f'transform: {problem}' for problem in
                                             self.tree.add_message(
                                                 message, static=topic.endswith('tf_static')))
                    elif topic not in cameras:
                        cameras[topic] = CameraModel.from_info(message, self.options.rectified)
                except (DataError, ValueError) as error:
                    self.left_out[f'{topic}: {error}'] += 1
        self.camera = self.options.camera or cameras.get(info)
        self.depth_camera = cameras.get(depth_info)

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
        if self.camera is not None:
            self.camera.check_size(rgb.shape[1], rgb.shape[0])
        return Frame(rgb, self._measured(depth, image, *rgb.shape[:2]), self.camera,
                     self.moments[position])

    def _measured(
        self, message: Any, image: Any, height: int, width: int,
    ) -> NDArray[np.float32]:
        """Depth on the image's pixels."""
        frame, target = str(message.header.frame_id), str(image.header.frame_id)
        is_image = self.depth.type in (IMAGE, COMPRESSED_IMAGE)
        if is_image:
            stored = str(getattr(message, 'encoding', getattr(message, 'format', '')))
            depth = self.options.metres(to_depth(message), integer='32FC1' not in stored)
            same_frame = frame == target or not (frame and target)
            if same_frame and _same_view(self.depth_camera, self.camera):
                return resample(depth, height, width)
        if self.camera is None or (is_image and self.depth_camera is None):
            raise RecordingError(
                f'{self.path}: depth of {self.depth.name} is in the frame {frame!r}, the image in '
                f'{target!r}, and a camera_info is missing or unusable, so that it cannot be '
                'brought onto the image. Record camera_info beside each of them, and /tf_static; '
                "or give the image's with --camera-info, or record depth that is registered to "
                'the image (aligned_depth_to_color).')
        if is_image and self.depth_camera is not None:
            self.depth_camera.check_size(depth.shape[1], depth.shape[0])
            points = unproject(depth, self.depth_camera)
        else:
            points = (cloud_points if self.depth.type == POINT_CLOUD else scan_points)(message)
        stamp = message.header.stamp
        transform = self.tree.lookup(
            target, frame, stamp.sec * NANOSECONDS + stamp.nanosec, tolerance=_LATE_TRANSFORM)
        return rasterize(transform.apply(points), self.camera)


def _same_view(depth: CameraModel | None, image: CameraModel | None) -> bool:
    """Whether two cameras in one place see the same, if in another number of pixels."""
    if depth is None or image is None:
        return True
    scaled = depth.scaled(image.width, image.height)
    shift = np.abs(scaled.K[:2, 2] - image.K[:2, 2]) / (image.width, image.height)
    focal = np.abs(np.diag(scaled.K)[:2] / np.diag(image.K)[:2] - 1)
    return bool(max(shift.max(), focal.max()) <= _SAME_FOCAL_LENGTH)


def depth_topic(topics: Sequence[BagTopic], image: str, wanted: str = '') -> BagTopic:
    """Find what measures depth in a bag.

    Args:
        topics: of the bag.
        image: the camera's topic, which is none.
        wanted: topic to use; empty: the only depth image, else the only cloud, else the only
            scan; of several depth images the one that is registered by its name.

    Raises:
        RecordingError: none, several, or not the one asked for.

    """
    kinds = IMAGE, COMPRESSED_IMAGE, POINT_CLOUD, SCAN
    known = [t for t in topics if t.count and t.name.removesuffix('/compressed') != image
             and t.type in kinds]
    found = [t for t in known if t.name == f'/{wanted.removeprefix("/")}'] if wanted else next(
        filter(None, ([t for t in known if t.type == kind and (
            'depth' in t.name or kind in (POINT_CLOUD, SCAN))] for kind in kinds)), [])
    registered = [t for t in found if 'aligned' in t.name or 'regist' in t.name]
    for candidates in (registered, found):
        if len(candidates) == 1:
            return candidates[0]
    if found:
        raise RecordingError(
            f'The bag has several sources of depth: {", ".join(t.name for t in found)}. Choose '
            'one with --depth TOPIC.')
    raise RecordingError(
        f"The bag has no depth{f' on {wanted!r}' if wanted else ''}: record a depth image (its "
        'topic named depth), PointCloud2 or LaserScan beside the camera, or name it with --depth '
        f'TOPIC. It has: {", ".join(topic.name for topic in known) or "none"}.')


def written_depth(path: str | Path) -> str:
    """Topic of depth by the node or by `depthclip bag` in a bag; '' where there is none.

    A bag that `depthclip bag` has written says so, and has it on depth/image in any namespace;
    of others only /depth/image with /depth/camera_info beside it is taken for the node's.

    Raises:
        DepthClipError: the bag cannot be read, or there is depth of several cameras.

    """
    kinds = {topic.name: topic.type for topic in bag_topics(path) if topic.count}
    is_ours = 'depthclip_ros' in custom_data(path)
    found = [name for name in kinds if (image := name.removesuffix('/compressedDepth'))
             and (image == '/depth/image' or (is_ours and image.endswith('/depth/image')))
             and kinds.get(camera_info_beside(image)) == CAMERA_INFO]
    if len(found) > 1:
        raise RecordingError(f'{path} holds depth of several cameras: {", ".join(found)}. Choose '
                             'one with --said TOPIC, and its camera with --image TOPIC.')
    return found[0] if found else ''
