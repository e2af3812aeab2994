# SPDX-License-Identifier: Apache-2.0
"""CameraModel against OpenCV and against formulas written out here."""

from __future__ import annotations

import copy
import dataclasses
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from depthclip_ros.core.camera import CameraModel
from depthclip_ros.core.errors import CameraInfoError

PLUMB_BOB = [-0.28, 0.07, 0.0008, -0.0004, 0.0]  # a wide-angle webcam
RATIONAL = [0.52, -2.6, 0.0003, -0.0002, 1.5, 0.40, -2.4, 1.4]  # a time-of-flight colour camera
THIN_PRISM = [*RATIONAL, 0.001, -0.0005, 0.0008, 0.0002]
TILTED = [*THIN_PRISM, 0.01, -0.02]
EQUIDISTANT = [-0.04, 0.01, -0.008, 0.002]  # a fisheye
LENSES = [
    ('', []),
    ('plumb_bob', []),
    ('plumb_bob', [0.0] * 5),
    ('plumb_bob', PLUMB_BOB[:4]),
    ('plumb_bob', PLUMB_BOB),
    ('rational_polynomial', RATIONAL),
    ('rational_polynomial', THIN_PRISM),
    ('rational_polynomial', TILTED),
    ('equidistant', EQUIDISTANT),
    ('equidistant', [0.0] * 4),
]


def camera_info(model='plumb_bob', d=PLUMB_BOB, **changes):
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False)
    info = SimpleNamespace(
        width=640,
        height=480,
        distortion_model=model,
        d=list(d),
        k=[500.0, 0.0, 322.5, 0.0, 510.0, 236.25, 0.0, 0.0, 1.0],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[480.0, 0.0, 318.0, 0.0, 0.0, 490.0, 241.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        binning_x=0,
        binning_y=0,
        roi=roi,
    )
    for name, value in changes.items():
        setattr(info, name, value)
    return info


def all_pixels(step=16, width=640, height=480):
    return np.meshgrid(np.arange(0.0, width, step), np.arange(0.0, height, step))


def opencv_pixels(info, points):
    """Project with OpenCV alone."""
    K, D = np.reshape(info.k, (3, 3)), np.asarray(info.d, float)
    points = np.asarray(points, float).reshape(-1, 1, 3)
    if info.distortion_model == 'equidistant':
        pixels, _ = cv2.fisheye.projectPoints(points, np.zeros(3), np.zeros(3), K, D)
    else:
        pixels, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, D)
    return pixels.reshape(-1, 2)


@pytest.mark.parametrize(('model', 'd'), LENSES)
def test_rays_project_back_to_their_pixels(model, d):
    info = camera_info(model, d)
    camera = CameraModel.from_info(info)
    u, v = all_pixels()
    rays = camera.rays(u, v)
    assert rays.shape == (*u.shape, 3)
    assert np.all(rays[..., 2] == 1.0)
    expected = np.stack([u, v], axis=-1)
    np.testing.assert_allclose(camera.project(rays * 3.7), expected, atol=1e-6)
    # The independent path: OpenCV alone, on every ray.
    np.testing.assert_allclose(opencv_pixels(info, rays), expected.reshape(-1, 2), atol=1e-5)


@pytest.mark.parametrize(('model', 'd'), [lens for lens in LENSES if len(lens[1]) in (5, 8)])
def test_rays_agree_with_opencv_run_to_convergence(model, d):
    info = camera_info(model, d)
    u, v = all_pixels()
    criteria = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 1000, 1e-14)
    arguments = (
        np.stack([u, v], axis=-1).reshape(-1, 1, 2),
        np.reshape(info.k, (3, 3)),
        np.array(d),
    )
    if hasattr(cv2, 'undistortPointsIter'):  # OpenCV 4
        expected = cv2.undistortPointsIter(*arguments, None, None, criteria)
    else:
        expected = cv2.undistortPoints(*arguments, criteria=criteria)
    rays = CameraModel.from_info(info).rays(u, v)
    np.testing.assert_allclose(rays[..., :2].reshape(-1, 2), expected.reshape(-1, 2), atol=1e-7)


def test_plumb_bob_by_the_formula():
    x, y = 0.31, -0.22
    k1, k2, p1, p2, k3 = -0.21, 0.05, 0.002, -0.003, 0.01
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    camera = CameraModel.from_info(camera_info(d=[k1, k2, p1, p2, k3]))
    pixel = [500.0 * xd + 322.5, 510.0 * yd + 236.25]
    np.testing.assert_allclose(camera.project([2 * x, 2 * y, 2.0]), pixel, atol=1e-9)
    np.testing.assert_allclose(camera.rays(*pixel), [x, y, 1.0], atol=1e-9)


def test_equidistant_by_the_formula():
    k1, k2, k3, k4 = EQUIDISTANT
    angle, azimuth = math.radians(50.0), math.radians(-20.0)
    r = angle * (1 + k1 * angle**2 + k2 * angle**4 + k3 * angle**6 + k4 * angle**8)
    pixel = [500 * r * math.cos(azimuth) + 322.5, 510 * r * math.sin(azimuth) + 236.25]
    ray = [math.tan(angle) * math.cos(azimuth), math.tan(angle) * math.sin(azimuth), 1.0]
    camera = CameraModel.from_info(camera_info('equidistant', EQUIDISTANT))
    np.testing.assert_allclose(camera.rays(*pixel), ray, atol=1e-9)
    np.testing.assert_allclose(camera.project(ray), pixel, atol=1e-9)


def test_random_lenses_round_trip_or_say_nan():
    """Whatever the coefficients: a pixel gets a ray that projects to it, or NaN."""
    rng = np.random.default_rng(5)
    u, v = all_pixels(step=40)
    answered = 0
    for _ in range(60):
        for model, scale in (
            ('plumb_bob', [0.5, 0.5, 0.01, 0.01, 0.5]),
            ('rational_polynomial', [1.0, 1.0, 0.01, 0.01, 1.0, 1.0, 1.0, 1.0]),
            ('equidistant', [0.3, 0.2, 0.1, 0.1]),
        ):
            info = camera_info(model, rng.normal(0.0, 1.0, len(scale)) * scale)
            camera = dataclasses.replace(
                CameraModel.from_info(camera_info()), distortion_model=model, D=np.array(info.d))
            rays = camera.rays(u, v).reshape(-1, 3)
            valid = ~np.isnan(rays).any(axis=1)
            assert np.isnan(rays[~valid]).all()
            if valid.any():
                pixels = np.stack([u, v], axis=-1).reshape(-1, 2)[valid]
                np.testing.assert_allclose(opencv_pixels(info, rays[valid]), pixels, atol=1e-4)
            answered += int(valid.sum())
    assert answered > 0.5 * 180 * u.size


def test_pixels_without_a_ray_are_nan():
    """r(1 - 0.3 r^2) has its maximum 0.703 at r = 1.054: no ray ends further out."""
    camera = CameraModel.from_info(camera_info(d=[-0.3, 0.0, 0.0, 0.0, 0.0]))
    inside, outside = 322.5 + 500 * 0.70, 322.5 + 500 * 0.71
    assert camera.rays(inside, 236.25)[0] == pytest.approx(
        min(root for root in np.roots([-0.3, 0, 1, -0.70]).real if root > 0)
    )
    assert np.isnan(camera.rays(outside, 236.25)).all()
    # A ray beyond the turning point must not land in the image as a ghost.
    assert np.isnan(camera.project([1.5, 0.0, 1.0])).all()
    assert np.isfinite(camera.project([1.0, 0.0, 1.0])).all()


def test_no_ray_is_on_a_mirrored_branch():
    """With strong decentring the model folds back sideways, inside its radial limit."""
    d = [-0.23111228, -0.23649051, 0.59735012, -0.07556693, 0.13970812]
    info = camera_info(d=d, k=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    u, v = np.meshgrid(np.linspace(-0.8, 0.8, 33), np.linspace(-0.6, 0.6, 25))
    plain = CameraModel.from_info(camera_info(d=[0.0] * 5, k=info.k))
    camera = dataclasses.replace(plain, distortion_model='plumb_bob', D=np.array(d))
    rays = camera.rays(u, v).reshape(-1, 3)
    rays = rays[np.isfinite(rays[:, 0])]
    assert len(rays) > 0.5 * u.size
    step = 1e-6
    by_x, by_y = (
        (opencv_pixels(info, rays + shift) - opencv_pixels(info, rays - shift)) / (2 * step)
        for shift in ([step, 0, 0], [0, step, 0])
    )
    assert (by_x[:, 0] * by_y[:, 1] - by_x[:, 1] * by_y[:, 0]).min() > 0.0


@pytest.mark.parametrize(('model', 'd', 'fx'), [
    ('plumb_bob', [-0.27, 0.1, 0.0, 0.0, -0.02], 400.0),  # an action camera
    ('equidistant', [0.02, -0.01, 0.0, 0.0], 200.0),  # a fisheye of 180 degrees
    ('rational_polynomial', [0.44, -2.4, 6e-4, -2e-4, 1.4, 0.32, -2.2, 1.3], 610.0),  # Azure
])
def test_lenses_that_there_are_pass(model, d, fx):
    CameraModel.from_info(camera_info(model, d, k=[fx, 0, 320, 0, fx, 240, 0, 0, 1]))


def test_equidistant_ends_at_ninety_degrees():
    camera = CameraModel.from_info(camera_info('equidistant', [0.0] * 4))
    assert camera.rays(322.5 + 500 * 1.57, 236.25)[0] == pytest.approx(math.tan(1.57))
    assert np.isnan(camera.rays(322.5 + 500 * 1.58, 236.25)).all()


def test_points_behind_the_camera_and_nan_are_nan():
    camera = CameraModel.from_info(camera_info())
    points = [[0.1, 0.1, -1.0], [0.1, 0.1, 0.0], [0.1, np.nan, 1.0], [0.1, 0.1, 1.0]]
    assert np.isnan(camera.project(points)).any(axis=1).tolist() == [True, True, True, False]
    assert np.isnan(camera.rays(np.nan, 3.0)).all()


def test_shapes():
    camera = CameraModel.from_info(camera_info())
    assert camera.rays(1.0, 2.0).shape == (3,)
    assert camera.rays(np.zeros((2, 1)), np.zeros(5)).shape == (2, 5, 3)
    assert camera.rays([], []).shape == (0, 3)
    assert camera.project(np.zeros((0, 3))).shape == (0, 2)
    assert camera.project(np.ones((4, 2, 3))).shape == (4, 2, 2)


@pytest.mark.parametrize(('model', 'd'), LENSES)
@pytest.mark.parametrize('grid', [(7, 7), (13, 17), (15, 20), (1, 1), (120, 160)])
def test_patch_rays_go_through_patch_centres(model, d, grid):
    h, w = grid
    camera = CameraModel.from_info(camera_info(model, d))
    rays = camera.patch_rays(h, w)
    assert rays.dtype == np.float32
    assert rays.shape == (h, w, 3)
    # The centre of a patch is the mean of the pixel centres in it; with fractional borders, the
    # middle between its borders, which lie half a pixel from the outermost centres.
    lefts, tops = np.linspace(-0.5, 639.5, w + 1), np.linspace(-0.5, 479.5, h + 1)
    expected = np.stack(
        np.meshgrid((lefts[1:] + lefts[:-1]) / 2, (tops[1:] + tops[:-1]) / 2), axis=-1
    )
    np.testing.assert_allclose(camera.project(rays * 2.5), expected, atol=1e-3)


def test_patch_of_one_pixel_is_that_pixel():
    camera = CameraModel.from_info(camera_info())
    np.testing.assert_allclose(
        camera.patch_rays(480, 640)[100, 200], camera.rays(200.0, 100.0), atol=1e-6
    )


def test_patch_rays_of_an_invalid_corner_are_nan():
    camera = CameraModel.from_info(camera_info(d=[-0.5, 0.0, 0.0, 0.0, 0.0]))
    rays = camera.patch_rays(7, 7)
    assert np.isnan(rays[0, 0]).all()
    assert np.isfinite(rays[3, 3]).all()


def test_rectified_uses_p_and_no_distortion():
    camera = CameraModel.from_info(camera_info(d=[9.0, 9.0, 9.0, 9.0, 9.0]), rectified=True)
    np.testing.assert_allclose(camera.K, [[480, 0, 318], [0, 490, 241], [0, 0, 1]])
    assert camera.D.size == 0
    assert camera.distortion_model == ''
    np.testing.assert_allclose(camera.rays(318.0 + 48.0, 241.0 - 49.0), [0.1, -0.1, 1.0])


@pytest.mark.parametrize(('model', 'count'), [('plumb_bob', 5), ('rational_polynomial', 8)])
def test_coefficients_that_are_all_zero_are_no_distortion(model, count):
    zero, none = (CameraModel.from_info(camera_info(d=d, distortion_model=model))
                  for d in ([0.0] * count, []))
    assert zero.distortion_model == ''
    np.testing.assert_array_equal(zero.patch_rays(7, 9), none.patch_rays(7, 9))


def test_rectified_and_raw_see_the_same_point():
    info = camera_info(p=[500.0, 0.0, 322.5, 0.0, 0.0, 510.0, 236.25, 0.0, 0.0, 0.0, 1.0, 0.0])
    raw, rectified = CameraModel.from_info(info), CameraModel.from_info(info, rectified=True)
    u, v = all_pixels(step=80)
    rays = raw.rays(u, v)
    pixels = rectified.project(rays)
    assert np.abs(pixels[..., 0] - u).max() > 5.0  # the distortion is there
    np.testing.assert_allclose(rectified.rays(pixels[..., 0], pixels[..., 1]), rays, atol=1e-9)


def test_a_fisheye_model_is_used_as_far_as_it_grows():
    """r = a - 0.2 a^3 turns back at a = (5 / 3)^0.5 = 1.29 from the axis."""
    camera = CameraModel.from_info(
        camera_info(d=[-0.2, 0.0, 0.0, 0.0], distortion_model='equidistant'))
    angles = np.array([1.0, 1.28, 1.30, 1.5])
    points = np.stack([np.tan(angles), 0 * angles, 1 + 0 * angles], axis=-1)
    assert np.isnan(camera.project(points)[:, 0]).tolist() == [False, False, True, True]


def test_binning_and_roi_are_applied():
    full = CameraModel.from_info(camera_info())
    roi = SimpleNamespace(x_offset=100, y_offset=60, width=400, height=300, do_rectify=False)
    reduced = CameraModel.from_info(camera_info(roi=roi, binning_x=2, binning_y=3))
    assert (reduced.width, reduced.height) == (200, 100)
    u, v = all_pixels(step=20, width=200, height=100)
    np.testing.assert_allclose(reduced.rays(u, v), full.rays(u * 2 + 100, v * 3 + 60), atol=1e-9)
    assert CameraModel.from_info(camera_info(binning_x=1, binning_y=1)).width == 640
    corner = SimpleNamespace(x_offset=240, y_offset=180, width=400, height=300, do_rectify=False)
    assert CameraModel.from_info(camera_info(roi=corner)).width == 400  # up to the last pixel


def test_scaled_follows_image_proc():
    camera = CameraModel.from_info(camera_info())
    half = camera.scaled(320, 120)
    assert (half.width, half.height) == (320, 120)
    np.testing.assert_allclose(half.K, [[250, 0, 161.25], [0, 127.5, 59.0625], [0, 0, 1]])
    np.testing.assert_allclose(half.P, [[240, 0, 159, 0], [0, 122.5, 60.25, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(half.D, camera.D)
    np.testing.assert_array_equal(camera.K[0], [500, 0, 322.5])
    u, v = all_pixels(step=80)
    np.testing.assert_allclose(half.rays(u / 2, v / 4), camera.rays(u, v), atol=1e-9)


@pytest.mark.parametrize(
    ('condition', 'changes'),
    [
        ('all zeros', {'k': [0.0] * 9}),
        ('all zeros', {'k': [0.0] * 9, 'r': [0.0] * 9, 'p': [0.0] * 12, 'd': []}),
        ('not finite', {'k': [math.nan] * 9}),
        ('not finite', {'d': [0.0, math.inf, 0.0, 0.0, 0.0]}),
        ('not finite', {'p': [math.nan] * 12}),
        ('not finite', {'r': [math.nan] * 9}),
        ('wrong matrix', {'k': [-5.0, 0, 3, 0, 5, 3, 0, 0, 1]}),
        ('wrong matrix', {'k': [5.0, 0, 3, 0, 0, 3, 0, 0, 1]}),
        ('wrong matrix', {'k': [5.0, 0, 3, 0, 5, 3, 0, 0, 0]}),
        ('wrong matrix', {'k': [5.0, 5, 3, 5, 5, 3, 0, 0, 1]}),  # singular
        ('wrong matrix', {'k': [5.0, 0, 3, 1, 5, 3, 0, 0, 1]}),
        ('wrong matrix', {'k': [5e-324, 0, 3, 0, 5e-324, 3, 0, 0, 1]}),
        ('wrong matrix', {'k': [1e300, 0, 3, 0, 1e300, 3, 0, 0, 1]}),
        ('wrong matrix', {'p': [5.0, 0, 3, 1e300, 0, 5, 3, 0, 0, 0, 1, 0]}),
        ('unknown distortion model', {'distortion_model': 'double_sphere'}),
        ('unknown distortion model', {'distortion_model': ''}),
        ('wrong number of distortion coefficients', {'d': [0.1] * 3}),
        ('wrong number of distortion coefficients', {'d': [0.1] * 8}),
        (
            'wrong number of distortion coefficients',
            {'distortion_model': 'rational_polynomial', 'd': [0.1] * 5},
        ),
        (
            'wrong number of distortion coefficients',
            {'distortion_model': 'equidistant', 'd': []},
        ),
        ('zero size', {'width': 0}),
        ('zero size', {'height': 0}),
        (
            'wrong roi',
            {'roi': SimpleNamespace(x_offset=600, y_offset=0, width=100, height=9, do_rectify=0)},
        ),
        (
            'wrong roi',
            {'roi': SimpleNamespace(x_offset=6, y_offset=0, width=0, height=0, do_rectify=0)},
        ),
        (
            'wrong roi',
            {'roi': SimpleNamespace(x_offset=2**32 - 1, y_offset=0, width=2**32 - 1, height=9,
                                    do_rectify=0)},
        ),
        ('no rays', {'d': [1e300] * 5}),
        ('impossible lens', {'d': [60.0, 20.0, 0.1, -0.3, 5.0]}),
        ('impossible lens', {'distortion_model': 'rational_polynomial',
                             'd': [90.0, -20.0, 0.1, 0.2, 40.0, 3.0, -8.0, 1.0]}),
        ('no rays', {'k': [1e-3, 0, 1e9, 0, 1e-3, 1e9, 0, 0, 1], 'd': []}),
        ('wrong binning', {'binning_x': 1000}),
        ('wrong binning', {'binning_y': 2**32 - 1}),
    ],
)
def test_bad_camera_info(condition, changes):
    with pytest.raises(CameraInfoError) as caught:
        CameraModel.from_info(camera_info(**changes))
    assert caught.value.condition == condition
    assert 40 < len(str(caught.value)) < 500  # says what to do


@pytest.mark.parametrize('name', ['distortion_model', 'd', 'k'])
def test_long_values_are_quoted_in_part(name):
    info = camera_info()
    setattr(info, name, 'x' * 10**6 if name == 'distortion_model' else
            [0.123456789e-8] * (9 if name == 'k' else 10**5))
    with pytest.raises(CameraInfoError) as caught:
        CameraModel.from_info(info)
    assert len(str(caught.value)) < 500


def test_a_skewed_camera():
    camera = CameraModel.from_info(camera_info('', [], k=[
        500.0, 40.0, 322.5, 0.0, 510.0, 236.25, 0.0, 0.0, 1.0]))
    pixel = [500 * 0.2 + 40 * -0.1 + 322.5, 510 * -0.1 + 236.25]
    np.testing.assert_allclose(camera.project([0.2, -0.1, 1.0]), pixel, atol=1e-9)
    np.testing.assert_allclose(camera.rays(*pixel), [0.2, -0.1, 1.0], atol=1e-12)


def test_a_ray_that_the_tangential_part_pulls_inwards():
    """Its pixel is nearer to the centre than a power of two, the ray itself further away."""
    camera = dataclasses.replace(
        CameraModel.from_info(camera_info(d=[0.0] * 5, k=[1.0, 0, 0, 0, 1, 0, 0, 0, 1])),
        distortion_model='plumb_bob', D=np.array([0.0, 0.0, 0.005, 0.005, 0.0]))
    ray = [-0.7126, -0.7126, 1.0]
    pixel = camera.project(ray)
    assert np.hypot(*pixel) < 1.0 < np.hypot(*ray[:2])
    np.testing.assert_allclose(camera.rays(*pixel), ray, atol=1e-9)


@pytest.mark.filterwarnings('error::RuntimeWarning')
@pytest.mark.parametrize('d', [
    [1e300] * 5, [-1e300] * 5, [1e-320] * 5, [1e155, -1e300, 0.0, 0.0, 1e-300],
    [1e300] * 8, [0.0] * 7 + [1e300], [1e200] * 14, [1e-5] * 12 + [1e300] * 2,
    [1e300, -1e300, 1e155, -1e155]])
def test_extreme_coefficients_give_rays_or_nan(d):
    model = {4: 'equidistant', 5: 'plumb_bob'}.get(len(d), 'rational_polynomial')
    camera = dataclasses.replace(
        CameraModel.from_info(camera_info()), distortion_model=model, D=np.array(d))
    rays = camera.patch_rays(15, 20)
    valid = np.isfinite(rays).all(axis=-1)
    assert np.isnan(rays[~valid]).all()
    np.testing.assert_allclose(camera.project(rays[valid]).shape, (valid.sum(), 2))
    camera.project(np.ones((5, 3)))
    try:
        CameraModel.from_info(camera_info(model, d))
    except CameraInfoError as error:
        assert error.condition == (  # noqa: PT017 (some have rays)
            'impossible lens' if valid.any() else 'no rays')


def test_rectified_needs_p_only():
    info = camera_info('some fisheye', k=[0.0] * 9)
    assert CameraModel.from_info(info, rectified=True).K[0, 0] == 480.0
    info.p = [0.0] * 12
    with pytest.raises(CameraInfoError, match=r'p\[0\] = 0') as caught:
        CameraModel.from_info(info, rectified=True)
    assert caught.value.condition == 'all zeros'


def test_rectified_with_an_unknown_window():
    roi = SimpleNamespace(x_offset=10, y_offset=10, width=100, height=100, do_rectify=True)
    with pytest.raises(CameraInfoError, match='do_rectify') as caught:
        CameraModel.from_info(camera_info(roi=roi), rectified=True)
    assert caught.value.condition == 'wrong roi'
    CameraModel.from_info(camera_info(roi=roi))


def test_size_mismatch_names_both_sizes():
    camera = CameraModel.from_info(camera_info())
    camera.check_size(640, 480)
    with pytest.raises(CameraInfoError, match=r'640x480.*1280x720.*[Rr]emap') as caught:
        camera.check_size(1280, 720)
    assert caught.value.condition == 'size mismatch'


def test_message_is_neither_changed_nor_kept():
    info = camera_info(binning_x=2, binning_y=2)
    before = copy.deepcopy(info)
    camera = CameraModel.from_info(info)
    assert vars(info) == vars(before) | {'roi': info.roi}
    info.k[0] = 1.0
    assert camera.K[0, 0] == 250.0
    with pytest.raises(ValueError, match='read-only'):
        camera.K[0, 0] = 1.0


def test_reads_a_real_message():
    msgs = pytest.importorskip('sensor_msgs.msg', reason='sensor_msgs is not installed')
    plain = camera_info()
    info = msgs.CameraInfo(width=640, height=480, distortion_model='plumb_bob')
    info.d, info.k, info.r, info.p = plain.d, plain.k, plain.r, plain.p
    camera, expected = CameraModel.from_info(info), CameraModel.from_info(plain)
    np.testing.assert_array_equal(camera.K, expected.K)
    np.testing.assert_array_equal(camera.D, expected.D)
    with pytest.raises(CameraInfoError, match='not calibrated'):
        CameraModel.from_info(msgs.CameraInfo())
