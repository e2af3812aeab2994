# SPDX-License-Identifier: Apache-2.0
"""For tests with the node in a process of its own and the test as its peer on the ROS graph."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.executors import (
    ExternalShutdownException,
    ShutdownException,
    SingleThreadedExecutor,
)
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0  # seconds; a loaded machine is slow to start processes and to discover them
# Seconds until a node's end has been heard of. Fast DDS, as it is in the wheels, spins for ever
# where it hears of one while it destroys another (its issue 6513).
FAREWELL = 0.1
FRAME = 'camera_optical_frame'

# The tiny network's setting: quick, and not a multiple of the images' size.
INPUT_HEIGHT, INPUT_WIDTH = 96, 128
TEMPERATURE = 3.0  # high enough that the depth of random weights follows the image

OUTPUTS = {
    'depth/image': Image, 'depth/camera_info': CameraInfo, 'points': PointCloud2,
    'depth/image_color': Image, 'depth/spread': Image, 'depth/stddev': Image,
    'depth/words': Image,
}


@contextlib.contextmanager
def own_domain():
    """Give a ROS domain that no other test run on this machine has.

    Raises:
        AssertionError: a node of this process is left at the end. It would be destroyed with any
            later test's garbage.

    """
    before = middleware_threads()
    for domain in sorted(range(10, 100), key=lambda d: (d * 37 + os.getpid()) % 90):
        with socket.socket() as lock:
            try:
                lock.bind(('127.0.0.1', 21000 + domain))
            except OSError:
                continue
            yield domain
            left = middleware_threads() - before
            assert not left, f'a node of this process was not destroyed: {dict(left)}'
            return
    raise RuntimeError('all ROS domains are taken')


def middleware_threads():
    """Threads of Fast DDS in this process by name, without those that are never ended.

    Of shared memory, and of Fast DDS 3's log.
    """
    names = []
    for thread in Path('/proc/self/task').iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            names.append((thread / 'comm').read_text().strip())
    return Counter(name for name in names if name.startswith('dds.')
                   and name not in ('dds.shm.wdog', 'dds.log'))


def segments(process):
    """Shared memory of Fast DDS that a process has mapped; ports are everybody's."""
    maps = Path(f'/proc/{process.pid}/maps').read_text(encoding='utf-8')
    return {Path(name) for name in re.findall(r'/dev/shm/fast(?:rtps|dds)_[0-9a-f]{16}', maps)}


@contextlib.contextmanager
def node_here(domain, make, *arguments, **settings):
    """A node in this process, of which nothing is left.

    rclpy's state machine keeps a lifecycle node in the graph until garbage is collected.
    """
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = make(*arguments, context=context, **settings)
    try:
        yield node
    finally:
        node.destroy_node()
        if isinstance(node, LifecycleNode):
            node._state_machine.destroy_when_not_in_use()
        rclpy.shutdown(context=context)


def tiny_arguments(weights, **parameters):
    """ROS arguments for a node with the tiny network."""
    values = {'weights': weights, 'backbone': 'auto', 'device': 'cpu', 'num_threads': 1,
              'input_height': INPUT_HEIGHT, 'input_width': INPUT_WIDTH,
              'temperature': TEMPERATURE, **parameters}
    arguments = ['--ros-args']
    for name, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ['-p', f'{name}:={text}']
    return arguments


class NodeProcess:
    """The node, or another executable of the package, started as a user would start it.

    `module` may be the path of a script instead.
    """

    def __init__(self, arguments, *, domain, cache, environment=None,
                 module='depthclip_ros.node.depth_node'):
        self._lines = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, *(['-m', module] if '.py' not in str(module) else [str(module)]),
             *arguments], cwd=ROOT,
            env={**os.environ, 'ROS_DOMAIN_ID': str(domain), 'DEPTHCLIP_CACHE': str(cache),
                 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', 'PYTHONUNBUFFERED': '1',
                 'RCUTILS_COLORIZED_OUTPUT': '0', **(environment or {})},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        self.process.stdout.close()
        with self._changed:
            self._changed.notify_all()

    @property
    def output(self):
        with self._changed:
            return ''.join(self._lines)

    def wait_for(self, pattern, timeout=PATIENCE):
        """Wait until a line of the log matches; give the line."""
        def found():
            return next((line for line in self._lines if re.search(pattern, line)), None)
        with self._changed:
            self._changed.wait_for(
                lambda: found() or self.process.poll() is not None, timeout)
            line = found()
        assert line, f'{pattern!r} never came; the node said:\n{self.output}'
        return line

    def wait(self, timeout=PATIENCE):
        """Wait for the end; give the exit status."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def stop(self, number=signal.SIGINT):
        """Send a signal and give the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def memory_mb(self):
        """Resident memory of the process in MiB."""
        pages = int(Path(f'/proc/{self.process.pid}/statm').read_text().split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


@contextlib.contextmanager
def running(arguments, *, domain, cache, **options):
    """Run a node until it is active; stop it afterwards, and let it have a good end."""
    node = NodeProcess(arguments, domain=domain, cache=cache, **options)
    try:
        node.wait_for(r'\]: Active: ')
        yield node
    finally:
        status = node.stop()
    assert status == 0, node.output
    assert 'Traceback' not in node.output, node.output


class Peer:
    """A node in this process that publishes images and collects what comes back."""

    def __init__(self, domain, listen=('depth/image',), node=None):
        self.process = node
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node('test_peer', context=self.context)
        self.messages = defaultdict(list)
        self._received = 0
        self._publishers = {}
        self._subscriptions = {}
        self._clients = {}
        self._changed = threading.Condition()
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        self._seconds = 1000
        for topic in listen:
            self.listen(topic)
        self.listen('/diagnostics', DiagnosticArray)

    def _spin(self):
        with contextlib.suppress(ExternalShutdownException, ShutdownException):
            self._executor.spin()

    def on_executor(self, function, *arguments):
        """Run on the spinning thread: nothing is destroyed while that waits for it."""
        task = self._executor.create_task(function, *arguments)
        self.wait(task.done, function.__name__)

    def close(self):
        self._executor.shutdown()
        self._thread.join(PATIENCE)
        time.sleep(FAREWELL)
        rclpy.shutdown(context=self.context)
        self.node.destroy_node()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # Receiving -----------------------------------------------------------------------------

    def listen(self, topic, kind=None, *, matched=False):
        """Collect the messages of a topic; optionally wait until its publisher is known."""
        def store(message):
            with self._changed:
                self.messages[topic].append(message)
                self._received += 1
                self._changed.notify_all()
        if kind is None:  # one of the node's outputs, maybe of a named camera
            kind = next(kind for name, kind in OUTPUTS.items() if topic.endswith(name))
        self._subscriptions[topic] = self.node.create_subscription(
            kind, topic, store,
            QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=200,
                       reliability=QoSReliabilityPolicy.RELIABLE))
        if matched:
            self.wait(lambda: self.node.count_publishers(topic), f'a publisher of {topic}')

    def forget(self, topic):
        """Stop listening to a topic."""
        self.on_executor(self.node.destroy_subscription, self._subscriptions.pop(topic))

    def wait(self, condition, what, timeout=PATIENCE):
        """Wait until `condition()` holds, looked at whenever a message comes; give its value.

        Messages go on coming in while the condition is looked at.
        """
        end = time.monotonic() + timeout
        while True:
            seen = self._received
            value = condition()
            if value:
                return value
            assert time.monotonic() < end, f'{what} never came'
            assert not self.process_has_ended(), f'the node has ended:\n{self.process.output}'
            with self._changed:
                self._changed.wait_for(lambda seen=seen: self._received != seen, 0.05)

    def find(self, topic, stamp):
        """The messages of a topic that have this stamp."""
        return [m for m in list(self.messages[topic]) if m.header.stamp == stamp]

    def wait_stamp(self, topic, stamp, timeout=PATIENCE):
        """Wait for the message of a topic with this stamp."""
        return self.wait(lambda: self.find(topic, stamp), f'{topic} with stamp {stamp}',
                         timeout)[0]

    # Sending -------------------------------------------------------------------------------

    def header(self, frame=FRAME):
        """A header with a stamp of its own."""
        self._seconds += 1
        return Header(stamp=Time(sec=self._seconds, nanosec=123456789), frame_id=frame)

    def publisher(self, topic, kind):
        """A publisher that some subscriber has found."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(
                kind, topic, QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE))
        publisher = self._publishers[topic]
        self.wait(publisher.get_subscription_count, f'a subscriber of {topic}')
        return publisher

    def send(self, message, topic=None, *, prefix=''):
        """Publish an image or a camera_info on its usual topic, maybe of a camera."""
        usual = {Image: 'image', CompressedImage: 'image/compressed', CameraInfo: 'camera_info'}
        self.publisher(topic or prefix + usual[type(message)], type(message)).publish(message)

    def ready(self, *topics):
        """Wait until the node has found our subscriptions and we have found the node's."""
        for topic in topics:
            self.wait(lambda topic=topic: self.node.count_publishers(topic),
                      f'a publisher of {topic}')

    def ask(self, message, topic='depth/image', *, info=None, prefix=''):
        """Publish an image, maybe after its camera_info, and wait for its answer.

        The first image can be early for the node's side of the discovery (then it is idle): it
        is sent again, with the same stamp, until it is answered.
        """
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if info is not None:
                self.send(info, prefix=prefix)
            self.send(message, prefix=prefix)
            try:
                return self.wait_stamp(prefix + topic, message.header.stamp, timeout=3.0)
            except AssertionError:
                continue
        raise AssertionError(f'{topic}: no answer to {message.header.stamp}')

    def call(self, kind, name, request, timeout=PATIENCE):
        """Call a service of the node and give the response.

        An answer is lost if the node has not found the client yet: so there is one for all calls,
        and what may be done twice is asked again.
        """
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client, end = self._clients[name], time.monotonic() + timeout
        may_repeat = kind.__name__.startswith(('Get', 'List', 'Describe', 'SetParameters'))
        assert client.wait_for_service(timeout), f'{name} is not there'
        while True:
            future = client.call_async(request)
            future.add_done_callback(self._notify)
            try:
                self.wait(future.done, f'the answer of {name}', 3.0 if may_repeat else timeout)
            except AssertionError:
                if time.monotonic() > end or self.process_has_ended():
                    raise
            else:
                return future.result()

    def process_has_ended(self):
        """Whether the node's process, if it is known, runs no more."""
        return self.process is not None and self.process.process.poll() is not None

    def _notify(self, _future):
        with self._changed:
            self._received += 1
            self._changed.notify_all()

    # Lifecycle and parameters --------------------------------------------------------------

    def state(self):
        """Number of the node's lifecycle state."""
        return self.call(GetState, 'depth_node/get_state', GetState.Request()).current_state.id

    def transition(self, *numbers):
        """Ask for transitions, one after the other; all must succeed."""
        for number in numbers:
            request = ChangeState.Request(transition=Transition(id=number))
            done = self.call(ChangeState, 'depth_node/change_state', request)
            assert done.success, self.process and self.process.output

    def bring(self, wanted):
        """Take the node to a lifecycle state by the transitions in between."""
        up = {State.PRIMARY_STATE_UNCONFIGURED: Transition.TRANSITION_CONFIGURE,
              State.PRIMARY_STATE_INACTIVE: Transition.TRANSITION_ACTIVATE}
        down = {State.PRIMARY_STATE_ACTIVE: Transition.TRANSITION_DEACTIVATE,
                State.PRIMARY_STATE_INACTIVE: Transition.TRANSITION_CLEANUP}
        while (now := self.state()) != wanted:
            self.transition((up if now < wanted else down)[now])

    def results(self, parameters, *, together=False):
        """Set parameters, given as messages; the result of each, or the one of all."""
        if together:
            request = SetParametersAtomically.Request(parameters=parameters)
            return [self.call(SetParametersAtomically, 'depth_node/set_parameters_atomically',
                              request).result]
        request = SetParameters.Request(parameters=parameters)
        return self.call(SetParameters, 'depth_node/set_parameters', request).results

    def put(self, *, together=False, **values):
        """Set parameters; give the reason of the first refusal, '' for none."""
        found = self.results([Parameter(name, value=value).to_parameter_msg()
                              for name, value in values.items()], together=together)
        return next((result.reason for result in found if not result.successful), '')

    # Diagnostics ---------------------------------------------------------------------------

    def diagnostics(self, name, condition=lambda _values: True, timeout=PATIENCE):
        """Wait for a new status of this name whose values fulfil a condition.

        Gives (status, values).
        """
        start = len(self.messages['/diagnostics'])
        seen = {}

        def look():
            for array in self.messages['/diagnostics'][start:]:
                for status in array.status:
                    if status.name == name:
                        values = values_of(status)
                        seen.update(values)
                        if condition(values):
                            return status, values
            return None
        try:
            return self.wait(look, f'diagnostics {name}', timeout)
        except AssertionError as error:
            raise AssertionError(f'{error}; last: {seen}') from None

    def status(self, name, condition, start=None):
        """Wait for a status of this name that fulfils a condition; give it.

        `start` is how many diagnostics had come before what is to be seen; without it: those
        until now.
        """
        if start is None:
            start = len(self.messages['/diagnostics'])
        return self.wait(lambda: next(
            (status for array in self.messages['/diagnostics'][start:] for status in array.status
             if status.name == name and condition(status)), None), f'the status of {name}')

    def quiet(self, *names):
        """Wait until no image is on its way; give the values of each of these statuses.

        An image may have been sent but not yet received when the node tells that none is
        pending, and what it told may be old when it comes: it must tell the same twice running.
        What it told before it was active names no camera, and can come late, too.
        """
        start = len(self.messages['/diagnostics'])

        def look():
            told = [{status.name: values_of(status) for status in array.status}
                    for array in self.messages['/diagnostics'][start:]]
            told = [values for values in told if values.keys() >= set(names)][-2:]
            accounts = [[counters(values[name]) for name in names] for values in told]
            if len(told) == 2 and accounts[0] == accounts[1] \
                    and not any(account['pending'] for account in accounts[1]):
                return {name: told[1][name] for name in names}
            return None
        return self.wait(look, 'a quiet node')


def values_of(status):
    """The values of a status in diagnostics by their keys."""
    return {pair.key: pair.value for pair in status.values}


def counters(values):
    """The account of images in diagnostics, as numbers."""
    return {key: int(values[key]) for key in
            ('received', 'published', 'dropped', 'rejected', 'idle', 'pending')}


def adds_up(values):
    """Whether every received image is accounted for."""
    c = counters(values)
    return c['received'] == sum(c.values()) - c['received']


def image(header, pixels, encoding, *, step=None):
    """Image message from (H, W[, C]) integers."""
    pixels = np.ascontiguousarray(pixels)
    message = Image(header=header, height=pixels.shape[0], width=pixels.shape[1],
                    encoding=encoding, step=step or pixels.strides[0])
    message.data.frombytes(pixels.tobytes())
    return message


def camera_info(header, width, height, *, k=None, d=(), model='plumb_bob'):
    """camera_info of a camera whose focal length, as the tiny node sees it, is the reference."""
    fx, fy, cx, cy = k or (
        0.8 * width, 0.811 * height * INPUT_WIDTH / INPUT_HEIGHT, width / 2 - 3.25,
        height / 2 + 1.5)
    return CameraInfo(
        header=header, width=width, height=height, distortion_model=model,
        d=[float(v) for v in (d or (0,) * 5)],
        k=[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0])


def depth_array(message):
    """(H, W) of a 32FC1 or 16UC1 image message."""
    kind = {'32FC1': np.float32, '16UC1': np.uint16}[message.encoding]
    return np.frombuffer(message.data, kind).reshape(message.height, message.width)


def cloud_fields(message):
    """(h, w) values of every field of a cloud, found by name and offset as any consumer does."""
    kinds = {PointField.INT8: 'i1', PointField.UINT8: 'u1', PointField.INT16: 'i2',
             PointField.UINT16: 'u2', PointField.INT32: 'i4', PointField.UINT32: 'u4',
             PointField.FLOAT32: 'f4', PointField.FLOAT64: 'f8'}
    order = '>' if message.is_bigendian else '<'
    layout = np.dtype({
        'names': [field.name for field in message.fields],
        'formats': [order + kinds[field.datatype] for field in message.fields],
        'offsets': [field.offset for field in message.fields], 'itemsize': message.point_step})
    points = np.ndarray((message.height, message.width), layout, bytes(message.data),
                        strides=(message.row_step, message.point_step))
    return {name: points[name] for name in layout.names}


def cloud_array(message):
    """(h, w, 3) x y z of an organised cloud."""
    assert [(f.name, f.offset) for f in message.fields][:3] == [('x', 0), ('y', 4), ('z', 8)]
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.row_step)
    points = rows[:, :message.width * message.point_step].reshape(
        message.height, message.width, message.point_step)
    return np.ascontiguousarray(points[..., :12]).view(np.float32)
