# SPDX-License-Identifier: Apache-2.0
"""Parameters and lifecycle of the running node, through the services that ROS tools use."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip('rclpy')

import numpy as np
from clip_standin import synthetic_rgb
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.parameter import Parameter, parameter_value_to_python
from ros_harness import (
    INPUT_HEIGHT,
    INPUT_WIDTH,
    TEMPERATURE,
    NodeProcess,
    Peer,
    counters,
    depth_array,
    image,
    tiny_arguments,
)

from depthclip_ros.core import DepthConfig
from depthclip_ros.core.config import describe
from depthclip_ros.core.estimator import DepthEstimator
from depthclip_ros.node.config import NodeConfig

RGB = synthetic_rgb(7, 90, 120)
SETTINGS = {s.name: s for c in (DepthConfig, NodeConfig) for s in dataclasses.fields(c)}


@pytest.fixture(scope='module')
def graph(domain, cache, tiny_weights):
    """A node that nobody has configured yet, and a peer."""
    node = NodeProcess(tiny_arguments(tiny_weights, autostart=False), domain=domain, cache=cache)
    try:
        with Peer(domain, node=node) as peer:
            yield node, peer
    finally:
        status = node.stop()
    assert status == 0, node.output
    assert 'Traceback' not in node.output, node.output


@pytest.fixture(scope='module')
def peer(graph):
    return graph[1]


def state(peer):
    return peer.call(GetState, 'depth_node/get_state', GetState.Request()).current_state.id


def transition(peer, number):
    request = ChangeState.Request(transition=Transition(id=number))
    return peer.call(ChangeState, 'depth_node/change_state', request).success


def bring(peer, wanted):
    """Take the node to a lifecycle state by the transitions in between."""
    up = {State.PRIMARY_STATE_UNCONFIGURED: Transition.TRANSITION_CONFIGURE,
          State.PRIMARY_STATE_INACTIVE: Transition.TRANSITION_ACTIVATE}
    down = {State.PRIMARY_STATE_ACTIVE: Transition.TRANSITION_DEACTIVATE,
            State.PRIMARY_STATE_INACTIVE: Transition.TRANSITION_CLEANUP}
    while (now := state(peer)) != wanted:
        assert transition(peer, (up if now < wanted else down)[now])


def put(peer, *, together=False, **values):
    """Set parameters; give the reason of the first refusal, '' for none."""
    parameters = [Parameter(name, value=value).to_parameter_msg()
                  for name, value in values.items()]
    if together:
        request = SetParametersAtomically.Request(parameters=parameters)
        results = [peer.call(SetParametersAtomically, 'depth_node/set_parameters_atomically',
                             request).result]
    else:
        request = SetParameters.Request(parameters=parameters)
        results = peer.call(SetParameters, 'depth_node/set_parameters', request).results
    return next((r.reason for r in results if not r.successful), '')


def get(peer, *names):
    request = GetParameters.Request(names=list(names))
    values = peer.call(GetParameters, 'depth_node/get_parameters', request).values
    return [parameter_value_to_python(value) for value in values]


def predict(cache, tiny_weights, **changes):
    config = DepthConfig(backbone='auto', input_height=INPUT_HEIGHT, input_width=INPUT_WIDTH,
                         temperature=TEMPERATURE).replace(**changes)
    return DepthEstimator(config, tiny_weights, 'cpu', cache_dir=cache).predict(RGB).depth


def test_every_setting_is_described(peer):
    request = DescribeParameters.Request(names=list(SETTINGS))
    answer = peer.call(DescribeParameters, 'depth_node/describe_parameters', request)
    for described in answer.descriptors:
        setting = SETTINGS[described.name]
        assert described.description == describe(setting)
        assert described.read_only == (described.name == 'autostart')
        ranges = [*described.integer_range, *described.floating_point_range]
        limits = [(r.from_value, r.to_value) for r in ranges]
        low, high = setting.metadata['minimum'], setting.metadata['maximum']
        assert limits == ([] if low is None else [(low, high)])
        assert ('unconfigured' in described.additional_constraints) == \
            (setting.metadata['reload'] and not described.read_only)
    assert get(peer, 'bins', 'upsampling', 'temperature') == [
        list(DepthConfig().bins), 'bilinear', TEMPERATURE]


def test_wrong_values_are_refused_with_the_reason(peer):
    for temperature in (-1.0, 1e-45, 1e39, float('nan')):
        assert '0.001' in put(peer, temperature=temperature)
    assert '0.001 to 10000.0 m' in put(peer, bins=[1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 1e39])
    assert 'ascend' in put(peer, bins=[1.0, 2.0, 1.5, 3.0, 4.0, 5.0, 6.0])
    assert 'bilinear' in put(peer, upsampling='cubic')
    assert '4096' in put(peer, input_height=5000)
    assert 'DOUBLE' in put(peer, temperature='hot')
    assert 'read-only' in put(peer, autostart=True)
    reason = put(peer, tokens=['near', 'far'])
    assert '2 tokens but 7 bins' in reason
    assert 'set_parameters_atomically' in reason
    assert get(peer, 'temperature', 'upsampling', 'input_height') == [
        TEMPERATURE, 'bilinear', INPUT_HEIGHT]


@pytest.mark.slow
def test_lifecycle_by_services_with_tokens_and_bins_set_together(peer, cache, tiny_weights):
    """unconfigured, inactive, active, and back; new words take effect at configure."""
    bring(peer, State.PRIMARY_STATE_UNCONFIGURED)
    words = {'tokens': ['near', 'halfway', 'far'], 'bins': [1.0, 4.0, 9.0]}
    assert put(peer, together=True, **words) == ''
    bring(peer, State.PRIMARY_STATE_ACTIVE)
    _, values = peer.diagnostics('depth_node: model')
    assert values['lifecycle state'] == 'active'
    depth = depth_array(peer.ask(image(peer.header(), RGB, 'rgb8')))
    np.testing.assert_allclose(depth, predict(cache, tiny_weights, **words), atol=1e-4)
    assert depth.min() < 4 < depth.max() + 4

    bring(peer, State.PRIMARY_STATE_INACTIVE)
    peer.wait(lambda: not peer.node.count_subscribers('/image'), 'the end of the subscription')
    bring(peer, State.PRIMARY_STATE_ACTIVE)
    peer.ask(image(peer.header(), RGB, 'rgb8'))
    bring(peer, State.PRIMARY_STATE_UNCONFIGURED)
    default = DepthConfig().to_dict()
    assert put(peer, together=True, tokens=default['tokens'], bins=default['bins']) == ''


@pytest.mark.slow
def test_a_loaded_model_takes_new_temperature_and_bins_but_no_new_words(
        graph, cache, tiny_weights):
    node, peer = graph
    bring(peer, State.PRIMARY_STATE_ACTIVE)
    for change in ({'temperature': 8.0}, {'upsampling': 'patch'}, {'flip_average': True},
                   {'bins': [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}):
        before = dict(zip(change, get(peer, *change), strict=True))
        assert put(peer, **change) == ''
        depth = depth_array(peer.ask(image(peer.header(), RGB, 'rgb8')))
        expected = predict(cache, tiny_weights, **change)
        np.testing.assert_allclose(depth, expected, atol=1e-4)
        assert np.abs(expected - predict(cache, tiny_weights)).max() > 1e-3, 'no visible change'
        assert put(peer, **before) == ''

    assert put(peer, temperature=8) == '', 'a whole number is a number'
    assert get(peer, 'temperature') == [8.0]
    assert put(peer, temperature=TEMPERATURE) == ''

    for fixed in ({'tokens': list('abcdefg')}, {'weights': 'RN101'}, {'input_width': 64}):
        reason = put(peer, **fixed)
        assert next(iter(fixed)) in reason
        assert 'ros2 lifecycle set /depth_node' in reason
        assert 'cleanup' in reason
    assert put(peer, input_width=INPUT_WIDTH) == '', 'no change is no offence'
    bring(peer, State.PRIMARY_STATE_INACTIVE)
    assert 'cleanup' in put(peer, tokens=list('abcdefg'))
    assert counters(peer.diagnostics('depth_node: frames')[1])['pending'] == 0
    node.wait_for('Stopped: .* received = .* published')
