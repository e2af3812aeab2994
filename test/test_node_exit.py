# SPDX-License-Identifier: Apache-2.0
"""The node ends after a signal, from any state and with the right status."""

from __future__ import annotations

import signal
import time

import pytest

pytest.importorskip('rclpy')

import faulty_node
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from ros_harness import ROOT, NodeProcess, Peer, segments
from sensor_msgs.msg import Image
from test_node_health import FRAMES, MODEL, faulty, good, marked

# Coverage, if it is measured, waits at the end for a thread that never comes back.
NO_COVERAGE = {'COVERAGE_PROCESS_CONFIG': ''}
# Others wait for ever for a process that says no farewell (usually 20 s).
ENDLESS_LEASE = """<?xml version="1.0" encoding="UTF-8"?>
<profiles xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles">
  <participant profile_name="endless_lease" is_default_profile="true">
    <rtps><builtin><discovery_config>
      <leaseDuration><sec>DURATION_INFINITY</sec></leaseDuration>
    </discovery_config></builtin></rtps>
  </participant>
</profiles>
"""


@pytest.fixture
def start(domain, cache, tiny_weights):
    """Start a faulty node; none is left."""
    nodes = []

    def start(environment=None, **parameters):
        nodes.append(faulty(tiny_weights, domain, cache, {**NO_COVERAGE, **(environment or {})},
                            **parameters))
        return nodes[-1]
    yield start
    for node in nodes:
        node.process.kill()


def end(node):
    """Exit status after SIGTERM, for which no callback or transition failed."""
    status = node.stop(signal.SIGTERM)
    assert 'Traceback' not in node.output, node.output
    return status


def test_diagnostics_go_on_while_the_model_is_loaded(start, domain):
    """Its topics are there for others to find; and a signal ends it."""
    node = start({'FAULT_AT_LOAD': '1'})
    with Peer(domain, listen=(), node=node) as peer:
        peer.status(MODEL, lambda s: s.message == 'no model loaded (loading)')
        count = len(peer.messages['/diagnostics'])
        peer.ready('depth/image', 'points')
        assert peer.node.count_subscribers('image') == 0
        peer.wait(lambda: len(peer.messages['/diagnostics']) >= count + 2, 'diagnostics')
        peer.process = None
        assert end(node) == 0, node.output


def test_a_lost_device_ends_the_process_with_the_reason(start, domain):
    """Only a new one can use it again, which `respawn` of the launch file waits for."""
    node = start()
    with Peer(domain, node=node) as peer:
        node.wait_for(r'\]: Active: ')
        peer.ask(good(peer))
        peer.process = None
        camera = peer.publisher('image', Image)
        peer.wait(lambda: node.process.poll() is not None
                  or camera.publish(marked(peer, faulty_node.DEVICE_FAILS)), 'its end')
        assert node.wait() == 1
    assert 'CUDA error: an illegal memory access' in node.output
    assert 'start the node anew' in node.output


def test_a_node_under_load_ends_well_and_leaves_the_graph(start, domain, tmp_path):
    profile = tmp_path / 'endless_lease.xml'
    profile.write_text(ENDLESS_LEASE)
    node = start({'FASTRTPS_DEFAULT_PROFILES_FILE': str(profile),
                  'FASTDDS_DEFAULT_PROFILES_FILE': str(profile)})
    with Peer(domain, node=node) as peer:
        node.wait_for(r'\]: Active: ')
        peer.ask(good(peer))
        peer.wait(lambda: 'depth_node' in peer.node.get_node_names(), 'its name')
        for _ in range(30):
            peer.send(good(peer))
        peer.process = None
        assert end(node) == 0, node.output
        peer.wait(lambda: 'depth_node' not in peer.node.get_node_names(), 'its farewell')


@pytest.mark.parametrize('mark', [faulty_node.LOOPS, faulty_node.SLEEPS])
def test_a_stuck_worker_is_told_and_ends_with_the_process(mark, start, domain):
    """Whether it is stuck in Python or in a library."""
    node = start(worker_timeout=1.0)
    with Peer(domain, node=node) as peer:
        node.wait_for(r'\]: Active: ')
        peer.wait(lambda: peer.send(marked(peer, mark)) or next(
            (True for array in peer.messages['/diagnostics'][-3:] for status in array.status
             if 'worker stuck for' in status.message), None), 'the status')
        for name in (FRAMES, MODEL):
            status = peer.status(name, lambda s: 'worker stuck for' in s.message)
            assert status.level == status.ERROR
        assert 'worker_timeout' in node.wait_for('worker stuck')
        peer.process = None
        assert end(node) == 1


def test_a_second_signal_ends_what_never_returns(start, domain):
    """As launch sends it, five seconds after the first; here a callback in the main thread."""
    node = start()
    with Peer(domain, node=node) as peer:
        node.wait_for(r'\]: Active: ')
        client = peer.node.create_client(SetParameters, 'depth_node/set_parameters')
        peer.wait(client.service_is_ready, 'the service')
        request = SetParameters.Request(
            parameters=[Parameter('temperature', value=7.0).to_parameter_msg()])
        client.call_async(request)
        node.wait_for(faulty_node.HANGS)
        peer.process = None
        node.process.send_signal(signal.SIGINT)
        peer.wait(lambda: node.process.poll() is not None
                  or node.process.send_signal(signal.SIGTERM), 'its end')


@pytest.mark.parametrize(('number', 'times', 'profile'), [
    (signal.SIGINT, 1, ROOT / 'config/fastdds_large_images.xml'),
    # As to a group without a terminal, to which launch sends it once more.
    (signal.SIGINT, 20, ROOT / 'config/fastdds_large_images.xml'), (signal.SIGTERM, 1, '')])
def test_no_shared_memory_is_left(number, times, profile, start):
    """With the profile for large images it would be 34 MiB at every end."""
    node = start({'FASTRTPS_DEFAULT_PROFILES_FILE': str(profile),
                  'FASTDDS_DEFAULT_PROFILES_FILE': str(profile)} if profile else None)
    node.wait_for(r'\]: Active: ')
    own = segments(node.process)  # nobody else is in this domain
    if not own:
        pytest.skip('the middleware uses no shared memory here')
    for _ in range(times):
        node.process.send_signal(number)
        time.sleep(0.005)
    assert node.wait() == 0, node.output
    assert ']: Stopped: ' in node.output
    assert 'Traceback' not in node.output
    assert not [path for path in own if path.exists()]


def test_unknown_arguments_are_refused(domain, cache):
    node = NodeProcess(['--wieghts', 'x', '--ros-args', '-p', 'weights:=demo'], domain=domain,
                       cache=cache)
    assert node.wait() == 2
    assert "'--wieghts x'" in node.output
    assert '--ros-args' in node.output
