# SPDX-License-Identifier: Apache-2.0
"""The parameter services while words are being encoded: for as long as these tests like."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip('rclpy')

from rcl_interfaces.srv import (
    GetParameters,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_harness import PATIENCE, Peer, node_here

from depthclip_ros.core import ConfigError, DepthConfig
from depthclip_ros.node.parameters import Parameters

SEVEN = {'tokens': list('abcdefg')}
THREE = {'tokens': ['x', 'y', 'z'], 'bins': [1.0, 2.0, 3.0]}


class Encoder:
    """In place of an estimator: encodes when it is allowed to."""

    def __init__(self):
        self.known = {DepthConfig().tokens}
        self.asked = []
        self.started, self.go_on = threading.Event(), threading.Event()
        self.error = None

    def is_encoded(self, config):
        return config.tokens in self.known

    def encode(self, config):
        if self.is_encoded(config):
            return
        self.asked.append(config.tokens)
        self.started.set()
        assert self.go_on.wait(PATIENCE)
        if self.error:
            raise self.error
        self.known.add(config.tokens)

    def read_calibration(self, config, *, again):
        assert not config.calibration


@pytest.fixture
def graph(domain):
    """A node with our services whose executor has one thread, and a peer."""
    with node_here(domain, Node, 'depth_node', start_parameter_services=False,
                   automatically_declare_parameters_from_overrides=True) as node:
        node.encoder, node.applied = Encoder(), []
        parameters = Parameters(node, lambda: True, lambda: node.encoder, node.applied.append)
        executor = SingleThreadedExecutor(context=node.context)
        executor.add_node(node)
        node.ended = threading.Event()

        def spin():
            while not node.ended.is_set():
                executor.spin_once(timeout_sec=0.05)
        thread = threading.Thread(target=spin, daemon=True)
        thread.start()
        try:
            with Peer(domain, listen=()) as peer:
                yield node, peer, parameters
        finally:
            node.encoder.go_on.set()
            node.ended.set()
            thread.join(PATIENCE)
            executor.remove_node(node)
            executor.shutdown(1.0)


def request(peer, values, *, together=True):
    """Send a request to set parameters; give the future of its answer."""
    kind = SetParametersAtomically if together else SetParameters
    name = 'set_parameters_atomically' if together else 'set_parameters'
    client = peer.node.create_client(kind, f'depth_node/{name}')
    assert client.wait_for_service(PATIENCE)
    return client.call_async(kind.Request(parameters=[
        Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]))


def answer(peer, future):
    peer.wait(future.done, 'the answer')
    return future.result().result


def get(peer, name):
    values = peer.call(GetParameters, 'depth_node/get_parameters',
                       GetParameters.Request(names=[name])).values
    return list(values[0].string_array_value) or list(values[0].double_array_value) \
        or values[0].double_value


def test_the_node_goes_on_while_words_are_encoded(graph):
    node, peer, _ = graph
    future = request(peer, THREE)
    assert node.encoder.started.wait(PATIENCE)
    assert get(peer, 'tokens') == list(DepthConfig().tokens), 'not in force yet'
    assert answer(peer, request(peer, {'temperature': 2.0})).successful
    assert not future.done()
    node.encoder.go_on.set()
    assert answer(peer, future).successful
    assert get(peer, 'tokens') == THREE['tokens']
    assert [(c.tokens, c.temperature) for c in node.applied] == [
        (DepthConfig().tokens, 2.0), (('x', 'y', 'z'), 2.0)]


def test_what_no_longer_fits_when_it_is_encoded_is_refused(graph):
    node, peer, _ = graph
    node.encoder.known.add(('x', 'y', 'z'))
    future = request(peer, SEVEN)
    assert node.encoder.started.wait(PATIENCE)
    assert answer(peer, request(peer, THREE)).successful
    node.encoder.go_on.set()
    result = answer(peer, future)
    assert not result.successful
    assert '7 tokens but 3 bins' in result.reason
    assert 'ros2 param load /depth_node' in result.reason
    assert get(peer, 'tokens') == THREE['tokens']
    assert [c.tokens for c in node.applied] == [('x', 'y', 'z')]


def test_requests_are_encoded_one_after_the_other(graph):
    node, peer, _ = graph
    first = request(peer, SEVEN)
    assert node.encoder.started.wait(PATIENCE)
    second = request(peer, THREE)
    get(peer, 'tokens')
    assert len(node.encoder.asked) == 1
    node.encoder.go_on.set()
    assert answer(peer, first).successful
    assert answer(peer, second).successful
    assert get(peer, 'bins') == THREE['bins']
    assert len(node.encoder.asked) == 2


@pytest.mark.parametrize(('error', 'words'), [
    (ConfigError('tokens: too long'), 'tokens: too long'),
    (RuntimeError('no memory'), 'internal error'),
])
def test_what_cannot_be_encoded_is_refused_with_the_reason(graph, error, words):
    node, peer, _ = graph
    node.encoder.error = error
    node.encoder.go_on.set()
    for future in (request(peer, THREE), request(peer, THREE, together=False)):
        peer.wait(future.done, 'the answer')
    result = answer(peer, request(peer, THREE))
    assert not result.successful
    assert words in result.reason
    assert get(peer, 'tokens') == list(DepthConfig().tokens)
    assert not node.applied


def test_words_wait_for_a_model_that_is_being_loaded(graph):
    node, peer, _ = graph
    node.encoder, encoder = None, node.encoder
    result = answer(peer, request(peer, SEVEN))
    assert not result.successful
    assert 'try again' in result.reason
    node.encoder = encoder


def test_set_by_the_process_itself_does_the_same(graph):
    node, _, parameters = graph
    node.encoder.go_on.set()
    result = node.set_parameters_atomically(
        [Parameter(name, value=value) for name, value in THREE.items()])
    assert result.successful
    assert node.encoder.asked == [('x', 'y', 'z')]
    assert parameters.read()[0].bins == (1.0, 2.0, 3.0)


@pytest.mark.skipif(not hasattr(Node, 'list_parameters'), reason='rclpy is too old to ask')
def test_lists_are_those_of_rclpy(graph):
    node, peer, _ = graph
    for name in ('a.b.c', 'a.b.d', 'a.e', 'ab.c'):
        node.declare_parameter(name, 1)
    for prefixes in ([], ['a'], ['a.b'], ['a', 'ab'], ['a.b.c'], ['tokens'], ['no'], ['']):
        for depth in (0, 1, 2, 3):
            answer = peer.call(ListParameters, 'depth_node/list_parameters',
                               ListParameters.Request(prefixes=prefixes, depth=depth))
            expected = node.list_parameters(prefixes, depth)
            assert list(answer.result.names) == list(expected.names), (prefixes, depth)
            assert list(answer.result.prefixes) == list(expected.prefixes), (prefixes, depth)
