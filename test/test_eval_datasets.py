# SPDX-License-Identifier: Apache-2.0
"""Data sets: the miniature world in every format, and what may be wrong with each."""

from __future__ import annotations

import os
import pickle
import shutil

import cv2
import numpy as np
import pytest
from eval_results import write_world

from depthclip_ros.sim.nyu import MARK_FILE, make_samples, split, write_splits
from offline_eval.datasets import Where, nyu_mat, open_dataset
from offline_eval.datasets.base import NYU, NYU_FOCAL, RENDERED
from offline_eval.datasets.folders import KITTI_LIST, NYU_LIST
from offline_eval.datasets.splits import official_split, scene_classes
from offline_eval.errors import DatasetError
from offline_eval.extract import extract

COUNT = 12
h5py = pytest.importorskip('h5py')


@pytest.fixture(scope='module')
def samples():
    return make_samples(COUNT, seed=40)


@pytest.fixture(scope='module')
def world(samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, samples)
    return folder


@pytest.fixture
def mat(world, tmp_path):
    """A copy that a test may damage."""
    for name in ('nyu_depth_v2_labeled.mat', 'splits.mat'):
        shutil.copy(world / name, tmp_path)
    return tmp_path / 'nyu_depth_v2_labeled.mat'


@pytest.fixture
def official(world, tmp_path):
    return shutil.copytree(world / 'official', tmp_path / 'official')


def opened(path, **where):
    return open_dataset(Where(path, **where))


# The official split --------------------------------------------------------------------------


def test_official_split_is_the_published_one(shared_dir):
    loadmat = pytest.importorskip('scipy.io').loadmat
    published = loadmat(shared_dir / 'nyu/splits.mat')
    for ours, name in zip(official_split(), ('trainNdxs', 'testNdxs'), strict=True):
        assert ours == sorted(published[name].ravel().astype(int) - 1)
    listed = [line.split()[0] for line in
              (shared_dir / 'nyu/test_list.txt').read_text().splitlines()]
    assert scene_classes() == {int(name[-9:-4]): name.split('/')[0] for name in listed}


def test_official_split_in_numbers():
    train, test = official_split()
    assert (len(train), len(test)) == (795, 654)
    assert sorted(train + test) == list(range(1449))
    assert test[:4] == [0, 1, 8, 13]
    scenes = list(scene_classes().values())
    assert (scenes.count('bathroom'), scenes.count('classroom')) == (58, 23)


# Reading -------------------------------------------------------------------------------------


def test_mat_is_read_directly(world, samples):
    dataset = opened(world)
    assert [e.index for e in dataset.entries] == split(COUNT)[1]
    assert (dataset.depth, dataset.official) == ('raw', False)
    for position in (0, len(dataset) - 1):
        sample = samples[dataset.entries[position].index]
        pair = dataset.read(position)
        np.testing.assert_array_equal(pair.rgb, sample.frame.rgb)
        np.testing.assert_array_equal(pair.depth, sample.raw_depth)
        assert dataset.entries[position].scene == sample.frame.kind
    assert [e.index for e in dataset.training().entries] == split(COUNT)[0]


def test_rendered_rooms_say_that_they_are(world, tmp_path):
    """As a file, as a folder, and as a folder extracted from the file."""
    assert opened(world).origin == RENDERED
    assert opened(world / 'official').origin == RENDERED
    assert opened(extract(world / 'nyu_depth_v2_labeled.mat', tmp_path)).origin == RENDERED


def test_what_does_not_say_whose_it_is_has_no_origin(mat, official):
    with mat.open('r+b') as file:
        file.write(b'MATLAB 7.3 MAT-file, Platform: GLNXA64'.ljust(116))
    (official / 'official_splits' / MARK_FILE).unlink()
    for path in (mat, official):
        dataset = opened(path)
        assert (dataset.origin, dataset.official) == ('', False)


def official_world(folder, depths='sync_depth_{:05d}.png', *, holes=True):
    """The 654 names of the official folders, all of them links to one image and one depth."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (48, 64, 3), np.uint8)
    depth = rng.integers(2000, 3000, (48, 64)).astype(np.uint16)
    depth[:, :8] *= not holes
    test, lines = folder / 'official_splits' / 'test', []
    test.mkdir(parents=True)
    cv2.imwrite(str(folder / 'rgb.jpg'), rgb)
    cv2.imwrite(str(folder / 'depth.png'), depth)
    for number, scene in scene_classes().items():
        names = f'{scene}/rgb_{number:05d}.jpg', f'{scene}/{depths.format(number)}'
        for name, source in zip(names, ('rgb.jpg', 'depth.png'), strict=True):
            (test / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / source, test / name)
        lines.append(' '.join(names))
    (folder / NYU_LIST).write_text('\n'.join(lines))
    return test


def test_in_painted_depth_does_not_pass_as_the_papers(tmp_path):
    dataset = opened(official_world(tmp_path / 'raw'))
    dataset.check_unit()
    assert (dataset.official, dataset.depth) == (True, 'raw')
    named = opened(official_world(tmp_path / 'dense', 'dense/sync_depth_dense_{:05d}.png'))
    whole = opened(official_world(tmp_path / 'whole', holes=False))
    for dataset in (named, whole):
        dataset.check_unit()
        assert (dataset.official, dataset.depth) == (False, 'in-painted')
        assert 'in-painted' in ' '.join(dataset.warnings)


def test_images_of_the_official_folders_are_not_independent(tmp_path):
    """Neighbouring numbers of one class are one scene at most, for no name says which."""
    entries = opened(official_world(tmp_path)).entries
    scenes = {e.index: e.sequence for e in entries}
    assert len(set(scenes.values())) == 130
    assert '' not in scenes.values()
    assert scenes[0] == scenes[1] != scenes[8]


def test_as_many_rendered_images_are_not_the_data_set(mat, monkeypatch):
    """Nor are others, of other classes."""
    monkeypatch.setattr(nyu_mat, 'LABELED', COUNT)
    monkeypatch.setattr(nyu_mat, 'official_split', lambda: ([0, 1], [2, 3]))
    for classes, origin in (({}, NYU), ({2: 'bookstore'}, '')):
        monkeypatch.setattr(nyu_mat, 'scene_classes', lambda classes=classes: classes)
        assert (opened(mat).origin, opened(mat).official) == (RENDERED, False)
        other = mat.with_name('other.mat')
        other.write_bytes(b' ' * 116 + mat.read_bytes()[116:])
        assert (opened(other).origin, opened(other).official) == (origin, origin == NYU)


def test_inpainted_depth(world, samples):
    dataset = opened(world, inpainted=True)
    assert dataset.depth == 'in-painted'
    np.testing.assert_array_equal(
        dataset.read(0).depth, samples[dataset.entries[0].index].frame.depth)


def test_mat_goes_to_other_processes(world):
    dataset = opened(world)
    dataset.read(0)
    there = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(there.read(1).rgb, dataset.read(1).rgb)


@pytest.mark.parametrize('place', ['official', 'official/official_splits',
                                   'official/official_splits/test'])
def test_folder_is_found(world, samples, place):
    dataset = opened(world / place)
    assert 'by ' + NYU_LIST in dataset.split
    assert sorted(e.index for e in dataset.entries) == split(COUNT)[1]
    pair, sample = dataset.read(0), samples[dataset.entries[0].index]
    np.testing.assert_allclose(pair.depth, sample.raw_depth, atol=1.001e-3)
    assert np.abs(pair.rgb[20:460, 20:620].astype(int)
                  - sample.frame.rgb[20:460, 20:620]).mean() < 6
    assert len(dataset.training()) == len(split(COUNT)[0])


def test_folder_without_list(official):
    (official / NYU_LIST).unlink()
    dataset = opened(official)
    assert sorted(e.index for e in dataset.entries) == split(COUNT)[1]


def test_list_with_a_third_column_gives_the_same(official):
    plain = [e.name for e in opened(official).entries]
    text = (official / NYU_LIST).read_text()
    for third, focal in (('518.8579', NYU_FOCAL), ('600.5', 600.5), ('dense.png', NYU_FOCAL),
                         ('nan', NYU_FOCAL), ('-1', NYU_FOCAL)):
        (official / 'focal.txt').write_text(text.replace('.png', f'.png {third}'))
        entries = opened(official, list_file=official / 'focal.txt').entries
        assert [e.name for e in entries] == plain
        assert {e.focal for e in entries} == {focal}


def test_a_part_of_the_official_split_is_not_it(world):
    dataset = opened(world)
    dataset.official = True  # as of the original file
    dataset.keep([0, 2])
    assert not dataset.official
    assert '2 of ' in dataset.split


def test_kaggle(samples, tmp_path):
    folder = tmp_path / 'data' / 'nyu2_test'
    folder.mkdir(parents=True)
    for number in (0, 8):
        cv2.imwrite(str(folder / f'{number:05d}_colors.png'), samples[number].frame.rgb[..., ::-1])
        cv2.imwrite(str(folder / f'{number:05d}_depth.png'),
                    (samples[number].frame.depth * 1000).astype(np.uint16))
    dataset = opened(tmp_path)
    assert [(e.index, e.scene) for e in dataset.entries] == [
        (n, scene_classes()[n]) for n in (0, 8)]
    assert dataset.depth == 'in-painted'
    assert 'not comparable' in dataset.warnings[0]
    np.testing.assert_array_equal(dataset.read(1).rgb, samples[8].frame.rgb)
    (folder / '00008_depth.png').unlink()
    with pytest.raises(DatasetError, match=r'without ground truth.*\n +00008_colors.png'):
        opened(tmp_path)


def kitti(folder, depth=20.0):
    rgb, truth = ('2011_09_26/drive/image_02/data/{}.png', 'drive/image_02/{}.png')
    lines = []
    for i in range(3):
        for root, name, image in (
                ('', rgb, np.full((375, 1242, 3), 50 * i, np.uint8)),
                ('data_depth_annotated/val', truth,
                 np.full((375, 1242), depth * 256, np.uint16))):
            path = folder / root / name.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
        lines.append(f'{rgb.format(i)} {truth.format(i)} 721.5377')
    (folder / KITTI_LIST).write_text('\n'.join([*lines, f'{rgb.format(0)} None 721.5377']))


def test_kitti(tmp_path):
    kitti(tmp_path)
    dataset = opened(tmp_path)
    assert len(dataset) == 3
    assert '1 of 4 images' in dataset.warnings[0]
    assert dataset.read(1).depth[0, 0] == 20
    dataset.check_unit()


# Extraction ----------------------------------------------------------------------------------


def test_extraction_is_the_official_folder(world, tmp_path):
    extract(world / 'nyu_depth_v2_labeled.mat', tmp_path)
    theirs = {p.relative_to(world / 'official'): p.read_bytes()
              for p in (world / 'official').rglob('*') if p.is_file()}
    ours = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    assert ours == theirs


# What may be wrong ---------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    with pytest.raises(DatasetError, match='does not exist'):
        opened(tmp_path / 'no.mat')
    with pytest.raises(DatasetError, match='no known data set'):
        opened(tmp_path)


def test_not_hdf5(tmp_path):
    path = tmp_path / 'nyu_depth_v2_labeled.mat'
    path.write_text('<html>404</html>')
    with pytest.raises(DatasetError, match=r'not an HDF5 file \(16 bytes\)'):
        opened(path)


@pytest.mark.parametrize('part', [0.02, 0.5, 0.95])
def test_truncated(mat, part):
    whole = mat.read_bytes()
    mat.write_bytes(whole[:int(len(whole) * part)])
    with pytest.raises(DatasetError, match='truncated or damaged'):
        opened(mat)


def test_missing_keys(mat):
    with h5py.File(mat, 'r+') as file:
        del file['rawDepths'], file['sceneTypes']
    with pytest.raises(DatasetError, match=r'has no rawDepths, sceneTypes; it holds .*depths'):
        opened(mat)


def test_wrong_shape(mat):
    with h5py.File(mat, 'r+') as file:
        del file['rawDepths']
        file['rawDepths'] = np.zeros((COUNT, 480, 640), np.float32)
    with pytest.raises(DatasetError, match=r'rawDepths has shape \(12, 480, 640\), expected '
                                           r'\(12, 640, 480\)'):
        opened(mat)


def test_other_number_of_images_needs_a_split(mat):
    mat.with_name('splits.mat').unlink()
    with pytest.raises(DatasetError, match=r'12 images, not the original 1449.*--splits'):
        opened(mat)


def test_split_of_another_file(mat):
    write_splits(mat.with_name('splits.mat'), 100)
    with pytest.raises(DatasetError, match='belongs to another file'):
        opened(mat)
    mat.with_name('splits.mat').write_text('no')
    with pytest.raises(DatasetError, match=r'not a splits\.mat'):
        opened(mat)


def test_millimetres_in_the_mat(mat):
    with h5py.File(mat, 'r+') as file:
        file['rawDepths'][...] = file['rawDepths'][...] * 1000
    with pytest.raises(DatasetError, match=r'millimetres or another scale.*has metres'):
        opened(mat).check_unit()


def test_metres_in_the_folder(official):
    for path in official.rglob('sync_depth_0*.png'):
        depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), (depth / 1000).astype(np.uint16))
    with pytest.raises(DatasetError, match=r'metres or another scale.*has millimetres'):
        opened(official).check_unit()


def test_8_bit_depth(official):
    path = min(official.glob('official_splits/test/*/sync_depth_0*.png'))
    cv2.imwrite(str(path), np.zeros((480, 640), np.uint8))
    with pytest.raises(DatasetError, match='expected 16 bits'):
        opened(official).read(0)


def test_image_without_truth(official):
    (official / NYU_LIST).unlink()
    lost = sorted(official.glob('official_splits/test/*/sync_depth_0*.png'))[:2]
    for path in lost:
        path.unlink()
    with pytest.raises(DatasetError, match='2 images are without ground truth') as error:
        opened(official)
    assert all(path.stem[-5:] in str(error.value) for path in lost)


def test_all_missing_files_of_a_list_are_named(official):
    lost = sorted(official.glob('official_splits/test/*/*.jpg'))[:3]
    for path in lost:
        path.unlink()
    with pytest.raises(DatasetError, match='3 files of') as error:
        opened(official)
    assert all(str(path) in str(error.value) for path in lost)


@pytest.mark.parametrize(('text', 'message'), [
    ('', 'no line'), ('a.jpg\nb.jpg b.png\n', r"line 1: 'a\.jpg'")])
def test_malformed_list(official, text, message):
    (official / 'list.txt').write_text(text)
    with pytest.raises(DatasetError, match=message):
        opened(official, list_file=official / 'list.txt')


def test_damaged_image(official):
    path = min(official.glob('official_splits/test/*/*.jpg'))
    path.write_bytes(b'not an image')
    with pytest.raises(DatasetError, match='cannot be decoded'):
        opened(official).read(0)
