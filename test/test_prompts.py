# SPDX-License-Identifier: Apache-2.0
"""Text features, and the cache that makes the text encoder unnecessary."""

from __future__ import annotations

import os
import stat
import time

import clip_standin
import numpy as np
import pytest
import torch

from depthclip_ros.core import ConfigError, DepthConfig, DepthEstimator
from depthclip_ros.core import estimator as estimator_module
from depthclip_ros.core.clip_package import import_clip
from depthclip_ros.core.prompts import TextFeatureCache, encode_tokens

WORDS = DepthConfig(
    tokens=('near', 'far'), bins=(1.0, 3.0), templates=('This object is {}', 'a {} thing'),
    backbone='auto', input_height=64, input_width=64)


@pytest.fixture(scope='module')
def state_dict():
    return clip_standin.tiny_state_dict()


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


def test_too_long_a_sentence(state_dict):
    with pytest.raises(ConfigError, match=r"tokens: 'far far.*77 text tokens"):
        encode_tokens(WORDS.replace(tokens=['near', 'far ' * 80]), state_dict)


def build(state_dict, folder, config=WORDS, log=lambda _: None):
    return DepthEstimator(config, state_dict, 'cpu', cache_dir=folder, log=log)


def test_hit_runs_no_text_encoder_and_equals_the_miss(state_dict, tmp_path, monkeypatch):
    first = build(state_dict, tmp_path)

    def forbidden(*_):
        raise AssertionError('the text encoder ran')

    monkeypatch.setattr(estimator_module, 'encode_tokens', forbidden)
    second = build(state_dict, tmp_path)
    assert (first.text_cache_hit, second.text_cache_hit) == (False, True)
    np.testing.assert_array_equal(first.text_features, second.text_features)
    np.testing.assert_allclose(np.linalg.norm(second.text_features, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize('change', [
    {'tokens': ['near', 'remote']}, {'tokens': ['far', 'near']}, {'templates': ['a {} thing']},
])
def test_other_words_are_another_entry(state_dict, tmp_path, change):
    build(state_dict, tmp_path)
    assert not build(state_dict, tmp_path, WORDS.replace(**change)).text_cache_hit


def test_other_weights_are_another_entry(state_dict, tmp_path):
    build(state_dict, tmp_path)
    assert not build(clip_standin.tiny_state_dict(1), tmp_path).text_cache_hit


def test_what_does_not_change_the_words_hits(state_dict, tmp_path):
    build(state_dict, tmp_path)
    same = WORDS.replace(bins=[2.0, 4.0], temperature=0.5, input_width=96, flip_average=True)
    assert build(state_dict, tmp_path, same).text_cache_hit


@pytest.mark.parametrize('damage', ['truncate', 'flip', 'empty', 'text', 'pickle'])
def test_corrupt_file_is_rebuilt_with_a_warning(state_dict, tmp_path, damage):
    right = build(state_dict, tmp_path).text_features
    path, = (tmp_path / 'text').iterdir()
    data = bytearray(path.read_bytes())
    if damage == 'flip':
        data[len(data) // 2] ^= 0xFF
    if damage == 'pickle':
        np.savez(path.with_suffix(''), features=np.array([{}], dtype=object), sha256='')
    else:
        path.write_bytes({'truncate': bytes(data[:-100]), 'flip': bytes(data), 'empty': b'',
                          'text': b'hello'}[damage])
    lines = []
    again = build(state_dict, tmp_path, log=lines.append)
    assert not again.text_cache_hit
    assert any(line.startswith('WARNING') and str(path) in line for line in lines)
    np.testing.assert_array_equal(again.text_features, right)
    assert build(state_dict, tmp_path).text_cache_hit


def test_consistent_file_with_other_numbers_is_noticed(state_dict, tmp_path):
    """The checksum is over the numbers, not only over the container."""
    build(state_dict, tmp_path)
    path, = (tmp_path / 'text').iterdir()
    with np.load(path) as stored:
        content = dict(stored)
    content['features'] = content['features'] + 1
    np.savez(path, **content)
    assert not build(state_dict, tmp_path).text_cache_hit


@pytest.mark.skipif(os.geteuid() == 0, reason='root writes everywhere')
def test_read_only_folder_only_warns(state_dict, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    lines = []
    assert build(state_dict, tmp_path, log=lines.append).text_features.shape == (2, 64)
    assert any('cannot keep the text features' in line for line in lines)


def test_folder_in_the_way_only_warns(state_dict, tmp_path):
    (tmp_path / 'text').write_text('a file where the folder should be')
    lines = []
    assert build(state_dict, tmp_path, log=lines.append).text_features.shape == (2, 64)
    assert any('cannot keep the text features' in line for line in lines)


def test_nothing_half_written_stays(state_dict, tmp_path, monkeypatch):
    monkeypatch.setattr(np, 'savez', lambda *_, **__: (_ for _ in ()).throw(
        OSError(28, 'No space left on device')))
    lines = []
    build(state_dict, tmp_path, log=lines.append)
    assert list((tmp_path / 'text').iterdir()) == []
    assert any('No space left' in line for line in lines)


@pytest.mark.alone
def test_hit_within_20_ms(state_dict, tmp_path):
    digest = build(state_dict, tmp_path).weights.digest
    times = []
    for _ in range(20):
        start = time.perf_counter()
        _, hit = TextFeatureCache(tmp_path / 'text', print).get(WORDS, digest, lambda: None)
        times.append(time.perf_counter() - start)
        assert hit
    assert sorted(times)[10] < 0.020
