# SPDX-License-Identifier: Apache-2.0
"""Dense features against what CLIP's own modules say."""

from __future__ import annotations

import re

import clip_standin
import pytest
import torch

from depthclip_ros.core import ConfigError, WeightsError
from depthclip_ros.core.backbone import PositionResizer, build_attention_pool, build_image_encoder
from depthclip_ros.core.openai_clip import import_clip
from depthclip_ros.core.releases import RELEASES
from depthclip_ros.core.weights import architecture


@pytest.fixture(scope='module')
def resnet():
    return clip_standin.tiny_state_dict()


@pytest.fixture(scope='module')
def vit():
    return clip_standin.state_dict(0, **clip_standin.TINY_VIT)


def visual_of(state_dict):
    return import_clip().model.build_model(dict(state_dict)).float().visual


def images(height=64, width=96):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def close(found, expected):
    """Equal but for the rounding of float32 sums of some 4,096 terms, in four layers."""
    rounding = 4 * 4096 ** 0.5 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(found, expected, rtol=0,
                               atol=rounding * float(expected.detach().abs().max()))


def unit(features):
    return features / features.norm(dim=1, keepdim=True)


@torch.no_grad()
def last_map(state_dict, batch):
    visual = visual_of(state_dict)
    visual.attnpool = torch.nn.Identity()
    return visual(batch)


@torch.no_grad()
def test_reference_and_maskclip_are_made_of_the_last_map(resnet):
    """Every n-th channel of the unit vectors; and the pool's value and output projections."""
    last = last_map(resnet, images())
    found = build_image_encoder(resnet, 'reference')(images())
    assert found.shape == (2, 64, 2, 3)
    close(found, unit(last)[:, ::4])
    pool = visual_of(resnet).attnpool
    values = pool.c_proj(pool.v_proj(last.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    close(build_image_encoder(resnet, 'maskclip')(images()), unit(values))


@pytest.mark.parametrize('features', ['reference', 'maskclip', 'attnpool'])
@torch.no_grad()
def test_the_pool_is_clips_own(resnet, features):
    """At the native size, and of the map that `trunk` gives."""
    encoder = build_image_encoder(resnet, features)
    pool = encoder.pool or build_attention_pool(resnet)
    close(pool.image_embedding(encoder.trunk(images(64, 64))), visual_of(resnet)(images(64, 64)))


@torch.no_grad()
def test_every_position_asks_as_the_mean_does(resnet):
    """CLIP's pool computes all answers, and throws away all but the mean's."""
    pool, ours = visual_of(resnet).attnpool, build_attention_pool(resnet)
    maps = last_map(resnet, images(64, 64))
    tokens = maps.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    attention = torch.nn.MultiheadAttention(256, pool.num_heads)
    attention.load_state_dict({
        'in_proj_weight': torch.cat([getattr(pool, f'{n}_proj').weight for n in 'qkv']),
        'in_proj_bias': torch.cat([getattr(pool, f'{n}_proj').bias for n in 'qkv']),
        'out_proj.weight': torch.eye(256), 'out_proj.bias': torch.zeros(256)})
    answers = pool.c_proj(attention(tokens, tokens, tokens, need_weights=False)[0])
    close(answers[0], pool(maps))
    close(ours.patch_embeddings(maps), dense := answers[1:].permute(1, 2, 0).reshape(2, 64, 2, 2))
    found = build_image_encoder(resnet, 'attnpool')(images(64, 64))
    close(found, unit(dense))


@pytest.mark.parametrize('features', ['attnpool', 'maskclip'])
@torch.no_grad()
def test_a_vision_transformers_patches(vit, features):
    """Its tokens after the last block, or with the attention told to look at itself alone."""
    visual = visual_of(vit)
    last, seen = visual.transformer.resblocks[-1], []
    last.register_forward_hook(lambda _, given, found: seen.append((given[0], found)))
    visual(images(64, 64))
    (tokens, answers), = seen
    if features == 'maskclip':
        tokens = last.ln_1(tokens)
        alone = torch.full((17, 17), float('-inf')).fill_diagonal_(0)
        answers = last.attn(tokens, tokens, tokens, attn_mask=alone, need_weights=False)[0]
    expected = (visual.ln_post(answers[1:].permute(1, 0, 2)) @ visual.proj).transpose(1, 2)
    close(build_image_encoder(vit, features)(images(64, 64)).flatten(2), unit(expected))


@pytest.mark.parametrize(('along', 'size'), [(0, (8, 4)), (1, (4, 8)), (0, (4, 4))])
def test_positions_are_resized_in_two_dimensions(along, size):
    """What is constant along a side stays so, whatever becomes of its length."""
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(5))
    grid = rows.unsqueeze(along).expand(4, 4, 64).reshape(16, 64)
    resized = PositionResizer().resize(torch.cat([rows[:1], grid]), *size)
    close(resized[0], rows[0])
    close(resized[1:].reshape(*size, 64), rows.unsqueeze(along).expand(*size, 64))


def test_other_sizes_and_batches_and_nothing_that_is_not_needed(vit, resnet):
    assert build_image_encoder(vit, 'maskclip')(images(48, 80)).shape == (2, 64, 3, 5)
    encoder, batch = build_image_encoder(resnet, 'reference'), images(96, 32)
    close(encoder(batch), torch.cat([encoder(batch[:1]), encoder(batch[1:])]))
    names = ' '.join(build_image_encoder(resnet, 'maskclip').state_dict())
    assert 'trunk' in names
    assert 'pool' not in names
    assert 'transformer' not in names


def test_what_cannot_be_built(vit, resnet):
    odd = clip_standin.state_dict(0, **{**clip_standin.TINY, 'embed_dim': 96})
    for weights in (vit, odd):
        with pytest.raises(ConfigError, match='features: maskclip'):
            build_image_encoder(weights, 'reference')
    without = {k: v for k, v in resnet.items() if k != 'visual.layer3.0.conv2.weight'}
    with pytest.raises(WeightsError, match=r'layer3\.0\.conv2\.weight'):
        build_image_encoder(without, 'reference')
    with pytest.raises(WeightsError, match=r'conv2\.weight'):
        build_image_encoder({**resnet, 'visual.conv2.weight': torch.zeros(4, 4, 5, 5)},
                            'reference')


def test_the_releases_are_openais():
    """Architectures are read off the shapes that its own class makes, without their memory."""
    for release in RELEASES.values():
        shape = release.architecture
        with torch.device('meta'):
            model = import_clip().model.CLIP(
                *shape[:5], 77, 49408, shape.text_width, shape.text_width // 64, 12)
        assert architecture(model.state_dict()) == shape
    source = (import_clip().folder / 'clip.py').read_text()
    table = {name: url.split('/')[-2:] for name, url in re.findall(
        r'"(\S+)": "(https://\S+)"', source)}
    assert table == {name: [release.sha256, release.file] for name, release in RELEASES.items()}
