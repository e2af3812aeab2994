# SPDX-License-Identifier: Apache-2.0
"""What the simulated cameras see, and when: settings, schedule, rooms, poses. No ROS."""

from __future__ import annotations

import math

import numpy as np
import pytest

from depthclip_ros.core.camera import CameraModel
from depthclip_ros.core.errors import ConfigError
from depthclip_ros.sim import KINDS, RenderOptions, Scene, render, trajectory, views
from depthclip_ros.sim.views import Schedule, SimConfig, SimulatedView, generate_room
from depthclip_ros.sources.camera_info import Intrinsics

SMALL = {'width': 64, 'height': 48}
SECOND = 1_000_000_000


def view(index=0, **settings):
    """One camera's view, and the list of (time, room) that it announces."""
    announced = []
    config = SimConfig(**{**SMALL, 'kind': 'office', 'seed': 3, **settings})
    view = SimulatedView(
        config, index, lambda time, room: announced.append((time, str(room))), pytest.fail)
    return view, announced


# Settings ----------------------------------------------------------------------------------

@pytest.mark.parametrize(('settings', 'message'), [
    ({'kind': 'kitchen'}, "kind: 'kitchen' is none of all, bathroom"),
    ({'seed': -1}, 'seed: -1 is outside 0'),
    ({'rate': 0.0}, 'rate: 0.0 Hz is outside'),
    ({'fov': 179.0}, 'fov: 179.0 degrees is outside'),
    ({'fov': 100.0, 'distortion': True}, 'distortion: this lens cannot cover'),
    ({'sede': 1}, "unknown setting 'sede'.*kind, seed"),
])
def test_wrong_settings_are_refused_with_the_reason(settings, message):
    with pytest.raises(ConfigError, match=message):
        SimConfig.from_dict(settings)


@pytest.mark.parametrize('settings', [
    {'fov': 90.0}, {'distortion': True}, {'fov': 90.0, 'distortion': True, **SMALL}])
def test_the_calibration_projects_as_the_camera_does(settings):
    config = SimConfig(**settings)
    camera = config.camera()

    class Info:
        """What CameraModel reads of a camera_info; no binning, no region."""

        binning_x = binning_y = 0

        class roi:  # noqa: N801
            x_offset = y_offset = height = width = 0

    Intrinsics.of_sim(camera).fill(Info)
    model = CameraModel.from_info(Info)
    points = np.array([[0.3, -0.2, 1.0], [0.0, 0.0, 2.0], [-0.4, 0.3, 1.5]])
    x, y = camera.distort(points[:, 0] / points[:, 2], points[:, 1] / points[:, 2])
    expected = np.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], -1)
    np.testing.assert_allclose(model.project(points), expected, atol=1e-4)
    # Without distortion, fov is the angle between the left and the right edge.
    assert 2 * math.degrees(math.atan(camera.width / 2 / camera.fx)) \
        == pytest.approx(config.fov)


# When --------------------------------------------------------------------------------------

def test_pictures_are_due_once_each_and_late_ones_are_skipped_not_queued():
    schedule = Schedule(10.0)
    start = 1_700_000_000 * SECOND + 123
    ms = SECOND // 1000
    calls = [(0, 0), (30, None), (99, None), (101, 1), (199, None), (230, 2), (275, None),
             (730, 7), (740, None), (800, 8)]
    assert [schedule.due(start + at * ms) for at, _ in calls] == [number for _, number in calls]
    assert schedule.skipped == 4  # 3 to 6
    assert schedule.stamp(7) == start + 700 * ms  # the time of the picture, not of the call


def test_a_clock_that_goes_back_starts_again():
    schedule = Schedule(4.0)
    assert [schedule.due(t * SECOND) for t in (100, 101, 102)] == [0, 4, 8]
    assert schedule.due(50 * SECOND) == 0
    assert schedule.stamp(2) == 50 * SECOND + SECOND // 2
    assert schedule.due(51 * SECOND) == 4


# What --------------------------------------------------------------------------------------

def test_a_view_is_the_renderers_picture_of_the_room_with_that_seed():
    look, announced = view(noise=0.02)
    frame = look.frame(1.25, 5)
    scene = Scene.generate('office', 3)
    expected = render(scene, SimConfig(**SMALL).camera(), trajectory(scene, 0).pose(1.25),
                      RenderOptions(noise=0.02, seed=5))
    assert (frame.depth == expected.depth).all()
    assert (frame.rgb == expected.rgb).all()
    assert announced == [(0.0, 'office, seed 3')]


def test_rooms_follow_one_another():
    look, announced = view(scene_seconds=2.0)
    for tenth in range(0, 61, 5):
        look.frame(tenth / 10, tenth)
    assert announced == [(0.0, 'office, seed 3'), (2.0, 'office, seed 4'),
                         (4.0, 'office, seed 5'), (6.0, 'office, seed 6')]
    scene = Scene.generate('office', 5)
    expected = render(scene, SimConfig(**SMALL).camera(), trajectory(scene, 0).pose(0.5))
    assert (look.frame(4.5, 45).depth == expected.depth).all()


def test_all_kinds_come_in_turn_and_zero_seconds_mean_to_stay():
    look, announced = view(kind='all', scene_seconds=1.0, seed=0)
    for second in range(len(KINDS)):
        assert look.frame(second, second).kind == KINDS[second]
    look, announced = view(kind='all', scene_seconds=0.0, seed=0)
    look.frame(0.0, 0)
    look.frame(86400.0, 864000)
    assert announced == [(0.0, f'{KINDS[0]}, seed 0')]


def test_cameras_of_a_rig_look_evenly_around_from_one_place():
    views = [view(index, cameras=('front', 'left', 'rear', 'right'))[0] for index in range(4)]
    poses = [look.frame(2.0, 0).pose for look in views]
    for pose in poses:
        assert pose[:3, 3].tolist() == poses[0][:3, 3].tolist()
        assert pose[2, 2] == pytest.approx(poses[0][2, 2])  # the same pitch
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0)
    front, left, rear, right = (pose[:2, 2] for pose in poses)
    np.testing.assert_allclose(rear, -front)
    np.testing.assert_allclose(right, -left)
    np.testing.assert_allclose(left, [-front[1], front[0]], atol=1e-12)  # counterclockwise


def test_without_a_rig_every_camera_has_rooms_of_its_own():
    rooms = set()
    for index in range(2):
        look, announced = view(index, cameras=('a', 'b'), rig=False, scene_seconds=1.0)
        for second in range(3):
            look.frame(second, second)
        rooms |= {name for _, name in announced}
    assert rooms == {f'office, seed {seed}' for seed in range(3, 9)}


def test_a_room_without_a_place_for_the_camera_is_said_and_left_out(monkeypatch):
    def full(scene, seed):
        if scene.seed < 6:
            raise RuntimeError(f'no free place for a camera in {scene.kind} {scene.seed}')
        return trajectory(scene, seed)
    monkeypatch.setattr(views, 'trajectory', full)
    warnings = []
    assert str(generate_room('office', 4, warnings.append)) == 'office, seed 6'
    assert [w.partition(':')[0] for w in warnings] == [
        f'no free place for a camera in office {seed}' for seed in (4, 5)]
    assert generate_room('all', 4, warnings.append).scene.kind == KINDS[4]  # the kind stays
