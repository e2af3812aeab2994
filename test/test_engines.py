# SPDX-License-Identifier: Apache-2.0
"""Every engine gives the reference's features, and one that does not is refused."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clip_standin
import lesser_cpu
import numpy as np
import pytest
import torch
from torch import nn

from depthclip_ros.core import (
    DepthConfig,
    DepthEstimator,
    EngineError,
    WeightsError,
    device,
    engines,
    onednn_graph,
    resnet,
)
from depthclip_ros.core.backbone import build_image_encoder
from depthclip_ros.core.clip_package import import_clip
from depthclip_ros.core.device import cpu_has_bfloat16, resolve_precision, try_out
from depthclip_ros.core.files import read_sealed, write_sealed
from depthclip_ros.core.resnet import FoldedResNet, can_fuse

ROOT = Path(__file__).resolve().parents[1]
SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(3)]
CPU = torch.device('cpu')
SPEED = device.bfloat16_speed.__wrapped__

pytestmark = pytest.mark.usefixtures('fast_bfloat16')


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


needs_compiler = pytest.mark.skipif(
    shutil.which('c++') is None and shutil.which('g++') is None,
    reason='torch.compile needs a C++ compiler, and there is none')
needs_fused, needs_graphs, needs_bfloat16_graphs = (
    pytest.mark.skipif(not able, reason=able.why_not) for able in (
        can_fuse(torch.float32), can_compile(torch.float32), can_compile(torch.bfloat16)))
needs_bfloat16 = pytest.mark.skipif(
    not cpu_has_bfloat16(), reason='this processor has no arithmetic for bfloat16')
ENGINES = ['torch', pytest.param('onednn', marks=needs_graphs),
           pytest.param('compile', marks=[needs_compiler, pytest.mark.slow])]


@pytest.fixture(scope='module')
def build(state_dict, tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache')  # the words are the same in all tests

    def make(log=lambda text: None, **changes):
        return DepthEstimator(
            SMALL.replace(**changes), state_dict, 'cpu', cache_dir=folder, log=log)
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


@needs_bfloat16
@pytest.mark.parametrize('engine', ['eager', *ENGINES])
def test_bfloat16_engines_stay_near_it(build, engine):
    if engine == 'onednn' and not can_compile(torch.bfloat16):
        pytest.skip(can_compile(torch.bfloat16).why_not)
    expected = build(engine='eager').predict(IMAGES[0]).depth
    difference = abs(build(engine=engine, precision='bfloat16').predict(IMAGES[0]).depth
                     - expected)
    assert 0 < np.median(difference) < 0.05


@pytest.mark.parametrize(('amx', 'precision', 'calls'),
                         [(True, 'bfloat16', [2, 1]), (True, 'float32', [1, 1, 1]),
                          (False, 'bfloat16', [1, 1, 1])])
def test_a_batch_goes_in_the_parts_that_are_fastest(build, monkeypatch, amx, precision, calls):
    if not can_fuse(getattr(torch, precision)):
        pytest.skip(can_fuse(getattr(torch, precision)).why_not)
    monkeypatch.setattr('depthclip_ros.core.device.cpu_has_bfloat16', lambda: True)
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


@pytest.mark.parametrize('features', ['attnpool', 'crops'])
@pytest.mark.parametrize('engine', ['torch', pytest.param('onednn', marks=needs_graphs)])
def test_engines_serve_all_features(build, engine, features):
    reference = build(engine='eager', features=features, flip_average=True)
    estimator = build(engine=engine, features=features, flip_average=True)
    for found, expected in zip(
            estimator.predict(IMAGES), reference.predict(IMAGES), strict=True):
        np.testing.assert_allclose(found.depth, expected.depth, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=2e-3)


def test_an_engine_that_lies_of_crops_is_refused(build, monkeypatch):
    replace(monkeypatch, 'torch', lambda trunk: Liar(trunk, LIES['channels in another order']))
    with pytest.raises(EngineError, match='engine: torch gives wrong features'):
        build(engine='torch', features='crops')


ARCHITECTURES = {
    'ResNet': (clip_standin.TINY, 'reference'),
    'deeper ResNet': ({**clip_standin.TINY, 'layers': (2, 1, 2, 1)}, 'maskclip'),
    'wider ResNet': ({**clip_standin.TINY, 'width': 12, 'embed_dim': 96}, 'reference'),
    'ViT, patches of 32': ({**clip_standin.TINY_VIT, 'patch': 32}, 'maskclip'),
    'ViT, patches of 16': (clip_standin.TINY_VIT, 'maskclip'),
    'ViT, patches of 14': ({**clip_standin.TINY_VIT, 'patch': 14, 'resolution': 56,
                            'width': 128}, 'maskclip'),
    'attention pool': (clip_standin.TINY, 'attnpool'),
    'crops': (clip_standin.TINY, 'crops'),
    'ViT, mixing': (clip_standin.TINY_VIT, 'attnpool'),
    'ViT, crops': (clip_standin.TINY_VIT, 'crops'),
}


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize(('architecture', 'engine'), [
    *((name, 'auto') for name in ARCHITECTURES), ('ResNet', 'eager')])
def test_every_architecture_in_every_precision(architecture, precision, engine):
    """In half on a CPU, too: there it is slow, but the numbers are those of a GPU."""
    shape, features = ARCHITECTURES[architecture]
    encoder = build_image_encoder(clip_standin.state_dict(0, **shape), features)
    dtype, size = getattr(torch, precision), (3 * encoder.stride, 4 * encoder.stride)
    images = engines.known_image(size).expand(2, -1, -1, -1)
    with torch.inference_mode():
        expected = encoder(images)
        engines.install(encoder, engine, dtype, CPU, size, lambda _: None)
        seen = nn.functional.interpolate(images, encoder.trunk_size or size).to(dtype)
        assert encoder.trunk(seen).dtype == dtype
        found = encoder(images)
    assert found.dtype == torch.float32
    difference = (found - expected).norm() / expected.norm()
    assert difference <= engines.TOLERANCES[dtype]
    same = precision == 'float32' and (engine == 'eager' or 'ViT' in architecture)
    assert (difference == 0) == same
    norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.weight.dtype for norm in norms} <= {torch.float32}
    assert bool(norms) == ('ViT' in architecture)


def test_auto_is_torch(build):
    assert build().engine == 'torch'


@needs_bfloat16_graphs
@needs_bfloat16
@pytest.mark.parametrize(('amx', 'engine'), [(True, 'onednn'), (False, 'torch')])
def test_auto_is_onednn_for_bfloat16_with_amx(build, monkeypatch, amx, engine):
    monkeypatch.setattr(engines, 'cpu_has_amx', lambda: amx)
    assert build().engine == 'torch', 'float32'
    said = []
    assert build(said.append, precision='bfloat16').engine == engine
    assert not any(text.startswith('WARNING') for text in said)


def test_onednn_that_compiles_nothing_is_passed_over(build, monkeypatch):
    monkeypatch.setattr(engines, 'automatic', lambda *_: ['onednn', 'torch', 'eager'])
    monkeypatch.setattr(onednn_graph, '_FUSED', 'what no torch says')
    said = []
    assert build(log=said.append).engine == 'torch'
    with pytest.raises(EngineError, match='does not run here'):
        build(engine='onednn')
    assert any(text.startswith('WARNING: engine: onednn does not run here (')
               and text.endswith('Going on with engine: torch.') for text in said)


@needs_graphs
def test_onednn_leaves_torchscript_as_it_was(build):
    for before in (True, False):
        torch.jit.enable_onednn_fusion(before)
        build(engine='onednn')
        assert torch._C._jit_llga_enabled() == before


@needs_graphs
def test_onednn_serves_threads_that_come_at_once(build):
    estimator = build(engine='onednn')
    expected = [build(engine='torch').features(IMAGES[:count]) for count in (1, 2, 3)]
    with ThreadPoolExecutor(4) as pool:  # none of these numbers of images is prepared but one
        for _ in range(3):
            found = list(pool.map(lambda count: estimator.features(IMAGES[:count]),
                                  [1, 2, 3, 3, 2, 1]))
            for features, like in zip(found, [*expected, *expected[::-1]], strict=True):
                torch.testing.assert_close(features, like, rtol=0, atol=1e-5)


def test_folded_network_equals_clips_own(state_dict):
    encoder = build_image_encoder(state_dict, 'reference')
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = encoder.trunk(images)
        engines.install(encoder, 'torch', torch.float32, CPU, (96, 128), lambda _: None)
        found = encoder.trunk(images)
    assert isinstance(encoder.trunk, FoldedResNet)
    fused = type(encoder.trunk.stem[0]).__name__ == 'OneDnnConvolution'
    assert fused == bool(can_fuse(torch.float32))
    torch.testing.assert_close(found.contiguous(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('whole', [False, True])
def test_weights_in_half_precision_are_folded_as_if_in_single(state_dict, whole):
    """Where only the convolutions are, as in OpenAI's files, and where all is."""
    half = {name: tensor.half() if whole or tensor.dim() == 4 else tensor
            for name, tensor in state_dict.items()}
    exact = FoldedResNet(build_image_encoder(half, 'reference').trunk).state_dict()
    folded = FoldedResNet(build_image_encoder(half, 'reference', as_is=True).trunk).state_dict()
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
        engines.install(encoder, 'torch', torch.float32, CPU, (96, 128), lambda _: None)
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
    'one patch off': lambda x: x.index_fill(2, torch.tensor([0]), 0.5),
    'slightly noisy': lambda x: x + 0.05 * x.std() * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(2)),
}


def replace(monkeypatch, name, build):
    """Let an engine run what `build` makes of CLIP's own trunk; the others stay."""
    original = engines.build_trunk
    monkeypatch.setattr(engines, 'build_trunk', lambda engine, trunk, *rest, **fused: (
        build(trunk) if engine == name else original(engine, trunk, *rest, **fused)))


@pytest.mark.parametrize('lie', LIES)
def test_an_engine_that_lies_is_refused(build, monkeypatch, lie):
    replace(monkeypatch, 'torch', lambda trunk: Liar(trunk, LIES[lie]))
    with pytest.raises(EngineError, match=r'engine: torch gives wrong features.*another engine'):
        build(engine='torch')


OVERFLOWS = {
    'not a number': lambda x: x * float('nan'),
    'infinite': lambda x: x.index_fill(1, torch.tensor([4]), float('inf')),
    'one patch': lambda x: x.index_fill(2, torch.tensor([1]), float('nan')),
}


@pytest.mark.parametrize('overflow', OVERFLOWS)
def test_an_engine_that_overflows_is_refused(build, monkeypatch, overflow):
    replace(monkeypatch, 'torch', lambda trunk: Liar(trunk, OVERFLOWS[overflow]))
    with pytest.raises(EngineError, match=r'engine: torch gives features .*% are NaN or inf.*Use'):
        build(engine='torch')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('engine', ['auto', 'eager'])
def test_weights_that_give_no_finite_features_are_named(state_dict, engine, value):
    """Even if every engine agrees with the reference."""
    broken = build_image_encoder(
        {**state_dict, 'visual.layer4.0.conv3.weight':
         torch.full_like(state_dict['visual.layer4.0.conv3.weight'], value)}, 'reference')
    with pytest.raises(WeightsError, match=r'^my\.pt: .*100\.00% of the features'):
        engines.install(
            broken, engine, torch.float32, CPU, (96, 128), lambda _: None, 'my.pt')


def test_auto_passes_over_a_liar_and_says_so(build, monkeypatch):
    expected = build(engine='eager').predict(IMAGES[0]).depth
    replace(monkeypatch, 'torch', lambda trunk: Liar(trunk, LIES['mirrored']))
    said = []
    estimator = build(log=said.append)
    assert estimator.engine == 'eager'
    assert any(text.startswith('WARNING: engine: torch gives wrong features') for text in said)
    np.testing.assert_array_equal(estimator.predict(IMAGES[0]).depth, expected)


# What is kept of the reference -------------------------------------------------------------------


@pytest.fixture
def filled(state_dict, tmp_path, monkeypatch):
    """Builds estimators on a cache that one has filled; and the file that it wrote.

    From then on CLIP's own network, the reference, counts how often it runs.
    """
    def make(log=lambda text: None, **changes):
        return DepthEstimator(
            SMALL.replace(**changes), state_dict, 'cpu', cache_dir=tmp_path / 'cache', log=log)

    asked = []
    network = import_clip().model.Bottleneck
    forward = network.forward
    make(engine='torch')
    monkeypatch.setattr(network, 'forward', lambda *inputs: asked.append(1) or forward(*inputs))
    path, = (tmp_path / 'cache/reference').iterdir()
    return make, path, asked


def test_a_start_from_the_cache_does_not_ask_the_reference(build, filled):
    make, path, asked = filled
    before = path.stat()
    found = make(engine='torch').predict(IMAGES[0])
    assert not asked
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    np.testing.assert_allclose(
        found.depth, build(engine='eager').predict(IMAGES[0]).depth, rtol=0, atol=1e-4)


@pytest.mark.parametrize('change', [
    {'input_width': 160}, {'features': 'maskclip'}, 'weights', 'torch', 'instructions'])
def test_what_changes_the_reference_asks_it_again(filled, monkeypatch, state_dict, change):
    make, path, asked = filled
    if change == 'torch':
        monkeypatch.setattr(torch, '__version__', '99.0')
    elif change == 'instructions':
        monkeypatch.setattr(torch.__config__, 'show', lambda: 'CPU capability usage: NEON')
    elif change == 'weights':
        name = 'visual.conv1.weight'
        monkeypatch.setitem(state_dict, name, state_dict[name].flip(0))
    make(**(change if isinstance(change, dict) else {}))
    assert asked
    assert len(list(path.parent.iterdir())) == 2


def sealed(numbers):
    def write(path):
        write_sealed(path, numbers(path).astype('<f4').tobytes())
    return write


def numbers_of(path):
    return np.frombuffer(read_sealed(path, 1 << 20), '<f4')


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def tamper(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def foreign(path):
    other = path.with_name('0' * 32 + engines.KNOWN_SUFFIX)
    write_sealed(other, read_sealed(path, 1 << 20))
    other.replace(path)


def folder_instead(path):
    path.unlink()
    path.mkdir()


UNUSABLE = {
    'cut off': cut, 'empty': lambda path: path.write_bytes(b''), 'tampered with': tamper,
    'of something else': foreign, 'a folder': folder_instead,
    'of another size': sealed(lambda path: numbers_of(path)[:-1]),
    'of no size': sealed(lambda path: numbers_of(path)[:0]),
    'of other channels': sealed(lambda path: numbers_of(path)[:12 * 2]),
    'not a number': sealed(lambda path: numbers_of(path) * np.float32('nan')),
}
WRONG = {'stale': sealed(lambda path: numbers_of(path)[::-1])}


@pytest.mark.parametrize('fault', [*UNUSABLE, *WRONG])
def test_what_is_kept_can_be_wrong_and_depth_is_right(build, filled, fault):
    make, path, asked = filled
    ({**UNUSABLE, **WRONG}[fault])(path)
    said = []
    found = make(said.append, engine='torch')
    assert found.engine == 'torch'
    assert asked  # the reference has decided
    warned = [text for text in said if text.startswith('WARNING')]
    assert any('computed again' in text for text in warned) == (fault in UNUSABLE), said
    np.testing.assert_allclose(
        found.predict(IMAGES[0]).depth, build(engine='eager').predict(IMAGES[0]).depth,
        rtol=0, atol=1e-4)
    if fault != 'a folder':  # which nothing can replace; all else is mended
        asked.clear()
        make(engine='torch')
        assert not asked


def test_an_unwritable_folder_costs_time_only(filled):
    make, path, asked = filled
    path.unlink()
    path.parent.rmdir()
    path.parent.write_bytes(b'')  # which keeps root out, too
    said = []
    assert make(said.append, engine='torch').engine == 'torch'
    assert asked
    assert any(text.startswith('WARNING: cannot keep') for text in said)


@pytest.mark.parametrize('engine', ['torch', 'auto'])
def test_what_is_kept_lets_no_liar_pass(filled, monkeypatch, engine):
    make, _, asked = filled
    replace(monkeypatch, 'torch', lambda trunk: Liar(trunk, LIES['slightly noisy']))
    asked.clear()
    said = []
    if engine == 'torch':
        with pytest.raises(EngineError, match='engine: torch gives wrong features'):
            make(said.append, engine=engine)
    else:
        assert make(said.append, engine=engine).engine == 'eager'
        assert sum('engine: torch gives wrong features' in text for text in said) == 1
    assert asked


def test_what_only_a_liar_contradicts_is_not_kept(state_dict, tmp_path, monkeypatch):
    """Only two that agree are believed."""
    replace(monkeypatch, 'torch', lambda trunk: Liar(trunk, LIES['mirrored']))
    assert DepthEstimator(SMALL, state_dict, 'cpu', cache_dir=tmp_path).engine == 'eager'
    assert not (tmp_path / 'reference').exists()


def test_an_engine_that_breaks_says_what_broke(build, monkeypatch):
    def broken(*_):
        raise RuntimeError('no such\ninstruction')
    replace(monkeypatch, 'compile', broken)
    with pytest.raises(EngineError, match=r'compile does not run here \(RuntimeError: no such i'):
        build(engine='compile')


@pytest.mark.parametrize(('has', 'speed', 'taken', 'why'), [
    (False, 2.4, 'float32', 'instead of bfloat16: this processor has no fast arithmetic for it'),
    (True, 0.5, 'float32', "instead of bfloat16: this processor's products in it take 2.0 times"),
    (True, 2.4, 'bfloat16', "its products are 2.4 times as fast as float32's here")])
def test_bfloat16_is_taken_only_where_it_is_fast(build, monkeypatch, has, speed, taken, why):
    monkeypatch.setattr(device, 'cpu_has_bfloat16', lambda: has)
    monkeypatch.setattr(device, 'bfloat16_speed', lambda: speed)
    said = []
    dtype, because = resolve_precision('bfloat16', CPU, said.append)
    assert dtype == getattr(torch, taken)
    assert because.startswith(why)
    assert said[0].startswith('WARNING: ' * (taken == 'float32') + 'precision: bfloat16')
    assert because.removeprefix('instead of bfloat16: ') in said[0]
    assert (' float32 runs instead' in said[0]) == (taken == 'float32')
    if taken == 'float32':
        estimator = build(precision='bfloat16')
        assert (estimator.precision, estimator.precision_because) == (taken, because)
        assert not build().precision_because


def test_the_speed_of_bfloat16_is_measured(monkeypatch):
    """A convolution that dawdles in one format by so much shows in the ratio."""
    convolve = torch.conv2d

    def slow(images, weight):
        for _ in range(8 if images.dtype == torch.bfloat16 else 1):
            result = convolve(images, weight)
        return result

    plain = SPEED()
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, 'conv2d', slow)
    assert 1 / 20 < SPEED() / plain < 1 / 3
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize('able', [True, False])
@pytest.mark.parametrize(('machine', 'torch_knows'), [('x86_64', False), ('aarch64', True)])
def test_where_torch_cannot_tell_a_convolution_is_tried(monkeypatch, machine, torch_knows, able):
    monkeypatch.setattr('platform.machine', lambda: machine)
    if not torch_knows:
        monkeypatch.delattr(torch.cpu, '_is_avx512_bf16_supported', raising=False)
    monkeypatch.setattr(resnet, 'can_fuse', lambda dtype: dtype == torch.bfloat16 and able)
    assert cpu_has_bfloat16() == able


# Processors and builds of torch that can do less --------------------------------------------


@pytest.fixture
def pretend(monkeypatch):
    """Let torch be one of the lesser kinds until the test ends."""
    def become(kind, **missing):
        can_fuse.cache_clear()
        lesser_cpu.pretend(kind, monkeypatch.setattr, monkeypatch.delattr, **missing)
    yield become
    monkeypatch.undo()
    can_fuse.cache_clear()


as_it_is = pytest.mark.skipif(
    lesser_cpu.VARIABLE in os.environ, reason='the whole suite pretends already')


# What is said of a precision, and which convolutions run.
LESSER = [('plain', 'float32', 'has no attribute', 'Convolution'),
          pytest.param('plain', 'bfloat16', 'has no attribute', 'Convolution',
                       marks=needs_bfloat16),
          ('avx2', 'float32', None, 'OneDnnConvolution'),
          ('avx2', 'bfloat16', None, 'OneDnnConvolution')]


@as_it_is
@pytest.mark.parametrize('engine', ['auto', 'torch'])
@pytest.mark.parametrize(('kind', 'precision', 'why', 'convolution'), LESSER)
def test_the_same_depth_where_operators_are_missing(
        build, pretend, engine, kind, precision, why, convolution):
    expected = [build(engine='eager', precision=precision).predict(image).depth
                for image in IMAGES]
    pretend(kind)
    said = []
    estimator = build(said.append, engine=engine, precision=precision)
    assert estimator.engine == 'torch'
    assert type(estimator._encoder.trunk.stem[0]).__name__ == convolution
    slower = [text for text in said if 'plain, slower steps' in text]
    assert len(slower) == (why is not None)
    for text in slower:
        assert text.startswith('WARNING: engine: torch')
        assert why in text
        assert ('float32 is faster' in text) == (precision == 'bfloat16')
    tolerance = 1e-4 if precision == 'float32' else 0.05
    for found, depth in zip(estimator.predict(IMAGES), expected, strict=True):
        assert np.median(abs(found.depth - depth)) < tolerance


@as_it_is
def test_onednn_where_torchscript_has_no_fusion(build, pretend):
    pretend('plain')
    with pytest.raises(EngineError, match=r'onednn does not run here \(AttributeError: .*llga'):
        build(engine='onednn')


@as_it_is
def test_auto_with_amx_goes_on_where_nothing_private_is_left(build, pretend, monkeypatch):
    pretend('plain')
    monkeypatch.setattr(engines, 'cpu_has_amx', lambda: True)
    said = []
    assert build(said.append, precision='bfloat16').engine == 'torch'
    assert any(text.endswith('Going on with engine: torch.') for text in said)


@as_it_is
@needs_fused
@pytest.mark.parametrize('operator', lesser_cpu.FUSED)
def test_each_operator_that_is_missing_leaves_the_plain_steps(build, pretend, operator):
    """Even one that is not asked for before the first image goes through."""
    expected = build(engine='eager').predict(IMAGES[0]).depth
    pretend('plain', missing=[operator])
    said = []
    estimator = build(said.append)
    assert estimator.engine == 'torch'
    assert type(estimator._encoder.trunk.stem[0]).__name__ == 'Convolution'
    assert any('plain, slower steps' in text and operator in text for text in said)
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


@as_it_is
@needs_graphs
@pytest.mark.parametrize('name', lesser_cpu.TORCHSCRIPT)
def test_each_piece_of_torchscript_that_is_missing_leaves_the_operators(
        build, pretend, monkeypatch, name):
    pretend('plain', missing=[], torchscript=[name])
    with pytest.raises(EngineError, match='onednn does not run here'):
        build(engine='onednn')
    monkeypatch.setattr(engines, 'automatic', lambda *_: ['onednn', 'torch', 'eager'])
    said = []
    estimator = build(said.append)
    assert estimator.engine == 'torch'
    assert type(estimator._encoder.trunk.stem[0]).__name__ == 'OneDnnConvolution'
    assert any(text.startswith('WARNING: engine: onednn does not run here (')
               and name.rpartition('.')[2] in text for text in said)


@as_it_is
@pytest.mark.parametrize('engine', ['auto', 'eager', 'torch'])
def test_without_instructions_for_it_bfloat16_is_float32_and_that_is_said(build, pretend, engine):
    """And so never slower than what was not asked for."""
    expected = build(engine=engine).predict(IMAGES[0]).depth
    pretend('avx2')
    said = []
    estimator = build(said.append, engine=engine, precision='bfloat16')
    assert estimator.precision == 'float32'
    assert [text for text in said if text.startswith('WARNING')] == [
        text for text in said if 'has no fast arithmetic for it' in text] != []
    np.testing.assert_array_equal(estimator.predict(IMAGES[0]).depth, expected)


@as_it_is
@pytest.mark.parametrize('kind', lesser_cpu.KINDS)
def test_other_processes_pretend_too(kind):
    """As `pytest --cpu` starts them: torch is not imported before somebody does."""
    code = ('import sys; assert "torch" not in sys.modules; import torch\n'
            'from depthclip_ros.core.resnet import can_fuse\n'
            'print(*map(bool, map(can_fuse, (torch.float32, torch.bfloat16))))')
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, lesser_cpu.VARIABLE: kind,
             'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'test/lesser_cpu')])})
    expected = kind == 'avx2' and bool(can_fuse(torch.float32))
    assert done.stdout.split() == [str(expected), 'False']


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
