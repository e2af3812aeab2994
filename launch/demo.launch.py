# SPDX-License-Identifier: Apache-2.0
"""Start sim_camera, depth_node with the demo weights, and RViz, without a camera or the internet.

An empty argument means sim_camera's default. Arguments of depth.launch.py that are not declared
here are passed on to it, too.
"""

from __future__ import annotations

from ament_index_python.packages import get_packages_with_prefixes
from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    PopLaunchConfigurations,
    PushLaunchConfigurations,
    SetLaunchConfiguration,
    Shutdown,
)
from launch_ros.actions import Node

from depthclip_ros.core.parameter_file import read_value
from depthclip_ros.launch_support.launching import MEANINGS, on_exit, unknown_arguments
from depthclip_ros.resources import config_path, share_dir

PACKAGE = 'depthclip_ros'
HAS_RVIZ = 'rviz2' in get_packages_with_prefixes()  # a demo without it is better than none
# Parameters of sim_camera.
SIM_ARGUMENTS = {
    'kind': 'Kind of room, e.g. office; all: one kind after the other',
    'seed': 'Number of the first room, 0 or above',
    'scene_seconds': 'Move on to the next room after this time in seconds; 0: stay',
    'cameras': 'Names of several cameras, separated by commas, e.g. front,left,rear,right',
    'rate': 'Images a second',
    'distortion': 'A lens with distortion, true or false',
    'noise': 'Noise of the images, 0.01 is 1 % of full scale',
}


def generate_launch_description() -> LaunchDescription:
    """Start sim_camera, and include depth.launch.py with this file's arguments."""
    passed_on = {'params_file': str(config_path('demo')), 'namespace': '', 'required': 'true',
                 'rviz': str(HAS_RVIZ).lower()}
    return LaunchDescription([
        PushLaunchConfigurations(),
        OpaqueFunction(function=_check),
        *(DeclareLaunchArgument(name, default_value='', description=meaning)
          for name, meaning in SIM_ARGUMENTS.items()),
        *(DeclareLaunchArgument(name, default_value=default, description=MEANINGS[name])
          for name, default in passed_on.items()),
        OpaqueFunction(function=_actions),
        PopLaunchConfigurations(),
    ])


def _check(context: LaunchContext) -> list[Action]:
    """Refuse misspelt arguments, and other cameras, whose images would mix with these."""
    arguments = context.launch_configurations
    for name in ('bag', 'image', 'camera_info'):
        if arguments.get(name):
            raise RuntimeError(
                f'{name}:={arguments[name]}: the demo shows the rooms of its own camera. For '
                f'others: ros2 launch {PACKAGE} depth.launch.py {name}:={arguments[name]}')
    typed = [text.partition(':=')[0] for text in context.argv]
    notes = unknown_arguments(arguments, typed, {*SIM_ARGUMENTS, *MEANINGS}, 'demo.launch.py')
    if not HAS_RVIZ and 'rviz' not in arguments:
        notes.append('rviz2 is not installed here: look at depth/image_color in another viewer')
    return [LogInfo(msg=note) for note in notes]


def _actions(context: LaunchContext) -> list[Action]:
    """Start node and camera; several cameras have the frame world in common.

    The camera comes last, after all checks: at an error launch ends at once, and leaves processes
    behind that it has begun to start.
    """
    arguments = context.launch_configurations
    parameters = {name: read_value(arguments[name]) for name in SIM_ARGUMENTS if arguments[name]}
    if 'cameras' in parameters:
        parameters['cameras'] = [name.strip() for name in arguments['cameras'].split(',')]
    frame = arguments.get('fixed_frame') or ('world' if arguments['cameras'] else '')
    camera = Node(
        package=PACKAGE, executable='sim_camera', name='sim_camera',
        namespace=arguments['namespace'], parameters=[parameters] if parameters else [],
        output='screen', on_exit=lambda event, context: on_exit(
            'sim_camera', event, context, [Shutdown(reason='sim_camera has ended')]))
    return [SetLaunchConfiguration('fixed_frame', frame), IncludeLaunchDescription(
        str(share_dir() / 'launch' / 'depth.launch.py')), camera]
