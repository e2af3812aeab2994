# SPDX-License-Identifier: Apache-2.0
"""Publishers of what one camera's depth is published as."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from .messages import of_rclpy
from .outputs import OUTPUT_DEPTH, OUTPUTS
from .qos_events import publisher_callbacks

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode
    from rclpy.lifecycle.publisher import LifecyclePublisher


class Publishers:
    """Where the outputs of one camera go in the node; see `outputs.Sink`."""

    def __init__(self, node: LifecycleNode, prefix: str = '') -> None:
        """Create the publishers.

        Args:
            node: their owner; they are silent while it is not active.
            prefix: of the topics' names, '' or 'front/'.

        """
        self._node = node
        self._publishers: dict[str, LifecyclePublisher] = {
            topic: node.create_lifecycle_publisher(
                of_rclpy().type(kind), prefix + topic,
                QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=OUTPUT_DEPTH,
                           reliability=QoSReliabilityPolicy.RELIABLE),
                event_callbacks=publisher_callbacks(node, prefix + topic),
                qos_overriding_options=QoSOverridingOptions.with_default_policies())
            for topic, kind in OUTPUTS.items()
        }

    def wanted(self, topic: str) -> bool:
        """Whether anyone subscribes to one output."""
        return bool(self._publishers[topic].get_subscription_count())

    def publish(self, topic: str, raw: bytes) -> None:
        """Publish a serialised message."""
        self._publishers[topic].publish(raw)

    def destroy(self) -> None:
        """Remove the publishers from the node."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()
