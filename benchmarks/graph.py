# SPDX-License-Identifier: Apache-2.0
"""The graph around a measured node: a process of cameras before it, a receiver behind it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import ros_harness as ros
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from depthclip_ros.node.process import keep_freed_memory

PATIENCE = 120.0  # seconds
STAMP = struct.Struct('<iI')  # at byte 4 of a little-endian message that begins with a header
OTHER_OUTPUTS = {'depth/camera_info': CameraInfo, 'points': PointCloud2}


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE) -> bool:
    """Whether it holds before the time is over."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all threads."""
    text = Path(f'/proc/{pid}/stat').read_text(encoding='ascii')
    user, system = text.rpartition(')')[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')


# Cameras ---------------------------------------------------------------------------------------


class Cameras:
    """A process that publishes images and camera_infos on demand."""

    def __init__(self, domain: int, names: Sequence[str], rgb: np.ndarray) -> None:
        """Start the process; every camera sends the same (H, W, 3) image."""
        spawn = multiprocessing.get_context('spawn')
        self._pipe, worker_end = spawn.Pipe()
        self._process = spawn.Process(
            target=_publish_on_demand, args=(worker_end, domain, tuple(names), rgb), daemon=True)
        self._process.start()

    def begin(self, rate: float, seconds: float) -> None:
        """Publish at `rate` (Hz) for every camera, once all are subscribed."""
        self._pipe.send((rate, seconds))

    def send(self, rate: float, seconds: float) -> dict[str, list[int]]:
        """Publish likewise, to the end; give the stamps by camera."""
        self.begin(rate, seconds)
        if not self._pipe.poll(seconds + PATIENCE):
            raise RuntimeError('the process of cameras does not answer')
        send_times: dict[str, list[int]] = self._pipe.recv()
        return send_times

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join(PATIENCE)


def _publish_on_demand(
    pipe: Any, domain: int, names: tuple[str, ...], rgb: np.ndarray,
) -> None:
    keep_freed_memory()
    rclpy.init(domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('cameras')
    image = ros.image(ros.Header(frame_id=ros.FRAME), rgb, 'rgb8')
    info = ros.camera_info(image.header, image.width, image.height)
    # Serialised once; the stamp is put in for every message.
    serialised = [memoryview(serialize_message(message)) for message in (image, info)]
    publishers = {
        name: [node.create_publisher(kind, f'{name}/{topic}', QoSProfile(depth=5))
               for kind, topic in ((Image, 'image'), (CameraInfo, 'camera_info'))]
        for name in names}
    while True:
        rate, seconds = pipe.recv()
        for publisher in (each for pair in publishers.values() for each in pair):
            wait_until(publisher.get_subscription_count)
        pipe.send(_publish_for(publishers, serialised, rate, seconds))


def _publish_for(
    publishers: dict[str, list[Any]], serialised: list[memoryview], rate: float, seconds: float,
) -> dict[str, list[int]]:
    """Publish; the cameras take turns evenly within a period."""
    send_times: dict[str, list[int]] = {name: [] for name in publishers}
    image, info = serialised
    start, step = time.monotonic(), 1.0 / (rate * len(publishers))
    turns = list(publishers.items())
    for number in range(max(1, round(rate * seconds)) * len(publishers)):
        # A camera that is late does not hurry; one that is far behind gives up.
        time.sleep(max(0.0, start + number * step - time.monotonic()))
        if time.monotonic() - start > 1.5 * seconds + 1.0:
            break
        name, (image_publisher, info_publisher) = turns[number % len(turns)]
        now = time.time_ns()
        stamp = STAMP.pack(*divmod(now, 10**9))
        info_publisher.publish(b''.join((info[:4], stamp, info[12:])))
        image_publisher.publish(b''.join((image[:4], stamp, image[12:])))
        send_times[name].append(now)
    return send_times


# Receiver --------------------------------------------------------------------------------------


class Receiver:
    """Notes when every depth image arrives; the other outputs are subscribed, and never read.

    Attributes:
        arrivals: nanoseconds, by camera and stamp.
        diagnostics: the last values of each status, by its name.

    """

    def __init__(self, domain: int, names: Sequence[str]) -> None:
        """Listen to all outputs of these cameras."""
        keep_freed_memory()
        self.arrivals: dict[tuple[str, int], int] = {}
        self.diagnostics: dict[str, dict[str, str]] = {}
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = rclpy.create_node('receiver', context=self._context)
        self._idle = rclpy.create_node('idle_receiver', context=self._context)
        for name in names:
            self._node.create_subscription(
                Image, f'{name}/depth/image', self._callback(name), 50, raw=True)
            for topic, kind in OTHER_OUTPUTS.items():
                self._idle.create_subscription(kind, f'{name}/{topic}', lambda _: None, 1)
        self._node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _callback(self, name: str) -> Any:
        def note(raw: bytes) -> None:
            seconds, nanoseconds = STAMP.unpack_from(raw, 4)
            self.arrivals[name, seconds * 10**9 + nanoseconds] = time.time_ns()
        return note

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        for status in array.status:
            self.diagnostics[status.name] = ros.values_of(status)

    def wait_until_quiet(self, seconds: float) -> None:
        """Wait until nothing has come for so long."""
        count = -1
        while len(self.arrivals) != count:
            count = len(self.arrivals)
            wait_until(lambda count=count: len(self.arrivals) != count, seconds)

    def count_publishers(self, topic: str) -> int:
        """Publishers of a topic that have been found."""
        return int(self._node.count_publishers(topic))

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._thread.join(PATIENCE)
        rclpy.shutdown(context=self._context)
        self._node.destroy_node()
        self._idle.destroy_node()


# Session ---------------------------------------------------------------------------------------


class Session:
    """One node under measurement, with its cameras and its receiver."""

    def __init__(
        self, process: ros.NodeProcess, cameras: Cameras, receiver: Receiver,
        names: Sequence[str],
    ) -> None:
        """Take what has been started."""
        self.process, self.cameras, self.receiver = process, cameras, receiver
        self.names = tuple(names)
        self.round_seconds = 0.0  # of the last answered images; 0 before

    def ask(self) -> float:
        """Send one image of every camera and wait for all depth; give the seconds it took.

        Until the first answers the images are sent again now and then: they may precede the
        discovery. Not later: a slow node has not yet answered the first when others follow.
        """
        waited = 0.0
        while waited < PATIENCE:
            start = time.monotonic()
            send_times = self.cameras.send(1000.0, 0.001)
            expected = {(name, stamp) for name in self.names for stamp in send_times[name]}
            patience = PATIENCE if self.round_seconds else 5.0
            if wait_until(lambda expected=expected: self.receiver.arrivals.keys() >= expected,
                          patience):
                self.round_seconds = time.monotonic() - start
                return self.round_seconds
            waited += patience
        raise RuntimeError(f'no answer from the node:\n{self.process.output}')

    def send(self, rate: float, seconds: float) -> Trial:
        """Publish at a rate for every camera, and see what comes back."""
        self.receiver.arrivals.clear()
        before = cpu_seconds(self.process.process.pid)
        send_times = self.cameras.send(rate, seconds)
        self.receiver.wait_until_quiet(1.5 + 2.0 * self.round_seconds)
        cpu = cpu_seconds(self.process.process.pid) - before
        return Trial(send_times, dict(self.receiver.arrivals), cpu)

    def own_times(self, frames: int = 0) -> dict[str, float]:
        """Median milliseconds that the node has measured itself: 'network' and 'overhead'.

        Args:
            frames: wait until it has counted so many of the first camera.

        Returns:
            These, and the 'frames' that it has counted.

        """
        figures: dict[str, float] = {}

        def look() -> bool:
            values = self.receiver.diagnostics.get(f'depth_node: frames of {self.names[0]}')
            if values:
                figures.update({'frames': float(values['published']),
                              'network': float(values['network p50 [ms]'] or 'nan'),
                              'overhead': float(values['node overhead p50 [ms]'] or 'nan')})
            return figures.get('frames', -1) >= frames
        if not wait_until(look):
            raise RuntimeError(f'the node tells no times:\n{self.process.output}')
        return figures


class Trial:
    """What became of the images of one run.

    Attributes:
        rate: images a second and camera that were really sent.
        images, answered: numbers, of all cameras.
        answers: images a second that were answered, from the first one to the last.
        ages: milliseconds from stamp to arrival, in the order of stamps.
        cpu: milliseconds of the node's process per answered image.

    """

    def __init__(
        self, send_times: dict[str, list[int]], arrivals: dict[tuple[str, int], int], cpu: float,
    ) -> None:
        """Compare the stamps that were sent, by camera, with those of the answers."""
        stamps = sorted((stamp, name) for name, of_one in send_times.items() for stamp in of_one)
        answered = [(stamp, arrivals[name, stamp]) for stamp, name in stamps
                    if (name, stamp) in arrivals]
        seconds = (stamps[-1][0] - stamps[0][0]) / 1e9
        self.images, self.answered = len(stamps), len(answered)
        self.rate = (len(stamps) - 1) / max(1e-9, seconds) / len(send_times)
        came = [arrival for _, arrival in answered]
        self.answers = 1e9 * (len(came) - 1) / (max(came) - min(came)) if len(came) > 1 else 0.0
        self.ages = [(arrival - stamp) / 1e6 for stamp, arrival in answered]
        self.cpu = 1e3 * cpu / max(1, len(answered))

    def age(self, percent: float) -> float:
        """Percentile of the age in milliseconds; NaN if nothing came."""
        return float(np.percentile(self.ages, percent)) if self.ages else float('nan')


@contextlib.contextmanager
def session(
    parameters: dict[str, Any], count: int, rgb: np.ndarray, cache: str,
) -> Iterator[Session]:
    """Start a node with cameras and a receiver, and wait until every camera is answered.

    Args:
        parameters: of the node.
        count: cameras.
        rgb: (H, W, 3) image that they all send.
        cache: folder of text features.

    """
    names = [f'camera{i}' for i in range(count)]
    arguments = ['--ros-args']
    for name, value in {**parameters, 'cameras': names}.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ['-p', f'{name}:={text}']
    with contextlib.ExitStack() as stack:
        domain = stack.enter_context(ros.own_domain())
        process = ros.NodeProcess(arguments, domain=domain, cache=cache)
        stack.callback(process.stop)
        cameras = Cameras(domain, names, rgb)
        stack.callback(cameras.close)
        receiver = Receiver(domain, names)
        stack.callback(receiver.close)
        process.wait_for(r'\]: Active: ', PATIENCE)
        running = Session(process, cameras, receiver, names)
        running.ask()
        yield running
