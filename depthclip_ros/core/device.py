# SPDX-License-Identifier: Apache-2.0
"""Which processor, and which number format on it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from .errors import ConfigError, DeviceError

_LOGGER = logging.getLogger(__name__)


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


def resolve_precision(
    name: str, device: torch.device, log: Callable[[str], None] = _LOGGER.info,
) -> torch.dtype:
    """Number format of the backbone; auto is float32 on a CPU and float16 on CUDA.

    Args:
        name: auto, float32, float16 or bfloat16.
        device: where it will run.
        log: warned of a format that is slow there.

    Raises:
        ConfigError: float16 on a CPU, which has no arithmetic for it.

    """
    if name == 'auto':
        name = 'float16' if device.type == 'cuda' else 'float32'
    if name == 'float16' and device.type == 'cpu':
        raise ConfigError('precision: float16 needs a GPU; on a CPU use float32 or bfloat16.')
    if name == 'bfloat16' and device.type == 'cpu' and not cpu_has_bfloat16():
        log('WARNING: precision: bfloat16, but this processor has no arithmetic for it (such as '
            'AVX-512 BF16 or AMX); float32 is faster here.')
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16; False where torch cannot tell."""
    return cpu_has_amx() or _cpu_has('_is_avx512_bf16_supported')


def cpu_has_amx() -> bool:
    """Whether this processor multiplies matrices of bfloat16; False where torch cannot tell."""
    return _cpu_has('_is_amx_tile_supported')


def _cpu_has(check: str) -> bool:
    # Not every torch has these checks.
    return bool(getattr(torch.cpu, check, lambda: False)())
