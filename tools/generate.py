#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What documents say of parameters, topics, arguments and commands, made from the code.

    python tools/generate.py            write docs/reference/ and the marked tables
    python tools/generate.py --check    write nothing; 1 if something is not up to date

A marked table stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`.
"""

# argparse tells what it knows in private attributes only.
# ruff: noqa: SLF001

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from depthclip_ros.cli import main as cli  # noqa: E402
from depthclip_ros.core.config import DepthConfig, describe  # noqa: E402
from depthclip_ros.launching import ARGUMENTS  # noqa: E402
from depthclip_ros.node.config import NodeConfig  # noqa: E402
from depthclip_ros.node.health import TABLES  # noqa: E402
from depthclip_ros.sim.world import SimConfig  # noqa: E402
from depthclip_ros.sources import bag_player, image_source  # noqa: E402
from offline_eval import cli as evaluation  # noqa: E402

MARKED = re.compile(r'(<!-- generated: (\S+) -->\n).*?(<!-- end: \2 -->)', re.DOTALL)
DOCUMENTS = ('docs/simulation.md',)


def main() -> int:
    """Write or compare everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing')
    check = parser.parse_args().check
    stale = [path for path, text in wanted().items()
             if not path.exists() or path.read_text(encoding='utf-8') != text]
    for path in stale:
        name = path.relative_to(ROOT)
        print(f'{name} is not up to date: run python tools/generate.py' if check else name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted()[path], encoding='utf-8')
    return 1 if check and stale else 0


def wanted() -> dict[Path, str]:
    """What each file that is generated, or has a marked table, should hold."""
    topic_table = table(['direction', 'topic', 'type', 'content'], [list(row) for row in topics()])
    launch_table = table(['argument', 'meaning'], [
        [f'`{name}`', meaning] for name, meaning in ARGUMENTS.items()])
    tables = {
        'sim_camera': settings_table(SimConfig())}
    files = {ROOT / 'docs/reference' / name: text for name, text in {
        'parameters.md': parameters_page(), 'diagnostics.md': diagnostics_page(),
        'topics.md': f'# Topics of depth_node\n\n{topic_table}',
        'launch.md': f'# Launch arguments\n\n{launch_table}',
        'commands.md': commands_page()}.items()}
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding='utf-8')
        files[ROOT / name] = MARKED.sub(
            lambda match: f'{match[1]}{tables[match[2]]}{match[3]}', text)
    return files


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ['---'] * len(head),
             *([' '.join(cell.split()).replace('|', '/') for cell in row] for row in rows)]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


# Settings ----------------------------------------------------------------------------------------


def settings_table(*every: Any) -> str:
    """Name, default and meaning of settings."""
    return table(['parameter', 'default', 'meaning'], [
        [f'`{setting.name}`', shown(settings, setting), describe(setting)]
        for settings in every for setting in dataclasses.fields(settings)])


def shown(settings: Any, setting: dataclasses.Field[Any]) -> str:
    """The default as a parameter file has it."""
    default = yaml.safe_dump(settings.to_dict()[setting.name], default_flow_style=True,
                             allow_unicode=True, width=1000)
    return f'`{default.removesuffix(chr(10)).removesuffix("...").strip()}`'


def parameters_page() -> str:
    """The parameters with types, ranges, and when a change counts."""
    parts = [('# Parameters\n\n"Counts from": a change while the node runs counts from the next '
              'image, or needs another configure.\n')]
    for title, settings in (('depth_node: what is computed', DepthConfig()),
                            ('depth_node: how it is fed, and what it sends', NodeConfig()),
                            ('sim_camera', SimConfig())):
        rows = []
        for setting in dataclasses.fields(settings):
            about = setting.metadata
            allowed = str(setting.type).replace('tuple[', 'list of ').replace(', ...]', '')
            if about['choices']:
                allowed = ', '.join(f'`{choice}`' for choice in about['choices'])
            if about['minimum'] is not None:
                allowed += f', {about["minimum"]:g} to {about["maximum"]:g} {about["unit"]}'
            rows.append([f'`{setting.name}`', shown(settings, setting), allowed,
                         about['description'], 'configure' if about['reload'] else 'next image'])
        parts.append(f'## {title}\n\n' + table(
            ['name', 'default', 'type, range, unit', 'meaning', 'counts from'], rows))
    return '\n'.join(parts)


# Launch files, topics, diagnostics ---------------------------------------------------------------


def topics() -> Iterator[tuple[str, str, str, str]]:
    """Direction, name, type and content of each topic, from the node's docstring."""
    source = (ROOT / 'depthclip_ros/node/depth_node.py').read_text(encoding='utf-8')
    text = (ast.get_docstring(ast.parse(source)) or '').partition('\nParameters:')[0]
    direction = 'in'
    for paragraph in re.split(r'\n(?=\S|    \S)', text):
        direction = 'out' if paragraph.startswith('Publishers') else direction
        entry = re.fullmatch(r' {4}(\S+) \(\w+/(\w+)\):\s*(.*)', paragraph.rstrip(), re.DOTALL)
        if entry:
            yield direction, f'`{entry[1]}`', entry[2], entry[3]


def diagnostics_page() -> str:
    """Every key of /diagnostics, with its unit and meaning."""
    parts = [('# Diagnostics\n\nOn `/diagnostics` at 1 Hz in every state. `…` stands for a cause, '
              'a stage or a name. Counts begin when the node is configured. Empty: not known yet. '
              '`depthclip stats` shows them live.\n')]
    parts += [f'## {title}\n\n' + table(['key', 'unit', 'meaning'], [
        [f'`{key.name}`', key.unit, key.meaning] for key in keys])
        for title, keys in TABLES.items()]
    return '\n'.join(parts)


# Commands ----------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its options, as `--help` tells them."""
    parser = cli._parser()
    commands = next(action for action in parser._actions
                    if isinstance(action, argparse._SubParsersAction))
    parsers = {f'depthclip {name}': sub for name, sub in commands.choices.items()}
    parsers |= {'image_source': image_source.parser(), 'bag_player': bag_player.parser(),
                'offline_eval': evaluation._parser()}
    parts = [('# Commands\n\n`depth_node` and `sim_camera` take [parameters](parameters.md) and '
              'ROS arguments only.\n')]
    for name, sub in parsers.items():
        about = ' '.join((sub.description or '').split())
        parts.append(f'## {name}\n\n{about}\n\n' + table(['argument', 'meaning'], [
            [f'`{", ".join(action.option_strings) or action.dest}`', meaning(sub, action)]
            for action in sub._actions if action.help != argparse.SUPPRESS]))
    return '\n'.join(parts)


def meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of an option, its choices and its default in it."""
    text = parser._get_formatter()._expand_help(action) if action.help else ''
    if action.choices and not isinstance(action, argparse._SubParsersAction):
        text += f' ({", ".join(map(str, action.choices))})'
    return text


if __name__ == '__main__':
    sys.exit(main())
