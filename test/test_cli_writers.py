# SPDX-License-Identifier: Apache-2.0
"""Files of others stay as they are, whichever command is told to write where they lie."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import pytest
from drives import camera_of_width, drive, write_folder
from eval_results import write_world
from ros_harness import own_domain

from depthclip_ros.cli import demo as demo_command
from depthclip_ros.cli import main as cli
from depthclip_ros.core.files import numbered_folder
from depthclip_ros.evaluation.bootstrap import MIN_GROUPS
from depthclip_ros.sim import KINDS
from depthclip_ros.sim.datasets import make_samples, split
from offline_eval import cli as evaluation
from offline_eval.report import __main__ as report

ROOT = Path(__file__).resolve().parents[1]
DEMO = ('--weights', 'demo', '--device', 'cpu')


def contents(folder):
    """Bytes of every file; links by where they lead."""
    return {path: path.read_bytes() if path.is_file() else b'' for path in folder.rglob('*')}


def depthclip(*arguments):
    return cli.main([*map(str, arguments)])


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, make_samples(10, seed=3))
    return folder


@pytest.fixture
def recording(tmp_path):
    return write_folder(tmp_path / 'recording', drive(
        rooms=1, frames=3, camera=camera_of_width(64), seed=5))


@pytest.mark.parametrize(('command', 'name'), [
    (('predict', 'PICTURE'), 'room_depth.png'), (('predict', 'PICTURE'), 'room_patches.npy'),
    (('view', 'PICTURE'), '001_room.png'), (('view', 'PICTURE'), '007_of_another.png'),
    (('words', 'close, far'), 'words.md'),
    (('words', 'close, far', '--image', 'PICTURE'), 'figures/bars_1_a.png'),
    (('compare', 'RECORDING'), 'comparison.json'),
    (('compare', 'RECORDING'), 'figures/predictions.png')])
def test_a_folder_with_such_a_file_is_refused(
        command, name, picture, recording, tmp_path, capsys, monkeypatch):
    """Before a model is loaded."""
    places = {'PICTURE': picture, 'RECORDING': recording}
    given = [places.get(word, word) for word in command], *DEMO, '-o', tmp_path / 'out'
    mine = tmp_path / 'out' / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b'mine')
    monkeypatch.setattr('depthclip_ros.cli.model.DepthEstimator', None)
    before = contents(tmp_path)
    assert depthclip(*given[0], *given[1:]) == 1
    error = capsys.readouterr().err
    assert name.partition('/')[0] in error
    assert '-o' in error
    assert contents(tmp_path) == before


def test_a_second_prediction_into_a_folder_leaves_the_first(picture, tmp_path, capsys):
    other = tmp_path / 'other.png'
    shutil.copy(picture, other)
    assert depthclip('predict', picture, *DEMO, '-o', tmp_path / 'out') == 0
    before = contents(tmp_path / 'out')
    assert depthclip('predict', picture, *DEMO, '-o', tmp_path / 'out') == 1
    assert depthclip('predict', other, *DEMO, '-o', tmp_path / 'out') == 0
    assert before.items() < contents(tmp_path / 'out').items()


# The demo ------------------------------------------------------------------------------------


@pytest.fixture
def demo(tmp_path, monkeypatch, picture):
    """Run a demo whose node ends at once; gives the exit code."""
    monkeypatch.setattr(demo_command, '_node_arguments', lambda *_: ['-c', 'raise SystemExit(3)'])

    def run(*arguments):
        with own_domain() as domain:
            monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
            return depthclip('demo', '--images', picture, *DEMO, *arguments)
    return run


@pytest.mark.parametrize('name', [
    'color_777.png', 'depth_001.png', 'cloud_007.ply', 'overview.png', 'input.png', 'summary.json',
    'source.log', 'depth_node.yaml'])
def test_a_demo_removes_nothing_of_others(name, demo, tmp_path, capsys):
    out = tmp_path / 'out'
    out.mkdir()
    (out / name).write_text('[1]')
    before = contents(tmp_path)
    assert demo('-o', out) == 1
    assert name in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_second_demo_has_a_folder_of_its_own(demo, tmp_path, capsys, monkeypatch):
    """Also where the first one's folder is the working directory, and holds more by now."""
    out = tmp_path / 'demo'
    demo('-o', out)
    (out / 'color_777.png').write_bytes(b'mine')
    for number, given in ((2, out), (3, '.')):
        before = contents(tmp_path)
        monkeypatch.chdir(out)
        demo('-o', given)
        assert f'demo_{number}' in capsys.readouterr().err
        assert before.items() < contents(tmp_path).items()
        assert json.loads((tmp_path / f'demo_{number}' / 'summary.json').read_text())


def test_the_first_number_that_nothing_has(tmp_path):
    (tmp_path / 'a').touch()
    (tmp_path / 'a_2').symlink_to('nowhere')
    assert [numbered_folder(tmp_path / name).name for name in ('b', 'a', 'a', 'b')] == [
        'b', 'a_3', 'a_4', 'b_2']


def test_several_processes_that_begin_at_once_have_a_folder_each(tmp_path, monkeypatch):
    """Where the name is taken between the look and the making."""
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a_2').touch()
    monkeypatch.setattr(Path, 'exists', lambda _: False)
    assert numbered_folder(tmp_path / 'a').name == 'a_3'


# The evaluation ------------------------------------------------------------------------------


def test_an_extraction_goes_on_and_overwrites_nothing(world, tmp_path, capsys):
    command = ['extract', str(world / 'nyu_depth_v2_labeled.mat'), str(tmp_path)]
    assert evaluation.main(command) == 0
    first = contents(tmp_path)
    lost, mine = list(tmp_path.rglob('rgb_*.jpg'))[:2]
    lost.unlink()
    assert evaluation.main(command) == 0
    assert contents(tmp_path) == first
    mine.write_bytes(b'mine')
    assert evaluation.main(command) == 1
    assert mine.name in capsys.readouterr().err
    assert contents(tmp_path) == {**first, mine: b'mine'}


@pytest.mark.parametrize('name', ['export.json', 'raw/mine.png', 'raw/00000.png'])
def test_exported_depth_takes_no_place_of_others(name, world, tmp_path, capsys):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b'mine')
    before = contents(tmp_path)
    assert evaluation.main(['export', '--data', str(world), *DEMO, '-o', str(tmp_path)]) == 1
    assert mine.name in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_an_evaluation_and_its_reports_have_folders_of_their_own(world, tmp_path, capsys):
    (tmp_path / 'latest').write_bytes(b'mine')
    assert evaluation.main(['--data', str(world), *DEMO, '--output', str(tmp_path)]) == 0
    run, = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (tmp_path / 'latest').read_bytes() == b'mine'
    (run / 'report' / 'report.html').write_text('with my notes')
    before = contents(tmp_path)
    assert report.main([str(run)]) == 0
    assert before.items() < contents(tmp_path).items()
    assert (run / 'report_2' / 'report.html').stat().st_size > 1000
    assert 'report_2' in capsys.readouterr().out


def test_no_stranger_is_continued(world, tmp_path, capsys):
    """A folder `records` alone does not make an evaluation of it."""
    (tmp_path / 'records').mkdir()
    (tmp_path / 'summary.json').write_bytes(b'mine')
    before = contents(tmp_path)
    assert evaluation.main(['--data', str(world), *DEMO, '--resume', str(tmp_path)]) == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize(('program', 'command'), [
    (depthclip, ['predict', '~/room.png', '--config=~/own.yaml', '--weights=~/own.pt',
                 '--output=~/made']),
    *((lambda *given: evaluation.main([*given]), command) for command in ([
        'extract', '~/nyu_depth_v2_labeled.mat', '~/made'], [
        'export', '--data=~', '--config=~/own.yaml', '--weights=~/own.pt', '--output=~/made'], [
        '--data=~/official/official_splits/test', '--weights=demo', '--predictions=a=~/made',
        '--list=~/official/LIST', '--output=~/made']))])
def test_a_tilde_behind_an_option_is_the_home_folder(
        program, command, world, picture, tmp_path, monkeypatch, capsys):
    """Shells leave it as it is in `--output=~/made`; nobody wants a folder of that name."""
    home, here = tmp_path / 'home', tmp_path / 'here'
    shutil.copytree(world, home)
    shutil.copy(ROOT / 'config/demo.yaml', home / 'own.yaml')
    shutil.copy(ROOT / 'depthclip_ros/models/demo.pt', home / 'own.pt')
    shutil.copy(picture, home / 'room.png')
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv('HOME', str(home))
    lists = next((home / 'official').glob('*.txt')).name
    code = program(*(part.replace('LIST', lists) for part in command))
    said = capsys.readouterr().err
    if '--predictions=a=~/made' in command:  # all was found up to the last
        assert f'a={home}/made: 10 of 10 files are missing' in said
    else:
        assert (code, (home / 'made').is_dir()) == (0, True), said
    assert not list(here.iterdir())


# Bags ----------------------------------------------------------------------------------------


def test_an_unfinished_bag_is_made_again_and_nothing_else_removed(tmp_path, capsys):
    pytest.importorskip('rosbags')
    from drives import write_drive
    bag = write_drive(tmp_path / 'bag', drive(rooms=1, frames=2, camera=camera_of_width(64)))
    mine = tmp_path / 'out.partial' / 'thesis.txt'
    mine.parent.mkdir()
    mine.write_bytes(b'mine')
    command = ('bag', bag, '-o', tmp_path / 'out', *DEMO)
    for more in (), ('--resume',):
        assert depthclip(*command, *more) == 1
        assert mine.read_bytes() == b'mine'
    assert 'thesis.txt' in capsys.readouterr().err
    mine.rename(tmp_path / 'thesis.txt')
    assert depthclip(*command, '--resume') == 0


# Before a model is loaded --------------------------------------------------------------------


@pytest.mark.parametrize('command', [
    ('predict', 'no.png', '-o', 'OUT'), ('predict', 'BAG', '-o', 'OUT'),
    ('view', 'no.png', 'nor.png', '-o', 'OUT'), ('view', 'EMPTY', '-o', 'OUT'),
    ('words', 'close, far', '--image', 'no.png'), ('words', 'close, far', '--image', 'EMPTY'),
    ('compare', 'no_bag'), ('calibrate', 'no_bag', '-o', 'OUT/robot.yaml'),
    ('bag', 'no_bag', '-o', 'OUT'), ('quantize', '--images', 'no.png'),
    ('predict', 'PICTURE', '-o', 'PICTURE/x'), ('words', 'close, far', '-o', 'PICTURE/x'),
    ('view', 'PICTURE', '-o', 'PICTURE/x'), ('predict', 'PICTURE', '-o', 'OUT', '--fov', '180')])
def test_what_is_wrong_is_found_before_a_model_is_loaded(command, picture, tmp_path, monkeypatch,
                                                         capsys):
    (tmp_path / 'empty').mkdir()
    places = {'PICTURE': picture, 'OUT': tmp_path / 'out', 'EMPTY': tmp_path / 'empty',
              'BAG': tmp_path / 'empty'}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('depthclip_ros.core.weights.load_weights', None)
    monkeypatch.setattr('depthclip_ros.core.estimator.load_weights', None, raising=False)
    monkeypatch.setattr('depthclip_ros.cli.words.load_weights', None)
    monkeypatch.setattr('depthclip_ros.cli.model.DepthEstimator', None)
    words = [places.get(word, places.get(word.partition('/')[0], tmp_path) / word.partition(
        '/')[2] if '/' in word else word) for word in command]
    assert depthclip(*words, *DEMO) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'depthclip {command[0]}: ') or f'\ndepthclip {command[0]}: ' in error


@pytest.mark.parametrize(('more', 'words'), [
    (('--output', 'room.png/x'), 'room.png/x'), (('--resume', 'nosuch'), 'nosuch'),
    (('--predictions', 'a=empty'), 'files are missing'),
    (('--calibration', 'nosuch'), 'nosuch')])
def test_options_of_an_evaluation_are_looked_at_first(
        more, words, world, picture, tmp_path, monkeypatch, capsys):
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('offline_eval.evaluate.DepthEstimator', None)
    assert evaluation.main(['--data', str(world), *DEMO, *more]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(('place', 'goes_on'), [('load_model', False), ('_score_remaining', True)])
def test_resume_is_promised_where_there_is_a_run(place, goes_on, world, tmp_path, monkeypatch,
                                                 capsys):
    def interrupt(*_):
        raise KeyboardInterrupt
    command = ['--data', str(world), *DEMO, '--output', str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(f'offline_eval.evaluate.{place}', interrupt)
        assert evaluation.main(command) == 130
    assert ('--resume' in capsys.readouterr().err) == goes_on
    assert evaluation.main([*command, '--resume']) == (0 if goes_on else 1)


def test_latest_stays_where_a_run_is_not_continued(world, tmp_path, capsys):
    command = ['--data', str(world), *DEMO, '--output', str(tmp_path)]
    for _ in range(2):
        assert evaluation.main(command) == 0
    latest = (tmp_path / 'latest').resolve()
    other, = (path for path in tmp_path.iterdir() if path.is_dir() and path.resolve() != latest)
    capsys.readouterr()
    assert evaluation.main([*command, '--resume', str(other), '--protocol', 'bts']) == 1
    assert 'depthclip then, bts now' in capsys.readouterr().err
    assert (tmp_path / 'latest').resolve() == latest


def test_other_data_under_the_same_names_are_not_continued(world, tmp_path, capsys):
    """As of a data set that was extracted again: the numbers would be of two."""
    data = shutil.copytree(world / 'official', tmp_path / 'data')
    command = ['--data', str(data), *DEMO, '--output', str(tmp_path / 'out')]
    assert evaluation.main(command) == 0
    for image in data.rglob('test/**/rgb_*.jpg'):
        cv2.imwrite(str(image), cv2.imread(str(image)), [cv2.IMWRITE_JPEG_QUALITY, 70])
    capsys.readouterr()
    assert evaluation.main([*command, '--resume']) == 1
    error = capsys.readouterr().err
    assert 'other data' in error
    assert len(error.splitlines()[-1]) < 400  # no digests


def test_the_example_of_the_document_has_scenes_enough_for_a_verdict():
    text = (Path(__file__).resolve().parents[1] / 'docs/evaluation.md').read_text()
    count = int(re.search(r'write_demo_data\.py .*--images (\d+)', text)[1])
    rooms = {(number // (2 * len(KINDS)), number % len(KINDS)) for number in split(count)[1]}
    assert len(rooms) >= MIN_GROUPS
