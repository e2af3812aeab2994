# SPDX-License-Identifier: Apache-2.0
"""What happens to images, from the messages that came to the messages that go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from rclpy.time import Time

from ..core.errors import CameraInfoError, DataError, ImageError
from .statistics import StageTimes, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from rclpy.node import Node
    from std_msgs.msg import Header

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator, DepthPrediction
    from .camera import Camera
    from .worker import Waiting

# Beyond this an image's age says that its stamp is of another clock (a replay, for example).
MAX_AGE = 3600.0  # seconds


class Frame(NamedTuple):
    """A usable image on its way through."""

    camera: Camera
    header: Header
    rgb: NDArray[np.uint8]


class Pipeline:
    """Answers images with the loaded model; used by the worker thread alone.

    Attributes:
        config: settings for the next batch; any thread may replace it.
        times: milliseconds per stage. 'network' is the estimator's call, once per batch;
            'overhead' is all the rest of a batch divided by its images; every other stage is
            that of one image.
        batch_sizes: images per call of the estimator.

    """

    def __init__(self, node: Node, estimator: DepthEstimator) -> None:
        self._node = node
        self._estimator = estimator
        self.config: DepthConfig = estimator.config
        self.times = StageTimes()
        self.batch_sizes = Window()

    def answer(self, batch: Sequence[Waiting]) -> None:
        """Decode, predict, publish; count what became of every image."""
        start = time.perf_counter()
        decoded = [self._decode(camera, raw) for camera, raw in batch]
        frames = [frame for frame in decoded if frame is not None]
        if not frames:
            return
        predicting = time.perf_counter()
        predictions = self._predict(frames)
        network = time.perf_counter() - predicting
        answers = list(zip(frames, predictions, strict=True))
        # All depth first: no camera's depth grows older for the extras of another.
        for frame, prediction in answers:
            self._publish_depth(frame, prediction)
        for frame, prediction in answers:
            self._publish_extras(frame, prediction)
            frame.camera.count_published()
        self.batch_sizes.add(len(frames))
        self.times.add('network', network)
        self.times.add('overhead', (time.perf_counter() - start - network) / len(frames))

    def _decode(self, camera: Camera, raw: bytes) -> Frame | None:
        """The image as a frame; None, and counted, if nobody wants it or it is unusable."""
        if not camera.outputs.any_wanted():
            camera.count_idle()
            return None
        try:
            with self.times.measure('decode'):
                header, rgb = camera.decode(raw)
        except ImageError as error:
            camera.count_rejected(error.condition)
            self._report(camera, 'Image rejected', error)
            return None
        self._check_frame_id(camera, header)
        return Frame(camera, header, rgb)

    def _predict(self, frames: Sequence[Frame]) -> list[DepthPrediction]:
        config = self.config
        if config != self._estimator.config:
            self._estimator.reconfigure(config)
        size = None
        if frames[0].camera.config.depth_resolution == 'network':  # which all cameras share
            size = (config.input_height, config.input_width)
        return self._estimator.predict([frame.rgb for frame in frames], size)

    def _publish_depth(self, frame: Frame, prediction: DepthPrediction) -> None:
        camera = frame.camera
        with self.times.measure('publish depth'):
            beyond = camera.outputs.publish_depth(frame.header, prediction.depth)
        self._note_age(camera, frame.header)
        if beyond:
            camera.beyond_encoding += beyond
            if camera.throttle.due('beyond encoding'):
                self._node.get_logger().warning(
                    f'{camera.label}{beyond} pixels have a depth beyond 65.535 m, which 16UC1 '
                    'cannot hold; they are published as invalid. Use depth_encoding: 32FC1.')

    def _publish_extras(self, frame: Frame, prediction: DepthPrediction) -> None:
        """Publish every other output that applies."""
        camera, header = frame.camera, frame.header
        try:
            height, width = frame.rgb.shape[:2]
            camera.calibration.select(width, height)
        except CameraInfoError as error:
            camera.count_unprojected(error.condition)
            if error.condition != 'absent':  # the watchdog reports that, after input_timeout
                self._report(camera, 'No points and no depth/camera_info', error)
        else:
            with self.times.measure('publish points'):
                camera.outputs.publish_projected(
                    header, frame.rgb, prediction, camera.calibration)
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
            self._node.get_logger().warning(
                f'{camera.label}{what} ({error.condition}): {error}')
