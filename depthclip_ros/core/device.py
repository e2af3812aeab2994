# SPDX-License-Identifier: Apache-2.0
"""Which processor, which number format on it, and what it can do: found out by trying."""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .errors import ConfigError, DeviceError

_LOGGER = logging.getLogger(__name__)
# What torch itself chose, while it is overridden.
_own_threads: int | None = None


@dataclass(frozen=True)
class Ability:
    """Whether something works here; it is false if not, and knows what was raised."""

    error: Exception | None = None

    def __bool__(self) -> bool:
        return self.error is None

    @property
    def why_not(self) -> str:
        """The reason in one line; '' if it works."""
        return '' if self.error is None else reason(self.error)


def try_out(operation: Callable[[], object]) -> Ability:
    """Find out whether an operation works with this torch on this processor: by doing it.

    Names of processors and versions tell less: builds of torch differ in what they bring.
    """
    try:
        with torch.inference_mode():
            operation()
    except Exception as error:  # noqa: BLE001 (other people's code raises anything)
        return Ability(error.with_traceback(None))
    return Ability()


def reason(error: Exception) -> str:
    """What went wrong in other people's code, in one line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


def resolve_device(name: str) -> torch.device:
    """Turn auto, cpu, cuda or cuda:N into a device that exists.

    Raises:
        DeviceError: a GPU is asked for and not there; nothing falls back in silence.

    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == 'auto':
        return torch.device('cuda:0' if count else 'cpu')
    if name == 'cpu':
        return torch.device('cpu')
    if name != 'cuda' and not (name.startswith('cuda:') and name[5:].isdigit()):
        raise DeviceError(f"device: '{name}' is none of auto, cpu, cuda, cuda:N.")
    if not count:
        why = ('this torch is a CPU-only build; install a CUDA build' if not torch.version.cuda
               else f'torch {torch.__version__} sees no GPU; check the driver with nvidia-smi')
        raise DeviceError(f"device: '{name}', but {why}, or use device: auto.")
    index = int(name[5:]) if ':' in name else 0
    if index >= count:
        raise DeviceError(f"device: '{name}', but there are {count} GPUs, cuda:0 to "
                          f'cuda:{count - 1}.')
    return torch.device(f'cuda:{index}')


def current(device: torch.device) -> AbstractContextManager[object]:
    """Let a GPU be the current one meanwhile, so that nothing is allocated on another."""
    return torch.cuda.device(device) if device.type == 'cuda' else nullcontext()


def use_exact_float32() -> None:
    """Let this process's GPUs multiply float32 without TF32, which rounds factors to 10 bits."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # Since 2.9 there are two interfaces; once the user has taken the new one, the old one raises.
    if hasattr(cudnn, 'conv') and hasattr(matmul, 'fp32_precision'):
        cudnn.conv.fp32_precision = matmul.fp32_precision = 'ieee'
    else:
        cudnn.allow_tf32 = matmul.allow_tf32 = False
    cudnn.benchmark = True


def use_threads(count: int) -> None:
    """Let torch use so many CPU threads, in the whole process; 0: as many as it chose itself."""
    global _own_threads  # noqa: PLW0603 (torch has it for the process, too)
    if count and _own_threads is None:
        _own_threads = torch.get_num_threads()
    wanted = count or _own_threads
    if wanted:
        torch.set_num_threads(wanted)
    if not count:
        _own_threads = None


@contextmanager
def one_thread() -> Iterator[None]:
    """For what must have the same bits whatever the number of threads; not beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def release_freed_memory() -> None:
    """Give what this process has freed back to the system: after loading it is 450 MB.

    glibc keeps free memory below what is still in use, and a node keeps it for its images.
    Elsewhere than on glibc this does nothing.
    """
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


class Precision(NamedTuple):
    """A number format, and why it is that one, in words; '' where it is what was asked for."""

    dtype: torch.dtype
    why: str = ''


def resolve_precision(
    name: str, device: torch.device, log: Callable[[str], None] = _LOGGER.info,
) -> Precision:
    """Number format of the backbone; auto is float32 on a CPU and float16 on CUDA.

    A CPU without instructions for bfloat16 runs float32 in its place: what was asked for is speed
    at the price of exactness, and it would cost both, 8 to 21 times the time. That depends on the
    processor alone, so that the numbers of a machine stay the same.

    Args:
        name: auto, float32, float16, bfloat16 or int8.
        device: where it will run.
        log: warned of a format that is not taken.

    Raises:
        ConfigError: float16 on a CPU, which has no arithmetic for it, or int8 on a GPU.

    """
    if name == 'auto':
        name = 'float16' if device.type == 'cuda' else 'float32'
    if name == 'float16' and device.type == 'cpu':
        raise ConfigError('precision: float16 needs a GPU; on a CPU use float32 or bfloat16.')
    if name == 'int8' and device.type != 'cpu':
        raise ConfigError(f'precision: int8 is for a CPU, and the device is {device}; use float16 '
                          'there, or device: cpu.')
    if name == 'bfloat16' and device.type == 'cpu' and not cpu_has_bfloat16():
        why = 'this processor has no arithmetic for it (such as AVX-512 BF16 or AMX)'
        log(f'WARNING: precision: bfloat16, but {why}: float32 runs instead, which is faster '
            'here, and more exact.')
        return Precision(torch.float32, f'instead of bfloat16: {why}')
    dtype: torch.dtype = getattr(torch, name)
    return Precision(dtype)


def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; `depthclip doctor` tells their worth.

    torch's own checks know x86-64 only, and not in every version. Elsewhere a convolution is
    tried: oneDNN refuses those for which it has no instructions.
    """
    check = '_is_avx512_bf16_supported'
    if platform.machine().lower() in ('x86_64', 'amd64') and hasattr(torch.cpu, check):
        return cpu_has_amx() or _cpu_has(check)
    from .resnet import can_fuse  # which is made of what is here
    return bool(can_fuse(torch.bfloat16))


def cpu_has_amx() -> bool:
    """Whether this processor multiplies matrices of bfloat16; False where torch cannot tell."""
    return _cpu_has('_is_amx_tile_supported')


def _cpu_has(check: str) -> bool:
    # Not every torch has these checks.
    return bool(getattr(torch.cpu, check, lambda: False)())
