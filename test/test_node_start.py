# SPDX-License-Identifier: Apache-2.0
"""The node's process: it ends cleanly, and says in one line why it cannot start."""

from __future__ import annotations

import os
import signal
from array import array
from itertools import permutations
from pathlib import Path

import pytest

pytest.importorskip('rclpy')

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import GetParameters
from rclpy._rclpy_pybind11 import RCLInvalidROSArgsError
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import QoSDurabilityPolicy
from ros_harness import NodeProcess, Peer, running, tiny_arguments

from depthclip_ros import executables
from depthclip_ros.core import ConfigError, DepthConfig
from depthclip_ros.core.parameter_file import read_parameters
from depthclip_ros.messages.node_config import ROS_PARAMETERS, NodeConfig, read_config
from depthclip_ros.node.process import check_files

CONFIG = Path(__file__).resolve().parents[1] / 'config'

YAML = '/**:\n  ros__parameters:\n    '

# Parameter file, and what the message must hold: what is wrong, the value seen, what to do.
BAD_FILES = {
    'unknown key': (YAML + 'tempature: 1.0', ['tempature', 'did you mean temperature?']),
    'wrong value': (YAML + 'temperature: -1.0', ['temperature', '-1.0', '0.001 to 1000.0']),
    'empty list': (YAML + 'tokens: []', ['at least one element', '[1.0, 2.5]']),
}
# What the tools refuse in the same words.
UNREADABLE_FILES = [YAML + text for text in (
    "weights: 'unclosed", 'bins: [1, 2.5]', 'bins: [1.0]\n    bins: [2.0]',
    'temperature: 1.0\n/**:\n  ros__parameters: {temperature: 2.0}')]
SEVERAL_SECTIONS = """
front:
  '*': {ros__parameters: {temperature: 2e0, tokens: [~, '010', no_, 1_0], range_min: 1e-1}}
/front/other: {ros__parameters: {temperature: 9.0, plugins: []}}
/**/depth_node:
  ros__parameters:
    bins: [1e0, 2., 3.5e+0, 08]
    scene_memory: .5
    input_height: +0x60
    input_width: 0200
    out_of_range: inf
    scenes: ["1e0", 'y', !!str 0x1, "2024-01-01"]
    scene_templates: ['a {} 1:30']
    flip_average: On
    offline: y
    weights: untrained
    cache_dir: ~
"""
# The rest of a line of a parameter file, as people write it, and what rcl and YAML differ in.
VALUES = [
    *"""1e0 1e-1 .5 5. +1 -1 010 08 0x1F 0X1f -0x10 +010 0o17 1_000 1:30 2024-01-01 inf INF
    Infinity -inf nan NaN .inf +.inf -.Inf .nan .NAN +.nan ..nan a.inf 1e400 2.3e-308 0e5 00
    -0 0.0e0 9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809
    1e5 0x 1e 1.5f 1d0 1.2.3 0x1.8.1 y Y yes yEs on Off n TRUE tRUE ~ null Null '1' "1" a#c
    it's [yes,true] [~,a] [1,] [a,'1'] "" '' \u0661 a:b http://x \u8fd1 "\\u0041" -.5 .5e3 +.5
    . + - e5 infinit""".split(),  # noqa: SIM905
    '!!str 1', '!!int "1"', '!!bool yes', '!!float 1', '! 1', '!!binary aGk=', 'a # c',
    '&a [1, 2]', '|-\n      5', '|\n      5', '>\n      yes\n      no', 'x\n      y',
    '!!python/tuple [1, 2]', "'it''s'", '"a: b"', '\t1', '9' * 400, '']


def refused(arguments, domain, cache):
    """Start a node that must fail; give its only message."""
    node = NodeProcess(arguments, domain=domain, cache=cache)
    try:
        status = node.wait()
    finally:
        node.process.kill()
    assert status == 1, node.output
    assert 'Traceback' not in node.output, node.output
    lines = [line for line in node.output.splitlines()
             if line.strip() and '[rcl]: Failed to parse global arguments' not in line]
    assert len(lines) == 1, node.output
    return lines[0]


@pytest.mark.parametrize('fault', BAD_FILES)
def test_bad_parameter_file(fault, tmp_path, domain, cache):
    text, words = BAD_FILES[fault]
    path = tmp_path / 'bad.yaml'
    path.write_text(text + '\n')
    message = refused(['--ros-args', '--params-file', str(path)], domain, cache)
    for word in words:
        assert word in message


@pytest.mark.parametrize('text', UNREADABLE_FILES)
def test_what_the_tools_cannot_read_the_node_refuses_in_their_words(text, tmp_path, domain, cache):
    path = tmp_path / 'bad.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        DepthConfig.from_yaml(path)
    message = refused(['--ros-args', '--params-file', str(path)], domain, cache)
    assert message == f'depth_node: {error.value}'


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
def test_node_and_tools_read_one_file_alike(encoding, tmp_path, domain, cache):
    path = tmp_path / 'several.yaml'
    path.write_text(SEVERAL_SECTIONS.replace('\n', '\r\n'), encoding=encoding)
    depth, node = read_config(path, '/front/depth_node')
    assert (depth.temperature, depth.tokens[0], depth.bins) == (2.0, '~', (1.0, 2.0, 3.5, 8.0))
    arguments = ['-r', '__ns:=/front', '--params-file', str(path), '-p', 'autostart:=false']
    process = NodeProcess(['--ros-args', *arguments], domain=domain, cache=cache)
    try:
        with Peer(domain, listen=(), node=process) as peer:
            wanted = {**depth.to_dict(), **node.replace(autostart=False).to_dict()}
            values = peer.call(GetParameters, '/front/depth_node/get_parameters',
                               GetParameters.Request(names=list(wanted))).values
    finally:
        process.stop()
    assert 'Traceback' not in process.output, process.output
    given = [list(v) if isinstance(v, (array, list)) else v
             for v in map(parameter_value_to_python, values)]
    assert dict(zip(wanted, given, strict=True)) == wanted


def test_the_files_of_the_arguments_are_checked(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    good, bad = tmp_path / 'good.yaml', tmp_path / 'bad.yaml'
    good.write_text(YAML + 'temperature: 1.0')
    bad.write_text('[')
    of_ros = ['--ros-args', '--params-file', str(good), '-p', 'x:=1', '--params-file',
              str(tmp_path / 'pipe')]
    check_files(['depth_node', '--params-file', str(bad), *of_ros])
    check_files([*of_ros, '--', '--params-file', str(bad)])
    check_files([*of_ros, '--params-file'])  # which rcl refuses
    for arguments in ([*of_ros, '--params-file', str(bad)],
                      [*of_ros, '--', '--ros-args', '--params-file', str(bad)]):
        with pytest.raises(ConfigError, match=r'bad\.yaml'):
            check_files(arguments)


@pytest.mark.parametrize('module', ['node.depth_node', 'sources.sim_camera'])
def test_a_file_for_another_node_is_named(module, tmp_path, domain, cache):
    """rcl ignores it without a word, and the settings of the defaults would be in force."""
    path = tmp_path / 'robot.yaml'
    path.write_text('eye:\n  ros__parameters: {temperature: 1.0}\n')
    arguments = ['--ros-args', '-r', '__ns:=/front', '--params-file', str(path)]
    if module == 'node.depth_node':
        arguments += ['-p', 'autostart:=false']
    process = NodeProcess(arguments, domain=domain, cache=cache, module=f'depthclip_ros.{module}')
    try:
        line = process.wait_for(rf'robot\.yaml.*/front/{module.partition(".")[2]}')
    finally:
        process.stop()
    assert all(word in line for word in ('WARN', 'eye', '/**:'))


def by_rcl(path, namespace=''):
    """What rcl reads for a depth_node; '' where it refuses the file."""
    try:
        node = Node('depth_node', namespace=namespace,
                    cli_args=['--ros-args', '--params-file', str(path)],
                    automatically_declare_parameters_from_overrides=True,
                    start_parameter_services=False, enable_rosout=False)
    except RCLInvalidROSArgsError:
        return ''
    try:
        return {name: list(p.value) if isinstance(p.value, array) else p.value
                for name, p in node.get_parameters_by_prefix('').items()
                if not ROS_PARAMETERS.match(name)}
    finally:
        node.destroy_node()


def test_values_are_what_rcl_takes_them_for(domain, tmp_path):
    path = tmp_path / 'p.yaml'
    rclpy.init(domain_id=domain)
    try:
        for text in VALUES:
            path.write_text(f'/**:\n  ros__parameters:\n    x: {text}\n', encoding='utf-8')
            try:
                read = read_parameters(path, 'depth_node')
            except ConfigError:
                read = ''
            assert repr(read) == repr(by_rcl(path)), text  # as 1 == 1.0 == True, and NaN is none
    finally:
        rclpy.try_shutdown()


def test_sections_are_what_rcl_takes_them_for(domain, tmp_path):
    path = tmp_path / 'p.yaml'
    names = ['/**', '/*', 'depth_node', '/depth_node', '/**/depth_node', '/*/depth_node',
             '/front/*', 'depth_node/', '//depth_node', '/', '*', '/**/*', 'other', 'a b']
    path.write_text("front: {depth_node: {ros__parameters: {x: 1, z: 1}}}\n"
                    "'**': {ros__parameters: {x: 2}}\n"
                    "front/depth_node: {ros__parameters: {x: 3, y: 4}}\n")
    twice = read_parameters(path, '/front/depth_node')
    inner = [f"'{name}': {{ros__parameters: {{x: {i}}}}}" for i, name in enumerate(names)]
    rclpy.init(domain_id=domain)
    try:
        assert twice == by_rcl(path, 'front') == {'x': 2, 'y': 4, 'z': 1}
        for first, second in permutations(range(len(names)), 2):
            path.write_text(f'{inner[first]}\n{inner[second]}\n')
            try:
                read = read_parameters(path, 'depth_node')
            except ConfigError as error:
                read = {} if 'no section' in str(error) else ''
            assert read == by_rcl(path), (names[first], names[second])
    finally:
        rclpy.try_shutdown()


def test_an_unknown_quality_of_service_is_refused(domain, cache, tiny_weights):
    name = 'qos_overrides./image.subscription.reliability'
    node = NodeProcess(tiny_arguments(tiny_weights, **{name: 'sometimes'}), domain=domain,
                       cache=cache)
    assert node.wait() == 1
    assert f'Cannot activate: {name.rpartition(".")[0]}: ' in node.output
    assert 'sometimes' in node.output
    assert 'Traceback' not in node.output


@pytest.mark.parametrize(('name', 'words'), [
    ('/image.subscribtion.depth', 'did you mean /image.subscription.depth'),
    ('/imge.subscription.depth', '/image.subscription.depth'),
    ('/depth/image.publisher.deadline', 'history, depth, reliability, durability')])
def test_a_misspelt_override_is_refused(name, words, domain, cache, tiny_weights):
    node = NodeProcess(tiny_arguments(tiny_weights, **{f'qos_overrides.{name}': 1}),
                       domain=domain, cache=cache)
    assert node.wait() == 1
    assert words in node.wait_for(f'Cannot activate: .*{name}')


def test_a_file_of_the_whole_robot_starts_the_node(tmp_path, domain, cache, tiny_weights):
    """What is of others has no effect, and is said; overrides take effect."""
    durability = 'qos_overrides./camera_info.subscription.durability'
    path = tmp_path / 'robot.yaml'
    path.write_text(YAML + 'robot_name: marvin\n    update_rate: 20.0\n    qos_overrides:\n'
                    '      /scan: {subscription: {depth: 3}}\n')
    arguments = tiny_arguments(tiny_weights, **{durability: 'transient_local'})
    with running([*arguments, '--params-file', str(path)], domain=domain, cache=cache) as node, \
            Peer(domain, listen=(), node=node) as peer:
        assert 'WARN' in node.wait_for('robot_name, update_rate')
        assert 'WARN' in node.wait_for('no topic ./scan')
        offer, = peer.wait(lambda: peer.node.get_subscriptions_info_by_topic('/camera_info'),
                           'the subscription')
        assert offer.qos_profile.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL


def test_help_has_every_parameter(domain, cache):
    node = NodeProcess(['--help'], domain=domain, cache=cache)
    assert node.wait() == 0
    for name in DepthConfig.names() + NodeConfig.names():
        assert f'  {name}: ' in node.output


def test_missing_parameter_file(domain, cache):
    assert 'nowhere.yaml' in refused(
        ['--ros-args', '--params-file', 'nowhere.yaml'], domain, cache)


def test_demo_weights_bring_what_was_not_given(domain, cache):
    """What was given counts, also where it is the default; parameters tell what is in force."""
    own, default = DepthConfig.from_yaml(CONFIG / 'demo.yaml'), DepthConfig()
    assert own.features != default.features
    node = NodeProcess(
        ['--ros-args', '-p', 'weights:=demo', '-p', 'input_width:=320',
         '-p', f'features:={default.features}', '-p', 'device:=cpu'],
        domain=domain, cache=cache)
    try:
        with Peer(domain, node=node) as peer:
            node.wait_for('Active: ')
            names = ['tokens', 'bins', 'temperature', 'backbone', 'input_height', 'input_width',
                     'features']
            values = peer.call(GetParameters, 'depth_node/get_parameters',
                               GetParameters.Request(names=names)).values
    finally:
        status = node.stop()
    assert status == 0, node.output
    assert [list(v) if isinstance(v, (array, list)) else v
            for v in map(parameter_value_to_python, values)] == [
        list(own.tokens), list(own.bins), own.temperature, 'auto', 192, 320, default.features]
    lines = [line for line in node.output.splitlines() if 'bring their own' in line]
    assert len(lines) == 1
    assert 'features' not in lines[0]


def test_unwritable_cache_is_no_reason_to_stop(domain, tmp_path, tiny_weights):
    """The cache saves time; the node works without it, and says so."""
    blocked = tmp_path / 'file'
    blocked.write_text('a file where the folder should be')
    with running(tiny_arguments(tiny_weights), domain=domain, cache=blocked / 'cache') as node:
        assert 'WARN' in node.wait_for(str(blocked))


def test_configure_fails_with_the_reason_and_can_be_tried_again(
        domain, cache, tmp_path, tiny_weights):
    corrupt, wrong = tmp_path / 'corrupt.pt', tmp_path / 'wrong.pt'
    corrupt.write_bytes(tiny_weights.read_bytes()[:1000])
    import torch
    torch.save({'layer.weight': torch.zeros(3)}, wrong)
    arguments = tiny_arguments(tmp_path / 'none.pt', autostart=False)
    node = NodeProcess(arguments, domain=domain, cache=cache)
    try:
        with Peer(domain, listen=(), node=node) as peer:
            configure = ChangeState.Request(
                transition=Transition(id=Transition.TRANSITION_CONFIGURE))
            for path in (tmp_path / 'none.pt', corrupt, wrong):
                assert peer.put(weights=str(path)) == ''
                assert not peer.call(ChangeState, 'depth_node/change_state', configure).success
                assert 'ERROR' in node.wait_for(f'Cannot configure: .*{path.name}')
            assert peer.put(weights=str(tiny_weights)) == ''
            peer.bring(State.PRIMARY_STATE_ACTIVE)
    finally:
        status = node.stop(signal.SIGTERM)
    assert status == 0
    assert 'Traceback' not in node.output


def test_signal_while_loading_ends_it_cleanly(domain, cache, tiny_weights):
    node = NodeProcess(tiny_arguments(tiny_weights), domain=domain, cache=cache)
    with Peer(domain, listen=(), node=node) as peer:
        peer.wait(lambda: 'depth_node' in peer.node.get_node_names(), 'the node')
    assert node.stop() == 0, node.output
    assert 'Traceback' not in node.output, node.output


def test_untrained_weights_are_announced_everywhere(domain, cache):
    import numpy as np
    from clip_standin import synthetic_rgb
    from ros_harness import image
    arguments = tiny_arguments('untrained', backbone='RN50', input_height=64, input_width=64)
    with running(arguments, domain=domain, cache=cache) as node, \
            Peer(domain, listen=('depth/image_color',), node=node) as peer:
        assert 'ERROR' in node.wait_for('UNTRAINED WEIGHTS: depth is meaningless')
        rgb = synthetic_rgb(1, 240, 320)
        color = peer.ask(image(peer.header(), rgb, 'rgb8'), 'depth/image_color')
        picture = np.frombuffer(color.data, np.uint8).reshape(240, 320, 3)
        stripe = picture[2:10].reshape(-1, 3).astype(int)
        assert (stripe[:, 2] - stripe[:, 0] > 100).mean() > 0.5, 'no red stripe in the picture'
        status, values = peer.diagnostics(
            'depth_node: model', lambda values: values.get('trained') == 'False')
        assert status.level == status.ERROR
        assert 'meaningless' in status.message
        # However it is started; the user may have chosen otherwise.
        chosen = any(name in os.environ for name in executables.WAITING_BY_USER)
        assert chosen or values['threads wait by'] == '{}={}'.format(
            *next(iter(executables.WAITING.items())))
