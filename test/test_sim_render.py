# SPDX-License-Identifier: Apache-2.0
"""The renderer against first principles: scalar geometry, OpenCV's camera, arithmetic."""

import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from depthclip_ros.sim import (
    KINDS,
    Box,
    Cylinder,
    Light,
    Material,
    Mount,
    RenderOptions,
    Scene,
    SimCamera,
    Sphere,
    camera_pose,
    render,
    trajectory,
)

GREY = Material((0.5, 0.5, 0.5))
WIDE = SimCamera(320, 240, 260.0, 255.0, 161.3, 117.2, (-0.28, 0.09, 0.0012, -0.0008, -0.01))


def plain_room(size=(6.0, 8.0, 3.0), contents=(), material=GREY, light=None):
    return Scene('test', 0, size, (material,) * 6, tuple(contents), light or Light())


# An independent renderer: one ray, float64, every face as a plane of its own -------------------

def scalar_depth(scene, origin, ray):
    """Least positive t at which origin + t * ray lies on a surface."""
    hits = []
    for axis in range(3):
        for bound in (0.0, scene.size[axis]):
            t = (bound - origin[axis]) / ray[axis]
            if t > 0:
                hits.append(t)
    hits = [min(hits)]
    for primitive in scene.contents:
        hits += _scalar_hits(primitive, origin, ray)
    return min(hits)


def _scalar_hits(primitive, origin, ray):
    offset = origin - np.array(primitive.center)
    found = []
    if isinstance(primitive, Box):
        angle = primitive.yaw
        axes = np.array([[math.cos(angle), math.sin(angle), 0],
                         [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
        half = np.array(primitive.size) / 2
        for axis in range(3):
            for side in (-1, 1):
                t = (side * half[axis] - axes[axis] @ offset) / (axes[axis] @ ray)
                local = axes @ (offset + t * ray)
                others = [i for i in range(3) if i != axis]
                if t > 0 and all(abs(local[i]) <= half[i] for i in others):
                    found.append(t)
        return found
    flat = slice(0, 2) if isinstance(primitive, Cylinder) else slice(0, 3)
    roots = np.roots([ray[flat] @ ray[flat], 2 * offset[flat] @ ray[flat],
                      offset[flat] @ offset[flat] - primitive.radius ** 2])
    real = [r.real for r in roots if abs(r.imag) < 1e-12 and r.real > 0]
    if isinstance(primitive, Sphere):
        return real
    half = primitive.height / 2
    found += [t for t in real if abs(offset[2] + t * ray[2]) <= half]
    for end in (-half, half):
        t = (end - offset[2]) / ray[2]
        point = offset + t * ray
        if t > 0 and math.hypot(point[0], point[1]) <= primitive.radius:
            found.append(t)
    return found


def undistort_with_opencv(camera, pixels):
    """(N, 2) pixels to ideal coordinates: OpenCV's forward projection, inverted by iteration."""
    ideal = np.zeros_like(pixels)
    for _ in range(60):
        points = np.column_stack([ideal, np.ones(len(ideal))])
        seen = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.matrix,
                                 np.array(camera.distortion))[0][:, 0]
        ideal += (pixels - seen) / [camera.fx, camera.fy]
    assert np.abs(seen - pixels).max() < 1e-6
    return ideal


def check_against_scalar(scene, camera, pose, count, seed):
    """Share of random pixels whose depth the scalar code confirms within 0.5 mm."""
    frame = render(scene, camera, pose)
    rng = np.random.default_rng(seed)
    u = rng.integers(0, camera.width, count)
    v = rng.integers(0, camera.height, count)
    ideal = undistort_with_opencv(camera, np.stack([u, v], axis=1).astype(np.float64))
    good = 0
    for (x, y), column, row in zip(ideal, u, v, strict=True):
        expected = scalar_depth(scene, pose[:3, 3], pose[:3, :3] @ np.array([x, y, 1.0]))
        good += abs(frame.depth[row, column] - expected) < 5e-4 * max(1.0, expected)
    return good / count


@pytest.mark.parametrize('kind', KINDS)
def test_depth_is_that_of_analytic_intersections(kind):
    scene = Scene.generate(kind, 5)
    pose = trajectory(scene, 1).pose(4.0)
    # A ray that grazes an edge may fall on either side of it in float32: one or two of 200.
    assert check_against_scalar(scene, SimCamera(), pose, 200, 0) >= 0.99


@pytest.mark.parametrize('height', [0.2, 0.75, 2.5], ids=['from below', 'beside', 'from above'])
def test_every_primitive_from_every_side(height):
    contents = [
        Box((3.0, 4.0, 0.75), (0.8, 0.5, 0.6), GREY, 0.5), Sphere((3.5, 3.2, 0.8), 0.3, GREY),
        Cylinder((2.2, 4.5, 0.75), 0.35, 0.7, GREY), Box((1.5, 3.4, 0.8), (0.5, 0.5, 0.5), GREY),
    ]
    scene = plain_room(contents=contents)
    for angle in range(0, 360, 60):
        x, y = (3 + 2.2 * math.cos(math.radians(angle)), 4 + 2.4 * math.sin(math.radians(angle)))
        yaw = math.atan2(3.9 - y, 2.6 - x)
        pose = camera_pose((x, y, height), yaw, math.atan2(0.75 - height, 2.3), 0.1)
        assert check_against_scalar(scene, WIDE, pose, 80, angle) >= 0.98


def test_an_object_beside_the_camera_is_not_missed():
    """Its corners lie on both sides of the image plane, so it has no bounding rectangle."""
    wall = Box((3.0, 4.0, 1.5), (0.1, 6.0, 3.0), GREY)
    pose = camera_pose((2.8, 4.0, 1.5), 0.5 * math.pi)
    scene = plain_room(contents=[wall])
    assert check_against_scalar(scene, SimCamera(), pose, 200, 0) >= 0.99
    assert render(scene, SimCamera(), pose).depth[240, 639] < 0.5


def test_depth_is_along_the_optical_axis():
    scene = plain_room()
    depth = render(scene, SimCamera(), camera_pose((2.0, 4.0, 1.5), 0.0)).depth
    wall = depth[235:245]
    assert depth.dtype == np.float32
    np.testing.assert_allclose(wall, 4.0, rtol=1e-5)  # not the length of the ray


# Camera ----------------------------------------------------------------------------------------

def test_distorted_pixels_re_project():
    """Marks in the room appear where OpenCV projects them, within a third of a pixel."""
    rng = np.random.default_rng(3)
    camera = SimCamera(640, 480, 420.0, 430.0, 311.0, 247.0, (-0.25, 0.08, 0.001, -0.002, -0.01))
    pose = camera_pose((1.0, 4.0, 1.4), 0.1, -0.1, 0.05)
    checked = 0
    for _ in range(14):
        local = np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.5), 1]) * rng.uniform(2, 3.5)
        point = pose[:3, :3] @ local + pose[:3, 3]
        if not (np.all(point > 0.1) and np.all(point < np.array([6, 8, 3]) - 0.1)):
            continue
        mark = Sphere(tuple(point), 0.05, Material((1.0, 0.0, 0.0)))
        frame = render(plain_room(contents=[mark]), camera, pose)
        rows, columns = np.nonzero(frame.rgb[:, :, 1] < 60)
        inverse = np.linalg.inv(pose)
        expected = cv2.projectPoints(
            point[None], cv2.Rodrigues(inverse[:3, :3])[0], inverse[:3, 3], camera.matrix,
            np.array(camera.distortion))[0].ravel()
        np.testing.assert_allclose([columns.mean(), rows.mean()], expected, atol=0.34)
        assert abs(frame.depth[round(expected[1]), round(expected[0])] - (local[2] - 0.05)) < 0.02
        checked += 1
    assert checked >= 8


def test_distort_is_opencvs_and_undistort_its_inverse():
    x, y = np.meshgrid(np.linspace(-0.6, 0.6, 9), np.linspace(-0.45, 0.45, 7))
    u, v = WIDE.distort(x, y)
    points = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)
    expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.eye(3),
                                 np.array(WIDE.distortion))[0][:, 0]
    np.testing.assert_allclose(np.stack([u.ravel(), v.ravel()], axis=1), expected, atol=1e-12)
    np.testing.assert_allclose(WIDE.undistort(u, v), (x, y), atol=1e-6)


@pytest.mark.parametrize('wrong', [
    {'width': 0}, {'fx': -1.0}, {'distortion': (0.0, 0.0)},
], ids=['empty', 'mirrored', 'short'])
def test_impossible_cameras_are_refused(wrong):
    with pytest.raises(ValueError, match='must be'):
        SimCamera(**wrong)


# Determinism -----------------------------------------------------------------------------------

def test_same_seed_same_bytes():
    for kind in KINDS:
        first, second = (Scene.generate(kind, 8) for _ in range(2))
        assert first == second
        options = RenderOptions(exposure=1.2, noise=0.02, seed=4)
        a = render(first, WIDE, trajectory(first, 3).pose(2.0), options)
        b = render(second, WIDE, trajectory(second, 3).pose(2.0), options)
        assert a.rgb.tobytes() == b.rgb.tobytes()
        assert a.depth.tobytes() == b.depth.tobytes()


def test_bytes_do_not_depend_on_the_number_of_threads():
    scene = Scene.generate('corridor', 1)
    pose = trajectory(scene, 0).pose(0.0)
    before = torch.get_num_threads()
    frames = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            frames.append(render(scene, SimCamera().scaled(480, 360), pose))
    finally:
        torch.set_num_threads(before)
    for frame in frames[1:]:
        assert frame.rgb.tobytes() == frames[0].rgb.tobytes()
        assert frame.depth.tobytes() == frames[0].depth.tobytes()


def test_the_usual_paths_are_those_that_the_demo_model_was_trained_on():
    path = trajectory(Scene.generate('office', 3), 0)
    assert path.center == pytest.approx((3.66002670, 4.82352071, 1.32690891))
    assert path == trajectory(Scene.generate('office', 3), 0, Mount())


# Appearance ------------------------------------------------------------------------------------

def test_colour_says_nothing_about_depth():
    """The same paint has the same colour at 3 m and at 11 m."""
    scene = plain_room((12.0, 4.0, 3.0), material=Material((0.8, 0.5, 0.2)))
    frame = render(scene, SimCamera(), camera_pose((0.5, 2.0, 1.5), 0.0))
    floor = frame.rgb[310:, 320]
    assert np.ptp(frame.depth[310:, 320]) > 7.0
    assert (floor == floor[0]).all()


@pytest.mark.parametrize('material', [
    Material((0.7, 0.6, 0.5), (0.3, 0.3), joint=0.03, joint_color=(0.1, 0.1, 0.1)),
    Material((0.7, 0.6, 0.5), (0.2, 0.2), checks=2, second_color=(0.2, 0.2, 0.4)),
    Material((0.7, 0.6, 0.5), (0.25, 1.0), checks=1, second_color=(0.2, 0.2, 0.4)),
    Material((0.7, 0.6, 0.5), (0.1, 0.1), variation=0.3),
], ids=['joints', 'checks', 'stripes', 'grain'])
def test_mean_colour_of_a_texture_is_kept_with_distance(material):
    """Sampling smooths a far texture, but fades it into no colour of its own."""
    means = []
    for distance in (1.0, 3.0, 9.0):
        scene = plain_room((10.0, 40.0, 30.0), material=material)
        frame = render(scene, SimCamera(), camera_pose((10.0 - distance, 20.0, 15.0), 0.0))
        means.append(frame.rgb.reshape(-1, 3).mean(axis=0))
    np.testing.assert_allclose(means[1], means[0], atol=255 * 0.03)
    np.testing.assert_allclose(means[2], means[1], atol=255 * 0.02)


def test_textures_have_their_size_in_metres():
    """Checks of 0.5 m change colour every 0.5 m on the wall, whatever the distance."""
    material = Material((1.0, 1.0, 1.0), (0.5, 0.5), checks=1, second_color=(0.0, 0.0, 0.0))
    scene = plain_room((8.0, 10.0, 3.0), material=material)
    for distance in (2.0, 4.0):
        frame = render(scene, SimCamera(), camera_pose((8.0 - distance, 5.0, 1.5), 0.0))
        line = frame.rgb[240, :, 0].astype(float)
        changes = np.flatnonzero(np.diff((line > line.mean()).astype(int)))
        spacing = np.diff(changes).mean() * distance / 518.86
        assert spacing == pytest.approx(0.5, abs=0.01)


# Camera effects --------------------------------------------------------------------------------

def test_effects_change_the_picture_and_never_the_depth():
    scene = Scene.generate('bedroom', 3)
    path = trajectory(scene, 0)
    plain = render(scene, WIDE, path.pose(1.0))
    dark = render(scene, WIDE, path.pose(1.0), RenderOptions(exposure=0.5))
    noisy = render(scene, WIDE, path.pose(1.0), RenderOptions(noise=0.02))
    for other in (dark, noisy):
        assert other.depth.tobytes() == plain.depth.tobytes()
    unclipped = plain.rgb < 250
    assert np.abs(dark.rgb[unclipped] - plain.rgb[unclipped] / 2).max() <= 1
    middle = (plain.rgb > 40) & (plain.rgb < 215)
    assert (noisy.rgb[middle].astype(float) - plain.rgb[middle]).std() == pytest.approx(
        0.02 * 255, rel=0.1)


# Rooms and paths -------------------------------------------------------------------------------

def test_kinds_differ_in_depth():
    """Classrooms are deeper than offices, these than bathrooms: what §4.5 of the paper needs."""
    camera = SimCamera().scaled(64, 48)
    median = {}
    for kind in KINDS:
        scenes = [Scene.generate(kind, seed) for seed in range(25)]
        median[kind] = np.median([render(s, camera, trajectory(s, 0).pose(0.0)).depth
                                  for s in scenes])
    assert median['bathroom'] < median['bedroom'] < median['office'] < median['classroom']
    assert 1.0 < median['bathroom'] < 2.0
    assert median['classroom'] > 3.0


@pytest.mark.parametrize('kind', KINDS)
def test_paths_are_smooth_and_free(kind):
    for seed in range(6):
        scene = Scene.generate(kind, seed)
        path = trajectory(scene, seed)
        poses = [path.pose(t) for t in np.arange(0.0, path.period, 1 / 30)]
        for pose in poses[::15]:
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
            assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0)
            x, y, z = pose[:3, 3]
            assert 1.25 < z < 1.55
            assert scene.clearance(x, y, z - 0.05, z + 0.05) > 0.1
        low = trajectory(scene, seed, Mount((0.35, 0.35))).pose(0.0)[:3, 3]
        assert low[2] == pytest.approx(0.35, abs=0.03)
        assert scene.clearance(*low[:2], 0.0, 0.5) > 0.1
        steps = [np.linalg.norm(b[:3, 3] - a[:3, 3])
                 for a, b in pairwise(poses)]
        turns = [math.acos(min(1.0, (np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2))
                 for a, b in pairwise(poses)]
        assert max(steps) < 0.02
        assert math.degrees(max(turns)) < 2.0
        np.testing.assert_allclose(path.pose(path.period), path.pose(0.0), atol=1e-9)
