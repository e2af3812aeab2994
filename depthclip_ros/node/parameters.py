# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
# (rclpy's parameters are typed in part only)
"""The node's ROS parameters, generated from the two configurations and validated by them.

A value is refused where it is wrong by itself. What needs others that fit, as tokens need bins,
and what takes long, as new words, is accepted, and comes into force when it can: so the order in
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
from ..messages.config import (
    ROS_OWN,
    NodeConfig,
    foreign_names,
    foreign_notice,
    split,
    with_demo_settings,
)
from .pipeline import Pipeline

READ_ONLY = ('autostart',)  # read once, when the process starts
LONGEST_REASON = 500  # characters; who sets a megabyte need not get it back

SETTINGS: dict[str, dataclasses.Field[Any]] = {
    setting.name: setting
    for config in (DepthConfig, NodeConfig) for setting in dataclasses.fields(config)}
WORDS = ('tokens', 'templates', 'scenes', 'scene_templates')  # what text features are made of


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
    """Declares the settings on a node, and lets what is set to them come into force.

    The node must have been made with `automatically_declare_parameters_from_overrides=True`: that
    is the one public way to see every value that files and the command line give, and so to
    refuse the misspelt ones.

    Attributes:
        depth: the core's newest settings that fit together. Of a loaded model those of its
            pipeline are in force, which follows.
        node: the node's settings.
        conflict: why others than `depth` stand in the parameters; '' if they do not.

    """

    def __init__(self, node: Node, pipeline: Callable[[], Pipeline | None]) -> None:
        """Declare all settings; `pipeline` gives what follows them, None while unconfigured.

        Raises:
            ConfigError: misspelt parameter, or a value that is wrong.

        """
        self._node, self._pipeline, self._lock = node, pipeline, threading.Lock()
        parameters: dict[str, Any] = node.get_parameters_by_prefix('')
        given = {name: _plain(parameter.value) for name, parameter in parameters.items()
                 if not ROS_OWN.match(name)}
        if foreign := foreign_names(given):
            node.get_logger().warning(foreign_notice(foreign))
        depth, self.node = split(given)
        self.depth, note = with_demo_settings(depth, self.node.weights, given)
        if note:
            node.get_logger().info(note)
        self.conflict = ''
        self._values = {**self.depth.to_dict(), **self.node.to_dict()}
        for name, value in self._values.items():
            # Declared automatically, with the type of the given value and without a description.
            if node.has_parameter(name):
                node.undeclare_parameter(name)
            node.declare_parameter(name, value, descriptor(SETTINGS[name]), ignore_override=True)
        node.add_on_set_parameters_callback(self._on_set)
        self._takes_at_once = not hasattr(node, 'add_post_set_parameters_callback')
        if not self._takes_at_once:  # Iron and later
            node.add_pre_set_parameters_callback(
                lambda parameters: [_with_doubles(one) for one in parameters])
            node.add_post_set_parameters_callback(self._take)

    def read(self) -> tuple[DepthConfig, NodeConfig]:
        """Both configurations as the parameters stand; MismatchError if they do not fit."""
        return split(self._values)

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Accept or refuse a set of changes as a whole, with the reason."""
        try:
            self._check(_settings(parameters))
        except DepthClipError as error:
            return SetParametersResult(successful=False, reason=str(error)[:LONGEST_REASON])
        if self._takes_at_once:
            self._take(parameters)
        return SetParametersResult(successful=True)

    def _check(self, changes: Mapping[str, Any]) -> None:
        """Raise what is wrong with changes by themselves."""
        pipeline = self._pipeline()
        try:
            depth, _ = split({**self._values, **changes})
        except MismatchError:
            depth = None
        if pipeline is None:
            return
        fixed = [name for name, value in changes.items()
                 if SETTINGS[name].metadata['reload'] and value != self._values[name]]
        if fixed:
            name = self._node.get_fully_qualified_name()
            raise ConfigError(
                f'{", ".join(fixed)}: cannot change while the model is loaded. First: ros2 '
                f'lifecycle set {name} deactivate (if active) and cleanup; set it; then configure '
                'and activate.')
        if depth is not None and pipeline.estimator is not None and not _has_new_words(
                depth, pipeline.config):
            pipeline.estimator.prepare(depth)  # quickly: a calibration is read, and checked

    def _take(self, parameters: Sequence[Parameter]) -> None:
        """Let accepted changes come into force, or wait for those that they need."""
        changes = _settings(parameters)
        if not changes:
            return
        values = {**self._values, **changes}
        self.node = NodeConfig.from_dict({name: values[name] for name in NodeConfig.names()})
        with self._lock:
            self._values = values
            try:
                self.depth = split(values)[0]
            except MismatchError as error:
                self._wait(str(error))
                return
            self.conflict = ''
            pipeline = self._pipeline()
            if pipeline is None:
                return
            if pipeline.estimator is None or not _has_new_words(self.depth, pipeline.config):
                pipeline.config = self.depth  # between two batches
                return
        # Not waited for at the end of the process: reading large weights takes seconds.
        threading.Thread(target=self._encode, args=(pipeline, self.depth), name='words',
                         daemon=True).start()

    def _wait(self, reason: str) -> None:
        """Say once why the settings before stay in force."""
        if reason != self.conflict:
            self.conflict = reason
            self._node.get_logger().warning(f'The settings before stay in force: {reason}')

    def _encode(self, pipeline: Pipeline, depth: DepthConfig) -> None:
        """Encode the words of settings, and let them come into force if they are the newest."""
        problem = ''
        try:
            if pipeline.estimator is not None:
                pipeline.estimator.prepare(depth)
        except DepthClipError as error:
            problem = str(error)
        except Exception:  # noqa: BLE001 (it would end in silence, with its thread)
            problem = traceback.format_exc()
        with self._lock:
            if self.depth is not depth or self.conflict:
                return
            if problem:
                self._wait(problem)
            else:
                pipeline.config = depth  # between two batches


def _has_new_words(depth: DepthConfig, before: DepthConfig) -> bool:
    return any(getattr(depth, name) != getattr(before, name) for name in WORDS)


def _settings(parameters: Sequence[Parameter]) -> dict[str, Any]:
    return {p.name: _plain(p.value) for p in parameters if p.name in SETTINGS}


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
