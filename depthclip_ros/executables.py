# SPDX-License-Identifier: Apache-2.0
"""Entry points of the executables, which say in a sentence what this Python lacks.

The modules behind them import rclpy, torch or cv2, so that a fresh machine would answer with a
traceback. This file imports the standard library only.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

PACKAGE = __package__ or 'depthclip_ros'
INTERRUPTED, BROKEN_PIPE = 130, 141  # what shells say of a process that either has ended
# How the threads of OpenMP, torch's on a CPU, wait for their next piece of work: spinning for a
# thirtieth of the time that is libgomp's default. On cores that other processes want, spinning
# costs half of the speed; not to spin at all costs a tenth on an idle one (docs/performance.md).
WAITING = {'GOMP_SPINCOUNT': '10000'}
# What a user may have chosen instead, by whichever library of OpenMP.
WAITING_BY_USER = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME', 'KMP_LIBRARY')


def wait_shortly() -> None:
    """Let this process and those that it starts wait so, unless the user has chosen how.

    It counts only before torch is imported. Whoever imports this package as a library does not
    come here.
    """
    if not any(name in os.environ for name in WAITING_BY_USER) and 'torch' not in sys.modules:
        os.environ.update(WAITING)


def begin() -> None:
    """What every executable begins with: how it waits, and that it can print any file's name.

    Bytes of a name that are no UTF-8 are escaped.
    """
    wait_shortly()
    for stream in sys.stdout, sys.stderr:
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')


def waiting() -> str:
    """What is chosen of it, such as 'GOMP_SPINCOUNT=10000'; '' for OpenMP's default."""
    return ' '.join(f'{name}={os.environ[name]}' for name in WAITING_BY_USER
                    if name in os.environ)


def missing_package(error: ImportError) -> str:
    """What to tell the user of a package that cannot be imported; '' for a fault of our own."""
    if error.name is None or error.name.partition('.')[0] in (PACKAGE, 'offline_eval'):
        return ''
    return (f'the Python package {error.name!r} cannot be imported ({error}), in the Python of '
            f"{sys.executable}. 'depthclip doctor' says how to install it.")


def run(name: str, module: str, function: str = 'main') -> int:
    """Run a function of a module of this package and end the process; gives the exit code.

    Args:
        name: of the executable.
        module: within the package.
        function: without arguments, gives the exit code or ends the process.

    """
    begin()
    try:
        status = int(getattr(_imported(module), function)())
    except KeyboardInterrupt:  # before the function's own handlers were there
        return INTERRUPTED
    except ImportError as error:
        reason = missing_package(error)
        if not reason:
            raise
        sys.stderr.write(f'{name}: {reason}\n')
        return 1
    _imported('node.process').end_process(status)
    return status


def command(
    program: str, run: Callable[[list[str]], int], arguments: Sequence[str] | None = None,
) -> int:
    """Run a command line, and say in a sentence what stops it.

    Args:
        program: its name.
        run: is given the arguments, gives the exit code.
        arguments: None: the process's own.

    Returns:
        Exit code: of `run`; 1: an error of this package; 130: interrupted; 141: whoever read the
        output, such as head, wants no more of it.

    """
    begin()
    given, status = list(sys.argv[1:] if arguments is None else arguments), 1
    name = ' '.join([program, *(word for word in given[:1] if word[:1] not in '-./~')])
    try:
        try:
            return run(given)
        finally:
            if sys.stdout:  # None where it was closed from the start
                sys.stdout.flush()  # else a closed pipe is noticed when the process ends
    except KeyboardInterrupt as error:
        reason, status = '; '.join(filter(None, ('interrupted', str(error)))), INTERRUPTED
    except BrokenPipeError:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return BROKEN_PIPE
    except ImportError as error:
        reason = missing_package(error)
        if not reason:
            raise
    except Exception as error:
        # Messages of our own errors are complete; none occurs where the core cannot be imported.
        errors = sys.modules.get(f'{PACKAGE}.core.errors')
        if errors is None or not isinstance(error, errors.DepthClipError):
            raise
        reason = str(error)
    sys.stderr.write(f'{name}: {reason}\n')
    return status


def _imported(module: str) -> ModuleType:
    """Import it; an interrupt meanwhile ends the process, which has begun nothing yet.

    The exception would come out of the middle of a library, which may make another one of it.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored
    if ours:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        return importlib.import_module(f'{PACKAGE}.{module}')
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


depth_node = partial(run, 'depth_node', 'node.depth_node', 'run')
image_source = partial(run, 'image_source', 'sources.image_source')
bag_player = partial(run, 'bag_player', 'sources.bag_player')
sim_camera = partial(run, 'sim_camera', 'sources.sim_camera')
