# SPDX-License-Identifier: Apache-2.0
"""How the executables that publish images start, end, and say why they cannot."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import rclpy
from rclpy.exceptions import NameValidationException
from rclpy.signals import SignalHandlerOptions

from ..core.errors import DepthClipError
from ..core.files import printable
from ..executables import begin
from ..node.process import StopSignals, explain
from ..resources import large_images_profile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Event


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line before --ros-args, and the rest. rclpy's function takes UTF-8 alone."""
    given = list(arguments)
    place = given.index('--ros-args') if '--ros-args' in given else len(given)
    return given[:place], given[place:]


def run(name: str, body: Callable[[Event], int], arguments: Sequence[str]) -> int:
    """Run something that needs rclpy; gives the exit status of the process.

    Args:
        name: of the executable.
        body: what to do, until the event that it is given is set, at SIGINT or SIGTERM: rclpy's
            own handlers would close the context under the last messages.
        arguments: of the command line, with those of ROS.

    """
    begin()
    signals = StopSignals()
    os.environ.update(large_images_profile(os.environ))
    try:
        try:
            rclpy.init(args=[name, *map(printable, arguments)],
                       signal_handler_options=SignalHandlerOptions.NO)
        except (RuntimeError, ValueError) as error:
            sys.stderr.write(f'{name}: {explain(error)}\n')
            return 1
        return body(signals.received)
    except (DepthClipError, NameValidationException) as error:
        sys.stderr.write(f'{name}: {error}\n')
        return 1
    finally:
        rclpy.try_shutdown()
        signals.close()
