# SPDX-License-Identifier: Apache-2.0
"""Bins by scene: the classification, the mixture, and what becomes of them over time."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_standin import TINY_VIT, state_dict, synthetic_rgb, tiny_state_dict

from depthclip_ros.core import ConfigError, DepthConfig, DepthEstimator
from depthclip_ros.core import estimator as estimator_module
from depthclip_ros.core.backbone import AttentionPool
from depthclip_ros.core.clip_package import import_clip
from depthclip_ros.core.config import PAPER_BINS
from depthclip_ros.core.words import (
    LEAD,
    Scene,
    mixed_bins,
    plain_share,
    scene_probabilities,
)
from depthclip_ros.node.config import read_config
from depthclip_ros.resources import config_path

ROOT = Path(__file__).resolve().parents[1]
RGB = [synthetic_rgb(seed, 64, 64) for seed in range(3)]
NAMES = ('bathroom', 'classroom', 'corridor')
NEAR, MIDDLE, FAR = (tuple(factor * bins for bins in PAPER_BINS) for factor in (0.5, 1.5, 4.0))
PLAIN = DepthConfig(backbone='auto', input_height=64, input_width=64, temperature=3.0)
# As cold as makes the images of an untrained network differ.
SCENIC = PLAIN.replace(scenes=NAMES, scene_bins=[*NEAR, *MIDDLE, *FAR], scene_temperature=2.0)


@pytest.fixture(scope='module')
def weights():
    return tiny_state_dict()


@pytest.fixture(scope='module')
def scenic(weights, tmp_path_factory):
    return DepthEstimator(SCENIC, weights, 'cpu', cache_dir=tmp_path_factory.mktemp('cache'))


@pytest.fixture
def estimator(scenic):
    """The loaded model, with the settings of the beginning."""
    scenic.reconfigure(SCENIC)
    return scenic


def clips_own(weights, config, images):
    """Zero-shot classification as OpenAI shows it, on these very pixels."""
    model = import_clip().model.build_model(dict(weights)).float()
    mean, deviation = (np.array(v) for v in estimator_module.NORMALIZATIONS['imagenet'])
    batch = torch.from_numpy(np.stack([(i / 255 - mean) / deviation for i in images])).float()
    clip = import_clip()
    with torch.no_grad():
        image = model.encode_image(batch.permute(0, 3, 1, 2))
        text = model.encode_text(clip.tokenize([f'a photo of a {name}' for name in NAMES]))
        image, text = (x / x.norm(dim=1, keepdim=True) for x in (image, text))
        return (100 / config.scene_temperature * image @ text.T).softmax(dim=1).numpy()


def test_probabilities_are_clips_own_at_its_own_size(estimator, weights):
    found = [prediction.scene for prediction in estimator.predict(RGB)]
    expected = clips_own(weights, SCENIC, RGB)
    for scene, probabilities in zip(found, expected, strict=True):
        np.testing.assert_allclose(scene.probabilities, probabilities, atol=1e-4)
        assert scene.names == NAMES
    assert len({scene.probabilities.tobytes() for scene in found}) == 3


@pytest.mark.parametrize('how', ['mean', 'argmax'])
def test_bins_of_an_image_are_the_mean_of_the_scenes(estimator, how):
    """Each of a batch has its own, and the same as alone."""
    estimator.reconfigure(SCENIC.replace(scene_entropy=1.0, read_out=how))
    for image, prediction in zip(RGB, estimator.predict(RGB), strict=True):
        bins = prediction.scene.probabilities @ np.array([NEAR, MIDDLE, FAR], np.float32)
        expected = np.tensordot(bins, prediction.weights, 1) if how == 'mean' else \
            bins[prediction.logits.argmax(axis=0)]
        np.testing.assert_allclose(prediction.patch_depth, expected, rtol=1e-5)
        alone = estimator.predict(image)
        np.testing.assert_allclose(alone.patch_depth, prediction.patch_depth, rtol=1e-5)
        assert prediction.scene.plain == 0


def test_both_passes_count(estimator):
    """With the mirrored pass, an image and its mirror image are the same scene."""
    estimator.reconfigure(SCENIC.replace(flip_average=True))
    plain, mirrored = estimator.predict([RGB[0], np.ascontiguousarray(RGB[0][:, ::-1])])
    np.testing.assert_allclose(
        plain.scene.probabilities, mirrored.scene.probabilities, atol=1e-5)
    np.testing.assert_allclose(plain.patch_depth, mirrored.patch_depth[:, ::-1], rtol=1e-4)


def test_an_uncertain_scene_leaves_the_plain_bins(estimator):
    """So hot that all scenes are as probable as each other."""
    estimator.reconfigure(PLAIN)
    expected = estimator.predict(RGB[0])
    assert expected.scene is None
    estimator.reconfigure(SCENIC.replace(scene_temperature=1000.0))
    found = estimator.predict(RGB[0])
    assert found.scene.plain == pytest.approx(1, abs=2e-2)
    assert found.scene.name == ''
    np.testing.assert_allclose(found.patch_depth, expected.patch_depth, rtol=2e-2)
    uniform = torch.full((2, 3), 1 / 3)
    share = plain_share(uniform, torch.tensor(0.9))
    torch.testing.assert_close(share, torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        mixed_bins(uniform, share, torch.tensor([NEAR, MIDDLE, FAR]), torch.tensor(PAPER_BINS)),
        torch.tensor([PAPER_BINS] * 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(('probabilities', 'limit', 'share'), [
    ([1.0, 0.0, 0.0], 0.9, 0.0),
    ([0.5, 0.5, 0.0], 0.9, 0.0),  # 0.63 of the largest entropy
    ([0.5, 0.5, 0.0], 0.0, math.log(2) / math.log(3)),
    ([0.5, 0.5, 0.0], 0.5, (math.log(2) / math.log(3) - 0.5) / 0.5),
    ([1 / 3, 1 / 3, 1 / 3], 1.0, 0.0),
    ([1.0], 0.0, 0.0),
])
def test_share_of_the_plain_bins(probabilities, limit, share):
    found = plain_share(torch.tensor([probabilities]), torch.tensor(limit))
    assert found.tolist() == pytest.approx([share], abs=1e-6)


def test_features_that_are_no_numbers_say_nothing():
    image = torch.tensor([[[1.0, 0.0], [math.nan, 1.0], [0.0, 0.0]]])
    found = scene_probabilities(image, torch.eye(2), torch.tensor(1.0))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]))


def test_scenes_without_bins_change_no_depth(estimator):
    estimator.reconfigure(PLAIN)
    expected = estimator.predict(RGB)
    estimator.reconfigure(SCENIC.replace(scene_bins=[0.0]))
    for found, plain in zip(estimator.predict(RGB), expected, strict=True):
        np.testing.assert_allclose(found.patch_depth, plain.patch_depth, rtol=1e-5)
        assert found.scene.probabilities.sum() == pytest.approx(1, abs=1e-5)


# Over time --------------------------------------------------------------------------------------


def test_what_the_image_before_showed_counts(estimator):
    """Only of the same camera: of each image its own, and only of the same scenes."""
    alone = estimator.predict(RGB)
    sure = Scene(NAMES, np.array([0, 0, 1], np.float32), 0.0, 'corridor')
    other = Scene(('near', 'far', 'else'), sure.probabilities, 0.0, 'else')
    found = estimator.predict(RGB, scenes=[None, sure, other])
    memory = SCENIC.scene_memory
    for i, expected in enumerate([
            alone[0].scene.probabilities,
            memory * sure.probabilities + (1 - memory) * alone[1].scene.probabilities,
            alone[2].scene.probabilities]):
        np.testing.assert_allclose(found[i].scene.probabilities, expected, atol=1e-6)
    assert found[1].scene.name == 'corridor'
    # Its depth follows: the far bins are eight times the near ones.
    assert np.nanmean(found[1].depth) > 1.1 * np.nanmean(alone[1].depth)
    estimator.reconfigure(SCENIC.replace(scene_memory=0.0))
    np.testing.assert_allclose(estimator.predict(RGB[1], scenes=sure).scene.probabilities,
                               alone[1].scene.probabilities, atol=1e-6)


def test_the_name_changes_only_with_a_lead():
    """Two scenes in turn, nearly as probable as each other: one name."""
    scene, names = None, []
    for lead in (0.02, -0.04, 0.04, -0.04, -1.1 * LEAD, 0.04, 1.1 * LEAD):
        half = np.array([0.45 + lead / 2, 0.45 - lead / 2, 0.1], np.float32)
        scene = Scene.of(NAMES, half, 0.0, scene)
        names.append(scene.name)
    assert names == ['bathroom'] * 4 + ['classroom'] * 2 + ['bathroom']
    uncertain = Scene.of(NAMES, half, 0.51, scene)
    assert uncertain.name == ''
    assert Scene.of(NAMES, half, 0.0, uncertain).name == 'bathroom'


# On a loaded model ------------------------------------------------------------------------------


def pools():
    """Number of attention pools in memory; that of RN50 has 59 MB, and only scenes need it."""
    gc.collect()
    return sum(type(one) is AttentionPool for one in gc.get_objects())


def test_on_and_off_and_other_scenes_on_a_loaded_model(weights, tmp_path, monkeypatch):
    fresh = DepthEstimator(SCENIC, weights, 'cpu', cache_dir=tmp_path).predict(RGB[0])
    before = pools()
    estimator = DepthEstimator(PLAIN, weights, 'cpu', cache_dir=tmp_path)
    assert pools() == before
    plain = estimator.predict(RGB[0])
    estimator.encode(SCENIC)
    with monkeypatch.context() as patch:  # all is at hand
        patch.setattr(estimator_module, 'cached_features', None)
        patch.setattr(estimator_module, 'build_attention_pool', None)
        estimator.reconfigure(SCENIC)
    assert pools() == before + 1
    found = estimator.predict(RGB[0])
    np.testing.assert_array_equal(found.depth, fresh.depth)
    two = SCENIC.replace(scenes=['kitchen', 'hall'], scene_bins=[*NEAR, *FAR])
    estimator.reconfigure(two)
    assert estimator.predict(RGB[0], scenes=found.scene).scene.names == ('kitchen', 'hall')
    estimator.reconfigure(PLAIN)
    assert pools() == before + 1  # another thread may just have been about to use it
    again = estimator.predict(RGB[0])
    np.testing.assert_array_equal(again.depth, plain.depth)
    assert again.scene is None


def test_a_vision_transformer_has_no_pool():
    config = SCENIC.replace(features='maskclip')
    numbers = state_dict(0, **TINY_VIT)
    with pytest.raises(ConfigError, match='scenes: need a ResNet'):
        DepthEstimator(config, numbers, 'cpu')
    estimator = DepthEstimator(PLAIN.replace(features='maskclip'), numbers, 'cpu')
    with pytest.raises(ConfigError, match='scenes: need a ResNet'):
        estimator.reconfigure(config)
    assert not estimator.config.has_scenes


# Settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(('changes', 'words'), [
    ({'scenes': []}, ['scenes', 'no word']),
    ({'scenes': ['hall', ' ']}, ['scenes', 'empty']),
    ({'scenes': ['hall', 'hall']}, ['scenes', "['hall']", 'twice']),
    ({'scenes': ['hall']}, ['scene_bins: 21 numbers', '1 scenes of 7 tokens', '7']),
    ({'tokens': ['a', 'b'], 'bins': [1, 2]}, ['scene_bins: 21 numbers', '3 scenes of 2 tokens']),
    ({'scene_bins': [*NEAR, *MIDDLE, *FAR[::-1]]}, ['scene_bins', "'corridor'", 'ascend']),
    ({'scene_bins': [0.0, *NEAR[1:], *MIDDLE, *FAR]}, ['scene_bins', "'bathroom'", '0.001 m']),
    ({'scene_bins': [-1.0]}, ['scene_bins', '0.0 to 10000.0 m']),
    ({'scene_templates': ['a photo']}, ['scene_templates', "the word's place"]),
    ({'scene_templates': []}, ['scene_templates', 'empty']),
    ({'calibration': 'robot.safetensors'}, ['calibration and scene_bins', '[0.0]']),
    ({'scene_memory': 1.0}, ['scene_memory', '0.99']),
    ({'scene_entropy': 1.1}, ['scene_entropy']),
    ({'range_max': 0.4, 'reference_focal': 0.0}, ['0.5 to 12.0 m']),
])
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(ConfigError) as error:
        SCENIC.replace(**changes)
    for word in words:
        assert word in str(error.value)


def test_what_belongs_to_scenes_may_stay_without_them():
    off = SCENIC.replace(scenes=[''], tokens=['near', 'far'], bins=[1, 2])
    assert not off.has_scenes
    assert off.depth_span == (1.0, 2.0)
    assert SCENIC.depth_span == (0.5, 12.0)


def test_the_shipped_example_is_table_2():
    from offline_eval.paper import BIN_PARTITIONS, ORIGINAL_BINS
    path = config_path('scenes')
    config = read_config(path)[0]
    of_scenes = dict(zip(config.scenes, config.bins_of_scenes(), strict=True))
    assert of_scenes.pop('bathroom') == BIN_PARTITIONS['Class-dependent 3']
    assert of_scenes.pop('classroom') == BIN_PARTITIONS['Class-dependent 4']
    assert set(of_scenes.values()) == {BIN_PARTITIONS[ORIGINAL_BINS]} == {config.bins}
    assert config == DepthConfig(scenes=config.scenes, scene_bins=config.scene_bins)
