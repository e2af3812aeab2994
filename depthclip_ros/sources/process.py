# SPDX-License-Identifier: Apache-2.0
"""Start and end of the executables that publish images, and their error messages."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import rclpy
from rclpy.exceptions import NameValidationException
from rclpy.signals import SignalHandlerOptions

from ..core.errors import DepthClipError
from ..core.files import printable
from ..executables import prepare_process
from ..node.process import StopSignals, rclpy_error_text
from ..resources import large_images_profile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Event


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line before --ros-args. rclpy's function accepts UTF-8 alone."""
    words = list(arguments)
    end = words.index('--ros-args') if '--ros-args' in words else len(words)
    return words[:end], words[end:]


def run(name: str, body: Callable[[Event], int], arguments: Sequence[str]) -> int:
    """Run the body of an executable within rclpy; return the exit status of the process.

    Args:
        name: of the executable.
        body: called with an event that SIGINT and SIGTERM set, upon which it returns: rclpy's
            own handlers would close the context under the last messages.
        arguments: of the command line, with those of ROS.

    """
    prepare_process()
    signals = StopSignals()
    os.environ.update(large_images_profile(os.environ))
    try:
        try:
            rclpy.init(args=[name, *map(printable, arguments)],
                       signal_handler_options=SignalHandlerOptions.NO)
        except (RuntimeError, ValueError) as error:
            sys.stderr.write(f'{name}: {rclpy_error_text(error)}\n')
            return 1
        return body(signals.received)
    except (DepthClipError, NameValidationException) as error:
        sys.stderr.write(f'{name}: {error}\n')
        return 1
    finally:
        rclpy.try_shutdown()
        signals.close()
