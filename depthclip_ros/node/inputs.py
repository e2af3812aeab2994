# SPDX-License-Identifier: Apache-2.0
"""Subscriptions that take what their publishers offer, serialised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.qos import QoSHistoryPolicy, QoSPolicyKind, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from .qos_events import UnsupportedEventTypeError, subscription_callbacks

if TYPE_CHECKING:
    from collections.abc import Callable

    from rclpy.node import Node
    from rclpy.subscription import Subscription

BEST_AVAILABLE = 'best_available'


class Input:
    """A subscription of depth 1, reliable where every publisher is, else best effort.

    Best effort alone, the usual choice for sensor data, matches every publisher, but the
    middleware then loses most images that are larger than its buffers (Fast DDS by default:
    0.5 MB, a 640x480 image has 0.9), even between two processes of one machine. Reliable alone
    gets nothing from a best-effort camera. The parameter
    `qos_overrides.TOPIC.subscription.reliability` decides otherwise.
    """

    def __init__(
        self, node: Node, kind: type, topic: str, callback: Callable[[bytes], None],
        on_lost: Callable[[int], None] | None = None,
    ) -> None:
        """Subscribe.

        Args:
            node: the subscribing node.
            kind: message type.
            topic: resolved name.
            callback: takes the messages, serialised.
            on_lost: told how many more messages the middleware has lost.

        """
        self._node, self._kind, self._topic = node, kind, topic
        self._callback, self._on_lost = callback, on_lost
        chosen = self._chosen_reliability()
        self._adaptive = chosen == BEST_AVAILABLE
        self._reliability = self._offered() if self._adaptive \
            else getattr(QoSReliabilityPolicy, chosen.upper())
        self._subscription = self._subscribe()

    def follow_publishers(self) -> None:
        """Subscribe anew if the publishers offer another reliability than before."""
        if self._adaptive and self._offered() != self._reliability:
            self._reliability = self._offered()
            self._node.get_logger().info(
                f'{self._topic}: listening {self._reliability.name.lower().replace("_", " ")}, '
                'as it is published.')
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

    def _offered(self) -> QoSReliabilityPolicy:
        publishers = self._node.get_publishers_info_by_topic(self._topic)
        if any(info.qos_profile.reliability == QoSReliabilityPolicy.BEST_EFFORT
               for info in publishers):
            return QoSReliabilityPolicy.BEST_EFFORT
        return QoSReliabilityPolicy.RELIABLE

    def _subscribe(self) -> Subscription:
        def create(on_lost: Callable[[int], None] | None) -> Subscription:
            return self._node.create_subscription(
                self._kind, self._topic, self._callback,
                QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1,
                           reliability=self._reliability),
                raw=True,
                event_callbacks=subscription_callbacks(
                    self._node, self._topic, on_lost, explain_reliability=not self._adaptive),
                qos_overriding_options=QoSOverridingOptions(
                    (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH)))
        try:
            return create(self._on_lost)
        except UnsupportedEventTypeError:  # not every middleware reports losses
            return create(None)
