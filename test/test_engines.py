# SPDX-License-Identifier: Apache-2.0
"""Every engine gives the reference's features, and one that does not is refused."""

from __future__ import annotations

import functools
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
    WeightsError,
    device,
    engines,
    onednn_graph,
    resnet,
    winograd,
)
from depthclip_ros.core.backbone import build_image_encoder
from depthclip_ros.core.clip_package import import_clip
from depthclip_ros.core.device import (
    cpu_has_amx,
    cpu_has_bfloat16,
    resolve_precision,
    try_out,
)
from depthclip_ros.core.files import read_sealed, write_sealed
from depthclip_ros.core.resnet import FoldedResNet, can_fuse

SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(3)]
CPU = torch.device('cpu')

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
needs_fused, needs_graphs = (
    pytest.mark.skipif(not able, reason=able.why_not) for able in (
        can_fuse(torch.float32), can_compile(torch.float32)))
needs_bfloat16 = pytest.mark.skipif(
    not (cpu_has_bfloat16() and can_fuse(torch.bfloat16)),
    reason='this processor has no arithmetic for bfloat16')
ENGINES = ['torch', pytest.param('onednn', marks=needs_graphs),
           pytest.param('compile', marks=[needs_compiler, pytest.mark.nightly])]


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
    expected = build(engine='eager').features(IMAGES[:1])
    estimator = build(engine=engine, precision='bfloat16')
    assert (estimator.engine, estimator.precision) == (engine, 'bfloat16')
    error = (estimator.features(IMAGES[:1]) - expected).norm() / expected.norm()
    assert 0 < error <= engines.TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize('precision', [
    pytest.param('float32', marks=needs_fused), pytest.param('bfloat16', marks=needs_bfloat16)])
def test_a_batch_gives_what_each_image_gives_alone(build, precision):
    """In whatever parts it goes: float32 to its rounding, bfloat16 to a step of its depth."""
    estimator = build(engine='torch', precision=precision, flip_average=False)
    alone = [estimator.predict(image).depth for image in IMAGES]
    step = 2 * torch.finfo(getattr(torch, precision)).eps * max(SMALL.bins)
    for found, expected in zip(estimator.predict(IMAGES), alone, strict=True):
        np.testing.assert_allclose(found.depth, expected, rtol=0, atol=max(1e-4, step))


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
    if precision == 'float32' and (engine == 'eager' or 'ViT' in architecture):
        assert difference == 0  # it is the reference
    norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.weight.dtype for norm in norms} <= {torch.float32}
    assert bool(norms) == ('ViT' in architecture)


def test_auto_is_torch(build):
    assert build().engine == 'torch'


@needs_bfloat16
def test_auto_in_bfloat16_is_onednn_where_there_is_amx(build):
    said = []
    graphs = cpu_has_amx() and can_compile(torch.bfloat16)
    assert build(said.append, precision='bfloat16').engine == ('onednn' if graphs else 'torch')
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


def foreign(path):
    other = path.with_name('0' * 32 + engines.KNOWN_SUFFIX)
    write_sealed(other, read_sealed(path, 1 << 20))
    other.replace(path)


def folder_instead(path):
    path.unlink()
    path.mkdir()


UNUSABLE = {
    'cut off': cut, 'of something else': foreign, 'a folder': folder_instead,
    'of another size': sealed(lambda path: numbers_of(path)[:-1]),
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
    """The decision alone: nothing runs in bfloat16 here."""
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
def test_each_operator_that_is_missing_leaves_the_plain_steps(build, lacking, operator):
    """Even one that is not asked for before the first image goes through."""
    expected = build(engine='eager').predict(IMAGES[0]).depth
    lacking(operator)
    said = []
    estimator = build(said.append)
    assert estimator.engine == 'torch'
    assert any(text.startswith('WARNING: engine: torch') and 'plain, slower steps' in text
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


@needs_graphs
@pytest.mark.parametrize('name', ['torch._C._jit_llga_enabled', 'torch.jit.freeze'])
def test_each_piece_of_torchscript_that_is_missing_leaves_the_operators(build, monkeypatch, name):
    monkeypatch.delattr(name)
    with pytest.raises(EngineError, match='onednn does not run here'):
        build(engine='onednn')
    monkeypatch.setattr(engines, 'automatic', lambda *_: ['onednn', 'torch', 'eager'])
    said = []
    assert build(said.append).engine == 'torch'
    assert any(text.startswith('WARNING: engine: onednn does not run here (')
               and name.rpartition('.')[2] in text for text in said)


@pytest.mark.skipif(cpu_has_bfloat16(), reason='this processor has arithmetic for bfloat16')
@pytest.mark.parametrize('engine', ['auto', 'eager', 'torch'])
def test_without_instructions_for_it_bfloat16_is_float32_and_that_is_said(build, engine):
    """And so never slower than what was not asked for."""
    expected = build(engine=engine).predict(IMAGES[0]).depth
    said = []
    estimator = build(said.append, engine=engine, precision='bfloat16')
    assert estimator.precision == 'float32'
    assert any(text.startswith('WARNING') and 'no fast arithmetic for it' in text for text in said)
    np.testing.assert_allclose(estimator.predict(IMAGES[0]).depth, expected, rtol=0, atol=1e-4)


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
