# SPDX-License-Identifier: Apache-2.0
"""Files of others stay as they are, whichever command is told to write where they lie."""

from __future__ import annotations

import json
import shutil

import pytest
from drives import camera_of_width, drive, write_folder
from eval_results import write_world
from ros_harness import own_domain

from depthclip_ros.cli import demo as demo_command
from depthclip_ros.cli import main as cli
from depthclip_ros.core.files import numbered_folder
from depthclip_ros.sim.formats import make_samples
from offline_eval import cli as evaluation
from offline_eval.report import __main__ as report

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


@pytest.mark.parametrize('name', ['witness.json', 'raw/mine.png', 'raw/00000.png'])
def test_exported_depth_takes_no_place_of_others(name, world, tmp_path, capsys):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b'mine')
    before = contents(tmp_path)
    assert evaluation.main(['witness', '--data', str(world), *DEMO, '-o', str(tmp_path)]) == 1
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
