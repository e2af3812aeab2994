# SPDX-License-Identifier: Apache-2.0
"""Every engine gives the reference's features, and one that does not is refused."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import clip_standin
import numpy as np
import pytest
import torch
from torch import nn

from depthclip_ros.core import (
    DepthConfig,
    DepthEstimator,
    EngineError,
    engines,
    onednn_graph,
    resnet,
)
from depthclip_ros.core.backbone import build_image_encoder
from depthclip_ros.core.device import cpu_has_bfloat16, resolve_precision
from depthclip_ros.core.resnet import FoldedResNet

SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(3)]
CPU = torch.device('cpu')

needs_compiler = pytest.mark.skipif(
    shutil.which('c++') is None and shutil.which('g++') is None,
    reason='torch.compile needs a C++ compiler, and there is none')
needs_onednn = pytest.mark.skipif(not engines.has_onednn(), reason='torch without oneDNN')
needs_bfloat16 = pytest.mark.skipif(
    not cpu_has_bfloat16(), reason='this processor has no arithmetic for bfloat16')
ENGINES = ['torch', pytest.param('onednn', marks=needs_onednn),
           pytest.param('compile', marks=[needs_compiler, pytest.mark.slow])]


@pytest.fixture(scope='module')
def state_dict():
    return clip_standin.tiny_state_dict()


@pytest.fixture
def build(state_dict, tmp_path):
    def make(log=lambda text: None, **changes):
        return DepthEstimator(
            SMALL.replace(**changes), state_dict, 'cpu', cache_dir=tmp_path, log=log)
    return make


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('engine', ENGINES)
def test_float32_engines_equal_the_reference(build, engine, flip):
    reference = build(engine='eager', flip_average=flip)
    estimator = build(engine=engine, flip_average=flip)
    assert (reference.engine, estimator.engine) == ('eager', engine)
    for images in (IMAGES[:1], IMAGES):
        for found, expected in zip(
                estimator.predict(images), reference.predict(images), strict=True):
            np.testing.assert_allclose(found.depth, expected.depth, rtol=0, atol=1e-4)
            np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=2e-3)


@pytest.mark.parametrize('engine', ['eager', *ENGINES])
def test_bfloat16_engines_stay_near_it(build, engine):
    if engine == 'onednn' and not cpu_has_bfloat16():
        pytest.skip('this processor has no arithmetic for bfloat16, and oneDNN no graph')
    expected = build(engine='eager').predict(IMAGES[0]).depth
    difference = abs(build(engine=engine, precision='bfloat16').predict(IMAGES[0]).depth
                     - expected)
    assert 0 < np.median(difference) < 0.05


@pytest.mark.parametrize(('amx', 'precision', 'calls'),
                         [(True, 'bfloat16', [2, 1]), (True, 'float32', [1, 1, 1]),
                          (False, 'bfloat16', [1, 1, 1])])
def test_a_batch_goes_in_the_parts_that_are_fastest(build, monkeypatch, amx, precision, calls):
    monkeypatch.setattr(resnet, 'cpu_has_amx', lambda: amx)
    estimator = build(engine='torch', precision=precision, flip_average=False)
    alone = [estimator.predict(image).depth for image in IMAGES]
    sizes, features = [], FoldedResNet._features
    monkeypatch.setattr(FoldedResNet, '_features',
                        lambda self, x: sizes.append(len(x)) or features(self, x))
    together = estimator.predict(IMAGES)
    assert sizes == calls
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(
            found.depth, expected, rtol=0, atol=1e-4 if precision == 'float32' else 0.02)


def test_auto_is_torch(build):
    assert build().engine == 'torch'


@needs_onednn
@needs_bfloat16
@pytest.mark.parametrize(('amx', 'engine'), [(True, 'onednn'), (False, 'torch')])
def test_auto_is_onednn_for_bfloat16_with_amx(build, monkeypatch, amx, engine):
    monkeypatch.setattr(engines, 'cpu_has_amx', lambda: amx)
    assert build().engine == 'torch', 'float32'
    assert build(precision='bfloat16', log=pytest.fail).engine == engine


@needs_onednn
def test_onednn_that_compiles_nothing_is_passed_over(build, monkeypatch):
    monkeypatch.setattr(engines, 'automatic', lambda *_: ['onednn', 'torch', 'eager'])
    monkeypatch.setattr(onednn_graph, '_FUSED', 'what no torch says')
    said = []
    assert build(log=said.append).engine == 'torch'
    assert any(text.startswith('WARNING: engine: onednn does not run here (RuntimeError: Torch')
               and text.endswith('Going on with engine: torch.') for text in said)
    with pytest.raises(EngineError, match='made no oneDNN graph'):
        build(engine='onednn')


@needs_onednn
def test_onednn_leaves_torchscript_as_it_was(build):
    for before in (True, False):
        torch.jit.enable_onednn_fusion(before)
        build(engine='onednn')
        assert torch._C._jit_llga_enabled() == before


@needs_onednn
def test_onednn_serves_threads_that_come_at_once(build):
    estimator = build(engine='onednn')
    expected = [build(engine='torch').features(IMAGES[:count]) for count in (1, 2, 3)]
    with ThreadPoolExecutor(4) as pool:  # none of these numbers of images is prepared but one
        for _ in range(3):
            found = list(pool.map(lambda count: estimator.features(IMAGES[:count]),
                                  [1, 2, 3, 3, 2, 1]))
            for features, like in zip(found, [*expected, *expected[::-1]], strict=True):
                torch.testing.assert_close(features, like, rtol=0, atol=1e-5)


@pytest.mark.parametrize('onednn', [True, False])
def test_folded_network_equals_clips_own(state_dict, monkeypatch, onednn):
    monkeypatch.setattr(engines, 'has_onednn', lambda: onednn)
    encoder = build_image_encoder(state_dict, 'reference')
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = encoder.trunk(images)
        engines.install(encoder, 'torch', torch.float32, CPU, (96, 128), pytest.fail)
        found = encoder.trunk(images)
    assert isinstance(encoder.trunk, FoldedResNet)
    fused = type(encoder.trunk.stem[0]).__name__ == 'OneDnnConvolution'
    assert fused == onednn
    torch.testing.assert_close(found.contiguous(), expected, rtol=1e-4, atol=1e-4)


def test_packed_weights_serve_every_size_and_number(state_dict):
    encoder = build_image_encoder(state_dict, 'reference')
    sizes = [(1, 3, 64, 96), (3, 3, 160, 32)]
    images = [torch.randn(size, generator=torch.Generator().manual_seed(1)) for size in sizes]
    with torch.inference_mode():
        expected = [encoder(image) for image in images]
        engines.install(encoder, 'torch', torch.float32, CPU, (96, 128), pytest.fail)
        for image, features in zip(images, expected, strict=True):
            torch.testing.assert_close(encoder(image), features, rtol=0, atol=1e-5)


class Liar(nn.Module):
    """The reference's features, but for what `change` does to them."""

    def __init__(self, trunk, change):
        super().__init__()
        self.trunk, self.change = trunk, change

    def forward(self, images):
        return self.change(self.trunk(images))


LIES = {
    'mirrored': lambda x: x.flip(3),
    'channels in another order': lambda x: x.roll(1, 1),
    'not a number': lambda x: x * float('nan'),
    'one patch off': lambda x: x.index_fill(2, torch.tensor([0]), 0.0),
    'slightly noisy': lambda x: x + 0.05 * x.std() * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(2)),
}


def replace(monkeypatch, name, build):
    """Let an engine run what `build` makes of CLIP's own trunk; the others stay."""
    original = engines.build_trunk
    monkeypatch.setattr(engines, 'build_trunk', lambda engine, trunk, *rest: (
        build(trunk) if engine == name else original(engine, trunk, *rest)))


@pytest.mark.parametrize('lie', LIES)
def test_an_engine_that_lies_is_refused(build, monkeypatch, lie):
    replace(monkeypatch, 'torch', lambda trunk: Liar(trunk, LIES[lie]))
    with pytest.raises(EngineError, match=r'engine: torch gives wrong features.*another engine'):
        build(engine='torch')


def test_auto_passes_over_a_liar_and_says_so(build, monkeypatch):
    expected = build(engine='eager').predict(IMAGES[0]).depth
    replace(monkeypatch, 'torch', lambda trunk: Liar(trunk, LIES['mirrored']))
    said = []
    estimator = build(log=said.append)
    assert estimator.engine == 'eager'
    assert any(text.startswith('WARNING: engine: torch gives wrong features') for text in said)
    np.testing.assert_array_equal(estimator.predict(IMAGES[0]).depth, expected)


def test_an_engine_that_breaks_says_what_broke(build, monkeypatch):
    def broken(*_):
        raise RuntimeError('no such\ninstruction')
    replace(monkeypatch, 'compile', broken)
    with pytest.raises(EngineError, match=r'compile does not run here \(RuntimeError: no such i'):
        build(engine='compile')


def test_slow_bfloat16_is_said(monkeypatch):
    said = []
    monkeypatch.setattr('depthclip_ros.core.device.cpu_has_bfloat16', lambda: False)
    assert resolve_precision('bfloat16', CPU, said.append) == torch.bfloat16
    assert said[0].startswith('WARNING: precision: bfloat16')
    monkeypatch.setattr('depthclip_ros.core.device.cpu_has_bfloat16', lambda: True)
    resolve_precision('bfloat16', CPU, pytest.fail)


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
