# SPDX-License-Identifier: Apache-2.0
"""The running node, seen from outside, is what its settings, its interface and its policy say."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from depthclip_ros.core import DepthConfig, describe
from depthclip_ros.messages.node_config import NodeConfig, read_config

ROOT = Path(__file__).resolve().parents[1]
POLICY = ROOT / 'config/sros2'
SETTINGS = {s.name: s for c in (DepthConfig, NodeConfig) for s in dataclasses.fields(c)}
# Declared by rclpy, not by this package.
ROS_PARAMETERS = {'use_sim_time', 'start_type_description_service'}

# The declared interface of a camera without a name: topics and types that others rely on.
PUBLISHED = {
    '/depth/image': 'Image', '/depth/camera_info': 'CameraInfo', '/points': 'PointCloud2',
    '/depth/image_color': 'Image', '/depth/words': 'Image', '/depth/spread': 'Image',
    '/depth/stddev': 'Image', '/diagnostics': 'DiagnosticArray',
}
ROS_OWN = {'/parameter_events', '/rosout', '/depth_node/transition_event'}
IMAGES = {'raw': ('/image', 'Image'), 'compressed': ('/image/compressed', 'CompressedImage')}
ANCHORS = {'scan': ('/scan', 'LaserScan'), 'points': ('/anchor/points', 'PointCloud2'),
           'depth': ('/anchor/depth', 'Image')}
# Nobody can listen to them without tf2_msgs, as on a machine without ROS.
TF_TOPICS = ('/tf', '/tf_static')


def test_parameter_file_is_the_dataclasses():
    path = ROOT / 'config/depth.yaml'
    assert read_config(path) == (DepthConfig(), NodeConfig())
    parameters = yaml.safe_load(path.read_text(encoding='utf-8'))['/**']['ros__parameters']
    assert list(parameters) == list(SETTINGS)


# The policy of SROS 2 --------------------------------------------------------------------------


def policy(enclave, ns='/'):
    """What an enclave of the shipped policy allows: (verb, resolved name); see `permissions`."""
    tree = ET.parse(POLICY / 'depthclip.policy.xml').getroot()
    profiles = tree.findall(f'enclaves/enclave[@path="{enclave}"]/profiles/profile')
    assert profiles, enclave
    return {permission for profile in profiles
            for permission in permissions(profile, profile.get('node'), ns)}


def permissions(profile, node, ns):
    """(verb, resolved name) of everything that a profile and what it includes allows."""
    prefix = ns.rstrip('/')
    for part in profile:
        if part.tag == '{http://www.w3.org/2001/XInclude}include':
            assert part.get('xpointer') == 'xpointer(/profile/*)'
            yield from permissions(ET.parse(POLICY / part.get('href')).getroot(), node, ns)
            continue
        verbs = [verb for verb, rule in part.attrib.items() if rule == 'ALLOW']
        assert len(verbs) == len(part.attrib) == 1
        for child in part:
            name = child.text
            if name.startswith('~/'):
                name = f'{prefix}/{node}/{name[2:]}'
            elif not name.startswith('/'):
                name = f'{prefix}/{name}'
            yield verbs[0], name


def test_policy_is_installed_as_a_whole():
    """Each of its files is used, and setup.py's test sees that all files of config/ go along."""
    files = {file.name: file.read_text(encoding='utf-8') for file in POLICY.iterdir()}
    included = {name for text in files.values() for name in re.findall(r'href="([^"]+)"', text)}
    assert files.keys() == {'depthclip.policy.xml', *included}
    assert policy('/depthclip/depth_node') < policy('/depthclip/demo')


# The running node ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def running_node(domain, cache, tiny_weights):
    pytest.importorskip('rclpy')
    from ros_harness import NodeProcess, Peer, tiny_arguments
    process = NodeProcess(
        tiny_arguments(tiny_weights, autostart=False), domain=domain, cache=cache)
    try:
        with Peer(domain, listen=(), node=process) as peer:
            yield Graph(peer)
    finally:
        status = process.stop()
    assert status == 0, process.output


@pytest.fixture
def graph(running_node):
    """The node as others see it on the graph; nobody has configured it yet."""
    running_node.configure_anew(activate=False, anchor='', cameras=[''], image_transport='raw',
                                use_sim_time=False)
    return running_node


class Graph:
    """What the node is seen to have."""

    def __init__(self, peer):
        self.peer = peer

    def configure_anew(self, *, activate=True, **values):
        """Set parameters of the unconfigured node; and maybe make it active."""
        from lifecycle_msgs.msg import State
        self.peer.bring(State.PRIMARY_STATE_UNCONFIGURED)
        assert self.peer.put(**values) == ''
        if activate:
            self.peer.bring(State.PRIMARY_STATE_ACTIVE)

    def types(self, verb):
        """Resolved names of the node's topics or services, with their types."""
        look = {'publish': 'publisher', 'subscribe': 'subscriber', 'reply': 'service',
                'request': 'client'}[verb]
        by_node = getattr(self.peer.node, f'get_{look}_names_and_types_by_node')
        return {name: kind.rpartition('/')[2] for name, (kind, *_) in by_node('depth_node', '/')}

    def inputs(self):
        """Topics that it listens to, but for those that it may lack."""
        return {name: kind for name, kind in self.types('subscribe').items()
                if name not in TF_TOPICS}

    def permissions(self):
        """(verb, resolved name) of all that the node does."""
        return {(verb, name) for verb in ('publish', 'subscribe', 'reply', 'request')
                for name in self.types(verb)}

    def becomes(self, look, expected):
        """Wait until what is looked at is what is expected: discovery takes its time."""
        from ros_harness import PATIENCE
        end = time.monotonic() + PATIENCE
        while look() != expected and time.monotonic() < end:
            time.sleep(0.05)
        assert look() == expected


def test_declared_parameters_are_the_settings(graph):
    from rcl_interfaces.srv import DescribeParameters, ListParameters
    listed = graph.peer.call(
        ListParameters, 'depth_node/list_parameters', ListParameters.Request()).result.names
    # Of topics that the node had, their quality of service stays among the parameters.
    listed = {name for name in listed if not name.startswith('qos_overrides.')}
    assert listed - ROS_PARAMETERS == {*SETTINGS}
    answer = graph.peer.call(DescribeParameters, 'depth_node/describe_parameters',
                             DescribeParameters.Request(names=list(SETTINGS)))
    types = {'bool': 1, 'int': 2, 'float': 3, 'str': 4, 'tuple[float, ...]': 8,
             'tuple[str, ...]': 9}
    for described, setting in zip(answer.descriptors, SETTINGS.values(), strict=True):
        about = setting.metadata
        assert described.name == setting.name
        assert described.type == types[setting.type]
        assert described.description == describe(setting)
        assert described.read_only == (setting.name == 'autostart')
        limits = [(r.from_value, r.to_value)
                  for r in (*described.integer_range, *described.floating_point_range)]
        assert limits == ([] if about['minimum'] is None else
                          [(about['minimum'], about['maximum'])])
        assert ('unconfigured' in described.additional_constraints) == \
            (about['reload'] and not described.read_only)


def test_running_node_has_its_topics_and_what_the_policy_allows(graph):
    """Exactly what the policy allows: nothing more, and nothing in it that no setting needs."""
    camera_info = {'/camera_info': 'CameraInfo'}
    image, compressed = (dict([topic]) for topic in IMAGES.values())
    graph.configure_anew()
    graph.becomes(lambda: {name: kind for name, kind in graph.types('publish').items()
                           if name not in ROS_OWN}, PUBLISHED)
    graph.becomes(graph.inputs, image | camera_info)
    found = graph.permissions()
    for name, (topic, kind) in ANCHORS.items():
        graph.configure_anew(anchor=name)
        graph.becomes(graph.inputs, image | camera_info | {topic: kind})
        found |= graph.permissions()
    graph.configure_anew(anchor='', image_transport='compressed', use_sim_time=True)
    graph.becomes(graph.inputs, compressed | camera_info | {'/clock': 'Clock'})
    found |= {('subscribe', topic) for topic in TF_TOPICS}
    graph.becomes(lambda: found | graph.permissions(), policy('/depthclip/depth_node'))


def test_policy_of_named_cameras_is_that_of_one_in_each_namespace(graph):
    """As docs/robot.md says to write it: camera.xml in a profile of each name."""
    graph.configure_anew(cameras=['front', 'left/rear'])
    without = set(permissions(ET.parse(POLICY / 'depth_node.xml').getroot(), 'depth_node', '/'))
    without -= {('subscribe', topic) for topic in (
        '/clock', *(topic for topic, _ in ANCHORS.values()), *TF_TOPICS)}
    camera = ET.parse(POLICY / 'camera.xml').getroot()
    each = {permission for name in ('/front', '/left/rear')
            for permission in permissions(camera, 'depth_node', name)
            if not permission[1].endswith('/compressed')}
    graph.becomes(graph.permissions, without | each)
