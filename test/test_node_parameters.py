# SPDX-License-Identifier: Apache-2.0
"""Parameters and lifecycle of the running node, through the services that ROS tools use."""

from __future__ import annotations

import dataclasses
import re
import threading

import pytest
import yaml

pytest.importorskip('rclpy')

import numpy as np
from clip_standin import synthetic_rgb
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import (
    GetParameters,
    ListParameters,
    SetParameters,
)
from rclpy.duration import Duration
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
    own_domain,
    tiny_arguments,
)

from depthclip_ros.core import DepthConfig
from depthclip_ros.messages.config import NodeConfig

RGB = synthetic_rgb(7, 90, 120)
SETTINGS = {s.name: s for c in (DepthConfig, NodeConfig) for s in dataclasses.fields(c)}


@pytest.fixture(scope='module')
def running_node(domain, cache, tiny_weights):
    """A node, a peer, and the parameters that the node was started with."""
    node = NodeProcess(tiny_arguments(tiny_weights, autostart=False), domain=domain, cache=cache)
    try:
        with Peer(domain, node=node) as peer:
            yield node, peer, dump(peer)
    finally:
        status = node.stop()
    assert status == 0, node.output
    assert 'Traceback' not in node.output, node.output


@pytest.fixture
def node(running_node):
    return running_node[0]


@pytest.fixture
def start_anew(running_node):
    """Give the node the parameters that it was started with; it is unconfigured then."""
    def start_anew():
        _, peer, started = running_node
        peer.bring(State.PRIMARY_STATE_UNCONFIGURED)
        changeable = {name: value for name, value in started.items()
                      if name not in ('autostart', 'start_type_description_service')}
        assert peer.put(together=True, **changeable) == ''
    return start_anew


@pytest.fixture
def peer(running_node, start_anew):
    """The peer of a node that is as it was started: nobody has configured it yet."""
    start_anew()
    return running_node[1]


def message(name, value):
    """One parameter of a request; a `ParameterValue` goes as it is."""
    if not isinstance(value, ParameterValue):
        value = Parameter(name, value=value).get_parameter_value()
    return ParameterMessage(name=name, value=value)


def get(peer, *names):
    request = GetParameters.Request(names=list(names))
    values = peer.call(GetParameters, 'depth_node/get_parameters', request).values
    return [parameter_value_to_python(value) for value in values]


def predict(estimator, **changes):
    """Depth of our image, as it must be with other settings."""
    config = DepthConfig(backbone='auto', input_height=INPUT_HEIGHT, input_width=INPUT_WIDTH,
                         temperature=TEMPERATURE)
    estimator.reconfigure(config.replace(**changes))
    return estimator.predict(RGB).depth


def test_wrong_values_are_refused_with_the_reason(peer):
    for temperature in (-1.0, 1e-45, 1e39, float('nan')):
        assert '0.001' in peer.put(temperature=temperature)
    assert '0.001 to 10000.0 m' in peer.put(bins=[1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 1e39])
    assert 'ascend' in peer.put(bins=[1.0, 2.0, 1.5, 3.0, 4.0, 5.0, 6.0])
    assert 'bilinear' in peer.put(upsampling='cubic')
    assert '4096' in peer.put(input_height=5000)
    assert 'DOUBLE' in peer.put(temperature='hot')
    assert 'read-only' in peer.put(autostart=True)
    reason = peer.put(tokens=['near', 'far'])
    assert '2 tokens but 7 bins' in reason
    for tokens in (['near', 'far'], [f'{i} {"far " * 9}' for i in range(99)]):
        reason = peer.put(tokens=tokens)
        assert 'ros2 param load /depth_node FILE' in reason
        assert 'set_parameters_atomically' in reason
        assert len(reason) < 500
    assert get(peer, 'temperature', 'upsampling', 'input_height') == [
        TEMPERATURE, 'centered', INPUT_HEIGHT]


def test_a_loaded_model_takes_what_needs_no_reload(node, peer, estimator):
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    _, values = peer.diagnostics('depth_node: model')
    assert values['lifecycle state'] == 'active'
    for change in ({'temperature': 8.0}, {'upsampling': 'bilinear'}, {'flip_average': True},
                   {'range_min': 2.0, 'out_of_range': 'clamp'},
                   {'bins': [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}, {'tokens': list('abcdefg')}):
        before = dict(zip(change, get(peer, *change), strict=True))
        assert peer.put(**change) == ''
        depth = depth_array(peer.ask(image(peer.header(), RGB, 'rgb8')))
        expected = predict(estimator, **change)
        np.testing.assert_allclose(depth, expected, atol=1e-4)
        alike = np.abs(expected - predict(estimator)) <= 1e-3
        assert not alike.all(), 'no visible change'
        assert peer.put(**before) == ''

    assert peer.put(temperature=8) == '', 'a whole number is a number'
    assert get(peer, 'temperature') == [8.0]
    assert peer.put(temperature=TEMPERATURE) == ''

    for fixed in ({'weights': 'RN101'}, {'input_width': 64}):
        reason = peer.put(**fixed)
        assert next(iter(fixed)) in reason
        assert 'ros2 lifecycle set /depth_node' in reason
        assert 'cleanup' in reason
    assert peer.put(input_width=INPUT_WIDTH) == '', 'no change is no offence'
    peer.bring(State.PRIMARY_STATE_INACTIVE)
    peer.wait(lambda: not peer.node.count_subscribers('/image'), 'the end of the subscription')
    peer.diagnostics('depth_node: frames', lambda values: not counters(values)['pending'])
    node.wait_for('Stopped: .* received = .* published')

    # What is set while the node rests is there when it wakes.
    words = {'tokens': ['low', 'high'], 'bins': [2.0, 7.0]}
    assert peer.put(together=True, **words) == ''
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    depth = depth_array(peer.ask(image(peer.header(), RGB, 'rgb8')))
    np.testing.assert_allclose(depth, predict(estimator, **words), atol=1e-4)


def test_thresholds_of_health_change_while_the_node_is_active(peer):
    """A warning comes and goes with the limit, of images that are always a second old."""
    peer.bring(State.PRIMARY_STATE_ACTIVE)

    def is_told(status):
        header = peer.header()
        header.stamp = (peer.node.get_clock().now() - Duration(seconds=1)).to_msg()
        peer.send(image(header, RGB, 'rgb8'))
        return 's old' in status.message
    for _ in range(2):
        assert peer.put(max_age=0.7) == ''
        assert peer.status('depth_node: frames', is_told).level != DiagnosticStatus.OK
        assert peer.put(max_age=0.0) == ''
        peer.status('depth_node: frames', lambda status: not is_told(status))
    assert peer.put(input_timeout=30.0, max_nan_share=0.9, worker_timeout=60.0) == ''


def test_words_and_bins_change_in_the_middle_of_a_stream(node, peer, estimator):
    """Every image is answered with all of the old setting or all of the new one, in order."""
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    peer.ask(image(peer.header(), RGB, 'rgb8'))
    settings = [
        {'tokens': ['nigh', 'middling', 'far'], 'bins': [1.0, 4.0, 20.0]},
        {'tokens': list('qrstuvwxyz'), 'bins': [float(b) for b in range(1, 11)],
         'templates': ['{}', 'a {}']},
    ]
    sent, stop = [], threading.Event()

    def stream():
        while not stop.wait(0.02):
            sent.append(peer.header())
            peer.send(image(sent[-1], RGB, 'rgb8'))

    depths = [predict(estimator)]
    sender = threading.Thread(target=stream)
    sender.start()
    try:
        for setting in settings:
            # Not all in one: the way of `ros2 param load`, whose order is the file's.
            before = len(peer.messages['depth/image'])
            parameters = [message(*pair) for pair in sorted(setting.items())]
            assert all(r.successful for r in peer.results(parameters, together=False))
            assert get(peer, *setting) == list(setting.values())
            depths.append(predict(estimator, **setting))
            line = node.wait_for(f'New settings, first in .* tokens: .{setting["tokens"][0]!r}')
            first = int(re.search(r'stamp (\d+)\.', line)[1])
            peer.wait(lambda first=first: any(
                m.header.stamp.sec > first for m in list(peer.messages['depth/image'])), 'more')
            for reply in peer.messages['depth/image'][before:]:
                expected = depths[-1] if reply.header.stamp.sec >= first else depths[-2]
                np.testing.assert_allclose(depth_array(reply), expected, atol=1e-4)
    finally:
        stop.set()
        sender.join()


def test_scenes_come_and_go_on_a_loaded_model(peer, estimator):
    """Depth and the diagnostics; the image before counts in the next."""
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    bins = DepthConfig().bins
    scenes = {'scenes': ['bathroom', 'hall'], 'scene_temperature': 0.2, 'scene_entropy': 1.0,
              'scene_bins': [0.5 * b for b in bins] + [4.0 * b for b in bins]}
    assert peer.put(together=True, **scenes) == ''
    expected = None
    predict(estimator, **scenes)
    for rgb in (RGB, synthetic_rgb(8, 90, 120)):
        expected = estimator.predict(rgb, scenes=None if expected is None else expected.scene)
        reply = peer.ask(image(peer.header(), rgb, 'rgb8'))
        np.testing.assert_allclose(depth_array(reply), expected.depth, atol=1e-3)
    alone = estimator.predict(rgb)
    assert np.abs(alone.depth - expected.depth).max() > 0.01, 'no memory to be seen'
    values = peer.quiet('depth_node: frames')['depth_node: frames']
    assert values['scene'] == (expected.scene.name or 'uncertain')
    for name, probability in zip(scenes['scenes'], expected.scene.probabilities, strict=True):
        assert float(values[f'scene: {name} [%]']) == pytest.approx(100 * probability, abs=0.2)

    reason = peer.put(scenes=['bathroom', 'hall', 'kitchen'])
    assert '14 numbers, but 3 scenes of 7 tokens' in reason
    assert 'ros2 param load /depth_node FILE' in reason
    assert get(peer, 'scenes') == [scenes['scenes']]
    assert peer.put(scenes=['']) == ''
    reply = peer.ask(image(peer.header(), RGB, 'rgb8'))
    np.testing.assert_allclose(depth_array(reply), predict(estimator), atol=1e-4)
    assert 'scene' not in peer.quiet('depth_node: frames')['depth_node: frames']


def test_words_that_cannot_be_encoded_change_nothing(peer, estimator, tiny_weights, tmp_path):
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    before = get(peer, *SETTINGS)
    reason = peer.put(together=True, tokens=['near', 'far ' * 100], bins=[1.0, 2.0])
    assert '77 text tokens' in reason
    assert 'stand twice' in peer.put(together=True, tokens=['far', 'Far '], bins=[1.0, 2.0])
    away = tmp_path / 'away.pt'
    tiny_weights.rename(away)
    try:
        reason = peer.put(together=True, tokens=['here', 'there'], bins=[1.0, 2.0])
        assert str(tiny_weights) in reason
        tiny_weights.write_bytes(b'other weights')
        reason = peer.put(together=True, tokens=['in', 'out'], bins=[1.0, 2.0])
        assert 'no file of weights but text' in reason
        tiny_weights.unlink()
    finally:
        away.rename(tiny_weights)
    assert get(peer, *SETTINGS) == before
    depth = depth_array(peer.ask(image(peer.header(), RGB, 'rgb8')))
    np.testing.assert_allclose(depth, predict(estimator), atol=1e-4)
    assert peer.put(together=True, tokens=['here', 'there'], bins=[1.0, 2.0]) == ''


def dump(peer):
    """All parameters, in the way of `ros2 param dump`."""
    names = sorted(peer.call(ListParameters, 'depth_node/list_parameters',
                             ListParameters.Request()).result.names)
    return dict(zip(names, get(peer, *names), strict=True))


def test_a_dump_starts_the_same_node(peer, cache, tmp_path):
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    assert peer.put(use_sim_time=True, flip_average=True) == ''
    here = dump(peer)
    nested = {}
    for name, value in here.items():
        *parents, leaf = name.split('.')
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = value
    file = tmp_path / 'dump.yaml'
    file.write_text(yaml.dump({'/depth_node': {'ros__parameters': nested}}))
    with own_domain() as domain:
        node = NodeProcess(['--ros-args', '--params-file', str(file)], domain=domain, cache=cache)
        try:
            with Peer(domain, listen=(), node=node) as other:
                there = dump(other)
                other.bring(State.PRIMARY_STATE_ACTIVE)
                assert dump(other) == there == here
        finally:
            status = node.stop()
    assert status == 0, node.output
    assert {'use_sim_time', 'start_type_description_service',
            'qos_overrides./image.subscription.depth'} <= there.keys()


def test_what_does_not_fit_together_changes_nothing_and_is_said_once(peer):
    """The way of `ros2 param load`: one request for each parameter's own result."""
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    before = dump(peer)
    file = {'bins': [float(number) for number in range(1, 11)], 'smoothing': 1.0,
            'input_timeout': 6.0, 'tokens': list('abcdefghi'), 'use_sim_time': True}
    found = peer.results([message(*pair) for pair in file.items()])
    assert not any(result.successful for result in found)
    said = [result.reason for result in found if '9 tokens but 10 bins' in result.reason]
    assert len(said) == 1
    assert all('see bins' in result.reason for result in found[1:])
    assert dump(peer) == before


def test_a_dump_can_be_loaded_into_its_own_node(peer):
    """What cannot be set may well be what it is."""
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    here = dump(peer)
    found = peer.results([message(*pair) for pair in here.items()])
    assert {name: result.reason for name, result in zip(here, found, strict=True)
            if not result.successful} == {}
    assert dump(peer) == here
    assert 'read-only' in peer.put(**{'qos_overrides./image.subscription.depth': 7})


def test_images_go_on_while_words_are_encoded(peer, estimator):
    """And other parameters wait their turn."""
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    words = {'tokens': [f'number {i}' for i in range(7)], 'templates': [
        f'a {word} of something that is {{}}' for word in 'abcdefghijklmnopqrstuvwxyz']}
    client = peer.node.create_client(SetParameters, 'depth_node/set_parameters')
    peer.wait(client.service_is_ready, 'the service')
    request = SetParameters.Request(parameters=[message(*pair) for pair in words.items()])
    future = client.call_async(request)
    answered = 0
    while not future.done():
        peer.ask(image(peer.header(), RGB, 'rgb8'))
        answered += 1
    assert all(result.successful for result in future.result().results)
    assert answered
    peer.ask(image(peer.header(), RGB, 'rgb8'))
    assert get(peer, *words) == list(words.values())


# Attacks -------------------------------------------------------------------------------------

def attack(peer, parameters, *, together):
    """Set what may be nonsense; every refusal must say why, in bounded words."""
    found = peer.results(parameters, together=together)
    assert len(found) == 1 if together else len(found) == len(parameters)
    for result in found:
        assert result.successful or 0 < len(result.reason) <= 500, result
    return found


def test_a_refused_set_changes_nothing_at_all(peer):
    """Not even what rclpy itself listens to."""
    before = dump(peer)
    for wrong in (message('temperature', -1.0), message('input_width', 7),
                  message('nonsense', 1), message('bins', ParameterValue(type=77)),
                  message('autostart', True), message('tokens', ['a'])):
        for parameters in ([message('use_sim_time', True), wrong],
                           [wrong, message('use_sim_time', True), message('flip_average', True)]):
            assert not attack(peer, parameters, together=True)[0].successful
            assert dump(peer) == before
    assert not peer.node.count_subscribers('/clock')


@pytest.mark.parametrize('together', [False, True])
def test_a_value_of_a_type_that_is_none_is_answered(peer, together):
    """rclpy's own service would raise, and whoever asked wait for ever."""
    for name in ('temperature', 'use_sim_time', 'no_such_parameter'):
        result, = attack(peer, [message(name, ParameterValue(type=77))], together=together)
        assert not result.successful
        assert name in result.reason
    assert attack(peer, [message('x' * 2**20, 1)], together=together)[0].reason
