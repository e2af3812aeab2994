# SPDX-License-Identifier: Apache-2.0
"""Start depth_node, and beside it, if asked for, the replay of a bag and RViz.

An empty argument means: as params_file says. So every default stays in one place.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import Event, LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.substitutions import FindPackageShare

from depthclip_ros.sources.bag import (
    BagTopic,
    bag_topics,
    camera_info_beside,
    camera_topics,
    storage_of,
)

PACKAGE = 'depthclip_ros'
SHARE = FindPackageShare(PACKAGE)

# Seconds before a player's first message, in which subscribers and it find each other. Fast DDS
# repeats an announcement that was lost after 3 s.
DISCOVERY = 3.5
# Seconds for the last image of a bag to become depth.
LAST_IMAGE = 2.0

ARGUMENTS = [
    DeclareLaunchArgument(
        'params_file',
        default_value=PathJoinSubstitution([SHARE, 'config', 'depth.yaml']),
        description='ROS parameter file with all settings of the node',
    ),
    DeclareLaunchArgument(
        'namespace',
        default_value='',
        description='Namespace of the node and its topics, e.g. front',
    ),
    DeclareLaunchArgument(
        'cameras',
        default_value='',
        description='Names of several cameras, separated by commas, each the namespace of its '
        'topics, e.g. front,rear; empty: as in params_file',
    ),
    DeclareLaunchArgument(
        'image',
        default_value='',
        description='Image topic to use instead of "image"; with /compressed at its end, the '
        'node reads compressed images. With cameras: one for each, separated by commas',
    ),
    DeclareLaunchArgument(
        'camera_info',
        default_value='',
        description='camera_info topic to use instead of "camera_info"; empty: the one beside '
        'image, if that is given. With cameras: one for each, separated by commas',
    ),
    DeclareLaunchArgument(
        'weights',
        default_value='',
        description='CLIP weights: an official name such as RN50, a file, or untrained; '
        'empty: as in params_file',
    ),
    DeclareLaunchArgument(
        'device',
        default_value='',
        description='auto, cpu, cuda or cuda:N; empty: as in params_file',
    ),
    DeclareLaunchArgument(
        'bag',
        default_value='',
        description='rosbag2 bag to replay with simulated time, once the node is active; '
        'everything ends with it. Its camera is found by itself (those of cameras: under their '
        'names), or given by image and camera_info',
    ),
    DeclareLaunchArgument(
        'rviz',
        default_value='false',
        choices=['true', 'false'],
        description='Show image, depth and cloud in RViz, of the first of several cameras',
    ),
    DeclareLaunchArgument(
        'use_sim_time',
        default_value='',
        choices=['', 'true', 'false'],
        description='Take the time from /clock; empty: true with a bag, else as in params_file',
    ),
    DeclareLaunchArgument(
        'log_level',
        default_value='',
        choices=['', 'debug', 'info', 'warn', 'error', 'fatal'],
        description="Least severe messages to show; empty: ROS's default",
    ),
]


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


def generate_launch_description() -> LaunchDescription:
    """Arguments first, so that --show-args lists them; the rest depends on their values."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=_actions)])


def _actions(context: LaunchContext) -> list[Action]:
    """Node, then bag and RViz where they are asked for."""
    value = {argument.name: _value(context, argument.name) for argument in ARGUMENTS}
    parameters: dict[str, str | bool | list[str]] = {
        name: value[name] for name in ('weights', 'device') if value[name]
    }
    cameras, notes = _cameras(value)
    if value['cameras']:
        parameters['cameras'] = [camera.name for camera in cameras]
    if value['bag']:
        parameters['use_sim_time'] = True
    if _all_compressed([camera.image for camera in cameras]):
        parameters['image_transport'] = 'compressed'
    if value['use_sim_time']:
        parameters['use_sim_time'] = value['use_sim_time'] == 'true'
    remappings = [
        (f'{camera.name}/{topic}'.removeprefix('/'), target)
        for camera in cameras for topic, target in camera.remappings()
    ]
    log_level = ['--log-level', value['log_level']] if value['log_level'] else []

    node = LifecycleNode(
        package=PACKAGE,
        executable='depth_node',
        name='depth_node',
        namespace=value['namespace'],
        parameters=[value['params_file'], *([parameters] if parameters else [])],
        remappings=remappings,
        ros_arguments=log_level,
        output='screen',
    )
    actions: list[Action] = [LogInfo(msg=note) for note in notes]
    # Handlers come first: what they wait for may happen before the next line runs.
    actions.append(_shutdown_after(node, 'depth_node has ended'))
    if value['bag']:
        topics = [topic for camera in cameras for topic in camera[1:] if topic]
        actions += _replay(node, value['bag'], topics)
    if value['rviz'] == 'true':
        namespace = '/'.join(filter(None, [value['namespace'], cameras[0].name]))
        actions.append(_rviz(namespace, cameras[0].remappings(), parameters))
    return [*actions, node]


def _value(context: LaunchContext, name: str) -> str:
    return str(LaunchConfiguration(name).perform(context)).strip()


def _cameras(value: dict[str, str]) -> tuple[list[Camera], list[str]]:
    """The cameras with the topics of the arguments or of the bag, and what to say about them."""
    names = _split(value['cameras'])
    cameras, notes = [], []
    topics = bag_topics(value['bag']) if value['bag'] else None
    images = _for_each(names, 'image', value['image'])
    camera_infos = _for_each(names, 'camera_info', value['camera_info'])
    for camera in map(Camera, names, images, camera_infos):
        if topics is not None:
            found, said = _from_bag(camera, topics)
        elif camera.image and not camera.camera_info:
            found = camera._replace(camera_info=camera_info_beside(camera.image))
            said = [f'camera_info from {found.camera_info}']
        else:
            found, said = camera, []
        cameras.append(found)
        notes += said
    return cameras, notes


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(',')]


def _for_each(names: list[str], argument: str, text: str) -> list[str]:
    """One topic for every camera; all empty if the argument is."""
    topics = _split(text) if text else [''] * len(names)
    if len(topics) != len(names):
        raise RuntimeError(
            f'{argument}:={text} and cameras:={",".join(names)} are {len(topics)} topics for '
            f'{len(names)} cameras: give one for each, in the same order, separated by commas.'
        )
    return topics


def _all_compressed(images: list[str]) -> bool:
    compressed = {image.endswith('/compressed') for image in images}
    if len(compressed) > 1:
        raise RuntimeError(
            f'image:={",".join(images)}: some are compressed and some are not. The node reads '
            'one kind: give raw topics only, or compressed ones only.'
        )
    return compressed == {True}


def _from_bag(camera: Camera, topics: list[BagTopic]) -> tuple[Camera, list[str]]:
    """Fill in the topics of a camera from a bag; also gives what to say about it."""
    if camera.name and not camera.image:
        topics = [topic for topic in topics if topic.name.startswith(f'/{camera.name}/')]
        if not topics:
            raise RuntimeError(
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


def _shutdown_after(action: Action, reason: str, delay: float = 0.0) -> Action:
    """End everything when a process ends by itself."""

    def on_exit(_: Event, context: LaunchContext) -> list[Action]:
        if context.is_shutdown:  # it ends because everything does
            return []
        shutdown = TimerAction(period=delay, actions=[Shutdown(reason=reason)])
        return [LogInfo(msg=f'{reason}: stopping'), shutdown]

    return RegisterEventHandler(OnProcessExit(target_action=action, on_exit=on_exit))


def _replay(node: LifecycleNode, bag: str, topics: list[str]) -> list[Action]:
    """Play the bag when the node is active, and end everything after it."""
    player = _player(bag, topics)
    start = OnStateTransition(
        target_lifecycle_node=node, goal_state='active', entities=[player], handle_once=True
    )
    return [
        RegisterEventHandler(start),
        _shutdown_after(player, 'the bag has ended', delay=LAST_IMAGE),
    ]


def _player(bag: str, topics: list[str]) -> Action:
    """`ros2 bag play` where it can read the bag, else our player, which waits for the node."""
    needed = ['ros2bag', {'mcap': 'rosbag2_storage_mcap'}.get(storage_of(bag), 'ros2bag')]
    if not all(_installed(package) for package in needed):
        return Node(
            package=PACKAGE,
            executable='bag_player',
            arguments=[
                bag, '--clock', '--wait-for-subscribers', '10', '--settle', str(DISCOVERY),
                '--wait-for', *topics,
            ],
            output='screen',
        )
    options = ['--clock', '--delay', str(DISCOVERY), '--disable-keyboard-controls']
    return ExecuteProcess(cmd=['ros2', 'bag', 'play', bag, *options], output='screen')


def _rviz(
    namespace: str,
    remappings: list[tuple[str, str]],
    parameters: dict[str, str | bool | list[str]],
) -> Action:
    """RViz in the camera's namespace, so that the relative topics of its configuration fit."""
    if not _installed('rviz2'):
        raise RuntimeError(
            'rviz:=true, but rviz2 is not installed here. Install it '
            '(sudo apt install ros-$ROS_DISTRO-rviz2), or leave rviz:=true out and look at '
            'depth/image_color with any viewer.'
        )
    sim_time = {name: parameters[name] for name in parameters if name == 'use_sim_time'}
    return Node(
        package='rviz2',
        executable='rviz2',
        name='rviz',
        namespace=namespace,
        arguments=['-d', PathJoinSubstitution([SHARE, 'rviz', 'depth.rviz'])],
        parameters=[sim_time] if sim_time else [],
        remappings=remappings,
        output='screen',
    )


def _installed(package: str) -> bool:
    try:
        return Path(get_package_prefix(package)).is_dir()
    except PackageNotFoundError:
        return False
