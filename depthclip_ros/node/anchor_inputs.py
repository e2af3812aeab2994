# SPDX-License-Identifier: Apache-2.0
"""What fixes the scale of depth, as it comes over ROS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .anchors import SENSORS, Sensors, needs_transforms
from .frames import STATIC_DEPTH, Frames
from .inputs import Input
from .messages import TF as TF_TYPE
from .messages import of_rclpy

if TYPE_CHECKING:
    from rclpy.node import Node

    from .config import NodeConfig

TF, TF_STATIC = '/tf', '/tf_static'


def anchor_topics(node: Node, config: NodeConfig) -> list[str]:
    """Resolved names of what the anchor listens to."""
    topics = [node.resolve_topic_name(SENSORS[config.anchor][1])] if config.anchor in SENSORS \
        else []
    return [*topics, TF, TF_STATIC] if needs_transforms(config) else topics


def knows_tf() -> bool:
    """Whether tf's messages can be read: tf2_msgs may not be installed."""
    try:
        of_rclpy().type(TF_TYPE)
    except ImportError:
        return False
    return True


def tf_inputs(node: Node, frames: Frames) -> list[Input]:
    """Subscriptions to tf; none where its messages cannot be read."""
    if not knows_tf():
        return []
    kind = of_rclpy().type(TF_TYPE)
    return [Input(node, kind, TF, frames.on_transforms),
            Input(node, kind, TF_STATIC, frames.on_static, latched=True, depth=STATIC_DEPTH)]


class Shared(Sensors):
    """Subscriptions to what all cameras have in common."""

    def __init__(self, node: Node, config: NodeConfig) -> None:
        """Listen to nothing yet.

        Args:
            node: the subscribing node.
            config: which anchor.

        """
        topic = node.resolve_topic_name(SENSORS[config.anchor][1]) \
            if config.anchor in SENSORS else ''
        super().__init__(config, of_rclpy(), topic, knows_tf=knows_tf())
        self._node = node
        self._inputs: list[Input] = []

    def subscribe(self) -> None:
        """Begin to listen, without a memory."""
        self.begin()
        if self.topic:
            kind, _ = SENSORS[self._config.anchor]
            self._inputs.append(
                Input(self._node, of_rclpy().type(kind), self.topic, self.on_message))
        if needs_transforms(self._config):
            self._inputs += tf_inputs(self._node, self)

    def follow_publishers(self) -> None:
        """Listen as the publishers offer it now."""
        for source in self._inputs:
            source.follow_publishers()

    def unsubscribe(self) -> None:
        """Stop listening."""
        for source in self._inputs:
            source.destroy()
        self._inputs.clear()
