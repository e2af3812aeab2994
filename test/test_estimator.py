# SPDX-License-Identifier: Apache-2.0
"""The estimator as others use it."""

from __future__ import annotations

import itertools
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import clip_standin
import numpy as np
import pytest
import torch

from depthclip_ros.core import (
    ConfigError,
    DepthConfig,
    DepthEstimator,
    DeviceError,
    ImageError,
    WeightsError,
)
from depthclip_ros.core import estimator as estimator_module
from depthclip_ros.core.engine import resolve_device, resolve_precision

# The paper's temperature makes random features one-hot; a warmer softmax lets changes be seen.
SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
IMAGE = clip_standin.synthetic_rgb(0)[:96, :128]
# Of float32 sums, whose order may be another one each time: threads share the work as they come.
ROUNDING = {'rtol': 0, 'atol': 1e-4}


@pytest.fixture(scope='module')
def build(state_dict, tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache')

    def make(num_threads=0, **changes):
        return DepthEstimator(SMALL.replace(**changes), state_dict, 'cpu', cache_dir=folder,
                              num_threads=num_threads)
    return make


def test_shapes_and_types(build):
    estimator = build()
    prediction = estimator.predict(IMAGE)
    assert estimator.grid == (3, 4)
    shapes = {'depth': (96, 128), 'patch_depth': (3, 4), 'weights': (7, 3, 4),
              'logits': (7, 3, 4), 'spread': (3, 4)}
    for name, shape in shapes.items():
        array = getattr(prediction, name)
        assert array.shape == shape, name
        assert array.dtype == np.float32, name
        assert np.isfinite(array).all(), name
    np.testing.assert_allclose(prediction.weights.sum(0), 1, atol=1e-6)
    bins = np.array(estimator.config.bins)
    np.testing.assert_allclose(
        prediction.patch_depth, np.einsum('khw,k->hw', prediction.weights, bins), atol=1e-5)
    assert prediction.depth.min() >= bins[0]
    assert prediction.depth.max() <= bins[-1]


def test_the_image_the_words_and_the_normalisation_matter(build):
    plain = build().predict(IMAGE)
    other = build().predict(clip_standin.synthetic_rgb(1)[:96, :128])
    assert abs(plain.depth - other.depth).max() > 1e-3
    swapped = build(tokens=['unseen', *SMALL.tokens[1:-1], 'giant']).predict(IMAGE)
    np.testing.assert_allclose(plain.weights[0], swapped.weights[-1], atol=1e-5)
    assert abs(plain.depth - swapped.depth).max() > 1e-3
    clips = build(normalization='clip').predict(IMAGE)
    assert abs(plain.logits - clips.logits).max() > 1e-2


def test_batch_of_n_equals_n_singles(build):
    estimator = build(flip_average=True)
    images = [IMAGE, clip_standin.synthetic_rgb(1)[:96, :128], clip_standin.synthetic_rgb(2)]
    batch = estimator.predict(images)
    assert [p.depth.shape for p in batch] == [(96, 128), (96, 128), (480, 640)]
    for image, prediction in zip(images, batch, strict=True):
        single = estimator.predict(image)
        np.testing.assert_allclose(prediction.depth, single.depth, atol=1e-4)
        np.testing.assert_allclose(prediction.logits, single.logits, atol=2e-3)
    assert estimator.predict([]) == []


def test_flip_average_equals_the_explicit_two_passes(build):
    plain = build()
    first, mirrored = plain.predict(IMAGE), plain.predict(np.ascontiguousarray(IMAGE[:, ::-1]))
    both = build(flip_average=True).predict(IMAGE)
    np.testing.assert_allclose(
        both.patch_depth, (first.patch_depth + mirrored.patch_depth[:, ::-1]) / 2, atol=1e-5)
    np.testing.assert_allclose(both.logits, first.logits, atol=2e-3)
    np.testing.assert_allclose(both.weights, first.weights, atol=1e-4)


def test_the_best_bin_and_smoothing_on_a_loaded_model(build):
    estimator = build()
    plain = estimator.predict(IMAGE)
    bins = np.float32(SMALL.bins)
    estimator.reconfigure(SMALL.replace(read_out='argmax'))
    best = estimator.predict(IMAGE)
    np.testing.assert_array_equal(best.patch_depth, bins[plain.logits.argmax(0)])
    np.testing.assert_array_equal(
        estimator.read_out(torch.from_numpy(plain.logits)[None])[1][0], best.patch_depth)
    for name in ('weights', 'logits', 'spread'):
        np.testing.assert_allclose(getattr(best, name), getattr(plain, name), **ROUNDING)
    estimator.reconfigure(SMALL.replace(read_out='argmax', flip_average=True))
    mirrored = build(read_out='argmax').predict(np.ascontiguousarray(IMAGE[:, ::-1]))
    np.testing.assert_array_equal(
        estimator.predict(IMAGE).patch_depth,
        (best.patch_depth + mirrored.patch_depth[:, ::-1]) / 2)
    estimator.reconfigure(SMALL.replace(smoothing=0.8))
    smoothed = estimator.predict(IMAGE)
    apart = np.add.outer(*(np.square(np.subtract.outer(np.arange(n), np.arange(n)))
                           for n in (3, 4)))
    weights = np.exp(-0.5 * apart / 0.8 ** 2)  # (row, row, column, column)
    np.testing.assert_allclose(
        smoothed.patch_depth,
        np.einsum('ijkl,jl->ik', weights, plain.patch_depth) / weights.sum((1, 3)), atol=1e-5)
    assert np.ptp(smoothed.depth) < np.ptp(plain.depth)
    estimator.reconfigure(SMALL)
    np.testing.assert_allclose(estimator.predict(IMAGE).depth, plain.depth, **ROUNDING)


def many(work, inputs, threads=8):
    """Results of some work in many threads, which all begin at once."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, inputs))


def test_reconfigure_while_others_predict(build):
    """A prediction is that of one configuration as a whole, whichever."""
    configs = [SMALL, SMALL.replace(flip_average=True, temperature=0.5, upsampling='patch',
                                    bins=[b + 1 for b in SMALL.bins])]
    estimator = build()
    expected = []
    for config in configs:
        estimator.reconfigure(config)
        expected.append(estimator.predict(IMAGE))
    stop = threading.Event()

    def change():
        for i in itertools.count():
            estimator.reconfigure(configs[i % 2])
            if stop.wait(1e-4):
                return

    def is_of(prediction, one):
        return all(np.allclose(getattr(prediction, name), getattr(one, name), **ROUNDING)
                   for name in ('depth', 'weights', 'spread'))

    changing = threading.Thread(target=change)
    changing.start()
    seen = set()
    try:
        while seen != {0, 1}:  # both come, sooner or later
            for prediction in many(lambda _: estimator.predict(IMAGE), range(40)):
                seen.add(next(i for i in range(2) if is_of(prediction, expected[i])))
    finally:
        stop.set()
        changing.join()


IMAGES_ELSEWHERE = {
    'read only': lambda image: np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape),
    'upside down': lambda image: np.ascontiguousarray(image[::-1])[::-1],
    'mirrored': lambda image: np.ascontiguousarray(image[:, ::-1])[:, ::-1],
    'blue first': lambda image: np.ascontiguousarray(image[..., ::-1])[..., ::-1],
    'columns first': np.asfortranarray,
    'every second': lambda image: np.repeat(image, 2, axis=1)[:, ::2],
    'in padded rows': lambda image: np.pad(image, ((0, 0), (0, 5), (0, 0)))[:, :-5],
}


@pytest.mark.parametrize('size', [(96, 128), (64, 80)])
@pytest.mark.parametrize('where', IMAGES_ELSEWHERE)
def test_images_lie_anywhere(build, where, size):
    image = np.ascontiguousarray(IMAGE[:size[0], :size[1]])
    elsewhere = IMAGES_ELSEWHERE[where](image)
    assert np.array_equal(elsewhere, image)
    estimator = build()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        found = estimator.predict(elsewhere)
    np.testing.assert_allclose(found.depth, estimator.predict(image).depth, **ROUNDING)
    for array in (found.depth, found.logits):
        assert array.flags.writeable
        assert not np.shares_memory(array, elsewhere)
    np.testing.assert_array_equal(elsewhere, image)


def test_threads_of_torch_come_back(build):
    before = torch.get_num_threads()
    try:
        build(num_threads=before + 1)
        assert torch.get_num_threads() == before + 1
        build(num_threads=0)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_output_size_is_chosen(build):
    estimator = build()
    assert estimator.predict(IMAGE, (24, 32)).depth.shape == (24, 32)
    full = estimator.predict(clip_standin.synthetic_rgb(0))
    assert full.depth.shape == (480, 640)
    assert full.patch_depth.shape == (3, 4)


def test_resizing_brings_in_no_borders(build):
    estimator = build()
    gray, large = (np.full((*size, 3), 90, np.uint8) for size in ((96, 128), (333, 517)))
    np.testing.assert_allclose(
        estimator.predict(large).logits, estimator.predict(gray).logits, atol=1e-3)


def test_reconfigure_changes_what_it_may(build):
    estimator = build()
    estimator.reconfigure(SMALL.replace(temperature=0.7, upsampling='patch', flip_average=True))
    np.testing.assert_allclose(
        estimator.predict(IMAGE).depth,
        build(temperature=0.7, upsampling='patch', flip_average=True).predict(IMAGE).depth,
        **ROUNDING)
    longer = [b + 1 for b in SMALL.bins]
    before = estimator.predict(IMAGE).depth
    estimator.reconfigure(estimator.config.replace(bins=longer))
    np.testing.assert_allclose(estimator.predict(IMAGE).depth, before + 1, atol=1e-5)
    with pytest.raises(ConfigError, match=r'^input_width: '):
        estimator.reconfigure(SMALL.replace(input_width=64))
    assert estimator.config.input_width == SMALL.input_width


@pytest.mark.parametrize('words', [
    {'tokens': ['near', 'middling', 'far'], 'bins': [1.0, 4.0, 9.0]},
    {'tokens': list('abcdefghij'), 'bins': [float(b) for b in range(1, 11)]},
    {'templates': ['{}', 'a {} thing']},
])
def test_reconfigure_takes_other_words_and_another_number_of_them(build, words):
    estimator, fresh = build(), build(**words)
    plain = estimator.predict(IMAGE)
    estimator.reconfigure(SMALL.replace(**words))
    np.testing.assert_allclose(estimator.text_features, fresh.text_features, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        estimator.predict(IMAGE).depth, fresh.predict(IMAGE).depth, **ROUNDING)
    estimator.reconfigure(SMALL)
    np.testing.assert_allclose(estimator.predict(IMAGE).depth, plain.depth, **ROUNDING)


def test_encode_changes_nothing_and_is_done_once(build, monkeypatch):
    estimator = build()
    words = SMALL.replace(tokens=['here', 'there'], bins=[1.0, 2.0])
    features = estimator.encode(words)
    assert estimator.config == SMALL
    monkeypatch.setattr(estimator_module, 'cached_features', None)
    estimator.reconfigure(words)
    np.testing.assert_array_equal(estimator.text_features, features)


def test_encode_notices_other_weights(tmp_path):
    path = tmp_path / 'weights.pt'
    clip_standin.write_tiny_weights(path)
    estimator = DepthEstimator(SMALL, path, 'cpu', cache_dir=tmp_path)
    words = SMALL.replace(tokens=['here', 'there'], bins=[1.0, 2.0])
    clip_standin.write_tiny_weights(path, seed=1)
    with pytest.raises(WeightsError, match='have changed since they were loaded'):
        estimator.encode(words)
    path.unlink()
    with pytest.raises(WeightsError, match=r'weights\.pt'):
        estimator.reconfigure(words)
    assert estimator.config == SMALL
    clip_standin.write_tiny_weights(path)
    estimator.reconfigure(words)
    assert estimator.predict(IMAGE).weights.shape == (2, 3, 4)


@pytest.mark.parametrize('image', [
    np.zeros((96, 128), np.uint8), np.zeros((96, 128, 4), np.uint8),
    np.zeros((96, 128, 3), np.float32), np.zeros((0, 128, 3), np.uint8),
])
def test_not_an_image(build, image):
    with pytest.raises(ImageError, match=r'expected uint8 \(height, width, 3\)'):
        build().predict(image)


@pytest.mark.parametrize(('key', 'value', 'remedy'), [
    ('input_height', 100, '96 or 128'), ('input_width', 130, '128 or 160')])
def test_input_must_be_a_multiple_of_the_stride(build, key, value, remedy):
    with pytest.raises(ConfigError, match=rf'{key}: {value}.*stride 32.*{remedy}'):
        build(**{key: value})


def test_vision_transformer(tmp_path):
    state_dict = clip_standin.state_dict(0, **clip_standin.TINY_VIT)
    estimator = DepthEstimator(
        SMALL.replace(features='maskclip'), state_dict, 'cpu', cache_dir=tmp_path)
    assert estimator.grid == (6, 8)
    assert np.isfinite(estimator.predict(IMAGE).depth).all()


def test_devices_and_precisions():
    cpu, gpu = torch.device('cpu'), torch.device('cuda', 0)
    assert resolve_device('cpu') == cpu
    assert resolve_device('auto').type == ('cuda' if torch.cuda.is_available() else 'cpu')
    with pytest.raises(DeviceError, match="device: 'tpu'"):
        resolve_device('tpu')
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match='device: auto'):
            resolve_device('cuda:1')
    assert resolve_precision('auto', cpu) == (torch.float32, '')
    assert resolve_precision('auto', gpu) == (torch.float16, '')
    with pytest.raises(ConfigError, match='bfloat16'):
        resolve_precision('float16', cpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU on this machine')
def test_gpu_agrees_with_cpu(state_dict, tmp_path):
    exact, full, half = (
        DepthEstimator(SMALL.replace(precision=precision), state_dict, device, cache_dir=tmp_path)
        .predict(IMAGE).patch_depth for device, precision in (
            ('cpu', 'float32'), ('cuda', 'float32'), ('cuda', 'auto')))
    assert abs(full - exact).max() < 1e-2
    assert np.median(abs(half - exact)) < 0.05
