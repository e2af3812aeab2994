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
from ..messages.types import COMPRESSED_IMAGE, IMAGE, message_class, topic_name
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
LEAST_DEPTH = 100  # to subscribers it is nothing but what a busy one of them may lose
# Fast DDS repeats an announcement that was lost after 3 s. A subscriber that has not got the
# player's does not know it yet, although the player knows the subscriber.
ANSWER_SECONDS, ASK_SECONDS = 4.0, 0.25
ACKNOWLEDGE_SECONDS = 2.0
ACCOUNT_SECONDS = 10.0  # for the last images of a node, which reports every second
ACCOUNT = ('received', 'published', 'dropped', 'rejected', 'idle', 'pending')


class Consumer:
    """The depth_node that is played for: what it subscribes to, and its account of images."""

    def __init__(self, node: Node, name: str) -> None:
        """Listen to the reports of the node with this fully qualified name."""
        self._node, self.name = node, f'/{name.strip("/")}'
        self.accounts = list[Counter[str]]()  # of all its cameras together
        # Of those that come while nobody takes them only the newest counts.
        node.create_subscription(DiagnosticArray, DIAGNOSTICS_TOPIC, self._on_report, 1)

    def subscriptions(self, publisher: Publisher) -> int:
        """How many it has that can receive what a publisher sends."""
        count = 0
        for info in self._node.get_subscriptions_info_by_topic(publisher.topic_name):
            asked = QoSProfile(depth=1, reliability=info.qos_profile.reliability,
                               durability=info.qos_profile.durability)
            is_heard, _ = qos_check_compatible(publisher.qos_profile, asked)
            name = f'{info.node_namespace.rstrip("/")}/{info.node_name}'
            count += name == self.name and is_heard != QoSCompatibility.ERROR
        return count

    def _on_report(self, report: DiagnosticArray) -> None:
        account, known = Counter[str](), False
        for status in report.status:
            values = {pair.key: pair.value for pair in status.values}
            if status.name.startswith(f'{self.name[1:]}: frames'):
                known = True
                account.update({key: int(values[key]) for key in ACCOUNT})
        if known:
            self.accounts.append(account)

    def check(self, images: int, stop: Event) -> None:
        """Wait until the node has done with the images, and say how many have got depth.

        Args:
            images: that were played.
            stop: ends this soon.

        Raises:
            DepthClipError: none, although somebody wanted depth; or the node has ended.

        """
        say, warn = self._node.get_logger().info, self._node.get_logger().warning
        if not self.accounts:
            warn(f'{self.name} does not report on {DIAGNOSTICS_TOPIC}: how many of the {images} '
                 'images it has answered is unknown.')
            return
        first, self.accounts = self.accounts[-1], []
        deadline, is_done = time.monotonic() + ACCOUNT_SECONDS, False
        while not (is_done or stop.is_set() or time.monotonic() > deadline):
            rclpy.spin_once(self._node, timeout_sec=0.1)
            if self.accounts and not self.accounts[-1]['pending']:
                # The first may be of before the end, unless it tells of all images.
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
        (say if account['received'] >= images else warn)(text)


def play(node: Node, bag: Bag, options: argparse.Namespace, stop: Event) -> None:
    """Play a bag to its end, or until told to stop; says how much at last.

    Args:
        node: that publishes.
        bag: what to play.
        options: of `parser()`.
        stop: ends this soon when it is set, by a signal handler or another thread.

    Raises:
        BagError: the bag is damaged, lacks a topic that is asked for, or holds nothing to play.
        DepthClipError: the node that was waited for has ended, or answered no image.

    """
    publishers, say = _publishers(node, bag, options), node.get_logger().info
    played = Counter[str]()
    clock = node.create_publisher(Clock, CLOCK_TOPIC, 1) if options.clock else None
    consumer = Consumer(node, options.wait_for_node) if options.wait_for_node else None
    _wait_for_subscribers(node, publishers, options, stop, consumer)
    started = start = time.monotonic()

    def wait_until(stamp: int) -> None:
        due = start + (stamp - bag.begin) / NANOSECONDS / options.rate
        stop.wait(max(0.0, due - time.monotonic()))

    try:
        while not stop.is_set():
            say(f'playing {printable(bag.path)}')
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
        say('\n  '.join([
            f'played {played.total()} messages in {time.monotonic() - started:.2f} s',
            *(f'{topic}: {count}' for topic, count in sorted(played.items()))]))
    # Reliable readers get what was sent to them.
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
    """Of the topics that are to be played, and whose types are installed."""
    there = {topic.name: topic for topic in bag.topics}
    asked = [topic_name(name) for name in options.topics]
    missing = sorted(set(asked) - set(there))
    if missing:
        raise BagError(f'The bag has no topic {", ".join(missing)}. '
                       f'It has: {", ".join(sorted(there)) or "none"}.')
    publishers = {}
    for name in asked or there:
        if name == CLOCK_TOPIC and options.clock:
            node.get_logger().info(
                'the recorded /clock is left out: --clock publishes a new one')
            continue
        try:
            publishers[name] = node.create_publisher(
                message_class(there[name].type), name, recorded_qos(bag, name))
        except (ImportError, AttributeError, ValueError):  # the last of what is no name in ROS
            node.get_logger().warning(f'{name}: its {there[name].count} messages are skipped, '
                                      f'because {there[name].type} is not installed here')
    if not any(there[name].count for name in publishers):
        raise BagError(f'{bag.path} holds no messages to play, or none of a type that is '
                       'installed here.')
    return publishers


def _wait_for_subscribers(
    node: Node, publishers: dict[str, Any], options: argparse.Namespace, stop: Event,
    consumer: Consumer | None,
) -> None:
    """Wait until those of --wait-for are there, and know this node's publishers.

    What counts as quiet is that no node has come, and not no subscription: those of a node that
    has loaded its network for long meanwhile are known at once.
    A node that answers a request has found whoever asks; announcements come in their order, so
    that it has found the publishers, which are older than the request. What is asked for is
    nothing: the values of no parameters. A node without such a service is not waited for.
    """
    wanted = Counter(topic for topic in map(topic_name, options.wait_for) if topic in publishers)
    known, changed, told = set[tuple[str, str]](), time.monotonic(), False
    complete = math.inf  # when the last subscriber was there
    while not stop.is_set():
        lacking = [topic for topic, count in wanted.items()
                   if (publishers[topic].get_subscription_count() if consumer is None else
                       consumer.subscriptions(publishers[topic])) < count]
        complete = math.inf if lacking else min(complete, time.monotonic())
        nodes = set(node.get_node_names_and_namespaces())
        if not nodes <= known:
            known, changed = known | nodes, time.monotonic()
        if time.monotonic() >= max(changed + options.settle, complete + (
                ANSWER_SECONDS if consumer is not None and not consumer.accounts else 0)):
            break
        if lacking and not told:
            told = True
            who = f'{consumer.name} as ' if consumer else ''
            node.get_logger().info(f'waiting for {who}a subscriber of {", ".join(lacking)}')
        if consumer is None:
            stop.wait(0.02)
        else:
            rclpy.spin_once(node, timeout_sec=0.02)
    services = {
        f'{info.node_namespace.rstrip("/")}/{info.node_name}/get_parameters' for topic in wanted
        for info in node.get_subscriptions_info_by_topic(publishers[topic].topic_name)}
    unanswered = {node.create_client(GetParameters, name): list[Any]()
                  for name, _ in node.get_service_names_and_types() if name in services}
    deadline, asked = time.monotonic() + ANSWER_SECONDS, 0.0
    while not stop.is_set() and (now := time.monotonic()) < deadline and not all(
            any(future.done() for future in sent) for sent in unanswered.values()):
        if now >= asked + ASK_SECONDS:
            asked = now
            for client, sent in unanswered.items():
                sent.append(client.call_async(GetParameters.Request()))
        rclpy.spin_once(node, timeout_sec=0.02)
    for client in unanswered:
        node.destroy_client(client)


def recorded_qos(bag: Bag, topic: str) -> QoSProfile:
    """Quality of service to publish a topic with.

    Best effort or latched where all recorded publishers were, and else as every subscriber with
    the usual settings can receive it. What is latched is kept whole: the recorded depth is 0,
    because no middleware tells it, and the messages may be of several publishers.

    Args:
        bag: with the topic.
        topic: by its name.

    """
    offers = bag.offers(topic)
    count = sum(count for channel, count in bag.counts.items() if channel.topic == topic)
    best_effort = offers and all(offer.reliability.name == 'BEST_EFFORT' for offer in offers)
    latched = latched_history(topic, offers) != 0
    return QoSProfile(
        depth=max(1, count) if latched else LEAST_DEPTH,
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


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
    add('--wait-for-node', default='', metavar='NAME',
        help='of --wait-for count the subscriptions of this depth_node only, such as '
        '/robot/depth_node; a replay of which it answers no image ends with exit code 1')
    add('--settle', type=not_negative, default=0.0, metavar='SECONDS',
        help='and when no further node has come for so long: they have found one another, too')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the executable `bag_player`; returns the exit status."""
    given, of_ros = split_arguments(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(given)
    if options.wait_for_node and not options.wait_for:
        parser().error('--wait-for-node needs --wait-for TOPIC')

    def body(stop: Event) -> int:
        node = rclpy.create_node('bag_player', start_parameter_services=False)
        with Bag(options.bag) as bag:
            play(node, bag, options, stop)
        node.destroy_node()
        return 0

    return run('bag_player', body, of_ros)


if __name__ == '__main__':
    end_process(main())
