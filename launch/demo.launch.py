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
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from depthclip_ros.launching import SETTINGS, boolean, report_failure, strangers

PACKAGE = 'depthclip_ros'
WORLD_FRAME = 'world'  # of sim_camera
SHARE = FindPackageShare(PACKAGE)

# Parameters of sim_camera.
SIM_ARGUMENTS = [
    DeclareLaunchArgument(
        'kind',
        default_value='',
        description='Kind of room, e.g. office; all: one kind after the other',
    ),
    DeclareLaunchArgument(
        'seed', default_value='', description='Number of the first room, 0 or above'
    ),
    DeclareLaunchArgument(
        'scene_seconds',
        default_value='',
        description='Move on to the next room after this time in seconds; 0: stay',
    ),
    DeclareLaunchArgument(
        'cameras',
        default_value='',
        description='Names of several cameras, separated by commas, e.g. front,left,rear,right',
    ),
    DeclareLaunchArgument('rate', default_value='', description='Images a second'),
    DeclareLaunchArgument(
        'distortion',
        default_value='',
        description='A lens with distortion',
    ),
    DeclareLaunchArgument(
        'noise', default_value='', description='Noise of the images, 0.01 is 1 % of full scale'
    ),
]

ARGUMENTS = [
    *SIM_ARGUMENTS,
    DeclareLaunchArgument(
        'params_file',
        default_value=PathJoinSubstitution([SHARE, 'config', 'demo.yaml']),
        description='ROS parameter file with all settings of depth_node',
    ),
    DeclareLaunchArgument(
        'namespace', default_value='', description='Namespace of both nodes and their topics'
    ),
    DeclareLaunchArgument(
        'rviz',
        default_value='true',
        description='Show image, depth and cloud in RViz, where it is installed',
    ),
    DeclareLaunchArgument(
        'required',
        default_value='true',
        description='Stop everything when depth_node ends',
    ),
]

OF_DEPTH_LAUNCH = ('overlay', 'bag', 'image', 'camera_info', 'player', 'use_sim_time',
                   'log_level', 'respawn', 'respawn_delay', 'fixed_frame')


def generate_launch_description() -> LaunchDescription:
    """The same arguments again for depth.launch.py, which has other defaults for them."""
    passed_on = {
        name: LaunchConfiguration(name)
        for name in ('params_file', 'namespace', 'rviz', 'required')
    }
    return LaunchDescription([
        PushLaunchConfigurations(),
        OpaqueFunction(function=_strangers),
        *ARGUMENTS,
        OpaqueFunction(function=_refuse_other_cameras),
        OpaqueFunction(function=_rviz),
        OpaqueFunction(function=_sim_camera),
        IncludeLaunchDescription(
            PathJoinSubstitution([SHARE, 'launch', 'depth.launch.py']),
            launch_arguments=passed_on.items(),
        ),
        PopLaunchConfigurations(),
    ])


def _strangers(context: LaunchContext) -> list[Action]:
    """What depth.launch.py takes is taken here, too."""
    known = {argument.name for argument in ARGUMENTS} | {*OF_DEPTH_LAUNCH, *SETTINGS}
    notes = strangers(context.launch_configurations, context.argv, known, 'demo.launch.py')
    return [LogInfo(msg=note) for note in notes]


def _refuse_other_cameras(context: LaunchContext) -> list[Action]:
    """Pictures from elsewhere and from sim_camera would be mixed, or only one of them be seen."""
    for name in ('bag', 'image', 'camera_info'):
        value = LaunchConfiguration(name, default='').perform(context)
        if value:
            raise RuntimeError(
                f'{name}:={value}: the demo shows the rooms of its own camera. For others: '
                f'ros2 launch {PACKAGE} depth.launch.py {name}:={value}'
            )
    return []


def _rviz(context: LaunchContext) -> list[Action]:
    """A demo without RViz is better than none; several cameras are all in the room."""
    if not boolean('rviz', LaunchConfiguration('rviz').perform(context)):
        return []
    if 'rviz2' not in get_packages_with_prefixes():
        note = 'rviz2 is not installed here: look at depth/image_color with any other viewer'
        return [LogInfo(msg=note), SetLaunchConfiguration('rviz', 'false')]
    if not LaunchConfiguration('cameras').perform(context):
        return []
    given = LaunchConfiguration('fixed_frame', default='').perform(context)
    return [SetLaunchConfiguration('fixed_frame', given or WORLD_FRAME)]


def _sim_camera(context: LaunchContext) -> list[Action]:
    values = {argument.name: LaunchConfiguration(argument.name) for argument in SIM_ARGUMENTS}
    # Substitutions, not their texts: launch_ros gives these a number's type.
    parameters: dict[str, LaunchConfiguration | list[str] | bool] = {
        name: value for name, value in values.items() if value.perform(context)
    }
    if 'distortion' in parameters:
        parameters['distortion'] = boolean('distortion', values['distortion'].perform(context))
    if 'cameras' in parameters:
        names = values['cameras'].perform(context).split(',')
        parameters['cameras'] = [name.strip() for name in names]
    return [
        Node(
            package=PACKAGE,
            executable='sim_camera',
            name='sim_camera',
            namespace=LaunchConfiguration('namespace'),
            parameters=[parameters] if parameters else [],
            output='screen',
            on_exit=_end,
        )
    ]


def _end(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """Nothing is left to see without the camera, unless everything ends already."""
    if context.is_shutdown:
        return []
    report_failure('sim_camera', event.returncode, context.asyncio_loop)
    return [Shutdown(reason='sim_camera has ended')]
