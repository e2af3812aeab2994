# SPDX-License-Identifier: Apache-2.0
"""Transforms of tf, against rotations worked out otherwise."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from depthclip_ros.core.tf_tree import TransformError, TransformTree, rotation_matrix

SECOND = 1_000_000_000
STRAIGHT = (0.0, 0.0, 0.0, 1.0)


def about_z(degrees):
    half = np.radians(degrees) / 2
    return 0.0, 0.0, np.sin(half), np.cos(half)


def random_quaternion(rng):
    q = rng.normal(size=4)
    return q / np.linalg.norm(q)


def moving(*entries, most=1000, child='base'):
    """A tree with one link that moves along x: pairs of time and place."""
    tree = TransformTree(most)
    for time, x in entries:
        tree.add('odom', child, (x, 0, 0), STRAIGHT, time)
    return tree


def place(tree, time, tolerance=0.0):
    return tree.lookup('odom', 'base', time, tolerance).translation[0]


def test_rotation_matrix_is_opencvs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        q = random_quaternion(rng)
        expected = cv2.Rodrigues(q[:3] / np.linalg.norm(q[:3]) * 2 * np.arccos(q[3]))[0]
        np.testing.assert_allclose(rotation_matrix(q), expected, atol=1e-12)


def test_a_link_takes_points_from_child_to_parent_and_back():
    tree = TransformTree()
    tree.add('base', 'laser', (1, 2, 3), [1.004 * v for v in about_z(90)], None)
    np.testing.assert_allclose(
        tree.lookup('base', 'laser', 0).apply([[1, 0, 0], [0, 0, 1]]), [[1, 3, 3], [1, 2, 4]],
        atol=1e-12)
    np.testing.assert_allclose(
        tree.lookup('laser', 'base', 0).apply([1, 3, 3]), [1, 0, 0], atol=1e-12)
    same = tree.lookup('camera', 'camera', 5)  # even of one that is unknown
    np.testing.assert_array_equal(same.apply([1, 2, 3]), [1, 2, 3])


def test_chains_through_a_common_ancestor():
    rng = np.random.default_rng(1)
    tree, matrices = TransformTree(), {}
    for parent, child in (('map', 'odom'), ('odom', 'base'), ('base', 'mast'), ('mast', 'camera'),
                          ('base', 'laser')):
        q, t = random_quaternion(rng), rng.normal(size=3)
        tree.add(parent, child, t, q, None)
        matrices[child] = np.eye(4)
        matrices[child][:3, :3], matrices[child][:3, 3] = rotation_matrix(q), t
    expected = np.linalg.inv(matrices['mast'] @ matrices['camera']) @ matrices['laser']
    found = tree.lookup('/camera', 'laser', 0)
    np.testing.assert_allclose(found.rotation, expected[:3, :3], atol=1e-12)
    np.testing.assert_allclose(found.translation, expected[:3, 3], atol=1e-12)


@pytest.mark.parametrize('sign', [1, -1])  # q and -q are the same rotation
def test_interpolates_between_stamps_on_the_shorter_way(sign):
    tree = TransformTree()
    tree.add('odom', 'base', (0, 0, 0), about_z(0), 10 * SECOND)
    tree.add('odom', 'base', (4, 0, 2), [sign * v for v in about_z(80)], 14 * SECOND)
    found = tree.lookup('odom', 'base', 11 * SECOND)
    np.testing.assert_allclose(found.translation, [1, 0, 0.5], atol=1e-12)
    np.testing.assert_allclose(found.rotation, rotation_matrix(about_z(20)), atol=1e-12)


def test_times_out_of_order_and_twice():
    tree = moving((30, 3), (10, 1), (20, 7), (20, 2))
    assert [place(tree, t) for t in (10, 15, 25, 30)] == [1, 1.5, 2.5, 3]


def test_beyond_the_entries_only_within_the_tolerance():
    tree = moving((10 * SECOND, 1), (11 * SECOND, 2))
    with pytest.raises(TransformError, match=r"'odom' to 'base'.*10\.000 to 11\.000.*11\.200 s"):
        place(tree, int(11.2 * SECOND), tolerance=0.1)
    assert place(tree, int(11.2 * SECOND), tolerance=0.3) == 2
    assert place(tree, int(9.9 * SECOND), tolerance=0.3) == 1


def test_keeps_the_newest_of_a_moving_link():
    tree = moving(*((time, time) for time in range(100)), most=10)
    assert place(tree, 90) == 90
    with pytest.raises(TransformError, match='asked for'):
        place(tree, 89)


def test_after_a_jump_in_time_only_the_static_ones_are_left():
    tree = moving((5, 1))
    tree.add('base', 'camera', (1, 0, 0), STRAIGHT, None)
    tree.clear()
    assert tree.lookup('base', 'camera', 0).translation[0] == 1
    with pytest.raises(TransformError, match='does not connect'):
        place(tree, 5)


@pytest.mark.parametrize('known', [10, 1000])
def test_a_time_that_jumps_back_unnoticed_begins_anew(known):
    """Nothing is kept, nor interpolated, across the jump, however full the history is."""
    tree = moving(*(((1000 + step) * SECOND // 10, 100 + step) for step in range(known)),
                  *(((10 + step) * SECOND // 10, step) for step in range(20)))
    assert place(tree, 2 * SECOND) == 10
    with pytest.raises(TransformError, match='asked for'):
        place(tree, 50 * SECOND)


def test_a_frame_may_change_its_parent():
    tree = TransformTree()
    tree.add('base', 'camera', (0, 0, 0), STRAIGHT, None)
    tree.add('map', 'base', (1, 0, 0), STRAIGHT, 5)
    tree.add('odom', 'base', (2, 0, 0), STRAIGHT, 6)
    assert place(tree, 6) == 2
    with pytest.raises(TransformError, match='map'):
        tree.lookup('map', 'base', 6)


def robot(odometry, *, map_times=()):
    """A lidar and a camera on a robot, 1 m/s along x in odom, which jumps by 2 m in map."""
    tree = TransformTree()
    tree.add('base', 'camera', (0, 0, 0), STRAIGHT, None)
    tree.add('base', 'lidar', (0, 0, 1), STRAIGHT, None)
    for time in range(11) if odometry else ():
        tree.add(odometry, 'base', (0.1 * time, 0, 0), STRAIGHT, time * SECOND // 10)
    for time in map_times:
        tree.add('map', odometry, (2.0 * (time % 2), 0, 0), STRAIGHT, time * SECOND // 10)
    return tree


@pytest.mark.parametrize('odometry', ['odom', 'robot/odom_combined', 'camera_init'])
@pytest.mark.parametrize('map_times', [(), (0,), range(11)])
def test_what_moves_between_two_times_counts_by_odometry_and_not_by_map(odometry, map_times):
    """Whether localisation jumps, was said once, or is not there."""
    tree = robot(odometry, map_times=map_times)
    found, age = tree.lookup_between('/camera', 5 * SECOND // 10, 'lidar', 4 * SECOND // 10)
    np.testing.assert_allclose(found.translation, [-0.1, 0, 1], atol=1e-9)
    assert age == 0


def test_without_odometry_two_times_may_be_so_far_apart():
    tree = robot('')
    found, age = tree.lookup_between(
        'camera', SECOND, 'lidar', 8 * SECOND // 10, max_unmeasured=0.25)
    np.testing.assert_allclose(found.translation, [0, 0, 1])
    assert age == pytest.approx(0.2)
    with pytest.raises(TransformError, match=r'0\.3 s apart.*odom.*0\.25 s') as caught:
        tree.lookup_between('camera', SECOND, 'lidar', 7 * SECOND // 10, max_unmeasured=0.25)
    assert caught.value.condition == 'stamps apart'
    late = robot('odom')  # which ends at 1 s
    found, age = late.lookup_between(
        'camera', 13 * SECOND // 10, 'lidar', 12 * SECOND // 10, max_unmeasured=0.25)
    assert age == pytest.approx(0.1)
    # map jumps whenever the robot is located anew; what the user names does not.
    mapped = robot('map')
    with pytest.raises(TransformError, match=r'and not map.*odom_frame'):
        mapped.lookup_between('camera', SECOND, 'lidar', 7 * SECOND // 10, max_unmeasured=0.25)
    found, age = mapped.lookup_between(
        'camera', SECOND, 'lidar', 7 * SECOND // 10, max_unmeasured=0.25, odom='/map')
    np.testing.assert_allclose(found.translation, [-0.3, 0, 1], atol=1e-9)
    with pytest.raises(TransformError, match='t265'):
        late.lookup_between(
            'camera', SECOND, 'lidar', 7 * SECOND // 10, max_unmeasured=0.25, odom='t265')
    with pytest.raises(TransformError, match='asked for'):
        late.lookup_between('camera', 14 * SECOND // 10, 'lidar', SECOND, max_unmeasured=0.25)


def test_a_refused_link_is_named_where_it_is_missed():
    tree = TransformTree()
    tree.add('base', 'lidar', (0, 0, 0), STRAIGHT, None)
    with pytest.raises(TransformError):
        tree.add('base', 'camera', (0, 0, 0), (0.49, -0.49, 0.49, 0.49), None)
    with pytest.raises(TransformError, match=r"'base' to 'camera'.*length 0\.98") as caught:
        tree.lookup('camera', 'lidar', 0)
    assert caught.value.condition == 'no transform'
    tree.add('base', 'camera', (0, 0, 0), STRAIGHT, None)
    tree.lookup('camera', 'lidar', 0)


def test_a_link_that_came_once_is_said_to_belong_on_tf_static():
    tree = TransformTree()
    tree.add('base', 'camera', (0, 0, 0), STRAIGHT, SECOND)
    with pytest.raises(TransformError, match=r'only once.*/tf_static'):
        tree.lookup('base', 'camera', 5 * SECOND)


def test_missing_links_and_circles_are_named():
    tree = TransformTree()
    tree.add('mast', 'camera', (0, 0, 0), STRAIGHT, None)
    tree.add('base', 'laser', (0, 0, 0), STRAIGHT, None)
    with pytest.raises(TransformError, match=r"'base'.*'mast'"):
        tree.lookup('camera', 'laser', 0)
    with pytest.raises(TransformError, match=r"'radar' with 'camera'.*known are \['camera', 'la"):
        tree.lookup('camera', 'radar', 0)
    tree.add('camera', 'mast', (0, 0, 0), STRAIGHT, None)
    with pytest.raises(TransformError, match='circle'):
        tree.lookup('x', 'mast', 0)


@pytest.mark.parametrize('link', [
    ('a', 'b', (0, 0, 0), (0, 0, 0, 0)), ('a', 'b', (0, 0, 0), (0, 0, 0, 1.01)),
    ('a', 'b', (np.nan, 0, 0), STRAIGHT), ('a', 'b', (0, 0, 1e30), STRAIGHT),
    ('a', 'b', (0, 0, 0), (0, np.inf, 0, 1)), ('a', '/a', (0, 0, 0), STRAIGHT),
    ('', 'b', (0, 0, 0), STRAIGHT)])
def test_wrong_links(link):
    tree = TransformTree()
    with pytest.raises(TransformError, match='Correct its publisher'):
        tree.add(*link, None)
    with pytest.raises(TransformError, match=r'known are \[\]'):
        tree.lookup('a', 'b', 0)


def message(*links):
    def stamped(parent, child, quaternion, nanoseconds):
        sec, nanosec = divmod(nanoseconds, SECOND)
        x, y, z, w = quaternion
        return SimpleNamespace(
            header=SimpleNamespace(
                frame_id=parent, stamp=SimpleNamespace(sec=sec, nanosec=nanosec)),
            child_frame_id=child, transform=SimpleNamespace(
                translation=SimpleNamespace(x=1.0, y=0.0, z=0.0),
                rotation=SimpleNamespace(x=x, y=y, z=z, w=w)))
    return SimpleNamespace(transforms=[stamped(*link) for link in links])


def test_messages_count_but_for_what_is_wrong_in_them():
    tree = TransformTree()
    problem, = tree.add_message(message(
        ('base', 'mast', (0, 0, 0, 0), 0), ('base', 'camera', STRAIGHT, 0)), static=True)
    assert "'base' to 'mast'" in problem
    assert tree.add_message(message(('odom', 'base', STRAIGHT, 7 * SECOND)), static=False) == []
    assert tree.lookup('odom', 'camera', 7 * SECOND).translation[0] == 2
    with pytest.raises(TransformError, match='asked for'):
        tree.lookup('odom', 'camera', 8 * SECOND)
