# SPDX-License-Identifier: Apache-2.0
"""Where something was measured: machine, commit, versions and load."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ('torch', 'numpy', 'opencv-python', 'opencv-python-headless', 'onnxruntime', 'rclpy')
# What decides how fast a network is on a CPU.
CPU_FEATURES = ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_bf16', 'amx_int8')
DIGITS = 5  # significant ones, in a result


def describe() -> dict[str, Any]:
    """Give date, commit, machine, versions and load; call it before anything is measured.

    Nothing heavy is imported for it: neither torch nor a CUDA context.
    """
    script = Path(sys.argv[0]).resolve()
    if script.is_relative_to(ROOT):
        script = script.relative_to(ROOT)
    cpu = _cpu()
    return {
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'command': shlex.join(['python', str(script), *sys.argv[1:]]),
        'commit': _commit(),
        'machine': cpu.get('model name') or cpu.get('Model') or platform.machine(),
        'cores': os.cpu_count(),
        'cpu features': [name for name in CPU_FEATURES if name in cpu.get('flags', '').split()],
        'memory [GiB]': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30,
        'gpu': _answer('nvidia-smi', '--query-gpu=name,memory.total,driver_version',
                       '--format=csv,noheader'),
        'system': platform.platform(),
        'versions': {'python': platform.python_version(), **_packages()},
        'load before': os.getloadavg()[0],
    }


def plain(value: Any) -> Any:
    """Give the same with nothing in it that JSON lacks.

    Floats get five significant digits; NaN and infinity become None.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f'{value:.{DIGITS}g}') if math.isfinite(value) else None
    return value


def _commit() -> str:
    """Give the commit of this repository, with '+changes' where files differ from it."""
    commit = _answer('git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD')
    if not commit:
        return 'unknown'
    changes = _answer('git', '-C', str(ROOT), 'status', '--porcelain', '--untracked-files=no')
    return f'{commit[0]}+changes' if changes else commit[0]


def _answer(*command: str) -> list[str]:
    """Lines that a program prints; none where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return []
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    return completed.stdout.splitlines() if completed.returncode == 0 else []


def _cpu() -> dict[str, str]:
    """Give what /proc/cpuinfo says of the last core; nothing where there is no such file."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    pairs = (line.partition(':') for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _packages() -> dict[str, str]:
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}
