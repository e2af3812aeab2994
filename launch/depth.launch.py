# SPDX-License-Identifier: Apache-2.0
"""Start depth_node, and beside it, if asked for, the replay of a bag and RViz.

An empty argument means: as params_file says. So every default stays in one place. What the
arguments mean is worked out in depthclip_ros/launching.py. Defaults of the arguments do not
outlive this file: what is launched after it sees none of them.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import List  # noqa: UP035 (launch_ros does not know list[str])

from ament_index_python.packages import get_packages_with_prefixes
from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    LogInfo,
    OpaqueFunction,
    PopLaunchConfigurations,
    PushLaunchConfigurations,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.events.process import ProcessExited
from launch.logging import launch_config
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.parameter_descriptions import ParameterValue

from depthclip_ros.launching import (
    ARGUMENTS,
    CHOICES,
    DEFAULTS,
    NODE,
    SETTINGS,
    Plan,
    boolean,
    description_of,
    full_namespace,
    plan,
    report_failure,
    rviz_file,
    strangers,
)
from depthclip_ros.resources import large_images_profile

PACKAGE = 'depthclip_ros'
# Seconds after which a new node has found, and has been found by, all that listen: Fast DDS
# announces what is there every 3 s. The time in which the network is loaded counts.
DISCOVERY = 3.5
# Seconds for the last image of a bag to become depth.
LAST_IMAGE = 2.0

DECLARED = [
    DeclareLaunchArgument(name, default_value=DEFAULTS.get(name, ''), description=meaning,
                          choices=CHOICES.get(name))
    for name, meaning in {
        **ARGUMENTS, **{name: description_of(setting) for name, setting in SETTINGS.items()
                        if name not in ARGUMENTS}}.items()]


def generate_launch_description() -> LaunchDescription:
    """Arguments first, so that --show-args lists them; the rest depends on their values.

    A launch file that includes this one, and then others, gets its configurations back as they
    were: else a camera's own `log_level` would be set to this file's default of it.
    """
    return LaunchDescription([
        PushLaunchConfigurations(),
        OpaqueFunction(function=_strangers),
        *DECLARED,
        OpaqueFunction(function=_actions),
        PopLaunchConfigurations(),
    ])


def _strangers(context: LaunchContext) -> list[Action]:
    known = [argument.name for argument in DECLARED]
    notes = strangers(context.launch_configurations, context.argv, known, 'depth.launch.py')
    return [LogInfo(msg=note) for note in notes]


def _actions(context: LaunchContext) -> list[Action]:
    """Node, then bag and RViz where they are asked for."""
    value = {argument.name: LaunchConfiguration(argument.name).perform(context).strip()
             for argument in DECLARED}
    around = context.launch_configurations.get('ros_namespace', '')  # of PushRosNamespace
    namespace = full_namespace(around, value['namespace'])
    todo, profile = plan(value, namespace), large_images_profile(os.environ)
    by_rosbag2 = bool(value['bag']) and _plays_rosbag2(value['player'])
    parameters = {name: _typed(given) for name, given in todo.parameters.items()}
    # launch listens to a LifecycleNode's transitions, by a node of its own.
    node = (LifecycleNode if by_rosbag2 else Node)(
        package=PACKAGE,
        executable=NODE,
        name=NODE,
        namespace=namespace,
        parameters=[*todo.params_files, *([parameters] if parameters else [])],
        remappings=todo.remappings(),
        ros_arguments=['--log-level', value['log_level']] if value['log_level'] else [],
        additional_env=profile,
        respawn=todo.respawn,
        respawn_delay=todo.respawn_delay,
        on_exit=lambda event, context: _after_node(todo, value['bag'], event, context),
        output='screen',
    )
    actions: list[Action] = [*(LogInfo(msg=note) for note in todo.notes), node]
    bag = str(Path(value['bag']).expanduser())
    about_player = {'additional_env': profile, 'on_exit': _after_player, 'output': 'screen'}
    if by_rosbag2:  # which waits for nobody: it is started when the node is active
        play = ExecuteProcess(
            cmd=['ros2', 'bag', 'play', bag, '--clock', '40', '--disable-keyboard-controls',
                 '--delay', str(DISCOVERY)], **about_player)
        actions.append(RegisterEventHandler(OnStateTransition(
            target_lifecycle_node=node, goal_state='active', entities=[play], handle_once=True)))
    elif value['bag']:
        actions.append(Node(
            package=PACKAGE, executable='bag_player', arguments=[
                bag, '--clock', '--wait-for', *todo.topics()], **about_player))
    if boolean('rviz', value['rviz']):
        actions.append(_rviz(value, todo, namespace))
    return actions


def _typed(value: object) -> object:
    """A text stays one: launch would read `no` and `1` as YAML."""
    if isinstance(value, str):
        return ParameterValue(value, value_type=str)
    if isinstance(value, list) and isinstance(value[0], str):
        return ParameterValue(value, value_type=List[str])  # noqa: UP006
    return value


def _plays_rosbag2(player: str) -> bool:
    """Whether `ros2 bag play` plays the bag."""
    is_there = 'ros2bag' in get_packages_with_prefixes()
    if player == 'rosbag2' and not is_there:
        raise RuntimeError('player:=rosbag2: ros2 bag is not installed here. Install it (sudo apt '
                           'install ros-$ROS_DISTRO-rosbag2), or leave player away.')
    return player == 'rosbag2' or (
        not player and is_there and importlib.util.find_spec('rosbags') is None)


def _after_node(
    todo: Plan, bag: str, event: ProcessExited, context: LaunchContext,
) -> list[Action]:
    """The end of the node is that of its neighbours only if they were told so."""
    if context.is_shutdown:  # it ends because everything does
        return []
    if bag or not todo.respawn:  # images that were played meanwhile are lost
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
    report_failure('the player', event.returncode, context.asyncio_loop)
    reason = 'the bag has ended'
    shutdown = TimerAction(period=LAST_IMAGE, actions=[Shutdown(reason=reason)])
    return [LogInfo(msg=f'{reason}: stopping'), shutdown]


def _rviz(value: dict[str, str], todo: Plan, namespace: str) -> Action:
    """RViz in the namespace in which the relative topics of its configuration fit."""
    if 'rviz2' not in get_packages_with_prefixes():
        raise RuntimeError(
            'rviz:=true, but rviz2 is not installed here. Install it '
            '(sudo apt install ros-$ROS_DISTRO-rviz2), or leave rviz:=true out and look at '
            'depth/image_color with any viewer.')
    sim_time = {key: todo.parameters[key] for key in ('use_sim_time',) if key in todo.parameters}
    alone = todo.names[0] if len(todo.names) == 1 else ''
    frame = ['-f', value['fixed_frame']] if value['fixed_frame'] else []
    return Node(
        package='rviz2',
        executable='rviz2',
        name='rviz',
        namespace=f'{namespace}/{alone}'.replace('//', '/').rstrip('/'),
        arguments=['-d', str(rviz_file(todo.names, launch_config.log_dir)), *frame],
        parameters=[sim_time] if sim_time else [],
        remappings=todo.remappings(below=not alone),
        output='screen',
    )
