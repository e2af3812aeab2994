# SPDX-License-Identifier: Apache-2.0
"""The command `depthclip`, without ROS: predict, fetch, encode-text, doctor, and its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from untrained import tiny_untrained

from depthclip_ros.cli import doctor
from depthclip_ros.cli.main import main
from depthclip_ros.color import UNTRAINED
from depthclip_ros.core import weights

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = """
/**:
  ros__parameters:
    backbone: auto
    input_height: 64
    input_width: 96
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'tiny.yaml'
    path.write_text(SETTINGS)
    return str(path)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.png'
    values = np.random.RandomState(0).randint(0, 256, (50, 70, 3)).astype(np.uint8)
    cv2.imwrite(str(path), values)
    return path


@pytest.fixture
def predict(config, tiny_weights, tmp_path):
    """Run `depthclip predict` with the tiny network; gives exit code and output folder."""
    def run(*images, config=config, camera=()):
        out = tmp_path / 'out'
        code = main(['predict', *map(str, images), '-o', str(out), '--config', config,
                     '--weights', str(tiny_weights), '--device', 'cpu', *map(str, camera)])
        return code, out
    return run


# predict -----------------------------------------------------------------------------------

def test_demo_weights_bring_their_own_settings(photo, tmp_path, capsys):
    from depthclip_ros.core.config import DepthConfig
    from depthclip_ros.core.estimator import DepthEstimator
    from depthclip_ros.resources import config_path
    out = tmp_path / 'out'
    assert main(['predict', str(photo), '-o', str(out), '--weights', 'demo',
                 '--device', 'cpu']) == 0
    assert capsys.readouterr().err.count('weights: demo bring their own') == 1
    expected = DepthEstimator(DepthConfig.from_yaml(config_path('demo')), 'demo', 'cpu').predict(
        cv2.imread(str(photo))[..., ::-1].copy())
    np.testing.assert_allclose(
        np.load(out / 'photo_patches.npy'), expected.patch_depth, atol=1e-5)


def test_demo_weights_without_their_settings_say_where_these_are():
    from depthclip_ros.core import DepthConfig, DepthEstimator, WeightsError
    with pytest.raises(WeightsError, match=r'backbone: RN50.*config/demo\.yaml'):
        DepthEstimator(DepthConfig(), 'demo', 'cpu')


def test_predict_writes_what_the_estimator_computes(predict, photo, tiny_weights, capsys):
    from depthclip_ros.core.config import DepthConfig
    from depthclip_ros.core.estimator import DepthEstimator
    code, out = predict(photo)
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        'photo_color.png', 'photo_depth.png', 'photo_patches.npy', 'photo_patches.png']
    expected = DepthEstimator(
        DepthConfig(backbone='auto', input_height=64, input_width=96), tiny_weights, 'cpu',
    ).predict(cv2.imread(str(photo))[..., ::-1].copy())
    stored = cv2.imread(str(out / 'photo_depth.png'), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert np.abs(stored / 1000 - expected.depth).max() < 0.00051
    patches = np.load(out / 'photo_patches.npy')
    assert patches.shape == (2, 3)
    np.testing.assert_allclose(patches, expected.patch_depth, atol=1e-5)
    text = capsys.readouterr()
    assert ' ms' in text.out
    assert 'UNTRAINED' not in text.err


def test_predict_counts_the_focal_length_where_it_is_told(predict, photo, tmp_path, capsys):
    """The photo has 70 x 50 pixels, the network's input 96 x 64."""
    plain = np.load(predict(photo)[1] / 'photo_patches.npy')
    assert 'focal length' not in capsys.readouterr().out
    focal = 70 / 2 / np.tan(np.radians(45))
    ratio = focal * 64 / 50 / 96 / 0.811
    for camera in (('--fov', 90), ('--camera-info', tmp_path / 'head.yaml')):
        (tmp_path / 'head.yaml').write_text(
            'image_width: 70\nimage_height: 50\ndistortion_model: plumb_bob\n'
            f'camera_matrix: {{data: [{focal}, 0, 34.5, 0, {focal}, 24.5, 0, 0, 1]}}\n'
            'distortion_coefficients: {data: [0, 0, 0, 0, 0]}\n'
            'rectification_matrix: {data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}\n'
            'projection_matrix: {data: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]}\n')
        code, out = predict(photo, camera=camera)
        assert code == 0
        assert f', x {ratio:.3f} for the focal length' in capsys.readouterr().out
        np.testing.assert_allclose(
            np.load(out / 'photo_patches.npy'), ratio * plain, rtol=1e-5)


def test_predict_refuses_a_camera_that_cannot_be_the_images(predict, photo, tmp_path, capsys):
    for camera, words in ((('--fov', 180), '180'), (('--camera-info', '/no.yaml'), '/no.yaml')):
        assert predict(photo, camera=camera)[0] == 1
        assert words in capsys.readouterr().err
    (tmp_path / 'head.yaml').write_text(
        'image_width: 640\nimage_height: 480\ndistortion_model: plumb_bob\n'
        'camera_matrix: {data: [500, 0, 320, 0, 500, 240, 0, 0, 1]}\n'
        'distortion_coefficients: {data: []}\n'
        'rectification_matrix: {data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}\n'
        'projection_matrix: {data: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]}\n')
    assert predict(photo, camera=('--camera-info', tmp_path / 'head.yaml'))[0] == 1
    error = capsys.readouterr().err
    for text in ('photo.png', '640 x 480', '70 x 50'):
        assert text in error


def test_predict_does_the_others_and_lists_every_unreadable_input(
        predict, photo, tmp_path, capsys):
    (tmp_path / 'bad.jpg').write_bytes(b'garbage')
    code, out = predict(tmp_path / 'bad.jpg', photo, tmp_path / 'nowhere.png')
    assert code == 1
    assert (out / 'photo_depth.png').exists()
    error = capsys.readouterr().err
    assert '2 of the inputs could not be used' in error
    assert 'bad.jpg: 7 bytes' in error
    assert 'nowhere.png' in error
    assert 'Traceback' not in error


def test_predict_overwrites_no_picture_with_another_of_the_same_name(predict, photo, tmp_path):
    (tmp_path / 'more').mkdir()
    cv2.imwrite(str(tmp_path / 'more' / 'photo.jpg'), np.full((20, 30, 3), 99, np.uint8))
    code, out = predict(photo, tmp_path / 'more')
    assert code == 0
    shapes = [cv2.imread(str(out / f'{name}_depth.png'), -1).shape
              for name in ('photo', 'photo_2')]
    assert shapes == [(50, 70), (20, 30)]


def test_predict_leaves_depth_maps_and_its_own_results_in_a_folder_alone(
        predict, photo, tmp_path, capsys):
    folder = tmp_path / 'room'
    folder.mkdir()
    photo.rename(folder / 'photo.png')
    depth = np.full((50, 70), 1500, np.uint16)
    cv2.imwrite(str(folder / 'scan.png'), depth)
    cv2.imwrite(str(folder / 'frame_color.png'), np.full((20, 30, 3), 99, np.uint8))  # a photo
    code, out = predict(folder)
    assert code == 0
    assert '1 of 3 pictures left out' in capsys.readouterr().err
    first = sorted(path.name for path in out.iterdir())
    assert len(first) == 8
    for path in out.iterdir():
        path.rename(folder / path.name)
    assert predict(folder)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == first
    assert '7 of 9 pictures left out' in capsys.readouterr().err
    assert predict(folder / 'scan.png')[0] == 0  # named itself
    assert (out / 'scan_depth.png').exists()


def test_what_is_no_file_is_refused_and_not_waited_for(predict, config, tmp_path, capsys):
    os.mkfifo(tmp_path / 'pipe')
    code, _ = predict(tmp_path / 'pipe', 'a\0b', 'x' * 5000, '~nobody-at-all/x.png')
    assert code == 1
    error = capsys.readouterr().err
    assert '4 of the inputs could not be used' in error
    assert 'a folder, a pipe or a device' in error
    assert len(error) < 1500
    assert main(['demo', '--bag', str(tmp_path / 'pipe'), '-o', str(tmp_path / 'o')]) == 1
    assert 'pipe or a device' in capsys.readouterr().err


def test_predict_is_loud_when_untrained(photo, tiny_weights, tmp_path, monkeypatch, capsys):
    config = tiny_untrained(monkeypatch, tiny_weights, tmp_path)
    arguments = ['predict', str(photo), '-o', str(tmp_path / 'out'), '--config', str(config),
                 '--device', 'cpu']
    assert main(arguments) == 0
    assert capsys.readouterr().err.count(UNTRAINED) == 2
    picture = cv2.imread(str(tmp_path / 'out' / 'photo_color.png'))
    assert picture.shape[0] > 50  # the stripe above


# Errors ------------------------------------------------------------------------------------

def expect_one_line(arguments, capsys, *parts):
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f'depthclip {arguments[0]}: ')
    assert error.count('\n') == 0
    for part in parts:
        assert part in error


def test_errors_are_one_line_and_exit_code_1(photo, config, tmp_path, capsys):
    out = ['-o', str(tmp_path / 'out')]
    expect_one_line(['predict', str(photo), *out, '--config', '/no.yaml'], capsys, '/no.yaml')
    expect_one_line(['predict', str(photo), *out, '--config', config, '--weights', '/no.pt'],
                    capsys, '/no.pt')
    expect_one_line(['predict', str(photo), *out, '--device', 'tpu'], capsys, 'tpu')
    expect_one_line(['fetch', 'RN51'], capsys, "'RN51'", 'ViT-B/32')
    expect_one_line(['encode-text', '/no.yaml'], capsys, '/no.yaml')
    expect_one_line(['demo', '--bag', '/no/bag', *out], capsys, '/no/bag')
    expect_one_line(['demo', '--images', '/no/picture', *out], capsys, '/no/picture')
    expect_one_line(['demo', '--fov', '500', *out], capsys, '0 < FOV < 180')
    expect_one_line(['words', ' '], capsys, 'holds no word', 'from near to far')
    expect_one_line(['words', 'giant'], capsys, "'giant' is one word")
    expect_one_line(['bags', '/no/bags', *out], capsys, '/no/bags', 'the path of one on every')
    (tmp_path / 'metadata.yaml').write_text('hello: 1')
    expect_one_line(['demo', '--bag', str(tmp_path), *out], capsys,
                    "bag: it has no 'rosbag2_bagfile_information'.")
    os.mkfifo(tmp_path / 'pipe')
    for option in ('--camera-info', '--config'):
        expect_one_line(['demo', '--images', str(photo), option, str(tmp_path / 'pipe'), *out],
                        capsys, 'a pipe or a')


def test_an_output_folder_that_cannot_be_written_says_so(photo, config, tmp_path, capsys):
    (tmp_path / 'file').touch()
    folder = tmp_path / 'file' / 'out'
    for command in (['predict', str(photo)], ['words', 'near, far'], ['compare', 'bag'],
                    ['view', str(photo)], ['demo'], ['calibrate', 'bag']):
        settings = ['--config', config, '-o', str(folder / 'x.yaml')]
        expect_one_line([*command, *settings], capsys, str(folder), 'with -o.')


@pytest.mark.parametrize('arguments', [
    [], ['paint'], ['predict'], ['predict', 'x.png'], ['demo', '--rate', '-1'],
    ['demo', '--frames', '0'], ['demo', '--video', 'a', '--bag', 'b']])
def test_wrong_usage_is_exit_code_2(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(('arguments', 'option', 'value', 'expected'), [
    (['predict', 'a.png', '-o', 'b', '--fov', 'wide'], '--fov', "'wide'", 'not a number'),
    (['predict', 'a.png', '-o', 'b', '--fov', '0'], '--fov', '0', 'greater than 0'),
    (['demo', '--frames', '1.5'], '--frames', "'1.5'", 'whole number'),
    (['demo', '--frames', '0'], '--frames', '0', '1 at least'),
    (['demo', '--webcam', '-1'], '--webcam', '-1', 'negative'),
    (['view', 'a.png', '--point', '9'], '--point', "'9'", 'two numbers'),
    (['words', 'a, b', '--bins', '1,x'], '--bins', "'x'", 'not a number'),
    (['bag', 'a', '-o', 'b', '--start', '-1'], '--start', '-1', 'not be negative')])
def test_a_wrong_number_is_named_with_what_is_expected(
        arguments, option, value, expected, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    error = capsys.readouterr().err.splitlines()[-1]
    assert f'argument {option}: {value} ' in error
    assert expected in error


def without_packages(*arguments):
    """`depthclip` in an interpreter that has the standard library only."""
    return subprocess.run(
        [sys.executable, '-S', '-m', 'depthclip_ros.cli.main', *arguments], cwd=ROOT, check=False,
        capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': '', 'ROS_DISTRO': ''})


def test_a_missing_package_is_a_message_and_not_a_traceback():
    done = without_packages('predict', 'x.png', '-o', 'out')
    assert done.returncode == 1
    assert 'depthclip doctor' in done.stderr
    assert 'Traceback' not in done.stderr


# fetch, encode-text ------------------------------------------------------------------------

def test_fetch_without_a_name_lists_what_there_is_and_what_is_here(own_cache, capsys):
    (own_cache / 'weights').mkdir()
    (own_cache / 'weights' / 'RN50.pt').touch()
    assert main(['fetch']) == 0
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(lines) == set(weights.RELEASES)
    assert lines['RN50'] == str(own_cache / 'weights' / 'RN50.pt')
    assert lines['RN101'] == '-'


def test_fetch_prints_where_the_weights_are(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(weights, 'fetch', lambda name, folder, log: asked.append(
        (name, folder)) or folder / 'RN50.pt')
    assert main(['fetch', 'RN50', '--cache-dir', str(tmp_path)]) == 0
    assert asked == [('RN50', tmp_path)]
    assert capsys.readouterr().out.strip() == str(tmp_path / 'RN50.pt')


def test_encode_text_encodes_once_and_hits_afterwards(config, tiny_weights, own_cache, capsys):
    arguments = ['encode-text', config, '--weights', str(tiny_weights)]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert main(arguments) == 0
    second = capsys.readouterr().out
    assert 'encoded in' in first
    assert 'hit in' in second
    path = next(line.split(':', 1)[1].strip() for line in first.splitlines()
                if line.startswith('path'))
    assert Path(path).is_file()
    assert Path(path).is_relative_to(own_cache)
    assert first.splitlines()[:3] == second.splitlines()[:3]


def test_encode_text_encodes_scenes_too(config, tiny_weights, tmp_path, capsys):
    """After it, an estimator finds both in the cache."""
    file = tmp_path / 'scenes.yaml'
    file.write_text(Path(config).read_text() + "    scenes: ['hall', 'attic', 'cellar']\n")
    assert main(['encode-text', str(file), '--weights', str(tiny_weights)]) == 0
    tokens, scenes = (line for line in capsys.readouterr().out.splitlines()
                      if line.startswith('features'))
    assert 'tokens x' in tokens
    assert '3 scenes x' in scenes
    assert main(['encode-text', str(file), '--weights', str(tiny_weights)]) == 0
    assert capsys.readouterr().out.count('hit in') == 2


def test_encode_text_fails_when_nothing_can_be_kept(config, tiny_weights, own_cache, capsys):
    (own_cache / 'text').touch()  # a file where the folder should be
    assert main(['encode-text', config, '--weights', str(tiny_weights)]) == 1
    assert 'could not be written' in capsys.readouterr().err


# doctor ------------------------------------------------------------------------------------

def test_doctor_runs_with_the_standard_library_only_and_says_what_to_install():
    done = without_packages('doctor', '--json')
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report['ok'] is False
    failed = {check['name']: check for check in report['checks'] if check['status'] == 'FAIL'}
    assert set(failed) >= {'ros', 'torch', 'numpy', 'opencv'}
    for check in failed.values():
        assert 'pip install' in check['fix'] or 'source ' in check['fix'], check


def test_doctor_is_content_with_this_environment(monkeypatch, capsys):
    # Coverage, if it is measured, would watch how each probe imports what others have written.
    monkeypatch.setenv('COVERAGE_PROCESS_CONFIG', '')
    assert main(['doctor', '--json']) == 0
    report = json.loads(capsys.readouterr().out)
    states = {check['name']: check['status'] for check in report['checks']}
    assert states['torch'] == states['clip'] == states['numpy'] == states['ros'] == 'OK'
    assert all(check['fix'] for check in report['checks'] if check['status'] != 'OK')


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Put a package of this content before the installed ones, for the doctor's probes."""
    def put(name, content):
        (tmp_path / 'fake' / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / 'fake' / name / '__init__.py').write_text(content)
        monkeypatch.setenv('PYTHONPATH', f'{tmp_path / "fake"}{os.pathsep}{ROOT}')
    return put


def test_doctor_survives_a_cv_bridge_that_crashes(package):
    package('cv_bridge', 'import os; os.abort()')
    checks = {check.name: check for check in doctor.check_numpy()}
    assert checks['numpy'].status == 'OK'
    assert checks['cv_bridge'].status == 'WARN'
    assert 'crashed with signal 6' in checks['cv_bridge'].detail


def test_doctor_knows_a_clip_that_is_not_openais(package):
    package('clip', 'VERSION = 1')
    (check,) = doctor.check_clip()
    assert check.status == 'FAIL'
    assert 'openai-clip' in check.fix


def test_doctor_names_the_interpreter_when_ros_was_built_for_another(package, monkeypatch):
    package('rclpy', 'raise ModuleNotFoundError("No module named \'rclpy._rclpy_pybind11\'")')
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    (check,) = doctor.check_ros()
    assert check.status == 'FAIL'
    assert '/usr/bin/python3 -m venv' in check.fix


@pytest.mark.parametrize(('name', 'value', 'status'), [
    ('ROS_DOMAIN_ID', '42', 'OK'), ('ROS_DOMAIN_ID', '150', 'WARN'),
    ('ROS_DOMAIN_ID', 'robot', 'FAIL'), ('ROS_DOMAIN_ID', '233', 'FAIL'),
    ('ROS_LOCALHOST_ONLY', '1', 'WARN'), ('FASTRTPS_DEFAULT_PROFILES_FILE', '/no.xml', 'FAIL')])
def test_doctor_judges_the_discovery_settings(monkeypatch, name, value, status):
    for known in ('ROS_DOMAIN_ID', 'ROS_LOCALHOST_ONLY', 'ROS_DISTRO'):
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(name, value)
    checks = doctor.check_discovery()
    worst = max((check.status for check in checks), key=['OK', 'WARN', 'FAIL'].index)
    assert worst == status
    assert all(check.fix for check in checks if check.status != 'OK')


def test_doctor_finds_a_cache_that_can_be_none(monkeypatch):
    monkeypatch.setenv('DEPTHCLIP_CACHE', 'relative/folder')
    check, = doctor.check_caches()
    assert (check.name, check.status) == ('cache', 'FAIL')
    assert 'relative' in check.detail


def test_doctor_finds_damaged_weights(own_cache):
    (own_cache / 'weights').mkdir()
    (own_cache / 'weights' / 'RN50.pt').write_bytes(b'cut off')
    checks = {check.name: check for check in doctor.check_caches()}
    assert checks['weights'].status == 'FAIL'
    assert 'fetch RN50' in checks['weights'].fix


def test_doctor_exit_code_is_1_only_for_a_failure(monkeypatch, capsys):
    def report(status):
        monkeypatch.setattr(doctor, 'CHECKS', (
            lambda: [doctor.Check('a', 'OK', 'fine'), doctor.Check('b', status, 'x', 'do y')],))
        return main(['doctor'])
    assert report('WARN') == 0
    assert report('FAIL') == 1
    output = capsys.readouterr().out
    assert 'FAIL b: x\n     fix: do y' in output
