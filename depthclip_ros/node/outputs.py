# SPDX-License-Identifier: Apache-2.0
"""Everything that one camera's depth is published as.

Messages go to a `Sink` serialised: rclpy would copy their data once more, and look at every field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .. import overlay
from ..color import UNTRAINED, colorize, write_note, write_warning
from . import image_io
from .cloud import PatchCloud, patch_colors
from .messages import (
    CAMERA_INFO,
    DIAGNOSTICS,
    IMAGE,
    KEY_VALUE,
    POINT_CLOUD,
    STATUS,
    VECTOR,
    VECTOR_STAMPED,
    Messages,
)
from .serialized import Template

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ..core.anchor import State
    from ..core.config import DepthConfig
    from ..core.estimator import DepthPrediction
    from ..core.scenes import Scene
    from .calibration import Calibration

# Reliable, so that every subscriber can match (REP-2003), and shallow: old depth is worthless.
OUTPUT_DEPTH = 5

OUTPUTS = {
    'depth/image': IMAGE,
    'depth/camera_info': CAMERA_INFO,
    'points': POINT_CLOUD,
    'depth/image_color': IMAGE,
    'depth/words': IMAGE,
    'depth/spread': IMAGE,
    'depth/stddev': IMAGE,
    # With a header and a number for every name, and, unlike vision_msgs, everywhere.
    'scene': DIAGNOSTICS,
    'depth/scale': VECTOR_STAMPED,
}


class Sink(Protocol):
    """Where the messages of one camera go, by the relative names of their topics."""

    def wanted(self, topic: str) -> bool:
        """Whether anyone wants one output."""

    def publish(self, topic: str, raw: bytes) -> None:
        """Take a serialised message."""

    def destroy(self) -> None:
        """Take no more."""


class Outputs:
    """Messages of one camera's depth; only the worker thread publishes."""

    def __init__(self, sink: Sink, messages: Messages, encoding: str) -> None:
        """Publish nothing yet.

        Args:
            sink: where messages go.
            messages: what makes them.
            encoding: of depth/image, 32FC1 or 16UC1.

        """
        self._sink = sink
        self._messages = messages
        self._encoding = encoding
        self._templates: dict[str, tuple[Hashable, Template]] = {}
        self._cloud = PatchCloud(messages)

    def wanted(self, topic: str) -> bool:
        """Whether anyone subscribes to one output."""
        return self._sink.wanted(topic)

    def any_wanted(self) -> bool:
        """Whether anyone subscribes to any output."""
        return any(map(self.wanted, OUTPUTS))

    def publish_depth(self, header: Any, depth: NDArray[np.float32]) -> int:
        """Publish depth/image, in metres or millimetres as configured.

        Returns:
            Number of pixels whose depth the encoding cannot hold; they are invalid in it.

        """
        values, beyond = image_io.depth_values(depth, self._encoding)
        self._publish_image('depth/image', header, values, self._encoding)
        return beyond

    def publish_projected(
        self, header: Any, rgb: NDArray[np.uint8], prediction: DepthPrediction,
        calibration: Calibration,
    ) -> None:
        """Publish what needs a camera_info: depth/camera_info, and points while wanted."""
        height, width = prediction.depth.shape
        self._publish('depth/camera_info', header, (width, height, calibration.key),
                      lambda: Template(calibration.scaled(width, height, header),
                                       messages=self._messages))
        if self.wanted('points'):
            h, w = prediction.patch_depth.shape
            rays = calibration.rays(h, w, prediction.window)
            cloud = self._cloud.fill(header, rays, prediction.patch_depth,
                                     patch_colors(rgb, h, w, prediction.window),
                                     prediction.patch_stddev)
            # Behind the data is is_dense.
            self._publish('points', header, (h, w, cloud.point_step, cloud.is_dense),
                          lambda: Template(cloud, 1, self._messages), cloud.data)

    def publish_pictures(
        self, header: Any, prediction: DepthPrediction, span: tuple[float, float], *,
        trained: bool, note: str = '',
    ) -> None:
        """Publish depth/image_color, with a note in it, and depth/spread while wanted."""
        if self.wanted('depth/image_color'):
            picture = colorize(prediction.depth, *span)
            if not trained:
                write_warning(picture, UNTRAINED)
            if note:
                write_note(picture, note)
            self._publish_image('depth/image_color', header, picture, 'bgr8')
        if self.wanted('depth/spread'):
            self._publish_image('depth/spread', header, prediction.spread, '32FC1')

    def publish_words(
        self, header: Any, rgb: NDArray[np.uint8], prediction: DepthPrediction,
        config: DepthConfig, spot: tuple[int, int] | None, lines: Sequence[str], *, trained: bool,
    ) -> None:
        """Publish depth/words; see `overlay.draw`. Ask `wanted` before."""
        picture = overlay.draw(rgb, prediction, config, spot, lines, '' if trained else UNTRAINED)
        self._publish_image('depth/words', header, picture, 'bgr8')

    def publish_stddev(self, header: Any, prediction: DepthPrediction) -> bool:
        """Publish depth/stddev while wanted, in metres whatever the encoding of depth/image.

        Returns:
            False if it is wanted, and nothing is known: there is no calibration.

        """
        if not self.wanted('depth/stddev'):
            return True
        stddev = prediction.stddev()
        if stddev is None:
            return False
        self._publish_image('depth/stddev', header, stddev, '32FC1')
        return True

    def publish_scene(self, header: Any, scene: Scene | None) -> None:
        """Publish scene while wanted, and there are scenes to tell."""
        if scene is not None and self.wanted('scene'):
            make = self._messages.make
            self._sink.publish('scene', self._messages.write(make(
                DIAGNOSTICS, header=header, status=[make(
                    STATUS, name='scene', message=scene.name, values=[
                        make(KEY_VALUE, key=name, value=f'{probability:.3f}')
                        for name, probability in zip(
                            scene.names, scene.probabilities, strict=True)])])))

    def publish_scale(self, header: Any, state: State) -> None:
        """Publish depth/scale: the anchor's scale, variance of its logarithm, inlier share."""
        if self.wanted('depth/scale'):
            make = self._messages.make
            self._sink.publish('depth/scale', self._messages.write(make(
                VECTOR_STAMPED, header=header, vector=make(
                    VECTOR, x=state.scale, y=state.variance, z=state.share))))

    def _publish_image(
        self, topic: str, header: Any, pixels: NDArray[Any], encoding: str,
    ) -> None:
        def template() -> Template:
            return Template(image_io.image_message(self._messages, pixels, encoding, header),
                            messages=self._messages)
        self._publish(topic, header, (pixels.shape, encoding), template,
                      image_io.bytes_of(pixels))

    def _publish(
        self, topic: str, header: Any, form: Hashable, make: Callable[[], Template],
        data: Any = b'',
    ) -> None:
        """Publish; the template is made anew when the frame or the form is another."""
        form = header.frame_id, form
        known = self._templates.get(topic)
        if known is None or known[0] != form:
            known = self._templates[topic] = form, make()
        self._sink.publish(topic, known[1].filled(header.stamp, data))

    def destroy(self) -> None:
        """Publish no more."""
        self._sink.destroy()
