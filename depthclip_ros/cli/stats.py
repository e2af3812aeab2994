# SPDX-License-Identifier: Apache-2.0
"""`depthclip stats`: what running nodes tell on /diagnostics, as a table in a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.signals import SignalHandlerOptions

from ..document import Table, to_terminal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from diagnostic_msgs.msg import DiagnosticStatus

    #: By node: level, message and values of 'model' and of 'frames' or 'frames of NAME'.
    Told = dict[str, dict[str, tuple[str, str, dict[str, str]]]]

LEVELS = {b'\0': 'OK', b'\1': 'WARN', b'\2': 'ERROR', b'\3': 'STALE'}
HOME_AND_CLEAR = '\x1b[H\x1b[J'
# What is shown of a camera: these, whatever it has of causes, and a last error.
SHOWN = ('rate in [Hz]', 'rate out [Hz]', 'age at publish p50 [ms]', 'age at publish p99 [ms]',
         'network p50 [ms]', 'network p99 [ms]', 'received', 'published', 'dropped', 'rejected',
         'idle', 'NaN share [%]')
CAUSES = ('rejected: ', 'no cloud: ', 'no pictures: ', 'last error')
# What is shown of a model, where there is such.
FACTS = ('device', 'precision', 'engine', 'weights', 'weights sha256', 'configuration sha256',
         'reloads', 'last error')


def show_stats(options: argparse.Namespace) -> int:
    """Print what nodes tell, until interrupted.

    Returns:
        Exit code: 0 after --once, 1 if nothing was told for --timeout.

    """
    # Python's own handlers: an interrupt ends it at once.
    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    reader = rclpy.create_node(f'depthclip_stats_{os.getpid()}', context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(reader)
    arrays: list[DiagnosticArray] = []
    reader.create_subscription(DiagnosticArray, '/diagnostics', arrays.append, 10)
    told: Told = {}
    heard = time.monotonic()
    try:
        while time.monotonic() - heard < options.timeout:
            executor.spin_once(timeout_sec=0.2)
            news = [array for array in arrays
                    if collect(array.status, options.node.strip('/'), told)]
            arrays.clear()
            if not news:
                continue
            heard = time.monotonic()
            text = table(told)
            if sys.stdout.isatty() and not options.once:
                height = shutil.get_terminal_size().lines - 1
                text = HOME_AND_CLEAR + '\n'.join(text.splitlines()[:height])
            print(text, flush=True)
            if options.once:
                return 0
    finally:
        executor.shutdown()
        reader.destroy_node()
        rclpy.shutdown(context=context)
    print(f'depthclip stats: {options.node or "a depth_node"} told nothing on /diagnostics in '
          f'{options.timeout:g} s (ROS_DOMAIN_ID {os.environ.get("ROS_DOMAIN_ID") or "0"}). '
          + ('It has ended.' if told else 'Start it, or compare the domain, '
             'ROS_AUTOMATIC_DISCOVERY_RANGE and the name with `ros2 node list`.'), file=sys.stderr)
    return 1


def collect(statuses: Iterable[DiagnosticStatus], wanted: str, told: Told) -> bool:
    """Take in those statuses of one message that are of depth nodes; whether there are such.

    Args:
        statuses: of the message.
        wanted: name of the one node that counts, '' for all.
        told: what was told before; changed in place.

    """
    news = False
    for status in statuses:
        name, _, part = status.name.partition(': ')
        values = {pair.key: pair.value for pair in status.values}
        if wanted not in ('', name) or not {'configuration sha256', 'rate in [Hz]'} & {*values}:
            continue
        if part == 'model':  # the first of a message: cameras that are gone are not told of
            told[name] = {}
        told.setdefault(name, {})[part] = LEVELS[status.level], status.message, values
        news = True
    return news


def table(told: Told) -> str:
    """Everything of all nodes: a paragraph each, and below it a column for each of its cameras."""
    paragraphs = []
    for name, parts in sorted(told.items()):
        cameras = dict(parts)
        if 'model' in parts:
            level, message, values = cameras.pop('model')
            keys = [*FACTS, *(key for key in values if key.endswith('[MiB]'))]
            paragraphs.append('\n  '.join([f'{name}: {level} {message}', *(
                f'{key} {values[key]}' for key in keys if values.get(key))]))
        if cameras:
            levels, messages, told_of = zip(*cameras.values(), strict=True)
            causes = dict.fromkeys(key for values in told_of for key, value in values.items()
                                   if key.startswith(CAUSES) and value)
            paragraphs.append(to_terminal([Table(
                ['camera', *(part.partition(' of ')[2] or '-' for part in cameras)],
                [['state', *levels], ['', *messages],
                 *([key, *(values.get(key) or '-' for values in told_of)]
                   for key in (*SHOWN, *causes))])]).rstrip())
    return '\n\n'.join(paragraphs)
