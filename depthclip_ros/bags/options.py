# SPDX-License-Identifier: Apache-2.0
"""What to make of a bag, and the account of what was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..node.config import NodeConfig

PROJECTED = ('depth/image', 'depth/camera_info', 'points')
ON_REQUEST = ('depth/image_color', 'depth/words', 'depth/spread', 'depth/stddev')
PART_SECONDS = 30.0


@dataclass(frozen=True)
class Options:
    """What to convert, and how.

    Attributes:
        node: settings as the node's: cameras, rectified, anchor and its own, depth_encoding,
            depth_resolution, max_pixels; what has to do with time or with ROS is not used.
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
        storage: 'mcap' or 'sqlite3'; empty: as the source.
        compression: 'none', 'zstd' or 'lz4' (an mcap's chunks), 'message' or 'file' (zstd);
            empty: as the source.
        part_seconds: length of bag in each file of the output; what `resume` saves are these.
        window: times of the bag in nanoseconds, the second excluded: only this is converted; see
            `windows`.

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
    storage: str = ''
    compression: str = ''
    part_seconds: float = PART_SECONDS
    window: tuple[int, int] | None = None


class BagCamera(NamedTuple):
    """A camera of a bag, and where its depth is in the converted one.

    `outputs` are the new topics by their relative names, such as 'depth/image'.
    """

    name: str
    image: str
    camera_info: str
    outputs: dict[str, str]


class Progress(NamedTuple):
    """How far a conversion is: seconds of the bag, of how many; images with depth so far."""

    seconds: float
    duration: float
    images: int


@dataclass
class TopicCount:
    """What became of the messages of one topic of the output.

    Attributes:
        type: its messages' type.
        copied: bit for bit from the source.
        written: new.
        lost: that the source announces, but that could not be read; 0 where only a part of the
            source was asked for.

    """

    type: str
    copied: int = 0
    written: int = 0
    lost: int = 0


@dataclass
class Report:
    """What came of a conversion; all of it is plain data.

    Attributes:
        source: the bag that was read.
        output: the bag that was written.
        cameras: whose images have depth now.
        topics: of the output, by name.
        images: of the cameras, in what was converted.
        answered: images that have depth.
        left_out: images that were not to have any, by `rate` and `every`.
        rejected: images without depth, by camera and cause.
        unprojected: images with depth but without camera_info and points, likewise.
        beyond: pixels whose depth 16UC1 cannot hold; 0 in it.
        lost: sentences about what could not be read of the source.
        notes: sentences about what the output is.
        files: SHA-256 of every file of the output, by name.
        begin: time of the first message written, in nanoseconds; 0 if there is none.
        finish: time of the last one.
        seconds: that the conversion took.
        network_seconds: that of them the network took.

    """

    source: str
    output: str
    cameras: list[BagCamera] = field(default_factory=list)
    topics: dict[str, TopicCount] = field(default_factory=dict)
    images: int = 0
    answered: int = 0
    left_out: int = 0
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    unprojected: dict[str, dict[str, int]] = field(default_factory=dict)
    beyond: int = 0
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    begin: int = 0
    finish: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
