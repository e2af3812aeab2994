# SPDX-License-Identifier: Apache-2.0
"""The worker: one thread that loads the model and processes the newest images of all cameras."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from rclpy.node import Node

from ..core.config import DepthConfig
from ..core.errors import DataError, is_short_of_memory, quoted
from ..messages import message_types as messages
from ..messages.camera_context import DepthResult, Frame, predict
from ..messages.outputs import OUTPUTS
from .camera import (
    DROPPED,
    IDLE,
    NO_CLOUD,
    NO_PICTURES,
    PUBLISHED,
    REJECTED,
    Camera,
    RollingWindow,
    ThrottledLog,
)

if TYPE_CHECKING:  # torch takes seconds to import
    from ..core.estimator import DepthEstimator

Result = TypeVar('Result')

MAX_LINE = 1000  # characters of a traceback's line; a message may quote its input

# Groups of topics in the order of publication, each by what is counted if the group fails, and
# the sentence that is then logged.
CLOUD = ('depth/camera_info', 'points')
OUTPUT_GROUPS = {
    REJECTED: (('depth/image',), 'Image rejected'),
    NO_CLOUD: (CLOUD, 'No points and no depth/camera_info'),
    NO_PICTURES: (tuple(topic for topic in OUTPUTS if topic not in ('depth/image', *CLOUD)),
                  'No depth/image_color, depth/spread, depth/stddev or depth/words')}


class DeviceLostError(RuntimeError):
    """The device has failed: nothing but a new process can use it again."""


class Pipeline:
    """Processes images on one thread, from received messages to published ones.

    It never waits for a batch to be complete: when the thread is free, it takes the newest waiting
    image of each camera. So a camera that is faster than the thread is in every batch, and none
    can overtake another.

    The unit of failure is the image: an error of its decoding, prediction or publication counts
    as a rejection of that image, and is logged with its cause.

    Attributes:
        estimator: the loaded model; None while there is none.
        config: settings for the next batch; any thread may replace it.
        network_ms: milliseconds of the estimator's call, for each batch.
        overhead_ms: milliseconds of the rest of a batch, divided by its images.

    """

    def __init__(
        self, node: Node, config: DepthConfig,
        on_crash: Callable[[Pipeline, BaseException], None],
    ) -> None:
        """Start the thread, which calls `on_crash` with an error that ends all processing."""
        self._log, self._on_crash = ThrottledLog(node), on_crash
        self.config = config
        self.estimator: DepthEstimator | None = None
        self.network_ms, self.overhead_ms = RollingWindow(), RollingWindow()
        # One thread loads and runs the model, since libraries prepare state for each thread.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='depth')
        self._lock = threading.Lock()
        self._waiting: dict[Camera, bytes] = {}
        self._busy_since: float | None = None

    # The thread ----------------------------------------------------------------------------

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Run a job on the thread, between two batches."""
        return self._pool.submit(job)

    def put(self, camera: Camera, raw: bytes) -> bool:
        """Queue a camera's newest image for the next batch; return whether it replaces one."""
        with self._lock:
            replaces = camera in self._waiting
            if not self._waiting:
                self._pool.submit(self._process_waiting)
            self._waiting[camera] = raw
        return replaces

    def clear(self) -> None:
        """Drop all waiting images."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for camera in waiting:
            camera.count(DROPPED)

    def end(self, *, wait: bool) -> None:
        """Accept no more jobs; with `wait` also wait for the thread, and release the model."""
        self._pool.shutdown(wait=wait, cancel_futures=True)
        if wait:
            self.estimator = None

    def busy_seconds(self) -> float:
        """Return the seconds since the current batch began; 0 between batches."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _process_waiting(self) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, {}
        self._busy_since = time.monotonic()
        try:
            self.process_batch(batch)
        except BaseException as error:  # noqa: BLE001 (the thread's end must be reported)
            self._on_crash(self, error)
        finally:
            self._busy_since = None

    # One batch -----------------------------------------------------------------------------

    def process_batch(self, batch: Mapping[Camera, bytes]) -> None:
        """Decode, predict and publish a batch; count the outcome of every image.

        Raises:
            DeviceLostError: this process can process no more images.

        """
        start = time.perf_counter()
        frames: dict[Camera, Frame] = {}
        for camera, raw in batch.items():
            frame = self._attempt(camera, 'decoding', REJECTED, self._decode, camera, raw)
            if frame is not None:
                frames[camera] = frame
        predicting = time.perf_counter()
        answers = self._predict_with_retry(frames)
        network = time.perf_counter() - predicting
        # All depth first: no camera's depth waits for the slower outputs of another.
        for group, (topics, _) in OUTPUT_GROUPS.items():
            for camera, answer in list(answers.items()):
                is_published = self._attempt(
                    camera, 'publication', group, self._publish, camera, answer, group, topics)
                if group == REJECTED and not is_published:
                    del answers[camera]
        if answers:
            self.network_ms.add(1e3 * network)
            self.overhead_ms.add(1e3 * (time.perf_counter() - start - network) / len(answers))

    def _attempt(
        self, camera: Camera, stage: str, group: str, work: Callable[..., Result], *arguments: Any,
    ) -> Result | None:
        """Do some work; an error of it costs this camera's image, or a part of its outputs."""
        try:
            return work(*arguments)
        except Exception as error:  # the unit of failure is the image
            cause = messages.cause_of(error, stage)
            camera.count(group, cause)
            if cause != 'absent':  # a finding reports that, after input_timeout
                self._log_failure(camera, f'{OUTPUT_GROUPS[group][1]} ({cause})', error)
            if is_device_error(error):
                raise DeviceLostError(
                    f'The device has failed ({describe(error)}), and nothing but a new process '
                    'can use it again: start the node anew. respawn:=true of the launch file does '
                    'that.') from error
            return None

    def _decode(self, camera: Camera, raw: bytes) -> Frame | None:
        """Decode an image if any output of its camera has a subscriber."""
        if any(map(camera.has_subscribers, OUTPUTS)):
            return camera.context.decode(raw, self.config)
        camera.count(IDLE)
        return None

    def _predict_with_retry(self, frames: Mapping[Camera, Frame]) -> dict[Camera, DepthResult]:
        """Predict a batch; if that fails, free memory and predict its frames one by one.

        The batch may have been too large for the memory.
        """
        if not frames:
            return {}
        failed = False
        try:
            return self._predict_batch(frames)
        except DataError:
            pass
        except Exception as error:  # noqa: BLE001 (logged here and by the second attempt)
            failed = True
            self._log.write(describe(error), (
                f'{describe(error)}. Memory that nobody uses is given back, and the images are '
                'tried once more, one by one.'))
        if failed:  # outside of the handler, where the error no longer holds memory
            free_memory()
        answers: dict[Camera, DepthResult] = {}
        for camera, frame in frames.items():
            answers |= self._attempt(
                camera, 'prediction', REJECTED, self._predict_batch, {camera: frame}) or {}
        return answers

    def _predict_batch(self, frames: Mapping[Camera, Frame]) -> dict[Camera, DepthResult]:
        estimator, config = self.estimator, self.config
        if estimator is None:
            raise RuntimeError('no model is loaded')
        previous = estimator.config
        if config != previous:
            estimator.reconfigure(config)
        answers = predict(estimator, list(frames.values()))
        if config != previous:
            camera, frame = next(iter(frames.items()))
            stamp, old = frame.header.stamp, previous.to_dict()
            new = config.to_dict().items()
            changes = '; '.join(f'{name}: {quoted(value)}' for name, value in new
                                if value != old[name])
            camera.log.announce('New settings, first in the image with stamp '
                                f'{stamp.sec}.{stamp.nanosec:09}: {changes}.')
            if estimator.label and config.calibration != previous.calibration:
                self._log.announce(f'Depth is {estimator.label}.')
        return dict(zip(frames, answers, strict=True))

    @staticmethod
    def _publish(camera: Camera, answer: DepthResult, group: str, topics: Iterable[str]) -> bool:
        """Publish the topics of one part that have subscribers; False if the node is inactive."""
        if group == REJECTED and not camera.is_active():  # rclpy would publish nothing
            camera.count(DROPPED)
            return False
        frame = answer.frame
        if group == NO_CLOUD and frame.camera_model is None and frame.camera_problem is not None:
            raise frame.camera_problem
        if group == NO_PICTURES:
            camera.update_statistics(answer)
        for topic in topics:
            if group != REJECTED and not camera.has_subscribers(topic):
                continue
            message = OUTPUTS[topic][1](messages.create_message, answer)
            if message is not None:
                camera.publish(topic, message)
        if group == REJECTED:
            camera.record_publication(answer)
            camera.count(PUBLISHED)
        return True

    @staticmethod
    def _log_failure(camera: Camera, summary: str, error: Exception) -> None:
        """Log why an image failed, with the traceback of an unexpected error."""
        camera.last_error = f'{summary}: {describe(error)}'
        if isinstance(error, DataError):
            camera.log.write(summary, f'{summary}: {error}')
        else:
            lines = traceback.format_exception(error)
            text = ''.join(line[:MAX_LINE] for line in lines)
            camera.log.write(summary, f'{summary}: {text}', 'error')


def free_memory() -> None:
    """Free unused memory, also that of a GPU."""
    gc.collect()
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # the device may be lost
            torch.cuda.empty_cache()


def is_device_error(error: Exception) -> bool:
    """Return whether an error makes the device unusable until the process ends.

    Short memory does not.
    """
    text = f'{type(error).__name__}: {error}'
    return isinstance(error, RuntimeError) and not is_short_of_memory(error) and any(
        name in text for name in ('CUDA', 'cuDNN', 'CUBLAS', 'AcceleratorError'))


def describe(error: BaseException) -> str:
    """Return type and first line of an error, of bounded length."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0][:200]}'
