# SPDX-License-Identifier: Apache-2.0
"""What the arguments of depth.launch.py mean, as plain data. Needs neither ROS nor launch.

`ros2 launch` runs in the system's Python, which may lack everything that this package gets from
pip: nothing here imports more than the standard library and yaml.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .core.config import DepthConfig, describe
from .core.errors import ConfigError, nearest, quoted
from .core.parameter_file import read_value
from .messages.config import NodeConfig, read_config, read_values
from .resources import config_path, share_dir
from .sources.bag import (
    CameraTopics,
    bag_topics,
    camera_info_beside,
    cameras_of,
    one_for_each,
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
    'bag': (
        'rosbag2 bag to replay with simulated time, once the node is active; everything ends '
        'with it. Its camera is found by itself (those of cameras: under their names), or given '
        'by image and camera_info'),
    'rviz': 'Show image, depth, words and cloud in RViz, of each camera',
    'fixed_frame': (
        "RViz's fixed frame; empty: for one camera that of rviz/depth.rviz, for several "
        'base_link'),
    'use_sim_time': 'Take the time from /clock; empty: true with a bag, else as in params_file',
    'log_level': "Least severe messages of the node to show, such as debug; empty: ROS's default",
    'respawn': (
        'Start the node again after it ended; a replay in which it ended has failed all the same'),
    'respawn_delay': 'Seconds after which it is started again',
    'required': (
        'Stop everything that was launched, also by other launch files, when the node ends; '
        'empty: true with a bag'),
}
DEFAULTS = {'rviz': 'false', 'respawn': 'false', 'respawn_delay': '5.0'}  # others: ''
MEANINGS = {**ARGUMENTS, **{
    name: f'{describe(setting)}; empty: as in params_file'
    for name, setting in SETTINGS.items() if name not in ARGUMENTS}}
BOOLEANS = {**dict.fromkeys(('true', '1', 'yes', 'y', 'on'), True),
            **dict.fromkeys(('false', '0', 'no', 'n', 'off'), False)}
# What ROS takes as a topic; else rcl says 'error not set'.
TOPIC = re.compile(r'(~/|/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to start.

    Attributes:
        params_files: of the node; each has been read, and together they fit.
        parameters: of the node, over those of the files.
        cameras: topics that they use instead of their own ('': their own); where the arguments
            name none, one without a name.
        names: of the node's cameras, which may be the files' own.
        respawn: whether the node is started again when it ends.
        respawn_delay: seconds from its end to its start.
        required: whether everything ends with the node.
        notes: what to say at the start.

    """

    params_files: list[str]
    parameters: dict[str, Any]
    cameras: list[CameraTopics]
    names: list[str]
    respawn: bool
    respawn_delay: float
    required: bool
    notes: list[str]

    def remappings(self) -> list[tuple[str, str]]:
        """Of the node's topics."""
        return [
            (f'{camera.name}/{topic}' if camera.name else topic, other)
            for camera in self.cameras for topic, other in (
                ('image', camera.image),
                ('image/compressed', camera.topic if camera.compressed else
                 camera.image and f'{camera.image}/compressed'),
                ('camera_info', camera.camera_info)) if other]

    def topics(self) -> list[str]:
        """Those that the cameras use instead of their own."""
        return [topic for camera in self.cameras for topic in (camera.topic, camera.camera_info)
                if topic]


def plan(value: Mapping[str, str], namespace: str) -> Plan:
    """Work out what the launch arguments mean.

    Args:
        value: of every argument of depth.launch.py, by its name.
        namespace: of the node, fully resolved.

    Raises:
        DepthClipError: arguments that do not fit one another, the bag, or the parameter file.

    """
    # The demo weights know other words and another camera than OpenAI's.
    usual = config_path('demo' if value['weights'] == 'demo' else 'depth')
    files = [str(Path(path).expanduser())
             for path in [value['params_file'] or str(usual), *_split(value['overlay'])]]
    parameters, names = _parameters(value, files, f'{namespace.rstrip("/")}/{NODE}')
    cameras, notes = _cameras(value)
    if len({camera.compressed for camera in cameras}) > 1:
        raise ConfigError(
            f'image:={",".join(camera.topic for camera in cameras)}: some are compressed and some '
            'are not. The node reads one kind: give raw topics only, or compressed ones only.')
    if cameras[0].compressed and not value['image_transport']:
        parameters['image_transport'] = 'compressed'
    if value['use_sim_time'] or value['bag']:
        parameters['use_sim_time'] = boolean('use_sim_time', value['use_sim_time'] or 'true')
    respawn, text = boolean('respawn', value['respawn']), value['respawn_delay']
    required = boolean('required', value['required']) if value['required'] \
        else bool(value['bag']) and not respawn
    if respawn and required:
        raise ConfigError('respawn:=true and required:=true: a node that is started again does '
                          'not end anything; give one of them.')
    if not re.fullmatch(r'\d+\.?\d*', text):
        raise ConfigError(f'respawn_delay:={text}: {quoted(text)} is no number of seconds, 0 or '
                          'more.')
    return Plan(files, parameters, cameras, names, respawn, float(text), required, notes)


def boolean(argument: str, text: str) -> bool:
    """Read a boolean as ROS and launch write them: True, false, 1, no, ...

    Raises:
        ConfigError: it is none.

    """
    if text.lower() not in BOOLEANS:
        raise ConfigError(f'{argument}:={text}: {quoted(text)} is not true or false.')
    return BOOLEANS[text.lower()]


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
    is_included, notes = not set(given) <= set(typed), []
    for name in sorted(set(given) - set(known)):
        near = nearest(name, known)
        said = f'{name}:= is no argument of {file}' + (
            f"; did you mean '{near}'?" if near else ' and has no effect')
        if near and not is_included:
            raise ConfigError(said)
        if not is_included or (near and name not in typed):
            notes.append(said)
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


def rviz_file(names: Sequence[str], folder: str | Path) -> Path:
    """RViz's configuration for the cameras of these names.

    RViz cannot repeat displays, so that for named cameras a file is made of rviz/depth.rviz: a
    group of displays for each, of which the first is switched on.

    Args:
        names: of the cameras; one without a name has that file itself.
        folder: where to write it: that of the launch's logs.

    """
    one = share_dir() / 'rviz' / 'depth.rviz'
    if list(names) == ['']:
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
    if len(names) > 1:  # which look into several directions: the robot's frame is all of theirs
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
    both = read_config(files[0], node)
    changes: dict[str, Any] = {}
    for path in files[1:]:
        changes.update(read_values(path, node))
    for name, setting in SETTINGS.items():
        if value[name]:
            changes[name] = _from_text(setting, value[name])
    effective: dict[str, Any] = {}
    try:
        for config in both:
            effective |= config.replace(
                **{name: changes[name] for name in config.names() if name in changes}).to_dict()
    except ConfigError as error:
        raise ConfigError(f'{", ".join(files)} and the arguments of the launch: '
                          f'{error}') from error
    return {name: effective[name] for name in SETTINGS if name in changes}, effective['cameras']


def _from_text(setting: dataclasses.Field[Any], text: str) -> Any:
    """The value that a launch argument means; its type is checked by the settings."""
    kind = str(setting.type)
    if kind == 'str':
        return text
    if kind == 'bool':
        return boolean(setting.name, text)
    try:
        if kind.startswith('tuple') and not text.startswith('['):
            return [part if 'str' in kind else read_value(part) for part in _split(text)]
        return read_value(text)
    except ConfigError as error:
        raise ConfigError(f"{setting.name}:={text}: {error} Write a list as '[a, b]' or "
                          'a,b') from error


def _cameras(value: Mapping[str, str]) -> tuple[list[CameraTopics], list[str]]:
    """The cameras with the topics of the arguments or of the bag, and what to say about them."""
    names = _split(value['cameras']) or ['']
    images, infos = (_topics(argument, value[argument]) for argument in ('image', 'camera_info'))
    if value['bag']:
        cameras = cameras_of(bag_topics(value['bag']), names, images, infos,
                             choice='image:=TOPIC, or several with cameras:=NAME,NAME')
        notes = [note for camera in cameras for note in (
            f'bag: images from {camera.topic}',
            f'bag: camera_info from {camera.camera_info}' if camera.camera_info else
            f'bag: it has no {camera_info_beside(camera.image)}, so there will be no cloud; if '
            'the camera_info is on another topic, say so with camera_info:=TOPIC')]
        return cameras, notes
    cameras = [
        CameraTopics(image, info or (camera_info_beside(image) if image else ''),
                     image.endswith('/compressed'), name)
        for name, image, info in zip(names, one_for_each(names, images),
                                     one_for_each(names, infos), strict=True)]
    return cameras, [f'camera_info from {camera.camera_info}' for camera in cameras
                     if camera.camera_info and not infos]


def _topics(argument: str, text: str) -> list[str]:
    """Names of topics with commas between them.

    Raises:
        ConfigError: one that ROS does not take.

    """
    for topic in (topics := _split(text)):
        if not TOPIC.fullmatch(topic):
            raise ConfigError(
                f"{argument}:={text}: {quoted(topic)} is no name of a topic. It has letters, "
                "digits and '_', with single '/' between them and none at the end, as "
                '/camera/image_raw.')
    return topics


def _split(text: str) -> list[str]:
    """Parts between commas; none of ''."""
    return [part.strip() for part in text.split(',')] if text else []
