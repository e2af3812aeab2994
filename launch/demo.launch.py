# SPDX-License-Identifier: Apache-2.0
"""Start sim_camera, depth_node on the demo weights, and RViz: no camera, no network is needed.

An empty argument means: sim_camera's own default. The arguments of depth.launch.py that are not
declared here are passed on to it all the same.
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
from depthclip_ros.launching import MEANINGS, after, strangers
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
    """sim_camera, and depth.launch.py with what is given to this file."""
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
    """No misspelt arguments, and no other cameras, whose images would be mixed with these."""
    given = context.launch_configurations
    for name in ('bag', 'image', 'camera_info'):
        if given.get(name):
            raise RuntimeError(
                f'{name}:={given[name]}: the demo shows the rooms of its own camera. For others: '
                f'ros2 launch {PACKAGE} depth.launch.py {name}:={given[name]}')
    typed = [text.partition(':=')[0] for text in context.argv]
    notes = strangers(given, typed, {*SIM_ARGUMENTS, *MEANINGS}, 'demo.launch.py')
    if not HAS_RVIZ and 'rviz' not in given:
        notes.append('rviz2 is not installed here: look at depth/image_color in another viewer')
    return [LogInfo(msg=note) for note in notes]


def _actions(context: LaunchContext) -> list[Action]:
    """Node and camera; all of several cameras are in the frame world.

    The camera comes last, when nothing can be refused: at an error launch ends at once, and leaves
    behind what it has begun to start.
    """
    given = context.launch_configurations
    parameters = {name: read_value(given[name]) for name in SIM_ARGUMENTS if given[name]}
    if 'cameras' in parameters:
        parameters['cameras'] = [name.strip() for name in given['cameras'].split(',')]
    frame = given.get('fixed_frame') or ('world' if given['cameras'] else '')
    camera = Node(
        package=PACKAGE, executable='sim_camera', name='sim_camera',
        namespace=given['namespace'], parameters=[parameters] if parameters else [],
        output='screen', on_exit=lambda event, context: after(
            'sim_camera', event, context, [Shutdown(reason='sim_camera has ended')]))
    return [SetLaunchConfiguration('fixed_frame', frame), IncludeLaunchDescription(
        str(share_dir() / 'launch' / 'depth.launch.py')), camera]
