# SPDX-License-Identifier: Apache-2.0
"""What to make of a bag, which of its topics are meant, and the account of what was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..core.errors import BagError, ConfigError
from ..messages.anchors import SENSORS
from ..messages.config import NodeConfig
from ..messages.outputs import OUTPUTS
from ..messages.types import COMPRESSED_IMAGE, IMAGE
from ..sources import bag
from ..sources.bag import PICTURE, BagTopic

PROJECTED = ('depth/image', 'depth/camera_info', 'points')
ON_REQUEST = ('depth/image_color', 'depth/words', 'depth/spread', 'depth/stddev')
COMPRESSED_DEPTH = 'depth/image/compressedDepth'
CHOICE = '--image TOPIC, or several with --cameras NAME,NAME'


@dataclass(frozen=True)
class Options:
    """What to convert, and how.

    Attributes:
        node: settings as the node's: cameras, rectified, anchor and its own, depth_encoding,
            what has to do with time or with ROS is not used.
        images: topic of the images of each of the node's cameras, with or without `/compressed`;
            empty: found as the launch file finds them.
        camera_infos: likewise.
        anchor_topic: what the anchor listens to; empty: the node's, else the only topic of its
            type.
        namespace: of the new topics, as a node's.
        outputs: new topics, relative to the namespace and the camera's name.
        compressed_depth: depth as 16-bit PNG in millimetres, on depth/image/compressedDepth.
        rate: most images a second of each camera that get depth; 0: all.
        every: so many images of a camera, one gets depth.
        start: seconds of the bag to leave out at its beginning.
        end: seconds of the bag at which to stop; infinite: its end.

    Raises:
        ConfigError: they make no sense, whatever the bag.

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
        """Refuse what does not fit together."""
        if self.every < 1 or self.rate < 0 or (self.rate and self.every > 1):
            raise ConfigError(f'every {self.every} and rate {self.rate:g}: choose one of them; '
                              'every is at least 1, and rate not negative.')
        if not 0 <= self.start < self.end:
            raise ConfigError(f'start {self.start:g} s and end {self.end:g} s leave nothing.')
        unknown = sorted(set(self.outputs) - {*PROJECTED, *ON_REQUEST})
        if unknown:
            raise ConfigError(f'outputs: {", ".join(unknown)}: a bag gets '
                              f'{", ".join((*PROJECTED, *ON_REQUEST))}.')


class BagCamera(NamedTuple):
    """A camera of a bag, and where its depth is in the converted one.

    `outputs` are the new topics by their relative names, such as 'depth/image'.
    """

    name: str
    image: str
    camera_info: str
    outputs: dict[str, str]

    @property
    def label(self) -> str:
        """Begins a sentence about it."""
        return f'{self.name}: ' if self.name else ''


@dataclass
class Report:
    """What came of a conversion; all of it is plain data.

    Attributes:
        source: the bag that was read.
        output: the bag that was written.
        cameras: whose images have depth now.
        topics: messages of the output, by topic.
        images: of the cameras, in what was converted.
        answered: images that have depth.
        left_out: images that were not to have any, by `rate` and `every`.
        rejected: images without depth, by cause; before it the camera's name, where it has one.
        unprojected: images with depth but without camera_info and points, likewise.
        beyond: pixels whose depth 16UC1 cannot hold; 0 in it.
        seconds: that the conversion took.
        network_seconds: that of them the network took.

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
        DepthClipError: one is not there, cannot be chosen, or its new topics are there already.

    """
    relatives = [COMPRESSED_DEPTH if options.compressed_depth and name == 'depth/image' else name
                 for name in OUTPUTS if name in options.outputs]
    cameras = [
        BagCamera(found.name, found.topic, found.camera_info, {
            relative: _absolute(options.namespace, found.name, relative)
            for relative in relatives})
        for found in bag.cameras_of(topics, options.node.cameras, options.images,
                                    options.camera_infos, choice=CHOICE)]
    new = [topic for camera in cameras for topic in camera.outputs.values()]
    taken = sorted({topic.name for topic in topics} & set(new))
    if taken:
        raise BagError(f'The bag has {", ".join(taken)} already. Put the new topics elsewhere '
                       'with --namespace NAME.')
    if len({camera.image for camera in cameras}) < len(cameras):
        raise BagError(f'Two cameras have the same images: {cameras[0].image}.')
    return cameras


def anchor_topic(topics: list[BagTopic], cameras: list[BagCamera], options: Options) -> str:
    """Where the anchor's sensor is in the bag; '' where the anchor needs none.

    Raises:
        BagError: it is not there, or there are several.

    """
    if options.node.anchor not in SENSORS:
        return ''
    kind, usual = SENSORS[options.node.anchor]
    kinds = (IMAGE, COMPRESSED_IMAGE) if kind == IMAGE else (kind,)
    there = [topic.name for topic in topics if topic.type in kinds and topic.count
             and topic.content != PICTURE and topic.name not in {c.image for c in cameras}]
    raw = [name for name in there if not any(name.startswith(f'{other}/') for other in there)]
    wanted = [_absolute(options.anchor_topic)] if options.anchor_topic else \
        [f'/{usual}'] if f'/{usual}' in there else raw
    if len(wanted) == 1 and wanted[0] in there:
        return wanted[0]
    raise BagError(
        f'anchor: {options.node.anchor} needs a topic of type {kind}; the bag has '
        f'{", ".join(there) or "none"}. Choose one with --anchor-topic TOPIC.')


def _absolute(*parts: str) -> str:
    return '/' + '/'.join(part.strip('/') for part in parts if part.strip('/'))
