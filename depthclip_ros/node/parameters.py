# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls, allow-subclassing-any
# (rclpy's services and parameters are typed in part only)
"""The node's ROS parameters, generated from the two configurations and validated by them."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rcl_interfaces.msg import Parameter as ParameterMessage
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_service import ParameterService
from rclpy.task import Future

from ..core.config import DepthConfig, describe
from ..core.errors import ConfigError, DepthClipError, did_you_mean, quoted
from ..messages.config import ROS_OWN, NodeConfig, split, with_demo_settings
from .pipeline import Pipeline

READ_ONLY = ('autostart',)  # read once, when the process starts
MOST_NAMED = 3  # of unknown parameters in a message
LONGEST_REASON = 500  # characters; who sets a megabyte need not get it back

SETTINGS: dict[str, dataclasses.Field[Any]] = {
    setting.name: setting
    for config in (DepthConfig, NodeConfig) for setting in dataclasses.fields(config)}
COUPLED = {'tokens', 'bins', 'scenes', 'scene_bins'}  # whose lengths depend on each other
WORDS = {'tokens', 'templates', 'scenes', 'scene_templates'}  # what text features are made of


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
    return '\n'.join([
        'usage: depth_node --ros-args [--params-file FILE] [-p NAME:=VALUE] [-r TOPIC:=TOPIC]', '',
        'DepthCLIP: images in, depth out. Parameters:',
        *(f'  {name}: {setting.default!r}\n      {describe(setting)}'
          for name, setting in SETTINGS.items()), ''])


class Parameters:
    """Declares the settings on a node, and keeps them valid as a whole.

    The node must have been made with `automatically_declare_parameters_from_overrides=True`: that
    is the one public way to see every value that files and the command line give, and so to
    refuse the misspelt ones; and with `start_parameter_services=False`.
    """

    def __init__(self, node: Node, pipeline: Callable[[], Pipeline | None]) -> None:
        """Declare all settings; `pipeline` gives what follows them, None while unconfigured.

        Raises:
            ConfigError: unknown parameter, or a value that is wrong.

        """
        self._node, self._pipeline = node, pipeline
        parameters: dict[str, Any] = node.get_parameters_by_prefix('')
        given = {name: _plain(parameter.value) for name, parameter in parameters.items()
                 if not ROS_OWN.match(name)}
        unknown = sorted(set(given) - set(SETTINGS))
        if unknown:
            raise ConfigError(_unknown_message(unknown))
        depth, config = split(given)
        depth, note = with_demo_settings(depth, config.weights, given)
        if note:
            node.get_logger().info(note)
        for name, value in {**depth.to_dict(), **config.to_dict()}.items():
            # Declared automatically, with the type of the given value and without a description.
            if node.has_parameter(name):
                node.undeclare_parameter(name)
            node.declare_parameter(name, value, descriptor(SETTINGS[name]), ignore_override=True)
        node.add_on_set_parameters_callback(self._on_set)
        self._services = _Services(node, self._encode)

    def read(self, changes: Mapping[str, Any] | None = None) -> tuple[DepthConfig, NodeConfig]:
        """Both configurations as the parameters stand now, or with changes."""
        values = {name: _plain(self._node.get_parameter(name).value) for name in SETTINGS}
        return split({**values, **(changes or {})})

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Accept or refuse a set of changes as a whole, with the reason."""
        try:
            self._accept({p.name: _plain(p.value) for p in parameters if p.name in SETTINGS})
        except DepthClipError as error:
            return SetParametersResult(successful=False, reason=str(error)[:LONGEST_REASON])
        return SetParametersResult(successful=True)

    def _accept(self, changes: Mapping[str, Any]) -> None:
        """Let changes count from the next batch on; raise what is wrong with them."""
        pipeline, name = self._pipeline(), self._node.get_fully_qualified_name()
        if not changes:
            return
        try:
            depth, node = self.read(changes)
        except ConfigError as error:
            if ' but ' not in str(error) or not changes.keys() & COUPLED:
                raise
            raise ConfigError(
                f'{str(error)[:200]} Set all of them in one request: `ros2 param load {name} '
                f'FILE`, or the service {name}/set_parameters_atomically.') from error
        if pipeline is None:
            return
        wanted = {**depth.to_dict(), **node.to_dict()}
        now = {name: value for config in self.read() for name, value in config.to_dict().items()}
        fixed = [setting for setting in changes
                 if SETTINGS[setting].metadata['reload'] and wanted[setting] != now[setting]]
        if fixed:
            raise ConfigError(
                f'{", ".join(fixed)}: cannot change while the model is loaded. First: ros2 '
                f'lifecycle set {name} deactivate (if active) and cleanup; set it; then configure '
                'and activate.')
        late = sorted((WORDS | {'calibration'}) & changes.keys())
        if pipeline.estimator is not None:
            pipeline.estimator.prepare(depth)  # new words, which the services have done before
        elif late:
            raise ConfigError(f'{", ".join(late)}: cannot change while the model is being loaded; '
                              'try again in a while.')
        pipeline.config = depth  # between two batches

    def _encode(self, parameters: Sequence[Parameter]) -> None:
        """Encode the words that parameters will make, if they can be set at all."""
        pipeline = self._pipeline()
        if pipeline is not None and pipeline.estimator is not None:
            pipeline.estimator.prepare(self.read(
                {p.name: _plain(p.value) for p in parameters if p.name in SETTINGS})[0])


class _Services(ParameterService):
    """rclpy's parameter services, which set what belongs together as one, and answer always.

    All of one request is accepted or refused as one. `ros2 param load` sends one; rclpy's own
    service sets one parameter of it after the other, so that new metres could be taken and their
    words refused.
    """

    def __init__(self, node: Node, prepare: Callable[[Sequence[Parameter]], None]) -> None:
        """Create the services; `prepare` does beforehand, on a thread, what takes long."""
        self._prepare = prepare
        super().__init__(node)

    async def _set_parameters_callback(self, request: Any, response: Any) -> Any:
        result, names = await self._set(request.parameters), [p.name for p in request.parameters]
        reason = '' if result.successful else f'not set, as all of this request: see {names[0]}.'
        other = SetParametersResult(
            successful=result.successful, reason=reason[:LONGEST_REASON])
        response.results = [result, *[other] * (len(names) - 1)][:len(names)]
        return response

    async def _set_parameters_atomically_callback(self, request: Any, response: Any) -> Any:
        response.result = await self._set(request.parameters)
        return response

    async def _set(self, parameters: Sequence[ParameterMessage]) -> SetParametersResult:
        """Set all of them or none; a refusal says why."""
        node = self._get_node()
        unknown = [p.name for p in parameters if not node.has_parameter(p.name)]
        if unknown:
            return SetParametersResult(reason=_unknown_message(unknown))
        try:
            wanted = [_with_doubles(Parameter.from_parameter_msg(p)) for p in parameters]
        except (KeyError, TypeError, ValueError):  # would end rclpy's own service
            told = ', '.join(f'{quoted(p.name)} of type {p.value.type}' for p in parameters)
            return SetParametersResult(
                reason=f'a value is of a type that ROS does not know: {told}'[:LONGEST_REASON])
        # What is read-only may well be "set" to what it is, as the file of a dump does.
        changed = [p for p in wanted if not node.describe_parameter(p.name).read_only
                   or _plain(node.get_parameter(p.name).value) != _plain(p.value)]
        if WORDS & {p.name for p in changed}:
            await self._aside(changed)
        result = node.set_parameters_atomically(changed)
        result.reason = result.reason[:LONGEST_REASON]
        return result

    def _aside(self, parameters: Sequence[Parameter]) -> Future:
        """Prepare on a thread, while other callbacks go on."""
        done, executor = Future(), self._get_node().executor

        def run() -> None:
            with contextlib.suppress(Exception):  # setting them tells what is wrong
                self._prepare(parameters)
            done.set_result(None)
            with contextlib.suppress(Exception):  # the process may be ending
                executor.wake()
        # Not waited for at the end of the process: reading large weights takes seconds.
        threading.Thread(target=run, name='words', daemon=True).start()
        return done


def _unknown_message(unknown: Sequence[str]) -> str:
    """Say that parameters do not exist, and which were probably meant."""
    names = unknown[:MOST_NAMED]
    return (f'unknown parameter {quoted(", ".join(names))}; {did_you_mean(names, list(SETTINGS))}'
            'config/depth.yaml has those that there are.')


def _with_doubles(parameter: Parameter) -> Parameter:
    """Let `ros2 param set NODE temperature 1` mean 1.0, as it does in a file."""
    name, value = parameter.name, _plain(parameter.value)
    if name in SETTINGS and 'float' in str(SETTINGS[name].type):
        if parameter.type_ == Parameter.Type.INTEGER:
            return Parameter(name, value=float(value))
        if parameter.type_ == Parameter.Type.INTEGER_ARRAY:
            return Parameter(name, value=[float(number) for number in value])
    return parameter


def _plain(value: Any) -> Any:
    """Lists for rclpy's arrays and tuples."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else list(value)
