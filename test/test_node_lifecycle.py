# SPDX-License-Identifier: Apache-2.0
"""Round trips through the lifecycle, in this process: nothing is left behind."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

pytest.importorskip('rclpy')

from rclpy.clock import ClockType
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.time import Time
from ros_harness import INPUT_HEIGHT, INPUT_WIDTH, PATIENCE, Peer, node_here

from depthclip_ros.core.errors import ConfigError
from depthclip_ros.messages.anchors import AnchorSensor
from depthclip_ros.messages.outputs import OUTPUTS
from depthclip_ros.node import depth_node
from depthclip_ros.node.camera import Camera
from depthclip_ros.node.depth_node import DepthNode
from depthclip_ros.node.worker import DeviceLostError

TRIPS = 6
SUCCESS = TransitionCallbackReturn.SUCCESS


@pytest.fixture
def node(domain, cache, tiny_weights):
    values = {'weights': str(tiny_weights), 'backbone': 'auto', 'device': 'cpu',
              'num_threads': 2, 'input_height': INPUT_HEIGHT, 'input_width': INPUT_WIDTH,
              'cache_dir': str(cache)}
    with node_here(domain, DepthNode, parameter_overrides=[
            Parameter(name, value=value) for name, value in values.items()]) as node:
        yield node
        node.close()


def round_trip(node, **changes):
    for name, value in changes.items():
        result = node.set_parameters([Parameter(name, value=value)])[0]
        assert result.successful, result.reason
    for transition in ('configure', 'activate', 'deactivate', 'cleanup'):
        assert getattr(node, f'trigger_{transition}')() == SUCCESS, transition


def possessions(node):
    """Everything that could pile up."""
    return {
        'threads of Python': threading.active_count(),
        'threads': len(list(Path('/proc/self/task').iterdir())),
        'descriptors': len(list(Path('/proc/self/fd').iterdir())),
        'subscriptions': len(list(node.subscriptions)),
        'publishers': len(list(node.publishers)),
        'timers': len(list(node.timers)),
        'waitables': len(list(node.waitables)),
    }


def left_behind(node, trip):
    """What has piled up over some trips, as (before, after).

    What has grown is looked at once more: a library starts a thread when it likes, and what is
    left behind is so every time.
    """
    for _ in range(2):
        before = possessions(node)
        for _ in range(TRIPS):
            trip()
        after = possessions(node)
        grown = {key: (before[key], after[key]) for key in before if after[key] > before[key]}
        if not grown:
            break
    return grown


def test_what_was_configured_before_is_no_obstacle(node):
    round_trip(node)
    round_trip(node, image_transport='compressed')
    round_trip(node, cameras=['front', 'rear'])
    round_trip(node, cameras=[''], image_transport='raw')


def test_round_trips_leave_nothing_behind(node):
    for _ in range(3):
        round_trip(node)
    assert not left_behind(node, lambda: round_trip(node))


def test_a_node_that_failed_to_configure_leaves_nothing_behind(node, tmp_path):
    def fail():
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    weights = node.get_parameter('weights').value
    node.set_parameters([Parameter('weights', value=str(tmp_path / 'none.pt'))])
    fail()
    assert not left_behind(node, fail)
    round_trip(node, weights=weights)


def test_a_camera_that_cannot_be_made_leaves_nothing_of_the_others(node, monkeypatch):
    node.set_parameters([Parameter('cameras', value=['front', 'rear'])])
    round_trip(node)
    before = possessions(node)
    make = Camera.__init__

    def fail(self, owner, config, name, *more):
        make(self, owner, config, name, *more)
        if name == 'rear':
            raise RuntimeError('on purpose')
    with monkeypatch.context() as patch:
        patch.setattr(Camera, '__init__', fail)
        assert node.trigger_configure() != SUCCESS
    # The failed one itself is known to nobody; all others are gone.
    assert possessions(node)['publishers'] <= before['publishers'] + len(OUTPUTS)
    round_trip(node)


def test_a_refused_activation_leaves_nothing_active(node):
    node._qos_overrides = ('/image.subscribtion.depth',)
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.FAILURE
    assert not any(camera.is_active() for camera in node._cameras)
    assert not list(filter(lambda one: one.topic_name == '/image', node.subscriptions))
    node._qos_overrides = ()
    assert node.trigger_activate() == SUCCESS
    assert all(camera.is_active() for camera in node._cameras)


def test_a_node_with_a_wrong_parameter_is_not_left_in_the_graph(domain):
    """Nor does its destruction fail: later distributions destroy what is left themselves."""
    with node_here(domain, Node, 'watcher') as watcher:
        with pytest.raises(ConfigError, match='temperature'):
            DepthNode(context=watcher.context, parameter_overrides=[
                Parameter('temperature', value=-1.0)])
        assert 'depth_node' not in watcher.get_node_names()


def test_reports_do_not_mind_parameters_that_are_being_set(node, monkeypatch):
    """rclpy stores them one after the other; a report looks between any two."""
    reports, store = [], node._parameters

    class Parameters(dict):
        def __setitem__(self, name, value):
            super().__setitem__(name, value)
            node._publish_diagnostics()
            reports.append(name)
    monkeypatch.setattr(node, '_parameters', Parameters(store))
    changes = {'tokens': ['near', 'far'], 'bins': [1.0, 2.0]}
    assert all(result.successful for result in node.set_parameters(
        [Parameter(name, value=value) for name, value in changes.items()]))
    assert set(reports) >= changes.keys()


def test_a_worker_that_was_left_behind_does_not_end_its_successor(node, monkeypatch):
    """It fails when the node has given it up, and another one does the work."""
    monkeypatch.setattr(depth_node, 'STOP_TIMEOUT', 0.0)
    node.set_parameters([Parameter('worker_timeout', value=1.0)])
    begun, go_on = threading.Event(), threading.Event()

    def process_batch(_batch):
        begun.set()
        assert go_on.wait(PATIENCE)
        raise DeviceLostError('on purpose')
    node.trigger_configure()
    node.trigger_activate()
    stuck = node._worker
    monkeypatch.setattr(stuck, 'process_batch', process_batch)
    stuck.put(node._cameras[0], b'any')
    assert begun.wait(PATIENCE)
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert node.trigger_configure() == SUCCESS
    go_on.set()
    stuck._pool.shutdown(wait=True)
    assert node.crash is None


def test_every_state_is_told(node, domain):
    """Who is told `unconfigured` tries to configure; a finalized node never will be."""
    with Peer(domain, listen=()) as peer:
        for transition, state in (
                (None, 'unconfigured'), ('configure', 'inactive'), ('activate', 'active'),
                ('deactivate', 'inactive'), ('cleanup', 'unconfigured'),
                ('shutdown', 'finalized')):
            if transition:
                getattr(node, f'trigger_{transition}')()
            peer.diagnostics(
                'depth_node: model', lambda v, state=state: v['lifecycle state'] == state)


def test_transforms_are_forgotten_when_time_jumps_back(node, monkeypatch):
    """As when a bag begins anew: else nothing that moves would be found again."""
    cleared = []
    monkeypatch.setattr(AnchorSensor, 'clear', lambda _sensors: cleared.append(1))
    node.set_parameters([Parameter('anchor', value='scan')])
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    clock = node.get_clock()
    clock._set_ros_time_is_active(True)
    for seconds in (100, 101):
        clock.set_ros_time_override(Time(seconds=seconds, clock_type=ClockType.ROS_TIME))
    cleared.clear()
    clock.set_ros_time_override(Time(seconds=5, clock_type=ClockType.ROS_TIME))
    assert cleared
