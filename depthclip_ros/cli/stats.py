# SPDX-License-Identifier: Apache-2.0
"""What running nodes tell on /diagnostics, as a table in a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from diagnostic_msgs.msg import DiagnosticStatus
    from rclpy.node import Node

LEVELS = ('OK', 'WARN', 'ERROR', 'STALE')
COLORS = ('32', '33', '31', '31')  # of the levels, as terminals number them
HOME_AND_CLEAR = '\x1b[H\x1b[J'
MODEL, FRAMES = 'model', 'frames'

# Columns of a camera's row: heading, keys of its values in diagnostics, and how they are joined.
COLUMNS = (
    ('in Hz', ('rate in [Hz]',)),
    ('out Hz', ('rate out [Hz]',)),
    ('age p50/p99 ms', ('age at publish p50 [ms]', 'age at publish p99 [ms]')),
    ('network p50/p99 ms', ('network p50 [ms]', 'network p99 [ms]')),
    ('received', ('received',)),
    ('published', ('published',)),
    ('dropped', ('dropped',)),
    ('rejected', ('rejected',)),
    ('idle', ('idle',)),
    ('NaN %', ('NaN share [%]',)),
)
CAUSES = ('rejected: ', 'no cloud: ', 'no pictures: ')


@dataclass
class Status:
    """One DiagnosticStatus."""

    level: int
    message: str
    values: dict[str, str]


@dataclass
class NodeStatus:
    """The newest that one node told: of its model, and of each camera by name."""

    model: Status | None = None
    cameras: dict[str, Status] = field(default_factory=dict)


def show_stats(options: argparse.Namespace) -> int:
    """Print what nodes tell, until interrupted.

    Returns:
        Exit code: 0 after --once, 1 if nothing was told for --timeout.

    """
    node, once, timeout = options.node, options.once, options.timeout
    context = rclpy.Context()
    # Python's own handlers: an interrupt ends it at once.
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    reader = rclpy.create_node(f'depthclip_stats_{os.getpid()}', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(reader)
    arrays: list[DiagnosticArray] = []
    reader.create_subscription(DiagnosticArray, '/diagnostics', arrays.append, 10)
    known: dict[str, NodeStatus] = {}
    heard = time.monotonic()
    try:
        while time.monotonic() - heard < timeout:
            executor.spin_once(timeout_sec=0.2)
            news = _take(arrays, node.strip('/'), known)
            if not news:
                continue
            heard = time.monotonic()
            _print(known, news, as_json=options.json, once=once)
            if once:
                return 0
        print(_silence(reader, node, timeout, known), file=sys.stderr)
        return 1
    finally:
        executor.shutdown()
        reader.destroy_node()
        rclpy.shutdown(context=context)


def collect(
    statuses: Iterable[DiagnosticStatus], wanted: str, known: dict[str, NodeStatus],
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
        ours = (part == MODEL and 'configuration sha256' in values) \
            or (kind == FRAMES and 'rate in [Hz]' in values)
        if not ours or wanted not in ('', name):
            continue
        level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
        found = Status(min(level, len(LEVELS) - 1), status.message, values)
        entry = known.setdefault(name, NodeStatus())
        if kind == MODEL:
            # The first of a message: cameras that are gone are not told of any more.
            entry.model, entry.cameras = found, {}
        else:
            entry.cameras[camera] = found
        news.add(name)
    return news


def table(known: dict[str, NodeStatus], *, colored: bool = False) -> list[str]:
    """Lines that show everything about all nodes."""
    lines: list[str] = []
    for name, node in sorted(known.items()):
        if lines:
            lines.append('')
        if node.model is not None:
            lines += _model_lines(name, node.model, colored=colored)
        lines += _camera_lines(node.cameras, colored=colored)
    return lines


def summary(name: str, node: NodeStatus) -> list[str]:
    """One line for each status of a node, for where there is no terminal."""
    lines = []
    if node.model is not None:
        lines.append(f'{name} model {LEVELS[node.model.level]} {node.model.message}')
    for camera, status in sorted(node.cameras.items()):
        cells = ', '.join(f'{heading} {cell}' for (heading, _), cell in zip(
            COLUMNS, _cells(status.values), strict=True))
        lines.append(f'{name} {camera or "camera"} {LEVELS[status.level]} {status.message}; '
                     f'{cells}')
    return lines


def _take(
    arrays: list[DiagnosticArray], wanted: str, known: dict[str, NodeStatus],
) -> set[str]:
    news: set[str] = set()
    while arrays:
        news |= collect(arrays.pop(0).status, wanted, known)
    return news


def _print(
    known: dict[str, NodeStatus], news: set[str], *, as_json: bool, once: bool,
) -> None:
    if as_json:
        print(json.dumps({name: _plain(known[name]) for name in sorted(news)}), flush=True)
    elif once:
        print('\n'.join(table(known, colored=sys.stdout.isatty())), flush=True)
    elif sys.stdout.isatty():
        size = shutil.get_terminal_size()
        lines = table(known, colored=True)[:size.lines - 1]
        print(HOME_AND_CLEAR + '\n'.join(lines), flush=True)
    else:
        print('\n'.join(line for name in sorted(news) for line in summary(name, known[name])),
              flush=True)


def _plain(node: NodeStatus) -> dict[str, Any]:
    def of(status: Status | None) -> dict[str, Any] | None:
        return None if status is None else {
            'level': LEVELS[status.level], 'message': status.message, 'values': status.values}
    return {'model': of(node.model),
            'cameras': {name: of(status) for name, status in node.cameras.items()}}


def _model_lines(name: str, model: Status, *, colored: bool) -> list[str]:
    def value(key: str) -> str:
        return model.values.get(key, '')
    running = ' '.join(filter(None, map(value, ('device', 'precision', 'engine'))))
    weights = f'{value("weights")} ({value("weights sha256")[:12]})' * bool(value('weights'))
    memory = ', '.join(f'{key.removesuffix(" [MiB]")} {float(text):.0f} MiB'
                       for key, text in model.values.items() if key.endswith('[MiB]') and text)
    facts = [running, f'weights {weights}' * bool(weights),
             f'configuration {value("configuration sha256")[:12]}', memory,
             f'reloads {value("reloads")}' * bool(value('reloads'))]
    lines = [f'{name}: {_level(model.level, colored=colored)} {model.message}',
             '  ' + ' | '.join(filter(None, facts))]
    if value('last error'):
        lines.append(f'  last error: {value("last error")}')
    return lines


def _camera_lines(cameras: dict[str, Status], *, colored: bool) -> list[str]:
    if not cameras:
        return []
    rows = [['camera', 'state', *(heading for heading, _ in COLUMNS)]]
    rows += [[name or '-', LEVELS[status.level], *_cells(status.values)]
             for name, status in sorted(cameras.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  ' + _row(rows[0], widths)]
    for row, (_, status) in zip(rows[1:], sorted(cameras.items()), strict=True):
        line = _row(row, widths)
        if colored:
            line = line.replace(f' {row[1]} ', f' {_level(status.level, colored=True)} ', 1)
        lines.append(f'  {line}')
        if status.level:
            lines.append(f'    {status.message}')
        for prefix in CAUSES:
            causes = [f'{key.removeprefix(prefix)} {count}'
                      for key, count in status.values.items() if key.startswith(prefix)]
            if causes:
                lines.append(f'    {prefix}{", ".join(causes)}')
        for key in ('last error', 'age at publish p50 [ms]'):
            text = status.values.get(key, '')
            if text and not _is_number(text):
                lines.append(f'    {key}: {text}')
    return lines


def _cells(values: dict[str, str]) -> list[str]:
    """A camera's values in the order of `COLUMNS`; '-' for what is not known."""
    return [' / '.join(text if _is_number(text) else '-'
                       for text in (values.get(key, '') for key in keys))
            for _, keys in COLUMNS]


def _is_number(text: str) -> bool:
    return bool(text) and text.replace('.', '', 1).removeprefix('-').isdigit()


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    left, right = cells[:2], cells[2:]
    return '  '.join([*(cell.ljust(width) for cell, width in zip(left, widths, strict=False)),
                      *(cell.rjust(width) for cell, width in zip(right, widths[2:], strict=True))])


def _level(level: int, *, colored: bool) -> str:
    return f'\x1b[{COLORS[level]}m{LEVELS[level]}\x1b[0m' if colored else LEVELS[level]


def _silence(
    reader: Node, node: str, timeout: float, known: dict[str, NodeStatus],
) -> str:
    """Say that nothing came, and where to look."""
    domain = os.environ.get('ROS_DOMAIN_ID') or '0'
    who = node or 'a depth_node'
    if known:
        return f'depthclip stats: {who} has told nothing for {timeout:g} s: it has ended.'
    others = sorted(f'{namespace.rstrip("/")}/{name}'
                    for name, namespace in reader.get_node_names_and_namespaces()
                    if name != reader.get_name() and not name.startswith('_'))
    seen = f'nodes seen: {", ".join(others)}' if others else 'no node is seen at all'
    return (f'depthclip stats: {who} told nothing on /diagnostics in {timeout:g} s '
            f'(ROS_DOMAIN_ID {domain}; {seen}). Start it, or compare the domain, '
            'ROS_AUTOMATIC_DISCOVERY_RANGE and the name.')
