# SPDX-License-Identifier: Apache-2.0
"""What depth.launch.py starts, as plain data. Needs neither ROS nor launch.

`ros2 launch` runs in the system's Python, which may lack everything that this package gets from
pip: nothing here imports more than the standard library and yaml.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from .core.config import DepthConfig, describe
from .core.errors import ConfigError, quoted
from .node.config import NodeConfig, read_config, read_values
from .resources import config_path, large_images_profile, share_dir
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
    from typing import TypeAlias

    Parameters: TypeAlias = 'dict[str, str | bool | int | float | list[str] | list[float]]'

NODE = 'depth_node'
# Every setting is a launch argument of its name.
SETTINGS = {setting.name: setting for settings in (DepthConfig, NodeConfig)
            for setting in dataclasses.fields(settings)}
BASE = 'base_link'  # by REP-105
TRUE, FALSE = ('true', '1', 'yes', 'y', 'on'), ('false', '0', 'no', 'n', 'off')
# What ROS takes as a topic; else rcl says 'error not set'.
TOPIC = re.compile(r'(~/|/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*', re.ASCII)
# Seconds for which the player waits for the node, which may have to download its weights first.
PATIENCE = 1800
# Seconds from the node's subscriptions to the first message. The player has found the node, but
# the node, and what listens to it, may not have found the player: Fast DDS repeats an announcement
# that was lost after 3 s, and what was published until then is gone.
SETTLE = 4


class Camera(NamedTuple):
    """A camera of the node, and the topics it uses instead of its own ('': its own)."""

    name: str
    image: str
    camera_info: str

    def remappings(self) -> list[tuple[str, str]]:
        """Of the relative topics in the camera's namespace."""
        result = []
        if self.image:
            base = self.image.removesuffix('/compressed')
            result += [('image', base), ('image/compressed', f'{base}/compressed')]
        if self.camera_info:
            result.append(('camera_info', self.camera_info))
        return result


@dataclass(frozen=True)
class Plan:
    """What to start.

    Attributes:
        params_files: of the node; each has been read, and together they fit.
        parameters: of the node, over those of the files.
        cameras: at least one.
        names: of the node's cameras, which may be the files' own.
        remappings: of the node.
        environment: variables to set for all that send images.
        player: arguments of bag_player; None: no replay.
        respawn: whether the node is started again when it ends.
        respawn_delay: seconds from its end to its start.
        required: whether everything ends with the node.
        notes: what to say at the start.

    """

    params_files: list[str]
    parameters: Parameters
    cameras: list[Camera]
    names: list[str]
    remappings: list[tuple[str, str]]
    environment: dict[str, str]
    player: list[str] | None
    respawn: bool
    respawn_delay: float
    required: bool
    notes: list[str]


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


def plan(value: Mapping[str, str], namespace: str, bag_lister: Sequence[str]) -> Plan:
    """Work out what the launch arguments mean.

    Args:
        value: of every argument of depth.launch.py, by its name.
        namespace: of the node, fully resolved.
        bag_lister: command `bag_player`, as it is started for the replay.

    Raises:
        DepthClipError: arguments that do not fit one another, the bag, or the parameter file.

    """
    # The demo weights know other words and another camera than OpenAI's.
    usual = config_path('demo' if value['weights'] == 'demo' else 'depth')
    files = [str(Path(path).expanduser())
             for path in [value['params_file'] or str(usual), *_list(value['overlay'])]]
    node = f'{namespace.rstrip("/")}/{NODE}'
    parameters = _parameters(value, files, node)
    respawn, required = _ending(value)
    cameras, notes = _cameras(value, bag_lister)
    if value['bag']:
        parameters['use_sim_time'] = True
    if _all_compressed([camera.image for camera in cameras]) and not value['image_transport']:
        parameters['image_transport'] = 'compressed'
    if value['use_sim_time']:
        parameters['use_sim_time'] = boolean('use_sim_time', value['use_sim_time'])
    return Plan(
        params_files=files,
        parameters=parameters,
        cameras=cameras,
        names=[str(name) for name in read_config(files[0], node)[1].replace(**{
            'cameras': parameters['cameras']} if 'cameras' in parameters else {}).cameras],
        remappings=[
            (f'{camera.name}/{topic}'.removeprefix('/'), target)
            for camera in cameras for topic, target in camera.remappings()
        ],
        environment=large_images_profile(os.environ),
        player=_player(value, cameras) if value['bag'] else None,
        respawn=respawn,
        respawn_delay=_seconds('respawn_delay', value['respawn_delay']),
        required=required,
        notes=notes,
    )


def rviz_of(config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """RViz's configuration for several cameras, made of that for one.

    Args:
        config: of rviz/depth.rviz, whose topics are one camera's; it stays as it is.
        names: of the cameras.

    Returns:
        A group for each camera, of which that of the first is switched on.

    """
    several = copy.deepcopy(config)
    manager = several['Visualization Manager']
    of_camera = [display for display in manager['Displays'] if 'Topic' in display]
    manager['Displays'] = [d for d in manager['Displays'] if 'Topic' not in d] + [{
        'Class': 'rviz_common/Group', 'Name': name, 'Enabled': name == names[0],
        'Displays': [_display_of(name, display) for display in of_camera]} for name in names]
    # Cameras look into several directions: only the robot's own frame is all of theirs.
    manager['Global Options']['Fixed Frame'] = BASE
    manager['Views']['Current'].update(Distance=6, Pitch=0.6, Yaw=3.1416)
    manager['Views']['Current']['Focal Point'] = {'X': 0, 'Y': 0, 'Z': 0.5}
    return several


def _display_of(name: str, display: dict[str, Any]) -> dict[str, Any]:
    """One of a camera's displays, with a name that says whose it is."""
    result = copy.deepcopy(display)
    result['Name'] = f'{display["Name"]} {name}'
    result['Topic']['Value'] = f'{name}/{display["Topic"]["Value"]}'
    return result


def rviz_file(names: Sequence[str], folder: str | Path) -> Path:
    """Configuration of RViz for the cameras of these names; for several one is written.

    Args:
        names: of the cameras.
        folder: where to write it: that of the launch's logs.

    """
    one = share_dir() / 'rviz' / 'depth.rviz'
    if len(names) == 1:
        return one
    config = rviz_of(yaml.safe_load(one.read_text(encoding='utf-8')), names)
    path = Path(folder, 'cameras.rviz')
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    return path


def description_of(setting: dataclasses.Field[Any]) -> str:
    """What --show-args says of the argument that is named like a setting."""
    return f'{describe(setting)}; empty: as in params_file'


def choices_of(setting: dataclasses.Field[Any]) -> list[str] | None:
    """What the argument that is named like a setting may be, '' among them; None: anything."""
    choices = setting.metadata['choices']
    return ['', *choices] if choices else None


def report_failure(name: str, code: int, loop: asyncio.AbstractEventLoop) -> None:
    """Let `ros2 launch` return 1 when it ends, without ending anything now.

    An exception in a launch file would do so too, but stops everything at once, and other launch
    files' handlers of the same event with it. What the loop is told of sets the exit code only.

    Args:
        name: of the process that has ended.
        code: its exit code; 0 is no failure.
        loop: of the launch.

    """
    if code:
        loop.call_exception_handler({'message': f'{name} has died (exit code {code})'})


def _parameters(value: Mapping[str, str], files: Sequence[str], node: str) -> Parameters:
    """Settings of overlays and arguments; all files together with them are what a node accepts.

    They are given to the node one by one, although it reads the files, too: to ROS, a section
    with the node's name in params_file outweighs a `/**:` in an overlay.
    """
    depth, rest = read_config(files[0], node)
    changes: dict[str, Any] = {}
    for path in files[1:]:
        changes.update(read_values(path, node))
    changes.update({name: _from_text(setting, value[name])
                    for name, setting in SETTINGS.items() if value[name]})
    accepted: Parameters = {}
    for settings in (depth, rest):
        given = {name: changes[name] for name in settings.names() if name in changes}
        try:
            result = settings.replace(**given).to_dict()
        except ConfigError as error:
            raise ConfigError(f'{", ".join(files)} and the arguments of the launch: '
                              f'{error}') from error
        accepted.update({name: result[name] for name in given})
    return accepted


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


def _list(text: str) -> list[str]:
    return _split(text) if text else []


def _ending(value: Mapping[str, str]) -> tuple[bool, bool]:
    """Whether the node is respawned, and whether everything ends with it."""
    respawn = boolean('respawn', value['respawn'])
    default = bool(value['bag']) and not respawn
    required = boolean('required', value['required']) if value['required'] else default
    if respawn and required:
        raise ConfigError('respawn:=true and required:=true: a node that is started again does '
                          'not end anything; give one of them.')
    return respawn, required


def _seconds(argument: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f'{argument}:={text}: {quoted(text)} is no number of seconds, 0 or '
                          'more.')
    return seconds


def _player(value: Mapping[str, str], cameras: Sequence[Camera]) -> list[str]:
    """Arguments of bag_player, which is started at once and waits for the node by itself."""
    topics = [topic for camera in cameras for topic in camera[1:] if topic]
    by_rosbag2 = ['--rosbag2'] if value['player'] == 'rosbag2' else []
    return [str(Path(value['bag']).expanduser()), '--clock', *by_rosbag2,
            '--wait-for-subscribers', str(PATIENCE), '--settle', str(SETTLE),
            '--wait-for', *topics]


def _cameras(
    value: Mapping[str, str], bag_lister: Sequence[str],
) -> tuple[list[Camera], list[str]]:
    """The cameras with the topics of the arguments or of the bag, and what to say about them."""
    names = _split(value['cameras'])
    cameras, notes = [], []
    topics = _topics_of(value['bag'], bag_lister) if value['bag'] else None
    images = _for_each(names, 'image', value['image'])
    camera_infos = _for_each(names, 'camera_info', value['camera_info'])
    for camera in map(Camera, names, images, camera_infos):
        if topics is not None:
            found, said = camera_of_bag(camera, topics)
        elif camera.image and not camera.camera_info:
            found = camera._replace(camera_info=camera_info_beside(camera.image))
            said = [f'camera_info from {found.camera_info}']
        else:
            found, said = camera, []
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


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(',')]


def _for_each(names: list[str], argument: str, text: str) -> list[str]:
    """One topic for every camera; all empty if the argument is.

    Raises:
        ConfigError: too few, too many, or not a topic's name.

    """
    topics = _split(text) if text else [''] * len(names)
    for topic in topics:
        if text and not TOPIC.fullmatch(topic):
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


def _all_compressed(images: list[str]) -> bool:
    compressed = {image.endswith('/compressed') for image in images}
    if len(compressed) > 1:
        raise ConfigError(
            f'image:={",".join(images)}: some are compressed and some are not. The node reads '
            'one kind: give raw topics only, or compressed ones only.'
        )
    return compressed == {True}


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
