# SPDX-License-Identifier: Apache-2.0
"""The trunk's CUDA graphs without a GPU: on a stand-in for `torch.cuda` that can replay.

Its graphs are no mock of the results: they note every operation of torch between the capture's
beginning and its end, and a replay does these operations again, into the same memory.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import clip_standin
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.backbone import build_image_encoder
from depthclip_ros.core.cuda_graph import CAPACITY, GraphedTrunk

SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(3)]


class Graph(TorchDispatchMode):
    """Notes operations, and does them again."""

    def __init__(self, cuda):
        super().__init__()
        self.cuda, self.operations = cuda, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert isinstance(result, torch.Tensor), f'{function} gives the host something'
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        self.cuda.counts['replay'] += 1
        for function, args, kwargs, place in self.operations:
            again = function(*args, **kwargs)
            if again.data_ptr() != place.data_ptr():
                place.copy_(again)


class Stream:
    def wait_stream(self, other):
        assert isinstance(other, Stream)
        assert other is not self


class Cuda:
    """Stands in for `torch.cuda`."""

    def __init__(self):
        self.counts, self.used, self.default = Counter(), threading.local(), Stream()

    def current_stream(self):
        return getattr(self.used, 'stream', self.default)

    @contextmanager
    def stream(self, stream):
        self.used.stream = stream
        yield
        self.used.stream = self.default

    @contextmanager
    def graph(self, graph, capture_error_mode):
        self.counts['capture'] += 1
        assert self.current_stream() is self.default, 'a stream of its own is for the runs before'
        assert capture_error_mode == 'thread_local'
        with graph:
            yield

    Stream = Stream

    def CUDAGraph(self):  # noqa: N802
        return Graph(self)


@pytest.fixture(scope='module')
def plain(state_dict, tmp_path_factory):
    """An estimator that runs plain operations of torch, as on a GPU."""
    def make(**changes):
        estimator = DepthEstimator(
            SMALL.replace(**changes), state_dict, 'cpu', num_threads=1,  # others round otherwise
            cache_dir=tmp_path_factory.mktemp('cache'))
        estimator._encoder = build_image_encoder(state_dict, estimator.config.features)
        return estimator
    return make


@pytest.fixture
def graphed(plain):
    """The same with graphs, and what counts its calls."""
    def make(**changes):
        estimator, cuda = plain(**changes), Cuda()
        estimator._encoder.trunk = GraphedTrunk(estimator._encoder.trunk, cuda)
        estimator.engine = 'CUDA graph'
        return estimator, cuda
    return make


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        for name in ('depth', 'patch_depth', 'weights', 'logits', 'spread'):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('features', ['reference', 'attnpool'])
def test_graphs_give_what_the_same_work_gives_without(plain, graphed, features, flip):
    changes = {'features': features, 'flip_average': flip}
    expected, (estimator, cuda) = plain(**changes), graphed(**changes)
    for images in (IMAGES[:1], IMAGES, IMAGES[::-1], IMAGES[1:2]):
        assert_same(estimator.predict(images), expected.predict(images))
    assert cuda.counts == {'capture': 2, 'replay': 4}


def test_settings_and_sizes_of_images_capture_nothing_new(plain, graphed):
    estimator, cuda = graphed()
    changes = {'temperature': 0.5, 'tokens': ['near', 'far'], 'bins': [1.0, 2.0],
               'read_out': 'argmax', 'scenes': ['hall', 'room']}
    for values in ({}, changes):
        estimator.reconfigure(estimator.config.replace(**values))
        expected = plain(**values)
        for size in ((96, 128), (40, 60), (333, 517)):
            image = clip_standin.synthetic_rgb(1)[:size[0], :size[1]]
            assert_same([estimator.predict(image)], [expected.predict(image)])
    assert cuda.counts['capture'] == 1


def test_warm_up_captures_every_number_of_images(graphed):
    estimator, cuda = graphed()
    estimator.warm_up(3)
    assert cuda.counts['capture'] == 3
    for count in (1, 2, 3):
        estimator.predict(IMAGES[:count])
    assert cuda.counts['capture'] == 3


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
        def run(batch):
            with torch.inference_mode():
                return trunk(batch)
        for found, wanted in zip(pool.map(run, batches), expected, strict=True):
            assert torch.equal(found, wanted)


def test_old_graphs_make_room():
    cuda = Cuda()
    double = GraphedTrunk(torch.nn.Identity(), cuda)
    for _ in range(2):
        for size in range(1, CAPACITY + 2):
            assert double(torch.ones(size)).shape == (size,)
    assert cuda.counts['capture'] == 2 * (CAPACITY + 1)  # each had gone when it came again
    double(torch.ones(CAPACITY + 1))
    assert cuda.counts['capture'] == 2 * (CAPACITY + 1)
