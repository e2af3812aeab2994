# SPDX-License-Identifier: Apache-2.0
"""Text features and their cache; scenes: the classification, the mixture, and memory."""

from __future__ import annotations

import gc
import importlib
import math
import os
import sys
import types

import clip_standin
import numpy as np
import packaging.version
import pytest
import torch
from clip_standin import synthetic_rgb

from depthclip_ros.core import CameraImage, ConfigError, DepthConfig, DepthEstimator, WeightsError
from depthclip_ros.core import estimator as estimator_module
from depthclip_ros.core import text_features as words_module
from depthclip_ros.core.backbone import AttentionPool
from depthclip_ros.core.config import PAPER_BINS
from depthclip_ros.core.openai_clip import import_clip
from depthclip_ros.core.preprocess import NORMALIZATIONS
from depthclip_ros.core.scenes import Scene, classify_scenes, scene_probabilities
from depthclip_ros.core.text_features import cached_features, encode, phrases_of
from depthclip_ros.resources import config_path

WORDS = DepthConfig(
    tokens=('near', 'far'), bins=(1.0, 3.0), templates=('This object is {}', 'a {} thing'),
    backbone='auto', input_height=64, input_width=64)
RGB = [synthetic_rgb(seed, 64, 64) for seed in range(3)]
NAMES = ('bathroom', 'classroom', 'corridor')
NEAR, MIDDLE, FAR = (tuple(factor * bins for bins in PAPER_BINS) for factor in (0.5, 1.5, 4.0))
PLAIN = DepthConfig(backbone='auto', input_height=64, input_width=64, temperature=3.0)
# As cold as makes the images of an untrained network differ.
SCENIC = PLAIN.replace(scenes=NAMES, scene_bins=[*NEAR, *MIDDLE, *FAR], scene_temperature=2.0)


def clips_words(state_dict, sentences):
    """(N, C) unit vectors, by OpenAI's own code."""
    clip = import_clip()
    with torch.no_grad():
        each = clip.model.build_model(dict(state_dict)).float().encode_text(
            clip.tokenize(sentences))
    return (each / each.norm(dim=1, keepdim=True)).numpy()


def test_average_over_templates_by_hand(state_dict):
    for token, row in zip(WORDS.tokens, encode(phrases_of(WORDS)[0], state_dict), strict=True):
        mean = clips_words(state_dict, [f'This object is {token}', f'a {token} thing']).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_tokens_are_those_of_the_whole_package(monkeypatch):
    # What its release on PyPI imports, and current setuptools has no longer.
    monkeypatch.setitem(sys.modules, 'pkg_resources', types.SimpleNamespace(packaging=packaging))
    whole = importlib.import_module('clip.clip')
    texts = ['', "Caf\N{LATIN SMALL LETTER E WITH ACUTE} isn't  &amp;\n17!", 'far ' * 75]
    assert torch.equal(import_clip().tokenize(texts), whole.tokenize(texts))


def test_too_long_a_sentence(state_dict):
    tokens, scenes = phrases_of(WORDS.replace(
        tokens=['near', 'far ' * 80], scenes=['far ' * 90]))
    for words, name in ((tokens, 'tokens'), (scenes, 'scenes')):
        with pytest.raises(ConfigError, match=rf"{name}: 'far far.*77 text tokens"):
            encode(words, state_dict)


@pytest.mark.parametrize(('one', 'other'), [
    ('close', 'Close'), ('close', ' close '), ('very close', 'very  close'),
    ('very close', 'very\N{NO-BREAK SPACE}close'),
    ('pr\N{LATIN SMALL LETTER E WITH GRAVE}s', 'pre\N{COMBINING GRAVE ACCENT}s'),
    ('a&b', 'a&amp;b')])
def test_words_that_the_tokenizer_takes_for_one_stand_twice(one, other, state_dict, tmp_path):
    """Also where their features are in the cache already."""
    config = WORDS.replace(tokens=[one, 'far', other], bins=[1.0, 2.0, 3.0])
    for _ in range(2):
        with pytest.raises(ConfigError, match=r'tokens: .* stand twice'):
            build(state_dict, tmp_path, config)
    assert list((tmp_path / 'text').iterdir())
    scenic = SCENIC.replace(scenes=[one, 'hall', other], scene_temperature=1.0)
    with pytest.raises(ConfigError, match=r'scenes: .* stand twice'):
        build(state_dict, tmp_path, scenic)


@pytest.mark.parametrize(('tokens', 'said'), [
    (['close', 'far'], []),
    (['\u8fd1', '\u8fdc'], ["never learnt '\u8fd1', '\u8fdc'", 'all these words for the same']),
    (['close', 'large', 'small'], ["'large', 'small'", "cannot tell 'large' from 'small'"]),
    ([f'word {i}' for i in range(100)], ["never learnt 'word'", ' more (cosine above'])])
def test_what_is_to_be_doubted_of_words_is_said_once_wherever_they_are_used(
        tokens, said, tmp_path):
    own = DepthConfig.from_yaml(config_path('demo'))
    config = own.replace(tokens=tokens, bins=[float(i + 1) for i in range(len(tokens))])

    def warnings(lines):
        found = [line for line in lines if line.startswith('WARNING: tokens: ')]
        assert len(found) == len(said)
        assert all(part in line for part, line in zip(said, found, strict=True))
        lines.clear()
    for _ in range(2):  # with features that are encoded, and with those of the cache
        lines = []
        estimator = DepthEstimator(
            config, 'demo', 'cpu', cache_dir=tmp_path, num_threads=1, log=lines.append)
        warnings(lines)
        estimator.reconfigure(own)
        estimator.reconfigure(config)
        assert not lines
    estimator = DepthEstimator(own, 'demo', 'cpu', cache_dir=tmp_path, num_threads=1,
                               log=lines.append)
    lines.clear()
    estimator.prepare(config)  # as for a row of a table, which is no answer's
    assert not lines
    estimator.reconfigure(config)
    warnings(lines)


def test_words_that_are_not_alike_load_no_tokenizer(state_dict, tmp_path, monkeypatch):
    build(state_dict, tmp_path)
    monkeypatch.setattr(words_module, 'words_out_of_vocabulary', None)
    monkeypatch.setattr(words_module, 'text_encoder', None)
    assert build(state_dict, tmp_path).text_cache_hit


# The cache ---------------------------------------------------------------------------------------


def build(state_dict, folder, config=WORDS, log=lambda _: None):
    return DepthEstimator(config, state_dict, 'cpu', cache_dir=folder, log=log)


def test_a_hit_runs_no_text_encoder_and_equals_the_miss(state_dict, tmp_path, monkeypatch):
    first = build(state_dict, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(words_module, 'encode', None)
        second = build(state_dict, tmp_path)
    assert (first.text_cache_hit, second.text_cache_hit) == (False, True)
    np.testing.assert_array_equal(first.text_features, second.text_features)
    for change, hit in (  # only what changes the words is another entry
            ({'bins': [2.0, 4.0], 'temperature': 0.5, 'input_width': 96}, True),
            ({'tokens': ['near', 'remote']}, False), ({'tokens': ['far', 'near']}, False),
            ({'templates': ['a {} thing']}, False)):
        assert build(state_dict, tmp_path, WORDS.replace(**change)).text_cache_hit == hit, change
    assert not build(clip_standin.tiny_state_dict(1), tmp_path).text_cache_hit


@pytest.mark.parametrize('damage', [
    lambda content: content[:-100], lambda _: b'', lambda _: b'hello',
    lambda content: content[:-4] + np.float32(np.nan).tobytes(), 'archive', 'pipe'])
def test_a_damaged_file_is_rebuilt_with_a_warning(state_dict, tmp_path, damage):
    right = build(state_dict, tmp_path).text_features
    path, = (tmp_path / 'text').iterdir()
    content = path.read_bytes()
    path.unlink()
    if damage == 'pipe':
        os.mkfifo(path)
    elif damage == 'archive':
        with path.open('wb') as file:
            np.savez(file, right)
    else:
        path.write_bytes(damage(content))
    lines = []
    again = build(state_dict, tmp_path, log=lines.append)
    assert not again.text_cache_hit
    assert any(line.startswith('WARNING') and str(path) in line for line in lines)
    np.testing.assert_array_equal(again.text_features, right)
    assert build(state_dict, tmp_path).text_cache_hit


def test_features_that_are_not_finite_are_refused(state_dict, tmp_path):
    damaged = {**state_dict, 'text_projection': torch.full((64, 64), math.nan)}
    with pytest.raises(WeightsError, match='not finite'):
        cached_features(phrases_of(WORDS)[0], tmp_path / 'text', 'RN50', 'digest',
                        lambda: damaged, print)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_only_warns(state_dict, tmp_path):
    (tmp_path / 'text').write_text('a file where the folder should be')
    lines = []
    assert build(state_dict, tmp_path, log=lines.append).text_features.shape == (2, 64)
    assert any('text features cannot be kept' in line for line in lines)


# Scenes ------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def scenic(state_dict, tmp_path_factory):
    return build(state_dict, tmp_path_factory.mktemp('cache'), SCENIC)


@pytest.fixture
def estimator(scenic):
    """The loaded model, with the settings of the beginning."""
    scenic.reconfigure(SCENIC)
    return scenic


def test_probabilities_are_clips_own_at_its_own_size(estimator, state_dict):
    """Zero-shot classification as OpenAI shows it, on these very pixels."""
    mean, deviation = map(np.array, NORMALIZATIONS['imagenet'])
    batch = torch.from_numpy(np.stack([(i / 255 - mean) / deviation for i in RGB])).float()
    with torch.no_grad():
        image = import_clip().model.build_model(dict(state_dict)).float().encode_image(
            batch.permute(0, 3, 1, 2))
    text = torch.from_numpy(clips_words(state_dict, [f'a photo of a {n}' for n in NAMES]))
    image = image / image.norm(dim=1, keepdim=True)
    expected = (100 / SCENIC.scene_temperature * image @ text.T).softmax(dim=1)
    found = [prediction.scene.probabilities for prediction in estimator.predict(RGB)]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert abs(found[0] - found[1]).max() > 1e-3


def test_bins_of_an_image_are_the_mean_of_the_scenes(estimator):
    """Each of a batch has its own, and the same as alone."""
    estimator.reconfigure(SCENIC.replace(scene_entropy=1.0))
    for image, prediction in zip(RGB, estimator.predict(RGB), strict=True):
        bins = prediction.scene.probabilities @ np.array([NEAR, MIDDLE, FAR], np.float32)
        np.testing.assert_allclose(
            prediction.patch_depth, np.tensordot(bins, prediction.weights, 1), rtol=1e-5)
        np.testing.assert_allclose(
            estimator.predict(image).patch_depth, prediction.patch_depth, rtol=1e-5)
        np.testing.assert_allclose(prediction.word_depths(estimator.config), bins, rtol=1e-6)


def test_both_passes_count(estimator):
    """With the mirrored pass, an image and its mirror image are the same scene."""
    estimator.reconfigure(SCENIC.replace(flip_average=True))
    plain, mirrored = estimator.predict([RGB[0], np.ascontiguousarray(RGB[0][:, ::-1])])
    np.testing.assert_allclose(
        plain.scene.probabilities, mirrored.scene.probabilities, atol=1e-5)
    np.testing.assert_allclose(plain.patch_depth, mirrored.patch_depth[:, ::-1], rtol=1e-4)


def test_an_uncertain_scene_or_one_without_bins_leaves_the_plain_bins(estimator):
    estimator.reconfigure(PLAIN)
    expected = estimator.predict(RGB[0])
    assert expected.scene is None
    estimator.reconfigure(SCENIC.replace(scene_temperature=1000.0))  # all are as probable
    found = estimator.predict(RGB[0])
    assert found.scene.bins_weight == pytest.approx(1, abs=2e-2)
    assert found.scene.name == ''
    np.testing.assert_allclose(found.patch_depth, expected.patch_depth, rtol=2e-2)
    estimator.reconfigure(SCENIC.replace(scene_bins=[0.0]))
    found = estimator.predict(RGB[0])
    np.testing.assert_allclose(found.patch_depth, expected.patch_depth, rtol=1e-5)
    assert found.scene.probabilities.sum() == pytest.approx(1, abs=1e-5)


def sorted_one(probabilities, **changes):
    """The scene of one image, by its own probabilities."""
    config = DepthConfig(scenes=NAMES[:len(probabilities)], scene_memory=0.0).replace(**changes)
    (scene,), _, _ = classify_scenes(config, torch.tensor([probabilities]), [None])
    return scene


@pytest.mark.parametrize(('probabilities', 'limit', 'share'), [
    ([1.0, 0.0, 0.0], 0.9, 0.0),
    ([0.5, 0.5, 0.0], 0.9, 0.0),  # 0.63 of the largest entropy
    ([0.5, 0.5, 0.0], 0.5, (math.log(2) / math.log(3) - 0.5) / 0.5),
    ([1 / 3, 1 / 3, 1 / 3], 0.9, 1.0), ([1 / 3, 1 / 3, 1 / 3], 1.0, 0.0), ([1.0], 0.0, 0.0)])
def test_share_of_the_plain_bins(probabilities, limit, share):
    scene = sorted_one(probabilities, scene_entropy=limit)
    assert scene.bins_weight == pytest.approx(share, abs=1e-5)
    assert scene.name == ('' if share > 0.5 else 'bathroom')


def test_features_that_are_no_numbers_say_nothing():
    image = torch.tensor([[[1.0, 0.0], [math.nan, 1.0], [0.0, 0.0]]])
    found = scene_probabilities(image, torch.eye(2), torch.tensor(1.0))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]))


def test_what_the_image_before_showed_counts(estimator):
    """Only of the same camera: of each image its own, and only of the same scenes."""
    alone = [prediction.scene.probabilities for prediction in estimator.predict(RGB)]
    sure = Scene(NAMES, np.array([0, 0, 1], np.float32), 0.0, 'corridor')
    other = Scene(('near', 'far', 'else'), sure.probabilities, 0.0, 'else')
    found = estimator.predict([RGB[0], CameraImage(RGB[1], scene=sure),
                               CameraImage(RGB[2], scene=other)])
    memory = SCENIC.scene_memory
    for prediction, expected in zip(found, [
            alone[0], memory * sure.probabilities + (1 - memory) * alone[1], alone[2]],
            strict=True):
        np.testing.assert_allclose(prediction.scene.probabilities, expected, atol=1e-6)
    assert found[1].scene.name == 'corridor'


def pools():
    """Number of attention pools in memory; that of RN50 has 59 MB, and only scenes need it."""
    gc.collect()
    return sum(type(one) is AttentionPool for one in gc.get_objects())


def test_on_and_off_and_other_scenes_on_a_loaded_model(state_dict, tmp_path, monkeypatch):
    fresh = build(state_dict, tmp_path, SCENIC).predict(RGB[0])
    before = pools()
    estimator = build(state_dict, tmp_path, PLAIN)
    assert pools() == before
    plain = estimator.predict(RGB[0])
    estimator.prepare(SCENIC)
    with monkeypatch.context() as patch:  # all is at hand
        patch.setattr(estimator_module, 'cached_features', None)
        patch.setattr(estimator_module, 'build_attention_pool', None)
        estimator.reconfigure(SCENIC)
    found = estimator.predict(RGB[0])
    np.testing.assert_array_equal(found.depth, fresh.depth)
    estimator.reconfigure(
        SCENIC.replace(scenes=['kitchen', 'hall'], scene_bins=[*NEAR, *FAR]))
    seen = CameraImage(RGB[0], scene=found.scene)
    assert estimator.predict(seen).scene.names == ('kitchen', 'hall')
    estimator.reconfigure(PLAIN)
    assert pools() == before + 1  # another thread may just have been about to use it
    again = estimator.predict(RGB[0])
    np.testing.assert_array_equal(again.depth, plain.depth)
    assert again.scene is None


def test_a_vision_transformer_has_no_pool(tmp_path):
    numbers = clip_standin.state_dict(0, **clip_standin.TINY_VIT)
    estimator = build(numbers, tmp_path, PLAIN.replace(features='maskclip'))
    with pytest.raises(ConfigError, match='scenes: need a ResNet'):
        estimator.reconfigure(SCENIC.replace(features='maskclip'))
    assert not estimator.config.has_scenes
