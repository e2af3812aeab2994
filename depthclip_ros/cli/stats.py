# SPDX-License-Identifier: Apache-2.0
"""`depthclip stats`: the diagnostics of running nodes as a table in a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.signals import SignalHandlerOptions

from ..report.document import Table, to_terminal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from diagnostic_msgs.msg import DiagnosticStatus

    #: By node: level, message and values of 'model' and of 'frames' or 'frames of NAME'.
    Reports = dict[str, dict[str, tuple[str, str, dict[str, str]]]]

LEVELS = {b'\0': 'OK', b'\1': 'WARN', b'\2': 'ERROR', b'\3': 'STALE'}
HOME_AND_CLEAR = '\x1b[H\x1b[J'
# Diagnostic values of a camera in the table, besides all causes and the last error.
CAMERA_KEYS = (
    'rate in [Hz]', 'rate out [Hz]', 'age at publish p50 [ms]', 'age at publish p99 [ms]',
    'network p50 [ms]', 'network p99 [ms]', 'received', 'published', 'dropped', 'rejected', 'idle',
    'NaN share [%]')
CAUSES = ('rejected: ', 'no cloud: ', 'no pictures: ', 'last error')
# Diagnostic values of a model in the table.
MODEL_KEYS = ('device', 'precision', 'engine', 'weights', 'weights sha256',
              'configuration sha256', 'reloads', 'last error')


def show_stats(options: argparse.Namespace) -> int:
    """Print the reports of nodes until interrupted.

    Returns:
        Exit code: 0 after --once, 1 if no report came for --timeout.

    """
    # With Python's signal handlers an interrupt ends the command at once.
    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    reader = rclpy.create_node(f'depthclip_stats_{os.getpid()}', context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(reader)
    arrays: list[DiagnosticArray] = []
    reader.create_subscription(DiagnosticArray, '/diagnostics', arrays.append, 10)
    reports: Reports = {}
    last_report = time.monotonic()
    try:
        while time.monotonic() - last_report < options.timeout:
            executor.spin_once(timeout_sec=0.2)
            updates = [array for array in arrays
                       if collect(array.status, options.node.strip('/'), reports)]
            arrays.clear()
            if not updates:
                continue
            last_report = time.monotonic()
            text = table(reports)
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
    print(f'depthclip stats: {options.node or "a depth_node"} reported nothing on /diagnostics in '
          f'{options.timeout:g} s (ROS_DOMAIN_ID {os.environ.get("ROS_DOMAIN_ID") or "0"}). '
          + ('It has ended.' if reports else 'Start it, or compare the domain, '
             'ROS_AUTOMATIC_DISCOVERY_RANGE and the name with `ros2 node list`.'), file=sys.stderr)
    return 1


def collect(statuses: Iterable[DiagnosticStatus], node: str, reports: Reports) -> bool:
    """Add the statuses of depth nodes in one message; returns whether there are any.

    Args:
        statuses: of the message.
        node: name of a node, '' for all.
        reports: changed in place.

    """
    updated = False
    for status in statuses:
        name, _, part = status.name.partition(': ')
        values = {pair.key: pair.value for pair in status.values}
        if node not in ('', name) or not {'configuration sha256', 'rate in [Hz]'} & {*values}:
            continue
        if part == 'model':  # the first of a message; drops cameras that the node has no more
            reports[name] = {}
        reports.setdefault(name, {})[part] = LEVELS[status.level], status.message, values
        updated = True
    return updated


def table(reports: Reports) -> str:
    """Format the reports: a paragraph per node, and below it a column for each of its cameras."""
    paragraphs = []
    for name, parts in sorted(reports.items()):
        cameras = dict(parts)
        if 'model' in parts:
            level, message, values = cameras.pop('model')
            keys = [*MODEL_KEYS, *(key for key in values if key.endswith('[MiB]'))]
            paragraphs.append('\n  '.join([f'{name}: {level} {message}', *(
                f'{key} {values[key]}' for key in keys if values.get(key))]))
        if cameras:
            levels, messages, columns = zip(*cameras.values(), strict=True)
            causes = dict.fromkeys(key for values in columns for key, value in values.items()
                                   if key.startswith(CAUSES) and value)
            paragraphs.append(to_terminal([Table(
                ['camera', *(part.partition(' of ')[2] or '-' for part in cameras)],
                [['state', *levels], ['', *messages],
                 *([key, *(values.get(key) or '-' for values in columns)]
                   for key in (*CAMERA_KEYS, *causes))])]).rstrip())
    return '\n\n'.join(paragraphs)
