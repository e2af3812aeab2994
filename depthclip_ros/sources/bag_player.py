# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 bag into ROS, in pure Python: `bag_player BAG [--clock] [--loop] …`.

Where the Python package rosbags is missing, or with --rosbag2, `ros2 bag play` takes over once
the subscribers that are waited for are there.

Every message goes out as the bytes that were recorded: content and header stamps are unchanged,
and the times between messages are the recorded ones, divided by `--rate`.

Publishers: one per topic of the bag, with the recorded reliability and durability; and
/clock (rosgraph_msgs/Clock) with `--clock`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..arguments import not_negative, positive
from ..core.errors import ConfigError, DepthClipError
from ..node.process import explain_arguments
from ..resources import large_images_profile
from . import rosbag2
from .bag import NANOSECONDS, BagError, bag_messages, bag_topics, open_bag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rclpy.node import Node
    from rclpy.publisher import Publisher
    from rclpy.qos import QoSProfile
    from rosbags.interfaces import Connection, Qos
    from rosbags.rosbag2 import Reader

CLOCK_HZ = 40.0  # that of `ros2 bag play --clock`
CLOCK_TOPIC = '/clock'
DEFAULT_DEPTH = 10
LEAST_DEPTH = 100  # of what is reliable and not latched
SETTLE_SECONDS = 0.5  # after the first subscriber, the others of a node follow within this
ACKNOWLEDGE_SECONDS = 2.0
REMIND_SECONDS = 10.0


@dataclass(frozen=True)
class Options:
    """What to play, and how.

    Attributes:
        rate: Speed; 2.0 plays twice as fast.
        loop: Start again at the end, until stopped.
        clock: Rate of /clock in Hz of wall time; 0: none.
        topics: Topics to play; empty: all.
        start_offset: Seconds of the bag to skip.
        wait_for_subscribers: Seconds to wait for a first subscriber; 0: do not wait.
        settle: Seconds without a further subscriber after which the waiting ends.
        wait_for: Topics, as in the bag, each of which must have a subscriber before.

    """

    rate: float = 1.0
    loop: bool = False
    clock: float = 0.0
    topics: tuple[str, ...] = ()
    start_offset: float = 0.0
    wait_for_subscribers: float = 0.0
    settle: float = SETTLE_SECONDS
    wait_for: tuple[str, ...] = ()


@dataclass
class Summary:
    """What was played.

    Attributes:
        messages: Published messages by topic of the bag.
        skipped: Messages not published, by topic, because this ROS lacks their type.
        passes: Complete passes over the bag.
        latest: Largest delay of a message behind its time (s).
        seconds: Wall time from the first message to the last.

    """

    messages: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    passes: int = 0
    latest: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        """Lines for the log: one per topic."""
        lines = [f'played {sum(self.messages.values())} messages in {self.seconds:.2f} s']
        lines += [f'  {topic}: {count}' for topic, count in sorted(self.messages.items())]
        lines += [
            f'  {topic}: {count} skipped, unknown type'
            for topic, count in sorted(self.skipped.items())
        ]
        if self.latest > 0.1:
            lines.append(f'  up to {self.latest:.2f} s late: this machine cannot play so fast')
        return '\n'.join(lines)


class BagPlayer:
    """Publishes the messages of one bag through one node."""

    def __init__(
        self, node: Node, reader: Reader, options: Options, stop: threading.Event,
    ) -> None:
        """Create the publishers.

        Args:
            node: Node that publishes.
            reader: Open bag.
            options: What to play.
            stop: Ends `play` soon when it is set, by a signal handler or another thread.

        Raises:
            BagError: the bag lacks a topic that is asked for, or holds nothing to play.

        """
        self.summary = Summary()
        self._node = node
        self._log = node.get_logger()
        self._reader = reader
        self._options = options
        self._stop = stop
        self._connections = self._selected()
        self._publishers = self._make_publishers()
        self._clock: Callable[[int], None] | None = None
        if options.clock:
            self._clock = _clock_publisher(node)

    def play(self) -> Summary:
        """Play to the end, or until told to stop."""
        self._wait_for_subscribers()
        if not self._stop.is_set():
            self._log.info(f'playing {self._reader.path}')
        first = self._reader.start_time + int(self._options.start_offset * NANOSECONDS)
        started = time.monotonic()
        while not self._stop.is_set():
            self._play_once(first)
            if self._stop.is_set():
                break
            self.summary.passes += 1
            if not self._options.loop:
                break
        self.summary.seconds = time.monotonic() - started
        self._wait_until_delivered()
        return self.summary

    def _selected(self) -> list[Connection]:
        """Topics of the bag to play."""
        available = {connection.topic for connection in self._reader.connections}
        missing = sorted(set(self._options.topics) - available)
        if missing:
            raise BagError(
                f'The bag has no topic {", ".join(missing)}. '
                f'It has: {", ".join(sorted(available)) or "none"}.'
            )
        chosen = [
            connection
            for connection in self._reader.connections
            if not self._options.topics or connection.topic in self._options.topics
        ]
        if self._options.clock:
            own = [connection for connection in chosen if connection.topic == CLOCK_TOPIC]
            if own:
                self._log.info('the recorded /clock is left out: --clock publishes a new one')
            chosen = [connection for connection in chosen if connection not in own]
        if not any(connection.msgcount for connection in chosen):
            raise BagError(f'{self._reader.path} holds no messages to play.')
        return chosen

    def _make_publishers(self) -> dict[str, Publisher]:
        """One publisher per topic whose type this ROS knows."""
        publishers: dict[str, Publisher] = {}
        profiles: dict[str, list[Qos]] = {}
        for connection in self._connections:
            offered = getattr(connection.ext, 'offered_qos_profiles', [])
            profiles.setdefault(connection.topic, []).extend(offered)
        for connection in self._connections:
            if connection.topic in publishers:
                continue
            kind = message_type(connection.msgtype)
            if kind is None:
                self._log.warning(
                    f'{connection.topic}: its {connection.msgcount} messages are skipped, because '
                    f'{connection.msgtype} is not installed here'
                )
                continue
            profile = qos_profile(profiles[connection.topic])
            publishers[connection.topic] = self._node.create_publisher(
                kind, connection.topic, profile
            )
        if not publishers:
            raise BagError('No type of message in the bag is installed here: nothing to play.')
        return publishers

    def _wait_for_subscribers(self) -> None:
        """Wait for the first subscriber, and until no more come."""
        wait_for_subscribers(
            lambda: {t: p.get_subscription_count() for t, p in self._publishers.items()},
            self._options, self._log, self._stop)

    def _play_once(self, first: int) -> None:
        """Play from bag time `first` (ns) to the end.

        Raises:
            BagError: nothing is recorded from there on.

        """
        timeline = _Timeline(first, self._options, self._stop, self._clock)
        last = 0
        for connection, stamp, data in bag_messages(self._reader, self._connections, first):
            late = timeline.advance(stamp)
            if self._stop.is_set():
                return
            last = stamp
            publisher = self._publishers.get(connection.topic)
            if publisher is None:
                self.summary.skipped[connection.topic] += 1
                continue
            publisher.publish(data)
            self.summary.messages[connection.topic] += 1
            self.summary.latest = max(self.summary.latest, late)
        if not last:
            raise BagError(
                f'Nothing is recorded {self._options.start_offset:g} s after the beginning of '
                f'{self._reader.path} or later. Give a smaller --start-offset.')
        if self._options.loop:
            # The last message, too, lasts one period, so that the rate holds over the seam.
            timeline.advance(last + self._period(last - first))

    def _period(self, duration: int) -> int:
        """Mean time (ns) between the messages of the most frequent topic."""
        most = max(connection.msgcount for connection in self._connections)
        return duration // (most - 1) if most > 1 else NANOSECONDS

    def _wait_until_delivered(self) -> None:
        """Keep the publishers until reliable readers have what was sent to them."""
        from rclpy.duration import Duration

        if self._stop.is_set():
            return
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
        options: Options,
        stop: threading.Event,
        publish_clock: Callable[[int], None] | None,
    ) -> None:
        self._first = first
        self._rate = options.rate
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
    counts: Callable[[], dict[str, int]], options: Options, log: Any, stop: threading.Event,
) -> None:
    """Wait as the options say, and tell what for.

    Args:
        counts: gives the number of subscribers by topic, as in the bag.
        options: how long, and for which topics.
        log: of the node.
        stop: ends the waiting.

    """
    start = time.monotonic()
    reminded, before, changed = 0.0, 0, start
    while options.wait_for_subscribers and not stop.is_set():
        found, now = counts(), time.monotonic()
        total = sum(found.values())
        lacking = [topic for topic in options.wait_for if not found.get(topic, 1)]
        if total != before:
            before, changed = total, now
        if total and not lacking and now - changed >= options.settle:
            return
        missing = f'of {", ".join(lacking)}' if lacking else 'of any topic'
        if now - start >= options.wait_for_subscribers:
            if lacking or not total:
                text = (f'no subscriber {missing} within {options.wait_for_subscribers:g} s '
                        '(--wait-for-subscribers); playing all the same')
                log.warning(text)
            return
        if (lacking or not total) and now >= reminded + REMIND_SECONDS:
            reminded, left = now, options.wait_for_subscribers - (now - start)
            text = f'waiting for a subscriber {missing}, at most {left:.0f} s'
            log.info(text)
        stop.wait(0.02)


def message_type(name: str) -> Any | None:
    """Python class of a message type such as 'sensor_msgs/msg/Image'; None when not installed."""
    package, _, rest = name.partition('/')
    namespace, _, kind = rest.partition('/')
    try:
        return getattr(importlib.import_module(f'{package}.{namespace or "msg"}'), kind)
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
        profile.depth = max(qos.depth for qos in recorded) or DEFAULT_DEPTH
    if (reliability, durability, history) == ('RELIABLE', 'VOLATILE', 'KEEP_LAST'):
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
    parser.add_argument('bag', metavar='BAG', help='bag folder, or a .mcap or .db3 file')
    parser.add_argument(
        '-r', '--rate', type=positive, default=1.0, help='speed; 2 is twice as fast (%(default)s)'
    )
    parser.add_argument('-l', '--loop', action='store_true', help='start again at the end')
    parser.add_argument(
        '--clock',
        type=positive,
        nargs='?',
        const=CLOCK_HZ,
        default=0.0,
        metavar='HZ',
        help=f'publish the time of the bag on /clock ({CLOCK_HZ:g} Hz unless given)',
    )
    parser.add_argument('--topics', nargs='+', default=[], metavar='TOPIC', help='play these only')
    parser.add_argument(
        '-m',
        '--remap',
        nargs='+',
        type=_remapping,
        default=[],
        metavar='OLD:=NEW',
        help='publish a topic under another name',
    )
    parser.add_argument(
        '--start-offset',
        type=not_negative,
        default=0.0,
        metavar='SECONDS',
        help='skip this much of the bag',
    )
    parser.add_argument(
        '--wait-for-subscribers',
        type=not_negative,
        default=0.0,
        metavar='SECONDS',
        help='wait so long for a first subscriber before playing',
    )
    parser.add_argument(
        '--wait-for',
        nargs='+',
        default=[],
        metavar='TOPIC',
        help='with --wait-for-subscribers: these topics must each have one',
    )
    parser.add_argument(
        '--rosbag2',
        action='store_true',
        help='wait, then let `ros2 bag play` play; so it is also where rosbags is not installed',
    )
    parser.add_argument(
        '--list',
        action='store_true',
        help='print the topics as JSON, each a name, a type and a number of messages, and end',
    )
    parser.add_argument(
        '--settle',
        type=not_negative,
        default=SETTLE_SECONDS,
        metavar='SECONDS',
        help='begin when no further subscriber has come for so long (%(default)s)',
    )
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
            return 0
        return _play(given, ros)
    except DepthClipError as error:
        print(f'bag_player: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before our own handler is there
        return 130


def _play(given: argparse.Namespace, ros: list[str]) -> int:
    try:
        import rclpy
        from rclpy.signals import SignalHandlerOptions
    except ImportError as error:
        raise BagError(f'rclpy cannot be imported ({error}). Source a ROS 2 setup file, or '
                       "install the wheels: pip install '.[ros]'.") from error
    options = Options(
        rate=given.rate,
        loop=given.loop,
        clock=given.clock,
        topics=tuple(given.topics),
        start_offset=given.start_offset,
        wait_for_subscribers=given.wait_for_subscribers,
        settle=given.settle,
        wait_for=tuple(given.wait_for),
    )
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
        if not (given.rosbag2 or rosbag2.is_needed(given.bag)):
            return _play_ourselves(given.bag, options, stop)
        command = rosbag2.command(given)
        _wait_for_listeners(given, options, stop)
    finally:
        rclpy.try_shutdown()
    if not stop.is_set():
        # One process from here on: signals and the exit code are the player's own.
        os.execvp(command[0], command)  # noqa: S606
    return 0


def _play_ourselves(bag: str, options: Options, stop: threading.Event) -> int:
    import rclpy

    reader = open_bag(bag)
    try:
        node = rclpy.create_node('bag_player', start_parameter_services=False)
        player = BagPlayer(node, reader, options, stop)
        try:
            player.play()
        finally:
            node.get_logger().info(str(player.summary))
        node.destroy_node()
    finally:
        reader.close()
    return 0


def _wait_for_listeners(
    given: argparse.Namespace, options: Options, stop: threading.Event,
) -> None:
    """Wait for those to whom `ros2 bag play` is going to play."""
    import rclpy

    node = rclpy.create_node('bag_player', start_parameter_services=False)
    names = dict(rule.split(':=', 1) for rule in given.remap)
    topics = options.topics or options.wait_for or [t.name for t in bag_topics(given.bag)]
    wait_for_subscribers(
        lambda: {topic: node.count_subscribers(names.get(topic, topic)) for topic in topics},
        options, node.get_logger(), stop)
    node.get_logger().info(f'playing {given.bag} by ros2 bag play')
    node.destroy_node()


if __name__ == '__main__':
    sys.exit(main())
