# SPDX-License-Identifier: Apache-2.0
"""Metrics and crops against the official code's numbers, and what can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from depthclip_ros.core.readout import upsample
from depthclip_ros.evaluation import metrics
from depthclip_ros.evaluation.datasets import Pair
from depthclip_ros.evaluation.datasets.base import read_depth, read_rgb
from depthclip_ros.evaluation.errors import DatasetError
from depthclip_ros.evaluation.metrics import (
    METRICS,
    SUMS,
    ScaledScores,
    average,
    joint_histogram,
    metrics_of,
    random_pixels,
    resampled,
)
from depthclip_ros.evaluation.protocol import PROTOCOLS

# Relative error of a sum of float32. At most 8192 numbers are added up in a row, with a rounding
# of 2^-24 each time, some up and some down.
SUMMED = math.sqrt(8192) * 2 ** -24
NAN = float('nan')


def sums_of(depth, truth, max_depth=10.0):
    """(11,) of one image."""
    return metrics.score(torch.as_tensor(np.float32(truth)), torch.as_tensor(
        np.float32(depth))[None], max_depth)[0].numpy()


def score(depth, truth, max_depth=10.0):
    """Metrics by name of one image."""
    return dict(zip(METRICS, metrics_of(sums_of(depth, truth, max_depth)), strict=True))


def nyu_like(rng, size=20000):
    """Truth with the published statistics: mean 2.65 m, median 2.4 m."""
    return np.clip(rng.lognormal(np.log(2.41), 0.43, size), 0.3, 9.99).astype(np.float32)


def test_equals_the_official_code(shared_dir):
    golden = np.load(shared_dir / 'goldens/reference_rgbd.npz')
    names = sorted({key.split('/')[0] for key in golden if '/' in key})
    assert len(names) == 3
    protocol = PROTOCOLS['depthclip']
    rows = []
    for name in names:
        rgb_file = next((shared_dir / 'goldens/rgbd').glob(f'{name}.*'))
        depth = read_depth(shared_dir / 'goldens/rgbd' / f'{name}_depth_mm.png', 1000.0)
        _, truth = protocol.prepare(Pair(read_rgb(rgb_file), depth))
        patches = torch.from_numpy(golden[f'{name}/patch_depth_flip_averaged'])[None]
        found = score(upsample(patches, protocol.size, 'bilinear')[0], truth, protocol.max_depth)
        rows.append([found[m] for m in ('abs_diff', 'd1', 'd2', 'd3', 'rel', 'log10', 'rmse')])
        np.testing.assert_allclose(rows[-1], golden[f'{name}/metrics'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.mean(rows, axis=0), golden['mean_metrics'], rtol=0, atol=1e-5)


def test_by_hand():
    found = score([[2.0, 3.0, 9.0, 4.0]], [[1.0, 3.0, NAN, 5.0]])  # what is not known counts not
    logs = np.log([2.0, 1.0, 0.8])
    assert found == pytest.approx({
        'd1': 1 / 3, 'd2': 2 / 3, 'd3': 2 / 3,  # 5 / 4 is not below 1.25
        'rel': (1 + 0 + 0.2) / 3, 'rmse': math.sqrt(2 / 3), 'abs_diff': 2 / 3,
        'sq_rel': (1 + 0 + 0.2) / 3, 'log10': np.abs(logs).mean() / math.log(10),
        'rmse_log': np.sqrt((logs ** 2).mean()), 'silog': 100 * logs.std()})
    perfect = score([[1.5, 2.5]], [[1.5, 2.5]])
    assert all(perfect[m] == (1 if m in ('d1', 'd2', 'd3') else 0) for m in METRICS)
    assert score([[30.0]], [[8.0]])['rmse'] == pytest.approx(2)  # clipped to the range
    assert score([[30.0]], [[8.0]], 80.0)['rmse'] == pytest.approx(22)


def test_any_multiple_is_scored_as_the_pixels_are():
    """In millimetres, ratios of exactly 1.25 occur; pixel by pixel they are float32's."""
    rng = np.random.default_rng(1)
    truth = np.round(nyu_like(rng), 3).astype(np.float32)
    for prediction, factors in ((1.0, [0.4, 1.0, 2.4, 2.5, 9.9]),
                                (np.round(nyu_like(rng), 3), np.geomspace(0.2, 5, 7))):
        quick = ScaledScores(prediction, truth).score(factors)
        slow = np.array([sums_of(np.float32(f) * prediction * np.ones_like(truth), truth, 1e6)
                         for f in factors])
        if isinstance(prediction, float):
            np.testing.assert_array_equal(quick[:, :4], slow[:, :4])
        np.testing.assert_allclose(quick[:, :4], slow[:, :4], atol=1.5)
        size = quick.copy()  # The sum of signed logarithms is less than what is added up for it.
        size[:, SUMS.index('signed_log')] = quick[:, SUMS.index('log')]
        assert (np.abs(quick - slow)[:, 4:] <= 3 * SUMMED * size[:, 4:]).all()


def test_random_depth_in_closed_form():
    rng = np.random.default_rng(3)
    truth = nyu_like(rng, 200000)
    sampled = metrics_of(sums_of(rng.uniform(1e-3, 10, truth.shape), truth))
    np.testing.assert_allclose(metrics_of(random_pixels(truth, 10.0)), sampled, rtol=0.02)


def test_averages_per_image_and_per_pixel():
    sums = np.stack([sums_of([2.0], [1.0]), sums_of([2.0, 2, 2], [4.0, 4, 4])])
    rmse = METRICS.index('rmse')
    assert average(sums, 'image')[rmse] == pytest.approx((1 + 2) / 2)
    assert average(sums, 'pixel')[rmse] == pytest.approx(math.sqrt((1 + 3 * 4) / 4))
    for how in ('image', 'pixel'):
        twice = resampled(sums, np.arange(2), np.array([[1, 1], [0, 2]]), how)
        np.testing.assert_allclose(twice, [average(sums, how), average(sums[1:], how)])


def test_joint_histogram_counts_valid_pixels_by_both_depths():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.01, 10, (40, 50)).astype(np.float32)
    depth = rng.uniform(0.01, 12, (40, 50)).astype(np.float32)
    truth[:5] = np.nan
    found = joint_histogram(torch.from_numpy(truth), torch.from_numpy(depth), 10.0, 20)
    edges = np.linspace(0, 10, 21)  # what is farther is counted in the last
    np.testing.assert_array_equal(found, np.histogram2d(
        truth[5:].ravel(), depth[5:].clip(max=10).ravel(), (edges, edges))[0])


# Protocols -----------------------------------------------------------------------------------


def pair(value=2.0, shape=(480, 640)):
    return Pair(np.zeros((*shape, 3), np.uint8), np.full(shape, value, np.float32))


def box(shape, rows, columns):
    mask = np.zeros(shape, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def test_windows_of_nyu():
    """The official masks, written out as they stand there, and Eigen's crop."""
    mask = box((480, 640), (45, 471), (46, 601))
    pasted = box((480, 640), (42 + 14, 474 - 2), (40 + 20, 616 - 12))
    image = pair()
    image.rgb[56, 60], image.rgb[471, 603] = 7, 9
    rgb, truth = PROTOCOLS['depthclip'].prepare(image)
    assert rgb.shape == (416, 544, 3)
    assert ((rgb[0, 0] == 7) & (rgb[-1, -1] == 9)).all()
    np.testing.assert_array_equal(~np.isnan(truth), (mask & pasted)[56:472, 60:604])
    assert (~np.isnan(truth)).sum() == 415 * 541
    rgb, truth = PROTOCOLS['bts'].prepare(pair())
    assert rgb.shape == (480, 640, 3)
    np.testing.assert_array_equal(~np.isnan(truth), box((480, 640), (45, 471), (41, 601)))


@pytest.mark.parametrize(('depth', 'counts'), [
    (0.0, False), (1e-3, False), (1.1e-3, True), (9.999, True), (10.0, False), (12.0, False)])
def test_range_is_open(depth, counts):
    _, truth = PROTOCOLS['depthclip'].prepare(pair(depth))
    assert (~np.isnan(truth)).any() == counts


@pytest.mark.parametrize('size', [(375, 1242), (370, 1226), (352, 1216)])
def test_kitti_window(size):
    height, width = size
    rgb, truth = PROTOCOLS['kitti'].prepare(pair(20.0, size))
    assert rgb.shape == (352, 1216, 3)
    whole = box(size, (int(0.40810811 * height), int(0.99189189 * height)),
                (int(0.03594771 * width), int(0.96405229 * width)))
    top, left = height - 352, int((width - 1216) / 2)
    np.testing.assert_array_equal(~np.isnan(truth), whole[top:top + 352, left:left + 1216])
    assert np.isnan(PROTOCOLS['kitti'].prepare(pair(80.0, size))[1]).all()


def test_other_sizes_are_refused():
    with pytest.raises(DatasetError, match=r'240 x 320.*480 x 640 only'):
        PROTOCOLS['depthclip'].prepare(pair(shape=(240, 320)))
    with pytest.raises(DatasetError, match='one size'):
        PROTOCOLS['bts'].prepare(Pair(np.zeros((480, 640, 3), np.uint8),
                                      np.ones((240, 320), np.float32)))
