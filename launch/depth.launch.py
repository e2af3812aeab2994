# SPDX-License-Identifier: Apache-2.0
"""Start depth_node, and beside it, if asked for, the replay of a bag and RViz.

What the arguments mean is worked out in depthclip_ros/launching.py.
"""

from __future__ import annotations

import os

import yaml
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
)
from launch.logging import launch_config
from launch.substitutions import LaunchConfiguration, TextSubstitution
from launch_ros.actions import Node
from launch_ros.utilities import make_namespace_absolute, prefix_namespace
from rclpy.expand_topic_name import expand_topic_name
from rclpy.validate_full_topic_name import validate_full_topic_name

from depthclip_ros.core.files import user_path
from depthclip_ros.launching import MEANINGS, NODE, Plan, after, plan, strangers
from depthclip_ros.resources import large_images_profile
from depthclip_ros.rviz import rviz_file

PACKAGE = 'depthclip_ros'
# Seconds after which a new node has found, and has been found by, all that listen: Fast DDS
# announces what is there every 3 s. The time in which the network is loaded counts.
DISCOVERY = 3.5


def generate_launch_description() -> LaunchDescription:
    """Arguments first, so that --show-args lists them; the rest depends on their values.

    A launch file that includes this one, and then others, gets its configurations back as they
    were: else an argument of theirs would be set to this file's default of it.
    """
    return LaunchDescription([
        PushLaunchConfigurations(),
        OpaqueFunction(function=_strangers),
        *(DeclareLaunchArgument(name, default_value='', description=meaning)
          for name, meaning in MEANINGS.items()),
        OpaqueFunction(function=_actions),
        PopLaunchConfigurations(),
    ])


def _strangers(context: LaunchContext) -> list[Action]:
    typed = [text.partition(':=')[0] for text in context.argv]
    return [LogInfo(msg=note) for note in strangers(
        context.launch_configurations, typed, MEANINGS, 'depth.launch.py')]


def _actions(context: LaunchContext) -> list[Action]:
    """Node, then bag and RViz where they are asked for; nothing starts before all is checked."""
    value = {name: LaunchConfiguration(name).perform(context).strip() for name in MEANINGS}
    around = context.launch_configurations.get('ros_namespace')  # of PushRosNamespace
    namespace = make_namespace_absolute(prefix_namespace(around, value['namespace']))
    todo, profile = plan(value, namespace), large_images_profile(os.environ)
    for topic in todo.topics:
        # Else the node ends with rcl's 'error not set'.
        validate_full_topic_name(expand_topic_name(topic, NODE, namespace))
    # Launch reads each of a list of texts as YAML, so that 'no' would be none: a whole it takes.
    parameters = {name: TextSubstitution(text=yaml.safe_dump(given))
                  for name, given in todo.parameters.items()}
    common = {'namespace': namespace, 'additional_env': profile, 'output': 'screen'}
    actions = [*(LogInfo(msg=note) for note in todo.notes), Node(
        package=PACKAGE, executable=NODE, name=NODE, **common, remappings=todo.remappings,
        parameters=[*todo.params_files, *([parameters] if parameters else [])],
        ros_arguments=['--log-level', todo.launch.log_level] if todo.launch.log_level else [],
        respawn=todo.launch.respawn, respawn_delay=todo.launch.respawn_delay,
        on_exit=lambda event, context: after(NODE, event, context, _after_node(todo)))]
    if todo.launch.bag:
        actions.append(Node(
            package=PACKAGE, executable='bag_player', **common, arguments=[
                str(user_path(todo.launch.bag)), '--clock', '--settle', str(DISCOVERY),
                '--wait-for', *todo.topics, '--wait-for-node', f'{namespace.rstrip("/")}/{NODE}'],
            on_exit=lambda event, context: after('the player', event, context, [
                LogInfo(msg='the bag has ended: stopping'),
                Shutdown(reason='the bag has ended')])))
    if todo.launch.rviz:
        actions.append(Node(
            package='rviz2', executable='rviz2', name='rviz', **common, arguments=_rviz(todo),
            remappings=todo.remappings, parameters=[
                {name: value} for name, value in todo.parameters.items() if name == 'use_sim_time'
            ]))
    return actions


def _after_node(todo: Plan) -> list[Action]:
    """The end of the node is that of its neighbours only if they were told so."""
    if todo.launch.required:
        return [LogInfo(msg=f'{NODE} has ended: stopping'), Shutdown(reason=f'{NODE} has ended')]
    return [LogInfo(msg=f'{NODE} has ended; ' + (
        f'it is started again in {todo.launch.respawn_delay:g} s' if todo.launch.respawn else
        'required:=true ends all else with it, respawn:=true starts it again'))]


def _rviz(todo: Plan) -> list[str]:
    """Arguments of RViz, which launch itself would look for when the node runs already."""
    if 'rviz2' not in get_packages_with_prefixes():
        raise RuntimeError(
            'rviz:=true: rviz2 is not installed here. Install it, with '
            f"'sudo apt install ros-{os.environ.get('ROS_DISTRO', '$ROS_DISTRO')}-rviz2' or as "
            'your ROS came, or look at depth/image_color with any other viewer.')
    frame = todo.launch.fixed_frame
    return ['-d', str(rviz_file(todo.names, launch_config.log_dir)),
            *(['-f', frame] if frame else [])]
