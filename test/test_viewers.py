# SPDX-License-Identifier: Apache-2.0
"""What is shipped for RViz and Foxglove shows what the node has, by name and type.

Neither program is here to open the files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from test_agreement import rows, section, topic_table
from test_launching import make_plan

from depthclip_ros.launching import rviz_file, rviz_of
from depthclip_ros.node import diagnostic_keys

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = {'depth': [''], 'cameras': ['front/', 'rear/']}
SHOWN = {'image', 'depth/image_color', 'depth/words', 'points'}
KINDS = {'rviz_default_plugins/Image': 'Image', 'rviz_default_plugins/PointCloud2': 'PointCloud2',
         'rviz_default_plugins/PublishPoint': 'PointStamped'}


def topics(prefixes):
    """Every topic of cameras of these names, absolute, with its type."""
    found = {}
    for table in topic_table().values():
        for name, kind in table.items():
            found.update({name: kind} if name.startswith('/') else
                         {f'/{prefix}{name}': kind for prefix in prefixes})
    return found


# RViz ------------------------------------------------------------------------------------------


def manager(path):
    return yaml.safe_load(Path(path).read_text(encoding='utf-8'))['Visualization Manager']


def displays(tree):
    """Everything with a topic, in groups or not, and the tools."""
    for part in [*tree.get('Displays', ()), *tree.get('Tools', ())]:
        if 'Topic' in part:
            yield part
        yield from displays(part)


@pytest.mark.parametrize('name', LAYOUTS)
def test_rviz_shows_what_the_node_has(name):
    known, shown = topics(LAYOUTS[name]), set()
    for part in displays(manager(ROOT / f'rviz/{name}.rviz')):
        topic = part['Topic']['Value']
        shown.add(topic)
        assert known['/' + topic.lstrip('/')] == KINDS[part['Class']]
        # A camera may be best effort; a reliable reader would get nothing from it.
        camera = topic.rpartition('/')[2] == 'image'
        assert part['Topic']['Reliability Policy'] == ('Best Effort' if camera else 'Reliable')
    assert shown == {'/clicked_point', *(prefix + topic for prefix in LAYOUTS[name]
                                         for topic in (*SHOWN, 'depth/stddev'))}


def test_rviz_fixes_a_frame_of_all_cameras():
    assert manager(ROOT / 'rviz/depth.rviz')['Global Options']['Fixed Frame'].endswith(
        'optical_frame')
    assert manager(ROOT / 'rviz/cameras.rviz')['Global Options']['Fixed Frame'] == 'base_link'


def test_launch_chooses_the_configuration_of_the_cameras(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    one = ROOT / 'rviz/depth.rviz'
    assert rviz_file(['']) == rviz_file(['front']) == one
    shipped = yaml.safe_load((ROOT / 'rviz/cameras.rviz').read_text(encoding='utf-8'))
    assert rviz_of(yaml.safe_load(one.read_text(encoding='utf-8')), ['front', 'rear']) == shipped
    written = rviz_file(['left/front', 'side', 'back'])
    assert written.parent == tmp_path
    groups = [part for part in manager(written)['Displays'] if 'Displays' in part]
    assert [(group['Name'], group['Enabled']) for group in groups] == [
        ('left/front', True), ('side', False), ('back', False)]
    assert {part['Topic']['Value'].partition('/')[0] for part in displays(groups[0])} == {'left'}
    assert {part['Topic']['Value'].partition('/')[0] for part in displays(groups[2])} == {'back'}


def test_cameras_of_the_files_count_too(tmp_path):
    file = tmp_path / 'my.yaml'
    file.write_text('/**:\n  ros__parameters:\n    cameras: [left, right]\n')
    assert make_plan().names == ['']
    assert make_plan(params_file=str(file)).names == ['left', 'right']
    assert make_plan(overlay=str(file)).names == ['left', 'right']
    assert make_plan(overlay=str(file), cameras='front').names == ['front']


# Foxglove --------------------------------------------------------------------------------------


def panels(layout):
    """Names of the panels in a layout's tree."""
    if isinstance(layout, str):
        return [layout]
    assert layout['direction'] in ('row', 'column')
    assert 0 < layout['splitPercentage'] < 100
    return panels(layout['first']) + panels(layout['second'])


@pytest.mark.parametrize('name', LAYOUTS)
def test_foxglove_shows_what_the_node_has(name):
    content = json.loads((ROOT / f'foxglove/{name}.json').read_text(encoding='utf-8'))
    assert sorted(panels(content['layout'])) == sorted(content['configById'])
    known, shown, plotted = topics(LAYOUTS[name]), set(), set()
    for panel, config in content['configById'].items():
        kind = panel.partition('!')[0]
        if kind == 'Image':
            mode = config['imageMode']
            assert known[mode['imageTopic']] == 'Image'
            shown.add(mode['imageTopic'])
            if 'calibrationTopic' in mode:
                assert known[mode['calibrationTopic']] == 'CameraInfo'
        elif kind == '3D':
            assert {known[topic] for topic in config['topics']} == {'PointCloud2'}
            shown |= {*config['topics']}
            assert config['publish']['type'] == 'point'
            assert known[config['publish']['pointTopic']] == 'PointStamped'
        elif kind == 'DiagnosticSummary':
            assert known[config['topicToRender']] == 'DiagnosticArray'
        elif kind == 'Plot':
            for path in config['paths']:
                status, key = re.fullmatch(
                    r'/diagnostics\.status\[:\]\{name=="(.+)"\}'
                    r'\.values\[:\]\{key=="(.+)"\}\.value', path['value']).groups()
                plotted.add(status)
                assert key in diagnostic_keys.FRAMES
        else:
            assert kind == 'Parameters'
    assert shown == {f'/{prefix}{topic}' for prefix in LAYOUTS[name] for topic in SHOWN}
    assert plotted == {f'depth_node: frames of {prefix[:-1]}'.removesuffix(' of ')
                       for prefix in LAYOUTS[name]}


def test_the_page_names_every_file():
    page = (ROOT / 'docs/live.md').read_text(encoding='utf-8')
    files = {f'rviz/{name}.rviz' for name in LAYOUTS} | {f'foxglove/{n}.json' for n in LAYOUTS}
    assert {re.search(r'`([^`]+)`', row[0])[1] for row in rows(
        section(page, 'RViz and Foxglove'))} == files
