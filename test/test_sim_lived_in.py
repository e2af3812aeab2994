# SPDX-License-Identifier: Apache-2.0
"""Rooms that somebody lives in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from depthclip_ros.sim import KINDS, Box, Light, Material, Scene, SimCamera, camera_pose, render
from depthclip_ros.sim.lived_in import handheld_pose, lived_in

CAMERA = SimCamera().scaled(160, 120)


@pytest.fixture(scope='module')
def homes():
    return [lived_in(Scene.generate(kind, 7)) for kind in KINDS]


@pytest.mark.parametrize('number', range(len(KINDS)))
def test_the_same_room_is_the_same_picture_whatever_the_threads(homes, number):
    home = homes[number]
    assert lived_in(Scene.generate(home.kind, 7)) == home
    pose, threads, pictures = handheld_pose(home, np.random.default_rng(1)), \
        torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        frame = render(home, CAMERA, pose)
        pictures.append((frame.rgb.tobytes(), frame.depth.tobytes()))
    torch.set_num_threads(threads)
    assert pictures[0] == pictures[1]


def test_they_are_fuller_than_plain_ones_and_all_of_it_is_in_the_room(homes):
    for home in homes:
        assert len(home.contents) > 2 * len(Scene.generate(home.kind, 7).contents)
        for thing in home.contents:
            middle = np.array(thing.center)
            assert (middle > -0.5).all()
            assert (middle < np.array(home.size) + 0.5).all()


def test_cameras_are_carried_by_hand(homes):
    rng = np.random.default_rng(0)
    poses = np.array([handheld_pose(home, rng) for home in homes for _ in range(20)])
    height, down = poses[:, 2, 3], -poses[:, 2, 2]  # forward is the third column
    assert height.min() >= 0.3
    assert height.max() <= 1.8
    assert down.max() <= np.sin(0.8) + 1e-9
    assert down.max() > 0.5
    assert height.std() > 0.3


def test_light_and_grain_change_no_depth(homes):
    home, pose = homes[2], handheld_pose(homes[2], np.random.default_rng(3))
    dull = replace(home, light=Light(), walls=tuple(
        replace(wall, grain=0.0) for wall in home.walls))
    one, other = render(home, CAMERA, pose), render(dull, CAMERA, pose)
    np.testing.assert_array_equal(one.depth, other.depth)
    assert np.abs(one.rgb.astype(int) - other.rgb).mean() > 5


def test_a_lamp_casts_the_shadow_of_what_is_between():
    white = Material((0.6, 0.6, 0.6))
    lit = Scene('office', 0, (4.0, 4.0, 3.0), (white,) * 6, (
        Box((0.2, 0.2, 0.1), (0.1, 0.1, 0.1), white),), Light(lamp=(2.0, 2.0, 2.8), reach=4.0))
    pose = camera_pose((0.5, 2.0, 1.0), 0.0, -0.4)
    table = Box((2.0, 2.0, 2.5), (1.0, 1.0, 0.02), white)  # above the view
    darker = render(replace(lit, contents=(*lit.contents, table)), CAMERA, pose)
    bright = render(lit, CAMERA, pose)
    np.testing.assert_array_equal(bright.depth[60:], darker.depth[60:])
    difference = bright.rgb[60:].astype(int) - darker.rgb[60:]
    assert difference.max() > 20
    assert difference.min() >= 0
