# SPDX-License-Identifier: Apache-2.0
"""What runs the trunk gives the features of CLIP's own modules; what breaks is passed over."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import clip_standin
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from depthclip_ros.cli import doctor, proof
from depthclip_ros.cli.proof import clip_trunk
from depthclip_ros.core import (
    DepthConfig,
    DepthEstimator,
    EngineError,
    WeightsError,
    engine,
    resnet,
)
from depthclip_ros.core.backbone import build_image_encoder
from depthclip_ros.core.engine import GraphedTrunk, can_fuse, cpu_has_bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(3)]
CPU = torch.device('cpu')


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


needs_fused = pytest.mark.skipif(
    not can_fuse(torch.float32), reason="torch lacks oneDNN's operators")
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
        estimator.model.encoder = build_image_encoder(state_dict, estimator.config.features)
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
        reference.trunk = clip_trunk(weights)
    size = 3 * encoder.stride, 4 * encoder.stride
    ran = engine.install(encoder, dtype, CPU, size, lambda _: None)
    if precision == 'float32':
        assert ran == ('torch' if 'ViT' in architecture or not can_fuse(dtype) else 'oneDNN')
    with torch.inference_mode():
        for images in (engine.probe_image(size).expand(2, -1, -1, -1),
                       random(3, 3, 5 * encoder.stride, 2 * encoder.stride)):
            assert encoder.trunk(images.to(dtype)).dtype == dtype
            found, expected = encoder(images), reference(images)
            assert found.dtype == torch.float32
            assert engine.relative_error(found, expected) <= (
                1e-5 if precision == 'float32' else engine.TOLERANCES[dtype])
    norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.weight.dtype for norm in norms} <= {torch.float32}
    assert bool(norms) == ('ViT' in architecture)
    # All is where the network is, as on a GPU: 'meta' is a device, too, and mixes with no other.
    elsewhere = engine.encode_probe_image(
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
        found = convolution(x)
        expected = conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
        assert torch.equal(found, convolution(x))
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-5 * expected.norm()


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
    monkeypatch.setattr(engine, 'cpu_is_intel', lambda: False)
    dtype = engine.resolve_precision('bfloat16', CPU, (log := []).append)
    assert dtype == (torch.bfloat16 if has else torch.float32)
    assert bool(log) == (not has)
    if not has:
        assert 'WARNING: precision: bfloat16, but this processor has no arithmetic' in log[0]
        assert build(precision='bfloat16').precision == 'float32'


@pytest.mark.parametrize(('intel', 'amx', 'slower'), [
    (True, False, True), (True, True, False), (False, False, False)])
def test_bfloat16_that_is_slower_is_a_warning(monkeypatch, intel, amx, slower):
    for name, value in (('bfloat16', True), ('amx', amx)):
        monkeypatch.setattr(engine, f'cpu_has_{name}', lambda value=value: value)
    monkeypatch.setattr(engine, 'cpu_is_intel', lambda: intel)
    assert engine.resolve_precision('bfloat16', CPU, (log := []).append) == torch.bfloat16
    assert any('WARNING' in text and 'longer than float32' in text for text in log) == slower


@pytest.mark.parametrize(('capability', 'auto', 'float16', 'bfloat16'), [
    ((5, 2), 'float32', 'float32', 'float32'), ((6, 0), 'float16', 'float16', 'float32'),
    ((6, 1), 'float32', 'float32', 'float32'), ((7, 5), 'float16', 'float16', 'float32'),
    ((8, 0), 'float16', 'float16', 'bfloat16'), ((12, 1), 'float16', 'float16', 'bfloat16')])
def test_a_gpu_runs_what_it_has_arithmetic_for(monkeypatch, capability, auto, float16, bfloat16):
    """Maxwell, two of Pascal, Turing, Ampere, Blackwell."""
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: {
        1: capability}[device.index])
    for asked, expected in (('auto', auto), ('float16', float16), ('bfloat16', bfloat16),
                            ('float32', 'float32')):
        dtype = engine.resolve_precision(asked, torch.device('cuda', 1), (log := []).append)
        assert dtype == getattr(torch, expected), asked
        assert [text.startswith(f'WARNING: precision: {asked}, but') for text in log] == (
            [True] if asked not in ('auto', expected) else [])


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

    def breaks(self, x, *_, **__):
        raise RuntimeError(f'{operator} {len(x)} images')
    monkeypatch.setattr(resnet, '_ONEDNN', Lacking())
    if operator == 'breaks':
        monkeypatch.setattr(resnet.OneDnnConvolution, 'forward', breaks)
    estimator = build((said := []).append)
    assert estimator.engine == 'torch'
    assert any(text.startswith('WARNING: oneDNN does not run') and 'torch, which is slower' in text
               and operator in text for text in said)
    np.testing.assert_allclose(estimator.predict(IMAGES[0]).depth, expected, rtol=0, atol=1e-4)


# CUDA graphs, on a stand-in for `torch.cuda` that can replay --------------------------------


HOST = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default


class Kernel(NamedTuple):
    """An operation, whose result goes to a place; None where it changes an argument."""

    place: torch.Tensor | None
    function: Callable
    args: tuple
    options: dict

    def reads(self):
        return {memory(given) for given in tree_leaves([self.args, self.options])
                if isinstance(given, torch.Tensor)}

    def writes(self):
        return {memory(self.args[0] if self.place is None else self.place)}


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


class Stream:
    """Kernels in their order, which run when somebody waits for them."""

    def __init__(self, machine, device):
        self.machine, self.device, self.kernels, self.graph = machine, device, [], None

    def run(self):
        kernels, self.kernels = self.kernels, []
        with _disable_current_modes():
            for place, function, args, options in kernels:
                result = function(*args, **options)
                if place is not None:
                    place.copy_(result)

    def wait_stream(self, other):
        assert other is not self
        other.run()

    def wait_event(self, event):
        if event.stream is not None:  # else it was never recorded
            event.stream.run()


class Event:
    stream = None

    def record(self, stream):
        self.stream = stream


class Graph:
    def __init__(self, machine):
        self.machine, self.kernels = machine, []

    def replay(self):
        self.machine.counts['replay'] += 1
        for kernel in self.kernels:
            self.machine.launch(kernel)

    def pool(self):
        return 'pool'


class Machine(TorchDispatchMode):
    """Stands in for `torch.cuda`: devices, streams, captures, and the order of kernels.

    All tensors are on GPU `home`. A kernel is queued on that GPU's current stream, and its result
    is NaN until it has run; while the stream captures, it becomes part of the graph instead. What
    another stream has not done yet may be neither read nor overwritten.
    """

    default_capture_stream = None  # as torch's: of whichever GPU was current first

    def __init__(self, home=0):
        super().__init__()
        self.counts, self.home, self.device = Counter(), home, 0
        self.current = {device: Stream(self, device) for device in (0, 1)}
        self.streams, self.known, self.pools = [*self.current.values()], set(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        options, stream = kwargs or {}, self.current[self.home]
        if function in HOST:  # which waits for a number
            assert stream.graph is None
            stream.run()
            return function(*args)
        if function._schema.is_mutable:
            kernel = Kernel(None, function, args, options)
        else:
            kernel = Kernel(function(*args, **options), function, args, options)
            assert isinstance(kernel.place, torch.Tensor), f'{function} gives the host something'
            if kernel.reads() & kernel.writes():
                return kernel.place  # a view
            kernel.place.fill_(float('nan'))
        if stream.graph is None:
            self.known.add(function)
        elif function not in self.known:
            raise RuntimeError('operation not permitted when stream is capturing')
        self.launch(kernel)
        return args[0] if kernel.place is None else kernel.place

    def launch(self, kernel):
        stream = self.current[self.home]
        if stream.graph is not None:
            stream.graph.kernels.append(kernel)
            return
        for other in self.streams:
            for pending in other.kernels if other is not stream else ():
                assert not (kernel.reads() | kernel.writes()) & pending.writes(), 'a race'
                assert not kernel.writes() & pending.reads(), 'a race'
        stream.kernels.append(kernel)

    def synchronize(self):
        for stream in self.streams:
            stream.run()

    # What `torch.cuda` has -----------------------------------------------------------------

    Event = Event

    def Stream(self, device=None):  # noqa: N802
        index = self.device if device is None else self.home  # that of the tensors
        self.streams.append(Stream(self, index))
        return self.streams[-1]

    def CUDAGraph(self):  # noqa: N802
        return Graph(self)

    def current_stream(self, device=None):
        return self.current[self.device if device is None else self.home]

    @contextmanager
    def stream(self, stream):
        before, device = self.current[stream.device], self.device
        self.current[stream.device], self.device = stream, stream.device
        yield
        self.current[stream.device], self.device = before, device

    @contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode='global'):
        assert capture_error_mode == 'thread_local'
        self.counts['capture'] += 1
        self.pools.append(pool)
        if stream is None:
            if Machine.default_capture_stream is None:
                Machine.default_capture_stream = Stream(self, self.device)
            stream = Machine.default_capture_stream
        assert not any(one.graph for one in self.streams), 'two captures at a time'
        with self.stream(stream):
            stream.graph = graph
            try:
                yield
            finally:
                stream.graph = None


class OnMachine(nn.Module):
    """A trunk whose kernels run on a `Machine`, and have run when its result is looked at."""

    def __init__(self, trunk, machine):
        super().__init__()
        self.trunk, self.machine = trunk, machine

    def forward(self, images):
        with self.machine:
            features = self.trunk(images)
        self.machine.synchronize()
        return features


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        for name in ('depth', 'patch_depth', 'weights', 'logits', 'spread'):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.fixture
def graphed(plain):
    """An estimator with graphs on a GPU, and what counts its calls."""
    def make(home=0, **changes):
        estimator, machine = plain(**changes), Machine(home)
        trunk, example = estimator.model.encoder.trunk, engine.probe_image((96, 128))
        with machine:
            graphed = GraphedTrunk(trunk, example, 1 + estimator.config.flip_average, machine)
        estimator.model.encoder.trunk = OnMachine(graphed, machine)
        return estimator, graphed, machine
    return make


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('features', ['reference', 'attnpool'])
def test_graphs_give_what_the_same_work_gives_without(plain, graphed, features, flip):
    """Numbers of images that were not asked for run without one."""
    changes = {'features': features, 'flip_average': flip}
    expected, (estimator, _, machine) = plain(**changes), graphed(**changes)
    before = machine.counts['replay']
    for images in (IMAGES[:1], IMAGES, IMAGES[::-1], IMAGES[1:2]):
        assert_same(estimator.predict(images), expected.predict(images))
    assert machine.counts['capture'] == 1
    assert machine.counts['replay'] == before + 2


@pytest.mark.parametrize('device', [0, 1])
def test_a_graph_is_of_the_gpu_that_its_trunk_is_on(plain, graphed, device):
    """Whichever GPU is the current one, and of several in one process."""
    expected, estimators = plain(), [graphed(device), graphed(1 - device)]
    for estimator, trunk, machine in estimators:
        with machine:
            trunk.capture(2)
        for images in (IMAGES[:2], IMAGES[1:], IMAGES[:1], IMAGES[2:]):
            assert_same(estimator.predict(images), expected.predict(images))
        assert machine.pools == [None, 'pool']


def test_a_graph_that_holds_nothing_is_refused(plain):
    """As one is that was captured on another GPU's stream: it gives the first image for ever."""
    class Elsewhere(Machine):
        @contextmanager
        def graph(self, graph, **options):
            with super().graph(graph, **options):
                yield
            graph.kernels.clear()
    trunk = plain().model.encoder.trunk
    with pytest.raises(EngineError, match='other features'), Elsewhere() as machine:
        GraphedTrunk(trunk, engine.probe_image((96, 128)), 1, machine)


def test_one_capture_at_a_time_in_a_process(state_dict):
    """CUDA takes one: a second thread's waits, whichever GPU and trunk it is for."""
    barrier, met = threading.Barrier(2), []

    class Meeting(Machine):
        @contextmanager
        def graph(self, graph, **options):
            with suppress(threading.BrokenBarrierError):
                barrier.wait(1.0)  # the most that the other one has to come, and be wrong
                met.append(self)
            with super().graph(graph, **options):
                yield

    def prepare(home):
        trunk = build_image_encoder(state_dict, 'reference').trunk
        with Meeting(home) as machine:
            return GraphedTrunk(trunk, engine.probe_image((96, 128)), 1, machine)
    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(prepare, (0, 1)))) == 2
    assert not met


def test_warm_up_prepares_every_number_of_cameras(build, monkeypatch):
    """What cannot be captured runs without, and is said."""
    estimator, counts, said = build(flip_average=True), [], []

    class Trunk(GraphedTrunk):
        def __init__(self, trunk):
            nn.Module.__init__(self)
            self.trunk = trunk

        def forward(self, images):
            return self.trunk(images)

        def capture(self, count):
            counts.append(count)
            if count > 4:
                raise RuntimeError('CUDA out of memory')
    encoder, estimator._log = estimator.model.encoder, said.append
    encoder.trunk = Trunk(encoder.trunk)
    estimator.warm_up(3)
    assert counts == [2, 4, 6]
    assert [('6 images' in text, 'out of memory' in text) for text in said] == [(True, True)]


def test_streams_and_callers_do_not_disturb_each_other(graphed):
    _, trunk, machine = graphed()
    batches = [torch.full((1, 3, 96, 128), float(i)) for i in range(3)]
    with torch.inference_mode():
        expected, found = [trunk._trunk(batch) for batch in batches], []
        with machine:
            for batch in batches:
                with machine.stream(machine.Stream()):
                    found.append(trunk(batch))
        machine.synchronize()
    for one, wanted in zip(found, expected, strict=True):
        assert torch.equal(one, wanted)


def test_a_process_keeps_what_it_has_chosen(build):
    """TF32 by either interface, and autocast, which would round eq. 3."""
    code = """
import torch, sys
from depthclip_ros.core.engine import exact_float32
cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
if 'new' in sys.argv:
    matmul.fp32_precision = cudnn.conv.fp32_precision = 'tf32'
else:
    torch.set_float32_matmul_precision('high')
def state():
    return cudnn.benchmark, cudnn.allow_tf32, 'new' in sys.argv or matmul.allow_tf32
before = state()
with exact_float32():
    print(getattr(matmul, 'fp32_precision', 'ieee'), cudnn.benchmark)
assert state() == before
first, second = exact_float32(), exact_float32()  # as of two threads
first.__enter__()
second.__enter__()
first.__exit__(None, None, None)
assert cudnn.benchmark
second.__exit__(None, None, None)
assert state() == before
with cudnn.flags(enabled=True): pass
"""
    newer = hasattr(torch.backends.cudnn, 'conv')
    for interface in ('old', 'new') if newer else ('old',):
        done = subprocess.run([sys.executable, '-c', code, interface], cwd=ROOT, check=False,
                              capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, 'ieee True\n'), done.stderr
    estimator = build()
    expected = estimator.predict(IMAGES)
    with torch.autocast('cpu', torch.bfloat16):
        assert_same(estimator.predict(IMAGES), expected)


def test_a_gpu_is_the_current_one_without_autocast_and_tf32(monkeypatch):
    devices, gpu = [], torch.device('cuda', 1)

    @contextmanager
    def device(index):
        devices.append(index)
        yield
    monkeypatch.setattr(torch.cuda, 'device', device)
    before = torch.is_autocast_enabled('cuda'), torch.backends.cudnn.allow_tf32
    try:
        torch.set_autocast_enabled('cuda', True)
        torch.backends.cudnn.allow_tf32 = True
        with engine.compute_on(gpu):
            assert devices == [gpu]
            assert not torch.is_autocast_enabled('cuda')
            assert not torch.backends.cudnn.allow_tf32
        assert torch.is_autocast_enabled('cuda')
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_autocast_enabled('cuda', before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
