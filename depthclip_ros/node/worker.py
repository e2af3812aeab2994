# SPDX-License-Identifier: Apache-2.0
"""The thread that answers images."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from .camera import Camera

    Waiting = tuple[Camera, bytes]


class Worker:
    """Hands the newest images of all cameras together to one function on one thread.

    It never waits for the images of a batch to be complete: whatever waits when the thread is
    free goes. A camera that is faster than the thread is so in every batch, and none can be
    overtaken by another.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        ready: threading.Condition,
        answer: Callable[[list[Waiting]], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        """Start the thread.

        Args:
            cameras: whose images to take.
            ready: guards the cameras' slots; notified when an image arrives.
            answer: called with the cameras that had an image, and their images, serialised.
            on_crash: called, on the thread, with what `answer` raised; the thread then ends.

        """
        self._cameras = cameras
        self._ready = ready
        self._answer = answer
        self._on_crash = on_crash
        self._stopping = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='depth')
        self._pool.submit(self._run).add_done_callback(self._on_end)

    def stop(self) -> None:
        """Finish the images in work and join the thread."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        self._pool.shutdown(wait=True)

    def _run(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(
                    lambda: self._stopping or any(c.waiting() for c in self._cameras))
                if self._stopping:
                    return
                batch = [(camera, camera.take()) for camera in self._cameras if camera.waiting()]
            self._answer(batch)

    def _on_end(self, future: Future[None]) -> None:
        error = future.exception()
        if error is not None:
            self._on_crash(error)
