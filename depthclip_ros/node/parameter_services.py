# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
# (rclpy's Node is typed in part only)
"""The services by which ROS tools list, read and set a node's parameters."""

from __future__ import annotations

import contextlib
import threading
import traceback
from typing import TYPE_CHECKING, Any

from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import ParameterNotDeclaredException, ParameterUninitializedException
from rclpy.qos import qos_profile_parameters
from rclpy.task import Future

from ..core.errors import DepthClipError
from .statistics import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rcl_interfaces.msg import Parameter as ParameterMessage
    from rclpy.node import Node
    from rclpy.parameter import Parameter

    from .parameters import Parameters

# Of names or values in one request; a node has far fewer, and looking at each takes time.
LARGEST_REQUEST = 1000
LONGEST_REASON = 500  # characters


class ParameterServices:
    """Answers the parameter services in place of rclpy's own `ParameterService`.

    rclpy's raises at a value type that it does not know, which ends the process; and it shares a
    callback group with all else of the node, so that no image would come in while it waits. This
    one answers every request, whatever is in it, and while new words are encoded on a thread of
    their own the node goes on.

    The node must have been made with `start_parameter_services=False`.
    """

    def __init__(self, node: Node, parameters: Parameters) -> None:
        """Create the services.

        Args:
            node: whose parameters these are.
            parameters: tells what to prepare before a change, and validates it.

        """
        self._node = node
        self._parameters = parameters
        self._throttle = Throttle()
        self._busy: Future | None = None  # while words are encoded
        group = ReentrantCallbackGroup()  # an answer that waits holds up no other callback
        for name, kind, answer in (
            ('describe_parameters', DescribeParameters, self._describe),
            ('get_parameters', GetParameters, self._get),
            ('get_parameter_types', GetParameterTypes, self._get_types),
            ('list_parameters', ListParameters, self._list),
            ('set_parameters', SetParameters, self._set),
            ('set_parameters_atomically', SetParametersAtomically, self._set_atomically),
        ):
            node.create_service(
                kind, f'~/{name}', answer, qos_profile=qos_profile_parameters,
                callback_group=group)

    # Reading: as rclpy does, an unknown name makes the answer empty -------------------------

    def _describe(self, request: Any, response: Any) -> Any:
        response.descriptors = self._read(self._node.describe_parameter, request.names)
        return response

    def _get(self, request: Any, response: Any) -> Any:
        values = self._read(self._node.get_parameter, request.names)
        response.values = [parameter.get_parameter_value() for parameter in values]
        return response

    def _get_types(self, request: Any, response: Any) -> Any:
        response.types = self._read(self._node.get_parameter_type, request.names)
        return response

    def _list(self, request: Any, response: Any) -> Any:
        """List the names below the prefixes, as many levels as asked for (0: all)."""
        prefixes, depth = request.prefixes, request.depth
        if len(prefixes) > LARGEST_REQUEST:
            return response

        def chosen(name: str) -> bool:
            below = [name[len(prefix) + 1:] for prefix in prefixes
                     if name.startswith(f'{prefix}.')] if prefixes else [name]
            return name in prefixes or any(
                not depth or part.count('.') < depth for part in below)

        names = list(filter(chosen, self._node.get_parameters_by_prefix('')))
        response.result.names = names
        response.result.prefixes = list(dict.fromkeys(
            name.rpartition('.')[0] for name in names if '.' in name))
        return response

    def _read(self, look: Callable[[str], Any], names: Sequence[str]) -> list[Any]:
        if len(names) > LARGEST_REQUEST:
            return []
        try:
            return [look(name) for name in names]
        except (ParameterNotDeclaredException, ParameterUninitializedException):
            return []

    # Setting --------------------------------------------------------------------------------

    async def _set(self, request: Any, response: Any) -> Any:
        """Set each by itself, but what depends on one another first of all together.

        That is how `ros2 param load` can change tokens and bins: it sends a whole file in one
        request of this kind, and ROS 2 has no command for the other kind.
        """
        if len(request.parameters) > LARGEST_REQUEST:
            response.results = [_too_many(request.parameters)] * len(request.parameters)
            return response
        coupled = {id(p) for p in request.parameters if self._parameters.is_coupled(p.name)}
        together = [p for p in request.parameters if id(p) in coupled]
        accepted = len(together) > 1 and (await self._change(together)).successful
        response.results = [
            SetParametersResult(successful=True) if accepted and id(p) in coupled
            else await self._change([p]) for p in request.parameters]
        return response

    async def _set_atomically(self, request: Any, response: Any) -> Any:
        too_many = len(request.parameters) > LARGEST_REQUEST
        response.result = _too_many(request.parameters) if too_many \
            else await self._change(request.parameters)
        return response

    async def _change(self, messages: Sequence[ParameterMessage]) -> SetParametersResult:
        """Set all of them or none; a refusal says why."""
        try:
            wanted = self._parameters.convert(messages)
            if self._parameters.preparation(wanted) is None:
                return _brief(self._node.set_parameters_atomically(wanted))
            return _brief(await self._prepare_and_set(wanted))
        except DepthClipError as error:
            return _refused(str(error))
        except Exception as error:  # noqa: BLE001 (no request may end the process)
            if self._throttle.due('internal error'):
                self._node.get_logger().error(traceback.format_exc())
            return _refused(f'internal error, see the log of the node: {error!r}')

    async def _prepare_and_set(self, wanted: list[Parameter]) -> SetParametersResult:
        """Prepare on a thread, then set; one request after the other."""
        while self._busy is not None:
            await self._busy
        self._busy = Future()
        try:
            # More than once only if something else has changed meanwhile.
            while (work := self._parameters.preparation(wanted)) is not None:
                error = await self._in_background(work)
                if error is not None:
                    raise error
            return self._node.set_parameters_atomically(wanted)
        finally:
            done, self._busy = self._busy, None
            done.set_result(None)
            self._wake()

    def _in_background(self, work: Callable[[], object]) -> Future:
        """Run on a thread; the future gives what was raised, or None."""
        done = Future()

        def run() -> None:
            done.set_result(_error_of(work))
            self._wake()
        # Not waited for at the end of the process: reading large weights takes seconds.
        threading.Thread(target=run, name='words', daemon=True).start()
        return done

    def _wake(self) -> None:
        """Let the executor look for what can go on."""
        executor = self._node.executor
        if executor is not None:
            with contextlib.suppress(Exception):  # the process may be ending
                executor.wake()


def _error_of(work: Callable[[], object]) -> Exception | None:
    try:
        work()
    except Exception as error:  # noqa: BLE001 (raised where it is waited for)
        return error
    return None


def _too_many(parameters: Sequence[object]) -> SetParametersResult:
    return _refused(f'{len(parameters)} parameters in one request; at most {LARGEST_REQUEST} are '
                    'accepted.')


def _refused(reason: str) -> SetParametersResult:
    return _brief(SetParametersResult(successful=False, reason=reason))


def _brief(result: SetParametersResult) -> SetParametersResult:
    """Bound the reason: who sets a megabyte need not get it back."""
    if len(result.reason) > LONGEST_REASON:
        result.reason = f'{result.reason[:LONGEST_REASON - 1]}…'
    return result
