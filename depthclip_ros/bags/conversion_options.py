# SPDX-License-Identifier: Apache-2.0
"""Options of a bag's conversion, the choice of its topics, and the conversion's report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..core.errors import BagError, ConfigError
from ..messages.anchors import SENSORS
from ..messages.message_types import COMPRESSED_IMAGE, IMAGE
from ..messages.node_config import NodeConfig
from ..messages.outputs import OUTPUTS
from ..sources import bag
from ..sources.bag import PICTURE, BagTopic

PROJECTED = ('depth/image', 'depth/camera_info', 'points')
ON_REQUEST = ('depth/image_color', 'depth/words', 'depth/spread', 'depth/stddev')
COMPRESSED_DEPTH = 'depth/image/compressedDepth'
CHOICE = '--image TOPIC, or several with --cameras NAME,NAME'


@dataclass(frozen=True)
class Options:
    """Options of a conversion.

    Attributes:
        node: settings of the node: cameras, rectified, depth_encoding and all of the anchor;
            those of time or of ROS are not used.
        images: image topic of each of the node's cameras, with or without `/compressed`; empty:
            chosen as the launch file does.
        camera_infos: camera_info topic of each camera, likewise.
        anchor_topic: topic of the anchor's sensor; empty: the node's, else the only topic of its
            type.
        namespace: namespace of the new topics, as a node's.
        outputs: new topics, relative to the namespace and the camera's name.
        compressed_depth: depth as 16-bit PNG in millimetres, on depth/image/compressedDepth.
        rate: greatest number of depth images a second of each camera; 0: no limit.
        every: one in this many images of a camera gets depth.
        start: first second of the bag to convert.
        end: last second of the bag to convert; infinite: its end.

    Raises:
        ConfigError: the options contradict each other.

    """

    node: NodeConfig = field(default_factory=NodeConfig)
    images: tuple[str, ...] = ()
    camera_infos: tuple[str, ...] = ()
    anchor_topic: str = ''
    namespace: str = ''
    outputs: tuple[str, ...] = PROJECTED
    compressed_depth: bool = False
    rate: float = 0.0
    every: int = 1
    start: float = 0.0
    end: float = float('inf')

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        if self.every < 1 or self.rate < 0 or (self.rate and self.every > 1):
            raise ConfigError(f'every {self.every} and rate {self.rate:g}: choose one of them; '
                              'every is at least 1, and rate not negative.')
        if not 0 <= self.start < self.end:
            raise ConfigError(f'start {self.start:g} s and end {self.end:g} s leave nothing.')
        invalid = sorted(set(self.outputs) - {*PROJECTED, *ON_REQUEST})
        if invalid:
            raise ConfigError(f'outputs: {", ".join(invalid)}: a bag gets '
                              f'{", ".join((*PROJECTED, *ON_REQUEST))}.')


class BagCamera(NamedTuple):
    """A camera of a bag, and its topics in the converted one.

    `outputs` are the new topics by their relative names, such as 'depth/image'.
    """

    name: str
    image: str
    camera_info: str
    outputs: dict[str, str]

    @property
    def label(self) -> str:
        """Beginning of a sentence about the camera."""
        return f'{self.name}: ' if self.name else ''


@dataclass
class Report:
    """The result of a conversion, as plain data.

    Attributes:
        source: the bag that was read.
        output: the bag that was written.
        cameras: the cameras whose images have depth.
        topics: number of the output's messages, by topic.
        images: number of the cameras' images in the converted time.
        answered: images that have depth.
        left_out: images that `rate` or `every` skipped.
        rejected: images without depth, by cause, after the camera's name where it has one.
        unprojected: images with depth but without camera_info and points, likewise.
        beyond: pixels whose depth 16UC1 cannot hold, which are 0.
        seconds: duration of the conversion.
        network_seconds: duration of all calls of the network.

    """

    source: str
    output: str
    cameras: list[BagCamera] = field(default_factory=list)
    topics: dict[str, int] = field(default_factory=dict)
    images: int = 0
    answered: int = 0
    left_out: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    unprojected: dict[str, int] = field(default_factory=dict)
    beyond: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0


def cameras_of(topics: list[BagTopic], options: Options) -> list[BagCamera]:
    """Find the cameras as depth.launch.py does, and name their new topics as the node would.

    Raises:
        DepthClipError: a camera is missing or ambiguous, or one of its new topics exists already.

    """
    relatives = [COMPRESSED_DEPTH if options.compressed_depth and name == 'depth/image' else name
                 for name in OUTPUTS if name in options.outputs]
    cameras = [
        BagCamera(camera.name, camera.topic, camera.camera_info, {
            relative: _absolute(options.namespace, camera.name, relative)
            for relative in relatives})
        for camera in bag.cameras_of(topics, options.node.cameras, options.images,
                                     options.camera_infos, choice=CHOICE)]
    new = [topic for camera in cameras for topic in camera.outputs.values()]
    conflicts = sorted({topic.name for topic in topics} & set(new))
    if conflicts:
        raise BagError(f'The bag has {", ".join(conflicts)} already. Put the new topics elsewhere '
                       'with --namespace NAME.')
    if len({camera.image for camera in cameras}) < len(cameras):
        raise BagError(f'Two cameras have the same images: {cameras[0].image}.')
    return cameras


def anchor_topic(topics: list[BagTopic], cameras: list[BagCamera], options: Options) -> str:
    """Find the topic of the anchor's sensor; '' where the anchor needs none.

    Raises:
        BagError: the bag has no such topic, or several.

    """
    if options.node.anchor not in SENSORS:
        return ''
    message_type, default_topic = SENSORS[options.node.anchor]
    message_types = (IMAGE, COMPRESSED_IMAGE) if message_type == IMAGE else (message_type,)
    names = [topic.name for topic in topics if topic.type in message_types and topic.count
             and topic.content != PICTURE and topic.name not in {c.image for c in cameras}]
    raw = [name for name in names if not any(name.startswith(f'{prefix}/') for prefix in names)]
    matching = [_absolute(options.anchor_topic)] if options.anchor_topic else \
        [f'/{default_topic}'] if f'/{default_topic}' in names else raw
    if len(matching) == 1 and matching[0] in names:
        return matching[0]
    raise BagError(
        f'anchor: {options.node.anchor} needs a topic of type {message_type}; the bag has '
        f'{", ".join(names) or "none"}. Choose one with --anchor-topic TOPIC.')


def _absolute(*parts: str) -> str:
    return '/' + '/'.join(part.strip('/') for part in parts if part.strip('/'))
