# SPDX-License-Identifier: Apache-2.0
"""What runs the trunk gives the features of CLIP's own modules; what breaks is passed over."""

from __future__ import annotations

import functools
import json
from concurrent.futures import ThreadPoolExecutor

import clip_standin
import numpy as np
import pytest
import torch
from torch import nn

from depthclip_ros.cli import doctor, proof
from depthclip_ros.cli.proof import clips_own_trunk
from depthclip_ros.core import (
    DepthConfig,
    DepthEstimator,
    EngineError,
    WeightsError,
    device,
    engine,
    onednn_graph,
    resnet,
    winograd,
)
from depthclip_ros.core.backbone import build_image_encoder
from depthclip_ros.core.device import cpu_has_bfloat16, resolve_precision, try_out
from depthclip_ros.core.onednn_graph import GraphedResNet
from depthclip_ros.core.resnet import can_fuse

SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(3)]
CPU = torch.device('cpu')


@functools.cache
def can_compile(dtype):
    """Whether TorchScript makes oneDNN graphs here in a number format."""
    def compile_one():
        weight = torch.zeros(8, 8, 1, 1, dtype=dtype)
        network = nn.Sequential(
            resnet.Convolution(weight, weight[0, :, 0, 0], 1, 0), nn.ReLU()).eval()
        onednn_graph._compile(network, torch.zeros(1, 8, 4, 4, dtype=dtype).to(
            memory_format=torch.channels_last))
    return try_out(compile_one)


needs_fused, needs_graphs = (
    pytest.mark.skipif(not able, reason=able.why_not) for able in (
        can_fuse(torch.float32), can_compile(torch.float32)))
needs_bfloat16 = pytest.mark.skipif(
    not (cpu_has_bfloat16() and can_fuse(torch.bfloat16)),
    reason='this processor has no arithmetic for bfloat16')


@pytest.fixture(scope='module')
def build(state_dict, tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache')  # the words are the same in all tests

    def make(log=lambda text: None, **changes):
        return DepthEstimator(
            SMALL.replace(**changes), state_dict, 'cpu', cache_dir=folder, log=log)
    return make


@pytest.fixture(scope='module')
def build_reference(build, state_dict):
    """The same on CLIP's own modules, step by step."""
    def make(**changes):
        estimator = build(**changes)
        encoder = build_image_encoder(state_dict, estimator.config.features)
        encoder.trunk = clips_own_trunk(state_dict)
        estimator._encoder, estimator.engine = encoder, 'the reference'
        return estimator
    return make


def features_of(estimator, images=IMAGES[:1]):
    return estimator.maps(images).features


@pytest.mark.parametrize('features', ['reference', 'maskclip', 'attnpool'])
@pytest.mark.parametrize('flip', [False, True])
def test_float32_gives_the_reference_s_depth(build, build_reference, features, flip):
    changes = {'features': features, 'flip_average': flip}
    reference, estimator = build_reference(**changes), build(**changes)
    assert estimator.engine == ('oneDNN' if can_fuse(torch.float32) else 'torch')
    for images in (IMAGES[:1], IMAGES):
        for found, expected in zip(
                estimator.predict(images), reference.predict(images), strict=True):
            np.testing.assert_allclose(found.depth, expected.depth, rtol=0, atol=1e-4)
            np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=2e-3)


@needs_bfloat16
def test_bfloat16_stays_near_it(build, build_reference):
    said = []
    estimator = build(said.append, precision='bfloat16')
    assert (estimator.precision, estimator.precision_because) == ('bfloat16', '')
    error = engine.difference(features_of(estimator), features_of(build_reference()))
    assert 0 < error <= engine.TOLERANCES[torch.bfloat16]
    assert not any(text.startswith('WARNING') for text in said)


@pytest.mark.parametrize('precision', [
    pytest.param('float32', marks=needs_fused), pytest.param('bfloat16', marks=needs_bfloat16)])
def test_a_batch_gives_what_each_image_gives_alone(build, precision):
    """In whatever parts it goes: float32 to its rounding, bfloat16 to a step of its depth."""
    estimator = build(precision=precision, flip_average=False)
    alone = [estimator.predict(image).depth for image in IMAGES]
    step = 2 * torch.finfo(getattr(torch, precision)).eps * max(SMALL.bins)
    for found, expected in zip(estimator.predict(IMAGES), alone, strict=True):
        np.testing.assert_allclose(found.depth, expected, rtol=0, atol=max(1e-4, step))


ARCHITECTURES = {
    'ResNet': (clip_standin.TINY, 'reference'),
    'deeper ResNet': ({**clip_standin.TINY, 'layers': (2, 1, 2, 1)}, 'maskclip'),
    'wider ResNet': ({**clip_standin.TINY, 'width': 12, 'embed_dim': 96}, 'reference'),
    'ViT, patches of 32': ({**clip_standin.TINY_VIT, 'patch': 32}, 'maskclip'),
    'ViT, patches of 16': (clip_standin.TINY_VIT, 'maskclip'),
    'ViT, patches of 14': ({**clip_standin.TINY_VIT, 'patch': 14, 'resolution': 56,
                            'width': 128}, 'maskclip'),
    'attention pool': (clip_standin.TINY, 'attnpool'),
    'ViT, mixing': (clip_standin.TINY_VIT, 'attnpool'),
}


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_every_architecture_in_every_precision(architecture, precision):
    """In half on a CPU, too: there it is slow, but the numbers are those of a GPU."""
    shape, features = ARCHITECTURES[architecture]
    encoder = build_image_encoder(clip_standin.state_dict(0, **shape), features)
    dtype, size = getattr(torch, precision), (3 * encoder.stride, 4 * encoder.stride)
    images = engine.known_image(size).expand(2, -1, -1, -1)
    with torch.inference_mode():
        expected = encoder(images)
        engine.install(encoder, dtype, CPU, size, lambda _: None)
        assert encoder.trunk(images.to(dtype)).dtype == dtype
        found = encoder(images)
    assert found.dtype == torch.float32
    assert engine.difference(found, expected) <= engine.TOLERANCES[dtype]
    if precision == 'float32' and 'ViT' in architecture:
        assert torch.equal(found, expected)  # it is the reference
    norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.weight.dtype for norm in norms} <= {torch.float32}
    assert bool(norms) == ('ViT' in architecture)


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_the_known_image_is_where_the_network_is(architecture):
    """As on a GPU: 'meta' is a device, too, and mixes with no other."""
    shape, features = ARCHITECTURES[architecture]
    encoder = build_image_encoder(clip_standin.state_dict(0, **shape), features).to('meta')
    size = 3 * encoder.stride, 4 * encoder.stride
    found = engine.try_known_image(encoder, size, torch.device('meta'))
    assert found.device.type == 'meta'
    assert found.shape[2:] == (3, 4)


@pytest.mark.parametrize('shape', [
    {}, {'layers': (2, 1, 2, 1)}, {'width': 12, 'embed_dim': 96}],
    ids=['small', 'deeper', 'wider'])
def test_folded_network_equals_clips_own(shape):
    weights = clip_standin.state_dict(0, **{**clip_standin.TINY, **shape})
    encoder, reference = build_image_encoder(weights, 'maskclip'), clips_own_trunk(weights)
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(images)
        torch.testing.assert_close(encoder.trunk(images).contiguous(), expected,
                                   rtol=1e-4, atol=1e-4)
        engine.install(encoder, torch.float32, CPU, (96, 128), lambda _: None)
        torch.testing.assert_close(encoder.trunk(images).contiguous(), expected,
                                   rtol=1e-4, atol=1e-4)


def test_weights_in_half_precision_are_folded_as_if_in_single(state_dict):
    """Where only the convolutions are, as in OpenAI's files."""
    half = {name: tensor.half() if tensor.dim() == 4 else tensor
            for name, tensor in state_dict.items()}
    exact, folded = (build_image_encoder(weights, 'reference').trunk.state_dict()
                     for weights in (state_dict, half))
    assert exact.keys() == folded.keys()
    for name, tensor in exact.items():
        assert folded[name].dtype == torch.float32
        assert torch.equal(folded[name], tensor), name


def test_packed_weights_serve_every_size_and_number(state_dict):
    encoder = build_image_encoder(state_dict, 'reference')
    sizes = [(1, 3, 64, 96), (3, 3, 160, 32)]
    images = [torch.randn(size, generator=torch.Generator().manual_seed(1)) for size in sizes]
    with torch.inference_mode():
        expected = [encoder(image) for image in images]
        engine.install(encoder, torch.float32, CPU, (96, 128), lambda _: None)
        for image, features in zip(images, expected, strict=True):
            torch.testing.assert_close(encoder(image), features, rtol=0, atol=1e-5)


@needs_graphs
@pytest.mark.parametrize('dtype', [
    torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_onednn_graphs_give_the_reference_s_features(state_dict, dtype):
    if not can_compile(dtype):
        pytest.skip(can_compile(dtype).why_not)
    encoder = build_image_encoder(state_dict, 'reference')
    images = [engine.known_image((96, 128)).repeat(count, 1, 1, 1) for count in (1, 2, 3)]
    with torch.inference_mode():
        expected = [encoder(batch) for batch in images]
        encoder.trunk, encoder.dtype = GraphedResNet(encoder.trunk.to(dtype)), dtype

        def see(i):
            with torch.inference_mode():
                return encoder(images[i])
        with ThreadPoolExecutor(4) as pool:  # no number of images is prepared
            order = [0, 1, 2, 2, 1, 0]
            for i, found in zip(order, pool.map(see, order), strict=True):
                assert engine.difference(found, expected[i]) <= engine.TOLERANCES[dtype]


@needs_graphs
def test_onednn_graphs_leave_torchscript_as_it_was(state_dict):
    for before in (True, False):
        torch.jit.enable_onednn_fusion(before)
        trunk = GraphedResNet(build_image_encoder(state_dict, 'reference').trunk)
        with torch.inference_mode():
            trunk(engine.known_image((96, 128)))
        assert torch._C._jit_llga_enabled() == before


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_give_no_finite_features_are_named(state_dict, value):
    broken = {**state_dict, 'visual.layer4.0.conv3.weight':
              torch.full_like(state_dict['visual.layer4.0.conv3.weight'], value)}
    for dtype, error in ((torch.float32, WeightsError), (torch.bfloat16, EngineError)):
        with pytest.raises(error, match=r'^my\.pt: .*100\.00% of the features'):
            engine.install(build_image_encoder(broken, 'reference'), dtype, CPU, (96, 128),
                           lambda _: None, 'my.pt')


@pytest.mark.parametrize('has', [False, True])
def test_bfloat16_runs_where_the_processor_has_it(build, monkeypatch, has):
    """However fast it is: the numbers of a machine stay the same."""
    monkeypatch.setattr(device, 'cpu_has_bfloat16', lambda: has)
    said = []
    dtype, because = resolve_precision('bfloat16', CPU, said.append)
    assert dtype == (torch.bfloat16 if has else torch.float32)
    assert bool(said) == bool(because) == (not has)
    if not has:
        assert 'WARNING: precision: bfloat16, but this processor has no arithmetic' in said[0]
        estimator = build(precision='bfloat16')
        assert (estimator.precision, estimator.precision_because) == ('float32', because)


# `depthclip doctor` -------------------------------------------------------------------------


class Liar(nn.Module):
    """The reference's features, but for what `change` does to them."""

    def __init__(self, trunk, change):
        super().__init__()
        self.trunk, self.change = trunk, change

    def forward(self, images):
        return self.change(self.trunk(images))


LIES = {
    'the truth': lambda x: x,
    'mirrored': lambda x: x.flip(3),
    'channels in another order': lambda x: x.roll(1, 1),
    'one patch off': lambda x: x.index_fill(2, torch.tensor([0]), 0.5),
    'slightly noisy': lambda x: x + 0.05 * x.std() * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize('lie', LIES)
def test_the_doctor_finds_wrong_features(monkeypatch, lie):
    ways = engine._ways
    monkeypatch.setattr(engine, '_ways', lambda *given: [
        (name, lambda build=build: Liar(build(), LIES[lie])) for name, build in ways(*given)])
    monkeypatch.setattr(doctor, 'run_probe', lambda _: doctor.Probe(
        0, json.dumps(proof.prove()), ''))
    exact, *_ = doctor.check_network()
    assert exact.status == (doctor.OK if lie == 'the truth' else doctor.FAIL), exact
    assert 'float32' in exact.detail


def test_the_doctor_says_where_a_precision_is_slower(monkeypatch):
    way = {'engine': 'oneDNN', 'difference': 1e-3, 'rounding': 0.05}
    monkeypatch.setattr(doctor, 'run_probe', lambda _: doctor.Probe(0, json.dumps([
        {**way, 'precision': 'float32', 'seconds': 0.2, 'rounding': 1e-2},
        {**way, 'precision': 'bfloat16', 'seconds': 0.4}]), ''))
    fast, slow = doctor.check_network()
    assert (fast.status, slow.status) == (doctor.OK, doctor.WARN)
    assert slow.fix == 'precision: float32'


# Builds of torch that bring less ------------------------------------------------------------


@pytest.fixture
def lacking(monkeypatch):
    """Let torch lack one of oneDNN's operators, which are private: a build may not bring them."""
    operators = torch.ops.mkldnn

    def lack(missing):
        class Lacking:
            def __getattr__(self, name):
                if name == missing:
                    raise AttributeError(f"'_OpNamespace' object has no attribute '{name}'")
                return getattr(operators, name)
        can_fuse.cache_clear()
        for module in (resnet, winograd):
            monkeypatch.setattr(module, '_ONEDNN', Lacking())
    yield lack
    monkeypatch.undo()
    can_fuse.cache_clear()


@needs_fused
@pytest.mark.parametrize('operator', [
    '_convolution_pointwise', '_convolution_pointwise_', '_reorder_convolution_weight'])
def test_each_operator_that_is_missing_leaves_the_plain_steps(
        build, build_reference, lacking, operator):
    """Even one that is not asked for before the first image goes through."""
    expected = build_reference().predict(IMAGES[0]).depth
    lacking(operator)
    said = []
    estimator = build(said.append)
    assert estimator.engine == 'torch'
    assert any(text.startswith('WARNING: oneDNN does not run') and 'torch, which is slower' in text
               and operator in text for text in said)
    np.testing.assert_allclose(estimator.predict(IMAGES[0]).depth, expected, rtol=0, atol=1e-4)


@needs_fused
@pytest.mark.parametrize('fails', [lambda x: x.shape[2] > 4, lambda x: len(x) > 1],
                         ids=['of that size', 'of that number'])
def test_an_operator_that_breaks_on_real_images_is_passed_over(build, monkeypatch, fails):
    """A probe of four pixels would have let it pass."""
    relu = resnet.OneDnnConvolution.relu

    def breaks(self, x):
        if fails(x):
            raise RuntimeError('could not create a primitive')
        return relu(self, x)
    assert can_fuse(torch.float32)
    monkeypatch.setattr(resnet.OneDnnConvolution, 'relu', breaks)
    monkeypatch.setattr(resnet, 'images_at_once', lambda dtype: 2)
    said = []
    estimator = build(said.append, flip_average=True)
    assert estimator.engine == 'torch'
    assert any('could not create a primitive' in text for text in said)
    assert np.isfinite(estimator.predict(IMAGES[0]).depth).all()


@needs_fused
@needs_graphs
@pytest.mark.parametrize('name', ['torch._C._jit_llga_enabled', 'torch.jit.freeze'])
def test_each_piece_of_torchscript_that_is_missing_leaves_the_operators(
        state_dict, monkeypatch, name):
    monkeypatch.setattr(engine, 'cpu_has_amx', lambda: True)
    monkeypatch.delattr(name)
    monkeypatch.setattr(resnet, 'images_at_once', lambda dtype: 1)
    encoder, said = build_image_encoder(state_dict, 'reference'), []
    ran = engine.install(encoder, torch.bfloat16, CPU, (96, 128), said.append)
    assert ran in ('oneDNN', 'torch')  # as far as this processor has bfloat16
    assert said[0].startswith('WARNING: oneDNN graph does not run')
    assert name.rpartition('.')[2] in said[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU on this machine')
@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_graph_equals_the_uncaptured_run(state_dict, tmp_path, precision):
    estimator = DepthEstimator(
        SMALL.replace(precision=precision), state_dict, 'cuda', cache_dir=tmp_path)
    reference = DepthEstimator(SMALL, state_dict, 'cpu', cache_dir=tmp_path)
    uncaptured = estimator.predict(IMAGES)
    for _ in range(2):
        for a, b in zip(estimator.predict(IMAGES), uncaptured, strict=True):
            np.testing.assert_allclose(a.depth, b.depth, rtol=0, atol=1e-3)
    tolerance = 1e-4 if precision == 'float32' else 0.05
    for image in IMAGES:
        np.testing.assert_allclose(estimator.predict(image).depth,
                                   reference.predict(image).depth, rtol=0, atol=tolerance)
