# SPDX-License-Identifier: Apache-2.0
"""Start depth_node, and beside it, if asked for, the replay of a bag and RViz.

An empty argument means: as params_file says. So every default stays in one place. What the
arguments mean is worked out in depthclip_ros/launching.py. Defaults of the arguments do not
outlive this file: what is launched after it sees none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import List  # noqa: UP035 (launch_ros does not know list[str])

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    LogInfo,
    OpaqueFunction,
    PopLaunchConfigurations,
    PushLaunchConfigurations,
    Shutdown,
    TimerAction,
)
from launch.events.process import ProcessExited
from launch.logging import launch_config
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from depthclip_ros.launching import (
    NODE,
    SETTINGS,
    Plan,
    boolean,
    choices_of,
    description_of,
    full_namespace,
    plan,
    report_failure,
    rviz_file,
    strangers,
)

PACKAGE = 'depthclip_ros'

# Seconds for the last image of a bag to become depth.
LAST_IMAGE = 2.0

ARGUMENTS = [
    DeclareLaunchArgument(
        'params_file',
        default_value='',
        description='ROS parameter file with all settings of the node; empty: config/depth.yaml '
        'of this package, with weights:=demo its config/demo.yaml',
    ),
    DeclareLaunchArgument(
        'overlay',
        default_value='',
        description='Parameter files over params_file, separated by commas: the last one that '
        'has a setting counts, and an argument of its name more than all files',
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
        description='CLIP weights: an official name such as RN50, a file, demo or untrained; '
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
        'player',
        default_value='',
        choices=['', 'rosbag2'],
        description="What plays the bag: rosbag2, or this package's bag_player; empty: "
        'bag_player, or rosbag2 where bag_player lacks the Python package rosbags',
    ),
    DeclareLaunchArgument(
        'rviz',
        default_value='false',
        description='Show image, depth, words and cloud in RViz, of each camera',
    ),
    DeclareLaunchArgument(
        'fixed_frame',
        default_value='',
        description="RViz's fixed frame; empty: for one camera that of rviz/depth.rviz, for "
        'several base_link',
    ),
    DeclareLaunchArgument(
        'use_sim_time',
        default_value='',
        description='Take the time from /clock; empty: true with a bag, else as in params_file',
    ),
    DeclareLaunchArgument(
        'log_level',
        default_value='',
        choices=['', 'debug', 'info', 'warn', 'error', 'fatal'],
        description="Least severe messages to show; empty: ROS's default",
    ),
    DeclareLaunchArgument(
        'respawn',
        default_value='false',
        description='Start the node again after it ended; a replay in which it ended has failed '
        'all the same',
    ),
    DeclareLaunchArgument(
        'respawn_delay',
        default_value='5.0',
        description='Seconds after which it is started again',
    ),
    DeclareLaunchArgument(
        'required',
        default_value='',
        description='Stop everything that was launched, also by other launch files, when the '
        'node ends; empty: true with a bag',
    ),
]

# Those above have a meaning of their own.
NAMED = {argument.name for argument in ARGUMENTS}
ARGUMENTS += [
    DeclareLaunchArgument(
        name,
        default_value='',
        choices=choices_of(setting),
        description=description_of(setting),
    )
    for name, setting in SETTINGS.items() if name not in NAMED
]


def generate_launch_description() -> LaunchDescription:
    """Arguments first, so that --show-args lists them; the rest depends on their values.

    A launch file that includes this one, and then others, gets its configurations back as they
    were: else a camera's own `log_level` would be set to this file's default of it.
    """
    return LaunchDescription([
        PushLaunchConfigurations(),
        OpaqueFunction(function=_strangers),
        *ARGUMENTS,
        OpaqueFunction(function=_actions),
        PopLaunchConfigurations(),
    ])


def _strangers(context: LaunchContext) -> list[Action]:
    known = [argument.name for argument in ARGUMENTS]
    notes = strangers(context.launch_configurations, context.argv, known, 'depth.launch.py')
    return [LogInfo(msg=note) for note in notes]


def _actions(context: LaunchContext) -> list[Action]:
    """Node, then bag and RViz where they are asked for."""
    value = {argument.name: _value(context, argument.name) for argument in ARGUMENTS}
    around = context.launch_configurations.get('ros_namespace', '')  # of PushRosNamespace
    namespace = full_namespace(around, value['namespace'])
    player = Path(get_package_prefix(PACKAGE), 'lib', PACKAGE, 'bag_player')
    todo = plan(value, namespace, [str(player)])
    log_level = ['--log-level', value['log_level']] if value['log_level'] else []
    parameters = {name: _typed(given) for name, given in todo.parameters.items()}
    actions: list[Action] = [LogInfo(msg=note) for note in todo.notes]
    actions.append(Node(
        package=PACKAGE,
        executable=NODE,
        name=NODE,
        namespace=namespace,
        parameters=[*todo.params_files, *([parameters] if parameters else [])],
        remappings=todo.remappings,
        ros_arguments=log_level,
        additional_env=todo.environment,
        respawn=todo.respawn,
        respawn_delay=todo.respawn_delay,
        on_exit=lambda event, context: _after_node(todo, event, context),
        output='screen',
    ))
    if todo.player is not None:
        actions.append(Node(
            package=PACKAGE,
            executable='bag_player',
            arguments=todo.player,
            additional_env=todo.environment,
            on_exit=_after_player,
            output='screen',
        ))
    if boolean('rviz', value['rviz']):
        actions.append(_rviz(todo, namespace, value['fixed_frame']))
    return actions


def _typed(value: object) -> object:
    """A text stays one: launch would read `no` and `1` as YAML."""
    if isinstance(value, str):
        return ParameterValue(value, value_type=str)
    if isinstance(value, list) and isinstance(value[0], str):
        return ParameterValue(value, value_type=List[str])  # noqa: UP006
    return value


def _value(context: LaunchContext, name: str) -> str:
    return str(LaunchConfiguration(name).perform(context)).strip()


def _after_node(todo: Plan, event: ProcessExited, context: LaunchContext) -> list[Action]:
    """The end of the node is that of its neighbours only if they were told so."""
    if context.is_shutdown:  # it ends because everything does
        return []
    if not todo.respawn or todo.player is not None:  # images played meanwhile are lost
        report_failure(NODE, event.returncode, context.asyncio_loop)
    if todo.respawn:
        return [LogInfo(msg=f'{NODE} has ended; it is started again in {todo.respawn_delay:g} s')]
    if not todo.required:
        return [LogInfo(msg=f'{NODE} has ended; all else goes on (required:=true ends it, '
                        'respawn:=true starts the node again)')]
    return [LogInfo(msg=f'{NODE} has ended: stopping'), Shutdown(reason=f'{NODE} has ended')]


def _after_player(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """Everything ends with the bag."""
    if context.is_shutdown:
        return []
    report_failure('bag_player', event.returncode, context.asyncio_loop)
    reason = 'the bag has ended'
    shutdown = TimerAction(period=LAST_IMAGE, actions=[Shutdown(reason=reason)])
    return [LogInfo(msg=f'{reason}: stopping'), shutdown]


def _rviz(todo: Plan, namespace: str, fixed_frame: str) -> Action:
    """RViz in the namespace in which the relative topics of its configuration fit."""
    if not _installed('rviz2'):
        raise RuntimeError(
            'rviz:=true, but rviz2 is not installed here. Install it '
            '(sudo apt install ros-$ROS_DISTRO-rviz2), or leave rviz:=true out and look at '
            'depth/image_color with any viewer.'
        )
    sim_time = {key: todo.parameters[key] for key in ('use_sim_time',) if key in todo.parameters}
    name = todo.names[0] if len(todo.names) == 1 else ''
    return Node(
        package='rviz2',
        executable='rviz2',
        name='rviz',
        namespace=f'{namespace}/{name}'.replace('//', '/').rstrip('/'),
        arguments=['-d', str(rviz_file(todo.names, launch_config.log_dir)),
                   *(['-f', fixed_frame] if fixed_frame else [])],
        parameters=[sim_time] if sim_time else [],
        remappings=todo.cameras[0].remappings() if name else todo.remappings,
        output='screen',
    )


def _installed(package: str) -> bool:
    try:
        return Path(get_package_prefix(package)).is_dir()
    except PackageNotFoundError:
        return False
