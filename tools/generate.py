#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What documents say of parameters, topics, arguments and commands, made from the code.

    python tools/generate.py            write docs/reference/
    python tools/generate.py --check    write nothing; 1 if something is not up to date

CONTRIBUTING.md says when.
"""

# argparse tells what it knows in private attributes only.
# ruff: noqa: SLF001

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from depthclip_ros import core, sim  # noqa: E402
from depthclip_ros.cli import main as cli  # noqa: E402
from depthclip_ros.core import readout  # noqa: E402
from depthclip_ros.core.camera import CameraModel  # noqa: E402
from depthclip_ros.core.config import DepthConfig  # noqa: E402
from depthclip_ros.launch_support.launching import MEANINGS, LaunchConfig  # noqa: E402
from depthclip_ros.messages.anchors import SENSORS  # noqa: E402
from depthclip_ros.messages.message_types import INPUTS  # noqa: E402
from depthclip_ros.messages.node_config import NodeConfig  # noqa: E402
from depthclip_ros.messages.outputs import OUTPUTS  # noqa: E402
from depthclip_ros.node import health  # noqa: E402
from depthclip_ros.sim.views import SimConfig  # noqa: E402
from depthclip_ros.sources import bag_player, image_source  # noqa: E402
from offline_eval import cli as evaluation  # noqa: E402


def main() -> int:
    """Write or compare everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing')
    check = parser.parse_args().check
    stale = {path: text for path, text in expected_files().items()
             if not path.exists() or path.read_text(encoding='utf-8') != text}
    for path, text in stale.items():
        name = path.relative_to(ROOT)
        print(f'{name} is not up to date: run python tools/generate.py' if check else name)
        if not check:
            path.write_text(text, encoding='utf-8')
    return int(check and bool(stale))


def expected_files() -> dict[Path, str]:
    """What each file should hold."""
    return {ROOT / 'docs/reference' / f'{name}.md': text for name, text in {
        'parameters': parameters_page(),
        'topics': '# Topics of depth_node\n\n' + table(
            ['direction', 'topic', 'type', 'content'], [list(row) for row in topics()]),
        'launch': '# Launch arguments\n\n' + table(
            ['argument', 'meaning'], [
                *([f'`{name}`', MEANINGS[name]] for name in LaunchConfig.names()),
                ['any [parameter](parameters.md)', 'by its name; empty: as in params_file']]),
        'diagnostics': diagnostics_page(),
        'commands': commands_page(),
        'api': python_page()}.items()}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ['---'] * len(head),
             *([' '.join(cell.split()).replace('|', '/') for cell in row] for row in rows)]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


# Settings ----------------------------------------------------------------------------------------


def default_text(settings: Any, setting: dataclasses.Field[Any]) -> str:
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
                allowed = ', '.join(f'`{choice}`' for choice in about['choices'] if choice)
            if about['minimum'] is not None:
                allowed += f', {about["minimum"]:g} to {about["maximum"]:g} {about["unit"]}'
            rows.append([f'`{setting.name}`', default_text(settings, setting), allowed,
                         about['description'], 'configure' if about['reload'] else 'next image'])
        parts.append(f'## {title}\n\n' + table(
            ['name', 'default', 'type, range, unit', 'meaning', 'counts from'], rows))
    return '\n'.join(parts)


# Launch files, topics, diagnostics ---------------------------------------------------------------


def topics() -> Iterator[tuple[str, str, str, str]]:
    """Direction, name, type and content of each topic, from the node's tables."""
    of_anchors = {topic: (kind, f'with `anchor: {name}`, what fixes the scale of depth')
                  for name, (kind, topic) in SENSORS.items()}
    for topic, (kind, content) in (INPUTS | of_anchors).items():
        yield 'in', f'`{topic}`', kind.rpartition('/')[2], content
    for topic, (kind, function) in OUTPUTS.items():
        yield 'out', f'`{topic}`', kind.rpartition('/')[2], inspect.getdoc(function) or ''
    yield 'out', '`/diagnostics`', 'DiagnosticArray', 'at 1 Hz, in every lifecycle state'


def diagnostics_page() -> str:
    """Every key of /diagnostics, with its meaning."""
    parts = [('# Diagnostics\n\nOn `/diagnostics` at 1 Hz in every state. `…` stands for a cause, '
              'a stage or a name. Counts begin when the node is configured. Empty: not known yet. '
              '`depthclip stats` shows them live.\n')]
    for title, functions in (
            ('Status "…: frames", one for each camera', [health.frame_values]),
            ('With an anchor', [health.anchor_values]), ('With scenes', [health.scene_values]),
            ('Status "…: model"', [health.state_values, health.model_values])):
        parts.append(f'## {title}\n\n' + table(['key', 'meaning'], [
            [f'`{key}`', text] for function in functions for key, text in meanings(function)]))
    return '\n'.join(parts)


def meanings(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Keys and their meanings, of the literal that a function returns with their values."""
    tree = ast.parse(inspect.getsource(function))
    literal = next(node.value for node in ast.walk(tree) if isinstance(node, ast.Return))
    assert isinstance(literal, ast.Dict)
    for key, pair in zip(literal.keys, literal.values, strict=True):
        assert key is not None
        assert isinstance(pair, ast.Tuple)
        yield ast.literal_eval(key), ast.literal_eval(pair.elts[1])


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


# Python ------------------------------------------------------------------------------------------


def python_page() -> str:
    """Signatures and docstrings of what other programs call."""
    estimator = core.DepthEstimator
    parts = ['# Python\n\nFrom RGB to depth. None of this needs ROS.\n']
    for title, things in (
            ('Depth', [estimator, estimator.predict, core.CameraImage, estimator.reconfigure,
                       estimator.quantize, core.DepthPrediction, core.DepthConfig,
                       core.DepthConfig.from_yaml, CameraModel, CameraModel.pinhole]),
            ('Functions of the projection', [
                thing for name, thing in vars(readout).items() if name[0] != '_'
                and getattr(thing, '__module__', '') == readout.__name__]),
            ('Rendered rooms', [sim.Scene, sim.SimCamera, sim.render, sim.trajectory]),
            ('Errors', [getattr(core, name) for name in core.__all__ if name.endswith('Error')])):
        parts += [f'## {title}\n', *map(_entry, things)]
    return '\n'.join(parts)


def _entry(thing: Any) -> str:
    thing = inspect.unwrap(thing)
    source = Path(inspect.getfile(thing)).relative_to(ROOT)
    text = f'### {thing.__qualname__}\n\nIn [{source}](../../{source}).\n\n'
    if inspect.isfunction(thing):
        node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
        assert isinstance(node, ast.FunctionDef)
        returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
        text += f'```python\n{node.name}({ast.unparse(node.args)}){returns}\n```\n\n'
    about = inspect.cleandoc(thing.__doc__ or '')
    # Sections of the docstring, such as Args, become lists.
    about = re.sub(r'^(\w+):\n((?:(?: +.*)?(?:\n|$))+)', _section, about, flags=re.MULTILINE)
    return f'{text}{about.strip()}\n'


def _section(match: re.Match[str]) -> str:
    paragraphs = re.split(r'\n(?=\S)', textwrap.dedent(match[2]).strip())
    items = ''.join(f'- {" ".join(text.split())}\n' for text in paragraphs)
    return f'**{match[1]}**\n\n{items}\n'


if __name__ == '__main__':
    sys.exit(main())
