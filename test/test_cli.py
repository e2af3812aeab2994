# SPDX-License-Identifier: Apache-2.0
"""The command `depthclip`, without ROS: predict, fetch, encode-text, doctor, and its errors."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from untrained import tiny_untrained

from depthclip_ros import __version__
from depthclip_ros.cli import doctor
from depthclip_ros.cli.main import main
from depthclip_ros.core import DepthConfig, DepthEstimator, WeightsError, releases, weights
from depthclip_ros.core.files import numbered_folder
from depthclip_ros.drawing.color import UNTRAINED
from depthclip_ros.resources import config_path
from offline_eval.cli import main as evaluation

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = """
/**:
  ros__parameters:
    backbone: auto
    input_height: 64
    input_width: 96
"""
CAMERA = """
image_width: {width}
image_height: {height}
distortion_model: plumb_bob
camera_matrix: {{data: [{focal}, 0, 34.5, 0, {focal}, 24.5, 0, 0, 1]}}
distortion_coefficients: {{data: [0, 0, 0, 0, 0]}}
rectification_matrix: {{data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}}
projection_matrix: {{data: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]}}
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
    """Run `depthclip predict` with the tiny network; gives exit code and a new output folder."""
    def run(*images, config=config, camera=()):
        out = numbered_folder(tmp_path / 'out')
        code = main(['predict', *map(str, images), '-o', str(out), '--config', config,
                     '--weights', str(tiny_weights), '--device', 'cpu', *map(str, camera)])
        return code, out
    return run


# predict -----------------------------------------------------------------------------------


def test_predict_writes_what_the_estimator_computes(predict, photo, tiny_weights, capsys):
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
    assert cv2.imread(str(out / 'photo_patches.png')).shape == cv2.imread(str(photo)).shape
    text = capsys.readouterr()
    assert ' ms' in text.out
    assert 'UNTRAINED' not in text.err


def test_predict_says_how_much_of_a_picture_has_no_depth(predict, photo, tmp_path, capsys):
    path = tmp_path / 'near.yaml'
    path.write_text(SETTINGS + '    temperature: 3.0\n')
    plain = np.load(predict(photo, config=str(path))[1] / 'photo_patches.npy')
    capsys.readouterr()
    for limit, words in ((float(np.median(plain)), ' % of the picture'), (0.1, ', no depth')):
        path.write_text(SETTINGS + f'    temperature: 3.0\n    range_max: {limit}\n')
        assert predict(photo, config=str(path))[0] == 0
        assert words in capsys.readouterr().out


def test_demo_weights_bring_their_own_settings(photo, tmp_path, capsys):
    out = tmp_path / 'out'
    assert main(['predict', str(photo), '-o', str(out), '--weights', 'demo',
                 '--device', 'cpu']) == 0
    assert capsys.readouterr().err.count('weights: demo bring their own') == 1
    expected = DepthEstimator(DepthConfig.from_yaml(config_path('demo')), 'demo', 'cpu').predict(
        cv2.imread(str(photo))[..., ::-1].copy())
    np.testing.assert_allclose(
        np.load(out / 'photo_patches.npy'), expected.patch_depth, atol=1e-5)
    with pytest.raises(WeightsError, match=r"backbone is 'RN50'.*config/demo\.yaml"):
        DepthEstimator(DepthConfig(), 'demo', 'cpu')


def test_predict_counts_the_focal_length_where_it_is_told(predict, photo, tmp_path, capsys):
    """The photo has 70 x 50 pixels, the network's input 96 x 64."""
    plain = np.load(predict(photo)[1] / 'photo_patches.npy')
    assert 'focal length' not in capsys.readouterr().out
    focal = 70 / 2 / np.tan(np.radians(45))
    ratio = focal * 64 / 50 / 96 / 0.811
    (tmp_path / 'head.yaml').write_text(CAMERA.format(width=70, height=50, focal=focal))
    for camera in (('--fov', 90), ('--camera-info', tmp_path / 'head.yaml')):
        code, out = predict(photo, camera=camera)
        assert code == 0
        assert f', x {ratio:.3f} for the focal length' in capsys.readouterr().out
        np.testing.assert_allclose(
            np.load(out / 'photo_patches.npy'), ratio * plain, rtol=1e-5)
    (tmp_path / 'head.yaml').write_text(CAMERA.format(width=640, height=480, focal=500))
    for camera, words in ((('--fov', 180), ['180']), (('--camera-info', '/no.yaml'), ['/no.yaml']),
                          (('--camera-info', tmp_path / 'head.yaml'),
                           ['photo.png', '640 x 480', '70 x 50'])):
        assert predict(photo, camera=camera)[0] == 1
        error = capsys.readouterr().err
        assert all(word in error for word in words)


def test_predict_does_the_others_and_lists_every_unreadable_input(
        predict, photo, tmp_path, capsys):
    """Nothing is waited for, and no picture is overwritten by another of the same name."""
    (tmp_path / 'bad.jpg').write_bytes(b'garbage')
    (tmp_path / 'more').mkdir()
    cv2.imwrite(str(tmp_path / 'more' / 'photo.jpg'), np.full((20, 30, 3), 99, np.uint8))
    os.mkfifo(tmp_path / 'pipe')
    code, out = predict(tmp_path / 'bad.jpg', photo, tmp_path / 'nowhere.png', tmp_path / 'more',
                        tmp_path / 'pipe', 'a\0b', 'x' * 5000, '~nobody-at-all/x.png')
    assert code == 1
    shapes = [cv2.imread(str(out / f'{name}_depth.png'), -1).shape
              for name in ('photo', 'photo_2')]
    assert shapes == [(50, 70), (20, 30)]
    error = capsys.readouterr().err
    for text in ('6 of the inputs could not be used', 'bad.jpg: is no picture', 'nowhere.png',
                 'a folder, a pipe or a device'):
        assert text in error
    assert len(error) < 2000
    assert 'Traceback' not in error


def test_predict_is_loud_when_untrained(photo, tiny_weights, tmp_path, monkeypatch, capsys):
    config = tiny_untrained(monkeypatch, tiny_weights, tmp_path)
    arguments = ['predict', str(photo), '-o', str(tmp_path / 'out'), '--config', str(config),
                 '--device', 'cpu']
    assert main(arguments) == 0
    assert capsys.readouterr().err.count(UNTRAINED) == 2
    picture = cv2.imread(str(tmp_path / 'out' / 'photo_color.png'))
    assert picture.shape[0] > 50  # the stripe above


# Errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(('command', 'parts'), [
    ('predict PHOTO -o OUT --config /no.yaml', ['/no.yaml']),
    ('predict PHOTO -o OUT --config TMP/tiny.yaml --weights /no.pt', ['/no.pt']),
    ('predict PHOTO -o OUT --device tpu', ['tpu']),
    ('fetch RN51', ["'RN51'", 'ViT-B/32']),
    ('encode-text /no.yaml', ['/no.yaml']),
    ('demo --bag /no/bag -o OUT', ['/no/bag']),
    ('demo --bag TMP/pipe -o OUT', ['pipe is not a bag']),
    ('demo --bag TMP -o OUT', ['metadata.yaml does not describe a bag']),
    ('demo --images /no/picture -o OUT', ['/no/picture']),
    ('demo --fov 500 -o OUT', ['0 < FOV < 180']),
    ('demo --video rtsp://nowhere/live -o OUT', ['is a stream']),
    ('demo --video PHOTO/%04d.png -o OUT', ['--images FOLDER']),
    ('demo --images PHOTO -o TMP/\udce9', ['-o: TMP/\\udce9 is no UTF-8']),
    ('calibrate bag -o TMP/\udce9/x.yaml', ['-o: TMP/\\udce9/x.yaml is no UTF-8']),
    ('demo --camera-info TMP/tiny.yaml -o OUT', ['tiny.yaml']),
    ('demo --images PHOTO --camera-info TMP/pipe -o OUT', ['a pipe or a']),
    ('demo --images PHOTO --config TMP/pipe -o OUT', ['a pipe or a']),
    ('words giant', ["'giant' is one word"]),
    ('bags /no/bags -o OUT', ['/no/bags', 'the path of one on every']),
    *((f'{command} --config TMP/tiny.yaml -o PHOTO/out/x.yaml', ['PHOTO/out', 'with -o.'])
      for command in ('predict PHOTO', 'words near,far', 'compare bag', 'view PHOTO', 'demo',
                      'calibrate bag'))])
def test_errors_are_one_line_and_exit_code_1(command, parts, photo, config, tmp_path, capsys):
    (tmp_path / 'metadata.yaml').write_text('hello: 1')
    os.mkfifo(tmp_path / 'pipe')

    def filled(text):
        return text.replace('PHOTO', str(photo)).replace('OUT', str(tmp_path / 'out')).replace(
            'TMP', str(tmp_path))

    assert main([filled(word) for word in command.split()]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f'depthclip {command.split()[0]}: ')
    assert error.count('\n') == 0
    assert all(filled(part) in error for part in parts), error


@pytest.mark.parametrize(('command', 'message'), [
    ('', 'COMMAND'), ('paint', 'paint'), ('predict', 'IMAGE'), ('predict x.png', '-o'),
    ('demo --video a --bag b', 'not allowed with'),
    ('demo --rate -1', "--rate: '-1' is not a number greater than 0"),
    ('demo --frames 1.5', "--frames: '1.5' is not a whole number"),
    ('demo --frames 0', "--frames: '0' is not a whole number, 1 or more"),
    ('demo --webcam -1', "--webcam: '-1' is not a whole number, 0 or more"),
    ('predict a.png -o b --fov wide', "--fov: 'wide' is not a number"),
    ('predict a.png -o b --fov 0', "--fov: '0' is not a number greater than 0"),
    ('view a.png --point 9', "--point: '9' is no point: two numbers"),
    ('words a,b --bins 1,x', "--bins: 'x' is not a number"),
    ('bag a -o b --start -1', "--start: '-1' is not a number from 0")])
def test_wrong_usage_is_exit_code_2_and_names_the_value(command, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(('program', 'command', 'near'), [
    (main, 'predct a.png -o out', 'predict'), (main, 'zzz', 'demo, predict'),
    (evaluation, 'extrct a b', 'extract'), (evaluation, 'witnes --data a', 'witness')])
def test_a_command_that_is_none_is_named_and_the_nearest(program, command, near, capsys):
    with pytest.raises(SystemExit) as ended:
        program(command.split())
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert repr(command.split()[0]) in last
    assert near in last


def test_both_programs_have_a_version(capsys):
    for program in main, evaluation:
        with pytest.raises(SystemExit) as ended:
            program(['--version'])
        assert ended.value.code == 0
        assert __version__ in capsys.readouterr().out


def test_what_was_meant_is_named(photo, tmp_path, capsys, monkeypatch):
    """Weights by another spelling, and a bag in a picture's place."""
    monkeypatch.chdir(tmp_path)
    assert main(['predict', str(photo), '-o', 'out', '--weights', 'rn50']) == 1
    error = capsys.readouterr().err
    assert 'Did you mean RN50?' in error
    assert 'chmod' not in error  # there is no such file
    (tmp_path / 'bag').mkdir()
    (tmp_path / 'bag' / 'metadata.yaml').touch()
    assert main(['predict', 'bag', '-o', 'out']) == 1
    assert "'depthclip bag'" in capsys.readouterr().err


@pytest.mark.parametrize('shape', [(90, 60), (40, 640), (640, 40), (48, 64)])
def test_patches_have_the_shape_of_their_picture(predict, photo, shape):
    cv2.imwrite(str(photo), np.full((*shape, 3), 99, np.uint8))
    height, width = cv2.imread(str(predict(photo)[1] / 'photo_patches.png')).shape[:2]
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.02)


@pytest.mark.parametrize(('raised', 'code', 'said'), [
    (KeyboardInterrupt, 130, 'depthclip fetch: interrupted'),
    (WeightsError('cut off'), 1, 'depthclip fetch: cut off')])
def test_an_interrupt_and_errors_are_a_line(monkeypatch, capsys, raised, code, said):
    def fails(*_):
        raise raised
    monkeypatch.setattr(weights, 'cache_folder', fails)
    assert main(['fetch']) == code
    assert capsys.readouterr().err.strip() == said


@pytest.mark.parametrize(('command', 'given'), [
    ('demo', '--images FILE -o OUT'), ('predict', 'FILE -o OUT'),
    ('calibrate', 'FILE -o OUT.yaml'),
    ('compare', 'FILE'), ('words', 'near,far --image FILE'), ('view', 'FILE -o OUT'),
    ('bag', 'FILE -o OUT'), ('bags', 'FILE -o OUT'), ('fetch', 'FILE'), ('encode-text', 'FILE'),
    ('quantize', '--images FILE'), ('stats', '--timeout 0.1 FILE'), ('doctor', 'FILE')])
def test_every_command_answers_every_call_in_words(command, given, tmp_path, config, capsys):
    """Help, a wrong option, a missing file, and an empty folder in its place."""
    (tmp_path / 'empty').mkdir()
    for arguments, codes in (
            ('--help', {0}), ('--no-such-option', {2}),
            (given.replace('FILE', str(tmp_path / 'missing')), {1, 2}),
            (given.replace('FILE', str(tmp_path / 'empty')), {1, 2})):
        words = [command, *arguments.replace('OUT', str(tmp_path / 'out')).split()]
        if command in ('demo', 'predict', 'view', 'compare', 'calibrate', 'words', 'quantize') \
                and len(codes) == 2:
            words += ['--weights', 'demo', '--device', 'cpu']
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        assert code in codes, (words, said)
        assert (said.err if code else said.out).strip(), words


# Bytes of names come through arguments as Python has them; a process, because OpenCV ended it.
ANY_NAME = """
import os, sys
from pathlib import Path
from depthclip_ros.cli.main import main
model = ['--config', sys.argv[1], '--weights', sys.argv[2], '--device', 'cpu']
picture, codes = Path('photo.png').read_bytes(), []
for number, name in enumerate(sys.argv[3:]):
    file, folder = f'./{name}.png', f'./{name}'
    Path(file).write_bytes(picture)
    Path(folder).mkdir()
    Path(folder, f'{name[:200]}.png').write_bytes(picture)
    Path(f'./{name}.yaml').write_bytes(Path(sys.argv[1]).read_bytes())
    for arguments in (
            ['predict', file, folder, '-o', f'./{name}_', *model],
            ['predict', 'photo.png', '-o', f'out{number}', '--config', f'./{name}.yaml',
             *model[2:]],
            ['view', file, '-o', f'./{name}v', *model],
            ['encode-text', f'./{name}.yaml', *model[2:4]],
            *(([['view', file, '-o', f'./{name}p', '--point', '30,30', *model],
                ['words', f'{name},far', '--image', file, '-o', f'./{name}w', *model]])
              if number < 3 else ())):
        codes.append((arguments, main(arguments)))
    for command in (
            ['predict', '-o', 'out'], ['view', '-o', 'out'], ['compare'], ['bags', '-o', 'out'],
            ['calibrate', '-o', f'./{name[:200]}k.yaml'], ['bag', '-o', f'./{name[:200]}b'],
            ['quantize', '--images'], ['words', 'near,far', '--image'],
            *(['demo', '-o', 'out', f'--{kind}'] for kind in ('video', 'images', 'bag'))):
        codes.append((command, 1 - main([command[0], *command[1:], f'./no{name[:240]}', *(
            ['--weights', 'demo'] if command[0] == 'words' else [])])))
print(*(wrong for wrong in codes if wrong[1]), sep='\\n', end='')
"""


def test_no_command_minds_a_name(photo, config, tiny_weights, tmp_path):
    names = ['latin\udce9', 'new\nline', '$x^{$', '-o', '%d %s', 'L' * 249 + '\udce9', '~', '[*]',
             "'\"`\\", '\x1b[31m\t', '  ', '\N{GRINNING FACE}']
    process = subprocess.run(
        [sys.executable, '-c', ANY_NAME, config, str(tiny_weights), *names], cwd=tmp_path,
        capture_output=True, check=False, env={**os.environ, 'PYTHONPATH': os.pathsep.join(
            [str(ROOT), os.environ.get('PYTHONPATH', '')]), 'PYTHONIOENCODING': 'utf-8:strict'})
    said = process.stderr.decode(errors='replace')
    assert process.returncode == 0, said[-3000:]
    assert 'Traceback' not in said
    results = [path.name for path in (tmp_path / 'latin\udce9_').iterdir()]
    assert {'latin\udce9_depth.png', 'latin\udce9_2_patches.npy'} < set(results)
    page = (tmp_path / 'latin\udce9w' / 'words.html').read_text(encoding='utf-8')
    assert 'latin\ufffd' in page
    assert not process.stdout.decode().splitlines()[-1].startswith('(['), process.stdout.decode()


def test_a_long_name_leaves_room_for_the_endings(predict, photo):
    path = photo.with_name('é' * 125 + '.png')
    path.write_bytes(photo.read_bytes())
    code, out = predict(path)
    assert code == 0
    assert sorted(name.name.lstrip('é') for name in out.iterdir()) == [
        '_color.png', '_depth.png', '_patches.npy', '_patches.png']


def test_predict_says_what_is_peculiar_about_pictures(predict, photo, tmp_path, capsys):
    for name in 'abc':
        cv2.imwrite(str(tmp_path / f'{name}.png'), np.zeros((70, 50, 3), np.uint16) + 1000)
    assert predict(*(tmp_path / f'{name}.png' for name in 'abc'))[0] == 0
    said = capsys.readouterr().err
    assert said.count("are stretched to the network's 96x64") == 1
    assert 'images of 50x70' in said
    assert 'stretched: 3 pictures' in said
    assert said.count('picture of 10 bits') == 1
    assert '10 bits: 3 pictures' in said


def without_packages(*arguments):
    """`depthclip` in an interpreter that has the standard library only."""
    return subprocess.run(
        [sys.executable, '-S', '-m', 'depthclip_ros.cli.main', *arguments], cwd=ROOT, check=False,
        capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': '', 'ROS_DISTRO': ''})


def test_help_and_messages_need_the_standard_library_alone():
    done = without_packages('bag', '--help')
    assert done.returncode == 0, done.stderr
    assert '--depth-encoding' in done.stdout
    done = without_packages('predict', 'x.png', '-o', 'out')
    assert done.returncode == 1
    assert 'depthclip doctor' in done.stderr
    assert 'Traceback' not in done.stderr


# fetch, encode-text ------------------------------------------------------------------------


def test_fetch_lists_what_there_is_and_verifies_it(own_cache, monkeypatch, capsys):
    path = own_cache / 'weights' / 'RN50.pt'
    path.parent.mkdir()
    path.touch()
    assert main(['fetch']) == 0
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(lines) == set(releases.RELEASES)
    assert lines['RN50'] == str(path)
    assert lines['RN101'] == '-'
    assert main(['fetch', 'RN50']) == 1
    assert 'Delete it and fetch it again' in capsys.readouterr().err
    release = releases.RELEASES['RN50']._replace(sha256=hashlib.sha256(b'').hexdigest())
    monkeypatch.setitem(releases.RELEASES, 'RN50', release)
    assert main(['fetch', 'RN50']) == 0
    assert capsys.readouterr().out.strip() == str(path)


def test_encode_text_encodes_once_and_hits_afterwards(config, tiny_weights, own_cache, capsys):
    """The tokens, and the scenes where there are some; an estimator finds both in the cache."""
    scenes = Path(config).with_name('scenes.yaml')
    scenes.write_text(SETTINGS + "    scenes: ['hall', 'attic', 'cellar']\n")
    said = []
    for file in (config, scenes, scenes):
        assert main(['encode-text', str(file), '--weights', str(tiny_weights)]) == 0
        said.append(capsys.readouterr().out)
    first, both, again = said
    assert first.count('encoded in') == 1
    assert both.count('encoded in') == both.count('hit in') == 1
    assert again.count('hit in') == 2
    assert ['7 tokens x' in first, '3 scenes x' in both, '3 scenes x' in first] == [
        True, True, False]
    path = Path(next(line.split(':', 1)[1].strip() for line in first.splitlines()
                     if line.startswith('path')))
    assert path.is_file()
    assert path.is_relative_to(own_cache)
    assert first.splitlines()[:3] == both.splitlines()[:3] == again.splitlines()[:3]


def test_encode_text_fails_when_nothing_can_be_kept(config, tiny_weights, own_cache, capsys):
    (own_cache / 'text').touch()  # a file where the folder should be
    assert main(['encode-text', config, '--weights', str(tiny_weights)]) == 1
    assert 'could not be written' in capsys.readouterr().err


# doctor ------------------------------------------------------------------------------------


def by_name(checks):
    return {check.name: check for check in checks}


def test_doctor_runs_with_the_standard_library_only_and_says_what_to_install():
    done = without_packages('doctor')
    assert done.returncode == 1, done.stderr
    failed = dict(re.findall(r'^FAIL (\w+): .*\n     fix: (.*)', done.stdout, re.MULTILINE))
    assert set(failed) >= {'ros', 'torch', 'numpy', 'opencv', 'clip', 'network', 'weights'}
    assert all('pip install' in fix or 'source ' in fix for fix in failed.values())
    assert 'Repair first: ros.' in done.stdout


def test_doctor_is_content_with_this_environment(monkeypatch, capsys):
    # Coverage, if it is measured, would watch how each probe imports what others have written.
    monkeypatch.setenv('COVERAGE_PROCESS_CONFIG', '')
    assert main(['doctor']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {'torch', 'clip', 'numpy', 'ros', 'network'} <= {
        line[5:].partition(':')[0] for line in lines if line.startswith('OK')}
    for line, next_one in itertools.pairwise(lines):
        assert line.startswith('WARN') == next_one.startswith('     fix: '), line


@pytest.mark.parametrize(('package', 'content', 'check', 'status', 'word'), [
    ('cv_bridge', 'import os; os.abort()', doctor.check_arrays, 'WARN', 'crashed with signal 6'),
    ('cv2', 'raise ImportError("libGL.so.1: no such file")', doctor.check_arrays, 'FAIL',
     'apt install libgl1'),
    ('clip', 'VERSION = 1', doctor.check_clip, 'FAIL', 'openai-clip'),
    ('rclpy', 'raise ModuleNotFoundError("No module named \'rclpy._rclpy_pybind11\'")',
     doctor.check_ros, 'FAIL', '/usr/bin/python3 -m venv')])
def test_doctor_survives_packages_that_do_not_work(
        tmp_path, monkeypatch, package, content, check, status, word):
    (tmp_path / package).mkdir()
    (tmp_path / package / '__init__.py').write_text(content)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}{os.pathsep}{ROOT}')
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    assert any(one.status == status and word in one.detail + one.fix for one in check())


@pytest.mark.parametrize(('machine', 'version', 'there_are_wheels'), [
    ('x86_64', (3, 10, 1), True), ('x86_64', (3, 13, 0), True), ('x86_64', (3, 14, 0), False),
    ('aarch64', (3, 12, 3), False)])
def test_doctor_offers_wheels_of_rclpy_where_there_are_such(
        tmp_path, monkeypatch, machine, version, there_are_wheels):
    (tmp_path / 'rclpy.py').write_text('raise ImportError("none")')
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}{os.pathsep}{ROOT}')
    monkeypatch.delenv('ROS_DISTRO', raising=False)
    monkeypatch.setattr(doctor.platform, 'machine', lambda: machine)
    monkeypatch.setattr(doctor.sys, 'version_info', version)
    fix = by_name(doctor.check_ros())['ros'].fix
    assert ('pip install' in fix) == there_are_wheels
    assert 'source its setup.bash' in fix


@pytest.mark.parametrize(('name', 'value', 'status'), [
    ('ROS_DOMAIN_ID', '42', 'OK'), ('ROS_DOMAIN_ID', '150', 'WARN'),
    ('ROS_DOMAIN_ID', 'robot', 'FAIL'), ('ROS_DOMAIN_ID', '233', 'FAIL'),
    ('ROS_LOCALHOST_ONLY', '1', 'WARN'), ('FASTRTPS_DEFAULT_PROFILES_FILE', '/no.xml', 'FAIL'),
    ('FASTDDS_DEFAULT_PROFILES_FILE', '/no.xml', 'FAIL')])
def test_doctor_judges_the_discovery_settings(monkeypatch, name, value, status):
    for known in (*doctor.DISCOVERY, 'ROS_DISTRO'):
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(name, value)
    check, = doctor.check_discovery()
    assert check.status == status
    assert f'{name}={value}' in check.detail
    assert bool(check.fix) == (status != 'OK')


def test_doctor_finds_what_is_wrong_with_the_cache(own_cache, monkeypatch):
    (own_cache / 'weights').mkdir()
    (own_cache / 'weights' / 'RN50.pt').write_bytes(b'cut off')
    (own_cache / 'text').mkdir()
    np.save(own_cache / 'text' / 'words.npy', np.zeros(1))
    found = by_name(doctor.check_caches())
    assert found['weights'].status == 'FAIL'
    assert 'fetch RN50' in found['weights'].fix
    assert 'text features for 1 settings' in found['cache'].detail
    monkeypatch.setenv('DEPTHCLIP_CACHE', 'relative/folder')
    check, = doctor.check_caches()
    assert check.status == 'FAIL'
    assert 'relative' in check.detail
