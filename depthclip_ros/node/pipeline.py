# SPDX-License-Identifier: Apache-2.0
"""What happens to one image, from the message that came to the messages that go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rclpy.time import Time

from ..core.errors import CameraInfoError, DataError, ImageError
from .statistics import StageTimes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rclpy.node import Node
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator, DepthPrediction
    from .camera import Camera

# Beyond this an image's age says that its stamp is of another clock (a replay, for example).
MAX_AGE = 3600.0  # seconds


class Pipeline:
    """Answers images with the loaded model; used by the worker thread alone.

    Attributes:
        config: settings for the next image; any thread may replace it.
        times: milliseconds per stage; 'network' is the estimator's call, 'overhead' all the rest.

    """

    def __init__(self, node: Node, estimator: DepthEstimator) -> None:
        self._node = node
        self._estimator = estimator
        self.config: DepthConfig = estimator.config
        self.times = StageTimes()

    def answer(self, camera: Camera, message: Image | CompressedImage) -> None:
        """Decode, predict, publish; count what became of the image."""
        if not camera.outputs.any_wanted():
            camera.count_idle()
            return
        start = time.perf_counter()
        try:
            with self.times.measure('decode'):
                rgb = camera.decode(message)
            predicting = time.perf_counter()
            prediction = self._predict(camera, rgb)
            network = time.perf_counter() - predicting
        except ImageError as error:
            camera.count_rejected(error.condition)
            self._report(camera, 'Image rejected', error)
            return
        self._check_frame_id(camera, message.header)
        self._publish(camera, message.header, rgb, prediction)
        camera.count_published()
        self.times.add('network', network)
        self.times.add('overhead', time.perf_counter() - start - network)

    def _predict(self, camera: Camera, rgb: NDArray[np.uint8]) -> DepthPrediction:
        config = self.config
        if config != self._estimator.config:
            self._estimator.reconfigure(config)
        size = None
        if camera.config.depth_resolution == 'network':
            size = (config.input_height, config.input_width)
        return self._estimator.predict(rgb, size)

    def _publish(
        self, camera: Camera, header: Header, rgb: NDArray[np.uint8],
        prediction: DepthPrediction,
    ) -> None:
        """Publish every output that applies, the depth first."""
        with self.times.measure('publish depth'):
            beyond = camera.outputs.publish_depth(header, prediction.depth)
        if beyond:
            camera.beyond_encoding += beyond
            if camera.throttle.due('beyond encoding'):
                self._node.get_logger().warning(
                    f'{beyond} pixels have a depth beyond 65.535 m, which 16UC1 cannot hold; they '
                    'are published as invalid. Use depth_encoding: 32FC1.')
        self._note_age(camera, header)
        try:
            height, width = rgb.shape[:2]
            camera.calibration.select(width, height)
        except CameraInfoError as error:
            camera.count_unprojected(error.condition)
            if error.condition != 'absent':  # the watchdog reports that, after input_timeout
                self._report(camera, 'No points and no depth/camera_info', error)
        else:
            with self.times.measure('publish points'):
                camera.outputs.publish_projected(header, rgb, prediction, camera.calibration)
        with self.times.measure('publish pictures'):
            camera.outputs.publish_pictures(
                header, prediction, self._estimator.config.bins,
                trained=self._estimator.weights.trained)

    def _note_age(self, camera: Camera, header: Header) -> None:
        now = self._node.get_clock().now().nanoseconds
        age = (now - Time.from_msg(header.stamp).nanoseconds) / 1e9
        if abs(age) < MAX_AGE:
            camera.ages.add(1e3 * age)
        else:
            camera.foreign_stamps += 1

    def _check_frame_id(self, camera: Camera, header: Header) -> None:
        if not header.frame_id and not camera.warned_frame_id:
            camera.warned_frame_id = True
            self._node.get_logger().warning(
                f'{camera.image_topic}: header.frame_id is empty, and so it is in every output; '
                'RViz and tf cannot place them. Set it in the camera driver, to an optical frame.')

    def _report(self, camera: Camera, what: str, error: DataError) -> None:
        if camera.throttle.due(f'{what}: {error.condition}'):
            self._node.get_logger().warning(f'{what} ({error.condition}): {error}')
