# SPDX-License-Identifier: Apache-2.0
"""The node's own threads: one that loads the model and answers images, one that reports."""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .camera import Camera
    from .image_stream import ImageStream

    Waiting = tuple[ImageStream, bytes]

Result = TypeVar('Result')


class Interrupted(BaseException):
    """A job on the worker's thread is to end, because the process ends."""


class Worker:
    """Does jobs, and answers the newest images of all cameras together, on one thread.

    The model is loaded, warmed up and run on it: what libraries prepare for a thread is prepared
    for this one.

    It never waits for the images of a batch to be complete: whatever waits when the thread is
    free goes. A camera that is faster than the thread is so in every batch, and none can be
    overtaken by another.
    """

    def __init__(
        self, ready: threading.Condition, on_crash: Callable[[BaseException], None],
    ) -> None:
        """Start the thread.

        Args:
            ready: guards the cameras' slots; notified when an image arrives.
            on_crash: called, on the thread, with what an answer raised; the thread then ends.

        """
        self._ready = ready
        self._on_crash = on_crash
        self._jobs: deque[Callable[[], None]] = deque()
        self._cameras: Sequence[Camera] = ()
        self._answer: Callable[[Sequence[Waiting]], None] | None = None
        self._ending = False
        self._busy_since: float | None = None
        # A daemon: the process can end although a library never returns.
        self._thread = threading.Thread(target=self._run, name='depth', daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Do a job on the thread, between two batches."""
        future: Future[Result] = Future()

        def work() -> None:
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 (handed to who waits for it)
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._ready:
            self._jobs.append(work)
            self._ready.notify_all()
        return future

    def begin(
        self, cameras: Sequence[Camera], answer: Callable[[Sequence[Waiting]], None],
    ) -> None:
        """Answer images from now on.

        Args:
            cameras: whose images to take.
            answer: called with the cameras that had an image, and their images, serialised.

        """
        with self._ready:
            self._cameras, self._answer = cameras, answer
            self._ready.notify_all()

    def pause(self, timeout: float) -> bool:
        """Take no more images; give whether those in work are done before the time is over."""
        with self._ready:
            self._answer = None
            self._ready.notify_all()
            return self._ready.wait_for(lambda: self._busy_since is None, timeout)

    def stop(self, timeout: float) -> bool:
        """Finish what is in work and end the thread; give whether it ended in time."""
        with self._ready:
            self._answer, self._ending = None, True
            self._ready.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def interrupt(self) -> None:
        """Raise `Interrupted` in what the thread does, as soon as it runs Python again."""
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(Interrupted))

    def sleep(self, seconds: float) -> bool:
        """For the thread itself: wait, and give False at once if it is to pause or to end."""
        with self._ready:
            return not self._ready.wait_for(lambda: self._answer is None, seconds)

    def busy_seconds(self) -> float:
        """For how long the thread has been at one job or batch; 0 while it waits."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                work()
                with self._ready:
                    self._busy_since = None
                    self._ready.notify_all()
        except BaseException as error:  # noqa: BLE001 (the thread's end must not go unnoticed)
            self._busy_since = None
            self._on_crash(error)

    def _next(self) -> Callable[[], Any] | None:
        """What to do next, as soon as there is something; None to end."""
        with self._ready:
            self._ready.wait_for(lambda: self._ending or self._jobs or self._any_waiting())
            if self._ending:
                return None
            self._busy_since = time.monotonic()
            if self._jobs or self._answer is None:
                return self._jobs.popleft()
            batch = [(camera, camera.take()) for camera in self._cameras if camera.waiting()]
            return functools.partial(self._answer, batch)

    def _any_waiting(self) -> bool:
        return self._answer is not None and any(c.waiting() for c in self._cameras)


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
