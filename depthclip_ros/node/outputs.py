# SPDX-License-Identifier: Apache-2.0
"""Everything that one camera's depth is published as.

Messages are published serialised: rclpy would copy their data once more, and look at every field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Vector3, Vector3Stamped
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from ..color import UNTRAINED, colorize, write_note, write_warning
from . import image_io
from .cloud import PatchCloud, patch_colors
from .qos_events import publisher_callbacks
from .serialized import Template

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import numpy as np
    from numpy.typing import NDArray
    from rclpy.lifecycle import LifecycleNode
    from rclpy.lifecycle.publisher import LifecyclePublisher
    from std_msgs.msg import Header

    from ..core.anchor import State
    from ..core.estimator import DepthPrediction
    from ..core.scenes import Scene
    from .calibration import Calibration

# Reliable, so that every subscriber can match (REP-2003), and shallow: old depth is worthless.
OUTPUT_DEPTH = 5

OUTPUTS = {
    'depth/image': Image,
    'depth/camera_info': CameraInfo,
    'points': PointCloud2,
    'depth/image_color': Image,
    'depth/spread': Image,
    'depth/stddev': Image,
    # With a header and a number for every name, and, unlike vision_msgs, everywhere.
    'scene': DiagnosticArray,
    'depth/scale': Vector3Stamped,
}


class Outputs:
    """Publishers of one camera; only the worker thread publishes."""

    def __init__(self, node: LifecycleNode, encoding: str, prefix: str = '') -> None:
        """Create the publishers.

        Args:
            node: their owner; they are silent while it is not active.
            encoding: of depth/image, 32FC1 or 16UC1.
            prefix: of the topics' names, '' or 'front/'.

        """
        self._node = node
        self._encoding = encoding
        self._publishers: dict[str, LifecyclePublisher] = {
            topic: node.create_lifecycle_publisher(
                kind, prefix + topic,
                QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=OUTPUT_DEPTH,
                           reliability=QoSReliabilityPolicy.RELIABLE),
                event_callbacks=publisher_callbacks(node, prefix + topic),
                qos_overriding_options=QoSOverridingOptions.with_default_policies())
            for topic, kind in OUTPUTS.items()
        }
        self._templates: dict[str, tuple[Hashable, Template]] = {}
        self._cloud = PatchCloud()

    def wanted(self, topic: str) -> bool:
        """Whether anyone subscribes to one output."""
        return bool(self._publishers[topic].get_subscription_count())

    def any_wanted(self) -> bool:
        """Whether anyone subscribes to any output."""
        return any(map(self.wanted, self._publishers))

    def publish_depth(self, header: Header, depth: NDArray[np.float32]) -> int:
        """Publish depth/image, in metres or millimetres as configured.

        Returns:
            Number of pixels whose depth the encoding cannot hold; they are invalid in it.

        """
        values, beyond = image_io.depth_values(depth, self._encoding)
        self._publish_image('depth/image', header, values, self._encoding)
        return beyond

    def publish_projected(
        self, header: Header, rgb: NDArray[np.uint8], prediction: DepthPrediction,
        calibration: Calibration,
    ) -> None:
        """Publish what needs a camera_info: depth/camera_info, and points while wanted."""
        height, width = prediction.depth.shape
        self._publish('depth/camera_info', header, (width, height, calibration.key),
                      lambda: Template(calibration.scaled(width, height, header)))
        if self.wanted('points'):
            h, w = prediction.patch_depth.shape
            rays = calibration.rays(h, w, prediction.window)
            cloud = self._cloud.fill(header, rays, prediction.patch_depth,
                                     patch_colors(rgb, h, w, prediction.window),
                                     prediction.patch_stddev)
            self._publish('points', header, (h, w, cloud.point_step, cloud.is_dense),
                          lambda: Template(cloud, behind=1), cloud.data)  # before is_dense

    def publish_pictures(
        self, header: Header, prediction: DepthPrediction, span: tuple[float, float], *,
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

    def publish_stddev(self, header: Header, prediction: DepthPrediction) -> bool:
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

    def publish_scene(self, header: Header, scene: Scene | None) -> None:
        """Publish scene while wanted, and there are scenes to tell."""
        if scene is not None and self.wanted('scene'):
            self._publishers['scene'].publish(DiagnosticArray(header=header, status=[
                DiagnosticStatus(name='scene', message=scene.name, values=[
                    KeyValue(key=name, value=f'{probability:.3f}') for name, probability in zip(
                        scene.names, scene.probabilities, strict=True)])]))

    def publish_scale(self, header: Header, state: State) -> None:
        """Publish depth/scale: the anchor's scale, variance of its logarithm, inlier share."""
        if self.wanted('depth/scale'):
            self._publishers['depth/scale'].publish(Vector3Stamped(
                header=header, vector=Vector3(x=state.scale, y=state.variance, z=state.share)))

    def _publish_image(
        self, topic: str, header: Header, pixels: NDArray[Any], encoding: str,
    ) -> None:
        def template() -> Template:
            message = Image()
            image_io.fill_image(message, pixels, encoding, header)
            return Template(message)
        self._publish(topic, header, (pixels.shape, encoding), template,
                      image_io.bytes_of(pixels))

    def _publish(
        self, topic: str, header: Header, form: Hashable, make: Callable[[], Template],
        data: Any = b'',
    ) -> None:
        """Publish; the template is made anew when the frame or the form is another."""
        form = header.frame_id, form
        known = self._templates.get(topic)
        if known is None or known[0] != form:
            known = self._templates[topic] = form, make()
        self._publishers[topic].publish(known[1].filled(header.stamp, data))

    def destroy(self) -> None:
        """Remove the publishers from the node."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()
