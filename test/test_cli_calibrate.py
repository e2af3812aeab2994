# SPDX-License-Identifier: Apache-2.0
"""`depthclip calibrate` from recordings to files, with the demo model, and what it refuses."""

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip('rosbags')

from drives import camera_of_width, drive, write_drive, write_folder
from test_recordings import RGBD

from depthclip_ros.cli.main import main
from depthclip_ros.core import CameraImage, DepthEstimator
from depthclip_ros.core.calibration import Calibration
from depthclip_ros.drawing.color import BACKGROUND, GAP
from depthclip_ros.messages.node_config import read_config


@pytest.fixture(scope='module')
def frames():
    """A wide camera's drive through rooms: what the demo model was not trained for."""
    return drive(rooms=5, frames=32, step=0.8, seed=8, camera=camera_of_width(160, 90))


@pytest.fixture(scope='module')
def folder(frames, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp('recording'), frames)


@pytest.fixture(scope='module')
def calibrated(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp('output') / 'robot.yaml'
    assert run(folder, output) == 0
    return output


def run(source, output, *more):
    return main(['calibrate', str(source), '-o', str(output), '--weights', 'demo', *more])


def test_what_is_written_is_whole_and_better(calibrated, frames):
    """On the recording itself: far from the bound."""
    depth, node = read_config(calibrated)
    file = Path(depth.calibration)
    calibration = Calibration.load(file)
    assert re.fullmatch(r'robot\.[0-9a-f]{16}\.safetensors', file.name)
    assert set(depth.names()) <= set(yaml.safe_load(calibrated.read_text())['/**']
                                     ['ros__parameters'])
    assert 'no longer zero-shot' in calibrated.read_text()
    assert (calibration.origin.frames, calibration.origin.blocks) == (32, 10)
    estimator = DepthEstimator(depth, node.weights)
    assert calibration.origin.precision == estimator.precision
    plain = DepthEstimator(depth.replace(calibration=''), node.weights)
    before, after = (np.mean([np.sqrt(np.nanmean((
        model.predict(CameraImage(f.rgb, f.camera)).depth - f.depth) ** 2)) for f in frames[::4]])
        for model in (plain, estimator))
    assert after < 0.9 * before


def test_the_report(calibrated, folder):
    markdown = calibrated.with_suffix('.md').read_text()
    for text in (str(folder), 'mean depth', '| 10 |', '1.645', 'share',
                 '](robot.png)'):
        assert text in markdown
    html = calibrated.with_suffix('.html').read_text()
    assert "default-src 'none'" in html
    assert 'src="robot.png"' in html
    assert not re.search(r'(src|href)="(?!data:|#|robot.png")', html)
    picture = cv2.imread(str(calibrated.with_suffix('.png')))
    assert picture.shape[0] == 28 + 3 * (180 + GAP)  # titles, three examples
    assert picture[:28, :1000].max() > 150


def test_what_shows_its_depth_says_that_it_is_no_longer_zero_shot(
        calibrated, folder, tmp_path, capsys):
    label = f'calibrated on {folder.name}, no longer zero-shot'
    image = folder / 'rgb' / '0.png'
    for name, more in (('with', ['--config', calibrated]), ('without', ['--weights', 'demo'])):
        assert main(['predict', str(image), '-o', str(tmp_path / name), *map(str, more)]) == 0
        assert (f'Depth is {label}.' in capsys.readouterr().err) == (name == 'with')
        lines = cv2.imread(str(tmp_path / name / '0_color.png')).shape[0] - 120
        assert lines == (56 if name == 'with' else 28)  # of the caption
        patches = cv2.imread(str(tmp_path / name / '0_patches.png'))
        assert (patches[-2, :4] == BACKGROUND).all() == (name == 'with')
    assert main(['compare', str(folder), '--config', str(calibrated), '--max-frames', '1']) == 0
    assert label in capsys.readouterr().out


def test_what_cannot_be_written(calibrated, folder, tmp_path, capsys):
    before = calibrated.read_bytes()
    (tmp_path / 'file').touch()
    for output, message in (
            (calibrated, 'not overwritten'),
            (calibrated.with_suffix('.yml'), 'not overwritten'),  # the report is there
            (tmp_path / 'robot.txt', 'such as robot.yaml'),
            (tmp_path / 'file' / 'robot.yaml', 'cannot be written')):
        assert run(folder, output) == 1
        assert message in capsys.readouterr().err
    assert calibrated.read_bytes() == before


def test_a_wrong_unit_is_refused_and_its_remedy_works(frames, tmp_path, capsys):
    """Depth in centimetres, as a bag of millimetres."""
    bag = write_drive(
        tmp_path / 'bag', [replace(f, depth=f.depth / 10) for f in frames], '16UC1')
    assert run(bag, tmp_path / 'robot.yaml') == 1
    assert 'wrong unit' in capsys.readouterr().err
    assert list(tmp_path.glob('robot*')) == []
    assert run(bag, tmp_path / 'robot.yaml', '--depth-unit', '0.01', '--variant', 'scale',
               '--max-frames', '20') == 0
    calibration = Calibration.load(read_config(tmp_path / 'robot.yaml')[0].calibration)
    assert calibration.origin.frames == 20


def test_too_few_frames_are_refused_unless_one_insists(frames, tmp_path, capsys):
    bag = write_drive(tmp_path / 'bag', frames, 'cloud')
    assert run(bag, tmp_path / 'robot.yaml', '--every', '2') == 1
    said = capsys.readouterr().err
    assert '16 frames' in said
    assert 'at least 30' in said
    assert run(bag, tmp_path / 'robot.yaml', '--every', '2', '--anyway', '--variant', 'scale') == 0
    assert 'should have been refused' in (tmp_path / 'robot.md').read_text()


def _as_bgra(_, message):
    return replace(message, encoding='bgra8') if hasattr(message, 'encoding') else message


def _cut(_, message):
    return replace(message, data=message.data[:-1]) if hasattr(message, 'point_step') or (
        hasattr(message, 'format') and 'Depth' in message.format) else message


def _no_angles(_, message):
    return replace(message, angle_increment=0.0) if hasattr(message, 'ranges') else message


@pytest.mark.parametrize(('form', 'more', 'cause'), [
    ('cloud', {'tf': False}, 'tf does not connect'),
    ('cloud', {'rename': {'/tf_static': '/tf'}}, 'tf'),  # once on /tf, with the stamp 0
    ('cloud', {'edit': _cut}, 'The cloud'),
    ('scan', {'edit': _no_angles}, 'angle_increment'),
    ('32FC1', {'edit': _as_bgra}, 'bgra8'),
    ('compressedDepth', {'edit': _cut}, 'PNG'),
    ('aspect', {}, '160x72'), ('npy', {}, '(120, 160, 2)'), ('png', {}, 'uint8'),
])
def test_where_nothing_can_be_read_the_causes_are_named_with_their_counts(
        frames, tmp_path, capsys, form, more, cause):
    """One cause, whatever numbers each sentence has, and no model is loaded."""
    source = tmp_path / 'source'
    if form in ('npy', 'png', 'aspect'):
        write_folder(source, frames, npy=form == 'npy')
        for file in (source / 'depth').iterdir():
            if form == 'npy':
                np.save(file, np.load(file)[..., None].repeat(2, axis=-1))
            else:
                pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
                cv2.imwrite(str(file), pixels[:72] if form == 'aspect' else pixels.astype('u1'))
    else:
        write_drive(source, frames, form, **more)
    assert main(['calibrate', str(source), '-o', str(tmp_path / 'robot.yaml'), '--weights',
                 str(tmp_path / 'no_weights')]) == 1
    said = capsys.readouterr().err
    assert 'none of 32 frames can be read' in said
    assert '32 times: ' in said
    assert cause in said
    assert not list(tmp_path.glob('robot*'))


def test_what_is_no_recording(tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file.mcap').write_bytes(b'\x89MCAP0\r\n' + bytes(100))
    (tmp_path / 'text.txt').write_text('no recording at all')
    for source, message in (
            ('nothing', 'there is no recording'), ('empty', 'Expected a rosbag2 bag'),
            ('file.mcap', 'file.mcap'), ('text.txt', 'no recording')):
        assert run(tmp_path / source, tmp_path / 'robot.yaml') == 1
        assert message in capsys.readouterr().err


def test_a_calibration_is_not_begun_from_another(calibrated, folder, tmp_path, capsys):
    assert main(['calibrate', str(folder), '-o', str(tmp_path / 'robot.yaml'),
                 '--config', str(calibrated)]) == 1
    assert 'starts from words alone' in capsys.readouterr().err


def test_the_training_split_of_a_data_set(tmp_path, capsys):
    """NYU's labelled file: its 654 test images are never calibrated on."""
    pytest.importorskip('h5py')
    from depthclip_ros.sim.datasets import make_samples, write_labeled_mat, write_splits
    file = tmp_path / 'nyu_depth_v2_labeled.mat'
    write_labeled_mat(file, make_samples(20, seed=40))
    write_splits(tmp_path / 'splits.mat', 20)
    assert run(file, tmp_path / 'robot.yaml', '--anyway', '--variant', 'scale') == 0
    said = capsys.readouterr().err
    assert 'train split' in said
    assert '10 frames' in said


@pytest.mark.skipif(not RGBD.is_dir(), reason='shared/bags is not here')
def test_a_real_bag_of_one_view_is_refused_and_nothing_is_claimed(tmp_path, capsys):
    assert run(RGBD, tmp_path / 'robot.yaml') == 1
    said = capsys.readouterr().err
    assert 'too few frames: 9' in said
    assert 'one standing view: 9 frames show 1' in said
    assert run(RGBD, tmp_path / 'robot.yaml', '--anyway') == 0
    assert 'no improvement is claimed' in capsys.readouterr().out
