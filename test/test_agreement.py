# SPDX-License-Identifier: Apache-2.0
"""README, parameter file, launch arguments, security policy, docstrings and the node agree.

What each of them says of parameters, topics and services is compared here, and nowhere else.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from depthclip_ros.core import DepthConfig, describe
from depthclip_ros.node import diagnostic_keys
from depthclip_ros.node.config import NodeConfig, read_config
from depthclip_ros.sim.world import SimConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
SIMULATION = (ROOT / 'docs/simulation.md').read_text(encoding='utf-8')
SETTINGS = {s.name: s for c in (DepthConfig, NodeConfig) for s in dataclasses.fields(c)}
LIVE = [name for name, setting in SETTINGS.items() if not setting.metadata['reload']]
# Declared by rclpy, not by this package.
ROS_PARAMETERS = {'use_sim_time', 'start_type_description_service'}


def section(page, title):
    """Text under a heading, up to the next one."""
    found = re.search(rf'^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)', page, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def rows(text):
    """Cells of the table's body."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines[2:]]


# Settings --------------------------------------------------------------------------------------


def parameter_rows(*all_settings):
    """Rows that a parameter table must have, in order."""
    for settings in all_settings:
        for setting in dataclasses.fields(settings):
            default = settings.to_dict()[setting.name]
            shown = yaml.safe_dump(default, default_flow_style=True, width=1000).strip()
            shown = shown.removesuffix('\n...').strip()
            text = describe(setting).replace('|', '/')
            yield f'| `{setting.name}` | `{shown}` | {text} |'


@pytest.mark.parametrize(('page', 'title', 'settings'), [
    (README, 'Parameters', (DepthConfig(), NodeConfig())),
    (SIMULATION, 'Parameters of `sim_camera`', (SimConfig(),)),
])
def test_parameter_table_is_the_dataclasses(page, title, settings):
    table = [line for line in section(page, title).splitlines() if line.startswith('| `')]
    assert table == list(parameter_rows(*settings))


def test_parameter_file_is_the_dataclasses():
    path = ROOT / 'config/depth.yaml'
    assert read_config(path) == (DepthConfig(), NodeConfig())
    text = path.read_text(encoding='utf-8')
    assert list(yaml.safe_load(text)['/**']['ros__parameters']) == list(SETTINGS)
    for name, setting in SETTINGS.items():
        comment = re.search(rf'^ +{name}: [^#\n]*(.*)$', text, re.MULTILINE)[1]
        for choice in setting.metadata['choices'] or ():
            assert choice in comment, f'{name}: {choice} is missing behind it'


def test_what_can_change_on_a_loaded_model_is_said():
    from_readme = section(README, 'Parameters').partition(' can be set while the node runs')[0]
    assert re.findall(r'`(\w+)`', from_readme.rpartition('\n\n')[2]) == LIVE
    text = ' '.join(node_docstring().partition('in its descriptor. ')[2].split())
    named = re.sub(r' \(metres\)', '', text.partition(' take effect')[0])
    assert re.split(', | and ', named) == LIVE


# Launch files ----------------------------------------------------------------------------------


def launch_arguments(name):
    """Names and literal defaults of the arguments that a launch file declares."""
    tree = ast.parse((ROOT / 'launch' / name).read_text(encoding='utf-8'))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'DeclareLaunchArgument':
            if not isinstance(node.args[0], ast.Constant):  # those that are made of the settings
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            assert 'description' in given, node.args[0].value
            found[node.args[0].value] = getattr(given['default_value'], 'value', None)
    return found


def test_launch_arguments_are_those_of_the_readme():
    table = rows(section(README, 'Launch arguments'))
    named = [name for row in table for name in re.findall(r'`(\w+)`', row[0])]
    assert named == list(launch_arguments('depth.launch.py'))


@pytest.mark.parametrize('name', ['depth.launch.py', 'demo.launch.py'])
def test_launch_repeats_no_default_of_the_settings(name):
    settings = {*SETTINGS, *(SimConfig.names() if name.startswith('demo') else ())}
    for argument, default in launch_arguments(name).items():
        if argument in settings:
            assert default == '', f'{argument}: empty means: as the node has it'


# Topics and services ---------------------------------------------------------------------------


def topic_table():
    """'in' or 'out' to a dictionary of topics and their types, from the README."""
    found = {'in': {}, 'out': {}}
    for direction, topic, kind, _ in rows(section(README, 'Topics')):
        found[direction][topic.strip('`')] = kind
    return found


def node_docstring():
    source = (ROOT / 'depthclip_ros/node/depth_node.py').read_text(encoding='utf-8')
    return ast.get_docstring(ast.parse(source))


def test_docstring_of_the_node_names_the_topics_of_the_readme():
    subscribers, _, rest = node_docstring().partition('\nPublishers ')
    publishers = rest.partition('\nParameters:')[0]
    table = topic_table()
    for text, topics in ((subscribers, table['in']), (publishers, table['out'])):
        named = dict(re.findall(r'^    ([\w/]+) \(\w+/(\w+)\):', text, re.MULTILINE))
        assert named == topics


def policy(enclave, ns='/'):
    """What an enclave of the shipped policy allows: (verb, resolved name); see `permissions`."""
    folder = ROOT / 'config/sros2'
    tree = ET.parse(folder / 'depthclip.policy.xml').getroot()
    profiles = tree.findall(f'enclaves/enclave[@path="{enclave}"]/profiles/profile')
    assert profiles, enclave
    return {permission for profile in profiles for permission in permissions(
        profile, profile.get('node'), ns, folder)}


def permissions(profile, node, ns, folder):
    """(verb, resolved name) of everything that a profile and what it includes allows."""
    prefix = ns.rstrip('/')
    for part in profile:
        if part.tag == '{http://www.w3.org/2001/XInclude}include':
            assert part.get('xpointer') == 'xpointer(/profile/*)'
            included = ET.parse(folder / part.get('href')).getroot()
            yield from permissions(included, node, ns, folder)
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
    files = {file.name for file in (ROOT / 'config/sros2').iterdir()}
    texts = [file.read_text(encoding='utf-8') for file in (ROOT / 'config/sros2').iterdir()]
    included = {name for text in texts for name in re.findall(r'href="([^"]+)"', text)}
    assert files == {'depthclip.policy.xml', *included}
    for enclave in re.findall(r'/depthclip/\w+',
                              (ROOT / 'docs/security.md').read_text(encoding='utf-8')):
        assert policy(enclave)


# Diagnostics -----------------------------------------------------------------------------------


def keys_in(path, function):
    """Keys of all dictionaries in a function, with … for what is filled in."""
    source = ast.parse((ROOT / 'depthclip_ros/node' / path).read_text(encoding='utf-8'))
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            for part in ast.walk(node):
                for key in part.keys if isinstance(part, ast.Dict) else \
                        [part.key] if isinstance(part, ast.DictComp) else []:
                    if isinstance(key, ast.Constant):
                        yield key.value
                    elif isinstance(key, ast.JoinedStr):
                        yield ''.join(piece.value if isinstance(piece, ast.Constant) else '…'
                                      for piece in key.values)


@pytest.mark.parametrize(('keys', 'places'), [
    (diagnostic_keys.FRAMES, [('diagnostics.py', 'status')]),
    (diagnostic_keys.ANCHOR, [('anchors.py', 'values')]),
    (diagnostic_keys.SCENE, [('diagnostics.py', '_scene')]),
    (diagnostic_keys.CLICKS, [('clicks.py', 'values')]),
    (diagnostic_keys.MODEL, [('diagnostics.py', 'model_status'), ('model.py', 'look_at_memory')]),
])
def test_every_key_of_diagnostics_has_a_meaning_and_no_other(keys, places):
    assert {key for place in places for key in keys_in(*place)} == {*keys}
    for key, (unit, meaning) in keys.items():
        assert meaning
        assert unit == (re.findall(r'\[(.*)\]', key) or [unit])[0]


def test_every_stage_that_is_timed_has_a_meaning():
    text = (ROOT / 'depthclip_ros/node/pipeline.py').read_text(encoding='utf-8')
    assert re.findall(r"times\.measure\('(.+)'\)", text) == list(diagnostic_keys.STAGES)


# The running node ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def node(domain, cache, tiny_weights):
    """A node that nobody has configured yet, as others see it on the graph."""
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


class Graph:
    """What the node is seen to have."""

    def __init__(self, peer):
        self.peer = peer

    def transition(self, *numbers):
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState
        for number in numbers:
            request = ChangeState.Request(transition=Transition(id=number))
            assert self.peer.call(ChangeState, 'depth_node/change_state', request).success

    def put(self, **values):
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter
        request = SetParameters.Request(parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        answer = self.peer.call(SetParameters, 'depth_node/set_parameters', request)
        assert all(result.successful for result in answer.results), answer

    def types(self, verb):
        """Resolved names of the node's topics or services, with their types."""
        look = {'publish': 'publisher', 'subscribe': 'subscriber', 'reply': 'service',
                'request': 'client'}[verb]
        by_node = getattr(self.peer.node, f'get_{look}_names_and_types_by_node')
        return {name: kind.rpartition('/')[2] for name, (kind, *_) in by_node('depth_node', '/')}

    def permissions(self):
        """(verb, resolved name) of all that the node does."""
        return {(verb, name) for verb in ('publish', 'subscribe', 'reply', 'request')
                for name in self.types(verb)}

    def permissions_soon(self, expected, others=frozenset()):
        """The same, with others, once it is what is expected; else what it is after a while."""
        end = time.monotonic() + 30.0
        while (found := self.permissions() | others) != expected and time.monotonic() < end:
            time.sleep(0.05)
        return found


ANCHORS = {'scan': '/scan', 'points': '/anchor/points', 'range': '/range',
           'depth': '/anchor/depth'}
# Nobody can listen to them without tf2_msgs, as on a machine without ROS.
TF_TOPICS = {'/tf': 'TFMessage', '/tf_static': 'TFMessage'}
CLICKED = '/clicked_point'  # while somebody looks at depth/words
CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4


def test_declared_parameters_are_the_settings(node):
    from rcl_interfaces.srv import DescribeParameters, ListParameters
    listed = node.peer.call(
        ListParameters, 'depth_node/list_parameters', ListParameters.Request()).result.names
    assert {*listed} - ROS_PARAMETERS == {*SETTINGS}
    answer = node.peer.call(DescribeParameters, 'depth_node/describe_parameters',
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


def test_running_node_has_the_topics_of_the_readme_and_of_the_policy(node):
    """Exactly what the policy allows: nothing more, and nothing in it that no setting needs."""
    table = topic_table()
    own = {'/parameter_events', '/rosout', '/depth_node/transition_event'}
    node.transition(CONFIGURE, ACTIVATE)
    seen = {}

    def complete():
        seen.update({verb: node.types(verb) for verb in ('publish', 'subscribe')})
        return len(seen['publish']) >= len(table['out']) + len(own) \
            and len(seen['subscribe']) >= 2
    node.peer.wait(complete, 'all topics')
    assert {name: kind for name, kind in seen['publish'].items() if name not in own} == \
        {f'/{name.lstrip("/")}': kind for name, kind in table['out'].items()}
    listened, found = dict(seen['subscribe']), node.permissions()
    assert {*listened} == {'/image', '/camera_info'}
    node.peer.listen('depth/words')
    node.peer.wait(lambda: CLICKED in node.types('subscribe'), 'a listener to clicks')
    listened |= node.types('subscribe')
    found |= node.permissions()
    node.peer.forget('depth/words')
    for name, topic in ANCHORS.items():
        node.transition(DEACTIVATE, CLEANUP)
        node.put(anchor=name)
        node.transition(CONFIGURE, ACTIVATE)
        node.peer.wait(lambda topic=topic: topic in node.types('subscribe'), name)
        listened |= node.types('subscribe')
        found |= node.permissions()
    expected = {f'/{name.lstrip("/")}': kind for name, kind in table['in'].items()}
    assert listened | TF_TOPICS == expected | TF_TOPICS
    node.transition(DEACTIVATE, CLEANUP)
    node.put(anchor='')
    node.put(image_transport='compressed', use_sim_time=True)
    node.transition(CONFIGURE, ACTIVATE)
    allowed = policy('/depthclip/depth_node')
    found |= {('subscribe', topic) for topic in TF_TOPICS}
    assert node.permissions_soon(allowed, found) == allowed
    assert allowed < policy('/depthclip/demo')
    node.transition(DEACTIVATE, CLEANUP)
    node.put(image_transport='raw', use_sim_time=False)


def test_policy_of_named_cameras_is_that_of_one_in_each_namespace(node):
    """As docs/security.md says to write it: camera.xml in a profile of each name."""
    node.put(cameras=['front', 'left/rear'])
    node.transition(CONFIGURE, ACTIVATE)
    folder = ROOT / 'config/sros2'
    without = {*permissions(ET.parse(folder / 'depth_node.xml').getroot(), 'depth_node', '/',
                            folder)}
    without -= {('subscribe', topic)
                for topic in ('/clock', *ANCHORS.values(), *TF_TOPICS, CLICKED)}
    camera = ET.parse(folder / 'camera.xml').getroot()
    each = {permission for name in ('/front', '/left/rear')
            for permission in permissions(camera, 'depth_node', name, folder)
            if not permission[1].endswith('/compressed')}
    found = node.permissions_soon(without | each)
    node.transition(DEACTIVATE, CLEANUP)
    node.put(cameras=[''])
    assert found == without | each
