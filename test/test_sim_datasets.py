# SPDX-License-Identifier: Apache-2.0
"""The writers, read back as third parties read the originals."""

import numpy as np
import pytest

from depthclip_ros.sim import Scene, SimCamera, camera_pose, render, trajectory
from depthclip_ros.sim.datasets import (
    OPTICAL_FRAME,
    make_samples,
    punch_holes,
    quaternion,
    split,
    write_bag,
    write_labeled_mat,
    write_splits,
)


@pytest.fixture(scope='module')
def samples():
    return make_samples(12, seed=40)


def test_samples_are_of_all_kinds_and_rooms_are_not_split(samples):
    assert {s.frame.kind for s in samples} == {
        'bathroom', 'bedroom', 'office', 'classroom', 'corridor'}
    train, test = split(len(samples))
    assert sorted(train + test) == list(range(12))
    assert train
    assert not {samples[n].scene for n in train} & {samples[n].scene for n in test}
    assert samples[0].scene == samples[5].scene
    assert (samples[0].frame.rgb != samples[5].frame.rgb).any()


def test_raw_depth_has_holes_and_is_otherwise_exact(samples):
    for sample in samples:
        holes = sample.raw_depth == 0
        assert 0.03 < holes.mean() < 0.5
        np.testing.assert_array_equal(sample.raw_depth[~holes], sample.frame.depth[~holes])
        assert holes[:6].all()
        assert holes[:, -6:].all()


def test_holes_lie_in_the_shadow_of_edges():
    depth = np.full((480, 640), 4.0, np.float32)
    depth[100:300, 300:400] = 2.0
    raw = punch_holes(depth, 0)
    assert (raw[150:250, 292:300] == 0).all()  # background left of the box
    assert (raw[150:250, 300:400] == 0).mean() < 0.02
    assert (raw[150:250, 402:500] == 0).mean() < 0.02


def test_labeled_mat_reads_as_the_original_does(samples, tmp_path):
    h5py = pytest.importorskip('h5py')
    path = tmp_path / 'nyu_depth_v2_labeled.mat'
    write_labeled_mat(path, samples)
    assert path.read_bytes()[:10] == b'MATLAB 7.3'
    assert path.read_bytes()[124:128] == b'\x00\x02IM'
    with h5py.File(path, 'r') as file:
        assert file['images'].shape == (12, 3, 640, 480)
        assert file['images'].dtype == np.uint8
        assert file['depths'].shape == file['rawDepths'].shape == (12, 640, 480)
        assert file['depths'].dtype == np.float32
        assert file['scenes'].shape == file['sceneTypes'].shape == (1, 12)
        for i, sample in enumerate(samples):
            np.testing.assert_array_equal(file['images'][i].T, sample.frame.rgb)
            np.testing.assert_array_equal(file['depths'][i].T, sample.frame.depth)
            np.testing.assert_array_equal(file['rawDepths'][i].T, sample.raw_depth)
            for name, text in (('sceneTypes', sample.frame.kind), ('scenes', sample.scene)):
                characters = file[file[name][0, i]][:]
                assert characters.shape == (len(text), 1)
                assert characters.dtype == np.uint16
                assert ''.join(chr(c.item()) for c in characters.ravel()) == text


def test_splits_count_from_one(samples, tmp_path):
    scipy_io = pytest.importorskip('scipy.io')
    write_splits(tmp_path / 'splits.mat', len(samples))
    splits = scipy_io.loadmat(tmp_path / 'splits.mat')
    train, test = split(len(samples))
    for name, numbers in (('trainNdxs', train), ('testNdxs', test)):
        assert splits[name].shape == (len(numbers), 1)
        assert splits[name].dtype == np.uint16
        assert (splits[name].ravel().astype(int) - 1).tolist() == numbers


def test_bag_reads_back(tmp_path):
    reader = pytest.importorskip('rosbags.highlevel')
    scene = Scene.generate('office', 3)
    camera = SimCamera(160, 120, 130.0, 131.0, 80.2, 60.1, (-0.2, 0.05, 0.001, 0.0, 0.0))
    write_bag(tmp_path / 'bag', scene, camera, frames=4, rate=20.0, noise=0.0, seed=2)
    path = trajectory(scene, 2)
    seen = {}
    with reader.AnyReader([tmp_path / 'bag']) as bag:
        for connection, stamp, raw in bag.messages():
            seen.setdefault(connection.topic, []).append(
                (stamp, bag.deserialize(raw, connection.msgtype)))
    assert {topic: len(messages) for topic, messages in seen.items()} == dict.fromkeys((
        '/tf', '/camera/color/image_raw', '/camera/color/camera_info', '/camera/depth/image_raw',
        '/camera/depth/camera_info'), 4)
    for i in range(4):
        expected = render(scene, camera, path.pose(i / 20))
        stamp, image = seen['/camera/color/image_raw'][i]
        assert stamp == 1_700_000_000 * 10 ** 9 + i * 50_000_000
        assert image.header.stamp.sec * 10 ** 9 + image.header.stamp.nanosec == stamp
        assert (image.encoding, image.step, image.header.frame_id) == ('rgb8', 480, OPTICAL_FRAME)
        np.testing.assert_array_equal(image.data.reshape(120, 160, 3), expected.rgb)
        depth = seen['/camera/depth/image_raw'][i][1]
        assert (depth.encoding, depth.step) == ('32FC1', 640)
        np.testing.assert_array_equal(depth.data.view(np.float32).reshape(120, 160),
                                      expected.depth)
        info = seen['/camera/color/camera_info'][i][1]
        np.testing.assert_array_equal(info.k.reshape(3, 3), camera.matrix)
        np.testing.assert_array_equal(info.d, camera.distortion)
        transform = seen['/tf'][i][1].transforms[0]
        assert transform.child_frame_id == OPTICAL_FRAME
        assert transform.transform.translation.z == pytest.approx(path.pose(i / 20)[2, 3])


@pytest.mark.parametrize('yaw', [-3.0, -1.5, 0.0, 0.7, 2.9])
def test_quaternion_is_the_rotation(yaw):
    rotation = camera_pose((0.0, 0.0, 0.0), yaw, 0.3, 0.2)[:3, :3]
    x, y, z, w = quaternion(rotation)
    assert w >= 0
    back = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
    np.testing.assert_allclose(back, rotation, atol=1e-12)
