# SPDX-License-Identifier: Apache-2.0
"""Models of open_clip: text and dense features are what their own networks say, by definition."""

from __future__ import annotations

import sys

import clip_standin
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, layer_norm, linear, normalize

open_clip = pytest.importorskip('open_clip', reason='open_clip_torch is not installed')
safetensors_torch = pytest.importorskip('safetensors.torch')
timm = pytest.importorskip('timm')

from depthclip_ros.core import (  # noqa: E402
    ConfigError,
    DepthConfig,
    DepthEstimator,
    WeightsError,
    engine,
    text_features,
)
from depthclip_ros.core.backbone import build_attention_pool, build_image_encoder  # noqa: E402
from depthclip_ros.core.releases import WeightsInfo  # noqa: E402
from depthclip_ros.core.text_features import Phrases, encode  # noqa: E402
from depthclip_ros.core.weights import load_weights  # noqa: E402

# Real architectures with fewer layers, so that a test takes a second: what the text tower and the
# end of the vision tower do is theirs. Names without 'SigLIP', whose tokenizer is on the network.
SHORT = {
    'ViT-S-32': 'short-vit', 'ViT-B-32-quickgelu': 'short-quickgelu', 'RN50': 'short-resnet',
    'ViT-B-32-SigLIP2-256': 'short-map', 'MobileCLIP2-S0': 'short-fastvit',
    'MobileCLIP-B': 'short-token', 'convnext_tiny': 'short-convnext', 'ViTamin-S': 'short-vitamin',
    'ViT-H-14-CLIPA': 'short-average', 'PE-Core-T-16-384': 'short-eva',
}
# Of every kind of text tower one.
TEXTS = ['short-vit', 'short-quickgelu', 'short-resnet', 'short-map', 'short-fastvit']
DENSE = ['short-vit', 'short-quickgelu', 'short-map', 'short-fastvit', 'short-token',
         'short-convnext', 'short-vitamin', 'short-average']
WORDS = Phrases(('giant', 'not in distance', 'far'), ('This object is {}', 'a {} thing'))
CONFIG = DepthConfig(features='maskclip', tokens=('giant', 'close', 'far'), bins=(1.0, 2.0, 3.0),
                     input_height=64, input_width=96)


@pytest.fixture(scope='module', autouse=True)
def short(tmp_path_factory):
    """Configurations of the short models, and their weights by name of the architecture."""
    import json

    make, folder = timm.create_model, tmp_path_factory.mktemp('configs')

    def create(name, **settings):
        less = {'depth': 2} if name.startswith('vit') else \
            {'depths': (1, 1, 1, 1)} if name.startswith('convnext') else {'layers': (1, 1, 1, 1)}
        return make(name, **settings, **less)

    for name, other in SHORT.items():
        config = open_clip.get_model_config(name)
        text, vision = config['text_cfg'], config['vision_cfg']
        if 'layers' in vision:
            vision['layers'] = [1, 1, 1, 1] if isinstance(vision['layers'], list) else 2
        if other == 'short-resnet':
            vision.update(width=16)
        if other == 'short-average':
            vision.update(width=128, head_width=64, patch_size=32)
        text.update(layers=1, width=64, heads=2, vocab_size=49408)
        for key in ('hf_tokenizer_name', 'tokenizer_kwargs'):
            text.pop(key, None)
        (folder / f'{other}.json').write_text(json.dumps(config))
        if other == 'short-vit':
            (folder / 'short-other.json').write_text(json.dumps({**config, 'quick_gelu': True}))
    open_clip.add_model_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, 'create_model', create)
        weights = {}

        def made(name):
            _, found = load_weights('untrained', f'open_clip:{name}', folder, print)
            generator = torch.Generator().manual_seed(1)
            for key, value in found.items():  # no norm is without effect, no bias 0
                if value.is_floating_point() and value.dim() == 1 and 'running' not in key:
                    value.add_(torch.randn(value.shape, generator=generator), alpha=0.3)
            return found

        def of(name):
            if name not in weights:
                # Whoever asks first may be in inference mode, and others not.
                with torch.inference_mode(mode=False), torch.no_grad():
                    weights[name] = made(name)
            return weights[name]

        yield of


def build(short, config=CONFIG, name='short-vit', folder=None, **changes):
    """An estimator with the weights of a short model."""
    return DepthEstimator(config.replace(backbone=f'open_clip:{name}', **changes),
                          (WeightsInfo(name, 'random', name), short(name)), 'cpu',
                          cache_dir=folder)


def own_model(name, weights):
    """Make the model with open_clip's own functions, not ours."""
    model = open_clip.create_model(name, pretrained=None).eval()
    model.load_state_dict(dict(weights))
    return model


def images(model, size=None):
    size = size or [model.visual.image_size] * 2
    size = [side[0] if isinstance(side, (list, tuple)) else side for side in size]
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


def seen(module, run):
    """What goes into a module while `run` runs."""
    inputs = []
    hook = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    result = run()
    hook.remove()
    return inputs[0], result


def heads(x, count):
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def of_class_token(model, x):
    """Values of every position, as MaskCLIP takes them, and how the class token mixes them.

    Returns:
        (B, N, C) dense features by the formula, from the value's own rows of the weights; and the
        image embedding from the model's real attention over the same values.

    """
    visual = model.visual
    if hasattr(visual, 'trunk'):
        trunk, block = visual.trunk, visual.trunk.blocks[-1]
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        count, out, first, second, mlp = (
            block.attn.num_heads, block.attn.proj, block.norm1, block.norm2, block.mlp)

        def end(x):
            return trunk.head(trunk.norm(x))
    else:
        block = visual.transformer.resblocks[-1]
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        count, out, first, second, mlp = (
            block.attn.num_heads, block.attn.out_proj, block.ln_1, block.ln_2, block.mlp)

        def end(x):
            return layer_norm(x, x.shape[-1:], visual.ln_post.weight, visual.ln_post.bias,
                              visual.ln_post.eps) @ visual.proj
    query, key, value = (linear(first(x), *part) for part in zip(
        weight.chunk(3), bias.chunk(3), strict=True))
    q, k, v = (heads(part, count) for part in (query, key, value))
    attention = (q[:, :, :1] @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=3)
    mixed = x[:, :1] + out((attention @ v).transpose(1, 2).flatten(2))
    return end(out(value[:, 1:])), end(mixed + mlp(second(mixed)))[:, 0]


def of_map_head(model, x):
    """The same for SigLIP's pool, which asks with a learned query."""
    pool = model.visual.trunk.attn_pool
    x = model.visual.trunk.norm(x)
    weights, biases = pool.kv.weight.chunk(2), pool.kv.bias.chunk(2)
    key, value = (linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
    q, k, v = (heads(part, pool.num_heads) for part in (pool.q(pool.latent), key, value))
    attention = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=3)

    def end(y):
        y = pool.proj(y)
        return y + pool.mlp(pool.norm(y))

    return end(value), end((attention @ v).transpose(1, 2).flatten(2))[:, 0]


def of_average(model, x):
    """The same where the mean of all positions is taken, then normalised and projected."""
    trunk = getattr(model.visual, 'trunk', None)
    x = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x

    def end(y):
        if trunk is None:
            return model.visual.ln_post(y) @ model.visual.proj
        if type(trunk).__name__ == 'ConvNeXt':
            norm = trunk.head.norm
            y = layer_norm(y, y.shape[-1:], norm.weight, norm.bias, norm.eps)
        elif type(trunk).__name__ == 'FastVit':
            y = trunk.head.fc(y)
        else:
            y = trunk.fc_norm(y)
        return model.visual.head(y)

    return end(x), end(x.mean(dim=1))


@torch.inference_mode()
def by_definition(model, pixels):
    """(B, N, C) dense features, an image embedding made of the same parts, and the model's own."""
    visual = model.visual
    trunk = getattr(visual, 'trunk', None)
    if model.visual.__class__.__name__ == 'VisionTransformer' and visual.pool_type == 'avg':
        x, own = seen(visual.ln_post, lambda: visual(pixels)) if not visual.final_ln_after_pool \
            else (None, visual(pixels))
        if x is None:
            x = visual.transformer(visual._embeds(pixels))
        return *of_average(model, x[:, 1:]), own
    if trunk is None or getattr(trunk, 'global_pool', '') == 'token':
        block = visual.transformer.resblocks[-1] if trunk is None else trunk.blocks[-1]
        x, own = seen(block, lambda: visual(pixels))
        return *of_class_token(model, x), own
    if getattr(trunk, 'attn_pool', None) is not None:
        x, own = seen(trunk.norm, lambda: visual(pixels))
        return *of_map_head(model, x), own
    return *of_average(model, trunk.forward_features(pixels)), visual(pixels)


@pytest.mark.parametrize('name', TEXTS)
def test_text_features_are_those_of_open_clip(short, name):
    weights = short(name)
    model, tokenizer = own_model(name, weights), open_clip.get_tokenizer(name)
    with torch.inference_mode():
        expected = torch.stack([normalize(normalize(model.encode_text(tokenizer(
            [template.replace('{}', token) for template in WORDS.templates])), dim=1).mean(dim=0),
            dim=0) for token in WORDS.words])
    np.testing.assert_allclose(encode(WORDS, weights), expected, atol=2e-6)


@pytest.mark.parametrize('name', DENSE)
def test_dense_features_pool_to_the_models_own_embedding(short, name):
    weights = short(name)
    model, encoder = own_model(name, weights), build_image_encoder(weights, 'maskclip')
    pixels = images(model)
    dense, pooled, own = by_definition(model, pixels)
    torch.testing.assert_close(pooled, own, atol=1e-4, rtol=1e-4)  # the parts are the model's
    with torch.inference_mode():
        found = encoder.trunk(pixels)
        unit = encoder(pixels)
    assert found.shape[2:] == tuple(side // encoder.stride for side in pixels.shape[2:])
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), dense, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(unit, normalize(found, dim=1))
    if name == 'short-fastvit':  # only its head is linear
        torch.testing.assert_close(found.mean(dim=(2, 3)), own, atol=1e-4, rtol=1e-3)


@torch.inference_mode()
def test_a_resnet_of_open_clip_is_as_one_of_openai(short):
    weights = short('short-resnet')
    model, encoder = own_model('short-resnet', weights), build_image_encoder(weights, 'maskclip')
    pixels, pool = images(model), model.visual.attnpool
    x, own = seen(pool, lambda: model.visual(pixels))
    values = pool.c_proj(pool.v_proj(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder(pixels), normalize(values, dim=1), atol=1e-5, rtol=1e-3)
    found = build_attention_pool(weights).image_embedding(encoder.trunk(pixels))
    torch.testing.assert_close(found, own, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('name', ['short-vit', 'short-map', 'short-token'])
@torch.inference_mode()
def test_positions_are_resized_bicubically(short, name):
    weights = short(name)
    model, encoder = own_model(name, weights), build_image_encoder(weights, 'maskclip')
    visual, stride = model.visual, encoder.stride
    size = 3 * stride, 20 * stride  # smaller and larger than the grid of the training
    if name == 'short-vit':
        learned = visual.positional_embedding
        grid = learned[1:].T.reshape(1, -1, *visual.grid_size)
        grid = interpolate(grid, (3, 20), mode='bicubic', align_corners=False)
        visual.positional_embedding = torch.nn.Parameter(
            torch.cat([learned[:1], grid.flatten(2)[0].T]))
    else:
        visual.trunk.set_input_size(size)
    pixels = images(model, size)
    dense, pooled, own = by_definition(model, pixels)
    torch.testing.assert_close(pooled, own, atol=1e-4, rtol=1e-4)
    found = encoder.trunk(pixels)
    assert found.shape[2:] == (3, 20)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), dense, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('name', ['short-vit', 'short-map', 'short-fastvit', 'short-convnext'])
@torch.inference_mode()
def test_bfloat16_gives_nearly_the_same(short, name):
    encoder = build_image_encoder(short(name), 'maskclip')
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    expected = encoder(pixels)
    engine.install(encoder, torch.bfloat16, torch.device('cpu'), (64, 96), lambda _: None)
    assert (encoder(pixels) - expected).norm() < 0.05 * expected.norm()


def test_depth_from_a_file(short, tmp_path):
    weights, lines = short('short-vit'), []
    config = CONFIG.replace(backbone='open_clip:short-vit', input_height=64, input_width=96)
    torch.save({'state_dict': {f'module.{key}': value for key, value in weights.items()}},
               tmp_path / 'a.pt')
    safetensors_torch.save_file(dict(weights), tmp_path / 'b.safetensors')
    image = clip_standin.synthetic_rgb(0)[:64, :96]
    predictions = []
    for file in ('a.pt', 'b.safetensors'):
        estimator = DepthEstimator(config, tmp_path / file, 'cpu', cache_dir=tmp_path,
                                   log=lines.append)
        predictions.append(estimator.predict(image))
    assert not estimator.text_cache_hit  # another file, another digest
    assert DepthEstimator(config, tmp_path / file, 'cpu', cache_dir=tmp_path).text_cache_hit
    np.testing.assert_array_equal(predictions[0].depth, predictions[1].depth)
    assert any('own mean (0.48145466' in line for line in lines)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in weights.normalization)
    pixels = (torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 - mean) / deviation
    with torch.inference_mode():
        unit = build_image_encoder(weights, 'maskclip')(pixels[None])[0]
    text = encode(Phrases(config.tokens, config.templates), weights)
    expected = 100 / config.temperature * np.einsum('kc,chw->khw', text, unit)
    np.testing.assert_allclose(predictions[0].logits, expected, atol=0.01)
    # The same tensors are another model with another activation.
    digests = [load_weights(tmp_path / 'a.pt', f'open_clip:{name}', tmp_path, print)[0].digest
               for name in ('short-vit', 'short-vit', 'short-other')]
    assert digests[0] == digests[1] != digests[2]
    estimator.reconfigure(config.replace(tokens=('near', 'close', 'far')))  # reads the file again
    assert estimator.predict(image).depth.shape == (64, 96)
    (tmp_path / 'b.safetensors').write_bytes((tmp_path / 'b.safetensors').read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r'b\.safetensors: .*truncated'):
        DepthEstimator(config, tmp_path / 'b.safetensors', 'cpu', cache_dir=tmp_path)


def test_a_plain_file_is_as_open_clip_s_own_run(short, tmp_path):
    """Where the activation is what is taken for granted; which that is, both routes say."""
    weights, lines = short('short-quickgelu'), []
    torch.save(dict(weights), tmp_path / 'x.pt')
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    features = []
    for backbone in ('auto', 'open_clip:short-quickgelu', 'open_clip:short-vit'):
        path = tmp_path / 'x.pt' if backbone != 'open_clip:short-vit' else 'untrained'
        encoder = build_image_encoder(
            load_weights(path, backbone, tmp_path, lines.append)[1], 'maskclip')
        features.append(encoder(pixels))
    assert torch.nn.functional.cosine_similarity(*features[:2]).min() > 0.9995
    said = [next(word for word in ('QuickGELU', 'GELU') if word in line)
            for line in lines if 'GELU' in line]
    assert said == ['QuickGELU', 'QuickGELU', 'GELU']


@pytest.mark.parametrize('kind', [
    'module', 'lightning', 'number of NumPy', 'foreign keys', 'another name'])
def test_weights_as_others_save_them(short, kind, tmp_path):
    expected, lines = dict(short('short-vit')), []
    torch.save({
        'module': {'epoch': 1, 'state_dict': {f'module.{k}': v for k, v in expected.items()}},
        'lightning': {'state_dict': {f'model.{k}': v for k, v in expected.items()}},
        'number of NumPy': {'state_dict': expected, 'best': np.float64(0.5)},
        'foreign keys': {**expected, 'logit_bias': torch.ones(1), 'head.weight': torch.ones(2)},
        'another name': expected}[kind], tmp_path / 'x.safetensors')
    found = load_weights(
        tmp_path / 'x.safetensors', 'open_clip:short-vit', tmp_path, lines.append)[1]
    for key, value in expected.items():
        assert torch.equal(found[key], value)
    assert any('head.weight' in line and 'left out' in line for line in lines) == (
        kind == 'foreign keys')


def test_a_resnet_is_folded_and_has_scenes(short, tmp_path):
    image = clip_standin.synthetic_rgb(0)[:64, :96]
    estimator = build(short, name='short-resnet', folder=tmp_path, scenes=('room', 'street'))
    prediction = estimator.predict(image)
    assert prediction.scene.probabilities.shape == (2,)
    # Its own steps.
    estimator.model.encoder = build_image_encoder(short('short-resnet'), 'maskclip')
    np.testing.assert_allclose(prediction.depth, estimator.predict(image).depth, atol=1e-3)


def test_features_are_cached_under_the_tokenizer_that_made_them(short, tmp_path, monkeypatch):
    def hit():
        return build(short, folder=tmp_path).text_cache_hit
    assert (hit(), hit()) == (False, True)
    with monkeypatch.context() as other:  # another vocabulary of OpenAI's changes nothing
        other.setattr(text_features, 'tokenizer_digest', lambda: 'other')
        assert hit()
    with monkeypatch.context() as other:
        other.setattr(open_clip, '__version__', '99')
        assert not hit()
    versions = {'transformers': '99', 'tokenizers': '99'}
    with monkeypatch.context() as other:
        other.setattr('importlib.metadata.version', versions.__getitem__)
        assert not hit()


@pytest.mark.parametrize(('backbone', 'message'), [
    ('open_clip:ViT-B-33', "no 'ViT-B-33' .*list_pretrained"),
    ('open_clip:', "no ''"),
    ('open_clip:ViT-B-16/laion2b_s34b', "with weights 'laion2b_s34b', .*laion2b_s34b_b88k"),
    ('open_clip:coca_ViT-B-32', 'no dense features here: its image embedding is mixed'),
    ('open_clip:roberta-ViT-B-32', 'no dense features here: .* encoder is one of the Hugging'),
])
def test_what_cannot_be_is_refused(backbone, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_weights('untrained', backbone, tmp_path, print)


def test_what_has_no_such_features_is_refused(short, tmp_path):
    for weights, features, message in (
            (short('short-vit'), 'reference', 'use features: maskclip'),
            (short('short-eva'), 'maskclip', 'what Eva does')):
        with pytest.raises(ConfigError, match=message):
            build_image_encoder(weights, features)
    for change, message in (({'scenes': ('a', 'b')}, 'attention pool'),
                            ({'precision': 'int8'}, 'int8 is for ResNets'),
                            ({'input_width': 100}, 'not a multiple')):
        with pytest.raises(ConfigError, match=message):
            build(short, folder=tmp_path, **change)


def test_weights_that_are_not_there(short, tmp_path, monkeypatch):
    def refused(weights, backbone, message, **settings):
        with pytest.raises(WeightsError, match=message):
            load_weights(weights, f'open_clip:{backbone}', tmp_path, print, offline=bool(settings))

    def no_network(_):
        raise OSError('no network')

    monkeypatch.setattr('huggingface_hub.try_to_load_from_cache', lambda *_: None)
    monkeypatch.setattr(open_clip, 'download_pretrained', no_network)
    refused('', 'ViT-B-16/laion2b_s34b_b88k', 'offline is set', offline=True)
    refused('', 'ViT-B-16/laion2b_s34b_b88k', 'no network.*start once while there is a network')
    refused('', 'ViT-B-16', 'names an architecture and no weights')
    refused(tmp_path / 'nothing.pt', 'ViT-B-16', 'No such file')
    refused(dict(short('short-vit')), 'short-vit', 'a state dict in memory cannot')
    short_of_one = {key: value for key, value in short('short-vit').items()
                    if key != 'visual.proj'}
    for content, model, message in (
            ({'x': print}, 'short-vit', 'asks for print'),  # called by a plain unpickling
            (short_of_one, 'short-vit', r'is another model: .* 1 are missing \(visual\.proj\)'),
            (dict(short('short-vit')), 'short-average', 'is another model')):
        torch.save(content, tmp_path / 'x.pt')
        refused(tmp_path / 'x.pt', model, rf'x\.pt: {message}')


def test_weights_of_a_tag_are_found_offline_with_its_activation(short, tmp_path, monkeypatch):
    """And its own mean and deviation."""
    file = tmp_path / 'open_clip_model.safetensors'
    safetensors_torch.save_file(dict(short('short-vit')), file)
    monkeypatch.setattr('huggingface_hub.try_to_load_from_cache',
                        lambda _, name: str(file) if name == file.name else None)
    found = {}
    for name in ('plain', 'quick'):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'short-vit', {name: {
            'hf_hub': 'somebody/short/', 'mean': [0.1] * 3, 'std': [0.2] * 3,
            'quick_gelu': name == 'quick'}})
        info, weights = load_weights(
            '', f'open_clip:short-vit/{name}', tmp_path, print, offline=True)
        assert (info.source, info.trained) == (str(file), True)
        assert all(torch.equal(weights[key], value) for key, value in short('short-vit').items())
        assert weights.normalization == ((0.1,) * 3, (0.2,) * 3)
        found[name] = info.digest, torch.from_numpy(encode(WORDS, weights))
    # The architecture that has that activation.
    own = load_weights(file, 'open_clip:short-other', tmp_path, print)[1]
    torch.testing.assert_close(found['quick'][1], torch.from_numpy(encode(WORDS, own)))
    assert abs(found['plain'][1] - found['quick'][1]).max() > 1e-4
    assert found['plain'][0] != found['quick'][0]


@pytest.mark.parametrize('end', [0, 1])
def test_long_sentences_are_refused_not_cut(short, monkeypatch, end):
    """Whether the tokenizer marks an end or not, the tokens that fit are the same."""
    def tokenize(texts, context_length=64):
        rows = [[*([7] * len(text.split())), *([1] * end)] for text in texts]
        return torch.tensor([(row + [0] * context_length)[:context_length] for row in rows])

    tokenize.context_length = 64
    for longest in (62, 64 - end):  # open_clip's own has tokens of start and end
        fits, too_long = (Phrases(('far ' * count,), ('{}',)) for count in (longest, longest + 1))
        assert encode(fits, short('short-map')).shape[0] == 1
        with pytest.raises(ConfigError, match="model's 64 text tokens"):
            encode(too_long, short('short-map'))
        monkeypatch.setattr(open_clip, 'get_tokenizer', lambda _: tokenize)


def test_packages_that_cannot_be_had(short, tmp_path, monkeypatch):
    def get(_):
        raise OSError('no network')

    with monkeypatch.context() as other:
        other.setattr(open_clip, 'get_tokenizer', get)
        with pytest.raises(WeightsError, match=r'tokenizer cannot be had .*no network.*SigLIP'):
            encode(WORDS, short('short-map'))
    monkeypatch.setitem(sys.modules, 'open_clip', None)
    with pytest.raises(WeightsError, match='pip install open_clip_torch'):
        load_weights('', 'open_clip:ViT-B-16/laion2b_s34b_b88k', tmp_path, print)
