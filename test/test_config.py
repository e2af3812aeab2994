# SPDX-License-Identifier: Apache-2.0
"""Settings: one source of defaults, one file for everything, errors that help."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from depthclip_ros.core import ConfigError, DepthConfig, describe
from depthclip_ros.node.config import NodeConfig, read_config, with_demo_settings

CONFIG = Path(__file__).resolve().parents[1] / 'config'


def write(path, text):
    path.write_text(text, encoding='utf-8')
    return path


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
    assert config.out_of_range == 'clamp'
    assert config.range_min == config.range_max == 0


@pytest.mark.parametrize(('values', 'words'), [
    ({'tokens': ['near', 'far']}, ['tokens and bins', '2 tokens', '7 bins']),
    ({'tokens': ['near', 'far'], 'bins': [2.0, 1.0]}, ['bins', '[2.0, 1.0]', 'ascend']),
    ({'tokens': ['near', 'far'], 'bins': [1.0, 1.0]}, ['bins', 'ascend']),
    ({'tokens': ['near', 'far'], 'bins': [0.0, 1.0]}, ['bins', '[0.0, 1.0] m', '0.001 to 10000']),
    ({'tokens': ['near', 'far'], 'bins': [1.0, float('nan')]}, ['bins', 'nan', '10000.0 m']),
    ({'tokens': ['far', 'far'], 'bins': [1.0, 2.0]}, ['tokens', "['far']", 'twice']),
    ({'tokens': [], 'bins': []}, ['tokens', 'no word']),
    ({'tokens': ['near', ' '], 'bins': [1.0, 2.0]}, ['tokens', 'empty']),
    ({'tokens': 'near'}, ['tokens', "'near'", 'list of texts']),
    ({'tokens': ['near', 3]}, ['tokens', 'list of texts']),
    ({'bins': ['1', '2']}, ['bins', 'list of numbers']),
    ({'temperature': 0}, ['temperature', '0.0', '0.001 to 1000.0']),
    ({'temperature': float('nan')}, ['temperature', 'nan']),
    ({'temperature': float('inf')}, ['temperature', 'inf']),
    ({'temperature': True}, ['temperature', 'True', 'a number']),
    ({'templates': []}, ['templates', 'empty']),
    ({'templates': ['This object']}, ['templates', "'This object'", '{}']),
    ({'templates': ['{} is {}']}, ['templates', 'exactly once']),
    ({'templates': ['a {} }']}, ['templates', "'a {} }'", 'no other brace']),
    ({'templates': ['{{}}']}, ['templates', 'exactly once']),
    ({'features': 'dense'}, ['features', "'dense'", 'reference, maskclip, attnpool']),
    ({'range_min': -0.5}, ['range_min', '-0.5 m', '0.0 to 1000.0 m']),
    ({'range_min': 2.0, 'range_max': 2.0}, ['range_min: 2.0 m', 'below range_max: 2.0 m']),
    ({'range_min': 3.5, 'reference_focal': 0.0}, ['range_min', '3.5', 'no depth', '1.0 to 3.0 m']),
    ({'range_max': 0.9, 'reference_focal': 0.0}, ['range_max', '0.9', 'no depth', '1.0 to 3.0 m']),
    ({'max_stddev': 1.0}, ['max_stddev: 1.0 m', 'calibration']),
    ({'input_height': 16}, ['input_height', '16 px', '32 to 4096']),
    ({'input_height': 480.0}, ['input_height', '480.0', 'a whole number']),
    ({'flip_average': 'yes'}, ['flip_average', "'yes'", 'true or false']),
    ({'temprature': 0.1}, ["unknown setting 'temprature'", 'did you mean temperature?']),
    ({'x' * 100_000: 1, 7: 2}, ['unknown settings', '… (100003 characters)']),
])
def test_wrong_setting_is_named(values, words):
    with pytest.raises(ConfigError) as error:
        DepthConfig.from_dict(values)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value)) < 1000


def test_wrong_device_and_cache_are_named():
    with pytest.raises(ConfigError, match="device: 'gpu'"):
        NodeConfig(device='gpu')
    with pytest.raises(ConfigError, match=r"cache_dir: 'my/cache' is relative"):
        NodeConfig(cache_dir='my/cache')
    assert NodeConfig(cache_dir='~/cache').cache_dir == '~/cache'


@pytest.mark.parametrize(('names', 'words'), [
    ([], ['[]', 'holds no name', "''"]),
    (['front', 'rear', 'front'], ["['front', 'rear', 'front']", 'one twice', 'name of its own']),
    (['/front'], ["'/front'", 'slashes only in between']),
    (['front/'], ["'front/'", 'ROS namespace']),
    (['left//front'], ["'left//front'", 'ROS namespace']),
    (['1st'], ["'1st'", 'letters, digits']),
    (['left-front'], ["'left-front'", 'letters, digits']),
    (['ok', ' '], ["' '", 'ROS namespace']),
    (['x' * 1000], ['at most 100', '1000 characters']),
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


@pytest.mark.parametrize('choice', ['nan', 'inf'])
def test_a_choice_that_ros_takes_for_a_number_is_the_choice(choice):
    assert DepthConfig.from_dict({'out_of_range': float(choice)}).out_of_range == choice
    with pytest.raises(ConfigError, match='a text'):
        DepthConfig(upsampling=float(choice))


def test_replace_validates_and_keeps_the_rest():
    config = DepthConfig().replace(temperature=1, flip_average=True)
    assert config.temperature == 1.0
    assert config.tokens == DepthConfig().tokens
    assert DepthConfig.from_dict(config.to_dict()) == config
    assert isinstance(config.to_dict()['tokens'], list)
    with pytest.raises(ConfigError):
        config.replace(bins=[1.0])


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
    ('- 1', ["'/**:'", '[1]']),
    ('', ["'/**:'", 'None']),
    ('/**: 3', ['/**', '3', 'ros__parameters']),
    ('/**: {ros__parameters: 3}', ['ros__parameters', '3']),
    ('/**: {ros__parameters: {colour: red}}', ["unknown setting 'colour'"]),
    ('/**: {ros__parameters: {temperature: 2001-13-99}}', ['not valid YAML', 'month']),
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
    with pytest.raises(ConfigError, match=r'not valid YAML.*utf-8'):
        read_config(tmp_path / 'binary.yaml')


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.dates() | st.sampled_from(['{}', 'cpu', 'RN50', 'clip', '']),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=9)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([(cls, name) for cls in (DepthConfig, NodeConfig) for name in cls.names()]),
       ANYTHING)
def test_any_value_is_valid_or_a_reason(setting, value):
    """What is accepted survives dictionary and file; what is not is refused in a short line."""
    cls, name = setting
    try:
        config = cls.from_dict({name: value})
    except ConfigError as error:
        refused = str(error)
    else:
        refused = ''
    if refused:
        assert name in refused
        assert len(refused) < 1000
        return
    text = yaml.safe_dump({'/**': {'ros__parameters': config.to_dict()}})
    with tempfile.TemporaryDirectory() as folder:
        assert config in read_config(write(Path(folder) / 'again.yaml', text))


def test_the_demo_model_brings_its_own_settings():
    own = DepthConfig.from_yaml(CONFIG / 'demo.yaml')
    assert with_demo_settings(DepthConfig(), '') == (DepthConfig(), '')
    result, said = with_demo_settings(DepthConfig(), 'demo')
    assert result == own
    for name in ('tokens', 'bins', 'temperature', 'backbone', 'features', 'input_height',
                 'input_width', 'normalization'):
        assert name in said
    assert 'kept' not in said
    assert with_demo_settings(own, 'demo') == (own, '')


def test_what_the_user_set_stays():
    given = DepthConfig(input_width=320, flip_average=True, upsampling='bilinear')
    result, said = with_demo_settings(
        given, 'demo', ['input_width', 'flip_average', 'upsampling', 'weights'])
    assert (result.input_width, result.flip_average, result.input_height) == (320, True, 192)
    assert 'kept as given: input_width, flip_average' in said
    # Also where it is the default.
    default = DepthConfig()
    assert default.upsampling != DepthConfig.from_yaml(CONFIG / 'demo.yaml').upsampling
    result, said = with_demo_settings(default, 'demo', ['upsampling'])
    assert result.upsampling == default.upsampling
    assert 'kept as given: upsampling.' in said
    words = DepthConfig(tokens=['near', 'far'], bins=[1.0, 9.0])
    result, said = with_demo_settings(words, 'demo', ['tokens'])
    assert (result.tokens, result.bins, result.temperature) == (('near', 'far'), (1.0, 9.0), 6.0)
    assert 'kept as given: tokens, bins.' in said


@pytest.mark.parametrize('cls', [DepthConfig, NodeConfig])
def test_every_setting_describes_itself(cls):
    for setting in dataclasses.fields(cls):
        text = describe(setting)
        assert len(text) > 10
        for choice in setting.metadata['choices'] or ():
            assert choice in text
