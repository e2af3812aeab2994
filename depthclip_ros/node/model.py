# SPDX-License-Identifier: Apache-2.0
"""The loaded model, what runs beside it, and what can be done when it fails."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.estimator import DepthEstimator


class DeviceLostError(RuntimeError):
    """The device has failed: nothing but a new process can use it again."""


class Model:
    """The estimator in use, for the worker's thread alone; other threads may look at it.

    Attributes:
        estimator: None while there is none.
        last_error: what it failed of last; '' for never.
        device_memory: of a GPU, for diagnostics, which must not wait for the device.

    """

    def __init__(self, log: Callable[[str], None]) -> None:
        """Nothing is loaded yet; `log` is told what is worth a sentence."""
        self._log = log
        self._released = threading.Event()
        self._quantized: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.estimator: DepthEstimator | None = None
        self.last_error = ''
        self.device_memory: dict[str, float] = {}

    def use(self, estimator: DepthEstimator) -> None:
        """Take an estimator; what it is to run in 8 bits is made beside it."""
        self.estimator = estimator
        if estimator.is_provisional:
            self._log('precision: int8: float32 runs until the network in 8 bits is made.')
            threading.Thread(target=self._quantize, args=(estimator,), name='quantize',
                             daemon=True).start()

    def _quantize(self, estimator: DepthEstimator) -> None:
        """Make the network in 8 bits, on a thread of the lowest priority."""
        with contextlib.suppress(OSError, AttributeError):  # on Linux it is this thread's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            self._quantized.put(estimator.quantize(stop=self._released.is_set))
        except Exception as error:  # noqa: BLE001 (float32 goes on, whatever it is)
            if not self._released.is_set():
                self._log(f'WARNING: float32 runs on, since {describe(error)}')

    def take_up(self) -> bool:
        """Run the network in 8 bits from now on if it was made meanwhile; give whether."""
        if self.estimator is None or self._quantized.empty():
            return False
        self.estimator.use(self._quantized.get())
        return True

    def release(self) -> None:
        """Give the model's memory back."""
        self._released.set()
        if self.estimator is not None:
            self.estimator = None
            free_memory()

    def look_at_memory(self) -> None:
        """Take note of the GPU's memory."""
        if self.estimator is None or self.estimator.device.type != 'cuda':
            return
        cuda, device = sys.modules['torch'].cuda, self.estimator.device
        free, total = cuda.mem_get_info(device)
        self.device_memory = {
            'GPU memory [MiB]': cuda.memory_allocated(device) / 2**20,
            'GPU memory reserved [MiB]': cuda.memory_reserved(device) / 2**20,
            'GPU memory free [MiB]': free / 2**20, 'GPU memory total [MiB]': total / 2**20}


def free_memory() -> None:
    """Give memory back that nobody uses, a GPU's, too."""
    gc.collect()
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # of a device that is lost
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was short, on whichever device: that can be cured."""
    text = f'{type(error).__name__}: {error}'
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(
        part in text for part in ('OutOfMemory', 'out of memory', "can't allocate memory")))


def is_of_device(error: Exception) -> bool:
    """Whether an error leaves the device in doubt: its context is dead until the process ends."""
    text = f'{type(error).__name__}: {error}'
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and any(
        part in text for part in ('CUDA', 'cuDNN', 'CUBLAS', 'AcceleratorError'))


def describe(error: BaseException) -> str:
    """Type and first line of an error, of bounded length."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0][:200]}'
