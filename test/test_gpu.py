# SPDX-License-Identifier: Apache-2.0
"""A GPU gives the depth of a CPU, whatever is asked of it; the bodies run on a CPU, too.

The official code's numbers are in test_goldens.py, what needs no GPU in test_cuda_fake.py and
test_engine.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import clip_standin
import numpy as np
import pytest
import torch
from devices import DEVICES, gpu

from depthclip_ros.core import DepthConfig, DepthEstimator, engine
from depthclip_ros.core.backbone import build_image_encoder

SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=3.0)
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(8)]
COUNTS = (3, 1, 8, 2, 6, 4, 5, 7, 1)
# Metres; and of the features, as a part of their length.
DEPTH = {'float32': 1e-4, 'float16': 0.05}
FEATURES = {'float32': 1e-4, 'float16': 5e-3}
WEIGHTS = {seed: clip_standin.tiny_state_dict(seed) for seed in (0, 2)}


@pytest.fixture(scope='module')
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache')

    def make(device, seed=0, **changes):
        return DepthEstimator(SMALL.replace(**changes), WEIGHTS[seed], device, cache_dir=folder,
                              num_threads=1)
    return make


def assert_near(found, expected, precision='float32'):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.depth, other.depth, rtol=0, atol=DEPTH[precision])


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize(('device', 'precision'), [
    ('cpu', 'float32'), gpu('cuda', 'float32'), gpu('cuda', 'float16')])
def test_batches_of_changing_size(build, device, precision, flip):
    """With a graph for some of them, beside plain operations and beside a CPU."""
    estimator = build(device, precision=precision, flip_average=flip)
    plain = build(device, precision=precision, flip_average=flip)
    plain.model.encoder.trunk = build_image_encoder(WEIGHTS[0], 'reference').trunk.to(
        plain.device, getattr(torch, precision))
    assert estimator.engine == {'cpu': 'oneDNN', 'cuda': 'CUDA graph'}[device]
    estimator.warm_up(4)
    expected = build('cpu', flip_average=flip).predict(IMAGES)
    for i, count in enumerate(COUNTS):
        chosen = [(i + j) % len(IMAGES) for j in range(count)]
        images = [IMAGES[j] for j in chosen]
        assert_near(estimator.predict(images), [expected[j] for j in chosen], precision)
        assert engine.relative_error(estimator.encode(images).features,
                                 plain.encode(images).features) < FEATURES[precision]


@pytest.mark.parametrize('device', DEVICES)
def test_two_estimators_on_two_threads(build, device):
    """Each prepares itself and runs beside the other."""
    def work(seed):
        estimator = build(device, seed, precision='float32')
        estimator.warm_up(3)
        return [one for count in COUNTS for one in estimator.predict(IMAGES[-count:])]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(work, WEIGHTS))
    for seed, found in zip(WEIGHTS, both, strict=True):
        expected = build('cpu', seed).predict(IMAGES)
        assert_near(found, [one for count in COUNTS for one in expected[-count:]])


@pytest.mark.parametrize('device', DEVICES)
def test_reconfigured_it_is_as_if_built_anew(build, device):
    estimator = build(device, precision='float32')
    before = estimator.predict(IMAGES)
    for changes in ({'tokens': ('near', 'far'), 'bins': (1.0, 4.0)}, {'scenes': ('hall', 'room')},
                    {'flip_average': True, 'temperature': 2.0}):
        estimator.reconfigure(estimator.config.replace(**changes))
        expected = build('cpu', **{name: getattr(estimator.config, name) for name in (
            'tokens', 'bins', 'scenes', 'flip_average', 'temperature')})
        assert_near(estimator.predict(IMAGES), expected.predict(IMAGES))
    estimator.reconfigure(SMALL.replace(precision='float32'))
    assert_near(estimator.predict(IMAGES), before)


@contextmanager
def full_memory(estimator):
    """No memory is left on the device; a CPU's trunk says so."""
    def refuse(*_):
        raise torch.cuda.OutOfMemoryError('out of memory')
    if estimator.device.type == 'cpu':
        with estimator.model.encoder.trunk.register_forward_pre_hook(refuse):
            yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize('device', DEVICES)
def test_without_memory_it_fails_and_goes_on_with_it(build, device):
    estimator = build(device, precision='float32')
    estimator.warm_up(2)
    expected = [estimator.predict(IMAGES[:count]) for count in (1, 2, 8)]
    for _ in range(2):
        with full_memory(estimator), pytest.raises(torch.cuda.OutOfMemoryError):
            estimator.predict(8 * IMAGES)
        for one, count in zip(expected, (1, 2, 8), strict=True):
            assert_near(estimator.predict(IMAGES[:count]), one)


@pytest.mark.parametrize('device', DEVICES)
def test_the_node_with_four_cameras(build, tiny_weights, domain, cache, device):
    pytest.importorskip('rclpy')
    from ros_harness import Peer, depth_array, image, running, tiny_arguments
    cameras = ('a', 'b', 'c', 'd')
    outputs = [f'{camera}/depth/image' for camera in cameras]
    expected = build('cpu').predict(IMAGES)
    arguments = tiny_arguments(tiny_weights, device=device, cameras=list(cameras),
                               precision='float32')
    with running(arguments, domain=domain, cache=cache) as node, \
            Peer(domain, listen=outputs, node=node) as peer:
        peer.ready(*outputs)
        for camera in cameras:  # they find each other
            peer.ask(image(peer.header(), IMAGES[0], 'rgb8'), prefix=f'{camera}/')
        for start in (0, 4):
            messages = [image(peer.header(), picture, 'rgb8') for picture in IMAGES[start:]][:4]
            for camera, message in zip(cameras, messages, strict=True):
                peer.send(message, prefix=f'{camera}/')
            for i, (topic, message) in enumerate(zip(outputs, messages, strict=True)):
                answer = peer.wait_stamp(topic, message.header.stamp)
                np.testing.assert_allclose(
                    depth_array(answer), expected[start + i].depth, rtol=0, atol=2e-3)
