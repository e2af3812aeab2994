# SPDX-License-Identifier: Apache-2.0
"""The node's ROS parameters, generated from the two configurations and validated by them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
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
from ..core.errors import ConfigError, DepthClipError, quoted
from .config import ROS_OWN, NodeConfig, with_demo_settings
from .parameter_services import ParameterServices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rcl_interfaces.msg import Parameter as ParameterMessage
    from rclpy.node import Node

    from ..core.estimator import DepthEstimator

# Read once, when the process starts; setting them later could have no effect.
READ_ONLY = ('autostart',)
# Of unknown parameters in a message, and the characters of one that are compared.
MOST_NAMED, LONGEST_NAME = 3, 80
# Characters of a reason that are kept where advice follows.
LONGEST_QUOTE = 200
# Must fit together in length, and how a reason begins that says they do not.
FITTING = {'tokens and bins': ('tokens', 'bins'),
           'scene_bins': ('tokens', 'bins', 'scenes', 'scene_bins')}
# What text features are made of.
WORDS = {'tokens', 'templates', 'scenes', 'scene_templates'}

HELP = """\
usage: depth_node [-h] [--ros-args [-p NAME:=VALUE ...] [--params-file FILE] [-r FROM:=TO ...]]

Depth from images by language (DepthCLIP), as a ROS 2 lifecycle node: image and camera_info in;
depth/image, depth/camera_info, points, depth/image_color, depth/words, depth/spread, depth/stddev,
scene and depth/scale out. What it does is told on /diagnostics (in a terminal: depthclip stats).
On first use it downloads the weights of the backbone (RN50: 244 MB), unless `weights` names a file
or `offline` is true.

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
    elif setting.name in FITTING['scene_bins']:
        result.additional_constraints = (
            'tokens and bins must be equally long, and scene_bins as long as scenes x tokens; to '
            'change their number set them in one request: `ros2 param load`, or the service '
            'set_parameters_atomically.')
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

    What can change while the model is loaded does so together or not at all: new words are
    accepted only once they are encoded, so that the parameters always tell what is in force.

    The node must have been made with `automatically_declare_parameters_from_overrides=True`: that
    is the one public way to see every value that files and the command line give, and so to
    refuse the misspelt ones; and with `start_parameter_services=False`.
    """

    def __init__(
        self,
        node: Node,
        is_configured: Callable[[], bool],
        estimator: Callable[[], DepthEstimator | None],
        apply: Callable[[DepthConfig], None],
    ) -> None:
        """Declare all settings.

        Attribute `overrides`: the given `qos_overrides.*`, without that prefix.

        Args:
            node: whose parameters to declare.
            is_configured: tells whether there is a model; then `reload` settings are fixed.
            estimator: gives the model, which encodes new words; None while it is being loaded.
            apply: called with the new settings after one that needs no reload has changed.

        Raises:
            ConfigError: unknown parameter, or a value that is wrong.

        """
        self._node = node
        self._is_configured = is_configured
        self._estimator = estimator
        self._apply = apply
        # Before the node's own topics declare what they were made with.
        self.overrides = given_overrides(node)
        self._declare(_given(node))
        node.add_on_set_parameters_callback(self._on_set)
        if hasattr(node, 'add_post_set_parameters_callback'):  # Iron and later
            node.add_post_set_parameters_callback(self._on_changed)
        ParameterServices(node, self)

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

    # What the services ask -----------------------------------------------------------------

    @staticmethod
    def is_coupled(name: str) -> bool:
        """Whether it may only fit together with others: what a loaded model can take over."""
        return name in SETTINGS and not SETTINGS[name].metadata['reload']

    def convert(self, messages: Sequence[ParameterMessage]) -> list[Parameter]:
        """Parameters of a request, with whole numbers made into the numbers that they mean.

        Raises:
            ConfigError: unknown name or type.

        """
        unknown = [m.name for m in messages if not self._node.has_parameter(m.name)]
        if unknown:
            raise ConfigError(_unknown_message(unknown))
        return [_with_doubles(_from_message(message)) for message in messages]

    def preparation(self, parameters: Sequence[Parameter]) -> Callable[[], object] | None:
        """What to run, on any thread, before these are set; None if there is nothing to do.

        It raises `ConfigError` or `WeightsError` where they cannot be set.
        """
        changes = _changes(parameters)
        try:
            depth, node = split({**self._values(), **changes})
        except ConfigError:
            return None  # and they will be refused with that reason
        estimator = self._estimator()
        if estimator is None or not self._is_configured() or estimator.is_encoded(depth) \
                or self._fixed({**depth.to_dict(), **node.to_dict()}, changes):
            return None
        return functools.partial(estimator.encode, depth)

    # Changes -------------------------------------------------------------------------------

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Accept or refuse a set of changes as a whole, with the reason."""
        changes = _changes(parameters)
        try:
            self._check_own(parameters)
            depth, node = split({**self._values(), **changes})
            fixed = self._fixed({**depth.to_dict(), **node.to_dict()}, changes)
            if fixed:
                raise ConfigError(self._only_unconfigured(', '.join(fixed)))
            if self._is_configured() and WORDS & changes.keys():
                self._encode(depth)
            if self._is_configured() and changes:
                self._check_calibration(depth, read='calibration' in changes)
        except DepthClipError as error:
            return SetParametersResult(
                successful=False, reason=self._with_hint(str(error), changes))
        if changes and not hasattr(self._node, 'add_post_set_parameters_callback'):  # Humble
            self._apply(depth)
        return SetParametersResult(successful=True)

    def _on_changed(self, parameters: Sequence[Parameter]) -> None:
        if _changes(parameters):
            self._apply(self.read()[0])

    def _encode(self, config: DepthConfig) -> None:
        """Have the text features of new words; the services have seen to that before."""
        estimator = self._estimator()
        if estimator is None:
            raise ConfigError(f'{" and ".join(sorted(WORDS))}: cannot change while the model is '
                              'being loaded; try again in a while.')
        estimator.encode(config)

    def _check_calibration(self, config: DepthConfig, *, read: bool) -> None:
        """Refuse a calibration that is unusable, or does not belong to the other settings."""
        estimator = self._estimator()
        if estimator is not None:
            estimator.read_calibration(config, again=read)
        elif read:
            raise ConfigError('calibration: cannot change while the model is being loaded; try '
                              'again in a while.')

    def _fixed(self, wanted: Mapping[str, Any], changes: Iterable[str]) -> list[str]:
        """Names of changed settings that a loaded model cannot follow."""
        if not self._is_configured():
            return []
        depth, node = self.read()
        now = {**depth.to_dict(), **node.to_dict()}
        return [name for name in changes
                if SETTINGS[name].metadata['reload'] and wanted[name] != now[name]]

    def _check_own(self, parameters: Sequence[Parameter]) -> None:
        """Refuse what rclpy would let pass without effect: it reads these once."""
        for parameter in parameters:
            name = parameter.name
            if name in SETTINGS or not self._node.has_parameter(name):  # being declared
                continue
            if self._node.get_parameter(name).value == parameter.value:
                continue
            if name.startswith('qos_overrides.'):
                if self._is_configured():
                    raise ConfigError(self._only_unconfigured(name))
                check_policy(name, name.rpartition('.')[2], _plain(parameter.value))
            elif name == 'start_type_description_service':
                raise ConfigError(f'{name}: is read when the node starts, and cannot be set.')

    def _only_unconfigured(self, names: str) -> str:
        node = self._node.get_fully_qualified_name()
        return (f'{names}: cannot change while the model is loaded. First: ros2 lifecycle set '
                f'{node} deactivate (if active) and cleanup; set it; then configure and activate.')

    def _with_hint(self, reason: str, changes: Mapping[str, Any]) -> str:
        """Say how to change the number of tokens, bins or scenes, to who did not set all."""
        together: tuple[str, ...] = next(
            (names for start, names in FITTING.items() if reason.startswith(start)), ())
        if 0 < len({*together} & {*changes}) < len(together):
            node = self._node.get_fully_qualified_name()
            if len(reason) > LONGEST_QUOTE:  # room for what to do
                reason = f'{reason[:LONGEST_QUOTE - 1]}…'
            reason += (f' Set {", ".join(together)} in one request: `ros2 param load {node} FILE` '
                       f'with all in the file, or the service {node}/set_parameters_atomically; '
                       '`ros2 param set` cannot.')
        return reason

    def forget_overrides(self) -> None:
        """Remove what rclpy has declared for the quality of service of topics that are gone."""
        for suffix in _declared(self._node, 'qos_overrides').keys() - self.overrides.keys():
            name = f'qos_overrides.{suffix}'
            self._node.describe_parameter(name).read_only = False
            self._node.undeclare_parameter(name)


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
        check_policy(name, policy, value)


def check_policy(name: str, policy: str, value: Any) -> None:
    """Refuse a value that a policy of quality of service does not have.

    Args:
        name: of the parameter.
        policy: one of `QOS_POLICIES`; others are let pass.
        value: the parameter's.

    Raises:
        ConfigError: the policy has other values.

    """
    choices = QOS_POLICIES.get(policy, ())
    if policy == 'depth' and not (type(value) is int and 0 < value < 2**31):
        raise ConfigError(f'{name}: {quoted(value)} is not a whole number above 0.')
    if choices and value not in choices:
        raise ConfigError(f'{name}: {quoted(value)} is none of {", ".join(choices)}.')


def _given(node: Node) -> dict[str, Any]:
    """Values from parameter files and the command line, without ROS's own."""
    declared = _declared(node, '')
    for name in ('use_sim_time', 'start_type_description_service'):
        if type(declared.get(name, False)) is not bool:
            raise ConfigError(f'{name}: {quoted(declared[name])} is not true or false.')
    given = {name: value for name, value in declared.items() if not ROS_OWN.match(name)}
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown:
        raise ConfigError(_unknown_message(unknown))
    return given


def _declared(node: Node, prefix: str) -> dict[str, Any]:
    parameters: dict[str, Any] = node.get_parameters_by_prefix(prefix)
    return {name: _plain(parameter.value) for name, parameter in parameters.items()}


def _unknown_message(unknown: Sequence[str]) -> str:
    """Say that parameters do not exist, and which do."""
    def guess(name: str) -> str:
        close = difflib.get_close_matches(name[:LONGEST_NAME], SETTINGS, 1)
        return f'{quoted(name)} (did you mean {close[0]!r}?)' if close else quoted(name)
    named = ', '.join(map(guess, unknown[:MOST_NAMED]))
    more = f' and {len(unknown) - MOST_NAMED} more' if len(unknown) > MOST_NAMED else ''
    return (f'unknown parameter{"s" if len(unknown) > 1 else ""} {named}{more}; '
            f'known are: {", ".join(SETTINGS)}.')


def _changes(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Plain values of the settings among some parameters."""
    return {p.name: _plain(p.value) for p in parameters if p.name in SETTINGS}


def _from_message(message: ParameterMessage) -> Parameter:
    try:
        parameter: Parameter = Parameter.from_parameter_msg(message)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f'{quoted(message.name)}: its value is of type {message.value.type}, '
                          'which ROS does not know; see rcl_interfaces/msg/ParameterType.',
                          ) from error
    return parameter


def _with_doubles(parameter: Parameter) -> Parameter:
    """Let `ros2 param set NODE temperature 1` mean 1.0, as it does in a file."""
    name = parameter.name
    kind = str(SETTINGS[name].type) if name in SETTINGS else ''
    if kind == 'float' and parameter.type_ == Parameter.Type.INTEGER:
        return Parameter(name, value=float(_plain(parameter.value)))
    if 'float' in kind and parameter.type_ == Parameter.Type.INTEGER_ARRAY:
        return Parameter(name, value=[float(number) for number in _plain(parameter.value)])
    return parameter


def _plain(value: Any) -> Any:
    """Lists for rclpy's arrays and tuples."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else list(value)
