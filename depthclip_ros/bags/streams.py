# SPDX-License-Identifier: Apache-2.0
"""Images of a bag on their way through the node's own pipeline."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..color import png
from ..node import serialized
from ..node.anchors import Anchor, Sensors
from ..node.image_stream import ImageStream
from ..node.messages import COMPRESSED_IMAGE
from ..node.model import HopelessError, Model
from ..node.outputs import Outputs
from ..node.pipeline import Pipeline
from ..node.statistics import StageTimes
from ..sources.bag import BagError
from .cameras import COMPRESSED_DEPTH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..core.estimator import DepthEstimator
    from .messages import RosbagsMessages
    from .options import BagCamera, Options

_DEPTH_FORMAT = '16UC1; compressedDepth png'
_DEPTH_HEADER = bytes(12)  # compressed_depth_image_transport's: of 16UC1 nothing in it counts
_NEVER = -(1 << 62)


class BagStream(ImageStream):
    """A camera whose images come out of a bag, and whose depth is kept until it is written."""

    def __init__(
        self, camera: BagCamera, options: Options, messages: RosbagsMessages,
        sensors: Sensors | None,
    ) -> None:
        """Begin without an image."""
        compressed = camera.image.endswith('/compressed')
        config = options.node.replace(
            image_transport='compressed' if compressed else 'raw',
            depth_encoding='16UC1' if options.compressed_depth else options.node.depth_encoding)
        self.sink = _Sink(camera, messages)
        super().__init__(
            config, camera.name, camera.image,
            Outputs(self.sink, messages, config.depth_encoding), messages, threading.Condition(),
            None if sensors is None else Anchor(sensors, config))

    def account(self) -> Account:
        """How its images fared until now."""
        counters = self.counters()
        return Account(counters.published, counters.rejected, counters.unprojected,
                       self.beyond_encoding)


class Account(NamedTuple):
    """What became of the images of one camera: answered, rejected, unprojected; pixels beyond."""

    answered: int
    rejected: Counter[str]
    unprojected: Counter[str]
    beyond: int

    def since(self, before: Account) -> dict[str, Any]:
        """What came to it, as plain data."""
        return {'answered': self.answered - before.answered,
                'rejected': dict(self.rejected - before.rejected),
                'unprojected': dict(self.unprojected - before.unprojected),
                'beyond': self.beyond - before.beyond}


class _Sink:
    """Takes what the node would publish; see `depthclip_ros.node.outputs.Sink`."""

    def __init__(self, camera: BagCamera, messages: RosbagsMessages) -> None:
        self._topics, self._messages = camera.outputs, messages
        self._wanted = set(camera.outputs)
        if COMPRESSED_DEPTH in self._wanted:
            self._wanted.add('depth/image')
        self._taken: dict[str, bytes] = {}

    def wanted(self, topic: str) -> bool:
        return topic in self._wanted

    def publish(self, topic: str, raw: bytes) -> None:
        self._taken[topic] = raw

    def destroy(self) -> None:
        self._taken.clear()

    def take(self) -> list[tuple[str, Callable[[], bytes]]]:
        """New topics, and what gives their messages; whoever asks last does the work."""
        taken, self._taken = self._taken, {}
        result: list[tuple[str, Callable[[], bytes]]] = []
        for relative, topic in self._topics.items():
            if relative == COMPRESSED_DEPTH and 'depth/image' in taken:
                result.append((topic, _Compression(taken['depth/image'], self._messages)))
            elif relative in taken:
                result.append((topic, taken[relative].__bytes__))
        return result


class _Compression:
    """Makes a PNG of a depth image, as compressed_depth_image_transport does of 16UC1."""

    def __init__(self, raw: bytes, messages: RosbagsMessages) -> None:
        self._raw, self._messages = raw, messages

    def __call__(self) -> bytes:
        image = serialized.read_image(self._raw, self._messages)
        pixels = np.frombuffer(image.data, np.uint16).reshape(image.height, image.width)
        return self._messages.write(self._messages.make(
            COMPRESSED_IMAGE, header=image.header, format=_DEPTH_FORMAT,
            data=np.frombuffer(_DEPTH_HEADER + png(pixels), np.uint8)))


class Answering:
    """The node's pipeline, with a bag in the place of ROS.

    Attributes:
        network_seconds: that the estimator took.

    """

    def __init__(self, estimator: DepthEstimator, log: Callable[[str], None]) -> None:
        """Take up an estimator, with its settings."""
        model = Model(lambda _: estimator, log)
        model.load(estimator.config)
        self._pipeline = Pipeline(_host(log), model, estimator.config, _sleep)
        self._pipeline.times = self._times = _Times()

    @property
    def network_seconds(self) -> float:
        """Time in the estimator."""
        return self._times.network

    def answer(self, batch: Sequence[tuple[BagStream, bytes]]) -> None:
        """Put images of different cameras through the network; the streams' sinks have the rest.

        Raises:
            BagError: the model fails again and again.

        """
        try:
            self._pipeline.answer(batch)
        except HopelessError as error:
            raise BagError(f'The network fails on every image: {error}') from error


class _Times(StageTimes):
    def __init__(self) -> None:
        super().__init__()
        self.network = 0.0

    def add(self, stage: str, seconds: float) -> None:
        super().add(stage, seconds)
        if stage == 'network':
            self.network += seconds


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def _host(log: Callable[[str], None]) -> Any:
    """What the pipeline asks of a node: a log, and a clock that no stamp is of."""
    return _Host(log)


class _Host:
    nanoseconds = _NEVER

    def __init__(self, log: Callable[[str], None]) -> None:
        self.info = self.warning = self.error = log

    def debug(self, text: str) -> None:
        """Nobody listens."""

    def get_logger(self) -> _Host:
        return self

    def get_clock(self) -> _Host:
        return self

    def now(self) -> _Host:
        return self
