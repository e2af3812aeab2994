# SPDX-License-Identifier: Apache-2.0
"""Dense features against what CLIP's own modules say."""

from __future__ import annotations

import re

import clip_standin
import pytest
import torch

from depthclip_ros.core import ConfigError, WeightsError
from depthclip_ros.core.backbone import Positions, build_attention_pool, build_image_encoder
from depthclip_ros.core.clip_package import import_clip
from depthclip_ros.core.weights import RELEASES, architecture


@pytest.fixture(scope='module')
def resnet():
    return clip_standin.tiny_state_dict()


@pytest.fixture(scope='module')
def vit():
    return clip_standin.state_dict(0, **clip_standin.TINY_VIT)


def clip_model(state_dict):
    return import_clip().model.build_model(dict(state_dict)).float()


def images(height=64, width=96):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def close(found, expected):
    """Equal but for the rounding of float32 sums of some 4,096 terms, in four layers."""
    rounding = 4 * 4096 ** 0.5 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(found, expected, rtol=0,
                               atol=rounding * float(expected.detach().abs().max()))


def last_map(visual, batch):
    visual.attnpool = torch.nn.Identity()
    with torch.no_grad():
        return visual(batch)


def test_reference_features_are_every_nth_channel_of_the_unit_vector(resnet):
    features = build_image_encoder(resnet, 'reference')(images())
    full = last_map(clip_model(resnet).visual, images())
    full = full / full.norm(dim=1, keepdim=True)
    assert features.shape == (2, 64, 2, 3)
    close(features, full[:, ::4])


def test_maskclip_fused_equals_unfused(resnet):
    features = build_image_encoder(resnet, 'maskclip')(images())
    model = clip_model(resnet)
    pool = model.visual.attnpool
    positions = last_map(model.visual, images()).permute(0, 2, 3, 1)
    with torch.no_grad():
        unfused = pool.c_proj(pool.v_proj(positions)).permute(0, 3, 1, 2)
    close(features, unfused / unfused.norm(dim=1, keepdim=True))


@pytest.mark.parametrize('features', ['reference', 'maskclip', 'attnpool'])
def test_the_pool_is_clips_own(resnet, features):
    """At the native size, and of the map that `trunk` gives."""
    encoder = build_image_encoder(resnet, features)
    pool = encoder.pool or build_attention_pool(resnet)
    visual = clip_model(resnet).visual
    with torch.no_grad():
        expected = visual(images(64, 64))
        found = pool.whole(encoder.trunk(images(64, 64)))
    assert found.shape == (2, 64)
    close(found, expected)


def test_every_position_asks_as_the_mean_does(resnet):
    """CLIP's pool computes all answers, and throws away all but the mean's."""
    pool = clip_model(resnet).visual.attnpool
    maps = torch.randn(2, 256, 2, 2, generator=torch.Generator().manual_seed(1))
    ours = build_attention_pool(resnet)
    tokens = maps.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    attention = torch.nn.MultiheadAttention(256, pool.num_heads)
    attention.load_state_dict({
        'in_proj_weight': torch.cat([getattr(pool, f'{n}_proj').weight for n in 'qkv']),
        'in_proj_bias': torch.cat([getattr(pool, f'{n}_proj').bias for n in 'qkv']),
        'out_proj.weight': torch.eye(256), 'out_proj.bias': torch.zeros(256)})
    with torch.no_grad():
        answers = pool.c_proj(attention(tokens, tokens, tokens, need_weights=False)[0])
        close(answers[0], pool(maps))
        close(ours.whole(maps), pool(maps))
        close(
            ours.dense(maps), answers[1:].permute(1, 2, 0).reshape(2, 64, 2, 2))


def test_attnpool_is_the_pools_answer_to_every_position(resnet):
    encoder = build_image_encoder(resnet, 'attnpool')
    features = encoder(images())
    with torch.no_grad():
        answers = encoder.pool.dense(last_map(clip_model(resnet).visual, images()))
    close(
        features, answers / answers.norm(dim=1, keepdim=True))
    assert abs(features - build_image_encoder(resnet, 'maskclip')(images())).max() > 0.01


def test_vit_tokens_after_the_last_block(vit):
    """Where CLIP itself takes the class token."""
    features = build_image_encoder(vit, 'attnpool')(images(64, 64))
    visual = clip_model(vit).visual
    seen = []
    visual.transformer.register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        visual(images(64, 64))
        expected = visual.ln_post(seen[0][1:].permute(1, 0, 2)) @ visual.proj
    expected = (expected / expected.norm(dim=2, keepdim=True)).transpose(1, 2)
    close(features.flatten(2), expected)


def test_vit_values_of_the_last_block(vit):
    """At the native size, with the attention told to look at itself alone."""
    features = build_image_encoder(vit, 'maskclip')(images(64, 64))
    visual = clip_model(vit).visual
    last = visual.transformer.resblocks[-1]
    seen = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        visual(images(64, 64))
        tokens = last.ln_1(seen[0])
        self_only = torch.full((17, 17), float('-inf')).fill_diagonal_(0)
        values = last.attn(tokens, tokens, tokens, attn_mask=self_only, need_weights=False)[0]
        expected = visual.ln_post(values[1:].permute(1, 0, 2)) @ visual.proj
    expected = (expected / expected.norm(dim=2, keepdim=True)).transpose(1, 2)
    close(features.flatten(2), expected)


@pytest.mark.parametrize(('along', 'size'), [(0, (8, 4)), (1, (4, 8)), (0, (4, 4))])
def test_positions_are_resized_in_two_dimensions(along, size):
    """What is constant along a side stays so, whatever becomes of its length."""
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(5))
    grid = rows.unsqueeze(along).expand(4, 4, 64).reshape(16, 64)
    resized = Positions().resized(torch.cat([rows[:1], grid]), *size)
    close(resized[0], rows[0])
    close(resized[1:].reshape(*size, 64), rows.unsqueeze(along).expand(*size, 64))


def test_other_sizes_and_batches(vit, resnet):
    assert build_image_encoder(vit, 'maskclip')(images(48, 80)).shape == (2, 64, 3, 5)
    encoder = build_image_encoder(resnet, 'reference')
    batch = images(96, 32)
    close(
        encoder(batch), torch.cat([encoder(batch[:1]), encoder(batch[1:])]))


def test_what_is_not_needed_is_not_kept(resnet):
    names = list(build_image_encoder(resnet, 'maskclip').state_dict())
    assert names
    assert not [name for name in names if 'pool' in name or 'transformer' in name]
    kept = build_image_encoder(resnet, 'attnpool')
    assert [name for name in kept.state_dict() if name.startswith('pool.')]


def test_features_that_an_architecture_has_not(vit):
    with pytest.raises(ConfigError, match='features: maskclip'):
        build_image_encoder(vit, 'reference')
    odd = clip_standin.state_dict(0, **{**clip_standin.TINY, 'embed_dim': 96})
    with pytest.raises(ConfigError, match=r'256 channels.*96'):
        build_image_encoder(odd, 'reference')


def test_missing_and_misshapen_tensors(resnet):
    without = {k: v for k, v in resnet.items() if k != 'visual.layer3.0.conv2.weight'}
    with pytest.raises(WeightsError, match=r'layer3\.0\.conv2\.weight'):
        build_image_encoder(without, 'reference')
    misshapen = {**resnet, 'visual.conv2.weight': torch.zeros(4, 4, 5, 5)}
    with pytest.raises(WeightsError, match=r'conv2\.weight'):
        build_image_encoder(misshapen, 'reference')


@pytest.mark.parametrize('name', RELEASES)
def test_official_architectures_are_read_off_their_shapes(name):
    """Shapes as OpenAI's own class makes them, without their memory."""
    shape = RELEASES[name].architecture
    with torch.device('meta'):
        model = import_clip().model.CLIP(
            *shape[:5], 77, 49408, shape.text_width, shape.text_width // 64, 12)
    assert architecture(model.state_dict()) == shape


def test_release_table_is_openais():
    source = (import_clip().folder / 'clip.py').read_text()
    table = re.findall(r'"(\S+)": "(https://\S+)"', source)
    assert {name for name, _ in table} == set(RELEASES)
    for name, url in table:
        *_, sha256, file = url.split('/')
        assert (RELEASES[name].sha256, RELEASES[name].file) == (sha256, file)
