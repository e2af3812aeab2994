# SPDX-License-Identifier: Apache-2.0
"""The loaded model, and loading it anew when it fails."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator

FAILURES = 5  # in a row, after which the model is loaded anew
RELOADS = 5  # without an answer in between, after which there is no hope
LONGEST_BREAK = 30.0  # seconds between two reloads


class HopelessError(RuntimeError):
    """The model keeps failing although it was loaded anew again and again."""


class Model:
    """The estimator in use, for the worker's thread alone; other threads may look at it.

    Attributes:
        estimator: None while there is none, as during a reload.
        last_error: what it failed of last; '' for never.
        reloads: how often it was loaded anew, or that was tried.
        reloading: whether that goes on now.
        device_memory: of a GPU, for diagnostics, which must not wait for the device.

    """

    def __init__(
        self, load: Callable[[DepthConfig], DepthEstimator], log: Callable[[str], None],
    ) -> None:
        """Keep how to load; nothing is loaded yet.

        Args:
            load: gives an estimator that is warmed up, or raises.
            log: told about every reload, in sentences.

        """
        self._load = load
        self._log = log
        self._failures = 0  # since the last success
        self._attempts = 0  # reloads since the last success
        self._broken = False
        self._quantizing = threading.Event()  # set to stop it
        self._quantized: Any = None
        self.estimator: DepthEstimator | None = None
        self.last_error = ''
        self.reloads = 0
        self.reloading = False
        self.device_memory: dict[str, float] = {}
        self._memory_time = 0.0

    def load(self, config: DepthConfig) -> DepthEstimator:
        """Load, in place of what may be loaded now; what goes wrong is raised."""
        self.release()
        self.estimator = self._load(config)
        if self.estimator.is_provisional:
            self._quantize_aside(self.estimator)
        return self.estimator

    def _quantize_aside(self, estimator: DepthEstimator) -> None:
        """Make the network in 8 bits on a thread of the lowest priority."""
        stop = self._quantizing = threading.Event()

        def work() -> None:
            with contextlib.suppress(OSError, AttributeError):  # on Linux it is this thread's
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            try:
                trunk = estimator.quantize(stop=stop.is_set)
            except Exception as error:  # noqa: BLE001 (float32 goes on, whatever it is)
                if not stop.is_set():
                    self._log(f'WARNING: float32 runs on, since {describe(error)}')
                return
            if not stop.is_set():
                self._quantized = trunk

        self._log('precision: int8: float32 runs until the network in 8 bits is made.')
        threading.Thread(target=work, name='quantize', daemon=True).start()

    def take_up(self) -> bool:
        """Run the network in 8 bits from now on if it was made meanwhile; give whether."""
        trunk, self._quantized = self._quantized, None
        if trunk is None or self.estimator is None:
            return False
        self.estimator.use(trunk)
        return True

    def release(self) -> None:
        """Give the model's memory back."""
        self._quantizing.set()
        self._quantized = None
        if self.estimator is None:
            return
        self.estimator = None
        gc.collect()
        torch = sys.modules['torch']  # which the estimator has imported
        if torch.cuda.is_initialized():
            with contextlib.suppress(RuntimeError):  # of a device that is lost
                torch.cuda.empty_cache()

    def note_success(self) -> None:
        """An image was answered."""
        self._failures = self._attempts = 0

    def note_failure(self, error: Exception) -> None:
        """An image failed in the model."""
        self._failures += 1
        self.last_error = describe(error)
        self._broken |= self._failures >= FAILURES or is_of_device(error)

    def look_at_memory(self) -> None:
        """Take note of the GPU's memory, once a second."""
        estimator, now = self.estimator, time.monotonic()
        if estimator is None or estimator.device.type != 'cuda' or now < self._memory_time + 1.0:
            return
        cuda = sys.modules['torch'].cuda
        free, total = cuda.mem_get_info(estimator.device)
        self._memory_time = now
        self.device_memory = {
            'GPU memory [MiB]': cuda.memory_allocated(estimator.device) / 2**20,
            'GPU memory reserved [MiB]': cuda.memory_reserved(estimator.device) / 2**20,
            'GPU memory free [MiB]': free / 2**20, 'GPU memory total [MiB]': total / 2**20}

    def recover(self, config: DepthConfig, sleep: Callable[[float], bool]) -> bool:
        """Load anew if the model fails, with longer and longer breaks, until it is there.

        Args:
            config: what to load.
            sleep: waits so many seconds; gives False to give up for now.

        Returns:
            Whether there is a model.

        Raises:
            HopelessError: it failed again after the last of `RELOADS` reloads.

        """
        while self._broken or self.estimator is None:
            self.reloading = True
            if self._attempts == RELOADS:
                raise HopelessError(
                    f'the model was loaded anew {RELOADS} times and failed every time, last with '
                    f'{self.last_error}.')
            pause = min(LONGEST_BREAK, 2.0 ** (self._attempts - 1)) if self._attempts else 0.0
            self._log(f'WARNING: loading the model anew{f" in {pause:g} s" * bool(pause)}: '
                      f'{self.last_error}')
            try:
                self.release()
                if not sleep(pause):
                    self.reloading = False
                    return False
                self._attempts += 1
                self.reloads += 1
                self.load(config)
            except Exception as error:  # noqa: BLE001 (whatever a broken device raises)
                self.last_error = describe(error)
            else:
                self._broken, self._failures = False, 0
                self._log('The model is loaded anew.')
        self.reloading = False
        return True


def is_of_device(error: Exception) -> bool:
    """Whether an error leaves the device or its memory in doubt: CUDA's, or out of memory."""
    if isinstance(error, MemoryError):
        return True
    text = f'{type(error).__name__}: {error}'
    return isinstance(error, RuntimeError) and any(
        part in text for part in ('CUDA', 'cuDNN', 'CUBLAS', 'AcceleratorError', 'OutOfMemory',
                                  'out of memory', "can't allocate memory"))


def describe(error: BaseException) -> str:
    """Type and first line of an error, of bounded length."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0][:200]}'
