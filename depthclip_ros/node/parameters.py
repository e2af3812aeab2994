# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
# (rclpy's parameters are typed in part only)
"""The node's ROS parameters, generated from the two configurations and validated by them.

A value that is wrong by itself is refused. A value that needs another one to fit (tokens and
bins), or that takes long (new words), is accepted and comes into force later: so the order in
which parameters are set does not matter, and no callback waits.
"""

from __future__ import annotations

import dataclasses
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from ..core.config import DepthConfig, describe
from ..core.errors import ConfigError, DepthClipError, MismatchError
from ..messages.node_config import (
    ROS_PARAMETERS,
    NodeConfig,
    build_configs,
    foreign_names,
    foreign_notice,
    with_demo_settings,
)
from .worker import Worker

READ_ONLY = ('autostart',)  # read once, when the process starts
MAX_REASON = 500  # characters; a client that sets a megabyte need not get it back

SETTINGS: dict[str, dataclasses.Field[Any]] = {
    setting.name: setting
    for config in (DepthConfig, NodeConfig) for setting in dataclasses.fields(config)}
TEXT_SETTINGS = ('tokens', 'templates', 'scenes', 'scene_templates')  # of the text features


def parameter_descriptor(setting: dataclasses.Field[Any]) -> ParameterDescriptor:
    """Describe one setting as `ros2 param describe` shows it."""
    metadata = setting.metadata
    result = ParameterDescriptor(
        name=setting.name, description=describe(setting), read_only=setting.name in READ_ONLY)
    if metadata['reload'] and not result.read_only:
        result.additional_constraints = 'Can only change while the node is unconfigured.'
    if metadata['minimum'] is not None and setting.type == 'int':
        result.integer_range = [
            IntegerRange(from_value=int(metadata['minimum']), to_value=int(metadata['maximum']))]
    elif metadata['minimum'] is not None:
        result.floating_point_range = [FloatingPointRange(
            from_value=float(metadata['minimum']), to_value=float(metadata['maximum']))]
    return result


def help_text() -> str:
    """Return the text of `depth_node --help`: usage, and every parameter with its default."""
    return '\n'.join([
        'usage: depth_node --ros-args [--params-file FILE] [-p NAME:=VALUE] [-r TOPIC:=TOPIC]', '',
        'DepthCLIP: images in, depth out. Parameters:',
        *(f'  {name}: {setting.default!r}\n      {describe(setting)}'
          for name, setting in SETTINGS.items()), ''])


class Parameters:
    """Declares the settings as parameters of a node, and applies changes of them.

    The node must be created with `automatically_declare_parameters_from_overrides=True`: only so
    does rclpy's public API list every value of files and command line, misspelt ones included.

    Attributes:
        depth_config: the core's newest settings that fit together. The worker of a loaded model
            follows them: its own settings are in force.
        node_config: the node's settings.
        conflict: why the newest parameters are not in force; '' if they are.

    """

    def __init__(self, node: Node, worker: Callable[[], Worker | None]) -> None:
        """Declare all settings; `worker` returns the worker, or None while unconfigured.

        Raises:
            ConfigError: a parameter is misspelt, or a value is wrong.

        """
        self._node, self._worker, self._lock = node, worker, threading.Lock()
        parameters: dict[str, Any] = node.get_parameters_by_prefix('')
        overrides = {name: _to_builtin(parameter.value) for name, parameter in parameters.items()
                     if not ROS_PARAMETERS.match(name)}
        if foreign := foreign_names(overrides):
            node.get_logger().warning(foreign_notice(foreign))
        depth, self.node_config = build_configs(overrides)
        self.depth_config, notice = with_demo_settings(depth, self.node_config.weights, overrides)
        if notice:
            node.get_logger().info(notice)
        self.conflict = ''
        self._values = {**self.depth_config.to_dict(), **self.node_config.to_dict()}
        for name, value in self._values.items():
            # rclpy declared it with the type of the user's value and without a description.
            if node.has_parameter(name):
                node.undeclare_parameter(name)
            node.declare_parameter(
                name, value, parameter_descriptor(SETTINGS[name]), ignore_override=True)
        node.add_on_set_parameters_callback(self._on_set)
        self._applies_on_set = not hasattr(node, 'add_post_set_parameters_callback')
        if not self._applies_on_set:  # Iron and later
            node.add_pre_set_parameters_callback(
                lambda parameters: [_with_doubles(parameter) for parameter in parameters])
            node.add_post_set_parameters_callback(self._apply)

    def configs(self) -> tuple[DepthConfig, NodeConfig]:
        """Build both configurations from the parameters; MismatchError if they do not fit."""
        return build_configs(self._values)

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Accept or refuse a set of changes as a whole, with the reason."""
        try:
            self._check(_setting_values(parameters))
        except DepthClipError as error:
            return SetParametersResult(successful=False, reason=str(error)[:MAX_REASON])
        if self._applies_on_set:
            self._apply(parameters)
        return SetParametersResult(successful=True)

    def _check(self, changes: Mapping[str, Any]) -> None:
        """Raise an error for changes that are wrong by themselves."""
        worker = self._worker()
        try:
            depth, _ = build_configs({**self._values, **changes})
        except MismatchError:
            depth = None
        if worker is None:
            return
        reload_names = [name for name, value in changes.items()
                        if SETTINGS[name].metadata['reload'] and value != self._values[name]]
        if reload_names:
            name = self._node.get_fully_qualified_name()
            raise ConfigError(
                f'{", ".join(reload_names)}: cannot change while the model is loaded. First: ros2 '
                f'lifecycle set {name} deactivate (if active) and cleanup; set it; then configure '
                'and activate.')
        if depth is not None and worker.estimator is not None and not _has_new_words(
                depth, worker.config):
            worker.estimator.prepare(depth)  # quick: it reads and checks a calibration

    def _apply(self, parameters: Sequence[Parameter]) -> None:
        """Apply accepted changes, or let them wait for others that they need."""
        changes = _setting_values(parameters)
        if not changes:
            return
        values = {**self._values, **changes}
        self.node_config = NodeConfig.from_dict(
            {name: values[name] for name in NodeConfig.names()})
        with self._lock:
            self._values = values
            try:
                self.depth_config = build_configs(values)[0]
            except MismatchError as error:
                self._set_conflict(str(error))
                return
            self.conflict = ''
            worker = self._worker()
            if worker is None:
                return
            if worker.estimator is None or not _has_new_words(self.depth_config, worker.config):
                worker.config = self.depth_config  # between two batches
                return
        # A daemon: the end of the process must not wait for seconds of reading weights.
        threading.Thread(target=self._encode_words, args=(worker, self.depth_config), name='words',
                         daemon=True).start()

    def _set_conflict(self, reason: str) -> None:
        """Store and log, once, why the previous settings stay in force."""
        if reason != self.conflict:
            self.conflict = reason
            self._node.get_logger().warning(f'The settings before stay in force: {reason}')

    def _encode_words(self, worker: Worker, depth: DepthConfig) -> None:
        """Encode the words of settings, and apply the settings if they are the newest."""
        problem = ''
        try:
            if worker.estimator is not None:
                worker.estimator.prepare(depth)
        except DepthClipError as error:
            problem = str(error)
        except Exception:  # noqa: BLE001 (the thread would end without a message)
            problem = traceback.format_exc()
        with self._lock:
            if self.depth_config is not depth or self.conflict:
                return
            if problem:
                self._set_conflict(problem)
            else:
                worker.config = depth  # between two batches


def _has_new_words(depth: DepthConfig, previous: DepthConfig) -> bool:
    return any(getattr(depth, name) != getattr(previous, name) for name in TEXT_SETTINGS)


def _setting_values(parameters: Sequence[Parameter]) -> dict[str, Any]:
    return {p.name: _to_builtin(p.value) for p in parameters if p.name in SETTINGS}


def _with_doubles(parameter: Parameter) -> Parameter:
    """Turn integers into doubles: `ros2 param set NODE temperature 1` means 1.0, as in a file."""
    name, value = parameter.name, _to_builtin(parameter.value)
    if name in SETTINGS and 'float' in str(SETTINGS[name].type):
        if parameter.type_ == Parameter.Type.INTEGER:
            return Parameter(name, value=float(value))
        if parameter.type_ == Parameter.Type.INTEGER_ARRAY:
            return Parameter(name, value=[float(number) for number in value])
    return parameter


def _to_builtin(value: Any) -> Any:
    """Turn rclpy's arrays and tuples into lists."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else list(value)
