# SPDX-License-Identifier: Apache-2.0
"""What happens to images, from the messages that came to the messages that go."""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..color import color_range
from ..core.errors import CameraInfoError, DataError, quoted
from ..core.geometry import focal_ratio
from ..core.window import fit_window
from ..overlay import answer_words, depth_words
from .clicks import UNSEEN
from .focal import OFF
from .model import describe
from .statistics import StageTimes, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from rclpy.node import Node

    from ..core.anchor import Adjustment
    from ..core.config import DepthConfig
    from ..core.estimator import Anchor, DepthEstimator, DepthPrediction
    from ..core.geometry import CameraModel
    from .clicks import ClickedPatch
    from .image_stream import ImageStream
    from .model import Model
    from .worker import Waiting

# Beyond this an image's age says that its stamp is of another clock (a replay, for example).
MAX_AGE = 3600.0  # seconds
MAX_STRETCH = 0.02  # by which an image may be stretched without a word
SECOND = 10 ** 9  # nanoseconds
LONGEST_LINE = 1000  # characters of a traceback's line; a message may quote its input


class Frame(NamedTuple):
    """A usable image on its way through.

    `intrinsics` is what took it, as far as is known now: None for the reason in `unknown`.
    """

    camera: ImageStream
    header: Any
    rgb: NDArray[np.uint8]
    intrinsics: CameraModel | None
    unknown: str


class Pipeline:
    """Answers images with the loaded model; used by the worker thread alone.

    The unit of failure is the image: whatever its decoding, prediction or publication raises is
    counted as a rejection of that image, and reported with its cause.

    Attributes:
        config: settings for the next batch; any thread may replace it.
        times: milliseconds per stage. 'network' is the estimator's call, once per batch;
            'overhead' is all the rest of a batch divided by its images; every other stage is
            that of one image.
        batch_sizes: images per call of the estimator.
        abandoned: nobody waits for the images in work any more; what fails is not reported.

    """

    def __init__(
        self, node: Node, model: Model, config: DepthConfig, sleep: Callable[[float], bool],
    ) -> None:
        """Keep the parts.

        Args:
            node: whose clock and log to use.
            model: what predicts.
            config: settings for the first batch.
            sleep: waits so many seconds between two reloads; gives False to give up for now.

        """
        self._node = node
        self._model = model
        self._sleep = sleep
        self._explained: set[str] = set()
        self.config = config
        self.times = StageTimes()
        self.batch_sizes = Window()
        self.abandoned = False

    def answer(self, batch: Sequence[Waiting]) -> None:
        """Decode, predict, publish; count what became of every image.

        Raises:
            HopelessError: the model fails, and loading it anew does not help.

        """
        if not self._model.recover(self.config, self._sleep):
            for camera, _ in batch:
                camera.count_dropped()
            return
        start = time.perf_counter()
        decoded = [self._decode(camera, raw) for camera, raw in batch]
        frames = [frame for frame in decoded if frame is not None]
        if not frames:
            return
        predicting = time.perf_counter()
        answers = self._predict(frames)
        network = time.perf_counter() - predicting
        # All depth first: no camera's depth grows older for the extras of another.
        answers = [answer for answer in answers if self._publish_depth(*answer)]
        for frame, prediction in answers:
            self._publish_extras(frame, prediction)
            frame.camera.count_published()
        if answers:
            self.batch_sizes.add(len(frames))
            self.times.add('network', network)
            self.times.add('overhead', (time.perf_counter() - start - network) / len(frames))
        if self._model.recover(self.config, self._sleep):
            self._model.look_at_memory()

    def _decode(self, camera: ImageStream, raw: bytes) -> Frame | None:
        """The image as a frame; None, and counted, if nobody wants it or it is unusable."""
        try:
            if not camera.outputs.any_wanted():
                camera.count_idle()
                return None
            with self.times.measure('decode'):
                header, rgb = camera.decode(raw)
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            self._reject(camera, 'decoding', error)
            return None
        self._check_frame_id(camera, header)
        self._check_aspect(camera, rgb)
        return Frame(camera, header, rgb, *self._intrinsics(camera, rgb))

    def _intrinsics(
        self, camera: ImageStream, rgb: NDArray[np.uint8],
    ) -> tuple[CameraModel | None, str]:
        """The camera that took an image, or why it is not known: such an image gets depth, too."""
        config, size = self.config, (rgb.shape[0], rgb.shape[1])
        try:
            model = camera.calibration.select(size[1], size[0])
            network = config.input_height, config.input_width
            window = fit_window(config.input_fit, size, network)
            focal_ratio(config.reference_focal, model, window, size, network)
        except CameraInfoError as error:
            return None, f'camera_info: {error.condition}'
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            condition = _condition('projection', error)
            self._report(camera, 'The focal length does not count', condition, error)
            return None, condition
        return model, ''

    def _predict(self, frames: Sequence[Frame]) -> list[tuple[Frame, DepthPrediction]]:
        """The frames that can be answered; if a batch fails, each of its images alone."""
        try:
            answers = list(zip(frames, self._estimate(frames), strict=True))
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            if len(frames) > 1:
                self._explain(f'{len(frames)} images failed as one batch and go one by one',
                              _condition('prediction', error), error)
                return [answer for frame in frames for answer in self._predict([frame])]
            self._reject(frames[0].camera, 'prediction', error)
            if not isinstance(error, DataError):
                self._model.note_failure(error)
            return []
        self._model.note_success()
        return answers

    def _estimate(self, frames: Sequence[Frame]) -> list[DepthPrediction]:
        config, estimator = self.config, self._model.estimator
        if estimator is None:
            raise RuntimeError('no model is loaded')
        before = estimator.config
        if config != before:
            estimator.reconfigure(config)
        quantized = self._model.take_up()
        size = None
        if frames[0].camera.config.depth_resolution == 'network':  # which all cameras share
            size = (config.input_height, config.input_width)
        predictions = estimator.predict(
            [frame.rgb for frame in frames], size, [frame.intrinsics for frame in frames],
            anchors=list(map(self._adjuster, frames)),
            scenes=[frame.camera.scene for frame in frames])
        for frame, prediction in zip(frames, predictions, strict=True):
            frame.camera.scene = prediction.scene
        if quantized:
            self._node.get_logger().info(
                f'{frames[0].camera.label}Depth in int8, calibrated on {estimator.quantized_on}, '
                f'first in the image with stamp {_seconds(frames[0].header)}.')
        if config != before:
            self._node.get_logger().info(
                f'{frames[0].camera.label}New settings, first in the image with stamp '
                f'{_seconds(frames[0].header)}: {_difference(before, config)}.')
            if estimator.label and config.calibration != before.calibration:
                self._node.get_logger().info(f'Depth is {estimator.label}.')
        return predictions

    def _adjuster(self, frame: Frame) -> Anchor | None:
        """What knows the scale of an image's depth; whatever fails here, there is depth."""
        anchor = frame.camera.anchor
        if anchor is None:
            return None
        height, width = frame.rgb.shape[:2]
        try:
            with self.times.measure('anchor'):
                # Where depth knows none, it may have come since, or says here why it is unusable.
                model = frame.intrinsics or frame.camera.calibration.select(width, height)
                ask = anchor.adjuster(frame.header, model, (height, width))
        except CameraInfoError as error:
            ask = anchor.without(frame.header, f'camera_info: {error.condition}', str(error))
        except DataError as error:
            ask = anchor.without(frame.header, error.condition, str(error))
        except Exception as error:  # noqa: BLE001 (depth does not depend on its anchor)
            condition = _condition('anchor', error)
            self._explain(f'{frame.camera.label}No anchor', condition, error)
            ask = anchor.without(frame.header, condition, describe(error))

        def timed(*image: Any) -> Adjustment:
            with self.times.measure('anchor filter'):
                return ask(*image)
        return timed

    def _tell_anchor(self, camera: ImageStream) -> None:
        """Say when an anchor is taken up, and what is wrong with it."""
        anchor = camera.anchor
        if anchor is None:
            return
        state = anchor.filter.state
        if state.anchored and not anchor.told:
            self._node.get_logger().info(
                f'{camera.label}Anchored by {camera.config.anchor}: scale {state.scale:.3g}, '
                f'{100 * state.share:.0f} % of {state.points} points agree.')
        anchor.told = state.anchored
        if anchor.condition and camera.throttle.due(f'anchor: {anchor.condition}'):
            self._node.get_logger().warning(
                f'{camera.label}anchor: {camera.config.anchor} is not followed '
                f'({anchor.condition}): {anchor.reason}')

    def _publish_depth(self, frame: Frame, prediction: DepthPrediction) -> bool:
        """Publish depth/image; False, and counted, if that fails."""
        camera = frame.camera
        try:
            with self.times.measure('publish depth'):
                beyond = camera.outputs.publish_depth(frame.header, prediction.depth)
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            self._reject(camera, 'publication', error)
            return False
        self._note_age(camera, frame.header)
        self._note_focal(frame, prediction.focal_ratio)
        camera.nan_shares.add(_nan_share(prediction.depth))
        self._note_stddev(camera, prediction)
        if beyond:
            camera.beyond_encoding += beyond
            if camera.throttle.due('beyond encoding'):
                self._node.get_logger().warning(
                    f'{camera.label}{beyond} pixels have a depth beyond 65.535 m, which 16UC1 '
                    'cannot hold; they are published as invalid. Use depth_encoding: 32FC1.')
        return True

    def _publish_extras(self, frame: Frame, prediction: DepthPrediction) -> None:
        """Publish every other output that applies; its depth is published, whatever fails here."""
        camera, header = frame.camera, frame.header
        self._tell_anchor(camera)
        try:
            if camera.anchor is not None:
                camera.outputs.publish_scale(header, camera.anchor.filter.state)
            height, width = frame.rgb.shape[:2]
            if frame.intrinsics is None:  # it may have come since
                camera.calibration.select(width, height)
            with self.times.measure('publish points'):
                camera.outputs.publish_projected(
                    header, frame.rgb, prediction, camera.calibration)
        except CameraInfoError as error:
            camera.count_unprojected(error.condition)
            if error.condition != 'absent':  # the watchdog reports that, after input_timeout
                self._report(camera, 'No points and no depth/camera_info', error.condition, error)
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            condition = _condition('projection', error)
            camera.count_unprojected(condition)
            self._report(camera, 'No points and no depth/camera_info', condition, error)
        try:
            estimator = self._model.estimator
            if estimator is not None:
                with self.times.measure('publish pictures'):
                    camera.outputs.publish_pictures(
                        header, prediction, color_range(estimator.config.depth_span),
                        trained=estimator.weights.trained, note=estimator.label)
                    camera.outputs.publish_scene(header, prediction.scene)
                    if not camera.outputs.publish_stddev(header, prediction):
                        self._warn_no_stddev(camera)
                if camera.outputs.wanted('depth/words'):
                    with self.times.measure('publish words'):
                        self._publish_words(frame, prediction, estimator)
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            condition = _condition('publication', error)
            camera.count_unpictured(condition)
            self._report(camera, 'No depth/image_color, depth/spread, depth/stddev or depth/words',
                         condition, error)

    def _publish_words(
        self, frame: Frame, prediction: DepthPrediction, estimator: DepthEstimator,
    ) -> None:
        """Publish depth/words, and say what came of a click."""
        camera, config = frame.camera, estimator.config
        clicked, spot = camera.clicked, None
        lines = [estimator.label] if estimator.label else []
        if camera.anchor is not None:
            lines.append(f'anchor: scale {prediction.adjustment.scale:.3g}')
        if clicked is not None:
            height, width = frame.rgb.shape[:2]
            spot, is_new = clicked.look(
                frame.header, lambda: camera.calibration.select(width, height), prediction)
            if is_new:
                self._tell_click(camera, clicked, prediction, spot, config)
            if clicked.condition:
                lines.append(f'last click not shown: {clicked.condition}')
        camera.outputs.publish_words(
            frame.header, frame.rgb, prediction, config, spot, lines,
            trained=estimator.weights.trained)

    def _tell_click(
        self, camera: ImageStream, clicked: ClickedPatch, prediction: DepthPrediction,
        spot: tuple[int, int] | None, config: DepthConfig,
    ) -> None:
        """Say what the patch that was clicked says, or why there is none."""
        if not clicked.condition and spot is not None:
            said = depth_words(prediction, *spot).replace('\n', ' ')
            self._node.get_logger().info(
                f'{camera.label}Clicked {clicked.point}: row {spot[0]}, column {spot[1]} says '
                f'{said}: {answer_words(prediction, *spot, config.tokens)}.')
        elif clicked.condition in UNSEEN:  # another camera may see it
            self._node.get_logger().info(f'{camera.label}Not shown: {clicked.reason}')
        elif camera.throttle.due(f'click: {clicked.condition}'):
            self._node.get_logger().warning(
                f'{camera.label}Click not shown ({clicked.condition}): {clicked.reason}')

    def _warn_no_stddev(self, camera: ImageStream) -> None:
        """Say once why nothing comes on depth/stddev."""
        if not camera.warned_stddev:
            camera.warned_stddev = True
            self._node.get_logger().warning(
                f'{camera.label}depth/stddev is subscribed to, but nothing is published on it: '
                'without a calibration nobody knows how wrong depth is. Make one with '
                '`depthclip calibrate`, and set the parameter calibration to its file. '
                '(depth/spread is no substitute: it tells how undecided the words are.)')

    def _note_stddev(self, camera: ImageStream, prediction: DepthPrediction) -> None:
        """Note how sure depth is, and how much of it was not sure enough."""
        stddev = prediction.patch_stddev
        if stddev is None:
            return
        known = stddev[np.isfinite(stddev)]
        if known.size:
            camera.stddevs.add(float(np.median(known)))
            if self.config.max_stddev:
                camera.gated_shares.add(float((known > self.config.max_stddev).mean()))

    def _note_age(self, camera: ImageStream, header: Any) -> None:
        """Note how old the image is, if its stamp can be of this node's clock at all."""
        stamp = header.stamp
        now = self._node.get_clock().now().nanoseconds
        age = (now - stamp.sec * SECOND - stamp.nanosec) / SECOND
        if abs(age) < MAX_AGE and stamp.sec >= 0 and stamp.nanosec < SECOND:
            camera.ages.add(1e3 * age)
            camera.recent_ages.add(age)
        else:
            camera.foreign_stamps += 1

    def _note_focal(self, frame: Frame, ratio: float) -> None:
        """Say when the focal length begins or ceases to count, and when it changes."""
        camera = frame.camera
        reason = frame.unknown if self.config.reference_focal else OFF
        warn, text = camera.focal.note(ratio, reason, _seconds(frame.header))
        # On lines of their own: rclpy allows one severity a line.
        if warn:
            self._node.get_logger().warning(camera.label + text)
        elif text:
            self._node.get_logger().info(camera.label + text)

    def _check_frame_id(self, camera: ImageStream, header: Any) -> None:
        if not header.frame_id and not camera.warned_frame_id:
            camera.warned_frame_id = True
            self._node.get_logger().warning(
                f'{camera.image_topic}: header.frame_id is empty, and so it is in every output; '
                'RViz and tf cannot place them. Set it in the camera driver, to an optical frame.')

    def _check_aspect(self, camera: ImageStream, rgb: NDArray[np.uint8]) -> None:
        """Count images whose shapes the network sees distorted; say so once a camera."""
        config, (height, width) = self.config, rgb.shape[:2]
        ratio = width * config.input_height / (height * config.input_width)
        change = 1 - min(ratio, 1 / ratio)
        if config.input_fit != 'stretch' or change <= MAX_STRETCH:
            return
        camera.stretched += 1
        if not camera.warned_aspect:
            camera.warned_aspect = True
            self._node.get_logger().warning(
                f'{camera.image_topic}: images of {width}x{height} are stretched to the '
                f"network's {config.input_width}x{config.input_height}, which makes everything "
                f'{100 * change:.0f} % {"narrower" if ratio > 1 else "lower"}'
                ' than it is. Set input_fit: crop or letterbox, or give the input the shape of the'
                ' image.')

    def _reject(self, camera: ImageStream, stage: str, error: Exception) -> None:
        condition = _condition(stage, error)
        camera.count_rejected(condition)
        self._report(camera, 'Image rejected', condition, error)

    def _report(self, camera: ImageStream, what: str, condition: str, error: Exception) -> None:
        """Say in the log what one image lacks, at most every 10 s for each condition."""
        camera.last_error = f'{what} ({condition}): {describe(error)}'
        if isinstance(error, DataError):
            if camera.throttle.due(f'{what}: {condition}'):
                self._node.get_logger().warning(f'{camera.label}{what} ({condition}): {error}')
        elif not self._explain(f'{camera.label}{what}', condition, error) \
                and camera.throttle.due(f'{what}: {condition}'):
            self._node.get_logger().warning(f'{camera.label}{what} ({condition}): '
                                            f'{describe(error)}')

    def _explain(self, what: str, condition: str, error: Exception) -> bool:
        """Log a traceback: the first of a cause as an error, every later one for debugging only.

        Returns:
            Whether it was the first.

        """
        if self.abandoned:
            return True
        first = condition not in self._explained
        self._explained.add(condition)
        log = self._node.get_logger()
        lines = traceback.format_exception(error)
        text = f'{what} ({condition}): {"".join(line[:LONGEST_LINE] for line in lines)}'
        if first:
            log.error(text)
        else:
            log.debug(text)
        return first


def _nan_share(depth: NDArray[np.float32]) -> float:
    if not np.isnan(depth.max()):  # much quicker than to look for them
        return 0.0
    return np.count_nonzero(np.isnan(depth)) / depth.size


def _condition(stage: str, error: Exception) -> str:
    """Short stable key of what went wrong, for counting."""
    if isinstance(error, DataError):
        return error.condition
    return f'{type(error).__name__} in {stage}'


def _seconds(header: Any) -> str:
    return f'{header.stamp.sec}.{header.stamp.nanosec:09}'


def _difference(before: DepthConfig, after: DepthConfig) -> str:
    """What is new in a configuration."""
    old = before.to_dict()
    return '; '.join(f'{name}: {quoted(value)}' for name, value in after.to_dict().items()
                     if value != old[name])
