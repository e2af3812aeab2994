# SPDX-License-Identifier: Apache-2.0
"""What the arguments of depth.launch.py mean, as plain data. Needs neither ROS nor launch.

`ros2 launch` runs in the system's Python, which may lack everything that this package gets from
pip: nothing here imports more than the standard library and yaml.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from .core.config import DepthConfig, describe
from .core.errors import ConfigError, quoted
from .node.config import NodeConfig, read_config, read_values
from .resources import config_path, share_dir
from .sources.bag import (
    BagError,
    BagTopic,
    bag_topics,
    camera_info_beside,
    camera_topics,
    checked_path,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Mapping, Sequence

NODE = 'depth_node'
# Every setting is a launch argument of its name.
SETTINGS = {setting.name: setting for settings in (DepthConfig, NodeConfig)
            for setting in dataclasses.fields(settings)}
# The other arguments, and those settings that mean more here, with what --show-args says.
ARGUMENTS = {
    'params_file': (
        'ROS parameter file with all settings of the node; empty: config/depth.yaml of this '
        'package, with weights:=demo its config/demo.yaml'),
    'overlay': (
        'Parameter files over params_file, separated by commas: the last one that has a setting '
        'counts, and an argument of its name more than all files'),
    'namespace': 'Namespace of the node and its topics, e.g. front',
    'cameras': (
        'Names of several cameras, separated by commas, each the namespace of its topics, e.g. '
        'front,rear; empty: as in params_file'),
    'image': (
        'Image topic to use instead of "image"; with /compressed at its end, the node reads '
        'compressed images. With cameras: one for each, separated by commas'),
    'camera_info': (
        'camera_info topic to use instead of "camera_info"; empty: the one beside image, if that'
        ' is given. With cameras: one for each, separated by commas'),
    'weights': (
        'CLIP weights: an official name such as RN50, a file, demo or untrained; empty: as in '
        'params_file'),
    'device': 'auto, cpu, cuda or cuda:N; empty: as in params_file',
    'bag': (
        'rosbag2 bag to replay with simulated time, once the node is active; everything ends '
        'with it. Its camera is found by itself (those of cameras: under their names), or given '
        'by image and camera_info'),
    'player': (
        "What plays the bag: rosbag2 (ros2 bag play), or this package's bag_player; empty: "
        'bag_player, or rosbag2 where the Python package rosbags is missing'),
    'rviz': 'Show image, depth, words and cloud in RViz, of each camera',
    'fixed_frame': (
        "RViz's fixed frame; empty: for one camera that of rviz/depth.rviz, for several "
        'base_link'),
    'use_sim_time': 'Take the time from /clock; empty: true with a bag, else as in params_file',
    'log_level': "Least severe messages to show; empty: ROS's default",
    'respawn': (
        'Start the node again after it ended; a replay in which it ended has failed all the same'),
    'respawn_delay': 'Seconds after which it is started again',
    'required': (
        'Stop everything that was launched, also by other launch files, when the node ends; '
        'empty: true with a bag'),
}
DEFAULTS = {'rviz': 'false', 'respawn': 'false', 'respawn_delay': '5.0'}  # others: ''
CHOICES = {'player': ['', 'rosbag2', 'bag_player'],
           'log_level': ['', 'debug', 'info', 'warn', 'error', 'fatal']}
TRUE, FALSE = ('true', '1', 'yes', 'y', 'on'), ('false', '0', 'no', 'n', 'off')
# What ROS takes as a topic; else rcl says 'error not set'.
TOPIC = re.compile(r'(~/|/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*', re.ASCII)


class Camera(NamedTuple):
    """A camera of the node, and the topics it uses instead of its own ('': its own)."""

    name: str
    image: str
    camera_info: str

    def remappings(self, prefix: str) -> list[tuple[str, str]]:
        """Of the topics that begin so."""
        result = []
        if self.image:
            base = self.image.removesuffix('/compressed')
            result += [(f'{prefix}image', base),
                       (f'{prefix}image/compressed', f'{base}/compressed')]
        if self.camera_info:
            result.append((f'{prefix}camera_info', self.camera_info))
        return result


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to start.

    Attributes:
        params_files: of the node; each has been read, and together they fit.
        parameters: of the node, over those of the files.
        cameras: at least one; where the arguments name none, one without a name.
        names: of the node's cameras, which may be the files' own.
        respawn: whether the node is started again when it ends.
        respawn_delay: seconds from its end to its start.
        required: whether everything ends with the node.
        notes: what to say at the start.

    """

    params_files: list[str]
    parameters: dict[str, Any]
    cameras: list[Camera]
    names: list[str]
    respawn: bool
    respawn_delay: float
    required: bool
    notes: list[str]

    def remappings(self) -> list[tuple[str, str]]:
        """Of the node."""
        return [pair for camera in self.cameras
                for pair in camera.remappings(f'{camera.name}/' if camera.name else '')]

    def topics(self) -> list[str]:
        """Those that the cameras use instead of their own."""
        return [topic for camera in self.cameras for topic in camera[1:] if topic]


def plan(value: Mapping[str, str], namespace: str, bag_lister: Sequence[str]) -> Plan:
    """Work out what the launch arguments mean.

    Args:
        value: of every argument of depth.launch.py, by its name.
        namespace: of the node, fully resolved.
        bag_lister: command `bag_player`, for bags that only its Python can read.

    Raises:
        DepthClipError: arguments that do not fit one another, the bag, or the parameter file.

    """
    # The demo weights know other words and another camera than OpenAI's.
    usual = config_path('demo' if value['weights'] == 'demo' else 'depth')
    files = [str(Path(path).expanduser())
             for path in [value['params_file'] or str(usual), *_split(value['overlay'])]]
    parameters, names = _parameters(value, files, f'{namespace.rstrip("/")}/{NODE}')
    respawn = boolean('respawn', value['respawn'])
    required = boolean('required', value['required']) if value['required'] \
        else bool(value['bag']) and not respawn
    if respawn and required:
        raise ConfigError('respawn:=true and required:=true: a node that is started again does '
                          'not end anything; give one of them.')
    cameras, notes = _cameras(value, bag_lister)
    if value['bag']:
        parameters['use_sim_time'] = True
    if value['use_sim_time']:
        parameters['use_sim_time'] = boolean('use_sim_time', value['use_sim_time'])
    compressed = {camera.image.endswith('/compressed') for camera in cameras}
    if len(compressed) > 1:
        raise ConfigError(
            f'image:={",".join(camera.image for camera in cameras)}: some are compressed and some '
            'are not. The node reads one kind: give raw topics only, or compressed ones only.')
    if compressed == {True} and not value['image_transport']:
        parameters['image_transport'] = 'compressed'
    return Plan(files, parameters, cameras, names, respawn, _seconds(value), required, notes)


def boolean(argument: str, text: str) -> bool:
    """Read a boolean as ROS and launch write them: True, false, 1, no, ...

    Raises:
        ConfigError: it is none.

    """
    for value, words in ((True, TRUE), (False, FALSE)):
        if text.lower() in words:
            return value
    raise ConfigError(f'{argument}:={text}: {quoted(text)} is not true or false.')


def strangers(
    given: Collection[str], argv: Sequence[str], known: Collection[str], file: str,
) -> list[str]:
    """What to say of names that are no arguments of a launch file.

    Args:
        given: names of all launch configurations, without the file's own defaults.
        argv: the command line of the launch.
        known: the file's arguments.
        file: its name.

    Raises:
        ConfigError: one that was typed looks like a misspelt argument. A launch file that
            includes ours may have arguments of its own: then there is only something to say.

    """
    typed = [text.partition(':=')[0] for text in argv]
    is_included = not set(given) <= set(typed)
    notes = []
    for name in sorted(set(given) - set(known)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        said = f'{name}:= is no argument of {file}'
        if near and not is_included:
            raise ConfigError(f"{said}; did you mean '{near[0]}'?")
        if near and name not in typed:
            notes.append(f"{said} and has no effect; did you mean '{near[0]}'?")
        elif not is_included:
            notes.append(f'{said} and has no effect (--show-args lists them)')
    return notes


def full_namespace(around: str, namespace: str) -> str:
    """Absolute namespace of the node, with '/' at its beginning only."""
    joined = namespace if namespace.startswith('/') else f'{around}/{namespace}'
    return '/' + joined.strip('/')


def report_failure(name: str, code: int, loop: asyncio.AbstractEventLoop) -> None:
    """Let `ros2 launch` return 1 at its end; an exception would end everything now.

    Args:
        name: of the process that has ended.
        code: its exit code; 0 is no failure.
        loop: of the launch.

    """
    if code:
        loop.call_exception_handler({'message': f'{name} has died (exit code {code})'})


def description_of(setting: dataclasses.Field[Any]) -> str:
    """What --show-args says of the argument that is named like a setting."""
    return f'{describe(setting)}; empty: as in params_file'


def camera_of_bag(camera: Camera, topics: list[BagTopic]) -> tuple[Camera, list[str]]:
    """Fill in the topics of a camera from a bag; also gives what to say about it.

    Raises:
        BagError: the bag has no such camera, or several.

    """
    if camera.name and not camera.image:
        topics = [topic for topic in topics if topic.name.startswith(f'/{camera.name}/')]
        if not topics:
            raise BagError(
                f'cameras:={camera.name}: the bag has no topic under /{camera.name}/; say with '
                'image:=TOPIC,TOPIC which topics are the cameras.'
            )
    found = camera_topics(topics, camera.image)
    image = found.image + ('/compressed' if found.compressed else '')
    notes = [f'bag: images from {image}']
    if camera.camera_info:
        return camera._replace(image=image), notes
    if found.camera_info is None:
        notes.append(
            f'bag: it has no {camera_info_beside(found.image)}, so there will be no cloud; if '
            'the camera_info is on another topic, say so with camera_info:=TOPIC'
        )
    else:
        notes.append(f'bag: camera_info from {found.camera_info}')
    return camera._replace(image=image, camera_info=found.camera_info or ''), notes


def rviz_file(names: Sequence[str], folder: str | Path) -> Path:
    """RViz's configuration for the cameras of these names.

    RViz cannot repeat displays, so that for several cameras a file is made of rviz/depth.rviz: a
    group of displays for each, of which the first is switched on.

    Args:
        names: of the cameras.
        folder: where to write it: that of the launch's logs.

    """
    one = share_dir() / 'rviz' / 'depth.rviz'
    if len(names) == 1:
        return one
    config = yaml.safe_load(one.read_text(encoding='utf-8'))
    manager = config['Visualization Manager']
    displays = manager['Displays']
    manager['Displays'] = [display for display in displays if 'Topic' not in display]
    for name in names:
        group = copy.deepcopy([display for display in displays if 'Topic' in display])
        for display in group:
            display['Name'] += f' {name}'
            display['Topic']['Value'] = f'{name}/{display["Topic"]["Value"]}'
        manager['Displays'].append({'Class': 'rviz_common/Group', 'Name': name,
                                    'Enabled': name == names[0], 'Displays': group})
    # Cameras look into several directions: only the robot's own frame (REP-105) is all of theirs.
    manager['Global Options']['Fixed Frame'] = 'base_link'
    manager['Views']['Current'].update(Distance=6, Pitch=0.6, Yaw=3.1416)
    manager['Views']['Current']['Focal Point'] = {'X': 0, 'Y': 0, 'Z': 0.5}
    path = Path(folder, 'cameras.rviz')
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    return path


def _parameters(
    value: Mapping[str, str], files: Sequence[str], node: str,
) -> tuple[dict[str, Any], list[str]]:
    """Settings of overlays and arguments, which fit the files; and the cameras' names.

    They are given to the node one by one, although it reads the files, too: to ROS, a section
    with the node's name in params_file outweighs a `/**:` in an overlay.
    """
    depth, rest = read_config(files[0], node)
    changes: dict[str, Any] = {}
    for path in files[1:]:
        changes.update(read_values(path, node))
    changes.update({name: _from_text(setting, value[name])
                    for name, setting in SETTINGS.items() if value[name]})
    try:
        depth = depth.replace(**{n: changes[n] for n in depth.names() if n in changes})
        rest = rest.replace(**{n: changes[n] for n in rest.names() if n in changes})
    except ConfigError as error:
        raise ConfigError(f'{", ".join(files)} and the arguments of the launch: '
                          f'{error}') from error
    all_of_them = {**depth.to_dict(), **rest.to_dict()}
    return {name: all_of_them[name] for name in SETTINGS if name in changes}, list(rest.cameras)


def _from_text(setting: dataclasses.Field[Any], text: str) -> Any:
    """The value that a launch argument means; its type is checked by the settings."""
    kind = str(setting.type)
    if kind == 'str':
        return text
    if kind == 'bool':
        return boolean(setting.name, text)
    try:
        if not kind.startswith('tuple') or text.startswith('['):
            return yaml.safe_load(text)
        return [part if 'str' in kind else yaml.safe_load(part) for part in _split(text)]
    except yaml.YAMLError as error:
        raise ConfigError(f'{setting.name}:={text}: {quoted(text)} is no value: write a list as '
                          "'[a, b]' or a,b") from error


def _seconds(value: Mapping[str, str]) -> float:
    text = value['respawn_delay']
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f'respawn_delay:={text}: {quoted(text)} is no number of seconds, 0 or '
                          'more.')
    return seconds


def _cameras(
    value: Mapping[str, str], bag_lister: Sequence[str],
) -> tuple[list[Camera], list[str]]:
    """The cameras with the topics of the arguments or of the bag, and what to say about them."""
    names = _split(value['cameras']) or ['']
    images, infos = (_for_each(names, name, value[name]) for name in ('image', 'camera_info'))
    topics = _topics_of(value['bag'], bag_lister) if value['bag'] else None
    cameras, notes = [], []
    for camera in map(Camera, names, images, infos):
        found, said = camera, list[str]()
        if topics is not None:
            found, said = camera_of_bag(camera, topics)
        elif camera.image and not camera.camera_info:
            found = camera._replace(camera_info=camera_info_beside(camera.image))
            said = [f'camera_info from {found.camera_info}']
        cameras.append(found)
        notes += said
    return cameras, notes


def _topics_of(bag: str, bag_lister: Sequence[str]) -> list[BagTopic]:
    """Topics of a bag, asked of the player's Python where this one cannot read it."""
    if checked_path(bag).is_dir():
        return bag_topics(bag)
    listed = subprocess.run([*bag_lister, bag, '--list'], capture_output=True, text=True,
                            check=False)
    if listed.returncode:
        said = listed.stderr.strip().splitlines() or [f'exit code {listed.returncode}']
        raise BagError(said[-1].removeprefix('bag_player: '))
    return [BagTopic(*topic) for topic in json.loads(listed.stdout)]


def _for_each(names: list[str], argument: str, text: str) -> list[str]:
    """One topic for every camera; all empty if the argument is.

    Raises:
        ConfigError: too few, too many, or not a topic's name.

    """
    if not text:
        return [''] * len(names)
    topics = _split(text)
    for topic in topics:
        if not TOPIC.fullmatch(topic):
            raise ConfigError(
                f"{argument}:={text}: {quoted(topic)} is no name of a topic. It has letters, "
                "digits and '_', with single '/' between them and none at the end, as "
                '/camera/image_raw.')
    if len(topics) != len(names):
        raise ConfigError(
            f'{argument}:={text} and cameras:={",".join(names)} are {len(topics)} topics for '
            f'{len(names)} cameras: give one for each, in the same order, separated by commas.'
        )
    return topics


def _split(text: str) -> list[str]:
    """Parts between commas; none of ''."""
    return [part.strip() for part in text.split(',')] if text else []
