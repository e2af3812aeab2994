# SPDX-License-Identifier: Apache-2.0
"""The official code's numbers, float32 on the CPU and on a GPU."""

from __future__ import annotations

from pathlib import Path

import clip_standin
import numpy as np
import pytest
import torch
from devices import DEVICES, gpu

from benchmarks.naive import NaiveDepthClip
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.engine import can_fuse, cpu_has_bfloat16

ROOT = Path(__file__).resolve().parents[1]
CROP = np.s_[56:472, 60:604]
LOGITS, DEPTH = 2e-3, 1e-4  # metres for the depth: rounding of another machine's float32


@pytest.fixture(scope='module', params=DEVICES)
def estimator(request, tmp_path_factory):
    config = DepthConfig.from_yaml(ROOT / 'config/nyu_paper.yaml').replace(precision='float32')
    return DepthEstimator(config, clip_standin.state_dict(0), request.param,
                          cache_dir=tmp_path_factory.mktemp('cache'))


def check(golden, name, prediction, config):
    np.testing.assert_allclose(prediction.logits, golden[f'{name}/logits'], rtol=0, atol=LOGITS)
    plain = np.einsum('khw,k->hw', prediction.weights, np.array(config.bins))
    np.testing.assert_allclose(plain, golden[f'{name}/patch_depth'], rtol=0, atol=DEPTH)
    np.testing.assert_allclose(
        prediction.patch_depth, golden[f'{name}/patch_depth_flip_averaged'], rtol=0, atol=DEPTH)
    np.testing.assert_allclose(
        prediction.depth[::4, ::4], golden[f'{name}/depth_416x544_every_4th'], rtol=0, atol=DEPTH)


def test_text_features(estimator):
    golden = np.load(ROOT / 'test/data/reference_synthetic.npz')
    np.testing.assert_allclose(
        estimator.text_features, golden['text_features'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_synthetic_images(estimator, seed):
    golden = np.load(ROOT / 'test/data/reference_synthetic.npz')
    prediction = estimator.predict(clip_standin.synthetic_rgb(seed)[CROP])
    assert prediction.depth.shape == (416, 544)
    check(golden, f'synthetic_{seed}', prediction, estimator.config)


def test_the_benchmarks_naive_way_is_the_official_code(estimator):
    golden = np.load(ROOT / 'test/data/reference_synthetic.npz')
    naive = NaiveDepthClip(clip_standin.state_dict(0), estimator.text_features, estimator.config,
                           torch.device('cpu'))
    depth, = naive([clip_standin.synthetic_rgb(0)[CROP]], flip=True)
    np.testing.assert_allclose(
        depth[::4, ::4], golden['synthetic_0/depth_416x544_every_4th'], rtol=0, atol=DEPTH)


def test_real_images(estimator, shared_dir):
    cv2 = pytest.importorskip('cv2')
    golden = np.load(shared_dir / 'goldens/reference_rgbd.npz')
    names = sorted({key.split('/')[0] for key in golden if '/' in key})
    assert len(names) == 3
    for name in names:
        path = next(p for p in (shared_dir / 'goldens/rgbd').glob(f'{name}.*'))
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        check(golden, name, estimator.predict(image[CROP]), estimator.config)


@pytest.mark.parametrize(('device', 'precision'), [
    pytest.param('cpu', 'bfloat16', marks=pytest.mark.skipif(
        not (cpu_has_bfloat16() and can_fuse(torch.bfloat16)),
        reason='this processor has no arithmetic for bfloat16')),
    gpu('cuda', 'float16')])
def test_half_formats_stay_near_the_official_numbers(device, precision, tmp_path):
    """Without flip averaging, as the node runs: half a step of the format at the furthest bin."""
    golden = np.load(ROOT / 'test/data/reference_synthetic.npz')
    config = DepthConfig.from_yaml(ROOT / 'config/nyu_paper.yaml').replace(
        precision=precision, flip_average=False)
    rough = DepthEstimator(config, clip_standin.state_dict(0), device, cache_dir=tmp_path)
    step = torch.finfo(getattr(torch, precision)).eps
    for seed in range(3):
        found = rough.predict(clip_standin.synthetic_rgb(seed)[CROP]).patch_depth
        difference = abs(found - golden[f'synthetic_{seed}/patch_depth'])
        assert 0 < np.median(difference) <= step / 2 * max(config.bins)


def test_golden_files_agree_with_the_reference_material(shared_dir):
    ours = np.load(ROOT / 'test/data/reference_synthetic.npz')
    theirs = np.load(shared_dir / 'goldens/reference_synthetic.npz')
    assert set(ours) == set(theirs)
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key])
