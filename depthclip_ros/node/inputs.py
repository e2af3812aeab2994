# SPDX-License-Identifier: Apache-2.0
"""Subscriptions that ask for what their publishers offer, and take messages serialised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

from ..core.errors import ConfigError, quoted
from .messages import message_class

try:  # Iron and later
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rclpy.node import Node
    from rclpy.subscription import Subscription

BEST_AVAILABLE = 'best_available'
OFFERED, ALWAYS = 'offered', 'always'
# Deep enough for the burst that a player or a stalled network begins with: the middleware says
# nothing of what it overwrites, the node counts what it drops.
INPUT_DEPTH = 10


class Input:
    """A subscription that every publisher of its topic reaches.

    It is reliable unless a publisher is best effort. Best effort alone, the usual choice for
    sensor data, matches every publisher, but the middleware then loses most images that are
    larger than its buffers (Fast DDS by default: 0.5 MB, a 640x480 image has 0.9), even between
    two processes of one machine. Reliable alone gets nothing from a best-effort camera. The
    parameter `qos_overrides.TOPIC.subscription.reliability` decides otherwise.

    Where it is to have what was published before it came, it is transient local unless a
    publisher is volatile, from which it would get nothing at all.

    Publishers are looked at when it begins, and again when one of them offers less than it asks
    for.
    """

    def __init__(
        self, node: Node, kind: str, topic: str, callback: Callable[[bytes], None],
        on_lost: Callable[[int], None] | None = None, *, latched: str = '',
        depth: int = INPUT_DEPTH,
    ) -> None:
        """Subscribe.

        Args:
            node: the subscribing node.
            kind: message type.
            topic: resolved name.
            callback: takes the messages, serialised.
            on_lost: told how many more messages the middleware has lost.
            latched: whether to take what transient-local publishers sent last, too: '' for no,
                OFFERED unless a publisher is volatile, ALWAYS.
            depth: of the queue.

        Raises:
            ConfigError: that parameter has another value.

        """
        self._node, self._kind, self.topic = node, kind, topic
        self._callback, self._on_lost = callback, on_lost
        self._latched = latched
        self._depth = depth
        self._fixed = self._chosen_reliability()
        self._qos = self._offered()
        self._subscription: Subscription | None = self._subscribe()

    @property
    def is_latched(self) -> bool:
        """Whether it gets the last message of a publisher that sent it before."""
        return self._qos[1] == QoSDurabilityPolicy.TRANSIENT_LOCAL

    def destroy(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription = None

    def _chosen_reliability(self) -> QoSReliabilityPolicy | None:
        """What the parameter says; None for the best that every publisher offers."""
        name = f'qos_overrides.{self.topic}.subscription.reliability'
        if not self._node.has_parameter(name):
            self._node.declare_parameter(name, BEST_AVAILABLE, ParameterDescriptor(
                read_only=True, description=f'reliability for subscription `{self.topic}`; '
                'best_available: reliable if every publisher is, else best effort'))
        chosen = self._node.get_parameter(name).value
        choices = {policy.name.lower(): policy for policy in (
            QoSReliabilityPolicy.RELIABLE, QoSReliabilityPolicy.BEST_EFFORT,
            QoSReliabilityPolicy.SYSTEM_DEFAULT)}
        if chosen != BEST_AVAILABLE and chosen not in choices:
            raise ConfigError(f'{name}: {quoted(chosen)} is none of '
                              f'{", ".join((BEST_AVAILABLE, *choices))}.')
        return choices.get(chosen)

    def _offered(self) -> tuple[QoSReliabilityPolicy, QoSDurabilityPolicy]:
        """What can be asked for so that every publisher is heard."""
        offers = [info.qos_profile
                  for info in self._node.get_publishers_info_by_topic(self.topic)]
        reliability = self._fixed
        if reliability is None:
            best_effort = any(
                qos.reliability == QoSReliabilityPolicy.BEST_EFFORT for qos in offers)
            reliability = QoSReliabilityPolicy.BEST_EFFORT if best_effort \
                else QoSReliabilityPolicy.RELIABLE
        volatile = any(qos.durability == QoSDurabilityPolicy.VOLATILE for qos in offers)
        latched = self._latched == ALWAYS or (self._latched == OFFERED and not volatile)
        return reliability, QoSDurabilityPolicy.TRANSIENT_LOCAL if latched \
            else QoSDurabilityPolicy.VOLATILE

    def _on_incompatible(self, event: Any) -> None:
        """Ask for less, as a publisher offers; not here, where the subscription is in use."""
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        reliability, durability = self._qos
        if policy == 'RELIABILITY' and self._fixed is None:
            reliability = QoSReliabilityPolicy.BEST_EFFORT
        elif policy == 'DURABILITY' and self._latched == OFFERED:
            durability = QoSDurabilityPolicy.VOLATILE
        executor = self._node.executor
        if executor is None or self._qos == (reliability, durability):
            self._node.get_logger().warning(
                f'{self.topic}: a publisher offers another {policy.lower()}; nothing will arrive '
                f'from it. `ros2 topic info -v {self.topic}` lists both sides, and the parameters '
                f'qos_overrides.{self.topic}.subscription.* change this one.')
            return
        self._qos = reliability, durability
        executor.create_task(self._subscribe_anew)

    def _subscribe_anew(self) -> None:
        if self._subscription is None:  # destroyed meanwhile
            return
        words = ', '.join(policy.name.lower().replace('_', ' ') for policy in self._qos)
        self._node.get_logger().info(f'{self.topic}: listening {words}, as it is published.')
        self.destroy()
        self._subscription = self._subscribe()

    def _subscribe(self) -> Subscription:
        reliability, durability = self._qos
        callbacks: dict[str, Any] = {'incompatible_qos': self._on_incompatible}
        if self._on_lost is not None:
            on_lost = self._on_lost
            callbacks['message_lost'] = lambda event: on_lost(event.total_count_change)
        try:
            return self._create(reliability, durability, callbacks)
        except UnsupportedEventTypeError:  # not every middleware reports losses
            callbacks.pop('message_lost', None)
            return self._create(reliability, durability, callbacks)

    def _create(
        self, reliability: QoSReliabilityPolicy, durability: QoSDurabilityPolicy,
        callbacks: dict[str, Any],
    ) -> Subscription:
        return self._node.create_subscription(
            message_class(self._kind), self.topic, self._callback,
            QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=self._depth,
                       reliability=reliability, durability=durability),
            raw=True, event_callbacks=SubscriptionEventCallbacks(**callbacks),
            qos_overriding_options=QoSOverridingOptions(
                (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH)))
