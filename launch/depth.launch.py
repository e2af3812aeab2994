# SPDX-License-Identifier: Apache-2.0
"""Start depth_node, and beside it, if asked for, the replay of a bag and RViz.

An empty argument means: as params_file says. So every default stays in one place. What the
arguments mean is worked out in depthclip_ros/launching.py. Defaults of the arguments do not
outlive this file: what is launched after it sees none of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import List  # noqa: UP035 (launch_ros does not know list[str])

from ament_index_python.packages import get_packages_with_prefixes
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
    DEFAULTS,
    MEANINGS,
    NODE,
    Plan,
    boolean,
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
LAST_IMAGE = 2.0  # seconds for the last image of a bag to become depth


def generate_launch_description() -> LaunchDescription:
    """Arguments first, so that --show-args lists them; the rest depends on their values.

    A launch file that includes this one, and then others, gets its configurations back as they
    were: else an argument of theirs would be set to this file's default of it.
    """
    return LaunchDescription([
        PushLaunchConfigurations(),
        OpaqueFunction(function=_strangers),
        *(DeclareLaunchArgument(name, default_value=DEFAULTS.get(name, ''), description=meaning)
          for name, meaning in MEANINGS.items()),
        OpaqueFunction(function=_actions),
        PopLaunchConfigurations(),
    ])


def _strangers(context: LaunchContext) -> list[Action]:
    return [LogInfo(msg=note) for note in strangers(
        context.launch_configurations, context.argv, MEANINGS, 'depth.launch.py')]


def _actions(context: LaunchContext) -> list[Action]:
    """Node, then bag and RViz where they are asked for."""
    value = {name: LaunchConfiguration(name).perform(context).strip() for name in MEANINGS}
    around = context.launch_configurations.get('ros_namespace', '')  # of PushRosNamespace
    namespace = full_namespace(around, value['namespace'])
    todo, profile = plan(value, namespace), large_images_profile(os.environ)
    parameters = {name: _typed(given) for name, given in todo.parameters.items()}
    actions: list[Action] = [*(LogInfo(msg=note) for note in todo.notes), Node(
        package=PACKAGE, executable=NODE, name=NODE, namespace=namespace,
        parameters=[*todo.params_files, *([parameters] if parameters else [])],
        ros_arguments=['--log-level', value['log_level']] if value['log_level'] else [],
        remappings=todo.remappings(), additional_env=profile, respawn=todo.respawn,
        respawn_delay=todo.respawn_delay, output='screen',
        on_exit=lambda event, context: _after_node(todo, value['bag'], event, context))]
    if value['bag']:
        actions.append(Node(
            package=PACKAGE, executable='bag_player', additional_env=profile, output='screen',
            arguments=[str(Path(value['bag']).expanduser()), '--clock', '--settle',
                       str(DISCOVERY), '--wait-for', *todo.topics()],
            on_exit=_after_player))
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


def _after_node(
    todo: Plan, bag: str, event: ProcessExited, context: LaunchContext,
) -> list[Action]:
    """The end of the node is that of its neighbours only if they were told so."""
    if context.is_shutdown:  # it ends because everything does
        return []
    if bag or not todo.respawn:  # images that were played meanwhile are lost
        report_failure(NODE, event.returncode, context.asyncio_loop)
    if todo.required:
        return [LogInfo(msg=f'{NODE} has ended: stopping'), Shutdown(reason=f'{NODE} has ended')]
    return [LogInfo(msg=f'{NODE} has ended; ' + (
        f'it is started again in {todo.respawn_delay:g} s' if todo.respawn else
        'all else goes on (required:=true ends it, respawn:=true starts the node again)'))]


def _after_player(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """Everything ends with the bag."""
    if context.is_shutdown:
        return []
    report_failure('the player', event.returncode, context.asyncio_loop)
    reason = 'the bag has ended'
    shutdown = TimerAction(period=LAST_IMAGE, actions=[Shutdown(reason=reason)])
    return [LogInfo(msg=f'{reason}: stopping'), shutdown]


def _rviz(value: dict[str, str], todo: Plan, namespace: str) -> Action:
    """RViz in the node's namespace, in which the topics of its configuration are relative.

    Launch itself looks for it when the node runs already, which it would leave behind.
    """
    if 'rviz2' not in get_packages_with_prefixes():
        raise RuntimeError(
            'rviz:=true: rviz2 is not installed here. Install it, with '
            f"'sudo apt install ros-{os.environ.get('ROS_DISTRO', '$ROS_DISTRO')}-rviz2' or as "
            'your ROS came, or look at depth/image_color with any other viewer.')
    sim_time = {key: todo.parameters[key] for key in ('use_sim_time',) if key in todo.parameters}
    frame = ['-f', value['fixed_frame']] if value['fixed_frame'] else []
    return Node(
        package='rviz2', executable='rviz2', name='rviz', output='screen', namespace=namespace,
        arguments=['-d', str(rviz_file(todo.names, launch_config.log_dir)), *frame],
        parameters=[sim_time] if sim_time else [], remappings=todo.remappings())
