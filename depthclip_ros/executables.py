# SPDX-License-Identifier: Apache-2.0
"""Entry points of the executables, which report a missing Python package in a sentence.

The modules behind them import rclpy, torch or cv2, so that a fresh machine would give a traceback.
This file imports the standard library only.
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
INTERRUPTED, BROKEN_PIPE = 130, 141  # exit codes of shells for a process that SIGINT, SIGPIPE end
# OpenMP's threads, which torch uses on a CPU, spin for a thirtieth of libgomp's default before
# they sleep. On cores that other processes need, spinning costs half of the speed; no spinning at
# all costs a tenth on an idle machine (docs/performance.md).
WAITING = {'GOMP_SPINCOUNT': '10000'}
# Variables by which a user chooses this, of any OpenMP library.
WAITING_BY_USER = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME', 'KMP_LIBRARY')


def limit_openmp_spinning() -> None:
    """Limit OpenMP's spinning in this process and its children, unless the user has chosen it.

    It works only before torch is imported. Only executables call it, no user of the library.
    """
    if not any(name in os.environ for name in WAITING_BY_USER) and 'torch' not in sys.modules:
        os.environ.update(WAITING)


def prepare_process() -> None:
    """Prepare the process of an executable: OpenMP's spinning, and output of any file name.

    Bytes of a name that are no UTF-8 are escaped.
    """
    limit_openmp_spinning()
    for stream in sys.stdout, sys.stderr:
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')


def openmp_settings() -> str:
    """Return OpenMP's settings, such as 'GOMP_SPINCOUNT=10000'; '' for its defaults."""
    return ' '.join(f'{name}={os.environ[name]}' for name in WAITING_BY_USER
                    if name in os.environ)


def missing_package(error: ImportError) -> str:
    """Return the error message for a package that cannot be imported; '' for one of our own."""
    if error.name is None or error.name.partition('.')[0] in (PACKAGE, 'offline_eval'):
        return ''
    return (f'the Python package {error.name!r} cannot be imported ({error}), in the Python of '
            f"{sys.executable}. 'depthclip doctor' says how to install it.")


def run(name: str, module: str, function: str = 'main') -> int:
    """Run a function of a module of this package, and end the process with its exit code.

    Args:
        name: name of the executable.
        module: name of the module in the package.
        function: name of the function, which returns the exit code or ends the process.

    """
    prepare_process()
    try:
        status = int(getattr(_import_module(module), function)())
    except KeyboardInterrupt:  # before the function installed its handlers
        return INTERRUPTED
    except ImportError as error:
        reason = missing_package(error)
        if not reason:
            raise
        sys.stderr.write(f'{name}: {reason}\n')
        return 1
    _import_module('node.process').end_process(status)
    return status


def command(
    program: str, run: Callable[[list[str]], int], arguments: Sequence[str] | None = None,
) -> int:
    """Run a command line, and report an error of this package in a sentence.

    Args:
        program: name of the program.
        run: function from the arguments to the exit code.
        arguments: the arguments; None: the process's own.

    Returns:
        The exit code of `run`; 1: an error of this package; 130: interrupted; 141: the reader of
        the output, such as head, has closed it.

    """
    prepare_process()
    words, status = list(sys.argv[1:] if arguments is None else arguments), 1
    name = ' '.join([program, *(word for word in words[:1] if word[:1] not in '-./~')])
    try:
        try:
            return run(words)
        finally:
            if sys.stdout:  # None if it was closed from the start
                sys.stdout.flush()  # else a closed pipe is noticed only at the process's end
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
        # Messages of our own errors are complete; none occurs if the core cannot be imported.
        errors = sys.modules.get(f'{PACKAGE}.core.errors')
        if errors is None or not isinstance(error, errors.DepthClipError):
            raise
        reason = str(error)
    sys.stderr.write(f'{name}: {reason}\n')
    return status


def _import_module(module: str) -> ModuleType:
    """Import a module; an interrupt meanwhile ends the process, which has begun nothing yet.

    A KeyboardInterrupt would occur inside a library, which may turn it into another error.
    """
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else ignored
    if is_default:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        return importlib.import_module(f'{PACKAGE}.{module}')
    finally:
        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)


depth_node = partial(run, 'depth_node', 'node.depth_node', 'run')
image_source = partial(run, 'image_source', 'sources.image_source')
bag_player = partial(run, 'bag_player', 'sources.bag_player')
sim_camera = partial(run, 'sim_camera', 'sources.sim_camera')
