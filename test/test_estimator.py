# SPDX-License-Identifier: Apache-2.0
"""The estimator as others use it: what it makes of images, and what changes on a loaded model."""

from __future__ import annotations

import gc
import itertools
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clip_standin
import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from depthclip_ros.core import (
    ConfigError,
    DepthConfig,
    DepthEstimator,
    DeviceError,
    ImageError,
    WeightsError,
)
from depthclip_ros.core import estimator as estimator_module
from depthclip_ros.core.backbone import EncoderOutput
from depthclip_ros.core.engine import resolve_device, resolve_precision

# The paper's temperature makes random features one-hot; a warmer softmax lets changes be seen.
SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
NEAR, FAR = SMALL.bins[0], SMALL.bins[-1]
IMAGE = clip_standin.synthetic_rgb(0)[:96, :128]
MIRRORED = np.ascontiguousarray(IMAGE[:, ::-1])
# Of float32 sums, whose order may be another one each time: threads share the work as they come.
ROUNDING = {'rtol': 0, 'atol': 1e-4}
STRIDE = 8  # of the network that is looked through below


@pytest.fixture(scope='module')
def build(state_dict, tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache')

    def make(num_threads=0, **changes):
        return DepthEstimator(SMALL.replace(**changes), state_dict, 'cpu', cache_dir=folder,
                              num_threads=num_threads)
    return make


@pytest.fixture(scope='module')
def shared(build):
    return build()


@pytest.fixture
def using(shared):
    """The loaded model with some settings changed."""
    def change(**changes):
        shared.reconfigure(SMALL.replace(**changes))
        return shared
    yield change
    shared.reconfigure(SMALL)


def test_what_a_prediction_is(using):
    prediction = using().predict(IMAGE)
    shapes = {'depth': (96, 128), 'patch_depth': (3, 4), 'weights': (7, 3, 4),
              'logits': (7, 3, 4), 'spread': (3, 4)}
    for name, shape in shapes.items():
        array = getattr(prediction, name)
        assert (array.shape, array.dtype) == (shape, np.float32), name
        assert np.isfinite(array).all(), name
    np.testing.assert_allclose(prediction.weights.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(
        prediction.patch_depth, np.tensordot(SMALL.bins, prediction.weights, 1), atol=1e-5)
    assert NEAR <= prediction.depth.min() <= prediction.depth.max() <= FAR
    assert using().predict(clip_standin.synthetic_rgb(0)).depth.shape == (480, 640)


def test_the_image_the_words_and_the_normalisation_matter(build, using):
    plain = using().predict(IMAGE)
    other = using().predict(clip_standin.synthetic_rgb(1)[:96, :128])
    assert abs(plain.depth - other.depth).max() > 1e-3
    swapped = using(tokens=['unseen', *SMALL.tokens[1:-1], 'giant']).predict(IMAGE)
    np.testing.assert_allclose(plain.weights[0], swapped.weights[-1], atol=1e-5)
    assert abs(plain.depth - swapped.depth).max() > 1e-3
    clips = build(normalization='clip').predict(IMAGE)
    assert abs(plain.logits - clips.logits).max() > 1e-2


def test_batch_of_n_equals_n_singles(using):
    estimator = using(flip_average=True)
    images = [IMAGE, clip_standin.synthetic_rgb(1, 160, 90), clip_standin.synthetic_rgb(2)]
    batch = estimator.predict(images)
    assert [p.depth.shape for p in batch] == [(96, 128), (160, 90), (480, 640)]
    for image, prediction in zip(images, batch, strict=True):
        single = estimator.predict(image)
        np.testing.assert_allclose(prediction.depth, single.depth, **ROUNDING)
        np.testing.assert_allclose(prediction.logits, single.logits, atol=2e-3)
    assert estimator.predict([]) == []


def test_flip_average_equals_the_explicit_two_passes(using):
    first, mirrored = using().predict([IMAGE, MIRRORED])
    both = using(flip_average=True).predict(IMAGE)
    np.testing.assert_allclose(
        both.patch_depth, (first.patch_depth + mirrored.patch_depth[:, ::-1]) / 2, atol=1e-5)
    np.testing.assert_allclose(both.logits, first.logits, atol=2e-3)
    np.testing.assert_allclose(both.weights, first.weights, **ROUNDING)


# Where depth stands ------------------------------------------------------------------------------


def test_depth_at_a_patch_s_centre_is_the_patch_s(using):
    """The picture and the cloud (which is made of patch_depth) agree."""
    image, (h, w) = clip_standin.synthetic_rgb(0, 60, 70), (3, 4)
    prediction = using().predict(image, (5 * h, 9 * w))  # centres are pixels'
    np.testing.assert_allclose(
        prediction.depth[2::5, 4::9], prediction.patch_depth, rtol=0, atol=1e-6)
    assert prediction.patch_depth.std() > 0.01
    aligned = using(upsampling='bilinear').predict(image, (5 * h, 9 * w))
    assert abs(aligned.depth[2::5, 4::9] - aligned.patch_depth).max() > 0.01


@pytest.mark.parametrize(('height', 'width'), [(96, 128), (360, 640), (601, 333)])
@pytest.mark.parametrize('upsampling', ['centered', 'patch'])
def test_a_landmark_is_where_it_is_in_the_picture(using, monkeypatch, height, width, upsampling):
    """A bright lower right quarter, and a network for which bright is far."""
    estimator = using(upsampling=upsampling, temperature=0.01)
    text = torch.from_numpy(estimator.text_features)

    def see(batch):
        far = avg_pool2d((batch.mean(dim=1, keepdim=True) > 0.5).float(), STRIDE)
        features = text[0, :, None, None] * (1 - far) + text[-1, :, None, None] * far
        return EncoderOutput(features, features)

    monkeypatch.setattr(estimator.model.encoder, 'encode', see)
    image = np.full((height, width, 3), 30, np.uint8)
    image[height // 2:, width // 2:] = 250
    prediction = estimator.predict(image)
    h, w = prediction.patch_depth.shape
    v, u = np.mgrid[:height, :width] + 0.5
    # Beyond a patch from the quarter's edges there can be no doubt.
    far = (v > height / 2 + height / h) & (u > width / 2 + width / w)
    near = (v < height / 2 - height / h) | (u < width / 2 - width / w)
    np.testing.assert_allclose(prediction.depth[near], NEAR, atol=1e-3)
    np.testing.assert_allclose(prediction.depth[far], FAR, atol=1e-3)
    small = estimator.predict(image, (height // 2, width // 2)).depth  # the same of half the size
    np.testing.assert_allclose(small[far[::2, ::2][:height // 2, :width // 2]], FAR, atol=1e-3)


@pytest.mark.parametrize('upsampling', ['centered', 'bilinear', 'patch'])
@pytest.mark.parametrize('size', [(1, 1), (1, 500), (3, 4000)])
@pytest.mark.filterwarnings('error::RuntimeWarning', 'error::UserWarning')
def test_the_thinnest_images(using, upsampling, size):
    for wanted in (None, (1, 1)):
        depth = using(upsampling=upsampling).predict(
            np.full((*size, 3), 99, np.uint8), wanted).depth
        assert depth.shape == (wanted or size)
        assert ((depth >= NEAR) & (depth <= FAR)).all()


@pytest.mark.parametrize('flip', [False, True])
def test_the_range_is_kept_by_patches_and_pixels(using, flip):
    """Of both passes, it holds for their mean; every pixel of such a patch is a hole."""
    image = clip_standin.synthetic_rgb(4, 90, 120)
    plain = using(flip_average=flip).predict(image)
    low, high = np.quantile(plain.patch_depth, (0.25, 0.75)).tolist()
    for out_of_range, near, far in (
            ('clamp', low, high), ('nan', np.nan, np.nan), ('inf', -np.inf, np.inf)):
        limited = using(range_min=low, range_max=high, flip_average=flip,
                        out_of_range=out_of_range).predict(image)
        expected = np.where(plain.patch_depth < low, near,
                            np.where(plain.patch_depth > high, far, plain.patch_depth))
        np.testing.assert_allclose(limited.patch_depth, expected, rtol=1e-6)
        finite = limited.depth[np.isfinite(limited.depth)]
        assert low * (1 - 1e-6) <= finite.min() <= finite.max() <= high * (1 + 1e-6)
        nearest = expected.astype(np.float32).repeat(30, axis=0).repeat(30, axis=1)
        np.testing.assert_array_equal(
            np.where(np.isfinite(limited.depth), 0, limited.depth),
            np.where(np.isfinite(nearest), 0, nearest))
        np.testing.assert_array_equal(limited.weights, plain.weights)


# Images ------------------------------------------------------------------------------------------

ELSEWHERE = {
    'read only': lambda image: np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape),
    'mirrored': lambda image: np.ascontiguousarray(image[:, ::-1])[:, ::-1],
    'blue first': lambda image: np.ascontiguousarray(image[..., ::-1])[..., ::-1],
    'columns first': np.asfortranarray,
    'in padded rows': lambda image: np.pad(image, ((0, 0), (0, 5), (0, 0)))[:, :-5],
}


@pytest.mark.parametrize('size', [(96, 128), (64, 80)])
@pytest.mark.parametrize('where', ELSEWHERE)
def test_images_lie_anywhere(using, where, size):
    image = np.ascontiguousarray(IMAGE[:size[0], :size[1]])
    elsewhere = ELSEWHERE[where](image)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        found = using().predict(elsewhere)
    np.testing.assert_allclose(found.depth, using().predict(image).depth, **ROUNDING)
    for array in (found.depth, found.logits):
        assert array.flags.writeable
        assert not np.shares_memory(array, elsewhere)
    np.testing.assert_array_equal(elsewhere, image)


def test_resizing_brings_in_no_borders(using):
    gray, large = (np.full((*size, 3), 90, np.uint8) for size in ((96, 128), (333, 517)))
    np.testing.assert_allclose(
        using().predict(large).logits, using().predict(gray).logits, atol=1e-3)


@pytest.mark.parametrize('image', [
    np.zeros((96, 128), np.uint8), np.zeros((96, 128, 4), np.uint8),
    np.zeros((96, 128, 3), np.float32), np.zeros((0, 128, 3), np.uint8)])
def test_not_an_image(using, image):
    with pytest.raises(ImageError, match=r'expected uint8 \(height, width, 3\)'):
        using().predict(image)


class Tensor:
    """A tensor of whoever's."""

    shape, dtype = (3, 96, 128), 'torch.uint8'


@pytest.mark.parametrize(('image', 'said'), [
    ('a.png', 'str;'), (Path('a.png'), 'PosixPath;'), (None, 'NoneType;'),
    (['a.png', 'b.png'], 'str;'), (Tensor(), r'Tensor torch.uint8 \(3, 96, 128\)'),
    ([torch.zeros(3, 96, 128)], r'Tensor torch.float32 \(3, 96, 128\)'),
    (torch.zeros(3, 96, 128), r'Tensor torch.float32 \(3, 96, 128\)'),
    (np.zeros((96, 128, 3)), r'float64 \(96, 128, 3\)'),
    (np.zeros((2, 96, 128, 3), np.uint8), r'uint8 \(2, 96, 128, 3\)')])
def test_what_is_no_image_is_told_what_makes_it_one(using, image, said):
    with pytest.raises(ImageError, match=rf'the image is .*{said}.*convert\(.RGB.\)'):
        using().predict(image)


# On a loaded model -------------------------------------------------------------------------------


@pytest.mark.parametrize('changes', [
    {'temperature': 0.7, 'upsampling': 'patch', 'flip_average': True},
    {'bins': [b + 1 for b in SMALL.bins]},
    {'tokens': list('abcdefghij'), 'bins': [float(b) for b in range(1, 11)]},
    {'templates': ['{}', 'a {} thing']}])
def test_reconfigure_gives_what_a_new_estimator_gives_and_back(build, using, changes):
    plain = using().predict(IMAGE)
    fresh, changed = build(**changes), using(**changes)
    np.testing.assert_allclose(changed.text_features, fresh.text_features, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        changed.predict(IMAGE).depth, fresh.predict(IMAGE).depth, **ROUNDING)
    np.testing.assert_allclose(using().predict(IMAGE).depth, plain.depth, **ROUNDING)


def test_what_needs_loading_is_refused(build, using):
    with pytest.raises(ConfigError, match=r'^input_width: '):
        using(input_width=64)
    assert using().config == SMALL
    for key, value, remedy in (('input_height', 100, '96 or 128'),
                               ('input_width', 130, '128 or 160')):
        with pytest.raises(ConfigError, match=rf'{key}: {value}.*stride 32.*{remedy}'):
            build(**{key: value})


def test_reconfigure_while_others_predict(using):
    """A prediction is that of one configuration as a whole, whichever."""
    changes = [{}, {'flip_average': True, 'temperature': 0.5, 'upsampling': 'patch',
                    'bins': [b + 1 for b in SMALL.bins]}]
    expected = [using(**change).predict(IMAGE) for change in changes]
    estimator, stop, seen = using(), threading.Event(), set()

    def change():
        for i in itertools.count():
            using(**changes[i % 2])
            if stop.wait(1e-4):
                return

    def is_of(prediction, one):
        return all(np.allclose(getattr(prediction, name), getattr(one, name), **ROUNDING)
                   for name in ('depth', 'weights', 'spread'))

    changing = threading.Thread(target=change)
    changing.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            while seen != {0, 1}:  # both come, sooner or later
                for prediction in pool.map(lambda _: estimator.predict(IMAGE), range(40)):
                    seen.add(next(i for i in range(2) if is_of(prediction, expected[i])))
    finally:
        stop.set()
        changing.join()


def test_prepare_changes_nothing_and_is_done_once(using, monkeypatch):
    estimator, words = using(), SMALL.replace(tokens=['here', 'there'], bins=[1.0, 2.0])
    features = estimator.prepare(words).text.numpy()
    assert estimator.config == SMALL
    with monkeypatch.context() as patch:
        patch.setattr(estimator_module, 'cached_features', None)
        estimator.reconfigure(words)
    np.testing.assert_array_equal(estimator.text_features, features)


def test_prepare_notices_other_weights(tmp_path):
    path, words = tmp_path / 'weights.pt', SMALL.replace(tokens=['here', 'there'], bins=[1.0, 2.0])
    clip_standin.write_tiny_weights(path)
    estimator = DepthEstimator(SMALL, path, 'cpu', cache_dir=tmp_path)
    clip_standin.write_tiny_weights(path, seed=1)
    with pytest.raises(WeightsError, match='have changed since they were loaded'):
        estimator.prepare(words)
    path.unlink()
    with pytest.raises(WeightsError, match=r'weights\.pt'):
        estimator.reconfigure(words)
    assert estimator.config == SMALL
    clip_standin.write_tiny_weights(path)
    estimator.reconfigure(words)
    assert estimator.predict(IMAGE).weights.shape == (2, 3, 4)


# Networks and devices ----------------------------------------------------------------------------


def test_threads_of_torch_come_back(build):
    before = torch.get_num_threads()
    try:
        build(num_threads=before + 1)
        assert torch.get_num_threads() == before + 1
        build(num_threads=0)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_an_estimator_that_nobody_needs_is_gone_at_once(build):
    """On a GPU two models would stand beside each other until garbage is collected."""
    estimator = build()
    estimator.predict(IMAGE)
    gone = weakref.ref(estimator)
    gc.disable()
    try:
        del estimator
        assert gone() is None
    finally:
        gc.enable()


def test_a_prediction_that_is_kept_keeps_no_other(using):
    first = using().predict([IMAGE] * 4)[0]
    for name in ('depth', 'patch_depth', 'weights', 'logits', 'spread'):
        values = getattr(first, name)
        assert values.base is None or values.base.nbytes <= values.nbytes, name


def test_vision_transformer(tmp_path):
    estimator = DepthEstimator(SMALL.replace(features='maskclip'), clip_standin.state_dict(
        0, **clip_standin.TINY_VIT), 'cpu', cache_dir=tmp_path)
    assert estimator.grid == (6, 8)
    assert np.isfinite(estimator.predict(IMAGE).depth).all()


@pytest.mark.parametrize('features', ['reference', 'maskclip', 'attnpool'])
@pytest.mark.parametrize(('choose', 'chosen', 'usual'), [
    (torch.set_default_dtype, torch.float64, torch.float32),
    (torch.set_default_dtype, torch.bfloat16, torch.float32),
    (torch.set_default_device, 'meta', None)])
def test_what_tensors_are_by_default_in_the_process_is_nothing_to_us(
        state_dict, tmp_path, features, choose, chosen, usual):
    """As programs set it around the models of their own: both while loading and predicting."""
    config = SMALL.replace(features=features, scenes=['hall', 'closet'])
    depth = DepthEstimator(config, state_dict, 'cpu', cache_dir=tmp_path).predict(IMAGE).depth
    choose(chosen)
    try:
        estimator = DepthEstimator(config, state_dict, 'cpu', cache_dir=tmp_path / 'another')
        here = estimator.predict(IMAGE).depth
        assert torch.empty(0).dtype == chosen or torch.empty(0).is_meta  # theirs still
    finally:
        choose(usual)
    np.testing.assert_allclose(here, depth, **ROUNDING)


def test_devices_and_precisions():
    cpu = torch.device('cpu')
    assert resolve_device('cpu') == cpu
    assert resolve_device('auto').type == ('cuda' if torch.cuda.is_available() else 'cpu')
    for name in ('tpu', 'cuda:²', 'cuda:-1', 'cpu:0', 'auto:1'):
        with pytest.raises(DeviceError, match=name):
            resolve_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match='device: auto'):
            resolve_device('cuda:1')
    assert resolve_precision('auto', cpu) == torch.float32
    with pytest.raises(ConfigError, match='bfloat16'):
        resolve_precision('float16', cpu)


def test_a_gpu_whose_memory_is_short_stays_the_one_that_is_meant(monkeypatch):
    """It computes; that there is no room is for loading to say, and passes."""
    def full(*_, **__):
        raise RuntimeError('CUDA error: out of memory')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch, 'ones', full)
    assert resolve_device('auto') == resolve_device('cuda') == torch.device('cuda', 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason='the GPU of this machine works')
def test_a_gpu_that_torch_has_no_kernels_for_is_no_gpu(monkeypatch):
    """As of cards that are newer or older than torch's build: it counts them all the same."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    log: list[str] = []
    assert resolve_device('auto', log.append) == torch.device('cpu')
    assert any('WARNING' in line and 'cuda:0' in line for line in log)
    with pytest.raises(DeviceError, match=r'cuda:0 .*device: cpu'):
        resolve_device('cuda')
