# SPDX-License-Identifier: Apache-2.0
"""Text features, and the cache that makes the text encoder unnecessary."""

from __future__ import annotations

import importlib
import sys
import types

import clip_standin
import numpy as np
import packaging.version
import pytest
import torch

from depthclip_ros.core import ConfigError, DepthConfig, DepthEstimator, WeightsError
from depthclip_ros.core import words as words_module
from depthclip_ros.core.clip_package import import_clip
from depthclip_ros.core.words import cached_features, encode_tokens, scene_words

WORDS = DepthConfig(
    tokens=('near', 'far'), bins=(1.0, 3.0), templates=('This object is {}', 'a {} thing'),
    backbone='auto', input_height=64, input_width=64)


def test_average_over_templates_by_hand(state_dict):
    features = encode_tokens(WORDS, state_dict)
    clip = import_clip()
    model = clip.model.build_model(dict(state_dict)).float()
    for token, row in zip(WORDS.tokens, features, strict=True):
        with torch.no_grad():
            each = model.encode_text(
                clip.tokenize([f'This object is {token}', f'a {token} thing']))
        each = each / each.norm(dim=1, keepdim=True)
        mean = (each[0] + each[1]) / 2
        np.testing.assert_allclose(row, (mean / mean.norm()).numpy(), atol=1e-6)


def test_tokens_are_those_of_the_whole_package(monkeypatch):
    # What its release on PyPI imports, and current setuptools has no longer.
    monkeypatch.setitem(sys.modules, 'pkg_resources', types.SimpleNamespace(packaging=packaging))
    whole = importlib.import_module('clip.clip')
    texts = ['', "Caf\N{LATIN SMALL LETTER E WITH ACUTE} isn't  &amp;\n17!", 'far ' * 75]
    assert torch.equal(import_clip().tokenize(texts), whole.tokenize(texts))


def test_too_long_a_sentence(state_dict):
    for words, name in ((WORDS.replace(tokens=['near', 'far ' * 80]), 'tokens'),
                        (scene_words(WORDS.replace(scenes=['far ' * 90])), 'scenes')):
        with pytest.raises(ConfigError, match=rf"{name}: 'far far.*77 text tokens"):
            encode_tokens(words, state_dict)


def build(state_dict, folder, config=WORDS, log=lambda _: None):
    return DepthEstimator(config, state_dict, 'cpu', cache_dir=folder, log=log)


def test_hit_runs_no_text_encoder_and_equals_the_miss(state_dict, tmp_path, monkeypatch):
    first = build(state_dict, tmp_path)

    def forbidden(*_):
        raise AssertionError('the text encoder ran')

    monkeypatch.setattr(words_module, 'encode_tokens', forbidden)
    second = build(state_dict, tmp_path)
    assert (first.text_cache_hit, second.text_cache_hit) == (False, True)
    np.testing.assert_array_equal(first.text_features, second.text_features)
    np.testing.assert_allclose(np.linalg.norm(second.text_features, axis=1), 1, atol=1e-6)


def test_only_what_changes_the_words_is_another_entry(state_dict, tmp_path):
    build(state_dict, tmp_path)
    for change, hit in (
            ({'bins': [2.0, 4.0], 'temperature': 0.5, 'input_width': 96}, True),
            ({'tokens': ['near', 'remote']}, False), ({'tokens': ['far', 'near']}, False),
            ({'templates': ['a {} thing']}, False)):
        assert build(state_dict, tmp_path, WORDS.replace(**change)).text_cache_hit == hit, change
    assert not build(clip_standin.tiny_state_dict(1), tmp_path).text_cache_hit


def cache_warnings(lines):
    """Those that are about the cache; a processor or torch can have its own."""
    return [line for line in lines if line.startswith('WARNING') and 'the text features' in line]


@pytest.mark.parametrize('damage', ['cut off', 'empty', 'something else'])
def test_corrupt_file_is_rebuilt_with_a_warning(state_dict, tmp_path, damage):
    right = build(state_dict, tmp_path).text_features
    path, = (tmp_path / 'text').iterdir()
    path.write_bytes({'cut off': path.read_bytes()[:-100], 'empty': b'',
                      'something else': b'hello'}[damage])
    lines = []
    again = build(state_dict, tmp_path, log=lines.append)
    assert not again.text_cache_hit
    assert any(str(path) in line for line in cache_warnings(lines))
    np.testing.assert_array_equal(again.text_features, right)
    assert build(state_dict, tmp_path).text_cache_hit


@pytest.mark.parametrize('change', [lambda f: f * np.nan, lambda f: f[:1]])
def test_a_file_with_other_numbers_is_noticed(state_dict, tmp_path, change):
    right = build(state_dict, tmp_path).text_features
    path, = (tmp_path / 'text').iterdir()
    np.save(path, change(right).astype(np.float32))
    lines = []
    again = build(state_dict, tmp_path, log=lines.append)
    assert not again.text_cache_hit
    assert cache_warnings(lines)
    np.testing.assert_array_equal(again.text_features, right)


def test_features_that_are_not_finite_are_refused(state_dict, tmp_path):
    large = {**state_dict, 'text_projection': torch.full((64, 64), 60000.0)}
    large['ln_final.weight'] = torch.full((64,), 60000.0)
    large['ln_final.bias'] = torch.zeros(64)
    large['token_embedding.weight'] = torch.zeros_like(state_dict['token_embedding.weight'])
    large['positional_embedding'] = torch.zeros(77, 64)
    for name in state_dict:
        if name.startswith('transformer'):
            large[name] = torch.zeros_like(state_dict[name])
    with pytest.raises(WeightsError, match='not finite'):
        cached_features(WORDS, tmp_path / 'text', 'RN50', 'digest', lambda: large, print)
    assert list(tmp_path.iterdir()) == []


def test_folder_in_the_way_only_warns(state_dict, tmp_path):
    (tmp_path / 'text').write_text('a file where the folder should be')
    lines = []
    assert build(state_dict, tmp_path, log=lines.append).text_features.shape == (2, 64)
    assert any('text features cannot be kept' in line for line in lines)
