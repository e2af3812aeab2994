# SPDX-License-Identifier: Apache-2.0
"""Data sets: the miniature world in every format, and what may be wrong with each."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import unicodedata

import cv2
import numpy as np
import pytest
from eval_results import write_kitti, write_world

from depthclip_ros.core.errors import ImageError
from depthclip_ros.evaluation.datasets import nyu
from depthclip_ros.evaluation.datasets import open_dataset as opened
from depthclip_ros.evaluation.datasets.base import NYU, RENDERED
from depthclip_ros.evaluation.datasets.kitti import LIST as KITTI_LIST
from depthclip_ros.evaluation.datasets.nyu import (
    FOCAL,
    MARK_FILE,
    VALID_REGION,
    official_split,
    scene_classes,
)
from depthclip_ros.evaluation.datasets.nyu import LIST as NYU_LIST
from depthclip_ros.evaluation.errors import DatasetError
from depthclip_ros.sim.datasets import make_samples, split, write_splits
from depthclip_ros.sources.depth_maps import read_depth_map

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


# Reading -------------------------------------------------------------------------------------


def test_official_split_is_the_published_one(shared_dir):
    loadmat = pytest.importorskip('scipy.io').loadmat
    published = loadmat(shared_dir / 'nyu/splits.mat')
    for ours, name in zip(official_split(), ('trainNdxs', 'testNdxs'), strict=True):
        assert ours == sorted(published[name].ravel().astype(int) - 1)
    listed = [line.split()[0] for line in
              (shared_dir / 'nyu/test_list.txt').read_text().splitlines()]
    assert scene_classes() == {int(name[-9:-4]): name.split('/')[0] for name in listed}


@pytest.mark.parametrize('inpainted', [False, True])
def test_mat_is_read_directly(world, samples, inpainted):
    dataset = opened(world, inpainted=inpainted)
    assert [e.index for e in dataset.entries] == split(COUNT)[1]
    assert (dataset.depth, dataset.official, dataset.origin) == (
        'in-painted' if inpainted else 'raw', False, RENDERED)
    for position in (0, len(dataset) - 1):
        sample, pair = samples[dataset.entries[position].index], dataset.read(position)
        np.testing.assert_array_equal(pair.rgb, sample.frame.rgb)
        np.testing.assert_array_equal(
            pair.depth, sample.frame.depth if inpainted else sample.raw_depth)
        assert dataset.entries[position].scene == sample.frame.kind
    assert [e.index for e in dataset.training().entries] == split(COUNT)[0]


@pytest.mark.parametrize('place', ['', 'official_splits', 'official_splits/test'])
def test_folder_is_found_with_its_list_and_without(world, official, samples, place):
    dataset = opened(world / 'official' / place)
    assert dataset.origin == RENDERED
    assert 'by ' + NYU_LIST in dataset.split
    assert sorted(e.index for e in dataset.entries) == split(COUNT)[1]
    pair, sample = dataset.read(0), samples[dataset.entries[0].index]
    np.testing.assert_allclose(pair.depth, sample.raw_depth, atol=1.001e-3)
    assert np.abs(pair.rgb[20:460, 20:620].astype(int)
                  - sample.frame.rgb[20:460, 20:620]).mean() < 6
    assert len(dataset.training()) == len(split(COUNT)[0])
    (official / NYU_LIST).unlink()
    assert {(e.index, e.name, e.scene, e.sequence) for e in opened(official / place).entries} == {
        (e.index, e.name, e.scene, e.sequence) for e in dataset.entries}


def test_list_with_a_third_column_gives_the_same(official):
    plain = [e.name for e in opened(official).entries]
    text = (official / NYU_LIST).read_text()
    for third, focal in (('518.8579', FOCAL), ('600.5', 600.5), ('dense.png', FOCAL),
                         ('nan', FOCAL), ('-1', FOCAL)):
        (official / 'focal.txt').write_text(text.replace('.png', f'.png {third}'))
        entries = opened(official, official / 'focal.txt').entries
        assert [e.name for e in entries] == plain
        assert {e.focal for e in entries} == {focal}


def test_kaggle(samples, tmp_path):
    folder = tmp_path / 'data' / 'nyu2_test'
    folder.mkdir(parents=True)
    for number in (0, 8):
        cv2.imwrite(str(folder / f'{number:05d}_colors.png'), samples[number].frame.rgb[..., ::-1])
        cv2.imwrite(str(folder / f'{number:05d}_depth.png'),
                    (samples[number].frame.depth * 1000).astype(np.uint16))
    dataset = opened(tmp_path)
    # Two of somebody else's could have these numbers.
    assert [(e.index, e.scene, e.sequence, e.focal) for e in dataset.entries] == [
        (n, '', '', 0.0) for n in (0, 8)]
    for number, kind in itertools.product(list(scene_classes())[4:16], ('colors', 'depth')):
        os.link(folder / f'00008_{kind}.png', folder / f'{number:05d}_{kind}.png')
    more = opened(tmp_path)
    assert {e.index: e.scene for e in more.entries}.items() <= scene_classes().items()
    assert '' not in {e.sequence for e in more.entries}
    assert {e.focal for e in more.entries} == {FOCAL}
    assert dataset.depth == 'in-painted'
    assert 'not comparable' in dataset.warnings[0]
    np.testing.assert_array_equal(dataset.read(1).rgb, samples[8].frame.rgb)
    (folder / '00008_depth.png').unlink()
    with pytest.raises(DatasetError, match=r'without ground truth.*\n +00008_colors.png'):
        opened(tmp_path)


def test_kitti(tmp_path):
    write_kitti(tmp_path, [(375, 1242)] * 3, lambda size: np.full(size, 20))
    annotated = tmp_path / 'data_depth_annotated' / 'val'
    annotated.mkdir(parents=True)
    next(tmp_path.glob('*_drive_*')).rename(annotated / '2011_09_26_drive_0002_sync')
    with (tmp_path / KITTI_LIST).open('a') as file:
        file.write('\n2011_09_26/a_drive_b/1.png None 721.5377')
    dataset = opened(tmp_path)
    assert (len(dataset), dataset.read(1).depth[0, 0]) == (3, 20)
    assert {e.sequence for e in dataset.entries} == {'2011_09_26_drive_0002_sync'}
    assert '1 of 4 images' in dataset.warnings[0]
    dataset.check_unit()


# What a data set says of itself --------------------------------------------------------------


def test_what_does_not_say_whose_it_is_has_no_origin(mat, official):
    with mat.open('r+b') as file:
        file.write(b'MATLAB 7.3 MAT-file, Platform: GLNXA64'.ljust(116))
    (official / 'official_splits' / MARK_FILE).unlink()
    for path in (mat, official):
        assert (opened(path).origin, opened(path).official) == ('', False)


def test_as_many_rendered_images_are_not_the_data_set(mat, monkeypatch):
    """Nor are others, of other classes."""
    monkeypatch.setattr(nyu, 'LABELED', COUNT)
    monkeypatch.setattr(nyu, 'official_split', lambda: ([0, 1], [2, 3]))
    for classes, origin in (({}, NYU), ({2: 'bookstore'}, '')):
        monkeypatch.setattr(nyu, 'scene_classes', lambda classes=classes: classes)
        assert (opened(mat).origin, opened(mat).official) == (RENDERED, False)
        other = mat.with_name('other.mat')
        other.write_bytes(b' ' * 116 + mat.read_bytes()[116:])
        assert (opened(other).origin, opened(other).official) == (origin, origin == NYU)


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
    for name, depths, holes, official in (
            ('raw', 'sync_depth_{:05d}.png', True, True),
            ('dense', 'dense/sync_depth_dense_{:05d}.png', True, False),
            ('whole', 'sync_depth_{:05d}.png', False, False)):  # no sensor sees everything
        dataset = opened(official_world(tmp_path / name, depths, holes=holes))
        dataset.check_unit()
        assert (dataset.official, dataset.depth) == (
            official, 'raw' if official else 'in-painted')
        assert ('in-painted' in ' '.join(dataset.warnings)) != official


def test_images_of_the_official_folders_are_not_independent(tmp_path):
    """Neighbouring numbers of one class are one scene at most, for no name says which."""
    entries = opened(official_world(tmp_path)).entries
    scenes = {e.index: e.sequence for e in entries}
    assert len(set(scenes.values())) == 130
    assert '' not in scenes.values()
    assert scenes[0] == scenes[1] != scenes[8]


def own(folder, names, text='{} {}'):
    """A list of links to one image and one depth, neither of which is anybody's."""
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / 'rgb.png'), rng.integers(0, 255, (48, 64, 3), np.uint8))
    cv2.imwrite(str(folder / 'depth.png'), np.full((48, 64), 2000, np.uint16))
    lines = []
    for name in names:
        pair = f'{name}.png', f'{name}_depth.png'
        for target, source in zip(pair, ('rgb.png', 'depth.png'), strict=True):
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / source, folder / target)
        lines.append(text.format(*pair))
    (folder / 'list.txt').write_text('\n'.join(lines))
    return opened(folder, folder / 'list.txt')


@pytest.mark.parametrize('form', ['seq{}/{:06d}', 'seq{}/rgb/{}', 'seq{}/frame'])
def test_a_folder_of_a_list_is_a_scene_whatever_its_numbers(form, tmp_path):
    """Numbers that begin anew in every folder, as those of most recordings."""
    names = list(dict.fromkeys(form.format(f, n) for f in 'abc' for n in range(0, 40, 10)))
    dataset = own(tmp_path, names)
    assert [e.sequence for e in dataset.entries] == [name.rpartition('/')[0] for name in names]
    assert len({e.index for e in dataset.entries}) == len(names)
    assert {e.focal for e in dataset.entries} == {0.0}  # nobody said it
    assert (dataset.origin, dataset.depth) == ('', 'unspecified')
    assert 'NYU' not in dataset.format


def test_names_with_spaces_stand_in_quotation_marks(tmp_path):
    names = ['my room/1', "it's a hall/1", 'plain/1']
    dataset = own(tmp_path, names, '"{}"  "{}" 525.5')
    assert [e.sequence for e in dataset.entries] == ['my room', "it's a hall", 'plain']
    assert {e.focal for e in dataset.entries} == {525.5}
    assert dataset.read(0).rgb.shape == (48, 64, 3)


def test_images_in_no_folder_are_of_unknown_scenes(tmp_path):
    dataset = own(tmp_path, ['1', '2', '3'], '{} {} 525.5')
    assert [(e.index, e.scene, e.sequence, e.focal) for e in dataset.entries] == [
        (n, '', '', 525.5) for n in (1, 2, 3)]


@pytest.mark.parametrize(('count', 'known'), [(3, False), (40, True)])
def test_some_of_the_official_images_are_known_where_it_is_no_chance(count, known, tmp_path):
    names = [f'{scene}/rgb_{n:05d}' for n, scene in list(scene_classes().items())[:count]]
    dataset = own(tmp_path, names)
    assert (dataset.origin, dataset.official) == (NYU if known else '', False)
    assert {e.focal for e in dataset.entries} == {FOCAL if known else 0.0}
    assert (len({e.sequence for e in dataset.entries}) > len({
        e.scene for e in dataset.entries})) == known


def test_equal_numbers_in_two_folders_of_rendered_rooms(official):
    """Of two data sets that somebody has put into one."""
    scene = next((official / 'official_splits/test').iterdir())
    shutil.copytree(scene, scene.with_name('others'))
    (official / NYU_LIST).unlink()
    entries = opened(official).entries
    assert len({e.index for e in entries}) == len(entries)
    scenes = {e.scene: e.sequence for e in entries if e.scene in (scene.name, 'others')}
    assert len({*scenes.values()}) == 2


def test_extraction(world, samples, shared_dir):
    """Names as the original's, black frames, millimetres truncated, in-painted depth apart."""
    root = world / 'official' / 'official_splits'
    lines = (world / 'official' / NYU_LIST).read_text().splitlines()
    assert len(lines) == len(split(COUNT)[1])
    assert len(list((root / 'train').rglob('rgb_*.jpg'))) == len(split(COUNT)[0])
    original = (shared_dir / 'nyu/test_list.txt').read_text().splitlines()
    form = r'^[a-z_]+/rgb_\d{5}\.jpg [a-z_]+/sync_depth_\d{5}\.png$'
    assert all(re.match(form, line.rstrip()) for line in [*original, *lines])
    for line in lines:
        rgb_name, depth_name = line.split()
        sample = samples[int(rgb_name[-9:-4])]
        rgb, depth, dense = (cv2.imread(str(root / 'test' / name), -1) for name in (
            rgb_name, depth_name, depth_name.replace('/', '/dense/').replace('h_', 'h_dense_')))
        np.testing.assert_array_equal(depth, (sample.raw_depth * 1000).astype(np.uint16))
        np.testing.assert_array_equal(dense, (sample.frame.depth * 1000).astype(np.uint16))
        difference = rgb[..., ::-1].astype(int) - sample.frame.rgb
        assert np.abs(difference[VALID_REGION]).mean() < 6
        assert rgb[:5].max() < 40


# What may be wrong ---------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    for path, message in ((tmp_path / 'no.mat', 'does not exist'), (tmp_path, 'no known data')):
        with pytest.raises(DatasetError, match=message):
            opened(path)


def _in_mat(path, key, change):
    with h5py.File(path, 'r+') as file:
        values = file[key][...]
        del file[key]
        if change is not None:
            file[key] = change(values)


@pytest.mark.parametrize(('spoil', 'message'), [
    (lambda mat: mat.write_text('<html>404</html>'), r'is a web page(.|\n)*Expected is nyu'),
    *((lambda mat, part=part: mat.write_bytes(mat.read_bytes()[:int(mat.stat().st_size * part)]),
       'truncated, damaged') for part in (0.02, 0.5, 0.95)),
    (lambda mat: _in_mat(mat, 'rawDepths', None), 'rawDepths'),
    (lambda mat: _in_mat(mat, 'rawDepths', lambda depth: depth.swapaxes(1, 2)),
     r'rawDepths has shape \(12, 480, 640\), expected \(12, 640, 480\)'),
    (lambda mat: mat.with_name('splits.mat').unlink(),
     r'12 images, not the original 1449.*splits.mat'),
    (lambda mat: write_splits(mat.with_name('splits.mat'), 100), 'belongs to another file'),
    (lambda mat: mat.with_name('splits.mat').write_text('?'), r'not a splits\.mat'),
    (lambda mat: _in_mat(mat, 'rawDepths', lambda depth: depth * 1000), 'another unit')])
def test_a_mat_that_is_wrong(mat, spoil, message):
    spoil(mat)
    with pytest.raises(DatasetError, match=message):
        opened(mat).check_unit()


def _each(pattern, change):
    def spoil(official):
        for path in sorted(official.rglob(pattern)):
            change(path)
    return spoil


def _without_list(official):
    (official / NYU_LIST).unlink()
    for path in sorted(official.glob('official_splits/test/*/sync_depth_0*.png'))[:2]:
        path.unlink()


@pytest.mark.parametrize(('spoil', 'message'), [
    (_each('sync_depth_0*.png', lambda path: cv2.imwrite(
        str(path), (cv2.imread(str(path), -1) / 1000).astype(np.uint16))), 'another unit'),
    (_each('sync_depth_0*.png', lambda path: cv2.imwrite(
        str(path), np.zeros((480, 640), np.uint8))), 'holds uint8.*expected one channel'),
    (_each('rgb_*.jpg', lambda path: path.write_bytes(b'no image')),
     'is no picture that can be read but text'),
    (_without_list, r'2 images are without ground truth.*(\n  .*){2}'),
    (_each('sync_depth_0*.png', lambda path: path.unlink()),
     r'10 files of 20 are missing.*(\n  .*png){10}'),
    (lambda official: (official / NYU_LIST).write_text(''), 'no line'),
    (lambda official: (official / NYU_LIST).write_text('a.jpg\nb.jpg b.png\n'), r'\n  a\.jpg')])
def test_a_folder_that_is_wrong(official, spoil, message):
    for path in (official / 'official_splits' / 'train').rglob('*.jpg'):
        path.unlink()  # they are not asked for
    spoil(official)
    with pytest.raises(DatasetError, match=message):
        look_at(official)


def look_at(folder):
    dataset = opened(folder)
    dataset.check_unit()
    dataset.read(0)


# As others have them ---------------------------------------------------------------------------


def _stored(change):
    """Change the stored depth of every image of the test folder."""
    return _each('test/*/sync_depth_0*.png', lambda path: cv2.imwrite(
        str(path), change(cv2.imread(str(path), -1).astype(float)).astype(np.uint16)))


def _to_its_limit(factor):
    """As of a sensor that ends at 10 m, and so in every large data set."""
    def change(depth):
        depth[100, 100] = 9999
        return depth * factor
    return _stored(change)


@pytest.mark.parametrize(('spoil', 'says', 'refused'), [
    (_stored(lambda depth: depth), '', False),
    (_to_its_limit(0.1), 'looks like 100 .*a metre', True),
    (_to_its_limit(0.256), 'looks like 256 .*a metre', True),
    (_stored(lambda depth: depth * 0.256), 'looks like 256 .*a metre', False),
    (_stored(lambda depth: depth * 5), 'looks like 5000 .*a metre', True),
    (_stored(lambda depth: depth * 8), 'or 8000 a metre', True),  # SUN RGB-D's
    (_stored(lambda depth: depth * 0.3), 'another unit', False)])
def test_a_unit_of_the_truth_is_named_where_it_is_unusual(official, spoil, says, refused):
    """It is refused only where the largest depth says so, too: there are small places."""
    spoil(official)
    dataset = opened(official)
    if refused:
        with pytest.raises(DatasetError, match=says):
            dataset.check_unit()
        return
    dataset.check_unit()
    assert re.search(says, ' '.join(dataset.warnings))
    assert bool(says) == bool(dataset.warnings)


def test_floating_point_is_metres(official):
    before = opened(official).read_truth(3)

    def to_tiff(path):
        depth = cv2.imread(str(path), -1).astype(np.float32) / 1000
        depth[depth == 0] = np.nan
        path.write_bytes(cv2.imencode('.tiff', depth)[1].tobytes())
    _each('test/*/sync_depth_0*.png', to_tiff)(official)
    np.testing.assert_allclose(opened(official).read_truth(3), before, atol=1e-6)


@pytest.mark.parametrize('suffix', ['.png', '.JPG', '.jpeg'])
def test_pictures_of_another_suffix(official, suffix):
    """Under the list there is a warning; without one they are what is there."""
    _each('test/*/rgb_*.jpg', lambda path: path.write_bytes(cv2.imencode(
        suffix.lower(), cv2.imread(str(path)))[1].tobytes()))(official)
    _each('test/*/rgb_*.jpg', lambda path: path.rename(path.with_suffix(suffix)))(official)
    assert f'{suffix} for rgb_00' in opened(official).warnings[0]
    assert 'JPEG changes pixels' in opened(official).warnings[0]
    (official / NYU_LIST).unlink()
    image = next(official.glob(f'official_splits/test/*/rgb_*{suffix}'))
    image.with_name(f'._{image.name}').write_bytes(b'\0\5\x16\7')
    dataset = opened(official)
    assert (len(dataset), dataset.warnings) == (len(split(COUNT)[1]), ())
    assert ('(PNG)' if suffix == '.png' else '(JPEG)') in dataset.format
    assert dataset.read(0).rgb.shape == (480, 640, 3)
    shutil.copy(image, image.with_suffix('.bmp'))
    with pytest.raises(DatasetError, match=r'several pictures are of one depth map(.|\n)*bmp'):
        opened(official)


def test_what_macos_writes_beside_pictures_is_none(samples, tmp_path):
    cv2.imwrite(str(tmp_path / '00000_colors.png'), samples[0].frame.rgb)
    cv2.imwrite(str(tmp_path / '00000_depth.png'), np.full((480, 640), 2000, np.uint16))
    (tmp_path / '._00000_colors.png').write_bytes(b'\0\5\x16\7')
    assert len(opened(tmp_path)) == 1


@pytest.fixture
def kitti(tmp_path):
    """A data set, and what writes its list anew; a list as it is."""
    write_kitti(tmp_path, [(375, 1242)] * 3, lambda size: np.full(size, 20))
    return tmp_path, tmp_path / KITTI_LIST, (tmp_path / KITTI_LIST).read_text()


def test_jpeg_in_place_of_png_is_told(kitti):
    folder, _, _ = kitti
    for path in folder.glob('2011_09_26/*/image_02/data/*.png'):
        cv2.imwrite(str(path.with_suffix('.jpg')), cv2.imread(str(path)))
        path.unlink()
    dataset = opened(folder)
    assert '3 images' in dataset.warnings[0]
    assert '0000000000.jpg for 0000000000.png' in dataset.warnings[0]
    dataset.read(2)


@pytest.mark.parametrize('change', [
    lambda text: text.encode('utf-8-sig'), lambda text: text.replace('/', '\\').encode(),
    lambda text: ('# Eigen\n' + text + '\n\n # end\n').encode(),
    lambda text: text.replace('\n', '\r\n').encode(),
    lambda text: re.sub(r'(\S+)/image_02/', r'./\1//x/../image_02/', text).encode()])
def test_lists_of_other_editors(kitti, change):
    folder, file, text = kitti
    names = [e.name for e in opened(folder).entries]
    file.write_bytes(change(text))
    assert [e.name for e in opened(folder).entries] == names


def test_a_list_may_name_its_files_from_the_root(kitti, tmp_path):
    """Scripts write such lists; names stay those within the data set, as predictions have them."""
    folder, file, text = kitti
    names = [e.name for e in opened(folder).entries]
    link = tmp_path / 'link'
    link.symlink_to(folder, target_is_directory=True)
    for place in folder, link:
        for form in '{0}/{1} {0}/{2} {3}', '/{1} {0}/{2} {3}':
            file.write_text('\n'.join(form.format(place, *line.split())
                                      for line in text.splitlines()))
            assert [e.name for e in opened(link).entries] == names
    file.write_text('\n'.join(f'/elsewhere/{line}' for line in text.splitlines()))
    with pytest.raises(DatasetError, match='3 files of 6 are missing'):
        opened(folder)


@pytest.mark.parametrize(('written', 'pixels'), [
    ('7.215377e+02', 721.5377), ('721', 721), ('nan', 0), ('inf', 0), ('-5', 0), ('dense.png', 0),
    ('', 0)])
def test_a_focal_length_is_any_number(kitti, written, pixels):
    folder, file, text = kitti
    file.write_text(text.replace('721.5377', written))
    assert {e.focal for e in opened(folder).entries} == {pixels}


def test_an_accent_is_the_same_letter_in_both_of_its_forms(tmp_path):
    """Lists and files come from several systems, each of which writes it in its own way."""
    one, two = (unicodedata.normalize(form, 'K\u00fcche') for form in ('NFC', 'NFD'))
    assert one != two
    for file, listed in (one, two), (two, one):
        folder = tmp_path / str(len(file))
        (folder / file).mkdir(parents=True)
        cv2.imwrite(str(folder / 'rgb.png'), np.zeros((48, 64, 3), np.uint8))
        cv2.imwrite(str(folder / 'depth.png'), np.full((48, 64), 2000, np.uint16))
        for name in 'rgb.png', 'depth.png':
            (folder / name).rename(folder / file / name)
        (folder / 'list.txt').write_text(f'{listed}/rgb.png {listed}/depth.png\n')
        dataset = opened(folder, folder / 'list.txt')
        assert dataset.read(0).depth.max() == 2
        assert not dataset.warnings


def test_a_list_is_read_in_its_order(kitti):
    """Others' predictions of all images in one array have it."""
    folder, file, text = kitti
    file.write_text('\n'.join(reversed(text.splitlines())))
    assert [e.name[-5] for e in opened(folder).entries] == ['2', '1', '0']


@pytest.mark.parametrize(('change', 'message'), [
    (lambda text: '\n'.join([text, text.splitlines()[1]]).encode(), r'line 4 names .*001\.png'),
    (lambda text: f'{text}\n./{text.splitlines()[1]}'.encode(), r'line 4 names .*001\.png again'),
    (lambda text: text.replace('02/0000000002.png', '02/0000000000.png').encode(),
     r'line 3 names .*000\.png again, which is the depth of another'),
    (lambda _: b'2011_09_26/2011_09_26_drive_0002_sync 0000000069 l\n',
     r"line 1 is of monodepth2's list(.|\n)*eigen_test_files_with_gt"),
    (lambda _: b'<!DOCTYPE html><html>login', 'no list but a web page'),
    (lambda _: b'version https://git-lfs.github.com/spec/v1\nsize 4\n', 'git-lfs pointer'),
    (lambda _: b'PK\3\4' + bytes(300), 'no list but a zip'),
    (lambda text: text.encode('utf-16'), 'no list but')])
def test_what_is_no_list(kitti, change, message):
    folder, file, text = kitti
    file.write_bytes(change(text))
    with pytest.raises(DatasetError, match=message):
        opened(folder)


def test_ground_truth_of_monodepth2_is_none(kitti):
    folder, _, _ = kitti
    np.savez(folder / 'gt_depths.npz', np.zeros((3, 3)))
    with pytest.raises(DatasetError, match="as monodepth2's of the raw lidar"):
        opened(folder, truth=folder / 'gt_depths.npz')


@pytest.mark.parametrize(('header', 'cut', 'message'), [
    ('Pf\n96 72\n-0.003922\n', None, 'scale of 0.003922 in its header'),
    ('Pf\n96 72\n255\n', None, 'scale of 255 in its header'),
    ('Pf\n96 72\n-1\n', -4, r'truncated: 27,644 bytes of 27,648'),
    ('Pf\n96 72\nx\n', None, 'no header of a PFM'), ('Pf\n96 ', 5, 'no header of a PFM'),
    ('Pf\n96 72\n-1.000\n', None, '')])
def test_a_pfm_says_what_its_numbers_are(tmp_path, header, cut, message):
    """Of another scale than 1, programs read different depth from one file."""
    file = tmp_path / 'depth.pfm'
    depth = np.linspace(1, 3, 96 * 72, dtype='<f4').reshape(72, 96)
    file.write_bytes((header.encode() + depth[::-1].tobytes())[:cut])
    if message:
        with pytest.raises(ImageError, match=message):
            read_depth_map(file)
    else:
        np.testing.assert_array_equal(read_depth_map(file), depth)


def test_a_mat_that_another_program_writes_is_not_called_damaged(mat):
    """Nor one on a file system without locks: nobody should download it again."""
    with mat.open('rb') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match=r'cannot be read: .*HDF5_USE_FILE_LOCKING') as it:
            opened(mat)
    assert 'download' not in str(it.value)
    assert len(opened(mat))


@pytest.mark.parametrize('type_', [np.float64, np.uint16])
def test_a_mat_of_images_that_are_not_of_8_bits_is_named(mat, type_):
    """Those who process it in MATLAB have it from 0 to 1."""
    with h5py.File(mat, 'r+') as file:
        images = file['images'][:].astype(type_)
        del file['images']
        file['images'] = images
    with pytest.raises(DatasetError, match=f'images are {np.dtype(type_)}, expected uint8'):
        opened(mat)


@pytest.mark.parametrize(('metres', 'millimetres'), [
    (np.nan, 0), (-1.0, 0), (65.5, 65500), (65.6, None), (70.0, None), (np.inf, None)])
def test_an_extraction_loses_no_depth(mat, tmp_path, metres, millimetres):
    """What 16 bits do not hold would come out near the camera."""
    with h5py.File(mat, 'r+') as file:
        file['rawDepths'][:, 300:310, 200:210] = metres
    if millimetres is None:
        with pytest.raises(DatasetError, match=r'16 bits hold 65\.5 m'):
            nyu.extract(mat, tmp_path / 'out')
        return
    for path in nyu.extract(mat, tmp_path / 'out').glob('*/sync_depth_*.png'):
        assert (cv2.imread(str(path), -1)[200:210, 300:310] == millimetres).all()


def test_data_sets_of_other_programs_are_named(tmp_path):
    with h5py.File(tmp_path / '00000.h5', 'w') as file:
        file['rgb'] = np.zeros((3, 4, 4))
        file['depth'] = np.zeros((4, 4))
    np.save(tmp_path / 'eigen_test_rgb.npy', np.zeros((2, 4, 4, 3)))
    for path, message in (
            (tmp_path, r'holds 00000.h5, eigen_test_rgb.npy; the first is an HDF5 file'),
            (tmp_path / '00000.h5', 'it holds depth, rgb, as other data sets do'),
            (tmp_path / 'eigen_test_rgb.npy', "is an array of NumPy's")):
        with pytest.raises(DatasetError, match=message):
            opened(path)


@pytest.mark.parametrize(('pattern', 'content', 'message'), [
    ('rgb_*.jpg', b'version https://git-lfs.github.com/spec/v1\nsize 614400\n',
     'git-lfs pointer, not the file of 614,400 bytes'),
    ('sync_depth_0*.png', b'<!DOCTYPE html><html>login', 'a web page')])
def test_files_that_are_something_else_are_named(official, pattern, content, message):
    _each(pattern, lambda path: path.write_bytes(content))(official)
    with pytest.raises(DatasetError, match=message):
        look_at(official)


def test_names_that_are_no_utf8(official):
    scene = next((official / 'official_splits/test').iterdir())
    (official / NYU_LIST).unlink()
    scene.rename(scene.with_name(os.fsdecode(b'caf\xe9')))
    dataset = opened(official.rename(official.with_name(os.fsdecode(b'ny\xe9'))))
    assert 'caf\udce9' in {entry.scene for entry in dataset.entries}
    dataset.check_unit()
    for position in range(len(dataset)):
        dataset.read(position)
