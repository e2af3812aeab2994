# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 bag into ROS, in pure Python: `bag_player BAG [--clock] [--loop] …`.

It serves machines without `ros2 bag`, and waits for subscribers. It publishes the recorded bytes
of every message, header stamps unchanged, at the recorded intervals divided by `--rate`.

Publishers: one per topic of the bag, with the recorded reliability and durability; and
/clock (rosgraph_msgs/Clock) with `--clock`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters
from rclpy.duration import Duration
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rosgraph_msgs.msg import Clock

from ..arguments import not_negative, positive
from ..core.errors import BagError, DepthClipError
from ..core.files import printable
from ..messages.message_types import COMPRESSED_IMAGE, IMAGE, message_class, topic_name
from ..node.process import end_process
from .bag import NANOSECONDS, Bag
from .metadata import latched_history
from .process import run, split_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Event

    from rclpy.node import Node
    from rclpy.publisher import Publisher

CLOCK_TOPIC, DIAGNOSTICS_TOPIC = '/clock', '/diagnostics'
MIN_DEPTH = 100  # of a publisher's history: messages that a busy subscriber may lag behind
# Fast DDS repeats a lost announcement after 3 s. A subscriber that missed the player's does not
# know the player yet, although the player knows the subscriber.
ANSWER_SECONDS, REQUEST_SECONDS = 4.0, 0.25
ACKNOWLEDGE_SECONDS = 2.0
ACCOUNT_SECONDS = 10.0  # for the last images of a node, which reports every second
ACCOUNT = ('received', 'published', 'dropped', 'rejected', 'idle', 'pending')


class Consumer:
    """The depth_node that the player waits for: its subscriptions and its account of images."""

    def __init__(self, node: Node, name: str) -> None:
        """Subscribe to the reports of the node with this fully qualified name."""
        self._node, self.name = node, f'/{name.strip("/")}'
        self.accounts = list[Counter[str]]()  # sums over its cameras
        # Depth 1: of reports between two spins only the newest counts.
        node.create_subscription(DiagnosticArray, DIAGNOSTICS_TOPIC, self._on_report, 1)

    def subscriptions(self, publisher: Publisher) -> int:
        """Count its subscriptions that are compatible with a publisher."""
        count = 0
        for info in self._node.get_subscriptions_info_by_topic(publisher.topic_name):
            qos = QoSProfile(depth=1, reliability=info.qos_profile.reliability,
                             durability=info.qos_profile.durability)
            compatibility, _ = qos_check_compatible(publisher.qos_profile, qos)
            name = f'{info.node_namespace.rstrip("/")}/{info.node_name}'
            count += name == self.name and compatibility != QoSCompatibility.ERROR
        return count

    def _on_report(self, report: DiagnosticArray) -> None:
        account = Counter[str]()
        for status in report.status:
            values = {pair.key: pair.value for pair in status.values}
            if status.name.startswith(f'{self.name[1:]}: frames'):
                account.update({key: int(values[key]) for key in ACCOUNT})
        if account:
            self.accounts.append(account)

    def check(self, images: int, stop: Event) -> None:
        """Wait until the node has processed the images, and log how many have depth.

        Args:
            images: number of played images.
            stop: ends the wait when it is set.

        Raises:
            DepthClipError: no image has depth, although depth has a subscriber; or the node ended.

        """
        info, warn = self._node.get_logger().info, self._node.get_logger().warning
        if not self.accounts:
            warn(f'{self.name} does not report on {DIAGNOSTICS_TOPIC}: how many of the {images} '
                 'images it has answered is unknown.')
            return
        first, self.accounts = self.accounts[-1], []
        deadline, is_done = time.monotonic() + ACCOUNT_SECONDS, False
        while not (is_done or stop.is_set() or time.monotonic() > deadline):
            rclpy.spin_once(self._node, timeout_sec=0.1)
            if self.accounts and not self.accounts[-1]['pending']:
                # The first report may be from before the end, unless it counts all images.
                is_done = self.accounts[-1]['received'] - first['received'] >= images \
                    or self.accounts[-1] in self.accounts[1:-1]
        if stop.is_set():
            return
        if not is_done and len(self.accounts) < 2:
            raise DepthClipError(f'{self.name} has ended, or hangs: it reports no more on '
                                 f'{DIAGNOSTICS_TOPIC}.')
        account = {key: self.accounts[-1][key] - first[key] for key in ACCOUNT}
        text = f'{self.name} has answered {account["published"]} of {images} images: ' \
            + ', '.join(f'{key} {count}' for key, count in account.items())
        if not account['published'] and not account['idle']:
            raise DepthClipError(f'{text}. Its log and {DIAGNOSTICS_TOPIC} say why.')
        (info if account['received'] >= images else warn)(text)


def play(node: Node, bag: Bag, options: argparse.Namespace, stop: Event) -> None:
    """Play a bag to its end or until `stop`, and log the number of messages.

    Args:
        node: owner of the publishers.
        bag: to play.
        options: of `parser()`.
        stop: ends playing when it is set, by a signal handler or another thread.

    Raises:
        BagError: the bag is damaged, lacks a topic of --topics, or has no message to play.
        DepthClipError: the node of --wait-for-node has ended, or answered no image.

    """
    publishers, log = _publishers(node, bag, options), node.get_logger().info
    played = Counter[str]()
    clock = node.create_publisher(Clock, CLOCK_TOPIC, 1) if options.clock else None
    consumer = Consumer(node, options.wait_for_node) if options.wait_for_node else None
    _wait_for_subscribers(node, publishers, options, stop, consumer)
    begin = start = time.monotonic()

    def wait_until(stamp: int) -> None:
        due = start + (stamp - bag.begin) / NANOSECONDS / options.rate
        stop.wait(max(0.0, due - time.monotonic()))

    try:
        while not stop.is_set():
            log(f'playing {printable(bag.path)}')
            start, tick = time.monotonic(), bag.begin
            for connection, stamp, data in bag.messages(publishers):
                while clock is not None and tick <= stamp and not stop.is_set():
                    wait_until(tick)
                    message = Clock()
                    message.clock.sec, message.clock.nanosec = divmod(tick, NANOSECONDS)
                    clock.publish(message)
                    tick += max(1, int(NANOSECONDS * options.rate / options.clock))
                wait_until(stamp)
                if stop.is_set():
                    break
                publishers[connection.topic].publish(data)
                played[connection.topic] += 1
            if not options.loop:
                break
    finally:
        log('\n  '.join([
            f'played {played.total()} messages in {time.monotonic() - begin:.2f} s',
            *(f'{topic}: {count}' for topic, count in sorted(played.items()))]))
    # Reliable subscribers get all messages.
    deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
    for publisher in publishers.values():
        if hasattr(publisher, 'wait_for_all_acked') and not stop.is_set():
            publisher.wait_for_all_acked(Duration(seconds=max(0.0, deadline - time.monotonic())))
    images = {topic.name for topic in bag.topics if topic.type in (IMAGE, COMPRESSED_IMAGE)}
    count = sum(played[topic] for topic in images & {*map(topic_name, options.wait_for)})
    if consumer is not None and count:
        consumer.check(count, stop)
    stop.wait(0.1)


def _publishers(node: Node, bag: Bag, options: argparse.Namespace) -> dict[str, Any]:
    """Create publishers of the topics to play whose types are installed."""
    topics = {topic.name: topic for topic in bag.topics}
    requested = [topic_name(name) for name in options.topics]
    missing = sorted(set(requested) - set(topics))
    if missing:
        raise BagError(f'The bag has no topic {", ".join(missing)}. '
                       f'It has: {", ".join(sorted(topics)) or "none"}.')
    publishers = {}
    for name in requested or topics:
        if name == CLOCK_TOPIC and options.clock:
            node.get_logger().info(
                'the recorded /clock is left out: --clock publishes a new one')
            continue
        try:
            publishers[name] = node.create_publisher(
                message_class(topics[name].type), name, recorded_qos(bag, name))
        except (ImportError, AttributeError, ValueError):  # ValueError: no name in ROS
            node.get_logger().warning(f'{name}: its {topics[name].count} messages are skipped, '
                                      f'because {topics[name].type} is not installed here')
    if not any(topics[name].count for name in publishers):
        raise BagError(f'{bag.path} holds no messages to play, or none of a type that is '
                       'installed here.')
    return publishers


def _wait_for_subscribers(
    node: Node, publishers: dict[str, Any], options: argparse.Namespace, stop: Event,
    consumer: Consumer | None,
) -> None:
    """Wait for the subscribers of --wait-for, until they have discovered the publishers.

    --settle counts from the last new node, not from the last new subscription: a node that has
    loaded its network meanwhile adds all its subscriptions at once.
    A node that answers a request has discovered this node; announcements arrive in order, so that
    it has discovered the publishers, too, which are older than the request. The request asks for
    the values of no parameters. A node without that service is not waited for.
    """
    required = Counter(topic for topic in map(topic_name, options.wait_for) if topic in publishers)
    nodes, changed, is_logged = set[tuple[str, str]](), time.monotonic(), False
    complete = math.inf  # time at which the last subscriber came
    while not stop.is_set():
        missing = [topic for topic, count in required.items()
                   if (publishers[topic].get_subscription_count() if consumer is None else
                       consumer.subscriptions(publishers[topic])) < count]
        complete = math.inf if missing else min(complete, time.monotonic())
        present = set(node.get_node_names_and_namespaces())
        if not present <= nodes:
            nodes, changed = nodes | present, time.monotonic()
        if time.monotonic() >= max(changed + options.settle, complete + (
                ANSWER_SECONDS if consumer is not None and not consumer.accounts else 0)):
            break
        if missing and not is_logged:
            is_logged = True
            name = f'{consumer.name} as ' if consumer else ''
            node.get_logger().info(f'waiting for {name}a subscriber of {", ".join(missing)}')
        if consumer is None:
            stop.wait(0.02)
        else:
            rclpy.spin_once(node, timeout_sec=0.02)
    services = {
        f'{info.node_namespace.rstrip("/")}/{info.node_name}/get_parameters' for topic in required
        for info in node.get_subscriptions_info_by_topic(publishers[topic].topic_name)}
    requests = {node.create_client(GetParameters, name): list[Any]()
                for name, _ in node.get_service_names_and_types() if name in services}
    deadline, last_request = time.monotonic() + ANSWER_SECONDS, 0.0
    while not stop.is_set() and (now := time.monotonic()) < deadline and not all(
            any(future.done() for future in futures) for futures in requests.values()):
        if now >= last_request + REQUEST_SECONDS:
            last_request = now
            for client, futures in requests.items():
                futures.append(client.call_async(GetParameters.Request()))
        rclpy.spin_once(node, timeout_sec=0.02)
    for client in requests:
        node.destroy_client(client)


def recorded_qos(bag: Bag, topic: str) -> QoSProfile:
    """Return the quality of service with which to publish a topic.

    It is best effort or latched if all recorded publishers were; else it matches every subscriber
    with default settings. A latched topic keeps all its messages: the recorded depth is 0, because
    no middleware reports it, and several publishers may have sent them.

    Args:
        bag: with the topic.
        topic: its name.

    """
    offers = bag.offers(topic)
    count = sum(count for channel, count in bag.counts.items() if channel.topic == topic)
    best_effort = offers and all(offer.reliability.name == 'BEST_EFFORT' for offer in offers)
    latched = latched_history(topic, offers) != 0
    return QoSProfile(
        depth=max(1, count) if latched else MIN_DEPTH,
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
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
        'discovered the player')
    add('--wait-for-node', default='', metavar='NAME',
        help='of --wait-for count the subscriptions of this depth_node only, such as '
        '/robot/depth_node; a replay of which it answers no image ends with exit code 1')
    add('--settle', type=not_negative, default=0.0, metavar='SECONDS',
        help='and when no new node has come for so long, by when they have discovered each other')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable `bag_player`; returns the exit status."""
    arguments, ros_arguments = split_arguments(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    if options.wait_for_node and not options.wait_for:
        parser().error('--wait-for-node needs --wait-for TOPIC')

    def body(stop: Event) -> int:
        node = rclpy.create_node('bag_player', start_parameter_services=False)
        with Bag(options.bag) as bag:
            play(node, bag, options, stop)
        node.destroy_node()
        return 0

    return run('bag_player', body, ros_arguments)


if __name__ == '__main__':
    end_process(main())
