# SPDX-License-Identifier: Apache-2.0
"""What runs the trunk gives the features of CLIP's own modules; what breaks is passed over."""

from __future__ import annotations

import copy
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import clip_standin
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.utils._python_dispatch import TorchDispatchMode

from depthclip_ros.cli import doctor, proof
from depthclip_ros.cli.proof import clips_own_trunk
from depthclip_ros.core import (
    DepthConfig,
    DepthEstimator,
    EngineError,
    WeightsError,
    engine,
    resnet,
)
from depthclip_ros.core.backbone import build_image_encoder
from depthclip_ros.core.engine import GraphedResNet, GraphedTrunk, can_fuse, cpu_has_bfloat16

SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(3)]
CPU = torch.device('cpu')


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def can_compile(dtype):
    """Whether TorchScript makes oneDNN graphs here in a number format."""
    weight = torch.zeros(8, 8, 1, 1, dtype=dtype)
    network = nn.Sequential(resnet.Convolution(weight, weight[0, :, 0, 0]), nn.ReLU())
    try:
        GraphedResNet(network)(torch.zeros(1, 8, 4, 4, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False
    return True


needs_fused = pytest.mark.skipif(
    not can_fuse(torch.float32), reason="torch lacks oneDNN's operators")
needs_graphs = pytest.mark.skipif(
    not can_compile(torch.float32), reason='TorchScript makes no oneDNN graphs')
needs_bfloat16 = pytest.mark.skipif(
    not (cpu_has_bfloat16() and can_fuse(torch.bfloat16)),
    reason='this processor has no arithmetic for bfloat16')


@pytest.fixture(scope='module')
def build(state_dict, tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache')  # the words are the same in all tests

    def make(log=lambda text: None, **changes):
        return DepthEstimator(SMALL.replace(**changes), state_dict, 'cpu', cache_dir=folder,
                              log=log, num_threads=1)  # others round otherwise
    return make


@pytest.fixture(scope='module')
def plain(build, state_dict):
    """The same on plain operations of torch, as on a GPU."""
    def make(**changes):
        estimator = build(**changes)
        estimator._encoder = build_image_encoder(state_dict, estimator.config.features)
        return estimator
    return make


@pytest.mark.parametrize('precision', [
    pytest.param('float32', marks=needs_fused), pytest.param('bfloat16', marks=needs_bfloat16)])
def test_a_batch_gives_what_each_image_gives_alone(build, precision):
    """In whatever parts it goes: float32 to its rounding, bfloat16 to a step of its depth."""
    estimator = build(precision=precision)
    assert estimator.precision == precision
    alone = [estimator.predict(image).depth for image in IMAGES]
    step = 2 * torch.finfo(getattr(torch, precision)).eps * max(SMALL.bins)
    for found, expected in zip(estimator.predict(IMAGES), alone, strict=True):
        np.testing.assert_allclose(found.depth, expected, rtol=0, atol=max(1e-4, step))


ARCHITECTURES = {
    'ResNet': (clip_standin.TINY, 'reference'),
    'deeper ResNet': ({**clip_standin.TINY, 'layers': (2, 1, 2, 1)}, 'maskclip'),
    'wider ResNet': ({**clip_standin.TINY, 'width': 12, 'embed_dim': 96}, 'reference'),
    'ViT, patches of 32': ({**clip_standin.TINY_VIT, 'patch': 32}, 'maskclip'),
    'ViT, patches of 14': ({**clip_standin.TINY_VIT, 'patch': 14, 'resolution': 56,
                            'width': 128}, 'maskclip'),
    'attention pool': (clip_standin.TINY, 'attnpool'),
    'ViT, mixing': (clip_standin.TINY_VIT, 'attnpool'),
}


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_every_architecture_in_every_precision(architecture, precision):
    """A ResNet beside CLIP's own steps, a transformer beside its modules in float32.

    In half on a CPU, too: there it is slow, but the numbers are those of a GPU. Of other sizes and
    numbers of images, too, than the weights are packed for. (Patches in one column alone make
    oneDNN's convolution in bfloat16 give NaN; nobody has an image of one.)
    """
    shape, features = ARCHITECTURES[architecture]
    weights, dtype = clip_standin.state_dict(0, **shape), getattr(torch, precision)
    encoder, reference = (build_image_encoder(weights, features) for _ in range(2))
    if 'ViT' not in architecture:
        reference.trunk = clips_own_trunk(weights)
    size = 3 * encoder.stride, 4 * encoder.stride
    ran = engine.install(encoder, dtype, CPU, size, lambda _: None)
    if precision == 'float32':
        assert ran == ('torch' if 'ViT' in architecture or not can_fuse(dtype) else 'oneDNN')
    with torch.inference_mode():
        for images in (engine.known_image(size).expand(2, -1, -1, -1),
                       random(3, 3, 5 * encoder.stride, 2 * encoder.stride)):
            assert encoder.trunk(images.to(dtype)).dtype == dtype
            found, expected = encoder(images), reference(images)
            assert found.dtype == torch.float32
            assert engine.difference(found, expected) <= (
                1e-5 if precision == 'float32' else engine.TOLERANCES[dtype])
    norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.weight.dtype for norm in norms} <= {torch.float32}
    assert bool(norms) == ('ViT' in architecture)
    # All is where the network is, as on a GPU: 'meta' is a device, too, and mixes with no other.
    elsewhere = engine.try_known_image(
        build_image_encoder(weights, features).to('meta'), size, torch.device('meta'))
    assert (elsewhere.device.type, elsewhere.shape[2:]) == ('meta', (3, 4))


@needs_fused
@pytest.mark.parametrize(('batch', 'size'), [
    (2, (24, 32)),   # what it is made for
    (1, (13, 17)),   # no multiple of a tile, and fewer tiles
    (1, (50, 70)),   # more, and the last step has fewer rows
    (1, (4, 600)),   # one row of tiles alone is more
    (3, (1, 1)),
])
def test_winograds_algorithm_equals_the_direct_sum(batch, size):
    weight, bias = random(128, 96, 3, 3) / 30, random(128)
    convolution = resnet.WinogradConvolution(
        resnet.Convolution(weight, bias, padding=1), (24, 32))
    x = random(batch, 96, *size, seed=1).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = convolution.relu(x)
        expected = conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
        assert torch.equal(found, convolution.relu(x))
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-5 * expected.norm()


@needs_graphs
@pytest.mark.parametrize('dtype', [
    torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_onednn_graphs_give_the_features_and_leave_torchscript_as_it_was(state_dict, dtype):
    if not can_compile(dtype):
        pytest.skip('TorchScript makes no oneDNN graphs in this format')
    encoder = build_image_encoder(state_dict, 'reference')
    images = [engine.known_image((96, 128)).repeat(count, 1, 1, 1) for count in (1, 2, 3)]
    with torch.inference_mode():
        expected = [encoder(batch) for batch in images]
    encoder.trunk, encoder.dtype = GraphedResNet(encoder.trunk.to(dtype)), dtype
    before = torch._C._jit_llga_enabled()
    torch.jit.enable_onednn_fusion(not before)
    try:
        with ThreadPoolExecutor(4) as pool:  # no number of images is prepared
            order = [0, 1, 2, 2, 1, 0]
            see = torch.inference_mode()(lambda i: encoder(images[i]))
            for i, found in zip(order, pool.map(see, order), strict=True):
                assert engine.difference(found, expected[i]) <= engine.TOLERANCES[dtype]
        assert torch._C._jit_llga_enabled() != before
    finally:
        torch.jit.enable_onednn_fusion(before)


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
    monkeypatch.setattr(engine, 'cpu_has_bfloat16', lambda: has)
    dtype = engine.resolve_precision('bfloat16', CPU, (said := []).append)
    assert dtype == (torch.bfloat16 if has else torch.float32)
    assert bool(said) == (not has)
    if not has:
        assert 'WARNING: precision: bfloat16, but this processor has no arithmetic' in said[0]
        assert build(precision='bfloat16').precision == 'float32'


# `depthclip doctor` -------------------------------------------------------------------------


@pytest.mark.parametrize(('lie', 'status'), [
    (lambda x: x, doctor.OK), (lambda x: x.flip(3), doctor.FAIL),
    (lambda x: x + 0.05 * x.std() * random(*x.shape), doctor.FAIL)])
def test_the_doctor_finds_wrong_features(monkeypatch, lie, status):
    install = engine.install

    def lying(encoder, *rest):
        name = install(encoder, *rest)
        encoder.trunk.register_forward_hook(lambda _, __, y: lie(y))
        return name
    monkeypatch.setattr(engine, 'install', lying)
    monkeypatch.setattr(doctor, 'run_probe', lambda _: (proof.prove(), ''))
    exact, *_ = doctor.check_network()
    assert exact.status == status, exact
    assert 'float32' in exact.detail


def test_the_doctor_says_where_a_precision_is_slower(monkeypatch):
    way = {'engine': 'oneDNN', 'difference': 1e-3, 'rounding': 0.05}
    monkeypatch.setattr(doctor, 'run_probe', lambda _: ([
        {**way, 'precision': 'float32', 'seconds': 0.2, 'rounding': 1e-2},
        {**way, 'precision': 'bfloat16', 'seconds': 0.4}], ''))
    fast, slow = doctor.check_network()
    assert (fast.status, slow.status) == (doctor.OK, doctor.WARN)
    assert slow.fix == 'precision: float32'


# Builds of torch that bring less ------------------------------------------------------------


@needs_fused
@pytest.mark.parametrize('operator', ['_convolution_pointwise_', 'breaks'])
def test_operators_that_are_missing_or_break_leave_the_plain_steps(
        build, plain, monkeypatch, operator):
    """Even those that are not asked for, or break, only at the real size."""
    expected, operators = plain().predict(IMAGES[0]).depth, torch.ops.mkldnn

    class Lacking:
        def __getattr__(self, name):
            if name == operator:
                raise AttributeError(f"'_OpNamespace' object has no attribute '{name}'")
            return getattr(operators, name)

    def breaks(self, x):
        raise RuntimeError(f'{operator} {len(x)} images')
    monkeypatch.setattr(resnet, '_ONEDNN', Lacking())
    if operator == 'breaks':
        monkeypatch.setattr(resnet.OneDnnConvolution, 'relu', breaks)
    estimator = build((said := []).append)
    assert estimator.engine == 'torch'
    assert any(text.startswith('WARNING: oneDNN does not run') and 'torch, which is slower' in text
               and operator in text for text in said)
    np.testing.assert_allclose(estimator.predict(IMAGES[0]).depth, expected, rtol=0, atol=1e-4)


@needs_fused
@needs_graphs
def test_torchscript_that_is_gone_leaves_the_operators(state_dict, monkeypatch):
    monkeypatch.setattr(engine, 'cpu_has_amx', lambda: True)
    monkeypatch.delattr('torch.jit.freeze')
    encoder, said = build_image_encoder(state_dict, 'reference'), []
    ran = engine.install(encoder, torch.bfloat16, CPU, (96, 128), said.append)
    assert ran in ('oneDNN', 'torch')  # as far as this processor has bfloat16
    assert said[0].startswith('WARNING: oneDNN graph does not run')
    assert 'freeze' in said[0]


# CUDA graphs, on a stand-in for `torch.cuda` that can replay --------------------------------


class Graph(TorchDispatchMode):
    """Notes operations, and does them again."""

    def __init__(self, counts):
        super().__init__()
        self.counts, self.operations = counts, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert isinstance(result, torch.Tensor), f'{function} gives the host something'
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        self.counts['replay'] += 1
        for function, args, kwargs, place in self.operations:
            again = function(*args, **kwargs)
            if again.data_ptr() != place.data_ptr():
                place.copy_(again)


class Cuda:
    """Stands in for `torch.cuda`."""

    class Stream:
        def wait_stream(self, other):
            assert other is not self

    def __init__(self):
        self.counts, self.default = Counter(), self.Stream()
        self.current = self.default

    def current_stream(self):
        return self.current

    @contextmanager
    def stream(self, stream):
        self.current = stream
        yield
        self.current = self.default

    @contextmanager
    def graph(self, graph, capture_error_mode):
        self.counts['capture'] += 1
        assert self.current is self.default, 'a stream of its own is for the runs before'
        assert capture_error_mode == 'thread_local'
        with graph:
            yield

    def CUDAGraph(self):  # noqa: N802
        return Graph(self.counts)


@pytest.fixture
def graphed(plain):
    """An estimator with graphs, and what counts its calls."""
    def make(**changes):
        estimator, cuda = plain(**changes), Cuda()
        estimator._encoder.trunk = GraphedTrunk(estimator._encoder.trunk, cuda)
        estimator.engine = 'CUDA graph'
        return estimator, cuda.counts
    return make


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        for name in ('depth', 'patch_depth', 'weights', 'logits', 'spread'):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('features', ['reference', 'attnpool'])
def test_graphs_give_what_the_same_work_gives_without(plain, graphed, features, flip):
    changes = {'features': features, 'flip_average': flip}
    expected, (estimator, counts) = plain(**changes), graphed(**changes)
    for images in (IMAGES[:1], IMAGES, IMAGES[::-1], IMAGES[1:2]):
        assert_same(estimator.predict(images), expected.predict(images))
    assert counts == {'capture': 2, 'replay': 4}


def test_settings_and_sizes_of_images_capture_nothing_new(plain, graphed):
    estimator, counts = graphed()
    estimator.warm_up(3)
    assert counts['capture'] == 3
    values = {'temperature': 0.5, 'tokens': ['near', 'far'], 'bins': [1.0, 2.0],
              'read_out': 'argmax', 'scenes': ['hall', 'room']}
    estimator.reconfigure(estimator.config.replace(**values))
    expected = plain(**values)
    for size in ((96, 128), (333, 517)):
        image = clip_standin.synthetic_rgb(1)[:size[0], :size[1]]
        assert_same([estimator.predict(image)], [expected.predict(image)])
    assert counts['capture'] == 3


def test_callers_own_their_arrays_and_threads_wait_for_each_other(graphed):
    estimator, _ = graphed()
    first = estimator.predict(IMAGES)
    kept = copy.deepcopy(first)
    estimator.predict(IMAGES[::-1])
    assert_same(first, kept)
    trunk = estimator._encoder.trunk
    batches = [torch.full((1, 3, 96, 128), float(i)) for i in range(8)]
    with torch.inference_mode():
        expected = [trunk._trunk(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(
                pool.map(torch.inference_mode()(trunk), batches), expected, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU on this machine')
@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_a_gpu_gives_the_depth_of_a_cpu(state_dict, tmp_path, precision):
    estimator = DepthEstimator(
        SMALL.replace(precision=precision), state_dict, 'cuda', cache_dir=tmp_path)
    reference = DepthEstimator(SMALL, state_dict, 'cpu', cache_dir=tmp_path)
    assert estimator.engine == 'CUDA graph'
    tolerance = 1e-4 if precision == 'float32' else 0.05
    for _ in range(2):
        for found, image in zip(estimator.predict(IMAGES), IMAGES, strict=True):
            np.testing.assert_allclose(
                found.depth, reference.predict(image).depth, rtol=0, atol=tolerance)
