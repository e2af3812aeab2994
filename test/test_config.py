# SPDX-License-Identifier: Apache-2.0
"""Settings: one source of defaults, one file for everything, errors that help."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthclip_ros.core import ConfigError, DepthConfig
from depthclip_ros.core.parameter_file import read_parameters, to_yaml
from depthclip_ros.messages.node_config import (
    NodeConfig,
    read_config,
    read_values,
    with_demo_settings,
)

CONFIG = Path(__file__).resolve().parents[1] / 'config'
SCENES = {'scenes': ['hall', 'closet'], 'tokens': ['near', 'far'], 'bins': [1.0, 2.0]}


def write(path, text):
    path.write_text(text, encoding='utf-8')
    return path


def test_paper_file_is_the_paper():
    config = DepthConfig.from_yaml(CONFIG / 'nyu_paper.yaml')
    assert config.tokens == ('giant', 'extremely close', 'close', 'not in distance',
                             'a little remote', 'far', 'unseen')
    assert config.bins == (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)
    assert config.templates == ('This object is {}',)
    assert (config.temperature, config.backbone, config.features) == (0.1, 'RN50', 'reference')
    assert config.input_size == (416, 544)
    assert config.flip_average
    assert (config.normalization, config.upsampling, config.out_of_range) == (
        'imagenet', 'bilinear', 'clamp')
    assert config.range_min == config.range_max == config.reference_focal == 0


def test_scenes_file_is_table_2():
    from offline_eval.published import BIN_PARTITIONS, ORIGINAL_BINS
    config = read_config(CONFIG / 'scenes.yaml')[0]
    of_scenes = dict(zip(config.scenes, config.bins_of_scenes(), strict=True))
    assert of_scenes.pop('bathroom') == BIN_PARTITIONS['Class-dependent 3']
    assert of_scenes.pop('classroom') == BIN_PARTITIONS['Class-dependent 4']
    assert set(of_scenes.values()) == {BIN_PARTITIONS[ORIGINAL_BINS]} == {config.bins}
    assert config == DepthConfig(scenes=config.scenes, scene_bins=config.scene_bins)


@pytest.mark.parametrize(('values', 'words'), [
    ({'tokens': ['near', 'far']}, ['tokens and bins', '2 tokens', '7 bins']),
    ({'tokens': ['near', 'far'], 'bins': [1.0, 1.0]}, ['bins', '[1.0, 1.0]', 'ascend']),
    ({'tokens': ['near', 'far'], 'bins': [0.0, 1.0]}, ['bins', '[0.0, 1.0] m', '0.001 to 10000']),
    ({'tokens': ['near', 'far'], 'bins': [1.0, float('nan')]}, ['bins', 'nan', '10000.0 m']),
    ({'tokens': ['far', 'far'], 'bins': [1.0, 2.0]}, ['tokens', "'far'", 'twice']),
    ({'tokens': [], 'bins': []}, ['tokens', '[]', 'one at least']),
    ({'tokens': ['near', ' '], 'bins': [1.0, 2.0]}, ['tokens', 'empty']),
    ({'tokens': 'near'}, ['tokens', "'near'", 'list of texts']),
    ({'bins': ['1', '2']}, ['bins', 'list of numbers']),
    ({'temperature': 0}, ['temperature', '0.0', '0.001 to 1000.0']),
    ({'temperature': float('nan')}, ['temperature', 'nan']),
    ({'temperature': True}, ['temperature', 'True', 'a number']),
    ({'templates': []}, ['templates', 'one at least']),
    ({'scene_templates': ['a photo']}, ['scene_templates', "'a photo'", '{}']),
    ({'templates': ['{} is {}']}, ['templates', 'exactly once']),
    ({'templates': ['{{}}']}, ['templates', 'no other brace']),
    ({'features': 'dense'}, ['features', "'dense'", 'reference, maskclip, attnpool']),
    ({'range_min': -0.5}, ['range_min', '-0.5 m', '0.0 to 1000.0 m']),
    ({'range_min': 2.0, 'range_max': 2.0}, ['range_min: 2.0 m', 'below range_max: 2.0 m']),
    ({'max_stddev': 1.0}, ['max_stddev: 1.0 m', 'calibration']),
    ({'input_height': 16}, ['input_height', '16 px', '32 to 4096']),
    ({'input_height': 480.0}, ['input_height', '480.0', 'a whole number']),
    ({'flip_average': 'yes'}, ['flip_average', "'yes'", 'true or false']),
    ({'upsampling': float('nan')}, ['upsampling', 'a text']),
    ({'temprature': 0.1}, ["unknown setting 'temprature'", 'did you mean temperature?']),
    ({'x' * 100_000: 1, 7: 2}, ['unknown settings', '… (100003 characters)']),
    ({'scenes': []}, ['scenes', 'one at least']), ({'scene_bins': []}, ['one at least']),
    ({**SCENES, 'scenes': ['hall', 'hall']}, ['scenes', "'hall'", 'twice']),
    ({**SCENES, 'scene_bins': [1.0, 2.0, 3.0]}, ['scene_bins: 3 numbers', '2 scenes of 2 tokens']),
    ({**SCENES, 'scene_bins': [1.0, 2.0, 4.0, 3.0]}, ['scene_bins', "'closet'", 'ascend']),
    ({**SCENES, 'scene_bins': [0.0, 2.0, 3.0, 4.0]}, ['scene_bins', "'hall'", '0.001 m']),
])
def test_wrong_setting_is_named(values, words):
    with pytest.raises(ConfigError) as error:
        DepthConfig.from_dict(values)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(('values', 'words'), [
    ({'device': 'gpu'}, ["device: 'gpu'"]),
    ({'cache_dir': 'my/cache'}, ["cache_dir: 'my/cache' is relative"]),
    *(({'cameras': names}, ['cameras', *words]) for names, words in (
        ([], ['[]', 'one at least']), (['front', 'rear', 'front'], ['one name twice', "''"]),
        (['/front'], ["'/front'", 'slashes only in between']),
        (['left//front'], ["'left//front'", 'ROS namespace']),
        (['left-front'], ["'left-front'", 'letters, digits']),
        (['x' * 1000], ['at most 100', '1000 characters']),
        ('front', ["'front'", 'list of texts'])))])
def test_wrong_settings_of_the_node_are_named(values, words):
    with pytest.raises(ConfigError) as error:
        NodeConfig(**values)
    for word in words:
        assert word in str(error.value)


def test_what_may_be():
    names = ['', 'front', 'left/front_2', 'Rear']
    assert NodeConfig(cameras=names, cache_dir='~/cache').cameras == tuple(names)
    for choice in ('nan', 'inf'):  # ROS takes them for numbers
        assert DepthConfig.from_dict({'out_of_range': float(choice)}).out_of_range == choice
    scenic = DepthConfig(**SCENES, scene_bins=[0.5, 2.0, 3.0, 4.0])
    assert scenic.depth_span == (0.5, 4.0)
    off = scenic.replace(scenes=[''], tokens=['a', 'b', 'c'], bins=[1, 2, 3])  # the rest may stay
    assert (off.has_scenes, off.depth_span) == (False, (1.0, 3.0))


@pytest.mark.parametrize('take', [np.array, np.float32, torch.tensor, list, lambda values: [
    np.float64(value) for value in values]])
def test_numbers_and_paths_of_other_libraries_become_pythons(take):
    config = DepthConfig(tokens=['a', 'b'], bins=take([1.5, 2.0]), temperature=np.float32(0.5),
                         input_height=np.int64(64), flip_average=np.bool_(1),
                         calibration=Path('/a/b'), upsampling=np.str_('patch'))
    plain = DepthConfig(tokens=['a', 'b'], bins=[1.5, 2.0], temperature=0.5, input_height=64,
                        flip_average=True, calibration='/a/b', upsampling='patch')
    assert repr(config) == repr(plain)
    assert NodeConfig(num_threads=torch.tensor(2)) == NodeConfig(num_threads=2)
    for wrong in (np.ones((2, 2)), np.array(['1.5', '2.0']), np.float64(1.5), [np.ones(2)] * 2):
        with pytest.raises(ConfigError, match='list of numbers'):
            config.replace(bins=wrong)


def test_replace_validates_and_keeps_the_rest():
    config = DepthConfig().replace(temperature=1, flip_average=True)
    assert (config.temperature, config.tokens) == (1.0, DepthConfig().tokens)
    assert DepthConfig.from_dict(config.to_dict()) == config
    assert isinstance(config.to_dict()['tokens'], list)
    with pytest.raises(ConfigError):
        config.replace(bins=[1.0])


# Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('section', 'applies'), [
    ('/**', True), ('/*', True), ('depth_node', True), ('/depth_node', True),
    ('/**/depth_node', True), ('/*/depth_node', False), ('/front/depth_node', False),
    ('sim_camera', False)])
def test_sections_match_as_in_ros(tmp_path, section, applies):
    path = write(tmp_path / 'p.yaml', f"'{section}': {{ros__parameters: {{temperature: 0.5}}}}")
    if applies:
        assert DepthConfig.from_yaml(path).temperature == 0.5
    else:
        with pytest.raises(ConfigError, match='no section for /depth_node'):
            DepthConfig.from_yaml(path)


def test_namespaces_may_be_nested_and_what_is_rclpys_own_is_left_alone(tmp_path):
    path = write(tmp_path / 'p.yaml', """
front:
  depth_node:
    ros__parameters: {temperature: 0.5}
/**:
  ros__parameters:
    device: cpu
    qos_overrides: {/image: {subscription: {depth: 2}}}
    qos_overrides./x.publisher.depth: 3
""")
    assert DepthConfig.from_yaml(path, '/front/depth_node').temperature == 0.5
    core, node = read_config(path)
    assert (core.temperature, node.device) == (0.1, 'cpu')


@pytest.mark.parametrize(('text', 'words'), [
    (b'a: [1', ['not valid YAML']), (b'\xff\xfe\x00', ['not valid YAML']),
    (b'\xe9: 1', ['not valid YAML']), (b'[' * 3000, ['not valid YAML', 'nest']),
    (b'{a: ' * 3000, ['not valid YAML']), (b'"\\UFFFFFFFF": 1', ['not valid YAML']),
    (b'- 1', ["'/**:'", 'line 1']), (b'', ["'/**:'", 'none']), (b'# nothing', ["'/**:'"]),
    (b'tokens: [a]', ["'tokens'", "['a']", "'/**:'"]),
    (b'/**: {ros_parameters: {bins: [1.0]}}', ["'ros_parameters'", "write 'ros__parameters'"]),
    (b'ros__parameters: {bins: [1.0]}', ["'/**'", "''"]),
    (b'a b: {ros__parameters: {bins: [1.0]}}', ["'a b'", 'name of a node']),
    (b'/**:\n  ros__parameters:\n  bins: [1.0]', ['line 2', 'missing']),
    (b'/**: {ros__parameters: {bins: [1.0]}, bins: [1.0]}', ["'/**'", 'nothing beside']),
    (b'/**:\n  ros__parameters: {bins: [1.0]}\n/**:\n  ros__parameters: {bins: [2.0]}',
     ["'/**'", 'line 3', 'line 1']),
    (b'/**:\n  ros__parameters:\n    bins: [1.0]\n    bins: [2.0]',
     ["'bins'", 'line 4', 'line 3']),
    (b'/**: {ros__parameters: {bins: [1.0]}}\n---\n/**: {}', ['line 2', 'second document']),
    (b'/**: {ros__parameters: {bins: &b [1.0], scene_bins: *b}}', ['line 1', '& * <<']),
    (b'a: &a {ros__parameters: {}}\n/**:\n  <<: *a', ['line 3', '& * <<']),
    (b'/**: {ros__parameters: {weights: !ENV x}}', ['!ENV']),
    (b'/**: {ros__parameters: {bins: [1, 2.5]}}', ['[1, 2.5]', 'same type']),
    (b'/**: {ros__parameters: {bins: [[1.0], [2.0]]}}', ['a list in a list']),
    (b'/**: {ros__parameters: {weights: }}', ["''"]),
    (b'/**: {ros__parameters: {weights: "a\\0b"}}', ['NUL']),
    (b'/**: {ros__parameters: {weights: $(find x)/w.pt}}', ['$(find x)/w.pt', 'not replaced']),
    (b'/**: {ros__parameters: {weights: https://a.b/c.pt}}', ['https://a.b/c.pt', 'download']),
    (b'/**: {ros__parameters: {calibration: package://a/b}}', ['package://a/b', 'its path']),
    (b'/**: 3', ['/**', '3', 'ros__parameters']),
    (b'/**: {ros__parameters: 3}', ['ros__parameters', '3']),
    (b'/**: {ros__parameters: {token: [a]}}', ["unknown setting 'token'", 'mean tokens?']),
    (b'/**: {ros__parameters: {read_out: argmax, smoothing: 0.0}}',
     ['read_out is no setting any more', "remove it, and depth is as with 'mean'"]),
    (b'/**: {ros__parameters: {temperature: 2001-13-99}}', ["'2001-13-99'", 'a number']),
    (b'/**: {ros__parameters: {bins: [1.0, 2.0, 3.0]}}', ['7 tokens', '3 bins']),
    (b'/**: {ros__parameters: {bins: [3.0, 2.0, 1.0]}}', ['[3.0, 2.0, 1.0]', 'ascend']),
    (None, ['No such file'])])
def test_wrong_file_is_explained(tmp_path, text, words):
    path = tmp_path / 'p.yaml'
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError) as error:
        read_config(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_slip_of_the_core_s_names_is_refused_by_the_core_alone(tmp_path):
    for slip, reason in (('tempature', 'did you mean temperature'), ('smoothing', 'any more')):
        path = write(tmp_path / 'p.yaml', f'/**: {{ros__parameters: {{{slip}: 1, device: cpu}}}}')
        with pytest.raises(ConfigError, match=reason):
            DepthConfig.from_yaml(path)


def test_parameters_of_a_whole_robot_are_said_and_left_out(tmp_path):
    path = write(tmp_path / 'p.yaml', '/**: {ros__parameters: {use_sim_time: true, temperature: '
                 '2.0, robot_name: marvin, smoothing: 0.0, a: {b: [1]}}}')
    said = []
    assert read_values(path, log=said.append) == {'temperature': 2.0}
    assert read_config(path)[0].temperature == 2.0
    line, = said
    assert all(name in line for name in ('WARNING', str(path), 'a, robot_name, smoothing'))


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
    text = to_yaml(config.to_dict())
    with tempfile.TemporaryDirectory() as folder:
        assert config in read_config(write(Path(folder) / 'again.yaml', text))


def test_texts_that_ros_takes_for_numbers_are_texts_in_a_written_file(tmp_path):
    texts = ['1e5', '08', 'y', 'inf', '.5', '1_0', '2024-01-01', '~', 'null', "it's", '\u8fdc']
    values = {'x': texts, 'y': 1e-5, 'z': [1e22, -0.0], 'n': '1'}
    path = write(tmp_path / 'p.yaml', to_yaml(values))
    assert repr(read_parameters(path, 'depth_node')) == repr(values)
    assert 'ros__parameters:\n    x:' in path.read_text()  # keys without quotes


# The demo model's settings -----------------------------------------------------------------------


@pytest.mark.parametrize('given', [
    {}, {'input_width': 320, 'flip_average': True},
    {'features': DepthConfig().features},  # also where it is the default
    {'tokens': ('near', 'far'), 'bins': (1.0, 9.0)}])
def test_the_demo_model_brings_its_own_settings_and_what_the_user_set_stays(given):
    own, before = DepthConfig.from_yaml(CONFIG / 'demo.yaml'), DepthConfig(**given)
    assert with_demo_settings(before, '') == (before, '')
    result, said = with_demo_settings(before, 'demo', [*given, 'weights'])
    assert result == own.replace(**given) != before
    assert 'temperature' in said
    assert not any(name in said for name in given)
    assert with_demo_settings(own, 'demo') == (own, '')
