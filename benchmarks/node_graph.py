# SPDX-License-Identifier: Apache-2.0
"""The graph around a measured node: a process of cameras before it, a receiver behind it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
import ros_harness as ros  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.executors import (  # noqa: E402
    ExternalShutdownException,
    ShutdownException,
    SingleThreadedExecutor,
)
from rclpy.qos import QoSProfile  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image, PointCloud2  # noqa: E402

from depthclip_ros.node.process import keep_freed_memory  # noqa: E402

PATIENCE = 120.0  # seconds
STAMP = struct.Struct('<iI')  # at byte 4 of a serialised message that begins with a header
OTHER_OUTPUTS = {'depth/camera_info': CameraInfo, 'points': PointCloud2}


def stamp_of(raw: bytes) -> int:
    """Nanoseconds of a serialised message that begins with a header."""
    if raw[1] != 1:
        raise RuntimeError('this benchmark reads little-endian messages only')
    seconds, nanoseconds = STAMP.unpack_from(raw, 4)
    return int(seconds * 10**9 + nanoseconds)


# Cameras ---------------------------------------------------------------------------------------


class Cameras:
    """A process that publishes images and camera_infos on demand."""

    def __init__(self, domain: int, names: Sequence[str], rgb: np.ndarray) -> None:
        spawn = multiprocessing.get_context('spawn')
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_publish_on_demand, args=(theirs, domain, tuple(names), rgb), daemon=True)
        self._process.start()

    def send(self, rate: float, seconds: float) -> dict[str, list[int]]:
        """Publish at `rate` (Hz) for every camera; give the stamps that were sent, by camera."""
        self._pipe.send((rate, seconds))
        if not self._pipe.poll(seconds + PATIENCE):
            raise RuntimeError('the process of cameras does not answer')
        sent: dict[str, list[int]] = self._pipe.recv()
        return sent

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join(PATIENCE)


def _publish_on_demand(
    pipe: Any, domain: int, names: tuple[str, ...], rgb: np.ndarray,
) -> None:
    keep_freed_memory()
    rclpy.init(domain_id=domain)
    node = rclpy.create_node('cameras')
    image = ros.image(ros.Header(frame_id=ros.FRAME), rgb, 'rgb8')
    info = ros.camera_info(image.header, image.width, image.height)
    # Serialised once; the stamp is put in for every message.
    serialised = [memoryview(serialize_message(message)) for message in (image, info)]
    publishers = {
        name: [node.create_publisher(kind, f'{name}/{topic}', QoSProfile(depth=5))
               for kind, topic in ((Image, 'image'), (CameraInfo, 'camera_info'))]
        for name in names}
    while (order := pipe.recv()) is not None:
        for pair in publishers.values():
            _wait(lambda pair=pair: all(p.get_subscription_count() for p in pair), 'subscribers')
        pipe.send(_publish_for(publishers, serialised, *order))
    rclpy.shutdown()


def _publish_for(
    publishers: dict[str, list[Any]], serialised: list[memoryview], rate: float, seconds: float,
) -> dict[str, list[int]]:
    """Publish; the cameras take turns evenly within a period."""
    sent: dict[str, list[int]] = {name: [] for name in publishers}
    image, info = serialised
    start, step = time.monotonic(), 1.0 / (rate * len(publishers))
    count = max(1, round(rate * seconds)) * len(publishers)
    turns = list(publishers.items())
    for number in range(count):
        # A camera that is late does not hurry; one that is far behind gives up.
        time.sleep(max(0.0, start + number * step - time.monotonic()))
        if time.monotonic() - start > 1.5 * seconds + 1.0:
            break
        name, (image_publisher, info_publisher) = turns[number % len(turns)]
        now = time.time_ns()
        stamp = STAMP.pack(*divmod(now, 10**9))
        info_publisher.publish(b''.join((info[:4], stamp, info[12:])))
        image_publisher.publish(b''.join((image[:4], stamp, image[12:])))
        sent[name].append(now)
    return sent


# Receiver --------------------------------------------------------------------------------------


class Receiver:
    """Notes when every depth image arrives; the other outputs are subscribed, and never read."""

    def __init__(self, domain: int, names: Sequence[str]) -> None:
        keep_freed_memory()
        self.arrivals: dict[tuple[str, int], int] = {}  # nanoseconds by camera and stamp
        self.last = b''  # depth image as it came
        self.diagnostics: dict[str, dict[str, str]] = {}
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = rclpy.create_node('receiver', context=self._context)
        self._idle = rclpy.create_node('idle_receiver', context=self._context)
        for name in names:
            self._node.create_subscription(
                Image, f'{name}/depth/image', self._callback(name), 10, raw=True)
            for topic, kind in OTHER_OUTPUTS.items():
                self._idle.create_subscription(kind, f'{name}/{topic}', lambda _: None, 1)
        self._node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException, ShutdownException):
            self._executor.spin()

    def _callback(self, name: str) -> Any:
        def note(raw: bytes) -> None:
            now = time.time_ns()
            self.arrivals[name, stamp_of(raw)] = now
            self.last = raw
        return note

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        for status in array.status:
            self.diagnostics[status.name] = ros.values_of(status)

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._thread.join(PATIENCE)
        rclpy.shutdown(context=self._context)
        self._node.destroy_node()
        self._idle.destroy_node()

    def take_milliseconds(self, cameras: Cameras, topic: str, *, raw: bool) -> float:
        """Median time of taking one image from the middleware: what precedes any callback."""
        subscription = self._idle.create_subscription(Image, topic, lambda _: None, 1)
        times = []
        for _ in range(40):
            cameras.send(20.0, 0.05)
            time.sleep(0.02)
            with subscription.handle:
                start = time.perf_counter()
                taken = subscription.handle.take_message(Image, raw)
                duration = time.perf_counter() - start
            if taken is not None:
                times.append(1e3 * duration)
        self._idle.destroy_subscription(subscription)
        return median(times)


# Session ---------------------------------------------------------------------------------------


class Session:
    """One node under measurement, with its cameras and its receiver."""

    def __init__(
        self, process: ros.NodeProcess, cameras: Cameras, receiver: Receiver,
        names: Sequence[str],
    ) -> None:
        self.process, self.cameras, self.receiver = process, cameras, receiver
        self.names = tuple(names)
        self.seconds_per_frame = 0.0
        self._answers = False

    def ask(self) -> float:
        """Send one image of every camera and wait for all depth; give the seconds it took.

        Until the first answers the images are sent again now and then: they may precede the
        discovery. Not later: a slow node has not yet answered the first when others follow.
        """
        end, rounds = time.monotonic() + PATIENCE, []
        while time.monotonic() < end:
            start = time.monotonic()
            sent = self.cameras.send(1000.0, 0.001)
            rounds.append([(name, stamp) for name in self.names for stamp in sent[name]])
            if _wait(lambda: any(all(key in self.receiver.arrivals for key in wanted)
                                 for wanted in rounds), '',
                     timeout=PATIENCE if self._answers else 5.0, strict=False):
                self._answers = True
                return time.monotonic() - start
            self._check_alive()
        raise RuntimeError(f'no answer from the node:\n{self.process.output}')

    def send(self, rate: float, seconds: float, lead: float) -> Trial:
        """Publish at a rate, and see what comes back; the first `lead` seconds do not count."""
        self.receiver.arrivals.clear()
        cpu = self.cpu_seconds()
        sent = self.cameras.send(rate, lead + seconds)
        self._wait_until_quiet()
        self._check_alive()
        cpu = self.cpu_seconds() - cpu
        return Trial(sent, dict(self.receiver.arrivals), lead, cpu)

    def _wait_until_quiet(self) -> None:
        patience = 1.5 + 4.0 * self.seconds_per_frame
        count, since = -1, time.monotonic()
        while time.monotonic() - since < patience:
            if len(self.receiver.arrivals) != count:
                count, since = len(self.receiver.arrivals), time.monotonic()
            time.sleep(0.02)

    def _check_alive(self) -> None:
        if self.process.process.poll() is not None:
            raise RuntimeError(f'the node has ended:\n{self.process.output}')

    def cpu_seconds(self) -> float:
        """CPU time of the node's process, all threads."""
        text = Path(f'/proc/{self.process.process.pid}/stat').read_text(encoding='ascii')
        user, system = text.rpartition(')')[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')

    def own_times(self, frames: int = 0) -> dict[str, float]:
        """Milliseconds that the node has measured itself: 'network', 'overhead', and others.

        Args:
            frames: wait until it has counted so many.

        """
        found: dict[str, float] = {}

        def look() -> bool:
            found.update(self._diagnosed() or self._logged())
            return found.get('frames', -1) >= frames
        _wait(look, 'times of the node')
        return found

    def _diagnosed(self) -> dict[str, float]:
        values = self.receiver.diagnostics.get(f'depth_node: frames of {self.names[0]}')
        if not values:
            return {}
        times = {key.removesuffix(' p50 [ms]').removeprefix('node '): float(value)
                 for key, value in values.items() if key.endswith(' p50 [ms]') and value
                 and not key.startswith('age')}
        return {'frames': float(values['published']), **times}

    def _logged(self) -> dict[str, float]:
        lines: list[str] = re.findall(r'TIMES (\{.*\})', self.process.output)
        return json.loads(lines[-1]) if lines else {}


class Trial:
    """What became of the images of one run.

    Attributes:
        rate: images a second and camera that were really sent.
        sent, received: images that count, of all cameras.
        latencies: milliseconds from stamp to arrival, in the order of stamps.
        seconds: since the first image, for each of `latencies`.
        cpu: milliseconds of the node's process per answered image.

    """

    def __init__(
        self, sent: dict[str, list[int]], arrivals: dict[tuple[str, int], int], lead: float,
        cpu: float,
    ) -> None:
        first = min(stamps[0] for stamps in sent.values())
        last = max(stamps[-1] for stamps in sent.values())
        counted = sorted((stamp, name) for name, stamps in sent.items() for stamp in stamps
                         if stamp >= first + lead * 1e9)
        answered = [(stamp, arrivals[name, stamp]) for stamp, name in counted
                    if (name, stamp) in arrivals]
        per_camera = len(next(iter(sent.values())))
        self.rate = (per_camera - 1) / max(1e-9, (last - first) / 1e9)
        self.sent, self.received = len(counted), len(answered)
        self.latencies = [(arrival - stamp) / 1e6 for stamp, arrival in answered]
        self.seconds = [(stamp - first) / 1e9 for stamp, _ in answered]
        self.cpu = 1e3 * cpu / max(1, len(arrivals))

    @property
    def drops(self) -> float:
        """Part of the images that was never answered."""
        return 1.0 - self.received / max(1, self.sent)

    def percentile(self, percent: float) -> float:
        """Percentile of the latency in milliseconds; NaN if nothing came."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else float('nan')


@contextlib.contextmanager
def session(
    module: str, parameters: dict[str, Any], names: Sequence[str], rgb: np.ndarray,
    cache: str,
) -> Iterator[Session]:
    """Start a node with cameras and a receiver, and wait until every camera is answered."""
    arguments = ['--ros-args']
    for name, value in {**parameters, 'cameras': list(names)}.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ['-p', f'{name}:={text}']
    with contextlib.ExitStack() as stack:
        domain = stack.enter_context(ros.own_domain())
        process = ros.NodeProcess(arguments, domain=domain, cache=cache, module=module)
        stack.callback(process.stop)
        cameras = Cameras(domain, names, rgb)
        stack.callback(cameras.close)
        receiver = Receiver(domain, names)
        stack.callback(receiver.close)
        process.wait_for(r'\]: Active: ', PATIENCE)
        running = Session(process, cameras, receiver, names)
        running.ask()
        running.seconds_per_frame = median(
            running.ask() for _ in range(3 if len(names) < 4 else 1)) / len(names)
        yield running


def _wait(condition: Any, what: str, timeout: float = PATIENCE, *, strict: bool = True) -> bool:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            if strict:
                raise RuntimeError(f'{what} never came')
            return False
        time.sleep(0.001)
    return True
