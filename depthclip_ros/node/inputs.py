# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
"""Subscriptions that every publisher reaches, and what `qos_overrides` may say of them."""

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
from ..messages import types as messages

try:  # Iron and later
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

RELIABLE, BEST_EFFORT = QoSReliabilityPolicy.RELIABLE, QoSReliabilityPolicy.BEST_EFFORT
LATCHED, VOLATILE = QoSDurabilityPolicy.TRANSIENT_LOCAL, QoSDurabilityPolicy.VOLATILE
# Deep enough for the burst that a player or a stalled network begins with: the middleware says
# nothing of what it overwrites, the node counts what it drops.
INPUT_DEPTH = 10
OVERRIDES = 'qos_overrides'
# Of what was not given among the last two there is no parameter: rclpy's own would hold for ever.
POLICIES = {kind.name.lower(): kind for kind in (
    QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY)}
ROS_TOPICS = ('/parameter_events', '/rosout', '/clock')  # of every node
# Iron and later: an event for every publisher that comes.
HAS_MATCHED = 'matched' in inspect.signature(SubscriptionEventCallbacks.__init__).parameters


class Input:
    """A subscription that every publisher of its topic reaches; it takes messages serialised.

    It is reliable unless a publisher is best effort, when it begins or later. Best effort alone
    matches every publisher, but the middleware then loses most images that are larger than its
    buffers (Fast DDS by default: 0.5 MB, a 640x480 image has 0.9); reliable alone gets nothing
    from a best-effort camera. `qos_overrides.TOPIC.subscription.*` decides otherwise.

    Attributes:
        topic: full name, after remapping.

    """

    def __init__(
        self, node: Node, kind: str, name: str, callback: Callable[[bytes], None],
        on_lost: Callable[[int], None] | None = None, *, latched: bool = False,
        yields: bool = True, depth: int = INPUT_DEPTH,
    ) -> None:
        """Subscribe to a topic by its name before remapping, which ROS does once.

        `on_lost` gets how many more messages the middleware has lost. `latched` is for what
        transient-local publishers sent last, too; with `yields` only while all are such.

        Raises:
            ConfigError: a parameter of qos_overrides has a wrong value.

        """
        self._node, self._kind, self._name, self._callback = node, kind, name, callback
        self.topic: str = node.resolve_topic_name(name)
        self._on_lost, self._yields, self._latched = on_lost, yields, latched
        self._overriding = overriding(node, name, 'subscription')
        self._is_chosen = {policy: kind in self._overriding.policy_kinds
                           for policy, kind in POLICIES.items()}
        self._qos: dict[str, Any] = {
            'history': QoSHistoryPolicy.KEEP_LAST, 'depth': depth, **self._offered()}
        self._subscription: Subscription | None = self._subscribe()

    def destroy(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription = None

    def _offered(self) -> dict[str, Any]:
        """Reliability and durability that all publishers which are known offer.

        A driver that comes later warns of a subscription that asks for more: none offers
        camera_info transient-local. Where no event comes with a publisher, it must be asked for.
        """
        offers = [info.qos_profile
                  for info in self._node.get_publishers_info_by_topic(self._name)]
        all_latched = all(qos.durability == LATCHED for qos in offers) and (
            bool(offers) or not HAS_MATCHED)
        return {
            'reliability': BEST_EFFORT if any(
                qos.reliability == BEST_EFFORT for qos in offers) else RELIABLE,
            'durability': LATCHED if self._latched and (all_latched or not self._yields)
            else VOLATILE}

    def _on_matched(self, event: Any) -> None:
        """Ask a transient-local publisher that has come for what it sent before."""
        if event.current_count_change > 0 and self._qos['durability'] == VOLATILE \
                and self._offered()['durability'] == LATCHED:
            self._change('durability', LATCHED)

    def _on_incompatible(self, event: Any) -> None:
        """Ask for less, as a publisher offers."""
        policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
        may = {'reliability': True, 'durability': self._yields}.get(policy, False)
        less = {'reliability': BEST_EFFORT, 'durability': VOLATILE}.get(policy)
        if may and self._qos[policy] != less and self._change(policy, less):
            return
        self._node.get_logger().warning(
            f'{self.topic}: a publisher offers another {policy}; nothing will arrive from it. '
            f'`ros2 topic info -v {self.topic}` lists both sides, and the parameters '
            f'qos_overrides.{self.topic}.subscription.* change this one.')

    def _change(self, policy: str, value: Any) -> bool:
        """Subscribe anew with another policy, unless the user has chosen it.

        Not at once: an event comes from the subscription, which is in use.
        """
        executor = self._node.executor
        if self._is_chosen[policy] or executor is None:
            return False
        self._qos[policy] = value
        executor.create_task(self._subscribe_anew)
        return True

    def _subscribe_anew(self) -> None:
        if self._subscription is not None:  # else destroyed meanwhile
            self._node.get_logger().info(
                f'{self.topic}: subscribed {self._qos["reliability"].name.lower()}, '
                f'{self._qos["durability"].name.lower()}, as its publishers offer.')
            self.destroy()
            self._subscription = self._subscribe()

    def _subscribe(self) -> Subscription:
        events: dict[str, Any] = {'incompatible_qos': self._on_incompatible}
        if HAS_MATCHED and self._latched and self._yields:
            events['matched'] = self._on_matched
        if self._on_lost is not None:
            on_lost = self._on_lost
            events['message_lost'] = lambda event: on_lost(event.total_count_change)
        while True:
            try:
                return self._node.create_subscription(
                    messages.message_class(self._kind), self._name, self._callback,
                    QoSProfile(**self._qos), raw=True,
                    event_callbacks=SubscriptionEventCallbacks(**events),
                    qos_overriding_options=self._overriding)
            except UnsupportedEventTypeError:  # noqa: PERF203 (by some middlewares: go on without)
                if not events:
                    raise
                name, _ = events.popitem()
                self._node.get_logger().info(
                    f'{self.topic}: this middleware has no event {name}.')
            except RuntimeError as error:
                raise ConfigError(f'{OVERRIDES}.{self.topic}.subscription: {error}.') from error


def overriding(node: Node, name: str, side: str) -> QoSOverridingOptions:
    """Which policies of a topic's 'publisher' or 'subscription' parameters may override."""
    topic = node.resolve_topic_name(name)
    return QoSOverridingOptions([
        kind for policy, kind in POLICIES.items() if policy in ('history', 'depth')
        or node.has_parameter(f'{OVERRIDES}.{topic}.{side}.{policy}')])


def check_overrides(node: Node, given: Iterable[str]) -> None:
    """Look for parameters of qos_overrides that override nothing, once all topics are there.

    Those of topics that the node does not have are a warning. `given` are their names, without
    those that rclpy has declared.

    Raises:
        ConfigError: one is misspelt.

    """
    sides = {(end.topic_name, side) for side, ends in (
        ('publisher', node.publishers), ('subscription', node.subscriptions)) for end in ends}
    topics = sorted({topic for topic, _ in sides})
    for name in given:
        topic, side, policy = ['', *name.rsplit('.', 2)][-3:]
        if topic in ROS_TOPICS or ((topic, side) in sides and policy in POLICIES):
            continue
        alike = [one for one in topics if one.count('/') == topic.count('/')]
        if topic not in topics and not nearest(topic, alike):
            node.get_logger().warning(
                f'{OVERRIDES}.{name}: the node has no topic {quoted(topic)}.')
            continue
        known = [f'{one}.{which}.{what}' for one, which in sorted(sides) for what in POLICIES]
        raise ConfigError(
            f'{OVERRIDES}.{quoted(name)} overrides nothing: {did_you_mean([name], known)}It must '
            f'be {OVERRIDES}.TOPIC.publisher or .subscription, and one of {", ".join(POLICIES)}.')
