# SPDX-License-Identifier: Apache-2.0
"""What is shipped for RViz and Foxglove shows what the node has, by name and type."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from test_launching import make_plan

from depthclip_ros.launch_support.rviz import rviz_file
from depthclip_ros.messages.outputs import OUTPUTS

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = {'depth': [''], 'cameras': ['front/', 'rear/']}
OF_A_CAMERA = {**{topic: kind for topic, (kind, _) in OUTPUTS.items()},
               'image': 'sensor_msgs/msg/Image', 'camera_info': 'sensor_msgs/msg/CameraInfo'}
KINDS = {'rviz_default_plugins/Image': 'sensor_msgs/msg/Image',
         'rviz_default_plugins/PointCloud2': 'sensor_msgs/msg/PointCloud2'}


def topics(prefixes):
    """Every topic of cameras of these names, absolute, with its type."""
    return {'/diagnostics': 'diagnostic_msgs/msg/DiagnosticArray',
            **{f'/{prefix}{name}': kind
               for prefix in prefixes for name, kind in OF_A_CAMERA.items()}}


def rviz(path):
    return yaml.safe_load(Path(path).read_text(encoding='utf-8'))


def displays(tree):
    """Everything with a topic, in groups or not."""
    for part in tree.get('Displays', ()):
        if 'Topic' in part:
            yield part
        yield from displays(part)


@pytest.mark.parametrize('name', LAYOUTS)
def test_rviz_shows_what_the_node_has(name):
    known, shown = topics(LAYOUTS[name]), list(
        displays(rviz(ROOT / f'rviz/{name}.rviz')['Visualization Manager']))
    assert len(shown) > 4
    for part in shown:
        topic = part['Topic']['Value']
        assert known['/' + topic.lstrip('/')] == KINDS[part['Class']]
        # A camera may be best effort; a reliable reader would get nothing from it.
        camera = topic.rpartition('/')[2] == 'image'
        assert part['Topic']['Reliability Policy'] == ('Best Effort' if camera else 'Reliable')


def test_launch_chooses_the_configuration_of_the_cameras(tmp_path):
    one, file = ROOT / 'rviz/depth.rviz', tmp_path / 'my.yaml'
    file.write_text('/**:\n  ros__parameters:\n    cameras: [left, right]\n')
    assert make_plan().names == ['']
    assert make_plan(params_file=str(file)).names == ['left', 'right']
    assert make_plan(overlay=str(file), cameras='front').names == ['front']
    assert rviz_file([''], tmp_path) == one
    manager = rviz(rviz_file(['front'], tmp_path))['Visualization Manager']
    assert manager['Global Options'] == rviz(one)['Visualization Manager']['Global Options']
    assert all(part['Topic']['Value'].startswith('front/') for part in displays(manager))
    assert rviz(rviz_file(['front', 'rear'], tmp_path)) == rviz(ROOT / 'rviz/cameras.rviz')
    written = rviz_file(['left/front', 'side', 'back'], tmp_path)
    assert written.parent == tmp_path
    groups = [part for part in rviz(written)['Visualization Manager']['Displays']
              if 'Displays' in part]
    assert [(group['Name'], group['Enabled']) for group in groups] == [
        ('left/front', True), ('side', False), ('back', False)]
    for group, start in zip(groups, ('left/front/', 'side/', 'back/'), strict=True):
        assert all(part['Topic']['Value'].startswith(start) for part in displays(group))


@pytest.mark.parametrize('names', [[''], ['front'], ['left/front', 'side', 'back']])
def test_the_window_of_rviz_has_every_dock_once_and_those_of_one_camera_are_shown(names, tmp_path):
    config = rviz(rviz_file(names, tmp_path))
    docks = {text.decode('utf-16-be'): bool(shown[0]) for _, text, shown in dock_entries(
        bytes.fromhex(config['Window Geometry']['QMainWindow State']))}
    images = {part['Name']: part['Enabled'] and part['Topic']['Value'].startswith(names[0])
              for part in displays(config['Visualization Manager'])
              if part['Class'] == 'rviz_default_plugins/Image'}
    assert docks == {'Displays': True, 'Views': False, 'Time': False, **images}
    assert {panel['Name'] for panel in config['Panels']} == {'Displays', 'Views', 'Time'}
    assert {'Hide Left Dock', 'Hide Right Dock'} <= config['Window Geometry'].keys()


def dock_entries(state):
    """Length, name and flag of every dock in what Qt's QMainWindow::saveState has written."""
    start = 0
    while (start := state.find(b'\xfb', start) + 1) > 0:
        length = int.from_bytes(state[start:start + 4], 'big')
        name, flag = state[start + 4:start + 4 + length], state[start + 4 + length:][:1]
        if 0 < length < 200 and flag in (b'\0', b'\1'):
            yield length, name, flag
            start += 4 + length


def topics_of(panel, config):
    """Topics that a panel of Foxglove's shows, each with the type that it takes."""
    kind = panel.partition('!')[0]
    if kind == 'Image':
        mode = config['imageMode']
        yield mode['imageTopic'], 'sensor_msgs/msg/Image'
        if 'calibrationTopic' in mode:
            yield mode['calibrationTopic'], 'sensor_msgs/msg/CameraInfo'
    elif kind == '3D':
        for topic in config['topics']:
            yield topic, 'sensor_msgs/msg/PointCloud2'
    elif kind == 'DiagnosticSummary':
        yield config['topicToRender'], 'diagnostic_msgs/msg/DiagnosticArray'


@pytest.mark.parametrize('name', LAYOUTS)
def test_foxglove_shows_what_the_node_has(name):
    panels = json.loads((ROOT / f'foxglove/{name}.json').read_text(encoding='utf-8'))['configById']
    known = topics(LAYOUTS[name])
    shown = [pair for panel, config in panels.items() for pair in topics_of(panel, config)]
    assert len(shown) > 4
    for topic, kind in shown:
        assert known[topic] == kind
    paths = [path['value'] for config in panels.values() for path in config.get('paths', ())]
    keys = (ROOT / 'docs/reference/diagnostics.md').read_text(encoding='utf-8')
    assert paths
    for path in paths:
        key = re.search(r'key=="(.+)"', path)[1]
        assert f'| `{key}` |' in keys
