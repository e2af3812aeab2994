# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls, allow-subclassing-any
# (rclpy's services and parameters are typed in part only)
"""The node's ROS parameters, generated from the two configurations and validated by them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import threading
from typing import TYPE_CHECKING, Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.parameter import Parameter
from rclpy.parameter_service import ParameterService
from rclpy.task import Future

from ..core.config import DepthConfig, describe
from ..core.errors import ConfigError, DepthClipError, quoted
from .config import ROS_OWN, NodeConfig, split, with_demo_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rcl_interfaces.msg import Parameter as ParameterMessage
    from rclpy.node import Node

    from ..core.estimator import DepthEstimator

# Read once, when the process starts; setting them later could have no effect.
READ_ONLY = ('autostart',)
MOST_NAMED = 3  # of unknown parameters in a message
LONGEST_REASON = 500  # characters; who sets a megabyte need not get it back

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
# What text features are made of.
WORDS = {'tokens', 'templates', 'scenes', 'scene_templates'}


def descriptor(setting: dataclasses.Field[Any]) -> ParameterDescriptor:
    """Describe one setting as `ros2 param describe` shows it."""
    about = setting.metadata
    result = ParameterDescriptor(
        name=setting.name, description=describe(setting), read_only=setting.name in READ_ONLY)
    if about['reload'] and not result.read_only:
        result.additional_constraints = 'Can only change while the node is unconfigured.'
    elif setting.name in ('tokens', 'bins', 'scenes', 'scene_bins'):
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


class Parameters:
    """Declares the settings on a node, and keeps them valid as a whole.

    The node must have been made with `automatically_declare_parameters_from_overrides=True`: that
    is the one public way to see every value that files and the command line give, and so to
    refuse the misspelt ones; and with `start_parameter_services=False`.
    """

    def __init__(
        self, node: Node, is_configured: Callable[[], bool],
        estimator: Callable[[], DepthEstimator | None], apply: Callable[[DepthConfig], None],
    ) -> None:
        """Declare all settings.

        Args:
            node: whose parameters to declare.
            is_configured: tells whether there is a model; then `reload` settings are fixed.
            estimator: gives the model, which encodes new words; None while it is being loaded.
            apply: called with the new settings after one that needs no reload has changed.

        Raises:
            ConfigError: unknown parameter, or a value that is wrong.

        """
        self._node, self._is_configured = node, is_configured
        self._estimator, self._apply = estimator, apply
        self._declare(_given(node))
        node.add_on_set_parameters_callback(self._on_set)
        self._services = _Services(node, self._encode)

    def read(self) -> tuple[DepthConfig, NodeConfig]:
        """Both configurations as the parameters stand now."""
        return split(self._values())

    def _declare(self, given: Mapping[str, Any]) -> None:
        depth, node = split(given)
        depth, note = with_demo_settings(depth, node.weights, given)
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
        """Accept or refuse a set of changes as a whole, with the reason.

        New words are accepted only once they are encoded, so that the parameters always tell what
        is in force. The services have seen to that before, on a thread.
        """
        changes = {p.name: _plain(p.value) for p in parameters if p.name in SETTINGS}
        if not changes:
            return SetParametersResult(successful=True)
        try:
            depth, node = split({**self._values(), **changes})
            if self._is_configured():
                self._check_fixed({**depth.to_dict(), **node.to_dict()}, changes)
                self._prepare(depth, changes)
        except DepthClipError as error:
            return SetParametersResult(
                successful=False, reason=self._with_hint(str(error), changes))
        # Between two batches; rclpy sets the values as soon as this returns.
        self._apply(depth)
        return SetParametersResult(successful=True)

    def _encode(self, parameters: Sequence[Parameter]) -> None:
        """Encode the words that parameters will make, if they can be set at all."""
        changes = {p.name: _plain(p.value) for p in parameters if p.name in SETTINGS}
        depth, _ = split({**self._values(), **changes})
        estimator = self._estimator()
        if estimator is not None and self._is_configured():
            estimator.encode(depth)

    def _check_fixed(self, wanted: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
        """Refuse changes that a loaded model cannot follow."""
        depth, node = self.read()
        now = {**depth.to_dict(), **node.to_dict()}
        fixed = [name for name in changes
                 if SETTINGS[name].metadata['reload'] and wanted[name] != now[name]]
        if fixed:
            name = self._node.get_fully_qualified_name()
            raise ConfigError(
                f'{", ".join(fixed)}: cannot change while the model is loaded. First: ros2 '
                f'lifecycle set {name} deactivate (if active) and cleanup; set it; then configure '
                'and activate.')

    def _prepare(self, config: DepthConfig, changes: Mapping[str, Any]) -> None:
        """Encode new words, and read a new calibration."""
        estimator = self._estimator()
        late = (WORDS | {'calibration'}) & changes.keys()
        if estimator is not None:
            if late:
                estimator.encode(config)
            estimator.read_calibration(config, again='calibration' in changes)
        elif late:
            raise ConfigError(f'{", ".join(sorted(late))}: cannot change while the model is being '
                              'loaded; try again in a while.')

    def _with_hint(self, reason: str, changes: Mapping[str, Any]) -> str:
        """Say how to change the number of tokens, bins or scenes, to who did not set all."""
        names = next((names for names in (('tokens', 'bins'),
                                          ('tokens', 'bins', 'scenes', 'scene_bins'))
                      if reason.startswith((f'{" and ".join(names)}:', f'{names[-1]}:'))
                      and not changes.keys() >= set(names)), ())
        if len(names) == len({*names} - {*changes}) or not names:
            return _brief(reason)
        node = self._node.get_fully_qualified_name()
        return _brief(reason, 200) + (
            f' Set {", ".join(names)} in one request: `ros2 param load {node} FILE` with all in '
            f'the file, or the service {node}/set_parameters_atomically.')


class _Services(ParameterService):
    """rclpy's parameter services, which set what belongs together as one, and answer always.

    The settings of one request are accepted or refused as one. `ros2 param load` sends one;
    rclpy's own service sets one parameter of it after the other, so that new metres could be
    taken and their words refused.
    """

    def __init__(self, node: Node, prepare: Callable[[Sequence[Parameter]], None]) -> None:
        """Create the services; `prepare` does beforehand, on a thread, what takes long."""
        self._prepare = prepare
        super().__init__(node)

    async def _set_parameters_callback(self, request: Any, response: Any) -> Any:
        own = [p for p in request.parameters if p.name in SETTINGS]
        settings = await self._set(own)
        for parameter in request.parameters:
            if settings.successful and parameter.name not in SETTINGS:
                result = await self._set([parameter])
            elif settings.successful or parameter.name == own[0].name:
                result = settings
            else:
                result = SetParametersResult(
                    reason=f'not set, as all of this request: see {own[0].name}.')
            response.results.append(result)
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
            wanted: list[Any] = [
                _with_doubles(Parameter.from_parameter_msg(p)) for p in parameters]
        except (KeyError, TypeError, ValueError):
            told = ', '.join(f'{quoted(p.name)} of type {p.value.type}' for p in parameters)
            return SetParametersResult(reason=_brief(
                f'a value is of a type that ROS does not know: {told}.'))
        # What is read-only may well be "set" to what it is, as the file of a dump does.
        changed = [p for p in wanted if not _is_read_only(node, p)
                   or _plain(node.get_parameter(p.name).value) != _plain(p.value)]
        if WORDS & {p.name for p in changed}:
            await self._aside(changed)
        result = node.set_parameters_atomically(changed)
        result.reason = _brief(result.reason)
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


def _is_read_only(node: Node, parameter: Parameter) -> bool:
    return bool(node.describe_parameter(parameter.name).read_only)


def _given(node: Node) -> dict[str, Any]:
    """Values from parameter files and the command line, without ROS's own."""
    parameters: dict[str, Any] = node.get_parameters_by_prefix('')
    declared = {name: _plain(parameter.value) for name, parameter in parameters.items()}
    for name in ('use_sim_time', 'start_type_description_service'):
        if type(declared.get(name, False)) is not bool:
            raise ConfigError(f'{name}: {quoted(declared[name])} is not true or false.')
    given = {name: value for name, value in declared.items() if not ROS_OWN.match(name)}
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown:
        raise ConfigError(_unknown_message(unknown))
    return given


def _unknown_message(unknown: Sequence[str]) -> str:
    """Say that parameters do not exist, and which do."""
    def guess(name: str) -> str:
        close = difflib.get_close_matches(name[:80], SETTINGS, 1)
        return f'{quoted(name)} (did you mean {close[0]!r}?)' if close else quoted(name)
    named = ', '.join(map(guess, unknown[:MOST_NAMED]))
    more = f' and {len(unknown) - MOST_NAMED} more' if len(unknown) > MOST_NAMED else ''
    return (f'unknown parameter{"s" if len(unknown) > 1 else ""} {named}{more}; `depth_node '
            '--help` lists those that there are.')


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


def _brief(text: str, longest: int = LONGEST_REASON) -> str:
    return text if len(text) <= longest else f'{text[:longest - 1]}…'
