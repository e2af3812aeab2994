# SPDX-License-Identifier: Apache-2.0
"""From the arguments of depth.launch.py to a plan of plain data. Needs neither ROS nor launch.

`ros2 launch` runs in the system's Python, which may lack torch and NumPy, so that this file does
not import them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..core.config import DepthConfig, Settings, define, describe
from ..core.errors import ConfigError, nearest, quoted
from ..core.files import open_regular, user_path
from ..core.parameter_file import read_value
from ..core.releases import DEMO, RELEASES, UNTRAINED
from ..messages.node_config import NodeConfig, read_config, read_values
from ..resources import config_path
from ..sources.bag import CameraTopics, bag_topics, camera_info_beside, cameras_of, one_for_each

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

NODE = 'depth_node'
# Launch configurations of launch_ros's PushRosNamespace, SetRemap and SetParameter.
GROUP_CONFIGURATIONS = {'ros_namespace', 'ros_remaps', 'global_params'}


@dataclasses.dataclass(frozen=True)
class LaunchConfig(Settings):
    """Arguments of the launch itself. Every setting of the node is an argument, too."""

    params_file: str = define('', (
        'ROS parameter file with all settings of the node; empty: config/depth.yaml of this '
        'package, with weights:=demo its config/demo.yaml'))
    overlay: str = define('', (
        'Parameter files over params_file, separated by commas: the last one that has a setting '
        'counts, and an argument of its name more than all files'))
    namespace: str = define('', 'Namespace of the node and its topics, e.g. front')
    image: str = define('', (
        'Image topic to use instead of "image"; with /compressed at its end, the node reads '
        'compressed images. With cameras: one for each, separated by commas'))
    camera_info: str = define('', (
        'camera_info topic to use instead of "camera_info"; empty: the one beside image, if that'
        ' is given. With cameras: one for each, separated by commas'))
    bag: str = define('', (
        'rosbag2 bag to replay with simulated time, once the node is active; everything ends '
        'with it. Its camera is found by itself (those of cameras: under their names), or given '
        'by image and camera_info'))
    rviz: bool = define(False, 'Show image, depth, words and cloud in RViz, of each camera')
    fixed_frame: str = define('', (
        "RViz's fixed frame; empty: for one camera that of rviz/depth.rviz, for several "
        'base_link'))
    use_sim_time: bool = define(
        True, 'Take the time from /clock; empty: true with a bag, else as in params_file')
    log_level: str = define('', (
        "Least severe messages of the node to show, such as debug; empty: ROS's default"))
    respawn: bool = define(False, (
        'Start the node again after it ended; a replay in which it ended has failed all the '
        'same'))
    respawn_delay: float = define(
        5.0, 'After how long it is started again; empty: 5', unit='s', minimum=0.0, maximum=3600.0)
    required: bool = define(False, (
        'Stop everything that was launched, also by other launch files, when the node ends; '
        'empty: true with a bag'))


ARGUMENTS = {setting.name: setting for settings in (LaunchConfig, DepthConfig, NodeConfig)
             for setting in dataclasses.fields(settings)}
MEANINGS = {name: describe(setting) + '; empty: as in params_file' * (
    name not in LaunchConfig.names()) for name, setting in ARGUMENTS.items()}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The processes to start, and their settings."""

    launch: LaunchConfig
    params_files: list[str]  # of the node; all are read and checked together
    parameters: dict[str, Any]  # of the node, which override the files
    remappings: list[tuple[str, str]]  # of the node's topics
    topics: list[str]  # targets of the remappings of its cameras
    names: list[str]  # of its cameras, which may come from the files
    notes: list[str]  # to log at the start


def plan_launch(texts: Mapping[str, str], namespace: str) -> Plan:
    """Make the plan from the launch arguments.

    Args:
        texts: texts of all arguments by name; '': not set.
        namespace: namespace of the node, fully resolved.

    Raises:
        DepthClipError: arguments do not fit each other, the bag, or the parameter file; or a file
            is missing.

    """
    values = {name: _parse_argument(ARGUMENTS[name], text) for name, text in texts.items() if text}
    launch = LaunchConfig.from_dict({
        name: values.pop(name) for name in LaunchConfig.names() if name in values})
    if not texts['required']:
        launch = launch.replace(required=bool(launch.bag) and not launch.respawn)
    if launch.respawn and launch.required:
        raise ConfigError('respawn:=true and required:=true: a node that is started again does '
                          'not end anything; give one of them.')
    # The demo weights need other words and another camera than OpenAI's.
    default_file = config_path(DEMO if values.get('weights') == DEMO else 'depth')
    files = [str(user_path(path))
             for path in [launch.params_file or str(default_file), *_split_commas(launch.overlay)]]
    parameters, names = _parameters(values, files, f'{namespace.rstrip("/")}/{NODE}')
    cameras, notes = _camera_topics(launch, values.get('cameras', ['']))
    if len({camera.compressed for camera in cameras}) > 1:
        raise ConfigError(
            f'image:={",".join(camera.topic for camera in cameras)}: some are compressed and some '
            'are not. The node reads one kind: give raw topics only, or compressed ones only.')
    if cameras[0].compressed and 'image_transport' not in values:
        parameters['image_transport'] = 'compressed'
    if launch.bag or texts['use_sim_time']:
        parameters['use_sim_time'] = launch.use_sim_time
    topics = [topic for camera in cameras for topic in (camera.topic, camera.camera_info) if topic]
    return Plan(launch, files, parameters, _remappings(cameras), topics, names, notes)


def unknown_arguments(
    names: Collection[str], typed: Collection[str], arguments: Collection[str], file: str,
) -> list[str]:
    """Return warnings about launch configurations that are no arguments of a launch file.

    `names` are all but the file's own defaults, `typed` those of the command line. ConfigError if
    a typed one is misspelt, unless another launch file, with its own arguments, includes this one.
    """
    is_included, notes = not set(names) <= set(typed), list[str]()
    for name in sorted(set(names) - set(arguments) - GROUP_CONFIGURATIONS):
        suggestion = nearest(name, arguments)
        notice = f'{name}:= is no argument of {file}' + (
            f"; did you mean '{suggestion}'?" if suggestion else ' and has no effect')
        if suggestion and not is_included:
            raise ConfigError(notice)
        if not is_included or (suggestion and name not in typed):
            notes.append(notice)
    return notes


def on_exit(name: str, event: Any, context: Any, actions: list[Any]) -> list[Any]:
    """Return the actions after a process's end, or none while the whole launch shuts down.

    A failure goes to the launch's event loop, so that `ros2 launch` returns 1 at its end; an
    exception would end everything at once.
    """
    if context.is_shutdown:
        return []
    if event.returncode:
        context.asyncio_loop.call_exception_handler(
            {'message': f'{name} has died (exit code {event.returncode})'})
    return actions


def _parameters(
    arguments: Mapping[str, Any], files: Sequence[str], node: str,
) -> tuple[dict[str, Any], list[str]]:
    """Merge overlays and arguments, check them with the files, and return also the cameras' names.

    The node gets each merged setting as a parameter, although it reads the files, too: in ROS, a
    section with the node's name in params_file overrides a `/**:` in an overlay.
    """
    configs = read_config(files[0], node)
    changes: dict[str, Any] = {}
    for path in files[1:]:
        changes |= read_values(path, node)
    changes |= arguments
    effective: dict[str, Any] = {}
    try:
        for config in configs:
            effective |= config.replace(
                **{name: changes[name] for name in config.names() if name in changes}).to_dict()
    except ConfigError as error:
        raise ConfigError(f'{", ".join(files)} and the arguments of the launch: '
                          f'{error}') from error
    if effective['weights'] not in ('', DEMO, UNTRAINED, *RELEASES):
        _check_file('weights', effective['weights'])
    if effective['calibration']:
        _check_file('calibration', effective['calibration'])
    return {name: effective[name] for name in effective if name in changes}, effective['cameras']


def _check_file(name: str, path: str) -> None:
    """Raise ConfigError if the file is missing; the node checks its content."""
    try:
        open_regular(user_path(path)).close()
    except OSError as error:
        raise ConfigError(f'{name}: {quoted(path, 200)} cannot be read: {error.strerror}. '
                          'Give the path of a file that is there.') from error


def _parse_argument(setting: dataclasses.Field[Any], text: str) -> Any:
    """Parse a launch argument; the settings check the value's type."""
    kind = str(setting.type)
    if kind == 'str':
        return text
    try:
        if kind.startswith('tuple') and not text.startswith('['):
            return [part if 'str' in kind else read_value(part) for part in _split_commas(text)]
        value = read_value(text.lower() if kind == 'bool' else text)
    except ConfigError as error:
        raise ConfigError(f"{setting.name}:={text}: {error} Write a list as '[a, b]' or "
                          'a,b') from error
    return bool(value) if kind == 'bool' and value in (0, 1) else value


def _camera_topics(
    launch: LaunchConfig, names: Sequence[str],
) -> tuple[list[CameraTopics], list[str]]:
    """Find the cameras' topics in the arguments or in the bag; return also notes to log."""
    images, infos = _split_commas(launch.image), _split_commas(launch.camera_info)
    if launch.bag:
        cameras = cameras_of(bag_topics(launch.bag), names, images, infos,
                             choice='image:=TOPIC, or several with cameras:=NAME,NAME')
        return cameras, [
            f'bag: it has no {camera_info_beside(camera.image)}, so there will be no cloud; if '
            'the camera_info is on another topic, say so with camera_info:=TOPIC'
            for camera in cameras if not camera.camera_info]
    return [
        CameraTopics(image, info or (camera_info_beside(image) if image else ''),
                     image.endswith('/compressed'), name)
        for name, image, info in zip(names, one_for_each(names, images),
                                     one_for_each(names, infos), strict=True)], []


def _remappings(cameras: Sequence[CameraTopics]) -> list[tuple[str, str]]:
    """List the remappings from the cameras' own topics to those of the arguments or the bag."""
    return [
        (f'{camera.name}/{topic}' if camera.name else topic, target)
        for camera in cameras for topic, target in (
            ('image', camera.image),
            ('image/compressed', camera.topic if camera.compressed else
             camera.image and f'{camera.image}/compressed'),
            ('camera_info', camera.camera_info)) if target]


def _split_commas(text: str) -> list[str]:
    """Split a text at commas; '' has no parts."""
    return [part.strip() for part in text.split(',')] if text else []
