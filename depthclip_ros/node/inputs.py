# SPDX-License-Identifier: Apache-2.0
"""Subscriptions that take what their publishers offer, serialised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

from .qos_events import UnsupportedEventTypeError, subscription_callbacks

if TYPE_CHECKING:
    from collections.abc import Callable

    from rclpy.node import Node
    from rclpy.subscription import Subscription

BEST_AVAILABLE = 'best_available'
# Deep enough for the burst that a player or a stalled network begins with: the middleware says
# nothing of what it overwrites, the node counts what it drops.
INPUT_DEPTH = 10


class Input:
    """A subscription that asks for what its publishers offer.

    It is reliable where every publisher is, else best effort. Best effort alone, the usual choice
    for sensor data, matches every publisher, but the middleware then loses most images that are
    larger than its buffers (Fast DDS by default: 0.5 MB, a 640x480 image has 0.9), even between
    two processes of one machine. Reliable alone gets nothing from a best-effort camera. The
    parameter `qos_overrides.TOPIC.subscription.reliability` decides otherwise.

    Where it is to have what was published before it came, it is transient local as soon as every
    publisher is; asking a volatile one for that gets nothing at all.
    """

    def __init__(
        self, node: Node, kind: type, topic: str, callback: Callable[[bytes], None],
        on_lost: Callable[[int], None] | None = None, *, latched: bool = False,
        depth: int = INPUT_DEPTH,
    ) -> None:
        """Subscribe.

        Args:
            node: the subscribing node.
            kind: message type.
            topic: resolved name.
            callback: takes the messages, serialised.
            on_lost: told how many more messages the middleware has lost.
            latched: take what transient-local publishers sent last, too.
            depth: of the queue.

        """
        self._node, self._kind, self._topic = node, kind, topic
        self._callback, self._on_lost, self._latched = callback, on_lost, latched
        self._depth = depth
        chosen = self._chosen_reliability()
        self._fixed = None if chosen == BEST_AVAILABLE \
            else getattr(QoSReliabilityPolicy, chosen.upper())
        self._qos = self._offered()
        self._subscription = self._subscribe()

    @property
    def is_latched(self) -> bool:
        """Whether all publishers keep their last message for who comes later."""
        return self._qos[1] == QoSDurabilityPolicy.TRANSIENT_LOCAL

    def follow_publishers(self) -> None:
        """Subscribe anew if the publishers offer something else than before."""
        offered = self._offered()
        if offered == self._qos:
            return
        words = ', '.join(new.name.lower().replace('_', ' ')
                          for new, old in zip(offered, self._qos, strict=True) if new != old)
        self._qos = offered
        self._node.get_logger().info(f'{self._topic}: listening {words}, as it is published.')
        self.destroy()
        self._subscription = self._subscribe()

    def destroy(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    def _chosen_reliability(self) -> str:
        name = f'qos_overrides.{self._topic}.subscription.reliability'
        if not self._node.has_parameter(name):
            self._node.declare_parameter(name, BEST_AVAILABLE, ParameterDescriptor(
                read_only=True, description=f'reliability for subscription `{self._topic}`; '
                'best_available: reliable if every publisher is, else best effort'))
        return str(self._node.get_parameter(name).value)

    def _offered(self) -> tuple[QoSReliabilityPolicy, QoSDurabilityPolicy]:
        """What can be asked for so that every publisher is heard."""
        offers = [info.qos_profile
                  for info in self._node.get_publishers_info_by_topic(self._topic)]
        reliability, durability = self._fixed, QoSDurabilityPolicy.VOLATILE
        if reliability is None:
            best_effort = any(
                qos.reliability == QoSReliabilityPolicy.BEST_EFFORT for qos in offers)
            reliability = QoSReliabilityPolicy.BEST_EFFORT if best_effort \
                else QoSReliabilityPolicy.RELIABLE
        if self._latched and offers and all(
                qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL for qos in offers):
            durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
        return reliability, durability

    def _subscribe(self) -> Subscription:
        reliability, durability = self._qos

        def create(on_lost: Callable[[int], None] | None) -> Subscription:
            return self._node.create_subscription(
                self._kind, self._topic, self._callback,
                QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=self._depth,
                           reliability=reliability, durability=durability),
                raw=True,
                event_callbacks=subscription_callbacks(
                    self._node, self._topic, on_lost,
                    explain_reliability=self._fixed is not None,
                    explain_durability=not self._latched),
                qos_overriding_options=QoSOverridingOptions(
                    (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH)))
        try:
            return create(self._on_lost)
        except UnsupportedEventTypeError:  # not every middleware reports losses
            return create(None)
