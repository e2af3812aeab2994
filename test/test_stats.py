# SPDX-License-Identifier: Apache-2.0
"""`depthclip stats`: what nodes tell on /diagnostics, in a terminal."""

from __future__ import annotations

import contextlib
import io
import itertools
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from ros_harness import PATIENCE, node_here

from depthclip_ros.cli import stats
from depthclip_ros.cli.main import main
from depthclip_ros.cli.stats import collect, table


def status(name, level, message, **values):
    return DiagnosticStatus(name=name, level=bytes([level]), message=message, values=[
        KeyValue(key=key.replace('_', ' '), value=str(value)) for key, value in values.items()])


MODEL = status('front/depth_node: model', 0, 'active', **{
    'configuration sha256': 'c0ffee' * 10, 'device': 'cpu', 'precision': 'float32',
    'engine': 'torch', 'weights': 'RN50', 'weights sha256': 'abcdef' * 10, 'memory [MiB]': '812.4',
    'reloads': 1, 'last error': 'RuntimeError: CUDA error'})
LEFT = status('front/depth_node: frames of left', 1, 'wrong step', **{
    'rate in [Hz]': '30.00', 'rate out [Hz]': '9.80', 'age at publish p50 [ms]': '95.10',
    'age at publish p99 [ms]': '120.00', 'network p50 [ms]': '90.00', 'network p99 [ms]': '95.00',
    'received': 300, 'published': 98, 'dropped': 199, 'rejected': 3, 'idle': 0,
    'NaN share [%]': '0.00', 'rejected: wrong step': 2, 'rejected: truncated data': 1,
    'last error': 'Image rejected (wrong step)'})
RIGHT = status('front/depth_node: frames of right', 0, '0.0 Hz', **{
    'rate in [Hz]': '0.00', 'age at publish p50 [ms]': 'unknown: the stamps are of another clock'})
FOREIGN = status('lidar: model', 0, 'spinning', rate='10')


def test_the_table_shows_everything_of_a_node():
    known = {}
    assert collect([MODEL, LEFT, RIGHT, FOREIGN], '', known)
    assert [*known] == ['front/depth_node']
    text = table(known)
    assert text.startswith('front/depth_node: OK active\n')
    for part in ('device cpu', 'engine torch', 'weights RN50', 'configuration sha256 c0ffeec0ffee',
                 'memory [MiB] 812.4', 'reloads 1', 'last error RuntimeError: CUDA error'):
        assert f'\n  {part}' in text, text
    rows = {row[:24].strip(): row[24:].split() for row in text.splitlines()}
    assert rows['camera'] == ['left', 'right']
    assert rows['state'] == ['WARN', 'OK']
    assert rows['rate in [Hz]'] == ['30.00', '0.00']
    assert rows['age at publish p50 [ms]'][:2] == ['95.10', 'unknown:']
    assert rows['rejected: wrong step'] == ['2', '-']
    assert rows['last error'] == ['Image', 'rejected', '(wrong', 'step)', '-']


def test_one_node_of_several_and_cameras_that_are_gone():
    known = {}
    assert not collect([MODEL, LEFT], 'rear/depth_node', known)
    collect([MODEL, LEFT, RIGHT], 'front/depth_node', known)
    collect([MODEL, RIGHT], 'front/depth_node', known)
    assert [*known['front/depth_node']] == ['model', 'frames of right']


@pytest.fixture
def publishing(domain, monkeypatch):
    """A node that tells the statuses from above, ten times a second, on its own domain."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
    ended = threading.Event()
    with node_here(domain, Node, 'teller') as node:
        publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)

        def tell():
            while not ended.wait(0.1):
                publisher.publish(DiagnosticArray(status=[MODEL, LEFT, RIGHT, FOREIGN]))
        thread = threading.Thread(target=tell)
        thread.start()
        yield ended
        ended.set()
        thread.join()


def test_once(publishing, capsys):
    assert main(['stats', '--once', '--timeout', str(PATIENCE), '/front/depth_node']) == 0
    assert 'front/depth_node: OK active' in capsys.readouterr().out


def test_lines_come_until_the_node_is_gone(publishing, monkeypatch, capsys):
    """The node ends with its second line; from then on every look at the clock is 10 s later."""
    line, shown, late = 'front/depth_node: OK active', io.StringIO(), itertools.count(0, 10)

    def monotonic():
        gone = shown.getvalue().count(line) >= 2
        if gone:
            publishing.set()
        return time.monotonic() + (next(late) if gone else 0)
    monkeypatch.setattr(stats, 'time', SimpleNamespace(monotonic=monotonic))
    with contextlib.redirect_stdout(shown):
        assert main(['stats', '--timeout', str(PATIENCE)]) == 1
    assert 'It has ended.' in capsys.readouterr().err


def test_silence_is_a_sentence(publishing, domain, capsys):
    assert main(['stats', 'nobody', '--timeout', '0.5']) == 1
    error = capsys.readouterr().err
    assert 'nobody reported nothing on /diagnostics in 0.5 s' in error
    assert f'ROS_DOMAIN_ID {domain}' in error
    assert 'ros2 node list' in error
