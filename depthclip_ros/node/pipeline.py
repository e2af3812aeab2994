# SPDX-License-Identifier: Apache-2.0
"""What happens to images, from the messages that came to the messages that go."""

from __future__ import annotations

import math
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.errors import DataError, quoted
from . import messages
from .camera import OFF
from .frame import answer_to, predict, read_frame
from .model import DeviceLostError, describe, free_memory, is_of_device, is_out_of_memory
from .outputs import MESSAGES, depth_message
from .statistics import NO_CLOUD, NO_PICTURES, Say, StageTimes, Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from rclpy.node import Node

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator, DepthPrediction
    from .camera import Camera
    from .frame import Frame
    from .model import Model
    from .outputs import Answer
    from .worker import Waiting

# Beyond this an image's age says that its stamp is of another clock (a replay, for example).
MAX_AGE = 3600.0  # seconds
MAX_STRETCH = 0.02  # by which an image may be stretched without a word
FOCAL_JUMP = 0.01  # part by which the focal factor may change without a word
SECOND = 10 ** 9  # nanoseconds
LONGEST_LINE = 1000  # characters of a traceback's line; a message may quote its input

NO_STDDEV = (
    'depth/stddev is subscribed to, but nothing is published on it: without a calibration nobody '
    'knows how wrong depth is. Make one with `depthclip calibrate`, and set the parameter '
    'calibration to its file. (depth/spread is no substitute: it tells how undecided the words '
    'are.)')

# What is published beside depth: what an image without it lacks, and how that is told.
BESIDE = {
    NO_CLOUD: (('depth/camera_info', 'points'), 'No points and no depth/camera_info'),
    NO_PICTURES: (
        tuple(topic for topic in MESSAGES
              if topic not in ('depth/image', 'depth/camera_info', 'points')),
        'No depth/image_color, depth/spread, depth/stddev or depth/words'),
}


class InWork(NamedTuple):
    """A usable image on its way through, and whose it is."""

    camera: Camera
    frame: Frame


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

    """

    def __init__(self, node: Node, model: Model, config: DepthConfig) -> None:
        """Keep the parts.

        Args:
            node: whose clock and log to use.
            model: what predicts.
            config: settings for the first batch.

        """
        self._node, self._model = node, model
        self._say = Say(node)
        self._explained: set[str] = set()
        self.config = config
        self.times = StageTimes()
        self.batch_sizes = Window()

    def answer(self, batch: Sequence[Waiting]) -> None:
        """Decode, predict, publish; count what became of every image.

        Raises:
            DeviceLostError: no image can be answered in this process any more.

        """
        start = time.perf_counter()
        decoded = [image for camera, raw in batch if (image := self._decode(camera, raw))]
        if not decoded:
            return
        predicting = time.perf_counter()
        answers = self._predict(decoded)
        network = time.perf_counter() - predicting
        # All depth first: no camera's depth grows older for the extras of another.
        published = [answer for answer in answers if self._publish_depth(*answer)]
        for image, answer in published:
            self._publish_beside(image, answer)
        if published:
            self.batch_sizes.add(len(decoded))
            self.times.add('network', network)
            self.times.add('overhead', (time.perf_counter() - start - network) / len(decoded))

    @contextmanager
    def _one(self, camera: Camera, stage: str) -> Iterator[None]:
        """Whatever fails in the block costs this camera's image, and is counted and told."""
        try:
            yield
        except Exception as error:  # the unit of failure is the image
            condition = _condition(stage, error)
            camera.count('rejected', condition)
            self._tell(camera, 'Image rejected', condition, error)
            if is_of_device(error):
                raise DeviceLostError(
                    f'The device has failed ({describe(error)}), and nothing but a new process '
                    'can use it again: start the node anew. respawn:=true of the launch file does '
                    'that.') from error

    # From a message to a frame -------------------------------------------------------------

    def _decode(self, camera: Camera, raw: bytes) -> InWork | None:
        """The image as a frame; None, and counted, if nobody wants it or it is unusable."""
        with self._one(camera, 'decoding'):
            if not camera.any_wanted():
                camera.count('idle')
                return None
            with self.times.measure('decode'):
                frame = read_frame(messages.read, raw, camera.image_type, camera.calibration,
                                   self.config, camera.config.max_pixels)
            self._check_header(camera, frame.header)
            self._check_aspect(camera, frame.rgb)
            return InWork(camera, frame)
        return None

    def _check_header(self, camera: Camera, header: Any) -> None:
        if not header.frame_id:
            camera.say.once('frame_id', (
                f'{camera.image_topic}: header.frame_id is empty, and so it is in every output; '
                'RViz and tf cannot place them. Set it in the camera driver to an optical frame.'))

    def _check_aspect(self, camera: Camera, rgb: NDArray[np.uint8]) -> None:
        """Count images whose shapes the network sees distorted."""
        height, width = rgb.shape[:2]
        rows, columns = self.config.input_size
        ratio = width * rows / (height * columns)
        change = 1 - min(ratio, 1 / ratio)
        if change <= MAX_STRETCH:
            return
        camera.stretched += 1
        if camera.stretched == 1:
            camera.say.once('aspect', (
                f'images of {width}x{height} are stretched to the '
                f"network's {columns}x{rows}, which makes everything "
                f'{100 * change:.0f} % {"narrower" if ratio > 1 else "lower"} than it is. Set '
                'input_height and input_width to the shape of the image.'))

    # From frames to depth ------------------------------------------------------------------

    def _predict(self, images: Sequence[InWork]) -> list[tuple[InWork, Answer]]:
        """The images that can be answered; if a batch fails, each of its images alone."""
        if len(images) == 1:
            with self._one(images[0].camera, 'prediction'):
                return self._estimate(images)
            return []
        try:
            return self._estimate(images)
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            self._explain(f'{len(images)} images failed as one batch and go one by one',
                          _condition('prediction', error), error)
            return [answer for image in images for answer in self._predict([image])]

    def _estimate(self, images: Sequence[InWork]) -> list[tuple[InWork, Answer]]:
        """Call the estimator, once more where memory was short."""
        try:
            return self._call(images)
        except Exception as error:
            if not isinstance(error, DataError):
                self._model.last_error = describe(error)
            if not is_out_of_memory(error):
                raise
            self._say.once('memory', f'{describe(error)}. Memory that nobody uses is given back, '
                                     'and the images are tried once more.')
        free_memory()
        return self._call(images)

    def _call(self, images: Sequence[InWork]) -> list[tuple[InWork, Answer]]:
        estimator = self._model.estimator
        if estimator is None:
            raise RuntimeError('no model is loaded')
        before, config = estimator.config, self.config
        if config != before:
            estimator.reconfigure(config)
        cameras = [image.camera for image in images]
        predictions = predict(
            estimator, [image.frame for image in images], cameras[0].config.depth_resolution,
            [camera.anchor for camera in cameras], [camera.scene for camera in cameras])
        for camera, prediction in zip(cameras, predictions, strict=True):
            camera.scene = prediction.scene
        self._tell_changes(images[0], estimator, before)
        return [(image, answer_to(image.frame, prediction, estimator, image.camera.anchor,
                                  image.camera.config.depth_encoding))
                for image, prediction in zip(images, predictions, strict=True)]

    def _tell_changes(
        self, image: InWork, estimator: DepthEstimator, before: DepthConfig,
    ) -> None:
        """Say from which image on depth is made in another way."""
        say, config = image.camera.say, estimator.config
        first = f'first in the image with stamp {_seconds(image.frame.header)}'
        if config != before:
            say.info(f'New settings, {first}: {_difference(before, config)}.')
            if estimator.label and config.calibration != before.calibration:
                self._say.info(f'Depth is {estimator.label}.')

    # From depth to messages ----------------------------------------------------------------

    def _publish_depth(self, image: InWork, answer: Answer) -> bool:
        """Publish depth/image; False, and counted, if that fails."""
        camera = image.camera
        with self._one(camera, 'publication'):
            if not camera.is_active():  # deactivated meanwhile: rclpy would publish nothing
                camera.count('dropped')
                return False
            with self.times.measure('publish depth/image'):
                message, beyond = depth_message(messages.make, answer)
                camera.publish('depth/image', message)
            self._note_age(camera, answer.header)
            camera.beyond_encoding += beyond
            if beyond:
                camera.say.once('beyond encoding', (
                    f'{beyond} pixels have a depth beyond 65.535 m, which 16UC1 cannot hold; they '
                    'are published as invalid. Use depth_encoding: 32FC1.'))
            camera.count('published')
            return True
        return False

    def _publish_beside(self, image: InWork, answer: Answer) -> None:
        """Publish every other output that applies; its depth is published, whatever fails here."""
        height, width = answer.rgb.shape[:2]
        calibration = image.camera.calibration
        with self._beside(image.camera, NO_CLOUD):
            calibration.select(width, height)  # camera_info may have come since
            self._publish(image.camera, NO_CLOUD, answer._replace(calibration=calibration))
        with self._beside(image.camera, NO_PICTURES):
            self._note(image, answer.prediction)
            self._publish(image.camera, NO_PICTURES, answer)

    @contextmanager
    def _beside(self, camera: Camera, kind: str) -> Iterator[None]:
        """Whatever fails in the block is lacking beside this camera's depth, counted and told."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (the unit of failure is the image)
            condition = _condition('publication', error)
            camera.count_incomplete(kind, condition)
            if condition != 'absent':  # health reports that, after input_timeout
                self._tell(camera, BESIDE[kind][1], condition, error)

    def _publish(self, camera: Camera, kind: str, answer: Answer) -> None:
        """Publish those of a kind that somebody wants."""
        for topic in filter(camera.wanted, BESIDE[kind][0]):
            with self.times.measure(f'publish {topic}'):
                message = MESSAGES[topic](messages.make, answer)
                if message is not None:
                    camera.publish(topic, message)
                elif topic == 'depth/stddev' and camera.say.due('stddev'):
                    camera.say.info(NO_STDDEV)

    # What is noted and told ----------------------------------------------------------------

    def _note(self, image: InWork, prediction: DepthPrediction) -> None:
        """Take note of what an answered image says about its camera."""
        camera, stddev = image.camera, prediction.patch_stddev
        camera.nan_shares.add(_nan_share(prediction.depth))
        known = stddev[np.isfinite(stddev)] if stddev is not None else np.empty(0)
        if known.size:
            camera.stddevs.add(float(np.median(known)))
            if self.config.max_stddev:
                camera.gated_shares.add(float((known > self.config.max_stddev).mean()))
        self._note_focal(image, prediction.focal_ratio)
        self._tell_anchor(camera)

    def _note_age(self, camera: Camera, header: Any) -> None:
        """Note how old the image is, if its stamp can be of this node's clock at all."""
        stamp = header.stamp
        now = self._node.get_clock().now().nanoseconds
        age = (now - stamp.sec * SECOND - stamp.nanosec) / SECOND
        if abs(age) < MAX_AGE and stamp.sec >= 0 and stamp.nanosec < SECOND:
            camera.ages.add(age)
        else:
            camera.foreign_stamps += 1

    def _note_focal(self, image: InWork, ratio: float) -> None:
        """Say when the focal length begins or ceases to count, and when it changes."""
        camera, frame = image.camera, image.frame
        reason = frame.unknown if self.config.reference_focal else OFF
        before, changed = camera.focal_ratio, reason != camera.focal_reason
        jumped = abs(math.log(ratio / before)) > FOCAL_JUMP
        camera.focal_ratio, camera.focal_reason = ratio, reason
        first, camera.answered = not camera.answered, True
        if not jumped and not changed:
            return
        text = f'From the image with stamp {_seconds(frame.header)} on, depth is '
        if not reason:
            text += f"multiplied by {ratio:.3f} for the camera's focal length"
        elif ratio == 1.0:
            text += f"not multiplied for the camera's focal length ({reason})"
        else:
            text += f"multiplied by {ratio:.3f} for that of the calibration's camera ({reason})"
        if not jumped or first:
            camera.say.info(f'{text}.')
            return
        camera.focal_jumps += 1
        # Of a zoom lens now and then.
        camera.say.once(f'focal length {reason}',
                        f'{text}; its scale is {ratio / before:.3g} times that of before.')

    def _tell_anchor(self, camera: Camera) -> None:
        """Say when an anchor is taken up, and what is wrong with it."""
        anchor = camera.anchor
        if anchor is None:
            return
        state = anchor.filter.state
        if state.anchored and not anchor.told:
            camera.say.info(
                f'Anchored by {camera.config.anchor}: scale {state.scale:.3g}, '
                f'{100 * state.share:.0f} % of {state.points} points agree.')
        anchor.told = state.anchored
        if anchor.condition:
            camera.say.once(f'anchor: {anchor.condition}', (
                f'anchor: {camera.config.anchor} is not followed ({anchor.condition}): '
                f'{anchor.reason}'))

    def _tell(self, camera: Camera, what: str, condition: str, error: Exception) -> None:
        """Say in the log what one image lacks, at most every 10 s for each condition."""
        camera.last_error = f'{what} ({condition}): {describe(error)}'
        if isinstance(error, DataError):
            camera.say.once(f'{what}: {condition}', f'{what} ({condition}): {error}')
        elif not self._explain(f'{camera.label}{what}', condition, error):
            camera.say.once(f'{what}: {condition}', f'{what} ({condition}): {describe(error)}')

    def _explain(self, what: str, condition: str, error: Exception) -> bool:
        """Log a traceback: the first of a cause as an error, every later one for debugging only.

        Returns:
            Whether it was the first.

        """
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
