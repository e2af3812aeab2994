# SPDX-License-Identifier: Apache-2.0
"""Settings: one source of defaults, one file for everything, errors that help."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from depthclip_ros.core import ConfigError, DepthConfig, describe
from depthclip_ros.node.config import NodeConfig, read_config

CONFIG = Path(__file__).resolve().parents[1] / 'config'


def write(path, text):
    path.write_text(text, encoding='utf-8')
    return path


def test_default_file_holds_exactly_the_defaults():
    assert read_config(CONFIG / 'depth.yaml') == (DepthConfig(), NodeConfig())
    section = yaml.safe_load((CONFIG / 'depth.yaml').read_text())['/**']['ros__parameters']
    assert set(section) == {*DepthConfig.names(), *NodeConfig.names()}


def test_paper_file_is_the_paper():
    config = DepthConfig.from_yaml(CONFIG / 'nyu_paper.yaml')
    assert config.tokens == ('giant', 'extremely close', 'close', 'not in distance',
                             'a little remote', 'far', 'unseen')
    assert config.bins == (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)
    assert config.templates[0].format('close') == 'This object is close'
    assert (config.temperature, config.backbone, config.features) == (0.1, 'RN50', 'reference')
    assert (config.input_height, config.input_width) == (416, 544)
    assert config.flip_average
    assert config.normalization == 'imagenet'
    assert config.upsampling == 'bilinear'


@pytest.mark.parametrize(('values', 'words'), [
    ({'tokens': ['near', 'far']}, ['tokens and bins', '2 tokens', '7 bins']),
    ({'tokens': ['near', 'far'], 'bins': [2.0, 1.0]}, ['bins', '[2.0, 1.0]', 'ascend']),
    ({'tokens': ['near', 'far'], 'bins': [1.0, 1.0]}, ['bins', 'ascend']),
    ({'tokens': ['near', 'far'], 'bins': [0.0, 1.0]}, ['bins', '[0.0, 1.0]', 'positive']),
    ({'tokens': ['near', 'far'], 'bins': [1.0, float('nan')]}, ['bins', 'nan', 'positive']),
    ({'tokens': ['far', 'far'], 'bins': [1.0, 2.0]}, ['tokens', "['far']", 'twice']),
    ({'tokens': [], 'bins': []}, ['tokens', 'no token']),
    ({'tokens': ['near', ' '], 'bins': [1.0, 2.0]}, ['tokens', 'empty']),
    ({'tokens': 'near'}, ['tokens', "'near'", 'list of texts']),
    ({'tokens': ['near', 3]}, ['tokens', 'list of texts']),
    ({'bins': ['1', '2']}, ['bins', 'list of numbers']),
    ({'temperature': 0}, ['temperature', '0.0', 'greater than 0']),
    ({'temperature': -1.5}, ['temperature', '-1.5']),
    ({'temperature': float('inf')}, ['temperature', 'inf']),
    ({'temperature': True}, ['temperature', 'True', 'a number']),
    ({'templates': []}, ['templates', 'empty']),
    ({'templates': ['This object']}, ['templates', "'This object'", '{}']),
    ({'templates': ['{} is {}']}, ['templates', 'exactly once']),
    ({'templates': ['{} {x}']}, ['templates', 'exactly once']),
    ({'features': 'dense'}, ['features', "'dense'", 'reference, maskclip']),
    ({'upsampling': 'bicubic'}, ['upsampling', 'bilinear, patch']),
    ({'input_height': 16}, ['input_height', '16 px', '32 to 4096']),
    ({'input_height': 480.0}, ['input_height', '480.0', 'a whole number']),
    ({'flip_average': 'yes'}, ['flip_average', "'yes'", 'true or false']),
    ({'temprature': 0.1}, ['unknown setting temprature', 'temperature']),
])
def test_wrong_setting_is_named(values, words):
    with pytest.raises(ConfigError) as error:
        DepthConfig.from_dict(values)
    for word in words:
        assert word in str(error.value)


def test_wrong_device_is_named():
    with pytest.raises(ConfigError, match="device: 'gpu'"):
        NodeConfig(device='gpu')


@pytest.mark.parametrize(('names', 'words'), [
    ([], ['[]', 'holds no name', "''"]),
    (['front', 'rear', 'front'], ["['front', 'rear', 'front']", 'one twice', 'name of its own']),
    (['/front'], ["'/front'", 'slashes only in between']),
    (['front/'], ["'front/'", 'ROS namespace']),
    (['left//front'], ["'left//front'", 'ROS namespace']),
    (['1st'], ["'1st'", 'letters, digits']),
    (['left-front'], ["'left-front'", 'letters, digits']),
    (['ok', ' '], ["' '", 'ROS namespace']),
    ('front', ["'front'", 'list of texts']),
])
def test_wrong_camera_names_are_named(names, words):
    with pytest.raises(ConfigError) as error:
        NodeConfig(cameras=names)
    for word in ['cameras', *words]:
        assert word in str(error.value)


def test_camera_names():
    assert NodeConfig().cameras == ('',)
    names = ['', 'front', 'left/front_2', 'Rear']
    assert NodeConfig(cameras=names).cameras == tuple(names)


def test_replace_validates_and_keeps_the_rest():
    config = DepthConfig().replace(temperature=1)
    assert config.temperature == 1.0
    assert config.tokens == DepthConfig().tokens
    with pytest.raises(ConfigError):
        config.replace(bins=[1.0])


def test_dictionary_round_trip():
    config = DepthConfig(flip_average=True)
    assert DepthConfig.from_dict(config.to_dict()) == config
    assert isinstance(config.to_dict()['tokens'], list)


@pytest.mark.parametrize(('section', 'applies'), [
    ('/**', True), ('/*', True), ('depth_node', True), ('/depth_node', True),
    ('/**/depth_node', True), ('/*/depth_node', False), ('/front/depth_node', False),
    ('sim_camera', False),
])
def test_sections_match_as_in_ros(tmp_path, section, applies):
    path = write(tmp_path / 'p.yaml', f"""
'{section}':
  ros__parameters:
    temperature: 0.5
""")
    if applies:
        assert DepthConfig.from_yaml(path).temperature == 0.5
    else:
        with pytest.raises(ConfigError, match='no section for /depth_node'):
            DepthConfig.from_yaml(path)


def test_namespace_in_file_matches_the_full_name(tmp_path):
    path = write(tmp_path / 'p.yaml', """
front:
  depth_node:
    ros__parameters: {temperature: 0.5}
/**:
  ros__parameters: {device: cpu, qos_overrides: {/image: {subscription: {depth: 2}}}}
""")
    assert DepthConfig.from_yaml(path, '/front/depth_node').temperature == 0.5
    core, node = read_config(path)
    assert core.temperature == 0.1
    assert node.device == 'cpu'


@pytest.mark.parametrize(('text', 'words'), [
    ('a: [1', ['not valid YAML']),
    ('- 1', ["'/**:'", 'list']),
    ('', ["'/**:'", 'NoneType']),
    ('/**: 3', ['/**', '3', 'ros__parameters']),
    ('/**: {ros__parameters: 3}', ['ros__parameters', '3']),
    ('/**: {ros__parameters: {colour: red}}', ['unknown setting colour']),
    ('/**: {ros__parameters: {bins: [3.0, 2.0, 1.0]}}', ['7 tokens', '3 bins']),
])
def test_wrong_file_is_explained(tmp_path, text, words):
    path = write(tmp_path / 'p.yaml', text)
    with pytest.raises(ConfigError) as error:
        read_config(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_missing_and_binary_file(tmp_path):
    with pytest.raises(ConfigError, match='No such file'):
        read_config(tmp_path / 'missing.yaml')
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ConfigError, match='UTF-8'):
        read_config(tmp_path / 'binary.yaml')


@pytest.mark.parametrize('settings', [DepthConfig, NodeConfig])
def test_every_setting_describes_itself(settings):
    for setting in dataclasses.fields(settings):
        text = describe(setting)
        assert len(text) > 10
        for choice in setting.metadata['choices'] or ():
            assert choice in text
