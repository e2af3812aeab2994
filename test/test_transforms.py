# SPDX-License-Identifier: Apache-2.0
"""Transforms of tf, against rotations worked out otherwise."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from depthclip_ros.core.transforms import (
    IDENTITY,
    TransformError,
    TransformTree,
    rotation_matrix,
)

SECOND = 1_000_000_000
STRAIGHT = (0.0, 0.0, 0.0, 1.0)


def about_z(degrees):
    half = np.radians(degrees) / 2
    return 0.0, 0.0, np.sin(half), np.cos(half)


def random_quaternion(rng):
    q = rng.normal(size=4)
    return q / np.linalg.norm(q)


def test_rotation_matrix_is_opencvs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        q = random_quaternion(rng)
        angle = 2 * np.arccos(q[3])
        expected = cv2.Rodrigues(q[:3] / np.linalg.norm(q[:3]) * angle)[0]
        np.testing.assert_allclose(rotation_matrix(q), expected, atol=1e-12)


def test_a_link_takes_points_from_child_to_parent():
    tree = TransformTree()
    tree.add('base', 'laser', (1, 2, 3), about_z(90), None)
    np.testing.assert_allclose(
        tree.lookup('base', 'laser').apply([[1, 0, 0], [0, 0, 1]]), [[1, 3, 3], [1, 2, 4]],
        atol=1e-12)
    np.testing.assert_allclose(
        tree.lookup('laser', 'base').apply([1, 3, 3]), [1, 0, 0], atol=1e-12)


def test_chains_through_a_common_ancestor():
    rng = np.random.default_rng(1)
    tree = TransformTree()
    matrices = {}
    for parent, child in (('map', 'odom'), ('odom', 'base'), ('base', 'mast'), ('mast', 'camera'),
                          ('base', 'laser')):
        q, t = random_quaternion(rng), rng.normal(size=3)
        tree.add(parent, child, t, q, None)
        matrices[child] = np.eye(4)
        matrices[child][:3, :3], matrices[child][:3, 3] = rotation_matrix(q), t
    expected = np.linalg.inv(matrices['mast'] @ matrices['camera']) @ matrices['laser']
    found = tree.lookup('/camera', 'laser')
    np.testing.assert_allclose(found.rotation, expected[:3, :3], atol=1e-12)
    np.testing.assert_allclose(found.translation, expected[:3, 3], atol=1e-12)
    there = tree.lookup('map', 'camera')
    np.testing.assert_allclose(there.inverse().apply(there.apply([1, 2, 3])), [1, 2, 3])


def test_a_frame_to_itself_is_identity_even_when_unknown():
    found = TransformTree().lookup('camera', 'camera', 5)
    np.testing.assert_array_equal(found.rotation, IDENTITY.rotation)
    np.testing.assert_array_equal(found.translation, IDENTITY.translation)


@pytest.mark.parametrize('sign', [1, -1])  # q and -q are the same rotation
def test_interpolates_between_stamps_on_the_shorter_way(sign):
    tree = TransformTree()
    tree.add('odom', 'base', (0, 0, 0), about_z(0), 10 * SECOND)
    tree.add('odom', 'base', (4, 0, 2), [sign * v for v in about_z(80)], 14 * SECOND)
    found = tree.lookup('odom', 'base', 11 * SECOND)
    np.testing.assert_allclose(found.translation, [1, 0, 0.5], atol=1e-12)
    np.testing.assert_allclose(found.rotation, rotation_matrix(about_z(20)), atol=1e-12)
    np.testing.assert_allclose(
        tree.lookup('odom', 'base', 14 * SECOND).translation, [4, 0, 2], atol=1e-12)
    np.testing.assert_allclose(tree.lookup('odom', 'base').translation, [4, 0, 2])


def test_times_out_of_order_and_twice():
    tree = TransformTree()
    for time, x in ((30, 3), (10, 1), (20, 7), (20, 2)):
        tree.add('odom', 'base', (x, 0, 0), STRAIGHT, time)
    assert [tree.lookup('odom', 'base', t).translation[0] for t in (10, 15, 25, 30)] \
        == [1, 1.5, 2.5, 3]


def test_beyond_the_entries_only_within_the_tolerance():
    tree = TransformTree()
    tree.add('odom', 'base', (1, 0, 0), STRAIGHT, 10 * SECOND)
    tree.add('odom', 'base', (2, 0, 0), STRAIGHT, 11 * SECOND)
    with pytest.raises(TransformError, match=r"'odom' to 'base'.*10\.000 to 11\.000.*11\.200 s"):
        tree.lookup('odom', 'base', int(11.2 * SECOND), tolerance=0.1)
    assert tree.lookup('odom', 'base', int(11.2 * SECOND), tolerance=0.3).translation[0] == 2
    assert tree.lookup('odom', 'base', int(9.9 * SECOND), tolerance=0.3).translation[0] == 1


def test_keeps_the_newest_of_a_moving_link():
    tree = TransformTree(most_entries=10)
    for time in range(100):
        tree.add('odom', 'base', (time, 0, 0), STRAIGHT, time)
    assert tree.lookup('odom', 'base', 90).translation[0] == 90
    with pytest.raises(TransformError, match='asked for'):
        tree.lookup('odom', 'base', 89)


def test_after_a_jump_in_time_only_the_static_ones_are_left():
    tree = TransformTree()
    tree.add('base', 'camera', (1, 0, 0), STRAIGHT, None)
    tree.add('odom', 'base', (1, 0, 0), STRAIGHT, 5)
    tree.clear()
    assert tree.lookup('base', 'camera').translation[0] == 1
    with pytest.raises(TransformError, match="no frame 'odom'"):
        tree.lookup('odom', 'base')


def test_a_time_that_jumps_back_unnoticed_begins_anew():
    """Nothing is kept, nor interpolated, across the jump, however full the history is."""
    for known in (10, 1000):
        tree = TransformTree(most_entries=1000)
        for step in range(known):
            tree.add('odom', 'base', (100 + step, 0, 0), STRAIGHT, (1000 + step) * SECOND // 10)
        for step in range(20):
            tree.add('odom', 'base', (step, 0, 0), STRAIGHT, (10 + step) * SECOND // 10)
        assert tree.lookup('odom', 'base', 2 * SECOND).translation[0] == 10
        assert tree.lookup('odom', 'base').translation[0] == 19
        with pytest.raises(TransformError, match='asked for'):
            tree.lookup('odom', 'base', 50 * SECOND)


def test_a_frame_may_change_its_parent():
    tree = TransformTree()
    tree.add('map', 'base', (1, 0, 0), STRAIGHT, 5)
    tree.add('odom', 'base', (2, 0, 0), STRAIGHT, 6)
    assert tree.lookup('odom', 'base', 6).translation[0] == 2
    with pytest.raises(TransformError, match='map'):
        tree.lookup('map', 'base', 6)


def test_without_a_time_the_latest_that_all_links_know_counts():
    tree = TransformTree()
    for time, x in ((0, 0), (10, 10), (20, 20)):
        tree.add('odom', 'base', (x, 0, 0), STRAIGHT, time)
    for time in (0, 10):
        tree.add('base', 'mast', (0, time, 0), STRAIGHT, time)
    np.testing.assert_allclose(tree.lookup('odom', 'mast').translation, [10, 10, 0])


def test_what_a_frame_moves_in_is_the_root_of_its_tree():
    tree = TransformTree()
    tree.add('base', 'camera', (0, 0, 0), STRAIGHT, None)
    assert tree.fixed_frame('camera') is None
    tree.add('odom', 'base', (0, 0, 0), STRAIGHT, 5)
    assert tree.fixed_frame('/camera') == 'odom'
    assert tree.fixed_frame('unknown') is None


def test_missing_links_are_named():
    tree = TransformTree()
    with pytest.raises(TransformError, match=r"no frame 'laser'; it knows none"):
        tree.lookup('camera', 'laser')
    tree.add('mast', 'camera', (0, 0, 0), STRAIGHT, None)
    tree.add('base', 'laser', (0, 0, 0), STRAIGHT, None)
    with pytest.raises(TransformError, match=r"'base'.*'mast'"):
        tree.lookup('camera', 'laser')
    with pytest.raises(TransformError, match=r"no frame 'radar'.*'camera'"):
        tree.lookup('camera', 'radar')


def test_circles_are_named():
    tree = TransformTree()
    for parent, child in (('a', 'b'), ('b', 'c'), ('c', 'a')):
        tree.add(parent, child, (0, 0, 0), STRAIGHT, None)
    with pytest.raises(TransformError, match='circle'):
        tree.lookup('x', 'a')


@pytest.mark.parametrize(('arguments', 'message'), [
    (('a', 'b', (0, 0, 0), (0, 0, 0, 0)), 'no rotation'),
    (('a', 'b', (0, 0, 0), (0, 0, 0, 1.01)), 'length 1.01'),
    (('a', 'b', (np.nan, 0, 0), STRAIGHT), 'not finite'),
    (('a', 'b', (0, 0, 1e30), STRAIGHT), 'not finite'),
    (('a', 'b', (0, 0, 0), (0, np.inf, 0, 1)), 'not finite'),
    (('a', '/a', (0, 0, 0), STRAIGHT), 'two different frames'),
    (('', 'b', (0, 0, 0), STRAIGHT), 'two different frames'),
])
def test_wrong_links(arguments, message):
    tree = TransformTree()
    with pytest.raises(TransformError, match=message):
        tree.add(*arguments, None)
    with pytest.raises(TransformError, match='it knows none'):
        tree.lookup('a', 'b')


def test_a_quaternion_nearly_of_length_one_is_made_so():
    tree = TransformTree()
    tree.add('a', 'b', (0, 0, 0), [1.004 * v for v in about_z(30)], None)
    rotation = tree.lookup('a', 'b').rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


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
    problems = tree.add_message(message(
        ('base', 'mast', (0, 0, 0, 0), 0), ('base', 'camera', STRAIGHT, 0)), static=True)
    assert len(problems) == 1
    assert "'base' to 'mast'" in problems[0]
    assert tree.add_message(message(('odom', 'base', STRAIGHT, 7 * SECOND)), static=False) == []
    assert tree.lookup('odom', 'camera', 7 * SECOND).translation[0] == 2
    with pytest.raises(TransformError, match='asked for'):
        tree.lookup('odom', 'camera', 8 * SECOND)
