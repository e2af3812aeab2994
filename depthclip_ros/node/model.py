# SPDX-License-Identifier: Apache-2.0
"""The loaded model, and what can be done when it fails."""

from __future__ import annotations

import contextlib
import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    def __init__(self) -> None:
        """Nothing is loaded yet."""
        self.estimator: DepthEstimator | None = None
        self.last_error = ''
        self.device_memory: dict[str, float] = {}

    def release(self) -> None:
        """Give the model's memory back."""
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
