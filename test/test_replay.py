# SPDX-License-Identifier: Apache-2.0
"""The path on a GPU, without one: on a stand-in for `torch.cuda` that counts, and can replay.

Its graphs are no mock of the results: they note every operation of torch between the capture's
beginning and its end, and a replay does these operations again, into the same memory.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from contextlib import contextmanager

import calibrations
import clip_standin
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from depthclip_ros.core import DepthConfig, DepthEstimator, EngineError
from depthclip_ros.core.geometry import CameraModel
from depthclip_ros.core.replay import CAPACITY, Replayer

SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(3)]
DEVICE = torch.device('cpu')


def several(result):
    return result if isinstance(result, (list, tuple)) else [result]


class Graph(TorchDispatchMode):
    """Notes operations, and does them again."""

    def __init__(self, cuda):
        super().__init__()
        self.cuda, self.operations = cuda, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert all(isinstance(one, torch.Tensor) for one in several(result)), \
            f'{function} gives the host something'
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        self.cuda.note('replay')
        for function, args, kwargs, result in self.operations:
            for place, again in zip(several(result), several(function(*args, **kwargs)),
                                    strict=True):
                if again.data_ptr() != place.data_ptr():
                    place.copy_(again)


class Stream:
    def __init__(self, cuda, device):
        cuda.note('stream')
        self.cuda = cuda

    def synchronize(self):
        self.cuda.note('synchronize')
        assert not self.cuda.capturing


class Cuda:
    """Stands in for `torch.cuda`; every call must be with the device current."""

    def __init__(self, device=DEVICE):
        self.expected = device
        self.counts, self.threads, self.capturing = Counter(), {}, False
        self.current, self.current_stream = threading.local(), threading.local()

    def note(self, what):
        assert getattr(self.current, 'value', None) is self.expected, f'{what} elsewhere'
        self.counts[what] += 1
        self.threads.setdefault(what, set()).add(threading.get_ident())

    @contextmanager
    def device(self, device):
        self.current.value = device
        yield
        self.current.value = None

    @contextmanager
    def stream(self, stream):
        self.note('on stream')
        self.current_stream.value = stream
        yield
        self.current_stream.value = None

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.note('capture')
        assert pool == 'pool'
        assert self.current_stream.value is stream
        assert capture_error_mode == 'thread_local'
        self.capturing = True
        with graph:
            yield
        self.capturing = False

    def Stream(self, device):  # noqa: N802
        return Stream(self, device)

    def CUDAGraph(self):  # noqa: N802
        self.note('graph')
        return Graph(self)

    def graph_pool_handle(self):
        self.note('pool')
        return 'pool'


@pytest.fixture(scope='module')
def build(state_dict, tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache')

    def make(**changes):
        return DepthEstimator(SMALL.replace(**changes), state_dict, 'cpu', cache_dir=folder,
                              num_threads=1)  # results differ in their last bits with others
    return make


@pytest.fixture
def with_graphs(build):
    """An estimator as on a GPU, and what counts its calls."""
    def make(**changes):
        estimator, cuda = build(engine='eager', **changes), Cuda()
        estimator._replayer = Replayer(DEVICE, cuda)
        return estimator, cuda
    return make


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        for name in ('depth', 'patch_depth', 'weights', 'logits', 'spread'):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize('flip', [False, True])
def test_graphs_give_what_the_same_work_gives_without(build, with_graphs, flip):
    plain = build(engine='eager', flip_average=flip)
    estimator, cuda = with_graphs(flip_average=flip)
    for images in (IMAGES[:1], IMAGES, IMAGES[::-1], IMAGES[1:2]):
        assert_same(estimator.predict(images), plain.predict(images))
    assert cuda.counts['capture'] == 2
    assert cuda.counts['replay'] == 4


@pytest.mark.parametrize('features', ['attnpool', 'crops'])
def test_graphs_of_all_features_and_read_outs(build, with_graphs, features):
    changes = {'features': features, 'smoothing': 0.5}
    estimator, cuda = with_graphs(**changes)
    for read_out in ('mean', 'argmax', 'mean'):
        estimator.reconfigure(estimator.config.replace(read_out=read_out))
        plain = build(engine='eager', read_out=read_out, **changes)
        assert_same(estimator.predict(IMAGES), plain.predict(IMAGES))
    assert cuda.counts['capture'] == 2


def test_scenes_are_in_the_graph(build, with_graphs):
    """Probabilities, memory and bins, on and off; the pool of a recording is not let go."""
    bins = [b * factor for factor in (0.5, 4.0) for b in SMALL.bins]
    scenes = {'scenes': ['bathroom', 'hall'], 'scene_bins': bins, 'scene_temperature': 0.2,
              'scene_entropy': 1.0}
    plain = build(engine='eager', **scenes)
    estimator, cuda = with_graphs()
    without = estimator.predict(IMAGES)
    for _ in range(2):
        estimator.reconfigure(estimator.config.replace(**scenes))
        before = [None] * 3
        for _ in range(2):
            found, expected = (e.predict(IMAGES, scenes=before) for e in (estimator, plain))
            assert_same(found, expected)
            before = [prediction.scene for prediction in found]
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one.scene.probabilities, other.scene.probabilities)
        estimator.reconfigure(estimator.config.replace(scenes=['']))
        assert_same(estimator.predict(IMAGES), without)
    assert cuda.counts['capture'] == 2


@pytest.mark.parametrize('flip', [False, True])
def test_calibrations_reach_graphs_and_are_exchanged_without_a_new_one(
        build, with_graphs, tmp_path, flip):
    plain = build(engine='eager', flip_average=flip)
    graphed, cuda = with_graphs(flip_average=flip)
    images = [clip_standin.synthetic_rgb(i, 64, 96) for i in range(2)]
    cameras = [CameraModel.pinhole(96, 64, focal) for focal in (60, 100)]
    for seed in (0, 1, 2):
        calibration = calibrations.calibration_for(
            plain, **calibrations.random_arrays(plain, seed))
        path = str(calibration.save(tmp_path, 'random'))
        for estimator in (plain, graphed):
            estimator.reconfigure(estimator.config.replace(calibration=path))
        found, expected = (estimator.predict(images, intrinsics=cameras)
                           for estimator in (graphed, plain))
        assert_same(found, expected)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.patch_stddev, b.patch_stddev)
    assert cuda.counts['capture'] == 1


def test_warm_up_captures_every_batch_on_its_own_thread(with_graphs):
    estimator, cuda = with_graphs()
    worker = threading.Thread(target=estimator.warm_up, args=(3,))
    worker.start()
    worker.join()
    assert cuda.counts['capture'] == 3
    assert cuda.threads['capture'] == {worker.ident}
    for count in (1, 2, 3):
        estimator.predict(IMAGES[:count])
    assert cuda.counts['capture'] == 3


def test_warm_up_refuses_a_graph_that_lies(with_graphs, monkeypatch):
    """Its results are compared with those of the same work without a graph."""
    estimator, _ = with_graphs()
    monkeypatch.setattr(Graph, 'replay', lambda self: [
        place.zero_() for *_, result in self.operations for place in several(result)
        if place.is_floating_point()])
    with pytest.raises(EngineError, match='eager with 1 images at once gives'):
        estimator.warm_up()


def test_sizes_of_images_capture_nothing_new(build, with_graphs):
    estimator, cuda = with_graphs()
    plain = build(engine='eager')
    for seed, size in enumerate([(96, 128), (40, 60), (333, 517), (97, 128), (200, 64)]):
        image = clip_standin.synthetic_rgb(seed)[:size[0], :size[1]]
        found = estimator.predict(image)
        assert found.depth.shape == size
        assert_same([found], [plain.predict(image)])
        assert estimator.predict(image, (7, 9)).depth.shape == (7, 9)
    assert cuda.counts['capture'] == 1


def test_settings_reach_graphs_without_a_new_one(build, with_graphs):
    estimator, cuda = with_graphs()
    estimator.predict(IMAGES)
    changes = {'temperature': 0.5, 'bins': [b + 1 for b in SMALL.bins], 'upsampling': 'patch'}
    estimator.reconfigure(estimator.config.replace(**changes))
    assert_same(estimator.predict(IMAGES), build(engine='eager', **changes).predict(IMAGES))
    assert cuda.counts['capture'] == 1
    estimator.reconfigure(estimator.config.replace(flip_average=True))
    assert_same(estimator.predict(IMAGES),
                build(engine='eager', flip_average=True, **changes).predict(IMAGES))
    assert cuda.counts['capture'] == 2


def test_another_number_of_tokens_is_captured_anew():
    replayer, cuda = captured()
    for count in (3, 3, 4, 3):
        found = run(replayer, torch.arange(count))
        np.testing.assert_array_equal(found, 2.0 * np.arange(count))
    assert cuda.counts['capture'] == 2


def captured():
    cuda = Cuda()
    return Replayer(DEVICE, cuda), cuda


def run(replayer, given, key='double'):
    found, = replayer.call(
        lambda _: replayer.replay(key, lambda values: [2.0 * values], [given]), [])
    return found


def test_old_recordings_make_room():
    replayer, cuda = captured()
    for _ in range(2):
        for key in range(CAPACITY + 1):
            run(replayer, torch.ones(2), key)
    assert cuda.counts['capture'] == 2 * (CAPACITY + 1)  # each had gone when it came again
    run(replayer, torch.ones(2), CAPACITY)
    assert cuda.counts['capture'] == 2 * (CAPACITY + 1)


def test_callers_own_their_arrays(with_graphs):
    estimator, _ = with_graphs()
    first = estimator.predict(IMAGES)
    kept = copy.deepcopy(first)
    estimator.predict(IMAGES[::-1])
    assert_same(first, kept)
