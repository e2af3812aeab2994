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
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from depthclip_ros.launching import MEANINGS, boolean, report_failure, strangers
from depthclip_ros.resources import config_path, share_dir

PACKAGE = 'depthclip_ros'

# Parameters of sim_camera.
SIM_ARGUMENTS = {
    'kind': 'Kind of room, e.g. office; all: one kind after the other',
    'seed': 'Number of the first room, 0 or above',
    'scene_seconds': 'Move on to the next room after this time in seconds; 0: stay',
    'cameras': 'Names of several cameras, separated by commas, e.g. front,left,rear,right',
    'rate': 'Images a second',
    'distortion': 'A lens with distortion',
    'noise': 'Noise of the images, 0.01 is 1 % of full scale',
}
# Arguments of depth.launch.py that have other defaults here.
PASSED_ON = {'params_file': str(config_path('demo')), 'namespace': '', 'rviz': 'true',
             'required': 'true'}


def generate_launch_description() -> LaunchDescription:
    """sim_camera, and depth.launch.py with what is given to this file."""
    return LaunchDescription([
        PushLaunchConfigurations(),
        OpaqueFunction(function=_check),
        *(DeclareLaunchArgument(name, default_value='', description=meaning)
          for name, meaning in SIM_ARGUMENTS.items()),
        *(DeclareLaunchArgument(name, default_value=default, description=MEANINGS[name])
          for name, default in PASSED_ON.items()),
        OpaqueFunction(function=_actions),
        IncludeLaunchDescription(
            str(share_dir() / 'launch' / 'depth.launch.py'),
            launch_arguments=[(name, LaunchConfiguration(name)) for name in PASSED_ON]),
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
    return [LogInfo(msg=note) for note in strangers(
        given, context.argv, {*SIM_ARGUMENTS, *MEANINGS}, 'demo.launch.py')]


def _actions(context: LaunchContext) -> list[Action]:
    """The camera, and RViz's frame; a demo without RViz is better than none."""
    given, actions = context.launch_configurations, list[Action]()
    if not boolean('rviz', given['rviz']):
        pass
    elif 'rviz2' not in get_packages_with_prefixes():
        actions += [LogInfo(msg='rviz2 is not installed here: look at depth/image_color with any '
                            'other viewer'), SetLaunchConfiguration('rviz', 'false')]
    elif given['cameras'] and not given.get('fixed_frame'):
        actions.append(SetLaunchConfiguration('fixed_frame', 'world'))  # all are in the room
    # Substitutions, not their texts: launch_ros gives these a number's type.
    parameters = {name: LaunchConfiguration(name) for name in SIM_ARGUMENTS if given[name]}
    if 'cameras' in parameters:
        parameters['cameras'] = [name.strip() for name in given['cameras'].split(',')]
    if 'distortion' in parameters:
        parameters['distortion'] = boolean('distortion', given['distortion'])
    return [*actions, Node(
        package=PACKAGE, executable='sim_camera', name='sim_camera',
        namespace=LaunchConfiguration('namespace'),
        parameters=[parameters] if parameters else [], output='screen', on_exit=_end)]


def _end(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """Nothing is left to see without the camera, unless everything ends already."""
    if context.is_shutdown:
        return []
    report_failure('sim_camera', event.returncode, context.asyncio_loop)
    return [Shutdown(reason='sim_camera has ended')]
