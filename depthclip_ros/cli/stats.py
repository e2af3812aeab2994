# SPDX-License-Identifier: Apache-2.0
"""`depthclip stats`: what running nodes tell on /diagnostics, as a table in a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from ..document import Table, to_terminal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from diagnostic_msgs.msg import DiagnosticStatus
    from rclpy.node import Node

LEVELS = ('OK', 'WARN', 'ERROR', 'STALE')
HOME_AND_CLEAR = '\x1b[H\x1b[J'
MODEL, CAMERA = 'model', 'frames'
# What is shown of a camera: these, whatever it has of causes, and a last error.
SHOWN = ('rate in [Hz]', 'rate out [Hz]', 'age at publish p50 [ms]', 'age at publish p99 [ms]',
         'network p50 [ms]', 'network p99 [ms]', 'received', 'published', 'dropped', 'rejected',
         'idle', 'NaN share [%]')
CAUSES = ('rejected: ', 'no cloud: ', 'no pictures: ', 'last error')
# What is shown of a model, where there is such.
FACTS = ('device', 'precision', 'engine', 'weights', 'weights sha256', 'configuration sha256',
         'reloads', 'last error')


class Status(NamedTuple):
    """One DiagnosticStatus."""

    level: str
    message: str
    values: dict[str, str]


class Told(NamedTuple):
    """The newest that one node told: of its model, and of each camera by name."""

    model: dict[str, Status]
    cameras: dict[str, Status]


def show_stats(options: argparse.Namespace) -> int:
    """Print what nodes tell, until interrupted.

    Returns:
        Exit code: 0 after --once, 1 if nothing was told for --timeout.

    """
    context = rclpy.Context()
    # Python's own handlers: an interrupt ends it at once.
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    reader = rclpy.create_node(f'depthclip_stats_{os.getpid()}', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(reader)
    arrays: list[DiagnosticArray] = []
    reader.create_subscription(DiagnosticArray, '/diagnostics', arrays.append, 10)
    known: dict[str, Told] = {}
    heard = time.monotonic()
    try:
        while time.monotonic() - heard < options.timeout:
            executor.spin_once(timeout_sec=0.2)
            news = {name: known[name] for array in arrays
                    for name in collect(array.status, options.node.strip('/'), known)}
            arrays.clear()
            if not news:
                continue
            heard = time.monotonic()
            if options.json:
                text = as_json(news)
            else:
                text = table(known)
                if sys.stdout.isatty() and not options.once:
                    height = shutil.get_terminal_size().lines - 1
                    text = HOME_AND_CLEAR + '\n'.join(text.splitlines()[:height])
            print(text, flush=True)
            if options.once:
                return 0
        print(_silence(reader, options.node, options.timeout, known), file=sys.stderr)
        return 1
    finally:
        executor.shutdown()
        reader.destroy_node()
        rclpy.shutdown(context=context)


def collect(
    statuses: Iterable[DiagnosticStatus], wanted: str, known: dict[str, Told],
) -> set[str]:
    """Take in those statuses that are of depth nodes; give the names of these nodes.

    Args:
        statuses: of one message.
        wanted: name of the one node that counts, '' for all.
        known: what was told before; changed in place.

    """
    news = set()
    for status in statuses:
        name, _, part = status.name.partition(': ')
        kind, _, camera = part.partition(' of ')
        values = {pair.key: pair.value for pair in status.values}
        sign = {MODEL: 'configuration sha256', CAMERA: 'rate in [Hz]'}.get(kind)
        if sign not in values or wanted not in ('', name):
            continue
        level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
        found = Status(LEVELS[min(level, len(LEVELS) - 1)], status.message, values)
        if kind == MODEL:
            # The first of a message: cameras that are gone are not told of any more.
            known[name] = Told({MODEL: found}, {})
        else:
            known.setdefault(name, Told({}, {})).cameras[camera] = found
        news.add(name)
    return news


def table(known: Mapping[str, Told]) -> str:
    """Everything of all nodes: a paragraph each, and below it a column for each of its cameras."""
    parts = []
    for name, node in sorted(known.items()):
        for model in node.model.values():
            facts = [f'{key} {model.values[key]}' for key in (
                *FACTS, *(key for key in model.values if key.endswith('[MiB]')))
                if model.values.get(key)]
            parts.append('\n  '.join([f'{name}: {model.level} {model.message}', *facts]))
        if node.cameras:
            statuses = node.cameras.values()
            causes = dict.fromkeys(key for status in statuses for key, value in
                                   status.values.items() if key.startswith(CAUSES) and value)
            rows = [['state', *(status.level for status in statuses)],
                    ['', *(status.message for status in statuses)],
                    *([key, *(status.values.get(key) or '-' for status in statuses)]
                      for key in (*SHOWN, *causes))]
            parts.append(to_terminal([Table(
                ['camera', *(camera or '-' for camera in node.cameras)], rows)]).rstrip())
    return '\n\n'.join(parts)


def as_json(nodes: Mapping[str, Told]) -> str:
    """All values of these nodes as one object."""
    return json.dumps({name: {
        'model': {part: status._asdict() for part, status in node.model.items()}.get(MODEL),
        'cameras': {camera: status._asdict() for camera, status in node.cameras.items()},
    } for name, node in sorted(nodes.items())})


def _silence(reader: Node, node: str, timeout: float, known: Mapping[str, Told]) -> str:
    """Say that nothing came, and where to look."""
    who = node or 'a depth_node'
    if known:
        return f'depthclip stats: {who} has told nothing for {timeout:g} s: it has ended.'
    others = sorted(f'{namespace.rstrip("/")}/{name}'
                    for name, namespace in reader.get_node_names_and_namespaces()
                    if name != reader.get_name() and not name.startswith('_'))
    seen = f'nodes seen: {", ".join(others)}' if others else 'no node is seen at all'
    return (f'depthclip stats: {who} told nothing on /diagnostics in {timeout:g} s '
            f'(ROS_DOMAIN_ID {os.environ.get("ROS_DOMAIN_ID") or "0"}; {seen}). Start it, or '
            'compare the domain, ROS_AUTOMATIC_DISCOVERY_RANGE and the name.')
