# SPDX-License-Identifier: Apache-2.0
"""The node's ROS parameters, generated from the two configurations and validated by them."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.parameter import Parameter
from rclpy.qos import QoSHistoryPolicy

from ..core.config import DepthConfig, describe
from ..core.errors import ConfigError
from .config import ROS_OWN, NodeConfig, with_demo_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rclpy.node import Node

# Read once, when the process starts; setting them later could have no effect.
READ_ONLY = ('autostart',)

HELP = """\
usage: depth_node [-h] [--ros-args [-p NAME:=VALUE ...] [--params-file FILE] [-r FROM:=TO ...]]

Depth from images by language (DepthCLIP), as a ROS 2 lifecycle node: image and camera_info in;
depth/image, depth/camera_info, points, depth/image_color and depth/spread out. What it does is
told on /diagnostics (in a terminal: depthclip stats). On first use it downloads the weights of
the backbone (RN50: 244 MB), unless `weights` names a file or `offline` is true.

Parameters, with their defaults:
"""

SETTINGS: dict[str, dataclasses.Field[Any]] = {
    setting.name: setting
    for config in (DepthConfig, NodeConfig) for setting in dataclasses.fields(config)
}

# What QoSOverridingOptions.with_default_policies() declares, and the values that rclpy knows.
QOS_POLICIES: dict[str, tuple[str, ...]] = {
    'history': tuple(p.name.lower() for p in QoSHistoryPolicy if p.name != 'UNKNOWN'),
    'depth': (),
    # best_available is newer than Humble; on subscriptions it is this package's own doing.
    'reliability': ('reliable', 'best_effort', 'system_default', 'best_available'),
}


def descriptor(setting: dataclasses.Field[Any]) -> ParameterDescriptor:
    """Describe one setting as `ros2 param describe` shows it."""
    about = setting.metadata
    result = ParameterDescriptor(
        name=setting.name, description=describe(setting), read_only=setting.name in READ_ONLY)
    if about['reload'] and not result.read_only:
        result.additional_constraints = 'Can only change while the node is unconfigured.'
    if about['minimum'] is not None and setting.type == 'int':
        result.integer_range = [
            IntegerRange(from_value=int(about['minimum']), to_value=int(about['maximum']))]
    elif about['minimum'] is not None:
        result.floating_point_range = [FloatingPointRange(
            from_value=float(about['minimum']), to_value=float(about['maximum']))]
    return result


def help_text() -> str:
    """What `depth_node --help` says: usage, and every parameter with its default."""
    lines = [HELP]
    for name, setting in SETTINGS.items():
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        lines += [f'  {name}: {default!r}', f'      {describe(setting)}']
    return '\n'.join(lines) + '\n'


def split(values: Mapping[str, Any]) -> tuple[DepthConfig, NodeConfig]:
    """Build both configurations from one set of values; what is missing keeps its default.

    Raises:
        ConfigError: a value is wrong, or values do not fit each other.

    """
    return (
        DepthConfig.from_dict({k: v for k, v in values.items() if k in DepthConfig.names()}),
        NodeConfig.from_dict({k: v for k, v in values.items() if k in NodeConfig.names()}),
    )


class Parameters:
    """Declares the settings on a node, and keeps them valid as a whole.

    The node must have been made with `automatically_declare_parameters_from_overrides=True`: that
    is the one public way to see every value that files and the command line give, and so to
    refuse the misspelt ones.
    """

    def __init__(
        self,
        node: Node,
        is_configured: Callable[[], bool],
        apply: Callable[[DepthConfig], None],
    ) -> None:
        """Declare all settings.

        Attribute `overrides`: the given `qos_overrides.*`, without that prefix.

        Args:
            node: whose parameters to declare.
            is_configured: tells whether the model is loaded; then `reload` settings are fixed.
            apply: called with the new settings after one that needs no reload has changed.

        Raises:
            ConfigError: unknown parameter, or a value that is wrong.

        """
        self._node = node
        self._is_configured = is_configured
        self._apply = apply
        # Before the node's own topics declare what they were made with.
        self.overrides = given_overrides(node)
        self._declare(_given(node))
        node.add_on_set_parameters_callback(self._on_set)
        if hasattr(node, 'add_pre_set_parameters_callback'):  # Iron and later
            node.add_pre_set_parameters_callback(_integers_to_doubles)
            node.add_post_set_parameters_callback(self._on_changed)

    def read(self) -> tuple[DepthConfig, NodeConfig]:
        """Both configurations as the parameters stand now."""
        return split(self._values())

    def _declare(self, given: Mapping[str, Any]) -> None:
        depth, node = split(given)
        depth, note = with_demo_settings(depth, node.weights)
        if note:
            self._node.get_logger().info(note)
        for name, value in {**depth.to_dict(), **node.to_dict()}.items():
            # Declared automatically, with the type of the given value and without a description.
            if self._node.has_parameter(name):
                self._node.undeclare_parameter(name)
            self._node.declare_parameter(
                name, value, descriptor(SETTINGS[name]), ignore_override=True)

    def _values(self) -> dict[str, Any]:
        return {name: _plain(self._node.get_parameter(name).value) for name in SETTINGS}

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Accept or refuse a set of changes as a whole, with the reason."""
        changes = {p.name: _plain(p.value) for p in parameters if p.name in SETTINGS}
        try:
            depth, node = split({**self._values(), **changes})
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=_with_hint(str(error), changes))
        fixed = self._fixed({**depth.to_dict(), **node.to_dict()}, changes)
        if fixed:
            name = self._node.get_fully_qualified_name()
            return SetParametersResult(successful=False, reason=(
                f'{", ".join(fixed)}: cannot change while the model is loaded. '
                f'First: ros2 lifecycle set {name} deactivate (if active) and cleanup; '
                f'set it; then configure and activate.'))
        if changes and not hasattr(self._node, 'add_post_set_parameters_callback'):  # Humble
            self._apply(depth)
        return SetParametersResult(successful=True)

    def _fixed(self, wanted: Mapping[str, Any], changes: Iterable[str]) -> list[str]:
        """Names of changed settings that a loaded model cannot follow."""
        if not self._is_configured():
            return []
        depth, node = self.read()
        now = {**depth.to_dict(), **node.to_dict()}
        return [name for name in changes
                if SETTINGS[name].metadata['reload'] and wanted[name] != now[name]]

    def _on_changed(self, parameters: Sequence[Parameter]) -> None:
        if any(parameter.name in SETTINGS for parameter in parameters):
            self._apply(self.read()[0])


def given_overrides(node: Node) -> dict[str, Any]:
    """The `qos_overrides.*` of a node that has no topics of its own yet, without that prefix."""
    return _declared(node, 'qos_overrides')


def check_qos_overrides(
    overrides: Mapping[str, Any], publishers: Iterable[str], subscriptions: Iterable[str],
) -> None:
    """Refuse `qos_overrides.*` parameters that no topic of the node would take up.

    Args:
        overrides: those that files and the command line give, without that prefix.
        publishers: resolved topics that the node publishes.
        subscriptions: resolved topics that it subscribes to.

    Raises:
        ConfigError: misspelt topic or policy, or a value that the policy does not have.

    """
    known = {f'{topic}.publisher' for topic in publishers}
    known |= {f'{topic}.subscription' for topic in subscriptions}
    for suffix, value in overrides.items():
        name = f'qos_overrides.{suffix}'
        entity, _, policy = suffix.rpartition('.')
        if entity not in known or policy not in QOS_POLICIES:
            raise ConfigError(
                f'{name}: no such setting; write qos_overrides.TOPIC.POLICY with one of the '
                f'topics {", ".join(sorted(known))} and one of the policies '
                f'{", ".join(QOS_POLICIES)}.')
        choices = QOS_POLICIES[policy]
        if policy == 'depth' and not (type(value) is int and value > 0):
            raise ConfigError(f'{name}: {value!r} is not a whole number above 0.')
        if choices and value not in choices:
            raise ConfigError(f'{name}: {value!r} is none of {", ".join(choices)}.')


def _given(node: Node) -> dict[str, Any]:
    """Values from parameter files and the command line, without ROS's own."""
    declared = _declared(node, '')
    if type(declared.get('use_sim_time', False)) is not bool:
        raise ConfigError(
            f'use_sim_time: {declared["use_sim_time"]!r} is not true or false.')
    given = {name: value for name, value in declared.items() if not ROS_OWN.match(name)}
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown:
        raise ConfigError(_unknown_message(unknown))
    return given


def _declared(node: Node, prefix: str) -> dict[str, Any]:
    parameters: dict[str, Any] = node.get_parameters_by_prefix(prefix)
    return {name: _plain(parameter.value) for name, parameter in parameters.items()}


def _unknown_message(unknown: Sequence[str]) -> str:
    guesses = {name: difflib.get_close_matches(name, SETTINGS, 1) for name in unknown}
    named = ', '.join(
        f"{name} (did you mean '{guess[0]}'?)" if guess else name
        for name, guess in guesses.items())
    return (f'unknown parameter{"s" if len(unknown) > 1 else ""} {named}; '
            f'known are: {", ".join(SETTINGS)}.')


def _with_hint(reason: str, changes: Mapping[str, Any]) -> str:
    if len(changes) == 1 and not {'tokens', 'bins'}.isdisjoint(changes):
        reason += ' Set tokens and bins together: service set_parameters_atomically.'
    return reason


def _integers_to_doubles(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Let `ros2 param set NODE temperature 1` mean 1.0, as it does in a file."""
    result = []
    for parameter in parameters:
        kind = str(SETTINGS[parameter.name].type) if parameter.name in SETTINGS else ''
        if kind == 'float' and parameter.type_ == Parameter.Type.INTEGER:
            result.append(Parameter(parameter.name, value=float(_plain(parameter.value))))
        elif 'float' in kind and parameter.type_ == Parameter.Type.INTEGER_ARRAY:
            numbers = [float(number) for number in _plain(parameter.value)]
            result.append(Parameter(parameter.name, value=numbers))
        else:
            result.append(parameter)
    return result


def _plain(value: Any) -> Any:
    """Lists for rclpy's arrays and tuples."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else list(value)
