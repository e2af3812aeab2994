# SPDX-License-Identifier: Apache-2.0
"""Bags as recordings: images and what measured depth beside them. Needs `rosbags`, no ROS."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.camera import CameraModel
from ..core.errors import CameraInfoError, DataError
from ..core.transforms import TransformError, TransformTree
from ..node.image_io import to_depth, to_rgb
from ..node.messages import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    POINT_CLOUD,
    SCAN,
    TF,
    stamp_of,
)
from ..node.ranges import cloud_points, scan_points
from ..sources.bag import (
    NANOSECONDS,
    Bag,
    BagTopic,
    bag_topics,
    camera_info_beside,
    camera_topics,
    custom_data,
)
from ..sources.bag import read as read_message
from .recordings import (
    AS_IT_IS,
    Frame,
    LeftOut,
    Moment,
    Options,
    Recording,
    RecordingError,
    in_metres,
    moments_in_time,
    nearest_pairs,
    rasterize,
    resample,
    unproject,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from rosbags.interfaces import Connection

_SAME_FOCAL_LENGTH = 0.02  # of images that show the same view
_MOST_WAITING = 200  # messages whose partner comes later in the bag
_LATE_TRANSFORM = 0.1  # seconds that the last transform may be older than a message


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
    beside = camera_info_beside(depth.name.removesuffix('/compressedDepth'))
    infos = [topic.name for topic in topics if topic.type == CAMERA_INFO]
    bag = _Bag(path, images.topic, depth.name, depth.type, options)
    cameras, stamps = bag.survey([name for name in infos if name in (images.camera_info, beside)])
    bag.camera = options.camera or cameras.get(images.camera_info)
    bag.depth_camera = cameras.get(beside)
    # In the order of their stamps; a message is known by its place among those of its topic.
    order = [sorted(range(len(of_one)), key=of_one.__getitem__) for of_one in stamps]
    times = [[of_one[i] for i in places] for of_one, places in zip(stamps, order, strict=True)]
    pairs = nearest_pairs(times[0], times[1], round(options.tolerance * NANOSECONDS))
    for of_one, what in zip(times, (
            'images without depth at their time', 'depth without an image at its time'),
            strict=True):
        if len(of_one) > len(pairs):
            bag.left_out[what] += len(of_one) - len(pairs)
    if not pairs:
        first, second = (f'{of_one[0] / NANOSECONDS:.3f} to {of_one[-1] / NANOSECONDS:.3f} s'
                         if of_one else 'at no time' for of_one in times)
        raise RecordingError(
            f'{path}: no image of {bag.image} ({first}) has depth of {depth.name} ({second}) '
            f'within {options.tolerance:g} s of its stamp. Give both drivers the same clock and '
            'record again; where stamps differ by little, --tolerance allows more.')
    bag.pairs = [(order[0][i], order[1][j]) for i, j in pairs]
    start = times[0][pairs[0][0]]
    bag.moments = moments_in_time(
        [(times[0][i] - start) / NANOSECONDS for i, _ in pairs],
        [f'{times[0][i] / NANOSECONDS:.3f}' for i, _ in pairs])
    return Recording(
        str(path), f'{bag.image} with depth of {depth.name} ({depth.type.rpartition("/")[2]})',
        bag.moments, bag.read, bag.left_out, topics=(bag.image, depth.name))


@dataclass(eq=False)
class _Bag:
    """What its messages are read with."""

    path: str | Path
    image: str  # topics
    depth: str
    depth_type: str
    options: Options
    camera: CameraModel | None = None
    depth_camera: CameraModel | None = None
    pairs: list[tuple[int, int]] = field(default_factory=list)  # places of messages, by topic
    moments: list[Moment] = field(default_factory=list)
    tree: TransformTree = field(default_factory=lambda: TransformTree(most_entries=0))
    left_out: LeftOut = field(default_factory=LeftOut)

    def _messages(
        self, topics: Collection[str], kind: str = '',
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Messages of some topics, and of all of a type."""
        with Bag(self.path) as bag:
            yield from bag.messages(
                {topic.name for topic in bag.topics if topic.name in topics or topic.type == kind})

    def _decode(self, connection: Connection, data: bytes) -> Any:
        try:
            return read_message(data, connection.msgtype)
        except Exception as error:  # whatever its decoder raises
            raise DataError('unreadable message', f'{connection.topic}: no {connection.msgtype} '
                            f'({type(error).__name__})') from error

    def survey(
        self, infos: Collection[str],
    ) -> tuple[dict[str, CameraModel], list[list[int]]]:
        """First pass: cameras by topic, and the stamps of images and depth [ns].

        The first calibration of each camera counts; others are counted.
        """
        cameras: dict[str, CameraModel] = {}
        stamps: dict[str, list[int]] = {self.image: [], self.depth: []}
        for connection, received, data in self._messages([*stamps, *infos], TF):
            topic = connection.topic
            if topic in stamps:
                time = max(0, stamp_of(data) or 0)
                if not time:
                    self.left_out[f'{topic}: stamp 0, the time of recording is taken'] += 1
                stamps[topic].append(time or received)
                continue
            try:
                message = self._decode(connection, data)
                if topic in infos:
                    camera = CameraModel.from_info(message, self.options.rectified)
                    known = cameras.setdefault(topic, camera)
                    if (known.width, known.height) != (camera.width, camera.height) \
                            or not np.allclose(known.K, camera.K, rtol=1e-3):
                        self.left_out[f'{topic}: another calibration than its first'] += 1
                else:
                    self.left_out.update(f'transform: {problem}' for problem in
                                         self.tree.add_message(
                                             message, static=topic.endswith('tf_static')))
            except (CameraInfoError, ValueError) as error:
                self.left_out[f'{topic}: {error}'] += 1
            except DataError as error:
                self.left_out[str(error)] += 1
        return cameras, list(stamps.values())

    def read(self, positions: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """Second pass: decode what is asked for; see `Recording.read`."""
        wanted = {(topic, place): position for position in positions
                  for topic, place in zip(
                      (self.image, self.depth), self.pairs[position], strict=True)}
        seen: Counter[str] = Counter()
        waiting: dict[int, dict[str, tuple[Connection, bytes]]] = {}
        for connection, _, data in self._messages([self.image, self.depth]):
            position = wanted.pop((connection.topic, seen[connection.topic]), None)
            seen[connection.topic] += 1
            if position is None:
                continue
            parts = waiting.setdefault(position, {})
            parts[connection.topic] = connection, data
            if len(parts) == 2:
                try:
                    frame = self._frame(waiting.pop(position), self.moments[position])
                except (DataError, TransformError) as error:
                    self.left_out.add(position, error)
                else:
                    yield position, frame
            elif len(waiting) > _MOST_WAITING:
                oldest = min(waiting)
                del waiting[oldest]
                wanted = {message: p for message, p in wanted.items() if p != oldest}
                self.left_out.add(oldest, 'image and depth too far apart in the bag')

    def _frame(self, parts: dict[str, tuple[Connection, bytes]], moment: Moment) -> Frame:
        image, depth = (self._decode(*parts[topic]) for topic in (self.image, self.depth))
        rgb = np.ascontiguousarray(to_rgb(image))
        if self.camera is not None:
            self.camera.check_size(rgb.shape[1], rgb.shape[0])
        return Frame(rgb, self._measured(depth, image, rgb), self.camera, moment)

    def _measured(
        self, message: Any, image: Any, rgb: NDArray[np.uint8],
    ) -> NDArray[np.float32]:
        """Depth on the image's pixels."""
        frame, target = str(message.header.frame_id), str(image.header.frame_id)
        if self.depth_type in (IMAGE, COMPRESSED_IMAGE):
            stored = str(getattr(message, 'encoding', getattr(message, 'format', '')))
            depth = in_metres(to_depth(message), self.options.unit, integer='32FC1' not in stored)
            same_frame = frame == target or not (frame and target)
            if same_frame and _same_view(self.depth_camera, self.camera):
                return resample(depth, *rgb.shape[:2])
            if self.depth_camera is None or self.camera is None:
                raise RecordingError(
                    f'{self.path}: depth of {self.depth} is in the frame {frame!r}, the image in '
                    f'{target!r}, and a camera_info is missing, so that it cannot be brought onto '
                    'the image. Record both camera_info topics and /tf_static, or record depth '
                    'registered to the image (aligned_depth_to_color).')
            self.depth_camera.check_size(depth.shape[1], depth.shape[0])
            points = unproject(depth, self.depth_camera)
        elif self.camera is None:
            raise RecordingError(
                f'{self.path}: {self.depth} needs the camera to be projected into the image, but '
                f'there is no usable camera_info beside {self.image}. Record it, or give a '
                'calibration file with --camera-info.')
        else:
            points = (cloud_points if self.depth_type == POINT_CLOUD else scan_points)(message)
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


def depth_topic(topics: list[BagTopic], image: str, wanted: str = '') -> BagTopic:
    """Find what measures depth in a bag.

    Args:
        topics: of the bag.
        image: the camera's topic, which is none.
        wanted: topic to use; empty: the only depth image, else the only cloud, else the only
            scan; of several depth images the one that is registered by its name.

    Raises:
        RecordingError: none, several, or not the one asked for.

    """
    known = [t for t in topics if t.count and t.name.removesuffix('/compressed') != image
             and t.type in (IMAGE, COMPRESSED_IMAGE, POINT_CLOUD, SCAN)]
    listed = ', '.join(topic.name for topic in known) or 'none'
    if wanted:
        name = f'/{wanted.removeprefix("/")}'
        found = [topic for topic in known if topic.name == name]
        if not found:
            raise RecordingError(f"The bag has no depth on '{name}'. Images, clouds and scans "
                                 f'beside the camera: {listed}.')
        return found[0]
    for kind in (IMAGE, COMPRESSED_IMAGE, POINT_CLOUD, SCAN):
        some = [t for t in known if t.type == kind and (
            'depth' in t.name or kind in (POINT_CLOUD, SCAN))]
        registered = [t for t in some if 'aligned' in t.name or 'regist' in t.name]
        for candidates in (registered, some):
            if len(candidates) == 1:
                return candidates[0]
        if some:
            raise RecordingError(
                f'The bag has several sources of depth: {", ".join(t.name for t in some)}. '
                'Choose one with --depth TOPIC.')
    raise RecordingError(
        'The bag has no depth: no depth image (its topic named depth), PointCloud2 or LaserScan. '
        f'Record one beside the camera, or name it with --depth TOPIC. It has: {listed}.')


def written_depth(path: str | Path) -> str:
    """Topic of depth by the node or by `depthclip bag` in a bag; '' where there is none.

    A bag that `depthclip bag` has written says so, and has it on depth/image in any namespace;
    of others only /depth/image with /depth/camera_info beside it is taken for the node's.

    Raises:
        DepthClipError: the bag cannot be read, or there is depth of several cameras.

    """
    kinds = {topic.name: topic.type for topic in bag_topics(path) if topic.count}
    is_ours = 'depthclip_ros' in custom_data(path)
    found = []
    for name, kind in kinds.items():
        image = name.removesuffix('/compressedDepth')
        if kind == (IMAGE if name == image else COMPRESSED_IMAGE) \
                and (image == '/depth/image' or (is_ours and image.endswith('/depth/image'))) \
                and kinds.get(camera_info_beside(image)) == CAMERA_INFO:
            found.append(name)
    if len(found) > 1:
        raise RecordingError(f'{path} holds depth of several cameras: {", ".join(found)}. Choose '
                             'one with --said TOPIC, and its camera with --image TOPIC.')
    return found[0] if found else ''
