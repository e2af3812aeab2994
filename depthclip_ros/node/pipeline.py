# SPDX-License-Identifier: Apache-2.0
"""The worker: one thread that loads the model, and answers the newest images of all cameras."""

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
from ..messages import types as messages
from ..messages.frame import Answer, Frame, predict
from ..messages.outputs import OUTPUTS
from .camera import DROPPED, IDLE, NO_CLOUD, NO_PICTURES, PUBLISHED, REJECTED, Camera, Say, Window

if TYPE_CHECKING:  # torch takes seconds to import
    from ..core.estimator import DepthEstimator

Result = TypeVar('Result')

LONGEST_LINE = 1000  # characters of a traceback's line; a message may quote its input

# What is published, one after the other; what an image lacks that fails there, and its words.
CLOUD = ('depth/camera_info', 'points')
STAGES = {
    REJECTED: (('depth/image',), 'Image rejected'),
    NO_CLOUD: (CLOUD, 'No points and no depth/camera_info'),
    NO_PICTURES: (tuple(topic for topic in OUTPUTS if topic not in ('depth/image', *CLOUD)),
                  'No depth/image_color, depth/spread, depth/stddev or depth/words')}


class DeviceLostError(RuntimeError):
    """The device has failed: nothing but a new process can use it again."""


class Pipeline:
    """What happens to images, from the messages that came to the messages that go.

    It never waits for the images of a batch to be complete: whatever waits when the thread is free
    goes, the newest image of each camera. A camera that is faster than the thread is so in every
    batch, and none can be overtaken by another.

    The unit of failure is the image: whatever its decoding, prediction or publication raises is
    counted as a rejection of that image, and reported with its cause.

    Attributes:
        estimator: the loaded model; None while there is none.
        config: settings for the next batch; any thread may replace it.
        network: milliseconds of the estimator's call, once per batch.
        overhead: of all the rest of a batch, divided by its images.

    """

    def __init__(
        self, node: Node, config: DepthConfig,
        on_crash: Callable[[Pipeline, BaseException], None],
    ) -> None:
        """Start; `on_crash` is called, on the thread, with what no image is answered after."""
        self._say, self._on_crash = Say(node), on_crash
        self.config = config
        self.estimator: DepthEstimator | None = None
        self.network, self.overhead = Window(), Window()
        # What libraries prepare for a thread is prepared for the one that runs the model.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='depth')
        self._lock = threading.Lock()
        self._waiting: dict[Camera, bytes] = {}
        self._busy_since: float | None = None

    # The thread ----------------------------------------------------------------------------

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Do a job on the thread, between two batches."""
        return self._pool.submit(job)

    def put(self, camera: Camera, raw: bytes) -> bool:
        """Let a camera's newest image wait for the next batch; give whether it replaces one."""
        with self._lock:
            replaces = camera in self._waiting
            if not self._waiting:
                self._pool.submit(self._run)
            self._waiting[camera] = raw
        return replaces

    def clear(self) -> None:
        """Let no image wait any more."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for camera in waiting:
            camera.count(DROPPED)

    def end(self, *, wait: bool) -> None:
        """Take no more work, and maybe wait for the thread's end and let the model go."""
        self._pool.shutdown(wait=wait, cancel_futures=True)
        if wait:
            self.estimator = None

    def busy_seconds(self) -> float:
        """For how long the thread has been at one batch; 0 while it waits."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, {}
        self._busy_since = time.monotonic()
        try:
            self.answer(batch)
        except BaseException as error:  # noqa: BLE001 (the thread's end must not go unnoticed)
            self._on_crash(self, error)
        finally:
            self._busy_since = None

    # One batch -----------------------------------------------------------------------------

    def answer(self, batch: Mapping[Camera, bytes]) -> None:
        """Decode, predict, publish; count what became of every image.

        Raises:
            DeviceLostError: no image can be answered in this process any more.

        """
        start = time.perf_counter()
        frames: dict[Camera, Frame] = {}
        for camera, raw in batch.items():
            frame = self._attempt(camera, 'decoding', REJECTED, self._decode, camera, raw)
            if frame is not None:
                frames[camera] = frame
        predicting = time.perf_counter()
        answers = self._predict(frames)
        network = time.perf_counter() - predicting
        # All depth first: no camera's depth grows older for the extras of another.
        for part, (topics, _) in STAGES.items():
            for camera, answer in list(answers.items()):
                is_published = self._attempt(
                    camera, 'publication', part, self._publish, camera, answer, part, topics)
                if part == REJECTED and not is_published:
                    del answers[camera]
        if answers:
            self.network.add(1e3 * network)
            self.overhead.add(1e3 * (time.perf_counter() - start - network) / len(answers))

    def _attempt(
        self, camera: Camera, stage: str, part: str, work: Callable[..., Result], *arguments: Any,
    ) -> Result | None:
        """Do some work; what it raises costs this camera's image, or a part of its answer."""
        try:
            return work(*arguments)
        except Exception as error:  # the unit of failure is the image
            cause = messages.cause_of(error, stage)
            camera.count(part, cause)
            if cause != 'absent':  # health reports that, after input_timeout
                self._tell(camera, f'{STAGES[part][1]} ({cause})', error)
            if is_of_device(error):
                raise DeviceLostError(
                    f'The device has failed ({describe(error)}), and nothing but a new process '
                    'can use it again: start the node anew. respawn:=true of the launch file does '
                    'that.') from error
            return None

    def _decode(self, camera: Camera, raw: bytes) -> Frame | None:
        """Decode an image that somebody wants depth of."""
        if any(map(camera.wanted, OUTPUTS)):
            return camera.stream.decode(raw, self.config)
        camera.count(IDLE)
        return None

    def _predict(self, frames: Mapping[Camera, Frame]) -> dict[Camera, Answer]:
        """Answer the frames that can be; those of a batch that fails go once more, one by one.

        Memory that was short is given back before: it may have been a batch too large.
        """
        if not frames:
            return {}
        failed = False
        try:
            return self._call(frames)
        except DataError:
            pass
        except Exception as error:  # noqa: BLE001 (told by the second attempt, and here)
            failed = True
            self._say.once(describe(error), (
                f'{describe(error)}. Memory that nobody uses is given back, and the images are '
                'tried once more, one by one.'))
        if failed:  # here the error is gone, and with it what it held
            free_memory()
        answers: dict[Camera, Answer] = {}
        for camera, frame in frames.items():
            answers |= self._attempt(
                camera, 'prediction', REJECTED, self._call, {camera: frame}) or {}
        return answers

    def _call(self, frames: Mapping[Camera, Frame]) -> dict[Camera, Answer]:
        estimator, config = self.estimator, self.config
        if estimator is None:
            raise RuntimeError('no model is loaded')
        before = estimator.config
        if config != before:
            estimator.reconfigure(config)
        answers = predict(estimator, list(frames.values()))
        if config != before:
            camera, frame = next(iter(frames.items()))
            stamp, old = frame.header.stamp, before.to_dict()
            new = '; '.join(f'{name}: {quoted(value)}' for name, value in config.to_dict().items()
                            if value != old[name])
            camera.say.info('New settings, first in the image with stamp '
                            f'{stamp.sec}.{stamp.nanosec:09}: {new}.')
            if estimator.label and config.calibration != before.calibration:
                self._say.info(f'Depth is {estimator.label}.')
        return dict(zip(frames, answers, strict=True))

    @staticmethod
    def _publish(camera: Camera, answer: Answer, part: str, topics: Iterable[str]) -> bool:
        """Publish what is wanted of one part; False if there is nobody to publish depth to."""
        if part == REJECTED and not camera.is_active():  # rclpy would publish nothing
            camera.count(DROPPED)
            return False
        if part == NO_CLOUD and answer.frame.model is None and answer.frame.problem is not None:
            raise answer.frame.problem
        if part == NO_PICTURES:
            camera.note(answer)
        for topic in topics:
            if part != REJECTED and not camera.wanted(topic):
                continue
            message = OUTPUTS[topic][1](messages.make, answer)
            if message is not None:
                camera.publish(topic, message)
        if part == REJECTED:
            camera.note_published(answer)
            camera.count(PUBLISHED)
        return True

    @staticmethod
    def _tell(camera: Camera, what: str, error: Exception) -> None:
        """Say what is wrong with an image; of what nobody expects the traceback."""
        camera.last_error = f'{what}: {describe(error)}'
        if isinstance(error, DataError):
            camera.say.once(what, f'{what}: {error}')
        else:
            lines = traceback.format_exception(error)
            camera.say.once(what, f'{what}: {"".join(line[:LONGEST_LINE] for line in lines)}',
                            'error')


def free_memory() -> None:
    """Give memory back that nobody uses, a GPU's, too."""
    gc.collect()
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # of a device that is lost
            torch.cuda.empty_cache()


def is_of_device(error: Exception) -> bool:
    """Whether an error leaves the device in doubt: its context is dead until the process ends.

    Memory that was short leaves it whole.
    """
    text = f'{type(error).__name__}: {error}'
    return isinstance(error, RuntimeError) and not is_short_of_memory(error) and any(
        part in text for part in ('CUDA', 'cuDNN', 'CUBLAS', 'AcceleratorError'))


def describe(error: BaseException) -> str:
    """Type and first line of an error, of bounded length."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0][:200]}'
