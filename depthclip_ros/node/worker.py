# SPDX-License-Identifier: Apache-2.0
"""The node's own threads: one that loads the model and answers images, one that reports."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .camera import Camera

    Waiting = tuple[Camera, bytes]

Result = TypeVar('Result')


class Worker:
    """Loads the model, and answers the newest images of all cameras together, on one thread.

    What libraries prepare for a thread is prepared for the one that runs the model.

    It never waits for the images of a batch to be complete: whatever waits when the thread is
    free goes. A camera that is faster than the thread is so in every batch, and none can be
    overtaken by another.
    """

    def __init__(
        self, answer: Callable[[Sequence[Waiting]], None],
        on_crash: Callable[[Worker, BaseException], None],
    ) -> None:
        """Start without an image.

        Args:
            answer: called with the cameras that had an image, and their images, serialised.
            on_crash: called, on the thread, with what an answer raised.

        """
        self._answer, self._on_crash = answer, on_crash
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='depth')
        self._lock = threading.Lock()
        self._waiting: dict[Camera, bytes] = {}
        self._busy_since: float | None = None

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

    def clear(self) -> list[Camera]:
        """Let no image wait any more; gives whose did."""
        with self._lock:
            cameras = list(self._waiting)
            self._waiting.clear()
        return cameras

    def end(self, *, wait: bool) -> None:
        """Take no more work, and maybe wait for the thread's end."""
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def busy_seconds(self) -> float:
        """For how long the thread has been at one batch; 0 while it waits."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        with self._lock:
            batch = list(self._waiting.items())
            self._waiting.clear()
        self._busy_since = time.monotonic()
        try:
            if batch:
                self._answer(batch)
        except BaseException as error:  # noqa: BLE001 (the thread's end must not go unnoticed)
            self._on_crash(self, error)
        finally:
            self._busy_since = None


class Ticker:
    """Calls a function once a period of steady time, whatever the other threads do."""

    def __init__(self, period: float, function: Callable[[], None]) -> None:
        """Start the thread; `function` must not raise."""
        self._period = period
        self._function = function
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name='ticker', daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Call it no more; wait for a call that is in work."""
        self._ended.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        due = time.monotonic() + self._period
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            self._function()
            due = max(due + self._period, time.monotonic())
