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


def without_ros(arguments: Sequence[str]) -> list[str]:
    """What is not ROS's of a command line: all but from each --ros-args on to the next --.

    rclpy's own function ends at names of files that are no UTF-8.
    """
    rest, is_ros = [], False
    for argument in arguments:
        if argument == '--ros-args' or (is_ros and argument == '--'):
            is_ros = not is_ros or argument == '--ros-args'
        elif not is_ros:
            rest.append(argument)
    return rest


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
