# SPDX-License-Identifier: Apache-2.0
"""Start depth_node, and on request the replay of a bag and RViz.

depthclip_ros/launch_support/launching.py makes the plan from the arguments.
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
from depthclip_ros.launch_support.launching import (
    MEANINGS,
    NODE,
    Plan,
    on_exit,
    plan_launch,
    unknown_arguments,
)
from depthclip_ros.launch_support.rviz import rviz_file
from depthclip_ros.resources import large_images_profile

PACKAGE = 'depthclip_ros'
# Seconds after which discovery of a new node is complete: Fast DDS announces itself every 3 s. The
# time in which the network is loaded counts.
DISCOVERY = 3.5


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, which --show-args lists, and start what their values request.

    The configurations of a launch file that includes this one are restored at the end: else other
    files that it includes would get this file's defaults for arguments of the same name.
    """
    return LaunchDescription([
        PushLaunchConfigurations(),
        OpaqueFunction(function=_check_arguments),
        *(DeclareLaunchArgument(name, default_value='', description=meaning)
          for name, meaning in MEANINGS.items()),
        OpaqueFunction(function=_actions),
        PopLaunchConfigurations(),
    ])


def _check_arguments(context: LaunchContext) -> list[Action]:
    """Warn of unknown arguments, and refuse misspelt ones."""
    typed = [text.partition(':=')[0] for text in context.argv]
    return [LogInfo(msg=note) for note in unknown_arguments(
        context.launch_configurations, typed, MEANINGS, 'depth.launch.py')]


def _actions(context: LaunchContext) -> list[Action]:
    """Check everything, then start the node, and on request the bag player and RViz."""
    texts = {name: LaunchConfiguration(name).perform(context).strip() for name in MEANINGS}
    outer_namespace = context.launch_configurations.get('ros_namespace')  # of PushRosNamespace
    namespace = make_namespace_absolute(prefix_namespace(outer_namespace, texts['namespace']))
    plan, profile = plan_launch(texts, namespace), large_images_profile(os.environ)
    for topic in plan.topics:
        # Else the node ends with rcl's 'error not set'.
        validate_full_topic_name(expand_topic_name(topic, NODE, namespace))
    # Launch parses each text of a list as YAML, where 'no' is false; it keeps a whole list.
    parameters = {name: TextSubstitution(text=yaml.safe_dump(value))
                  for name, value in plan.parameters.items()}
    common = {'namespace': namespace, 'additional_env': profile, 'output': 'screen'}
    actions = [*(LogInfo(msg=note) for note in plan.notes), Node(
        package=PACKAGE, executable=NODE, name=NODE, **common, remappings=plan.remappings,
        parameters=[*plan.params_files, *([parameters] if parameters else [])],
        ros_arguments=['--log-level', plan.launch.log_level] if plan.launch.log_level else [],
        respawn=plan.launch.respawn, respawn_delay=plan.launch.respawn_delay,
        on_exit=lambda event, context: on_exit(NODE, event, context, _after_node(plan)))]
    if plan.launch.bag:
        actions.append(Node(
            package=PACKAGE, executable='bag_player', **common, arguments=[
                str(user_path(plan.launch.bag)), '--clock', '--settle', str(DISCOVERY),
                '--wait-for', *plan.topics, '--wait-for-node', f'{namespace.rstrip("/")}/{NODE}'],
            on_exit=lambda event, context: on_exit('the player', event, context, [
                LogInfo(msg='the bag has ended: stopping'),
                Shutdown(reason='the bag has ended')])))
    if plan.launch.rviz:
        actions.append(Node(
            package='rviz2', executable='rviz2', name='rviz', **common, arguments=_rviz(plan),
            remappings=plan.remappings, parameters=[
                {name: value} for name, value in plan.parameters.items() if name == 'use_sim_time'
            ]))
    return actions


def _after_node(plan: Plan) -> list[Action]:
    """Return the actions after the node's end, a shutdown of the launch with `required`."""
    if plan.launch.required:
        return [LogInfo(msg=f'{NODE} has ended: stopping'), Shutdown(reason=f'{NODE} has ended')]
    return [LogInfo(msg=f'{NODE} has ended; ' + (
        f'it is started again in {plan.launch.respawn_delay:g} s' if plan.launch.respawn else
        'required:=true ends all else with it, respawn:=true starts it again'))]


def _rviz(plan: Plan) -> list[str]:
    """Return RViz's arguments, after a check that it is installed, before the node starts."""
    if 'rviz2' not in get_packages_with_prefixes():
        raise RuntimeError(
            'rviz:=true: rviz2 is not installed here. Install it, with '
            f"'sudo apt install ros-{os.environ.get('ROS_DISTRO', '$ROS_DISTRO')}-rviz2' or as "
            'your ROS came, or look at depth/image_color with any other viewer.')
    frame = plan.launch.fixed_frame
    return ['-d', str(rviz_file(plan.names, launch_config.log_dir)),
            *(['-f', frame] if frame else [])]
