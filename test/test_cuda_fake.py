# SPDX-License-Identifier: Apache-2.0
"""What runs on a GPU, without one: torch's FakeTensors know their device, but hold no numbers.

An operation that mixes devices fails, and so does NumPy of what is on a GPU. Copies between
the two are counted.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import calibrations
import clip_standin
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from depthclip_ros.core import CameraImage, DepthConfig, DepthEstimator, calibration, estimator
from depthclip_ros.core.anchor import Adjustment
from depthclip_ros.core.backbone import build_image_encoder
from depthclip_ros.core.calibration import Calibration
from depthclip_ros.core.camera import CameraModel

SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128)
GPU = torch.device('cuda', 0)
IMAGES = [clip_standin.synthetic_rgb(1)[:96, :128], clip_standin.synthetic_rgb(2)]
CAMERA = CameraModel.pinhole(128, 96, 100.0)
WAITS = []  # of the host for the GPU
AROUND = np.ones((3, 4), np.float32)
NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64,
         torch.uint8: np.uint8, torch.bool: np.bool_}


def as_numpy(tensor):
    assert tensor.device.type == 'cpu', f'NumPy of what is on {tensor.device}'
    return np.full(tuple(tensor.shape), 2, NUMPY[tensor.dtype])


class Copies(TorchDispatchMode):
    """Counts copies to the GPU and to the host, and where images are resized."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and args and isinstance(args[0], torch.Tensor) \
                and args[0].device != result.device:
            self.counts[result.device.type] += 1
        if '_aa' in function.__name__:  # antialiased, as images are
            self.counts[f'resized on {result.device.type}'] += 1
        return result


@pytest.fixture
def fake(monkeypatch):
    """FakeTensors, whose numbers all are 2 to who looks at them on the host."""
    monkeypatch.setattr(FakeTensor, 'numpy', as_numpy, raising=False)
    monkeypatch.setattr(FakeTensor, 'tolist', lambda tensor: as_numpy(tensor.cpu()).tolist(),
                        raising=False)
    monkeypatch.setattr(FakeTensor, '__bool__', lambda _tensor: False, raising=False)
    monkeypatch.setattr(FakeTensor, 'pin_memory', lambda tensor: tensor, raising=False)
    monkeypatch.setattr(estimator, 'compute_on', lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda _device: SimpleNamespace(
        synchronize=lambda: WAITS.append(1)))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield lambda tensor: mode.from_tensor(tensor).to(GPU)


@pytest.fixture(scope='module')
def build(state_dict, tmp_path_factory):
    """An estimator on the CPU, whose words are encoded."""
    folder = tmp_path_factory.mktemp('cache')
    return lambda **changes: DepthEstimator(SMALL.replace(**changes), state_dict, 'cpu',
                                            cache_dir=folder, num_threads=1)


def move(made, move_tensor, state_dict, corrected):
    """Move all that an estimator has to the GPU, its trunk in half."""
    settings = made._settings
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        encoder = copy.deepcopy(build_image_encoder(state_dict, made.config.features))
        pool = copy.deepcopy(settings.pool)
    encoder = encoder._apply(move_tensor)
    encoder.trunk, encoder.dtype = encoder.trunk.to(torch.float16), torch.float16
    made.model.encoder, made.device, preprocess = encoder, GPU, made.model.preprocess
    preprocess._device = GPU
    preprocess._gain, preprocess._offset = map(
        move_tensor, (preprocess._gain, preprocess._offset))
    made._settings = settings._replace(
        calibration=corrected, pool=pool and pool._apply(move_tensor),
        text=move_tensor(settings.text))


@pytest.mark.parametrize(('features', 'flip', 'upsampling'), [
    ('reference', False, 'centered'), ('reference', True, 'bilinear'), ('maskclip', True, 'patch'),
    ('attnpool', False, 'centered'), ('attnpool', True, 'patch')])
def test_nothing_mixes_devices(build, features, flip, upsampling, state_dict, fake, monkeypatch):
    monkeypatch.setattr(calibration, '_arrays_on', lambda own, device: {
        name: torch.empty(values.shape, device=device) for name, values in own.arrays.items()})
    for scenes, corrected, anchored in itertools.product(
            ([''], ['hall', 'room']), (False, True), (False, True)):
        if corrected and scenes != ['']:
            continue
        with torch._subclasses.fake_tensor.unset_fake_temporarily():
            made = build(features=features, flip_average=flip, upsampling=upsampling,
                         scenes=scenes, range_min=1.5, range_max=2.5,
                         out_of_range='inf' if anchored else 'clamp')
            fitted = Calibration(calibrations.origin(made), calibrations.random_arrays(made)) \
                if corrected else None
        move(made, fake, state_dict, fitted)
        adjust = (lambda *_: Adjustment(1.2, 1.1, AROUND, AROUND)) if anchored else None
        scene = made.predict(IMAGES[0]).scene
        WAITS.clear()
        with Copies() as copies:
            found = made.predict([CameraImage(IMAGES[0], CAMERA, adjust, scene), IMAGES[1]])
        assert len(WAITS) == copies.counts['cuda'] == 1
        assert copies.counts['cpu'] == 1 + corrected + (scenes != [''])
        assert (copies.counts['resized on cpu'], copies.counts['resized on cuda']) == (1, 0)
        assert [one.depth.shape for one in found] == [image.shape[:2] for image in IMAGES]
