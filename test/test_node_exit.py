# SPDX-License-Identifier: Apache-2.0
"""The node ends within two seconds of a signal, from any state and with the right status."""

from __future__ import annotations

import signal
import time

import pytest

pytest.importorskip('rclpy')

import faulty_node
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from ros_harness import NodeProcess, Peer
from test_node_health import FRAMES, MODEL, end, faulty, good, marked, status_of


def test_diagnostics_go_on_while_the_model_is_loaded(domain, cache, tiny_weights):
    """Its topics are there for others to find; and a signal ends it, whatever a library does."""
    # Coverage, if it is measured, waits at the end for the thread that sleeps.
    node = faulty(tiny_weights, domain, cache,
                  {'FAULT_AT_LOAD': 'sleep', 'COVERAGE_PROCESS_CONFIG': ''})
    with Peer(domain, listen=(), node=node) as peer:
        status_of(peer, MODEL, lambda s: s.message == 'no model loaded (loading)')
        count = len(peer.messages['/diagnostics'])
        peer.ready('depth/image', 'points')
        assert peer.node.count_subscribers('image') == 0
        peer.wait(lambda: len(peer.messages['/diagnostics']) >= count + 3, 'diagnostics')
        peer.process = None
        assert end(node) == 0, node.output
    assert 'Traceback' not in node.output


def test_a_device_that_stays_lost_ends_the_process(domain, cache, tiny_weights):
    node = faulty(tiny_weights, domain, cache, {'FAULT_STAYS': '1'})
    with Peer(domain, node=node) as peer:
        node.wait_for(r'\]: Active: ')
        peer.wait(lambda: peer.send(marked(peer, faulty_node.DEVICE_FAILS))
                  or 'loading the model anew' in node.output, 'the reload')
        status = status_of(peer, MODEL, lambda s: 'reloading' in s.message)
        assert status.level == status.ERROR
        assert 'device lost' in status.message or 'illegal memory' in status.message
        assert {p.key: p.value for p in status.values}['lifecycle state'] == 'reloading'
        assert status_of(peer, FRAMES, lambda s: 'reloading' in s.message).level == status.ERROR
        assert end(node, signal.SIGINT) == 0, 'in a break between two reloads'


def test_a_start_that_takes_long_is_given_up_for_a_signal(
        domain, cache, tiny_weights, undisturbed):
    # Coverage, if it is measured, would wait at the end.
    node = faulty(tiny_weights, domain, cache,
                  {'FAULT_AT_START': '1', 'COVERAGE_PROCESS_CONFIG': ''})
    with Peer(domain, listen=(), node=node) as peer:
        peer.wait(lambda: 'depth_node' in peer.node.get_node_names(), 'the node')
        peer.process = None
        with undisturbed():
            assert end(node) == 0, node.output


@pytest.mark.parametrize(('state', 'status'), [
    ('unconfigured', 0), ('loading in Python', 0), ('active', 0), ('under load', 0),
    ('stuck in C', 1), ('in a parameter callback', 1)])
def test_a_signal_ends_the_process_in_any_state(
        state, status, domain, cache, tiny_weights, undisturbed):
    environment = {'FAULT_AT_LOAD': 'loop'} if state == 'loading in Python' else None
    node = faulty(tiny_weights, domain, cache, environment, autostart=state != 'unconfigured')
    try:
        with Peer(domain, node=node) as peer:
            if state in ('unconfigured', 'loading in Python'):
                label = state.split()[0]
                status_of(peer, MODEL, lambda s: label in s.message)
            else:
                node.wait_for(r'\]: Active: ')
            if state == 'under load':
                peer.ask(good(peer))
            if state == 'stuck in C':
                peer.wait(lambda: peer.send(marked(peer, faulty_node.SLEEPS)) or next(
                    (True for array in peer.messages['/diagnostics'] for s in array.status
                     if 'worker stuck for' in s.message), None), 'the status')
            if state == 'in a parameter callback':
                client = peer.node.create_client(SetParameters, 'depth_node/set_parameters')
                assert client.wait_for_service(60)
                request = SetParameters.Request(
                    parameters=[Parameter('temperature', value=7.0).to_parameter_msg()])
                client.call_async(request)
                time.sleep(1.0)  # it is to be there, and says nothing
            peer.process = None
            with undisturbed():
                if state == 'under load':
                    for _ in range(30):
                        peer.send(good(peer))
                assert end(node) == status, node.output
            if state in ('unconfigured', 'active', 'under load'):
                ended = time.monotonic()  # who is only not heard of any more stays for 20 s
                peer.wait(lambda: 'depth_node' not in peer.node.get_node_names(), 'its farewell')
                assert time.monotonic() - ended < 10
        assert 'Traceback' not in node.output, node.output
    finally:
        node.process.kill()


def test_a_stuck_worker_is_told_and_ends_with_the_process(
        domain, cache, tiny_weights, undisturbed):
    # Coverage, if it is measured, waits at the end for the thread that runs for ever.
    node = faulty(tiny_weights, domain, cache, {'COVERAGE_PROCESS_CONFIG': ''})
    try:
        with Peer(domain, node=node) as peer:
            node.wait_for(r'\]: Active: ')
            peer.wait(lambda: peer.send(marked(peer, faulty_node.LOOPS)) or next(
                (True for array in peer.messages['/diagnostics'][-3:] for status in array.status
                 if 'worker stuck for' in status.message), None), 'the status')
            for name in (FRAMES, MODEL):
                status = status_of(peer, name, lambda s: 'worker stuck for' in s.message)
                assert status.level == status.ERROR
            assert 'worker_timeout' in node.wait_for('worker stuck')
            peer.process = None
            with undisturbed():
                assert end(node) == 1
    finally:
        node.process.kill()


def test_help_starts_nothing(domain, cache):
    node = NodeProcess(['--help'], domain=domain, cache=cache)
    assert node.wait() == 0
    assert node.output.startswith('usage: depth_node')
    assert 'temperature: 0.1' in node.output
    assert 'max_age' in node.output


def test_unknown_arguments_are_refused(domain, cache):
    node = NodeProcess(['--wieghts', 'x', '--ros-args', '-p', 'weights:=demo'], domain=domain,
                       cache=cache)
    assert node.wait() == 2
    assert "'--wieghts x'" in node.output
    assert '--help' in node.output
