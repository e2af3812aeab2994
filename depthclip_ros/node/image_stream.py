# SPDX-License-Identifier: Apache-2.0
"""What becomes of one camera's images, and the account of it, wherever they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import ImageError
from . import image_io, serialized
from .calibration import Calibration
from .focal import FocalRatio
from .messages import COMPRESSED_IMAGE, IMAGE
from .statistics import Counters, Recent, Throttle, Window

if TYPE_CHECKING:
    import threading

    import numpy as np
    from numpy.typing import NDArray

    from ..core.scenes import Scene
    from .anchors import Anchor
    from .clicks import ClickedPatch
    from .config import NodeConfig
    from .messages import Messages
    from .outputs import Outputs


class ImageStream:
    """One camera as the pipeline knows it: what its images are read with, and how they fared.

    Its images come over ROS, or out of a bag. `ready` guards the counters.
    """

    def __init__(
        self, config: NodeConfig, name: str, image_topic: str, outputs: Outputs,
        messages: Messages, ready: threading.Condition, anchor: Anchor | None = None,
        clicked: ClickedPatch | None = None,
    ) -> None:
        """Begin without an image.

        Args:
            config: how images are read and what is published.
            name: namespace of the topics, '' for the node's own.
            image_topic: where the images come from, for messages.
            outputs: where depth goes.
            messages: what reads images and camera_info.
            ready: guards the counters.
            anchor: of the scale of depth; None for none.
            clicked: what somebody clicked; None where nobody can.

        """
        self._messages = messages
        self._ready = ready
        self._counters = Counters()
        self.config = config
        self.name = name
        self.label = f'{name}: ' if name else ''  # begins a line in the log
        self.image_topic = image_topic
        self.image_type = COMPRESSED_IMAGE if config.image_transport == 'compressed' else IMAGE
        self.calibration = Calibration(rectified=config.rectified, messages=messages)
        self.outputs = outputs
        self.anchor = anchor
        self.clicked = clicked
        self.focal = FocalRatio()
        self.ages = Window()  # milliseconds from stamp to publication
        self.recent_ages = Recent()  # seconds
        self.nan_shares = Recent()  # of every depth image
        self.stddevs = Recent()  # metres, the median of every image
        self.gated_shares = Recent()  # of every image, by max_stddev
        self.foreign_stamps = 0
        self.beyond_encoding = 0  # pixels
        self.throttle = Throttle()
        self.stretched = 0  # images of another aspect ratio than the network's input
        self.warned_frame_id = self.warned_aspect = self.warned_stddev = False
        self.last_error = ''  # what an image failed of last
        self.scene: Scene | None = None  # of the image that was answered last

    def decode(self, raw: bytes) -> tuple[Any, NDArray[np.uint8]]:
        """Header and (H, W, 3) RGB of a serialised image message.

        Raises:
            ImageError: the message cannot be used.

        """
        message = self._read(raw)
        to_rgb = image_io.compressed_to_rgb if self.image_type == COMPRESSED_IMAGE \
            else image_io.to_rgb
        return message.header, to_rgb(message, self.config.max_pixels)

    def picture(self, raw: bytes) -> memoryview | bytes:
        """Bytes of the picture in a serialised image message; all of an unreadable one."""
        try:
            return image_io.data_of(self._read(raw)).data
        except ImageError:
            return raw

    def _read(self, raw: bytes) -> Any:
        if self.image_type == COMPRESSED_IMAGE:
            return serialized.read(raw, COMPRESSED_IMAGE, ImageError, self._messages)
        return serialized.read_image(raw, self._messages)

    def count_published(self) -> None:
        """Account for an answered image."""
        with self._ready:
            self._counters.published += 1
            self._counters.pending -= 1

    def count_idle(self) -> None:
        """Account for an image that nobody wanted."""
        with self._ready:
            self._counters.idle += 1
            self._counters.pending -= 1

    def count_rejected(self, condition: str) -> None:
        """Account for an unusable image."""
        with self._ready:
            self._counters.rejected[condition] += 1
            self._counters.pending -= 1

    def count_dropped(self) -> None:
        """Account for an image that was taken and left."""
        with self._ready:
            self._counters.dropped += 1
            self._counters.pending -= 1

    def count_unprojected(self, condition: str) -> None:
        """Account for an image that is answered, but without cloud and camera_info."""
        with self._ready:
            self._counters.unprojected[condition] += 1

    def count_unpictured(self, condition: str) -> None:
        """Account for an image that is answered, but without colours, spread and stddev."""
        with self._ready:
            self._counters.unpictured[condition] += 1

    def counters(self) -> Counters:
        """Consistent snapshot of the account."""
        with self._ready:
            return self._counters.copy()
