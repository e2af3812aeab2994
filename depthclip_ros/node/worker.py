# SPDX-License-Identifier: Apache-2.0
"""The worker: one thread that loads the model and processes the newest images of all cameras.

| step of an image | function | if it fails |
|---|---|---|
| waits in its camera's slot | `Worker.put` | dropped: a newer image came, or the node stopped |
| decoded, if an output has a subscriber | `_decode` | rejected; idle without subscribers |
| predicted, with its batch | `_predict_with_retry` | once more alone, then rejected |
| depth/image published, always | `_publish`, `DEPTH` | rejected; dropped if not active |
| camera_info, points, if subscribed | `_publish`, `CLOUD` | "no cloud", beside published |
| other outputs, if subscribed | `_publish`, `PICTURES` | "no pictures", beside published |
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rclpy.node import Node

from ..core.config import DepthConfig
from ..core.errors import DataError, is_short_of_memory, quoted
from ..messages import message_types as messages
from ..messages.camera_context import DecodedImage, DepthResult, predict
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


class OutputGroup(NamedTuple):
    """Topics that are published, or fail, together."""

    topics: tuple[str, ...]
    failure: str  # counted if the group fails
    summary: str  # begins the sentence that is then logged


DEPTH = OutputGroup(('depth/image',), REJECTED, 'Image rejected')
CLOUD = OutputGroup(
    ('depth/camera_info', 'points'), NO_CLOUD, 'No points and no depth/camera_info')
PICTURES = OutputGroup(
    tuple(topic for topic in OUTPUTS if topic not in (*DEPTH.topics, *CLOUD.topics)),
    NO_PICTURES, 'No depth/image_color, depth/spread, depth/stddev or depth/words')


class DeviceLostError(RuntimeError):
    """The device has failed: nothing but a new process can use it again."""


class Worker:
    """Processes images on one thread, from received messages to published ones.

    It never waits for a batch to be complete: when the thread is free, it takes the newest waiting
    image of each camera. So no camera has two images in a batch, and none waits for another's
    rate.

    The unit of failure is the image: an error before its depth is published rejects it, a later
    one costs a group of outputs. Both are counted and logged by their cause.

    Attributes:
        estimator: the loaded model; None while there is none.
        config: settings for the next batch; any thread may replace it.
        network_ms: milliseconds of the estimator's call, for each batch.
        overhead_ms: milliseconds of the rest of a batch, divided by its images.

    """

    def __init__(
        self, node: Node, config: DepthConfig,
        on_crash: Callable[[Worker, BaseException], None],
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
        images: dict[Camera, DecodedImage] = {}
        for camera, raw in batch.items():
            image = self._attempt(camera, 'decoding', DEPTH, self._decode, camera, raw)
            if image is not None:
                images[camera] = image
        predicting = time.perf_counter()
        results = self._predict_with_retry(images)
        network = time.perf_counter() - predicting
        # All depth first: no camera's depth waits for the slower outputs of another.
        for group in (DEPTH, CLOUD, PICTURES):
            for camera, result in list(results.items()):
                is_published = self._attempt(
                    camera, 'publication', group, self._publish, camera, result, group)
                if group is DEPTH and not is_published:
                    del results[camera]
        if results:
            self.network_ms.add(1e3 * network)
            self.overhead_ms.add(1e3 * (time.perf_counter() - start - network) / len(results))

    def _attempt(
        self, camera: Camera, stage: str, group: OutputGroup, work: Callable[..., Result],
        *arguments: Any,
    ) -> Result | None:
        """Do some work; an error of it costs this camera's image, or a part of its outputs."""
        try:
            return work(*arguments)
        except Exception as error:  # the unit of failure is the image
            cause = messages.cause_of(error, stage)
            camera.count(group.failure, cause)
            if cause != 'absent':  # a finding reports that, after input_timeout
                self._log_failure(camera, f'{group.summary} ({cause})', error)
            if is_device_error(error):
                raise DeviceLostError(
                    f'The device has failed ({describe(error)}), and nothing but a new process '
                    'can use it again: start the node anew. respawn:=true of the launch file does '
                    'that.') from error
            return None

    def _decode(self, camera: Camera, raw: bytes) -> DecodedImage | None:
        """Decode an image if any output of its camera has a subscriber."""
        if any(map(camera.has_subscribers, OUTPUTS)):
            return camera.context.decode(raw, self.config)
        camera.count(IDLE)
        return None

    def _predict_with_retry(
        self, images: Mapping[Camera, DecodedImage],
    ) -> dict[Camera, DepthResult]:
        """Predict a batch; if that fails, free memory and predict its images one by one.

        The batch may have been too large for the memory. An image that cannot be used (DataError)
        is no matter of memory, and its second failure is logged.
        """
        if not images:
            return {}
        failed = False
        try:
            return self._predict_batch(images)
        except DataError:
            pass
        except Exception as error:  # noqa: BLE001 (logged here and by the second attempt)
            failed = True
            self._log.write(describe(error), (
                f'{describe(error)}. Memory that nobody uses is given back, and the images are '
                'tried once more, one by one.'))
        if failed:  # outside of the handler, where the error no longer holds memory
            free_memory()
        results: dict[Camera, DepthResult] = {}
        for camera, image in images.items():
            results |= self._attempt(
                camera, 'prediction', DEPTH, self._predict_batch, {camera: image}) or {}
        return results

    def _predict_batch(self, images: Mapping[Camera, DecodedImage]) -> dict[Camera, DepthResult]:
        estimator, config = self.estimator, self.config
        if estimator is None:
            raise RuntimeError('no model is loaded')
        previous = estimator.config
        if config != previous:
            estimator.reconfigure(config)
        results = predict(estimator, list(images.values()))
        if config != previous:
            camera, image = next(iter(images.items()))
            stamp, old = image.header.stamp, previous.to_dict()
            new = config.to_dict().items()
            changes = '; '.join(f'{name}: {quoted(value)}' for name, value in new
                                if value != old[name])
            camera.log.announce('New settings, first in the image with stamp '
                                f'{stamp.sec}.{stamp.nanosec:09}: {changes}.')
            if estimator.label and config.calibration != previous.calibration:
                self._log.announce(f'Depth is {estimator.label}.')
        return dict(zip(images, results, strict=True))

    @staticmethod
    def _publish(camera: Camera, result: DepthResult, group: OutputGroup) -> bool:
        """Publish depth, or the topics of another group that have subscribers.

        Return False if the node is inactive.
        """
        if group is DEPTH and not camera.is_active():  # rclpy would publish nothing
            camera.count(DROPPED)
            return False
        problem = result.image.camera_problem
        if group is CLOUD and result.image.camera_model is None and problem is not None:
            raise problem
        if group is PICTURES:
            camera.update_statistics(result)
        for topic in group.topics:
            if group is not DEPTH and not camera.has_subscribers(topic):
                continue
            message = OUTPUTS[topic][1](messages.create_message, result)
            if message is not None:
                camera.publish(topic, message)
        if group is DEPTH:
            camera.record_publication(result)
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
