# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
"""Subscriptions that match every publisher, and the parameters `qos_overrides` of all topics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from ..core.errors import ConfigError, did_you_mean, nearest, quoted
from ..messages import message_types as messages

try:  # Iron and later
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

RELIABLE, BEST_EFFORT = QoSReliabilityPolicy.RELIABLE, QoSReliabilityPolicy.BEST_EFFORT
TRANSIENT_LOCAL, VOLATILE = QoSDurabilityPolicy.TRANSIENT_LOCAL, QoSDurabilityPolicy.VOLATILE
# Deep enough for the burst after a bag player's start or a stalled network: the middleware
# overwrites messages silently, the node counts those that it drops.
INPUT_QUEUE = 10
OVERRIDES = 'qos_overrides'
# Reliability and durability have parameters only where the user sets them: else rclpy would
# declare its own values, which then never change.
POLICIES = {kind.name.lower(): kind for kind in (
    QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY)}
ROS_TOPICS = ('/parameter_events', '/rosout', '/clock')  # of every node
# Iron and later: an event for every publisher that appears.
HAS_MATCHED = 'matched' in inspect.signature(SubscriptionEventCallbacks.__init__).parameters


class AdaptiveSubscription:
    """A subscription to serialised messages that matches every publisher of its topic.

    It is reliable until a publisher is best effort, at the start or later. A best-effort
    subscription matches every publisher, but the middleware then loses most images that are
    larger than its buffers (Fast DDS by default: 0.5 MB, a 640x480 image has 0.9); a reliable one
    gets nothing from a best-effort camera. `qos_overrides.TOPIC.subscription.*` overrides this.

    Attributes:
        topic: full name, after remapping.

    """

    def __init__(
        self, node: Node, message_type: str, name: str, callback: Callable[[bytes], None],
        on_lost: Callable[[int], None] | None = None, *, transient_local: bool = False,
        adapts_durability: bool = True, depth: int = INPUT_QUEUE,
    ) -> None:
        """Subscribe to a topic by its name before remapping, which rclpy applies once.

        `on_lost` receives the number of messages that the middleware lost since the last call.
        `transient_local` also requests the last messages of transient-local publishers; with
        `adapts_durability` only while all publishers are transient local.

        Raises:
            ConfigError: a parameter of qos_overrides has a wrong value.

        """
        self._node, self._name, self._callback, self._type = node, name, callback, message_type
        self.topic: str = node.resolve_topic_name(name)
        self._on_lost, self._adapts_durability = on_lost, adapts_durability
        self._transient_local = transient_local
        self._override_options = override_options(node, name, 'subscription')
        self._is_overridden = {policy: kind in self._override_options.policy_kinds
                               for policy, kind in POLICIES.items()}
        self._qos: dict[str, Any] = {
            'history': QoSHistoryPolicy.KEEP_LAST, 'depth': depth, **self._offered_policies()}
        self._subscription: Subscription | None = self._subscribe()

    def destroy(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription = None

    def _offered_policies(self) -> dict[str, Any]:
        """Return the strictest reliability and durability that all discovered publishers offer.

        A driver that starts later warns of a subscription that requests more, and none offers
        camera_info transient local. Where rclpy has no event for a new publisher, transient local
        is requested from the start.
        """
        offers = [info.qos_profile
                  for info in self._node.get_publishers_info_by_topic(self._name)]
        all_transient_local = all(qos.durability == TRANSIENT_LOCAL for qos in offers) and (
            bool(offers) or not HAS_MATCHED)
        return {
            'reliability': BEST_EFFORT if any(
                qos.reliability == BEST_EFFORT for qos in offers) else RELIABLE,
            'durability': TRANSIENT_LOCAL if self._transient_local and (
                all_transient_local or not self._adapts_durability) else VOLATILE}

    def _on_matched(self, event: Any) -> None:
        """Request the earlier messages of a transient-local publisher that appears."""
        if event.current_count_change > 0 and self._qos['durability'] == VOLATILE \
                and self._offered_policies()['durability'] == TRANSIENT_LOCAL:
            self._change_policy('durability', TRANSIENT_LOCAL)

    def _on_incompatible(self, event: Any) -> None:
        """Lower the requested policy to the one that a publisher offers."""
        policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
        may_lower = {'reliability': True, 'durability': self._adapts_durability}.get(policy, False)
        lower = {'reliability': BEST_EFFORT, 'durability': VOLATILE}.get(policy)
        if may_lower and self._qos[policy] != lower and self._change_policy(policy, lower):
            return
        self._node.get_logger().warning(
            f'{self.topic}: a publisher offers another {policy}; nothing will arrive from it. '
            f'`ros2 topic info -v {self.topic}` lists both sides, and the parameters '
            f'qos_overrides.{self.topic}.subscription.* change this one.')

    def _change_policy(self, policy: str, value: Any) -> bool:
        """Schedule a new subscription with another policy, unless the user overrides it.

        The executor creates it later, since the event's own subscription is still in use.
        """
        executor = self._node.executor
        if self._is_overridden[policy] or executor is None:
            return False
        self._qos[policy] = value
        executor.create_task(self._resubscribe)
        return True

    def _resubscribe(self) -> None:
        if self._subscription is not None:  # else it was destroyed meanwhile
            self._node.get_logger().info(
                f'{self.topic}: subscribed {self._qos["reliability"].name.lower()}, '
                f'{self._qos["durability"].name.lower()}, as its publishers offer.')
            self.destroy()
            self._subscription = self._subscribe()

    def _subscribe(self) -> Subscription:
        events: dict[str, Any] = {'incompatible_qos': self._on_incompatible}
        if HAS_MATCHED and self._transient_local and self._adapts_durability:
            events['matched'] = self._on_matched
        if self._on_lost is not None:
            on_lost = self._on_lost
            events['message_lost'] = lambda event: on_lost(event.total_count_change)
        while True:
            try:
                return self._node.create_subscription(
                    messages.message_class(self._type), self._name, self._callback,
                    QoSProfile(**self._qos), raw=True,
                    event_callbacks=SubscriptionEventCallbacks(**events),
                    qos_overriding_options=self._override_options)
            except UnsupportedEventTypeError:  # noqa: PERF203 (some middlewares have no such event)
                if not events:
                    raise
                name, _ = events.popitem()
                self._node.get_logger().info(
                    f'{self.topic}: this middleware has no event {name}.')
            except RuntimeError as error:
                raise ConfigError(f'{OVERRIDES}.{self.topic}.subscription: {error}.') from error


def override_options(node: Node, name: str, side: str) -> QoSOverridingOptions:
    """List the policies that parameters of a topic's publisher or subscription may override."""
    topic = node.resolve_topic_name(name)
    return QoSOverridingOptions([
        kind for policy, kind in POLICIES.items() if policy in ('history', 'depth')
        or node.has_parameter(f'{OVERRIDES}.{topic}.{side}.{policy}')])


def check_overrides(node: Node, override_names: Iterable[str]) -> None:
    """Check, once all topics exist, that every parameter of qos_overrides overrides a policy.

    The node warns of those of a topic that it does not have. `override_names` are the parameters
    that the user sets, without those that rclpy declares.

    Raises:
        ConfigError: a topic, side or policy is misspelt.

    """
    endpoints = sorted({(endpoint.topic_name, side) for side, group in (
        ('publisher', node.publishers), ('subscription', node.subscriptions))
        for endpoint in group})
    topics = [topic for topic, _ in endpoints]
    for name in override_names:
        topic, side, policy = ['', *name.rsplit('.', 2)][-3:]
        if topic in ROS_TOPICS or ((topic, side) in endpoints and policy in POLICIES):
            continue
        peers = [name for name in topics if name.count('/') == topic.count('/')]
        if topic not in topics and not nearest(topic, peers):
            node.get_logger().warning(
                f'{OVERRIDES}.{name}: the node has no topic {quoted(topic)}.')
            continue
        names = [f'{topic}.{side}.{policy}' for topic, side in endpoints for policy in POLICIES]
        raise ConfigError(
            f'{OVERRIDES}.{quoted(name)} overrides nothing: {did_you_mean([name], names)}It must '
            f'be {OVERRIDES}.TOPIC.publisher or .subscription, and one of {", ".join(POLICIES)}.')
