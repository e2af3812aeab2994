# SPDX-License-Identifier: Apache-2.0
"""Clicks as they come over ROS, while somebody looks at what they show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .anchor_inputs import TF, TF_STATIC, knows_tf, tf_inputs
from .clicks import Clicks
from .inputs import Input
from .messages import POINT, of_rclpy

if TYPE_CHECKING:
    from rclpy.node import Node

# Absolute, as RViz and Foxglove publish it.
CLICKED_POINT = '/clicked_point'


def click_topics(node: Node) -> list[str]:
    """Resolved names of what is listened to while somebody looks."""
    return [node.resolve_topic_name(CLICKED_POINT), TF, TF_STATIC]


class ClickInputs(Clicks):
    """Subscriptions to clicks, and to tf, in whose frames they may be."""

    def __init__(self, node: Node) -> None:
        """Listen to nothing yet.

        Args:
            node: the subscribing node.

        """
        super().__init__(of_rclpy(), knows_tf=knows_tf())
        self._node = node
        self._inputs: list[Input] = []

    def follow(self, *, wanted: bool) -> None:
        """Listen as the publishers offer it now, or not at all while nobody looks."""
        if not wanted:
            self.unsubscribe()
        elif self._inputs:
            for source in self._inputs:
                source.follow_publishers()
        else:
            self.begin()
            topic = self._node.resolve_topic_name(CLICKED_POINT)
            self._inputs = [
                Input(self._node, of_rclpy().type(POINT), topic, self.on_click),
                *tf_inputs(self._node, self)]

    def unsubscribe(self) -> None:
        """Stop listening."""
        for source in self._inputs:
            source.destroy()
        self._inputs = []
