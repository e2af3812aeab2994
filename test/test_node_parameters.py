# SPDX-License-Identifier: Apache-2.0
"""Parameters and lifecycle of the running node, through the services that ROS tools use."""

from __future__ import annotations

import dataclasses
import re
import threading

import pytest
import yaml

pytest.importorskip('rclpy')

import faulty_node
import numpy as np
from clip_standin import synthetic_rgb
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import GetParameters, ListParameters
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
    running,
    tiny_arguments,
)

from depthclip_ros.core import CameraImage, DepthConfig
from depthclip_ros.messages.node_config import NodeConfig

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


def wait_for_depth(peer, expected):
    """Ask until an image is answered so: new words are encoded meanwhile."""
    peer.wait(lambda: np.abs(depth_array(peer.ask(image(peer.header(), RGB, 'rgb8'))) - expected)
              .max() < 1e-4, 'that depth')


def test_wrong_values_are_refused_with_the_reason(peer):
    for temperature in (-1.0, 1e-45, 1e39, float('nan')):
        assert '0.001' in peer.put(temperature=temperature)
    assert '0.001 to 10000.0 m' in peer.put(bins=[1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 1e39])
    assert 'ascend' in peer.put(bins=[1.0, 2.0, 1.5, 3.0, 4.0, 5.0, 6.0])
    assert 'bilinear' in peer.put(upsampling='cubic')
    assert '4096' in peer.put(input_height=5000)
    assert peer.put(temperature='hot')
    assert 'read-only' in peer.put(autostart=True)
    assert 'stand twice' in peer.put(tokens=['far', 'Far '.strip().lower()])
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
        expected = predict(estimator, **change)
        wait_for_depth(peer, expected)
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
    wait_for_depth(peer, predict(estimator, **words))


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
    bins = DepthConfig().bins
    scenes = {'scenes': ['bathroom', 'hall'], 'scene_temperature': 0.2, 'scene_entropy': 1.0,
              'scene_bins': [0.5 * b for b in bins] + [4.0 * b for b in bins]}
    assert peer.put(together=True, **scenes) == ''
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    expected = None
    predict(estimator, **scenes)
    for rgb in (RGB, synthetic_rgb(8, 90, 120)):
        expected = estimator.predict(
            CameraImage(rgb, scene=None if expected is None else expected.scene))
        reply = peer.ask(image(peer.header(), rgb, 'rgb8'))
        np.testing.assert_allclose(depth_array(reply), expected.depth, atol=1e-3)
    alone = estimator.predict(rgb)
    assert np.abs(alone.depth - expected.depth).max() > 0.01, 'no memory to be seen'
    values = peer.quiet('depth_node: frames')['depth_node: frames']
    assert values['scene'] == (expected.scene.name or 'uncertain')
    for name, probability in zip(scenes['scenes'], expected.scene.probabilities, strict=True):
        assert float(values[f'scene: {name} [%]']) == pytest.approx(100 * probability, abs=0.2)

    assert peer.put(scenes=['']) == ''
    wait_for_depth(peer, predict(estimator))
    assert 'scene' not in peer.quiet('depth_node: frames')['depth_node: frames']


def test_words_that_cannot_be_encoded_are_said_and_the_old_ones_stay(
        node, peer, estimator, tiny_weights, tmp_path):
    """In the log and on /diagnostics, until there are others."""
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    expected, away = predict(estimator), tmp_path / 'away.pt'

    def refused(reason, **words):
        assert peer.put(together=True, bins=[1.0, 2.0], **words) == ''
        node.wait_for(f'The settings before stay in force: .*{reason}')
        depth = depth_array(peer.ask(image(peer.header(), RGB, 'rgb8')))
        np.testing.assert_allclose(depth, expected, atol=1e-4)
    refused('77 text tokens', tokens=['near', 'far ' * 100])
    tiny_weights.rename(away)
    try:
        refused(str(tiny_weights), tokens=['here', 'there'])
        tiny_weights.write_bytes(b'other weights')
        refused('no file of weights but text', tokens=['in', 'out'])
        tiny_weights.unlink()
    finally:
        away.rename(tiny_weights)
    words = {'tokens': ['here', 'there'], 'bins': [1.0, 2.0]}
    assert peer.put(temperature=TEMPERATURE, **words) == ''
    wait_for_depth(peer, predict(estimator, **words))


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


def test_what_does_not_fit_yet_waits_and_is_said_once(node, peer, estimator):
    """The way of `ros2 param load`: one parameter after the other, in the file's order."""
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    before, waiting = node.output.count('stay in force'), '3 tokens but 7 bins'
    for part in ({'tokens': ['a', 'b', 'c']}, {'flip_average': True}):
        assert peer.put(**part) == ''
        depth = depth_array(peer.ask(image(peer.header(), RGB, 'rgb8')))
        np.testing.assert_allclose(depth, predict(estimator), atol=1e-4)
    node.wait_for(f'stay in force: .*{waiting}')
    assert node.output.count('stay in force') == before + 1
    peer.status('depth_node: model', lambda status: waiting in status.message)
    assert peer.put(range_max=5.0, range_min=4.0, bins=[1.0, 2.0, 3.0]) == ''
    assert peer.put(range_min=7.0) == '', 'of two limits one is the first'
    words = {'tokens': ['a', 'b', 'c'], 'bins': [1.0, 2.0, 3.0], 'flip_average': True}
    assert peer.put(range_max=9.0, range_min=0.0) == ''
    wait_for_depth(peer, predict(estimator, range_max=9.0, **words))


def test_a_node_whose_parameters_do_not_fit_cannot_be_configured(node, peer):
    assert peer.put(tokens=['a', 'b', 'c']) == ''
    configure = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    assert not peer.call(ChangeState, 'depth_node/change_state', configure).success
    node.wait_for('Cannot configure: .*3 tokens but 7 bins')


def test_a_dump_can_be_loaded_into_its_own_node(peer):
    """What cannot be set may well be what it is."""
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    here = dump(peer)
    found = peer.results([message(*pair) for pair in here.items()])
    assert [name for name, result in zip(here, found, strict=True) if not result.successful
            and 'read-only' not in result.reason] == []
    assert dump(peer) == here
    assert 'read-only' in peer.put(**{'qos_overrides./image.subscription.depth': 7})


def test_images_and_services_go_on_while_words_are_encoded(cache, tiny_weights):
    """Encoding is slow here, and not over before everything else was answered."""
    faults = {'module': faulty_node.__file__, 'environment': {'FAULT_SLOW_WORDS': '3600'}}
    with own_domain() as domain, \
            running(tiny_arguments(tiny_weights), domain=domain, cache=cache, **faults) as node, \
            Peer(domain, node=node) as peer:
        peer.ask(image(peer.header(), RGB, 'rgb8'))
        assert peer.put(tokens=list('abcdefg')) == ''
        node.wait_for(faulty_node.ENCODES)
        for _ in range(3):
            peer.ask(image(peer.header(), RGB, 'rgb8'))
            assert get(peer, 'tokens') == [list('abcdefg')]
        assert peer.put(temperature=5.0) == ''
        peer.bring(State.PRIMARY_STATE_INACTIVE)


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
                  message('nonsense', 1), message('bins', [-1.0]),
                  message('autostart', True), message('tokens', ['a', 'a'])):
        for parameters in ([message('use_sim_time', True), wrong],
                           [wrong, message('use_sim_time', True), message('flip_average', True)]):
            assert not attack(peer, parameters, together=True)[0].successful
            assert dump(peer) == before
    assert not peer.node.count_subscribers('/clock')


@pytest.mark.parametrize('together', [False, True])
def test_a_name_that_is_none_is_answered(peer, together):
    assert attack(peer, [message('x' * 2**20, 1)], together=together)[0].reason
