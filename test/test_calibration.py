# SPDX-License-Identifier: Apache-2.0
"""A calibration: its file, what it belongs to, and what it does to depth."""

from __future__ import annotations

import math
from contextlib import nullcontext

import calibrations
import clip_standin
import numpy as np
import pytest
import safetensors.numpy
import torch

from depthclip_ros.core import (
    CalibrationError,
    CameraImage,
    ConfigError,
    DepthConfig,
    DepthEstimator,
)
from depthclip_ros.core.anchor import Adjustment
from depthclip_ros.core.calibration import (
    LARGEST_CORRECTION,
    NEIGHBOUR_WEIGHTS,
    STDDEV_PREDICTORS,
    STDDEV_RATIO_LIMITS,
    Calibration,
    empty_kernel,
)
from depthclip_ros.core.camera import CameraModel

SIZE = 96, 128
CONFIG = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
IMAGES = [clip_standin.synthetic_rgb(i, *SIZE) for i in range(3)]


class Work(torch.nn.Module):
    """A function as a module."""

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


@pytest.fixture(scope='module')
def shared(state_dict):
    return DepthEstimator(CONFIG, state_dict, 'cpu')


@pytest.fixture
def estimator(shared):
    yield shared
    shared.reconfigure(CONFIG)


@pytest.fixture
def use(estimator, tmp_path):
    """Calibrate the estimator with arrays; gives the calibration."""
    def put(arrays=None, *, config=CONFIG, **about):
        estimator.reconfigure(config)
        calibration = Calibration(
            calibrations.origin(estimator, **about), arrays or calibrations.arrays_for(estimator))
        estimator.reconfigure(config.replace(calibration=str(calibration.save(tmp_path, 'own'))))
        return calibration
    return put


def camera(scale=1.0, size=SIZE):
    return CameraModel.pinhole(size[1], size[0], 0.811 * scale * size[1])


# The file and what it belongs to ----------------------------------------------------------------


def test_the_same_calibration_is_the_same_file(estimator, tmp_path):
    calibration = calibrations.calibration_for(estimator, **calibrations.random_arrays(estimator))
    path = calibration.save(tmp_path, 'robot')
    again = Calibration.load(path)
    assert again.digest == calibration.digest
    assert again.save(tmp_path / 'again', 'robot').read_bytes() == path.read_bytes()
    found = safetensors.numpy.load_file(path)
    for name, array in calibration.arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_damaged_and_foreign_files_are_refused(estimator, tmp_path):
    named = calibrations.calibration_for(estimator).save(tmp_path, 'robot')
    content, path = named.read_bytes(), tmp_path / 'robot.safetensors'
    named.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of a number, which has no sum
    with pytest.raises(CalibrationError, match='SHA-256'):
        Calibration.load(named)
    for damaged in (b'', b'x', content[:40], content[:-1], content[1:],
                    content.replace(b'calibration 3', b'calibration 2'),
                    content.replace(b'"blocks\\": 10', b'"blocks\\": ""'),
                    content.replace(b'temperature', b'temperatura'),
                    safetensors.numpy.save({'bias': np.zeros(())})):
        assert damaged != content
        path.write_bytes(damaged)
        with pytest.raises(CalibrationError, match='damaged or no calibration'):
            Calibration.load(path)
    for missing in ('/nowhere/x.safetensors', '/', '~nobody-here/x'):
        with pytest.raises(CalibrationError, match='cannot be read'):
            Calibration.load(missing)


@pytest.mark.parametrize('changes', [
    {'projection': np.zeros((3, 256))}, {'projection': np.zeros(4)}, {'scales': np.zeros(3)},
    {'landmarks': np.zeros((2, 5))}, {'kernel': np.zeros((1, 1))}, {'offset': np.zeros(2)},
    {'bounds': np.zeros(2)}, {'knots': [[1, 0], [0, 0]]}, {'knots': np.zeros((2, 1))},
    {'rays': np.zeros((3, 4))}, {'spread': np.zeros(3)}, {'more': np.zeros(1)},
    {'bias': np.float32(np.inf)}])
def test_arrays_that_do_not_fit_each_other_are_refused(estimator, changes):
    with pytest.raises(CalibrationError, match='no calibration'):
        calibrations.calibration_for(estimator, **changes)


def test_every_difference_is_named(estimator, tmp_path):
    calibration = calibrations.calibration_for(
        estimator, {'weights': 'f' * 64, 'weights_name': 'RN50'}, rays=np.zeros((4, 5, 2)),
        **empty_kernel(9))
    other = CONFIG.replace(
        tokens=['near', 'far'], bins=[1.0, 2.0], temperature=0.5, normalization='clip',
        flip_average=True, reference_focal=0.5, upsampling='patch', scenes=['hall', 'closet'],
        calibration=str(calibration.save(tmp_path, 'x')))
    with pytest.raises(CalibrationError) as caught:
        DepthEstimator(other, clip_standin.tiny_state_dict(), 'cpu')
    for name in ('tokens', 'bins', 'temperature', 'normalization', 'flip_average', 'upsampling',
                 'reference_focal', 'scenes', 'weights', 'RN50', 'grid of patches',
                 'channels of the trunk'):
        assert name in str(caught.value), name
    assert 'templates is' not in str(caught.value)


@pytest.mark.parametrize(('read_out', 'smoothing', 'refused'), [
    ('mean', 0.0, ''), ('argmax', 0.0, "read_out, .* any more, is 'mean', it was 'argmax'"),
    ('mean', 0.5, 'smoothing, .* any more, is 0.0, it was 0.5')])
def test_a_file_of_a_version_with_more_settings(estimator, tmp_path, read_out, smoothing, refused):
    config = {**calibrations.origin(estimator).config,
              'read_out': read_out, 'smoothing': smoothing}
    path = calibrations.calibration_for(estimator, {'config': config}).save(tmp_path, 'old')
    expected = estimator.predict(IMAGES[0]).depth
    with pytest.raises(CalibrationError, match=refused) if refused else nullcontext():
        estimator.reconfigure(CONFIG.replace(calibration=str(path)))
        np.testing.assert_allclose(estimator.predict(IMAGES[0]).depth, expected, rtol=1e-5)


@pytest.mark.parametrize(('fitted', 'runs', 'fits'), [
    ('int8', 'float32', False), ('float32', 'int8', False), ('bfloat16', 'float32', True),
    ('int8', 'int8', True), ('', 'int8', True)])
def test_what_was_fitted_in_8_bits_is_for_8_bits_alone(estimator, fitted, runs, fits):
    calibration = calibrations.calibration_for(estimator, {'precision': fitted})
    refused = pytest.raises(CalibrationError, match=f'precision is {runs!r}')
    with nullcontext() if fits else refused:
        calibration.check(CONFIG, estimator.weights.digest, runs, estimator.grid,
                          estimator.model.channels)


def test_a_bad_file_changes_nothing(estimator, use, tmp_path):
    use(calibrations.arrays_for(estimator, bias=0.3))
    before, config = estimator.predict(IMAGES[0]), estimator.config
    foreign = calibrations.calibration_for(estimator, {'weights': 'f' * 64})
    for change, reason in (
            ({'calibration': str(tmp_path / 'none.safetensors')}, 'cannot be read'),
            ({'calibration': str(foreign.save(tmp_path, 'foreign'))}, 'weights'),
            ({'temperature': 1.0}, 'temperature is')):
        with pytest.raises(CalibrationError, match=reason):
            estimator.reconfigure(config.replace(range_max=2.0, **change))
        assert estimator.config is config
        np.testing.assert_array_equal(estimator.predict(IMAGES[0]).depth, before.depth)
    with pytest.raises(ConfigError, match='backbone'):
        estimator.reconfigure(config.replace(backbone='RN101', calibration=''))
    assert 'no longer zero-shot' in estimator.label


def test_a_file_in_use_may_go(estimator, use, tmp_path):
    calibration = use()
    path, = tmp_path.glob('*.safetensors')
    path.unlink()
    estimator.reconfigure(estimator.config.replace(range_max=2.0))
    assert estimator.calibration.digest == calibration.digest


def test_a_file_that_is_made_anew_under_its_name_counts(estimator, tmp_path):
    path = tmp_path / 'robot.safetensors'
    depths = []
    for bias in (0.1, 0.7):
        made = calibrations.calibration_for(estimator, bias=bias).save(tmp_path / 'new', 'own')
        made.replace(path)
        for calibration in ('', str(path)):
            estimator.reconfigure(CONFIG.replace(calibration=calibration))
        depths.append(estimator.predict(IMAGES[0]).depth)
    np.testing.assert_allclose(depths[1], math.exp(0.6) * depths[0], rtol=1e-5)


# What it does -------------------------------------------------------------------------------


def test_a_patch_without_features_costs_no_other_its_depth(estimator, use):
    use(calibrations.random_arrays(estimator))
    expected, trunk = estimator.predict(IMAGES[0]), estimator.model.encoder.trunk

    def hole(images):
        features = trunk(images).clone()
        features[:, :, 0, 0] = 0.0
        return features
    estimator.model.encoder.trunk = Work(hole)
    try:
        found = estimator.predict(IMAGES[0])
    finally:
        estimator.model.encoder.trunk = trunk
    for values, before in ((found.patch_depth, expected.patch_depth),
                           (found.patch_stddev, expected.patch_stddev)):
        assert np.flatnonzero(np.isnan(values)).tolist() == [0]
        np.testing.assert_allclose(values[2:, 2:], before[2:, 2:], rtol=0.1)


def test_nothing_corrected_is_nothing_changed_but_error_bars(estimator, use):
    before = estimator.predict(IMAGES)
    use()
    for plain, found in zip(before, estimator.predict(IMAGES), strict=True):
        np.testing.assert_allclose(found.depth, plain.depth, rtol=1e-5)
        np.testing.assert_array_equal(found.logits, plain.logits)
        np.testing.assert_allclose(found.patch_stddev, 0.1 * found.patch_depth, rtol=1e-5)
        np.testing.assert_allclose(found.stddev(), 0.1 * found.depth, rtol=1e-4)
        assert plain.patch_stddev is plain.stddev() is None


@pytest.mark.parametrize('sign', [1, -1])
def test_a_correction_ends_at_its_bound_whatever_the_focal_length(estimator, use, sign):
    plain, own = estimator.predict(IMAGES[0]), camera(0.6)
    spread = np.zeros(STDDEV_PREDICTORS)
    spread[[0, 6]] = math.log(0.1), 0.2
    use(calibrations.arrays_for(estimator, bias=sign * 5.0, spread=spread))
    found = estimator.predict(CameraImage(IMAGES[0], own))
    assert found.focal_ratio != 1.0
    bound = math.exp(sign * LARGEST_CORRECTION)
    np.testing.assert_allclose(
        found.patch_depth, bound * found.focal_ratio * plain.patch_depth, rtol=1e-5)
    np.testing.assert_allclose(
        found.patch_stddev, 0.1 * math.exp(0.2 * LARGEST_CORRECTION) * found.patch_depth,
        rtol=1e-5)


def by_hand(estimator, arrays, image, camera_model):
    """Depth and relative standard deviation of patches, in float64 NumPy."""
    a = {name: values.astype(np.float64) for name, values in arrays.items()}
    maps = estimator.encode([image])
    logits = estimator.predict(image).logits.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=0))
    weights /= weights.sum(axis=0)
    bins = np.float64(estimator.config.bins)
    depth = np.tensordot(bins, weights, 1)
    spread = np.sqrt(np.tensordot(bins ** 2, weights, 1) - depth ** 2)
    trunk = maps.trunk[0].double().numpy()
    rays = np.moveaxis(camera_model.patch_rays(*estimator.grid)[..., :2].clip(
        *arrays['bounds']), 2, 0)
    correction = np.full_like(depth, a['bias'])
    directions = np.tensordot(a['projection'], trunk, 1) + a['offset'][:, None, None]
    # Of the five directions, the last two.
    padded, h = np.pad(directions, ((0, 0), (3, 3), (0, 0)), mode='edge')[3:], depth.shape[0]
    near = [weight * padded[:, 3 + way * far:3 + way * far + h]
            for far, weight in NEIGHBOUR_WEIGHTS.items() for way in (-1, 1)]
    told = np.stack([np.log(depth), np.full_like(depth, np.log(depth).mean()), *rays])
    look = np.concatenate([directions, *near,
                           told * a['scales'][:, None, None]])
    distance = np.square(look[:, None] - a['landmarks'].T[..., None, None]).sum(axis=0)
    correction += np.tensordot(a['kernel'], np.exp(-distance / 2), 1)
    ratio = camera_model.focal_length() / estimator.config.reference_focal
    log_depth = np.log(depth) + correction + math.log(ratio)
    padded = np.pad(log_depth, 1, mode='edge')
    h, w = log_depth.shape
    around = np.stack([padded[i:i + h, j:j + w] for i in range(3) for j in range(3)])
    entropy = -(weights * np.log(weights)).sum(axis=0)
    terms = np.stack([np.ones_like(depth), log_depth, log_depth ** 2, spread / depth, entropy,
                      np.ptp(around, axis=0), np.abs(correction), rays[1],
                      rays[0] ** 2 + rays[1] ** 2])
    logarithm = np.tensordot(a['spread'], terms, 1) + np.interp(log_depth, *a['knots'])
    return np.exp(log_depth), np.exp(logarithm).clip(*STDDEV_RATIO_LIMITS)


def test_a_correction_is_what_its_formula_says_also_in_a_batch(estimator, use):
    arrays = calibrations.random_arrays(estimator)
    use(arrays)
    cameras = [camera(), camera(0.7), camera(1.6)]
    for image, own, found in zip(
            IMAGES, cameras, estimator.predict(list(map(CameraImage, IMAGES, cameras))),
            strict=True):
        depth, spread = by_hand(estimator, arrays, image, own)
        np.testing.assert_allclose(found.patch_depth, depth, rtol=2e-4)
        np.testing.assert_allclose(found.patch_stddev, depth * spread, rtol=2e-4)
        assert np.ptp(found.patch_stddev / found.patch_depth) > 1e-3


def test_without_a_camera_it_is_the_one_that_was_calibrated(estimator, use):
    own = camera(0.6)
    arrays = calibrations.random_arrays(estimator)
    arrays['rays'] = rays = own.patch_rays(*estimator.grid)[..., :2].astype(np.float32)
    arrays['bounds'] = np.stack([rays.min((0, 1)), rays.max((0, 1))])
    use(arrays, focal_ratio=0.6)
    known, unknown = estimator.predict([CameraImage(IMAGES[0], own), IMAGES[1]])
    assert unknown.focal_ratio == pytest.approx(known.focal_ratio)
    np.testing.assert_allclose(
        estimator.predict(IMAGES[0]).depth, known.depth, rtol=1e-5)


def test_flip_average_is_the_mean_of_both_views(estimator, use):
    arrays = calibrations.random_arrays(estimator)
    use(arrays, config=CONFIG.replace(flip_average=True))
    both = estimator.predict(CameraImage(IMAGES[0], camera())).patch_depth
    use(arrays)
    views = [estimator.predict(CameraImage(np.ascontiguousarray(image), camera())).patch_depth
             for image in (IMAGES[0], IMAGES[0][:, ::-1])]
    np.testing.assert_allclose(both, 0.5 * (views[0] + views[1][:, ::-1]), rtol=1e-4)


def test_a_view_mirrored_off_its_axis_is_that_of_the_mirrored_camera(estimator, use):
    arrays = calibrations.random_arrays(estimator)
    arrays['bounds'] = np.float32([[-2, -1], [2, 1]])
    left, right = (CameraModel.pinhole(128, 96, 100, cx=cx) for cx in (53.5, 73.5))
    mirrored = np.ascontiguousarray(IMAGES[0][:, ::-1])
    use(arrays, config=CONFIG.replace(flip_average=True))
    of_left, of_right, other = estimator.predict([
        CameraImage(IMAGES[0], left), CameraImage(mirrored, right), CameraImage(mirrored, left)])
    np.testing.assert_allclose(
        of_left.patch_depth, of_right.patch_depth[:, ::-1], rtol=1e-4)
    assert abs(of_left.patch_depth / other.patch_depth[:, ::-1] - 1).max() > 1e-3


def test_depth_that_is_too_unsure_is_none_and_anchors_know_how_sure(estimator, use):
    use(calibrations.random_arrays(estimator))
    plain = estimator.predict(IMAGES[0])
    limit = float(np.median(plain.patch_stddev))
    estimator.reconfigure(estimator.config.replace(max_stddev=limit))
    gated = estimator.predict(IMAGES[0])
    np.testing.assert_array_equal(np.isnan(gated.patch_depth), plain.patch_stddev > limit)
    np.testing.assert_array_equal(gated.patch_stddev, plain.patch_stddev)
    assert np.isnan(gated.stddev()[np.isnan(gated.depth)]).all()
    seen = []

    def anchor(depth, stddev, window, size):
        seen.append((depth, stddev))
        return Adjustment(0.5, 3.0)

    estimator.reconfigure(estimator.config.replace(max_stddev=0.0))
    found = estimator.predict(CameraImage(IMAGES[0], anchor=anchor))
    np.testing.assert_array_equal(seen[0][1], plain.patch_stddev)
    np.testing.assert_allclose(found.patch_depth, 0.5 * plain.patch_depth)
    np.testing.assert_allclose(found.patch_stddev, 1.5 * plain.patch_stddev)
