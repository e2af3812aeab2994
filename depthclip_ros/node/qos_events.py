# SPDX-License-Identifier: Apache-2.0
"""What the middleware reports about a topic, in words that say what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rclpy.qos import qos_policy_name_from_kind

try:  # Iron and later
    from rclpy.event_handler import (
        PublisherEventCallbacks,
        SubscriptionEventCallbacks,
        UnsupportedEventTypeError,
    )
except ImportError:  # Humble
    from rclpy.qos_event import (
        PublisherEventCallbacks,
        SubscriptionEventCallbacks,
        UnsupportedEventTypeError,
    )

__all__ = ['UnsupportedEventTypeError', 'publisher_callbacks', 'subscription_callbacks']

if TYPE_CHECKING:
    from collections.abc import Callable

    from rclpy.node import Node


def publisher_callbacks(node: Node, topic: str) -> PublisherEventCallbacks:
    """Log when a subscriber asks for more than `topic` of `node` offers."""
    name = node.resolve_topic_name(topic)

    def incompatible(event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
        node.get_logger().warning(
            f'{name}: a subscriber asks for another {policy} and will get nothing. '
            + _remedy(name, 'publisher', policy))

    return PublisherEventCallbacks(incompatible_qos=incompatible)


def subscription_callbacks(
    node: Node, topic: str, on_lost: Callable[[int], None] | None = None, *,
    explain_reliability: bool = True, explain_durability: bool = True,
) -> SubscriptionEventCallbacks:
    """Log when a publisher offers less than `node` asks for on `topic`.

    Args:
        node: the subscribing node.
        topic: name of the topic.
        on_lost: called with the number of messages that the middleware has just lost.
        explain_reliability: False where the subscription will follow the publisher by itself.
        explain_durability: likewise.

    """
    name = node.resolve_topic_name(topic)
    explained = {'reliability': explain_reliability, 'durability': explain_durability}

    def incompatible(event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
        if explained.get(policy, True):
            node.get_logger().warning(
                f'{name}: a publisher offers another {policy}; nothing will arrive from it. '
                + _remedy(name, 'subscription', policy))

    callbacks: dict[str, Any] = {'incompatible_qos': incompatible}
    if on_lost is not None:
        callbacks['message_lost'] = lambda event: on_lost(event.total_count_change)
    return SubscriptionEventCallbacks(**callbacks)


def _remedy(topic: str, entity: str, policy: str) -> str:
    listing = f'`ros2 topic info -v {topic}` lists both sides.'
    if policy == 'reliability':
        value = 'best_effort' if entity == 'subscription' else 'reliable'
        return (f'Set the parameter qos_overrides.{topic}.{entity}.reliability to {value}, or '
                f"change the other side's QoS. {listing}")
    if policy == 'durability':
        return f'Use durability volatile on the other side. {listing}'
    return f"Change the other side's QoS. {listing}"
