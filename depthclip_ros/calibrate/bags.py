# SPDX-License-Identifier: Apache-2.0
"""Bags as recordings: images and what measured depth beside them. Needs `rosbags`, no ROS."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.camera import CameraModel
from ..core.errors import CameraInfoError, DataError
from ..core.transforms import TransformError, TransformTree
from ..node.image_io import to_depth, to_rgb
from ..node.messages import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, POINT_CLOUD, SCAN, TF
from ..node.ranges import cloud_points, scan_points
from ..sources.bag import (
    NANOSECONDS,
    BagTopic,
    bag_messages,
    bag_topics,
    camera_info_beside,
    camera_topics,
    custom_data,
    open_bag,
)
from .recordings import (
    Moment,
    RecordedFrame,
    Recording,
    RecordingError,
    in_metres,
    nearest_pairs,
    rasterize,
    resample,
    sequences,
    unproject,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from rosbags.interfaces import Connection

_SAME_FOCAL_LENGTH = 0.02  # of images that show the same view
_MOST_WAITING = 200  # messages whose partner comes later in the bag
_LATE_TRANSFORM = 0.1  # seconds that the last transform may be older than a message


@dataclass(frozen=True)
class BagOptions:
    """What to read of a bag.

    Attributes:
        image: topic of the images; empty: the only camera.
        depth: topic of depth images, clouds or scans; empty: what is there.
        tolerance: largest difference of stamps of an image and its depth [s].
        rectified: the images are rectified.
        camera: of the images, instead of their camera_info.
        unit: what a depth image's stored unit is, in metres; 0: as its encoding says.
        said: topic of depth that was not measured, which is passed over.

    """

    image: str = ''
    depth: str = ''
    tolerance: float = 0.05
    rectified: bool = False
    camera: CameraModel | None = None
    unit: float = 0.0
    said: str = ''


class _Stamp(NamedTuple):
    number: int  # of the message among those of its topic
    time: int  # nanoseconds, the header's


@dataclass
class _Header:
    """What a first pass finds of one topic."""

    stamps: list[_Stamp] = field(default_factory=list)
    unstamped: int = 0


class BagRecording(Recording):
    """Images of a bag and the depth nearest to them in time.

    Attributes:
        topics: of the images, and of their depth.

    """

    def __init__(self, path: str | Path, options: BagOptions) -> None:
        """Choose topics, and pair the messages by their headers' stamps.

        Raises:
            DepthClipError: the bag cannot be read, or has no images with depth.

        """
        super().__init__()
        self.source, self._options = str(path), options
        topics = [topic for topic in bag_topics(path) if topic.name != options.said]
        images = camera_topics(topics, options.image, '--image TOPIC')
        self._image = images.image + ('/compressed' if images.compressed else '')
        self._depth = depth_topic(topics, images.image, options.depth)
        self.topics = self._image, self._depth.name
        self._infos = {
            'image': images.camera_info, 'depth': _info_of(topics, self._depth.name)}
        self._reader = open_bag(path)
        self._tree = TransformTree(most_entries=0)
        self._cameras: dict[str, CameraModel] = {}
        from rosbags.typesys import Stores, get_typestore
        self._store = get_typestore(Stores.ROS2_HUMBLE)
        try:
            self._survey()
        except BaseException:
            self.close()
            raise
        kind = self._depth.type.rpartition('/')[2]
        self.described = f'{self._image} with depth of {self._depth.name} ({kind})'

    def close(self) -> None:
        """Close the bag."""
        self._reader.close()

    def _connections(self, names: Iterable[str]) -> list[Connection]:
        wanted = set(names)
        return [c for c in self._reader.connections if c.topic in wanted]

    def _messages(self, names: Iterable[str]) -> Iterator[tuple[Connection, int, bytes]]:
        connections = self._connections(names)
        if not connections:
            return iter(())
        return bag_messages(self._reader, connections, self._reader.start_time)

    def _survey(self) -> None:
        """First pass: stamps of images and depth, cameras, transforms."""
        infos = {topic: role for role, topic in self._infos.items() if topic}
        both = self._infos['image'] == self._infos['depth']
        transforms = [c.topic for c in self._reader.connections if c.msgtype == TF]
        headers = {self._image: _Header(), self._depth.name: _Header()}
        for connection, received, data in self._messages([*headers, *infos, *transforms]):
            topic = connection.topic
            if topic in headers:
                header = headers[topic]
                number = len(header.stamps)
                time = _stamp(data)
                if not time:
                    header.unstamped += 1
                header.stamps.append(_Stamp(number, time or received))
            elif topic in infos:
                self._see_camera(infos[topic], connection, data)
            elif (message := self._decode(connection, data)) is not None:
                for problem in self._tree.add_message(
                        message, static=topic.endswith('tf_static')):
                    self.left_out[f'transform: {problem}'] += 1
        if both and 'depth' in self._cameras:
            self._cameras['image'] = self._cameras['depth']
        for topic, header in headers.items():
            if header.unstamped:
                self.left_out[f'{topic}: stamp 0, the time of recording is taken'] += \
                    header.unstamped
        self._pair(headers[self._image].stamps, headers[self._depth.name].stamps)

    def _see_camera(self, role: str, connection: Connection, data: bytes) -> None:
        """The first calibration of each camera counts; others are counted."""
        message = self._decode(connection, data)
        if message is None:
            return
        try:
            camera = CameraModel.from_info(message, self._options.rectified)
        except (CameraInfoError, ValueError) as error:
            self.left_out[f'{connection.topic}: {error}'] += 1
            return
        known = self._cameras.setdefault(role, camera)
        if (known.width, known.height) != (camera.width, camera.height) \
                or not np.allclose(known.K, camera.K, rtol=1e-3):
            self.left_out[f'{connection.topic}: another calibration than its first'] += 1

    def _pair(self, images: list[_Stamp], depths: list[_Stamp]) -> None:
        """Every depth goes to the image nearest in time, and every image has one at most."""
        within = round(self._options.tolerance * NANOSECONDS)
        images, depths = (sorted(stamps, key=lambda s: s.time) for stamps in (images, depths))
        pairs = nearest_pairs(
            [stamp.time for stamp in images], [stamp.time for stamp in depths], within)
        for count, what in ((len(images), 'images without depth at their time'),
                            (len(depths), 'depth without an image at its time')):
            if count > len(pairs):
                self.left_out[what] += count - len(pairs)
        if not pairs:
            raise RecordingError(self._why_unpaired(images, depths))
        self._pairs = [(images[i].number, depths[j].number) for i, j in pairs]
        chosen = [image for image, _ in pairs]
        start = images[chosen[0]].time
        seconds = [(images[i].time - start) / NANOSECONDS for i in chosen]
        self.moments = [
            Moment(time, sequence, f'{images[i].time / NANOSECONDS:.3f}')
            for time, sequence, i in zip(seconds, sequences(seconds), chosen, strict=True)]

    def _why_unpaired(self, images: list[_Stamp], depths: list[_Stamp]) -> str:
        first, second = (
            f'{stamps[0].time / NANOSECONDS:.3f} to {stamps[-1].time / NANOSECONDS:.3f} s'
            if stamps else 'at no time' for stamps in (images, depths))
        return (f'{self.source}: no image of {self._image} ({first}) has depth of '
                f'{self._depth.name} ({second}) within {self._options.tolerance:g} s of its '
                'stamp. Give both drivers the same clock and record again; where stamps differ '
                'by little, --tolerance allows more.')

    def read(self, positions: Iterable[int]) -> Iterator[tuple[int, RecordedFrame]]:
        """Second pass: decode what is asked for; see `Recording.read`."""
        order = sorted(set(positions))
        of_image = {self._pairs[p][0]: p for p in order}
        of_depth = {self._pairs[p][1]: p for p in order}
        roles = {self._image: ('image', of_image), self._depth.name: ('depth', of_depth)}
        seen: Counter[str] = Counter()
        waiting: dict[int, dict[str, tuple[Connection, bytes]]] = {}
        lost: set[int] = set()
        done: dict[int, RecordedFrame | None] = {}
        upcoming = iter(order)
        following = next(upcoming, None)
        for connection, _, data in self._messages(roles):
            role, wanted = roles[connection.topic]
            position = wanted.get(seen[role])
            seen[role] += 1
            if position is None or position in lost:
                continue
            parts = waiting.setdefault(position, {})
            parts[role] = connection, data
            if len(parts) == 2:
                done[position] = self._frame(position, waiting.pop(position))
            elif len(waiting) > _MOST_WAITING:
                oldest = min(waiting)
                del waiting[oldest]
                lost.add(oldest)
                done[oldest] = None
                self.left_out['image and depth too far apart in the bag'] += 1
            while following is not None and following in done:
                frame = done.pop(following)
                if frame is not None:
                    yield following, frame
                following = next(upcoming, None)
        for position in sorted(done):
            left = done[position]
            if left is not None:
                yield position, left

    def _frame(
        self, position: int, parts: dict[str, tuple[Connection, bytes]],
    ) -> RecordedFrame | None:
        """Decode an image and its depth; None, and counted, if one of them cannot be."""
        image, depth = (self._decode(*parts[role]) for role in ('image', 'depth'))
        if image is None or depth is None:
            return None
        try:
            rgb = to_rgb(image)
            camera = self._options.camera or self._cameras.get('image')
            if camera is not None:
                camera.check_size(rgb.shape[1], rgb.shape[0])
            metres = self._measured(depth, image, rgb, camera)
        except RecordingError:
            raise
        except (DataError, TransformError) as error:
            self.left_out[str(error)] += 1
            return None
        return RecordedFrame(np.ascontiguousarray(rgb), metres, camera, self.moments[position])

    def _measured(
        self, message: Any, image: Any, rgb: NDArray[np.uint8], camera: CameraModel | None,
    ) -> NDArray[np.float32]:
        """Depth on the image's pixels."""
        frame, target = str(message.header.frame_id), str(image.header.frame_id)
        if self._depth.type in (IMAGE, COMPRESSED_IMAGE):
            depth = to_depth(message)
            stored = str(getattr(message, 'encoding', getattr(message, 'format', '')))
            depth = in_metres(depth, self._options.unit, integer='32FC1' not in stored)
            own = self._cameras.get('depth')
            if _registered(own, camera, frame, target):
                return resample(depth, *rgb.shape[:2])
            if own is None or camera is None:
                raise RecordingError(
                    f'{self.source}: depth of {self._depth.name} is in the frame {frame!r}, the '
                    f'image in {target!r}, and a camera_info is missing, so that it cannot be '
                    'brought onto the image. Record both camera_info topics and /tf_static, or '
                    'record depth registered to the image (aligned_depth_to_color).')
            own.check_size(depth.shape[1], depth.shape[0])
            points = unproject(depth, own)
        elif camera is None:
            raise RecordingError(
                f'{self.source}: {self._depth.name} needs the camera to be projected into the '
                f'image, but there is no usable camera_info beside {self._image}. Record it, or '
                'give a calibration file with --camera-info.')
        else:
            points = cloud_points(message) if self._depth.type == POINT_CLOUD \
                else scan_points(message)
        stamp = message.header.stamp
        transform = self._tree.lookup(
            target, frame, stamp.sec * NANOSECONDS + stamp.nanosec, tolerance=_LATE_TRANSFORM)
        return rasterize(transform.apply(points), camera)

    def _decode(self, connection: Connection, data: bytes) -> Any:
        """Message of its bytes; None, and counted, if they are none."""
        try:
            return self._store.deserialize_cdr(data, connection.msgtype)
        except Exception as error:  # noqa: BLE001 - whatever its decoder raises
            self.left_out[f'{connection.topic}: no {connection.msgtype} '
                          f'({type(error).__name__})'] += 1
            return None


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
    kinds = (IMAGE, COMPRESSED_IMAGE, POINT_CLOUD, SCAN)
    known = [t for t in topics if t.count and t.type in kinds
             and t.name.removesuffix('/compressed') != image]
    listed = ', '.join(topic.name for topic in known) or 'none'
    if wanted:
        name = wanted if wanted.startswith('/') else f'/{wanted}'
        found = [topic for topic in known if topic.name == name]
        if not found:
            raise RecordingError(f"The bag has no depth on '{name}'. Images, clouds and scans "
                                 f'beside the camera: {listed}.')
        return found[0]
    for candidates in (
            [t for t in known if t.type == IMAGE and 'depth' in t.name],
            [t for t in known if t.type == COMPRESSED_IMAGE and 'depth' in t.name],
            [t for t in known if t.type == POINT_CLOUD], [t for t in known if t.type == SCAN]):
        registered = [t for t in candidates if 'aligned' in t.name or 'regist' in t.name]
        for some in (registered, candidates):
            if len(some) == 1:
                return some[0]
        if candidates:
            raise RecordingError(
                f'The bag has several sources of depth: {", ".join(t.name for t in candidates)}. '
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


def _info_of(topics: list[BagTopic], depth: str) -> str | None:
    name = camera_info_beside(depth.removesuffix('/compressedDepth'))
    return name if any(t.name == name and t.type == CAMERA_INFO for t in topics) else None


def _registered(
    depth: CameraModel | None, image: CameraModel | None, frame: str, target: str,
) -> bool:
    """Whether a depth image shows the image's own view, if in another number of pixels."""
    if frame != target and frame and target:
        return False
    if depth is None or image is None:
        return True
    scaled = depth.scaled(image.width, image.height)
    shift = np.abs(scaled.K[:2, 2] - image.K[:2, 2]) / (image.width, image.height)
    focal = np.abs(np.diag(scaled.K)[:2] / np.diag(image.K)[:2] - 1)
    return bool(max(shift.max(), focal.max()) <= _SAME_FOCAL_LENGTH)


def _stamp(data: bytes) -> int:
    """Stamp of a message that begins with a header, in nanoseconds; 0 if it has none."""
    if len(data) < 12:
        return 0
    order = '<' if data[1] & 1 else '>'
    sec, nanosec = struct.unpack_from(f'{order}iI', data, 4)
    return max(0, int(sec) * NANOSECONDS + int(nanosec))
