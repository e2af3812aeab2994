# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 bag into ROS, in pure Python: `bag_player BAG [--clock] [--loop] …`.

It is there for machines without `ros2 bag`, and it waits for those who listen. Every message goes
out as the bytes that were recorded, so that header stamps are unchanged, and the times between
messages are the recorded ones, divided by `--rate`.

Publishers: one per topic of the bag, with the recorded reliability and durability; and
/clock (rosgraph_msgs/Clock) with `--clock`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import rclpy
from rcl_interfaces.srv import GetParameters
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from ..arguments import positive
from ..node.messages import message_class
from .bag import NANOSECONDS, Bag, BagError
from .process import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from threading import Event

    from rclpy.node import Node

CLOCK_TOPIC = '/clock'
LEAST_DEPTH = 100  # of what is reliable and not latched
# Fast DDS repeats an announcement that was lost after 3 s. A subscriber that has not got the
# player's does not know it yet, although the player knows the subscriber.
ANSWER_SECONDS, ASK_SECONDS = 4.0, 0.25
ACKNOWLEDGE_SECONDS = 2.0


class BagPlayer:
    """Publishes the messages of one bag through one node."""

    def __init__(
        self, node: Node, bag: Bag, options: argparse.Namespace, stop: Event,
    ) -> None:
        """Create the publishers.

        Args:
            node: Node that publishes.
            bag: what to play.
            options: of `parser()`.
            stop: Ends `play` soon when it is set, by a signal handler or another thread.

        Raises:
            BagError: the bag lacks a topic that is asked for, or holds nothing to play.

        """
        self.played = Counter[str]()
        self._node, self._bag, self._options, self._stop = node, bag, options, stop
        self._log = node.get_logger()
        there = {topic.name for topic in bag.topics}
        missing = sorted(set(options.topics) - there)
        if missing:
            raise BagError(f'The bag has no topic {", ".join(missing)}. '
                           f'It has: {", ".join(sorted(there)) or "none"}.')
        self._publishers: dict[str, Any] = {}
        for topic in bag.topics:
            if topic.name == CLOCK_TOPIC and options.clock:
                self._log.info('the recorded /clock is left out: --clock publishes a new one')
            elif topic.name in (options.topics or there):
                try:
                    self._publishers[topic.name] = node.create_publisher(
                        message_class(topic.type), topic.name,
                        recorded_qos(bag.connections, topic.name))
                except (ImportError, AttributeError):
                    self._log.warning(f'{topic.name}: its {topic.count} messages are skipped, '
                                      f'because {topic.type} is not installed here')
        if not any(topic.count for topic in bag.topics if topic.name in self._publishers):
            raise BagError(f'{bag.path} holds no messages to play, or none of a type that is '
                           'installed here.')
        self._clock = node.create_publisher(Clock, CLOCK_TOPIC, 1) if options.clock else None

    def play(self) -> None:
        """Play to the end, or until told to stop; says how much at last.

        Raises:
            BagError: the bag is damaged.

        """
        self._wait_for_subscribers()
        started = time.monotonic()
        try:
            while not self._stop.is_set():
                self._log.info(f'playing {self._bag.path}')
                self._play_once()
                if not self._options.loop:
                    break
        finally:
            self._log.info('\n  '.join([
                f'played {self.played.total()} messages in {time.monotonic() - started:.2f} s',
                *(f'{topic}: {count}' for topic, count in sorted(self.played.items()))]))
        # Reliable readers get what was sent to them.
        deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
        for publisher in self._publishers.values():
            if hasattr(publisher, 'wait_for_all_acked') and not self._stop.is_set():
                publisher.wait_for_all_acked(
                    Duration(seconds=max(0.0, deadline - time.monotonic())))
        self._stop.wait(0.1)

    def _play_once(self) -> None:
        start, tick = time.monotonic(), self._bag.begin

        def wait_until(stamp: int) -> None:
            due = start + (stamp - self._bag.begin) / NANOSECONDS / self._options.rate
            self._stop.wait(max(0.0, due - time.monotonic()))

        for connection, stamp, data in self._bag.messages(self._publishers):
            while self._clock is not None and tick <= stamp and not self._stop.is_set():
                wait_until(tick)
                message = Clock()
                message.clock.sec, message.clock.nanosec = divmod(tick, NANOSECONDS)
                self._clock.publish(message)
                tick += max(1, int(NANOSECONDS * self._options.rate / self._options.clock))
            wait_until(stamp)
            if self._stop.is_set():
                return
            self._publishers[connection.topic].publish(data)
            self.played[connection.topic] += 1

    def _wait_for_subscribers(self) -> None:
        """Wait until those whom --wait-for asks for are there, and know this node's publishers.

        A node that answers a request has found whoever asks; announcements come in their order,
        so that it has found the publishers, which are older than the request. What is asked for
        is nothing: the values of no parameters. A node without such a service is not waited for.
        """
        wanted = Counter(topic for topic in self._options.wait_for if topic in self._publishers)
        told = False
        while not self._stop.is_set() and (lacking := [
                topic for topic, count in wanted.items()
                if self._publishers[topic].get_subscription_count() < count]):
            if not told:
                told = True
                self._log.info(f'waiting for a subscriber of {", ".join(lacking)}')
            self._stop.wait(0.02)
        node = self._node
        services = {
            f'{info.node_namespace.rstrip("/")}/{info.node_name}/get_parameters'
            for topic in wanted for info in node.get_subscriptions_info_by_topic(
                self._publishers[topic].topic_name)}
        unanswered = {node.create_client(GetParameters, name): list[Any]()
                      for name, _ in node.get_service_names_and_types() if name in services}
        deadline, asked = time.monotonic() + ANSWER_SECONDS, 0.0
        while not self._stop.is_set() and (now := time.monotonic()) < deadline and not all(
                any(future.done() for future in sent) for sent in unanswered.values()):
            if now >= asked + ASK_SECONDS:
                asked = now
                for client, sent in unanswered.items():
                    sent.append(client.call_async(GetParameters.Request()))
            rclpy.spin_once(node, timeout_sec=0.02)
        for client in unanswered:
            node.destroy_client(client)


def recorded_qos(connections: Iterable[Any], topic: str) -> QoSProfile:
    """Quality of service to publish a topic with.

    The recorded one where the bag knows a single one, not shallower than `LEAST_DEPTH` where it
    is reliable and volatile, since to subscribers the depth is nothing but what a busy one of them
    may lose; else reliable and volatile, which every subscriber with the usual settings can
    receive.

    Args:
        connections: of the bag.
        topic: of the bag.

    """
    recorded = {(qos.reliability.name, qos.durability.name, qos.history.name): qos.depth
                for c in connections if c.topic == topic
                for qos in getattr(c.ext, 'offered_qos_profiles', ())}
    profile = QoSProfile(depth=LEAST_DEPTH)  # reliable and volatile
    if len(recorded) != 1:
        return profile
    (reliability, durability, history), depth = recorded.popitem()
    if reliability == 'BEST_EFFORT':
        profile.reliability = ReliabilityPolicy.BEST_EFFORT
    if durability == 'TRANSIENT_LOCAL':
        profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
    if history == 'KEEP_ALL':
        profile.history = HistoryPolicy.KEEP_ALL
    elif history == 'KEEP_LAST' and depth:
        is_plain = (reliability, durability) == ('RELIABLE', 'VOLATILE')
        profile.depth = max(depth, LEAST_DEPTH) if is_plain else depth
    return profile


def parser() -> argparse.ArgumentParser:
    """Command line of `bag_player`."""
    parser = argparse.ArgumentParser(
        prog='bag_player',
        description='Play a rosbag2 bag (mcap or sqlite3) into ROS, bytes and stamps unchanged. '
        'ROS arguments may follow after --ros-args.',
    )
    add = parser.add_argument
    add('bag', metavar='BAG', help='bag folder, or a .mcap or .db3 file')
    add('-r', '--rate', type=positive, default=1.0, help='speed; 2 is twice as fast (%(default)s)')
    add('-l', '--loop', action='store_true', help='start again at the end')
    # 40 Hz is what `ros2 bag play --clock` has.
    add('--clock', type=positive, nargs='?', const=40.0, default=0.0, metavar='HZ',
        help='publish the time of the bag on /clock (40 Hz unless given)')
    add('--topics', nargs='+', default=[], metavar='TOPIC', help='play these only')
    add('--wait-for', nargs='+', default=[], metavar='TOPIC',
        help='begin when each of these has a subscriber (two, where it is given twice) that has '
        'found the player')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the executable `bag_player`; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    place = arguments.index('--ros-args') if '--ros-args' in arguments else len(arguments)
    options = parser().parse_args(arguments[:place])

    def play(stop: Event) -> int:
        node = rclpy.create_node('bag_player', start_parameter_services=False)
        with Bag(options.bag) as bag:
            BagPlayer(node, bag, options, stop).play()
        node.destroy_node()
        return 0

    return run('bag_player', play, arguments[place:])


if __name__ == '__main__':
    sys.exit(main())
