# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 bag into ROS, in pure Python: `bag_player BAG [--clock] [--loop] …`.

It is there for machines without `ros2 bag`, and it waits for those who listen: until the topics
that are asked for have subscribers, and until these know the player, too. Every message goes out
as the bytes that were recorded: content and header stamps are unchanged, and the times between
messages are the recorded ones, divided by `--rate`.

Publishers: one per topic of the bag, with the recorded reliability and durability; and
/clock (rosgraph_msgs/Clock) with `--clock`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..arguments import not_negative, positive
from ..core.errors import ConfigError, DepthClipError
from ..node.messages import message_class
from ..node.process import explain_arguments
from ..resources import large_images_profile
from .bag import NANOSECONDS, BagError, bag_messages, bag_topics, open_bag

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from rclpy.node import Node
    from rclpy.publisher import Publisher
    from rclpy.qos import QoSProfile
    from rosbags.interfaces import Connection, Qos
    from rosbags.rosbag2 import Reader

CLOCK_HZ = 40.0  # that of `ros2 bag play --clock`
CLOCK_TOPIC = '/clock'
LEAST_DEPTH = 100  # of what is reliable and not latched
SETTLE_SECONDS = 0.5
# Fast DDS repeats an announcement that was lost after 3 s. A subscriber that has not got the
# player's does not know it yet, although the player knows the subscriber.
ANSWER_SECONDS = 4.0
ASK_SECONDS = 0.25
ACKNOWLEDGE_SECONDS = 2.0
REMIND_SECONDS = 10.0
LATE_SECONDS = 0.1


class BagPlayer:
    """Publishes the messages of one bag through one node."""

    def __init__(
        self, node: Node, reader: Reader, options: argparse.Namespace, stop: threading.Event,
    ) -> None:
        """Create the publishers.

        Args:
            node: Node that publishes.
            reader: Open bag.
            options: of `parser()`.
            stop: Ends `play` soon when it is set, by a signal handler or another thread.

        Raises:
            BagError: the bag lacks a topic that is asked for, or holds nothing to play.

        """
        self.played: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self._node, self._log = node, node.get_logger()
        self._reader, self._options, self._stop = reader, options, stop
        self._connections = self._selected()
        self._publishers = self._make_publishers()
        self._clock = _clock_publisher(node) if options.clock else None
        self._late = self._seconds = 0.0

    def play(self) -> None:
        """Play to the end, or until told to stop."""
        wait_for_subscribers(self._node, self._publishers, self._options, self._stop)
        if not self._stop.is_set():
            self._log.info(f'playing {self._reader.path}')
        started = time.monotonic()
        while not self._stop.is_set():
            self._play_once()
            if not self._options.loop:
                break
        self._seconds = time.monotonic() - started
        if not self._stop.is_set():
            self._wait_until_delivered()

    def summary(self) -> str:
        """What was played: lines for the log, one per topic."""
        lines = [f'played {self.played.total()} messages in {self._seconds:.2f} s']
        lines += [f'  {topic}: {count}' for topic, count in sorted(self.played.items())]
        lines += [f'  {topic}: {count} skipped, unknown type'
                  for topic, count in sorted(self.skipped.items())]
        if self._late > LATE_SECONDS:
            lines.append(f'  up to {self._late:.2f} s late: this machine cannot play so fast')
        return '\n'.join(lines)

    def _selected(self) -> list[Connection]:
        """Topics of the bag to play."""
        wanted = self._options.topics
        there = {connection.topic for connection in self._reader.connections}
        missing = sorted(set(wanted) - there)
        if missing:
            raise BagError(f'The bag has no topic {", ".join(missing)}. '
                           f'It has: {", ".join(sorted(there)) or "none"}.')
        chosen = [c for c in self._reader.connections if not wanted or c.topic in wanted]
        if self._options.clock and any(c.topic == CLOCK_TOPIC for c in chosen):
            self._log.info('the recorded /clock is left out: --clock publishes a new one')
            chosen = [c for c in chosen if c.topic != CLOCK_TOPIC]
        if not any(connection.msgcount for connection in chosen):
            raise BagError(f'{self._reader.path} holds no messages to play.')
        return chosen

    def _make_publishers(self) -> dict[str, Publisher]:
        """One publisher per topic whose type this ROS knows."""
        publishers: dict[str, Publisher] = {}
        for connection in self._connections:
            topic = connection.topic
            kind = message_type(connection.msgtype)
            if kind is None:
                self._log.warning(f'{topic}: its {connection.msgcount} messages are skipped, '
                                  f'because {connection.msgtype} is not installed here')
            elif topic not in publishers:
                recorded = [qos for c in self._connections if c.topic == topic
                            for qos in getattr(c.ext, 'offered_qos_profiles', [])]
                publishers[topic] = self._node.create_publisher(
                    kind, topic, qos_profile(recorded))
        if not publishers:
            raise BagError('No type of message in the bag is installed here: nothing to play.')
        return publishers

    def _play_once(self) -> None:
        """Play from the offset to the end.

        Raises:
            BagError: nothing is recorded from there on.

        """
        first = self._reader.start_time + int(self._options.start_offset * NANOSECONDS)
        timeline = _Timeline(first, self._options, self._stop, self._clock)
        last = 0
        for connection, stamp, data in bag_messages(self._reader, self._connections, first):
            late = timeline.advance(stamp)
            if self._stop.is_set():
                return
            last = stamp
            publisher = self._publishers.get(connection.topic)
            if publisher is None:
                self.skipped[connection.topic] += 1
                continue
            publisher.publish(data)
            self.played[connection.topic] += 1
            self._late = max(self._late, late)
        if not last:
            raise BagError(
                f'Nothing is recorded {self._options.start_offset:g} s after the beginning of '
                f'{self._reader.path} or later. Give a smaller --start-offset.')
        if self._options.loop:
            # The last message, too, lasts one period of the most frequent topic.
            most = max(connection.msgcount for connection in self._connections)
            period = (last - first) // (most - 1) if most > 1 else NANOSECONDS
            timeline.advance(last + period)

    def _wait_until_delivered(self) -> None:
        """Keep the publishers until reliable readers have what was sent to them."""
        from rclpy.duration import Duration

        deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
        for publisher in self._publishers.values():
            left = max(0.0, deadline - time.monotonic())
            if hasattr(publisher, 'wait_for_all_acked'):  # not in every rclpy
                publisher.wait_for_all_acked(Duration(seconds=left))
        self._stop.wait(0.1)


class _Timeline:
    """Wall time against bag time, with the ticks of /clock between messages."""

    def __init__(
        self,
        first: int,
        options: argparse.Namespace,
        stop: threading.Event,
        publish_clock: Callable[[int], None] | None,
    ) -> None:
        self._first = first
        self._rate: float = options.rate
        self._stop = stop
        self._publish_clock = publish_clock
        ticks = NANOSECONDS * options.rate / options.clock if options.clock else 0
        self._tick = max(1, int(ticks))
        self._next_tick = first
        self._start = time.monotonic()

    def advance(self, stamp: int) -> float:
        """Wait until bag time `stamp` (ns); returns how late it is already (s)."""
        while self._publish_clock and self._next_tick <= stamp and not self._stop.is_set():
            self._wait(self._next_tick)
            self._publish_clock(self._next_tick)
            self._next_tick += self._tick
        return self._wait(stamp)

    def _wait(self, stamp: int) -> float:
        due = self._start + (stamp - self._first) / NANOSECONDS / self._rate
        ahead = due - time.monotonic()
        if ahead > 0:
            self._stop.wait(ahead)
        return max(0.0, -ahead)


def wait_for_subscribers(
    node: Node, publishers: dict[str, Publisher], options: argparse.Namespace,
    stop: threading.Event,
) -> None:
    """Wait as the options say, tell what for, and let the subscribers find the player.

    A node that is new on the graph finds what was there before it only with that one's next
    announcement. So what counts as quiet is that no node has come, and not no subscription: those
    of a node that has loaded its network for long meanwhile are known at once.
    """
    start = changed = time.monotonic()
    reminded, known = 0.0, set[tuple[str, str]]()
    while options.wait_for_subscribers and not stop.is_set():
        found = {topic: publisher.get_subscription_count()
                 for topic, publisher in publishers.items()}
        now, total = time.monotonic(), sum(found.values())
        lacking = [topic for topic in options.wait_for if not found.get(topic, 1)]
        if not known >= (nodes := set(node.get_node_names_and_namespaces())):
            known, changed = known | nodes, now
        if total and not lacking and now - changed >= options.settle:
            break
        missing = f'of {", ".join(lacking)}' if lacking else 'of any topic'
        left = options.wait_for_subscribers - (now - start)
        if left <= 0:
            if lacking or not total:
                node.get_logger().warning(
                    f'no subscriber {missing} within {options.wait_for_subscribers:g} s '
                    '(--wait-for-subscribers); playing all the same')
            break
        if (lacking or not total) and now >= reminded + REMIND_SECONDS:
            reminded = now
            node.get_logger().info(f'waiting for a subscriber {missing}, at most {left:.0f} s')
        stop.wait(0.02)
    if options.wait_for_subscribers:
        wait_until_known(node, [publisher.topic_name for publisher in publishers.values()], stop)


def wait_until_known(node: Node, topics: Collection[str], stop: threading.Event) -> None:
    """Wait until those who subscribe know this node's publishers, or `ANSWER_SECONDS` are over.

    A node that answers a request has found whoever asks; announcements come in their order, so
    that it has found the publishers, which are older than the request. What is asked for is
    nothing: the values of no parameters. A node without such a service is not waited for.
    """
    import rclpy
    from rcl_interfaces.srv import GetParameters

    infos = [info for topic in topics for info in node.get_subscriptions_info_by_topic(topic)]
    names = {f'{info.node_namespace.rstrip("/")}/{info.node_name}' for info in infos}
    services = {service for service, _ in node.get_service_names_and_types()}
    clients = [node.create_client(GetParameters, service)
               for service in sorted(f'{name}/get_parameters' for name in names)
               if service in services]
    answers: dict[Any, list[Any]] = {client: [] for client in clients}
    deadline, asked = time.monotonic() + ANSWER_SECONDS, 0.0
    while not stop.is_set() and (now := time.monotonic()) < deadline and not all(
            any(future.done() for future in futures) for futures in answers.values()):
        if now >= asked + ASK_SECONDS:
            asked = now
            for client, futures in answers.items():
                futures.append(client.call_async(GetParameters.Request()))
        rclpy.spin_once(node, timeout_sec=0.02)
    for client in clients:
        node.destroy_client(client)


def message_type(name: str) -> Any | None:
    """Python class of a message type such as 'sensor_msgs/msg/Image'; None when not installed."""
    try:
        return message_class(name)
    except (ImportError, AttributeError):
        return None


def qos_profile(recorded: Sequence[Qos]) -> QoSProfile:
    """Quality of service to publish with.

    The recorded one where the bag knows a single one, not shallower than `LEAST_DEPTH` where it
    is reliable; else reliable and volatile, which every subscriber with the usual settings can
    receive.
    """
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    profile = QoSProfile(
        depth=LEAST_DEPTH,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE,
    )
    names = {(qos.reliability.name, qos.durability.name, qos.history.name) for qos in recorded}
    if len(names) != 1:
        return profile
    reliability, durability, history = names.pop()
    if reliability == 'BEST_EFFORT':
        profile.reliability = ReliabilityPolicy.BEST_EFFORT
    if durability == 'TRANSIENT_LOCAL':
        profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
    if history == 'KEEP_ALL':
        profile.history = HistoryPolicy.KEEP_ALL
    elif history == 'KEEP_LAST':
        profile.depth = max(qos.depth for qos in recorded) or LEAST_DEPTH
        if (reliability, durability) == ('RELIABLE', 'VOLATILE'):
            # To subscribers the depth is nothing but what a busy one of them may lose.
            profile.depth = max(profile.depth, LEAST_DEPTH)
    return profile


def _clock_publisher(node: Node) -> Callable[[int], None]:
    """Return a function that publishes a bag time (ns) on /clock."""
    from builtin_interfaces.msg import Time
    from rclpy.qos import QoSProfile
    from rosgraph_msgs.msg import Clock

    publisher = node.create_publisher(Clock, CLOCK_TOPIC, QoSProfile(depth=1))

    def publish(stamp: int) -> None:
        sec, nanosec = divmod(stamp, NANOSECONDS)
        publisher.publish(Clock(clock=Time(sec=sec, nanosec=nanosec)))

    return publish


def _remapping(text: str) -> str:
    old, separator, new = text.partition(':=')
    if not (old and separator and new):
        raise argparse.ArgumentTypeError(f"'{text}' is not OLD:=NEW")
    return text


def split_ros_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate a command line into our arguments and those from `--ros-args` to `--`.

    rclpy's own `remove_ros_args` also takes every OLD:=NEW away, and so the values of `--remap`.
    """
    own: list[str] = []
    ros: list[str] = []
    inside = False
    for argument in arguments:
        if argument == '--ros-args':
            inside = True
        (ros if inside else own).append(argument)
        if argument == '--':
            inside = False
    return own, ros


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
    add('--clock', type=positive, nargs='?', const=CLOCK_HZ, default=0.0, metavar='HZ',
        help=f'publish the time of the bag on /clock ({CLOCK_HZ:g} Hz unless given)')
    add('--topics', nargs='+', default=[], metavar='TOPIC', help='play these only')
    add('-m', '--remap', nargs='+', type=_remapping, default=[], metavar='OLD:=NEW',
        help='publish a topic under another name')
    add('--start-offset', type=not_negative, default=0.0, metavar='SECONDS',
        help='skip this much of the bag')
    add('--wait-for-subscribers', type=not_negative, default=0.0, metavar='SECONDS',
        help='wait so long for a first subscriber, and until the subscribers have found the '
        'player, before playing')
    add('--wait-for', nargs='+', default=[], metavar='TOPIC',
        help='with --wait-for-subscribers: these topics must each have one')
    add('--list', action='store_true',
        help='print the topics as JSON, each a name, a type and a number of messages, and end')
    add('--settle', type=not_negative, default=SETTLE_SECONDS, metavar='SECONDS',
        help='begin when no further node has come for so long (%(default)s)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the executable `bag_player`; returns the exit status."""
    own, ros = split_ros_arguments(list(sys.argv[1:] if argv is None else argv))
    given = parser().parse_args(own)
    for rule in given.remap:
        ros += ['--ros-args', '-r', rule, '--']
    try:
        if given.list:
            print(json.dumps([dataclasses.astuple(topic) for topic in bag_topics(given.bag)]))
        else:
            _play(given, ros)
    except DepthClipError as error:
        print(f'bag_player: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before our own handler is there
        return 130
    return 0


def _play(given: argparse.Namespace, ros: list[str]) -> None:
    try:
        import rclpy
        from rclpy.signals import SignalHandlerOptions
    except ImportError as error:
        raise BagError(f'rclpy cannot be imported ({error}). Source a ROS 2 setup file, or '
                       "install the wheels: pip install '.[ros]'.") from error
    stop = threading.Event()
    os.environ.update(large_images_profile(os.environ))
    # Signals are ours: they end the playing, and the summary still comes.
    try:
        rclpy.init(args=['bag_player', *ros], signal_handler_options=SignalHandlerOptions.NO)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(explain_arguments(ros, error)) from error
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with closing(open_bag(given.bag)) as reader:
            node = rclpy.create_node('bag_player', start_parameter_services=False)
            player = BagPlayer(node, reader, given, stop)
            try:
                player.play()
            finally:
                node.get_logger().info(player.summary())
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())
